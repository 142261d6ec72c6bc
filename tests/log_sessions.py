"""Sessions for tests of the access log, and what is hostile in names."""

from __future__ import annotations

from tabi.observe.log_record import Record, make_record
from tabi.policy.grammar import Parameters
from tabi.session import Session, Sniffed
from tabi.wire.address import parse_address

KEYS = [
    *(
        "time",
        "id",
        "listener",
        "protocol",
        "command",
        "client",
        "user",
        "host",
        "port",
        "address",
        "rule",
        "via",
        "member",
    ),
    *("reply", "error", "up", "down", "seconds", "connect_ms", "close"),
]


def make_session(number: int = 1) -> Session:
    """A session that carried something."""
    session = Session(number, "socks5://127.0.0.1:1080", parse_address("192.0.2.1:50000"), 100.0)
    session.protocol, session.command, session.user = "socks5", "connect", "alice"
    session.destination = parse_address("example.com:443")
    session.address = parse_address("[2001:db8::1]:443")
    session.via, session.reply_code = "direct", 0
    session.up, session.down, session.connect_seconds, session.close = 517, 1 << 40, 0.0123456, "client"
    return session


def make_association() -> Session:
    """A session that relayed datagrams."""
    session = make_session()
    session.command = "associate"
    session.datagrams_up, session.datagrams_down = 3, 1 << 40
    session.drops = {"unsolicited": 41, "fragment": 2}
    return session


def make_eventful() -> Session:
    """A session with all that a line may say besides."""
    session = make_association()
    session.parameters = Parameters(session="7f3a")
    session.via, session.member = "pool-de", "socks5://192.0.2.7:1080"
    session.sniffed, session.intercepted, session.pinned = Sniffed("tls"), "web", True
    session.error, session.close = "the client has gone", "reset"
    return session


def record_of(session: Session, now: float = 101.2345) -> Record:
    """What a line says of a session."""
    return make_record(session, "2026-01-02T03:04:05.678Z", "w0-", now)


HOSTILE = [
    *(chr(number) for number in (*range(32), *range(127, 161))),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff\U000e0001",
    "\ud800",
    "\udcff",
]
"""Controls of terminals, C0 and C1, directions of writing, ends of lines, and what is not text."""

TEXTS = ["user", "rule", "via", "member", "error", "listener", "protocol", "command", "client", "destination"]
