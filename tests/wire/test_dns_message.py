"""Messages of the DNS that pass by: what is read in them, and what a broken or hostile one can do."""

from __future__ import annotations

import struct
import time

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.wire.dns import encode_message, encode_question
from tabi.wire.dns_message import MAX_ANSWERS, MAX_NAMES, DnsInfo, DnsRecord, decode_message, presented

QUESTION = encode_question("name.test", 1)


def response(*records: str, kind: str = "A", name: str = "name.test") -> dns.message.Message:
    """A response as dnspython makes it; records as zone files have them."""
    answer = dns.message.make_response(dns.message.make_query(name, kind, use_edns=False, id=7))
    for text in records:
        owner, ttl, of, data = text.split(None, 3)
        answer.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", of, data))
    return answer


def decode(data: bytes) -> DnsInfo:
    """What is read in a message that can be read."""
    found = decode_message(data)
    assert found is not None
    return found


def test_a_question() -> None:
    """With and without EDNS, in letters of any case."""
    plain = decode(encode_message(7, encode_question("Name.TEST", 28)))
    assert plain == DnsInfo(7, False, "name.test", 28, 0, False, ())
    with_edns = dns.message.make_query("name.test", "HTTPS", use_edns=0, id=7).to_wire()
    assert decode(with_edns) == DnsInfo(7, False, "name.test", 65, 0, False, ())


def test_answers() -> None:
    """Addresses and names are text, other records their octets; each has its time to live."""
    message = response(
        "name.test. 60 CNAME other.test.",
        "other.test. 30 A 192.0.2.1",
        "other.test. 20 AAAA 2001:db8::1",
        "other.test. 10 TXT hello",
        "other.test. 10 NS ns.other.test.",
    )
    found = decode(message.to_wire())
    assert found.is_response
    assert found.answers == (
        DnsRecord("name.test", 5, 60, found.answers[0].data, "other.test"),
        DnsRecord("other.test", 1, 30, b"\xc0\0\2\1", "192.0.2.1"),
        DnsRecord("other.test", 28, 20, bytes.fromhex("20010db8000000000000000000000001"), "2001:db8::1"),
        DnsRecord("other.test", 16, 10, b"\5hello", None),
        DnsRecord("other.test", 2, 10, found.answers[4].data, "ns.other.test"),
    )
    assert found.addresses == ("192.0.2.1", "2001:db8::1")


def test_what_a_response_says_of_itself() -> None:
    """That there is no such name, and that there is more by TCP."""
    message = response()
    message.set_rcode(dns.rcode.NXDOMAIN)
    message.flags |= dns.flags.TC
    found = decode(message.to_wire())
    assert (found.rcode, found.truncated, found.answers) == (3, True, ())


def test_questions_of_other_numbers() -> None:
    """None, as some failures have; of two the first is meant; of more only that is read, and no answers."""
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1"
    none = decode(struct.pack("!6H", 7, 0x8001, 0, 0, 0, 0))
    assert (none.name, none.type, none.rcode) == ("", 0, 1)
    other = encode_question("other.test", 28)
    for count, addresses in ((1, 1), (2, 1), (3, 0)):
        found = decode(struct.pack("!6H", 7, 0x8000, count, 1, 0, 0) + QUESTION + other * (count - 1) + record)
        assert (found.name, found.type, len(found.addresses)) == ("name.test", 1, addresses)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        struct.pack("!6H", 7, 0, 1, 0, 0, 0),
        struct.pack("!6H", 7, 0, 1, 0, 0, 0) + QUESTION[:-1],
        struct.pack("!6H", 7, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        struct.pack("!6H", 7, 0, 1, 0, 0, 0) + b"\x80\0\1\0\1",
        b"\xc3\0\0\0\1\x08destined" + bytes(1200),
    ],
    ids=["empty", "short", "no question", "cut", "a circle", "an odd label", "QUIC"],
)
def test_what_is_none(data: bytes) -> None:
    """It breaks off in the head or the question, or this is no name."""
    assert decode_message(data) is None


@pytest.mark.parametrize(
    "behind",
    [
        b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\5\x7f\0\0\1",
        b"\xc0\x0c\0\1\0\1",
        b"\xc0",
        b"\xff\xff",
        b"",
    ],
    ids=["data", "head", "name", "a pointer ahead", "nothing"],
)
def test_what_can_be_read_counts(behind: bytes) -> None:
    """The name that is asked for, and the answers before one that cannot be read."""
    good = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1"
    found = decode(struct.pack("!6H", 7, 0x8000, 1, 3, 0, 0) + QUESTION + good + behind)
    assert (found.name, found.addresses) == ("name.test", ("127.0.0.1",))


@pytest.mark.parametrize(
    ("kind", "data"),
    [(1, b"\1\2\3"), (28, b"\1\2\3\4"), (5, b"\xff\xff"), (5, b"\xc0\x0cx"), (5, b""), (5, b"\xc0")],
)
def test_odd_data_has_no_text(kind: int, data: bytes) -> None:
    """Addresses of another length, and names that are none or have something behind them."""
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1 << 31, len(data)) + data
    (found,) = decode(struct.pack("!6H", 7, 0x8000, 1, 1, 0, 0) + QUESTION + record).answers
    assert found == DnsRecord("name.test", kind, 0, data, None)


def test_the_number_of_answers_is_bounded() -> None:
    """However many a message has: the longest takes a few milliseconds, and so do names with many jumps."""
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\0"
    data = struct.pack("!6H", 7, 0x8000, 1, 5000, 0, 0) + QUESTION + record * 5000
    began = time.process_time()
    assert len(decode(data).answers) == MAX_ANSWERS
    jumps = b"".join(b"\1a" + (0xC000 | 12 + max(0, 4 * number - 4)).to_bytes(2) for number in range(60))
    decode_message(struct.pack("!6H", 7, 0x8000, 0, 300, 0, 0) + jumps)
    assert time.process_time() - began < 0.5


def test_names_are_bounded_together() -> None:
    """Each different one counts once; where they are too many, the answers end."""
    labels = b"\1a" * 124
    record = struct.pack("!HHIH", 1, 1, 60, 4) + b"\x7f\0\0\1"
    head = struct.pack("!6H", 7, 0x8000, 1, 200, 0, 0) + QUESTION
    same = head + (b"\3abc" + labels + b"\0" + record) * 200
    assert len(decode(same).answers) == 200
    different = head + b"".join(b"\3%03d" % number + labels + b"\0" + record for number in range(200))
    found = decode(different)
    assert len(found.answers) == (MAX_NAMES - 11) // (4 + len(labels) + 1)
    assert found.name == "name.test"


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_a_name_is_written_as_in_zone_files(labels: list[bytes]) -> None:
    """dnspython reads the same labels in it, whatever octets they have; and it can be printed."""
    text = presented(b"".join(b"%c%b" % (len(label), label) for label in labels) + b"\0")
    assert text.isascii()
    assert text.isprintable()
    assert dns.name.from_text(text + ".").labels[:-1] == tuple(labels)


@given(
    st.lists(
        st.sampled_from(["A 192.0.2.1", "AAAA 2001:db8::2", "CNAME a.test.", "MX 1 b.test.", "PTR c.test.", "TXT d"]),
        max_size=10,
    ),
    st.integers(0, 2**31 - 1),
)
def test_it_reads_what_dnspython_writes(records: list[str], ttl: int) -> None:
    """Names, types, times to live and data of all answers."""
    message = response(*(f"n{number}.test. {ttl} {text}" for number, text in enumerate(records)))
    found = decode(message.to_wire())
    assert [(one.name, one.ttl) for one in found.answers] == [(f"n{n}.test", ttl) for n in range(len(records))]
    for one, text in zip(found.answers, records, strict=True):
        expected = text.split()[-1].rstrip(".")
        assert one.text == (None if one.type in (15, 16) else expected)


@given(st.binary(max_size=300))
def test_anything(data: bytes) -> None:
    """No octets make it raise."""
    decode_message(data)
    decode_message(b"\0\7\x81\x80\0\1\0\3\0\0\0\0" + QUESTION + data)
