"""The queue that is fair between clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy import fair_queue as module
from tabi.policy.fair_queue import FAILED_SECONDS, FairQueue


def take(found: FairQueue[str], now: float = 0.0) -> str | None:
    """The next job."""
    taken = found.take(now)
    return None if taken is None else taken[1]


def take_all(found: FairQueue[str], now: float = 0.0) -> list[str]:
    """All jobs, in the order in which they are taken."""
    jobs = []
    while (job := take(found, now)) is not None:
        jobs.append(job)
    return jobs


def test_the_newest_is_first() -> None:
    """Of one client, and among clients without a failure: who came first is the first to have given up."""
    found: FairQueue[str] = FairQueue(100, 1000)
    for job in ("a1", "a2", "a1"):
        found.add("a", job)
    found.add("b", "b")
    found.add("c", "c")
    assert take_all(found) == ["c", "b", "a1", "a2"]


def test_who_has_failed_comes_after_the_others() -> None:
    """However many jobs it has, and from however many clients; until its failure is long enough ago."""
    found: FairQueue[str] = FairQueue(100, 1000)
    for client in ("bad", "worse"):
        found.fail(client, 10.0)
        found.add(client, f"{client}1")
        found.add(client, f"{client}2")
    found.add("good", "good")
    found.add("bad", "bad3")
    assert take(found, 11.0) == "good"
    assert found.take(11.0, without_failure=True) is None
    assert found.take(10.0 + FAILED_SECONDS, without_failure=True) == ("worse", "worse2")


def test_those_who_have_failed_have_their_turns() -> None:
    """Whose last failure is the longest ago is next: one mistake does not put anybody behind somebody who guesses."""
    found: FairQueue[str] = FairQueue(100, 1000)
    found.fail("once", 1.0)
    order = []
    for number in range(6):
        for client in ("x", "y"):
            found.add(client, f"{client}{number}")
        if number == 3:
            found.add("once", "once")
        taken = found.take(2.0)
        assert taken is not None
        order.append(taken[1][0])
        found.fail(taken[0], number + 2.0)
    assert order == ["y", "x", "y", "o", "x", "y"]


def test_failures_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are the longest ago go first."""
    monkeypatch.setattr(module, "FAILED_LIMIT", 3)
    found: FairQueue[str] = FairQueue(100, 1000)
    for number in range(5):
        found.fail(number, float(number))
    found.fail(2, 5.0)
    assert found.failures == {3: 3.0, 4: 4.0, 2: 5.0}
    found.fail(9, 4.0 + FAILED_SECONDS)
    assert list(found.failures) == [2, 9]


def test_a_job_of_several_clients_is_taken_once() -> None:
    """It is done at the first turn of any of them, and is then in nobody's line."""
    found: FairQueue[str] = FairQueue(100, 1000)
    found.fail("bad", 0.0)
    found.add("bad", "same")
    for number in range(3):
        found.add("bad", f"b{number}")
    found.add("good", "same")
    assert len(found) == 4
    assert found.take(0.0) == ("good", "same")
    assert take_all(found) == ["b2", "b1", "b0"]
    assert (found.lines, found.counts) == ({}, {})


def test_who_leaves_leaves_nothing() -> None:
    """A job is there as long as anybody waits for it, as often as they came."""
    found: FairQueue[str] = FairQueue(100, 1000)
    for client in ("a", "a", "b"):
        found.add(client, "job")
    found.remove("a", "job")
    assert list(found.lines) == ["a", "b"]
    found.remove("a", "job")
    assert list(found.lines) == ["b"]
    found.remove("b", "job")
    assert (found.lines, found.counts, found.take(0.0)) == ({}, {}, None)


def test_a_client_has_a_bound() -> None:
    """Beyond it its oldest job goes, however often it waits for that; others who wait for the same job stay."""
    found: FairQueue[str] = FairQueue(2, 1000)
    assert [found.add("a", job) for job in ("old", "old", "x")] == [None, None, None]
    found.add("b", "old")
    assert found.add("a", "y") == ("a", "old")
    assert (list(found.lines["a"]), list(found.lines["b"])) == (["x", "y"], ["old"])
    assert found.add("a", "z") == ("a", "x")
    assert "x" not in found.counts
    assert found.taken == 3


def test_all_clients_together_have_a_bound() -> None:
    """Beyond it the client whose turn is last gives up its oldest job, with all its places: others keep theirs."""
    found: FairQueue[str] = FairQueue(100, 4)
    found.fail("bad", 1.0)
    found.fail("worse", 2.0)
    for client, job in (("bad", "b"), ("worse", "w"), ("worse", "w"), ("good", "g1")):
        assert found.add(client, job) is None
    assert found.add("good", "g2") == ("worse", "w")
    assert found.add("worse", "w") is None
    assert found.add("good", "g3") == ("worse", "w")
    assert found.add("other", "o") == ("bad", "b")
    assert found.add("other", "o") == ("good", "g1")
    assert (found.taken, list(found.lines)) == (4, ["good", "other"])
    assert found.add("bad", "b") == ("bad", "b")


@given(st.lists(st.tuples(st.sampled_from("arft"), st.integers(0, 3), st.sampled_from(["x", "y", "z"]))))
def test_the_queue_stays_consistent(steps: list[tuple[str, int, str]]) -> None:
    """Whatever comes, leaves, fails and is taken: lines and counts have the same jobs, and none are empty."""
    found: FairQueue[str] = FairQueue(2, 5)
    for now, (step, client, job) in enumerate(steps):
        if step == "a":
            found.add(client, job)
        elif step == "t":
            found.take(now)
        elif step == "f":
            found.fail(client, now)
        elif client in found.counts.get(job, {}):
            found.remove(client, job)
        pairs = {(name, job) for name, line in found.lines.items() for job in line}
        assert pairs == {(name, job) for job, counts in found.counts.items() for name in counts}
        assert all(found.lines.values())
        assert all(min(counts.values()) > 0 for counts in found.counts.values())
        assert all(len(line) <= 2 for line in found.lines.values())
        assert found.taken == sum(sum(counts.values()) for counts in found.counts.values()) <= 5
