"""Streams of a frame relay: how often something may happen. What an inspector does is in test_http2.py."""

from __future__ import annotations

import pytest

from tabi.errors import H2Error
from tabi.intercept.http2_stream import Budget


def test_a_budget_is_for_bursts_and_a_rate() -> None:
    """Less than a burst at any time; more in the time that the rate gives; more if there was a reason."""
    now = 0.0
    budget = Budget(10, 2.0, lambda: now)
    for _ in range(9):
        budget.spend("things")
    now = 5.0
    budget.spend("things")
    for _ in range(9):
        budget.spend("things", 100)
    budget.spend("things", 110)
    for _ in range(9):
        budget.spend("things", 111)
    with pytest.raises(H2Error, match="too many things") as caught:
        budget.spend("things", 111)
    assert caught.value.code == 11
