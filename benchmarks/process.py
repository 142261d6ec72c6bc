"""A server's processes: started, timed, measured from outside through /proc, and ended by their own ids."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")

STARTING = 20.0
"""Seconds that a server has until its port accepts."""

ENDING = 3.0
"""Seconds that a server has to end after SIGTERM."""


class Failure(Exception):
    """A server cannot run, or does not do what a scenario asks. The text is the reason that the results give."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    pid: int
    port: int
    start_seconds: float
    """From the start of its process until its port accepted."""

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far, those that have ended included."""
        total = 0.0
        for pid, stat in process_tree(self.pid).items():
            # Fields 16 and 17 of /proc/PID/stat (proc(5)): user and system time of children that were waited for.
            total += (int(stat[13]) + int(stat[14])) / TICKS
            # What clock_getcpuclockid(3) returns: to the nanosecond, where utime and stime count hundredths.
            with contextlib.suppress(OSError):
                total += time.clock_gettime(~pid << 3 | 2)
        return total

    def user_memory(self) -> int:
        """Octets of all its processes; what several share is divided among them (PSS)."""
        total = 0
        for pid in process_tree(self.pid):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total


def process_tree(root: int) -> dict[int, list[str]]:
    """A process and all that come from it: the fields of /proc/PID/stat from the third (the state) on, by id."""
    stats: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    tree = {pid: stats[pid] for pid in [root] if pid in stats}
    grown = True
    while grown:
        found = {pid: stat for pid, stat in stats.items() if int(stat[1]) in tree and pid not in tree}
        tree |= found
        grown = bool(found)
    return tree


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], port: int, output: Path) -> Iterator[Server]:
    """Run a server until the end of the block. It and all that it started are gone afterwards.

    Args:
        command: starts it in the foreground, on ``port`` of 127.0.0.1.
        output: gets what it writes on standard output and error.

    Raises:
        Failure: it cannot be started, ends at once, or never accepts.
    """
    began = time.perf_counter()
    with output.open("wb") as file:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as exc:
            raise Failure(f"{command[0]}: {exc.strerror}") from None
    try:
        wait_until_accepting(process, port, output)
        yield Server(process.pid, port, time.perf_counter() - began)
    finally:
        end(process)


def wait_until_accepting(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    """Connect until it succeeds."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            lines = output.read_text(errors="replace").strip().splitlines()
            raise Failure(f"ended at once (exit code {process.returncode}): {lines[-1] if lines else 'no message'}")
        time.sleep(0.001)
    raise Failure(f"its port did not accept within {STARTING:.0f} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started, which is its process group: SIGTERM, then SIGKILL for whoever is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ENDING)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
