"""What the proxy itself says: errors with their reason, the word to a CONNECT; and Basic credentials."""

from __future__ import annotations

import base64
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_heads import BODY, lines
from tabi.wire.http import CONNECT_ESTABLISHED, decode_basic, decode_response, encode_date, encode_error


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


@pytest.mark.parametrize("seconds", [0, 1_000_000_000, 1_709_164_800, 1_795_881_600, 4_102_444_799])
def test_dates(seconds: int) -> None:
    """RFC 9110 section 5.6.7, whatever the locale is; an error has one where it is given."""
    written = f"Date: {formatdate(seconds, usegmt=True)}"
    assert encode_date(seconds).decode() == f"\r\n{written}"
    head, _, _ = encode_error(502, None, "x", date=encode_date(seconds)).partition(b"\r\n\r\n")
    assert written in head.decode().split("\r\n")


@given(st.binary(max_size=60))
def test_any_credentials(value: bytes) -> None:
    """Names and passwords or None come of any octets."""
    assert decode_basic(value) is None
    name, _, password = value.partition(b":")
    encoded = b"Basic " + base64.b64encode(name + b":" + password)
    controls = any(octet < 0x20 or octet == 0x7F for octet in name + password)
    assert decode_basic(encoded) == (None if controls else (name, password))
