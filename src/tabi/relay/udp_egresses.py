"""The egresses of an association by name: each is opened once, with the first datagram that takes it.

Through proxies all datagrams leave by one socket to the first relay, with the headers of the others in front of the
destination's (`wire.datagram.Layers`), and what comes back bears them too.

Hot path: `DestinationSocket.on_ready` is called with each batch; here is the cost of a new head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from tabi.errors import DialError
from tabi.net.batch import Run
from tabi.net.sockaddr import encode_sockaddr
from tabi.net.udp_path import UdpPath
from tabi.relay.udp_sockets import IPV4_HEADER, DestinationSocket
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.datagram import encode_header
from tabi.wire.socks5 import ReplyCode

if TYPE_CHECKING:
    from tabi.relay.datagram import Association
    from tabi.relay.udp_context import UdpContext
    from tabi.relay.udp_routes import UdpRoute, UdpRouter

IP = IPv4Address | IPv6Address

OpenPath = Callable[[Session, str], Awaitable[UdpPath]]
"""Opens the egress of a name for a session's datagrams. Raises TabiError."""


class UpstreamSocket(DestinationSocket):
    """An association's socket toward the first of the relays of an egress.

    The head of a run tells the sender: it is all of the headers if it has the length of ``split``. ``anyone`` says
    that a name was sent to: only the last proxy knows the address of a name.
    """

    __slots__ = ("address", "anyone", "context", "layers", "path")

    by_head = True

    def __init__(self, association: Association, context: UdpContext, via: str, path: UdpPath) -> None:
        sock = path.take_socket()
        family = int(sock.family)
        self.take(association, context, via, 0, context.io.headed[family], sock)
        self.context = context
        self.senders: dict[bytes, bytes] = {}
        self.path = path
        self.layers = path.layers()
        self.anyone = False
        self.address = encode_sockaddr(path.relays[0])
        self.split = len(self.layers.head) + IPV4_HEADER
        context.controls += len(path.controls)
        self.reactor.register_reader(sock.fileno(), self.on_ready)

    def lead(self, route: UdpRoute, destination: Address, addresses: list[IP]) -> IP | None:
        """Have a route lead to the relay, and from there to one of the addresses, or to the name if there are none.

        Returns that address.
        """
        host = None
        if addresses:
            # A name whose addresses were decided on: IPv4 first, since it is unknown whether the proxy has IPv6.
            host = next((address for address in addresses if address.version == 4), addresses[0])
            destination = Address(host, destination.port)
        else:
            self.anyone = True
        route.sock, route.address = self.sock, self.address
        route.head = self.layers.head + encode_header(destination)
        return host

    def meet(self, run: Run) -> bytes | None:
        """See `DestinationSocket.meet`. Datagrams that are not cut just behind their headers are taken apart."""
        source, association = self.layers.read(run.head), self.association
        if source is None:
            self.unwrap_apart(run)
            return None
        if not self.lets_in(source):
            association.drop("unsolicited", run.count)
            return None
        header = encode_header(source)
        if association.watch is not None:
            association.watch("down", source)
        if association.inspection is not None:
            self.take_apart(run, source, header)
            return None
        self.remember(run.head, header)
        return header

    def lets_in(self, source: Address) -> bool:
        """Whether the client may hear a sender."""
        host = source.host
        return self.anyone or self.association.lets_in(b"" if isinstance(host, str) else host.packed)

    def unwrap_apart(self, run: Run) -> None:
        """Take the headers off one by one: of datagrams of new senders, fragments, rubbish."""
        association = self.association
        self.outbox.send()  # what came before goes before
        metered = association.fit_down is not None and association.inspection is None  # which asks for each by itself
        fitting = association.fit_down(run) if metered else run
        if fitting is None:
            return
        for index in range(fitting.count):
            self.carry(run.head + self.inbox.payload(run, index))

    def carry(self, datagram: bytes) -> None:
        """Carry one datagram, headers and all."""
        association, layers = self.association, self.layers
        rejected = layers.rejected
        with self.counting():
            found = layers.unwrap(datagram, self.context.time())
            if not self.context.memory.has_room(layers.octets):
                layers.abandon()
        association.drop("malformed", layers.rejected - rejected)
        if found is None:
            return
        payload, source = found
        if not self.lets_in(source):
            association.drop("unsolicited")
            return
        header = encode_header(source)
        self.split = len(layers.head) + len(header)  # as the next ones will have it
        association.carry_down(source, header, payload)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around what changes which fragments wait: they count among those of all associations, or as dropped."""
        memory, layers = self.context.memory, self.layers
        dropped = layers.fragments
        memory.held -= layers.octets
        try:
            yield
        finally:
            memory.held += layers.octets
            self.association.drop("fragment", layers.fragments - dropped)

    def sweep(self, now: float) -> None:
        """Abandon fragments whose time is over."""
        with self.counting():
            self.layers.expire(now)

    def close(self) -> None:
        """See `DestinationSocket`; with the connections to the proxies."""
        with self.counting():
            self.layers.abandon()
        super().close()
        self.context.controls -= len(self.path.controls)


class UdpEgresses:
    """The egresses of one association, by name.

    Args:
        router: has the sockets that they need.
        context: the context of the association.
        open_path: opens one.
    """

    def __init__(self, router: UdpRouter, context: UdpContext, open_path: OpenPath) -> None:
        self.router = router
        self.session = router.association.session
        self.context = context
        self.open_path = open_path
        self.open: dict[str, UdpPath] = {}
        self.opening: dict[str, asyncio.Task[UdpPath]] = {}

    async def get(self, via: str) -> UdpPath:
        """The path of an egress, which is opened if it is not open. Raises TabiError."""
        path = self.open.get(via)
        if path is not None:
            return path
        task = self.opening.get(via)
        if task is None:
            task = self.opening[via] = self.context.look_up(self.open_one(via))
            task.add_done_callback(partial(self.opened, via))
        return await asyncio.shield(task)  # each task that waits may be cancelled alone

    async def open_one(self, via: str) -> UdpPath:
        """Open an egress. Raises TabiError."""
        path = await self.open_path(self.session, via)
        path.connect(headed=True)
        self.use(via, path)
        if path.ended:
            text = f"egress {via}: a proxy has ended the association behind its reply"
            raise DialError(text, ReplyCode.GENERAL_FAILURE)
        return path

    def opened(self, via: str, task: asyncio.Task[UdpPath]) -> None:
        """An egress is open, or will not be."""
        del self.opening[via]
        if not task.cancelled():
            task.exception()  # the tasks that wait get it

    def use(self, via: str, path: UdpPath) -> None:
        """Have datagrams leave by a path that is connected. It is closed with the association."""
        self.open[via] = path
        self.session.via = via
        if path.relays:
            path.watch(partial(self.lose, self.router.add_upstream(via, path)))

    def lose(self, upstream: UpstreamSocket) -> None:
        """A proxy has ended its association: forget the path; a datagram that comes later opens it again."""
        del self.open[upstream.via]
        self.router.lose_upstream(upstream)
        upstream.path.close()

    def close(self) -> None:
        """Close all of them but the sockets, and open no more."""
        for task in self.opening.values():
            task.cancel()
        for path in self.open.values():
            path.close()
