"""Advice on a configuration that is right and yet may not be what was meant. `tabi check` prints it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from tabi.config.compile import make_distorts, make_guard, make_intercepts, make_rule_set
from tabi.config.faults import HTTP_FAULTS, find_fault
from tabi.config.schema import Config, Listen, UserConfig
from tabi.policy.distorts import Distorts
from tabi.policy.guard import HERE, INNER, PRIVATE
from tabi.policy.networks import Network, NetworkSet, parse_network
from tabi.policy.overlap import find_hidden, has_name, lists_of
from tabi.policy.rules import Conditions, Rule, RuleSet, make_hosts
from tabi.session import UNIX
from tabi.wire.address import Address

if TYPE_CHECKING:
    from tabi.config.users import UserTable


def advise(config: Config, users: UserTable | None = None, now: float = 0.0) -> list[str]:
    """Lines of advice, in the words of the configuration.

    Args:
        config: all of it.
        users: as in `make_rule_set`.
        now: seconds since 1970.
    """
    rules = make_rule_set(config, users)
    known = config.users if users is None else users
    found = [*advise_on_rules(rules), *advise_on_users(config, rules, known), *advise_on_guests(config, rules)]
    intercepts = make_intercepts(config, users)
    if intercepts is not None:
        found += advise_on_rules(intercepts.rules, "intercept")
        found += advise_on_users(config, intercepts.rules, known, "intercept")
    if config.distort:
        distorts = make_distorts(config, users)
        found += advise_on_distorts(distorts, now)
        found += advise_on_users(config, distorts.rules, known, "distort")
    return [*found, *advise_on_fingerprints(config), *advise_on_http(config)]


def advise_on_fingerprints(config: Config) -> Iterator[str]:
    """HTTP of one browser over the TLS of something else: no browser sends that."""
    shown = any(distort.tls is not None for distort in config.distort)
    for index, distort in enumerate(config.distort):
        if distort.profile is not None and (distort.tls or "mirror") not in ("mirror", distort.profile):
            yield f"distort[{index}].profile: tls is that of {distort.tls}, which sends other HTTP"
        elif distort.profile is not None and not shown:
            yield f'distort[{index}].profile: no browser has the TLS of tabi; tls = "{distort.profile}" agrees with it'


def advise_on_distorts(distorts: Distorts, now: float) -> Iterator[str]:
    """Entries that can never act. None hides another one, since all that match apply."""
    for entry in distorts:
        path, hidden = f"distort[{entry.number}]", find_hidden(distorts.replaced([entry]).rules)
        for rule, _ in hidden:
            groups = ", ".join(rule.texts.users or ())
            yield f"{path}.users: no user is in {groups}, so {entry.label} can never match"
        if entry.probability == 0:
            yield f"{path}.probability: it is 0, so {entry.label} never acts"
        if entry.schedule.begins(now) is None:
            yield f"{path}.fault.until: that is over, so {entry.label} never acts again"


HTTP_KEYS = ("headers", "response_headers", "strip_cookies", "map_remote", "map_local", "status", "body", "profile")


def advise_on_http(config: Config) -> Iterator[str]:
    """Entries of molding that need TLS to be opened, for destinations of which it is not; nothing is said of those that
    mean HTTP without TLS."""
    opened = [one for one in config.intercept if one.action == "intercept" and one.tls]
    opened = [one for one in opened if one.commands is None or "connect" in one.commands]
    for index, distort in enumerate(config.distort):
        if any(may_meet(distort.hosts, one.hosts) for one in opened):
            continue
        keys = [key for key in HTTP_KEYS if getattr(distort, key)]
        if distort.fault is not None:
            fault = find_fault(distort.fault, config.profile)
            keys += [f"fault.{key}" for key in HTTP_FAULTS if getattr(fault, key) is not None]
        plain = distort.ports == [80] or (distort.commands is not None and "connect" not in distort.commands)
        why = "there is no [[intercept]] that opens the TLS of its hosts"
        if keys and not plain:
            verb = "applies" if len(keys) == 1 else "apply"
            yield f"distort[{index}]: {', '.join(keys)} {verb} to HTTP without TLS alone: {why}"
        if distort.tls is not None:
            yield f"distort[{index}]: tls never applies: {why}"


def may_meet(one: list[str] | None, other: list[str] | None) -> bool:
    """Whether some destination may be among both lists of hosts, as far as words tell: patterns may match any name, and
    names may have any address."""
    if one is None or other is None:
        return True
    first, second = make_hosts(one), make_hosts(other)
    for hosts, others in ((first, second), (second, first)):
        names = [*others.names, *(f"a.{suffix}" for suffix in others.suffixes)]
        if hosts.everything or hosts.patterns or (hosts.networks.networks and (others.names or others.suffixes)):
            return True
        if any(has_name(hosts, name) for name in names):
            return True
    return any(network.overlaps(other) for network in first.networks.networks for other in second.networks.networks)


def advise_on_rules(rules: RuleSet, table: str = "rule") -> Iterator[str]:
    """Rules that can never match, or entries of another table with the same matchers."""
    for rule, by in find_hidden(rules):
        if by is None:
            groups = ", ".join(rule.texts.users or ())
            yield f"{table}[{rule.number}].users: no user is in {groups}, so {rule.label} can never match"
        elif table == "rule" or by.refuses or by.hosts is None:  # a hello for another name ends an exemption
            yield f"{table}[{rule.number}]: {rule.label} can never match, since {by.label} matches all that it would"


def advise_on_users(
    config: Config, rules: RuleSet, known: Mapping[str, UserConfig], table: str = "rule"
) -> Iterator[str]:
    """Users in rules, or in entries of another table, that no client can be."""
    if config.by_certificate:
        return
    for rule in rules:
        unknown = sorted(user for user in rule.conditions.users or () if user not in known)
        if unknown:
            yield f"{table}[{rule.number}].users: there is no user {', '.join(unknown)}"


def advise_on_guests(config: Config, rules: RuleSet) -> Iterator[str]:
    """Inner networks that clients without a user can reach."""
    listeners = [listen.url for listen in config.listen if takes_guests(config, listen)]
    if not listeners:
        return
    exempt = [word for word in config.guard.exempt if not is_here(word)]
    opened: list[tuple[Network, str]] = []
    if PRIVATE not in config.guard.deny:
        opened = [(network, f"guard.deny without {PRIVATE!r}") for network in INNER]
    elif exempt:
        opened = [(network, f"guard.exempt with {', '.join(exempt)}") for network in INNER]
    else:
        allowed = make_guard(config).allowed.networks
        opened = [(network, "guard.allow") for network in allowed if any(map(network.overlaps, INNER))]
    seen: set[tuple[str, str]] = set()
    for network, why in opened:
        rule = rule_for_guests(rules, network, listeners)
        if rule is not None and rule.refuses:
            continue
        who = "no rule refuses it" if rule is None else f"{rule.label} lets them"
        if (who, why) not in seen:
            seen.add((who, why))
            yield f"clients without a user reach {network}: {why} opens it, and {who} (listener {listeners[0]})"


def takes_guests(config: Config, listen: Listen) -> bool:
    """Whether clients from other machines may use a listener without a user."""
    place = listen.parsed.place
    if listen.wants_user(config.has_users) or (not isinstance(place, Address) and not listen.proxy_protocol):
        return False
    host = place.host if isinstance(place, Address) else ""
    here = host == "localhost" if isinstance(host, str) else host.is_loopback
    return not here or bool(listen.proxy_protocol)


def is_here(word: str) -> bool:
    """Whether a word of ``guard.exempt`` is for clients on this machine only."""
    return word == UNIX or is_within(parse_network(word), HERE.networks)


def is_within(network: Network, others: Iterable[Network]) -> bool:
    """Whether all of a network lies within one of others."""
    return any(network.overlaps(other) and other.prefixlen <= network.prefixlen for other in others)


def is_of_here(clients: NetworkSet) -> bool:
    """Whether all clients of a rule are on this machine."""
    return not lists_of(clients) and all(is_within(one, HERE.networks) for one in clients.networks)


def rule_for_guests(rules: RuleSet, network: Network, listeners: list[str]) -> Rule | None:
    """The rule that decides for clients without a user that want to go to a network: the first that lets them go to
    some of it, or that keeps them from all of it."""
    for rule in rules:
        conditions, hosts = rule.conditions, rule.hosts
        if conditions.users is not None or (conditions.listeners and conditions.listeners.isdisjoint(listeners)):
            continue
        if conditions.clients is not None and is_of_here(conditions.clients):
            continue
        anywhere = hosts is None or hosts.everything
        networks = () if hosts is None else hosts.networks.networks
        if not rule.refuses:
            if anywhere or any(map(network.overlaps, networks)):
                return rule
        elif conditions == Conditions() and (anywhere or is_within(network, networks)):
            return rule
    return None
