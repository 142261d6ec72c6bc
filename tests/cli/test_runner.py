"""Running what a command does: a signal ends it, whenever it comes."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from processes import PATIENCE
from tabi.cli.runner import make_runner


def test_what_the_coroutine_returns() -> None:
    """And what it raises."""

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def fail() -> None:
        raise OSError("gone")

    with make_runner() as runner:
        assert runner.run(answer()) == 42
        with pytest.raises(OSError, match="gone"):
            runner.run(fail())


@pytest.mark.parametrize("loop_waits", [True, False])
def test_ctrl_c_ends_a_wait_that_the_kernel_does_not_interrupt(loop_waits: bool) -> None:
    """A signal that another thread gets, as one that comes just before the loop waits, does not end epoll_wait(2)."""
    cancelled: list[bool] = []
    late: list[bool] = []

    async def main() -> None:
        started = threading.Event()

        def interrupt() -> None:
            started.wait()
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        loop = asyncio.get_running_loop()
        loop.call_later(0.05 if loop_waits else 0, started.set)  # in the wait that follows, or in the turn before it
        loop.call_later(PATIENCE, late.append, True)  # that would end the wait as well
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a job of nohup
    try:
        before = signal.set_wakeup_fd(-1)
        with make_runner() as runner, pytest.raises(KeyboardInterrupt):
            runner.run(main())
        assert signal.set_wakeup_fd(before) == -1
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (cancelled, late) == ([True], [])
