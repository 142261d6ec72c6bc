"""What `policy` asks of users, one thing at a time: their secrets, groups, limits. Read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from tabi.config.schema import LimitsConfig, UserConfig
from tabi.policy.users import Secret

KNOWN = 10_000
"""Names of which a `Column` keeps what it has read."""

NO_LIMITS = LimitsConfig()
T = TypeVar("T")


class Has(msgspec.Struct):
    """What some of the users have: nothing is asked of all where none has it."""

    passwords: bool = False
    groups: bool = False
    limits: bool = False
    quotas: bool = False
    expires: bool = False
    sample: Secret | None = None
    """The first secret that is a hash."""

    @classmethod
    def of(cls, users: Mapping[str, UserConfig]) -> Has:
        """What users that were checked have."""
        has = cls()
        for user in users.values():
            has.note(user, user.secret if has.sample is None else None)
        return has

    def note(self, user: UserConfig, secret: Secret | None) -> None:
        """One more user."""
        limits = user.limits
        self.passwords = self.passwords or secret is not None
        self.groups = self.groups or bool(user.groups)
        self.limits = self.limits or limits != NO_LIMITS
        self.quotas = self.quotas or limits.quota is not None
        self.expires = self.expires or user.expires is not None
        if self.sample is None and secret is not None and secret.is_hash:
            self.sample = secret


class Column(Mapping[str, T]):
    """One thing of each user, read when it is asked for, and kept then.

    Args:
        users: of whom.
        read: gives it, None where there is none.
        some: whether any user has it: else nobody is looked for.
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
            # A name that nobody has is kept too: whoever tries it again shall not learn that by the time it takes.
            value = self.known[name] = None if user is None else self.read(user)
        return default if value is None else value
