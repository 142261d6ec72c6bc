"""The PROXY protocol's header, versions 1 and 2: what is read, what is refused, what is written."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tabi.errors import RemoteProtocolError
from tabi.wire.address import Address, parse_address
from tabi.wire.proxy_protocol import (
    FIXED,
    HEADER_LIMIT,
    MAX_HEADER,
    MAX_LINE,
    MAX_UNIQUE_ID,
    SIGNATURE,
    TLV,
    ProxyHeader,
    SslInfo,
    TlvType,
    Transport,
    crc32c,
    decode_header,
    decode_ssl,
    encode_v1,
    encode_v2,
    missing_octets,
)

STREAM = Transport.STREAM
HERE, THERE = Address(IPv4Address("192.0.2.1"), 56324), Address(IPv4Address("198.51.100.7"), 443)
HERE6, THERE6 = Address(IPv6Address("2001:db8::1"), 56324), Address(IPv6Address("2001:db8::2"), 443)
NAME = Address("example.com", 443)
BLOCK4 = bytes.fromhex("c0000201 c6336407 dc04 01bb")
BLOCK6 = HERE6.host.packed + THERE6.host.packed + bytes.fromhex("dc04 01bb")  # type: ignore[union-attr]
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
FULL6 = b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n"


def v2(block: bytes, fam: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    """A header of version 2, of whatever octets."""
    return SIGNATURE + bytes([command, fam]) + (len(block) if length is None else length).to_bytes(2, "big") + block


def tlv(kind: int, value: bytes) -> bytes:
    """One TLV, unchecked."""
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def decode(data: bytes, limit: int = HEADER_LIMIT) -> ProxyHeader:
    """Decode a header that is whole, and is nothing but that."""
    found = decode_header(data, limit)
    assert found is not None
    header, end = found
    assert end == len(data)
    return header


def refused(data: bytes, message: str, limit: int = HEADER_LIMIT) -> None:
    """The octets are refused, and so they are when more follow, and in a bytearray."""
    for variant in (data, data + b"x", bytearray(data)):
        found: object
        try:
            found = decode_header(variant, limit)
        except RemoteProtocolError as exc:
            found = exc
        assert isinstance(found, RemoteProtocolError), f"{variant!r} is taken for {found}"
        assert re.search(message, str(found)), f"{variant!r}: {found}"


addresses4 = st.builds(Address, st.ip_addresses(v=4), st.integers(0, 65535))
hosts6 = st.builds(IPv6Address, st.binary(min_size=16, max_size=16)).filter(lambda host: host.ipv4_mapped is None)
addresses6 = st.builds(Address, hosts6, st.integers(0, 65535))
pairs = st.one_of(st.tuples(addresses4, addresses4), st.tuples(addresses6, addresses6))
kinds = st.integers(0, 255).filter(lambda kind: kind not in (TlvType.CRC32C, TlvType.NOOP))
some_tlvs = st.lists(st.tuples(kinds, st.binary(max_size=MAX_UNIQUE_ID)), max_size=3).map(tuple)


def said(version: int, source: str, destination: str, *tlvs: TLV, transport: Transport = STREAM) -> ProxyHeader:
    """What a header says of a client."""
    return ProxyHeader(version, False, parse_address(source), parse_address(destination), transport, tlvs)


LOCAL1, LOCAL2 = ProxyHeader(1, True), ProxyHeader(2, True)
CLIENT4, CLIENT6 = ("192.0.2.1:56324", "198.51.100.7:443"), ("[2001:db8::1]:56324", "[2001:db8::2]:443")
FULL = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
MAPPED4 = bytes.fromhex("00000000000000000000ffffc0000201 00000000000000000000ffffc6336407 dc04 01bb")

# The examples of the text, what haproxy 2.6 sends (in hexadecimal), and two headers of AWS network load
# balancers, with checksums, that are published with AWS's and other decoders.
HEADERS = [
    (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", said(1, "192.168.0.1:56324", "192.168.0.11:443")),
    (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        said(1, "255.255.255.255:65535", "255.255.255.255:65535"),
    ),
    (FULL6, said(1, FULL, FULL)),
    (b"PROXY TCP6 :: :: 0 0\r\n", said(1, "[::]:0", "[::]:0")),
    (b"PROXY TCP6 2001:DB8::1 2001:db8:0:0::2 56324 443\r\n", said(1, *CLIENT6)),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:c633:6407 56324 443\r\n", said(1, *CLIENT4)),
    (
        b"PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.1 40646 36185\r\n",  # of haproxy on a dual-stack socket
        said(1, "127.0.0.1:40646", "127.0.0.1:36185"),
    ),
    (b"PROXY UNKNOWN\r\n", LOCAL1),
    (b"PROXY UNKNOWN \r\n", LOCAL1),
    (b"PROXY UNKNOWN 1.2.3.4 \xff\0\r \n \n\r\n", LOCAL1),
    (FULL6.replace(b"TCP6", b"UNKNOWN"), LOCAL1),
    (
        bytes.fromhex("0d0a0d0a000d0a515549540a 2111000c 7f0000017f000001 8176a291"),
        said(2, "127.0.0.1:33142", "127.0.0.1:41617"),
    ),
    (
        bytes.fromhex("0d0a0d0a000d0a515549540a 2111001b 7f0000017f000001 ee2e8b47 030004 9239aefa 050005 69642d3933"),
        said(2, "127.0.0.1:60974", "127.0.0.1:35655", (TlvType.UNIQUE_ID, b"id-93")),
    ),
    (
        bytes.fromhex(
            "0d0a0d0a000d0a515549540a 2121002b 00000000000000000000000000000001 00000000000000000000000000000001"
            "8518 8621 030004 c3a11938"
        ),
        said(2, "[::1]:34072", "[::1]:34337"),
    ),
    (
        bytes.fromhex("0d0a0d0a000d0a515549540a 21110054 ac1f0771 ac1f0a1f c8f20050 030004 e8d6892d ea0017 01")
        + b"vpce-08d2bf15fac5001c9"
        + tlv(TlvType.NOOP, bytes(36)),
        said(2, "172.31.7.113:51442", "172.31.10.31:80", (0xEA, b"\1vpce-08d2bf15fac5001c9")),
    ),
    (
        bytes.fromhex("0d0a0d0a000d0a515549540a 21110054 c0a82c0a c0a82c07 cc3e241b 030004 b9286fa6 ea0017 01")
        + b"vpce-00eafc458ec97b833"
        + tlv(TlvType.NOOP, bytes(36)),
        said(2, "192.168.44.10:52286", "192.168.44.7:9243", (0xEA, b"\1vpce-00eafc458ec97b833")),
    ),
    (v2(BLOCK4), said(2, *CLIENT4)),
    (v2(BLOCK4, 0x12), said(2, *CLIENT4, transport=Transport.DGRAM)),
    (v2(BLOCK6, 0x21), said(2, *CLIENT6)),
    (v2(BLOCK6, 0x22), said(2, *CLIENT6, transport=Transport.DGRAM)),
    (v2(MAPPED4, 0x21), said(2, *CLIENT4)),
    (v2(UNIX, 0x31), ProxyHeader(2, False, transport=STREAM)),
    (v2(UNIX + tlv(0xE0, b"own"), 0x32), ProxyHeader(2, False, transport=Transport.DGRAM, tlvs=((0xE0, b"own"),))),
    (
        v2(BLOCK4 + tlv(0xFF, b"") + tlv(TlvType.NOOP, b"") + tlv(0xFF, b"again")),
        said(2, *CLIENT4, (0xFF, b""), (0xFF, b"again")),
    ),
    (v2(b"", 0x00, 0x20), LOCAL2),
]


# --- what is a header ---


@pytest.mark.parametrize(("octets", "header"), HEADERS)
def test_a_header_is_read(octets: bytes, header: ProxyHeader) -> None:
    """Each family of both versions, as the text draws them and as proxies in use send them; also from a bytearray."""
    assert decode(octets) == header
    assert decode_header(bytearray(octets)) == (header, len(octets))


@pytest.mark.parametrize(("octets", "header"), HEADERS)
def test_what_follows_a_header_is_not_touched(octets: bytes, header: ProxyHeader) -> None:
    """The client's octets behind it, whatever they are, change nothing and are not counted."""
    for payload in (b"\n", b"\r\n", b"\x05\x01\x00", octets, b"GET / HTTP/1.1\r\n\r\n" * 100):
        assert decode_header(octets + payload) == (header, len(octets))


@pytest.mark.parametrize(("octets", "header"), HEADERS)
def test_a_cut_header_is_awaited(octets: bytes, header: ProxyHeader) -> None:
    """Cut anywhere, octet by octet too, nothing is decoded, and no octet of the payload is among the missing ones."""
    for end in range(len(octets)):
        assert decode_header(octets[:end]) is None
        assert 0 < missing_octets(octets[:end]) <= len(octets) - end


@pytest.mark.parametrize(("octets", "header"), HEADERS)
def test_who_reads_what_is_missing_reads_the_header_and_no_more(octets: bytes, header: ProxyHeader) -> None:
    """A reader that never asks for more than `missing_octets` ends exactly behind the header, in a few reads."""
    wire, data, reads = octets + b"payload", b"", 0
    while (found := decode_header(data)) is None:
        data += wire[len(data) : len(data) + missing_octets(data)]
        reads += 1
    assert found == (header, len(data))
    assert data == octets
    assert reads <= (3 if header.version == 2 else MAX_LINE / 2)


@pytest.mark.parametrize(
    ("beginning", "missing"),
    [
        (b"", 15),
        (b"P", 14),
        (b"PROXY ", 9),
        (b"PROXY T", 15),
        (b"PROXY TCP4", 22),
        (b"PROXY TCP6 ", 11),
        (b"PROXY TCP6 :: :: 0 0", 2),
        (b"PROXY TCP6 :: :: 0 0\r", 1),
        (b"PROXY UNKNOWN", 2),
        (b"PROXY UNKNOWN ", 2),
        (b"PROXY UNKNOWN\r", 1),
        (b"PROXY UNKNOWN 1 2 3 4", 2),
        (b"\r", 15),
        (SIGNATURE, 4),
        (SIGNATURE + b"\x21\x11\x01", 1),
        (SIGNATURE + b"\x21\x11\x01\x02", 0x102),
        (SIGNATURE + b"\x21\x11\x00\x0c12345", 7),
    ],
)
def test_what_is_certainly_missing(beginning: bytes, missing: int) -> None:
    """The shortest header that can still follow: 15 octets of PROXY UNKNOWN, 16 of version 2, then what LENGTH says."""
    assert missing_octets(beginning) == missing_octets(bytearray(beginning)) == missing


# --- version 1: what is none ---


@pytest.mark.parametrize(
    ("beginning", "octet"),
    [
        (b"", b"\x05"),
        (b"", b"\x16"),
        (b"", b"G"),
        (b"", b"\n"),
        (b"", b"p"),
        (b"P", b"O"),
        (b"PROXY", b"\r"),
        (b"PROXY", b"\t"),
        (b"PROXY ", b" "),
        (b"PROXY ", b"t"),
        (b"PROXY TCP", b"5"),
        (b"PROXY TCP", b"\r"),
        (b"PROXY TCP4", b"\r"),
        (b"PROXY TCP6", b"\t"),
        (b"PROXY UN", b"I"),
        (b"PROXY UNKNOWN", b"\n"),
        (b"PROXY UNKNOWN", b"S"),
        (b"PROXY UNKNOWN\r", b"x"),
    ],
)
def test_what_begins_otherwise_is_refused_at_once(beginning: bytes, octet: bytes) -> None:
    """Whoever speaks another protocol is told by the first octet that differs, and not by a deadline."""
    assert decode_header(beginning) is None
    refused(beginning + octet, "begins with ")


@pytest.mark.parametrize(
    "fields",
    [
        b"TCP4  1.2.3.4 5.6.7.8 1 2",
        b"TCP4 1.2.3.4  5.6.7.8 1 2",
        b"TCP4 1.2.3.4 5.6.7.8 1  2",
        b"TCP4 1.2.3.4 5.6.7.8 1 2 ",
        b"TCP4 1.2.3.4\t5.6.7.8 1 2",
        b"TCP4 1.2.3.4 5.6.7.8 1",
        b"TCP4 1.2.3.4 5.6.7.8 1 2 3",
        b"TCP4 1.2.3.4 5.6.7.8 01 2",
        b"TCP4 1.2.3.4 5.6.7.8 1 00",
        b"TCP4 1.2.3.4 5.6.7.8 +1 2",
        b"TCP4 1.2.3.4 5.6.7.8 -1 2",
        b"TCP4 1.2.3.4 5.6.7.8 1_0 2",
        b"TCP4 1.2.3.4 5.6.7.8 0x1 2",
        b"TCP4 1.2.3.4 5.6.7.8 1 \xd9\xa1",
        b"TCP4 1.2.3.4 5.6.7.8 1 111111",
        b"TCP4 example.com 5.6.7.8 1 2",
        b"TCP4 1.2.3.4 5.6.7.8 1 2\r",
        b"TCP4 1.2.3.4\r5.6.7.8 1 2",
        b"TCP6 fe80::1%eth0 ::1 1 2",
        b"TCP6 [::1] ::1 1 2",
        b"TCP4 ",
    ],
)
def test_a_line_that_does_not_match_is_refused(fields: bytes) -> None:
    """Exactly one space in each gap, exactly four fields, ports of digits without heading zeroes, no zone."""
    refused(b"PROXY " + fields + b"\r\n", "expected two addresses and two ports")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n", "0[18]"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.008 1 2\r\n", "0[18]"),
        (b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n", "1.2.3"),
        (b"PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n", "256"),
        (b"PROXY TCP4 16909060 5.6.7.8 1 2\r\n", "16909060"),
        (b"PROXY TCP4 a 5.6.7.8 1 2\r\n", "'a'"),
        (b"PROXY TCP6 1:2:3:4:5:6:7 :: 1 2\r\n", "1:2:3:4:5:6:7"),
        (b"PROXY TCP6 1:2:3:4:5:6:7:8:9 :: 1 2\r\n", "1:2:3:4:5:6:7:8:9"),
        (b"PROXY TCP6 1::2::3 :: 1 2\r\n", "1::2::3"),
        (b"PROXY TCP6 00001:: :: 1 2\r\n", "00001"),
        (b"PROXY TCP6 ::ffff:1.2.3.04 :: 1 2\r\n", "04"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "'::1' in a line of TCP4"),
        (b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n", "'::1' in a line of TCP4"),
        (b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n", "'1.2.3.4' in a line of TCP6"),
        (b"PROXY TCP6 ::1 1.2.3.4 1 2\r\n", "'1.2.3.4' in a line of TCP6"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n", "port 65536"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n", "port 99999"),
    ],
)
def test_an_address_or_a_port_that_is_none_is_refused(line: bytes, message: str) -> None:
    """Canonical addresses of the family that the line announces, ports up to 65535."""
    refused(line, message)


def test_a_line_ends_in_crlf_within_107_octets() -> None:
    """The limit exactly at, one below and one above; a line of that many octets without CRLF is not waited for."""
    for length in (MAX_LINE - 1, MAX_LINE):
        assert decode(b"PROXY UNKNOWN ".ljust(length - 2, b"x") + b"\r\n") == LOCAL1
        assert decode_header(b"PROXY UNKNOWN ".ljust(length - 1, b"x")) is None
    refused(b"PROXY UNKNOWN ".ljust(MAX_LINE - 1, b"x") + b"\r\n", "no CRLF in the first 107 octets")
    refused(b"PROXY UNKNOWN ".ljust(MAX_LINE, b"x"), "no CRLF in the first 107 octets")
    refused(b"PROXY TCP4 ".ljust(MAX_LINE, b"1"), "no CRLF in the first 107 octets")


def test_a_single_lf_ends_no_line() -> None:
    """Nor is it waited for what comes behind it; a single CR is, until what follows is seen."""
    refused(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", "LF without CR")
    assert decode_header(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r") is None
    assert decode_header(b"PROXY UNKNOWN 1.2.3.4\n") is None


# --- version 2: what is none ---


@pytest.mark.parametrize("at", range(1, 12))
def test_another_signature_is_refused(at: int) -> None:
    """By the first octet that differs."""
    octets = SIGNATURE[:at] + bytes([SIGNATURE[at] ^ 0x80])
    refused(octets, "begins with ")


def test_another_version_or_command_is_refused() -> None:
    """Version 2 only, LOCAL and PROXY only, and that before the rest is there."""
    for octet in (*range(0x20), *range(0x22, 0x100)):
        refused(SIGNATURE + bytes([octet]), f"version and command {octet:#04x}")


def test_another_family_or_transport_is_refused() -> None:
    """Of PROXY; of LOCAL it is ignored, whatever it is."""
    for fam in (fam for fam in range(256) if fam >> 4 > 3 or fam & 15 > 2):
        refused(v2(bytes(216), fam), f"family and transport {fam:#04x}")
        assert decode(v2(b"", fam, 0x20)) == LOCAL2, f"{fam:#04x}"


@pytest.mark.parametrize(("fam", "length"), [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216), (0x32, 216)])
def test_the_addresses_must_be_there(fam: int, length: int) -> None:
    """LENGTH one below the family's addresses is refused before they arrive; exactly that is right."""
    refused(v2(b"", fam, length=length - 1), f"expected at least {FIXED + length}")
    assert decode(v2(bytes(length), fam)).tlvs == ()


@pytest.mark.parametrize("block", [b"", BLOCK4, b"\xff" * 20, tlv(TlvType.CRC32C, b"1234"), tlv(5, bytes(200))])
def test_local_means_the_connections_own_addresses(block: bytes) -> None:
    """LOCAL must be accepted and its whole block be discarded, family and all: nothing in there can be wrong."""
    for fam in (0x00, 0x11, 0x21, 0x31):
        octets = v2(block, fam, 0x20)
        assert decode(octets) == LOCAL2
        assert decode_header(octets[:-1]) is None


@pytest.mark.parametrize(("fam", "length"), [(0x00, 0), (0x01, 0), (0x02, 0), (0x10, 12), (0x20, 36), (0x30, 216)])
def test_unspec_means_the_connections_own_addresses(fam: int, length: int) -> None:
    """An unknown family or transport is accepted, its addresses are ignored, its TLVs are read and checked."""
    assert decode(v2(bytes(length), fam)) == LOCAL2
    assert decode(v2(bytes(length) + tlv(5, b"id"), fam)) == ProxyHeader(2, True, tlvs=((5, b"id"),))
    refused(v2(bytes(length) + tlv(TlvType.CRC32C, bytes(4)), fam), "wrong checksum")


def test_a_header_has_at_most_4096_octets() -> None:
    """More than fits in the smallest segment that every host takes, since balancers send more; exactly at, below and
    above, before the rest arrives."""
    assert MAX_HEADER == 576 - 40
    for size in (MAX_HEADER, MAX_HEADER + 1, HEADER_LIMIT - 1, HEADER_LIMIT):
        octets = v2(BLOCK4 + tlv(0xE0, bytes(size - FIXED - 12 - 3)))
        assert len(octets) == size
        assert len(decode(octets).tlvs[0][1]) == size - 31
    for command in (0x20, 0x21):
        refused(v2(b"", command=command, length=HEADER_LIMIT + 1 - FIXED), "4097 octets, expected at most 4096")
        refused(v2(b"", command=command, length=0xFFFF), "65551 octets, expected at most 4096")


def test_the_limit_is_the_callers() -> None:
    """A proxy whose TLVs are long can be allowed more, or less; version 1 is not concerned."""
    octets = v2(BLOCK4 + tlv(0xE0, bytes(5000)))
    assert decode(octets, len(octets)).tlvs == ((0xE0, bytes(5000)),)
    refused(octets, "5031 octets, expected at most 5030", len(octets) - 1)
    assert decode(b"PROXY UNKNOWN\r\n", 0) == LOCAL1


# --- TLVs ---


@pytest.mark.parametrize("rest", [b"\xe0", b"\xe0\x00", b"\xe0\x00\x01", b"\xe0\x00\x05four", b"\xe0\xff\xff"])
def test_a_tlv_that_goes_beyond_the_header_is_refused(rest: bytes) -> None:
    """Also where octets of the payload follow, and behind a TLV that is right."""
    refused(v2(BLOCK4 + rest), "TLV 0xe0 ends [0-9]+ too late")
    refused(v2(BLOCK4 + tlv(1, b"h2") + rest), "TLV 0xe0 ends [0-9]+ too late")
    refused(v2(BLOCK4 + rest) + bytes(70000), "TLV 0xe0 ends [0-9]+ too late")


def test_a_unique_id_has_at_most_128_octets() -> None:
    """Exactly at, below and above; no other type is concerned."""
    for size in (0, MAX_UNIQUE_ID - 1, MAX_UNIQUE_ID):
        assert decode(v2(BLOCK4 + tlv(TlvType.UNIQUE_ID, bytes(size)))).tlvs == ((5, bytes(size)),)
    refused(v2(BLOCK4 + tlv(TlvType.UNIQUE_ID, bytes(129))), "UNIQUE_ID of 129 octets, expected 128")
    assert decode(v2(BLOCK4 + tlv(0x06, bytes(129)))).tlvs == ((6, bytes(129)),)


@pytest.mark.parametrize("octets", [octets for octets, _ in HEADERS if b"\x03\0\4" in octets])
def test_the_checksum_is_over_the_whole_header(octets: bytes) -> None:
    """Another bit in any octet of the addresses, of the checksum or of the last value, and the header is refused."""
    checksum = octets.index(b"\x03\0\4")
    for at in (*range(FIXED, checksum), *range(checksum + 3, checksum + 7), len(octets) - 1):
        changed = bytearray(octets)
        changed[at] ^= 0x10
        refused(bytes(changed), "wrong checksum")


def test_the_checksum_counts_the_octets_before_the_addresses() -> None:
    """DGRAM for STREAM is a valid header; its checksum is another one."""
    octets = bytearray(encode_v2(HERE, THERE, checksum=True))
    octets[13] = 0x12
    refused(bytes(octets), "wrong checksum")


@pytest.mark.parametrize("value", [b"", bytes(3), bytes(5)])
def test_a_checksum_has_four_octets(value: bytes) -> None:
    """And there is one: of two, each would have to be zero while the other is made."""
    refused(v2(BLOCK4 + tlv(TlvType.CRC32C, value)), f"CRC32C of {len(value)} octets, expected 4, once")


def test_there_is_one_checksum() -> None:
    """A second one is refused, even where the first is right."""
    whole = bytearray(v2(BLOCK4 + tlv(TlvType.CRC32C, bytes(4)) * 2))
    whole[31:35] = crc32c(bytes(whole)).to_bytes(4, "big")
    refused(bytes(whole), "CRC32C of 4 octets, expected 4, once")


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
        (
            bytes.fromhex(
                "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018"
                "28000000 00000000 02000000 00000000"
            ),
            "563a96d9",
        ),
    ],
)
def test_crc32c(data: bytes, checksum: str) -> None:
    """RFC 3720 appendix B.4, whose octets are in the order of iSCSI, the lowest first."""
    assert crc32c(data) == int.from_bytes(bytes.fromhex(checksum), "little")


def test_crc32c_of_the_usual_text() -> None:
    """The check value of every catalogue of CRCs, and nothing of nothing."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


# --- the TLV of TLS ---

VERSION, COMMON_NAME = tlv(0x21, b"TLSv1.3"), tlv(0x22, "Zoë".encode())


@pytest.mark.parametrize(
    ("value", "info", "verified"),
    [
        (b"\x07\0\0\0\0" + VERSION + COMMON_NAME, SslInfo(7, 0, "TLSv1.3", "Zoë"), True),
        (b"\x03\0\0\0\0" + COMMON_NAME + VERSION, SslInfo(3, 0, "TLSv1.3", "Zoë"), True),
        (b"\x05\0\0\0\0" + VERSION, SslInfo(5, 0, "TLSv1.3"), True),
        (b"\x07\0\0\0\1" + VERSION + COMMON_NAME, SslInfo(7, 1, "TLSv1.3", "Zoë"), False),
        (b"\x07\xff\0\0\0" + COMMON_NAME, SslInfo(7, 0xFF000000, None, "Zoë"), False),
        (b"\x01\0\0\0\0" + VERSION + COMMON_NAME, SslInfo(1, 0, "TLSv1.3", "Zoë"), False),
        (b"\x01\0\0\0\0" + tlv(0x23, b"AES") + VERSION + tlv(0x25, b"\xff") * 2, SslInfo(1, 0, "TLSv1.3"), False),
        (bytes(5), SslInfo(0, 0), False),
        (b"\0\0\0\0\0" + tlv(0x21, b"") + tlv(0x22, b""), SslInfo(0, 0, "", ""), False),
    ],
)
def test_what_is_said_of_tls(value: bytes, info: SslInfo, verified: bool) -> None:
    """Version and CN in any order, others skipped; verified is what bears a certificate and a verify of zero."""
    header = decode(v2(BLOCK4 + tlv(TlvType.SSL, value)))
    assert header.tlvs == ((TlvType.SSL, value),)
    assert decode_ssl(header.tlvs[0][1]) == info
    assert info.verified is verified


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "SSL of 0 octets"),
        (bytes(4), "SSL of 4 octets, expected 5 or more"),
        (bytes(5) + b"\x22", "TLV 0x22 ends 2 too late"),
        (bytes(5) + b"\x22\x00\x05four", "TLV 0x22 ends 1 too late"),
        (bytes(5) + COMMON_NAME * 2, "two of 0x22"),
        (bytes(5) + VERSION + COMMON_NAME + VERSION, "two of 0x21"),
        (bytes(5) + tlv(0x22, b"\xff"), "0x22: "),
        (bytes(5) + tlv(0x21, "TLSv1.³".encode()), "0x21: "),
    ],
)
def test_what_is_said_of_tls_in_broken_words_is_refused(value: bytes, message: str) -> None:
    """Within its own bounds, each text once, the version in ASCII and the name in UTF-8."""
    with pytest.raises(RemoteProtocolError, match=message):
        decode_ssl(value)


@given(st.one_of(st.binary(max_size=40), st.builds(bytes.__add__, st.just(bytes(5)), st.binary(max_size=40))))
def test_any_octets_say_something_of_tls_or_are_refused(value: bytes) -> None:
    """Nothing but RemoteProtocolError is raised."""
    try:
        info = decode_ssl(value)
    except RemoteProtocolError:
        return
    assert (info.client, info.verify) == (value[0], int.from_bytes(value[1:5], "big"))


# --- any octets ---

lines = st.builds(
    lambda words, end: b" ".join(words) + end,
    st.lists(st.sampled_from([b"PROXY", b"TCP4", b"TCP6", b"UNKNOWN", b"1.2.3.4", b"::1", b"0", b"443", b"", b"\r"])),
    st.sampled_from([b"\r\n", b"\n", b"\r", b""]),
)
binaries = st.builds(
    lambda command, fam, block, length: v2(block, fam, command, length),
    st.sampled_from([0x20, 0x21, 0x22]),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x10, 0x41]),
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.builds(tlv, st.integers(0, 40), st.binary(max_size=6))).map(lambda tlvs: BLOCK4 + b"".join(tlvs)),
    ),
    st.one_of(st.none(), st.integers(0, 70), st.integers(0, 65535)),
)


@given(st.one_of(st.binary(max_size=200), lines, binaries, lines.map(lambda line: b"PROXY TCP4 " + line)))
@example(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n\r\n")
def test_any_octets_are_a_header_or_refused_however_they_are_cut(data: bytes) -> None:
    """Nothing but RemoteProtocolError is raised; the same comes of them whole and octet by octet, and no octet more."""
    whole: object
    try:
        whole = decode_header(data)
    except RemoteProtocolError:
        whole = "refused"
    for end in range(len(data) + 1):
        try:
            found = decode_header(data[:end])
        except RemoteProtocolError:
            assert whole == "refused"
            return
        if found is not None:
            assert found == whole
            assert found[1] == end
            return
        missing = missing_octets(data[:end])
        assert missing > 0
        if isinstance(whole, tuple):
            assert end + missing <= whole[1]
    assert whole is None


# --- encoding ---


@given(pairs)
@example((HERE, THERE))
def test_a_line_survives_the_wire(pair: tuple[Address, Address]) -> None:
    """What was encoded is decoded, and is no longer than a line may be."""
    octets = encode_v1(*pair)
    assert decode(octets) == ProxyHeader(1, False, *pair, STREAM)
    assert len(octets) <= (56 if pair[0].host.version == 4 else 104)  # type: ignore[union-attr]


@given(pairs, some_tlvs, st.booleans())
@example((HERE6, THERE6), ((TlvType.UNIQUE_ID, bytes(128)),), True)
def test_a_binary_header_survives_the_wire(
    pair: tuple[Address, Address], tlvs: tuple[TLV, ...], checksum: bool
) -> None:
    """What was encoded is decoded: addresses and TLVs, with a checksum and without."""
    octets = encode_v2(*pair, tlvs=tlvs, checksum=checksum)
    assert decode(octets) == ProxyHeader(2, False, *pair, STREAM, tlvs)
    assert (octets[-7:-4] == b"\x03\0\4") >= checksum


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (HERE, THERE, b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"),
        (
            HERE6,
            THERE6,
            b"PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0001 2001:0db8:0000:0000:0000:0000:0000:0002 56324 443\r\n",
        ),
        (
            HERE6,
            THERE,
            b"PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0001 0000:0000:0000:0000:0000:ffff:c633:6407 56324 443\r\n",
        ),
        (
            HERE,
            Address(IPv6Address("fe80::1%eth0"), 0),
            b"PROXY TCP6 0000:0000:0000:0000:0000:ffff:c000:0201 fe80:0000:0000:0000:0000:0000:0000:0001 56324 0\r\n",
        ),
        (HERE, NAME, b"PROXY UNKNOWN\r\n"),
        (NAME, HERE, b"PROXY UNKNOWN\r\n"),
        (None, HERE, b"PROXY UNKNOWN\r\n"),
        (HERE, None, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_the_line_that_is_written(source: Address | None, destination: Address | None, line: bytes) -> None:
    """The family of both, IPv6 for mixed ones, UNKNOWN only where nothing can be filled in, and never a zone."""
    assert encode_v1(source, destination) == line


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (encode_v2(HERE, THERE), v2(BLOCK4)),
        (encode_v2(HERE6, THERE6), v2(BLOCK6, 0x21)),
        (
            encode_v2(HERE, THERE6),
            v2(bytes(10) + b"\xff\xff" + BLOCK4[:4] + BLOCK6[16:], 0x21),
        ),
        (
            encode_v2(HERE6, THERE),
            v2(BLOCK6[:16] + bytes(10) + b"\xff\xff" + BLOCK4[4:], 0x21),
        ),
        (encode_v2(HERE, NAME), v2(b"", 0x00)),
        (encode_v2(None, None, tlvs=((1, b"h2"),)), v2(tlv(1, b"h2"), 0x00)),
        (encode_v2(HERE, THERE, local=True), v2(b"", 0x00, 0x20)),
        (encode_v2(HERE, THERE, tlvs=((4, bytes(3)), (0xE0, b""))), v2(BLOCK4 + tlv(4, bytes(3)) + tlv(0xE0, b""))),
    ],
)
def test_the_binary_header_that_is_written(octets: bytes, expected: bytes) -> None:
    """The family of both, IPv6 for mixed ones, UNSPEC where there is no address, and LOCAL without addresses."""
    assert octets == expected
    assert decode_header(octets) is not None


@pytest.mark.parametrize(("source", "destination"), [(HERE, THERE6), (HERE6, THERE)])
def test_the_clients_address_arrives_through_mixed_families(source: Address, destination: Address) -> None:
    """IPv4 written inside IPv6 is IPv4 again for who reads it, in both versions."""
    for octets in (encode_v1(source, destination), encode_v2(source, destination)):
        header = decode(octets)
        assert (header.source, header.destination) == (source, destination)


def test_a_header_that_nobody_would_take_is_not_written() -> None:
    """At most MAX_HEADER octets, with the checksum too; exactly that is written, and read."""
    room = MAX_HEADER - FIXED - len(BLOCK4) - 3
    assert len(encode_v2(HERE, THERE, tlvs=((0xE0, bytes(room)),))) == MAX_HEADER
    assert len(decode(encode_v2(HERE, THERE, tlvs=((0xE0, bytes(room - 7)),), checksum=True)).tlvs[0][1]) == room - 7
    with pytest.raises(ValueError, match="at most 536 octets, this one has 537"):
        encode_v2(HERE, THERE, tlvs=((0xE0, bytes(room + 1)),))
    with pytest.raises(ValueError, match="at most 536 octets, this one has 537"):
        encode_v2(HERE, THERE, tlvs=((0xE0, bytes(room - 6)),), checksum=True)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (-1, b"", "TLV of type -1"),
        (256, b"", "TLV of type 256"),
        (TlvType.CRC32C, bytes(4), "not 3, which checksum= adds"),
        (TlvType.UNIQUE_ID, bytes(129), "at most 128 octets, this one has 129"),
        (0xE0, bytes(65536), "at most 536 octets, this one has 65536"),
    ],
)
def test_a_tlv_that_is_none_is_not_written(kind: int, value: bytes, message: str) -> None:
    """Types of one octet, values within their bounds, and no checksum that was not made here."""
    with pytest.raises(ValueError, match=message):
        encode_v2(HERE, THERE, tlvs=((kind, value),))


def test_a_header_does_not_change() -> None:
    """Whoever is shown it can rely on it."""
    with pytest.raises(AttributeError):
        decode(v2(BLOCK4)).local = True  # type: ignore[misc]
