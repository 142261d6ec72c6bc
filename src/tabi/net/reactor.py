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
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

Handler = Callable[[int], object]
Selected = list[tuple[selectors.SelectorKey, int]]

# The values of Linux' epoll, on every platform.
IN, OUT, ERR, HUP, RDHUP = 0x001, 0x004, 0x008, 0x010, 0x2000
BROKEN = ERR | HUP
ENDED = ERR | HUP | RDHUP
READABLE = IN | ENDED
EDGE = 1 << 31
EXCLUSIVE = 1 << 28

BATCH = 256
"""Events taken from the kernel in one call."""


class Socket(Protocol):
    """A socket to close: `socket.socket`, or the C class below it."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


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

    def close(self, sock: Socket) -> None:
        """Forget a socket and close it, at the end of this turn if one is under way."""
        self.handlers.pop(sock.fileno(), None)
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

    def dispatch(self, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """One turn: call the handlers, then those that were put off in the turn before. Returns events of others."""
        handlers, postponed = self.handlers, self.postponed
        foreign = []
        waiting = len(postponed)
        self.in_turn = True
        try:
            for fd, events in batch:
                handler = handlers.get(fd)
                if handler is None:
                    foreign.append((fd, events))
                    continue
                try:
                    handler(events)
                except Exception as exc:
                    self.report(exc)
            for _ in range(waiting):
                try:
                    postponed.popleft()()
                except Exception as exc:
                    self.report(exc)
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

    def report(self, exc: Exception) -> None:
        """A handler must not raise; if it does, the others go on."""
        self.loop.call_exception_handler({"message": "a reactor's handler failed", "exception": exc})


class ReactorSelector(selectors.BaseSelector):
    """A selector for asyncio's own loop whose one poll serves the reactor's handlers too."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.keys: dict[int, selectors.SelectorKey] = {}
        self.reactor: SelectorReactor | None = None

    @staticmethod
    def mask(events: int) -> int:
        return (IN if events & selectors.EVENT_READ else 0) | (OUT if events & selectors.EVENT_WRITE else 0)

    def number(self, fileobj: Any) -> int:
        """The descriptor of a file object; if that was closed, the one it was registered with."""
        fd: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return next((key.fd for key in self.keys.values() if key.fileobj is fileobj), fd) if fd < 0 else fd

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector`; this holds for the methods below too."""
        fd = self.number(fileobj)
        if fd in self.keys:
            raise KeyError(f"{fileobj!r} is already registered")
        self.epoll.register(fd, self.mask(events))
        key = self.keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        fd = self.number(fileobj)
        key = self.keys.pop(fd)
        try:
            self.epoll.unregister(fd)
        except OSError:  # closed before it was unregistered, as asyncio allows
            pass
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = self.number(fileobj)
        key = self.keys[fd]
        if events != key.events:
            self.epoll.modify(fd, self.mask(events))
        key = self.keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return key

    def select(self, timeout: float | None = None) -> Selected:
        reactor = self.reactor
        if timeout is None:
            timeout = -1.0
        if reactor is not None and reactor.postponed:
            timeout = 0.0
        try:
            batch = self.epoll.poll(timeout, BATCH)
        except InterruptedError:
            return []
        if reactor is not None:
            batch = reactor.dispatch(batch)
        ready = []
        for fd, events in batch:
            key = self.keys.get(fd)
            if key is not None:
                seen = (events & ~IN and selectors.EVENT_WRITE) | (events & ~OUT and selectors.EVENT_READ)
                ready.append((key, seen & key.events))
        return ready

    def close(self) -> None:
        self.epoll.close()
        self.keys.clear()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return Registered(self)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self.keys[self.number(fileobj)]


class Registered(Mapping[Any, selectors.SelectorKey]):
    """The registrations of a ReactorSelector, by number and by file object: asyncio uses both."""

    def __init__(self, selector: ReactorSelector) -> None:
        self.selector = selector

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:
        return self.selector.get_key(fileobj)

    def __iter__(self) -> Iterator[int]:
        return iter(self.selector.keys)

    def __len__(self) -> int:
        return len(self.selector.keys)


class ReactorLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with the reactor inside its selector: ``asyncio.Runner(loop_factory=ReactorLoop)``."""

    def __init__(self) -> None:
        self.reactor_selector = ReactorSelector()
        super().__init__(self.reactor_selector)


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
        self.close_if_idle()
        self.schedule()

    def later(self, callback: Callable[[], object]) -> None:
        self.postponed.append(callback)
        self.schedule()

    def schedule(self) -> None:
        """Have another turn in this loop even if no descriptor becomes ready."""
        if self.postponed and not self.scheduled and not self.in_turn:
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
        self.scheduled = False

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
        self.dispatch([(fd, events)])

    def forget(self, fd: int) -> None:
        self.watch(fd, 0)
        self.watched.pop(fd, None)
        self.handlers.pop(fd, None)

    def close(self, sock: Socket) -> None:
        self.watch(sock.fileno(), 0)
        self.watched.pop(sock.fileno(), None)
        super().close(sock)

    def later(self, callback: Callable[[], object]) -> None:
        self.postponed.append(callback)
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self.scheduled_turn)

    def scheduled_turn(self) -> None:
        self.scheduled = False
        self.dispatch([])


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
    if hosting == "portable" or sys.platform != "linux":
        return PortableReactor(loop)
    if isinstance(loop, ReactorLoop) and hosting != "nested":
        return SelectorReactor(loop)
    return NestedReactor(loop)


def make_loop() -> asyncio.AbstractEventLoop:
    """The loop that tabi's own programs run on: ``asyncio.Runner(loop_factory=make_loop)``."""
    if sys.platform == "linux" and os.environ.get("TABI_REACTOR") in (None, "", "selector"):
        return ReactorLoop()
    return asyncio.new_event_loop()
