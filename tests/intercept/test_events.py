"""What hooks are given beside flows."""

from __future__ import annotations

import pytest

from tabi.intercept.events import ClientHelloInfo, Connection, DatagramInfo, WebSocketMessage
from tabi.wire.dns import encode_message, encode_question

CONNECTION = Connection("1a", ("192.0.2.7", 4000), "alice", "socks5://127.0.0.1:1080", "example.com", 443)


def test_a_hello() -> None:
    """It is known by the name of SNI, else by the request's; the last hook decides."""
    hello = ClientHelloInfo(CONNECTION, "www.example.com", ("h2", "http/1.1"), "t13d")
    assert (hello.name, hello.host, hello.port, hello.client) == (
        "www.example.com",
        "example.com",
        443,
        ("192.0.2.7", 4000),
    )
    assert ClientHelloInfo(CONNECTION, None, (), None).name == "example.com"
    actions: list[str] = [hello.action]
    hello.drop()
    actions.append(hello.action)
    hello.pass_through()
    actions.append(hello.action)
    assert actions == ["intercept", "drop", "pass"]
    assert repr(hello) == "<ClientHelloInfo www.example.com>"


def test_a_message() -> None:
    """Its text is its content, and back; octets that are no text are shown as far as they are."""
    message = WebSocketMessage("up", True, "häuser".encode())
    assert message.text == "häuser"
    message.text = "ü"
    assert message.content == b"\xc3\xbc"
    with pytest.raises(ValueError, match="surrogates"):
        message.text = "\ud800"
    message.content = b"\xff"
    assert message.text == "\ufffd"
    message.content = bytearray(b"\xfe")  # type: ignore[assignment]
    assert type(message.content) is bytes
    with pytest.raises(TypeError, match=r"^content is str, expected bytes; text goes to \.text$"):
        message.content = "text"  # type: ignore[assignment]
    assert message.content == b"\xfe"
    message.drop()
    assert message.dropped
    assert repr(message) == "<WebSocketMessage up 1 octets>"


def test_a_datagram() -> None:
    """It never shows what it carries, takes octets alone, and can be dropped."""
    datagram = DatagramInfo(CONNECTION, "up", b"secret")
    assert (datagram.dns, datagram.quic) == (None, None)
    assert repr(datagram) == "<DatagramInfo up 6 octets>"
    datagram.payload = bytearray(b"other")  # type: ignore[assignment]
    assert datagram.payload == b"other"
    assert type(datagram.payload) is bytes
    with pytest.raises(TypeError, match="the payload is str, expected bytes"):
        datagram.payload = "text"  # type: ignore[assignment]
    datagram.drop()
    assert datagram.dropped


def test_a_datagram_of_dns() -> None:
    """It is read when somebody asks, once, and again when the payload is another one; at port 53 alone."""
    message = encode_message(7, encode_question("example.com", 1))
    resolver = Connection("1a", ("192.0.2.7", 4000), None, "socks5://127.0.0.1:1080", "192.0.2.53", 53)
    datagram = DatagramInfo(resolver, "up", message)
    first = datagram.dns
    assert first is not None
    assert (first.id, first.name) == (7, "example.com")
    assert datagram.dns is first
    datagram.payload = message[:-1]
    assert datagram.dns is None
    assert DatagramInfo(CONNECTION, "up", message).dns is None


def test_a_connection() -> None:
    """What it shows of itself holds no user."""
    assert repr(CONNECTION) == "<Connection 1a example.com:443>"
    CONNECTION.store["seen"] = 1
    assert CONNECTION.tls is None
