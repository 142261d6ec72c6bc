"""A frame relay on a relay: two stages, one for each direction, so that it has the relay's I/O.

relay = FrameRelay(inspector)
stages = FrameStages(relay)
tunnel.hand_over([stages.up], [stages.down])
"""

from __future__ import annotations

from collections.abc import Callable

from tabi.intercept.http2 import FrameRelay
from tabi.policy.limits import DOWN, UP
from tabi.relay.stage import Stage

UNREAD_LIMIT = 4 << 20
"""Octets that one side has not read, with our answers to its frames among them, before nothing more is read of it."""

LOOK_AGAIN = 0.1
"""Seconds until we look whether it has."""


class FrameStage(Stage):
    """What passes in one direction."""

    __slots__ = ("limit", "number", "stages")

    def __init__(self, stages: FrameStages, number: int) -> None:
        super().__init__()
        self.limit = stages.relay.held_limit
        self.stages: FrameStages | None = stages
        self.number = number

    def room(self, most: int) -> int:
        """See `Stage`: nothing is read while there is something to take in another turn, or answers go unread."""
        stages = self.stages
        if stages is None:
            return most
        if stages.relay.directions[self.number].more:
            return 0
        back = (stages.up if self.number == DOWN else stages.down).flow
        if back is not None and len(back.kept) > UNREAD_LIMIT:
            if not self.timers:
                self.call_later(LOOK_AGAIN, self.go_on)
            return 0
        return most

    def holds(self, now: float) -> bool:
        """See `Stage`: what is not taken here makes a relay idle."""
        return False

    def receive(self, data: bytes) -> None:
        """See `Stage`."""
        stages = self.stages
        if stages is not None:
            direction = stages.relay.directions[self.number]
            direction.feed(data)
            stages.flush()
            if direction.more and not stages.relay.over:
                self.call_later(0, self.again)

    def again(self) -> None:
        """Take more of what has come."""
        self.receive(b"")

    def receive_end(self) -> None:
        """One side will send no more. What a server has sent whole still arrives, if a hook holds it just now."""
        if self.stages is not None:
            self.stages.flush()

    def closed(self, unsent: int) -> None:
        """The connection is over."""
        stages, self.stages = self.stages, None
        if stages is not None:
            stages.close()


class FrameStages:
    """Both stages of a frame relay. ``closed`` is called when they are over."""

    def __init__(self, relay: FrameRelay, closed: Callable[[], object] = bool) -> None:
        self.relay = relay
        self.closed = closed
        self.up = FrameStage(self, UP)
        self.down = FrameStage(self, DOWN)
        self.stages: tuple[FrameStage, ...] = (self.up, self.down)
        relay.wake = self.flush

    def flush(self) -> None:
        """Send what there is to send, and end if it is over."""
        relay = self.relay
        for stage in self.stages:
            octets = relay.take(stage.number)
            if octets and not (stage is self.up and self.down.ended):  # a server that has gone would reset it all
                stage.emit(octets)
            if not self.stages:
                return  # that has ended the connection
            direction = relay.directions[stage.number]
            stage.held = direction.queued if direction.begun else 0  # nothing of it goes before its sender's SETTINGS
        if relay.failure is not None:
            for stage in self.stages:
                stage.held = 0
                stage.emit_end()
            return
        for stage in self.stages:
            if stage.ended and (stage is self.up or not relay.down.owes()):
                stage.emit_end()
        for stage in self.stages:
            stage.go_on()

    def close(self) -> None:
        """The connection is over: all streams end."""
        if not self.stages:
            return
        stages, self.stages = self.stages, ()
        for stage in stages:
            stage.stages = None
        self.closed()
        self.relay.close("the connection has ended")
        self.relay.wake = bool
