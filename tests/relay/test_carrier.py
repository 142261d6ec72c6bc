"""Carrier: what a program gives as its own is told at the start if it cannot be one."""

from __future__ import annotations

import functools
from ipaddress import IPv4Address
from typing import Any

import pytest

from tabi.relay.carrier import carry_of, relays_for
from tabi.session import Session
from tabi.wire.address import Address


async def carry(tunnel: object) -> None:
    """A carrier."""


async def with_more(first: object, tunnel: object, more: int = 0) -> None:
    """One that takes more."""


class Carrying:
    """An object with the method."""

    async def carry(self, tunnel: object) -> None:
        """Carry."""


class Called:
    """An object that is called."""

    async def __call__(self, tunnel: object) -> None:
        """Carry."""


class Blocking:
    """An object whose method is not async."""

    def carry(self, tunnel: object) -> None:
        """Block."""


def test_what_can_be_a_carrier() -> None:
    """An async function, a method, an object that is called or has the method, and what is made of them."""
    bound = Carrying().carry
    called = Called()
    part = functools.partial(with_more, None)
    for given in (carry, bound, called, part):
        assert carry_of(given) is given
    carrying = Carrying()
    assert carry_of(carrying) == carrying.carry


async def without_tunnel() -> None:
    """Takes nothing."""


@pytest.mark.parametrize(
    ("carrier", "got"),
    [
        (None, "NoneType"),
        ("relay", "str"),
        (print, "builtin_function_or_method"),
        (lambda tunnel: None, "function"),
        (Blocking(), "Blocking"),
        (Carrying, "the class Carrying"),
    ],
)
def test_what_cannot(carrier: Any, got: str) -> None:
    """The error says what is expected, and what was given."""
    with pytest.raises(TypeError) as error:
        carry_of(carrier)
    assert str(error.value) == (
        f"carrier: expected `async def carry(tunnel)`, or an object with this method, got {got}"
    )


@pytest.mark.parametrize("carrier", [without_tunnel, with_more])
def test_what_takes_other_arguments(carrier: Any) -> None:
    """It would fail with the first session."""
    with pytest.raises(TypeError, match="carrier: it must take one argument, the tunnel: "):
        carry_of(carrier)


class Looking:
    """A carrier that looks into some sessions, and gives others to relays."""

    def relays_for(self, session: Session) -> Any:
        """The relays, of those whose number is even."""
        return None if session.number % 2 else "relays"


def test_which_relays_a_carrier_gives_a_session_to() -> None:
    """A carrier that does not say looks into all."""
    odd, even = (Session(number, "test", Address(IPv4Address("127.0.0.1"), 1), 0.0) for number in (1, 2))
    carrier: Any = Looking()
    found: list[Any] = [relays_for(carrier, odd), relays_for(carrier, even)]
    assert found == [None, "relays"]
    other: Any = object()
    assert relays_for(other, even) is None
