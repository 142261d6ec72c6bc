"""The egress that leads to the page of `intercept.page`: a destination within this process."""

from __future__ import annotations

import errno
import socket

from tabi.egress.base import Egress
from tabi.intercept.page import Page
from tabi.net.dial import AddressFilter
from tabi.net.failures import connect_error
from tabi.net.reactor import IN, READABLE, Reactor, get_reactor
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address

READ_SIZE = 1 << 14
MAX_REST = 1 << 20
"""Octets that a client may send behind its request; then the connection is closed."""


class PageEgress(Egress):
    """Opens connections to the page, whatever the destination. They carry one request each.

    Args:
        page: answers.
    """

    name = "page"

    def __init__(self, page: Page) -> None:
        self.page = page
        self.connections: set[PageConnection] = set()

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`. No address is dialled, so none is filtered."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            raise connect_error(exc.errno or errno.EIO, destination) from exc
        ours.setblocking(False)
        self.connections.add(PageConnection(self, ours, get_reactor()))
        return Stream.from_socket(theirs)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self.connections):
            connection.close()


class PageConnection:
    """The page's end of a connection, in the reactor's callbacks. It has no deadline: the client's end has some."""

    __slots__ = ("answered", "buffer", "egress", "reactor", "rest", "sock")

    def __init__(self, egress: PageEgress, sock: socket.socket, reactor: Reactor) -> None:
        self.egress = egress
        self.sock = sock
        self.reactor = reactor
        self.buffer = bytearray()
        self.answered = False
        self.rest = 0
        reactor.register(sock.fileno(), self.on_ready)
        reactor.watch(sock.fileno(), IN)

    def on_ready(self, events: int) -> None:
        """Read what has come; answer when the request is whole."""
        while events & READABLE:
            try:
                data = self.sock.recv(READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data or self.rest > MAX_REST:
                self.close()
                return
            if self.answered:
                self.rest += len(data)
            else:
                self.take(data)

    def take(self, data: bytes) -> None:
        """Octets of the request. The socket has room for the whole answer, some 10 KiB: it is the first."""
        self.buffer += data
        answer = self.egress.page.answer(self.buffer)
        if answer is None:
            return
        self.answered = True
        self.buffer.clear()
        try:
            self.sock.sendall(answer)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has gone: the end comes next

    def close(self) -> None:
        """Close this end."""
        self.egress.connections.discard(self)
        self.reactor.close(self.sock)
