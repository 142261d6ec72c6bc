"""SIGHUP, SIGUSR1 and SIGUSR2 end nothing, from the first line of the program on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from processes import PATIENCE, TABI, Serve, children, environment, run_program, tunnels, wait_for

SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

AT_EVERY_IMPORT = """
import os, sys

class Finder:
    begun = False

    def find_spec(self, name, path=None, target=None):
        self.begun = self.begun or name.startswith("tabi.cli")
        if self.begun:
            for number in (1, 10, 12):
                os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize that has each of the three signals sent before every import that the commands make."""


@pytest.mark.parametrize("command", [("--version",), ("serve", "-h"), ("connect", "-h"), ("check", "-h")], ids=" ".join)
def test_they_come_at_every_import(tmp_path: Path, command: tuple[str, ...]) -> None:
    """None of them ends the program while it imports what a command needs: they were seen to before."""
    (tmp_path / "sitecustomize.py").write_text(AT_EVERY_IMPORT)
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), env.get("PYTHONPATH"))))
    done = subprocess.run([*TABI, *command], env=env, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_installed_command_begins_there() -> None:
    """`tabi` is the same as `python -m tabi`."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["scripts"] == {"tabi": "tabi.__main__:main"}


def is_held(pid: int) -> bool:
    """Whether a process has come to its first line: proc_pid_status(5) says what it blocks and ignores."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = dict(re.findall(r"^(SigBlk|SigIgn):\t(\w+)$", text, re.MULTILINE))
    held = int(masks.get("SigBlk", "0"), 16) | int(masks.get("SigIgn", "0"), 16)
    return all(held >> (number - 1) & 1 for number in SIGNALS)


class Flood:
    """Sends the three signals to processes in a loop, until it is stopped; SIGUSR2 not to a supervisor, which would
    start its program anew."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.supervisor = 0
        self.ended = False
        self.thread = threading.Thread(target=self.send)
        self.thread.start()

    def send(self) -> None:
        """The loop."""
        while not self.ended:
            for pid in self.pids:
                for number in SIGNALS[: 2 if pid == self.supervisor else 3]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    def stop(self) -> None:
        """End it."""
        self.ended = True
        self.thread.join()


def test_a_flood_of_them_from_the_first_line_on(tmp_path: Path) -> None:
    """Every process of the server is sent them for as long as it lives, and serves and ends in its own order."""
    out, err = tmp_path / "out", tmp_path / "err"
    flood = Flood()
    try:
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*TABI, "serve", "-l", "socks5://127.0.0.1:0", "--workers", "2"],
                env=environment(),
                stdout=stdout,
                stderr=stderr,
            )
        running = Serve(process, out, err)
        try:
            wait_for(lambda: is_held(process.pid), "the first line")
            flood.supervisor = process.pid
            flood.pids.append(process.pid)
            running.wait_ready()
            pids = children(process.pid)
            assert len(pids) == 4
            flood.pids += pids
            with tunnels(running.address) as (tunnel,):
                tunnel.check()
            assert children(process.pid) == pids
            assert running.stop() == 0
        finally:
            running.clean_up()
    finally:
        flood.stop()


def test_a_reload_that_is_asked_for_during_the_start_is_done(tmp_path: Path) -> None:
    """A SIGHUP is not lost that comes between the first line and the listening."""
    (tmp_path / "tabi.toml").write_text('[[listen]]\nurl = "socks5://127.0.0.1:0"\n')
    (tmp_path / "sitecustomize.py").write_text(AT_EVERY_IMPORT)
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), env.get("PYTHONPATH"))))
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*TABI, "serve", "-c", tmp_path / "tabi.toml"], env=env, stdout=stdout, stderr=stderr
        )
    running = Serve(process, out, err)
    try:
        running.wait_ready()
        wait_for(lambda: "reloaded: " in running.messages, "the reload")
    finally:
        running.clean_up()


RESTORED = """
import os, signal, sys
sys.argv[1:] or signal.signal(signal.SIGUSR2, signal.SIG_IGN)
from tabi.signals import hold, restore
hold()
restore()
print(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL, signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL)
print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.parametrize(("arguments", "expected"), [((), "True False\nFalse\n"), (("x",), "True True\nFalse\n")])
def test_they_can_be_given_back(arguments: tuple[str, ...], expected: str) -> None:
    """A program that is executed next gets what ours was started with: the default, or ignored."""
    done = run_program([sys.executable, "-c", RESTORED, *arguments])
    assert (done.stdout.decode(), done.stderr) == (expected, b"")
