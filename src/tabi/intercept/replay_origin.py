"""Where sessions end whose answers are replayed: the egress opens no connection, but something that shakes hands.

Interception opens TLS with the destination first. Here that is this process. What is inside never gets here: the hook
`intercept.replay.Replay` answers it.
"""

from __future__ import annotations

import asyncio
import ssl
import time

from tabi.intercept.authority import Verdict
from tabi.intercept.contexts import ServerContexts
from tabi.net.dial import AddressFilter
from tabi.net.pair import open_pair
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address

HANDSHAKE = 0x16
"""The first octet of TLS (RFC 8446 section 5.1)."""

PATIENCE = 10.0
"""Seconds until a session ends whose client says nothing: it waits for a server that speaks first."""


class ReplayOrigin:
    """An egress (`egress.custom.Opener`) that leads nowhere.

    Args:
        contexts: for the handshakes; None where no TLS is opened.
    """

    def __init__(self, contexts: ServerContexts | None) -> None:
        self.contexts = contexts
        self.open_ends: set[Silent] = set()

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`. No address is dialled, so that none is looked at."""
        ours, theirs = open_pair()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Silent(self), theirs)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return Stream.from_socket(ours)

    def context(self) -> ssl.SSLContext | None:
        """What to shake hands with: no certificate of it is looked at."""
        if self.contexts is None:
            return None
        return self.contexts.get(None, Verdict.UNVERIFIED, "replay.invalid", "http/1.1", time.time())

    def close(self) -> None:
        """End what is open."""
        for end in list(self.open_ends):
            end.transport.abort()


class Silent(asyncio.Protocol):
    """The other end of one session: shakes hands and says nothing else."""

    def __init__(self, origin: ReplayOrigin) -> None:
        self.origin = origin
        self.tls: ssl.SSLObject | None = None
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.shaken = False
        self.transport: asyncio.Transport
        self.deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.origin.open_ends.add(self)
        self.deadline = asyncio.get_running_loop().call_later(PATIENCE, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.deadline.cancel()
        self.origin.open_ends.discard(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.deadline.cancel()
        if self.tls is None:
            context = self.origin.context() if data[0] == HANDSHAKE else None
            if context is None:  # a protocol of which nothing is recorded
                self.transport.abort()
                return
            self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.incoming.write(data)
        try:
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
            while self.tls.read(65536):
                pass
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # also the end that close_notify says
            self.transport.write(self.outgoing.read())
            self.transport.close()
            return
        self.transport.write(self.outgoing.read())
