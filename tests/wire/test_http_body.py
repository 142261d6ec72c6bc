"""Chunked bodies: where they end, what their content is, and what is refused, however the octets arrive."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tabi.errors import RemoteProtocolError
from tabi.wire.http_body import MAX_CHUNK_LINE, MAX_TRAILERS, NOT_IN_TRAILERS, SIZE, Chunked

NEXT = b"GET http://b.example/ HTTP/1.1\r\n\r\n"
"""What follows a body: it is never looked at."""


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same octets whole, octet by octet, and cut in two here and there."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data), max(1, len(data) // 50)):
        yield [data[:at], data[at:]]


def scan(pieces: Iterable[bytes], view: bool = False) -> tuple[int, bytes, bool] | None:
    """Octets of the body, its content, and whether it has ended; None where it is refused."""
    chunked, octets, payload = Chunked(), 0, b""
    for piece in pieces:
        slices: list[memoryview] = []
        try:
            taken = chunked.scan(memoryview(piece) if view else piece, slices)
        except RemoteProtocolError:
            return None
        assert taken == len(piece) or chunked.done
        assert len(chunked.line) < MAX_TRAILERS
        octets += taken
        payload += b"".join(slices)
    return octets, payload, chunked.done


def send_on(pieces: Iterable[bytes], steps: int = sys.maxsize) -> bytes | None:
    """What a proxy sends on of the body, read in so many steps a time; None where it is refused."""
    chunked, sent = Chunked(), b""
    for piece in pieces:
        while piece and not chunked.done:
            onward: list[memoryview | bytes] = []
            try:
                taken = chunked.scan(piece, None, onward, steps)
            except RemoteProtocolError:
                return None
            assert taken
            sent += b"".join(onward)
            piece = piece[taken:]
    return sent


def outcome(data: bytes) -> tuple[int, bytes, bool] | None:
    """The same, which no cut may change, nor the kind of buffer."""
    expected = scan([data])
    onward = send_on([data])
    assert (onward is None) == (expected is None)
    for pieces in cuts(data):
        assert scan(pieces) == scan(pieces, view=True) == expected
        again = send_on(pieces)
        # Half a line waits for the other half.
        assert again == onward if onward is None or expected is None or expected[2] else again is not None
    assert send_on([data], 1) == send_on([data], 2) == onward
    if onward is not None and expected is not None and expected[2]:
        assert scan([onward]) == (len(onward), expected[1], True)
        assert send_on([onward]) == onward
    return expected


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b"000000000000005\r\nhello\r\n000000000000000\r\n\r\n", b"hello"),
        (b"7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n\r\n"),
        (b"2;a=b\r\nok\r\n0;last\r\n\r\n", b"ok"),
        (b'2; a="x;\\"y"\t;\xfc\r\nok\r\n0\r\n\r\n', b"ok"),
        (b"2;\r\nok\r\n0\r\n\r\n", b"ok"),
        (b"2 \r\nok\r\n0\t \r\n\r\n", b"ok"),
        (b"2 ;a=b\r\nok\r\n0;\r\n\r\n", b"ok"),
        (
            b"1\r\n\n\r\n02\r\nok\r\nE\r\n" + b"\r\n" * 7 + b"\r\nf\r\n" + b"0" * 15 + b"\r\n0\r\n\r\n",
            b"\nok" + b"\r\n" * 7 + b"0" * 15,
        ),
        (b"0\r\nX-Sum: abc\r\nY:\r\n\r\n", b""),
        (b"2;" + b"x" * (MAX_CHUNK_LINE - 4) + b"\r\nok\r\n0\r\n\r\n", b"ok"),
        (b"0\r\n" + (b"X: " + b"y" * 123 + b"\r\n") * (MAX_TRAILERS // 128 - 1) + b"\r\n", b""),
    ],
)
def test_bodies(data: bytes, payload: bytes) -> None:
    """The content and the end; the next message is left alone; without the last octet there is no end."""
    assert outcome(data + NEXT) == (len(data), payload, True)
    found = outcome(data[:-1])
    assert found is not None
    assert found == (len(data) - 1, payload, False)


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"2 \r\nok\r\n0\t\t\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"),
        (b"2 ;a=b\r\nok\r\n0 ; c\r\n\r\n", b"2;a=b\r\nok\r\n0; c\r\n\r\n"),
        (b"2;\r\nok\r\n0; ;\r\n\r\n", b"2\r\nok\r\n0\r\n\r\n"),
        (
            b"1\r\nx\r\n00F \r\n" + b"y" * 15 + b"\r\n0\r\nX: y \r\n\r\n",
            b"1\r\nx\r\n00F\r\n" + b"y" * 15 + b"\r\n0\r\nX: y \r\n\r\n",
        ),
    ],
)
def test_what_goes_on(body: bytes, sent: bytes) -> None:
    """White space behind a size does not, nor a semicolon without an extension; all else does, as it came."""
    for pieces in cuts(body):
        assert send_on(pieces) == send_on(pieces, 1) == sent


def test_half_a_line_does_not_go_on() -> None:
    """What will become of it is known when all of it has come."""
    chunked = Chunked()
    for piece, expected in ((b"1\r\nx\r\n2 ", b"1\r\nx\r\n"), (b";a", b""), (b"\r\nok", b"2;a\r\nok")):
        onward: list[memoryview | bytes] = []
        assert chunked.scan(piece, None, onward) == len(piece)
        assert b"".join(onward) == expected


def test_small_chunks_are_one_step_and_others_as_many_as_they_are() -> None:
    """So that a caller knows how long a call takes, whatever the peer sends."""
    small = b"1\r\nx\r\n" * 10000
    assert Chunked().scan(small, steps=1) == len(small)
    for chunk in (b"1;a\r\nx\r\n", b"10\r\n" + b"x" * 16 + b"\r\n"):
        assert Chunked().scan(chunk * 10, steps=4) == 4 * len(chunk)
    chunked = Chunked()
    assert chunked.scan(b"1 \r\nx\r\n", steps=2) == 5  # a line and its content
    assert chunked.expects is not SIZE


def test_content_without_copies() -> None:
    """Slices of what was given, in the order of the octets; nobody has to take them."""
    data = bytearray(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")
    payload: list[memoryview] = []
    assert Chunked().scan(data, payload) == len(data)
    assert [bytes(part) for part in payload] == [b"hello", b"!"]
    assert all(part.obj is data for part in payload)
    assert Chunked().scan(data) == len(data)


def test_nothing_is_read_behind_the_end() -> None:
    """A body that is done takes no octet more."""
    chunked = Chunked()
    assert chunked.scan(b"0\r\n\r\n") == 5
    assert chunked.scan(NEXT) == 0
    assert chunked.scan(b"") == 0


def test_a_chunk_of_any_size() -> None:
    """15 digits are 60 bits, of which nothing is kept."""
    chunked = Chunked()
    assert chunked.scan(b"f" * 15 + b"\r\n" + b"x" * 1000) == 1017
    assert chunked.left == 2**60 - 1 - 1000
    assert not chunked.line


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"\n",
        b"5\nhello\r\n",
        b"5\rhello\r\n",
        b"5\r\r\nhello\r\n",
        b"+5\r\n",
        b"-5\r\n",
        b"0x5\r\n",
        b"5h\r\n",
        b"x\r\n",
        b" 5\r\n",
        b"1 0\r\n",
        b"5 a\r\n",
        b"5\x0b\r\n",
        b"5 \n",
        b"5 \r\r\n",
        b"1\r\nx\r\n1\r\nxy\r\n",
        b"1\r\nx\r\n1\r\nx\n\r\n",
        b"f\r\n" + b"x" * 16 + b"\r\n",
        b"0" * 15 + b"1\r\nx\r\n",
        b"1_0\r\n",
        b"5,5\r\n",
        b"5.\r\n",
        b'"5"\r\n',
        b"\xb2\r\n",
        b"0" * 15 + b"5\r\n",
        b"0" * 16 + b"\r\n",
        b"1" + b"0" * 15 + b"\r\n",
        b"f" * 16 + b"\r\n",
        b";a\r\n",
        b"5;a\0\r\n",
        b"5;a\x1b\r\n",
        b"5;a\x7f\r\n",
        b"5;a\nhello",
        b"5;a\rb\r\n",
        b'5;a="\r\n"\r\nhello\n',
        b"5\r\nhello5\r\n",
        b"5\r\nhello\n5\r\n",
        b"5\r\nhello\r5\r\n",
        b"5\r\nhello\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello\r\n\r\n",
        b"5\r\nhello\r\nGET",
        b"0\r\n\n",
        b"0\r\n\r\r\n",
        b"0\r\n \r\n",
        b"0\r\nX\r\n",
        b"0\r\n: x\r\n",
        b"0\r\nX : y\r\n",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX: y\rz\r\n",
        b"0\r\nX: \0\r\n",
        b"0\r\nX: y\r\n z\r\n",
        b"0\r\n X: y\r\n",
        b"0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        *[b"0\r\n" + name.title() + b": x\r\n" for name in sorted(NOT_IN_TRAILERS)],
        b"2;" + b"x" * (MAX_CHUNK_LINE - 3) + b"\r\n",
        b"2;" + b"x" * MAX_CHUNK_LINE,
        b"0" * MAX_CHUNK_LINE,
        b"0\r\nX: " + b"y" * MAX_TRAILERS,
        b"0\r\n" + b"X: y\r\n" * (MAX_TRAILERS // 6) + b"X: y\r\n",
    ],
)
def test_refused(data: bytes) -> None:
    """What another reader could take for another end, what belongs to the head, and what has no bound."""
    whole = data if data.endswith((b"\n", b"x", b"y", b"0")) else data + b"\n"
    assert outcome(whole) is None
    assert outcome(whole + NEXT) is None


def test_the_lines_that_matter_are_forbidden_in_trailers() -> None:
    """Framing and routing above all: whoever merges trailers into the head would believe them."""
    for name in (b"transfer-encoding", b"content-length", b"host", b"connection", b"authorization"):
        assert name in NOT_IN_TRAILERS


def test_errors_tell_no_secrets() -> None:
    """Neither trailers nor what stands where a size should, which may be content, are in a message."""
    for data in (
        b"0\r\nAuthorization: s3cret\r\n",
        b"0\r\ns3cret\r\n",
        b"0\r\nX: s3cret\0\r\n",
        b"s3cret\r\n",
        b"5;s3cret\n",
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            Chunked().scan(data)
        assert "s3cret" not in str(caught.value)


def test_the_bounds_hold_while_octets_come_one_by_one() -> None:
    """No line grows beyond its limit, of whatever kind it is; behind content two octets decide."""
    for start, limit, text in (
        (b"1;", MAX_CHUNK_LINE, "chunk size: no CRLF within 256 octets"),
        (b"1\r\n!", 2, "end of a chunk: no CRLF within 2 octets"),
        (b"0\r\nX: ", MAX_TRAILERS, "trailers: more than 8192 octets"),
    ):
        chunked = Chunked()
        chunked.scan(start)
        for _ in range(limit - len(chunked.line) - 1):
            assert chunked.scan(b"x") == 1
        with pytest.raises(RemoteProtocolError, match=text):
            chunked.scan(b"x")


def test_trailers_of_many_lines_say_how_many_octets_there_may_be() -> None:
    """Whichever line is the one too many."""
    with pytest.raises(RemoteProtocolError, match="trailers: more than 8192 octets"):
        Chunked().scan(b"0\r\n" + b"X: y\r\n" * (MAX_TRAILERS // 6 + 1))


extensions = st.sampled_from([b"", b";a", b";a=b", b';a="b"', b"; a = b", b" ", b" ;a", b";"])
trailers = st.lists(st.sampled_from([b"X: y\r\n", b"Digest:\r\n", b"a:\t\xff\r\n"]), max_size=3).map(b"".join)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), extensions), max_size=6), trailers)
def test_what_is_written_is_read(chunks: list[tuple[bytes, bytes]], tail: bytes) -> None:
    """Any content, in any cut."""
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(content), extension, content) for content, extension in chunks)
    data += b"0\r\n" + tail + b"\r\n"
    assert outcome(data + NEXT) == (len(data), b"".join(content for content, _ in chunks), True)


WORDS = (
    b"0",
    b"5",
    b"a",
    b"\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b";x",
    b" ",
    b"hello",
    b"5\r\nhello\r\n",
    b"1\r\nx\r\n",
    b"X: y\r\n",
    b"\0",
)
inventions = st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(WORDS), max_size=16).map(b"".join))


@given(inventions)
@example(b"5\r\nhello\r\n0\r\n\r\n\r\n")
def test_any_octets(data: bytes) -> None:
    """An end, no end yet or the error come of any octets, nothing else, and the same in every cut."""
    outcome(data)


@given(inventions, st.lists(st.integers(0, 60), max_size=5))
def test_any_cut(data: bytes, at: list[int]) -> None:
    """The same in several pieces, empty ones among them."""
    ends = [0, *sorted(at), max(len(data), 60)]
    assert scan([data[start:end] for start, end in pairwise(ends)]) == scan([data])
