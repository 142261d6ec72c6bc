"""What a pool remembers of its keys and its members, by the names of members: it may outlive the pool.

A pool asks for keys at each choice, so the store must answer at once; it reports health only when that changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import NamedTuple, Protocol

KEYS = 10_000
"""Sticky keys that are remembered; beyond that the key that was unused longest is forgotten."""

StickyKey = tuple[str | None, str]
"""A label, or None, and the key of a request."""


class Health(NamedTuple):
    """The failures that are recorded for a member."""

    failures: int
    """Failures in a row."""
    backoff: float
    """Seconds that it was out the last time."""
    due: float | None
    """When it is tried again; None if it is not out."""


class PoolStore(Protocol):
    """Where a pool keeps what it remembers. None of this may wait, or raise. Times are the pool's."""

    def get_key(self, key: StickyKey, now: float) -> str | None:
        """The member that a key sticks to."""

    def put_key(self, key: StickyKey, member: str, now: float, ttl: float) -> None:
        """Have a key stick to a member for ``ttl`` seconds from now."""

    def get_health(self, member: str) -> Health | None:
        """The failures that are recorded for a member; None if there are none."""

    def put_health(self, member: str, health: Health | None) -> None:
        """Record the failures of a member."""

    def succeed(self, same: Collection[str]) -> PoolStore:
        """The store of the pool that takes this one's place; ``same`` are the members that are still what they were."""


class MemoryStore:
    """A store in the memory of one worker.

    Args:
        keys: sticky keys that are remembered.
    """

    __slots__ = ("health", "keys", "stuck")

    def __init__(self, keys: int = KEYS) -> None:
        self.keys = keys
        self.stuck: OrderedDict[StickyKey, tuple[str, float]] = OrderedDict()  # each use moves one to the end
        self.health: dict[str, Health] = {}

    def get_key(self, key: StickyKey, now: float) -> str | None:
        """See `PoolStore`."""
        found = self.stuck.get(key)
        return found[0] if found is not None and found[1] > now else None

    def put_key(self, key: StickyKey, member: str, now: float, ttl: float) -> None:
        """See `PoolStore`."""
        stuck = self.stuck
        if key in stuck:
            stuck.move_to_end(key)
        else:
            while stuck and next(iter(stuck.values()))[1] <= now:
                stuck.popitem(last=False)
            if len(stuck) >= self.keys:
                stuck.popitem(last=False)
        stuck[key] = member, now + ttl

    def get_health(self, member: str) -> Health | None:
        """See `PoolStore`."""
        return self.health.get(member)

    def put_health(self, member: str, health: Health | None) -> None:
        """See `PoolStore`."""
        if health is None:
            self.health.pop(member, None)
        else:
            self.health[member] = health

    def succeed(self, same: Collection[str]) -> MemoryStore:
        """See `PoolStore`: a copy, since requests that are under way may end in the previous pool."""
        other = MemoryStore(self.keys)
        other.stuck = self.stuck.copy()
        other.health = {member: health for member, health in self.health.items() if member in same}
        return other
