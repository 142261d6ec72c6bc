"""The pacer: who waits goes on when there is room, the small ones first, everybody in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Run
from tabi.config import LimitsConfig
from tabi.errors import LimitExceeded
from tabi.policy.ledger import Ledger
from tabi.policy.limits import DOWN, QUANTUM, UP, Lease
from tabi.policy.limits import Limits as Accounts
from tabi.policy.quantities import Bandwidth, Quota
from tabi.relay.pacer import LONG_TICK, TICK, Pacer
from tabi.wire.address import parse_host

CLIENT = parse_host("192.0.2.1")
RATE = 10_000_000
SECOND = 1_000_000_000


def limits(bandwidth: int | None = RATE, quota: str | None = None) -> LimitsConfig:
    """Terms of an account."""
    return LimitsConfig(
        bandwidth=None if bandwidth is None else Bandwidth.parse(bandwidth),
        quota=None if quota is None else Quota.parse(quota),
    )


class Timer:
    """What `call_later` returns."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop and a clock that go on only when they are told."""

    def __init__(self) -> None:
        self.now = SECOND
        self.calls: list[tuple[float, Callable[[], object], Timer]] = []
        loop: Any = self
        self.pacer = Pacer(loop, lambda: self.now)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """See asyncio."""
        timer = Timer()
        self.calls.append((seconds, callback, timer))
        return timer

    def tick(self, seconds: float = TICK) -> None:
        """Let that much time go by, and have the timer run."""
        self.now += int(seconds * SECOND)
        ((after, callback, _),) = [call for call in self.calls if not call[2].cancelled]
        assert after in (TICK, LONG_TICK)
        self.calls.clear()
        callback()

    def lease(self, accounts: Accounts, user: str = "alice") -> Lease:
        """One for a user."""
        lease = accounts.admit(user, CLIENT, self.now, 0)
        assert lease is not None
        return lease


class Sender:
    """Somebody who takes all the room that it gets."""

    def __init__(
        self, clock: Clock, lease: Lease, name: str = "", taken: int = 0, said: list[str] | None = None
    ) -> None:
        self.clock = clock
        self.lease = lease
        self.direction = UP
        self.taken = taken
        self.name = name
        self.said = [] if said is None else said
        self.rooms: list[int] = []

    def go(self, room: int) -> None:
        self.said.append(self.name)
        self.rooms.append(room)
        if room > 0:
            self.lease.spend(UP, room, self.clock.now)


def empty(clock: Clock, lease: Lease) -> None:
    """Use up what the bucket holds."""
    lease.spend(UP, lease.spend(UP, 0, clock.now), clock.now)
    assert lease.spend(UP, 0, clock.now) == 0


def test_who_waits_goes_on_with_what_has_flowed_in() -> None:
    """After a tick there is a tick's worth; the timer runs while somebody waits, and no longer."""
    clock = Clock()
    lease = clock.lease(Accounts(Ledger(), users={"alice": limits()}))
    empty(clock, lease)
    sender = Sender(clock, lease)
    clock.pacer.wait(sender)
    assert lease.crowded
    clock.tick(0.0001)  # 1,000 octets: less than a packet
    assert sender.rooms == []
    clock.tick()
    assert sender.rooms == [501_000]
    assert not lease.crowded
    assert not clock.calls
    assert not clock.pacer.queues


def test_the_small_ones_go_first() -> None:
    """Who has taken a quantum stands behind who has taken little, and needs more room to go on."""
    clock = Clock()
    accounts = Accounts(Ledger(), users={"alice": limits()})
    leases = [clock.lease(accounts) for _ in range(3)]
    empty(clock, leases[0])
    for lease in leases:
        assert lease.spend(UP, 0, clock.now) == 0
    said: list[str] = []
    senders = [
        Sender(clock, lease, name, taken, said)
        for lease, name, taken in zip(leases, "abc", (QUANTUM, QUANTUM, 0), strict=True)
    ]
    for sender in senders:
        clock.pacer.wait(sender)
    clock.tick(0.004)  # 40 kB: enough for a small one, not for a quantum
    assert said == ["c"]
    clock.tick(0.014)
    assert said == ["c", "a"]
    assert senders[0].taken == 0
    clock.tick(0.014)
    assert said == ["c", "a", "b"]


def test_a_lot_of_room_is_shared() -> None:
    """Nobody takes all of it while others stand behind."""
    clock = Clock()
    accounts = Accounts(Ledger(), users={"alice": limits(100 * RATE)})
    leases = [clock.lease(accounts) for _ in range(4)]
    empty(clock, leases[0])
    for lease in leases:
        lease.spend(UP, 0, clock.now)
    senders = [Sender(clock, lease) for lease in leases]
    for sender in senders:
        clock.pacer.wait(sender)
    clock.tick()
    rooms = [sender.rooms[0] for sender in senders]
    assert rooms == [12_500_000, 12_500_000, 12_500_000, 12_500_000]


def test_who_finds_another_account_short_waits_for_that_one() -> None:
    """A user who has room again while the server has none goes from one queue to the other."""
    clock = Clock()
    accounts = Accounts(Ledger(), users={"alice": limits()}, server=limits(100 * RATE))
    lease, other = clock.lease(accounts), clock.lease(accounts, "bob")
    empty(clock, lease)
    sender = Sender(clock, lease)
    clock.pacer.wait(sender)
    other.spend(UP, 2_000 * RATE, clock.now)  # far too much of the server's
    clock.tick()
    assert sender.rooms == []
    assert [account.name for account, _ in clock.pacer.queues] == ["server"]
    clock.tick(30)
    assert len(sender.rooms) == 1


def test_a_quota_that_is_used_up_meanwhile_is_told() -> None:
    """Who waits for a bucket hears of it too, and ends."""
    clock = Clock()
    lease = clock.lease(Accounts(Ledger(), users={"alice": limits(quota="2 MB/day")}))
    empty(clock, lease)
    sender = Sender(clock, lease)
    clock.pacer.wait(sender)
    lease.spend(DOWN, 2_000_000, clock.now)
    clock.tick()
    assert sender.rooms == [-1]


def test_who_begins_to_wait_within_a_round_keeps_the_timer() -> None:
    """One timer, whoever asks for it."""
    clock = Clock()
    lease = clock.lease(Accounts(Ledger(), users={"alice": limits()}))

    class Again(Sender):
        def go(self, room: int) -> None:
            super().go(room)
            if len(self.rooms) == 1:
                self.lease.spend(UP, 0, self.clock.now)
                self.clock.pacer.wait(self)

    empty(clock, lease)
    sender = Again(clock, lease)
    clock.pacer.wait(sender)
    clock.tick()
    assert len(clock.calls) == 1
    clock.tick()
    assert len(sender.rooms) == 2
    assert not clock.calls


def test_close_stops_the_timer() -> None:
    """Nothing runs behind it; without a timer it does nothing."""
    clock = Clock()
    clock.pacer.close()
    lease = clock.lease(Accounts(Ledger(), users={"alice": limits()}))
    empty(clock, lease)
    clock.pacer.wait(Sender(clock, lease))
    clock.pacer.close()
    assert clock.calls[0][2].cancelled


def test_a_task_waits_for_room(run: Run) -> None:
    """`take` returns at once while there is room, else when there is, and charges what it gives; it says when there
    never will be any."""

    async def main() -> None:
        pacer = Pacer(asyncio.get_running_loop())
        accounts = Accounts(Ledger(), users={"alice": limits(100_000, quota="5 MB/day")})
        lease = accounts.admit("alice", CLIENT, pacer.time(), 0)
        assert lease is not None
        assert await pacer.take(lease, UP, 1000) == 1000
        assert 8_000 < await pacer.take(lease, UP, 2_000_000) <= 10_000
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(pacer.take(lease, UP, 1))
            await asyncio.sleep(0)
            waiting.cancel()
        assert await pacer.take(lease, UP, 1) == 1  # behind the one that has gone
        assert not pacer.queues
        lease.spend(UP, 5_000_000, pacer.time())
        with pytest.raises(LimitExceeded, match="the quota of 5 MB/day is used up") as caught:
            await pacer.take(lease, UP, 1)
        assert caught.value.limit == "quota"
        pacer.close()

    run(main)


def test_a_task_whose_session_is_over_goes_no_further(run: Run) -> None:
    """A limit of time ends it where it looks next."""

    async def main() -> None:
        pacer = Pacer(asyncio.get_running_loop())
        lease = Accounts(Ledger(), users={"alice": limits()}).admit("alice", CLIENT, pacer.time(), 0)
        assert lease is not None
        lease.end(LimitExceeded("limit: user alice: 1 s for a session", "max_session"))
        with pytest.raises(LimitExceeded, match="1 s for a session"):
            await pacer.take(lease, DOWN, 1)

    run(main)


def test_those_who_have_taken_much_wait_longer_for_a_round() -> None:
    """A round costs a wake-up: a long transfer does with few of them; who comes with little has one soon."""
    clock = Clock()
    accounts = Accounts(Ledger(), users={"alice": limits()})
    leases = [clock.lease(accounts) for _ in range(2)]
    empty(clock, leases[0])
    leases[1].spend(UP, 0, clock.now)
    heavy, light = Sender(clock, leases[0], taken=QUANTUM), Sender(clock, leases[1])
    clock.pacer.wait(heavy)
    clock.pacer.wait(heavy)
    assert [seconds for seconds, _, timer in clock.calls if not timer.cancelled] == [LONG_TICK]
    clock.pacer.wait(light)
    assert [seconds for seconds, _, timer in clock.calls if not timer.cancelled] == [TICK]


def test_a_late_round_loses_nothing() -> None:
    """What has flowed in meanwhile goes to who waited for it, also where it is more than the bucket holds."""
    clock = Clock()
    lease = clock.lease(Accounts(Ledger(), users={"alice": limits()}))
    empty(clock, lease)
    sender = Sender(clock, lease, taken=QUANTUM)
    clock.pacer.wait(sender)
    clock.tick(0.5)
    assert sender.rooms == [RATE // 2]
    assert lease.spend(UP, 0, clock.now + SECOND) == RATE // 10
