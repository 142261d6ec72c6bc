"""From the words of a fault to its figures: directions, profiles, replies; and what contradicts itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from tabi.config.distort import FaultConfig, LineConfig
from tabi.errors import ConfigError
from tabi.policy.faults import MOST_SECONDS, Fault, Line
from tabi.policy.quantities import DURATION, Bandwidth, Chance, Onset, Seconds
from tabi.policy.schedule import MIDNIGHT, Clock, Daily, Schedule
from tabi.wire.socks5 import ReplyCode

LINE_KEYS = LineConfig.__struct_fields__
HTTP_FAULTS = ("status", "answer_delay", "truncate")
"""Keys of what acts on HTTP that is looked into."""

REPLIES = {code.name.lower().replace("_", " "): int(code) for code in ReplyCode if 0 < code <= 8}
"""The replies of RFC 1928 section 6 that refuse, by their words."""

MAX_BURST = 1000.0

MAX_DATAGRAM = 65_527
"""Octets of the payload of UDP at most, over IPv6 (RFC 8200; 65,507 over IPv4)."""


def kbit(number: float) -> Bandwidth:
    """Thousands of bits per second."""
    return Bandwidth(number * 1000 / 8)


def profile(down: float, up: float, rtt: float, **more: Any) -> FaultConfig:
    """A profile as they are published: kbit/s and milliseconds of a round trip."""
    return FaultConfig(
        rtt=Seconds(rtt / 1000), up=LineConfig(bandwidth=kbit(up)), down=LineConfig(bandwidth=kbit(down)), **more
    )


PROFILES: dict[str, FaultConfig] = {
    "3g": profile(1600, 768, 300),
    "slow-3g": profile(780, 330, 200),
    "4g": profile(12000, 12000, 70),
    "edge": profile(240, 200, 840),
    "dsl": profile(1500, 384, 50),
    "cable": profile(5000, 1000, 28),
    "satellite": profile(20000, 2000, 600, jitter=Seconds(0.01), loss=Chance(0.002)),
    "lossy-wifi": profile(20000, 10000, 20, jitter=Seconds(0.01), loss=Chance(0.01), burst=2.0),
    "offline": FaultConfig(refuse=int(ReplyCode.NETWORK_UNREACHABLE), stall=Onset(0.0)),
}
"""docs/faults.md has the source of each. ``offline`` refuses what is new; what runs waits, as it does without a
network, and goes on when the fault is taken away. Datagrams are lost."""


def find_fault(fault: FaultConfig | str, profiles: Mapping[str, FaultConfig]) -> FaultConfig:
    """The fault that an entry names, or has. Raises ConfigError."""
    if isinstance(fault, FaultConfig):
        return fault
    found = profiles.get(fault, PROFILES.get(fault))
    if found is None:
        raise ConfigError(f"{fault!r}, expected a table or a profile: {', '.join(sorted({*PROFILES, *profiles}))}", "")
    return found


def reply_of(value: int | str) -> int:
    """A reply of RFC 1928, by its number or its words. Raises ValueError."""
    found = REPLIES.get(value.strip().lower()) if isinstance(value, str) else value
    if found not in REPLIES.values() or isinstance(value, bool):
        names = ", ".join(f"{code} ({words})" for words, code in REPLIES.items())
        raise ValueError(f"{value!r}, expected a reply: {names}")
    assert found is not None
    return found


def is_duration(value: int | str) -> bool:
    """Whether a value of ``resolve`` is a time: it has a unit, since a number alone is a reply."""
    found = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    return found is not None and found[2] is not None


def make_fault(config: FaultConfig) -> Fault:
    """The figures of a fault that `fault_errors` has nothing against."""
    resolve = config.resolve
    delay = float(Seconds.parse(resolve)) if resolve is not None and is_duration(resolve) else 0.0
    return Fault(
        up=make_line(config, "up"),
        down=make_line(config, "down"),
        shared=bool(config.shared),
        then=config.then or "close",
        reset_after=plain(config.reset_after),
        close_after=plain(config.close_after),
        tls_cut=config.tls_cut,
        refuse=None if config.refuse is None else reply_of(config.refuse),
        dial_delay=plain(config.dial_delay) or 0.0,
        resolve=None if resolve is None or delay else reply_of(resolve),
        resolve_delay=delay,
        status=config.status,
        answer_delay=plain(config.answer_delay) or 0.0,
        truncate=None if config.truncate is None else int(config.truncate),
    )


def plain(number: float | None) -> float | None:
    """A plain float."""
    return None if number is None else float(number)


def figures(config: FaultConfig, name: str) -> dict[str, tuple[str, Any]]:
    """Where the figures of a direction are, and what: those of ``up`` or ``down``, and those for both if they hold for
    it."""
    found: dict[str, tuple[str, Any]] = {}
    if config.direction in (None, "both", name):
        if config.rtt is not None:
            found["latency"] = "rtt", config.rtt / 2
        found |= {key: (key, value) for key in LINE_KEYS if (value := getattr(config, key)) is not None}
    own: LineConfig | None = getattr(config, name)
    if own is not None:
        found |= {key: (f"{name}.{key}", value) for key in LINE_KEYS if (value := getattr(own, key)) is not None}
    return found


def make_line(config: FaultConfig, name: str) -> Line:
    """The figures of one direction, as plain numbers."""
    found: dict[str, Any] = {}
    for key, (_, value) in figures(config, name).items():
        found[key] = value if isinstance(value, bool | str) else int(value) if isinstance(value, int) else float(value)
    return Line(**found)


def make_schedule(config: FaultConfig) -> Schedule:
    """When a fault acts."""
    begin, end = config.from_, config.until
    return Schedule(None if begin is None else begin.when, None if end is None else end.when, config.every)


# --- what is wrong ---


def fault_errors(config: FaultConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with a fault, apart from its types."""
    for name, part in (("", config), ("up.", config.up), ("down.", config.down)):
        if part is not None:
            yield from line_errors(part, f"{path}.{name}")
    for key in ("rtt", "reset_after", "close_after", "dial_delay", "answer_delay"):
        yield from length_error(getattr(config, key), f"{path}.{key}")
    for key in ("refuse", "resolve"):
        value = getattr(config, key)
        if value is not None and not (key == "resolve" and is_duration(value)):
            try:
                reply_of(value)
            except ValueError as exc:
                more = ', or a time such as "200ms"' if key == "resolve" else ""
                yield ConfigError(f"{exc}{more}", f"{path}.{key}")
        elif value is not None and key == "resolve":
            try:
                yield from length_error(Seconds.parse(value), f"{path}.{key}")
            except ValueError as exc:
                yield ConfigError(str(exc), f"{path}.{key}")
    if config.status is not None and not 200 <= config.status <= 599:
        yield ConfigError(f"{config.status}, expected 200 to 599", f"{path}.status")
    for key, other, why in EXCLUSIVE:
        if getattr(config, key) is not None and getattr(config, other) is not None:
            yield ConfigError(f"it contradicts {other}{why}", f"{path}.{key}")
    yield from time_errors(config.from_, config.until, f"{path}.until")
    try:
        fault = make_fault(config)
    except ValueError:
        return  # said above
    wrong = list(direction_errors(config, fault))
    yield from (ConfigError(message, f"{path}.{place}") for place, message in wrong)
    if not wrong and not (fault.at_dial or fault.on_octets or fault.on_http):
        yield ConfigError(f"it changes nothing: expected one of {', '.join(keys())}", path)


EXCLUSIVE = (
    ("reset_after", "close_after", ": expected one of both"),
    ("latency", "rtt", ": expected one of both"),
    ("truncate", "status", ": there is no answer of the destination"),
)
"""Keys that contradict another one, and why."""

NEEDED = {
    "jitter": "latency",
    "distribution": "jitter",
    "burst": "loss",
    "slice_variation": "slice",
    "slice_gap": "slice",
    "queue": "bandwidth",
}
"""Figures of a direction that do nothing without another one."""


def time_errors(begin: Clock | None, end: Clock | None, path: str) -> Iterator[ConfigError]:
    """What is wrong with ``from`` and ``until`` together."""
    if end is None:
        return
    if begin is None:
        if isinstance(end.when, Daily) and end.when.time == MIDNIGHT:
            yield ConfigError(f"{end}, expected a later time of day: it holds from midnight on", path)
    elif isinstance(begin.when, Daily) != isinstance(end.when, Daily):
        yield ConfigError("expected two times, or two times of day", path)
    elif isinstance(begin.when, Daily) and isinstance(end.when, Daily):
        zone, other = end.when.zone.key, begin.when.zone.key
        if zone != other:
            yield ConfigError(f"its zone is {zone}, expected that of from: {other}", path)
        elif begin.when.time == end.when.time:
            yield ConfigError(f"{end}, expected another time than {begin}", path)
    elif not begin.when < end.when:  # type: ignore[operator]
        yield ConfigError(f"{end}, expected a time after {begin}", path)


def keys() -> list[str]:
    """The keys of a fault, as they are written."""
    return [field.encode_name for field in msgspec.structs.fields(FaultConfig)]


def length_error(seconds: float | None, path: str) -> Iterator[ConfigError]:
    """The reason if a time is too long."""
    if seconds is not None and seconds > MOST_SECONDS:
        yield ConfigError(f"{seconds:g} s, expected {MOST_SECONDS:g} s at most", path)


def line_errors(config: LineConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with single figures; ``path`` ends with a dot."""
    for key in ("latency", "jitter", "slice_gap", "stall", "slow_close"):
        yield from length_error(getattr(config, key), f"{path}{key}")
    if config.burst is not None and not 1 <= config.burst <= MAX_BURST:
        yield ConfigError(f"{config.burst}, expected 1 to {MAX_BURST:g}", f"{path}burst")
    if config.mtu is not None and config.mtu > MAX_DATAGRAM:
        yield ConfigError(f"{config.mtu}, expected {MAX_DATAGRAM} at most: there are no larger datagrams", f"{path}mtu")


def direction_errors(config: FaultConfig, fault: Fault) -> Iterator[tuple[str, str]]:
    """Keys that do not go together, in one direction or at all, and why. One that holds for both directions may be
    without effect in one of them."""
    wrong: dict[str, str] = {}
    useless: dict[str, list[str]] = {}
    holding: list[str] = []
    for name, line in (("up", fault.up), ("down", fault.down)):
        found = figures(config, name)
        places = {key: place for key, (place, _) in found.items()}
        holding += places.values()
        for key, message in without_effect(line, places):
            useless.setdefault(places[key], []).append(message)
        wrong |= {places[key]: message for key, message in out_of_bounds(line)}
    both = [key for key in ("rtt", *LINE_KEYS) if getattr(config, key) is not None]
    for key in both:
        if key not in holding and not (key == "rtt" and "latency" in both):
            useless[key] = ["it has no effect, since up or down has its own"]
    alone = {
        "then": "limit" if fault.up.limit is None and fault.down.limit is None else None,
        "shared": None if fault.up.bandwidth or fault.down.bandwidth else "bandwidth",
        "direction": None if both else "a figure that has a direction",
    }
    wrong |= {
        key: f"it has no effect without {other}" for key, other in alone.items() if other and getattr(config, key)
    }
    if config.rtt is not None and config.direction in ("up", "down"):
        wrong["direction"] = "it contradicts rtt, which is for both: expected latency"
    if fault.up.blackhole or fault.down.blackhole:
        hidden = [key for key in ("tls_cut", *HTTP_FAULTS) if getattr(config, key) is not None]
        wrong |= dict.fromkeys(hidden, SWALLOWED)
    wrong |= {place: found[0] for place, found in useless.items() if len(found) >= holding.count(place)}
    yield from wrong.items()


SWALLOWED = "it contradicts blackhole, which lets nothing through"


def without_effect(line: Line, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Keys of one direction that do nothing there, and why; ``given`` are all that hold for it."""
    for key in given:
        if line.blackhole and key != "blackhole":
            yield key, SWALLOWED
        elif key in NEEDED and NEEDED[key] not in given:
            yield key, f"it has no effect without {NEEDED[key]}"


def out_of_bounds(line: Line) -> Iterator[tuple[str, str]]:
    """Keys of one direction whose values do not go together, and why."""
    if line.slice and line.slice_variation >= line.slice:
        yield "slice_variation", f"{line.slice_variation}, expected less than slice ({line.slice})"
    if line.burst > 1 and line.burst / (line.burst + 1) < line.loss < 1:
        yield "loss", f"with bursts of {line.burst:g} the loss is {line.burst / (line.burst + 1):.3g} at most, or 1"
