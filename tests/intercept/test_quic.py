"""The ClientHello of QUIC: what aioquic and browsers send, however it is cut, and what a hostile client may send."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captures import udp_datagrams
from hellos import body, server_name, vector
from quic import V1, V2, crypto, first_datagrams, initial
from tabi.errors import RemoteProtocolError
from tabi.intercept.quic import (
    LEAST,
    MAX_CONNECTIONS,
    MAX_DESTINATIONS,
    MAX_PIECES,
    QuicConnections,
    QuicHello,
    begins_quic,
    crypto_frames,
    split_packets,
    take_number,
)
from tabi.wire.address import Address
from tabi.wire.client_hello import MAX_HELLO, ClientHello

BESIDE = [folder / "shared/data/hellos" for folder in Path(__file__).resolve().parents]
CAPTURES = [folder / "expected.json" for folder in BESIDE if (folder / "expected.json").exists()]
CHROME = "q13d0310h3_55b375c5d22e_cd85d2d88918"
"""What FoxIO gives for all QUIC in its captures."""
MESSAGE = b"\1" + vector(3, body(server_name(b"name.test")))
MANY = tuple(f"protocol-{number}" for number in range(200))


def read(datagrams: list[bytes]) -> ClientHello | None:
    """What the first connection in datagrams says; all others are passed over."""
    found: QuicHello | None = None
    for datagram in datagrams:
        for packet in split_packets(datagram):
            found = found or QuicHello(packet)
            found.receive(packet)
    return None if found is None else found.found


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize("alpn", [("h3", "hq-interop"), MANY])
def test_what_aioquic_sends(version: int, alpn: tuple[str, ...]) -> None:
    """Both versions, in one datagram or several, in order or not, and each twice."""
    datagrams = first_datagrams(alpn=alpn, version=version)
    assert (len(datagrams) > 1) == (alpn is MANY)
    for order in (datagrams, datagrams[::-1], datagrams * 2):
        found = read(order)
        assert found is not None
        assert found.sni == "name.test"
        assert found.alpn == tuple(one.encode() for one in alpn)
        assert found.versions == (0x0304,)
        assert found.ja4.startswith("q13d")
    assert all(map(begins_quic, datagrams))
    if len(datagrams) > 1:
        assert read(datagrams[:1]) is None


def test_a_client_without_a_name() -> None:
    """Nothing is asked for."""
    found = read(first_datagrams(None))
    assert found is not None
    assert found.sni is None


if CAPTURES:

    @pytest.mark.parametrize("capture", json.loads(CAPTURES[0].read_text()))
    def test_captures_have_the_fingerprint_that_foxio_gives(capture: str) -> None:
        """Chrome's, whose frames are many and in any order; and each has a name."""
        for flow, datagrams in udp_datagrams(CAPTURES[0].parent / capture).items():
            if flow.target_port == 443 and begins_quic(datagrams[0]):
                found = read(datagrams)
                assert found is not None
                assert (found.alpn, found.ja4) == ((b"h3",), CHROME)
                assert found.sni is not None
            else:
                assert flow.source_port == 443 or not begins_quic(datagrams[0])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_hello_in_many_parts_in_any_order(size: int) -> None:
    """With other frames between them, parts that overlap, and parts that come again."""
    cuts = [(at, MESSAGE[at : at + size + 3]) for at in range(0, len(MESSAGE), size)]
    for seed in range(5):
        shuffled = random.Random(seed).sample(cuts, len(cuts))
        found: QuicHello | None = None
        for number, (at, data) in enumerate(shuffled + shuffled):
            frames = b"\1\2\0\0\1\0\0\0\1" + crypto(at, data) + b"\3\0\0\0\0\0\0\0" + crypto(at, data[:2])
            (packet,) = split_packets(initial(frames, number=number))
            found = found or QuicHello(packet)
            assert found.receive(packet)
        assert found is not None
        assert found.found is not None
        assert found.found.sni == "name.test"
        assert found.kept == 0


def test_packets_of_another_connection_and_later_ones_of_this() -> None:
    """After the server's answer the client takes another connection ID, and the keys stay."""
    (first,) = split_packets(initial(crypto(0, MESSAGE[:9])))
    hello = QuicHello(first)
    assert hello.receive(first)
    (other,) = split_packets(initial(crypto(9, MESSAGE[9:]), b"anothers"))
    assert not hello.receive(other)
    (later,) = split_packets(initial(crypto(9, MESSAGE[9:]), b"servers", keys=b"destined", number=1))
    assert hello.receive(later)
    assert hello.found is not None


def test_packets_behind_each_other_in_a_datagram() -> None:
    """0-RTT and Handshake are passed over, what follows is read; zeros at the end are no packet."""
    zero = bytes((0xD0,)) + V1.to_bytes(4) + b"\0\0" + b"\4data"
    datagram = zero + initial(crypto(0, MESSAGE)) + zero + bytes(50)
    assert len(list(split_packets(datagram))) == 1
    found = read([datagram])
    assert found is not None


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x40" + bytes(1300),
        b"\xc0\0\0\0\0\0\0" + bytes(1300),
        b"\xc0\x1a\x2a\x3a\x4a\0\0" + bytes(1300),
        b"\xf0\0\0\0\1\0\0" + bytes(1300),
        b"\xc0\x6b\x33\x43\xcf\0\0" + bytes(1300),
    ],
)
def test_what_has_no_initial_packet(datagram: bytes) -> None:
    """Short headers, negotiation, versions that are not known, Retry: nothing to read."""
    assert list(split_packets(datagram)) == []


@pytest.mark.parametrize(
    "datagram",
    [
        b"\xc0",
        b"\xc0\0\0\0\1",
        b"\xc0\0\0\0\1\x15" + bytes(40),
        b"\xc0\0\0\0\1\x05abc",
        b"\xc0\0\0\0\1\0",
        b"\xc0\0\0\0\1\0\0",
        b"\xc0\0\0\0\1\0\0\0\x40",
        b"\xc0\0\0\0\1\0\0\0\x05abc",
        b"\xc0\0\0\0\1\0\0\x05\x01a",
    ],
)
def test_a_datagram_that_is_cut(datagram: bytes) -> None:
    """A length that does not fit is an error, or there is no packet at all."""
    try:
        assert list(split_packets(datagram)) == []
    except RemoteProtocolError:
        pass


def test_a_packet_too_short_to_be_opened() -> None:
    """There is no sample of it."""
    (packet,) = split_packets(b"\xc0\0\0\0\1\0\0\0\x05abcde")
    assert not QuicHello(packet).receive(packet)


@pytest.mark.parametrize(
    "frames",
    [
        b"\x1e",
        b"\6\0\x45",
        b"\6\0\5abc",
        b"\2\0",
        b"\2\0\0\x40",
        b"\2\0\0" + b"\xff" * 8 + b"\0",
        crypto(MAX_HELLO, b"x"),
        crypto(0, b"\2\0\0\1x"),
        crypto(0, b"\1\1\0\0x"),
        crypto(0, b"\1\0\0\1x"),
        b"".join(crypto(2 * number + 2, b"x") for number in range(MAX_PIECES + 1)),
    ],
)
def test_what_begins_no_connection(frames: bytes) -> None:
    """Frames that do not belong there, or are cut; another message; too much, or in too many parts."""
    packets = list(split_packets(initial(frames.ljust(1200, b"\0") if frames[0] == 6 else b"\0" * 1200 + frames)))
    with pytest.raises(RemoteProtocolError, match=r"QUIC|TLS"):
        QuicHello(packets[0]).receive(packets[0])


def test_what_is_kept_of_parts_is_bounded() -> None:
    """Large parts behind a gap are 64 KiB at most, and one more."""
    packets = [
        packet
        for number in range(100)
        for packet in split_packets(initial(crypto(2 + number, bytes(1100)), number=number))
    ]
    hello = QuicHello(packets[0])
    whole = MAX_HELLO // 1100 + 1
    for packet in packets[:whole]:
        assert hello.receive(packet)
    assert MAX_HELLO < hello.kept <= MAX_HELLO + 1100
    with pytest.raises(RemoteProtocolError, match="too long"):
        hello.receive(packets[whole])


def test_a_close_ends_a_packet() -> None:
    """What follows is not looked at."""
    assert list(crypto_frames(b"\x1c\6\0\1x")) == []


@pytest.mark.parametrize(
    ("datagram", "begins"),
    [
        (b"\xc3\0\0\0\1\x08destined\0" + bytes(1200), True),
        (b"\xc3\xfa\xce\xb0\x0c\x08destined\0" + bytes(1200), True),
        (b"\xc3\0\0\0\1\x08destined\0" + bytes(900), False),
        (b"\xc3\0\0\0\0\x08destined\0" + bytes(1200), False),
        (b"\x43\0\0\0\1\x08destined\0" + bytes(1200), False),
        (b"\x80\0\0\0\1\x08destined\0" + bytes(1200), False),
        (b"\xc3\0\0\0\1\x15" + bytes(1200), False),
        (b"\xc3\0\0\0\1\x08destined\x15" + bytes(1200), False),
    ],
)
def test_what_may_begin_quic(datagram: bytes, begins: bool) -> None:
    """Of any version: a long header, lengths that fit, and as long as RFC 9000 wants it."""
    assert begins_quic(datagram) == begins
    assert LEAST == 1200


def test_numbers() -> None:
    """RFC 9000, appendix A.1."""
    for octets, number in (
        ("c2197c5eff14e88c", 151288809941952652),
        ("9d7f3e7d", 494878333),
        ("7bbd", 15293),
        ("25", 37),
        ("4025", 37),
    ):
        assert take_number(bytes.fromhex(octets), 0) == (number, len(octets) // 2)


@given(st.binary(max_size=200), st.booleans())
def test_any_frames_give_a_hello_none_or_an_error(frames: bytes, at_once: bool) -> None:
    """Nothing else comes out."""
    (packet,) = split_packets(initial(crypto(0, frames) if at_once else frames))
    try:
        assert QuicHello(packet).receive(packet)
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=60))
def test_any_datagram_gives_packets_or_an_error(data: bytes) -> None:
    """Nothing else comes out, and what is opened with wrong keys is refused."""
    try:
        for packet in split_packets(b"\xc0\0\0\0\1" + data):
            assert not QuicHello(packet).receive(packet)
    except RemoteProtocolError:
        pass
    begins_quic(b"\xc0" + data)


def test_connections_of_a_client() -> None:
    """Each by its destination and its keys; what cannot be read belongs to none, and the oldest ones are forgotten."""
    where, other = Address("name.test", 443), Address("name.test", 444)
    connections = QuicConnections()
    first, second = first_datagrams("a.test")[0], first_datagrams("b.test")[0]
    (one,), (two,) = connections.read(where, first), connections.read(where, second)
    assert [None if each.found is None else each.found.sni for each in (one, two)] == ["a.test", "b.test"]
    assert connections.read(where, first) == [one]
    assert connections.of(where) == [one, two]
    assert connections.of(other) == []
    for odd in (b"", b"\x40short", b"\xc0\0\0\0\1\xff", initial(crypto(0, MESSAGE), b"one", keys=b"other")):
        assert connections.read(where, odd) == []
    for number in range(MAX_CONNECTIONS):
        connections.read(where, initial(crypto(0, MESSAGE), b"destined%d" % number))
    assert len(connections.of(where)) == MAX_CONNECTIONS
    assert one not in connections.of(where)
    for port in range(MAX_DESTINATIONS):
        connections.read(Address("name.test", 1000 + port), first)
    assert len(connections.known) == MAX_DESTINATIONS
    assert connections.of(where) == []
