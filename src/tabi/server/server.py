"""Server: a complete proxy in one event loop. `tabi serve` runs one in each worker; any program can embed it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import resource
import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from time import monotonic, time
from typing import Any, Self

import msgspec

from tabi.config import Config, Listen, Log, User, check_types, check_values
from tabi.egress.base import Egress
from tabi.errors import ConfigError, RemoteProtocolError
from tabi.ingress.associate import Associate
from tabi.ingress.authenticate import Ask, PasswordAuthenticator, with_grammar
from tabi.ingress.bind import Bind
from tabi.ingress.connect import Connect
from tabi.ingress.conversation import Commands, Ingress, Serve
from tabi.ingress.gate import Gate
from tabi.ingress.http import Forwarding, KeptConnections
from tabi.ingress.login import Authenticate, check_authenticate
from tabi.ingress.resolve import Resolve, ResolvePtr
from tabi.ingress.tls import Certificates
from tabi.net.deadline import Deadlines, Quiet
from tabi.net.dial import Dialer
from tabi.net.listen import AF_UNIX, BACKLOG, Acceptor, Given, Listeners, unix_client, urls_of
from tabi.net.own import OwnAddresses
from tabi.net.reactor import Reactor, get_reactor
from tabi.net.resolve import Resolver
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared
from tabi.observe.access_log import AccessLog, Output, open_output
from tabi.observe.metrics import Metrics
from tabi.policy.grammar import Grammar
from tabi.policy.guard import Own
from tabi.policy.hook import LastWord
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits
from tabi.policy.users import Secret, Users
from tabi.relay.associations import Associations
from tabi.relay.relays import Relays
from tabi.server.compose import check_last_word, make_ingress, make_policy
from tabi.server.egresses import Egresses, check_files, make_source
from tabi.server.ledger import LocalLedger
from tabi.server.names import prepare_resolver
from tabi.server.quota_store import INTERVAL, QuotaStore, load_store, open_store
from tabi.server.reload import take_over
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr
from tabi.wire.socks5 import Command

log = logging.getLogger("tabi")

FEW_SESSIONS = 50
"""Room for fewer is worth a warning."""

DESCRIPTORS_ASIDE = 48
"""For what is no session: standard streams, epoll, the resolver, the log, a little air."""


class Server:
    """A SOCKS5 proxy, running between ``async with`` and its end::

        async with tabi.Server("socks5://127.0.0.1:0", users={"alice": "secret"}) as server:
            print(server.url)
            await server.serve_forever()

    Args:
        listen: URLs to listen on, in place of those of ``config``; port 0 takes a free one.
        users: passwords by user name. Whoever is given here or in ``config`` is then required.
        decide: ``def`` or ``async def(session) -> tabi.Decision | None``, asked for each session after the rules of
            ``config``, whose decision is in ``session.decision``: it has the last word, but for the guard. None: the
            rules are right.
        authenticate: ``async def(login: tabi.Login) -> str | tabi.User | None`` in place of users: says who a client
            is, None for nobody. What it raises is a failure on our side, not a wrong password.
        config: everything that tabi.toml can say. Default: its defaults, without an access log.
        open: allow listening beyond loopback without users.
        on_session: called with each `Session` when it has ended.
        resolver: turns names into addresses, in place of ``[resolver]`` of ``config``: nothing that it says is kept.
        sockets: for each URL, in its order, a listening socket or several, in place of opening them. They are closed
            with the others.
        ledger: where limits count. Default: one of its own, kept in the file of ``quotas.path`` if there is one.

    Raises:
        ConfigError: something of this is wrong, or would make an open proxy.
    """

    def __init__(
        self,
        *listen: str,
        users: Mapping[str, str] | None = None,
        authenticate: Authenticate | None = None,
        decide: LastWord | None = None,
        config: Config | None = None,
        open: bool = False,
        on_session: Callable[[Session], object] | None = None,
        resolver: Resolver | None = None,
        sockets: Sequence[Given] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        if config is None:
            config = Config(log=Log(access="none"))
        if listen:
            config = msgspec.structs.replace(config, listen=[Listen(url) for url in listen])
        if users:
            given = {name: User(password, plain=True) for name, password in users.items()}
            config = msgspec.structs.replace(config, users=config.users | given)
        config = check_types(config)
        check_values(config, authenticate is not None)
        if authenticate is not None:
            check_authenticate(authenticate)
        if decide is not None:
            check_last_word(decide, "decide")
        self.config = config
        self.keeps_quotas = ledger is None  # whoever shares a ledger keeps what is in it
        self.ledger = LocalLedger() if ledger is None else ledger
        self.own = Own()
        self.last_word = decide
        self.policy = make_policy(config, self.ledger, self.own, decide)
        self.metrics = Metrics()
        self.on_session = on_session
        self.resolver = resolver
        self.make_resolver = prepare_resolver(config)
        check_files(config)
        secrets = secrets_of(config)
        self.plain_users = dict(users or {})
        self.users = Users(secrets) if secrets else None
        self.custom_authenticate = authenticate
        self.open_proxy = open
        if sockets is not None and len(sockets) > len(config.listen):
            raise ConfigError(f"{len(sockets)}, but there are {len(config.listen)} listeners", "sockets")
        self.listeners = Listeners(sockets or ())
        self.sockets = self.listeners.sockets
        self.refuse_open_proxy()
        self.refuse_what_nobody_could_use()
        self.certificates = [self.load_certificates(index) for index in range(len(config.listen))]
        self.acceptors: list[Acceptor] = []
        self.store: QuotaStore | None = None
        self.sessions: dict[Session, asyncio.Task[None] | None] = {}
        self.numbers = itertools.count(1)
        self.empty: asyncio.Event | None = None
        self.access_log: AccessLog | None = None
        self.kept = KeptConnections()
        self.all_ways: list[Egresses] = []
        self.closed = asyncio.Event()
        self.closing = contextlib.AsyncExitStack()
        """Closes what was built so far, in the reverse order: sessions end before the log that has their lines."""
        self.started = False

    def __repr__(self) -> str:
        return f"<tabi.Server {' '.join(listen.url for listen in self.config.listen)}>"

    # --- who may use it ---

    def required(self, listen: Listen) -> bool:
        """Whether a listener's clients must be users."""
        return listen.wants_user(self.users is not None or self.custom_authenticate is not None)

    def load_certificates(self, index: int) -> Certificates | None:
        """Those of a listener; a certificate is required where nothing else can prove a user. Raises ConfigError."""
        listen = self.config.listen[index]
        if listen.tls is None:
            return None
        no_passwords = self.users is None and self.custom_authenticate is None
        return Certificates(listen.tls, f"listen[{index}].tls", no_passwords and self.required(listen))

    def refuse_open_proxy(self) -> None:
        """Raise ConfigError for a listener that anybody in the network could use: by its URL, or by its sockets."""
        for index, listen in enumerate(self.config.listen):
            if self.open_proxy or self.required(listen):
                continue
            place = listen.parsed.place
            known = [place] if isinstance(place, Address) else []  # through a unix socket nobody comes from outside
            sockets = itertools.chain(*self.sockets[index : index + 1])
            known += [from_sockaddr(sock.getsockname()) for sock in sockets if sock.family != AF_UNIX]
            if listen.proxy_protocol:
                raise ConfigError(
                    f"{listen.url} would be an open proxy to all clients of the proxies in proxy_protocol: add a user "
                    "(-u NAME:PASSWORD), or say --open if anybody whom they bring may use it",
                    f"listen[{index}].proxy_protocol",
                )
            for address in known:
                host = address.host
                if not (host == "localhost" if isinstance(host, str) else host.is_loopback):
                    where = listen.url if address == place else f"{listen.url} at {address}"
                    why = f", since {host} is no loopback address" if isinstance(host, str) else ""
                    raise ConfigError(
                        f"{where} would be an open proxy{why}: add a user (-u NAME:PASSWORD), listen on 127.0.0.1, "
                        "or say --open if anybody who reaches this address may use it",
                        f"listen[{index}].url",
                    )

    def refuse_what_nobody_could_use(self) -> None:
        """Raise ConfigError for a listener whose clients must be users and have no way to prove it."""
        for index, listen in enumerate(self.config.listen):
            if listen.parsed.protocol == "socks4" and self.required(listen) and not listen.by_certificate:
                raise ConfigError(
                    f'{listen.url} could be used by nobody, since SOCKS4 has no passwords: say users = "none", '
                    "or take another protocol",
                    f"listen[{index}].url",
                )

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
            self.build(get_reactor())
        except BaseException:
            await self.close()
            raise

    def build(self, reactor: Reactor) -> None:
        """Compose the parts: ingress -> policy -> egress -> relay."""
        config, loop, timeouts = self.config, reactor.loop, self.config.timeouts
        self.reactor = reactor
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        pipes = max(0, descriptors // 8)  # two descriptors each: a quarter of all
        self.capacity = max(1, (descriptors - 2 * pipes - DESCRIPTORS_ASIDE) // 2)
        if self.capacity < FEW_SESSIONS:
            log.warning("only %d descriptors (ulimit -n): room for %d sessions", descriptors, self.capacity)
        closing = self.closing
        self.dialer = Dialer(reactor, self.resolver or self.make_resolver(loop), timeouts.connect)
        closing.push_async_callback(self.dialer.close)
        self.authenticator = None if self.users is None else self.make_authenticator(self.users)
        if config.log.access != "none":
            self.access_log = AccessLog(self.open_log(), f"{os.urandom(3).hex()}-", loop.call_later)
            closing.push_async_callback(asyncio.to_thread, self.access_log.close)
        self.handshake = Deadlines(loop, timeouts.handshake)
        closing.callback(self.handshake.close)
        self.associations = Associations(
            reactor, self.dialer, timeouts.udp_idle, self.finished, binding=self.origin_of_datagrams()
        )
        closing.push_async_callback(self.associations.close, "shutdown")
        closing.push_async_callback(self.close_links)
        self.relays = Relays(reactor, timeouts.idle, timeouts.half_closed, pipes, self.finished)
        closing.callback(self.relays.close, "shutdown")
        idle = Quiet(loop, timeouts.idle)
        closing.callback(idle.close)

        self.tls_shared = TlsShared()
        self.ways = Egresses(config, self.dialer, self.tls_shared)
        self.ways.start()
        self.all_ways.append(self.ways)
        closing.push_async_callback(self.close_ways)
        self.gate = Gate(self.policy, self.dialer, self.ways.by_name, self.metrics, timeouts.handshake, self.from_url)
        closing.callback(self.gate.close)
        self.keep_quotas(self.policy.limits)
        self.connect = Connect(self.gate, self.relays)
        self.forwarding = Forwarding(self.gate, self.relays.pacer, idle, self.request_over, self.kept, self.relays)
        self.listeners.open(config.listen)
        self.refuse_open_proxy()
        self.own.ports = frozenset(address.port for address in self.addresses)
        self.own_addresses = OwnAddresses(reactor, self.learn_addresses)
        closing.callback(self.own_addresses.close)
        for index, listen in enumerate(config.listen):
            accepted = self.accepting(self.make_ingress(index), listen)
            for sock in self.sockets[index]:
                sock.setblocking(False)
                try:
                    sock.listen(BACKLOG)  # a given one may only be bound
                except OSError as exc:
                    raise OSError(exc.errno, exc.strerror, f"listen[{index}].url: {listen.url}") from exc
            self.acceptors += [Acceptor(reactor, sock, accepted, self.room) for sock in self.sockets[index]]
        for acceptor in self.acceptors:
            acceptor.start()

    def reload(self, config: Config) -> list[str]:
        """Take another configuration for new sessions; those that run go on as they began.

        What was counted stays counted. `users` and `decide` that the server was made with stay.

        Returns:
            The keys that wait for a restart: ``workers``, ``timeouts``, ``log``, ``quotas``, ``resolver``, and
            ``listen`` where its URLs are others. They stay as they were.

        Raises:
            ConfigError: something of it is wrong. Nothing has changed then.
        """
        config, later = take_over(self.config, config)
        # Another server, which never starts: what it has composed is what this one goes on with.
        other = Server(
            users=self.plain_users,
            authenticate=self.custom_authenticate,
            decide=self.last_word,
            config=config,
            open=self.open_proxy,
            sockets=self.sockets,
            ledger=self.ledger,
        )
        running = self.started and not self.closed.is_set()
        if running:
            ways = self.ways.reloaded(config)
            self.keep_quotas(other.policy.limits)
        self.config, self.policy, self.users = other.config, other.policy, other.users
        self.certificates = other.certificates
        self.policy.guard.own = self.own
        if not running:
            return later
        self.ways.retire()
        self.all_ways = [*(old for old in self.all_ways if old.is_alive), ways]
        self.ways = ways
        ways.start()
        self.gate.replace(self.policy, ways.by_name)
        self.associations.binding = self.origin_of_datagrams()
        if self.authenticator is not None:
            self.authenticator.users = self.users or Users({})
        elif self.users is not None:
            self.authenticator = self.make_authenticator(self.users)
        acceptors = iter(self.acceptors)
        for index, listen in enumerate(self.config.listen):
            accepted = self.accepting(self.make_ingress(index), listen)
            for acceptor in itertools.islice(acceptors, len(self.sockets[index])):
                acceptor.accepted = accepted
        return later

    async def close_ways(self) -> None:
        """Stop checking those that there are now."""
        await self.ways.close()

    async def close_links(self) -> None:
        """End the connections that ways out keep, those of earlier configurations too."""
        for ways in self.all_ways:
            await ways.close_links()

    def from_url(self, url: str) -> Egress:
        """See `Egresses.from_url`: with the settings that there are now."""
        return self.ways.from_url(url)

    def origin_of_datagrams(self) -> SourceBinding | None:
        """Where they come from: the direct way out is theirs."""
        settings = self.config.egress.get("direct")
        return None if settings is None else make_source(settings)

    def make_authenticator(self, users: Users) -> PasswordAuthenticator:
        """What asks for passwords, and ends with the server."""
        authenticator = PasswordAuthenticator(users)
        self.closing.push_async_callback(authenticator.close)
        return authenticator

    def keep_quotas(self, limits: Limits) -> None:
        """Begin to store what is used, if that is wanted: where the configuration names a file for it, and nobody else
        does. Raises ConfigError."""
        path = self.config.quotas.path
        if path is None or not self.keeps_quotas or not limits.with_quota:
            return
        if self.store is None:
            self.store = open_store(Path(path))
            saving = self.reactor.loop.create_task(self.save_quotas(self.store))
            self.closing.push_async_callback(self.stop_saving, saving)
        limits.restore(load_store(self.store), time())

    async def save_quotas(self, store: QuotaStore) -> None:
        """Store what was used, every few seconds and at the end."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await asyncio.to_thread(store.save, self.policy.limits)
        finally:
            store.save(self.policy.limits)

    @staticmethod
    async def stop_saving(saving: asyncio.Task[None]) -> None:
        """Store for the last time."""
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)

    def learn_addresses(self, addresses: frozenset[IPv4Address | IPv6Address]) -> None:
        """Tell the guard which addresses this machine has."""
        self.own.addresses = addresses

    def open_log(self) -> Output:
        """Where the lines of the access log go. Raises OSError; ``filename`` is the key and the path."""
        target = self.config.log.access
        try:
            return open_output(target)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, f"log.access: {target}") from exc

    def make_ingress(self, index: int) -> Ingress:
        """What a listener speaks, and what carries out its clients' commands."""
        listen, certificates = self.config.listen[index], self.certificates[index]
        serves: dict[int, Serve] = {
            Command.CONNECT: self.connect,
            Command.BIND: Bind(self.gate, self.dialer, self.relays, listen.udp, self.config.timeouts.bind),
            Command.UDP_ASSOCIATE: Associate(self.gate, self.associations, listen.udp),
        }
        if listen.resolve_commands:
            serves[Command.RESOLVE] = Resolve(self.gate, self.config.resolver.prefer)
            serves[Command.RESOLVE_PTR] = ResolvePtr(self.gate)
        authenticate: Ask | None = self.custom_authenticate or self.authenticator
        if listen.users == "none":
            authenticate = None
        grammar = Grammar(self.config.users_grammar.keys, self.config.users_grammar.separator)
        if authenticate is not None and grammar:
            authenticate = with_grammar(authenticate, grammar)
        commands, required = Commands(serves, self.handshake), self.required(listen)
        return make_ingress(listen, commands, self.forwarding, authenticate, required, certificates, self.tls_shared)

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
        for acceptor in self.acceptors:
            acceptor.stop()
        self.close_sockets()
        self.kept.drain()
        if self.sessions:
            self.empty = asyncio.Event()
            try:
                await asyncio.wait_for(self.empty.wait(), self.config.timeouts.drain if seconds is None else seconds)
            except TimeoutError:
                pass
        return len(self.sessions)

    async def close(self) -> None:
        """Stop at once: sessions that still run end as ``shutdown``. Harmless when done twice."""
        for acceptor in self.acceptors:
            acceptor.stop()
        self.acceptors.clear()
        self.close_sockets()
        await asyncio.sleep(0)  # a task that is cancelled before its first step never comes to its `finally`
        tasks = [task for task in self.sessions.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.closing.aclose()
        self.closed.set()

    def close_sockets(self) -> None:
        """Close the listeners: who comes now is refused rather than kept waiting."""
        self.listeners.close()

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
        """A URL for each place that it listens at, without credentials. RuntimeError where it does not listen."""
        return urls_of(self.config.listen, self.open_sockets())

    @property
    def url(self) -> str:
        """The first listener's URL as a client uses it: with the first of the ``users`` where they are required.

        It holds a password then: `urls` does not. ``mixed`` is SOCKS5 to a client. Raises RuntimeError as `urls`.
        """
        from urllib.parse import quote

        url = re.sub(r"^mixed", "socks5", self.urls[0])
        if url.startswith("unix:") or not self.plain_users or not self.required(self.config.listen[0]):
            return url
        name, password = next(iter(self.plain_users.items()))
        scheme, _, address = url.partition("://")
        return f"{scheme}://{quote(name, safe='')}:{quote(password, safe='')}@{address}"

    # --- sessions ---

    def room(self) -> int:
        """How many more sessions the descriptors carry."""
        associations = self.associations  # which take twice as many, and the connections to proxies
        room = self.capacity - len(self.sessions) - len(associations.active) - associations.controls
        for ways in self.all_ways:
            if ways.links:
                room -= ways.channels  # a session through an SSH server takes one more: counted as two
        return room

    def accepting(self, ingress: Ingress, listen: Listen) -> Callable[[Any, Any], None]:
        """What a listener does with each new connection."""
        reactor, sessions, handshake, name = self.reactor, self.sessions, self.handshake, listen.url
        loop = reactor.loop

        def accepted(sock: Any, sockaddr: Any) -> None:
            # A path where a client of a unix socket has one: it says nothing of who that is.
            peer = from_sockaddr(sockaddr) if isinstance(sockaddr, tuple) else unix_client(sock)
            session = Session(next(self.numbers), name, peer, monotonic())
            client = Stream(reactor, sock)
            handshake.start(client)
            sessions[session] = asyncio.Task(self.run(ingress, client, session), loop=loop)

        return accepted

    async def run(self, ingress: Ingress, client: Stream, session: Session) -> None:
        """One session's task: it ends when a relay has taken over, or the session is over."""
        try:
            await ingress.serve(client, session)
        except asyncio.CancelledError:
            if session.close not in ("denied", "limit"):  # it was refused, and only its client lingers
                session.close = "shutdown"
            raise
        except TimeoutError:
            session.error = f"handshake: not done within {self.handshake.seconds:g} s"
        except RemoteProtocolError as exc:
            session.error = str(exc)
        except OSError as exc:
            session.error = (exc.strerror or str(exc)).lower()
            session.close = "reset" if isinstance(exc, ConnectionError) else "error"
        except Exception as exc:
            session.error = f"internal error: {type(exc).__name__}"
            log.exception("session %x failed", session.number)
        finally:
            if client.fd >= 0:
                self.handshake.stop(client)
                client.close()
                self.finished(session)
            elif session in self.sessions:
                self.sessions[session] = None

    def finished(self, session: Session) -> None:
        """A session is over: its line, and who waits for the last one."""
        del self.sessions[session]
        if session.lease is not None:
            self.gate.leave(session.lease)
        if session.ended is not None:
            session.over()
        if not session.silent:
            self.report(session)
        if self.empty is not None and not self.sessions:
            self.empty.set()

    def request_over(self, session: Session) -> None:
        """A request is over, and its connection goes on: its line, and the session begins anew."""
        if session.lease is not None:
            self.gate.leave(session.lease)
        if session.ended is not None:
            session.over()
        self.report(session if self.on_session is None else session.copy())  # whoever gets it may keep it
        session.begin(next(self.numbers), monotonic())

    def report(self, session: Session) -> None:
        """Tell the access log and the embedding program."""
        if self.access_log is not None:
            self.access_log.add(session, monotonic())
        if self.on_session is not None:
            try:
                self.on_session(session)
            except Exception:
                log.exception("on_session failed")


def secrets_of(config: Config) -> dict[str, Secret]:
    """The passwords of all users that have one."""
    return {name: secret for name, user in config.users.items() if (secret := user.secret) is not None}
