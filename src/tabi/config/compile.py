"""From the configuration to what decides: rules, guard and limits. Each is made once, when it is loaded."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabi.config.columns import NO_LIMITS, Column, Has
from tabi.config.distort import DistortConfig, FaultConfig, HeadersConfig
from tabi.config.faults import find_fault, make_fault, make_schedule
from tabi.config.schema import (
    CheckConfig,
    Config,
    EgressConfig,
    InterceptConfig,
    MemberConfig,
    RuleConfig,
    UserConfig,
)
from tabi.errors import ConfigError
from tabi.policy.distorts import Distort, Distorts
from tabi.policy.guard import Guard, LocalAddresses
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits as Accounts
from tabi.policy.limits import Networks
from tabi.policy.networks import IP, Network, parse_network
from tabi.policy.rewrites import NO_CHANGES, FieldChanges, Rewrite
from tabi.policy.rules import NO_LISTS, Lists, RuleSet, Texts, make_rule
from tabi.policy.rules import Rule as Compiled
from tabi.policy.schedule import ALWAYS
from tabi.url import ProxyURL, parse_url
from tabi.wire.address import Address, parse_address, parse_host, parse_ip, read_number

if TYPE_CHECKING:
    from tabi.config.users import UserTable
    from tabi.policy.intercepts import InterceptRule, Intercepts


HTTP_COMMANDS = ("connect", "forward")
"""Those whose sessions can be HTTP."""


def make_rules(config: Config, lists: Lists = NO_LISTS) -> list[Compiled]:
    """Compile all rules; ``lists`` as in `make_rule`. Raises ConfigError."""
    rules: list[Compiled] = []
    for number, rule in enumerate(config.rule):
        try:
            rules.append(make_rule(number, rule.action or "allow", texts_of(rule), rule.name, rule.via, lists))
        except ConfigError as exc:
            raise ConfigError(exc.message, f"rule[{number}].{exc.path}") from None
    return rules


def texts_of(rule: RuleConfig | InterceptConfig | DistortConfig) -> Texts:
    """The matchers of a rule, or of what has the same ones, as they are written."""

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
        paths_of(rule.hosts_file),
        paths_of(rule.networks_file),
    )


def paths_of(given: str | list[str] | None) -> tuple[str, ...] | None:
    """The paths of one file or several."""
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)


def make_rule_set(
    config: Config, users: UserTable | None = None, rules: list[Compiled] | None = None, lists: Lists = NO_LISTS
) -> RuleSet:
    """All rules, ready to decide. Raises ConfigError.

    Args:
        config: has the rules.
        users: all users. Default: those that the configuration itself has.
        rules: those of the configuration, if they were compiled already.
        lists: what is in files, see `make_rule`.
    """
    groups = columns_of(config, users)("groups", groups_of)
    return RuleSet(make_rules(config, lists) if rules is None else rules, groups)


def make_intercepts(
    config: Config,
    users: UserTable | None = None,
    clock: Callable[[], float] = time.time,
    lists: Lists = NO_LISTS,
    distorts: Iterable[Distort] = (),
) -> Intercepts | None:
    """What is looked into, ready to decide; None if nothing is. Raises ConfigError.

    Args:
        config: has the entries.
        users: as in `make_rule_set`.
        clock: seconds since 1970.
        lists: as there.
        distorts: those that act on HTTP have plain HTTP looked into, where no entry matches.
    """
    implied = [*implied_entries(distorts, len(config.intercept), lists)]
    if not config.intercept and not implied:
        return None
    from tabi.policy.intercepts import Intercepts

    entries = [*make_entries(config, lists), *implied]
    return Intercepts(entries, clock, columns_of(config, users)("groups", groups_of), direct_of(config))


def implied_entries(distorts: Iterable[Distort], first: int, lists: Lists) -> Iterator[tuple[InterceptRule, Compiled]]:
    """What has plain HTTP looked into for entries of ``[[distort]]``; ``first`` is the number of the first. Those with
    ``tls`` alone come last: they only need to know that a session is TLS, for the log."""
    wanted = [distort for distort in distorts if distort.on_http or distort.tls is not None]
    wanted.sort(key=lambda distort: not distort.on_http)
    if not wanted:
        return
    from tabi.policy.intercepts import InterceptRule, make_matcher

    for number, distort in enumerate(wanted, first):
        texts, usual = distort.rule.texts, HTTP_COMMANDS if distort.on_http else ("connect",)
        commands = tuple(word for word in usual if texts.commands is None or word in texts.commands)
        if commands:
            settings = InterceptRule(number, distort.label, tls=False, http=distort.on_http)
            yield settings, make_matcher(settings, texts._replace(commands=commands), lists)


def direct_of(config: Config) -> list[str]:
    """The names of egresses that dial destinations themselves."""
    return [name for name, egress in config.egress.items() if not egress.hops and egress.members is None]


def make_entries(config: Config, lists: Lists = NO_LISTS) -> list[tuple[InterceptRule, Compiled]]:
    """What each ``[[intercept]]`` says, and its matchers; ``lists`` as in `make_rule`. Raises ConfigError. Nothing is
    asked of users."""
    from tabi.policy.intercepts import make_matcher

    entries = []
    for number, intercept in enumerate(config.intercept):
        settings = settings_of(intercept, number)
        try:
            entries.append((settings, make_matcher(settings, texts_of(intercept), lists)))
        except ConfigError as exc:
            raise ConfigError(exc.message, f"intercept[{number}].{exc.path}") from None
    return entries


def settings_of(intercept: InterceptConfig, number: int) -> InterceptRule:
    """What an ``[[intercept]]`` says, apart from its matchers."""
    from tabi.policy.intercepts import InterceptRule

    keys = set(InterceptRule.__struct_fields__) - {"number", "http"}
    said = {key: getattr(intercept, key) for key in keys}
    said["mask"] = tuple(name.lower() for name in intercept.mask)
    said["scripts"] = tuple(intercept.scripts)
    said["body_limit"], said["hook_timeout"] = int(intercept.body_limit), float(intercept.hook_timeout)  # plain ones
    return InterceptRule(number=number, **said)


def make_distorts(config: Config, users: UserTable | None = None, lists: Lists = NO_LISTS) -> Distorts:
    """What is done to which sessions. Raises ConfigError; ``users`` and ``lists`` as in `make_rule_set`."""
    entries = [
        make_distort(distort, number, config.profile, lists=lists) for number, distort in enumerate(config.distort)
    ]
    return Distorts(entries, columns_of(config, users)("groups", groups_of), direct_of(config))


def make_distort(
    distort: DistortConfig,
    number: int,
    profiles: Mapping[str, FaultConfig] = {},
    name: str | None = None,
    lists: Lists = NO_LISTS,
) -> Distort:
    """One ``[[distort]]`` that `distort_errors` has nothing against; ``lists`` as in `make_rule`. Raises
    ConfigError."""
    path = name or f"distort[{number}]"
    label = distort.name or path
    try:
        rule = make_rule(number, "deny", texts_of(distort), label, lists=lists)  # of several addresses one is enough
    except ConfigError as exc:
        raise ConfigError(exc.message, f"{path}.{exc.path}") from None
    fault = schedule = None
    if distort.fault is not None:
        try:
            found = find_fault(distort.fault, profiles)
        except ConfigError as exc:
            raise ConfigError(exc.message, f"{path}.fault") from None
        fault, schedule = make_fault(found), make_schedule(found)
    return Distort(
        rule,
        label,
        number,
        float(distort.probability),
        distort.seed,
        fault,
        schedule or ALWAYS,
        make_rewrite(distort),
        distort.tls,
    )


def make_rewrite(distort: DistortConfig) -> Rewrite | None:
    """What an entry changes in HTTP; None for nothing."""
    keys = ("strip_cookies", "map_remote", "map_local", "status", "body", "profile")
    rewrite = Rewrite(
        changes_of(distort.headers),
        changes_of(distort.response_headers),
        **{key: getattr(distort, key) for key in keys},
    )
    return None if rewrite == Rewrite() else rewrite


def changes_of(headers: HeadersConfig | None) -> FieldChanges:
    """What an entry changes in fields."""
    if headers is None:
        return NO_CHANGES
    append = [(name, value) for name, given in headers.append.items() for value in as_list(given)]
    return FieldChanges(tuple(headers.remove), tuple(headers.set.items()), tuple(append), tuple(headers.order))


def as_list(value: str | list[str]) -> list[str]:
    """A value, or several."""
    return [value] if isinstance(value, str) else value


def make_limits(config: Config, ledger: Ledger, users: UserTable | None = None) -> Accounts:
    """All accounts that have limits, on a ledger; ``users`` as in `make_rule_set`."""
    column = columns_of(config, users)
    return Accounts(
        ledger,
        users=column("limits", lambda user: None if user.limits == NO_LIMITS else user.limits),
        groups={name: group.limits for name, group in config.groups.items() if group.limits != NO_LIMITS},
        networks=[
            Networks(networks_of(part.networks, f"clients[{index}].networks"), part.limits)
            for index, part in enumerate(config.clients)
        ],
        server=None if config.limits == NO_LIMITS else config.limits,
        members=column("groups", lambda user: user.groups),
        expires=column("expires", lambda user: user.expires),
    )


def groups_of(user: UserConfig) -> frozenset[str]:
    """The groups of a user, to compare with."""
    return frozenset(user.groups)


def columns_of(config: Config, users: UserTable | None) -> Callable[[str, Callable[[UserConfig], Any]], Column[Any]]:
    """Makes columns of users, which never look up a property that no user has."""
    table: Mapping[str, UserConfig] = config.users if users is None else users
    has = Has.of(config.users) if users is None else users.has
    return lambda key, read: Column(table, read, getattr(has, key))


def make_guard(config: Config, own: LocalAddresses | None = None) -> Guard:
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
    """Names of the configuration, in the form of a lookup, and their addresses. Raises ConfigError."""
    hosts: dict[str, list[IP]] = {}
    for name, texts in config.resolver.hosts.items():
        path = f"resolver.hosts.{name}"
        try:
            host = parse_host(name)
            if not isinstance(host, str) or read_number(host) is not None or "*" in host or host == ".":
                raise ValueError(f"{name!r} is not a name")
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


# --- egresses ---

DIRECT, BLOCK = "direct", "block"


def members_of(egress: EgressConfig) -> list[MemberConfig]:
    """The members of a pool, including those that are only named."""
    return [MemberConfig(member) if isinstance(member, str) else member for member in egress.members or ()]


def proxies_of(egress: EgressConfig) -> list[tuple[str, ProxyURL]]:
    """The proxies that an egress names by their URLs, each with its key. Raises ValueError."""
    found = [("url" if egress.url is not None else f"chain[{index}]", hop) for index, hop in enumerate(egress.hops)]
    found += [(f"members[{index}]", member.to) for index, member in enumerate(members_of(egress))]
    return [(key, parse_url(text)) for key, text in found if "://" in text]


def name_of(text: str) -> str:
    """The name of a proxy or an egress: a URL without its user and password. Raises ValueError."""
    return str(parse_url(text)) if "://" in text else text


def check_target(check: CheckConfig) -> tuple[Address, str | None]:
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
