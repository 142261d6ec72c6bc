"""What looks into an association: its datagrams go by an inspector one by one, and pass faults behind it.

It may begin and end while the association runs. What the client sends is then taken apart instead of going to the
outbox; what destinations send is handed over by `DestinationSocket.meet`, which is called for unknown senders: then,
for all senders.

    client -> inspector -> faults -> destination        destination -> inspector -> faults -> client
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Protocol

from tabi.net.batch import Run
from tabi.relay.datagram_inspector import Datagram, Direction, Inspect
from tabi.wire.address import Address, Host
from tabi.wire.datagram import encode_header, make_address

if TYPE_CHECKING:
    from tabi.relay.datagram import Association

log = logging.getLogger("tabi")

MAX_DELAYED, MAX_DELAYED_OCTETS = 1024, 1 << 20
"""Datagrams of one association that wait for their time, and what they take."""

DELAYED_COST = 256
"""Octets that a datagram takes in addition to its payload."""

MAX_NAMED = 1024
"""Senders whose name is remembered; beyond that the oldest is forgotten."""

MAX_DELAY = 3600.0
"""Seconds that a datagram may wait."""

Delayed = tuple[float, int, Direction, Address, bytes]
"""The time, a number that keeps equal times in order, and the datagram."""


class Faults(Protocol):
    """What the datagrams of one association pass behind its inspector."""

    def carry(self, direction: Direction, address: Address, payload: bytes) -> None:
        """Call `Inspection.send` with a datagram: at once or later, several times or not at all.

        Args:
            direction: of the datagram.
            address: where it goes (up), as the client has named it, or where it comes from (down).
            payload: its octets.
        """

    def found(self, destination: Address) -> None:
        """Hear that the address of a destination is known, see `Inspection.named`."""


class Watch(Protocol):
    """What hears of destinations and senders that are new, to begin to look into the association with them."""

    def __call__(self, direction: Direction, destination: Address, address: Address | None = None) -> None:
        """A datagram is about to be carried, in runs those behind it too, unless this calls `Association.look_into`.

        Args:
            direction: of the datagram.
            destination: where it goes, as the client has named it, or where it comes from.
            address: that of the destination, if just that has become known.
        """


class Inspection:
    """Calls ``inspect`` with each datagram of an association, and has what that emits pass ``faults``.

    Within limits the client pays for what it sends, before it is inspected, and for what it gets.

    Args:
        association: whose datagrams they are.
        named: the destination that the client has named, by the address that was found for it.
    """

    __slots__ = (
        "association",
        "delayed",
        "delayed_octets",
        "failed",
        "faults",
        "inspect",
        "named",
        "numbers",
        "taken",
        "timer",
    )

    def __init__(self, association: Association, named: dict[Address, Address]) -> None:
        self.association = association
        self.named = named
        self.inspect: Inspect | None = None
        self.faults: Faults | None = None
        self.taken = association.session.up  # octets that the client has sent
        self.failed = False
        self.delayed: list[Delayed] = []  # a heap
        self.delayed_octets = 0
        self.numbers = count()
        self.timer: asyncio.TimerHandle | None = None

    # --- what comes ---

    def carry_up(self, address: Address, payload: bytes) -> None:
        """Take a datagram of the client."""
        self.taken += len(payload)
        if self.inspect is None:
            self.deliver("up", address, payload)
        else:
            self.show(self.inspect, Datagram(self.association.session, "up", address, payload))

    def carry_down(self, source: Address, payload: bytes) -> None:
        """Take a datagram for the client."""
        if self.inspect is None:
            self.deliver("down", source, payload)
        else:
            named = self.named.get(source)
            self.show(self.inspect, Datagram(self.association.session, "down", source, payload, named))

    def found(self, destination: Address, address: Address) -> None:
        """See `Association.found`."""
        self.named.pop(address, None)
        if len(self.named) >= MAX_NAMED:
            del self.named[next(iter(self.named))]
        self.named[address] = destination
        if self.faults is not None:
            self.faults.found(destination)

    def show(self, inspect: Inspect, datagram: Datagram) -> None:
        """Call the inspector. If it raises, the datagram is dropped, and the first error is logged."""
        if self.association.closed:  # the inspector may have ended it
            return
        try:
            inspect(datagram, partial(self.emit, datagram))
        except Exception:
            self.association.drop("inspector")
            if not self.failed:
                self.failed = True
                log.exception(
                    "session %d: the inspector of datagrams raised, %r is dropped", datagram.session.number, datagram
                )

    # --- what goes ---

    def emit(
        self,
        datagram: Datagram,
        payload: bytes | bytearray | memoryview,
        address: Address | tuple[Host, int] | None = None,
        delay: float = 0.0,
    ) -> None:
        """See `datagram_inspector.Emit`."""
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise TypeError(f"emit: the payload is {type(payload).__name__}, expected bytes")
        if not 0 <= delay <= MAX_DELAY:
            raise ValueError(f"emit: the delay is {delay!r}, expected 0 to {MAX_DELAY:g} seconds")
        target = datagram.address if address is None else make_address(*address)
        if self.association.closed:
            return
        if delay:
            self.put_off(delay, datagram.direction, target, bytes(payload))
        else:
            self.deliver(datagram.direction, target, bytes(payload))

    def deliver(self, direction: Direction, address: Address, payload: bytes) -> None:
        """Send a datagram on, through the faults if there are any."""
        if self.faults is None:
            self.send(direction, address, payload)
        else:
            self.faults.carry(direction, address, payload)

    def send(self, direction: Direction, address: Address, payload: bytes) -> None:
        """Send a datagram: up as any of the client's, down behind the header of its sender."""
        association = self.association
        if association.closed:
            return
        if direction == "up":
            association.route_up(address, payload)
            return
        fit = association.fit_down
        if fit is None or fit(Run(size=len(payload), last=len(payload))) is not None:
            association.send_down(encode_header(address), payload)

    def put_off(self, delay: float, direction: Direction, address: Address, payload: bytes) -> None:
        """Keep a datagram until its time comes, if there is room for it."""
        octets, context = len(payload) + DELAYED_COST, self.association.context
        crowded = len(self.delayed) >= MAX_DELAYED or self.delayed_octets + octets > MAX_DELAYED_OCTETS
        if crowded or not context.memory.has_room(octets):
            self.association.drop("waiting")
            return
        self.delayed_octets += octets
        context.memory.held += octets
        number = next(self.numbers)
        heappush(self.delayed, (context.time() + delay, number, direction, address, payload))
        if self.delayed[0][1] == number:
            self.set_timer(delay)

    def set_timer(self, delay: float) -> None:
        """Have `send_delayed` called for the next datagram."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.association.context.reactor.loop.call_later(delay, self.send_delayed)

    def send_delayed(self) -> None:
        """Send the datagrams whose time has come."""
        self.timer = None
        now, delayed = self.association.context.time(), self.delayed
        while delayed and delayed[0][0] <= now:
            _, _, direction, address, payload = heappop(delayed)
            self.forget_delayed(len(payload) + DELAYED_COST)
            self.deliver(direction, address, payload)
        if delayed:
            self.set_timer(delayed[0][0] - now)

    def forget_delayed(self, octets: int) -> None:
        """Give memory back."""
        self.delayed_octets -= octets
        self.association.context.memory.held -= octets

    def close(self) -> None:
        """The association ends: what waits for its time is dropped."""
        if self.timer is not None:
            self.timer.cancel()
        self.association.drop("waiting", len(self.delayed))
        self.forget_delayed(self.delayed_octets)
        self.delayed.clear()
