"""Lines for people: what they say, in which colour, and that nothing in them controls a terminal or looks like more."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from log_sessions import HOSTILE, TEXTS, make_eventful, make_session, record_of
from tabi.observe.log_text import IN_FILE, ON_TERMINAL, LocalTime, TextLines
from tabi.session import UNIX, Session, Sniffed
from tabi.wire.address import Address, parse_address
from tabi.wire.client_hello import ClientHello

LINES = TextLines(lambda: "10:40:29")
COLOURED = TextLines(lambda: "10:40:29", colour=True)


def line_of(session: Session, lines: TextLines = LINES) -> str:
    """The line of a session, without its end."""
    line = lines(record_of(session, 100.018)).decode()
    assert line.endswith("\n")
    return line[:-1]


def alice() -> Session:
    """The session that the documentation shows."""
    session = make_session()
    session.client, session.up, session.down = parse_address("10.0.0.7:50000"), 200, 18_000
    return session


def test_a_line() -> None:
    """Time, user, protocol, client, destination, egress, octets up and down, duration and result."""
    expected = "alice socks5 10.0.0.7 -> example.com:443 direct 200 B/18 kB 18 ms ok"
    assert line_of(alice()) == f"10:40:29 {expected}"
    assert line_of(alice(), TextLines(None)) == expected


def change(**values: Any) -> str:
    """The line of the same session with other values."""
    session = alice()
    for name, value in values.items():
        setattr(session, name, value)
    return line_of(session)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"user": None}, ":29 - socks5 10.0.0.7 -> example.com:443 direct 200 B/18 kB 18 ms ok"),
        ({"user": "build server"}, ':29 "build server" socks5 10.0.0.7 -> '),
        ({"user": "-"}, ':29 "-" socks5 10.0.0.7 -> '),
        ({"user": ""}, ':29 "" socks5 10.0.0.7 -> '),
        ({"user": "jürgen"}, ':29 "jürgen" socks5 10.0.0.7 -> '),
        ({"user": "-x"}, ":29 -x socks5 10.0.0.7 -> "),
        ({"command": "forward", "protocol": "http"}, ":29 alice http forward 10.0.0.7 -> "),
        ({"client": parse_address("[2001:db8::9]:5")}, ":29 alice socks5 2001:db8::9 -> "),
        ({"client": Address(UNIX, 1000)}, ":29 alice socks5 unix:1000 -> "),
        ({"destination": parse_address("[2001:db8::1]:80")}, ":29 alice socks5 10.0.0.7 -> [2001:db8::1]:80 direct "),
        ({"destination": Address("example.com", 0)}, ":29 alice socks5 10.0.0.7 -> example.com direct "),
        ({"via": "pool", "member": "socks5://192.0.2.7:1080"}, "443 pool/socks5://192.0.2.7:1080 200 B"),
        ({"close": "idle"}, "18 ms idle"),
        ({"close": "error"}, "18 ms error"),
        ({"close": "denied", "error": "rule no-mail: deny 192.0.2.9:25"}, "18 ms rule no-mail: deny 192.0.2.9:25"),
        ({"error": "wrong: a\nb\x1b[2J\udcff"}, "18 ms wrong: a\\nb\\x1b[2J\\udcff"),
        (
            {"sniffed": Sniffed("tls", ClientHello(0x0303, (), (), "name.test"))},
            "-> example.com:443 (name.test) direct",
        ),
        ({"sniffed": Sniffed("tls", ClientHello(0x0303, (), (), "example.com"))}, "-> example.com:443 direct"),
        ({"sniffed": Sniffed("tls", ClientHello(0x0303, (), ()))}, "-> example.com:443 direct"),
        ({"intercepted": "my web", "pinned": True}, '18 ms [intercepted by "my web"] [pinned] ok'),
        ({"drops": {}}, "200 B/18 kB 0/0 datagrams 18 ms ok"),
        ({"drops": {"unsolicited": 41, "fragment": 2}}, "18 ms [dropped 41 unsolicited, 2 fragment] ok"),
        (
            {"distorted": [SimpleNamespace(entry=SimpleNamespace(distort=SimpleNamespace(label="3g")))]},
            "18 ms [faults 3g] ok",
        ),
    ],
)
def test_what_a_line_says(values: dict[str, Any], expected: str) -> None:
    """Each part, where it is something else; what is not known is a dash, and no name looks like one."""
    assert expected in change(**values)


def test_a_session_without_a_request_has_a_line_too() -> None:
    """As much as is known of it."""
    session = Session(1, "l", parse_address("10.0.0.7:5"), 100.0)
    assert line_of(session) == "10:40:29 - - 10.0.0.7 -> - - 0 B/0 B 18 ms error"


def test_the_session_of_a_user_name() -> None:
    """It is behind the user; the whole line of a session to which much has happened."""
    assert line_of(make_eventful()) == (
        "10:40:29 alice/7f3a socks5 associate 192.0.2.1 -> example.com:443 pool-de/socks5://192.0.2.7:1080 "
        "517 B/1100 GB 3/1099511627776 datagrams 18 ms [dropped 41 unsolicited, 2 fragment] the client has gone"
    )


def test_a_session_that_begins() -> None:
    """Nothing was carried yet."""
    record = record_of(alice())
    record.close = None
    assert LINES(record) == b"10:40:29 alice socks5 10.0.0.7 -> example.com:443 direct begins\n"


SGR = re.compile(r"\x1b\[\d*m")


@pytest.mark.parametrize(
    ("close", "error", "code"),
    [
        *(("client", None, 32), ("server", None, 32), ("idle", None, 33), ("kicked", None, 33), ("denied", None, 31)),
        *(("error", None, 31), ("client", "reset", 31), ("limit", "limit: user alice", 31)),
    ],
)
def test_colours_change_nothing_else(close: Any, error: str | None, code: int) -> None:
    """What went well is green, what went wrong red; without the codes the line is the same."""
    session = alice()
    session.close, session.error = close, error
    line = line_of(session, COLOURED)
    assert SGR.sub("", line) == line_of(session)
    result = error or ("ok" if code == 32 else close)
    assert line.endswith(f"\x1b[{code}m{result}\x1b[0m")
    assert line.count("\x1b") == 2 * line.count("\x1b[0m")


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize("lines", [LINES, COLOURED])
def test_nothing_in_a_line_controls_a_terminal(field: str, lines: TextLines) -> None:
    """Whoever has made up a text: what cannot be seen is escaped."""
    for letter in HOSTILE:
        session = make_session()
        text = f"jürgen{letter}x"
        setattr(session, field, Address(text, 1) if field in ("client", "destination") else text)
        line = SGR.sub("", line_of(session, lines))
        assert line.isprintable()
        assert ("jürgen" in line) == (field not in ("listener", "rule"))


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_no_name_looks_like_another_part(user: str, host: str) -> None:
    """A name with spaces is in quotes, and no quote of its own ends them."""
    session = alice()
    session.user, session.destination = user, Address(host, 443)
    line = line_of(session)
    assert line.isprintable()
    word = r'("(?:[^"\\]|\\.)*"|[!#-~]+)'
    found = re.fullmatch(rf"10:40:29 {word} socks5 10\.0\.0\.7 -> {word}:443 direct 200 B/18 kB 18 ms ok", line)
    assert found is not None


def test_the_time_is_that_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal without the day; one text serves a whole second."""
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        times = iter([0.0, 0.9, 1.0, 86_400.0])
        clock = LocalTime(ON_TERMINAL, lambda: next(times))
        assert [clock() for _ in range(4)] == ["02:00:00", "02:00:00", "02:00:01", "02:00:00"]
        assert LocalTime(IN_FILE, lambda: 86_399.0)() == "1970-01-02 01:59:59"
    finally:
        monkeypatch.undo()
        time.tzset()
