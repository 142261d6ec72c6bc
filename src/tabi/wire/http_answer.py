"""The answers of an HTTP proxy itself: errors (RFC 9209), the answer to CONNECT, Basic credentials. No I/O."""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus

from tabi.wire.http_fields import Field

CONNECT_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

BASIC = re.compile(rb"basic +((?:[a-z0-9+/]{4})*(?:[a-z0-9+/]{2}==|[a-z0-9+/]{3}=)?)", re.IGNORECASE)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # strftime asks the locale
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
NOT_IN_STRING = re.compile(r"[^ -~]")


def decode_basic(value: bytes) -> tuple[bytes, bytes] | None:
    """User name and password of a value such as ``Basic YWxpY2U6cHc=`` (RFC 7617); None if it is not such a value."""
    found = BASIC.fullmatch(value)
    if found is None:
        return None
    credentials = a2b_base64(found[1])
    name, colon, password = credentials.partition(b":")
    return (name, password) if colon and not CONTROL.search(credentials) else None


def encode_connection(keep_alive: bool, minor: int) -> bytes:
    """The Connection field for a client of HTTP/1.<minor>, with CRLF in front; empty if none is needed."""
    if not keep_alive:
        return b"\r\nConnection: close"
    return b"" if minor else b"\r\nConnection: keep-alive"


@lru_cache(1)
def encode_date(seconds: int) -> bytes:
    """The field Date for a time in seconds since 1970, with CRLF in front (RFC 9110 section 5.6.7)."""
    when = EPOCH + timedelta(seconds=seconds)
    return b"\r\nDate: " + f"{DAYS[when.weekday()]}, {when:%d} {MONTHS[when.month - 1]} {when:%Y %H:%M:%S} GMT".encode()


def encode_error(
    status: int,
    error: str | None,
    details: str,
    *,
    minor: int = 1,
    keep_alive: bool = False,
    fields: Iterable[Field] = (),
    head: bool = False,
    date: bytes = b"",
) -> bytes:
    """A whole response that the proxy itself gives, with the reason in Proxy-Status (RFC 9209) and in its text.

    Args:
        status: a registered one.
        error: a proxy error type of RFC 9209 section 2.3, or None where none fits.
        details: for people; what is not ASCII or cannot be seen becomes a question mark.
        minor: of the client's HTTP/1.<minor>.
        keep_alive: the connection stays open.
        fields: more of them, such as Proxy-Authenticate.
        head: it answers a HEAD: the text is counted, but not sent.
        date: a field of `encode_date`.
    """
    details = NOT_IN_STRING.sub("?", details)
    quoted = details.replace("\\", "\\\\").replace('"', '\\"')
    reason = HTTPStatus(status).phrase
    text = f"{status} {reason}: {details}\n"
    lines = [
        f"HTTP/1.1 {status} {reason}\r\n"
        f'Proxy-Status: tabi{f"; error={error}" if error else ""}; details="{quoted}"\r\n'
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}".encode("ascii"),
        *(b"\r\n%b: %b" % field for field in fields),
        date,
        encode_connection(keep_alive, minor),
        b"\r\n\r\n",
    ]
    return b"".join(lines) + (b"" if head else text.encode("ascii"))
