"""The options of the commands that go through a proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tabi.client import TIMEOUT, Proxy
from tabi.errors import ConfigError
from tabi.policy.quantities import Seconds

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Duration(click.ParamType[Seconds]):
    """A duration as tabi.toml has it: seconds, or text such as ``200ms``."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Seconds:
        """Read one."""
        try:
            return Seconds.parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def option_via(protocols: str) -> Decorator:
    """The option --via for proxies of these protocols."""
    return click.option(
        "--via",
        metavar="URL",
        multiple=True,
        help=f"{protocols}. Repeated: a chain, in order. Default: what ALL_PROXY says.",
    )


option_timeout: Decorator = click.option(
    "--timeout", metavar="SECONDS", type=float, default=TIMEOUT, help=f"For each proxy to answer. Default: {TIMEOUT:g}."
)
option_ca: Decorator = click.option(
    "--ca", metavar="FILE", help="Authorities for proxies inside TLS, as PEM. Default: the system's."
)


def make_proxy(via: tuple[str, ...], timeout: float, ca: str | None) -> Proxy:
    """The proxy that a command goes through: that of its options, or else that of the environment.

    Raises:
        ConfigError: there is none.
        ValueError: as `Proxy` and `Proxy.from_environment`.
    """
    if via:
        return Proxy(*via, timeout=timeout, ca=ca)
    proxy = Proxy.from_environment(timeout=timeout, ca=ca)
    if not proxy.urls:
        raise ConfigError("no proxy: give --via URL, or set ALL_PROXY")
    return proxy
