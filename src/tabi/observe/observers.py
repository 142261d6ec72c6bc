"""Observers of sessions: they get the events of each session. The access log is one, and so are ``on_open`` and
``on_close``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial

from tabi.session import Session

log = logging.getLogger("tabi")

Tell = Callable[[Session], object]


class SessionObserver:
    """Gets the events of each session, in the event loop: its methods must not take long.

    A subclass has the methods that it wants; the others cost nothing. An exception is logged, and stops nothing. The
    session belongs to the server: `Session.copy` gives one to keep.
    """

    title = "an observer of sessions"
    """What the log calls it."""

    def began(self, session: Session) -> object:
        """A client has connected, or asks again on the same connection."""

    def authenticated(self, session: Session) -> object:
        """The client has proved to be ``session.user``."""

    def decided(self, session: Session) -> object:
        """The rules and the program have decided, by ``session.rule``."""

    def resolved(self, session: Session) -> object:
        """The destination's name was resolved for a decision, to ``session.addresses``."""

    def connected(self, session: Session) -> object:
        """The destination is connected, or the association open."""

    def ended(self, session: Session) -> object:
        """The session is over, a refused one too: all is known of it. One that is ``silent`` has asked for nothing."""


EVENTS = ("began", "authenticated", "decided", "resolved", "connected", "ended")


def check_observer(observer: object) -> SessionObserver:
    """Return an observer, or raise TypeError and say what is wrong with it."""
    if isinstance(observer, type):
        raise TypeError(f"observers: the class {observer.__name__} itself, expected {observer.__name__}()")
    if not isinstance(observer, SessionObserver):
        raise TypeError(f"observers: {type(observer).__name__}, expected a tabi.SessionObserver")
    for event in EVENTS:
        method = getattr(observer, event)
        if not callable(method) or inspect.iscoroutinefunction(method):
            raise TypeError(f"observers: {type(observer).__name__}.{event} is not a plain method: nothing awaits it")
    return observer


def methods_of(observers: Sequence[SessionObserver], event: str) -> tuple[Tell, ...]:
    """The observers that want an event. A method that has only a docstring does not count."""
    own = [one for one in observers if getattr(type(one), event) is not getattr(SessionObserver, event)]
    return tuple(getattr(one, event) for one in own)


def tell(methods: tuple[Tell, ...], session: Session) -> None:
    """Tell all observers."""
    for method in methods:
        try:
            method(session)
        except Exception:
            say_failed(method)


def say_failed(method: Tell) -> None:
    """Log what an observer has raised."""
    log.exception("%s failed", getattr(getattr(method, "__self__", None), "title", method))


class Watch:
    """Gets the events of a session between its begin and its end; there is none if no observer wants them.

    Args:
        observers: all of them.
    """

    def __init__(self, observers: Sequence[SessionObserver]) -> None:
        events = ("authenticated", "decided", "resolved", "connected")
        self.methods = [methods_of(observers, event) for event in events]
        self.authenticated, self.decided, self.resolved, self.connected = (
            partial(tell, methods) for methods in self.methods
        )

    def __bool__(self) -> bool:
        return any(self.methods)


class OnOpen(SessionObserver):
    """Calls ``on_open`` of a program."""

    title = "on_open"

    def __init__(self, callback: Tell) -> None:
        self.callback = callback

    def connected(self, session: Session) -> None:
        """See `SessionObserver`."""
        self.callback(session)


class OnClose(SessionObserver):
    """Calls ``on_close`` of a program."""

    title = "on_close"

    def __init__(self, callback: Tell) -> None:
        self.callback = callback

    def ended(self, session: Session) -> None:
        """See `SessionObserver`."""
        if not session.silent:
            self.callback(session)
