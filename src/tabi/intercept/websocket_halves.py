"""What is sent in one direction of a WebSocket: frames pass, messages are put together for hooks and records.

    records    octets go on at once, and are looked at beside; what cannot be read only ends the recording
    hooks      a message waits until the hooks have seen it, and goes on in its own frames, or changed in one of ours

What neither wants is not looked at at all. The messages of one direction wait for each other alone. Control frames
pass, in front of a message that is not whole. Without I/O but for tasks of hooks that wait; `Port` does the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tabi.errors import RemoteProtocolError, TooLarge
from tabi.intercept.events import Direction, WebSocketMessage
from tabi.intercept.hooks import Handlers, HookFailed
from tabi.intercept.websocket_messages import Deflater, MessageReader
from tabi.wire.websocket import (
    BINARY,
    CLOSE,
    CONTROL,
    FIN,
    INTERNAL_ERROR,
    OPCODE,
    PROTOCOL_ERROR,
    RSV1,
    TEXT,
    TOO_BIG,
    Compression,
    decode_head,
    encode_head,
)

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without its C module
    from websockets.utils import apply_mask

if TYPE_CHECKING:
    from tabi.intercept.websocket import WebSocket

MESSAGE_LIMIT = 1 << 20
"""Octets of a message that hooks see, or ``body_limit`` if that is more, 8 MiB at most; longer ones pass unseen."""

BEHIND = 1 << 20
"""Octets that have passed and were not looked at, from which on records have no more; where nothing makes them wait."""

UNSEEN, UNREAD, UNRECORDED = "websocket-unseen", "websocket-broken", "websocket-not-all-recorded"
"""Tags of a flow: hooks did not see all messages; octets have passed that are no frames; a record has not all."""


class Port(Protocol):
    """Where octets of one direction go on."""

    def emit(self, data: bytes) -> None: ...
    def emit_end(self) -> None: ...

    def later(self, callback: Callable[[], object]) -> None:
        """Call in another turn."""

    def run(self, callback: Callable[[], object]) -> None:
        """Call from outside of `Half.feed`."""

    def cut(self, error: str) -> None:
        """End the connection, behind what was emitted."""


class Nowhere:
    """The port of a connection that is over."""

    def emit(self, data: bytes) -> None:
        """Drop them."""

    def emit_end(self) -> None:
        """Drop it too."""

    def later(self, callback: Callable[[], object]) -> None:
        """There is no later."""

    def run(self, callback: Callable[[], object]) -> None:
        """Nor is there anything to do."""

    def cut(self, error: str) -> None:
        """It has ended."""


NOWHERE = Nowhere()


class Half:
    """What is sent in one direction. Raises nothing."""

    def __init__(self, socket: WebSocket, direction: Direction, compression: Compression | None, limit: int) -> None:
        self.socket = socket
        self.direction = direction
        self.reader = MessageReader(compression, limit)
        self.port: Port
        self.buffer = bytearray()  # not looked at yet
        self.waits = False  # whether there is more to look at in another turn
        self.ended = False  # whether the sender will send no more
        self.first, self.mask, self.left = 0, b"", -1  # of the frame under way; -1: none is

    @property
    def ready(self) -> bool:
        """Whether more can be taken."""
        return not self.waits

    @property
    def held(self) -> int:
        """Octets that have not gone on."""
        return 0

    def feed(self, data: bytes) -> None:
        """Take octets of the sender."""
        raise NotImplementedError

    def end(self) -> None:
        """The sender will send no more."""
        self.ended = True
        if self.ready:
            self.port.emit_end()

    def again(self) -> None:
        """Go on with what waits."""
        self.waits = False
        data = bytes(self.buffer)
        self.buffer.clear()
        self.feed(data)
        if self.ended and self.ready and not self.socket.over:
            self.port.emit_end()

    def put_off(self) -> None:
        """Look at the rest in another turn."""
        self.waits = True
        self.port.later(self.again)

    def unmask(self, payload: bytes) -> bytes:
        """A piece of the payload of the frame under way, without its mask."""
        mask = self.mask
        if not mask or not payload:
            return payload
        turned = len(payload) & 3
        if turned:
            self.mask = mask[turned:] + mask[:turned]
        return apply_mask(payload, mask)

    def abort(self, code: int) -> None:
        """End it with a close frame."""

    def stop(self) -> None:
        """Nobody wants records any more."""

    def close(self) -> None:
        """The connection is over: what waits is dropped."""


class RecordedHalf(Half):
    """Octets go on before they are looked at."""

    reads = True

    def feed(self, data: bytes) -> None:
        """See `Half`."""
        if data:
            self.port.emit(data)
            self.look(data)

    def again(self) -> None:
        """See `Half`."""
        self.waits = False
        self.look(b"")
        if self.ended and self.ready:
            self.port.emit_end()

    def look(self, data: bytes) -> None:
        """Look at octets that have gone on."""
        if not self.reads:
            return
        if self.buffer or self.waits:
            self.buffer += data
            if len(self.buffer) > BEHIND:
                self.socket.flow.tags.add(UNRECORDED)
                self.stop()
            if self.waits:
                return
            data = bytes(self.buffer)
            self.buffer.clear()
        try:
            at = self.read(data)
        except RemoteProtocolError:
            self.socket.flow.tags.add(UNREAD)
            self.stop()
            return
        if at < len(data) and self.reads:
            self.buffer += data[at:]

    def read(self, data: bytes) -> int:
        """Read messages; returns the index behind what is read. Raises RemoteProtocolError."""
        at, size, reader, late = 0, len(data), self.reader, self.socket.late
        while at < size:
            if self.left < 0:
                head = decode_head(data, at)
                if head is None:
                    break
                self.first, self.mask, self.left, at = head
                if not self.first & CONTROL:
                    reader.begin(self.first)
                    if self.first & OPCODE:
                        reader.limit = self.socket.room
            end = min(at + self.left, size)
            if not self.first & CONTROL:
                reader.add(self.unmask(data[at:end]))
            self.left -= end - at
            at = end
            if self.left:
                break
            self.left = -1
            if self.first & CONTROL:
                if self.first & OPCODE == CLOSE:
                    self.stop()
                    break
            elif self.first & FIN:
                opcode = reader.opcode
                self.socket.record(self.direction, opcode, reader.end(), reader.over)
                if not self.reads:
                    break
            if late():
                self.put_off()
                break
        return at

    def stop(self) -> None:
        """Look at nothing any more."""
        self.reads = False
        self.buffer.clear()
        self.reader.content.clear()
        self.reader.inflater = None


class HookedHalf(Half):
    """Messages go on when the hooks have seen them."""

    def __init__(self, socket: WebSocket, direction: Direction, compression: Compression | None, limit: int) -> None:
        super().__init__(socket, direction, compression, limit)
        self.deflater = Deflater(compression)
        self.original = bytearray()  # the frames of the message under way
        self.out: list[bytes] = []
        self.passes = False  # whether the message under way goes on as it comes
        self.closed = False  # whether a close frame has passed: all behind it goes on as it comes
        self.asking: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """See `Half`."""
        return not self.waits and self.asking is None

    @property
    def held(self) -> int:
        """See `Half`."""
        return len(self.original) + len(self.buffer)

    def feed(self, data: bytes) -> None:
        """See `Half`."""
        socket = self.socket
        if socket.over:
            return
        if not self.ready:
            self.buffer += data
            return
        if self.buffer:
            data = bytes(self.buffer) + data
            self.buffer.clear()
        code, error = 0, ""
        try:
            at = 0 if self.closed else self.read(data)
            if self.closed:
                self.out.append(data[at:])
            else:
                self.buffer += data[at:]
        except RemoteProtocolError as exc:
            code, error = PROTOCOL_ERROR, str(exc)
        except TooLarge as exc:
            code, error = TOO_BIG, str(exc)
        except HookFailed as exc:
            code, error = INTERNAL_ERROR, str(exc)
        self.flush()
        if code:
            socket.fail(code, error)

    def read(self, data: bytes) -> int:
        """Read frames; returns the index behind what is read.

        Raises:
            RemoteProtocolError, TooLarge, HookFailed: the connection is to end.
        """
        at, size = 0, len(data)
        while at < size:
            begun = at
            if self.left < 0:
                head = decode_head(data, at)
                if head is None:
                    break
                first, mask, left, at = head
                if first & CONTROL:
                    if at + left > size:
                        return begun
                    at += left
                    self.out.append(data[begun:at])
                    if first & OPCODE == CLOSE:
                        self.closed = True
                        self.original.clear()
                        break
                    if self.socket.late():
                        self.put_off()
                        break
                    continue
                self.first, self.mask, self.left = first, mask, left
                self.begin(first)
            end = min(at + self.left, size)
            self.left -= end - at
            if self.passes:
                self.out.append(data[begun:end])
            else:
                self.take(data[begun:end], data[at:end])
            at = end
            if self.left:
                break
            self.left = -1
            if self.first & FIN:
                self.message_over()
                if self.asking is not None:
                    break
            if self.socket.late():
                self.put_off()
                break
        return at

    def begin(self, first: int) -> None:
        """A frame of a message begins. Errors as `read`."""
        self.reader.begin(first)
        if self.reader.over and not self.passes:
            self.let_pass()

    def take(self, octets: bytes, payload: bytes) -> None:
        """Keep octets of a message: as they came, and their payload. Errors as `read`."""
        reader = self.reader
        self.original += octets
        reader.add(self.unmask(payload))
        if len(self.original) > 2 * reader.limit + MESSAGE_LIMIT:
            reader.give_up()
        if reader.over:
            self.let_pass()

    def let_pass(self) -> None:
        """The message under way cannot be read: it goes on as it comes. Raises TooLarge where that must not be."""
        if self.socket.hooks.close_on_error or (self.deflater.differs and self.reader.compressed):
            raise TooLarge(f"a WebSocket message of more than {self.reader.limit} octets")
        self.socket.flow.tags.add(UNSEEN)
        self.reader.content.clear()
        self.out.append(bytes(self.original))
        self.original.clear()
        self.passes = True

    def message_over(self) -> None:
        """A message is whole: show it to the hooks. Errors as `read`."""
        reader, socket = self.reader, self.socket
        is_text, compressed = reader.opcode == TEXT, reader.compressed
        content = reader.end()
        if reader.over and not self.passes:  # it has become too long with its last octets
            self.let_pass()
        if self.passes:
            self.passes = False
            return
        original = bytes(self.original)
        self.original.clear()
        message = WebSocketMessage(self.direction, is_text, content)
        whole = Whole(message, is_text, content, compressed, original)
        handlers = socket.hooks.websocket_message
        if any(handler.waits for handler in handlers):
            self.asking = asyncio.get_running_loop().create_task(self.ask(handlers, whole))
        else:
            socket.hooks.show_event(handlers, message, socket.flow)
            self.settle(whole)

    async def ask(self, handlers: Handlers, whole: Whole) -> None:
        """Show a message to hooks that wait."""
        socket, failed = self.socket, ""
        try:
            await socket.hooks.on_event(handlers, whole.message, socket.flow)
        except HookFailed as exc:
            failed = str(exc)
        self.asking = None

        def go_on() -> None:
            if failed:
                socket.fail(INTERNAL_ERROR, failed)
            else:
                self.settle(whole)
                self.again()

        self.port.run(go_on)

    def settle(self, whole: Whole) -> None:
        """The hooks have seen a message: send it on."""
        message, compressed, deflater = whole.message, whole.compressed, self.deflater
        if message.dropped:
            if compressed:
                deflater.note_change()
            return
        content, is_text = message.content, message.is_text
        same = content == whole.content and is_text == whole.is_text
        if same and not (compressed and deflater.differs):
            self.out.append(whole.original)
        else:
            self.out.append(self.encode(content, is_text, compressed))
        self.socket.record(self.direction, TEXT if is_text else BINARY, content)

    def encode(self, content: bytes, is_text: bool, compressed: bool) -> bytes:
        """A message as one frame of ours."""
        first = FIN | (TEXT if is_text else BINARY)
        if compressed:
            self.deflater.note_change()
            packed = self.deflater.compress(content)
            if packed is not None:
                first, content = first | RSV1, packed
        return frame_for(self.direction, first, content)

    def flush(self) -> None:
        """Send what goes on."""
        octets = b"".join(self.out)
        self.out.clear()
        if octets:
            self.port.emit(octets)

    def abort(self, code: int) -> None:
        """See `Half`. In the middle of a frame nothing can be said."""
        if not self.closed and not (self.passes and self.left > 0):
            self.port.emit(frame_for(self.direction, FIN | CLOSE, code.to_bytes(2, "big")))

    def close(self) -> None:
        """See `Half`."""
        if self.asking is not None:
            self.asking.cancel()
            self.asking = None
        self.original.clear()
        self.buffer.clear()


class Whole(NamedTuple):
    """A message while hooks see it, and how it came: what it was, whether it was compressed, and its frames."""

    message: WebSocketMessage
    is_text: bool
    content: bytes
    compressed: bool
    original: bytes


def frame_for(direction: Direction, first: int, payload: bytes) -> bytes:
    """A whole frame, masked where it goes to a server (RFC 6455 section 5.3)."""
    if direction == "down":
        return encode_head(first, len(payload)) + payload
    mask = os.urandom(4)
    return encode_head(first, len(payload), mask) + apply_mask(payload, mask)
