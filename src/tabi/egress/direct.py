"""The egress without a proxy: resolve, ask the guard, connect."""

from __future__ import annotations

from collections.abc import Awaitable

from tabi.net.dial import Dialer, Permit
from tabi.net.stream import Stream
from tabi.wire.address import Address


class Direct:
    """Connects to destinations from this machine."""

    name = "direct"

    def __init__(self, dialer: Dialer) -> None:
        self.dialer = dialer

    def open(self, destination: Address, permit: Permit) -> Awaitable[Stream]:
        """Return a connected stream that the caller closes. Errors as `Dialer.dial`."""
        return self.dialer.dial(destination, permit)
