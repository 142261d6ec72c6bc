"""`tabi ping`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from time import monotonic
from typing import NamedTuple

import click

from tabi.cli.help import Command
from tabi.cli.options import Duration, make_proxy, option_ca
from tabi.cli.runner import make_runner
from tabi.client import Proxy
from tabi.client.proxy import nothing_is_direct
from tabi.errors import ConfigError, TabiError, printable
from tabi.net.failures import reason_of
from tabi.policy.quantities import Seconds
from tabi.url import LISTENER_PROTOCOLS, UnixSocket, parse_listen_url
from tabi.wire.address import Address, parse_address

QUESTION = b"\x74\x61\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"
"""What --udp sends: to a name server the question for the servers of the root (RFC 1035), which every one knows."""

DATAGRAMS = 3
"""How often --udp sends it, since a datagram may be lost."""

LOOKUPS = 4
"""Names of proxies that are looked for at a time: one, unless the one before is late."""

GRACE = 0.1
"""Seconds in which a thread ends that has nothing to do."""

Ask = Callable[[], Awaitable[str]]
"""Asks once; returns what was answered. Raises TabiError or OSError."""


class Target(NamedTuple):
    """Who is asked."""

    proxy: Proxy
    name: str
    """Its URL without a user."""
    place: str
    """Where it is, as errors begin."""


@click.command(cls=Command)
@click.argument(
    "url",
    metavar="[URL]",
    required=False,
    help="The proxy; unix:///PATH?protocol=socks5 and mixed:// too. Default: what ALL_PROXY says.",
)
@click.option("--via", metavar="URL", multiple=True, help="Reach it through this proxy. Repeated: a chain, in order.")
@click.option("--count", metavar="N", type=int, default=1, help="How often; 0: until Ctrl-C. Default: 1.")
@click.option("--interval", metavar="TIME", type=Duration(), default="1s", help="From one to the next. Default: 1s.")
@click.option("--timeout", metavar="TIME", type=Duration(), default="3s", help="For one answer, in all. Default: 3s.")
@click.option("--target", metavar="HOST:PORT", help="Connect to this destination through it. Default: to none.")
@click.option("--udp", metavar="HOST:PORT", help="Send a datagram to this name server or echo service through it.")
@option_ca
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing: the exit code says it.")
def ping(
    url: str | None,
    via: tuple[str, ...],
    count: int,
    interval: Seconds,
    timeout: Seconds,
    target: str | None,
    udp: str | None,
    ca: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask a proxy whether it is alive, through its own protocol.

    It goes as far as the protocol goes without a destination: with SOCKS5 up to the request, so that the user name and
    the password are tried too. With --target or --udp something beyond the proxy has to answer as well.

    Exit code 0: it answered each time. 1: it did not, or does not let us in. 2: the command line is wrong.

    Examples:

    \b
    tabi ping socks5://alice:secret@127.0.0.1:1080
    tabi ping --count 5 --interval 200ms https://proxy.example.com
    tabi ping --quiet --target example.com:443 "$PROXY" || echo down
    """
    try:
        if count < 0:
            raise ValueError(f"--count {count}, expected 1 or more, or 0 for any number")
        if target is not None and udp is not None:
            raise ValueError("--target and --udp, expected one of them")
        who = find_target(url, via, timeout, ca)
        ask = choose_question(who.proxy, target, udp, timeout)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    shown = Shown(who, as_json, quiet)
    lookups = ThreadPoolExecutor(LOOKUPS, "tabi-lookup")
    with make_runner() as runner:
        runner.get_loop().set_default_executor(lookups)
        try:
            runner.run(repeat(ask, shown, count, interval, timeout))
        except KeyboardInterrupt:
            if count == 1:
                raise
        shown.summarize()
        leave(lookups, shown.code)
    sys.exit(shown.code)


# --- who is asked, and what ---


def find_target(url: str | None, via: tuple[str, ...], timeout: float, ca: str | None) -> Target:
    """The proxy of a URL: those of listeners are taken too, so that what `tabi serve` prints can be asked.

    Raises:
        ConfigError: as `make_proxy`.
        ValueError: as `Proxy`; or a unix socket is to be reached through a proxy.
    """
    if url is None:
        return named(make_proxy(via, timeout, ca))
    scheme, colon, rest = url.partition("://")
    if scheme == "unix" and colon:
        return at_path(rest, via, timeout, ca)
    if scheme in ("mixed", "mixed+tls"):
        url = f"socks5{scheme.removeprefix('mixed')}://{rest}"
    return named(make_proxy((*via, url), timeout, ca))


def named(proxy: Proxy) -> Target:
    """A proxy with its own URL. It is asked whatever NO_PROXY says of a destination."""
    proxy.is_direct = nothing_is_direct
    return Target(proxy, str(proxy.urls[-1]), str(proxy.urls[-1].address))


def at_path(rest: str, via: tuple[str, ...], timeout: float, ca: str | None) -> Target:
    """The proxy at a unix socket, ``[user:password@]/path?protocol=socks5``. Errors as `find_target`."""
    if via:
        raise ValueError("a unix socket is on this machine, expected no --via")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    listen = parse_listen_url(f"unix://{host}{slash}{path}")
    assert isinstance(listen.place, UnixSocket)
    protocol, tls = LISTENER_PROTOCOLS[listen.scheme]
    protocol = "socks5" if protocol == "mixed" else protocol
    scheme = ("https" if protocol == "http" else f"{protocol}+tls") if tls else protocol
    proxy = make_proxy((f"{scheme}://{user}{at}localhost:1",), timeout, ca)
    proxy.path = listen.place.path
    return Target(proxy, str(listen), listen.place.path)


def choose_question(proxy: Proxy, target: str | None, udp: str | None, timeout: float) -> Ask:
    """What is asked each time. Raises ValueError for a destination that cannot be."""
    if target is not None:
        destination = parse_address(target)
        return lambda: connect(proxy, destination)
    if udp is not None:
        destination = parse_address(udp)
        if not destination.port:
            raise ValueError(f"{udp!r} has port 0, which no datagram goes to")
        proxy.check_socks5("UDP")
        if proxy.path is not None:
            raise ValueError("--udp: no datagrams go through a unix socket")
        return lambda: exchange(proxy, destination, timeout)
    return proxy.ping


async def connect(proxy: Proxy, destination: Address) -> str:
    """Connect to a destination."""
    (await proxy.open(destination)).close()
    return f"connected to {destination}"


async def exchange(proxy: Proxy, destination: Address, timeout: float) -> str:
    """Send a datagram until one comes back. The caller sets the deadline."""
    async with proxy.associate() as association:
        while True:
            await association.send(QUESTION, destination)
            try:
                async with asyncio.timeout(timeout / DATAGRAMS):
                    _, sender = await association.receive()
            except TimeoutError:
                continue
            return f"a datagram from {sender}"


# --- asking again and again ---


async def repeat(ask: Ask, shown: Shown, count: int, interval: float, timeout: float) -> None:
    """Ask ``count`` times, or without an end, and show each answer as it comes."""
    began = due = monotonic()
    while True:
        try:
            async with asyncio.timeout(timeout):
                answer = await ask()
        except (TabiError, OSError) as exc:
            shown.failed(reason_of(exc, timeout), monotonic() - began)
        else:
            shown.answered(answer, monotonic() - began)
        if shown.sent == count:
            return
        due = max(due + interval, monotonic())
        await asyncio.sleep(due - monotonic())
        began = monotonic()


class Shown:
    """What was answered, and how it is shown.

    Args:
        who: the proxy.
        as_json: an object a line, in place of text.
        quiet: nothing is shown.
    """

    def __init__(self, who: Target, as_json: bool, quiet: bool) -> None:
        self.name, self.place = who.name, who.place
        self.as_json = as_json
        self.quiet = quiet
        self.sent = self.good = 0
        self.least, self.most, self.total = float("inf"), 0.0, 0.0  # milliseconds

    @property
    def code(self) -> int:
        """The exit code."""
        return 0 if self.sent == self.good and self.sent else 1

    def answered(self, answer: str, seconds: float) -> None:
        """It answered, after so long."""
        milliseconds = seconds * 1000
        self.sent += 1
        self.good += 1
        self.least, self.most = min(self.least, milliseconds), max(self.most, milliseconds)
        self.total += milliseconds
        text = f"{self.name}: answered in {length(milliseconds)} ({answer})"
        self.say(text, {"ok": True, "ms": round(milliseconds, 3), "answer": answer})

    def failed(self, reason: str, seconds: float) -> None:
        """It did not, and why."""
        self.sent += 1
        reason = reason.removeprefix(f"{self.place}: ")
        if self.as_json:
            self.say("", {"ok": False, "ms": round(seconds * 1000, 3), "error": reason})
        elif not self.quiet:
            print(printable(f"tabi: {self.name}: {reason}"), file=sys.stderr, flush=True)

    def summarize(self) -> None:
        """Sum up, if there was more than one."""
        if self.sent < 2 or self.quiet or self.as_json:
            return
        text = f"{self.good} of {self.sent} answered"
        if self.good:
            times = (self.least, self.total / self.good, self.most)
            text += f", in {' / '.join(map(length, times))} (least / mean / most)"
        print(text, flush=True)

    def say(self, text: str, data: dict[str, object]) -> None:
        """Print one line, if any."""
        if not self.quiet:
            print(json.dumps({"url": self.name, **data}) if self.as_json else printable(text), flush=True)


def length(milliseconds: float) -> str:
    """A time for people."""
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def leave(lookups: Executor, code: int) -> None:
    """End at once if the C library still looks for a name: nothing can end that, and Python would wait for it."""
    lookups.shutdown(wait=False, cancel_futures=True)
    for thread in threading.enumerate():
        if thread.name.startswith("tabi-lookup"):
            thread.join(GRACE)
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
