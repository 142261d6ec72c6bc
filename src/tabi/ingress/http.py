"""The HTTP ingress: CONNECT becomes a tunnel, any other request is forwarded, one after another on kept connections.

    CONNECT        host:port         decide, open, answer, carry: the relay of every other protocol
    GET, POST, …   http://host/path  each request is a session: decide, open (or use again), forward, log

A client's connection keeps at most one connection to a destination, its own: what a server has learned about one
client (NTLM) never serves another. Requests that change something never go out on one that was used before, for nobody
can tell whether a server that closes it has taken them (RFC 9112 section 9.3.1).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from tabi.egress.direct import Direct
from tabi.errors import DialError, HttpError, PolicyDenied, RemoteProtocolError, TabiError
from tabi.ingress.authenticate import Authenticate, identify
from tabi.ingress.conversation import Commands
from tabi.net.deadline import Deadlines
from tabi.net.reactor import ENDED, IN
from tabi.net.stream import Stream
from tabi.policy.guard import permit_for
from tabi.relay.relay import Relays
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr
from tabi.wire.http import (
    CHUNKED,
    CONNECT_ESTABLISHED,
    HEAD_LIMIT,
    UNTIL_CLOSE,
    Chunked,
    Field,
    Request,
    Response,
    decode_basic,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)
from tabi.wire.socks5 import Command, Reply, ReplyCode

READ_SIZE = 16384
"""Octets of one read of a head."""

CHUNK_SIZE = 65536
"""Octets of one read of content."""

INTERIM_LIMIT = 32
"""Interim responses to one request: each is progress, so that no deadline would end them."""

UNROUTABLE = frozenset(
    (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
)

CHALLENGE: tuple[Field, ...] = ((b"Proxy-Authenticate", b'Basic realm="tabi", charset="UTF-8"'),)

# RFC 9110 section 9.2.2, less those that nobody sends through a proxy twice by intention.
REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


class Counted:
    """Follows content of a known length; see `Chunked`."""

    __slots__ = ("left",)

    def __init__(self, octets: int) -> None:
        self.left = octets

    @property
    def done(self) -> bool:
        """Whether all of it was seen."""
        return not self.left

    def scan(self, data: bytes | bytearray) -> int:
        """How many octets of ``data`` belong to it."""
        count = min(len(data), self.left)
        self.left -= count
        return count


class Endless:
    """Follows content that ends with the connection."""

    __slots__ = ()

    done = False

    def scan(self, data: bytes | bytearray) -> int:
        """All of it belongs to it."""
        return len(data)


Body = Counted | Chunked | Endless


def make_body(octets: int) -> Body:
    """What follows content as ``Request.body`` and ``Response.body`` announce it."""
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
        egress: opens the destinations.
        relays: carry what has changed to another protocol (101).
        idle: the deadline of all but heads of requests: it begins again with everything that moves.
        over: hands in a session whose request is over, and begins it anew for the next.
        kept: gets the connections that wait for another request.
    """

    egress: Direct
    relays: Relays
    idle: Deadlines
    over: Callable[[Session], object]
    kept: KeptConnections


class HttpIngress:
    """Speaks HTTP/1.0 and 1.1 with clients.

    Args:
        commands: carry out CONNECT, and refuse. Their handshake's deadline is that of every request's head.
        forwarding: what all other requests need.
        authenticate: asked for every user name and password; None where there are no users.
        required: whether a client without a user is refused. One whose certificate has said who it is has a user.
        protocol: its name in the access log.
    """

    def __init__(
        self,
        commands: Commands,
        forwarding: Forwarding,
        authenticate: Authenticate | None,
        required: bool,
        protocol: str = "http",
    ) -> None:
        self.commands = commands
        self.connect = commands.serves[Command.CONNECT]
        self.handshake = commands.handshake
        self.egress, self.relays, self.idle, self.over, self.kept = forwarding
        self.authenticate = authenticate
        self.required = required
        self.protocol = protocol

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        session.protocol = self.protocol
        connection = Connection(self, client, session)
        try:
            await connection.serve()
        finally:
            self.idle.stop(connection)
            self.kept.clients.discard(client)
            connection.close_server()


class Tunnel:
    """The conversation of a CONNECT; see `Conversation`."""

    def __init__(self, client: Stream, session: Session, trailing_data: bytes) -> None:
        self.client = client
        self.session = session
        self.trailing_data = trailing_data

    def keep(self, data: bytes) -> None:
        self.trailing_data += data

    def answer(self, reply: Reply) -> None:
        self.client.send_soon(self.last_answer(reply))

    def last_answer(self, reply: Reply) -> bytes:
        assert reply.reply_code == ReplyCode.SUCCEEDED
        self.session.reply_code = 200
        return CONNECT_ESTABLISHED


class Server:
    """The connection to a destination that a client's connection keeps."""

    __slots__ = ("address", "buffer", "destination", "stream", "used")

    def __init__(self, stream: Stream, destination: Address) -> None:
        self.stream = stream
        self.destination = destination
        self.address: Address | None = None
        self.buffer = bytearray()
        self.used = False

    @property
    def quiet(self) -> bool:
        """Whether it is fit for another request: nothing unasked has come, nor its end."""
        if self.buffer or self.stream.events & ENDED:
            return False
        try:
            # What is known of its readiness may be of octets that were read already.
            return not self.stream.events & IN or self.stream.receive_nowait(1) is None
        except OSError:
            return False


class Connection:
    """One client's connection: requests in a row, and the one connection to a destination beside it."""

    def __init__(self, ingress: HttpIngress, client: Stream, session: Session) -> None:
        self.ingress = ingress
        self.client = client
        self.session = session
        self.certified = session.user
        self.buffer = bytearray()
        self.server: Server | None = None
        self.answered = False  # whether any of the response has gone to the client

    def expire(self) -> None:
        """The idle deadline: whoever waits on either side gets TimeoutError."""
        if self.server is not None:
            self.server.stream.expire()
        if self.server is None or self.answered:
            self.client.expire()

    def close_server(self) -> None:
        """Close the connection to the destination, if there is one."""
        server, self.server = self.server, None
        if server is not None:
            server.stream.close()

    async def serve(self) -> None:
        """Serve requests until one of them is the last. Errors as `Ingress.serve`."""
        ingress, session = self.ingress, self.session
        request = await self.read_request()
        if request is None:
            raise RemoteProtocolError("the client sent nothing")
        while True:
            keep = await self.handle(request)
            if not keep:
                return
            ingress.over(session)
            session.user = self.certified
            following = await self.next_request()
            if following is None:
                return
            request = following

    # --- requests ---

    async def next_request(self) -> Request | None:
        """Wait for another request; None when the client has ended, or has waited for too long."""
        ingress, client, session = self.ingress, self.client, self.session
        session.silent = True
        if not self.buffer:
            if ingress.kept.draining:
                return None
            ingress.kept.clients.add(client)
            ingress.idle.start(self)
            try:
                data = await client.receive(READ_SIZE)
            except OSError:
                return None
            finally:
                ingress.idle.stop(self)
                ingress.kept.clients.discard(client)
            self.buffer += data
            if not data:
                return None
        session.silent = False
        session.started = monotonic()
        ingress.handshake.start(client)
        return await self.read_request()

    async def read_request(self) -> Request | None:
        """Read a request's head within the handshake's deadline; None when the client has ended before it."""
        client, buffer, seen = self.client, self.buffer, 0
        try:
            while (found := decode_request(buffer, HEAD_LIMIT, seen)) is None:
                seen = len(buffer)
                while (data := client.receive_nowait(READ_SIZE)) is None:
                    await client.readable()
                if not data:
                    if not buffer:
                        return None
                    raise RemoteProtocolError("the client ended in the middle of a request's head")
                buffer += data
        except HttpError as exc:
            self.note(exc.status, str(exc))
            await self.refuse(encode_error(exc.status, "http_request_error", str(exc)))
            raise
        finally:
            self.ingress.handshake.stop(client)
        request, end = found
        del buffer[:end]
        return request

    async def handle(self, request: Request) -> bool:
        """Carry out one request; whether the connection goes on with another."""
        session = self.session
        session.destination = request.destination
        session.command = "connect" if request.method == "CONNECT" else "forward"
        if not await self.is_authorized(request):
            return await self.fail(request, 407, None, session.error or "", CHALLENGE)
        if request.method == "CONNECT":
            return await self.open_tunnel(request)
        if request.final_recipient:
            # RFC 9110 section 7.6.2: the answer is ours, and there is nothing to say beyond that we are here.
            session.error = "Max-Forwards is 0: this proxy is the last on the way"
            return await self.fail(request, 501 if request.method == "TRACE" else 200, None, session.error)
        try:
            return await self.forward(request)
        except (DialError, PolicyDenied) as exc:
            return await self.fail(request, *problem_of(exc), str(exc))
        finally:
            self.ingress.idle.stop(self)

    async def is_authorized(self, request: Request) -> bool:
        """Whether the client may ask at all. Raises TimeoutError where that is not found out in time."""
        ingress, session = self.ingress, self.session
        if session.user is not None:
            return True
        credentials = decode_basic(request.authorization) if request.authorization else None
        if ingress.authenticate is None or (not ingress.required and request.authorization is None):
            session.error = "this listener wants a user" if ingress.required else None
            return not ingress.required
        if credentials is None:
            session.error = "no user name and password (Proxy-Authorization: Basic)"
            return False
        return await identify(ingress.authenticate, session, *credentials, ingress.handshake.seconds)

    # --- answers of our own ---

    async def fail(
        self, request: Request, status: int, error: str | None, details: str, fields: Sequence[Field] = ()
    ) -> bool:
        """Answer for the destination; whether the connection goes on, which it does where no content is under way."""
        keep = request.keep_alive and not request.body and not self.ingress.kept.draining
        head = request.method == "HEAD"
        octets = encode_error(status, error, details, minor=request.minor, keep_alive=keep, fields=fields, head=head)
        self.note(status, details)
        if keep:
            await self.send(octets)
        else:
            await self.refuse(octets)
        return keep

    async def refuse(self, octets: bytes) -> None:
        """Answer, and end."""
        client, session = self.client, self.session
        self.ingress.idle.stop(self)
        await self.ingress.commands.refuse(client, session, session.close == "denied", lambda: client.send_soon(octets))

    def note(self, status: int, details: str) -> None:
        """Fill in what the access log says of an answer of our own."""
        session = self.session
        session.reply_code, session.error = status, details
        session.close = "denied" if status in (403, 407) else "error"

    async def send(self, octets: bytes) -> None:
        """Send to the client, within the idle deadline."""
        self.answered = True
        self.ingress.idle.start(self)
        await self.client.send_all(octets)

    # --- CONNECT ---

    async def open_tunnel(self, request: Request) -> bool:
        """Hand over to a relay, or say why not."""
        self.close_server()
        tunnel = Tunnel(self.client, self.session, bytes(self.buffer))
        try:
            await self.ingress.connect(tunnel)
        except TabiError as exc:
            return await self.fail(request, *problem_of(exc), str(exc))
        return False

    # --- forwarding ---

    async def forward(self, request: Request) -> bool:
        """Forward a request and its answer; whether the connection goes on.

        Raises:
            DialError, PolicyDenied: the destination cannot be opened.
            OSError: the client's connection broke.
        """
        repeatable = request.method in REPEATABLE and not request.body
        self.answered = False
        while True:
            server = await self.reach(request, repeatable)
            try:
                return await Exchange(self, server, request).run()
            except Failed as exc:
                self.close_server()
                if not (exc.unanswered and server.used):
                    return await self.fail(request, exc.status, exc.error, exc.details)
                # It was closed while we asked: as if it had never been kept.

    async def reach(self, request: Request, repeatable: bool) -> Server:
        """The kept connection where it serves, else a new one. Errors as `Direct.open`."""
        server, session = self.server, self.session
        if server is not None and (not repeatable or server.destination != request.destination or not server.quiet):
            self.close_server()
            server = None
        session.via = self.ingress.egress.name
        if server is None:
            began = monotonic()
            stream = await self.ingress.egress.open(request.destination, permit_for(session.client.host))
            server = self.server = Server(stream, request.destination)
            session.connect_seconds = monotonic() - began
            server.address = from_sockaddr(stream.sock.getpeername())
        session.address = server.address
        return server


class Exchange:
    """One request and its answer, in both directions at once where the request has content."""

    def __init__(self, connection: Connection, server: Server, request: Request) -> None:
        self.connection = connection
        self.ingress = connection.ingress
        self.session = connection.session
        self.client = connection.client
        self.server = server
        self.stream = server.stream
        self.request = request
        self.body = make_body(request.body)
        self.fault: OSError | RemoteProtocolError | None = None  # of the client, found while its content was read

    async def run(self) -> bool:
        """Carry it out; whether the client's connection goes on.

        Raises:
            Failed: nothing has been answered yet, and the destination will not.
            OSError: the client's connection broke.
        """
        self.progress()
        try:
            content = take(self.connection.buffer, self.body)
        except RemoteProtocolError as exc:
            raise Failed(400, "http_request_error", str(exc)) from exc
        try:
            await self.stream.send_all(encode_request(self.request) + content)
        except OSError as exc:
            raise self.lost(exc) from exc
        self.session.up += len(content)
        if self.body.done:
            return await self.answer()
        upload = self.stream.reactor.loop.create_task(self.upload())
        try:
            return await self.answer()
        except Failed:
            if isinstance(self.fault, RemoteProtocolError):
                raise Failed(400, "http_request_error", str(self.fault)) from self.fault
            if self.fault is not None:
                raise self.fault from None
            raise
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    def progress(self) -> None:
        """Something moves: the idle deadline begins anew."""
        idle = self.ingress.idle
        idle.stop(self.connection)
        idle.start(self.connection)

    def lost(self, exc: OSError) -> Failed:
        """What a broken connection to the destination means before an answer."""
        destination = self.request.destination
        if isinstance(exc, TimeoutError):
            seconds = self.ingress.idle.seconds
            return Failed(504, "http_response_timeout", f"{destination}: no answer within {seconds:g} s")
        reason = (exc.strerror or str(exc)).lower()
        unanswered = not self.server.buffer and not self.connection.answered
        return Failed(502, "connection_terminated", f"{destination}: {reason}", unanswered)

    async def upload(self) -> None:
        """Send the client's content as it comes. A destination that takes no more may still answer."""
        connection, body, stream = self.connection, self.body, self.stream
        try:
            while not body.done:
                data = await self.client.receive(CHUNK_SIZE)
                if not data:
                    raise RemoteProtocolError("the client ended in the middle of the content")
                connection.buffer += data
                content = take(connection.buffer, body)
                try:
                    await stream.send_all(content)
                except OSError:
                    return
                self.session.up += len(content)
                self.progress()
        except (OSError, RemoteProtocolError) as exc:
            self.fault = exc
            stream.reset()  # it must not take what it has for the whole; and nobody waits for its answer any more

    async def answer(self) -> bool:
        """Read the destination's answer and send it on; see `run`."""
        response = await self.read_response()
        self.session.reply_code = response.status
        if response.status == 101:
            return await self.switch(response)
        return await self.download(response)

    async def read_response(self) -> Response:
        """The final response's head; those before it are sent on as they come."""
        buffer, stream, request = self.server.buffer, self.stream, self.request
        for _ in range(INTERIM_LIMIT):
            seen = 0
            try:
                while (found := decode_response(buffer, request.method, HEAD_LIMIT, seen)) is None:
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
            self.progress()
            if not response.interim:
                return response
            self.server.used = False  # it has seen the request: to ask again would be to ask twice
            if request.minor:
                await self.client.send_all(encode_response(response, True))
        raise Failed(502, "http_protocol_error", f"{request.destination}: more than {INTERIM_LIMIT} interim responses")

    async def switch(self, response: Response) -> bool:
        """The connection is of another protocol from now on (RFC 9110 section 7.8): a relay carries it."""
        connection, server = self.connection, self.server
        if self.request.upgrade is None:
            raise Failed(502, "http_protocol_error", f"{self.request.destination}: 101, and nobody asked for it")
        await self.client.send_all(encode_response(response, True) + server.buffer)
        connection.server = None
        self.ingress.idle.stop(connection)
        self.ingress.relays.start(self.client, server.stream, self.session, b"", bytes(connection.buffer))
        return False

    async def download(self, response: Response) -> bool:
        """Send an answer on; whether the client's connection goes on."""
        request, client, server, session = self.request, self.client, self.server, self.session
        body = make_body(response.body)
        chunks = response.body == CHUNKED and not request.minor  # HTTP/1.0 does not know them: they are taken apart
        keep = request.keep_alive and self.body.done and response.body != UNTIL_CLOSE and not chunks
        keep = keep and not self.ingress.kept.draining
        head = encode_response(response, keep, request.minor)
        self.connection.answered = True
        try:
            content = take(server.buffer, body, chunks)
            await client.send_all(head + content if content else head)
            session.down += len(content)
            while not body.done:
                data = await self.receive(body)
                if data is None:
                    break
                server.buffer += data
                content = take(server.buffer, body, chunks)
                self.progress()
                await client.send_all(content)
                session.down += len(content)
        except (OSError, RemoteProtocolError) as exc:
            # The client has part of an answer: a reset says that it is not the whole.
            session.error = f"{request.destination}: {str(exc) or type(exc).__name__}"
            session.close = "idle" if isinstance(exc, TimeoutError) else "reset"
            client.reset()
            return False
        session.close = "server"
        server.used = True
        if not (response.keep_alive and self.body.done and body.done and not server.buffer):
            self.connection.close_server()
        if not keep:
            await self.ingress.commands.end(client)
        return keep

    async def receive(self, body: Body) -> bytes | None:
        """More of the answer's content, None at an end that belongs to it."""
        data = await self.stream.receive(CHUNK_SIZE)
        if not data and not isinstance(body, Endless):
            raise RemoteProtocolError("the connection ended in the middle of the content")
        return data or None


def take(buffer: bytearray, body: Body, content_only: bool = False) -> bytes:
    """Take out of a buffer what belongs to a body. Raises RemoteProtocolError."""
    if not buffer:
        return b""
    if content_only and isinstance(body, Chunked):
        pieces: list[memoryview] = []
        end = body.scan(buffer, pieces)
        content = b"".join(pieces)
        pieces.clear()
    else:
        end = body.scan(buffer)
        content = bytes(buffer[:end])
    del buffer[:end]
    return content


def problem_of(exc: TabiError) -> tuple[int, str]:
    """Status and error type of RFC 9209 section 2.3 for a destination that could not be opened."""
    if isinstance(exc, PolicyDenied):
        return 403, "destination_ip_prohibited"
    number = exc.errno if isinstance(exc, DialError) else None
    if number == errno.ETIMEDOUT:
        return 504, "connection_timeout"
    if exc.reply_code == ReplyCode.CONNECTION_REFUSED:
        return 502, "connection_refused"
    if number in UNROUTABLE:
        return 502, "destination_ip_unroutable"
    if isinstance(exc, DialError) and number is None:
        return 502, "dns_error"
    return 500, "proxy_internal_error"
