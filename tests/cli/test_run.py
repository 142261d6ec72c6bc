"""`tabi run`: a program goes through a proxy of its own, and tabi says where it went."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from origin import Origin, origin
from processes import PATIENCE, TABI, environment, failure, run_program, serve
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_command_runs_ends_it(number: int) -> None:
    """While a configuration is read, say: in order, with the number of a shell."""
    code = f"import os; from tabi.cli.run import end_in_order; end_in_order(); os.kill(os.getpid(), {int(number)})"
    assert run_program([sys.executable, "-c", code]).returncode == 128 + number
