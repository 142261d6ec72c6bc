"""What the tests of a whole server need: names and destinations that behave badly, and clients from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Self

from support import client, closed_port, credentials, request, reset_on_close, target
from tabi import Config, Login, Server, Session
from tabi.config import Listen, Log, Seconds, Timeouts
from tabi.net.failures import resolve_error
from tabi.observe.observers import OnClose, OnOpen, Watch
from tabi.wire.address import Address, decode_address

LOOPBACK = "socks5://127.0.0.1:0"
SUCCESS = b"\x05\x00\x00\x01"
"""The beginning of a reply of success with an IPv4 address."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def config(*listen: Listen, **seconds: float) -> Config:
    """A configuration with some of the timeouts changed, and without an access log."""
    timeouts = Timeouts(**{name: Seconds(value) for name, value in seconds.items()})
    return Config(listen=list(listen) or [Listen(LOOPBACK)], timeouts=timeouts, log=Log(access="none"))


def logged(path: Path) -> Config:
    """A configuration with an access log."""
    return Config(listen=[Listen(LOOPBACK)], log=Log(access=str(path)))


class FakeResolver:
    """Names as a test gives them, or the error that is raised for them; any other name does not exist."""

    def __init__(self, names: Mapping[str, Sequence[str] | Exception] | None = None) -> None:
        self.names = dict(names or {})
        self.asked: list[str] = []
        self.closed = False
        self.answering = asyncio.Event()
        self.answering.set()

    async def resolve(self, name: str) -> list[IPv4Address | IPv6Address]:
        self.asked.append(name)
        await self.answering.wait()
        if name not in self.names:
            raise resolve_error("Domain name not found", name)
        found = self.names[name]
        if isinstance(found, Exception):
            raise found
        return [ip_address(text) for text in found]

    async def close(self) -> None:
        self.closed = True


class Doorman:
    """An ``authenticate=`` that a test can hold up. It knows everyone whose password is their name."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        """User name, password and the client's host of each login."""
        self.answering = asyncio.Event()
        self.answering.set()

    async def __call__(self, login: Login) -> str | None:
        self.asked.append((login.username, login.password, str(login.client.host)))
        await self.answering.wait()
        return login.username if login.username == login.password else None


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that no event tells of; the loop's own deadline limits it."""
    while not condition():
        await asyncio.sleep(0.002)


@contextlib.contextmanager
def unanswering(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that lets connections hang: its queue is full, so that the kernel drops what would be one more."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind((host, 0))
        sock.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


@contextlib.asynccontextmanager
async def client_from(server: Server, host: str) -> AsyncIterator[Streams]:
    """A client of the first listener whose address is ``host``, which need not exist on this machine."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    server.parts.acceptors[0].accepted(theirs, (host, 40000))
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def greet(streams: Streams, methods: bytes = b"\x00") -> int:
    """Offer methods; returns the one that was chosen."""
    reader, writer = streams
    writer.write(b"\x05%c%b" % (len(methods), methods))
    version, method = await reader.readexactly(2)
    assert version == 5
    return method


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """A whole reply: REP, and the rest from ATYP on. VER and RSV are checked."""
    version, reply_code, reserved, atyp = await reader.readexactly(4)
    assert (version, reserved) == (5, 0)
    if atyp == 3:  # a name, which only RESOLVE_PTR is answered with
        length = await reader.readexactly(1)
        return reply_code, b"\x03" + length + await reader.readexactly(length[0] + 2)
    rest = await reader.readexactly({1: 6, 4: 18}[atyp])
    return reply_code, bytes([atyp]) + rest


async def ask(server: Server, octets: bytes) -> int:
    """Send a request as octets and return REP; after a failure the connection must end behind the reply."""
    async with client(server.addresses[0]) as (reader, writer):
        assert await greet((reader, writer)) == 0
        writer.write(octets)
        reply_code, _ = await read_reply(reader)
        if reply_code:
            assert await reader.read() == b""
        return reply_code


async def ask_for(server: Server, host: str, port: int) -> int:
    """Ask for a connection and return REP."""
    return await ask(server, request(host, port))


def reset(writer: asyncio.StreamWriter) -> None:
    """Vanish with a reset."""
    reset_on_close(writer.get_extra_info("socket"))
    writer.transport.abort()


async def end_of(reader: asyncio.StreamReader) -> str:
    """Read to the end; says how it ended: ``end`` or ``reset``. No octet may come before it."""
    try:
        rest = await reader.read()
    except ConnectionError:
        return "reset"
    assert rest == b"", f"octets before the end: {rest[:40].hex()}"
    return "end"


def highest_descriptor() -> int:
    """The highest descriptor that this process has open."""
    return max(int(name) for name in os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """Lower the number of descriptors that this process may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Use up all descriptors of this process."""
    fillers: list[int] = []
    with descriptor_limit(highest_descriptor() + 8):
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError:
            pass
        try:
            yield
        finally:
            for fd in fillers:
                os.close(fd)


SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 4, 20, 1
LOOPBACK_ADDRESS = bytes((127, 0, 0, 1))
NO_COOKIE = struct.pack("=3I", 0, 0xFFFFFFFF, 0xFFFFFFFF)
"""No interface either."""


def queued(port: int, peer_port: int) -> tuple[int, int]:
    """Octets that wait in the kernel on one loopback connection: (sent and not taken over, received and not read).

    Seen from the socket at ``port``. sock_diag(7) finds one between ports of 127.0.0.1 at once, /proc/net/tcp has
    all, but takes 30 ms of CPU to read on a large machine.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG) as sock:
            ends = struct.pack("!2H4s12x4s12x", port, peer_port, LOOPBACK_ADDRESS, LOOPBACK_ADDRESS)
            asked = struct.pack("=4BI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + ends + NO_COOKIE
            sock.sendall(struct.pack("=I2H2I", 16 + len(asked), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + asked)
            told = sock.recv(4096)
        if struct.unpack_from("=H", told, 4)[0] == SOCK_DIAG_BY_FAMILY:
            receiving, sending = struct.unpack_from("=2I", told, 16 + 4 + 48 + 4)
            return sending, receiving
    except OSError:  # there is no netlink here
        pass
    for _ in range(5):  # one may be missed while others come and go
        table = Path("/proc/net/tcp").read_text()
        if found := re.search(rf":{port:04X} \w+:{peer_port:04X} \w+ (\w+):(\w+)", table):
            return int(found[1], 16), int(found[2], 16)
    raise LookupError(f"no connection between {port} and {peer_port}")


async def open_tunnel(streams: Streams, destination: Address) -> None:
    """Open a tunnel on a connection to a proxy without users."""
    reader, writer = streams
    assert await greet(streams) == 0
    writer.write(request(str(destination.host), destination.port))
    reply_code, _ = await read_reply(reader)
    assert reply_code == 0, f"reply {reply_code}"


async def read_bound(reader: asyncio.StreamReader) -> Address:
    """A reply of success; gives its BND."""
    reply_code, octets = await read_reply(reader)
    assert reply_code == 0, f"reply {reply_code}"
    found = decode_address(octets, 0)
    assert found is not None
    return found[0]


async def open_bind(streams: Streams, host: str = "127.0.0.1", early: bytes = b"") -> Address:
    """Ask for a BIND on a connection to a proxy without users, with payload behind it; gives where to call."""
    assert await greet(streams) == 0
    streams[1].write(request(host, 0, 2) + early)
    return await read_bound(streams[0])


@contextlib.asynccontextmanager
async def caller(address: Address, source: str = "127.0.0.1") -> AsyncIterator[Streams]:
    """A peer that calls where a BIND listens, from one of this machine's addresses."""
    reader, writer = await asyncio.open_connection(str(address.host), address.port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def expect_reset(address: Address, source: str) -> None:
    """Call where a BIND listens, and be refused: by a reset."""
    try:
        async with caller(address, source) as (reader, _):
            assert await end_of(reader) == "reset"
    except ConnectionResetError:
        pass  # before the call was known to have succeeded


class Serving:
    """What has a server: ``async with`` runs it."""

    server: Server

    async def __aenter__(self) -> Self:
        await self.server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.server.close()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.server.addresses[0]


class Scene:
    """A server and one client that stands at a stage of its session."""

    def __init__(self, **seconds: float) -> None:
        self.resolver = FakeResolver({"here.test": ["127.0.0.1"], "both.test": ["127.0.0.1", "127.0.0.2"]})
        self.doorman = Doorman()
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        self.server = Server(
            config=config(Listen(LOOPBACK, users="optional"), **seconds),
            authenticate=self.doorman,
            resolver=self.resolver,
            on_close=self.ended.put_nowait,
        )
        self.reached = asyncio.Event()
        self.destination: socket.socket | None = None
        self.stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.stack.enter_async_context(self.server)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()

    async def client(self) -> Streams:
        """Connect."""
        return await self.stack.enter_async_context(client(self.server.addresses[0]))

    async def bring_to(self, stage: str) -> Streams:
        """Bring a new client to one of STAGES."""
        streams = await self.client()
        await getattr(self, stage)(*streams)
        return streams

    def dialling(self) -> bool:
        """Whether a destination is being opened."""
        return any(session.via for session in self.server.parts.sessions.running)

    def begun(self) -> bool:
        """Whether there was a session; on a busy machine it may be over before anybody looks."""
        return bool(self.server.parts.sessions.running) or not self.ended.empty()

    async def silent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connected, nothing said."""
        await until(self.begun)

    async def greeting(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """In the middle of the greeting."""
        writer.write(b"\x05\x02\x00")
        server_port, own_port = self.server.addresses[0].port, writer.get_extra_info("sockname")[1]
        await until(lambda: self.begun() and (not self.ended.empty() or queued(server_port, own_port)[1] == 0))

    async def credentials(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """User name and password are awaited."""
        assert await greet((reader, writer), b"\x02") == 2

    async def authenticating(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """User name and password are being checked."""
        self.doorman.answering.clear()
        await self.credentials(reader, writer)
        writer.write(credentials(b"alice", b"alice"))
        await until(lambda: self.doorman.asked)

    async def request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The request is awaited."""
        assert await greet((reader, writer)) == 0

    async def ask_for(self, streams: Streams, host: str, port: int) -> None:
        """Send a request; the answer is not awaited."""
        assert await greet(streams) == 0
        streams[1].write(request(host, port))

    async def resolving(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The destination's name is being resolved."""
        port = await self.stack.enter_async_context(target())
        self.resolver.answering.clear()
        await self.ask_for((reader, writer), "here.test", port)
        await until(lambda: self.resolver.asked)

    async def connecting(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The destination is being connected to, and does not answer."""
        port = self.stack.enter_context(unanswering())
        await self.ask_for((reader, writer), "127.0.0.1", port)
        await until(self.dialling)

    async def racing(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Several addresses of the destination are being connected to, and none answers."""
        port = self.stack.enter_context(unanswering("0.0.0.0"))
        await self.ask_for((reader, writer), "both.test", port)
        await until(lambda: self.resolver.asked)

    async def bound(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A peer is waited for."""
        await open_bind((reader, writer))

    async def bind_resolving(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The name of the peer that is to call is being resolved."""
        self.resolver.answering.clear()
        assert await greet((reader, writer)) == 0
        writer.write(request("here.test", 0, 2))
        await until(lambda: self.resolver.asked)

    async def refused(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A failure reply was read, and the client does not close."""
        with closed_port() as port:
            await self.ask_for((reader, writer), "127.0.0.1", port)
            assert (await read_reply(reader))[0] == 5

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A tunnel stands, and has carried something."""
        port = await self.stack.enter_async_context(target())
        await open_tunnel((reader, writer), Address("127.0.0.1", port))
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"

    async def half_closed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A tunnel whose client has ended its direction, and whose destination goes on."""

        async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            self.reached.set()
            await asyncio.get_running_loop().create_future()

        port = await self.stack.enter_async_context(target(stay))
        await open_tunnel((reader, writer), Address("127.0.0.1", port))
        writer.write_eof()
        await self.reached.wait()

    async def blocked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A tunnel whose destination does not read what the client sends without end."""
        sock = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        await open_tunnel((reader, writer), Address("127.0.0.1", sock.getsockname()[1]))
        peer, _ = sock.accept()
        self.stack.callback(peer.close)
        self.destination = peer
        ours = writer.get_extra_info("socket")
        ports = ours.getpeername()[1], ours.getsockname()[1]
        writer.write(bytes(64 << 20))
        await until(lambda: queued(*ports)[1] > 100_000)  # the proxy has stopped reading


STAGES = (
    "silent",
    "greeting",
    "credentials",
    "authenticating",
    "request",
    "resolving",
    "connecting",
    "racing",
    "bound",
    "bind_resolving",
    "refused",
    "relay",
    "half_closed",
    "blocked",
)
"""Where a session can stand: the methods of `Scene` with these names bring a client there."""


def hear_ends(server: Server, callback: Callable[[Session], object]) -> None:
    """Have a server that runs tell of each session that ends, as ``on_close`` of one that is made so."""
    sessions = server.parts.sessions
    sessions.ended += (OnClose(callback).ended,)
    sessions.copies = True


class Clock:
    """A clock that goes on only when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def hear_opens(server: Server, callback: Callable[[Session], object]) -> None:
    """Have a server that runs call something with each session that opens, as ``on_open`` of one that is made so."""
    sessions = server.parts.sessions
    sessions.watch = Watch([OnOpen(callback)])
    for index, acceptor in enumerate(server.parts.acceptors):
        ingress = server.parts.make_ingress(server.compiled, index)
        acceptor.accepted = sessions.accepting(ingress, server.compiled.config.listen[index].url)
