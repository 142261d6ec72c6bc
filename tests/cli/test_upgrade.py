"""`tabi upgrade`."""

from __future__ import annotations

from pathlib import Path

from processes import failure, run_here
from upgrading import upgrading


def test_it_prints_the_new_pid(tmp_path: Path) -> None:
    """Exit code 0, and nothing else."""
    with upgrading(tmp_path) as server:
        code, out, error = server.ask("upgrade")
        server.pids.append(int(out))
        assert (code, out, error) == (0, f"{server.pids[-1]}\n", "")


def test_no_server(tmp_path: Path) -> None:
    """One line that says where it was looked for."""
    path = tmp_path / "none.sock"
    assert failure(run_here("upgrade", "--socket", path), 1) == f"tabi: {path}: No such file or directory\n"
