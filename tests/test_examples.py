"""The examples: each is run as a stranger runs it, and those that serve are used by real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from h2_origin import h2_origin
from operating import operated
from origin import Handler, make_authority, make_certificates, origin
from processes import PATIENCE, TABI, Serve, answer_http, environment, in_thread, need, receive_exactly, serve, wait_for
from support import datagram_target, reset_on_close, target
from tabi import Proxy
from tabi.intercept.authority import Authority
from tabi.observe.exposition import METRICS
from tabi.wire import parse_address

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

SERVERS = (
    "bind.py",
    "connect.py",
    "connect_tls.py",
    "mitm.py",
    "one_port.py",
    "two_protocols.py",
    "udp_inspect.py",
    "udp_stream.py",
)
"""Those that run until Ctrl-C. Each has 30 lines at most, and its first line of output says where it listens."""

SCRIPTS = ("hooks.py", "datagram_hooks.py")
"""Those for `tabi serve --script`: `test_hooks` and tests/intercept/test_datagram_hooks.py run them."""

TESTS = ("bad_network_test.py",)
"""Those for pytest."""

SHORT = (*SERVERS, *TESTS, "distort.py")
"""30 lines at most."""

EXPECTED = {
    "distort.py": ("b'ping' with 100ms each way: ", "b'ping' with 200ms each way: ", "b'ping' and then b''\n"),
    "own_proxy.py": (
        "socks5 as alice: hello from the destination\n",
        "http as bob: hello from the destination\n",
        "http as alice: AuthError\n",
    ),
    "serve.py": ("listening on socks5://127.0.0.1:", "received: hello from the destination", "sessions left: 0"),
    "users.py": ("alice received: hello from the destination", ": the proxy did not accept the user name"),
    "unix_socket.py": ("rights 600\n", "received: hello from the destination\n", "client unix:", "left behind: []\n"),
    "client.py": ("connect: ONE\n", "open_connection: TWO\n", "refused with reply 5\n"),
    "log_sessions.py": (
        "alice: 1000 octets up, 1000 down; ended by: client",
        "nobody: no acceptable method: offered 00, expected 0x02; ended by: denied",
        "total of alice: 2000 octets",
    ),
    "policy.py": (
        "refused with reply 2\n",
        "denied: rule no-mail, error: rule no-mail: deny 127.0.0.1:25\n",
        "denied: rule None, error: telnet is over\n",
        "received octets: 200000\n",
        "server: rule None, error: None\n",
        "received octets: 200000\n",
        "limit: rule None, error: limit: server: the quota of 500 kB/day is used up\n",
        "received octets: 100000\n",
        "refused with reply 2\n",
    ),
    "upstreams.py": (
        "THROUGH LOCALHOST\n",
        "connect by chain, member -\n",
        "THROUGH 127.0.0.1\n",
        "connect by pool, member of the pool\n",
        "A DATAGRAM THROUGH TWO PROXIES\n",
        "associate by chain, member -\n",
    ),
    "tls.py": (
        "listening on socks5+tls://127.0.0.1:",
        "without a certificate: 127.0.0.1:",
        "alice received: hello from the destination\n",
        "tls, user None, error: TLS: peer did not return a certificate\n",
        "socks5+tls, user alice, error: None\n",
    ),
}
"""What each of them prints, among other things, in this order."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python on something, with every warning an error."""
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)


def check_example(name: str) -> subprocess.CompletedProcess[str]:
    """What `tabi check` says, but for its advice that everybody can read the passwords: here everybody may."""
    done = run_python("-m", "tabi", "check", f"examples/{name}")
    lines = [line for line in done.stderr.splitlines(keepends=True) if "can be read by every user" not in line]
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, "".join(lines))


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - {*SERVERS, *SCRIPTS, *TESTS}))
def test_an_example_runs_by_itself_and_ends(name: str) -> None:
    """`python examples/NAME.py` needs no other program and no network, says what it should, and nothing on stderr."""
    done = run_python(f"examples/{name}")
    assert (done.returncode, done.stderr) == (0, "")
    at = 0
    for text in EXPECTED[name]:
        assert text in done.stdout[at:], done.stdout
        at = done.stdout.index(text, at) + len(text)


@pytest.mark.parametrize("name", SERVERS)
def test_an_example_that_serves_is_short_and_public(name: str) -> None:
    """30 lines in all, with how to run and use it, and nothing that starts in a private module."""
    text = (EXAMPLES / name).read_text()
    assert f"Run it: python examples/{name} 1080" in text or f"and python examples/{name} 1080" in text
    assert "\nUse it: " in text
    imported = {found[1] or found[2] for found in re.finditer(r"^from (tabi\S*) import|^import (tabi\S*)", text, re.M)}
    assert {"tabi"} <= imported <= {"tabi", "tabi.config", "tabi.wire"}


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short(name: str) -> None:
    """30 lines in all."""
    assert len((EXAMPLES / name).read_text().splitlines()) <= 30


@pytest.mark.parametrize("name", TESTS)
def test_an_example_for_pytest_passes(name: str, tmp_path: Path) -> None:
    """As in a project of somebody else, who has tabi installed and any warning as an error."""
    (tmp_path / name).write_text((EXAMPLES / name).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "tabi.testing.plugin", "-p", "no:cacheprovider", name]
    env = environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stdout + done.stderr


class Example:
    """A running example that serves: what it says, line by line."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", EXAMPLES / name, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def line(self) -> str:
        """The next line that it prints; the test's own deadline ends the wait."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    @property
    def url(self) -> str:
        """Where it listens, from its first line."""
        return self.line().partition(" ")[0]


@contextlib.contextmanager
def example(name: str, *arguments: object) -> Iterator[Example]:
    """Run one until Ctrl-C, which ends it with 0 and without a word on stderr."""
    running = Example(name, *arguments)
    try:
        yield running
        running.process.send_signal(signal.SIGINT)
        _, said = running.process.communicate(timeout=PATIENCE)
        assert (running.process.returncode, said) == (0, "")
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


CURL = ("--silent", "--show-error", "--noproxy", "", "--max-time", "15", "--write-out", " %{http_code}")


def fetch(run: Run, *arguments: str) -> str:
    """What curl gets from a destination that is asked for by name, and the status; or why not."""
    curl = need("curl")

    async def main() -> str:
        async with target(answer_http(b"the page")) as port:
            done = await in_thread([curl, *CURL, *arguments, f"http://localhost:{port}/"])
            return (done.stdout if done.returncode == 0 else done.stderr).decode()

    return run(main)


def test_connect(run_once: Run) -> None:
    """curl gets a page as alice, and nothing without a password."""
    with example("connect.py") as running:
        place = running.url.removeprefix("socks5://")
        assert fetch(run_once, "--socks5-hostname", place, "--proxy-user", "alice:secret") == "the page 200"
        assert "curl: (97)" in fetch(run_once, "--socks5-hostname", place)
        assert "curl: (97)" in fetch(run_once, "--socks5-hostname", place, "--proxy-user", "alice:wrong")


def test_the_port_comes_from_the_command_line() -> None:
    """The line of the docstring holds: the first argument is the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with example("connect.py", port) as running:
        assert running.url == f"socks5://127.0.0.1:{port}"


def test_connect_tls(run_once: Run) -> None:
    """`tabi connect` gets an answer through the proxy, whose certificate is the authority; without it it is refused."""
    with example("connect_tls.py") as running:
        url, certificate = running.line().split(" certificate: ")
        assert url.startswith("socks5+tls://127.0.0.1:")

        async def main() -> tuple[bytes, str]:
            async with target() as port:
                command = [*TABI, "connect", "--via", url, f"localhost:{port}"]
                good = await in_thread([*command, "--ca", certificate], stdin=b"inside TLS")
                return good.stdout + good.stderr, (await in_thread(command)).stderr.decode()

        answer, refusal = run_once(main)
        assert answer == b"inside TLS"
        assert "certificate" in refusal
    assert not Path(certificate).exists()


def test_mitm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """curl trusts the certificate that tabi shows it, and the answer says who was between; so does the example."""
    certificates = make_certificates(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))  # whom the example trusts
    made = subprocess.run([*TABI, "ca", "init"], capture_output=True, env=environment(), timeout=PATIENCE)
    assert made.returncode == 0, made.stderr
    with origin({"/page": b"the page"}, tls=certificates) as server, example("mitm.py") as running:
        url = server.url("/page", "localhost")
        proxy = ("--socks5-hostname", running.url.removeprefix("socks5://"), "--cacert", str(tmp_path / "tabi/ca.crt"))
        command = [need("curl"), *CURL, "--include", *proxy, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\nX-Seen-By: tabi\n" in done.stdout
        assert done.stdout.endswith("the page 200")
        assert running.line() == f"GET {url} 200"


def ask(proxy: Serve, url: str, *options: str) -> str:
    """What curl gets through a proxy, with the answer's fields and the status."""
    command = [need("curl"), *CURL, "--include", "--socks5-hostname", str(proxy.address), *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class Greeter(Handler):
    """Says in JSON what field it was sent."""

    def do_GET(self) -> None:
        self.take()
        body = f'{{"hello": "{self.headers["X-Looked-Into"]}"}}'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/greeting+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is marked, what nobody is to reach is refused, and JSON is changed on its way."""
    certificates = make_certificates(tmp_path)
    Authority.make(str(tmp_path / "tabi"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    looks = ("--intercept", "localhost", "--script", str(EXAMPLES / "hooks.py"), "--trust", certificates.authority)
    trust = ("--cacert", str(tmp_path / "tabi" / "ca.crt"))
    with serve(tmp_path, *looks) as proxy, origin(tls=certificates, handler=Greeter) as server:
        assert ask(proxy, server.url("/", "localhost"), *trust).endswith('{"good day": "tabi"} 200')
        assert ask(proxy, server.url("/admin/x", "localhost"), *trust).endswith("not from here\n 403")
        assert [asked.path for asked in server.asked] == ["/"]


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts of the file are looked into and recorded, secrets masked; of others only what is not encrypted is."""
    name, certificates, har = "www.example.com", make_certificates(tmp_path), tmp_path / "flows.har"
    leaf = make_authority().issue_cert(name, "localhost")
    leaf.cert_chain_pems[0].write_to_path(certificates.chain)
    leaf.private_key_pem.write_to_path(certificates.key)
    Authority.make(str(tmp_path / "tabi"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))  # whom the proxy trusts
    text = (EXAMPLES / "record.toml").read_text().replace(":1080", ":0").replace("/tmp/flows.har", str(har))
    file = tmp_path / "record.toml"
    file.write_text(f'{text}\n[resolver]\nhosts = {{ "{name}" = ["127.0.0.1"] }}\n')
    own, ours = ("--cacert", str(certificates.authority)), ("--cacert", str(tmp_path / "tabi" / "ca.crt"))
    pages = {"/": b"the page"}
    with serve(tmp_path, "-c", file) as proxy, origin(pages, tls=certificates) as secure, origin(pages) as plain:
        assert ask(proxy, secure.url("/?session=abc", name), *ours, "-H", "X-Api-Key: abc").endswith("the page 200")
        assert ask(proxy, secure.url("/", "localhost"), *own).endswith("the page 200")
        assert ask(proxy, plain.url("/", "localhost")).endswith("the page 200")

        def recorded() -> str:
            found = har.read_text() if har.exists() else ""
            return found if found.count('"request":') == 2 else ""

        text = wait_for(recorded, "two records")
    assert f"https://{name}:{secure.port}/?session=***" in text
    assert f"http://localhost:{plain.port}/" in text
    assert "abc" not in text


def test_distort(tmp_path: Path) -> None:
    """Sessions take the time of a phone's network; by the seed the second one is cut off after 10 kB."""
    text = (EXAMPLES / "distort.toml").read_text().replace(":1080", ":0")
    file = tmp_path / "distort.toml"
    file.write_text(f'{text}\n[resolver]\nhosts = {{ "www.example.com" = ["127.0.0.1"] }}\n')
    log = tmp_path / "access.log"
    page = b"x" * 20_000
    with serve(tmp_path, "-c", file, "--access-log", log) as proxy, origin({"/": page}) as server:
        url = server.url("/", "www.example.com")
        command = [need("curl"), *CURL, "--socks5-hostname", str(proxy.address), "-w", " %{time_total}", url]
        first = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert first.returncode == 0
        body, _, seconds = first.stdout.rpartition(" ")
        assert page.decode() in body
        assert float(seconds) > 0.3  # a round trip
        second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 56  # a reset
        line = wait_for(lambda: '"close":"fault"' in log.read_text() and log.read_text(), "a line of the log")
    assert '"error":"flaky: the limit of 10000 octets"' in str(line)


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hosts see curl's own hello, others Chrome's, with its HTTP; the record says which, and what was sent."""
    mirrored, browser = "www.example.com", "www.example.org"
    certificates, har = make_certificates(tmp_path), tmp_path / "flows.har"
    leaf = make_authority().issue_cert(mirrored, browser)
    leaf.cert_chain_pems[0].write_to_path(certificates.chain)
    leaf.private_key_pem.write_to_path(certificates.key)
    Authority.make(str(tmp_path / "tabi"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))  # whom the proxy trusts
    text = (EXAMPLES / "fingerprint.toml").read_text().replace(":1080", ":0").replace("/tmp/flows.har", str(har))
    file = tmp_path / "fingerprint.toml"
    hosts = f'{{ "{mirrored}" = ["127.0.0.1"], "{browser}" = ["127.0.0.1"] }}'
    file.write_text(f"{text}\n[resolver]\nhosts = {hosts}\n")
    trust = ("--cacert", str(tmp_path / "tabi" / "ca.crt"))
    with serve(tmp_path, "-c", file) as proxy, h2_origin(certificates, {"/": b"the page"}) as server:
        for name in (mirrored, browser):
            assert ask(proxy, f"https://{name}:{server.port}/", *trust).endswith("the page 200")

        def recorded() -> Any:
            found = har.read_text() if har.exists() else ""
            return json.loads(found)["log"]["entries"] if found.count('"request":') == 2 else []

        own, other = wait_for(recorded, "two records")
    assert (own["_fingerprint"], own["_sentJa4"]) == ("mirror", own["_ja4"])
    assert (other["_fingerprint"], other["_sentJa4"][:10]) == ("chrome:stable", "t13d1517h2")
    assert other["_sentHttp2"] == "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p" != own["_sentHttp2"]
    assert "_fingerprintDiffers" not in other
    assert check_example("fingerprint.toml").returncode == 0


def test_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Destinations see one User-Agent and no address, inside TLS and outside; trackers no cookies; one's own service
    sees who asks."""
    names = ("www.example.com", "ads.example.net", "api.internal.example")
    certificates = make_certificates(tmp_path)
    leaf = make_authority().issue_cert(*names)
    leaf.cert_chain_pems[0].write_to_path(certificates.chain)
    leaf.private_key_pem.write_to_path(certificates.key)
    Authority.make(str(tmp_path / "tabi"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))  # whom the proxy trusts
    file = tmp_path / "mask.toml"
    hosts = ", ".join(f'"{name}" = ["127.0.0.1"]' for name in names)
    text = (EXAMPLES / "mask.toml").read_text().replace(":1080", ":0")
    sent = [f"{name}: 192.0.2.1" for name in ("X-Forwarded-For", "X-Real-IP", "Via", "Forwarded", "Cookie", "Referer")]
    options = ("--cacert", str(tmp_path / "tabi" / "ca.crt"), *(word for line in sent for word in ("-H", line)))
    with origin({"/": b""}, tls=certificates) as secure, origin({"/": b""}) as plain:
        text = text.replace("ports = [80]", f"ports = [{plain.port}]")
        file.write_text(f"{text}\n[resolver]\nhosts = {{ {hosts} }}\n")
        with serve(tmp_path, "-c", file) as proxy:
            for server, name in ((secure, names[0]), (secure, names[1]), (plain, names[1]), (plain, names[2])):
                assert ask(proxy, server.url("/", name), *options).endswith(" 200")
        www, ads, ads_plain, api = (asked.fields for asked in (*secure.asked, *plain.asked))
    assert list(www) == ["host", "user-agent", "accept", "cookie", "referer"]
    assert list(ads) == list(ads_plain) == ["host", "user-agent", "accept", "dnt"]
    assert {fields["user-agent"][:12] for fields in (www, ads, ads_plain, api)} == {"Mozilla/5.0 "}
    assert (api["x-forwarded-for"], api["forwarded"]) == ("127.0.0.1", "for=127.0.0.1")
    done = run_python("-m", "tabi", "check", "examples/mask.toml")
    assert (done.returncode, done.stderr) == (0, "")


def test_bind() -> None:
    """Whoever calls the address that it prints is answered, one after the other; a reset harms nobody."""
    with example("bind.py") as running:
        url = running.url
        for _ in range(2):
            address = parse_address(running.line().removeprefix("call "))
            with socket.create_connection((str(address.host), address.port), PATIENCE) as caller:
                caller.sendall(b"who is there")
                assert receive_exactly(caller, 12) == b"who is there"
                reset_on_close(caller)

        # The same by a client of one's own: it is told an address, and the peer calls there.
        command = [*TABI, "listen", "--via", url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as own:
            assert own.stdout is not None
            address = parse_address(own.stdout.readline().decode().strip())
            with socket.create_connection((str(address.host), address.port), PATIENCE) as caller:
                caller.sendall(b"called back")
            assert own.communicate(timeout=PATIENCE)[0] == b"called back"


def test_udp_inspect(run_once: Run) -> None:
    """The destination gets capitals, and the client gets its answers with a mark."""
    with example("udp_inspect.py") as running:
        url = running.url
        seen: list[bytes] = []

        def answer(data: bytes) -> bytes:
            seen.append(data)
            return b"you said: " + data

        async def main() -> bytes:
            async with datagram_target(answer) as port:
                done = await in_thread([*TABI, "udp", "--via", url, f"localhost:{port}"], stdin=b"hello\n")
                return done.stdout + done.stderr

        assert run_once(main) == b"> you said: HELLO\n"
        assert seen == [b"HELLO"]


def test_udp_stream(run_once: Run) -> None:
    """It prints each datagram that a peer sends, and the proxy serves other clients at the same time."""
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(PATIENCE)
        host, port = peer.getsockname()
        with example("udp_stream.py", 0, host, port) as running:
            url = running.url
            data, association = peer.recvfrom(100)
            assert data == b"hello\n"
            for word in ("one", "two", "three"):
                peer.sendto(word.encode(), association)
                assert running.line() == f"{host}:{port} b'{word}'"

            async def main() -> bytes:
                async with datagram_target() as other, Proxy(url).associate() as mine, asyncio.timeout(PATIENCE):
                    await mine.send(b"beside it", ("127.0.0.1", other))
                    return (await mine.receive())[0]

            assert run_once(main) == b"beside it"


def test_two_protocols(run_once: Run) -> None:
    """alice is a user of SOCKS5 and bob one of HTTP: on the same port, and neither is one of the other protocol."""
    with example("two_protocols.py") as running:
        place = running.url.removeprefix("mixed://")
        socks, http = ("--socks5-hostname", place), ("--proxy", f"http://{place}")
        assert fetch(run_once, *socks, "--proxy-user", "alice:secret") == "the page 200"
        assert fetch(run_once, *http, "--proxy-user", "bob:blue-7") == "the page 200"
        assert fetch(run_once, *http, "--proxytunnel", "--proxy-user", "bob:blue-7").endswith("the page 200")
        assert "curl: (97)" in fetch(run_once, *socks, "--proxy-user", "bob:blue-7")
        assert fetch(run_once, *http, "--proxy-user", "alice:secret").endswith(" 407")
        assert fetch(run_once, *http).endswith(" 407")


def test_one_port(run_once: Run) -> None:
    """curl gets the page in all four ways, and by https only where it knows the certificate."""
    with example("one_port.py") as running:
        url, certificate = running.line().split(" certificate: ")
        place = url.removeprefix("https://")
        for scheme in ("http", "socks5", "socks5h"):
            assert fetch(run_once, "--proxy", f"{scheme}://{place}") == "the page 200", scheme
        assert fetch(run_once, "--proxy", url, "--proxy-cacert", certificate) == "the page 200"
        assert "curl: (60)" in fetch(run_once, "--proxy", url)


def test_the_example_configuration_is_accepted() -> None:
    """`tabi check` takes examples/tabi.toml and shows its durations in seconds, but no password."""
    done = check_example("tabi.toml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "timeouts.idle = 600.0" in lines
    assert 'listen[1].users = "required"' in lines
    assert "plain text" not in done.stdout
    assert "$scrypt$" not in done.stdout


def test_the_example_behind_a_load_balancer_is_accepted() -> None:
    """`tabi check` takes examples/load_balancer.toml, without --open, and shows whom it trusts."""
    done = check_example("load_balancer.toml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert 'listen[0].proxy_protocol[1] = "10.0.0.2"' in lines
    assert "egress.direct.send_proxy_protocol = 0" in lines
    assert "$scrypt$" not in done.stdout


def test_the_example_policy_is_accepted_and_explained() -> None:
    """`tabi check` and `tabi explain` take examples/policy.toml: no advice, and the metadata service stays closed."""
    done = check_example("policy.toml")
    assert (done.returncode, done.stderr) == (0, "")
    command = ["--from", "203.0.113.9", "--user", "alice", "connect", "169.254.169.254:80"]
    done = run_python("-m", "tabi", "explain", "-c", "examples/policy.toml", *command)
    assert (done.returncode, done.stderr) == (3, "")
    assert "guard     refuses: 169.254.169.254 is in 169.254.0.0/16\n" in done.stdout


def test_the_example_of_lists_is_accepted_and_explained() -> None:
    """`tabi check` and `tabi explain` take examples/lists.toml: no advice, and what is in the list is refused."""
    done = run_python("-m", "tabi", "check", "examples/lists.toml")
    assert (done.returncode, done.stderr) == (0, "")
    for host, code in (("x.ads.example.com", 3), ("pixel.example.org", 3), ("8.8.8.8", 0)):
        done = run_python("-m", "tabi", "explain", "-c", "examples/lists.toml", "connect", f"{host}:443")
        assert (done.returncode, done.stderr) == (code, "")
        assert ("refused with reply 02: rule blocked" in done.stdout) is (code == 3)


def test_the_example_of_sniffing_is_accepted_and_explained() -> None:
    """`tabi check` and `tabi explain` take examples/sniff.toml: no advice, and rules are asked again."""
    done = check_example("sniff.toml")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_python("-m", "tabi", "explain", "-c", "examples/sniff.toml", "connect", "8.8.8.8:443")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sniff     if it is TLS, the rules are asked again with the name that it asks for (SNI)\n" in done.stdout


def test_the_example_of_faults_is_accepted_and_explained(tmp_path: Path) -> None:
    """`tabi check` and `tabi explain` take examples/distort.toml: no advice, and docs/faults.md shows what they say."""
    done = check_example("distort.toml")
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "distort.toml"
    hosts = '[resolver]\nhosts = { "www.example.com" = ["198.51.100.7"] }\n'
    file.write_text(f"{(EXAMPLES / 'distort.toml').read_text()}\n{hosts}")
    done = run_python("-m", "tabi", "explain", "-c", str(file), "connect", "www.example.com:443")
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout[done.stdout.index("distort ") :].partition("\n\n")[0]
    assert textwrap.indent(told, "    ") in (ROOT / "docs" / "faults.md").read_text()


def test_the_example_pool_is_accepted_and_explained() -> None:
    """`tabi check` and `tabi explain` take examples/pool.toml: no advice, and the pool is the way out."""
    done = check_example("pool.toml")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_python("-m", "tabi", "explain", "-c", "examples/pool.toml", "--user", "alice", "connect", "8.8.8.8:443")
    assert (done.returncode, done.stderr) == (0, "")
    assert "egress    pool: sticky of socks5://127.0.0.1:1081, http://127.0.0.1:8888, far\n" in done.stdout


def test_the_example_that_records_is_accepted_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tabi check` and `tabi explain` take examples/record.toml: no advice, once there is an authority."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = check_example("record.toml")
    assert done.returncode == 2
    assert done.stderr.endswith("`tabi ca init` makes one\n")
    Authority.make(str(tmp_path / "tabi"))
    done = check_example("record.toml")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_python(
        "-m", "tabi", "explain", "-c", "examples/record.toml", "--sni", "www.example.com", "connect", "192.0.2.1:443"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "record   yes, intercept  hosts *.example.com, *.example.org (www.example.com)\n" in done.stdout


# --- for operators ---

NAME = re.compile(r"\b(?:tabi|process)_[a-z_]+")


def metrics_of(text: str) -> set[str]:
    """The metrics that a text names, by the names that tabi has."""
    return {re.sub(r"(?<=_seconds)_(bucket|sum|count)$", "", name) for name in NAME.findall(text)}


def test_the_page_for_operators(tmp_path: Path) -> None:
    """examples/admin.toml serves as it stands: who has the token is answered, and what it says is in the answers."""
    text = (EXAMPLES / "admin.toml").read_text().replace(":1080", ":0").replace(":9180", ":0")
    with operated(tmp_path, text) as operator:
        for token, status in (("replace-this-token", 200), ("replace-this-one-too", 200), ("wrong", 401)):
            assert operator.call("GET", "/sessions", token=token).status == status
        members = operator.call("GET", "/egress", token="replace-this-one-too").json["members"]
        assert [row["pool"] for row in members] == ["ways", "ways"]
        assert operator.metrics()["tabi_workers"] == 1
    done = check_example("admin.toml")
    assert (done.returncode, done.stderr) == (0, "")


def test_alerts_and_dashboard_ask_for_what_there_is() -> None:
    """Every metric that they name exists, and the dashboard shows every one of tabi's own."""
    alerts, dashboard = ((EXAMPLES / name).read_text() for name in ("alerts.yml", "grafana.json"))
    assert metrics_of(alerts) <= set(METRICS)
    expressions = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
    assert metrics_of(" ".join(expressions)) == set(METRICS)


@pytest.mark.interop
def test_promtool_finds_nothing_wrong_with_alerts_and_dashboard(tmp_path: Path) -> None:
    """Prometheus reads the rules; and each expression of the dashboard, as a rule."""
    promtool = need("promtool")
    panels = json.loads((EXAMPLES / "grafana.json").read_text())["panels"]
    rules = []
    for panel in panels:
        for asked in panel["targets"]:
            expression = asked["expr"]
            for name, value in (("$__rate_interval", "5m"), ("$job", "tabi"), ("$instance", ".+")):
                expression = expression.replace(name, value)
            rules.append({"record": f"x:{panel['id']}_{asked['refId']}", "expr": expression})
    path = tmp_path / "dashboard.json"  # which is YAML, too
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    for file in (EXAMPLES / "alerts.yml", path):
        done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout
