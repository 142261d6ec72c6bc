"""The interface for inspectors, which see, change, delay or drop datagrams."""

from __future__ import annotations

import inspect as introspection
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import msgspec

from tabi.session import Session
from tabi.wire.address import Address, Host

Direction = Literal["up", "down"]
"""``up`` is from the client to a destination, ``down`` is from a destination to the client."""


class Datagram(msgspec.Struct, frozen=True):
    """One datagram of an association, without its headers and put together from fragments."""

    session: Session
    """What is known of the association; its counts are live, and it is the same object for all of its datagrams."""
    direction: Direction
    address: Address
    """``up``: the destination that the client has named, by name or address. ``down``: the sender of the datagram."""
    payload: bytes
    named: Address | None = None
    """``down``: the destination that the client has named, where the sender is the address of that name. None where it
    has given no name of it, or a proxy has resolved the name."""

    def __repr__(self) -> str:
        return f"<Datagram {self.direction} {self.address}: {len(self.payload)} octets>"


class Emit(Protocol):
    """Sends a payload on, in the direction of the datagram that it was given with.

    It may be called any number of times, at once or later, in the thread of the loop. After the end of the association
    it does nothing. What goes up is treated as if the client had sent it: rules and the guard apply.
    """

    def __call__(
        self,
        payload: bytes | bytearray | memoryview,
        address: Address | tuple[Host, int] | None = None,
        delay: float = 0.0,
    ) -> None:
        """Send one datagram.

        Args:
            payload: what is sent.
            address: another destination (up) or another sender (down) than that of the datagram.
            delay: seconds until it is sent, at most 3600. What waits is bounded: 1,024 datagrams and 1 MiB in an
                association. More is dropped and counted as ``waiting``, and so is what waits at the end.

        Raises:
            TypeError: the payload is not octets, or the address is not a pair of host and port.
            ValueError: the host, the port or the delay is invalid.
        """


Inspect = Callable[[Datagram, Emit], object]
"""Called with each datagram of one association. If it does not emit, nothing is sent."""


@runtime_checkable
class DatagramInspector(Protocol):
    """Sees every datagram of all associations, and decides what is sent in its place.

    Derive a class and write `inspect`::

        class Shout(tabi.DatagramInspector):
            def inspect(self, datagram, emit):
                emit(datagram.payload.upper())

    An inspector is called in the thread of the loop, so it must not block. If it raises, the datagram is dropped and
    counted as ``inspector``, the first error of an association is logged, and the association goes on. Associations
    that it looks at are slower: each of their datagrams is taken apart, whereas others go through in batches.
    """

    def begin(self, session: Session) -> Inspect | None:
        """Return what is called with each datagram of an association that begins now: `inspect` by default.

        An inspector that keeps something for each association returns a method of a new object. None leaves an
        association alone, at full speed. One that raises PolicyDenied refuses the association; any other error refuses
        it too and is logged.
        """
        return self.inspect

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """Look at a datagram: call ``emit`` with what is to be sent in its place, once, several times or not at all."""
        return  # type checkers take a method with a docstring alone for an abstract one


def pass_on(datagram: Datagram, emit: Emit) -> None:
    """Send a datagram as it is."""
    emit(datagram.payload)


def is_plain(method: object) -> bool:
    """Whether something is callable and not async: an async function would never be awaited."""
    return callable(method) and not introspection.iscoroutinefunction(method)


def check_inspector(inspector: object) -> DatagramInspector:
    """Return an inspector, or raise TypeError and say what is wrong with it."""
    if isinstance(inspector, type):
        raise TypeError(f"{inspector.__name__} is a class, expected an inspector of datagrams: {inspector.__name__}()")
    if not isinstance(inspector, DatagramInspector):
        raise TypeError(f"{inspector!r} is not an inspector of datagrams, expected the methods begin and inspect")
    for method in (inspector.begin, inspector.inspect):
        if not is_plain(method):
            raise TypeError(
                f"{method.__qualname__} is async, expected an ordinary method: it is called for each datagram"
            )
    return inspector
