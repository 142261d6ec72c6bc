"""All associations of a worker: they begin, are swept and end here, and some share a port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address, IPv6Address
from time import monotonic
from typing import Any, TypeVar

from tabi.config import Udp
from tabi.net.datagram import get_mail
from tabi.net.dial import Dialer
from tabi.net.hops import Hops
from tabi.net.reactor import Reactor
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.policy.policy import Judge
from tabi.relay.datagram import Association
from tabi.relay.ends import Port
from tabi.relay.exits import OpenWay
from tabi.relay.limited_association import LimitedAssociation
from tabi.session import Close, Session
from tabi.wire.address import Address

Done = Callable[[Session], object]
T = TypeVar("T")
IP = IPv4Address | IPv6Address

SWEEPS = 10
"""Sweeps in the idle limit: a quiet association ends at most a tenth of it late."""


class Associations:
    """Every association of one reactor, and the ports that some of them share.

    Args:
        dialer: asked for names, within its deadline.
        idle: seconds without a datagram in either direction after which an association ends.
        done: called with the session of each association that has ended.
        time: a clock in seconds.
        origin: where datagrams toward destinations come from; None: whatever the system chooses.
    """

    def __init__(
        self,
        reactor: Reactor,
        dialer: Dialer,
        idle: float,
        done: Done,
        time: Callable[[], float] = monotonic,
        origin: SourceBinding | None = None,
    ) -> None:
        self.reactor = reactor
        self.dialer = dialer
        self.idle = idle
        self.done = done
        self.time = time
        self.origin = origin
        self.mail = get_mail()
        self.buffer = bytearray(4096)
        self.controls = 0  # connections that keep associations at proxies open
        self.held = 0  # octets of payload that wait for the rest of a datagram, or for the resolver
        self.active: set[Association] = set()
        self.lookups: set[asyncio.Task[Any]] = set()
        self.shared: dict[tuple[IP, int], Port] = {}
        self.interval = max(0.01, idle / SWEEPS)
        self.timer: asyncio.TimerHandle | None = None

    def open_port(self, local: Address, udp: Udp) -> Port:
        """A port on the address that a client has connected to: a new one, or the one that all share there.

        ``local`` is that address and the listener's port. Raises OSError where none is free.
        """
        host, number = local
        assert not isinstance(host, str)
        if not udp.shared:
            return Port(self, host, udp.port_range, shared=False)
        port = self.shared.get((host, number))
        if port is None:
            port = self.shared[host, number] = Port(self, host, range(number, number + 1), shared=True)
        return port

    def forget(self, port: Port) -> None:
        """A port is about to be closed."""
        self.shared = {key: other for key, other in self.shared.items() if other is not port}

    def start(
        self,
        client: Stream,
        port: Port,
        session: Session,
        answer: bytes,
        judge: Judge,
        declared: int,
        udp: Udp,
        open_way: OpenWay | None = None,
        opened: tuple[str, Hops] | None = None,
    ) -> None:
        """Begin to relay; everything is closed when the association ends, and ``done`` is called.

        Args:
            client: the control connection.
            port: what `open_port` gave, and BND says.
            session: gets the counts and the way it ended.
            answer: the reply, sent first.
            judge: asked for every destination.
            declared: the port that the client will send from, or 0 where it did not say.
            udp: what the listener says about fragments and senders.
            open_way: opens whatever way out the judge names.
            opened: one that is connected, by its name.
        """
        session.drops = {}
        lease = session.lease
        kind = Association if lease is None or not lease.meters else LimitedAssociation
        association = kind(self, client, port, session, judge, declared, udp, self.time(), open_way)
        if opened is not None:
            association.use(*opened)
        if lease is not None:
            lease.cut = association.cut
        port.expect(association)
        self.active.add(association)
        if self.timer is None:
            self.timer = self.reactor.loop.call_later(self.interval, self.tick)
        association.start(client, answer)

    def look_up(self, lookup: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a question, to the resolver or a proxy, in a task that `close` waits for."""
        task = asyncio.Task(lookup, loop=self.reactor.loop)
        self.lookups.add(task)
        task.add_done_callback(self.lookups.discard)
        return task

    def finished(self, association: Association) -> None:
        """Called by each association when it has closed."""
        self.active.discard(association)
        self.done(association.session)

    def tick(self) -> None:
        """Sweep, and again after the interval while there is something to sweep."""
        self.timer = None
        self.sweep(self.time())
        if self.active:
            self.timer = self.reactor.loop.call_later(self.interval, self.tick)

    def sweep(self, now: float) -> None:
        """Look at every association once."""
        for association in tuple(self.active):
            association.sweep(now, self.idle)

    async def close(self, reason: Close) -> None:
        """Close all that are left, and wait for their questions to end."""
        for association in tuple(self.active):
            association.close(reason)
        for port in tuple(self.shared.values()):
            port.close_if_unused()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        await asyncio.gather(*self.lookups, return_exceptions=True)
