"""Faults and rewrites in one line of words, for people: `tabi explain` and `tabi fault list`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tabi.policy.distorts import Distort
from tabi.policy.faults import Fault, Line
from tabi.policy.quantities import format_moment, format_size
from tabi.policy.rewrites import FieldChanges, Rewrite
from tabi.policy.schedule import Daily, Schedule
from tabi.wire.socks5 import ReplyCode

RATES = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))


def words_of(distort: Distort) -> str:
    """What an entry does, without when it does it."""
    parts = [] if distort.fault is None else [words_of_fault(distort.fault)]
    if distort.rewrite is not None:
        parts += rewrite_parts(distort.rewrite)
    if distort.tls is not None:
        parts.append(f"TLS as {distort.tls}")
    return "; ".join(parts)


def words_of_fault(fault: Fault) -> str:
    """What a fault does: what holds for both directions once, then each direction's own."""
    up, down = list(line_parts(fault.up, fault)), list(line_parts(fault.down, fault))
    both = [part for part in up if part in down]
    parts = [", ".join([*both, *common_parts(fault)])]
    for name, own in (("up", up), ("down", down)):
        only = [part for part in own if part not in both]
        parts += [f"{name}: {', '.join(only)}"] if only else []
    return "; ".join(part for part in parts if part)


def words_of_schedule(schedule: Schedule) -> str:
    """When a fault acts; empty for always."""
    parts = []
    for word, clock in (("from", schedule.begin), ("until", schedule.end)):
        if clock is not None:
            parts.append(f"{word} {words_of_clock(clock)}")
    if schedule.every is not None:
        parts.append(f"{schedule.every}, again and again")
    return ", ".join(parts)


def words_of_clock(clock: Daily | float) -> str:
    """A point of time, or a time of each day with its zone."""
    if isinstance(clock, float):
        return format_moment(clock)
    return f"{clock.time.isoformat('auto' if clock.time.second else 'minutes')} {clock.zone.key}"


def line_parts(line: Line, fault: Fault) -> Iterator[str]:
    """What is done to one direction."""
    if line.blackhole:
        yield "blackhole"
    if line.stall is not None:
        yield f"stall {f'after {format_seconds(line.stall)}' if line.stall else 'at once'}"
    if line.corrupt:
        yield f"corrupt {format_share(line.corrupt)}"
    if line.limit is not None:
        yield f"limit {format_size(line.limit)}, then {fault.then}"
    if line.loss:
        yield f"loss {format_share(line.loss)}{f' in bursts of {line.burst:g}' if line.burst != 1 else ''}"
    if line.duplicate:
        yield f"duplicate {format_share(line.duplicate)}"
    if line.reorder:
        yield f"reorder {format_share(line.reorder)}"
    if line.mtu:
        yield f"MTU {line.mtu}"
    if line.bandwidth:
        queue = f" with a queue of {format_size(line.queue)}" if line.queue else ""
        yield f"bandwidth {format_rate(line.bandwidth)}{' shared by all' if fault.shared else ''}{queue}"
    if line.latency:
        spread = f" ± {format_seconds(line.jitter)}" if line.jitter else ""
        yield f"latency {format_seconds(line.latency)}{spread}{' (normal)' if line.distribution == 'normal' else ''}"
    if line.slice:
        spread = f" ± {format_size(line.slice_variation)}" if line.slice_variation else ""
        gap = f" each {format_seconds(line.slice_gap)}" if line.slice_gap else ""
        yield f"slices of {format_size(line.slice)}{spread}{gap}"
    if line.slow_close:
        yield f"slow close {format_seconds(line.slow_close)}"


def common_parts(fault: Fault) -> Iterator[str]:
    """What has no direction."""
    if fault.refuse is not None:
        yield f"refused: {words_of_reply(fault.refuse)}"
    if fault.dial_delay:
        yield f"dialled after {format_seconds(fault.dial_delay)}"
    if fault.resolve is not None:
        yield f"names refused: {words_of_reply(fault.resolve)}"
    if fault.resolve_delay:
        yield f"names take {format_seconds(fault.resolve_delay)}"
    if fault.tls_cut is not None:
        yield f"{fault.tls_cut} in the TLS handshake"
    if fault.reset_after is not None:
        yield f"reset after {format_seconds(fault.reset_after)}"
    if fault.close_after is not None:
        yield f"close after {format_seconds(fault.close_after)}"
    if fault.status is not None:
        yield f"HTTP status {fault.status}"
    if fault.answer_delay:
        yield f"HTTP answers after {format_seconds(fault.answer_delay)}"
    if fault.truncate is not None:
        yield f"HTTP answers cut after {format_size(fault.truncate)}"


def rewrite_parts(rewrite: Rewrite) -> Iterator[str]:
    """What is changed in HTTP; values of fields are not shown, since they may be secret."""
    for name, changes in (("request", rewrite.request), ("response", rewrite.response)):
        parts = list(field_parts(changes))
        if parts:
            yield f"{name} fields: {', '.join(parts)}"
    if rewrite.strip_cookies:
        yield "no cookies"
    if rewrite.map_remote is not None:
        yield f"to {re.sub('//.*@', '//', rewrite.map_remote)}"
    if rewrite.map_local is not None:
        yield f"answered from {rewrite.map_local}"
    if rewrite.status is not None:
        yield f"status {rewrite.status}"
    if rewrite.body is not None:
        yield f"content of {rewrite.body}"
    if rewrite.profile is not None:
        yield f"fields as {rewrite.profile}"


def field_parts(changes: FieldChanges) -> Iterator[str]:
    """What becomes of fields, by their names."""
    if changes.remove:
        yield f"remove {' '.join(changes.remove)}"
    if changes.set:
        yield f"set {' '.join(name for name, _ in changes.set)}"
    if changes.append:
        yield f"append {' '.join(name for name, _ in changes.append)}"
    if changes.order:
        yield f"order {' '.join(changes.order)}"


def words_of_reply(code: int) -> str:
    """A reply of RFC 1928 with its words."""
    return f"{code} ({ReplyCode(code).name.lower().replace('_', ' ')})"


def format_seconds(seconds: float) -> str:
    """A duration as `Seconds.parse` reads it, in ms below a second."""
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def format_share(share: float) -> str:
    """A probability in per cent."""
    return f"{share * 100:g}%"


def format_rate(octets: float) -> str:
    """Octets per second as `Bandwidth.parse` reads them, to six digits."""
    for factor, unit in RATES:
        if octets >= factor:
            return f"{octets / factor:g} {unit}"
    return f"{octets:g} B/s"
