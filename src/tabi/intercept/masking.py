"""Secrets replaced by asterisks: one function for files, the ring and the terminal, so that none shows more.

Masked are credentials in fields and URLs, and the values of fields, query keys, keys of forms and keys of JSON whose
names say that they are secret. The names of cookies and of keys stay.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_plus

import msgspec

from tabi.intercept.codings import decode_part
from tabi.intercept.record import Fields, Record, first_value

MASK = "***"

NAMES_TEXT = (
    "token pass pwd sig signature sid sessionid jsessionid phpsessid jwt bearer auth otp assertion clientassertion "
    "codeverifier devicecode amzcredential amzsignature googcredential googsignature authkey "
    "cookie setcookie"
)
NAMES = frozenset(NAMES_TEXT.split())
"""Names of secrets, as `normal` writes them."""

ENDINGS_TEXT = (
    "accesstoken refreshtoken idtoken authtoken sessiontoken securitytoken csrftoken xsrftoken bearertoken "
    "privatetoken jobtoken vaulttoken usertoken apitoken devicetoken logintoken resettoken secret apikey "
    "accesskey secretkey privatekey subscriptionkey functionskey authorization authorizationtoken cookie2"
)
ENDINGS = tuple(ENDINGS_TEXT.split())
"""How names of secrets end."""

PARTS = ("password", "passwd", "passphrase", "passcode", "clientsecret")
"""What stands anywhere in a name of a secret."""

SCHEMES = frozenset(b"basic bearer digest negotiate ntlm hawk dpop token apikey aws4-hmac-sha256 mutual hoba".split())
"""Schemes of Authorization, which stay."""


class Names:
    """Which names are those of secrets: the usual ones, and some more."""

    def __init__(self, more: tuple[str, ...] = ()) -> None:
        self.names = NAMES | {normal(name) for name in more}
        self.known: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        found = self.known.get(name)
        if found is None:
            parts = {normal(name), *map(normal, re.split(r"[\[\].:]", name))}
            found = any(
                part in self.names or part.endswith(ENDINGS) or any(piece in part for piece in PARTS) for part in parts
            )
            if len(self.known) < 10_000 and len(name) < 100:
                self.known[name] = found
        return found


@lru_cache(maxsize=64)
def names_for(more: tuple[str, ...]) -> Names:
    """The names for a rule."""
    return Names(more)


def normal(name: str) -> str:
    """A name as it is compared: ``X-Api-Key``, ``api_key`` and ``apiKey`` are one."""
    name = name.strip().lower()
    return re.sub(r"[-_. ]", "", name[2:] if name.startswith(("x-", "x_")) else name)


def prepare(record: Record, limit: int, secrets: bool = False, more: tuple[str, ...] = ()) -> Record:
    """A record as it may be shown: the content codings undone, at most ``limit`` octets of each body, and without
    secrets unless ``secrets``. ``more`` are further names of secrets."""
    if record.decoded:
        return record
    request = plain_body(record.request_fields, record.request_body, record.request_size, limit)
    response = plain_body(record.response_fields, record.response_body, record.response_size, limit)
    shown = msgspec.structs.replace(
        record,
        request_head_size=record.request_head_size if record.request_head_size >= 0 else request_head_size(record),
        response_head_size=record.response_head_size if record.response_head_size >= 0 else response_head_size(record),
        request_body=request.data,
        response_body=response.data,
        content_size=len(response.data) if response.whole else record.content_size,
        decoded=True,
        truncated=record.truncated or not (request.whole and response.whole),
        request_truncated=record.request_truncated or not request.whole,
    )
    return shown if secrets else masked(shown, names_for(more))


def masked(record: Record, names: Names) -> Record:
    """A record without its secrets; its bodies have no content coding."""
    return msgspec.structs.replace(
        record,
        url=mask_url(record.url, names),
        via=None if record.via is None else mask_text(record.via, names),
        error=None if record.error is None else mask_text(record.error, names),
        request_fields=mask_fields(record.request_fields, names),
        response_fields=mask_fields(record.response_fields, names),
        request_body=mask_body(record.request_body, record.request_fields, names),
        response_body=mask_body(record.response_body, record.response_fields, names),
        messages=[
            msgspec.structs.replace(message, data=mask_body(message.data, [], names)) for message in record.messages
        ],
    )


def request_head_size(record: Record) -> int:
    """Octets of the head, -1 if it is not one of HTTP/1."""
    target = re.sub(r"^[^:/?#]*://[^/?#]*", "", record.url) or "/"
    return head_size(f"{record.method} {target} {record.version}", record.request_fields, record.version)


def response_head_size(record: Record) -> int:
    """Octets of the head, -1 if it is not one of HTTP/1, or there is none."""
    version = record.response_version or record.version
    start = f"{version} {record.status} {record.reason}"
    return head_size(start, record.response_fields, version) if record.status else -1


def head_size(start: str, fields: Fields, version: str) -> int:
    """Octets of a head with its empty line."""
    if not version.upper().startswith("HTTP/1"):
        return -1
    return len(start) + 2 + sum(len(name) + len(value) + 4 for name, value in fields) + 2


# --- bodies as they were before their codings ---


class Body(NamedTuple):
    """Content without its codings."""

    data: bytes
    whole: bool


def plain_body(fields: Fields, data: bytes, size: int, limit: int) -> Body:
    """Content without its codings, at most ``limit`` octets. What cannot be decoded is given as it is."""
    whole = len(data) >= size
    codings = b",".join(value for name, value in fields if name.lower() == b"content-encoding")
    if codings and data:
        try:
            decoded, complete = decode_part(data, codings.decode("latin-1"), limit)
        except ValueError:
            pass
        else:
            return Body(decoded, whole and complete)
    return Body(data[:limit], whole and len(data) <= limit)


# --- URLs and fields ---

USERINFO = re.compile(r"((?:^|(?<=[a-z0-9+.-]:)|(?<=[\s<\"'=,;]))//)[^/?#\s<>\"]*@", re.IGNORECASE)
WORD = re.compile(r"[^\s<>\"']+")
PATH_PARAMETER = re.compile(r";([^;=/?#]+)=([^;/?#]*)")


def mask_url(url: str, names: Names) -> str:
    """A URL without user information, and without the values of keys of secrets."""
    if "@" in url:
        url = USERINFO.sub(rf"\1{MASK}@", url)
    if "=" not in url:
        return url
    head, sharp, fragment = url.partition("#")
    path, mark, query = head.partition("?")
    if ";" in path:
        path = PATH_PARAMETER.sub(lambda found: f";{found[1]}={MASK}" if found[1] in names else found[0], path)
    return path + mark + mask_pairs(query, names) + sharp + mask_pairs(fragment, names)


def mask_pairs(text: str, names: Names) -> str:
    """Pairs of a query or a form, ``a=1&b=2``, without the values of secrets."""
    return "&".join(mask_pair(pair, names) for pair in text.split("&")) if "=" in text else text


def mask_pair(pair: str, names: Names) -> str:
    """One pair. Some read ``;`` as ``&``, others as part of a value: behind the key of a secret nothing is kept."""
    seen = ""
    for part in pair.split(";"):
        key, equals, _ = part.partition("=")
        if equals and unquote_plus(key).rpartition("?")[2] in names:
            return f"{seen}{key}={MASK}"
        seen += part + ";"
    return pair


def mask_text(text: str, names: Names) -> str:
    """A text without the secrets in its URLs."""
    if "://" not in text and "?" not in text and "//" not in text:
        return text
    return WORD.sub(lambda found: mask_url(found[0], names), text)


def mask_fields(fields: Fields, names: Names) -> Fields:
    """Fields without secrets."""
    return [(name, mask_value(name, value, names)) for name, value in fields]


def mask_value(name: bytes, value: bytes, names: Names) -> bytes:
    """The value of a field without secrets."""
    lower = name.lower()
    if lower == b"cookie":
        return b";".join(mask_cookie(part) for part in value.split(b";"))
    if lower == b"set-cookie":
        first, semicolon, rest = value.partition(b";")
        return mask_cookie(first) + semicolon + rest
    if lower.decode("latin-1") in names:
        scheme, space, _ = value.strip().partition(b" ")
        kept = scheme + space if scheme.lower() in SCHEMES and space else b""
        return kept + MASK.encode() if value.strip() else value
    if b"//" in value or b"?" in value:
        return mask_text(value.decode("latin-1"), names).encode("latin-1")
    return value


def mask_cookie(part: bytes) -> bytes:
    """One cookie: its name stays."""
    name, equals, value = part.partition(b"=")
    if not equals:
        return MASK.encode() if part.strip() else part
    return name + equals + MASK.encode() if value else part


# --- bodies ---

JSON_TYPE = re.compile(
    rb"(?i)\s*(?:application|text|model)/(?:[\w.+-]*[+.-])?(?:json|ndjson|json5|javascript|event-stream)\b"
)
LOOKS_LIKE_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*[{\[]")
FORM_TYPE = re.compile(rb"(?i)\s*application/x-www-form-urlencoded\b")
MULTIPART = re.compile(rb"(?i)\s*multipart/[^;]*;.*\bboundary=(?:\"([^\"]+)\"|([^\s;]+))")
PART_NAME = re.compile(rb"(?i)\bname=(?:\"([^\"]*)\"|([^\s;]+))")


def mask_body(data: bytes, fields: Fields, names: Names) -> bytes:
    """A body without the values of keys of secrets, if it is a form or JSON, also within JavaScript or events."""
    if not data:
        return data
    content_type = first_value(fields, b"content-type") or b""
    if FORM_TYPE.match(content_type):
        return mask_pairs(data.decode("latin-1"), names).encode("latin-1")
    if found := MULTIPART.match(content_type):
        return mask_parts(data, found[1] or found[2], names)
    if JSON_TYPE.match(content_type) or LOOKS_LIKE_JSON.match(data):
        return mask_json(data.decode("latin-1"), names).encode("latin-1")
    return data


def mask_parts(data: bytes, boundary: bytes, names: Names) -> bytes:
    """A body of several parts (RFC 7578) without the content of those that are secrets."""
    pieces = data.split(b"--" + boundary)
    for index, piece in enumerate(pieces):
        head, blank, content = piece.partition(b"\r\n\r\n")
        found = PART_NAME.search(head)
        if blank and found and (found[1] or found[2] or b"").decode("utf-8", "replace") in names:
            pieces[index] = head + blank + MASK.encode() + (b"\r\n" if content.endswith(b"\r\n") else b"")
    return (b"--" + boundary).join(pieces)


STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
COLON = re.compile(r"\s*+:\s*+")
SCALAR = re.compile(r"[^\s,\]}]*+")
BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)


def mask_json(text: str, names: Names) -> str:
    """JSON without the values of keys of secrets; all else stays as it is, and it may be cut anywhere."""
    kept, start, at = [], 0, 0
    while found := STRING.search(text, at):
        at = found.end()
        colon = COLON.match(text, at)
        if colon is None:
            continue
        at = colon.end()
        if key_of(found[0]) in names:
            end = end_of_value(text, at)
            if text[at:end] not in ("null", "true", "false", '""', ""):
                kept += [text[start:at], f'"{MASK}"']
                start = end
            at = end
    return "".join((*kept, text[start:]))


def key_of(string: str) -> str:
    """The text of a string of JSON, of which each character is an octet."""
    raw = string[1:-1]
    if "\\" in raw:
        try:
            return str(json.loads(string.encode("latin-1").decode("utf-8", "replace"), strict=False))
        except ValueError:
            pass
    return raw if raw.isascii() else raw.encode("latin-1").decode("utf-8", "replace")


def end_of_value(text: str, at: int) -> int:
    """Where a value of JSON ends that begins at ``at``."""
    if text[at : at + 1] == '"':
        found = STRING.match(text, at)
        return found.end() if found else len(text)
    if text[at : at + 1] not in ("{", "["):
        found = SCALAR.match(text, at)
        return found.end() if found else at
    depth = 0
    while found := BRACKET.search(text, at):
        at = found.end()
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
        if not depth:
            return at
    return len(text)
