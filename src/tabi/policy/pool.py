"""Pools: which of several upstreams takes the next request, and which of them are out because they fail.

A pool is told what becomes of its choices: a request begins and ends at a member, the member worked or failed.
After some failures in a row a member is *out* for a back-off that doubles. When that is over it is *due*: one request,
its *trial*, goes there, and no other before that one has worked. The time comes in, in seconds of any clock that only
goes forward. No choice looks at all members (with 1,000 of them one costs about 1 us), but each death and return may.
What a pool remembers beyond its own life is in a store (`policy.pool_store`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import Literal, NamedTuple, get_args

from tabi.policy.balance import Balance, Member, Queue, make_balancer
from tabi.policy.pool_store import Health, MemoryStore, PoolStore

__all__ = ["Balance", "By", "Foresight", "Member", "Pool", "make_key"]

By = Literal["client", "user", "host", "session"]

FAILURES = 3
"""Failures in a row that take a member out."""

BACKOFF = 1.0, 60.0
"""Seconds of the first and of the longest back-off."""

TTL = 600.0
"""Seconds without a request after which a sticky key is free."""

NEVER = float("inf")
"""When a member is due that an operator has taken out."""


class Foresight(NamedTuple):
    """What a choice would be, and why."""

    member: Member | None
    """None: only a random draw decides it."""
    why: str
    among: int
    """How many members are possible."""


class Group:
    """The members with one label, or all members: a balancer for those that are in, and when each other one returns.

    ``strict`` says that the balancer itself finds the member that is due: not every member may take any request.
    """

    __slots__ = ("balancer", "members", "resting", "strict")

    def __init__(self, members: Sequence[Member], balance: Balance, random: Random) -> None:
        self.members = {member.name: member for member in members}
        self.resting = Queue()
        self.strict = balance == "hash"
        self.balancer = make_balancer(members, balance, random)

    def choose(self, key: str, now: float, tried: Collection[Member]) -> Member | None:
        """A member that is due comes first, since only a trial shows whether it works; else the balancer chooses."""
        if not self.strict:
            entry = self.resting.first(tried, now)
            if entry is not None:
                return entry[2]
        return self.balancer.choose(key, now, tried)

    def foresee(self, key: str, now: float, tried: Collection[Member]) -> Foresight | None:
        """The member that `choose` would give, and why; None if it would give none. This changes nothing."""
        left = [member for member in self.members.values() if member not in tried and may_take(member, now)]
        if not left:
            return None
        if not self.strict:
            entry = self.resting.first(tried, now)
            if entry is not None:
                return Foresight(entry[2], "it has failed, and this would be its trial", 1)
        member = self.balancer.foresee(key, now, tried)
        if member is not None and member.due is not None:
            return Foresight(member, f"{self.balancer.why}; it has failed, and this would be its trial", 1)
        return Foresight(member, self.balancer.why, len(left))


def may_take(member: Member, now: float) -> bool:
    """Whether a member takes requests: it is in, or its trial is due."""
    return member.due is None or (member.due <= now and not member.trying)


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
        store: what keys stick to, and what is known of members. Default: one of its own.

    Raises:
        ValueError: there is no member, two members have the same name, or the balance is unknown.
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
        store: PoolStore | None = None,
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
        random = random or Random()  # noqa: S311 - the choice of a member is not a secret
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
        self.sticky = balance == "sticky"
        self.store = MemoryStore() if store is None else store
        for member in self.members:
            self.recall(member)

    def recall(self, member: Member) -> None:
        """Take over what the store knows of a member."""
        health = self.store.get_health(member.name)
        if health is not None:
            member.failures, member.backoff, due = health
            if due == NEVER:
                self.drain(member)
            elif due is not None:
                for group in self.of[member]:
                    group.balancer.remove(member)
                self.rest(member, due)

    def choose(
        self,
        key: str,
        now: float,
        tried: Collection[Member] = (),
        label: str | None = None,
        ttl: float | None = None,
    ) -> Member | None:
        """Choose the member that takes a request. Call `begin` at once if the request goes there.

        Args:
            key: what ``hash`` and ``sticky`` go by (`make_key`); others do not look at it.
            now: seconds.
            tried: members that are not chosen: this request has been there.
            label: only members with this one.
            ttl: seconds for a sticky key, in place of the pool's.

        Returns:
            None if each member is out and not due, or was tried, or does not have the label.
        """
        group = self.groups.get(label)
        if group is None:
            return None
        if not self.sticky:
            return group.choose(key, now, tried)
        # A key moves when its member is out, not when one request fails there.
        store, sticky = self.store, (label, key)
        member = group.members.get(store.get_key(sticky, now) or "")
        if member is None or member.due is not None:
            member = group.choose(key, now, tried)
            if member is None:
                return None
        elif member in tried:
            return group.choose(key, now, tried)
        store.put_key(sticky, member.name, now, self.ttl if ttl is None else ttl)
        return member

    def foresee(
        self, key: str, now: float, tried: Collection[Member] = (), label: str | None = None
    ) -> Foresight | None:
        """The member that `choose` would give, and why; None if it would give none. This changes nothing."""
        group = self.groups.get(label)
        if group is None:
            return None
        if self.sticky:
            member = group.members.get(self.store.get_key((label, key), now) or "")
            if member is not None and member.due is None and member not in tried:
                return Foresight(member, "the key sticks to it", 1)
        return group.foresee(key, now, tried)

    def begin(self, member: Member) -> bool:
        """Count a request that goes to a member; `end` is called once for it.

        Returns:
            Whether it is the member's trial. Then `worked`, `failed` or `undecided` ends it, or it is not used.
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
        """Its trial, if one is under way, is over without an answer: the next request is a new trial."""
        if member.trying:
            assert member.due is not None
            self.rest(member, member.due)

    def worked(self, member: Member) -> bool:
        """A request, or a check, found that a member works: it is in, and its failures are forgotten.

        Returns:
            Whether it was out.
        """
        if member.drained or not member.failures:
            return False
        member.failures = 0
        self.store.put_health(member.name, None)
        if member.due is None:
            return False
        member.due = None
        member.trying = False
        for group in self.of[member]:
            group.resting.drop(member)
            group.balancer.add(member)
        return True

    def failed(self, member: Member, now: float) -> bool:
        """A request, or a check, failed because of the member.

        While it is out this counts for its trial, or when it is due: what began before must not add to the back-off.

        Returns:
            Whether that took it out.
        """
        if member.drained:
            return False
        member.failures += 1
        falls = member.due is None and member.failures >= self.failures
        if falls:
            member.backoff = self.shortest
            for group in self.of[member]:
                group.balancer.remove(member)
            self.rest(member, now + member.backoff)
        elif member.due is not None and (member.trying or member.due <= now):
            member.backoff = min(2 * member.backoff, self.longest)
            self.rest(member, now + member.backoff)
        self.store.put_health(member.name, Health(member.failures, member.backoff, member.due))
        return falls

    def drain(self, member: Member) -> None:
        """Give a member no more requests, until `undrain`; those that run go on."""
        if member.drained:
            return
        for group in self.of[member]:
            if member.due is None:
                group.balancer.remove(member)
            else:
                group.resting.drop(member)
        member.drained, member.due, member.trying = True, NEVER, False
        self.store.put_health(member.name, Health(member.failures, member.backoff, NEVER))

    def undrain(self, member: Member) -> None:
        """Give it requests again, as if it had never failed."""
        if member.drained:
            member.drained, member.due, member.failures = False, None, 0
            self.store.put_health(member.name, None)
            for group in self.of[member]:
                group.balancer.add(member)

    def rest(self, member: Member, due: float) -> None:
        """Leave a member alone until it is due."""
        member.due = due
        member.trying = False
        for group in self.of[member]:
            group.resting.put(member, due)


def make_key(by: Sequence[By], client: str, user: str | None, host: str, session: str | None = None) -> str:
    """The key of a request for ``hash`` and ``sticky``: what ``by`` names of its client, its user, its destination, and
    the session that its user name names.

    No two requests that differ in these have the same key: nothing of them holds a NUL.
    """
    parts = {"client": client, "user": user or "", "host": host, "session": session or ""}
    return "\0".join(parts[name] for name in by)
