"""Checks that the types of the schema alone do not make. Each function gives all mistakes of its part."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import get_args

import msgspec

from tabi.config.admin import admin_errors
from tabi.config.check_matchers import distort_errors, intercept_errors, matcher_errors, path_error, word_errors
from tabi.config.compile import (
    BLOCK,
    DIRECT,
    check_target,
    make_guard,
    make_hosts,
    make_rules,
    members_of,
    name_of,
    proxies_of,
)
from tabi.config.lists import list_errors
from tabi.config.schema import (
    SYSTEM,
    Config,
    EgressConfig,
    LimitsConfig,
    Listen,
    ResolverConfig,
    RuleConfig,
    SshConfig,
    StickyConfig,
    Udp,
    UserConfig,
)
from tabi.errors import ConfigError
from tabi.policy.grammar import Grammar
from tabi.policy.host_list import HostList
from tabi.policy.networks import parse_network
from tabi.policy.pool import By
from tabi.policy.quantities import MAX_NUMBER
from tabi.policy.rules import Lists
from tabi.policy.rules import Rule as CompiledRule
from tabi.policy.users import PREFIX, Secret
from tabi.url import ListenURL, ServerURL, parse_server_url, parse_syslog_url, parse_url
from tabi.wire.address import Address, parse_ip


def check_values(
    config: Config,
    known_otherwise: bool = False,
    egresses: Collection[str] = (),
    lists: dict[tuple[str, str], HostList] | None = None,
) -> list[CompiledRule]:
    """Check what types alone do not check. Returns the rules, which are compiled for that.

    Raises ConfigError, whose ``errors`` are all mistakes.

    ``known_otherwise`` says that a program knows who its users are, so that those here need no password; ``egresses``
    are the names of those that it brings. ``lists`` gets what is in the files that rules name; without it they are not
    read.
    """
    rules: list[CompiledRule] = []
    raise_all(find_errors(config, known_otherwise, egresses, rules, lists))
    return rules


def raise_all(errors: Iterable[ConfigError]) -> None:
    """Raise the first of several errors, if there are any; it has all of them."""
    found = tuple(errors)
    if found:
        raise ConfigError(found[0].message, found[0].path, found)


def find_errors(
    config: Config,
    known_otherwise: bool = False,
    egresses: Collection[str] = (),
    rules: list[CompiledRule] | None = None,
    lists: dict[tuple[str, str], HostList] | None = None,
) -> Iterator[ConfigError]:
    """All mistakes that types alone do not find; arguments as `check_values`. ``rules`` gets the rules."""
    rules = [] if rules is None else rules
    names = (DIRECT, BLOCK, *config.egress, *egresses)
    for name in egresses:
        if names.count(name) > 1:
            yield ConfigError("the configuration has an egress of this name", f"egresses.{name}")
    if config.include:
        yield ConfigError("only a file can include others: load_config reads them", "include")
    if not 0 <= config.workers <= 1024:
        yield ConfigError(f"{config.workers}, expected 0 to 1024", "workers")
    if not config.listen:
        yield ConfigError("empty, expected one or more", "listen")
    yield from log_errors(config.log.access)
    for index, listen in enumerate(config.listen):
        yield from listen_errors(config, listen, index)
    for name, egress in config.egress.items():
        yield from origin_errors(egress, f"egress.{name}")
        yield from egress_errors(config, name, egress, names)
    yield from read(lambda: Grammar(config.users_grammar.keys, config.users_grammar.separator), "users_grammar")
    yield from path_error(config.quotas.path, "quotas.path")
    yield from path_error(config.auth.users_file, "auth.users_file")
    without_password = known_otherwise or config.by_certificate
    for name, user in config.users.items():
        for error in user_errors(name, user, without_password):
            yield ConfigError(error.message, f"users.{name}" + (f".{error.path}" if error.path != "name" else ""))
    if lists is not None:
        yield from list_errors(config, lists)
    yield from policy_errors(config, names, rules, lists or {})
    yield from intercept_errors(config)
    yield from distort_errors(config)
    yield from admin_errors(config.admin)
    for key in ("token_file", "read_token_file"):
        yield from path_error(getattr(config.admin, key), f"admin.{key}")
    yield from resolver_errors(config.resolver)
    yield from host_errors(config)


def log_errors(target: str) -> Iterator[ConfigError]:
    """What is wrong with the place of the access log."""
    if target.startswith("syslog:"):
        yield from read(lambda: parse_syslog_url(target), "log.access")
    elif not target or "\0" in target or "://" in target:
        places = "stdout, stderr, syslog, syslog://host:port, journald, none or a path"
        yield ConfigError(f"expected {places}", "log.access")


def read(parse: Callable[[], object], path: str, expected: str = "") -> Iterator[ConfigError]:
    """The reason if a value cannot be read."""
    try:
        parse()
    except ValueError as exc:
        yield ConfigError(f"{exc}{expected}", path)


def network_errors(words: Sequence[str], path: str, others: tuple[str, ...] = ()) -> Iterator[ConfigError]:
    """Which of several words are neither networks nor one of the ``others`` that may stand there."""
    for index, word in enumerate(words):
        if word not in others:
            yield from read(lambda word=word: parse_network(word), f"{path}[{index}]")  # type: ignore[misc]


MAX_KEEPALIVE = 32767
"""Seconds that the kernel lets a connection rest at most before it asks (TCP_KEEPIDLE)."""


def listen_errors(config: Config, listen: Listen, index: int) -> Iterator[ConfigError]:
    """What is wrong with a listener."""
    path, url = f"listen[{index}]", None
    try:
        url = listen.parsed
    except ValueError as exc:
        yield ConfigError(str(exc), f"{path}.url")
    if url is not None:
        same = next((i for i, other in enumerate(config.listen[:index]) if place_of(other) == url.place), None)
        if same is not None and not (isinstance(url.place, Address) and url.place.port == 0):
            yield ConfigError(f"the same address as listen[{same}].url", f"{path}.url")
        yield from tls_errors(listen, url, f"{path}.tls")
    yield from read(lambda: listen.proxies, f"{path}.proxy_protocol", ", expected networks such as 10.0.0.0/8")
    yield from network_errors(listen.no_user, f"{path}.no_user", ("unix",))
    if listen.no_user and listen.users in ("none", "optional"):
        yield ConfigError(f'no client of this listener needs a user (users = "{listen.users}")', f"{path}.no_user")
    if listen.keepalive is not None and not 1 <= listen.keepalive <= MAX_KEEPALIVE:
        yield ConfigError(f"{listen.keepalive:g}, expected 1 to {MAX_KEEPALIVE} seconds", f"{path}.keepalive")
    yield from udp_errors(listen.udp, config.workers, f"{path}.udp")
    if listen.users == "required" and not config.has_users and not listen.by_certificate:
        yield ConfigError('"required", but there are no users', f"{path}.users")


def place_of(listen: Listen) -> object:
    """The place of a listener, None if it cannot be read."""
    try:
        return listen.parsed.place
    except ValueError:
        return None


def tls_errors(listen: Listen, url: ListenURL, path: str) -> Iterator[ConfigError]:
    """What is wrong with TLS: it must be there if the URL asks for it, and only then."""
    if url.tls and listen.tls is None:
        yield ConfigError('missing, expected { certificate = "…", key = "…" }', path)
    if listen.tls is not None and not url.tls and url.protocol != "mixed":
        schemes = "https" if url.protocol == "http" else f"{url.protocol}+tls, mixed or mixed+tls"
        yield ConfigError(f"{url.scheme} is without TLS, expected a URL with {schemes}", path)


def udp_errors(udp: Udp, workers: int, path: str) -> Iterator[ConfigError]:
    """What is wrong with the addresses and ports for datagrams."""
    yield from read(lambda: udp.address, f"{path}.advertise")
    yield from read(lambda: udp.port_range, f"{path}.ports")
    if udp.shared and workers != 1:
        text = f'"shared" with workers = {workers}, expected workers = 1 or a range of ports'
        yield ConfigError(text, f"{path}.ports")


def read_server(text: str, urls: list[ServerURL]) -> None:
    """Read the URL of a name server, and put it to the others. Raises ValueError."""
    urls.append(parse_server_url(text))


def resolver_errors(resolver: ResolverConfig) -> Iterator[ConfigError]:
    """What is wrong with the name servers, and with what is kept."""
    urls: list[ServerURL] = []
    if not resolver.servers:
        yield ConfigError("empty, expected one or more", "resolver.servers")
    for index, text in enumerate(resolver.servers):
        if text != SYSTEM:
            yield from read(partial(read_server, text, urls), f"resolver.servers[{index}]")
    if resolver.ca is not None and not any(url.scheme in ("tls", "https") for url in urls):
        yield ConfigError("no server has tls or https", "resolver.ca")
    if not 1 <= resolver.tries <= 10:
        yield ConfigError(f"{resolver.tries}, expected 1 to 10", "resolver.tries")
    if not 0 <= resolver.cache <= 1_000_000:
        yield ConfigError(f"{resolver.cache}, expected 0 to 1000000", "resolver.cache")
    if resolver.min_ttl > resolver.max_ttl:
        yield ConfigError(f"{resolver.min_ttl:g}, which is more than max_ttl", "resolver.min_ttl")


def host_errors(config: Config) -> Iterator[ConfigError]:
    """What is wrong with the names of the configuration; each is checked alone if something is wrong."""
    try:
        make_hosts(config)
        return
    except ConfigError as exc:
        first = exc
    found = []
    for name, texts in config.resolver.hosts.items():
        alone = msgspec.structs.replace(config.resolver, hosts={name: texts[:1]})
        try:
            make_hosts(msgspec.structs.replace(config, resolver=alone))
        except ConfigError as exc:
            found.append(exc)
        path = f"resolver.hosts.{name}"
        found += [
            ConfigError(f"{text!r}, expected an IP address", f"{path}[{index}]")
            for index, text in enumerate(texts)
            if index and not is_ip(text)
        ]
    yield from found or [first]  # a name is a duplicate only because of another one


def is_ip(text: str) -> bool:
    """Whether a text is an IP address."""
    return not any(read(lambda: parse_ip(text), ""))


def origin_errors(egress: EgressConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with the source addresses of an egress."""
    yield from network_errors(egress.source, f"{path}.source")
    if not egress.source and egress.source_by != "session":
        yield ConfigError("there is no source", f"{path}.source_by")
    if egress.interface is not None and not 0 < len(egress.interface.encode()) < 16:
        yield ConfigError(f"{egress.interface!r}, expected the name of an interface", f"{path}.interface")
    if egress.mark is not None and not 0 < egress.mark < 1 << 32:
        yield ConfigError(f"{egress.mark}, expected 1 to 4294967295", f"{path}.mark")


def egress_errors(config: Config, name: str, egress: EgressConfig, names: Collection[str]) -> Iterator[ConfigError]:
    """What is wrong with the proxies that an egress goes through, and with its pool; ``names`` are those of all."""
    path = f"egress.{name}"
    if name == BLOCK:
        yield ConfigError("the name of the one that leads nowhere", path)
    given = {key: value for key in ("url", "chain", "members") if (value := getattr(egress, key)) is not None}
    if len(given) > 1:
        yield ConfigError("expected one of url, chain and members", path)
    for key, value in given.items():
        if not value:
            yield ConfigError("empty, expected one or more", f"{path}.{key}")
        if name == DIRECT:
            yield ConfigError("direct leads from this machine: give this one another name, and a rule", f"{path}.{key}")
    wrong = [*hop_errors(names, egress, path)]
    if wrong:  # nothing can be said of the proxies together
        yield from wrong
    else:
        if name in leads_to(config, name):
            yield ConfigError("leads to itself", path)
        yield from proxy_errors(egress, path)
    if egress.sticky != StickyConfig() and egress.balance not in ("hash", "sticky"):
        yield ConfigError('expected balance = "sticky" or "hash"', f"{path}.sticky")
    for word in egress.sticky.by.split("+"):
        if word not in get_args(By):
            yield ConfigError(f"{word!r}, expected some of {', '.join(get_args(By))}", f"{path}.sticky.by")
    if egress.check is not None:
        yield from read(lambda: egress.check and check_target(egress.check), f"{path}.check")


def hop_errors(names: Collection[str], egress: EgressConfig, path: str) -> Iterator[ConfigError]:
    """What is wrong with each proxy of an egress, and with each member of a pool."""
    for index, hop in enumerate(egress.hops):
        key = f"{path}.url" if egress.url is not None else f"{path}.chain[{index}]"
        yield from hop_error(names, hop, key, index == 0 and egress.url is None)
    seen: dict[str, int] = {}
    for index, member in enumerate(members_of(egress)):
        key, wrong = f"{path}.members[{index}]", [*hop_error(names, member.to, f"{path}.members[{index}]", True)]
        yield from wrong
        if not 0 < member.weight < 1e9:
            yield ConfigError(f"{member.weight:g}, expected more than 0", f"{key}.weight")
        if not wrong and (same := seen.setdefault(name_of(member.to), index)) < index:
            yield ConfigError(f"the same as members[{same}]", key)


def proxy_errors(egress: EgressConfig, path: str) -> Iterator[ConfigError]:
    """What an egress says about proxies that are not there, or are of another kind."""
    hops, members = egress.hops, members_of(egress)
    through = bool(hops or members)
    urls = [parse_url(hop) for hop in hops if "://" in hop]
    sends = egress.send_proxy_protocol
    first = {url.protocol for key, url in proxies_of(egress) if key in ("url", "chain[0]") or members}
    by_ssh = any(url.protocol == "ssh" for _, url in proxies_of(egress))
    for key, wrong, why in (
        ("send_proxy_protocol", sends and through and not first, "it begins with another egress: say it there"),
        ("send_proxy_protocol", sends and "ssh" in first, "an SSH server has one connection for all clients"),
        ("isolate", egress.isolate and members, "this is a pool: say it in an egress for each member"),
        ("isolate", egress.isolate and not through, "there is no proxy"),
        ("isolate", egress.isolate and hops and not urls, "the chain ends with an egress: say it there"),
        ("isolate", egress.isolate and urls and urls[-1].protocol != "socks5", "the last proxy is not of SOCKS5"),
        ("isolate", egress.isolate and urls and urls[-1].username is not None, "the last proxy has a user already"),
        ("resolve", egress.resolve == "here" and not through, "there is no proxy"),
        ("balance", egress.balance != "round-robin" and not members, "there are no members"),
        ("check", egress.check is not None and not members, "there are no members"),
        ("ca", egress.ca is not None and not through, "there is no proxy"),
        ("ssh", egress.ssh != SshConfig() and not by_ssh, "there is no SSH server"),
    ):
        if wrong:
            yield ConfigError(why, f"{path}.{key}")


def hop_error(names: Collection[str], text: str, path: str, named: bool) -> Iterator[ConfigError]:
    """What is wrong with one proxy, or with the name of an egress if that may stand there."""
    if "://" in text:
        yield from read(lambda: parse_url(text), path)
    elif not named:
        yield ConfigError(f"{hidden(text)!r}, expected the URL of a proxy", path)
    elif text not in names:
        yield ConfigError(f"there is no [egress.{hidden(text)}]", path)


def hidden(text: str) -> str:
    """A text that may be a URL, without the part that may be a password."""
    _, at, after = text.rpartition("@")
    return f"…@{after}" if at else text


def leads_to(config: Config, name: str) -> set[str]:
    """The egresses that one leads to."""
    found: set[str] = set()
    left = [name]
    while left:
        egress = config.egress.get(left.pop())
        if egress is not None:
            new = {hop for hop in (*egress.hops, *(one.to for one in members_of(egress))) if "://" not in hop} - found
            found |= new
            left += new
    return found


def check_user(name: str, user: UserConfig, without_password: bool) -> Secret | None:
    """Check a user, and return what its password is compared with. Raises ConfigError as `user_errors` has it."""
    raise_all(user_errors(name, user, without_password))
    return user.secret


def user_errors(name: str, user: UserConfig, without_password: bool) -> Iterator[ConfigError]:
    """What is wrong with a user, each with a path within the user; some need no password, if something else proves
    who they are."""
    if not 0 < len(name.encode()) <= 255:
        yield ConfigError("a user name has 1 to 255 octets (RFC 1929)", "name")
    yield from limit_errors(user.limits, "limits")
    if user.password is None:
        if not without_password:
            yield ConfigError("missing", "password")
        return
    if user.plain and user.password.startswith(PREFIX):
        yield ConfigError("begins as a hash does: leave plain = true out", "password")
        return
    try:
        secret = user.secret
        assert secret is not None
        if not secret.is_hash and not 0 < len(secret.key) <= 255:
            yield ConfigError("a password has 1 to 255 octets (RFC 1929)", "password")
    except ValueError as exc:
        hint = "; for the password itself say plain = true" if not user.password.startswith("$") else ""
        yield ConfigError(f"{exc}{hint}", "password")


def policy_errors(
    config: Config, names: Collection[str], rules: list[CompiledRule], lists: Lists
) -> Iterator[ConfigError]:
    """What is wrong with rules, guard and limits; ``names`` are those of all egresses. ``rules`` gets the rules, with
    these lists."""
    listeners = {listen.url for listen in config.listen}
    try:
        rules += make_rules(config, lists)
    except ConfigError:
        for index, rule in enumerate(config.rule):
            yield from matcher_errors(rule, f"rule[{index}]")
    for index, rule in enumerate(config.rule):
        yield from rule_errors(names, rule, f"rule[{index}]", listeners)
    try:
        make_guard(config)
    except ConfigError:
        for key, others in (("deny", ("private",)), ("allow", ()), ("exempt", ("unix",))):
            yield from network_errors(getattr(config.guard, key), f"guard.{key}", others)
    for index, part in enumerate(config.clients):
        if not part.networks:
            yield ConfigError("empty, expected one or more", f"clients[{index}].networks")
        yield from network_errors(part.networks, f"clients[{index}].networks")
        yield from limit_errors(part.limits, f"clients[{index}].limits")
    if config.decide is not None and not re.fullmatch(r"python:[\w.]+:\w+", config.decide):
        yield ConfigError(f"{config.decide!r}, expected python:module:function", "decide")
    for name, group in config.groups.items():
        if name.startswith("@"):
            yield ConfigError("a group's name stands without the @ that rules put in front", f"groups.{name}")
        yield from limit_errors(group.limits, f"groups.{name}.limits")
    yield from limit_errors(config.limits, "limits", of_server=True)


def rule_errors(names: Collection[str], rule: RuleConfig, path: str, listeners: set[str]) -> Iterator[ConfigError]:
    """What is wrong with a rule, apart from its matchers."""
    if rule.action is None and rule.via is None:
        yield ConfigError("missing", f"{path}.action")
    yield from word_errors(rule, path, listeners)
    if rule.via is not None and rule.via not in names:
        yield ConfigError(f"there is no [egress.{hidden(rule.via)}]", f"{path}.via")
    if rule.via is not None and rule.action not in (None, "allow"):
        yield ConfigError(f"an egress for what is not allowed: action is {rule.action}", f"{path}.via")
    if rule.idle is not None and rule.action not in (None, "allow"):
        yield ConfigError(f"a time for what is not allowed: action is {rule.action}", f"{path}.idle")
    if rule.sniff and rule.action not in (None, "allow"):
        yield ConfigError(f"nothing to look at, since it is not allowed: action is {rule.action}", f"{path}.sniff")


def limit_errors(limits: LimitsConfig, path: str, of_server: bool = False) -> Iterator[ConfigError]:
    """What is wrong with the limits of one account, or with those of the whole server."""
    yield from number_error(limits.connections, f"{path}.connections")
    if limits.burst is not None and limits.bandwidth is None:
        yield ConfigError("a burst, but no bandwidth", f"{path}.burst")
    if limits.per_client is not None:
        if not of_server:
            yield ConfigError("it is for all clients: only [limits] can have it", f"{path}.per_client")
        yield from number_error(limits.per_client.connections, f"{path}.per_client.connections")


def number_error(number: int | None, path: str) -> Iterator[ConfigError]:
    """The reason if a number of connections cannot be a limit."""
    if number is not None and not 0 < number <= MAX_NUMBER:
        yield ConfigError(f"{number}, expected 1 to {MAX_NUMBER}", path)
