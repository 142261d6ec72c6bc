"""What was really sent to a destination, read from the octets."""

from __future__ import annotations

import ssl

import pytest

from h2_ends import GET, Ends, Pass, block
from hellos import client_hello
from tabi.intercept.sent import MOST, Http2Sent, WatchedContext, WatchedRelay
from tabi.policy.limits import UP
from tabi.wire.client_hello import decode_client_hello
from tabi.wire.h2 import (
    CONTINUATION,
    HEADERS,
    PREFACE,
    PRIORITY,
    WINDOW_UPDATE,
    encode_frame,
    encode_settings,
    encode_window_update,
)
from tabi.wire.hpack import Encoder

BEGIN = PREFACE + encode_settings([(1, 65536), (0x1A1A, 7), (2, 0)])


def read(octets: bytes, piece: int = 1 << 20) -> Http2Sent:
    """What is known behind octets."""
    sent = Http2Sent()
    for at in range(0, len(octets), piece):
        if sent.over:
            break
        sent.feed(octets[at : at + piece])
    return sent


def padded_block() -> bytes:
    """HEADERS in two frames, with padding and a priority."""
    encoded = Encoder().encode(GET)
    first = b"\x03" + bytes(5) + encoded[:3] + bytes(3)
    return encode_frame(HEADERS, 0x28, 1, first) + encode_frame(CONTINUATION, 4, 1, encoded[3:])


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (BEGIN + block(1, GET), "1:65536;6682:7;2:0|00|0|m,s,a,p"),
        (BEGIN + encode_window_update(0, 15663105) + block(1, GET[::-1]), "1:65536;6682:7;2:0|15663105|0|p,a,s,m"),
        (BEGIN + encode_window_update(3, 5) + padded_block(), "1:65536;6682:7;2:0|00|0|m,s,a,p"),
        (
            BEGIN
            + encode_frame(PRIORITY, 0, 3, (0x80000000).to_bytes(4) + b"\xc8")
            + encode_frame(PRIORITY, 0, 5, (3).to_bytes(4) + b"\0")
            + block(7, GET),
            "1:65536;6682:7;2:0|00|3:1:0:201,5:0:3:1|m,s,a,p",
        ),
        (BEGIN + encode_settings([(3, 1)]) + encode_window_update(0, 1) + encode_window_update(0, 2) + block(1, GET),
         "1:65536;6682:7;2:0|1|0|m,s,a,p"),
        (PREFACE + encode_settings([]) + encode_frame(200, 0, 0, b"x") + block(1, GET), "|00|0|m,s,a,p"),
    ],
)  # fmt: skip
def test_how_a_connection_begins(octets: bytes, text: str, piece: int) -> None:
    """SETTINGS in their order, what is unknown too; the first window; priorities; the order of pseudo-header fields."""
    sent = read(octets + b"more", piece)
    assert (sent.text, sent.over) == (text, True)
    assert not sent.buffer


@pytest.mark.parametrize(
    "octets",
    [
        BEGIN + encode_frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        PREFACE + encode_settings([(2, 7)]),
        BEGIN + encode_frame(HEADERS, 0x0C, 1, b"\x09"),
    ],
)
def test_what_cannot_be_read_has_no_text(octets: bytes) -> None:
    """Nothing is claimed, and nothing more is read."""
    sent = read(octets)
    assert (sent.text, sent.over) == (None, True)


def test_a_connection_without_a_request_has_a_bound() -> None:
    """What is not a request is not kept for ever."""
    sent = read(BEGIN + encode_frame(WINDOW_UPDATE, 0, 1, bytes(3) + b"\1") * 20_000, 1000)
    assert (sent.text, sent.over) == (None, True)
    assert read(BEGIN + encode_frame(HEADERS, 0, 1, bytes(16384)) + bytes(MOST), 1 << 14).over


def test_a_relay_tells_it() -> None:
    """Once, when the first request has gone to the server; a relay that is not watched tells nothing."""
    told: list[str] = []
    watched = WatchedRelay(Pass())
    watched.watch(told.append)
    ends = Ends(client={3: 100}, relay=watched)
    for id in (1, 3):
        ends.client.connection.send_headers(id, GET, end_stream=True)
        ends.go()
    assert len(told) == 1
    assert told[0].endswith("|00|0|m,s,a,p")
    assert "3:100" in told[0]
    assert watched.sent is None
    quiet = Ends(relay=WatchedRelay(Pass()))
    quiet.client.connection.send_headers(1, GET, end_stream=True)
    quiet.go()
    assert quiet.server.heads


def test_a_relay_that_cannot_read_it_tells_nothing() -> None:
    """It relays all the same."""
    told: list[str] = []
    watched = WatchedRelay()
    watched.watch(told.append)
    assert watched.sent is not None
    watched.sent.stop()
    watched.up.feed(PREFACE + encode_settings([]))
    assert watched.take(UP)
    assert told == []
    assert watched.sent is None


def test_a_hello_is_kept_as_it_is_sent() -> None:
    """The handshake has begun then, and goes on as ever."""
    context = ssl.create_default_context()
    watched = WatchedContext(context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = watched.wrap_bio(incoming, outgoing, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    assert outgoing.read() == watched.sent
    hello, other = decode_client_hello(watched.sent), decode_client_hello(client_hello("a.example"))
    assert hello is not None
    assert other is not None
    assert hello.ja4 == other.ja4
