"""Pools with a clock of the test's own: who is chosen, who is out and until when, and what a key sticks to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from fractions import Fraction
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.pool import Balance, Member, Pool, Queue, make_key

BALANCES: tuple[Balance, ...] = get_args(Balance)


def pool(balance: Balance = "round-robin", weights: Collection[float] = (1, 1, 1), **options: Any) -> Pool:
    """A pool of a, b, c and so on."""
    members = [Member(chr(97 + i), weight) for i, weight in enumerate(weights)]
    return Pool(members, balance, random=Random(7), **options)


def take(made: Pool, count: int, key: str = "", now: float = 0, **options: Any) -> str:
    """The names of who is chosen in a row, and has begun; - for nobody."""
    names = ""
    for _ in range(count):
        member = made.choose(key, now, **options)
        names += "-" if member is None else member.name
        if member is not None:
            made.begin(member)
    return names


def kill(made: Pool, name: str, now: float = 0) -> Member:
    """Take a member out."""
    (member,) = (member for member in made.members if member.name == name)
    while not made.failed(member, now):
        pass
    return member


# --- balance ---


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


def test_a_sticky_key_stays() -> None:
    """As long as it is used within its time; then it is new. Another label is another key."""
    made = Pool([Member(name, labels=["de"]) for name in "abc"], "sticky", ttl=10)
    assert take(made, 1, "x", 0) == "a"
    assert take(made, 1, "y", 0) == "b"
    assert take(made, 3, "x", 9) == "aaa"
    assert take(made, 1, "x", 18) == "a"
    assert take(made, 1, "x", 18, label="de") == "c"
    assert take(made, 1, "z", 18) == "b"
    assert take(made, 1, "x", 28) == "c"


def test_a_sticky_key_moves_when_its_member_is_out() -> None:
    """Not for one request that failed there; and it does not move back."""
    made = pool("sticky")
    assert take(made, 1, "x") == "a"
    assert take(made, 1, "x", tried=made.members[:1]) == "b"
    assert take(made, 1, "x") == "a"
    member = kill(made, "a")
    assert take(made, 2, "x") == "cc"
    made.worked(member)
    assert take(made, 1, "x") == "c"
    assert take(made, 1, "x", tried=made.members) == "-"
    assert take(made, 1, "new", tried=made.members) == "-"


def test_sticky_keys_are_bounded() -> None:
    """The one that rested longest is forgotten; keys whose time is over leave by themselves."""
    made = pool("sticky", keys=3, ttl=10)
    assert made.stuck is not None
    for key in ("x", "y", "z", "x", "w"):
        take(made, 1, key)
    assert [key for _, key in made.stuck] == ["z", "x", "w"]
    take(made, 1, "v", 11)
    assert [key for _, key in made.stuck] == ["v"]


def test_a_key_tells_its_parts_apart() -> None:
    """Of what was asked for, in that order; nobody's name is an empty one."""
    assert make_key(["client", "user", "host"], "192.0.2.1", "alice", "b") == "192.0.2.1\0alice\0b"
    assert make_key(["user"], "192.0.2.1", None, "b") == ""
    assert make_key(["user", "host"], "", "ab", "c") != make_key(["user", "host"], "", "a", "bc")


# --- labels and failover ---


@pytest.mark.parametrize("balance", BALANCES)
def test_a_label_restricts(balance: Balance) -> None:
    """Only members that have it, whether they are in, out or due; nobody where none has it."""
    made = Pool([Member("a", labels=["de", "fast"]), Member("b", labels=["de"]), Member("c")], balance)
    assert set(take(made, 50, label="de")) <= set("ab")
    assert take(made, 3, label="fast") == "aaa"
    assert take(made, 1, label="fr") == "-"
    kill(made, "a")
    kill(made, "c")
    assert take(made, 3, label="de") == "bbb"
    assert take(made, 1, label="fast") == "-"
    assert take(made, 2, label="fast", now=1) == "a-"
    assert take(made, 3, label="de", now=1) == "bbb"


@pytest.mark.parametrize("balance", BALANCES)
def test_failover_reaches_everyone_once(balance: Balance) -> None:
    """Whoever was tried is not chosen again; at the end nobody is left, and the next request has them all."""
    made = pool(balance, (1, 2, 3, 1))
    for _ in range(3):
        tried: list[Member] = []
        while (member := made.choose("key", 0, tried)) is not None:
            tried.append(member)
        assert sorted(member.name for member in tried) == list("abcd")


# --- deaths and trials ---


@pytest.mark.parametrize("balance", BALANCES)
def test_a_member_that_fails_is_out(balance: Balance) -> None:
    """After three failures in a row, not after two and a success; the others do its work."""
    made = pool(balance)
    a = made.members[0]
    for _ in range(2):
        assert not made.failed(a, 0)
        assert not made.failed(a, 0)
        assert not made.worked(a)
    assert "a" in {take(made, 1, str(i)) for i in range(100)}
    assert [made.failed(a, 0) for _ in range(4)] == [False, False, True, False]
    assert {take(made, 1, str(i)) for i in range(100)} == set("bc")


@pytest.mark.parametrize("balance", BALANCES)
def test_it_comes_back_by_exactly_one_trial(balance: Balance) -> None:
    """When its back-off is over one request goes there; others do when that has worked."""
    made = pool(balance, (1,))
    a = kill(made, "a")
    assert take(made, 1, now=0.99) == "-"
    member = made.choose("", 1)
    assert member is a
    assert made.begin(a)
    assert not made.begin(a)  # whoever goes there unasked does not have the trial
    assert take(made, 3, now=1) == "---"
    assert made.worked(a)
    assert take(made, 3, now=1) == "aaa"
    assert not made.begin(a)


def test_a_trial_comes_before_others() -> None:
    """Whoever is due is chosen first, the one that was due first; but not by a request that was there."""
    made = pool()
    b, c = kill(made, "b", 0.5), kill(made, "c", 0)
    assert take(made, 2, now=0.9) == "aa"
    assert take(made, 1, now=2, tried={b, c}) == "a"
    assert take(made, 1, now=2, tried={c}) == "b"
    assert take(made, 2, now=2) == "ca"


def test_the_back_off_doubles_up_to_its_bound() -> None:
    """1, 2, 4 ... 60 seconds; one trial that works and the next time it is 1 again."""
    made = pool(weights=(1,))
    now, pauses = 0.0, []
    a = kill(made, "a")
    for _ in range(8):
        assert a.due is not None
        pauses.append(a.due - now)
        now = a.due
        assert take(made, 1, now=now - 0.01) == "-"
        assert take(made, 1, now=now) == "a"
        assert not made.failed(a, now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    made.worked(a)
    kill(made, "a", now)
    assert a.due == now + 1


def test_late_failures_do_not_add_to_the_back_off() -> None:
    """A hundred requests were under way when it died: they tell nothing new. A check when it is due does."""
    made = pool(weights=(1,))
    a = kill(made, "a")
    for _ in range(100):
        made.failed(a, 0.5)
    assert a.due == 1
    made.failed(a, 1)
    assert a.due == 3


def test_a_trial_without_an_answer_is_made_again() -> None:
    """The client has left, say: the next request is the trial, and what is no trial changes nothing."""
    made = pool(weights=(1,))
    a = kill(made, "a")
    assert take(made, 2, now=1) == "a-"
    made.undecided(a)
    assert take(made, 2, now=1) == "a-"
    made.worked(a)
    made.undecided(a)
    assert take(made, 1, now=1) == "a"


def test_whoever_returns_does_not_catch_up() -> None:
    """Its turns are its part from then on, not those that it missed."""
    made = pool("weighted", (1, 1))
    a = kill(made, "a")
    take(made, 1000)
    made.worked(a)
    assert Counter(take(made, 10)) == {"a": 5, "b": 5}


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


# --- the rest ---


def test_what_no_pool_can_be_made_of() -> None:
    """Nobody, two of one name, an unknown balance, a weight that is none."""
    with pytest.raises(ValueError, match="without members"):
        Pool([], "hash")
    with pytest.raises(ValueError, match="the same name"):
        Pool([Member("a"), Member("a")], "hash")
    with pytest.raises(ValueError, match="balance 'fair', expected one of round-robin, random"):
        Pool([Member("a")], "fair")  # type: ignore[arg-type]
    for weight in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected more than 0"):
            Member("a", weight)


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


class Model:
    """A pool as one would explain it: looks at all members each time."""

    def __init__(self, made: Pool) -> None:
        self.made = made
        self.running = dict.fromkeys(made.members, 0)
        self.failures = dict.fromkeys(made.members, 0)
        self.out: dict[Member, tuple[float, float]] = {}  # when it is due, and the back-off until then
        self.trials: set[Member] = set()

    def may_choose(self, now: float, tried: Collection[Member], label: str | None) -> set[Member | None]:
        """Everyone whom it would be right to choose."""
        left = [m for m in self.made.members if m not in tried and (label is None or label in m.labels)]
        due = [m for m in left if m in self.out and m not in self.trials and self.out[m][0] <= now]
        alive = [m for m in left if m not in self.out]
        if due:
            first = min(self.out[m][0] for m in due)
            return {m for m in due if self.out[m][0] == first}
        loads = {m: Fraction(self.running[m] + 1, int(m.weight)) for m in alive}
        return {m for m in alive if loads[m] == min(loads.values())} or {None}

    def failed(self, member: Member, now: float) -> None:
        self.failures[member] += 1
        if member not in self.out:
            if self.failures[member] >= 3:
                self.out[member] = now + 1, 1
        elif member in self.trials or self.out[member][0] <= now:
            pause = min(60, 2 * self.out[member][1])
            self.out[member] = now + pause, pause
            self.trials.discard(member)

    def worked(self, member: Member) -> None:
        self.failures[member] = 0
        self.out.pop(member, None)
        self.trials.discard(member)


STEPS = st.tuples(
    st.sampled_from(["choose", "choose", "end", "failed", "failed", "failed", "worked", "undecided", "wait"]),
    st.integers(0, 4),
    st.sets(st.integers(0, 4), max_size=2),
    st.sampled_from([None, None, "odd", "even"]),
)


@given(st.lists(STEPS, max_size=120))
def test_a_pool_does_what_the_model_says(steps: list[tuple[str, int, set[int], str | None]]) -> None:
    """Through any requests, failures, trials and pauses the choice is one that a look at everyone would allow."""
    made = Pool([Member(str(i), 1 << i % 3, [("even", "odd")[i % 2]]) for i in range(5)], "least-connections")
    model, now = Model(made), 0.0
    for step, i, numbers, label in steps:
        member = made.members[i]
        if step == "choose":
            tried = {made.members[number] for number in numbers}
            chosen = made.choose("", now, tried, label)
            assert chosen in model.may_choose(now, tried, label)
            if chosen is not None:
                trial = chosen in model.out and chosen not in model.trials
                assert made.begin(chosen) == trial
                model.running[chosen] += 1
                if trial:
                    model.trials.add(chosen)
        elif step == "end" and model.running[member]:
            made.end(member)
            model.running[member] -= 1
        elif step == "failed":
            before = member in model.out
            model.failed(member, now)
            assert made.failed(member, now) == (member in model.out and not before)
        elif step == "worked":
            assert made.worked(member) == (member in model.out)
            model.worked(member)
        elif step == "undecided":
            made.undecided(member)
            model.trials.discard(member)
        elif step == "wait":
            now += 0.5 + i
        assert {m: m.due for m in made.members if m.due is not None} == {m: model.out[m][0] for m in model.out}
        assert {m for m in made.members if m.trying} == model.trials


@given(
    st.sampled_from(BALANCES),
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["failed", "worked", "wait"])), max_size=60),
)
def test_nobody_goes_where_it_is_out(balance: Balance, steps: list[tuple[int, str]]) -> None:
    """Of every balance: a request goes to one that is in or due, and somewhere as long as there is one."""
    made, now = pool(balance, (1, 2, 1, 3)), 0.0
    for i, step in steps:
        if step == "wait":
            now += i / 2
        elif step == "failed":
            made.failed(made.members[i], now)
        else:
            made.worked(made.members[i])
        allowed = [m for m in made.members if m.due is None or (m.due <= now and not m.trying)]
        chosen = made.choose(str(i), now)
        assert chosen in allowed if allowed else chosen is None
        if chosen is not None and made.begin(chosen) and i % 2:
            made.undecided(chosen)
