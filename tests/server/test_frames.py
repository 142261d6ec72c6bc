"""Frames on the control socket: the same from a stream reader and from a blocking socket, whole and in pieces."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from conftest import Run
from tabi.server.frames import encode_frame, read_frame, receive_frame

FRAME = encode_frame({"command": "status"})


def test_the_layout() -> None:
    """The length in 4 octets, the most significant first, then a JSON object."""
    assert FRAME == b'\x00\x00\x00\x14{"command":"status"}'


def test_a_reader_gets_frames_whatever_their_pieces(run_once: Run) -> None:
    """Octet by octet or two at once; None where it ends between two."""

    async def main() -> None:
        whole, slow = asyncio.StreamReader(), asyncio.StreamReader()
        whole.feed_data(FRAME * 2)
        whole.feed_eof()
        assert await read_frame(whole, 100) == {"command": "status"}
        assert await read_frame(whole, 100) == {"command": "status"}
        assert await read_frame(whole, 100) is None
        async with asyncio.TaskGroup() as group:
            found = group.create_task(read_frame(slow, 100))
            for octet in FRAME:
                assert not found.done()
                slow.feed_data(bytes([octet]))
                await asyncio.sleep(0)
        assert found.result() == {"command": "status"}

    run_once(main)


WRONG = [
    (FRAME[:2], EOFError),
    (FRAME[:-1], EOFError),
    (struct.pack("!I", 101), ValueError),
    (struct.pack("!I", 0xFFFFFFFF) + b"{}", ValueError),
    (encode_frame({})[:4] + b"[]", ValueError),
    (struct.pack("!I", 2) + b"\xff\xff", ValueError),
]


@pytest.mark.parametrize(("data", "error"), WRONG)
def test_what_is_not_a_frame(run_once: Run, data: bytes, error: type[Exception]) -> None:
    """Too large is refused by its length alone, before anything of it is kept; so is what is not a JSON object."""

    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        with pytest.raises(error):
            await read_frame(reader, 100)

    run_once(main)
    one, other = socket.socketpair()
    with one, other:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises(error):
            receive_frame(other, 100)


def test_a_socket_gets_a_frame() -> None:
    """In two pieces, and nothing behind it is taken."""
    one, other = socket.socketpair()
    with one, other:
        one.sendall(FRAME + b"rest")
        assert receive_frame(other, 100) == {"command": "status"}
        assert other.recv(10) == b"rest"
