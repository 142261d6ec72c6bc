"""The quota keeper: takes from a store what was used before, and puts there what is used, every few seconds."""

from __future__ import annotations

import asyncio

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
        ledger.restore(store.load())

    def save(self) -> None:
        """Store what was used since the last time."""
        self.store.save(self.ledger)

    async def run(self) -> None:
        """Call `save` again and again until the task is cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await asyncio.to_thread(self.save)
        finally:
            self.save()
