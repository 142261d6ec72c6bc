"""Relays: all relays of one worker, the kind of each, and the one sweep over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from tabi.net.reactor import Reactor
from tabi.net.stream import LayeredSock, Stream
from tabi.net.timeouts import IdleRules
from tabi.policy.limits import DOWN, UP
from tabi.relay.meter import Meter
from tabi.relay.pacer import Pacer
from tabi.relay.pipes import PipePool
from tabi.relay.relay import Relay
from tabi.relay.stage import Stage
from tabi.relay.tls import TlsRelay
from tabi.session import Close, Session

Done = Callable[[Session], object]


class Relays:
    """Every relay of one reactor.

    Args:
        idle: seconds without an octet in either direction after which a relay is closed.
        half_closed: seconds without an octet, if one side has ended.
        pipes: how many pipes may exist at once.
        done: called with the session of each relay that has ended.
        rules: those that say something else of ``idle``.
    """

    def __init__(
        self,
        reactor: Reactor,
        idle: float,
        half_closed: float,
        pipes: int,
        done: Done,
        rules: IdleRules | None = None,
    ) -> None:
        self.reactor = reactor
        self.idle = idle
        self.half_closed = half_closed
        self.done = done
        self.pacer = Pacer(reactor.loop)
        self.pipes = PipePool(pipes)
        self.no_pipes = PipePool(0)  # for TLS
        self.active: dict[Session, Relay] = {}
        self.rules = rules or IdleRules()
        self.timer: asyncio.TimerHandle | None = None

    def start(
        self,
        client: Stream,
        server: Stream,
        session: Session,
        answer: bytes,
        head: bytes,
        stages: Sequence[tuple[int, Stage]] = (),
    ) -> None:
        """Join two streams; they are closed when the relay ends, and ``done`` is called. See `Carrier.start`.

        ``stages`` are put on before the first octet, each in its direction, UP or DOWN.
        """
        lease = session.lease
        metered = lease is not None and lease.meters != ()
        layered = isinstance(client.sock, LayeredSock) or isinstance(server.sock, LayeredSock)
        relay = (TlsRelay if layered else Relay)(self, client, server, session, monotonic(), metered or bool(stages))
        if metered:
            stages = ((UP, Meter(lease, UP, self.pacer)), (DOWN, Meter(lease, DOWN, self.pacer)), *stages)
        if stages:
            relay.put_on(stages)
        self.active[session] = relay
        if lease is not None:
            lease.cut = relay.cut
        if self.timer is None:
            self.timer = self.reactor.loop.call_later(self.rules.interval(min(self.idle, self.half_closed)), self.tick)
        relay.start(client, server, answer, head)

    def sibling(self, done: Done, idle: float | None = None, half_closed: float | None = None) -> Relays:
        """Other relays that use the same pipes and the same pacer, and call ``done`` for each that has ended. Limits
        that are not given stay the same."""
        other = Relays(self.reactor, idle or self.idle, half_closed or self.half_closed, 0, done, self.rules)
        other.pipes, other.pacer = self.pipes, self.pacer
        return other

    def relays_for(self, session: Session) -> Relays:
        """See `carrier.relays_for`."""
        return self

    def get(self, session: Session) -> Relay | None:
        """The relay of a session, while it runs: for its counts, its stages and its end."""
        return self.active.get(session)

    def finished(self, relay: Relay) -> None:
        """Called by each relay when it has closed."""
        del self.active[relay.session]
        self.done(relay.session)

    def tick(self) -> None:
        """Sweep, and again after the interval while there is something to sweep."""
        self.timer = None
        self.sweep(monotonic())
        if self.active:
            self.timer = self.reactor.loop.call_later(self.rules.interval(min(self.idle, self.half_closed)), self.tick)

    def sweep(self, now: float) -> None:
        """Look at every relay once. Many may end: the loop has its turns between them."""

        def look(relay: Relay) -> None:
            if not relay.closed:
                relay.sweep(now, self.rules.of(relay.session.rule, self.idle), self.half_closed)

        self.reactor.spread(tuple(self.active.values()), look)

    def close(self, reason: Close) -> None:
        """Close all that are left, and the pool."""
        for relay in tuple(self.active.values()):
            relay.close(reason)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.pacer.close()
        self.pipes.close()
