"""The client's side of UDP ASSOCIATE: datagrams through the relay of one SOCKS5 proxy, or of several in a row.

Through a chain each proxy has an association of its own. A datagram bears a header for every one of them, the first
proxy's outermost; what the others' headers name is the relay of the proxy behind. So there is one socket however long
the chain is:

    | to relay 2 | to relay 3 | to the destination | DATA |  ->  relay 1  ->  relay 2  ->  relay 3  ->  destination
"""

from __future__ import annotations

import errno
import os
import socket
from asyncio import Lock, sleep
from collections import deque
from collections.abc import Sequence
from functools import lru_cache, partial
from ipaddress import IPv4Address, ip_address
from typing import Self

from tabi.errors import RemoteProtocolError
from tabi.net.batch import BATCH, Sock
from tabi.net.datagram import get_mail
from tabi.net.failures import local_error
from tabi.net.reactor import BROKEN, ENDED, IN, OUT, READABLE
from tabi.net.stream import Stream
from tabi.wire.address import Address, Host, make_host, unmap
from tabi.wire.datagram import MAX_DATAGRAM, Reassembler, decode_header, encode_header

Destination = tuple[Host, int]

READS = 16
"""Times that a control connection is read in one turn."""


def make_address(host: object, port: object) -> Address:
    """Check where a datagram is to go. Raises TypeError and ValueError."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"{port!r} is no port that datagrams go to, expected 1 to 65535")
    return Address(make_host(host), port)


@lru_cache(4096, typed=True)  # 53.0 and 53 are equal
def make_headers(hops: tuple[Address, ...], host: Host, port: int) -> bytes:
    """What stands in front of the payload: a header for each proxy. Errors as `make_address`."""
    return b"".join(map(encode_header, (*hops, make_address(host, port))))


def open_socket(control: Stream, relay: Address) -> Sock:
    """A UDP socket connected to a relay, from the address that its proxy knows us by. Raises DialError."""
    assert not isinstance(relay.host, str)
    sock = None
    try:
        sock = get_mail().open_socket(socket.AF_INET if isinstance(relay.host, IPv4Address) else socket.AF_INET6)
        local, _, *scope = control.sock.getsockname()
        if ip_address(local).version == relay.host.version:
            sock.bind((local, 0, *scope))  # the relay takes datagrams from the control connection's address only
            sock.connect((str(relay.host), relay.port, *scope))
        else:
            sock.connect((str(relay.host), relay.port))
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise local_error(exc, relay) from exc
    return sock


class Association:
    """Datagrams to and from anywhere, through a proxy's relay. One task may receive while others send.

    It lasts as long as its control connections: close it with `close` or ``async with``.

    Args:
        controls: the connections that asked for the associations, the first proxy's first; closed with this one.
        relays: what each proxy gave as BND, no names; the first is where the datagrams go.

    Raises:
        DialError: there is no way to the relay. The control connections are still open then.
    """

    __slots__ = (
        "burst",
        "controls",
        "crowded",
        "ended",
        "hops",
        "layers",
        "received",
        "relay",
        "sock",
        "strangers",
        "turn",
        "udp",
    )

    def __init__(self, controls: Sequence[Stream], relays: Sequence[Address]) -> None:
        self.controls = controls
        self.relay, self.hops = relays[0], tuple(relays[1:])
        # What a datagram's headers must say, outermost first: the next relay, and in the end anyone.
        self.layers = [(relay, Reassembler()) for relay in (*self.hops, None)]
        self.received: deque[tuple[bytes, Address]] = deque()
        self.strangers = 0
        self.crowded = False
        self.ended = False
        self.burst = 0  # sent since the last wait
        self.turn = Lock()  # of those who wait for room
        reactor = controls[0].reactor
        self.sock = open_socket(controls[0], self.relay)
        self.udp = Stream(reactor, self.sock)  # for its waits
        reactor.forget(self.udp.fd)
        reactor.register_reader(self.udp.fd, self.udp.on_ready)
        for control in controls:
            reactor.replace(control.fd, partial(self.on_control, control))
            reactor.watch(control.fd, IN)
            self.on_control(control, control.events)

    def __repr__(self) -> str:
        return f"<Association relay={self.relay}>"

    @property
    def dropped(self) -> int:
        """Datagrams that came and were none of ours, or were fragments of what never became whole."""
        return self.strangers + sum(reassembler.dropped for _, reassembler in self.layers)

    def on_control(self, control: Stream, events: int) -> None:
        """The reactor's handler of a control connection: octets mean nothing, the end is that of the association."""
        if control.fd < 0 or not (events & ENDED or self.has_ended(control)):
            return
        self.ended = True
        control.reactor.watch(control.fd, 0)
        self.udp.on_ready(IN | OUT)  # whoever waits finds out, after what the kernel still has

    def has_ended(self, control: Stream) -> bool:
        """Read what is there, for an end waits behind it; much is read in several turns."""
        for _ in range(READS):
            try:
                if not control.sock.recv(4096):
                    return True
            except BlockingIOError:
                return False
            except OSError:  # a reset is an end too
                return True
        control.reactor.later(partial(self.on_control, control, IN))
        return False

    def check(self) -> None:
        """Raise where the association is closed."""
        if self.udp.fd < 0:
            raise ConnectionAbortedError("the association is closed")

    async def send(self, data: bytes | bytearray | memoryview, destination: Address | Destination) -> None:
        """Send one datagram to (host, port), waiting while there is no room; a name is resolved by the last proxy.

        That it arrives nobody knows.

        Raises:
            TypeError: the destination is no pair, or its host neither text nor an address.
            ValueError: the host or the port is none, or the datagram is longer than 65,507 octets with its header.
            ConnectionResetError: a proxy has ended the association.
            ConnectionRefusedError: the machine of the relay says that nobody listens at its port. This datagram was
                not sent; the association goes on.
            ConnectionAbortedError: it is closed.
            OSError: as send(2).
        """
        try:
            host, port = destination
        except (TypeError, ValueError):
            raise TypeError(f"{destination!r} is no destination, expected (host, port)") from None
        headers = make_headers(self.hops, host, port)
        size = memoryview(data).nbytes
        if len(headers) + size > MAX_DATAGRAM:
            room = MAX_DATAGRAM - len(headers)
            raise ValueError(f"a datagram of {size} octets, expected at most {room} to this destination")
        if self.burst >= BATCH:
            self.burst = 0
            await sleep(0)  # who always finds room must not keep the other tasks from running
        self.burst += 1
        while True:
            self.check()
            if self.ended:
                raise self.end()
            try:
                self.sock.sendmsg((headers, data))
                return
            except BlockingIOError:
                self.burst = 0
                async with self.turn:
                    await self.room()
            except OSError as exc:
                raise self.failure(exc) from None

    async def room(self) -> None:
        """Wait for room, or the end. Only meanwhile does the reactor tell of room: it always would."""
        udp, reactor = self.udp, self.udp.reactor
        if udp.fd < 0 or self.ended:
            return
        reactor.forget(udp.fd)
        reactor.register(udp.fd, udp.on_ready)
        try:
            await udp.writable()
        finally:
            if udp.fd >= 0:
                reactor.forget(udp.fd)
                reactor.register_reader(udp.fd, udp.on_ready)

    async def receive(self) -> tuple[bytes, Address]:
        """Return the next datagram and where it came from. Cancelling loses none.

        Raises:
            ConnectionResetError: a proxy has ended the association, and everything before that was returned.
            ConnectionRefusedError, ConnectionAbortedError, OSError: as `send`.
        """
        while not self.received:
            self.check()
            if not self.udp.events & READABLE:
                if self.ended:
                    raise self.end()
                await self.udp.readable()
            elif self.crowded:
                self.crowded = False
                await sleep(0)  # whoever floods us must not keep the other tasks from running
            else:
                self.read()
        return self.received.popleft()

    def read(self) -> None:
        """Take a batch from the kernel and keep what is ours; raise the error instead if there is one."""
        udp = self.udp
        if udp.events & BROKEN or not udp.reactor.edge_triggered:  # levels do not tell BROKEN
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            udp.events &= ~BROKEN
            if number and not self.ended:
                raise self.failure(OSError(number, os.strerror(number)))
        datagrams = get_mail().receive_whole(self.sock, self.sock.family)
        self.crowded = len(datagrams) >= BATCH
        if not self.crowded:
            udp.events &= ~READABLE
        now = udp.reactor.loop.time()
        for datagram in datagrams:
            found = self.unwrap(datagram, now)
            if found is not None:
                self.received.append(found)

    def unwrap(self, datagram: bytes, now: float) -> tuple[bytes, Address] | None:
        """Take the headers off; None where it is a stranger's, rubbish, or a fragment."""
        for relay, reassembler in self.layers:
            try:
                frag, source, at = decode_header(datagram)
            except RemoteProtocolError:
                self.strangers += 1
                return None
            if relay is not None and unmap(source) != relay:
                self.strangers += 1
                return None
            whole = reassembler.add(frag, source, datagram[at:], now)
            if whole is None:
                return None
            datagram = whole
        return datagram, source

    def end(self) -> ConnectionResetError:
        """The error after the end of a control connection."""
        return ConnectionResetError("the proxy has ended the association")

    def failure(self, exc: OSError) -> OSError:
        """The error to raise for one of the socket: an ICMP message says who it is that does not listen."""
        if exc.errno == errno.ECONNREFUSED:
            return ConnectionRefusedError(exc.errno, f"nobody listens at the proxy's relay {self.relay}")
        return exc

    def close(self) -> None:
        """End the association; who waits gets ConnectionAbortedError. Harmless when done twice."""
        self.udp.wake_waiting(ConnectionAbortedError("the association is closed"))
        self.udp.close()
        self.received.clear()
        for control in self.controls:
            control.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
