"""What an inspector of datagrams is, and what is not one."""

from __future__ import annotations

import functools

import pytest

from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit, Inspect, check_inspector, is_plain, pass_on
from tabi.session import Session
from tabi.wire.address import parse_address

CLIENT = parse_address("192.0.2.7:4000")


class IdleTimeouts(DatagramInspector):
    """Looks, and has nothing sent."""

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """See `DatagramInspector`."""


class Alone:
    """Has both methods and is derived from nothing."""

    def begin(self, session: Session) -> Inspect | None:
        return None

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        raise AssertionError


class Unready:
    """Lacks `begin`."""

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        raise AssertionError


class Waiting(DatagramInspector):
    """Is async, so that it would never be awaited."""

    async def inspect(self, datagram: Datagram, emit: Emit) -> None:  # type: ignore[override]
        raise AssertionError


class WaitingToBegin(IdleTimeouts):
    """Likewise, where an association begins."""

    async def begin(self, session: Session) -> Inspect | None:  # type: ignore[override]
        raise AssertionError


def test_one_that_derives_needs_only_inspect() -> None:
    """`begin` is there already, and has every association looked at by the same method."""
    inspector = IdleTimeouts()
    assert check_inspector(inspector) is inspector
    assert inspector.begin(Session(1, "listener", CLIENT, 0.0)) == inspector.inspect


def test_one_that_derives_may_have_begin_alone() -> None:
    """One that leaves associations alone, or has other objects look at them, needs no `inspect` of its own."""

    class Leaving(DatagramInspector):
        def begin(self, session: Session) -> Inspect | None:
            return None

    inspector = check_inspector(Leaving())
    sent: list[object] = []

    def emit(payload: object, address: object = None, delay: float = 0.0) -> None:
        sent.append(payload)

    inspector.inspect(Datagram(Session(1, "listener", CLIENT, 0.0), "up", CLIENT, b"data"), emit)
    assert sent == []


def test_any_object_with_the_methods_is_one() -> None:
    """It need not derive, and may have callables for its methods."""
    alone = Alone()
    assert check_inspector(alone) is alone
    partly = Alone()
    partly.inspect = functools.partial(alone.inspect)  # type: ignore[method-assign]
    assert check_inspector(partly) is partly


def test_what_can_be_called_with_a_datagram() -> None:
    """A function, a method, anything that is called; nothing that would have to be awaited."""
    assert all(map(is_plain, (print, IdleTimeouts().inspect, functools.partial(print), IdleTimeouts)))
    assert not any(map(is_plain, (Waiting().inspect, "text", None)))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (IdleTimeouts, r"^IdleTimeouts is a class, expected an inspector of datagrams: IdleTimeouts\(\)$"),
        (Unready(), r"Unready object .* is not an inspector of datagrams, expected the methods begin and inspect$"),
        (print, r"^<built-in function print> is not an inspector of datagrams"),
        (Waiting(), r"Waiting\.inspect is async, expected an ordinary method"),
        (WaitingToBegin(), r"WaitingToBegin\.begin is async, expected an ordinary method"),
    ],
)
def test_what_is_not_one_is_told_at_the_start(wrong: object, text: str) -> None:
    """With what is wrong, before a client can come."""
    with pytest.raises(TypeError, match=text):
        check_inspector(wrong)


def test_a_datagram_shows_no_payload() -> None:
    """What is logged of one says how much it has, not what."""
    datagram = Datagram(Session(1, "listener", CLIENT, 0.0), "up", parse_address("192.0.2.1:53"), b"secret")
    assert repr(datagram) == "<Datagram up 192.0.2.1:53: 6 octets>"


def test_passing_on() -> None:
    """The payload as it is."""
    sent: list[object] = []
    pass_on(Datagram(Session(1, "listener", CLIENT, 0.0), "up", CLIENT, b"a"), lambda payload, *_: sent.append(payload))
    assert sent == [b"a"]
