"""What a decide hook may say, and how it is asked where it answers at once."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from rule_cases import session
from tabi.policy.hook import ask_hook, check_said, is_async
from tabi.session import Decision, Session
from tabi.wire.address import Address

WHERE = Address("x.example", 25)


class Slow:
    """An object that is asked as a function with async is."""

    async def __call__(self, asked: Session) -> None:
        """Say nothing."""

    def at_once(self, asked: Session) -> None:
        """Say nothing, without async."""


def test_what_has_to_be_awaited() -> None:
    """Functions, methods, partial ones and objects; classes are asked at once, whatever their objects are."""
    slow = Slow()
    for hook in (slow, slow.__call__, partial(slow.__call__)):
        assert is_async(hook)
    for other in (slow.at_once, partial(slow.at_once), lambda asked: None, Slow, print):
        assert not is_async(other)


def test_the_session_itself_is_shown_where_it_asks_for_the_destination() -> None:
    """What the rules decided is in it; for another destination, as of a datagram, it is a copy."""
    seen: list[Session] = []
    asks = session()
    asks.destination = WHERE
    assert ask_hook(seen.append, asks, WHERE, Decision("deny")) == Decision("deny")
    assert seen.pop() is asks
    assert asks.decision == Decision("deny")
    other = Address("y.example", 26)
    assert ask_hook(lambda asked: seen.append(asked) or Decision(), asks, other, Decision("deny")) == Decision()  # type: ignore[func-returns-value]
    assert (seen[0].destination, asks.destination) == (other, WHERE)


@pytest.mark.parametrize(
    "said",
    [
        Decision(),
        Decision("deny", "rule", reason="why", reply_code=8, delay=0.5),
        Decision("reset", delay=3),
        Decision(via="name"),
        Decision(via="socks5://127.0.0.1:1"),
        Decision(via=SimpleNamespace(open=print, name="mine")),
        Decision(limits={"connections": 1}),
    ],
)
def test_what_may_be_said(said: Decision) -> None:
    """It is taken as it is."""
    assert check_said(said) is said


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("no", "decide returned 'no', expected None or tabi.Decision of one of allow, deny, reset, drop"),
        (Decision("perhaps"), "decide returned Decision(action='perhaps'"),  # type: ignore[arg-type]
        (Decision(via=SimpleNamespace(open=print)), "decide returned via=namespace("),
        (Decision(via=SimpleNamespace(open=1, name="x")), "decide returned via=namespace("),
        (Decision(reply_code=0), "decide returned reply_code=0, expected 1 to 8"),
        (Decision(reply_code="5"), "decide returned reply_code='5', expected 1 to 8"),  # type: ignore[arg-type]
        (Decision(delay="1"), "decide returned delay='1', expected seconds"),  # type: ignore[arg-type]
        (Decision(delay=float("inf")), "decide returned delay=inf, expected seconds"),
    ],
)
def test_what_may_not_be_said(said: Any, text: str) -> None:
    """The value that was said and the one expected."""
    with pytest.raises((TypeError, ValueError)) as caught:
        check_said(said)
    assert str(caught.value).startswith(text)


def test_no_password_of_a_url_is_shown() -> None:
    """A traceback in a log has what was said."""
    said = Decision("maybe", via="socks5://alice:secret@127.0.0.1:1")  # type: ignore[arg-type]
    assert "secret" not in repr(said)
    with pytest.raises(TypeError) as caught:
        check_said(said)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "seen"), [(SystemExit, RuntimeError), (ValueError, ValueError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_what_a_hook_raises(raised: type[BaseException], seen: type[BaseException]) -> None:
    """sys.exit() in it is a failure like any other; Ctrl-C is Ctrl-C."""

    def hook(asked: Session) -> None:
        raise raised

    with pytest.raises(seen):
        ask_hook(hook, session(), WHERE, Decision())
