"""A client and a server of another implementation of HTTP/2, with a frame relay between them, in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_stream import Hold, Inspector, Stream
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import H2Request, encode_block
from tabi.wire.hpack import Encoder, Field

GET: list[Field] = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"a.test"),
    (b":path", b"/"),
    (b"user-agent", b"x"),
]
POST: list[Field] = [(b":method", b"POST"), *GET[1:]]
OK: list[Field] = [(b":status", b"200"), (b"server", b"y")]


class Pass:
    """An inspector that passes everything, and keeps what it has seen."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.streams: dict[int, Stream] = {}
        self.errors: dict[int, str | None] = {}

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        self.streams[stream.id] = stream
        self.seen.append(("request", stream.id, request.method, end))
        return None

    def response(
        self, stream: Stream, status: int, fields: list[Field], end: bool
    ) -> tuple[int, list[Field]] | Hold | None:
        self.seen.append(("response", stream.id, status, end))
        return None

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        self.seen.append(("data", stream.id, direction, payload, end))

    def trailers(self, stream: Stream, direction: int, fields: list[Field]) -> list[Field] | None:
        self.seen.append(("trailers", stream.id, direction, fields))
        return None

    def writable(self, stream: Stream, direction: int) -> None:
        self.seen.append(("writable", stream.id, direction))

    def ended(self, stream: Stream, error: str | None) -> None:
        assert stream.id not in self.errors
        self.errors[stream.id] = error


class End:
    """One end: the connection of the other implementation, and what it has received."""

    def __init__(self, client: bool) -> None:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None, validate_inbound_headers=False)
        self.connection = h2.connection.H2Connection(config)
        self.events: list[Any] = []
        self.sending: dict[int, bytes] = {}
        self.bodies: dict[int, bytes] = {}
        self.heads: dict[int, list[Field]] = {}
        self.trailers: dict[int, list[Field]] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: Any = None
        self.unread: list[tuple[int, int]] | None = None  # sizes and streams of content, if it is not read at once

    def receive(self, data: bytes) -> None:
        """Take octets; content is read at once, unless it is kept `unread`."""
        for event in self.connection.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
                self.heads[event.stream_id] = [(bytes(n), bytes(v)) for n, v in event.headers]
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = [(bytes(n), bytes(v)) for n, v in event.headers]
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                if self.unread is not None:
                    self.unread.append((event.flow_controlled_length, event.stream_id))
                else:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code
                self.sending.pop(event.stream_id, None)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event

    def head(self, id: int, fields: list[Field], end: bool = False) -> None:
        """Send a head."""
        self.connection.send_headers(id, fields, end_stream=end)

    def body(self, id: int, octets: bytes) -> None:
        """Send content and the end, as far as windows allow, the rest later."""
        self.sending[id] = octets

    def send_what_fits(self) -> None:
        """Send more of `body`."""
        for id, octets in list(self.sending.items()):
            while True:
                room = min(self.connection.local_flow_control_window(id), self.connection.max_outbound_frame_size)
                piece = octets[: max(room, 0)]
                if octets and not piece:
                    self.sending[id] = octets
                    break
                octets = octets[len(piece) :]
                self.connection.send_data(id, piece, end_stream=not octets)
                if not octets:
                    del self.sending[id]
                    break


class Ends:
    """Client, relay and server."""

    def __init__(
        self,
        inspector: Inspector | None = None,
        client: dict[int, int] | None = None,
        server: dict[int, int] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        piece: int = 1 << 20,
        relay: FrameRelay | None = None,
        **options: Any,
    ) -> None:
        self.relay = relay or FrameRelay(inspector, clock=clock, **options)
        self.client, self.server = End(True), End(False)
        self.piece = piece
        for end, settings in ((self.client, client), (self.server, server)):
            if settings:
                values: Any = {**dict(end.connection.local_settings.items()), **settings}
                end.connection.decoder.max_allowed_table_size = settings.get(1, 4096)
                end.connection.local_settings = h2.settings.Settings(client=end is self.client, initial_values=values)
            end.connection.initiate_connection()
        self.go()

    def go(self) -> None:
        """Pass octets until nothing moves."""
        moved = True
        while moved:
            moved = False
            for end, direction in ((self.client, UP), (self.server, DOWN)):
                end.send_what_fits()
                data = end.connection.data_to_send()
                for at in range(0, len(data), self.piece):
                    self.feed(direction, data[at : at + self.piece])
                    moved = True
            moved = self.deliver() or moved

    def feed(self, direction: int, octets: bytes) -> None:
        """Feed octets, in as many turns as that takes."""
        one = self.relay.directions[direction]
        one.feed(octets)
        self.deliver()
        while one.more and not self.relay.over:
            one.feed(b"")
            self.deliver()

    def deliver(self) -> bool:
        """Deliver what the relay has sent; whether there was anything."""
        moved = False
        for direction, end in ((UP, self.server), (DOWN, self.client)):
            octets = self.relay.take(direction)
            if octets:
                end.receive(bytes(octets))
                moved = True
        return moved

    def raw(self, direction: int, octets: bytes) -> None:
        """Feed octets that neither implementation would write."""
        self.feed(direction, octets)
        self.go()


def block(id: int, fields: list[Field], flags: int = 0) -> bytes:
    """HEADERS that use no table of the connection."""
    encoder = Encoder()
    encoder.allow(0)
    encoder.updates.clear()
    return encode_block(1, flags, id, encoder.encode(fields))
