"""Lines of JSON: their keys, and that no name breaks a line or controls what shows it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from log_sessions import HOSTILE, KEYS, TEXTS, make_association, make_session
from tabi.observe.log_json import json_line, quote
from tabi.observe.log_record import make_record
from tabi.session import Session, Sniffed
from tabi.wire.address import Address, parse_address
from tabi.wire.client_hello import ClientHello


def format_line(session: Session, when: str, prefix: str, now: float) -> bytes:
    """A line as the log has it."""
    return json_line(make_record(session, when, prefix, now))


def read_line(session: Session) -> Any:
    """The line of a session, parsed; its form is checked on the way."""
    line = format_line(session, "2026-01-02T03:04:05.678Z", "w0-", 101.2345)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert list(found) == KEYS
    return found


def test_a_line_has_the_stable_keys_in_their_order() -> None:
    """One JSON object on one line, with what the session's rooms filled in."""
    assert read_line(make_session(0xABC)) == {
        "time": "2026-01-02T03:04:05.678Z",
        "id": "w0-abc",
        "listener": "socks5://127.0.0.1:1080",
        "protocol": "socks5",
        "command": "connect",
        "client": "192.0.2.1:50000",
        "user": "alice",
        "host": "example.com",
        "port": 443,
        "address": "[2001:db8::1]:443",
        "rule": None,
        "via": "direct",
        "member": None,
        "reply": 0,
        "error": None,
        "up": 517,
        "down": 1 << 40,
        "seconds": 1.234,
        "connect_ms": 12.345,
        "close": "client",
    }


def test_a_session_without_a_request_has_a_line_too() -> None:
    """What was never known is null; the keys are the same."""
    found = read_line(Session(1, "l", parse_address("[2001:db8::9]:5"), 101.0))
    assert found["client"] == "[2001:db8::9]:5"
    assert [key for key in KEYS if found[key] is None] == [
        *(
            "protocol",
            "command",
            "user",
            "host",
            "port",
            "address",
            "rule",
            "via",
            "member",
            "reply",
            "error",
            "connect_ms",
        )
    ]
    assert found["close"] == "error"


def test_a_line_of_an_association_says_what_was_dropped() -> None:
    """Datagrams each way and the drops by reason, behind the keys of all lines, which are what they are elsewhere."""
    session = make_association()
    line = format_line(session, "", "", 0.0)
    found = json.loads(line)
    assert list(found) == [*KEYS, "datagrams_up", "datagrams_down", "drops"]
    assert (found["datagrams_up"], found["datagrams_down"]) == (3, 1 << 40)
    assert found["drops"] == {"unsolicited": 41, "fragment": 2}
    session.drops = None
    assert line.startswith(format_line(session, "", "", 0.0).removesuffix(b"}\n") + b',"datagrams_up":')


NAMED = ClientHello(0x0303, (0x1301,), (0, 16), "name.test", (b"h2", b"\xff\x1b"))
NAMELESS = ClientHello(0x0303, (0x1301,), ())


@pytest.mark.parametrize(
    ("sniffed", "expected"),
    [
        (Sniffed("raw"), {"sniffed": "raw"}),
        (
            Sniffed("tls", NAMED),
            {
                "sniffed": "tls",
                "sni": "name.test",
                "alpn": ["h2", "\\xff\x1b"],
                "ja3": NAMED.ja3,
                "ja4": NAMED.ja4,
            },
        ),
        (
            Sniffed("tls", NAMELESS),
            {"sniffed": "tls", "sni": None, "alpn": [], "ja3": NAMELESS.ja3, "ja4": NAMELESS.ja4},
        ),
    ],
)
def test_a_line_of_a_session_that_was_sniffed(sniffed: Sniffed, expected: dict[str, Any]) -> None:
    """Its keys follow those of all lines; those of TLS are there only with TLS."""
    session = Session(1, "socks5://127.0.0.1:1080", parse_address("192.0.2.1:5"), 0.0)
    session.sniffed = sniffed
    line = format_line(session, "", "", 0.0)
    assert line.isascii()
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert list(found)[: len(KEYS)] == KEYS
    assert {key: value for key, value in found.items() if key not in KEYS} == expected


def test_an_association_without_drops_says_so() -> None:
    """An empty object, also of one that ended before its first datagram."""
    session = Session(1, "l", parse_address("192.0.2.1:5"), 101.0)
    session.drops = {}
    assert format_line(session, "", "", 0.0).endswith(b',"datagrams_up":0,"datagrams_down":0,"drops":{}}\n')


def test_other_lines_have_no_datagrams() -> None:
    """Octet by octet what they were: there is nothing to count, and no null that says so."""
    session = make_session()
    session.datagrams_up = session.datagrams_down = 7
    assert format_line(session, "T", "w0-", 101.5) == (
        b'{"time":"T","id":"w0-1","listener":"socks5://127.0.0.1:1080","protocol":"socks5","command":"connect",'
        b'"client":"192.0.2.1:50000","user":"alice","host":"example.com","port":443,"address":"[2001:db8::1]:443",'
        b'"rule":null,"via":"direct","member":null,"reply":0,"error":null,"up":517,"down":1099511627776,"seconds":1.5,'
        b'"connect_ms":12.345,"close":"client"}\n'
    )


def test_any_user_name_leaves_the_line_of_an_association_whole() -> None:
    """The second try, with what is no text escaped, keeps the drops."""
    session = make_association()
    session.user = "b\udcff"
    found = json.loads(format_line(session, "", "", 0.0))
    assert (found["user"], found["drops"]) == ("b\\udcff", session.drops)


@pytest.mark.parametrize(
    ("user", "shown"),
    [
        ("jürgen", "jürgen"),
        ("a\nb\r\x00\x1b[31m", "a\nb\r\x00\x1b[31m"),
        ('"},{"', '"},{"'),
        ("b\udcff\udc80", "b\\udcff\\udc80"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\u2028"),
    ],
)
def test_any_user_name_leaves_the_line_whole(user: str, shown: str) -> None:
    """Line ends, quotes, control characters and octets that are no text neither break the line nor forge another."""
    session = make_session()
    session.user = user
    assert read_line(session)["user"] == shown
    session.error = f"wrong: {user}"
    assert read_line(session)["error"] == f"wrong: {shown}"
    session.user = None
    assert read_line(session)["error"] == f"wrong: {shown}"


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_any_text_is_valid_json_on_one_line(user: str, error: str) -> None:
    """Surrogates and all."""
    session = make_session()
    session.user, session.error = user, error
    line = format_line(session, "", "", 0.0)
    assert list(json.loads(line)) == KEYS
    assert not re.search(rb"[\x00-\x1f]", line[:-1])


def test_a_line_of_a_session_that_is_looked_into() -> None:
    """It names the entry, and says that a client has refused our certificate; both only where there is something."""
    session = Session(1, "socks5://127.0.0.1:1080", parse_address("192.0.2.1:5"), 0.0)
    session.intercepted = "web"
    line = json.loads(format_line(session, "now", "x-", 1.0))
    assert list(line)[-2:] == ["close", "intercepted"]
    assert line["intercepted"] == "web"
    session.sniffed, session.pinned = Sniffed("tls"), True
    line = json.loads(format_line(session, "now", "x-", 1.0))
    assert list(line)[-4:] == ["close", "sniffed", "intercepted", "pinned"]
    session.intercepted = None
    line = json.loads(format_line(session, "now", "x-", 1.0))
    assert (list(line)[-2:], line["pinned"]) == (["sniffed", "pinned"], True)


@pytest.mark.parametrize("field", TEXTS)
def test_nothing_in_a_line_controls_what_shows_it(field: str) -> None:
    """Whoever has made up a text, a client or a program: whatever cannot be seen is escaped, the rest is the text."""
    for letter in HOSTILE:
        session = make_session()
        text = f"jürgen{letter}x"
        setattr(session, field, Address(text, 1) if field in ("client", "destination") else text)
        line = format_line(session, "", "", 0.0)
        assert line.endswith(b"\n")
        assert line[:-1].decode().isprintable()
        assert "jürgen" in line.decode()
        found = json.loads(line)["host" if field == "destination" else field]
        if "\ud800" <= letter <= "\udfff":
            letter = ascii(letter)[1:-1]
        assert found == f"jürgen{letter}x" + (":1" if field == "client" else "")


@given(st.text(st.characters(), max_size=40))
def test_a_text_in_quotes(text: str) -> None:
    """JSON that can be seen; what is no text is escaped before."""
    quoted = quote(text)
    assert quoted.isprintable()
    assert json.loads(quoted) == text.encode("utf-8", "backslashreplace").decode()
