"""Stage: what one direction of a relay passes through, in a chain from the source to the sink.

A stage may hold, delay, change, drop, end or reset. It is put on a running relay and taken off again
(`Relay.add_stage`, `Relay.remove_stage`). Its methods are called inside the reactor, one after the other: they must
neither block nor wait. A stage that wants to do something later asks for a timer.

A stage that only counts sees no octets: if all stages of a direction only count, the kernel splices it. The
others get the octets themselves, and the direction is copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from tabi.relay.flow import PAUSED

if TYPE_CHECKING:
    from tabi.relay.staged import StagedFlow

HOLD_LIMIT = 1 << 18
"""Octets that a stage holds before nothing more is read for it."""

LONGEST_HOLD = 3600.0
"""Seconds of a timer at most, and for which a stage may keep a relay from being idle while no octet moves."""

SLACK = 1.0
"""Seconds that a timer may be longer: the sum of a time and LONGEST_HOLD is rounded."""


class Next(Protocol):
    """What a stage passes on to: the next stage, or the sink."""

    def receive(self, data: bytes) -> None: ...
    def end(self) -> None: ...


class Stage:
    """Passes everything on as it comes. A subclass overrides what it does differently.

    One object is for one direction of one relay. ``flow`` is what hosts it, None while it is not on a relay. ``ended``
    says that the end has reached it, ``said_end`` that it has passed one on.
    """

    copies: ClassVar[bool] = True
    """Whether it needs the octets. If not, `receive` and `receive_end` are never called, and nothing can be emitted."""

    limit: int = HOLD_LIMIT
    """While it holds so many octets nothing more is read, and TCP slows the sender down."""

    __slots__ = ("ended", "flow", "held", "next", "said_end", "timers")

    def __init__(self) -> None:
        self.flow: StagedFlow | None = None
        self.next: Next | None = None
        self.held = 0
        """Octets that it holds. It counts them itself, whenever it takes some in or emits them."""
        self.ended = False
        self.said_end = False
        self.timers: set[asyncio.TimerHandle] = set()

    # --- what a subclass overrides ---

    def attached(self) -> None:
        """It was put on. It cannot emit yet. If it raises, it is not on, and the caller gets the error."""

    def room(self, most: int) -> int:
        """How many octets may be read now, ``most`` at most. After a 0 nothing is read until `go_on` is called."""
        return most

    def note(self, count: int) -> None:
        """So many octets were read."""

    def receive(self, data: bytes) -> None:
        """Octets have come: `emit` them, or other octets, now or later."""
        self.emit(data)

    def receive_end(self) -> None:
        """The source has ended: call `emit_end`, now or after what is held."""
        self.emit_end()

    def flush(self) -> None:
        """It is being taken off: emit all that it holds, in order. An end that it holds goes out after that."""

    def resume_writing(self) -> None:
        """The sink has taken all that it has kept waiting: emit more, if `is_blocked` was in the way."""

    def closed(self, unsent: int) -> None:
        """The relay has closed: in order, by a reset or by a limit. ``unsent`` octets were read and not delivered."""

    def holds(self, now: float) -> bool:
        """Whether it holds the direction still on purpose, so that the relay is not idle: it has a timer then."""
        flow = self.flow
        assert flow is not None
        still = self.held or flow.state == PAUSED or (self.ended and not self.said_end)
        return bool(still and self.timers) and now - flow.relay.quiet_since < LONGEST_HOLD

    # --- what a subclass calls ---

    @property
    def is_blocked(self) -> bool:
        """Whether the sink takes nothing more for now. What is emitted all the same is kept for it, without a bound:
        who holds octets back anyway waits for `resume_writing`."""
        return self.flow is not None and self.flow.is_blocked

    @property
    def is_late(self) -> bool:
        """Whether this turn of the reactor has used up its time, so that more work is for the `next_turn`."""
        return self.flow is not None and self.flow.relay.reactor.late()

    def emit(self, data: bytes) -> None:
        """Pass octets on. They are dropped after an end, and if the relay has closed.

        Raises:
            RuntimeError: it was never put on a relay, or it only counts.
        """
        if self.next is None:
            raise RuntimeError("a stage cannot emit before it is on a relay, nor one that only counts")
        if not self.said_end:
            self.next.receive(data)

    def emit_end(self) -> None:
        """Pass an end on. If the source has not ended by itself, nothing more is read from it. Errors as `emit`."""
        if self.next is None:
            raise RuntimeError("a stage cannot end before it is on a relay, nor one that only counts")
        if not self.said_end:
            self.said_end = True
            self.next.end()

    def call_at(self, when: float, callback: Callable[[], object]) -> None:
        """Have something called at a time of the loop's clock, unless it is taken off or the relay closes before that.

        Raises:
            ValueError: that is more than LONGEST_HOLD from now.
        """
        flow = self.flow
        if flow is None:
            return
        loop = flow.loop
        if when - loop.time() > LONGEST_HOLD + SLACK:
            raise ValueError(f"a stage's timer of {when - loop.time():g} s: the longest is {LONGEST_HOLD:g} s")

        def run() -> None:
            self.timers.discard(handle)
            flow.run(callback)

        handle = loop.call_at(when, run)
        self.timers.add(handle)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Have something called after so many seconds; else as `call_at`."""
        if self.flow is not None:
            self.call_at(self.flow.loop.time() + seconds, callback)

    def next_turn(self, callback: Callable[[], object]) -> None:
        """Have something called in the reactor's next turn; else as `call_at`."""
        flow = self.flow
        if flow is not None:
            flow.relay.reactor.later(lambda: flow.run(callback) if self.flow is flow else None)

    def go_on(self) -> None:
        """Make the direction read on, if `room` had returned 0."""
        if self.flow is not None:
            self.flow.go_on()

    def reset(self) -> None:
        """End the relay with a reset of both sides, at once: it overtakes what is held, as a reset does in TCP."""
        if self.flow is not None:
            self.flow.relay.break_off()

    def end_relay(self, how: Literal["close", "reset"], why: str) -> None:
        """End the relay now, with an end or a reset of both sides; the session's line has ``why``, and ``fault``."""
        if self.flow is not None:
            self.flow.relay.end(how, why)

    def end_relay_after(self, how: Literal["close", "reset"], why: str) -> None:
        """The same, once the sink has taken all that was emitted before. Errors as `emit`."""
        if self.flow is not None and not self.said_end:
            self.flow.final = how, why
            self.emit_end()

    # --- what the flow calls ---

    def end(self) -> None:
        """The end of the source, or of the stage before, has reached it."""
        if not self.ended:
            self.ended = True
            self.receive_end()

    def leave(self) -> None:
        """It was taken off its relay."""
        self.flow = None
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
