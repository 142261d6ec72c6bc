"""Draws: which sessions an entry is drawn for, and the same random numbers with the same seed."""

from __future__ import annotations

import pytest

from tabi.distort.draws import NOTHING, Bucket, Entry
from tabi.policy.distorts import Distort
from tabi.policy.faults import Fault, Line
from tabi.policy.limits import DOWN, UP
from tabi.policy.rules import Conditions, Rule, Texts
from tabi.policy.schedule import Cycle, Schedule

RULE = Rule(0, None, "allow", None, None, Conditions(), Texts())


def make(probability: float = 1.0, seed: int | None = None, **more: object) -> Entry:
    """An entry that was set at 100 by the loop's clock, and at 1,000,000 by the wall's."""
    distort = Distort(RULE, "one", probability=probability, seed=seed, **more)  # type: ignore[arg-type]
    return Entry(distort, 100.0, lambda: 1_000_000.0)


@pytest.mark.parametrize("seed", [None, 7])
def test_all_and_none(seed: int | None) -> None:
    """A probability of 1 is everybody and takes no random number; of 0 it is nobody, and has no effect."""
    assert all(make(1.0, seed).draw() for _ in range(100))
    entry = make(0.0, seed)
    assert not any(entry.draw() for _ in range(100))
    assert (entry.matched, entry.chosen, entry.active) == (100, 0, 0)


@pytest.mark.parametrize("seed", [None, 7])
def test_a_share_of_the_sessions(seed: int | None) -> None:
    """Is drawn, and counted."""
    entry = make(0.3, seed)
    drawn = [entry.draw() for _ in range(5000)]
    assert sum(one is not None for one in drawn) == entry.chosen == pytest.approx(1500, abs=200)
    assert [one.number for one in drawn if one][:3] == [number for number, one in enumerate(drawn) if one][:3]


def test_the_same_seed_draws_the_same() -> None:
    """Of the sessions, in their order; another seed, or another use, draws others."""

    def who(seed: int) -> list[bool]:
        entry = make(0.5, seed)
        return [entry.draw() is not None for _ in range(200)]

    assert who(7) == who(7) != who(8)


def test_random_numbers_of_a_session() -> None:
    """Those of each session, direction and use are its own, and come again with the same seed."""

    def numbers(seed: int | None, direction: int, use: str, skip: int = 0) -> float:
        entry = make(1.0, seed)
        for _ in range(skip):
            entry.draw()
        drawn = entry.draw()
        assert drawn is not None
        return drawn.random(direction, use).random()

    asked = [(UP, "", 0), (DOWN, "", 0), (UP, "loss", 0), (UP, "", 1)]
    assert [numbers(7, *one) for one in asked] == [numbers(7, *one) for one in asked]
    assert len({numbers(7, *one) for one in asked}) == len(asked)
    assert numbers(7, UP, "") != numbers(8, UP, "")
    assert numbers(None, UP, "") != numbers(None, UP, "")


def test_without_a_seed_it_has_one_source() -> None:
    """Of the entry: a session costs none."""
    entry = make()
    one, two = entry.draw(), entry.draw()
    assert one is not None
    assert two is not None
    assert one.random(UP) is two.random(DOWN, "loss") is entry.dice


def test_it_acts_as_its_schedule_says() -> None:
    """Its cycle begins when it was set, by a clock that nobody moves; without a schedule it always acts."""
    assert make().acts(0.0)
    entry = make(schedule=Schedule(every=Cycle("30 s good, 5 s gone", 30, 5)))
    assert [entry.acts(100.0 + seconds) for seconds in (0, 29, 31, 34, 36, 66)] == [
        False,
        False,
        True,
        True,
        False,
        True,
    ]
    assert not make(schedule=Schedule(begin=1_000_001.0)).acts(100.0)
    assert make(schedule=Schedule(begin=999_999.0)).acts(100.0)


def test_what_it_does() -> None:
    """The fault of the entry, or nothing; each direction shares a line of its own."""
    fault = Fault(up=Line(latency=1.0))
    assert make(fault=fault).fault is fault
    assert make().fault is NOTHING
    first, second = make().buckets
    assert first is not second
    assert Bucket().free_at == -1.0
