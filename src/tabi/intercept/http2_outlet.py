"""What a frame relay sends in one direction: frames that pass, others behind them, and content as windows allow.

A direction is *managed* once something of ours has gone into it, or something of it was kept back: then what the
receiver's window allows and what the sender may send differ, and both are kept here (RFC 9113 section 5.2). Before that
they are the same, and only followed.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tabi.errors import H2Error
from tabi.intercept.http2_stream import CUT, ENDED, HELD, TAKEN, WATCHED, Half, Item
from tabi.wire.h2 import (
    DATA,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    MIN_FRAME_SIZE,
    WINDOW,
    WITH_PRIORITY,
    ErrorCode,
    encode_block,
    encode_head,
    encode_rst,
    encode_window_update,
)
from tabi.wire.hpack import Encoder, Field

if TYPE_CHECKING:
    from tabi.intercept.http2 import FrameRelay

CONNECTION_CREDIT, STREAM_CREDIT = 1 << 20, 1 << 18
"""Octets that a sender may send ahead where a direction is managed."""


class Outlet:
    """The receiver's end of a direction. ``out`` are octets that are to be sent to it."""

    other: Outlet
    number: int

    def __init__(self, relay: FrameRelay) -> None:
        self.relay = relay
        self.encoder = Encoder()
        self.out: list[bytes] = []
        # Of what is parsed: what passes is data[start:at].
        self.data = b""
        self.start = self.at = 0
        self.left = 0  # octets of a frame that passes, and are still to come
        self.begun = False  # SETTINGS, with which each side begins, have passed
        self.later: list[bytes] = []  # what we send behind these
        self.fast = False  # content passes as it is
        self.frames = 0  # with content
        # What the receiver allows.
        self.window = self.initial = WINDOW
        # What is kept where it is managed.
        self.managed = False
        self.credit = 0  # what the sender may send
        self.queued = 0  # octets of all streams that wait
        self.waiting: dict[Half, None] = {}

    def flush(self) -> None:
        """Pass on what was parsed and not changed."""
        start, at, data = self.start, self.at, self.data
        if start < at:
            self.out.append(data if at - start == len(data) else data[start:at])
            self.start = at

    def catch_up(self) -> None:
        """The first frame has passed, or one that has come in pieces: what waited for that goes on."""
        self.out += self.later
        self.later.clear()

    def emit(self, octets: bytes) -> None:
        """Send a frame to the receiver, behind what was parsed."""
        if self.left or not self.begun:
            self.later.append(octets)
            return
        if self.start < self.at:
            self.flush()
        self.out.append(octets)

    def send_fields(self, half: Half, fields: list[Field], end: bool, before: bytes = b"") -> None:
        """Send a head or trailers, behind what waits."""
        if half.queue:
            half.queue.append((fields, end))
            self.pump_half(half)
        else:
            self.write_fields(half, fields, end, before)

    def write_fields(self, half: Half, fields: list[Field], end: bool, before: bytes = b"") -> None:
        """Write HEADERS, and open the stream at the receiver if it is not."""
        opening = not half.to
        if opening and not self.relay.open(half):
            return
        flags = end and END_STREAM
        if before and not self.relay.mapped:
            flags |= WITH_PRIORITY
        else:
            before = b""
        self.emit(encode_block(HEADERS, flags, half.to, self.encoder.encode(fields), before))
        if opening:
            self.other.opened(half.other)
        if end:
            self.finish(half)

    def opened(self, half: Half) -> None:
        """The sender knows a stream now that others have spoken of before."""
        if self.managed:
            half.credit = self.initial
            self.top_up_half(half)
        elif half.owed:
            self.other.emit(encode_window_update(half.id, half.owed))

    def finish(self, half: Half) -> None:
        """The receiver has everything of a half."""
        half.finished = True
        other = half.other
        if other.finished:
            if not other.flags & ENDED:  # whoever has sent less than all is to send no more
                self.emit(encode_rst(half.to, ErrorCode.NO_ERROR))
            if not half.flags & ENDED and half.id:
                self.other.emit(encode_rst(half.id, ErrorCode.CANCEL))
            self.relay.drop(half.stream, None)

    def hold(self, half: Half, fields: list[Field], end: bool) -> None:
        """Keep a head back, and all that follows in its half."""
        half.flags |= HELD
        half.queue = deque([(fields, end)])

    def let_go(self, half: Half, fields: list[Field] | None, before: bytes = b"", end: bool | None = None) -> None:
        """Send a head on that was held, or another one, and what has come behind it."""
        queue = half.queue
        if not half.flags & HELD or not queue:
            return
        half.flags &= ~HELD
        head, ends = queue.popleft()
        if end is not None:
            ends = end
        elif half.flags & TAKEN:
            ends = False  # it comes by `Stream.send`
        assert isinstance(head, list)
        if half.flags & WATCHED and not half.flags & TAKEN:
            self.show(half, queue)
            if half.stream.over or half.flags & CUT:
                return
        self.write_fields(half, head if fields is None else fields, ends, before)
        self.pump_half(half)

    def take_over(self, half: Half) -> None:
        """Give the inspector what has come behind a head that is held."""
        self.manage()
        queue, inspector = half.queue, self.relay.inspector
        if not half.flags & HELD or not queue or inspector is None:
            return
        half.queue = deque([queue.popleft()])
        self.show(half, queue)
        if queue and isinstance(queue[-1][0], list):
            half.trailers = queue[-1][0]

    def show(self, half: Half, queue: deque[Item]) -> None:
        """Show the inspector what has come while a head was held."""
        inspector = self.relay.inspector
        assert inspector is not None
        for at, (content, end) in enumerate(queue):
            if isinstance(content, list):
                queue[at] = (inspector.trailers(half.stream, self.number, content) or content, end)
                content = memoryview(b"")
            inspector.data(half.stream, self.number, bytes(content), end)

    def forget(self, half: Half) -> None:
        """Drop what waits in a half."""
        self.waiting.pop(half, None)
        self.queued -= half.size
        half.size = 0
        half.queue = None

    # --- windows ---

    def set_initial(self, window: int) -> None:
        """The receiver's window for new streams; those that are open change as much. Raises H2Error."""
        change, self.initial = window - self.initial, window
        for half in self.all_halves():
            half.window += change
            half.credit += max(change, 0)
            if half.window > MAX_WINDOW:
                raise H2Error("a window beyond what it can be", ErrorCode.FLOW_CONTROL_ERROR)
        if self.managed:
            self.pump()

    def all_halves(self) -> list[Half]:
        """Those of this direction, also of streams that are not open at the sender."""
        return [stream.half(self.number) for stream in self.relay.streams()]

    def owes(self) -> bool:
        """Whether something is left to be sent of what has come whole."""
        return any(half.flags & ENDED and not half.finished for half in self.all_halves())

    def manage(self) -> None:
        """From now on windows are kept here. What the receiver allows is what the sender may send, up to now."""
        if self.managed:
            return
        self.managed = True
        self.fast = False
        self.credit = self.window
        self.top_up()
        for half in self.all_halves():
            half.credit = half.window
            half.owed = 0
            self.top_up_half(half)

    def top_up(self) -> None:
        """Let the sender send more, if it may send less than half of what it is to."""
        missing = CONNECTION_CREDIT - self.credit
        if missing >= CONNECTION_CREDIT // 2:
            self.credit += missing
            self.other.emit(encode_window_update(0, missing))

    def top_up_half(self, half: Half) -> None:
        """The same of a stream; what waits here counts too."""
        missing = STREAM_CREDIT - half.credit - half.size
        if missing >= STREAM_CREDIT // 2 and half.id and not half.flags & (ENDED | CUT):
            half.credit += missing
            self.other.emit(encode_window_update(half.id, missing))

    def give(self, half: Half, octets: int) -> None:
        """So many octets of a half need no memory any more."""
        octets = min(octets, half.size)  # what was forgotten meanwhile is not given twice
        half.size -= octets
        self.queued -= octets
        self.top_up_half(half)

    def enqueue(self, half: Half, content: bytes, end: bool) -> None:
        """Have content wait."""
        if content or end:
            if half.queue is None:
                half.queue = deque()
            half.queue.append((memoryview(content), end))
            half.size += len(content)
            self.queued += len(content)
            self.waiting[half] = None

    def send(self, half: Half, payload: bytes, end: bool) -> None:
        """Send content of ours."""
        if payload:
            self.manage()
        trailers = half.trailers if end else None
        self.enqueue(half, payload, end and trailers is None)
        if trailers is not None:
            self.send_fields(half, trailers, True)
        elif half.queue:
            self.pump_half(half)

    def pump(self) -> None:
        """Send what waits, as far as the receiver's windows allow, a frame of each stream after the other."""
        moved = True
        while moved and self.window > 0:
            moved = False
            for half in list(self.waiting):
                if half in self.waiting and self.pump_half(half, 1):
                    moved = True

    def pump_half(self, half: Half, most: int = 1 << 30) -> bool:
        """Send what waits in a half, ``most`` frames of it; whether there was any that could be sent."""
        queue = half.queue
        if not queue or half.flags & HELD:
            return False
        sent = 0
        while queue:
            content, end = queue[0]
            if isinstance(content, list):
                queue.popleft()
                self.write_fields(half, content, end)
                if half.stream.over:
                    return True
                sent += 1
                continue
            size = len(content)
            room = min(size, self.window, half.window, MIN_FRAME_SIZE) if size else 0
            if size and (room <= 0 or sent >= most):
                break
            if room < size:
                queue[0] = (content[room:], end)
                end = False
            else:
                queue.popleft()
            self.emit(encode_head(room, DATA, end and END_STREAM, half.to) + content[:room])
            self.frames += 1
            self.window -= room
            half.window -= room
            half.size -= room
            self.queued -= room
            sent += 1
            if end:
                self.finish(half)
        if half.stream.over:
            return True
        if not queue:
            self.waiting.pop(half, None)
            inspector = self.relay.inspector
            if inspector is not None and not half.finished and (half.flags & TAKEN or half.other.flags & CUT):
                inspector.writable(half.stream, self.number)
        if self.managed:
            self.top_up_half(half)
        return sent > 0
