"""The quota store: what accounts have used, in a file of SQLite, so that a restart forgets nothing.

Use of a quota is counted in the ledger; every few seconds what is new is added to the file, in one
transaction of its write-ahead log. A process that is killed loses that much at most, and the file is never broken:
SQLite rolls back what was not committed. https://sqlite.org/wal.html
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from tabi.config import Config
from tabi.errors import ConfigError
from tabi.policy.ledger import Usage, UsageStore, Used

log = logging.getLogger("tabi")

BUSY = 5.0
"""Seconds that one process waits for another that is saving."""

VERSION = 1

CREATE = """
CREATE TABLE IF NOT EXISTS quota (
    account TEXT PRIMARY KEY,
    period INTEGER NOT NULL,  -- when it began, in seconds since 1970
    used INTEGER NOT NULL     -- octets
) WITHOUT ROWID
"""

ADD = """
INSERT INTO quota (account, period, used) VALUES (?, ?, ?)
ON CONFLICT (account) DO UPDATE SET
    used = CASE WHEN period = excluded.period THEN used + excluded.used ELSE excluded.used END,
    period = excluded.period
"""

ADD_TOGETHER = """
INSERT INTO quota (account, period, used) VALUES (?, ?, ?)
ON CONFLICT (account) DO UPDATE SET
    used = CASE WHEN period = excluded.period THEN used + excluded.used ELSE excluded.used END,
    period = excluded.period
WHERE period <= excluded.period
"""
"""The same beside another server, which may have begun the next period already."""


class QuotaStore:
    """The store in one file. It is open only while it is used: an open database must not come through fork(2).

    Args:
        path: the file is made if it does not exist, with its folder, for its owner only.

    Raises:
        OSError: it cannot be made.
        sqlite3.Error: it is another kind of file, or of a later version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # SQLite's mode is open to all users
        with self.open() as database:
            check_tables(database)
            database.execute(CREATE)
            database.execute(f"PRAGMA user_version = {VERSION}")

    def __repr__(self) -> str:
        return f"QuotaStore({str(self.path)!r})"

    @contextlib.contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection within a transaction with exclusive write access; it is committed at the end."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def load(self) -> Mapping[str, tuple[int, int]]:
        """See `UsageStore`."""
        try:
            with self.open() as database:
                rows = database.execute("SELECT account, period, used FROM quota").fetchall()
        except sqlite3.Error as exc:
            raise ConfigError(f"{self.path}: {exc}", "quotas.path") from exc
        return {account: (period, used) for account, period, used in rows}

    def save(self, usage: Usage, together: bool = False, /) -> bool:
        """Add what was used since the last time; any process may, at any time. False if that failed: then it is logged
        once, and the next call adds all of it. See `UsageStore`."""
        if not usage.unsaved():
            return True
        saved: list[Used] = []
        try:
            with self.open() as database:
                rows = usage.unsaved()  # again: only here no other process saves the same
                database.executemany(ADD_TOGETHER if together else ADD, rows)
                usage.saved(rows)
                saved = rows
        except sqlite3.Error as exc:  # perhaps nothing was committed
            usage.saved([used._replace(octets=-used.octets) for used in saved])
            if not self.failed:
                log.error(
                    "quotas: %s: %s; what is used is lost with this process until it can be written", self.path, exc
                )
            self.failed = True
            return False
        self.failed = False
        return True


def default_path(environment: Mapping[str, str]) -> Path:
    """The default place of the file: in systemd's state directory, or the user's own (XDG)."""
    given = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given, "quotas.sqlite")
    home = environment.get("XDG_STATE_HOME", "")
    folder = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    return folder / "tabi" / "quotas.sqlite"


def path_of(config: Config) -> Path:
    """Where the file of a configuration is."""
    return default_path(os.environ) if config.quotas.path is None else Path(config.quotas.path)


def open_store(path: Path) -> UsageStore:
    """Make or open one. Raises ConfigError."""
    try:
        return QuotaStore(path)
    except (OSError, sqlite3.Error) as exc:
        raise ConfigError(f"{path}: {strerror(exc)}", "quotas.path") from exc


def check_store(path: Path) -> None:
    """Check whether `open_store` would succeed, and change nothing. Raises ConfigError."""
    try:
        if path.exists() or path.is_symlink():
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
                check_tables(database)
            return
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, f"{folder}: no folder that can be written to")
    except (OSError, sqlite3.Error) as exc:
        raise ConfigError(f"{path}: {strerror(exc)}", "quotas.path") from exc


def check_tables(database: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError if a file is another program's, or of a later version."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise sqlite3.DatabaseError(f"version {version}, expected {VERSION}: made by a later tabi")
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and tables != {"quota"}:
        raise sqlite3.DatabaseError("the file of another program")
    if tables:
        database.execute("SELECT account, period, used FROM quota LIMIT 1")


def strerror(exc: OSError | sqlite3.Error) -> str:
    """What went wrong, without the path."""
    return (isinstance(exc, OSError) and exc.strerror) or str(exc)
