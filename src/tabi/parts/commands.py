"""The commands of a proxy composed by hand, and the egresses that they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tabi.config import CheckConfig, EgressConfig, MemberConfig, Prefer, Seconds, StickyConfig, Udp
from tabi.config.compile import name_of
from tabi.egress.custom import unusable
from tabi.errors import ConfigError
from tabi.ingress import associate, bind, connect, resolve
from tabi.ingress.conversation import Serve
from tabi.parts.base import CarrierPiece, Running, Value, check_seconds
from tabi.policy.pool import Balance
from tabi.relay.carrier import carry_of
from tabi.relay.datagram_inspector import DatagramInspector, check_inspector
from tabi.wire.socks5 import Command as Number

ANYWHERE, NOT_STICKY = Udp(), StickyConfig()

# --- egresses ---


def hidden(member: str | MemberConfig) -> str:
    """The URL of a proxy without its user and password."""
    return name_of(member.to if isinstance(member, MemberConfig) else member)


class EgressPiece(Value):
    """An egress, as a value."""

    name: str | None
    timeout: float | None

    def settings(self) -> EgressConfig:
        """What tabi.toml would say under ``[egress.NAME]``."""
        raise NotImplementedError

    def shown(self) -> str:
        """Its name if no name was given: without secrets."""
        raise NotImplementedError

    def check(self) -> None:
        """Check what all of them have. Raises ConfigError."""
        path = type(self).__name__
        check_seconds(self.timeout, f"{path}.timeout")
        if self.name is not None and (not isinstance(self.name, str) or not self.name or "://" in self.name):
            raise ConfigError(f"{self.name!r}, expected a name that is not a URL", f"{path}.name")


@dataclass(frozen=True, repr=False)
class Direct(EgressPiece):
    """An egress from this machine directly to the destination.

    Args:
        timeout: seconds for resolving and connecting together. None: ``timeouts.connect`` of the listener.
        source: addresses of this machine, and prefixes that are routed to it, to come from. Default: as the system
            chooses.
        source_by: what keeps the same source: ``user``, ``client``, or ``session`` (each session gets another one).
        interface: the interface that connections leave by.
        mark: SO_MARK, 1 to 4294967295; needs CAP_NET_ADMIN.
        keepalive: seconds without an octet until a keepalive probe goes to the destination.
        user_timeout: seconds that octets may be unacknowledged until the connection is given up.
        fast_open: whether the first octets go with the first packet (RFC 7413).
        send_proxy_protocol: the version of the PROXY header that each destination is sent first; 0 means no header.
        name: what rules and the access log call it.
    """

    timeout: float | None = None
    source: Sequence[str] = ()
    source_by: Literal["session", "user", "client"] = "session"
    interface: str | None = None
    mark: int | None = None
    keepalive: float | None = None
    user_timeout: float | None = None
    fast_open: bool = False
    send_proxy_protocol: Literal[0, 1, 2] = 0
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, str):
            raise TypeError("Direct.source: str, expected a list of addresses")
        object.__setattr__(self, "source", tuple(self.source))
        self.check()

    def settings(self) -> EgressConfig:
        """See `EgressPiece`."""
        return EgressConfig(
            source=list(self.source),
            source_by=self.source_by,
            interface=self.interface,
            mark=self.mark,
            keepalive=None if self.keepalive is None else Seconds(self.keepalive),
            user_timeout=None if self.user_timeout is None else Seconds(self.user_timeout),
            fast_open=self.fast_open,
            send_proxy_protocol=self.send_proxy_protocol,
        )

    def shown(self) -> str:
        """See `EgressPiece`."""
        return "direct"


@dataclass(frozen=True, repr=False, init=False)
class Through(EgressPiece):
    """An egress through one proxy after another.

    Args:
        hops: their URLs, the nearest first, such as ``socks5://user:password@host:1080``.
        timeout: seconds until the destination is connected. None: ``timeouts.connect`` of the listener.
        ca: a file with the authorities of proxies inside TLS, in PEM. Default: the system's.
        resolve: where names are resolved: ``there`` is at the proxy, ``here`` on this machine.
        isolate: what gets its own user name at a SOCKS5 proxy: ``user``, ``session``, ``client``.
        name: what rules and the access log call it.
    """

    hops: tuple[str, ...] = field(metadata={"shown": hidden})
    timeout: float | None = None
    ca: str | None = None
    resolve: Literal["here", "there"] = "there"
    isolate: tuple[Literal["user", "session", "client"], ...] = ()
    name: str | None = None

    def __init__(
        self,
        *hops: str,
        timeout: float | None = None,
        ca: str | None = None,
        resolve: Literal["here", "there"] = "there",
        isolate: Sequence[Literal["user", "session", "client"]] = (),
        name: str | None = None,
    ) -> None:
        found: dict[str, Any] = {"timeout": timeout, "ca": ca, "resolve": resolve, "name": name}
        self.__dict__.update(found, hops=check_urls(hops, "Through"), isolate=tuple(isolate))
        self.check()

    def settings(self) -> EgressConfig:
        """See `EgressPiece`."""
        return EgressConfig(chain=list(self.hops), ca=self.ca, resolve=self.resolve, isolate=list(self.isolate))

    def shown(self) -> str:
        """See `EgressPiece`."""
        return hidden(self.hops[-1]).partition("://")[2]


@dataclass(frozen=True, repr=False, init=False)
class Pool(EgressPiece):
    """An egress through one of several proxies. If one fails, the next is tried.

    Args:
        members: URLs of proxies, or `tabi.config.Member` for a member with settings of its own.
        timeout: seconds until the destination is connected. None: ``timeouts.connect`` of the listener.
        balance: which member takes a request, as ``balance`` in tabi.toml.
        sticky: what ``sticky`` and ``hash`` go by, a `tabi.config.Sticky`.
        check: how members are checked, in addition to their requests, a `tabi.config.Check`.
        ca: a file with the authorities of proxies inside TLS, in PEM. Default: the system's.
        name: what rules and the access log call it.
    """

    members: tuple[str | MemberConfig, ...] = field(metadata={"shown": hidden})
    timeout: float | None = None
    balance: Balance = "round-robin"
    sticky: StickyConfig = NOT_STICKY
    check_by: CheckConfig | None = None
    ca: str | None = None
    name: str | None = None

    def __init__(
        self,
        *members: str | MemberConfig,
        timeout: float | None = None,
        balance: Balance = "round-robin",
        sticky: StickyConfig | None = None,
        check: CheckConfig | None = None,
        ca: str | None = None,
        name: str | None = None,
    ) -> None:
        check_urls([one.to if isinstance(one, MemberConfig) else one for one in members], "Pool")
        found: dict[str, Any] = {"timeout": timeout, "ca": ca, "name": name, "balance": balance, "check_by": check}
        self.__dict__.update(found, members=members, sticky=NOT_STICKY if sticky is None else sticky)
        self.check()

    def settings(self) -> EgressConfig:
        """See `EgressPiece`."""
        return EgressConfig(
            members=list(self.members), balance=self.balance, sticky=self.sticky, check=self.check_by, ca=self.ca
        )

    def shown(self) -> str:
        """See `EgressPiece`."""
        return "pool"


def check_urls(urls: Sequence[str], path: str) -> tuple[str, ...]:
    """URLs of proxies. Raises ConfigError, and TypeError for what is not text."""
    if not urls:
        raise ConfigError("expected the URL of a proxy, or several", path)
    for index, url in enumerate(urls):
        if not isinstance(url, str):
            raise TypeError(f"{path}: {type(url).__name__}, expected the URL of a proxy")
        try:
            if "://" not in url:
                raise ValueError("expected the URL of a proxy, such as socks5://host:1080")
            name_of(url)
        except ValueError as exc:
            raise ConfigError(str(exc), f"{path}[{index}]") from None
    return tuple(urls)


def as_egress(found: object, where: str) -> object | None:
    """Check the egress of a command: None, a piece, the URL of a proxy, or an object with `open`.

    Raises:
        TypeError, ConfigError: it is not one of these.
    """
    if found is None or isinstance(found, EgressPiece):
        return found
    if isinstance(found, str):
        return Through(found)
    why = unusable(found)
    if why is not None:
        raise TypeError(f"{where}.egress: {why}; or Direct(), Through(…), Pool(…), or the URL of a proxy")
    return found


# --- commands ---


class Command(Value):
    """What a client may ask for, as a value."""

    number: ClassVar[int]
    """The CMD of RFC 1928."""
    egress: object | None

    def build(self, running: Running) -> Serve:
        """Make what carries the command out. Called once for each protocol of each listener."""
        raise NotImplementedError

    def set_egress(self) -> None:
        """Check the egress, and store it. Raises TypeError and ConfigError."""
        object.__setattr__(self, "egress", as_egress(self.egress, type(self).__name__))


def check_carrier(carrier: object | None) -> None:
    """Raise TypeError if something is not a carrier."""
    if carrier is not None and not isinstance(carrier, CarrierPiece):
        carry_of(carrier)


def check_udp(udp: object, where: str) -> None:
    """Raise TypeError if something is not a `Udp`, and ConfigError if its values are wrong."""
    if not isinstance(udp, Udp):
        raise TypeError(f"{where}.udp: {type(udp).__name__}, expected a tabi.config.Udp")
    if udp.name is not None and type(udp) is Udp:
        raise ConfigError(f"{udp.name!r}, expected an IP address: names are for tabi.toml", f"{where}.udp")
    for key in ("address", "port_range"):
        try:
            getattr(udp, key)
        except ValueError as exc:
            raise ConfigError(str(exc), f"{where}.udp") from None


@dataclass(frozen=True, repr=False)
class Connect(Command):
    """CONNECT: a connection to a destination.

    Args:
        egress: the egress if no rule names another one: `Direct`, `Through`, `Pool`, the URL of a proxy, or a
            `tabi.Egress` of your own. None: directly.
        carrier: gets both streams: a `Relay`, a `tabi.Intercept`, or ``async def(tunnel: tabi.Tunnel)``. None: the
            relay, or the carrier of the listener.
    """

    egress: object | None = None
    carrier: object | None = None
    number: ClassVar[int] = Number.CONNECT

    def __post_init__(self) -> None:
        self.set_egress()
        check_carrier(self.carrier)

    def build(self, running: Running) -> connect.Connect:
        """See `Command`."""
        if self.egress is None and self.carrier is None:
            return running.connect
        gate, carrier = running.gate_for(self.egress), running.carrier_for(self.carrier)
        return running.keep(connect.Connect(gate, carrier), gate, carrier)


@dataclass(frozen=True, repr=False)
class Bind(Command):
    """BIND: one peer may call the client.

    Args:
        egress: as of `Connect`; if it leads through a SOCKS5 proxy, that proxy listens.
        timeout: seconds from the first reply until the peer has called. None: ``timeouts.bind`` of the listener.
        udp: where the ports are, and the address that clients are told (`tabi.config.Udp`).
        carrier: as of `Connect`.
    """

    egress: object | None = None
    timeout: float | None = None
    udp: Udp = ANYWHERE
    carrier: object | None = None
    number: ClassVar[int] = Number.BIND

    def __post_init__(self) -> None:
        self.set_egress()
        check_seconds(self.timeout, "Bind.timeout")
        check_udp(self.udp, "Bind")
        check_carrier(self.carrier)

    def build(self, running: Running) -> Serve:
        """See `Command`."""
        seconds = running.timeouts.bind if self.timeout is None else self.timeout
        gate, carrier = running.gate_for(self.egress), running.carrier_for(self.carrier)
        return running.keep(bind.Bind(gate, running.dialer, carrier, self.udp, seconds), gate, carrier)


@dataclass(frozen=True, repr=False)
class UdpAssociate(Command):
    """UDP ASSOCIATE: datagrams to any destination.

    Args:
        egress: as of `Connect`. One of your own needs ``associate``.
        udp: where the ports are, and the address that clients are told (`tabi.config.Udp`).
        inspector: looks at the datagrams, see `tabi.DatagramInspector`. None: that of the listener, if it has one.
    """

    egress: object | None = None
    udp: Udp = ANYWHERE
    inspector: DatagramInspector | None = None
    number: ClassVar[int] = Number.UDP_ASSOCIATE

    def __post_init__(self) -> None:
        self.set_egress()
        check_udp(self.udp, "UdpAssociate")
        if self.inspector is not None:
            check_inspector(self.inspector)

    def build(self, running: Running) -> Serve:
        """See `Command`."""
        gate = running.gate_for(self.egress)
        return associate.Associate(gate, running.associations, self.udp, self.inspector)


@dataclass(frozen=True, repr=False)
class Resolve(Command):
    """RESOLVE (Tor's command 0xF0): the address of a name.

    Args:
        egress: as of `Connect`: a proxy on the way is asked.
        prefer: which kind of address, as ``resolver.prefer`` in tabi.toml.
    """

    egress: object | None = None
    prefer: Prefer = "any"
    number: ClassVar[int] = Number.RESOLVE

    def __post_init__(self) -> None:
        self.set_egress()

    def build(self, running: Running) -> Serve:
        """See `Command`."""
        gate = running.gate_for(self.egress)
        return running.keep(resolve.Resolve(gate, self.prefer), gate, running.carrier)


@dataclass(frozen=True, repr=False)
class ResolvePtr(Command):
    """RESOLVE_PTR (Tor's command 0xF1): the name of an address.

    Args:
        egress: as of `Connect`: a proxy on the way is asked.
    """

    egress: object | None = None
    number: ClassVar[int] = Number.RESOLVE_PTR

    def __post_init__(self) -> None:
        self.set_egress()

    def build(self, running: Running) -> Serve:
        """See `Command`."""
        gate = running.gate_for(self.egress)
        return running.keep(resolve.ResolvePtr(gate), gate, running.carrier)
