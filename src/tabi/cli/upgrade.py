"""`tabi upgrade`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tabi.cli.help import Command
from tabi.cli.running import at_socket
from tabi.server.asker import PATIENCES
from tabi.server.control import ask_server, find_socket


@click.command(cls=Command)
@at_socket
def upgrade(path: Path | None) -> None:
    """Have the running server start its program anew, on the same sockets, and drain when that serves.

    No client is refused meanwhile and no session is cut, unless it lasts longer than timeouts.drain. The new process
    has the same command line, and reads the file anew. Its pid is printed. If it does not start, the running server
    goes on as before.

    Example:  pip install --upgrade tabi && tabi upgrade
    """
    place = find_socket(os.environ) if path is None else path
    print(ask_server(place, "upgrade", PATIENCES["upgrade"])["pid"])
