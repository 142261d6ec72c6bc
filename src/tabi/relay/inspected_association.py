"""Associations whose datagrams are inspected, one by one: see `relay.datagram_inspector`.

They work differently. What the client sends is taken apart instead of going to the outbox; what destinations
send is handed over by `DestinationSocket.meet`, which is called for unknown senders: here, for all senders.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from heapq import heappop, heappush
from itertools import count
from time import monotonic_ns
from typing import Any

from tabi.net.batch import Run
from tabi.policy.limits import DOWN, UP
from tabi.relay.datagram import Association
from tabi.relay.datagram_inspector import Datagram, Direction, Inspect
from tabi.relay.limited_association import DatagramMeter
from tabi.relay.udp_routes import MAX_ROUTES
from tabi.relay.udp_sockets import COST_APART
from tabi.session import Close
from tabi.wire.address import Address, Host
from tabi.wire.datagram import encode_header, make_address

log = logging.getLogger("tabi")

MAX_DELAYED, MAX_DELAYED_OCTETS = 1024, 1 << 20
"""Datagrams of one association that wait for their time, and what they take."""

DELAYED_COST = 256
"""Octets that a datagram takes in addition to its payload."""

MAX_DELAY = 3600.0
"""Seconds that a datagram may wait."""

Delayed = tuple[float, int, Direction, Address, bytes]
"""The time, a number that keeps equal times in order, and the datagram."""


class InspectedAssociation(Association):
    """An association that calls ``inspect`` with each datagram, and sends what that emits.

    Within limits the client pays for what it sends, before it is inspected, and for what it gets.
    """

    __slots__ = ("delayed", "delayed_octets", "failed", "inspect", "meter", "named", "numbers", "taken", "timer")

    inspected = True

    def __init__(self, *args: Any, inspect: Inspect) -> None:
        super().__init__(*args)
        self.inspect = inspect
        lease = self.session.lease
        self.meter = DatagramMeter(lease) if lease is not None and lease.meters else None
        self.taken = 0  # octets that the client has sent and the inspector has seen
        self.failed = False
        self.named: dict[Address, Address] = {}  # by the address that was found for a name
        self.delayed: list[Delayed] = []  # a heap
        self.delayed_octets = 0
        self.numbers = count()
        self.timer: asyncio.TimerHandle | None = None

    # --- what comes ---

    def up(self, run: Run) -> int:
        """See `Association.up`: here each datagram is taken apart."""
        if self.meter is not None and not self.meter.fit(self, UP, run):
            return 0
        head, datagrams, payload = run.head, run.count, self.port.inbox.payload
        for index in range(datagrams):
            if self.closed:  # the inspector may have ended it
                break
            self.up_one(head + payload(run, index))
        return datagrams * COST_APART

    def carry_up(self, address: Address, payload: bytes) -> None:
        """Show a datagram of the client to the inspector."""
        self.taken += len(payload)
        self.show(Datagram(self.session, "up", address, payload))

    def carry_down(self, source: Address, header: bytes, payload: bytes) -> None:
        """Show a datagram for the client to the inspector."""
        if not self.closed:
            self.show(Datagram(self.session, "down", source, payload, self.named.get(source)))

    def found(self, destination: Address, address: Address) -> None:
        """See `Association.found`."""
        self.named.pop(address, None)
        if len(self.named) >= MAX_ROUTES:
            del self.named[next(iter(self.named))]
        self.named[address] = destination

    def show(self, datagram: Datagram) -> None:
        """Call the inspector. If it raises, the datagram is dropped, and the first error is logged."""
        try:
            self.inspect(datagram, partial(self.emit, datagram))
        except Exception:
            self.drop("inspector")
            if not self.failed:
                self.failed = True
                log.exception(
                    "session %d: the inspector of datagrams raised, %r is dropped", self.session.number, datagram
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
        if self.closed:
            return
        if delay:
            self.put_off(delay, datagram.direction, target, bytes(payload))
        else:
            self.deliver(datagram.direction, target, bytes(payload))

    def deliver(self, direction: Direction, address: Address, payload: bytes) -> None:
        """Send a datagram on: up as any of the client's, down behind the header of its sender."""
        if direction == "up":
            super().carry_up(address, payload)
        elif self.meter is None or self.meter.fit(self, DOWN, Run(size=len(payload), last=len(payload))):
            self.send_down(encode_header(address), payload)

    def put_off(self, delay: float, direction: Direction, address: Address, payload: bytes) -> None:
        """Keep a datagram until its time comes, if there is room for it."""
        octets, memory = len(payload) + DELAYED_COST, self.context.memory
        crowded = len(self.delayed) >= MAX_DELAYED or self.delayed_octets + octets > MAX_DELAYED_OCTETS
        if crowded or not memory.has_room(octets):
            self.drop("waiting")
            return
        self.delayed_octets += octets
        memory.held += octets
        number = next(self.numbers)
        heappush(self.delayed, (self.context.time() + delay, number, direction, address, payload))
        if self.delayed[0][1] == number:
            self.set_timer(delay)

    def set_timer(self, delay: float) -> None:
        """Have `send_delayed` called for the next datagram."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.context.reactor.loop.call_later(delay, self.send_delayed)

    def send_delayed(self) -> None:
        """Send the datagrams whose time has come."""
        self.timer = None
        now, delayed = self.context.time(), self.delayed
        while delayed and delayed[0][0] <= now:
            _, _, direction, address, payload = heappop(delayed)
            self.forget_delayed(len(payload) + DELAYED_COST)
            self.deliver(direction, address, payload)
        if delayed:
            self.set_timer(delayed[0][0] - now)

    def forget_delayed(self, octets: int) -> None:
        """Give memory back."""
        self.delayed_octets -= octets
        self.context.memory.held -= octets

    def close(self, reason: Close) -> None:
        """See `Association.close`; what waits for its time is dropped."""
        if not self.closed:
            if self.timer is not None:
                self.timer.cancel()
            self.drop("waiting", len(self.delayed))
            self.forget_delayed(self.delayed_octets)
            self.delayed.clear()
            if self.meter is not None:
                self.meter.settle(self.taken, self.session.down, monotonic_ns())
        super().close(reason)
