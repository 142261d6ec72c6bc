"""The common part of all egresses through one proxy: reach it, with TLS first if it wants that, ask it, and turn
failures into the right errors.

Vocabulary: to *ask* is to send the request and to read the proxy's answer; what follows it is the destination's.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any, ClassVar, NamedTuple, TypeVar

from tabi.egress.base import CONNECTIONS_ALONE, Egress
from tabi.errors import AuthError, DialError, ProxyError, ProxyTimeout, RemoteProtocolError, TabiError
from tabi.net.dial import AddressFilter
from tabi.net.failures import is_deadline
from tabi.net.resolve import find_number
from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.net.tls import TlsShared, connect_tls
from tabi.policy.guard import allow_any_address
from tabi.session import Session
from tabi.url import ProxyURL
from tabi.wire.address import Address
from tabi.wire.machine import NEED_DATA
from tabi.wire.socks5 import ReplyCode

T = TypeVar("T")

PEEK = 4096
"""Octets of one look at an answer."""


class UpstreamTls(NamedTuple):
    """How a proxy is spoken with inside TLS: its certificate has to name the proxy's host."""

    context: ssl.SSLContext
    shared: TlsShared


class Upstream(Egress):
    """Reaches one proxy and talks to it.

    Args:
        below: the egress that reaches the proxy: `Direct`, or the proxy before it in a chain.
        proxy: where it listens.
        deadlines: for its part, from the open connection to its answer, TLS included.
        tls: speaks TLS with it first.
    """

    protocol: ClassVar[str]

    def __init__(self, below: Egress, proxy: Address, deadlines: FixedTimeouts, tls: UpstreamTls | None = None) -> None:
        self.below = below
        self.proxy = proxy
        self.deadlines = deadlines
        self.seconds = deadlines.seconds
        self.tls = tls

    @property
    def url(self) -> ProxyURL:
        """The proxy, as text for people, without its user."""
        return ProxyURL(self.protocol, self.proxy, tls=self.tls is not None)

    @property
    def path(self) -> list[str]:
        """See `Egress`."""
        return [*self.below.steps(), str(self.url)]

    @property
    def leads_nowhere(self) -> bool:
        """See `Egress`."""
        return self.below.leads_nowhere

    def chooser(self) -> Egress | None:
        """See `Egress`."""
        return self.below.chooser()

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """Return a stream to ``destination`` that the caller closes; see `Egress`.

        Raises:
            PolicyDenied: ``address_filter`` forbids an address of the destination, as far as one is known here.
            DialError: the proxy cannot be reached, or cannot be asked for such a destination.
            AuthError: it does not accept the user, or wants one.
            ProxyError: it refused, broke the connection, or did not answer in time; ``reply_code`` says how.
            RemoteProtocolError: the server there is not such a proxy.
        """
        destination = self.choose(destination, address_filter, session)
        return await self.connect(destination, session)

    def choose(self, destination: Address, address_filter: AddressFilter, session: Session | None) -> Address:
        """What to ask the proxy for: the destination itself, whose name the proxy resolves.

        But if a name was resolved for a decision, the proxy is asked for an address of that decision: it could find
        another one. Raises PolicyDenied; DialError for a name that is a number, but no address.
        """
        host, port = destination
        known = None if session is None else session.known(destination)
        if known:
            for address in known:
                address_filter(address)
            return Address(next((ip for ip in known if isinstance(ip, IPv4Address)), known[0]), port)
        number = (
            (find_number(host) if address_filter is not allow_any_address else None) if isinstance(host, str) else host
        )
        if number is not None:
            address_filter(number)
        return destination

    async def connect(self, destination: Address, session: Session | None) -> Stream:
        """Ask the proxy for a connection. Arguments and errors as `open` has them."""
        raise NotImplementedError

    async def ping(self) -> str:
        """Reach the proxy and have it answer, for nobody: as far as its protocol goes without a destination.

        Returns:
            What it answered, in a few words.

        Raises:
            DialError, AuthError, ProxyError, RemoteProtocolError: as `open`, but for what only a destination causes.
        """
        raise NotImplementedError

    async def converse(
        self,
        talk: Callable[[Stream], Awaitable[T]],
        session: Session | None,
        below: Egress | None = None,
        deadlines: FixedTimeouts | None = None,
    ) -> tuple[Stream, T]:
        """Reach the proxy and talk to it, with one deadline over everything from the open connection on.

        Args:
            talk: asks.
            session: on whose behalf; the egress below may choose by it.
            below: reaches the proxy in place of the usual egress.
            deadlines: in place of the usual ones.

        Returns:
            The stream, which the caller closes, and what ``talk`` gave.

        Raises:
            As ``talk`` and the egress below, but an OSError becomes a ProxyError.
        """
        deadlines = deadlines or self.deadlines
        stream = await (below or self.below).open(self.proxy, allow_any_address, session)
        deadlines.start(stream)
        try:
            if self.tls is not None:
                await connect_tls(stream, self.tls.context, self.proxy.host, self.tls.shared)
            found = await talk(stream)
            stream.check()  # it may have expired in the very turn in which the answer came
            return stream, found
        except BaseException as exc:
            stream.close()
            if is_deadline(exc):
                raise ProxyTimeout(f"{self.proxy}: the proxy did not answer within {self.seconds:g} s") from None
            if isinstance(exc, AuthError):  # in a chain the proxy's name matters
                raise AuthError(f"{self.proxy}: {exc}") from exc
            if isinstance(exc, RemoteProtocolError):  # and its reply code is for clients that break the RFC
                raise RemoteProtocolError(f"{self.proxy}: {exc}") from exc
            if isinstance(exc, OSError) and not isinstance(exc, TabiError):
                text = (exc.strerror or str(exc)).lower()
                raise ProxyError(f"{self.proxy}: the connection to the proxy broke: {text}") from exc
            raise
        finally:
            deadlines.stop(stream)

    def refusal(self) -> DialError:
        """See `Egress`."""
        return DialError(f"{self.proxy} is not a SOCKS5 proxy: {CONNECTIONS_ALONE}", ReplyCode.COMMAND_NOT_SUPPORTED)

    def unsayable(self, exc: ValueError) -> DialError:
        """The error for a destination that this proxy's protocol cannot express."""
        return DialError(f"{self.proxy}: {exc}", ReplyCode.HOST_UNREACHABLE)


async def read_exactly(stream: Stream, machine: Any, spare: int = 0) -> Any:
    """Read the proxy's next message, and no octet more; ``missing`` of the machine says how many there are at least.

    ``spare`` octets more may be asked for if nothing can follow the message: then the read comes back short,
    which says that the queue is empty, and the next one need not find out (10 us for a connection).
    """
    while (message := machine.next_event()) is NEED_DATA:
        machine.receive_data(await stream.receive(machine.missing + spare))
    return message


async def read_by_looking(stream: Stream, machine: Any) -> Any:
    """Read the next message if only its own octets tell its length: peek first, then take what belongs to it."""
    while True:
        data = await stream.peek(PEEK)
        machine.receive_data(data)
        message = machine.next_event()
        over = 0 if message is NEED_DATA else len(machine.trailing_data)
        # It has been looked at, so it is there: this does not wait. All that came before has been taken.
        count = len(data) - over
        while count > 0:
            count -= len(await stream.receive(count))
        if message is not NEED_DATA:
            return message
