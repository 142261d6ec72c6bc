"""Associations: datagrams between a client and its destinations, RFC 1928 section 7.

An association is the client's control connection, its port (a UDP socket of its own or a share of one that many use)
and a UDP socket for each family of destinations, opened with the first datagram that needs it. It has no task: the
reactor calls it. It ends with its control connection, or when nothing was relayed for ``udp_idle`` seconds.

Datagrams travel in runs (`net.batch`). A run whose head is known goes where its route says without becoming Python
objects. Whatever else there is (a new destination, a name, a fragment, rubbish) is taken apart, one by one.

    up      client -> port: which association? -> route of the head: an address, or refused, or waiting for the resolver
    down    destination -> has the client sent to that host? -> header of the sender -> port -> client

Hot path: benchmarks/compare pays for what is called with each run (udp) and for each association (voices).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, ClassVar

from tabi.config import Udp
from tabi.errors import RemoteProtocolError
from tabi.net.batch import Run
from tabi.net.listen import client_ip
from tabi.net.reactor import ENDED, IN, READABLE
from tabi.net.sockaddr import python_sockaddr
from tabi.net.stream import RESET, Stream
from tabi.policy.policy import DestinationPolicy
from tabi.relay.datagram_inspector import Inspect
from tabi.relay.inspection import MAX_NAMED, Faults, Inspection, Watch
from tabi.relay.udp_egresses import OpenPath
from tabi.relay.udp_routes import UdpRoute, UdpRouter
from tabi.relay.udp_sockets import COST_APART, Port
from tabi.session import Close, Drop, Session
from tabi.wire.address import Address
from tabi.wire.datagram import MAX_DATAGRAM, Reassembler, decode_header

if TYPE_CHECKING:
    from tabi.relay.udp_context import UdpContext

READS = 8
"""Reads from a control connection in one turn of the reactor: nothing that a client says there matters."""


class Association:
    """One client's datagrams; see `Associations.start`.

    ``client`` is the sockaddr that the client is pinned to, empty until it is; ``declared`` the port that it announced,
    or 0; ``host`` the octets of the IP address that its datagrams come from; ``identity`` is that of its `Newcomer`.
    """

    __slots__ = (
        "client",
        "closed",
        "context",
        "control",
        "declared",
        "done",
        "fragments",
        "host",
        "identity",
        "inspection",
        "limit",
        "outbox",
        "port",
        "queued",
        "quiet_since",
        "router",
        "routes",
        "seen",
        "senders",
        "session",
        "udp",
        "watch",
    )

    fit_down: ClassVar[Any] = None
    """Called for each run on its way to the client, if limits apply (`limited_association.py`)."""

    def __init__(
        self,
        context: UdpContext,
        done: Callable[[Association], object],
        control: Stream,
        port: Port,
        session: Session,
        destination_policy: DestinationPolicy,
        declared: int,
        udp: Udp,
        open_path: OpenPath | None,
    ) -> None:
        self.context = context
        self.outbox = context.io.outbox
        self.done = done
        self.control = control.sock
        self.port = port
        self.session = session
        self.declared = declared
        self.udp = udp
        self.host = client_ip(session.client.host).packed
        self.identity: Hashable = None
        self.client = b""
        self.router = UdpRouter(self, context, destination_policy, open_path)
        self.routes = self.router.routes  # asked for each run
        self.senders: dict[bytes, bytes] = {}  # the header of each sockaddr
        self.queued = False
        self.inspection: Inspection | None = None  # then each datagram goes to `carry_up` or `carry_down` by itself
        self.watch: Watch | None = None
        self.fragments: Reassembler | None = None
        self.limit = MAX_DATAGRAM
        self.closed = False
        self.seen = 0
        self.quiet_since = context.time()

    # --- the control connection ---

    def start(self, control: Stream, answer: bytes) -> None:
        """Take over the control connection and answer."""
        reactor = self.context.reactor
        reactor.replace(control.fd, self.on_control)
        reactor.watch(control.fd, IN)
        control.fd = -1  # the stream does not own the socket any more
        reactor.send_at_end(self.send_answer, answer)
        if control.events & READABLE and not self.closed:
            self.on_control(control.events)

    def send_answer(self, answer: bytes) -> None:
        """Send the reply; a client that was reset meanwhile says so here, and only once."""
        try:
            self.control.send(answer)
        except OSError:
            self.close("reset")

    def on_control(self, events: int = ENDED) -> None:
        """The reactor's handler: the end of the control connection is the end of the association.

        Section 7 defines no message on it, so anything that the client sends is read and dropped.
        """
        if self.closed or self.queued or not events & READABLE:
            return
        buffer = self.context.buffer
        try:
            for _ in range(READS):
                count = self.control.recv_into(buffer)
                if not count:
                    self.close("client")
                    return
                if count < len(buffer) and not events & ENDED:
                    return
        except BlockingIOError:
            return
        except OSError:
            self.close("reset")
            return
        self.queued = True
        self.context.reactor.later(self.go_on)

    def go_on(self) -> None:
        """The next share of what a client says without end."""
        self.queued = False
        self.on_control()

    # --- from the client ---

    def up(self, run: Run) -> int:
        """Carry a run from the client; `flush` sends it. Returns what it cost beyond the usual, see COST_APART."""
        route = self.routes.get(run.head)
        if route is None or route.sock is None or self.fragments or run.size + len(route.head) > MAX_DATAGRAM:
            return self.up_apart(run, route)
        outbox = self.outbox
        if outbox.sock is not route.sock:
            self.flush()
            outbox.begin(route.sock, self.limit)
        outbox.add(run, route.address, route.head)
        return 0

    def flush(self) -> None:
        """Send what `up` has collected and count it."""
        outbox = self.outbox
        if outbox.sock is None:
            return
        outbox.send()
        outbox.sock = None
        session = self.session
        session.datagrams_up += outbox.sent
        session.up += outbox.octets
        self.note(outbox.unsent, outbox.limit)

    def note(self, unsent: int, limit: int) -> None:
        """Note what a send has shown."""
        if unsent:
            self.drop("unsent", unsent)
        if limit < self.limit:
            self.limit = limit

    def up_apart(self, run: Run, route: UdpRoute | None) -> int:
        """Carry a run one by one: it is new, refused, fragmented or not a datagram of RFC 1928."""
        head, count = run.head, run.count
        refusal = route.refusal if route is not None and route.until > self.context.time() else None
        if refusal is not None and self.fragments is None:
            self.drop(refusal, count)
            return 0
        self.flush()  # keep the order: send what came before
        payload = self.port.inbox.payload
        for index in range(count):
            self.up_one(head + payload(run, index))
        return count * COST_APART

    def up_one(self, data: bytes) -> None:
        """Carry one datagram, header and all."""
        try:
            frag, address, start = decode_header(data)
        except RemoteProtocolError:
            self.drop("malformed")
            return
        payload = data[start:]
        if frag or self.fragments is not None:
            whole = self.reassemble(frag, address, payload)
            if whole is None:
                return
            payload = whole
        self.port.split = start  # as the next ones will have it
        self.carry_up(address, payload)

    def carry_up(self, address: Address, payload: bytes) -> None:
        """Carry one datagram of the client."""
        if self.watch is not None:
            self.watch("up", address)
        if self.inspection is None:
            self.route_up(address, payload)
        else:
            self.inspection.carry_up(address, payload)

    def route_up(self, address: Address, payload: bytes) -> None:
        """Carry one datagram to its destination, or make it wait until that is known."""
        route = self.router.find(address)
        if route.sock is not None:
            self.send_up(route, payload)
        elif route.refusal is not None:
            self.drop(route.refusal)
        elif not self.router.hold(route, payload):
            self.drop("waiting")

    def send_up(self, route: UdpRoute, payload: bytes) -> None:
        """Send one datagram."""
        assert route.sock is not None
        if len(payload) + len(route.head) > MAX_DATAGRAM:
            self.drop("too_large")
            return
        try:
            route.sock.sendmsg((route.head, payload), (), 0, python_sockaddr(route.address))
        except OSError:
            self.drop("unsent")
            return
        self.session.datagrams_up += 1
        self.session.up += len(payload)

    def carry_down(self, source: Address, header: bytes, payload: bytes) -> None:
        """Carry one datagram, whose sender ``header`` names, to the client."""
        if self.watch is not None:
            self.watch("down", source)
        if self.inspection is None:
            self.send_down(header, payload)
        else:
            self.inspection.carry_down(source, payload)

    def send_down(self, header: bytes, payload: bytes) -> None:
        """Send one datagram to the client, behind the header of its sender."""
        if len(header) + len(payload) > MAX_DATAGRAM:
            self.drop("too_large")
            return
        try:
            self.port.sock.sendmsg((header, payload), (), 0, python_sockaddr(self.client))
        except OSError:
            self.drop("unsent")
            return
        self.session.datagrams_down += 1
        self.session.down += len(payload)

    def found(self, destination: Address, address: Address) -> None:
        """Hear which address a name has, to which its datagrams go directly."""
        if self.watch is not None:
            self.watch("up", destination, address)
        if self.inspection is not None:
            self.inspection.found(destination, address)

    def look_into(self, inspect: Inspect | None, faults: Faults | None = None) -> None:
        """Have each datagram go to ``inspect`` and pass ``faults`` from now on. With neither they go in runs again."""
        inspection = self.inspection
        if inspection is None:
            inspection = self.inspection = Inspection(self, self.router.find_named(MAX_NAMED))
            self.routes = {}  # none is known
            self.router.forget_senders()
        inspection.inspect, inspection.faults = inspect, faults
        if inspect is None and faults is None and self.session.protection is None:
            self.inspection = None
            self.routes = self.router.routes

    def lets_in(self, host: bytes) -> bool:
        """Whether the client may get datagrams of a host, by the octets of its address; no octets stand for a name."""
        return self.udp.senders != "contacted" or host in self.router.contacted

    def reassemble(self, frag: int, address: Address, payload: bytes) -> bytes | None:
        """Section 7: put fragments together, or drop them all. Returns a whole payload or None."""
        memory = self.context.memory
        queue = self.fragments
        if frag and (self.udp.fragments == "drop" or not memory.has_room(len(payload))):
            self.drop("fragment")
            return None
        if queue is None:
            queue = self.fragments = Reassembler()
        before, dropped = queue.octets, queue.dropped
        whole = queue.add(frag, address, payload, self.context.time())
        memory.held += queue.octets - before
        self.drop("fragment", queue.dropped - dropped)
        if not queue.parts:
            self.fragments = None
        return whole

    # --- the end ---

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count datagrams that went nowhere."""
        if count:
            drops = self.session.drops
            assert drops is not None
            drops[reason] = drops.get(reason, 0) + count

    def sweep(self, now: float, idle: float) -> None:
        """End it if nothing was relayed or lost to a fault for ``idle`` seconds; give up fragments that are too old."""
        if self.fragments is not None and now >= self.fragments.deadline:
            self.give_up_fragments()
        self.router.sweep(now)
        session, drops = self.session, self.session.drops or {}
        total = session.datagrams_up + session.datagrams_down + drops.get("fault", 0)
        if total != self.seen:
            self.seen = total
            self.quiet_since = now
        elif now - self.quiet_since >= idle:
            self.close("idle")

    def give_up_fragments(self) -> None:
        """Drop what waits for the rest of a datagram."""
        if self.fragments is not None:
            self.context.memory.held -= self.fragments.octets
            self.drop("fragment", len(self.fragments.parts))
            self.fragments = None

    def cut(self, why: str) -> None:
        """A limit ends it, unless it has ended before the turn came to that."""
        self.end("limit", why)

    def end(self, reason: Close, error: str | None = None, reset: bool = False) -> None:
        """End it from outside, unless it has ended already. ``error`` is for the log's line; with ``reset`` the control
        connection ends with a reset."""
        if not self.closed:
            self.session.error = error or self.session.error
            if reset:
                self.control.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.close(reason)

    def close(self, reason: Close) -> None:
        """Close all sockets and hand the session in. Harmless when done twice."""
        if self.closed:
            return
        self.closed = True
        self.session.close = reason
        if self.inspection is not None:
            self.inspection.close()
        self.give_up_fragments()
        self.router.close()
        self.port.leave(self)
        self.context.reactor.close(self.control)
        self.done(self)
