"""Connections that have not come to their request: their deadline, and how many each client has of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import itemgetter

from tabi.errors import LimitExceeded
from tabi.net.stream import Stream
from tabi.net.timeouts import Expirable, FixedTimeouts
from tabi.policy.clients import ClientTable

LINGER = 2.0
"""Seconds in which a refused client may read the refusal. RFC 1928 section 6 wants the connection closed within 10."""

ENDED_AT_ONCE = 16
"""Connections that end together to make room."""

OLDEST = 1000
"""Connections among which those are chosen: a look at them takes 0.2 ms."""

OLDEST_TLS = 256
"""The same of those inside TLS."""

MAX_TLS = 1024
"""Connections inside TLS that have not come to their request: each takes 47 KiB, or 180 with a large ClientHello."""

PATIENCE = 2.0
"""Seconds that such a connection has at least, as long as there is work to do on others: its client may be far away."""

NO_ROOM = "limit: no room: it had asked for nothing, and others came"


class Handshakes(FixedTimeouts):
    """The deadlines of connections from accept to their request, the oldest first.

    A connection counts for its address, if it has one (`count`), until `stop`. ``linger`` has the clients that were
    refused and may read why, and ``kept`` those that wait for another request. All of these wait for nothing but their
    client, so that some of them can be ended when room is short.
    """

    __slots__ = ("counts", "kept", "keys", "linger", "rows", "table", "tell", "tls")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        super().__init__(loop, seconds)
        self.keys: dict[Expirable, int] = {}
        self.counts: dict[int, int] = {}
        """Connections of each address, by its key."""
        self.table: ClientTable | None = None
        self.rows: dict[Expirable, int] = {}
        """Of the connections that the table counts."""
        self.tls: dict[Expirable, float] = {}
        """Connections that have begun TLS, and when; the oldest first."""
        self.tell: Callable[[str], object] = lambda text: None
        """Called when `begin_tls` ends or refuses some."""
        self.linger = FixedTimeouts(loop, LINGER)
        self.kept: dict[Stream, None] = {}

    def count(self, client: Stream, key: int, row: int | None = None) -> None:
        """A connection counts for the address of this key from now on; ``row`` is that of the table, if it counts."""
        self.keys[client] = key
        self.counts[key] = self.counts.get(key, 0) + 1
        if row is not None:
            self.rows[client] = row

    def stop(self, thing: Expirable) -> None:
        """The request is there, or will not come. Harmless when done twice."""
        self.pending.pop(thing, None)
        key = self.keys.pop(thing, None)
        if key is not None:
            self.uncount(key)
        if self.rows and (row := self.rows.pop(thing, None)) is not None and self.table is not None:
            self.table.asked(row)
        if self.tls:
            self.tls.pop(thing, None)

    def uncount(self, key: int) -> None:
        """One connection less of the address of this key."""
        left = self.counts[key] - 1
        if left:
            self.counts[key] = left
        else:
            del self.counts[key]

    def make_room(self, silent: int) -> list[Stream]:
        """End some connections that wait for their client alone, and return them: those that wait for another request,
        then those that were refused, the oldest first.

        If that is not enough, those that have not come to their request, of the address that has most of them; but
        ``silent`` of these stay, so that what is short of room because of work that is under way still takes new
        clients one after another.
        """
        rested = chain(waiting(self.kept), waiting(self.linger.pending))
        chosen = list(islice(rested, ENDED_AT_ONCE))
        for client in chosen:
            client.expire()
        spare = min(ENDED_AT_ONCE - len(chosen), len(self.pending) - silent)
        if spare > 0:
            oldest = self.of_the_most(list(waiting(self.pending)), spare)
            for client in oldest:
                client.expire(LimitExceeded(NO_ROOM, "room"))
            chosen += oldest
        return chosen

    def begin_tls(self, client: Stream, now: float, busy: bool) -> bool:
        """Let a connection begin TLS, which takes memory: if too many have begun it, others of them end.

        Args:
            client: its stream.
            now: of `time.monotonic`.
            busy: others wait for their turn to compute.

        Returns:
            False if it must wait for them, and then ask again.

        Raises:
            LimitExceeded: it may not, since all that have begun wait for us.
        """
        if len(self.tls) >= MAX_TLS:
            since = now - PATIENCE if busy else now
            stalled = [one for one in waiting(self.tls, OLDEST_TLS) if self.tls[one] <= since]
            for one in self.of_the_most(stalled, ENDED_AT_ONCE):
                self.tls.pop(one)
                one.expire(LimitExceeded(NO_ROOM, "tls"))
            if not stalled and busy:
                return False
            self.tell(f"{MAX_TLS} clients inside TLS have asked for nothing yet")
            if not stalled:
                raise LimitExceeded(f"limit: no room: {MAX_TLS} handshakes of TLS are under way", "tls")
        self.tls[client] = now
        return True

    def of_the_most(self, clients: list[Stream], number: int) -> list[Stream]:
        """So many of these clients at most, the oldest first: those of the address that has most of them."""
        keys = [self.keys.get(client) for client in clients]
        most = max(Counter(keys).items(), key=itemgetter(1), default=(None, 0))[0]
        return [client for client, key in zip(clients, keys, strict=True) if key == most][:number]

    def close(self) -> None:
        """Stop the timers; nothing expires any more."""
        super().close()
        self.linger.close()


def waiting(things: Iterable[Expirable], oldest: int = OLDEST) -> Iterator[Stream]:
    """Those of the oldest connections where something waits for the client alone, and was not ended yet."""
    for thing in islice(things, oldest):
        if isinstance(thing, Stream) and not thing.expired and thing.is_awaited:
            yield thing
