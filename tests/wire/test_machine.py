"""What the machines of SOCKS share: the buffer, the states, and that a broken conversation stays broken."""

from __future__ import annotations

from typing import Any

import pytest

from tabi.errors import RemoteProtocolError
from tabi.wire.machine import NEED_DATA, Machine, State, check_version


def decode(data: bytearray) -> tuple[bytes, int] | None:
    """A message is "M" and an octet; anything else is wrong."""
    if data[:1] != b"M":
        raise RemoteProtocolError("no message", 4)
    return (bytes(data[:2]), 2) if len(data) > 1 else None


class Reader(Machine):
    """A machine that reads one message in the state that it is made with."""

    def __init__(self, state: State) -> None:
        self.decoders = {state: decode}
        self.first = state  # type: ignore[misc]
        super().__init__()

    def receive(self, message: Any) -> None:
        self.state = State.OPEN


def test_need_data_says_what_it_is() -> None:
    """The sentinel is readable in a failed assertion."""
    assert repr(NEED_DATA) == "NEED_DATA"


def test_a_message_is_taken_out_of_the_buffer_and_the_rest_stays() -> None:
    """Nothing comes until the message is whole; what is behind it is trailing data, and so is its end."""
    machine = Reader(State.REQUEST)
    assert machine.next_event() is NEED_DATA
    machine.receive_data(b"M")
    assert machine.next_event() is NEED_DATA
    machine.receive_data(b"1rest")
    assert machine.next_event() == b"M1"
    assert (machine.state, machine.trailing_data) == (State.OPEN, b"rest")
    machine.receive_data(b"")
    assert machine.next_event() is NEED_DATA


@pytest.mark.parametrize(("state", "behind"), [(State.REQUEST, State.REQUEST_SEEN), (State.GREETING, State.CLOSED)])
def test_only_a_bad_request_can_be_answered(state: State, behind: State) -> None:
    """A reply belongs to a request; behind anything else that is bad the conversation is over, and stays so."""
    machine = Reader(state)
    machine.receive_data(b"X")
    with pytest.raises(RemoteProtocolError, match="no message") as caught:
        machine.next_event()
    assert (machine.state, caught.value.reply_code) == (behind, 4)
    if behind is State.CLOSED:
        with pytest.raises(RemoteProtocolError, match="the conversation is over"):
            machine.next_event()


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (State.REQUEST, "request"),
        (State.REQUEST_SENT, "answer to the request"),
        (State.SECOND_REPLY, "second reply"),
    ],
)
@pytest.mark.parametrize("begun", [b"", b"M"])
def test_an_end_in_the_middle_says_of_what(state: State, what: str, begun: bytes) -> None:
    """Whoever reads the error knows how far the conversation came."""
    machine = Reader(state)
    machine.receive_data(begun)
    machine.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match=f"^the peer ended in the middle of the {what}$"):
        machine.next_event()


@pytest.mark.parametrize(
    ("command", "state", "succeeded", "behind"),
    [
        (1, State.REQUEST_SEEN, True, State.OPEN),
        (2, State.REQUEST_SEEN, True, State.SECOND_REPLY),
        (2, State.SECOND_REPLY, True, State.OPEN),
        (1, State.REQUEST_SEEN, False, State.CLOSED),
        (2, State.REQUEST_SEEN, False, State.CLOSED),
        (2, State.SECOND_REPLY, False, State.CLOSED),
    ],
)
def test_what_follows_a_reply(command: int, state: State, succeeded: bool, behind: State) -> None:
    """BIND has two replies, every other command one; a failure is the last."""
    machine = Reader(state)
    machine.command = command
    assert machine.after_reply(succeeded) is behind


def test_a_message_out_of_order_is_named_with_the_state() -> None:
    """The error tells the caller's author what was wrong where."""
    assert str(Reader(State.OPEN).wrong(b"")) == "cannot send bytes in state OPEN"


def test_the_version_is_the_first_octet() -> None:
    """Another one is the peer's fault, and the error has both."""
    check_version(bytearray(b"\x05"), 5, "reply")
    with pytest.raises(RemoteProtocolError, match=r"^reply: version 0x04, expected 0x05$"):
        check_version(bytearray(b"\x04\x05"), 5, "reply")


def test_the_base_class_has_no_messages() -> None:
    """What moves on behind a message is the side's own."""
    with pytest.raises(NotImplementedError):
        Machine.receive(Reader(State.REQUEST), b"")


def test_a_machine_knows_whether_anything_has_come() -> None:
    """An end alone is nothing, an octet is something, and so is a message that was taken out."""
    machine = Reader(State.REQUEST)
    machine.receive_data(b"")
    with pytest.raises(RemoteProtocolError):
        machine.next_event()
    assert machine.untouched
    machine.receive_data(b"M")
    assert not machine.untouched
    machine.receive_data(b"!")
    assert machine.next_event() == b"M!"
    assert not machine.untouched
