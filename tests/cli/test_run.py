"""`tabi run`: a program goes through a proxy of its own, and tabi says where it went."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox
from origin import Certificates, Origin, make_certificates, origin
from processes import PATIENCE, TABI, children, environment, failure, is_running, name_of, run_program, serve, wait_for
from support import closed_port

pytestmark = pytest.mark.linux

GET = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())"


@pytest.fixture
def server() -> Iterator[Origin]:
    """A destination."""
    with origin({"/file": b"what it is"}) as running:
        yield running


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run `tabi run` to its end."""
    return run_program((*TABI, "run", *arguments), env=env)


def get(server: Origin) -> tuple[str, ...]:
    """A program that fetches the file."""
    return ("--", sys.executable, "-c", GET, server.url("/file"))


def test_a_program_goes_through_the_proxy(server: Origin) -> None:
    """What it prints is its own; on stderr is where it went."""
    done = run(*get(server))
    assert (done.returncode, done.stdout) == (0, b"what it is")
    place = f"127.0.0.1:{server.port}"
    assert done.stderr.decode() == (
        f"tabi: 1 session, 0 B up, 10 B down, 1 host\ntabi:   {place}: 1 session, 0 B up, 10 B down\n"
    )


def test_quiet(server: Origin) -> None:
    """Nothing but what the program says."""
    done = run("--quiet", *get(server))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"what it is", b"")


def test_nobody_reads_the_summary() -> None:
    """The exit code stays the command's."""
    command = [*TABI, "run", "--", "sh", "-c", "read line; exit 3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stderr.close()
        process.stdin.write(b"go on\n")
        process.stdin.close()
        assert process.wait(PATIENCE) == 3


def test_options_behind_the_command_are_the_command_s() -> None:
    """Also without --."""
    done = run("-q", "sh", "-c", 'echo "$@"', "sh", "--via", "-q", "--help")
    assert (done.returncode, done.stdout) == (0, b"--via -q --help\n")


def test_nothing_came() -> None:
    """A program that does not connect, and one that has gone past the proxy, look the same: it is said."""
    done = run("true")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"tabi: nothing came through the proxy: ")


def test_a_destination_that_fails() -> None:
    """The summary says why; the exit code is the program's."""
    with closed_port() as port:
        done = run("--", sys.executable, "-c", GET, f"http://127.0.0.1:{port}/")
    assert done.returncode == 1
    assert f"tabi:   127.0.0.1:{port}: 1 session, 0 B up, 0 B down, 1 failed: " in done.stderr.decode()


def test_through_another_proxy(tmp_path: Path, server: Origin) -> None:
    """--via: what goes out is a session of that one, whose password nobody sees."""
    with serve(tmp_path, "-u", "alice:secret") as proxy:
        via = proxy.url.replace("://", "://alice:secret@")
        done = run("--via", via, *get(server))
        assert (done.returncode, done.stdout) == (0, b"what it is"), done.stderr
        (session,) = proxy.sessions(1)
    assert (session["port"], session["user"]) == (server.port, "alice")
    assert b"secret" not in done.stderr


def test_a_configuration(tmp_path: Path, server: Origin) -> None:
    """Its rules hold; its listeners, users and access log are not the run's. No port of it is listened on."""
    log = tmp_path / "access.log"
    config = tmp_path / "tabi.toml"
    config.write_text(
        'listen = [{ url = "socks5://192.0.2.1:1" }]\n'
        "[users.alice]\npassword = 'secret'\nplain = true\n"
        "[[rule]]\nname = 'no'\nhosts = ['denied.test']\naction = 'deny'\n"
    )
    done = run("-c", config, *get(server))
    assert (done.returncode, done.stdout) == (0, b"what it is"), done.stderr
    done = run("-c", config, "--", sys.executable, "-c", GET, "http://denied.test/")
    assert b"denied.test:80: 1 session, 0 B up, 0 B down, 1 failed: " in done.stderr
    config.write_text(f"log.access = '{log}'\n")
    done = run("-q", "-c", config, *get(server))
    assert f'"port":{server.port},' in log.read_text()


def test_a_bad_network(server: Origin, tmp_path: Path) -> None:
    """A profile, also one of the file, for all that the program does; the summary names it."""
    file = tmp_path / "tabi.toml"
    file.write_text('[profile.slow]\nlatency = "100ms"\n')
    began = time.monotonic()
    done = run("-c", file, "--fault", "slow", *get(server))
    assert (done.returncode, done.stdout) == (0, b"what it is")
    assert time.monotonic() - began >= 0.2
    assert b"tabi: 1 session, 0 B up, 10 B down, 1 host, with the fault slow\n" in done.stderr
    done = run("--fault", "offline", *get(server))
    assert done.returncode == 1
    assert b"1 failed: " in done.stderr
    assert b", with the fault offline\n" in done.stderr
    assert "--fault: '5g', expected a profile: " in failure(run("--fault", "5g", "true"), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["--frobnicate", "true"], "--frobnicate"),
        (["--via", "nothing", "true"], "--via"),
        (["-c", "no-such-file.toml", "true"], "no-such-file.toml"),
    ],
    ids=["nothing", "an option", "a proxy", "a file"],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], words: str) -> None:
    """Exit code 2, and the program is not started."""
    assert words in failure(run(*arguments), 2)


# --- interception ---


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of a destination that only tests trust."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[Origin]:
    """A destination inside TLS."""
    with origin({"/file": b"what it is"}, tls=certificates) as running:
        yield running


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment without authorities of anybody, whose temporary directory is the test's own."""
    (tmp_path / "tmp").mkdir()
    found = {name: value for name, value in environment().items() if "CERT" not in name and "_CA_" not in name}
    return found | {"TMPDIR": str(tmp_path / "tmp"), "XDG_DATA_HOME": str(tmp_path / "data")}


ISSUER = """
import os, socket, ssl, sys
host, port = os.environ["https_proxy"].removeprefix("http://").split(":")
sock = socket.create_connection((host, int(port)))
sock.sendall(f"CONNECT localhost:{sys.argv[1]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
assert b" 200 " in sock.recv(4096)
context = ssl.create_default_context(cafile=sys.argv[2] if sys.argv[2:] else None)
print(dict(pair[0] for pair in context.wrap_socket(sock, server_hostname="localhost").getpeercert()["issuer"]))
"""
"""Prints whose certificate it sees, which must be one that it trusts."""


def issuer(port: int, *authority: Path) -> tuple[str, ...]:
    """A command that runs it."""
    return ("--", sys.executable, "-c", ISSUER, str(port), *map(str, authority))


def test_interception(secure: Origin, certificates: Certificates, env: dict[str, str], tmp_path: Path) -> None:
    """The program trusts an authority that was made for it. Nothing of that is left."""
    options = ("--intercept", "localhost", "--trust", certificates.authority)
    done = run(*options, *issuer(secure.port), env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert b"tabi" in done.stdout
    assert b"1 session, " in done.stderr
    assert b"1 intercepted" in done.stderr
    assert b"flow" not in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "data").exists()


def test_flows(secure: Origin, server: Origin, certificates: Certificates, env: dict[str, str], tmp_path: Path) -> None:
    """Requests are counted, recorded, and printed on stderr: standard output is the command's."""
    har = tmp_path / "flows.har"
    code = "import sys, urllib.request as u; [u.urlopen(url).read() for url in sys.argv[1:]]; print('done')"
    urls = (secure.url("/file", "localhost"), server.url("/file"))
    options = ("--intercept", "*", "--trust", certificates.authority, "--har", har, "--print")
    done = run(*options, "--", sys.executable, "-c", code, *urls, env=env)
    assert (done.returncode, done.stdout) == (0, b"done\n"), done.stderr.decode()
    assert b"2 hosts, 2 flows" in done.stderr
    assert [entry["request"]["url"] for entry in json.loads(har.read_text())["log"]["entries"]] == [*urls]
    for url in urls:
        assert f"GET {url} 200 " in done.stderr.decode()


def test_a_record_is_whole_if_the_run_is_killed(server: Origin, env: dict[str, str], tmp_path: Path) -> None:
    """Another process writes it, which ends by itself."""
    har = tmp_path / "flows.har"
    code = (
        "import sys, urllib.request as u\nwhile True:\n"
        "  with u.urlopen(sys.argv[1], b'x' * 700_000) as answer: answer.read()"
    )
    command = [*TABI, "run", "--har", str(har), "-q", "--", sys.executable, "-c", code, server.url("/")]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: har.exists() and har.stat().st_size > 3_000_000, "some flows")
        (writer,) = (pid for pid in children(process.pid) if name_of(pid) == "tabi-records")
    finally:
        process.kill()
        process.wait(PATIENCE)
    wait_for(lambda: not is_running(writer), "the end of the writer")
    assert json.loads(har.read_bytes())["log"]["entries"]


def test_the_user_s_authority(secure: Origin, certificates: Certificates, env: dict[str, str], tmp_path: Path) -> None:
    """If there is one of `tabi ca init`, it signs; it stays as it is."""
    assert run_program((*TABI, "ca", "init"), env=env).returncode == 0
    data = {path.name: path.read_bytes() for path in (tmp_path / "data" / "tabi").iterdir()}
    options = ("--intercept", "*", "--trust", certificates.authority)
    done = run(*options, *issuer(secure.port, tmp_path / "data" / "tabi" / "ca.crt"), env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert {path.name: path.read_bytes() for path in (tmp_path / "data" / "tabi").iterdir()} == data


def test_hosts_that_are_not_intercepted(secure: Origin, certificates: Certificates, env: dict[str, str]) -> None:
    """The program sees their own certificates. What was trusted before, by any variable, is trusted further on."""
    env |= {"AWS_CA_BUNDLE": str(certificates.authority)}
    done = run("--intercept", "other.test", *issuer(secure.port), env=env)
    assert (done.returncode, b"trustme" in done.stdout) == (0, True), done.stderr.decode()
    assert b"intercepted" not in done.stderr


def test_a_program_that_trusts_nobody_else(secure: Origin, certificates: Certificates, env: dict[str, str]) -> None:
    """It refuses our certificate once; then its connections to that host are passed on, and the messages say so."""
    options = ("--intercept", "*", "--trust", str(certificates.authority), "--", "sh", "-c")
    arguments = f'{sys.executable} -c "$0" {secure.port} {certificates.authority}'
    done = run(*options, f"{arguments} 2>/dev/null; {arguments}", ISSUER, env=env)
    assert (done.returncode, b"trustme" in done.stdout) == (0, True), done.stderr.decode()
    assert b"refused our certificate for localhost: it is not intercepted" in done.stderr
    assert b"1 intercepted, 2 pinned (the client refuses our certificate), 1 failed" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_files_of_a_run_that_is_ended(number: int, env: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM is the program's; then they are removed. After SIGKILL the next run removes them."""
    command = [*TABI, "run", "-q", "--intercept", "*", "--", "sh", "-c", "echo $$; exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        program = int(process.stdout.readline())
        (folder,) = (tmp_path / "tmp").iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
        process.send_signal(number)
        process.wait(PATIENCE)
        if number == signal.SIGKILL:
            os.kill(program, signal.SIGKILL)
            assert folder.exists()
            assert run("-q", "--intercept", "*", "true", env=env).returncode == 0
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--intercept", "re:[", "true"], "--intercept"),
        (["--intercept", "*", "--trust", "no-such.pem", "true"], "--trust"),
        (["--intercept", "*", "--script", "no-such.py", "true"], "--script"),
        (["--intercept", "*", "--har", "/no/such/folder/f.har", "true"], "--har"),
        (["--trust", "x.pem", "true"], "--trust"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
def test_what_is_wrong_with_interception(arguments: list[str], words: str, env: dict[str, str], tmp_path: Path) -> None:
    """Exit code 2, one line that names the option, no program started, no file left."""
    assert words in failure(run(*arguments, env=env), 2)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_program_that_cannot_be_started_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    """Nor any other failure at the start."""
    assert "command not found" in failure(run("--intercept", "*", "no-such-program", env=env), 127)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_without_interception_nothing_of_it_is_imported() -> None:
    """The extra is not needed, and no time is lost."""
    code = "import sys, tabi.cli.run; print([name for name in sys.modules if 'intercept.' in name])"
    assert run_program([sys.executable, "-c", code]).stdout == b"[]\n"


# --- the end ---


STUCK = """
import time
class Stuck:
    def request(self, flow):
        print("stuck", flush=True)
        time.sleep(600)
"""


def test_a_hook_that_never_ends_does_not_keep_tabi(server: Origin, tmp_path: Path) -> None:
    """It holds up the proxy, so that this cannot end in order; two signals end it all the same."""
    (tmp_path / "hooks.py").write_text(STUCK)
    code = "import os, socket, sys; host, port = os.environ['http_proxy'][7:].split(':')\n"
    code += "socket.create_connection((host, int(port))).send(f'GET {sys.argv[1]} HTTP/1.0\\r\\n\\r\\n'.encode())\n"
    code += "sys.stdin.readline(); sys.exit(3)"
    options = ("--script", str(tmp_path / "hooks.py"), "--", sys.executable, "-c", code, server.url("/file"))
    with subprocess.Popen(
        [*TABI, "run", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        process.stdin.close()
        wait_for(lambda: not children(process.pid), "the command to end")

        def told() -> bool:
            process.terminate()
            return process.poll() is not None

        wait_for(told, "tabi to end", 10)
        assert process.returncode == 3


LEFT = """
import os, socket, sys
host, port = os.environ["HTTP_PROXY"].removeprefix("http://").split(":")
sock = socket.create_connection((host, int(port)))
sock.sendall(f"CONNECT 127.0.0.1:{sys.argv[1]} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
assert b" 200 " in sock.recv(4096)
if os.fork():
    os._exit(3)
sock.recv(1)
"""


def test_a_process_that_is_left_has_a_moment_and_no_more(server: Origin) -> None:
    """The proxy ends soon after the command, with its exit code; a signal ends it at once."""
    with subprocess.Popen(
        [*TABI, "run", "--", sys.executable, "-c", LEFT, str(server.port)],
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.wait(PATIENCE) == 3
        assert process.stderr is not None
        assert b"1 session, " in process.stderr.read()


@pytest.mark.skipif(not sandbox.CALLS, reason="the numbers of this machine's calls are not known to the tests")
def test_a_sandbox_without_the_wait_for_signals() -> None:
    """It is said before the command is started, which nobody could wait for."""
    refuse = sandbox.refusing(errno.EPERM, "rt_sigtimedwait")
    command = [*TABI, "run", "sh", "-c", "echo started"]
    done = subprocess.run(command, capture_output=True, env=environment(), preexec_fn=refuse, timeout=PATIENCE)
    assert "rt_sigtimedwait" in failure(done, 2)
    assert done.stdout == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_command_runs_ends_it(number: int) -> None:
    """While a configuration is read, say: in order, with the number of a shell."""
    code = f"import os; from tabi.cli.run import end_in_order; end_in_order(); os.kill(os.getpid(), {int(number)})"
    assert run_program([sys.executable, "-c", code]).returncode == 128 + number
