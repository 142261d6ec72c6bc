"""What the types of the schema alone do not say."""

from __future__ import annotations

import re
from typing import get_args

from tabi.config.compile import (
    BLOCK,
    DIRECT,
    check_target,
    make_guard,
    make_hosts,
    make_rules,
    members_of,
    name_of,
    networks_of,
    proxies_of,
)
from tabi.config.schema import SYSTEM, Config, Egress, Limits, Listen, Resolver, Ssh, Sticky, Udp, User
from tabi.errors import ConfigError
from tabi.policy.grammar import Grammar
from tabi.policy.pool import By
from tabi.policy.rules import Rule
from tabi.policy.users import PREFIX, Secret
from tabi.url import ListenURL, parse_server_url, parse_url
from tabi.wire.address import Address


def check_values(config: Config, known_otherwise: bool = False) -> list[Rule]:
    """Check what types alone do not say. Returns the rules, which are compiled for that. Raises ConfigError.

    ``known_otherwise`` says that a program knows who its users are, so that those here need no password.
    """
    if not 0 <= config.workers <= 1024:
        raise ConfigError(f"{config.workers}, expected 0 to 1024", "workers")
    if not config.listen:
        raise ConfigError("empty, expected one or more", "listen")
    if not config.log.access or "\0" in config.log.access:
        raise ConfigError("expected stdout, stderr, syslog, none or a path", "log.access")
    for index, listen in enumerate(config.listen):
        try:
            url = listen.parsed
        except ValueError as exc:
            raise ConfigError(str(exc), f"listen[{index}].url") from None
        same = next(i for i, other in enumerate(config.listen) if other.parsed.place == url.place)
        if same < index and not (isinstance(url.place, Address) and url.place.port == 0):
            raise ConfigError(f"the same address as listen[{same}].url", f"listen[{index}].url")
        check_tls(listen, url, f"listen[{index}].tls")
        try:
            _ = listen.proxies
        except ValueError as exc:
            raise ConfigError(
                f"{exc}, expected networks such as 10.0.0.0/8", f"listen[{index}].proxy_protocol"
            ) from None
        check_udp(listen.udp, config.workers, f"listen[{index}].udp")
        if listen.users == "required" and not config.has_users and not listen.by_certificate:
            raise ConfigError('"required", but there are no users', f"listen[{index}].users")
    for name, egress in config.egress.items():
        check_egress(egress, f"egress.{name}")
        check_way(config, name, egress)
    try:
        _ = Grammar(config.users_grammar.keys, config.users_grammar.separator)
    except ValueError as exc:
        raise ConfigError(str(exc), "users_grammar") from None
    if config.quotas.path is not None and (not config.quotas.path or "\0" in config.quotas.path):
        raise ConfigError("expected the path of a file", "quotas.path")
    if config.auth.users_file is not None and (not config.auth.users_file or "\0" in config.auth.users_file):
        raise ConfigError("expected the path of a file", "auth.users_file")
    check_users(config, known_otherwise or config.by_certificate)
    check_resolver(config.resolver)
    make_hosts(config)
    return check_policy(config)


def check_resolver(resolver: Resolver) -> None:
    """Check who is asked for names, and what is kept. Raises ConfigError."""
    if not resolver.servers:
        raise ConfigError("empty, expected one or more", "resolver.servers")
    for index, text in enumerate(resolver.servers):
        if text != SYSTEM:
            try:
                parse_server_url(text)
            except ValueError as exc:
                raise ConfigError(str(exc), f"resolver.servers[{index}]") from None
    if resolver.ca is not None and not any(url and url.scheme in ("tls", "https") for url in resolver.parsed):
        raise ConfigError("no server has tls or https", "resolver.ca")
    if not 1 <= resolver.tries <= 10:
        raise ConfigError(f"{resolver.tries}, expected 1 to 10", "resolver.tries")
    if not 0 <= resolver.cache <= 1_000_000:
        raise ConfigError(f"{resolver.cache}, expected 0 to 1000000", "resolver.cache")
    if resolver.min_ttl > resolver.max_ttl:
        raise ConfigError(f"{resolver.min_ttl:g}, which is more than max_ttl", "resolver.min_ttl")


def check_egress(egress: Egress, path: str) -> None:
    """Check where a way out comes from. Raises ConfigError."""
    if egress.source:
        networks_of(egress.source, f"{path}.source")
    elif egress.source_by != "session":
        raise ConfigError("there is no source", f"{path}.source_by")
    if egress.interface is not None and not 0 < len(egress.interface.encode()) < 16:
        raise ConfigError(f"{egress.interface!r}, expected the name of an interface", f"{path}.interface")
    if egress.mark is not None and not 0 < egress.mark < 1 << 32:
        raise ConfigError(f"{egress.mark}, expected 1 to 4294967295", f"{path}.mark")


def check_way(config: Config, name: str, egress: Egress) -> None:
    """Check the proxies that a way out goes through, and its pool. Raises ConfigError."""
    path, hops = f"egress.{name}", egress.hops
    if name == BLOCK:
        raise ConfigError("the name of the one that leads nowhere", path)
    given = {key: value for key in ("url", "chain", "members") if (value := getattr(egress, key)) is not None}
    if len(given) > 1:
        raise ConfigError("expected one of url, chain and members", path)
    for key, value in given.items():
        if not value:
            raise ConfigError("empty, expected one or more", f"{path}.{key}")
        if name == DIRECT:
            raise ConfigError("direct leads from this machine: give this one another name, and a rule", f"{path}.{key}")
    for index, hop in enumerate(hops):
        key = f"{path}.url" if egress.url is not None else f"{path}.chain[{index}]"
        check_hop(config, hop, key, index == 0 and egress.url is None)
    members = members_of(egress)
    for index, member in enumerate(members):
        check_hop(config, member.to, f"{path}.members[{index}]", True)
        if not 0 < member.weight < 1e9:
            raise ConfigError(f"{member.weight:g}, expected more than 0", f"{path}.members[{index}].weight")
        same = next(place for place, other in enumerate(members) if name_of(other.to) == name_of(member.to))
        if same < index:
            raise ConfigError(f"the same as members[{same}]", f"{path}.members[{index}]")
    if name in ways_to(config, name):
        raise ConfigError("leads to itself", path)
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
        ("isolate", egress.isolate and not urls, "the chain ends with an egress: say it there"),
        ("isolate", egress.isolate and urls and urls[-1].protocol != "socks5", "the last proxy is not of SOCKS5"),
        ("isolate", egress.isolate and urls and urls[-1].username is not None, "the last proxy has a user already"),
        ("resolve", egress.resolve == "here" and not through, "there is no proxy"),
        ("balance", egress.balance != "round-robin" and not members, "there are no members"),
        ("check", egress.check is not None and not members, "there are no members"),
        ("ca", egress.ca is not None and not through, "there is no proxy"),
        ("ssh", egress.ssh != Ssh() and not by_ssh, "there is no SSH server"),
    ):
        if wrong:
            raise ConfigError(why, f"{path}.{key}")
    if egress.sticky != Sticky() and egress.balance not in ("hash", "sticky"):
        raise ConfigError('expected balance = "sticky" or "hash"', f"{path}.sticky")
    for word in egress.sticky.by.split("+"):
        if word not in get_args(By):
            raise ConfigError(f"{word!r}, expected some of {', '.join(get_args(By))}", f"{path}.sticky.by")
    if egress.check is not None:
        try:
            _ = check_target(egress.check)
        except ValueError as exc:
            raise ConfigError(str(exc), f"{path}.check") from None


def check_hop(config: Config, text: str, path: str, named: bool) -> None:
    """Check one proxy, or the name of an egress if that may stand there. Raises ConfigError."""
    if "://" in text:
        try:
            parse_url(text)
        except ValueError as exc:
            raise ConfigError(str(exc), path) from None
    elif not named:
        raise ConfigError(f"{hidden(text)!r}, expected the URL of a proxy", path)
    elif text not in (*config.egress, DIRECT, BLOCK):
        raise ConfigError(f"there is no [egress.{hidden(text)}]", path)


def hidden(text: str) -> str:
    """What may have been meant as a URL, without what may have been meant as a password."""
    _, at, after = text.rpartition("@")
    return f"…@{after}" if at else text


def ways_to(config: Config, name: str) -> set[str]:
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


def check_users(config: Config, without_password: bool) -> None:
    """Check users; some need no password, where something else tells who they are. Raises ConfigError."""
    for name, user in config.users.items():
        try:
            check_user(name, user, without_password)
        except ConfigError as exc:
            raise ConfigError(exc.message, f"users.{name}" + (f".{exc.path}" if exc.path != "name" else "")) from None


def check_user(name: str, user: User, without_password: bool) -> Secret | None:
    """Check one, and return what a password is compared with. Raises ConfigError, whose path is within the user."""
    if not 0 < len(name.encode()) <= 255:
        raise ConfigError("a user name has 1 to 255 octets (RFC 1929)", "name")
    check_limits(user.limits, "limits")
    if user.password is None:
        if not without_password:
            raise ConfigError("missing", "password")
        return None
    if user.plain and user.password.startswith(PREFIX):
        raise ConfigError("begins as a hash does: leave plain = true out", "password")
    try:
        secret = user.secret
        assert secret is not None
    except ValueError as exc:
        hint = "; for the password itself say plain = true" if not user.password.startswith("$") else ""
        raise ConfigError(f"{exc}{hint}", "password") from None
    if not secret.is_hash and not 0 < len(secret.key) <= 255:
        raise ConfigError("a password has 1 to 255 octets (RFC 1929)", "password")
    return secret


def check_policy(config: Config) -> list[Rule]:
    """Check rules, guard and limits, and return the rules. Raises ConfigError."""
    listeners = {listen.url for listen in config.listen}
    rules = make_rules(config)
    for index, rule in enumerate(rules):
        if rule.name is not None and not (rule.name and rule.name.isprintable()):
            raise ConfigError(f"{rule.name!r}, expected a name that can be printed", f"rule[{index}].name")
        for number, url in enumerate(rule.texts.listeners or ()):
            if url not in listeners:
                raise ConfigError(
                    f"{url!r}, expected one of: {', '.join(sorted(listeners))}", f"rule[{index}].listeners[{number}]"
                )
        if rule.via is not None and rule.via not in (*config.egress, DIRECT, BLOCK):
            raise ConfigError(f"there is no [egress.{hidden(rule.via)}]", f"rule[{index}].via")
        if rule.via is not None and rule.refuses:
            raise ConfigError(f"a way out for what is not allowed: action is {rule.action}", f"rule[{index}].via")
    make_guard(config)
    for index, part in enumerate(config.clients):
        networks_of(part.networks, f"clients[{index}].networks")
    if config.decide is not None and not re.fullmatch(r"python:[\w.]+:\w+", config.decide):
        raise ConfigError(f"{config.decide!r}, expected python:module:function", "decide")
    for name in config.groups:
        if name.startswith("@"):
            raise ConfigError("a group's name stands without the @ that rules put in front", f"groups.{name}")
    parts = {f"groups.{name}": group.limits for name, group in config.groups.items()}
    parts |= {f"clients[{index}]": part.limits for index, part in enumerate(config.clients)}
    for path, limits in {**parts, "": config.limits}.items():
        check_limits(limits, f"{path}.limits".lstrip("."))
    return rules


def check_limits(limits: Limits, path: str) -> None:
    """Check the limits of one account. Raises ConfigError."""
    if limits.connections is not None and not 0 < limits.connections <= 1_000_000:
        raise ConfigError(f"{limits.connections}, expected 1 to 1000000", f"{path}.connections")
    if limits.burst is not None and limits.bandwidth is None:
        raise ConfigError("a burst, but no bandwidth", f"{path}.burst")


def check_tls(listen: Listen, url: ListenURL, path: str) -> None:
    """Check that TLS is there where it is asked for, and nowhere else. Raises ConfigError."""
    if url.tls and listen.tls is None:
        raise ConfigError('missing, expected { certificate = "…", key = "…" }', path)
    if listen.tls is not None and not url.tls and url.protocol != "mixed":
        schemes = "https" if url.protocol == "http" else f"{url.protocol}+tls, mixed or mixed+tls"
        raise ConfigError(f"{url.scheme} is without TLS, expected a URL with {schemes}", path)


def check_udp(udp: Udp, workers: int, path: str) -> None:
    """Check where datagrams are to be. Raises ConfigError."""
    for key, read in (("advertise", lambda: udp.address), ("ports", lambda: udp.port_range)):
        try:
            read()
        except ValueError as exc:
            raise ConfigError(str(exc), f"{path}.{key}") from None
    if udp.shared and workers != 1:
        raise ConfigError(
            f'"shared" with workers = {workers}, expected workers = 1 or a range of ports', f"{path}.ports"
        )
