"""What the tests of a whole server need: names and destinations that behave badly, and clients from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiodns import error as dns

from support import client, request, reset_on_close
from tabi import Config, Server
from tabi.config import Listen, Log, Seconds, Timeouts
from tabi.net.failures import resolve_error
from tabi.wire.address import Address

LOOPBACK = "socks5://127.0.0.1:0"
SUCCESS = b"\x05\x00\x00\x01"
"""The beginning of a reply of success with an IPv4 address."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def config(*listen: Listen, access: str = "none", **seconds: float) -> Config:
    """A configuration with some of the timeouts changed."""
    timeouts = Timeouts(**{name: Seconds(value) for name, value in seconds.items()})
    return Config(listen=list(listen) or [Listen(LOOPBACK)], timeouts=timeouts, log=Log(access=access))


class FakeResolver:
    """Names as a test gives them; any other name does not exist."""

    def __init__(self, names: Mapping[str, Sequence[str]] | None = None) -> None:
        self.names = dict(names or {})
        self.asked: list[str] = []
        self.closed = False
        self.answering = asyncio.Event()
        self.answering.set()

    async def resolve(self, name: str) -> list[IPv4Address | IPv6Address]:
        self.asked.append(name)
        await self.answering.wait()
        if name not in self.names:
            raise resolve_error(dns.ARES_ENOTFOUND, "Domain name not found", name)
        return [ip_address(text) for text in self.names[name]]

    async def close(self) -> None:
        self.closed = True


class Doorman:
    """An ``authenticate=`` that a test can hold up. It knows everyone whose password is their name."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def __call__(self, username: str, password: str, client: str) -> str | None:
        self.asked.append((username, password, client))
        await self.answering.wait()
        return username if username == password else None


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
    server.acceptors[0].accepted(theirs, (host, 40000))
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
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers: list[int] = []
    with descriptor_limit(highest + 8):
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


def queued(port: int, peer_port: int) -> tuple[int, int]:
    """Octets that wait in the kernel on one loopback connection: (sent and not taken over, received and not read).

    Seen from the socket at ``port``, from /proc/net/tcp.
    """
    with open("/proc/net/tcp") as table:
        for line in table.readlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if int(local.split(":")[1], 16) == port and int(remote.split(":")[1], 16) == peer_port:
                sending, receiving = queues.split(":")
                return int(sending, 16), int(receiving, 16)
    raise LookupError(f"no connection between {port} and {peer_port}")


async def open_tunnel(streams: Streams, destination: Address) -> None:
    """Open a tunnel on a connection to a proxy without users."""
    reader, writer = streams
    assert await greet(streams) == 0
    writer.write(request(str(destination.host), destination.port))
    reply_code, _ = await read_reply(reader)
    assert reply_code == 0, f"reply {reply_code}"
