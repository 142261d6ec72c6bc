"""The reactor: one registration for the life of a descriptor, and a plain call when it is ready.

asyncio's ``add_reader`` and ``remove_reader`` cost a system call for every wait. Here a descriptor is registered once,
edge-triggered (epoll(7)) and for both directions; a handler is called with the events as they come and remembers what
it has not used up. There are three hostings of the same interface:

    SelectorReactor   inside the selector of a loop of ours: one epoll, one poll a turn. What `tabi serve` runs on.
    NestedReactor     an epoll of its own, registered once in any loop. What an embedded Server runs on.
    PortableReactor   the loop's own add_reader and add_writer, where there is no epoll.

Handlers of the first two see edges, of the third levels: so code that will not read for now says so with ``watch``,
which costs an edge-triggered reactor nothing.

The answers of the handshakes of one turn are sent at its end, back to back (`send_at_end`): waking a peer that sleeps
on another core is the largest single cost of a short session, and waking a peer that is already awake costs nothing.
Measured with benchmarks/compare, scenario conn: 98 us of CPU a connection in place of 122. For relayed octets it gains
nothing.

A descriptor must not be closed, and its number not be given to another socket, while events of the same batch still
speak of it: ``close`` waits for the end of the turn.

A turn has a budget in time, BUDGET. When it is used up, only handlers that are `Prompt` are called, small relays above
all; the other events wait in ``crowd`` until a turn has time for them, in the order in which they came. A handler with
much to do asks `late` now and then, and goes on by `later` or `next_turn`: it is behind all that wait already. So what
one client makes expensive costs the others a turn, however much of it there is. A turn that took longer than SLOW is
counted and reported, with the handler that took it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Protocol, TypeVar

from tabi.net.kernel import has_epoll, make_selector
from tabi.net.readiness import Turn
from tabi.net.selector import BATCH, ReactorLoop

T = TypeVar("T")

Handler = Callable[[int], object]
Watchdog = Callable[[float, Sequence[object], float], None]
"""Is told of a slow turn: how many seconds it took, the owners of the handlers that took most of it together (none: no
handler did), and the time now."""

# The values of Linux' epoll, on every platform.
IN, OUT, ERR, HUP, RDHUP = 0x001, 0x004, 0x008, 0x010, 0x2000
BROKEN = ERR | HUP
ENDED = ERR | HUP | RDHUP
READABLE = IN | ENDED
EDGE = 1 << 31
EXCLUSIVE = 1 << 28

LOOKS = 8
"""Handlers that are called between two looks at the clock: one for each handler made a small round trip 5 % dearer."""

BUDGET = 0.005
"""Seconds of a turn after which what is not prompt waits for another one."""

LEAST = 0.002
"""Seconds that what has waited gets in each turn, however much else there was."""

SLOW = 0.1
"""Seconds of a turn that is counted as slow."""


class Socket(Protocol):
    """A socket to close: `socket.socket`, or the C class below it."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Prompt:
    """The base of what has handlers that never take long: they are called also when a turn has used up its time."""

    __slots__ = ()

    @property
    def prompt(self) -> bool:
        """Whether that is so now."""
        return True


def is_prompt(handler: Handler) -> bool:
    """Whether a handler may be called when there is no time left."""
    owner = getattr(handler, "__self__", None)
    return isinstance(owner, Prompt) and owner.prompt


class Reactor:
    """What all hostings share. Use `get_reactor()`; construct none."""

    edge_triggered = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.handlers: dict[int, Handler] = {}
        self.postponed: deque[Callable[[], object]] = deque()
        self.closing: list[Socket] = []
        self.outbox: list[tuple[Callable[[bytes], object], bytes]] = []
        self.in_turn = False
        self.crowd: OrderedDict[int, int] = OrderedDict()
        """Events that wait for a turn with time for them, by descriptor."""
        self.started = float("inf")
        self.ends = float("inf")  # when the turn's time is over
        self.lasted = 0.0
        """Seconds that the turn before took, with the tasks that were run in it."""
        self.culprits: list[object] = []
        self.longest = 0.0
        self.slow_turns = 0
        self.watchdogs: list[Watchdog] = []

    def register(self, fd: int, handler: Handler) -> None:
        """Call ``handler(events)`` whenever ``fd`` becomes ready, from now until `close`."""
        raise NotImplementedError

    def register_reader(self, fd: int, handler: Handler) -> None:
        """Call the handler only for what arrives: a datagram socket would report room after every send."""
        raise NotImplementedError

    def register_listener(self, fd: int, handler: Handler) -> None:
        """Call the handler for a listening socket: level-triggered, and only one of several workers is woken."""
        raise NotImplementedError

    def forget(self, fd: int) -> None:
        """Stop calling the handler of ``fd``. The descriptor stays open; to close it, use `close`."""
        raise NotImplementedError

    def watch(self, fd: int, events: int) -> None:
        """Say which of IN and OUT the handler of ``fd`` wants to hear of now. Edges come unasked."""

    def mute(self, fd: int, muted: bool) -> None:
        """Hear no more of what arrives at ``fd``, or hear of it again, of what has arrived meanwhile too.

        For code that will not read for a while: an edge for each packet would wake the process for nothing.
        """

    def replace(self, fd: int, handler: Handler) -> None:
        """Give a registered descriptor to another handler."""
        self.handlers[fd] = handler

    def exchange(self, fd: int, other: socket.socket) -> socket.socket:
        """Put another socket, non-blocking, in the place of a registered one: its descriptor becomes ``fd``, whose
        handler hears of it from now on.

        Returns:
            the socket that was there, at a descriptor of its own and not registered.

        Raises:
            ValueError: ``fd`` is not registered.
            OSError: there is no further descriptor (EMFILE). Nothing has changed.
        """
        handler = self.handlers.get(fd)
        if handler is None:
            raise ValueError(f"descriptor {fd} is not registered")
        before = socket.socket(fileno=os.dup(fd))
        before.setblocking(False)
        self.forget(fd)
        os.dup2(other.fileno(), fd, inheritable=False)
        other.close()
        self.register(fd, handler)
        return before

    def close(self, sock: Socket) -> None:
        """Forget a socket and close it, at the end of this turn if one is under way."""
        fd = sock.fileno()
        self.handlers.pop(fd, None)
        if self.crowd:
            self.crowd.pop(fd, None)
        if self.in_turn:
            self.closing.append(sock)
        else:
            sock.close()

    def send_at_end(self, send: Callable[[bytes], object], data: bytes) -> None:
        """Call ``send(data)`` at the end of this turn, or now if none is under way. An OSError is dropped.

        A socket tells of its reset only once: where that must not be lost, ``send`` catches it itself.
        """
        self.outbox.append((send, data))
        if not self.in_turn:
            self.flush()

    def flush(self) -> None:
        """Send what `send_at_end` has put off: before something that must come after it."""
        outbox, self.outbox = self.outbox, []
        for send, data in outbox:
            try:
                send(data)
            except OSError:
                pass

    def later(self, callback: Callable[[], object]) -> None:
        """Call once in the next turn: for a handler that has had its share of this one."""
        self.postponed.append(callback)

    def late(self) -> bool:
        """Whether this turn has used up its time. Who has done a part of much work asks, and then waits for another."""
        return monotonic() >= self.ends

    def next_turn(self, owner: object = None) -> Turn:
        """What a task awaits to go on in another turn, when there is time for it. For ``owner`` see `Turn`."""
        turn = Turn(self.loop, owner)
        self.later(turn.wake)
        return turn

    def spread(self, things: Iterable[T], act: Callable[[T], object]) -> None:
        """Call ``act`` for each of many things, some of them now, and the others in the next turns."""
        remaining = iter(things)

        def go_on() -> None:
            ends = monotonic() + LEAST
            for thing in remaining:
                act(thing)
                if monotonic() >= ends:
                    self.later(go_on)
                    return

        go_on()

    def begin_turn(self, now: float) -> float:
        """Returns when the time of the turn that begins is over."""
        self.started = now
        self.ends = now + BUDGET
        return self.ends

    def dispatch(self, batch: list[tuple[int, int]], whole: bool = True) -> list[tuple[int, int]]:
        """One turn: call the handlers, then those that were put off in the turn before. Returns events of others.

        ``whole`` is False for a part of a turn, which calls no more than the handlers.
        """
        handlers, postponed, crowd = self.handlers, self.postponed, self.crowd
        foreign = []
        waiting = len(postponed) if whole else 0
        self.in_turn = True
        before = monotonic()
        ends = self.begin_turn(before)
        crowded = len(crowd) > 0 or before >= ends
        try:
            for at in range(0, len(batch), LOOKS):
                for fd, events in batch[at : at + LOOKS]:
                    handler = handlers.get(fd)
                    if handler is None:
                        foreign.append((fd, events))
                        continue
                    if crowded and not is_prompt(handler):
                        crowd[fd] = crowd.get(fd, 0) | events
                        continue
                    try:
                        handler(events)
                    except Exception as exc:
                        self.report(exc)
                now = monotonic()
                if now >= ends:
                    crowded = True
                    if now - before > self.longest:
                        self.took(now - before, *(handlers.get(fd) for fd, _ in batch[at : at + LOOKS]))
                before = now
            if waiting or (crowd and whole):
                self.ends = max(ends, before + LEAST)
                if crowd:
                    self.call_crowd()
                if waiting:
                    self.call_postponed(waiting)
            if self.outbox:
                self.flush()
        finally:
            self.in_turn = False
            closing = self.closing
            if closing:
                for sock in closing:
                    sock.close()
                closing.clear()
        return foreign

    def call_crowd(self) -> None:
        """Call the handlers of events that have waited, one at least, and more while there is time."""
        crowd, before = self.crowd, monotonic()
        while crowd:
            fd, events = crowd.popitem(last=False)
            handler = self.handlers.get(fd)
            if handler is not None:
                before = self.call(before, handler, events)
                if before >= self.ends:
                    return

    def call_postponed(self, count: int) -> None:
        """Call up to ``count`` of what was put off, one at least, and more while there is time."""
        postponed, before = self.postponed, monotonic()
        for _ in range(count):
            before = self.call(before, postponed.popleft())
            if before >= self.ends:
                return

    def call(self, before: float, handler: Callable[..., object], *events: int) -> float:
        """Call a handler, and note how long it took since ``before``; returns the time now."""
        try:
            handler(*events)
        except Exception as exc:
            self.report(exc)
        now = monotonic()
        if now >= self.ends:
            self.took(now - before, handler)
        return now

    def took(self, seconds: float, *called: object) -> None:
        """Note which handlers took how long together when the turn's time was over."""
        if seconds > self.longest:
            self.longest = seconds
            self.culprits = [getattr(handler, "__self__", handler) for handler in called if handler is not None]

    def turn_over(self) -> None:
        """A turn is over, with the tasks that asyncio has run in it: count it if it was slow."""
        now = monotonic()
        self.lasted = now - self.started
        if self.lasted >= SLOW:
            self.slow_turn(now, self.lasted)
        if self.longest:
            self.longest, self.culprits = 0.0, []

    def slow_turn(self, now: float, seconds: float) -> None:
        """Count a slow turn, and tell whose it was."""
        self.slow_turns += 1
        culprits = self.culprits if self.longest > seconds / 2 else []
        for tell in self.watchdogs:
            tell(seconds, culprits, now)

    def report(self, exc: Exception) -> None:
        """A handler must not raise; if it does, the others go on."""
        self.loop.call_exception_handler({"message": "a reactor's handler failed", "exception": exc})


class SelectorReactor(Reactor):
    """Hosted by ReactorLoop."""

    def __init__(self, loop: ReactorLoop) -> None:
        super().__init__(loop)
        self.epoll = loop.reactor_selector.epoll
        loop.reactor_selector.reactor = self

    def register(self, fd: int, handler: Handler) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, IN | OUT | RDHUP | EDGE)

    def register_reader(self, fd: int, handler: Handler) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, IN | EDGE)

    def register_listener(self, fd: int, handler: Handler) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, IN | EXCLUSIVE)

    def mute(self, fd: int, muted: bool) -> None:
        self.epoll.modify(fd, OUT | RDHUP | EDGE if muted else IN | OUT | RDHUP | EDGE)

    def forget(self, fd: int) -> None:
        self.crowd.pop(fd, None)
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)


class NestedReactor(SelectorReactor):
    """An epoll is itself a descriptor that can be polled: the loop sees one reader for all sockets.

    The epoll is open only while something is registered, so that nothing stays behind in a loop that is not ours.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        Reactor.__init__(self, loop)
        self.epoll = select.epoll()
        self.epoll.close()
        self.scheduled = False

    def register(self, fd: int, handler: Handler) -> None:
        self.open()
        super().register(fd, handler)

    def register_reader(self, fd: int, handler: Handler) -> None:
        self.open()
        super().register_reader(fd, handler)

    def register_listener(self, fd: int, handler: Handler) -> None:
        self.open()
        super().register_listener(fd, handler)

    def forget(self, fd: int) -> None:
        super().forget(fd)
        self.close_if_idle()

    def close(self, sock: Socket) -> None:
        super().close(sock)
        self.close_if_idle()

    def open(self) -> None:
        """Begin to poll with the first registration."""
        if self.epoll.closed:
            self.epoll = select.epoll()
            self.loop.add_reader(self.epoll.fileno(), self.turn)

    def close_if_idle(self) -> None:
        """End with the last one."""
        if not self.handlers and not self.in_turn and not self.epoll.closed:
            if not self.loop.is_closed():
                self.loop.remove_reader(self.epoll.fileno())
            self.epoll.close()

    def turn(self) -> None:
        self.dispatch([] if self.epoll.closed else self.epoll.poll(0, BATCH))
        self.turn_over()
        self.close_if_idle()
        self.schedule()

    def later(self, callback: Callable[[], object]) -> None:
        self.postponed.append(callback)
        self.schedule()

    def schedule(self) -> None:
        """Have another turn in this loop even if no descriptor becomes ready."""
        if (self.postponed or self.crowd) and not self.scheduled and not self.in_turn:
            self.scheduled = True
            self.loop.call_soon(self.scheduled_turn)

    def scheduled_turn(self) -> None:
        self.scheduled = False
        self.turn()


class PortableReactor(Reactor):
    """Uses add_reader and add_writer of any loop: levels in place of edges, so interest follows `watch`."""

    edge_triggered = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.watched: dict[int, int] = {}
        self.scheduled = self.in_iteration = False

    def register(self, fd: int, handler: Handler) -> None:
        self.handlers[fd] = handler
        self.watched[fd] = 0

    def register_reader(self, fd: int, handler: Handler) -> None:
        self.register(fd, handler)
        self.watch(fd, IN)

    def register_listener(self, fd: int, handler: Handler) -> None:
        self.register_reader(fd, handler)

    def watch(self, fd: int, events: int) -> None:
        before = self.watched.get(fd)
        if before is None or before == events:
            return
        self.watched[fd] = events
        changed = before ^ events
        if changed & IN:
            self.loop.add_reader(fd, self.turn, fd, IN) if events & IN else self.loop.remove_reader(fd)
        if changed & OUT:
            self.loop.add_writer(fd, self.turn, fd, OUT) if events & OUT else self.loop.remove_writer(fd)

    def turn(self, fd: int, events: int) -> None:
        self.dispatch([(fd, events)], False)
        if self.crowd:
            self.schedule()

    def begin_turn(self, now: float) -> float:
        """asyncio calls for each descriptor: all that comes in one turn of its own is one turn."""
        if not self.in_iteration:
            self.in_iteration = True
            self.loop.call_soon(self.turn_over)  # called first in its next turn
            super().begin_turn(now)
        return self.ends

    def turn_over(self) -> None:
        self.in_iteration = False
        super().turn_over()

    def exchange(self, fd: int, other: socket.socket) -> socket.socket:
        watched = self.watched.get(fd, 0)
        before = super().exchange(fd, other)
        self.watch(fd, watched)
        return before

    def forget(self, fd: int) -> None:
        self.crowd.pop(fd, None)
        self.watch(fd, 0)
        self.watched.pop(fd, None)
        self.handlers.pop(fd, None)

    def close(self, sock: Socket) -> None:
        self.watch(sock.fileno(), 0)
        self.watched.pop(sock.fileno(), None)
        super().close(sock)

    def later(self, callback: Callable[[], object]) -> None:
        self.postponed.append(callback)
        self.schedule()

    def schedule(self) -> None:
        """Call what waits in the loop's next turn."""
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.scheduled_turn)

    def scheduled_turn(self) -> None:
        self.scheduled = False
        self.dispatch([])
        if self.postponed or self.crowd:
            self.schedule()


HOSTINGS = ("selector", "nested", "portable")
reactors: dict[asyncio.AbstractEventLoop, Reactor] = {}


def get_reactor(loop: asyncio.AbstractEventLoop | None = None) -> Reactor:
    """The reactor of a loop (default: the running one). It is made at the first call.

    TABI_REACTOR=portable or nested forces one of these.
    """
    loop = loop or asyncio.get_running_loop()
    reactor = reactors.get(loop)
    if reactor is None:
        for old in list(reactors):  # other threads with loops of their own change it too
            if old.is_closed():
                reactors.pop(old, None)
        reactor = reactors[loop] = make_reactor(loop, os.environ.get("TABI_REACTOR"))
    return reactor


def make_reactor(loop: asyncio.AbstractEventLoop, hosting: str | None) -> Reactor:
    """Choose the hosting: the forced one, else the best that the loop and the platform allow."""
    if hosting not in (None, "", *HOSTINGS):
        raise ValueError(f"TABI_REACTOR is {hosting!r}, expected one of {', '.join(HOSTINGS)}")
    if hosting == "portable" or not has_epoll():
        return PortableReactor(loop)
    if isinstance(loop, ReactorLoop) and hosting != "nested":
        return SelectorReactor(loop)
    return NestedReactor(loop)


def make_loop() -> asyncio.AbstractEventLoop:
    """The loop that tabi's own programs run on: ``asyncio.Runner(loop_factory=make_loop)``."""
    if not has_epoll():
        return asyncio.SelectorEventLoop(make_selector())
    if os.environ.get("TABI_REACTOR") in (None, "", "selector"):
        return ReactorLoop()
    return asyncio.new_event_loop()
