"""The common part of the SOCKS machines of all versions and both sides: states, the buffer, the transitions. No I/O.

A machine is a state and a buffer. The state says which message of the peer comes next; `Machine.decoders` says what
reads it. A broken conversation stays broken. Which states a version has, and in which order, is in its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum, auto
from typing import Any, ClassVar, Final

from tabi.errors import LocalProtocolError, RemoteProtocolError


class NeedData:
    """The type of NEED_DATA: no whole message is there yet."""

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA: Final = NeedData()


class State(IntEnum):
    """The state of a machine: the message that it reads next, or that the caller must send next."""

    GREETING = auto()
    GREETING_SEEN = auto()
    GREETING_SENT = auto()
    CREDENTIALS = auto()
    CREDENTIALS_SEEN = auto()
    CREDENTIALS_SENT = auto()
    NEGOTIATION = auto()
    REQUEST = auto()
    REQUEST_SEEN = auto()
    REQUEST_SENT = auto()
    SECOND_REPLY = auto()
    OPEN = auto()
    CLOSED = auto()


# Looking up a member of an enum costs 40 ns each time in a function: the hot ones have names of their own.
GREETING, GREETING_SEEN, GREETING_SENT = State.GREETING, State.GREETING_SEEN, State.GREETING_SENT
CREDENTIALS, CREDENTIALS_SEEN, CREDENTIALS_SENT = State.CREDENTIALS, State.CREDENTIALS_SEEN, State.CREDENTIALS_SENT
REQUEST, REQUEST_SEEN, REQUEST_SENT = State.REQUEST, State.REQUEST_SEEN, State.REQUEST_SENT
NEGOTIATION, SECOND_REPLY, OPEN, CLOSED = State.NEGOTIATION, State.SECOND_REPLY, State.OPEN, State.CLOSED
BIND = 2  # the one command with two replies, and the same number in both versions

Decoder = Callable[[bytearray], "tuple[Any, int] | None"]
"""Gives the message at the beginning of a buffer and its number of octets, or None while some are missing."""


def check_version(data: bytearray, expected: int, what: str) -> None:
    """Raise RemoteProtocolError unless the first octet is the version that belongs there."""
    if data[0] != expected:
        raise RemoteProtocolError(f"{what}: version {data[0]:#04x}, expected {expected:#04x}")


class Machine:
    """One side of one conversation, up to the point where its octets are payload."""

    __slots__ = ("buffer", "command", "eof", "state")

    first: ClassVar[State]  # where a conversation begins
    decoders: Mapping[State, Decoder]  # which message each reading state waits for

    def __init__(self) -> None:
        self.state = self.first
        self.buffer = bytearray()
        self.eof = False
        self.command = 0

    def receive_data(self, data: bytes) -> None:
        """Take octets from the peer; ``b""`` means that no more will come."""
        if data:
            self.buffer += data
        else:
            self.eof = True

    def next_event(self) -> Any:
        """Return the peer's next message, or NEED_DATA.

        Raises:
            RemoteProtocolError: the peer broke the protocol, or ended in the middle.
        """
        if not self.buffer and not self.eof:
            return NEED_DATA
        decode = self.decoders.get(self.state)
        if decode is None:
            return self.next_other()
        try:
            found = decode(self.buffer) if self.buffer else None
        except RemoteProtocolError:
            # RFC 1928 section 6: only a request is refused with a reply; anything else just ends.
            self.state = REQUEST_SEEN if self.state is REQUEST else CLOSED
            raise
        if found is None:
            if self.eof:
                what = self.state.name.lower().replace("_", " ")
                if what.endswith(" sent"):
                    what = f"answer to the {what.removesuffix(' sent')}"
                raise RemoteProtocolError(f"the peer ended in the middle of the {what}")
            return NEED_DATA
        message, end = found
        del self.buffer[:end]
        self.receive(message)
        return message

    def next_other(self) -> Any:
        """The next event in a state in which no decoder reads. Errors as `next_event`."""
        if self.state is CLOSED:
            raise RemoteProtocolError("the conversation is over")
        return NEED_DATA

    def receive(self, message: Any) -> None:
        """Change the state after a message of the peer."""
        raise NotImplementedError

    def after_reply(self, succeeded: bool) -> State:
        """The state after a reply: BIND has two (RFC 1928 section 6), a failure ends everything."""
        if not succeeded:
            return CLOSED
        return SECOND_REPLY if self.command == BIND and self.state is not SECOND_REPLY else OPEN

    @property
    def untouched(self) -> bool:
        """Whether not an octet has come from the peer."""
        return self.state is self.first and not self.buffer

    @property
    def trailing_data(self) -> bytes:
        """The octets after the last message. They are payload once the state is OPEN."""
        return bytes(self.buffer)

    def wrong(self, message: Any) -> LocalProtocolError:
        """The error for a message that does not fit the state."""
        return LocalProtocolError(f"cannot send {type(message).__name__} in state {self.state.name}")
