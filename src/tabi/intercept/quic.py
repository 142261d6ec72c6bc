"""QUIC, as far as its first datagrams can be read: the ClientHello in a client's Initial packets (RFC 9000, RFC 9001).

    +-------+---------+------+------+-------+--------+--------+---------+--------------------+
    | FIRST | VERSION | DCID | SCID | TOKEN | LENGTH | NUMBER | PAYLOAD | further packets …  |
    +-------+---------+------+------+-------+--------+--------+---------+--------------------+
    |   1   |    4    | 1+…  | 1+…  |  v+…  |   v    |  1 … 4 |   …     |    v: 1, 2, 4 or 8 octets
    +-------+---------+------+------+-------+--------+--------+---------+

The keys of these packets come from the connection ID that the client chose for its server (DCID), so that everybody who
sees the first one can open them. After the first answer the client takes another ID, and the keys stay. Version 1, and
version 2 (RFC 9369), whose types and labels are other ones.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from tabi.errors import RemoteProtocolError
from tabi.wire.address import Address
from tabi.wire.client_hello import CLIENT_HELLO, MAX_HELLO, MESSAGE_HEAD, ClientHello, decode_hello

V1, V2 = 1, 0x6B3343CF
LONG = 0xC0
"""The bits of FIRST that every packet with a long header has."""
MAX_ID = 20
LEAST = 1200
"""Octets of a datagram with a client's Initial packet at least (RFC 9000 section 14.1)."""
TAG, SAMPLE = 16, 16

PADDING, PING, ACK, ACK_ECN, CRYPTO, CLOSE = 0, 1, 2, 3, 6, 0x1C
"""Types of the frames that an Initial packet may have."""

MAX_PIECES = 256
"""Parts of a hello that came out of order and are kept."""

MAX_DESTINATIONS, MAX_CONNECTIONS = 64, 4
"""Of an association, whose QUIC is remembered; and connections to each of them. The oldest ones are forgotten."""


class Version(NamedTuple):
    """What is different between versions."""

    salt: bytes
    label: bytes
    initial: int
    """The two bits that say which type a packet with a long header has."""


VERSIONS = {
    V1: Version(bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"quic ", 0),
    V2: Version(bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"quicv2 ", 1),
}


class Packet(NamedTuple):
    """An Initial packet, still protected."""

    version: int
    destination: bytes
    """DCID."""
    octets: bytes
    """From FIRST to the end of the payload."""
    number_at: int
    """Where NUMBER begins."""


def begins_quic(datagram: bytes) -> bool:
    """Whether a datagram may be the first of a client of any version: a long header, and as long as it must be.

    DNS, RTP, DTLS and STUN have other first octets, or shorter datagrams.
    """
    if len(datagram) < LEAST or datagram[0] & LONG != LONG or datagram[1:5] == bytes(4):
        return False
    source_at = 6 + datagram[5]
    return datagram[5] <= MAX_ID and datagram[source_at] <= MAX_ID


def split_packets(datagram: bytes) -> Iterator[Packet]:
    """The Initial packets of a datagram, of versions that are known. Others are passed over.

    Raises:
        RemoteProtocolError: a length does not fit.
    """
    at = 0
    while at < len(datagram) and datagram[at] & LONG == LONG:
        number = int.from_bytes(datagram[at + 1 : at + 5])
        version = VERSIONS.get(number)
        if version is None:
            return
        destination, end = take_id(datagram, at + 5)
        _, end = take_id(datagram, end)
        kind = datagram[at] >> 4 & 3
        if kind == (version.initial + 3) % 4:  # Retry has no length, and is no client's
            return
        if kind == version.initial:
            token, end = take_number(datagram, end)
            end += token
        length, end = take_number(datagram, end)
        if end + length > len(datagram):
            raise RemoteProtocolError("QUIC: a packet is longer than its datagram")
        if kind == version.initial:
            yield Packet(number, destination, datagram[at : end + length], end - at)
        at = end + length


def take_id(data: bytes, at: int) -> tuple[bytes, int]:
    """A connection ID, and the index behind it. Raises RemoteProtocolError."""
    end = at + 1 + (data[at] if at < len(data) else MAX_ID + 1)
    if end > min(len(data), at + 1 + MAX_ID):
        raise RemoteProtocolError("QUIC: a connection ID that does not fit")
    return data[at + 1 : end], end


def take_number(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length (RFC 9000 section 16), and the index behind it. Raises RemoteProtocolError."""
    if at < len(data):
        size = 1 << (data[at] >> 6)
        end = at + size
        if end <= len(data):
            return int.from_bytes(data[at:end]) & (1 << 8 * size - 2) - 1, end
    raise RemoteProtocolError("QUIC: a number that is not whole")


class Keys:
    """Opens the Initial packets that a client sends in one connection (RFC 9001 section 5).

    Args:
        version: of QUIC; one of VERSIONS.
        destination: DCID of the first packet.
    """

    def __init__(self, version: int, destination: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # of the extra `intercept`
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        salt, label, _ = VERSIONS[version]
        secret = expand(hmac.digest(salt, destination, sha256), b"client in", 32)
        self.payload = AESGCM(expand(secret, label + b"key", 16))
        self.nonce = int.from_bytes(expand(secret, label + b"iv", 12))
        # One block of it is what RFC 9001 section 5.4.3 asks for; nothing is encrypted with it.
        self.header = Cipher(algorithms.AES(expand(secret, label + b"hp", 16)), modes.ECB()).encryptor()  # noqa: S305

    def open(self, packet: Packet) -> bytes | None:
        """The frames in a packet; None if it does not belong to this connection."""
        from cryptography.exceptions import InvalidTag

        octets, at = packet.octets, packet.number_at
        sample = octets[at + 4 : at + 4 + SAMPLE]
        if len(sample) < SAMPLE:
            return None
        mask = self.header.update(sample)
        first = octets[0] ^ mask[0] & 0x0F
        size = (first & 3) + 1
        number = int.from_bytes(octets[at : at + size]) ^ int.from_bytes(mask[1 : 1 + size])
        head = bytes((first,)) + octets[1:at] + number.to_bytes(size)
        nonce = (self.nonce ^ number).to_bytes(12)
        try:
            return self.payload.decrypt(nonce, octets[at + size :], head)
        except InvalidTag:
            return None


def expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1 with SHA-256, up to one block."""
    label = b"tls13 " + label
    info = b"%b%c%b\0\1" % (length.to_bytes(2), len(label), label)
    return hmac.digest(secret, info, sha256)[:length]


class QuicHello:
    """Puts the ClientHello of one connection together, whose parts may come in any order, and several times.

    Args:
        packet: the first of the connection.

    Attributes:
        found: the hello, once it is whole.
        refused: what a filter has decided then.
    """

    __slots__ = ("found", "kept", "keys", "message", "pieces", "refused", "version")

    def __init__(self, packet: Packet) -> None:
        self.keys = Keys(packet.version, packet.destination)
        self.version = packet.version
        self.message = bytearray()  # from the beginning on, without a gap
        self.pieces: dict[int, bytes] = {}  # behind the gap, by offset
        self.kept = 0  # octets of these
        self.found: ClientHello | None = None
        self.refused: bool | None = None

    def receive(self, packet: Packet) -> bool:
        """Take a packet; False if it does not belong to this connection. ``found`` is the hello once it is whole.

        Raises:
            RemoteProtocolError: what is in it is not the beginning of a connection, or is too much.
        """
        frames = self.keys.open(packet)
        if frames is None:
            return False
        for offset, data in crypto_frames(frames):
            self.add(offset, data)
        if self.found is None and len(self.message) >= MESSAGE_HEAD:
            end = MESSAGE_HEAD + int.from_bytes(self.message[1:MESSAGE_HEAD])
            if self.message[0] != CLIENT_HELLO or end > MAX_HELLO:
                raise RemoteProtocolError("QUIC: this is not a ClientHello, or a long one")
            if len(self.message) >= end:
                self.found = decode_hello(bytes(self.message[MESSAGE_HEAD:end]), quic=True)
                self.message.clear()
        return True

    def add(self, offset: int, data: bytes) -> None:
        """Put a part where it belongs."""
        if self.found is not None:
            return
        if offset + len(data) > MAX_HELLO or len(self.pieces) >= MAX_PIECES or self.kept > MAX_HELLO:
            raise RemoteProtocolError("QUIC: the first message is too long, or in too many parts")
        if offset > len(self.message):
            if len(data) > len(self.pieces.get(offset, b"")):
                self.kept += len(data) - len(self.pieces.get(offset, b""))
                self.pieces[offset] = data
            return
        self.message += data[len(self.message) - offset :]
        for begin in sorted(self.pieces):
            if begin > len(self.message):
                break
            piece = self.pieces.pop(begin)
            self.kept -= len(piece)
            self.message += piece[len(self.message) - begin :]


class QuicConnections:
    """What is known of the connections that one client has begun, by their destinations."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[Address, list[QuicHello]] = {}

    def read(self, address: Address, datagram: bytes) -> list[QuicHello]:
        """Take a datagram of the client; the connections that its Initial packets belong to. Those that cannot be read,
        and what no server would take as the beginning of a connection, belong to none."""
        if not datagram or datagram[0] & LONG != LONG:
            return []
        try:
            found = [self.find(address, packet) for packet in split_packets(datagram)]
        except RemoteProtocolError:
            return []
        return [hello for hello in found if hello is not None]

    def find(self, address: Address, packet: Packet) -> QuicHello | None:
        """The connection that a packet belongs to; a new one if it begins one. None: it cannot be read. Raises
        RemoteProtocolError."""
        connections = self.known.get(address, [])
        for hello in connections:
            if hello.receive(packet):
                return hello
        hello = QuicHello(packet)
        if not hello.receive(packet):
            return None
        self.known[address] = [*connections[1 - MAX_CONNECTIONS :], hello]
        if len(self.known) > MAX_DESTINATIONS:
            del self.known[next(iter(self.known))]
        return hello

    def of(self, address: Address) -> list[QuicHello]:
        """The connections to a destination that are remembered, the oldest first."""
        return self.known.get(address, [])


def crypto_frames(frames: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and octets of each CRYPTO frame. Raises RemoteProtocolError for a frame that does not belong there."""
    at = 0
    while at < len(frames):
        kind = frames[at]
        at += 1
        if kind in (PADDING, PING):
            continue
        if kind == CLOSE:
            return
        if kind in (ACK, ACK_ECN):
            at = skip_ack(frames, at, kind)
        elif kind == CRYPTO:
            offset, at = take_number(frames, at)
            length, at = take_number(frames, at)
            if at + length > len(frames):
                raise RemoteProtocolError("QUIC: a frame is longer than its packet")
            yield offset, frames[at : at + length]
            at += length
        else:
            raise RemoteProtocolError(f"QUIC: a frame of type {kind:#x} in an Initial packet")


def skip_ack(frames: bytes, at: int, kind: int) -> int:
    """The index behind an ACK frame (RFC 9000 section 19.3). Raises RemoteProtocolError."""
    _, at = take_number(frames, at)
    _, at = take_number(frames, at)
    ranges, at = take_number(frames, at)
    for _ in range(1 + 2 * min(ranges, len(frames)) + (3 if kind == ACK_ECN else 0)):
        _, at = take_number(frames, at)
    return at
