"""The SOCKS clients that Python programs have: PySocks, requests, python-socks and httpx."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import python_socks
import requests
import socks
from python_socks.async_.asyncio import Proxy as PythonSocks

from conftest import Run
from processes import PATIENCE, Serve, answer_http, serve
from support import closed_port, target

pytestmark = pytest.mark.interop

BODY = b"hello from the destination\n"
LOGIN = "alice:secret"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A proxy with one user."""
    with serve(tmp_path, "-u", LOGIN) as running:
        yield running


def url(proxy: Serve, login: str = LOGIN, scheme: str = "socks5") -> str:
    """Its URL with a login."""
    return proxy.url.replace("socks5://", f"{scheme}://{login}@")


def pysocks_echo(proxy: Serve, port: int, password: str = "secret", host: str = "localhost") -> bytes:
    """Send through PySocks; the name is resolved by the proxy."""
    with socks.socksocket() as sock:
        sock.set_proxy(socks.SOCKS5, "127.0.0.1", proxy.address.port, True, "alice", password)
        sock.settimeout(PATIENCE)
        sock.connect((host, port))
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := sock.recv(100):
            data += chunk
        return data


def test_pysocks(run_once: Run, proxy: Serve) -> None:
    """A name, a user, octets both ways and the end."""

    async def main() -> None:
        async with target() as port:
            assert await asyncio.to_thread(pysocks_echo, proxy, port) == b"hello"

    run_once(main)
    (session,) = proxy.sessions(1)
    assert (session["user"], session["host"], session["up"], session["down"]) == ("alice", "localhost", 5, 5)


def test_pysocks_is_told_why(proxy: Serve) -> None:
    """A wrong password and a refused destination are its own errors for that."""
    with pytest.raises(socks.ProxyError, match="SOCKS5 authentication failed"):
        pysocks_echo(proxy, 1, "wrong")
    with closed_port() as port, pytest.raises(socks.ProxyError, match="0x05"):
        pysocks_echo(proxy, port, host="127.0.0.1")


@pytest.mark.parametrize(("scheme", "host"), [("socks5", "127.0.0.1"), ("socks5h", "localhost")])
def test_requests(run_once: Run, proxy: Serve, scheme: str, host: str) -> None:
    """requests with PySocks below, names resolved at home or by the proxy."""

    def fetch(address: str) -> bytes:
        with requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": url(proxy, scheme=scheme)}
            return session.get(address, timeout=PATIENCE).content

    async def main() -> None:
        async with target(answer_http(BODY)) as port:
            assert await asyncio.to_thread(fetch, f"http://{host}:{port}/") == BODY

    run_once(main)
    (session,) = proxy.sessions(1)
    assert (session["user"], session["host"]) == ("alice", host)


def test_python_socks(run_once: Run, proxy: Serve) -> None:
    """On asyncio, with a name for the proxy to resolve."""

    async def main() -> None:
        async with target() as port:
            through = PythonSocks.from_url(url(proxy), rdns=True)
            sock = await through.connect("localhost", port, timeout=PATIENCE)
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            await writer.wait_closed()

    run_once(main)
    (session,) = proxy.sessions(1)
    assert (session["user"], session["host"]) == ("alice", "localhost")


def test_python_socks_is_told_why(run_once: Run, proxy: Serve) -> None:
    """The reply code arrives: 5 for a refused destination; a wrong password is refused."""

    async def main() -> None:
        with closed_port() as port, pytest.raises(python_socks.ProxyError) as caught:
            await PythonSocks.from_url(url(proxy)).connect("127.0.0.1", port, timeout=PATIENCE)
        assert caught.value.error_code == 5
        with pytest.raises(python_socks.ProxyError):
            await PythonSocks.from_url(url(proxy, "alice:wrong")).connect("127.0.0.1", 1, timeout=PATIENCE)

    run_once(main)


@pytest.mark.parametrize(("scheme", "host"), [("socks5", "127.0.0.1"), ("socks5h", "localhost")])
def test_httpx(run_once: Run, proxy: Serve, scheme: str, host: str) -> None:
    """The async client with socksio below; several requests at once."""

    async def main() -> None:
        async with (
            target(answer_http(BODY)) as port,
            httpx.AsyncClient(proxy=url(proxy, scheme=scheme), trust_env=False, timeout=PATIENCE) as client,
        ):
            answers = await asyncio.gather(*(client.get(f"http://{host}:{port}/") for _ in range(5)))
            assert [answer.content for answer in answers] == [BODY] * 5

    run_once(main)
    assert {(session["user"], session["host"]) for session in proxy.sessions(5)} == {("alice", host)}


def test_httpx_is_told_why(run_once: Run, proxy: Serve) -> None:
    """A wrong password is a ProxyError."""

    async def main() -> None:
        async with httpx.AsyncClient(proxy=url(proxy, "alice:wrong"), trust_env=False, timeout=PATIENCE) as client:
            with pytest.raises(httpx.ProxyError):
                await client.get("http://127.0.0.1:1/")
        with warnings.catch_warnings(action="ignore"):  # httpcore leaves that connection to the collector
            gc.collect()

    run_once(main)
