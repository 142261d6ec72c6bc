"""What a way out opens for datagrams: how many proxies there may be, and what a control connection says."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from conftest import Run
from sockets import tcp_pair, until
from tabi.errors import DialError
from tabi.net import udp_path as module
from tabi.net.batch import MAX_HEAD, MAX_HOPS
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import encode_header

RELAY = parse_address("[2001:db8::1]:1080")


async def find_nothing(name: str) -> list[Any]:
    """There are no names here."""
    raise NotImplementedError


def pair() -> tuple[Stream, socket.socket]:
    """A control connection, and the proxy's end of it."""
    near, far = tcp_pair()
    return Stream(get_reactor(), near), far


def test_the_headers_of_as_many_proxies_as_there_may_be_fit(run_once: Run) -> None:
    """Whatever the destination is called; one more is refused, and its connection left to whoever opened it."""

    async def main() -> None:
        path = UdpPath(None, find_nothing)
        control, far = pair()
        for _ in range(MAX_HOPS):
            path.add(None, control, RELAY)
        assert len(path.layers().head + encode_header(Address("x" * 255, 1))) <= MAX_HEAD
        with pytest.raises(DialError, match="at most 12 proxies") as caught:
            path.add(None, control, RELAY)
        assert caught.value.reply_code == 7
        assert control.fd >= 0
        path.close()
        assert control.fd < 0
        far.close()

    run_once(main)


def test_the_end_of_a_control_connection_is_told_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind whatever the proxy has said there, which is read in shares of a turn."""
    monkeypatch.setattr(module, "READS", 2)

    async def main() -> None:
        told: list[int] = []
        path = UdpPath(None, find_nothing)
        fars = []
        for number in range(2):
            control, far = pair()
            path.add(None, control, parse_address(f"127.0.0.1:{number + 1}"))
            fars.append(far)
        path.watch(lambda: told.append(1))
        fars[0].sendall(bytes(100_000))
        fars[0].close()
        await until(lambda: told)
        assert path.ended
        fars[1].close()
        await until(lambda: path.controls[1].sock.fileno() >= 0)
        path.close()
        assert told == [1]

    run(main)


def test_a_socket_that_nobody_took_is_closed(run_once: Run) -> None:
    """With the connections; what was asked to be told then is told once."""

    async def main() -> None:
        closed: list[int] = []
        path = UdpPath(None, find_nothing)
        path.connect()
        assert path.sock is None  # nothing leads through a relay
        control, far = pair()
        path.add(None, control, parse_address("[::1]:9"))
        path.on_close.append(lambda: closed.append(1))
        path.connect()
        assert path.sock is not None
        sock = path.sock
        path.close()
        path.close()
        assert (sock.fileno(), control.fd, closed) == (-1, -1, [1])
        far.close()

    run_once(main)
