"""The client's side of BIND, after the first reply: wait for the peer that calls a proxy."""

from __future__ import annotations

import asyncio
from typing import Self

from tabi.egress.base import Egress
from tabi.egress.socks5 import read_reply
from tabi.errors import ProxyTimeout, TabiError
from tabi.net.dial import AddressFilter
from tabi.net.failures import is_deadline
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address, unmap
from tabi.wire.socks5 import ClientMachine, Command

ACCEPT_TIMEOUT = 300.0
"""Seconds to wait for a peer. Proxies give up by themselves, tabi after 120: this is for a proxy that does not."""


def check_seconds(what: str, seconds: float) -> None:
    """Check a deadline. Raises ValueError."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise ValueError(f"{what} of {seconds!r}, expected seconds, more than 0 and less than 1e9")


class Listener:
    """Where a proxy waits for one peer. The caller closes it, or uses it in ``async with``.

    ``address`` is where the peer must call; ``peer`` is the peer that has called, as the proxy reports it, or None
    until then.
    """

    __slots__ = ("address", "machine", "peer", "stream")

    def __init__(self, stream: Stream, machine: ClientMachine, address: Address) -> None:
        self.stream: Stream | None = stream
        self.machine = machine
        self.address = address
        self.peer: Address | None = None

    def __repr__(self) -> str:
        return f"<Listener {self.address}>"

    async def accept(self, timeout: float = ACCEPT_TIMEOUT) -> Stream:
        """Wait for the peer, once; the stream to it is the caller's to close, and closing the listener leaves it open.

        When ``timeout`` seconds are over, or after a cancellation, it can be waited for again.

        Raises:
            ValueError: ``timeout`` is not a number of seconds.
            ProxyError: no peer has called in time: ``reply_code`` is what the proxy sent, None if ``timeout`` ended it.
            RemoteProtocolError: the proxy ended the connection, or does not speak SOCKS5.
            OSError: the connection to the proxy broke.
            RuntimeError: a peer was accepted already, or the listener is closed.
        """
        check_seconds("a timeout", timeout)
        stream = self.stream
        if stream is None:
            raise RuntimeError("a listener accepts once" if self.peer else "the listener is closed")
        try:
            async with asyncio.timeout(timeout):
                reply = await read_reply(stream, self.machine, self.address)
        except (TabiError, OSError) as exc:
            if is_deadline(exc):
                raise ProxyTimeout(f"{self.address}: no peer called within {timeout:g} s") from None
            self.close()
            raise
        self.stream, self.peer = None, reply.bound
        return stream

    def close(self) -> None:
        """Stop waiting. Harmless when done twice."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


async def listen(
    egress: Egress, destination: Address, address_filter: AddressFilter, session: Session | None = None
) -> Listener:
    """Let the last proxy of an egress listen for one connection from a destination; 0.0.0.0 allows any peer.

    Raises:
        As `Egress.ask`.
    """
    stream, machine, reply = await egress.ask(Command.BIND, destination, address_filter, session)
    return Listener(stream, machine, unmap(reply.bound))
