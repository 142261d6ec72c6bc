"""HAR 1.2 (http://www.softwareishard.com/blog/har-12-spec/): a record as an entry, and back.

Keys that begin with ``_`` are not of the specification. ``_webSocketMessages``, ``_resourceType`` and ``_error`` are as
Chrome writes them. What others write is read as far as it makes sense.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote_plus, urlencode

import msgspec

from tabi.intercept.record import Fields, Record, WebSocketMessage, first_value

encode_json = msgspec.json.Encoder().encode

TEXT_TYPE = re.compile(
    r"(?i)(?:text/|[^;]*[/+-](?:json|xml|javascript|ecmascript|x-www-form-urlencoded|graphql|ndjson|csp-report)\b)"
)
CHARSET = re.compile(r"(?i);\s*charset\s*=\s*\"?([\w.:-]+)")
KNOWN_CHARSET = re.compile(
    r"(?i)utf-?8|us-ascii|ascii|iso-?8859-\d{1,2}|latin-?1|(?:windows-|cp)125\d|utf-16(?:le|be)?|shift_jis|"
    r"euc-(?:jp|kr)|gb(?:2312|k|18030)|big5|koi8-[ru]"
)
"""Charsets that are decoded: Python knows others, some of which take long."""

LATEST = 2e11
"""Seconds since 1970, in the year 8307: times behind it are none."""


# --- a record becomes an entry ---


def encode_entry(record: Record) -> bytes:
    """A prepared record (see `intercept.masking.prepare`) as one line of JSON."""
    entry = make_entry(record)
    try:
        return encode_json(entry)
    except UnicodeEncodeError:  # lone surrogates, which only escapes can say
        return json.dumps(entry, separators=(",", ":")).encode()


def make_entry(record: Record) -> dict[str, Any]:
    """The members of an entry."""
    times = {
        "blocked": -1,
        "dns": milliseconds(record.dns, -1),
        "connect": milliseconds(add(record.connect, record.tls), -1),
        "send": milliseconds(record.send, 0),
        "wait": milliseconds(record.wait, 0),
        "receive": milliseconds(record.receive, 0),
        "ssl": milliseconds(record.tls, -1),
    }
    entry: dict[str, Any] = {
        "startedDateTime": rfc3339(record.started),
        "time": milliseconds(record.seconds, 0),
        "request": make_request(record),
        "response": make_response(record),
        "cache": {},
        "timings": times,
    }
    if record.address:
        entry["serverIPAddress"] = record.address
    if record.connection:
        entry["connection"] = record.connection
    if record.messages:
        entry["_resourceType"] = "websocket"
        entry["_webSocketMessages"] = list(map(make_message, record.messages))
    more = {
        "_id": record.id,
        "_client": record.client,
        "_user": record.user,
        "_listener": record.listener,
        "_rule": record.rule,
        "_via": record.via,
        "_sni": record.sni,
        "_ja4": record.ja4,
        "_sentJa3": record.sent_ja3,
        "_sentJa4": record.sent_ja4,
        "_sentHttp2": record.sent_http2,
        "_fingerprint": record.fingerprint,
        "_fingerprintDiffers": record.fingerprint_differs,
        "_tags": record.tags,
        "_truncated": record.truncated,
    }
    return entry | {key: value for key, value in more.items() if value}


def make_request(record: Record) -> dict[str, Any]:
    """The ``request`` of an entry."""
    fields = record.request_fields
    found: dict[str, Any] = {
        "method": record.method,
        "url": record.url,
        "httpVersion": record.version,
        "cookies": list(cookies_of(fields)),
        "headers": pairs_of(fields),
        "queryString": list(parameters_of(record.url.partition("#")[0].partition("?")[2])),
        "headersSize": record.request_head_size,
        "bodySize": record.request_size,
    }
    if record.request_size or record.request_body:
        mime_type = text_of(first_value(fields, b"content-type") or b"")
        text, is_base64 = encode_body(record.request_body, mime_type, record.request_truncated)
        data: dict[str, Any] = {"mimeType": mime_type, "text": text}
        if record.request_truncated:
            data["_truncated"] = True
        if is_base64:
            data["_encoding"] = "base64"
        elif mime_type.lower().startswith("application/x-www-form-urlencoded"):
            data["params"] = list(parameters_of(text))
        found["postData"] = data
    return found


def make_response(record: Record) -> dict[str, Any]:
    """The ``response`` of an entry."""
    fields, body = record.response_fields, record.response_body
    mime_type = text_of(first_value(fields, b"content-type") or b"")
    coding = (first_value(fields, b"content-encoding") or b"identity").strip().lower()
    size = record.content_size
    if size < 0:
        size = len(body) if coding != b"identity" else max(len(body), record.response_size)
    content: dict[str, Any] = {"size": size, "mimeType": mime_type}
    if body and coding != b"identity" and not record.truncated:
        content["compression"] = size - record.response_size
    if body or not size:
        content["text"], is_base64 = encode_body(body, mime_type, record.truncated)
        if is_base64:
            content["encoding"] = "base64"
    found = {
        "status": record.status,
        "statusText": record.reason,
        "httpVersion": record.response_version or record.version,
        "cookies": list(set_cookies_of(fields)),
        "headers": pairs_of(fields),
        "content": content,
        "redirectURL": text_of(first_value(fields, b"location") or b""),
        "headersSize": record.response_head_size,
        "bodySize": record.response_size if record.status else -1,
    }
    return found if record.error is None else found | {"_error": record.error}


def make_message(message: WebSocketMessage) -> dict[str, Any]:
    """One of ``_webSocketMessages``: text as it is, binary data as base64."""
    data = text_of(message.data) if message.opcode == 1 else base64.b64encode(message.data).decode()
    return {"type": message.type, "time": message.time, "opcode": message.opcode, "data": data}


def encode_body(data: bytes, mime_type: str, truncated: bool) -> tuple[str, bool]:
    """A body as text, if it is text and comes out the same when it is encoded again, else as base64 (True)."""
    charset = charset_of(mime_type)
    if charset is not None and (TEXT_TYPE.match(mime_type) or CHARSET.search(mime_type) or not mime_type):
        try:
            decoder = codecs.getincrementaldecoder(charset)()
            text = decoder.decode(data, final=not truncated)  # which may have cut the last character
            left = decoder.getstate()[0] if truncated else b""
            if text.encode(charset) + left == data:
                return text, False
        except (UnicodeError, LookupError):
            pass
    return base64.b64encode(data).decode(), True


def charset_of(mime_type: str) -> str | None:
    """The charset of a body, UTF-8 if none is named; None if it is not known here."""
    found = CHARSET.search(mime_type)
    if found is None:
        return "utf-8"
    return found[1] if KNOWN_CHARSET.fullmatch(found[1]) else None


def milliseconds(seconds: float | None, none: float) -> float:
    """Milliseconds with three digits behind the point."""
    return none if seconds is None else max(0.0, round(seconds * 1000, 3))


def add(first: float | None, second: float | None) -> float | None:
    """The sum of those that are known."""
    return second if first is None else first if second is None else first + second


def rfc3339(seconds: float) -> str:
    """A time as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def text_of(value: bytes) -> str:
    """Octets as text: UTF-8, or latin-1 if they are not."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def pairs_of(fields: Fields) -> list[dict[str, str]]:
    """Fields as ``headers``."""
    return [{"name": text_of(name), "value": text_of(value)} for name, value in fields]


def parameters_of(text: str) -> Iterator[dict[str, str]]:
    """A query or a form as pairs, decoded."""
    for pair in text.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            yield {"name": unquote_plus(name), "value": unquote_plus(value)}


def cookies_of(fields: Fields) -> Iterator[dict[str, Any]]:
    """The cookies of a request."""
    for name, value in fields:
        if name.lower() == b"cookie":
            for part in text_of(value).split(";"):
                key, equals, rest = part.strip().partition("=")
                if key or equals:
                    yield {"name": key, "value": rest}


def set_cookies_of(fields: Fields) -> Iterator[dict[str, Any]]:
    """The cookies of an answer."""
    for name, value in fields:
        if name.lower() != b"set-cookie":
            continue
        first, *attributes = text_of(value).split(";")
        key, _, rest = first.strip().partition("=")
        cookie: dict[str, Any] = {"name": key, "value": rest, "httpOnly": False, "secure": False}
        for attribute in attributes:
            word, _, said = attribute.strip().partition("=")
            if word.lower() in ("path", "domain"):
                cookie[word.lower()] = said
            elif word.lower() == "expires":
                try:
                    cookie["expires"] = rfc3339(parsedate_to_datetime(said).timestamp())
                except (ValueError, OverflowError, OSError):
                    pass  # a time that is none
            elif word.lower() in ("httponly", "secure"):
                cookie["httpOnly" if word.lower() == "httponly" else "secure"] = True
        yield cookie


# --- an entry becomes a record ---


def decode_entry(entry: Mapping[str, Any], number: int = 0) -> Record:
    """A record of what an entry says; what is missing, or not what it should be, is as if it were not known."""
    request, response = members(entry, "request"), members(entry, "response")
    timings = members(entry, "timings")
    post, content = members(request, "postData"), members(response, "content")
    connect, tls = seconds(timings, "connect"), seconds(timings, "ssl")
    if connect is not None and tls is not None:
        connect = max(0.0, connect - tls)
    request_body = decode_body(post, "_encoding") or encode_parameters(post)
    response_body = decode_body(content, "encoding")
    known = seconds(timings, "wait") is not None
    tags = entry.get("_tags")
    return Record(
        id=string(entry, "_id") or str(number),
        started=parse_time(string(entry, "startedDateTime")),
        client=string(entry, "_client"),
        user=string(entry, "_user") or None,
        listener=string(entry, "_listener"),
        rule=string(entry, "_rule") or None,
        method=string(request, "method") or "GET",
        url=string(request, "url"),
        version=version_of(request),
        request_fields=fields_of(request),
        request_body=request_body,
        request_head_size=whole_number(request, "headersSize", -1),
        request_size=whole_number(request, "bodySize", len(request_body)),
        status=whole_number(response, "status", 0),
        reason=string(response, "statusText"),
        response_version=version_of(response),
        response_fields=fields_of(response),
        response_head_size=whole_number(response, "headersSize", -1),
        response_body=response_body,
        response_size=whole_number(response, "bodySize", whole_number(content, "size", len(response_body))),
        content_size=whole_number(content, "size", -1),
        address=string(entry, "serverIPAddress") or None,
        connection=string(entry, "connection"),
        via=string(entry, "_via") or None,
        sni=string(entry, "_sni") or None,
        ja4=string(entry, "_ja4") or None,
        sent_ja3=string(entry, "_sentJa3") or None,
        sent_ja4=string(entry, "_sentJa4") or None,
        sent_http2=string(entry, "_sentHttp2") or None,
        fingerprint=string(entry, "_fingerprint") or None,
        fingerprint_differs=string(entry, "_fingerprintDiffers") or None,
        dns=seconds(timings, "dns"),
        connect=connect,
        tls=tls,
        send=seconds(timings, "send"),
        wait=seconds(timings, "wait") if known else seconds(entry, "time"),
        receive=seconds(timings, "receive"),
        error=string(response, "_error") or string(entry, "_error") or None,
        tags=[tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [],
        messages=list(map(decode_message, dicts(entry, "_webSocketMessages"))),
        decoded=True,
        request_truncated=post.get("_truncated") is True,
        truncated=entry.get("_truncated") is True or ("text" not in content and whole_number(content, "size", 0) > 0),
    )


def members(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in an object, an empty one if there is none."""
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def dicts(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The objects of a list in an object."""
    found = value.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def string(value: Mapping[str, Any], key: str) -> str:
    """A text in an object, an empty one if there is none."""
    found = value.get(key)
    return found if isinstance(found, str) else ""


def whole_number(value: Mapping[str, Any], key: str, default: int) -> int:
    """A number that is not negative."""
    found = value.get(key)
    good = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < 1 << 60
    return int(found) if good and found is not None else default


def seconds(value: Mapping[str, Any], key: str) -> float | None:
    """Milliseconds as seconds; None if they are not known."""
    found = value.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1e12:
        return None
    return found / 1000


def version_of(value: Mapping[str, Any]) -> str:
    """The version, as it is written here; browsers write ``http/2.0`` or ``h2``, too."""
    found = string(value, "httpVersion").upper()
    return {"HTTP/2.0": "HTTP/2", "H2": "HTTP/2", "HTTP/3.0": "HTTP/3", "H3": "HTTP/3", "": "HTTP/1.1"}.get(
        found, found
    )


def fields_of(value: Mapping[str, Any]) -> Fields:
    """The fields of a head; browsers list those of HTTP/2 that begin with a colon, too."""
    return [
        (octets(string(one, "name")), octets(string(one, "value")))
        for one in dicts(value, "headers")
        if not string(one, "name").startswith(":")
    ]


def octets(text: str) -> bytes:
    """Text as octets, whatever is in it."""
    return text.encode("utf-8", "replace")


def decode_body(value: Mapping[str, Any], key: str) -> bytes:
    """The octets of a body."""
    text = string(value, "text")
    if "base64" in (string(value, key), string(value, "encoding")):
        try:
            return base64.b64decode(octets(text))
        except ValueError:
            return b""
    try:
        return text.encode(charset_of(string(value, "mimeType")) or "utf-8")
    except (UnicodeError, LookupError):
        return octets(text)


def encode_parameters(post: Mapping[str, Any]) -> bytes:
    """A form of which only the parameters were recorded."""
    return urlencode([(string(one, "name"), string(one, "value")) for one in dicts(post, "params")]).encode()


def decode_message(value: Mapping[str, Any]) -> WebSocketMessage:
    """One of ``_webSocketMessages``."""
    when, opcode, data = value.get("time"), whole_number(value, "opcode", 1), octets(string(value, "data"))
    if opcode != 1:
        try:
            data = base64.b64decode(data)
        except ValueError:
            pass  # not as Chrome writes it
    time = float(when) if isinstance(when, int | float) and 0 <= when < LATEST else 0.0
    return WebSocketMessage("send" if value.get("type") == "send" else "receive", time, opcode, data)


def parse_time(text: str) -> float:
    """A time of ISO 8601 as seconds since 1970, 0 if it is none."""
    try:
        found = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return found if 0 <= found < LATEST else 0.0
