"""From the configuration to what decides: rules, guard and limits. Each is made once, when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tabi.config.schema import Check, Config, Egress, Limits, Member, Rule
from tabi.errors import ConfigError
from tabi.policy.guard import Guard, Own
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits as Accounts
from tabi.policy.limits import Networks
from tabi.policy.networks import IP, Network, parse_network
from tabi.policy.rules import Rule as Compiled
from tabi.policy.rules import RuleSet, Texts, make_rule
from tabi.url import ProxyURL, parse_url
from tabi.wire.address import Address, parse_address, parse_host, parse_ip, read_number

NOTHING = Limits()


MEMORY: list[tuple[list[Rule], list[Compiled]]] = []
"""The rules that were compiled last. They are asked for several times at a start, and may be very many."""


SETS: list[tuple[list[Compiled], RuleSet]] = []
"""The same for what is made of them. A rule set does not change."""


def make_rules(config: Config) -> list[Compiled]:
    """Compile all rules. Raises ConfigError."""
    for source, compiled in MEMORY:
        if source is config.rule:
            return compiled
    rules: list[Compiled] = []
    for number, rule in enumerate(config.rule):
        try:
            rules.append(make_rule(number, rule.action or "allow", texts_of(rule), rule.name, rule.via))
        except ConfigError as exc:
            raise ConfigError(exc.message, f"rule[{number}].{exc.path}") from None
    MEMORY[:] = [(config.rule, rules)]
    return rules


def texts_of(rule: Rule) -> Texts:
    """The matchers of a rule as they are written."""

    def words(given: Sequence[int | str] | None) -> tuple[str, ...] | None:
        return None if given is None else tuple(map(str, given))

    return Texts(
        words(rule.hosts),
        words(rule.ports),
        words(rule.users),
        words(rule.clients),
        words(rule.commands),
        words(rule.listeners),
        words(rule.protocols),
        rule.hours,
    )


def make_rule_set(config: Config) -> RuleSet:
    """All rules, ready to decide. Raises ConfigError."""
    rules, groups = make_rules(config), {name: frozenset(user.groups) for name, user in config.users.items()}
    for source, found in SETS:
        if source is rules and found.groups == groups:
            return found
    found = RuleSet(rules, groups)
    SETS[:] = [(rules, found)]
    return found


def make_guard(config: Config, own: Own | None = None) -> Guard:
    """The guard. Raises ConfigError."""
    guard = config.guard
    try:
        return Guard(guard.deny, guard.allow, guard.exempt, own)
    except ConfigError as exc:
        raise ConfigError(exc.message, f"guard.{exc.path}") from None


def networks_of(words: Sequence[str], path: str) -> list[Network]:
    """Networks of clients. Raises ConfigError."""
    if not words:
        raise ConfigError("empty, expected one or more", path)
    found = []
    for index, word in enumerate(words):
        try:
            found.append(parse_network(word))
        except ValueError as exc:
            raise ConfigError(str(exc), f"{path}[{index}]") from None
    return found


def make_hosts(config: Config) -> dict[str, list[IP]]:
    """Names of the configuration, as they are looked for, and their addresses. Raises ConfigError."""
    hosts: dict[str, list[IP]] = {}
    for name, texts in config.resolver.hosts.items():
        path = f"resolver.hosts.{name}"
        try:
            host = parse_host(name)
            if not isinstance(host, str) or read_number(host) is not None or "*" in host or host == ".":
                raise ValueError(f"{name!r} is no name")
            host = host.lower().removesuffix(".")
            if host in hosts:
                raise ValueError("the same name twice")
        except ValueError as exc:
            raise ConfigError(str(exc), path) from None
        if not texts:
            raise ConfigError("empty, expected one address or more", path)
        for index, text in enumerate(texts):
            try:
                hosts.setdefault(host, []).append(parse_ip(text))
            except ValueError:
                raise ConfigError(f"{text!r}, expected an IP address", f"{path}[{index}]") from None
    return hosts


def make_limits(config: Config, ledger: Ledger) -> Accounts:
    """All accounts that have limits, on a ledger."""

    def limited(parts: Mapping[str, Limits]) -> dict[str, Limits]:
        return {name: limits for name, limits in parts.items() if limits != NOTHING}

    return Accounts(
        ledger,
        users=limited({name: user.limits for name, user in config.users.items()}),
        groups=limited({name: group.limits for name, group in config.groups.items()}),
        networks=[
            Networks(networks_of(part.networks, f"clients[{index}].networks"), part.limits)
            for index, part in enumerate(config.clients)
        ],
        server=None if config.limits == NOTHING else config.limits,
        members={name: user.groups for name, user in config.users.items()},
        expires={name: user.expires for name, user in config.users.items() if user.expires is not None},
    )


# --- ways out ---

DIRECT, BLOCK = "direct", "block"


def members_of(egress: Egress) -> list[Member]:
    """The members of a pool, those that are only named too."""
    return [Member(member) if isinstance(member, str) else member for member in egress.members or ()]


def proxies_of(egress: Egress) -> list[tuple[str, ProxyURL]]:
    """The proxies that an egress names by their URLs, each with its key. Raises ValueError."""
    found = [("url" if egress.url is not None else f"chain[{index}]", hop) for index, hop in enumerate(egress.hops)]
    found += [(f"members[{index}]", member.to) for index, member in enumerate(members_of(egress))]
    return [(key, parse_url(text)) for key, text in found if "://" in text]


def name_of(text: str) -> str:
    """What a proxy, or an egress, is called: a URL without its user and password. Raises ValueError."""
    return str(parse_url(text)) if "://" in text else text


def check_target(check: Check) -> tuple[Address, str | None]:
    """What a check connects to, and the path that it asks for. Raises ValueError."""
    if (check.connect is None) == (check.http is None):
        raise ValueError("expected one of connect and http")
    if check.connect is not None:
        return parse_address(check.connect), None
    assert check.http is not None
    scheme, _, rest = check.http.partition("://")
    place, slash, path = rest.partition("/")
    if scheme != "http" or not place or not check.http.isascii() or not check.http.isprintable() or " " in check.http:
        raise ValueError(f"{check.http!r}, expected http://host:port/path")
    return parse_address(place if re.search(r":\d+$", place) else f"{place}:80"), slash + path or "/"
