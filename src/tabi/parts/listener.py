"""Listener: runs a proxy that was composed by hand. It is a `Server` whose one listener speaks what the pieces say."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tabi.config import (
    Clients,
    Config,
    EgressConfig,
    Group,
    GuardConfig,
    LimitsConfig,
    Listen,
    Log,
    ResolverConfig,
    RuleConfig,
    Timeouts,
)
from tabi.config.load import check_types as check_config
from tabi.egress.custom import Opener, check_egresses
from tabi.egress.inspected import DialInspector
from tabi.errors import ConfigError
from tabi.ingress.tls import Certificates
from tabi.net.resolve import Resolver as NameResolver
from tabi.observe.metrics import Metrics
from tabi.observe.observers import SessionObserver
from tabi.parts.base import Composed, Piece, as_piece
from tabi.parts.commands import Direct, EgressPiece
from tabi.parts.protocols import Tls, walk
from tabi.policy.hook import DecideHook
from tabi.relay.datagram_inspector import DatagramInspector
from tabi.server.compiled import compile_config
from tabi.server.server import Server
from tabi.server.sessions import SessionInfo
from tabi.session import Session
from tabi.wire.address import Address

PUBLIC_GUARD, DEFAULT_TIMEOUTS, NO_LIMITS, SYSTEM_RESOLVER = GuardConfig(), Timeouts(), LimitsConfig(), ResolverConfig()


@dataclass(frozen=True)
class Policy:
    """Which client may go where, and how much it may use.

    Args:
        rules: `tabi.config.RuleConfig` in their order; the first that matches decides, after the last all is allowed.
        guard: networks that no client from outside this machine reaches, whatever rules say. Default: the private ones.
        limits: what all sessions together may use.
        clients: limits of clients by their addresses.
        groups: limits that the members of groups share, by the name of the group. ``authenticate`` gives the groups.
        decide: ``def`` or ``async def(session) -> tabi.Decision | None``, asked after the rules; it has the last word,
            except for the guard.
    """

    rules: Sequence[RuleConfig] = ()
    guard: GuardConfig = PUBLIC_GUARD
    limits: LimitsConfig = NO_LIMITS
    clients: Sequence[Clients] = ()
    groups: Mapping[str, Group] | None = None
    decide: DecideHook | None = None


DEFAULT_POLICY = Policy()


class Listener:
    """A proxy that was composed by hand, running between ``async with`` and its end::

        proxy = Mixed(Socks5(Connect(Direct(timeout=30)), users={"alice": "secret"}), Http(users={"bob": "hunter2"}))
        async with Listener("127.0.0.1:0", proxy) as listener:
            print(listener.address)
            await listener.serve_forever()

    Args:
        address: ``host:port``, where port 0 takes a free one; ``unix:///path``, or ``fd://NAME`` for a socket that was
            passed (systemd).
        proxy: what is spoken there: a piece such as `Mixed`, or an ingress of your own.
        policy: rules, guard and limits.
        timeouts: the deadlines, in seconds.
        resolver: turns names into addresses: a `tabi.config.ResolverConfig`, or an object with `resolve` and `close`.
        egresses: more of them by name, for rules and ``decide``: pieces such as `Through`, or `tabi.Egress` objects.
        datagrams: looks at the datagrams of associations, see `tabi.DatagramInspector`.
        dials: stands in front of every egress, see `tabi.DialInspector`.
        observers: are told of each session, see `tabi.SessionObserver`.
        on_open: called with each `tabi.Session` when its destination is connected, or its association open.
        on_close: called with each `tabi.Session` when it has ended, a refused one too.
        access_log: where the access log goes, as ``access`` of ``[log]``.
        open: allow listening beyond loopback though a client need not be a user.
        sockets: listening sockets in place of opening one. They are closed with the listener.

    Raises:
        ConfigError: something of this is wrong, or would make an open proxy.
        TypeError: something is of a type that cannot be used there.
    """

    def __init__(
        self,
        address: str,
        proxy: object,
        *,
        policy: Policy = DEFAULT_POLICY,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        resolver: ResolverConfig | NameResolver = SYSTEM_RESOLVER,
        egresses: Mapping[str, EgressPiece | Opener] | None = None,
        datagrams: DatagramInspector | None = None,
        dials: DialInspector | None = None,
        observers: Sequence[SessionObserver] = (),
        on_open: Callable[[Session], object] | None = None,
        on_close: Callable[[Session], object] | None = None,
        access_log: str = "none",
        open: bool = False,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self.proxy = piece = as_piece(proxy, "Listener")
        for found, kind, name in ((policy, Policy, "policy"), (timeouts, Timeouts, "timeouts")):
            if not isinstance(found, kind):
                raise TypeError(f"{name}: {type(found).__name__}, expected tabi.parts.{kind.__name__}")
        names = Named(egresses or {})
        for egress in piece.egresses():
            names.add(egress)
        requires = piece.requires_user()
        listen = Listen(
            url_of(address, piece), users=None if requires else "none", proxy_protocol=list(piece.networks())
        )
        by_config = isinstance(resolver, ResolverConfig)
        config = Config(
            listen=[listen],
            timeouts=timeouts,
            resolver=resolver if isinstance(resolver, ResolverConfig) else SYSTEM_RESOLVER,
            rule=list(policy.rules),
            guard=policy.guard,
            limits=policy.limits,
            clients=list(policy.clients),
            groups=dict(policy.groups or {}),
            egress=names.settings,
            log=Log(access=access_log),
        )
        compiled = compile_config(check_config(config), open, requires, names.given)
        certificates = [
            (one.files, one.asks_everyone, Certificates(one.files, "Tls", one.asks_everyone))
            for one in walk(piece)
            if isinstance(one, Tls)
        ]
        self.server = Server(
            compiled=compiled,
            decide=policy.decide,
            egresses=names.given,
            datagrams=datagrams,
            dials=dials,
            observers=observers,
            on_open=on_open,
            on_close=on_close,
            resolver=None if by_config else resolver,  # type: ignore[arg-type]
            sockets=[sockets] if sockets else None,
        )
        composed = Composed(piece, names.names, names.timeouts, certificates)
        self.server.given = self.server.given._replace(composed=composed)

    def __repr__(self) -> str:
        return f"<tabi.parts.Listener {self.server.config.listen[0].url}>"

    async def start(self) -> None:
        """Listen and accept.

        Raises:
            OSError: the address cannot be listened on, or the access log not written.
            ConfigError: no socket of the name was passed, or one that was would make an open proxy.
        """
        await self.server.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def serve_forever(self) -> None:
        """Wait until the listener is closed, or the task that waits is cancelled."""
        await self.server.serve_forever()

    async def drain(self, seconds: float | None = None) -> int:
        """Accept no more and let the sessions end, for at most ``seconds`` (default: ``timeouts.drain``).

        Returns:
            How many are still running.
        """
        return await self.server.drain(seconds)

    async def close(self) -> None:
        """Stop at once: sessions that still run end as ``shutdown``. Harmless when done twice. It runs to its end
        even if the task that waits for it is cancelled."""
        await self.server.close()

    @property
    def address(self) -> Address:
        """Where it listens, with the port that port 0 became; a host name may have several, the first of them.

        Raises:
            RuntimeError: it does not listen, or not at an address.
        """
        addresses = self.addresses
        if not addresses:
            raise RuntimeError("a listener at a unix socket has no address")
        return addresses[0]

    @property
    def addresses(self) -> list[Address]:
        """All addresses. Raises RuntimeError if it does not listen."""
        return self.server.addresses

    @property
    def metrics(self) -> Metrics:
        """The requests that rules and limits have refused so far: ``metrics.render()`` is text for Prometheus."""
        return self.server.metrics

    def sessions(self) -> list[SessionInfo]:
        """The running sessions, as they are now, the oldest first. `tabi.SessionInfo.end` ends one."""
        return self.server.sessions()


def url_of(address: object, piece: Piece) -> str:
    """The URL of a listener's address. Raises TypeError and ConfigError."""
    if not isinstance(address, str):
        raise TypeError(f"address: {type(address).__name__}, expected text such as 127.0.0.1:1080")
    if address.startswith(("unix:", "fd:")):
        return address
    if "://" in address:
        raise ConfigError(f"{address!r}, expected host:port without a scheme: the pieces say what is spoken", "address")
    return f"{piece.scheme}://{address}"


class Named:
    """Gives each egress of the pieces its name.

    Args:
        given: the egresses that have names already.
    """

    def __init__(self, given: Mapping[str, EgressPiece | Opener]) -> None:
        self.names: list[tuple[object, str]] = [(Direct(), "direct")]
        self.settings: dict[str, EgressConfig] = {}
        self.given: dict[str, Opener] = {}
        self.timeouts: dict[str, float] = {}
        for name, egress in given.items():
            if not isinstance(egress, EgressPiece):
                check_egresses({name: egress})
            self.put(egress, name)

    def add(self, egress: object) -> None:
        """Give an egress a name, if it has none yet."""
        if any(known is egress or known == egress for known, _ in self.names):
            return
        named = egress.name if isinstance(egress, EgressPiece) else getattr(egress, "name", None)
        shown = egress.shown() if isinstance(egress, EgressPiece) else type(egress).__name__
        first = name = named if isinstance(named, str) and named else shown
        number = 1
        while name in ("direct", "block") or name in self.settings or name in self.given:
            number += 1
            name = f"{first}#{number}"
        self.put(egress, name)

    def put(self, egress: Any, name: str) -> None:
        """Find an egress by a name."""
        self.names.append((egress, name))
        if isinstance(egress, EgressPiece):
            self.settings[name] = egress.settings()
            if egress.timeout is not None:
                self.timeouts[name] = float(egress.timeout)
        else:
            self.given[name] = egress
