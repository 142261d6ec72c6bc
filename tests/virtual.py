"""A relay without sockets and without waiting: its clock goes where a test puts it.

The relay and its flows are those of `relay`; sockets, reactor and loop are doubles. So each stage meets what it meets
in a server: short reads, a sink that takes nothing, an end, a reset.
"""

from __future__ import annotations

import heapq
import itertools
import socket
from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Any, cast

from tabi.net.reactor import ERR, HUP, IN, OUT, RDHUP
from tabi.policy.limits import DOWN, UP
from tabi.relay.pipes import BUFFER_SIZE
from tabi.relay.relay import Relay
from tabi.relay.relays import Relays
from tabi.relay.stage import Stage
from tabi.relay.staged import StagedFlow
from tabi.session import Session
from tabi.wire.address import Address

PLENTY = 1 << 40


class Timer:
    """What `call_at` returns."""

    def __init__(self, callback: Callable[..., object]) -> None:
        self.callback: Callable[..., object] | None = callback

    def cancel(self) -> None:
        """Never call it."""
        self.callback = None


class Loop:
    """A clock with timers."""

    def __init__(self, now: float = 0.1) -> None:
        self.now = now
        self.timers: list[tuple[float, int, Timer]] = []
        self.numbers = itertools.count()

    def time(self) -> float:
        """Seconds."""
        return self.now

    def call_at(self, when: float, callback: Callable[..., object]) -> Timer:
        """See asyncio."""
        timer = Timer(callback)
        heapq.heappush(self.timers, (when, next(self.numbers), timer))
        return timer


class Sock:
    """One side's connection, at the proxy. ``inbox`` is what the peer has sent and nobody has read.

    ``room`` is how many octets it takes now.
    """

    def __init__(self) -> None:
        self.inbox = bytearray()
        self.sent = bytearray()
        self.sizes: list[int] = []
        """Of all that was sent."""
        self.times: list[float] = []
        self.room = PLENTY
        self.peer_ended = self.peer_reset = False
        self.shut = self.closed = self.reset = False
        self.clock: Callable[[], float] = float

    def recv_into(self, buffer: memoryview | bytearray) -> int:
        """See socket(7)."""
        if self.peer_reset:
            raise ConnectionResetError(104, "Connection reset by peer")
        count = min(len(self.inbox), len(buffer))
        if not count:
            if self.peer_ended:
                return 0
            raise BlockingIOError
        buffer[:count] = self.inbox[:count]
        del self.inbox[:count]
        return count

    def send(self, data: bytes | memoryview) -> int:
        """See socket(7)."""
        assert not self.closed
        assert not self.shut
        count = min(len(data), self.room)
        if not count:
            raise BlockingIOError
        self.room -= count
        self.sent += data[:count]
        self.sizes.append(count)
        self.times.append(self.clock())
        return count

    def setsockopt(self, *arguments: object) -> None:
        """The only option that a relay sets."""
        assert arguments[:2] == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.reset = True

    def shutdown(self, how: int) -> None:
        """The peer sees an end."""
        self.shut = True

    def close(self) -> None:
        """The peer sees an end, or a reset."""
        self.closed = True

    @property
    def outbox(self) -> bytes:
        """What the peer has got."""
        return bytes(self.sent)

    @property
    def said(self) -> str:
        """What the peer sees now."""
        return "reset" if self.reset and self.closed else "end" if self.shut or self.closed else "open"


class Reactor:
    """What a relay asks of a reactor. With ``busy`` each turn's time is used up at once."""

    edge_triggered = True

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.postponed: deque[Callable[[], object]] = deque()
        self.handlers: dict[int, Callable[[int], object]] = {}
        self.socks: dict[int, Sock] = {}
        self.muted: set[int] = set()
        self.busy = False

    def replace(self, fd: int, handler: Callable[[int], object]) -> None:
        """See `Reactor`; so for the others."""
        self.handlers[fd] = handler

    def later(self, callback: Callable[[], object]) -> None:
        self.postponed.append(callback)

    def late(self) -> bool:
        return self.busy

    def mute(self, fd: int, muted: bool) -> None:
        (self.muted.add if muted else self.muted.discard)(fd)
        if muted and self.socks[fd].peer_reset:  # what epoll reports is told again if the registration changes
            self.later(lambda: self.socks[fd].closed or self.handlers[fd](ERR | HUP | RDHUP))

    def send_at_end(self, send: Callable[[bytes], object], data: bytes) -> None:
        send(data)

    def flush(self) -> None:
        """There is nothing."""

    def close(self, sock: Sock) -> None:
        sock.close()


class Pipes:
    """No pipes: what has stages that see octets is copied."""

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_SIZE)
        self.view = memoryview(self.buffer)

    def take(self) -> None:
        """There is none."""


class Near:
    """A stream."""

    def __init__(self, sock: Sock, fd: int) -> None:
        self.sock = sock
        self.fd = fd
        self.events = OUT


class Owner:
    """The relays of a worker."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.pipes = Pipes()
        self.over = 0

    def finished(self, relay: Relay) -> None:
        """Called at the end."""
        self.over += 1


class Net:
    """A client, a relay and a server.

    Args:
        stages: to begin with.
        staged: whether the relay has flows for stages, although there are none to begin with.
    """

    CLIENT, SERVER = 10, 11

    def __init__(self, stages: Iterable[tuple[int, Stage]] = (), staged: bool = True) -> None:
        self.loop = Loop()
        self.reactor = Reactor(self.loop)
        self.owner = Owner(self.reactor)
        self.client, self.server = Sock(), Sock()
        self.reactor.socks = {self.CLIENT: self.client, self.SERVER: self.server}
        self.client.clock = self.server.clock = self.loop.time
        self.session = Session(1, "test", Address(IPv4Address("127.0.0.1"), 1), 0.0)
        near: list[Any] = [Near(self.client, self.CLIENT), Near(self.server, self.SERVER)]
        relays = cast("Relays", self.owner)
        self.relay = Relay(relays, near[0], near[1], self.session, self.loop.now, staged)
        self.relay.put_on(stages)
        self.relay.start(near[0], near[1], b"", b"")
        self.turns()

    @property
    def up(self) -> StagedFlow:
        """The flow from the client."""
        assert isinstance(self.relay.up, StagedFlow)
        return self.relay.up

    # --- what peers do ---

    def send(self, data: bytes = b"", end: bool = False, direction: int = UP) -> None:
        """The client, or the server, sends something, and its end."""
        sock = self.client if direction == UP else self.server
        sock.inbox += data
        sock.peer_ended = sock.peer_ended or end
        self.tell(direction, (IN if data else 0) | (IN | RDHUP if end else 0))

    def reset(self, direction: int = UP) -> None:
        """It resets its connection."""
        (self.client if direction == UP else self.server).peer_reset = True
        self.tell(direction, IN | ERR | HUP | RDHUP)

    def read(self, room: int = PLENTY, direction: int = UP) -> None:
        """The server reads what the client has sent, or the client what the server has: there is room again."""
        (self.server if direction == UP else self.client).room = room
        self.tell(DOWN if direction == UP else UP, OUT)

    def tell(self, direction: int, events: int) -> None:
        """An event of a connection, and the turns that follow."""
        fd = self.CLIENT if direction == UP else self.SERVER
        if fd in self.reactor.muted:
            events &= ~IN
        if events and not self.relay.closed:
            self.reactor.handlers[fd](events)
        self.turns()

    # --- time ---

    def turn(self) -> bool:
        """One turn of the reactor: what was put off before it; whether there was something."""
        count = len(self.reactor.postponed)
        for _ in range(count):
            self.reactor.postponed.popleft()()
        return count > 0

    def turns(self, most: int = 100_000) -> int:
        """Turns until nothing is left to do; how many."""
        for number in range(most):
            if not self.turn():
                return number
        raise AssertionError("it goes on for ever")

    def advance(self, seconds: float) -> None:
        """Let time go by: each timer is called at its time."""
        until = self.loop.now + seconds
        while self.loop.timers and self.loop.timers[0][0] <= until:
            when, _, timer = heapq.heappop(self.loop.timers)
            self.loop.now = max(self.loop.now, when)
            if timer.callback is not None:
                timer.callback()
                self.turns()
        self.loop.now = until

    def finish(self, most: int = 100_000) -> None:
        """Call timers until there is none."""
        for _ in range(most):
            if not any(timer.callback for _, _, timer in self.loop.timers):
                return
            self.advance(max(0.0, self.loop.timers[0][0] - self.loop.now))
        raise AssertionError("it goes on for ever")
