"""Reading tabi.toml: from text to checked structs; what is wrong becomes a message that names the file and the key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import msgspec

from tabi.config.check import check_values
from tabi.config.schema import (
    Auth,
    Check,
    Clients,
    Config,
    Egress,
    Group,
    Guard,
    Limits,
    Listen,
    Log,
    Member,
    Quotas,
    Resolver,
    Rule,
    Seconds,
    Ssh,
    Sticky,
    Timeouts,
    Tls,
    Udp,
    User,
    UsersGrammar,
)
from tabi.errors import ConfigError
from tabi.policy.quantities import Bandwidth, Moment, Quota, Rate, Size


def load_config(path: str | Path, values: bool = True) -> Config:
    """Read and check a file. Paths in it are relative to its folder, and absolute in what is returned.

    ``values`` says whether what types alone do not say is checked too: not where `compile_config` follows.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; the message begins with the file's name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"no UTF-8 text at octet {exc.start}", str(path)) from exc
    except OSError as exc:
        raise ConfigError(exc.strerror or str(exc), str(path)) from exc
    try:
        return resolve_paths(parse_config(text, values), Path(path).absolute().parent)
    except ConfigError as exc:
        raise ConfigError(str(exc), str(path)) from exc


def resolve_paths(config: Config, folder: Path) -> Config:
    """Make paths absolute that are relative to a folder."""

    def absolute(listen: Listen) -> Listen:
        tls = listen.tls
        if tls is None:
            return listen
        files = {key: str(folder / name) for key in ("certificate", "key", "client_ca") if (name := getattr(tls, key))}
        return msgspec.structs.replace(listen, tls=msgspec.structs.replace(tls, **files))

    def trusting(egress: Egress) -> Egress:
        ssh = egress.ssh
        files = {key: str(folder / name) for key in ("known_hosts", "key") if (name := getattr(ssh, key)) is not None}
        if files:
            egress = msgspec.structs.replace(egress, ssh=msgspec.structs.replace(ssh, **files))
        return egress if egress.ca is None else msgspec.structs.replace(egress, ca=str(folder / egress.ca))

    quotas = config.quotas
    if quotas.path is not None:
        quotas = msgspec.structs.replace(quotas, path=str(folder / quotas.path))
    resolver = config.resolver
    if resolver.ca is not None:
        resolver = msgspec.structs.replace(resolver, ca=str(folder / resolver.ca))
    listeners = [absolute(listen) for listen in config.listen]
    egress = {name: trusting(way) for name, way in config.egress.items()}
    auth = config.auth
    if auth.users_file is not None:
        auth = msgspec.structs.replace(auth, users_file=str(folder / auth.users_file))
    return msgspec.structs.replace(config, listen=listeners, egress=egress, quotas=quotas, resolver=resolver, auth=auth)


def parse_config(text: str, values: bool = True) -> Config:
    """Read and check the text of a tabi.toml. Raises ConfigError, which names the key."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except ValueError as exc:  # TOMLDecodeError is one; a number of 5,000 digits is another
        raise ConfigError(str(exc).partition(";")[0]) from exc
    return make_config(data, values)


def make_config(data: dict[str, Any], values: bool = True) -> Config:
    """Check a tabi.toml that was parsed already. Raises ConfigError, which names the key."""
    try:
        config = msgspec.convert(data, Config, dec_hook=decode_special)
    except msgspec.ValidationError as exc:
        raise explain(str(exc), data) from None
    if values:
        check_values(config)
    return config


def decode_special(kind: type, value: object) -> object:
    """msgspec's hook for the types that TOML does not have."""
    if kind in SPECIAL:
        return SPECIAL[kind](value)
    raise NotImplementedError(kind)


SPECIAL: dict[type, Callable[[object], object]] = {
    kind: kind.parse for kind in (Seconds, Size, Rate, Bandwidth, Quota, Moment)
}
"""The types that TOML does not have, and what reads them."""


def encode_special(value: object) -> object:
    """The same back: as TOML has it. Raises ConfigError for what is none of these."""
    if isinstance(value, Rate | Quota):
        return str(value)
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise ConfigError(f"{type(value).__name__} as a value, expected a type of TOML")


def explain(message: str, data: dict[str, Any]) -> ConfigError:
    """Turn msgspec's message into one that names the key in tabi.toml's own words."""
    text, _, place = message.partition(" - at `")
    path = name_key(place.rstrip("`").removeprefix("$").removeprefix("."), data)
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown:
        known = ", ".join(known_keys(path))
        return ConfigError(f"unknown key, expected one of: {known}", f"{path}.{unknown[1]}".lstrip("."))
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        return ConfigError("missing", f"{path}.{missing[1]}".lstrip("."))
    key = "keys" if path.startswith("users_grammar.keys.") else re.split(r"[.\]]", path)[-1]
    if text.startswith("Invalid enum value") and key in CHOICES:
        text += f", expected {CHOICES[key]}"
    text = text.replace(" | null`", "`")  # TOML has none
    text = re.sub(r"`(\w+)`", lambda found: TOML_TYPES.get(found[1], found[1]), text)
    if path in ("listen", "rule", "clients"):
        text = f"{text.replace('xpected array', 'xpected array of tables')}: write [[{path}]]"
    return ConfigError(text[:1].lower() + text[1:], path or None)


def name_key(path: str, data: dict[str, Any]) -> str:
    """msgspec writes ``users[...]`` for any key of a table: find out which one it was."""
    head, any_key, tail = path.partition("[...]")
    if any_key:
        part: Any = PARTS.get(head, list[str])  # resolver.hosts
        for key, value in reduce(getitem, head.split("."), data).items():
            try:
                msgspec.convert(value, part, dec_hook=decode_special)
            except msgspec.ValidationError:
                return f"{head}.{key}{tail}"
    return path


PARTS: dict[str, type[msgspec.Struct]] = {
    "": Config,
    "listen": Listen,
    "udp": Udp,
    "tls": Tls,
    "users": User,
    "auth": Auth,
    "groups": Group,
    "clients": Clients,
    "limits": Limits,
    "rule": Rule,
    "guard": Guard,
    "quotas": Quotas,
    "egress": Egress,
    "members": Member,
    "sticky": Sticky,
    "check": Check,
    "ssh": Ssh,
    "users_grammar": UsersGrammar,
    "resolver": Resolver,
    "timeouts": Timeouts,
    "log": Log,
}


TOML_TYPES = {"object": "table", "str": "string", "int": "integer", "bool": "boolean"}
"""The words of TOML for those of msgspec; the others are the same."""

CHOICES = {
    "users": "required, optional or none",
    "level": "debug, info, warning or error",
    "fragments": "reassemble or drop",
    "senders": "contacted or any",
    "client_name": "cn, dns, email or uri",
    "send_proxy_protocol": "1 or 2, or 0 for none",
    "source_by": "session, user or client",
    "isolate": "user, session or client",
    "resolve": "here or there",
    "balance": "round-robin, random, weighted, least-connections, hash or sticky",
    "keys": "label, session or ttl",
    "action": "allow, deny, reset or drop",
    "over": "refuse or wait",
    "prefer": "any, ipv4, ipv6, ipv4-only or ipv6-only",
}


def known_keys(path: str) -> tuple[str, ...]:
    """The keys of the part that a path leads to."""
    below = re.fullmatch(r"listen\[\d+\]\.(udp|tls)|(?:clients\[\d+\]|(?:users|groups)\..+)\.(limits)", path)
    within = re.fullmatch(r"egress\..+\.(sticky|check|ssh|members)(\[\d+\])?", path)
    if within:
        return PARTS[within[1]].__struct_fields__
    return PARTS[below[1] or below[2] if below else re.split(r"[.\[]", path)[0]].__struct_fields__


def check_types(config: Config) -> Config:
    """Check a configuration that was made in Python as if it came from a file. Raises ConfigError."""
    data = msgspec.to_builtins(config, enc_hook=encode_special)
    try:
        return msgspec.convert(data, Config, dec_hook=decode_special)
    except msgspec.ValidationError as exc:
        raise explain(str(exc), data) from None
