"""Admission: the seam behind which sessions are counted, and which says whether one more may begin.

`policy.limits.Limits` is the one of this machine, and answers at once. A store that several machines share stands here
too: its answer is awaited, in one round trip. Neither is known to what carries the octets: that has the lease.
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
        """Let a session begin, on all accounts or on none; None where no limits are for it.

        Args:
            user: whose it is, if it has a user.
            client: the address that it comes from.
            now: nanoseconds of the monotonic clock.
            wall: seconds since 1970.
            given: what a program says of the user, where it says something.

        Raises:
            LimitExceeded: it may not. ``seconds`` says when to try again where it is to wait, else it is None.
        """

    def queue_of(self, user: str | None, client: Host) -> Hashable:
        """Among whom a session waits for room: those with an equal key, the first of them first."""

    def turn_periods(self, wall: float) -> None:
        """Begin what quotas have a new period; ``wall`` is in seconds since 1970. Called every second."""
