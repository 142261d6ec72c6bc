"""The quota keeper: begins with what is stored, and stores what is used, whatever the store is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import Run
from doubles import until
from tabi.errors import ConfigError
from tabi.policy.ledger import PERIOD, USED, Usage
from tabi.server import quota_keeper as module
from tabi.server.ledger import LocalLedger
from tabi.server.quota_keeper import QuotaKeeper
from tabi.server.quota_store import QuotaStore


class Memory:
    """A store that is none of ours: what is used may be kept anywhere."""

    def __init__(self) -> None:
        self.octets = {"user alice": 5}
        self.saves = 0

    def load(self) -> Mapping[str, tuple[int, int]]:
        return {name: (86400, octets) for name, octets in self.octets.items()}

    def save(self, usage: Usage, together: bool = False) -> bool:
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


def test_two_servers_use_one_store(tmp_path: Path) -> None:
    """What one uses counts for the other as soon as both have saved, and nothing is stored twice."""
    store = QuotaStore(tmp_path / "q")
    one, two = (QuotaKeeper(LocalLedger(), store) for _ in range(2))
    two.together = two.merges = True
    one.together = True
    for keeper, octets in ((one, 5), (two, 7), (one, 2)):
        at = keeper.ledger.row("user alice")
        keeper.ledger.cells[at + PERIOD] = 86400
        keeper.ledger.cells[at + USED] += octets
        keeper.save()
    two.save()
    assert two.ledger.cells[two.ledger.row("user alice") + USED] == 14
    assert one.ledger.cells[one.ledger.row("user alice") + USED] == 7
    assert store.load() == {"user alice": (86400, 14)}


def test_a_store_that_cannot_be_read_changes_nothing() -> None:
    """The next time, then."""

    class Broken(Memory):
        def load(self) -> Mapping[str, tuple[int, int]]:
            raise ConfigError("it is broken", "quotas.path")

    keeper = QuotaKeeper(LocalLedger(), Memory())
    keeper.store, keeper.merges = Broken(), True
    keeper.save()
    assert keeper.ledger.cells[keeper.ledger.row("user alice") + USED] == 5
