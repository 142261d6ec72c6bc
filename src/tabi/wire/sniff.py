"""Which protocol a connection speaks, told by its first octets, which stay where they are. No I/O.

What clients of a listener speak (`sniff`):

SOCKS4           04
SOCKS5           05, with any NMETHODS after it
TLS              16 03: a record of the handshake, of any version
HTTP/1           a method, which is a token (RFC 9110 section 5.6.2), and a space. Empty lines before it do not count
                 (RFC 9112 section 2.2).
HTTP/2           the preface of RFC 9113 section 3.4, up to the version: from a client with prior knowledge
PROXY v1, v2     the signatures of the PROXY protocol, section 2

What a client then says to its destination (`sniff_payload`): TLS and HTTP/2 as above, HTTP/1.1 by a registered method
and the beginning of a target, SSH by its version (RFC 4253 section 4.2). There nothing may wait for more octets than
its own protocol does, so that the rest is not looked at.
"""

from __future__ import annotations

import re
from enum import StrEnum

from tabi.wire.http_syntax import EMPTY_LINES
from tabi.wire.machine import NEED_DATA, NeedData

MAX_METHOD = 32
"""Octets of an HTTP method. The longest that is registered, UPDATEREDIRECTREF, has 17."""

SNIFF_SIZE = 2 * EMPTY_LINES + MAX_METHOD + 1
"""Octets after which `sniff` never needs more."""


class Protocol(StrEnum):
    """What `sniff` can say."""

    SOCKS4 = "socks4"
    SOCKS5 = "socks5"
    TLS = "tls"
    HTTP = "http"
    HTTP2 = "http2"
    PROXY_V1 = "proxy v1"
    PROXY_V2 = "proxy v2"
    UNKNOWN = "unknown"


# SOCKS first: it is the most frequent.
SIGNATURES = (
    (b"\x05", Protocol.SOCKS5),
    (b"\x04", Protocol.SOCKS4),
    (b"\x16\x03", Protocol.TLS),
    (b"PROXY ", Protocol.PROXY_V1),
    (b"\r\n\r\n\0\r\nQUIT\n", Protocol.PROXY_V2),
    (b"PRI * HTTP/2.0", Protocol.HTTP2),
)
HTTP, UNKNOWN = Protocol.HTTP, Protocol.UNKNOWN

TOKEN = re.compile(rb"[!#$%%&'*+.^_`|~0-9A-Za-z-]{1,%d}" % MAX_METHOD)


def sniff(data: bytes) -> Protocol | NeedData:
    """Name the protocol of a connection that begins with ``data``, at the first octet that decides.

    More octets never change an answer; NEED_DATA means that they are needed for one.
    """
    for signature, protocol in SIGNATURES:
        if data.startswith(signature):
            return protocol
        if signature.startswith(data):
            return NEED_DATA
    at = 0
    while data.startswith(b"\r\n", at):
        at += 2
        if at > 2 * EMPTY_LINES:
            return HTTP  # which refuses them
    if at and data[at:] in (b"", b"\r"):
        return NEED_DATA
    method = TOKEN.match(data, at)
    if method is None:
        return UNKNOWN
    end = method.end()
    if end == len(data):
        return NEED_DATA
    return HTTP if data[end] == 0x20 else UNKNOWN


class Payload(StrEnum):
    """What `sniff_payload` can say."""

    TLS = "tls"
    HTTP1 = "http/1"
    HTTP2 = "h2"
    SSH = "ssh"
    RAW = "raw"


METHODS = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "QUERY", "ACL", "BASELINE-CONTROL", "BIND"),
    *("CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL"),
    *("MKREDIRECTREF", "MKWORKSPACE", "MOVE", "ORDERPATCH", "PROPFIND", "PROPPATCH", "REBIND", "REPORT", "SEARCH"),
    *("UNBIND", "UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL", "PURGE"),
)
"""The registry of the IANA without CONNECT, which any host follows, and PURGE, which caches know."""

PAYLOADS = {
    Payload.TLS: (b"\x16\x03",),
    Payload.HTTP2: (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
    Payload.SSH: (b"SSH-",),
    # A target begins as a path, a URL, or is an asterisk.
    Payload.HTTP1: (b"CONNECT ", *(f"{method} {first}".encode() for method in METHODS for first in "/h*")),
}
PAYLOAD = re.compile(b"|".join(b"(%b)" % b"|".join(map(re.escape, signatures)) for signatures in PAYLOADS.values()))
NAMES = tuple(PAYLOADS)
BEGINNINGS = frozenset(
    signature[:end] for signatures in PAYLOADS.values() for signature in signatures for end in range(len(signature))
)
"""All that may still become a signature."""


def sniff_payload(data: bytes) -> Payload | NeedData:
    """Name the protocol of a conversation in which a client begins with ``data``, at the first octet that decides.

    More octets never change an answer; NEED_DATA means that they are needed for one.
    """
    found = PAYLOAD.match(data)
    if found is not None and found.lastindex is not None:
        return NAMES[found.lastindex - 1]
    return NEED_DATA if data in BEGINNINGS else Payload.RAW


REQUEST = re.compile(rb"(?:\r\n|\n){0,%d}%b [!-~]+ HTTP/1\.[0-9]\r?\n" % (EMPTY_LINES, TOKEN.pattern))


def is_request(data: bytes) -> bool:
    """Whether octets begin with a whole request line of HTTP/1, also with a method that is not registered, or
    behind empty lines, which servers pass over (RFC 9112 section 2.2)."""
    return REQUEST.match(data) is not None
