"""The header of a relayed datagram, the headers for several relays, and fragments: RFC 1928 section 7.

No I/O, no clock.

    +-----+------+------+----------+----------+----------+
    | RSV | FRAG | ATYP | DST.ADDR | DST.PORT |   DATA   |    RSV: two octets, written as 00 and not looked at
    +-----+------+------+----------+----------+----------+    FRAG: 0 for a whole datagram
    |  2  |  1   |  1   | variable |    2     | variable |
    +-----+------+------+----------+----------+----------+

From the client to the relay the address is where the datagram goes, from the relay to the client where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence

from tabi.errors import RemoteProtocolError
from tabi.wire.address import Address, decode_address, encode_address, make_host, unmap

MAX_DATAGRAM = 65507
"""Octets that one datagram over IPv4 carries: 65,535 less the headers of IP and UDP."""

LAST = 0x80
"""The bit of FRAG that marks the last fragment; the other seven are its position, from 1."""

REASSEMBLY_SECONDS = 10.0
"""From the first fragment to the last. Section 7 wants 5 or more."""


def make_address(host: object, port: object) -> Address:
    """Check where a program wants a datagram to go. Raises TypeError and ValueError."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"{port!r} is not a port that datagrams go to, expected 1 to 65535")
    return Address(make_host(host), port)


def encode_header(address: Address, frag: int = 0) -> bytes:
    """RSV, FRAG, ATYP, ADDR and PORT. Raises ValueError as `encode_address`."""
    return b"\0\0%c%b" % (frag, encode_address(address))


def decode_header(data: bytes) -> tuple[int, Address, int]:
    """Read the header in front of a datagram.

    Returns:
        FRAG, the address, and the index of the payload's first octet.

    Raises:
        RemoteProtocolError: the datagram is too short, or its address cannot be one.
    """
    found = decode_address(data, 3)
    if found is None:
        raise RemoteProtocolError(f"a datagram of {len(data)} octets ends within its header")
    return data[2], *found


class Reassembler:
    """One reassembly queue: puts the fragments of one datagram together, in the order of their positions.

    The queue is abandoned when its time is over, when a fragment comes whose position is lower than the highest so
    far or leaves a gap (which nothing lower could fill any more), when the address changes or the limit is passed. The
    highest fragment once more, octet for octet, is dropped alone; the first one begins again. ``dropped`` counts the
    fragments that were not delivered.

    Args:
        limit: octets of payload of one datagram.
        seconds: from the first fragment to the last; 5 or more (section 7).
    """

    __slots__ = ("address", "deadline", "dropped", "limit", "octets", "parts", "seconds")

    def __init__(self, limit: int = MAX_DATAGRAM, seconds: float = REASSEMBLY_SECONDS) -> None:
        self.limit = limit
        self.seconds = seconds
        self.parts: list[bytes] = []
        self.octets = 0
        self.address: Address | None = None
        self.deadline = 0.0
        self.dropped = 0

    def add(self, frag: int, address: Address, payload: bytes, now: float) -> bytes | None:
        """Take one datagram; returns a payload that is whole now, or None. ``now`` is in seconds, of any clock.

        A whole datagram (FRAG 0) is handed back as it is; a queue that was open then is abandoned.
        """
        self.expire(now)
        position, highest = frag & ~LAST, len(self.parts)
        if 1 < highest == position and address == self.address and payload == self.parts[-1]:
            self.dropped += 1
            return None
        if position != highest + 1 or (highest and address != self.address) or self.octets + len(payload) > self.limit:
            self.abandon()
            if frag == 0:
                return payload
            if position != 1 or len(payload) > self.limit:
                self.dropped += 1
                return None
        if position == 1:
            self.address, self.deadline = address, now + self.seconds
        self.parts.append(payload)
        self.octets += len(payload)
        if not frag & LAST:
            return None
        whole = b"".join(self.parts)
        self.clear()
        return whole

    def expire(self, now: float) -> None:
        """Abandon the queue if its time is over."""
        if self.parts and now >= self.deadline:
            self.abandon()

    def abandon(self) -> None:
        """Give up what the queue holds."""
        self.dropped += len(self.parts)
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self.parts.clear()
        self.octets = 0
        self.address = None


class Layers:
    """The headers of datagrams that pass several relays, one for each: the first relay's outermost.

    | to relay 2 | to relay 3 | to the destination | DATA |  ->  relay 1  ->  relay 2  ->  relay 3  ->  destination

    On the way back the headers are the same: each names the relay it came from, and the destination's is innermost.

    Args:
        relays: the addresses of the relays after the first; empty if there is only one.
    """

    __slots__ = ("head", "layers", "rejected")

    def __init__(self, relays: Sequence[Address]) -> None:
        self.head = b"".join(map(encode_header, relays))
        """The headers in front of the destination's header."""
        # What a datagram's headers must say, outermost first: the next relay, and in the end anyone.
        self.layers: list[tuple[Address | None, Reassembler]] = [(relay, Reassembler()) for relay in (*relays, None)]
        self.rejected = 0
        """Datagrams that did not come through these relays, or do not follow RFC 1928."""

    @property
    def fragments(self) -> int:
        """Fragments of datagrams that never became complete."""
        return sum(reassembler.dropped for _, reassembler in self.layers)

    @property
    def octets(self) -> int:
        """The fragments that wait for the rest of their datagram."""
        return sum(reassembler.octets for _, reassembler in self.layers)

    def unwrap(self, datagram: bytes, now: float) -> tuple[bytes, Address] | None:
        """Take the headers off a datagram; None for one of another relay, rubbish, a fragment.

        ``now`` is that of `Reassembler.add`.

        Returns:
            The payload, and where it comes from.
        """
        for relay, reassembler in self.layers:
            try:
                frag, source, at = decode_header(datagram)
            except RemoteProtocolError:
                self.rejected += 1
                return None
            if relay is not None and unmap(source) != relay:
                self.rejected += 1
                return None
            whole = reassembler.add(frag, source, datagram[at:], now)
            if whole is None:
                return None
            datagram = whole
        return datagram, source

    def read(self, head: bytes) -> Address | None:
        """The source of datagrams that begin with these octets, if these are exactly the headers of whole datagrams."""
        at = 0
        for relay, reassembler in self.layers:
            try:
                frag, source, size = decode_header(head[at:])
            except RemoteProtocolError:
                return None
            if frag or reassembler.parts or (relay is not None and unmap(source) != relay):
                return None
            at += size
        return source if at == len(head) else None

    def expire(self, now: float) -> None:
        """Abandon the datagrams that did not become complete in time."""
        for _, reassembler in self.layers:
            reassembler.expire(now)

    def abandon(self) -> None:
        """Abandon the datagrams that are not complete yet."""
        for _, reassembler in self.layers:
            reassembler.abandon()
