"""Whole paths: an intercepting `tabi serve` between other proxies, with users, limits, workers, reloads and an end."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tabi
from looking import HOOK, Looking
from origin import Certificates, Handler, origin
from processes import (
    PATIENCE,
    Serve,
    need,
    receive_all,
    refuses,
    run_program,
    run_tabi,
    serve,
    wait_for,
)
from tabi.intercept.authority import Authority

pytestmark = [pytest.mark.interop, pytest.mark.linux]

LARGE = bytes(range(256)) * 8192
"""2 MiB."""


class Gate(Handler):
    """Sends the first half of /gated, and the second once it may."""

    opened = threading.Event()

    def answer(self, status: int, body: bytes, content_range: str | None = None) -> None:
        if self.path != "/gated":
            return super().answer(status, body, content_range)
        self.send_response(200)
        self.send_header("Content-Length", str(len(LARGE)))
        self.end_headers()
        self.wfile.write(LARGE[: len(LARGE) // 2])
        self.opened.wait(PATIENCE)
        self.wfile.write(LARGE[len(LARGE) // 2 :])
        return None


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Lets the second half of /gated go."""
    Gate.opened.clear()
    yield Gate.opened
    Gate.opened.set()


@pytest.fixture
def looks(tmp_path: Path) -> Looking:
    """The files of one that is not yet started."""
    found = Looking(tmp_path)
    Authority.make(str(found.authority.parent))
    (tmp_path / "heads.py").write_text(HOOK.format(path=str(found.heads)))
    return found


def intercept(looks: Looking, trust: Path, hosts: str = "localhost") -> str:
    """An ``[[intercept]]`` with hook and record."""
    folder = looks.har.parent
    return (
        f'[ca]\ncertificate = "{looks.authority}"\nkey = "{looks.authority.with_suffix(".key")}"\n'
        f'[[intercept]]\nhosts = ["{hosts}"]\ntrust = "{trust}"\n'
        f'scripts = ["{folder / "heads.py"}"]\nhar = "{looks.har}"\n'
    )


USERS = ("socks", "http", "chain", "pool", "here")


def user(name: str, more: str = "") -> str:
    """One with a password."""
    return f'[users.{name}]\npassword = "secret"\nplain = true\n{more}'


def curl(proxy: Serve, looks: Looking, url: str, user: str | None = None) -> tuple[int, bytes]:
    """Fetch a page by curl; gives its exit code and what came."""
    login = ("-U", f"{user}:secret") if user else ()
    trust = ("--cacert", looks.authority, "--noproxy", "")
    done = run_program(
        [need("curl"), "-sS", "--max-time", "15", *trust, "--socks5-hostname", str(proxy.address), *login, url]
    )
    return done.returncode, done.stdout


def download(proxy: Serve, looks: Looking, port: int, path: str, user: str | None = None) -> ssl.SSLSocket:
    """Ask for a file by hand, and read its head's first octets."""
    login = f"{user}:secret@" if user else ""
    sock = tabi.create_connection(("localhost", port), via=f"socks5://{login}{proxy.address}", timeout=PATIENCE)
    context = ssl.create_default_context(cafile=looks.authority)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    try:
        tls = context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
    except BaseException:
        sock.close()
        raise
    tls.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
    assert tls.recv(15) == b"HTTP/1.1 200 OK"
    return tls


def test_in_front_of_others(tmp_path: Path, looks: Looking, certificates: Certificates) -> None:
    """SOCKS5 in, TLS opened, and out by SOCKS5, by CONNECT, by a chain, by a pool: for each user another way."""
    with (
        serve(tmp_path, "-l", "mixed://127.0.0.1:0") as first,
        serve(tmp_path, "-l", "mixed://127.0.0.1:0") as second,
        origin({"/": b"page"}, tls=certificates) as server,
    ):
        one, two = (f"127.0.0.1:{proxy.address.port}" for proxy in (first, second))
        ways = (
            f'[egress.socks]\nurl = "socks5://{one}"\n[egress.http]\nurl = "http://{one}"\n'
            f'[egress.chain]\nchain = ["http://{one}", "socks5://{two}"]\n'
            f'[egress.pool]\nmembers = ["socks5://{one}", "http://{two}"]\n'
        )
        rules = "".join(f'[[rule]]\nusers = ["{name}"]\nvia = "{name}"\n' for name in USERS[:-1])
        file = tmp_path / "tabi.toml"
        listen = '[[listen]]\nurl = "mixed://127.0.0.1:0"\n'
        file.write_text(listen + ways + rules + "".join(map(user, USERS)) + intercept(looks, certificates.authority))
        with serve(tmp_path, "-c", file) as proxy:
            for name in USERS:
                assert curl(proxy, looks, server.url("/", "localhost"), name) == (0, b"page"), name
            lines = proxy.sessions(len(USERS), port=server.port)
            entries = looks.entries(len(USERS))
            explained = run_tabi("explain", "-c", file, "--user", "chain", "connect", f"localhost:{server.port}")
        assert len(first.sessions(3)) + len(second.sessions(1)) in (5, 6)  # a chain is a session of both
        assert len(server.asked) == len(USERS)
    assert [line["user"] for line in lines] == list(USERS)
    assert [line["via"] for line in lines] == [*USERS[:-1], "direct"]
    for line in lines:
        assert (line["sni"], line["sniffed"], line["reply"], line["error"]) == ("localhost", "tls", 0, None)
        assert line["intercepted"] == "intercept[0]"
        assert line["alpn"] == ["http/1.1"] or line["alpn"] == ["h2", "http/1.1"]
        assert len(line["ja3"]) == 32
        assert line["ja4"].startswith("t13d")
        assert min(line["up"], line["down"]) > 0
    assert sorted(entry["_user"] for entry in entries) == sorted(USERS)
    said = explained.stdout.decode()
    assert "egress    chain" in said
    assert "intercept[0]  yes, intercept  hosts localhost" in said


def test_behind_another(tmp_path: Path, looks: Looking, certificates: Certificates) -> None:
    """Client, SOCKS5, a proxy that only passes on, SOCKS5, one that intercepts, the origin."""
    file = tmp_path / "tabi.toml"
    file.write_text('[[listen]]\nurl = "mixed://127.0.0.1:0"\n' + intercept(looks, certificates.authority))
    with (
        serve(tmp_path, "-c", file) as inner,
        serve(tmp_path, "--via", f"socks5://127.0.0.1:{inner.address.port}") as outer,
        origin({"/": b"page"}, tls=certificates) as server,
    ):
        assert curl(outer, looks, server.url("/", "localhost")) == (0, b"page")
        (line,) = outer.sessions(1)
        assert (line["host"], line["reply"]) == ("localhost", 0)
        assert "sni" not in line
        (line,) = inner.sessions(1)
        assert (line["sni"], line["intercepted"]) == ("localhost", "intercept[0]")
        assert looks.seen(1) == [f"200 HTTP/1.1 {server.url('/', 'localhost')}"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_quota_ends_a_transfer_and_no_other(
    tmp_path: Path, looks: Looking, certificates: Certificates, gate: threading.Event, workers: str
) -> None:
    """Its client sees an end that is none of TLS; the session of another user goes on to its own."""
    file = tmp_path / "tabi.toml"
    users = user("alice", 'limits = { quota = "1 MB/day" }\n')
    listen = f'[[listen]]\nurl = "mixed://127.0.0.1:0"\nusers = "optional"\n[quotas]\npath = "{tmp_path / "quotas"}"\n'
    file.write_text(listen + users + intercept(looks, certificates.authority))
    with (
        serve(tmp_path, "-c", file, "--workers", workers) as proxy,
        origin({"/large": LARGE}, tls=certificates, handler=Gate) as server,
        download(proxy, looks, server.port, "/gated") as other,
    ):
        with (
            download(proxy, looks, server.port, "/large", "alice") as sock,
            pytest.raises(ssl.SSLError, match=r"(?i)eof"),
        ):
            receive_all(sock)  # an end without close_notify
        gate.set()
        assert receive_all(other).endswith(LARGE)
        other.close()
        lines = {line["user"]: line for line in proxy.sessions(2)}
    assert lines["alice"]["close"] == "limit"
    assert "quota" in lines["alice"]["error"]
    assert lines[None]["error"] is None
    statuses = {entry.get("_user"): entry["response"]["status"] for entry in looks.entries(2)}
    assert statuses == {"alice": 200, None: 200}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_while_a_download_runs(
    tmp_path: Path, looks: Looking, certificates: Certificates, gate: threading.Event, workers: str
) -> None:
    """It goes on as it began, whole and recorded; the next session is not looked into any more."""
    file = tmp_path / "tabi.toml"
    listen = '[[listen]]\nurl = "mixed://127.0.0.1:0"\n'
    file.write_text(listen + intercept(looks, certificates.authority))
    with (
        serve(tmp_path, "-c", file, "--workers", workers) as proxy,
        origin({"/": b"page"}, tls=certificates, handler=Gate) as server,
        download(proxy, looks, server.port, "/gated") as sock,
    ):
        file.write_text(listen + intercept(looks, certificates.authority, "other.example"))
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: "reloaded" in proxy.messages, "the reload")

        def is_left_alone() -> bool:  # a worker takes a new configuration over a little later
            return curl(proxy, looks, server.url("/", "localhost"))[0] == 60  # not trusted

        for _ in range(4):
            wait_for(is_left_alone, "sessions that are not looked into")
        gate.set()
        assert receive_all(sock).endswith(LARGE)
        urls = [entry["request"]["url"] for entry in looks.entries(1)]
        assert server.url("/gated", "localhost") in urls


def test_sigterm_lets_a_download_end(
    tmp_path: Path, looks: Looking, certificates: Certificates, gate: threading.Event
) -> None:
    """Nobody new is accepted, what runs comes to its end and is recorded, and the exit code is 0."""
    file = tmp_path / "tabi.toml"
    file.write_text('[[listen]]\nurl = "mixed://127.0.0.1:0"\n' + intercept(looks, certificates.authority))
    with (
        serve(tmp_path, "-c", file, "--workers", "2") as proxy,
        origin({"/": b"page"}, tls=certificates, handler=Gate) as server,
        download(proxy, looks, server.port, "/gated") as sock,
    ):
        proxy.signal(signal.SIGTERM)
        wait_for(lambda: refuses(proxy.address), "the listener to close")
        gate.set()
        assert receive_all(sock).endswith(LARGE)
        sock.close()
        assert proxy.wait() == 0
        (line,) = proxy.sessions(1)
        assert (line["error"], line["close"]) == (None, "server")
        (entry,) = looks.entries(1)
        assert entry["response"]["content"]["size"] == len(LARGE)


def test_a_second_sigterm_cuts_it(
    tmp_path: Path, looks: Looking, certificates: Certificates, gate: threading.Event
) -> None:
    """What is not whole does not look so: its client sees no end of TLS, and the record says why."""
    file = tmp_path / "tabi.toml"
    file.write_text('[[listen]]\nurl = "mixed://127.0.0.1:0"\n' + intercept(looks, certificates.authority))
    with (
        serve(tmp_path, "-c", file) as proxy,
        origin(tls=certificates, files={"/gated": b""}, handler=Gate) as server,
        download(proxy, looks, server.port, "/gated") as sock,
    ):
        proxy.signal(signal.SIGTERM)
        wait_for(lambda: refuses(proxy.address), "the listener to close")
        proxy.signal(signal.SIGTERM)
        with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)eof|reset"):
            receive_all(sock)
        gate.set()
        assert proxy.wait() == 0
        (line,) = proxy.sessions(1)
        assert line["close"] == "shutdown"
        (entry,) = looks.entries(1)
        assert entry["response"]["_error"]
