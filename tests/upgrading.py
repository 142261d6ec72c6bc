"""A `tabi serve` that is upgraded in place, for tests, and the end of the processes that took over."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from processes import TABI, Serve, environment, is_running, run_program, serve, wait_for


class Upgraded:
    """A server, and those that took over from it: `pids` has their supervisors, the first one first."""

    def __init__(self, proxy: Serve, folder: Path) -> None:
        self.proxy = proxy
        self.folder = folder
        self.pids = [proxy.process.pid]

    @property
    def socket(self) -> Path:
        """The control socket of the one that serves."""
        return self.folder / "tabi" / "control.sock"

    def ask(self, *arguments: str) -> tuple[int, str, str]:
        """A command to the running server: its exit code, what it prints, and its error."""
        env = {**environment(), "XDG_RUNTIME_DIR": str(self.folder)}
        done = run_program([*TABI, *arguments, "--socket", self.socket], env=env)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def upgrade(self) -> int:
        """Upgrade it; gives the pid of the new supervisor."""
        code, out, error = self.ask("upgrade")
        assert code == 0, f"{error}{self.proxy.messages}"
        self.pids.append(int(out))
        return self.pids[-1]

    def wait_gone(self, pid: int) -> None:
        """Wait until a supervisor has ended."""
        self.proxy.process.poll()  # reaps the first one
        wait_for(lambda: not is_running(pid), f"process {pid} to end")
        if pid == self.pids[0]:
            self.proxy.process.wait()

    def end(self) -> None:
        """End all of them."""
        for pid in self.pids[1:]:
            for _ in range(2):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        for pid in self.pids[1:]:
            self.wait_gone(pid)


@contextlib.contextmanager
def upgrading(folder: Path, *arguments: str | Path, **options: Any) -> Iterator[Upgraded]:
    """Run `tabi serve` as `processes.serve`, with a control socket of its own, to be upgraded."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    environ = {"XDG_RUNTIME_DIR": str(run), **options.pop("environ", {})}
    with serve(folder, *arguments, environ=environ, **options) as proxy:
        found = Upgraded(proxy, run)
        try:
            yield found
        finally:
            found.end()
