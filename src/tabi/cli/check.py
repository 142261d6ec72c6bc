"""`tabi check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from tabi.config import load_config
from tabi.errors import ConfigError
from tabi.server.server import Server


def check(
    path: Annotated[Path, typer.Argument(metavar="TABI.TOML", help="The file to try.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one JSON object.")] = False,
    open_proxy: Annotated[bool, typer.Option("--open", help="Check it as `tabi serve --open` would.")] = False,
) -> None:
    """Validate a configuration and print it as it would be used, defaults and all.

    Passwords are not shown. An error names the file and the key, and exits with 2.
    """
    config = load_config(path)
    try:
        Server(config=config, open=open_proxy)
    except ConfigError as exc:
        raise ConfigError(str(exc), str(path)) from exc
    data: dict[str, Any] = msgspec.to_builtins(config, enc_hook=float)  # the only type of ours is Seconds
    for user in data["users"].values():
        user["password"] = "…"  # noqa: S105 - hides it
    print(json.dumps(data, indent=1, ensure_ascii=False) if as_json else "\n".join(flatten(data)))


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
