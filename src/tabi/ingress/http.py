"""The HTTP ingress: CONNECT becomes a tunnel, any other request is forwarded, one after another on kept connections.

    CONNECT        host:port         decide, open, answer, carry: the relay of every other protocol
    GET, POST, …   http://host/path  each request is a session: decide, open (or use again), forward, log

A client's connection keeps at most one connection to a destination, its own and of one user: what a server has learned
about one (NTLM) never serves another. Requests that change something never go out on a used connection: if
the server closes it, it is unknown whether the server has taken them (RFC 9112 section 9.3.1). But where credentials
are of the connection (NTLM, Negotiate; RFC 4559), no other connection would do.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Protocol

from tabi.errors import HttpError, LimitExceeded, PolicyDenied, RemoteProtocolError, TabiError
from tabi.ingress.authenticate import Ask, identify
from tabi.ingress.conversation import Commands
from tabi.ingress.gate import Route
from tabi.ingress.origin_tls import OriginTls
from tabi.ingress.own_destinations import Entrance
from tabi.ingress.refusal import Refusal, login_refused, refusal_of
from tabi.net.failures import connect_error
from tabi.net.reactor import BROKEN, ENDED, IN, READABLE
from tabi.net.stream import RESET, Stream
from tabi.net.timeouts import IdleTimeouts
from tabi.policy.networks import unmapped
from tabi.relay.carrier import Carrier
from tabi.relay.exchange import READ_SIZE, Exchange, ExchangeFailed, ServerConnection
from tabi.relay.pacer import Pacer
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr
from tabi.wire.http import (
    CONNECT_ESTABLISHED,
    EMPTY_LINES,
    HEAD_LIMIT,
    Field,
    Request,
    decode_basic,
    decode_request,
    encode_date,
    encode_error,
)
from tabi.wire.socks5 import Command, Reply, ReplyCode

# RFC 9110 section 9.2.2, without those that no client means to send twice through a proxy.
REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))

NO_REQUEST = frozenset(b"\r\n" * count for count in range(1, EMPTY_LINES + 1))
"""What may be between two requests: old clients sent an empty line behind the content of a POST."""


class KeptConnections:
    """The clients' connections that wait for another request: a server that drains ends them.

    Args:
        clients: gets their streams, those that wait longest first.
    """

    def __init__(self, clients: dict[Stream, None]) -> None:
        self.draining = False
        self.clients = clients

    def drain(self) -> None:
        """Keep none from now on."""
        self.draining = True
        for client in self.clients:
            client.expire()


class Carries(Protocol):
    """One exchange with a destination: `relay.exchange.Exchange`, or one that is looked into."""

    async def run(self) -> tuple[bool, bool]:
        """Carry it out; whether the client's connection goes on, and the destination's."""

    def expire(self) -> None:
        """The idle deadline."""


class Inspected(Protocol):
    """A request that is looked into; see `intercept.forwarded`."""

    async def ask(self) -> bool | None:
        """Before anything is dialled: whether the connection goes on behind an answer that is given in the
        destination's place; None if there is none. Raises ExchangeFailed."""

    def over(self, server: ServerConnection) -> Carries:
        """The exchange with the destination."""

    async def ended(self, error: BaseException | None) -> None:
        """It is over."""


Inspect = Callable[["Connection", Request], "Inspected | None"]


@dataclass(slots=True)
class Forwarding:
    """What forwarding needs of a server. What is changed here holds for the next requests, also of clients that are
    connected.

    Attributes:
        gate: says whether a request may be carried, and by which egress.
        pacer: makes sessions wait if their limits leave no room.
        idle: ends the connections on which nothing moves.
        half_closed: the same, for those whose client has ended its side.
        over: reports a session whose request is over, and begins it anew for the next request.
        kept: gets the connections that wait for another request.
        carrier: gets both streams when the protocol has changed (101).
        tls: put on connections to destinations of https and wss.
        inspect: says how a request is looked into; None for one that is not. None where nothing is.
    """

    gate: Entrance
    pacer: Pacer
    idle: IdleTimeouts
    half_closed: IdleTimeouts
    over: Callable[[Session], object]
    kept: KeptConnections
    carrier: Carrier
    tls: OriginTls
    inspect: Inspect | None = None

    def take(self, gate: Entrance, carrier: Carrier) -> None:
        """Have requests pass this gate, and give connections to this carrier, from now on."""
        self.gate, self.carrier = gate, carrier

    def under_way(self) -> dict[Session, ServerConnection]:
        """The connections to destinations on which a request is under way, by its session."""
        watched = (*self.idle.seen, *self.half_closed.seen)
        return {
            one.session: one.server
            for one in watched
            if isinstance(one, Connection) and one.exchange is not None and one.server is not None
        }


class HttpIngress:
    """Speaks HTTP/1.0 and 1.1 with clients.

    Args:
        commands: carry out CONNECT, and refuse. Their handshake's deadline is that of every request's head.
        forwarding: what all other requests need.
        authenticate: asked for every user name and password; None if there are no users.
        required: whether a client without a user is refused. A certificate that names a user makes one.
        protocol: its name in the access log.
    """

    def __init__(
        self,
        commands: Commands,
        forwarding: Forwarding,
        authenticate: Ask | None,
        required: bool,
        protocol: str = "http",
    ) -> None:
        self.commands = commands
        self.connect = commands.serves[Command.CONNECT]
        self.handshake = commands.handshake
        self.forwarding = forwarding
        self.idle = forwarding.idle
        self.half_closed = forwarding.half_closed
        self.over = forwarding.over
        self.kept = forwarding.kept
        self.tls = forwarding.tls
        self.authenticate = authenticate
        self.required = required
        self.asks_who = required or authenticate is not None
        self.protocol = protocol

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        session.protocol = self.protocol
        connection = Connection(self, client, session)
        self.idle.watch(connection)
        try:
            await connection.serve()
        finally:
            connection.patience.forget(connection)
            connection.half_closed = True  # it is watched no more, whatever a carrier's client does
            connection.close_server()
            if client.unsent:
                connection.break_off()  # it has only part of an answer


class Tunnel:
    """The conversation of a CONNECT; see `Conversation`."""

    def __init__(self, client: Stream, session: Session, trailing_data: bytes) -> None:
        self.client = client
        self.session = session
        self.trailing_data = trailing_data

    def push_back(self, data: bytes) -> None:
        self.trailing_data += data

    def answer(self, reply: Reply) -> None:
        self.client.send_soon(self.last_answer(reply))

    def last_answer(self, reply: Reply) -> bytes:
        assert reply.reply_code == ReplyCode.SUCCEEDED
        self.session.reply_code = 200
        return CONNECT_ESTABLISHED


class Connection:
    """One client's connection: requests in a row, and the one connection to a destination beside it."""

    def __init__(self, ingress: HttpIngress, client: Stream, session: Session) -> None:
        self.ingress = ingress
        self.client = client
        self.session = session
        self.certified = session.user
        self.buffer = bytearray()
        self.server: ServerConnection | None = None
        self.moved = 0
        self.exchange: Carries | None = None
        self.waits = False  # for the client alone: to send another request, or to take what it was sent
        self.gone = False  # whether the client has reset its connection
        self.broken = False  # whether it is to get a reset
        self.half_closed = False  # whether the client has ended its side
        client.reactor.replace(client.fd, self.on_ready)

    def on_ready(self, events: int) -> None:
        """The reactor's handler: a reset of the client ends also what waits for the destination only, and its end
        shortens that."""
        self.client.on_ready(events)
        if events & BROKEN:
            self.gone = True
            if self.server is not None:
                self.server.stream.wake_waiting(ConnectionResetError("the client has gone"))
        elif events & ENDED and not self.half_closed:
            self.half_closed = True
            self.ingress.idle.forget(self)
            self.ingress.half_closed.watch(self)

    def on_server_ready(self, events: int) -> None:
        """The reactor's handler of the connection to a destination: one that waits, and is of no more use, is
        closed."""
        server = self.server
        if server is not None:
            server.stream.on_ready(events)
            if self.exchange is None and events & READABLE and not server.quiet:
                self.close_server()

    @property
    def rule(self) -> str | None:
        """The rule that has allowed the request under way; see `Moving`."""
        return self.session.rule

    def expire(self) -> None:
        """The idle deadline; dialling and asking who it is have their own."""
        if self.waits:
            self.client.expire()
        elif self.exchange is not None:
            self.exchange.expire()

    def cut(self, why: str) -> None:
        """A limit ends the request: the tasks that wait on either side get the error."""
        error = LimitExceeded(why, "max_session")
        for stream in (self.client, self.server.stream if self.server is not None else None):
            if stream is not None:
                stream.wake_waiting(error)

    @property
    def patience(self) -> IdleTimeouts:
        """What ends it if nothing moves."""
        return self.ingress.half_closed if self.half_closed else self.ingress.idle

    @property
    def keeps(self) -> bool:
        """Whether it may wait for another request: a server that drains keeps none."""
        return not self.ingress.kept.draining

    def break_off(self) -> None:
        """Have the client's connection end with a reset. It stays the server's to close, which hands the session in."""
        self.broken = True
        try:
            self.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError:
            pass

    def close_server(self) -> None:
        """Close the connection to the destination, if there is one."""
        server, self.server = self.server, None
        if server is not None:
            server.stream.close()

    async def serve(self) -> None:
        """Serve requests until one of them is the last. Errors as `Ingress.serve`."""
        ingress, session = self.ingress, self.session
        request = await self.read_request(timed=True)
        if request is None:
            session.silent = session.silent or None
            raise RemoteProtocolError("the client sent nothing")
        while True:
            keep = await self.handle(request)
            if not keep:
                return
            if self.client.reactor.late():  # requests that have come already are answered without a wait
                await self.client.reactor.next_turn()
            ingress.over(session)
            session.identify(self.certified)
            following = await self.next_request()
            if following is None:
                return
            request = following

    # --- requests ---

    async def next_request(self) -> Request | None:
        """Wait for another request; None when the client has ended, or has waited for too long."""
        ingress, client, session = self.ingress, self.client, self.session
        session.silent = True
        while not self.buffer or (len(self.buffer) <= 2 * EMPTY_LINES and bytes(self.buffer) in NO_REQUEST):
            if ingress.kept.draining:
                return None
            ingress.kept.clients[client] = None
            self.waits = True
            try:
                while (data := client.receive_nowait(READ_SIZE)) is None:
                    await client.readable()
            except OSError:
                return None
            finally:
                self.waits = False
                ingress.kept.clients.pop(client, None)
            if not data:
                return None
            self.buffer += data
        session.silent = False
        session.started = monotonic()
        return await self.read_request(timed=False)

    async def read_request(self, timed: bool) -> Request | None:
        """Read a request's head within the handshake's deadline; None when the client has ended before it.

        ``timed`` says that the deadline runs already.
        """
        client, buffer, seen = self.client, self.buffer, 0
        try:
            while (found := decode_request(buffer, HEAD_LIMIT, seen)) is None:
                if not timed:
                    timed = True
                    self.ingress.handshake.start(client)
                seen = len(buffer)
                data = await client.receive(READ_SIZE)
                if not data:
                    if not buffer:
                        return None
                    raise RemoteProtocolError("the client ended in the middle of a request's head")
                buffer += data
        except HttpError as exc:
            await self.refuse(None, refusal_of(exc))
            raise
        except ConnectionError:
            if not buffer:
                self.session.silent = self.session.silent or None
            raise
        finally:
            if timed:
                self.ingress.handshake.stop(client)
        request, end = found
        del buffer[:end]
        return request

    async def handle(self, request: Request) -> bool:
        """Carry out one request; whether the connection goes on with another."""
        session = self.session
        session.destination = request.destination
        session.command = "connect" if request.method == "CONNECT" else "forward"
        if self.ingress.asks_who and (refusal := await self.authenticate(request)) is not None:
            return await self.refuse(request, refusal)
        if request.method == "CONNECT":
            return await self.open_tunnel(request)
        if request.final_recipient:
            # RFC 9110 section 7.6.2: the answer is ours, and says only that we are here.
            text = "Max-Forwards is 0: this proxy is the last on the way"
            if request.method == "TRACE":
                return await self.refuse(request, Refusal(text, ReplyCode.GENERAL_FAILURE, 501, says=text))
            session.close = "server"
            return await self.answer(request, 200, None, text)
        try:
            return await self.forward(request)
        except TabiError as exc:
            return await self.refuse(request, refusal_of(exc))

    async def authenticate(self, request: Request) -> Refusal | None:
        """Find out who the client is; a refusal if it is not a valid user. Errors as `identify`."""
        ingress, session = self.ingress, self.session
        if session.user is not None:
            return None
        credentials = decode_basic(request.authorization) if request.authorization else None
        if ingress.authenticate is None or (not ingress.required and request.authorization is None):
            return login_refused("this listener wants a user") if ingress.required else None
        if credentials is None:
            return login_refused("no user name and password (Proxy-Authorization: Basic)")
        return await identify(ingress.authenticate, self.client, session, *credentials, ingress.handshake.seconds)

    # --- answers of our own ---

    async def refuse(self, request: Request | None, refusal: Refusal) -> bool:
        """Refuse a request, None if it is not valid, in the way that the refusal says; see `answer`."""
        self.session.error, self.session.close = refusal.text, refusal.close
        if refusal.action != "deny":
            await self.ingress.commands.refuse_silently(self.client, refusal.action)
            return False
        details = refusal.details(None if request is None else request.destination)
        return await self.answer(request, refusal.status, refusal.error, details, refusal.fields)

    async def answer(
        self, request: Request | None, status: int, error: str | None, text: str, fields: Sequence[Field] = ()
    ) -> bool:
        """Answer for the destination; whether the connection goes on, which it does where no content is under way."""
        self.session.reply_code = status
        # What a client sends after a CONNECT without waiting is meant for the destination: never read it as requests.
        if request is None or request.body or request.method == "CONNECT" or self.ingress.kept.draining:
            keep = False
        else:
            keep = request.keep_alive
        minor, head = (1, False) if request is None else (request.minor, request.method == "HEAD")
        date = encode_date(int(time()))
        octets = encode_error(status, error, text, minor=minor, keep_alive=keep, fields=fields, head=head, date=date)
        try:
            await self.send(octets)
        except OSError:
            if keep:
                raise
            return False
        if not keep:
            await self.ingress.commands.linger_close(self.client)
        return keep

    async def send(self, octets: bytes) -> None:
        """Send to the client, within the idle deadline. Raises OSError."""
        self.moved += 1
        self.waits = True
        try:
            await self.client.send_all(octets)
        except TimeoutError as exc:
            seconds = self.patience.limit(self.rule)
            raise ConnectionAbortedError(f"the client took nothing for {seconds:g} s") from exc
        finally:
            self.waits = False

    # --- CONNECT ---

    async def open_tunnel(self, request: Request) -> bool:
        """Hand over to a relay, or say why not."""
        self.close_server()
        if self.client.unsent:
            await self.send(b"")  # the relay knows nothing of answers before
        tunnel = Tunnel(self.client, self.session, bytes(self.buffer))
        try:
            await self.ingress.connect(tunnel)
        except TabiError as exc:
            return await self.refuse(request, refusal_of(exc))
        return False

    # --- forwarding ---

    async def forward(self, request: Request) -> bool:
        """Forward a request and its answer, or look into both; whether the connection goes on. Errors as `send_on`."""
        inspect = self.ingress.forwarding.inspect
        inspected = None if inspect is None else inspect(self, request)
        if inspected is None:
            return await self.send_on(request)
        error: BaseException | None = None
        try:
            return await self.send_on(request, inspected)
        except BaseException as exc:
            error = exc
            raise
        finally:
            await inspected.ended(error)

    async def ask(self, inspected: Inspected, request: Request) -> bool | None:
        """Whether the connection goes on behind an answer in the destination's place; None if there is none."""
        self.waits = True
        try:
            return await inspected.ask()
        except ExchangeFailed as exc:
            return await self.refuse(request, refusal_of(exc))
        finally:
            self.waits = False

    async def send_on(self, request: Request, inspected: Inspected | None = None) -> bool:
        """Forward a request and its answer; whether the connection goes on.

        Raises:
            DialError, PolicyDenied, LimitExceeded: the destination cannot be opened, or a limit is reached.
            OSError: the client's connection broke.
        """
        repeatable = request.method in REPEATABLE and not request.body
        session, forwarding = self.session, self.ingress.forwarding
        gate, carrier, pacer = forwarding.gate, forwarding.carrier, forwarding.pacer
        route = gate.enter(session) or await gate.enter_slowly(session, self.client)
        if session.lease is not None:
            session.lease.cut = self.cut
        if inspected is not None and (keeps := await self.ask(inspected, request)) is not None:
            return await self.go_on(keeps)
        while not self.gone:
            server = self.kept_server(request, repeatable, route) or await self.open_server(request, route)
            if self.gone:
                break
            session.address = server.address
            if request.authenticates_connection:
                server.authenticated = True
            looked_into = None if inspected is None else inspected.over(server)
            self.exchange = exchange = looked_into or Exchange(self, server, request, carrier, pacer)
            on_gone, self.client.on_gone = self.client.on_gone, None  # `on_ready` has it end in good order
            try:
                keep, keep_server = await exchange.run()
            except ExchangeFailed as exc:
                self.close_server()
                if self.gone or (exc.unanswered and server.used and repeatable):
                    continue  # it was closed while we asked: as if it had never been kept
                return await self.refuse(request, refusal_of(exc))
            finally:
                self.exchange, self.client.on_gone = None, on_gone
            if not keep_server or server.stream.events & ENDED:
                self.close_server()
            elif not server.stream.reactor.edge_triggered:
                server.stream.reactor.watch(server.stream.fd, IN)  # for its end
            return await self.go_on(keep)
        raise ConnectionResetError("the client has gone")

    async def go_on(self, keep: bool) -> bool:
        """Whether the client's connection goes on; if not, it ends in good order, unless it is to get a reset."""
        if not keep and not self.broken and self.client.fd >= 0:
            await self.ingress.commands.linger_close(self.client)
        return keep

    def kept_server(self, request: Request, repeatable: bool, route: Route) -> ServerConnection | None:
        """The kept connection if it can be used; if not, it is closed."""
        server = self.server
        if server is None:
            return None
        if (
            (repeatable or server.authenticated)
            and server.tls == request.tls
            and server.destination == request.destination
            and server.user == self.session.user
            and server.parameters == self.session.parameters
            and server.egress is route.egress
            and self.may_lead_to(server.address, route)
            and server.quiet
        ):
            self.session.member = server.member
            return server
        self.close_server()
        return None

    def may_lead_to(self, address: Address, route: Route) -> bool:
        """Whether this request may go where a kept connection leads: names and the guard may have changed since."""
        if not route.egress.direct:  # it leads to a proxy, whose part the rest is
            return self.session.addresses is None
        host, addresses = address.host, self.session.addresses
        assert not isinstance(host, str)
        if addresses is not None and host not in map(unmapped, addresses):  # it was decided on these
            return False
        try:
            route.address_filter(host)
        except PolicyDenied:
            return False
        return True

    async def open_server(self, request: Request, route: Route) -> ServerConnection:
        """A new connection. Errors as `Egress.open` and `OriginTls.put_on`."""
        began, session = monotonic(), self.session
        stream = await route.egress.open(request.destination, route.address_filter, session)
        session.connect_seconds = monotonic() - began
        try:
            address = from_sockaddr(stream.sock.getpeername())
        except OSError as exc:  # reset since it was opened: ENOTCONN
            stream.close()
            raise connect_error(exc.errno or errno.EIO, request.destination) from exc
        if request.tls:
            await self.ingress.tls.put_on(stream, request.destination, began if route.egress.direct else monotonic())
        if session.watch is not None:
            session.watch.connected(session)
        self.server = server = ServerConnection(stream, address, session, route.egress, request.tls)
        stream.reactor.replace(stream.fd, self.on_server_ready)
        return server
