"""`tabi check`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from tabi.cli.help import Command
from tabi.config import Config, encode_special, load_config
from tabi.config.advice import advise
from tabi.errors import ConfigError
from tabi.net.listen import check_unix
from tabi.observe.access_log import check_output
from tabi.server.quota_store import check_store, default_path
from tabi.server.server import Server
from tabi.url import UnixSocket


@click.command(cls=Command)
@click.argument("path", metavar="TABI.TOML", type=click.Path(path_type=Path), help="The file to try.")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
@click.option("--open", "open_proxy", is_flag=True, help="Check it as `tabi serve --open` would.")
def check(path: Path, as_json: bool, open_proxy: bool) -> None:
    """Validate a configuration and print it as it would be used, defaults and all.

    Passwords are not shown. An error names the file and the key, and exits with 2. What may not be as it was meant,
    such as a rule that can never match, is said on stderr.

    Example:  tabi check --json tabi.toml
    """
    config = load_config(path)
    try:
        check_surroundings(config, Server(config=config, open=open_proxy))
    except ConfigError as exc:
        raise ConfigError(str(exc), str(path)) from exc
    for advice in advise(config):
        print(f"{path}: {advice}", file=sys.stderr)
    data: dict[str, Any] = msgspec.to_builtins(config, enc_hook=encode_special)
    for user in data["users"].values():
        user["password"] = user["password"] and "…"
    for egress in data["egress"].values():
        hide_passwords(egress)
    print(json.dumps(data, indent=1, ensure_ascii=False) if as_json else "\n".join(flatten(data)))


def hide_passwords(egress: dict[str, Any]) -> None:
    """Take the users and passwords out of the URLs of an egress."""

    def hidden(text: str | None) -> str | None:
        return None if text is None else re.sub(r"://.*@", "://…@", text)

    egress["url"] = hidden(egress["url"])
    for hops in (egress["chain"], egress["members"]):
        for place, one in enumerate(hops or ()):
            if isinstance(one, str):
                hops[place] = hidden(one)
            else:
                one["to"] = hidden(one["to"])


def check_surroundings(config: Config, server: Server) -> None:
    """Look at what the start would open, and change nothing. Raises ConfigError."""
    try:
        check_output(config.log.access)
    except OSError as exc:
        raise ConfigError(f"{config.log.access}: {exc.strerror}", "log.access") from exc
    if config.quotas.path is not None or any(account.quota for account in server.policy.limits.accounts):
        check_store(Path(config.quotas.path) if config.quotas.path is not None else default_path(os.environ))
    for index, listen in enumerate(config.listen):
        place, where = listen.parsed.place, f"listen[{index}].url"
        if isinstance(place, UnixSocket):
            try:
                check_unix(place)
            except OSError as exc:
                raise ConfigError(f"{listen.url}: {exc.strerror}", where) from exc
            except ConfigError as exc:
                raise ConfigError(f"{listen.url}: {exc}", where) from None


def flatten(value: Any, path: str = "") -> Iterator[str]:
    """``key.path = value`` for every leaf, in the words of the error messages."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flatten(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from flatten(below, f"{path}[{index}]")
    else:
        yield f"{path} = {'default' if value is None else json.dumps(value, ensure_ascii=False)}"
