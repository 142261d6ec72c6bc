"""The header of relayed datagrams, and their fragments: RFC 1928 section 7."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tabi.errors import RemoteProtocolError
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import (
    LAST,
    MAX_DATAGRAM,
    REASSEMBLY_SECONDS,
    Layers,
    Reassembler,
    decode_header,
    encode_header,
    make_address,
)

HERE, THERE = Address(IPv4Address("192.0.2.1"), 53), Address("example.com", 53)

names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=255)
hosts = st.one_of(names, st.ip_addresses(v=4), st.ip_addresses(v=6))
addresses = st.builds(Address, hosts, st.integers(0, 65535))
beginnings = st.sampled_from([b"\0\0\0\1", b"\0\0\0\3", b"\0\0\0\4"])


# --- where datagrams go ---


@pytest.mark.parametrize(
    ("host", "port", "found"),
    [
        ("192.0.2.1", 53, HERE),
        (IPv4Address("192.0.2.1"), 53, HERE),
        ("example.com", 53, THERE),
        ("::1", 65535, Address(IPv6Address("::1"), 65535)),
    ],
)
def test_a_program_says_where_a_datagram_goes(host: object, port: object, found: Address) -> None:
    """By a name, or by an address as text or as an object."""
    assert make_address(host, port) == found


@pytest.mark.parametrize(
    ("host", "port", "error", "text"),
    [
        ("192.0.2.1", 0, ValueError, "^0 is not a port that datagrams go to, expected 1 to 65535$"),
        ("192.0.2.1", 65536, ValueError, "^65536 is not a port"),
        ("192.0.2.1", True, ValueError, "^True is not a port"),
        ("192.0.2.1", "53", ValueError, "^'53' is not a port"),
        (b"192.0.2.1", 53, TypeError, "is not a host"),
        ("", 53, ValueError, "^a host name has 1 to 255 octets, this one has 0$"),
    ],
)
def test_where_no_datagram_goes(host: object, port: object, error: type[Exception], text: str) -> None:
    """What is no host or no port is told."""
    with pytest.raises(error, match=text):
        make_address(host, port)


# --- the header ---


@pytest.mark.parametrize(
    ("frag", "address", "octets"),
    [
        (0, HERE, "0000 00 01 c0000201 0035"),
        (1, Address(IPv6Address("2001:db8::1"), 65535), "0000 01 04 20010db8000000000000000000000001 ffff"),
        (0x82, Address("ab.c", 1), "0000 82 03 04 61622e63 0001"),
        (0, Address("a" * 255, 0), "0000 00 03 ff" + "61" * 255 + "0000"),
    ],
)
def test_the_header(frag: int, address: Address, octets: str) -> None:
    """RSV, FRAG, ATYP, ADDR and PORT as section 7 draws them, with each of the three address types."""
    header = bytes.fromhex(octets)
    assert encode_header(address, frag) == header
    assert decode_header(header + b"DATA") == (frag, address, len(header))


def test_a_header_is_that_of_a_whole_datagram_unless_told_otherwise() -> None:
    """FRAG 0: standalone."""
    assert encode_header(HERE)[2] == 0


def test_rsv_is_not_looked_at() -> None:
    """It is reserved: a client that writes something else there is served all the same."""
    assert decode_header(b"\xff\xff" + encode_header(HERE)[2:]) == (0, HERE, 10)


@given(addresses, st.integers(0, 255), st.binary(max_size=20))
def test_a_header_survives_the_wire(address: Address, frag: int, payload: bytes) -> None:
    """What was encoded is decoded, whatever payload follows, and the payload begins behind it."""
    header = encode_header(address, frag)
    assert decode_header(header + payload) == (frag, address, len(header))


@given(addresses)
@example(HERE)
@example(THERE)
@example(Address(IPv6Address("::1"), 80))
def test_a_cut_header_is_refused(address: Address) -> None:
    """A datagram is all there is: one that ends within its header, wherever, is malformed, and says how long it was."""
    header = encode_header(address)
    for end in range(len(header)):
        with pytest.raises(RemoteProtocolError, match=f"a datagram of {end} octets ends within its header"):
            decode_header(header[:end])


@pytest.mark.parametrize(
    ("octets", "message"),
    [("000000 00", "ATYP 0x00"), ("000000 02 7f00000100", "ATYP 0x02"), ("000000 03 00 0050", r"DST\.ADDR: ")],
)
def test_an_address_that_cannot_be_one_is_refused(octets: str, message: str) -> None:
    """An unknown ATYP and a name without an octet are told from a datagram that is too short."""
    with pytest.raises(RemoteProtocolError, match=message):
        decode_header(bytes.fromhex(octets))


@given(st.one_of(st.binary(max_size=300), st.builds(bytes.__add__, beginnings, st.binary())))
def test_any_octets_are_a_header_or_refused(data: bytes) -> None:
    """Nothing but RemoteProtocolError is raised, and what was decoded can be encoded."""
    try:
        frag, address, start = decode_header(data)
    except RemoteProtocolError:
        return
    assert frag == data[2]
    assert start <= len(data)
    again = encode_header(address, frag)
    assert decode_header(again) == (frag, address, len(again))


@pytest.mark.parametrize("name", ["", "a" * 256, "bücher.example"])
def test_no_header_that_the_wire_cannot_hold_is_written(name: str) -> None:
    """A name on the wire has 1 to 255 octets of ASCII."""
    with pytest.raises(ValueError, match=r"."):
        encode_header(Address(name, 80))


# --- reassembly: what section 7 says ---


class Arrival(NamedTuple):
    """One datagram that arrives."""

    now: float
    frag: int
    address: Address
    payload: bytes


class Model:
    """Section 7, slow and obvious: the queue is a dict from positions to fragments."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.queue: dict[int, Arrival] = {}
        self.dropped: list[Arrival] = []

    def abandon(self) -> None:
        """Reinitialize the queue; its fragments are abandoned."""
        self.dropped += self.queue.values()
        self.queue = {}

    def add(self, arrival: Arrival) -> bytes | None:
        """Take one datagram; returns what is delivered."""
        first = self.queue.get(1)
        if first and arrival.now - first.now >= self.seconds:  # the timer expires
            self.abandon()
        if arrival.frag == 0:  # standalone, and lower than anything in the queue
            self.abandon()
            return arrival.payload
        position, is_last = arrival.frag % 128, arrival.frag >= 128
        highest = max(self.queue, default=0)
        before = self.queue.get(highest)
        if before and 1 < highest == position and before[2:] == arrival[2:]:  # the same once more
            self.dropped.append(arrival)
            return None
        if position <= highest:  # "less than the highest FRAG value processed", or another one in its place
            self.abandon()
        if any(fragment.address != arrival.address for fragment in self.queue.values()):  # of another datagram
            self.abandon()
        self.queue[position] = arrival
        complete = sorted(self.queue) == list(range(1, position + 1))
        size = sum(len(fragment.payload) for fragment in self.queue.values())
        if not complete or size > self.limit:  # what is missing could only come with a lower FRAG
            self.abandon()
            return None
        if not is_last:
            return None
        whole = b"".join(self.queue[number].payload for number in sorted(self.queue))
        self.queue = {}
        return whole


def feed(arrivals: Sequence[Arrival], limit: int = MAX_DATAGRAM, seconds: float = REASSEMBLY_SECONDS) -> list[bytes]:
    """Give datagrams to a reassembler and to the model; returns what was delivered. After each one they must agree.

    Every fragment is in a delivered datagram, in the queue, or counted in ``dropped``.
    """
    queue, model = Reassembler(limit, seconds), Model(limit, seconds)
    delivered: list[bytes] = []
    in_delivered = 0
    for count, arrival in enumerate(arrivals, 1):
        waiting = len(queue.parts)
        dropped = queue.dropped
        found = queue.add(arrival.frag, arrival.address, arrival.payload, arrival.now)
        assert found == model.add(arrival)
        assert queue.dropped == len(model.dropped)
        assert queue.parts == [fragment.payload for fragment in model.queue.values()]
        assert queue.octets == sum(map(len, queue.parts)) <= limit
        assert len(queue.parts) <= 127
        assert (queue.address is None) == (not queue.parts)
        if found is not None:
            delivered.append(found)
            if arrival.frag:
                in_delivered += waiting + 1 - (queue.dropped - dropped)
        whole = sum(not arrival.frag for arrival in arrivals[:count])
        assert in_delivered + len(queue.parts) + queue.dropped == count - whole
    return delivered


def cut(*payloads: bytes, address: Address = HERE, now: float = 0.0) -> list[Arrival]:
    """The fragments of a datagram, the last one marked."""
    last = len(payloads)
    return [
        Arrival(now, position | LAST * (position == last), address, payload)
        for position, payload in enumerate(payloads, 1)
    ]


# Seconds that floats add and subtract without rounding.
times = st.lists(st.sampled_from([0.0, 0.125, 4.875, 5.0, 5.125, 10.0]), max_size=40)
some_octets = st.binary(max_size=3)


@st.composite
def traffic(draw: st.DrawFn) -> list[Arrival]:
    """Two datagrams in fragments and some whole ones: in order or permuted, repeated, with gaps, in time or late."""
    pool = []
    for address in (HERE, draw(st.sampled_from([HERE, THERE]))):
        pool += cut(*draw(st.lists(some_octets, min_size=1, max_size=5)), address=address)
    pool += [Arrival(0.0, 0, HERE, payload) for payload in draw(st.lists(some_octets, max_size=2))]
    order: list[Arrival] = draw(
        st.one_of(st.just(pool), st.permutations(pool), st.lists(st.sampled_from(pool), max_size=20))
    )
    for at in draw(st.lists(st.integers(0, 20), max_size=3)):  # in their order, and some of them twice
        order[at + 1 : at + 1] = order[at : at + 1]
    now = 0.0
    arrivals = []
    for arrival, pause in itertools.zip_longest(order, draw(times)[: len(order)], fillvalue=0.0):
        assert isinstance(arrival, Arrival)
        now += pause
        arrivals.append(arrival._replace(now=now))
    return arrivals


@given(traffic(), st.sampled_from([0, 1, 4, MAX_DATAGRAM]), st.sampled_from([5.0, REASSEMBLY_SECONDS]))
def test_fragments_as_section_7_says(arrivals: list[Arrival], limit: int, seconds: float) -> None:
    """Sequences in any disorder are delivered, kept or dropped as the model does it, and each fragment is accounted."""
    feed(arrivals, limit, seconds)


@given(
    st.lists(st.builds(Arrival, st.just(0.0), st.integers(0, 255), st.sampled_from([HERE, THERE]), some_octets)),
    st.integers(0, 6),
)
def test_any_fragments_as_section_7_says(arrivals: list[Arrival], limit: int) -> None:
    """So for any FRAG whatever."""
    feed(arrivals, limit)


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=127))
def test_what_was_cut_is_put_together(payloads: list[bytes]) -> None:
    """From one fragment to 127, empty ones too, the payload is the one that was cut; then another begins."""
    assert feed(cut(*payloads) * 2) == [b"".join(payloads)] * 2


@pytest.mark.parametrize("order", [*itertools.permutations((0, 1, 2))])
def test_only_rising_positions_are_put_together(order: tuple[int, ...]) -> None:
    """A lower FRAG abandons what is there, and a gap could be filled by a lower one only."""
    fragments = cut(b"a", b"b", b"c")
    assert feed([fragments[index] for index in order]) == ([b"abc"] if order == (0, 1, 2) else [])


@pytest.mark.parametrize("missing", range(4))
def test_a_lost_fragment_costs_its_datagram_alone(missing: int) -> None:
    """The next sequence is whole, whichever one of the first was lost."""
    first, second = cut(*(b"%d" % number for number in range(4))), cut(*b"a b c d".split())
    del first[missing]
    assert feed(first + second) == [b"abcd"]


@pytest.mark.parametrize("twice", range(3))
def test_a_repeated_fragment_is_dropped_alone(twice: int) -> None:
    """Networks repeat datagrams; the datagram is delivered once."""
    fragments = cut(b"a", b"b", b"c")
    assert feed([*fragments[: twice + 1], *fragments[twice:]]) == [b"abc"]


def test_a_first_fragment_begins_a_new_sequence() -> None:
    """It looks the same if it comes twice, and its sequence has all the time that there is."""
    first, last = cut(b"a", b"b")
    assert feed([first, first._replace(now=9), last._replace(now=18)]) == [b"ab"]


@pytest.mark.parametrize("other", [{"payload": b"B"}, {"address": THERE}])
def test_another_fragment_in_the_place_of_the_highest_is_no_repetition(other: dict[str, Address | bytes]) -> None:
    """Its own sequence has lost its beginning, so what follows is not joined to the one before."""
    first, second, third = cut(b"a", b"b", b"c")
    stray = second._replace(**other)  # type: ignore[arg-type]
    assert feed([first, second, stray, third]) == []
    assert feed([first, second, stray, *cut(b"x", b"y")]) == [b"xy"]


@pytest.mark.parametrize(("now", "whole"), [(14.999, [b"ab"]), (15.0, []), (15.001, [])])
def test_the_timer_begins_with_the_first_fragment(now: float, whole: list[bytes]) -> None:
    """Just before its end a sequence can still be completed; at it and after it the fragments are dropped."""
    first, last = cut(b"a", b"b", now=5.0)
    assert feed([first, last._replace(now=now)]) == whole


def test_the_timer_is_not_begun_again_by_the_next_fragment() -> None:
    """Who sends a fragment now and then does not hold the queue."""
    fragments = cut(b"a", b"b", b"c")
    assert feed([fragment._replace(now=now) for fragment, now in zip(fragments, (0, 9, 18), strict=True)]) == []


def test_the_timer_is_as_long_as_the_rfc_wants_it() -> None:
    """Section 7: no less than 5 seconds."""
    assert Reassembler().seconds == REASSEMBLY_SECONDS >= 5


def test_a_queue_can_be_expired_from_outside() -> None:
    """Its owner gives memory back without waiting for another fragment; an empty queue has no time."""
    queue = Reassembler(seconds=5)
    queue.expire(1000.0)
    queue.add(1, HERE, b"a", 1.0)
    queue.expire(5.999)
    assert (len(queue.parts), queue.dropped) == (1, 0)
    queue.expire(6.0)
    assert (queue.parts, queue.octets, queue.address, queue.dropped) == ([], 0, None, 1)
    queue.expire(7.0)
    assert queue.dropped == 1


def test_what_still_waits_at_the_end_is_counted() -> None:
    """An association that ends abandons its queue."""
    queue = Reassembler()
    for fragment in cut(b"a", b"b", b"c")[:2]:
        queue.add(fragment.frag, fragment.address, fragment.payload, 0.0)
    queue.abandon()
    assert (queue.dropped, queue.octets, queue.parts) == (2, 0, [])
    queue.abandon()
    assert queue.dropped == 2


def test_a_whole_datagram_overtakes_nothing() -> None:
    """FRAG 0 is delivered as it is, however long, and is lower than what the queue holds: that is abandoned."""
    first, last = cut(b"a", b"b")
    whole = Arrival(0.0, 0, THERE, b"w" * 10)
    assert feed([first, whole, last], limit=5) == [whole.payload]
    assert feed([whole, first, last]) == [whole.payload, b"ab"]


def test_an_end_without_a_position_is_dropped() -> None:
    """FRAG 0x80: positions are 1 to 127."""
    first, last = cut(b"a", b"b")
    assert feed([first, first._replace(frag=LAST), last]) == []
    assert feed([first._replace(frag=LAST), first, last]) == [b"ab"]


def test_a_sequence_has_no_more_than_127_fragments() -> None:
    """Behind the highest position there is none: the queue waits for its timer, or for a lower FRAG."""
    fragments = cut(*[b"x"] * 127)
    endless = [*fragments[:-1], fragments[-1]._replace(frag=127)]
    assert feed(endless + cut(b"a", b"b")) == [b"ab"]
    assert feed(fragments) == [b"x" * 127]


def test_a_change_of_address_abandons_the_queue() -> None:
    """Fragments for different destinations are never joined."""
    first, last = cut(b"a", b"b")
    assert feed([first, last._replace(address=THERE)]) == []
    assert feed([first, *cut(b"x", b"y", address=THERE)]) == [b"xy"]


@pytest.mark.parametrize(
    ("payloads", "whole"),
    [
        ((b"abc", b"de"), [b"abcde"]),
        ((b"abc", b"def"), []),
        ((b"abcdef",), []),
        ((b"abcde",), [b"abcde"]),
        ((b"abc", b"de", b""), [b"abcde"]),
    ],
)
def test_a_datagram_is_no_longer_than_the_limit(payloads: tuple[bytes, ...], whole: list[bytes]) -> None:
    """Neither in memory nor delivered; one octet more, and all of its fragments are dropped. The next one has room."""
    assert feed(cut(*payloads) + cut(b"vw", b"xyz"), limit=5) == [*whole, b"vwxyz"]


def test_the_limit_is_what_a_datagram_carries() -> None:
    """Nothing is put together that could not be sent."""
    half = MAX_DATAGRAM // 2
    assert feed(cut(bytes(half), bytes(MAX_DATAGRAM - half))) == [bytes(MAX_DATAGRAM)]
    assert feed(cut(bytes(half), bytes(MAX_DATAGRAM - half + 1))) == []


# --- through several relays ---

HOPS = (parse_address("192.0.2.1:1080"), parse_address("[2001:db8::2]:1081"))


@pytest.mark.parametrize("hops", [(), HOPS[:1], HOPS], ids=len)
@given(address=addresses, payload=st.binary(max_size=50))
def test_layers_come_off_as_they_were_put_on(hops: tuple[Address, ...], address: Address, payload: bytes) -> None:
    """Whatever the number of relays, and the address says itself where it was not cut elsewhere."""
    layers = Layers(hops)
    head = layers.head + encode_header(address)
    assert layers.unwrap(head + payload, 0.0) == (payload, address)
    assert layers.read(head) == address
    assert layers.read(head + b"x") is None
    assert layers.read(head[:-1]) is None
    assert (layers.rejected, layers.fragments, layers.octets) == (0, 0, 0)


def test_what_comes_by_another_relay_is_a_strangers() -> None:
    """So is rubbish, at any depth. An IPv4 address inside IPv6 is that address."""
    layers, good = Layers(HOPS), parse_address("203.0.113.1:53")
    inner = encode_header(good) + b"x"
    outer, middle = map(encode_header, HOPS)
    other = encode_header(parse_address("192.0.2.1:1081"))
    for datagram in (b"", outer, outer + middle, other + middle + inner, outer + other + inner, middle + outer + inner):
        assert layers.unwrap(datagram, 0.0) is None
        assert layers.read(datagram[: len(layers.head) + 10]) is None
    assert layers.rejected == 6
    mapped = b"\0\0\0\x04" + bytes(10) + b"\xff\xff\xc0\0\x02\x01\x04\x38"
    assert layers.unwrap(mapped + middle + inner, 0.0) == (b"x", good)
    assert layers.read(mapped + middle + inner[:-1]) == good


def test_fragments_at_any_depth() -> None:
    """Each relay may have cut what it sends on; what does not become whole counts, and waits for its time only."""
    layers, source = Layers(HOPS[:1]), parse_address("203.0.113.1:53")
    inner = [encode_header(source, frag) + b"abc" for frag in (1, 2 | LAST)]
    outer = encode_header(HOPS[0])
    assert layers.unwrap(outer + inner[0], 0.0) is None
    assert layers.read(outer + inner[1][:10]) is None  # FRAG
    assert layers.read(outer + encode_header(source)) is None  # would end what waits
    assert layers.octets == 3
    assert layers.unwrap(outer + inner[1], 1.0) == (b"abcabc", source)
    cut = encode_header(HOPS[0], 1), encode_header(HOPS[0], 2 | LAST)
    whole = encode_header(source) + b"payload"
    assert layers.unwrap(cut[0] + whole[:8], 2.0) is None
    assert layers.unwrap(cut[1] + whole[8:], 2.0) == (b"payload", source)
    assert layers.unwrap(cut[0] + whole[:8], 3.0) is None
    layers.expire(12.0)
    assert (layers.octets, layers.fragments) == (8, 0)
    layers.expire(13.0)
    assert (layers.octets, layers.fragments) == (0, 1)
    assert layers.unwrap(cut[0] + whole[:8], 14.0) is None
    layers.abandon()
    assert (layers.octets, layers.fragments) == (0, 2)
