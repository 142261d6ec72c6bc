"""HPACK, the compression of fields in HTTP/2: RFC 7541. No I/O.

A *block* is what HEADERS, PUSH_PROMISE and their CONTINUATIONs hold together. A *field* is a tuple of name and value.
Its type says how it was sent, so that it is sent on like that: a plain tuple may be indexed, `NotIndexed` was not, and
`NeverIndexed` must not be by anybody (section 7.1.3).

    index        1iiiiiii                             a field of the tables
    literal      01iiiiii | 0000iiii | 0001iiii       a name of the tables, or 0 and the name; the value
                                                      to be indexed | not | never
    size update  001sssss                             at the beginning of a block only

Numbers that do not fit go on in octets of 7 bits, lowest first (section 5.1). A string is a length, with the highest
bit for Huffman's code, and octets (section 5.2).

Hot path: a field that both tables know costs a look-up.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from tabi.errors import H2Error, H2StreamError
from tabi.wire.huffman import decode_huffman, encode_huffman

Field = tuple[bytes, bytes]

PROTOCOL_ERROR, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 1, 9, 11  # RFC 9113 section 7

TABLE_SIZE = 4096
"""Octets of a dynamic table until SETTINGS_HEADER_TABLE_SIZE says something else (RFC 9113 section 6.5.2)."""

MAX_TABLE_SIZE = 16384
"""Octets of a dynamic table at most, whatever a peer allows."""

MAX_BLOCK_SIZE = 65536
MAX_LIST_SIZE = 131072
MAX_FIELDS = 1000
"""Octets of a block, and of its fields with 32 more for each (RFC 7541 section 4.1); fields of a block."""

MAX_MALFORMED = 16
"""Malformed fields of a connection; beyond that it ends."""

MAX_HUFFMAN = 1024
"""Longer strings are sent as they are: 30 us a KiB are more than what is saved."""

STATIC_TEXT = (
    b":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 "
    b":status=204 :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= "
    b"accept-encoding=gzip,+deflate accept-language= accept-ranges= accept= access-control-allow-origin= age= allow= "
    b"authorization= cache-control= content-disposition= content-encoding= content-language= content-length= "
    b"content-location= content-range= content-type= cookie= date= etag= expect= expires= from= host= if-match= "
    b"if-modified-since= if-none-match= if-range= if-unmodified-since= last-modified= link= location= max-forwards= "
    b"proxy-authenticate= proxy-authorization= range= referer= refresh= retry-after= server= set-cookie= "
    b"strict-transport-security= transfer-encoding= user-agent= vary= via= www-authenticate="
)
STATIC: list[Field] = [
    (name, value.replace(b"+", b" ")) for name, _, value in (entry.partition(b"=") for entry in STATIC_TEXT.split(b" "))
]
"""Appendix A."""

INDEXES = bytes(range(0x81, 0xFF))
"""Octets that are an index of a field by themselves."""

is_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+|:(?:method|scheme|authority|path|protocol|status)").fullmatch
"""A token without upper-case letters, or a pseudo-header field (RFC 9113 section 8.3, RFC 8441)."""

FORBIDDEN = b"\0\r\n"
"""What no value may hold (RFC 9113 section 8.2.1). What else it forbids there does no harm, and is met in the wild."""


class NotIndexed(tuple[bytes, bytes]):
    """A field that its sender did not index, such as one whose value differs each time."""

    __slots__ = ()


class NeverIndexed(tuple[bytes, bytes]):
    """A field that nobody may index: a secret (section 7.1.3). It equals none of the other types."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is NeverIndexed and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((NeverIndexed, *self))


def size_of(field: Field) -> int:
    """What a field counts for, in a table and in a list (section 4.1)."""
    return len(field[0]) + len(field[1]) + 32


def read_integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Read an integer whose first octet is at ``at``; returns it and where it ends. Raises IndexError, H2Error."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in (0, 7, 14, 21, 28):
        octet = block[at]
        at += 1
        value += (octet & 127) << shift
        if octet < 128:
            return value, at
    raise H2Error("HPACK: an integer of more than 6 octets", COMPRESSION_ERROR)


def read_string(block: bytes, at: int) -> tuple[bytes, int]:
    """Read a string; returns it and where it ends. Raises IndexError, H2Error."""
    coded = block[at] > 127
    size, at = read_integer(block, at, 127)
    end = at + size
    if end > len(block):
        raise IndexError
    return (decode_huffman(block[at:end]) if coded else block[at:end]), end


def write_integer(block: bytearray, first: int, mask: int, value: int) -> None:
    """Write an integer behind the bits of ``first``."""
    if value < mask:
        block.append(first | value)
        return
    block.append(first | mask)
    value -= mask
    while value > 127:
        block.append(value & 127 | 128)
        value >>= 7
    block.append(value)


def write_string(block: bytearray, text: bytes) -> None:
    """Write a string by Huffman's code if that is shorter."""
    if len(text) <= MAX_HUFFMAN:
        coded = encode_huffman(text)
        if len(coded) < len(text):
            write_integer(block, 128, 127, len(coded))
            block += coded
            return
    write_integer(block, 0, 127, len(text))
    block += text


FIRST = 0x80
"""Where index 0 is in a decoder's table, so that an octet with an index is a place in it."""

DYNAMIC = FIRST + 1 + len(STATIC)


class Decoder:
    """Reads the blocks of one direction of a connection. After an H2Error that is no H2StreamError it is of no use."""

    __slots__ = (
        "allowed",
        "largest",
        "least",
        "limit",
        "malformed",
        "max_block_size",
        "max_fields",
        "max_list_size",
        "size",
        "table",
    )

    def __init__(
        self,
        max_block_size: int = MAX_BLOCK_SIZE,
        max_list_size: int = MAX_LIST_SIZE,
        max_fields: int = MAX_FIELDS,
    ) -> None:
        self.max_block_size = max_block_size
        self.max_list_size = max_list_size
        self.max_fields = max_fields
        self.table: list[Field] = [(b"", b"")] * (FIRST + 1) + STATIC  # then the dynamic one, newest first
        self.size = 0  # of the dynamic table
        self.limit = TABLE_SIZE  # that the peer has set
        self.allowed = TABLE_SIZE  # that we have allowed
        self.least = TABLE_SIZE  # allowed since the last block
        self.largest = 0  # size of the largest field that was ever in the table or sent
        self.malformed: set[Field] = set()

    def allow(self, size: int) -> None:
        """Our SETTINGS_HEADER_TABLE_SIZE was acknowledged."""
        self.allowed = size
        self.least = min(self.least, size)

    def decode(self, block: bytes) -> list[Field]:
        """Decode a block.

        Raises:
            H2StreamError: a field is malformed (RFC 9113 section 8.2.1).
            H2Error: the block breaks RFC 7541, or is too large.
        """
        if len(block) > self.max_block_size:
            raise H2Error(f"HPACK: a block of {len(block)} octets", ENHANCE_YOUR_CALM)
        try:
            if block.translate(None, INDEXES) or self.least < self.limit:
                found = self.decode_any(block)
            else:
                found = list(map(self.table.__getitem__, block))
        except IndexError:
            raise H2Error("HPACK: an index beyond the table, or a block that ends early", COMPRESSION_ERROR) from None
        if len(found) * self.largest > self.max_list_size:
            self.check_size(found)
        if len(found) > self.max_fields:
            raise H2Error(f"HPACK: {len(found)} fields", ENHANCE_YOUR_CALM)
        if self.malformed and not self.malformed.isdisjoint(found):
            raise H2StreamError("a field whose name or value is malformed", PROTOCOL_ERROR)
        return found

    def check_size(self, fields: list[Field]) -> None:
        """Raise H2Error if a list is too large."""
        size = sum(map(size_of, fields))
        if size > self.max_list_size:
            raise H2Error(f"HPACK: fields of {size} octets", ENHANCE_YOUR_CALM)

    def decode_any(self, block: bytes) -> list[Field]:
        """Decode a block that has more than short indexes. Raises IndexError, H2Error."""
        table, found, end = self.table, [], len(block)
        at = self.update_size(block)
        while at < end:
            octet = block[at]
            if octet > 127:
                if octet == 255:
                    index, at = read_integer(block, at, 127)
                    found.append(table[FIRST + index])
                    continue
                if octet == 128:
                    raise IndexError
                found.append(table[octet])
                at += 1
                continue
            if 32 <= octet < 64:
                raise H2Error("HPACK: a size update in the middle of a block", COMPRESSION_ERROR)
            index, at = read_integer(block, at, 63 if octet > 63 else 15)
            if index:
                name = table[FIRST + index][0]
            else:
                name, at = read_string(block, at)
            value, at = read_string(block, at)
            field: Field = (name, value)
            if octet > 63:
                self.add(field)
            else:
                field = NeverIndexed(field) if octet > 15 else NotIndexed(field)
            found.append(field)
            size = len(name) + len(value) + 32
            if size > self.largest:
                self.largest = size
            if (not index and not is_name(name)) or len(value.translate(None, FORBIDDEN)) < len(value):
                self.note_malformed(field)
            if len(found) > self.max_fields:
                raise H2Error(f"HPACK: more than {self.max_fields} fields", ENHANCE_YOUR_CALM)
        return found

    def update_size(self, block: bytes) -> int:
        """Take the size updates at the beginning of a block; returns where they end. Raises IndexError, H2Error."""
        at = updates = 0
        smallest = self.limit
        while block[at : at + 1] and 32 <= block[at] < 64:
            self.limit, at = read_integer(block, at, 31)
            smallest = min(smallest, self.limit)
            updates += 1
            if self.limit > self.allowed or updates > 2:
                raise H2Error(f"HPACK: a table of {self.limit} octets, or too many updates", COMPRESSION_ERROR)
            self.evict()
        if smallest > self.least:
            raise H2Error("HPACK: no update for a table that had to become smaller", COMPRESSION_ERROR)
        self.least = self.allowed
        return at

    def add(self, field: Field) -> None:
        """Put a field into the dynamic table; it stays out if it is larger than that (section 4.4)."""
        self.table.insert(DYNAMIC, field)
        self.size += len(field[0]) + len(field[1]) + 32
        if self.size > self.limit:
            self.evict()

    def evict(self) -> None:
        """Drop the oldest fields that have no room."""
        while self.size > self.limit:
            self.size -= size_of(self.table.pop())

    def note_malformed(self, field: Field) -> None:
        """Know a malformed field again: the table keeps it, since both ends must have the same."""
        self.malformed.add(field)
        if len(self.malformed) > MAX_MALFORMED:
            raise H2Error(f"more than {MAX_MALFORMED} malformed fields", PROTOCOL_ERROR)


FIELD_PLACES = {field: -index for index, field in reversed(list(enumerate(STATIC, 1)))}
NAME_PLACES = {field[0]: -index for index, field in reversed(list(enumerate(STATIC, 1)))}
"""Static fields and names: minus their index, the first one of a name."""


class Encoder:
    """Writes the blocks of one direction of a connection."""

    __slots__ = ("base", "limit", "names", "order", "places", "size", "updates")

    def __init__(self) -> None:
        self.places = FIELD_PLACES.copy()  # of a dynamic field: how many were added before it; index = base - place
        self.names = NAME_PLACES.copy()
        self.base = len(STATIC)
        self.order: deque[Field] = deque()  # the dynamic table, oldest first
        self.size = 0
        self.limit = TABLE_SIZE
        self.updates: list[int] = []  # sizes to be told at the beginning of the next block

    def allow(self, size: int) -> None:
        """We have acknowledged the peer's SETTINGS_HEADER_TABLE_SIZE (section 4.2)."""
        size = min(size, MAX_TABLE_SIZE)
        if size == self.limit and not self.updates:
            return
        least = min([size, *self.updates[:1]])
        self.updates = [least, size] if least < size else [size]
        self.limit = size
        self.evict()

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Encode a block."""
        block = bytearray()
        if self.updates:
            for size in self.updates:
                write_integer(block, 0x20, 31, size)
            self.updates.clear()
        get, base = self.places.get, self.base
        for field in fields:
            place = get(field)
            if place is None:
                self.write_literal(block, field)
                base = self.base
            elif place < 0:
                block.append(128 - place)
            elif base - place < 127:
                block.append(128 + base - place)
            else:
                write_integer(block, 128, 127, base - place)
        return bytes(block)

    def write_literal(self, block: bytearray, field: Field) -> None:
        """Write a field that is not in the tables, or must not be."""
        name, value = field
        size = len(name) + len(value) + 32
        kind = type(field)
        add = kind is tuple and size <= self.limit
        first, mask = (0x40, 63) if add else (0x10 if kind is NeverIndexed else 0, 15)
        place = self.names.get(name)
        if place is None:
            block.append(first)
            write_string(block, name)
        else:
            write_integer(block, first, mask, self.base - place if place >= 0 else -place)
        write_string(block, value)
        if add:
            added = self.base - len(STATIC)
            self.places[field] = added
            if place is None or place >= 0:
                self.names[name] = added
            self.base += 1
            self.order.append(field)
            self.size += size
            self.evict()

    def evict(self) -> None:
        """Drop the oldest fields that have no room."""
        while self.size > self.limit:
            oldest = self.base - len(STATIC) - len(self.order)
            field = self.order.popleft()
            self.size -= size_of(field)
            del self.places[field]
            if self.names[field[0]] == oldest:
                del self.names[field[0]]
