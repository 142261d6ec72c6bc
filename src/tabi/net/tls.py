"""TLS over a stream: a socket over a socket, and the server's handshake.

OpenSSL works on memory here (ssl.MemoryBIO); what it wants read or sent goes through the socket below in reads of up
to 64 KiB for many records. That is as fast as `ssl.SSLSocket`, can end one direction and go on reading (RFC 8446
section 6.1), and TLS may be inside TLS.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from time import monotonic
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.net.reactor import IN, RDHUP, Reactor
from tabi.net.stream import MSG_PEEK, Sock, Stream

READ_SIZE = 1 << 16
"""Octets of one read from the socket below."""

CHUNK = 1 << 15
"""Octets that are encrypted before they are sent: what a connection holds for a peer that does not read."""

MAX_ANSWERS = 1 << 17
"""Octets that a peer may make OpenSSL answer (KeyUpdate) without reading them."""

MAX_FRUITLESS = 4 * READ_SIZE
"""Octets that one call reads without one of payload in them: who sends nothing but KeyUpdate keeps others waiting."""

HANDSHAKE_READ = 1 << 14
MAX_HANDSHAKE = 1 << 17
"""Octets of a client's whole handshake. OpenSSL itself takes a ClientHello of 131,396 octets and certificates of
102,400, and makes room for a message as soon as it knows the length."""

BRIEF = 0.0002
"""Seconds of a handshake's step after which others have their turn. A signature takes about 1 ms."""


class TlsSocket:
    """A socket for plaintext over one for ciphertext, with the contract of a non-blocking socket.

    Args:
        below: carries the ciphertext.
        tls: has done its handshake, over the other two.
        incoming: ciphertext to be decrypted.
        outgoing: ciphertext to be sent.
        reactor: told of an end that is inside TLS, where no edge of ``below`` will tell of it.
        buffer: shared by all that are as deep in TLS as this one.
    """

    __slots__ = (
        "below",
        "buffer",
        "ended",
        "incoming",
        "outgoing",
        "peeked",
        "reactor",
        "said_end",
        "silent",
        "tls",
        "unsent",
        "waiting",
    )

    def __init__(
        self,
        below: Sock,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        reactor: Reactor,
        buffer: memoryview,
    ) -> None:
        self.below = below
        self.tls = tls
        self.incoming = incoming
        self.outgoing = outgoing
        self.reactor = reactor
        self.buffer = buffer
        self.peeked = b""  # decrypted, but not taken
        self.unsent = memoryview(b"")  # ciphertext that the socket below has not taken
        self.waiting = 0  # octets of plaintext that the ciphertext stands for
        self.ended = False
        self.said_end = False
        self.silent = False

    # --- receiving ---

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As recv(2); MSG_PEEK is the only flag. Errors as `recv_into`."""
        buffer = bytearray(size)
        count = self.recv_into(buffer)
        data = bytes(memoryview(buffer)[:count])
        if flags & MSG_PEEK:
            self.peeked = data + self.peeked
        return data

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        """Fill ``buffer`` as far as possible; a short result means that nothing more is there. 0 is the end.

        An end without close_notify is an end: most clients end so, and what is relayed knows its own.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the peer broke TLS (`ssl.SSLError`), or the socket below failed.
        """
        view = memoryview(buffer)
        count = min(len(view), len(self.peeked))
        if count:
            view[:count] = self.peeked[:count]
            self.peeked = self.peeked[count:]
        return self.fill(view, count)

    def fill(self, view: memoryview, count: int) -> int:
        """Decrypt into ``view`` from ``count`` on; see `recv_into`."""
        size, incoming = len(view), self.incoming
        tls: Any = self.tls  # typeshed knows of reading into a bytearray only
        emptied, fruitless = False, 0
        while True:
            try:
                while count < size and (incoming.pending or tls.pending()):
                    octets = tls.read(size, view[count:])  # of one record
                    if not octets:
                        self.note_end()
                        break
                    count += octets
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:  # what an end is called where we have ended too
                self.note_end()
            except ssl.SSLError:
                self.answer()  # the alert
                raise
            if self.outgoing.pending:
                self.answer()
            if self.ended or count == size or (count and emptied):
                return count
            if fruitless > MAX_FRUITLESS and not count:
                raise OSError(errno.EPROTO, "TLS: the peer sends much, but no payload")
            try:
                octets = self.below.recv_into(self.buffer)
            except BlockingIOError:
                if count:
                    return count
                raise
            if not octets:
                self.note_end()
            fruitless += octets
            # epoll(7): a short read has emptied the queue. But an end behind half a record has to be seen now.
            emptied = octets < len(self.buffer)
            incoming.write(self.buffer[:octets])

    def note_end(self) -> None:
        """There is an end, perhaps behind octets that are not taken yet. No edge of the socket below tells of it."""
        if not self.ended:
            self.ended = True
            self.reactor.later(self.tell_end)

    def tell_end(self) -> None:
        """Tell whoever reads here, as an edge would."""
        handler = self.reactor.handlers.get(self.fileno())
        if handler is not None:
            handler(RDHUP)

    def answer(self) -> None:
        """Send what a read has produced, as far as it can be sent. Raises OSError."""
        try:
            self.flush()
        except BlockingIOError:
            if self.outgoing.pending > MAX_ANSWERS:
                raise OSError(errno.EPROTO, "TLS: the peer does not read what it makes us answer") from None

    # --- sending ---

    def send(self, data: bytes | memoryview, /) -> int:
        """As send(2), but what was encrypted has to be sent: the next call must begin with the octets that were not
        taken by this one. It sends what waits and says then how many of them that was.

        Raises:
            BlockingIOError: the socket below is full.
            OSError: it failed.
        """
        done = 0
        if self.waiting:
            self.flush()
            done, self.waiting = self.waiting, 0
        view = memoryview(data)
        while done < len(view):
            chunk = view[done : done + CHUNK]
            written = 0
            while written < len(chunk):
                written += self.tls.write(chunk[written:])  # of one record
            try:
                self.flush()
            except BlockingIOError:
                self.waiting = written
                if done:
                    return done
                raise
            done += written
        return done

    def flush(self) -> None:
        """Send all ciphertext. Raises BlockingIOError while some of it remains, and OSError."""
        while self.unsent or self.outgoing.pending:
            if not self.unsent:
                self.unsent = memoryview(self.outgoing.read())
            self.unsent = self.unsent[self.below.send(self.unsent) :]

    def shutdown(self, how: int, /) -> None:
        """Send close_notify, then shut down the socket below. Errors as `send`; after BlockingIOError call it again."""
        self.say_end()
        self.below.shutdown(how)

    def say_end(self) -> None:
        """Send close_notify. Errors as `send`."""
        if not self.said_end:
            # OpenSSL looks for the peer's close_notify at once, and fails on payload in front of it.
            try:
                while (self.incoming.pending or self.tls.pending()) and (data := self.tls.read(CHUNK)):
                    self.peeked += data
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                pass
            self.said_end = True
            try:
                self.tls.unwrap()
                self.note_end()  # the peer has ended before
            except ssl.SSLWantReadError:
                pass
        self.flush()

    def close(self) -> None:
        """Close both; close_notify is sent if that can be done at once and the close is no reset."""
        if not self.silent:
            try:
                self.say_end()
            except OSError:
                pass
        self.below.close()

    # --- what is the same below ---

    def fileno(self) -> int:
        """See `Sock`; so for the others."""
        return self.below.fileno()

    def getsockname(self) -> Any:
        return self.below.getsockname()

    def getpeername(self) -> Any:
        return self.below.getpeername()

    def getsockopt(self, level: int, option: int, /) -> int:
        return self.below.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self.silent = True  # a close that is a reset must not look like an orderly end
        self.below.setsockopt(level, option, value)

    def detach(self) -> int:
        """Raises OSError: below there is only ciphertext."""
        raise OSError(errno.EOPNOTSUPP, "TLS: no socket can be taken away from under it")


class TlsShared:
    """What the TLS connections of one reactor share: the buffer, and whose turn it is to compute."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(READ_SIZE))
        self.turn = asyncio.Lock()


async def accept_tls(client: Stream, context: ssl.SSLContext, shared: TlsShared) -> TlsSocket:
    """Do the server's part of a handshake, and put TLS between the stream and its socket.

    What the client has sent behind its handshake is received next. The deadline is the caller's.

    Returns:
        The stream's socket from now on.

    Raises:
        RemoteProtocolError: it failed; the alert is sent.
        TimeoutError, OSError: as `Stream.receive`.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    octets, failure, done = 0, "", False
    while not done:
        data = await client.receive(HANDSHAKE_READ)
        if not octets and data[:1] not in (b"\x16", b""):
            raise RemoteProtocolError(f"begins with {data[:16]!r}, expected TLS")
        octets += len(data)
        if not data:
            raise RemoteProtocolError("TLS: the client ended within the handshake")
        if octets > MAX_HANDSHAKE:
            raise RemoteProtocolError(f"TLS: a handshake of more than {MAX_HANDSHAKE} octets")
        incoming.write(data)
        async with shared.turn:
            client.check()
            began = monotonic()
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                failure = explain(exc)
            if monotonic() - began > BRIEF:
                await asyncio.sleep(0)  # holding the turn: one step of a handshake in a turn of the loop
        if outgoing.pending:
            await client.send_all(outgoing.read())
        if failure:
            raise RemoteProtocolError(failure)
    client.sock = sock = TlsSocket(client.sock, tls, incoming, outgoing, client.reactor, shared.buffer)
    client.events |= IN  # something may be decrypted already
    return sock


def explain(error: ssl.SSLError) -> str:
    """Say in one line why a handshake has failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        what = error.verify_message
        if what.startswith(("certificate has ", "certificate is ")):
            return f"TLS: the certificate of the client {what.removeprefix('certificate ')}"
        return f"TLS: the certificate of the client: {what}"
    reason = (error.reason or "failed").replace("_", " ").lower()
    said = reason.partition(" alert ")[2]
    return f"TLS: the client says: {said}" if said else f"TLS: {reason}"
