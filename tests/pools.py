"""Pools with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import Any, get_args

from tabi.policy.balance import Balance, Member
from tabi.policy.pool import Pool

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
