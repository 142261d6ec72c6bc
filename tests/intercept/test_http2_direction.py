"""One direction of a frame relay: frames in pieces, what a peer must not do, and floods."""

from __future__ import annotations

import tracemalloc
from typing import Any

import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2_ends import GET, OK, POST, Ends, Pass, block
from tabi.intercept.http2 import MAX_STREAMS, FrameRelay
from tabi.intercept.http2_direction import BLOCKS, MAX_PIECES, MAX_SETTINGS, NOISE, RESETS, name_of
from tabi.intercept.http2_stream import HOLD, Stream
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WITH_PRIORITY,
    decode_goaway,
    encode_block,
    encode_frame,
    encode_rst,
    encode_settings,
    encode_window_update,
    read_head,
)
from tabi.wire.hpack import Decoder, Encoder, Field

BEGIN = PREFACE + encode_settings([])


class Clock:
    """Says what time it is."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def begun(inspector: Any = None, clock: Any = None) -> FrameRelay:
    """A relay whose ends have exchanged SETTINGS."""
    relay = FrameRelay(inspector, clock=clock or Clock())
    relay.up.feed(BEGIN)
    relay.down.feed(encode_settings([]) + SETTINGS_ACK)
    relay.up.feed(SETTINGS_ACK)
    relay.take(UP), relay.take(DOWN)
    return relay


def frames(octets: bytes) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each frame."""
    found, at = [], 0
    while at < len(octets):
        length, kind, flags, stream = read_head(octets, at)
        found.append((kind, flags, stream, octets[at + 9 : at + 9 + length]))
        at += 9 + length
    assert at == len(octets)
    return found


def goaway(relay: FrameRelay, direction: int) -> int:
    """The code of the GOAWAY that a side got last."""
    kind, _, _, payload = frames(relay.take(direction))[-1]
    assert kind == GOAWAY
    return decode_goaway(payload)[1]


# --- pieces ---


@given(st.lists(st.integers(1, 60_000), max_size=30), st.booleans())
def test_what_passes_is_the_same_however_it_is_cut(sizes: list[int], watched: bool) -> None:
    """Frames of all kinds, in pieces of any size, with a watcher and without."""
    inspector = Pass()
    relay = begun(inspector)
    encoder = Encoder()
    relay.up.feed(block(1, POST) + block(3, POST))
    relay.take(UP)
    if watched:
        inspector.streams[3].watch(UP)
    octets = b"".join(
        [
            encode_frame(DATA, 0, 1, b"a" * 16384),
            encode_frame(DATA, PADDED, 3, b"\x03bcd\0\0\0"),
            encode_frame(PING, 0, 0, b"12345678"),
            encode_frame(0xEE, 7, 3, b"extension"),
            encode_window_update(0, 5),
            encode_window_update(3, 5),
            encode_frame(PRIORITY, 0, 9, b"\0\0\0\3\7"),
            encode_frame(DATA, 0, 1, b""),
            encode_frame(DATA, END_STREAM, 1, b"a" * 7000),
            encode_frame(DATA, END_STREAM, 3, b""),
        ]
    )
    passed, at = b"", 0
    for size in [*sizes, len(octets)]:
        relay.up.feed(octets[at : at + size])
        passed += relay.take(UP)
        at += size
    assert passed == octets
    assert relay.failure is None
    assert encoder.encode([]) == b""


def test_frames_of_ours_wait_for_one_that_passes_in_pieces() -> None:
    """A frame of which a piece has gone on is not broken by another one in between."""
    relay = begun()
    relay.up.feed(block(1, GET, END_STREAM) + block(3, POST))
    relay.down.feed(block(1, OK))
    data = encode_frame(DATA, END_STREAM, 1, b"x" * 100)
    relay.take(UP), relay.take(DOWN)
    relay.down.feed(data[:20])
    relay.up.feed(encode_frame(DATA, END_STREAM, 1, b"too late"))  # gets RST_STREAM, or nothing
    relay.up.feed(block(5, [(b":method", b"GET")]))  # malformed: RST_STREAM
    assert relay.take(DOWN) == data[:20]
    relay.down.feed(data[20:50])
    assert relay.take(DOWN) == data[20:50]
    relay.down.feed(data[50:] + encode_frame(PING, 0, 0, b"12345678"))
    assert relay.take(DOWN).startswith(data[50:])
    relay = begun()
    relay.up.feed(block(1, GET, END_STREAM))
    relay.down.feed(block(1, OK))
    relay.take(DOWN)
    relay.down.feed(data[:20])
    relay.up.feed(block(5, [(b":method", b"GET")]))
    relay.down.feed(data[20:])
    assert relay.take(DOWN) == data + encode_rst(5, 1)


def test_one_octet_at_a_time() -> None:
    """The ends do not notice."""
    ends = Ends(Pass(), piece=1)
    ends.client.head(1, POST)
    ends.client.body(1, b"body")
    ends.go()
    ends.server.head(1, OK)
    ends.server.body(1, b"answer")
    ends.go()
    assert (ends.server.bodies, ends.client.bodies) == ({1: b"body"}, {1: b"answer"})


def test_large_frames_pass_without_a_copy() -> None:
    """Content of a stream that nobody watches is not put together: what is read is what is sent."""
    relay = begun()
    relay.up.feed(block(1, POST))
    relay.take(UP)
    piece = encode_frame(DATA, 0, 1, b"x" * 16384)
    relay.up.feed(piece)
    assert relay.take(UP) is piece
    tracemalloc.start()
    try:
        for _ in range(1000):
            relay.up.feed(piece[:9000])
            relay.take(UP)
            relay.up.feed(piece[9000:])
            relay.take(UP)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# --- what a peer must not do ---

HEADERS_OF_1 = block(1, POST)


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (encode_frame(DATA, 0, 0, b"x"), 1),
        (encode_frame(DATA, 0, 1, b"x"), 1),  # idle
        (encode_frame(DATA, 0, 2, b"x"), 1),
        (encode_frame(DATA, PADDED, 1, b"\x05x"), 1),
        (HEADERS_OF_1 + encode_frame(DATA, PADDED, 5, b"\x05x"), 1),
        (block(2, POST), 1),
        (encode_frame(HEADERS, WITH_PRIORITY | END_HEADERS, 1, b"abc"), 6),
        (encode_frame(HEADERS, END_HEADERS, 1, b"\x80"), 9),
        (encode_frame(HEADERS, 0, 1, b"\x82") + encode_frame(PING, 0, 0, b"12345678"), 1),
        (encode_frame(HEADERS, 0, 1, b"\x82") + encode_frame(CONTINUATION, 4, 3, b""), 1),
        (encode_frame(CONTINUATION, 4, 1, b""), 1),
        (encode_frame(RST_STREAM, 0, 1, b"\0\0\0\0"), 1),
        (encode_frame(RST_STREAM, 0, 0, b"\0\0\0\0"), 1),
        (encode_frame(RST_STREAM, 0, 1, b"\0"), 6),
        (encode_frame(5, END_HEADERS, 1, b"\0\0\0\2\x82"), 1),  # PUSH_PROMISE of a client
        (encode_frame(SETTINGS, ACK, 0), 1),  # of nothing
        (encode_frame(SETTINGS, 0, 0, b"\0"), 6),
        (encode_settings([(4, 1 << 31)]), 3),
        (encode_settings([(2, 2)]), 1),
        (encode_frame(PING, 0, 0, b"1"), 6),
        (encode_frame(PING, 0, 1, b"12345678"), 1),
        (encode_frame(GOAWAY, 0, 0, b"1"), 6),
        (encode_window_update(0, 0), 1),
        (encode_window_update(1, 1), 1),  # idle
        (encode_window_update(0, (1 << 31) - 1), 3),
        (encode_frame(0xEE, 0, 0, b"x" * 16385), 6),
        (HEADERS_OF_1 + encode_frame(DATA, 0, 1, b"x" * 16385), 6),
    ],
)
def test_what_breaks_a_connection(octets: bytes, code: int) -> None:
    """The peer gets GOAWAY with the code of RFC 9113, the other one an orderly end, and nothing passes any more."""
    inspector = Pass()
    relay = begun(inspector)
    relay.up.feed(octets)
    assert relay.failure is not None
    assert goaway(relay, DOWN) == code
    assert goaway(relay, UP) == 0
    assert relay.over
    relay.up.feed(BEGIN)
    relay.down.feed(encode_settings([]))
    assert relay.take(UP) == relay.take(DOWN) == b""
    assert all(error is not None for error in inspector.errors.values())


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (encode_frame(HEADERS, END_HEADERS, 1, b"\x88"), 1),
        (encode_frame(5, END_HEADERS, 1, b"\0\0\0\3\x82"), 1),
        (encode_frame(5, END_HEADERS, 1, b"\0\0\0\2\x82\x84\x86") * 2, 1),
        (encode_frame(5, END_HEADERS, 1, b"\0\0"), 6),
        (encode_frame(DATA, 0, 2, b"x"), 1),
    ],
)
def test_what_breaks_a_connection_from_the_server(octets: bytes, code: int) -> None:
    """The client gets to know that it is not its fault."""
    relay = begun()
    relay.down.feed(octets)
    assert goaway(relay, UP) == code
    assert goaway(relay, DOWN) == 2


def test_a_connection_begins_with_preface_and_settings() -> None:
    """Of each side; whatever else comes first ends it."""
    for octets in (b"GET / HTTP/1.1\r\n\r\n", BEGIN[:10] + b"x" * 20):
        relay = FrameRelay()
        relay.up.feed(octets[:5])
        relay.up.feed(octets[5:])
        assert goaway(relay, DOWN) == 1
    for frame in (encode_frame(PING, 0, 0, b"12345678"), SETTINGS_ACK):
        relay = FrameRelay()
        relay.up.feed(PREFACE + frame)
        assert goaway(relay, DOWN) == 1
        relay = FrameRelay()
        relay.down.feed(frame)
        assert goaway(relay, UP) == 1


BAD_REQUESTS: list[list[Field]] = [
    [(b":method", b"GET")],
    [*GET, (b"connection", b"close")],
    [*GET, (b"Upper", b"x")],
    [*GET, (b"x", b"a\r\nb")],
    [*GET, (b":status", b"200")],
]


@pytest.mark.parametrize("fields", BAD_REQUESTS)
def test_a_malformed_request_ends_its_stream_alone(fields: list[Field]) -> None:
    """RST_STREAM with PROTOCOL_ERROR; the server sees nothing of it, and the next request passes."""
    ends = Ends(Pass())
    ends.client.head(1, GET, True)
    ends.go()
    ends.relay.up.feed(block(3, fields, END_STREAM))
    assert frames(ends.relay.take(DOWN)) == [(RST_STREAM, 0, 3, b"\0\0\0\1")]
    assert ends.relay.take(UP) == b""
    ends.relay.up.feed(block(5, GET, END_STREAM))
    ends.deliver()
    assert set(ends.server.heads) == {1, 5}


@pytest.mark.parametrize(
    "octets",
    [
        block(1, [(b":status", b"2000")]),
        block(1, [(b"server", b"x")]),
        block(1, [(b":status", b"103")], END_STREAM),
        block(1, OK) + block(1, [(b"x", b"y")]),
        block(1, OK) + block(1, [(b":status", b"200")], END_STREAM),
        block(1, OK, END_STREAM) + encode_frame(DATA, 0, 1, b"x"),
        block(1, OK, END_STREAM) + block(1, [(b"x", b"y")], END_STREAM),
        block(1, OK) + encode_window_update(1, (1 << 31) - 1),
    ],
)
def test_a_malformed_response_ends_its_stream_alone(octets: bytes) -> None:
    """Both ends get RST_STREAM."""
    inspector = Pass()
    relay = begun(inspector)
    relay.up.feed(block(1, POST))
    relay.take(UP)
    relay.down.feed(octets)
    assert [frame[0] for frame in frames(relay.take(UP)) if frame[0] == RST_STREAM] == [RST_STREAM]
    assert frames(relay.take(DOWN))[-1][0] == RST_STREAM
    assert inspector.errors[1]
    assert relay.failure is None
    assert not relay.up.halves
    assert not relay.down.halves


def test_content_beyond_a_window_where_it_is_ours() -> None:
    """A direction that is managed has windows; who sends more is at fault."""
    for stream in (1, 3):
        inspector = Pass()
        relay = begun(inspector)
        relay.up.feed(block(1, POST) + block(3, POST))
        inspector.streams[1].take(UP)
        if stream == 3:
            inspector.streams[3].reset("gone")
        relay.take(DOWN), relay.take(UP)
        for _ in range(100):
            relay.up.feed(encode_frame(DATA, 0, stream, b"x" * 16384))
            if relay.failure is not None:
                break
            if stream == 1:
                relay.take(DOWN)
        if stream == 1:
            assert relay.failure is not None
            assert goaway(relay, DOWN) == 3
    inspector = Pass()
    relay = begun(inspector)
    relay.up.feed(block(1, POST))
    inspector.streams[1].take(UP)
    relay.up.credit = 10
    relay.up.top_up = bool  # type: ignore[method-assign, assignment]
    inspector.streams[1].reset("gone")
    relay.up.feed(encode_frame(DATA, 0, 1, b"x" * 11))
    assert relay.failure is not None
    assert relay.failure.code == 3


# --- floods ---

PINGS = encode_frame(PING, 0, 0, b"12345678")


@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize(
    "frame",
    [
        PINGS,
        encode_frame(PING, ACK, 0, b"12345678"),
        encode_window_update(0, 1),
        encode_window_update(1, 1),
        encode_frame(DATA, 0, 1, b""),
        encode_frame(PRIORITY, 0, 1, b"\0\0\0\0\1"),
        encode_frame(0xEE, 0, 0, b"x"),
        encode_frame(0xEE, 0, 1, b"x"),
        encode_frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0"),
    ],
)
def test_floods_of_frames_that_carry_nothing(direction: int, frame: bytes) -> None:
    """ENHANCE_YOUR_CALM to who sends them. The same number in longer time, or with content between, is no flood."""
    clock = Clock()
    relay = begun(clock=clock)
    relay.up.feed(block(1, POST))
    relay.down.feed(block(1, OK))
    for _ in range(NOISE - 20):
        relay.directions[direction].feed(frame)
    clock.now += 60
    for _ in range(NOISE - 20):
        relay.directions[direction].feed(frame)
    assert relay.failure is None
    for _ in range(NOISE):
        relay.up.feed(encode_frame(DATA, 0, 1, b"x"))
    for _ in range(NOISE - 20):
        relay.directions[direction].feed(frame)
    assert relay.failure is None
    for _ in range(3 * NOISE):
        relay.directions[direction].feed(frame)
    assert relay.failure is not None
    relay.take(direction)
    assert goaway(relay, DOWN if direction == UP else UP) == 11


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_flood_of_fields_on_a_stream_that_is_over(direction: int) -> None:
    """Each is decoded for nobody. A few are those that a reset has crossed."""
    relay = begun()
    relay.up.feed(block(1, POST) + encode_rst(1, 8))
    octets = encode_block(HEADERS, END_STREAM, 1, b"\x88")
    for _ in range(NOISE - 20):
        relay.directions[direction].feed(octets)
    assert relay.failure is None
    for _ in range(NOISE):
        relay.directions[direction].feed(octets)
    assert relay.failure is not None
    relay.take(direction)
    assert goaway(relay, DOWN if direction == UP else UP) == 11


def test_a_flood_of_promises_on_a_stream_that_is_over() -> None:
    """Each is refused."""
    relay = begun()
    relay.up.feed(block(1, GET, END_STREAM) + encode_rst(1, 8))
    encoder = Encoder()
    for number in range(1, NOISE + 20):
        relay.down.feed(encode_block(PUSH_PROMISE, 0, 1, encoder.encode(GET), (2 * number).to_bytes(4, "big")))
    assert relay.failure is not None
    relay.take(DOWN)
    assert relay.failure.code == 11


def test_a_flood_of_settings() -> None:
    """Also of those that are not acknowledged."""
    relay = begun()
    relay.up.feed(encode_settings([(3, 5)]) * (MAX_SETTINGS + 1))
    assert goaway(relay, DOWN) == 11
    relay = begun()
    for _ in range(NOISE):
        relay.up.feed(encode_settings([(3, 5)]))
        relay.down.feed(SETTINGS_ACK)
    assert relay.failure is not None


def test_rapid_reset() -> None:
    """CVE-2023-44487: streams that are opened and reset at once. Who resets what has an answer is no attacker."""
    relay = begun()
    encoder = Encoder()
    for number in range(RESETS + 10):
        id = 2 * number + 1
        relay.up.feed(encode_block(HEADERS, END_STREAM, id, encoder.encode(GET)))
        relay.down.feed(block(id, OK))
        relay.up.feed(encode_rst(id, 8))
    assert relay.failure is None
    for number in range(RESETS + 10, 2 * RESETS + 20):
        id = 2 * number + 1
        relay.up.feed(encode_block(HEADERS, END_STREAM, id, encoder.encode(GET)) + encode_rst(id, 8))
    assert relay.failure is not None
    assert goaway(relay, DOWN) == 11
    assert not relay.up.halves


def test_resets_that_a_peer_has_us_make() -> None:
    """The same with requests that are malformed (CVE-2025-8671)."""
    relay = begun()
    for number in range(RESETS + 1):
        relay.up.feed(block(2 * number + 1, [(b":method", b"GET")]))
    assert goaway(relay, DOWN) == 11


def test_a_flood_of_continuations() -> None:
    """CVE-2024-27316 and its like: a block without an end, with content and without."""
    for payload in (b"", b"\x82" * 16000):
        relay = begun()
        tracemalloc.start()
        relay.up.feed(encode_frame(HEADERS, 0, 1, b"\x82"))
        for _ in range(MAX_PIECES + 1):
            relay.up.feed(encode_frame(CONTINUATION, 0, 1, payload))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()
        assert goaway(relay, DOWN) == 11


def test_an_hpack_bomb() -> None:
    """Fields that are small on the wire and large for who gets them."""
    relay = begun()
    relay.up.feed(block(1, [*GET, (b"a", b"b")], END_STREAM))
    bomb = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 10000
    relay.up.feed(encode_frame(HEADERS, END_HEADERS, 3, bomb))
    assert goaway(relay, DOWN) == 11


def test_streams_have_a_bound() -> None:
    """Whatever the server allows: more are refused, and go on later."""
    relay = begun()
    encoder, decoder = Encoder(), Decoder()
    for number in range(MAX_STREAMS + 1):
        relay.up.feed(encode_block(HEADERS, END_STREAM, 2 * number + 1, encoder.encode(GET)))
    assert frames(relay.take(DOWN)) == [(RST_STREAM, 0, 2 * MAX_STREAMS + 1, b"\0\0\0\7")]
    relay.take(UP)
    relay.down.feed(block(1, OK, END_STREAM))
    relay.up.feed(encode_block(HEADERS, END_STREAM, 2 * MAX_STREAMS + 3, encoder.encode(GET)))
    assert len(frames(relay.take(UP))) == 1
    assert decoder.decode(b"\x82") == [GET[0]]


def test_many_requests_at_once_are_taken_in_turns() -> None:
    """In pieces of a turn each, in order, with whatever comes in between and behind them."""
    relay = begun()
    encoder, passed = Encoder(), b""
    octets = b"".join(
        encode_block(HEADERS, END_STREAM, 2 * number + 1, encoder.encode(GET)) for number in range(3 * BLOCKS + 5)
    )
    octets += encode_frame(PING, 0, 0, b"12345678")
    relay.up.feed(octets[: len(octets) // 2])
    assert relay.up.more
    passed += relay.take(UP)
    relay.up.feed(octets[len(octets) // 2 : -5])
    turns = 0
    while relay.up.more and turns < 9:
        passed += relay.take(UP)
        assert len(relay.up.halves) <= (turns + 2) * BLOCKS
        turns += 1
        relay.up.feed(b"")
    relay.up.feed(octets[-5:])
    passed += relay.take(UP)
    assert turns == 2
    assert passed == octets


def test_content_for_nobody_is_a_flood_where_it_is_little() -> None:
    """A server that goes on sending on streams that are over, so that we answer each frame."""
    for size in (256, 1):
        relay = begun()
        relay.up.feed(block(1, GET, END_STREAM) + encode_rst(1, 8))
        for _ in range(2 * NOISE):
            relay.down.feed(encode_frame(DATA, 0, 1, b"x" * size))
        assert (relay.failure is None) is (size == 256)


def test_names_of_codes() -> None:
    """Also of one that nobody knows."""
    assert name_of(8) == "CANCEL"
    assert name_of(77) == "77"


class Late(Pass):
    """Holds requests; answers what it sees the end of."""

    def request(self, stream: Stream, request: Any, end: bool) -> Any:
        super().request(stream, request, end)
        return HOLD


def test_an_end_without_content_behind_a_head_that_waits() -> None:
    """And content of nothing, which is dropped."""
    inspector = Late()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.go()
    ends.raw(UP, encode_frame(DATA, 0, 1, b"") + encode_frame(DATA, PADDED, 1, b"\0"))
    ends.client.body(1, b"")
    ends.go()
    inspector.streams[1].send_request()
    ends.go()
    assert 1 in ends.server.ended
    assert not any(isinstance(event, h2.events.DataReceived) and event.data for event in ends.server.events)


def test_content_that_comes_behind_an_answer() -> None:
    """It is given back to the client's connection until the client has seen the end."""
    inspector = Late()
    relay = begun(inspector)
    relay.up.feed(block(1, POST))
    inspector.streams[1].answer(200, [], end=False)
    relay.take(DOWN)
    relay.up.feed(encode_frame(DATA, 0, 1, b"x" * 10))
    assert relay.take(DOWN) == encode_window_update(0, 10)
    relay.up.feed(encode_frame(DATA, END_STREAM, 1, b"x" * 10))
    relay.take(DOWN)
    inspector.streams[1].send(DOWN, b"", True)
    assert relay.take(DOWN) == encode_frame(DATA, END_STREAM, 1)  # and no RST_STREAM
    assert relay.take(UP) == b""
    relay.up.feed(block(3, POST))
    inspector.streams[3].answer(200, [], end=False)
    relay.up.feed(block(3, [(b"x", b"y")], END_STREAM) + encode_window_update(3, 7))
    inspector.streams[3].send(DOWN, b"", True)
    assert relay.take(DOWN)[-9:] == encode_frame(DATA, END_STREAM, 3)
