"""`tabi check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import click

from tabi.admin.access import tls_context
from tabi.cli.help import Command
from tabi.config import Config, load_config
from tabi.config.admin import Admin, need_packages, tokens_of
from tabi.config.advice import advise
from tabi.config.load import in_file
from tabi.errors import ConfigError, printable
from tabi.net.listen import check_unix
from tabi.net.privileges import find_identity
from tabi.observe.log_json import escape_json
from tabi.observe.log_targets import check_log
from tabi.policy.quantities import format_size
from tabi.policy.rules import FILES
from tabi.server.compiled import Compiled, compile_config
from tabi.server.quota_store import check_store, path_of
from tabi.server.shown import faults_of, resolved
from tabi.server.trust import advise_on_secrets, check_code, check_file
from tabi.url import UnixSocket

NOT_SET = {
    "decide": "no program is asked",
    "user": "it stays the user that it is",
    "tls": "there is no TLS",
    "advertise": "the address that the client has reached",
    "client_ca": "no certificate is asked for",
    "ciphers": "those with forward secrecy and AEAD",
    "password": "no login by password",
    "expires": "never",
    "interface": "as the system chooses",
    "keepalive": "the destination is not probed",
    "mark": "packets have none",
    "user_timeout": "the system's",
    "url": "there is no proxy",
    "chain": "there is no proxy",
    "members": "there is no pool",
    "check": "members are not looked at",
    "connect": "nothing is connected to",
    "http": "nothing is asked for",
    "users_file": "users are in this file",
    "key": "those of ~/.ssh",
    "ca": "the system's authorities",
    "burst": "there is no bandwidth",
    "trust": "the system's authorities alone",
    "har": "nothing is recorded",
    **dict.fromkeys(("connections", "connect_rate", "bandwidth", "quota", "max_session"), "no limit"),
}
"""What it means that a key has no value, for keys where no value says the same."""

NOT_SET_OF_ADMIN = {
    "listen": "only commands ask, by the control socket",
    **dict.fromkeys(("token", "token_file", "read_token", "read_token_file"), "nobody has it"),
    "tls": "there is no TLS",
}
"""The same for those of ``[admin]``."""

UNCHANGED = {
    "seed": "what is drawn differs in each run",
    "fault": "nothing goes wrong",
    "headers": "fields of requests stay",
    "response_headers": "fields of answers stay",
    "map_remote": "requests go to their own URL",
    "map_local": "destinations answer",
    "status": "answers have their own",
    "body": "answers have their own",
    "tls": "destinations see that of tabi",
    "profile": "requests have their own fields",
}
"""The same for those of ``[[distort]]``; all others are matchers."""


@click.command(cls=Command)
@click.argument("path", metavar="TABI.TOML", type=click.Path(path_type=Path), help="The file to try.")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
@click.option("--open", "open_proxy", is_flag=True, help="Check it as `tabi serve --open` would.")
def check(path: Path, as_json: bool, open_proxy: bool) -> int:
    """Validate a configuration and print it as it would be used, defaults and all.

    Passwords are not shown. Each error is a line with the file and the key, and the exit code is 2. Possible mistakes,
    such as a rule that can never match, are reported on stderr.

    Example:  tabi check --json tabi.toml
    """
    try:
        config = load_config(path, check=check_file)
        compiled, errors = try_to_compile(config, open_proxy)
        errors += look_around(config, compiled)
        if errors:
            raise in_file(ConfigError(errors[0].message, errors[0].path, tuple(errors)), path)
    except ConfigError as exc:
        if len(exc.errors) == 1:
            raise
        for error in exc.errors:
            print(printable(f"tabi: {error}"), file=sys.stderr)
        return 2
    assert compiled is not None
    for advice in (*advise(config, compiled.users, time()), *advise_on_secrets(path, config)):
        print(printable(f"{path}: {advice}"), file=sys.stderr)
    data = resolved(config)
    if as_json:
        print(escape_json(json.dumps(data, indent=1, ensure_ascii=False)))
    else:
        print("\n".join(map(printable, flatten(written(data)))))
    return 0


def try_to_compile(config: Config, open_proxy: bool) -> tuple[Compiled | None, list[ConfigError]]:
    """Compile a configuration; gives None and all errors if that is not possible."""
    try:
        if config.user is not None:
            find_identity(config.user)
        check_code(config)
        return compile_config(config, open_proxy), []
    except ConfigError as exc:
        return None, list(exc.errors)


def look_around(config: Config, compiled: Compiled | None) -> Iterator[ConfigError]:
    """Check what the start would open, and change nothing; gives all errors."""
    checks: list[Callable[[], object]] = [partial(check_access_log, config)]
    if config.quotas.path is not None or (compiled is not None and compiled.with_quotas):
        checks.append(lambda: check_store(path_of(config)))
    checks.append(partial(check_admin, config.admin))
    checks += [partial(check_place, config, index) for index in range(len(config.listen))]
    for look in checks:
        try:
            look()
        except ConfigError as exc:
            yield from exc.errors


def check_access_log(config: Config) -> None:
    """Raise ConfigError for an access log that cannot be written."""
    try:
        check_log(config.log)
    except OSError as exc:
        raise ConfigError(f"{config.log.access}: {exc.strerror}", "log.access") from exc


def check_admin(admin: Admin) -> None:
    """Raise ConfigError for tokens, a certificate or packages that cannot be used."""
    if admin.listen is not None:
        need_packages()
        tokens_of(admin)
        tls_context(admin)


def check_place(config: Config, index: int) -> None:
    """Raise ConfigError for a unix socket that cannot be listened on."""
    listen = config.listen[index]
    place, where = listen.parsed.place, f"listen[{index}].url"
    if isinstance(place, UnixSocket):
        try:
            check_unix(place)
        except OSError as exc:
            raise ConfigError(f"{listen.url}: {exc.strerror}", where) from exc
        except ConfigError as exc:
            raise ConfigError(f"{listen.url}: {exc}", where) from None


# --- what is printed ---


SIZES = ("queue", "mtu", "slice", "slice_variation", "limit", "truncate")
"""The keys of a fault that are sizes."""


def written(data: dict[str, Any]) -> dict[str, Any]:
    """A value with rates and sizes as people write them."""
    for part in [data, *data["users"].values(), *data["groups"].values(), *data["clients"]]:
        limits = part["limits"]
        for key, unit in (("bandwidth", "/s"), ("burst", "")):
            if limits[key] is not None:
                limits[key] = f"{format_size(int(limits[key]))}{unit}"
    for intercept in data["intercept"]:
        intercept["body_limit"] = format_size(intercept["body_limit"])
    for holder, name in faults_of(data):
        fault = holder[name]
        for figures in filter(None, (fault, fault.get("up"), fault.get("down"))):
            figures |= {key: format_size(figures[key]) for key in SIZES if key in figures}
            if "bandwidth" in figures and figures["bandwidth"].is_integer():
                figures["bandwidth"] = f"{format_size(int(figures['bandwidth']))}/s"
    return data


def flatten(value: Any, path: str = "") -> Iterator[str]:
    """``key.path = value`` for every leaf, in the words of the error messages."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flatten(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from flatten(below, f"{path}[{index}]")
    elif value is None:
        yield f"{path} = {meaning_of(path)}"
    else:
        yield f"{path} = {json.dumps(value, ensure_ascii=False)}"


def meaning_of(path: str) -> str:
    """The text for a key without a value: its meaning is a comment, since TOML has no word for that."""
    key = path.rpartition(".")[2]
    if key in FILES:
        return "none  # there are no more"
    if path.startswith("intercept[") and key in ("certificate", "key"):
        return "none  # destinations get no certificate"
    if path.startswith("intercept[") and key not in NOT_SET:
        return "none  # it matches all"
    if path.startswith("distort["):
        return f"none  # {UNCHANGED.get(key, 'it matches all')}"
    if path.startswith("rule["):
        return "none" if key in ("via", "idle") else "none  # it matches all"
    if path.startswith("admin."):
        return f"none  # {NOT_SET_OF_ADMIN[key]}"
    if path.endswith("udp.ports"):
        return "none  # any that is free"
    if path.startswith("listen[") and key == "keepalive":
        return "none  # the client is not probed"
    return f"none  # {NOT_SET[key]}" if key in NOT_SET else "none"
