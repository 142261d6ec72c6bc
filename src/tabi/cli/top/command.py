"""The command `tabi top`."""

from __future__ import annotations

import os
import time
from functools import partial

import click

from tabi.cli.help import Command
from tabi.cli.running import Place, ask, at_server, show, terminal_width
from tabi.cli.top.looks import ORDERS, Looks, Query
from tabi.cli.top.tables import VIEWS, plain
from tabi.errors import ConfigError
from tabi.intercept.packages import is_there
from tabi.signals import restore

EVERY = 2.0


@click.command(cls=Command)
@click.option(
    "--view", type=click.Choice(list(VIEWS)), default="sessions", help="What is shown first.", show_default=True
)
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(0.2, 3600),
    default=EVERY,
    help="How long until the next look.",
    show_default=True,
)
@click.option("--once", is_flag=True, help="Print one look as text. Default where the output is no terminal.")
@at_server
def top(view: str, every: float, once: bool, path: Place) -> int:
    """Watch the running server: sessions, users, egresses and refusals; end sessions, drain members of pools.

    This needs the extra: pip install 'tabi[top]'; but not with --once.

    Examples:

    \b
    tabi top
    tabi top --once --view users
    """
    screen = not once and os.isatty(0) and os.isatty(1)
    if screen and not is_there("textual"):
        raise ConfigError("tabi top needs textual: pip install 'tabi[top]'")
    asked = partial(ask, path)
    version = asked("status")["version"]
    looks = Looks(asked, time.monotonic)
    first = looks.take(Query(view, ORDERS[view][0]))
    if not screen:
        show(plain(first, version, terminal_width()))
        return 0
    from tabi.cli.top.app import Top

    restore()
    app = Top(looks, first, version, every)
    app.run()
    return app.return_code or 0
