"""Fault: what is done to a connection or to datagrams, as plain figures for each direction.

All lengths of time are in seconds, all rates in octets per second, all probabilities from 0 to 1. A figure of 0, and
None, is no effect.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Distribution = Literal["uniform", "normal"]
Ending = Literal["close", "reset"]

MOST_SECONDS = 3600.0
"""The longest latency, and the longest time until a fault."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures of one direction."""

    latency: float = 0.0
    """Seconds that each octet or datagram is late."""
    jitter: float = 0.0
    """How far a latency is from `latency`: up to so many seconds, or with ``normal`` their standard deviation."""
    distribution: Distribution = "uniform"
    bandwidth: float = 0.0
    """Octets per second; 0: not limited."""
    queue: int = 0
    """Octets of datagrams that wait for bandwidth; more is lost. 0: as many as arrive within a fifth of a second."""
    loss: float = 0.0
    """The share of segments or datagrams that is lost. In a connection a loss is a wait: TCP sends again."""
    burst: float = 1.0
    """How many are lost one after the other, on average. 1: each loss is independent."""
    duplicate: float = 0.0
    """The share of datagrams that comes twice."""
    reorder: float = 0.0
    """The share of datagrams that is overtaken by later ones."""
    mtu: int = 0
    """Octets of the largest datagram; larger ones are lost. 0: any."""
    corrupt: float = 0.0
    """The share of octets that has one bit changed."""
    slice: int = 0
    """Octets of the pieces that octets are sent in. 0: as they come."""
    slice_variation: int = 0
    """How far a piece is from `slice`."""
    slice_gap: float = 0.0
    """Seconds between two pieces."""
    limit: int | None = None
    """Octets that pass; then the connection ends."""
    stall: float | None = None
    """Seconds until nothing passes any more, and the connection stays open."""
    blackhole: bool = False
    """Whether everything is thrown away."""
    slow_close: float = 0.0
    """Seconds that the end comes late."""

    @property
    def is_nothing(self) -> bool:
        """Whether it changes nothing."""
        return self.limit is None and self.stall is None and not any(getattr(self, figure) for figure in ACTING)


ACTING = ("latency", "bandwidth", "loss", "duplicate", "reorder", "mtu", "corrupt", "slice", "blackhole", "slow_close")
"""The figures that do something by themselves, beside ``limit`` and ``stall``."""

CLEAR = Line()


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One ``fault``, for both directions."""

    up: Line = CLEAR
    down: Line = CLEAR
    shared: bool = False
    """Whether all sessions of the entry share `Line.bandwidth`, each direction for itself."""
    then: Ending = "close"
    """How a connection ends at its `Line.limit`."""
    reset_after: float | None = None
    """Seconds until both sides get a reset."""
    close_after: float | None = None
    """Seconds until both sides get an end."""
    tls_cut: Ending | None = None
    """How a connection ends as soon as the destination answers a TLS hello; None: it does not."""
    refuse: int | None = None
    """The reply of RFC 1928 that requests get in place of a connection."""
    dial_delay: float = 0.0
    """Seconds before the destination is dialled."""
    resolve: int | None = None
    """The reply of RFC 1928 for requests with a name, as if it had no address."""
    resolve_delay: float = 0.0
    """Seconds before a name is resolved."""
    status: int | None = None
    """The status that HTTP requests are answered with in the destination's place."""
    answer_delay: float = 0.0
    """Seconds before an HTTP answer goes on."""
    truncate: int | None = None
    """Octets of an HTTP answer's content that pass; then the connection ends."""

    @property
    def at_dial(self) -> bool:
        """Whether it acts before there is a connection."""
        return self.refuse is not None or self.resolve is not None or self.dial_delay > 0 or self.resolve_delay > 0

    @property
    def on_octets(self) -> bool:
        """Whether it acts on the octets of a connection, or on datagrams."""
        ends = (self.reset_after, self.close_after, self.tls_cut)
        return not (self.up.is_nothing and self.down.is_nothing) or any(end is not None for end in ends)

    @property
    def on_http(self) -> bool:
        """Whether it acts on HTTP, which has to be looked into."""
        return self.status is not None or self.answer_delay > 0 or self.truncate is not None
