"""The decide hook: a program that is asked after the rules, and has the last word. Its answer is checked here.

A hook whose answer is awaited is called in `ingress.hook`: nothing in this package waits.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, get_args

from tabi.session import Action, Decision, Session
from tabi.wire.address import Address

DecideHook = Callable[[Session], "Decision | Awaitable[Decision | None] | None"]
"""What a program decides for a session after the rules, whose decision is in ``session.decision``; None keeps it."""

ACTIONS: tuple[str, ...] = get_args(Action)

REPLY_CODES = range(1, 9)


def is_async(hook: object) -> bool:
    """Whether the answer of a hook has to be awaited."""
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__)


def ask_hook(hook: DecideHook, session: Session, destination: Address, decision: Decision) -> Decision:
    """Ask a hook that answers at once.

    Raises:
        TypeError, ValueError: it has returned something other than a decision.
        Exception: whatever the hook raises.
    """
    asked = prepare(session, destination, decision)
    try:
        said = hook(asked)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as exc:  # sys.exit() and the like end a program, not ours
        raise RuntimeError(f"decide raised {type(exc).__name__}") from exc
    return decision if said is None else check_said(said)


def prepare(session: Session, destination: Address, decision: Decision) -> Session:
    """The session as the hook sees it: a copy if it asks for another destination, as datagrams do."""
    if destination != session.destination:
        session = session.copy()
        session.destination = destination
    session.decision = decision
    return session


def check_said(said: Any) -> Decision:
    """Check what a hook has returned. Raises TypeError and ValueError."""
    if not isinstance(said, Decision) or said.action not in ACTIONS:
        raise TypeError(f"decide returned {said!r}, expected None or tabi.Decision of one of {', '.join(ACTIONS)}")
    via, code, delay = said.via, said.reply_code, said.delay
    if via is not None and not isinstance(via, str) and not is_egress(via):
        raise TypeError(f"decide returned via={via!r}, expected the name of an egress, a URL or a tabi.Egress")
    if code is not None and (not isinstance(code, int) or code not in REPLY_CODES):
        raise ValueError(f"decide returned reply_code={code!r}, expected 1 to 8")
    if delay != 0 and (not isinstance(delay, int | float) or not 0 < delay < float("inf")):
        raise ValueError(f"decide returned delay={delay!r}, expected seconds")
    return said


def is_egress(via: object) -> bool:
    """Whether an object has what every egress has."""
    return callable(getattr(via, "open", None)) and isinstance(getattr(via, "name", None), str)
