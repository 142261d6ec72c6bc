"""The bulletin: what the supervisor tells all workers, in memory that they share. A message has them read it."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Mapping

from tabi.config import Config


class Bulletin:
    """One message, the last. To make before fork(2).

    It is pickled: nobody writes it but the supervisor.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("tabi-bulletin")

    def publish(self, config: Config, rows: Mapping[str, int]) -> None:
        """Put up a configuration, and the rows of the ledger that belong to it."""
        data = pickle.dumps((config, dict(rows)), pickle.HIGHEST_PROTOCOL)
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        os.ftruncate(self.fd, 0)
        written = 0
        while written < len(data):
            written += os.pwrite(self.fd, data[written:], written)
        fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def read(self) -> tuple[Config, Mapping[str, int]] | None:
        """What was put up last, or None for nothing."""
        fcntl.lockf(self.fd, fcntl.LOCK_SH)
        data = b""
        while part := os.pread(self.fd, 1 << 24, len(data)):
            data += part
        fcntl.lockf(self.fd, fcntl.LOCK_UN)
        return pickle.loads(data) if data else None  # noqa: S301 - our supervisor's own

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)
