"""Deadlines: many things with one length of time and one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from tabi.net import timeouts
from tabi.net.reactor import Reactor, get_reactor
from tabi.net.timeouts import FixedTimeouts, IdleRules, IdleTimeouts


class Timer:
    """What call_later returns."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """As asyncio's."""
        self.cancelled = True


class Clock:
    """A loop's timers and the time, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """As the loop's."""
        timer = Timer(self.now + delay, callback)
        self.timers.append(timer)
        return timer

    def waiting(self) -> list[Timer]:
        """Timers that would still fire."""
        return [timer for timer in self.timers if not timer.cancelled]

    def pass_time(self, seconds: float) -> None:
        """Move the time on, firing what is due."""
        end = self.now + seconds
        while due := [timer for timer in self.waiting() if timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.callback()
        self.now = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the module under test reads."""
    clock = Clock()
    monkeypatch.setattr(timeouts, "monotonic", lambda: clock.now)
    return clock


def deadlines(clock: Clock, seconds: float) -> FixedTimeouts:
    """Deadlines on a clock of ours."""
    return FixedTimeouts(cast("asyncio.AbstractEventLoop", clock), seconds)


class Thing:
    """Notes when it expired."""

    def __init__(self, clock: Clock, then: Callable[[], Any] | None = None) -> None:
        self.clock = clock
        self.then = then
        self.expired: list[float] = []

    def expire(self) -> None:
        """Its time is over."""
        self.expired.append(self.clock.now)
        if self.then is not None:
            self.then()


def test_each_thing_has_its_time(clock: Clock) -> None:
    """Everything expires once, its seconds after its own start."""
    under_test = deadlines(clock, 10)
    first, second = Thing(clock), Thing(clock)
    under_test.start(first)
    clock.pass_time(4)
    under_test.start(second)
    assert under_test.left(first) == 6
    assert under_test.left(second) == 10
    clock.pass_time(5.9)
    assert (first.expired, second.expired) == ([], [])
    clock.pass_time(100)
    assert (first.expired, second.expired) == ([1010], [1014])
    assert under_test.left(first) == 0
    assert not clock.waiting(), "nothing waits, so no timer does"


def test_what_was_done_in_time_does_not_expire(clock: Clock) -> None:
    """stop() in time, twice, or of what never began, is all the same."""
    under_test = deadlines(clock, 10)
    done, other = Thing(clock), Thing(clock)
    under_test.start(done)
    under_test.start(other)
    clock.pass_time(9)
    under_test.stop(done)
    under_test.stop(done)
    under_test.stop(Thing(clock))
    assert under_test.left(done) == 0
    clock.pass_time(100)
    assert (done.expired, other.expired) == ([], [1010])


def test_there_is_one_timer(clock: Clock) -> None:
    """However many wait, the loop has one timer; starting and stopping touch none."""
    under_test = deadlines(clock, 10)
    things = [Thing(clock) for _ in range(50)]
    for thing in things:
        under_test.start(thing)
        clock.pass_time(0.1)
    assert len(clock.waiting()) == 1
    for thing in things[:-1]:
        under_test.stop(thing)
    assert len(clock.waiting()) == 1
    clock.pass_time(6)
    assert len(clock.waiting()) == 1, "the last one still waits"
    clock.pass_time(10)
    assert [len(thing.expired) for thing in things] == [0] * 49 + [1]
    assert not clock.waiting()


def test_the_timer_starts_again(clock: Clock) -> None:
    """After a pause with nothing to wait for, the next thing expires as the first did."""
    under_test = deadlines(clock, 10)
    under_test.start(Thing(clock))
    clock.pass_time(50)
    late = Thing(clock)
    under_test.start(late)
    clock.pass_time(10)
    assert late.expired == [1060]


def test_an_expiry_may_stop_or_start_others(clock: Clock) -> None:
    """What is overdue at the same moment but stopped by the one before does not expire; a new start counts."""
    under_test = deadlines(clock, 10)
    second = Thing(clock)
    third = Thing(clock)

    def then() -> None:
        under_test.stop(second)
        under_test.start(third)

    first = Thing(clock, then)
    under_test.start(first)
    under_test.start(second)
    clock.pass_time(10)
    assert (first.expired, second.expired, third.expired) == ([1010], [], [])
    clock.pass_time(10)
    assert third.expired == [1020]


def test_after_close_nothing_expires(clock: Clock) -> None:
    """The timer is cancelled, with and without one; things are let go."""
    under_test = deadlines(clock, 10)
    under_test.close()
    thing = Thing(clock)
    under_test.start(thing)
    under_test.close()
    assert not clock.waiting()
    assert not under_test.pending
    clock.pass_time(100)
    assert thing.expired == []


@given(st.lists(st.tuples(st.sampled_from(["start", "stop", "wait"]), st.integers(0, 9)), max_size=60))
def test_any_sequence(steps: list[tuple[str, int]]) -> None:
    """Whatever starts, stops and passes: each thing expires exactly at its time, unless it was stopped before."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeouts, "monotonic", lambda: clock.now)
        under_test = deadlines(clock, 10)
        things: list[Thing] = []
        due: dict[Thing, float] = {}
        for step, number in steps:
            if step == "start":
                things.append(Thing(clock))
                under_test.start(things[-1])
                due[things[-1]] = clock.now + 10
            elif step == "wait":
                clock.pass_time(number)
            elif number < len(things):
                under_test.stop(things[number])
                if due.get(things[number], 0) > clock.now:
                    del due[things[number]]
        clock.pass_time(20)
        assert {thing: [when] for thing, when in due.items()} == {
            thing: thing.expired for thing in things if thing.expired
        }


def test_on_a_loop(run: Run) -> None:
    """With a real loop and its timer, on each hosting."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        class Waiter:
            def expire(self) -> None:
                over.set_result(None)

        under_test = FixedTimeouts(loop, 0.01)
        under_test.start(Waiter())
        await over
        under_test.close()

    run(main)


# --- Quiet ---


class Mover(Thing):
    """A thing that moves when a test says so."""

    moved = 0
    rule: str | None = None


def quiet(clock: Clock, seconds: float) -> IdleTimeouts:
    """The same on a clock of ours."""
    return IdleTimeouts(Reactor(cast("asyncio.AbstractEventLoop", clock)), seconds)


def test_what_rests_ends_and_what_moves_goes_on(clock: Clock) -> None:
    """After the limit, and at most a tenth of it later; whatever moved meanwhile has its time from then on."""
    watched = quiet(clock, 10)
    resting, moving = Mover(clock), Mover(clock)
    resting.then = lambda: watched.forget(resting)
    watched.watch(resting)
    watched.watch(moving)
    for _ in range(8):
        clock.pass_time(4)
        moving.moved += 1
    assert len(resting.expired) == 1
    assert 1010 <= resting.expired[0] <= 1011
    assert moving.expired == []
    clock.pass_time(12)
    assert len(moving.expired) >= 1


def test_what_goes_on_resting_is_told_again(clock: Clock) -> None:
    """One call may come when nothing can be ended; the next sweep calls again."""
    watched = quiet(clock, 1)
    thing = Mover(clock)
    watched.watch(thing)
    clock.pass_time(1.35)
    assert len(thing.expired) > 1
    watched.forget(thing)
    told = len(thing.expired)
    clock.pass_time(5)
    assert len(thing.expired) == told


def test_without_anything_to_watch_there_is_no_timer(clock: Clock) -> None:
    """The last sweep finds nothing and asks for no other; the next thing begins anew. Closing ends everything."""
    watched = quiet(clock, 10)
    watched.forget(Mover(clock))
    assert clock.waiting() == []
    thing = Mover(clock)
    watched.watch(thing)
    watched.forget(thing)
    clock.pass_time(2)
    assert clock.waiting() == []
    watched.watch(thing)
    assert len(clock.waiting()) == 1
    watched.close()
    watched.close()
    assert clock.waiting() == []
    clock.pass_time(30)
    assert thing.expired == []


def test_a_rule_may_say_how_long_something_rests() -> None:
    """Longer or shorter than all others; the sweeps are often enough for the shortest."""
    rules = IdleRules()
    assert (rules.of("x", 10.0), rules.of(None, 10.0), rules.interval(10.0)) == (10.0, 10.0, 1.0)
    rules.seconds = {"short": 1.0, "long": inf}
    assert [rules.of(name, 10.0) for name in ("short", "long", "x", None)] == [1.0, inf, 10.0, 10.0]
    assert rules.interval(10.0) == 0.1
    rules.seconds = {"long": inf}
    assert rules.interval(inf) == 60.0


def test_what_a_rule_has_allowed_rests_as_long_as_the_rule_says() -> None:
    """All others as long as everything."""

    class Thing:
        moved = 0

        def __init__(self, rule: str | None) -> None:
            self.rule = rule
            self.expired = 0

        def expire(self) -> None:
            self.expired += 1

    async def main() -> None:
        rules = IdleRules()
        rules.seconds = {"short": 1.0, "long": inf}
        idle = IdleTimeouts(get_reactor(), 10.0, rules)
        things = [Thing(rule) for rule in ("short", "long", None)]
        for thing in things:
            idle.watch(thing)
        now = monotonic()
        idle.sweep(now + 5)
        assert [thing.expired for thing in things] == [1, 0, 0]
        idle.sweep(now + 1e8)
        assert [thing.expired for thing in things] == [2, 0, 1]
        idle.close()

    asyncio.run(main())
