"""Entries of the journal: the native protocol, read by a socket that stands in for the journal's."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from log_sessions import HOSTILE, make_eventful, make_session, record_of
from tabi.errors import printable
from tabi.observe.journald import SEALS, JournalEntries, JournalOutput
from tabi.observe.log_json import json_line
from tabi.observe.log_text import TextLines
from tabi.session import Session

ENTRIES = JournalEntries(TextLines(None))


def read(entry: bytes) -> dict[str, str]:
    """The fields of an entry; each is there once, and none has several lines."""
    assert entry.endswith(b"\n")
    found = {}
    for line in entry[:-1].split(b"\n"):
        name, equals, value = line.decode().partition("=")
        assert equals
        assert name.replace("_", "").isalnum()
        assert name.isupper()
        assert not name.startswith("_"), "such fields are the journal's own"
        assert value.isprintable()
        assert name not in found
        found[name] = value
    return found


def test_an_entry() -> None:
    """A line for people, and each key of the log as a field."""
    session = make_session(0xABC)
    assert read(ENTRIES(record_of(session))) == {
        "MESSAGE": "alice socks5 192.0.2.1 -> example.com:443 direct 517 B/1100 GB 1.2 s ok",
        "PRIORITY": "6",
        "SYSLOG_FACILITY": "3",
        "SYSLOG_IDENTIFIER": "tabi",
        "TABI_TIME": "2026-01-02T03:04:05.678Z",
        "TABI_ID": "w0-abc",
        "TABI_LISTENER": "socks5://127.0.0.1:1080",
        "TABI_PROTOCOL": "socks5",
        "TABI_COMMAND": "connect",
        "TABI_CLIENT": "192.0.2.1:50000",
        "TABI_USER": "alice",
        "TABI_HOST": "example.com",
        "TABI_PORT": "443",
        "TABI_ADDRESS": "[2001:db8::1]:443",
        "TABI_VIA": "direct",
        "TABI_REPLY": "0",
        "TABI_UP": "517",
        "TABI_DOWN": "1099511627776",
        "TABI_SECONDS": "1.234",
        "TABI_CONNECT_MS": "12.345",
        "TABI_CLOSE": "client",
    }


def test_an_entry_of_a_session_to_which_much_has_happened() -> None:
    """What went wrong is a notice; drops have a field for each reason."""
    found = read(ENTRIES(record_of(make_eventful())))
    assert found["PRIORITY"] == "5"
    assert (found["TABI_SESSION_TOKEN"], found["TABI_MEMBER"]) == ("7f3a", "socks5://192.0.2.7:1080")
    assert (found["TABI_DROPS_UNSOLICITED"], found["TABI_ERROR"]) == ("41", "the client has gone")


def test_the_message_may_be_json() -> None:
    """In the format of ``log.format``."""
    record = record_of(make_session())
    assert read(JournalEntries(json_line)(record))["MESSAGE"] == json_line(record)[:-1].decode()


def named(user: str) -> Session:
    """A session of a user."""
    session = make_session()
    session.user = user
    return session


@given(st.text(st.characters(), max_size=40))
def test_no_name_makes_a_field_of_its_own(user: str) -> None:
    """Ends of lines are escaped."""
    found = read(ENTRIES(record_of(named(f"a\nPRIORITY=0\n{user}"))))
    assert found["TABI_USER"] == f"a\\nPRIORITY=0\\n{printable(user)}"
    assert found["PRIORITY"] == "6"


def test_nothing_controls_what_shows_it() -> None:
    """C0, C1, directions of writing."""
    assert read(ENTRIES(record_of(named("".join(HOSTILE)))))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """What stands in for the journal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        yield sock


def test_entries_are_datagrams(journal: socket.socket) -> None:
    """One each."""
    output = JournalOutput(socket.AF_UNIX, journal.getsockname())
    entry = ENTRIES(record_of(make_session()))
    assert output.write([entry, entry]) == 2
    output.close()
    assert [journal.recv(65_536) for _ in range(2)] == [entry, entry]


def test_a_large_entry_is_a_file(journal: socket.socket) -> None:
    """In memory, sealed so that the journal can trust it; its descriptor comes with an empty datagram."""
    output = JournalOutput(socket.AF_UNIX, journal.getsockname())
    output.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    entry = ENTRIES(record_of(named("x" * 200_000)))
    before = len(os.listdir("/proc/self/fd"))
    assert output.write([entry]) == 1
    assert len(os.listdir("/proc/self/fd")) == before
    data, (fd,), _, _ = socket.recv_fds(journal, 10, 1)
    try:
        assert data == b""
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
        assert os.pread(fd, 1 << 20, 0) == entry
    finally:
        os.close(fd)
        output.close()


def test_a_journal_that_is_gone(journal: socket.socket) -> None:
    """An error like that of a file."""
    output = JournalOutput(socket.AF_UNIX, journal.getsockname())
    journal.close()
    with pytest.raises(ConnectionRefusedError):
        output.write([b"MESSAGE=lost\n"])
    output.close()
