"""A fault that is set while a server runs: what a program or a command says of it, and what that means.

It is flat: the keys of a ``fault`` and the matchers of its ``[[distort]]`` side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import msgspec

from tabi.config.check import raise_all
from tabi.config.check_matchers import matcher_errors, word_errors
from tabi.config.distort import DistortConfig, FaultConfig, LineConfig
from tabi.config.faults import LINE_KEYS, fault_errors, find_fault, keys
from tabi.config.load import decode_special, encode_special
from tabi.config.mistakes import find_mistakes
from tabi.errors import ConfigError
from tabi.policy.rules import FILES, Texts

Length: TypeAlias = float | str
"""Seconds, or text such as ``200ms``."""
Chance: TypeAlias = float | str
"""0 to 1, or text such as ``10%``."""
Octets: TypeAlias = int | str
"""Octets, or text such as ``10 MB``."""
Given: TypeAlias = Mapping[str, Any]


class LineKeys(TypedDict, total=False):
    """See `tabi.config.LineConfig`."""

    latency: Length | None
    jitter: Length | None
    distribution: Literal["uniform", "normal"] | None
    bandwidth: float | str | None
    queue: Octets | None
    loss: Chance | None
    burst: float | None
    duplicate: Chance | None
    reorder: Chance | None
    mtu: Octets | None
    corrupt: Chance | None
    slice: Octets | None
    slice_variation: Octets | None
    slice_gap: Length | None
    limit: Octets | None
    stall: Length | bool | None
    blackhole: bool | None
    slow_close: Length | None


class FaultChanges(LineKeys, total=False):
    """See `tabi.config.FaultConfig` and `tabi.config.DistortConfig`; ``from_`` is ``from``. None is as if a key was not
    given, and takes it away in a change."""

    direction: Literal["up", "down", "both"] | None
    up: LineKeys | LineConfig | None
    down: LineKeys | LineConfig | None
    rtt: Length | None
    shared: bool | None
    then: Literal["close", "reset"] | None
    reset_after: Length | None
    close_after: Length | None
    tls_cut: Literal["close", "reset"] | None
    refuse: int | str | None
    dial_delay: Length | None
    resolve: int | str | None
    status: int | None
    answer_delay: Length | None
    truncate: Octets | None
    from_: object
    until: object
    every: str | None
    hosts: Sequence[str] | None
    ports: Sequence[int | str] | None
    users: Sequence[str] | None
    clients: Sequence[str] | None
    commands: Sequence[str] | None
    listeners: Sequence[str] | None
    protocols: Sequence[str] | None
    hours: str | None
    probability: Chance | None
    seed: int | None


class FaultKeys(FaultChanges, total=False):
    """All that a new fault may have: see `FaultChanges`, and its name."""

    name: str | None


CHOOSING = (*Texts._fields, "probability", "seed")
"""The keys that choose sessions. Those that name files with hosts only a ``[[distort]]`` of a configuration has."""

LARGEST = 32_768
"""Octets of what is given, as JSON."""


def plain(value: object) -> Any:
    """A value as TOML has it: tables and lists of any kind become dicts and lists."""
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value, enc_hook=encode_special)
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items() if part is not None}
    return [plain(part) for part in value] if isinstance(value, list | tuple | set | frozenset) else value


def changed(before: Given | None, given: Given) -> dict[str, Any]:
    """The keys of a new fault, or of one after a change: those that are given, and those that were there already. A
    profile takes the place of all figures, a latency that of a ``rtt``, and the other way round.

    Args:
        before: the keys that were there already; None for a new fault, which may have a name too.
        given: those that are given; None takes one away.

    Raises:
        ConfigError: there is no such key.
    """
    new = {"from" if key == "from_" else key: None if part is None else plain(part) for key, part in given.items()}
    choosing = [key for key in CHOOSING if key not in FILES]
    expected = ("profile", *keys(), *choosing, *(() if before is not None else ("name",)))
    for key in new:
        if key not in expected:
            raise ConfigError(f"unknown key, expected one of: {', '.join(expected)}", key)
    found = dict(before or {})
    if new.get("profile") is not None:
        found = {key: value for key, value in found.items() if key in CHOOSING}
    for key, other in (("latency", "rtt"), ("rtt", "latency")):
        if new.get(key) is not None:
            found.pop(other, None)
    for side in ("up", "down"):
        wanted, before_it = new.get(side), found.get(side)
        if isinstance(wanted, dict) and isinstance(before_it, dict):
            gone = [key for key, value in dict(given[side]).items() if value is None]
            new[side] = {key: value for key, value in (before_it | wanted).items() if key not in gone} or None
    return {key: value for key, value in (found | new).items() if value is not None}


def read_fault(
    given: Given, name: str, profiles: Mapping[str, FaultConfig] = {}, listeners: Collection[str] = ()
) -> DistortConfig:
    """The ``[[distort]]`` that a fault stands for.

    Args:
        given: its keys, as `changed` gives them.
        name: of the fault.
        profiles: those of the configuration.
        listeners: URLs of the server.

    Raises:
        ConfigError: something is wrong; it names the key.
    """
    choosing = {key: value for key, value in given.items() if key in CHOOSING}
    figures = {key: value for key, value in given.items() if key not in (*CHOOSING, "profile", "name")}
    raise_all(find_mistakes({**choosing, "name": name}, DistortConfig, "", decode_special)[0])
    raise_all(find_mistakes(figures, FaultConfig, "", decode_special)[0])
    if "profile" in given:
        figures = over(find_profile(given["profile"], profiles), figures)
    distort: DistortConfig = msgspec.convert(
        {**choosing, "name": name, "fault": figures}, DistortConfig, dec_hook=decode_special
    )
    assert isinstance(distort.fault, FaultConfig)
    errors = [*matcher_errors(distort, ""), *word_errors(distort, "", set(listeners)), *fault_errors(distort.fault, "")]
    raise_all(ConfigError(one.message, (one.path or "").lstrip(".") or None) for one in errors)
    return distort


def find_profile(name: object, profiles: Mapping[str, FaultConfig]) -> FaultConfig:
    """A profile by its name. Raises ConfigError."""
    if not isinstance(name, str):
        raise ConfigError(f"{type(name).__name__}, expected the name of a profile", "profile")
    try:
        return find_fault(name, profiles)
    except ConfigError as exc:
        raise ConfigError(exc.message.replace("a table or a profile", "a profile"), "profile") from None


def over(profile: FaultConfig, figures: Given) -> dict[str, Any]:
    """A profile with other figures: what is given holds in place of what it has, also for one direction."""
    found: dict[str, Any] = plain(profile)
    hidden = {key for key in figures if key in LINE_KEYS} | ({"latency"} if "rtt" in figures else set())
    for side in ("up", "down"):
        own = {key: value for key, value in found.pop(side, {}).items() if key not in hidden}
        if own or side in figures:
            found[side] = own | figures.get(side, {})
    if "latency" in figures:
        found.pop("rtt", None)
    if "rtt" in figures:
        found.pop("latency", None)
    return found | {key: value for key, value in figures.items() if key not in ("up", "down")}


# --- in words ---


def words_of(distort: DistortConfig) -> dict[str, Any]:
    """A ``[[distort]]`` of a file as such keys, to be described."""
    found: dict[str, Any] = plain({key: getattr(distort, key) for key in CHOOSING})
    if distort.probability == 1:
        del found["probability"]
    if isinstance(distort.fault, str):
        return found | {"profile": distort.fault}
    return found | ({} if distort.fault is None else plain(distort.fault))


def describe(given: Given) -> tuple[str, str]:
    """What a fault does and to which sessions, in words: ``latency 200ms, jitter 50ms`` and ``hosts *.example.com``."""
    does = [given["profile"]] if "profile" in given else []
    does += [described(key, value) for key, value in given.items() if key not in (*CHOOSING, "profile", "name")]
    chosen = [described(key, value) for key, value in given.items() if key in CHOOSING]
    return ", ".join(does), ", ".join(chosen)


def described(key: str, value: Any) -> str:
    """A key with its value."""
    if value is True:
        return key
    if isinstance(value, dict):
        return f"{key} ({', '.join(described(*item) for item in value.items())})"
    if isinstance(value, list):
        return f"{key} {' '.join(map(str, value))}"
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
