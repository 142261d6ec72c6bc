"""Faults of a proxy in a thread, for plain tests and for coroutines."""

from __future__ import annotations

import asyncio
import socket
import threading
from time import monotonic

import pytest

import tabi
from tabi.errors import ConfigError
from tabi.testing import Origin, ProxyServer


def round_trip(sock: socket.socket) -> float:
    """Seconds until an echo is back."""
    began = monotonic()
    sock.sendall(b"echo")
    assert sock.recv(9) == b"echo"
    return monotonic() - began


def test_it_acts_when_the_block_begins_and_is_gone_behind_it() -> None:
    """On a session that runs; a change and an early removal too."""
    with (
        ProxyServer() as proxy,
        Origin() as origin,
        tabi.create_connection(origin.address, via=proxy.url, timeout=10) as sock,
    ):
        round_trip(sock)
        with proxy.fault(latency="40ms") as fault:
            assert round_trip(sock) >= 0.08
            fault.change(latency="80ms")
            assert round_trip(sock) >= 0.16
            assert (fault.name, fault.sessions, fault.chosen) == ("fault-1", 1, 1)
            assert repr(fault) == "<tabi.testing.ProxyFault fault-1: latency 80ms>"
            with pytest.raises(ConfigError, match="latency: a duration"):
                fault.change(latency=-1)
            fault.remove()
            fault.remove()
            with pytest.raises(RuntimeError, match="does not act"):
                fault.change(latency=1)
        assert fault.sessions == 0
        with pytest.raises(ZeroDivisionError), proxy.fault(latency=9):
            raise ZeroDivisionError
        round_trip(sock)
        assert proxy.server.faults.all == {}


def test_threads_set_faults_side_by_side() -> None:
    """Each has its own, and nothing is left."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                with proxy.fault(name=f"of {number}", latency="1ms") as fault:
                    fault.change(latency="2ms")
        except BaseException as exc:
            errors.append(exc)

    with ProxyServer() as proxy:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (errors, proxy.server.faults.all) == ([], {})


def test_in_a_coroutine() -> None:
    """``async with`` and ``with`` are the same; a task that is cancelled leaves nothing."""

    async def main() -> None:
        async with (
            ProxyServer() as proxy,
            Origin() as origin,
            tabi.Proxy(proxy.url).connect(*origin.address) as stream,
        ):

            async def hold() -> None:
                async with proxy.fault(latency=9):
                    with proxy.fault(latency="30ms", name="short"):
                        await asyncio.sleep(3600)

            task = asyncio.get_running_loop().create_task(hold())
            while len(proxy.server.faults.all) < 2:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert proxy.server.faults.all == {}
            async with proxy.fault(latency="30ms"):
                began = monotonic()
                await stream.send_all(b"echo")
                assert await stream.receive() == b"echo"
                assert monotonic() - began >= 0.06

    asyncio.run(main())


def test_a_proxy_that_does_not_run() -> None:
    """A fault can be made, and not be set; a proxy that is closed within the block is no error at its end."""
    proxy = ProxyServer()
    with pytest.raises(RuntimeError, match="this ProxyServer does not run"):
        proxy.fault("3g").__enter__()
    proxy.start()
    with proxy.fault("3g"):
        proxy.close()
    with pytest.raises(RuntimeError, match="this ProxyServer does not run"):
        proxy.fault("3g").__enter__()
    with proxy, proxy.fault("edge") as fault:
        assert fault.name == "fault-1"
