"""JSON Schema (2020-12) of tabi.toml, for editors: made of the structs, so that it says what they say.

It takes everything that tabi takes. It cannot know all that is wrong: whether an egress exists that a rule names, say.
Values of TOML that JSON does not have are text, as editors have them: dates and times.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from math import inf
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from tabi.config.distort import DistortConfig, FaultConfig, LineConfig
from tabi.config.faults import MAX_BURST, PROFILES, REPLIES
from tabi.config.load import SPECIAL, encode_special
from tabi.config.mistakes import is_struct, without_none
from tabi.config.schema import (
    PORT_RANGE,
    Auth,
    CheckConfig,
    Clients,
    Config,
    EgressConfig,
    Group,
    GuardConfig,
    InterceptConfig,
    LimitsConfig,
    Listen,
    Log,
    MemberConfig,
    PerClient,
    Quotas,
    ResolverConfig,
    RuleConfig,
    StickyConfig,
    Udp,
    UserConfig,
    UsersGrammar,
)
from tabi.config.texts import in_one_line, texts_of
from tabi.policy import intercepts
from tabi.policy.guard import PRIVATE
from tabi.policy.pool import By
from tabi.policy.quantities import (
    BITS,
    DURATION,
    MAX_NUMBER,
    MAX_SIZE,
    NUMBER,
    OCTETS,
    RATE,
    SHARE,
    Bandwidth,
    Chance,
    Drain,
    Idle,
    Moment,
    Onset,
    Quota,
    Rate,
    Seconds,
    Share,
    Size,
)
from tabi.policy.rules import COMMANDS, PORTS, PROTOCOLS
from tabi.policy.schedule import CLOCK, Clock, Cycle
from tabi.policy.users import PREFIX
from tabi.url import LISTENER_KEYS, LISTENER_PROTOCOLS, PROXY_PROTOCOLS, SERVER_PORTS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def make_schema() -> Schema:
    """The schema of a whole file."""
    found = find_structs(Config, {})
    parts = {kind.__name__: struct_schema(kind) for kind in found if kind is not Config}
    return {"$schema": DIALECT, "title": "tabi.toml", **struct_schema(Config), "$defs": parts}


def find_structs(kind: Any, found: dict[type, None]) -> dict[type, None]:
    """All structs that a type is made of."""
    if is_struct(kind):
        if kind not in found:
            found[kind] = None
            for field in msgspec.structs.fields(kind):
                find_structs(field.type, found)
    else:
        for part in get_args(kind):
            find_structs(part, found)
    return found


def struct_schema(kind: type[msgspec.Struct]) -> Schema:
    """A table of the file."""
    texts = texts_of(kind)
    properties, required = {}, []
    for field in msgspec.structs.fields(kind):
        schema = schema_of(field.type)
        schema |= FIELDS.get((kind, field.name), {})
        properties[field.encode_name] = {"description": texts.get(field.name, ""), **schema, **default_of(field)}
        if field.required:
            required.append(field.encode_name)
    return {
        "description": in_one_line(kind.__doc__ or ""),
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": required} if required else {}),
        **TABLES.get(kind, {}),
    }


def schema_of(kind: Any) -> Schema:
    """The schema of a type of the structs. None is no value of TOML."""
    kind = without_none(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if is_struct(kind):
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if kind in SPECIALS:
        return dict(SPECIALS[kind])
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": schema_of(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(inner[1])}
    if origin in (types.UnionType, Union):
        return {"anyOf": [schema_of(one) for one in inner]}
    return {"type": TYPES[kind]}


TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def default_of(field: Any) -> Schema:
    """The default of a field, where it is a plain value."""
    default = field.default_factory() if field.default is msgspec.NODEFAULT and not field.required else field.default
    if type(default) in SPECIAL:
        default = encode_special(default)
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    plain = isinstance(default, bool | int | float | str) and default != inf
    if isinstance(default, list):
        plain = all(isinstance(one, str) for one in default)
    return {"default": default} if plain else {}


# --- values with units ---


def text(*patterns: str) -> Schema:
    """Text that one of several patterns matches, with blanks around it."""
    return {"type": "string", "pattern": rf"^\s*(?:{'|'.join(patterns)})\s*$"}


def any_of(words: Iterable[str]) -> str:
    """A pattern for words in small or capital letters: the patterns of JSON Schema have no flag for that."""
    letters = (
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else rf"\{c}" if c in "+.-" else c for c in word) for word in words
    )
    return f"(?:{'|'.join(letters)})"


NOT_ZERO = r"(?!0+(?:\.0+)?(?![\d.]))"
DURATIONS = NOT_ZERO + DURATION.pattern
SIZES = rf"{NOT_ZERO}{NUMBER}{any_of(OCTETS)}?"
RATES_OF_OCTETS = rf"{NOT_ZERO}{NUMBER}{any_of((*OCTETS, *BITS))}\s*/s"
MOMENTS = r"\d{4}-?(?:\d\d|W\d\d).*"

SPECIALS: dict[Any, Schema] = {
    Seconds: {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e9}, text(DURATIONS)]},
    Drain: {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, text(DURATIONS), {"const": "never"}]},
    Idle: {"anyOf": [{"type": "number", "minimum": 0}, text(DURATION.pattern), {"const": "never"}]},
    Onset: {
        "anyOf": [{"const": True}, {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9}, text(DURATION.pattern)]
    },
    Size: {"anyOf": [{"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": MAX_SIZE}, text(SIZES)]},
    Rate: {"anyOf": [{"type": "number", "minimum": 1e-6, "maximum": 1e9}, text(NOT_ZERO + RATE.pattern)]},
    Share: {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_NUMBER}, text(NOT_ZERO + SHARE.pattern)]},
    Bandwidth: {"anyOf": [{"type": "number", "minimum": 1, "maximum": 1e12}, text(RATES_OF_OCTETS)]},
    Chance: {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, text(SHARE.pattern)]},
    Quota: text(rf"{SIZES}\s*/\s*(?:day|month)(?:\s.*)?"),
    Moment: {"anyOf": [text(MOMENTS), {"type": "number"}]},
    Clock: {"anyOf": [text(CLOCK.pattern, r"\d\d:\d\d:\d\d\.\d+", MOMENTS), {"type": "number"}]},
    Cycle: text(rf"\s*{DURATIONS}\s+good\s*,\s*{DURATIONS}\s+gone"),
}
"""What `SPECIAL` reads. A test holds them side by side."""

# --- what types do not say ---


def words(*choices: str) -> Schema:
    """A list of some words."""
    return {"type": "array", "items": {"enum": list(choices)}, "minItems": 1}


NETWORK = {"type": "string", "pattern": r"^(?=.*[.:])\s*[\[\]0-9A-Fa-f:.]+(?:/[0-9.]+)?\s*$"}
FILE = {"type": "string", "minLength": 1}
NOT_EMPTY = {"minItems": 1}
NAME = {"pattern": r"^[^\x00-\x1f\x7f]+$"}
PROXY = rf"(?!.*:0+/?$)(?![sS][sS][hH]://[^@]*$){any_of(PROXY_PROTOCOLS)}://.*"
IN_TLS, IN_THE_OPEN = (
    {"properties": {"url": {"pattern": f"^{any_of(schemes)}://"}}, "required": ["url"]}
    for schemes in (
        [scheme for scheme, (_, tls) in LISTENER_PROTOCOLS.items() if tls],
        [scheme for scheme, (protocol, tls) in LISTENER_PROTOCOLS.items() if not tls and protocol != "mixed"],
    )
)
OF_ALL = {"not": {"required": ["per_client"]}}
LISTENERS = rf"{any_of(LISTENER_PROTOCOLS)}://[^@]*|{any_of(LISTENER_KEYS)}:.*"
SERVERS = rf"system|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\](?::\d+)?|{any_of(SERVER_PORTS)}://.*"
HOP = {"type": "string", "pattern": rf"^(?:{PROXY}|(?!.*://).*)$"}
STATUS = {"minimum": 200, "maximum": 599}
REPLY = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 8}, {"enum": [*REPLIES]}, {"type": "string"}]}


def networks(*others: str) -> Schema:
    """A list of networks, and of words that may stand there."""
    return {"type": "array", "items": {"anyOf": [{"enum": list(others)}, NETWORK]} if others else NETWORK}


CHOOSING = (RuleConfig, InterceptConfig, DistortConfig)
"""The tables that have matchers."""

MATCHERS: dict[str, Schema] = {
    "hosts": NOT_EMPTY,
    "ports": {
        "type": "array",
        "items": {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 65535},
                {"type": "string", "pattern": f"^(?:{PORTS.pattern})$"},
            ]
        },
        "minItems": 1,
    },
    "users": NOT_EMPTY,
    "clients": networks("unix") | NOT_EMPTY,
    "commands": words(*COMMANDS),
    "listeners": NOT_EMPTY,
    "protocols": words(*PROTOCOLS),
}

FIELDS: dict[tuple[type[msgspec.Struct], str], Schema] = {
    **{(kind, key): schema for kind in CHOOSING for key, schema in MATCHERS.items()},
    **{(kind, "name"): NAME for kind in CHOOSING},
    **{(kind, "limits"): OF_ALL for kind in (UserConfig, Group, Clients)},
    (InterceptConfig, "commands"): words(*intercepts.COMMANDS),
    (Config, "workers"): {"minimum": 0, "maximum": 1024},
    (Config, "listen"): NOT_EMPTY,
    (Config, "users"): {"propertyNames": {"minLength": 1, "maxLength": 255}},
    (Config, "groups"): {"propertyNames": {"pattern": "^(?!@)"}},
    (Config, "decide"): {"pattern": r"^python:[\w.]+:\w+$"},
    (Config, "egress"): {"propertyNames": {"not": {"const": "block"}}},
    (Config, "profile"): {"propertyNames": {"minLength": 1}},
    (Listen, "url"): {"pattern": f"^(?:{LISTENERS})$"},
    (Listen, "proxy_protocol"): networks("unix"),
    (Listen, "no_user"): networks("unix"),
    (Udp, "ports"): {"pattern": f"^(?:shared|{PORT_RANGE.pattern})$"},
    (PerClient, "connections"): {"minimum": 1, "maximum": MAX_NUMBER},
    (LimitsConfig, "connections"): {"minimum": 1, "maximum": MAX_NUMBER},
    (Clients, "networks"): networks() | NOT_EMPTY,
    (GuardConfig, "deny"): networks(PRIVATE),
    (GuardConfig, "allow"): networks(),
    (GuardConfig, "exempt"): networks("unix"),
    (Auth, "users_file"): FILE,
    (Quotas, "path"): FILE,
    (Log, "access"): FILE,
    (MemberConfig, "to"): HOP,
    (MemberConfig, "weight"): {"exclusiveMinimum": 0, "exclusiveMaximum": 1e9},
    (StickyConfig, "by"): {"pattern": rf"^(?:{'|'.join(get_args(By))})(?:\+(?:{'|'.join(get_args(By))}))*$"},
    (CheckConfig, "connect"): {"pattern": r":\d+$"},
    (CheckConfig, "http"): {"pattern": r"^http://[!-~]+$"},
    (EgressConfig, "source"): networks(),
    (EgressConfig, "interface"): {"minLength": 1, "maxLength": 15},
    (EgressConfig, "mark"): {"minimum": 1, "maximum": (1 << 32) - 1},
    (EgressConfig, "url"): {"pattern": f"^{PROXY}$"},
    (EgressConfig, "chain"): {"type": "array", "items": HOP, "minItems": 1},
    (EgressConfig, "members"): {
        "type": "array",
        "items": {"anyOf": [HOP, {"$ref": f"#/$defs/{MemberConfig.__name__}"}]},
        "minItems": 1,
    },
    (UsersGrammar, "separator"): {"minLength": 1, "maxLength": 1, "pattern": "^[^A-Za-z0-9]$"},
    (ResolverConfig, "servers"): {"type": "array", "items": text(SERVERS), "minItems": 1},
    (ResolverConfig, "tries"): {"minimum": 1, "maximum": 10},
    (ResolverConfig, "cache"): {"minimum": 0, "maximum": 1_000_000},
    (ResolverConfig, "hosts"): {
        "propertyNames": {"pattern": r"^(?!\.?$)(?!(?:.*\.)?[0-9]+\.?$)[^*]+$"},
        "additionalProperties": {"type": "array", "items": NETWORK, "minItems": 1},
    },
    **{(InterceptConfig, key): FILE for key in ("trust", "certificate", "key", "har")},
    **{(InterceptConfig, key): {"type": "array", "items": FILE} for key in ("mask", "scripts")},
    (DistortConfig, "status"): STATUS,
    **{(DistortConfig, key): FILE for key in ("map_local", "body")},
    (DistortConfig, "fault"): {
        "anyOf": [{"$ref": f"#/$defs/{FaultConfig.__name__}"}, {"enum": [*PROFILES]}, {"type": "string"}]
    },
    **{(kind, "burst"): {"minimum": 1, "maximum": MAX_BURST} for kind in (LineConfig, FaultConfig)},
    (FaultConfig, "status"): STATUS,
    (FaultConfig, "refuse"): REPLY,
    (FaultConfig, "resolve"): REPLY,
}
"""What `config.check` says of single values, as far as a schema can say it."""

TABLES: dict[type, Schema] = {
    RuleConfig: {
        "anyOf": [{"required": ["action"]}, {"required": ["via"]}],
        "if": {"properties": {"action": {"enum": ["deny", "reset", "drop"]}}, "required": ["action"]},
        "then": {"properties": {"via": False, "idle": False, "sniff": {"const": False}}},
    },
    Listen: {
        "allOf": [
            {"if": IN_TLS, "then": {"required": ["tls"]}},
            {"if": IN_THE_OPEN, "then": {"properties": {"tls": False}}},
        ]
    },
    UserConfig: {
        "if": {"properties": {"plain": {"const": True}}, "required": ["plain"]},
        "then": {
            "properties": {"password": {"minLength": 1, "maxLength": 255, "pattern": rf"^(?!{re.escape(PREFIX)})"}}
        },
        "else": {"properties": {"password": {"pattern": f"^{re.escape(PREFIX)}"}}},
    },
    LimitsConfig: {"dependentRequired": {"burst": ["bandwidth"]}},
    CheckConfig: {"oneOf": [{"required": ["connect"]}, {"required": ["http"]}]},
    EgressConfig: {
        "dependentRequired": {"check": ["members"]},
        "not": {"anyOf": [{"required": pair} for pair in (["url", "chain"], ["url", "members"], ["chain", "members"])]},
    },
}
"""What it says of keys together."""
