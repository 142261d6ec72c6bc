"""Carrier: the object that gets both streams of a session once they are open.

The relays are one (`relay.relays`). A wrapper around one, which reads or changes the octets, is another. A program's
own carrier is an async function, which `relay.tunnel` runs in a task.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from tabi.net.stream import Stream
from tabi.session import Close, Session

if TYPE_CHECKING:
    from tabi.relay.relays import Relays
    from tabi.relay.tunnel import Tunnel


class Carried(Protocol):
    """A session that a carrier has."""

    @property
    def counts(self) -> tuple[int, int]:
        """Octets that were delivered up to now, uplink and downlink."""

    @property
    def client_fd(self) -> int:
        """The descriptor of the client's connection; less than 0 if that is closed."""

    def cut(self, why: str, reason: Close = "limit") -> None:
        """End it: ``why`` becomes the session's error, ``reason`` the way it ended. Harmless once it is over."""


class Carrier(Protocol):
    """Carries sessions to their end. One that gives some sessions to relays as they are has a method `relays_for`. One
    that has ``reopens = True`` may open destinations once more: it finds in ``session.route`` how."""

    def start(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes) -> None:
        """Take both streams over. The caller must treat them, and the session, as closed from now on.

        Args:
            client: the stream to the client.
            server: the stream to the destination.
            session: gets the octets and the way it ended.
            answer: what the client gets before everything else, if anything; it does not count as payload.
            head: what the client has sent already; it comes before everything else that the client sends.
        """

    def get(self, session: Session) -> Carried | None:
        """What is known of a session while it is carried."""


def relays_for(carrier: Carrier, session: Session) -> Relays | None:
    """The relays to which a carrier would give a session as it is, so that stages can be put on them; None: it looks at
    its octets."""
    ask: Callable[[Session], Relays | None] | None = getattr(carrier, "relays_for", None)
    return None if ask is None else ask(session)


Carry = Callable[["Tunnel"], Coroutine[Any, Any, object]]


def is_async(function: object) -> TypeGuard[Carry]:
    """Whether calling it gives a coroutine."""
    called = inspect.getattr_static(function, "__call__", None)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def carry_of(carrier: object) -> Carry:
    """The async function of a program's own carrier: the carrier itself, or its method ``carry``.

    Raises:
        TypeError: it is not such a function, or does not take a tunnel.
    """
    carry = getattr(carrier, "carry", carrier)
    if isinstance(carrier, type) or not is_async(carry):
        what = f"the class {carrier.__name__}" if isinstance(carrier, type) else type(carrier).__name__
        raise TypeError(f"carrier: expected `async def carry(tunnel)`, or an object with this method, got {what}")
    try:
        inspect.signature(carry).bind(None)
    except TypeError as exc:
        raise TypeError(f"carrier: it must take one argument, the tunnel: {exc}") from None
    return carry
