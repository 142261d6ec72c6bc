"""Upstream: a proxy that fails as it is told, for tests of programs that use proxies. It is made of `tabi.parts`."""

from __future__ import annotations

import asyncio
import hmac
import socket
from contextlib import suppress
from typing import Literal, NamedTuple

from tabi.config import Seconds, Timeouts
from tabi.errors import PolicyDenied
from tabi.ingress.conversation import Conversation, Ingress, Serve
from tabi.ingress.login import Login
from tabi.net.stream import RESET, Stream
from tabi.parts.base import Piece, Running
from tabi.parts.commands import Bind, Command, Connect, UdpAssociate
from tabi.parts.listener import Listener, Policy
from tabi.parts.protocols import Http, Mixed, Socks4, Socks5
from tabi.relay.tunnel import Tunnel
from tabi.session import Session
from tabi.testing.proxy import HostPort
from tabi.testing.service import PATIENCE, Seen, Service
from tabi.wire.socks5 import Reply

Stage = Literal["greeting", "request", "reply", "tunnel"]
"""When it fails: as soon as a client has connected; when its request is there; in the middle of the reply; or in the
tunnel, after so many octets of the destination."""

STAGES = ("greeting", "request", "reply", "tunnel")
HALVES = {"http": b"HTTP/1.1 2", "socks4": b"\x00"}
HALF_OF_SOCKS5 = b"\x05\x00"
LONG = Timeouts(handshake=Seconds(1e6), idle=Seconds(1e6))


class Behaviour(NamedTuple):
    """What an upstream does with the clients to come."""

    does: Literal["accept", "refuse", "hang", "reset", "close"] = "accept"
    stage: Stage = "request"
    octets: int = 0
    reply_code: int = 1


class Upstream(Service):
    """A proxy on a free port that takes SOCKS5, SOCKS4 and HTTP, and fails as it is told.

    At first it accepts. What it is told next counts for clients that connect afterwards::

        with Upstream() as upstream:
            upstream.refuse(5)
            ...
            upstream.accept()

    All methods return the upstream itself, so that ``Upstream().hang()`` is an upstream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.behaviour = Behaviour()
        self.login: tuple[str, str] | None = None
        self.ended: Seen[Session] = Seen()
        self.clients: dict[Session, Stream] = {}
        self.listener: Listener | None = None

    # --- what it is told ---

    def accept(self) -> Upstream:
        """Carry out every request."""
        return self.behave(Behaviour())

    def refuse(self, reply_code: int = 1) -> Upstream:
        """Refuse every request with a reply code of SOCKS5, 1 to 8; HTTP has the status that fits it.

        Raises:
            ValueError: it is another number.
        """
        if isinstance(reply_code, bool) or not isinstance(reply_code, int) or not 1 <= reply_code <= 8:
            raise ValueError(f"{reply_code!r}, expected a reply code from 1 to 8")
        return self.behave(Behaviour("refuse", reply_code=reply_code))

    def hang(self, stage: Stage = "request", octets: int = 0) -> Upstream:
        """Say nothing from a stage on, and leave the connection open. A tunnel lets ``octets`` of the destination pass.

        Raises:
            ValueError: the stage is unknown.
        """
        return self.behave(Behaviour("hang", stage, octets))

    def reset(self, stage: Stage = "request", octets: int = 0) -> Upstream:
        """Reset the connection at a stage. In a tunnel, let ``octets`` of the destination pass before.

        Raises:
            ValueError: the stage is unknown.
        """
        return self.behave(Behaviour("reset", stage, octets))

    def close_at(self, stage: Stage = "reply", octets: int = 0) -> Upstream:
        """End the connection in order at a stage. In a tunnel, let ``octets`` of the destination pass before.

        Raises:
            ValueError: the stage is unknown.
        """
        return self.behave(Behaviour("close", stage, octets))

    def password(self, username: str, password: str) -> Upstream:
        """Require this user name and password from now on, in addition to everything else it was told."""
        if not isinstance(username, str) or not isinstance(password, str):
            raise TypeError("expected a user name and a password, both of them text")
        self.login = (username, password)
        return self

    def no_password(self) -> Upstream:
        """Require no password any more."""
        self.login = None
        return self

    def behave(self, behaviour: Behaviour) -> Upstream:
        """Take another behaviour. Raises ValueError."""
        if behaviour.stage not in STAGES:
            raise ValueError(f"{behaviour.stage!r}, expected one of {', '.join(STAGES)}")
        if not isinstance(behaviour.octets, int) or behaviour.octets < 0:
            raise ValueError(f"octets={behaviour.octets!r}, expected a number of octets")
        self.behaviour = behaviour
        return self

    # --- where it is, and what has come ---

    @property
    def address(self) -> HostPort:
        """Where it listens. Raises RuntimeError if it does not run."""
        if self.listener is None or self.loop is None:
            raise RuntimeError("this Upstream does not run")
        host, port = self.listener.address
        return HostPort(str(host), port)

    @property
    def url(self) -> str:
        """Its URL for SOCKS5, with the user name and password that it wants."""
        return self.url_for("socks5")

    def url_for(self, protocol: str) -> str:
        """Its URL for ``socks5``, ``socks4`` or ``http``, with the user name and password that it wants."""
        if protocol not in ("socks5", "socks4", "http"):
            raise ValueError(f"{protocol!r}, expected socks5, socks4 or http")
        user = "" if self.login is None or protocol == "socks4" else f"{self.login[0]}:{self.login[1]}@"
        return f"{protocol}://{user}{self.address}"

    @property
    def sessions(self) -> list[Session]:
        """The sessions that have ended so far; ``destination`` and ``user`` say what a client wanted."""
        return list(self.ended.things)

    def wait_for_sessions(self, count: int = 1, timeout: float = PATIENCE) -> list[Session]:
        """Wait until so many sessions have ended, and return all. It blocks. Raises TimeoutError on timeout."""
        return self.ended.wait(count, timeout)

    # --- how it does that ---

    async def open(self) -> None:
        """See `Service`."""
        connect = Connect(carrier=self.carry)
        commands = [Failing(self, one) for one in (connect, Bind(carrier=self.carry), UdpAssociate())]
        open_to_all = Mixed(Socks5(*commands), Socks4(*commands[:2]), Http(connect))
        ask = self.authenticate
        closed = Mixed(Socks5(*commands, authenticate=ask), Socks4(required=True), Http(connect, authenticate=ask))
        policy = Policy(decide=self.decide)
        told = Told(self, open_to_all, closed)
        self.listener = Listener("127.0.0.1:0", told, policy=policy, timeouts=LONG, on_close=self.over)
        await self.listener.start()

    async def shut(self) -> None:
        """See `Service`."""
        if self.listener is not None:
            await self.listener.close()

    def over(self, session: Session) -> None:
        """A session has ended."""
        self.clients.pop(session, None)
        self.ended.add(session)

    def authenticate(self, login: Login) -> str | None:
        """Check what a client has sent."""
        if self.login is None:
            return login.username
        sent = f"{login.username}\0{login.password}".encode("utf-8", "surrogateescape")
        return login.username if hmac.compare_digest(sent, "\0".join(self.login).encode()) else None

    async def decide(self, session: Session) -> None:
        """Fail at a request of HTTP. Raises PolicyDenied."""
        if session.protocol == "http":
            await self.fail(session, self.clients[session])

    async def fail(self, session: Session, client: Stream) -> None:
        """Fail when the request is there, or in the middle of the reply. Raises PolicyDenied."""
        told = self.behaviour
        if told.does == "refuse":
            raise PolicyDenied("as it was told", reply_code=told.reply_code)
        if told.does == "accept" or told.stage not in ("request", "reply"):
            return
        if told.stage == "reply":
            await client.send_all(HALVES.get(str(session.protocol), HALF_OF_SOCKS5))
        if told.does == "hang":
            await until_gone(client)
        if told.does == "reset":
            raise PolicyDenied("as it was told", "reset")
        with suppress(OSError):  # it has gone
            client.sock.shutdown(socket.SHUT_RDWR)
        raise PolicyDenied("as it was told", "drop")  # which ends at once, since nothing comes any more

    async def carry(self, tunnel: Tunnel) -> None:
        """Fail in the tunnel, after so many octets of the destination."""
        told = self.behaviour
        if told.does in ("accept", "refuse") or told.stage != "tunnel":
            await tunnel.relay()
            return

        async def upward() -> None:
            async for data in tunnel.client:
                await tunnel.server.send_all(data)
            tunnel.server.send_eof()

        uplink = asyncio.get_running_loop().create_task(upward())
        try:
            left = told.octets
            while left and (data := await tunnel.server.receive(left)):
                await tunnel.client.send_all(data)
                left -= len(data)
            if told.does == "hang":
                await asyncio.wait([uplink])
        finally:
            uplink.cancel()
            await asyncio.gather(uplink, return_exceptions=True)
        if told.does == "reset":
            tunnel.client.reset()


async def until_gone(client: Stream) -> None:
    """Wait until a client has ended, whatever it sends."""
    with suppress(OSError):
        async for _ in client:
            pass


class Failing(Command):
    """A command that fails as the upstream is told, or is carried out."""

    def __init__(self, upstream: Upstream, inner: Command) -> None:
        self.upstream = upstream
        self.inner = inner
        self.egress = None

    @property
    def number(self) -> int:  # type: ignore[override]
        """See `Command`."""
        return self.inner.number

    def build(self, running: Running) -> Serve:
        """See `Command`."""
        return FailingServe(self.upstream, self.inner.build(running))


class FailingServe:
    """The running part of `Failing`."""

    def __init__(self, upstream: Upstream, inner: Serve) -> None:
        self.upstream = upstream
        self.inner = inner
        self.name = inner.name

    async def __call__(self, conversation: Conversation) -> Reply | None:
        """See `Serve`."""
        await self.upstream.fail(conversation.session, conversation.client)
        return await self.inner(conversation)


class Told(Piece):
    """Fails at once, or hands clients on: to a piece that requires a password, if one is required."""

    def __init__(self, upstream: Upstream, open_to_all: Piece, closed: Piece) -> None:
        self.upstream = upstream
        self.both = (open_to_all, closed)

    def inside(self) -> tuple[Piece, ...]:
        """See `Piece`."""
        return self.both

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        return ToldIngress(self.upstream, *(piece.build(running) for piece in self.both))


class ToldIngress:
    """The running part of `Told`."""

    protocol = "upstream"

    def __init__(self, upstream: Upstream, open_to_all: Ingress, closed: Ingress) -> None:
        self.upstream = upstream
        self.open_to_all = open_to_all
        self.closed = closed

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        upstream, told = self.upstream, self.upstream.behaviour
        if told.stage == "greeting" and told.does in ("hang", "reset", "close"):
            session.protocol = self.protocol
            if told.does == "hang":
                await until_gone(client)
            elif told.does == "reset":
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        upstream.clients[session] = client
        await (self.open_to_all if upstream.login is None else self.closed).serve(client, session)
