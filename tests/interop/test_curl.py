"""curl through `tabi serve`: names, users, IPv6, and downloads."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Run
from processes import Serve, answer_http, in_thread, need, serve
from support import closed_port, target

pytestmark = pytest.mark.interop

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


def fetch(
    run: Run, curl: str, via: str, host: str = "127.0.0.1", body: bytes = BODY, bound: str = "127.0.0.1"
) -> subprocess.CompletedProcess[bytes]:
    """Fetch ``http://host/`` from a server on ``bound`` through a proxy."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target(answer_http(body), bound) as port:
            return await in_thread([curl, *COMMON, via, f"http://{host}:{port}/"])

    return run(main)


def check(done: subprocess.CompletedProcess[bytes], body: bytes = BODY) -> None:
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

    async def main() -> subprocess.CompletedProcess[bytes]:

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

    async def main() -> subprocess.CompletedProcess[bytes]:
        with closed_port() as port:
            return await in_thread([curl, *COMMON, proxy.url, f"http://127.0.0.1:{port}/"])

    done = run_once(main)
    assert done.returncode == 97
    assert b"(5)" in done.stderr


def test_a_hundred_at_once(run_once: Run, curl: str, proxy: Serve) -> None:
    """One curl with 100 parallel transfers: each gets its body."""

    async def main() -> subprocess.CompletedProcess[bytes]:
        async with target(answer_http(BODY)) as port:
            options = ["--no-progress-meter", "--parallel", "--parallel-max", "100"]
            return await in_thread([curl, *COMMON, proxy.url, *options, f"http://127.0.0.1:{port}/[1-100]"])

    check(run_once(main), BODY * 100)
    assert len({session["id"] for session in proxy.sessions(100)}) == 100
