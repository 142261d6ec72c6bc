"""The base class of all egresses, also of those that a program brings."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple

from tabi.errors import DialError
from tabi.net.dial import AddressFilter
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.grammar import Parameters
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ClientMachine, Reply, ReplyCode

CONNECTIONS_ALONE = "it carries no datagrams, no calls of BIND, and no questions for names"
NOBODY_LISTENS = "it has no proxy that could listen for a pool"

CONNECTS = ("connect", "forward")
QUESTIONS = ("resolve", "resolve_ptr")


class Asked(NamedTuple):
    """The answer of a SOCKS5 proxy to a command."""

    stream: Stream
    """The caller closes it."""
    machine: ClientMachine
    """The state after the first reply."""
    reply: Reply
    """A success."""


class Egress:
    """An egress of the server. A subclass needs only `open` to carry connections::

        class Tunnel(tabi.Egress):
            async def open(self, destination, address_filter, session=None):
                if not isinstance(destination.host, str):
                    address_filter(destination.host)
                return await tabi.Proxy(self.url).connect(*destination)

    Its attributes and `ask`, `associate` and `cannot` say what else it can do. One egress serves many
    sessions at the same time.
    """

    name: str = ""
    """Its name in rules and in the access log. An egress without a name is a part of another one."""
    resolves_locally: bool = False
    """Whether this machine resolves the names of destinations."""
    direct: bool = False
    """Whether it uses no proxy, so that the other end of a stream is the destination."""
    source: SourceBinding | None = None
    """The source of the connections of a direct egress; None: the system chooses."""

    # --- what it does ---

    def open(
        self, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Awaitable[Stream]:
        """Return a connected stream that the caller closes.

        Args:
            destination: where to.
            address_filter: is called with each address before it is dialled, and raises PolicyDenied.
            session: on whose behalf.

        Raises:
            DialError: the destination, or a proxy, cannot be reached; ``reply_code`` says how.
            PolicyDenied: as ``address_filter`` raises it.
            AuthError, ProxyError, RemoteProtocolError: a proxy on the way refused, or is not a proxy.
        """
        raise NotImplementedError

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """Let the last proxy of this egress carry out a command of SOCKS5 other than CONNECT and UDP ASSOCIATE.

        Raises:
            DialError: no proxy can do it (reply 07), or it cannot be reached.
            PolicyDenied, AuthError, ProxyError, RemoteProtocolError: as `open`.
        """
        raise self.refusal()

    async def associate(self, session: Session | None = None) -> UdpPath:
        """Open a path for datagrams; the caller closes it. Errors as `ask`."""
        raise self.refusal()

    async def before_resolve(self, name: str, session: Session | None = None) -> None:
        """Called before a name is resolved here for a client that asks only for that. May wait; raises TabiError."""

    def refusal(self) -> DialError:
        """The error for a command that this egress cannot carry."""
        return DialError(
            f"egress {self.name or type(self).__name__}: {CONNECTIONS_ALONE}", ReplyCode.COMMAND_NOT_SUPPORTED
        )

    # --- what it says of itself ---

    @property
    def path(self) -> list[str]:
        """The egress that it begins with and its proxies, for people; empty if it is direct."""
        return []

    def steps(self) -> list[str]:
        """How a chain that begins with this egress describes it: by its name, or its path if it has no name."""
        return [self.name] if self.name else self.path

    def describe(self) -> str:
        """This egress for people, without secrets."""
        path = self.path
        return f"{self.name}: through {', then '.join(path)}" if path else self.name

    def cannot(self, command: str) -> str | None:
        """The reason why it cannot carry a command, if that is known without asking; None: it may.

        ``command`` is called as in the access log: connect, bind, associate, resolve.
        """
        if command in CONNECTS or (self.resolves_locally and command in QUESTIONS):
            return None
        return str(self.refusal())

    @property
    def leads_nowhere(self) -> bool:
        """Whether this egress refuses everything."""
        return False

    def chooser(self) -> Egress | None:
        """The pool in this egress that chooses a member for each session; None if there is no pool."""
        return None

    def explain_choice(self, parameters: Parameters) -> list[str]:
        """What the parameters of a user name select here, for people. Raises DialError if no member fits."""
        pool = self.chooser()
        return [f"nothing: {self.name} is not a pool"] if pool is None else pool.explain_choice(parameters)

    def explain_member(self, destination: Address, session: Session, now: float) -> str | None:
        """Which member of a pool a session would take now, and why, for people; None: there is no pool.

        This changes nothing. ``now`` is of `time.monotonic`. Raises DialError if no member is left.
        """
        pool = self.chooser()
        return None if pool is None else pool.explain_member(destination, session, now)


class Around(Egress):
    """Does what the egress below does. A subclass changes a part of it.

    Args:
        below: the other egress.
    """

    def __init__(self, below: Egress) -> None:
        self.below = below
        self.name = below.name
        self.resolves_locally = below.resolves_locally
        self.direct = below.direct
        self.source = below.source

    def open(
        self, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Awaitable[Stream]:
        """See `Egress`."""
        return self.below.open(destination, address_filter, session)

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`."""
        return await self.below.ask(command, destination, address_filter, session)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`."""
        return await self.below.associate(session)

    async def before_resolve(self, name: str, session: Session | None = None) -> None:
        """See `Egress`."""
        await self.below.before_resolve(name, session)

    def refusal(self) -> DialError:
        """See `Egress`."""
        return self.below.refusal()

    @property
    def path(self) -> list[str]:
        """See `Egress`."""
        return self.below.path

    def describe(self) -> str:
        """See `Egress`."""
        return self.below.describe()

    def cannot(self, command: str) -> str | None:
        """See `Egress`."""
        return None if self.resolves_locally and command in QUESTIONS else self.below.cannot(command)

    @property
    def leads_nowhere(self) -> bool:
        """See `Egress`."""
        return self.below.leads_nowhere

    def chooser(self) -> Egress | None:
        """See `Egress`."""
        return self.below.chooser()
