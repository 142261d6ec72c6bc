"""The last hour of the server: a row every ten seconds, for graphs without another service."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from tabi.observe.exposition import Labels, Value

EVERY = 10.0
"""Seconds between two rows."""

ROWS = 360

Samples = Mapping[str, Mapping[Labels, Value]]


class History:
    """Keeps rows.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.rows: deque[dict[str, Any]] = deque(maxlen=ROWS)
        self.before: tuple[float, dict[str, float]] | None = None
        self.members: dict[Labels, deque[bool]] = {}
        """Whether each member of a pool took requests, the latest last."""

    def add(self, samples: Samples) -> None:
        """Add a row of what has been since the last one."""
        up = samples.get("tabi_member_up", {})
        self.members = {labels: self.members.get(labels, deque(maxlen=ROWS)) for labels in up}
        for labels, value in up.items():
            self.members[labels].append(value == 1)
        now, found = self.clock(), totals(samples)
        if self.before is not None and now > self.before[0]:
            then, last = self.before
            rates = {f"{name}_rate": round(max(0.0, found[name] - last[name]) / (now - then), 3) for name in COUNTED}
            gauges = {"open": found["open"], "memory": found["memory"], "lag": found["lag"]}
            self.rows.append({"time": round(now, 1), **gauges, **rates})
        self.before = now, found

    @property
    def health(self) -> list[dict[str, Any]]:
        """Whether each member took requests: a letter for each look, ``1`` or ``0``."""
        return [
            {**dict(labels), "looks": "".join("1" if up else "0" for up in looks)}
            for labels, looks in self.members.items()
        ]


COUNTED = ("sessions", "refused", "up", "down", "cpu")
"""What is shown for each second."""


def totals(samples: Samples) -> dict[str, float]:
    """What a row is made of."""

    def add_up(name: str, *wanted: tuple[str, str]) -> float:
        return sum(
            value
            for labels, value in samples.get(name, {}).items()
            if not isinstance(value, tuple) and set(wanted) <= set(labels)
        )

    return {
        "open": add_up("tabi_sessions_open"),
        "sessions": add_up("tabi_sessions_total") + add_up("tabi_sessions_open"),
        "refused": add_up("tabi_sessions_total", ("close", "denied"))
        + add_up("tabi_sessions_total", ("close", "limit")),
        "up": add_up("tabi_octets_total", ("direction", "up")),
        "down": add_up("tabi_octets_total", ("direction", "down")),
        "cpu": add_up("process_cpu_seconds_total"),
        "memory": add_up("process_resident_memory_bytes"),
        "lag": add_up("tabi_loop_lag_seconds"),
    }
