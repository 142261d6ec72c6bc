"""The target of a request to a proxy (RFC 9112 section 3.2), and what a client has put into it. No I/O.

    http://[user[:password]@]host[:port][/path][?query][#fragment]     https, ws and wss likewise
    host:port                                                          of CONNECT

User information becomes Basic credentials, octets beyond ASCII are percent-encoded, and a fragment is cut: clients
leave them to the proxy. The rest of the authority is a host name or an address and a port, nothing else.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from tabi.errors import HttpError
from tabi.wire.address import Address, parse_host, parse_port

HTTP_PORT, HTTPS_PORT = 80, 443

OCTET = rb"[!-~\x80-\xff]"
# A URI is taken apart: the "s" of its scheme, authority (no "#", "/" and "?"), path and query (no "#"), fragment.
# ws is http to a server (RFC 6455 section 3) and asks for an Upgrade; most clients open a tunnel, aiohttp's does not.
URI = rb"(?i:http|ws)([sS]?)://([!\"$-.0->@-~\x80-\xff]++)([!\"$-~\x80-\xff]*+)(?:#[!\"$-~\x80-\xff]*+)?"
TARGET = URI + rb"|" + OCTET + rb"++"
OTHER_URI = re.compile(rb"(?!(?i:http|ws)[sS]?:)[A-Za-z][A-Za-z0-9+.-]*+://")
# Of the characters that RFC 3986 allows in a name, those of host names: no percent-encoding, no list separators.
AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9._~-]{1,255})(?::([0-9]{0,5}))?")
USER_INFORMATION = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:\x80-\xff-]++|%[0-9A-Fa-f]{2})*")
NOT_ASCII = re.compile(rb"[\x80-\xff]")
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def decode_target(
    method: bytes, target: bytes, secure: bytes | None, authority: bytes | None, path: bytes | None
) -> tuple[Address, bytes, bytes, bytes]:
    """Where a target points, the Host and the path to ask for there, and an Authorization, empty where there is none.

    ``secure``, ``authority`` and ``path`` are what TARGET finds in a URI, None of another target. Raises HttpError.
    """
    if method == b"CONNECT":
        return *decode_authority(target, "target of CONNECT", None), b"", b""
    if authority is None or path is None:
        if target.startswith((b"/", b"*")):
            raise HttpError("target: this is a proxy: ask with an absolute URI or CONNECT")
        if OTHER_URI.match(target):
            raise HttpError("target: another scheme, expected http or https", 501)
        raise HttpError("target: expected http://host[:port]/path")
    authorization = b""
    if 0x40 in authority:  # @
        user, _, authority = authority.partition(b"@")
        authorization = decode_user(user)
    if not path.startswith(b"/"):
        if not path and b"@" in target.partition(b"#")[2]:  # some take what is in front for user information
            raise HttpError("target: a fragment with @ behind the host, expected /path between them")
        path = b"*" if method == b"OPTIONS" and not path else b"/" + path
    if not path.isascii():
        path = NOT_ASCII.sub(lambda octet: b"%%%02X" % octet[0][0], path)
    destination, host = decode_authority(authority, "target", HTTPS_PORT if secure else HTTP_PORT)
    return destination, host, path, authorization


def decode_user(text: bytes) -> bytes:
    """The value of Authorization that user information stands for: Basic (RFC 7617), empty if it is empty.

    Raises:
        HttpError: it could be read in two ways. The error does not hold it.
    """
    if text in (b"", b":"):
        return b""
    if not USER_INFORMATION.fullmatch(text):
        raise HttpError("target: user information with characters that have to be percent-encoded")
    name, _, password = (unquote_to_bytes(part) for part in text.partition(b":"))
    if b":" in name:
        raise HttpError("target: a user name with a colon, which HTTP Basic cannot carry (RFC 7617)")
    if CONTROL.search(name) or CONTROL.search(password):
        raise HttpError("target: control characters in user information, which HTTP Basic cannot carry (RFC 7617)")
    return b"Basic " + b2a_base64(name + b":" + password, newline=False)


def decode_authority(text: bytes, what: str, default_port: int | None) -> tuple[Address, bytes]:
    """``host[:port]`` and its shortest form; without a default port one must be there. ``what`` is for the error."""
    try:
        return parse_authority(text, default_port)
    except ValueError as exc:
        raise HttpError(f"{what}: {exc}") from exc


@lru_cache(4096)  # of texts that can be one, so of at most 263 octets
def parse_authority(text: bytes, default_port: int | None) -> tuple[Address, bytes]:
    """As `decode_authority`, but raises ValueError."""
    if b"@" in text:
        raise ValueError("user information, expected host[:port]")
    found = AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError("no " + ("host:port" if default_port is None else "host[:port]"))
    host, digits = (part.decode() for part in found.groups(b""))
    if not digits and default_port is None:
        raise ValueError("no port, expected host:port")
    try:
        address = Address(parse_host(host), parse_port(digits) if digits else default_port or 0)
    except ValueError:  # its message has the text
        raise ValueError("no IPv6 address in brackets, or a port above 65535") from None
    return address, str(address).removesuffix(f":{default_port}").encode()
