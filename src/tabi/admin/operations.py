"""What the admin API can do: one entry for each operation, from which its routes and its description are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from tabi.admin.access import Scope
from tabi.config.live_faults import FaultKeys
from tabi.errors import ConfigError
from tabi.server.reports import FILTERS, MOST, SEARCH, SEARCHED, SORTED_BY

Schema = Mapping[str, Any]
"""JSON Schema."""


class Parameter(NamedTuple):
    """A part of the path or of the query."""

    name: str
    text: str
    place: Literal["path", "query"] = "query"
    schema: Schema = MappingProxyType({"type": "string"})


class Operation(NamedTuple):
    """One operation."""

    method: Literal["GET", "POST", "PATCH", "DELETE", "PUT"]
    path: str
    text: str
    make: Callable[[Mapping[str, str], Any], Mapping[str, Any]]
    """The request to the server, out of the parameters and the body. Raises ConfigError."""
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    take: str | None = None
    """The key of the server's answer that is the answer; None: all of it."""

    @property
    def scope(self) -> Scope:
        """What a client needs for it."""
        return "read" if self.method == "GET" else "full"


FILTER = (
    *(Parameter(name, f"Only sessions with this {name}.") for name in FILTERS),
    Parameter(SEARCH, f"Only sessions with this in one of: {', '.join(SEARCHED)}."),
)
SHAPE = (
    Parameter("sort", "By what they are sorted, the most first.", schema={"type": "string", "enum": list(SORTED_BY)}),
    Parameter("limit", "So many at most.", schema={"type": "integer", "minimum": 0, "maximum": MOST, "default": MOST}),
)
ID = Parameter("id", "The id of a session, as in the access log.", "path")
NAME = Parameter("name", "The name of a fault.", "path")
POOL, MEMBER = Parameter("pool", "A pool.", "path"), Parameter("member", "One of its members.", "path")
FAULT: Schema = {
    "type": "object",
    "properties": {name.replace("from_", "from"): {} for name in (*FaultKeys.__annotations__, "for")},
    "additionalProperties": False,
}


EXPLAIN: dict[str, Any] = {
    "type": "object",
    "properties": {
        name: {"type": "string"}
        for name in ("command", "destination", "client", "user", "listener", "protocol", "at", "sni")
    },
    "required": ["destination"],
    "additionalProperties": False,
}
LEVEL: Schema = {
    "type": "object",
    "properties": {"level": {"enum": ["debug", "info", "warning", "error"]}},
    "required": ["level"],
    "additionalProperties": False,
}


def filter_of(given: Mapping[str, str]) -> dict[str, str]:
    """The sessions that parameters choose."""
    return {name: given[name] for name in (*FILTERS, SEARCH) if name in given}


def number(given: Mapping[str, str], name: str, default: int) -> int:
    """A parameter that is a number. Raises ConfigError."""
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{text!r}, expected a number", name)
    return int(text)


def list_sessions(given: Mapping[str, str], _: Any) -> Mapping[str, Any]:
    """The request for sessions."""
    wanted = {"sort": given.get("sort"), "limit": number(given, "limit", MOST)}
    return {"command": "sessions", "filter": filter_of(given), **wanted}


def end_sessions(given: Mapping[str, str], _: Any) -> Mapping[str, Any]:
    """The request to end sessions; it names some."""
    return {"command": "kick", "filter": filter_of(given)}


def command(name: str, **more: Any) -> Callable[[Mapping[str, str], Any], Mapping[str, Any]]:
    """A request that is always the same."""
    return lambda given, body: {"command": name, **more}


def table(body: Any) -> dict[str, Any]:
    """A body that is an object. Raises ConfigError."""
    if not isinstance(body, dict):
        raise ConfigError("expected a JSON object as the body")
    return body


def add_fault(_: Mapping[str, str], body: Any) -> Mapping[str, Any]:
    """The request to set a fault; ``for`` is how long it stays."""
    given = dict(table(body))
    return {"command": "fault", "action": "add", "for": given.pop("for", None), "fault": given}


def change_fault(given: Mapping[str, str], body: Any) -> Mapping[str, Any]:
    """The request to change one."""
    keys = dict(table(body))
    return {
        "command": "fault",
        "action": "change",
        "name": given["name"],
        "for": keys.pop("for", None),
        "fault": keys,
    }


def set_level(_: Mapping[str, str], body: Any) -> Mapping[str, Any]:
    """The request to log more, or less."""
    return {"command": "log_level", "level": table(body).get("level")}


def remove_fault(given: Mapping[str, str], _: Any) -> Mapping[str, Any]:
    """The request to remove one, or all."""
    return {"command": "fault", "action": "remove", "names": [given["name"]] if "name" in given else None}


def steer(action: str) -> Callable[[Mapping[str, str], Any], Mapping[str, Any]]:
    """The request to take a member of a pool out, or in."""
    return lambda given, _: {"command": "steer", "action": action, "pool": given["pool"], "member": given["member"]}


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/status", "What runs: pids, places, the version.", command("status")),
    Operation("GET", "/sessions", "The sessions that run now.", list_sessions, (*FILTER, *SHAPE)),
    Operation("DELETE", "/sessions", "End the sessions that match; one filter or more.", end_sessions, FILTER),
    Operation("DELETE", "/sessions/{id}", "End one session.", end_sessions, (ID,)),
    Operation("GET", "/users", "Users with sessions or limits, and what they use.", command("users")),
    Operation("GET", "/egress", "The members of pools, and how each is.", command("egress"), take="members"),
    Operation(
        "POST", "/egress/{pool}/{member}/drain", "Give a member no more requests.", steer("drain"), (POOL, MEMBER)
    ),
    Operation("POST", "/egress/{pool}/{member}/undrain", "Give it requests again.", steer("undrain"), (POOL, MEMBER)),
    Operation("GET", "/refusals", "The last requests that were refused.", command("refusals"), take="refusals"),
    Operation("GET", "/faults", "All faults.", command("fault", action="list"), take="faults"),
    Operation("POST", "/faults", "Set a fault.", add_fault, body=FAULT),
    Operation("PATCH", "/faults/{name}", "Change a fault: what is given.", change_fault, (NAME,), FAULT),
    Operation("DELETE", "/faults/{name}", "Remove a fault.", remove_fault, (NAME,)),
    Operation("DELETE", "/faults", "Remove all faults that were set while it runs.", remove_fault),
    Operation("PUT", "/log-level", "Log messages from this level on.", set_level, body=LEVEL),
    Operation("POST", "/reload", "Read the configuration again.", command("reload")),
)
"""All operations but those that are no question to the server: health, metrics, history, events, the description."""
