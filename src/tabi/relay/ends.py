"""The two ends of an association: the port that its client sends to, and its sockets toward destinations.

Each is a UDP socket with a handler of the reactor, which takes a batch, asks whose each run is, passes it on, and stops
after its share of the turn.

Hot path: benchmarks/compare pays for every line of `on_ready` with each batch (udp) and each association (voices).
"""

from __future__ import annotations

import logging
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Literal

from tabi.net.batch import BATCH, Run, Sock
from tabi.net.datagram import Inbox, overflow
from tabi.net.listen import bind_port
from tabi.net.reactor import IN
from tabi.net.sockaddr import decode_sockaddr, ip_octets
from tabi.net.source import SourceBinding
from tabi.wire.datagram import MAX_DATAGRAM, encode_header

if TYPE_CHECKING:
    from tabi.relay.associations import Associations
    from tabi.relay.datagram import Association

log = logging.getLogger("tabi")

IP = IPv4Address | IPv6Address

SHARE = 1 << 20
"""What one socket may cost in one turn of the reactor, in octets; then the others have their turn."""

COST, COST_APART = 512, 8192
"""What a datagram costs beside its octets, and one that must be taken apart, in the time that octets take."""

MAX_SENDERS = 1024
"""Senders whose header an association remembers; beyond that it forgets the oldest."""

MEMORY = 16 << 20
"""Octets of payload that wait in all associations together, for the resolver or for the rest of a datagram."""

IPV4_HEADER = 10
"""Octets of the header that most datagrams have."""

AF_INET, AF_INET6 = int(socket.AF_INET), int(socket.AF_INET6)


def family_of(host: IP) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if host.version == 4 else AF_INET6


class Port:
    """The UDP socket that clients send to: of one association, or of many that are told apart by their address.

    A client is pinned to its address and port: the IP address of its control connection, and the port that it declared
    or else that of its first datagram (C17 of docs/conformance.md). Everyone else is dropped and counted.
    """

    __slots__ = (
        "associations",
        "clients",
        "closed",
        "expected",
        "foreign",
        "inbox",
        "number",
        "queued",
        "shared",
        "sock",
        "split",
    )

    def __init__(self, associations: Associations, host: IP, ports: range | None, shared: bool) -> None:
        family = family_of(host)
        self.associations = associations
        self.inbox = associations.mail.headed[family]
        self.shared = shared
        self.split = IPV4_HEADER
        self.foreign = 0
        self.queued = self.closed = False
        self.clients: dict[bytes, Association] = {}  # by sockaddr
        # That have not sent yet: by IP address and declared port, the oldest first.
        self.expected: dict[tuple[bytes, int], dict[Association, None]] = {}
        self.sock = associations.mail.open_socket(family, headed=True)
        try:
            bind_port(self.sock, str(host), ports)
            self.number: int = self.sock.getsockname()[1]
            associations.reactor.register_reader(self.sock.fileno(), self.on_ready)
        except BaseException:
            self.sock.close()
            raise

    def on_ready(self, events: int = IN) -> None:
        """The reactor's handler: carry what clients have sent, or as much as the share allows."""
        if self.queued or self.closed:
            return
        sock, inbox, outbox, left = self.sock, self.inbox, self.associations.mail.outbox, SHARE
        while left > 0:
            outbox.sock = None
            before = None
            for run in inbox.receive(sock, self.split):
                left -= run[4] * (COST + run[5])
                association = self.clients.get(run[0]) or self.pin(run)
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
        self.queued = True
        self.associations.reactor.later(self.go_on)

    def go_on(self) -> None:
        """The next share."""
        self.queued = False
        self.on_ready()

    def pin(self, run: Run) -> Association | None:
        """Find out whose first datagram this is; None, and it is counted, where it is nobody's."""
        name = run[0]
        host, number = ip_octets(name), int.from_bytes(name[2:4], "big")
        same = self.expected.get((host, number)) or self.expected.get((host, 0))
        if same is None:
            self.foreign += run[4]
            return None
        association = next(iter(same))
        self.unexpect(association)
        self.clients[name] = association
        association.client = name
        return association

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

    def leave(self, association: Association) -> None:
        """An association has ended; with the last one the port is closed."""
        if association.client:
            del self.clients[association.client]
        else:
            self.unexpect(association)
        reactor = self.associations.reactor
        if self.shared:
            reactor.later(self.close_if_unused)  # the next association may begin in this turn
        else:
            association.drop("foreign", self.foreign)
            association.drop("overflow", overflow(self.sock))
            self.closed = True
            reactor.close(self.sock)

    def close_if_unused(self) -> None:
        """Close a port that nobody shares any more. Harmless when done twice."""
        if self.clients or self.expected or self.closed:
            return
        self.closed = True
        lost = overflow(self.sock)
        if self.foreign or lost:
            text = "shared UDP port %d: datagrams of nobody's: %d, overflowed: %d"
            log.info(text, self.number, self.foreign, lost)
        self.associations.forget(self)
        self.associations.reactor.close(self.sock)


class Outside:
    """An association's socket toward the destinations of one family that it reaches by one way out.

    Who sends is told by a run's name or head, whose place in it is ``key``: here the name, the sender's sockaddr. The
    head has ``split`` octets.
    """

    __slots__ = ("association", "family", "inbox", "queued", "senders", "sock", "split", "via")

    key: Literal[0, 1] = 0

    def __init__(self, association: Association, via: str, family: int, origin: SourceBinding | None) -> None:
        mail = association.associations.mail
        self.take(association, via, family, mail.inboxes[family], mail.open_socket(family))
        self.senders = association.senders
        try:
            source = None
            if origin is not None:
                source = next(origin.sources_for(4 if family == AF_INET else 6, association.session))
                origin.prepare(self.sock, source)
            if source is None:
                self.sock.bind(("0.0.0.0" if family == AF_INET else "::", 0))  # noqa: S104 - whichever the way leaves from
            association.associations.reactor.register_reader(self.sock.fileno(), self.on_ready)
        except BaseException:
            self.sock.close()
            raise

    def take(self, association: Association, via: str, family: int, inbox: Inbox, sock: Sock) -> None:
        """Begin with what all kinds have."""
        self.association = association
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
        session, senders, client, key = association.session, self.senders, association.client, self.key
        sock, inbox, outbox, left = self.sock, self.inbox, association.associations.mail.outbox, SHARE
        fit = association.fit_down
        while left > 0:
            outbox.begin(association.port.sock, association.limit)
            for run in inbox.receive(sock, self.split):
                left -= run[4] * (COST + run[5])
                header = senders.get(run[key]) or self.meet(run)
                if header is None:
                    left -= run[4] * COST_APART
                elif fit is not None and (run := fit(run)) is None:
                    continue
                elif run[5] + len(header) <= MAX_DATAGRAM:
                    outbox.add(run, client, header)
                else:
                    self.add_what_fits(run, header)
            outbox.send()
            session.datagrams_down += outbox.sent
            session.down += outbox.octets
            association.note(outbox.unsent, outbox.limit)
            if inbox.count < BATCH:
                return
        self.queued = True
        association.associations.reactor.later(self.go_on)

    def go_on(self) -> None:
        """The next share."""
        self.queued = False
        self.on_ready()

    def add_what_fits(self, run: Run, header: bytes) -> None:
        """Carry a run that is too long with its header: only the last datagram may be shorter."""
        association = self.association
        name, head, at, stride, count, _, last = run
        fits = last + len(header) <= MAX_DATAGRAM
        association.drop("too_large", count - fits)
        if fits:
            last_one = name, head, at + stride * (count - 1), stride, 1, last, last
            association.associations.mail.outbox.add(last_one, association.client, header)

    def meet(self, run: Run) -> bytes | None:
        """The header for datagrams of a sender that was not heard of yet; None, and they are dropped, where the client
        must not hear it."""
        name, association = run[0], self.association
        if association.udp.senders == "contacted" and ip_octets(name) not in association.contacted:
            association.drop("stranger", run[4])
            return None
        header = encode_header(decode_sockaddr(name))
        self.remember(name, header)
        return header

    def remember(self, sender: bytes, header: bytes) -> None:
        """Know the header of a sender from now on."""
        if len(self.senders) >= MAX_SENDERS:
            del self.senders[next(iter(self.senders))]
        self.senders[sender] = header

    def close(self) -> None:
        """Close the socket, and count what the kernel dropped."""
        self.association.drop("overflow", overflow(self.sock))
        self.association.associations.reactor.close(self.sock)
