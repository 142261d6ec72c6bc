"""Associations within limits: what is too fast is dropped, as on a slow link; a used up quota ends the association."""

from __future__ import annotations

from functools import partial
from time import monotonic_ns
from typing import Any

from tabi.net.batch import Run
from tabi.policy.limits import DOWN, UP, Lease
from tabi.relay.datagram import Association
from tabi.session import Close


class DatagramMeter:
    """Asks a lease whether datagrams may flow, and remembers what it was charged for: octets of payload, as for TCP."""

    __slots__ = ("charged", "lease")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.charged = {UP: 0, DOWN: 0}

    def fit(self, association: Association, direction: int, run: Run) -> Run | None:
        """As many datagrams of a run as may flow, the first ones; the others are dropped. None for none."""
        count, size = run.count, run.size
        lease, now = self.lease, monotonic_ns()
        octets = size * (count - 1) + run.last
        room = lease.spend(direction, 0, now)
        if room < octets:
            if room < 0 or lease.left < size:
                # Not here: the batch under way still has runs of the association.
                association.context.reactor.later(partial(association.cut, lease.exhausted()))
            fitting = min(count, room // size) if room > 0 else 0  # a size of 0 does not fit if room is OVER
            if not fitting and room >= 0 and lease.left >= size and lease.is_full(direction, now):
                fitting = 1  # larger than the bucket: it would never pass, and is paid back by those behind it
            association.drop("limited", count - fitting)
            if not fitting:
                return None
            run.keep_first(fitting)
            octets = size * fitting
        self.charged[direction] += octets
        lease.spend(direction, octets, now)
        return run

    def settle(self, up: int, down: int, now: int) -> None:
        """Give back what was charged beyond these octets."""
        for direction, octets in ((UP, up), (DOWN, down)):
            self.lease.spend(direction, octets - self.charged[direction], now)


class LimitedAssociation(Association):
    """An association whose session has a lease that counts octets."""

    __slots__ = ("meter",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert self.session.lease is not None
        self.meter = DatagramMeter(self.session.lease)

    def up(self, run: Run) -> int:
        """See `Association.up`."""
        fitting = self.meter.fit(self, UP, run)
        return 0 if fitting is None else super().up(fitting)

    def fit_down(self, run: Run) -> Run | None:
        """As many datagrams of a run toward the client as may flow; None for none."""
        return self.meter.fit(self, DOWN, run)

    def close(self, reason: Close) -> None:
        """See `Association.close`. What was charged and not delivered is given back."""
        if not self.closed:
            up = self.session.up if self.inspection is None else self.inspection.taken
            self.meter.settle(up, self.session.down, monotonic_ns())
        super().close(reason)
