"""Messages of WebSocket: in which frames they may come, what their compression allows, and how much is kept."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import RemoteProtocolError
from tabi.intercept.websocket_messages import COMPRESSED, FINAL_BLOCKS, TAIL, Deflater, MessageReader
from tabi.wire.websocket import BINARY, FIN, RSV1, TEXT, Compression

COMPRESSED_TEXT = FIN | RSV1 | TEXT
HELLO = bytes.fromhex("f248cdc9c90700")
"""RFC 7692 section 7.2.3.1."""


def whole(reader: MessageReader, first: int, payload: bytes) -> bytes:
    """A message in one frame."""
    reader.begin(first)
    reader.add(payload)
    return reader.end()


def packed(content: bytes) -> bytes:
    """A message that refers to no other."""
    compressor = zlib.compressobj(9, wbits=-15)
    return (compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def test_the_examples_of_the_rfc() -> None:
    """RFC 7692 section 7.2.3: one block, a reference to the message before, no compression, BFINAL, two blocks."""
    reader = MessageReader(Compression(), 100)
    assert whole(reader, COMPRESSED_TEXT, HELLO) == b"Hello"
    assert whole(reader, COMPRESSED_TEXT, bytes.fromhex("f200110000")) == b"Hello"
    fresh = MessageReader(Compression(), 100)
    assert whole(fresh, COMPRESSED_TEXT, bytes.fromhex("000500faff48656c6c6f00")) == b"Hello"
    assert whole(fresh, COMPRESSED_TEXT, bytes.fromhex("f348cdc9c9070000")) == b"Hello"
    assert whole(fresh, COMPRESSED_TEXT, bytes.fromhex("f24805000000ffffcac9c90700")) == b"Hello"
    assert not fresh.over


def test_fragments_and_messages_that_are_not_compressed() -> None:
    """A message in several frames is one; one without RSV1 does not touch what the others refer to."""
    reader = MessageReader(Compression(), 100)
    assert whole(reader, COMPRESSED_TEXT, HELLO) == b"Hello"
    reader.begin(BINARY)
    reader.add(b"ab")
    reader.begin(FIN)
    reader.add(b"c")
    assert (reader.opcode, reader.compressed) == (BINARY, False)
    assert reader.end() == b"abc"
    assert whole(reader, COMPRESSED_TEXT, bytes.fromhex("f200110000")) == b"Hello"


@pytest.mark.parametrize(
    ("firsts", "message"),
    [
        ((FIN,), "a WebSocket frame that goes on with no message"),
        ((TEXT, FIN | TEXT), "a WebSocket message within another"),
        ((TEXT, FIN | RSV1), "a WebSocket frame with reserved bits within a message"),
        ((FIN | TEXT | 0x20,), "a WebSocket frame with reserved bits that were not agreed on"),
        ((FIN | TEXT | 0x50,), "a WebSocket frame with reserved bits that were not agreed on"),
    ],
)
def test_frames_that_may_not_come(firsts: tuple[int, ...], message: str) -> None:
    """RFC 6455 section 5.4, and RSV bits that mean nothing."""
    reader = MessageReader(Compression(), 100)
    for first in firsts[:-1]:
        reader.begin(first)
    with pytest.raises(RemoteProtocolError) as caught:
        reader.begin(firsts[-1])
    assert str(caught.value) == message


def test_compression_that_was_not_agreed_on() -> None:
    """RSV1 means nothing then."""
    with pytest.raises(RemoteProtocolError, match="not agreed on"):
        MessageReader(None, 100).begin(COMPRESSED_TEXT)


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\xf2\x00\x11\x00\x00" * 2])
def test_compression_that_is_broken(payload: bytes) -> None:
    """Or that refers to what was never sent."""
    with pytest.raises(RemoteProtocolError) as caught:
        whole(MessageReader(Compression(), 100), COMPRESSED_TEXT, payload)
    assert str(caught.value) == "a WebSocket message that cannot be decompressed"


def test_many_deflate_streams() -> None:
    """Each costs the making of a decompressor: there is a bound."""
    reader = MessageReader(Compression(), 100)
    assert whole(reader, COMPRESSED_TEXT, b"\x03\x00" * (FINAL_BLOCKS - 1) + b"\0") == b""
    with pytest.raises(RemoteProtocolError, match="too many deflate streams"):
        whole(reader, COMPRESSED_TEXT, b"\x03\x00" * FINAL_BLOCKS + b"\0")


@pytest.mark.parametrize("first", [FIN | TEXT, COMPRESSED_TEXT])
@pytest.mark.parametrize(("size", "over"), [(99, False), (100, False), (101, True), (5000, True)])
def test_a_message_is_kept_up_to_the_limit(first: int, size: int, over: bool) -> None:
    """And the reader says whether that is all; the next one begins anew."""
    for takeover in (True, False):
        reader = MessageReader(Compression(takeover), 100)
        content = bytes(size)
        payload = packed(content) if first & RSV1 else content
        assert whole(reader, first, payload) == content[:100]
        assert reader.over == over
        assert whole(reader, FIN | TEXT, b"next") == b"next"
        assert not reader.over
        blind = over and takeover and first & RSV1
        assert whole(reader, COMPRESSED_TEXT, HELLO) == (b"" if blind else b"Hello")
        assert reader.over == bool(blind)


def test_a_bomb_is_not_decompressed_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit and one octet, however it comes in pieces."""
    taken = 0
    make = zlib.decompressobj

    class Counting:
        """Counts what a decompressor gives."""

        def __init__(self, bits: int) -> None:
            self.below = make(bits)

        def __getattr__(self, name: str) -> object:
            return getattr(self.below, name)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal taken
            out = self.below.decompress(data, most)
            taken += len(out)
            return out

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    bomb = packed(bytes(10_000_000))
    reader = MessageReader(Compression(), 1000)
    reader.begin(COMPRESSED_TEXT)
    for at in range(0, len(bomb), 100):
        reader.add(bomb[at : at + 100])
    assert reader.over
    assert len(reader.end()) == 1000
    assert taken == 1001


@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans(), st.integers(9, 15))
def test_what_is_compressed_again_can_be_read(contents: list[bytes], takeover: bool, bits: int) -> None:
    """By a receiver that has had other messages before, with a window as small as was agreed on, empty ones too."""
    before = packed(b"something else that the receiver has got, Hello")
    deflater = Deflater(Compression(takeover, bits))
    inflater = zlib.decompressobj(-bits)
    inflater.decompress(before + TAIL)
    for content in contents:
        payload = deflater.compress(content)
        assert payload is not None
        assert not payload.endswith(TAIL) or not content
        if not takeover:
            inflater = zlib.decompressobj(-bits)
        assert inflater.decompress(payload + TAIL) == content


def test_a_small_window_is_kept_to() -> None:
    """References never go further back than it."""
    block = bytes(range(256)) * 2
    far = block + bytes(600) + block
    for bits in (9, 15):
        payload = Deflater(Compression(True, bits)).compress(far)
        assert payload is not None
        assert zlib.decompressobj(-bits).decompress(payload + TAIL) == far


def test_messages_that_are_not_compressed_again() -> None:
    """A window of 8 bits, which zlib does not have, and long messages; RFC 7692 allows both."""
    assert Deflater(Compression(True, 8)).compress(b"a") is None
    assert Deflater(Compression()).compress(bytes(COMPRESSED + 1)) is None
    assert Deflater(Compression()).compress(bytes(COMPRESSED)) is not None


def test_whether_messages_differ() -> None:
    """Only what may be referred to matters."""
    for takeover in (True, False):
        deflater = Deflater(Compression(takeover))
        assert not deflater.differs
        deflater.note_change()
        assert deflater.differs == takeover
    assert not Deflater(None).compression.takeover
