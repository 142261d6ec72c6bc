"""Relay: two sockets joined, from the reply to the last octet."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, ClassVar

from tabi.net.reactor import IN, OUT, READABLE
from tabi.net.stream import RESET, Sock, Stream
from tabi.relay.flow import BLOCKED, READY, Flow
from tabi.session import Close, Session

if TYPE_CHECKING:
    from tabi.relay.relays import Relays


UNREAD = 64
"""Reads of a buffer each, 4 MiB, that are thrown away before a relay is cut."""


class Over:
    """What the flows of a closed relay still ask: a turn may be under way in them."""

    closed = True


OVER: Any = Over()


class Relay:
    """Joins a client and a server until both have ended, one was reset, or nothing has moved for too long.

    An end of one side becomes a shutdown of the other, after everything before it was sent (C25 of
    docs/conformance.md); a reset becomes a reset (C33). ``session`` gets the octets and the way it ended.
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

    def __init__(self, relays: Relays, client: Stream, server: Stream, session: Session, now: float) -> None:
        self.relays = relays
        self.reactor = relays.reactor
        self.pipes = relays.pipes
        self.levels = not relays.reactor.edge_triggered
        self.session = session
        self.closed = False
        self.first: Close = "client"  # the side that ended first
        self.seen = 0
        self.quiet_since = now
        self.up = self.flow(self, client.sock, client.fd, server.sock, server.fd)
        self.down = self.flow(self, server.sock, server.fd, client.sock, client.fd)
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
            up.rest = head
            up.resume()
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
        """On a level-triggered reactor: hear of what can be used, and of nothing else."""
        if self.levels and not self.closed:
            for here, there in ((self.up, self.down), (self.down, self.up)):
                reading = here.state == READY and not here.ended
                self.reactor.watch(here.source_fd, (reading and IN) | (there.state == BLOCKED and OUT))

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

    def break_off(self, whole: Sock | None = None) -> None:
        """One side was reset or failed: the other gets a reset too, not what looks like an orderly end.

        ``whole`` is the other one, where that is known.
        """
        if not self.closed:
            for sock in (self.up.source, self.down.source) if whole is None else (whole,):
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                except OSError:
                    pass
            self.close("reset")

    def cut(self, why: str) -> None:
        """A limit ends it. What was sent arrives: both sides see an end, unless they go on sending.

        tcp(7) makes a reset of a close that leaves octets unread, and drops what was on its way to the other.
        """
        self.session.error = why
        for flow in (self.up, self.down):
            try:
                for _ in range(UNREAD):
                    if not flow.source.recv_into(self.pipes.view):
                        break
            except OSError:  # there is nothing, or nobody any more
                pass
        self.close("limit")

    def close(self, reason: Close) -> None:
        """Close both sides and hand the session in. Harmless when done twice."""
        if self.closed:
            return
        self.closed = True
        session, up, down = self.session, self.up, self.down
        up.give_pipe_back()
        down.give_pipe_back()
        self.reactor.close(up.source)
        self.reactor.close(down.source)
        session.up += up.octets  # there may be some that came before the relay
        session.down += down.octets
        session.close = reason
        # They refer to each other in circles, and the collector, which is to have nothing to do, comes by seldom.
        up.relay = down.relay = OVER
        del up.other, down.other
        self.relays.finished(self)

    def sweep(self, now: float, idle: float, half_closed: float) -> None:
        """End it if nothing has moved for ``idle`` seconds, or ``half_closed`` where one side has ended.

        Looks at the octets only, so that a chunk costs no look at a clock.
        """
        total = self.up.octets + self.down.octets
        if total != self.seen:
            self.seen = total
            self.quiet_since = now
            return
        if now - self.quiet_since >= (half_closed if self.up.ended or self.down.ended else idle):
            self.close("idle")
            return
        for flow in (self.up, self.down):
            if flow.pipe is not None and not flow.pipe.held and flow.state == READY:
                flow.give_pipe_back()
