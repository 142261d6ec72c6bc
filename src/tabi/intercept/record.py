"""What is kept of a flow when it has ended: its record."""

from __future__ import annotations

import msgspec

Fields = list[tuple[bytes, bytes]]
"""The fields of a head in their order, as they were spelled: names and values."""

OVERHEAD = 2_000
"""Octets that a record takes in memory beside what it holds, about."""


class WebSocketMessage(msgspec.Struct, array_like=True):
    """One message of a WebSocket."""

    type: str
    """``send``: by the client; ``receive``: by the server."""
    time: float
    """When it was whole, in seconds since 1970."""
    opcode: int
    """1: text, 2: binary (RFC 6455 section 5.2)."""
    data: bytes
    """Its payload, or the first part of it."""


class Record(msgspec.Struct, kw_only=True):
    """One flow: a request, its answer, and what became of them. Times are seconds."""

    id: str
    started: float
    """When the request began, since 1970."""
    client: str = ""
    """The client's address and port."""
    user: str | None = None
    listener: str = ""
    rule: str | None = None
    method: str = "GET"
    url: str = ""
    version: str = "HTTP/1.1"
    """As ``HTTP/1.1`` or ``HTTP/2``."""
    request_fields: Fields = []
    request_head_size: int = -1
    """Octets of the head; -1: not known, or there is no such number (HTTP/2)."""
    request_body: bytes = b""
    """What was kept of the content, as it passed unless `decoded`."""
    request_size: int = 0
    """Octets of the content that passed."""
    status: int = 0
    """0: there was no answer."""
    reason: str = ""
    response_version: str = ""
    response_fields: Fields = []
    response_head_size: int = -1
    response_body: bytes = b""
    response_size: int = 0
    content_size: int = -1
    """Octets of the answer's content without its codings; -1: not known."""
    address: str | None = None
    """The destination's IP address."""
    connection: str = ""
    """Which connection of a client it came by."""
    via: str | None = None
    sni: str | None = None
    ja4: str | None = None
    sent_ja3: str | None = None
    """JA3 of the hello that the destination was sent."""
    sent_ja4: str | None = None
    sent_http2: str | None = None
    """How HTTP/2 with the destination began: SETTINGS|WINDOW_UPDATE|PRIORITY|pseudo-header fields."""
    fingerprint: str | None = None
    """What the destination was to see, such as ``mirror``."""
    fingerprint_differs: str | None = None
    """What of that it did not see."""
    dns: float | None = None
    connect: float | None = None
    """Until the destination was connected, without TLS."""
    tls: float | None = None
    send: float | None = None
    wait: float | None = None
    """From the end of the request to the first octet of the answer."""
    receive: float | None = None
    error: str | None = None
    tags: list[str] = []
    messages: list[WebSocketMessage] = []
    decoded: bool = False
    """Whether the bodies are without their content codings, and the secrets are masked: see `intercept.masking`."""
    truncated: bool = False
    """Whether a body or a message is not whole; always says so once `decoded`."""
    request_truncated: bool = False
    """Whether that is the request's body, or that too."""

    @property
    def seconds(self) -> float:
        """How long it took: the sum of the times that are known."""
        parts = (self.dns, self.connect, self.tls, self.send, self.wait, self.receive)
        return sum(part for part in parts if part is not None)

    @property
    def weight(self) -> int:
        """Octets of memory that it takes, about."""
        fields = sum(len(name) + len(value) + 150 for name, value in (*self.request_fields, *self.response_fields))
        messages = sum(len(message.data) + 250 for message in self.messages)
        bodies = len(self.request_body) + len(self.response_body)
        return OVERHEAD + 4 * len(self.url) + fields + messages + bodies


def first_value(fields: Fields, name: bytes) -> bytes | None:
    """The value of the first field with a name in lower case, None if there is none."""
    for other, value in fields:
        if len(other) == len(name) and other.lower() == name:
            return value
    return None
