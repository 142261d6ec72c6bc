"""Metrics of workers added up, and as the text that Prometheus reads: format 0.0.4, or OpenMetrics 1.0.

https://prometheus.io/docs/instrumenting/exposition_formats/, https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values, in the order in which they are shown."""

Value: TypeAlias = float | tuple[float, ...]
"""A number; of a histogram the count of each bucket, then the sum of all that was observed."""

Samples: TypeAlias = Mapping[str, Mapping[Labels, Value]]
"""By the names of metrics, then by labels."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of buckets; there is one more for what is above."""

TEXT, OPENMETRICS = (
    "text/plain; version=0.0.4; charset=utf-8",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
)
"""The media types of both formats."""


class Metric(NamedTuple):
    """What a metric is."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    join: Literal["sum", "min", "max"] = "sum"
    """How the values of several workers become one."""


METRICS: Final = {
    "tabi_sessions_total": Metric(
        "counter", "Sessions that are over, refused ones too; close says how they ended, reply the code that was sent."
    ),
    "tabi_sessions_open": Metric("gauge", "Sessions that run now."),
    "tabi_octets_total": Metric(
        "counter", "Octets of payload that were carried, up from clients and down to them; of running sessions too."
    ),
    "tabi_datagrams_total": Metric("counter", "Datagrams that were carried; of running associations too."),
    "tabi_datagrams_dropped_total": Metric("counter", "Datagrams that were dropped, by reason."),
    "tabi_handshake_seconds": Metric(
        "histogram", "From the accept of a connection to its CONNECT that was not refused."
    ),
    "tabi_dial_seconds": Metric("histogram", "How long it took to open destinations, through other proxies too."),
    "tabi_dns_seconds": Metric("histogram", "How long answers of name servers took; what is cached does not count."),
    "tabi_denied_total": Metric(
        "counter", "Requests that a rule or the program's final decision refused, by action and rule."
    ),
    "tabi_limited_total": Metric(
        "counter", "Requests and sessions that a limit refused, had wait or ended, by the limit's key."
    ),
    "tabi_clients_waiting": Metric("gauge", "Connections that have not asked for anything yet."),
    "tabi_member_up": Metric("gauge", "Whether a member of a pool takes requests, in all workers.", "min"),
    "tabi_member_sessions": Metric("gauge", "Requests that run through a member of a pool."),
    "tabi_intercepted_total": Metric("counter", "Sessions that are over and were looked into, by [[intercept]] entry."),
    "tabi_faults_total": Metric("counter", "Sessions that are over and were drawn for a fault, by its name."),
    "tabi_fault_sessions": Metric("gauge", "Sessions that a fault acts on now, by its name."),
    "tabi_slow_turns_total": Metric("counter", "Turns of the event loop that took too long."),
    "tabi_loop_lag_seconds": Metric("gauge", "How late the event loop was just now, in the worst worker.", "max"),
    "tabi_fallback": Metric(
        "gauge", "1 for each system call that is refused here, so that a slower one is used.", "max"
    ),
    "tabi_log_lines_lost_total": Metric("counter", "Lines of the access log that could not be written."),
    "tabi_workers": Metric("gauge", "Workers that have answered."),
    "tabi_build_info": Metric("gauge", "1, with the version.", "max"),
    "process_cpu_seconds_total": Metric("counter", "CPU time of the workers, user and system, in seconds."),
    "process_resident_memory_bytes": Metric("gauge", "Memory of the workers; what they share counts for each."),
    "process_open_fds": Metric("gauge", "Open descriptors of the workers."),
    "process_max_fds": Metric("gauge", "Descriptors that a worker may open.", "min"),
    "process_start_time_seconds": Metric("gauge", "When the oldest worker has started, seconds since 1970.", "min"),
}
"""Every metric. Labels take their values from the configuration and from fixed words, so that they are bounded."""


def add_up(parts: Iterable[Samples]) -> dict[str, dict[Labels, Value]]:
    """The metrics of several workers in one."""
    joined: dict[str, dict[Labels, Value]] = {}
    for part in parts:
        for name, samples in part.items():
            found = joined.setdefault(name, {})
            for labels, value in samples.items():
                before = found.get(labels)
                found[labels] = value if before is None else join(before, value, METRICS[name].join)
    return joined


def join(one: Value, other: Value, how: str) -> Value:
    """Two values of the same kind in one."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple([first + second for first, second in zip(one, other, strict=True)])
    assert not isinstance(one, tuple)
    assert not isinstance(other, tuple)
    return one + other if how == "sum" else min(one, other) if how == "min" else max(one, other)


def render(samples: Samples, openmetrics: bool = False) -> str:
    """All metrics as text, those without a value too."""
    lines: list[str] = []
    for name, metric in METRICS.items():
        family = name.removesuffix("_total") if openmetrics and metric.kind == "counter" else name
        lines += (f"# HELP {family} {metric.text}", f"# TYPE {family} {metric.kind}")
        for labels, value in sorted(samples.get(name, {}).items()):
            if isinstance(value, tuple):
                lines += histogram(name, labels, value)
            else:
                lines.append(f"{name}{shown(labels)} {number(value)}")
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def histogram(name: str, labels: Labels, value: Sequence[float]) -> Iterator[str]:
    """The lines of one: each bucket has all that is below it."""
    *counts, total = value
    below = 0.0
    for bound, count in zip((*map(str, SECONDS), "+Inf"), counts, strict=True):
        below += count
        yield f"{name}_bucket{shown((*labels, ('le', bound)))} {number(below)}"
    yield f"{name}_sum{shown(labels)} {number(total)}"
    yield f"{name}_count{shown(labels)} {number(below)}"


def shown(labels: Labels) -> str:
    """Labels in braces; nothing if there are none."""
    inside = ",".join([f'{name}="{escape(value)}"' for name, value in labels])
    return f"{{{inside}}}" if inside else ""


def number(value: float) -> str:
    """A number without a needless fraction."""
    return str(int(value)) if value == int(value) else repr(value)


def escape(value: str) -> str:
    """A label's value as the format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
