"""What tasks await: they are resumed at once, cancelled as ever, and one task waits at a time."""

from __future__ import annotations

import asyncio
import gc

import pytest

from conftest import Run
from tabi.net.readiness import Readiness, Turn


def test_a_task_is_resumed_within_the_call(run_once: Run) -> None:
    """Again and again by the same object; without a waiter nothing happens."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        readiness, woken = Readiness(loop), 0

        async def wait() -> None:
            nonlocal woken
            for _ in range(3):
                await readiness
                woken += 1

        task = loop.create_task(wait())
        readiness.wake()
        assert woken == 0
        for count in range(3):
            await asyncio.sleep(0)
            loop.call_soon(readiness.wake)  # where no task is running, as in the reactor
            await asyncio.sleep(0)
            assert woken == count + 1
        await task
        readiness.wake()
        assert readiness.get_loop() is loop
        assert asyncio.isfuture(readiness)

    run_once(main)


def test_an_error_comes_to_the_task_that_waits(run_once: Run) -> None:
    """In the loop's next turn, once, and without a circle that would wait for the collector."""

    async def main() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        gc.collect()
        gc.disable()
        try:
            for _ in range(2):
                asyncio.get_running_loop().call_soon(readiness.wake_soon, ConnectionResetError("gone"))
                with pytest.raises(ConnectionResetError, match="gone"):
                    await readiness
            assert gc.collect() < 20
        finally:
            gc.enable()
        readiness.wake_soon(ConnectionResetError("nobody waits"))
        asyncio.get_running_loop().call_soon(readiness.wake)
        await readiness

    run_once(main)


def test_a_second_task_must_not_wait(run_once: Run) -> None:
    """It is told at once, and the first one waits on."""

    async def main() -> None:
        readiness = Readiness(asyncio.get_running_loop())

        async def wait() -> None:
            await readiness

        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task already waits for this"):
                await readiness
            asyncio.get_running_loop().call_soon(readiness.wake)

    run_once(main)


def test_a_cancelled_task_waits_no_more(run_once: Run) -> None:
    """Whoever wakes it later wakes nobody; the message of the cancellation is kept."""

    async def main() -> None:
        readiness = Readiness(asyncio.get_running_loop())
        assert not readiness.cancel()

        async def wait() -> str:
            try:
                await readiness
            except asyncio.CancelledError as exc:
                return str(exc)
            raise AssertionError("it was woken")

        for message in (None, "why"):
            task = asyncio.get_running_loop().create_task(wait())
            await asyncio.sleep(0)
            task.cancel(message)
            assert await task == (message or "")
            readiness.wake()

    run_once(main)


def test_a_turn_knows_whose_it_is(run_once: Run) -> None:
    """What it was told, or the task that called for it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert Turn(loop, "stream").owner == "stream"
        assert Turn(loop, None).owner is asyncio.current_task()

    run_once(main)
