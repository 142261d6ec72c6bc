"""Frames of WebSocket against those of another library, in any pieces; and what is said about compression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tabi.errors import RemoteProtocolError
from tabi.wire.websocket import FIN, RSV1, TEXT, Compression, decode_head, encode_head, parse_extensions

SIZES = st.one_of(st.integers(0, 300), st.sampled_from([65535, 65536, 70000]))


@given(st.sampled_from(Opcode), SIZES, st.booleans(), st.booleans(), st.integers(0, 3))
def test_heads_are_those_of_another_library(opcode: Opcode, size: int, fin: bool, masked: bool, before: int) -> None:
    """Of every length, masked or not, wherever it begins; and it is missing until its last octet has come."""
    if opcode >= Opcode.CLOSE:
        size, fin = min(size, 125), True
    theirs = bytes(before) + Frame(opcode, bytes(size), fin).serialize(mask=masked)
    found = decode_head(theirs, before)
    assert found is not None
    first, mask, length, end = found
    assert (first, bool(mask), length) == ((FIN if fin else 0) | opcode, masked, size)
    assert end == len(theirs) - size
    assert encode_head(first, length, mask) == theirs[before:end]
    for cut in range(before, end):
        assert decode_head(theirs[:cut], before) is None


@given(st.binary(max_size=20))
def test_any_octets_are_a_head_or_an_error(octets: bytes) -> None:
    """Nothing else is raised."""
    try:
        found = decode_head(octets)
    except RemoteProtocolError:
        return
    assert found is None or (found[2] >= 0 and 2 <= found[3] <= 14)


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (b"\x83\x00", "a WebSocket frame with the unknown opcode 3"),
        (b"\x8f\x00", "a WebSocket frame with the unknown opcode 15"),
        (b"\x89\x7e\x00\x7e", "a WebSocket control frame that is too long, a part, or has reserved bits"),
        (b"\xc9\x00", "a WebSocket control frame that is too long, a part, or has reserved bits"),
        (b"\x09\x00", "a WebSocket control frame that is too long, a part, or has reserved bits"),
        (b"\x82\x7f\x80" + bytes(7), "a WebSocket frame of 2**63 octets or more"),
    ],
)
def test_bad_heads(octets: bytes, message: str) -> None:
    """What RFC 6455 sections 5.2 and 5.5 do not allow is found with the octet that shows it."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode_head(octets)
    assert str(caught.value) == message


def test_longest_length_and_reserved_bits() -> None:
    """They are the caller's to judge."""
    assert decode_head(b"\x82\x7f\x7f" + b"\xff" * 7) == (0x82, b"", (1 << 63) - 1, 10)
    assert decode_head(bytes((FIN | RSV1 | TEXT, 0))) == (FIN | RSV1 | TEXT, b"", 0, 2)


BOTH = Compression(), Compression()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([" "], None),
        (["permessage-deflate"], BOTH),
        ([" , Permessage-Deflate "], BOTH),
        (["permessage-deflate; client_no_context_takeover"], (Compression(False), Compression())),
        (["permessage-deflate; server_no_context_takeover"], (Compression(), Compression(False))),
        (
            ['permessage-deflate;server_max_window_bits = "10" ; client_max_window_bits=8'],
            (Compression(True, 8), Compression(True, 10)),
        ),
    ],
)
def test_what_is_agreed_on_about_compression(
    values: list[str], expected: tuple[Compression, Compression] | None
) -> None:
    """Of both directions, from an answer's fields."""
    assert parse_extensions(values) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["x-webkit-deflate-frame"], "the WebSocket extension 'x-webkit-deflate-frame' is not known"),
        (["permessage-deflate", "other"], "the WebSocket extension 'other' is not known"),
        (
            ["permessage-deflate, permessage-deflate"],
            "the WebSocket extension 'permessage-deflate' is not known",
        ),
        *(
            ([f"permessage-deflate; {text}"], f"the parameter {text!r} of permessage-deflate is not known")
            for text in (
                "what",
                "client_max_window_bits",
                "client_max_window_bits=16",
                "client_max_window_bits=0x9",
                "server_no_context_takeover=1",
                "proxy_no_context_takeover",
                "a b=",
                "",
            )
        ),
    ],
)
def test_what_is_not_known_about_it(values: list[str], message: str) -> None:
    """Messages cannot be read then."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_extensions(values)
