"""The client's side of UDP ASSOCIATE: datagrams through the relay of one SOCKS5 proxy, or of several in a row."""

from __future__ import annotations

import errno
import os
import socket
from asyncio import Lock
from collections import deque
from functools import lru_cache
from typing import Self

from tabi.net.batch import BATCH
from tabi.net.datagram import get_datagram_io
from tabi.net.reactor import BROKEN, IN, OUT, READABLE
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.wire.address import Address, Host
from tabi.wire.datagram import MAX_DATAGRAM, encode_header, make_address

Destination = tuple[Host, int]


@lru_cache(4096, typed=True)  # 53.0 and 53 are equal
def make_header(host: Host, port: int) -> bytes:
    """The header for a destination. Errors as `make_address`."""
    return encode_header(make_address(host, port))


class Association:
    """Datagrams to and from anywhere, through a proxy's relay. One task may receive while others send.

    It lasts as long as its control connections: close it with `close` or ``async with``.

    Args:
        path: the relays, one or more, with their control connections; closed with this one.

    Raises:
        DialError: the relay cannot be reached. Everything is closed then.
    """

    __slots__ = ("burst", "crowded", "layers", "path", "received", "relay", "sock", "turn", "udp")

    def __init__(self, path: UdpPath) -> None:
        self.path = path
        self.relay = path.relays[0]
        self.layers = path.layers()
        self.received: deque[tuple[bytes, Address]] = deque()
        self.crowded = False
        self.burst = 0  # sent since the last wait
        self.turn = Lock()  # of the tasks that wait for room
        reactor = path.controls[0].reactor
        path.connect()
        self.sock = path.take_socket()
        self.udp = Stream(reactor, self.sock)  # for its waits
        reactor.forget(self.udp.fd)
        reactor.register_reader(self.udp.fd, self.udp.on_ready)
        path.watch(self.on_end)

    def __repr__(self) -> str:
        return f"<Association relay={self.relay}>"

    @property
    def dropped(self) -> int:
        """Received datagrams that were not for us, or were fragments of a datagram that never became complete."""
        return self.layers.rejected + self.layers.fragments

    def on_end(self) -> None:
        """A proxy has ended it: a task that waits gets the error, after the datagrams that the kernel still has."""
        self.udp.on_ready(IN | OUT)

    def check(self) -> None:
        """Raise where the association is closed."""
        if self.udp.fd < 0:
            raise ConnectionAbortedError("the association is closed")

    async def send(self, data: bytes | bytearray | memoryview, destination: Address | Destination) -> None:
        """Send one datagram to (host, port), waiting while there is no room; a name is resolved by the last proxy.

        There is no sign whether it arrives.

        Raises:
            TypeError: the destination is not a pair, or its host is neither text nor an address.
            ValueError: the host or the port is not valid, or the datagram is longer than 65,507 octets with its header.
            ConnectionResetError: a proxy has ended the association.
            ConnectionRefusedError: the machine of the relay says that no program listens at its port. This datagram was
                not sent; the association goes on.
            ConnectionAbortedError: it is closed.
            OSError: as send(2).
        """
        try:
            host, port = destination
        except (TypeError, ValueError):
            raise TypeError(f"{destination!r} is not a destination, expected (host, port)") from None
        header, head = make_header(host, port), self.layers.head
        size = memoryview(data).nbytes
        if len(head) + len(header) + size > MAX_DATAGRAM:
            room = MAX_DATAGRAM - len(head) - len(header)
            raise ValueError(f"a datagram of {size} octets, expected at most {room} to this destination")
        if self.burst >= BATCH:
            self.burst = 0
            await self.udp.reactor.next_turn()  # a sender that always finds room must let the others have theirs
        self.burst += 1
        while True:
            self.check()
            if self.path.ended:
                raise self.end()
            try:
                self.sock.sendmsg((head, header, data))
                return
            except BlockingIOError:
                self.burst = 0
                async with self.turn:
                    await self.room()
            except OSError as exc:
                raise self.failure(exc) from None

    async def room(self) -> None:
        """Wait for room, or the end. The reactor reports room only during this wait: otherwise it would report it all
        the time."""
        udp, reactor = self.udp, self.udp.reactor
        if udp.fd < 0 or self.path.ended:
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
                if self.path.ended:
                    raise self.end()
                await self.udp.readable()
            elif self.crowded:
                self.crowded = False
                await self.udp.reactor.next_turn()  # a peer that floods us must not block the other tasks
            else:
                self.read()
        return self.received.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, Address]:
        """Return the next datagram, as `receive` does; the iteration ends when the association is closed.

        If the proxy ends the association, the iteration does not end: it raises as `receive` does.
        """
        try:
            return await self.receive()
        except ConnectionAbortedError:
            if self.udp.fd >= 0:  # then it is the system that says so
                raise
            raise StopAsyncIteration from None

    def read(self) -> None:
        """Take a batch from the kernel and keep our datagrams; if there is an error, raise it instead."""
        udp = self.udp
        if udp.events & BROKEN or not udp.reactor.edge_triggered:  # levels do not tell BROKEN
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            udp.events &= ~BROKEN
            if number and not self.path.ended:
                raise self.failure(OSError(number, os.strerror(number)))
        datagrams = get_datagram_io().receive_whole(self.sock, self.sock.family)
        self.crowded = len(datagrams) >= BATCH
        if not self.crowded:
            udp.events &= ~READABLE
        now = udp.reactor.loop.time()
        for datagram in datagrams:
            found = self.layers.unwrap(datagram, now)
            if found is not None:
                self.received.append(found)

    def end(self) -> ConnectionResetError:
        """The error after the end of a control connection."""
        return ConnectionResetError("the proxy has ended the association")

    def failure(self, exc: OSError) -> OSError:
        """The error to raise for one of the socket: an ICMP message means that no program listens at the relay."""
        if exc.errno == errno.ECONNREFUSED:
            return ConnectionRefusedError(exc.errno, f"no program listens at the proxy's relay {self.relay}")
        return exc

    def close(self) -> None:
        """End the association; tasks that wait get ConnectionAbortedError. Harmless when done twice."""
        self.udp.wake_waiting(ConnectionAbortedError("the association is closed"))
        self.udp.close()
        self.received.clear()
        self.path.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
