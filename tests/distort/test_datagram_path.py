"""How far a datagram is."""

from __future__ import annotations

import pytest

from tabi.distort.datagram_line import DatagramLine
from tabi.distort.datagram_path import COST, Path, Waiting, has_passed
from tabi.distort.draws import Entry
from tabi.policy.distorts import Distort
from tabi.policy.faults import Line
from tabi.policy.rules import Conditions, Rule, Texts
from tabi.wire.address import parse_address

RULE = Rule(0, None, "allow", None, None, Conditions(), Texts())
TO = parse_address("198.51.100.1:5000")


@pytest.fixture
def path() -> Path:
    """One with two entries."""
    made, entry = Path(), Entry(Distort(RULE, "one"), 0.0)
    made.lines = [(entry, DatagramLine(Line(), entry.dice)) for _ in range(2)]
    return made


def test_a_copy_is_as_far(path: Path) -> None:
    """It has the same to pass, at the same time, and goes its own way from there."""
    one = Waiting(1.0, path, "up", TO, b"abc")
    one.at = 1
    other = one.copy()
    assert (other.when, other.path, other.direction, other.address, other.payload) == (1.0, path, "up", TO, b"abc")
    assert (other.lines, other.at, other.octets) == (path.lines, 1, 3 + COST)
    other.at += 1
    assert one.at == 1


def test_what_it_has_passed(path: Path) -> None:
    """Of its own path, until it is gone."""
    one = Waiting(1.0, path, "up", TO, b"")
    one.at = 1
    first, second = (line for _, line in path.lines)
    assert [has_passed(one, path, line) for line in (first, second)] == [True, False]
    assert not has_passed(one, Path(), first)
    one.gone = True
    assert not has_passed(one, path, first)
