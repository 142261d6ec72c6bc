"""Asking another server in place of the destination: a small HTTP/1.1 client, for `Flow.reroute`.

Each request has a connection of its own. Rules, the guard and limits are the opener's: nothing is dialled here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Protocol, Self

from tabi.errors import HttpError, RemoteProtocolError
from tabi.intercept.content import Content
from tabi.intercept.flow import Reroute
from tabi.net.failures import is_deadline, timeout_error
from tabi.net.stream import Stream
from tabi.wire.address import Address
from tabi.wire.http import VIA, Request, Response, decode_response, rewrite_request
from tabi.wire.http_fields import Field, Fields
from tabi.wire.http_head import RequestHead
from tabi.wire.http_syntax import ANSWER_HEAD_LIMIT

READ_SIZE = 1 << 14
"""Octets of one read of a head."""

PIECE = 1 << 16
"""Octets of content that are sent within a deadline."""

MOST_INTERIM = 32
"""Interim answers (1xx) that are passed over."""

NOT_SENT = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"trailer"))
"""Fields of the request that are written anew, or mean nothing here."""

WITH_LENGTH = frozenset(("POST", "PUT", "PATCH"))
"""Methods whose requests say it where there is no content (RFC 9110 section 8.6)."""


class OpenStream(Protocol):
    """Opens a connection to a server. It decides whether that server may be asked, and by which egress."""

    def __call__(self, destination: Address, tls: bool, via: str | None) -> Awaitable[Stream]:
        """Connect, with TLS where that is wanted. Raises TabiError, OSError."""


class Fetched:
    """An answer, whose content is read as it is wanted. Whoever has it closes it.

    Attributes:
        status: 200 to 999.
        reason: may be empty.
        fields: to send on, as they came (`Headers.raw`), without those of the connection. Content-Length is among them,
            where the server sent it.
    """

    __slots__ = ("body", "fields", "idle", "reason", "status", "stream")

    def __init__(self, stream: Stream, response: Response, buffer: bytearray, idle: float) -> None:
        self.status = response.status
        self.reason = response.reason
        self.fields: list[Field] = Fields.decode(response.fields).raw
        self.stream = stream
        self.body = Content(stream, buffer, response.body, wanted=True)
        self.idle = idle

    def content(self) -> AsyncIterator[bytes]:
        """What it carries, in pieces, without chunks and trailers. Nothing is read before it is asked for.

        Raises:
            RemoteProtocolError: it is not what its head says, ends too early, or nothing comes for too long.
            OSError: the connection broke.
        """
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self.body.done:
            async with within(self.idle):
                _, carried = await self.body.next()
            if carried:
                return carried
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close its connection. Harmless when done twice."""
        self.stream.close()


async def fetch(
    open_stream: OpenStream,
    reroute: Reroute,
    method: str,
    fields: Iterable[Field],
    content: bytes,
    *,
    connect: float,
    idle: float,
) -> Fetched:
    """Ask a server for a URL; returns when the head of its answer is there.

    Args:
        open_stream: opens the connection.
        reroute: has the URL, of http or https, and the egress for ``open_stream``. User information in the URL becomes
            Basic credentials.
        method: such as ``GET``.
        fields: of the request; those of the connection, Host and framing are left out, and written anew.
        content: all of it, as Content-Encoding says.
        connect: seconds until the connection is open.
        idle: seconds that may pass without an octet.

    Raises:
        HttpError: the request cannot be sent.
        ConnectTimeout: the connection was not open in time.
        RemoteProtocolError: what comes is not HTTP, ends too early, or does not come.
        TabiError, OSError: as ``open_stream``; the connection broke.
    """
    request, octets = make_request(reroute.url, method, fields, content, reroute.bare)
    try:
        async with asyncio.timeout(connect):
            stream = await open_stream(request.destination, request.tls, reroute.via)
    except TimeoutError as exc:
        if is_deadline(exc):
            raise timeout_error(connect, request.destination) from None
        raise
    try:
        await send(stream, octets, idle)
        response, buffer = await receive_head(stream, method, idle)
    except BaseException:
        stream.close()
        raise
    return Fetched(stream, response, buffer, idle)


def make_request(
    url: str, method: str, fields: Iterable[Field], content: bytes, bare: bool = False
) -> tuple[Request, bytes]:
    """The request, and its octets with the content; ``bare``: it gets no Via of ours. Raises HttpError."""
    try:
        kept = Fields((name, value) for name, value in fields if name.lower() not in NOT_SENT)
        kept.add(b"Host", b"-")  # the URL says which
        if content or method in WITH_LENGTH:
            kept.add(b"Content-Length", b"%d" % len(content))
        request = rewrite_request(RequestHead(method, url, kept))
    except ValueError as exc:
        raise HttpError(str(exc)) from None
    if not request.head:
        raise HttpError("CONNECT is not sent to another server")
    head = request.head.removesuffix(VIA[request.minor]) if bare else request.head
    return request, head + b"\r\nConnection: close\r\n\r\n" + content


async def send(stream: Stream, octets: bytes, idle: float) -> None:
    """Send the request. A server may answer before it has all, and take no more: its answer says why."""
    view = memoryview(octets)
    try:
        for at in range(0, len(view), PIECE):
            async with within(idle):
                await stream.send_all(view[at : at + PIECE])
    except (OSError, RemoteProtocolError):
        pass


async def receive_head(stream: Stream, method: str, idle: float) -> tuple[Response, bytearray]:
    """The head of the final answer, and what was read behind it. Errors as `fetch`."""
    buffer, seen, interim = bytearray(), 0, 0
    while True:
        found = decode_response(buffer, method, ANSWER_HEAD_LIMIT, seen, interim > 0) if buffer else None
        if found is None:
            seen = len(buffer)
            async with within(idle):
                data = await stream.receive(READ_SIZE)
            if not data:
                raise RemoteProtocolError("the server ended the connection before its answer")
            buffer += data
            continue
        response, end = found
        del buffer[:end]
        if not response.interim:
            break
        seen, interim = 0, interim + 1
        if interim > MOST_INTERIM:
            raise RemoteProtocolError(f"more than {MOST_INTERIM} interim answers")
    if response.status < 200:
        raise RemoteProtocolError(f"status {response.status}, which was not asked for")
    return response, buffer


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """A deadline for one step. Raises RemoteProtocolError when it is over."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        if is_deadline(exc):
            raise RemoteProtocolError(f"no octet passed for {seconds:g} s") from None
        raise
