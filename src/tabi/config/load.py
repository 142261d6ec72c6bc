"""Reading tabi.toml: from text to checked structs; a mistake becomes a message that names the file and the key."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from tabi.config.admin import Admin
from tabi.config.check import find_errors, limit_errors, raise_all
from tabi.config.distort import DistortConfig, FaultConfig, HeadersConfig, LineConfig
from tabi.config.files import Files, in_files, parse_toml
from tabi.config.mistakes import find_mistakes, in_order, in_words, without_echoes
from tabi.config.schema import (
    Auth,
    Ca,
    CheckConfig,
    Clients,
    Config,
    EgressConfig,
    Group,
    GuardConfig,
    InterceptConfig,
    LimitsConfig,
    Listen,
    Log,
    MemberConfig,
    PerClient,
    Quotas,
    ResolverConfig,
    RuleConfig,
    SshConfig,
    StickyConfig,
    Timeouts,
    Tls,
    Udp,
    UserConfig,
    UsersGrammar,
)
from tabi.errors import ConfigError
from tabi.policy.quantities import Bandwidth, Chance, Drain, Idle, Moment, Onset, Quota, Rate, Seconds, Share, Size
from tabi.policy.schedule import Clock, Cycle


def load_config(
    path: str | Path,
    egresses: Collection[str] = (),
    values: bool = True,
    check: Callable[[Path], object] = lambda _: None,
) -> Config:
    """Read and check a file, with those that it includes. Paths in a file are relative to its folder, and absolute in
    what is returned.

    Args:
        path: of the file.
        egresses: the names of those that a program brings (``egresses`` of `Server`), which the file may use.
        values: whether to check what types alone do not check: not needed if `compile_config` follows.
        check: is called with the path of each file before that is read, and may raise ConfigError.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; the message begins with the file's name.
    """
    files = Files(path, check)
    data = files.load()
    try:
        return make_config(data, egresses, values)
    except ConfigError as exc:
        raise in_files(exc, files) from exc


def in_file(error: ConfigError, path: str | Path) -> ConfigError:
    """An error of a file that was loaded, as `in_files`. The files are read again, since a configuration does not know
    where it comes from."""
    files = Files(path)
    if os.path.isfile(path):  # what comes from a pipe does not come again
        with suppress(ConfigError):  # they may be others now
            files.load()
    return in_files(error, files)


def parse_config(text: str, egresses: Collection[str] = (), values: bool = True) -> Config:
    """Read and check the text of a tabi.toml; arguments as `load_config`. Raises ConfigError with the key."""
    return make_config(parse_toml(text), egresses, values)


def make_config(data: dict[str, Any], egresses: Collection[str] = (), values: bool = True) -> Config:
    """Check a parsed tabi.toml; arguments as `load_config`. Raises ConfigError, which names the key."""
    try:
        config = msgspec.convert(data, Config, dec_hook=decode_special)
    except msgspec.ValidationError as exc:
        raise all_mistakes(data, str(exc)) from None
    errors = list(find_errors(config, egresses=egresses)) if values else []
    if errors:
        raise_all(in_order(errors, data))
    return config


def all_mistakes(data: dict[str, Any], first: str) -> ConfigError:
    """All mistakes of a tabi.toml with wrong types; ``first`` is msgspec's message."""
    mistakes, left = find_mistakes(data, Config, "", decode_special)
    if not mistakes:  # no single value is wrong
        return in_words(first, "")
    values = find_errors(msgspec.convert(left, Config, dec_hook=decode_special))
    errors = in_order([*mistakes, *without_echoes(mistakes, values, data)], data)
    return ConfigError(mistakes[0].message, mistakes[0].path, errors)


def decode_special(kind: type, value: object) -> object:
    """msgspec's hook for the types that TOML does not have."""
    if kind in SPECIAL:
        return SPECIAL[kind](value)
    raise NotImplementedError(kind)


SPECIAL: dict[type, Callable[[object], object]] = {
    kind: kind.parse
    for kind in (Seconds, Idle, Drain, Size, Rate, Share, Bandwidth, Chance, Onset, Quota, Moment, Clock, Cycle)
}
"""The types that TOML does not have, and what reads them."""


def encode_special(value: object) -> object:
    """Turn a value of these types back into TOML. Raises ConfigError for any other type."""
    if isinstance(value, Share):
        return value.number or str(value)
    if isinstance(value, Rate | Quota | Clock | Cycle):
        return str(value)
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, float):
        return "never" if value == inf else float(value)
    raise ConfigError(f"{type(value).__name__} as a value, expected a type of TOML")


def decode_limits(value: object) -> LimitsConfig:
    """Limits that a program gives, as a mapping or as the struct. Raises ConfigError."""
    if not isinstance(value, LimitsConfig):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{type(value).__name__}, expected a mapping such as that of a user's limits", "limits")
        raise_all(find_mistakes(dict(value), LimitsConfig, "limits", decode_special)[0])
        value = msgspec.convert(dict(value), LimitsConfig, dec_hook=decode_special)
    raise_all(limit_errors(value, "limits"))
    return value


def decode_intercept(value: object, path: str) -> InterceptConfig:
    """An ``[[intercept]]`` that a program gives, as a mapping or as the struct; its values are checked with the others.
    Raises ConfigError and TypeError."""
    if isinstance(value, InterceptConfig):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{path}: {type(value).__name__}, expected tabi.config.InterceptConfig or a mapping")
    raise_all(find_mistakes(dict(value), InterceptConfig, path, decode_special)[0])
    found: InterceptConfig = msgspec.convert(dict(value), InterceptConfig, dec_hook=decode_special)
    return found


def decode_distorts(given: Sequence[object]) -> tuple[DistortConfig, ...]:
    """Each ``[[distort]]`` that a program gives, as a mapping, as the struct, or as the name of a profile; values are
    checked with the others. Raises ConfigError and TypeError."""
    if isinstance(given, str | Mapping | DistortConfig):
        raise TypeError(f"distort: {type(given).__name__}, expected a list")
    found = []
    for number, value in enumerate(given):
        path = f"distort[{number}]"
        if isinstance(value, str):
            value = DistortConfig(fault=value)
        if not isinstance(value, DistortConfig):
            if not isinstance(value, Mapping):
                raise TypeError(f"{path}: {type(value).__name__}, expected tabi.config.DistortConfig or a mapping")
            raise_all(find_mistakes(dict(value), DistortConfig, path, decode_special)[0])
            value = msgspec.convert(dict(value), DistortConfig, dec_hook=decode_special)
        found.append(value)
    return tuple(found)


PARTS: dict[str, type[msgspec.Struct]] = {
    "": Config,
    "listen": Listen,
    "udp": Udp,
    "tls": Tls,
    "users": UserConfig,
    "auth": Auth,
    "groups": Group,
    "clients": Clients,
    "limits": LimitsConfig,
    "per_client": PerClient,
    "rule": RuleConfig,
    "ca": Ca,
    "intercept": InterceptConfig,
    "distort": DistortConfig,
    "fault": FaultConfig,
    "profile": FaultConfig,
    "up": LineConfig,
    "down": LineConfig,
    "headers": HeadersConfig,
    "response_headers": HeadersConfig,
    "guard": GuardConfig,
    "quotas": Quotas,
    "egress": EgressConfig,
    "members": MemberConfig,
    "sticky": StickyConfig,
    "check": CheckConfig,
    "ssh": SshConfig,
    "users_grammar": UsersGrammar,
    "resolver": ResolverConfig,
    "timeouts": Timeouts,
    "log": Log,
    "admin": Admin,
}


def check_config(config: object, name: str = "config") -> None:
    """Raise TypeError, and say what to do, if a program gives something else for a `Config`."""
    if not isinstance(config, Config):
        raise TypeError(
            f"{name}: {type(config).__name__}, expected a tabi.Config; "
            "tabi.config.load_config reads one from a file, make_config from a mapping"
        )


def check_types(config: Config) -> Config:
    """Check a configuration that was made in Python as if it came from a file. Raises ConfigError."""
    data = msgspec.to_builtins(config, enc_hook=encode_special)
    try:
        return msgspec.convert(data, Config, dec_hook=decode_special)
    except msgspec.ValidationError as exc:
        raise all_mistakes(data, str(exc)) from None
