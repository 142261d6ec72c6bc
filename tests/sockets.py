"""Sockets in pairs, and relays between them, for the tests of net/ and relay/."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import random
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Self

from tabi.net.listen import bind_listener
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.relay.relay import Relay
from tabi.relay.relays import Relays
from tabi.session import Session
from tabi.wire.address import Address

Pair = tuple[socket.socket, socket.socket]


def tcp_pair(buffers: int | None = None) -> Pair:
    """Two ends of a TCP connection over 127.0.0.1, non-blocking; ``buffers`` is SO_SNDBUF and SO_RCVBUF of both."""
    with socket.socket() as listener, socket.socket() as here:
        for sock in (listener, here):
            if buffers is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        here.connect(listener.getsockname())
        there, _ = listener.accept()
        near = socket.socket(fileno=here.detach())
    for sock in (near, there):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    return near, there


def unix_pair(buffers: int | None = None) -> Pair:
    """Two joined unix sockets, non-blocking."""
    pair = socket.socketpair()
    for sock in pair:
        if buffers is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        sock.setblocking(False)
    return pair


def waiting(sock: socket.socket) -> int:
    """How many octets can be read from a socket now."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0"))[0])


def fill(sock: socket.socket, chunk: bytes = bytes(65536)) -> int:
    """Send until nothing more is taken; returns how much was."""
    total = 0
    while True:
        try:
            total += sock.send(chunk)
        except BlockingIOError:
            return total


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def read(sock: socket.socket, count: int) -> bytes:
    """Read exactly ``count`` octets, or up to the end."""
    data = bytearray()
    while len(data) < count and (chunk := await asyncio.get_running_loop().sock_recv(sock, count - len(data))):
        data += chunk
    return bytes(data)


async def read_all(sock: socket.socket) -> bytes:
    """Read up to the end."""
    return await read(sock, 1 << 30)


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all."""
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def send_and_end(sock: socket.socket, data: bytes) -> None:
    """Send all, then the end of this direction."""
    await send(sock, data)
    sock.shutdown(socket.SHUT_WR)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds; the patience of the `run` fixture limits it."""
    while not condition():
        await asyncio.sleep(0)


async def turns(count: int = 5) -> None:
    """Let the loop turn a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


def family_of(host: str) -> socket.AddressFamily:
    """Of an address as text."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def same_port(*hosts: str) -> Iterator[list[socket.socket]]:
    """Sockets bound to one port number at several addresses: tries until it is free at all of them."""
    while True:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(family_of(host))) for host in hosts]
            port = 0
            try:
                for sock, host in zip(socks, hosts, strict=True):
                    sock.bind((host, port))
                    port = sock.getsockname()[1]
            except OSError:
                continue
            yield socks
            return


@contextlib.contextmanager
def silence(listener: socket.socket) -> Iterator[int]:
    """Let a bound socket answer nobody: its backlog is full, so that further SYNs are dropped. Gives its port."""
    with contextlib.ExitStack() as stack:
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket(listener.family))
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that answers nobody."""
    with same_port("127.0.0.1") as (listener,), silence(listener) as port:
        yield port


def open_listener(address: Address) -> socket.socket:
    """A listening socket as the server has it."""
    sock = bind_listener(address)
    try:
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


class Ends:
    """A client and a server, each with a connection to this process: what a relay joins.

    ``client`` and ``server`` are the far ends; ``near_client`` and ``near_server`` are the streams to them.
    """

    def __init__(self, bench: Bench, client: Pair, server: Pair) -> None:
        self.bench = bench
        self.client, client_side = client
        self.server, server_side = server
        self.near_client = Stream(bench.relays.reactor, client_side)
        self.near_server = Stream(bench.relays.reactor, server_side)
        self.session = Session(1, "test", Address(IPv4Address("127.0.0.1"), 1), 0.0)
        self.ended = asyncio.Event()

    def start(self, head: bytes = b"", answer: bytes = b"") -> None:
        """Begin to relay."""
        self.bench.relays.start(self.near_client, self.near_server, self.session, answer, head)

    @property
    def relay(self) -> Relay:
        """The relay under way."""
        return self.bench.relays.active[self.session]

    def close(self) -> None:
        """Close what is not the relay's."""
        for stream in (self.near_client, self.near_server):
            stream.close()
        for sock in (self.client, self.server):
            sock.close()


class Bench:
    """The relays of one test: ``with Bench() as bench: ends = bench.ends()``."""

    def __init__(self, pipes: int = 8, idle: float = 300, half_closed: float = 60) -> None:
        self.relays = Relays(get_reactor(), idle, half_closed, pipes, self.done)
        self.made: list[Ends] = []

    def done(self, session: Session) -> None:
        """Called by each relay that has ended."""
        next(ends for ends in self.made if ends.session is session).ended.set()

    def ends(self, client: Pair | None = None, server: Pair | None = None) -> Ends:
        """A client and a server, by TCP unless other pairs (far end, near end) are given."""
        ends = Ends(self, client or tcp_pair(), server or tcp_pair())
        self.made.append(ends)
        return ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.relays.close("shutdown")
        for ends in self.made:
            ends.close()


def octets(count: int, seed: int = 1) -> bytes:
    """Data in which every piece differs."""
    return random.Random(seed).randbytes(count)


async def exchange(ends: Ends, up: bytes = b"up", down: bytes = b"down") -> None:
    """Send something each way and see it arrive."""
    await send(ends.client, up)
    assert await read(ends.server, len(up)) == up
    await send(ends.server, down)
    assert await read(ends.client, len(down)) == down
