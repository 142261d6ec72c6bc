"""The egress without a proxy: resolve, ask the guard, connect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from tabi.egress.base import NOBODY_LISTENS, Egress
from tabi.errors import DialError
from tabi.net.dial import IP, AddressFilter, Dialer
from tabi.net.failures import timeout_error
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.guard import allow_any_address
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode


class Direct(Egress):
    """Connects to destinations from this machine: from its own source, if it has one."""

    resolves_locally = True
    direct = True

    def __init__(self, dialer: Dialer, source: SourceBinding | None = None, name: str = "direct") -> None:
        self.dialer = dialer
        self.source = source
        self.name = name

    def open(
        self, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Awaitable[Stream]:
        """See `Egress`."""
        known = None if session is None else session.known(destination)
        return self.dialer.dial(destination, address_filter, known, self.source, session)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`."""
        return UdpPath(self, self.find, self.source)

    def refusal(self) -> DialError:
        """See `Egress`: a server listens for BIND by itself, so only a pool calls this."""
        return DialError(f"egress {self.name}: {NOBODY_LISTENS}", ReplyCode.COMMAND_NOT_SUPPORTED)

    def cannot(self, command: str) -> str | None:
        """See `Egress`."""
        return None

    def describe(self) -> str:
        """See `Egress`."""
        sources = () if self.source is None else self.source.describe()
        return f"{self.name}: from {', '.join(sources)}" if sources else self.name

    async def find(self, name: str) -> list[IP]:
        """The addresses of a name, within the dialer's deadline. Raises DialError."""
        try:
            async with asyncio.timeout(self.dialer.seconds):
                return await self.dialer.find(name, allow_any_address)
        except TimeoutError:
            raise timeout_error(self.dialer.seconds, name) from None
