"""Forwarding over HTTP/1.1: one request and its answer between a client's connection and a destination's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from tabi.egress.direct import Egress
from tabi.errors import LimitExceeded, RemoteProtocolError
from tabi.ingress.gate import Gate
from tabi.net.deadline import Quiet
from tabi.net.reactor import ENDED, IN
from tabi.net.stream import Stream
from tabi.policy.limits import DOWN, UP
from tabi.relay.carrier import Carrier
from tabi.relay.relays import Relays
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.http import (
    CHUNKED,
    HEAD_LIMIT,
    UNTIL_CLOSE,
    Chunked,
    Request,
    Response,
    decode_response,
    encode_request,
    encode_response,
)

READ_SIZE = 16384
"""Octets of one read of a head."""

CHUNK_SIZE = 65536
"""Octets of one read of content."""

SMALL = 4096
"""Octets of a message that is sent at the end of the reactor's turn: an empty send buffer has room for it (tcp(7))."""

INTERIM_LIMIT = 32
"""Interim responses to one request: each is progress, so that no deadline would end them."""


class KeptConnections:
    """The clients' connections that wait for another request: a server that drains ends them."""

    def __init__(self) -> None:
        self.draining = False
        self.clients: set[Stream] = set()

    def drain(self) -> None:
        """Keep none from now on."""
        self.draining = True
        for client in self.clients:
            client.expire()


class Forwarding(NamedTuple):
    """What forwarding needs of a server.

    Attributes:
        gate: says whether a request may be carried, and which way.
        relays: have the pacer of limits.
        idle: ends the connections on which nothing moves.
        over: hands in a session whose request is over, and begins it anew for the next.
        kept: gets the connections that wait for another request.
        carrier: has both streams of what has changed to another protocol (101).
    """

    gate: Gate
    relays: Relays
    idle: Quiet
    over: Callable[[Session], object]
    kept: KeptConnections
    carrier: Carrier


class Asking(Protocol):
    """A client's connection: its stream, what was read from it, its session, a count of all that moves, whether it was
    reset."""

    client: Stream
    buffer: bytearray
    session: Session
    moved: int
    gone: bool

    async def send(self, octets: bytes) -> None:
        """Send to the client, within the idle deadline. Raises OSError."""

    def break_off(self) -> None:
        """Have the client's connection end with a reset."""


class Counted:
    """Follows content of a known length; see `Chunked`."""

    __slots__ = ("left",)

    def __init__(self, octets: int) -> None:
        self.left = octets

    @property
    def done(self) -> bool:
        """Whether all of it was seen."""
        return not self.left

    def scan(self, data: bytes, payload: list[memoryview] | None = None) -> int:
        """How many octets of ``data`` belong to it."""
        count = min(len(data), self.left)
        self.left -= count
        return count


class Endless:
    """Follows content that ends with the connection."""

    __slots__ = ()

    done = False

    def scan(self, data: bytes, payload: list[memoryview] | None = None) -> int:
        """All of it belongs to it."""
        return len(data)


Body = Counted | Chunked | Endless


NOTHING = Counted(0)


def make_body(octets: int) -> Body:
    """What follows content as ``Request.body`` and ``Response.body`` announce it."""
    if not octets:
        return NOTHING
    if octets == CHUNKED:
        return Chunked()
    return Endless() if octets == UNTIL_CLOSE else Counted(octets)


class Failed(Exception):
    """The destination gave no whole answer: what to say to the client in its place.

    ``unanswered`` says that not an octet of an answer has come, so that it may not have seen the request at all.
    """

    def __init__(self, status: int, error: str, details: str, unanswered: bool = False) -> None:
        super().__init__(details)
        self.status = status
        self.error = error
        self.details = details
        self.unanswered = unanswered


class Server:
    """The connection to a destination that a client's connection keeps."""

    __slots__ = ("address", "buffer", "destination", "egress", "member", "parameters", "stream", "used", "user")

    def __init__(self, stream: Stream, address: Address, session: Session, egress: Egress) -> None:
        destination = session.destination
        assert destination is not None
        self.stream = stream
        self.destination = destination
        self.address = address
        # For whom it was opened, and to whom the destination may have tied it (NTLM, Negotiate).
        self.user, self.parameters = session.user, session.parameters
        self.egress, self.member = egress, session.member  # the way out that it goes
        self.buffer = bytearray()
        self.used = False

    @property
    def quiet(self) -> bool:
        """Whether it is fit for another request: nothing unasked has come, nor its end."""
        stream = self.stream
        if self.buffer or stream.events & ENDED:
            return False
        if not stream.reactor.edge_triggered:
            stream.events |= IN  # nothing has told of what came while nobody waited
        try:
            # What is known of its readiness may be of octets that were read already.
            return not stream.events & IN or stream.receive_nowait(1) is None
        except OSError:
            return False


class Exchange:
    """One request and its answer, in both directions at once where the request has content."""

    __slots__ = (
        "answered",
        "asking",
        "body",
        "client",
        "fault",
        "forwarding",
        "lease",
        "reading",
        "request",
        "server",
        "session",
        "stream",
        "uploaded",
        "uploading",
    )

    def __init__(self, asking: Asking, server: Server, request: Request, forwarding: Forwarding) -> None:
        self.asking = asking
        self.client = asking.client
        self.session = asking.session
        self.server = server
        self.stream = server.stream
        self.request = request
        self.forwarding = forwarding
        self.body = make_body(request.body)
        self.answered = False  # whether the client has any of the final answer
        self.uploading: asyncio.Task[None] | None = None
        self.reading = False  # whether the client is waited for, that it sends more
        self.uploaded = False  # whether the destination's socket has taken the whole request
        # Of the client, found while its content was read.
        self.fault: OSError | RemoteProtocolError | LimitExceeded | None = None
        lease = self.session.lease
        self.lease = lease if lease is not None and lease.meters else None

    def expire(self) -> None:
        """The idle deadline: whoever waits on either side gets TimeoutError."""
        self.stream.expire()
        if self.answered:
            self.client.expire()

    async def run(self) -> tuple[bool, bool]:
        """Carry it out; whether the client's connection goes on, and the destination's.

        Raises:
            Failed: nothing has been answered yet, and the destination will not.
            OSError: the client's connection broke.
        """
        asking = self.asking
        asking.moved += 1
        octets, content = encode_request(self.request), b""
        if not self.body.done:
            try:
                content = take(asking.buffer, self.body)
            except RemoteProtocolError as exc:
                raise Failed(400, "http_request_error", str(exc)) from exc
            if self.lease is None:
                octets += content
                self.session.up += len(content)
        try:
            if self.lease is not None and content:
                await self.pour(self.stream, octets, content, UP)
            elif len(octets) <= SMALL:
                self.stream.send_later(octets)  # the destination has read all that was sent before
            else:
                await self.stream.send_all(octets)
        except OSError as exc:
            raise self.lost(exc) from exc
        except LimitExceeded as exc:
            self.stream.reset()  # it must not take what it has for the whole
            raise self.too_much(exc) from exc
        if self.body.done:
            self.uploaded = True
            return await self.answer()
        self.uploading = self.stream.reactor.loop.create_task(self.upload())
        try:
            return await self.answer()
        except Failed:
            if isinstance(self.fault, RemoteProtocolError):
                raise Failed(400, "http_request_error", str(self.fault)) from self.fault
            if isinstance(self.fault, LimitExceeded):
                raise self.too_much(self.fault) from self.fault
            if self.fault is not None:
                raise self.fault from None
            raise
        finally:
            await self.end_upload()

    async def end_upload(self) -> None:
        """Read no more of the client's content; a destination that has part of it must not take that for the whole."""
        if self.uploading is not None:
            uploading, self.uploading = self.uploading, None
            uploading.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
            if not self.uploaded:
                self.stream.reset()

    async def pour(self, sink: Stream, head: bytes, content: bytes, direction: int) -> None:
        """Send a head, and content in pieces as the lease allows; what was sent is counted.

        Raises:
            LimitExceeded: no more of it may be sent.
            OSError: as `Stream.send_all`.
        """
        lease, session, pacer, at = self.lease, self.session, self.forwarding.relays.pacer, 0
        assert lease is not None
        if head:
            await sink.send_all(head)
        while at < len(content):
            count = await pacer.take(lease, direction, len(content) - at)
            await sink.send_all(content[at : at + count])
            at += count
            self.asking.moved += 1
            if direction == UP:
                session.up += count
            else:
                session.down += count

    def too_much(self, exc: LimitExceeded) -> Failed:
        """What a limit means before an answer."""
        return Failed(429, "connection_limit_reached", str(exc))

    def lost(self, exc: OSError) -> Failed:
        """What a broken connection to the destination means before an answer."""
        destination = self.request.destination
        if isinstance(exc, TimeoutError):
            seconds = self.forwarding.idle.seconds
            if self.reading:
                return Failed(408, "http_request_error", f"no more of the content within {seconds:g} s")
            return Failed(504, "http_response_timeout", f"{destination}: no answer within {seconds:g} s")
        reason = (exc.strerror or str(exc)).lower()
        return Failed(502, "connection_terminated", f"{destination}: {reason}", not self.server.buffer)

    async def upload(self) -> None:
        """Send the client's content as it comes. A destination that takes no more may still answer."""
        asking, body, stream = self.asking, self.body, self.stream
        try:
            while not body.done:
                self.reading = True
                data = await self.client.receive(CHUNK_SIZE)
                self.reading = False
                if not data:
                    raise RemoteProtocolError("the client ended in the middle of the content")
                content = take_from(data, asking.buffer, body)
                try:
                    if self.lease is not None:
                        await self.pour(stream, b"", content, UP)
                        continue
                    await stream.send_all(content)
                except OSError:
                    return
                self.session.up += len(content)
                asking.moved += 1
            self.uploaded = True
        except (OSError, RemoteProtocolError, LimitExceeded) as exc:
            self.fault = exc
            stream.reset()  # it must not take what it has for the whole; and nobody waits for its answer any more

    async def answer(self) -> tuple[bool, bool]:
        """Read the destination's answer and send it on; see `run`."""
        response = await self.read_response()
        self.session.reply_code = response.status
        if response.status == 101:
            await self.switch(response)
            return False, False
        return await self.download(response)

    async def read_response(self) -> Response:
        """The final response's head; those before it are sent on as they come."""
        buffer, stream, request = self.server.buffer, self.stream, self.request
        for _ in range(INTERIM_LIMIT):
            seen = 0
            try:
                while not buffer or (found := decode_response(buffer, request.method, HEAD_LIMIT, seen)) is None:
                    seen = len(buffer)
                    while (data := stream.receive_nowait(READ_SIZE)) is None:
                        await stream.readable()
                    if not data:
                        raise ConnectionResetError("the connection ended before its answer")
                    buffer += data
            except OSError as exc:
                raise self.lost(exc) from exc
            except RemoteProtocolError as exc:
                raise Failed(502, "http_protocol_error", f"{request.destination}: {exc}") from exc
            response, end = found
            del buffer[:end]
            self.asking.moved += 1
            if not response.interim:
                return response
            self.server.used = False  # it has seen the request: to ask again would be to ask twice
            if request.minor:
                await self.asking.send(encode_response(response, True))
        raise Failed(502, "http_protocol_error", f"{request.destination}: more than {INTERIM_LIMIT} interim responses")

    async def switch(self, response: Response) -> None:
        """The connection is of another protocol from now on (RFC 9110 section 7.8): a relay carries it."""
        if self.request.upgrade is None:
            raise Failed(502, "http_protocol_error", f"{self.request.destination}: 101, and nobody asked for it")
        await self.asking.send(encode_response(response, True) + self.server.buffer)
        self.session.down += len(self.server.buffer)
        self.forwarding.carrier.start(self.client, self.stream, self.session, b"", bytes(self.asking.buffer))

    async def download(self, response: Response) -> tuple[bool, bool]:
        """Send an answer on; whether the client's connection goes on, and the destination's."""
        request, client, server, session = self.request, self.client, self.server, self.session
        body = make_body(response.body)
        chunks = response.body == CHUNKED and not request.minor  # HTTP/1.0 does not know them: they are taken apart
        keep = request.keep_alive and self.body.done and response.body != UNTIL_CLOSE and not chunks
        keep = keep and not self.forwarding.kept.draining
        head = encode_response(response, keep, request.minor)
        lease = self.lease
        if lease is not None and body is not NOTHING and lease.left <= 0:
            self.stream.reset()
            raise self.too_much(LimitExceeded(lease.exhausted(), "quota"))
        self.answered = sending = True
        try:
            content = take(server.buffer, body, chunks)
            octets = head + content
            if lease is not None and content:
                await self.pour(client, head, content, DOWN)
            elif len(octets) <= SMALL and keep and body.done and not client.unsent:
                session.down += len(content)
                client.send_later(octets)
            else:
                session.down += len(content)
                await client.send_all(octets)
            while not body.done:
                sending = False
                data = await self.stream.receive(CHUNK_SIZE)
                if not data:
                    if isinstance(body, Endless):
                        break
                    raise RemoteProtocolError("the connection ended in the middle of the content")
                content = take_from(data, server.buffer, body, chunks)
                sending = True
                if lease is not None:
                    await self.pour(client, b"", content, DOWN)
                    continue
                await client.send_all(content)
                session.down += len(content)
                self.asking.moved += 1
        except LimitExceeded as exc:
            session.error, session.close = str(exc), "limit"
            if isinstance(body, Endless):  # a plain end would look like the end of the content
                self.asking.break_off()
            return False, False
        except (OSError, RemoteProtocolError) as exc:
            # The client has part of an answer: a reset says that it is not the whole.
            session.error = self.blame(exc, sending)
            session.close = "idle" if isinstance(exc, TimeoutError) else "reset"
            self.asking.break_off()
            return False, False
        except asyncio.CancelledError:  # the server closes
            self.asking.break_off()
            raise
        session.close = "server"
        server.used = True
        return keep, response.keep_alive and self.uploaded and body.done and not server.buffer

    def blame(self, exc: OSError | RemoteProtocolError | LimitExceeded, sending: bool) -> str:
        """Who has broken an answer off, and how; ``sending`` says that the client was being sent to."""
        whose = "the client" if sending else str(self.request.destination)
        if isinstance(exc, TimeoutError) and exc.errno is None:
            seconds = self.forwarding.idle.seconds
            return f"{whose} took nothing for {seconds:g} s" if sending else f"{whose}: nothing came for {seconds:g} s"
        if not sending and self.asking.gone:
            return "the client has gone"
        if not sending and self.fault is not None:  # for which the destination was reset
            exc, whose = self.fault, "the client"
            if not isinstance(exc, OSError):
                return str(exc)
        reason = exc.strerror.lower() if isinstance(exc, OSError) and exc.strerror else str(exc)
        return f"{whose}: {reason}"


def take(buffer: bytearray, body: Body, content_only: bool = False) -> bytes:
    """Take out of a buffer what belongs to a body. Raises RemoteProtocolError."""
    if not buffer:
        return b""
    data = bytes(buffer)
    buffer.clear()
    return take_from(data, buffer, body, content_only)


def take_from(data: bytes, rest: bytearray, body: Body, content_only: bool = False) -> bytes:
    """What of ``data`` belongs to a body; what does not goes to ``rest``, which is empty. Raises RemoteProtocolError.

    ``content_only`` takes chunks apart.
    """
    pieces: list[memoryview] | None = [] if content_only else None
    end = body.scan(data, pieces)
    if end < len(data):
        rest += data[end:]
        data = data[:end]
    return data if pieces is None else b"".join(pieces)
