"""Flow: one request and its answer as hooks see them, from the request's head to the end of the answer."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from copy import copy
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from tabi.errors import HttpError, TabiError, TooLarge
from tabi.intercept.codings import decode_content, encode_content
from tabi.intercept.events import TlsInfo
from tabi.intercept.headers import Headers, to_octets
from tabi.wire.http_body import TEXT, TOKEN
from tabi.wire.http_fields import REWRITTEN_OF_RESPONSE, Field
from tabi.wire.http_target import URI, decode_target

BODY_LIMIT = 1 << 20
"""Octets of content that a hook is given at most, where it names no limit."""


CHARSETS = {
    *("utf-8", "utf8", "us-ascii", "ascii", "latin-1", "latin1", "macintosh", "koi8-r", "koi8-u", "tis-620"),
    *("utf-16", "utf-16le", "utf-16be", "gb2312", "gbk", "gb18030", "big5", "big5-hkscs", "euc-kr", "ks-c-5601-1987"),
    *("euc-jp", "iso-2022-jp", "shift-jis", "shift-jisx0213"),
    *(f"iso-8859-{number}" for number in range(1, 17) if number != 12),
    *(f"windows-{number}" for number in range(1250, 1259)),
}
"""Charsets that content is decoded of. The peer names one: others of Python are slow (punycode), no text (bz2), or not
there, which costs a look into folders each time."""

METHOD, REASON = re.compile(TOKEN.decode()), re.compile(TEXT)
PATH = re.compile(rb"/[!\"$-~\x80-\xff]*+")
WHOLE_URI = re.compile(URI)

State = tuple[tuple[Any, ...], Headers, list[Field] | None, bool, bytes | None]
"""What a hook may change of a message."""


class Reader(Protocol):
    """Reads the content of one message for hooks; see `intercept.content`."""

    async def read_all(self, limit: int) -> bytes:
        """All of the content, as it was encoded. Raises TooLarge, OSError."""


class Unreadable:
    """A reader of content that cannot be read here, or not any more."""

    def __init__(self, why: str) -> None:
        self.why = why

    async def read_all(self, limit: int) -> bytes:
        """Raises RuntimeError."""
        raise RuntimeError(self.why)


IN_THREAD = Unreadable("content is not read in a thread: read it in an async hook, and give it to asyncio.to_thread")
GONE = Unreadable("the content has gone on: read it in the hook that gets this message's head")


class Message:
    """What requests and responses have in common."""

    __slots__ = ("_content", "_headers", "_read", "_reader", "version")

    def __init__(self, version: str, headers: Headers) -> None:
        self.version = version
        self._headers = headers
        self._reader: Reader | None = None
        self._read: bytes | None = None  # what it has read
        self._content: bytes | None = None  # another content, as it is sent

    @property
    def headers(self) -> Headers:
        """The fields, in their order. They may be changed, or others set in their place."""
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        if not isinstance(headers, Headers):
            raise TypeError(f"headers: {type(headers).__name__}, expected tabi.Headers")
        headers.changed = True
        self._headers = headers

    async def read(self, limit: int = BODY_LIMIT, *, raw: bool = False) -> bytes:
        """Wait for the whole content. The message is held back until then. What was read can be read again, also later.

        Args:
            limit: octets at most, also after decoding.
            raw: as it came; else what Content-Encoding stands for (gzip, deflate, br, zstd) is undone.

        Raises:
            TooLarge: it is larger; it goes on as it comes.
            ValueError: it is not what Content-Encoding says.
            OSError: the connection broke.
            RuntimeError: it has gone on already, or this is a thread.
        """
        content = self._read if self._content is None else self._content
        if content is None:
            reader = self._reader
            if reader is None or (reader is GONE and not self._has_content()):
                return b""
            content = self._read = await reader.read_all(limit)
        if len(content) > limit:
            raise TooLarge(f"the content has more than {limit} octets")
        return content if raw else decode_content(content, self._encoding, limit)

    async def text(self, limit: int = BODY_LIMIT) -> str:
        """The content as text, in the charset of Content-Type (default: UTF-8). Errors as `read`."""
        return (await self.read(limit)).decode(charset_of(self.headers.get("Content-Type") or ""), "replace")

    async def json(self, limit: int = BODY_LIMIT) -> Any:
        """The content as JSON. Errors as `read`; ValueError where it is not JSON."""
        data = await self.read(limit)
        try:
            return json_module.loads(data)
        except RecursionError:
            raise ValueError("JSON: nested too deeply") from None

    def set_body(self, body: bytes | str) -> None:
        """Send another content. It is encoded as Content-Encoding says, and Content-Length is written anew.

        Raises:
            ValueError: Content-Encoding names a coding that is not known here.
        """
        self._content = encode_content(to_body(body), self._encoding)

    def _has_content(self) -> bool:
        """Whether the head says that content follows."""
        headers = self._headers
        if self.version == "HTTP/2":
            return self._read is None
        return headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers

    def pass_on(self) -> None:
        """It goes on: what was not read cannot be read any more."""
        self._reader = GONE

    @property
    def _encoding(self) -> str:
        """Content-Encoding, of all of its fields."""
        return ", ".join(self._headers.get_all("Content-Encoding"))

    def line(self) -> tuple[Any, ...]:
        """What may be changed of the first line."""
        raise NotImplementedError

    def set_line(self, line: tuple[Any, ...]) -> None:
        """Set it again."""
        raise NotImplementedError

    def state(self) -> State:
        """What a hook may change. It costs no copy: a change makes a new list of fields."""
        headers = self._headers
        return self.line(), headers, headers._raw, headers.changed, self._content

    def restore(self, state: State) -> None:
        """Undo what a hook has changed."""
        line, headers, raw, changed, self._content = state
        self._headers = headers
        headers._raw, headers.changed = raw, changed
        self.set_line(line)

    def copy(self) -> Self:
        """A message that may be changed by itself, in a thread, where no content can be read."""
        copied = copy(self)
        copied._headers = copy(self._headers)
        if copied._reader is not None:
            copied._reader = IN_THREAD
        return copied

    def take(self, copied: Self) -> None:
        """Take over what was changed of a copy."""
        if copied._headers.changed:
            self._headers.raw = copied._headers.raw
        self._content = copied._content
        self.set_line(copied.line())


class FlowRequest(Message):
    """The request of a flow. All of it may be changed, but for where it goes: see `Flow.reroute`."""

    __slots__ = ("_host", "_method", "_scheme", "_target", "original")

    def __init__(self, method: str, scheme: str, host: str, target: str, version: str, headers: Headers) -> None:
        super().__init__(version, headers)
        self._method = method
        self._scheme = scheme
        self._host = host
        self._target = target
        self.original = (method, target)

    @property
    def method(self) -> str:
        """Such as ``GET``."""
        return self._method

    @method.setter
    def method(self, method: str) -> None:
        """Raises ValueError where it cannot be sent."""
        if not METHOD.fullmatch(method) or method == "CONNECT":
            raise ValueError("method: expected a token such as GET, and not CONNECT")
        self._method = method

    @property
    def url(self) -> str:
        """The whole URL, such as ``https://example.com/path?query``."""
        target = self._target
        if not target.startswith("/"):  # of OPTIONS it is *
            return target if "://" in target else f"{self._scheme}://{self._host}"
        return f"{self._scheme}://{self._host}{target}"

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
        if not PATH.fullmatch(to_octets(path)):
            raise ValueError("path: expected / first, no white space, no control characters and no fragment")
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
        return self._headers.changed or self.original != (self._method, self._target)

    def line(self) -> tuple[str, str]:
        return self._method, self._target

    def set_line(self, line: tuple[Any, ...]) -> None:
        self._method, self._target = line

    def __repr__(self) -> str:
        return f"<FlowRequest {self.method} {self._scheme}://{self._host}>"  # path and query may hold secrets


class FlowResponse(Message):
    """The response of a flow. All of it may be changed."""

    __slots__ = ("_reason", "_status", "original")

    def __init__(self, status: int, reason: str, version: str, headers: Headers) -> None:
        super().__init__(version, headers)
        self._status = status
        self._reason = reason
        self.original = (status, reason)

    @property
    def status(self) -> int:
        """Of three digits."""
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        """The reason follows. Raises ValueError where it is not one of a final response."""
        self._status = checked_status(status)
        self._reason = reason_of(status)

    @property
    def reason(self) -> str:
        """The words behind the status; HTTP/2 has none."""
        return self._reason

    @reason.setter
    def reason(self, reason: str) -> None:
        """Raises ValueError where it cannot be sent."""
        if not REASON.fullmatch(to_octets(reason)):
            raise ValueError("reason: expected text without control characters")
        self._reason = reason

    @property
    def changed(self) -> bool:
        """Whether the head is not what it was."""
        return self._headers.changed or self.original != (self._status, self._reason)

    def line(self) -> tuple[int, str]:
        return self._status, self._reason

    def set_line(self, line: tuple[Any, ...]) -> None:
        self._status, self._reason = line

    def __repr__(self) -> str:
        return f"<FlowResponse {self.status}>"


class Answer(NamedTuple):
    """An answer in place of the destination's."""

    status: int
    headers: Headers
    body: bytes


class Fetched(Protocol):
    """An answer whose content is read as it is sent on."""

    status: int
    reason: bytes
    fields: list[Field]

    def content(self) -> AsyncIterator[bytes]:
        """What it carries, in pieces."""

    async def aclose(self) -> None:
        """Let go of where it comes from."""


class Reroute(NamedTuple):
    """Another server is asked in place of the destination.

    Attributes:
        bare: the request has the fields of the flow, and no Via of ours.
        mold: changes the answer.
    """

    url: str
    via: str | None
    bare: bool = False
    mold: Callable[[Flow, Fetched], Awaitable[Fetched]] | None = None


class Given(NamedTuple):
    """An answer in place of the destination's, whose content is read as it is sent."""

    fetched: Fetched


class Drop(NamedTuple):
    """The client gets no answer: its connection, or its stream of HTTP/2, is reset."""


class Later(NamedTuple):
    """What becomes of a message is known when this was awaited; None: it goes on."""

    steps: Callable[[Flow], Coroutine[Any, Any, Instead | None]]


class Truncate(NamedTuple):
    """Of an answer's content so many octets pass; then its connection, or its stream of HTTP/2, ends."""

    octets: int
    why: str


Instead = Answer | Reroute | Given | Drop | Later | Truncate
"""Hooks have the first, the second and `Drop`; the others are of rewrites and faults."""


class Truncated(TabiError):
    """An answer ends in the middle of its content, since a fault says so."""


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
        "_molded",
        "_session",
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
        self._session: Any = None
        self._molded: Any = None  # of distort.rewrites, which stands above

    def __repr__(self) -> str:
        return f"<Flow {self.id} {self.request!r}>"

    def respond(
        self, status: int = 200, body: bytes | str = b"", headers: Iterable[tuple[str, str]] | Mapping[str, str] = ()
    ) -> None:
        """Answer in place of the destination, from `request` or `response`.

        Args:
            status: 200 to 599.
            body: the whole content; Content-Length is written for it.
            headers: fields, in their order. Those of framing, such as Connection, are left out.

        Raises:
            ValueError: a field cannot be sent, or the status is not one of an answer.
        """
        checked_status(status)
        fields = Headers(headers)
        fields.raw = [field for field in fields.raw if field[0].lower() not in REWRITTEN_OF_RESPONSE]
        self.instead = Answer(status, fields, to_body(body))

    def drop(self) -> None:
        """Give no answer: the client's connection, or its stream of HTTP/2, is reset."""
        self.instead = Drop()

    def reroute(self, url: str, via: str | None = None) -> None:
        """Ask another server, and answer with what it says. From `request` only.

        Args:
            url: of http or https; it passes the rules, the guard and the limits again. The request's fields go there,
                with Cookie and Authorization.
            via: the egress to take. Default: as the rules say.

        Raises:
            ValueError: it is not such a URL.
        """
        octets = to_octets(url)
        found = WHOLE_URI.fullmatch(octets)
        if found is None or octets[:4].lower() != b"http":
            raise ValueError("reroute: expected a URL of http or https")
        try:
            destination = decode_target(b"GET", octets, *found.groups())[0]
        except HttpError as exc:
            raise ValueError(f"reroute: {exc}") from None
        if destination.port == 0:
            raise ValueError("reroute: port 0, expected one of a server")
        self.instead = Reroute(url, via)

    def copy(self) -> Flow:
        """A flow whose messages may be changed by themselves; for threads."""
        copied = copy(self)
        copied.request = self.request.copy()
        copied.response = None if self.response is None else self.response.copy()
        copied.tags = set(self.tags)
        return copied

    def take(self, copied: Flow) -> None:
        """Take over what was changed of a copy."""
        self.request.take(copied.request)
        if self.response is not None and copied.response is not None:
            self.response.take(copied.response)
        self.tags |= copied.tags
        self.instead = copied.instead


def charset_of(content_type: str) -> str:
    """The charset that a Content-Type names, UTF-8 where it names none, or one that no browser reads."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower().replace("_", "-")
            return charset if charset in CHARSETS else "utf-8"
    return "utf-8"


def checked_status(status: int) -> int:
    """A status of a final response. Raises ValueError."""
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"status {status!r}: expected 200 to 599")
    return status


def reason_of(status: int) -> str:
    """The usual words for a status; empty where there are none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def to_body(body: bytes | str) -> bytes:
    """Content as octets. Raises TypeError."""
    if isinstance(body, str):
        return body.encode()
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"body: {type(body).__name__}, expected bytes or str")
    return bytes(body)
