"""How deep a run of the tests goes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

DEEP = os.environ.get("TABI_TESTS", "") == "deep"
"""Whether everything is run (`make test-deep`): minutes more, for the sake of combinations that seldom matter."""

PORTABLE = os.environ.get("TABI_TESTS", "") == "portable"
"""Whether the tests do without all that Linux alone offers (`make test-portable`)."""


def deep(parameters: Iterable[T]) -> list[T]:
    """Give parameters to the deep run only: ``["a", "b", *deep(["c", "d"])]``."""
    return list(parameters) if DEEP else []
