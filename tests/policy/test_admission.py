"""The seam of admission: what stands behind it on this machine is a part of it, and a shared store may stand there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Run
from gates import HERE, gate, session
from tabi.errors import LimitExceeded
from tabi.policy.admission import Admission
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Given, Lease, Limits


def test_limits_are_an_admission() -> None:
    """They answer at once."""
    local: Admission = Limits(Ledger())
    assert not local.waits
    assert not local
    assert local.admit(None, "unix", 0, 0.0) is None
    assert local.queue_of("alice", "unix") == "alice"
    assert local.queue_of(None, "unix") == ()
    local.turn_periods(0.0)


class Shared:
    """A store behind a network: each answer is one round trip."""

    waits = True

    def __init__(self, answer: Callable[[], LimitExceeded | None]) -> None:
        self.answer = answer
        self.asked = 0
        self.ledger = Ledger()

    def __bool__(self) -> bool:
        return True

    async def admit(
        self, user: str | None, client: Any, now: int, wall: float, given: Given | None = None
    ) -> Lease | None:
        self.asked += 1
        await asyncio.sleep(0)
        refusal = self.answer()
        if refusal is not None:
            raise refusal
        return Lease(self.ledger, (), user, float("inf"), float("inf"))

    def queue_of(self, user: str | None, client: Any) -> str:
        return str(user)

    def turn_periods(self, wall: float) -> None:
        """Nothing has a period."""


def test_a_store_elsewhere_admits_with_one_round_trip(run_once: Run) -> None:
    """It is awaited, sessions of one user do not wait for each other, and the lease is what the relay gets."""

    async def main() -> None:
        async with gate(patience=20) as found:
            store = found.policy.admission = Shared(lambda: None)
            found.replace(found.policy, found.egresses)
            asked = [session() for _ in range(3)]
            assert found.enter(asked[0]) is None
            await asyncio.gather(*(found.enter_slowly(one, HERE) for one in asked))
            assert store.asked == 3
            assert all(one.lease in found.leases for one in asked)
            await found.enter_open(one := session(), HERE)
            assert one.lease is not None
            assert not found.queues

    run_once(main)


def test_a_store_elsewhere_refuses_or_has_wait(run_once: Run) -> None:
    """As the limits of this machine do: it is asked again until there is room, or until the patience is over."""
    answers: list[LimitExceeded | None] = []

    def full(seconds: float | None) -> LimitExceeded:
        return LimitExceeded("limit: fleet: full", "connections", seconds)

    async def main() -> None:
        async with gate(patience=20) as found:
            store = found.policy.admission = Shared(lambda: answers.pop(0) if answers else full(0.001))
            found.replace(found.policy, found.egresses)
            answers[:] = [full(None)]
            with pytest.raises(LimitExceeded, match=r"^limit: fleet: full$"):
                await found.enter_slowly(session(), HERE)
            answers[:] = [full(0.001), full(0.001), None]
            await found.enter_slowly(session(), HERE)
            assert store.asked == 4
            assert found.metrics.value("tabi_limited_total", limit="connections") == 2
            found.patience = 0.02
            with pytest.raises(LimitExceeded, match=r"^limit: fleet: full; waited "):
                await found.enter_slowly(session(), HERE)
            assert not found.queues

    run_once(main)


def test_a_store_that_is_silent_has_a_deadline(run_once: Run) -> None:
    """The patience of the session."""

    class Silent(Shared):
        async def admit(self, *given: Any) -> None:
            await asyncio.sleep(100)

    async def main() -> None:
        async with gate(patience=0.02) as found:
            found.policy.admission = Silent(lambda: None)
            found.replace(found.policy, found.egresses)
            with pytest.raises(LimitExceeded, match=r"^limit: user alice: too many wait; waited 0"):
                await found.enter_slowly(session(), HERE)

    run_once(main)
