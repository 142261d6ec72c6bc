"""Faults as figures: what is nothing, and where a fault acts."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from tabi.policy.faults import CLEAR, Fault, Line

SOMETHING = [
    {"latency": 0.1},
    {"bandwidth": 1.0},
    {"loss": 0.1},
    {"duplicate": 0.1},
    {"reorder": 0.1},
    {"mtu": 100},
    {"corrupt": 0.1},
    {"slice": 1},
    {"limit": 1},
    {"stall": 0.0},
    {"blackhole": True},
    {"slow_close": 1.0},
]


@pytest.mark.parametrize("figures", SOMETHING)
def test_a_figure_acts_on_octets(figures: dict[str, Any]) -> None:
    """Of one direction or the other; a stall that begins at once is one too."""
    line = Line(**figures)
    assert not line.is_nothing
    for fault in (Fault(up=line), Fault(down=line)):
        assert (fault.at_dial, fault.on_octets, fault.on_http) == (False, True, False)


def test_nothing_is_nothing() -> None:
    """Also with a distribution of no jitter, and with bursts of no losses."""
    assert CLEAR.is_nothing
    assert Line(distribution="normal").is_nothing
    assert Line(latency=0.0, blackhole=False).is_nothing
    assert Line(loss=0.0, burst=3.0).is_nothing
    fault = Fault(up=Line(distribution="normal"))
    assert [fault.at_dial, fault.on_octets, fault.on_http] == [False, False, False]


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (Fault(refuse=5), "at_dial"),
        (Fault(resolve=4), "at_dial"),
        (Fault(dial_delay=1.0), "at_dial"),
        (Fault(resolve_delay=1.0), "at_dial"),
        (Fault(reset_after=1.0), "on_octets"),
        (Fault(close_after=1.0), "on_octets"),
        (Fault(tls_cut="reset"), "on_octets"),
        (Fault(status=503), "on_http"),
        (Fault(answer_delay=1.0), "on_http"),
        (Fault(truncate=1), "on_http"),
    ],
)
def test_where_a_fault_acts(fault: Fault, where: str) -> None:
    """Each in one place, so that a session pays for no other."""
    assert [name for name in ("at_dial", "on_octets", "on_http") if getattr(fault, name)] == [where]
    assert pickle.loads(pickle.dumps(fault)) == fault
