"""The text formats: one line for each value, whatever names hold, and counts of several workers in one."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from processes import need
from tabi.observe.exposition import METRICS, SECONDS, Labels, Value, add_up, escape, join, number, render

EMPTY = (0,) * (len(SECONDS) + 1)

SAMPLES: dict[str, dict[Labels, Value]] = {
    "tabi_denied_total": {(("action", "deny"), ("rule", "a")): 2},
    "tabi_handshake_seconds": {(): (1, 2, *EMPTY[2:-1], 4, 7.5)},
    "tabi_member_up": {(("pool", "p"), ("member", "m")): 1},
    "process_cpu_seconds_total": {(): 0.25},
}


def test_every_metric_says_what_it_is() -> None:
    """A line of help and one of the type for each, also without a value; its values stand behind them."""
    lines = render(SAMPLES).splitlines()
    assert [line for line in lines if line.startswith("# TYPE")] == [
        f"# TYPE {name} {metric.kind}" for name, metric in METRICS.items()
    ]
    assert [line for line in lines if line.startswith("# HELP")] == [
        f"# HELP {name} {metric.text}" for name, metric in METRICS.items()
    ]
    place = lines.index("# TYPE tabi_denied_total counter")
    assert lines[place + 1] == 'tabi_denied_total{action="deny",rule="a"} 2'
    assert "process_cpu_seconds_total 0.25" in lines


def test_names_are_as_prometheus_wants_them() -> None:
    """Counters end in _total, nothing else does; a help is one line."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"(tabi|process)_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.text.isprintable()


def test_a_histogram_has_all_below_each_bound() -> None:
    """The last bucket is the count."""
    lines = [line for line in render(SAMPLES).splitlines() if line.startswith("tabi_handshake_seconds")]
    assert lines[0] == 'tabi_handshake_seconds_bucket{le="0.0005"} 1'
    assert lines[1] == 'tabi_handshake_seconds_bucket{le="0.001"} 3'
    assert lines[-3:] == [
        'tabi_handshake_seconds_bucket{le="+Inf"} 7',
        "tabi_handshake_seconds_sum 7.5",
        "tabi_handshake_seconds_count 7",
    ]


def test_other_programs_read_it() -> None:
    """Prometheus' own parsers, of both formats, find the same values."""
    for parse, openmetrics in ((parse_text, False), (parse_openmetrics, True)):
        found = {
            (sample.name, tuple(sample.labels.items())): sample.value
            for family in parse(render(SAMPLES, openmetrics))
            for sample in family.samples
        }
        assert found["tabi_denied_total", (("action", "deny"), ("rule", "a"))] == 2
        assert found["tabi_handshake_seconds_count", ()] == 7
        assert found["tabi_member_up", (("pool", "p"), ("member", "m"))] == 1
        assert found["process_cpu_seconds_total", ()] == 0.25


@pytest.mark.interop
def test_promtool_finds_nothing_wrong() -> None:
    """It checks names, types and helps, too."""
    done = subprocess.run(
        [need("promtool"), "check", "metrics"], input=render(SAMPLES), capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_workers_are_added_up() -> None:
    """Counts and histograms are sums; some gauges are the least or the greatest."""
    up: Labels = (("pool", "p"), ("member", "m"))
    one: dict[str, dict[Labels, Value]] = {
        "tabi_denied_total": {(): 1},
        "tabi_dial_seconds": {(): (1, 0.5)},
        "tabi_member_up": {up: 1},
        "tabi_loop_lag_seconds": {(): 0.1},
    }
    other: dict[str, dict[Labels, Value]] = {
        "tabi_denied_total": {(): 2, (("rule", "x"),): 5},
        "tabi_dial_seconds": {(): (2, 0.25)},
        "tabi_member_up": {up: 0},
        "tabi_loop_lag_seconds": {(): 0.3},
    }
    assert add_up((one, other)) == {
        "tabi_denied_total": {(): 3, (("rule", "x"),): 5},
        "tabi_dial_seconds": {(): (3, 0.75)},
        "tabi_member_up": {up: 0},
        "tabi_loop_lag_seconds": {(): 0.3},
    }
    assert one["tabi_denied_total"] == {(): 1}
    assert add_up(()) == {}
    assert join(3, 2, "min") == 2


def test_numbers_have_no_needless_fraction() -> None:
    """As people and other exporters write them."""
    assert [number(value) for value in (3.0, 0, 0.5, 1e9, 12345678901234)] == [
        "3",
        "0",
        "0.5",
        "1000000000",
        "12345678901234",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("plain", "plain"), ("a\\b", "a\\\\b"), ('"', '\\"'), ("\n", "\\n"), ("\\n", "\\\\n"), ("é", "é")],
)
def test_labels_are_escaped_once(value: str, expected: str) -> None:
    """Three characters have an escape; a backslash in front of an n is not a line feed."""
    assert escape(value) == expected


@given(st.text())
def test_any_label_reads_back(value: str) -> None:
    """Whatever a rule is called, it stays one line, from which its name can be read."""
    text = render({"tabi_denied_total": {(("rule", value),): 1}})
    (line,) = [line for line in text.split("\n") if line and not line.startswith("#")]
    found = re.fullmatch(r'tabi_denied_total\{rule="((?:[^"\\\n]|\\[\\"n])*)"\} 1', line)
    assert found is not None
    assert re.sub(r"\\(.)", lambda escaped: {"n": "\n"}.get(escaped[1], escaped[1]), found[1]) == value
