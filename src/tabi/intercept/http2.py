"""HTTP/2 between a client and a server: frames pass as they are, fields are decoded and encoded again.

There is one connection to the server for each of a client. What ends go by (flow control, priorities, resets, PING,
GOAWAY, trailers, interim responses, extended CONNECT) is between them. Only where an inspector keeps something back,
changes content or answers itself, this is an end too, with windows of its own (`intercept.http2_direction`).

    client --- up ---> server      requests, their content, and what the client takes of responses
    client <-- down -- server

Against floods a peer that sends too much of what costs it nothing gets GOAWAY with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from time import monotonic

from tabi.errors import H2Error, H2StreamError
from tabi.intercept.http2_direction import Direction
from tabi.intercept.http2_stream import CUT, ENDED, HOLD, Half, Inspector, Stream
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import (
    ALTSVC,
    END_STREAM,
    PREFACE,
    PRIORITY_UPDATE,
    PUSH_PROMISE,
    ErrorCode,
    decode_goaway,
    decode_request,
    decode_response,
    encode_block,
    encode_goaway,
    encode_request,
    encode_response,
    encode_rst,
)
from tabi.wire.hpack import Field

MAX_STREAMS = 1000
"""Streams of a connection at once, whatever the server allows."""

HELD_LIMIT = 4 << 20
"""Octets that are kept back of one direction before nothing more is read of it."""

NO_LAST = (1 << 31) - 1
"""The last stream in a GOAWAY that only warns (RFC 9113 section 6.8)."""


class FrameRelay:
    """Both directions of one connection. Without I/O: feed `Direction.feed`, then send what `take` gives.

    Args:
        inspector: sees all streams; None: nobody does.
        strip_alt_svc: whether ALTSVC frames are dropped.
        clock: seconds; asked once in hundreds of frames.

    Attributes:
        wake: called when something was done from outside of `Direction.feed`, so that there are octets to send.
        failure: why it has ended, once both sides were told.
        over: whether nothing passes any more.
        held_limit: see HELD_LIMIT.
    """

    held_limit = HELD_LIMIT

    def __init__(
        self, inspector: Inspector | None = None, strip_alt_svc: bool = False, clock: Callable[[], float] = monotonic
    ) -> None:
        self.inspector = inspector
        self.strip_alt_svc = strip_alt_svc
        self.clock = clock
        self.wake: Callable[[], object] = bool
        self.failure: H2Error | None = None
        self.over = False
        self.mapped = False  # numbers of streams differ at both sides
        self.last_opened = 0  # at the server
        self.last_taken = NO_LAST  # by the server, as its GOAWAY says
        self.turns = 0
        self.up, self.down = self.make_directions()
        self.up.other, self.down.other = self.down, self.up
        self.directions: dict[int, Direction] = {UP: self.up, DOWN: self.down}

    def make_directions(self) -> tuple[Up, Down]:
        """What relays each of them."""
        return Up(self), Down(self)

    def take(self, direction: int) -> bytes:
        """Octets that are to be sent in a direction, to the server (UP) or to the client (DOWN)."""
        out = self.directions[direction].out
        octets = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return octets

    def streams(self) -> list[Stream]:
        """All streams that are not over."""
        return [half.stream for half in self.up.halves.values()]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around what an inspector does, at any time: what comes of it is sent."""
        self.turns += 1
        try:
            yield
        except H2Error as exc:
            self.fail(self.down, exc)
        finally:
            self.turns -= 1
        if not self.turns:
            self.wake()

    # --- streams ---

    def begin(self, id: int, end: int, before: bytes, fields: list[Field]) -> None:
        """A request has come from the client. Raises H2StreamError."""
        request = decode_request(fields)
        up, inspector = self.up, self.inspector
        if len(up.halves) >= MAX_STREAMS:
            raise H2StreamError("too many streams", ErrorCode.REFUSED_STREAM)
        stream = Stream(self, id, request.method)
        half = up.halves[id] = stream.up
        if end:
            half.flags = ENDED
        if up.managed:
            half.credit = up.initial
            up.top_up_half(half)
        if inspector is not None:
            up.hold(half, fields, end > 0)
            verdict = inspector.request(stream, request, end > 0)
            if verdict is not HOLD:
                up.let_go(half, None if verdict is None else encode_request(verdict), before)
            return
        up.write_fields(half, fields, end > 0, before)

    def open(self, half: Half) -> bool:
        """Give a stream its number at the server; False: the server takes no more, and it was reset."""
        id = half.id
        if id <= self.last_opened:
            id = self.last_opened + 2
        if id > self.last_taken:
            self.reset(half.stream, "the server takes no new streams", ErrorCode.REFUSED_STREAM, 0)
            return False
        self.mapped = self.mapped or id != half.id
        self.last_opened = half.to = half.other.id = id
        self.down.halves[id] = half.other
        return True

    def answer(self, stream: Stream, fields: list[Field], body: bytes, end: bool) -> None:
        """Answer a request in the server's place."""
        up, down = stream.up, stream.down
        if stream.answered:
            return
        if up.to:
            self.up.emit(encode_rst(up.to, ErrorCode.CANCEL))
            self.down.halves.pop(down.id, None)
        for direction, half in ((self.up, up), (self.down, down)):
            direction.forget(half)
        up.flags = up.flags & ENDED | CUT
        down.flags = ENDED
        up.to = down.id = 0
        up.finished = down.begun = True
        if stream.method == b"HEAD" or fields[0][1] in (b"204", b"304"):
            body, end = b"", True
        self.down.write_fields(down, fields, end and not body)
        if body:
            self.down.send(down, body, end)

    def let_server_go(self, stream: Stream) -> None:
        """The server has answered, and takes no more of the request (RFC 9113 section 8.1). The client has not got all
        of the answer yet: that goes on."""
        up, down = stream.up, stream.down
        self.down.halves.pop(down.id, None)
        self.up.forget(up)
        up.flags = up.flags & ENDED | CUT
        up.to = down.id = 0
        up.finished = True

    def reset(self, stream: Stream, error: str, to_client: int, to_server: int) -> None:
        """End a stream at both sides, with these error codes."""
        up, down = stream.up, stream.down
        if up.to:
            self.up.emit(encode_rst(up.to, to_server))
        self.down.emit(encode_rst(down.to, to_client))
        self.drop(stream, error)

    def drop(self, stream: Stream, error: str | None) -> None:
        """A stream is over."""
        if stream.over:
            return
        for direction, half in ((self.up, stream.up), (self.down, stream.down)):
            direction.halves.pop(half.id, None)
            direction.forget(half)
        stream.forget()
        if self.inspector is not None:
            self.inspector.ended(stream, error)

    # --- the end ---

    def fail(self, direction: Direction, exc: H2Error) -> None:
        """The sender of a direction has broken the connection: tell both sides, and end it."""
        if self.over:
            return
        direction.flush()
        self.up.begun = self.down.begun = True
        text = str(exc)[:100].encode()
        if direction is self.up:
            self.down.emit(encode_goaway(self.up.last, exc.code, text))
            self.up.emit(encode_goaway(self.down.last, ErrorCode.NO_ERROR))
        else:
            self.up.emit(encode_goaway(self.down.last, exc.code, text))
            self.down.emit(encode_goaway(self.up.last, ErrorCode.INTERNAL_ERROR, text))
        self.failure = exc
        self.close(f"{direction.sender}: {exc}")

    def close(self, error: str) -> None:
        """Nothing passes any more; ``error`` is that of all streams that have not ended."""
        self.over = True
        for stream in self.streams():
            self.drop(stream, error)

    def forget(self) -> None:
        """It will not be used any more: leave nothing that only the garbage collector finds."""
        self.inspector = None
        self.wake = bool
        for direction in self.directions.values():
            direction.__dict__.clear()
        self.directions.clear()
        del self.up, self.down

    def drops(self, kind: int) -> bool:
        """Whether a frame of an extension goes no further."""
        return (kind == ALTSVC and self.strip_alt_svc) or (kind == PRIORITY_UPDATE and self.mapped)


class Up(Direction):
    """What the client sends."""

    number = UP
    sender = "client"

    def __init__(self, relay: FrameRelay) -> None:
        super().__init__(relay)
        self.preface = b""

    @property
    def last_of_client(self) -> int:
        """See `Direction`."""
        return self.last

    def feed(self, data: bytes) -> None:
        """Take octets from the client, which begins with 24 that name the protocol."""
        missing = len(PREFACE) - len(self.preface)
        if missing and not self.relay.over:
            self.preface += data[:missing]
            data = data[missing:]
            if not PREFACE.startswith(self.preface):
                self.relay.fail(self, H2Error("no preface of HTTP/2", ErrorCode.PROTOCOL_ERROR))
            elif len(self.preface) == len(PREFACE):
                self.out.append(PREFACE)
        if data or self.more:
            super().feed(data)

    def on_block(self, kind: int, flags: int, id: int, before: bytes, block: bytes) -> None:
        """A request, or trailers."""
        fields = self.decoder.decode(block)
        half = self.halves.get(id)
        if half is not None:
            self.on_trailers(half, flags, fields)
        elif not id & 1:
            raise H2Error(f"a request on stream {id}", ErrorCode.PROTOCOL_ERROR)
        elif id > self.last:
            self.last = id
            self.relay.begin(id, flags & END_STREAM, before, fields)
        else:
            self.count_noise()

    def refuse(self, id: int, exc: H2StreamError) -> None:
        """See `Direction.refuse`."""
        if id & 1:
            self.last = max(self.last, id)
        super().refuse(id, exc)

    def on_promise(self, flags: int, id: int, payload: bytes) -> bool:
        """Clients promise nothing (RFC 9113 section 8.4)."""
        raise H2Error("PUSH_PROMISE of a client", ErrorCode.PROTOCOL_ERROR)


class Down(Direction):
    """What the server sends."""

    number = DOWN
    sender = "server"

    @property
    def last_of_client(self) -> int:
        """See `Direction`."""
        return self.relay.last_opened

    def on_block(self, kind: int, flags: int, id: int, before: bytes, block: bytes) -> None:
        """A response, trailers, or a promise."""
        fields = self.decoder.decode(block)
        half = self.halves.get(id)
        if kind == PUSH_PROMISE:
            self.promise(int.from_bytes(before, "big"), half, fields)
            return
        if half is None:
            self.check_known(id)
            self.count_noise()
            return
        if half.begun:
            self.on_trailers(half, flags, fields)
            return
        status, rest = decode_response(fields)
        end = flags & END_STREAM
        if status < 200:
            if end:
                raise H2StreamError("an interim response that is the end", ErrorCode.PROTOCOL_ERROR)
            self.count_noise()
            self.write_fields(half, fields, False)
            return
        half.begun = True
        half.flags |= end and ENDED
        inspector = self.relay.inspector
        if inspector is not None:
            self.hold(half, fields, end > 0)
            verdict = inspector.response(half.stream, status, rest, end > 0)
            if verdict is not HOLD:
                self.let_go(half, None if verdict is None else encode_response(*verdict))
            return
        self.write_fields(half, fields, end > 0, before)

    def promise(self, promised: int, half: Half | None, fields: list[Field]) -> None:
        """The server will push a response to a request that nobody has made. Raises H2Error."""
        relay = self.relay
        if promised & 1 or promised <= self.last:
            raise H2Error(f"a promise of stream {promised}", ErrorCode.PROTOCOL_ERROR)
        self.last = promised
        request = decode_request(fields)
        if half is None or len(relay.up.halves) >= MAX_STREAMS:
            self.count_noise()
            relay.up.emit(encode_rst(promised, ErrorCode.REFUSED_STREAM))
            return
        stream = Stream(relay, promised, request.method, pushed=True)
        stream.up.flags, stream.up.finished = ENDED, True
        relay.up.halves[promised], self.halves[promised] = stream.up, stream.down
        if relay.inspector is not None:
            relay.inspector.request(stream, request, True)
        block = self.encoder.encode(fields)
        self.emit(encode_block(PUSH_PROMISE, 0, half.to, block, promised.to_bytes(4, "big")))
        if self.managed:
            self.opened(stream.down)

    def on_goaway(self, flags: int, id: int, payload: bytes) -> bool:
        """The server takes no new streams, and has not taken those behind the last one that it names."""
        self.count_noise()
        relay = self.relay
        last, code, text = decode_goaway(payload)
        relay.last_taken = min(relay.last_taken, last)
        if last == NO_LAST:
            return True
        known = last if not relay.mapped else 0  # the last one that the client may take for taken
        for stream in relay.streams():
            if stream.id & 1 and (0 < stream.up.to <= last or stream.up.flags & CUT):
                known = max(known, stream.id)
        for stream in relay.streams():
            if stream.id & 1 and not stream.up.flags & CUT and (stream.id > known or stream.up.to > last):
                if stream.id < known:
                    self.emit(encode_rst(stream.id, ErrorCode.REFUSED_STREAM))
                relay.drop(stream, "the server takes no new streams")
        if known == last:
            return True
        self.emit(encode_goaway(known, code, text))
        return False
