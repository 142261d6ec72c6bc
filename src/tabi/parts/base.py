"""What all pieces have in common, and what a server gives them when it turns them into running parts.

A piece is a value: cheap to make, without a loop, equal to another one with the same contents. `Piece.build` makes the
running part of it for one listener. A server makes its listeners' pieces from its configuration, and builds them too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from tabi.config import Timeouts, Tls
from tabi.egress.base import Egress
from tabi.errors import ConfigError
from tabi.ingress.authenticate import Ask, PasswordAuthenticator
from tabi.ingress.connect import Connect
from tabi.ingress.conversation import Ingress
from tabi.ingress.gate import Gate, OpenRoute
from tabi.ingress.http import Forwarding
from tabi.ingress.own_destinations import Entrance
from tabi.ingress.tls import Certificates
from tabi.net.dial import Dialer
from tabi.net.handshakes import Handshakes
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared
from tabi.policy.policy import DestinationPolicy
from tabi.policy.users import Users
from tabi.relay.associations import Associations
from tabi.relay.carrier import Carrier, carry_of
from tabi.relay.relays import Relays
from tabi.relay.tunnel import Tunnels
from tabi.session import Session
from tabi.wire.sniff import Protocol as Spoken


class Takes(Protocol):
    """What has sessions pass a gate, and gives them to a carrier: a command, or forwarding."""

    def take(self, gate: Entrance, carrier: Carrier) -> None:
        """Do so with these from now on."""


T = TypeVar("T", bound=Takes)


class Served(NamedTuple):
    """Something that takes a gate and a carrier, and those that it was built with."""

    taking: Takes
    gate: Entrance
    carrier: Carrier


@dataclass
class Running:
    """The running parts on which the pieces of one listener are built.

    A piece of your own needs few of them: ``connect`` carries out CONNECT, ``handshake`` is the deadline that an
    ingress stops (``handshake.stop(client)``) as soon as it has the client's request.
    """

    gate: Gate
    """Says whether a session may go on, and by which egress."""
    dialer: Dialer
    """Connects, and resolves names."""
    relays: Relays
    """Carry sessions to their end."""
    carrier: Carrier
    """Gets both streams if a piece does not say otherwise: the relays, or a carrier of the whole server."""
    associations: Associations
    """Carry datagrams."""
    forwarding: Forwarding
    """What forwarded HTTP requests need."""
    connect: Connect
    """Carries out CONNECT by the default egress, with the default carrier."""
    handshake: Handshakes
    """The deadline of a handshake. It runs when an ingress gets a client."""
    tls_shared: TlsShared
    """What all connections inside TLS share."""
    timeouts: Timeouts
    """The deadlines, in seconds."""
    find_egress: Callable[[Any], Egress]
    """Gives the running egress for the egress that a piece names."""
    find_certificates: Callable[[Tls, bool], Certificates]
    """Gives a listener's certificates; True asks every client for one."""
    closing: contextlib.AsyncExitStack
    """Closes what is built, in the reverse order."""
    carriers: list[Carrier]
    """All carriers that may have a session."""
    intercept: Callable[[Any], Carrier]
    """Makes the running carrier of a `tabi.Intercept`. Raises ConfigError."""
    served: list[Served] = field(default_factory=list)
    """All that passes a gate, for what may come between them while the server runs."""
    arrived: Callable[[Stream, Session], object] = lambda client, session: None
    """Called when a PROXY header has named the client of a session. Raises LimitExceeded if that may not connect."""
    inside_tls: bool = False
    """Whether clients come inside TLS."""
    by_certificate: bool = False
    """Whether a client's certificate says who it is."""
    gates: list[tuple[Egress, Gate]] = field(default_factory=list)
    """The gates whose default egress is another one, and that egress."""
    made: list[tuple[object, Carrier]] = field(default_factory=list)
    """The carriers of pieces."""

    def gate_for(self, egress: object | None) -> Gate:
        """The gate with this default egress; None means the gate of the server."""
        if egress is None:
            return self.gate
        leads_to = self.find_egress(egress)
        if leads_to is self.gate.direct:
            return self.gate
        for known, gate in self.gates:
            if known is leads_to:
                return gate
        gate = LeadingGate(self.gate, leads_to)
        self.closing.callback(gate.close)
        self.gates.append((leads_to, gate))
        return gate

    def carrier_for(self, carrier: object | None) -> Carrier:
        """The running carrier for the carrier of a piece; None means that of the server."""
        if carrier is None:
            return self.carrier
        for known, found in self.made:
            if known == carrier:
                return found
        made: Carrier
        if isinstance(carrier, CarrierPiece):
            made = carrier.build(self)
        else:
            made = tunnels = Tunnels(carry_of(carrier), self.relays)
            self.closing.push_async_callback(tunnels.close, "shutdown")
        self.carriers.append(made)
        self.made.append((carrier, made))
        return made

    def keep(self, taking: T, gate: Entrance, carrier: Carrier) -> T:
        """Note what was built with a gate and a carrier; returns it."""
        self.served.append(Served(taking, gate, carrier))
        return taking

    def password_check(self, users: Users) -> Ask:
        """Checks user names and passwords."""
        found = PasswordAuthenticator(users)
        self.closing.push_async_callback(found.close)
        return found


class LeadingGate(Gate):
    """A gate with another default egress. It shares everything else with the gate that it is made from.

    Args:
        gate: the gate that it is made from.
        egress: has the name ``direct`` here: it is taken if neither a rule nor ``decide`` names another one.
    """

    def __init__(self, gate: Gate, egress: Egress) -> None:
        self.__dict__.update(gate.__dict__)
        self.timer = None
        self.replace(gate.policy, {**gate.egresses, "direct": egress, egress.name: egress})

    async def enter_open(self, session: Session, client: Stream) -> OpenRoute:
        """See `Gate`. Traffic that would go directly takes this egress."""
        egress, destination_policy = await super().enter_open(session, client)
        if egress is not None:
            return OpenRoute(egress, destination_policy)
        session.via = self.direct.name
        return OpenRoute(None if self.policy.decides else self.direct, self.leading(destination_policy))

    def leading(self, destination_policy: DestinationPolicy) -> DestinationPolicy:
        """A destination policy that names this egress if the given one says that a destination goes directly."""

        def judged(destination: Any, addresses: Any) -> Any:
            found = destination_policy(destination, addresses)
            return self.direct.name if found is None else found

        return judged


class Value:
    """What is shown of a value: what differs from the defaults, and no secrets."""

    def __repr__(self) -> str:
        shown: list[str] = []
        found: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        for one in found:
            value = getattr(self, one.name)
            if isinstance(value, tuple) and not shown:
                shown += [repr(one.metadata.get("shown", lambda part: part)(part)) for part in value]
            elif not one.repr:
                shown += [f"{one.name}=…"] if value else []
            elif value != (None if one.default is MISSING else one.default) and value != ():
                shown.append(f"{one.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


class Piece(Value):
    """Speaks with a client, as a value: what `Socks5`, `Http`, `Mixed`, `Tls` and `ProxyHeader` are.

    A piece of your own derives from this and has `build`; it may have other pieces inside::

        class Counted(Piece):
            def __init__(self, inner):
                self.inner = inner

            def inside(self):
                return (self.inner,)

            def build(self, running):
                return CountedIngress(self.inner.build(running))
    """

    speaks: ClassVar[tuple[Spoken, ...]] = ()
    """The protocols by which `Mixed` knows its clients."""
    scheme: ClassVar[str] = "mixed"
    """Of the URL under which the access log and rules know the listener."""

    def build(self, running: Running) -> Ingress:
        """Make the running part: an object with ``protocol`` and ``async serve(client, session)``. Raises ConfigError.

        It is called once for each listener, in the loop.
        """
        raise NotImplementedError

    def inside(self) -> Sequence[Piece]:
        """The pieces to which this one hands clients on."""
        return ()

    def egresses(self) -> list[object]:
        """The egresses that it names, including those of the pieces inside."""
        return [egress for piece in self.inside() for egress in piece.egresses()]

    def requires_user(self, by_certificate: bool = False) -> bool:
        """Whether every client must be a user; ``by_certificate`` says that its TLS certificate can make it one.

        A listener beyond loopback needs that, or ``open=True``.
        """
        inside = self.inside()
        return bool(inside) and all(piece.requires_user(by_certificate) for piece in inside)

    def has_logins(self) -> bool:
        """Whether a client can prove by a password, or another method of SOCKS5, that it is a user."""
        return any(piece.has_logins() for piece in self.inside())

    def networks(self) -> Sequence[str]:
        """The networks whose connections begin with a PROXY header."""
        return [network for piece in self.inside() for network in piece.networks()]


class OwnIngress(Piece):
    """A running ingress of a program: an object with ``protocol`` and ``async serve(client, session)``."""

    def __init__(self, ingress: Any) -> None:
        self.ingress = ingress

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        found: Ingress = self.ingress
        return found

    def requires_user(self, by_certificate: bool = False) -> bool:
        """See `Piece`: the object says it by an attribute of this name."""
        return getattr(self.ingress, "requires_user", False) is True


def as_piece(found: object, where: str) -> Piece:
    """A piece, or one around a program's own ingress. Raises TypeError for anything else."""
    if isinstance(found, Piece):
        return found
    if isinstance(found, type):
        raise TypeError(f"{where}: the class {found.__name__} itself, expected an object: {found.__name__}(…)")
    if callable(getattr(found, "serve", None)) and isinstance(getattr(found, "protocol", None), str):
        return OwnIngress(found)
    what = type(found).__name__
    raise TypeError(f"{where}: {what}, expected a piece such as Socks5(), or an object with protocol and async serve")


def check_seconds(seconds: object, path: str) -> None:
    """Raise ConfigError if something is not a duration; None is allowed."""
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise ConfigError(f"{seconds!r}, expected seconds, more than 0", path)


class CarrierPiece(Value):
    """A carrier of tabi's own, as a value: `Relay`, `tabi.Intercept`."""

    def build(self, running: Running) -> Carrier:
        """Make the running carrier, which is closed with ``running.closing``. Raises ConfigError."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Relay(CarrierPiece):
    """The carrier that joins both streams in the kernel. Its idle deadlines may differ from those of the listener.

    Args:
        idle: seconds without an octet in either direction. None: ``timeouts.idle``.
        half_closed: seconds without an octet, once one side has ended. None: ``timeouts.half_closed``.
    """

    idle: float | None = None
    half_closed: float | None = None

    def __post_init__(self) -> None:
        check_seconds(self.idle, "Relay.idle")
        check_seconds(self.half_closed, "Relay.half_closed")

    def build(self, running: Running) -> Carrier:
        """See `CarrierPiece`."""
        relays = running.relays.sibling(running.relays.done, self.idle, self.half_closed)
        running.closing.callback(relays.close, "shutdown")
        return relays


class Composed(NamedTuple):
    """What a hand-composed proxy gives a server in place of its configuration's listeners."""

    proxy: Piece
    names: Sequence[tuple[object, str]]
    """The egresses that pieces name, and what the server calls them."""
    timeouts: Mapping[str, float]
    """Seconds for connecting, by the name of an egress."""
    certificates: Sequence[tuple[Tls, bool, Certificates]]
    """The certificates that were already read."""

    def name_of(self, egress: object) -> str:
        """What the server calls an egress."""
        return next(name for known, name in self.names if known is egress or known == egress)

    def certificates_for(self, tls: Tls, required: bool) -> Certificates:
        """The certificates that were read."""
        return next(found for known, asks, found in self.certificates if known == tls and asks == required)
