"""The schema of ``[[distort]]`` and ``[profile.NAME]``: faults, rewrites and fingerprints. See `config.schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from tabi.policy.faults import Distribution, Ending

if TYPE_CHECKING:  # a program may give plain numbers, see `config.schema`
    Bandwidth: TypeAlias = float
    Chance: TypeAlias = float
    Clock: TypeAlias = Any
    Cycle: TypeAlias = Any
    Onset: TypeAlias = float
    Seconds: TypeAlias = float
    Size: TypeAlias = int
else:
    from tabi.policy.quantities import Bandwidth, Chance, Onset, Seconds, Size
    from tabi.policy.schedule import Clock, Cycle


class LineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``up`` and ``down`` of a fault: figures of one direction, in place of those for both."""

    latency: Seconds | None = None
    """Seconds that each octet or datagram is late. Default: 0."""
    jitter: Seconds | None = None
    """How far a latency is from ``latency``, in seconds: at most so much, or with ``distribution = "normal"`` the
    standard deviation. Default: 0."""
    distribution: Distribution | None = None
    """How jitter is spread: ``uniform`` or ``normal``. Default: uniform."""
    bandwidth: Bandwidth | None = None
    """Octets per second of each session. Default: not limited."""
    queue: Size | None = None
    """Octets of datagrams that wait for bandwidth; more is lost. Default: what takes 0.2 seconds."""
    loss: Chance | None = None
    """The share of datagrams that is lost. On TCP a loss is a wait of 0.2 seconds, doubled for each loss that follows,
    for each 1,460 octets. Default: 0."""
    burst: float | None = None
    """How many are lost one after the other, on average, 1 to 1,000 (a Gilbert-Elliott model). Default: each loss is
    independent of the others."""
    duplicate: Chance | None = None
    """The share of datagrams that comes twice. Default: 0."""
    reorder: Chance | None = None
    """The share of datagrams that later ones overtake. Default: 0."""
    mtu: Size | None = None
    """Octets of payload of the largest datagram; larger ones are lost. Default: any."""
    corrupt: Chance | None = None
    """The share of octets that has one bit changed. Default: 0."""
    slice: Size | None = None
    """Octets of the pieces in which octets are sent. Default: as they come."""
    slice_variation: Size | None = None
    """How far the size of a piece is from ``slice``, at most, in octets. Default: 0."""
    slice_gap: Seconds | None = None
    """Seconds between two pieces. Default: 0."""
    limit: Size | None = None
    """Octets that pass; then the connection ends as ``then`` says. Default: any number."""
    stall: Onset | None = None
    """Seconds until nothing passes any more and the connection stays open; ``true``: from the beginning. Nothing is
    lost: what is sent waits. Default: never."""
    blackhole: bool | None = None
    """Whether everything is thrown away, the end too, while the connection stays open. Default: false."""
    slow_close: Seconds | None = None
    """Seconds that the end comes late. Default: 0."""


class FaultConfig(LineConfig, frozen=True, forbid_unknown_fields=True):
    """``fault`` of a ``[[distort]]``, and ``[profile.NAME]``: what goes wrong on the way."""

    direction: Literal["up", "down", "both"] | None = None
    """Which way the figures hold: ``up`` is from the client. Default: both, so that a round trip takes twice the
    latency."""
    up: LineConfig | None = None
    """Figures from the client to the destination, in place of the others. Default: none."""
    down: LineConfig | None = None
    """Figures from the destination to the client, in place of the others. Default: none."""
    rtt: Seconds | None = None
    """Seconds of a round trip: half of it is the latency of each direction. Default: 0."""
    shared: bool | None = None
    """Whether all sessions of the entry share the bandwidth, in each worker for itself. Default: false, each has its
    own."""
    then: Ending | None = None
    """How a connection ends at its ``limit``: ``close`` or ``reset``. Default: close."""
    reset_after: Seconds | None = None
    """Seconds until both sides get a reset. Default: never."""
    close_after: Seconds | None = None
    """Seconds until the connection is closed. Default: never."""
    tls_cut: Ending | None = None
    """How a connection ends as soon as the destination answers the hello of TLS: ``close`` or ``reset``. Default: it
    goes on."""
    refuse: int | str | None = None
    """The reply of SOCKS5 in place of a connection: 1 to 8, or words such as ``connection refused``. Default: none."""
    dial_delay: Seconds | None = None
    """Seconds before the destination is dialled. Default: 0."""
    resolve: int | str | None = None
    """What becomes of names: a reply as in ``refuse``, such as 4, or the seconds that resolving takes, as text such as
    ``"200ms"``. Default: nothing."""
    status: int | None = None
    """The status that HTTP requests are answered with in the destination's place, 200 to 599. Default: none."""
    answer_delay: Seconds | None = None
    """Seconds before an HTTP answer goes on. Default: 0."""
    truncate: Size | None = None
    """Octets of an HTTP answer's content that pass; then the connection ends. Default: all."""
    from_: Clock | None = msgspec.field(default=None, name="from")
    """When it begins: a time such as 2027-01-01T12:00:00Z, or a time of day such as ``"22:00 Europe/Berlin"``, UTC
    without a zone. Default: at once."""
    until: Clock | None = None
    """When it ends, as ``from``. Default: never."""
    every: Cycle | None = None
    """A cycle such as ``"30 s good, 5 s gone"``; it begins with the fault. Default: it acts all the time."""


class HeadersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``headers`` and ``response_headers``: what becomes of the fields of HTTP. Names are sent in the very case that is
    written here."""

    remove: list[str] = []
    """Names of fields that are removed, first of all. Default: none."""
    set: dict[str, str] = {}
    """Values of fields, in place of what they have. Default: none."""
    append: dict[str, str | list[str]] = {}
    """Fields that are added behind the others. Default: none."""
    order: list[str] = []
    """Names of the fields that come first, in this order. Default: as they come."""

    def __repr__(self) -> str:
        return "Headers()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # values may be secret


class DistortConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[[distort]]``: sessions that are molded. All entries that match apply, in their order.

    The matchers are those of ``[[rule]]``.
    """

    name: str | None = None
    """What the access log calls it. Default: its place, ``distort[3]``."""
    hosts: list[str] | None = None
    """Destinations, as in a rule."""
    ports: list[int | str] | None = None
    """Ports of the destination: ``443``, ``"8000-8999"``."""
    users: list[str] | None = None
    """Users, and groups with a @ in front."""
    clients: list[str] | None = None
    """Networks that the client comes from; ``"unix"`` for unix sockets."""
    commands: list[str] | None = None
    """``connect`` (HTTP requests are one too), ``forward`` (HTTP requests only), ``bind``, ``associate``, ``resolve``,
    ``resolve_ptr``."""
    listeners: list[str] | None = None
    """URLs of listeners, as they stand in ``[[listen]]``."""
    protocols: list[str] | None = None
    """As in the access log: socks5, socks4, http, socks5+tls, socks4+tls, https."""
    hours: str | None = None
    """Times of the week, such as ``"Mon-Fri 08:00-18:00 Europe/Berlin"``; UTC without a zone."""
    probability: Chance = 1.0
    """The share of sessions that match and are chosen, drawn once for each. Default: 1, all of them."""
    seed: int | None = None
    """Makes everything that is drawn the same in each run; not with several workers. Default: it differs."""
    fault: FaultConfig | str | None = None
    """What goes wrong, or the name of a profile: ``3g``, ``slow-3g``, ``4g``, ``edge``, ``dsl``, ``cable``,
    ``satellite``, ``lossy-wifi``, ``offline``, or one of ``[profile.NAME]``. Default: nothing."""
    headers: HeadersConfig | None = None
    """What becomes of the fields of HTTP requests that are looked into. Default: they stay."""
    response_headers: HeadersConfig | None = None
    """What becomes of the fields of their answers. Default: they stay."""
    strip_cookies: bool = False
    """Whether ``Cookie`` and ``Set-Cookie`` are removed. Default: false."""
    map_remote: str | None = None
    """``http://`` or ``https://`` URL that requests go to in place of their own; their path follows it. Default:
    none."""
    map_local: str | None = None
    """A file that answers requests, or a folder with the files of their paths. Default: none."""
    status: int | None = None
    """The status of answers, in place of theirs, 200 to 599. Default: theirs."""
    body: str | None = None
    """A file whose content answers have, in place of theirs. Default: theirs."""
    tls: str | None = None
    """The TLS fingerprint that destinations of intercepted sessions see: ``mirror`` for the client's own, or a name of
    ``tabi ua list`` such as ``chrome:stable``. Default: tabi's."""
    profile: str | None = None
    """Whose HTTP fields requests have, in which order and case, and which settings of HTTP/2: a name of ``tabi ua
    list``. Default: the client's own."""
    hosts_file: str | list[str] | None = None
    """Files with more destinations, as in a rule. Default: no file."""
    networks_file: str | list[str] | None = None
    """Files with more networks that the client comes from, one in each line. Default: no file."""

    def __repr__(self) -> str:
        return "Distort()"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []  # URLs and values of fields may be secret
