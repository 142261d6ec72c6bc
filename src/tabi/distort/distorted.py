"""Distorted: one relay with stages of entries, and the pair of sockets that is behind it in front of other carriers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from typing import Any

from tabi.distort.draws import Drawn, Entry
from tabi.distort.streams import stages_of
from tabi.net.pair import open_pair
from tabi.relay.relay import Relay
from tabi.relay.relays import Relays
from tabi.relay.stage import Stage
from tabi.session import Session

BUFFER, SMALL_BUFFER = 1 << 17, 1 << 15
"""SO_SNDBUF and SO_RCVBUF of a pair, which the kernel doubles. What waits there has passed, for its sender: so they are
smaller where bandwidth is limited."""

IN_BUFFERS = 0.05
"""Seconds of limited bandwidth that they have room for."""


class PairSock(socket.socket):
    """An end of a pair that has the addresses of the connection in whose place it is."""

    names: tuple[Any, Any]

    def getsockname(self) -> Any:
        """See `socket.socket`."""
        return self.names[0]

    def getpeername(self) -> Any:
        """See `socket.socket`. Raises OSError where it is not connected."""
        super().getpeername()
        return self.names[1]


def named(sock: socket.socket, names: tuple[Any, Any]) -> PairSock:
    """The same socket, with other addresses."""
    found = PairSock(sock.family, sock.type, sock.proto, fileno=sock.detach())
    found.setblocking(False)
    found.names = names
    return found


def names_of(sock: Any) -> tuple[Any, Any]:
    """The addresses of a connection. Raises OSError if it is not connected any more."""
    return sock.getsockname(), sock.getpeername()


def open_pair_for(chosen: Iterable[Drawn]) -> tuple[socket.socket, socket.socket]:
    """A pair for faults. Raises OSError."""
    ends = open_pair()
    size = buffers_for(drawn.entry for drawn in chosen)
    for sock in ends:
        set_buffers(sock, size)
    return ends


def buffers_for(entries: Iterable[Entry]) -> int:
    """The size of the buffers of a pair on which entries act."""
    return min(map(buffer_for, entries), default=BUFFER)


def buffer_for(entry: Entry) -> int:
    """The size of the buffers of a pair on which an entry acts."""
    rates = [line.bandwidth for line in (entry.fault.up, entry.fault.down) if line.bandwidth]
    return min(BUFFER, max(SMALL_BUFFER, int(min(rates) * IN_BUFFERS))) if rates else BUFFER


def set_buffers(sock: Any, size: int) -> None:
    """Set the size of a socket's buffers."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


class Distorted:
    """One session, or one connection to a destination, with entries that act on its octets.

    Args:
        session: whose it is.
        relays: have the relay with the stages.
        key: by which they have it: the session itself, or a copy that counts nothing.
        from_client: whether that relay is the client's connection; else it is the destination's.
        behind: the descriptor of the pair's other end; -1 without a pair.
    """

    __slots__ = ("behind", "buffers", "drawn", "from_client", "key", "loop", "relays", "session", "stages")

    def __init__(
        self, session: Session, relays: Relays, key: Session, from_client: bool = True, behind: int = -1
    ) -> None:
        self.session = session
        self.relays = relays
        self.loop: asyncio.AbstractEventLoop = relays.reactor.loop
        self.key = key
        self.from_client = from_client
        self.behind = behind
        self.drawn: list[Drawn] = []
        self.buffers = BUFFER
        """The size of those of our end of the pair."""
        self.stages: dict[Entry, list[tuple[int, Stage]]] = {}

    @property
    def relay(self) -> Relay | None:
        """Its relay, while it runs."""
        return self.relays.get(self.key)

    def prepare(self, chosen: Iterable[Drawn]) -> list[tuple[int, Stage]]:
        """The stages to begin with: those of the entries that act now."""
        now = self.loop.time()
        found = []
        self.buffers = buffers_for(drawn.entry for drawn in chosen)
        for drawn in chosen:
            self.drawn.append(drawn)
            drawn.entry.active += 1
            if drawn.entry.acts(now):
                self.stages[drawn.entry] = stages = stages_of(drawn)
                found += stages
        return found

    def add(self, drawn: Drawn) -> None:
        """One more entry acts on it from now on."""
        if self.relay is None:
            return
        self.drawn.append(drawn)
        drawn.entry.active += 1
        self.update(drawn)

    def update(self, drawn: Drawn) -> None:
        """Put the stages of an entry on, if it acts now, in place of those that it had."""
        entry = drawn.entry
        self.take_off(entry)
        relay = self.relay
        if relay is None or not entry.acts(self.loop.time()):
            return
        self.stages[entry] = stages = stages_of(drawn)
        self.fit_buffers(relay)
        for direction, stage in stages:
            if relay.closed:
                return
            relay.add_stage(direction, stage)

    def look(self, drawn: Drawn, acts: bool) -> None:
        """Put the stages of an entry on, or take them off, unless that was done."""
        if acts != (drawn.entry in self.stages):
            self.update(drawn)

    def renew(self, entry: Entry) -> None:
        """An entry has another fault."""
        for drawn in self.drawn:
            if drawn.entry is entry:
                self.update(drawn)
                return

    def fit_buffers(self, relay: Relay) -> None:
        """Have the buffers of our end of a pair as small as the entries that act now want them."""
        size = buffers_for(self.stages)
        if self.key is not self.session and size != self.buffers:
            self.buffers = size
            set_buffers(relay.up.sink if self.from_client else relay.up.source, size)

    def take_off(self, entry: Entry) -> None:
        """Take the stages of an entry off, if they are on: what they hold goes out."""
        relay, stages = self.relay, self.stages.pop(entry, None)
        for _, stage in stages or ():
            if relay is not None and not relay.closed:
                relay.remove_stage(stage)
        if stages and relay is not None and not relay.closed:
            self.fit_buffers(relay)

    def forget(self, entry: Entry) -> None:
        """An entry acts on it no more."""
        self.take_off(entry)
        kept = [drawn for drawn in self.drawn if drawn.entry is not entry]
        entry.active -= len(self.drawn) - len(kept)
        self.drawn = kept

    def over(self) -> None:
        """It has ended."""
        for drawn in self.drawn:
            drawn.entry.active -= 1
        self.drawn = []
        self.stages.clear()
