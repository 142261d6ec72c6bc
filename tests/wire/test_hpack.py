"""HPACK: the RFC's examples, another implementation as the oracle, both directions' tables, and hostile blocks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import hpack
import pytest
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import H2Error, H2StreamError
from tabi.wire.hpack import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FIRST,
    MAX_HUFFMAN,
    MAX_MALFORMED,
    MAX_TABLE_SIZE,
    PROTOCOL_ERROR,
    STATIC,
    Decoder,
    Encoder,
    Field,
    NeverIndexed,
    NotIndexed,
    size_of,
    write_integer,
)

VECTORS = [
    path for folder in Path(__file__).resolve().parents for path in sorted(folder.glob("shared/data/hpack/*/*.json"))
]
"""Stories of other implementations, where they lie beside the checkout: they are not part of the project."""

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
REQUESTS: list[list[Field]] = [
    GET,
    [*GET, (b"cache-control", b"no-cache")],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ],
]
PLAIN = [
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
]
CODED = [
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
]
RESPONSES: list[list[Field]] = [
    [
        (b":status", b"302"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        (b"location", b"https://www.example.com"),
    ],
    [
        (b":status", b"307"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        (b"location", b"https://www.example.com"),
    ],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
        (b"location", b"https://www.example.com"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]
CODED_RESPONSES = """
488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3
4883640effc1c0bf
88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f-
3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007
""".replace("-\n", "").split()
"""RFC 7541, appendix C.3, C.4 and C.6."""


def plain(fields: list[Field]) -> list[Field]:
    """The fields without how they were sent."""
    return [(field[0], field[1]) for field in fields]


def oracle_fields(found: Any) -> list[Field]:
    """The same of what the other implementation has decoded."""
    return [(bytes(name), bytes(value)) for name, value in found]


def dynamic(decoder: Decoder) -> list[Field]:
    """What is in its dynamic table, newest first."""
    return decoder.table[FIRST + 1 + len(STATIC) :]


def literal(name: bytes, value: bytes, first: int = 0x40) -> bytes:
    """A literal with a new name, without Huffman."""
    block = bytearray((first,))
    for text in (name, value):
        write_integer(block, 0, 127, len(text))
        block += text
    return bytes(block)


def refused(decoder: Decoder, block: bytes) -> int:
    """The error code that a block gives."""
    with pytest.raises(H2Error) as caught:
        decoder.decode(block)
    assert not isinstance(caught.value, H2StreamError)
    return caught.value.code


# --- the RFC, others ---


def test_static_table_is_that_of_the_rfc() -> None:
    """Appendix A, as another implementation has it."""
    assert oracle_fields(HeaderTable.STATIC_TABLE) == STATIC


@pytest.mark.parametrize("blocks", [PLAIN, CODED])
def test_requests_of_the_rfc_are_decoded(blocks: list[str]) -> None:
    """Appendix C.3 and C.4: one connection, whose table grows."""
    decoder = Decoder()
    assert [decoder.decode(bytes.fromhex(block)) for block in blocks] == REQUESTS
    assert decoder.size == 164


def test_requests_are_encoded_as_the_rfc_does() -> None:
    """Octet for octet."""
    encoder = Encoder()
    assert [encoder.encode(fields).hex() for fields in REQUESTS] == CODED


def test_responses_of_the_rfc_evict() -> None:
    """Appendix C.6: a table of 256 octets, both ways."""
    decoder, encoder = Decoder(), Encoder()
    decoder.limit = decoder.allowed = decoder.least = encoder.limit = 256
    assert [decoder.decode(bytes.fromhex(block)) for block in CODED_RESPONSES] == RESPONSES
    blocks = [encoder.encode(fields).hex() for fields in RESPONSES]
    coded_307, plain_307 = "83640eff", "03333037"  # Huffman's code saves nothing there
    assert [block.replace(plain_307, coded_307) for block in blocks] == CODED_RESPONSES
    assert decoder.size == encoder.size == 215
    assert list(reversed(encoder.order)) == dynamic(decoder)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_stories_of_others(path: Path) -> None:
    """What five other encoders wrote is decoded, and what we make of it they would decode."""
    decoder, encoder, other = Decoder(), Encoder(), hpack.Decoder()
    for case in json.loads(path.read_text())["cases"]:
        if case.get("header_table_size") is not None:
            decoder.allow(case["header_table_size"])
            encoder.allow(case["header_table_size"])
            other.max_allowed_table_size = case["header_table_size"]
        expected = [(name.encode(), value.encode()) for field in case["headers"] for name, value in field.items()]
        found = decoder.decode(bytes.fromhex(case["wire"]))
        assert plain(found) == expected
        assert oracle_fields(other.decode(encoder.encode(found), raw=True)) == expected


names = st.sampled_from([b"a", b"cookie", b"x-name", b":path", b"etag"]) | st.from_regex(
    rb"[a-z0-9-]{1,20}", fullmatch=True
)
values = st.sampled_from([b"", b"1", b"gzip, deflate", b"x" * 200]) | st.binary(max_size=60).map(
    lambda value: value.translate(None, b"\0\r\n")
)
fields_of = st.lists(st.tuples(names, values, st.sampled_from([tuple, NotIndexed, NeverIndexed])), max_size=12)
sizes = st.none() | st.integers(0, 300) | st.sampled_from([4096, 5000])


@given(st.lists(st.tuples(fields_of, sizes, sizes), max_size=8))
def test_the_oracle_decodes_what_we_encode(blocks: list[tuple[list[Any], int | None, int | None]]) -> None:
    """With tables of sizes that change, twice between two blocks too; our decoder does as well, types and all."""
    encoder, decoder, other = Encoder(), Decoder(), hpack.Decoder()
    for triples, *changes in blocks:
        for size in changes:
            if size is not None:
                encoder.allow(size)
                decoder.allow(size)
                other.max_allowed_table_size = size
        fields: list[Any] = [kind((name, value)) for name, value, kind in triples]
        block = encoder.encode(fields)
        assert oracle_fields(other.decode(block, raw=True)) == plain(fields)
        found = decoder.decode(block)
        assert plain(found) == plain(fields)
        never = [isinstance(field, NeverIndexed) for field in fields]
        assert [isinstance(field, NeverIndexed) for field in found] == never
        assert list(reversed(encoder.order)) == dynamic(decoder)
        assert encoder.size == decoder.size == sum(map(size_of, encoder.order)) <= encoder.limit
        assert set(encoder.places) == {*encoder.order, *STATIC}
        assert set(encoder.names) == {field[0] for field in encoder.places}


@given(st.lists(st.tuples(fields_of, sizes, st.booleans()), max_size=8))
def test_we_decode_what_the_oracle_encodes(blocks: list[tuple[list[Any], int | None, bool]]) -> None:
    """With and without Huffman, sensitive or not: that one sends a sensitive field by its index if it has one."""
    decoder, other = Decoder(), hpack.Encoder()
    for triples, size, huffman in blocks:
        if size is not None:
            decoder.allow(size)
            other.header_table_size = size
        fields = [(name, value, kind is NeverIndexed) for name, value, kind in triples]
        found = decoder.decode(other.encode(fields, huffman=huffman))
        assert plain(found) == [(name, value) for name, value, _ in fields]
        assert all(never for field, (*_, never) in zip(found, fields, strict=True) if type(field) is NeverIndexed)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_octets_are_fields_or_an_error(blocks: list[bytes]) -> None:
    """Nothing else is raised, and the table keeps its bound."""
    decoder = Decoder(max_fields=20, max_list_size=1000)
    for block in blocks:
        try:
            found = decoder.decode(block)
        except H2StreamError:
            continue
        except H2Error:
            return
        assert len(found) <= 20
        assert sum(map(size_of, found)) <= 1000
        assert decoder.size == sum(map(size_of, dynamic(decoder))) <= decoder.limit


# --- how a field is sent on ---


def test_never_indexed_stays_never_indexed() -> None:
    """Also where the same field without that is in the table already, and where its name is."""
    encoder, decoder = Encoder(), Decoder()
    secret = NeverIndexed((b"authorization", b"secret"))
    encoder.encode([(b"authorization", b"secret")])
    decoder.decode(Encoder().encode([(b"authorization", b"secret")]))
    block = encoder.encode([secret])
    assert block[0] & 0xF0 == 0x10
    (found,) = decoder.decode(block)
    assert type(found) is NeverIndexed
    assert Encoder().encode([found])[0] & 0xF0 == 0x10


def test_types_of_fields_compare() -> None:
    """A field that is never indexed is found by no look-up of the other types; one that was not indexed is."""
    field = (b"a", b"b")
    assert NeverIndexed(field) == NeverIndexed(field)
    assert NeverIndexed(field) != field
    assert field != NeverIndexed(field)
    assert len({field, NotIndexed(field), NeverIndexed(field), NeverIndexed(field)}) == 2


def test_what_was_not_indexed_is_not() -> None:
    """So that our table holds what the sender thought worth it; but a field that it has is sent by its index."""
    encoder = Encoder()
    for _ in range(2):
        block = encoder.encode([NotIndexed((b":path", b"/a?1"))])
        assert block[0] == 0x04
        assert not encoder.order
    assert encoder.encode([NotIndexed((b":path", b"/"))]) == b"\x84"


def test_a_field_larger_than_the_table_does_not_empty_it() -> None:
    """It is sent without being indexed."""
    encoder = Encoder()
    encoder.encode([(b"a", b"b")])
    block = encoder.encode([(b"cookie", b"x" * 5000)])
    assert block[0] == 0x0F
    assert len(encoder.order) == 1
    (found,) = Decoder().decode(block)
    assert found == (b"cookie", b"x" * 5000)


def test_a_field_larger_than_the_table_empties_a_decoders() -> None:
    """Where the other encoder indexes it (section 4.4)."""
    decoder = Decoder()
    decoder.decode(literal(b"a", b"b"))
    decoder.decode(literal(b"c", b"x" * 5000))
    assert dynamic(decoder) == []
    assert decoder.size == 0


def test_long_strings_are_sent_as_they_are() -> None:
    """Huffman's code would cost more time than the octets do."""
    text = b"e" * (MAX_HUFFMAN + 1)
    assert text in Encoder().encode([(b"a", text)])
    assert text[1:] not in Encoder().encode([(b"a", text[1:])])


def test_indexes_beyond_one_octet() -> None:
    """A table with more than 64 entries has indexes of two octets, both ways."""
    encoder, decoder = Encoder(), Decoder()
    fields: list[Field] = [(b"n%d" % number, b"") for number in range(100)]
    decoder.decode(encoder.encode(fields))
    block = encoder.encode(fields)
    assert len(block) > 100
    assert decoder.decode(block) == fields


# --- sizes of tables ---


def test_an_encoder_tells_the_smallest_size_and_the_last() -> None:
    """Section 4.2: both ends must have emptied their tables as far."""
    encoder = Encoder()
    encoder.encode([(b"a", b"b")])
    encoder.allow(4096)
    assert encoder.encode([]) == b""
    encoder.allow(0)
    encoder.allow(4096)
    assert not encoder.order
    assert encoder.encode([]) == bytes.fromhex("20 3fe11f")
    encoder.allow(100)
    encoder.allow(50)
    assert encoder.encode([(b":method", b"GET")]) == bytes.fromhex("3f13 82")
    encoder.allow(1 << 20)
    assert encoder.limit == MAX_TABLE_SIZE


def test_a_decoder_wants_an_update_after_a_smaller_size() -> None:
    """Of an encoder that was told to use less and does not say so nobody knows what its table holds."""
    decoder = Decoder()
    decoder.allow(100)
    assert refused(decoder, b"\x82") == COMPRESSION_ERROR
    decoder = Decoder()
    decoder.allow(100)
    decoder.allow(4096)
    assert refused(decoder, bytes.fromhex("3fe11f 82")) == COMPRESSION_ERROR  # 4096, but not 100 before
    decoder = Decoder()
    decoder.decode(literal(b"a", b"b" * 100))
    decoder.allow(100)
    assert decoder.decode(bytes.fromhex("3f45 82")) == [(b":method", b"GET")]
    assert dynamic(decoder) == []
    assert decoder.decode(b"\x82") == [(b":method", b"GET")]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "index 0"),
        ("be", "an index beyond the table"),
        ("ff00", "the same, in two octets"),
        ("82be", "the same, behind a good one"),
        ("40be", "a string that ends early"),
        ("4001", "the same"),
        ("40", "a literal without strings"),
        ("7f", "an integer that ends early"),
        ("ffffffffffffff7f", "an integer that is too long"),
        ("7e0161", "the name of an index beyond the table"),
        ("8220", "an update that is not at the beginning"),
        ("3fe21f", "a table larger than we allow"),
        ("202020", "three updates"),
        ("3f", "an update that ends early"),
        ("400161811f01", "a string of EOS"),
    ],
)
def test_broken_blocks(block: str, why: str) -> None:
    """Each is a connection error of type COMPRESSION_ERROR (RFC 9113 section 4.3)."""
    octets = bytes.fromhex(block)
    if why == "a string of EOS":
        octets = b"\x40\x01a\x84\xff\xff\xff\xff"
    assert refused(Decoder(), octets) == COMPRESSION_ERROR


# --- bombs ---


def test_a_field_that_is_repeated_is_bounded() -> None:
    """An HPACK bomb: a large field in the table, and a block that names it again and again, an octet each."""
    decoder = Decoder()
    decoder.decode(literal(b"a", b"x" * 4000))
    assert refused(decoder, b"\xbe" * 40) == ENHANCE_YOUR_CALM
    decoder = Decoder()
    decoder.decode(literal(b"a", b"x" * 4000))
    assert len(decoder.decode(b"\xbe" * 20)) == 20
    assert len(decoder.decode(b"\xbe" + b"\x82" * 100)) == 101  # counted, and within the bound


def test_the_number_of_fields_is_bounded() -> None:
    """Of short indexes, and of literals."""
    decoder = Decoder()
    assert len(decoder.decode(b"\x82" * 1000)) == 1000
    assert refused(decoder, b"\x82" * 1001) == ENHANCE_YOUR_CALM
    assert refused(Decoder(), literal(b"a", b"") * 1001) == ENHANCE_YOUR_CALM


def test_a_block_is_bounded() -> None:
    """Before anything is decoded."""
    assert refused(Decoder(max_block_size=100), b"\x82" * 101) == ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "block",
    [
        b"\x82" * 65536,
        literal(b"a", b"") * 16384,
        b"\x40\x01a\xff\x81\xfe\x03" + b"\0" * 65400,
        bytes.fromhex("3fe11f") * 20000,
        literal(b"n", b"v" * 4000) + b"\xbe\x7e\x00" * 20000,
    ],
)
def test_the_worst_block_costs_little(block: bytes) -> None:
    """Whatever a block holds, its time is that of its octets, not of what they stand for."""
    decoder = Decoder()
    begin = time.thread_time()
    try:
        decoder.decode(block[:65536])
    except H2Error:
        pass
    assert time.thread_time() - begin < 0.1


# --- malformed fields ---


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"A", b""), (b"", b""), (b"a b", b""), (b":other", b""), (b"a\n", b""), (b"a", b"\r\n"), (b"a", b"\0")],
)
@pytest.mark.parametrize("first", [0x40, 0x00, 0x10])
def test_malformed_fields_end_their_stream_alone(name: bytes, value: bytes, first: int) -> None:
    """The tables of both ends stay equal, and the field is malformed again where it comes from the table."""
    decoder = Decoder()
    for block in [literal(name, value, first), *([b"\xbe"] if first == 0x40 else [])]:
        with pytest.raises(H2StreamError) as caught:
            decoder.decode(block)
        assert caught.value.code == PROTOCOL_ERROR
    assert decoder.decode(b"\x82") == [(b":method", b"GET")]


def test_many_malformed_fields_end_the_connection() -> None:
    """They are remembered, so that there is a bound."""
    decoder = Decoder()
    for number in range(MAX_MALFORMED):
        with pytest.raises(H2StreamError):
            decoder.decode(literal(b"A%d" % number, b""))
    assert refused(decoder, literal(b"B", b"")) == PROTOCOL_ERROR
