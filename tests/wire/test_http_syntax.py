"""The grammar of heads: what is read, and above all what is refused, as soon as it is certain."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest

from http_heads import BODY, CODING, GET, HOST, LENGTH, OK, POST, from_server, head, lines, outcome, read, response
from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.http import CHUNKED, HEAD_LIMIT, decode_request, decode_response, encode_response
from tabi.wire.http_syntax import ANSWER_FIELDS_LIMIT, ANSWER_HEAD_LIMIT, EMPTY_LINES, FIELDS_LIMIT


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


REFUSED: list[tuple[str, bytes, int]] = [
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
]


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_requests(data: bytes, status: int) -> None:
    """What could be read in two ways, by us and by whoever is behind us, is refused, the same in any cut."""
    assert outcome(data) == (HttpError, status)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"GET ftp://a.example/ HTTP/1.1\r\nHost", 31),
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
        head(f"GET http://u:{secret}\\@a.example/ HTTP/1.1", HOST),
        head(f"GET http://u:{secret}%00@a.example/ HTTP/1.1", HOST),
        head(f"GET http://{secret}%3A:@a.example/ HTTP/1.1", HOST),
        head(f"GET http://u@{secret}@a.example/ HTTP/1.1", HOST),
        head(f"GET http://a#@{secret} HTTP/1.1", HOST),
        head(f"GET  http://u:{secret}@a.example/ HTTP/1.1", HOST),
        head(f"GET http://u:{secret}@a.example/ HTTP/2.0", HOST),
        head(f"GET ftp://u:{secret}@a.example/ HTTP/1.1", HOST),
        head(f"CONNECT u:{secret}@a.example:80 HTTP/1.1", HOST),
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
        head(f"GET http://\xfc.example/{secret} HTTP/1.1", HOST),
        head(f"GET http://a.example/ {secret} HTTP/1.1", HOST),
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
        (head("GET ftp://a/ HTTP/1.1", HOST), "target: another scheme, expected http or https"),
        (head("CONNECT a.example HTTP/1.1", HOST), "target of CONNECT: no port, expected host:port"),
        (head("CONNECT /x HTTP/1.1", HOST), "target of CONNECT: no host:port"),
        (head("GET http://a:65536/ HTTP/1.1", HOST), "target: no IPv6 address in brackets, or a port above 65535"),
        (head("GET http://\xfc/ HTTP/1.1", HOST), "target: no host[:port]"),
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


def test_white_space_before_the_colon_of_a_response() -> None:
    """RFC 9112 section 5.1: a proxy removes it, and reads the field as what it is."""
    message = response("Content-Length \t: 5", "X : y")
    assert message.body == 5
    assert lines(encode_response(message, True))[1:] == ["Content-Length: 5", "X: y", "Via: 1.1 tabi"]


@pytest.mark.parametrize(
    "data",
    [
        head(OK, " X: y"),
        head(OK, "\tX: y", "Z: z"),
        head(OK, "X: y", " ", "Z: z"),
        head(OK, "X: y", " \t"),
        head(OK, "X", " : y"),
        head(OK, "Content", " -Length: 5"),
        head(OK, "X: y", " \0z"),
        head(OK, "X: y", " z\rA: b"),
        head(OK, "X: y\n z"),
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
        head(OK, *["X: y"] * (ANSWER_FIELDS_LIMIT + 1)),
    ],
)
def test_refused_responses(data: bytes) -> None:
    """A server that can be read in two ways is a broken one: no status is of the client's making."""
    assert outcome(data, from_server) == (RemoteProtocolError, None)


def test_folded_lines_of_a_response() -> None:
    """RFC 9112 section 5.2: they are joined by SP before anything is read of them, a length or a coding too."""
    message = response("X: a \t", " \tb", "\tc", "Y:", " d", "Z: e", "Content-Length:", " 5")
    assert message.body == 5
    assert lines(encode_response(message, True))[1:-1] == ["X: a b c", "Y: d", "Z: e", "Content-Length: 5"]
    assert response("Transfer-Encoding:", "\tchunked").body == CHUNKED
    for fields in (["Content-Length: 5", " 5"], ["Transfer-Encoding: chunked", " , gzip"]):
        assert outcome(head(OK, *fields), from_server) == (RemoteProtocolError, None)


@pytest.mark.parametrize(
    "field",
    ["X: y" + " " * 65000 + "z", "X: " + " ," * 32000, "Content-Length: 5" + " " * 65000 + "5", "X:" + "\t" * 65000],
)
def test_blanks_cost_no_square(field: str) -> None:
    """A server that sends many holds nobody up: they are looked at once, not once for each of them."""
    data = head(OK, field, "Y: a", " b")
    began = process_time()
    outcomes = [read([data], from_server, ANSWER_HEAD_LIMIT + 100, False) for _ in range(3)]
    assert process_time() - began < 1
    assert outcomes[0] == outcomes[2]


@pytest.mark.parametrize("number", range(EMPTY_LINES + 2))
def test_empty_lines_behind_an_interim_response(number: int) -> None:
    """A bounded number of them; in front of any other response there are none."""

    def after_interim(data: bytes | bytearray, limit: int, seen: int) -> Any:
        return decode_response(data, "GET", limit, seen, True)

    data = b"\r\n" * number + head(OK, LENGTH)
    found = outcome(data, after_interim)
    assert found == (RemoteProtocolError, None) if number > EMPTY_LINES else found[1] == len(data)
    if number:
        assert outcome(data, from_server) == (RemoteProtocolError, None)


def test_large_heads_of_responses() -> None:
    """64 KiB and 500 fields: policies and cookies."""
    assert decode_response(head(OK, *["X: y"] * ANSWER_FIELDS_LIMIT), "GET") is not None
    data = head(OK, "X: ")
    padded = data[:-4] + b"x" * (ANSWER_HEAD_LIMIT - len(data)) + data[-4:]
    assert decode_response(padded, "GET") is not None
    with pytest.raises(RemoteProtocolError):
        decode_response(padded[:-4] + b"x" + padded[-4:], "GET")


def test_the_limit_of_a_response() -> None:
    """The same as of a request."""
    data = head(OK, "X: y")
    assert outcome(data, from_server, limit=len(data))[1] == len(data)
    assert outcome(data, from_server, limit=len(data) - 1) == (RemoteProtocolError, None)
    assert outcome(b"H" * 100, from_server, limit=100) == (RemoteProtocolError, None)
