"""The log writer: messages arrive, and a standard error that nobody reads holds up no one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import Serve, is_running, serve, tunnels, wait_for
from tabi.server.log_writer import MAX_MESSAGE, LogWriter


@contextlib.contextmanager
def stderr_as(fd: int) -> Iterator[None]:
    """Have a descriptor as standard error, for what is forked."""
    saved = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def writer_to(fd: int) -> Iterator[LogWriter]:
    """A writer whose standard error is a descriptor."""
    with stderr_as(fd):
        writer = LogWriter()
    try:
        yield writer
    finally:
        writer.close()


def record(text: str) -> logging.LogRecord:
    """A message."""
    return logging.LogRecord("tabi", logging.WARNING, __file__, 1, text, (), None)


def test_nothing_in_a_message_controls_the_terminal(tmp_path: Path) -> None:
    """A text from outside makes neither a second message nor a traceback that looks like one."""
    hostile = "a\n2026-01-01 00:00:00,000 INFO b\x1b[2J\x85\u202e\u2028\udcff\0"
    try:
        raise ValueError(hostile)
    except ValueError:
        failure = logging.LogRecord("tabi", logging.ERROR, __file__, 1, "%s", (hostile,), sys.exc_info())
    with (tmp_path / "err").open("wb") as file, writer_to(file.fileno()) as writer:
        writer.emit(failure)
        writer.say(f"{hostile}\n")
    data = (tmp_path / "err").read_bytes().decode()
    assert all(character == "\n" or character.isprintable() for character in data)
    first, *traceback, second, third, end = data.split("\n")
    assert first.endswith(r" ERROR a\n2026-01-01 00:00:00,000 INFO b\x1b[2J\x85\u202e\u2028\udcff\x00")
    assert all(line.startswith("  ") for line in traceback)
    assert (second, third, end) == ("a", r"2026-01-01 00:00:00,000 INFO b\x1b[2J\x85\u202e\u2028\udcff\x00", "")


def test_messages_arrive_in_order_before_the_end(tmp_path: Path) -> None:
    """All that was handed over is written when `close` returns, cut where it is too long."""
    with (tmp_path / "err").open("wb") as file, writer_to(file.fileno()) as writer:
        writer.emit(record("first"))
        writer.say("second \udcff\n")
        writer.say("x" * (MAX_MESSAGE + 5))
        pid = writer.child.pid
    lines = (tmp_path / "err").read_text().split("\n")
    assert lines[0].endswith(" WARNING first")
    assert lines[1:] == ["second \\udcff", "x" * MAX_MESSAGE]
    assert pid is not None
    assert not is_running(pid)


def test_a_reader_that_stalls_holds_up_nobody_and_what_is_lost_is_said() -> None:
    """Messages are lost and counted while nobody reads; the next one that is taken says how many."""
    reading, writing = os.pipe()
    try:
        with writer_to(writing) as writer:
            os.close(writing)
            count = 0
            while not writer.lost:
                writer.say(f"{count:0100}\n")
                count += 1
            for _ in range(4):
                writer.say("lost\n")
            text = b""
            while writer.lost:  # the pipe, what the writer holds and what waits for it come first
                text += os.read(reading, 65536)
                writer.say("found\n")
            while b"found\n" not in text:
                text += os.read(reading, 65536)
        lines = text.decode().splitlines()
        assert lines[: count - 1] == [f"{number:0100}" for number in range(count - 1)]
        assert "lost" not in lines
        said = next(line for line in lines if line.endswith("are lost, since standard error was not read"))
        assert int(said.split()[0]) >= 5
    finally:
        os.close(reading)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    """The writer goes on taking messages, which nobody wants to see."""
    reading, writing = os.pipe()
    os.close(reading)
    with writer_to(writing) as writer:
        os.close(writing)
        for _ in range(2000):
            writer.say("to nobody\n")
            if writer.lost:
                time.sleep(0.001)
        pid = writer.child.pid
        assert pid is not None
        assert is_running(pid)


def test_a_reader_that_stalls_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is killed where it cannot end."""
    monkeypatch.setattr("tabi.server.child.PATIENCE", 0.05)
    reading, writing = os.pipe()
    try:
        with writer_to(writing) as writer:
            os.close(writing)
            while not writer.lost:
                writer.say("x" * 1000)
            pid = writer.child.pid
        assert pid is not None
        assert not is_running(pid)
    finally:
        os.close(reading)


# --- of `tabi serve` ---


def writer_of(proxy: Serve) -> int:
    """The process that writes its messages."""
    found = wait_for(lambda: proxy.child("tabi-log"), "the writer")
    assert isinstance(found, int)
    return found


def test_it_is_started_again_and_messages_go_on(tmp_path: Path) -> None:
    """Killed, it is replaced: workers and supervisor hand their messages to the next one without a word about it."""
    with serve(tmp_path) as proxy:
        first = writer_of(proxy)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: f"tabi-log {first} was killed by signal 9" in proxy.messages, "the next writer")
        assert writer_of(proxy) != first
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: "SIGHUP: nothing to read" in proxy.messages, "a message")


def test_a_supervisor_and_workers_whose_stderr_stalls_go_on(tmp_path: Path) -> None:
    """More messages than fit are asked for; sessions, reloads and the end go on as ever, and nothing stays behind."""
    with serve(tmp_path) as proxy:
        writer = writer_of(proxy)
        os.kill(writer, signal.SIGSTOP)  # as if its write blocked
        for _ in range(1000):
            proxy.signal(signal.SIGHUP)
            time.sleep(0)
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        (worker,) = proxy.workers()
        assert proxy.stop() == 0
        assert not is_running(worker)
        assert not is_running(writer)


def test_it_writes_what_workers_say_after_the_supervisor_has_died(tmp_path: Path) -> None:
    """It ends with the last of them, not with the supervisor."""
    with serve(tmp_path) as proxy:
        writer = writer_of(proxy)
        with tunnels(proxy.address) as (tunnel,):
            (worker,) = proxy.workers()
            proxy.process.kill()
            proxy.process.wait()
            wait_for(lambda: "draining, sessions under way: 1" in proxy.messages, "the worker's message")
            tunnel.check()
            assert is_running(writer)
            os.kill(worker, signal.SIGTERM)
            wait_for(lambda: "stopped, sessions cut: 1" in proxy.messages, "its last message")
        wait_for(lambda: not is_running(writer), "the writer to end")
