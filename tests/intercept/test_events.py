"""What hooks are given beside flows."""

from __future__ import annotations

import pytest

from tabi.intercept.events import ClientHelloInfo, Connection, DatagramInfo, DnsInfo, WebSocketMessage

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
    """It says what it carries, never shows it, and can be dropped."""
    dns = DnsInfo(7, False, "example.com", 1, 0, ())
    datagram = DatagramInfo(CONNECTION, "up", b"secret", dns)
    assert datagram.dns is dns
    assert datagram.quic is None
    assert repr(datagram) == "<DatagramInfo up 6 octets>"
    datagram.drop()
    assert datagram.dropped


def test_a_connection() -> None:
    """What it shows of itself holds no user."""
    assert repr(CONNECTION) == "<Connection 1a example.com:443>"
    CONNECTION.store["seen"] = 1
    assert CONNECTION.tls is None
