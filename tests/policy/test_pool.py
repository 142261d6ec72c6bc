"""Pools with a clock of the test's own: who is out and until when, what a key sticks to, and what is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import BALANCES, kill, pool, take
from tabi.policy.pool import NEVER, Balance, Member, Pool, make_key
from tabi.policy.pool_store import MemoryStore


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
    store = MemoryStore(keys=3)
    made = pool("sticky", store=store, ttl=10)
    for key in ("x", "y", "z", "x", "w"):
        take(made, 1, key)
    assert [key for _, key in store.stuck] == ["z", "x", "w"]
    take(made, 1, "v", 11)
    assert [key for _, key in store.stuck] == ["v"]


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


# --- the rest ---


def test_a_request_that_is_over_counts_no_more() -> None:
    """The next one goes where there is room again."""
    made = pool("least-connections")
    assert take(made, 4) == "abca"
    made.end(made.members[0])
    made.end(made.members[0])
    assert [member.running for member in made.members] == [0, 1, 1]
    assert take(made, 1) == "a"


def test_what_no_pool_can_be_made_of() -> None:
    """Nobody, two of one name, an unknown balance."""
    with pytest.raises(ValueError, match="without members"):
        Pool([], "hash")
    with pytest.raises(ValueError, match="the same name"):
        Pool([Member("a"), Member("a")], "hash")
    with pytest.raises(ValueError, match="balance 'fair', expected one of round-robin, random"):
        Pool([Member("a")], "fair")  # type: ignore[arg-type]


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


# --- foresight ---


@pytest.mark.parametrize("balance", BALANCES)
def test_a_trial_is_foreseen(balance: Balance) -> None:
    """Who is due is next, for a hashed key if it is its own; who is out is not, nor while its trial is under way."""
    made = pool(balance)
    for name in "abc":
        kill(made, name)
    assert made.foresee("x", 0.5) is None
    found = made.foresee("x", 1)
    assert found is not None
    assert found.member is not None
    assert found.why.endswith("it has failed, and this would be its trial")
    assert made.begin(found.member)
    again = made.foresee("x", 1)
    assert again is not None
    assert again.member is not found.member


def test_a_sticky_key_is_foreseen() -> None:
    """Where it sticks, unless that one is out, or was tried, or lacks the label; and asking does not prolong it."""
    made = Pool([Member("a"), Member("b", labels=["de"])], "sticky", ttl=10)
    assert take(made, 1, "x") == "a"
    take(made, 2, "y")  # two more at b: a new key would go to a
    for now in (5, 9):
        found = made.foresee("x", now)
        assert found is not None
        assert (found.member, found.why) == (made.members[0], "the key sticks to it")
    for options in ({"tried": made.members[:1]}, {"label": "de"}):
        found = made.foresee("x", 9, **options)
        assert found is not None
        assert found.member is made.members[1]
    assert made.foresee("x", 9, label="fr") is None
    found = made.foresee("x", 10)
    assert found is not None
    assert found.why != "the key sticks to it"
    kill(made, "a", 9)
    found = made.foresee("x", 9)
    assert found is not None
    assert found.member is made.members[1]


# --- what is remembered beyond a pool's life ---


@pytest.mark.parametrize("balance", BALANCES)
def test_a_pool_goes_on_with_what_is_known(balance: Balance) -> None:
    """Who is out stays out, as long as it would have been, and comes back by a trial; failures in a row go on."""
    before = pool(balance)
    kill(before, "a")
    before.failed(before.members[1], 0)
    before.failed(before.members[1], 0)
    made = pool(balance, store=before.store.succeed("abc"))
    a, b, _ = made.members
    assert "a" not in take(made, 20, now=0.5)
    assert (a.due, a.backoff, a.failures) == (1, 1, 3)
    assert made.failed(b, 0.5)
    key = next(str(i) for i in range(100) if made.choose(str(i), 1, made.members[2:]) is a)
    assert made.choose(key, 1) is a
    assert made.begin(a)
    assert not made.failed(a, 1)
    assert a.due == 3
    assert made.worked(a)
    assert pool(balance, store=made.store.succeed("abc")).members[0].due is None


def test_members_that_are_others_by_now_begin_anew() -> None:
    """Nothing is held against them, and what a request that is still under way finds counts for the old pool alone."""
    before = pool()
    kill(before, "a")
    kill(before, "b")
    made = pool(store=before.store.succeed("a"))
    assert [member.due is not None for member in made.members] == [True, False, False]
    before.worked(before.members[0])
    kill(before, "c")
    again = pool(store=made.store.succeed("abc"))
    assert [member.due is not None for member in again.members] == [True, False, False]


def test_keys_stick_beyond_a_pool() -> None:
    """To members that are still there and have the label, for as long as they would have."""
    before = Pool([Member("a"), Member("b", labels=["de"])], "sticky", ttl=10)
    assert take(before, 1, "x", 0) == "a"
    assert take(before, 1, "y", 0) == "b"
    assert take(before, 1, "z", 0, label="de") == "b"
    store = before.store.succeed(("a", "b"))
    made = Pool([Member("b"), Member("c", labels=["de"])], "sticky", ttl=10, store=store)
    take(made, 2, "more", 5)
    assert take(made, 1, "y", 9) == "b"
    assert take(made, 1, "z", 9, label="de") == "c"  # b has that label no more
    assert take(made, 1, "x", 9) == "c"  # a is gone


def test_a_member_that_works_costs_the_store_nothing() -> None:
    """It is told of changes only."""
    told: list[tuple[str, object]] = []

    class Telling(MemoryStore):
        def put_health(self, member: str, health: object) -> None:
            told.append((member, health))

    made = pool(store=Telling())
    for member in made.members:
        made.worked(member)
    assert told == []
    made.failed(made.members[0], 0)
    made.worked(made.members[0])
    made.worked(made.members[0])
    assert told == [("a", (1, 0.0, None)), ("a", None)]


@pytest.mark.parametrize("balance", BALANCES)
def test_a_member_that_is_drained_gets_nothing(balance: Balance) -> None:
    """Whatever becomes of what runs there, and for however long; undrained, it is as if it had never failed."""
    made = pool(balance)
    a, b, c = made.members
    made.begin(a)
    made.drain(a)
    made.drain(a)
    assert not made.worked(a)
    assert not made.failed(a, 0)
    made.undecided(a)
    made.end(a)
    for now in (0, 1e9):
        assert "a" not in take(made, 20, "x", now) + take(made, 20, "y", now)
        found = made.foresee("x", now)
        assert found is None or found.member is not a
    made.drain(b)
    made.drain(c)
    assert take(made, 1, "x", 1e9) == "-"
    made.undrain(a)
    made.undrain(a)
    assert (a.due, a.failures, a.drained) == (None, 0, False)
    assert take(made, 3, "x", 1e9) == "aaa"


def test_a_member_that_is_out_is_drained() -> None:
    """Its trial does not come, also where one was under way; its return is the operator's."""
    made = pool()
    member = kill(made, "a")
    assert take(made, 1, now=2) == "a"
    assert member.trying
    made.drain(member)
    assert not made.worked(member)
    assert take(made, 4, now=1e9) == "bcbc"
    other = kill(made, "b", 1e9)
    made.drain(other)
    assert take(made, 2, now=2e9) == "cc"
    made.undrain(other)
    assert "b" in take(made, 2, now=2e9)


def test_a_pool_that_is_made_anew_knows_who_is_drained() -> None:
    """As with a reload."""
    store = MemoryStore()
    made = pool(store=store)
    made.drain(made.members[0])
    again = pool(store=store)
    assert again.members[0].drained
    assert again.members[0].due == NEVER
    assert take(again, 4) == "bcbc"
    again.undrain(again.members[0])
    assert not pool(store=store).members[0].drained


def test_a_sticky_key_leaves_a_member_that_is_drained() -> None:
    """And stays where it went."""
    made = pool("sticky")
    assert take(made, 1, "x") == "a"
    made.drain(made.members[0])
    moved = take(made, 2, "x")
    assert moved in ("bb", "cc")
    made.undrain(made.members[0])
    assert take(made, 1, "x") == moved[0]
