"""Pools: which of several upstreams takes the next request, and which of them are out because they fail.

A pool is told what becomes of its choices: a request begins and ends at a member, the member worked or failed.
After some failures in a row a member is *out* for a back-off that doubles. When that is over it is *due*: one request,
its *trial*, goes there, and no other before that one has worked. The time comes in, in seconds of any clock that only
goes forward. No choice looks at all members (with 1,000 of them one costs about 1 us), but each death and return may.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from itertools import accumulate
from math import inf
from operator import attrgetter
from random import Random
from typing import Literal, Protocol, get_args

__all__ = ["Balance", "By", "Member", "Pool", "make_key"]

Balance = Literal["round-robin", "random", "weighted", "least-connections", "hash", "sticky"]
By = Literal["client", "user", "host", "session"]

FAILURES = 3
"""Failures in a row that take a member out."""

BACKOFF = 1.0, 60.0
"""Seconds of the first and of the longest back-off."""

TTL = 600.0
"""Seconds without a request after which a sticky key is free."""

KEYS = 10_000
"""Sticky keys that are remembered; beyond that the one that rested longest is forgotten."""

POINTS = 160
"""Points of a member of mean weight on the ring: shares differ by about 1 / sqrt(160) = 8 %."""


class Member:
    """One of a pool.

    Args:
        name: unique in its pool. Where a key is hashed it alone says what the member gets, in every process.
        weight: its part, as against the weights of others; more than 0. ``round-robin`` does not look at it.
        labels: groups that it can be chosen from.

    ``running`` counts its requests, ``failures`` those that failed in a row. ``due`` is when it is tried again if it is
    out, else None; ``trying`` says that its trial is under way. These are the pool's to change.

    Raises:
        ValueError: the weight is not more than 0.
    """

    __slots__ = ("backoff", "due", "failures", "labels", "name", "number", "running", "trying", "weight")

    def __init__(self, name: str, weight: float = 1, labels: Iterable[str] = ()) -> None:
        if not 0 < weight < inf:
            raise ValueError(f"weight {weight}, expected more than 0")
        self.name = name
        self.weight = weight
        self.labels = frozenset(labels)
        self.number = 0  # its place in the pool
        self.running = 0
        self.failures = 0
        self.backoff = 0.0
        self.due: float | None = None
        self.trying = False

    def __repr__(self) -> str:
        return f"Member({self.name})"


class Queue:
    """Members by a number, the least first; of equals the one that got its number first.

    A heap with lazy deletion: a member that gets another number has another entry, and the older one is dropped when it
    comes to the top, or when such entries are more than half.
    """

    __slots__ = ("count", "entries", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Member]] = []
        self.entries: dict[Member, int] = {}  # which one is valid
        self.count = 0

    def put(self, member: Member, number: float) -> None:
        """Add a member, or give it another number."""
        self.count += 1
        self.entries[member] = self.count
        heappush(self.heap, (number, self.count, member))
        if len(self.heap) > 2 * len(self.entries) + 16:
            self.heap = [entry for entry in self.heap if self.entries.get(entry[2]) == entry[1]]
            heapify(self.heap)

    def drop(self, member: Member) -> None:
        """Remove a member. Harmless if it is not there."""
        self.entries.pop(member, None)

    def first(self, tried: Collection[Member], most: float = inf) -> tuple[float, int, Member] | None:
        """The first entry whose member is not in ``tried`` and whose number is ``most`` at most."""
        heap, entries = self.heap, self.entries
        aside, found = [], None
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) != entry[1]:
                heappop(heap)
            elif entry[0] > most:
                break
            elif entry[2] in tried:
                aside.append(heappop(heap))
            else:
                found = entry
                break
        for entry in aside:
            heappush(heap, entry)
        return found


class Balancer(Protocol):
    """Chooses among the members that are in: `add` and `remove` say which."""

    def add(self, member: Member) -> None: ...
    def remove(self, member: Member) -> None: ...
    def moved(self, member: Member) -> None:
        """A member's ``running`` has changed; it may be out."""

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None: ...


class Turns:
    """One after the other; where weights count, each as often as its weight says and evenly spread.

    Each member has the moment of its next turn, and turns of a member are 1 / weight apart. What smooth weighted round
    robin does by adding to every member at each choice, this does with one of them.
    """

    def __init__(self, members: Sequence[Member], weighted: bool) -> None:
        self.weighted = weighted
        self.queue = Queue()
        self.moment = 0.0
        # Part of a step before the first turn: members of equal weight shall not have their turns all at one moment.
        self.phases = {member: (i + 0.5) / len(members) for i, member in enumerate(members)}

    def step(self, member: Member) -> float:
        """How far apart its turns are."""
        return 1 / member.weight if self.weighted else 1.0

    def add(self, member: Member) -> None:
        """It begins at the present moment: nobody who was away catches up."""
        self.queue.put(member, self.moment + self.phases[member] * self.step(member))

    def remove(self, member: Member) -> None:
        """See `Balancer`."""
        self.queue.drop(member)

    def moved(self, member: Member) -> None:
        """Nothing depends on it."""

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        entry = self.queue.first(tried)
        if entry is None:
            return None
        moment, _, member = entry
        self.moment = max(self.moment, moment)
        self.queue.put(member, moment + self.step(member))
        return member


class Least:
    """Who has the fewest requests for its weight; of equals the one whose last change is longest ago."""

    def __init__(self) -> None:
        self.queue = Queue()

    def add(self, member: Member) -> None:
        """See `Balancer`."""
        # With the request that it would get: of idle ones the heaviest is first.
        self.queue.put(member, (member.running + 1) / member.weight)

    def remove(self, member: Member) -> None:
        """See `Balancer`."""
        self.queue.drop(member)

    def moved(self, member: Member) -> None:
        """See `Balancer`."""
        if member.due is None:
            self.add(member)

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        entry = self.queue.first(tried)
        return None if entry is None else entry[2]


class Drawn:
    """Any, as often as its weight says in the long run."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.members: list[Member] = []
        self.sums: list[float] = []

    def add(self, member: Member) -> None:
        """See `Balancer`."""
        insort(self.members, member, key=attrgetter("number"))  # so that a seed says what is drawn
        self.weigh()

    def remove(self, member: Member) -> None:
        """See `Balancer`."""
        self.members.remove(member)
        self.weigh()

    def moved(self, member: Member) -> None:
        """Nothing depends on it."""

    def weigh(self) -> None:
        """Sum up the weights, for a draw by bisection."""
        self.sums = list(accumulate(member.weight for member in self.members))

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        if not self.members:
            return None
        (member,) = self.random.choices(self.members, cum_weights=self.sums)
        if member not in tried:
            return member
        left = [member for member in self.members if member not in tried]
        return self.random.choices(left, [member.weight for member in left])[0] if left else None


class Ring:
    """A consistent hash: a key goes to the member whose point follows on the ring, the next one where that is out.

    So only the keys of a member that is out move, and come back with it. One that is due takes part: whose key is its
    own is its trial, and the keys of others stay where they are.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        mean = sum(member.weight for member in members) / len(members)
        points = [
            (point, member)
            for member in members
            for point in points_of(member.name, max(1, round(POINTS * member.weight / mean)))
        ]
        points.sort(key=lambda pair: (pair[0], pair[1].name))
        self.points = [point for point, _ in points]
        self.owners = [member for _, member in points]

    def add(self, member: Member) -> None:
        """Its points stay on the ring."""

    def remove(self, member: Member) -> None:
        """Its points stay on the ring."""

    def moved(self, member: Member) -> None:
        """Nothing depends on it."""

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        start = bisect(self.points, int.from_bytes(digest, "big"))
        owners = self.owners
        for at in range(start - len(owners), start):  # once around: an index below 0 counts from the end
            member = owners[at]
            if member not in tried and (member.due is None or (member.due <= now and not member.trying)):
                return member
        return None


def points_of(name: str, count: int) -> list[int]:
    """The points of a member on the ring: ``count`` numbers of 64 bits."""
    octets = b"".join(blake2b(b"%d %b" % (i, name.encode())).digest() for i in range((count + 7) // 8))
    return [int.from_bytes(octets[at : at + 8], "big") for at in range(0, 8 * count, 8)]


class Group:
    """The members with one label, or all: a balancer for those that are in, and who is out until when.

    ``strict`` says that the balancer itself looks for who is due: it may not give a request to just anyone.
    """

    __slots__ = ("balancer", "resting", "strict")

    def __init__(self, members: Sequence[Member], balance: Balance, random: Random) -> None:
        self.resting = Queue()
        self.strict = balance == "hash"
        self.balancer: Balancer
        if balance == "random":
            self.balancer = Drawn(random)
        elif balance == "hash":
            self.balancer = Ring(members)
        elif balance in ("round-robin", "weighted"):
            self.balancer = Turns(members, balance == "weighted")
        else:
            self.balancer = Least()
        for member in members:
            self.balancer.add(member)

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """Who is due first, for nobody else finds out whether it works; then as the balancer says."""
        if not self.strict:
            entry = self.resting.first(tried, now)
            if entry is not None:
                return entry[2]
        return self.balancer.choose(key, now, tried)


class Pool:
    """Chooses members and keeps count of them.

    Args:
        members: at least one, with different names. They belong to this pool from then on.
        balance: ``round-robin``; ``random`` and ``weighted``, by weight; ``least-connections``, for its weight;
            ``hash``, by key; ``sticky``, by key as long as it is used, a new key as by ``least-connections``.
        random: what ``random`` draws from.
        failures: in a row, that take a member out.
        backoff: seconds that it is out the first time and at most; it doubles with each trial that fails.
        ttl: seconds without a request after which a sticky key is forgotten.
        keys: sticky keys that are remembered.

    Raises:
        ValueError: there is no member, two have the same name, or there is no such balance.
    """

    def __init__(
        self,
        members: Iterable[Member],
        balance: Balance,
        *,
        random: Random | None = None,
        failures: int = FAILURES,
        backoff: tuple[float, float] = BACKOFF,
        ttl: float = TTL,
        keys: int = KEYS,
    ) -> None:
        self.members = tuple(members)
        if not self.members:
            raise ValueError("a pool without members")
        if balance not in get_args(Balance):
            raise ValueError(f"balance {balance!r}, expected one of {', '.join(get_args(Balance))}")
        if len({member.name for member in self.members}) < len(self.members):
            raise ValueError("two members of the same name")
        for number, member in enumerate(self.members):
            member.number = number
        self.balance = balance
        self.failures = failures
        self.shortest, self.longest = backoff
        random = random or Random()  # noqa: S311 - who takes a request is no secret
        labels = sorted({label for member in self.members for label in member.labels})
        self.groups: dict[str | None, Group] = {None: Group(self.members, balance, random)}
        for label in labels:
            found = [member for member in self.members if label in member.labels]
            self.groups[label] = Group(found, balance, random)
        self.of = {
            member: [self.groups[None], *(self.groups[label] for label in sorted(member.labels))]
            for member in self.members
        }
        self.ttl = ttl
        self.keys = keys
        # Which member a key of a label sticks to and until when. Each use moves it to the end.
        self.stuck: OrderedDict[tuple[str | None, str], tuple[Member, float]] | None
        self.stuck = OrderedDict() if balance == "sticky" else None

    def choose(
        self,
        key: str,
        now: float,
        tried: Collection[Member] = (),
        label: str | None = None,
        ttl: float | None = None,
    ) -> Member | None:
        """Choose who takes a request. `begin` follows at once where it is to go there.

        Args:
            key: what ``hash`` and ``sticky`` go by (`make_key`); others do not look at it.
            now: seconds.
            tried: members that are not chosen: this request has been there.
            label: only members with this one.
            ttl: seconds for a sticky key, in place of the pool's.

        Returns:
            None where each is out and not due, or was tried, or none has the label.
        """
        group = self.groups.get(label)
        if group is None:
            return None
        if self.stuck is None:
            return group.choose(key, now, tried)
        until = now + (self.ttl if ttl is None else ttl)
        return self.choose_stuck(self.stuck, group, (label, key), now, tried, until)

    def choose_stuck(
        self,
        stuck: OrderedDict[tuple[str | None, str], tuple[Member, float]],
        group: Group,
        key: tuple[str | None, str],
        now: float,
        tried: Collection[Member],
        until: float,
    ) -> Member | None:
        """The same for a sticky key: it moves when its member is out, not when one request fails there."""
        while stuck and next(iter(stuck.values()))[1] <= now:
            stuck.popitem(last=False)
        found = stuck.get(key)
        member = found[0] if found is not None and found[1] > now else None  # one with less time may stand behind
        if member is None or member.due is not None:
            member = group.choose(key[1], now, tried)
            if member is None:
                return None
        elif member in tried:
            return group.choose(key[1], now, tried)
        stuck[key] = member, until
        stuck.move_to_end(key)
        if len(stuck) > self.keys:
            stuck.popitem(last=False)
        return member

    def begin(self, member: Member) -> bool:
        """Count a request that goes to a member; `end` is called once for it.

        Returns:
            Whether it is the member's trial. Then it ends with `worked`, `failed` or `undecided`, or nobody goes there.
        """
        member.running += 1
        trial = member.due is not None and not member.trying
        if trial:
            member.trying = True
            for group in self.of[member]:
                group.resting.drop(member)
        for group in self.of[member]:
            group.balancer.moved(member)
        return trial

    def end(self, member: Member) -> None:
        """A request that began at a member is over."""
        member.running -= 1
        for group in self.of[member]:
            group.balancer.moved(member)

    def undecided(self, member: Member) -> None:
        """Its trial, if one is under way, is over without an answer: the next request is another one."""
        if member.trying:
            assert member.due is not None
            self.rest(member, member.due)

    def worked(self, member: Member) -> bool:
        """A request, or a check, found that it works: it is in, and nothing is held against it.

        Returns:
            Whether it was out.
        """
        member.failures = 0
        if member.due is None:
            return False
        member.due = None
        member.trying = False
        for group in self.of[member]:
            group.resting.drop(member)
            group.balancer.add(member)
        return True

    def failed(self, member: Member, now: float) -> bool:
        """A request, or a check, failed by the member's fault.

        While it is out this counts for its trial, or when it is due: what began before must not add to the back-off.

        Returns:
            Whether that took it out.
        """
        member.failures += 1
        if member.due is None:
            if member.failures < self.failures:
                return False
            member.backoff = self.shortest
            for group in self.of[member]:
                group.balancer.remove(member)
            self.rest(member, now + member.backoff)
            return True
        if member.trying or member.due <= now:
            member.backoff = min(2 * member.backoff, self.longest)
            self.rest(member, now + member.backoff)
        return False

    def rest(self, member: Member, due: float) -> None:
        """Leave a member alone until it is due."""
        member.due = due
        member.trying = False
        for group in self.of[member]:
            group.resting.put(member, due)


def make_key(by: Sequence[By], client: str, user: str | None, host: str, session: str | None = None) -> str:
    """The key of a request for ``hash`` and ``sticky``: what ``by`` names of its client, its user, where it goes, and
    the session that its user name names.

    No two requests that differ in these have the same key: nothing of them holds a NUL.
    """
    parts = {"client": client, "user": user or "", "host": host, "session": session or ""}
    return "\0".join(parts[name] for name in by)
