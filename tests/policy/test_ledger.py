"""The ledger: a row for each name, found again, and what a worker that died had running is taken back."""

from __future__ import annotations

from tabi.policy.ledger import RUNNING, USED, Ledger


def test_rows_go_by_names() -> None:
    """A name has the same row for ever: a reload finds what was counted."""
    ledger = Ledger(2)
    alice, bob = ledger.row("alice"), ledger.row("bob")
    ledger.cells[alice + USED] = 7
    assert ledger.row("alice") == alice
    assert ledger.cells[ledger.row("alice") + USED] == 7
    assert ledger.cells[bob + USED] == 0
    assert repr(ledger) == "Ledger(2 accounts)"


def test_a_dead_worker_runs_nothing() -> None:
    """Its sessions count no more; those of others do."""
    ledger = Ledger(2)
    at = ledger.row("alice")
    ledger.enter()
    ledger.cells[at + RUNNING] = 3
    ledger.cells[at + RUNNING + 1] = 4
    ledger.leave()
    assert ledger.running(at) == 7
    ledger.forget_worker(0)
    assert ledger.running(at) == 4


def test_one_worker_has_one_cell() -> None:
    """What it has running is what there is."""
    ledger = Ledger()
    at = ledger.row("alice")
    ledger.cells[at + RUNNING] = 3
    assert ledger.running(at) == 3
