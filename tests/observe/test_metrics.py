"""Metrics of a worker: what is counted of sessions as they end, and how many names there are at most."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tabi.observe import metrics as module
from tabi.observe.exposition import SECONDS
from tabi.observe.metrics import REFUSALS, Histogram, Metrics, add_moved
from tabi.session import Session
from tabi.wire.address import Address, parse_address


def session(**facts: Any) -> Session:
    """A session of socks5 with these facts."""
    made = Session(1, "socks5://l:1", parse_address("192.0.2.1:5"), 100.0)
    for name, value in {"protocol": "socks5", "command": "connect", "via": "direct", **facts}.items():
        setattr(made, name, value)
    return made


def values(metrics: Metrics, name: str) -> dict[str, Any]:
    """The values of a metric, by its labels in one text."""
    return {",".join(f"{key}={text}" for key, text in labels): value for labels, value in metrics.samples[name].items()}


def test_counters_go_by_their_labels() -> None:
    """Each combination counts for itself; what was never counted is 0, and asking makes nothing."""
    metrics = Metrics()
    metrics.count("tabi_limited_total", limit="quota")
    metrics.count("tabi_limited_total", limit="quota")
    metrics.count("tabi_limited_total", limit="connections")
    assert metrics.value("tabi_limited_total", limit="quota") == 2
    assert metrics.value("tabi_limited_total", limit="connections") == 1
    assert metrics.value("tabi_limited_total", limit="expires") == 0
    assert len(metrics.counts) == 2


def test_what_was_counted_is_in_the_text() -> None:
    """Sorted, behind the help of its metric."""
    metrics = Metrics()
    metrics.count("tabi_denied_total", action="reset", rule="b")
    metrics.count("tabi_denied_total", action="deny", rule="a")
    lines = metrics.render().splitlines()
    place = lines.index("# TYPE tabi_denied_total counter")
    assert lines[place + 1 : place + 3] == [
        'tabi_denied_total{action="deny",rule="a"} 1',
        'tabi_denied_total{action="reset",rule="b"} 1',
    ]


def test_sessions_are_counted_by_what_they_were() -> None:
    """Listener, protocol, command, egress, reply and end are labels; what they have moved is added up."""
    metrics = Metrics()
    for _ in range(2):
        metrics.ended(session(close="client", reply_code=0, up=3, down=5, asked=100.25, connect_seconds=0.02))
    metrics.ended(session(close="error", protocol=None, command=None, via=None))
    kind = "listener=socks5://l:1,protocol={},command={},egress={},reply={},close={}"
    assert values(metrics, "tabi_sessions_total") == {
        kind.format("socks5", "connect", "direct", "0", "client"): 2,
        kind.format("", "", "", "", "error"): 1,
    }
    assert values(metrics, "tabi_octets_total") == {
        "direction=up,command=connect,egress=direct": 6,
        "direction=down,command=connect,egress=direct": 10,
        "direction=up,command=,egress=": 0,
        "direction=down,command=,egress=": 0,
    }
    assert values(metrics, "tabi_datagrams_total") == {}
    assert metrics.handshake.value[-1] == 0.5
    assert metrics.dial.value[-1] == 0.04
    assert sum(metrics.dial.counts) == 2


def test_datagrams_and_drops_are_counted() -> None:
    """Drops by their reason."""
    metrics = Metrics()
    for _ in range(2):
        drops = {"rule": 2}
        metrics.ended(session(command="associate", close="client", drops=drops, datagrams_up=1, datagrams_down=4))
    assert values(metrics, "tabi_datagrams_total") == {
        "direction=up,command=associate,egress=direct": 2,
        "direction=down,command=associate,egress=direct": 8,
    }
    assert metrics.value("tabi_datagrams_dropped_total", reason="rule") == 4


def test_what_was_done_to_sessions_is_counted() -> None:
    """Interception by its entry, each fault by its name."""
    metrics = Metrics()
    drawn = [SimpleNamespace(entry=SimpleNamespace(distort=SimpleNamespace(label=name))) for name in ("slow", "lossy")]
    metrics.ended(session(close="client", intercepted="all", distorted=drawn))
    assert metrics.value("tabi_intercepted_total", intercept="all") == 1
    assert metrics.value("tabi_faults_total", fault="slow") == metrics.value("tabi_faults_total", fault="lossy") == 1


def test_a_health_check_is_no_session() -> None:
    """A connection without an octet is left out, as in the access log."""
    metrics = Metrics()
    metrics.ended(session(silent=None))
    assert metrics.samples["tabi_sessions_total"] == {}


def test_the_last_refusals_are_remembered() -> None:
    """The latest first, with what was asked for and why not; no more than there is room for."""
    metrics = Metrics()
    metrics.ended(session(close="client"))
    for number in range(REFUSALS + 5):
        refused = session(number=number, close="denied", rule="no", user="bob", error="rule no: deny")
        refused.destination = Address("c.test", 25)
        metrics.ended(refused)
    metrics.ended(session(close="limit", user=None))
    assert len(metrics.refusals) == REFUSALS
    first, second = metrics.refusals[0], metrics.refusals[1]
    assert (first["close"], first["host"], first["port"]) == ("limit", None, None)
    assert (second["number"], second["user"], second["host"], second["port"]) == (REFUSALS + 4, "bob", "c.test", 25)
    assert (second["rule"], second["error"], second["client"]) == ("no", "rule no: deny", "192.0.2.1:5")


def test_kinds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose egresses have any names makes no more rows than that: further ones are one row, and no session
    is lost."""
    monkeypatch.setattr(module, "MOST", 3)
    metrics = Metrics()
    for number in range(10):
        metrics.ended(session(via=f"e{number}", close="client"))
    assert len(metrics.rows) == 4
    assert sum(row.sessions for row in metrics.rows.values()) == 10


def test_names_of_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that are set while it runs have ever new names: they become ``other``."""
    monkeypatch.setattr(module, "MOST", 3)
    metrics = Metrics()
    for number in range(10):
        metrics.count("tabi_faults_total", fault=f"fault-{number}")
    metrics.count("tabi_faults_total", fault="fault-1")
    assert metrics.value("tabi_faults_total", fault="fault-1") == 2
    assert metrics.value("tabi_faults_total", fault="other") == 7
    assert len(metrics.counts) == 4


def test_a_histogram_counts_up_to_its_bounds() -> None:
    """A bound itself is below; what is above all of them is in the last bucket."""
    histogram = Histogram()
    for seconds in (0.0, SECONDS[0], SECONDS[-1], 99.0):
        histogram.observe(seconds)
    *counts, total = histogram.value
    assert (counts[0], counts[-2], counts[-1]) == (2, 1, 1)
    assert total == SECONDS[0] + SECONDS[-1] + 99


def test_what_was_moved_is_added() -> None:
    """Kinds that differ in what is no label here are one value."""
    found: dict[Any, Any] = {}
    add_moved(found, None, None, 1, 2)
    add_moved(found, None, None, 1, 2)
    assert sorted(found.values()) == [2, 4]
