"""What many tests need: targets to connect to, and a client that speaks SOCKS5 octet by octet."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from tabi.policy.guard import Guard
from tabi.wire.address import Address, encode_address, parse_host

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

GREETING = b"\x05\x01\x00"

permit_outer = Guard().address_filter_for("nobody", 0)
"""What the guard says to a client from outside."""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, then end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@contextlib.asynccontextmanager
async def target(
    handler: Handler = echo, host: str = "127.0.0.1", port: int = 0, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A TCP server on this machine; gives its port. Connections that are left at the end are cut."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, host, port, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def datagram_target(
    answer: Callable[[bytes], bytes] = lambda data: data, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A UDP server on this machine that answers each datagram, with itself unless told else; gives its port."""

    def serve() -> None:
        data, client = sock.recvfrom(65536)
        sock.sendto(answer(data), client)  # asyncio's own transports do not send empty ones

    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        loop.add_reader(sock, serve)
        try:
            yield sock.getsockname()[1]
        finally:
            loop.remove_reader(sock)


def request(host: str, port: int, command: int = 1) -> bytes:
    """A SOCKS5 request as it is on the wire."""
    return b"\x05%c\x00" % command + encode_address(Address(parse_host(host), port))


def credentials(username: bytes, password: bytes) -> bytes:
    """A user name and password of RFC 1929 as they are on the wire."""
    return b"\x01%c%b%c%b" % (len(username), username, len(password), password)


@contextlib.asynccontextmanager
async def client(
    address: Address, host: str | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain TCP connection to a proxy, from ``host``, an address of this machine."""
    local = None if host is None else (host, 0)
    reader, writer = await asyncio.open_connection(str(address.host), address.port, local_addr=local)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def tunnel(
    proxy: Address, port: int, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A tunnel through a proxy without users, opened octet by octet as the RFC has it."""
    async with client(proxy) as (reader, writer):
        writer.write(GREETING)
        assert await reader.readexactly(2) == b"\x05\x00"
        writer.write(request(host, port))
        reply = await reader.readexactly(4)
        assert reply[:3] == b"\x05\x00\x00", f"reply {reply.hex()}"
        await reader.readexactly(6 if reply[3] == 1 else 18)
        yield reader, writer


def reset_on_close(sock: socket.socket) -> None:
    """Make the next close send RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that is bound, so that nobody else takes it, but refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


own_ports = itertools.count(20_000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12))
"""Each process that runs tests has 1,000 ports to itself, below those that port 0 becomes: on Linux 32768 and up."""


def free_ports(count: int) -> range:
    """Ports of 127.0.0.1 in a row that nobody has, for what cannot take port 0 and say which one that has become.

    They stay free until they are taken: neither another process that runs tests nor a later call gets the same ones.
    """
    for _ in range(100):
        row = [next(own_ports) for _ in range(count)]
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in row:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return range(row[0], row[-1] + 1)
    raise AssertionError("no free ports")


def free_port() -> int:
    """One of `free_ports`."""
    return free_ports(1)[0]
