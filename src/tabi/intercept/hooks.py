"""Hooks: what programs and scripts want to see of interception, and how they are called.

Of each event there is a tuple of handlers, empty where nobody wants it: then it costs nothing. A ``def`` runs inside
the loop and must not wait; an ``async def`` has a deadline, and only its own flow waits; a function marked with
`in_thread` runs in a thread. A hook that raises is logged with its traceback, and what it changed is undone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from copy import copy
from time import monotonic
from types import CoroutineType
from typing import Any, TypeVar

from tabi.errors import RemoteProtocolError, TabiError, TooLarge
from tabi.intercept.events import ClientHelloInfo, DatagramInfo, WebSocketMessage
from tabi.intercept.flow import Flow, Message
from tabi.intercept.threads import Threads
from tabi.policy.hook import is_async

log = logging.getLogger("tabi")

FORMS = {
    "client_hello": ("hello",),
    "tls_established": ("tls", "connection"),
    "request": ("flow",),
    "response": ("flow",),
    "request_body": ("flow", "chunk"),
    "response_body": ("flow", "chunk"),
    "websocket_message": ("flow", "message"),
    "tcp_data": ("connection", "direction", "data"),
    "udp_data": ("datagram",),
    "flow_end": ("flow",),
    "error": ("flow",),
}
"""The arguments of each method, beside ``self``."""

EVENTS = tuple(FORMS)
"""The names of the methods, in the order in which their events come."""

DEADLINE = 10.0
"""Seconds that a hook may wait."""

QUIET = 10.0
"""Seconds from one message about hooks of datagrams that fail to the next."""

SLOW = 0.05
"""Seconds in the loop from which a hook is remembered for the watchdog, whose turns are slow from 0.1 s on."""

Function = TypeVar("Function", bound=Callable[..., Any])
Octets = bytes | bytearray | memoryview


class HookFailed(TabiError):
    """A hook raised or took too long, and ``on_error = "close"`` has the flow end."""


def in_thread(function: Function) -> Function:
    """Mark a hook that blocks: it runs in a thread, within its deadline, and only its own flow waits for it.

    Raises:
        TypeError: it is async; such a hook waits without a thread.
    """
    if is_async(function):
        raise TypeError(f"{function.__qualname__} is async, expected an ordinary function for a thread")
    function.__tabi_in_thread__ = True  # type: ignore[attr-defined]
    return function


class Handler:
    """One method of one hook object.

    Attributes:
        waits: whether its call has to be awaited.
        name: for the log.
    """

    __slots__ = ("function", "hooks", "name", "waits")

    def __init__(self, function: Callable[..., Any], name: str, hooks: Hooks) -> None:
        self.name = name
        self.hooks = hooks
        self.function = function
        self.waits = True
        if is_async(function):
            self.function = lambda *args: Steps(function(*args), self)
        elif getattr(function, "__tabi_in_thread__", False):
            self.function = lambda *args: run_on_copies(hooks.threads, function, args)
        else:
            self.waits = False

    def __repr__(self) -> str:
        return self.name

    def took(self, seconds: float, now: float) -> None:
        """It has held up the loop: remember it for the watchdog."""
        self.hooks.slow = (now - seconds, now, self.name)


class Steps:
    """Runs a coroutine, and looks at the clock around each of its steps."""

    __slots__ = ("coroutine", "handler")

    def __init__(self, coroutine: CoroutineType[Any, Any, Any], handler: Handler) -> None:
        self.coroutine = coroutine
        self.handler = handler

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self.coroutine
        step: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            began = monotonic()
            try:
                awaited = step(value)
            except StopIteration as done:
                return done.value
            finally:
                value = None  # an exception and this frame would hold each other
                if (now := monotonic()) - began > SLOW:
                    self.handler.took(now - began, now)
            try:
                value = yield awaited
                step = coroutine.send
            except BaseException as exc:
                value = exc
                step = coroutine.throw


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
        self.threads = Threads()
        self.quiet_until = 0.0
        self.slow = (0.0, 0.0, "")  # when the last slow call began and ended, and whose it was
        self.replace(objects)

    def replace(self, objects: Iterable[object]) -> None:
        """Call the methods of other objects from now on. Raises TypeError as `check_hook`; then nothing is changed."""
        objects = tuple(objects)
        found: dict[str, list[Handler]] = {event: [] for event in EVENTS}
        for one in objects:
            for event in check_hook(one):
                found[event].append(Handler(getattr(one, event), f"{type(one).__name__}.{event}", self))
        self.objects = objects
        for event, handlers in found.items():
            setattr(self, event, tuple(handlers))

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

    async def ask(self, handler: Handler, *args: Any) -> Any:
        """Call one handler within the deadline. Raises whatever it raises. A cancellation is the flow's own."""
        if not handler.waits:
            return ask_now(handler, *args)
        try:
            async with asyncio.timeout(self.seconds) as deadline:
                return await handler.function(*args)
        except TimeoutError as exc:
            if deadline.expired():
                raise Failure(f"not done within {self.seconds:g} s") from exc
            raise
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Failure("it raised CancelledError") from exc
        except SystemExit as exc:
            raise Failure("it raised SystemExit") from exc

    async def call(self, handler: Handler, *args: Any) -> Any:
        """Call one handler within the deadline; None where it fails.

        Raises:
            HookFailed: it failed, and the flow is to end.
        """
        try:
            return await self.ask(handler, *args)
        except Exception as exc:
            self.failed(handler, exc)
        return None

    def failed(self, handler: Handler, exc: Exception) -> None:
        """Log that a hook has failed. Raises HookFailed where the flow is to end."""
        if handler not in self.udp_data or self.may_log(monotonic()):
            self.log_failure(handler, exc)
        if self.close_on_error:
            raise HookFailed(f"hook {handler} failed") from exc

    def may_log(self, now: float) -> bool:
        """Whether a failure with a datagram is logged: there may be very many of these."""
        if now < self.quiet_until:
            return False
        self.quiet_until = now + QUIET
        return True

    @staticmethod
    def log_failure(handler: Handler, exc: Exception) -> None:
        """Log it, with the traceback where the hook is to blame."""
        if isinstance(exc, Failure | TooLarge | RemoteProtocolError | ConnectionError):  # it is not to blame
            what = str(exc) if isinstance(exc, Failure) else f"{type(exc).__name__}: {exc}"
            log.error("hook %s: %s", handler, what)
        else:
            log.error("hook %s failed", handler, exc_info=exc)

    async def on_message(self, handlers: Handlers, flow: Flow, message: Message) -> None:
        """Show a head to hooks, one after another, until one of them answers in the destination's place.

        Raises:
            HookFailed: one failed, and the flow is to end.
        """
        instead = flow.instead
        if message is not flow.request:
            flow.request.pass_on()
        try:
            for handler in handlers:
                before = message.state()
                try:
                    await self.ask(handler, flow)
                except Exception as exc:
                    message.restore(before)
                    flow.instead = instead
                    self.failed(handler, exc)
                if flow.instead is not instead:
                    return
        finally:
            message.pass_on()  # a task that the hook has left behind must not read beside whoever carries it

    def show(self, handlers: Handlers, flow: Flow, message: Message) -> None:
        """As `on_message`, for handlers that do not wait. Raises HookFailed."""
        instead = flow.instead
        for handler in handlers:
            before = message.state()
            try:
                ask_now(handler, flow)
            except Exception as exc:
                message.restore(before)
                flow.instead = instead
                self.failed(handler, exc)
            if flow.instead is not instead:
                return

    def tell_now(self, handlers: Handlers, flow: Flow) -> None:
        """As `tell`, for handlers that do not wait."""
        for handler in handlers:
            try:
                ask_now(handler, flow)
            except Exception as exc:
                with suppress(HookFailed):
                    self.failed(handler, exc)

    def show_data(self, handlers: Handlers, data: bytes, *args: Any) -> bytes:
        """As `on_data`, for handlers that do not wait. Raises HookFailed."""
        for handler in handlers:
            try:
                found = ask_now(handler, *args, data)
                if found is not None:
                    data = as_octets(found)
            except Exception as exc:
                self.failed(handler, exc)
        return data

    async def on_chunk(self, handlers: Handlers, flow: Flow, chunk: bytes) -> bytes:
        """Show a piece of content to hooks; returns what goes on in its place. Raises HookFailed."""
        return await self.on_data(handlers, chunk, flow)

    async def on_data(self, handlers: Handlers, data: bytes, *args: Any) -> bytes:
        """Show octets to hooks, as the last argument; returns what goes on in their place. Raises HookFailed."""
        for handler in handlers:
            try:
                found = await self.ask(handler, *args, data)
                if found is not None:
                    data = as_octets(found)
            except Exception as exc:
                self.failed(handler, exc)
        return data

    async def on_event(self, handlers: Handlers, event: Event, *args: Any) -> None:
        """Show something to hooks that they may change or drop, as the last argument; the others see what one has
        changed, unless it is dropped. Raises HookFailed."""
        for handler in handlers:
            before = fields_of(event)
            try:
                await self.ask(handler, *args, event)
            except Exception as exc:
                restore(event, before)
                self.failed(handler, exc)
            if getattr(event, "dropped", False):
                return

    def show_event(self, handlers: Handlers, event: Event, *args: Any) -> None:
        """As `on_event`, for handlers that do not wait. Raises HookFailed."""
        for handler in handlers:
            before = fields_of(event)
            try:
                ask_now(handler, *args, event)
            except Exception as exc:
                restore(event, before)
                self.failed(handler, exc)
            if getattr(event, "dropped", False):
                return

    async def tell(self, handlers: Handlers, *args: Any) -> None:
        """Tell hooks of something that they cannot change. Never raises but for a cancellation."""
        for handler in handlers:
            try:
                await self.call(handler, *args)
            except HookFailed:
                pass

    def slow_since(self, when: float) -> str | None:
        """The hook that was slow in the loop since a moment (`time.monotonic`), for the watchdog."""
        began, ended, name = self.slow
        return f"hook {name} ({(ended - began) * 1000:.0f} ms)" if began >= when and name else None

    def close(self) -> None:
        """End the threads; hooks that block in them are not waited for."""
        self.threads.close()


Event = WebSocketMessage | DatagramInfo | ClientHelloInfo


def fields_of(event: Event) -> list[Any]:
    """What a hook may change of an event."""
    return [getattr(event, name) for name in event.__slots__]


def restore(event: Event, before: list[Any]) -> None:
    """Undo what was changed since `fields_of`."""
    for name, value in zip(event.__slots__, before, strict=True):
        setattr(event, name, value)


class Failure(TabiError):
    """Why a hook has failed, where it is not to blame for an error of its own."""


def ask_now(handler: Handler, *args: Any) -> Any:
    """Call a handler that does not wait. Raises whatever it raises, but nothing that ends a program or a task."""
    began = monotonic()
    try:
        return handler.function(*args)
    except (SystemExit, asyncio.CancelledError) as exc:
        raise Failure(f"it raised {type(exc).__name__}") from exc
    finally:
        if (now := monotonic()) - began > SLOW:
            handler.took(now - began, now)


async def run_on_copies(threads: Threads, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function in a thread with copies of what it may change, and take that over when it has returned: one that
    comes too late changes nothing."""
    copies = [copy_of(one) for one in args]
    found = await threads.run(function, *copies)
    for one, copied in zip(args, copies, strict=True):
        if isinstance(one, Flow) and isinstance(copied, Flow):
            one.take(copied)
        elif isinstance(one, Event) and isinstance(copied, Event):
            restore(one, fields_of(copied))
    return found


def copy_of(argument: object) -> object:
    """A copy of what a hook may change; anything else is itself."""
    if isinstance(argument, Flow):
        return argument.copy()
    return copy(argument) if isinstance(argument, Event) else argument


def as_octets(found: object) -> bytes:
    """What a hook has returned. Raises TypeError."""
    if not isinstance(found, Octets):
        raise TypeError(f"the hook returned {type(found).__name__}, expected bytes or None")
    return bytes(found)


def methods_of(one: object) -> Sequence[str]:
    """The events that an object, or a class, has methods for."""
    return [event for event in EVENTS if is_method(getattr(one, event, None))]


def is_method(found: object) -> bool:
    """Whether an attribute of this kind is meant to be called."""
    return callable(found) and not isinstance(found, type)


def check_hook(one: object) -> Sequence[str]:
    """The events that an object has methods for. Raises TypeError, which says what is wrong with it."""
    if isinstance(one, type):
        raise TypeError(f"{one.__name__} is a class, expected an object with hooks: {one.__name__}()")
    name, events = type(one).__name__, methods_of(one)
    if not events:
        raise TypeError(f"{name} has none of the methods {', '.join(EVENTS)}")
    for event in events:
        check_method(one, event)
    return events


def check_method(one: object, event: str) -> None:
    """Raise TypeError, with the right form, where a method takes other arguments than its event has, or yields."""
    method, form = getattr(one, event), FORMS[event]
    name = f"{type(one).__name__}.{event}"
    expected = f"expected def {event}({', '.join(('self', *form))})"
    try:
        inspect.signature(method).bind(*form)
    except TypeError:
        raise TypeError(f"{name} takes other arguments, {expected}") from None
    except ValueError:  # one of C, which says nothing of its arguments
        pass
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise TypeError(f"{name} yields, {expected}")
