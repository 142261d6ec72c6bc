"""Names to addresses and back through c-ares: the system's settings and hosts file, without blocking anyone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, Protocol

import aiodns
import pycares

from tabi.errors import DialError
from tabi.net.failures import NO_SUCH_NAME, resolve_error
from tabi.wire.address import check_found_name, read_number
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address

LOOKUPS = 1000
"""Questions under way at a time in a worker. Each is two queries, and c-ares hangs when its 65,536 ids are used up."""

TIMEOUT, TRIES = 1, 3
"""Seconds that a name server has at first, doubled with each try; and tries. A question without an answer ends after
7 seconds (1 + 2 + 4) at most, with two name servers after 14, about when its waiters leave. The tries are c-ares' own:
it cuts the seconds itself for a server that is quick as a rule, and fewer would give up names that take it long."""


NO_ADDRESS = (aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA)
"""Errors of c-ares for a name that has no address. All others mean that the lookup failed."""

ALONE = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS
"""Without flags c-ares says EDNS by itself."""


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
    """`read_number` for resolvers: c-ares takes some numbers for something else, others for names.

    Raises:
        DialError: the last label is a number, which no name has, but the whole is not an address.
    """
    try:
        return read_number(name)
    except ValueError as exc:
        raise resolve_error(aiodns.error.ARES_EBADNAME, str(exc), name) from exc


def without_zone(address: IP) -> str:
    """An address as name servers know it: a zone means something on one machine only."""
    return str(address).partition("%")[0]


def pointer_of(address: IP) -> str:
    """The name that an address has in the reverse zones."""
    return ip_address(without_zone(address)).reverse_pointer


def read_pointers(name: str, records: Sequence[Any]) -> Named:
    """What the records of c-ares say a name points to, or what it is an alias of; other records are ignored."""
    aliases = {record.name.lower(): record for record in records if record.type == pycares.QUERY_TYPE_CNAME}
    chain = []
    while (alias := aliases.pop(name, None)) is not None:
        chain.append(alias)
        name = alias.data.cname.lower()
    found = [one for one in records if one.type == pycares.QUERY_TYPE_PTR and one.name.lower() == name]
    chain += found
    return make_named([one.data.dname for one in found], min((one.ttl for one in chain), default=None))


class ThreadResolver:
    """The C library's resolver in the loop's threads. It holds nothing: for clients, which resolve now and then."""

    async def resolve(self, name: str) -> list[IP]:
        """See `Resolver`."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as exc:
            code = aiodns.error.ARES_ENOTFOUND if exc.errno in NO_SUCH_NAME else aiodns.error.ARES_ESERVFAIL
            raise resolve_error(code, exc.strerror or "not resolved", name) from exc
        return [ip_address(sockaddr[0]) for _, _, _, _, sockaddr in found]

    async def close(self) -> None:
        """Nothing is held."""


class SystemResolver:
    """c-ares, with /etc/resolv.conf, /etc/hosts and nsswitch.conf as the system has them.

    c-ares cannot take one question back. So a question lasts until c-ares has answered, even if no task waits for it:
    it counts that long, and a task that asks for the same name meanwhile waits for the same answer.

    Args:
        loop: on which the answers arrive.
        nameservers: asked in place of the system's, as ``address`` or ``address:port``.
        timeout: seconds that a name server has at first, TIMEOUT where it is None.
        tries: how often each is asked, TRIES where it is None.
        names_alone: ask for names as they are given: not with the system's search domains, nor in its hosts file.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nameservers: list[str] | None = None,
        timeout: float | None = None,
        tries: int | None = None,
        names_alone: bool = False,
    ) -> None:
        only: dict[str, Any] = {"lookups": "b", "flags": ALONE} if names_alone else {}
        self.resolver = aiodns.DNSResolver(nameservers, loop, timeout=timeout or TIMEOUT, tries=tries or TRIES, **only)
        self.names_alone = names_alone
        self.questions: dict[str | IP, asyncio.Future[Any]] = {}

    async def resolve(self, name: str) -> list[IP]:
        """See `Resolver`; raises DialError at once while LOOKUPS others are asked for. The caller sets the deadline."""
        answer = await self.answer(name)
        if not answer.addresses:
            raise resolve_error(aiodns.error.ARES_ENODATA, answer.text, name)
        return answer.addresses

    async def answer(self, name: str) -> Answer:
        """See `Source`. What the hosts file says has no time to live: c-ares gives 0."""
        found = await self.find(name)
        if isinstance(found, str):
            return Answer([], None, found)
        addresses = [ip_address(bytes(node.addr[0]).decode()) for node in found.nodes]
        # An alias may change sooner than what it leads to.
        ttl = min((record.ttl for record in (*found.nodes, *found.cnames)), default=None)
        return Answer(addresses, ttl)

    async def reverse(self, address: IP) -> Named:
        """See `Source`. Where the hosts file is asked too, c-ares gives no time to live; it keeps answers by itself.

        Then it also does not tell whether an address has no name or the lookup failed.
        """
        found = await self.find(address)
        if isinstance(found, str):
            return Named(None, None, found)
        if self.names_alone:
            return read_pointers(pointer_of(address), found.answer)
        return make_named((found.name, *found.aliases), None)

    async def find(self, key: str | IP) -> Any:
        """The answer of c-ares for a name or an address; a text says why there is none. Raises DialError."""
        question = self.questions.get(key) or self.ask(key)
        await asyncio.wait((question,))  # a waiter that is cancelled leaves the question alone
        try:
            return question.result()
        except aiodns.error.DNSError as exc:
            number, text = exc.args[0], str(exc.args[-1])
            if number in NO_ADDRESS:
                return text.lower()
            raise resolve_error(number, text, str(key)) from exc

    def ask(self, key: str | IP) -> asyncio.Future[Any]:
        """Put a question to c-ares, and keep it until it is answered."""
        if len(self.questions) >= LOOKUPS:
            raise DialError(f"{key}: too many names are being resolved", ReplyCode.GENERAL_FAILURE)

        def answered(question: asyncio.Future[Any]) -> None:
            del self.questions[key]
            question.exception()  # retrieved here, because perhaps no task waits for it any more

        question: asyncio.Future[Any]
        if isinstance(key, str):
            question = self.resolver.getaddrinfo(key, type=socket.SOCK_STREAM)
        elif self.names_alone:
            question = self.resolver.query_dns(pointer_of(key), "PTR")
        else:
            question = self.resolver.gethostbyaddr(without_zone(key))
        self.questions[key] = question
        question.add_done_callback(answered)
        return question

    async def close(self) -> None:
        """Stop c-ares; questions under way end with an error."""
        await self.resolver.close()
        if self.questions:
            await asyncio.wait(self.questions.values())  # c-ares has ended them all; the loop brings it
