"""A recorded request as a command for curl, quoted for a shell: nothing in a record can become a command."""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

from tabi.errors import TabiError
from tabi.intercept.har import text_of
from tabi.intercept.record import Record, first_value
from tabi.wire.http_body import TOKEN
from tabi.wire.http_fields import HOP_BY_HOP

FIELD_NAME = re.compile(TOKEN)
LEFT_OUT = HOP_BY_HOP | {b"content-length", b"trailer"}
"""Fields of one connection, which curl writes itself."""

SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def as_curl(record: Record) -> str:
    """The command. Raises TabiError if its URL is not one of HTTP."""
    scheme, colon, rest = record.url.partition(":")
    if scheme.lower() not in SCHEMES or not rest.startswith("//"):
        raise TabiError("not a URL of http, https, ws or wss")
    url = SCHEMES[scheme.lower()] + colon + rest
    words = [url]
    if re.search(r"[\[\]{}]", url):
        words.append("--globoff")
    if re.search(r"/\.\.?(?:[/?#]|$)", url):
        words.append("--path-as-is")
    body = record.request_body
    method = record.method
    if method.upper() == "HEAD" and not body:
        words.append("-I")
    elif method != ("POST" if body else "GET"):
        words += ["-X", method]
    words += headers_of(record, url)
    command = "curl " + " ".join(map(quote, words))
    if not body:
        return command
    if b"\0" in body:  # which no argument can hold
        return f"printf '{format_of(body)}' | {command} --data-binary @-"
    return f"{command} --data-raw {quote_octets(body)}"


def headers_of(record: Record, url: str) -> list[str]:
    """The options for the fields."""
    found: list[str] = []
    for name, value in record.request_fields:
        lower = name.lower()
        if lower in LEFT_OUT or not FIELD_NAME.fullmatch(name) or re.search(rb"[\r\n\0]", value):
            continue
        if lower == b"host" and text_of(value).lower() == host_of(url):
            continue
        if lower == b"content-encoding" and record.decoded:
            continue
        if lower == b"accept-encoding":
            found.append("--compressed")
        text = text_of(value).strip()
        found += ["-H", f"{text_of(name)}: {text}" if text else f"{text_of(name)};"]
    if record.request_body and first_value(record.request_fields, b"content-type") is None:
        found += ["-H", "Content-Type:"]
    return found


def host_of(url: str) -> str:
    """Host and port of a URL, without user information."""
    try:
        return urlsplit(url.lower()).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def quote(text: str) -> str:
    """A text as one word of a shell; what cannot be seen is escaped."""
    if text.isprintable():
        return shlex.quote(text)
    return quote_octets(text.replace("\0", "").encode("utf-8", "backslashreplace"))


def quote_octets(data: bytes) -> str:
    """Octets without NUL as one word of a shell: in plain quotes if all of it can be seen, else as ``$'…'``."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and text:
        return shlex.quote(text)
    return "$'" + "".join(escaped(octet) for octet in data) + "'"


def escaped(octet: int) -> str:
    """One octet within ``$'…'``."""
    if octet in b"'\\":
        return "\\" + chr(octet)
    return chr(octet) if 0x20 <= octet < 0x7F else NAMED.get(octet, f"\\{octet:03o}")


NAMED = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}


def format_of(data: bytes) -> str:
    """Octets as the format of printf(1), in single quotes."""
    special = b"'\\%-"
    return "".join(
        chr(octet) if 0x20 <= octet < 0x7F and octet not in special else f"\\{octet:03o}" for octet in data
    ).replace("\\045", "%%")
