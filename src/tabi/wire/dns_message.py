"""Messages of the DNS as they pass by (RFC 1035 section 4), whoever has asked: `wire.dns` reads answers to our own.

What can be read counts: a message whose answers break off has those before, so that rubbish behind a question hides
nothing from whoever looks for its name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import NamedTuple

from tabi.wire.address import IPv4
from tabi.wire.dns import AAAA, CNAME, HEAD, MAX_TTL, PTR, RECORD, RESPONSE, TRUNCATED, A, read_name

NS, DNAME = 2, 39
NAMES = (NS, CNAME, PTR, DNAME)
"""Types of records that have a name and nothing else."""

HEAD_SIZE = 12
MAX_ANSWERS = 256
"""Records of the answer section that are read: as many as a datagram of 4 KiB has room for."""

MAX_NAMES = 8192
"""Octets of different names that are read in a message: to write them takes a millisecond or two."""


class DnsRecord(NamedTuple):
    """A record of an answer."""

    name: str
    """Whose it is; as `DnsInfo.name`."""
    type: int
    """1 is A, 5 is CNAME, 28 is AAAA, 65 is HTTPS."""
    ttl: int
    """Seconds that it may be kept."""
    data: bytes
    """As it was sent: names in it may point into the message."""
    text: str | None
    """An address, or the name of CNAME, NS, PTR or DNAME; None for other types, and where it cannot be read."""


class DnsInfo(NamedTuple):
    """A message of DNS in a datagram."""

    id: int
    is_response: bool
    name: str
    """The name that is asked for, in small letters, without the dot at its end; empty without a question. Octets that
    are no printable ASCII are ``\\DDD``, a dot and a backslash in a label get a backslash (RFC 1035 section 5.1)."""
    type: int
    """What is asked for: 1 is A, 28 is AAAA, 65 is HTTPS; 0 without a question."""
    rcode: int
    """0 where nothing is wrong, 3 where there is no such name."""
    truncated: bool
    """There is more, by TCP."""
    answers: tuple[DnsRecord, ...]
    """The first 256 records of a response, as far as they can be read, with names of 8 KiB together."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that a response gives, as text."""
        return tuple(record.text for record in self.answers if record.type in (A, AAAA) and record.text is not None)


def decode_message(data: bytes) -> DnsInfo | None:
    """Read a message; None if it is none. Never raises."""
    if len(data) < HEAD_SIZE:
        return None
    flags, questions, answers, _ = HEAD.unpack_from(data, 2)
    name, kind, at = "", 0, HEAD_SIZE
    names = Names(data)
    try:
        for number in range(min(questions, 2)):  # of more of them no server knows what they mean
            found, at = names.read(at)
            if at + 4 > len(data):
                return None
            if not number:
                name, kind = found, int.from_bytes(data[at : at + 2])
            at += 4
    except (ValueError, IndexError):
        return None
    records = tuple(read_records(data, at, min(answers, MAX_ANSWERS), names)) if questions < 3 else ()
    is_response, truncated = bool(flags & RESPONSE), bool(flags & TRUNCATED)
    return DnsInfo(int.from_bytes(data[:2]), is_response, name, kind, flags & 15, truncated, records)


class Names:
    """The names of one message, each written once."""

    __slots__ = ("data", "known", "texts", "used")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.known: dict[int, bytes] = {}
        self.texts: dict[bytes, str] = {}
        self.used = 0

    def read(self, at: int) -> tuple[str, int]:
        """The name at an index, and the index after it. Raises ValueError and IndexError as `read_name`; ValueError
        for more than MAX_NAMES."""
        name, at = read_name(self.data, at, self.known)
        text = self.texts.get(name)
        if text is None:
            self.used += len(name)
            if self.used > MAX_NAMES:
                raise ValueError(f"names of more than {MAX_NAMES} octets")
            text = self.texts[name] = presented(name)
        return text, at


def read_records(data: bytes, at: int, count: int, names: Names) -> Iterator[DnsRecord]:
    """The records that begin at an index, up to one that cannot be read."""
    try:
        for _ in range(count):
            owner, at = names.read(at)
            kind, _, ttl, length = RECORD.unpack_from(data, at)
            at += RECORD.size
            octets = data[at : at + length]
            if len(octets) < length:
                return
            text = read_text(at, kind, octets, names)
            yield DnsRecord(owner, kind, ttl if ttl < MAX_TTL else 0, octets, text)
            at += length
    except (ValueError, IndexError, struct.error):
        return


def read_text(at: int, kind: int, octets: bytes, names: Names) -> str | None:
    """What a record says, as text; see `DnsRecord.text`."""
    if kind == A:
        return str(IPv4(octets)) if len(octets) == 4 else None
    if kind == AAAA:
        return str(IPv6Address(octets)) if len(octets) == 16 else None
    if kind in NAMES:
        try:
            name, end = names.read(at)
        except (ValueError, IndexError):
            return None
        return name if end == at + len(octets) else None
    return None


def presented(name: bytes) -> str:
    """A name as `DnsInfo.name` has it, of its labels behind their lengths."""
    text, labels, at = name.decode("latin-1"), [], 0
    while name[at]:
        end = at + 1 + name[at]
        labels.append(text[at + 1 : end].translate(SHOWN))
        at = end
    return ".".join(labels)


SHOWN = {octet: f"\\{octet:03}" for octet in range(256) if not 0x20 < octet < 0x7F} | {46: "\\.", 92: "\\\\"}
"""How octets of a label are written that are not written as they are."""
