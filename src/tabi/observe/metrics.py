"""Metrics: the counts of a worker, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from typing import Final

HELP: Final = {
    "tabi_denied_total": "Requests that a rule or the program's final decision refused, by action and rule.",
    "tabi_limited_total": "Requests and sessions that a limit refused, had wait or ended, by the limit's key.",
}
"""Every metric, with its description. Labels take their values from the configuration only, so that they are
bounded."""


class Metrics:
    """Counters by name and labels."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def count(self, name: str, **labels: str) -> None:
        """Add one."""
        key = name, tuple(labels.items())
        self.counts[key] = self.counts.get(key, 0) + 1

    def value(self, name: str, **labels: str) -> int:
        """The counts so far."""
        return self.counts.get((name, tuple(labels.items())), 0)

    def render(self) -> str:
        """All of them as text."""
        lines = []
        for name, text in HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            for (found, labels), count in sorted(self.counts.items()):
                if found == name:
                    inside = ",".join(f'{key}="{escape(value)}"' for key, value in labels)
                    lines.append(f"{name}{{{inside}}} {count}")
        return "\n".join(lines) + "\n"


def escape(value: str) -> str:
    """A label's value as the format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
