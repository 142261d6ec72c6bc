"""`tabi metrics`."""

from __future__ import annotations

import sys

import click

from tabi.cli.help import Command
from tabi.cli.running import Place, ask, at_server, code_of


@click.command(cls=Command)
@click.option("--openmetrics", is_flag=True, help="Print OpenMetrics 1.0. Default: the text format of Prometheus.")
@at_server
def metrics(openmetrics: bool, path: Place) -> int:
    """Print the metrics of the running server, of all its workers together, as Prometheus reads them.

    Example:  tabi metrics | promtool check metrics
    """
    found = ask(path, "metrics", format="openmetrics" if openmetrics else "text")
    sys.stdout.write(found["text"])
    return code_of(found)
