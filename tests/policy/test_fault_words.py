"""Faults, schedules and rewrites in words: each figure is said once, in units that tabi.toml reads."""

from __future__ import annotations

from datetime import time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.distorts import Distort
from tabi.policy.fault_words import format_rate, format_seconds, words_of, words_of_fault, words_of_schedule
from tabi.policy.faults import Fault, Line
from tabi.policy.quantities import Bandwidth, Seconds
from tabi.policy.rewrites import FieldChanges, Rewrite
from tabi.policy.rules import Texts, make_rule
from tabi.policy.schedule import ALWAYS, Cycle, Daily, Schedule


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (Line(blackhole=True), "blackhole"),
        (Line(stall=0.0), "stall at once"),
        (Line(stall=5.0), "stall after 5 s"),
        (Line(corrupt=0.001), "corrupt 0.1%"),
        (Line(limit=10_000), "limit 10 kB, then close"),
        (Line(loss=0.1), "loss 10%"),
        (Line(loss=0.1, burst=3.5), "loss 10% in bursts of 3.5"),
        (Line(duplicate=0.01, reorder=0.02, mtu=1200), "duplicate 1%, reorder 2%, MTU 1200"),
        (Line(bandwidth=1e6), "bandwidth 1 MB/s"),
        (Line(bandwidth=1e6, queue=65536), "bandwidth 1 MB/s with a queue of 64 KiB"),
        (Line(latency=0.2), "latency 200 ms"),
        (Line(latency=0.2, jitter=0.05, distribution="normal"), "latency 200 ms ± 50 ms (normal)"),
        (Line(slice=100), "slices of 100 B"),
        (Line(slice=100, slice_variation=50, slice_gap=0.01), "slices of 100 B ± 50 B each 10 ms"),
        (Line(slow_close=2.0), "slow close 2 s"),
    ],
)
def test_figures_of_a_direction(line: Line, words: str) -> None:
    """What holds for both directions is said once, what holds for one with its name."""
    assert words_of_fault(Fault(up=line, down=line)) == words
    assert words_of_fault(Fault(up=line)) == f"up: {words}"
    assert words_of_fault(Fault(down=line)) == f"down: {words}"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(up=Line(latency=0.1, bandwidth=10.0), down=Line(latency=0.1, bandwidth=2e3)),
         "latency 100 ms; up: bandwidth 10 B/s; down: bandwidth 2 kB/s"),
        (Fault(up=Line(limit=1), then="reset"), "up: limit 1 B, then reset"),
        (Fault(down=Line(bandwidth=2e9), shared=True), "down: bandwidth 2 GB/s shared by all"),
        (Fault(refuse=5, dial_delay=2.0), "refused: 5 (connection refused), dialled after 2 s"),
        (Fault(resolve=4), "names refused: 4 (host unreachable)"),
        (Fault(resolve_delay=0.5), "names take 500 ms"),
        (Fault(tls_cut="reset"), "reset in the TLS handshake"),
        (Fault(reset_after=10.0), "reset after 10 s"),
        (Fault(close_after=0.25), "close after 250 ms"),
        (Fault(status=503), "HTTP status 503"),
        (Fault(answer_delay=1.5, truncate=100), "HTTP answers after 1.5 s, HTTP answers cut after 100 B"),
        (Fault(), ""),
    ],
)  # fmt: skip
def test_faults(fault: Fault, words: str) -> None:
    """Both directions first, with what has no direction; then each direction's own."""
    assert words_of_fault(fault) == words


def test_schedules() -> None:
    """Times of day have their zone, points of time are UTC, and a cycle stands as it was written."""
    berlin = ZoneInfo("Europe/Berlin")
    assert words_of_schedule(ALWAYS) == ""
    daily = Schedule(Daily(time(22), berlin), Daily(time(6, 0, 30), ZoneInfo("UTC")))
    assert words_of_schedule(daily) == "from 22:00 Europe/Berlin, until 06:00:30 UTC"
    cycle = Schedule(1800000000.0, None, Cycle.parse("30 s good, 5 s gone"))
    assert words_of_schedule(cycle) == "from 2027-01-15T08:00:00Z, 30 s good, 5 s gone, again and again"


def test_entries() -> None:
    """Everything that an entry does is named; the values of fields are not, nor a password in a URL."""
    rule = make_rule(0, "deny", Texts(), "x")
    request = FieldChanges(("Via", "X-A"), (("Authorization", "secret"),), (("X-B", "secret"),), ("Host", "Accept"))
    rewrite = Rewrite(
        request,
        FieldChanges(("Server",)),
        True,
        "http://user:secret@127.0.0.1:8000",
        status=503,
        body="/body.json",
        profile="chrome:stable",
    )
    distort = Distort(rule, "x", fault=Fault(reset_after=1.0), rewrite=rewrite, tls="mirror")
    assert words_of(distort) == (
        "reset after 1 s; request fields: remove Via X-A, set Authorization, append X-B, order Host Accept; "
        "response fields: remove Server; no cookies; to http://127.0.0.1:8000; status 503; content of /body.json; "
        "fields as chrome:stable; TLS as mirror"
    )
    assert words_of(Distort(rule, "x", rewrite=Rewrite(map_local="/files"))) == "answered from /files"
    assert words_of(Distort(rule, "x", rewrite=Rewrite())) == ""
    assert words_of(Distort(rule, "x", tls="mirror")) == "TLS as mirror"


@given(st.floats(1e-6, 99_999), st.floats(1, 1e12))
def test_durations_and_rates_read_back(seconds: float, octets: float) -> None:
    """What is shown can be written into a file: it is the same to six digits."""
    assert Seconds.parse(format_seconds(seconds)) == pytest.approx(seconds, rel=1e-5)
    assert Bandwidth.parse(format_rate(octets)) == pytest.approx(octets, rel=1e-5)
