"""Connections that were accepted and wait for their sessions to begin: a line for each client's address.

To accept is cheap, to begin a session is not. Somebody who connects faster than sessions can begin would fill the
kernel's queue, where all others stand behind. So all are accepted at once, a turn begins no more sessions than it has
time for, and these are of each address in turn. How long a line may be is a matter of `server.clients`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from tabi.net.reactor import BUDGET, Reactor
from tabi.wire.address import Address

if TYPE_CHECKING:
    from tabi.server.clients import Clients

LEAST, MOST = 4, 64
"""Sessions that begin in a turn: fewer as long as turns take more than their time, and again more one by one."""


Admitted = tuple[int, int | None]
"""See `Clients.admit`; None stands for a connection that does not count for its address."""


class Arrival(NamedTuple):
    """A connection whose session has not begun."""

    begin: Callable[[Any, Address, Admitted | None], object]
    """Called with the next three."""
    sock: Any
    peer: Address
    admitted: Admitted | None
    since: float
    """When it was accepted, of `time.monotonic`."""


class Arrivals:
    """All that wait.

    Args:
        reactor: in whose turns sessions begin.
        seconds: after which a connection that waits is given up.
        clients: count them for their addresses.
    """

    def __init__(self, reactor: Reactor, seconds: float, clients: Clients) -> None:
        self.reactor = reactor
        self.seconds = seconds
        self.clients = clients
        self.lines: OrderedDict[int | None, deque[Arrival]] = OrderedDict()
        """By the key of the address; the first one is the next that has its turn."""
        self.count = 0
        self.turn = 0.0
        self.begun = 0
        self.most = MOST

    def may_begin(self) -> bool:
        """Whether one more session may begin in this turn; if so it counts as begun."""
        reactor = self.reactor
        if reactor.started != self.turn:
            self.turn, self.begun = reactor.started, 0
            # What beginning them costs shows only when their tasks have run.
            if reactor.lasted > BUDGET:
                self.most = max(self.most // 2, LEAST)
            elif self.most < MOST:
                self.most += LEAST
        if self.begun >= self.most or (self.begun and reactor.late()):
            return False
        self.begun += 1
        return True

    def add(self, arrival: Arrival) -> None:
        """Have a connection wait in the line of its address."""
        if not self.lines:
            self.reactor.later(self.go_on)
        key = None if arrival.admitted is None else arrival.admitted[0]
        self.lines.setdefault(key, deque()).append(arrival)
        self.clients.wait(arrival)
        self.count += 1

    def go_on(self) -> None:
        """Begin as many sessions as this turn has time for."""
        while self.lines and self.may_begin():
            arrival = self.take()
            if monotonic() - arrival.since < self.seconds:
                arrival.begin(arrival.sock, arrival.peer, arrival.admitted)
            else:
                self.clients.give_up(arrival)
        if self.lines:
            self.reactor.later(self.go_on)

    def take(self) -> Arrival:
        """Take the next one out of its line; its address goes behind the others."""
        key, line = self.lines.popitem(last=False)
        arrival = line.popleft()
        if line:
            self.lines[key] = line
        self.count -= 1
        self.clients.leave(arrival)
        return arrival

    def close(self) -> None:
        """Give up all that wait."""
        while self.lines:
            self.clients.give_up(self.take())
