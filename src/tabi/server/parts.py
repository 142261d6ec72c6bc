"""What a running server is composed of: ingress -> policy -> egress -> relay. Each part is made once, here."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from tabi.config import Config
from tabi.egress.base import Egress
from tabi.egress.custom import Opener
from tabi.egress.inspected import DialInspector
from tabi.ingress.authenticate import Ask, PasswordAuthenticator, with_grammar
from tabi.ingress.connect import Connect
from tabi.ingress.conversation import Ingress
from tabi.ingress.gate import Gate
from tabi.ingress.http import Forwarding, Inspect, KeptConnections
from tabi.ingress.login import Authenticate
from tabi.ingress.origin_tls import OriginTls
from tabi.ingress.own_destinations import Entrance, OwnDestinations
from tabi.ingress.tls import Certificates
from tabi.net.dial import AddressFilter, Dialer
from tabi.net.kernel import descriptor_limits
from tabi.net.listen import BACKLOG, Acceptor, Listeners, keep_alive
from tabi.net.local_addresses import LocalAddressMonitor
from tabi.net.reactor import Reactor
from tabi.net.resolve import Resolver
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.net.timeouts import IdleRules, IdleTimeouts
from tabi.net.tls import TlsShared
from tabi.observe.access_log import AccessLog, BeginningsToo
from tabi.observe.log_outputs import Output
from tabi.observe.log_record import Format
from tabi.observe.log_targets import open_log
from tabi.observe.metrics import Metrics
from tabi.observe.observers import SessionObserver
from tabi.parts.base import Composed, Piece, Running, Served
from tabi.parts.commands import Bind, Command, Resolve, ResolvePtr, UdpAssociate
from tabi.parts.commands import Connect as ConnectPiece
from tabi.parts.protocols import proxy_of
from tabi.policy.grammar import Grammar
from tabi.policy.guard import LocalAddresses
from tabi.policy.hook import DecideHook
from tabi.policy.ledger import Ledger
from tabi.policy.users import Users
from tabi.relay.associations import Associations
from tabi.relay.carrier import Carrier, Carry
from tabi.relay.datagram_inspector import DatagramInspector
from tabi.relay.first_octets import FirstOctets, Seen
from tabi.relay.relays import Relays
from tabi.relay.sniffer import Sniffer
from tabi.relay.tunnel import Tunnels
from tabi.server.arrivals import Arrivals
from tabi.server.clients import Clients
from tabi.server.compiled import Compiled
from tabi.server.egresses import Egresses, make_source
from tabi.server.sessions import Sessions
from tabi.server.watchdog import Watchdog
from tabi.session import Session
from tabi.wire.address import from_sockaddr

if TYPE_CHECKING:
    from tabi.intercept.interception import Interception
    from tabi.intercept.page_egress import PageEgress
    from tabi.parts.intercept import Intercept
    from tabi.policy.distorts import Distorts
    from tabi.server.distortion import Molding

log = logging.getLogger("tabi")

FEW_SESSIONS = 50
"""Room for fewer is worth a warning."""

DESCRIPTORS_ASIDE = 48
"""Descriptors in addition to those of sessions: standard streams, epoll, the resolver, the log, some spare ones."""


class Given(NamedTuple):
    """What a program gives a server instead of the configuration, and what survives reloads."""

    ledger: Ledger
    own: LocalAddresses
    metrics: Metrics
    decide: DecideHook | None = None
    authenticate: Authenticate | None = None
    resolver: Resolver | None = None
    observers: Sequence[SessionObserver] = ()
    egresses: Mapping[str, Opener] = {}
    carry: Carry | None = None
    datagrams: DatagramInspector | None = None
    dials: DialInspector | None = None
    composed: Composed | None = None
    hooks: Sequence[object] = ()
    records: socket.socket | None = None
    """To the process that writes records; None if there is no such process."""


class Parts:
    """The parts of one server. `listen` opens it; what ``closing`` holds is closed in the reverse order: sessions end
    before the log that has their lines.

    Raises:
        OSError: the access log cannot be written.
    """

    def __init__(self, compiled: Compiled, reactor: Reactor, given: Given, closing: contextlib.AsyncExitStack) -> None:
        compiled = compiled.complete()
        config, loop, timeouts = compiled.config, reactor.loop, compiled.config.timeouts
        self.reactor = reactor
        self.given = given
        self.closing = closing
        self.compiled = compiled
        descriptors = descriptor_limits()[0]
        pipes = max(0, descriptors // 8)  # two descriptors each: a quarter of all
        self.capacity = max(1, (descriptors - 2 * pipes - DESCRIPTORS_ASIDE) // 2)
        if self.capacity < FEW_SESSIONS:
            log.warning("only %d descriptors (ulimit -n): room for %d sessions", descriptors, self.capacity)
        make_resolver = compiled.make_resolver
        assert make_resolver is not None
        resolver = given.resolver
        if resolver is None:
            resolver = make_resolver(loop)
            resolver.observe = given.metrics.dns.observe
        self.dialer = Dialer(reactor, resolver, timeouts.connect, given.own)
        closing.push_async_callback(self.dialer.close)
        self.authenticator: PasswordAuthenticator | None = None
        observers = [given.metrics, *given.observers]
        self.prefix = f"{os.urandom(3).hex()}-"
        """Of the ids of sessions, so that those of several workers differ."""
        self.access_log: AccessLog | None = None
        if config.log.access != "none":
            output, form = open_access_log(config)
            kind = BeginningsToo if config.log.begin else AccessLog
            self.access_log = kind(output, self.prefix, loop.call_later, form)
            closing.push_async_callback(asyncio.to_thread, self.access_log.close)
            observers.insert(0, self.access_log)
        self.sessions = sessions = Sessions(reactor, timeouts.handshake, observers)
        closing.callback(sessions.handshake.close)
        self.watchdog = Watchdog(sessions.running)
        reactor.watchdogs.append(self.watchdog)
        closing.callback(reactor.watchdogs.remove, self.watchdog)
        sessions.clients = self.clients = Clients(sessions.handshake, self.capacity, given.ledger, given.metrics)
        self.clients.take(config.limits)
        closing.callback(self.clients.close)
        sessions.arrivals = Arrivals(reactor, timeouts.handshake, self.clients)
        closing.callback(sessions.arrivals.close)
        self.associations = sessions.associations = Associations(
            reactor,
            self.dialer,
            timeouts.udp_idle,
            sessions.finished,
            binding=binding_of_datagrams(config),
            inspector=given.datagrams,
        )
        closing.push_async_callback(self.associations.close, "shutdown")
        closing.push_async_callback(self.close_links)
        self.molding: Molding | None = None
        closing.callback(self.close_molding)  # after the carriers behind it
        self.idle_rules = IdleRules()
        self.relays = Relays(reactor, timeouts.idle, timeouts.half_closed, pipes, sessions.finished, self.idle_rules)
        closing.callback(self.relays.close, "shutdown")
        self.carrier: Carrier = self.relays
        if given.carry is not None:
            self.carrier = tunnels = Tunnels(given.carry, self.relays)
            closing.push_async_callback(tunnels.close, "shutdown")
            sessions.carriers.append(tunnels)
        sessions.carriers.append(self.relays)
        idle = IdleTimeouts(reactor, timeouts.idle, self.idle_rules)
        half_closed = IdleTimeouts(reactor, timeouts.half_closed)
        closing.callback(idle.close)
        closing.callback(half_closed.close)

        self.tls_shared = TlsShared(sessions.handshake)
        inspection = None if given.dials is None else (given.dials, self.address_filter_for)
        timeouts_of = {} if given.composed is None else given.composed.timeouts
        self.egresses = Egresses(config, self.dialer, self.tls_shared, given.egresses, inspection, timeouts=timeouts_of)
        self.egresses.start()
        self.all_egresses = [self.egresses]
        closing.push_async_callback(self.close_egresses)
        policy = compiled.policy(given.ledger, given.own, given.decide, given.authenticate is not None)
        self.gate = sessions.gate = Gate(
            policy, self.dialer, self.egresses.by_name, given.metrics, timeouts.handshake, self.from_url
        )
        closing.callback(self.gate.close)
        self.outer = self.carrier  # of sessions that are not looked into
        self.interception: Interception | None = None
        self.interceptions: list[Interception] = []
        """All of them, those of pieces too."""
        self.page: PageEgress | None = None
        self.inner: Carrier = self.carrier  # of sessions that are not sniffed
        self.sniffer: Sniffer | None = None
        self.below: tuple[Carrier, Entrance, DatagramInspector | None] = self.carrier, self.gate, given.datagrams
        """What new sessions pass behind faults."""
        self.connect = Connect(self.gate, self.carrier)
        self.served: dict[int, list[Served]] = {}  # of each listener, besides `connect` and `forwarding`
        self.kept = KeptConnections(sessions.handshake.kept)
        tls = OriginTls(self.tls_shared, timeouts.connect)
        self.forwarding = Forwarding(
            self.gate, self.relays.pacer, idle, half_closed, sessions.request_over, self.kept, self.carrier, tls
        )
        self.take_sniffing(compiled)
        self.prepare_interception(compiled)()
        self.take_distorts(compiled.distorts)
        self.acceptors: list[Acceptor] = []
        self.counts: list[int] = []  # of them for each listener
        self.own_addresses = LocalAddressMonitor(reactor, self.learn_addresses)
        closing.callback(self.own_addresses.close)
        self.take_users(compiled)
        self.idle_rules.seconds = compiled.idle_of_rules

    def listen(self, listeners: Listeners) -> None:
        """Accept on sockets that are open. Raises OSError."""
        config = self.compiled.config
        addresses = [sock.getsockname() for sock in itertools.chain(*listeners.sockets)]
        self.given.own.ports = frozenset(from_sockaddr(name).port for name in addresses if isinstance(name, tuple))
        for index, listen in enumerate(config.listen):
            accepted = self.sessions.accepting(self.make_ingress(self.compiled, index), listen.url)
            for sock in listeners.sockets[index]:
                sock.setblocking(False)
                keep_alive(sock, listen.keepalive)
                try:
                    sock.listen(BACKLOG)  # a given one may only be bound
                except OSError as exc:
                    raise OSError(exc.errno, exc.strerror, f"listen[{index}].url: {listen.url}") from exc
            self.acceptors += [
                Acceptor(self.reactor, sock, accepted, self.room, self.clients.make_room)
                for sock in listeners.sockets[index]
            ]
            self.counts.append(len(listeners.sockets[index]))
        for acceptor in self.acceptors:
            acceptor.start()

    def stop_accepting(self) -> None:
        """Accept no more clients; connections that wait for another request end."""
        for acceptor in self.acceptors:
            acceptor.stop()
        self.kept.drain()

    def replace(self, compiled: Compiled) -> Iterator[None]:
        """Change to another configuration, in steps between which other tasks may run; the last one changes everything.

        Raises:
            ConfigError: a file has changed since the configuration was compiled. Then nothing changes here.
        """
        config = compiled.config
        certificates = []
        for index in range(len(config.listen)):
            certificates.append(compiled.certificates_of(index, self.compiled))
            yield
        compiled = compiled._replace(certificates=certificates)
        egresses = self.egresses.reloaded(config)
        yield
        policy = compiled.policy(
            self.given.ledger, self.given.own, self.given.decide, self.given.authenticate is not None
        )
        intercept = self.prepare_interception(compiled)
        yield
        self.compiled = compiled
        self.egresses.retire()
        self.all_egresses = [*(old for old in self.all_egresses if old.is_alive), egresses]
        self.egresses = egresses
        egresses.start()
        self.gate.replace(policy, egresses.by_name)
        self.associations.binding = binding_of_datagrams(config)
        self.clients.take(config.limits)
        self.take_users(compiled)
        self.take_sniffing(compiled)
        self.idle_rules.seconds = compiled.idle_of_rules
        intercept()
        self.take_distorts(compiled.distorts)
        self.renew_ingresses()

    def renew_ingresses(self) -> None:
        """Have new clients served as the configuration says now."""
        acceptors = iter(self.acceptors)
        for index, listen in enumerate(self.compiled.config.listen):
            accepted = self.sessions.accepting(self.make_ingress(self.compiled, index), listen.url)
            for acceptor in itertools.islice(acceptors, self.counts[index]):
                acceptor.accepted = accepted
                keep_alive(acceptor.sock, listen.keepalive)

    def prepare_interception(self, compiled: Compiled) -> Callable[[], None]:
        """Prepare to look into new sessions, or not to, as a configuration says; what is returned does it.

        Raises:
            ConfigError: a script or the authority cannot be loaded. Nothing has changed then.
        """
        if self.molding is not None:
            compiled = self.molding.looking_into(compiled)
        if compiled.intercepts is None:
            return lambda: self.take_carrier(self.outer, None, self.gate, self.given.datagrams)
        from tabi.intercept.page import PAGE
        from tabi.server.interception import make_inspector, make_page, prepare

        found = self.interception or self.make_interception(compiled, self.given.hooks)
        page = (self.page or make_page(compiled)) if compiled.intercepts.need_authority else None
        begin = prepare(found, compiled, self.tls_shared)

        def intercept() -> None:
            begin()
            if self.interception is None:
                self.interception = found
                self.keep_interception(found)
                self.sessions.carriers.insert(0, found)
            entrance: Entrance = self.gate
            if page is not None:
                entrance = OwnDestinations(self.gate, {PAGE: page})
                if self.page is None:
                    self.page = page
                    self.closing.callback(page.close)
            self.take_carrier(found, found.inspect, entrance, make_inspector(found, self.given.datagrams))

        return intercept

    def take_carrier(
        self, carrier: Carrier, inspect: Inspect | None, entrance: Entrance, datagrams: DatagramInspector | None
    ) -> None:
        """Have new sessions pass ``entrance``, and give them to this carrier, those that are sniffed after that, or
        their datagrams to this inspector."""
        self.inner = carrier
        sniffer = self.sniffer
        if sniffer is not None and sniffer.sniffing.needed:
            sniffer.inner = carrier
            carrier = sniffer
        self.forwarding.inspect = inspect
        self.below = carrier, entrance, datagrams
        self.compose()

    def compose(self) -> None:
        """Put faults in front of all that sessions pass from now on, where there are any."""
        carrier, entrance, datagrams = self.below
        self.carrier = carrier
        self.associations.inspector = datagrams
        self.put_in_front(Served(self.connect, entrance, carrier), Served(self.forwarding, entrance, carrier))
        self.put_in_front(*itertools.chain(*self.served.values()))

    def put_in_front(self, *served: Served) -> None:
        """Have these pass their gates and carriers, with faults where there are any."""
        for taking, gate, carrier in served:
            if self.molding is not None:
                carrier, gate = self.molding.in_front(carrier, gate)
            taking.take(gate, carrier)

    def take_distorts(self, distorts: Distorts) -> None:
        """Act by the entries of a configuration from now on, and by the faults that are set."""
        if self.molding is None:
            if not distorts:
                return
            self.molding = self.make_molding()
        self.molding.take(distorts)
        self.compose()

    def make_molding(self) -> Molding:
        """What acts by entries. Sessions cost nothing of it while there are none."""
        from tabi.server.distortion import Molding

        return Molding(self)

    def close_molding(self) -> None:
        """End what is left of it."""
        if self.molding is not None:
            self.molding.close()

    def make_interception(self, compiled: Compiled, hooks: Sequence[object]) -> Interception:
        """A carrier that looks into sessions, and records them where its rules say so."""
        from tabi.server.interception import make_interception, make_recorder

        recorder = make_recorder(self.given.records, self.reactor.loop)
        return make_interception(compiled, self.relays, self.gate, self.tls_shared, hooks, recorder)

    def keep_interception(self, interception: Interception) -> None:
        """Close it with the server, and have the watchdog name its hooks."""
        from tabi.server.interception import close_interception, rules_of

        self.interceptions.append(interception)
        if self.molding is not None:
            self.molding.act_inside(interception)
        self.watchdog.suspects.append(rules_of(interception).slow_since)
        self.closing.push_async_callback(close_interception, interception)

    def intercept(self, piece: Intercept) -> Carrier:
        """The running carrier of a piece. Raises ConfigError."""
        from tabi.server.interception import compile_piece, prepare

        compiled = compile_piece(self.compiled, piece)
        made = self.make_interception(compiled, piece.hooks)
        prepare(made, compiled, self.tls_shared)()
        self.keep_interception(made)
        return made

    def take_users(self, compiled: Compiled) -> None:
        """Ask these users for their passwords from now on."""
        users = compiled.users.secrets()
        if self.authenticator is not None:
            self.authenticator.users = users or Users({})
        elif compiled.has_logins and self.given.authenticate is None:
            self.authenticator = PasswordAuthenticator(users or Users({}), max(1, self.capacity // 2))
            self.closing.push_async_callback(self.authenticator.close)

    def take_sniffing(self, compiled: Compiled) -> None:
        """Look at the first octets of these sessions, as soon as `take_carrier` is called. Without any, the carriers
        are as if there were none to look at."""
        sniffing = compiled.sniffing
        if sniffing.needed and self.sniffer is None:
            first = FirstOctets(self.reactor, self.relays, compiled.config.timeouts.handshake)
            self.sniffer = Sniffer(first, self.inner, self.carry_on, self.gate.ask_again)
            self.sessions.carriers.append(self.sniffer)
            self.closing.callback(self.sniffer.close, "shutdown")
        if self.sniffer is not None:
            self.sniffer.sniffing = sniffing

    def carry_on(self, client: Stream, server: Stream, session: Session, seen: Seen) -> None:
        """Carry a session whose first octets were looked at."""
        if self.interception is None or self.inner is not self.interception:
            self.inner.start(client, server, session, b"", seen.octets)
        else:
            self.interception.choose(client, server, session, seen)

    def make_ingress(self, compiled: Compiled, index: int) -> Ingress:
        """What a listener speaks, and what carries out its clients' commands."""
        composed, served = self.given.composed, list[Served]()
        running = Running(
            self.gate,
            self.dialer,
            self.relays,
            self.carrier,
            self.associations,
            self.forwarding,
            self.connect,
            self.sessions.handshake,
            self.tls_shared,
            compiled.config.timeouts,
            self.find_egress,
            lambda tls, required: compiled.certificates[index] or Certificates(tls, "tls", required),
            self.closing,
            self.sessions.carriers,
            self.intercept,
            served,
            self.clients.arrived,
        )
        if composed is not None:
            running.find_certificates = composed.certificates_for
            ingress = composed.proxy.build(running)
        else:
            ingress = self.piece_of(compiled, index).build(running)
        self.served[index] = served
        self.put_in_front(*served)
        return ingress

    def piece_of(self, compiled: Compiled, index: int) -> Piece:
        """What a listener of a configuration speaks, as a value."""
        config, listen = compiled.config, compiled.config.listen[index]
        udp = compiled.udp_of(listen)
        commands: list[Command] = [ConnectPiece(), Bind(udp=udp), UdpAssociate(udp=udp)]
        if listen.resolve_commands:
            commands += [Resolve(prefer=config.resolver.prefer), ResolvePtr()]
        authenticate: Ask | None = self.given.authenticate or self.authenticator
        if listen.users == "none":
            authenticate = None
        grammar = Grammar(config.users_grammar.keys, config.users_grammar.separator)
        if authenticate is not None and grammar:
            authenticate = with_grammar(authenticate, grammar)
        return proxy_of(listen, commands, authenticate, compiled.required(listen))

    def find_egress(self, egress: object) -> Egress:
        """The running egress for the egress that a piece names."""
        assert self.given.composed is not None
        return self.egresses.by_name[self.given.composed.name_of(egress)]

    def from_url(self, url: str) -> Egress:
        """See `Egresses.from_url`: with the current settings."""
        return self.egresses.from_url(url)

    def address_filter_for(self, session: Session, port: int) -> AddressFilter:
        """The guard's check of the target to which a `DialInspector` redirects a session, by the current policy."""
        return self.gate.policy.address_filter_for(session, port)

    async def close_egresses(self) -> None:
        """Stop the checks of the current egresses."""
        await self.egresses.close()

    async def close_links(self) -> None:
        """End the connections that egresses keep, those of earlier configurations too."""
        async with contextlib.AsyncExitStack() as closing:
            for egresses in self.all_egresses:
                closing.push_async_callback(egresses.close_links)

    def learn_addresses(self, addresses: frozenset[IPv4Address | IPv6Address]) -> None:
        """Tell the guard which addresses this machine has."""
        self.given.own.addresses = addresses

    def room(self) -> int:
        """How many more sessions the descriptors carry."""
        associations = self.associations  # which take twice as many, and the connections to proxies
        sessions = len(self.sessions.running) + self.sessions.arrivals.count
        room = self.capacity - sessions - len(associations.active) - associations.controls
        if self.molding is not None:
            room -= self.molding.pairs
        for egresses in self.all_egresses:
            if egresses.links:
                room -= egresses.channels  # a session through an SSH server takes one more: counted as two
        return room


def open_access_log(config: Config) -> tuple[Output, Format]:
    """Where lines of the access log go, and what makes them. Raises OSError; ``filename`` is the key and its value."""
    try:
        return open_log(config.log)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, f"log.access: {config.log.access}") from exc


def binding_of_datagrams(config: Config) -> SourceBinding | None:
    """Where they come from: the direct egress is theirs."""
    settings = config.egress.get("direct")
    return None if settings is None else make_source(settings)
