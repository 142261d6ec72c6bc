"""Lines for people: short, coloured on a terminal alone, and without anything that controls one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import make_record
from tabi.intercept import printing
from tabi.intercept.printing import Printer, cut, format_record, width_of
from tabi.intercept.record import WebSocketMessage


def test_a_flow_in_one_line() -> None:
    """Method, URL, status, size, time, and what is special."""
    assert format_record(make_record()) == "GET https://example.com/a?b=1 200 5 B 24 ms"
    messages = [WebSocketMessage("send", 1.0, 1, b"a")] * 2
    line = format_record(make_record("wss://h/", status=101, response_size=0, messages=messages, tags=["a", "b"]))
    assert line == "GET wss://h/ 101 0 B 24 ms WebSocket: 2 messages [a, b]"
    assert format_record(make_record("https://h/", status=0, error="reset")) == "GET https://h/ reset 24 ms"
    assert format_record(make_record("https://h/", status=0)) == "GET https://h/ no answer 24 ms"
    assert format_record(make_record("https://h/", error="cut")) == "GET https://h/ 200 cut 5 B 24 ms"


def test_colours_change_nothing_else() -> None:
    """An error is red, and so is a status of 500; without the codes the line is the same."""
    for record, code in (
        (make_record(), 32),
        (make_record(status=304), 36),
        (make_record(status=404), 33),
        (make_record(status=500), 31),
        (make_record(status=0, error="reset"), 31),
    ):
        line = format_record(record, colour=True)
        assert f"\x1b[{code}m" in line
        assert re.sub(r"\x1b\[\d+m", "", line) == format_record(record)


HOSTILE = "a\x1b[2J\r\n\x85\x9b\u202e\u2066\u200b\udcff\0"


def test_nothing_in_a_line_controls_the_terminal() -> None:
    """C0, C1, directions of writing and separators are escaped wherever a peer can put them."""
    record = make_record(f"https://h/{HOSTILE}", method=HOSTILE, error=HOSTILE, tags=[HOSTILE])
    line = format_record(record)
    assert line.isprintable()
    assert line.count(r"\x1b[2J\r\n\x85\x9b\u202e\u2066\u200b\udcff\x00") == 4
    assert "\n" not in re.sub(r"\x1b\[\d+m", "", format_record(record, colour=True))


def test_a_long_url_is_cut_in_its_middle() -> None:
    """So that the line has the terminal's width; what is short stays whole."""
    record = make_record("https://example.com/" + "a" * 200 + "/end")
    line = format_record(record, 80)
    assert len(line) == 80
    assert line.startswith("GET https://example.com/aaa")
    assert "…aaa" in line
    assert "/end 200 5 B 24 ms" in line
    assert len(format_record(record, 10)) == len("GET  200 5 B 24 ms") + printing.SHORTEST
    assert format_record(make_record(), 80) == format_record(make_record())


@given(st.text(max_size=50), st.integers(2, 60))
def test_cutting(text: str, room: int) -> None:
    """The result is never too long, and begins and ends as the text does."""
    found = cut(text, room)
    assert len(found) == min(len(text), room)
    assert found == text or "…" in found


@contextlib.contextmanager
def terminal(columns: int):  # type: ignore[no-untyped-def]
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_width_is_that_of_a_terminal() -> None:
    """A pipe has none."""
    with terminal(40) as (ours, theirs):
        assert width_of(theirs) == 40
        printer = Printer(theirs)
        printer.colour = True
        printer.print(make_record("https://h/" + "a" * 100))
        line = os.read(ours, 1000).decode()
        assert line.startswith("\x1b[1mGET\x1b[0m https://h/aaaa")
        assert len(re.sub(r"\x1b\[\d+m", "", line).rstrip()) == 40
    source, sink = os.pipe()
    assert width_of(sink) is None
    os.close(source)
    os.close(sink)


def test_a_reader_that_stops_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines wait within a bound; what is lost is said once it reads again."""
    monkeypatch.setattr(printing, "WAITING", 1000)
    monkeypatch.setattr(printing, "PATIENCE", 0.01)
    source, sink = os.pipe()
    printer = Printer(sink)
    lines = 3000
    for _ in range(lines):
        printer.print(make_record())
    assert printer.size <= 1000
    assert printer.lost > 100
    lost, data = printer.lost, b""
    while printer.waiting:
        data += os.read(source, 65536)
        printer.flush()
    printer.print(make_record())
    data += os.read(source, 65536)
    assert printer.lost == 0
    assert data.count(b"GET") == lines - lost + 1
    assert b"%d flows before this one are not printed, since nobody read\nGET" % lost in data
    for _ in range(lines):
        printer.print(make_record())
    printer.close()
    assert printer.waiting
    os.close(source)
    printer.close()
    assert not printer.waiting
    os.close(sink)


def test_a_long_line_is_written_in_pieces_that_a_pipe_takes() -> None:
    """Its rest waits for a reader."""
    source, sink = os.pipe()
    printer = Printer(sink)
    printer.print(make_record("https://h/" + "a" * 100_000))
    data = b""
    while not data.endswith(b"\n"):
        data += os.read(source, 65536)
        printer.flush()
    assert data.count(b"a") == 100_000
    assert printer.size == 0
    os.close(source)
    os.close(sink)


def test_an_output_that_others_made_non_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again within the time that there is."""
    monkeypatch.setattr(printing, "PATIENCE", 0.05)
    source, sink = os.pipe()
    printer = Printer(sink)
    real, calls = os.write, [0]

    def write(fd: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] < 3:
            raise BlockingIOError
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    printer.print(make_record())
    assert printer.waiting
    printer.close()
    monkeypatch.undo()
    assert os.read(source, 1000).startswith(b"GET")
    os.close(source)
    os.close(sink)
