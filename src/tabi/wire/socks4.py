"""SOCKS4 and SOCKS4a, which have no RFC: the facts are those of their authors' two memos. No I/O.

    Request   | VN | CD | DSTPORT | DSTIP | USERID   | 00 |           VN: 04, CD: 1 CONNECT, 2 BIND
              | 1  | 1  |    2    |   4   | variable | 1  |
    of 4a     the same with a DSTIP of 0.0.0.x, x not 0, and then   | NAME     | 00 |
                                                                    | variable | 1  |
    Reply     | VN | CD | DSTPORT | DSTIP |                           VN: 00, CD: 5A granted, 5B to 5D not
              | 1  | 1  |    2    |   4   |

The machines are those of `wire/machine.py`. There is no greeting and no authentication:

    ServerMachine4     reads                 then send()s             and goes on
    REQUEST            Request4              Reply4 (BIND: twice)     OPEN or CLOSED

    ClientMachine4     send()s               reads                    and goes on
    REQUEST            Request4              Reply4 (BIND: twice)     OPEN or CLOSED

USERID and NAME end at a NUL, so their limits bound the buffer: a request has at most 520
octets, and one that has grown beyond its limit without a NUL is refused before the NUL comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import msgspec

from tabi.errors import RemoteProtocolError
from tabi.wire.address import HOST_UNREACHABLE, MAX_NAME, UNSPECIFIED, Address, decode_host, ipv4
from tabi.wire.machine import (
    REQUEST,
    REQUEST_SEEN,
    REQUEST_SENT,
    SECOND_REPLY,
    Decoder,
    Machine,
    State,
    check_version,
)
from tabi.wire.socks5 import ReplyCode

VERSION = 4
REPLY_VERSION = 0

HEAD = 8
"""Octets in front of USERID, and of a whole reply."""

MAX_USERID = 255
"""Octets of USERID that a server reads: as many as a user name of RFC 1929 has. With NAME and one read of 500 octets a
client has less than 1 KiB here, before it is authenticated."""

NAME_FOLLOWS = b"\x00\x00\x00\x01"
"""The DSTIP that clients of 4a write; every 0.0.0.x but 0.0.0.0 means the same."""


class ReplyCode4(IntEnum):
    """CD of a reply. The last two are about identd, which tabi does not ask."""

    GRANTED = 0x5A
    REJECTED = 0x5B
    NO_IDENTD = 0x5C
    USERID_MISMATCH = 0x5D


GRANTED, REJECTED = int(ReplyCode4.GRANTED), int(ReplyCode4.REJECTED)


def reply4_code(reply_code: int) -> int:
    """The CD for a REP of RFC 1928: SOCKS4 has success, and one failure for every reason."""
    return GRANTED if reply_code == ReplyCode.SUCCEEDED else REJECTED


class Request4(msgspec.Struct, frozen=True):
    """VN, CD, DSTPORT, DSTIP, USERID, NAME. ``command`` is as in socks5's Request; ``userid`` is a claim, not a proof.

    The destination's host is DSTIP, or what NAME says: a name, or an address of either family as text.
    """

    command: int
    destination: Address
    userid: bytes = b""


class Reply4(msgspec.Struct, frozen=True):
    """VN, CD, DSTPORT, DSTIP. A host of 0.0.0.0 means the server's own address in BIND's first reply."""

    code: int
    bound: Address = UNSPECIFIED


# --- encoders: one for each message ---


def encode_request4(message: Request4) -> bytes:
    """Write plain SOCKS4 where DSTIP can say the destination, otherwise SOCKS4a.

    Raises:
        ValueError: a NUL in USERID, or a name that is not ASCII of 1 to 255 octets without NUL.
    """
    (host, port), userid = message.destination, message.userid
    if 0 in userid:
        raise ValueError("a USERID ends at its first NUL: none can be within it")
    dstip, name = NAME_FOLLOWS, b""
    if isinstance(host, IPv4Address) and not 0 < int(host) < 256:
        dstip = host.packed
    else:
        text = str(host).encode("ascii")
        if not 0 < len(text) <= MAX_NAME or 0 in text:
            raise ValueError(f"a host name has 1 to {MAX_NAME} octets and no NUL, not {text!r}")
        name = text + b"\0"
    return b"%c%c%b%b%b\0%b" % (VERSION, message.command, port.to_bytes(2, "big"), dstip, userid, name)


def encode_reply4(message: Reply4) -> bytes:
    """VN 1, CD 1, DSTPORT 2, DSTIP 4. A host that is not IPv4 is written as 0.0.0.0."""
    host, port = message.bound
    dstip = host.packed if isinstance(host, IPv4Address) else bytes(4)
    return b"%c%c%b%b" % (REPLY_VERSION, message.code, port.to_bytes(2, "big"), dstip)


# --- decoders: (message, octets consumed), or None while octets are missing ---


def find_nul(data: bytearray, at: int, limit: int, field: str, reply_code: int) -> int:
    """The index of the NUL that ends the field at ``data[at]``, or -1 while it is missing.

    Raises:
        RemoteProtocolError: there is none within ``limit`` octets and the next (reply ``reply_code``).
    """
    end = data.find(0, at, at + limit + 1)
    if end < 0 and len(data) > at + limit:
        raise RemoteProtocolError(f"{field}: more than {limit} octets", reply_code)
    return end


def decode_request4(data: bytearray, max_userid: int = MAX_USERID) -> tuple[Request4, int] | None:
    """The counterpart of encode_request4. ``max_userid`` is in octets."""
    check_version(data, VERSION, "request")
    end = find_nul(data, HEAD, max_userid, "USERID", ReplyCode.GENERAL_FAILURE)
    if end < 0:
        return None
    userid, dstip = bytes(data[HEAD:end]), bytes(data[4:HEAD])
    if dstip[:3] != b"\0\0\0" or dstip == b"\0\0\0\0":
        host: Any = ipv4(dstip)
    else:
        start = end + 1
        end = find_nul(data, start, MAX_NAME, "NAME", HOST_UNREACHABLE)
        if end < 0:
            return None
        host = decode_host(bytes(data[start:end]), "NAME")
    return Request4(data[1], Address(host, data[2] << 8 | data[3]), userid), end + 1


def decode_reply4(data: bytearray) -> tuple[Reply4, int] | None:
    """The counterpart of encode_reply4."""
    check_version(data, REPLY_VERSION, "reply")
    if len(data) < HEAD:
        return None
    return Reply4(data[1], Address(ipv4(bytes(data[4:HEAD])), data[2] << 8 | data[3])), HEAD


# --- the machines ---


class ServerMachine4(Machine):
    """The server's side of one SOCKS4 connection. It refuses a USERID of more than ``max_userid`` octets."""

    __slots__ = ("decoders",)

    first = REQUEST

    def __init__(self, max_userid: int = MAX_USERID) -> None:
        super().__init__()
        self.decoders = {REQUEST: partial(decode_request4, max_userid=max_userid)}

    def receive(self, message: Any) -> None:
        """Change the state after the client's request."""
        self.state, self.command = REQUEST_SEEN, message.command

    def send(self, message: Reply4) -> bytes:
        """Return the octets of an answer and move on; raises LocalProtocolError where it does not fit."""
        if (self.state is REQUEST_SEEN or self.state is SECOND_REPLY) and isinstance(message, Reply4):
            self.state = self.after_reply(message.code == GRANTED)
            return encode_reply4(message)
        raise self.wrong(message)


class ClientMachine4(Machine):
    """The client's side of one SOCKS4 connection."""

    __slots__ = ()

    first = REQUEST
    decoders: Mapping[State, Decoder] = {REQUEST_SENT: decode_reply4, SECOND_REPLY: decode_reply4}

    def receive(self, message: Any) -> None:
        """Change the state after a reply."""
        self.state = self.after_reply(message.code == GRANTED)

    def send(self, message: Request4) -> bytes:
        """Return the octets of a request and move on.

        Raises:
            LocalProtocolError: it does not fit the state.
            ValueError: it cannot be written; the state is unchanged.
        """
        if self.state is REQUEST and isinstance(message, Request4):
            octets = encode_request4(message)
            self.state, self.command = REQUEST_SENT, message.command
            return octets
        raise self.wrong(message)

    @property
    def missing(self) -> int:
        """Octets that the reply under way still needs for certain, as `wire.socks5.ClientMachine.missing`."""
        return HEAD - len(self.buffer) if self.state in self.decoders else 0
