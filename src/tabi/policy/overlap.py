"""Overlap: rules that can never match, since an earlier rule matches everything that they would match.

For each rule a request that it matches is made up. Only earlier rules that match this request too are compared with
the rule, so that 20,000 rules take no longer than 20,000 decisions. A rule that only several others together hide is
not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import NamedTuple

from tabi.policy.host_list import HostList, ListedNetworks
from tabi.policy.hours import Hours
from tabi.policy.networks import Network, NetworkSet
from tabi.policy.rules import COMMANDS, PROTOCOLS, Asked, Conditions, Hosts, Rule, RuleSet, ask, parents_of
from tabi.session import UNIX, Session
from tabi.wire.address import Address, Host, parse_host

COMPARED = 1000
"""Rules that one is compared with at most: only patterns and similar matchers reach this number."""

ANYBODY = parse_host("192.0.2.1")


class Hidden(NamedTuple):
    """A rule that can never match, and the earlier rule that hides it; None if the rule applies to no user."""

    rule: Rule
    by: Rule | None


def find_hidden(rules: RuleSet) -> Iterator[Hidden]:
    """All rules that can never match."""
    members: dict[str, str] = {}
    for user, groups in rules.groups.items():
        for group in groups:
            members.setdefault(group, user)
    for position, rule in enumerate(rules):
        users, groups = rule.conditions.users, rule.conditions.groups or frozenset()
        if users is not None and not users and not any(group in members for group in groups):
            yield Hidden(rule, None)
            continue
        session, asked = witness(rule, members)
        before = [rules.rules[other] for other in rules.candidates(session, asked) if other < position]
        by = next((other for other in before[:COMPARED] if covers(rules, other, rule)), None)
        if by is not None:
            yield Hidden(rule, by)


def witness(rule: Rule, members: dict[str, str]) -> tuple[Session, Asked]:
    """A request that a rule matches, as far as candidates are chosen by it."""
    conditions, hosts = rule.conditions, rule.hosts
    client: Host = ANYBODY
    if conditions.clients is not None:
        networks = conditions.clients.networks
        client = networks[0].network_address if networks else UNIX
    session = Session(0, "", Address(client, 0), 0)
    for user in sorted(conditions.users or ()):
        session.user = user
    for group in sorted(conditions.groups or ()):
        session.user = session.user or members.get(group)
    host: Host = ""
    if hosts is not None:
        for name in hosts.names:
            host = name
        for suffix in hosts.suffixes:
            host = host or f"a.{suffix}"
        for network in hosts.networks.networks:
            host = host or network.network_address
    return session, ask(Address(host, 0), None)


def covers(rules: RuleSet, first: Rule, later: Rule) -> bool:
    """Whether a rule matches all that a later one would."""
    one, other = first.conditions, later.conditions
    return (
        has_words(one.commands, other.commands, COMMANDS)
        and has_words(one.protocols, other.protocols, PROTOCOLS)
        and (one.listeners is None or (other.listeners is not None and other.listeners <= one.listeners))
        and has_users(rules, one, other)
        and has_ports(one.ports, other.ports)
        and (one.clients is None or (other.clients is not None and has_networks(one.clients, other.clients)))
        and has_hours(one.hours, other.hours)
        and (first.hosts is None or has_hosts(first, first.hosts, later, later.hosts))
    )


def has_words(one: Set[str] | None, other: Set[str] | None, known: tuple[str, ...]) -> bool:
    """Whether a matcher of words from a fixed list (``known``) includes all that a later one matches."""
    return one is None or (other or set(known)) <= one


def has_users(rules: RuleSet, one: Conditions, other: Conditions) -> bool:
    """Whether a matcher of users and groups includes all that a later one matches."""
    if one.users is None:
        return True
    if other.users is None:
        return False
    return (other.groups or frozenset()) <= (one.groups or frozenset()) and all(
        rules.is_one_of(user, rules.groups.get(user, frozenset()), one.users, one.groups) for user in other.users
    )


def has_ports(one: tuple[tuple[int, int], ...] | None, other: tuple[tuple[int, int], ...] | None) -> bool:
    """Whether ranges of ports include all that later ones match."""
    if one is None:
        return True
    if other is None:
        other = ((0, 65535),)
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(one):
        if merged and begin <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return all(any(first <= begin and end <= last for first, last in merged) for begin, end in other)


def has_networks(one: NetworkSet, other: NetworkSet) -> bool:
    """Whether networks, and clients of unix sockets, include all that later ones match."""
    return (
        (one.unix or not other.unix)
        and set(lists_of(other)) <= set(lists_of(one))
        and all(has_network(one, network) for network in other.networks)
    )


def lists_of(networks: NetworkSet) -> tuple[HostList, ...]:
    """The lists that belong to networks. What is in them is not compared: one list includes only itself."""
    return networks.lists if isinstance(networks, ListedNetworks) else ()


def has_network(one: NetworkSet, network: Network) -> bool:
    """Whether a network lies within one of several."""
    places = one.table.find(network.network_address)
    return any(one.networks[place].prefixlen <= network.prefixlen for place in places)


def has_hours(one: Hours | None, other: Hours | None) -> bool:
    """Whether hours include all later ones; hours of different zones are not compared."""
    if one is None:
        return True
    if other is None:
        return all(one.minutes)
    return one.zone.key == other.zone.key and all(a >= b for a, b in zip(one.minutes, other.minutes, strict=True))


def has_hosts(first: Rule, one: Hosts, later: Rule, other: Hosts | None) -> bool:
    """Whether the hosts of a rule include all destinations of a later one."""
    if one.everything:
        return True
    if other is None or other.everything:
        return False
    # A rule that allows needs all addresses of a name in its networks; a rule that refuses needs only one.
    comparable = first.refuses or not later.refuses or not (other.networks or other.lists)
    texts = {pattern.pattern for pattern in one.patterns}
    return (
        comparable
        and set(other.lists) <= set(one.lists)
        and all(pattern.pattern in texts for pattern in other.patterns)
        and all(has_network(one.networks, network) for network in other.networks.networks)
        and all(has_suffix(one, suffix) for suffix in other.suffixes)
        and all(has_name(one, name) for name in other.names)
    )


def has_suffix(one: Hosts, suffix: str) -> bool:
    """Whether all names below a suffix are among the hosts."""
    return suffix in one.suffixes or any(parent in one.suffixes for parent in parents_of(suffix))


def has_name(one: Hosts, name: str) -> bool:
    """Whether a name is among the hosts."""
    return (
        name in one.names
        or any(parent in one.suffixes for parent in parents_of(name))
        or any(pattern.search(name) for pattern in one.patterns)
    )
