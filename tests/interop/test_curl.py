"""curl through `tabi serve`: SOCKS5 by itself, then every way in which it asks a proxy, on one port."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Run
from origin import Certificates, Handler, Origin, origin
from processes import Serve, answer_http, in_thread, need, run_program, serve
from support import closed_port, target

pytestmark = pytest.mark.interop

Done = subprocess.CompletedProcess[bytes]

BODY = b"hello from the destination\n"

COMMON = ("--silent", "--show-error", "--max-time", "15", "--noproxy", "", "--proxy")
"""What every curl here is told; the proxy comes next. Loopback is no exception."""


@pytest.fixture
def curl() -> str:
    """The program."""
    return need("curl")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A proxy without users."""
    with serve(tmp_path) as running:
        yield running


def fetch(run: Run, curl: str, via: str, host: str = "127.0.0.1", body: bytes = BODY, bound: str = "127.0.0.1") -> Done:
    """Fetch ``http://host/`` from a server on ``bound`` through a proxy."""

    async def main() -> Done:
        async with target(answer_http(body), bound) as port:
            return await in_thread([curl, *COMMON, via, f"http://{host}:{port}/"])

    return run(main)


def check(done: Done, body: bytes = BODY) -> None:
    """It got what the server sent."""
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == body


def test_socks5_resolves_at_home(run_once: Run, curl: str, proxy: Serve) -> None:
    """socks5://: curl resolves, the proxy gets an address."""
    check(fetch(run_once, curl, proxy.url, "localhost"))
    (session,) = proxy.sessions(1)
    assert session["host"] in ("127.0.0.1", "::1")


def test_socks5h_resolves_at_the_proxy(run_once: Run, curl: str, proxy: Serve) -> None:
    """socks5h://: the proxy gets the name."""
    check(fetch(run_once, curl, proxy.url.replace("socks5", "socks5h"), "localhost"))
    (session,) = proxy.sessions(1)
    assert (session["host"], session["reply"]) == ("localhost", 0)
    assert session["down"] > len(BODY)


def test_the_line_that_serve_prints_works(run_once: Run, curl: str, proxy: Serve) -> None:
    """What is said to be tried can be: the proxy's part of that line."""
    words = proxy.messages.splitlines()[1].split()
    assert words[:3] == ["try:", "curl", "-x"]
    check(fetch(run_once, curl, words[3], "localhost"))


def test_the_line_for_a_unix_socket_works(run_once: Run, curl: str, tmp_path: Path) -> None:
    """curl takes the path behind localhost as that of the proxy."""
    with serve(tmp_path, "-l", f"unix://{tmp_path}/tabi.sock") as proxy:
        words = proxy.messages.splitlines()[1].split()
        assert words[:4] == ["try:", "curl", "-x", f"socks5h://localhost{tmp_path}/tabi.sock"]
        check(fetch(run_once, curl, words[3], "localhost"))
        (session,) = proxy.sessions(1)
        assert session["client"].startswith("unix:")


def test_users(run_once: Run, curl: str, tmp_path: Path) -> None:
    """Name and password from the URL, percent-encoded; the line in the log has the name."""
    with serve(tmp_path, "-u", "alice:p@ss:word") as proxy:
        check(fetch(run_once, curl, proxy.url.replace("//", "//alice:p%40ss%3Aword@")))
        (session,) = proxy.sessions(1)
        assert session["user"] == "alice"


@pytest.mark.parametrize("login", ["alice:wrong@", "bob:secret@", ""])
def test_wrong_users_and_none_are_refused(run_once: Run, curl: str, tmp_path: Path, login: str) -> None:
    """curl ends with 97, its code for a proxy's refusal, and no request reaches the destination."""
    with serve(tmp_path, "-u", "alice:secret") as proxy:
        done = fetch(run_once, curl, proxy.url.replace("//", f"//{login}"))
        assert (done.returncode, done.stdout) == (97, b"")
        (session,) = proxy.sessions(1)
        assert (session["user"], session["host"]) == (None, None)
        assert "secret" not in proxy.messages + proxy.stdout.read_text()


def test_an_ipv6_listener_and_destination(run_once: Run, curl: str, tmp_path: Path) -> None:
    """[::1] on both sides."""
    with serve(tmp_path, "-l", "socks5://[::1]:0") as proxy:
        check(fetch(run_once, curl, proxy.url, "[::1]", bound="::1"))
        check(fetch(run_once, curl, proxy.url))
        addresses = [session["address"].rpartition(":")[0] for session in proxy.sessions(2)]
        assert addresses == ["[::1]", "127.0.0.1"]


def test_a_large_download_arrives_whole(run_once: Run, curl: str, proxy: Serve) -> None:
    """32 MiB, octet for octet."""
    body = hashlib.shake_256(b"tabi").digest(1 << 20) * 32
    done = fetch(run_once, curl, proxy.url, body=body)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(body).digest()


def test_an_upload_arrives_whole(run_once: Run, curl: str, proxy: Serve, tmp_path: Path) -> None:
    """A body of 8 MiB the other way, answered when it is there."""
    body = hashlib.shake_256(b"up").digest(8 << 20)
    received: list[bytes] = []

    async def main() -> Done:

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            received.append(await reader.readexactly(len(body)))
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

        async with target(take) as port:
            options = ["-H", "Expect:", "--data-binary", "@-"]
            return await in_thread([curl, *COMMON, proxy.url, *options, f"http://127.0.0.1:{port}/"], stdin=body)

    check(run_once(main), b"")
    assert received == [body]


def test_a_refused_connection_is_told(run_once: Run, curl: str, proxy: Serve) -> None:
    """curl ends with 97 and says the reply code: 5, connection refused."""

    async def main() -> Done:
        with closed_port() as port:
            return await in_thread([curl, *COMMON, proxy.url, f"http://127.0.0.1:{port}/"])

    done = run_once(main)
    assert done.returncode == 97
    assert b"(5)" in done.stderr


def test_a_hundred_at_once(run_once: Run, curl: str, proxy: Serve) -> None:
    """One curl with 100 parallel transfers: each gets its body."""

    async def main() -> Done:
        async with target(answer_http(BODY)) as port:
            options = ["--no-progress-meter", "--parallel", "--parallel-max", "100"]
            return await in_thread([curl, *COMMON, proxy.url, *options, f"http://127.0.0.1:{port}/[1-100]"])

    check(run_once(main), BODY * 100)
    assert len({session["id"] for session in proxy.sessions(100)}) == 100


# --- one port for every protocol ---

SOCKS = {
    "socks4": ("--socks4", "{place}"),
    "socks4a": ("--socks4a", "{place}"),
    "socks5": ("--socks5", "{place}"),
    "socks5h": ("--socks5-hostname", "{place}"),
}
HTTP = {
    "http": ("-x", "http://{place}"),
    "tunnel": ("-p", "-x", "http://{place}"),
    "tunnel-1.0": ("-p", "--proxy1.0", "{place}"),
}
HTTPS = {
    "https": ("-x", "https://{place}"),
    "https-tunnel": ("-p", "-x", "https://{place}"),
}
MODES = SOCKS | HTTP
"""The ways in which curl asks a proxy."""

CHOSEN = ("http", "tunnel", "socks5h")
"""One of each kind."""

FILES = {"/": BODY, "/large": hashlib.shake_256(b"large").digest(4 << 20)}

SCHEMES = ("http", "https")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A mixed port without users."""
    with serve(tmp_path_factory.mktemp("mixed"), "-l", "mixed://127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A mixed port with a user."""
    with serve(tmp_path_factory.mktemp("guarded"), "-l", "mixed://127.0.0.1:0", "-u", "alice:p@ss:word") as running:
        yield running


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Serve]:
    """Ports with a certificate: mixed without users, and https for clients with a certificate or a password."""
    folder = tmp_path_factory.mktemp("tls")
    files = f'certificate = "{certificates.chain}", key = "{certificates.key}"'
    config = folder / "tabi.toml"
    config.write_text(
        f'[[listen]]\nurl = "mixed://127.0.0.1:0"\nusers = "none"\ntls = {{ {files} }}\n'
        f'[[listen]]\nurl = "https://127.0.0.1:0"\ntls = {{ {files}, client_ca = "{certificates.authority}" }}\n'
        '[users.bob]\npassword = "secret"\nplain = true\n'
    )
    with serve(folder, "-c", config) as running:
        yield running


@pytest.fixture(params=SCHEMES)
def server(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Origin]:
    """A destination without TLS and one with it."""
    with origin(FILES, tls=certificates if request.param == "https" else None) as running:
        yield running


def curl_by(mode: str, proxy: Serve, *arguments: str | Path, listener: int = 0, stdin: bytes = b"") -> Done:
    """Run curl with a proxy in one of its ways."""
    place = proxy.urls[listener].partition("://")[2]
    options = [word.format(place=place) for word in (MODES | HTTPS)[mode]]
    return run_program([need("curl"), *COMMON[:-1], *options, *arguments], stdin=stdin)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_on_one_port(certificates: Certificates, mixed: Serve, server: Origin, mode: str) -> None:
    """A GET arrives, to http and https; the log tells the protocol, and who has resolved the name."""
    done = curl_by(mode, mixed, "--cacert", certificates.authority, "-4", server.url(host="localhost"))
    check(done)
    (session,) = mixed.sessions(1, port=server.port)
    forwarded = mode == "http" and server.scheme == "http"
    assert session["protocol"] == (mode[:6] if mode in SOCKS else "http")
    assert session["command"] == ("forward" if forwarded else "connect")
    assert session["host"] == ("127.0.0.1" if mode in ("socks4", "socks5") else "localhost")
    assert session["reply"] == {"socks4": 0x5A, "socks5": 0, "http": 200}[session["protocol"]]


def test_a_port_for_each_protocol(tmp_path: Path) -> None:
    """Listeners of one protocol, several at once: each serves its own modes, and no others."""
    protocols = ["socks4", "socks5", "http"]
    ports = [word for protocol in protocols for word in ("-l", f"{protocol}://127.0.0.1:0")]
    with serve(tmp_path, *ports) as proxy, origin(FILES) as server:
        for mode in MODES:
            for listener, protocol in enumerate(protocols):
                own = protocol == (mode[:6] if mode in SOCKS else "http")
                done = curl_by(mode, proxy, server.url(), listener=listener)
                assert (done.returncode == 0, done.stdout == BODY) == (own, own), (mode, protocol)
        assert len(server.asked) == len(MODES)


@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.startswith("socks4")])
def test_an_ipv6_destination(mixed: Serve, mode: str) -> None:
    """[::1] in every mode that can say it."""
    with origin(FILES, host="::1") as server:
        check(curl_by(mode, mixed, server.url(host="[::1]")))
        (session,) = mixed.sessions(1, port=server.port)
        assert session["address"] == f"[::1]:{server.port}"


@pytest.mark.parametrize("mode", HTTPS)
def test_a_proxy_inside_tls(certificates: Certificates, tls: Serve, server: Origin, mode: str) -> None:
    """-x https:// to a mixed port with a certificate, to http and https: TLS in TLS in the last case."""
    trust = ("--proxy-cacert", certificates.authority, "--cacert", certificates.authority)
    check(curl_by(mode, tls, *trust, server.url("/large")), FILES["/large"])
    (session,) = tls.sessions(1, port=server.port)
    assert session["user"] is None
    assert session["command"] == ("forward" if (mode, server.scheme) == ("https", "http") else "connect")


def test_a_certificate_keeps_nobody_out(tls: Serve) -> None:
    """A mixed port with a certificate still takes clients without TLS, in every mode."""
    with origin(FILES) as server:
        for mode in MODES:
            check(curl_by(mode, tls, server.url()))


@pytest.mark.parametrize("mode", HTTPS)
def test_a_client_with_a_certificate_is_a_user(certificates: Certificates, tls: Serve, mode: str) -> None:
    """--proxy-cert: the subject's CN is the user. Without it a password will do, and without that the answer is 407."""
    trust = ("--proxy-cacert", certificates.authority)
    own = ("--proxy-cert", certificates.client_chain, "--proxy-key", certificates.client_key)
    with origin(FILES) as server:
        check(curl_by(mode, tls, *trust, *own, server.url(), listener=1))
        check(curl_by(mode, tls, *trust, "-U", "bob:secret", server.url(), listener=1))
        refused = curl_by(mode, tls, *trust, "-w", "%{http_code} %{http_connect}", "-o", "-", server.url(), listener=1)
        assert b"407" in refused.stdout
        assert len(server.asked) == 2
        assert [session["user"] for session in tls.sessions(3, port=server.port)] == ["alice", "bob", None]


def test_a_proxy_of_a_stranger_is_not_trusted(tls: Serve) -> None:
    """Without --proxy-cacert curl ends with 60, its code for a certificate that it cannot verify."""
    done = curl_by("https", tls, "http://127.0.0.1:1/")
    assert (done.returncode, done.stdout) == (60, b"")


# --- users ---

LOGIN = "alice:p@ss:word"


@pytest.mark.parametrize("way", ["--proxy-basic", "--proxy-anyauth"])
@pytest.mark.parametrize("mode", HTTP)
def test_a_user_by_http(certificates: Certificates, guarded: Serve, server: Origin, mode: str, way: str) -> None:
    """-U at once, and after a 407 that names Basic; the destination never sees the password."""
    check(curl_by(mode, guarded, "--cacert", certificates.authority, way, "-U", LOGIN, server.url()))
    users = [session["user"] for session in guarded.sessions(2 if way == "--proxy-anyauth" else 1, port=server.port)]
    assert users == ([None] if way == "--proxy-anyauth" else []) + ["alice"]
    (asked,) = server.asked
    assert "proxy-authorization" not in asked.fields


@pytest.mark.parametrize("login", ["alice:wrong", "bob:p@ss:word", None])
@pytest.mark.parametrize("mode", HTTP)
def test_wrong_users_by_http_are_refused(guarded: Serve, mode: str, login: str | None) -> None:
    """407, and no request reaches the destination; where a tunnel was wanted curl ends with 56."""
    with origin(FILES) as server:
        user = () if login is None else ("-U", login)
        done = curl_by(mode, guarded, *user, "-o", "-", "-w", "%{http_code} %{http_connect}", server.url())
        assert done.returncode == (0 if mode == "http" else 56)
        assert done.stdout.endswith(b"407 000" if mode == "http" else b"000 407")
        (session,) = guarded.sessions(1, port=server.port)
        assert (session["reply"], session["close"]) == (407, "denied")
        assert not server.asked


def test_a_user_by_socks5(guarded: Serve, server: Origin, certificates: Certificates) -> None:
    """-U for SOCKS5 on the same port."""
    check(curl_by("socks5h", guarded, "-U", LOGIN, "--cacert", certificates.authority, server.url()))
    assert [session["user"] for session in guarded.sessions(1, port=server.port)] == ["alice"]


@pytest.mark.parametrize("mode", ["socks4", "socks4a"])
def test_socks4_has_no_users(guarded: Serve, mode: str) -> None:
    """A USERID proves nothing: where users are required SOCKS4 is refused with 0x5B, which curl calls 91."""
    with origin(FILES) as server:
        done = curl_by(mode, guarded, "-U", "alice", server.url())
        assert (done.returncode, done.stdout) == (97, b"")
        assert b"91" in done.stderr
        assert not server.asked


# --- what is asked ---


@pytest.mark.parametrize("mode", CHOSEN)
def test_a_post(mixed: Serve, mode: str) -> None:
    """--data-binary: octet for octet there and back, its length known."""
    with origin() as server:
        body = bytes(range(256)) * 16
        check(curl_by(mode, mixed, "--data-binary", "@-", server.url("/post"), stdin=body), body)
        (asked,) = server.asked
        assert (asked.method, asked.path, asked.body) == ("POST", "/post", body)
        assert asked.fields["content-length"] == str(len(body))


@pytest.mark.parametrize("mode", CHOSEN)
def test_an_upload_in_chunks(mixed: Serve, mode: str) -> None:
    """-T -: a body of unknown length stays in chunks, and arrives whole."""
    with origin() as server:
        check(
            curl_by(mode, mixed, "-H", "Expect:", "-T", "-", server.url("/put"), stdin=FILES["/large"]), FILES["/large"]
        )
        (asked,) = server.asked
        assert (asked.method, asked.fields["transfer-encoding"], asked.body) == ("PUT", "chunked", FILES["/large"])


@pytest.mark.parametrize("mode", CHOSEN)
def test_a_large_body_waits_for_100(mixed: Serve, mode: str) -> None:
    """Expect: 100-continue goes to the destination, its 100 comes back, then the body is sent."""
    with origin() as server:
        wait = ("-v", "--expect100-timeout", "15", "-H", "Expect: 100-continue")
        done = curl_by(mode, mixed, *wait, "--data-binary", "@-", server.url(), stdin=FILES["/large"])
        assert done.stdout == FILES["/large"]
        assert b"< HTTP/1.1 100 Continue" in done.stderr
        assert server.asked[0].fields["expect"] == "100-continue"


def test_a_body_that_is_not_wanted_is_not_sent(mixed: Serve) -> None:
    """The destination answers Expect with 413: curl gets that at once, and keeps its body."""

    class Full(Handler):
        def handle_expect_100(self) -> bool:
            self.close_connection = True
            self.answer(413, b"too much\n")
            return False

    with origin(handler=Full) as server:
        wait = ("--expect100-timeout", "15", "-H", "Expect: 100-continue", "-w", "%{http_code}")
        done = curl_by("http", mixed, *wait, "--data-binary", "@-", server.url(), stdin=FILES["/large"])
        check(done, b"too much\n413")
        (session,) = mixed.sessions(1, port=server.port)
        assert session["up"] == 0


@pytest.mark.parametrize("mode", CHOSEN)
def test_several_urls_share_a_connection(mixed: Serve, server: Origin, certificates: Certificates, mode: str) -> None:
    """Five URLs: one connection to the proxy and one to the destination; each forwarded request has its line."""
    urls = [server.url(path) for path in ("/", "/large", "/", "/none", "/")]
    done = curl_by(mode, mixed, "--cacert", certificates.authority, "-w", "%{stderr}%{num_connects}", *urls)
    assert (done.returncode, done.stderr) == (0, b"10000")
    assert done.stdout == BODY + FILES["/large"] + BODY + b"not here\n" + BODY
    assert len({asked.port for asked in server.asked}) == 1
    lines = mixed.sessions(5 if (mode, server.scheme) == ("http", "http") else 1, port=server.port)
    if len(lines) == 5:
        assert [(line["reply"], line["down"]) for line in lines] == [
            (200, len(BODY)),
            (200, len(FILES["/large"])),
            (200, len(BODY)),
            (404, 9),
            (200, len(BODY)),
        ]


@pytest.mark.parametrize("options", [("-I",), ("-r", "1000-1999")], ids=["head", "range"])
@pytest.mark.parametrize("mode", CHOSEN)
def test_head_and_range(mixed: Serve, mode: str, options: tuple[str, ...]) -> None:
    """HEAD announces a length and has no content, a range is a part: the connection stays in step for the next one."""
    with origin(FILES) as server:
        done = curl_by(mode, mixed, "--suppress-connect-headers", *options, server.url("/large"), server.url("/large"))
        if options == ("-I",):
            length = b"Content-Length: %d\r\n" % len(FILES["/large"])
            assert [length in head for head in done.stdout.split(b"\r\n\r\n")] == [True, True, False]
        else:
            check(done, FILES["/large"][1000:2000] * 2)
        assert len({asked.port for asked in server.asked}) == 1


def test_http_1_0(mixed: Serve) -> None:
    """A client of HTTP/1.0 is forwarded too, and may keep its connection where it says so."""
    with origin(FILES) as server:
        check(curl_by("http", mixed, "-0", server.url(), server.url("/large")), BODY + FILES["/large"])
        assert [asked.path for asked in server.asked] == ["/", "/large"]


def test_an_upgrade_to_http_2(mixed: Serve) -> None:
    """--http2 asks for h2c by Upgrade, which goes no further; the destination answers in HTTP/1.1, and that arrives."""
    with origin(FILES) as server:
        check(curl_by("http", mixed, "--http2", server.url(), server.url()), BODY * 2)
        assert not {"upgrade", "connection", "http2-settings"} & set(server.asked[0].fields)
        assert len({asked.port for asked in server.asked}) == 1


@pytest.mark.parametrize("mode", HTTP)
def test_a_refused_connection_is_told_by_http(mixed: Serve, mode: str) -> None:
    """502 with the reason in Proxy-Status (RFC 9209); where a tunnel was wanted curl ends with 56."""
    with closed_port() as port:
        done = curl_by(mode, mixed, "-D", "-", "-o", "-", f"http://127.0.0.1:{port}/")
    assert done.returncode == (0 if mode == "http" else 56)
    status, *fields = done.stdout.lower().split(b"\r\n")
    assert b" 502 " in status
    assert any(field.startswith(b"proxy-status:") and b"connection_refused" in field for field in fields)


def test_a_hundred_are_forwarded_at_once(mixed: Serve) -> None:
    """One curl with 100 parallel requests that are forwarded: each gets its body and its line."""
    with origin(FILES) as server:
        options = ("--no-progress-meter", "--parallel", "--parallel-max", "100")
        check(curl_by("http", mixed, *options, server.url("/?[1-100]")), BODY * 100)
        assert len({session["id"] for session in mixed.sessions(100, port=server.port)}) == 100


class Ntlm(Handler):
    """Wants NTLM once on each connection: message 1 gets message 2 ([MS-NLMP] section 2.2.1), 3 logs it in."""

    challenged = logged_in = False

    def do_POST(self) -> None:
        """Echo, to who is logged in."""
        body = self.take()
        scheme, _, token = (self.headers["Authorization"] or "").partition(" ")
        number = struct.unpack("<I", b64decode(token)[8:12])[0] if scheme == "NTLM" else 0
        self.logged_in |= self.challenged and number == 3
        if self.logged_in:
            self.answer(200, body)
            return
        self.challenged = number == 1
        empty = struct.pack("<HHI", 0, 0, 48)
        message = b"NTLMSSP\0" + struct.pack("<I8sI", 2, empty, 0x201) + bytes(range(8)) + bytes(8) + empty
        self.send_response(401)
        self.send_header("WWW-Authenticate", f"NTLM {b64encode(message).decode()}" if self.challenged else "NTLM")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_ntlm_with_content(curl: str, tmp_path: Path) -> None:
    """It logs a connection in, so that all of it, content too, has to go out on one."""
    with serve(tmp_path, "-l", "http://127.0.0.1:0") as proxy, origin(handler=Ntlm) as server:
        via = f"http://{proxy.address}"
        command = [
            curl,
            *COMMON,
            via,
            "--ntlm",
            "--user",
            "joe:pw",
            "--data",
            "content",
            server.url(),
            server.url("/b"),
        ]
        done = run_program(command)
        assert (done.returncode, done.stdout) == (0, b"contentcontent"), done.stderr
        assert len({asked.port for asked in server.asked}) == 1
        assert [asked.body for asked in server.asked] == [b"", b"content", b"content"]
