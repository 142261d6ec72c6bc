"""Limits with a clock of the test's own: what is admitted, what may move, what is given back, and when it ends."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.config.schema import LimitsConfig as Terms
from tabi.errors import LimitExceeded
from tabi.policy.ledger import USED, Ledger
from tabi.policy.limits import ALL, DOWN, NEAR_END, OVER, STEP, UP, Account, Given, Lease, Limits, Networks
from tabi.policy.networks import parse_network
from tabi.policy.quantities import Bandwidth, Quota, Rate, Size
from tabi.wire.address import Host

SECOND = 10**9
START = 10**6 * SECOND
WALL = 1795435200.0  # 2026-11-23T12:00Z
CLIENT: Host = ip_address("10.1.1.1")


class Watched(Ledger):
    """A ledger that others share, and that notes whether it was locked."""

    shared = True
    inside = 0
    entered = 0

    def enter(self) -> None:
        assert not self.inside
        self.inside += 1
        self.entered += 1

    def leave(self) -> None:
        self.inside -= 1


def limits(ledger: Ledger | None = None, **terms: Any) -> Limits:
    """Limits of the user alice."""
    return Limits(Ledger() if ledger is None else ledger, users={"alice": Terms(**terms)})


def admit(made: Limits, now: int = START, user: str | None = "alice", wall: float = WALL) -> Lease:
    """Begin a session."""
    lease = made.admit(user, CLIENT, now, wall)
    assert lease is not None
    return lease


@pytest.mark.parametrize("ledger", [Ledger(), Watched()], ids=["alone", "shared"])
def test_connections_at_once(ledger: Ledger) -> None:
    """One beyond is refused, and has its place as soon as another has ended; ended twice counts once."""
    made = limits(ledger, connections=2)
    first, _ = admit(made), admit(made)
    with pytest.raises(LimitExceeded, match="limit: user alice: 2 connections at once") as caught:
        admit(made)
    assert (caught.value.limit, caught.value.seconds, caught.value.reply_code) == ("connections", None, 2)
    first.release()
    first.release()
    admit(made)
    with pytest.raises(LimitExceeded):
        admit(made)


def test_whoever_waits_is_told_how_long() -> None:
    """``over = "wait"``: until another session ends it is looked again, a rate says the very time."""
    made = limits(connections=1, over="wait")
    admit(made)
    with pytest.raises(LimitExceeded) as caught:
        admit(made)
    assert caught.value.seconds == pytest.approx(0.02)
    made = limits(connect_rate=Rate.parse("2/s"), over="wait")
    admit(made)
    admit(made)
    with pytest.raises(LimitExceeded, match="2/s connections") as caught:
        admit(made)
    assert caught.value.seconds == pytest.approx(0.5)


def test_connections_per_second() -> None:
    """As many as the rate says at once, then one for each of its parts of a second; a refused one costs nothing."""
    made = limits(connect_rate=Rate.parse("10/s"))
    for _ in range(10):
        admit(made)
    for _ in range(5):
        with pytest.raises(LimitExceeded) as caught:
            admit(made)
        assert (caught.value.limit, caught.value.seconds) == ("connect_rate", None)
    admit(made, START + SECOND // 10)
    with pytest.raises(LimitExceeded):
        admit(made, START + SECOND // 10 + 1)


@pytest.mark.parametrize("ledger", [Ledger(), Watched()], ids=["alone", "shared"])
def test_bandwidth_is_a_bucket_for_each_direction(ledger: Ledger) -> None:
    """A tenth of a second at once, then as it flows in; what was overdrawn is paid back first."""
    lease = admit(limits(ledger, bandwidth=Bandwidth(1e6)))
    assert lease.spend(UP, 0, START) == 100_000
    assert lease.spend(UP, 100_000, START) == 0
    assert lease.short is lease.meters[0]
    assert lease.spend(DOWN, 0, START) == 100_000
    assert lease.spend(UP, 0, START + SECOND // 100) == pytest.approx(10_000, abs=2)
    assert lease.spend(UP, 20_000, START + SECOND // 100) == 0
    assert lease.spend(UP, 0, START + SECOND // 50) == 0
    assert lease.spend(UP, 0, START + SECOND) == 100_000
    assert lease.spend(UP, -5, START + SECOND) == 100_000


def test_a_burst_of_ones_own_and_of_a_slow_account() -> None:
    """``burst`` says how much at once, but no less than flows in a tenth of a second; a slow account has 4 KiB."""
    assert admit(limits(bandwidth=Bandwidth(1e6), burst=Size(500_000))).spend(UP, 0, START) == 500_000
    assert admit(limits(bandwidth=Bandwidth(1e6), burst=Size(1))).spend(UP, 0, START) == 100_000
    assert admit(limits(bandwidth=Bandwidth(100))).spend(UP, 0, START) == 4096


def test_a_quota_counts_both_directions_and_steps_toward_its_end() -> None:
    """Near the end nobody takes more than 64 KiB at once, and never more than is left; then it is over."""
    made = limits(quota=Quota.parse("2 MiB/day"))
    lease = admit(made)
    assert lease.spend(UP, 100, START) == (2 << 20) - 100
    assert lease.spend(DOWN, (2 << 20) - NEAR_END, START) == STEP
    assert lease.spend(UP, NEAR_END - 100 - 5, START) == 5
    assert lease.spend(UP, 5, START) == OVER
    assert lease.exhausted() == "limit: user alice: the quota of 2 MiB/day is used up"
    assert lease.left == 0
    with pytest.raises(LimitExceeded, match="is used up") as caught:
        admit(made)
    assert caught.value.limit == "quota"
    lease.spend(UP, -5, START)
    admit(made)


def test_what_is_left_is_what_the_nearest_quota_leaves() -> None:
    """Of several that count, the one that ends first is the one that is told; buckets do not matter."""
    server = Terms(quota=Quota.parse("1 MB/day"), bandwidth=Bandwidth(10))
    made = Limits(Ledger(), users={"alice": Terms(quota=Quota.parse("2 MB/day"))}, server=server)
    lease = admit(made)
    lease.spend(UP, 900_000, START)
    assert lease.left == 100_000
    assert lease.exhausted() == "limit: server: the quota of 1 MB/day is used up"
    assert admit(limits(bandwidth=Bandwidth(10))).left == ALL


def test_a_bucket_says_what_it_holds() -> None:
    """What has flowed in up to its size; less than nothing where it was overdrawn."""
    lease = admit(limits(bandwidth=Bandwidth(1e6)))
    (account,) = lease.meters
    assert account.free(UP, START) == 100_000
    assert lease.is_full(UP, START)
    lease.spend(UP, 150_000, START)
    assert not lease.is_full(UP, START)
    assert account.free(UP, START) == -50_000
    assert account.free(DOWN, START) == 100_000
    account.serving = True
    assert account.free(DOWN, START) == 1_000_000  # of a second, for who has waited
    assert lease.spend(DOWN, 0, START) == 1_000_000
    account.serving = False
    assert lease.spend(DOWN, 0, START) == 100_000


def test_a_quota_begins_anew() -> None:
    """On the next day; not on the same, nor where the clock is set back by an hour or by a week."""
    ledger = Ledger()
    made = limits(ledger, quota=Quota.parse("1 kB/day"))
    admit(made).spend(UP, 1000, START)
    for wall in (WALL + 60, WALL - 3600, WALL - 7 * 86400):
        with pytest.raises(LimitExceeded):
            admit(made, wall=wall)
    made.turn_periods(WALL + 86400)
    made.turn_periods(WALL + 86401)
    assert ledger.cells[ledger.row("user alice") + USED] == 0
    admit(made, wall=WALL + 86400)


def test_who_shares_what() -> None:
    """A session is on the accounts of its user, of its groups, of its network, of the server: all must have room."""
    made = Limits(
        Ledger(),
        users={"alice": Terms(connections=9)},
        groups={"dev": Terms(connections=3), "empty": Terms(connections=1)},
        networks=[
            Networks([parse_network("10.1.1.0/24"), parse_network("::1")], Terms(connections=5)),
            Networks([parse_network("10.0.0.0/8")], Terms(connections=1)),
        ],
        server=Terms(connections=7),
        members={"alice": ["dev", "other"], "bob": ["dev"], "carol": []},
    )

    def names(user: str | None, client: Host) -> list[str]:
        return [account.name for account in made.accounts_of(user, client)]

    assert names("alice", CLIENT) == ["clients 10.1.1.0/24,::1/128", "user alice", "group dev", "server"]
    assert names("bob", ip_address("10.2.2.2")) == ["clients 10.0.0.0/8", "group dev", "server"]
    assert names("carol", ip_address("11.2.2.2")) == names(None, "unix") == ["server"]
    for user in ("alice", "bob", "alice"):
        admit(made, user=user)
    with pytest.raises(LimitExceeded, match="group dev: 3 connections"):
        admit(made, user="bob")
    for _ in range(2):
        admit(made, user=None)
    with pytest.raises(LimitExceeded, match=r"clients 10\.1\.1\.0/24,::1/128: 5 connections"):
        admit(made, user=None)
    assert repr(made.accounts_of("alice", CLIENT)[1]) == "Account(user alice)"


def test_the_narrowest_account_decides_what_may_move() -> None:
    """Of bandwidths the least, whichever account has it; a wide one does not hide behind it."""
    made = Limits(Ledger(), users={"alice": Terms(bandwidth=Bandwidth(1e6))}, server=Terms(bandwidth=Bandwidth(1e9)))
    lease = admit(made)
    assert lease.spend(UP, 0, START) == 100_000
    both = admit(limits(bandwidth=Bandwidth(1e6), quota=Quota.parse("1 GB/day")))
    assert both.spend(UP, 0, START) == 100_000
    assert not lease.crowded
    lease.meters[1].waiting = 1
    assert lease.crowded


def test_a_session_without_limits_has_no_lease() -> None:
    """And one with limits that count no octets has nothing to meter."""
    made = limits(connections=1)
    assert made.admit("bob", CLIENT, START, WALL) is None
    assert made.admit(None, CLIENT, START, WALL) is None
    lease = admit(made)
    assert lease.meters == ()
    assert lease.spend(UP, 10, START) == ALL
    assert bool(made)
    assert not Limits(Ledger())


def test_a_session_ends_after_its_time() -> None:
    """The shortest of all; the lease says so once to whoever carries the session."""
    made = Limits(
        Ledger(),
        users={"alice": Terms(max_session=2)},  # type: ignore[arg-type]
        server=Terms(max_session=1),  # type: ignore[arg-type]
    )
    lease = admit(made)
    assert lease.overdue(START + SECOND - 1, WALL) is None
    error = lease.overdue(START + SECOND, WALL)
    assert str(error) == "limit: server: 1 s for a session"
    assert error is not None
    lease.end(error)
    said: list[str] = []
    lease.cut = said.append
    lease.end(error)
    assert said == ["limit: server: 1 s for a session"]
    assert lease.ended is error
    lease.release()
    assert lease.cut is None


def test_a_user_expires() -> None:
    """Before a session, and in the middle of one, by the time of day."""
    made = Limits(Ledger(), expires={"alice": WALL})
    with pytest.raises(LimitExceeded, match="limit: user alice: expired at 2026-11-23T12:00:00Z"):
        admit(made)
    lease = admit(made, wall=WALL - 1)
    assert lease.overdue(10**18, WALL - 0.5) is None
    assert str(lease.overdue(START, WALL)) == "limit: user alice: expired at 2026-11-23T12:00:00Z"
    assert made.admit("bob", CLIENT, START, WALL) is None


def test_quotas_are_stored_by_what_was_added() -> None:
    """What is not on disk is told once; what was there at the start counts; another period's is forgotten."""
    made = limits(Watched(), quota=Quota.parse("1 MB/day"))
    midnight = int(WALL) - 12 * 3600
    made.ledger.restore({"user alice": (midnight, 400), "user bob": (midnight, 1)})
    assert made.ledger.unsaved() == []
    lease = admit(made)
    lease.spend(UP, 100, START)
    rows = made.ledger.unsaved()
    assert rows == [("user alice", midnight, 100)]
    lease.spend(UP, 11, START)
    made.ledger.saved(rows)
    assert made.ledger.unsaved() == [("user alice", midnight, 11)]
    rows = made.ledger.unsaved()
    made.turn_periods(WALL + 86400)
    made.ledger.saved(rows)
    lease.spend(UP, 3, START)
    assert made.ledger.unsaved() == [("user alice", midnight + 86400, 3)]
    made.ledger.restore({"user alice": (midnight, 999)})
    assert made.ledger.unsaved() == [("user alice", midnight + 86400, 3)]
    fresh = limits(quota=Quota.parse("1 MB/day"))
    fresh.ledger.restore({})
    assert fresh.ledger.unsaved() == []


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 100_000_000)), max_size=50))
def test_a_bucket_never_lets_more_through_than_flowed_in(steps: list[tuple[int, int]]) -> None:
    """Whatever is asked for and when: at most the burst and the rate times the time."""
    lease = admit(limits(bandwidth=Bandwidth(1e6)))
    now, moved = START, 0
    for wanted, pause in steps:
        now += pause
        taken = min(wanted, lease.spend(UP, 0, now))
        lease.spend(UP, taken, now)
        moved += taken
        assert moved <= 100_000 + (now - START) / 1e9 * 1e6 + len(steps)


def test_an_account_says_what_it_is() -> None:
    """For logs."""
    assert Account("server", Terms(), Ledger()).name == "server"


def test_among_whom_a_session_waits() -> None:
    """Those of its user; without one, those of clients that have the same limits."""
    everybody = Limits(Ledger(), server=Terms(connections=1))
    client = CLIENT
    assert everybody.queue_of("alice", client) == "alice"
    assert everybody.queue_of(None, client) == everybody.everybody
    assert not everybody.waits


# --- what a program says of a user ---


def of_program(groups: tuple[str, ...] = (), **terms: Any) -> Given:
    """What a program says."""
    return Given(frozenset(groups), Terms(**terms) if terms else None)


def test_a_program_may_limit_a_user_that_the_configuration_does_not_know() -> None:
    """All sessions of that user share the account; another user has another one, and nobody else has any."""
    made, two = Limits(Ledger()), of_program(connections=2)
    leases = [made.admit("eve", CLIENT, START, WALL, two) for _ in range(2)]
    with pytest.raises(LimitExceeded, match="limit: user eve: 2 connections at once"):
        made.admit("eve", CLIENT, START, WALL, two)
    assert made.admit("mallory", CLIENT, START, WALL, two) is not None
    assert made.admit("eve", CLIENT, START, WALL) is None
    assert leases[0] is not None
    leases[0].release()
    assert made.admit("eve", CLIENT, START, WALL, two) is not None


def test_what_a_program_says_later_holds_then() -> None:
    """What was counted stays counted, and no account is kept twice."""
    made = limits(quota=Quota.parse("1 MB/day"))
    lease = made.admit("alice", CLIENT, START, WALL, of_program(quota=Quota.parse("2 kB/day")))
    assert lease is not None
    lease.spend(UP, 1500, START)
    for _ in range(3):
        again = made.admit("alice", CLIENT, START, WALL, of_program(quota=Quota.parse("3 kB/day")))
        assert again is not None
        assert again.left == 1500
        other = made.admit("alice", CLIENT, START, WALL, of_program(quota=Quota.parse("4 kB/day")))
        assert other is not None
        assert other.left == 2500
    assert len(made.with_quota) == 1


def test_a_program_may_put_a_user_into_groups() -> None:
    """Besides those of the configuration: members share what the group may use; nothing is kept of the user."""
    groups = {"ops": Terms(connections=1), "dev": Terms(connections=1)}
    made = Limits(Ledger(), groups=groups, members={"alice": ("dev",)}, users={"carol": Terms(connections=9)})
    first = made.admit("alice", CLIENT, START, WALL, of_program(("ops", "unknown")))
    assert first is not None
    assert {account.name for account in first.accounts} == {"group ops", "group dev"}
    for user in ("bob", "carol"):
        with pytest.raises(LimitExceeded, match="group ops"):
            made.admit(user, CLIENT, START, WALL, of_program(("ops",)))
    assert made.admit("bob", CLIENT, START, WALL, of_program(("unknown",))) is None
    assert set(made.by_given) == {"carol"}


def test_the_limits_that_a_program_gives_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user beyond it is refused, those that are known are not."""
    monkeypatch.setattr("tabi.policy.limits.MAX_GIVEN", 2)
    made, some = Limits(Ledger()), of_program(connections=5)
    for user in ("a", "b", "a"):
        assert made.admit(user, CLIENT, START, WALL, some) is not None
    with pytest.raises(LimitExceeded, match="2 users have limits that a program gives them"):
        made.admit("c", CLIENT, START, WALL, some)
