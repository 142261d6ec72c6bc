"""The ledger: a row for each name, found again, and what a worker that died had running is taken back."""

from __future__ import annotations

from tabi.policy.ledger import PERIOD, RUNNING, USED, Ledger, Used


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


def test_there_is_one_table_of_clients() -> None:
    """It is made when it is asked for, and every part of a server has the same."""
    ledger = Ledger()
    assert ledger.clients is ledger.clients


def test_one_worker_has_one_cell() -> None:
    """What it has running is what there is."""
    ledger = Ledger()
    at = ledger.row("alice")
    ledger.cells[at + RUNNING] = 3
    assert ledger.running(at) == 3


def test_a_row_that_another_process_has_made_is_taken_up() -> None:
    """What `learn` brings is looked at before a row is made; others are told of one that is."""

    class Told(Ledger):
        told: list[str]

        def learn(self) -> None:
            self.rows.setdefault("of another", 0)

        def tell(self, name: str) -> None:
            self.told.append(name)

    ledger = Told()
    ledger.told = []
    assert (ledger.row("of another"), ledger.told) == (0, [])
    assert (ledger.row("mine"), ledger.told) == (ledger.width, ["mine"])


def test_what_is_stored_comes_back_and_what_is_new_is_told_once() -> None:
    """What is counted already is not overwritten; what belongs to another period by now is not stored as this one's."""
    ledger = Ledger()
    ledger.restore({"alice": (100, 7), "bob": (100, 1)})
    alice, bob = ledger.row("alice"), ledger.row("bob")
    ledger.cells[alice + USED] += 3
    ledger.restore({"alice": (200, 50)})
    rows = ledger.unsaved()
    assert rows == [("alice", 100, 3)]
    ledger.cells[bob + USED] += 2
    ledger.saved(rows)
    assert ledger.unsaved() == [("bob", 100, 2)]
    rows = ledger.unsaved()
    ledger.cells[bob + PERIOD] = 200
    ledger.saved(rows)
    assert ledger.unsaved() == [("bob", 200, 2)]
    ledger.cells[bob + PERIOD] = 100
    ledger.saved(rows)
    assert ledger.unsaved() == []


def test_what_another_process_has_stored_counts_once() -> None:
    """Differences to what is known to be stored are added, whatever was used here meanwhile; equal ones are nothing."""
    ledger = Ledger()
    ledger.merge({"user alice": (86400, 10)})
    at = ledger.row("user alice")
    ledger.cells[at + USED] += 3
    for _ in range(2):
        ledger.merge({"user alice": (86400, 15)})
        assert ledger.cells[at + PERIOD] == 86400
        assert (ledger.cells[at + USED], ledger.unsaved()) == (18, [Used("user alice", 86400, 3)])


def test_what_another_process_has_stored_of_another_period_does_not_count() -> None:
    """Then nothing of the current one is stored any more: all of it is to be stored again."""
    ledger = Ledger()
    ledger.merge({"user alice": (86400, 10)})
    ledger.merge({"user alice": (2 * 86400, 4)})
    assert ledger.cells[ledger.row("user alice") + USED] == 10
    assert ledger.unsaved() == [Used("user alice", 86400, 10)]
