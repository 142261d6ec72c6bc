"""What faults do before a connection is there: refuse, delay, and names that have no address or take long.

It stands in front of the gate's egress: a session that rules refuse is refused as ever, before any fault.
"""

from __future__ import annotations

import asyncio
import errno

from tabi.distort.distortion import Distortion
from tabi.distort.draws import Drawn
from tabi.egress.base import Around, Egress
from tabi.errors import DialError
from tabi.ingress.gate import Route
from tabi.ingress.own_destinations import Entrance
from tabi.net.dial import AddressFilter
from tabi.net.resolve import find_number
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

ERRNOS = {
    ReplyCode.NETWORK_UNREACHABLE: errno.ENETUNREACH,
    ReplyCode.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    ReplyCode.CONNECTION_REFUSED: errno.ECONNREFUSED,
}
"""What the system would have said; the others have no number."""


class Distorting:
    """A gate with faults behind it.

    Args:
        gate: decides first.
        distortion: has the entries.
    """

    def __init__(self, gate: Entrance, distortion: Distortion) -> None:
        self.gate = gate
        self.distortion = distortion

    def enter(self, session: Session) -> Route | None:
        """See `Gate`."""
        route = self.gate.enter(session)
        return None if route is None else self.behind(route, session)

    async def enter_slowly(self, session: Session, client: Stream) -> Route:
        """See `Gate`."""
        return self.behind(await self.gate.enter_slowly(session, client), session)

    def behind(self, route: Route, session: Session) -> Route:
        """The route, with what the faults of this session do to its egress."""
        chosen = self.distortion.choose(session)
        if not chosen:
            return route
        forwarded = session.command == "forward"
        wanted = tuple([one for one in chosen if one.entry.fault.at_dial or (forwarded and one.entry.fault.on_octets)])
        return Route(Faulty(route.egress, wanted, self.distortion), route.address_filter) if wanted else route


class Faulty(Around):
    """An egress that fails, or takes its time, as entries say. One is made for each request: a connection that is kept
    has the faults of the request that opened it, and is not used for others.

    Args:
        below: the other egress.
        chosen: the entries.
        distortion: puts faults on connections of requests that are forwarded.
    """

    def __init__(self, below: Egress, chosen: tuple[Drawn, ...], distortion: Distortion) -> None:
        super().__init__(below)
        self.chosen = chosen
        self.distortion = distortion

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        await self.pass_faults(destination)
        stream = await self.below.open(destination, address_filter, session)
        if session is not None and session.command == "forward":
            octets = [drawn for drawn in self.chosen if drawn.entry.fault.on_octets]
            if octets:
                try:
                    return self.distortion.join(stream, session, octets, b"", b"", from_client=False)
                except BaseException:
                    stream.close()
                    raise
        return stream

    async def pass_faults(self, destination: Address) -> None:
        """Wait and fail as the entries that act now say. Raises DialError."""
        loop = asyncio.get_running_loop()
        named = isinstance(destination.host, str) and find_number(destination.host) is None
        for drawn in self.chosen:
            entry, fault = drawn.entry, drawn.entry.fault
            if not entry.acts(loop.time()):
                continue
            if named and fault.resolve_delay:
                await asyncio.sleep(fault.resolve_delay)
            if named and fault.resolve is not None:
                raise failure(fault.resolve, f"{destination.host}: a fault of {entry.distort.label} for names")
            if fault.dial_delay:
                await asyncio.sleep(fault.dial_delay)
            if fault.refuse is not None:
                raise failure(fault.refuse, f"{destination}: refused by {entry.distort.label}")


def failure(code: int, text: str) -> DialError:
    """The error with a reply."""
    return DialError(text, code, ERRNOS.get(ReplyCode(code)))
