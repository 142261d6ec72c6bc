"""The access log that a configuration composes."""

from __future__ import annotations

import json
import os
import pty
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from log_sessions import make_session, record_of
from tabi.config.schema import Log
from tabi.observe import journald, syslog
from tabi.observe.journald import JournalOutput
from tabi.observe.log_json import json_line
from tabi.observe.log_outputs import DatagramOutput, DescriptorOutput, FileOutput
from tabi.observe.log_targets import check_log, open_log
from tabi.observe.log_text import TextLines
from tabi.observe.logfmt import logfmt_line


@pytest.mark.parametrize(("name", "number"), [("stdout", 1), ("stderr", 2)])
def test_the_standard_streams(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found even if Python has no object for them."""
    output, _ = open_log(Log(name))
    assert isinstance(output, DescriptorOutput)
    assert output.fd == getattr(sys, f"__{name}__").fileno()
    monkeypatch.setattr(sys, f"__{name}__", None)
    again, _ = open_log(Log(name))
    assert isinstance(again, DescriptorOutput)
    assert again.fd == number


def test_a_file_has_json(tmp_path: Path) -> None:
    """Unless the configuration says otherwise; lines for people have the day there, and no colour."""
    path = str(tmp_path / "access.log")
    output, form = open_log(Log(path))
    assert isinstance(output, FileOutput)
    assert form is json_line
    output.close()
    assert open_log(Log(path, format="json"))[1] is json_line
    assert open_log(Log(path, format="logfmt"))[1] is logfmt_line
    line = open_log(Log(path, format="text"))[1](record_of(make_session())).decode()
    assert line.split(" ", 2)[2] == "alice socks5 192.0.2.1 -> example.com:443 direct 517 B/1100 GB 1.2 s ok\n"
    assert len(line.split(" ")[0]) == len("2026-01-02")


@pytest.fixture
def terminal() -> Iterator[str]:
    """The path of a terminal."""
    ours, theirs = pty.openpty()
    yield os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("environment", "colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_lines_for_people(
    terminal: str, environment: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the day, and coloured unless that is switched off; or what the configuration says."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output, form = open_log(Log(terminal))
    output.close()
    line = form(record_of(make_session())).decode()
    assert ("\x1b[" in line) == colour
    assert "-" not in line.partition(" ")[0]
    assert isinstance(form, TextLines)
    for name, plain in (("json", json_line), ("logfmt", logfmt_line)):
        settings: Any = Log(terminal, format=name)  # type: ignore[arg-type]
        output, form = open_log(settings)
        output.close()
        assert form is plain


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What stands in for the daemons of this machine."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        for module in (syslog, journald):
            monkeypatch.setattr(module, "SOCKET", str(tmp_path / "socket"))
        yield sock


def test_syslog(daemon: socket.socket) -> None:
    """JSON as before, or another format."""
    record = record_of(make_session())
    for settings, line in ((Log("syslog"), json_line), (Log("syslog", format="logfmt"), logfmt_line)):
        output, form = open_log(settings)
        assert output.write([form(record)]) == 1
        output.close()
        assert daemon.recv(65_536).partition(b"]: ")[2] == line(record)[:-1]


def test_the_journal(daemon: socket.socket) -> None:
    """A message for people without its time, which the journal notes, or another format."""
    record = record_of(make_session())
    for settings, start in ((Log("journald"), b"MESSAGE=alice socks5"), (Log("journald", format="json"), b"MESSAGE={")):
        output, form = open_log(settings)
        assert isinstance(output, JournalOutput)
        assert output.write([form(record)]) == 1
        output.close()
        assert b"\n" + start in daemon.recv(65_536)


def test_syslog_over_the_network() -> None:
    """A name is resolved once; one without an address is an error at the start."""
    record = record_of(make_session())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        output, form = open_log(Log(f"syslog://127.0.0.1:{daemon.getsockname()[1]}"))
        assert isinstance(output, DatagramOutput)
        assert output.write([form(record)]) == 1
        output.close()
        message = daemon.recv(65_536)
    assert message.startswith(b"<30>1 2026-01-02T03:04:05.678Z ")
    assert json.loads(message.partition(b" - - ")[2])["user"] == "alice"
    output, _ = open_log(Log("syslog://[::1]"))
    assert isinstance(output, DatagramOutput)
    assert output.address[:2] == ("::1", 514)
    output.close()


def test_a_place_that_cannot_be_opened_is_told_at_once(
    daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the server starts, not with the first line."""
    with pytest.raises(FileNotFoundError):
        open_log(Log(str(tmp_path / "missing" / "access.log")))
    daemon.close()
    for word in ("syslog", "journald"):
        with pytest.raises(ConnectionRefusedError):
            open_log(Log(word))

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match="not known"):
        open_log(Log("syslog://missing.invalid"))


def test_whether_it_could_be_written_is_seen_without_a_file(
    daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is left as it is, nothing is made or said, and no name is resolved."""
    before = list(tmp_path.iterdir())
    for word in (
        "stdout",
        "stderr",
        "syslog",
        "journald",
        "syslog://missing.invalid",
        "none",
        f"{tmp_path}/access.log",
    ):
        check_log(Log(word))
    assert list(tmp_path.iterdir()) == before
    daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        daemon.recv(1)
    daemon.close()
    for word in ("syslog", "journald"):
        with pytest.raises(ConnectionRefusedError):
            check_log(Log(word))
    (tmp_path / "old.log").write_text("a line\n")
    check_log(Log(str(tmp_path / "old.log")))
    assert (tmp_path / "old.log").read_text() == "a line\n"
    with pytest.raises(IsADirectoryError):
        check_log(Log(str(tmp_path)))
    with pytest.raises(FileNotFoundError):
        check_log(Log(str(tmp_path / "missing" / "access.log")))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    with pytest.raises(PermissionError):
        check_log(Log(str(tmp_path / "access.log")))
