"""The machines of SOCKS4 and SOCKS4a: what they read, write and refuse, however the octets arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pieces import cuts
from tabi.errors import LocalProtocolError, RemoteProtocolError
from tabi.wire.address import MAX_NAME, UNSPECIFIED, Address, Host, parse_host
from tabi.wire.machine import NEED_DATA, Machine, State
from tabi.wire.socks4 import (
    MAX_USERID,
    ClientMachine4,
    Reply4,
    ReplyCode4,
    Request4,
    ServerMachine4,
    encode_reply4,
    encode_request4,
    reply4_code,
)
from tabi.wire.socks5 import Command, ReplyCode

IPV4 = Address(IPv4Address("192.0.2.1"), 80)
IPV6 = Address(IPv6Address("2001:db8::1"), 443)
NAME = Address("example.com", 443)
LONG_NAME = Address("a" * MAX_NAME, 65535)
ADDRESSES = (IPV4, UNSPECIFIED, Address(IPv4Address("0.0.0.7"), 1), IPV6, NAME, LONG_NAME)
NAMES = ("ipv4", "unspecified", "0.0.0.7", "ipv6", "name", "255")
PAYLOAD = b"GET / HTTP/1.1\r\n\r\n\x04\x01\x00\x00"
HEAD = b"\x04\x01\x00\x50\x00\x00\x00\x01"
"""Of a request by SOCKS4a."""

READ_SIZE = 500
"""Octets of one read from a client that is not known yet, as the ingress has it."""

octets = st.integers(0, 255)
userids = st.binary(max_size=MAX_USERID).map(lambda data: data.replace(b"\0", b"\xff"))
hosts = st.one_of(
    st.text("abcxyz019-.", min_size=1, max_size=MAX_NAME).filter(lambda text: isinstance(parse_host(text), str)),
    st.ip_addresses(),
    st.integers(0, 256).map(IPv4Address),
)
addresses = st.builds(Address, hosts, st.integers(0, 65535))
addresses_of_replies = st.builds(Address, st.ip_addresses(v=4), st.integers(0, 65535))


def read(machine: Machine, pieces: Iterable[bytes]) -> Any:
    """Feed pieces as a reader does, which stops at the first message; what is left over is fed behind it."""
    found: Any = NEED_DATA
    for piece in pieces:
        machine.receive_data(piece)
        if found is NEED_DATA:
            found = machine.next_event()
    return found


def drain(machine: Any) -> list[Any]:
    """Every message that is there, each request granted; the last entry is the error's text if it ends with one."""
    found: list[Any] = []
    try:
        while (message := machine.next_event()) is not NEED_DATA:
            found.append(message)
            if isinstance(message, Request4):
                machine.send(Reply4(ReplyCode4.GRANTED))
    except RemoteProtocolError as exc:
        found.append(str(exc))
    return found


def server(*steps: bytes | Reply4) -> ServerMachine4:
    """A server that was sent octets (bytes) and gave answers (messages)."""
    machine = ServerMachine4()
    for step in steps:
        if isinstance(step, bytes):
            machine.receive_data(step)
            machine.next_event()
        else:
            machine.send(step)
    return machine


def client(*steps: bytes | Request4) -> ClientMachine4:
    """A client that was sent octets (bytes) and sent messages."""
    machine = ClientMachine4()
    for step in steps:
        if isinstance(step, bytes):
            machine.receive_data(step)
            machine.next_event()
        else:
            machine.send(step)
    return machine


CONNECT, BIND = Request4(Command.CONNECT, IPV4, b"alice"), Request4(Command.BIND, IPV4)
GRANTED, REJECTED = Reply4(ReplyCode4.GRANTED, IPV4), Reply4(ReplyCode4.REJECTED)

SERVERS: dict[str, Callable[[], ServerMachine4]] = {
    "request": server,
    "request seen": lambda: server(encode_request4(CONNECT)),
    "second reply": lambda: server(encode_request4(BIND), GRANTED),
    "open": lambda: server(encode_request4(CONNECT), GRANTED),
    "closed": lambda: server(encode_request4(CONNECT), REJECTED),
}
CLIENTS: dict[str, Callable[[], ClientMachine4]] = {
    "request": client,
    "request sent": lambda: client(CONNECT),
    "bind sent": lambda: client(BIND),
    "second reply": lambda: client(BIND, encode_reply4(GRANTED)),
    "open": lambda: client(CONNECT, encode_reply4(GRANTED)),
    "closed": lambda: client(CONNECT, encode_reply4(REJECTED)),
}
MACHINES: dict[str, Callable[[], Machine]] = {
    **{f"server, {name}": make for name, make in SERVERS.items()},
    **{f"client, {name}": make for name, make in CLIENTS.items()},
}


# --- messages ---


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (encode_request4(CONNECT), "04 01 0050 c0000201 616c696365 00"),
        (encode_request4(BIND), "04 02 0050 c0000201 00"),
        (encode_request4(Request4(0x80, UNSPECIFIED)), "04 80 0000 00000000 00"),
        (encode_request4(Request4(1, NAME, b"u")), "04 01 01bb 00000001 75 00 6578616d706c652e636f6d 00"),
        (encode_request4(Request4(1, IPV6)), "04 01 01bb 00000001 00 323030313a6462383a3a31 00"),
        (encode_request4(Request4(1, Address(IPv4Address("0.0.0.7"), 1))), "04 01 0001 00000001 00 302e302e302e37 00"),
        (encode_request4(Request4(1, Address(IPv4Address("0.0.1.0"), 1))), "04 01 0001 00000100 00"),
        (encode_reply4(GRANTED), "00 5a 0050 c0000201"),
        (encode_reply4(REJECTED), "00 5b 0000 00000000"),
        (encode_reply4(Reply4(ReplyCode4.USERID_MISMATCH, IPV6)), "00 5d 01bb 00000000"),
        (encode_reply4(Reply4(ReplyCode4.NO_IDENTD, NAME)), "00 5c 01bb 00000000"),
    ],
)
def test_messages_on_the_wire(written: bytes, expected: str) -> None:
    """As the memos draw them. What DSTIP cannot say goes by 4a as text; a reply has no room for anything but IPv4."""
    assert written == bytes.fromhex(expected)


@pytest.mark.parametrize("destination", ADDRESSES, ids=NAMES)
@pytest.mark.parametrize("command", [Command.CONNECT, Command.BIND, 0, 3, 255])
@pytest.mark.parametrize("userid", [b"", b"alice", bytes(range(1, 256))], ids=["no userid", "userid", "all octets"])
def test_requests(command: int, destination: Address, userid: bytes) -> None:
    """Every command, known or not, to every kind of destination, however it arrives; what follows is kept."""
    for pieces in cuts(encode_request4(Request4(command, destination, userid)) + PAYLOAD):
        machine = server()
        assert read(machine, pieces) == Request4(command, destination, userid)
        assert machine.state is State.REQUEST_SEEN
        assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize("code", [*ReplyCode4, 0, 0x59, 0x5E, 255])
def test_replies(code: int) -> None:
    """Every code, known or not, however it arrives; 5A alone is a success; what follows is kept."""
    for pieces in cuts(encode_reply4(Reply4(code, IPV4)) + PAYLOAD):
        machine = client(CONNECT)
        assert read(machine, pieces) == Reply4(code, IPV4)
        assert machine.state is (State.OPEN if code == 0x5A else State.CLOSED)
        assert machine.trailing_data == PAYLOAD


def test_4a_is_told_by_dstip() -> None:
    """0.0.0.x with x not 0 says that a name follows; 0.0.0.0 is an address, and the name behind it payload."""
    for last in range(256):
        data = b"\x04\x01\x00\x50\x00\x00\x00%cu\x00a.example\x00" % last
        machine = server()
        host, rest = ("a.example", b"") if last else (UNSPECIFIED.host, b"a.example\x00")
        assert read(machine, [data]) == Request4(1, Address(host, 80), b"u"), f"0.0.0.{last}"
        assert machine.trailing_data == rest, f"0.0.0.{last}"


@pytest.mark.parametrize("dstip", ["0.0.1.0", "0.0.1.1", "0.1.0.1", "1.0.0.1", "0.0.1.255", "255.255.255.255"])
def test_other_addresses_are_addresses(dstip: str) -> None:
    """Three octets of 0 are the mark, not fewer."""
    data = b"\x04\x01\x00\x50" + IPv4Address(dstip).packed + b"\x00rest\x00"
    machine = server()
    assert read(machine, [data]) == Request4(1, Address(IPv4Address(dstip), 80))
    assert machine.trailing_data == b"rest\x00"


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (b"192.0.2.1", IPv4Address("192.0.2.1")),
        (b"::1", IPv6Address("::1")),
        (b"[::1]", IPv6Address("::1")),
        ("bücher.example".encode(), "xn--bcher-kva.example"),
    ],
)
def test_a_name_is_what_its_text_is(name: bytes, host: Host) -> None:
    """As in SOCKS5: an address as text is an address, so that rules for addresses hold, and UTF-8 becomes IDNA."""
    assert read(server(), [HEAD + b"\0" + name + b"\0"]).destination == Address(host, 80)


@given(addresses, octets, userids)
@example(Address(IPv4Address("0.0.0.1"), 0), 1, b"")
@example(Address(IPv4Address("0.0.0.255"), 0), 1, b"")
def test_requests_survive_the_wire(destination: Address, command: int, userid: bytes) -> None:
    """What one side encodes the other decodes."""
    message = Request4(command, destination, userid)
    assert read(server(), [encode_request4(message)]) == message


@given(addresses_of_replies, octets)
def test_replies_survive_the_wire(bound: Address, code: int) -> None:
    """What one side encodes the other decodes."""
    assert read(client(CONNECT), [encode_reply4(Reply4(code, bound))]) == Reply4(code, bound)


@pytest.mark.parametrize(
    "message",
    [
        Request4(1, IPV4, b"a\0b"),
        Request4(1, IPV4, b"\0"),
        Request4(1, Address("", 80)),
        Request4(1, Address("a" * 256, 80)),
        Request4(1, Address("a\0b", 80)),
        Request4(1, Address("bücher", 80)),
    ],
    ids=["userid with NUL", "userid is NUL", "empty", "256", "name with NUL", "no ASCII"],
)
def test_an_impossible_request_is_not_sent(message: Request4) -> None:
    """What would be read as something else, or not at all, raises; the machine is as it was."""
    machine = client()
    with pytest.raises(ValueError, match=r"."):
        machine.send(message)
    assert machine.state is State.REQUEST
    assert machine.send(CONNECT)


@pytest.mark.parametrize("reply_code", [*ReplyCode, 9, 255])
def test_the_code_of_a_reply(reply_code: int) -> None:
    """Success is 5A, and whatever RFC 1928 says of a failure 5B; 5C and 5D would accuse an identd that nobody asked."""
    assert reply4_code(reply_code) == (0x5B if reply_code else 0x5A)


# --- limits ---


@pytest.mark.parametrize("size", [MAX_USERID - 1, MAX_USERID])
@pytest.mark.parametrize("destination", [IPV4, NAME], ids=["plain", "4a"])
def test_a_userid_within_the_limit(size: int, destination: Address) -> None:
    """Up to 255 octets and their NUL, however they arrive."""
    message = Request4(1, destination, b"u" * size)
    for pieces in cuts(encode_request4(message)):
        assert read(server(), pieces) == message


@pytest.mark.parametrize("size", [MAX_USERID + 1, 10_000])
def test_a_userid_beyond_the_limit(size: int) -> None:
    """It is refused, with a reply, at the octet that is one too many: whether a NUL comes does not matter."""
    data = HEAD + b"u" * size
    machine = server(data[: 8 + MAX_USERID])
    assert machine.next_event() is NEED_DATA
    machine.receive_data(b"u")
    with pytest.raises(RemoteProtocolError, match="USERID: more than 255 octets") as caught:
        machine.next_event()
    assert caught.value.reply_code == ReplyCode.GENERAL_FAILURE
    for whole in (data, data + b"\0"):
        with pytest.raises(RemoteProtocolError, match="USERID: more than 255 octets"):
            read(server(), [whole])


@pytest.mark.parametrize("limit", [0, 7])
def test_the_limit_of_a_userid_is_an_argument(limit: int) -> None:
    """Exactly as many octets, and not one more."""
    message = Request4(1, IPV4, b"u" * limit)
    assert read(ServerMachine4(max_userid=limit), [encode_request4(message)]) == message
    with pytest.raises(RemoteProtocolError, match=f"USERID: more than {limit} octets"):
        read(ServerMachine4(max_userid=limit), [encode_request4(Request4(1, IPV4, b"u" * (limit + 1)))])


@pytest.mark.parametrize("size", [1, MAX_NAME - 1, MAX_NAME])
def test_a_name_within_the_limit(size: int) -> None:
    """1 to 255 octets and their NUL, however they arrive."""
    for pieces in cuts(HEAD + b"u\0" + b"a" * size + b"\0"):
        assert read(server(), pieces) == Request4(1, Address("a" * size, 80), b"u")


@pytest.mark.parametrize("size", [MAX_NAME + 1, 10_000])
def test_a_name_beyond_the_limit(size: int) -> None:
    """It is refused, with a reply, at the octet that is one too many: whether a NUL comes does not matter."""
    data = HEAD + b"u\0" + b"a" * size
    machine = server(data[: 10 + MAX_NAME])
    assert machine.next_event() is NEED_DATA
    machine.receive_data(b"a")
    with pytest.raises(RemoteProtocolError, match="NAME: more than 255 octets") as caught:
        machine.next_event()
    assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
    for whole in (data, data + b"\0"):
        with pytest.raises(RemoteProtocolError, match="NAME: more than 255 octets"):
            read(server(), [whole])


@pytest.mark.parametrize("size", [1, 8, 263, READ_SIZE])
@pytest.mark.parametrize("start", [HEAD, HEAD + b"u" * MAX_USERID + b"\0"], ids=["userid", "name"])
def test_a_request_that_never_ends_is_refused(start: bytes, size: int) -> None:
    """Before the limit is passed by more than the read that passes it."""
    machine, stream = server(), start + b"x" * 2000
    found: list[Any] = []
    while not found:
        machine.receive_data(stream[:size])
        stream = stream[size:]
        found = drain(machine)
    assert len(found) == 1
    assert found[0].endswith("more than 255 octets")
    assert len(machine.buffer) <= len(start) + 255 + size


def test_less_than_1_kib_is_held_for_a_client_that_is_not_known() -> None:
    """The longest request but its last octet, and one read behind it: there can be no more before it is decided."""
    machine = server(HEAD + b"u" * MAX_USERID + b"\0" + b"a" * MAX_NAME)
    assert machine.next_event() is NEED_DATA
    machine.receive_data(b"a" * READ_SIZE)
    assert len(machine.buffer) < 1024
    with pytest.raises(RemoteProtocolError, match="NAME: more than 255 octets"):
        machine.next_event()


# --- what peers do wrong ---


@pytest.mark.parametrize("version", [0, 1, 3, 5, 71, 255])
def test_another_version_is_refused_at_its_octet(version: int) -> None:
    """VN of a request is 04."""
    machine = server()
    machine.receive_data(bytes((version,)))
    with pytest.raises(RemoteProtocolError, match=f"request: version {version:#04x}, expected 0x04") as caught:
        machine.next_event()
    assert caught.value.reply_code is None


@pytest.mark.parametrize("version", [1, 4, 5, 255])
@pytest.mark.parametrize("name", ["request sent", "second reply"])
def test_another_version_of_a_reply_is_refused(name: str, version: int) -> None:
    """VN of a reply is 00, at its first octet; a client has no answer to anything else."""
    machine = CLIENTS[name]()
    machine.receive_data(bytes((version,)))
    with pytest.raises(RemoteProtocolError, match=f"reply: version {version:#04x}, expected 0x00"):
        machine.next_event()
    assert machine.state is State.CLOSED
    assert machine.missing == 0


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (b"", "1 to 255 octets, this one has 0"),
        (b"a b", "white space"),
        (b"\xff\xff", "decode"),
        (b"fe80:", "fe80:"),
        (b"fe80::1%eth0", "bears a zone"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_a_reply(name: bytes, what: str) -> None:
    """The error says that it is NAME and bears a code; the machine takes the reply and then ends."""
    for pieces in cuts(HEAD + b"u\0" + name + b"\0"):
        machine = server()
        with pytest.raises(RemoteProtocolError, match=f"^NAME: .*{what}") as caught:
            read(machine, pieces)
        assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
        assert machine.send(Reply4(reply4_code(caught.value.reply_code))) == b"\x00\x5b" + bytes(6)
        assert machine.state is State.CLOSED


@pytest.mark.parametrize("message", [CONNECT, Request4(1, NAME, b"u")], ids=["plain", "4a"])
def test_a_client_that_ends_in_the_middle(message: Request4) -> None:
    """Wherever it does."""
    data = encode_request4(message)
    for end in range(len(data)):
        machine = server()
        machine.receive_data(data[:end])
        machine.receive_data(b"")
        with pytest.raises(RemoteProtocolError, match=r"^the peer ended in the middle of the request$"):
            machine.next_event()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("request sent", "answer to the request"),
        ("bind sent", "answer to the request"),
        ("second reply", "second reply"),
    ],
)
@pytest.mark.parametrize("end", range(8))
def test_a_server_that_ends_in_the_middle(name: str, what: str, end: int) -> None:
    """Wherever it does."""
    machine = CLIENTS[name]()
    machine.receive_data(encode_reply4(GRANTED)[:end])
    machine.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match=f"^the peer ended in the middle of the {what}$"):
        machine.next_event()


# --- a client and a server joined in memory ---


def deliver(data: bytes, to: Machine, message: Any) -> None:
    """Carry octets to the other side, octet by octet, where they are the message that was sent."""
    assert read(to, [data[at : at + 1] for at in range(len(data))]) == message


@pytest.mark.parametrize("destination", ADDRESSES, ids=NAMES)
def test_a_conversation(destination: Address) -> None:
    """From the request to the payload, to every kind of destination."""
    ours, theirs = ClientMachine4(), ServerMachine4()
    message = Request4(Command.CONNECT, destination, b"alice")
    deliver(ours.send(message), theirs, message)
    deliver(theirs.send(GRANTED), ours, GRANTED)
    assert (ours.state, theirs.state) == (State.OPEN, State.OPEN)
    assert (ours.missing, ours.trailing_data, theirs.trailing_data) == (0, b"", b"")


@pytest.mark.parametrize("second", [GRANTED, REJECTED], ids=["granted", "rejected"])
def test_bind_has_two_replies(second: Reply4) -> None:
    """The first says where the server listens, the second who came, or that nobody did."""
    ours, theirs = ClientMachine4(), ServerMachine4()
    deliver(ours.send(BIND), theirs, BIND)
    deliver(theirs.send(GRANTED), ours, GRANTED)
    assert (ours.state, theirs.state) == (State.SECOND_REPLY, State.SECOND_REPLY)
    assert theirs.next_event() is NEED_DATA
    deliver(theirs.send(second), ours, second)
    end = State.OPEN if second is GRANTED else State.CLOSED
    assert (ours.state, theirs.state) == (end, end)


def test_both_replies_of_bind_in_one_read() -> None:
    """A peer that comes at once: both replies and its first octets arrive together."""
    second = Reply4(ReplyCode4.GRANTED, Address(IPv4Address("198.51.100.1"), 20))
    for pieces in cuts(encode_reply4(GRANTED) + encode_reply4(second) + PAYLOAD):
        machine = client(BIND)
        assert read(machine, pieces) == GRANTED
        assert machine.next_event() == second
        assert machine.next_event() is NEED_DATA
        assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize("message", [CONNECT, BIND], ids=["connect", "bind"])
def test_a_failure_is_the_end(message: Request4) -> None:
    """There is nothing behind it, for BIND neither; what the peer sends then is refused."""
    ours, theirs = ClientMachine4(), ServerMachine4()
    deliver(ours.send(message), theirs, message)
    deliver(theirs.send(REJECTED), ours, REJECTED)
    for machine in (ours, theirs):
        assert machine.state is State.CLOSED
        machine.receive_data(b"\0")
        with pytest.raises(RemoteProtocolError, match="the conversation is over"):
            machine.next_event()


# --- what callers do wrong ---

FITTING: dict[str, type] = {
    "server, request seen": Reply4,
    "server, second reply": Reply4,
    "client, request": Request4,
}


@pytest.mark.parametrize("message", [CONNECT, GRANTED], ids=["Request4", "Reply4"])
@pytest.mark.parametrize("name", MACHINES)
def test_only_the_message_that_is_due_can_be_sent(name: str, message: Any) -> None:
    """In every state one message fits or none; another raises LocalProtocolError and changes nothing."""
    machine: Any = MACHINES[name]()
    before = machine.state
    if FITTING.get(name) is type(message):
        assert machine.send(message)
        assert machine.state is not before
    else:
        with pytest.raises(LocalProtocolError, match=f"cannot send {type(message).__name__} in state {before.name}"):
            machine.send(message)
        assert machine.state is before


# --- any octets ---

starts = st.sampled_from(
    [b"\x04", HEAD, HEAD + b"u\0", HEAD + b"u" * 250, b"\x04\x02\x00\x50\x7f\x00\x00\x01", b"\0\x5a"]
)
likely = st.builds(bytes.__add__, starts, st.binary(max_size=300))
chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


@pytest.mark.parametrize("name", MACHINES)
@given(pieces=st.one_of(chunks, likely.map(lambda data: [data])), ended=st.booleans())
def test_from_any_octets_come_messages_or_remote_protocol_error(name: str, pieces: list[bytes], ended: bool) -> None:
    """The contract of the machines, in every state: nothing else is raised, whatever the peer sends."""
    machine = MACHINES[name]()
    for piece in [*pieces, b""] if ended else pieces:
        machine.receive_data(piece)
        for message in drain(machine):
            assert isinstance(message, (Request4, Reply4, str))


@pytest.mark.parametrize("name", MACHINES)
@given(data=st.one_of(st.binary(min_size=1, max_size=60), likely), cut=st.data())
def test_how_octets_are_cut_does_not_matter(name: str, data: bytes, cut: st.DataObject) -> None:
    """The same octets give the same messages and the same error, whole or in pieces."""
    whole, parts = MACHINES[name](), MACHINES[name]()
    whole.receive_data(data)
    expected = drain(whole)
    found: list[Any] = []
    while data:
        size = cut.draw(st.integers(1, len(data)))
        parts.receive_data(data[:size])
        data = data[size:]
        found += drain(parts)
        if found and isinstance(found[-1], str):  # who reads stops at an error
            break
    assert found == expected
    assert parts.state is whole.state


# --- reading no more than the message ---


@given(st.lists(addresses_of_replies, min_size=2, max_size=2), st.binary(max_size=50), st.integers(1, 8))
def test_missing_never_reads_payload(bound: list[Address], payload: bytes, most: int) -> None:
    """Reading `missing` octets at a time, or fewer, takes both replies and not one octet of what follows."""
    machine = ClientMachine4()
    assert machine.missing == 0
    machine.send(BIND)
    stream = b"".join(encode_reply4(Reply4(ReplyCode4.GRANTED, address)) for address in bound) + payload
    for address in bound:
        while (message := machine.next_event()) is NEED_DATA:
            size = min(machine.missing, most)
            assert 0 < size <= len(stream)
            machine.receive_data(stream[:size])
            stream = stream[size:]
        assert message == Reply4(ReplyCode4.GRANTED, address)
    assert (stream, machine.trailing_data, machine.missing) == (payload, b"", 0)


@pytest.mark.parametrize("name", CLIENTS)
@given(data=st.one_of(st.binary(min_size=1, max_size=20), likely))
def test_missing_is_never_0_while_a_message_is_incomplete(name: str, data: bytes) -> None:
    """A client that waits for a reply always knows of at least one octet to read, and otherwise of none."""
    machine = CLIENTS[name]()
    machine.receive_data(data)
    found = drain(machine)
    if not (found and isinstance(found[-1], str)):
        assert (machine.missing > 0) == (machine.state in machine.decoders)
