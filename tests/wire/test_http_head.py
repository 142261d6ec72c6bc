"""Heads that are read and changed; and that forwarding one so is forwarding it in one go."""

from __future__ import annotations

import pytest

from http_heads import BODY, CODING, GET, HOST, LENGTH, OK, POST, head
from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.http import (
    CHUNKED,
    HEAD_LIMIT,
    UNTIL_CLOSE,
    Fields,
    RequestHead,
    ResponseHead,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
    rewrite_request,
    rewrite_response,
)


def request(*fields: str, line: str = GET, proxied: bool = True) -> RequestHead:
    """Parse a request that has these fields."""
    data = head(line, *fields)
    found = parse_request(data + BODY, proxied=proxied)
    assert found is not None
    assert found[1] == len(data)
    return found[0]


def response(*fields: str, line: str = OK) -> ResponseHead:
    """Parse a response that has these fields."""
    data = head(line, *fields)
    found = parse_response(data + BODY)
    assert found is not None
    assert found[1] == len(data)
    return found[0]


def test_a_request_is_read() -> None:
    """Its line and all of its fields, as they were sent."""
    message = request(HOST, "X-A:1", "Cookie: \ts3cret ", line="GeT http://a.example:81/x?y HTTP/1.7")
    assert (message.method, message.target, message.minor) == ("GeT", "http://a.example:81/x?y", 7)
    assert list(message.fields) == [(b"Host", b"a.example"), (b"X-A", b"1"), (b"Cookie", b"s3cret")]
    assert "s3cret" not in repr(message)
    assert repr(message) == "RequestHead(GeT, Fields(Host, X-A, Cookie))"


def test_a_response_is_read() -> None:
    """Its line and all of its fields, as they were sent; the reason may be empty or missing."""
    message = response(LENGTH, "set-cookie: s3cret", line="HTTP/1.0 404 Not  Found \xfc")
    assert (message.status, message.reason, message.minor) == (404, b"Not  Found \xfc", 0)
    assert list(message.fields) == [(b"Content-Length", b"5"), (b"set-cookie", b"s3cret")]
    assert repr(message) == "ResponseHead(404, Fields(Content-Length, set-cookie))"
    for line in ("HTTP/1.1 200", "HTTP/1.1 200 "):
        assert response(line=line).encode() == b"HTTP/1.1 200 \r\n\r\n"


def test_what_is_not_changed_is_sent_as_it_came() -> None:
    """Octet for octet: case, order, white space, octets outside ASCII."""
    fields = ["X-A:1", "x-a: \t two  words\t ", "Empty:", "Bytes: \xfc\xff", "Transfer-Encoding: Chunked"]
    for data in (head("POST http://a.example HTTP/1.0", HOST, *fields), head("CONNECT a:1 HTTP/1.9", *fields)):
        found = parse_request(data)
        assert found is not None
        assert found[0].encode() == data
    data = head("HTTP/1.0 299 \xfc ", *fields)
    answer = parse_response(data)
    assert answer is not None
    assert answer[0].encode() == data


def test_a_request_is_changed() -> None:
    """What was changed is sent on, and what forwarding makes of it follows."""
    message = request(HOST, "Accept: */*", "Cookie: a", "X:  y")
    message.method, message.target = "PUT", "http://b.example:81/z"
    message.fields.set(b"accept", b"text/html")
    message.fields.remove(b"cookie")
    message.fields.add(b"Content-Length", b"3")
    changed = head("PUT http://b.example:81/z HTTP/1.1", HOST, "Accept: text/html", "X:  y", "Content-Length: 3")
    assert message.encode() == changed
    assert message.framing().body == 3
    rewritten = rewrite_request(message)
    assert str(rewritten.destination) == "b.example:81"
    assert encode_request(rewritten) == head(
        *("PUT /z HTTP/1.1", "Host: b.example:81", "Accept: text/html", "X:  y", "Content-Length: 3", "Via: 1.1 tabi")
    )


def test_a_response_is_changed() -> None:
    """As a request is."""
    message = response(CODING, "Server: x", "Date:  now")
    message.status, message.reason = 500, b"Oh"
    message.fields.remove(b"transfer-encoding")
    message.fields.set(b"server", b"y")
    assert message.encode() == head("HTTP/1.1 500 Oh", "Server: y", "Date:  now")
    assert message.framing("GET").body == UNTIL_CLOSE
    assert encode_response(rewrite_response(message, "GET"), True) == head(
        "HTTP/1.1 500 Oh", "Server: y", "Date:  now", "Via: 1.1 tabi", "Connection: close"
    )


@pytest.mark.parametrize(
    ("method", "target", "minor"),
    [
        ("G T", "http://a/", 1),
        ("", "http://a/", 1),
        ("GET\r\nX: y", "http://a/", 1),
        ("GET", "http://a/ b", 1),
        ("GET", "http://a/\r\nX: y", 1),
        ("G\xcbT", "http://a/", 1),
        ("GET", "http://a/\udc80\0", 1),
        ("GET", "", 1),
        ("GET", "http://a/", 10),
    ],
)
def test_a_request_line_that_cannot_be_sent(method: str, target: str, minor: int) -> None:
    """Who changes a line to what is not one is told so; nothing is sent."""
    message = RequestHead(method, target, Fields([(b"Host", b"a")]), minor)
    for write in (message.encode, lambda: rewrite_request(message)):
        with pytest.raises(ValueError, match="request line: expected"):
            write()


@pytest.mark.parametrize(
    ("status", "reason", "minor"), [(99, b"", 1), (1000, b"", 1), (200, b"a\r\nX: y", 1), (200, b"", 10)]
)
def test_a_status_line_that_cannot_be_sent(status: int, reason: bytes, minor: int) -> None:
    """As a request line."""
    message = ResponseHead(status, reason, Fields(), minor)
    for write in (message.encode, lambda: rewrite_response(message, "GET")):
        with pytest.raises(ValueError, match="status line: expected"):
            write()


def test_a_changed_target_is_checked() -> None:
    """What a proxy cannot be asked for it does not forward."""
    message = request(HOST)
    message.target = "ftp://a.example/"
    with pytest.raises(HttpError) as caught:
        rewrite_request(message)
    assert caught.value.status == 501


def test_a_target_beyond_ascii() -> None:
    """It is read as UTF-8, other octets as surrogates, and written as it came; sent on it is percent-encoded."""
    for octets, text in ((b"/\xc3\xbc", "/ü"), (b"/\xfc", "/\udcfc")):
        for line, proxied in ((b"GET http://a.example%b HTTP/1.1", True), (b"GET %b HTTP/1.1", False)):
            data = line % octets + f"\r\n{HOST}\r\n\r\n".encode()
            found = parse_request(data, proxied=proxied)
            assert found is not None
            assert found[0].target.endswith(text)
            assert found[0].encode() == data
    message = request(HOST)
    message.target = "http://a.example/ü"
    assert rewrite_request(message).path == "/%C3%BC"
    message.target = "http://a.example/\ud800"
    with pytest.raises(ValueError, match="surrogates"):
        message.encode()


def test_framing_of_requests() -> None:
    """As forwarding has it, and as the head is now."""
    message = request(HOST, CODING, "Expect: 100-continue", "Connection: X, close", line=POST)
    framing = message.framing()
    assert (framing.body, framing.keep_alive, framing.expects_continue) == (CHUNKED, False, True)
    assert framing.options == {b"x", b"close"}
    assert framing.upgrade is None
    message = request(HOST, "Connection: upgrade", "Upgrade: websocket")
    assert message.framing().upgrade == b"websocket"
    message.fields.add(b"Transfer-Encoding", b"chunked")
    message.fields.add(b"Content-Length", b"5")
    with pytest.raises(HttpError):
        message.framing()


def test_framing_of_responses() -> None:
    """It depends on what was asked, too."""
    message = response(LENGTH)
    assert [message.framing(method).body for method in ("GET", "HEAD", "CONNECT")] == [5, 0, 0]
    message.status = 100
    assert (message.framing("GET").body, message.framing("GET").interim) == (0, True)
    message = response("Connection: upgrade", "Upgrade: a/1", "upgrade: b", line="HTTP/1.1 101 x")
    assert (message.framing("GET").upgrade, message.framing("GET").interim) == (b"a/1, b", False)
    message = response(LENGTH, LENGTH)
    assert message.framing("GET").body == rewrite_response(message, "GET").body == 5
    message.fields.add(b"Content-Length", b"x")
    with pytest.raises(RemoteProtocolError):
        message.framing("GET")
    with pytest.raises(RemoteProtocolError):
        rewrite_response(message, "GET")


def test_a_request_as_an_origin_server_gets_it() -> None:
    """Only where the caller says that it is not a proxy that was asked."""
    for line in ("GET /x?y HTTP/1.1", "OPTIONS * HTTP/1.1", GET):
        message = request(HOST, line=line, proxied=False)
        assert message.encode() == head(line, HOST)
    for line in ("GET /x?y HTTP/1.1", "OPTIONS * HTTP/1.1"):
        for data in (head(line, HOST), head(line)[:-2]):
            with pytest.raises(HttpError):
                parse_request(data)
    assert parse_request(b"GET / HTTP/1.1\r\n", proxied=False) is None
    with pytest.raises(HttpError):
        parse_request(b"GET / HTTP/1.1 \r\n", proxied=False)


def test_heads_come_in_pieces() -> None:
    """None until the last octet is there; what was seen is not searched again; what is wrong is told at once."""
    for data, parse in ((head(GET, HOST), parse_request), (head(OK, LENGTH), parse_response)):
        for end in range(len(data)):
            assert parse(data[:end]) is None
            assert parse(data[:end], HEAD_LIMIT, max(end - 1, 0)) is None
        found = parse(bytearray(data + BODY), len(data))
        assert found is not None
        assert found[1] == len(data)
        with pytest.raises(RemoteProtocolError) as caught:
            parse(data, len(data) - 1)
        assert isinstance(caught.value, HttpError) is (parse is parse_request)
