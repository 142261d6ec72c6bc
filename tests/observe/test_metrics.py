"""Metrics: what was counted, in the text format of Prometheus."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.observe.metrics import HELP, Metrics, escape


def test_counters_go_by_their_labels() -> None:
    """Each combination counts for itself; what was never counted is 0."""
    metrics = Metrics()
    metrics.count("tabi_limited_total", limit="quota")
    metrics.count("tabi_limited_total", limit="quota")
    metrics.count("tabi_limited_total", limit="connections")
    assert metrics.value("tabi_limited_total", limit="quota") == 2
    assert metrics.value("tabi_limited_total", limit="connections") == 1
    assert metrics.value("tabi_limited_total", limit="expires") == 0


def test_the_text_says_what_each_is() -> None:
    """A line of help and one of the type for each metric, also where nothing was counted; then its values, sorted."""
    metrics = Metrics()
    metrics.count("tabi_denied_total", action="reset", rule="b")
    metrics.count("tabi_denied_total", action="deny", rule="a")
    lines = metrics.render().splitlines()
    assert metrics.render().endswith("\n")
    assert [line for line in lines if line.startswith("# TYPE")] == [f"# TYPE {name} counter" for name in HELP]
    assert [line for line in lines if line.startswith("# HELP")] == [
        f"# HELP {name} {text}" for name, text in HELP.items()
    ]
    assert [line for line in lines if not line.startswith("#")] == [
        'tabi_denied_total{action="deny",rule="a"} 1',
        'tabi_denied_total{action="reset",rule="b"} 1',
    ]


def test_labels_cannot_break_out() -> None:
    """A rule may have any name."""
    metrics = Metrics()
    metrics.count("tabi_denied_total", action="deny", rule='a"} 5\n\\')
    assert 'rule="a\\"} 5\\n\\\\"} 1' in metrics.render()


def test_what_was_not_counted_is_none() -> None:
    """Nothing has to be known before it is counted, and asking makes nothing."""
    metrics = Metrics()
    assert metrics.value("tabi_denied_total", action="deny", rule="a") == 0
    assert metrics.counts == {}
    assert [line for line in metrics.render().splitlines() if not line.startswith("#")] == []


def test_values_stand_behind_their_own_metric() -> None:
    """The format wants all lines of a metric together, behind its help."""
    metrics = Metrics()
    for _ in range(3):
        metrics.count("tabi_limited_total", limit="quota")
        metrics.count("tabi_denied_total", action="drop", rule="")
    names = [
        re.sub(r"^# (HELP|TYPE) ", "", line).partition("{")[0].split()[0] for line in metrics.render().splitlines()
    ]
    assert names == [name for name in HELP for _ in range(3)]
    assert 'tabi_limited_total{limit="quota"} 3\n' in metrics.render()


@pytest.mark.parametrize(
    ("value", "expected"),
    [("plain", "plain"), ("a\\b", "a\\\\b"), ('"', '\\"'), ("\n", "\\n"), ("\\n", "\\\\n"), ("é", "é")],
)
def test_labels_are_escaped_once(value: str, expected: str) -> None:
    """Three characters have an escape; a backslash in front of an n is not a line feed."""
    assert escape(value) == expected


LINE = re.compile(r'tabi_denied_total\{action="deny",rule="((?:[^"\\\n]|\\[\\"n])*)"\} 1')


@given(st.text())
def test_any_label_reads_back(value: str) -> None:
    """Whatever a rule is called, it stays one line, from which its name can be read."""
    metrics = Metrics()
    metrics.count("tabi_denied_total", action="deny", rule=value)
    (line,) = [line for line in metrics.render().split("\n") if line and not line.startswith("#")]
    found = LINE.fullmatch(line)
    assert found is not None
    read = re.sub(r"\\(.)", lambda escaped: {"n": "\n"}.get(escaped[1], escaped[1]), found[1])
    assert read == value
