"""Stream: a socket that tasks can wait on, through the reactor.

A wait costs no system call and no trip through the loop's ready queue: what a task awaits is a `Readiness` that lives
as long as its stream, and the reactor resumes the task at once, inside its own turn. On asyncio's own loop a future, a
handle and a turn cost 3.8 us for each wait.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, Self

from tabi.net.reactor import BROKEN, ENDED, IN, OUT, READABLE, Reactor, get_reactor
from tabi.net.readiness import Readiness
from tabi.wire.address import Address, make_host

RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds (socket(7)): close sends RST
WRITABLE = OUT | BROKEN

BURST = 1 << 20
"""Octets that `Stream.send_all` sends without a wait before it lets other tasks run."""

SEND_COST = 4096
"""What a call of send(2) counts in addition to its octets: many short calls take time too."""

MSG_PEEK = int(socket.MSG_PEEK)
END_PAUSE = 0.02
"""Seconds between two tries to send an end that finds no room."""

PEEK_PAUSE = 0.01
"""Seconds between two looks at octets that were not enough, on a reactor that cannot tell of more."""


class Sock(Protocol):
    """What a stream needs of a socket: `socket.socket`, or the C class below it, which costs a third to make."""

    def fileno(self) -> int: ...
    def recv(self, size: int, flags: int = 0, /) -> bytes: ...
    def recv_into(self, buffer: bytearray | memoryview, /) -> int: ...
    def send(self, data: bytes | memoryview, /) -> int: ...
    def shutdown(self, how: int, /) -> None: ...
    def getsockname(self) -> Any: ...
    def getpeername(self) -> Any: ...
    def getsockopt(self, level: int, option: int, /) -> int: ...
    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None: ...
    def detach(self) -> int: ...
    def close(self) -> None: ...


class LayeredSock:
    """The base of a socket on top of another one, such as TLS: octets cannot be spliced past it."""

    __slots__ = ()


class SocketWithoutAddress(socket.socket):
    """A socket of a family that has no IP addresses, such as AF_UNIX: it reports 0.0.0.0:0."""

    def getsockname(self) -> Any:
        """See `socket.socket`."""
        return "0.0.0.0", 0  # noqa: S104  no place to listen at

    def getpeername(self) -> Any:
        """See `socket.socket`. Raises OSError where it is not connected."""
        super().getpeername()
        return "0.0.0.0", 0  # noqa: S104


class Stream:
    """A connected, non-blocking TCP or unix socket. One task may receive while another sends.

    The stream owns the socket: close it with `close`, `reset` or ``async with``, or take the socket away with `detach`.
    ``events`` is what is known of the socket's readiness; it is true until a call finds otherwise. ``peer`` is what was
    dialled, if that is known. ``on_gone`` is called when the peer has reset, or closed a unix socket, after those that
    wait here have been woken: for a task that waits for something else. (A reactor on levels does not tell of it.)
    """

    __slots__ = (
        "burst",
        "events",
        "expired",
        "fd",
        "local",
        "on_gone",
        "peer",
        "reactor",
        "reader",
        "replied",
        "sock",
        "unsent",
        "writer",
    )
    local: Any  # the sockaddr of its own end, where whoever dialled has looked already
    replied: Address | None  # BND of a reply; a session without a proxy leaves the slot empty, at no cost

    def __init__(self, reactor: Reactor, sock: Sock) -> None:
        self.reactor = reactor
        self.sock = sock
        self.fd = sock.fileno()
        self.events = 0
        self.expired = False
        self.burst = 0
        self.peer: Address | None = None
        self.on_gone: Callable[[], object] | None = None
        self.unsent = b""  # of `send_later`, what has found no room
        self.reader: Readiness | None = None
        self.writer: Readiness | None = None
        reactor.register(self.fd, self.on_ready)

    @classmethod
    def from_socket(cls, sock: socket.socket) -> Self:
        """Make a stream of a connected socket, in the running loop: for an egress that opens sockets by itself.

        The stream owns the socket from then on. It may be of any family, such as AF_UNIX or AF_VSOCK.

        Raises:
            OSError: it is not connected. The socket is unchanged; this holds for the errors below too.
            TypeError: it is not a `socket.socket`, or is an `ssl.SSLSocket`: give what is below, and call `start_tls`.
            ValueError: it carries datagrams.
            RuntimeError: no loop is running.
        """
        if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket):
            raise TypeError(f"{type(sock).__name__}, expected a socket.socket without TLS")
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"{sock.type!r}, expected a socket of SOCK_STREAM")
        reactor = get_reactor()
        sock.getpeername()
        sock.setblocking(False)
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            sock = SocketWithoutAddress(sock.family, sock.type, sock.proto, fileno=sock.detach())
        return cls(reactor, sock)

    def __repr__(self) -> str:
        return f"<Stream fd={self.fd}>"

    @property
    def bound(self) -> Address | None:
        """Where the proxy connected from, as its reply says it (BND): many say 0.0.0.0. None: not a SOCKS proxy."""
        return getattr(self, "replied", None)

    @property
    def name(self) -> Any:
        """The sockaddr of its own end. Raises OSError."""
        try:
            return self.local
        except AttributeError:
            return self.sock.getsockname()

    def on_ready(self, events: int) -> None:
        """The reactor's handler: remember what is ready, and resume the task that waits for it."""
        self.events |= events
        reader, writer = self.reader, self.writer
        if self.unsent and events & WRITABLE:
            self.go_on_sending(events)
        if not self.reactor.edge_triggered:
            self.watch_waiting(events)
        if reader is not None and events & READABLE and reader.callback is not None:
            reader.wake()
        if writer is not None and events & WRITABLE and writer.callback is not None:
            writer.wake()
        if events & BROKEN and self.on_gone is not None:
            self.on_gone()

    def watch_waiting(self, events: int) -> None:
        """On a level-triggered reactor: watch only the events that a task still waits for after these."""
        reading = self.reader is not None and self.reader.callback is not None and not events & READABLE
        writing = self.writer is not None and self.writer.callback is not None and not events & WRITABLE
        self.reactor.watch(self.fd, (reading and IN) | ((writing or self.unsent != b"") and OUT))

    def readable(self) -> Readiness:
        """What to await until there is something to read, an end or an error; ``events`` says whether there is."""
        self.check()
        reader = self.reader
        if reader is None:
            reader = self.reader = Readiness(self.reactor.loop)
        if not self.reactor.edge_triggered:
            writing = self.unsent or (self.writer is not None and self.writer.callback is not None)
            self.reactor.watch(self.fd, IN | (OUT if writing else 0))
        return reader

    def writable(self) -> Readiness:
        """What to await until there is room to write, or an error; of a new socket, until it is connected."""
        self.check()
        writer = self.writer
        if writer is None:
            writer = self.writer = Readiness(self.reactor.loop)
        if not self.reactor.edge_triggered:
            reading = self.reader is not None and self.reader.callback is not None
            self.reactor.watch(self.fd, OUT | (reading and IN))
        return writer

    def check(self) -> None:
        """Raise rather than wait for what cannot come any more."""
        if self.expired:
            raise TimeoutError("the deadline is over")
        if self.fd < 0:
            raise ConnectionAbortedError("the stream is closed")

    def receive_nowait(self, size: int) -> bytes | None:
        """Return the octets that are there, up to ``size``; ``b""`` at the end; None if there is nothing yet."""
        if not self.events & READABLE:
            return None
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            self.events &= ~READABLE
            return None
        if len(data) < size and not self.events & ENDED:
            self.events &= ~IN  # epoll(7): a short read has emptied the queue
        return data

    async def receive(self, size: int = 65536) -> bytes:
        """Return 1 to ``size`` octets as soon as there are some, ``b""`` at the end.

        Raises:
            ConnectionResetError, OSError: as recv(2).
            TimeoutError: the stream has expired.
        """
        while (data := self.receive_nowait(size)) is None:
            await self.readable()
        return data

    async def receive_exactly(self, count: int) -> bytes:
        """Return exactly ``count`` octets.

        Raises:
            asyncio.IncompleteReadError: the peer has ended before that; ``partial`` has what came.
            As `receive`.
        """
        parts: list[bytes] = []
        missing = count
        while missing > 0:
            data = await self.receive(min(missing, 1 << 18))
            if not data:
                raise asyncio.IncompleteReadError(b"".join(parts), count)
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what comes, in pieces, until the peer ends. Errors as `receive`."""
        while data := await self.receive():
            yield data

    async def peek(self, size: int, known: int = 0) -> bytes:
        """Return up to ``size`` octets as soon as there are more than ``known``, or the end is in sight; take none.

        ``b""`` is the end. On levels an end after octets that stay in the queue is not visible: there the call waits,
        as for a peer that has paused. Errors as `receive`.
        """
        while True:
            if self.events & READABLE:
                try:
                    data = self.sock.recv(size, MSG_PEEK)
                except BlockingIOError:
                    self.events &= ~READABLE
                else:
                    if len(data) > known or not data or self.events & ENDED:
                        return data
                    self.events &= ~IN  # what comes after these octets is a new edge
                    if not self.reactor.edge_triggered:
                        await asyncio.sleep(PEEK_PAUSE)  # a level would call at once, and again
                        continue
            await self.readable()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything, waiting while the peer does not read. Errors as `receive`."""
        if self.reactor.outbox:
            self.reactor.flush()
        while self.unsent:
            await self.writable()
        view = memoryview(data)
        if view.nbytes != len(view):  # send(2) counts octets
            view = view.cast("B")
        while view:
            if self.burst > BURST:
                self.burst = 0
                await self.reactor.next_turn()  # a sender that always finds room must let the others have theirs
                self.check()
            try:
                sent = self.sock.send(view)
            except BlockingIOError:
                self.burst = 0
                self.events &= ~OUT
                await self.writable()
            else:
                self.burst += sent + SEND_COST
                view = view[sent:]

    def send_soon(self, data: bytes) -> None:
        """Send a message that is known to fit, at the end of the reactor's turn: an empty send buffer takes 4 KiB and
        more (tcp(7)). If the peer is gone, the next receive finds it."""
        self.reactor.send_at_end(self.sock.send, data)

    def send_later(self, data: bytes) -> None:
        """Send a message at the end of the reactor's turn, and what finds no room then as soon as there is some.

        A caller that adds more checks ``unsent`` first. If the peer is gone, the next receive finds it.
        """
        self.reactor.send_at_end(self.send_now, data)

    def send_now(self, data: bytes) -> None:
        """Send what finds room, and keep the rest. Raises OSError as send(2)."""
        if self.unsent:
            self.unsent += data
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = data[sent:]
            self.events &= ~OUT
            if not self.reactor.edge_triggered:
                self.watch_waiting(0)

    def go_on_sending(self, events: int) -> None:
        """Send more: there is room, or the peer is gone. A reset is left for the next receive: it is reported only
        once."""
        data, self.unsent = self.unsent, b""
        if not events & BROKEN:
            try:
                self.send_now(data)
            except OSError:
                pass

    def send_eof(self) -> None:
        """Tell the peer that no more will be sent; receiving goes on.

        TLS has a message for that, which may find no room: then it is sent as soon as there is some.
        """
        self.reactor.flush()
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            # Rare, so that no event has to be looked at for it: room is looked for now and then.
            self.reactor.loop.call_later(END_PAUSE, self.send_eof_again)

    def send_eof_again(self) -> None:
        """Try again later to send the end. If the peer is gone, the next receive finds it."""
        if self.fd >= 0:
            try:
                self.send_eof()
            except OSError:
                pass

    def expire(self, error: BaseException | None = None) -> None:
        """End every wait on this stream, now and later, with TimeoutError. Called by a deadline.

        ``error`` is for the tasks that wait now, if the reason is another one.
        """
        self.expired = True
        self.wake_waiting(TimeoutError("the deadline is over") if error is None else error)

    @property
    def is_awaited(self) -> bool:
        """Whether a task waits for this stream."""
        return any(waiter is not None and waiter.callback is not None for waiter in (self.reader, self.writer))

    def wake_waiting(self, error: BaseException) -> None:
        """Fail the tasks that wait on this stream."""
        for waiter in (self.reader, self.writer):
            if waiter is not None:
                waiter.wake_soon(error)

    def close(self) -> None:
        """Close the socket; tasks that still wait on it get ConnectionAbortedError. Harmless when done twice."""
        if self.fd >= 0:
            self.fd = -1
            self.wake_waiting(ConnectionAbortedError("the stream is closed"))
            self.reactor.close(self.sock)

    async def aclose(self) -> None:
        """Close the stream. What was sent is delivered by the kernel. Harmless when done twice."""
        self.close()

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str) -> None:
        """Speak TLS from now on, as its client (STARTTLS). Nothing may be unread, and no other task may wait.

        The caller sets the deadline (`asyncio.timeout`). After a failure the stream can only be closed.

        Args:
            context: as of `ssl.create_default_context`.
            server_hostname: the name or address that the peer's certificate must have.

        Raises:
            RemoteProtocolError: the handshake failed, or the certificate is not accepted.
            As `receive`.
        """
        from tabi.net.tls import connect_tls, get_tls_shared  # late, because it imports this module

        await connect_tls(self, context, make_host(server_hostname), get_tls_shared())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The same information as asyncio's transports give, by the same names.

        ``peername``, ``sockname`` (as of `socket.socket`), ``socket`` (to look at, not to read or write), and inside
        TLS ``ssl_object``, ``sslcontext``, ``peercert``, ``cipher``, ``compression``.

        Returns:
            ``default`` if there is no such thing, or no longer.
        """
        tls = getattr(self.sock, "tls", None)
        asked: dict[str, Callable[[], Any]] = {
            "peername": self.sock.getpeername,
            "sockname": self.sock.getsockname,
            "socket": lambda: self.sock,
        }
        if tls is not None:
            asked |= {
                "ssl_object": lambda: tls,
                "sslcontext": lambda: tls.context,
                "peercert": tls.getpeercert,
                "cipher": tls.cipher,
                "compression": tls.compression,
            }
        try:
            found = asked[name]() if name in asked and self.fd >= 0 else None
        except (OSError, ValueError):  # it is not connected any more; no certificate was asked for
            found = None
        return default if found is None else found

    def reset(self) -> None:
        """Close it with a reset, so that the peer does not take this for an orderly end."""
        if self.fd >= 0:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except OSError:
                pass
            self.close()

    def moved(self) -> Stream:
        """A stream in the place of this one, which is closed then: for whoever takes it over from a caller that keeps
        it. Nobody may wait on this one."""
        other = Stream.__new__(Stream)
        other.reactor, other.sock, other.fd, other.events = self.reactor, self.sock, self.fd, self.events
        other.expired, other.burst, other.peer, other.unsent = False, 0, self.peer, self.unsent
        other.on_gone = other.reader = other.writer = None
        other.reactor.replace(other.fd, other.on_ready)
        self.fd, self.unsent = -1, b""
        return other

    def detach(self) -> socket.socket:
        """Take the socket out of the reactor and return it, non-blocking; the stream is then closed.

        Raises:
            ConnectionAbortedError: the stream is closed.
            OSError: there is TLS on the socket; the stream is unchanged.
        """
        if self.fd < 0:
            raise ConnectionAbortedError("the stream is closed")
        number = self.sock.detach()
        self.reactor.forget(number)
        self.fd = -1
        self.wake_waiting(ConnectionAbortedError("the stream is closed"))
        sock = socket.socket(fileno=number)
        sock.setblocking(False)
        return sock

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
