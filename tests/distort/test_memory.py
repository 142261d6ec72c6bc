"""Memory: what all stages hold together has a bound, and within it each may hold something."""

from __future__ import annotations

from tabi.distort.memory import HELD_BY_ALL, HELD_BY_ONE, LEAST, MEMORY, Memory


def test_one_holds_so_much_and_no_more() -> None:
    """While there is plenty."""
    memory = Memory()
    assert (memory.room(0), memory.room(HELD_BY_ONE - 5), memory.room(HELD_BY_ONE)) == (HELD_BY_ONE, 5, 0)


def test_near_the_bound_it_is_what_is_left() -> None:
    """And a little, so that nobody stands still."""
    memory = Memory(1000)
    memory.held = 900
    assert memory.room(0) == 100 + LEAST


def test_beyond_the_bound_each_holds_a_little() -> None:
    """One that holds more takes in nothing."""
    memory = Memory(1000)
    memory.held = 1000
    assert (memory.room(0), memory.room(LEAST - 1), memory.room(LEAST)) == (LEAST, 1, 0)
    assert memory.room(LEAST + 10) < 0


def test_that_of_the_process() -> None:
    """Has the bound that docs/bounds.md names."""
    assert MEMORY.most == HELD_BY_ALL == 256 << 20
