"""Messages of the DNS: what is asked, what is believed, and what a broken or hostile message can do."""

from __future__ import annotations

import struct
import time
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.wire.dns import (
    AAAA,
    MAX_RECORDS,
    NXDOMAIN,
    PTR,
    A,
    DnsAnswer,
    decode_answer,
    encode_message,
    encode_question,
    read_name,
    to_text,
)

QUESTION = encode_question("name.test", A)


def response(*records: str, kind: str = "A", name: str = "name.test", authority: str = "") -> dns.message.Message:
    """A response as dnspython makes it; records as zone files have them."""
    answer = dns.message.make_response(dns.message.make_query(name, kind, use_edns=False))
    for text in records:
        answer.answer.append(dns.rrset.from_text_list(*split(text)))
    if authority:
        answer.authority.append(dns.rrset.from_text_list(*split(authority)))
    return answer


def split(text: str) -> tuple[str, int, str, str, list[str]]:
    """owner, ttl, type, data -> what dnspython wants."""
    owner, ttl, kind, data = text.split(None, 3)
    return owner, int(ttl), "IN", kind, [data]


def decode(message: dns.message.Message, kind: int = A, name: str = "name.test") -> DnsAnswer | None:
    """What we read in it."""
    return decode_answer(message.to_wire(max_size=65535), encode_question(name, kind))


def records(
    count: int, owner: bytes = b"\xc0\x0c", kind: int = A, data: bytes = b"\x7f\0\0\1", flags: int = 0x8180
) -> bytes:
    """A response with equal records, octet for octet."""
    head = b"\0\1" + struct.pack("!5H", flags, 1, count, 0, 0)
    return head + QUESTION + (owner + struct.pack("!HHIH", kind, 1, 60, len(data)) + data) * count


@pytest.mark.parametrize(
    "name", ["name.test", "name.test.", "Name.Test", "a_b.xn--bcher-kva.example", "x" * 63 + ".test"]
)
def test_a_question_is_what_dnspython_reads(name: str) -> None:
    """One question, recursion desired, no EDNS."""
    query = dns.message.from_wire(encode_message(0xABCD, encode_question(name, AAAA)))
    (question,) = query.question
    assert question.name.to_text(omit_final_dot=True) == name.removesuffix(".")
    assert (question.rdtype, question.rdclass, query.id, query.flags) == (AAAA, 1, 0xABCD, dns.flags.RD)
    assert (query.edns, query.answer, query.authority, query.additional) == (-1, [], [], [])


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", ".a", "x" * 64 + ".test", ".".join(["label"] * 60), "bücher.example"]
)
def test_what_is_not_a_name_is_not_asked_for(name: str) -> None:
    """The caller is told why."""
    with pytest.raises(ValueError, match="name"):
        encode_question(name, A)


def test_addresses_of_both_kinds() -> None:
    """With the least time to live of the chain; records of other names, types and classes say nothing."""
    found = decode(response("NAME.test. 60 A 192.0.2.1", "name.test. 50 A 192.0.2.2", "other.test. 1 A 192.0.2.3"))
    assert found == DnsAnswer(0, False, [ip_address("192.0.2.1"), ip_address("192.0.2.2")], 50)
    found = decode(response("name.test. 60 AAAA 2001:db8::1", "name.test. 5 A 192.0.2.1", kind="AAAA"), AAAA)
    assert found == DnsAnswer(0, False, [ip_address("2001:db8::1")], 60)
    chaos = bytearray(records(1))
    chaos[-12] = 3  # the class
    assert decode_answer(bytes(chaos), QUESTION) == DnsAnswer(0, False, [], None)


def test_an_alias_is_followed() -> None:
    """In any order of records, and however long; a circle leads nowhere; a time to live that is too long is none."""
    chain = ["b.test. 9 A 192.0.2.1", "name.test. 30 CNAME a.test.", "A.test. 7 CNAME B.test."]
    assert decode(response(*chain)) == DnsAnswer(0, False, [ip_address("192.0.2.1")], 7)
    circle = decode(response("name.test. 30 CNAME a.test.", "a.test. 7 CNAME name.test."))
    assert circle == DnsAnswer(0, False, [], None)
    wire = records(1).replace(struct.pack("!I", 60), struct.pack("!I", 1 << 31))
    assert decode_answer(wire, QUESTION) == DnsAnswer(0, False, [ip_address("127.0.0.1")], 0)


def test_names_of_addresses() -> None:
    """As text; what is not a host name stays visible, so that it is not taken for one."""
    question = encode_question("1.2.0.192.in-addr.arpa", PTR)
    message = response("1.2.0.192.in-addr.arpa. 60 PTR Host.test.", kind="PTR", name="1.2.0.192.in-addr.arpa")
    assert decode_answer(message.to_wire(), question) == DnsAnswer(0, False, ["host.test"], 60)
    assert to_text(b"\x03a.b\x02\xff-\0") == "a\\.b.\ufffd-"
    assert to_text(b"\0") == ""


@pytest.mark.parametrize(
    ("authority", "ttl"),
    [
        ("test. 300 SOA a.test. b.test. 1 1 1 1 20", 20),
        ("test. 10 SOA a.test. b.test. 1 1 1 1 20", 10),
        ("test. 10 NS a.test.", None),
        ("test. 3000000000 SOA a.test. b.test. 1 1 1 1 3000000000", 0),
        ("", None),
    ],
)
def test_that_there_is_nothing_has_its_time_too(authority: str, ttl: float | None) -> None:
    """The least that the zone's SOA says (RFC 2308 section 5)."""
    limits = "3000000000" in authority
    message = response(authority=authority.replace("3000000000", "7"))
    message.set_rcode(dns.rcode.NXDOMAIN)
    wire = message.to_wire()
    if limits:
        wire = wire.replace(struct.pack("!I", 7), struct.pack("!I", 3_000_000_000))
    assert decode_answer(wire, QUESTION) == DnsAnswer(NXDOMAIN, False, [], ttl)


def test_what_does_not_fit() -> None:
    """The message says so; whatever of it is whole is taken, wherever it breaks off."""
    wire = records(2, flags=0x8380)
    assert decode_answer(wire, QUESTION) == DnsAnswer(0, True, [ip_address("127.0.0.1")] * 2, 60)
    assert decode_answer(wire[:-3], QUESTION) == DnsAnswer(0, True, [ip_address("127.0.0.1")], 60)
    assert decode_answer(wire[: 12 + len(QUESTION)], QUESTION) == DnsAnswer(0, True, [], None)


def test_what_is_not_an_answer_to_the_question() -> None:
    """A question, another question, and less than a head."""
    wire = records(1)
    assert decode_answer(wire, QUESTION) is not None
    assert decode_answer(wire, encode_question("other.test", A)) is None
    assert decode_answer(wire, encode_question("name.test", AAAA)) is None
    assert decode_answer(encode_message(1, QUESTION), QUESTION) is None
    assert decode_answer(wire[:11], QUESTION) is None
    assert decode_answer(b"\0\1\x81\x81" + bytes(8), QUESTION) == DnsAnswer(1, False, [], None)
    assert decode_answer(b"\0\1\x81\x80" + bytes(8), QUESTION) is None


@pytest.mark.parametrize(
    "wire",
    [
        records(1)[:-1],
        records(1)[:-6],
        records(1, data=b"\x7f\0\0"),
        records(1, owner=b"\xc0\x2f"),  # forward
        records(1, owner=b"\x80\x0c"),
        records(1, owner=b"\xc0"),
        records(1, kind=5, data=b"\x3fa"),
        records(0)[:8] + b"\0\1" + records(0)[10:],  # an authority that is not there
        records(0)[:8] + b"\0\1" + records(0)[10:] + b"\0" + struct.pack("!HHIH", 6, 1, 60, 22),
    ],
)
def test_a_message_that_contradicts_itself(wire: bytes) -> None:
    """It is told by a ValueError, nothing else."""
    with pytest.raises(ValueError, match=r"."):
        decode_answer(wire, QUESTION)


def test_a_name_has_an_end() -> None:
    """Pointers lead back only, and not too often; a name has 255 octets at most."""
    data = b"\0" + b"".join(struct.pack("!H", 0xC000 | max(0, at - 2)) for at in range(1, 203, 2))
    assert read_name(data, 0, {}) == (b"\0", 1)
    assert read_name(data, 1, {}) == (b"\0", 3)
    with pytest.raises(ValueError, match="does not end"):
        read_name(data, 201, {})
    with pytest.raises(ValueError, match="255"):
        read_name((b"\x3f" + b"a" * 63) * 4 + b"\0", 0, {})
    half = (b"\x3f" + b"a" * 63) * 2
    with pytest.raises(ValueError, match="255"):
        read_name(half + b"\0" + half + b"\xc0\0", len(half) + 1, {})


def test_a_large_message_costs_little() -> None:
    """Of more records than anybody needs only the first are looked at."""
    wire = records(4000)
    started = time.process_time()
    found = decode_answer(wire, QUESTION)
    assert time.process_time() - started < 0.1
    assert found is not None
    assert len(found.values) == MAX_RECORDS
    wire = wire[:8] + b"\xff\xff" + wire[10:]
    assert decode_answer(wire, encode_question("name.test", A)) is not None


def test_a_long_name_is_read_once() -> None:
    """A client chooses the name and may own its zone, too: all records point to a name of 126 labels. That takes about
    as long as with one of two labels, not 63 times that."""
    record = struct.pack("!HHIH", A, 1, 60, 4) + b"\x7f\0\0\1"
    head = b"\0\1\x81\x80" + struct.pack("!4H", 1, MAX_RECORDS, 0, 0)
    for name in (b"\xc0\x0c", b"\1b\xc0\x0e"):
        least = []
        for labels in (2, 126):
            question = encode_question(".".join("a" * labels), A)
            wire = head + question + (name + record) * MAX_RECORDS
            times = []
            for _ in range(5):
                started = time.process_time()
                found = decode_answer(wire, question)
                times.append(time.process_time() - started)
            assert found is not None
            assert len(found.values) == (MAX_RECORDS if name == b"\xc0\x0c" else 0)
            least.append(min(times))
        assert least[1] < 10 * least[0]


@given(st.binary(max_size=80), st.integers(0, 0xFFFF))
def test_any_octets(tail: bytes, counts: int) -> None:
    """Nothing but an answer, None, or ValueError comes of what a server sends."""
    head = b"\0\1\x81\x80" + struct.pack("!4H", 1, counts & 15, counts >> 4 & 15, 0)
    for wire in (tail, head + QUESTION + tail):
        try:
            decode_answer(wire, QUESTION)
        except ValueError:
            continue
