"""The proxy in a thread."""

from __future__ import annotations

import contextlib
import socket

import pytest

from processes import PATIENCE, accept, listening, open_tunnel
from tabi.config import Config, Listen, Log
from tabi.launch import proxy as module
from tabi.launch.proxy import ProxyThread
from tabi.server.server import Server


def make(url: str = "mixed://127.0.0.1:0") -> ProxyThread:
    """A proxy on a free port."""
    return ProxyThread(Server(config=Config(listen=[Listen(url)], log=Log(access="none"))))


def ended(proxy: ProxyThread) -> bool:
    """Wait for its end."""
    proxy.thread.join(PATIENCE)
    return not proxy.thread.is_alive() and not proxy.runs()


def test_it_serves_until_it_is_told() -> None:
    """A tunnel through it carries; the end comes when that is at its end."""
    proxy = make()
    address = proxy.start()
    try:
        with listening() as (listener, port), open_tunnel(address, port) as sock, accept(listener) as peer:
            proxy.stop()
            sock.sendall(b"still")
            assert peer.recv(5) == b"still"
            assert proxy.runs()
    finally:
        proxy.stop()
    assert ended(proxy)
    assert proxy.failure is None
    proxy.stop(at_once=True)  # harmless


def test_sessions_have_so_long_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then they are cut."""
    monkeypatch.setattr(module, "DRAIN", 0.01)
    proxy = make()
    address = proxy.start()
    with listening() as (listener, port), open_tunnel(address, port) as sock, accept(listener):
        proxy.stop()
        assert ended(proxy)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second word ends the wait."""
    monkeypatch.setattr(module, "DRAIN", 600)
    proxy = make()
    address = proxy.start()
    with listening() as (listener, port), open_tunnel(address, port), accept(listener):
        proxy.stop()
        proxy.stop(at_once=True)
        assert ended(proxy)


def test_an_end_that_nobody_wanted(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback, and seen."""

    async def fail() -> bool:
        raise KeyError("a fault of ours")

    proxy = make()
    proxy.told.wait = fail  # type: ignore[assignment]
    proxy.start()
    assert ended(proxy)
    assert [(record.message, bool(record.exc_info)) for record in caplog.records] == [("the proxy has ended", True)]


def test_a_start_that_fails_raises_here() -> None:
    """Not in the thread, which is at its end."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxy = make(f"mixed://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(OSError, match="in use"):
            proxy.start()
    assert ended(proxy)
