"""The access log that a configuration composes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from log_sessions import make_session, record_of
from processes import PATIENCE, Serve, failure, receive_all, run_here, serve, tunnels, wait_for
from support import credentials
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


# --- as operators meet it ---


def use(proxy: Serve, username: bytes = b"") -> None:
    """A session from its begin to its end, or a login that is refused."""
    if not username:
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
        return
    with socket.create_connection((str(proxy.address.host), proxy.address.port), PATIENCE) as client:
        client.sendall(b"\x05\x01\x02" + credentials(username, b"wrong"))
        assert receive_all(client) == b"\x05\x02\x01\x01"


def read_until(fd: int, end: bytes) -> str:
    """What a terminal shows, until it has shown something."""
    found = b""
    while end not in found:
        assert select.select([fd], [], [], PATIENCE)[0], f"waited for {end!r}, got {found!r}"
        found += os.read(fd, 65_536)
    return found.decode()


NOBODY = '[users.alice]\npassword = "secret"\nplain = true\n'


@pytest.mark.parametrize("environ", [{"TERM": "xterm", "NO_COLOR": ""}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_shows_a_line_for_people(tmp_path: Path, environ: dict[str, str]) -> None:
    """With its colours, or without; stderr has no part in it."""
    ours, theirs = pty.openpty()
    try:
        with serve(tmp_path, stdout=theirs, environ=environ) as proxy:
            use(proxy)
            shown = read_until(ours, b"\n")
        assert ("\x1b[" in shown) == (environ.get("TERM") == "xterm")
        plain = re.sub(r"\x1b\[\d+m", "", shown)
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d - socks5 127\.0\.0\.1 -> 127\.0\.0\.1:\d+ direct 4 B/4 B \d+ ms ok\r\n", plain
        )
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("form", ["auto", "json", "text", "logfmt"])
def test_a_hostile_user_breaks_no_line_and_controls_no_terminal(tmp_path: Path, form: str) -> None:
    """Whatever the format: the name of a wrong login is in its line, with everything escaped that is not to be seen."""
    ours, theirs = pty.openpty()
    config = tmp_path / "tabi.toml"
    config.write_text(
        f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n{NOBODY}[log]\nformat = "{form}"\naccess = "{os.ttyname(theirs)}"\n'
    )
    hostile = "a\r\nroot\x1b[2J\x1b]0;x\x07\x9b31m\u202e\u2066\u200f\u2028".encode() + b"\xff\x00\x1b"
    try:
        with serve(tmp_path, "-c", config, environ={"TERM": "xterm"}) as proxy:
            use(proxy, hostile)
            use(proxy, b"last one")
            shown = read_until(ours, b"last one")
        shown = re.sub(r"\x1b\[\d+m", "", shown)
        (line, _) = shown.split("\r\n")[:2]
        assert line.isprintable()
        assert "root" in line
    finally:
        os.close(ours)
        os.close(theirs)


def test_beginnings_in_a_file_that_is_rotated(tmp_path: Path) -> None:
    """A line for each beginning and each end, with the same id; a reload and a moved file change nothing."""
    log, config = tmp_path / "access.log", tmp_path / "tabi.toml"
    text = f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n[log]\naccess = "{log}"\nformat = "logfmt"\nbegin = true\n'
    config.write_text(text)
    with serve(tmp_path, "-c", config) as proxy:
        with tunnels(proxy.address) as (tunnel,):
            tunnel.check()
            (begun,) = wait_for(lambda: whole_lines(log), "the line of the beginning")
            log.rename(tmp_path / "old.log")
        (ended,) = wait_for(lambda: whole_lines(log), "the line of the end")
        config.write_text(text.replace("logfmt", "json"))
        proxy.signal(signal.SIGHUP)
        wait_for(lambda: "these wait for a restart: log" in proxy.messages, "the reload")
        use(proxy)
        assert len(wait_for(lambda: (found := whole_lines(log))[2:] and found, "two more lines")) == 3
    begin, end = (dict(pair.split("=", 1) for pair in line.split(" ")) for line in (begun, ended))
    assert begin["id"] == end["id"]
    assert ("close" in begin, end["close"], end["up"]) == (False, "client", "4")


def whole_lines(path: Path) -> list[str]:
    """The lines of a log, once it is there."""
    return path.read_text().splitlines() if path.exists() else []


def test_syslog_of_another_machine(tmp_path: Path) -> None:
    """Two workers send to it; whoever does not listen holds up nobody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        daemon.settimeout(PATIENCE)
        place = f"syslog://127.0.0.1:{daemon.getsockname()[1]}"
        with serve(tmp_path, "--access-log", place, "--workers", "2") as proxy:
            use(proxy)
            message = daemon.recv(65_536).decode()
            daemon.close()
            use(proxy)
            assert proxy.stop() == 0
    assert re.match(r"<30>1 \S+Z \S+ tabi \d+ - - {", message)
    assert json.loads(message.partition(" - - ")[2])["close"] in ("client", "server")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('access = "syslog://a.invalid:x"', "log.access: the port is not a number from 0 to 65535, expected syslog://"),
        (
            'access = "tcp://a:1"',
            "log.access: expected stdout, stderr, syslog, syslog://host:port, journald, none or a",
        ),
        ('format = "xml"', "log.format: invalid enum value 'xml', expected auto, json, text or logfmt"),
        ('begin = "yes"', "log.begin: expected boolean, got string"),
    ],
)
def test_wrong_values(tmp_path: Path, settings: str, message: str) -> None:
    """One line with the key; `tabi check` prints what is right."""
    path = tmp_path / "tabi.toml"
    path.write_text(f"[log]\n{settings}\n")
    for command in (("serve", "-c"), ("check",)):
        assert message in failure(run_here(*command, path), 2)
    path.write_text('[log]\naccess = "syslog://a.invalid"\nformat = "text"\n')
    shown = run_here("check", path).stdout.decode().splitlines()
    assert {'log.access = "syslog://a.invalid"', 'log.format = "text"', "log.begin = false"} <= set(shown)
