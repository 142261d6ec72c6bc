"""`tabi udp`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Annotated

import typer

from tabi.cli.connect import read, write
from tabi.client import TIMEOUT, Proxy
from tabi.errors import ConfigError
from tabi.net.reactor import make_loop
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import MAX_DATAGRAM


def udp(
    destination: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where to; the proxy resolves names.")],
    via: Annotated[
        list[str],
        typer.Option("--via", metavar="URL", help="socks5://[user:password@]host:port. Repeated: a chain, in order."),
    ],
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for more at the end of input.")] = 1.0,
    hexadecimal: Annotated[bool, typer.Option("--hex", help="Lines are datagrams in hexadecimal, both ways.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each proxy to answer.")] = TIMEOUT,
) -> None:
    """Send each line of standard input as a datagram through a proxy, and print each one that comes as a line.

    At the end of input it goes on until nothing has come for a while.
    """
    try:
        address = parse_address(destination)
        if not address.port:
            raise ValueError(f"{destination!r} has port 0, which no datagram goes to")
        if not 0 <= wait < 1e9:
            raise ValueError(f"--wait of {wait:g} s, expected 0 or more")
        proxy = Proxy(*via, timeout=timeout)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(exchange(proxy, address, wait, hexadecimal))


async def exchange(proxy: Proxy, address: Address, wait: float, hexadecimal: bool) -> None:
    """Send the lines of standard input while printing what comes."""
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []

    def upload() -> None:
        try:
            for line in lines():
                data = bytes.fromhex(line.decode("ascii", "replace")) if hexadecimal else line
                asyncio.run_coroutine_threadsafe(association.send(data, address), loop).result()
        except Exception as exc:
            failures.append(exc)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting for this any more
            loop.call_soon_threadsafe(end, 0 if failures else wait)

    def end(seconds: float) -> None:
        quiet.reschedule(loop.time() + seconds)

    async with proxy.associate() as association:
        try:
            async with asyncio.timeout(None) as quiet:
                threading.Thread(target=upload, daemon=True).start()
                while True:
                    data, _ = await association.receive()
                    write(1, (data.hex().encode() if hexadecimal else data) + b"\n")
                    if quiet.when() is not None:
                        end(wait)
        except TimeoutError:
            if failures:
                raise failures[0] from None


def lines() -> Iterator[bytes]:
    """The lines of standard input, without their ends. Raises ValueError for one that is too long to be sent."""
    rest = b""
    while data := read(0):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
        if len(rest) > 2 * MAX_DATAGRAM:
            raise ValueError(f"a line of more than {2 * MAX_DATAGRAM} octets is no datagram")
    if rest:
        yield rest
