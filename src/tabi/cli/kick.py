"""`tabi kick`."""

from __future__ import annotations

import click

from tabi.cli.help import Command
from tabi.cli.running import Place, at_server, code_of
from tabi.cli.sessions import ask_about, filter_options, wanted_by
from tabi.errors import ConfigError


@click.command(cls=Command)
@filter_options
@click.option("--all", "every", is_flag=True, help="All sessions.")
@at_server
def kick(every: bool, path: Place, **options: str | None) -> int:
    """End sessions of the running server, and print how many. Their clients may begin new ones.

    Examples:

    \b
    tabi kick --user alice
    tabi kick --id 5f3a1c-2b
    """
    wanted = wanted_by(options)
    if every == bool(wanted):
        raise ConfigError("expected which sessions, such as --user NAME, or --all")
    found = ask_about(path, "kick", filter=wanted, all=every)
    print(f"{found['ended']:,} ended")
    return code_of(found)
