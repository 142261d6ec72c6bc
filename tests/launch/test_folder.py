"""The folder of a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from processes import PATIENCE, environment
from tabi.launch import folder
from tabi.launch.folder import run_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_for_one_user_and_goes(temporary: Path) -> None:
    """Mode 0700; with all that is in it it is removed, whatever happens."""
    with contextlib.suppress(KeyError), run_folder() as path:
        assert path.parent == temporary
        assert path.name.startswith("tabi-run-")
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "key").write_text("secret")
        raise KeyError
    assert list(temporary.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next_one(temporary: Path) -> None:
    """No process holds its lock any more."""
    code = "import tabi.launch.folder as f, sys; c = f.run_folder(); print(c.__enter__(), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment() | {"TMPDIR": str(temporary)},
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().decode().strip())
        with run_folder() as path:
            assert sorted(temporary.iterdir()) == sorted((left, path))  # it runs, and is left alone
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    assert left.exists()
    with run_folder() as path:
        assert list(temporary.iterdir()) == [path]


def test_what_is_not_such_a_folder_stays(temporary: Path) -> None:
    """A file, a link and a folder of another name."""
    (temporary / "tabi-run-file").write_text("")
    (temporary / "target").mkdir()
    (temporary / "tabi-run-link").symlink_to(temporary / "target")
    with run_folder():
        pass
    assert sorted(path.name for path in temporary.iterdir()) == ["tabi-run-file", "tabi-run-link", "target"]


def test_a_folder_of_another_user_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is ours is removed, even where we may remove more."""
    (temporary / "tabi-run-other").mkdir()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with run_folder():
        assert (temporary / "tabi-run-other").exists()


def test_a_folder_that_vanishes_meanwhile(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs may clean up at the same time."""
    (temporary / "tabi-run-gone").mkdir()

    def vanish(fd: int, how: int) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", vanish)
        folder.remove_left(str(temporary))
    assert (temporary / "tabi-run-gone").exists()
