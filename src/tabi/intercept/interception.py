"""Interception: the carrier of the sessions that were chosen.

    ClientHello        TLS with the destination, then with the client; then what is inside
    HTTP/1, HTTP/2     flows for hooks and records
    all else           a relay, as if nothing had been looked into

The first octets of either side decide. A session that was not chosen, and whatever is not known, is relayed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tabi.errors import LimitExceeded, RemoteProtocolError
from tabi.intercept.authority import Verdict
from tabi.intercept.events import ClientHelloInfo, Connection, Direction
from tabi.intercept.exchange import reason_of_error
from tabi.intercept.fingerprints import Fingerprint, Fingerprints, TlsFingerprint
from tabi.intercept.forwarded import ForwardedExchange
from tabi.intercept.hooks import HookFailed, Hooks
from tabi.intercept.http1 import Http1, ServerSpoke, Switched
from tabi.intercept.http2_flows import Http2Flows
from tabi.intercept.inspection import Fetch, Inspection, Origin, Recorder
from tabi.intercept.passing import GiveBack, Passing, is_websocket
from tabi.intercept.pinning import Pinned
from tabi.intercept.tls import HandshakeFailed, Handshakes, Opened, host_of, info_of
from tabi.intercept.websocket import WebSocketStages, open_websocket
from tabi.net.reactor import READABLE
from tabi.net.stream import MSG_PEEK, Stream
from tabi.policy.intercepts import InterceptRule, Intercepts
from tabi.policy.limits import UP
from tabi.relay.exchange import ClientConnection
from tabi.relay.first_octets import FirstOctets, Seen
from tabi.relay.relays import Relays
from tabi.relay.sniffer import sniffed_of
from tabi.relay.tunnel import HeadSock, Run, Tunnel, Tunnels, TunnelStream
from tabi.session import Close, Session
from tabi.wire.http import Request
from tabi.wire.machine import NeedData
from tabi.wire.sniff import Payload, is_request, sniff_payload
from tabi.wire.tls_alert import encode_alert

if TYPE_CHECKING:
    from tabi.relay.carrier import Carried

log = logging.getLogger("tabi")

READ_SIZE = 16384
HANDSHAKE = b"\x16\x03"
"""How TLS begins: a record of the handshake."""

OURS = Fingerprint()

FEW = 1024
"""Octets after which a protocol that is still not known is not known."""


class Chosen(NamedTuple):
    """A session that is intercepted, and why."""

    rule: InterceptRule
    seen: Seen


class Rules(Protocol):
    """What each ``[[intercept]]`` works with."""

    def hooks(self, rule: InterceptRule) -> Hooks: ...
    def recorder(self, rule: InterceptRule) -> Recorder | None: ...
    def see_octets(self) -> bool: ...


class ChosenTunnels(Tunnels):
    """Those of `Interception`: it forgets what is known of a session with it, also of one whose task never ran."""

    def __init__(self, owner: Interception) -> None:
        super().__init__(owner.carry, owner.relays)
        self.chosen = owner.chosen

    def forget(self, run: Run) -> None:
        """See `Tunnels.forget`."""
        self.chosen.pop(run.session, None)
        super().forget(run)


class Interception:
    """Carries sessions: those that are chosen in a task that looks into them, others by the relays.

    Args:
        relays: carry what is not looked into.
        first: finds out what the first octets say.
        intercepts: choose; replaced by a reload.
        handshakes: do TLS; None without an authority: then only HTTP without TLS is looked into.
        rules: hooks and recorder of each rule.
        reopen: opens a session's destination once more.
        fetch: asks other servers.
    """

    reopens = True
    """See `Carrier`."""

    def __init__(
        self,
        relays: Relays,
        first: FirstOctets,
        intercepts: Intercepts,
        handshakes: Handshakes | None,
        rules: Rules,
        reopen: Callable[[Session], Awaitable[Stream]],
        fetch: Fetch,
    ) -> None:
        self.relays = relays
        self.first = first
        self.intercepts = intercepts
        self.handshakes = handshakes
        self.rules = rules
        self.reopen = reopen
        self.fetch = fetch
        self.fingerprints: Fingerprints | None = None
        self.pinned = Pinned()
        self.on_passing: Callable[[Session, str | None], object] | None = None
        """Told of a session whose TLS is not opened, and of the name in its hello."""
        self.chosen: dict[Session, Chosen] = {}
        self.tunnels = ChosenTunnels(self)
        self.forwarded = relays.sibling(relays.done)  # of plain requests to the proxy that have changed the protocol

    # --- choosing ---

    def start(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes) -> None:
        """See `Carrier.start`."""
        if self.intercepts.candidate(session):
            self.first.look(client, server, session, answer, head, self.choose)
        else:
            self.relays.start(client, server, session, answer, head)

    def relays_for(self, session: Session) -> Relays | None:
        """See `relay.carrier.relays_for`."""
        return None if self.intercepts.candidate(session) else self.relays

    def get(self, session: Session) -> Carried | None:
        """See `Carrier.get`."""
        return self.tunnels.get(session) or self.first.get(session) or self.forwarded.get(session)

    def choose(self, client: Stream, server: Stream, session: Session, seen: Seen) -> None:
        """The first octets are known: intercept the session, or relay it."""
        if seen.protocol is Payload.RAW and is_request(seen.octets):
            seen = seen._replace(protocol=Payload.HTTP1)
        rule = self.rule_for(session, seen)
        if session.sniffed is None and (rule is not None or session.pinned):
            session.sniffed = sniffed_of(seen)
        if rule is None:
            self.relays.start(client, server, session, b"", seen.octets)
            return
        self.chosen[session] = Chosen(rule, seen)
        self.tunnels.start(client, server, session, b"", b"")

    def rule_for(self, session: Session, seen: Seen) -> InterceptRule | None:
        """The entry that intercepts a session; None: it is relayed."""
        hello = seen.hello
        if seen.protocol is Payload.RAW and seen.octets[:1] != HANDSHAKE[:1] and not self.rules.see_octets():
            return None  # at no cost for what nobody could look into
        rule = self.intercepts.match(session, None if hello is None else hello.sni)
        if hello is None:
            if rule is None or not rule.http:
                return None
            looked_into = seen.protocol in (Payload.HTTP1, Payload.HTTP2) or self.rules.hooks(rule).tcp_data
            return rule if looked_into or self.is_hidden(rule, seen) else None
        if rule is None or self.handshakes is None or not rule.tls:
            if self.on_passing is not None:
                self.on_passing(session, hello.sni)
            return None
        if rule.on_pinning == "pass":
            name = str(host_of(hello, session))
            if self.pinned.has(session.client.host, name, monotonic()):
                session.pinned = True
                return None
        return rule

    def is_hidden(self, rule: InterceptRule, seen: Seen) -> bool:
        """Whether a client has begun TLS with a hello that cannot be read, and that is to be no way around inspection:
        a destination might read it."""
        wanted = self.handshakes is not None and rule.tls and rule.on_pinning == "refuse"
        return wanted and seen.hello is None and seen.octets[:2] in (HANDSHAKE, HANDSHAKE[:1])

    def inspect(self, connection: ClientConnection, request: Request) -> ForwardedExchange | None:
        """How a plain request to the proxy itself is looked into; None: it is forwarded as it is."""
        session = connection.session
        rule = self.intercepts.match(session) if self.intercepts.candidate(session) else None
        if rule is None or not rule.http:
            return None
        destination = request.destination
        origin = Origin("https" if request.tls else "http", destination.host, destination.port)
        recorder, hooks = self.rules.recorder(rule), self.rules.hooks(rule)
        if (http := self.fingerprint_of(session).http) is not None:
            hooks = http.around(hooks)
        inspection = Inspection(session, rule, hooks, recorder, origin, None, self.fetch)
        session.intercepted = rule.label
        return ForwardedExchange(inspection, connection, request, self.relays.pacer, self.forwarded)

    # --- one session ---

    async def carry(self, tunnel: Tunnel) -> None:
        """Carry a chosen session to its end; see `relay.tunnel`."""
        run = tunnel._run
        session = tunnel.session
        rule, seen = self.chosen.pop(session)
        session.intercepted = rule.label
        reason: Close = "error"
        try:
            await self.look_into(tunnel, rule, seen)
            return
        except HandshakeFailed as exc:
            session.error = str(exc)
            reason = "reset" if exc.kind == "transport" else "error"
            if exc.kind != "transport":
                tunnel.client.close()  # it has been told: a reset might overtake that
        except RemoteProtocolError as exc:
            session.error = session.error or str(exc)
        except LimitExceeded as exc:
            session.error, reason = str(exc), "limit"
        except HookFailed as exc:
            session.error = str(exc)
        except OSError as exc:
            peer = "client" if exc in run.client.failures else "server"
            session.error = session.error or reason_of_error(exc, peer)
            reason = "reset" if isinstance(exc, ConnectionError) else "error"
        run.reason = run.reason or reason
        run.close_streams(True)

    async def look_into(self, tunnel: Tunnel, rule: InterceptRule, seen: Seen) -> None:
        """Do what the first octets ask for."""
        session, destination = tunnel.session, tunnel.session.destination
        assert destination is not None
        hooks = self.rules.hooks(rule)
        if self.is_hidden(rule, seen):
            failure = HandshakeFailed("client", "tls", "TLS: the client's hello cannot be read", "decode_error")
            await self.alert(tunnel.client, failure)
            raise failure
        if seen.hello is None and seen.protocol not in (Payload.HTTP1, Payload.HTTP2):
            await relay_through(tunnel, seen.octets, hooks, connection_of(session))
            return
        if seen.hello is None:
            origin = Origin("http", destination.host, destination.port)
            recorder, http = self.rules.recorder(rule), self.fingerprint_of(session).http
            inspection = Inspection(session, rule, hooks, recorder, origin, None, self.fetch, None, http)
            await self.carry_http(tunnel, inspection, seen.octets, seen.protocol == Payload.HTTP2)
            return
        host = host_of(seen.hello, session)
        began = monotonic()
        connection = connection_of(session)
        if hooks.client_hello and not await self.ask_hello(tunnel, hooks, seen, connection):
            return
        recorder = self.rules.recorder(rule)
        fingerprint = self.fingerprint_of(session, seen)
        opened = await self.open_tls(tunnel, rule, seen, fingerprint.tls, recorder is not None)
        connection.tls = info = info_of(opened, seen.hello)
        session.up = session.down = 0  # from here on what is inside TLS is counted
        if hooks.tls_established:
            await hooks.tell(hooks.tls_established, info, connection)
        origin = Origin("https", host, destination.port)
        took = monotonic() - began
        inspection = Inspection(session, rule, hooks, recorder, origin, info, self.fetch, took, fingerprint.http)
        if info.alpn in ("h2", "http/1.1"):
            await self.carry_http(tunnel, inspection, b"", info.alpn == "h2")
            return
        head = await first_octets(tunnel.client, tunnel.server)
        payload = Payload.HTTP1 if is_request(head) else sniff_payload(head)
        if payload in (Payload.HTTP1, Payload.HTTP2):
            await self.carry_http(tunnel, inspection, head, payload is Payload.HTTP2)
        elif hooks.tcp_data:
            await relay_through(tunnel, head, hooks, connection)
        else:
            self.hand_over(tunnel, head)

    async def ask_hello(self, tunnel: Tunnel, hooks: Hooks, seen: Seen, connection: Connection) -> bool:
        """Show a hello to the hooks; whether TLS is opened. If not, the session is carried or ended here."""
        hello = seen.hello
        assert hello is not None
        alpn = tuple(name.decode("latin-1") for name in hello.alpn)
        info = ClientHelloInfo(connection, hello.sni, alpn, hello.ja4)
        await hooks.on_event(hooks.client_hello, info)
        if info.action == "pass":
            tunnel.session.intercepted = None
            self.hand_over(tunnel, seen.octets)
        elif info.action == "drop":
            tunnel.session.error = "a hook has dropped the connection"
            tunnel._run.reason = "denied"
            tunnel._run.close_streams(True)
        return info.action == "intercept"

    def fingerprint_of(self, session: Session, seen: Seen | None = None) -> Fingerprint:
        """What the destination is to see; without ``seen`` there is no TLS."""
        if self.fingerprints is None:
            return OURS
        hello, octets = (None, b"") if seen is None else (seen.hello, seen.octets)
        return self.fingerprints.choose(session, hello, octets) or OURS

    async def open_tls(
        self, tunnel: Tunnel, rule: InterceptRule, seen: Seen, fingerprint: TlsFingerprint | None, keep: bool
    ) -> Opened:
        """Shake hands with the destination, then with the client; see `Handshakes.open`. Raises HandshakeFailed."""
        handshakes, session, hello = self.handshakes, tunnel.session, seen.hello
        assert handshakes is not None
        assert hello is not None
        run, host = tunnel._run, host_of(hello, session)

        async def reopen() -> Stream:
            run.server = TunnelStream(await self.reopen(session), run, UP)
            tunnel.server = run.server
            return run.server

        try:
            opened = await handshakes.open(tunnel.server, rule, hello, host, reopen, fingerprint, keep)
        except HandshakeFailed as exc:
            await self.alert(tunnel.client, exc)
            raise
        HeadSock(tunnel.client, seen.octets)
        try:
            await handshakes.accept(tunnel.client, session, opened, host)
        except HandshakeFailed as exc:
            if exc.kind == "trust" and opened.verdict in (Verdict.GOOD, Verdict.UNVERIFIED):
                self.note_pinning(session, rule, str(host))
            elif exc.kind == "trust":
                fault = opened.verdict.name.lower().replace("_", " ")
                text = f"{exc}, as the certificate of the destination is bad: {fault}"
                raise HandshakeFailed(exc.side, exc.kind, text, exc.alert) from exc
            raise
        return opened

    async def alert(self, client: Stream, failure: HandshakeFailed) -> None:
        """Tell a client, with which TLS has not begun, that there is none with its destination."""
        if failure.kind == "transport" and isinstance(failure.__cause__, ConnectionError):
            return  # it gets a reset too
        try:
            await client.send_all(encode_alert(failure.alert))
            client.close()
        except OSError:
            pass

    def note_pinning(self, session: Session, rule: InterceptRule, host: str) -> None:
        """A client has refused our certificate."""
        session.pinned = True
        if rule.on_pinning == "pass":
            self.pinned.add(session.client.host, host, monotonic())
            log.info("%s refused our certificate for %s: it is not intercepted for an hour", session.client.host, host)
        else:
            log.info("%s refused our certificate for %s", session.client.host, host)

    # --- what is inside ---

    async def carry_http(self, tunnel: Tunnel, inspection: Inspection, head: bytes, http2: bool) -> None:
        """Carry HTTP: in the relay where nothing has to wait, else here."""
        if http2:
            await Http2Flows(inspection, tunnel).carry(head)
            return
        if inspection.http is not None:
            inspection.hooks = inspection.http.around(inspection.hooks)
        if Passing.fits(inspection):
            given = await pass_through(tunnel, inspection, head)
            if given is None:
                return
            if given.switched is not None:
                over = given.switched
                switched = Switched(over.head.upgrade, given.from_client, given.from_server, over.flow, over.recording)
                await self.switch(tunnel, inspection, switched)
                return
            http = Http1(inspection, tunnel.client, tunnel.server, given.from_client, given.from_server)
            one = given.request
            assert one is not None
            found = await http.go_on(one.head, one.flow, one.recording)
        else:
            http = Http1(inspection, tunnel.client, tunnel.server, head)
            found = await http.run()
        if found is not None:
            await self.switch(tunnel, inspection, found)
        else:
            await end(tunnel, http)

    async def switch(self, tunnel: Tunnel, inspection: Inspection, switched: Switched) -> None:
        """Another protocol follows behind an exchange."""
        flow, recording, socket = switched.flow, switched.recording, None
        if is_websocket(switched.protocol):
            socket = open_websocket(inspection, flow, recording, tunnel.client.reactor.late)
        if socket is None:
            if switched.from_server:
                await tunnel.client.send_all(switched.from_server)
            self.hand_over(tunnel, switched.from_client)
            if flow is not None:
                await inspection.ended(flow, recording)
            return
        stages = WebSocketStages(socket, switched.from_client, switched.from_server)
        try:
            await tunnel.relay([stages.up], [stages.down])
        finally:
            socket.flow.error = socket.flow.error or tunnel.session.error
            await inspection.ended(socket.flow, recording)

    def hand_over(self, tunnel: Tunnel, head: bytes) -> None:
        """Have a relay carry the rest; ``head`` is what the client has sent already."""
        if head:
            HeadSock(tunnel.client, head)
        tunnel.hand_over()

    async def close(self, reason: Close) -> None:
        """End all sessions."""
        self.forwarded.close(reason)
        await self.tunnels.close(reason)


async def end(tunnel: Tunnel, http: Http1) -> None:
    """End a connection of HTTP in good order."""
    run = tunnel._run
    run.reason = run.reason or http.close
    run.first = run.first or "server"
    await http.finish()


async def pass_through(tunnel: Tunnel, inspection: Inspection, head: bytes) -> GiveBack | None:
    """Have a relay carry HTTP until the end, or until it is given back: what remains to be done."""
    run = tunnel._run
    back: list[GiveBack] = []
    kept: list[bytes] = []

    def take_back(given: GiveBack) -> None:
        back.append(given)
        kept.extend(run.take_back())

    passing = Passing(inspection, take_back)
    if head:
        HeadSock(tunnel.client, head)
    await tunnel.relay(up=[passing.up], down=[passing.down])
    if not back:
        return None
    for stream, octets in zip((tunnel.server, tunnel.client), kept, strict=True):
        if octets:
            await stream.send_all(octets)
    return back[0]


async def first_octets(client: Stream, server: Stream) -> bytes:
    """What the client sends first, as much as names a protocol; empty if the server speaks first, or either ends.

    Raises:
        OSError: a connection broke.
    """

    def on_server_ready(events: int) -> None:
        server.on_ready(events)
        if events & READABLE:
            client.wake_waiting(ServerSpoke())

    server.reactor.replace(server.fd, on_server_ready)
    head = b""
    try:
        while True:
            data = client.receive_nowait(READ_SIZE)
            if data is not None:
                head += data
                if not data or len(head) >= FEW or not isinstance(sniff_payload(head), NeedData):
                    return head
                continue
            if speaks(server):
                return head
            try:
                await client.readable()
            except ServerSpoke:
                pass
    finally:
        if server.fd >= 0:  # else it was ended meanwhile
            server.reactor.replace(server.fd, server.on_ready)


def connection_of(session: Session) -> Connection:
    """What hooks see of a session."""
    client, destination = session.client, session.destination
    assert destination is not None
    where = str(client.host), client.port
    name = f"{session.number:x}"
    return Connection(name, where, session.user, session.listener, str(destination.host), destination.port)


async def relay_through(tunnel: Tunnel, head: bytes, hooks: Hooks, connection: Connection) -> None:
    """Carry what has no name here, and show it to hooks of ``tcp_data``. Errors as the streams."""

    async def move(source: Stream, sink: Stream, direction: Direction, data: bytes) -> None:
        while True:
            if data:
                data = await hooks.on_data(hooks.tcp_data, data, connection, direction)
                await sink.send_all(data)
            data = await source.receive()
            if not data:
                sink.send_eof()
                return

    make = tunnel.server.reactor.loop.create_task
    up = make(move(tunnel.client, tunnel.server, "up", head))
    down = make(move(tunnel.server, tunnel.client, "down", b""))
    try:
        await asyncio.gather(up, down)
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


def speaks(stream: Stream) -> bool:
    """Whether a peer has sent something, or has ended; nothing is taken. Raises OSError."""
    if not stream.events & READABLE:
        return False
    try:
        stream.sock.recv(1, MSG_PEEK)
    except BlockingIOError:
        stream.events &= ~READABLE
        return False
    return True
