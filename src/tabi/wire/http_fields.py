"""The fields of HTTP/1 heads (RFC 9110 section 5): a list to read and change, and how values are read. No I/O.

Forwarding looks only for the fields that mean something to a proxy, by patterns (`take_out`), which is fast. `Fields`
shows all of them. An error holds no value but a number or one short word: any other value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from tabi.errors import HttpError
from tabi.wire.http_body import TEXT, TOKEN

Field = tuple[bytes, bytes]
"""Name and value."""

Known = dict[bytes, bytes]
"""Values by the name in lower case; those of several fields with one name have LF between them."""

FIELD_NAME, FIELD_VALUE = re.compile(TOKEN), re.compile(TEXT)
LINE = re.compile(rb"\r\n([^:]++):([^\r]*+)")
SHORT_WORD = re.compile(rb"[!-~]{1,32}")
NO_OPTIONS: frozenset[bytes] = frozenset()
COMMON_OPTIONS = {option: frozenset((option,)) for option in (b"keep-alive", b"close", b"upgrade")}

HOP_BY_HOP = frozenset(
    b"close connection keep-alive proxy-authenticate proxy-authentication-info proxy-authorization proxy-connection "
    b"te transfer-encoding upgrade".split()
)
"""Fields that are for one connection (RFC 9110 section 7.6.1), Transfer-Encoding, which is written anew, and Close,
which is not a field, but may be named in Connection like one."""

REWRITTEN_OF_RESPONSE = HOP_BY_HOP | {b"content-length"}
REWRITTEN = REWRITTEN_OF_RESPONSE | {b"host"}
PROTECTED_IN_RESPONSE = REWRITTEN_OF_RESPONSE | {b"cache-control", b"via"}
PROTECTED = PROTECTED_IN_RESPONSE | {b"expect", b"host", b"max-forwards"}
"""Fields that Connection cannot remove: those that are rewritten, and those for all recipients (RFC 9110 section
7.6.1)."""


class Fields:
    """The fields of a head, in their order, each with the name as it was spelled.

    Names are looked up in any case. What is not changed is sent on octet for octet, the white space around values too.
    """

    __slots__ = ("raw",)

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self.raw: list[Field] = []  # values with the white space around them
        for name, value in fields:
            self.add(name, value)

    @classmethod
    def decode(cls, octets: bytes) -> Fields:
        """Read the fields of a head that was checked before: each is CRLF, name, colon, value."""
        fields = cls()
        fields.raw = LINE.findall(octets)
        return fields

    def encode(self) -> bytes:
        """Write them as `decode` takes them."""
        return b"".join([b"\r\n%b:%b" % field for field in self.raw])

    def __iter__(self) -> Iterator[Field]:
        return ((name, value.strip(b" \t")) for name, value in self.raw)

    def __contains__(self, name: bytes) -> bool:
        return bool(self.get_all(name))

    def __repr__(self) -> str:
        return f"Fields({', '.join(name.decode('latin-1') for name, _ in self.raw)})"  # values may be secrets

    def get_all(self, name: bytes) -> list[bytes]:
        """The values of all fields with this name, in their order."""
        name = name.lower()
        return [value.strip(b" \t") for other, value in self.raw if other.lower() == name]

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field with this name, None if there is none."""
        return next(iter(self.get_all(name)), None)

    def add(self, name: bytes, value: bytes) -> None:
        """Append a field. Raises ValueError where the name or the value cannot be sent."""
        self.raw.append(checked(name, value))

    def set(self, name: bytes, value: bytes) -> None:
        """Give the first field with this name another value and remove the others, or append it where there is none.

        The field stays where it is, and its name as it was spelled. Raises ValueError where it cannot be sent.
        """
        name, raw = checked(name, value)
        lower, kept, found = name.lower(), [], False
        for field in self.raw:
            if field[0].lower() != lower:
                kept.append(field)
            elif not found:
                found = True
                kept.append((field[0], raw))
        self.raw = kept if found else [*kept, (name, raw)]

    def remove(self, name: bytes) -> int:
        """Remove all fields with this name, and return how many there were."""
        name, before = name.lower(), len(self.raw)
        self.raw = [field for field in self.raw if field[0].lower() != name]
        return before - len(self.raw)


def checked(name: bytes, value: bytes) -> Field:
    """A field as `Fields` keeps it. Raises ValueError, without the value, where it cannot be sent."""
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r}: expected a field name, that is a token")
    if not FIELD_VALUE.fullmatch(value):
        raise ValueError(f"value of {name.decode()}: expected text without control octets")
    return name, b" " + value


def any_of(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """A pattern of a field, its CRLF in front, that has one of these names; its groups are name and value.

    Most fields have another name, and fail at the first letter: each is tried once, in a set, which is fast.
    """
    initials = groupby(sorted(names), lambda name: name[:1])
    words = [
        rb"[%b%b](?i:%b)" % (initial, initial.upper(), b"|".join(name[1:] for name in group))
        for initial, group in initials
    ]
    return re.compile(rb"\r\n(" + b"|".join(words) + rb"):([^\r]*+)")


STAYING = frozenset((b"authorization", b"content-length"))
KNOWN_OF_REQUEST = any_of(REWRITTEN | {b"authorization"})
KNOWN_OF_RESPONSE = any_of(REWRITTEN_OF_RESPONSE | {b"proxy-status"})
CONTENT_LENGTH = any_of([b"content-length"])
OF_CONNECTION = re.compile(rb"(?:^|[,\n])[ \t]*+(?i:ntlm|negotiate)(?=[ \t,\n]|$)")
"""A scheme that authenticates a connection (RFC 4559), in the value of Authorization or WWW-Authenticate."""


def take_out(fields: bytes, pattern: re.Pattern[bytes]) -> tuple[Known, bytes]:
    """The fields that mean something here, by the name in lower case, and the others.

    Values of several fields with one name have LF between them, which stands in none. Authorization and Content-Length
    stay among the others, too, the latter in its shortest form.
    """
    known: Known = {}
    parts = iter(pattern.split(fields))  # others, name, value, others, name, value, others
    others = [next(parts)]
    for spelled in parts:
        name, raw = spelled.lower(), next(parts)
        value = raw.strip()
        if name in STAYING:
            if name == b"authorization":
                others[-1] += b"\r\n%b:%b" % (spelled, raw)
            else:
                others[-1] += b"\r\nContent-Length: " + (value.lstrip(b"0") or b"0")
        known[name] = known[name] + b"\n" + value if name in known else value
        others.append(next(parts))
    return known, b"".join(others)


def find_known(fields: bytes, pattern: re.Pattern[bytes]) -> Known:
    """The fields that mean something here, as `take_out` gives them; the others are not parted from them."""
    known: Known = {}
    for spelled, raw in pattern.findall(fields):
        name, value = spelled.lower(), raw.strip()
        known[name] = known[name] + b"\n" + value if name in known else value
    return known


def without(fields: bytes, options: frozenset[bytes], protected: frozenset[bytes]) -> bytes:
    """The fields but for those that Connection names."""
    if options <= protected:
        return fields
    names, lines = options - protected, fields.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in names)


def members(value: bytes | None) -> frozenset[bytes]:
    """The words of a list field from all of its lines, in lower case; empty if there is no such field."""
    if value is None:
        return NO_OPTIONS
    value = value.lower()
    return COMMON_OPTIONS.get(value) or frozenset(map(bytes.strip, value.replace(b"\n", b",").split(b","))) - {b""}


def decode_number(value: bytes, what: str) -> int:
    """Read a number of up to 18 digits, which fits 64 bits in every reader; ``what`` is for the error."""
    if not value.isdigit() or len(value) > 18:
        if b"\n" in value:
            raise too_many(value, what)
        raise HttpError(f"{what}: {shown(value)}expected 1 to 18 digits")
    return int(value)


def too_many(value: bytes, what: str) -> HttpError:
    """The error for a field that came more than once, as `take_out` joins them."""
    return HttpError(f"{value.count(10) + 1} {what} fields, expected 1")


def shown(value: bytes) -> str:
    """A value for an error, with a comma after it; nothing if it is more than one short word, for it may hold
    anything."""
    return f"{value.decode()!r}, " if SHORT_WORD.fullmatch(value) else ""
