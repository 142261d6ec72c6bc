"""Associations: datagrams between a client and whomever it sends to, RFC 1928 section 7.

An association is the client's control connection, its port (a UDP socket of its own or a share of one that many use)
and a UDP socket for each family of destinations, opened with the first datagram that needs it. It has no task: the
reactor calls it. It ends with its control connection, or when nothing was relayed for ``udp_idle`` seconds.

Datagrams travel in runs (`net.batch`). A run whose head is known goes where its route says without becoming Python
objects. Whatever else there is (a new destination, a name, a fragment, rubbish) is taken apart, one by one.

    up      client -> port: whose is it? -> route of the head: an address, or refused, or waiting for the resolver
    down    destination -> has the client sent to that host? -> header of the sender -> port -> client

Hot path: benchmarks/compare pays for what is called with each run (udp) and for each association (voices).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, ClassVar

from tabi.config import Udp
from tabi.errors import DialError, PolicyDenied, RemoteProtocolError, TabiError
from tabi.net.batch import Run
from tabi.net.listen import client_ip
from tabi.net.reactor import ENDED, IN, READABLE
from tabi.net.resolve import find_number
from tabi.net.sockaddr import encode_sockaddr, python_sockaddr
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.guard import permit_any
from tabi.policy.policy import Judge
from tabi.relay.udp_egresses import OpenPath, UdpEgresses, UpstreamSocket
from tabi.relay.udp_sockets import COST_APART, DestinationSocket, Port, family_of
from tabi.session import Close, Drop, Session
from tabi.wire.address import Address, Host
from tabi.wire.datagram import MAX_DATAGRAM, Reassembler, decode_header, encode_header
from tabi.wire.socks5 import ReplyCode

if TYPE_CHECKING:
    from tabi.relay.udp_context import UdpContext

IP = IPv4Address | IPv6Address
Sock = socket.SocketType

READS = 8
"""Reads from a control connection in one turn of the reactor: nothing that a client says there is worth more."""

MAX_ROUTES = 1024
"""Destinations that an association remembers; beyond that it forgets the oldest."""

MAX_CONTACTED = 4096
"""Hosts whose datagrams an association lets in; beyond that it forgets the oldest."""

MAX_LOOKUPS, MAX_WAITING = 16, 16
"""Names of one association that are resolved at a time, and datagrams that wait for each."""

FORGET_REFUSAL = 10.0
"""Seconds after which a route that failed is tried again: a name that was not found or is forbidden, no socket."""

MAX_HELD = 1 << 17
"""Octets of payload of one association that wait for the resolver. Fragments have the reassembler's limit."""


class UdpRoute:
    """Where the datagrams with one header go: to an address, nowhere, or to wait for the resolver or an egress.

    ``address`` is the sockaddr that ``sock`` sends to, ``head`` what goes in front of the payload: the headers for
    proxies. ``refusal`` is the reason to drop them, until ``until``.
    """

    __slots__ = ("address", "head", "refusal", "sock", "until", "waiting")

    def __init__(self) -> None:
        self.sock: Sock | None = None
        self.address = b""
        self.head = b""
        self.refusal: Drop | None = None
        self.until = float("inf")
        self.waiting: list[bytes] = []

    def refuse(self, reason: Drop, until: float = float("inf")) -> None:
        """Drop what waits and what comes, as long as that."""
        self.sock = None
        self.refusal, self.until = reason, until
        self.waiting.clear()


class Association:
    """One client's datagrams; see `Associations.start`.

    ``client`` is the sockaddr that the client is pinned to, empty until it is; ``declared`` the port that it announced,
    or 0; ``host`` the octets of the IP address that its datagrams come from.
    """

    __slots__ = (
        "client",
        "closed",
        "contacted",
        "context",
        "control",
        "declared",
        "done",
        "egresses",
        "fragments",
        "held",
        "host",
        "judge",
        "limit",
        "lookups",
        "open_path",
        "outbox",
        "port",
        "queued",
        "quiet_since",
        "routes",
        "seen",
        "senders",
        "session",
        "sockets",
        "udp",
    )

    fit_down: ClassVar[Any] = None
    """Asked for each run on its way to the client, where there is somebody to ask (`limited_association.py`)."""

    inspected: ClassVar[bool] = False
    """Whether somebody looks at each datagram, so that those toward the client go to `carry_down` one by one."""

    def __init__(
        self,
        context: UdpContext,
        done: Callable[[Association], object],
        control: Stream,
        port: Port,
        session: Session,
        judge: Judge,
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
        self.judge = judge
        self.declared = declared
        self.udp = udp
        self.host = client_ip(session.client.host).packed
        self.client = b""
        self.sockets: tuple[DestinationSocket, ...] = ()  # one for each family, and for each egress through proxies
        self.open_path = open_path
        self.egresses: UdpEgresses | None = None  # the egresses that were opened
        self.routes: dict[bytes, UdpRoute] = {}  # by header
        self.senders: dict[bytes, bytes] = {}  # the header of each sockaddr
        self.contacted: dict[bytes, None] = {}  # octets of IP addresses, the oldest first
        self.lookups: dict[asyncio.Task[None], UdpRoute] | None = None
        self.held = 0
        self.queued = False
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

        Section 7 knows nothing that a client could say there, so that it is read and dropped.
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
        """Carry a run from the client; `flush` sends it. Returns what it cost beside the usual, see COST_APART."""
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
        """Carry a run one by one: it is new, refused, fragmented or no datagram of RFC 1928."""
        head, count = run.head, run.count
        refusal = route.refusal if route is not None and route.until > self.context.time() else None
        if refusal is not None and self.fragments is None:
            self.drop(refusal, count)
            return 0
        self.flush()  # what came before goes before
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
        """Carry one datagram to its destination, or have it wait until it is known where that is."""
        header = encode_header(address)
        route = self.routes.get(header)
        if route is None or (route.refusal is not None and route.until <= self.context.time()):
            route = self.make_route(header, address)
        if route.sock is not None:
            self.send_up(route, payload)
        elif route.refusal is not None:
            self.drop(route.refusal)
        elif len(route.waiting) < MAX_WAITING and self.hold(len(payload)):
            route.waiting.append(payload)
        else:
            self.drop("waiting")

    def hold(self, octets: int) -> bool:
        """Whether there is room for so many octets of payload to wait; then they count until `release`."""
        memory = self.context.memory
        if self.held + octets > MAX_HELD or not memory.has_room(octets):
            return False
        self.held += octets
        memory.held += octets
        return True

    def release(self, waiting: list[bytes]) -> None:
        """They wait no more."""
        octets = sum(map(len, waiting))
        self.held -= octets
        self.context.memory.held -= octets

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
        self.send_down(header, payload)

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

    # --- routes ---

    def make_route(self, header: bytes, address: Address) -> UdpRoute:
        """Find out where a header leads: at once, or with the help of the resolver, or of a proxy."""
        route = UdpRoute()
        host, port = address
        if not port:
            route.refuse("malformed")
        elif isinstance(host, str) or self.lead(route, address, [host]) is not None:
            if self.lookups is not None and len(self.lookups) >= MAX_LOOKUPS:
                route.refuse("waiting")
                return route  # not remembered: there is room again soon
            if self.lookups is None:
                self.lookups = {}
            task = self.context.look_up(self.find_route(route, address))
            self.lookups[task] = route
            task.add_done_callback(self.lookups.pop)
        self.routes.pop(header, None)
        if len(self.routes) >= MAX_ROUTES:
            del self.routes[next(iter(self.routes))]
        self.routes[header] = route
        return route

    async def find_route(self, route: UdpRoute, destination: Address) -> None:
        """Find the addresses of a name or open an egress, then send what has waited for them."""
        addresses: list[IP] = []
        reason: Drop = "unsent"
        try:
            if not await self.is_resolved_there(destination):
                reason = "unresolved"
                addresses = await self.resolve(destination.host)
                reason = "unsent"
            via = self.lead(route, destination, addresses)
            if via is not None:
                await self.open_egress(via)
                self.lead(route, destination, addresses)
        except TabiError as exc:
            self.refuse(route, "denied" if isinstance(exc, PolicyDenied) else reason, str(exc), FORGET_REFUSAL)
            return
        if route.sock is None and route.refusal is None:
            self.refuse(route, "unsent", "the egress has ended behind its opening", FORGET_REFUSAL)
        waiting, route.waiting = route.waiting, []
        self.release(waiting)
        for payload in waiting:
            self.send_up(route, payload)

    async def is_resolved_there(self, destination: Address) -> bool:
        """Whether a destination is a name that a proxy on its way resolves. Raises TabiError."""
        host = destination.host
        if not isinstance(host, str) or find_number(host) is not None:
            return False
        via = self.judge(destination, None)
        return isinstance(via, str) and not (await self.open_egress(via)).resolves_locally

    async def resolve(self, host: Host) -> list[IP]:
        """The addresses of a destination, best first. Raises TabiError."""
        if not isinstance(host, str):
            return [host]
        dialer = self.context.dialer
        try:
            async with asyncio.timeout(dialer.seconds):
                addresses = await dialer.find(host, permit_any)
        except TimeoutError:
            raise DialError(f"{host}: not resolved within {dialer.seconds:g} s", ReplyCode.HOST_UNREACHABLE) from None
        # Of a name with both kinds, that which the client has itself: nobody tells when a datagram arrives nowhere.
        addresses.sort(key=lambda address: len(address.packed) != len(self.host))
        return addresses

    def lead(self, route: UdpRoute, destination: Address, addresses: list[IP]) -> str | None:
        """Have a route lead to one of the addresses, if all of them are permitted.

        Without addresses the destination is a name that the proxy resolves.

        Returns:
            The egress that has to be opened first, by name; None where there is none.
        """
        try:
            via = self.judge(destination, addresses or None)
        except PolicyDenied as exc:
            self.refuse(route, "denied", str(exc))
            return None
        if via is None:
            self.lead_directly(route, destination.port, addresses, "direct", self.context.binding)
            return None
        name = str(via)
        path = None if self.egresses is None else self.egresses.open.get(name)
        if path is None:
            return name
        if not path.relays:
            self.lead_directly(route, destination.port, addresses, name, path.binding)
            return None
        upstream = next(sock for sock in self.sockets if sock.via == name)
        assert isinstance(upstream, UpstreamSocket)
        upstream.lead(route, destination, addresses)
        return None

    def lead_directly(
        self, route: UdpRoute, port: int, addresses: list[IP], via: str, binding: SourceBinding | None
    ) -> None:
        """Have a route lead to the first address that there is a socket for."""
        failure = ""
        for address in addresses:
            host = getattr(address, "ipv4_mapped", None) or address
            try:
                route.address = encode_sockaddr(Address(host, port))
                route.sock = self.socket_toward(host, via, binding)
            except OSError as exc:
                failure = f"{host}: {exc.strerror or exc}"
                continue
            self.contact(host)
            return
        self.refuse(route, "unsent", failure, FORGET_REFUSAL)

    def lets_in(self, host: bytes) -> bool:
        """Whether the client may hear a host, by the octets of its address; none stand for a name."""
        return self.udp.senders != "contacted" or host in self.contacted

    def contact(self, host: IP) -> None:
        """Let in what a host sends."""
        self.contacted.pop(host.packed, None)
        if len(self.contacted) >= MAX_CONTACTED:
            del self.contacted[next(iter(self.contacted))]
        self.contacted[host.packed] = None

    def socket_toward(self, host: IP, via: str, binding: SourceBinding | None) -> Sock:
        """The socket for destinations of a family, opened with the first of them. Raises OSError."""
        family = family_of(host)
        for destinations in self.sockets:
            if destinations.family == family and destinations.via == via:
                return destinations.sock
        destinations = DestinationSocket(self, self.context, via, family, binding)
        self.sockets = (*self.sockets, destinations)
        return destinations.sock

    async def open_egress(self, via: str) -> UdpPath:
        """The path of an egress, opened with the first datagram that takes it. Raises TabiError."""
        if self.egresses is None:
            assert self.open_path is not None
            self.egresses = UdpEgresses(self, self.context, self.open_path)
        return await self.egresses.get(via)

    def use(self, via: str, path: UdpPath) -> None:
        """Have datagrams leave by a path that is connected."""
        assert self.open_path is not None
        self.egresses = UdpEgresses(self, self.context, self.open_path)
        self.egresses.use(via, path)

    def refuse(self, route: UdpRoute, reason: Drop, text: str, seconds: float = float("inf")) -> None:
        """Drop what waits for a route, and what comes in ``seconds``. The first text is the log line's ``error``."""
        self.drop(reason, len(route.waiting))
        self.release(route.waiting)
        route.refuse(reason, self.context.time() + seconds)
        if self.session.error is None:
            self.session.error = text

    # --- the end ---

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count datagrams that went nowhere."""
        if count:
            drops = self.session.drops
            assert drops is not None
            drops[reason] = drops.get(reason, 0) + count

    def sweep(self, now: float, idle: float) -> None:
        """End it if nothing was relayed for ``idle`` seconds; give up fragments whose time is over."""
        if self.fragments is not None and now >= self.fragments.deadline:
            self.give_up_fragments()
        if self.egresses is not None:
            self.egresses.sweep(now)
        total = self.session.datagrams_up + self.session.datagrams_down
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

    def end(self, reason: Close, error: str | None = None) -> None:
        """End it from outside, unless it has ended already. ``error`` is for the log's line."""
        if not self.closed:
            self.session.error = error or self.session.error
            self.close(reason)

    def close(self, reason: Close) -> None:
        """Close all sockets and hand the session in. Harmless when done twice."""
        if self.closed:
            return
        self.closed = True
        self.session.close = reason
        self.give_up_fragments()
        for task, route in tuple((self.lookups or {}).items()):
            task.cancel()
            self.drop("waiting", len(route.waiting))
            self.release(route.waiting)
        if self.egresses is not None:
            self.egresses.close()
        for destinations in self.sockets:
            destinations.close()
        self.port.leave(self)
        self.context.reactor.close(self.control)
        self.done(self)
