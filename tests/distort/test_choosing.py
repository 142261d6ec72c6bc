"""Choosing: each entry is asked once for each session, and is known again after a change."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from distorting import distort
from tabi.distort.choosing import MOST_KNOWN, Chosen, Group, add, known_again
from tabi.distort.draws import Entry
from tabi.policy.distorts import Distort, Distorts
from tabi.session import Session
from tabi.wire.address import Address


def session(host: str = "here.test") -> Session:
    """One that goes there."""
    made = Session(1, "test", Address(IPv4Address("127.0.0.1"), 1), 0.0)
    made.command, made.destination = "connect", Address(host, 80)
    return made


def group(*distorts: Distort, entries: dict[Distort, Entry] | None = None) -> Group:
    """Entries that are asked together."""
    known = {one: Entry(one, 0.0) for one in distorts} if entries is None else entries
    return Group(Distorts(distorts), known)


def test_each_entry_is_asked_once() -> None:
    """First those of dialling, then all: what was drawn stays, and nothing is drawn twice."""
    early, late = distort("early", {"refuse": 5}), distort("late")
    entries = {one: Entry(one, 0.0) for one in (early, late)}
    at_dial, every = group(early, entries=entries), group(early, late, entries=entries)
    one = session()
    assert [drawn.entry.distort for drawn in at_dial.ask(one, 0.0)] == [early]
    assert [drawn.entry.distort for drawn in every.ask(one, 0.0)] == [early, late]
    assert every.ask(one, 0.0) is at_dial.ask(one, 0.0) is one.distorted
    assert [entry.matched for entry in entries.values()] == [1, 1]


def test_who_was_not_drawn_is_not_drawn_later() -> None:
    """An entry with a probability has decided."""
    rare = distort("rare", probability=0.01, seed=3)
    one = session()
    made = group(rare)
    assert made.ask(one, 0.0) == ()
    made.ask(one, 0.0)
    assert made.entries[rare].matched == 1


def test_sessions_that_no_entry_matches_share_what_they_have() -> None:
    """They cost no object; an entry that comes later is asked."""
    first, second = distort("first", hosts=["other.test"]), distort("second")
    entries = {one: Entry(one, 0.0) for one in (first, second)}
    made = group(first, entries=entries)
    one = session()
    assert made.ask(one, 0.0) is made.none is made.ask(session(), 0.0)
    found = group(first, second, entries=entries).ask(one, 0.0)
    assert [drawn.entry.distort for drawn in found] == [second]
    assert isinstance(found, Chosen)
    assert len(made) == 1


def test_what_is_gone_is_forgotten_within_a_bound() -> None:
    """So many are remembered for the log; those that are there always are, and what is gone is not asked any more."""
    found: Chosen | None = None
    entries = [Entry(distort(f"{number}"), 0.0) for number in range(2 * MOST_KNOWN)]
    for number, entry in enumerate(entries):
        entry.gone = number > 2
        drawn = entry.draw()
        assert drawn is not None
        found = add(found, (drawn,), frozenset((entry,)))
        assert len(found) <= MOST_KNOWN
        assert [one.entry for one in found[:3]] == entries[: min(3, number + 1)]
    assert found is not None
    assert found.asked <= {*entries[:3], entries[-1]}


SAME: dict[str, Any] = {"hosts": ["a.test"], "probability": 0.5}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (distort("a"), distort("a"), True),
        (distort("a", number=1), distort("a", number=7), True),
        (distort(None, number=0), distort(None, number=3), True),
        (distort("a"), distort("b"), True),
        (distort("a", **SAME), distort("a", {"latency": 2}, **SAME), True),
        (distort("a", **SAME), distort("b", {"latency": 2}, **SAME), False),
        (distort("a", hosts=["a.test"]), distort("a", hosts=["b.test"]), False),
        (distort("a", probability=0.5), distort("a", probability=0.6), False),
        (distort("a", seed=1), distort("a", seed=2), False),
        (distort("a", live=True), distort("a"), False),
        (distort("a"), distort("a", {"latency": 1, "every": "30 s good, 5 s gone"}), True),
    ],
)
def test_which_entry_is_which(before: Distort, after: Distort, same: bool) -> None:
    """After a reload: those that say the same, in whatever place; and those of the same name for the same sessions."""
    entry = Entry(before, 0.0)
    assert known_again([after], [entry]) == ({after: entry} if same else {})


def test_each_is_known_again_once() -> None:
    """Two that say the same are two; one and the same object is itself before all others."""
    first, second = distort("a"), distort("a")
    entries = [Entry(first, 0.0), Entry(second, 0.0)]
    assert known_again([second, first], entries) == {second: entries[1], first: entries[0]}
    others = [distort("a"), distort("a"), distort("a")]
    assert known_again(others, entries) == {others[0]: entries[0], others[1]: entries[1]}
    changed, same = distort("a", {"latency": 2}), distort("b")
    assert known_again([changed, same], entries) == {same: entries[0], changed: entries[1]}
