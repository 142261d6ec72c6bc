"""Sockets out of streams: the socket itself, and one in front of TLS."""

from __future__ import annotations

import asyncio
import socket

from authorities import client_context, server_context
from conftest import Run
from support import target
from tabi.egress.detach import take_socket
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.net.tls import connect_tls, get_tls_shared

DATA = b"hello" * 50_000


async def connected(port: int) -> Stream:
    """A stream to a port here."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    return Stream(get_reactor(), sock)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what has come, and end."""
    writer.write(await reader.readexactly(len(DATA)))


async def echoes(sock: socket.socket) -> None:
    """What is at the other end sends back what it gets, and the end."""
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(DATA)
    assert await reader.read() == DATA
    writer.close()
    await writer.wait_closed()


def test_the_socket_itself(run: Run) -> None:
    """It is the same descriptor, which the stream has no more."""

    async def main() -> None:
        async with target(answer) as port:
            stream = await connected(port)
            number = stream.fd
            sock = take_socket(stream)
            assert (sock.fileno(), stream.fd) == (number, -1)
            await echoes(sock)

    run(main)


def test_in_front_of_tls(run: Run) -> None:
    """A pair's end whose octets go through TLS while the loop runs."""

    async def main() -> None:
        async with target(answer, context=server_context()) as port:
            stream = await connected(port)
            await connect_tls(stream, client_context(), "127.0.0.1", get_tls_shared())
            sock = take_socket(stream)
            assert sock.family == socket.AF_UNIX
            await echoes(sock)
        while asyncio.all_tasks() != {asyncio.current_task()}:  # the server's own end of TLS
            await asyncio.sleep(0.001)

    run(main)
