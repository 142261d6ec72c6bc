"""What the associations of one reactor share: handed to each of them, and by them to their sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tabi.net.datagram import DatagramIo
from tabi.net.dial import Dialer
from tabi.net.reactor import Reactor
from tabi.net.source import SourceBinding

T = TypeVar("T")

MEMORY = 16 << 20
"""Octets of payload that wait in all associations together: for the resolver, the rest of a datagram, or their time."""


class HeldMemory:
    """Counts the octets of payload that wait somewhere, of which there are MEMORY at most."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0

    def has_room(self, octets: int) -> bool:
        """Whether so many more may wait."""
        return self.held + octets <= MEMORY


class UdpContext:
    """What an association needs and does not own.

    Args:
        reactor: calls its sockets.
        io: receives and sends for all of them.
        dialer: asked for names, within its deadline.
        binding: where datagrams that go directly come from; None: whatever the system chooses.
        time: a clock in seconds.
    """

    __slots__ = ("binding", "buffer", "controls", "dialer", "io", "lookups", "memory", "reactor", "time")

    def __init__(
        self, reactor: Reactor, io: DatagramIo, dialer: Dialer, binding: SourceBinding | None, time: Callable[[], float]
    ) -> None:
        self.reactor = reactor
        self.io = io
        self.dialer = dialer
        self.binding = binding
        self.time = time
        self.memory = HeldMemory()
        self.buffer = bytearray(4096)  # what clients say on their control connections, and nobody reads
        self.controls = 0  # connections that keep associations at proxies open
        self.lookups: set[asyncio.Task[Any]] = set()

    def look_up(self, lookup: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a question, to the resolver or a proxy, in a task that `Associations.close` waits for."""
        task = asyncio.Task(lookup, loop=self.reactor.loop)
        self.lookups.add(task)
        task.add_done_callback(self.lookups.discard)
        return task
