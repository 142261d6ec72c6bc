"""How many connections each client's address may have, and which of all go when there is no room for more.

An address that has too many gets no more: they are reset as soon as they are accepted. What holds of one worker is
counted in it: a share of its room. What is a number holds of all together, in a table that the workers share.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import IPv4Address, IPv6Address
from time import monotonic_ns
from typing import Any

from tabi.config import LimitsConfig, PerClient
from tabi.errors import LimitExceeded
from tabi.net.handshakes import Handshakes
from tabi.net.stream import RESET, Stream
from tabi.observe.metrics import Metrics
from tabi.policy.clients import ClientTable, ClientTerms, key_of
from tabi.policy.ledger import Ledger
from tabi.server.arrivals import Arrival
from tabi.session import Session
from tabi.wire.address import Address

log = logging.getLogger("tabi")

SAY_EVERY = 10.0
"""Seconds between two messages of one kind: what happens meanwhile is counted."""

SILENT = 8
"""One of so many sessions that there is room for may be a connection that has not come to its request, however short
the room is."""


LEAST = 8
"""Connections that an address may always have before they come to their request, however little room there is: a
browser begins six at once."""


class Repeated:
    """Messages that an attacker could cause by the thousand: the first of each kind at once, the others in sums.

    Args:
        loop: whose timer is used.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.more: dict[str, tuple[int, str]] = {}
        """By kind, how many were not told yet, and the last one."""
        self.timer: asyncio.TimerHandle | None = None

    def say(self, kind: str, text: str) -> None:
        """Tell of one, now or later."""
        if kind in self.more:
            self.more[kind] = self.more[kind][0] + 1, text
            return
        self.more[kind] = 0, text
        log.warning("%s", text)
        if self.timer is None:
            self.timer = self.loop.call_later(SAY_EVERY, self.tick)

    def tick(self) -> None:
        """Tell what has come together; a kind of which nothing came begins anew."""
        self.timer = None
        self.more = {kind: found for kind, found in self.more.items() if found[0]}
        for kind, (count, text) in self.more.items():
            log.warning("%s; so %d times in %g s", text, count, SAY_EVERY)
            self.more[kind] = 0, text
        if self.more:
            self.timer = self.loop.call_later(SAY_EVERY, self.tick)

    def close(self) -> None:
        """Tell the rest, and stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.tick()
        if self.timer is not None:
            self.timer.cancel()


def reset(sock: Any) -> None:
    """Close a connection so that the kernel keeps nothing of it either."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


class Clients:
    """The addresses of one server's clients.

    Args:
        handshakes: of all connections.
        capacity: sessions that there is room for.
        ledger: has the table.
        metrics: count what is refused.
    """

    def __init__(self, handshakes: Handshakes, capacity: int, ledger: Ledger, metrics: Metrics) -> None:
        self.handshakes = handshakes
        self.counts = handshakes.counts
        self.capacity = capacity
        self.ledger = ledger
        self.metrics = metrics
        self.repeated = Repeated(handshakes.loop)
        handshakes.tell = lambda text: self.repeated.say("tls", f"accept: no room: {text}: the oldest end")
        self.table: ClientTable | None = None
        self.rows: dict[Session, int] = {}
        """Of the sessions that the table counts."""
        self.take(None)

    def take(self, limits: LimitsConfig | None) -> None:
        """Take other limits for new connections."""
        settings = (None if limits is None else limits.per_client) or PerClient()
        share = settings.unauthenticated
        self.most = share.number or max(LEAST, share.of(self.capacity))
        self.too_many = f"{self.most} connections that have asked for nothing"
        if not share.number:
            self.too_many += f" ({share} of the room)"
        # Where there is one worker alone, it has counted them.
        waiting = share.number if share.number and self.ledger.shared else None
        self.terms: ClientTerms | None = ClientTerms(settings.connections, waiting, settings.connect_rate)
        if self.terms == ClientTerms():
            self.terms = None
        elif self.table is None:
            self.table = self.handshakes.table = self.ledger.clients

    def admit(self, host: IPv4Address | IPv6Address) -> tuple[int, int | None]:
        """Let a connection begin: the key of its address, and its row if the table counts it.

        Raises:
            LimitExceeded: its address has too many.
        """
        key = key_of(host)
        if self.counts.get(key, 0) >= self.most:
            raise LimitExceeded(self.too_many, "unauthenticated")
        if self.terms is None:
            return key, None
        assert self.table is not None
        return key, self.table.admit(key, self.terms, monotonic_ns())

    def begin(self, client: Stream, session: Session, key: int, row: int | None) -> None:
        """Count what `admit` has let in."""
        self.handshakes.count(client, key, row)
        if row is not None:
            self.rows[session] = row

    def wait(self, arrival: Arrival) -> None:
        """Count a connection while it waits for its session to begin."""
        if arrival.admitted is not None:
            key = arrival.admitted[0]
            self.counts[key] = self.counts.get(key, 0) + 1

    def leave(self, arrival: Arrival) -> None:
        """It waits no more."""
        if arrival.admitted is not None:
            self.handshakes.uncount(arrival.admitted[0])

    def give_up(self, arrival: Arrival) -> None:
        """Reset a connection whose session does not begin."""
        row = None if arrival.admitted is None else arrival.admitted[1]
        if row is not None and self.table is not None:
            self.table.asked(row)
            self.table.ended(row)
        reset(arrival.sock)

    def arrived(self, client: Stream, session: Session) -> None:
        """A PROXY header has named the client. Raises LimitExceeded as `admit`, after it was told."""
        host = session.client.host
        assert not isinstance(host, str)
        try:
            self.begin(client, session, *self.admit(host))
        except LimitExceeded as exc:
            session.silent = True  # there may be many of them
            self.tell(session.client, exc)
            raise LimitExceeded(f"limit: {session.client.host}: {exc}", exc.limit) from None

    def refuse(self, sock: Any, peer: Address, exc: LimitExceeded) -> None:
        """Reset a connection that is too much: the kernel keeps nothing of it either."""
        reset(sock)
        self.tell(peer, exc)

    def tell(self, peer: Address, exc: LimitExceeded) -> None:
        """Say that a connection was refused."""
        self.metrics.count("tabi_limited_total", limit=exc.limit)
        self.repeated.say(exc.limit, f"accept: {peer.host} is refused: limit: per_client: {exc}")

    def ended(self, session: Session) -> None:
        """The connection of a session is over."""
        row = self.rows.pop(session, None)
        if row is not None:
            assert self.table is not None
            self.table.ended(row)

    def make_room(self) -> bool:
        """End connections that wait for their client alone, if there are any. See `net.listen.MakeRoom`."""
        ended = self.handshakes.make_room(self.capacity // SILENT)
        for _ in ended:
            self.metrics.count("tabi_limited_total", limit="room")
            self.repeated.say("room", "accept: no room: connections that had asked for nothing, or rested, were ended")
        return bool(ended)

    def close(self) -> None:
        """Stop the timer, and forget what the table counts."""
        self.repeated.close()
        for session in list(self.rows):
            self.ended(session)
