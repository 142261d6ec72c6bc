"""The client for programs without asyncio: a socket that blocks, also through TLS, from any thread."""

from __future__ import annotations

import asyncio
import operator
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import tabi
from authorities import authority, write_server
from conftest import Run
from doubles import config
from processes import wait_for
from support import target
from tabi.client import blocking
from tabi.config import Listen
from tabi.net.reactor import reactors


class Around:
    """A server and a destination in a thread of their own, as another program would run them."""

    def __init__(self, *listen: Listen) -> None:
        self.listen = listen
        self.started = threading.Event()
        self.url = ""
        self.port = 0
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main()))
        self.thread.start()
        self.started.wait(10)

    async def main(self) -> None:
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        async with target() as self.port, tabi.Server(config=config(*self.listen)) as server:
            self.url = server.url
            self.started.set()
            await self.over.wait()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()


@pytest.fixture
def around() -> Iterator[Around]:
    """A plain SOCKS5 server."""
    found = Around(Listen("socks5://127.0.0.1:0"))
    yield found
    found.close()


def exchange(sock: socket.socket) -> bytes:
    """Send, and get the same back."""
    with sock:
        sock.sendall(b"hello")
        return sock.recv(5, socket.MSG_WAITALL)


def test_a_socket_that_blocks(around: Around) -> None:
    """It has the timeout that was given, or none, and carries octets both ways."""
    place = ("127.0.0.1", around.port)
    sock = tabi.create_connection(place, via=around.url, timeout=5)
    assert sock.gettimeout() == 5
    assert exchange(sock) == b"hello"
    assert exchange(tabi.create_connection(place, via=[around.url, around.url], timeout=None)) == b"hello"
    assert exchange(tabi.create_connection(place, via=tabi.Proxy(around.url))) == b"hello"


def test_the_environment_says_which_proxy(around: Around, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `via` it is ALL_PROXY; without that the connection is direct."""
    monkeypatch.delenv("all_proxy", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(tabi.DialError, match=r"127.0.0.1:1: connection refused"):
        tabi.create_connection(("127.0.0.1", around.port))
    monkeypatch.delenv("ALL_PROXY")
    assert exchange(tabi.create_connection(("127.0.0.1", around.port))) == b"hello"


def test_threads_open_side_by_side(around: Around) -> None:
    """Each thread opens and uses sockets of its own."""
    found: list[bytes] = []

    def use() -> None:
        found.append(exchange(tabi.create_connection(("127.0.0.1", around.port), via=around.url)))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"hello"] * 8


def test_a_socket_through_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of the process serves it: the socket works after the call has returned, and after a fork anew."""
    files = write_server(tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority().cert_pem.bytes())
    around = Around(Listen("https://127.0.0.1:0", tls=files))
    proxy = tabi.Proxy(around.url, ca=tmp_path / "ca.pem")
    try:
        first = tabi.create_connection(("127.0.0.1", around.port), via=proxy)
        kept = blocking.background()
        assert blocking.background() is kept
        assert exchange(first) == b"hello"
        monkeypatch.setattr(kept, "pid", os.getpid() + 1)  # as a child that was forked sees it
        assert exchange(tabi.create_connection(("127.0.0.1", around.port), via=proxy)) == b"hello"
        other = blocking.background()
        assert other is not kept
    finally:
        around.close()
        for started in (kept, other):
            handlers = reactors[started.loop].handlers
            wait_for(partial(operator.not_, handlers), "the end of its connections")
            started.close()
        monkeypatch.setattr(blocking, "running", None)


def test_a_running_loop_is_not_blocked(run_once: Run) -> None:
    """In a loop's own thread the error says what to do instead."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"await tabi.Proxy.open_socket"):
            tabi.create_connection(("127.0.0.1", 1), via="socks5://127.0.0.1:1")

    run_once(main)


def test_errors_are_those_of_the_proxy() -> None:
    """As with `await`: a refused connection, a wrong URL."""
    with pytest.raises(tabi.DialError):
        tabi.create_connection(("example.com", 80), via="socks5://127.0.0.1:1")
    with pytest.raises(ValueError, match="is not a port"):
        tabi.create_connection(("example.com", 99999), via="socks5://127.0.0.1:1")
