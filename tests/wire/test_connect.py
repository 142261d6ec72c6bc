"""CONNECT as a client asks for it: what is written, what is read, however it arrives, and what is no answer."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieces import cuts
from tabi.errors import LocalProtocolError, RemoteProtocolError
from tabi.wire.address import Address
from tabi.wire.connect import (
    ANSWER_LIMIT,
    MAX_INTERIM,
    ConnectAnswer,
    ConnectMachine,
    ConnectRequest,
    OptionsRequest,
    encode_connect,
)
from tabi.wire.http import decode_basic, decode_request
from tabi.wire.machine import NEED_DATA, State
from tabi.wire.socks5 import Credentials

NAME = Address("example.com", 443)
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
PAYLOAD = b"SSH-2.0-example\r\n\r\nHTTP/1.1 100 x\r\n\r\n"


def asked() -> ConnectMachine:
    """A machine that has sent its request."""
    machine = ConnectMachine()
    machine.send(ConnectRequest(NAME))
    return machine


def read(machine: ConnectMachine, pieces: Iterable[bytes]) -> Any:
    """Feed pieces as a reader does, which stops at the answer; what is left over is fed behind it."""
    found: Any = NEED_DATA
    for piece in filter(None, pieces):
        machine.receive_data(piece)
        if found is NEED_DATA:
            found = machine.next_event()
    return found


# --- the request ---


@pytest.mark.parametrize(
    ("destination", "authority"),
    [
        (NAME, b"example.com:443"),
        (Address("xn--bcher-kva.example", 80), b"xn--bcher-kva.example:80"),
        (Address(IPv4Address("192.0.2.1"), 0), b"192.0.2.1:0"),
        (Address(IPv6Address("2001:db8::1"), 65535), b"[2001:db8::1]:65535"),
    ],
)
def test_a_request(destination: Address, authority: bytes) -> None:
    """The target is the authority, port included, and Host says the same (RFC 9110 section 7.2)."""
    head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)
    assert ConnectMachine().send(ConnectRequest(destination)) == head + b"\r\n"
    login = Credentials(b"alice", b"open sesame")
    basic = b"Proxy-Authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU=\r\n\r\n"
    assert encode_connect(ConnectRequest(destination, login)) == head + basic


@pytest.mark.parametrize("host", ["a b", "a\r\nX: y", "a/b", "ä", "a%00", "user@host", "[::1", ""])
def test_a_host_that_would_break_the_request_is_not_written(host: str) -> None:
    """Nothing of what a client names as its destination becomes a line of its own; the state stays."""
    machine = ConnectMachine()
    with pytest.raises(ValueError, match="not a host that can be written"):
        machine.send(ConnectRequest(Address(host, 80)))
    assert machine.state is State.REQUEST


@pytest.mark.parametrize(
    ("login", "words"),
    [
        (Credentials(b"al:ice", b"hunter2"), "a colon"),
        (Credentials(b"ali\nce", b"hunter2"), "control characters"),
        (Credentials(b"alice", b"hunter2\r"), "control characters"),
    ],
)
def test_credentials_that_basic_cannot_say(login: Credentials, words: str) -> None:
    """RFC 7617 section 2; the message holds neither."""
    with pytest.raises(ValueError, match=words) as caught:
        encode_connect(ConnectRequest(NAME, login))
    assert "hunter2" not in str(caught.value)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60).map(str.encode)
hosts = st.one_of(st.text("abcxyz019-.", min_size=1, max_size=60).map("a".__add__), st.ip_addresses())


@given(hosts, st.integers(1, 65535), texts.map(lambda text: text.replace(b":", b"")), texts)
def test_a_server_reads_what_was_written(host: Any, port: int, username: bytes, password: bytes) -> None:
    """Our own server finds the same destination and the same user, whatever characters these have."""
    octets = encode_connect(ConnectRequest(Address(host, port), Credentials(username, password)))
    found = decode_request(octets)
    assert found is not None
    request, end = found
    assert end == len(octets)
    assert (request.method, request.destination) == ("CONNECT", (host, port))
    assert decode_basic(request.authorization or b"") == (username, password)


# --- the answer ---


@pytest.mark.parametrize(
    ("octets", "answer", "state"),
    [
        (ESTABLISHED, ConnectAnswer(200), State.OPEN),
        (b"HTTP/1.0 200 OK\r\n\r\n", ConnectAnswer(200), State.OPEN),
        (b"HTTP/1.1 200\r\n\r\n", ConnectAnswer(200), State.OPEN),
        (b"HTTP/1.1 299 Content-Length means nothing\r\nContent-Length: 5\r\n\r\n", ConnectAnswer(299), State.OPEN),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ConnectAnswer(200), State.OPEN),
        (b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" + ESTABLISHED, ConnectAnswer(200), State.OPEN),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_INTERIM + ESTABLISHED, ConnectAnswer(200), State.OPEN),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", ConnectAnswer(101), State.CLOSED),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://a/\r\n\r\n", ConnectAnswer(301), State.CLOSED),
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", ConnectAnswer(407), State.CLOSED),
        (
            b"HTTP/1.1 502 No\r\nProxy-Status: tabi; error=dns_error\r\n\r\n",
            ConnectAnswer(502, "dns_error"),
            State.CLOSED,
        ),
        (
            b"HTTP/1.1 502 No\r\nPROXY-STATUS: a;\terror=one; x=y, b; error=two\r\n\r\n",
            ConnectAnswer(502, "one"),
            State.CLOSED,
        ),
        (b'HTTP/1.1 502 No\r\nProxy-Status: a; error="text"\r\n\r\n', ConnectAnswer(502), State.CLOSED),
        (b"HTTP/1.1 502 No\r\nProxy-Status: a; error=UP\r\nA: ;error=x\r\n\r\n", ConnectAnswer(502), State.CLOSED),
    ],
)
def test_an_answer(octets: bytes, answer: ConnectAnswer, state: State) -> None:
    """However it is cut: status and error, and every octet behind it is left."""
    for pieces in cuts(octets + PAYLOAD):
        machine = asked()
        assert read(machine, pieces) == answer
        assert machine.state is state
        assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize(
    "octets",
    [
        b"\x05\x00",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 400 No\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * ANSWER_LIMIT,
        b"x" * ANSWER_LIMIT,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 2),
    ],
)
def test_what_is_no_answer(octets: bytes) -> None:
    """It is refused, and the conversation stays broken."""
    machine = asked()
    machine.receive_data(octets)
    with pytest.raises(RemoteProtocolError):
        machine.next_event()
    assert machine.state is State.CLOSED
    with pytest.raises(RemoteProtocolError, match="over"):
        machine.next_event()


@pytest.mark.parametrize("octets", [b"", b"HTTP/1.1 2", ESTABLISHED[:-1], b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_end_in_the_middle(octets: bytes) -> None:
    """The proxy has not answered."""
    machine = asked()
    for piece in (octets, b""):
        machine.receive_data(piece)
    with pytest.raises(RemoteProtocolError, match="the peer ended in the middle of the answer to the request"):
        machine.next_event()


def test_the_order() -> None:
    """Nothing is read before the request, and nothing sent behind it."""
    machine = ConnectMachine()
    machine.receive_data(ESTABLISHED)
    assert machine.next_event() is NEED_DATA
    machine.send(ConnectRequest(NAME))
    with pytest.raises(LocalProtocolError, match="cannot send ConnectRequest in state REQUEST_SENT"):
        machine.send(ConnectRequest(NAME))
    assert machine.next_event() == ConnectAnswer(200)
    machine.receive_data(PAYLOAD)
    assert machine.next_event() is NEED_DATA
    assert machine.trailing_data == PAYLOAD


@pytest.mark.parametrize("login", [None, Credentials(b"alice", b"hunter2")], ids=["nobody", "alice"])
def test_a_request_for_the_proxy_itself(login: Credentials | None) -> None:
    """It names a host that does not exist, and says that nobody may pass it on; then it is as any other."""
    machine = ConnectMachine()
    octets = machine.send(OptionsRequest(login))
    field = b"" if login is None else b"Proxy-Authorization: Basic YWxpY2U6aHVudGVyMg==\r\n"
    head = b"OPTIONS http://tabi.invalid/ HTTP/1.1\r\nHost: tabi.invalid\r\nMax-Forwards: 0\r\nConnection: close\r\n"
    assert octets == head + field + b"\r\n"
    machine.receive_data(b"HTTP/1.1 501 Not Implemented\r\n\r\n")
    assert machine.next_event() == ConnectAnswer(501)


pieces_of_heads = st.sampled_from(
    [
        b"HTTP/1.1 ",
        b"HTTP/1.0 ",
        b"100 ",
        b"200 ",
        b"407",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"A: b",
        b"Proxy-Status: a;error=x",
    ]
)


@given(st.lists(pieces_of_heads | st.binary(max_size=8), max_size=12), st.booleans())
def test_any_octets_are_an_answer_or_remote_protocol_error(pieces: list[bytes], ended: bool) -> None:
    """Nothing else is raised, and how the octets are cut changes nothing."""

    def outcome(parts: Iterable[bytes]) -> object:
        machine = asked()
        try:
            found = read(machine, parts)
            if ended and found is NEED_DATA:
                found = read(machine, [b""])
        except RemoteProtocolError as exc:
            return str(exc)
        return found, machine.state, machine.trailing_data

    data = b"".join(pieces)
    assert outcome([data]) == outcome(data[at : at + 1] for at in range(len(data)))
