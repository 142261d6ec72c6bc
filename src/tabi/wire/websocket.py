"""Frames of WebSocket (RFC 6455 section 5), and what was agreed on about compressing them (RFC 7692). No I/O.

FIN 1 | RSV 3 | opcode 4 | masked 1 | length 7, 7+16 or 7+64 | mask 32, where masked | payload
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tabi.errors import RemoteProtocolError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

FIN, RSV, RSV1, CONTROL, OPCODE = 0x80, 0x70, 0x40, 0x08, 0x0F
"""Of the first octet; an opcode with CONTROL is of a control frame."""

HEAD_SIZE = 14
"""Octets of a frame's head at most."""

CONTROL_SIZE = 125
"""Octets of a control frame's payload at most."""

PROTOCOL_ERROR, TOO_BIG, INTERNAL_ERROR = 1002, 1009, 1011
"""Codes of a close frame (section 7.4.1)."""

KNOWN = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))

DEFLATE = "permessage-deflate"
PARAMETER = re.compile(r"\s*([^\s=;,]+)\s*(?:=\s*\"?([^\s\";,]*)\"?\s*)?")

Head = tuple[int, bytes, int, int]
"""Of a frame: its first octet; its mask, empty if it has none; octets of the payload; the index behind the head."""


def decode_head(data: bytes, at: int = 0) -> Head | None:
    """The head of a frame that begins at an index; None while some of it is missing.

    Masks are taken from either side, and lengths in more octets than needed: the peer that they are for has its say.

    Raises:
        RemoteProtocolError: an unknown opcode, a control frame that may not be, a length of 2**63 or more.
    """
    have = len(data) - at
    if have < 2:
        return None
    first, length = data[at], data[at + 1]
    masked, length = length & 0x80, length & 0x7F
    opcode = first & OPCODE
    if opcode not in KNOWN:
        raise RemoteProtocolError(f"a WebSocket frame with the unknown opcode {opcode}")
    if opcode & CONTROL and (length > CONTROL_SIZE or first & (FIN | RSV) != FIN):
        raise RemoteProtocolError("a WebSocket control frame that is too long, a part, or has reserved bits")
    end = at + 2
    if length >= 126:
        end += 2 if length == 126 else 8
        if len(data) < end:
            return None
        length = int.from_bytes(data[at + 2 : end], "big")
        if length >> 63:
            raise RemoteProtocolError("a WebSocket frame of 2**63 octets or more")
    if not masked:
        return first, b"", length, end
    if len(data) < end + 4:
        return None
    return first, data[end : end + 4], length, end + 4


def encode_head(first: int, length: int, mask: bytes = b"") -> bytes:
    """The head of a frame; see `Head` for the arguments."""
    masked = 0x80 if mask else 0
    if length < 126:
        return bytes((first, masked | length)) + mask
    if length < 1 << 16:
        return bytes((first, masked | 126)) + length.to_bytes(2, "big") + mask
    return bytes((first, masked | 127)) + length.to_bytes(8, "big") + mask


class Compression(NamedTuple):
    """How messages of one direction are compressed.

    Attributes:
        takeover: whether a message may refer to those before it.
        bits: of the window, 8 to 15.
    """

    takeover: bool = True
    bits: int = 15


def parse_extensions(values: Iterable[str]) -> tuple[Compression, Compression] | None:
    """What a server's Sec-WebSocket-Extensions say about compression: of the client's messages, and of its own.

    None: nothing is compressed.

    Raises:
        ValueError: there is another extension, or what is said of this one is not known.
    """
    agreed: tuple[Compression, Compression] | None = None
    for offer in ",".join(values).split(","):
        if not offer.strip():
            continue
        name, *parameters = offer.split(";")
        if name.strip().lower() != DEFLATE or agreed is not None:
            raise ValueError(f"the WebSocket extension {name.strip()[:64]!r} is not known")
        agreed = parse_deflate(parameters)
    return agreed


def parse_deflate(parameters: Iterable[str]) -> tuple[Compression, Compression]:
    """The parameters of permessage-deflate (RFC 7692 section 7.1). Raises ValueError."""
    takeover, bits = {"client": True, "server": True}, {"client": 15, "server": 15}
    for parameter in parameters:
        found = PARAMETER.fullmatch(parameter)
        name, value = (found[1].lower(), found[2]) if found else (parameter, None)
        side, _, what = name.partition("_")
        if side in takeover and what == "no_context_takeover" and value is None:
            takeover[side] = False
        elif side in bits and what == "max_window_bits" and value is not None and value in WINDOWS:
            bits[side] = int(value)
        else:
            raise ValueError(f"the parameter {parameter.strip()[:64]!r} of {DEFLATE} is not known")
    return Compression(takeover["client"], bits["client"]), Compression(takeover["server"], bits["server"])


WINDOWS = frozenset(map(str, range(8, 16)))
