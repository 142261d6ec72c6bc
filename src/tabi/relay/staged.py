"""A flow with stages: it asks them before it reads, and passes octets through them.

While its stages only count, it splices as any other flow. Otherwise it copies: what the last stage emits is sent at
once, and what finds no room is kept; nothing is read meanwhile. It is PAUSED while a stage says so, holds too much, or
holds the end.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import TYPE_CHECKING, Literal

from tabi.net.reactor import ENDED, READABLE
from tabi.net.stream import Sock
from tabi.net.tls import explain
from tabi.relay.flow import BLOCKED, PAUSED, QUEUED, READY, SHARE, SPLICE_FLAGS, Flow, splice
from tabi.relay.pipes import BUFFER_SIZE, PIPE_SIZE, Pipe
from tabi.relay.stage import Next, Stage

if TYPE_CHECKING:
    from tabi.relay.relay import Relay

log = logging.getLogger("tabi")


BEGUN = SHARE - PIPE_SIZE
"""What is left of a share when a flow that only counts looks at the clock: what a meter allows at a time is less."""


SHORT_LOOK, LONG_LOOK = 0.001, 0.05
"""Seconds between two looks whether a peer has got everything."""


class Nowhere:
    """Where octets go once the relay has closed."""

    def receive(self, data: bytes) -> None:
        """Drop them."""

    def end(self) -> None:
        """Drop it too."""


NOWHERE = Nowhere()


class StagedFlow(Flow):
    """Moves octets from ``source`` through ``stages`` to ``sink``. ``octets`` are those that the sink took.

    ``source_ended`` says that the source will send no more, ``finishing`` that the last stage has passed an end on, and
    ``ended`` that the sink has taken everything before it.
    """

    __slots__ = (
        "copying",
        "counters",
        "final",
        "finishing",
        "first",
        "kept",
        "muted",
        "source_ended",
        "stages",
        "writers",
    )

    def __init__(self, relay: Relay, source: Sock, source_fd: int, sink: Sock, sink_fd: int) -> None:
        super().__init__(relay, source, source_fd, sink, sink_fd)
        self.stages: tuple[Stage, ...] = ()
        self.counters: tuple[Stage, ...] = ()  # those that want to know how much was read
        self.writers: tuple[Stage, ...] = ()  # those that wait for a sink that has taken nothing; the last one first
        self.first: Next = self  # the first that needs octets
        self.kept = bytearray()  # emitted, but not yet taken by the sink; behind what the pipe holds
        self.copying = self.finishing = self.source_ended = self.muted = False
        self.final: tuple[Literal["close", "reset"], str] | None = None  # how the relay ends with this one, and why

    def take_over(self, flow: Flow) -> None:
        """Go on where a running flow is. It may be in the middle of a turn, so that its source is read to the end."""
        self.octets, self.pipe, self.state = flow.octets, flow.pipe, flow.state
        self.ended = self.finishing = self.source_ended = flow.ended
        self.kept += flow.rest or b""
        flow.pipe = None
        if not self.ended:
            self.wait(QUEUED)

    # --- stages ---

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop with the timers of the stages."""
        return self.relay.reactor.loop

    def add(self, stage: Stage) -> None:
        """Put a stage on, behind those that are on already. What the pipe holds goes out first."""
        stage.ended = stage.said_end = self.finishing
        stage.flow = self
        try:
            stage.attached()
        except BaseException:
            stage.leave()
            raise
        self.stages += (stage,)
        self.link()

    def remove(self, stage: Stage) -> None:
        """Take a stage off. What it holds goes out first, in order."""
        try:
            stage.flush()
            if stage.ended and not stage.said_end:
                stage.emit_end()
        except Exception as exc:
            self.fail(exc)
        if self.relay.closed:
            return
        self.stages = tuple(other for other in self.stages if other is not stage)
        self.link()
        stage.leave()
        self.go_on()

    def link(self) -> None:
        """Have each stage that needs octets pass them on to the next one that does, and the last one to the sink."""
        follower: Next = self
        over = self.finishing
        for stage in reversed(self.stages):
            if stage.copies:
                stage.next = follower
                stage.said_end |= over  # what it emits is behind an end that somebody after it has emitted
                follower, over = stage, stage.ended or over
        if over and not self.source_ended:
            self.source_ended = True
            if self.state == READY and not self.ended:
                self.state = PAUSED
                self.relay.watch()
        self.first = follower
        self.copying = follower is not self
        self.counters = tuple([stage for stage in self.stages if type(stage).note is not Stage.note])

        self.writers = tuple(
            [stage for stage in reversed(self.stages) if type(stage).resume_writing is not Stage.resume_writing]
        )

    def run(self, callback: Callable[[], object]) -> None:
        """Call a method of a stage, and read on if it has made room."""
        try:
            callback()
        except Exception as exc:
            self.fail(exc)
        else:
            self.go_on()

    def go_on(self) -> None:
        """Read on, if nothing but the stages was in the way."""
        if self.state == PAUSED and all(stage.held < stage.limit for stage in self.stages):
            self.resume()

    def holds(self, now: float) -> bool:
        """Whether a stage holds this direction still on purpose."""
        return any(stage.holds(now) for stage in self.stages)

    def fail(self, exc: Exception) -> None:
        """A stage has failed: octets may be lost, so that neither side may take what it has for the whole."""
        log.error("a stage of a relay failed", exc_info=exc)
        if not self.relay.closed:
            self.relay.fail(f"internal error: {type(exc).__name__}")

    # --- reading ---

    def begin(self, head: bytes, events: int) -> None:
        """See `Flow.begin`."""
        self.feed(head)
        if events & READABLE:
            self.resume()

    def copy(self, to_the_end: int) -> None:
        """Copy what the source has. A read that is short of what it asked for has emptied the queue."""
        view, left, late = self.relay.pipes.view, SHARE, self.relay.reactor.late
        while left > 0:
            most = self.may_take(BUFFER_SIZE)
            if not most:
                return
            try:
                count = self.source.recv_into(view[:most])
            except BlockingIOError:
                return
            except OSError as exc:
                if isinstance(exc, ssl.SSLError):
                    peer = "client" if self is self.relay.up else "server"
                    self.relay.session.error = self.relay.session.error or explain(exc, peer)
                self.relay.break_off(self.sink)
                return
            if not count:
                self.source_end()
                return
            self.feed(bytes(view[:count]))
            if self.state != READY or self.ended or self.relay.closed:
                return
            if count == BUFFER_SIZE and not self.copying:
                self.pipe = pipe = self.relay.pipes.take()
                if pipe is not None:
                    self.splice(pipe)
                    return
            elif count < most and not to_the_end:
                return
            left -= count
            if (self.copying or left < BEGUN) and late():
                break
        self.wait(QUEUED)

    def splice(self, pipe: Pipe) -> None:
        """Splice what the source has, until a stage needs the octets."""
        left, late = SHARE, self.relay.reactor.late
        while self.drain():
            if self.copying:
                self.give_pipe_back()
                self.copy(ENDED)
                return
            if left <= 0 or (left < BEGUN and late()):
                self.wait(QUEUED)
                return
            most = self.may_take(PIPE_SIZE)
            if not most:
                return
            try:
                pipe.held = splice(self.source_fd, pipe.write_end, most, flags=SPLICE_FLAGS)  # type: ignore[misc]
            except BlockingIOError:
                return
            except OSError:
                self.relay.break_off()
                return
            if not pipe.held:
                self.source_end()
                return
            left -= pipe.held
            self.note(pipe.held)

    def may_take(self, most: int) -> int:
        """How many octets may be read now, ``most`` at most; 0: the flow waits, or the relay is closed."""
        try:
            for stage in self.stages:
                most = stage.room(most) if stage.held < stage.limit else 0
                if most <= 0:
                    if self.state == READY and not self.relay.closed:
                        self.wait(PAUSED)
                    return 0
        except Exception as exc:
            self.fail(exc)
            return 0
        return most

    def note(self, count: int) -> None:
        """Tell the stages what was read."""
        try:
            for stage in self.counters:
                stage.note(count)
        except Exception as exc:
            self.fail(exc)

    def feed(self, data: bytes) -> None:
        """Pass on what was read."""
        if self.counters:
            self.note(len(data))
        try:
            self.first.receive(data)
        except Exception as exc:
            self.fail(exc)

    def source_end(self) -> None:
        """The source has ended: its end passes through the stages after its octets."""
        self.source_ended = True
        self.give_pipe_back()
        self.run(self.first.end)
        if self.state == READY and not self.ended and not self.relay.closed:
            self.state = PAUSED
            self.relay.watch()

    # --- writing ---

    @property
    def is_blocked(self) -> bool:
        """Whether the sink has octets waiting for it that it does not take."""
        return self.state == BLOCKED or bool(self.kept) or (self.pipe is not None and self.pipe.held > 0)

    def receive(self, data: bytes) -> None:
        """Have the sink take what the last stage has emitted, after what it has not taken yet."""
        if self.finishing or self.relay.closed:
            return
        if self.kept or (self.pipe is not None and self.pipe.held):
            self.kept += data
            return
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.kept += data  # it was not delivered
            self.relay.break_off()
            return
        self.octets += sent
        if sent < len(data):
            self.kept += data[sent:]
            self.wait(BLOCKED)

    def end(self) -> None:
        """The last stage has passed an end on: tell the sink, once it has taken everything before it."""
        if not self.finishing and not self.relay.closed:
            self.finishing = True
            if not self.kept and not (self.pipe is not None and self.pipe.held):
                self.tell_end()

    def tell_end(self) -> None:
        """The sink has taken everything: nothing is read any more."""
        self.state = READY
        if self.final is not None:
            self.end_relay(*self.final)
        else:
            super().end()

    def end_relay(self, how: Literal["close", "reset"], why: str, pause: float = SHORT_LOOK) -> None:
        """End the relay; with a reset only when the peer has got everything, since that drops what was not sent."""
        if how == "reset" and not self.relay.closed and is_sending(self.sink_fd):
            self.loop.call_later(pause, self.end_relay, how, why, min(2 * pause, LONG_LOOK))
        else:
            self.relay.end(how, why)

    def drain(self) -> bool:
        """Have the sink take what the pipe holds, then what was kept; False while some remains, or if it is over."""
        pipe, kept = self.pipe, self.kept
        try:
            while pipe is not None and pipe.held:
                count = splice(pipe.read_end, self.sink_fd, pipe.held, flags=SPLICE_FLAGS)  # type: ignore[misc]
                pipe.held -= count
                self.octets += count
            while kept:
                chunk = bytes(kept[:BUFFER_SIZE])
                count = self.sink.send(chunk)
                del kept[:count]
                self.octets += count
                if count < len(chunk):
                    self.wait(BLOCKED)
                    return False
        except BlockingIOError:
            self.wait(BLOCKED)
            return False
        except OSError:
            self.relay.break_off()
            return False
        return not self.relay.closed

    def wait(self, state: int) -> None:
        """Go on when the sink has room, in the next turn, or when the stages let it."""
        if state == PAUSED:
            self.muted = True
            self.relay.reactor.mute(self.source_fd, True)
        super().wait(state)

    def resume(self) -> None:
        """Go on after `wait`. Edges of the source were passed over meanwhile, so read to the end."""
        relay, before = self.relay, self.state
        if relay.closed:
            return
        blocked = bool(self.writers) and self.is_blocked
        if self.muted:
            self.muted = False
            relay.reactor.mute(self.source_fd, False)
        self.state = READY
        if not self.drain():
            return
        if self.ended:
            if before == BLOCKED:  # an end that has found no room, see `TlsRelay`
                relay.flow_ended(self)
            return
        if self.finishing:
            self.tell_end()
            return
        if blocked and not self.let_write():
            return
        if self.source_ended:  # and a stage holds its end
            self.state = PAUSED
            relay.watch()
        else:
            relay.watch()
            if self.pipe is None and not self.copying and self.octets >= BUFFER_SIZE:
                self.pipe = relay.pipes.take()
            if self.pipe is None:
                self.copy(ENDED)
            else:
                self.splice(self.pipe)

    def let_write(self) -> bool:
        """Let stages emit what they have held back; False if that fills the sink, or is the end of it."""
        for stage in self.writers:
            self.run(stage.resume_writing)
        return self.state == READY and not self.ended and not self.relay.closed

    @property
    def prompt(self) -> bool:
        """See `Prompt`: stages that see octets may do anything with them."""
        return self.pipe is None and not self.copying

    @property
    def held(self) -> int:
        """Octets that were read and not taken by the sink."""
        return super().held + len(self.kept) + sum(stage.held for stage in self.stages)

    def close(self) -> None:
        """The relay has closed."""
        unsent, stages = self.held, self.stages
        self.stages = self.writers = ()
        self.first = NOWHERE
        for stage in stages:
            if stage.copies:
                stage.next = NOWHERE  # one before it may be in the middle of something
        for stage in stages:
            try:
                stage.closed(unsent)
            except Exception as exc:
                self.fail(exc)
            stage.leave()
        super().close()


def is_sending(fd: int) -> bool:
    """Whether the kernel has octets that the peer has not got yet (SIOCOUTQ, tcp(7) and unix(7))."""
    try:
        return any(ioctl(fd, TIOCOUTQ, bytes(4)))
    except OSError:
        return False
