"""Frames of HTTP/2: another implementation as the oracle, what a relay must refuse, and fields of requests."""

from __future__ import annotations

from typing import Any

import pytest
from hyperframe import frame as oracle
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import H2Error, H2StreamError
from tabi.wire.h2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    MIN_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITY,
    PRIORITY_UPDATE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    H2Request,
    check_frame,
    check_trailers,
    decode_goaway,
    decode_request,
    decode_response,
    decode_settings,
    decode_window_update,
    encode_block,
    encode_frame,
    encode_goaway,
    encode_request,
    encode_response,
    encode_rst,
    encode_settings,
    encode_window_update,
    read_head,
    split_headers,
    split_promise,
    strip_padding,
)
from tabi.wire.hpack import Field


def parse(octets: bytes) -> Any:
    """The one frame in some octets, as the oracle reads it."""
    frame, length = oracle.Frame.parse_frame_header(memoryview(octets[:9]))
    assert len(octets) == 9 + length
    frame.parse_body(memoryview(octets[9:]))
    return frame


def error_of(call: Any, *arguments: Any) -> tuple[int, bool]:
    """The code of the error that a call raises, and whether it is one of a stream."""
    with pytest.raises(H2Error) as caught:
        call(*arguments)
    return caught.value.code, isinstance(caught.value, H2StreamError)


# --- frames ---


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=70_000))
def test_heads(kind: int, flags: int, stream: int, payload: bytes) -> None:
    """What is written is read; the reserved bit is ignored (section 4.1)."""
    frame = encode_frame(kind, flags, stream, payload)
    assert read_head(frame) == (len(payload), kind, flags, stream)
    assert read_head(b"xx" + frame[:5] + bytes([frame[5] | 128]) + frame[6:], 2) == read_head(frame)


def test_frames_as_the_oracle_reads_them() -> None:
    """Each that we write."""
    assert parse(encode_rst(3, ErrorCode.CANCEL)).error_code == 8
    assert parse(encode_window_update(0, 70_000)).window_increment == 70_000
    goaway = parse(encode_goaway(7, 11, b"calm"))
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (7, 11, b"calm")
    assert decode_goaway(encode_goaway(7, 11, b"calm")[9:]) == (7, 11, b"calm")
    assert parse(encode_settings([(1, 0), (4, 70_000)])).settings == {1: 0, 4: 70_000}
    assert decode_settings(encode_settings([(1, 0), (4, 70_000)])[9:]) == [(1, 0), (4, 70_000)]
    assert "ACK" in parse(SETTINGS_ACK).flags
    assert decode_window_update(b"\x80\0\0\x05", 1) == 5


@pytest.mark.parametrize(
    ("kind", "stream", "length"),
    [
        (DATA, 1, 0),
        (HEADERS, 1, 0),
        (PRIORITY, 1, 5),
        (RST_STREAM, 1, 4),
        (SETTINGS, 0, 12),
        (PUSH_PROMISE, 1, 4),
        (PING, 0, 8),
        (GOAWAY, 0, 8),
        (WINDOW_UPDATE, 0, 4),
        (WINDOW_UPDATE, 1, 4),
        (CONTINUATION, 1, 0),
        (PRIORITY_UPDATE, 0, 4),
        (0xBE, 0, 0),
        (0xBE, 1, 3),
    ],
)
def test_right_frames(kind: int, stream: int, length: int) -> None:
    """The least of each kind, and kinds that nobody knows, which pass."""
    check_frame(length, kind, 0, stream)


@pytest.mark.parametrize(
    ("kind", "flags", "stream", "length", "code"),
    [
        *[
            (kind, 0, 0, 5, PROTOCOL_ERROR)
            for kind in (DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION)
        ],
        *[(kind, 0, 1, 8, PROTOCOL_ERROR) for kind in (SETTINGS, PING, GOAWAY, PRIORITY_UPDATE)],
        (PRIORITY, 0, 1, 4, FRAME_SIZE_ERROR),
        (RST_STREAM, 0, 1, 5, FRAME_SIZE_ERROR),
        (SETTINGS, 0, 0, 5, FRAME_SIZE_ERROR),
        (SETTINGS, ACK, 0, 6, FRAME_SIZE_ERROR),
        (PUSH_PROMISE, 0, 1, 3, FRAME_SIZE_ERROR),
        (PING, 0, 0, 7, FRAME_SIZE_ERROR),
        (GOAWAY, 0, 0, 7, FRAME_SIZE_ERROR),
        (WINDOW_UPDATE, 0, 0, 3, FRAME_SIZE_ERROR),
    ],
)
def test_wrong_frames(kind: int, flags: int, stream: int, length: int, code: int) -> None:
    """A stream where there must be none or none where there must be one, and lengths that a kind cannot have."""
    assert error_of(check_frame, length, kind, flags, stream) == (code, False)


# --- payloads ---


def test_padding() -> None:
    """It is taken off; more of it than there is payload is an error (section 6.1)."""
    assert strip_padding(b"abc", 0) == b"abc"
    assert strip_padding(b"\x02abc\0\0", PADDED) == b"abc"
    assert strip_padding(b"\0abc", PADDED) == b"abc"
    assert strip_padding(b"\x02\0\0", PADDED) == b""
    assert error_of(strip_padding, b"", PADDED) == (PROTOCOL_ERROR, False)
    assert error_of(strip_padding, b"\x04abc", PADDED) == (PROTOCOL_ERROR, False)


def test_headers_are_split() -> None:
    """With padding and priority, each or both."""
    assert split_headers(b"block", 0) == (b"", b"block")
    assert split_headers(b"\x01\0\0\0\x03\x10block\0", PADDED | WITH_PRIORITY) == (b"\0\0\0\x03\x10", b"block")
    assert error_of(split_headers, b"\0\0\0\x03", WITH_PRIORITY) == (FRAME_SIZE_ERROR, False)
    assert split_promise(b"\x01\0\0\0\x02block\0", PADDED) == (2, b"block")
    assert error_of(split_promise, b"\x03\0\0\0\0\0\0", PADDED) == (FRAME_SIZE_ERROR, False)


@pytest.mark.parametrize("size", [0, 1, MIN_FRAME_SIZE - 5, MIN_FRAME_SIZE - 4, MIN_FRAME_SIZE, 3 * MIN_FRAME_SIZE])
def test_blocks_are_cut_into_frames(size: int) -> None:
    """Each within what every peer takes; the last one ends the block, the first one has the stream's end."""
    block = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    octets = encode_block(HEADERS, END_STREAM | WITH_PRIORITY, 5, block, b"\0\0\0\x03\x10")
    found, at, seen = b"", 0, []
    while at < len(octets):
        length, kind, flags, stream = read_head(octets, at)
        assert stream == 5
        assert length <= MIN_FRAME_SIZE
        found += octets[at + 9 : at + 9 + length]
        seen.append((kind, flags))
        at += 9 + length
    assert found == b"\0\0\0\x03\x10" + block
    assert seen[0] == (HEADERS, END_STREAM | WITH_PRIORITY | (END_HEADERS if len(seen) == 1 else 0))
    assert all(pair == (CONTINUATION, 0) for pair in seen[1:-1])
    assert seen[-1][1] & END_HEADERS
    assert len(seen) == max(1, -(-(size + 5) // MIN_FRAME_SIZE))


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        (2, 2, PROTOCOL_ERROR),
        (8, 2, PROTOCOL_ERROR),
        (4, 1 << 31, FLOW_CONTROL_ERROR),
        (5, 16383, PROTOCOL_ERROR),
        (5, 1 << 24, PROTOCOL_ERROR),
    ],
)
def test_settings_that_are_not_allowed(setting: int, value: int, code: int) -> None:
    """Section 6.5.2. Settings that nobody knows may have any value."""
    assert error_of(decode_settings, encode_settings([(0xFFFF, 1 << 31), (setting, value)])[9:]) == (code, False)


def test_a_window_update_of_nothing() -> None:
    """Of a stream it is that stream's error (section 6.9)."""
    assert error_of(decode_window_update, b"\x80\0\0\0", 0) == (PROTOCOL_ERROR, False)
    assert error_of(decode_window_update, b"\0\0\0\0", 3) == (PROTOCOL_ERROR, True)


# --- fields ---

GET: list[Field] = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/x?y")]
CONNECT: list[Field] = [(b":method", b"CONNECT"), (b":authority", b"a.test:443")]
WEBSOCKET: list[Field] = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]


def test_requests() -> None:
    """Pseudo-header fields and the others are told apart, and put together again."""
    rest: list[Field] = [(b"te", b"trailers"), (b"host", b"A.test"), (b"accept", b"*/*"), (b"accept", b"x")]
    request = decode_request(GET + rest)
    assert request == H2Request(b"GET", b"https", b"a.test", b"/x?y", b"", rest)
    assert encode_request(request) == GET + rest
    assert request.url == "https://a.test/x?y"
    assert "a.test" not in repr(request)
    assert decode_request(CONNECT).url == "a.test:443"
    websocket = decode_request(WEBSOCKET)
    assert websocket.protocol == b"websocket"
    assert websocket.url == "https://a.test/x?y"
    without: list[Field] = [GET[0], GET[1], GET[3], (b"host", b"b.test")]
    assert decode_request(without).authority == b""


def without(fields: list[Field], name: bytes) -> list[Field]:
    """The fields but those of that name."""
    return [field for field in fields if field[0] != name]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [*GET, GET[0]],
        [*GET, (b":status", b"200")],
        [*GET[:3], (b"accept", b"*/*"), GET[3]],
        [*GET, (b"accept", b"*/*"), (b":status", b"200")],
        *[without(GET, name) for name in (b":method", b":scheme", b":path")],
        [*GET[:3], (b":path", b"")],
        *[[*GET, (name, b"x")] for name in (b"connection", b"keep-alive", b"proxy-connection", b"upgrade")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b"host", b"b.test")],
        [*GET, (b":protocol", b"websocket")],
        [*CONNECT, (b":path", b"/")],
        [*CONNECT, (b":scheme", b"https")],
        [CONNECT[0]],
        without(WEBSOCKET, b":path"),
        without(WEBSOCKET, b":authority"),
    ],
)
def test_malformed_requests(fields: list[Field]) -> None:
    """An intermediary must not forward them: each is a stream error (sections 8.1.1 and 8.2.2 to 8.3.1)."""
    assert error_of(decode_request, fields) == (PROTOCOL_ERROR, True)


def test_responses() -> None:
    """Status and fields; whatever three digits some server has."""
    fields = encode_response(204, [(b"server", b"x")])
    assert decode_response(fields) == (204, [(b"server", b"x")])
    assert decode_response([(b":status", b"999")]) == (999, [])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"server", b"x")],
        *[[(b":status", value)] for value in (b"", b"20", b"2000", b"2x0", b"099", b"101")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"200"), (b"connection", b"close")],
    ],
)
def test_malformed_responses(fields: list[Field]) -> None:
    """Sections 8.1.1 and 8.3.2; HTTP/2 has no 101 (section 8.6)."""
    assert error_of(decode_response, fields) == (PROTOCOL_ERROR, True)


def test_trailers() -> None:
    """They have no pseudo-header fields (section 8.1)."""
    check_trailers([(b"grpc-status", b"0")])
    assert error_of(check_trailers, [(b":status", b"200")]) == (PROTOCOL_ERROR, True)


names = st.sampled_from([name for name, _ in WEBSOCKET] + [b"a", b"te", b"host", b":status", b"upgrade"])
values = st.sampled_from([b"GET", b"CONNECT", b"/", b"", b"200", b"trailers"])


@given(st.lists(st.tuples(names, values), max_size=8))
def test_any_fields_are_a_request_or_an_error(fields: list[Field]) -> None:
    """And what was read is written as it was, but for empty fields and the order of those with a colon."""
    try:
        request = decode_request(fields)
    except H2StreamError:
        return
    assert sorted(encode_request(request)) == sorted(f for f in fields if f[0][:1] != b":" or f[1])
    assert request.url
