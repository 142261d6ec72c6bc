"""What a worker counts: refusals, sessions as they end, and how long things took."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from time import time
from typing import Any

from tabi.observe.exposition import SECONDS, Labels, Value, render
from tabi.observe.observers import SessionObserver
from tabi.session import Session

MOST = 10_000
"""Rows of sessions, and of other counts; what would be one more counts as ``other``. Only a program can make so many:
its egresses may have any name."""

REFUSALS = 200
"""Refused sessions that are remembered."""

OTHER = ("other", None, None, "other", None, "error")

Kind = tuple[str, str | None, str | None, str | None, int | None, str]
"""Listener, protocol, command, egress, reply and end of a session."""


class Row:
    """All sessions of a kind that are over."""

    __slots__ = ("datagrams_down", "datagrams_up", "down", "sessions", "up")

    def __init__(self) -> None:
        self.sessions = self.up = self.down = self.datagrams_up = self.datagrams_down = 0


class Histogram:
    """Counts of how long something took, in buckets."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    @property
    def value(self) -> tuple[float, ...]:
        """See `exposition.Value`."""
        return (*self.counts, self.total)


class Metrics(SessionObserver):
    """Counts by name and labels, and the sessions that are over.

    What is counted for each session is found by one look into a dict, since it costs each of them.
    """

    title = "metrics"

    def __init__(self) -> None:
        self.counts: dict[tuple[str, Labels], int] = {}
        self.rows: dict[Kind, Row] = {}
        self.refusals: deque[dict[str, Any]] = deque(maxlen=REFUSALS)
        """The last sessions that were refused, the latest first."""
        self.handshake, self.dial, self.dns = Histogram(), Histogram(), Histogram()

    def count(self, name: str, **labels: str) -> None:
        """Add one."""
        self.add(name, 1, **labels)

    def value(self, name: str, **labels: str) -> int:
        """The counts so far."""
        return self.counts.get((name, tuple(labels.items())), 0)

    def ended(self, session: Session) -> None:
        """See `SessionObserver`."""
        if session.silent is None:  # as from a health check
            return
        key: Kind = session.listener, session.protocol, session.command, session.via, session.reply_code, session.close
        row = self.rows.get(key)
        if row is None:
            key = key if len(self.rows) < MOST else OTHER
            row = self.rows.setdefault(key, Row())
        row.sessions += 1
        row.up += session.up
        row.down += session.down
        if session.close in ("denied", "limit"):
            self.refusals.appendleft(refusal(session))
        if session.asked:
            self.handshake.observe(session.asked - session.started)
        if session.connect_seconds is not None:
            self.dial.observe(session.connect_seconds)
        if session.drops is not None:
            row.datagrams_up += session.datagrams_up
            row.datagrams_down += session.datagrams_down
            for reason, number in session.drops.items():
                self.add("tabi_datagrams_dropped_total", number, reason=reason)
        if session.intercepted is not None:
            self.count("tabi_intercepted_total", intercept=session.intercepted)
        if session.distorted:
            for drawn in session.distorted:
                self.count("tabi_faults_total", fault=drawn.entry.distort.label)

    def add(self, name: str, number: int, **labels: str) -> None:
        """Add some. Names come from configurations, of which there may be many, and from faults that are set."""
        key = name, tuple(labels.items())
        if key not in self.counts and len(self.counts) >= MOST:
            key = name, tuple((label, "other") for label in labels)
        self.counts[key] = self.counts.get(key, 0) + number

    @property
    def samples(self) -> dict[str, dict[Labels, Value]]:
        """All that was counted."""
        found: dict[str, dict[Labels, Value]] = {
            "tabi_handshake_seconds": {(): self.handshake.value},
            "tabi_dial_seconds": {(): self.dial.value},
            "tabi_dns_seconds": {(): self.dns.value},
        }
        for (name, labels), count in self.counts.items():
            found.setdefault(name, {})[labels] = count
        sessions = found["tabi_sessions_total"] = {}
        octets = found["tabi_octets_total"] = {}
        datagrams = found["tabi_datagrams_total"] = {}
        for (listener, protocol, command, via, reply, close), row in self.rows.items():
            labels = (
                *labels_of(listener, protocol, command, via),
                ("reply", "" if reply is None else str(reply)),
                ("close", close),
            )
            sessions[labels] = row.sessions
            add_moved(octets, command, via, row.up, row.down)
            if row.datagrams_up or row.datagrams_down:
                add_moved(datagrams, command, via, row.datagrams_up, row.datagrams_down)
        return found

    def render(self) -> str:
        """All of them as text for Prometheus; see `exposition`."""
        return render(self.samples)


def refusal(session: Session) -> dict[str, Any]:
    """What is kept of a session that was refused."""
    destination = session.destination
    return {
        "time": round(time(), 3),
        "number": session.number,
        "listener": session.listener,
        "protocol": session.protocol,
        "command": session.command,
        "client": str(session.client),
        "user": session.user,
        "host": None if destination is None else str(destination.host),
        "port": None if destination is None else destination.port,
        "rule": session.rule,
        "reply": session.reply_code,
        "error": session.error,
        "close": session.close,
    }


def labels_of(listener: str, protocol: str | None, command: str | None, via: str | None) -> Labels:
    """The labels of a session."""
    return (
        ("listener", listener),
        ("protocol", protocol or ""),
        ("command", command or ""),
        ("egress", via or ""),
    )


def add_moved(found: dict[Labels, Value], command: str | None, via: str | None, up: float, down: float) -> None:
    """Add what sessions have moved."""
    for direction, number in (("up", up), ("down", down)):
        labels = ("direction", direction), ("command", command or ""), ("egress", via or "")
        found[labels] = found.get(labels, 0) + number  # type: ignore[operator]
