"""Hooks: what programs and scripts want to see of interception, and how they are called.

Of each event there is a tuple of handlers, empty where nobody wants it: then it costs nothing. A ``def`` runs inside
the loop and must not wait; an ``async def`` has a deadline, and only its own flow waits; a function marked with
`in_thread` runs in a thread. A hook that raises is logged with its traceback, and what it changed is undone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tabi.errors import TabiError
from tabi.intercept.flow import Flow, Message

log = logging.getLogger("tabi")

EVENTS = (
    "client_hello",
    "tls_established",
    "request",
    "response",
    "request_body",
    "response_body",
    "websocket_message",
    "tcp_data",
    "udp_data",
    "flow_end",
    "error",
)
"""The names of the methods, in the order in which their events come."""

THREADS = 8
"""Threads for hooks that block, in a worker."""

DEADLINE = 10.0
"""Seconds that a hook may wait."""

Function = TypeVar("Function", bound=Callable[..., Any])


class HookFailed(TabiError):
    """A hook raised or took too long, and ``on_error = "close"`` has the flow end."""


def in_thread(function: Function) -> Function:
    """Mark a hook that blocks: it runs in a thread, within its deadline, and only its own flow waits for it."""
    function.__tabi_in_thread__ = True  # type: ignore[attr-defined]
    return function


class Handler:
    """One method of one hook object.

    Attributes:
        waits: whether its call has to be awaited.
        name: for the log.
    """

    __slots__ = ("function", "name", "waits")

    def __init__(self, function: Callable[..., Any], name: str, threads: Callable[[], ThreadPoolExecutor]) -> None:
        self.name = name
        self.waits = inspect.iscoroutinefunction(function)
        self.function = function
        if getattr(function, "__tabi_in_thread__", False) and not self.waits:
            self.waits = True

            def threaded(*args: Any) -> Awaitable[Any]:
                return asyncio.get_running_loop().run_in_executor(threads(), function, *args)

            self.function = threaded

    def __repr__(self) -> str:
        return self.name


Handlers = tuple[Handler, ...]


class Hooks:
    """All hooks of one worker, or of one ``[[intercept]]``.

    Args:
        objects: each has at least one method whose name is in EVENTS; the first is called first.
        seconds: that a hook may wait.
        close_on_error: whether a flow ends where a hook fails.
    """

    client_hello: Handlers
    tls_established: Handlers
    request: Handlers
    response: Handlers
    request_body: Handlers
    response_body: Handlers
    websocket_message: Handlers
    tcp_data: Handlers
    udp_data: Handlers
    flow_end: Handlers
    error: Handlers

    def __init__(self, objects: Iterable[object] = (), seconds: float = DEADLINE, close_on_error: bool = False) -> None:
        self.seconds = seconds
        self.close_on_error = close_on_error
        self.pool: ThreadPoolExecutor | None = None
        self.replace(objects)

    def replace(self, objects: Iterable[object]) -> None:
        """Call the methods of other objects from now on."""
        self.objects = tuple(objects)
        for event in EVENTS:
            found = [
                Handler(function, f"{type(one).__name__}.{event}", self.threads)
                for one in self.objects
                if callable(function := getattr(one, event, None))
            ]
            setattr(self, event, tuple(found))

    def threads(self) -> ThreadPoolExecutor:
        """The threads for hooks that block, made when the first one runs."""
        if self.pool is None:
            self.pool = ThreadPoolExecutor(THREADS, "tabi-hook")
        return self.pool

    @property
    def of_flows(self) -> bool:
        """Whether a hook wants to see requests or responses at all."""
        return bool(
            self.request
            or self.response
            or self.request_body
            or self.response_body
            or self.websocket_message
            or self.flow_end
            or self.error
        )

    async def call(self, handler: Handler, *args: Any) -> Any:
        """Call one handler within the deadline; None where it fails.

        Raises:
            HookFailed: it failed, and the flow is to end.
        """
        try:
            if not handler.waits:
                return handler.function(*args)
            async with asyncio.timeout(self.seconds):
                return await handler.function(*args)
        except Exception as exc:
            self.failed(handler, exc)
        return None

    def failed(self, handler: Handler, exc: Exception) -> None:
        """Log that a hook has failed. Raises HookFailed where the flow is to end."""
        if isinstance(exc, TimeoutError):
            log.error("hook %s: not done within %g s", handler, self.seconds)
        elif isinstance(exc, OSError | TabiError):  # of the content that it waited for
            log.warning("hook %s: %s: %s", handler, type(exc).__name__, exc)
        else:
            log.error("hook %s failed", handler, exc_info=exc)
        if self.close_on_error:
            raise HookFailed(f"hook {handler} failed") from exc

    async def on_message(self, handlers: Handlers, flow: Flow, message: Message) -> None:
        """Show a head to hooks, one after another, until one of them answers in the destination's place.

        Raises:
            HookFailed: one failed, and the flow is to end.
        """
        for handler in handlers:
            before = save(message)
            try:
                if handler.waits:
                    async with asyncio.timeout(self.seconds):
                        await handler.function(flow)
                else:
                    handler.function(flow)
            except Exception as exc:
                restore(message, before)
                flow.instead = None
                self.failed(handler, exc)
            if flow.instead is not None:
                return

    async def on_chunk(self, handlers: Handlers, flow: Flow, chunk: bytes) -> bytes:
        """Show a piece of content to hooks; returns what goes on in its place. Raises HookFailed."""
        for handler in handlers:
            found = await self.call(handler, flow, chunk)
            if found is not None:
                chunk = bytes(found)
        return chunk

    async def tell(self, handlers: Handlers, *args: Any) -> None:
        """Tell hooks of something that they cannot change. Never raises but for a cancellation."""
        for handler in handlers:
            try:
                await self.call(handler, *args)
            except HookFailed:
                pass

    def close(self) -> None:
        """End the threads; hooks that block in them are not waited for."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.pool = None


Saved = tuple[Any, ...]
STATE = ("method", "_target", "status", "reason", "_content")


def save(message: Message) -> Saved:
    """What a hook may change of a message. It costs no copy: a change makes a new list of fields."""
    headers = message.headers
    return headers._raw, headers.changed, *(getattr(message, name, None) for name in STATE)


def restore(message: Message, saved: Saved) -> None:
    """Undo what a hook has changed."""
    headers = message.headers
    headers._raw, headers.changed = saved[:2]
    for name, value in zip(STATE, saved[2:], strict=True):
        if hasattr(message, name):
            setattr(message, name, value)


def methods_of(one: object) -> Sequence[str]:
    """The events that an object, or a class, has methods for."""
    return [event for event in EVENTS if callable(getattr(one, event, None))]
