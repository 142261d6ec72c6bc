"""What faults do before a connection is there: refuse, delay, and names that have no address or take long.

It stands behind the gate: a session that rules refuse is refused as ever, before any fault.
"""

from __future__ import annotations

import asyncio
import errno

from tabi.distort.choosing import Chosen
from tabi.distort.distortion import Distortion
from tabi.distort.draws import Drawn, Entry
from tabi.egress.base import Around, Egress
from tabi.errors import DialError
from tabi.ingress.gate import LOOK, Route
from tabi.ingress.own_destinations import Entrance
from tabi.net.dial import AddressFilter
from tabi.net.reactor import ENDED
from tabi.net.resolve import find_number
from tabi.net.stream import Stream
from tabi.policy.faults import Fault
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

ERRNOS = {
    ReplyCode.NETWORK_UNREACHABLE: errno.ENETUNREACH,
    ReplyCode.HOST_UNREACHABLE: errno.EHOSTUNREACH,
    ReplyCode.CONNECTION_REFUSED: errno.ECONNREFUSED,
}
"""What the system would have said; the others have no number."""

KEPT = 256
"""Egresses with faults that are known again, so that a kept connection serves another request."""

DIALS = ("connect", "forward")
"""The commands that open the destination by an egress. The others wait, and fail, before they begin."""


class Distorting:
    """A gate with faults behind it.

    Args:
        gate: decides first.
        distortion: has the entries.
        egresses: those with faults, of all such gates.
    """

    def __init__(self, gate: Entrance, distortion: Distortion, egresses: Egresses) -> None:
        self.gate = gate
        self.distortion = distortion
        self.egresses = egresses
        self.paused: dict[Session, Route] = {}
        """Between `enter` and `enter_slowly`: those that have faults to wait for."""

    def enter(self, session: Session) -> Route | None:
        """See `Gate`."""
        route = self.gate.enter(session)
        if route is None:
            return None
        chosen = self.distortion.choose_to_dial(session)
        if not chosen:
            return route
        if session.command == "forward":
            return self.egresses.around(route, chosen)
        if not any(drawn.acts_at_dial for drawn in chosen):
            return route
        self.paused[session] = route
        return None

    async def enter_slowly(self, session: Session, client: Stream) -> Route:
        """See `Gate`. Also raises DialError, as faults say."""
        route = self.paused.pop(session, None) or await self.gate.enter_slowly(session, client)
        chosen = self.distortion.choose_to_dial(session)
        if session.command == "forward":
            return self.egresses.around(route, chosen)
        if not any(drawn.acts_at_dial for drawn in chosen):
            return route
        if session.command in DIALS:
            return route._replace(egress=Faulty(route.egress, self.distortion, client))
        await pass_faults(session, client)
        return route


class Egresses:
    """The egresses with faults of requests that are forwarded: the same one for the same entries."""

    def __init__(self, distortion: Distortion) -> None:
        self.distortion = distortion
        self.made: dict[tuple[Egress, tuple[Entry, ...]], Faulty] = {}
        distortion.changed.append(self.forget)

    def around(self, route: Route, chosen: Chosen) -> Route:
        """A route with the faults of these entries, if they have any before or in a connection."""
        entries = tuple([one.entry for one in chosen if one.acts_on_octets or one.acts_at_dial])
        if not entries:
            return route
        key = route.egress, entries
        found = self.made.get(key)
        if found is None:
            if len(self.made) >= KEPT:
                self.made.clear()
            found = self.made[key] = Faulty(route.egress, self.distortion)
        return route._replace(egress=found)

    def forget(self, entry: Entry) -> None:
        """An entry is gone, or has another fault: connections that it was asked for are not used again."""
        self.made = {key: faulty for key, faulty in self.made.items() if entry not in key[1]}


class Faulty(Around):
    """An egress that fails, or takes its time, as the entries say that a session was drawn for. What it opens for a
    request that is forwarded has the other faults, as long as it is kept.

    Args:
        below: the other egress.
        distortion: puts faults on connections of requests that are forwarded.
        client: whose end is noticed, where nothing else would.
    """

    def __init__(self, below: Egress, distortion: Distortion, client: Stream | None = None) -> None:
        super().__init__(below)
        self.distortion = distortion
        self.client = client

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        if session is None:
            return await self.below.open(destination, address_filter)
        await pass_faults(session, self.client)
        stream = await self.below.open(destination, address_filter, session)
        if session.command != "forward":
            return stream
        chosen: list[Drawn] = [drawn for drawn in session.distorted or () if drawn.acts_on_octets]
        if not chosen:
            return stream
        return self.distortion.join(stream, session, chosen, b"", b"", from_client=False) or stream


async def pass_faults(session: Session, client: Stream | None) -> None:
    """Wait and fail as the entries say that act now.

    Args:
        session: was drawn for them.
        client: ends it by leaving; None: its end does not matter.

    Raises:
        DialError: a fault, or the client has gone.
    """
    destination = session.destination
    assert destination is not None
    asks = isinstance(destination.host, str) and find_number(destination.host) is None
    asks = asks or session.command == "resolve_ptr"  # of an address
    for drawn in session.distorted or ():
        entry, fault = drawn.entry, drawn.entry.fault
        label = entry.distort.label
        if asks and fault.resolve_delay:
            await rest(entry, fault.resolve_delay, client)
        if asks and fault.resolve is not None and acts(entry, fault):
            raise failure(fault.resolve, f"{destination.host}: a fault of {label} for names")
        if fault.dial_delay and session.command in DIALS:
            await rest(entry, fault.dial_delay, client)
        if fault.refuse is not None and acts(entry, fault):
            raise failure(fault.refuse, f"{destination}: refused by {label}")


def acts(entry: Entry, fault: Fault) -> bool:
    """Whether an entry acts now, with the fault that it had before."""
    return entry.fault is fault and entry.acts(asyncio.get_running_loop().time())


async def rest(entry: Entry, seconds: float, client: Stream | None) -> None:
    """Wait, as long as an entry acts, for so many seconds. Raises DialError if the client has gone."""
    loop, fault = asyncio.get_running_loop(), entry.fault
    until = loop.time() + seconds
    while (left := until - loop.time()) > 0 and acts(entry, fault):
        await entry.rest(left if client is None else min(left, LOOK))
        if client is not None and client.events & ENDED:
            raise DialError("the client has gone while it waited", ReplyCode.GENERAL_FAILURE)


def failure(code: int, text: str) -> DialError:
    """The error with a reply."""
    return DialError(text, code, ERRNOS.get(ReplyCode(code)))
