"""WebSocket over HTTP/2, between a client and a server of another implementation: what hooks do, and windows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import websocket_frames
from conftest import Run
from doubles import until
from h2_ends import GET, OK, Ends, Pass
from tabi.intercept.events import WebSocketMessage
from tabi.intercept.flow import Flow
from tabi.intercept.http2_stream import Hold, Stream
from tabi.intercept.http2_websocket import PROTOCOL, StreamSocket
from tabi.intercept.websocket_halves import MESSAGE_LIMIT, HookedHalf
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import H2Request
from tabi.wire.hpack import Field
from websocket_frames import Heard, Sender, deflate, read

CONNECT: list[Field] = [(b":method", b"CONNECT"), (b":protocol", PROTOCOL), *GET[1:]]


class Sockets(Pass):
    """Has the messages of streams read."""

    def __init__(self, hooks: Iterable[object], extensions: str | None, late: bool) -> None:
        super().__init__()
        self.ends = websocket_frames.Ends(hooks, extensions, late)
        self.postponed: list[Callable[[], object]] = []
        self.one: StreamSocket | None = None

    def response(
        self, stream: Stream, status: int, fields: list[Field], end: bool
    ) -> tuple[int, list[Field]] | Hold | None:
        self.one = StreamSocket(self.ends.socket, stream, self.postponed.append)
        self.one.begin()
        return super().response(stream, status, fields, end)

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        assert request.protocol == PROTOCOL
        return super().request(stream, request, end)

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        assert self.one is not None
        self.one.data(direction, payload, end)

    def writable(self, stream: Stream, direction: int) -> None:
        assert self.one is not None
        self.one.writable(direction)

    def ended(self, stream: Stream, error: str | None) -> None:
        super().ended(stream, error)
        assert self.one is not None
        self.one.close()


def open_stream(
    hooks: Iterable[object] = (), extensions: str | None = None, late: bool = False, **options: Any
) -> tuple[Sockets, Ends]:
    """A WebSocket on stream 1."""
    sockets = Sockets(hooks, extensions, late)
    ends = Ends(sockets, server={8: 1}, **options)
    ends.client.head(1, CONNECT)
    ends.go()
    ends.server.head(1, OK)
    ends.go()
    return sockets, ends


def shout(message: WebSocketMessage) -> None:
    """Change messages that ask for it."""
    if message.content.startswith(b"change"):
        message.content = message.content.upper()


@pytest.mark.parametrize("hooked", [True, False])
def test_messages_are_read_and_pass_as_they_are(hooked: bool) -> None:
    """Both ways, in any pieces; the end of a side too."""
    heard = Heard()
    sockets, ends = open_stream([heard] if hooked else [], piece=7)
    up, down = Sender(True).message(b"one", 2), Sender(False).message(b"two", 2)
    ends.client.connection.send_data(1, up[:3])
    ends.client.connection.send_data(1, up[3:])
    ends.server.connection.send_data(1, down)
    ends.go()
    assert (ends.server.bodies[1], ends.client.bodies[1]) == (up, down)
    assert sorted(sockets.ends.recorded) == [("receive", 1, b"two"), ("send", 1, b"one")]
    assert len(heard.messages) == (2 if hooked else 0)
    ends.client.connection.send_data(1, b"", end_stream=True)
    ends.go()
    assert ends.server.ended == {1}
    assert sockets.errors == {}
    ends.server.connection.send_data(1, b"", end_stream=True)
    ends.go()
    assert ends.client.ended == {1}
    assert sockets.errors == {1: None}
    assert sockets.ends.socket.over


def test_what_a_hook_changes() -> None:
    """The server can read it, and what follows."""
    _, ends = open_stream([Heard(shout)], "permessage-deflate")
    sender = Sender(True, deflate())
    for content in (b"change this", b"leave this"):
        ends.client.connection.send_data(1, sender.message(content))
        ends.go()
    assert read(ends.server.bodies[1], True, deflate()) == [(1, b"CHANGE THIS"), (1, b"leave this")]


@pytest.mark.parametrize("size", [300_000, MESSAGE_LIMIT + 1])
def test_a_message_larger_than_every_window(size: int) -> None:
    """Its sender may go on sending while it is put together, and when it streams."""
    _, ends = open_stream([Heard()])
    octets = Sender(True).message(bytes(size)) + Sender(True).message(b"next")
    ends.client.body(1, octets)
    ends.go()
    assert ends.server.bodies[1] == octets
    assert ends.server.ended == {1}


def test_a_sender_waits_for_a_receiver_that_does_not_read() -> None:
    """What is kept has the bound of a window."""
    sockets, ends = open_stream([Heard()])
    ends.server.connection.acknowledge_received_data = lambda *args: None  # type: ignore[method-assign]
    octets = Sender(True).message(bytes(10_000)) * 300
    ends.client.body(1, octets)
    ends.go()
    assert len(ends.server.bodies[1]) == 65535
    assert len(ends.client.sending[1]) > 2_000_000
    assert sockets.streams[1].waiting(UP) < 1 << 19
    del ends.server.connection.acknowledge_received_data
    ends.server.connection.increment_flow_control_window(1 << 24)
    ends.server.connection.increment_flow_control_window(1 << 24, 1)
    ends.go()
    assert ends.server.bodies[1] == octets


def test_hooks_that_wait_hold_their_direction(run: Run) -> None:
    """Its sender may send no more than a window meanwhile; other streams and the other direction go on."""

    class Slow:
        """Waits for those of the client."""

        gate = asyncio.Event()

        async def websocket_message(self, flow: Flow, message: WebSocketMessage) -> None:
            if message.direction == "up":
                await self.gate.wait()

    async def main() -> None:
        slow = Slow()
        sockets, ends = open_stream([slow])
        octets = Sender(True).message(bytes(10_000)) * 100
        ends.client.body(1, octets)
        ends.server.connection.send_data(1, Sender(False).message(b"down"))
        ends.go()
        await until(lambda: isinstance(sockets.ends.socket.down, HookedHalf) and sockets.ends.socket.down.ready)
        ends.go()
        assert ends.client.bodies[1] == Sender(False).message(b"down")
        assert ends.server.bodies.get(1) is None
        assert len(ends.client.sending[1]) > 400_000
        slow.gate.set()

        def arrived() -> bool:
            ends.go()
            return ends.server.bodies.get(1) == octets and 1 in ends.server.ended

        await until(arrived)

    run(main)


def test_many_small_messages_take_many_turns() -> None:
    """The sender waits meanwhile; and nothing is done when the stream is over."""
    sockets, ends = open_stream([Heard()], late=True)
    octets = Sender(True).message(b"") * 5
    ends.client.connection.send_data(1, octets, end_stream=True)
    ends.go()
    for _ in range(4):
        assert ends.server.bodies[1] != octets
        (callback,) = sockets.postponed
        sockets.postponed.clear()
        callback()
        ends.go()
    while sockets.postponed:
        sockets.postponed.pop()()
        ends.go()
    assert ends.server.bodies[1] == octets
    assert ends.server.ended == {1}
    ends.server.connection.send_data(1, Sender(False).message(b"") * 3)
    ends.go()
    sockets.streams[1].reset("over")
    ends.go()
    callback()
    assert sockets.postponed


def test_what_is_no_frame_ends_the_stream() -> None:
    """Both sides get a close frame with 1002, and the end; other streams go on."""
    sockets, ends = open_stream([Heard()])
    ends.client.connection.send_data(1, b"\x83\x80\0\0\0\0")
    ends.go()
    assert ends.client.bodies[1] == b"\x88\x02\x03\xea"
    assert read(ends.server.bodies[1], True) == [(8, b"\x03\xea")]
    assert ends.client.ended == ends.server.ended == {1}
    assert sockets.ends.flow.error == "a WebSocket frame with the unknown opcode 3"
    assert ends.client.resets == {1: 0}  # each has got everything, and is to send no more
    assert 1 in ends.server.resets
    assert ends.relay.failure is None


def test_a_stream_that_is_reset() -> None:
    """Hooks end with it."""
    sockets, ends = open_stream([Heard()])
    ends.client.connection.send_data(1, Sender(True).frame(1, b"a", False))
    ends.go()
    half = sockets.ends.socket.up
    assert half.held
    ends.client.connection.reset_stream(1, 8)
    ends.go()
    assert sockets.ends.socket.over
    assert 1 in ends.server.resets
    assert half.held == 0
    assert sockets.one is not None
    for direction in (UP, DOWN):
        sockets.one.data(direction, b"more", True)
        sockets.one.writable(direction)
