"""`tabi listen`."""

from __future__ import annotations

import socket
import sys

import click

from tabi.cli.connect import join_beside
from tabi.cli.help import Command
from tabi.cli.options import make_proxy, option_ca, option_timeout, option_via
from tabi.cli.runner import make_runner
from tabi.client import Opening
from tabi.egress.bind import ACCEPT_TIMEOUT, Listener, check_seconds
from tabi.egress.detach import take_socket
from tabi.errors import ConfigError


@click.command(cls=Command)
@option_via("socks5://[user:password@]host:port, or socks5+tls")
@click.option("--peer", metavar="HOST", help="The peer that may call. Default: the first to call.")
@click.option(
    "--wait",
    metavar="SECONDS",
    type=float,
    default=ACCEPT_TIMEOUT,
    help=f"For the peer to call. Default: {ACCEPT_TIMEOUT:g}.",
)
@option_timeout
@option_ca
def listen(via: tuple[str, ...], peer: str | None, wait: float, timeout: float, ca: str | None) -> None:
    """Let a proxy listen (BIND), and join standard input and output with the first peer that calls.

    The address to call is the first line of standard output; what the peer sends follows.

    Example:  tabi listen --via socks5://127.0.0.1:1080 --peer 192.0.2.9
    """
    try:
        check_seconds("--wait", wait)
        binding = make_proxy(via, timeout, ca).bind(peer)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    with make_runner() as runner:
        join_beside(runner.get_loop(), runner.run(open_socket(binding, wait)))


async def open_socket(binding: Opening[Listener], wait: float) -> socket.socket:
    """The socket of the connection to the peer that calls; prints where to call, and which peer did."""
    async with binding as listener:
        print(listener.address, flush=True)
        print(f"waiting for a connection to {listener.address}", file=sys.stderr, flush=True)
        stream = await listener.accept(wait)
        print(f"connected with {listener.peer}", file=sys.stderr, flush=True)
        return take_socket(stream)
