"""Associations: datagrams between a client and whomever it sends to, RFC 1928 section 7.

An association is the client's control connection, its port (a UDP socket of its own or a share of one that many use)
and a UDP socket for each family of destinations, opened with the first datagram that needs it. It has no task: the
reactor calls it. It ends with its control connection, or when nothing was relayed for ``udp_idle`` seconds.

Datagrams travel in runs (`net.batch`). A run whose head is known goes where its way says without becoming Python
objects. Whatever else there is (a new destination, a name, a fragment, rubbish) is taken apart, one by one.

    up      client -> port: whose is it? -> way of the head: an address, or refused, or waiting for the resolver
    down    destination -> has the client sent to that host? -> header of the sender -> port -> client

Hot path: benchmarks/compare pays for what is called with each run (udp) and for each association (voices).
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, ClassVar

from tabi.config import Udp
from tabi.errors import DialError, PolicyDenied, RemoteProtocolError, TabiError
from tabi.net.batch import Run
from tabi.net.hops import Hops
from tabi.net.listen import client_ip
from tabi.net.origin import Origin
from tabi.net.reactor import ENDED, IN, READABLE
from tabi.net.resolve import find_number
from tabi.net.sockaddr import encode_sockaddr, python_sockaddr
from tabi.net.stream import Stream
from tabi.policy.guard import permit_any
from tabi.policy.policy import Judge, Pending
from tabi.relay.ends import COST_APART, MEMORY, Outside, Port, family_of
from tabi.relay.exits import Exits, OpenWay, Through
from tabi.session import Close, Drop, Session
from tabi.wire.address import Address, Host
from tabi.wire.datagram import MAX_DATAGRAM, Reassembler, decode_header, encode_header
from tabi.wire.socks5 import ReplyCode

if TYPE_CHECKING:
    from tabi.relay.associations import Associations

IP = IPv4Address | IPv6Address
Sock = socket.SocketType

READS = 8
"""Reads from a control connection in one turn of the reactor: nothing that a client says there is worth more."""

MAX_WAYS = 1024
"""Destinations that an association remembers; beyond that it forgets the oldest."""

MAX_CONTACTED = 4096
"""Hosts whose datagrams an association lets in; beyond that it forgets the oldest."""

MAX_LOOKUPS, MAX_WAITING = 16, 16
"""Names of one association that are resolved at a time, and datagrams that wait for each."""

MAX_STEPS = 4
"""How often a way is asked for anew while it is found out: a verdict that is awaited, a way out that is opened."""

FORGET_REFUSAL = 10.0
"""Seconds after which a way that did not open is tried again: a name that was not found or is forbidden, no socket."""

MAX_HELD = 1 << 17
"""Octets of payload of one association that wait for the resolver. Fragments have the reassembler's limit."""


class Way:
    """Where the datagrams with one header go: to an address, nowhere, or to wait for the resolver or a way out.

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
        "associations",
        "client",
        "closed",
        "contacted",
        "control",
        "control_fd",
        "declared",
        "exits",
        "fragments",
        "held",
        "host",
        "judge",
        "limit",
        "lookups",
        "open_way",
        "outside",
        "port",
        "queued",
        "quiet_since",
        "seen",
        "senders",
        "session",
        "udp",
        "ways",
    )

    fit_down: ClassVar[Any] = None
    """Asked for each run on its way to the client, where there is somebody to ask (`limited_association.py`)."""

    def __init__(
        self,
        associations: Associations,
        control: Stream,
        port: Port,
        session: Session,
        judge: Judge,
        declared: int,
        udp: Udp,
        now: float,
        open_way: OpenWay | None,
    ) -> None:
        self.associations = associations
        self.control = control.sock
        self.control_fd = control.fd
        self.port = port
        self.session = session
        self.judge = judge
        self.declared = declared
        self.udp = udp
        self.host = client_ip(session.client.host).packed
        self.client = b""
        self.outside: tuple[Outside, ...] = ()  # one for each family, and for each way out through proxies
        self.open_way = open_way
        self.exits: Exits | None = None  # the ways out other than straight
        self.ways: dict[bytes, Way] = {}  # by header
        self.senders: dict[bytes, bytes] = {}  # the header of each sockaddr
        self.contacted: dict[bytes, None] = {}  # octets of IP addresses, the oldest first
        self.lookups: dict[asyncio.Task[None], Way] | None = None
        self.held = 0
        self.queued = False
        self.fragments: Reassembler | None = None
        self.limit = MAX_DATAGRAM
        self.closed = False
        self.seen = 0
        self.quiet_since = now

    # --- the control connection ---

    def start(self, control: Stream, answer: bytes) -> None:
        """Take over the control connection and answer."""
        reactor = self.associations.reactor
        reactor.replace(self.control_fd, self.on_control)
        reactor.watch(self.control_fd, IN)
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
        buffer = self.associations.buffer
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
        self.associations.reactor.later(self.go_on)

    def go_on(self) -> None:
        """The next share of what a client says without end."""
        self.queued = False
        self.on_control()

    # --- from the client ---

    def up(self, run: Run) -> int:
        """Carry a run from the client; `flush` sends it. Returns what it cost beside the usual, see COST_APART."""
        way = self.ways.get(run[1])
        if way is None or way.sock is None or self.fragments is not None or run[5] + len(way.head) > MAX_DATAGRAM:
            return self.up_apart(run, way)
        outbox = self.associations.mail.outbox
        if outbox.sock is not way.sock:
            self.flush()
            outbox.begin(way.sock, self.limit)
        outbox.add(run, way.address, way.head)
        return 0

    def flush(self) -> None:
        """Send what `up` has collected and count it."""
        outbox = self.associations.mail.outbox
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

    def up_apart(self, run: Run, way: Way | None) -> int:
        """Carry a run one by one: it is new, refused, fragmented or no datagram of RFC 1928."""
        _, head, _, _, count, _, _ = run
        refusal = way.refusal if way is not None and way.until > self.associations.time() else None
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
        header = encode_header(address)
        way = self.ways.get(header)
        if way is None or (way.refusal is not None and way.until <= self.associations.time()):
            way = self.make_way(header, address)
        if way.sock is not None:
            self.send_up(way, payload)
        elif way.refusal is not None:
            self.drop(way.refusal)
        elif len(way.waiting) < MAX_WAITING and self.hold(len(payload)):
            way.waiting.append(payload)
        else:
            self.drop("waiting")

    def hold(self, octets: int) -> bool:
        """Whether there is room for so many octets of payload to wait; then they count until `release`."""
        if self.held + octets > MAX_HELD or self.associations.held + octets > MEMORY:
            return False
        self.held += octets
        self.associations.held += octets
        return True

    def release(self, waiting: list[bytes]) -> None:
        """They wait no more."""
        octets = sum(map(len, waiting))
        self.held -= octets
        self.associations.held -= octets

    def send_up(self, way: Way, payload: bytes) -> None:
        """Send one datagram."""
        assert way.sock is not None
        if len(payload) + len(way.head) > MAX_DATAGRAM:
            self.drop("too_large")
            return
        try:
            way.sock.sendmsg((way.head, payload), (), 0, python_sockaddr(way.address))
        except OSError:
            self.drop("unsent")
            return
        self.session.datagrams_up += 1
        self.session.up += len(payload)

    def reassemble(self, frag: int, address: Address, payload: bytes) -> bytes | None:
        """Section 7: put fragments together, or drop them all. Returns a whole payload or None."""
        associations = self.associations
        queue = self.fragments
        if frag and (self.udp.fragments == "drop" or associations.held + len(payload) > MEMORY):
            self.drop("fragment")
            return None
        if queue is None:
            queue = self.fragments = Reassembler()
        before, dropped = queue.octets, queue.dropped
        whole = queue.add(frag, address, payload, associations.time())
        associations.held += queue.octets - before
        self.drop("fragment", queue.dropped - dropped)
        if not queue.parts:
            self.fragments = None
        return whole

    # --- ways ---

    def make_way(self, header: bytes, address: Address) -> Way:
        """Find out where a header leads: at once, or with the help of the resolver, or of a proxy."""
        way = Way()
        host, port = address
        if not port:
            way.refuse("malformed")
        elif isinstance(host, str) or self.lead(way, address, [host]) is not None:
            if self.lookups is not None and len(self.lookups) >= MAX_LOOKUPS:
                way.refuse("waiting")
                return way  # not remembered: there is room again soon
            if self.lookups is None:
                self.lookups = {}
            task = self.associations.look_up(self.find_way(way, address))
            self.lookups[task] = way
            task.add_done_callback(self.lookups.pop)
        self.ways.pop(header, None)
        if len(self.ways) >= MAX_WAYS:
            del self.ways[next(iter(self.ways))]
        self.ways[header] = way
        return way

    async def find_way(self, way: Way, destination: Address) -> None:
        """Find the addresses of a name or open a way out, then send what has waited for them."""
        addresses: list[IP] = []
        reason: Drop = "unsent"
        try:
            if not await self.is_resolved_there(destination):
                reason = "unresolved"
                addresses = await self.resolve(destination.host)
                reason = "unsent"
            for _ in range(MAX_STEPS):
                via = self.lead(way, destination, addresses)
                if via is None:
                    break
                await (via if isinstance(via, Pending) else self.exit(via))
        except TabiError as exc:
            self.refuse(way, "denied" if isinstance(exc, PolicyDenied) else reason, str(exc), FORGET_REFUSAL)
            return
        if way.sock is None and way.refusal is None:
            self.refuse(way, "unsent", "the way out has ended behind its opening", FORGET_REFUSAL)
        waiting, way.waiting = way.waiting, []
        self.release(waiting)
        for payload in waiting:
            self.send_up(way, payload)

    async def is_resolved_there(self, destination: Address) -> bool:
        """Whether a destination is a name that a proxy on its way resolves. Raises TabiError."""
        host = destination.host
        if not isinstance(host, str) or find_number(host) is not None:
            return False
        via = self.judge(destination, None)
        if isinstance(via, Pending):
            await via
            via = self.judge(destination, None)
        return isinstance(via, str) and not (await self.exit(via)).here

    async def resolve(self, host: Host) -> list[IP]:
        """The addresses of a destination, best first. Raises TabiError."""
        if not isinstance(host, str):
            return [host]
        dialer = self.associations.dialer
        try:
            async with asyncio.timeout(dialer.seconds):
                addresses = await dialer.find(host, permit_any)
        except TimeoutError:
            raise DialError(f"{host}: not resolved within {dialer.seconds:g} s", ReplyCode.HOST_UNREACHABLE) from None
        # Of a name with both kinds, that which the client has itself: nobody tells when a datagram arrives nowhere.
        addresses.sort(key=lambda address: len(address.packed) != len(self.host))
        return addresses

    def lead(self, way: Way, destination: Address, addresses: list[IP]) -> str | Pending | None:
        """Have a way lead to one of the addresses, if all of them are permitted.

        Without addresses the destination is a name that the proxy resolves.

        Returns:
            The way out that has to be opened first, by name, or what has to be awaited; None where there is neither.
        """
        try:
            via = self.judge(destination, addresses or None)
        except PolicyDenied as exc:
            self.refuse(way, "denied", str(exc))
            return None
        if via is None:
            self.lead_straight(way, destination.port, addresses, "direct", self.associations.origin)
            return None
        if isinstance(via, Pending):
            return via
        name = str(via)
        hops = None if self.exits is None else self.exits.open.get(name)
        if hops is None:
            return name
        if not hops.relays:
            self.lead_straight(way, destination.port, addresses, name, hops.origin)
            return None
        through = next(outside for outside in self.outside if outside.via == name)
        assert isinstance(through, Through)
        through.lead(way, destination, addresses)
        return None

    def lead_straight(self, way: Way, port: int, addresses: list[IP], via: str, origin: Origin | None) -> None:
        """Have a way lead to the first address that there is a socket for."""
        failure = ""
        for address in addresses:
            host = getattr(address, "ipv4_mapped", None) or address
            try:
                way.address = encode_sockaddr(Address(host, port))
                way.sock = self.socket_toward(host, via, origin)
            except OSError as exc:
                failure = f"{host}: {exc.strerror or exc}"
                continue
            self.contact(host)
            return
        self.refuse(way, "unsent", failure, FORGET_REFUSAL)

    def contact(self, host: IP) -> None:
        """Let in what a host sends."""
        self.contacted.pop(host.packed, None)
        if len(self.contacted) >= MAX_CONTACTED:
            del self.contacted[next(iter(self.contacted))]
        self.contacted[host.packed] = None

    def socket_toward(self, host: IP, via: str, origin: Origin | None) -> Sock:
        """The socket for destinations of a family, opened with the first of them. Raises OSError."""
        family = family_of(host)
        for outside in self.outside:
            if outside.family == family and outside.via == via:
                return outside.sock
        outside = Outside(self, via, family, origin)
        self.outside = (*self.outside, outside)
        return outside.sock

    async def exit(self, via: str) -> Hops:
        """A way out, opened with the first datagram that takes it. Raises TabiError."""
        if self.exits is None:
            assert self.open_way is not None
            self.exits = Exits(self, self.open_way)
        return await self.exits.get(via)

    def use(self, via: str, hops: Hops) -> None:
        """Have datagrams leave by a way out that is connected."""
        assert self.open_way is not None
        self.exits = Exits(self, self.open_way)
        self.exits.use(via, hops)

    def refuse(self, way: Way, reason: Drop, text: str, seconds: float = float("inf")) -> None:
        """Drop what waits for a way, and what comes in the next seconds. The first text is the log line's ``error``."""
        self.drop(reason, len(way.waiting))
        self.release(way.waiting)
        way.refuse(reason, self.associations.time() + seconds)
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
        if self.exits is not None:
            self.exits.sweep(now)
        total = self.session.datagrams_up + self.session.datagrams_down
        if total != self.seen:
            self.seen = total
            self.quiet_since = now
        elif now - self.quiet_since >= idle:
            self.close("idle")

    def give_up_fragments(self) -> None:
        """Drop what waits for the rest of a datagram."""
        if self.fragments is not None:
            self.associations.held -= self.fragments.octets
            self.drop("fragment", len(self.fragments.parts))
            self.fragments = None

    def cut(self, why: str) -> None:
        """A limit ends it, unless it has ended before the turn came to that."""
        if not self.closed:
            self.session.error = why
            self.close("limit")

    def close(self, reason: Close) -> None:
        """Close all sockets and hand the session in. Harmless when done twice."""
        if self.closed:
            return
        self.closed = True
        self.session.close = reason
        self.give_up_fragments()
        for task, way in tuple((self.lookups or {}).items()):
            task.cancel()
            self.drop("waiting", len(way.waiting))
            self.release(way.waiting)
        if self.exits is not None:
            self.exits.close()
        for outside in self.outside:
            outside.close()
        self.port.leave(self)
        self.associations.reactor.close(self.control)
        self.associations.finished(self)
