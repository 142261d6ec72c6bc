"""A selector for asyncio's own loop whose one poll serves the reactor's handlers too."""

from __future__ import annotations

import asyncio
import select
import selectors
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tabi.net.reactor import SelectorReactor

Selected = list[tuple[selectors.SelectorKey, int]]

IN, OUT = 0x001, 0x004
BATCH = 256
"""Events taken from the kernel in one call."""


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
        if reactor is not None:
            reactor.turn_over()
            if reactor.postponed or reactor.crowd:
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
