"""The PROXY protocol, versions 1 and 2: the header in which a proxy in front says who its client is. No I/O.

Version 1 (section 2.1), a line of at most 107 octets, each gap one space:

    PROXY TCP4|TCP6 SOURCE-ADDRESS DESTINATION-ADDRESS SOURCE-PORT DESTINATION-PORT CRLF
    PROXY UNKNOWN [anything] CRLF

Version 2 (section 2.2), binary, in network order:

    +-----------+---------+---------+-----+--------+-----------+----------+
    | SIGNATURE | VERSION | COMMAND | FAM | LENGTH | ADDRESSES |   TLVs   |    VERSION, COMMAND: four bits each
    +-----------+---------+---------+-----+--------+-----------+----------+    FAM: family, transport: four bits each
    |    12     |         1         |  1  |   2    | 0 ... 216 | variable |    LENGTH: of all that follows it
    +-----------+-------------------+-----+--------+-----------+----------+

A peer that can send a header can claim any address: decode only what comes from a trusted proxy, and always expect a
header from it; nothing here guesses whether there is one.

The octets of the client follow at once, and the reader of the header must not take any of them. Look with MSG_PEEK, at
most at `HEADER_LIMIT`, and take what `decode_header` says that the header has; where that is None, take no more than
`missing_octets` at a time, since a descriptor stays readable while octets are only looked at.
"""

from __future__ import annotations

import re
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

import msgspec

from tabi.errors import RemoteProtocolError
from tabi.wire.address import Address, ipv4, ipv6, parse_ip

MAX_HEADER = 536
"""Octets of a header that is written. Section 2 has both formats fit in the smallest segment that every host takes, 576
- 40."""

HEADER_LIMIT = 4096
"""Octets of a header of version 2 that is read: balancers of clouds put long TLVs into it."""

MAX_LINE = 107
"""Octets of version 1's line with its CRLF, the worst case of section 2.1."""

MAX_UNIQUE_ID = 128
"""Octets, section 2.2.5."""

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED = 16
"""Octets of version 2's header up to LENGTH."""

LOCAL, PROXY = 0, 1
INET, INET6 = 1, 2
ADDRESSES_LENGTH = (0, 2 * 4 + 2 * 2, 2 * 16 + 2 * 2, 2 * 108)
"""Octets of ADDRESSES by family: AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX."""

SSL_VERSION, SSL_CN = 0x21, 0x22  # types within a TLV of type SSL
CLIENT_CERT = 0x02 | 0x04  # over this connection, or over the TLS session that it belongs to

MAPPED = bytes(10) + b"\xff\xff"
"""What IPv6 puts before an address of IPv4 (RFC 4291 section 2.5.5.2)."""

SHORTEST = {b"PROXY TCP4 ": 32, b"PROXY TCP6 ": 22, b"PROXY UNKNOWN ": 16, b"PROXY UNKNOWN\r\n": 15}
"""How version 1's line may begin, and octets of the shortest such line: with 1.1.1.1, ::, and 0 as port."""

# The text has no dots in IPv6; inet_ntop(3), with which senders write, ends IPv4 inside IPv6 in them.
TCP_LINE = re.compile(rb"PROXY TCP([46]) ([\dA-Fa-f:.]+) ([\dA-Fa-f:.]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n")

TLV = tuple[int, bytes]


class TlvType(IntEnum):
    """The types that section 2.2 registers. 0xE0 to 0xEF are for applications."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    NETNS = 0x30


class Transport(IntEnum):
    """The lower half of FAM: what the proxy speaks with the client."""

    UNSPEC = 0
    STREAM = 1
    DGRAM = 2


class ProxyHeader(msgspec.Struct, frozen=True):
    """The client that a header names.

    Attributes:
        version: 1 or 2.
        local: the header names no client (LOCAL, UNKNOWN, UNSPEC): the connection's own two addresses count.
        source: the client's address; None when local or of AF_UNIX. IPv4 inside IPv6 is IPv4.
        destination: what the client connected to; None when source is.
        transport: UNSPEC when local.
        tlvs: type and value in their order, known or not, less NOOP and the checksum, which are done with.
    """

    version: int
    local: bool
    source: Address | None = None
    destination: Address | None = None
    transport: Transport = Transport.UNSPEC
    tlvs: tuple[TLV, ...] = ()


class SslInfo(msgspec.Struct, frozen=True):
    """PP2_TYPE_SSL, section 2.2.6: the TLS between the client and the proxy.

    Attributes:
        client: bits: 1 for TLS, 2 for a certificate over this connection, 4 for one over its TLS session.
        verify: 0 if nothing was wrong with the certificate; 0 is also sent if there was none.
        version: as "TLSv1.3".
        common_name: of the client certificate, whether `verified` or not.
    """

    client: int
    verify: int
    version: str | None = None
    common_name: str | None = None

    @property
    def verified(self) -> bool:
        """Whether the client showed a certificate and the proxy found it good."""
        return self.client & CLIENT_CERT != 0 and self.verify == 0


# --- decoding ---


def decode_header(data: bytes | bytearray, limit: int = HEADER_LIMIT) -> tuple[ProxyHeader, int] | None:
    """Read the header at the beginning of a connection; what follows it is not looked at.

    Args:
        data: the connection's octets from the first one on.
        limit: octets of a whole header of version 2; a reader never has to keep more than that.

    Returns:
        The header and the octets that it has, or None while octets are missing.

    Raises:
        RemoteProtocolError: it is not a header, a broken one, one that is too long, or its checksum is wrong. Before it
            is whole where that is certain, as section 2.1 recommends.
    """
    return decode_v2(data, limit) if data[:1] == SIGNATURE[:1] else decode_v1(data)


def missing_octets(data: bytes | bytearray) -> int:
    """How many octets the header needs for certain beyond those in ``data``, of which `decode_header` made None.

    Version 2 tells its length; a line does not, and is read in twos at its end.
    """
    if data[:1] == SIGNATURE[:1]:
        return FIXED - len(data) if len(data) < FIXED else FIXED + (data[14] << 8 | data[15]) - len(data)
    whole = min((octets for beginning, octets in SHORTEST.items() if agrees(data, beginning)), default=0)
    return max(whole - len(data), 1 if data[-1:] == b"\r" else 2)


def agrees(data: bytes | bytearray, beginning: bytes) -> bool:
    """Whether ``data`` begins so, as far as it goes."""
    return beginning.startswith(bytes(data[: len(beginning)]))


def decode_v1(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    """Read the line of version 1; see `decode_header`."""
    line = bytes(data[:MAX_LINE])
    if not any(agrees(line, beginning) for beginning in SHORTEST):
        raise RemoteProtocolError(f"PROXY header: begins with {line[:16]!r}, expected version 2's signature or 'PROXY'")
    unknown = line.startswith(b"PROXY UNKNOWN")
    end = line.find(b"\r\n") + 2
    if end < 2:
        if len(line) == MAX_LINE:
            raise RemoteProtocolError(f"PROXY header: no CRLF in the first {MAX_LINE} octets")
        if b"\n" in line and not unknown:
            raise RemoteProtocolError("PROXY header: LF without CR")
        return None
    if unknown:
        return ProxyHeader(1, local=True), end
    found = TCP_LINE.fullmatch(line, 0, end)
    if found is None:
        raise RemoteProtocolError(f"PROXY header: {line[:end]!r}, expected two addresses and two ports")
    family, *fields = (field.decode() for field in found.groups())
    source, destination = (parse_v1_address(family, *pair) for pair in zip(fields[:2], fields[2:], strict=True))
    return ProxyHeader(1, False, source, destination, Transport.STREAM), end


def parse_v1_address(family: str, host: str, port: str) -> Address:
    """An address and a port as TCP_LINE lets them through; ``family`` is "4" or "6"."""
    if (":" in host) != (family == "6"):
        raise RemoteProtocolError(f"PROXY header: {host!r} in a line of TCP{family}")
    if int(port) > 65535:
        raise RemoteProtocolError(f"PROXY header: port {port}, expected 0 to 65535")
    try:
        return Address(parse_ip(host), int(port))
    except ValueError as exc:
        raise RemoteProtocolError(f"PROXY header: {exc}") from exc


def decode_v2(data: bytes | bytearray, limit: int) -> tuple[ProxyHeader, int] | None:
    """Read the binary header of version 2; see `decode_header`."""
    if not agrees(data, SIGNATURE):
        raise RemoteProtocolError(f"PROXY header: begins with {bytes(data[:12])!r}, expected {SIGNATURE!r}")
    if len(data) > 12 and data[12] not in (0x20 | LOCAL, 0x20 | PROXY):
        raise RemoteProtocolError(f"PROXY header: version and command {data[12]:#04x}, expected 0x20 or 0x21")
    if len(data) < FIXED:
        return None
    end = FIXED + (data[14] << 8 | data[15])
    if end > limit:
        raise RemoteProtocolError(f"PROXY header: {end} octets, expected at most {limit}")
    if data[12] & 0x0F == LOCAL:
        # "must ... discard the protocol block including the family": nothing in it can be wrong
        return (ProxyHeader(2, local=True), end) if len(data) >= end else None
    family, transport = divmod(data[13], 16)
    if family >= len(ADDRESSES_LENGTH) or transport > Transport.DGRAM:
        raise RemoteProtocolError(f"PROXY header: family and transport {data[13]:#04x}, expected 0 to 3 and 0 to 2")
    at = FIXED + ADDRESSES_LENGTH[family]
    if end < at:
        raise RemoteProtocolError(f"PROXY header: {end} octets, expected at least {at} for family {family}")
    if len(data) < end:
        return None
    header = bytes(data[:end])
    tlvs = decode_v2_tlvs(header, at)
    if not family or not transport:
        return ProxyHeader(2, local=True, tlvs=tlvs), end
    source = destination = None
    if family in (INET, INET6):
        size = (at - FIXED - 4) // 2
        source = Address(decode_host(header[FIXED : FIXED + size]), int.from_bytes(header[at - 4 : at - 2], "big"))
        destination = Address(decode_host(header[FIXED + size : at - 4]), int.from_bytes(header[at - 2 : at], "big"))
    return ProxyHeader(2, False, source, destination, Transport(transport), tlvs), end


def decode_host(octets: bytes) -> IPv4Address | IPv6Address:
    """An address of 4 or 16 octets. IPv4 inside IPv6, as a dual-stack socket has it, is IPv4."""
    octets = octets.removeprefix(MAPPED)
    return ipv4(octets) if len(octets) == 4 else ipv6(octets)


def decode_tlvs(data: bytes, at: int) -> list[TLV]:
    """Read types and values from ``data[at]`` to the end; raises RemoteProtocolError where one goes beyond it."""
    tlvs = []
    while at < len(data):
        start = at + 3
        end = start + int.from_bytes(data[at + 1 : start], "big")
        if max(start, end) > len(data):
            raise RemoteProtocolError(f"PROXY header: TLV {data[at]:#04x} ends {max(start, end) - len(data)} too late")
        tlvs.append((data[at], data[start:end]))
        at = end
    return tlvs


def decode_v2_tlvs(header: bytes, at: int) -> tuple[TLV, ...]:
    """Read the TLVs of a whole header, check those that this module knows; returns what is left for others."""
    kept, checked = [], False
    for kind, value in decode_tlvs(header, at):
        at += 3 + len(value)
        if kind == TlvType.CRC32C:
            if checked or len(value) != 4:
                raise RemoteProtocolError(f"PROXY header: CRC32C of {len(value)} octets, expected 4, once")
            checked = True
            # The checksum's own field counts as zeros, section 2.2.3.
            if crc32c(header[: at - 4] + bytes(4) + header[at:]) != int.from_bytes(value, "big"):
                raise RemoteProtocolError("PROXY header: wrong checksum")
        elif kind == TlvType.UNIQUE_ID and len(value) > MAX_UNIQUE_ID:
            raise RemoteProtocolError(f"PROXY header: UNIQUE_ID of {len(value)} octets, expected {MAX_UNIQUE_ID}")
        elif kind != TlvType.NOOP:
            kept.append((kind, value))
    return tuple(kept)


def decode_ssl(value: bytes) -> SslInfo:
    """Read the value of a TLV of type SSL: client 1 octet, verify 4, then TLVs of its own, unknown ones skipped.

    Raises:
        RemoteProtocolError: it is too short, goes beyond its end, or holds a text twice, or an invalid text.
    """
    if len(value) < 5:
        raise RemoteProtocolError(f"PROXY header: SSL of {len(value)} octets, expected 5 or more")
    texts: dict[int, str] = {}
    for kind, text in decode_tlvs(value, 5):
        if kind in (SSL_VERSION, SSL_CN):
            if kind in texts:
                raise RemoteProtocolError(f"PROXY header: SSL with two of {kind:#04x}")
            try:
                texts[kind] = text.decode("ascii" if kind == SSL_VERSION else "utf-8")
            except UnicodeDecodeError as exc:
                raise RemoteProtocolError(f"PROXY header: SSL {kind:#04x}: {exc}") from exc
    return SslInfo(value[0], int.from_bytes(value[1:5], "big"), texts.get(SSL_VERSION), texts.get(SSL_CN))


# --- encoding ---


def encode_fields(source: Address | None, destination: Address | None) -> tuple[bytes, bytes, int, int] | None:
    """The hosts, both of 4 octets or both of 16, and the ports; None where a host is None or a name.

    Of mixed families the IPv4 one is written inside IPv6: so the client's address arrives (section 4.2). A header
    without addresses is only for what "is not possible to correctly fill" (section 2.1).
    """
    if source is None or destination is None or isinstance(source.host, str) or isinstance(destination.host, str):
        return None
    hosts = source.host.packed, destination.host.packed
    if len(hosts[0]) != len(hosts[1]):
        hosts = (MAPPED + hosts[0])[-16:], (MAPPED + hosts[1])[-16:]
    return *hosts, source.port, destination.port


def encode_v1(source: Address | None, destination: Address | None) -> bytes:
    """The line of version 1: TCP4, TCP6, or UNKNOWN where a host is None or a name."""
    fields = encode_fields(source, destination)
    if fields is None:
        return b"PROXY UNKNOWN\r\n"
    *hosts, source_port, destination_port = fields
    if len(hosts[0]) == 4:
        family, texts = 4, [str(ipv4(host)) for host in hosts]
    else:
        # In full, as the text draws it; str() would bear dots in IPv4 inside IPv6 from Python 3.13 on.
        family, texts = 6, [host.hex(":", 2) for host in hosts]
    return f"PROXY TCP{family} {texts[0]} {texts[1]} {source_port} {destination_port}\r\n".encode()


def encode_v2(
    source: Address | None,
    destination: Address | None,
    local: bool = False,
    tlvs: tuple[TLV, ...] = (),
    checksum: bool = False,
) -> bytes:
    """The header of version 2 for a stream: AF_INET, AF_INET6, or UNSPEC where a host is None or a name.

    Receivers may refuse UNSPEC, and haproxy 2.6 does: a name as destination loses the client's address too.

    Args:
        source: the client.
        destination: what the client connected to.
        local: the connection is the proxy's own, as for a health check: the addresses are left out.
        tlvs: type and value of each.
        checksum: end in a TLV with the CRC32C of the header.

    Raises:
        ValueError: a TLV cannot be written, or the header would be longer than MAX_HEADER.
    """
    fields = None if local else encode_fields(source, destination)
    fam, block = 0, b""
    if fields is not None:
        *hosts, source_port, destination_port = fields
        fam = (INET if len(hosts[0]) == 4 else INET6) << 4 | Transport.STREAM
        block = b"".join(hosts) + source_port.to_bytes(2, "big") + destination_port.to_bytes(2, "big")
    block += b"".join(encode_tlv(kind, value) for kind, value in tlvs)
    if checksum:
        block += b"%c\0\4%b" % (TlvType.CRC32C, bytes(4))
    if FIXED + len(block) > MAX_HEADER:
        raise ValueError(f"a PROXY header has at most {MAX_HEADER} octets, this one has {FIXED + len(block)}")
    header = b"%b%c%c%b%b" % (SIGNATURE, 0x20 | (LOCAL if local else PROXY), fam, len(block).to_bytes(2, "big"), block)
    return header[:-4] + crc32c(header).to_bytes(4, "big") if checksum else header


def encode_tlv(kind: int, value: bytes) -> bytes:
    """Type 1 octet, length 2, value. Raises ValueError where it does not fit, and for the checksum's type."""
    if not 0 <= kind <= 255 or kind == TlvType.CRC32C:
        raise ValueError(f"TLV of type {kind}, expected 0 to 255 and not {TlvType.CRC32C:d}, which checksum= adds")
    if len(value) > (limit := MAX_UNIQUE_ID if kind == TlvType.UNIQUE_ID else MAX_HEADER):
        raise ValueError(f"a TLV of type {kind} has at most {limit} octets, this one has {len(value)}")
    return b"%c%b%b" % (kind, len(value).to_bytes(2, "big"), value)


# --- CRC32C ---


def make_crc_table() -> tuple[int, ...]:
    """What each octet does to a CRC32C: the polynomial 0x1EDC6F41 with its bits reversed, eight steps."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


CRC_TABLE = make_crc_table()


def crc32c(data: bytes) -> int:
    """The CRC32C (Castagnoli) of RFC 4960 appendix B, as a number: 0xE3069283 of ``b"123456789"``."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF
