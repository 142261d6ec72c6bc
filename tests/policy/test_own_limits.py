"""The limits of one session alone, beside those of its accounts."""

from __future__ import annotations

import pytest

from tabi.config import make_config
from tabi.config.compile import make_limits
from tabi.policy.ledger import Ledger
from tabi.policy.limits import ALL, DOWN, OVER, UP, Lease
from tabi.policy.own_limits import JointLease, add_own_limits
from tabi.policy.quantities import Quota
from tabi.wire.address import parse_host

NOW = 10**15
CLIENT = parse_host("203.0.113.9")


def lease_of(own: dict[str, object], **user: object) -> Lease:
    """A lease with limits of its own, and those of the user if there are any."""
    accounts = make_limits(
        make_config({"users": {"alice": {"password": "x", "plain": True, "limits": user}}}), Ledger()
    )
    terms = make_config({"limits": own}).limits
    return add_own_limits(accounts.admit("alice", CLIENT, NOW, 0.0), terms, "alice", NOW, 0.0)


def test_without_other_limits_it_is_a_lease_like_any_other() -> None:
    """Its account is of nobody else, and counts from nothing."""
    for _ in range(2):
        lease = lease_of({"quota": "1 kB/day", "max_session": 2})
        assert type(lease) is Lease
        assert lease.spend(UP, 600, NOW) == 400
        assert str(lease.overdue(NOW + 2 * 10**9, 0.0)) == "limit: session: 2 s for a session"
        lease.release()
    assert lease_of({"connections": 1}).ends == float("inf")


def test_two_leases_let_through_what_both_do() -> None:
    """The smaller room, the account that is short of it, and the text of the quota that is used up first."""
    lease = lease_of({"bandwidth": "1 kB/s", "burst": 1000}, quota="2 kB/day")
    assert isinstance(lease, JointLease)
    assert [account.name for account in lease.meters] == ["user alice", "session"]
    assert lease.spend(UP, 0, NOW) == 1000
    assert lease.spend(UP, 1000, NOW) == 0
    assert lease.short is not None
    assert lease.short.name == "session"
    assert not lease.is_full(UP, NOW)
    assert lease.is_full(DOWN, NOW)
    assert not lease.crowded
    assert lease.left == 1000
    assert lease.spend(DOWN, 1000, NOW) == OVER
    assert lease.short.name == "user alice"
    assert lease.exhausted() == "limit: user alice: the quota of 2 kB/day is used up"


@pytest.mark.parametrize(("own", "user", "who"), [(2, 9, "session"), (9, 2, "user alice")])
def test_the_first_end_is_the_end(own: int, user: int, who: str) -> None:
    """And it says whose it is."""
    lease = lease_of({"max_session": own}, max_session=user)
    assert lease.overdue(NOW, 0.0) is None
    assert str(lease.overdue(NOW + 2 * 10**9, 0.0)) == f"limit: {who}: 2 s for a session"
    assert lease.ends == NOW + 2 * 10**9
    assert lease.spend(UP, 1, NOW) == ALL


def test_both_are_released() -> None:
    """Once, however often that is said; what the user has running is counted down."""
    lease = lease_of({"quota": "1 kB/day"}, connections=1)
    assert isinstance(lease, JointLease)
    account = lease.accounts[0]
    assert account.refusal(NOW) is not None
    lease.release()
    lease.release()
    assert lease.released
    assert account.refusal(NOW) is None
    assert account.ledger.running(account.at) == 0


def test_a_quota_is_that_of_the_period() -> None:
    """It begins with the session, in the period that it is then."""
    lease = lease_of({"quota": "1 kB/day"})
    (account,) = lease.accounts
    assert isinstance(account.quota, Quota)
    assert account.since <= 0.0 < account.until
