"""Who is chosen among members that are in: in turn, by lot, by load and by hash."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import BALANCES, kill, pool, take
from tabi.policy.balance import Balance, Member, Queue
from tabi.policy.pool import Pool


def test_round_robin_takes_one_after_the_other() -> None:
    """In the order of the configuration, whatever their weights and loads are."""
    assert take(pool(weights=(5, 1, 2)), 7) == "abcabca"


def test_weighted_turns_are_spread() -> None:
    """Each as often as its weight says; a heavy one has its turns between those of light ones, not in a row."""
    names = take(pool("weighted", (5, 1, 1)), 700)
    assert Counter(names) == {"a": 500, "b": 100, "c": 100}
    assert "aaaaa" not in names
    assert "aaa" not in take(pool("weighted", (10, *[1] * 10)), 200)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 300))
def test_weighted_turns_are_fair_at_every_moment(weights: list[int], count: int) -> None:
    """After any number of choices everyone is within a turn of its part for each member that there is."""
    found = Counter(take(pool("weighted", weights), count))
    for i, weight in enumerate(weights):
        assert abs(found[chr(97 + i)] - count * weight / sum(weights)) <= 1 + len(weights) / 2


def test_random_goes_by_weight_and_by_its_seed() -> None:
    """In the long run each its part; the same seed draws the same, and who was tried is left out of the draw."""
    made = pool("random", (6, 3, 1))
    found = Counter(take(made, 10_000))
    assert [round(found[name] / 1000) for name in "abc"] == [6, 3, 1]
    assert take(pool("random"), 50) == take(pool("random"), 50)
    a, b, c = made.members
    found = Counter(take(made, 1000, tried={a}))
    assert found["b"] > 2 * found["c"] > 0
    assert found["a"] == 0
    assert take(made, 1, tried={a, b, c}) == "-"


def test_random_draws_the_same_after_a_return() -> None:
    """Members have their old places when they come back, whatever the order."""
    made, other = pool("random"), pool("random")
    for name in "ab":
        kill(made, name)
    made.worked(made.members[1])
    made.worked(made.members[0])
    assert take(made, 50) == take(other, 50)


def test_least_connections_fills_up_evenly() -> None:
    """The one with the fewest; of equals the one whose last change is longest ago, so that single requests rotate."""
    made = pool("least-connections")
    a, b, _ = made.members
    assert take(made, 6) == "abcabc"
    made.end(b)
    made.end(b)
    made.end(a)
    assert take(made, 3) == "bab"
    made = pool("least-connections")
    names = ""
    for _ in range(6):
        member = made.choose("", 0)
        assert member is not None
        made.begin(member)
        made.end(member)
        names += member.name
    assert names == "abcabc"


def test_least_connections_goes_by_weight() -> None:
    """A member of three times the weight has three times as many at once, the heaviest the first one."""
    made = pool("least-connections", (1, 3))
    assert take(made, 1) == "b"
    take(made, 39)
    assert [member.running for member in made.members] == [10, 30]


def test_a_thousand_members_share_evenly() -> None:
    """Requests that come and go leave nobody with more than one above another, and the heap stays small."""
    made, random = Pool([Member(str(i)) for i in range(1000)], "least-connections"), Random(1)
    running: list[Member] = []
    for _ in range(10_000):
        member = made.choose("", 0)
        assert member is not None
        assert member.running == min(other.running for other in [*random.sample(made.members, 20), member])
        made.begin(member)
        running.append(member)
        if len(running) > 2500:
            made.end(running.pop(random.randrange(len(running))))
    (group,) = made.groups.values()
    assert len(group.balancer.queue.heap) <= 2016  # type: ignore[attr-defined]


def test_a_key_is_hashed_to_the_same_member() -> None:
    """In every process and every time, by names alone: the order of members does not matter."""
    keys = [f"client {i}" for i in range(100)]
    made, other = pool("hash"), Pool([Member(name) for name in "cab"], "hash")
    assert [take(made, 1, key) for key in keys] == [take(other, 1, key) for key in keys]
    assert "".join(take(made, 1, key) for key in keys[:8]) == "ccbbbbcb"


def test_hashing_goes_by_weight() -> None:
    """Shares are those of the weights, within what the points of the ring allow."""
    made = pool("hash", (6, 3, 1))
    found = Counter(take(made, 1, str(i)) for i in range(10_000))
    for name, part in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert found[name] / 10_000 == pytest.approx(part, rel=0.25)


def test_only_the_keys_of_who_is_out_move() -> None:
    """They are spread over all others, and come back; a key of another's is never anybody's trial."""
    made = pool("hash", (1,) * 8)
    before = {str(i): take(made, 1, str(i)) for i in range(800)}
    member = kill(made, "c")
    after = {key: take(made, 1, key) for key in before}
    assert {key for key in before if before[key] != after[key]} == {key for key in before if before[key] == "c"}
    assert {after[key] for key in before if before[key] == "c"} == set("abdefgh")
    assert {key for key in before if (found := made.choose(key, 2)) and found is member} == {
        key for key in before if before[key] == "c"
    }
    key = next(key for key in before if before[key] == "c")
    assert take(made, 2, key, now=2) == "c" + after[key]
    made.worked(member)
    assert {key: take(made, 1, key) for key in before} == before


def test_a_member_says_its_name() -> None:
    """For logs; a pool without a source of chance has one of its own."""
    assert repr(Member("de-1")) == "Member(de-1)"
    assert take(Pool([Member("a")], "random"), 1) == "a"


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 9)), max_size=60), st.sets(st.integers(0, 5)))
def test_a_queue_is_a_sorted_list(steps: list[tuple[int, int | None]], tried: set[int]) -> None:
    """Whatever is put and dropped: the least number, the older of equals, and never one that was tried."""
    members = [Member(str(i)) for i in range(6)]
    queue, model = Queue(), dict[Member, tuple[int, int]]()
    for turn, (i, number) in enumerate(steps):
        if number is None:
            queue.drop(members[i])
            model.pop(members[i], None)
        else:
            queue.put(members[i], number)
            model[members[i]] = number, turn
        for most in (3, 9):
            out = {members[i] for i in tried}
            left = [member for member in model if member not in out and model[member][0] <= most]
            entry = queue.first(out, most)
            assert (entry and entry[2]) == min(left, key=lambda member: model[member], default=None)
        assert len(queue.heap) <= 2 * 6 + 16


@pytest.mark.parametrize("balance", BALANCES)
def test_a_choice_can_be_foreseen(balance: Balance) -> None:
    """Whoever asks changes nothing; by lot nobody can know, unless there is but one."""
    asked, other = pool(balance, (2, 1, 1)), pool(balance, (2, 1, 1))
    for turn in range(12):
        tried = asked.members[: turn % 4]
        for _ in range(3):
            found = asked.foresee(str(turn), 0, tried)
        chosen = other.choose(str(turn), 0, other.members[: turn % 4])
        if chosen is None:
            assert found is None
        elif balance == "random" and turn % 4 < 2:
            assert found is not None
            assert (found.member, found.among) == (None, 3 - turn % 4)
        else:
            assert found is not None
            assert found.member is not None
            assert found.member.name == chosen.name
        assert take(asked, 1, str(turn), tried=tried) == ("-" if chosen is None else chosen.name)
        if chosen is not None:
            other.begin(chosen)


@pytest.mark.parametrize(
    ("balance", "why"),
    [
        ("round-robin", "it has the next turn"),
        ("weighted", "it has the next turn"),
        ("random", "drawn by weight"),
        ("least-connections", "it has the fewest requests for its weight"),
        ("sticky", "it has the fewest requests for its weight"),
        ("hash", "the key's hash leads to it"),
    ],
)
def test_a_choice_has_its_reason(balance: Balance, why: str) -> None:
    """For people who ask which member it would be."""
    found = pool(balance).foresee("x", 0)
    assert found is not None
    assert found.why == why


def test_nobody_is_in() -> None:
    """The balancers that know only those that are in have nobody to give."""
    for balance in BALANCES:
        made = pool(balance)
        for member in made.members:
            kill(made, member.name)
        assert take(made, 1) == "-"
        assert made.foresee("", 0) is None


def test_what_ends_while_a_member_is_out_counts() -> None:
    """It comes back with the load that it really has."""
    made = pool("least-connections", (1, 1))
    a, _ = made.members
    take(made, 10)
    kill(made, "a")
    for _ in range(5):
        made.end(a)
    made.worked(a)
    assert take(made, 5) == "aaaaa"


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_that_is_none(weight: float) -> None:
    """Every member has a part."""
    with pytest.raises(ValueError, match="expected more than 0"):
        Member("a", weight)
