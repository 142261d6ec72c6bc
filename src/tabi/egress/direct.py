"""What a way out is, and the one without a proxy: resolve, ask the guard, connect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple, Protocol

from tabi.errors import DialError
from tabi.net.dial import IP, Dialer, Permit
from tabi.net.failures import timeout_error
from tabi.net.origin import Origin
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.guard import permit_any
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ClientMachine, Reply, ReplyCode


class Asked(NamedTuple):
    """What a SOCKS5 proxy says to a command."""

    stream: Stream
    """The caller closes it."""
    machine: ClientMachine
    """Behind the first reply."""
    reply: Reply
    """A success."""


class Egress(Protocol):
    """A way out of the server: for connections, and perhaps for more."""

    name: str

    here: bool
    """Whether names that go this way are resolved on this machine."""

    straight: bool
    """Whether no proxy is on it, so that what is at the other end of a stream is the destination."""

    def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Awaitable[Stream]:
        """Return a connected stream that the caller closes; ``session`` is on whose behalf. Errors as `Dialer.dial`."""

    def ask(
        self, command: int, destination: Address, permit: Permit, session: Session | None = None
    ) -> Awaitable[Asked]:
        """Have the last proxy on this way carry out a command of SOCKS5 other than CONNECT and UDP ASSOCIATE.

        Raises:
            DialError: there is none that could (reply 07), or it cannot be reached.
            PolicyDenied, AuthError, ProxyError, RemoteProtocolError: as `open` of such a way.
        """

    def associate(self, session: Session | None = None) -> Awaitable[UdpPath]:
        """Open this way for datagrams; the caller closes it. Errors as `ask`."""


class Way:
    """A way for connections alone."""

    name: str
    here = False
    straight = False

    async def ask(self, command: int, destination: Address, permit: Permit, session: Session | None = None) -> Asked:
        """See `Egress`. Raises DialError."""
        raise self.no_way()

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`. Raises DialError."""
        raise self.no_way()

    def no_way(self) -> DialError:
        """The error for what cannot go this way."""
        return DialError(f"egress {self.name}: {CONNECTIONS_ALONE}", ReplyCode.COMMAND_NOT_SUPPORTED)


CONNECTIONS_ALONE = "it carries no datagrams, no calls of BIND, and no questions for names"
STRAIGHT = "it leads straight, and a pool has nobody there who could listen"


class Direct(Way):
    """Connects to destinations from this machine: from an origin, where it has one."""

    here = True
    straight = True

    def __init__(self, dialer: Dialer, origin: Origin | None = None, name: str = "direct") -> None:
        self.dialer = dialer
        self.origin = origin
        self.name = name

    def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Awaitable[Stream]:
        """See `Egress`."""
        known = None if session is None else session.known(destination)
        return self.dialer.dial(destination, permit, known, self.origin, session)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`."""
        return UdpPath(self, self.find, self.origin)

    def no_way(self) -> DialError:
        """See `Way`."""
        return DialError(f"egress {self.name}: {STRAIGHT}", ReplyCode.COMMAND_NOT_SUPPORTED)

    async def find(self, name: str) -> list[IP]:
        """The addresses of a name, within the dialer's deadline. Raises DialError."""
        try:
            async with asyncio.timeout(self.dialer.seconds):
                return await self.dialer.find(name, permit_any)
        except TimeoutError:
            raise timeout_error(self.dialer.seconds, name) from None
