"""Whether a client is still there, while something else is awaited on its behalf."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conftest import Run
from support import reset_on_close
from tabi.ingress.presence import hearing, while_there
from tabi.net.reactor import ENDED
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


@pytest.mark.every_hosting
def test_what_is_awaited_in_time_ends_as_ever(run: Run) -> None:
    """Its result counts and so does its error, of whatever kind; the stream goes on."""

    async def main() -> None:
        async with accepted() as (stream, client):
            async with while_there(stream, 10):
                await asyncio.sleep(0)
            for error in (TimeoutError("its own"), ConnectionResetError("its own")):
                with pytest.raises(OSError, match="its own"):
                    async with while_there(stream, 10):
                        raise error
            client.send(b"hello")
            assert await stream.receive() == b"hello"
            client.shutdown(socket.SHUT_WR)
            assert await stream.receive() == b""

    run(main)


def test_a_reset_cancels_what_is_awaited(run_once: Run) -> None:
    """At once, also if it came before; a client that only ends, or sends more, is still there."""

    async def main() -> None:
        async with accepted() as (stream, client):

            async def wait(events: list[int]) -> None:
                async with while_there(stream, 10):
                    with hearing(stream, events.append):
                        client.send(b"more")
                        client.shutdown(socket.SHUT_WR)
                        while not any(event & ENDED for event in events):
                            await asyncio.sleep(0.001)
                        vanish(client)
                        await asyncio.Event().wait()

            async def wait_again() -> None:
                async with while_there(stream, 10):
                    await asyncio.Event().wait()

            with pytest.raises(ConnectionResetError, match="the client has gone"):
                await wait([])
            with pytest.raises(ConnectionResetError, match="the client has gone"):
                await wait_again()

    run_once(main)


def test_the_time_is_over(run_once: Run) -> None:
    """The deadline holds whether the client is there or not, and if it goes in that very moment."""

    async def main() -> None:
        async with accepted() as (stream, client):

            async def wait(goes: bool) -> None:
                async with while_there(stream, 0):
                    try:
                        await asyncio.Event().wait()
                    finally:
                        if goes:
                            vanish(client)
                            while not stream.events & ENDED:
                                await asyncio.sleep(0.001)

            for goes in (False, True):
                with pytest.raises(TimeoutError):
                    await wait(goes)

    run_once(main)


def test_cancelled_from_outside(run: Run) -> None:
    """A task that is cancelled is cancelled, and hears no more of the client."""

    async def main() -> None:
        async with accepted() as (stream, client), asyncio.TaskGroup() as tasks:

            async def wait() -> None:
                async with while_there(stream, 10):
                    await asyncio.Event().wait()

            handler = stream.reactor.handlers[stream.fd]
            task = tasks.create_task(wait())
            await asyncio.sleep(0)
            assert stream.reactor.handlers[stream.fd] != handler
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert stream.reactor.handlers[stream.fd] == handler
            vanish(client)

    run(main)


def test_a_stream_that_is_closed_meanwhile(run: Run) -> None:
    """Its descriptor may be somebody else's by then: nothing is touched."""

    async def main() -> None:
        async with accepted() as (stream, _):
            fd = stream.fd
            with hearing(stream, lambda events: None):
                stream.close()
            assert fd not in stream.reactor.handlers

    run(main)
