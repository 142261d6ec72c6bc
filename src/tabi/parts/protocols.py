"""The protocols of a proxy composed by hand: each speaks with clients, or hands them on to those inside it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any, ClassVar, Literal

from tabi.config import Listen, UserConfig
from tabi.config import Tls as TlsFiles
from tabi.config.check import check_user
from tabi.errors import ConfigError
from tabi.ingress.auth_methods import AuthMethod, UsernamePassword
from tabi.ingress.authenticate import Ask
from tabi.ingress.conversation import Commands, Ingress
from tabi.ingress.http import HttpIngress
from tabi.ingress.login import Authenticate, check_authenticate
from tabi.ingress.mixed import MixedIngress
from tabi.ingress.no_user import NoUserIngress
from tabi.ingress.proxy_header import ProxyHeaderIngress
from tabi.ingress.socks4 import Socks4Ingress
from tabi.ingress.socks5 import Socks5Ingress
from tabi.ingress.tls import TlsIngress
from tabi.parts.base import Piece, Running, as_piece
from tabi.parts.commands import Bind, Command, Connect, UdpAssociate
from tabi.policy.networks import Network
from tabi.policy.users import Users
from tabi.wire.sniff import Protocol
from tabi.wire.socks5 import Command as Number


@dataclass(frozen=True, init=False, repr=False)
class Speaking(Piece):
    """What the protocols that carry out commands have in common: the users that clients may be."""

    commands: tuple[Command, ...]
    users: Mapping[str, str] | None = field(repr=False)
    authenticate: Ask | None
    required: bool | None
    takes: ClassVar[tuple[int, ...]]

    def take(self, commands: Sequence[Command], **who: Any) -> None:
        """Check what was given, and keep it. Raises TypeError and ConfigError."""
        path = type(self).__name__
        numbers = []
        for command in commands:
            if not isinstance(command, Command):
                if isinstance(command, type) and issubclass(command, Command):
                    raise TypeError(f"{path}: the class {command.__name__} itself, expected {command.__name__}()")
                raise TypeError(f"{path}: {type(command).__name__}, expected a command such as Connect()")
            if command.number not in self.takes:
                raise ConfigError(f"{type(command).__name__} is not a command of this protocol", path)
            numbers.append(command.number)
        if len(numbers) > len(set(numbers)):
            raise ConfigError("the same command twice", path)
        self.__dict__.update(who, commands=tuple(commands))
        if self.users is not None:
            if self.authenticate is not None:
                raise ConfigError("expected one of users and authenticate", path)
            self.__dict__["users"] = dict(self.users)
            self.secrets()
        if self.authenticate is not None:
            check_authenticate(self.authenticate)

    def secrets(self) -> Users:
        """What passwords are compared with. Raises ConfigError."""
        path, found = f"{type(self).__name__}.users", {}
        for name, password in (self.users or {}).items():
            if not isinstance(name, str) or not isinstance(password, str):
                raise ConfigError("expected passwords by user name, both of them text", path)
            try:
                secret = check_user(name, UserConfig(password, plain=True), without_password=False)
            except ConfigError as exc:
                raise ConfigError(exc.message, path) from None
            assert secret is not None
            found[name] = secret
        return Users(found)

    def ask(self, running: Running) -> Ask | None:
        """What is asked for each user name and password."""
        return running.password_check(self.secrets()) if self.users is not None else self.authenticate

    def has_logins(self) -> bool:
        """See `Piece`."""
        return self.users is not None or self.authenticate is not None

    def requires_user(self, by_certificate: bool = False) -> bool:
        """See `Piece`."""
        return self.has_logins() or by_certificate if self.required is None else self.required

    def egresses(self) -> list[object]:
        """See `Piece`."""
        return [command.egress for command in self.commands if command.egress is not None]

    def make_commands(self, running: Running) -> Commands:
        """What carries the commands out."""
        return Commands({command.number: command.build(running) for command in self.commands}, running.handshake)


@dataclass(frozen=True, init=False, repr=False)
class Socks5(Speaking):
    """SOCKS5 (RFC 1928).

    Args:
        commands: what clients may ask for: `Connect`, `Bind`, `UdpAssociate`, `Resolve`, `ResolvePtr`. Default: the
            first three.
        users: passwords by user name.
        authenticate: ``async def(login: tabi.Login) -> str | tabi.User | None`` in place of users.
        methods: other authentication methods, in the order of preference. They go before user name and password. See
            `AuthMethod`.
        required: whether a client must be a user. None: it must if there are users, or another method that finds
            out who it is.
    """

    methods: tuple[AuthMethod, ...]
    speaks = (Protocol.SOCKS5,)
    scheme = "socks5"
    takes = (*range(256),)

    def __init__(
        self,
        *commands: Command,
        users: Mapping[str, str] | None = None,
        authenticate: Authenticate | Ask | None = None,
        methods: Sequence[AuthMethod] = (),
        required: bool | None = None,
    ) -> None:
        self.__dict__["methods"] = tuple(methods)
        self.take(
            commands or (Connect(), Bind(), UdpAssociate()), users=users, authenticate=authenticate, required=required
        )
        for method in self.methods:
            number, function = getattr(method, "method", None), getattr(method, "authenticate", None)
            if not isinstance(number, int) or not 0 < number < 255 or not inspect.iscoroutinefunction(function):
                text = f"{type(method).__name__}, expected method, a number from 1 to 254, and async authenticate"
                raise TypeError(f"Socks5.methods: {text}")

    def has_logins(self) -> bool:
        """See `Piece`."""
        return bool(self.methods) or super().has_logins()

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        ask = self.ask(running)
        last = () if ask is None else (UsernamePassword(ask, running.handshake),)
        name, required = "socks5+tls" if running.inside_tls else "socks5", self.requires_user(running.by_certificate)
        return Socks5Ingress(self.make_commands(running), (*self.methods, *last), required, name)


@dataclass(frozen=True, init=False, repr=False)
class Socks4(Speaking):
    """SOCKS4 and SOCKS4a. Nothing in them proves a user: if one is required, only a TLS certificate proves it.

    Args:
        commands: what clients may ask for: `Connect`, `Bind`. Default: both.
        required: whether a client must be a user. None: it must if TLS certificates say who clients are.
    """

    speaks = (Protocol.SOCKS4,)
    scheme = "socks4"
    takes = (Number.CONNECT, Number.BIND)

    def __init__(self, *commands: Command, required: bool | None = None) -> None:
        self.take(commands or (Connect(), Bind()), users=None, authenticate=None, required=required)

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        name, required = "socks4+tls" if running.inside_tls else "socks4", self.requires_user(running.by_certificate)
        return Socks4Ingress(self.make_commands(running), required, name)


@dataclass(frozen=True, init=False, repr=False)
class Http(Speaking):
    """HTTP/1.1 and 1.0: CONNECT, and requests that are forwarded.

    Args:
        connect: carries out CONNECT; requests that are forwarded go by its egress too.
        users: passwords by user name (Proxy-Authorization: Basic).
        authenticate: ``async def(login: tabi.Login) -> str | tabi.User | None`` in place of users.
        required: whether a client must be a user. None: it must if there are users, or if TLS certificates say
            who clients are.
    """

    speaks = (Protocol.HTTP, Protocol.HTTP2)  # a client of the latter is told that it is not spoken
    scheme = "http"
    takes = (Number.CONNECT,)

    def __init__(
        self,
        connect: Connect | None = None,
        *,
        users: Mapping[str, str] | None = None,
        authenticate: Authenticate | Ask | None = None,
        required: bool | None = None,
    ) -> None:
        commands = (Connect() if connect is None else connect,)
        self.take(commands, users=users, authenticate=authenticate, required=required)

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        commands, forwarding = self.make_commands(running), running.forwarding
        connect: Any = commands.serves[Number.CONNECT]
        if connect is not running.connect:
            inspect = getattr(connect.carrier, "inspect", None)
            forwarding = replace(forwarding, gate=connect.gate, carrier=connect.carrier, inspect=inspect)
            running.keep(forwarding, connect.gate, connect.carrier)
        name, required = "https" if running.inside_tls else "http", self.requires_user(running.by_certificate)
        return HttpIngress(commands, forwarding, self.ask(running), required, name)


@dataclass(frozen=True, init=False, repr=False)
class Mixed(Piece):
    """Several protocols on one port: the first octets of a client decide.

    Args:
        protocols: `Socks5`, `Socks4`, `Http`, and `Tls` around any of them, or around another `Mixed`. Each has its own
            users.
    """

    protocols: tuple[Piece, ...]

    def __init__(self, *protocols: Piece) -> None:
        taken: set[Protocol] = set()
        for piece in protocols:
            found = as_piece(piece, "Mixed")
            if not found.speaks:
                raise TypeError(f"Mixed: {type(piece).__name__} does not say what it speaks")
            if taken.intersection(found.speaks):
                raise ConfigError(f"two of them speak {found.speaks[0]}", "Mixed")
            taken.update(found.speaks)
        if not protocols:
            raise ConfigError("expected one protocol or more", "Mixed")
        self.__dict__["protocols"] = protocols

    def inside(self) -> Sequence[Piece]:
        """See `Piece`."""
        return self.protocols

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        found: dict[Protocol, Ingress] = {}
        for piece in self.protocols:
            ingress = piece.build(running)
            found.update((protocol, ingress) for protocol in piece.speaks)
        return MixedIngress(found)


@dataclass(frozen=True, repr=False)
class Tls(Piece):
    """TLS around a protocol.

    Args:
        inner: what is spoken inside.
        certificate: a file in PEM: the server's certificate, followed by the intermediate certificates. It is read
            again when it changes.
        key: a file in PEM with the private key, without a passphrase.
        client_ca: a file with authorities: a client with a certificate of one is a user. None: no certificate is asked
            for.
        client_name: the field of a client's certificate with the user's name: ``cn``, ``dns``, ``email``, ``uri``.
        ciphers: those of TLS 1.2, in OpenSSL's words. None: those with forward secrecy and AEAD (RFC 9325).
    """

    inner: Piece
    certificate: str
    key: str
    client_ca: str | None = None
    client_name: Literal["cn", "dns", "email", "uri"] = "cn"
    ciphers: str | None = None
    speaks = (Protocol.TLS,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_piece(self.inner, "Tls"))
        object.__setattr__(self, "certificate", str(self.certificate))  # a Path will do
        object.__setattr__(self, "key", str(self.key))
        if any(isinstance(piece, Tls) for piece in walk(self.inner)):
            raise ConfigError("TLS inside TLS", "Tls")

    @property
    def files(self) -> TlsFiles:
        """What tabi.toml would say under ``tls``."""
        client_ca = None if self.client_ca is None else str(self.client_ca)
        return TlsFiles(self.certificate, self.key, client_ca, self.client_name, self.ciphers)

    @property
    def asks_everyone(self) -> bool:
        """Whether a client without a certificate is refused in the handshake: nothing else can prove a user."""
        return self.client_ca is not None and self.inner.requires_user(True) and not self.inner.has_logins()

    def inside(self) -> Sequence[Piece]:
        """See `Piece`."""
        return (self.inner,)

    def requires_user(self, by_certificate: bool = False) -> bool:
        """See `Piece`."""
        return self.inner.requires_user(by_certificate or self.client_ca is not None)

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        inner = self.inner.build(replace(running, inside_tls=True, by_certificate=self.client_ca is not None))
        certificates = running.find_certificates(self.files, self.asks_everyone)
        return TlsIngress(inner, certificates, Commands({}, running.handshake), running.tls_shared)


@dataclass(frozen=True, repr=False)
class ProxyHeader(Piece):
    """The PROXY header of a load balancer in front of a protocol: it says who the client is.

    Args:
        inner: what is spoken behind it.
        proxies: the networks of the trusted proxies, which must send it, such as ``"10.0.0.0/8"``; ``"unix"``
            means clients of a unix socket. From others the header is refused.
    """

    inner: Piece
    proxies: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_piece(self.inner, "ProxyHeader"))
        if isinstance(self.proxies, str) or not self.proxies:
            raise ConfigError(f"{self.proxies!r}, expected a list of networks", "ProxyHeader.proxies")
        object.__setattr__(self, "proxies", tuple(self.proxies))
        try:
            self.trusted()
        except ValueError as exc:
            raise ConfigError(f"{exc}, expected networks such as 10.0.0.0/8", "ProxyHeader.proxies") from None

    def trusted(self) -> tuple[Any, ...]:
        """The networks, None for ``"unix"``. Raises ValueError."""
        return tuple(None if text == "unix" else ip_network(text) for text in self.proxies)

    @property
    def scheme(self) -> str:  # type: ignore[override]
        """See `Piece`."""
        return self.inner.scheme

    def inside(self) -> Sequence[Piece]:
        """See `Piece`."""
        return (self.inner,)

    def networks(self) -> Sequence[str]:
        """See `Piece`."""
        return self.proxies

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        return ProxyHeaderIngress(self.trusted(), self.inner.build(running), running.arrived)


@dataclass(frozen=True, repr=False)
class NoUser(Piece):
    """Clients of some networks need no user.

    Args:
        inner: what is spoken with all others.
        exempt: what is spoken with them.
        networks: theirs; None means clients of a unix socket.
    """

    inner: Piece
    exempt: Piece
    networks_of: tuple[Network | None, ...]

    def inside(self) -> Sequence[Piece]:
        """See `Piece`."""
        return (self.inner, self.exempt)

    def build(self, running: Running) -> Ingress:
        """See `Piece`."""
        return NoUserIngress(self.networks_of, self.exempt.build(running), self.inner.build(running))


def walk(piece: Piece) -> list[Piece]:
    """A piece, and all pieces inside it."""
    return [piece, *(found for inner in piece.inside() for found in walk(inner))]


def proxy_of(listen: Listen, commands: Sequence[Command], authenticate: Ask | None, required: bool) -> Piece:
    """The pieces of one listener of a configuration.

    PROXY header -> no_user
    -> mixed, if clients may come with and without TLS -> TLS -> mixed -> socks5, socks4, http

    Args:
        listen: what it takes.
        commands: what its clients of SOCKS5 may ask for.
        authenticate: asked for every user name and password; None if there are no users.
        required: whether clients must be users.
    """
    piece = speaking(listen, commands, authenticate, required)
    if listen.no_user:
        piece = NoUser(piece, speaking(listen, commands, authenticate, False), listen.without_user)
    return ProxyHeader(piece, listen.proxy_protocol) if listen.proxy_protocol else piece


def speaking(listen: Listen, commands: Sequence[Command], authenticate: Ask | None, required: bool) -> Piece:
    """What is spoken with the clients of a listener; see `proxy_of`."""
    url, tls = listen.parsed, listen.tls
    for_socks4 = [command for command in commands if command.number in Socks4.takes]
    protocols: dict[str, Piece] = {
        "socks5": Socks5(*commands, authenticate=authenticate, required=required),
        "socks4": Socks4(*for_socks4, required=required),
        "http": Http(authenticate=authenticate, required=required),
    }
    plain = [*protocols.values()] if url.protocol == "mixed" else [protocols[url.protocol]]
    if tls is not None:
        inside = Mixed(*plain) if url.protocol == "mixed" else plain[0]
        over_tls = Tls(inside, tls.certificate, tls.key, tls.client_ca, tls.client_name, tls.ciphers)
        plain = [over_tls] if url.tls else [over_tls, *plain]
    return Mixed(*plain) if url.protocol == "mixed" and not url.tls else plain[0]
