"""ProxyServer: a proxy in a thread, for plain tests and for coroutines."""

from __future__ import annotations

import asyncio

import pytest
import requests

import tabi
from tabi import ConfigError, Session
from tabi.config import Config, Listen, Log
from tabi.testing import Origin, ProxyServer


def test_a_blocking_client_uses_it() -> None:
    """By its URLs for SOCKS5 and HTTP; the sessions that have ended can be waited for."""
    with ProxyServer() as proxy, Origin() as origin:
        for scheme in ("http", "socks5"):
            url = proxy.url_for(scheme)
            fields = {"Connection": "close"}  # requests keeps connections through SOCKS open
            answer = requests.get(f"{origin.url}/{scheme}", proxies={"http": url}, headers=fields, timeout=10)
            assert answer.text == f"hello from /{scheme}"
        with tabi.create_connection(origin.address, via=proxy.url, timeout=10) as sock:
            sock.sendall(b"echo")
            assert sock.recv(9) == b"echo"
            assert len(proxy.sessions) < 3
        ended = proxy.wait_for_sessions(3)
        assert [one.protocol for one in ended] == ["http", "socks5", "socks5"]
        assert proxy.sessions == ended
        assert {one.destination for one in ended} == {ended[0].destination}
        proxy.forget()
        assert proxy.sessions == []
        with pytest.raises(TimeoutError):
            proxy.wait_for_sessions(1, timeout=0.01)


def test_a_coroutine_uses_it() -> None:
    """In a loop of its own, whichever that is."""

    async def main() -> bytes:
        async with (
            ProxyServer("socks5://127.0.0.1:0") as proxy,
            Origin() as origin,
            tabi.Proxy(proxy.url).connect(*origin.address) as stream,
        ):
            await stream.send_all(b"echo")
            return await stream.receive()

    assert asyncio.run(main()) == b"echo"


def test_its_options_are_those_of_a_server() -> None:
    """Users are in the URL, functions are called, and a configuration says where it listens."""
    ended: list[Session] = []
    options = {"users": {"alice": "secret"}, "on_close": ended.append}
    with Origin() as origin, ProxyServer(**options) as proxy:
        assert proxy.url == f"socks5://alice:secret@{proxy.address}"
        with tabi.create_connection(origin.address, via=proxy.url, timeout=10):
            pass
        assert [one.user for one in proxy.wait_for_sessions()] == ["alice"]
        assert [one.user for one in ended] == ["alice"]
        with pytest.raises(tabi.AuthError):
            tabi.create_connection(origin.address, via=f"socks5://{proxy.address}", timeout=10)
    config = Config(listen=[Listen("http://127.0.0.1:0")], log=Log(access="none"))
    with ProxyServer(config=config) as proxy, pytest.raises(ValueError, match="no listener takes 'socks5'"):
        proxy.url_for("socks5")


def test_it_can_start_again() -> None:
    """A proxy that went away and came back is a case worth a test: it has another port then."""
    proxy = ProxyServer()
    with pytest.raises(RuntimeError):
        assert proxy.url
    with Origin() as origin:
        for _ in range(2):
            with proxy, tabi.create_connection(origin.address, via=proxy.url, timeout=10):
                pass
    assert len(proxy.sessions) == 2


def test_wrong_options_are_told_at_once() -> None:
    """Before anything runs."""
    with pytest.raises(ConfigError, match="open proxy"):
        ProxyServer("socks5://0.0.0.0:0")
    with pytest.raises(TypeError):
        ProxyServer(user="alice")
