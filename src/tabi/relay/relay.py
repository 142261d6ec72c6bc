"""Relay: two sockets joined, from the reply to the last octet."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tabi.net.reactor import IN, OUT, READABLE
from tabi.net.stream import RESET, Sock, Stream
from tabi.policy.limits import UP
from tabi.relay.flow import BLOCKED, READY, Flow
from tabi.relay.stage import Stage
from tabi.relay.staged import StagedFlow
from tabi.session import Close, Session

if TYPE_CHECKING:
    from tabi.relay.relays import Relays


UNREAD = 64
"""Reads of a buffer each, 4 MiB, that are thrown away before a relay is cut."""


class Over:
    """What the flows of a closed relay still use: a turn may be under way in them."""

    closed = True


OVER: Any = Over()


class Relay:
    """Joins a client and a server until both have ended, one was reset, or nothing has moved for too long.

    An end of one side becomes a shutdown of the other, after everything before it was sent (C25 of
    docs/conformance.md); a reset becomes a reset (C33). ``session`` gets the octets and the way it ended.

    Args:
        staged: whether its flows have stages from the beginning. Others change over when one is put on.
    """

    __slots__ = (
        "closed",
        "down",
        "first",
        "levels",
        "pipes",
        "quiet_since",
        "reactor",
        "relays",
        "seen",
        "session",
        "up",
    )

    flow: ClassVar[type[Flow]] = Flow

    def __init__(
        self, relays: Relays, client: Stream, server: Stream, session: Session, now: float, staged: bool
    ) -> None:
        self.relays = relays
        self.reactor = relays.reactor
        self.pipes = relays.pipes
        self.levels = not relays.reactor.edge_triggered
        self.session = session
        self.closed = False
        self.first: Close = "client"  # the side that ended first
        self.seen = 0
        self.quiet_since = now
        kind = StagedFlow if staged else self.flow
        self.up: Flow = kind(self, client.sock, client.fd, server.sock, server.fd)
        self.down: Flow = kind(self, server.sock, server.fd, client.sock, client.fd)
        self.up.other, self.down.other = self.down, self.up

    def start(self, client: Stream, server: Stream, answer: bytes, head: bytes) -> None:
        """Take over both sockets, see `Relays.start`."""
        up, down = self.up, self.down
        self.reactor.replace(client.fd, up.on_ready)
        self.reactor.replace(server.fd, down.on_ready)
        client.fd = server.fd = -1  # the streams do not own the sockets any more
        self.watch()
        if answer:
            self.reactor.send_at_end(self.send_answer, answer)
        if self.closed:
            return
        if head:
            up.begin(head, client.events)
        elif client.events & READABLE:
            up.on_ready(client.events)
        if server.events & READABLE and not self.closed:
            self.reactor.flush()  # the reply comes first, and may find that the client has gone
            if not self.closed:
                down.on_ready(server.events)

    def send_answer(self, answer: bytes) -> None:
        """Send the reply; a client that was reset meanwhile says so here, and only once."""
        try:
            self.up.source.send(answer)
        except OSError:
            self.break_off(self.down.source)

    def watch(self) -> None:
        """On a level-triggered reactor: ask only for events that can be used."""
        if self.levels and not self.closed:
            for here, there in ((self.up, self.down), (self.down, self.up)):
                reading = here.state == READY and not here.ended
                self.reactor.watch(here.source_fd, (reading and IN) | (there.state == BLOCKED and OUT))

    @property
    def counts(self) -> tuple[int, int]:
        """Octets of the session that were delivered up to now, uplink and downlink."""
        session = self.session
        if self.closed:
            return session.up, session.down
        return session.up + self.up.octets, session.down + self.down.octets

    @property
    def client_fd(self) -> int:
        """See `Carried`."""
        return -1 if self.closed else self.up.source_fd

    def add_stage(self, direction: int, stage: Stage) -> None:
        """Have a direction, UP or DOWN, pass through a stage from now on, behind the stages that it has.

        Raises:
            RuntimeError: the relay has closed.
            ValueError: the stage is on a relay already.
        """
        if self.closed:
            raise RuntimeError("the relay has closed")
        if stage.flow is not None:
            raise ValueError("the stage is on a relay already")
        flow = self.up if direction == UP else self.down
        (flow if isinstance(flow, StagedFlow) else self.change_over(flow)).add(stage)

    def put_on(self, stages: Iterable[tuple[int, Stage]]) -> None:
        """Put stages on before the relay starts: all of them, or none if one raises. Errors as `add_stage`."""
        try:
            for direction, stage in stages:
                self.add_stage(direction, stage)
        except BaseException:
            self.closed = True
            self.up.close()
            self.down.close()
            raise

    def remove_stage(self, stage: Stage) -> None:
        """Take a stage off; what it holds goes out first. Harmless if it is not on, or the relay has closed."""
        flow = stage.flow
        if flow is not None and flow.relay is self:
            flow.remove(stage)

    def change_over(self, flow: Flow) -> StagedFlow:
        """Put a flow that can have stages in the place of one that cannot."""
        staged = StagedFlow(self, flow.source, flow.source_fd, flow.sink, flow.sink_fd)
        staged.other, flow.other.other = flow.other, staged
        if flow is self.up:
            self.up = staged
        else:
            self.down = staged
        self.reactor.replace(flow.source_fd, staged.on_ready)
        staged.take_over(flow)
        flow.relay = OVER  # a turn may be under way in it
        return staged

    def flow_ended(self, flow: Flow) -> None:
        """One side will send no more: tell the other, or end if it has ended too."""
        if flow.other.ended:
            self.close(self.first)
            return
        self.first = "client" if flow is self.up else "server"
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.break_off()
        self.watch()

    def break_off(self, whole: Sock | None = None, reason: Close = "reset") -> None:
        """One side was reset or failed: the other gets a reset too, not what looks like an orderly end.

        ``whole`` is the other side, if that is known.
        """
        if not self.closed:
            for sock in (self.up.source, self.down.source) if whole is None else (whole,):
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                except OSError:
                    pass
            self.close(reason)

    def fail(self, error: str) -> None:
        """An error of our own has occurred in it: both sides get a reset."""
        if not self.closed:
            self.session.error = error
            self.break_off(reason="error")

    def end(self, how: Literal["close", "reset"], why: str) -> None:
        """End it as a fault that was asked for: with an end as `cut`, or with a reset of both sides."""
        if how == "close":
            self.cut(why, "fault")
        elif not self.closed:
            self.session.error = why
            self.break_off(reason="fault")

    def cut(self, why: str, reason: Close = "limit") -> None:
        """End it from outside. What was sent arrives: both sides see an end, unless they go on sending.

        tcp(7) makes a reset of a close that leaves octets unread, and drops what was on its way to the other.
        """
        if self.closed:
            return
        self.session.error = why
        for flow in (self.up, self.down):
            try:
                for _ in range(UNREAD):
                    if not flow.source.recv_into(self.pipes.view):
                        break
            except OSError:  # there is nothing to read, or the peer is gone
                pass
        self.close(reason)

    def close(self, reason: Close) -> None:
        """Close both sides and hand the session in. Harmless when done twice."""
        if self.closed:
            return
        self.closed = True
        session, up, down = self.session, self.up, self.down
        up.close()
        down.close()
        self.reactor.close(up.source)
        self.reactor.close(down.source)
        session.up += up.octets  # there may be some that came before the relay
        session.down += down.octets
        session.close = reason
        # They refer to each other in circles, and the collector, which is to have nothing to do, comes by seldom.
        up.relay = down.relay = OVER
        del up.other, down.other
        self.relays.finished(self)

    def release(self) -> tuple[bytes, bytes]:
        """Give both sockets back open, to somebody who has the handlers replaced at once. Its flows must be staged.

        Returns:
            what was read and not taken yet, by the server and by the client: it has to be sent first.
        """
        up, down, session = self.up, self.down, self.session
        assert isinstance(up, StagedFlow)
        assert isinstance(down, StagedFlow)
        self.closed = True
        kept = bytes(up.kept), bytes(down.kept)
        for flow in (up, down):
            if flow.muted:
                self.reactor.mute(flow.source_fd, False)
            flow.close()
            flow.relay = OVER
        session.up += up.octets
        session.down += down.octets
        del up.other, down.other
        del self.relays.active[session]
        return kept

    def only_down(self) -> None:
        """Take nothing more of the client: it closes as soon as the server has ended, and the client has all of it."""
        up, self.first = self.up, "server"
        up.ended, up.state = True, READY
        up.give_pipe_back()
        if isinstance(up, StagedFlow):
            up.finishing = True
            up.kept.clear()
        if self.down.ended:
            self.close("server")
        else:
            self.watch()

    def sweep(self, now: float, idle: float, half_closed: float) -> None:
        """End it if nothing has moved for ``idle`` seconds, or ``half_closed`` if one side has ended.

        Looks at the octets only, so that a chunk costs no look at a clock.
        """
        total = self.up.octets + self.down.octets
        if total != self.seen:
            self.seen = total
            self.quiet_since = now
            return
        up, down = self.up, self.down
        quiet = now - self.quiet_since >= (half_closed if up.ended or down.ended else idle)
        if quiet and not (up.holds(now) or down.holds(now)):
            self.close("idle")
            return
        for flow in (up, down):
            if flow.pipe is not None and not flow.pipe.held and flow.state == READY:
                flow.give_pipe_back()
