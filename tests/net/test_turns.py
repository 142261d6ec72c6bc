"""Turns: one at a time, fair between clients, and none is lost when a task is cancelled."""

from __future__ import annotations

import asyncio

from conftest import Run
from tabi.net.turns import Turns


def test_turns_go_round_the_clients(run_once: Run) -> None:
    """A client with many tasks has one turn, then the others have theirs; its own tasks keep their order."""

    async def main() -> None:
        turns, order, within = Turns(), [], 0

        async def work(client: str, number: int) -> None:
            nonlocal within
            async with turns.turn(client):
                within += 1
                assert within == 1
                order.append(f"{client}{number}")
                await asyncio.sleep(0)
                within -= 1

        async with asyncio.TaskGroup() as group:
            for client, count in (("a", 5), ("b", 2), ("c", 1)):
                for number in range(count):
                    group.create_task(work(client, number))
        assert order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]
        assert not turns.taken
        assert not turns.waiting

    run_once(main)


def test_a_task_that_is_cancelled_takes_no_turn(run_once: Run) -> None:
    """Neither while it waits nor when its turn has just come: the next one has it."""

    async def main() -> None:
        turns, order = Turns(), []

        async def work(name: str) -> None:
            async with turns.turn(name):
                order.append(name)

        async with asyncio.TaskGroup() as group:
            async with turns.turn("first"):
                tasks = {name: group.create_task(work(name)) for name in ("waits", "gone", "comes", "last")}
                await asyncio.sleep(0)
                tasks["waits"].cancel()
                await asyncio.sleep(0)
                assert list(turns.waiting) == ["gone", "comes", "last"]
                tasks["gone"].cancel()  # and does not know it yet when the turn is handed on
            assert list(turns.waiting) == ["last"]
            tasks["comes"].cancel()
        assert order == ["last"]
        assert not turns.taken
        assert not turns.waiting

    run_once(main)


def test_an_error_gives_the_turn_back(run_once: Run) -> None:
    """The block may fail: nobody waits for ever."""

    async def main() -> None:
        turns = Turns()
        try:
            async with turns.turn("a"):
                raise ValueError
        except ValueError:
            pass
        async with turns.turn("b"):
            assert turns.taken

    run_once(main)
