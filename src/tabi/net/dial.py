"""Opening TCP connections: one address at once, several by Happy Eyeballs (RFC 8305), one deadline over everything."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tabi.errors import DialError
from tabi.net.cache import NameCache
from tabi.net.failures import connect_error, is_deadline, lookup_error, no_port_error, timeout_error
from tabi.net.listen import route_to
from tabi.net.race import Race, find_failure, find_itself, interleave
from tabi.net.reactor import OUT, Reactor
from tabi.net.resolve import Resolver, find_number
from tabi.net.sockaddr import on_link_of, with_scope
from tabi.net.source import SourceBinding
from tabi.net.stream import WRITABLE, Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.policy.guard import LocalAddresses
from tabi.session import Session
from tabi.wire.address import Address, Host, check_found_name
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address
AddressFilter = Callable[[IP], None]
"""Raises PolicyDenied for an address that must not be dialled."""

Lookup = Callable[[str], Sequence[IP] | None]
Reverse = Callable[..., Awaitable[str]]

# Plain ints: socket's own are enums, whose operators are written in Python.
AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY = (
    int(option) for option in (socket.AF_INET, socket.AF_INET6, socket.IPPROTO_TCP, socket.TCP_NODELAY)
)
TCP_QUICKACK: Any = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it
NONBLOCK = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
EINPROGRESS, EADDRNOTAVAIL = errno.EINPROGRESS, errno.EADDRNOTAVAIL
CONNECTING = (0, errno.EALREADY)
SocketType = socket.SocketType


def unknown(name: str) -> None:
    """The lookup of a resolver that keeps nothing."""


class Dialer:
    """Opens connections to addresses and names.

    Args:
        reactor: on which the streams live.
        resolver: asked for names; those that a `NameCache` knows cost no task and no turn of the loop.
        seconds: the deadline for resolving and connecting together.
        own: has the ports of this program to which nothing connects; None: there are none.
    """

    def __init__(self, reactor: Reactor, resolver: Resolver, seconds: float, own: LocalAddresses | None = None) -> None:
        self.reactor = reactor
        self.resolver = resolver
        self.lookup: Lookup = resolver.lookup if isinstance(resolver, NameCache) else unknown
        """The addresses of a name that are known already, or None. Raises DialError where it is known to have none."""
        self.seconds = seconds
        self.own = LocalAddresses() if own is None else own
        self.deadlines = FixedTimeouts(reactor.loop, seconds)
        self.speaks_first = False

    def speaking_first(self) -> Dialer:
        """A dialer for connections on which we send first, as with any proxy; closed with this one.

        The last packet of TCP's handshake then waits for the first octets and goes with them (tcp(7), TCP_QUICKACK):
        this saves one packet for both kernels, and the proxy is woken once, not twice.
        """
        other = copy(self)
        other.speaks_first = TCP_QUICKACK is not None
        return other

    def within(self, seconds: float) -> Dialer:
        """A copy of this dialer with another deadline. The caller closes its ``deadlines``; the rest is closed with
        this one."""
        other = copy(self)
        other.seconds, other.deadlines = seconds, FixedTimeouts(self.reactor.loop, seconds)
        return other

    def dial(
        self,
        destination: Address,
        address_filter: AddressFilter,
        known: Sequence[IP] | None = None,
        binding: SourceBinding | None = None,
        session: Session | None = None,
    ) -> Awaitable[Stream]:
        """Connect, after ``address_filter`` has seen the very addresses that are dialled.

        ``known`` are those of a name that was resolved already: a decision was made on them, and another answer may
        differ. ``binding`` says where from, for which ``session``.

        Raises:
            DialError: it could not be resolved or reached in time; ``reply_code`` says how.
            PolicyDenied: as ``address_filter`` raises it. One forbidden address among several forbids them all.
        """
        host = destination.host
        if isinstance(host, str):
            known = self.lookup(host) if known is None else known
            if known is None:
                return self.dial_name(destination, host, address_filter, binding, session)
            if len(known) > 1:
                for address in known:
                    address_filter(address)
                return self.dial_many(destination, known, binding, session)
            (host,) = known
        address_filter(host)
        return self.dial_one(destination, host, binding, session)

    async def dial_name(
        self,
        destination: Address,
        name: str,
        address_filter: AddressFilter,
        binding: SourceBinding | None,
        session: Session | None,
    ) -> Stream:
        """Resolve a name that is not known yet, and connect to it."""
        try:
            async with asyncio.timeout(self.seconds):
                addresses = await self.find(name, address_filter, session)
                if len(addresses) > 1:
                    return await self.dial_many(destination, addresses, binding, session)
                return await self.dial_one(destination, addresses[0], binding, session)
        except DialError:
            raise
        except TimeoutError:
            raise timeout_error(self.seconds, destination) from None

    async def find(self, name: str, address_filter: AddressFilter, session: Session | None = None) -> list[IP]:
        """The addresses of a name, best first, every one of them permitted. The caller sets the deadline.

        ``session`` is the one that it is for: its client's questions are counted.

        Raises:
            DialError: it has none.
            PolicyDenied: as ``address_filter`` raises it.
        """
        known = self.lookup(name)
        if known is not None:
            addresses = list(known)
        elif (number := find_number(name)) is not None:
            addresses = [number]
        else:
            try:
                addresses = await self.resolver.resolve(name, *self.client_of(session))
            except DialError:
                raise
            except (OSError, UnicodeError) as exc:  # of an embedding program's, which may not know DialError
                raise lookup_error(exc, name) from exc
        for address in addresses:
            address_filter(address)
        return addresses

    def client_of(self, session: Session | None) -> tuple[Host, ...]:
        """Who is counted, for a resolver that counts."""
        return (session.client.host,) if session is not None and isinstance(self.resolver, NameCache) else ()

    async def find_name(self, address: IP, session: Session | None = None) -> str:
        """What an address is called, as `check_found_name` has it. The caller sets the deadline. See `find`.

        Raises:
            DialError: it has no name, or the resolver of the embedding program cannot find the names of addresses
                (reply 07).
        """
        reverse: Reverse | None = getattr(self.resolver, "reverse", None)
        if reverse is None:
            text = f"{address}: the resolver finds no names of addresses"
            raise DialError(text, ReplyCode.COMMAND_NOT_SUPPORTED)
        try:
            return check_found_name(await reverse(address, *self.client_of(session)))
        except DialError:
            raise
        except (OSError, UnicodeError) as exc:
            raise lookup_error(exc, str(address)) from exc
        except ValueError as exc:
            raise DialError(f"{address}: {exc}", ReplyCode.HOST_UNREACHABLE) from exc

    async def dial_one(
        self, destination: Address, host: IP, binding: SourceBinding | None = None, session: Session | None = None
    ) -> Stream:
        """Connect to one address: a session's usual way, kept to four system calls."""
        stream = self.start(destination, host, binding, session)
        if stream.events:
            return stream
        self.deadlines.start(stream)
        try:
            while not stream.events & WRITABLE:
                await stream.writable()
            number = find_failure(stream) or find_itself(stream)
            if number:
                raise connect_error(number, destination)
        except BaseException as exc:
            stream.close()
            if is_deadline(exc):
                raise timeout_error(self.seconds, destination) from None
            raise
        finally:
            self.deadlines.stop(stream)
        return stream

    async def dial_many(
        self, destination: Address, addresses: Sequence[IP], binding: SourceBinding | None, session: Session | None
    ) -> Stream:
        """Connect to the address that answers first. If the first address answers at once, this costs no more than a
        connection to a single address."""
        first: Stream | DialError
        try:
            first = self.start(destination, addresses[0], binding, session)
            if first.events:
                return first
        except DialError as exc:
            first = exc
        race = Race(self.reactor, partial(self.start, destination, binding=binding, session=session), destination)
        self.deadlines.start(race)
        try:
            return await race.run(first, interleave(addresses)[1:])
        except DialError:
            raise
        except TimeoutError:
            raise timeout_error(self.seconds, destination) from None
        finally:
            del first  # an error's traceback has this frame: a circle
            self.deadlines.stop(race)

    def start(
        self, destination: Address, host: IP, binding: SourceBinding | None = None, session: Session | None = None
    ) -> Stream:
        """Begin to connect to one address: ``events`` are OUT where that is done already. Raises DialError."""
        if destination.port in self.own.private and self.own.is_here(host):
            raise DialError(f"{destination} is for the operators of this proxy", ReplyCode.NOT_ALLOWED)
        try:
            if binding is not None:
                return self.start_from(binding, destination, host, session)
            return self.start_at(destination, host)
        except DialError as exc:
            if exc.errno != errno.EINVAL or session is None:
                raise
            # So says connect(2) of a link-local address without its interface.
            scoped = on_link_of(host, session.client.host)
            if scoped is host:
                raise
        return self.start(destination, scoped, binding, session)

    def start_from(self, binding: SourceBinding, destination: Address, host: IP, session: Session | None) -> Stream:
        """Begin to connect from a source: from the next of its addresses where one has no port left.

        The system says that at once, when a socket is bound or begins to connect.
        """
        failure: DialError | None = None
        try:
            for source in binding.sources_for(host.version, session):
                try:
                    return self.start_at(destination, host, binding, source)
                except DialError as exc:
                    if exc.errno != EADDRNOTAVAIL:
                        raise
                    failure = failure or exc
        except DialError:
            raise
        except OSError as exc:
            raise connect_error(exc.errno or errno.EIO, destination) from exc
        assert failure is not None
        raise failure

    def start_at(
        self, destination: Address, host: IP, binding: SourceBinding | None = None, source: IP | None = None
    ) -> Stream:
        """Begin to connect from one address, or from one that the system chooses."""
        family = AF_INET if isinstance(host, IPv4Address) else AF_INET6
        try:
            port = destination.port
            sockaddr = (str(host), port) if family == AF_INET else with_scope(host, port)
            sock = SocketType(family, NONBLOCK, 0)
        except OSError as exc:
            raise connect_error(exc.errno or errno.EIO, destination) from exc
        try:
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            if self.speaks_first:
                sock.setsockopt(IPPROTO_TCP, TCP_QUICKACK, 0)
            if binding is not None:
                prepare(binding, sock, source, destination)
            number = sock.connect_ex(sockaddr)
            if number == EINPROGRESS:
                # A destination on this machine has answered meanwhile: asking again is cheaper than being told.
                number = sock.connect_ex(sockaddr)
            if number not in CONNECTING:
                raise failure_of(number, destination, host, source)
            stream = Stream(self.reactor, sock)
        except BaseException:
            sock.close()
            raise
        stream.peer = destination if host is destination.host else Address(host, destination.port)
        if not number:
            if number := find_itself(stream):
                stream.close()
                raise connect_error(number, destination)
            stream.events = OUT
        return stream

    async def close(self) -> None:
        """Stop the timer and the resolver."""
        self.deadlines.close()
        await self.resolver.close()


class StillDialer(Dialer):
    """Opens nothing, and needs no loop: its egresses can be inspected, but not used.

    Args:
        seconds: what the other dialer would have.
    """

    def __init__(self, seconds: float) -> None:
        nobody: Any = None
        self.reactor = self.resolver = nobody
        self.lookup = unknown
        self.seconds = seconds
        self.deadlines = FixedTimeouts(nobody, seconds)
        self.speaks_first = False

    def start(
        self, destination: Address, host: IP, binding: SourceBinding | None = None, session: Session | None = None
    ) -> Stream:
        """See `Dialer`. Raises RuntimeError."""
        raise RuntimeError(f"{destination}: an egress for inspection only was used")

    async def find(self, name: str, address_filter: AddressFilter, session: Session | None = None) -> list[IP]:
        """See `Dialer`. Raises RuntimeError."""
        raise RuntimeError(f"{name}: an egress for inspection only was used")


def prepare(binding: SourceBinding, sock: SocketType, source: IP | None, destination: Address) -> None:
    """Apply a source binding to a socket. Raises DialError, which names the key that failed."""
    try:
        binding.prepare(sock, source)
    except OSError as exc:
        number = exc.errno or errno.EIO
        error = connect_error(number, destination)
        raise DialError(f"{error} ({exc.filename} of the egress)", error.reply_code or 1, number) from exc


def failure_of(number: int, destination: Address, host: IP, source: IP | None) -> DialError:
    """The error for a connect(2) that has failed at once.

    EADDRNOTAVAIL says that all ports are used up, or that no address of this machine fits: a datagram socket, which has
    other ports, tells which.
    """
    if number == EADDRNOTAVAIL:
        try:
            return no_port_error(destination, source or route_to(host))
        except OSError:
            pass
    return connect_error(number, destination)
