"""Framing: heads as hooks have left them, and how their content is sent.

A hook may change nearly all of a message. Where its content ends is found out once, when the head comes, and the head
that goes on says just that, whatever a hook has made of Content-Length, Transfer-Encoding, the status or the method.
"""

from __future__ import annotations

from time import time

from tabi.intercept.flow import Answer, FlowRequest, FlowResponse, Message, reason_of
from tabi.intercept.headers import Headers, to_octets
from tabi.wire.http import encode_date
from tabi.wire.http_fields import Fields
from tabi.wire.http_framing import CHUNKED
from tabi.wire.http_head import ResponseHead
from tabi.wire.http_origin import OriginRequest, OriginResponse

BODILESS = (204, 304)
"""Statuses whose answers have no content, whatever their fields say (RFC 9110 section 6.4.1)."""

FRAMING = ("Content-Length", "Transfer-Encoding")


def request_octets(request: OriginRequest, message: FlowRequest, chunks: bool = False) -> bytes:
    """A request's head as it is sent on.

    Args:
        request: as it came.
        message: as the hooks have left it.
        chunks: its content is sent in chunks.
    """
    reframe(message, request.fields, request.body, chunks)
    if not message.changed:
        return request.octets
    end = request.octets.index(b"\r\n")
    version = request.octets[end - len(b" HTTP/1.1") : end]
    return to_octets(f"{message.method} {message.path}") + version + message.headers.encode() + b"\r\n\r\n"


def settle_response(response: OriginResponse, message: FlowResponse, asked: str, method: str) -> bool:
    """Have an answer's content be what its status and its request want, after hooks have changed these.

    Args:
        response: as it came.
        message: as the hooks have left it; gets an empty content where it must have one.
        asked: the method that the destination was asked with.
        method: that of the client.

    Returns:
        whether the client gets no content, whatever the head says.
    """
    came_without = asked == "HEAD" or response.status in BODILESS
    if message.status in BODILESS:
        if message.status != response.status or message._content is not None:
            message._content = b""
        return True
    if method == "HEAD":
        return True
    if came_without and message._content is None:
        message._content = b""
    return False


def response_octets(
    response: OriginResponse, message: FlowResponse, chunks: bool = False, open_end: bool = False
) -> bytes:
    """A response's head as it is sent on.

    Args:
        response: as it came.
        message: as the hooks have left it.
        chunks: its content is sent in chunks.
        open_end: it is sent until the connection closes.
    """
    reframe(message, response.fields, response.body, chunks, open_end)
    if message.status in BODILESS and message._content is not None:
        message.headers.remove("Content-Length")
    if not message.changed:
        return response.octets
    head = ResponseHead(message.status, to_octets(message.reason), Fields(), response.minor)
    return head.match_line()[0] + message.headers.encode() + b"\r\n\r\n"


def reframe(message: Message, fields: bytes, body: int, chunks: bool = False, open_end: bool = False) -> None:
    """Have a head say how its content is sent.

    Args:
        message: the head.
        fields: those that came.
        body: how its content came: octets, CHUNKED or UNTIL_CLOSE.
        chunks: it is sent in chunks.
        open_end: it is sent until the connection closes.
    """
    headers = message.headers
    if message._content is not None:
        for name in ("Transfer-Encoding", "Trailer"):
            headers.remove(name)
        length = [str(len(message._content))]
        if headers.get_all("Content-Length") != length:
            headers["Content-Length"] = length[0]
    elif chunks:
        for name in ("Content-Length", "Trailer"):
            headers.remove(name)
        if body != CHUNKED or [one.lower() for one in headers.get_all("Transfer-Encoding")] != ["chunked"]:
            headers.remove("Transfer-Encoding")
            headers.add("Transfer-Encoding", "chunked")
    elif open_end:
        for name in (*FRAMING, "Trailer"):
            headers.remove(name)
    elif headers.changed:
        came = Headers(fields)
        for name in FRAMING:
            values = came.get_all(name)
            if headers.get_all(name) != values:
                headers.remove(name)
                for value in values:
                    headers.add(name, value)


def answer_of(answer: Answer) -> tuple[FlowResponse, bytes]:
    """A hook's answer: its head, with the right length, and its content."""
    headers, body = answer.headers, answer.body
    for name in (*FRAMING, "Connection"):
        headers.remove(name)
    if answer.status in BODILESS:
        body = b""
    else:
        headers.add("Content-Length", str(len(body)))
    return FlowResponse(answer.status, reason_of(answer.status), "HTTP/1.1", headers), body


def own_head(response: FlowResponse, keep: bool, minor: int) -> bytes:
    """The head of an answer that did not come from the destination.

    Args:
        response: the answer.
        keep: the connection goes on.
        minor: of the client's HTTP/1.<minor>.
    """
    head = ResponseHead(response.status, to_octets(response.reason), Fields())
    head.fields.raw = list(response.headers.raw)
    date = b"" if "Date" in response.headers else encode_date(int(time()))
    connection = b"" if keep and minor else b"\r\nConnection: " + (b"keep-alive" if keep else b"close")
    return head.match_line()[0] + head.fields.encode() + date + connection + b"\r\n\r\n"
