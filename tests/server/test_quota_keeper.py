"""The quota keeper: begins with what is stored, and stores what is used, whatever the store is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from conftest import Run
from doubles import until
from tabi.policy.ledger import USED, Usage
from tabi.server import quota_keeper as module
from tabi.server.ledger import LocalLedger
from tabi.server.quota_keeper import QuotaKeeper


class Memory:
    """A store that is none of ours: what is used may be kept anywhere."""

    def __init__(self) -> None:
        self.octets = {"user alice": 5}
        self.saves = 0

    def load(self) -> Mapping[str, tuple[int, int]]:
        return {name: (86400, octets) for name, octets in self.octets.items()}

    def save(self, usage: Usage) -> bool:
        self.saves += 1
        rows = usage.unsaved()
        for name, _, octets in rows:
            self.octets[name] = self.octets.get(name, 0) + octets
        usage.saved(rows)
        return True


def test_it_begins_with_what_is_stored_and_adds_what_is_used() -> None:
    """Any object with `load` and `save` can stand behind the limits."""
    ledger, store = LocalLedger(), Memory()
    keeper = QuotaKeeper(ledger, store)
    assert ledger.cells[ledger.row("user alice") + USED] == 5
    ledger.cells[ledger.row("user alice") + USED] += 7
    ledger.cells[ledger.row("user bob") + USED] += 1
    keeper.save()
    keeper.save()
    assert store.octets == {"user alice": 12, "user bob": 1}


def test_it_saves_again_and_again_and_at_the_end(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a task; what is used between the last time and the cancellation is not lost."""
    monkeypatch.setattr(module, "INTERVAL", 0.001)

    async def main() -> None:
        ledger, store = LocalLedger(), Memory()
        keeping = asyncio.get_running_loop().create_task(QuotaKeeper(ledger, store).run())
        await until(lambda: store.saves > 2)
        ledger.cells[ledger.row("user alice") + USED] += 7
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert store.octets == {"user alice": 12}

    run_once(main)
