"""The ways out of an association that are not straight: each is opened once, with the first datagram that takes it.

Through proxies all datagrams leave by one socket to the first relay, with the headers of the others in front of the
destination's (`wire.datagram.Layers`), and what comes back bears them too.

Hot path: what is called for each run is `Outside.on_ready`; here is what a head costs that was not seen before.
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
from tabi.net.hops import Hops
from tabi.net.sockaddr import encode_sockaddr, python_sockaddr
from tabi.relay.ends import IPV4_HEADER, MEMORY, Outside
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.datagram import MAX_DATAGRAM, encode_header
from tabi.wire.socks5 import ReplyCode

if TYPE_CHECKING:
    from tabi.relay.datagram import Association, Way

IP = IPv4Address | IPv6Address

OpenWay = Callable[[Session, str], Awaitable[Hops]]
"""Opens the way out of a name for a session's datagrams. Raises TabiError."""

RETRY = 1.0
"""Seconds until a way out is opened again that a proxy has ended."""


class Through(Outside):
    """An association's socket toward the first of the relays on a way out.

    Who sends is told by the head of a run, which is all of its headers where it has the length of ``split``. ``anyone``
    says that a name was sent to: which address that has only the last proxy knows.
    """

    __slots__ = ("address", "anyone", "hops", "layers")

    key = 1

    def __init__(self, association: Association, via: str, hops: Hops) -> None:
        sock = hops.take_socket()
        family = int(sock.family)
        self.take(association, via, 0, association.associations.mail.headed[family], sock)
        self.senders: dict[bytes, bytes] = {}
        self.hops = hops
        self.layers = hops.layers()
        self.anyone = False
        self.address = encode_sockaddr(hops.relays[0])
        self.split = len(self.layers.head) + IPV4_HEADER
        association.associations.controls += len(hops.controls)
        association.associations.reactor.register_reader(sock.fileno(), self.on_ready)

    def lead(self, way: Way, destination: Address, addresses: list[IP]) -> None:
        """Have a way lead to the relay, and from there to one of the addresses, or to the name where there are none."""
        if addresses:
            # A name whose addresses were decided on: IPv4 first, for whether the proxy has IPv6 nobody knows.
            host = next((address for address in addresses if address.version == 4), addresses[0])
            destination = Address(host, destination.port)
            self.association.contact(host)
        else:
            self.anyone = True
        way.sock, way.address = self.sock, self.address
        way.head = self.layers.head + encode_header(destination)

    def meet(self, run: Run) -> bytes | None:
        """See `Outside`. Datagrams that are not all header and payload, cut where they should be, are taken apart."""
        source = self.layers.read(run[1])
        if source is None:
            self.take_apart(run)
            return None
        if not self.lets_in(source):
            self.association.drop("stranger", run[4])
            return None
        header = encode_header(source)
        self.remember(run[1], header)
        return header

    def lets_in(self, source: Address) -> bool:
        """Whether the client may hear a sender."""
        association, host = self.association, source.host
        if self.anyone or association.udp.senders != "contacted":
            return True
        return not isinstance(host, str) and host.packed in association.contacted

    def take_apart(self, run: Run) -> None:
        """Carry datagrams one by one: of other senders than before, fragments, rubbish."""
        association = self.association
        association.associations.mail.outbox.send()  # what came before goes before
        fitting = run if association.fit_down is None else association.fit_down(run)
        if fitting is None:
            return
        for index in range(fitting[4]):
            self.carry(run[1] + self.inbox.payload(run, index))

    def carry(self, datagram: bytes) -> None:
        """Carry one datagram, headers and all."""
        association, layers = self.association, self.layers
        strangers = layers.strangers
        with self.counting():
            found = layers.unwrap(datagram, association.associations.time())
            if association.associations.held + layers.octets > MEMORY:
                layers.abandon()
        association.drop("malformed", layers.strangers - strangers)
        if found is None:
            return
        payload, source = found
        if not self.lets_in(source):
            association.drop("stranger")
            return
        header = encode_header(source)
        self.split = len(layers.head) + len(header)  # as the next ones will have it
        data = header + payload
        if len(data) > MAX_DATAGRAM:
            association.drop("too_large")
            return
        try:
            association.port.sock.sendto(data, python_sockaddr(association.client))
        except OSError:
            association.drop("unsent")
            return
        association.session.datagrams_down += 1
        association.session.down += len(payload)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around what changes which fragments wait: they count among those of all associations, or as dropped."""
        association, layers = self.association, self.layers
        dropped = layers.fragments
        association.associations.held -= layers.octets
        try:
            yield
        finally:
            association.associations.held += layers.octets
            association.drop("fragment", layers.fragments - dropped)

    def sweep(self, now: float) -> None:
        """Abandon fragments whose time is over."""
        with self.counting():
            self.layers.expire(now)

    def close(self) -> None:
        """See `Outside`; with the connections to the proxies."""
        with self.counting():
            self.layers.abandon()
        super().close()
        self.association.associations.controls -= len(self.hops.controls)


class Exits:
    """The ways out of one association, by name.

    Args:
        association: uses them.
        open_way: opens one.
    """

    def __init__(self, association: Association, open_way: OpenWay) -> None:
        self.association = association
        self.open_way = open_way
        self.open: dict[str, Hops] = {}
        self.opening: dict[str, asyncio.Task[Hops]] = {}

    async def get(self, via: str) -> Hops:
        """A way out, which is opened if it is not open. Raises TabiError."""
        hops = self.open.get(via)
        if hops is not None:
            return hops
        task = self.opening.get(via)
        if task is None:
            task = self.opening[via] = self.association.associations.look_up(self.open_one(via))
            task.add_done_callback(partial(self.opened, via))
        return await asyncio.shield(task)  # each of those who wait may be cancelled by itself

    async def open_one(self, via: str) -> Hops:
        """Open a way out. Raises TabiError."""
        hops = await self.open_way(self.association.session, via)
        hops.connect(headed=True)
        self.use(via, hops)
        if hops.ended:
            text = f"egress {via}: a proxy has ended the association behind its reply"
            raise DialError(text, ReplyCode.GENERAL_FAILURE)
        return hops

    def opened(self, via: str, task: asyncio.Task[Hops]) -> None:
        """A way out is open, or will not be."""
        del self.opening[via]
        if not task.cancelled():
            task.exception()  # told to whoever waits

    def use(self, via: str, hops: Hops) -> None:
        """Have datagrams leave by a way out that is connected. It is closed with the association."""
        association = self.association
        self.open[via] = hops
        association.session.via = via
        if hops.relays:
            through = Through(association, via, hops)
            association.outside = (*association.outside, through)
            hops.watch(partial(self.lose, through))

    def lose(self, through: Through) -> None:
        """A proxy has ended its association: forget the way out; a datagram that comes later opens it again."""
        association = self.association
        del self.open[through.via]
        association.outside = tuple(outside for outside in association.outside if outside is not through)
        for way in association.ways.values():
            if way.sock is through.sock:
                text = f"egress {through.via}: a proxy has ended the association"
                association.refuse(way, "unsent", text, RETRY)
        through.close()
        through.hops.close()

    def sweep(self, now: float) -> None:
        """Abandon fragments whose time is over."""
        for outside in self.association.outside:
            if isinstance(outside, Through):
                outside.sweep(now)

    def close(self) -> None:
        """Close all of them but the sockets, and open no more."""
        for task in self.opening.values():
            task.cancel()
        for hops in self.open.values():
            hops.close()
