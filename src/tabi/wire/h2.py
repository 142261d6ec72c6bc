"""Frames of HTTP/2 (RFC 9113), and the fields of its requests and responses. No I/O; blocks are of `wire.hpack`.

    length 24 | kind 8 | flags 8 | R 1 | stream 31 | payload

What is wrong with a frame is an H2Error, or an H2StreamError where it is a matter of its stream alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

import msgspec

from tabi.errors import H2Error, H2StreamError
from tabi.wire.hpack import Field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first, before its SETTINGS (section 3.4)."""

HEAD_SIZE = 9
MIN_FRAME_SIZE = 16384
"""Octets of a payload that every peer takes, and the most until it allows more (SETTINGS_MAX_FRAME_SIZE)."""

WINDOW = 65535
"""Octets of a window until SETTINGS_INITIAL_WINDOW_SIZE says something else; always that of a connection at first."""

MAX_WINDOW = (1 << 31) - 1

# Kinds of frames (section 6; RFC 7838, 8336, 9218). Plain integers: they are compared for every frame.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ALTSVC, ORIGIN, PRIORITY_UPDATE = 0x0A, 0x0C, 0x10

END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
ENABLE_CONNECT_PROTOCOL = 8


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


PROTOCOL_ERROR, FLOW_CONTROL_ERROR = int(ErrorCode.PROTOCOL_ERROR), int(ErrorCode.FLOW_CONTROL_ERROR)
FRAME_SIZE_ERROR = int(ErrorCode.FRAME_SIZE_ERROR)

unpack_head = struct.Struct("!HBBBI").unpack_from
pack_head = struct.Struct("!HBBBI").pack
unpack_setting = struct.Struct("!HI").iter_unpack
pack_setting = struct.Struct("!HI").pack


def read_head(octets: bytes | bytearray | memoryview, at: int = 0) -> tuple[int, int, int, int]:
    """Read the 9 octets of a head: length of the payload, kind, flags, stream. The reserved bit is ignored."""
    high, low, kind, flags, stream = unpack_head(octets, at)
    return high << 8 | low, kind, flags, stream & 0x7FFFFFFF


def encode_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """Write a head."""
    return pack_head(length >> 8, length & 255, kind, flags, stream)


def encode_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return encode_head(len(payload), kind, flags, stream) + payload


STREAM, CONNECTION, EITHER = True, False, None
RULES: dict[int, tuple[bool | None, int, int]] = {
    DATA: (STREAM, 0, 1 << 24),
    HEADERS: (STREAM, 0, 1 << 24),
    PRIORITY: (STREAM, 5, 5),
    RST_STREAM: (STREAM, 4, 4),
    SETTINGS: (CONNECTION, 0, 1 << 24),
    PUSH_PROMISE: (STREAM, 4, 1 << 24),
    PING: (CONNECTION, 8, 8),
    GOAWAY: (CONNECTION, 8, 1 << 24),
    WINDOW_UPDATE: (EITHER, 4, 4),
    CONTINUATION: (STREAM, 0, 1 << 24),
    PRIORITY_UPDATE: (CONNECTION, 4, 1 << 24),
}
"""Of each kind: what it is for, and the least and the most octets of its payload."""


def check_frame(length: int, kind: int, flags: int, stream: int) -> None:
    """Raise H2Error unless a frame has a stream where it needs one, and a length that its kind can have.

    Kinds that are not known may have any (section 5.5).
    """
    rule = RULES.get(kind)
    if rule is None:
        return
    of_stream, least, most = rule
    if of_stream is not None and of_stream is not (stream > 0):
        raise H2Error(f"a frame of kind {kind} on stream {stream}", PROTOCOL_ERROR)
    if not least <= length <= most or (kind == SETTINGS and (length % 6 or (flags & ACK and length))):
        raise H2Error(f"a frame of kind {kind} with {length} octets", FRAME_SIZE_ERROR)


# --- payloads ---


def strip_padding(payload: bytes, flags: int) -> bytes:
    """Take the padding off. Raises H2Error: there is more of it than payload (section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise H2Error("a frame with more padding than it has octets", PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]


def split_headers(payload: bytes, flags: int) -> tuple[bytes, bytes]:
    """Split the payload of HEADERS into the 5 octets of a priority, if there is one, and the block or its beginning."""
    payload = strip_padding(payload, flags)
    if not flags & WITH_PRIORITY:
        return b"", payload
    if len(payload) < 5:
        raise H2Error("HEADERS too short for their priority", FRAME_SIZE_ERROR)
    return payload[:5], payload[5:]


def split_promise(payload: bytes, flags: int) -> tuple[int, bytes]:
    """Split the payload of PUSH_PROMISE into the promised stream and the block or its beginning."""
    payload = strip_padding(payload, flags)
    if len(payload) < 4:
        raise H2Error("PUSH_PROMISE too short for its stream", FRAME_SIZE_ERROR)
    return int.from_bytes(payload[:4], "big") & 0x7FFFFFFF, payload[4:]


def encode_block(kind: int, flags: int, stream: int, block: bytes, before: bytes = b"") -> bytes:
    """Write HEADERS or PUSH_PROMISE with a whole block, and CONTINUATION for what does not fit.

    ``flags`` has END_STREAM, and WITH_PRIORITY if ``before`` is a priority; of a promise ``before`` is its stream.
    """
    payload = before + block
    if len(payload) <= MIN_FRAME_SIZE:
        return encode_frame(kind, flags | END_HEADERS, stream, payload)
    pieces = [payload[at : at + MIN_FRAME_SIZE] for at in range(0, len(payload), MIN_FRAME_SIZE)]
    frames = [encode_frame(kind, flags, stream, pieces[0])]
    frames += [encode_frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1]]
    return b"".join([*frames, encode_frame(CONTINUATION, END_HEADERS, stream, pieces[-1])])


def decode_settings(payload: bytes) -> list[tuple[int, int]]:
    """Read pairs of a setting and its value, in their order (section 6.5.1). Raises H2Error: a value is not allowed."""
    settings = list(unpack_setting(payload))
    for setting, value in settings:
        if setting in (ENABLE_PUSH, ENABLE_CONNECT_PROTOCOL) and value > 1:
            raise H2Error(f"setting {setting} with {value}", PROTOCOL_ERROR)
        if setting == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise H2Error(f"an initial window of {value} octets", FLOW_CONTROL_ERROR)
        if setting == MAX_FRAME_SIZE and not MIN_FRAME_SIZE <= value < 1 << 24:
            raise H2Error(f"frames of {value} octets", PROTOCOL_ERROR)
    return settings


def encode_settings(settings: Iterable[tuple[int, int]]) -> bytes:
    """Write SETTINGS."""
    return encode_frame(SETTINGS, 0, 0, b"".join([pack_setting(*pair) for pair in settings]))


SETTINGS_ACK = encode_frame(SETTINGS, ACK, 0)


def encode_goaway(last_stream: int, code: int, text: bytes = b"") -> bytes:
    """Write GOAWAY: streams up to that one may have been taken."""
    return encode_frame(GOAWAY, 0, 0, struct.pack("!II", last_stream, code) + text)


def decode_goaway(payload: bytes) -> tuple[int, int, bytes]:
    """Read GOAWAY: the last stream, the error code, and text for whoever debugs it."""
    return int.from_bytes(payload[:4], "big") & 0x7FFFFFFF, int.from_bytes(payload[4:8], "big"), payload[8:]


def encode_rst(stream: int, code: int) -> bytes:
    """Write RST_STREAM."""
    return encode_frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def encode_window_update(stream: int, octets: int) -> bytes:
    """Write WINDOW_UPDATE: 1 to MAX_WINDOW octets more."""
    return encode_frame(WINDOW_UPDATE, 0, stream, octets.to_bytes(4, "big"))


def decode_window_update(payload: bytes, stream: int) -> int:
    """Read WINDOW_UPDATE. Raises H2Error, of a stream H2StreamError: it adds nothing (section 6.9)."""
    octets = int.from_bytes(payload, "big") & 0x7FFFFFFF
    if not octets:
        raise (H2StreamError if stream else H2Error)("a window update of 0 octets", PROTOCOL_ERROR)
    return octets


# --- fields ---


class H2Request(msgspec.Struct):
    """The fields of a request: what the pseudo-header fields say, and the others in their order (section 8.3.1).

    ``protocol`` is that of an extended CONNECT, such as ``websocket`` (RFC 8441).
    """

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    protocol: bytes
    fields: list[Field]

    @property
    def url(self) -> str:
        """What a flow shows; of CONNECT the authority alone."""
        if self.method == b"CONNECT" and not self.protocol:
            return self.authority.decode("latin-1")
        return f"{self.scheme.decode('latin-1')}://{self.authority.decode('latin-1')}{self.path.decode('latin-1')}"

    def __repr__(self) -> str:
        return f"H2Request({self.method!r}, {len(self.fields)} fields)"  # paths and values may be secrets


REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
OF_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
WRONG_IN_REST = OF_CONNECTION | REQUEST_PSEUDO | {b":status"}
LOOKED_AT = WRONG_IN_REST | {b"te", b"host"}


def check_rest(fields: list[Field], authority: bytes | None = None) -> None:
    """Check fields that are not to be pseudo-header fields, nor to be of one connection (section 8.2.2)."""
    names = {name for name, _ in fields}
    if names.isdisjoint(LOOKED_AT):
        return
    if not names.isdisjoint(WRONG_IN_REST):
        raise H2StreamError("a pseudo-header field behind others, or one of a connection", PROTOCOL_ERROR)
    for name, value in fields:
        if name == b"te" and value.lower() != b"trailers":
            raise H2StreamError("TE that is not trailers", PROTOCOL_ERROR)
        if name == b"host" and authority and value.lower() != authority.lower():
            raise H2StreamError("Host is not :authority", PROTOCOL_ERROR)


check_trailers = check_rest


def decode_request(fields: list[Field]) -> H2Request:
    """Read the fields of a request. Raises H2StreamError: it is malformed (section 8.1.1)."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            break
        if name in pseudo or name not in REQUEST_PSEUDO:
            raise H2StreamError("a pseudo-header field twice, or not of a request", PROTOCOL_ERROR)
        pseudo[name] = value
    get = pseudo.get
    request = H2Request(
        get(b":method", b""),
        get(b":scheme", b""),
        get(b":authority", b""),
        get(b":path", b""),
        get(b":protocol", b""),
        fields[len(pseudo) :],
    )
    check_rest(request.fields, request.authority)
    if request.method == b"CONNECT" and b":protocol" not in pseudo:
        wrong = not request.authority or b":scheme" in pseudo or b":path" in pseudo
    else:
        wrong = not (request.method and request.scheme and request.path)
        wrong = wrong or (b":protocol" in pseudo and (request.method != b"CONNECT" or not request.authority))
    if wrong:
        raise H2StreamError("a request without what it needs, or with what it must not have", PROTOCOL_ERROR)
    return request


def encode_request(request: H2Request) -> list[Field]:
    """Give the fields of a request, those first that begin with a colon."""
    pairs = (
        (b":method", request.method),
        (b":scheme", request.scheme),
        (b":authority", request.authority),
        (b":path", request.path),
        (b":protocol", request.protocol),
    )
    return [pair for pair in pairs if pair[1]] + request.fields


def decode_response(fields: list[Field]) -> tuple[int, list[Field]]:
    """Read the fields of a response: status, and the others. Raises H2StreamError: it is malformed (section 8.3.2)."""
    name, value = fields[0] if fields else (b"", b"")
    if name != b":status" or len(value) != 3 or not value.isdigit() or value < b"100" or value == b"101":
        raise H2StreamError("a response without a status that HTTP/2 has", PROTOCOL_ERROR)
    rest = fields[1:]
    check_rest(rest)
    return int(value), rest


def encode_response(status: int, fields: Iterable[Field]) -> list[Field]:
    """Give the fields of a response."""
    return [(b":status", b"%d" % status), *fields]
