"""Sniffer: a carrier before another one. It notes what a session's first octets say, and asks the rules again.

The destination is open and the client has its reply, so that a rule may still refuse, but no other way out be taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.relay.carrier import Carried, Carrier, relays_for
from tabi.relay.first_octets import READ_SIZE, FirstOctets, Seen, Then
from tabi.relay.relays import Relays
from tabi.session import Close, Decision, Session, Sniffed
from tabi.wire.client_hello import ClientHello
from tabi.wire.tls_alert import encode_alert

MAX_UNREAD = 64
"""Reads of what a refused client has sent behind its hello: a close that leaves octets unread makes a reset of it, and
the alert might be lost."""

Ask = Callable[[Session, str], Decision | None]
"""What the rules say of a session whose TLS asks for this name: a refusal, or None."""


class Sniffing(NamedTuple):
    """Which sessions are sniffed."""

    listeners: frozenset[str] = frozenset()
    """By the URL of the listener."""
    rules: frozenset[str] = frozenset()
    """By the name of the rule that has allowed it."""

    @property
    def needed(self) -> bool:
        """Whether there is any."""
        return bool(self.listeners or self.rules)

    def includes(self, session: Session) -> bool:
        """Whether a session is sniffed: connections that clients ask for, and no others."""
        return session.command == "connect" and (session.listener in self.listeners or session.rule in self.rules)


NOTHING = Sniffing()


def sniffed_of(seen: Seen) -> Sniffed:
    """What is noted of first octets."""
    return Sniffed(seen.protocol.value, seen.hello)


class Sniffer:
    """Looks at the first octets of those sessions that ``sniffing`` names, which a reload replaces.

    Args:
        first: has a session until its first octets are known.
        inner: carries all other sessions, and is told here of none that it does not carry.
        then: has a session that was sniffed and may go on.
        ask: the rules.
    """

    def __init__(self, first: FirstOctets, inner: Carrier, then: Then, ask: Ask) -> None:
        self.first = first
        self.inner = inner
        self.then = then
        self.ask = ask
        self.sniffing = NOTHING
        self.dropped = FixedTimeouts(first.reactor.loop, first.begun.seconds)
        self.silent: dict[Session, Silent] = {}

    @property
    def reopens(self) -> bool:
        """See `Carrier`: as the one that has sessions next."""
        return getattr(self.inner, "reopens", False)

    def start(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes) -> None:
        """See `Carrier.start`."""
        if self.sniffing.includes(session):
            self.first.look(client, server, session, answer, head, self.judge)
        else:
            self.inner.start(client, server, session, answer, head)

    def relays_for(self, session: Session) -> Relays | None:
        """See `carrier.relays_for`."""
        return None if self.sniffing.includes(session) else relays_for(self.inner, session)

    def get(self, session: Session) -> Carried | None:
        """See `Carrier.get`: the inner carrier is asked by itself."""
        return self.first.get(session) or self.silent.get(session)

    def judge(self, client: Stream, server: Stream, session: Session, seen: Seen) -> None:
        """The first octets are known: note them, and let the session go on if the rules still allow it."""
        session.sniffed = sniffed_of(seen)
        hello = seen.hello
        decision = None if hello is None or hello.sni is None else self.ask(session, hello.sni)
        if decision is None:
            self.then(client, server, session, seen)
            return
        assert hello is not None
        server.close()
        session.rule, session.close = decision.rule, "denied"
        session.error = f"rule {decision.rule}: {decision.action} {hello.sni}, which its TLS asks for"
        if decision.action == "drop":
            silent = self.silent[session] = Silent(self, client, session)
            self.dropped.start(silent)
            return
        if decision.action == "reset":
            client.reset()
        else:
            say_denied(client, hello)
        self.first.relays.done(session)

    def close(self, reason: Close) -> None:
        """End all that are left."""
        self.first.close(reason)
        for silent in tuple(self.silent.values()):
            silent.expire()
        self.dropped.close()


def say_denied(client: Stream, hello: ClientHello) -> None:
    """Send an alert, and close the connection."""
    try:
        client.sock.send(encode_alert("access_denied", hello.version))
        for _ in range(MAX_UNREAD):
            if not client.receive_nowait(READ_SIZE):
                break
    except OSError:  # the client has gone
        pass
    client.close()


class Silent:
    """A session that a rule drops: its client hears nothing until the time is over."""

    __slots__ = ("client", "owner", "session")

    def __init__(self, owner: Sniffer, client: Stream, session: Session) -> None:
        self.owner = owner
        self.client = client
        self.session = session
        if session.lease is not None:
            session.lease.cut = self.cut

    @property
    def counts(self) -> tuple[int, int]:
        """See `Carried`: nothing was delivered."""
        return 0, 0

    @property
    def client_fd(self) -> int:
        """See `Carried`: nothing can be changed any more."""
        return -1

    def cut(self, why: str, reason: Close = "limit") -> None:
        """See `Carried`. It was denied before."""
        self.expire()

    def expire(self) -> None:
        """The time is over."""
        if self.owner.silent.pop(self.session, None) is not None:
            self.owner.dropped.stop(self)
            self.client.close()
            self.owner.first.relays.done(self.session)
