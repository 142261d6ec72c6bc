"""The access log: what a line says, and that nothing on its way to the disk holds up or surprises anyone."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE, Run
from tabi.observe import access_log
from tabi.observe.access_log import (
    ATOMIC,
    DELAY,
    AccessLog,
    Clock,
    DescriptorOutput,
    FileOutput,
    Output,
    SyslogOutput,
    check_output,
    format_line,
    open_output,
    pieces,
    write_all,
)
from tabi.session import Session, Sniffed
from tabi.wire.address import Address, parse_address
from tabi.wire.client_hello import ClientHello

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


def read_line(session: Session) -> Any:
    """The line of a session, parsed; its form is checked on the way."""
    line = format_line(session, "2026-01-02T03:04:05.678Z", "w0-", 101.2345)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    found = json.loads(line)
    assert list(found) == KEYS
    return found


# --- a line ---


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


def make_association() -> Session:
    """A session that relayed datagrams."""
    session = make_session()
    session.command = "associate"
    session.datagrams_up, session.datagrams_down = 3, 1 << 40
    session.drops = {"unsolicited": 41, "fragment": 2}
    return session


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


HOSTILE = [
    *(chr(number) for number in (*range(32), *range(127, 161))),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff\U000e0001",
    "\ud800",
    "\udcff",
]
"""Controls of terminals, C0 and C1, directions of writing, ends of lines, and what is not text."""

TEXTS = ["user", "rule", "via", "member", "error", "listener", "protocol", "command", "client", "destination"]


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


def test_the_time_is_rfc_3339_with_milliseconds() -> None:
    """In UTC, cut and not rounded, so that no second has 1000 of them; one clock for many lines."""
    times = iter([0.0, 0.9999, 1.0, 1.0004, 1_767_225_599.9995, 1_767_225_600.0, 1_767_225_600.0421])
    clock = Clock(lambda: next(times))
    assert [clock() for _ in range(7)] == [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:00.999Z",
        "1970-01-01T00:00:01.000Z",
        "1970-01-01T00:00:01.000Z",
        "2025-12-31T23:59:59.999Z",
        "2026-01-01T00:00:00.000Z",
        "2026-01-01T00:00:00.042Z",
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", Clock()())


# --- outputs ---


@given(st.lists(st.integers(1, 2 * ATOMIC), max_size=20))
def test_pieces_keep_lines_whole(sizes: list[int]) -> None:
    """Lines are joined up to what a pipe takes in one, in their order; a longer one goes alone."""
    lines = [b"x" * (size - 1) + b"\n" for size in sizes]
    found = pieces(lines)
    assert b"".join(found) == b"".join(lines)
    for piece in found:
        assert piece.endswith(b"\n")
        assert len(piece) <= ATOMIC or piece.count(b"\n") == 1
    for piece, following in itertools.pairwise(found):
        assert len(piece) + following.index(b"\n") + 1 > ATOMIC, "the next line would have had room"


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """What is there stays; a new file is for its owner and group."""
    path = tmp_path / "access.log"
    path.write_text("before\n")
    output = open_output(str(path))
    assert output.write([b"one\n", b"two\n"]) == 2
    output.close()
    output.close()
    assert path.read_text() == "before\none\ntwo\n"
    new = FileOutput(str(tmp_path / "new.log"))
    new.close()
    assert (tmp_path / "new.log").stat().st_mode & 0o027 == 0


def test_a_rotated_file_is_opened_again(tmp_path: Path) -> None:
    """What was moved away gets no more lines; the name gets a new file, and so does a removed one."""
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"
    output = FileOutput(str(path))
    output.write([b"one\n"])
    path.rename(old)
    output.write([b"two\n"])
    assert (old.read_text(), path.read_text()) == ("one\n", "two\n")
    path.unlink()
    output.write([b"three\n"])
    assert path.read_text() == "three\n"
    output.close()


def test_a_folder_that_was_away_for_a_while(tmp_path: Path) -> None:
    """While the file cannot be opened writing fails; when it can be again, it goes on."""
    folder = tmp_path / "log"
    folder.mkdir()
    output = FileOutput(str(folder / "access.log"))
    folder.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            output.write([b"lost\n"])
    folder.mkdir()
    output.write([b"one\n"])
    output.close()
    assert (folder / "access.log").read_text() == "one\n"


def test_a_file_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    """When the server starts, not with the first line."""
    with pytest.raises(FileNotFoundError):
        open_output(str(tmp_path / "missing" / "access.log"))


def test_a_device_gets_pieces(tmp_path: Path) -> None:
    """A path that is no regular file, such as /dev/null or a terminal, is written in pieces."""
    output = FileOutput("/dev/null")
    assert output.write([b"x" * 3000 + b"\n"] * 3) == 3
    output.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe as small as can be: its reading and its writing end, closed at the end."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def fill(writing: int) -> int:
    """Fill a pipe; returns with how many octets."""
    os.set_blocking(writing, False)
    filled = 0
    try:
        while True:
            filled += os.write(writing, b"#" * 512)
    except BlockingIOError:
        os.set_blocking(writing, True)
    return filled


def read_exactly(reading: int, size: int) -> bytes:
    """Read so many octets from a pipe."""
    found = b""
    while len(found) < size:
        data = os.read(reading, size - len(found))
        assert data
        found += data
    return found


def test_standard_output_is_not_ours_to_close(pipe: tuple[int, int]) -> None:
    """Lines are written; close leaves the descriptor open."""
    reading, writing = pipe
    output = DescriptorOutput(writing)
    assert output.write([b"one\n", b"two\n"]) == 2
    output.close()
    os.write(writing, b"!")
    assert read_exactly(reading, 9) == b"one\ntwo\n!"


def test_a_descriptor_that_somebody_made_non_blocking(pipe: tuple[int, int]) -> None:
    """The writer waits until there is room, and every octet arrives."""
    reading, writing = pipe
    filled = fill(writing)
    os.set_blocking(writing, False)
    data = bytes(range(256)) * 64
    thread = threading.Thread(target=write_all, args=(writing, data))
    thread.start()
    assert read_exactly(reading, filled + len(data))[filled:] == data
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize(("name", "number"), [("stdout", 1), ("stderr", 2)])
def test_the_standard_streams(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found even if Python has no object for them."""
    output = open_output(name)
    assert isinstance(output, DescriptorOutput)
    assert output.fd == getattr(sys, f"__{name}__").fileno()
    monkeypatch.setattr(sys, f"__{name}__", None)
    again = open_output(name)
    assert isinstance(again, DescriptorOutput)
    assert again.fd == number


def test_syslog(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message a line, as a daemon, at the level of information."""
    import syslog

    calls: list[tuple[Any, ...]] = []
    for name in ("openlog", "syslog", "closelog"):
        monkeypatch.setattr(syslog, name, lambda *values, name=name: calls.append((name, *values)))
    output = open_output("syslog")
    assert isinstance(output, SyslogOutput)
    assert output.write([b'{"user":"j\xc3\xbcrgen"}\n', b"{}\n"]) == 2
    output.close()
    assert calls == [
        ("openlog", "tabi", syslog.LOG_PID, syslog.LOG_DAEMON),
        ("syslog", syslog.LOG_INFO, '{"user":"jürgen"}'),
        ("syslog", syslog.LOG_INFO, "{}"),
        ("closelog",),
    ]


# --- the log ---


class Timers:
    """The loop's call_later, fired by hand."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay: float, callback: Callable[[], None]) -> None:
        self.waiting.append((delay, callback))

    def fire(self) -> None:
        """Let the one timer's time come."""
        ((delay, callback),) = self.waiting
        assert delay == DELAY
        self.waiting.clear()
        callback()


class Memory:
    """An output that keeps batches, waits at a gate, and fails where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.closed = 0

    def write(self, lines: list[bytes]) -> int:
        """As an Output."""
        assert self.gate.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        self.batches.append(lines)
        return len(lines)

    def close(self) -> None:
        """As an Output."""
        self.closed += 1

    def numbers(self) -> list[list[str]]:
        """The ids of the lines, batch by batch."""
        return [[json.loads(line)["id"] for line in batch] for batch in self.batches]


class Kit:
    """A log on an output, with timers of ours."""

    def __init__(self, output: Output) -> None:
        self.timers = Timers()
        self.log = AccessLog(output, "", self.timers)

    def add(self, *numbers: int) -> None:
        """Sessions end."""
        for number in numbers:
            self.log.add(make_session(number), 101.0)

    def flush(self) -> None:
        """The time of the batch comes, and the writer is done with it."""
        self.timers.fire()
        assert self.log.idle.wait(PATIENCE)


@pytest.fixture
def make_kit() -> Iterator[Callable[[Output], Kit]]:
    """Makes logs, and closes them at the end."""
    kits: list[Kit] = []

    def make(output: Output) -> Kit:
        kits.append(Kit(output))
        return kits[-1]

    yield make
    for kit in kits:
        kit.log.close()
        kit.log.thread.join(PATIENCE)


MakeKit = Callable[[Output], Kit]


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """The messages of one level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_lines_are_written_in_batches(make_kit: MakeKit) -> None:
    """The first line starts one timer; all that came until then go together, in their order."""
    output = Memory()
    kit = make_kit(output)
    assert not kit.timers.waiting
    kit.add(1, 2, 3)
    assert output.batches == []
    kit.flush()
    kit.add(4)
    kit.flush()
    assert output.numbers() == [["1", "2", "3"], ["4"]]
    assert not kit.timers.waiting, "nothing to write, no timer"


def test_a_slow_writer_holds_up_nobody(make_kit: MakeKit) -> None:
    """While a batch is being written, lines collect and the timer tries again; then all of them go at once."""
    output = Memory()
    kit = make_kit(output)
    output.gate.clear()
    kit.add(1)
    kit.timers.fire()
    kit.add(2)
    kit.timers.fire()
    kit.add(3)
    kit.timers.fire()
    assert output.batches == []
    output.gate.set()
    assert kit.log.idle.wait(PATIENCE)
    kit.flush()
    assert output.numbers() == [["1"], ["2", "3"]]
    assert kit.log.lost == 0


def test_what_waits_is_bounded(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the limit lines are lost, counted, and said so with the next batch; then there is room again."""
    monkeypatch.setattr(access_log, "LIMIT", 1000)
    output = Memory()
    kit = make_kit(output)
    kit.add(*range(1, 101))
    kept = len(kit.log.lines)
    assert 1 <= kept < 10
    assert kit.log.size < 1000 + 1000
    kit.flush()
    assert len(output.batches[0]) == kept
    assert kit.log.lost == 100 - kept
    kit.add(1)
    kit.flush()
    assert len(output.batches) == 2
    assert said(caplog, logging.WARNING) == [f"access log: {100 - kept} lines lost so far"]


def test_close_writes_what_is_left(make_kit: MakeKit) -> None:
    """Nothing waits for a timer that no longer comes; the thread has ended and the output is closed."""
    output = Memory()
    kit = make_kit(output)
    kit.add(1, 2)
    kit.log.close()
    assert output.numbers() == [["1", "2"]]
    assert output.closed == 1
    assert not kit.log.thread.is_alive()
    kit.timers.fire()
    assert output.numbers() == [["1", "2"]]


def test_close_with_nothing_left(make_kit: MakeKit) -> None:
    """A log that never had a line ends as well."""
    output = Memory()
    kit = make_kit(output)
    kit.log.close()
    assert (output.batches, output.closed, kit.log.thread.is_alive()) == ([], 1, False)


def test_a_full_disk_loses_lines_and_nothing_else(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """The error is said once, not with each batch; lines are counted."""
    kit = make_kit(FileOutput("/dev/full"))
    kit.add(1, 2)
    kit.flush()
    kit.add(3)
    kit.flush()
    kit.log.close()
    assert kit.log.lost == 3
    assert not kit.log.thread.is_alive()
    assert said(caplog, logging.ERROR) == [
        "access log: No space left on device; lines are lost until it can be written again"
    ]
    assert said(caplog, logging.WARNING)[-1].startswith("access log: 3 lines lost")


def test_a_disk_that_has_room_again(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """Lines are written again, and the next failure is said again."""
    output = Memory()
    kit = make_kit(output)
    for number, failure in enumerate([OSError(28, "full"), OSError(28, "full"), None, OSError("full again")], 1):
        output.failure = failure
        kit.add(number)
        kit.flush()
    assert output.numbers() == [["3"]]
    assert kit.log.lost == 3
    ending = "; lines are lost until it can be written again"
    assert said(caplog, logging.ERROR) == [f"access log: full{ending}", f"access log: full again{ending}"]


def test_a_fault_of_ours_does_not_end_the_writer(make_kit: MakeKit, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged with its traceback, the lines are counted, and the next batch is tried."""
    output = Memory()
    kit = make_kit(output)
    output.failure = ValueError("ours")
    kit.add(1)
    kit.flush()
    output.failure = None
    kit.add(2)
    kit.flush()
    assert (output.numbers(), kit.log.lost) == ([["2"]], 1)
    assert said(caplog, logging.ERROR) == ["access log: the writer failed"]
    assert caplog.records[0].exc_info is not None


def test_a_broken_pipe(make_kit: MakeKit, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    """Whoever read our standard output has gone: the proxy goes on."""
    reading, writing = pipe
    os.close(reading)
    kit = make_kit(DescriptorOutput(writing))
    kit.add(1)
    kit.flush()
    assert kit.log.lost == 1
    assert said(caplog, logging.ERROR) == ["access log: Broken pipe; lines are lost until it can be written again"]


def test_a_pipe_that_nobody_reads(
    make_kit: MakeKit, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """close() gives up after its patience and says what is lost; once somebody reads, the thread ends too."""
    monkeypatch.setattr(access_log, "PATIENCE", 0.02)
    reading, writing = pipe
    filled = fill(writing)
    kit = make_kit(DescriptorOutput(writing))
    kit.add(1)
    kit.timers.fire()
    kit.add(2, 3)
    kit.timers.fire()
    kit.log.close()
    assert kit.log.lost == 3
    assert said(caplog, logging.WARNING) == ["access log: 3 lines lost"]
    read_exactly(reading, filled)
    kit.log.thread.join(PATIENCE)
    assert not kit.log.thread.is_alive()


def test_the_last_batch_may_be_the_one_that_hangs(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What close() itself handed over is counted as well; the output stays open for the thread that still has it."""
    monkeypatch.setattr(access_log, "PATIENCE", 0.02)
    output = Memory()
    kit = make_kit(output)
    output.gate.clear()
    kit.add(1, 2)
    kit.log.close()
    assert (kit.log.lost, output.closed) == (2, 0)
    assert said(caplog, logging.WARNING) == ["access log: 2 lines lost"]
    output.gate.set()
    kit.log.thread.join(PATIENCE)
    assert not kit.log.thread.is_alive()


def test_on_a_loop(run: Run, tmp_path: Path) -> None:
    """With a real loop's timer and a real file, on each hosting."""
    path = tmp_path / "access.log"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        written = asyncio.Event()

        class Telling(FileOutput):
            def write(self, lines: list[bytes]) -> int:
                count = super().write(lines)
                loop.call_soon_threadsafe(written.set)
                return count

        log = AccessLog(Telling(str(path)), "p", loop.call_later)
        log.add(make_session(1), 101.0)
        log.add(make_session(2), 101.0)
        await written.wait()
        log.add(make_session(3), 101.0)
        await asyncio.to_thread(log.close)

    path.unlink(missing_ok=True)
    run(main)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["p1", "p2", "p3"]


def test_whether_it_could_be_written_is_seen_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is left as it is, and nothing is made."""
    for word in ("stdout", "stderr", "syslog", "none", str(tmp_path / "access.log")):
        check_output(word)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.log").write_text("a line\n")
    check_output(str(tmp_path / "old.log"))
    assert (tmp_path / "old.log").read_text() == "a line\n"
    with pytest.raises(IsADirectoryError):
        check_output(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        check_output(str(tmp_path / "missing" / "access.log"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    with pytest.raises(PermissionError):
        check_output(str(tmp_path / "access.log"))


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
