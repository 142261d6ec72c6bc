"""What hooks are given beside flows: TLS, connections, messages of WebSocket, datagrams.

    client_hello(self, hello: ClientHelloInfo)
    tls_established(self, tls: TlsInfo, connection: Connection)
    websocket_message(self, flow: Flow, message: WebSocketMessage)
    tcp_data(self, connection: Connection, direction: str, data: bytes) -> bytes | None
    udp_data(self, datagram: DatagramInfo)

``up`` is from the client to the destination, ``down`` the other way.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tabi.wire.client_hello import ClientHello, decode_client_hello
from tabi.wire.dns_message import DnsInfo, decode_message

DNS_PORT = 53

if TYPE_CHECKING:
    from tabi.intercept.fingerprints import TlsFingerprint

Direction = Literal["up", "down"]


class Sent(NamedTuple):
    """The hello that a destination was sent.

    Attributes:
        ja3, ja4: its fingerprints, read from the octets that were sent.
        fingerprint: the one that it was to have, such as ``mirror`` or ``chrome:stable``.
        differs: what of that is not so, in words; None if all is.
    """

    ja3: str | None = None
    ja4: str | None = None
    fingerprint: str | None = None
    differs: str | None = None


class TlsInfo:
    """What is known of TLS with both sides. It is read when it is asked for.

    Args:
        tls: with the destination.
        hello: of the client.
        verdict: ``good``, or what is wrong with the certificate.
        sent: our hello to the destination, if it was kept.
        fingerprint: that it was to have.
    """

    __slots__ = ("_fingerprint", "_hello", "_octets", "_sent", "_tls", "verdict")

    def __init__(
        self,
        tls: ssl.SSLObject,
        hello: ClientHello,
        verdict: str,
        sent: bytes = b"",
        fingerprint: TlsFingerprint | None = None,
    ) -> None:
        self._tls = tls
        self._hello = hello
        self.verdict = verdict
        self._octets = sent
        self._fingerprint = fingerprint
        self._sent: Sent | None = None

    def __repr__(self) -> str:
        return f"<TlsInfo {self.sni} {self.version} {self.alpn} {self.verdict}>"

    @property
    def sni(self) -> str | None:
        """The name that the client asked for."""
        return self._hello.sni

    @property
    def alpn(self) -> str | None:
        """The protocol that was chosen, such as ``h2``."""
        return self._tls.selected_alpn_protocol()

    @property
    def version(self) -> str | None:
        """With the destination, such as ``TLSv1.3``."""
        return self._tls.version()

    @property
    def cipher(self) -> str | None:
        """With the destination."""
        cipher = self._tls.cipher()
        return None if cipher is None else cipher[0]

    @property
    def certificate(self) -> bytes | None:
        """The destination's certificate, in DER."""
        return self._tls.getpeercert(True)

    @property
    def ja4(self) -> str:
        """The fingerprint of the client's hello."""
        return self._hello.ja4

    @property
    def sent(self) -> Sent:
        """What the destination saw of us: known where there is a fingerprint to show, or a record is made."""
        if self._sent is None:
            hello = decode_client_hello(self._octets) if self._octets else None
            one = self._fingerprint
            self._sent = Sent(
                None if hello is None else hello.ja3,
                None if hello is None else hello.ja4,
                None if one is None else one.name,
                None if one is None else one.differs(self._octets) or None,
            )
        return self._sent


class Connection:
    """One connection of a client to a destination, of which flows may be or not.

    Attributes:
        id: unique while the server runs.
        client: address and port of the client.
        user: the client's user, None where there is none.
        listener: the URL of the listener.
        host, port: the destination that the client asked for.
        tls: None without TLS, and before it is established.
        store: a place for what hooks want to remember of a connection.
    """

    __slots__ = ("client", "host", "id", "listener", "port", "store", "tls", "user")

    def __init__(
        self,
        number: str,
        client: tuple[str, int],
        user: str | None,
        listener: str,
        host: str,
        port: int,
        tls: TlsInfo | None = None,
    ) -> None:
        self.id = number
        self.client = client
        self.user = user
        self.listener = listener
        self.host = host
        self.port = port
        self.tls = tls
        self.store: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.host}:{self.port}>"


class ClientHelloInfo:
    """A client's first message of TLS, before anything is answered.

    Attributes:
        connection: of the client.
        sni: the name that it asks for, None where it names none.
        alpn: the protocols that it offers, such as ``("h2", "http/1.1")``.
        ja4: its fingerprint.
        action: ``intercept``, or what a hook has chosen. The last hook has the last word.
    """

    __slots__ = ("action", "alpn", "connection", "ja4", "sni")

    def __init__(self, connection: Connection, sni: str | None, alpn: tuple[str, ...], ja4: str | None) -> None:
        self.connection = connection
        self.sni = sni
        self.alpn = alpn
        self.ja4 = ja4
        self.action: Literal["intercept", "pass", "drop"] = "intercept"

    def __repr__(self) -> str:
        return f"<ClientHelloInfo {self.name}>"

    @property
    def name(self) -> str:
        """The name that is meant: that of SNI, else the host of the request."""
        return self.sni or self.connection.host

    @property
    def client(self) -> tuple[str, int]:
        """Address and port of the client."""
        return self.connection.client

    @property
    def host(self) -> str:
        """The destination that the client asked the proxy for."""
        return self.connection.host

    @property
    def port(self) -> int:
        """Its port."""
        return self.connection.port

    def pass_through(self) -> None:
        """Do not look into this connection: it is relayed as it is."""
        self.action = "pass"

    def drop(self) -> None:
        """End the connection."""
        self.action = "drop"


class WebSocketMessage:
    """One message of WebSocket, put together from its frames. A hook may change or drop it.

    Attributes:
        direction: ``up`` or ``down``.
        is_text: else it is binary.
        content: its octets; of a text in UTF-8.
        dropped: whether it is not sent on.
    """

    __slots__ = ("_content", "direction", "dropped", "is_text")

    def __init__(self, direction: Direction, is_text: bool, content: bytes) -> None:
        self.direction: Direction = direction
        self.is_text = is_text
        self._content = content
        self.dropped = False

    def __repr__(self) -> str:
        return f"<WebSocketMessage {self.direction} {len(self.content)} octets>"

    @property
    def content(self) -> bytes:
        """Its octets."""
        return self._content

    @content.setter
    def content(self, content: bytes) -> None:
        """Send other octets. Raises TypeError for anything else."""
        if not isinstance(content, bytes | bytearray | memoryview):
            raise TypeError(f"content is {type(content).__name__}, expected bytes; text goes to .text")
        self._content = bytes(content)

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode("utf-8", "replace")

    @text.setter
    def text(self, text: str) -> None:
        """Send another text. Raises ValueError for lone surrogates."""
        self.content = text.encode()

    def drop(self) -> None:
        """Do not send it on."""
        self.dropped = True


class QuicInfo(NamedTuple):
    """What the ClientHello of a QUIC connection says."""

    version: int
    sni: str | None
    alpn: tuple[str, ...]
    ja4: str


class DatagramInfo:
    """One datagram of an association. A hook may change or drop it.

    Attributes:
        connection: of the association and this destination; host and port are what the client has asked for, or of a
            sender that it did not ask for its own.
        direction: ``up`` or ``down``.
        payload: its octets.
        quic: what the client's hello says, in the datagrams that begin a connection of QUIC: from that on with which
            the hello is whole. Else None.
        dropped: whether it is not sent on.
    """

    __slots__ = ("_decoded", "_payload", "connection", "direction", "dropped", "quic")

    def __init__(
        self, connection: Connection, direction: Direction, payload: bytes, quic: QuicInfo | None = None
    ) -> None:
        self.connection = connection
        self.direction: Direction = direction
        self._payload = payload
        self._decoded: tuple[bytes, DnsInfo | None] | None = None
        self.quic = quic
        self.dropped = False

    def __repr__(self) -> str:
        return f"<DatagramInfo {self.direction} {len(self._payload)} octets>"

    @property
    def payload(self) -> bytes:
        """Its octets. Another value is sent in their place; TypeError is raised if it is not octets."""
        return self._payload

    @payload.setter
    def payload(self, payload: bytes) -> None:
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise TypeError(f"the payload is {type(payload).__name__}, expected bytes")
        self._payload = bytes(payload)

    @property
    def dns(self) -> DnsInfo | None:
        """What it says as a message of DNS: of port 53, whoever sends it. It is read when it is asked for."""
        if self.connection.port != DNS_PORT:
            return None
        if self._decoded is None or self._decoded[0] is not self._payload:
            self._decoded = self._payload, decode_message(self._payload)
        return self._decoded[1]

    def drop(self) -> None:
        """Do not send it on."""
        self.dropped = True
