"""What finds the addresses of names: `Resolver` for dialling, `Source` for the cache in front of name servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Protocol

from tabi.net.failures import resolve_error
from tabi.wire.address import check_found_name, read_number

IP = IPv4Address | IPv6Address

LOOKUPS = 1000
"""Questions about names under way at a time in a worker."""


class Resolver(Protocol):
    """The part of a resolver that dialling needs."""

    async def resolve(self, name: str) -> list[IP]:
        """Addresses of ``name``, best first, at least one.

        Raises:
            DialError: there are none.
        """

    async def close(self) -> None:
        """Give back what the resolver holds."""


def check_resolver(resolver: object) -> None:
    """Raise TypeError and say what is wrong, if an object of a program is not a `Resolver`."""
    if isinstance(resolver, type):
        raise TypeError(f"resolver: the class {resolver.__name__} itself, expected {resolver.__name__}()")
    for name in ("resolve", "close"):
        if not callable(getattr(resolver, name, None)):
            raise TypeError(f"resolver: {type(resolver).__name__} does not have `async def {name}`")


class Answer(NamedTuple):
    """The answer of a name server for a name."""

    addresses: list[IP]
    """Best first; empty if the name does not exist or has none."""
    ttl: float | None
    """Seconds that the answer may be kept; None if that is not known."""
    text: str = "no address"
    """Why there are none."""
    whole: bool = True
    """Every kind of addresses that was asked for is answered. If not, there are addresses of the others."""
    rest: asyncio.Task[Answer] | None = None
    """Gives the answer again, with what comes later; who takes the answer waits for it or cancels it."""


class Named(NamedTuple):
    """The answer of a name server for an address."""

    name: str | None
    """As `check_found_name` has it; None where the address has none."""
    ttl: float | None
    """See `Answer`."""
    text: str = "no name"
    """Why there is no name."""


def make_named(texts: Iterable[str | bytes], ttl: float | None) -> Named:
    """The first of some names that is valid: an answer about an address may hold anything."""
    reason = "no name"
    for text in texts:
        try:
            return Named(check_found_name(text if isinstance(text, str) else text.decode("ascii", "replace")), ttl)
        except ValueError as exc:
            reason = str(exc)
    return Named(None, ttl, reason)


class Source(Protocol):
    """Where answers come from, for a cache in front of it."""

    async def answer(self, name: str) -> Answer:
        """Ask for ``name``. The source itself limits how long that takes.

        Raises:
            DialError: no server answered, or they answered only that they cannot.
        """

    async def reverse(self, address: IP) -> Named:
        """Ask what ``address`` is called. As `answer`."""

    async def close(self) -> None:
        """Give back what the source holds; questions under way have been cancelled."""


def find_number(name: str) -> IPv4Address | None:
    """`read_number` for resolvers: they take some numbers for something else, others for names.

    Raises:
        DialError: the last label is a number, which no name has, but the whole is not an address.
    """
    try:
        return read_number(name)
    except ValueError as exc:
        raise resolve_error(str(exc), name) from exc


def without_zone(address: IP) -> str:
    """An address as name servers know it: a zone means something on one machine only."""
    return str(address).partition("%")[0]


def pointer_of(address: IP) -> str:
    """The name that an address has in the reverse zones."""
    return ip_address(without_zone(address)).reverse_pointer


class ThreadResolver:
    """The C library's resolver in the loop's threads. It holds nothing: for clients, which resolve now and then."""

    async def resolve(self, name: str) -> list[IP]:
        """See `Resolver`."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as exc:
            raise resolve_error(exc.strerror or "not resolved", name) from exc
        return [ip_address(sockaddr[0]) for _, _, _, _, sockaddr in found]

    async def close(self) -> None:
        """Nothing is held."""
