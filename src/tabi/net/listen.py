"""Listening sockets and the accept loop."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import random
import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from tabi.config import Listen
from tabi.net.reactor import Reactor
from tabi.session import UNIX
from tabi.url import Place
from tabi.wire.address import Address, from_sockaddr

log = logging.getLogger("tabi")

AF_UNIX = getattr(socket, "AF_UNIX", None)
BACKLOG = 4096
ACCEPTS_A_TURN = 64
BACK_OFF = 0.1
"""Seconds without accepting after the system had no descriptor or memory left."""

WARN_EVERY = 60.0
"""Seconds in which being short of descriptors is said once, and that it is over."""

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
NONBLOCK = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

Accepted = Callable[[Any, Any], object]
"""Called with a new socket and the peer's address as accept(2) gives it."""

Room = Callable[[], int]
"""How many more sessions there are descriptors for."""


def bind_listener(address: Address) -> socket.socket:
    """Bind a TCP socket for listening. Accepted connections inherit its TCP_NODELAY and SO_KEEPALIVE (tcp(7)).

    An IPv6 wildcard takes IPv4 too.

    Raises:
        OSError: as bind(2); socket.gaierror is one too.
    """
    host, port = str(address.host), address.port
    family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(sockaddr)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def open_listeners(place: Place) -> list[socket.socket]:
    """Bind what a listener's place stands for. Errors as `bind_listener`."""
    assert isinstance(place, Address)
    return [bind_listener(place)]


def urls_of(listen: Sequence[Listen], sockets: Sequence[Sequence[socket.socket]]) -> list[str]:
    """A URL for each socket, in the order of the listeners, with the ports that port 0 became."""
    return [
        str(url) if sock.family == AF_UNIX else url.at(from_sockaddr(sock.getsockname()))
        for url, group in zip((one.parsed for one in listen), sockets, strict=True)
        for sock in group
    ]


def unix_client(sock: Any) -> Address:
    """Who is at the other end of a unix socket: the user of the process that has connected (SO_PEERCRED, unix(7))."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Address(UNIX, uid)


def bind_port(sock: socket.SocketType, host: str, ports: range | None) -> None:
    """Bind a socket to an address and a free port of a range, from anywhere in it; None takes any port.

    Raises:
        OSError: as bind(2); EADDRINUSE where every port of the range is taken.
    """
    if ports is None:
        sock.bind((host, 0))
        return
    first = random.randrange(len(ports))  # noqa: S311 - spreads the load over the range, hides nothing
    for port in itertools.chain(ports[first:], ports[:first]):
        try:
            sock.bind((host, port))
            return
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no port of {ports[0]}-{ports[-1]} is free")


class Acceptor:
    """Accepts on one listening socket, whose owner closes it after `stop`.

    When descriptors or memory are used up it waits and tries again: who is connected stays, who comes waits in the
    backlog, and nothing spins. ``room`` is asked first, so that whoever is accepted gets a way out as well.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, accepted: Accepted, room: Room) -> None:
        self.reactor = reactor
        self.sock = sock
        self.family = sock.family
        self.accepted = accepted
        self.room = room
        self.listening = False
        self.exhausted = False
        self.next_warning = 0.0
        self.retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self.retry = None
        if not self.listening:
            self.listening = True
            self.reactor.register_listener(self.sock.fileno(), self.on_ready)

    def stop(self) -> None:
        """Accept no more."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        self.pause()

    def pause(self) -> None:
        """Leave new connections in the kernel's queue."""
        if self.listening:
            self.listening = False
            self.reactor.forget(self.sock.fileno())

    def on_ready(self, events: int) -> None:
        """Take a share of what waits; the rest shows up in the next turn, for this is level-triggered."""
        accept = self.sock._accept  # type: ignore[attr-defined]  # socket.accept less an object and a system call
        family = self.family
        room = self.room()
        if room <= 0:
            self.back_off("no descriptor would be left for another session")
            return
        for _ in range(min(room, ACCEPTS_A_TURN)):
            try:
                fd, address = accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in EXHAUSTED:
                    log.warning("accept: %s", exc)  # accept(2): pending network errors are handed on; try again
                    return
                self.back_off(exc.strerror or str(exc))
                return
            sock = socket.SocketType(family, NONBLOCK, 0, fd)  # knows that it is non-blocking
            sock.setblocking(False)
            if self.exhausted:
                self.exhausted = False
                log.warning("accept: goes on")
            self.accepted(sock, address)

    def back_off(self, reason: str) -> None:
        """Try again later, and say so once."""
        now = monotonic()
        if not self.exhausted and now >= self.next_warning:
            self.exhausted = True
            self.next_warning = now + WARN_EVERY
            log.warning("accept: %s; new connections wait", reason)
        self.pause()
        self.retry = self.reactor.loop.call_later(BACK_OFF, self.start)
