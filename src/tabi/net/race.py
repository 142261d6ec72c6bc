"""A race of connections to several addresses of one destination: Happy Eyeballs (RFC 8305 section 5).

Each attempt has a head start before the next. An attempt that fails starts the next one at once. The first that is open
wins, and the others are closed. An attempt is a socket with a handler: there is one task, the caller's, and at most one
timer, for any number of addresses.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import zip_longest

from tabi.errors import DialError
from tabi.net.failures import connect_error, most_telling
from tabi.net.reactor import BROKEN, OUT, Reactor
from tabi.net.readiness import Readiness
from tabi.net.stream import RESET, WRITABLE, Stream

IP = IPv4Address | IPv6Address

HEAD_START = 0.25
"""Seconds that an attempt has before the next one begins: the Connection Attempt Delay of RFC 8305 section 8."""

FIRST_PORT = 1024
"""The system chooses no port below this one for a connection (ip(7), ip_local_port_range)."""

BURST = 16
"""Attempts that may fail at once, one after the other, before other tasks run: a name may have many addresses."""


class Race:
    """Attempts at several addresses, which a deadline may `expire`.

    Args:
        reactor: on which the streams live.
        start: begins to connect to an address; ``events`` of its stream are OUT where that is done already. Raises
            DialError.
        what: the destination, for errors.
    """

    __slots__ = ("expired", "failures", "reactor", "running", "start", "waiter", "what", "winner")

    def __init__(self, reactor: Reactor, start: Callable[[IP], Stream], what: object) -> None:
        self.reactor = reactor
        self.start = start
        self.what = what
        self.waiter = Readiness(reactor.loop)
        self.running: set[Stream] = set()
        self.failures: list[DialError] = []
        self.winner: Stream | None = None
        self.expired = False

    async def run(self, first: Stream | DialError, others: Sequence[IP]) -> Stream:
        """Go on from the first attempt, which is under way or has failed; from now on the race owns it.

        Raises:
            DialError: no address could be connected to; it is the error that says most about the destination.
            TimeoutError: the race has expired.
            OSError: no socket can be used, for any address.
        """
        try:
            waiting = self.add(first)
            del first
            for address in others:
                if waiting:
                    await self.head_start()
                if self.winner is not None:
                    break
                waiting = self.begin(address)
                if not waiting and not len(self.failures) % BURST:
                    await self.reactor.next_turn()
            while self.running and self.winner is None:
                await self.wait()
            if self.winner is None:
                raise most_telling(self.failures)
            self.running.remove(self.winner)
            self.reactor.replace(self.winner.fd, self.winner.on_ready)
            return self.winner
        finally:
            for stream in self.running:
                stream.close()
            self.failures.clear()  # of what is raised, the traceback has this frame: a circle

    def begin(self, address: IP) -> bool:
        """Begin with the next address; returns whether that has to be waited for."""
        try:
            return self.add(self.start(address))
        except DialError as exc:
            return self.add(exc)

    def add(self, attempt: Stream | DialError) -> bool:
        """Check an attempt; returns whether it has to be waited for."""
        if isinstance(attempt, DialError):
            self.failures.append(attempt.with_traceback(None))
            return False
        self.running.add(attempt)
        if attempt.events:
            self.winner = self.winner or attempt
            return False
        self.reactor.replace(attempt.fd, partial(self.on_ready, attempt))
        self.reactor.watch(attempt.fd, OUT)
        return True

    def on_ready(self, stream: Stream, events: int) -> None:
        """The reactor's handler of each attempt: it is connected, or has failed."""
        stream.events |= events
        if self.winner is not None or not events & WRITABLE:
            return
        self.reactor.watch(stream.fd, 0)
        number = find_failure(stream) or find_itself(stream)
        if number:
            self.failures.append(connect_error(number, self.what))
            self.running.remove(stream)
            stream.close()
        else:
            self.winner = stream
        if self.waiter.callback is not None:
            self.waiter.wake()

    async def head_start(self) -> None:
        """Wait until the next attempt may begin: one has failed or is open, or this one has had its time."""
        timer = self.reactor.loop.call_later(HEAD_START, self.waiter.wake_soon)
        try:
            await self.wait()
        finally:
            timer.cancel()

    async def wait(self) -> None:
        """Wait for the next event. Raises TimeoutError if the race has expired."""
        if not self.expired and self.winner is None:
            await self.waiter
        if self.expired and self.winner is None:
            raise TimeoutError("the deadline is over")

    def expire(self) -> None:
        """End the race, now or as soon as it waits. Called by a deadline."""
        self.expired = True
        self.waiter.wake_soon()


def find_failure(stream: Stream) -> int:
    """The system's error number of a connection that was begun; 0: it is open."""
    if stream.events & BROKEN or not stream.reactor.edge_triggered:  # levels do not tell BROKEN from OUT
        return stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return 0


def find_itself(stream: Stream) -> int:
    """ECONNREFUSED for a connection that TCP has made to itself, else 0.

    Where nobody listens on a port of this machine, the system may choose that very port for the connection, and a
    socket that connects to itself is open (simultaneous open, RFC 9293 section 3.5).
    """
    peer = stream.peer
    if peer is None or peer.port < FIRST_PORT:
        return 0
    own = stream.local = stream.sock.getsockname()
    if own[1] != peer.port:
        return 0
    try:
        if own != stream.sock.getpeername():
            return 0
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # else the port would stay taken for a while
        return errno.ECONNREFUSED
    except OSError as exc:  # it was reset since
        return exc.errno or errno.EIO


def interleave(addresses: Sequence[IP]) -> list[IP]:
    """The families in turn, the first one's first, each in the order that it has (RFC 8305 section 4)."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    return [address for pair in zip_longest(first, second) for address in pair if address is not None]
