"""HTTP/1 as a forward proxy has it: what is read, what is written for the next one, and above all what is refused."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.address import MAX_NAME, Address, Host, parse_host
from tabi.wire.http import (
    CHUNKED,
    CONNECT_ESTABLISHED,
    EMPTY_LINES,
    FIELDS_LIMIT,
    HEAD_LIMIT,
    REWRITTEN,
    UNTIL_CLOSE,
    Chunked,
    Request,
    Response,
    decode_basic,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)

BODY = b"GET http://b.example/ HTTP/1.1\r\n\r\n\x00\xff"
"""What follows a head: it is never looked at."""

Decode = Callable[..., Any]


def from_server(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0, method: str = "GET") -> Any:
    """Decode a response to a GET, with the signature of `decode_request`."""
    return decode_response(data, method, limit, seen)


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same octets whole, octet by octet, and cut in two here and there."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data), max(1, len(data) // 20)):
        yield [data[:at], data[at:]]


def read(pieces: list[bytes], decode: Decode, limit: int, remember: bool) -> Any:
    """What comes of pieces: message and octets, None, or the error's type and status. ``remember`` uses ``seen``."""
    buffer = bytearray()
    try:
        for piece in pieces:
            seen = len(buffer) if remember else 0
            buffer += piece
            if (found := decode(buffer, limit=limit, seen=seen)) is not None:
                return found
    except RemoteProtocolError as exc:
        return type(exc), getattr(exc, "status", None)
    return None


def outcome(data: bytes, decode: Decode = decode_request, limit: int = HEAD_LIMIT) -> Any:
    """What comes of octets; it must be the same however they are cut, and whether or not they are searched twice."""
    expected = read([data], decode, limit, False)
    for pieces in cuts(data):
        for remember in (False, True):
            assert read(pieces, decode, limit, remember) == expected
    return expected


def head(line: str, *fields: str) -> bytes:
    """A head of a first line and fields, in latin-1."""
    return "".join(f"{text}\r\n" for text in (line, *fields, "")).encode("latin-1")


def request(*fields: str, line: str = "GET http://a.example/ HTTP/1.1") -> Request:
    """Decode a request that has a Host and these fields, however it is cut."""
    data = head(line, "Host: a.example", *fields)
    message, end = outcome(data + BODY)
    assert end == len(data)
    assert isinstance(message, Request)
    return message


def response(*fields: str, line: str = "HTTP/1.1 200 OK", method: str = "GET") -> Response:
    """Decode a response, however it is cut."""
    data = head(line, *fields)

    def decode(octets: bytearray, limit: int, seen: int) -> Any:
        return decode_response(octets, method, limit, seen)

    message, end = outcome(data + BODY, decode)
    assert end == len(data)
    assert isinstance(message, Response)
    return message


def lines(octets: bytes) -> list[str]:
    """The lines of a head, without the empty one."""
    assert octets.endswith(b"\r\n\r\n")
    return octets.decode("latin-1")[:-4].split("\r\n")


# --- requests ---


@pytest.mark.parametrize(
    ("method", "target", "host", "port", "path"),
    [
        ("GET", "http://a.example/", "a.example", 80, "/"),
        ("GET", "http://a.example", "a.example", 80, "/"),
        ("GET", "http://a.example?q=1", "a.example", 80, "/?q=1"),
        ("GET", "ws://a.example/chat", "a.example", 80, "/chat"),
        ("GET", "HTTP://A.example:8080/x/../y?q=%2f#"[:-1], "A.example", 8080, "/x/../y?q=%2f"),
        ("GET", "http://a.example:/x", "a.example", 80, "/x"),
        ("GET", "http://a_b.example./x@y:z", "a_b.example.", 80, "/x@y:z"),
        ("POST", "http://192.0.2.1:81/", IPv4Address("192.0.2.1"), 81, "/"),
        ("get", "http://[2001:db8::1]/", IPv6Address("2001:db8::1"), 80, "/"),
        ("M-SEARCH", "http://[::1]:8080?x", IPv6Address("::1"), 8080, "/?x"),
        ("OPTIONS", "http://a.example", "a.example", 80, "*"),
        ("OPTIONS", "http://a.example:81", "a.example", 81, "*"),
        ("OPTIONS", "http://a.example/", "a.example", 80, "/"),
        ("OPTIONS", "http://a.example?x", "a.example", 80, "/?x"),
        ("CONNECT", "a.example:443", "a.example", 443, ""),
        ("CONNECT", "192.0.2.1:0", IPv4Address("192.0.2.1"), 0, ""),
        ("CONNECT", "[::1]:65535", IPv6Address("::1"), 65535, ""),
        ("CONNECT", "a" * MAX_NAME + ":1", "a" * MAX_NAME, 1, ""),
    ],
)
def test_targets(method: str, target: str, host: Host, port: int, path: str) -> None:
    """Absolute-form for every method, authority-form for CONNECT: where to connect to, and what to ask for there."""
    message = request(line=f"{method} {target} HTTP/1.1")
    assert (message.method, message.target) == (method, target)
    assert message.destination == Address(host, port)
    assert message.path == path


def test_fields_are_kept_as_they_came() -> None:
    """Order, case, repetitions, empty values, inner white space and octets outside ASCII."""
    fields = ["X-A:1", "x-a: \t two  words\t ", "Empty:", "Blank:  ", "Bytes: \xfc\xff", "!#$%&'*+-.^_`|~9: :"]
    assert lines(encode_request(request(*fields)))[2:] == [*fields, "Via: 1.1 tabi"]
    assert lines(encode_response(response(*fields, LENGTH), True))[1:] == [*fields, LENGTH, "Via: 1.1 tabi"]


def test_octets_are_waited_for() -> None:
    """A head is None until its last octet is there, and what follows it stays where it is."""
    data = head("GET http://a.example/ HTTP/1.1", "Host: a.example")
    for end in range(len(data)):
        assert decode_request(data[:end]) is None
    for kind in (bytes, bytearray):
        found = decode_request(kind(data + BODY))
        assert found is not None
        assert found[1] == len(data)


@pytest.mark.parametrize("number", range(EMPTY_LINES + 1))
def test_empty_lines_in_front_are_ignored(number: int) -> None:
    """RFC 9112 section 2.2, a bounded number of them."""
    data = b"\r\n" * number + head("GET http://a.example/ HTTP/1.1", "Host: a.example")
    assert outcome(data)[1] == len(data)


def test_more_empty_lines_are_refused() -> None:
    """At the one that is too many, without a request behind it."""
    assert outcome(b"\r\n" * (EMPTY_LINES + 1)) == (HttpError, 400)
    assert outcome(b"\r\n" * EMPTY_LINES) is None


@pytest.mark.parametrize(
    ("version", "fields", "kept"),
    [
        (1, [], True),
        (1, ["Connection: keep-alive"], True),
        (1, ["Connection: close"], False),
        (1, ["Connection: CLOSE"], False),
        (1, ["Connection: foo,\tClose ,"], False),
        (1, ["Connection: foo", "connection: close"], False),
        (1, ["Connection: closed"], True),
        (1, ["Proxy-Connection: close"], False),
        (1, ["Proxy-Connection: keep-alive", "Connection: close"], False),
        (2, [], True),
        (9, ["Connection: close"], False),
        (0, [], False),
        (0, ["Connection: keep-alive"], True),
        (0, ["Connection: Keep-Alive"], True),
        (0, ["Proxy-Connection: Keep-Alive"], True),
        (0, ["Proxy-Connection: keep-alive", "Connection: close"], False),
    ],
)
def test_who_keeps_the_connection(version: int, fields: list[str], kept: bool) -> None:
    """HTTP/1.1 keeps it unless told, HTTP/1.0 closes it unless told; Proxy-Connection tells, too."""
    message = request(*fields, line=f"GET http://a.example/ HTTP/1.{version}")
    assert message.keep_alive is kept
    assert message.minor == min(version, 1)
    if version:
        answer = response(
            *[field for field in fields if not field.startswith("Proxy")],
            "Content-Length: 0",
            line=f"HTTP/1.{version} 200 OK",
        )
        assert answer.minor == 1
        assert answer.keep_alive is kept or any(field.startswith("Proxy") for field in fields)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([], 0),
        (["Content-Length: 0"], 0),
        (["content-length:\t5 "], 5),
        (["Content-Length: 005"], 5),
        (["Content-Length: " + "9" * 18], 10**18 - 1),
        (["Transfer-Encoding: chunked"], CHUNKED),
        (["transfer-encoding: CHUNKED"], CHUNKED),
    ],
)
def test_bodies_of_requests(fields: list[str], body: int) -> None:
    """RFC 9112 section 6.3; without either field there is none."""
    message = request(*fields, line="POST http://a.example/ HTTP/1.1")
    assert message.body == body
    written = lines(encode_request(message))
    assert [text for text in written if text.startswith(("Content-Length", "Transfer-Encoding"))] == {
        0: ["Content-Length: 0"] if fields else [],
        CHUNKED: ["Transfer-Encoding: chunked"],
    }.get(body, [f"Content-Length: {body}"])


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        ("POST http://a.example/ HTTP/1.1", ["Expect: 100-continue", "Content-Length: 1"], True),
        ("POST http://a.example/ HTTP/1.1", ["expect: 100-Continue", "Transfer-Encoding: chunked"], True),
        ("POST http://a.example/ HTTP/1.1", ["Expect: 100-continue"], False),
        ("POST http://a.example/ HTTP/1.1", ["Expect: other", "Content-Length: 1"], False),
        ("POST http://a.example/ HTTP/1.1", ["Content-Length: 1"], False),
        ("POST http://a.example/ HTTP/1.0", ["Expect: 100-continue", "Content-Length: 1"], False),
    ],
)
def test_expectations(line: str, fields: list[str], expected: bool) -> None:
    """Only a client of HTTP/1.1 with content waits for 100; HTTP/1.0's expectation is not passed on."""
    message = request(*fields, line=line)
    assert message.expects_continue is expected
    passed_on = [text for text in lines(encode_request(message)) if text.lower().startswith("expect")]
    assert bool(passed_on) == (message.minor == 1 and "xpect" in fields[0])


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        ("GET http://a.example/ HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket"], b"websocket"),
        ("GET http://a.example/ HTTP/1.1", ["Connection: a, upgrade", "Upgrade: a/1", "upgrade: b"], b"a/1, b"),
        ("GET http://a.example/ HTTP/1.1", ["Upgrade: websocket"], None),
        ("GET http://a.example/ HTTP/1.1", ["Connection: upgrade"], None),
        ("GET http://a.example/ HTTP/1.1", ["Connection: upgrade", "Upgrade:"], None),
        ("GET http://a.example/ HTTP/1.1", ["Connection: Upgrade", "Upgrade: w", "Content-Length: 1"], None),
        ("GET http://a.example/ HTTP/1.1", ["Connection: Upgrade", "Upgrade: w", "Transfer-Encoding: chunked"], None),
        ("GET http://a.example/ HTTP/1.0", ["Connection: Upgrade", "Upgrade: websocket"], None),
        ("CONNECT a.example:80 HTTP/1.1", ["Connection: Upgrade", "Upgrade: websocket"], None),
    ],
)
def test_upgrades(line: str, fields: list[str], expected: bytes | None) -> None:
    """Only what Connection names, in HTTP/1.1, without content: otherwise nobody could tell where it begins."""
    message = request(*fields, line=line)
    assert message.upgrade == expected
    if message.path:
        written = lines(encode_request(message))
        wanted = ["Connection: upgrade", f"Upgrade: {(expected or b'').decode()}"] if expected else []
        assert [text for text in written if text.lower().startswith(("connection", "upgrade"))] == wanted


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "GET"])
@pytest.mark.parametrize(("value", "left"), [("0", "0"), ("1", "0"), ("010", "9"), ("9" * 18, "9" * 17 + "8")])
def test_max_forwards(method: str, value: str, left: str) -> None:
    """RFC 9110 section 7.6.2: TRACE and OPTIONS count down and end at 0; of other methods it is a field like any."""
    message = request(f"Max-Forwards: {value}", line=f"{method} http://a.example/ HTTP/1.1")
    assert message.final_recipient == (method != "GET" and value == "0")
    assert message.max_forwards == (None if method == "GET" else int(value))
    assert f"Max-Forwards: {value if method == 'GET' else left}" in lines(encode_request(message))


def test_without_max_forwards_it_goes_on() -> None:
    """A TRACE without it ends at the destination."""
    assert not request(line="TRACE http://a.example/ HTTP/1.1").final_recipient


def test_secrets_are_not_in_the_repr() -> None:
    """A request in a log line tells no password, no cookie and no path."""
    message = request(
        "Proxy-Authorization: Basic secret", "Cookie: secret", line="GET http://a.example/secret HTTP/1.1"
    )
    assert message.authorization == b"Basic secret"
    assert repr(message) == "Request(GET a.example:80)"
    assert "secret" not in repr(message.__rich_repr__())


# --- what is refused in requests ---

GET = "GET http://a.example/ HTTP/1.1"
POST = "POST http://a.example/ HTTP/1.1"
HOST = "Host: a.example"
LENGTH = "Content-Length: 5"
CODING = "Transfer-Encoding: chunked"

REFUSED: list[tuple[str, bytes, int]] = [
    # framing
    ("two lengths", head(POST, HOST, LENGTH, "Content-Length: 6"), 400),
    ("two equal lengths", head(POST, HOST, LENGTH, LENGTH), 400),
    ("two lengths in other case", head(POST, HOST, LENGTH, "CONTENT-LENGTH: 5"), 400),
    ("a list of lengths", head(POST, HOST, "Content-Length: 5, 5"), 400),
    ("a list with an empty member", head(POST, HOST, "Content-Length: 5,"), 400),
    ("length and coding", head(POST, HOST, LENGTH, CODING), 400),
    ("coding and length", head(POST, HOST, CODING, LENGTH), 400),
    ("length 0 and coding", head(POST, HOST, "Content-Length: 0", CODING), 400),
    ("length with plus", head(POST, HOST, "Content-Length: +5"), 400),
    ("length with minus", head(POST, HOST, "Content-Length: -5"), 400),
    ("length with space", head(POST, HOST, "Content-Length: 5 5"), 400),
    ("length in hexadecimal", head(POST, HOST, "Content-Length: 0x5"), 400),
    ("length with underscore", head(POST, HOST, "Content-Length: 1_0"), 400),
    ("length with fraction", head(POST, HOST, "Content-Length: 5.0"), 400),
    ("length with exponent", head(POST, HOST, "Content-Length: 1e3"), 400),
    ("length in quotes", head(POST, HOST, 'Content-Length: "5"'), 400),
    ("length in superscript", head(POST, HOST, "Content-Length: \xb2"), 400),
    ("empty length", head(POST, HOST, "Content-Length:"), 400),
    ("length of 19 digits", head(POST, HOST, "Content-Length: " + "0" * 18 + "5"), 400),
    ("length beyond 64 bits", head(POST, HOST, "Content-Length: 18446744073709551621"), 400),
    ("two codings", head(POST, HOST, CODING, CODING), 400),
    ("coding and identity", head(POST, HOST, CODING, "Transfer-Encoding: identity"), 400),
    ("chunked twice", head(POST, HOST, "Transfer-Encoding: chunked, chunked"), 501),
    ("gzip, chunked", head(POST, HOST, "Transfer-Encoding: gzip, chunked"), 501),
    ("chunked, gzip", head(POST, HOST, "Transfer-Encoding: chunked, gzip"), 501),
    ("identity", head(POST, HOST, "Transfer-Encoding: identity"), 501),
    ("coding xchunked", head(POST, HOST, "Transfer-Encoding: xchunked"), 501),
    ("coding with parameter", head(POST, HOST, "Transfer-Encoding: chunked;q=1"), 501),
    ("coding in quotes", head(POST, HOST, 'Transfer-Encoding: "chunked"'), 501),
    ("coding with comma", head(POST, HOST, "Transfer-Encoding: chunked,"), 501),
    ("empty coding", head(POST, HOST, "Transfer-Encoding:"), 501),
    ("coding with NBSP", head(POST, HOST, "Transfer-Encoding: \xa0chunked"), 501),
    ("coding with VT", head(POST, HOST, "Transfer-Encoding: \vchunked"), 400),
    ("coding behind CR", head(POST, HOST, "Transfer-Encoding:\rchunked"), 400),
    ("coding behind LF", head(POST, HOST, "X: y\nTransfer-Encoding: chunked"), 400),
    ("coding in HTTP/1.0", head("POST http://a.example/ HTTP/1.0", HOST, CODING), 400),
    ("CONNECT with length", head("CONNECT a.example:443 HTTP/1.1", HOST, LENGTH), 400),
    ("CONNECT with coding", head("CONNECT a.example:443 HTTP/1.1", HOST, CODING), 400),
    ("TRACE with content", head("TRACE http://a.example/ HTTP/1.1", HOST, LENGTH), 400),
    # lines
    ("folded line", head(POST, HOST, "X: y", " z"), 400),
    ("folded line by tab", head(POST, HOST, "X: y", "\tz"), 400),
    ("folded coding", head(POST, HOST, "Transfer-Encoding:", " chunked"), 400),
    ("folded length", head(POST, HOST, "Content-Length: 1", " 0"), 400),
    ("folded blank", head(POST, HOST, "X: y", " "), 400),
    ("space before the first field", head(GET, " " + HOST), 400),
    ("tab before the first field", head(GET, "\tX: y", HOST), 400),
    ("space before the colon", head(POST, HOST, "Content-Length : 5"), 400),
    ("tab before the colon", head(POST, HOST, "Transfer-Encoding\t: chunked"), 400),
    ("space before Host's colon", head(GET, "Host : a.example"), 400),
    ("space within a name", head(POST, HOST, "Content Length: 5"), 400),
    ("no name", head(GET, HOST, ": y"), 400),
    ("no colon", head(GET, HOST, "X"), 400),
    ("name with NUL", head(POST, HOST, "Content-Length\0: 5"), 400),
    ("name in latin-1", head(POST, HOST, "Content-L\xebngth: 5"), 400),
    ("name in quotes", head(POST, HOST, '"Content-Length": 5'), 400),
    ("name with slash", head(GET, HOST, "X/Y: z"), 400),
    ("NUL in a value", head(GET, HOST, "X: a\0b"), 400),
    ("ESC in a value", head(GET, HOST, "X: \x1b[2J"), 400),
    ("DEL in a value", head(GET, HOST, "X: \x7f"), 400),
    ("CR in a value", head(GET, HOST, "X: a\rY: b"), 400),
    ("LF in a value", head(GET, HOST, "X: a\nContent-Length: 5"), 400),
    ("CR before CRLF", head(GET, HOST, "X: y\r"), 400),
    ("LF alone everywhere", b"GET http://a.example/ HTTP/1.1\nHost: a.example\n\n", 400),
    ("LF alone behind the request line", b"GET http://a.example/ HTTP/1.1\nHost: a.example\r\n\r\n", 400),
    ("LF alone at the end", b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\n", 400),
    ("LF CR LF at the end", b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\n\r\n\r\n", 400),
    ("CR alone at the end", b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\rGET", 400),
    ("LF first", b"\nGET http://a.example/ HTTP/1.1\r\n", 400),
    ("CR first", b"\rGET http://a.example/ HTTP/1.1\r\n", 400),
    # the request line
    ("two spaces", head("GET  http://a.example/ HTTP/1.1", HOST), 400),
    ("two spaces before the version", head("GET http://a.example/  HTTP/1.1", HOST), 400),
    ("space at the end", head(GET + " ", HOST), 400),
    ("space in front", head(" " + GET, HOST), 400),
    ("tab for a space", head("GET\thttp://a.example/ HTTP/1.1", HOST), 400),
    ("tab before the version", head("GET http://a.example/\tHTTP/1.1", HOST), 400),
    ("FF for a space", head("GET\fhttp://a.example/ HTTP/1.1", HOST), 400),
    ("CR at the end of the line", head(GET + "\r", HOST), 400),
    ("CR behind HTTP/0.9", b"GET /\r\r\n", 400),
    ("space in the target", head("GET http://a.example/a b HTTP/1.1", HOST), 400),
    ("a second version in the target", head("GET http://a.example/ HTTP/1.1 HTTP/1.1", HOST), 400),
    ("no target", head("GET HTTP/1.1", HOST), 400),
    ("method only", b"GET\r\n", 400),
    ("a space only", b" \r\n", 400),
    ("method no token", head("G(T http://a.example/ HTTP/1.1", HOST), 400),
    ("method with colon", head("Host: http://a.example/ HTTP/1.1", HOST), 400),
    ("method in latin-1", head("G\xcbT http://a.example/ HTTP/1.1", HOST), 400),
    ("NUL in the target", head("GET http://a.example/\0 HTTP/1.1", HOST), 400),
    ("DEL in the target", head("GET http://a.example/\x7f HTTP/1.1", HOST), 400),
    ("latin-1 in the target", head("GET http://a.example/\xfc HTTP/1.1", HOST), 400),
    ("UTF-8 in the host", head(GET).replace(b"a.ex", "ü.ex".encode()), 400),
    # versions
    ("HTTP/0.9", b"GET /\r\n", 505),
    ("HTTP/0.9 of a proxy", b"GET http://a.example/\r\n", 505),
    ("HTTP/0.8", head("GET http://a.example/ HTTP/0.8", HOST), 505),
    ("HTTP/2.0", head("GET http://a.example/ HTTP/2.0", HOST), 505),
    ("HTTP/2", head("GET http://a.example/ HTTP/2", HOST), 505),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("NUL and HTTP/2.0", head("GET http://a.example/\0 HTTP/2.0", HOST), 400),
    ("HTTP/1.10", head("GET http://a.example/ HTTP/1.10", HOST), 400),
    ("HTTP/01.1", head("GET http://a.example/ HTTP/01.1", HOST), 400),
    ("HTTP/1", head("GET http://a.example/ HTTP/1", HOST), 505),
    ("HTTP/1.", head("GET http://a.example/ HTTP/1.", HOST), 400),
    ("http/1.1", head("GET http://a.example/ http/1.1", HOST), 400),
    ("HTTP/+1.1", head("GET http://a.example/ HTTP/+1.1", HOST), 400),
    ("RTSP/1.0", head("GET http://a.example/ RTSP/1.0", HOST), 400),
    # Host
    ("no Host", head(GET), 400),
    ("two Hosts", head(GET, HOST, "Host: b.example"), 400),
    ("two equal Hosts", head(GET, HOST, HOST), 400),
    ("two Hosts in other case", head(GET, HOST, "hOST: b.example"), 400),
    ("two Hosts in HTTP/1.0", head("GET http://a.example/ HTTP/1.0", HOST, HOST), 400),
    ("CONNECT without Host", head("CONNECT a.example:443 HTTP/1.1"), 400),
    ("Host of two", head(GET, "Host: a.example, b.example"), 400),
    ("Host with user", head(GET, "Host: a.example@b.example"), 400),
    ("Host with path", head(GET, "Host: a.example/x"), 400),
    ("Host with scheme", head(GET, "Host: http://a.example"), 400),
    ("Host with space", head(GET, "Host: a.example b.example"), 400),
    ("Host with port no number", head(GET, "Host: a.example:x"), 400),
    ("Host with port too large", head(GET, "Host: a.example:65536"), 400),
    ("Host with two ports", head(GET, "Host: a.example:80:80"), 400),
    ("Host of port only", head(GET, "Host: :80"), 400),
    ("Host of IPv6 without brackets", head(GET, "Host: ::1"), 400),
    ("Host percent-encoded", head(GET, "Host: a%2eexample"), 400),
    ("Host in latin-1", head(GET, "Host: \xfc.example"), 400),
    ("Host with backslash", head(GET, "Host: a.example\\b"), 400),
    ("Host in HTTP/1.0 that is none", head("GET http://a.example/ HTTP/1.0", "Host: a/b"), 400),
    # targets
    ("origin-form", head("GET / HTTP/1.1", HOST), 400),
    ("origin-form with //", head("GET //a.example/ HTTP/1.1", HOST), 400),
    ("asterisk-form", head("OPTIONS * HTTP/1.1", HOST), 400),
    ("authority-form for GET", head("GET a.example:80 HTTP/1.1", HOST), 400),
    ("https", head("GET https://a.example/ HTTP/1.1", HOST), 501),
    ("ftp", head("GET ftp://a.example/ HTTP/1.1", HOST), 501),
    ("wss", head("GET wss://a.example/ HTTP/1.1", HOST), 501),
    ("ws without host", head("GET ws:///chat HTTP/1.1", HOST), 400),
    ("scheme httpx", head("GET httpx://a.example/ HTTP/1.1", HOST), 501),
    ("no host", head("GET http:/// HTTP/1.1", HOST), 400),
    ("port only", head("GET http://:80/ HTTP/1.1", HOST), 400),
    ("one slash", head("GET http:/a.example/ HTTP/1.1", HOST), 400),
    ("backslashes", head("GET http:\\\\a.example/ HTTP/1.1", HOST), 400),
    ("backslash in the host", head("GET http://a.example\\b.example/ HTTP/1.1", HOST), 400),
    ("user", head("GET http://u@a.example/ HTTP/1.1", HOST), 400),
    ("user and password", head("GET http://u:p@a.example/ HTTP/1.1", HOST), 400),
    ("empty user", head("GET http://@a.example/ HTTP/1.1", HOST), 400),
    ("fragment", head("GET http://a.example/#x HTTP/1.1", HOST), 400),
    ("empty fragment", head("GET http://a.example/# HTTP/1.1", HOST), 400),
    ("fragment behind the host", head("GET http://a.example#@b.example/ HTTP/1.1", HOST), 400),
    ("host percent-encoded", head("GET http://a%2eexample/ HTTP/1.1", HOST), 400),
    ("IPv6 with zone", head("GET http://[fe80::1%25eth0]/ HTTP/1.1", HOST), 400),
    ("IPv6 that is none", head("GET http://[::1::]/ HTTP/1.1", HOST), 400),
    ("IPv6 without end", head("GET http://[::1/ HTTP/1.1", HOST), 400),
    ("IPv6 without brackets", head("GET http://::1/ HTTP/1.1", HOST), 400),
    ("IPv4 in brackets", head("GET http://[192.0.2.1]/ HTTP/1.1", HOST), 400),
    ("octets behind the bracket", head("GET http://[::1]x/ HTTP/1.1", HOST), 400),
    ("address of the future", head("GET http://[v1.a:b]/ HTTP/1.1", HOST), 400),
    ("port too large", head("GET http://a.example:65536/ HTTP/1.1", HOST), 400),
    ("port of six digits", head("GET http://a.example:000080/ HTTP/1.1", HOST), 400),
    ("port with sign", head("GET http://a.example:+80/ HTTP/1.1", HOST), 400),
    ("two ports", head("GET http://a.example:80:81/ HTTP/1.1", HOST), 400),
    ("host of 256 octets", head(f"GET http://{'a' * 256}/ HTTP/1.1", HOST), 400),
    ("CONNECT without port", head("CONNECT a.example HTTP/1.1", HOST), 400),
    ("CONNECT with empty port", head("CONNECT a.example: HTTP/1.1", HOST), 400),
    ("CONNECT to a URI", head("CONNECT http://a.example:80/ HTTP/1.1", HOST), 400),
    ("CONNECT with path", head("CONNECT a.example:80/x HTTP/1.1", HOST), 400),
    ("CONNECT with user", head("CONNECT u@a.example:80 HTTP/1.1", HOST), 400),
    ("CONNECT to IPv6 without brackets", head("CONNECT ::1:80 HTTP/1.1", HOST), 400),
    # others
    ("two passwords", head(GET, HOST, "Proxy-Authorization: Basic a", "Proxy-Authorization: Basic b"), 400),
    ("two Max-Forwards", head("TRACE http://a.example/ HTTP/1.1", HOST, "Max-Forwards: 1", "Max-Forwards: 2"), 400),
    ("Max-Forwards no number", head("OPTIONS http://a.example/ HTTP/1.1", HOST, "Max-Forwards: x"), 400),
]


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_requests(data: bytes, status: int) -> None:
    """What could be read in two ways, by us and by whoever is behind us, is refused, the same in any cut."""
    assert outcome(data) == (HttpError, status)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"GET https://a.example/ HTTP/1.1\r\nHost", 33),
        (b"GET / HTTP/1.1\r\nHost", 16),
        (b"GET /\r\n", 7),
        (b"GET http://a.example/ HTTP/1.1\nHost", 31),
        (b"GET http://a.example/ HTTP/1.1\r\nX: \0", 36),
        (b"GET http://a.example/ HTTP/1.1\r\nX: \rY", 37),
    ],
)
def test_refused_as_soon_as_it_is_certain(data: bytes, end: int) -> None:
    """Nobody keeps a connection by a head that never ends, if its line or an octet of it is wrong already."""
    assert decode_request(data[: end - 1]) is None
    assert decode_request(data[: end - 1], seen=end - 2) is None
    for seen in (0, end - 1):
        with pytest.raises(HttpError):
            decode_request(data[:end], seen=seen)


def test_errors_tell_no_secrets() -> None:
    """Targets, passwords, cookies and what a destination wrote are in no message, wherever the mistake is."""
    secret = "s3cret"
    for data in (
        head(f"GET http://u:{secret}@a.example/ HTTP/1.1", HOST),
        head(f"GET  http://u:{secret}@a.example/ HTTP/1.1", HOST),
        head(f"GET http://u:{secret}@a.example/ HTTP/2.0", HOST),
        head(f"GET ftp://u:{secret}@a.example/ HTTP/1.1", HOST),
        head(f"CONNECT u:{secret}@a.example:80 HTTP/1.1", HOST),
        head(GET, f"Host: u:{secret}@a.example"),
        head(GET, HOST, f"Proxy-Authorization: {secret}", f"Proxy-Authorization: {secret}"),
        head(GET, HOST, f"Proxy-Authorization : {secret}"),
        head(GET, HOST, f"Authorization: {secret}\0"),
        head(GET, HOST, "Cookie: a", f" b={secret}"),
        head(f"CONNECT /{secret} HTTP/1.1", HOST),
        head(f"CONNECT a.example/{secret}:80 HTTP/1.1", HOST),
        head(f"CONNECT {secret} HTTP/1.1", HOST),
        head(f"CONNECT {secret}:65536 HTTP/1.1", HOST),
        head(f"GET {secret}://a.example/ HTTP/1.1", HOST),
        head(f"GET http://a%{secret}/ HTTP/1.1", HOST),
        head(f"GET http://a.example/{secret}\xfc HTTP/1.1", HOST),
        head(f"GET http://a.example/ {secret} HTTP/1.1", HOST),
        head(GET, f"Host: a.example/{secret}"),
        head(GET, HOST, f"Host: {secret}"),
        head(POST, HOST, f"Content-Length: 5 {secret}"),
        head(POST, HOST, f"Transfer-Encoding: chunked;a={'x' * 32}{secret}"),
    ):
        with pytest.raises(HttpError) as caught:
            decode_request(data)
        assert secret not in str(caught.value)
    for data in (head(f"ICY {secret}"), head(f"HTTP/1.1 {secret}"), head("HTTP/1.1 200 OK", f"A: b\0{secret}")):
        with pytest.raises(RemoteProtocolError) as refused:
            decode_response(data, "GET")
        assert secret not in str(refused.value)


def test_what_errors_say() -> None:
    """Which place is wrong and what was expected there, for the person whose client it is."""
    for data, text in (
        (head("GET / HTTP/1.1", HOST), "target: this is a proxy: ask with an absolute URI or CONNECT"),
        (head("GET https://a/ HTTP/1.1", HOST), "target: another scheme, expected http; https needs CONNECT"),
        (head("CONNECT a.example HTTP/1.1", HOST), "target of CONNECT: no port, expected host:port"),
        (head("CONNECT /x HTTP/1.1", HOST), "target of CONNECT: no host:port"),
        (head("GET http://a:65536/ HTTP/1.1", HOST), "target: no IPv6 address in brackets, or a port above 65535"),
        (head("GET http://a/\xfc HTTP/1.1"), "request line: octet 0xfc, expected ASCII (others are percent-encoded)"),
        (head(GET, "Host: a/b"), "Host: no host[:port]"),
        (head(GET, HOST, HOST), "2 Host fields, expected 1"),
        (head(POST, HOST, LENGTH, LENGTH, LENGTH), "3 Content-Length fields, expected 1"),
        (head(POST, HOST, CODING, CODING), "2 Transfer-Encoding fields, expected 1"),
        (head(POST, HOST, "Transfer-Encoding: gzip"), "Transfer-Encoding: 'gzip', expected chunked"),
        (head(POST, HOST, "Content-Length: +5"), "Content-Length: '+5', expected 1 to 18 digits"),
        (head(GET, HOST, "X: y", " z"), "field 3: white space before its name, or a folded line"),
        (head(GET, "X"), "field 1: expected a name and a colon behind it"),
        (head(GET, "X: \1"), "head: octet 0x01, expected text and CRLF"),
        (head(GET, HOST, "Content-Length: 5, 5"), "Content-Length: expected 1 to 18 digits"),
        (head("GET http://a.example/ HTTP/3.0"), "request line: HTTP/3.0, expected HTTP/1.0 or HTTP/1.1"),
    ):
        with pytest.raises(HttpError) as caught:
            decode_request(data)
        assert str(caught.value) == text


# --- limits ---


def test_the_limit_of_a_head() -> None:
    """A head of exactly the limit is read; at its last octet without an end it is refused: 431, or 414 by its line."""
    data = head(GET, HOST, "X: " + "x" * 30)
    assert outcome(data, limit=len(data))[1] == len(data)
    assert outcome(data + BODY, limit=len(data))[1] == len(data)
    assert outcome(data, limit=len(data) - 1) == (HttpError, 431)
    assert outcome(data[:-1], limit=len(data) - 1) == (HttpError, 431)
    assert outcome(data[:-2], limit=len(data) - 1) is None
    assert outcome(data, limit=len(GET) + 2) == (HttpError, 431)
    assert outcome(data, limit=len(GET) + 1) == (HttpError, 414)
    assert outcome(b"\r\n" + data, limit=len(GET) + 3) == (HttpError, 414)
    assert outcome(b"G" * 100, limit=100) == (HttpError, 414)
    assert outcome(b"G" * 99, limit=100) is None


def test_the_default_limit() -> None:
    """Without an argument it is HEAD_LIMIT."""
    data = head(GET, HOST, "X: ")
    padded = data[:-4] + b"x" * (HEAD_LIMIT - len(data)) + data[-4:]
    assert decode_request(padded) is not None
    for octets in (padded[:-4] + b"x" + padded[-4:], padded[:-4] + b"xxxx"):
        with pytest.raises(HttpError) as caught:
            decode_request(octets)
        assert caught.value.status == 431


def test_the_limit_of_fields() -> None:
    """As many fields as allowed, and one more."""
    fields = [f"X: {number}" for number in range(FIELDS_LIMIT - 1)]
    assert decode_request(head(GET, HOST, *fields)) is not None
    with pytest.raises(HttpError) as caught:
        decode_request(head(GET, HOST, *fields, "X: y"))
    assert (caught.value.status, str(caught.value)) == (431, f"head: more than {FIELDS_LIMIT} fields")


class Counted(bytearray):
    """Octets that count how far they are searched."""

    searched = 0

    def find(self, *args: Any) -> int:
        found = super().find(*args)
        _, start, end = args
        self.searched += max(0, (min(end, len(self)) if found < 0 else found) - start)
        return found


def test_octet_by_octet_costs_no_square() -> None:
    """Who tells what was seen pays once for each octet: a line of 8 KiB, and one of many fields."""
    for data in (b"G" * 8192, head(GET, HOST, *["X: y"] * 150)[:-2]):
        buffer = Counted()
        for at in range(len(data)):
            buffer.append(data[at])
            assert decode_request(buffer, seen=at) is None
        assert buffer.searched < 20 * len(data)


# --- what is sent on ---


def test_a_request_for_the_destination() -> None:
    """Origin-form, our Host first, fields in their order, what is for us removed, and a Via at the end."""
    message = request(
        "User-Agent: curl",
        "Proxy-Connection: keep-alive",
        "Connection: keep-alive, X-Mine , te",
        "Keep-Alive: timeout=5",
        "x-mine: secret",
        "TE: trailers",
        "Upgrade: h2c",
        "Via: 1.0 other",
        "Proxy-Authorization: Basic secret",
        "Proxy-Authenticate: Basic",
        "Proxy-Authentication-Info: x",
        "Accept: */*",
        "Trailer: X-Sum",
        line="GET http://b.example:8080/x?y HTTP/1.1",
    )
    assert lines(encode_request(message)) == [
        "GET /x?y HTTP/1.1",
        "Host: b.example:8080",
        "User-Agent: curl",
        "Via: 1.0 other",
        "Accept: */*",
        "Trailer: X-Sum",
        "Via: 1.1 tabi",
    ]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("http://a.example/", "a.example"),
        ("http://a.example:80/", "a.example"),
        ("http://a.example:8080/", "a.example:8080"),
        ("http://192.0.2.1/", "192.0.2.1"),
        ("http://[2001:db8::80]/", "[2001:db8::80]"),
        ("http://[::80]:81/", "[::80]:81"),
    ],
)
def test_host_is_the_targets(target: str, host: str) -> None:
    """RFC 9112 section 3.2.2: whatever the received Host said; HTTP/1.0 gets one too, and its own version in Via."""
    for fields in (["Host: other.example"], ["Host:"], []):
        message, _ = outcome(head(f"GET {target} HTTP/1.{int(bool(fields))}", *fields))
        assert lines(encode_request(message))[1:] == [f"Host: {host}", f"Via: 1.{int(bool(fields))} tabi"]


def test_connection_takes_nothing_away_that_others_need() -> None:
    """A client that names framing, routing or caching fields in Connection does not make another message of it."""
    names = "Host, Content-Length, Transfer-Encoding, Via, Cache-Control, Expect, Max-Forwards, X"
    fields = ["Connection: " + names, "Cache-Control: no-store", "Via: 1.1 a", "X: y", "Expect: 100-continue"]
    assert lines(encode_request(request(*fields, LENGTH, "Max-Forwards: 3", line=POST)))[1:] == [
        "Host: a.example",
        "Cache-Control: no-store",
        "Via: 1.1 a",
        "Expect: 100-continue",
        "Content-Length: 5",
        "Max-Forwards: 3",
        "Via: 1.1 tabi",
    ]
    assert "Transfer-Encoding: chunked" in lines(encode_request(request(*fields, CODING, line=POST)))


def test_a_connection_that_is_not_kept() -> None:
    """`Connection: close` is our word to the destination, not the client's."""
    assert "Connection: close" not in lines(encode_request(request("Connection: close")))
    assert lines(encode_request(request(), keep_alive=False))[-1] == "Connection: close"
    message = request("Connection: upgrade", "Upgrade: websocket")
    assert lines(encode_request(message, keep_alive=False))[-2:] == ["Connection: close, upgrade", "Upgrade: websocket"]


# --- responses ---


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("HTTP/1.1 200 OK", 200, b"OK"),
        ("HTTP/1.1 200 ", 200, b""),
        ("HTTP/1.1 200", 200, b""),
        ("HTTP/1.0 404 Not  Found ", 404, b"Not  Found "),
        ("HTTP/1.1 999 \xfc\t!", 999, b"\xfc\t!"),
        ("HTTP/1.7 599 x", 599, b"x"),
    ],
)
def test_status_lines(line: str, status: int, reason: bytes) -> None:
    """Any status of three digits; the reason may be empty or missing."""
    message = response("Content-Length: 0", line=line)
    assert (message.status, message.reason) == (status, reason)
    assert lines(encode_response(message, True))[0] == f"HTTP/1.1 {status} {reason.decode('latin-1')}"


@pytest.mark.parametrize(
    ("method", "status", "fields", "body", "sent_on"),
    [
        ("GET", 200, ["Content-Length: 7"], 7, ["Content-Length: 7"]),
        ("GET", 200, ["Content-Length: 007"], 7, ["Content-Length: 7"]),
        ("GET", 200, ["Content-Length: 0"], 0, ["Content-Length: 0"]),
        ("GET", 200, ["Transfer-Encoding: Chunked"], CHUNKED, ["Transfer-Encoding: chunked"]),
        ("GET", 200, [], UNTIL_CLOSE, []),
        ("GET", 304, ["Content-Length: 7"], 0, ["Content-Length: 7"]),
        ("GET", 304, ["Transfer-Encoding: chunked"], 0, []),
        ("GET", 304, [], 0, []),
        ("GET", 204, ["Content-Length: 7"], 0, []),
        ("GET", 204, ["Transfer-Encoding: chunked"], 0, []),
        ("GET", 100, ["Content-Length: 7"], 0, []),
        ("GET", 103, [], 0, []),
        ("GET", 101, ["Content-Length: 7"], 0, []),
        ("HEAD", 200, ["Content-Length: 7"], 0, ["Content-Length: 7"]),
        ("HEAD", 200, ["Transfer-Encoding: chunked"], 0, []),
        ("HEAD", 404, [], 0, []),
        ("CONNECT", 200, ["Content-Length: 7", "Content-Length: x"], 0, None),
        ("CONNECT", 407, ["Content-Length: 7"], 7, None),
        ("OPTIONS", 205, [], UNTIL_CLOSE, []),
    ],
)
def test_bodies_of_responses(method: str, status: int, fields: list[str], body: int, sent_on: list[str] | None) -> None:
    """RFC 9112 section 6.3; the length that a HEAD asks for is passed on, one that has no meaning is not."""
    message = response(*fields, line=f"HTTP/1.1 {status} x", method=method)
    assert message.body == body
    assert message.keep_alive is (body != UNTIL_CLOSE)
    assert message.interim is (status in (100, 103))
    if sent_on is not None:
        written = lines(encode_response(message, True))
        assert [text for text in written if text.startswith(("Content-Length", "Transfer-Encoding"))] == sent_on


@pytest.mark.parametrize(
    ("version", "fields", "kept"),
    [
        (1, ["Content-Length: 0"], True),
        (1, ["Content-Length: 0", "Connection: x, Close"], False),
        (1, [], False),
        (0, ["Content-Length: 0"], False),
        (0, ["Content-Length: 0", "Connection: Keep-Alive"], True),
        (0, ["Connection: keep-alive"], False),
    ],
)
def test_whether_the_server_keeps_the_connection(version: int, fields: list[str], kept: bool) -> None:
    """As it says by version and Connection, and never with a body that ends with the connection."""
    assert response(*fields, line=f"HTTP/1.{version} 200 OK").keep_alive is kept


@pytest.mark.parametrize(
    ("values", "left"),
    [
        (["cache; hit"], "cache; hit"),
        (["tabi"], None),
        (['tabi; error=dns_error; details="a, b"'], None),
        (['"tabi"; error=dns_error', " Tabi ;x"], None),
        (["a; x, tabi; error=dns_error", "b"], "a; x, b"),
        (['a; details="x, tabi; error=y", tabi;z'], 'a; details="x, tabi; error=y"'),
        (['a; details="\\", tabi; error=y"'], 'a; details="\\", tabi; error=y"'),
        (['a", tabi; error=y'], None),
        (['a; b="c\\'], None),
        (['"' + '\\"' * 10_000], None),
        (["tabiya; error=x"], "tabiya; error=x"),
        ([""], None),
    ],
)
def test_no_destination_speaks_for_the_proxy(values: list[str], left: str | None) -> None:
    """Proxy-Status of others goes on (RFC 9209 section 2), members that claim to be of tabi do not."""
    written = lines(encode_response(response("X: y", *[f"Proxy-Status: {value}" for value in values], LENGTH), True))
    found = [text for text in written if text.lower().startswith("proxy-status")]
    assert found == ([] if left is None else [f"Proxy-Status: {left}"])
    assert "X: y" in written
    named = response("Connection: proxy-status", *[f"Proxy-Status: {value}" for value in values], LENGTH)
    assert named.fields == f"\r\n{LENGTH}".encode()


def test_proxy_status_in_a_request_is_a_field_like_any() -> None:
    """It means nothing there."""
    assert "Proxy-Status: tabi" in lines(encode_request(request("Proxy-Status: tabi")))


def test_white_space_before_the_colon_of_a_response() -> None:
    """RFC 9112 section 5.1: a proxy removes it, and reads the field as what it is."""
    message = response("Content-Length \t: 5", "X : y")
    assert message.body == 5
    assert lines(encode_response(message, True))[1:] == ["Content-Length: 5", "X: y", "Via: 1.1 tabi"]


OK = "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "data",
    [
        head(OK, LENGTH, "Content-Length: 6"),
        head(OK, LENGTH, LENGTH),
        head(OK, "Content-Length: 5, 5"),
        head(OK, "Content-Length: -1"),
        head(OK, "Content-Length : 5", "Content-Length: 6"),
        head(OK, LENGTH, CODING),
        head(OK, CODING, CODING),
        head(OK, "Transfer-Encoding: chunked, gzip"),
        head(OK, "Transfer-Encoding: gzip"),
        head(OK, "Transfer-Encoding: gzip, chunked"),
        head("HTTP/1.0 200 OK", CODING),
        head("HTTP/1.1 304 Not Modified", LENGTH, CODING),
        head(OK, "X: y", " z"),
        head(OK, " X: y"),
        head(OK, "X"),
        head(OK, ": x"),
        head(OK, "X: \0"),
        head(OK, "X: y\rZ: z"),
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        head("HTTP/1.1  200 OK"),
        head("HTTP/1.1 2000 OK"),
        head("HTTP/1.1 20 OK"),
        head("HTTP/1.1 020 OK"),
        head("HTTP/1.1 200\tOK"),
        head("HTTP/1.1 +20 OK"),
        head("HTTP/1.1 200 O\x00K"),
        head("HTTP/1.1 200 OK\r"),
        head("HTTP/2.0 200 OK"),
        head("HTTP/1.10 200 OK"),
        head("http/1.1 200 OK"),
        head("ICY 200 OK"),
        b"SSH-2.0-OpenSSH\r\n",
        head(OK, *["X: y"] * (FIELDS_LIMIT + 1)),
    ],
)
def test_refused_responses(data: bytes) -> None:
    """A server that can be read in two ways is a broken one: no status is of the client's making."""
    assert outcome(data, from_server) == (RemoteProtocolError, None)


def test_the_limit_of_a_response() -> None:
    """The same as of a request."""
    data = head(OK, "X: y")
    assert outcome(data, from_server, limit=len(data))[1] == len(data)
    assert outcome(data, from_server, limit=len(data) - 1) == (RemoteProtocolError, None)
    assert outcome(b"H" * 100, from_server, limit=100) == (RemoteProtocolError, None)


def test_a_response_for_the_client() -> None:
    """Fields in their order, what is for us removed, Via at the end."""
    message = response(
        "Date: now",
        "Connection: keep-alive, X-Mine",
        "Keep-Alive: timeout=5",
        "X-Mine: y",
        "Proxy-Authenticate: Basic",
        "Upgrade: h2c",
        "Set-Cookie: a",
        "set-cookie: b",
        "Trailer: X-Sum",
        CODING,
    )
    expected = ["HTTP/1.1 200 OK", "Date: now", "Set-Cookie: a", "set-cookie: b", "Trailer: X-Sum"]
    assert lines(encode_response(message, True)) == [*expected, "Transfer-Encoding: chunked", "Via: 1.1 tabi"]
    # HTTP/1.0 knows no chunks: the caller takes them apart, and the end of the connection is the end of the body.
    assert lines(encode_response(message, True, minor=0)) == [*expected, "Via: 1.1 tabi", "Connection: close"]


def test_the_connection_to_the_client() -> None:
    """Nothing need be said to HTTP/1.1 that keeps it, all else is said; a body until the end is never kept."""
    message = response("Content-Length: 0", line="HTTP/1.0 200 OK")
    assert lines(encode_response(message, True))[2:] == ["Via: 1.0 tabi"]
    assert lines(encode_response(message, False))[2:] == ["Via: 1.0 tabi", "Connection: close"]
    assert lines(encode_response(message, True, minor=0))[2:] == ["Via: 1.0 tabi", "Connection: keep-alive"]
    assert lines(encode_response(message, False, minor=0))[2:] == ["Via: 1.0 tabi", "Connection: close"]
    assert lines(encode_response(response(), True))[1:] == ["Via: 1.1 tabi", "Connection: close"]
    assert lines(encode_response(response(line="HTTP/1.1 100 Continue"), False))[1:] == ["Via: 1.1 tabi"]


def test_a_body_that_is_sent_in_another_way() -> None:
    """The caller may send in chunks what came until the end, and the other way round: no length is told then."""
    assert lines(encode_response(response(), True, body=CHUNKED))[1:] == ["Transfer-Encoding: chunked", "Via: 1.1 tabi"]
    for body, expected in ((CHUNKED, ["Transfer-Encoding: chunked", "Via: 1.1 tabi"]), (UNTIL_CLOSE, None)):
        written = lines(encode_response(response(LENGTH), True, body=body))[1:]
        assert written == (expected or ["Via: 1.1 tabi", "Connection: close"])


def test_switching_protocols() -> None:
    """101 keeps Upgrade and names it; a 426 tells what it asks for."""
    message = response("Connection: Upgrade", "Upgrade: websocket", "X: y", line="HTTP/1.1 101 Switching Protocols")
    assert not message.interim
    assert lines(encode_response(message, True)) == [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "X: y",
        "Via: 1.1 tabi",
        "Connection: upgrade",
    ]
    message = response("Connection: Upgrade", "Upgrade: websocket", LENGTH, line="HTTP/1.1 426 Upgrade Required")
    assert "Upgrade: websocket" in lines(encode_response(message, True))


# --- the proxy's own answers ---


def test_errors_on_the_wire() -> None:
    """Proxy-Status of RFC 9209, and the same for people."""
    octets = encode_error(502, "connection_refused", 'a "b" \\ c')
    top, _, text = octets.partition(b"\r\n\r\n")
    assert lines(top + b"\r\n\r\n") == [
        "HTTP/1.1 502 Bad Gateway",
        'Proxy-Status: tabi; error=connection_refused; details="a \\"b\\" \\\\ c"',
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text)}",
        "Connection: close",
    ]
    assert text == b'502 Bad Gateway: a "b" \\ c\n'
    assert encode_error(502, "connection_refused", 'a "b" \\ c', head=True) == top + b"\r\n\r\n"


def test_errors_with_more_to_say() -> None:
    """More fields, no error type, a connection that stays open; nothing in the details ends a line or a string."""
    octets = encode_error(
        407, None, "who\r\nX: y\0\xfc", keep_alive=True, fields=[(b"Proxy-Authenticate", b'Basic realm="tabi"')]
    )
    top, _, text = octets.partition(b"\r\n\r\n")
    assert lines(top + b"\r\n\r\n") == [
        "HTTP/1.1 407 Proxy Authentication Required",
        'Proxy-Status: tabi; details="who??X: y??"',
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text)}",
        'Proxy-Authenticate: Basic realm="tabi"',
    ]
    assert b"Connection: keep-alive" in encode_error(403, None, "no", minor=0, keep_alive=True)
    assert b"Connection: close" in encode_error(403, None, "no", minor=0)


@given(st.text(), st.sampled_from([400, 403, 407, 414, 417, 431, 500, 501, 502, 503, 504, 505]), st.booleans())
def test_errors_can_be_read(details: str, status: int, kept: bool) -> None:
    """Whatever the details hold, it is one response of the length that it says."""
    octets = encode_error(status, "dns_error", details, keep_alive=kept)
    found = decode_response(octets, "GET")
    assert found is not None
    message, end = found
    assert (message.status, message.body, message.keep_alive) == (status, len(octets) - end, kept)


def test_the_answer_to_connect() -> None:
    """A response without content, behind which the tunnel begins."""
    found = decode_response(CONNECT_ESTABLISHED + BODY, "CONNECT")
    assert found is not None
    assert found[0].body == 0
    assert found[1] == len(CONNECT_ESTABLISHED)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", (b"Aladdin", b"open sesame")),
        (b"basic  QWxhZGRpbjpvcGVuIHNlc2FtZQ==", (b"Aladdin", b"open sesame")),
        (b"BASIC " + base64.b64encode("ü:ö:".encode()), ("ü".encode(), "ö:".encode())),
        (b"Basic " + base64.b64encode(b":"), (b"", b"")),
        (b"Basic " + base64.b64encode(b"no colon"), None),
        (b"Basic " + base64.b64encode(b"a:b\n"), None),
        (b"Basic " + base64.b64encode(b"a\0:b"), None),
        (b"Basic YTpi\n", None),
        (b"Basic YTpiYw", None),
        (b"Basic YTpiYw=", None),
        (b"Basic YTpi==", None),
        (b"Basic YTpi====", None),
        (b"Basic YTpi YTpi", None),
        (b"Basic YT-_", None),
        (b"Basic", None),
        (b"Basic ", None),
        (b"Basic=YTpi", None),
        (b"Bearer YTpi", None),
        (b"", None),
    ],
)
def test_basic(value: bytes, expected: tuple[bytes, bytes] | None) -> None:
    """RFC 7617: name and password around the first colon, nothing else; base64 to the letter."""
    assert decode_basic(value) == expected


def test_bodies_are_here_too() -> None:
    """Whoever forwards imports one module."""
    chunked = Chunked()
    assert chunked.scan(b"0\r\n\r\nx") == 5
    assert chunked.done


# --- properties ---

tokens = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=20)
values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f") | st.just("\t"), max_size=30
).map(lambda text: text.strip(" \t"))
hosts = st.one_of(
    st.text("abcxyz019-._~", min_size=1, max_size=60).filter(lambda text: isinstance(parse_host(text), str)),
    st.ip_addresses(v=4).map(lambda host: IPv4Address(int(host))),
    st.ip_addresses(v=6).map(lambda host: IPv6Address(int(host))),
)
MEANING = {name.decode() for name in REWRITTEN | {b"via"}}
plain = st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in MEANING), values), max_size=12)
bodies = st.one_of(st.just(0), st.integers(1, 10**18 - 1), st.just(CHUNKED))


def named(octets: bytes) -> list[tuple[str, str]]:
    """The fields of a head, names in lower case, that mean nothing to a proxy."""
    fields = [
        (name.lower(), value.strip(" \t")) for name, _, value in (text.partition(":") for text in lines(octets)[1:])
    ]
    return [field for field in fields if field[0] not in MEANING]


def framing(body: int) -> list[str]:
    """The field that says so."""
    return [CODING] if body == CHUNKED else [f"Content-Length: {body}"] if body > 0 else []


@given(
    tokens.filter(lambda text: text != "CONNECT"),
    st.builds(Address, hosts, st.integers(0, 65535)),
    st.text("/abc?%2=&;:@!", max_size=30).map(lambda text: "/" + text),
    plain,
    bodies,
    st.sampled_from([None, b"websocket"]),
    st.booleans(),
)
def test_requests_survive_the_way(
    method: str,
    destination: Address,
    path: str,
    fields: list[tuple[str, str]],
    body: int,
    upgrade: bytes | None,
    keep_alive: bool,
) -> None:
    """What we send on, another proxy would read as the same: target, fields, content and what is asked for."""
    texts = [f"{name}: {value}" for name, value in fields] + framing(body)
    if upgrade:
        texts += ["Connection: Upgrade", "Upgrade: websocket"]
    found = decode_request(head(f"{method} http://{destination}{path} HTTP/1.1", "Host: x", *texts))
    assert found is not None
    message = found[0]
    assert (message.destination, message.path, message.body) == (destination, path, body)
    octets = encode_request(message, keep_alive)
    assert octets.startswith(f"{method} {path} HTTP/1.1\r\n".encode())
    # In absolute-form again, as one more proxy on the way would get it.
    again = decode_request(octets.replace(b" /", f" http://{destination}/".encode(), 1))
    assert again is not None
    assert again[1] - len(f"http://{destination}") == len(octets)
    other = again[0]
    assert (other.method, other.destination, other.path, other.body, other.upgrade, other.keep_alive) == (
        *(method, destination, path, body),
        message.upgrade,
        keep_alive,
    )
    assert named(octets) == named(encode_request(other)) == [(name.lower(), value) for name, value in fields]
    assert lines(octets)[1] == f"Host: {str(destination).removesuffix(':80')}"


@given(
    st.integers(100, 999).filter(lambda status: status != 101), values, plain, bodies, st.booleans(), st.integers(0, 1)
)
def test_responses_survive_the_way(
    status: int, reason: str, fields: list[tuple[str, str]], body: int, keep_alive: bool, minor: int
) -> None:
    """What we send back, the client reads as the same."""
    texts = [f"{name}: {value}" for name, value in fields] + framing(body)
    found = decode_response(head(f"HTTP/1.1 {status} {reason}", *texts), "GET")
    assert found is not None
    message = found[0]
    octets = encode_response(message, keep_alive, minor)
    again = decode_response(octets, "GET")
    assert again is not None
    other = again[0]
    assert (other.status, other.reason, other.interim) == (message.status, message.reason, message.interim)
    assert other.body == (UNTIL_CLOSE if message.body == CHUNKED and not minor else message.body)
    assert other.interim or other.keep_alive is (keep_alive and other.body != UNTIL_CLOSE)
    assert named(octets) == [(name.lower(), value) for name, value in fields]


def spelled(name: str) -> st.SearchStrategy[str]:
    """A name in any case."""
    return st.lists(st.booleans(), min_size=len(name), max_size=len(name)).map(
        lambda upper: "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=True))
    )


ONE_CONNECTION = [
    *("close", "connection", "keep-alive", "proxy-authenticate", "proxy-authentication-info", "proxy-authorization"),
    *("proxy-connection", "te", "upgrade"),
]
NEAR = ["x", "accept", "t", "tea", "hosts", "x-host", "content-lengths", "content", "keep", "proxy", "upgrade-insecure"]
FOR_ALL = ["via", "cache-control", "expect", "max-forwards"]
options = st.lists(st.sampled_from(["", *NEAR, *FOR_ALL, *ONE_CONNECTION, "content-length", "host"]).flatmap(spelled))
blanks = st.text(" \t", max_size=2)


@given(
    st.lists(st.tuples(st.sampled_from(NEAR + FOR_ALL + ONE_CONNECTION).flatmap(spelled), blanks, values), max_size=8),
    options,
    st.booleans(),
)
def test_what_is_sent_on(fields: list[tuple[str, str, str]], options: list[str], is_request: bool) -> None:
    """What a walk over the fields, one by one, would leave: none of one connection, none that Connection names."""
    fields = [field for field in fields if field[0].lower() not in ("connection", "proxy-authorization")]
    texts = [f"{name}:{blank}{value}{blank}" for name, blank, value in fields]
    half = len(texts) // 2
    received = [*texts[:half], "cOnnection:" + " ,\t".join(options), *texts[half:], "content-LENGTH: 07"]
    octets = (
        encode_request(decode_request(head(GET, HOST, *received))[0])  # type: ignore[index]
        if is_request
        else encode_response(decode_response(head(OK, *received), "GET")[0], True)  # type: ignore[index]
    )
    protected = {"via", "cache-control", *(("expect", "max-forwards") if is_request else ())}
    dropped = {*ONE_CONNECTION, *({option.lower() for option in options} - protected)}
    written = lines(octets)[1 + is_request :]
    walked = [text for (name, _, _), text in zip(fields, texts, strict=True) if name.lower() not in dropped]
    assert written == [*walked, "Content-Length: 7", "Via: 1.1 tabi"]


WORDS = (
    *(
        b"GET ",
        b"CONNECT ",
        b"http://",
        b"https://",
        b"a.example",
        b":80",
        b"/",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"HTTP/1.1",
    ),
    *(
        b" 200",
        b" 304",
        b" OK",
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"Host: a",
        b"Content-Length",
        b": ",
        b"5",
    ),
    *(
        b"Transfer-Encoding: ",
        b"chunked",
        b"Connection: ",
        b"close",
        b"upgrade",
        b" ",
        b"\t",
        b",",
        b"\0",
        b"\xff",
        b"@",
    ),
    *(head(GET, HOST), head(OK), head(POST, HOST, LENGTH)[:-2], head(POST, HOST, CODING)[:-2], head(OK, LENGTH)[:-2]),
)
inventions = st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(WORDS), max_size=16).map(b"".join))


@given(inventions, st.sampled_from([HEAD_LIMIT, 60, 31]))
@example(b"\r\r\n", HEAD_LIMIT)
@example(b"\r\n\r\n\r\n", HEAD_LIMIT)
@example(b"GET /\r\r\n", HEAD_LIMIT)
def test_any_octets(data: bytes, limit: int) -> None:
    """A message, None or the error come of any octets, nothing else, and the same in every cut."""
    for decode in (decode_request, from_server):
        found = outcome(data, decode, limit)
        if found is None or not isinstance(found[0], msgspec.Struct):
            continue
        message, end = found
        assert end <= min(len(data), limit)
        if isinstance(message, Response):
            assert decode_response(encode_response(message, True), "HEAD") is not None
        elif message.path:
            written = encode_request(message)
            assert written.count(b"\r\n\r\n") == 1
            assert written.endswith(b"\r\n\r\n")


@given(st.binary(max_size=60))
def test_any_credentials(value: bytes) -> None:
    """Names and passwords or None come of any octets."""
    assert decode_basic(value) is None
    name, _, password = value.partition(b":")
    encoded = b"Basic " + base64.b64encode(name + b":" + password)
    controls = any(octet < 0x20 or octet == 0x7F for octet in name + password)
    assert decode_basic(encoded) == (None if controls else (name, password))
