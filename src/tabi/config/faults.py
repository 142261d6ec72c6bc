"""From the words of a fault to its figures: directions, profiles, replies; and what contradicts itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tabi.config.distort import FaultConfig, LineConfig
from tabi.errors import ConfigError
from tabi.policy.faults import CLEAR, MOST_SECONDS, Fault, Line
from tabi.policy.quantities import DURATION, Bandwidth, Seconds
from tabi.policy.schedule import Schedule
from tabi.wire.socks5 import ReplyCode

LINE_KEYS = LineConfig.__struct_fields__
REPLIES = {code.name.lower().replace("_", " "): int(code) for code in ReplyCode if 0 < code <= 8}
"""The replies of RFC 1928 section 6 that refuse, by their words."""

MAX_BURST = 1000.0


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
    "satellite": profile(20000, 2000, 600, jitter=Seconds(0.01), loss=0.002),
    "lossy-wifi": profile(20000, 10000, 20, jitter=Seconds(0.015), loss=0.03, burst=3.0),
    "offline": FaultConfig(refuse=int(ReplyCode.NETWORK_UNREACHABLE), blackhole=True),
}
"""docs/faults.md has the source of each."""


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
    """Whether a value of ``resolve`` is a time."""
    return isinstance(value, str) and DURATION.fullmatch(value.strip()) is not None


def make_fault(config: FaultConfig) -> Fault:
    """The figures of a fault that `fault_errors` has nothing against."""
    resolve = config.resolve
    delay = float(Seconds.parse(resolve)) if resolve is not None and is_duration(resolve) else 0.0
    return Fault(
        up=make_line(config, config.up, config.direction != "down"),
        down=make_line(config, config.down, config.direction != "up"),
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


def make_line(config: FaultConfig, own: LineConfig | None, holds: bool) -> Line:
    """The figures of one direction: its own ones, and those for both if they hold for it."""
    found: dict[str, Any] = {}
    if holds:
        if config.rtt is not None:
            found["latency"] = config.rtt / 2
        found |= {key: value for key in LINE_KEYS if (value := getattr(config, key)) is not None}
    if own is not None:
        found |= {key: value for key in LINE_KEYS if (value := getattr(own, key)) is not None}
    for key, value in found.items():
        if isinstance(value, float):
            found[key] = float(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[key] = int(value)
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
    if config.reset_after is not None and config.close_after is not None:
        yield ConfigError("it contradicts close_after: expected one of both", f"{path}.reset_after")
    if config.status is not None and config.truncate is not None:
        yield ConfigError("it contradicts status: there is no answer of the destination", f"{path}.truncate")
    begin, end = config.from_, config.until
    if begin is not None and end is not None:
        if isinstance(begin.when, float) != isinstance(end.when, float):
            yield ConfigError("expected two times, or two times of day", f"{path}.until")
        elif begin.when == end.when or (isinstance(begin.when, float) and begin.when > end.when):
            yield ConfigError(f"{end}, expected a time after {begin}", f"{path}.until")
    try:
        fault = make_fault(config)
    except ValueError:
        return  # said above
    for name, line in (("up", fault.up), ("down", fault.down)):
        yield from contradictions(config, line, path, name)
    if not (fault.at_dial or fault.on_octets or fault.on_http):
        yield ConfigError(f"it changes nothing: expected one of {', '.join(keys())}", path)


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


def contradictions(config: FaultConfig, line: Line, path: str, name: str) -> Iterator[ConfigError]:
    """Figures of one direction that do not go together, at the key that holds for it."""

    def at(key: str) -> str:
        own: LineConfig | None = getattr(config, name)
        return f"{path}.{name}.{key}" if own is not None and getattr(own, key) is not None else f"{path}.{key}"

    if line.blackhole:
        for key in ("bandwidth", "slice", "slow_close", "corrupt", "limit", "stall"):
            if getattr(line, key) != getattr(CLEAR, key):
                yield ConfigError("it contradicts blackhole, which lets nothing through", at(key))
    for key, other in (
        ("jitter", "latency"),
        ("burst", "loss"),
        ("slice_variation", "slice"),
        ("slice_gap", "slice"),
        ("queue", "bandwidth"),
    ):
        value = getattr(line, key)
        if value and value != (1.0 if key == "burst" else 0) and not getattr(line, other):
            yield ConfigError(f"it has no effect without {other}", at(key))
    if line.slice and line.slice_variation >= line.slice:
        yield ConfigError(f"{line.slice_variation}, expected less than slice ({line.slice})", at("slice_variation"))
    if line.loss < 1 and line.loss > line.burst / (line.burst + 1):
        most = line.burst / (line.burst + 1)
        yield ConfigError(f"with bursts of {line.burst:g} the loss is {most:.3g} at most", at("loss"))
