"""SOCKS5: RFC 1928 and, for user name and password, RFC 1929. No I/O.

Theory of operation. Each message has one class, one ``encode_*`` and one ``decode_*``; both machines use the same.
`wire/machine.py` says what a machine is. These are the states of the two machines:

    ServerMachine      reads                 then send()s             and goes on
    GREETING           Greeting              MethodSelection          CREDENTIALS, NEGOTIATION, REQUEST or CLOSED
    CREDENTIALS        Credentials           CredentialsReply         REQUEST or CLOSED
    REQUEST            Request               Reply (BIND: twice)      OPEN or CLOSED

    ClientMachine      send()s               reads                    and goes on
    GREETING           Greeting              MethodSelection          CREDENTIALS, NEGOTIATION, REQUEST or CLOSED
    CREDENTIALS        Credentials           CredentialsReply         REQUEST or CLOSED
    REQUEST            Request               Reply (BIND: twice)      OPEN or CLOSED

A method with messages of its own, such as GSSAPI, has the state NEGOTIATION: `negotiate` says how long its messages
are, both sides read and send any number of `MethodMessage`s, and `negotiated` goes on with the request.

Between a message that was read and the answer to it, a machine is in *_SEEN, and the other way round *_SENT: a call in
the wrong order raises LocalProtocolError. From any octets of a peer come messages or RemoteProtocolError, nothing else.
What follows the last message is ``trailing_data``; it belongs to the destination.

The buffer needs no limit of its own: no message is longer than 513 octets, or than the method in NEGOTIATION allows,
and the caller stops to feed the machine at the first message. So it holds less than that and one read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import msgspec

from tabi.errors import LocalProtocolError, RemoteProtocolError
from tabi.wire.address import UNSPECIFIED, Address, decode_address, encode_address, missing_octets
from tabi.wire.machine import (
    CLOSED,
    CREDENTIALS,
    CREDENTIALS_SEEN,
    CREDENTIALS_SENT,
    GREETING,
    GREETING_SEEN,
    GREETING_SENT,
    NEED_DATA,
    NEGOTIATION,
    REQUEST,
    REQUEST_SEEN,
    REQUEST_SENT,
    SECOND_REPLY,
    Decoder,
    Machine,
    State,
    check_version,
)

VERSION = 5
AUTH_VERSION = 1


class Method(IntEnum):
    """Authentication methods, RFC 1928 section 3."""

    NO_AUTHENTICATION = 0x00
    GSSAPI = 0x01
    USERNAME_PASSWORD = 0x02
    NO_ACCEPTABLE_METHODS = 0xFF


class Command(IntEnum):
    """CMD, RFC 1928 section 4; the last two are of Tor's socks-extensions.txt, section 2.

    RESOLVE has a name as DST, and the reply's BND is its address. RESOLVE_PTR has an address, and BND is its name, with
    ATYP 3. DST.PORT means nothing, BND.PORT is 0, and the server closes after its reply.
    """

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3
    RESOLVE = 0xF0
    RESOLVE_PTR = 0xF1


class ReplyCode(IntEnum):
    """REP, RFC 1928 section 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class Greeting(msgspec.Struct, frozen=True):
    """VER, NMETHODS, METHODS: the methods that the client offers, an octet each."""

    methods: bytes


class MethodSelection(msgspec.Struct, frozen=True):
    """VER, METHOD: the method that the server chose, 0xFF for none."""

    method: int


class Credentials(msgspec.Struct, frozen=True):
    """VER, ULEN, UNAME, PLEN, PASSWD of RFC 1929; 0 to 255 octets each, any octets. The password is not in the repr."""

    username: bytes
    password: bytes

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("username", self.username)]


class CredentialsReply(msgspec.Struct, frozen=True):
    """VER, STATUS of RFC 1929: 0 is success, anything else ends the connection."""

    status: int


class MethodMessage(msgspec.Struct, frozen=True):
    """One message of a method's own negotiation, whole as it stands on the wire. It may be secret: not in the repr."""

    octets: bytes

    def __repr__(self) -> str:
        return f"MethodMessage({len(self.octets)} octets)"


MessageLength = Callable[[bytearray], int]
"""Gives the length of a method's message that begins with these octets (one or more), or a lower bound while there are
too few to know. Raises RemoteProtocolError if they cannot be a message, or it is too long."""


class Request(msgspec.Struct, frozen=True):
    """VER, CMD, RSV, DST: ``command`` stays an int if it is not a Command."""

    command: int
    destination: Address


class Reply(msgspec.Struct, frozen=True):
    """VER, REP, RSV, BND."""

    reply_code: int
    bound: Address = UNSPECIFIED


# --- encoders: one for each message ---


def encode_greeting(message: Greeting) -> bytes:
    """RFC 1928 section 3: VER 1, NMETHODS 1, METHODS 1 to 255."""
    return b"%c%c%b" % (VERSION, len(message.methods), message.methods)


def encode_method_selection(message: MethodSelection) -> bytes:
    """RFC 1928 section 3: VER 1, METHOD 1."""
    return b"%c%c" % (VERSION, message.method)


def encode_credentials(message: Credentials) -> bytes:
    """RFC 1929 section 2: VER 1, ULEN 1, UNAME, PLEN 1, PASSWD. Raises ValueError beyond 255 octets."""
    username, password = message.username, message.password
    if len(username) > 255 or len(password) > 255:
        raise ValueError("a user name and a password have at most 255 octets each")
    return b"%c%c%b%c%b" % (AUTH_VERSION, len(username), username, len(password), password)


def encode_credentials_reply(message: CredentialsReply) -> bytes:
    """RFC 1929 section 2: VER 1, STATUS 1."""
    return b"%c%c" % (AUTH_VERSION, message.status)


def encode_request(message: Request) -> bytes:
    """RFC 1928 section 4: VER 1, CMD 1, RSV 1, then the address."""
    return b"%c%c\x00%b" % (VERSION, message.command, encode_address(message.destination))


def encode_reply(message: Reply) -> bytes:
    """RFC 1928 section 6: VER 1, REP 1, RSV 1, then the address."""
    return b"%c%c\x00%b" % (VERSION, message.reply_code, encode_address(message.bound))


# --- decoders: (message, octets consumed), or None while octets are missing ---


def decode_greeting(data: bytearray) -> tuple[Greeting, int] | None:
    """The counterpart of encode_greeting."""
    check_version(data, VERSION, "greeting")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    end = 2 + data[1]
    return Greeting(bytes(data[2:end])), end


def decode_method_selection(data: bytearray) -> tuple[MethodSelection, int] | None:
    """The counterpart of encode_method_selection."""
    check_version(data, VERSION, "method selection")
    return (MethodSelection(data[1]), 2) if len(data) > 1 else None


def decode_credentials(data: bytearray) -> tuple[Credentials, int] | None:
    """The counterpart of encode_credentials. Empty fields, which RFC 1929 does not know, are read too."""
    check_version(data, AUTH_VERSION, "user name and password")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return None
    middle = 2 + data[1]
    end = middle + 1 + data[middle]
    if len(data) < end:
        return None
    return Credentials(bytes(data[2:middle]), bytes(data[middle + 1 : end])), end


def decode_credentials_reply(data: bytearray) -> tuple[CredentialsReply, int] | None:
    """The counterpart of encode_credentials_reply."""
    check_version(data, AUTH_VERSION, "answer to user name and password")
    return (CredentialsReply(data[1]), 2) if len(data) > 1 else None


def decode_request(data: bytearray) -> tuple[Request, int] | None:
    """The counterpart of encode_request. RSV is not looked at: section 4 reserves it, and some clients fill it."""
    check_version(data, VERSION, "request")
    found = decode_address(data, 3)
    return (Request(data[1], found[0]), found[1]) if found else None


def decode_reply(data: bytearray) -> tuple[Reply, int] | None:
    """The counterpart of encode_reply."""
    check_version(data, VERSION, "reply")
    found = decode_address(data, 3)
    return (Reply(data[1], found[0]), found[1]) if found else None


# --- the machines ---

SUCCEEDED = int(ReplyCode.SUCCEEDED)


class Socks5Machine(Machine):
    """What both sides have in common: a method that negotiates by messages of its own."""

    __slots__ = ("message_length",)

    message_length: MessageLength

    def negotiate(self, message_length: MessageLength) -> None:
        """Begin the negotiation of the method that was chosen. Raises LocalProtocolError if none was chosen."""
        if self.state is not NEGOTIATION:
            raise LocalProtocolError(f"cannot negotiate in state {self.state.name}")
        self.message_length = message_length

    def next_other(self) -> Any:
        """See `Machine`: the next message of a negotiation."""
        if self.state is not NEGOTIATION:
            return super().next_other()
        buffer = self.buffer
        try:
            length = self.message_length(buffer) if buffer else 1
            if len(buffer) < length and self.eof:
                raise RemoteProtocolError("the peer ended in the middle of the negotiation")
        except RemoteProtocolError:
            self.state = CLOSED
            raise
        if len(buffer) < length:
            return NEED_DATA
        octets = bytes(buffer[:length])
        del buffer[:length]
        return MethodMessage(octets)

    def negotiated(self) -> None:
        """The method has let the client in: the request comes next."""
        if self.state is not NEGOTIATION:
            raise LocalProtocolError(f"nothing was negotiated in state {self.state.name}")
        self.state = REQUEST


class ServerMachine(Socks5Machine):
    """The server's side of one SOCKS5 connection, up to the point where its octets are payload."""

    __slots__ = ()

    first = GREETING
    decoders: Mapping[State, Decoder] = {
        GREETING: decode_greeting,
        CREDENTIALS: decode_credentials,
        REQUEST: decode_request,
    }
    after: ClassVar[dict[State, State]] = {
        GREETING: GREETING_SEEN,
        CREDENTIALS: CREDENTIALS_SEEN,
        REQUEST: REQUEST_SEEN,
    }

    def receive(self, message: Any) -> None:
        """Change the state after a message of the client."""
        if self.state is REQUEST:
            self.command = message.command
        self.state = self.after[self.state]

    def send(self, message: MethodSelection | CredentialsReply | MethodMessage | Reply) -> bytes:
        """Return the octets of an answer and move on; raises LocalProtocolError where it does not fit."""
        state = self.state
        if state is GREETING_SEEN and isinstance(message, MethodSelection):
            self.state = AFTER_SELECTION.get(message.method, NEGOTIATION)
            return encode_method_selection(message)
        if (state is REQUEST_SEEN or state is SECOND_REPLY) and isinstance(message, Reply):
            self.state = self.after_reply(message.reply_code == SUCCEEDED)
            return encode_reply(message)
        if state is CREDENTIALS_SEEN and isinstance(message, CredentialsReply):
            self.state = CLOSED if message.status else REQUEST
            return encode_credentials_reply(message)
        if state is NEGOTIATION and isinstance(message, MethodMessage):
            return message.octets
        raise self.wrong(message)


class ClientMachine(Socks5Machine):
    """The client's side of one SOCKS5 connection, up to the point where its octets are payload."""

    __slots__ = ("offered",)

    first = GREETING
    decoders: Mapping[State, Decoder] = {
        GREETING_SENT: decode_method_selection,
        CREDENTIALS_SENT: decode_credentials_reply,
        REQUEST_SENT: decode_reply,
        SECOND_REPLY: decode_reply,
    }

    def __init__(self) -> None:
        super().__init__()
        self.offered = b""

    def receive(self, message: Any) -> None:
        """Change the state after a message of the server."""
        if isinstance(message, Reply):
            self.state = self.after_reply(message.reply_code == SUCCEEDED)
        elif isinstance(message, CredentialsReply):
            self.state = CLOSED if message.status else REQUEST
        elif message.method in self.offered or message.method == Method.NO_ACCEPTABLE_METHODS:
            self.state = AFTER_SELECTION.get(message.method, NEGOTIATION)
        else:
            self.state = CLOSED
            raise RemoteProtocolError(f"the server chose method {message.method:#04x}, which was not offered")

    def send(self, message: Greeting | Credentials | MethodMessage | Request) -> bytes:
        """Return the octets of a message and move on.

        Raises:
            LocalProtocolError: it does not fit the state.
            ValueError: it cannot be written; the state is unchanged.
        """
        state = self.state
        if state is GREETING and isinstance(message, Greeting):
            octets = encode_greeting(message)
            self.state, self.offered = GREETING_SENT, message.methods
            return octets
        if state is CREDENTIALS and isinstance(message, Credentials):
            octets = encode_credentials(message)
            self.state = CREDENTIALS_SENT
            return octets
        if state is REQUEST and isinstance(message, Request):
            octets = encode_request(message)
            self.state, self.command = REQUEST_SENT, message.command
            return octets
        if state is NEGOTIATION and isinstance(message, MethodMessage):
            return message.octets
        raise self.wrong(message)

    @property
    def missing(self) -> int:
        """Octets that the message under way still needs for certain; 0 when none is awaited.

        A reader that reads no more than this never takes an octet of the payload after the reply.
        """
        if self.state is NEGOTIATION:
            return self.message_length(self.buffer) - len(self.buffer) if self.buffer else 1
        if self.state not in self.decoders:
            return 0
        if self.state is REQUEST_SENT or self.state is SECOND_REPLY:
            return missing_octets(self.buffer, 3)
        return 2 - len(self.buffer)


AFTER_SELECTION = {
    int(Method.NO_AUTHENTICATION): REQUEST,
    int(Method.USERNAME_PASSWORD): CREDENTIALS,
    int(Method.NO_ACCEPTABLE_METHODS): CLOSED,
}
"""The state after a method; all other methods negotiate by messages of their own."""
