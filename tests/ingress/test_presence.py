"""Whether a client is still there, while something else is awaited on its behalf."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conftest import Run
from sockets import until
from support import reset_on_close
from tabi.ingress.presence import hearing
from tabi.net.reactor import BROKEN, ENDED
from tabi.net.stream import Stream


@asynccontextmanager
async def accepted() -> AsyncIterator[tuple[Stream, socket.socket]]:
    """The stream of a client, and the client's socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        async with Stream.from_socket(listener.accept()[0]) as stream:
            yield stream, client


def vanish(client: socket.socket) -> None:
    """Close with a reset."""
    reset_on_close(client)
    client.close()


def test_a_client_is_heard_until_the_end(run_once: Run) -> None:
    """After the handler that its stream has: that it sends, ends or resets. Later only the stream hears of it."""

    async def main() -> None:
        async with accepted() as (stream, client):
            handler, events = stream.reactor.handlers[stream.fd], list[int]()
            with hearing(stream, events.append):
                client.send(b"hello")
                assert await stream.receive() == b"hello"
                client.shutdown(socket.SHUT_WR)
                await until(lambda: any(event & ENDED for event in events))
                assert stream.events & ENDED
            assert stream.reactor.handlers[stream.fd] == handler
            before = len(events)
            vanish(client)
            await until(lambda: stream.events & BROKEN)
            assert len(events) == before

    run_once(main)


def test_a_stream_that_is_closed_meanwhile(run: Run) -> None:
    """Its descriptor may be somebody else's by then: nothing is touched."""

    async def main() -> None:
        async with accepted() as (stream, _):
            fd = stream.fd
            with hearing(stream, lambda events: None):
                stream.close()
            assert fd not in stream.reactor.handlers

    run(main)
