"""RESOLVE and RESOLVE_PTR (Tor's socks-extensions.txt, section 2): one answer from the resolver, and the end.

The question goes where a connection would go: if names are resolved on this machine, it is asked here; else the
proxy on the way is asked, by the same command, and this machine does not resolve the name. The guard sees the answer.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import ClassVar

from tabi.config import Prefer
from tabi.egress.base import Egress
from tabi.errors import DialError, PolicyDenied, RemoteProtocolError
from tabi.ingress.conversation import Conversation
from tabi.ingress.gate import Gate
from tabi.ingress.own_destinations import Entrance
from tabi.net.dial import IP, AddressFilter, Dialer
from tabi.net.failures import timeout_error
from tabi.relay.carrier import Carrier
from tabi.session import Session
from tabi.wire.address import Address, Host, check_found_name, unmap
from tabi.wire.socks5 import Command, Reply, ReplyCode


class Question:
    """What both commands have in common: decide, find, answer.

    Args:
        gate: says whether a session may go on, and by which egress.
    """

    name: str
    command: ClassVar[Command]

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.entrance: Entrance = gate

    def take(self, entrance: Entrance, carrier: Carrier) -> None:
        """Have sessions pass this from now on; no carrier has them."""
        self.entrance = entrance

    async def __call__(self, conversation: Conversation) -> Reply:
        """See `ingress.conversation.Serve`. Raises TabiError, as `find`: the reply."""
        session = conversation.session
        assert session.destination is not None
        self.check(session.destination)
        entrance = self.entrance
        egress, address_filter = entrance.enter(session) or await entrance.enter_slowly(session, conversation.client)
        if egress.leads_nowhere:
            raise PolicyDenied(f"egress {egress.name}: {session.destination}")
        began = monotonic()
        if egress.resolves_locally:
            if isinstance(session.destination.host, str):
                await egress.before_resolve(session.destination.host, session)
            found = await self.find_within(self.gate.dialer, session.destination, address_filter, session)
        else:
            found = await self.ask(egress, session.destination, address_filter, session)
        session.connect_seconds = monotonic() - began
        session.address = Address(found, 0)
        return Reply(ReplyCode.SUCCEEDED, session.address)

    async def find_within(
        self, dialer: Dialer, destination: Address, address_filter: AddressFilter, session: Session
    ) -> Host:
        """`find` within the time that connecting has. Also raises DialError if that time is over."""
        try:
            async with asyncio.timeout(dialer.seconds):
                return await self.find(dialer, destination.host, address_filter, session)
        except TimeoutError:
            raise timeout_error(dialer.seconds, destination) from None

    async def ask(self, egress: Egress, destination: Address, address_filter: AddressFilter, session: Session) -> Host:
        """Have the proxy on the way find it. Raises as `Egress.ask`; RemoteProtocolError for an invalid answer."""
        asked = await egress.ask(self.command, destination, address_filter, session)
        asked.stream.close()
        return self.judge(asked.reply.bound.host, address_filter)

    def check(self, destination: Address) -> None:
        """Raise DialError for a destination that this command does not support."""

    async def find(self, dialer: Dialer, host: Host, address_filter: AddressFilter, session: Session) -> Host:
        """Find it on this machine. Raises DialError and PolicyDenied."""
        raise NotImplementedError

    def judge(self, found: Host, address_filter: AddressFilter) -> Host:
        """Look at what a proxy has found. Raises RemoteProtocolError, DialError, and PolicyDenied."""
        raise NotImplementedError


class Resolve(Question):
    """RESOLVE: the client names a host and gets one of its addresses; for an address it gets the address itself.

    Args:
        gate: says whether a session may go on, and by which egress.
        prefer: the resolver's; if all are equal, an IPv4 address is taken, which every client can use.
    """

    name = "resolve"
    command = Command.RESOLVE

    def __init__(self, gate: Gate, prefer: Prefer = "any") -> None:
        super().__init__(gate)
        self.prefer = prefer

    async def find(self, dialer: Dialer, host: Host, address_filter: AddressFilter, session: Session) -> IP:
        """See `Question`."""
        if not isinstance(host, str):
            address_filter(host)
            return host
        found = session.addresses
        if found is None:
            found = await dialer.find(host, address_filter, session)
        for address in found:
            address_filter(address)
        if self.prefer != "any":  # then they come in that order
            return found[0]
        return next((address for address in found if address.version == 4), found[0])

    def judge(self, found: Host, address_filter: AddressFilter) -> IP:
        """See `Question`."""
        if isinstance(found, str):
            raise RemoteProtocolError(f"the proxy was asked for an address, and gave {found}")
        address_filter(found)
        return found


class ResolvePtr(Question):
    """RESOLVE_PTR: the client names an address and gets its name, as the owner of the address has set it."""

    name = "resolve_ptr"
    command = Command.RESOLVE_PTR

    def check(self, destination: Address) -> None:
        """See `Question`."""
        if isinstance(destination.host, str):
            text = f"{destination.host}: only an address can be asked for its name"
            raise DialError(text, ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED)

    async def find(self, dialer: Dialer, host: Host, address_filter: AddressFilter, session: Session) -> str:
        """See `Question`."""
        address = unmap(Address(host, 0)).host
        assert not isinstance(address, str)
        address_filter(address)  # clients from outside must not learn names of inner networks
        return await dialer.find_name(address, session)

    def judge(self, found: Host, address_filter: AddressFilter) -> str:
        """See `Question`."""
        try:
            return check_found_name(str(found))
        except ValueError as exc:
            raise DialError(f"the proxy was asked for a name: {exc}", ReplyCode.HOST_UNREACHABLE) from exc
