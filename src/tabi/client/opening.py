"""Something that is being opened through a proxy: to be awaited, used in ``async with``, or run as a task."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Protocol, TypeVar


class Closable(Protocol):
    """The type of the thing that is opened through a proxy."""

    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closable)


class Opening(Coroutine[Any, Any, Opened]):
    """A coroutine that opens something, once.

    ``await`` it, or hand it to `asyncio.create_task` or an `asyncio.TaskGroup`, and close what it returns yourself. Or
    use it in ``async with``, which closes it. Python warns if none of this is done.
    """

    __slots__ = ("coroutine", "opened")

    def __init__(self, coroutine: Coroutine[Any, Any, Opened]) -> None:
        self.coroutine = coroutine
        self.opened: Opened | None = None

    def __repr__(self) -> str:
        return f"<Opening {getattr(self.coroutine, '__qualname__', self.coroutine)}>"

    def send(self, value: Any, /) -> Any:
        """See `collections.abc.Coroutine`."""
        return self.coroutine.send(value)

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any:
        """See `collections.abc.Coroutine`."""
        return self.coroutine.throw(typ if val is None else val)

    def close(self) -> None:
        """End it before it has opened anything."""
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Opened]:
        return self.coroutine.__await__()

    async def __aenter__(self) -> Opened:
        self.opened = await self.coroutine
        return self.opened

    async def __aexit__(self, *exc: object) -> None:
        if self.opened is not None:
            self.opened.close()
