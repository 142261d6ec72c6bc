"""Lines of logfmt: whoever reads them gets the values back."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from log_sessions import HOSTILE, TEXTS, make_eventful, make_session, record_of
from tabi.observe.log_record import pairs
from tabi.observe.logfmt import logfmt_line
from tabi.session import Session
from tabi.wire.address import Address

PAIR = re.compile(r'([a-z0-9_]+)=("(?:[^"\\]|\\.)*"|[^ "=]*)( |$)')


def read(line: bytes) -> dict[str, str]:
    """What a reader of logfmt makes of a line."""
    text, at, found = line.decode(), 0, {}
    assert text.endswith("\n")
    text = text[:-1]
    while at < len(text):
        pair = PAIR.match(text, at)
        assert pair is not None, text[at:]
        key, value, _ = pair.groups()
        assert key not in found
        found[key] = json.loads(value) if value.startswith('"') else value
        at = pair.end()
    return found


def test_a_line() -> None:
    """The keys of JSON in their order, without those that are null."""
    session = make_session(0xABC)
    session.error, session.close = "rule no-mail: deny", "denied"
    assert logfmt_line(record_of(session)) == (
        b"time=2026-01-02T03:04:05.678Z id=w0-abc listener=socks5://127.0.0.1:1080 protocol=socks5 command=connect "
        b"client=192.0.2.1:50000 user=alice host=example.com port=443 address=[2001:db8::1]:443 via=direct reply=0 "
        b'error="rule no-mail: deny" up=517 down=1099511627776 seconds=1.234 connect_ms=12.345 close=denied\n'
    )


def test_a_line_of_a_session_to_which_much_has_happened() -> None:
    """Nothing that JSON says is missing."""
    record = record_of(make_eventful())
    found = read(logfmt_line(record))
    assert found == dict(pairs(record))
    assert (found["session_token"], found["member"], found["drops_unsolicited"]) == (
        "7f3a",
        "socks5://192.0.2.7:1080",
        "41",
    )


@pytest.mark.parametrize("field", TEXTS)
def test_nothing_in_a_line_controls_what_shows_it(field: str) -> None:
    """Whoever has made up a text."""
    for letter in HOSTILE:
        session = make_session()
        text = f"jürgen{letter}x"
        setattr(session, field, Address(text, 1) if field in ("client", "destination") else text)
        assert logfmt_line(record_of(session))[:-1].decode().isprintable()


def with_names(user: str, error: str) -> Session:
    """A session with texts of a client."""
    session = make_session()
    session.user, session.error = user, error
    return session


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_any_text_comes_back(user: str, error: str) -> None:
    """Spaces, quotes, equals signs, ends of lines; what is no text is escaped."""
    found = read(logfmt_line(record_of(with_names(user, error))))
    assert found["user"] == user.encode("utf-8", "backslashreplace").decode()
    assert found["error"] == error.encode("utf-8", "backslashreplace").decode()
    assert found["close"] == "client"
