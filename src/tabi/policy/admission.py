"""Admission: the interface that counts sessions, and says whether one more may begin.

`policy.limits.Limits` is the one of this machine, and answers at once. A store that several machines share stands here
too: its answer is awaited, in one round trip. The code that carries the octets knows neither: it has the lease.
"""

from __future__ import annotations

from collections.abc import Awaitable, Hashable
from typing import TYPE_CHECKING, Protocol

from tabi.wire.address import Host

if TYPE_CHECKING:
    from tabi.policy.limits import Given, Lease


class Admission(Protocol):
    """Counts sessions that run and sessions that begin."""

    waits: bool
    """Whether `admit` returns an awaitable."""

    def __bool__(self) -> bool:
        """Whether there is anything to ask it for."""

    def admit(
        self, user: str | None, client: Host, now: int, wall: float, given: Given | None = None
    ) -> Lease | Awaitable[Lease | None] | None:
        """Let a session begin, on all accounts or on none; None if no limits apply to it.

        Args:
            user: the user of the session, if it has one.
            client: the address that it comes from.
            now: nanoseconds of the monotonic clock.
            wall: seconds since 1970.
            given: what a program says about the user, if it says anything.

        Raises:
            LimitExceeded: it may not. ``seconds`` says when to try again if the session may wait, else it is None.
        """

    def queue_of(self, user: str | None, client: Host) -> Hashable:
        """The queue in which a session waits for room: sessions with an equal key, the first one first."""

    def turn_periods(self, wall: float) -> None:
        """Begin the new periods of quotas that are due; ``wall`` is in seconds since 1970. Called every second."""
