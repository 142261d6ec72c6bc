"""The options of the commands that go through a proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tabi.client import TIMEOUT

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option_via(protocols: str) -> Decorator:
    """The option that says through which proxies, of these protocols."""
    return click.option(
        "--via", metavar="URL", multiple=True, required=True, help=f"{protocols}. Repeated: a chain, in order."
    )


option_timeout: Decorator = click.option(
    "--timeout", metavar="SECONDS", type=float, default=TIMEOUT, help=f"For each proxy to answer. Default: {TIMEOUT:g}."
)
option_ca: Decorator = click.option(
    "--ca", metavar="FILE", help="Authorities for proxies inside TLS, as PEM. Default: the system's."
)
