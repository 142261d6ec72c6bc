"""One HTTP/1.1 request and its answer, carried between a client's connection and a destination's.

The head is sent on as `wire/http.py` rewrites it, content as it comes, in both directions at once if the request has
some. What decides, dials and speaks with the client is not here: it hands in both connections (`ingress/http.py`).
"""

from __future__ import annotations

import asyncio
from time import time
from typing import Protocol

from tabi.errors import LimitExceeded, RemoteProtocolError, TabiError
from tabi.net.reactor import ENDED, IN
from tabi.net.stream import Stream
from tabi.net.timeouts import IdleTimeouts
from tabi.policy.limits import DOWN, UP
from tabi.relay.carrier import Carrier
from tabi.relay.http_content import NOTHING, Endless, make_body, take, take_from
from tabi.relay.pacer import Pacer
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.http import (
    ANSWER_HEAD_LIMIT,
    CHUNKED,
    UNTIL_CLOSE,
    Request,
    Response,
    decode_response,
    encode_date,
    encode_request,
    encode_response,
)
from tabi.wire.http_framing import is_offered

READ_SIZE = 16384
"""Octets of one read of a head."""

CHUNK_SIZE = 65536
"""Octets of one read of content."""

SMALL = 4096
"""Octets of a message that is sent at the end of the reactor's turn: an empty send buffer has room for it (tcp(7))."""

INTERIM_LIMIT = 32
"""Interim responses to one request: each is progress, so that no deadline would end them."""


class ClientConnection(Protocol):
    """A client's connection, as an exchange needs it.

    Attributes:
        client: its stream.
        buffer: what was read from it after the request's head.
        session: of the request.
        moved: counts all that moves, so that idle connections are found.
        gone: the client has reset it.
        patience: calls `Exchange.expire` if nothing moves.
        keeps: it may wait for another request.
    """

    client: Stream
    buffer: bytearray
    session: Session
    moved: int
    gone: bool

    @property
    def patience(self) -> IdleTimeouts: ...
    @property
    def keeps(self) -> bool: ...

    async def send(self, octets: bytes) -> None:
        """Send to the client, within the idle deadline. Raises OSError."""

    def break_off(self) -> None:
        """Have the client's connection end with a reset."""


class ExchangeFailed(TabiError):
    """The destination gave no whole answer, and the client has nothing of one.

    Attributes:
        status: of HTTP, to answer in its place.
        error: the error type of RFC 9209 section 2.3.
        unanswered: not an octet of an answer has come, so that the destination may not have seen the request at all.
        says: for the client, where the message names what it is not to know, such as another server.
    """

    def __init__(
        self, status: int, error: str, message: str, unanswered: bool = False, says: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.unanswered = unanswered
        self.says = message if says is None else says


class ServerConnection:
    """The connection to a destination that a client's connection keeps.

    Attributes:
        address: where it leads: the destination, or a proxy on the way if there is one.
        user, parameters: of the user that opened it; the destination may have tied it to them (NTLM, Negotiate).
        egress, member: the egress that it takes, and its member.
        buffer: what was read from it and is not used up.
        used: it has answered a request.
        tls: it is inside TLS.
        authenticated: it was, or is about to be, authenticated as a whole (NTLM, Negotiate): requests with content go
            out on it, too, for another one would be refused.
    """

    __slots__ = (
        "address",
        "authenticated",
        "buffer",
        "destination",
        "egress",
        "member",
        "parameters",
        "stream",
        "tls",
        "used",
        "user",
    )

    def __init__(self, stream: Stream, address: Address, session: Session, egress: object, tls: bool = False) -> None:
        destination = session.destination
        assert destination is not None
        self.stream = stream
        self.destination = destination
        self.address = address
        self.user, self.parameters = session.user, session.parameters
        self.egress, self.member = egress, session.member
        self.buffer = bytearray()
        self.used = self.authenticated = False
        self.tls = tls

    @property
    def quiet(self) -> bool:
        """Whether it is fit for another request: nothing unasked has come, nor its end."""
        stream = self.stream
        if self.buffer or stream.events & ENDED:
            return False
        if not stream.reactor.edge_triggered:
            stream.events |= IN  # no event was seen for what came while no task waited
        try:
            # What is known of its readiness may be of octets that were read already.
            return not stream.events & IN or stream.receive_nowait(1) is None
        except OSError:
            return False


class Exchange:
    """One request and its answer, in both directions at once if the request has content.

    Args:
        connection: of the client.
        server: of the destination.
        request: what was asked for.
        carrier: gets both streams when the protocol has changed (101).
        pacer: makes the exchange wait if limits leave no room.
    """

    __slots__ = (
        "answered",
        "body",
        "carrier",
        "client",
        "connection",
        "fault",
        "lease",
        "pacer",
        "reading",
        "request",
        "server",
        "session",
        "stream",
        "uploaded",
    )

    def __init__(
        self,
        connection: ClientConnection,
        server: ServerConnection,
        request: Request,
        carrier: Carrier,
        pacer: Pacer,
    ) -> None:
        self.connection = connection
        self.client = connection.client
        self.session = connection.session
        self.server = server
        self.stream = server.stream
        self.request = request
        self.carrier = carrier
        self.pacer = pacer
        self.body = make_body(request.body)
        self.answered = False  # whether the client has any of the final answer
        self.reading = False  # whether we wait for the client to send more
        self.uploaded = False  # whether the destination's socket has taken the whole request
        # Of the client, found while its content was read.
        self.fault: OSError | RemoteProtocolError | LimitExceeded | None = None
        lease = self.session.lease
        self.lease = lease if lease is not None and lease.meters else None

    def expire(self) -> None:
        """The idle deadline: the tasks that wait on either side get TimeoutError."""
        self.stream.expire()
        if self.answered:
            self.client.expire()

    async def run(self) -> tuple[bool, bool]:
        """Carry it out; whether the client's connection goes on, and the destination's.

        Raises:
            ExchangeFailed: nothing has been answered yet, and the destination will not.
            OSError: the client's connection broke.
        """
        connection = self.connection
        connection.moved += 1
        octets, content = encode_request(self.request), b""
        if not self.body.done:
            try:
                content = take(connection.buffer, self.body)
            except RemoteProtocolError as exc:
                raise ExchangeFailed(400, "http_request_error", str(exc)) from exc
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
        uploading = self.stream.reactor.loop.create_task(self.upload())
        try:
            return await self.answer()
        except ExchangeFailed:
            if isinstance(self.fault, RemoteProtocolError):
                raise ExchangeFailed(400, "http_request_error", str(self.fault)) from self.fault
            if isinstance(self.fault, LimitExceeded):
                raise self.too_much(self.fault) from self.fault
            if self.fault is not None:
                raise self.fault from None
            raise
        finally:
            uploading.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
            if not self.uploaded:  # a destination that has part of it must not take that for the whole
                self.stream.reset()

    async def pour(self, sink: Stream, head: bytes, content: bytes, direction: int) -> None:
        """Send a head, and content in pieces as the lease allows; what was sent is counted.

        Raises:
            LimitExceeded: no more of it may be sent.
            OSError: as `Stream.send_all`.
        """
        lease, session, pacer, at = self.lease, self.session, self.pacer, 0
        assert lease is not None
        if head:
            await sink.send_all(head)
        while at < len(content):
            count = await pacer.take(lease, direction, len(content) - at)
            await sink.send_all(content[at : at + count])
            at += count
            self.connection.moved += 1
            if direction == UP:
                session.up += count
            else:
                session.down += count

    def too_much(self, exc: LimitExceeded) -> ExchangeFailed:
        """The error for a limit before an answer."""
        return ExchangeFailed(429, "connection_limit_reached", str(exc))

    def wrong_answer(self, what: str) -> ExchangeFailed:
        """The error for an answer that breaks the protocol."""
        return ExchangeFailed(502, "http_protocol_error", f"{self.request.destination}: {what}")

    def lost(self, exc: OSError) -> ExchangeFailed:
        """The error for a connection to the destination that breaks before an answer."""
        destination = self.request.destination
        if isinstance(exc, TimeoutError):
            seconds = self.connection.patience.limit(self.session.rule)
            if self.reading:
                return ExchangeFailed(408, "http_request_error", f"no more of the content within {seconds:g} s")
            return ExchangeFailed(504, "http_response_timeout", f"{destination}: no answer within {seconds:g} s")
        reason = (exc.strerror or str(exc)).lower()
        return ExchangeFailed(502, "connection_terminated", f"{destination}: {reason}", not self.server.buffer)

    async def upload(self) -> None:
        """Send the client's content as it comes. A destination that takes no more may still answer."""
        connection, body, stream = self.connection, self.body, self.stream
        try:
            while not body.done:
                self.reading = True
                data = await self.more(self.client, connection.buffer)
                self.reading = False
                if not data:
                    raise RemoteProtocolError("the client ended in the middle of the content")
                content = take_from(data, connection.buffer, body)
                try:
                    if self.lease is not None:
                        await self.pour(stream, b"", content, UP)
                        continue
                    await stream.send_all(content)
                except OSError:
                    return
                self.session.up += len(content)
                connection.moved += 1
            self.uploaded = True
        except (OSError, RemoteProtocolError, LimitExceeded) as exc:
            self.fault = exc
            stream.reset()  # it must not take what it has for the whole; and no task waits for its answer any more

    async def more(self, stream: Stream, waiting: bytearray) -> bytes:
        """More of some content: of what waits, in another turn of the loop, else what comes.

        Raises:
            LimitExceeded: the session's time is over. Who always finds octets waits for nothing, and is not told.
            As `Stream.receive`.
        """
        reactor, lease = stream.reactor, self.session.lease
        if waiting or reactor.late():
            await reactor.next_turn(stream)
            stream.check()
        if lease is not None and lease.ended is not None:
            raise lease.ended
        if not waiting:
            return await stream.receive(CHUNK_SIZE)
        data = bytes(waiting)
        waiting.clear()
        return data

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
        buffer, stream, request, method = self.server.buffer, self.stream, self.request, self.request.method
        for count in range(INTERIM_LIMIT):
            seen = 0
            try:
                while (
                    not buffer or (found := decode_response(buffer, method, ANSWER_HEAD_LIMIT, seen, count > 0)) is None
                ):
                    seen = len(buffer)
                    while (data := stream.receive_nowait(READ_SIZE)) is None:
                        await stream.readable()
                    if not data:
                        raise ConnectionResetError("the connection ended before its answer")
                    buffer += data
            except OSError as exc:
                raise self.lost(exc) from exc
            except RemoteProtocolError as exc:
                raise self.wrong_answer(str(exc)) from exc
            response, end = found
            del buffer[:end]
            self.connection.moved += 1
            if not response.interim:
                return response
            self.server.used = False  # it has seen the request: to ask again would repeat it
            if request.minor:
                await self.connection.send(encode_response(response, True))
        raise self.wrong_answer(f"more than {INTERIM_LIMIT} interim responses")

    async def switch(self, response: Response) -> None:
        """The connection is of another protocol from now on (RFC 9110 section 7.8): a relay carries it."""
        if self.request.upgrade is None:
            raise self.wrong_answer("101, which was not requested")
        if not is_offered(response.upgrade, self.request.upgrade):
            raise self.wrong_answer("101, for a protocol that was not requested")
        await self.connection.send(encode_response(response, True) + self.server.buffer)
        self.session.down += len(self.server.buffer)
        self.carrier.start(self.client, self.stream, self.session, b"", bytes(self.connection.buffer))

    async def download(self, response: Response) -> tuple[bool, bool]:
        """Send an answer on; whether the client's connection goes on, and the destination's."""
        request, client, server, session = self.request, self.client, self.server, self.session
        body = make_body(response.body)
        chunks = response.body == CHUNKED and not request.minor  # HTTP/1.0 does not know chunks: they are taken apart
        keep = request.keep_alive and self.body.done and response.body != UNTIL_CLOSE and not chunks
        keep = keep and self.connection.keeps
        date = b"" if response.dated else encode_date(int(time()))
        head = encode_response(response, keep, request.minor, None, date)
        lease = self.lease
        if lease is not None and body is not NOTHING and lease.left <= 0:
            self.stream.reset()
            raise self.too_much(LimitExceeded(lease.exhausted(), "quota"))
        try:
            content = take(server.buffer, body, chunks)
        except RemoteProtocolError as exc:
            self.stream.reset()
            raise self.wrong_answer(str(exc)) from exc
        self.answered = sending = True
        try:
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
                data = await self.more(self.stream, server.buffer)
                if not data:
                    if isinstance(body, Endless) and not (server.tls and getattr(self.stream.sock, "cut", False)):
                        break
                    raise RemoteProtocolError("the connection ended in the middle of the content")
                content = take_from(data, server.buffer, body, chunks)
                sending = True
                if lease is not None:
                    await self.pour(client, b"", content, DOWN)
                    continue
                await client.send_all(content)
                session.down += len(content)
                self.connection.moved += 1
        except LimitExceeded as exc:
            session.error, session.close = str(exc), "limit"
            if isinstance(body, Endless):  # a plain end would look like the end of the content
                self.connection.break_off()
            return False, False
        except (OSError, RemoteProtocolError) as exc:
            # The client has part of an answer: a reset says that it is not the whole.
            session.error = self.blame(exc, sending)
            session.close = "idle" if isinstance(exc, TimeoutError) else "reset"
            self.connection.break_off()
            return False, False
        except asyncio.CancelledError:  # the server closes
            self.connection.break_off()
            raise
        session.close = "server"
        server.used = True
        if response.authenticates_connection:
            server.authenticated = True
        return keep, response.keep_alive and self.uploaded and body.done and not server.buffer

    def blame(self, exc: OSError | RemoteProtocolError | LimitExceeded, sending: bool) -> str:
        """Which side has broken an answer off, and how; ``sending`` says that octets were being sent to the client."""
        whose = "the client" if sending else str(self.request.destination)
        if isinstance(exc, TimeoutError) and exc.errno is None:
            seconds = self.connection.patience.limit(self.session.rule)
            return f"{whose} took nothing for {seconds:g} s" if sending else f"{whose}: nothing came for {seconds:g} s"
        if not sending and self.connection.gone:
            return "the client has gone"
        if not sending and self.fault is not None:  # for which the destination was reset
            exc, whose = self.fault, "the client"
            if not isinstance(exc, OSError):
                return str(exc)
        reason = exc.strerror.lower() if isinstance(exc, OSError) and exc.strerror else str(exc)
        return f"{whose}: {reason}"
