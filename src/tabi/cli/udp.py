"""`tabi udp`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import click

from tabi.cli.connect import read, write
from tabi.cli.help import Command
from tabi.cli.options import make_proxy, option_ca, option_timeout, option_via
from tabi.cli.runner import make_runner
from tabi.client import Proxy
from tabi.errors import ConfigError
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import MAX_DATAGRAM


@click.command(cls=Command)
@click.argument("destination", metavar="HOST:PORT", help="Where to; the proxy resolves names.")
@option_via("socks5://[user:password@]host:port, or socks5+tls")
@click.option("--wait", metavar="SECONDS", type=float, default=1.0, help="Wait after the end of input. Default: 1.")
@click.option("--hex", "hexadecimal", is_flag=True, help="Lines are datagrams in hexadecimal, both ways.")
@option_timeout
@option_ca
def udp(destination: str, via: tuple[str, ...], wait: float, hexadecimal: bool, timeout: float, ca: str | None) -> None:
    """Send each line of standard input as a datagram through a proxy, and print each one that comes as a line.

    At the end of input it goes on until nothing has come for a while; it is not an error if nothing came at all.

    Example:  echo hello | tabi udp --via socks5://127.0.0.1:1080 192.0.2.1:7
    """
    try:
        address = parse_address(destination)
        if not address.port:
            raise ValueError(f"{destination!r} has port 0, which no datagram goes to")
        if not 0 <= wait < 1e9:
            raise ValueError(f"--wait of {wait:g} s, expected 0 or more and less than 1e9")
        proxy = make_proxy(via, timeout, ca)
        proxy.check_socks5("UDP")
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    with make_runner() as runner:
        runner.run(exchange(proxy, address, wait, hexadecimal))


async def exchange(proxy: Proxy, address: Address, wait: float, hexadecimal: bool) -> None:
    """Send the lines of standard input while printing what comes.

    Raises:
        ValueError: a line cannot be sent; those before it were, and their answers were waited for.
    """
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []

    def upload() -> None:
        number, seconds = 1, wait
        try:
            for line in lines():
                data = from_hex(line) if hexadecimal else line
                asyncio.run_coroutine_threadsafe(association.send(data, address), loop).result()
                number += 1
        except ValueError as exc:
            failures.append(ValueError(f"line {number}: {exc}"))
        except Exception as exc:
            failures.append(exc)
            seconds = 0
        with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits for this any more
            loop.call_soon_threadsafe(end, seconds)

    def end(seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # something else has ended the wait
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


def from_hex(line: bytes) -> bytes:
    """The datagram that a line stands for. Raises ValueError."""
    text = line.decode("latin-1")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"{text[:40]!a}{'...' * (len(text) > 40)} is not hexadecimal") from None


def checked(line: bytes) -> bytes:
    """A line, or its beginning, that may be a datagram. Raises ValueError for one that is too long for any."""
    if len(line) > 2 * MAX_DATAGRAM:
        raise ValueError(f"a line of more than {2 * MAX_DATAGRAM} octets is not a datagram")
    return line


def lines() -> Iterator[bytes]:
    """The lines of standard input, without their ends. Raises ValueError for one that is too long to be sent."""
    rest = b""
    while data := read(0):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield checked(line)
        checked(rest)
    if rest:
        yield rest
