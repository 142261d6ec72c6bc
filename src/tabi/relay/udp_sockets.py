"""The two ends of an association: the port that its client sends to, and its sockets toward destinations.

Each is a UDP socket with a handler of the reactor, which takes a batch, finds the association of each run, passes it
on, and stops after its share of the turn.

Hot path: benchmarks/compare pays for every line of `on_ready` with each batch (udp) and each association (voices).
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, ClassVar

from tabi.net.batch import BATCH, Run, Sock
from tabi.net.datagram import Inbox, overflow
from tabi.net.listen import bind_port
from tabi.net.reactor import IN
from tabi.net.sockaddr import decode_sockaddr, ip_octets
from tabi.net.source import SourceBinding
from tabi.wire.address import Address
from tabi.wire.datagram import MAX_DATAGRAM, encode_header

if TYPE_CHECKING:
    from tabi.relay.datagram import Association
    from tabi.relay.udp_context import UdpContext

IP = IPv4Address | IPv6Address

SHARE = 1 << 20
"""What one socket may cost in one turn of the reactor, in octets, if the turn has time; then the others have theirs."""

COST, COST_APART = 512, 8192
"""What a datagram costs in addition to its octets, and one that must be taken apart, in the time that octets take."""

MAX_SENDERS = 1024
"""Senders whose header an association remembers; beyond that it forgets the oldest."""

IPV4_HEADER = 10
"""Octets of the header that most datagrams have."""

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)


def family_of(host: IP) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if host.version == 4 else AF_INET6


class Port:
    """The UDP socket that the client of one association sends to; `SharedPort` is one for many.

    A client is pinned to its address and port: the IP address of its control connection, and the port that it declared
    or else that of its first datagram (C17 of docs/conformance.md). Datagrams from others are dropped and counted.
    """

    __slots__ = (
        "clients",
        "closed",
        "expected",
        "inbox",
        "number",
        "outbox",
        "queued",
        "reactor",
        "sock",
        "split",
        "wrong_source",
    )

    def __init__(self, context: UdpContext, host: IP, ports: range | None) -> None:
        family, io = family_of(host), context.io
        self.reactor = context.reactor
        self.inbox, self.outbox = io.headed[family], io.outbox
        self.split = IPV4_HEADER
        self.wrong_source = 0
        self.queued = self.closed = False
        self.clients: dict[bytes, Association] = {}  # by sockaddr
        # Associations that have not sent yet: by IP address and declared port, the oldest first.
        self.expected: dict[tuple[bytes, int], dict[Association, None]] = {}
        self.sock = io.open_socket(family, headed=True)
        try:
            bind_port(self.sock, str(host), ports)
            self.number: int = self.sock.getsockname()[1]
            self.reactor.register_reader(self.sock.fileno(), self.on_ready)
        except BaseException:
            self.sock.close()
            raise

    def on_ready(self, events: int = IN) -> None:
        """The reactor's handler: carry what clients have sent, or as much as the share allows."""
        if self.queued or self.closed:
            return
        sock, inbox, outbox, left = self.sock, self.inbox, self.outbox, SHARE
        while left > 0:
            outbox.sock = None
            before = None
            for run in inbox.receive(sock, self.split):
                left -= run.count * (COST + run.size)
                association = self.clients.get(run.name) or self.pin(run)
                if association is None:
                    continue
                if before is not None and before is not association:
                    before.flush()
                before = association
                left -= association.up(run)
            if before is not None:
                before.flush()
            if inbox.count < BATCH:
                return
            if self.reactor.late():
                break
        self.queued = True
        self.reactor.later(self.go_on)

    def go_on(self) -> None:
        """The next share."""
        self.queued = False
        self.on_ready()

    def pin(self, run: Run) -> Association | None:
        """Find the association of a first datagram; None if there is none: then the datagram is counted."""
        name = run.name
        same = self.candidates(ip_octets(name), int.from_bytes(name[2:4], "big"))
        if same is None:
            self.wrong_source += run.count
            return None
        association = next(iter(same))
        self.unexpect(association)
        self.clients[name] = association
        association.client = name
        return association

    def candidates(self, host: bytes, number: int) -> dict[Association, None] | None:
        """The associations whose first datagram may come from there, the oldest first."""
        return self.expected.get((host, number)) or self.expected.get((host, 0))

    def expect(self, association: Association) -> None:
        """Wait for the first datagram of an association."""
        self.expected.setdefault((association.host, association.declared), {})[association] = None

    def unexpect(self, association: Association) -> None:
        """It has come, or will not."""
        key = association.host, association.declared
        same = self.expected[key]
        del same[association]
        if not same:
            del self.expected[key]
            if not self.expected:
                self.expected = {}  # an emptied dict keeps 170 octets more

    def remove(self, association: Association) -> None:
        """Carry and expect nothing of an association any more."""
        if association.client:
            del self.clients[association.client]
        else:
            self.unexpect(association)

    def leave(self, association: Association) -> None:
        """The association has ended: close the port."""
        self.remove(association)
        association.drop("wrong_source", self.wrong_source)
        association.drop("overflow", overflow(self.sock))
        self.closed = True
        self.reactor.close(self.sock)


class DestinationSocket:
    """An association's socket toward the destinations of one family that it reaches by one egress.

    A run's name, the sender's sockaddr, tells the sender; with ``by_head``, the first octets of its datagrams do. The
    head has ``split`` octets.
    """

    __slots__ = (
        "association",
        "client_sock",
        "family",
        "inbox",
        "outbox",
        "queued",
        "reactor",
        "senders",
        "sock",
        "split",
        "via",
    )

    by_head: ClassVar[bool] = False

    def __init__(
        self, association: Association, context: UdpContext, via: str, family: int, binding: SourceBinding | None
    ) -> None:
        io = context.io
        self.take(association, context, via, family, io.inboxes[family], io.open_socket(family))
        self.senders = association.senders
        try:
            source = None
            if binding is not None:
                source = next(binding.sources_for(4 if family == AF_INET else 6, association.session))
                binding.prepare(self.sock, source)
            if source is None:
                # Any address: the route says which one datagrams leave from.
                self.sock.bind(("0.0.0.0" if family == AF_INET else "::", 0))  # noqa: S104
            self.reactor.register_reader(self.sock.fileno(), self.on_ready)
        except BaseException:
            self.sock.close()
            raise

    def take(
        self, association: Association, context: UdpContext, via: str, family: int, inbox: Inbox, sock: Sock
    ) -> None:
        """Begin with what all kinds have."""
        self.association = association
        self.client_sock = association.port.sock
        self.reactor = context.reactor
        self.outbox = context.io.outbox
        self.via = via
        self.family = family
        self.queued = False
        self.split = 0
        self.inbox = inbox
        self.sock = sock

    def on_ready(self, events: int = IN) -> None:
        """The reactor's handler: carry what destinations have sent, or as much as the share allows."""
        association = self.association
        if self.queued or association.closed:
            return
        session, senders, client, by_head = association.session, self.senders, association.client, self.by_head
        sock, inbox, outbox, left = self.sock, self.inbox, self.outbox, SHARE
        client_sock, fit = self.client_sock, association.fit_down
        while left > 0:
            outbox.begin(client_sock, association.limit)
            for run in inbox.receive(sock, self.split):
                left -= run.count * (COST + run.size)
                header = senders.get(run.head if by_head else run.name) or self.meet(run)
                if header is None:
                    left -= run.count * COST_APART
                elif fit is not None and (run := fit(run)) is None:
                    continue
                elif run.size + len(header) <= MAX_DATAGRAM:
                    outbox.add(run, client, header)
                else:
                    self.add_what_fits(run, header)
            outbox.send()
            session.datagrams_down += outbox.sent
            session.down += outbox.octets
            association.note(outbox.unsent, outbox.limit)
            if inbox.count < BATCH:
                return
            if self.reactor.late():
                break
        self.queued = True
        self.reactor.later(self.go_on)

    def go_on(self) -> None:
        """The next share."""
        self.queued = False
        self.on_ready()

    def add_what_fits(self, run: Run, header: bytes) -> None:
        """Carry a run that is too long with its header: only the last datagram may be shorter."""
        fits = run.last + len(header) <= MAX_DATAGRAM
        self.association.drop("too_large", run.count - fits)
        if fits:
            run.keep_last()
            self.outbox.add(run, self.association.client, header)

    def meet(self, run: Run) -> bytes | None:
        """The header for datagrams of a new sender. None if they are dropped, since the client must not get them, or
        are taken apart."""
        name, association = run.name, self.association
        if not association.lets_in(ip_octets(name)):
            association.drop("unsolicited", run.count)
            return None
        source = decode_sockaddr(name)
        header = encode_header(source)
        if association.watch is not None:
            association.watch("down", source)
        if association.inspection is not None:
            self.take_apart(run, source, header)
            return None
        self.remember(name, header)
        return header

    def take_apart(self, run: Run, source: Address, header: bytes) -> None:
        """Have the association carry the datagrams of one sender one by one."""
        for index in range(run.count):
            self.association.carry_down(source, header, self.inbox.payload(run, index))

    def remember(self, sender: bytes, header: bytes) -> None:
        """Know the header of a sender from now on."""
        if len(self.senders) >= MAX_SENDERS:
            del self.senders[next(iter(self.senders))]
        self.senders[sender] = header

    def close(self) -> None:
        """Close the socket, and count what the kernel dropped."""
        self.association.drop("overflow", overflow(self.sock))
        self.reactor.close(self.sock)
