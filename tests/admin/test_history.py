"""The last hour: rows of what has been since the one before."""

from __future__ import annotations

from doubles import Clock
from tabi.admin.history import ROWS, History
from tabi.observe.exposition import Labels, Value


def samples(sessions: int, opened: int = 0, cpu: float = 0.0) -> dict[str, dict[Labels, Value]]:
    """What was counted so far."""
    return {
        "tabi_sessions_total": {(("close", "client"),): sessions, (("close", "denied"),): 2 * sessions},
        "tabi_sessions_open": {(("listener", "a"),): opened, (("listener", "b"),): 1},
        "tabi_octets_total": {(("direction", "up"),): 10 * sessions, (("direction", "down"),): 100 * sessions},
        "process_cpu_seconds_total": {(): cpu},
        "process_resident_memory_bytes": {(): 5_000},
        "tabi_dial_seconds": {(): (1, 2)},
    }


def test_a_row_has_rates() -> None:
    """For each second, from the second look on; a session that is open has begun."""
    clock = Clock()
    history = History(clock)
    history.add(samples(10, cpu=1.0))
    assert not history.rows
    clock.now += 10
    history.add(samples(20, 5, cpu=1.5))
    (row,) = history.rows
    assert (row["open"], row["memory"], row["time"]) == (6, 5_000, clock.now)
    assert (row["sessions_rate"], row["refused_rate"], row["up_rate"], row["down_rate"], row["cpu_rate"]) == (
        3.5,
        2,
        10,
        100,
        0.05,
    )


def test_no_rate_is_below_nothing() -> None:
    """Counts that begin anew, or a clock that was set back, make no such row."""
    clock = Clock()
    history = History(clock)
    history.add(samples(10))
    clock.now += 10
    history.add(samples(0))
    assert history.rows[-1]["down_rate"] == 0
    clock.now -= 100
    history.add(samples(5))
    assert len(history.rows) == 1


def test_members_have_their_health() -> None:
    """For each look, the latest last; one that is gone is forgotten."""
    history = History(Clock())
    a, b = ((("pool", "p"), ("member", name)) for name in "ab")
    for up in (1, 0):
        history.add({"tabi_member_up": {a: up, b: 1}})
    assert history.health == [
        {"pool": "p", "member": "a", "looks": "10"},
        {"pool": "p", "member": "b", "looks": "11"},
    ]
    for _ in range(2 * ROWS):
        history.add({"tabi_member_up": {b: 1}})
    assert history.health == [{"pool": "p", "member": "b", "looks": "1" * ROWS}]
    history.add({})
    assert history.health == []


def test_it_is_an_hour() -> None:
    """The oldest rows leave."""
    clock = Clock()
    history = History(clock)
    for _ in range(ROWS + 10):
        clock.now += 10
        history.add({})
    assert len(history.rows) == ROWS
