"""The shared ledger: what one process counts the others see, and nobody waits for the dead."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from time import monotonic_ns

import pytest

from tabi.config import LimitsConfig
from tabi.errors import LimitExceeded
from tabi.policy.clients import ClientTerms, key_of
from tabi.policy.ledger import RUNNING, USED
from tabi.policy.limits import Limits as Accounts
from tabi.policy.limits import Networks
from tabi.policy.quantities import Quota
from tabi.server.ledger import SharedLedger
from tabi.wire.address import parse_host

CLIENT = parse_host("192.0.2.1")


@pytest.fixture
def ledger() -> Iterator[SharedLedger]:
    """One for two workers."""
    with contextlib.closing(SharedLedger(2)) as found:
        yield found


def in_child(work: Callable[[], object]) -> int:
    """Do something in a process of its own; gives how that ended, 0 for well."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_others_see_what_one_counts(ledger: SharedLedger) -> None:
    """A child's cells are its parent's too, also those that a reload has added since it was born."""
    row = ledger.row("user alice")
    many = [ledger.row(f"user {number}") for number in range(1000)]

    def work() -> None:
        ledger.cells[row + USED] += 5
        ledger.cells[many[-1] + USED] += 7

    assert in_child(work) == 0
    assert (ledger.cells[row + USED], ledger.cells[many[-1] + USED]) == (5, 7)


def test_a_row_that_one_makes_is_the_same_for_all(ledger: SharedLedger) -> None:
    """An account that comes first in one process has the same row in all others, whatever their own order is."""
    ledger.row("server")

    def work() -> None:
        for number in range(2000):
            at = ledger.row(f"user jörg {number}")  # which may move the cells
            ledger.cells[at + USED] = number

    assert in_child(work) == 0
    new = ledger.row("user of this process")
    assert new == 2001 * ledger.width
    for number in (1999, 7):
        at = ledger.row(f"user jörg {number}")
        assert ledger.cells[at + USED] == number
    assert ledger.cells[new + USED] == 0


def test_what_was_used_is_found_by_whoever_stores_it(ledger: SharedLedger) -> None:
    """Also of accounts that only another process has seen."""

    def work() -> None:
        at = ledger.row("user alice")
        ledger.cells[at + USED] = 7

    assert in_child(work) == 0
    assert ledger.unsaved() == [("user alice", 0, 7)]
    ledger.saved(ledger.unsaved())
    assert ledger.unsaved() == []
    ledger.restore({"user alice": (5, 3), "user bob": (5, 4)})  # alice: it has begun no period yet
    assert ledger.unsaved() == []


def test_a_name_that_was_not_written_to_its_end_is_none(ledger: SharedLedger) -> None:
    """Whoever makes a row may be killed while it does."""
    ledger.row("user alice")
    os.pwrite(ledger.names, b"user bo", ledger.known)
    assert in_child(lambda: ledger.row("user carol")) == 0
    assert ledger.row("user carol") == ledger.width


def test_what_is_in_a_cell_stays_when_there_are_more(ledger: SharedLedger) -> None:
    """Growing moves no row and loses no number."""
    row = ledger.row("server")
    ledger.cells[row + USED] = 42
    for number in range(5000):
        ledger.row(f"user {number}")
    assert ledger.cells[ledger.rows["server"] + USED] == 42
    assert ledger.row("server") == row


def test_a_connection_limit_holds_over_all_workers(ledger: SharedLedger) -> None:
    """Two workers and three connections: each counts in its own cell, and both cells count."""

    def admit(times: int) -> int:
        limits = Accounts(ledger, users={"alice": LimitsConfig(connections=3)})
        admitted = 0
        for _ in range(times):
            with contextlib.suppress(LimitExceeded):
                limits.admit("alice", CLIENT, monotonic_ns(), 0)
                admitted += 1
        return admitted

    ledger.row("user alice")

    def work() -> None:
        ledger.settle(1)
        assert admit(2) == 2

    assert in_child(work) == 0
    assert admit(2) == 1
    row = ledger.rows["user alice"]
    assert list(ledger.cells[row + RUNNING : row + RUNNING + 2]) == [1, 2]
    ledger.forget_worker(1)
    assert admit(3) == 2


def test_many_processes_lose_no_octet(ledger: SharedLedger) -> None:
    """Reading and writing stands within the lock: eight processes at once count as one."""
    limits = Accounts(ledger, server=LimitsConfig(quota=Quota.parse("1 TB/day")))
    limits.turn_periods(86400.0)

    def work() -> None:
        lease = limits.admit(None, CLIENT, 0, 86400.0)
        assert lease is not None
        for _ in range(2000):
            lease.spend(0, 3, 0)

    pids = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            try:
                work()
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    assert ledger.cells[ledger.rows["server"] + USED] == 8 * 2000 * 3


def test_the_lock_of_a_killed_process_is_free(ledger: SharedLedger) -> None:
    """A worker that dies between enter and leave holds up nobody: the kernel takes its lock back."""

    def work() -> None:
        ledger.enter()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    ledger.enter()
    ledger.leave()


def test_one_worker_takes_no_lock() -> None:
    """Alone it is exact without one, so that it pays for none."""
    with contextlib.closing(SharedLedger(1)) as alone:
        assert not alone.shared
    with contextlib.closing(SharedLedger(2)) as two:
        assert two.shared


def test_networks_share_a_row(ledger: SharedLedger) -> None:
    """The row of a network goes by its text: another process finds the same."""
    network = Networks([], LimitsConfig(connections=1))
    assert (
        Accounts(ledger, networks=[network]).by_network[0].at == Accounts(ledger, networks=[network]).by_network[0].at
    )


# --- clients ---

TERMS = ClientTerms(connections=2)
ALICE = key_of(ip_address("192.0.2.1"))


def test_all_workers_see_the_connections_of_a_client(ledger: SharedLedger) -> None:
    """Also those that another one lets in at the same time; what a dead one had is taken back."""

    def work() -> None:
        ledger.settle(1)
        for _ in range(2):
            assert ledger.clients.admit(ALICE, TERMS, 0) is not None

    assert in_child(work) == 0
    ledger.settle(0)
    with pytest.raises(LimitExceeded, match="2 connections at once"):
        ledger.clients.admit(ALICE, TERMS, 0)
    ledger.forget_worker(1)
    assert ledger.clients.admit(ALICE, TERMS, 0) is not None


def test_nobody_waits_for_a_worker_that_was_killed_at_the_table(ledger: SharedLedger) -> None:
    """The kernel takes its lock back."""

    def work() -> None:
        ledger.clients.enter()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    assert ledger.clients.admit(ALICE, TERMS, 0) is not None


def test_one_worker_alone_needs_no_lock() -> None:
    """Its table has only its own connections."""
    with contextlib.closing(SharedLedger(1)) as ledger:
        assert not ledger.clients.shared
        assert ledger.clients.admit(ALICE, TERMS, 0) is not None


def test_a_supervisor_that_counts_too_needs_the_lock() -> None:
    """Beside another server, what that one uses is added to the cells of a single worker, which counts meanwhile."""
    for merges in (True, False):
        ledger = SharedLedger(1, merges=merges)
        assert ledger.shared is merges
        ledger.close()
