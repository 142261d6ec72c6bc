"""The limits that a program gives to one session alone, in addition to those of its accounts."""

from __future__ import annotations

from tabi.errors import LimitExceeded
from tabi.policy.ledger import Ledger
from tabi.policy.limits import NEVER, Account, Lease, Terms


def add_own_limits(lease: Lease | None, terms: Terms, user: str | None, now: int, wall: float) -> Lease:
    """The lease of a session that has limits of its own, and perhaps those of accounts (``lease``) as well.

    ``now`` is in nanoseconds of the monotonic clock, ``wall`` in seconds since 1970.
    """
    ledger = Ledger()  # of this session alone: no other session counts in it
    account = Account("session", terms, ledger)
    if account.quota is not None:
        account.turn_period(wall)
    account.begin(now)
    ends = NEVER if terms.max_session is None else now + terms.max_session * 1e9
    own = Lease(ledger, (account,), user, ends, NEVER)
    return own if lease is None else JointLease(lease, own)


class JointLease(Lease):
    """Two leases of one session, on two ledgers: what it moves counts on both, as fast as the slower one lets it."""

    __slots__ = ("parts",)

    def __init__(self, first: Lease, second: Lease) -> None:
        accounts = first.accounts + second.accounts
        ends, expires = min(first.ends, second.ends), min(first.expires, second.expires)
        super().__init__(first.ledger, accounts, first.user, ends, expires)
        self.parts = first, second

    def spend(self, direction: int, octets: int, now: int) -> int:
        """See `Lease`."""
        first, second = self.parts
        room, other = first.spend(direction, octets, now), second.spend(direction, octets, now)
        self.short = first.short if room <= other else second.short
        return min(room, other)

    @property
    def left(self) -> int:
        """See `Lease`."""
        return min(part.left for part in self.parts)

    def exhausted(self) -> str:
        """See `Lease`."""
        return min(self.parts, key=lambda part: part.left).exhausted()

    def overdue(self, now: int, wall: float) -> LimitExceeded | None:
        """See `Lease`."""
        first, second = self.parts
        return first.overdue(now, wall) or second.overdue(now, wall)

    def release(self) -> None:
        """See `Lease`."""
        self.released, self.cut = True, None
        for part in self.parts:
            part.release()
