"""Heads between clients and origin servers: octets that pass, and how they are framed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.http import decode_request, decode_response
from tabi.wire.http_framing import CHUNKED, UNTIL_CLOSE
from tabi.wire.http_head import parse_request, parse_response
from tabi.wire.http_origin import decode_origin_request, decode_origin_response

NAMES = [
    *("Host", "HOST", "Content-Length", "content-length", "Transfer-Encoding", "Connection", "Upgrade", "Expect"),
    *("X-A", "Cookie", "HTTP2-Settings"),
]
VALUES = [
    *(
        "",
        " a",
        "\t b \t",
        " 5",
        "5",
        " 007",
        " chunked",
        " Chunked",
        " close",
        " keep-alive",
        " Upgrade",
        " 100-continue",
    ),
    *(" upgrade, HTTP2-Settings", " websocket", " h2c", " h2c, websocket", " \xff", " 5, 5", " gzip"),
]
fields = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=6)
targets = st.sampled_from(["/", "/a?b", "*", "http://x/", "https://x", "a:1", "/\xff", "//"])
methods = st.sampled_from(["GET", "HEAD", "POST", "CONNECT", "OPTIONS", "TRACE", "BREW"])


def head_of(line: str, found: list[tuple[str, str]]) -> bytes:
    """A head of these parts."""
    return "".join([line, *(f"\r\n{name}:{value}" for name, value in found), "\r\n\r\n"]).encode("latin-1")


@given(methods, targets, st.sampled_from("01"), fields, st.binary(max_size=5), st.integers(0, 40))
def test_requests(method: str, target: str, minor: str, found: list[tuple[str, str]], rest: bytes, cut: int) -> None:
    """What is read is what came, framed as `http_head` frames it; what that refuses is refused. No octet behind a head
    is looked at, and none in it may be missing."""
    head = head_of(f"{method} {target} HTTP/1.{minor}", found)
    parsed = parse_request(head, proxied=False)
    assert parsed is not None
    try:
        framing = parsed[0].framing()
    except HttpError:
        with pytest.raises(HttpError):
            decode_origin_request(head)
        return
    hosts = parsed[0].fields.get_all(b"Host")
    if len(hosts) > 1:
        with pytest.raises(HttpError, match=r"^\d Host fields, expected 1$"):
            decode_origin_request(head)
        return
    decoded = decode_origin_request(bytearray(head + rest))
    assert decoded is not None
    request, end = decoded
    assert end == len(head)
    assert (request.method, request.minor) == (method, int(minor))
    assert request.target.encode("utf-8", "surrogateescape") == target.encode("latin-1")
    assert request.host == (hosts[0] if hosts else None)
    assert (request.body, request.keep_alive) == (framing.body, framing.keep_alive)
    assert (request.upgrade, request.expects_continue) == (framing.upgrade, framing.expects_continue)
    kept = parse_request(request.octets, proxied=False)
    assert kept is not None
    assert not [value for value in kept[0].fields.get_all(b"Upgrade") if b"h2c" in value]
    if not [value for value in parsed[0].fields.get_all(b"Upgrade") if b"h2c" in value]:
        assert request.octets == head
    assert request.octets.endswith(request.fields + b"\r\n\r\n")
    again = decode_origin_request(request.octets)
    assert again is not None
    assert (again[0].body, again[0].upgrade, again[0].octets) == (request.body, request.upgrade, request.octets)
    assert decode_origin_request(head[: min(cut, len(head) - 1)]) is None
    assert repr(request) == f"OriginRequest({method})"


@given(st.integers(100, 999), st.sampled_from(["", " ", " OK", " \xfc x"]), st.sampled_from("01"), fields, methods)
def test_responses(status: int, reason: str, minor: str, found: list[tuple[str, str]], method: str) -> None:
    """As requests."""
    head = head_of(f"HTTP/1.{minor} {status}{reason}", found)
    parsed = parse_response(head)
    assert parsed is not None
    try:
        framing = parsed[0].framing(method)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            decode_origin_response(head, method)
        return
    decoded = decode_origin_response(head + b"x", method)
    assert decoded is not None
    response, end = decoded
    assert (end, response.octets) == (len(head), head)
    assert (response.status, response.minor) == (status, int(minor))
    assert response.reason == reason[1:].encode("latin-1")
    assert (response.body, response.keep_alive, response.interim) == (framing.body, framing.keep_alive, framing.interim)
    assert response.upgrade == framing.upgrade
    assert decode_origin_response(head[:-1], method) is None
    assert repr(response) == f"OriginResponse({status})"


@given(fields, st.sampled_from(["GET", "POST"]))
def test_the_same_framing_as_of_a_forwarding_proxy(found: list[tuple[str, str]], method: str) -> None:
    """Both readers of this package find the same end of every message."""
    found = [("Host", " x"), *(field for field in found if field[0].lower() != "host")]
    proxied = head_of(f"{method} http://x/ HTTP/1.1", found)
    try:
        theirs = decode_request(proxied)
    except HttpError:
        with pytest.raises(HttpError):
            decode_origin_request(proxied)
    else:
        ours = decode_origin_request(proxied)
        assert ours is not None
        assert theirs is not None
        assert (ours[0].body, ours[0].keep_alive) == (theirs[0].body, theirs[0].keep_alive)
    answer = head_of("HTTP/1.1 200 OK", found)
    try:
        read = decode_response(answer, method)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            decode_origin_response(answer, method)
    else:
        here = decode_origin_response(answer, method)
        assert here is not None
        assert read is not None
        assert (here[0].body, here[0].keep_alive) == (read[0].body, read[0].keep_alive)


REQUESTS = {
    b"GET / HTTP/1.1\r\n\r\n": 0,
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n": 5,
    b"POST / HTTP/1.1\r\ntransfer-encoding: CHUNKED\r\n\r\n": CHUNKED,
}


@pytest.mark.parametrize("head", REQUESTS)
def test_content_of_requests(head: bytes) -> None:
    """Octets, or chunks."""
    decoded = decode_origin_request(head)
    assert decoded is not None
    assert decoded[0].body == REQUESTS[head]


def test_content_of_responses() -> None:
    """Octets, chunks, or up to the end; equal lengths stay as they are."""
    for head, body in (
        (b"HTTP/1.1 200 OK\r\n\r\n", UNTIL_CLOSE),
        (b"HTTP/1.1 204 OK\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 5),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", 5),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", 5),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKED),
    ):
        decoded = decode_origin_response(head, "GET")
        assert decoded is not None
        assert (decoded[0].body, decoded[0].octets) == (body, head)


@pytest.mark.parametrize("connection", [b"", b"\r\nConnection: keep-alive", b"\r\nConnection: close"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "CONNECT"])
@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 404 No", b"HTTP/1.1 204 No"])
@pytest.mark.parametrize("length", [b"0", b"17", b"0017"])
def test_usual_responses_are_read_as_all_others(connection: bytes, method: str, line: bytes, length: bytes) -> None:
    """A field more that says nothing has them read the long way: the result is the same."""
    found = []
    for more in (b"", b"\r\nUpgrade: x"):
        decoded = decode_origin_response(
            line + b"\r\nContent-Length: " + length + connection + more + b"\r\n\r\n", method
        )
        assert decoded is not None
        head = decoded[0]
        found.append((head.status, head.minor, head.body, head.keep_alive, head.upgrade, head.interim))
    assert found[0] == found[1]


def test_empty_lines() -> None:
    """Those in front of a request go no further; in front of a response they are only behind an interim one."""
    decoded = decode_origin_request(b"\r\n\r\nGET / HTTP/1.1\r\n\r\nx")
    assert decoded is not None
    assert (decoded[0].octets, decoded[1]) == (b"GET / HTTP/1.1\r\n\r\n", 22)
    with pytest.raises(RemoteProtocolError):
        decode_origin_response(b"\r\nHTTP/1.1 200 OK\r\n\r\n", "GET")
    found = decode_origin_response(b"\r\nHTTP/1.1 200 OK\r\n\r\n", "GET", after_interim=True)
    assert found is not None
    assert (found[0].octets, found[1]) == (b"HTTP/1.1 200 OK\r\n\r\n", 21)


def test_folded_responses_are_joined() -> None:
    """RFC 9112 sections 5.1 and 5.2."""
    found = decode_origin_response(b"HTTP/1.1 200 OK\r\nA : b\r\n c\r\n\r\n", "GET")
    assert found is not None
    assert (found[0].octets, found[1]) == (b"HTTP/1.1 200 OK\r\nA: b c\r\n\r\n", 30)


UPGRADES = {
    (b"Upgrade, HTTP2-Settings", b"h2c"): (None, None, None),
    (b"Upgrade, HTTP2-Settings", b"h2c, websocket"): (b"Upgrade", b"websocket", b"websocket"),
    (b"upgrade, close", b"H2C-14"): (b"close", None, None),
    (b"close", b"h2c"): (b"close", None, None),
}


@pytest.mark.parametrize("offered", UPGRADES)
def test_no_change_to_http2(offered: tuple[bytes, bytes]) -> None:
    """What hides all that follows is not offered to a destination; all else stays in its place."""
    connection, upgrade = offered
    head = b"GET / HTTP/1.1\r\nA:  b\r\nconnection: %b\r\nUpgrade: %b\r\nHTTP2-Settings: AA\r\nC: d\r\n\r\n" % (
        connection,
        upgrade,
    )
    decoded = decode_origin_request(head)
    assert decoded is not None
    request = decoded[0]
    left, protocols, asked = UPGRADES[offered]
    expected = b"GET / HTTP/1.1\r\nA:  b"
    expected += b"" if left is None else b"\r\nconnection: " + left
    expected += b"" if protocols is None else b"\r\nUpgrade: " + protocols
    assert request.octets == expected + b"\r\nC: d\r\n\r\n"
    assert request.upgrade == asked
