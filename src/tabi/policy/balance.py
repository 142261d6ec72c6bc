"""How a pool chooses among its members: in turn, by their load, at random, or by a hash. None looks at all members."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from itertools import accumulate
from math import inf
from operator import attrgetter
from random import Random
from typing import Literal

Balance = Literal["round-robin", "random", "weighted", "least-connections", "hash", "sticky"]

POINTS = 160
"""Points of a member of mean weight on the ring: shares differ by about 1 / sqrt(160) = 8 %."""


class Member:
    """One member of a pool.

    Args:
        name: unique in its pool. If a key is hashed, only the name decides what the member gets, in every process.
        weight: its share relative to the weights of others; more than 0. ``round-robin`` ignores it.
        labels: groups that it can be chosen from.

    ``running`` counts its requests, ``failures`` those that failed in a row. ``due`` is when it is tried again if it is
    out, else None; ``trying`` says that its trial is under way, ``drained`` that an operator has
    taken it out. These are the pool's to change.

    Raises:
        ValueError: the weight is not more than 0.
    """

    __slots__ = ("backoff", "drained", "due", "failures", "labels", "name", "number", "running", "trying", "weight")

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
        self.drained = False

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


class Balancer:
    """Chooses among the members that are in: `add` and `remove` say which. A balancer overrides what it needs."""

    why: str
    """The reason of a choice, for people."""

    def add(self, member: Member) -> None:
        """A member is in."""

    def remove(self, member: Member) -> None:
        """A member is out."""

    def moved(self, member: Member) -> None:
        """A member's ``running`` has changed; it may be out."""

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """The member that a request goes to; None if no member is left."""
        raise NotImplementedError

    def foresee(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """The member that `choose` would give; None also if a random draw decides. This changes nothing."""
        return self.choose(key, now, tried)


class Turns(Balancer):
    """Members in turn; if weights count, each as often as its weight says, and evenly spread.

    Each member has the moment of its next turn, and turns of a member are 1 / weight apart. What smooth weighted round
    robin does by adding to every member at each choice, this does with one of them.
    """

    why = "it has the next turn"

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
        """A member begins at the present moment: one that was out does not catch up."""
        self.queue.put(member, self.moment + self.phases[member] * self.step(member))

    def remove(self, member: Member) -> None:
        """See `Balancer`."""
        self.queue.drop(member)

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        entry = self.queue.first(tried)
        if entry is None:
            return None
        moment, _, member = entry
        self.moment = max(self.moment, moment)
        self.queue.put(member, moment + self.step(member))
        return member

    def foresee(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        entry = self.queue.first(tried)
        return None if entry is None else entry[2]


class Least(Balancer):
    """The member with the fewest requests for its weight; of equals, the one whose last change is longest ago."""

    why = "it has the fewest requests for its weight"

    def __init__(self) -> None:
        self.queue = Queue()

    def add(self, member: Member) -> None:
        """See `Balancer`."""
        # With the request that it would get: of idle members the heaviest is first.
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


class Drawn(Balancer):
    """A random member, as often as its weight says in the long run."""

    why = "drawn by weight"

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

    def foresee(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """See `Balancer`."""
        left = [member for member in self.members if member not in tried]
        return left[0] if len(left) == 1 else None


class Ring(Balancer):
    """A consistent hash: a key goes to the member whose point follows on the ring, or the next one if that is out.

    So only the keys of a member that is out move, and come back with it. A member that is due takes part: the next
    request with one of its keys is its trial, and the keys of others stay where they are. All points stay on the ring.
    """

    why = "the key's hash leads to it"

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


def make_balancer(members: Sequence[Member], balance: Balance, random: Random) -> Balancer:
    """The balancer for members, all of which are in; ``random`` gives the random draws."""
    balancer: Balancer
    if balance == "random":
        balancer = Drawn(random)
    elif balance == "hash":
        balancer = Ring(members)
    elif balance in ("round-robin", "weighted"):
        balancer = Turns(members, balance == "weighted")
    else:
        balancer = Least()
    for member in members:
        balancer.add(member)
    return balancer
