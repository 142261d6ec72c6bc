"""Fixtures for the tests of distort/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tabi.distort import keeping
from tabi.distort.memory import Memory


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """What all stages of one test hold, if they have no memory of their own."""
    found = Memory()
    monkeypatch.setattr(keeping, "MEMORY", found)
    yield found
    assert found.held >= 0
