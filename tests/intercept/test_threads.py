"""Threads for hooks that block."""

from __future__ import annotations

import asyncio
import threading

import pytest

from conftest import Run
from tabi.intercept.threads import Threads


def test_calls_run_beside_each_other_up_to_the_bound(run_once: Run) -> None:
    """Two threads for two calls, a third call waits, and one thread is used again for calls in a row."""

    async def main() -> None:
        threads, gate = Threads(2), threading.Event()
        assert await threads.run(threading.get_ident) == await threads.run(threading.get_ident)
        assert len(threads.threads) == 1
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(threads.run(gate.wait, 20)) for _ in range(3)]
            await asyncio.sleep(0)
            assert (len(threads.threads), threads.calls) == (2, 3)
            gate.set()
        assert [task.result() for task in running] == [True, True, True]
        assert threads.calls == 0
        threads.close()
        with pytest.raises(RuntimeError, match="closed"):
            await threads.run(int)

    run_once(main)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyError])
def test_an_error_comes_back(run_once: Run, error: type[BaseException]) -> None:
    """Whatever it is, and the thread lives on."""

    async def main() -> None:
        threads = Threads(1)

        def fail() -> None:
            raise error("why")

        with pytest.raises(error, match="why"):
            await threads.run(fail)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.run(next, iter(()))
        assert await threads.run(len, "abc") == 3
        threads.close()

    run_once(main)


def test_a_cancelled_call_that_has_not_begun_is_not_made(run_once: Run) -> None:
    """One that has begun runs to its end, and its thread then takes the next."""

    async def main() -> None:
        threads, gate = Threads(1), threading.Event()
        made: list[str] = []
        async with asyncio.TaskGroup() as group:
            first = group.create_task(threads.run(gate.wait, 20))
            second = group.create_task(threads.run(made.append, "second"))
            await asyncio.sleep(0)
            first.cancel()
            second.cancel()
        gate.set()
        await threads.run(made.append, "third")
        assert made == ["third"]
        threads.close()

    run_once(main)


def test_nobody_waits_for_a_thread_that_is_stuck() -> None:
    """Its loop may be closed before it returns."""
    gate = threading.Event()
    threads = Threads(1)
    stuck: list[threading.Thread] = []

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await threads.run(gate.wait, 20)
        stuck.extend(threads.threads)
        threads.close()

    asyncio.run(main())
    (thread,) = stuck
    assert thread.is_alive()
    gate.set()
    thread.join(20)
    assert not thread.is_alive()
