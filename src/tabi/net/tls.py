"""TLS over a stream: a socket over a socket, and the handshake of either side.

OpenSSL works on memory here (ssl.MemoryBIO); what it wants read or sent goes through the socket below in reads of up
to 64 KiB for many records. That is as fast as `ssl.SSLSocket`. It can also end one direction and go on reading (RFC
8446 section 6.1), and allows TLS inside TLS.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Protocol

from tabi.errors import ConfigError, RemoteProtocolError
from tabi.net.handshakes import Handshakes
from tabi.net.places import Places
from tabi.net.reactor import BROKEN, ENDED, IN, RDHUP, Reactor
from tabi.net.stream import MSG_PEEK, LayeredSock, Sock, Stream
from tabi.wire.address import Host

READ_SIZE = 1 << 16
"""Octets of one read from the socket below, at most."""

CHUNK = 1 << 16
"""Octets that are encrypted before they are sent: the most that a connection keeps for a peer that does not read."""

RECORD = 1 << 14
"""Octets of plaintext in a record, at most (RFC 8446 section 5.1)."""

MAX_ANSWERS = 1 << 17
"""Octets that a peer may make OpenSSL answer (KeyUpdate) without reading them."""

USUAL_READ, LEAST_READ = 1 << 11, 1 << 9
"""Octets of a first read, and of one behind a read that was `LONG`. As long as reads are full and quick, each is twice
as large as the one before, up to READ_SIZE."""

LONG = 0.0005
"""Seconds of decrypting one read after which others have their turn. 32 KiB of ordinary records take 0.02 ms, of those
with one octet each 1.2 ms, of KeyUpdate 10 ms."""

MAX_FRUITLESS = 1 << 18
"""Octets that are read without one of payload in them: a peer that sends only KeyUpdate would keep others waiting."""

FIRST_READ = 1 << 11
"""Octets of the first read of a handshake. They are kept until it is a client's turn; an ordinary ClientHello is
smaller."""

HANDSHAKE_READ = 1 << 14
MAX_HANDSHAKE = 1 << 17
"""Octets of a peer's whole handshake. OpenSSL itself takes a ClientHello of 131,396 octets and certificates of
102,400, and makes room for a message as soon as it knows the length."""

BRIEF = 0.0002
"""Seconds of a handshake's step after which others have their turn. A signature takes about 1 ms."""


class TlsSocket(LayeredSock):
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
        "appetite",
        "behind",
        "below",
        "buffer",
        "cut",
        "ended",
        "fruitless",
        "incoming",
        "outgoing",
        "peeked",
        "put_off",
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
        self.cut = False  # the end came without close_notify
        self.appetite = USUAL_READ  # octets of the next read
        self.fruitless = 0  # octets since the last payload
        self.put_off = False  # `go_on` is to be called
        self.behind = False  # an edge of the socket below may have been passed over
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
        """Fill ``buffer`` as far as possible. 0 is the end. After a short result, or none, the handler is called again
        when there is more: by an edge of the socket below, or in another turn where decrypting takes long.

        An end without close_notify is an end: most clients end so, and the relayed protocol has its own end. ``cut``
        says so where it has none.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the peer broke TLS (`ssl.SSLError`), or the socket below failed.
        """
        view, count = memoryview(buffer), 0
        if self.peeked:
            count = min(len(view), len(self.peeked))
            view[:count] = self.peeked[:count]
            self.peeked = self.peeked[count:]
        return self.fill(view, count)

    def fill(self, view: memoryview, count: int) -> int:
        """Decrypt into ``view`` from ``count`` on; see `recv_into`."""
        size, incoming = len(view), self.incoming
        tls: Any = self.tls  # typeshed knows of reading into a bytearray only
        full, began = False, 0.0
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
            except ssl.SSLZeroReturnError:  # the end, if we have ended too
                self.note_end()
            except ssl.SSLError:
                self.answer()  # the alert
                raise
            if self.outgoing.pending:
                self.answer()
            if count:
                self.fruitless = 0
                # epoll(7): a short read has emptied the queue. But an end behind half a record has to be seen now.
                if self.ended or count == size or (began and not full and not self.behind):
                    return count
            elif self.ended:
                return 0
            elif self.fruitless > MAX_FRUITLESS:
                raise OSError(errno.EPROTO, "TLS: the peer sends much, but no payload")
            if full:
                if monotonic() - began > LONG:
                    self.appetite = LEAST_READ
                    self.go_on_later()
                    if count:
                        return count
                    raise BlockingIOError
                self.appetite = min(2 * self.appetite, READ_SIZE)
            try:
                octets = self.below.recv_into(self.buffer[: self.appetite])
            except BlockingIOError:
                self.behind = False
                if count:
                    return count
                raise
            if not octets:
                self.cut = not self.ended
                self.note_end()
            self.fruitless += octets
            full = octets == self.appetite
            if not full and octets and self.appetite > USUAL_READ:
                self.appetite = USUAL_READ
            began = monotonic()
            incoming.write(self.buffer[:octets])

    def go_on_later(self) -> None:
        """Have the handler called again in another turn, behind those that wait already."""
        self.behind = True
        if not self.put_off:
            self.put_off = True
            self.reactor.later(self.go_on)

    def go_on(self) -> None:
        """Call the handler as an edge would."""
        self.put_off = False
        self.tell(IN)

    def note_end(self) -> None:
        """There is an end, perhaps behind octets that are not taken yet. No edge of the socket below tells of it."""
        if not self.ended:
            self.ended = True
            self.reactor.later(self.tell_end)

    def tell_end(self) -> None:
        """Wake the task that reads here, as an edge would."""
        self.tell(RDHUP)

    def tell(self, events: int) -> None:
        """Call the handler, unless the socket is closed."""
        handler = self.reactor.handlers.get(self.fileno())
        if handler is not None:
            handler(events)

    def answer(self) -> None:
        """Send what a read has produced, as far as it can be sent. Raises OSError."""
        try:
            self.flush()
        except BlockingIOError:
            if self.outgoing.pending > MAX_ANSWERS:
                raise OSError(errno.EPROTO, "TLS: the peer does not read what it makes us answer") from None

    # --- sending ---

    def send(self, data: bytes | memoryview, /) -> int:
        """As send(2), but encrypted octets must be sent: the next call must begin with the octets that this one did not
        take. It sends those that wait, and then returns their number.

        Raises:
            BlockingIOError: the socket below is full.
            OSError: it failed.
        """
        done = 0
        if self.waiting:
            self.flush()
            done, self.waiting = self.waiting, 0
        elif 0 < len(data) <= RECORD and not self.unsent:
            return self.send_record(data)
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

    def send_record(self, data: bytes | memoryview) -> int:
        """Send what fits into one record, where nothing waits: most messages. Errors as `send`."""
        written = self.tls.write(data)
        octets = self.outgoing.read()
        try:
            sent = self.below.send(octets)
            if sent < len(octets):
                self.unsent = memoryview(octets)[sent:]
                self.flush()
        except BlockingIOError:
            if not self.unsent:
                self.unsent = memoryview(octets)
            self.waiting = written
            raise
        return written

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
        """Close both; close_notify is sent if that can be done at once and the close is not a reset."""
        if not self.silent:
            try:
                self.say_end()
            except OSError:
                pass
        self.below.close()

    # --- what is the same below ---

    def fileno(self) -> int:
        """See `Sock`; this holds for the methods below too."""
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
    """What the TLS connections of one reactor share: buffers, and whose turn it is to compute.

    Args:
        handshakes: of a server, limits how many clients have begun TLS.
    """

    def __init__(self, handshakes: Handshakes | None = None) -> None:
        self.handshakes = handshakes
        self.buffers: list[memoryview] = []
        self.turn = Places(1)

    def buffer_over(self, below: Sock) -> memoryview:
        """The buffer for sockets at this depth of TLS: a socket that reads through another one needs its own buffer."""
        depth = 0
        while isinstance(below, TlsSocket):
            depth, below = depth + 1, below.below
        while len(self.buffers) <= depth:
            self.buffers.append(memoryview(bytearray(READ_SIZE)))
        return self.buffers[depth]


shared_by_loop: dict[asyncio.AbstractEventLoop, TlsShared] = {}


def get_tls_shared() -> TlsShared:
    """The `TlsShared` of the running loop, for code that is not a server."""
    loop = asyncio.get_running_loop()
    shared = shared_by_loop.get(loop)
    if shared is None:
        for old in list(shared_by_loop):  # other threads with loops of their own change it too
            if old.is_closed():
                shared_by_loop.pop(old, None)
        shared = shared_by_loop[loop] = TlsShared()
    return shared


def make_client_context(ca: str | None = None, protocols: Sequence[str] = ()) -> ssl.SSLContext:
    """A context for clients that verify the server's certificate and the name in it.

    Args:
        ca: a file with the authorities to trust, in PEM. Default: those of the system.
        protocols: offered by ALPN (RFC 7301), best first.

    Raises:
        ValueError: the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise ValueError(f"{ca}: no certificates in PEM") from None
        except OSError as exc:
            raise ValueError(f"{ca}: {exc.strerror or exc}") from None
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


WORDS = re.compile(r"^\[SSL\] (.+) \(_ssl\.c:")
"""What an error says that has no name."""

NOT_ITS_KEY = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""What OpenSSL says of another certificate's key: one of the same kind, and one of another kind, such as RSA for EC."""


def load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load a certificate with its key, both in PEM. It never asks for a passphrase.

    Raises:
        ConfigError: one of the files cannot be used; ``path`` is certificate or key.
    """
    encrypted = False

    def no_passphrase() -> str:
        nonlocal encrypted
        encrypted = True
        return ""

    try:
        with open(key, "rb"):
            pass
        context.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as exc:
        if encrypted:
            raise ConfigError(f"{key}: has a passphrase, expected a key without", "key") from None
        if exc.reason in NOT_ITS_KEY:
            raise ConfigError(f"{key}: is not the key of {certificate}", "key") from None
        if exc.reason is not None:
            raise ConfigError(f"{certificate}: {exc.reason.replace('_', ' ').lower()}", "certificate") from None
        raise ConfigError(f"{key}: no private key in PEM", "key") from None
    except OSError as exc:
        raise ConfigError(f"{key}: {exc.strerror or exc}", "key") from None


async def accept_tls(client: Stream, context: ssl.SSLContext, shared: TlsShared, whose: Hashable = None) -> TlsSocket:
    """Do the server's part of a handshake, and put TLS between the stream and its socket.

    What the client has sent after its handshake is received next. The caller sets the deadline. Of several handshakes
    that compute, those of one ``whose`` do not delay the others.

    Returns:
        The stream's socket from now on.

    Raises:
        RemoteProtocolError: it failed; the alert is sent.
        LimitExceeded: too many have begun.
        TimeoutError, OSError: as `Stream.receive`.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    make = partial(context.wrap_bio, incoming, outgoing, server_side=True)
    return await shake_hands(client, make, incoming, outgoing, shared, "client", whose)


class Wrapping(Protocol):
    """What makes TLS of memory: `ssl.SSLContext`, or what stands for one."""

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, server_hostname: str | None = None
    ) -> ssl.SSLObject:
        """See `ssl.SSLContext.wrap_bio`."""


async def connect_tls(server: Stream, context: Wrapping, host: Host, shared: TlsShared) -> TlsSocket:
    """Do the client's part of a handshake; the certificate must name ``host``, which is also the SNI if it is a
    name."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        tls = context.wrap_bio(incoming, outgoing, server_hostname=str(host).removesuffix("."))  # RFC 6066 section 3
    except ValueError:  # ssl's own words are of server_hostname
        raise RemoteProtocolError(f"TLS: {host} is not a name that a certificate can have") from None
    return await shake_hands(server, lambda: tls, incoming, outgoing, shared, "server")


ALERT = 31
"""Octets of an alert in a record of its own, at most (TLS 1.2, AES-GCM): a peer may say why it goes, and reset."""


class NothingSent(RemoteProtocolError):
    """The peer has ended or, as the cause says, reset the connection before its first octet."""


async def shake_hands(
    stream: Stream,
    make: Callable[[], ssl.SSLObject],
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    shared: TlsShared,
    peer: str,
    whose: Hashable = None,
) -> TlsSocket:
    """Do our part of a handshake with ``peer``, client or server; see `accept_tls`.

    The object that ``make`` makes takes memory, so that a client gets it only when it is its turn.
    """
    octets, data, failure, started, done = 0, b"", None, False, False
    tls: ssl.SSLObject | None = None
    serving = begins = peer == "client"
    line = hash(whose)  # once, since those of addresses take long; two that share one wait for each other, no more
    while not done:
        if begins:
            try:
                data = await stream.receive(HANDSHAKE_READ if octets else FIRST_READ)
            except ConnectionError as exc:
                if octets or not serving:
                    raise
                raise NothingSent(f"TLS: the {peer} has reset the connection") from exc
            # A handshake's record, or an alert's that a server may answer with (RFC 8446 section 5.1).
            if not octets and data[:1] not in ((b"\x16", b"") if serving else (b"\x16", b"\x15", b"")):
                raise RemoteProtocolError(f"begins with {data[:16]!r}, expected TLS")
            octets += len(data)
            if not data:
                kind = RemoteProtocolError if octets else NothingSent
                raise kind(f"TLS: the {peer} ended within the handshake")
            if octets > MAX_HANDSHAKE:
                raise RemoteProtocolError(f"TLS: a handshake of more than {MAX_HANDSHAKE} octets")
            incoming.write(data)
        begins, busy = True, not shared.turn.free
        async with shared.turn.held_by(line):
            stream.check()
            if stream.events & BROKEN and not (started and len(data) <= ALERT):  # nothing is computed for who has gone
                raise ConnectionResetError(errno.ECONNRESET, f"the {peer} has gone")
            if stream.events & ENDED and serving and not started:
                raise RemoteProtocolError(f"TLS: the {peer} ended within the handshake")
            began = monotonic()
            if tls is None:
                handshakes = shared.handshakes if serving else None
                if handshakes is not None and not handshakes.begin_tls(stream, began, busy):
                    begins = False
                    continue  # behind those that wait for their turn
                tls = make()
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as exc:
                failure = exc.with_traceback(None)  # which has this frame: it would be a circle
            if monotonic() - began > BRIEF:
                await stream.reactor.next_turn()  # holding the lock: one step of a handshake in a turn of the loop
        if outgoing.pending:
            started = True
            await stream.send_all(outgoing.read())
        if failure is not None:
            raise RemoteProtocolError(explain(failure, peer)) from failure
    assert tls is not None
    sock = TlsSocket(stream.sock, tls, incoming, outgoing, stream.reactor, shared.buffer_over(stream.sock))
    stream.sock = sock
    stream.events |= IN  # something may be decrypted already
    return sock


def explain(error: ssl.SSLError, peer: str = "client") -> str:
    """Say in one line why a handshake with ``peer`` has failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        what = error.verify_message
        if what.startswith(("certificate has ", "certificate is ")):
            return f"TLS: the certificate of the {peer} {what.removeprefix('certificate ')}"
        return f"TLS: the certificate of the {peer}: {what}"
    reason = reason_of(error)
    said = reason.partition(" alert ")[2]
    return f"TLS: the {peer} says: {said}" if said else f"TLS: {reason}"


def reason_of(error: ssl.SSLError) -> str:
    """What OpenSSL says of an error, in small letters. Python has a name for most, but not for all of them."""
    reason: str | None = getattr(error, "reason", None)
    if reason:
        return reason.replace("_", " ").lower()
    found = WORDS.search(str(error))
    return found[1].lower() if found else "failed"
