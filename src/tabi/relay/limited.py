"""Relays within limits: the same two flows, which ask how much they may take before they read.

What a flow has read it has been charged for, so that what is under way in several of them is never more than there is.
A flow whose bucket is empty is PAUSED: nothing is read, TCP slows the sender down, and the pacer lets it go on. It
moves by splice, as any other; only with how much at once is another.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from tabi.net.stream import Stream
from tabi.policy.limits import DOWN, QUANTUM, UP, Lease
from tabi.relay.flow import BLOCKED, QUEUED, SHARE, SPLICE_FLAGS, Flow, splice
from tabi.relay.pacer import Pacer
from tabi.relay.pipes import BUFFER_SIZE, PIPE_SIZE, Pipe
from tabi.relay.relay import Relay
from tabi.relay.tls import TlsFlow, TlsRelay
from tabi.session import Close, Session

if TYPE_CHECKING:
    from tabi.relay.relays import Relays

PAUSED = 3


class LimitedFlow(Flow):
    """A flow on a lease. ``room`` is what the lease said last; ``taken`` see `Waiter`."""

    __slots__ = ("direction", "lease", "pacer", "room", "taken")

    def meter(self, lease: Lease, direction: int, pacer: Pacer) -> None:
        """Charge from now on what is read."""
        self.lease = lease
        self.direction = direction
        self.pacer = pacer
        self.room = 0
        self.taken = 0

    def may_take(self, most: int) -> int:
        """How many octets may be read now, ``most`` at most; 0: the flow waits, or the relay is closed.

        A small read goes by what was said last: that is what others may have taken meanwhile at most, for each of them.
        """
        room = self.room
        if room <= 0 or most > BUFFER_SIZE:
            room = self.lease.spend(self.direction, 0, monotonic_ns())
        if room > 0:
            turn = QUANTUM - self.taken
            if turn >= most or not self.lease.crowded:
                return min(room, most)
            if turn > 0:
                return min(room, most, turn)
            # Once more: since that was said the other direction may have been short, and of another account.
            room = self.lease.spend(self.direction, 0, monotonic_ns())
        self.room = 0
        if room < 0:
            self.relay.cut(self.lease.exhausted())
        else:
            self.wait(PAUSED)
            self.pacer.wait(self)
        return 0

    def note(self, count: int) -> None:
        """Charge what was read."""
        self.taken += count
        self.room = self.lease.spend(self.direction, count, monotonic_ns())

    def wait(self, state: int) -> None:
        """See `Flow.wait`."""
        if state == PAUSED:
            self.relay.reactor.mute(self.source_fd, True)
        super().wait(state)

    def go(self, room: int) -> None:
        """See `Waiter`. The turn is as long as there is room for it, a quantum at least."""
        if not self.relay.closed:
            self.relay.reactor.mute(self.source_fd, False)
            self.room = room
            self.taken = min(self.taken, QUANTUM - room)
            self.resume()

    def copy(self, to_the_end: int) -> None:
        """See `Flow.copy`. A read that is short of what it asked for has emptied the queue."""
        relay, left = self.relay, SHARE
        view = relay.pipes.view
        while left > 0:
            most = self.may_take(BUFFER_SIZE)
            if not most:
                return
            try:
                count = self.source.recv_into(view[:most])
            except BlockingIOError:
                return
            except OSError:
                relay.break_off(self.sink)
                return
            if not count:
                self.end()
                return
            self.note(count)
            self.rest = rest = bytes(view[:count])  # what is not sent is given back
            if not self.send_rest(rest):
                return
            if count == BUFFER_SIZE:
                self.pipe = pipe = relay.pipes.take()
                if pipe is not None:
                    self.carry(pipe)
                    return
            elif count < most and not to_the_end:
                return
            left -= count
        self.wait(QUEUED)

    def carry(self, pipe: Pipe) -> None:
        """See `Flow.carry`."""
        left = SHARE
        try:
            while self.empty(pipe):
                if left <= 0:
                    self.wait(QUEUED)
                    return
                most = self.may_take(PIPE_SIZE)
                if not most:
                    return
                try:
                    pipe.held = splice(self.source_fd, pipe.write_end, most, flags=SPLICE_FLAGS)  # type: ignore[misc]
                except BlockingIOError:
                    return
                if not pipe.held:
                    self.end()
                    return
                self.note(pipe.held)
                left -= pipe.held
        except OSError:
            self.relay.break_off()

    def empty(self, pipe: Pipe) -> bool:
        """Have the sink take what the pipe holds; False while some of it remains. Raises OSError."""
        while pipe.held:
            try:
                count = splice(pipe.read_end, self.sink_fd, pipe.held, flags=SPLICE_FLAGS)  # type: ignore[misc]
            except BlockingIOError:
                self.wait(BLOCKED)
                return False
            pipe.held -= count
            self.octets += count
        return True

    @property
    def held(self) -> int:
        """Octets that were read and not taken by the sink."""
        return (self.pipe.held if self.pipe is not None else 0) + len(self.rest or b"")


class LimitedTlsFlow(LimitedFlow, TlsFlow):
    """The same with TLS at one side or both."""

    __slots__ = ()


class LimitedRelay(Relay):
    """A relay whose session has a lease that counts octets."""

    __slots__ = ()

    flow = LimitedFlow
    up: LimitedFlow
    down: LimitedFlow

    def __init__(self, relays: Relays, client: Stream, server: Stream, session: Session, now: float) -> None:
        super().__init__(relays, client, server, session, now)
        assert session.lease is not None
        self.up.meter(session.lease, UP, relays.pacer)
        self.down.meter(session.lease, DOWN, relays.pacer)

    def start(self, client: Stream, server: Stream, answer: bytes, head: bytes) -> None:
        """See `Relay.start`. What the client sent behind its request counts too."""
        if head:
            self.up.rest = head  # given back where the relay ends before it has begun
            self.up.note(len(head))
        super().start(client, server, answer, head)

    def sweep(self, now: float, idle: float, half_closed: float) -> None:
        """See `Relay.sweep`. Who waits for a bucket is not quiet, however long that takes."""
        if PAUSED in (self.up.state, self.down.state):
            self.quiet_since = now
        super().sweep(now, idle, half_closed)

    def close(self, reason: Close) -> None:
        """See `Relay.close`. What reached nobody is given back."""
        if not self.closed:
            now = monotonic_ns()
            for flow in (self.up, self.down):
                if flow.held:
                    flow.lease.spend(flow.direction, -flow.held, now)
        super().close(reason)


class LimitedTlsRelay(LimitedRelay, TlsRelay):
    """The same with TLS at one side or both."""

    __slots__ = ()

    flow = LimitedTlsFlow
