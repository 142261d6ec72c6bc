"""`tabi listen`."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Annotated

import typer

from tabi.cli.connect import join_beside
from tabi.client import TIMEOUT, Opening, Proxy
from tabi.egress.bind import ACCEPT_TIMEOUT, Listener, check_seconds
from tabi.egress.detach import take_socket
from tabi.errors import ConfigError
from tabi.net.reactor import make_loop


def listen(
    via: Annotated[
        list[str],
        typer.Option(
            "--via",
            metavar="URL",
            help="socks5://[user:password@]host:port, or socks5+tls. Repeated: a chain, in order.",
        ),
    ],
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="HOST", help="Who may call; default: anyone, the first to call.")
    ] = None,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for the peer to call.")] = ACCEPT_TIMEOUT,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each proxy to answer.")] = TIMEOUT,
    ca: Annotated[
        str | None,
        typer.Option("--ca", metavar="FILE", help="Authorities for proxies inside TLS. Default: the system's."),
    ] = None,
) -> None:
    """Let a proxy listen (BIND), and join standard input and output with the first peer that calls.

    The address to call is the first line of standard output; what the peer sends follows.
    """
    try:
        check_seconds("--wait", wait)
        binding = Proxy(*via, timeout=timeout, ca=ca).bind(peer)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    with asyncio.Runner(loop_factory=make_loop) as runner:
        join_beside(runner.get_loop(), runner.run(open_socket(binding, wait)))


async def open_socket(binding: Opening[Listener], wait: float) -> socket.socket:
    """The socket of the connection to whoever calls; says where to call, and who did."""
    async with binding as listener:
        print(listener.address, flush=True)
        print(f"waiting for a connection to {listener.address}", file=sys.stderr, flush=True)
        stream = await listener.accept(wait)
        print(f"connected with {listener.peer}", file=sys.stderr, flush=True)
        return take_socket(stream)
