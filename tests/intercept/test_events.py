"""What hooks are given beside flows."""

from __future__ import annotations

import ssl

import pytest

from hellos import client_hello
from tabi.intercept.events import ClientHelloInfo, Connection, DatagramInfo, TlsInfo, WebSocketMessage
from tabi.wire.client_hello import decode_client_hello
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


class Named:
    """A fingerprint that says how long a hello was."""

    name = "mirror"

    def make(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def differs(self, sent: bytes) -> str:
        return "" if sent == SENT else "all"


SENT = client_hello("www.example.com")


def test_what_a_destination_was_sent() -> None:
    """It is read from the octets when it is asked for; without these nothing is known."""
    hello = decode_client_hello(SENT)
    assert hello is not None
    tls: ssl.SSLObject = None  # type: ignore[assignment]  # nothing of it is asked for
    assert TlsInfo(tls, hello, "good").sent == (None, None, None, None)
    assert TlsInfo(tls, hello, "good", SENT).sent == (hello.ja3, hello.ja4, None, None)
    assert TlsInfo(tls, hello, "good", SENT, Named()).sent == (hello.ja3, hello.ja4, "mirror", None)
    info = TlsInfo(tls, hello, "good", client_hello("b.example"), Named())
    assert info.sent.differs == "all"
    assert info.sent is info.sent


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
