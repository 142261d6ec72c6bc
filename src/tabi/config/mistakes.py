"""All mistakes of a tabi.toml at once: a wrong type or name is reported in the words of the file, key by key.

msgspec stops at the first mistake. If there is one, each value is checked again alone.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable
from typing import Any, Union, get_args, get_origin

import msgspec

from tabi.config.schema import Clients, Listen
from tabi.errors import ConfigError

Decode = Callable[[type, object], object]
"""msgspec's hook for the types that TOML does not have."""

TOML_TYPES = {"object": "table", "str": "string", "int": "integer", "bool": "boolean"}
"""The words of TOML for those of msgspec; the others are the same."""

CHOICES = {
    "users": "required, optional or none",
    "format": "auto, json, text or logfmt",
    "level": "debug, info, warning or error",
    "fragments": "reassemble or drop",
    "senders": "contacted or any",
    "client_name": "cn, dns, email or uri",
    "send_proxy_protocol": "1 or 2, or 0 for none",
    "source_by": "session, user or client",
    "isolate": "user, session or client",
    "resolve": "here or there",
    "balance": "round-robin, random, weighted, least-connections, hash or sticky",
    "keys": "label, session or ttl",
    "action": "allow, deny, reset or drop",
    "intercept.action": "intercept or pass",
    "over": "refuse or wait",
    "on_pinning": "pass or refuse",
    "on_invalid": "mirror or alert",
    "on_error": "pass or close",
    "mismatch": "log or deny",
    "quic": "pass or refuse",
    "direction": "up, down or both",
    "distribution": "uniform or normal",
    "then": "close or reset",
    "tls_cut": "close or reset",
    "prefer": "any, ipv4, ipv6, ipv4-only or ipv6-only",
}

MESSAGE = re.compile("[A-Z][a-z]+ ")
"""How msgspec begins what it says."""

TABLES = ("listen", "rule", "clients", "intercept", "distort")
"""What is written with two brackets."""

STAND_INS: dict[type, dict[str, Any]] = {
    Listen: {"url": "mixed://127.0.0.1:0"},
    Clients: {"networks": ["192.0.2.0/24"]},
}
"""What stands in for a key that is wrong, where the part needs one, or its default would be in the way of others."""

NOTHING = object()


def find_mistakes(value: Any, kind: Any, path: str, decode: Decode) -> tuple[list[ConfigError], Any]:
    """All mistakes of a value, and what is left of it: without them, so that the rest can be looked at further.

    Args:
        value: as TOML has it.
        kind: the type that it must have.
        path: where it is.
        decode: see `Decode`.
    """
    if value is None and type(None) in get_args(kind):  # of a configuration that was made in Python
        return [], value
    kind = without_none(kind)
    found: list[ConfigError] = []
    if is_struct(kind) and isinstance(value, dict):
        return find_in_table(value, kind, path, decode)
    if get_origin(kind) in (types.UnionType, Union) and isinstance(value, dict):  # members of a pool
        for one in filter(is_struct, get_args(kind)):
            return find_in_table(value, one, path, decode)
    if get_origin(kind) is list and isinstance(value, list):
        left = []
        for index, item in enumerate(value):
            errors, rest = find_mistakes(item, get_args(kind)[0], f"{path}[{index}]", decode)
            found += errors
            if rest is NOTHING and is_struct(get_args(kind)[0]):
                rest = dict(STAND_INS.get(get_args(kind)[0], {}))
            if rest is not NOTHING:
                left.append(rest)
        return found, left
    if get_origin(kind) is dict and isinstance(value, dict):
        parts = {key: find_mistakes(part, get_args(kind)[1], f"{path}.{key}", decode) for key, part in value.items()}
        found = [error for errors, _ in parts.values() for error in errors]
        return found, {key: rest for key, (_, rest) in parts.items() if rest is not NOTHING}
    try:
        msgspec.convert(value, kind, dec_hook=decode)
    except msgspec.ValidationError as exc:
        return [in_words(str(exc), path)], NOTHING
    return found, value


def find_in_table(table: dict[str, Any], kind: Any, path: str, decode: Decode) -> tuple[list[ConfigError], Any]:
    """All mistakes of a table of the schema, and what is left of it."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found: list[ConfigError] = []
    left: dict[str, Any] = {}
    for key, value in table.items():
        below = f"{path}.{key}".lstrip(".")
        if key not in fields:
            found.append(ConfigError(f"unknown key, expected one of: {', '.join(fields)}", below))
            continue
        errors, rest = find_mistakes(value, fields[key].type, below, decode)
        found += errors
        left[key] = STAND_INS.get(kind, {}).get(key, NOTHING) if rest is NOTHING else rest
    for name, field in fields.items():
        if field.required and name not in table:
            found.append(ConfigError("missing", f"{path}.{name}".lstrip(".")))
            left[name] = STAND_INS.get(kind, {}).get(name, NOTHING)
    broken = any(field.required and left.get(name) is NOTHING for name, field in fields.items())
    return found, NOTHING if broken else {key: rest for key, rest in left.items() if rest is not NOTHING}


def without_none(kind: Any) -> Any:
    """A type without None, which TOML does not have."""
    if get_origin(kind) not in (types.UnionType, Union):
        return kind
    kinds = tuple(one for one in get_args(kind) if one is not type(None))
    return kinds[0] if len(kinds) == 1 else Union[kinds]  # noqa: UP007 - of a tuple


def is_struct(kind: Any) -> bool:
    """Whether a type is a table of the schema."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def in_words(message: str, path: str) -> ConfigError:
    """Turn msgspec's message about one value into one in tabi.toml's own words."""
    text, _, within = message.partition(" - at `$")
    path += within.rstrip("`")
    key = "keys" if path.startswith("users_grammar.keys.") else re.sub(r"(\[\d+\])+$", "", path).rpartition(".")[2]
    if key == "action" and path.startswith("intercept["):
        key = "intercept.action"
    if text.startswith("Invalid enum value") and key in CHOICES:
        text += f", expected {CHOICES[key]}"
    text = text.replace(" | null`", "`")
    text = re.sub(r"`([\w| ]+)`", lambda found: " or ".join(map(toml_type, found[1].split(" | "))), text)
    if path in TABLES:
        text = f"{text.replace('xpected array', 'xpected array of tables')}: write [[{path}]]"
    if MESSAGE.match(text):  # else it begins with the value
        text = text[:1].lower() + text[1:]
    return ConfigError(text, path or None)


def toml_type(name: str) -> str:
    """A type in the words of TOML."""
    return TOML_TYPES.get(name, name)


ABSENCE = re.compile(r"^(there (is|are) no (?!\[)|missing|no server)|no users|plain = true")
"""Messages about a missing part: the part may be in the file, but have a mistake itself."""

NAMED = ("listen", "rule", "clients", "intercept", "distort", "users", "groups", "egress", "profile")
"""Tables that have parts, each for itself."""


def without_echoes(
    mistakes: list[ConfigError], values: Iterable[ConfigError], data: dict[str, Any]
) -> list[ConfigError]:
    """What is wrong with values, without errors that only follow from other mistakes."""
    paths = [str(error.path) for error in mistakes]
    # The limits of a user have nothing to do with the password.
    parts = {part_of(path, data) for path in paths if not re.search(r"^users\..*\.limits\.", path)}
    return [
        error
        for error in values
        if not any(is_within(str(error.path), path) or is_within(path, str(error.path)) for path in paths)
        and not (ABSENCE.search(error.message) and part_of(str(error.path), data) in parts)
    ]


def part_of(path: str, data: dict[str, Any]) -> tuple[int, ...]:
    """The part that a path leads into: a listener, a user, an egress, a whole table."""
    return position(path, data)[: 2 if re.match(r"\w*", path)[0] in NAMED else 1]  # type: ignore[index]


def is_within(path: str, other: str) -> bool:
    """Whether a path is equal to another one, or lies below it."""
    return path == other or path.startswith((f"{other}.", f"{other}["))


def in_order(errors: list[ConfigError], data: dict[str, Any]) -> tuple[ConfigError, ...]:
    """Errors in the order in which their keys stand in the file."""
    return tuple(sorted(errors, key=lambda error: position(str(error.path), data)))


def position(path: str, data: Any) -> tuple[int, ...]:
    """Where a key stands: its place among its neighbours, in the table that it is in, and so on."""
    if isinstance(data, dict):
        keys = [(len(key), place, key) for place, key in enumerate(data) if is_within(path, key)]
        if keys:
            length, place, key = max(keys)
            return (place, *position(path[length:].removeprefix("."), data[key]))
    elif isinstance(data, list) and (found := re.match(r"\[(\d+)\]\.?", path)) and int(found[1]) < len(data):
        return (int(found[1]), *position(path[found.end() :], data[int(found[1])]))
    return () if not path else (1 << 30,)
