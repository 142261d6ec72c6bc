"""Server: a complete proxy in one event loop. `tabi serve` runs one in each worker; any program can embed it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack
from urllib.parse import quote

import msgspec

from tabi.config import Ca, Config, DistortConfig, InterceptConfig, Listen, Log, UserConfig
from tabi.config.load import check_config, check_types, decode_distorts
from tabi.egress.custom import Opener, check_egresses
from tabi.egress.inspected import DialInspector
from tabi.egress.inspected import check_inspector as check_dial_inspector
from tabi.errors import ConfigError
from tabi.ingress.login import Authenticate, check_authenticate
from tabi.net.listen import AF_UNIX, Given, Listeners, urls_of
from tabi.net.reactor import get_reactor
from tabi.net.resolve import Resolver, check_resolver
from tabi.observe.callbacks import Callbacks
from tabi.observe.metrics import Metrics
from tabi.observe.observers import OnClose, OnOpen, SessionObserver, check_observer
from tabi.parts.intercept import Intercept, check_hooks, decode_entries
from tabi.policy.guard import LocalAddresses
from tabi.policy.hook import DecideHook
from tabi.policy.ledger import Ledger
from tabi.relay.carrier import carry_of
from tabi.relay.datagram_inspector import DatagramInspector, check_inspector
from tabi.server import parts as composition
from tabi.server.compiled import Compiled, check_listeners, compile_config
from tabi.server.compose import check_callback, check_decide_hook
from tabi.server.ledger import LocalLedger
from tabi.server.parts import Parts
from tabi.server.quota_keeper import QuotaKeeper
from tabi.server.quota_store import open_store
from tabi.server.sessions import SessionInfo
from tabi.server.takeover import take_over
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr

if TYPE_CHECKING:
    from tabi.config.live_faults import FaultKeys
    from tabi.server.faults import Faults, LiveFault

log = logging.getLogger("tabi")


class Server:
    """A SOCKS5 proxy, running between ``async with`` and its end::

        async with tabi.Server("socks5://127.0.0.1:0", users={"alice": "secret"}) as server:
            print(server.url)
            await server.serve_forever()

    Args:
        listen: URLs to listen on, in place of those of ``config``; port 0 takes a free one.
        users: passwords by user name. With users here or in ``config``, clients must be users.
        decide: ``def`` or ``async def(session) -> tabi.Decision | None``, asked for each session after the rules of
            ``config``, whose decision is in ``session.decision``: it has the last word, except for the guard. None
            keeps the rules' decision.
        authenticate: ``async def(login: tabi.Login) -> str | tabi.User | None`` in place of users: says who a client
            is; None refuses it. What it raises is a failure on our side, not a wrong password.
        egresses: objects by name, see `Egress`: rules, chains, pools and ``decide`` may name them.
        carrier: ``async def(tunnel: tabi.Tunnel)``, or an object with such a method ``carry``: gets both streams of
            each session once they are open, in place of the relays. A `tabi.Intercept` looks into chosen ones.
        datagrams: looks at the datagrams of associations, see `DatagramInspector`.
        dials: stands in front of every egress, see `DialInspector`.
        intercept: which sessions are looked into, in addition to ``[[intercept]]`` of ``config``:
            `tabi.config.InterceptConfig`, mappings with its keys, or names of hosts.
        hooks: objects with methods of interception. They see the flows of all entries; without any entry, those of HTTP
            without TLS.
        distort: what is done to which sessions, in addition to ``[[distort]]`` of ``config``:
            `tabi.config.DistortConfig`, mappings with its keys, or names of profiles.
        config: everything that tabi.toml can say. Default: its defaults, without an access log.
        open: allow listening beyond loopback without users.
        on_open: ``def`` or ``async def(session)``, called when a session's destination is connected, or its association
            open.
        on_close: ``def`` or ``async def(session)``, called when a session has ended, a refused one too. The
            server's end waits for async ones.
        observers: are told more of each session, see `SessionObserver`.
        resolver: turns names into addresses, in place of ``[resolver]`` of ``config``: nothing that it says is kept.
        sockets: for each URL, in its order, a listening socket or several, in place of opening them. They are closed
            with the others.
        ledger: where limits count. Default: one of its own, kept in the file of ``quotas.path`` if there is one.
        compiled: what `compile_config` has made, in place of ``config``, ``listen``, ``users``, ``intercept``,
            ``distort`` and ``open``.

    Raises:
        ConfigError: something of this is wrong, or would make an open proxy.
    """

    def __init__(
        self,
        *listen: str,
        users: Mapping[str, str] | None = None,
        authenticate: Authenticate | None = None,
        decide: DecideHook | None = None,
        egresses: Mapping[str, Opener] | None = None,
        carrier: object | None = None,
        datagrams: DatagramInspector | None = None,
        dials: DialInspector | None = None,
        intercept: Sequence[InterceptConfig | Mapping[str, Any] | str] = (),
        hooks: Sequence[object] = (),
        distort: Sequence[DistortConfig | Mapping[str, Any] | str] = (),
        config: Config | None = None,
        open: bool = False,
        on_open: Callable[[Session], object] | None = None,
        on_close: Callable[[Session], object] | None = None,
        observers: Sequence[SessionObserver] = (),
        resolver: Resolver | None = None,
        sockets: Sequence[Given] | None = None,
        ledger: Ledger | None = None,
        compiled: Compiled | None = None,
    ) -> None:
        self.plain_users = dict(users or {})
        self.authenticates = authenticate is not None
        self.egresses = dict(egresses or {})
        if authenticate is not None:
            check_authenticate(authenticate)
        check_egresses(self.egresses)
        if datagrams is not None:
            check_inspector(datagrams)
        if dials is not None:
            check_dial_inspector(dials, "dials")
        if resolver is not None:
            check_resolver(resolver)
        self.intercepts = decode_entries(intercept)
        self.distorts = decode_distorts(distort)
        self.hooks = check_hooks(hooks)
        self.authority: tuple[str, str] | None = None
        if isinstance(carrier, Intercept):
            self.intercepts = (*self.intercepts, *carrier.entries)
            self.hooks = (*self.hooks, *carrier.hooks)
            self.authority, carrier = carrier.authority, None
        carry = None if carrier is None else carry_of(carrier)
        self.has_carrier = carry is not None
        if decide is not None:
            check_decide_hook(decide, "decide")
        for callback, name in ((on_open, "on_open"), (on_close, "on_close")):
            if callback is not None:
                check_callback(callback, name)
        if compiled is None:
            config = Config(log=Log(access="none")) if config is None else config
            check_config(config)
            if listen:
                config = msgspec.structs.replace(config, listen=[Listen(url) for url in listen])
            compiled = self.compile(config, open)
        self.check_carrier(compiled)
        self.compiled = compiled
        if sockets is not None and len(sockets) > len(compiled.config.listen):
            raise ConfigError(f"{len(sockets)}, but there are {len(compiled.config.listen)} listeners", "sockets")
        self.listeners = Listeners(sockets or ())
        self.sockets = self.listeners.sockets
        check_listeners(compiled, self.sockets)
        self.keeps_quotas = ledger is None  # the owner of a shared ledger stores what is in it
        self.ledger = LocalLedger() if ledger is None else ledger
        self.own = LocalAddresses()
        self.callbacks = Callbacks()
        told = [check_observer(one) for one in observers]
        if on_open is not None:
            told.append(OnOpen(self.callbacks.plain(on_open, "on_open")))
        if on_close is not None:
            told.append(OnClose(self.callbacks.plain(on_close, "on_close")))
        self.metrics = Metrics()
        self.given = composition.Given(
            self.ledger,
            self.own,
            self.metrics,
            decide,
            authenticate,
            resolver,
            told,
            self.egresses,
            carry,
            datagrams,
            dials,
            hooks=self.hooks,
        )
        self.composed: Parts | None = None
        self.keeper: QuotaKeeper | None = None
        self.closed = asyncio.Event()
        self.closing = contextlib.AsyncExitStack()
        self.ending: asyncio.Task[None] | None = None
        self.started = False
        self.live: Faults | None = None

    def __repr__(self) -> str:
        return f"<tabi.Server {' '.join(listen.url for listen in self.config.listen)}>"

    @property
    def config(self) -> Config:
        """The configuration as it is now."""
        return self.compiled.config

    @property
    def parts(self) -> Parts:
        """What it is composed of, from its start on."""
        if self.composed is None:
            raise RuntimeError("a Server has parts from start() on")
        return self.composed

    # --- life ---

    async def start(self) -> None:
        """Open the listeners and accept.

        Raises:
            OSError: an address cannot be listened on, or the access log not written.
            ConfigError: no socket of a name was passed, or one that was would make an open proxy.
        """
        if self.started:
            raise RuntimeError("a Server starts once")
        self.started = True
        try:
            reactor = get_reactor()
            self.closing.push_async_callback(self.callbacks.close)
            self.composed = parts = Parts(self.compiled, reactor, self.given, self.closing)
            self.compiled = parts.compiled
            self.keep_quotas(self.compiled)
            self.listeners.open(self.config.listen)
            check_listeners(self.compiled, self.sockets)
            parts.listen(self.listeners)
        except BaseException:
            await self.close()
            raise

    def compile(self, config: Config, open: bool) -> Compiled:
        """Compile a configuration, with what this server was made with. Raises ConfigError."""
        if self.plain_users:
            given = {name: UserConfig(password, plain=True) for name, password in self.plain_users.items()}
            config = msgspec.structs.replace(config, users=config.users | given)
        if self.authority is not None:
            config = msgspec.structs.replace(config, ca=Ca(*self.authority))
        entries = [*config.intercept, *self.intercepts]
        if self.hooks and not any(one.action == "intercept" for one in entries):
            entries.append(InterceptConfig(name="hooks", tls=False))
        config = msgspec.structs.replace(config, intercept=entries, distort=[*config.distort, *self.distorts])
        return compile_config(check_types(config), open, self.authenticates, self.egresses)

    def reload(self, config: Config) -> list[str]:
        """Take another configuration for new sessions; those that run go on as they began.

        What was counted stays counted. All that the server was made with stays: users, functions, observers. It is
        compiled here and now, which holds up the loop: 0.2 s for 10,000 users. `tabi serve` does it in another process.

        Returns:
            The keys that wait for a restart: ``workers``, ``user``, ``timeouts``, ``log``, ``quotas``, ``resolver``,
            ``ca``, and ``listen`` where its URLs are others. They stay as they were.

        Raises:
            ConfigError: something of it is wrong. Nothing has changed then.
        """
        check_config(config)
        if self.authority is not None:
            config = msgspec.structs.replace(config, ca=self.config.ca)
        config, later = take_over(self.config, config)
        compiled = self.compile(config, self.compiled.open_proxy)
        for _ in self.replace(compiled):
            pass
        return later

    def replace(self, compiled: Compiled) -> Iterator[None]:
        """Change to a compiled configuration, in steps of a few milliseconds; the last one changes everything.

        Raises:
            ConfigError: as `reload`.
        """
        check_listeners(compiled, self.sockets)
        self.check_carrier(compiled)
        if self.composed is None or self.closed.is_set():
            self.compiled = compiled
            return
        self.keep_quotas(compiled)
        yield from self.composed.replace(compiled)
        self.compiled = self.composed.compiled

    def check_carrier(self, compiled: Compiled) -> None:
        """Raise ConfigError where a program's own carrier, or its hooks, and a configuration do not go together."""
        if compiled.intercepts is not None and self.has_carrier:
            raise ConfigError("it gets every session, so that there is nothing to intercept", "carrier")
        if compiled.intercepts is None and self.hooks:
            raise ConfigError("there is no [[intercept]] in what was compiled", "hooks")

    def keep_quotas(self, compiled: Compiled) -> None:
        """Begin to store what is used, if the configuration names a file for it, and no other part stores it.
        Raises ConfigError."""
        path = compiled.config.quotas.path
        if path is not None and self.keeps_quotas and self.keeper is None and compiled.with_quotas:
            self.keeper = QuotaKeeper(self.ledger, open_store(Path(path)))
            keeping = self.parts.reactor.loop.create_task(self.keeper.run())
            self.closing.push_async_callback(self.stop_keeping, keeping)

    @staticmethod
    async def stop_keeping(keeping: asyncio.Task[None]) -> None:
        """Store for the last time."""
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def serve_forever(self) -> None:
        """Wait until the server is closed, or the task that waits is cancelled."""
        await self.closed.wait()

    async def drain(self, seconds: float | None = None) -> int:
        """Accept no more and let the sessions end, for at most ``seconds`` (default: ``timeouts.drain``).

        Returns:
            How many are still running.
        """
        self.stop_accepting()
        if self.composed is None:
            return 0
        sessions = self.composed.sessions
        await sessions.drained(self.config.timeouts.drain if seconds is None else seconds)
        return len(sessions.running)

    def stop_accepting(self) -> None:
        """Close the listeners: a client that comes now is refused and does not wait."""
        if self.composed is not None:
            self.composed.stop_accepting()
        self.listeners.close()

    async def close(self) -> None:
        """Stop at once: sessions that still run end as ``shutdown``. Harmless when done twice.

        It runs to its end even if the task that waits for it is cancelled, also again and again, as a cancelled scope
        of anyio does. That task is cancelled afterwards.
        """
        self.stop_accepting()
        cancelled: asyncio.CancelledError | None = None
        while not self.closed.is_set():
            if self.ending is None or self.ending.done():  # cancelled before its first step, it has done nothing
                self.ending = asyncio.get_running_loop().create_task(self.end(), name="tabi-close")
            try:
                await asyncio.wait((self.ending,))
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled

    async def end(self) -> None:
        """The task that closes all parts: even if it is cancelled itself, each of them is closed."""
        try:
            if self.composed is not None:
                await self.composed.sessions.cancel()
        finally:
            try:
                await self.closing.aclose()
            except Exception:
                log.exception("a part could not be closed")
            finally:
                self.closed.set()

    # --- addresses ---

    def open_sockets(self) -> list[list[socket.socket]]:
        """The sockets of each listener. Raises RuntimeError before `start`, and after `drain` or `close`."""
        sockets = self.sockets
        if len(sockets) < len(self.config.listen) or any(sock.fileno() < 0 for sock in itertools.chain(*sockets)):
            raise RuntimeError("a Server has addresses from start() until drain() or close()")
        return sockets

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, with the ports that port 0 became, but for unix sockets. Raises RuntimeError as `urls`."""
        socks = itertools.chain(*self.open_sockets())
        return [from_sockaddr(sock.getsockname()) for sock in socks if sock.family != AF_UNIX]

    @property
    def urls(self) -> list[str]:
        """A URL for each place that it listens at, without credentials. RuntimeError if it does not listen."""
        return urls_of(self.config.listen, self.open_sockets())

    @property
    def url(self) -> str:
        """The first listener's URL as a client uses it: with the first of the ``users`` if they are required.

        It holds a password then: `urls` does not. ``mixed`` is SOCKS5 to a client. Raises RuntimeError as `urls`.
        """
        return self.url_of(0, re.sub(r"^mixed", "socks5", self.urls[0]))

    def url_for(self, protocol: str) -> str:
        """The URL with which a client speaks a protocol to the first listener that takes it, as `url`.

        Args:
            protocol: ``socks5``, ``socks4``, ``http``, or one of them inside TLS: ``https``, ``socks5+tls``,
                ``socks4+tls``.

        Raises:
            ValueError: no listener takes it.
            RuntimeError: as `urls`.
        """
        inside = protocol == "https" or protocol.endswith("+tls")
        plain = "http" if protocol == "https" else protocol.removesuffix("+tls")
        for index, (listen, sockets) in enumerate(zip(self.config.listen, self.open_sockets(), strict=True)):
            url = listen.parsed
            speaks = plain in ("socks5", "socks4", "http") and url.protocol in (plain, "mixed")
            if speaks and (listen.tls is not None if inside else not url.tls) and isinstance(url.place, Address):
                return self.url_of(index, f"{protocol}://{from_sockaddr(sockets[0].getsockname())}")
        raise ValueError(f"no listener takes {protocol!r} at an address: {', '.join(self.urls)}")

    def url_of(self, index: int, url: str) -> str:
        """A URL with the first user added, if a user is required."""
        if url.startswith("unix:") or not self.plain_users or not self.compiled.required(self.config.listen[index]):
            return url
        name, password = next(iter(self.plain_users.items()))
        scheme, _, address = url.partition("://")
        return f"{scheme}://{quote(name, safe='')}:{quote(password, safe='')}@{address}"

    # --- sessions ---

    def sessions(self) -> list[SessionInfo]:
        """The running sessions, as they are now, the oldest first. `SessionInfo.end` ends one."""
        return [] if self.composed is None else self.composed.sessions.infos()

    # --- faults ---

    def fault(self, profile: str | None = None, **keys: Unpack[FaultKeys]) -> LiveFault:
        """A fault that acts between ``async with`` and its end, on running sessions too, see `LiveFault`::

            async with server.fault("3g", hosts=["*.example.com"]):
                ...

        Args:
            profile: ``3g`` and the like, or one of ``[profile.NAME]``; other figures that are given hold in place of
                its own.
            keys: those of ``fault`` in ``[[distort]]`` (``from_`` for ``from``), the matchers of ``[[distort]]``,
                ``probability``, ``seed`` and ``name``. Default of ``name``: ``fault-1`` and so on.

        Raises:
            ConfigError: something of it is wrong; it names the key.
        """
        return self.faults.make(keys if profile is None else {"profile": profile, **keys})

    def set_fault(self, profile: str | None = None, **keys: Unpack[FaultKeys]) -> LiveFault:
        """The same, but acting already, until `LiveFault.remove`.

        Raises:
            ConfigError: as `fault`.
            RuntimeError: the server does not run.
        """
        return self.fault(profile, **keys).set()

    @property
    def faults(self) -> Faults:
        """All faults that were set while it runs."""
        if self.live is None:
            from tabi.server.faults import Faults

            self.live = Faults(self)
        return self.live

    @property
    def ends(self) -> bool:
        """Whether it is closed, or about to be."""
        return self.ending is not None or self.closed.is_set()
