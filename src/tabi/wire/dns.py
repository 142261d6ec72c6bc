"""Messages of the DNS (RFC 1035 section 4): one question, and what an answer to it says.

    +----+-------+-------+-------+-------+-------+----------+---------+-----------+------------+
    | ID | FLAGS | QD    | AN    | NS    | AR    | question | answers | authority | additional |
    +----+-------+-------+-------+-------+-------+----------+---------+-----------+------------+
    | 2  |   2   |   2   |   2   |   2   |   2   |  a name, a type and a class, then records     |
    +----+-------+-------+-------+-------+-------+----------+---------+-----------+------------+

A question has no EDNS (RFC 6891): some servers answer it wrongly, and what does not fit comes by TCP anyhow.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from tabi.wire.address import IPv4

A, CNAME, SOA, PTR, AAAA = 1, 5, 6, 12, 28
"""Types of records."""
IN = 1
NOERROR, NXDOMAIN = 0, 3
RCODES = {1: "FORMERR", 2: "SERVFAIL", 4: "NOTIMP", 5: "REFUSED"}

ASK = b"\x01\0\0\1\0\0\0\0\0\0"
"""The head of a question behind its ID: recursion desired, one question."""
HEAD, RECORD = struct.Struct("!HHHH"), struct.Struct("!HHIH")
RESPONSE, TRUNCATED = 0x8000, 0x0200
MAX_NAME, MAX_LABEL, MAX_JUMPS = 255, 63, 64
MAX_RECORDS = 512
"""Records of an answer that are looked at: more would hold up others."""
MAX_TTL = 2**31
"""A time to live of this and more counts as 0 (RFC 2181 section 8)."""

Value = IPv4Address | IPv6Address | str


class DnsAnswer(NamedTuple):
    """What a message says about a question."""

    rcode: int
    truncated: bool
    """There is more, by TCP."""
    values: list[Value]
    """Addresses; of PTR names, without a dot at the end."""
    ttl: float | None
    """Seconds that this may be kept, also that there is nothing (RFC 2308 section 5); None where it does not say."""


def encode_question(name: str, kind: int) -> bytes:
    """The section of a question for records of a type; a dot at the end of the name changes nothing.

    Raises:
        ValueError: it is not a name that the DNS may have.
    """
    try:
        labels = [label.encode("ascii") for label in name.removesuffix(".").split(".")]
    except UnicodeEncodeError:
        raise ValueError("a name in the DNS is ASCII") from None
    if not all(0 < len(label) <= MAX_LABEL for label in labels):
        raise ValueError(f"a label of a name has 1 to {MAX_LABEL} octets")
    octets = b"".join(b"%c%b" % (len(label), label) for label in labels) + b"\0"
    if len(octets) > MAX_NAME:
        raise ValueError(f"a name in the DNS has at most {MAX_NAME} octets")
    return octets + struct.pack("!HH", kind, IN)


def encode_message(number: int, question: bytes) -> bytes:
    """The message that asks a question; ``number`` is its ID."""
    return number.to_bytes(2, "big") + ASK + question


def decode_answer(data: bytes, question: bytes) -> DnsAnswer | None:
    """Read a message; the caller has compared its ID.

    Records that do not belong to the name, or to what it is an alias of, say nothing.

    Returns:
        What it says; None if it is not an answer to this question.

    Raises:
        ValueError: it breaks off, or contradicts itself.
    """
    at = 12 + len(question)
    if len(data) < 12:
        return None
    flags, questions, answers, authority = HEAD.unpack_from(data, 2)
    rcode, truncated = flags & 15, bool(flags & TRUNCATED)
    if not flags & RESPONSE:
        return None
    if rcode and not questions:  # of a server that did not understand it
        return DnsAnswer(rcode, False, [], None)
    if questions != 1 or data[12:at].lower() != question.lower():
        return None
    records = Records(data, question)
    try:
        at = records.read_answers(at, answers)
        values, ttl = records.follow()
        if not values and not truncated and answers <= MAX_RECORDS:
            ttl = records.read_negative_ttl(at, authority)
    except (IndexError, struct.error):
        if not truncated:
            raise ValueError("the message breaks off") from None
        values, ttl = records.follow()  # it may break off anywhere
    return DnsAnswer(rcode, truncated, values, ttl)


class Records:
    """The records of an answer that matter to its question."""

    def __init__(self, data: bytes, question: bytes) -> None:
        self.data = data
        self.name = question[:-4].lower()
        self.kind = int.from_bytes(question[-4:-2], "big")
        self.aliases: dict[bytes, tuple[bytes, int]] = {}
        """By owner: what it is an alias of, and for how many seconds."""
        self.values: dict[bytes, list[tuple[Value, int]]] = {}
        self.known: dict[int, bytes] = {}
        """Names that others end with, by their place: most records point to the same few."""

    def read_answers(self, at: int, count: int) -> int:
        """Take the records of the answer section that begins at ``data[at]``; returns the index after them."""
        for _ in range(min(count, MAX_RECORDS)):
            owner, at = read_name(self.data, at, self.known)
            kind, group, ttl, length = RECORD.unpack_from(self.data, at)
            at += RECORD.size
            if at + length > len(self.data):
                raise IndexError
            ttl = ttl if ttl < MAX_TTL else 0
            if group == IN and kind == self.kind:
                self.values.setdefault(owner, []).append((self.read_value(at, length), ttl))
            elif group == IN and kind == CNAME:
                self.aliases.setdefault(owner, (read_name(self.data, at, self.known)[0], ttl))
            at += length
        return at

    def read_value(self, at: int, length: int) -> Value:
        """What a record of the wanted type has. Raises ValueError."""
        if self.kind == PTR:
            return to_text(read_name(self.data, at, self.known)[0])
        octets = self.data[at : at + length]
        return IPv4(octets) if self.kind == A else IPv6Address(octets)

    def follow(self) -> tuple[list[Value], float | None]:
        """The values of the name that was asked for, or of what it is an alias of, and the least time to live."""
        name, ttls = self.name, []
        while name not in self.values and name in self.aliases:
            name, ttl = self.aliases.pop(name)  # popped, for it may be a circle
            ttls.append(ttl)
        found = self.values.get(name, [])
        ttls += [ttl for _, ttl in found]
        return [value for value, _ in found], min(ttls, default=None)

    def read_negative_ttl(self, at: int, count: int) -> float | None:
        """How long it may be kept that there is nothing: what the zone's SOA says in the section at ``data[at]``."""
        for _ in range(min(count, MAX_RECORDS)):
            _, at = read_name(self.data, at, self.known)
            kind, _, ttl, length = RECORD.unpack_from(self.data, at)
            at += RECORD.size + length
            if at > len(self.data):
                raise IndexError
            if kind == SOA and length >= 22:
                least = min(ttl, int.from_bytes(self.data[at - 4 : at], "big"))
                return least if least < MAX_TTL else 0
        return None


def read_name(data: bytes, at: int, known: dict[int, bytes], jumps: int = 0) -> tuple[bytes, int]:
    """Read a name, which may go on at an earlier place (RFC 1035 section 4.1.4).

    Args:
        data: the message.
        at: the index of the name.
        known: names of this message by their index, those that others go on with; they are read once.
        jumps: how many names go on with this one.

    Returns:
        Its labels in lower case, each behind its length, and the index after it.

    Raises:
        ValueError: it is not a name.
        IndexError: it breaks off.
    """
    begin = at
    while (length := data[at]) <= MAX_LABEL:
        at += 1 + length
        if at - begin > MAX_NAME:
            raise ValueError(f"a name has more than {MAX_NAME} octets")
        if not length:
            return data[begin:at].lower(), at
    place = (length & MAX_LABEL) << 8 | data[at + 1]
    if length < 0xC0 or place >= begin or jumps == MAX_JUMPS:
        raise ValueError("a name does not end")
    if place not in known:
        known[place] = read_name(data, place, known, jumps + 1)[0]
    name = data[begin:at].lower() + known[place]
    if len(name) > MAX_NAME:
        raise ValueError(f"a name has more than {MAX_NAME} octets")
    return name, at + 2


def to_text(name: bytes) -> str:
    """A name as people write it; what is not a letter, a digit, ``-`` or ``_`` stays as it is, a dot gets ``\\``."""
    labels, at = [], 0
    while name[at]:
        label = name[at + 1 : at + 1 + name[at]]
        labels.append(label.replace(b".", b"\\.").decode("ascii", "replace"))
        at += 1 + len(label)
    return ".".join(labels)
