"""Flow: one request and its answer as hooks see them, from the request's head to the end of the answer."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from tabi.intercept.codings import decode_content, encode_content
from tabi.intercept.headers import Headers

BODY_LIMIT = 1 << 20
"""Octets of content that a hook is given at most, where it names no limit."""


class Reader(Protocol):
    """Reads the content of one message for hooks; see `intercept.content`."""

    async def read_all(self, limit: int) -> bytes:
        """All of the content, as it was encoded. Raises TooLarge, OSError."""


class Message:
    """What requests and responses have in common."""

    __slots__ = ("_content", "_reader", "headers", "version")

    def __init__(self, version: str, headers: Headers) -> None:
        self.version = version
        self.headers = headers
        self._reader: Reader | None = None
        self._content: bytes | None = None  # another content, as it is sent

    async def read(self, limit: int = BODY_LIMIT, *, raw: bool = False) -> bytes:
        """Wait for the whole content. The message is held back until then.

        Args:
            limit: octets at most, also after decoding.
            raw: as it came; else what Content-Encoding stands for (gzip, deflate, br, zstd) is undone.

        Raises:
            TooLarge: it is larger; it goes on as it comes.
            ValueError: it is not what Content-Encoding says.
            OSError: the connection broke.
        """
        content = self._content
        if content is None:
            content = b"" if self._reader is None else await self._reader.read_all(limit)
        return content if raw else decode_content(content, self.headers.get("Content-Encoding"), limit)

    async def text(self, limit: int = BODY_LIMIT) -> str:
        """The content as text, in the charset of Content-Type (default: UTF-8). Errors as `read`."""
        data = await self.read(limit)
        try:
            return data.decode(charset_of(self.headers.get("Content-Type", "") or ""), "replace")
        except LookupError:
            return data.decode("utf-8", "replace")

    async def json(self, limit: int = BODY_LIMIT) -> Any:
        """The content as JSON. Errors as `read`; ValueError where it is not JSON."""
        return json_module.loads(await self.read(limit))

    def set_body(self, body: bytes | str) -> None:
        """Send another content. It is encoded as Content-Encoding says, and Content-Length is written anew.

        Raises:
            ValueError: Content-Encoding names a coding that is not known here.
        """
        data = body.encode() if isinstance(body, str) else bytes(body)
        self._content = encode_content(data, self.headers.get("Content-Encoding"))


class FlowRequest(Message):
    """The request of a flow. All of it may be changed, but for where it goes: see `Flow.reroute`."""

    __slots__ = ("_host", "_scheme", "_target", "method", "original")

    def __init__(self, method: str, scheme: str, host: str, target: str, version: str, headers: Headers) -> None:
        super().__init__(version, headers)
        self.method = method
        self._scheme = scheme
        self._host = host
        self._target = target
        self.original = (method, target)

    @property
    def url(self) -> str:
        """The whole URL, such as ``https://example.com/path?query``."""
        return f"{self._scheme}://{self._host}{self._target if self._target != '*' else ''}"

    @url.setter
    def url(self, url: str) -> None:
        """Ask for something else of the same server. Raises ValueError for another server."""
        parts = urlsplit(url)
        if (parts.scheme, parts.netloc.lower()) != (self._scheme, self._host.lower()):
            raise ValueError("another server: reroute(url) asks it in place of this one")
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def path(self) -> str:
        """Path and query, as they stand in the request."""
        return self._target

    @path.setter
    def path(self, path: str) -> None:
        """Raises ValueError where it cannot be sent."""
        if not path.startswith("/") or not all(char >= "!" for char in path) or "\x7f" in path:
            raise ValueError("a path begins with / and has no white space and no control characters")
        self._target = path

    @property
    def scheme(self) -> str:
        """``https`` or ``http``."""
        return self._scheme

    @property
    def host(self) -> str:
        """The host that was asked for, and its port where that is not the usual one."""
        return self._host

    @property
    def changed(self) -> bool:
        """Whether the head is not what it was."""
        return self.headers.changed or self.original != (self.method, self._target)

    def __repr__(self) -> str:
        return f"<FlowRequest {self.method} {self._scheme}://{self._host}>"  # path and query may hold secrets


class FlowResponse(Message):
    """The response of a flow. All of it may be changed."""

    __slots__ = ("original", "reason", "status")

    def __init__(self, status: int, reason: str, version: str, headers: Headers) -> None:
        super().__init__(version, headers)
        self.status = status
        self.reason = reason
        self.original = (status, reason)

    @property
    def changed(self) -> bool:
        """Whether the head is not what it was."""
        return self.headers.changed or self.original != (self.status, self.reason)

    def __repr__(self) -> str:
        return f"<FlowResponse {self.status}>"


class Answer(NamedTuple):
    """An answer in place of the destination's."""

    status: int
    headers: Headers
    body: bytes


class Reroute(NamedTuple):
    """Another server is asked in place of the destination."""

    url: str
    via: str | None


class Drop(NamedTuple):
    """The client gets no answer: its connection, or its stream of HTTP/2, is reset."""


Instead = Answer | Reroute | Drop


class TlsInfo(NamedTuple):
    """What is known of TLS with both sides."""

    sni: str | None
    """The name that the client asked for."""
    alpn: str | None
    """The protocol that was chosen, such as ``h2``."""
    version: str | None
    """With the destination, such as ``TLSv1.3``."""
    cipher: str | None
    """With the destination."""
    certificate: bytes | None
    """The destination's certificate, in DER."""
    verdict: str
    """``good``, or what is wrong with the certificate."""
    ja4: str | None
    """The fingerprint of the client's hello."""


class Flow:
    """One request and its answer.

    Attributes:
        id: unique while the server runs.
        client: address and port of the client.
        user: the client's user, None where there is none.
        listener: the URL of the listener.
        host, port: the destination that the client asked for.
        tls: None for plain HTTP.
        request, response: ``response`` is None until it has begun.
        tags: words of a hook's choice; they stand in records and can be searched for.
        error: why there is no whole answer.
        store: a place for what hooks want to remember of a flow.
    """

    __slots__ = (
        "client",
        "error",
        "host",
        "id",
        "instead",
        "listener",
        "port",
        "request",
        "response",
        "store",
        "tags",
        "tls",
        "user",
    )

    def __init__(
        self,
        number: str,
        client: tuple[str, int],
        user: str | None,
        listener: str,
        host: str,
        port: int,
        tls: TlsInfo | None,
        request: FlowRequest,
    ) -> None:
        self.id = number
        self.client = client
        self.user = user
        self.listener = listener
        self.host = host
        self.port = port
        self.tls = tls
        self.request = request
        self.response: FlowResponse | None = None
        self.tags: set[str] = set()
        self.error: str | None = None
        self.store: dict[str, Any] = {}
        self.instead: Instead | None = None

    def __repr__(self) -> str:
        return f"<Flow {self.id} {self.request!r}>"

    def respond(
        self, status: int = 200, body: bytes | str = b"", headers: Iterable[tuple[str, str]] | dict[str, str] = ()
    ) -> None:
        """Answer in place of the destination, from `request` or `response`.

        Args:
            status: 200 to 599.
            body: the whole content; Content-Length is written for it.
            headers: fields, in their order.

        Raises:
            ValueError: a field cannot be sent, or the status is not one of an answer.
        """
        if not 200 <= status <= 599:
            raise ValueError(f"status {status}: expected 200 to 599")
        pairs = headers.items() if isinstance(headers, dict) else headers
        fields = Headers()
        for name, value in pairs:
            fields.add(name, value)
        self.instead = Answer(status, fields, body.encode() if isinstance(body, str) else bytes(body))

    def drop(self) -> None:
        """Give no answer: the client's connection, or its stream of HTTP/2, is reset."""
        self.instead = Drop()

    def reroute(self, url: str, via: str | None = None) -> None:
        """Ask another server, and answer with what it says. From `request` only.

        Args:
            url: of http or https; it passes the rules, the guard and the limits again.
            via: the egress to take. Default: as the rules say.

        Raises:
            ValueError: it is not such a URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("reroute: expected an URL of http or https")
        self.instead = Reroute(url, via)


def charset_of(content_type: str) -> str:
    """The charset that a Content-Type names."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"') or "utf-8"
    return "utf-8"
