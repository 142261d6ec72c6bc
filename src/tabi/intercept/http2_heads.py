"""Heads of HTTP/2 as hooks see them, and as hooks have left them."""

from __future__ import annotations

from collections.abc import Iterable

from tabi.intercept.flow import FlowRequest, FlowResponse, Message
from tabi.intercept.framing import BODILESS
from tabi.intercept.headers import Headers, to_octets
from tabi.wire.h2 import H2Request
from tabi.wire.hpack import Field

VERSION = "HTTP/2"

OF_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"http2-settings")
)
"""Fields that HTTP/2 does not have (RFC 9113 section 8.2.2): a hook may have set them."""


def headers_of(fields: list[Field]) -> Headers:
    """What hooks see of a request's fields. Crumbs of Cookie are one field again (RFC 9113 section 8.2.3)."""
    crumbs = [value for name, value in fields if name == b"cookie"]
    if len(crumbs) < 2:
        return Headers(fields)
    kept = [field for field in fields if field[0] != b"cookie"]
    at = next(at for at, field in enumerate(fields) if field[0] == b"cookie")
    kept.insert(at, (b"cookie", b"; ".join(crumbs)))
    return Headers(kept)


def host_of(request: H2Request) -> bytes | None:
    """The host that a request names, by :authority or by Host."""
    if request.authority:
        return request.authority
    return next((value for name, value in request.fields if name == b"host"), None)


def to_fields(headers: Headers, came: Iterable[Field] = (), authority: bytes = b"") -> list[Field]:
    """Fields as HTTP/2 sends them: names in small letters, none of a connection.

    Args:
        headers: as hooks have left them.
        came: as they came: what was not to be indexed then is not to be now.
        authority: of the request; where there is none Host says it.
    """
    kinds = {field[0]: type(field) for field in came if type(field) is not tuple}
    found: list[Field] = []
    for name, value in headers.raw:
        name, value = name.lower(), value.strip(b" \t")
        if name in OF_CONNECTION or (name == b"host" and authority):
            continue
        if name == b"te" and value.lower() != b"trailers":
            continue
        kind = kinds.get(name)
        found.append((name, value) if kind is None else kind((name, value)))  # type: ignore[misc]
    return found


def request_head(request: H2Request, message: FlowRequest) -> H2Request:
    """A request as the hooks have left it."""
    return H2Request(
        message.method.encode("latin-1"),
        request.scheme,
        request.authority,
        to_octets(message.path) if request.path else b"",
        request.protocol,
        to_fields(message.headers, request.fields, request.authority),
    )


def settle_response(message: FlowResponse, asked: str, method: bytes) -> bool:
    """Have an answer's content be what its status and its request want, after hooks have changed these.

    Args:
        message: as the hooks have left it; gets an empty content where it must have one.
        asked: the method that the destination was asked with.
        method: that of the client.

    Returns:
        whether the client gets no content, whatever the head says.
    """
    status = message.original[0]
    if message.status in BODILESS:
        if message.status != status:
            message._content = b""
        return True
    if method == b"HEAD":
        return True
    if message._content is None and (asked == "HEAD" or status in BODILESS):
        message._content = b""
    return False


def reframe(message: Message, came: list[Field], shown: bool = False) -> None:
    """Have Content-Length say how much content is sent, whatever hooks have made of it.

    Args:
        message: the head.
        came: its fields as they came.
        shown: hooks may make its content longer or shorter.
    """
    headers, content = message.headers, message._content
    if content is not None and isinstance(message, FlowResponse) and message.status in BODILESS:
        headers.remove("content-length")
    elif content is not None:
        length = str(len(content))
        if headers.get_all("content-length") != [length]:
            headers["content-length"] = length
    elif shown:
        headers.remove("content-length")
    elif headers.changed:
        lengths = [field for field in came if field[0] == b"content-length"]
        kept = [field for field in headers.raw if field[0].lower() != b"content-length"]
        if len(kept) + len(lengths) != len(headers.raw) or not set(lengths) <= set(headers.raw):
            headers.raw = kept + lengths
