"""Content that passes: what belongs to it and what is the next message's, however it comes."""

from __future__ import annotations

import pytest

from tabi.errors import RemoteProtocolError
from tabi.relay.http_content import NOTHING, STEPS, Counted, Endless, make_body, take, take_from
from tabi.wire.http import CHUNKED, UNTIL_CLOSE, Chunked

CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


def test_each_kind_of_content() -> None:
    """A length, chunks, or all until the end; of none there is one object for all."""
    assert make_body(0) is NOTHING
    assert NOTHING.done
    counted = make_body(5)
    assert isinstance(counted, Counted)
    assert (counted.left, counted.done) == (5, False)
    assert isinstance(make_body(CHUNKED), Chunked)
    endless = make_body(UNTIL_CLOSE)
    assert isinstance(endless, Endless)
    assert not endless.done


@pytest.mark.parametrize(
    ("announced", "content", "ends"), [(5, b"hello", True), (CHUNKED, CHUNKS, True), (UNTIL_CLOSE, b"hello", False)]
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_content_ends_where_it_says(announced: int, content: bytes, ends: bool, size: int) -> None:
    """In any pieces: what belongs to it is taken, what follows stays for the next message."""
    body, taken, rest = make_body(announced), b"", bytearray()
    sent = content + (b"GET" if ends else b"")
    for at in range(0, len(sent), size):
        piece = sent[at : at + size]
        if body.done:
            rest += piece
        else:
            taken += take_from(piece, rest, body)
    assert (taken, bytes(rest)) == (content, b"GET" if ends else b"")
    assert body.done is ends


@pytest.mark.parametrize("size", [1, 4, 100])
def test_chunks_are_taken_apart(size: int) -> None:
    """Only where that is asked for: what is left is the content alone."""
    body, taken, rest = make_body(CHUNKED), b"", bytearray()
    for at in range(0, len(CHUNKS), size):
        taken += take_from(CHUNKS[at : at + size], rest, body, content_only=True)
    assert (taken, bytes(rest), body.done) == (b"hello", b"", True)


@pytest.mark.parametrize("content_only", [False, True])
def test_what_takes_long_is_read_in_steps(content_only: bool) -> None:
    """What there was no time for is left, and comes next; small chunks that go on as they are take no time."""
    body, taken, steps = make_body(CHUNKED), b"", 0
    rest = bytearray(b"1 \r\nx\r\n" * STEPS + b"1\r\ny\r\n" * (3 * STEPS) + b"0\r\n\r\nGET")
    while not body.done:
        taken += take(rest, body, content_only)
        steps += 1
    content = b"x" * STEPS + b"y" * (3 * STEPS)
    sent = content if content_only else b"".join(b"1\r\n%c\r\n" % octet for octet in content) + b"0\r\n\r\n"
    assert (taken, bytes(rest)) == (sent, b"GET")
    assert steps >= 3


def test_a_buffer_is_taken_from() -> None:
    """An empty one gives nothing; what does not belong to the content stays in it."""
    body, buffer = make_body(5), bytearray()
    assert take(buffer, body) == b""
    buffer += b"helloGET"
    assert take(buffer, body) == b"hello"
    assert (bytes(buffer), body.done) == (b"GET", True)


def test_broken_chunks() -> None:
    """Are refused, wherever they come from."""
    with pytest.raises(RemoteProtocolError):
        take(bytearray(b"x\r\n"), make_body(CHUNKED))
    with pytest.raises(RemoteProtocolError):
        take_from(b"x\r\n", bytearray(), make_body(CHUNKED), content_only=True)
