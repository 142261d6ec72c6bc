"""What clients of the control socket may ask of all workers, and one answer out of those of the workers."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tabi.errors import ConfigError
from tabi.observe.exposition import METRICS, Labels, Value, add_up, render
from tabi.observe.metrics import REFUSALS
from tabi.server.reports import FILTERS, MOST, SEARCH, SORTED_BY

decode = msgspec.json.Decoder(dict[str, Any]).decode

Parts = Sequence[tuple[int, Any]]
"""The pids of workers, and what each has answered."""

FORMATS = TEXT, OPENMETRICS = "text", "openmetrics"

LONGEST = 1024
"""Letters of a filter, and of a name."""

SIZES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "seconds": lambda row: row["seconds"],
    "up": lambda row: row["up"],
    "down": lambda row: row["down"],
    "octets": lambda row: row["up"] + row["down"],
}
"""What sessions are sorted by."""


class About(NamedTuple):
    """Something that can be asked."""

    check: Callable[[Mapping[str, Any]], object]
    """Raises ConfigError if a request is wrong."""
    join: Callable[[Mapping[str, Any], Parts, Answers], Mapping[str, Any]]
    """One answer of all."""


class Answers:
    """Joins the answers of workers.

    Args:
        version: of the program.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.latest: dict[int, dict[str, dict[Labels, Value]]] = {}
        """The last metrics of each worker, by its pid."""
        self.metrics: dict[str, dict[Labels, Value]] = {}
        """Those of all, as they were last asked for."""
        self.ended: dict[str, dict[Labels, Value]] = {}
        """What workers have counted that have ended since: it counts on."""

    def join(
        self, request: Mapping[str, Any], files: Sequence[tuple[int, int]], silent: Sequence[int]
    ) -> dict[str, Any]:
        """One answer to a request.

        Args:
            request: it was checked.
            files: pids of workers, and their answers: descriptors of files, which stay the caller's.
            silent: the pids of those that have not answered.
        """
        parts = []
        for pid, file in files:
            body = decode(os.pread(file, os.fstat(file).st_size, 0))
            if "error" in body:
                return {"error": f"worker {pid}: {body['error']}"}
            parts.append((pid, body["ok"]))
        if request["command"] == "metrics":
            self.learn(parts, silent)
        return {"ok": {**ABOUT[request["command"]].join(request, parts, self), "silent": list(silent)}}

    def learn(self, parts: Parts, silent: Sequence[int]) -> None:
        """Take note of the metrics of workers, and of those that have ended."""
        for pid in set(self.latest) - {pid for pid, _ in parts} - set(silent):
            self.ended = add_up((self.ended, counted(self.latest.pop(pid))))
        for pid in silent:
            if pid in self.latest:  # it may have ended: what it has counted stays
                self.latest[pid] = counted(self.latest[pid])
        for pid, found in parts:
            self.latest[pid] = {name: dict(map(as_sample, samples)) for name, samples in found.items()}


def counted(samples: dict[str, dict[Labels, Value]]) -> dict[str, dict[Labels, Value]]:
    """Those that only ever grow."""
    return {name: found for name, found in samples.items() if METRICS[name].kind != "gauge"}


def as_sample(sample: Any) -> tuple[Labels, Value]:
    """Labels and value of a sample that was JSON."""
    labels, value = sample
    return tuple((name, text) for name, text in labels), tuple(value) if isinstance(value, list) else value


def check_keys(request: Mapping[str, Any], *known: str) -> None:
    """It has no other keys."""
    unknown = set(request) - {"command", *known}
    if unknown:
        raise ConfigError("unknown key", min(unknown))


def check_nothing(request: Mapping[str, Any]) -> None:
    """It takes no more than its name."""
    check_keys(request)


def check_filter(request: Mapping[str, Any]) -> None:
    """``filter`` is an object of texts."""
    found = request.get("filter", {})
    if not isinstance(found, dict):
        raise ConfigError(f"{type(found).__name__}, expected an object", "filter")
    for name, text in found.items():
        if name not in (*FILTERS, SEARCH):
            raise ConfigError(f"unknown key, expected one of: {', '.join((*FILTERS, SEARCH))}", f"filter.{name}")
        if not isinstance(text, str):
            raise ConfigError(f"{type(text).__name__}, expected a text", f"filter.{name}")
        if len(text) > LONGEST:
            raise ConfigError(f"{len(text):,} letters, expected at most {LONGEST:,}", f"filter.{name}")


def check_sessions(request: Mapping[str, Any]) -> None:
    """It may be filtered, sorted and cut."""
    check_keys(request, "filter", "sort", "limit")
    check_filter(request)
    by, limit = request.get("sort"), request.get("limit", MOST)
    if by is not None and by not in SORTED_BY:
        raise ConfigError(f"{by!r}, expected one of: {', '.join(SORTED_BY)}", "sort")
    if type(limit) is not int or not 0 <= limit <= MOST:
        raise ConfigError(f"{limit!r}, expected a number up to {MOST:,}", "limit")


def check_metrics(request: Mapping[str, Any]) -> None:
    """It may name a format."""
    check_keys(request, "format")
    if request.get("format", FORMATS[0]) not in FORMATS:
        raise ConfigError(f"expected one of: {', '.join(FORMATS)}", "format")


def check_kick(request: Mapping[str, Any]) -> None:
    """It never means all sessions by mistake."""
    check_keys(request, "filter", "all")
    check_filter(request)
    if not request.get("filter") and request.get("all") is not True:
        raise ConfigError('it chooses nothing, expected a filter or "all": true', "filter")


def join_sessions(request: Mapping[str, Any], parts: Parts, _: Answers) -> Mapping[str, Any]:
    """Those of all workers, each with the pid of its worker."""
    rows = [{**row, "worker": pid} for pid, found in parts for row in found["sessions"]]
    by, limit = request.get("sort"), request.get("limit", MOST)
    rows = rows[:limit] if by is None else heapq.nlargest(limit, rows, key=SIZES[by])
    return {"sessions": rows, "matching": sum(found["matching"] for _, found in parts)}


def join_kick(_: Mapping[str, Any], parts: Parts, __: Answers) -> Mapping[str, Any]:
    """How many have ended."""
    return {"ended": sum(found["ended"] for _, found in parts)}


def join_metrics(request: Mapping[str, Any], _: Parts, answers: Answers) -> Mapping[str, Any]:
    """Text for Prometheus."""
    found = add_up((answers.ended, *answers.latest.values()))
    answers.metrics = found
    found["tabi_build_info"] = {(("version", answers.version),): 1}
    return {"text": render(found, request.get("format") == OPENMETRICS)}


def check_steer(request: Mapping[str, Any]) -> None:
    """It names a member."""
    check_keys(request, "action", "pool", "member")
    for key in ("pool", "member"):
        name = request.get(key)
        if not isinstance(name, str):
            raise ConfigError("missing, expected a name", key)
        if len(name) > LONGEST:
            raise ConfigError(f"{len(name):,} letters, expected at most {LONGEST:,}", key)
    if request.get("action") not in ("drain", "undrain"):
        raise ConfigError("expected drain or undrain", "action")


def join_steer(request: Mapping[str, Any], parts: Parts, _: Answers) -> Mapping[str, Any]:
    """Raises ConfigError if there is no such member."""
    if parts and not any(found for _, found in parts):
        raise ConfigError(f"there is no member {request['member']!r} of a pool {request['pool']!r}", "member")
    return {"done": True}


def join_users(request: Mapping[str, Any], parts: Parts, __: Answers) -> Mapping[str, Any]:
    """Users with the sessions of all workers. Workers share the accounts: those that any of them knows are there."""
    users: dict[str, dict[str, Any]] = {}
    accounts: dict[str, dict[str, Any]] = {}
    for _, found in parts:
        for name, row in found["users"].items():
            known = users.setdefault(name, {"name": name, "sessions": 0, "up": 0, "down": 0})
            for key in ("sessions", "up", "down"):
                known[key] += row[key]
        for account in found["accounts"]:
            accounts[account["name"]] = account
    for name in accounts:
        user = name.removeprefix("user ")
        if user != name:
            users.setdefault(user, {"name": user, "sessions": 0, "up": 0, "down": 0})
    found = sorted(users.values(), key=lambda row: row["name"])
    return {"users": found[:MOST], "accounts": list(accounts.values())[:MOST]}


def join_refusals(request: Mapping[str, Any], parts: Parts, _: Answers) -> Mapping[str, Any]:
    """Those of all workers, the latest first."""
    rows = [row for _, found in parts for row in found]
    return {"refusals": sorted(rows, key=lambda row: -row["time"])[:REFUSALS]}


def join_egress(request: Mapping[str, Any], parts: Parts, _: Answers) -> Mapping[str, Any]:
    """The members of pools: up if they are in all workers, with the requests of all."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for __, members in parts:
        for row in members:
            key = row["pool"], row["member"]
            known = rows.setdefault(key, row)
            if known is not row:
                known["sessions"] += row["sessions"]
                known["failures"] = max(known["failures"], row["failures"])
                if known["up"] and not row["up"]:
                    known |= {name: row[name] for name in ("up", "trial_in", "reason")}
    return {"members": list(rows.values())}


ABOUT: dict[str, About] = {
    "sessions": About(check_sessions, join_sessions),
    "kick": About(check_kick, join_kick),
    "metrics": About(check_metrics, join_metrics),
    "egress": About(check_nothing, join_egress),
    "steer": About(check_steer, join_steer),
    "users": About(check_nothing, join_users),
    "refusals": About(check_nothing, join_refusals),
}
"""What may be asked of workers, by the name of the command."""
