"""All associations of a worker: they begin, are swept and end here, and some share a port."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Hashable
from ipaddress import IPv4Address, IPv6Address
from time import monotonic
from typing import Protocol

from tabi.config import Udp
from tabi.errors import DialError, TabiError
from tabi.net.datagram import get_datagram_io
from tabi.net.dial import Dialer
from tabi.net.reactor import Reactor
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.policy import DestinationPolicy
from tabi.relay.datagram import Association
from tabi.relay.datagram_inspector import DatagramInspector, Inspect, check_inspector, is_plain
from tabi.relay.limited_association import LimitedAssociation
from tabi.relay.protected_association import LimitedProtectedAssociation, ProtectedAssociation
from tabi.relay.shared_port import Departed, Newcomer, SharedPort
from tabi.relay.udp_context import UdpContext
from tabi.relay.udp_egresses import OpenPath
from tabi.relay.udp_sockets import Port
from tabi.session import Close, Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

log = logging.getLogger("tabi")

Done = Callable[[Session], object]
IP = IPv4Address | IPv6Address

WARN_EVERY = 60.0
"""Seconds between two warnings that another process has a shared port."""

SWEEPS = 10
"""Sweeps in the idle limit: a quiet association ends at most a tenth of it late."""


class AssociationFaults(Protocol):
    """What puts faults on associations, see `distort.datagrams`."""

    def begin(self, session: Session) -> None:
        """An association is asked for. Raises TabiError: it is refused."""

    def attach(self, association: Association) -> None:
        """It begins."""


class Associations:
    """Every association of one reactor, and the ports that some of them share.

    Args:
        dialer: asked for names, within its deadline.
        idle: seconds without a datagram in either direction after which an association ends.
        done: called with the session of each association that has ended.
        time: a clock in seconds.
        binding: where datagrams toward destinations come from; None: whatever the system chooses.
        inspector: looks at all datagrams, see `DatagramInspector`. TypeError is raised if it is not a valid inspector.
    """

    def __init__(
        self,
        reactor: Reactor,
        dialer: Dialer,
        idle: float,
        done: Done,
        time: Callable[[], float] = monotonic,
        binding: SourceBinding | None = None,
        inspector: DatagramInspector | None = None,
    ) -> None:
        self.reactor = reactor
        self.idle = idle
        self.done = done
        self.inspector = None if inspector is None else check_inspector(inspector)
        self.faults: AssociationFaults | None = None
        self.context = UdpContext(reactor, get_datagram_io(), dialer, binding, time)
        self.active: set[Association] = set()
        self.shared: dict[tuple[IP, int], SharedPort] = {}
        self.departed: Departed = {}
        self.next_warning = 0.0
        self.interval = max(0.01, idle / SWEEPS)
        self.timer: asyncio.TimerHandle | None = None

    @property
    def controls(self) -> int:
        """Connections that keep associations at proxies open: descriptors in addition to those of the associations."""
        return self.context.controls

    @property
    def binding(self) -> SourceBinding | None:
        """The source of datagrams that go directly; a new value is for future sockets."""
        return self.context.binding

    @binding.setter
    def binding(self, binding: SourceBinding | None) -> None:
        self.context.binding = binding

    def open_port(self, local: Address, udp: Udp, newcomer: Newcomer | None = None) -> Port:
        """A port on the address that a client has connected to: a new one, or the one that all share there.

        ``local`` is that address and the listener's port. A newcomer that cannot be told apart from the others on the
        shared port gets one of its own, and so does everybody while another process has that port: the one that this
        one has taken over from. Raises OSError if no port is free.
        """
        host, number = local
        assert not isinstance(host, str)
        if not udp.shared:
            return Port(self.context, host, udp.port_range)
        port = self.shared.get((host, number))
        if port is None:
            ports = range(number, number + 1)
            try:
                port = SharedPort(self.context, host, ports, self.departed, self.forget)
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                self.warn_taken(number)
                return Port(self.context, host, None)
            self.shared[host, number] = port
        if newcomer is not None and not port.tells_apart(newcomer):
            return Port(self.context, host, None)
        return port

    def warn_taken(self, number: int) -> None:
        """Say that another process has a shared port, at most once a minute."""
        now = monotonic()
        if now >= self.next_warning:
            self.next_warning = now + WARN_EVERY
            log.warning("shared UDP port %d: another process has it; associations get ports of their own", number)

    def forget(self, port: SharedPort) -> None:
        """A port is about to be closed."""
        self.shared = {key: other for key, other in self.shared.items() if other is not port}

    def inspect(self, session: Session, inspector: DatagramInspector | None) -> Inspect | None:
        """Ask an inspector which function inspects the datagrams of an association; None for none.

        Raises TabiError if the association is refused: by a fault, by what the inspector raised, or DialError for its
        failure.
        """
        if self.faults is not None:
            self.faults.begin(session)
        if inspector is None:
            return None
        try:
            found = inspector.begin(session)
            if found is not None and not is_plain(found):
                raise TypeError(f"begin returned {found!r}, expected an ordinary method or None")
            return found
        except TabiError:
            raise
        except Exception as exc:
            log.exception("session %d: the inspector of datagrams raised, the association is refused", session.number)
            raise DialError("the inspector of datagrams failed", ReplyCode.GENERAL_FAILURE) from exc

    def end(self, session: Session, reason: Close, error: str | None = None) -> bool:
        """End the association of a session; False if there is none. ``error`` is for the log's line."""
        for association in self.active:
            if association.session is session:
                association.end(reason, error)
                return True
        return False

    def start(
        self,
        client: Stream,
        port: Port,
        session: Session,
        answer: bytes,
        destination_policy: DestinationPolicy,
        declared: int,
        udp: Udp,
        open_path: OpenPath | None = None,
        opened: tuple[str, UdpPath] | None = None,
        inspect: Inspect | None = None,
        identity: Hashable = None,
    ) -> None:
        """Begin to relay; everything is closed when the association ends, and ``done`` is called.

        Args:
            client: the control connection.
            port: what `open_port` gave, and BND says.
            session: gets the counts and the way it ended.
            answer: the reply, sent first.
            destination_policy: asked for every destination.
            declared: the port that the client will send from, or 0 if it did not say.
            udp: what the listener says about fragments and senders.
            open_path: opens whatever egress the destination policy names.
            opened: one that is connected, by its name.
            inspect: called with each datagram; what `inspect` gave.
            identity: of the client, see `Newcomer`.
        """
        session.drops = {}
        lease = session.lease
        parts = self.context, self.finished, client, port, session, destination_policy, declared, udp, open_path
        kind: type[Association] = Association
        metered = lease is not None and lease.meters
        if session.protection is not None:
            kind = LimitedProtectedAssociation if metered else ProtectedAssociation
        elif metered:
            kind = LimitedAssociation
        association = kind(*parts)
        if inspect is not None:
            association.look_into(inspect)
        if self.faults is not None:
            self.faults.attach(association)
        if opened is not None:
            association.router.use(*opened)
        if lease is not None:
            lease.cut = association.cut
        association.identity = identity
        port.expect(association)
        self.active.add(association)
        if self.timer is None:
            self.timer = self.reactor.loop.call_later(self.interval, self.tick)
        association.start(client, answer)

    def finished(self, association: Association) -> None:
        """Called by each association when it has closed."""
        self.active.discard(association)
        self.done(association.session)

    def tick(self) -> None:
        """Sweep, and again after the interval while there is something to sweep."""
        self.timer = None
        self.sweep(self.context.time())
        if self.active:
            self.timer = self.reactor.loop.call_later(self.interval, self.tick)

    def sweep(self, now: float) -> None:
        """Look at every association once. Many may end: the loop has its turns between them."""

        def look(association: Association) -> None:
            if not association.closed:
                association.sweep(now, self.idle)

        self.reactor.spread(tuple(self.active), look)

    async def close(self, reason: Close) -> None:
        """Close all that are left, and wait for their questions to end."""
        for association in tuple(self.active):
            association.close(reason)
        for port in tuple(self.shared.values()):
            port.close_if_unused()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        await asyncio.gather(*self.context.lookups, return_exceptions=True)
