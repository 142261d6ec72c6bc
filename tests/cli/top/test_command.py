"""`tabi top` as a program: on a terminal, in a pipe, without what it needs, and what it leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, TABI, Serve, environment, failure, run_here, run_program, serve, tunnels

COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])\b[0-9;]*m")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serve, Path]]:
    """A server, and its control socket."""
    folder = tmp_path_factory.mktemp("top")
    with serve(folder, environ={"XDG_RUNTIME_DIR": str(folder)}) as proxy:
        yield proxy, folder / "tabi/control.sock"


class Terminal:
    """A terminal of 80x24, with `tabi top` in its foreground."""

    def __init__(self, *arguments: str | Path, controls: bool = True, **environ: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        os.set_blocking(self.ours, False)
        self.theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.text = b""
        self.process = subprocess.Popen(
            [*TABI, "top", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment(), "TERM": "xterm-256color", **environ},
            start_new_session=True,
            preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if controls else None,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        for fd in (self.ours, self.theirs):
            with contextlib.suppress(OSError):
                os.close(fd)

    def sees(self, text: bytes) -> None:
        """Read until a text has come."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            with contextlib.suppress(BlockingIOError):
                self.text += os.read(self.ours, 65536)
            time.sleep(0.01)

    def types(self, text: bytes) -> None:
        """Press keys."""
        os.write(self.ours, text)

    def ends(self) -> int:
        """Wait for the end of the program, and of what it writes."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(BlockingIOError):
                self.text += os.read(self.ours, 65536)
            time.sleep(0.01)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.ours, 65536):
                self.text += part
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.mark.parametrize("end", [b"q", b"\x03", signal.SIGTERM], ids=["q", "Ctrl-C", "SIGTERM"])
def test_the_terminal_is_as_before(server: tuple[Serve, Path], end: bytes | signal.Signals) -> None:
    """Its modes, its screen and its cursor, however the program is ended."""
    with Terminal("--socket", server[1]) as terminal:
        terminal.sees(b"q quit")
        assert termios.tcgetattr(terminal.theirs) != terminal.before
        if isinstance(end, bytes):
            terminal.types(end)
        else:
            terminal.process.send_signal(end)
        assert terminal.ends() == 0
        assert termios.tcgetattr(terminal.theirs) == terminal.before
        for off, on in (
            (b"\x1b[?1049l", b"\x1b[?1049h"),
            (b"\x1b[?25h", b"\x1b[?25l"),
            (b"\x1b[?1000l", b"\x1b[?1000h"),
        ):
            assert terminal.text.rindex(off) > terminal.text.rindex(on)


def test_a_terminal_that_is_closed_ends_it(server: tuple[Serve, Path]) -> None:
    """SIGHUP; tabi's servers outlive one, this does not."""
    with Terminal("--socket", server[1]) as terminal:
        terminal.sees(b"q quit")
        os.close(terminal.theirs)
        os.close(terminal.ours)
        assert terminal.process.wait(PATIENCE) == -signal.SIGHUP


def test_a_terminal_that_is_closed_without_a_signal_ends_it(server: tuple[Serve, Path]) -> None:
    """As one that does not control the program, whose process ends: it does not go on for nobody."""
    with Terminal("--socket", server[1], "--every", "0.5", controls=False) as terminal:
        terminal.sees(b"q quit")
        os.close(terminal.theirs)
        os.close(terminal.ours)
        assert terminal.process.wait(PATIENCE) > 0


def test_no_color(server: tuple[Serve, Path]) -> None:
    """https://no-color.org: none is set."""
    with Terminal("--socket", server[1], NO_COLOR="1") as terminal:
        terminal.sees(b"q quit")
        terminal.types(b"2")
        terminal.sees(b"no users")
        terminal.types(b"q")
        terminal.ends()
        assert not COLOUR.search(terminal.text)


def test_a_pipe_gets_one_look_as_text(server: tuple[Serve, Path]) -> None:
    """For scripts: without escapes, and without textual."""
    proxy, path = server
    with tunnels(proxy.address) as (tunnel,):
        client = "{}:{}".format(*tunnel.client.getsockname())
        tunnel.client.sendall(b"x" * 1234)
        done = run_program((*TABI, "top", "--socket", path))
        assert (done.returncode, done.stderr) == (0, b"")
        head, _, titles, row = done.stdout.decode().splitlines()
        assert head.startswith("tabi ")
        assert " 1 open " in head
        assert titles.split() == ["id", "user", "client", "protocol", "destination", "egress", "up", "down", "time"]
        assert row.split()[1:4] == ["-", client, "socks5"]
        done = run_program((*TABI, "top", "--socket", path, "--view", "egress"))
        assert done.stdout.decode().splitlines()[3].split() == ["direct", "1"]


def test_once_on_a_terminal(server: tuple[Serve, Path]) -> None:
    """The same there, cut to its width."""
    with Terminal("--socket", server[1], "--once", "--view", "users") as terminal:
        assert terminal.ends() == 0
        assert b"no users" in terminal.text
        assert b"\x1b" not in terminal.text


def test_without_the_extra_one_line_says_what_to_do(server: tuple[Serve, Path], tmp_path: Path) -> None:
    """And one look as text works without it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['textual'] = None\n")
    paths = os.pathsep.join((str(tmp_path), *sys.path[1:]))
    with Terminal("--socket", server[1], PYTHONPATH=paths) as terminal:
        assert terminal.ends() == 2
        assert terminal.text.strip() == b"tabi: tabi top needs textual: pip install 'tabi[top]'"
    done = run_program((*TABI, "top", "--once", "--socket", server[1]), env=environment() | {"PYTHONPATH": paths})
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_command_alone_imports_no_screen() -> None:
    """`tabi top -h`, and one look as text, are as quick as other commands."""
    code = "import sys, tabi.cli.top; sys.exit('textual' in sys.modules or 'rich' in sys.modules)"
    assert run_program((sys.executable, "-c", code)).returncode == 0


def test_no_server_is_one_line(tmp_path: Path) -> None:
    """Before there is any screen."""
    path = tmp_path / "none.sock"
    assert str(path) in failure(run_here("top", "--socket", path), 1)
    with Terminal("--socket", path) as terminal:
        assert terminal.ends() == 1
        assert b"\x1b" not in terminal.text
