"""Host and port, as text, as objects and as the address field of RFC 1928 section 5.

    +------+----------+------+
    | ATYP | ADDR     | PORT |      ATYP 1: 4 octets (IPv4), ATYP 4: 16 octets (IPv6),
    +------+----------+------+      ATYP 3: one octet of length, then that many octets of a name
    |  1   | variable |  2   |      PORT: network order
    +------+----------+------+

A name is a ``str`` in ASCII (IDNA where it was international), an address an object of ``ipaddress``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple
from unicodedata import ucd_3_2_0

from tabi.errors import RemoteProtocolError
from tabi.wire.idna import encode_name

Host = str | IPv4Address | IPv6Address

ATYP_IPV4, ATYP_NAME, ATYP_IPV6 = 1, 3, 4
MAX_NAME = 255
MAX_LABEL = 63
MAX_FOREIGN = 32
"""Characters outside ASCII in a name. Each costs IDNA some 3 microseconds, and names that people use are short."""
ADDRESS_TYPE_NOT_SUPPORTED = 8
HOST_UNREACHABLE = 4


class IPv4(IPv4Address):
    """An IPv4Address that remembers its text and its octets: every session needs both several times."""

    __slots__ = ("octets", "text")

    def __init__(self, address: bytes | str) -> None:
        super().__init__(address)
        self.octets = super().packed
        self.text = super().__str__()

    def __str__(self) -> str:
        return self.text

    @property
    def packed(self) -> bytes:
        return self.octets


# The same few hosts return all the time, and building an ipaddress object costs as much as the rest of a message.
ipv4 = lru_cache(4096)(IPv4)
ipv6 = lru_cache(4096)(IPv6Address)


@lru_cache(4096)
def parse_ip(text: str) -> IPv4Address | IPv6Address:
    """Read an address as sockets give it. IPv4 inside IPv6, as a dual-stack socket has it, is IPv4."""
    host = ip_address(text)
    if isinstance(host, IPv6Address):
        return host if host.ipv4_mapped is None else IPv4(host.ipv4_mapped.packed)
    return IPv4(text)


class Address(NamedTuple):
    """A host and a port. ``str()`` gives ``host:port``, with brackets around IPv6."""

    host: Host
    port: int

    def __str__(self) -> str:
        # !s, for ipaddress' own __format__ is written in Python.
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host!s}:{self.port}"


UNSPECIFIED = Address(ipv4(bytes(4)), 0)
"""0.0.0.0:0, the BND of a failure reply."""


def foreign(text: str) -> int:
    """How many characters of a text are outside ASCII."""
    return len(text) - len(text.encode("ascii", "ignore"))


def to_idna(text: str) -> str:
    """Convert a name to IDNA/ASCII (RFC 3490). That takes time, so the length of a text is limited first.

    Raises:
        ValueError: it has more than 255 characters, a label of more than 63, or more than MAX_FOREIGN outside ASCII,
            a character that stands for several counted as these; or it is not an international name.
    """
    if len(text) > MAX_NAME:
        raise ValueError(f"a host name has 1 to {MAX_NAME} octets, this one has more")
    # As IDNA does it too. Some characters stand for up to 18 others.
    plain = ucd_3_2_0.normalize("NFKC", text)
    if max(map(len, plain.split("."))) > MAX_LABEL:
        raise ValueError(f"{text!r} has a label of more than {MAX_LABEL} characters")
    if max(foreign(text), foreign(plain)) > MAX_FOREIGN:
        raise ValueError(f"{text!r} has more than {MAX_FOREIGN} characters outside ASCII")
    return encode_name(text)


PRINTABLE = re.compile("[!-~]+")


@lru_cache(4096)
def parse_host(text: str) -> Host:
    """Read a host as people write it: IPv4, IPv6 with or without brackets, or a name, which becomes IDNA/ASCII.

    Raises:
        ValueError: it is empty, longer than 255 octets, or not a valid name; or as `to_idna` raises it.
    """
    ascii_text = text if text.isascii() else to_idna(text)
    if not 0 < len(ascii_text) <= MAX_NAME:
        raise ValueError(f"a host name has 1 to {MAX_NAME} octets, this one has {len(ascii_text)}")
    if not PRINTABLE.fullmatch(ascii_text):
        raise ValueError(f"{text!r} holds white space or control characters")
    # After IDNA, which also turns other scripts' digits and full stops into those of an address.
    literal = ascii_text[1:-1] if ascii_text.startswith("[") and ascii_text.endswith("]") else ascii_text
    if ":" in literal:
        try:
            return IPv6Address(literal)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address; expected a host without a port") from None
    if literal[-1:].isdigit():
        try:
            return IPv4(literal)
        except ValueError:
            pass
    return ascii_text


NUMBER = re.compile(r"0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)", re.ASCII)


def read_number(name: str) -> IPv4Address | None:
    """Read a name that is a number as the C library does: ``127.1``, ``0x7f.1``, ``0177.0.0.1``, ``2130706433``.

    Resolvers take some of these for something else, others for names. None if the name is not a number.

    Raises:
        ValueError: the last label is a number, which no name has, but the whole is not an address.
    """
    last = name.removesuffix(".").rpartition(".")[2]
    if not (last.isascii() and last.isdigit()) and not last.lower().startswith("0x"):
        return None
    parts = [NUMBER.fullmatch(part) for part in name.split(".")]
    values = [
        int(part[1], 16) if part[1] is not None else int(part[2] or part[3], 8 if part[2] else 10)
        for part in parts
        if part is not None
    ]
    most = 256 ** (5 - len(values))
    if len(values) < len(parts) or not 1 <= len(values) <= 4 or max((*values[:-1], 0)) > 255 or values[-1] >= most:
        raise ValueError("neither an address nor a name")
    number = values[-1]
    for index, value in enumerate(values[:-1]):
        number += value << (24 - 8 * index)
    return ipv4(number.to_bytes(4, "big"))


FOUND = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII | re.IGNORECASE)
MAX_FOUND = 253
"""Octets of a name in DNS without the dot at its end (RFC 1035 section 3.1)."""


def check_found_name(text: str) -> str:
    """Check a name that a server in the net gives for an address: it may hold anything, and is passed on to others.

    Returns:
        The name, without a dot at its end: letters, digits, - and _ in labels of 1 to 63.

    Raises:
        ValueError: it is not a name, or looks like an address.
    """
    name = text.removesuffix(".")
    if len(name) > MAX_FOUND or not FOUND.fullmatch(name) or read_number(name) is not None:
        raise ValueError(f"{text[:MAX_FOUND]!r} is not a host name")
    return name


COMPATIBLE, MAPPED, TRANSLATED = bytes(12), bytes(10) + b"\xff\xff", bytes(8) + b"\xff\xff\0\0"
NAT64, SIXTOFOUR = b"\0\x64\xff\x9b" + bytes(8), b"\x20\x02"
ISATAP = (b"\0\0\x5e\xfe", b"\x02\0\x5e\xfe")


def embedded_ipv4(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a device on the path may translate an IPv6 address to, or None.

    IPv4-mapped and -compatible (RFC 4291 section 2.5.5), translated (RFC 2765 section 2.1), NAT64 (RFC 6052), 6to4 (RFC
    3056), ISATAP (RFC 5214 section 6.1). ``::`` and ``::1`` give None.
    """
    if isinstance(address, IPv4Address):
        return None
    octets = address.packed
    if octets[:2] == SIXTOFOUR:
        return ipv4(octets[2:6])
    front = octets[:12]
    if front in (MAPPED, TRANSLATED, NAT64) or octets[8:12] in ISATAP:
        return ipv4(octets[12:])
    return ipv4(octets[12:]) if front == COMPATIBLE and int(address) > 1 else None


def make_host(host: object) -> Host:
    """Take a host from a program: text as `parse_host` does, or an address of ``ipaddress``.

    Raises:
        TypeError: it is neither.
        ValueError: as `parse_host`.
    """
    if not isinstance(host, str | IPv4Address | IPv6Address):
        raise TypeError(f"{host!r} is not a host, expected str, IPv4Address or IPv6Address")
    return parse_host(str(host))


def parse_port(text: str) -> int:
    """Read a port, 0 to 65535; raises ValueError otherwise."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port, expected 0 to 65535")
    return int(text)


def parse_address(text: str) -> Address:
    """Read ``host:port`` or ``[ipv6]:port``.

    Raises:
        ValueError: there is no port, or the host is not valid.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is not host:port")
    return Address(parse_host(host), parse_port(port))


def from_sockaddr(sockaddr: tuple[Any, ...]) -> Address:
    """An IP socket's address as Python's sockets give it. A link-local one bears the number of its interface."""
    if len(sockaddr) == 4 and sockaddr[3]:
        return Address(parse_ip(f"{sockaddr[0]}%{sockaddr[3]}"), sockaddr[1])
    return Address(parse_ip(sockaddr[0]), sockaddr[1])


def unmap(address: Address) -> Address:
    """An IP socket's address as Python's sockets give it; IPv4 inside IPv6, as a dual-stack socket has it, becomes
    IPv4."""
    host, port = address
    return Address(parse_ip(str(host)), port) if isinstance(host, IPv6Address) else address


def encode_address(address: Address) -> bytes:
    """ATYP, ADDR and PORT of one address. Raises ValueError for a name that is not ASCII of 1 to 255 octets."""
    host, port = address
    if isinstance(host, str):
        name = host.encode("ascii")
        if not 0 < len(name) <= MAX_NAME:
            raise ValueError(f"a host name has 1 to {MAX_NAME} octets, this one has {len(name)}")
        return b"%c%c%b%b" % (ATYP_NAME, len(name), name, port.to_bytes(2, "big"))
    return (b"\x01" if isinstance(host, IPv4Address) else b"\x04") + host.packed + port.to_bytes(2, "big")


def decode_host(name: bytes, field: str) -> Host:
    """Read what a client wrote in the field of a name; ``field`` is the protocol's word for it, for the error.

    Raises:
        RemoteProtocolError: it is not a valid host (reply 04).
    """
    try:
        # Some clients send the name as UTF-8, and some send an address as text: parse_host knows both.
        host = parse_host(name.decode())
        if not isinstance(host, str) and "%" in str(host):
            raise ValueError(f"{str(host)!r} bears a zone, which only the machine that gave it knows")
    except ValueError as exc:
        raise RemoteProtocolError(f"{field}: {exc}", HOST_UNREACHABLE) from exc
    return host


def decode_address(data: bytes | bytearray, at: int) -> tuple[Address, int] | None:
    """Read the address field that begins at ``data[at]``.

    Returns:
        The address and the index after it, or None while octets are missing.

    Raises:
        RemoteProtocolError: unknown ATYP (reply 08), or a name that cannot exist (reply 04).
    """
    if len(data) <= at:
        return None
    atyp = data[at]
    if atyp == ATYP_IPV4:
        end = at + 7
        if len(data) < end:
            return None
        return Address(ipv4(bytes(data[at + 1 : at + 5])), data[end - 2] << 8 | data[end - 1]), end
    if atyp == ATYP_IPV6:
        end = at + 19
        if len(data) < end:
            return None
        return Address(ipv6(bytes(data[at + 1 : at + 17])), data[end - 2] << 8 | data[end - 1]), end
    if atyp != ATYP_NAME:
        raise RemoteProtocolError(f"ATYP {atyp:#04x}, expected 0x01, 0x03 or 0x04", ADDRESS_TYPE_NOT_SUPPORTED)
    if len(data) < at + 2:
        return None
    end = at + 4 + data[at + 1]
    if len(data) < end:
        return None
    host = decode_host(bytes(data[at + 2 : end - 2]), "DST.ADDR")
    return Address(host, data[end - 2] << 8 | data[end - 1]), end


def missing_octets(data: bytes | bytearray, at: int) -> int:
    """How many octets the address field that begins at ``data[at]`` needs for certain beyond those in ``data``."""
    have = len(data) - at
    if have < 1:
        return 4 - have  # the shortest: ATYP, a length of 0, two octets of the port
    atyp = data[at]
    if atyp == ATYP_IPV4:
        return 7 - have
    if atyp == ATYP_IPV6:
        return 19 - have
    return (4 + data[at + 1] if have > 1 else 4) - have
