"""What the types of the schema alone do not say."""

from __future__ import annotations

import re

from tabi.config.compile import make_guard, make_rules, networks_of
from tabi.config.schema import Config, Limits, Listen, Udp
from tabi.errors import ConfigError
from tabi.policy.users import PREFIX
from tabi.url import ListenURL
from tabi.wire.address import Address


def check_values(config: Config, known_otherwise: bool = False) -> None:
    """Check what types alone do not say. Raises ConfigError.

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
        if listen.users == "required" and not config.users and not listen.by_certificate:
            raise ConfigError('"required", but there are no users', f"listen[{index}].users")
    for name in config.egress:
        if name != "direct":
            raise ConfigError("unknown, expected direct: this version has no other way out", f"egress.{name}")
    if config.quotas.path is not None and (not config.quotas.path or "\0" in config.quotas.path):
        raise ConfigError("expected the path of a file", "quotas.path")
    check_users(config, known_otherwise or any(listen.by_certificate for listen in config.listen))
    check_policy(config)


def check_users(config: Config, without_password: bool) -> None:
    """Check users; some need no password, where something else tells who they are. Raises ConfigError."""
    for name, user in config.users.items():
        if not 0 < len(name.encode()) <= 255:
            raise ConfigError("a user name has 1 to 255 octets (RFC 1929)", f"users.{name}")
        if user.password is None:
            if not without_password:
                raise ConfigError("missing", f"users.{name}.password")
            continue
        if user.plain and user.password.startswith(PREFIX):
            raise ConfigError("begins as a hash does: leave plain = true out", f"users.{name}.password")
        try:
            secret = user.secret
            assert secret is not None
        except ValueError as exc:
            hint = "; for the password itself say plain = true" if not user.password.startswith("$") else ""
            raise ConfigError(f"{exc}{hint}", f"users.{name}.password") from None
        if not secret.is_hash and not 0 < len(secret.key) <= 255:
            raise ConfigError("a password has 1 to 255 octets (RFC 1929)", f"users.{name}.password")


def check_policy(config: Config) -> None:
    """Check rules, guard and limits. Raises ConfigError."""
    listeners = {listen.url for listen in config.listen}
    for index, rule in enumerate(make_rules(config)):
        if rule.name is not None and not (rule.name and rule.name.isprintable()):
            raise ConfigError(f"{rule.name!r}, expected a name that can be printed", f"rule[{index}].name")
        for number, url in enumerate(rule.texts.listeners or ()):
            if url not in listeners:
                raise ConfigError(
                    f"{url!r}, expected one of: {', '.join(sorted(listeners))}", f"rule[{index}].listeners[{number}]"
                )
        if rule.via is not None and rule.via != "direct" and rule.via not in config.egress:
            raise ConfigError(f"there is no [egress.{rule.via}]", f"rule[{index}].via")
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
    parts = {f"users.{name}": user.limits for name, user in config.users.items()}
    parts |= {f"groups.{name}": group.limits for name, group in config.groups.items()}
    parts |= {f"clients[{index}]": part.limits for index, part in enumerate(config.clients)}
    for path, limits in {**parts, "": config.limits}.items():
        check_limits(limits, f"{path}.limits".lstrip("."))


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
