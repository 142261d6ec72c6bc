"""Filters of records, such as ``host:example.com and (status:>=400 or error) and not url:/health``.

filter     = and *("or" and)
and        = not *(["and"] not)
not        = "not" not / "(" filter ")" / term
term       = key ":" value / "error" / "ws"
value      = 1*(any character but white space and parentheses) / DQUOTE text DQUOTE
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from tabi.errors import ConfigError
from tabi.intercept.record import Record, first_value

MAX_DEPTH = 50
"""Parentheses and ``not`` in one another."""

Test = Callable[[Record], bool]
"""Whether a record is meant."""

TOKEN = re.compile(r"\s*(?:(?P<bracket>[()])|(?P<word>(?:\"(?:[^\"\\]|\\.)*\"|[^\s()\"])+)|(?P<bad>\"))")
STATUS = re.compile(r"(?:(?P<sign>>=|<=|>|<|=|!=)?(?P<number>\d{1,3})|(?P<class>\d)xx|(?P<low>\d{3})-(?P<high>\d{3}))")


class FilterError(ConfigError):
    """A filter is wrong; the text shows where."""

    def __init__(self, message: str, text: str, at: int) -> None:
        begin = max(0, at - 30)
        shown = (
            ("…" if begin else "") + text[begin:at] + "»" + text[at : at + 30] + ("…" if len(text) > at + 30 else "")
        )
        super().__init__(f"{message}, at character {at + 1}: {shown}", "FILTER")
        self.at = at


class Token(NamedTuple):
    """A bracket or a word, and where it stands."""

    text: str
    at: int
    is_bracket: bool


def parse_filter(text: str) -> Test:
    """Compile a filter; an empty one means all records. Raises FilterError."""
    parser = Parser(text)
    if not parser.tokens:
        return lambda record: True
    found = parser.any_of(0)
    if parser.tokens:
        raise parser.error(f"expected and, or, or the end before {parser.tokens[0].text!r}")
    return found


class Parser:
    """Reads a filter by recursive descent."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(split(text))

    def error(self, message: str, at: int | None = None) -> FilterError:
        """The error for what comes next, or for a place."""
        if at is None:
            at = self.tokens[0].at if self.tokens else len(self.text)
        return FilterError(message, self.text, at)

    def take(self, word: str) -> bool:
        """Whether a word or bracket comes next; then it is taken."""
        if self.tokens and self.tokens[0].text.lower() == word:
            self.tokens.pop(0)
            return True
        return False

    def any_of(self, depth: int) -> Test:
        """Parts with ``or`` between them."""
        parts = [self.all_of(depth)]
        while self.take("or"):
            parts.append(self.all_of(depth))
        return parts[0] if len(parts) == 1 else lambda record: any(part(record) for part in parts)

    def all_of(self, depth: int) -> Test:
        """Parts with ``and``, or nothing, between them."""
        parts = [self.one(depth)]
        while self.take("and") or (self.tokens and self.tokens[0].text.lower() not in (")", "or")):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else lambda record: all(part(record) for part in parts)

    def one(self, depth: int) -> Test:
        """A part with ``not``, in parentheses, or a term."""
        if depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} parentheses in one another")
        if self.take("not"):
            inner = self.one(depth + 1)
            return lambda record: not inner(record)
        if self.tokens and self.tokens[0].text == "(":
            opened = self.tokens.pop(0)
            inner = self.any_of(depth + 1)
            if not self.take(")"):
                raise self.error("the parenthesis is not closed", opened.at)
            return inner
        if not self.tokens or self.tokens[0].is_bracket or self.tokens[0].text.lower() in ("and", "or"):
            raise self.error("expected a term such as host:example.com")
        token = self.tokens.pop(0)
        return self.term(token)

    def term(self, token: Token) -> Test:
        """``error``, ``ws``, or a key and its value."""
        key, colon, value = token.text.partition(":")
        key = key.lower()
        if not colon:
            if key not in FLAGS:
                expected = ", ".join([*(f"{name}:" for name in KEYS), *FLAGS])
                raise self.error(f"{key!r}, expected one of: {expected}", token.at)
            return FLAGS[key]
        if key not in KEYS:
            raise self.error(f"{key!r}, expected one of: {', '.join(KEYS)}", token.at)
        value = re.sub(r'"((?:[^"\\]|\\.)*)"', lambda found: re.sub(r"\\(.)", r"\1", found[1]), value)
        if not value:
            raise self.error(f"expected a value behind {key}:", token.at + len(key) + 1)
        try:
            return KEYS[key](value)
        except ValueError as exc:
            raise self.error(str(exc), token.at + len(key) + 1) from None


def split(text: str) -> list[Token]:
    """The words and brackets of a filter. Raises FilterError."""
    tokens, at = [], 0
    while found := TOKEN.match(text, at):
        kind = found.lastgroup
        assert kind is not None
        if kind == "bad":
            raise FilterError("the quotation mark is not closed", text, found.start(kind))
        tokens.append(Token(found[kind], found.start(kind), kind == "bracket"))
        at = found.end()
    return tokens


# --- terms ---


def is_websocket(record: Record) -> bool:
    """Whether it is a WebSocket."""
    upgrade = first_value(record.response_fields, b"upgrade") or b""
    scheme = record.url[:4].lower()
    return bool(record.messages) or scheme in ("ws:/", "wss:") or upgrade.strip().lower() == b"websocket"


FLAGS: dict[str, Test] = {"error": lambda record: record.error is not None, "ws": is_websocket}


def pattern(value: str) -> re.Pattern[str]:
    """A value as a pattern of the whole text, in any case: ``*`` is anything."""
    return re.compile(re.escape(value).replace(r"\*", ".*"), re.IGNORECASE | re.DOTALL)


def like(value: str) -> Callable[[str], object]:
    """Whether a text has a value in it, in any case, or is as a pattern says."""
    if "*" in value:
        return pattern(value).fullmatch
    return lambda text: value.lower() in text.lower()


def by_host(value: str) -> Test:
    """The host of the URL: a name and those below it, a pattern, also with a port."""
    value = value.lower().rstrip(".")
    matches = pattern(value).fullmatch

    def test(record: Record) -> bool:
        try:
            parts = urlsplit(record.url.lower())
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            return False
        port = port or {"https": 443, "wss": 443}.get(parts.scheme, 80)
        names = (host, f"[{host}]", f"{host}:{port}", f"[{host}]:{port}")
        return any(map(matches, names)) or any(name.endswith("." + value) for name in names)

    return test


def by_status(value: str) -> Test:
    """``200``, ``4xx``, ``200-299``, ``>=400``."""
    found = STATUS.fullmatch(value.lower())
    if found is None:
        raise ValueError(f"{value!r}, expected a status such as 200, 4xx, 200-299 or >=400")
    if found["class"]:
        first = int(found["class"])
        return lambda record: record.status // 100 == first
    if found["low"]:
        low, high = int(found["low"]), int(found["high"])
        return lambda record: low <= record.status <= high
    number, sign = int(found["number"]), found["sign"] or "="
    compare: dict[str, Test] = {
        "=": lambda record: record.status == number,
        "!=": lambda record: record.status != number,
        ">": lambda record: record.status > number,
        ">=": lambda record: record.status >= number,
        "<": lambda record: 0 < record.status < number,
        "<=": lambda record: 0 < record.status <= number,
    }
    return compare[sign]


def by_method(value: str) -> Test:
    """The method, in any case."""
    return lambda record: record.method.lower() == value.lower()


def by_url(value: str) -> Test:
    """What stands in the URL."""
    test = like(value)
    return lambda record: bool(test(record.url))


def by_body(value: str) -> Test:
    """What stands in a body or a message."""
    wanted = value.lower().encode()

    def test(record: Record) -> bool:
        bodies = (record.request_body, record.response_body, *(message.data for message in record.messages))
        return any(wanted in body.lower() for body in bodies)

    return test


def by_type(value: str) -> Test:
    """What stands in the Content-Type of the answer, or of the request."""
    test = like(value)

    def matches(record: Record) -> bool:
        fields = (record.response_fields, record.request_fields)
        types = (first_value(one, b"content-type") or b"" for one in fields)
        return any(test(one.decode("latin-1")) for one in types)

    return matches


def by_tag(value: str) -> Test:
    """A tag that a hook gave, or a pattern of one."""
    matches = pattern(value).fullmatch
    return lambda record: any(map(matches, record.tags))


def by_error(value: str) -> Test:
    """What stands in the error."""
    test = like(value)
    return lambda record: record.error is not None and bool(test(record.error))


KEYS: dict[str, Callable[[str], Test]] = {
    "host": by_host,
    "status": by_status,
    "method": by_method,
    "url": by_url,
    "body": by_body,
    "type": by_type,
    "tag": by_tag,
    "error": by_error,
}
