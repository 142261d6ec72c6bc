"""What tasks await: to a task it is a future of asyncio, and the reactor resumes the task at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any


class Readiness:
    """The object that a task awaits on a stream; used again for each wait.

    To asyncio it is a future (the protocol of ``_asyncio_future_blocking``, which `asyncio.isfuture` tests for): the
    task adds its callback, and a cancelled task calls ``cancel``. `wake` may be called from the reactor only, where no
    task is running; from anywhere else it is `wake_soon`.
    """

    __slots__ = ("_asyncio_future_blocking", "callback", "context", "error", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self.loop = loop
        self.callback: Callable[[Any], object] | None = None
        self.context: Context | None = None
        self.error: BaseException | None = None

    def __await__(self) -> Generator[Readiness, None, None]:
        if self.callback is not None or self.error is not None:  # an error: for a task that has not run yet
            raise RuntimeError("another task already waits for this")
        self._asyncio_future_blocking = True
        yield self

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Called by the task that awaits this."""
        self.callback, self.context = callback, context

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop, as asyncio's futures say it."""
        return self.loop

    def result(self) -> None:
        """Called by the task when it is woken: raises what it was woken with."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame, and this frame would have it: a circle

    def cancel(self, msg: object = None) -> bool:
        """Called by ``task.cancel()``."""
        if self.callback is None:
            return False
        self.wake_soon(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def wake(self) -> None:
        """Resume the waiting task now."""
        callback, context = self.callback, self.context
        self.callback = self.context = None
        if context is not None and callback is not None:
            context.run(callback, self)

    def wake_soon(self, error: BaseException | None = None) -> None:
        """Resume the waiting task in the loop's next turn, with an error if one is given."""
        callback, context = self.callback, self.context
        self.callback = self.context = None
        if callback is not None:
            self.error = error
            self.loop.call_soon(callback, self, context=context)


class Turn(Readiness):
    """What a task awaits to go on in another turn. ``owner`` tells whose work it is: a stream, or the task."""

    __slots__ = ("owner",)

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: object) -> None:
        super().__init__(loop)
        self.owner = owner or asyncio.current_task(loop)
