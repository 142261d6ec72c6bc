"""One direction of a frame relay: takes apart what one side sends, and passes it on.

Content passes as it came, in pieces of frames too, as long as nobody looks at it. What a peer must not do is an
H2Error, which ends the connection, or an H2StreamError, which ends a stream.

Hot path: benchmarks/http2.py pays for the lines of `Direction.parse`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tabi.errors import H2Error, H2StreamError
from tabi.intercept.http2_outlet import Outlet
from tabi.intercept.http2_stream import CUT, ENDED, HELD, TAKEN, WATCHED, Budget, Half
from tabi.policy.limits import DOWN
from tabi.wire.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD_SIZE,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_WINDOW,
    MIN_FRAME_SIZE,
    PUSH_PROMISE,
    SETTINGS,
    SETTINGS_ACK,
    ErrorCode,
    check_frame,
    check_trailers,
    decode_settings,
    decode_window_update,
    encode_frame,
    encode_head,
    encode_rst,
    encode_settings,
    encode_window_update,
    split_headers,
    split_promise,
    strip_padding,
    unpack_head,
)
from tabi.wire.hpack import MAX_BLOCK_SIZE, MAX_LIST_SIZE, MAX_TABLE_SIZE, Decoder, Field

if TYPE_CHECKING:
    from tabi.intercept.http2 import FrameRelay

MAX_FRAME = 65536
"""Octets of a frame that we allow at most, whatever a peer does."""

MAX_PIECES = 256
"""Frames of a block: 64 KiB in the smallest that a peer would have a reason for."""

MAX_SETTINGS = 32
"""SETTINGS that are not acknowledged."""

NOISE, NOISE_RATE, NOISE_OF_FRAME = 2000, 500.0, 4
"""Frames that carry nothing at once and a second, and for each frame with content."""

BLOCKS = 50
"""Blocks that are taken at once: 1 to 2 ms, with hooks. Others wait for another turn."""

LITTLE = 256
"""Octets of content for nobody, from which on they are more than what we answer."""

RESETS, RESET_RATE = 1000, 100.0
"""Streams that are reset before they have an answer, at once and a second."""


TAKERS = (
    *("on_data", "on_headers", "on_priority", "on_rst", "on_settings"),
    *("on_promise", "on_ping", "on_goaway", "on_window_update", "on_continuation"),
)
"""By the kind of frame."""


class Direction(Outlet):
    """What one side sends, and what of it goes to the other."""

    other: Direction
    sender: str  # for messages
    max_table = MAX_TABLE_SIZE
    """Octets of a table of fields that the sender may allow the other side."""
    max_list = MAX_LIST_SIZE
    """Octets of a head that it may."""

    def __init__(self, relay: FrameRelay) -> None:
        super().__init__(relay)
        self.halves: dict[int, Half] = {}  # by their number at the sender
        self.decoder = Decoder()
        self.rest = bytearray()  # of a frame that is not whole
        self.missing = 0
        self.more = False  # of what has come there are frames left, for `feed` with nothing, in another turn
        # Of a block that is not whole: kind, flags, stream, what precedes it, and itself.
        self.block: tuple[int, int, int, bytes, bytearray] | None = None
        self.pieces = 0
        self.last = 0  # the highest stream that the sender has begun
        self.settings: deque[tuple[int | None, int | None]] = deque()  # not acknowledged: table and window in them
        self.max_frame = MIN_FRAME_SIZE  # of what the receiver allows
        self.noise = Budget(NOISE, NOISE_RATE, relay.clock)
        self.resets = Budget(RESETS, RESET_RATE, relay.clock)

    def feed(self, data: bytes) -> None:
        """Take octets from the sender."""
        relay = self.relay
        if relay.over:
            return
        relay.turns += 1
        try:
            self.parse(data)
        except H2Error as exc:
            relay.fail(self, exc)
        finally:
            relay.turns -= 1

    def parse(self, data: bytes) -> None:
        """Take frames apart. Raises H2Error."""
        if self.missing:
            self.rest += data
            if len(self.rest) < self.missing:
                return
            data = bytes(self.rest)
            self.rest.clear()
            self.missing = 0
            self.more = False
        blocks = 0
        self.data, self.start, self.at = data, 0, 0
        size = len(data)
        at = end = self.left
        if at:
            if at >= size:
                self.left -= size
                self.out.append(data)
                if not self.left:
                    self.catch_up()
                return
            self.left = 0
            self.at = at
            if self.later:
                self.flush()
                self.catch_up()
        halves = self.halves
        while size - at >= HEAD_SIZE:
            high, low, kind, flags, id = unpack_head(data, at)
            length = high << 8 | low
            end = at + HEAD_SIZE + length
            if not kind and self.fast and length <= self.max_frame:
                half = halves.get(id)
                if half is not None and not half.flags and (length or flags & END_STREAM):
                    self.window -= length
                    half.window -= length
                    self.frames += 1
                    self.at = at
                    if half.to != id:
                        self.emit(encode_head(length, kind, flags, half.to))
                        self.start = self.at = at + HEAD_SIZE
                    if flags & END_STREAM:
                        half.flags |= ENDED
                        self.finish(half)
                    at = end
                    if end > size:
                        self.left = end - size
                        at = size
                        break
                    continue
            if length > self.max_frame:
                raise H2Error(f"a frame of {length} octets", ErrorCode.FRAME_SIZE_ERROR)
            if end > size:
                break
            self.at = at
            if not self.take(kind, flags, id & 0x7FFFFFFF, data[at + HEAD_SIZE : end]):
                self.flush()
                self.start = end
                if self.relay.over:
                    return
            at = end
            if kind == HEADERS:
                blocks += 1
                if blocks == BLOCKS and at < size:
                    self.more = True
                    break
        self.at = at
        self.flush()
        if at < size:
            self.rest += data[at:]
            self.missing = 1 if self.more else end - at if size - at >= HEAD_SIZE else HEAD_SIZE
        self.data = b""
        self.start = self.at = 0

    def take(self, kind: int, flags: int, id: int, payload: bytes) -> bool:
        """Take a frame; whether it passes as it is. Raises H2Error."""
        if self.block is not None and (kind != CONTINUATION or id != self.block[2]):
            raise H2Error("a block was not continued", ErrorCode.PROTOCOL_ERROR)
        check_frame(len(payload), kind, flags, id)
        if not self.begun:
            if kind != SETTINGS or flags & ACK:
                raise H2Error("no SETTINGS at the beginning", ErrorCode.PROTOCOL_ERROR)
            self.begun = True
            self.fast = not self.managed
            if self.on_settings(flags, id, payload):
                self.emit(encode_frame(kind, flags, id, payload))
            self.catch_up()
            return False
        try:
            if kind < len(TAKERS):
                return bool(getattr(self, TAKERS[kind])(flags, id, payload))
            return self.on_other(kind, flags, id, payload)
        except H2StreamError as exc:
            self.refuse(id, exc)
            return False

    def refuse(self, id: int, exc: H2StreamError) -> None:
        """The sender has broken one stream. Raises H2Error: it does so too often."""
        half = self.halves.get(id)
        if half is not None:
            self.relay.reset(half.stream, str(exc), exc.code, exc.code)
        else:
            self.other.emit(encode_rst(id, exc.code))
        self.resets.spend("streams that are reset")

    def check_known(self, id: int) -> None:
        """Raise H2Error if a stream that is not open has never been."""
        if id > (self.last_of_client if id & 1 else self.relay.down.last):
            raise H2Error(f"a frame on stream {id}, which is idle", ErrorCode.PROTOCOL_ERROR)

    @property
    def last_of_client(self) -> int:
        """The highest stream that the client has begun, by the sender's numbers."""
        raise NotImplementedError

    def throw_away(self, octets: int) -> None:
        """Have the sender send as much again, of what went nowhere. Raises H2Error: it happens too often."""
        if octets < LITTLE:
            self.count_noise()
        if self.managed:
            self.credit -= octets
            if self.credit < 0:
                raise H2Error("content beyond a window", ErrorCode.FLOW_CONTROL_ERROR)
            self.top_up()
        elif octets:
            self.other.emit(encode_window_update(0, octets))

    # --- frames ---

    def on_data(self, flags: int, id: int, payload: bytes) -> bool:
        """Content that somebody looks at, that is not expected, or where the direction is managed."""
        half, length, end = self.halves.get(id), len(payload), flags & END_STREAM
        if half is None:
            self.check_known(id)
            self.throw_away(length)
            return False
        if half.flags & (ENDED | CUT):
            self.throw_away(length)
            if half.flags & ENDED:
                raise H2StreamError("content behind the end", ErrorCode.STREAM_CLOSED)
            half.flags |= end and ENDED
            return False
        content = strip_padding(payload, flags)
        if content:
            self.frames += 1
        elif not end:
            self.count_noise()
        if half.flags & HELD and length:
            self.manage()
        if self.managed:
            self.credit -= length
            half.credit -= length
            if self.credit < 0 or half.credit < 0:
                raise H2Error("content beyond a window", ErrorCode.FLOW_CONTROL_ERROR)
        if end:
            half.flags |= ENDED
        taken = half.flags & TAKEN
        if taken:
            half.size += len(content)
            self.queued += len(content)
        if (content or end) and (taken or half.flags & (WATCHED | HELD) == WATCHED):
            assert self.relay.inspector is not None
            self.relay.inspector.data(half.stream, self.number, content, bool(end))
            if half.stream.over or half.flags & CUT:
                if self.managed:
                    self.top_up()
                return False
        if self.managed:
            if not taken:
                self.enqueue(half, content, bool(end))
                self.pump_half(half)
            self.top_up()
            return False
        if half.flags & HELD:
            self.enqueue(half, content, bool(end))
            return False
        self.window -= length
        half.window -= length
        to = half.to
        if end:
            self.finish(half)
        if to == id:
            return True
        self.emit(encode_frame(DATA, flags, to, payload))
        return False

    def on_headers(self, flags: int, id: int, payload: bytes) -> bool:
        """The beginning of a block."""
        before, block = split_headers(payload, flags)
        return self.begin_block(HEADERS, flags, id, before, block)

    def on_promise(self, flags: int, id: int, payload: bytes) -> bool:
        """The same of a stream that is promised."""
        promised, block = split_promise(payload, flags)
        return self.begin_block(PUSH_PROMISE, flags, id, promised.to_bytes(4, "big"), block)

    def begin_block(self, kind: int, flags: int, id: int, before: bytes, block: bytes) -> bool:
        """A block, or its beginning."""
        if flags & END_HEADERS:
            self.on_block(kind, flags, id, before, block)
        else:
            self.block = (kind, flags, id, before, bytearray(block))
            self.pieces = 1
            self.fast = False
        return False

    def on_continuation(self, flags: int, id: int, payload: bytes) -> bool:
        """More of a block."""
        if self.block is None:
            raise H2Error("CONTINUATION without a block", ErrorCode.PROTOCOL_ERROR)
        kind, first_flags, _, before, block = self.block
        block += payload
        self.pieces += 1
        if len(block) > MAX_BLOCK_SIZE or self.pieces > MAX_PIECES:
            raise H2Error(f"a block of more than {MAX_BLOCK_SIZE} octets", ErrorCode.ENHANCE_YOUR_CALM)
        if flags & END_HEADERS:
            self.block = None
            self.fast = not self.managed
            self.on_block(kind, first_flags, id, before, bytes(block))
        return False

    def on_block(self, kind: int, flags: int, id: int, before: bytes, block: bytes) -> None:
        """A block is whole."""
        raise NotImplementedError

    def on_trailers(self, half: Half, flags: int, fields: list[Field]) -> None:
        """The fields behind content."""
        if half.flags & ENDED:
            raise H2StreamError("fields behind the end", ErrorCode.STREAM_CLOSED)
        if not flags & END_STREAM:
            raise H2StreamError("trailers that are not the end", ErrorCode.PROTOCOL_ERROR)
        check_trailers(fields)
        half.flags |= ENDED
        if half.flags & CUT:
            return
        if half.flags & TAKEN or half.flags & (WATCHED | HELD) == WATCHED:
            inspector = self.relay.inspector
            assert inspector is not None
            fields = inspector.trailers(half.stream, self.number, fields) or fields
            if half.flags & TAKEN:
                half.trailers = fields
            inspector.data(half.stream, self.number, b"", True)
            if half.stream.over or half.flags & (TAKEN | CUT):
                return
        self.send_fields(half, fields, True)

    def on_priority(self, flags: int, id: int, payload: bytes) -> bool:
        """What RFC 9113 has deprecated. It passes as long as numbers are the same at both sides."""
        self.count_noise()
        return not self.relay.mapped and (id not in self.halves or self.halves[id].to == id)

    def on_rst(self, flags: int, id: int, payload: bytes) -> bool:
        """The sender ends a stream."""
        half = self.halves.get(id)
        if half is None:
            self.check_known(id)
            self.count_noise()
            return False
        if not half.stream.down.begun:
            self.resets.spend("streams that are reset")
        code = int.from_bytes(payload, "big")
        if self.number == DOWN and half.flags & ENDED and not half.finished:
            self.relay.let_server_go(half.stream)
            return False
        if half.to:
            self.emit(encode_rst(half.to, code))
        whole = self.number == DOWN and half.finished and code == ErrorCode.NO_ERROR
        self.relay.drop(half.stream, None if whole else f"reset by the {self.sender}: {name_of(code)}")
        return False

    def on_settings(self, flags: int, id: int, payload: bytes) -> bool:
        """SETTINGS pass, but for what has a bound here. They hold from where they are acknowledged in the stream."""
        other = self.other
        self.count_noise()
        if flags & ACK:
            if not other.settings:
                raise H2Error("an acknowledgement of no SETTINGS", ErrorCode.PROTOCOL_ERROR)
            table, window = other.settings.popleft()
            if table is not None:
                self.decoder.allow(table)
                self.encoder.allow(table)
            self.emit(SETTINGS_ACK)
            if window is not None:
                self.set_initial(window)  # which may send what waits for it
            return False
        given = decode_settings(payload)
        settings = []
        table = window = None
        for setting, value in given:
            if setting == HEADER_TABLE_SIZE:
                value = table = min(value, self.max_table)
            elif setting == MAX_FRAME_SIZE:
                value = min(value, MAX_FRAME)
                other.max_frame = max(other.max_frame, value)
            elif setting == MAX_HEADER_LIST_SIZE:
                value = min(value, self.max_list)
            elif setting == INITIAL_WINDOW_SIZE:
                window = value
            settings.append((setting, value))
        self.settings.append((table, window))
        if len(self.settings) > MAX_SETTINGS:
            raise H2Error("too many SETTINGS that are not acknowledged", ErrorCode.ENHANCE_YOUR_CALM)
        if settings == given:
            return True
        self.emit(encode_settings(settings))
        return False

    def on_ping(self, flags: int, id: int, payload: bytes) -> bool:
        """It passes, and its answer comes from the other side."""
        self.count_noise()
        return True

    def on_goaway(self, flags: int, id: int, payload: bytes) -> bool:
        """The sender takes no new streams."""
        self.count_noise()
        return True

    def on_window_update(self, flags: int, id: int, payload: bytes) -> bool:
        """The sender takes more in the other direction."""
        other, octets = self.other, decode_window_update(payload, id)
        self.count_noise()
        if not id:
            other.window += octets
            if other.window > MAX_WINDOW:
                raise H2Error("a window beyond what it can be", ErrorCode.FLOW_CONTROL_ERROR)
            if other.managed:
                other.pump()
            return not other.managed
        half = self.halves.get(id)
        if half is None:
            self.check_known(id)
            return False
        back = half.other
        back.window += octets
        if back.window > MAX_WINDOW:
            raise H2StreamError("a window beyond what it can be", ErrorCode.FLOW_CONTROL_ERROR)
        if other.managed:
            other.pump_half(back)
        elif half.to == id:
            return True
        elif half.to:
            self.emit(encode_window_update(half.to, octets))
        else:
            back.owed += octets
        return False

    def on_other(self, kind: int, flags: int, id: int, payload: bytes) -> bool:
        """A frame of an extension: of a stream, or of the connection."""
        self.count_noise()
        if not id:
            return not self.relay.drops(kind)
        half = self.halves.get(id)
        if half is None or half.to == id:
            return not self.relay.drops(kind) and (half is not None or not self.relay.mapped)
        if half.to and not self.relay.drops(kind):
            self.emit(encode_frame(kind, flags, half.to, payload))
        return False

    def count_noise(self) -> None:
        """A frame that carries nothing has come. Raises H2Error: there are too many."""
        self.noise.spend("frames that carry nothing", NOISE_OF_FRAME * (self.frames + self.other.frames))


def name_of(code: int) -> str:
    """The name of an error code."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return str(code)
