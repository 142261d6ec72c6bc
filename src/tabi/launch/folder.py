"""The folder of one run: nobody else may read it, and it goes with the run, at the latest with the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "tabi-run-"

MOST = 100
"""Folders that are looked at: what a run leaves that was killed is little, and others have made the rest."""


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder in the temporary directory, for this user only (0700); it is removed at the end.

    It is locked as long as this process lives. The folders of runs that were killed are not, and are removed first.

    Raises:
        OSError: it cannot be made.
    """
    parent = tempfile.gettempdir()
    remove_left(parent)
    path = tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # not inherited: the program does not hold the lock
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            final = os.path.join(parent, os.path.basename(path).removeprefix("."))  # only from now on it can be found
            os.rename(path, final)
            path = final
            yield Path(path)
        finally:
            os.close(fd)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_left(parent: str) -> None:
    """Remove the folders of this user's runs whose processes are gone."""
    with os.scandir(parent) as entries:
        found = [
            entry.path
            for entry in entries
            if entry.name.startswith(PREFIX)
            and entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        ]
    for path in found[:MOST]:
        with contextlib.suppress(OSError):  # another run has just removed it
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
