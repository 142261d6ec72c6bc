"""The egress to a proxy that listens at a unix socket."""

from __future__ import annotations

import errno
import os
import socket

from tabi.egress.base import Egress
from tabi.errors import DialError
from tabi.net.dial import AddressFilter
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode


class AtPath(Egress):
    """Reaches the one proxy at ``path``, whatever it is asked for."""

    def __init__(self, path: str) -> None:
        self.path_of_socket = path

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`. connect(2) does not wait here: where the queue of the listener is full, it fails (EAGAIN)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self.path_of_socket)
            return Stream.from_socket(sock)
        except OSError as exc:
            sock.close()
            full = exc.errno == errno.EAGAIN
            text = "its queue of connections is full" if full else os.strerror(exc.errno or 0).lower()
            raise DialError(f"{self.path_of_socket}: {text}", ReplyCode.CONNECTION_REFUSED, exc.errno) from exc
