"""The quota keeper: takes from a store what was used before, and puts there what is used, every few seconds."""

from __future__ import annotations

import asyncio
import contextlib

from tabi.errors import ConfigError
from tabi.policy.ledger import Ledger, UsageStore

INTERVAL = 2.0
"""Seconds between two savings: what SIGKILL may cost."""


class QuotaKeeper:
    """Stores what is used in one ledger. A caller without a loop calls `save`, any other runs `run` as a task.

    Args:
        ledger: counts.
        store: keeps.

    Raises:
        ConfigError: what is stored cannot be read.
    """

    def __init__(self, ledger: Ledger, store: UsageStore) -> None:
        self.ledger = ledger
        self.store = store
        self.together = self.merges = False
        """Whether another server uses the store too, and whether what that one uses counts here."""
        ledger.restore(store.load())

    def save(self) -> None:
        """Store what was used since the last time."""
        saved = self.store.save(self.ledger, self.together)
        if self.merges and saved:
            self.merge()

    def merge(self) -> None:
        """Count what another server has used."""
        with contextlib.suppress(ConfigError):  # the next time, then
            self.ledger.merge(self.store.load())

    async def run(self) -> None:
        """Call `save` again and again until the task is cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await asyncio.to_thread(self.save)
        finally:
            self.save()
