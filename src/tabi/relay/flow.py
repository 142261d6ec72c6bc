"""One direction of a relay: small traffic is copied through a shared buffer, bulk is spliced inside the kernel.

A flow is called by the reactor with the events of its source, which are those of the other flow's sink too. It moves
octets until the source is empty, the sink is full, or it has had its share of the turn:

    source empty       nothing to do: the next arrival is a new edge
    sink full          BLOCKED: nothing is read, so that TCP slows the sender down; goes on when the sink has room
    share used up      QUEUED: goes on in the next turn, so that no flow starves the others
    a stage says so    PAUSED: nothing is read until it lets the flow go on (`relay.staged`)

As soon as a read fills the buffer or a send is short, the flow goes on through a pipe, if one is to be had. The
relay's sweep takes the pipe away again when the flow has been quiet.

Hot path: benchmarks/compare pays for every line here (ping-1, ping-128, bulk-*).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tabi.net.reactor import ENDED, ERR, OUT, READABLE, Prompt
from tabi.relay.pipes import BUFFER_SIZE, PIPE_SIZE, Pipe

if TYPE_CHECKING:
    from tabi.net.stream import Sock
    from tabi.relay.relay import Relay

SHARE = 4 << 20
"""Octets that one flow moves in one turn of the reactor, if the turn has time for them."""

READY, BLOCKED, QUEUED, PAUSED = 0, 1, 2, 3

splice = getattr(os, "splice", None)
SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK, splice(2)


class Flow(Prompt):
    """Moves octets from ``source`` to ``sink`` and counts in ``octets`` those that the sink took."""

    __slots__ = (
        "ended",
        "octets",
        "other",
        "pipe",
        "relay",
        "rest",
        "sink",
        "sink_fd",
        "source",
        "source_fd",
        "state",
    )

    other: Flow

    def __init__(self, relay: Relay, source: Sock, source_fd: int, sink: Sock, sink_fd: int) -> None:
        self.relay = relay
        self.source = source
        self.source_fd = source_fd
        self.sink = sink
        self.sink_fd = sink_fd
        self.octets = 0
        self.state = READY
        self.ended = False
        self.pipe: Pipe | None = None
        self.rest: bytes | None = None  # read, but not yet taken by the sink; less than a buffer

    def begin(self, head: bytes, events: int) -> None:
        """Send octets that were read before the relay began, then go on with what ``events`` say that is there."""
        self.rest = head
        if events & READABLE:
            self.resume()
        else:
            self.send_rest(head)

    def on_ready(self, events: int) -> None:
        """The reactor's handler for the source's descriptor."""
        other = self.other
        if other.state == BLOCKED and events & OUT:
            other.resume()
            if self.relay.closed:
                return
        if events & READABLE:
            if self.state == READY and not self.ended:
                if self.pipe is None:
                    self.copy(events & ENDED)
                else:
                    self.splice(self.pipe)
            elif events & ERR:
                self.relay.break_off()

    def copy(self, to_the_end: int) -> None:
        """Copy what the source has. After a short read its queue is empty (epoll(7)), unless its end is in sight."""
        relay = self.relay
        buffer, view, left = relay.pipes.buffer, relay.pipes.view, SHARE
        while True:
            try:
                count = self.source.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                relay.break_off(self.sink)
                return
            if not count:
                self.end()
                return
            try:
                sent = self.sink.send(view[:count])
            except BlockingIOError:
                sent = 0
            except OSError:
                relay.break_off()
                return
            self.octets += sent
            if sent < count:
                self.rest = bytes(view[sent:count])
                self.wait(BLOCKED)
                return
            if count == BUFFER_SIZE:
                self.pipe = pipe = relay.pipes.take()
                if pipe is not None:
                    self.splice(pipe)
                    return
            elif not to_the_end:
                return
            left -= count
            if left <= 0 or relay.reactor.late():
                self.wait(QUEUED)
                return

    def splice(self, pipe: Pipe) -> None:
        """Splice what the source has: socket -> pipe -> socket, without coming through this process' memory."""
        source_fd, sink_fd, read_end, write_end = self.source_fd, self.sink_fd, pipe.read_end, pipe.write_end
        held, left, late = pipe.held, SHARE, self.relay.reactor.late
        try:
            while True:
                while held:
                    try:
                        count = splice(read_end, sink_fd, held, flags=SPLICE_FLAGS)  # type: ignore[misc]
                    except BlockingIOError:
                        pipe.held = held
                        self.wait(BLOCKED)
                        return
                    held -= count
                    self.octets += count
                if left <= 0 or (left < SHARE and late()):  # each call moves something
                    pipe.held = 0
                    self.wait(QUEUED)
                    return
                try:
                    held = splice(source_fd, write_end, PIPE_SIZE, flags=SPLICE_FLAGS)  # type: ignore[misc]
                except BlockingIOError:
                    pipe.held = 0
                    return
                if not held:
                    pipe.held = 0
                    self.end()
                    return
                left -= held
        except OSError:
            pipe.held = held
            self.relay.break_off()

    def wait(self, state: int) -> None:
        """Go on when the sink has room, or in the next turn."""
        self.state = state
        if state == QUEUED:
            self.relay.reactor.later(self.resume)
        self.relay.watch()

    def resume(self) -> None:
        """Go on after `wait`. Edges of the source were passed over meanwhile, so read to the end."""
        if self.ended or self.relay.closed:
            return
        self.state = READY
        if self.rest is not None and not self.send_rest(self.rest):
            return
        self.relay.watch()
        if self.pipe is None and self.octets >= BUFFER_SIZE:
            self.pipe = self.relay.pipes.take()
        if self.pipe is None:
            self.copy(ENDED)
        else:
            self.splice(self.pipe)

    def send_rest(self, rest: bytes) -> bool:
        """Send what was read but not taken; False while some of it remains, or after an error."""
        try:
            sent = self.sink.send(rest)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.relay.break_off()
            return False
        self.octets += sent
        if sent < len(rest):
            self.rest = rest[sent:]
            self.wait(BLOCKED)
            return False
        self.rest = None
        return True

    def end(self) -> None:
        """The source has ended and all of it was sent on."""
        self.ended = True
        self.give_pipe_back()
        self.relay.flow_ended(self)

    def give_pipe_back(self) -> None:
        """Return the pipe to the pool, if there is one."""
        if self.pipe is not None:
            self.relay.pipes.give(self.pipe)
            self.pipe = None

    close = give_pipe_back
    """The relay has closed."""

    @property
    def prompt(self) -> bool:
        """See `Prompt`: a flow that splices moves much."""
        return self.pipe is None

    @property
    def held(self) -> int:
        """Octets that were read and not taken by the sink."""
        return (0 if self.pipe is None else self.pipe.held) + len(self.rest or b"")

    def holds(self, now: float) -> bool:
        """Whether it keeps octets back on purpose, so that the relay is not idle."""
        return False
