"""First octets: what the two sides of a session say first, looked at before anybody carries it. No task.

    reply to the client -> first octets of either side -> `Then` with what was seen, in the reactor's turn

Both sides are watched, so that nothing is guessed: where the server speaks first, that is all there is to see. Only a
ClientHello, and what may still become one or another signature, is waited for, and not for long. Nothing is sent on
here: `Seen.octets` are for whoever carries the session.

A session whose first octets are not TLS costs no system call more than in a relay; one whose server speaks first, a
look at 4 octets (MSG_PEEK).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tabi.errors import RemoteProtocolError
from tabi.net.reactor import IN, READABLE, Reactor
from tabi.net.stream import MSG_PEEK, Stream
from tabi.net.timeouts import FixedTimeouts, IdleTimeouts
from tabi.relay.relays import Relays
from tabi.session import Close, Session
from tabi.wire.client_hello import ClientHello, HelloReader
from tabi.wire.machine import NeedData
from tabi.wire.sniff import Payload, sniff_payload

FEW, PAUSE = 4, 0.2
"""A client that has sent fewer octets and then nothing for so many seconds waits for an answer: it speaks a protocol
whose first message happens to begin as a method of HTTP or as SSH does."""

TLS = b"\x16"
"""How a ClientHello begins, whatever comes after it."""

READ_SIZE = 1 << 14
"""Octets of one read. An ordinary ClientHello is smaller."""

SSH = b"SSH-"
"""How a server of SSH begins."""


class Seen(NamedTuple):
    """What the first octets were."""

    protocol: Payload
    """RAW for everything that has no name here, also TLS without a whole ClientHello."""
    hello: ClientHello | None
    """Of TLS."""
    octets: bytes
    """All that the client has sent, for whoever carries the session. What the server has sent was not taken."""


Then = Callable[[Stream, Stream, Session, Seen], object]
"""Gets both streams, which it owns, the session, and what was seen. Must not raise."""


class FirstOctets:
    """Has sessions until it is known what they begin with. A session that ends before that is given to ``relays.done``.

    Args:
        reactor: hears of the sockets.
        relays: their idle time holds here too.
        seconds: from the first octets that need more until it is no longer waited for more: they are raw then.
    """

    def __init__(self, reactor: Reactor, relays: Relays, seconds: float) -> None:
        self.reactor = reactor
        self.relays = relays
        self.begun = FixedTimeouts(reactor.loop, seconds)
        self.paused = FixedTimeouts(reactor.loop, min(seconds, PAUSE))
        self.quiet = IdleTimeouts(reactor, relays.idle, relays.rules)
        self.active: dict[Session, Look] = {}

    def look(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes, then: Then) -> None:
        """Take both streams over, and call ``then`` once, unless the session ends before. See `Carrier.start`."""
        look = self.active[session] = Look(self, client.moved(), server.moved(), session, then)
        if session.lease is not None:
            session.lease.cut = look.cut
        look.start(answer, head)

    def get(self, session: Session) -> Look | None:
        """See `Carrier.get`."""
        return self.active.get(session)

    def close(self, reason: Close) -> None:
        """End all that are left."""
        for look in tuple(self.active.values()):
            look.end(reason)
        self.begun.close()
        self.paused.close()
        self.quiet.close()


class Look:
    """One session whose first octets are awaited. ``octets`` are those of the client, until ``hello`` has them."""

    __slots__ = ("answered", "client", "hello", "octets", "over", "owner", "server", "session", "then")

    moved: int = 0
    """See `Moving`: nothing moves here."""

    def __init__(self, owner: FirstOctets, client: Stream, server: Stream, session: Session, then: Then) -> None:
        self.owner = owner
        self.client = client
        self.server = server
        self.session = session
        self.then = then
        self.octets = b""
        self.hello: HelloReader | None = None
        self.answered = True
        self.over = False

    def start(self, answer: bytes, head: bytes) -> None:
        """Answer, and look at what is there already."""
        client, server, reactor = self.client, self.server, self.owner.reactor
        reactor.replace(client.fd, self.client_ready)
        reactor.replace(server.fd, self.server_ready)
        if not reactor.edge_triggered:
            reactor.watch(client.fd, IN)
            reactor.watch(server.fd, IN)
        if answer:
            self.answered = False
            reactor.send_at_end(self.send_answer, answer)
        if head and not self.over:
            self.take(head)
        if not self.over:
            self.read_client()
        if not self.over:
            self.look_at_server()
        if not self.over and not self.waits:
            self.owner.quiet.watch(self)

    def send_answer(self, answer: bytes) -> None:
        """Send the reply; a client that was reset meanwhile says so here, and only once."""
        self.answered = True
        try:
            self.client.sock.send(answer)
        except OSError:
            self.break_off(self.server)

    # --- what comes ---

    def client_ready(self, events: int) -> None:
        """The reactor's handler of the client."""
        self.client.events |= events
        self.read_client()

    def server_ready(self, events: int) -> None:
        """The reactor's handler of the server."""
        self.server.events |= events
        self.look_at_server()

    def read_client(self) -> None:
        """Read what the client has sent, as long as it is not known what that is."""
        while not self.over:
            try:
                data = self.client.receive_nowait(READ_SIZE)
            except OSError:
                self.break_off(self.server)
                return
            if data is None:
                return
            if not data:
                self.client.events |= IN  # so that whoever carries the session finds the end
                self.finish(Payload.RAW)
                return
            self.take(data)
            if len(data) == READ_SIZE and not self.over and self.owner.reactor.late():
                self.owner.reactor.later(self.read_client)
                return

    def look_at_server(self) -> None:
        """Whatever the server says first, or its end, leaves nothing to wait for."""
        server = self.server
        if server.events & READABLE:
            try:
                data = server.sock.recv(len(SSH), MSG_PEEK)
            except BlockingIOError:
                server.events &= ~READABLE
            except OSError:
                self.break_off(self.client)
            else:
                self.finish(Payload.SSH if data == SSH else Payload.RAW)

    def take(self, data: bytes) -> None:
        """Look at octets of the client."""
        hello = self.hello
        if hello is None:
            data = self.octets = self.octets + data
            protocol = sniff_payload(data)
            if isinstance(protocol, NeedData):
                self.wait()
                return
            if protocol is not Payload.TLS:
                self.finish(protocol)
                return
            hello = self.hello = HelloReader()
        try:
            found = hello.receive(data)
        except RemoteProtocolError:
            self.finish(Payload.RAW)
            return
        if found is None:
            self.wait()
        else:
            self.finish(Payload.TLS, found)

    @property
    def waits(self) -> bool:
        """Whether the client has begun with something that needs more."""
        return self.octets != b""

    def wait(self) -> None:
        """More must come: from the first octets on there is a deadline."""
        owner = self.owner
        few = self.hello is None and len(self.octets) < FEW and not self.octets.startswith(TLS)
        waiting = owner.paused if few else owner.begun
        if self not in waiting.pending:
            owner.quiet.forget(self)
            owner.paused.stop(self)
            waiting.start(self)

    # --- the end ---

    def finish(self, protocol: Payload, hello: ClientHello | None = None) -> None:
        """It is known what there is to know: hand the session over, after the answer."""
        if not self.answered:
            self.owner.reactor.flush()  # the answer may find that the client has gone
            if self.over:
                return
        octets = self.octets if self.hello is None else bytes(self.hello.octets)
        self.leave()
        for stream in (self.client, self.server):
            self.owner.reactor.replace(stream.fd, stream.on_ready)
        self.then(self.client, self.server, self.session, Seen(protocol, hello, octets))

    def leave(self) -> None:
        """Forget the session."""
        self.over = True
        owner = self.owner
        del owner.active[self.session]
        owner.begun.stop(self)
        owner.paused.stop(self)
        owner.quiet.forget(self)

    def expire(self) -> None:
        """The rest has not come in time, or nothing at all."""
        if self.waits:
            self.finish(Payload.RAW)
        else:
            self.end("idle")

    def break_off(self, other: Stream) -> None:
        """One side was reset or failed: the other one gets a reset too."""
        if not self.over:
            other.reset()
            self.end("reset")

    def end(self, reason: Close) -> None:
        """Close both sides, and hand the session in. Harmless when done twice."""
        if self.over:
            return
        self.leave()
        self.client.close()
        self.server.close()
        self.session.close = reason
        self.owner.relays.done(self.session)

    # --- from outside ---

    @property
    def rule(self) -> str | None:
        """See `Moving`."""
        return self.session.rule

    @property
    def counts(self) -> tuple[int, int]:
        """See `Carried`: nothing was delivered yet."""
        return self.session.up, self.session.down

    @property
    def client_fd(self) -> int:
        """See `Carried`."""
        return self.client.fd

    def cut(self, why: str, reason: Close = "limit") -> None:
        """See `Carried`."""
        if not self.over:
            self.session.error = why
            self.end(reason)
