"""Where content ends and what becomes of the connection: lengths, chunks, versions, Connection, Upgrade and Expect."""

from __future__ import annotations

import pytest

from http_heads import CODING, HOST, LENGTH, OK, POST, from_server, head, lines, outcome, request, response
from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.http import CHUNKED, UNTIL_CLOSE, encode_request, encode_response
from tabi.wire.http_framing import is_offered


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
        ("GET http://a.example/ HTTP/1.1", ["Connection: Upgrade", "Upgrade: h2c"], None),
        ("GET http://a.example/ HTTP/1.1", ["Connection: Upgrade, HTTP2-Settings", "Upgrade: H2C, h2c-14"], None),
        ("GET http://a.example/ HTTP/1.1", ["Connection: upgrade", "Upgrade: h2c", "Upgrade: w, h2cx"], b"w, h2cx"),
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


def test_http_2_is_not_upgraded_to() -> None:
    """Its settings are for one connection, and a tunnel of requests would pass without being looked at."""
    message = request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    assert lines(encode_request(message))[1:] == [HOST, "Via: 1.1 tabi"]


@pytest.mark.parametrize(
    ("method", "status", "fields", "body", "sent_on"),
    [
        ("GET", 200, ["Content-Length: 7"], 7, ["Content-Length: 7"]),
        ("GET", 200, ["Content-Length: 007"], 7, ["Content-Length: 7"]),
        ("GET", 200, ["Content-Length: 0"], 0, ["Content-Length: 0"]),
        ("GET", 200, ["Content-Length: 7", "content-length:7"], 7, ["Content-Length: 7"]),
        ("GET", 200, ["Content-Length: 7, 7", "Content-Length: 7\t,7"], 7, ["Content-Length: 7"]),
        ("GET", 200, ["Content-Length: 007, 007"], 7, ["Content-Length: 7"]),
        ("HEAD", 200, ["Content-Length: 0,0"], 0, ["Content-Length: 0"]),
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


@pytest.mark.parametrize(
    ("offered", "chosen", "right"),
    [
        (b"websocket", b"websocket", True),
        (b"websocket", b"WebSocket", True),
        (b"a, b/1", b"b/2", True),
        (b"TLS/1.0", b"TLS/1.0, HTTP/1.1", True),  # RFC 2817 section 3.3
        (b"websocket", None, True),
        (b"websocket", b"h2c", False),
        (b"websocket", b"", False),
        (b"", b"", False),
    ],
)
def test_a_protocol_is_one_that_was_offered(offered: bytes, chosen: bytes | None, right: bool) -> None:
    """By its name; a server that names none means that it does as it was asked."""
    assert is_offered(chosen, offered) is right


REFUSED: list[tuple[str, bytes, int]] = [
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
]


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_requests(data: bytes, status: int) -> None:
    """A request whose content could end in two places is refused, the same in any cut."""
    assert outcome(data) == (HttpError, status)


@pytest.mark.parametrize(
    "data",
    [
        head(OK, LENGTH, "Content-Length: 6"),
        head(OK, LENGTH, LENGTH, "Content-Length: 6"),
        head(OK, "Content-Length: 5, 6"),
        head(OK, "Content-Length: 5, 5", "Content-Length: 6"),
        head(OK, LENGTH, "Content-Length: 05"),
        head(OK, LENGTH, "Content-Length: 55"),
        head(OK, LENGTH, "Content-Length:"),
        head(OK, "Content-Length: 5, 5,"),
        head(OK, "Content-Length: 5,,5"),
        head(OK, "Content-Length: 5 5"),
        head(OK, "Content-Length: +5, +5"),
        head(OK, "Content-Length: 5;5"),
        head(OK, "Content-Length: 5", "Content-Length: 5", CODING),
        head(OK, *["Content-Length: " + "1" * 19] * 2),
        head(OK, "Content-Length: -1"),
        head(OK, "Content-Length : 5", "Content-Length: 6"),
        head(OK, LENGTH, CODING),
        head(OK, CODING, CODING),
        head(OK, "Transfer-Encoding: chunked, gzip"),
        head(OK, "Transfer-Encoding: gzip"),
        head(OK, "Transfer-Encoding: gzip, chunked"),
        head("HTTP/1.0 200 OK", CODING),
        head("HTTP/1.1 304 Not Modified", LENGTH, CODING),
    ],
)
def test_refused_responses(data: bytes) -> None:
    """A response whose content could end in two places is refused; no status is of the client's making."""
    assert outcome(data, from_server) == (RemoteProtocolError, None)
