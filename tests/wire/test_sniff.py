"""A connection's protocol, told by its first octets: at which of them, and that more never change the answer."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tabi.wire.http_syntax import EMPTY_LINES
from tabi.wire.machine import NEED_DATA
from tabi.wire.sniff import (
    BEGINNINGS,
    MAX_METHOD,
    METHODS,
    SIGNATURES,
    SNIFF_SIZE,
    Payload,
    Protocol,
    is_request,
    sniff,
    sniff_payload,
)

V2 = b"\r\n\r\n\0\r\nQUIT\n"
TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def decided(data: bytes) -> tuple[int, object]:
    """How many octets were needed for an answer, fed one by one, and the answer; nothing behind it changes it."""
    answers = [sniff(data[:end]) for end in range(len(data) + 1)]
    needed = next(at for at, answer in enumerate(answers) if answer is not NEED_DATA)
    assert set(answers[needed:]) == {answers[needed]}
    return needed, answers[needed]


@pytest.mark.parametrize(
    ("data", "needed", "protocol"),
    [
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01user\x00", 1, Protocol.SOCKS4),
        (b"\x05\x01\x00", 1, Protocol.SOCKS5),
        (b"\x16\x03\x01\x02\x00\x01", 2, Protocol.TLS),
        (b"\x16\x03\x00", 2, Protocol.TLS),
        (b"\x16\x03\x04", 2, Protocol.TLS),
        (b"GET http://example.com/ HTTP/1.1\r\n", 4, Protocol.HTTP),
        (b"CONNECT example.com:443 HTTP/1.1\r\n", 8, Protocol.HTTP),
        (b"POST http://example.com/ HTTP/1.1\r\n", 5, Protocol.HTTP),
        (b"PUT /", 4, Protocol.HTTP),
        (b"PATCH /", 6, Protocol.HTTP),
        (b"PROPFIND /", 9, Protocol.HTTP),
        (b"get /", 4, Protocol.HTTP),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 14, Protocol.HTTP2),
        (b"PRI * HTTP/1.1\r\n", 12, Protocol.HTTP),
        (b"PRI /", 5, Protocol.HTTP),
        (b"PRINT /", 6, Protocol.HTTP),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", 6, Protocol.PROXY_V1),
        (b"PROXY UNKNOWN\r\n", 6, Protocol.PROXY_V1),
        (b"PROXYING /", 9, Protocol.HTTP),
        (V2 + b"\x21\x11\x00\x0c", 12, Protocol.PROXY_V2),
        (b"M" * MAX_METHOD + b" /", MAX_METHOD + 1, Protocol.HTTP),
        (b"\r\nGET / HTTP/1.1\r\n", 6, Protocol.HTTP),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", 8, Protocol.HTTP),
        (b"\r\n\r\nPRI * HTTP/2.0\r\n", 8, Protocol.HTTP),
        (b"\r\n" * EMPTY_LINES + b"M" * MAX_METHOD + b" /", SNIFF_SIZE, Protocol.HTTP),
        (b"\r\n" * (EMPTY_LINES + 1), 2 * EMPTY_LINES + 2, Protocol.HTTP),
    ],
)
def test_protocols(data: bytes, needed: int, protocol: Protocol) -> None:
    """Each is recognised at the first octet that tells it from all others, whole or octet by octet."""
    assert decided(data) == (needed, protocol)


@pytest.mark.parametrize(
    ("data", "needed"),
    [
        (b"\x00", 1),
        (b"\x03\x01", 1),
        (b"\x06", 1),
        (b"\xff", 1),
        (b" GET /", 1),
        (b"\nGET /", 1),
        (b"\x16\x02\x01", 2),
        (b"\x15\x03\x01", 1),
        (b"\x17\x03\x01", 1),
        (b"\r\n\0", 3),
        (b"\r\n\r\n\n", 5),
        (b"\r\n\r\n\r\r", 6),
        (b"\r\n GET /", 3),
        (b"\rGET /", 2),
        (V2[:-1] + b"\0", 12),
        (b"GET\t/", 4),
        (b"GET\r\n", 4),
        (b"PROXY\tTCP4", 6),
        (b"PRI\r\n", 4),
        ("GÉT /".encode(), 2),
        (b"M" * (MAX_METHOD + 1) + b" /", MAX_METHOD + 1),
    ],
)
def test_what_is_none_of_them_is_unknown(data: bytes, needed: int) -> None:
    """An answer of its own, at the first octet that fits none: nobody waits for more of what cannot become anything."""
    assert decided(data) == (needed, Protocol.UNKNOWN)


def test_every_nmethods_is_socks5() -> None:
    """The second octet is not looked at, also where it is a letter, a line's end or 03."""
    for methods in range(256):
        assert sniff(b"\x05%c" % methods) is Protocol.SOCKS5, methods


def test_the_first_octet() -> None:
    """Alone it decides for SOCKS, and against whatever begins neither a signature nor a token."""
    for octet in range(256):
        if octet in (4, 5):
            expected: object = Protocol.SOCKS4 if octet == 4 else Protocol.SOCKS5
        else:
            expected = NEED_DATA if octet in TOKEN + b"\x16\r" else Protocol.UNKNOWN
        assert sniff(bytes((octet,))) == expected, octet


def test_a_method_is_of_token_octets() -> None:
    """RFC 9110 section 5.6.2: these and no others, in front of the space."""
    for octet in range(256):
        expected = Protocol.HTTP if octet in TOKEN + b" " else Protocol.UNKNOWN
        assert sniff(b"M%c /" % octet) is expected, octet


@pytest.mark.parametrize("signature", [signature for signature, _ in SIGNATURES])
def test_a_signature_that_is_cut_needs_more(signature: bytes) -> None:
    """At every offset; the whole one needs nothing."""
    for end in range(len(signature)):
        assert sniff(signature[:end]) is NEED_DATA
    assert sniff(signature) is not NEED_DATA


starts = st.sampled_from([b"", b"\x16\x03", b"PRI * HTTP/2.0", b"PROXY ", V2, b"GET ", b"M" * MAX_METHOD])
beginnings = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda start, end, rest: start[:end] + rest, starts, st.integers(0, 40), st.binary(max_size=40)),
    st.text(TOKEN.decode() + " ", max_size=60).map(str.encode),
)


@given(beginnings)
@example(b"M" * MAX_METHOD)
@example(b"M" * SNIFF_SIZE)
def test_an_answer_comes_in_time_and_stays(data: bytes) -> None:
    """After SNIFF_SIZE octets there is one, and the octets behind the first answer never change it."""
    padded = data + bytes(SNIFF_SIZE)
    needed, protocol = decided(padded)
    assert needed <= SNIFF_SIZE
    assert isinstance(protocol, Protocol)


@pytest.mark.parametrize(
    ("data", "needed", "payload"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 2, Payload.TLS),
        (b"GET / HTTP/1.1\r\n", 5, Payload.HTTP1),
        (b"GET http://name.test/ HTTP/1.1\r\n", 5, Payload.HTTP1),
        (b"OPTIONS * HTTP/1.1\r\n", 9, Payload.HTTP1),
        (b"CONNECT name.test:443 HTTP/1.1\r\n", 8, Payload.HTTP1),
        (b"PROPFIND /", 10, Payload.HTTP1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", 24, Payload.HTTP2),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 4, Payload.SSH),
        (b"", None, None),
        (b"\0", 1, Payload.RAW),
        (b"\x16\x02", 2, Payload.RAW),
        (b"EHLO name.test\r\n", 1, Payload.RAW),
        (b"HELO name.test\r\n", 3, Payload.RAW),
        (b"GET key\r\n", 5, Payload.RAW),
        (b"get key\r\n", 1, Payload.RAW),
        (b"GETTING", 4, Payload.RAW),
        (b"POP3", 3, Payload.RAW),
        (b"PRI /", 5, Payload.RAW),
        (b"PRI * HTTP/2.0\r\n\r\nXX", 19, Payload.RAW),
        (b"SSL", 3, Payload.RAW),
        (b"\r\n", 1, Payload.RAW),
        (b"\x05\x01\x00", 1, Payload.RAW),
    ],
)
def test_payloads(data: bytes, needed: int | None, payload: Payload | None) -> None:
    """Each at the first octet that decides: what waits for an answer after few octets is never held back for more."""
    answers = [sniff_payload(data[:end]) for end in range(len(data) + 1)]
    if needed is None:
        assert answers == [NEED_DATA]
    else:
        assert answers[:needed] == [NEED_DATA] * needed
        assert set(answers[needed:]) == {payload}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_before_a_target(method: str) -> None:
    """One method may begin as another does."""
    assert sniff_payload(f"{method} /".encode()) is Payload.HTTP1


@given(beginnings)
def test_the_name_of_a_payload_stays(data: bytes) -> None:
    """More octets never change an answer, and there is one after as many as the longest signature has."""
    longest = max(map(len, BEGINNINGS)) + 1
    answers = [sniff_payload((data + bytes(longest))[:end]) for end in range(len(data) + longest)]
    needed = next(at for at, answer in enumerate(answers) if answer is not NEED_DATA)
    assert needed <= longest
    assert set(answers[needed:]) == {answers[needed]}


@pytest.mark.parametrize("before", [b"", b"\n", b"\r\n", b"\r\n" * EMPTY_LINES])
@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n", b"get /x HTTP/1.0\n", b"M-X * HTTP/1.1\r\n"])
def test_a_whole_request_line(before: bytes, line: bytes) -> None:
    """Of any method, behind empty lines too."""
    assert is_request(before + line + b"Host: a\r\n")
    for end in range(len(before + line) - 1):
        assert not is_request((before + line)[:end])


@pytest.mark.parametrize(
    "data",
    [b"", b"\r\n", b"GET key\r\n", b"EHLO a HTTP\r\n", b"OPTIONS a RTSP/1.0\r\n", b"\r\n" * 99 + b"GET / HTTP/1.1\r\n"],
)
def test_what_is_no_request_line(data: bytes) -> None:
    """Protocols of lines are not taken for HTTP."""
    assert not is_request(data)
