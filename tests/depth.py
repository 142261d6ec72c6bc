"""How deep a run of the tests goes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any, TypeVar

T = TypeVar("T")

DEEP = os.environ.get("TABI_TESTS", "") == "deep"
"""Whether everything is run (`make test-deep`): minutes more, for the sake of combinations that seldom matter."""

PORTABLE = os.environ.get("TABI_TESTS", "") == "portable"
"""Whether the tests do without all that Linux alone offers (`make test-portable`)."""


def deep(parameters: Iterable[T]) -> list[T]:
    """Give parameters to the deep run only: ``["a", "b", *deep(["c", "d"])]``."""
    return list(parameters) if DEEP else []


def pairs(*lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The product of some lists for the deep run, else so much of it that any two values of two lists meet."""
    whole = [*product(*map(range, map(len, lists)))]
    chosen, met = whole if DEEP else [], set[Any]()
    while not DEEP:
        best = max(whole, key=lambda one: len({*combinations(enumerate(one), 2)} - met))
        if met.issuperset(combinations(enumerate(best), 2)):
            break
        met.update(combinations(enumerate(best), 2))
        chosen.append(best)
    return [tuple(values[at] for values, at in zip(lists, one, strict=True)) for one in chosen]
