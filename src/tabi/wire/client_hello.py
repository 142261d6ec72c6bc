"""ClientHello of TLS (RFC 8446 section 4.1.2), out of the records that carry it (section 5.1). No I/O.

    +------+---------+--------+----------+     TYPE: 22, handshake
    | TYPE | VERSION | LENGTH | FRAGMENT |     LENGTH: 1 ... 2^14
    +------+---------+--------+----------+     A message may lie in as many records as it has octets.
    |  1   |    2    |   2    | variable |
    +------+---------+--------+----------+

    +------+--------+---------+--------+------------+---------+-------------+------------+
    | TYPE | LENGTH | VERSION | RANDOM | SESSION ID | CIPHERS | COMPRESSION | EXTENSIONS |    TYPE: 1, ClientHello
    +------+--------+---------+--------+------------+---------+-------------+------------+
    |  1   |   3    |    2    |   32   |  1 + 0..32 |  2 + …  |    1 + …    |   2 + …    |
    +------+--------+---------+--------+------------+---------+-------------+------------+

JA3 is the fingerprint of Althouse, Atkinson and Atkins (2017), JA4 that of FoxIO (2023).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import md5, sha256
from string import ascii_letters, digits

import msgspec

from tabi.errors import RemoteProtocolError
from tabi.wire.address import check_found_name

CLIENT_HELLO, HOST_NAME = 1, 0
RECORD = b"\x16\x03"
"""How a record of the handshake begins, of any version."""
RECORD_HEAD, MESSAGE_HEAD, RANDOM_END = 5, 4, 34
MAX_FRAGMENT = 1 << 14
MAX_HELLO = 1 << 16
"""Octets of a ClientHello that is read. Those with keys against quantum computers have less than 2,000."""

SERVER_NAME, GROUPS, POINT_FORMATS, SIGNATURE_ALGORITHMS, ALPN, VERSIONS = 0, 10, 11, 13, 16, 43
"""Types of the extensions that are read."""

GREASE = frozenset(0x0A0A + 0x1010 * number for number in range(16))
"""Values that mean nothing (RFC 8701)."""

JA4_VERSIONS = {0x0002: "s2", 0x0300: "s3", 0x0301: "10", 0x0302: "11", 0x0303: "12", 0x0304: "13"}
LETTERS_AND_DIGITS = (ascii_letters + digits).encode()
NOTHING = "000000000000"
"""What JA4 has in place of a hash of nothing."""

Numbers = tuple[int, ...]


class ClientHello(msgspec.Struct, frozen=True):
    """What a client offers. Numbers are those of the IANA's registries, in the order in which they came."""

    version: int
    """``legacy_version``: 0x0303 is TLS 1.2."""
    ciphers: Numbers
    extensions: Numbers
    sni: str | None = None
    """The host name that the client asks for, in lower case. None: there is none, or it is not a host name."""
    alpn: tuple[bytes, ...] = ()
    versions: Numbers = ()
    """``supported_versions``; empty where there is no such extension."""
    groups: Numbers = ()
    point_formats: Numbers = ()
    signature_algorithms: Numbers = ()
    quic: bool = False
    """Whether it came by QUIC, and not in records."""

    @property
    def ja3_text(self) -> str:
        """What JA3 is the hash of: version, ciphers, extensions, groups and point formats."""
        lists = (self.ciphers, self.extensions, self.groups, self.point_formats)
        return ",".join((str(self.version), *("-".join(map(str, without_grease(numbers))) for numbers in lists)))

    @property
    def ja3(self) -> str:
        """JA3, 32 hexadecimal digits."""
        return md5(self.ja3_text.encode(), usedforsecurity=False).hexdigest()

    @property
    def ja4(self) -> str:
        """JA4, such as ``t13d1516h2_8daaf6152771_e5627efa2ab1``."""
        ciphers, extensions = without_grease(self.ciphers), without_grease(self.extensions)
        version = max(without_grease(self.versions), default=self.version)
        others = [number for number in extensions if number not in (SERVER_NAME, ALPN)]
        algorithms = without_grease(self.signature_algorithms)
        first = (self.alpn[0] if self.alpn else b"") or b"0"
        return "".join(
            (
                "q" if self.quic else "t",
                JA4_VERSIONS.get(version, "00"),
                "d" if SERVER_NAME in extensions else "i",
                f"{min(len(ciphers), 99):02}{min(len(extensions), 99):02}",
                "".join(chr(octet) if octet in LETTERS_AND_DIGITS else "9" for octet in (first[0], first[-1])),
                "_",
                hash12(hexadecimal(sorted(ciphers))),
                "_",
                hash12(hexadecimal(sorted(others)) + "_" * bool(algorithms) + hexadecimal(algorithms)),
            )
        )


def without_grease(numbers: Numbers) -> list[int]:
    """The numbers that mean something."""
    return [number for number in numbers if number not in GREASE]


def hexadecimal(numbers: Iterable[int]) -> str:
    """Four digits each, with commas."""
    return ",".join([f"{number:04x}" for number in numbers])


def hash12(text: str) -> str:
    """The first 12 digits of SHA-256, as JA4 has it."""
    return sha256(text.encode()).hexdigest()[:12] if text else NOTHING


class HelloReader:
    """Reads one ClientHello as it comes, each octet once. ``octets`` are all that came, also those behind it.

    Of a whole hello these are at most 6 times MAX_HELLO, what came with its last octet aside: a record has a head of 5
    octets and is not empty.
    """

    __slots__ = ("end", "head", "left", "message", "octets")

    def __init__(self) -> None:
        self.octets = bytearray()
        self.head = bytearray()  # of the record that begins
        self.left = 0  # octets that are missing of the record's fragment
        self.message = bytearray()  # what the fragments are
        self.end = 1  # how much of it must be there to know more

    def receive(self, data: bytes) -> ClientHello | None:
        """Take octets; None means that the hello needs more.

        Raises:
            RemoteProtocolError: this is no ClientHello, or one of more than MAX_HELLO octets.
        """
        self.octets += data
        head, message, left, at = self.head, self.message, self.left, 0
        while at < len(data):
            if not left:
                whole = not head and len(data) - at >= RECORD_HEAD
                part = data[at : at + RECORD_HEAD - len(head)]
                at += len(part)
                left = check_record(part if whole else head + part)
                if whole or left:
                    head.clear()
                else:
                    head += part
                continue
            fragment = data[at : at + left]
            message += fragment
            at += len(fragment)
            left -= len(fragment)
            if len(message) >= self.end:
                self.end = check_message(message)
                if len(message) >= self.end:
                    return decode_hello(bytes(message[MESSAGE_HEAD : self.end]))
        self.left = left
        return None


def check_record(head: bytes | bytearray) -> int:
    """How long the fragment of a record is; 0 while octets of its head are missing.

    Raises:
        RemoteProtocolError: it is not a record of the handshake.
    """
    if len(head) == RECORD_HEAD and head.startswith(RECORD):
        length = head[3] << 8 | head[4]
        if 0 < length <= MAX_FRAGMENT:
            return length
    elif head.startswith(RECORD) or RECORD.startswith(head):
        return 0
    raise RemoteProtocolError("TLS: this is not a record of the handshake")


def check_message(message: bytearray) -> int:
    """How long a handshake message is, with its head; as long as its length is not there, as long as the head.

    Raises:
        RemoteProtocolError: it is not a ClientHello, or is too long.
    """
    if message[0] != CLIENT_HELLO:
        raise RemoteProtocolError(f"TLS: handshake type {message[0]}, expected {CLIENT_HELLO}, ClientHello")
    end = MESSAGE_HEAD + int.from_bytes(message[1:MESSAGE_HEAD])
    if len(message) < MESSAGE_HEAD:
        return MESSAGE_HEAD
    if end > MAX_HELLO:
        raise RemoteProtocolError(f"TLS: a ClientHello of {end} octets, at most {MAX_HELLO} are read")
    return end


def decode_client_hello(octets: bytes) -> ClientHello | None:
    """Read the ClientHello that records begin with; None while octets are missing.

    Raises:
        RemoteProtocolError: they do not begin with one, or it has more than MAX_HELLO octets.
    """
    return HelloReader().receive(octets)


def hello_body(octets: bytes) -> bytes:
    """The ClientHello that records begin with, without the head of the message: what `decode_hello` takes; empty while
    octets are missing.

    Raises:
        RemoteProtocolError: as `decode_client_hello`.
    """
    reader = HelloReader()
    return b"" if reader.receive(octets) is None else bytes(reader.message[MESSAGE_HEAD : reader.end])


def extensions_of(body: bytes) -> dict[int, bytes]:
    """What is in each extension of a ClientHello, by type, in their order. ``body`` is as `hello_body` gives it.

    Raises:
        RemoteProtocolError: a length does not fit, or an extension comes twice.
    """
    _, at = take(body, RANDOM_END, 1)  # the session
    _, at = take(body, at, 2)  # the ciphers
    _, at = take(body, at, 1)  # the compression
    return split_extensions(take(body, at, 2)[0]) if at < len(body) else {}


def decode_hello(body: bytes, quic: bool = False) -> ClientHello:
    """Read a ClientHello without the head of the message, as QUIC carries it too.

    Raises:
        RemoteProtocolError: a length does not fit, an extension comes twice, or one that is read here is malformed.
    """
    if len(body) < RANDOM_END:
        raise RemoteProtocolError("TLS: a ClientHello ends within its random")
    _, at = take(body, RANDOM_END, 1)  # the session
    ciphers, at = take(body, at, 2)
    _, at = take(body, at, 1)  # the compression
    found: dict[int, bytes] = {}
    if at < len(body):  # RFC 5246 section 7.4.1.2: there may be none
        extensions, at = take(body, at, 2)
        found = split_extensions(extensions)
    if at != len(body):
        raise RemoteProtocolError("TLS: a ClientHello with octets behind its extensions")
    return ClientHello(
        int.from_bytes(body[:2]),
        numbers(ciphers),
        tuple(found),
        read_server_name(found.get(SERVER_NAME)),
        tuple(split(whole(found[ALPN], 2), 1)) if ALPN in found else (),
        numbers(whole(found[VERSIONS], 1)) if VERSIONS in found else (),
        numbers(whole(found[GROUPS], 2)) if GROUPS in found else (),
        tuple(whole(found[POINT_FORMATS], 1)) if POINT_FORMATS in found else (),
        numbers(whole(found[SIGNATURE_ALGORITHMS], 2)) if SIGNATURE_ALGORITHMS in found else (),
        quic,
    )


def take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    """A vector whose length is in ``size`` octets, and the index behind it. Raises RemoteProtocolError."""
    begin = at + size
    end = begin + int.from_bytes(data[at:begin])
    if end > len(data) or begin > len(data):
        raise RemoteProtocolError("TLS: a length in a ClientHello is more than there is")
    return data[begin:end], end


def whole(data: bytes, size: int) -> bytes:
    """The one vector that an extension consists of. Raises RemoteProtocolError."""
    vector, end = take(data, 0, size)
    if end != len(data):
        raise RemoteProtocolError("TLS: octets behind the list in an extension")
    return vector


def split(data: bytes, size: int) -> list[bytes]:
    """Vectors one behind the other. Raises RemoteProtocolError."""
    found, at = [], 0
    while at < len(data):
        vector, at = take(data, at, size)
        found.append(vector)
    return found


def numbers(data: bytes) -> Numbers:
    """Numbers of two octets. Raises RemoteProtocolError."""
    if len(data) % 2:
        raise RemoteProtocolError("TLS: half a number in a ClientHello")
    return struct.unpack(f"!{len(data) // 2}H", data)


def split_extensions(data: bytes) -> dict[int, bytes]:
    """The extensions by type, in their order. Raises RemoteProtocolError."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        kind = int.from_bytes(data[at : at + 2])
        if kind in found:
            raise RemoteProtocolError(f"TLS: extension {kind} comes twice")
        found[kind], at = take(data, at + 2, 2)
    return found


def read_server_name(data: bytes | None) -> str | None:
    """The host name of an extension (RFC 6066 section 3), None if it has none that could be one. Raises
    RemoteProtocolError."""
    if data is None:
        return None
    names, at = whole(data, 2), 0
    while at < len(names):
        name, end = take(names, at + 1, 2)
        if names[at] == HOST_NAME:
            try:
                return check_found_name(name.decode("ascii")).lower()
            except ValueError:  # UnicodeDecodeError too
                return None
        at = end
    return None
