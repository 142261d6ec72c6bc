"""Watches the files of a configuration: tabi.toml, those that it includes, and those that it names.

It looks at them once a second, which costs some microseconds for each and needs nothing of the system: so it also
works on file systems of a network, and where a file is replaced by another one.
"""

from __future__ import annotations

import glob
import logging
import os
from contextlib import suppress
from pathlib import Path

from tabi.config.files import Files
from tabi.errors import ConfigError, printable

log = logging.getLogger("tabi")

INTERVAL = 1.0
"""Seconds between two looks."""
PATIENCE = 10
"""Looks after which a change counts although there is a newer one at each of them."""

State = tuple[int, ...] | None
"""What tells a file from a newer one: time, size and place on the disk; None if it is not there."""


class Watch:
    """Tells when files have changed. Make it before they are read, so that no change is missed.

    Args:
        path: of tabi.toml.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, path: Path, now: float = 0.0) -> None:
        self.path = os.path.abspath(path)
        self.names: set[str] = set()
        self.patterns: set[str] = set()
        self.due = now
        """When it looks next."""
        self.find_files()
        self.seen = self.last = self.look()
        """What was there when they were read, and at the last look."""
        self.looks = 0
        """Those in a row that have seen something new."""

    def has_changed(self, now: float) -> bool:
        """Whether the files are others than those that were read, and have not changed since the last look: whoever
        writes may be about to write more."""
        if now < self.due:
            return False
        self.due = now + INTERVAL
        found = self.look()
        before, self.last = self.last, found
        self.looks = self.looks + 1 if found != self.seen else 0
        if not self.looks or (found != before and self.looks < PATIENCE):
            return False
        others = sorted(name for name in {*found, *self.seen} if found.get(name) != self.seen.get(name))
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        log.info("changed: %s%s", printable(others[0]), more)
        self.find_files()
        self.seen = self.last = self.look()  # what changes from here on, a reload that begins now may miss
        self.looks = 0
        return True

    def find_files(self) -> None:
        """Find out which files there are. What is known stays if one of them is broken."""
        files = Files(self.path)
        if os.path.isfile(self.path):  # a pipe can be read only once
            with suppress(ConfigError):
                files.load()
                self.names, self.patterns = set(), set()
        self.names |= {self.path, *files.names, *files.named()}
        self.patterns |= set(files.patterns)

    def look(self) -> dict[str, State]:
        """The state of each file, those too that a pattern has found."""
        names = {*self.names, *(name for pattern in self.patterns for name in glob.glob(pattern))}
        return {name: state_of(name) for name in names}


def state_of(name: str) -> State:
    """See `State`."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
