"""The content of one message: in any pieces, as it came and what it carries, and all of it within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from conftest import Run
from tabi.errors import RemoteProtocolError, TooLarge
from tabi.intercept.content import AROUND, READ_SIZE, Content
from tabi.net.stream import Stream
from tabi.wire.http_framing import CHUNKED, UNTIL_CLOSE

CHUNKS = b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nT: x\r\n\r\n"
BODIES = {"length": (5, b"hello"), "chunks": (CHUNKED, CHUNKS), "until the end": (UNTIL_CLOSE, b"hello")}


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[tuple[Stream, socket.socket]]:
    """A stream, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    async with Stream.from_socket(ours) as stream:
        with theirs:
            theirs.setblocking(False)
            yield stream, theirs


async def all_of(content: Content) -> tuple[bytes, bytes]:
    """The octets as they came, and what they carry."""
    octets, carried = content.waiting()
    while not content.done:
        more, also = await content.next()
        octets, carried = octets + more, carried + also
    return octets, carried


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_content_passes(run: Run, body: str, size: int) -> None:
    """What belongs to it, however it comes; what is behind it stays in the buffer."""
    length, octets = BODIES[body]
    behind = b"" if length == UNTIL_CLOSE else b"next"

    async def main() -> None:
        async with streams() as (stream, theirs):
            whole = octets + behind
            buffer = bytearray(whole[:2])
            content = Content(stream, buffer, length, True)

            async def send() -> None:
                for at in range(2, len(whole), size):
                    theirs.send(whole[at : at + size])
                    await asyncio.sleep(0)
                theirs.shutdown(socket.SHUT_WR)

            async with asyncio.TaskGroup() as group:
                task = group.create_task(all_of(content))
                group.create_task(send())
            assert task.result() == (octets, b"hello")
            rest = bytes(buffer)
            while data := await stream.receive():
                rest += data
            assert rest == behind
            assert content.waiting() == (b"", b"")

    run(main)


@pytest.mark.parametrize("body", BODIES)
def test_content_is_held(run: Run, body: str) -> None:
    """All of it, and as it came."""
    length, octets = BODIES[body]

    async def main() -> None:
        async with streams() as (stream, theirs):
            theirs.send(octets)
            theirs.shutdown(socket.SHUT_WR)
            content = Content(stream, bytearray(), length)
            assert await content.read_all(5) == b"hello"
            assert await content.read_all(5) == b"hello"
            assert content.held == octets
            with pytest.raises(TooLarge):
                await content.read_all(4)

    run(main)


def test_content_without_chunks(run: Run) -> None:
    """For a client that knows none."""

    async def main() -> None:
        async with streams() as (stream, theirs):
            theirs.send(CHUNKS)
            content = Content(stream, bytearray(), CHUNKED)
            content.unchunked = True
            assert await all_of(content) == (b"hello", b"hello")

    run(main)


def test_a_bound(run: Run) -> None:
    """Of what it carries, and of what is around that: the rest is not read."""

    async def main() -> None:
        async with streams() as (stream, theirs):
            buffer = bytearray((b"1;" + b"x" * 200 + b"\r\na\r\n") * 2000)
            size = len(buffer)
            content = Content(stream, buffer, CHUNKED)
            with pytest.raises(TooLarge, match="more than 100 octets"):
                await content.read_all(100)
            assert len(content.held) + len(buffer) == size
            assert len(content.held) <= AROUND * 100 + 3 * READ_SIZE
            theirs.close()

    run(main)


@pytest.mark.parametrize("body", [(5, b"hell"), (CHUNKED, b"5\r\nhello\r\n"), (CHUNKED, b"x")])
def test_content_that_is_not_whole(run: Run, body: tuple[int, bytes]) -> None:
    """The error stays: whoever reads on has it too, as a hook may have passed over it."""

    async def main() -> None:
        async with streams() as (stream, theirs):
            theirs.send(body[1] + (b"\r\n" if body[1] == b"x" else b""))
            theirs.shutdown(socket.SHUT_WR)
            content = Content(stream, bytearray(), body[0])
            for _ in range(2):
                with pytest.raises(RemoteProtocolError):
                    await content.read_all(100)
            with pytest.raises(RemoteProtocolError):
                content.waiting()

    run(main)


def test_content_that_is_passed_over(run: Run) -> None:
    """To its end, or as far as it is worth."""

    async def main() -> None:
        async with streams() as (stream, theirs):
            for limit, done in ((None, True), (5, True), (3, True), (1, False)):
                content = Content(stream, bytearray(b"hel"), 5)
                if limit is None or limit >= 3:
                    theirs.send(b"lo")
                assert await content.discard(limit) is done
                assert content.held == b""

    run(main)
