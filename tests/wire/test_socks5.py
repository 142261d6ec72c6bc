"""The SOCKS5 machines of RFC 1928 and RFC 1929: what they read, write and refuse, however the octets arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from pieces import cuts
from tabi.errors import LocalProtocolError, RemoteProtocolError
from tabi.wire.address import UNSPECIFIED, Address, encode_address, parse_host
from tabi.wire.machine import NEED_DATA, Machine, State
from tabi.wire.socks5 import (
    ClientMachine,
    Command,
    Credentials,
    CredentialsReply,
    Greeting,
    Method,
    MethodMessage,
    MethodSelection,
    Reply,
    ReplyCode,
    Request,
    ServerMachine,
    encode_credentials,
    encode_credentials_reply,
    encode_greeting,
    encode_method_selection,
    encode_reply,
    encode_request,
)

NONE, PASSWORD = Greeting(b"\x00"), Greeting(b"\x02")
IPV4 = Address(IPv4Address("192.0.2.1"), 80)
IPV6 = Address(IPv6Address("2001:db8::1"), 443)
NAME = Address("example.com", 443)
LONG_NAME = Address("a" * 255, 65535)
ADDRESSES = (IPV4, IPV6, NAME, LONG_NAME)
ANY_OCTETS = Credentials(bytes(range(255)), bytes(range(1, 256)))
PAYLOAD = b"GET / HTTP/1.1\r\n\r\n\x05\x00\x00\x01"

octets = st.integers(0, 255)
field = st.binary(max_size=255)
hosts = st.one_of(
    st.text("abcxyz019-.", min_size=1, max_size=255).filter(lambda text: isinstance(parse_host(text), str)),
    st.ip_addresses(),
)
addresses = st.builds(Address, hosts, st.integers(0, 65535))
credentials = st.builds(Credentials, field, field)


def read(machine: Machine, pieces: Iterable[bytes]) -> Any:
    """Feed pieces as a reader does, which stops at the first message; what is left over is fed behind it."""
    found: Any = NEED_DATA
    for piece in pieces:
        assert piece
        machine.receive_data(piece)
        if found is NEED_DATA:
            found = machine.next_event()
    return found


def drain(machine: Machine) -> list[Any]:
    """Every message that is there; the last entry is the error's text if it ends with one."""
    found: list[Any] = []
    try:
        while (message := machine.next_event()) is not NEED_DATA:
            found.append(message)
            proceed(machine)
    except RemoteProtocolError as exc:
        found.append(str(exc))
    return found


NEXT: dict[State, Any] = {
    State.GREETING_SEEN: MethodSelection(Method.USERNAME_PASSWORD),
    State.CREDENTIALS_SEEN: CredentialsReply(0),
    State.REQUEST_SEEN: Reply(ReplyCode.SUCCEEDED),
    State.CREDENTIALS: ANY_OCTETS,
    State.REQUEST: Request(Command.BIND, IPV4),
}


def proceed(machine: Any) -> None:
    """Answer so that the conversation goes on."""
    if machine.state in NEXT and machine.state not in machine.decoders:
        machine.send(NEXT[machine.state])


# Machines in each state, built from outside as a conversation would.


def server(*steps: bytes | MethodSelection | CredentialsReply | Reply) -> ServerMachine:
    """A server that was sent octets (bytes) and gave answers (messages)."""
    machine = ServerMachine()
    for step in steps:
        if isinstance(step, bytes):
            machine.receive_data(step)
            machine.next_event()
        else:
            machine.send(step)
    return machine


def client(*steps: bytes | Greeting | Credentials | Request) -> ClientMachine:
    """A client that was sent octets (bytes) and sent messages."""
    machine = ClientMachine()
    for step in steps:
        if isinstance(step, bytes):
            machine.receive_data(step)
            machine.next_event()
        else:
            machine.send(step)
    return machine


SERVER_GREETED = (b"\x05\x01\x02", MethodSelection(2))
SERVER_KNOWN = (b"\x05\x01\x00", MethodSelection(0))
SERVER_CONNECT = (*SERVER_KNOWN, encode_request(Request(1, IPV4)))
SERVER_BIND = (*SERVER_KNOWN, encode_request(Request(2, IPV4)))
CLIENT_GREETED = (PASSWORD, b"\x05\x02")
CLIENT_KNOWN = (NONE, b"\x05\x00")
CLIENT_CONNECT = (*CLIENT_KNOWN, Request(1, IPV4))
CLIENT_BIND = (*CLIENT_KNOWN, Request(2, IPV4))
SUCCESS = encode_reply(Reply(0, IPV4))

SERVERS: dict[str, Callable[[], ServerMachine]] = {
    "greeting": server,
    "greeting seen": lambda: server(b"\x05\x01\x02"),
    "credentials": lambda: server(*SERVER_GREETED),
    "credentials seen": lambda: server(*SERVER_GREETED, b"\x01\x01a\x01b"),
    "request": lambda: server(*SERVER_KNOWN),
    "request seen": lambda: server(*SERVER_CONNECT),
    "second reply": lambda: server(*SERVER_BIND, Reply(0)),
    "open": lambda: server(*SERVER_CONNECT, Reply(0)),
    "closed": lambda: server(*SERVER_CONNECT, Reply(1)),
}
CLIENTS: dict[str, Callable[[], ClientMachine]] = {
    "greeting": client,
    "greeting sent": lambda: client(Greeting(b"\x00\x02")),
    "credentials": lambda: client(*CLIENT_GREETED),
    "credentials sent": lambda: client(*CLIENT_GREETED, ANY_OCTETS),
    "request": lambda: client(*CLIENT_KNOWN),
    "request sent": lambda: client(*CLIENT_CONNECT),
    "bind sent": lambda: client(*CLIENT_BIND),
    "second reply": lambda: client(*CLIENT_BIND, SUCCESS),
    "open": lambda: client(*CLIENT_CONNECT, SUCCESS),
    "closed": lambda: client(*CLIENT_CONNECT, encode_reply(Reply(5))),
}
MACHINES: dict[str, Callable[[], Machine]] = {
    **{f"server, {name}": make for name, make in SERVERS.items()},
    **{f"client, {name}": make for name, make in CLIENTS.items()},
}


# --- messages ---


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (encode_greeting(Greeting(b"\x00\x02")), "05 02 0002"),
        (encode_method_selection(MethodSelection(Method.NO_ACCEPTABLE_METHODS)), "05 ff"),
        (encode_credentials(Credentials(b"alice", b"pw")), "01 05 616c696365 02 7077"),
        (encode_credentials_reply(CredentialsReply(1)), "01 01"),
        (encode_request(Request(Command.CONNECT, IPV4)), "05 01 00 01 c0000201 0050"),
        (encode_request(Request(Command.BIND, NAME)), "05 02 00 03 0b 6578616d706c652e636f6d 01bb"),
        (encode_request(Request(0x80, IPV6)), "05 80 00 04 20010db8000000000000000000000001 01bb"),
        (encode_reply(Reply(ReplyCode.CONNECTION_REFUSED)), "05 05 00 01 00000000 0000"),
        (encode_reply(Reply(ReplyCode.SUCCEEDED, IPV4)), "05 00 00 01 c0000201 0050"),
    ],
)
def test_messages_on_the_wire(written: bytes, expected: str) -> None:
    """Each message is written as its RFC draws it."""
    assert written == bytes.fromhex(expected)


@pytest.mark.parametrize("message", [Credentials(bytes(256), b"x"), Credentials(b"x", bytes(256))], ids=["user", "pw"])
def test_credentials_beyond_255_octets_are_not_written(message: Credentials) -> None:
    """ULEN and PLEN are an octet each; the machine that refused is as it was."""
    machine = client(*CLIENT_GREETED)
    with pytest.raises(ValueError, match="at most 255 octets"):
        machine.send(message)
    assert machine.state is State.CREDENTIALS
    assert machine.send(ANY_OCTETS) == encode_credentials(ANY_OCTETS)


@pytest.mark.parametrize("name", ["", "a" * 256, "bücher"])
def test_a_request_for_an_impossible_name_is_not_sent(name: str) -> None:
    """What cannot be on the wire raises, and the machine is as it was."""
    machine = client(*CLIENT_KNOWN)
    with pytest.raises(ValueError, match=r"."):
        machine.send(Request(1, Address(name, 80)))
    assert machine.state is State.REQUEST


@pytest.mark.parametrize("methods", [b"\x00", b"\x02", b"\x01\x02\x00", bytes(9), bytes(10), bytes(range(255)), b""])
def test_greetings(methods: bytes) -> None:
    """Octet 2 is NMETHODS, from 0 to 255, however the greeting arrives."""
    for pieces in cuts(encode_greeting(Greeting(methods)) + b"\x05"):
        machine = server()
        assert read(machine, pieces) == Greeting(methods)
        assert machine.trailing_data == b"\x05"


@pytest.mark.parametrize(
    "message",
    [
        Credentials(b"alice", b"secret"),
        Credentials(b"", b""),
        Credentials(b"", b"x"),
        Credentials(b"x", b""),
        Credentials(bytes(range(255)), bytes(range(1, 256))),
        Credentials(b"\xff" * 255, b"\x00" * 255),
        Credentials("ü".encode(), b"\x01\x05:@"),
    ],
    ids=["plain", "empty", "no user name", "no password", "all octets", "255+255", "utf-8"],
)
def test_credentials(message: Credentials) -> None:
    """RFC 1929 carries any octets, 0 to 255 of them, however they arrive."""
    for pieces in cuts(encode_credentials(message) + b"\x05"):
        machine = server(*SERVER_GREETED)
        assert read(machine, pieces) == message
        assert machine.trailing_data == b"\x05"


@pytest.mark.parametrize("destination", ADDRESSES, ids=["ipv4", "ipv6", "name", "255"])
@pytest.mark.parametrize("command", [*Command, 0, 9, 255])
def test_requests(command: int, destination: Address) -> None:
    """Every command, known or not, with every type of address, however it arrives; what follows is kept."""
    for pieces in cuts(encode_request(Request(command, destination)) + PAYLOAD):
        machine = server(*SERVER_KNOWN)
        assert read(machine, pieces) == Request(command, destination)
        assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize("bound", ADDRESSES, ids=["ipv4", "ipv6", "name", "255"])
@pytest.mark.parametrize("reply_code", [*ReplyCode, 9, 255])
def test_replies(reply_code: int, bound: Address) -> None:
    """Every reply code, known or not, with every type of address, however it arrives; what follows is kept."""
    for pieces in cuts(encode_reply(Reply(reply_code, bound)) + PAYLOAD):
        machine = client(*CLIENT_CONNECT)
        assert read(machine, pieces) == Reply(reply_code, bound)
        assert machine.state is (State.CLOSED if reply_code else State.OPEN)
        assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize("reserved", [0x01, 0x7F, 0xFF])
def test_the_reserved_octet_is_not_looked_at(reserved: int) -> None:
    """RSV is written as 00 and read as anything, in requests and in replies."""
    data = b"\x05\x00%c" % reserved + encode_address(IPV4)
    for pieces in cuts(data):
        assert read(client(*CLIENT_CONNECT), pieces) == Reply(0, IPV4)
        assert read(server(*SERVER_KNOWN), pieces) == Request(0, IPV4)


@given(addresses, octets, octets)
def test_requests_and_replies_survive_the_wire(address: Address, command: int, reply_code: int) -> None:
    """What one side encodes the other decodes."""
    assert read(server(*SERVER_KNOWN), [encode_request(Request(command, address))]) == Request(command, address)
    assert read(client(*CLIENT_CONNECT), [encode_reply(Reply(reply_code, address))]) == Reply(reply_code, address)


@given(credentials, field, octets, octets)
def test_the_rest_survives_the_wire(message: Credentials, methods: bytes, method: int, status: int) -> None:
    """What one side encodes the other decodes."""
    assert read(server(), [encode_greeting(Greeting(methods))]) == Greeting(methods)
    assert read(server(*SERVER_GREETED), [encode_credentials(message)]) == message
    selection = encode_method_selection(MethodSelection(method))
    assert read(client(Greeting(bytes(range(255)))), [selection]) == MethodSelection(method)
    answer = encode_credentials_reply(CredentialsReply(status))
    assert read(client(*CLIENT_GREETED, ANY_OCTETS), [answer]) == CredentialsReply(status)


def test_no_password_in_any_repr() -> None:
    """Not in repr, str, nor what rich prints, alone or inside something else."""
    message = Credentials(b"alice", b"sekret")
    for text in (repr(message), str(message), f"{[message]}", pretty_repr(message), pretty_repr({"found": message})):
        assert "alice" in text
        assert "sekret" not in text


# --- what peers do wrong ---


@pytest.mark.parametrize("version", [0, 1, 4, 6, 71, 255])
@pytest.mark.parametrize("make", [server, CLIENTS["greeting sent"], CLIENTS["request sent"]])
def test_another_version_is_refused_at_its_octet(make: Callable[[], Machine], version: int) -> None:
    """VER is 05: SOCKS4, HTTP and the like end at their first octet, without waiting for more."""
    machine = make()
    machine.receive_data(bytes((version,)))
    with pytest.raises(RemoteProtocolError, match=f"version {version:#04x}, expected 0x05") as caught:
        machine.next_event()
    assert caught.value.reply_code is None
    assert machine.state is State.CLOSED
    with pytest.raises(RemoteProtocolError):
        machine.next_event()


@pytest.mark.parametrize("make", [SERVERS["credentials"], CLIENTS["credentials sent"]])
def test_another_version_of_the_negotiation_is_refused(make: Callable[[], Machine]) -> None:
    """VER of RFC 1929 is 01; 05, which some clients send, is not."""
    machine = make()
    machine.receive_data(b"\x05")
    with pytest.raises(RemoteProtocolError, match="version 0x05, expected 0x01"):
        machine.next_event()
    assert machine.state is State.CLOSED


@pytest.mark.parametrize(
    ("data", "reply_code"),
    [
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", None),
        (b"\x05\x01\x00\x02\x00\x00", 8),
        (b"\x05\x01\x00\x03\x00\x00\x50", 4),
        (b"\x05\x01\x00\x03\x02a\x00\x00\x50", 4),
        (b"\x05\x01\x00\x03\x02\xff\xff\x00\x50", 4),
        (b"\x05\x01\x00\x03\x06fe80:%\x00\x50", 4),
    ],
    ids=["version", "atyp", "no name", "NUL in a name", "no text", "no address"],
)
def test_a_bad_request_can_still_be_refused_with_a_reply(data: bytes, reply_code: int | None) -> None:
    """RFC 1928 section 6 has a reply for it: the error bears its code, and the machine takes it and then ends."""
    for pieces in cuts(data):
        machine = server(*SERVER_KNOWN)
        with pytest.raises(RemoteProtocolError) as caught:
            read(machine, pieces)
        assert caught.value.reply_code == reply_code
        assert machine.send(Reply(reply_code or 1)) == b"\x05%c\x00\x01\x00\x00\x00\x00\x00\x00" % (reply_code or 1)
        assert machine.state is State.CLOSED


@pytest.mark.parametrize("data", [b"\x05\x00\x00\x02", b"\x05\x00\x00\x03\x00\x00\x50"])
def test_a_bad_reply_ends_the_conversation(data: bytes) -> None:
    """A client has no answer to a reply that it cannot read."""
    machine = client(*CLIENT_CONNECT)
    with pytest.raises(RemoteProtocolError):
        read(machine, [data])
    assert machine.state is State.CLOSED
    assert machine.missing == 0


@pytest.mark.parametrize("method", [0x01, 0x02, 0x80])
def test_only_a_method_that_was_offered_may_be_chosen(method: int) -> None:
    """The server chose something else: the conversation is over."""
    machine = client(NONE)
    with pytest.raises(RemoteProtocolError, match=f"method {method:#04x}, which was not offered"):
        read(machine, [b"\x05%c" % method])
    assert machine.state is State.CLOSED


@pytest.mark.parametrize("name", [name for name, make in MACHINES.items() if make().state in make().decoders])
@pytest.mark.parametrize("begun", [b"", b"\x05", b"\x01"])
def test_a_peer_that_ends_in_the_middle(name: str, begun: bytes) -> None:
    """EOF where a message is due, or within it, is the peer's fault."""
    machine = MACHINES[name]()
    machine.receive_data(begun or b"")
    machine.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match=r"in the middle of|version"):
        machine.next_event()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("server, greeting", "greeting"),
        ("server, request", "request"),
        ("client, greeting sent", "answer to the greeting"),
        ("client, request sent", "answer to the request"),
        ("client, second reply", "second reply"),
    ],
)
def test_an_end_in_the_middle_says_of_what(name: str, what: str) -> None:
    """Whoever reads the error knows how far the conversation came."""
    machine = MACHINES[name]()
    machine.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match=f"^the peer ended in the middle of the {what}$"):
        machine.next_event()


@pytest.mark.parametrize("make", [SERVERS["open"], CLIENTS["open"], SERVERS["request seen"]])
def test_eof_behind_the_last_message_is_not_the_machines_business(make: Callable[[], Machine]) -> None:
    """Payload and its end belong to the relay."""
    machine = make()
    machine.receive_data(PAYLOAD)
    machine.receive_data(b"")
    assert machine.next_event() is NEED_DATA
    assert machine.trailing_data == PAYLOAD


# --- a client and a server joined in memory ---


def deliver(data: bytes, to: Machine, message: Any) -> None:
    """Carry octets to the other side, octet by octet, where they are the message that was sent."""
    assert read(to, [data[at : at + 1] for at in range(len(data))]) == message


def join(greeting: Greeting, method: int) -> tuple[ClientMachine, ServerMachine]:
    """Both sides behind the negotiation of the method."""
    ours, theirs = ClientMachine(), ServerMachine()
    deliver(ours.send(greeting), theirs, greeting)
    deliver(theirs.send(MethodSelection(method)), ours, MethodSelection(method))
    return ours, theirs


def log_in(ours: ClientMachine, theirs: ServerMachine, status: int = 0) -> None:
    """Carry out RFC 1929."""
    deliver(ours.send(ANY_OCTETS), theirs, ANY_OCTETS)
    deliver(theirs.send(CredentialsReply(status)), ours, CredentialsReply(status))


@pytest.mark.parametrize("with_password", [False, True])
@pytest.mark.parametrize("address", ADDRESSES, ids=["ipv4", "ipv6", "name", "255"])
@pytest.mark.parametrize("command", [Command.CONNECT, Command.UDP_ASSOCIATE])
def test_a_conversation(command: Command, address: Address, with_password: bool) -> None:
    """From the greeting to the payload, with and without a password, to every type of address."""
    ours, theirs = join(Greeting(b"\x00\x02"), 2 if with_password else 0)
    if with_password:
        log_in(ours, theirs)
    deliver(ours.send(Request(command, address)), theirs, Request(command, address))
    deliver(theirs.send(Reply(0, address)), ours, Reply(0, address))
    assert (ours.state, theirs.state) == (State.OPEN, State.OPEN)
    assert (ours.missing, ours.trailing_data, theirs.trailing_data) == (0, b"", b"")


@pytest.mark.parametrize("second", [0, 1, 6])
def test_bind_has_two_replies(second: int) -> None:
    """RFC 1928 section 6: the first says where the server listens, the second who came, or why nobody did."""
    ours, theirs = join(NONE, 0)
    deliver(ours.send(Request(Command.BIND, IPV4)), theirs, Request(Command.BIND, IPV4))
    deliver(theirs.send(Reply(0, IPV4)), ours, Reply(0, IPV4))
    assert (ours.state, theirs.state) == (State.SECOND_REPLY, State.SECOND_REPLY)
    assert theirs.next_event() is NEED_DATA
    deliver(theirs.send(Reply(second, IPV6)), ours, Reply(second, IPV6))
    end = State.CLOSED if second else State.OPEN
    assert (ours.state, theirs.state) == (end, end)


def test_both_replies_of_bind_in_one_read() -> None:
    """A peer that comes at once: both replies and its first octets arrive together."""
    first, second = Reply(0, IPV4), Reply(0, NAME)
    for pieces in cuts(encode_reply(first) + encode_reply(second) + PAYLOAD):
        machine = client(*CLIENT_BIND)
        assert read(machine, pieces) == first
        assert machine.next_event() == second
        assert machine.next_event() is NEED_DATA
        assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize("command", Command)
def test_a_failure_is_the_end(command: Command) -> None:
    """RFC 1928 section 6: after a failure there is nothing more, for BIND neither."""
    ours, theirs = join(NONE, 0)
    deliver(ours.send(Request(command, NAME)), theirs, Request(command, NAME))
    deliver(theirs.send(Reply(5)), ours, Reply(5, UNSPECIFIED))
    assert (ours.state, theirs.state) == (State.CLOSED, State.CLOSED)


@pytest.mark.parametrize("status", [1, 2, 255])
def test_a_refused_password_is_the_end(status: int) -> None:
    """RFC 1929 section 2: any status but 0 closes the connection."""
    ours, theirs = join(PASSWORD, 2)
    log_in(ours, theirs, status)
    assert (ours.state, theirs.state) == (State.CLOSED, State.CLOSED)


def test_no_acceptable_method_is_the_end() -> None:
    """FF refuses all methods, whether it was offered or not."""
    ours, theirs = join(Greeting(b"\x00\x01\x80"), 0xFF)
    assert (ours.state, theirs.state) == (State.CLOSED, State.CLOSED)


def token_length(octets: bytearray) -> int:
    """Messages of a method as in RFC 1961 section 3: VER 1, MTYP 1, LEN 2, TOKEN; at most 1,000 octets here."""
    if octets[0] != 1:
        raise RemoteProtocolError(f"token: version {octets[0]:#04x}, expected 0x01")
    if len(octets) < 4:
        return 4
    length = 4 + int.from_bytes(octets[2:4], "big")
    if length > 1000:
        raise RemoteProtocolError(f"token: {length} octets, expected 1000 at most")
    return length


def token(text: bytes) -> MethodMessage:
    """A message that `token_length` can read."""
    return MethodMessage(b"\x01\x01" + len(text).to_bytes(2, "big") + text)


def negotiating() -> tuple[ClientMachine, ServerMachine]:
    """A client and a server that have chosen a method with messages of its own."""
    ours, theirs = join(Greeting(b"\x00\x01"), 1)
    assert (ours.state, theirs.state) == (State.NEGOTIATION, State.NEGOTIATION)
    ours.negotiate(token_length)
    theirs.negotiate(token_length)
    return ours, theirs


def test_a_method_negotiates_by_messages_of_its_own() -> None:
    """Any number of messages go both ways between the choice of the method and the request, which follows as ever."""
    ours, theirs = negotiating()
    for text in (b"", b"hello", b"x" * 500):
        deliver(ours.send(token(text)), theirs, token(text))
        deliver(theirs.send(token(text[::-1])), ours, token(text[::-1]))
    ours.negotiated()
    theirs.negotiated()
    deliver(ours.send(Request(Command.CONNECT, IPV4)), theirs, Request(Command.CONNECT, IPV4))
    deliver(theirs.send(Reply(0, IPV4)), ours, Reply(0, IPV4))
    assert (ours.state, theirs.state) == (State.OPEN, State.OPEN)


def test_a_negotiation_takes_no_octet_of_what_follows() -> None:
    """Each message is there when its last octet is, however it was split; ``missing`` asks for no more than it has."""
    first, second = token(b"one"), token(b"two")
    octets = first.octets + second.octets + encode_request(Request(Command.CONNECT, NAME))
    for pieces in cuts(octets):
        _, theirs = negotiating()
        assert read(theirs, pieces) == first
        assert theirs.next_event() == second
        theirs.negotiated()
        assert theirs.next_event() == Request(Command.CONNECT, NAME)
    ours, _ = negotiating()
    assert ours.missing == 1
    for place in range(len(first.octets)):
        ours.receive_data(first.octets[place : place + 1])
        assert ours.missing <= len(first.octets) - place - 1
    assert ours.next_event() == first


@pytest.mark.parametrize(
    ("octets", "text"),
    [(b"\x02", "version 0x02"), (b"\x01\x01\xff\xff", "65539 octets"), (b"\x01\x01", "ended in the middle")],
)
def test_a_broken_negotiation_is_the_end(octets: bytes, text: str) -> None:
    """What is not a message of the method, is too long, or ends too early, ends the conversation for good."""
    for machine in negotiating():
        machine.receive_data(octets)
        machine.receive_data(b"")
        for why in (text, "the conversation is over"):
            with pytest.raises(RemoteProtocolError, match=why):
                machine.next_event()


def test_a_negotiation_belongs_behind_its_choice() -> None:
    """Nothing is negotiated where another method was chosen, and no request is sent before the method says so."""
    ours, theirs = join(NONE, 0)
    for machine in (ours, theirs):
        with pytest.raises(LocalProtocolError, match="cannot negotiate in state REQUEST"):
            machine.negotiate(token_length)
        with pytest.raises(LocalProtocolError, match="nothing was negotiated in state REQUEST"):
            machine.negotiated()
    ours, theirs = negotiating()
    with pytest.raises(LocalProtocolError, match="cannot send Request in state NEGOTIATION"):
        ours.send(Request(Command.CONNECT, IPV4))
    with pytest.raises(LocalProtocolError, match="cannot send Reply in state NEGOTIATION"):
        theirs.send(Reply(0))
    assert "secret" not in repr(token(b"secret"))


def test_a_client_that_does_not_wait() -> None:
    """Greeting, password, request and payload in one read: each is there when it is asked for, none is lost."""
    message = Request(Command.CONNECT, NAME)
    theirs = ServerMachine()
    theirs.receive_data(
        encode_greeting(PASSWORD) + encode_credentials(ANY_OCTETS) + encode_request(message) + PAYLOAD,
    )
    assert theirs.next_event() == PASSWORD
    assert theirs.next_event() is NEED_DATA, "the next message waits for the answer to this one"
    theirs.send(MethodSelection(2))
    assert theirs.next_event() == ANY_OCTETS
    theirs.send(CredentialsReply(0))
    assert theirs.next_event() == message
    theirs.send(Reply(0))
    assert theirs.trailing_data == PAYLOAD
    assert theirs.next_event() is NEED_DATA


# --- what callers do wrong ---

MESSAGES: tuple[Any, ...] = (
    NONE,
    MethodSelection(0),
    ANY_OCTETS,
    CredentialsReply(0),
    Request(Command.CONNECT, IPV4),
    Reply(0),
)
FITTING: dict[str, type] = {
    "server, greeting seen": MethodSelection,
    "server, credentials seen": CredentialsReply,
    "server, request seen": Reply,
    "server, second reply": Reply,
    "client, greeting": Greeting,
    "client, credentials": Credentials,
    "client, request": Request,
}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
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

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=8)
version_first = st.builds(bytes.__add__, st.sampled_from([b"\x05", b"\x01", b"\x05\x00\x00"]), st.binary(max_size=300))


@pytest.mark.parametrize("name", MACHINES)
@given(pieces=st.one_of(chunks, version_first.map(lambda data: [data])), ended=st.booleans())
def test_from_any_octets_come_messages_or_remote_protocol_error(name: str, pieces: list[bytes], ended: bool) -> None:
    """The contract of the machines, in every state: nothing else is raised, whatever the peer sends."""
    machine = MACHINES[name]()
    for piece in [*pieces, b""] if ended else pieces:
        machine.receive_data(piece)
        for message in drain(machine):
            assert isinstance(message, (*map(type, MESSAGES), str))


@pytest.mark.parametrize("name", MACHINES)
@given(data=st.one_of(st.binary(min_size=1, max_size=60), version_first), cut=st.data())
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


def read_missing(machine: ClientMachine, stream: bytes) -> tuple[Any, bytes]:
    """Read as a client with nowhere to put payload does: exactly `missing` octets at a time."""
    while (message := machine.next_event()) is NEED_DATA:
        size = machine.missing
        assert 0 < size <= len(stream)
        machine.receive_data(stream[:size])
        stream = stream[size:]
    return message, stream


@given(addresses, addresses, st.binary(max_size=50))
def test_missing_never_reads_payload(first: Address, second: Address, payload: bytes) -> None:
    """Reading `missing` octets at a time takes the whole conversation and not one octet of what follows."""
    machine = ClientMachine()
    assert machine.missing == 0
    machine.send(Greeting(b"\x00\x02"))
    stream = b"\x05\x02\x01\x00" + encode_reply(Reply(0, first)) + encode_reply(Reply(0, second)) + payload
    message, stream = read_missing(machine, stream)
    assert (message, machine.missing) == (MethodSelection(2), 0)
    machine.send(ANY_OCTETS)
    message, stream = read_missing(machine, stream)
    assert (message, machine.missing) == (CredentialsReply(0), 0)
    machine.send(Request(Command.BIND, IPV4))
    message, stream = read_missing(machine, stream)
    assert message == Reply(0, first)
    message, stream = read_missing(machine, stream)
    assert message == Reply(0, second)
    assert (stream, machine.trailing_data, machine.missing) == (payload, b"", 0)


@pytest.mark.parametrize("name", CLIENTS)
@given(data=st.one_of(st.binary(min_size=1, max_size=20), version_first))
def test_missing_is_never_0_while_a_message_is_incomplete(name: str, data: bytes) -> None:
    """A client that waits for a message always knows of at least one octet to read."""
    machine = CLIENTS[name]()
    waits = machine.state in machine.decoders
    machine.receive_data(data)
    found = drain(machine)
    if found and isinstance(found[-1], str):
        return
    assert (machine.missing > 0) == (machine.state in machine.decoders)
    if not waits:
        assert machine.missing == 0
