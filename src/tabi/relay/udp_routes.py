"""Where the datagrams of an association go: the route of each destination, and the sockets that they leave by.

    destination -> is it permitted, and by which egress? -> its addresses, or a proxy that finds them -> a socket

What needs the resolver or a proxy is done in a task, while the destination's datagrams wait.

Hot path: a run whose head is known finds its route in one lookup, in `Association.up`; here is the cost of a new route.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from tabi.errors import DialError, PolicyDenied, TabiError
from tabi.net.batch import Sock
from tabi.net.resolve import find_number
from tabi.net.sockaddr import decode_sockaddr, encode_sockaddr, on_link_of
from tabi.net.source import SourceBinding
from tabi.net.udp_path import UdpPath
from tabi.policy.guard import allow_any_address
from tabi.policy.policy import DestinationPolicy, Pending
from tabi.relay.udp_egresses import OpenPath, UdpEgresses, UpstreamSocket
from tabi.relay.udp_sockets import DestinationSocket, family_of
from tabi.session import Drop
from tabi.wire.address import Address, Host
from tabi.wire.datagram import decode_header, encode_header
from tabi.wire.socks5 import ReplyCode

if TYPE_CHECKING:
    from tabi.relay.datagram import Association
    from tabi.relay.udp_context import UdpContext

IP = IPv4Address | IPv6Address

MAX_ROUTES = 1024
"""Destinations that an association remembers; beyond that it forgets the oldest."""

MAX_CONTACTED = 4096
"""Hosts whose datagrams an association lets in; beyond that it forgets the oldest."""

MAX_LOOKUPS, MAX_WAITING = 16, 16
"""Names of one association that are resolved at a time, and datagrams that wait for each."""

MAX_STEPS = 4
"""How often a destination is judged anew while its route is found: an answer that is awaited, an egress to open."""

FORGET_REFUSAL = 10.0
"""Seconds after which a route that failed is tried again: a name that was not found or is forbidden, no socket."""

MAX_HELD = 1 << 17
"""Octets of payload of one association that wait for the resolver. Fragments have the reassembler's limit."""

RETRY = 1.0
"""Seconds until an egress is opened again that a proxy has ended."""


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
        """Drop what waits and what comes, until then."""
        self.sock = None
        self.refusal, self.until = reason, until
        self.waiting.clear()


class UdpRouter:
    """Finds the routes of one association and keeps them, and the sockets and egresses that they need.

    Args:
        association: sends what has waited for a route, and counts what was dropped.
        context: the context of the association.
        destination_policy: asked for every destination.
        open_path: opens whatever egress the destination policy names.
    """

    __slots__ = (
        "association",
        "contacted",
        "context",
        "destination_policy",
        "egresses",
        "held",
        "lookups",
        "open_path",
        "routes",
        "sockets",
    )

    def __init__(
        self,
        association: Association,
        context: UdpContext,
        destination_policy: DestinationPolicy,
        open_path: OpenPath | None,
    ) -> None:
        self.association = association
        self.context = context
        self.destination_policy = destination_policy
        self.open_path = open_path
        self.routes: dict[bytes, UdpRoute] = {}  # by header
        self.sockets: tuple[DestinationSocket, ...] = ()  # one for each family, and for each egress through proxies
        self.egresses: UdpEgresses | None = None
        self.contacted: dict[bytes, None] = {}  # octets of IP addresses, the oldest first
        self.lookups: dict[asyncio.Task[None], UdpRoute] | None = None
        self.held = 0  # octets that wait

    def hold(self, route: UdpRoute, payload: bytes) -> bool:
        """Have a payload wait for its route; False if there is no room for it."""
        octets, memory = len(payload), self.context.memory
        crowded = len(route.waiting) >= MAX_WAITING or self.held + octets > MAX_HELD
        if crowded or not memory.has_room(octets):
            return False
        route.waiting.append(payload)
        self.held += octets
        memory.held += octets
        return True

    def release(self, waiting: list[bytes]) -> None:
        """They wait no more."""
        octets = sum(map(len, waiting))
        self.held -= octets
        self.context.memory.held -= octets

    def find(self, destination: Address) -> UdpRoute:
        """The route of a destination: the one that is known, or a new one."""
        header = encode_header(destination)
        route = self.routes.get(header)
        if route is None or (route.refusal is not None and route.until <= self.context.time()):
            route = self.make_route(header, destination)
        return route

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
            for _ in range(MAX_STEPS):
                via = self.lead(route, destination, addresses)
                if via is None:
                    break
                await (via if isinstance(via, Pending) else self.open_egress(via))
        except TabiError as exc:
            self.refuse(route, "denied" if isinstance(exc, PolicyDenied) else reason, str(exc), FORGET_REFUSAL)
            return
        if route.sock is None and route.refusal is None:
            self.refuse(route, "unsent", "the egress has ended behind its opening", FORGET_REFUSAL)
        if isinstance(destination.host, str) and route.sock is not None and not route.head:
            self.association.found(destination, decode_sockaddr(route.address))
        waiting, route.waiting = route.waiting, []
        self.release(waiting)
        for payload in waiting:
            self.association.send_up(route, payload)

    async def is_resolved_there(self, destination: Address) -> bool:
        """Whether a destination is a name that a proxy on its way resolves. Raises TabiError."""
        host = destination.host
        if not isinstance(host, str) or find_number(host) is not None:
            return False
        via = self.destination_policy(destination, None)
        if isinstance(via, Pending):
            await via
            via = self.destination_policy(destination, None)
        return isinstance(via, str) and not (await self.open_egress(via)).resolves_locally

    async def resolve(self, host: Host) -> list[IP]:
        """The addresses of a destination, best first. Raises TabiError."""
        if not isinstance(host, str):
            return [host]
        dialer = self.context.dialer
        try:
            async with asyncio.timeout(dialer.seconds):
                addresses = await dialer.find(host, allow_any_address, self.association.session)
        except TimeoutError:
            raise DialError(f"{host}: not resolved within {dialer.seconds:g} s", ReplyCode.HOST_UNREACHABLE) from None
        # Of a name with both kinds, the client's own kind: a datagram that arrives nowhere gives no error.
        addresses.sort(key=lambda address: len(address.packed) != len(self.association.host))
        return addresses

    def lead(self, route: UdpRoute, destination: Address, addresses: list[IP]) -> str | Pending | None:
        """Have a route lead to one of the addresses, if all of them are permitted.

        Without addresses the destination is a name that the proxy resolves.

        Returns:
            The egress that has to be opened first, by name, or what has to be awaited; None if there is neither.
        """
        try:
            via = self.destination_policy(destination, addresses or None)
        except PolicyDenied as exc:
            self.refuse(route, "denied", str(exc))
            return None
        if via is None:
            self.lead_directly(route, destination.port, addresses, "direct", self.context.binding)
            return None
        if isinstance(via, Pending):
            return via
        name = str(via)
        path = None if self.egresses is None else self.egresses.open.get(name)
        if path is None:
            return name
        if not path.relays:
            self.lead_directly(route, destination.port, addresses, name, path.binding)
            return None
        upstream = next(sock for sock in self.sockets if sock.via == name)
        assert isinstance(upstream, UpstreamSocket)
        host = upstream.lead(route, destination, addresses)
        if host is not None:
            self.contact(host)
        return None

    def lead_directly(
        self, route: UdpRoute, port: int, addresses: list[IP], via: str, binding: SourceBinding | None
    ) -> None:
        """Have a route lead to the first address that there is a socket for."""
        failure = ""
        for address in addresses:
            host = getattr(address, "ipv4_mapped", None) or on_link_of(address, self.association.session.client.host)
            try:
                route.address = encode_sockaddr(Address(host, port))
                route.sock = self.socket_toward(host, via, binding)
            except OSError as exc:
                failure = f"{host}: {exc.strerror or exc}"
                continue
            self.contact(host)
            return
        self.refuse(route, "unsent", failure, FORGET_REFUSAL)

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
        destinations = DestinationSocket(self.association, self.context, via, family, binding)
        self.sockets = (*self.sockets, destinations)
        return destinations.sock

    async def open_egress(self, via: str) -> UdpPath:
        """The path of an egress, opened with the first datagram that takes it. Raises TabiError."""
        return await self.opened().get(via)

    def use(self, via: str, path: UdpPath) -> None:
        """Have datagrams leave by a path that is connected."""
        self.opened().use(via, path)

    def opened(self) -> UdpEgresses:
        """The egresses that were opened."""
        if self.egresses is None:
            assert self.open_path is not None
            self.egresses = UdpEgresses(self, self.context, self.open_path)
        return self.egresses

    def find_named(self, most: int) -> dict[Address, Address]:
        """The names that go directly to an address, by that address; the last ones, at most so many."""
        found: dict[Address, Address] = {}
        for header, route in self.routes.items():
            if route.sock is not None and not route.head:
                _, destination, _ = decode_header(header)
                if isinstance(destination.host, str):
                    found[decode_sockaddr(route.address)] = destination
        return dict(list(found.items())[-most:])

    def forget_senders(self) -> None:
        """Know the header of no sender any more."""
        self.association.senders.clear()
        for sock in self.sockets:
            sock.senders.clear()

    def add_upstream(self, via: str, path: UdpPath) -> UpstreamSocket:
        """Have a socket for an egress through proxies."""
        upstream = UpstreamSocket(self.association, self.context, via, path)
        self.sockets = (*self.sockets, upstream)
        return upstream

    def lose_upstream(self, upstream: UpstreamSocket) -> None:
        """Forget a socket whose proxy has ended the association: what would have left by it is dropped for a while."""
        self.sockets = tuple(sock for sock in self.sockets if sock is not upstream)
        for route in self.routes.values():
            if route.sock is upstream.sock:
                text = f"egress {upstream.via}: a proxy has ended the association"
                self.refuse(route, "unsent", text, RETRY)
        upstream.close()

    def refuse(self, route: UdpRoute, reason: Drop, text: str, seconds: float = float("inf")) -> None:
        """Drop what waits for a route or comes within ``seconds``. The first text is the log line's ``error``."""
        self.association.drop(reason, len(route.waiting))
        self.release(route.waiting)
        route.refuse(reason, self.context.time() + seconds)
        session = self.association.session
        if session.error is None:
            session.error = text

    def sweep(self, now: float) -> None:
        """Abandon fragments, from proxies, whose time is over."""
        for upstream in self.sockets:
            if isinstance(upstream, UpstreamSocket):
                upstream.sweep(now)

    def close(self) -> None:
        """Close all sockets and egresses, and drop what waits."""
        for task, route in tuple((self.lookups or {}).items()):
            task.cancel()
            self.association.drop("waiting", len(route.waiting))
            self.release(route.waiting)
        if self.egresses is not None:
            self.egresses.close()
        for destinations in self.sockets:
            destinations.close()
