"""The options of `tabi fault`: one for each key of a fault, with the help that the schema has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import click
import msgspec

from tabi.config.distort import DistortConfig, FaultConfig
from tabi.config.mistakes import without_none
from tabi.config.texts import texts_of
from tabi.errors import ConfigError
from tabi.policy.quantities import Bandwidth, Chance, Onset, Seconds, Size
from tabi.policy.schedule import Clock, Cycle

MATCHERS = {
    "hosts": "--host",
    "ports": "--port",
    "users": "--user",
    "clients": "--client",
    "commands": "--command",
    "listeners": "--listener",
    "protocols": "--protocol",
    "hours": "--hours",
}
"""The keys that choose sessions, and their options, which may be repeated but for the last one."""

DRAWING = {"probability": "SHARE", "seed": "N"}

SIDES = ("up", "down")

METAVARS: dict[object, str] = {
    Seconds: "TIME",
    Onset: "TIME",
    Size: "SIZE",
    Chance: "SHARE",
    Bandwidth: "RATE",
    Clock: "WHEN",
    Cycle: "CYCLE",
    int: "N",
    float: "N",
    int | str: "REPLY",
}

NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)

SWITCHES = ("stall", "blackhole")
"""Figures of a direction that need no value."""


def fault_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets them by keyword, None or () for those that were not given."""
    for option in reversed(make_options()):
        command = option(command)
    return command


def make_options() -> Sequence[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """All of them: which sessions, then which figures."""
    helps = texts_of(DistortConfig) | texts_of(FaultConfig)
    found = []
    for key, name in MATCHERS.items():
        many = key != "hours"
        text = f"{helps.get(key, 'Which sessions.')}{' May be repeated.' if many else ''}"
        metavar = name.removeprefix("--").upper()
        found.append(click.option(name, key, metavar=metavar, multiple=many, help=text))
    for key, metavar in DRAWING.items():
        found.append(click.option(f"--{key}", key, metavar=metavar, help=helps.get(key, "Which sessions.")))
    for field in msgspec.structs.fields(FaultConfig):
        kind, text = without_none(field.type), helps.get(field.name, "See docs/faults.md.")
        name = option_of(field.encode_name)
        if kind is bool:
            plain = name.removeprefix("--")
            found.append(click.option(f"--{plain}/--no-{plain}", field.encode_name, default=None, help=text))
        elif field.name in SIDES:
            more = f"{text} KEY is latency and the like. May be repeated."
            found.append(click.option(name, field.encode_name, metavar="KEY=VALUE", multiple=True, help=more))
        else:
            metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else METAVARS[kind]
            found.append(click.option(name, field.encode_name, metavar=metavar, help=text))
    return found


def option_of(key: str) -> str:
    """The option of a key."""
    return f"--{key.replace('_', '-')}"


# --- what they say ---


def given_by(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a fault that options give. Raises ConfigError."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if value is None or value == ():
            continue
        if key in SIDES:
            found[key] = side_of(option_of(key), value)
        elif key in MATCHERS and key != "hours":
            found[key] = [number_or_text(text) if key == "ports" else text for text in value]
        else:
            found[key] = value if isinstance(value, bool) or key in TEXTS else number_or_text(value)
    return found


TEXTS = ("name", "profile", "hours", "from", "until", "every")
"""Keys whose values are text, even if it looks like a number."""


def side_of(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """The figures of one direction; what is no more than a switch needs no value. Raises ConfigError."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not key or not (equals or key in SWITCHES):
            raise ConfigError(f"{text!r}, expected KEY=VALUE", option)
        if key in found:
            raise ConfigError(f"{key} is there twice", option)
        found[key] = number_or_text(value.strip()) if equals else True
    return found


def number_or_text(text: str) -> Any:
    """A value as TOML has it: a number, true or false, or text."""
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return {"true": True, "false": False}.get(text, text)


def in_options(error: ConfigError) -> ConfigError:
    """An error about a key as one about its option."""
    if error.path is None:
        return error
    key = re.split(r"[.\[]", error.path)[0]
    below = error.path.partition(".")[2]
    message = f"{below}: {error.message}" if below else error.message
    return ConfigError(message, MATCHERS.get(key, option_of(key)))
