"""What `policy` needs of users, one property at a time: their secrets, groups, limits. Read on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from tabi.config.schema import LimitsConfig, UserConfig
from tabi.policy.users import Cost, Secret

KNOWN = 10_000
"""Names of which a `Column` keeps what it has read."""

NO_LIMITS = LimitsConfig()
T = TypeVar("T")


class Has(msgspec.Struct):
    """The properties that some users have: a property that no user has is never looked up."""

    passwords: bool = False
    groups: bool = False
    limits: bool = False
    quotas: bool = False
    expires: bool = False
    sample: Secret | None = None
    """The first secret that is a hash."""
    costs: dict[Cost, int] = {}
    """How many hashes have each cost."""

    @classmethod
    def of(cls, users: Mapping[str, UserConfig]) -> Has:
        """What users that were checked have."""
        has = cls()
        for user in users.values():
            has.note(user, user.secret)
        return has

    def note(self, user: UserConfig, secret: Secret | None) -> None:
        """One more user."""
        limits = user.limits
        self.passwords = self.passwords or secret is not None
        self.groups = self.groups or bool(user.groups)
        self.limits = self.limits or limits != NO_LIMITS
        self.quotas = self.quotas or limits.quota is not None
        self.expires = self.expires or user.expires is not None
        if secret is not None and secret.is_hash:
            self.sample = self.sample or secret
            self.costs[secret.cost] = self.costs.get(secret.cost, 0) + 1


class Column(Mapping[str, T]):
    """One property of each user, read on demand, and then kept.

    Args:
        users: the table of users.
        read: gives the property, None if the user does not have it.
        some: whether any user has it: if not, no user is looked up.
    """

    def __init__(self, users: Mapping[str, UserConfig], read: Callable[[UserConfig], T | None], some: bool) -> None:
        self.users = users
        self.read = read
        self.some = some
        self.known: dict[str, T | None] = {}

    def __bool__(self) -> bool:
        return self.some

    def __reduce__(self) -> Any:  # without what it keeps
        return Column, (self.users, self.read, self.some)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.users if self.get(name) is not None)

    def __getitem__(self, name: str) -> T:
        value: T | None = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """What a user has."""
        if not self.some:
            return default
        try:
            value = self.known[name]
        except KeyError:
            if len(self.known) >= KNOWN:
                del self.known[next(iter(self.known))]
            user = self.users.get(name)
            # An unknown name is kept too: a client that tries it again must not learn that from the time taken.
            value = self.known[name] = None if user is None else self.read(user)
        return default if value is None else value
