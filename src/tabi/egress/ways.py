"""Small ways out, each around another one or around none: blocked, resolved here, apart for each user."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Literal

from tabi.egress.direct import Asked, Egress, Way
from tabi.errors import PolicyDenied
from tabi.net.dial import Dialer, Permit
from tabi.net.failures import timeout_error
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import Credentials

KEPT = 1024
"""Ways of `Isolated` that are kept; beyond that the one that rested longest is made anew when it is needed."""

Apart = Literal["user", "session", "client"]


class Block(Way):
    """Leads nowhere."""

    here = True

    def __init__(self, name: str) -> None:
        self.name = name

    async def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Stream:
        """See `Egress`. Raises PolicyDenied."""
        raise PolicyDenied(f"egress {self.name}: {destination}")

    async def ask(self, command: int, destination: Address, permit: Permit, session: Session | None = None) -> Asked:
        """See `Egress`. Raises PolicyDenied."""
        raise PolicyDenied(f"egress {self.name}: {destination}")

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`. Raises PolicyDenied."""
        raise PolicyDenied(f"egress {self.name}: datagrams")


class ResolveHere:
    """Asks the way below for addresses only: names are resolved on this machine, and what is found is permitted.

    Args:
        below: opens the destination.
        dialer: resolves names, within its deadline.
    """

    here = True
    straight = False

    def __init__(self, below: Egress, dialer: Dialer) -> None:
        self.name = below.name
        self.below = below
        self.dialer = dialer

    async def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Stream:
        """See `Egress`."""
        return await self.below.open(await self.resolve(destination, permit, session), permit, session)

    async def ask(self, command: int, destination: Address, permit: Permit, session: Session | None = None) -> Asked:
        """See `Egress`."""
        return await self.below.ask(command, await self.resolve(destination, permit, session), permit, session)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`: whoever sends the datagrams resolves the names."""
        path = await self.below.associate(session)
        path.resolves_locally = True
        return path

    async def resolve(self, destination: Address, permit: Permit, session: Session | None) -> Address:
        """The destination by address. Raises DialError and PolicyDenied."""
        known = None if session is None else session.known(destination)
        if isinstance(destination.host, str) and known is None:
            try:
                async with asyncio.timeout(self.dialer.seconds):
                    found = await self.dialer.find(destination.host, permit)
            except TimeoutError:
                raise timeout_error(self.dialer.seconds, destination) from None
            return Address(next((one for one in found if one.version == 4), found[0]), destination.port)
        return destination


class Isolated:
    """Goes through a proxy of SOCKS5 as another user for each of those who are to be kept apart.

    Tor does not let two streams share a circuit whose user names differ (IsolateSOCKSAuth, torrc(5)); it takes any.

    Args:
        make: makes the way with a user's credentials.
        apart: of what there must be another user for each: user, session (of the user name's parameters), client.
    """

    name = "isolated"
    here = straight = False

    def __init__(self, make: Callable[[Credentials], Egress], apart: Sequence[Apart]) -> None:
        self.make = make
        self.apart = apart
        self.ways: OrderedDict[bytes, Egress] = OrderedDict()

    async def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Stream:
        """See `Egress`."""
        return await self.way_of(session).open(destination, permit, session)

    async def ask(self, command: int, destination: Address, permit: Permit, session: Session | None = None) -> Asked:
        """See `Egress`."""
        return await self.way_of(session).ask(command, destination, permit, session)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`."""
        return await self.way_of(session).associate(session)

    def way_of(self, session: Session | None) -> Egress:
        """The way of those whom a session belongs to."""
        name = blake2b(self.key_of(session).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest().encode()
        way = self.ways.get(name)
        if way is None:
            way = self.ways[name] = self.make(Credentials(name, b"tabi"))
            if len(self.ways) > KEPT:
                self.ways.popitem(last=False)
        self.ways.move_to_end(name)
        return way

    def key_of(self, session: Session | None) -> str:
        """What they have in common, and no others."""
        if session is None:
            return ""
        parameters = session.parameters
        parts = {
            "user": session.user or "",
            "client": str(session.client.host),
            "session": "" if parameters is None else parameters.session or "",
        }
        return "\0".join(parts[word] for word in self.apart)
