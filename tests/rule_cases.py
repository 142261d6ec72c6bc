"""Rules for tests: made from few words, and by hypothesis, with who asks for what."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st

from tabi.policy.host_list import Builder
from tabi.policy.networks import parse_network
from tabi.policy.rules import Rule, RuleSet, Texts, make_rule, read_host
from tabi.session import Session
from tabi.wire.address import Address

MONDAY_NOON = 1795435200
GROUPS = {"alice": frozenset(("dev", "ops")), "bob": frozenset(("ops",))}


def rule(number: int = 0, action: Any = "deny", name: str | None = None, via: str | None = None, **texts: Any) -> Rule:
    """A rule from the texts of its matchers; the path of a file is what stands in it, with spaces between."""
    written = Texts(**texts)
    lists = {}
    for key, read in (("hosts_file", read_host), ("networks_file", parse_network)):
        for path in getattr(written, key) or ():
            builder = Builder()
            for word in path.split():
                if word == "unix":
                    builder.unix = True
                else:
                    builder.add(read(word))
            lists[key, path] = builder.build(path)
    return make_rule(number, action, written, name, via, lists)


def in_files(part: dict[str, Any]) -> dict[str, Any]:
    """The same matchers with all that files may have in files, but the first word if there are several."""
    found = dict(part)
    for key, file in (("hosts", "hosts_file"), ("clients", "networks_file")):
        words = found.get(key)
        if words and not any(word == "*" or word.startswith("re:") for word in words):
            found[key] = words[:1] if len(words) > 1 else None
            found[file] = (" ".join(words[len(words) > 1 :]),)
    return found


def rules(*parts: dict[str, Any]) -> RuleSet:
    """Rules in a row."""
    return RuleSet((rule(number, **part) for number, part in enumerate(parts)), GROUPS)


def session(
    user: str | None = None,
    client: str = "198.51.100.9",
    command: str = "connect",
    protocol: str = "socks5",
    listener: str = "mixed://127.0.0.1:1080",
) -> Session:
    """Who asks."""
    made = Session(1, listener, Address(client if client == "unix" else ip_address(client), 5000), 0.0)
    made.user, made.command, made.protocol = user, command, protocol
    return made


HOSTS = [
    "a.example",
    "b.example",
    "x.a.example",
    "y.x.a.example",
    "1.2.3.4",
    "1.2.9.9",
    "::ffff:1.2.3.4",
    "64:ff9b::102:304",
]
PATTERNS = [
    "a.example",
    "*.a.example",
    "*.example",
    "*",
    "re:^x",
    "1.2.3.0/24",
    "1.2.0.0/16",
    "64:ff9b::/96",
    "b.example",
]
USERS = ["alice", "bob", "carol"]
CLIENTS = ["10.0.0.1", "10.9.0.1", "unix"]


def optional(strategy: Any) -> Any:
    """A matcher, or none."""
    return st.one_of(st.none(), st.lists(strategy, min_size=1, max_size=3).map(tuple))


parts = st.fixed_dictionaries(
    {
        "hosts": optional(st.sampled_from(PATTERNS)),
        "ports": optional(st.sampled_from(["80", "443", "1-100"])),
        "users": optional(st.sampled_from([*USERS, "@dev", "@ops"])),
        "clients": optional(st.sampled_from(["10.0.0.0/8", "10.9.0.0/16", "unix"])),
        "commands": optional(st.sampled_from(["connect", "bind", "associate", "forward"])),
        "hours": st.sampled_from([None, None, "Mon", "Tue"]),
        "action": st.sampled_from(["allow", "deny", "reset", "drop"]),
    }
)
asking = st.fixed_dictionaries(
    {
        "user": st.sampled_from([None, *USERS]),
        "client": st.sampled_from(CLIENTS),
        "command": st.sampled_from(["connect", "bind", "associate", "forward"]),
    }
)
