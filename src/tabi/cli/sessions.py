"""`tabi sessions`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from tabi.cli.help import Command
from tabi.cli.running import Place, ask, at_server, code_of, columns, octets, seconds, show, terminal_width
from tabi.errors import ConfigError
from tabi.server.reports import MOST, SORTED_BY

ROWS = 1000

FILTERS = {
    "id": ("ID", "The one with this id; the access log has it too."),
    "user": ("NAME", "Those of this user."),
    "client": ("ADDRESS", "Those of clients at this address."),
    "host": ("HOST", "Those to this name or address, as the client has said it."),
    "via": ("EGRESS", "Those by this egress."),
    "rule": ("NAME", "Those that this rule has decided on."),
    "listener": ("URL", "Those of this listener."),
    "protocol": ("NAME", "Those of this protocol: socks5, http …"),
    "command": ("NAME", "Those with this command: connect, associate, bind, forward …"),
}


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose sessions; all that are given must hold."""
    for name, (metavar, text) in reversed(FILTERS.items()):
        command = click.option(f"--{name}", metavar=metavar, help=text)(command)
    return command


def wanted_by(options: Mapping[str, str | None]) -> dict[str, str]:
    """The filter that options make."""
    return {name: text for name, text in options.items() if text is not None}


def ask_about(path: Place, command: str, **arguments: Any) -> dict[str, Any]:
    """As `ask`; what is wrong is named as an option."""
    try:
        return ask(path, command, **arguments)
    except ConfigError as exc:
        raise ConfigError(exc.message, f"--{exc.path.removeprefix('filter.')}" if exc.path else "") from None


@click.command(cls=Command)
@filter_options
@click.option(
    "--sort", metavar="KEY", type=click.Choice(list(SORTED_BY)), help=f"The most first: {', '.join(SORTED_BY)}."
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(0, MOST), default=ROWS, help="So many at most.", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, with the keys of the access log.")
@at_server
def sessions(sort: str | None, limit: int, as_json: bool, path: Place, **options: str | None) -> int:
    """List the sessions that run on the server now.

    Examples:

    \b
    tabi sessions
    tabi sessions --user alice --sort octets
    tabi sessions --host example.com --json
    """
    found = ask_about(path, "sessions", filter=wanted_by(options), sort=sort, limit=limit)
    rows = found["sessions"]
    if as_json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print("no sessions")
    else:
        show(table(rows, terminal_width()))
    if found["matching"] > len(rows):
        print(f"tabi: {found['matching'] - len(rows):,} more are left out, see --limit", file=sys.stderr)
    return code_of(found)


def table(rows: list[dict[str, Any]], width: int | None) -> Iterator[str]:
    """The list: a line for each."""
    lines = [("id", "user", "client", "protocol", "destination", "egress", "up", "down", "time")]
    for row in rows:
        via = row["via"] or ""
        lines.append(
            (
                row["id"],
                row["user"] or "-",
                row["client"],
                row["protocol"] or "-",
                destination(row),
                f"{via}/{row['member']}" if row["member"] else via,
                octets(row["up"]),
                octets(row["down"]),
                seconds(row["seconds"]),
            )
        )
    return columns(lines, (6, 7, 8), width)


def destination(row: Mapping[str, Any]) -> str:
    """Where a session goes."""
    if row["host"] is None:
        return row["command"] or "-"
    host = f"[{row['host']}]" if ":" in row["host"] else row["host"]
    return f"{host}:{row['port']}"
