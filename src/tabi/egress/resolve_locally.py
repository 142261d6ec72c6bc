"""An egress around another one that gets only addresses."""

from __future__ import annotations

import asyncio

from tabi.egress.base import Around, Asked, Egress
from tabi.net.dial import AddressFilter, Dialer
from tabi.net.failures import timeout_error
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.session import Session
from tabi.wire.address import Address


class ResolveLocally(Around):
    """Resolves names on this machine, and asks the egress below for an address that is permitted.

    Args:
        below: opens the destination.
        dialer: resolves names, within its deadline.
    """

    def __init__(self, below: Egress, dialer: Dialer) -> None:
        super().__init__(below)
        self.resolves_locally = True
        self.dialer = dialer

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        return await self.below.open(await self.resolve(destination, address_filter, session), address_filter, session)

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`."""
        return await self.below.ask(
            command, await self.resolve(destination, address_filter, session), address_filter, session
        )

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`: the code that sends the datagrams resolves the names."""
        path = await self.below.associate(session)
        path.resolves_locally = True
        return path

    async def resolve(self, destination: Address, address_filter: AddressFilter, session: Session | None) -> Address:
        """The destination by address. Raises DialError and PolicyDenied."""
        known = None if session is None else session.known(destination)
        if isinstance(destination.host, str) and known is None:
            try:
                async with asyncio.timeout(self.dialer.seconds):
                    found = await self.dialer.find(destination.host, address_filter, session)
            except TimeoutError:
                raise timeout_error(self.dialer.seconds, destination) from None
            return Address(next((one for one in found if one.version == 4), found[0]), destination.port)
        return destination
