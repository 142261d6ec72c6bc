"""The configuration as it would be used, without secrets: for people who ask what holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from tabi.config import Config, PerClient
from tabi.config.load import encode_special
from tabi.policy.limits import least_burst
from tabi.server.intercept_files import authority_paths
from tabi.server.quota_store import path_of


def resolved(config: Config) -> dict[str, Any]:
    """The configuration as it would be used, without secrets: defaults that depend on others are filled in."""
    data: dict[str, Any] = msgspec.to_builtins(config, enc_hook=encode_special)
    for user in data["users"].values():
        user["password"] = user["password"] and "…"
    for listen, shown in zip(config.listen, data["listen"], strict=True):
        shown["users"] = listen.users or ("required" if listen.wants_user(config.has_users) else "none")
    for index, rule in enumerate(data["rule"]):
        rule["name"] = rule["name"] or f"rule[{index}]"
        rule["action"] = rule["action"] or "allow"
        if rule["action"] == "allow":
            rule["via"] = rule["via"] or "direct"
            rule["idle"] = rule["idle"] or data["timeouts"]["idle"]
    for egress in data["egress"].values():
        hide_passwords(egress)
        egress["ssh"]["known_hosts"] = egress["ssh"]["known_hosts"] or str(Path("~/.ssh/known_hosts").expanduser())
    for key in ("token", "read_token"):
        data["admin"][key] = data["admin"][key] and "…"
    data["ca"]["certificate"], data["ca"]["key"] = authority_paths(config)
    for index, intercept in enumerate(data["intercept"]):
        intercept["name"] = intercept["name"] or f"intercept[{index}]"
    for index, distort in enumerate(data["distort"]):
        distort["name"] = distort["name"] or f"distort[{index}]"
        hide_fields(distort)
    for holder, key in faults_of(data):
        holder[key] = without_none(holder[key])
    data["quotas"]["path"] = str(path_of(config))
    if data["limits"]["per_client"] is None:
        data["limits"]["per_client"] = msgspec.to_builtins(PerClient(), enc_hook=encode_special)
    for part in [*data["users"].values(), *data["groups"].values(), *data["clients"]]:
        del part["limits"]["per_client"]  # only the server has it
    for part in [data, *data["users"].values(), *data["groups"].values(), *data["clients"]]:
        limits = part["limits"]
        if limits["bandwidth"] is not None:
            limits["burst"] = limits["burst"] or least_burst(limits["bandwidth"])
    return data


def hide_passwords(egress: dict[str, Any]) -> None:
    """Take the users and passwords out of the URLs of an egress."""

    def hidden(text: str | None) -> str | None:
        return None if text is None else re.sub(r"://.*@", "://…@", text)

    egress["url"] = hidden(egress["url"])
    for hops in (egress["chain"], egress["members"]):
        for place, one in enumerate(hops or ()):
            if isinstance(one, str):
                hops[place] = hidden(one)
            else:
                one["to"] = hidden(one["to"])


def hide_fields(distort: dict[str, Any]) -> None:
    """Take secrets out of the fields that an entry sets, and out of its URL."""
    if distort["map_remote"] is not None:
        distort["map_remote"] = re.sub(r"://.*@", "://…@", distort["map_remote"])
    for headers in filter(None, (distort["headers"], distort["response_headers"])):
        from tabi.intercept.masking import Names

        names = Names()
        for values in (headers["set"], headers["append"]):
            values |= dict.fromkeys([name for name in values if name in names], "…")


def faults_of(data: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where the faults are: what has each, and its key."""
    found = [(distort, "fault") for distort in data["distort"] if isinstance(distort["fault"], dict)]
    return found + [(data["profile"], name) for name in data["profile"]]


def without_none(value: Any) -> Any:
    """A table without the keys that have no value: in a fault they all mean that this does not go wrong."""
    if not isinstance(value, dict):
        return value
    return {key: without_none(below) for key, below in value.items() if below is not None}
