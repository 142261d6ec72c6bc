"""An inspector in front of an egress: it may delay, refuse or redirect a connection, or refuse a name."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from tabi.egress.base import Around, Asked, Egress
from tabi.errors import ConfigError, DialError, TabiError
from tabi.net.dial import AddressFilter
from tabi.net.failures import timeout_error
from tabi.net.resolve import find_number
from tabi.net.stream import Stream
from tabi.session import Session
from tabi.wire.address import Address, make_host
from tabi.wire.socks5 import Command, ReplyCode

log = logging.getLogger("tabi")

T = TypeVar("T")

AddressFilterFor = Callable[[Session, int], AddressFilter]
"""The address filter of a session for a port."""


class DialInspector(Protocol):
    """Stands before the egress. Both methods may wait, within the deadline of connecting.

    They refuse by raising: a `DialError` has a reply code, a `PolicyDenied` is "not allowed".
    """

    async def dial(self, session: Session | None, destination: Address) -> Address | None:
        """Called before a connection is opened for a session. Returns where it is to go instead; None: as asked.

        For another destination the guard is asked again, but not the rules.
        """
        return None  # type checkers take a method with a docstring alone for an abstract one

    async def resolve(self, session: Session | None, name: str) -> None:
        """Called before a name is resolved, here or by the proxy that it goes to, and not for datagrams."""
        return None


class Inspected(Around):
    """Asks an inspector, then the egress below.

    Args:
        below: the other egress.
        inspector: is asked first.
        address_filter_for: gives the address filter for another port than the one that was asked for.
        seconds: the deadline for each call of the inspector.
    """

    def __init__(
        self, below: Egress, inspector: DialInspector, address_filter_for: AddressFilterFor, seconds: float
    ) -> None:
        super().__init__(below)
        self.inspector = inspector
        self.address_filter_for = address_filter_for
        self.seconds = seconds

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        found = await self.within(lambda: self.inspector.dial(session, destination), destination)
        if found is not None:
            port = destination.port
            destination = self.read(found)
            if session is not None and destination.port != port:
                address_filter = self.address_filter_for(session, destination.port)
        await self.before_lookup(destination, session)
        return await self.below.open(destination, address_filter, session)

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`: the inspector hears of names that are to be resolved."""
        if command == Command.RESOLVE:
            await self.before_lookup(destination, session)
        return await self.below.ask(command, destination, address_filter, session)

    async def before_resolve(self, name: str, session: Session | None = None) -> None:
        """See `Egress`."""
        await self.before_lookup(Address(name, 0), session)

    async def before_lookup(self, destination: Address, session: Session | None) -> None:
        """Ask the inspector about the name of a destination, if it has one."""
        host = destination.host
        if isinstance(host, str) and find_number(host) is None:
            await self.within(lambda: self.inspector.resolve(session, host), destination)

    async def within(self, ask: Callable[[], Awaitable[T]], what: Address) -> T:
        """Ask the inspector, within the deadline. Raises TabiError for every exception of it."""
        try:
            async with asyncio.timeout(self.seconds):
                return await ask()
        except TabiError:
            raise
        except TimeoutError:
            raise timeout_error(self.seconds, what) from None
        except Exception as exc:
            log.exception("the dial inspector failed")
            raise self.failure(f"failed: {type(exc).__name__}") from exc

    def read(self, found: Any) -> Address:
        """The destination that an inspector gives. Raises DialError if it is not valid."""
        try:
            host, port = found
            if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
                raise ValueError(f"{port!r}, expected a port from 1 to 65535")
            return Address(make_host(host), port)
        except (TypeError, ValueError) as exc:
            log.error("the dial inspector gave %r, expected (host, port): %s", found, exc)
            raise self.failure("gave no destination") from exc

    @staticmethod
    def failure(text: str) -> DialError:
        """The error for a mistake of the inspector: the log has more of it than the client."""
        return DialError(f"the dial inspector {text}", ReplyCode.GENERAL_FAILURE, errno.EIO)


def check_inspector(inspector: object, path: str) -> None:
    """Check that something can be a `DialInspector`. Raises ConfigError."""
    for name in ("dial", "resolve"):
        if isinstance(inspector, type) or not callable(getattr(inspector, name, None)):
            kind = inspector.__name__ if isinstance(inspector, type) else type(inspector).__name__
            raise ConfigError(f"{kind}, expected an object with async dial(…) and resolve(…): a DialInspector", path)
