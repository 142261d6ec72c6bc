"""The egress without a proxy: resolve, ask the guard, connect."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from tabi.net.dial import Dialer, Permit
from tabi.net.origin import Origin
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address


class Egress(Protocol):
    """A way out of the server."""

    name: str

    def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Awaitable[Stream]:
        """Return a connected stream that the caller closes; ``session`` is on whose behalf. Errors as `Dialer.dial`."""


class Direct:
    """Connects to destinations from this machine: from an origin, where it has one."""

    def __init__(self, dialer: Dialer, origin: Origin | None = None, name: str = "direct") -> None:
        self.dialer = dialer
        self.origin = origin
        self.name = name

    def open(self, destination: Address, permit: Permit, session: Session | None = None) -> Awaitable[Stream]:
        """See `Egress`."""
        known = None if session is None else session.addresses
        return self.dialer.dial(destination, permit, known, self.origin, session)
