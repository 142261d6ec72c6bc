"""`tabi check`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tabi.config import Config, encode_special, load_config
from tabi.config.advice import advise
from tabi.errors import ConfigError
from tabi.net.listen import check_unix
from tabi.observe.access_log import check_output
from tabi.server.compiled import Compiled, compile_config
from tabi.server.quota_store import check_store, path_of
from tabi.url import UnixSocket


def check(
    path: Annotated[Path, typer.Argument(metavar="TABI.TOML", help="The file to try.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")] = False,
    open_proxy: Annotated[bool, typer.Option("--open", help="Check it as `tabi serve --open` would.")] = False,
) -> None:
    """Validate a configuration and print it as it would be used, defaults and all.

    Passwords are not shown. An error names the file and the key, and exits with 2. What may not be as it was meant,
    such as a rule that can never match, is said on stderr.
    """
    config = load_config(path, values=False)
    try:
        compiled = compile_config(config, open_proxy)
        check_surroundings(config, compiled)
    except ConfigError as exc:
        raise ConfigError(str(exc), str(path)) from exc
    for advice in advise(config, compiled.users):
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


def check_surroundings(config: Config, compiled: Compiled) -> None:
    """Look at what the start would open, and change nothing. Raises ConfigError."""
    try:
        check_output(config.log.access)
    except OSError as exc:
        raise ConfigError(f"{config.log.access}: {exc.strerror}", "log.access") from exc
    if config.quotas.path is not None or compiled.with_quotas:
        check_store(path_of(config))
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
