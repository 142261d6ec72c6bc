"""What a fault is in a connection: a chain of stages for each direction, one file for each kind.

The order is fixed: what is thrown away, corrupted or cut comes first; then losses, bandwidth and latency, as on a
line; then the slices, and the end at last. Stages of several entries follow one another in the order of the entries.
"""

from __future__ import annotations

from tabi.distort.bandwidth import Bandwidth
from tabi.distort.blackhole import Blackhole
from tabi.distort.corruption import Corruption
from tabi.distort.draws import Drawn
from tabi.distort.latency import Latency
from tabi.distort.limit import Limit
from tabi.distort.slicing import Slicing
from tabi.distort.slow_close import SlowClose
from tabi.distort.stall import Stall
from tabi.distort.stream_loss import StreamLoss
from tabi.distort.timed_end import TimedEnd
from tabi.distort.tls_cut import tls_cut
from tabi.policy.limits import DOWN, UP
from tabi.relay.stage import Stage

Directed = tuple[int, Stage]
"""A direction, UP or DOWN, and what it passes through."""


def stages_of(drawn: Drawn) -> list[Directed]:
    """The stages of one entry for one connection; new ones for each."""
    fault, label = drawn.entry.fault, drawn.entry.distort.label
    found: list[Directed] = []
    for direction, line, bucket in zip((UP, DOWN), (fault.up, fault.down), drawn.entry.buckets, strict=True):
        if line.is_nothing:
            continue
        if line.blackhole:
            found.append((direction, Blackhole()))
        if line.stall is not None:
            found.append((direction, Stall(line.stall)))
        if line.corrupt:
            found.append((direction, Corruption(line.corrupt, drawn.random(direction, "corrupt"))))
        if line.limit is not None:
            found.append((direction, Limit(line.limit, fault.then, label)))
        if line.loss:
            found.append((direction, StreamLoss(line.loss, line.burst, drawn.random(direction, "loss"))))
        if line.bandwidth:
            found.append((direction, Bandwidth(line.bandwidth, bucket if fault.shared else None)))
        if line.latency:
            dice = drawn.random(direction, "latency")
            found.append((direction, Latency(line.latency, line.jitter, line.distribution, dice)))
        if line.slice:
            dice = drawn.random(direction, "slice")
            found.append((direction, Slicing(line.slice, line.slice_variation, line.slice_gap, dice)))
        if line.slow_close:
            found.append((direction, SlowClose(line.slow_close)))
    if fault.tls_cut is not None:
        found += tls_cut(fault.tls_cut, label)
    if fault.reset_after is not None:
        found.append((UP, TimedEnd(fault.reset_after, "reset", label)))
    if fault.close_after is not None:
        found.append((UP, TimedEnd(fault.close_after, "close", label)))
    return found
