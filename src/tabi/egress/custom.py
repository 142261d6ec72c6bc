"""Egresses that a program brings: what they must provide, and how their mistakes are kept from harming anything
else."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from tabi.egress.base import Around, Asked, Egress
from tabi.errors import ConfigError, DialError, TabiError
from tabi.net.dial import AddressFilter
from tabi.net.failures import connect_error, lookup_error, timeout_error
from tabi.net.resolve import find_number
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

log = logging.getLogger("tabi")

T = TypeVar("T")

EXPECTED = "expected an object with async open(destination, address_filter, session), such as a tabi.Egress"


class Opener(Protocol):
    """The least that a program's egress has. `Egress` has the rest, too."""

    def open(
        self, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Awaitable[Stream]:
        """See `Egress`."""


class ConnectionsAlone(Egress):
    """The egress made of an object that has only `open`."""

    def __init__(self, opener: Opener) -> None:
        self.opener = opener
        self.name = type(opener).__name__

    def open(
        self, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Awaitable[Stream]:
        """See `Egress`."""
        return self.opener.open(destination, address_filter, session)


class CustomEgress(Around):
    """Holds an egress of a program: it adds a deadline, and turns every exception into a reply.

    The address filter checks the address that a client asks for, and those that a decision was made on, even if the
    program does not.

    Args:
        name: what rules call it.
        given: the program's object, which is used as long as the server lives.
        seconds: the deadline for opening.
    """

    def __init__(self, name: str, given: Opener, seconds: float) -> None:
        super().__init__(given if isinstance(given, Egress) else ConnectionsAlone(given))
        self.name = name
        self.seconds = seconds

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`."""
        check_known(destination, address_filter, session)
        stream: Any = await self.within(lambda: self.below.open(destination, address_filter, session), destination)
        if not isinstance(stream, Stream):
            log.error("egress %s: open returned %s, expected a tabi.Stream", self.name, type(stream).__name__)
            raise self.failure("open returned no stream")
        return stream

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`."""
        check_known(destination, address_filter, session)
        return await self.within(lambda: self.below.ask(command, destination, address_filter, session), destination)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`."""
        return await self.within(lambda: self.below.associate(session), "datagrams")

    async def within(self, use: Callable[[], Awaitable[T]], what: object) -> T:
        """Use the program's object, within the deadline. Raises TabiError for every exception of the object."""
        try:
            async with asyncio.timeout(self.seconds):
                return await use()
        except TabiError:
            raise
        except OSError as exc:  # includes TimeoutError, from our deadline or with the same meaning
            if isinstance(exc, TimeoutError):
                raise timeout_error(self.seconds, what) from exc
            if isinstance(exc, socket.gaierror | socket.herror):
                raise lookup_error(exc, str(what)) from exc
            raise connect_error(exc.errno or errno.EIO, what) from exc
        except Exception as exc:
            log.exception("egress %s failed", self.name)
            raise self.failure(f"failed: {type(exc).__name__}") from exc

    def failure(self, text: str) -> DialError:
        """The error for a mistake of the program: the log has more of it than the client."""
        return DialError(f"egress {self.name}: {text}", ReplyCode.GENERAL_FAILURE, errno.EIO)

    def describe(self) -> str:
        """See `Egress`."""
        text = "" if isinstance(self.below, ConnectionsAlone) else self.below.describe()
        return self.name if text in ("", self.name) else f"{self.name}: {text}"


def check_known(destination: Address, address_filter: AddressFilter, session: Session | None) -> None:
    """Ask the address filter about every address of a destination that is known here. Raises PolicyDenied."""
    host = destination.host
    known = None if session is None else session.known(destination)
    if known is None:
        number = find_number(host) if isinstance(host, str) else host
        known = () if number is None else (number,)
    for address in known:
        address_filter(address)


def check_egresses(given: Mapping[str, Opener]) -> None:
    """Check the egresses that a program brings. Raises ConfigError."""
    for name, egress in given.items():
        if not isinstance(name, str) or not name or not name.isprintable() or "://" in name:
            raise ConfigError(f"{name!r}, expected a name that can be printed and is not a URL", "egresses")
        why = unusable(egress)
        if why is not None:
            raise ConfigError(why, f"egresses.{name}")


def unusable(egress: object) -> str | None:
    """Why an object cannot be an egress, in words; it is not shown, for it may hold a password."""
    if isinstance(egress, type):
        return f"the class {egress.__name__} itself, {EXPECTED}"
    method = getattr(egress, "open", None)
    if not callable(method):
        return f"{type(egress).__name__}, {EXPECTED}"
    if isinstance(egress, Egress) and type(egress).open is Egress.open:
        return f"{type(egress).__name__} does not override open, {EXPECTED}"
    try:
        inspect.signature(method).bind(None, None, None)
    except TypeError:
        return f"{type(egress).__name__}.open does not take destination, address_filter and session, {EXPECTED}"
    except ValueError:  # its parameters cannot be read
        pass
    return None
