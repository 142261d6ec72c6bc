"""Replay: requests are answered as it was recorded in a HAR file, which may be long; only where things are is kept.

A request is the same as a recorded one if method, URL and content are, or those of them that count. Secrets that were
masked as they were recorded are masked in requests as well, and so are equal whatever they are. If one was recorded
several times its answers come in their order, and the last one again and again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple
from urllib.parse import unquote_plus, urlsplit

from tabi.errors import TabiError, TooLarge
from tabi.intercept.flow import Flow
from tabi.intercept.har import decode_entry, text_of
from tabi.intercept.har_reader import HarError, HarReader, decode_object
from tabi.intercept.masking import MASK, MULTIPART, Names, mask_body, mask_url
from tabi.intercept.record import Fields, Record, first_value
from tabi.wire.http_fields import checked

PARTS = ("method", "url", "body")
"""What of a request may count."""

MAX_ANSWERS = 200_000
"""Answers of a file, which take up to 750 octets each in memory."""

MAX_BODY = 16 << 20
"""Octets of a request's content; a longer one is the same as none."""

LEFT_OUT = frozenset((b"content-encoding", b"content-length", b"transfer-encoding", b"alt-svc"))
"""Fields that are not true of an answer from here: its content has no coding, and nobody else is to be asked."""

KNOWN_CODINGS = frozenset((b"gzip", b"x-gzip", b"deflate", b"br", b"zstd", b"identity"))

MASKED_KEYS = (
    re.compile(rf"(?:^|[?&;#])([^=&;?#]+)={re.escape(MASK)}(?=[&;#]|$)"),
    re.compile(rf'"((?:[^"\\]|\\.)*)"\s*:\s*"{re.escape(MASK)}"'),
)
"""Keys of a query, a form and JSON whose values are masked."""


class Place(NamedTuple):
    """Where an answer is in the file."""

    offset: int
    size: int


class Answers:
    """The answers for one request, in their order."""

    __slots__ = ("next", "places")

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.next = 0

    def take(self) -> Place:
        """The next one; the last one stays."""
        place = self.places[self.next]
        self.next = min(self.next + 1, len(self.places) - 1)
        return place


class Group:
    """What was recorded for one method and URL."""

    __slots__ = ("begun", "whole")

    def __init__(self) -> None:
        self.whole: dict[bytes, Answers] = {}
        """By the digest of the content."""
        self.begun: dict[int, dict[bytes, Answers]] = {}
        """The same for content of which only so many octets were recorded."""


class Replay:
    """A hook that answers as it was recorded.

    Args:
        path: of the HAR file, which stays open.
        match: what of a request counts, some of PARTS.
        passes: whether a request without a recorded answer goes on to its destination, else it gets status 502.

    Raises:
        TabiError: it is not a HAR file, or has too many entries.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, match: Collection[str] = PARTS, passes: bool = False) -> None:
        self.path = path
        self.match = frozenset(match)
        self.passes = passes
        self.names = Names()
        self.groups: dict[bytes, Group] = {}
        self.count = 0
        """Answers."""
        self.truncated = 0
        """Answers of which not all was recorded."""
        self.has_tls = False
        """Whether there is one for https."""
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.load()
        except HarError as exc:
            self.close()
            raise TabiError(f"{path}: {exc}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def load(self) -> None:
        """Find all answers; again, if there are masked keys that were not known as such."""
        masked: set[str] = set()
        for record, place in self.read():
            masked |= masked_keys(record)
            self.add(record, place)
        if more := sorted(name for name in masked if name not in self.names):
            self.names = Names(tuple(more))
            self.groups.clear()
            self.count = self.truncated = 0
            for record, place in self.read():
                self.add(record, place)

    def read(self) -> Iterator[tuple[Record, Place]]:
        """The records that can be replayed, and where they are. Raises HarError and OSError."""
        reader = HarReader(self.fd)
        for data in reader:
            record = decode_entry(decode_object(data, reader.count), reader.count)
            if record.method.upper() != "CONNECT" and not 100 <= record.status < 200:
                yield record, Place(reader.end - len(data), len(data))

    def add(self, record: Record, place: Place) -> None:
        """Take note of an answer."""
        self.count += 1
        if self.count > MAX_ANSWERS:
            raise HarError(f"more than {MAX_ANSWERS:,} flows")
        self.truncated += record.truncated
        self.has_tls = self.has_tls or record.url[:6].lower() == "https:"
        group = self.groups.setdefault(self.key(record.method, record.url), Group())
        answers, body = group.whole, b""
        if "body" in self.match:
            body = self.normal_body(record.request_body, first_value(record.request_fields, b"content-type"))
            if record.request_truncated:
                answers = group.begun.setdefault(len(body), {})
        answers.setdefault(digest(body), Answers()).places.append(place)

    def key(self, method: str, url: str) -> bytes:
        """What is the same for requests with the same method and URL, as far as these count."""
        parts = [method.upper() if "method" in self.match else "", ""]
        if "url" in self.match:
            parts[1] = mask_url(normal_url(url), self.names)
        return digest("\0".join(parts).encode("utf-8", "surrogatepass"))

    def normal_body(self, body: bytes, content_type: bytes | None) -> bytes:
        """Content without what does not count."""
        if body:
            fields: Fields = [] if content_type is None else [(b"Content-Type", content_type)]
            body = mask_body(body, fields, self.names)
            if found := MULTIPART.match(content_type or b""):  # another one each time
                body = body.replace(found[1] or found[2], b"boundary")
        return body

    async def request(self, flow: Flow) -> None:
        """The hook."""
        group = self.group_of(flow)
        answers = None if group is None else await self.find(group, flow)
        if answers is None:
            if not self.passes:
                shown = mask_url(flow.request.url, self.names)
                flow.respond(502, f"not recorded: {flow.request.method} {shown}\n", PLAIN)
            return
        try:
            record = self.recall(answers.take())
        except (OSError, HarError):
            flow.respond(502, "the recorded answer cannot be read any more\n", PLAIN)
            return
        if not record.status:
            flow.drop()
        else:
            flow.respond(record.status if record.status < 600 else 502, record.response_body, list(fields_of(record)))

    def group_of(self, flow: Flow) -> Group | None:
        """What was recorded for the method and the URL of a request. A client that has resolved the host's name by
        itself has asked the proxy for an address, and names the host in the field."""
        asked, host = flow.request, flow.request.headers.get("Host")
        found = self.groups.get(self.key(asked.method, asked.url))
        if found is None and host is not None:
            found = self.groups.get(self.key(asked.method, f"{asked.scheme}://{host}{asked.path}"))
        return found

    async def find(self, group: Group, flow: Flow) -> Answers | None:
        """The answers for a request with a recorded method and URL."""
        body = b""
        if "body" in self.match:
            try:
                body = await flow.request.read(MAX_BODY)
            except TooLarge:
                return None
            except ValueError:  # not as its coding says
                body = await flow.request.read(MAX_BODY, raw=True)
        content_type = flow.request.headers.get("Content-Type")
        kind = None if content_type is None else content_type.encode("latin-1", "replace")
        body = self.normal_body(body, kind)
        found = group.whole.get(digest(body))
        for size, begun in group.begun.items():
            if found is None and len(body) >= size:
                found = begun.get(digest(body[:size]))
        return found

    def recall(self, place: Place) -> Record:
        """Read an answer. Raises OSError and HarError."""
        return decode_entry(decode_object(os.pread(self.fd, place.size, place.offset), 0))


PLAIN = (("Content-Type", "text/plain; charset=utf-8"),)


def digest(data: bytes) -> bytes:
    """What stands for octets in a dictionary."""
    return hashlib.blake2b(data, digest_size=16).digest()


def normal_url(url: str) -> str:
    """A URL without what does not count: user information, the usual port, a fragment, the case of scheme and host."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return url
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != {"http": 80, "https": 443}.get(scheme):
        place += f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{place}{parts.path or '/'}{query}"


def masked_keys(record: Record) -> set[str]:
    """The keys of the URL and of the content whose values are masked."""
    body = record.request_body.decode("utf-8", "replace") if MASK.encode() in record.request_body else ""
    return {unquote_plus(key) for text in (record.url, body) for found in MASKED_KEYS for key in found.findall(text)}


def fields_of(record: Record) -> Iterator[tuple[str, str]]:
    """The fields of an answer that can be sent again."""
    for name, value in record.response_fields:
        lower = name.lower()
        if lower in LEFT_OUT and (lower != b"content-encoding" or value.strip().lower() in KNOWN_CODINGS):
            continue
        try:
            checked(name, value)
        except ValueError:
            continue  # another tool has written it
        yield text_of(name), text_of(value)
