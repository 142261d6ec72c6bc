"""`tabi metrics`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tabi.cli.help import Command
from tabi.cli.running import ask, at_socket, code_of


@click.command(cls=Command)
@click.option("--openmetrics", is_flag=True, help="Print OpenMetrics 1.0. Default: the text format of Prometheus.")
@at_socket
def metrics(openmetrics: bool, path: Path | None) -> int:
    """Print the metrics of the running server, of all its workers together, as Prometheus reads them.

    Example:  tabi metrics | promtool check metrics
    """
    found = ask(path, "metrics", format="openmetrics" if openmetrics else "text")
    sys.stdout.write(found["text"])
    return code_of(found)
