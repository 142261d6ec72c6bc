"""Service: a thread with a loop, which begins and ends as it is told, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

import tabi.testing
from tabi.testing import Service
from tabi.testing import service as module
from tabi.testing.service import Seen


class Recorder(Service):
    """Writes down what is called, and fails where it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.called: list[str] = []

    async def open(self) -> None:
        self.called.append(f"open in {threading.current_thread().name}")
        if self.fails:
            raise OSError("no port")

    async def shut(self) -> None:
        self.called.append("shut")


def test_it_runs_in_a_thread_of_its_own_between_start_and_close() -> None:
    """Closing twice does no harm, and it may start again."""
    service = Recorder()
    for _ in range(2):
        with service:
            assert threading.current_thread().name not in service.called[-1]
            with pytest.raises(RuntimeError, match="this Recorder runs already"):
                service.start()
        service.close()
    assert service.called == ["open in tabi-testing", "shut"] * 2
    with pytest.raises(RuntimeError, match="this Recorder does not run"):
        service.call(service.open)


def test_a_coroutine_uses_it_without_holding_up_its_own_loop() -> None:
    """``async with`` does the same."""

    async def main() -> None:
        async with Recorder() as service:
            assert service.called == ["open in tabi-testing"]
        assert service.called[1:] == ["shut"]

    asyncio.run(main())


def test_a_start_that_nobody_waits_for_any_more_is_undone() -> None:
    """Whoever is cancelled while it starts has no name for it, and cannot close it."""
    go_on, ended = threading.Event(), threading.Event()

    class Slow(Recorder):
        async def open(self) -> None:
            go_on.wait(10)
            await super().open()

        def close(self) -> None:
            super().close()
            ended.set()

    service = Slow()

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(service.__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        go_on.set()
        assert await asyncio.to_thread(ended.wait, 10)

    asyncio.run(main())
    assert (service.called[-1], service.thread) == ("shut", None)
    failing = Recorder(fails=True)

    async def fail() -> None:
        task = asyncio.get_running_loop().create_task(failing.__aenter__())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(fail())
    assert failing.thread is None


def test_a_start_that_fails_ends_the_thread() -> None:
    """The error is that of `open`, and what was opened is shut."""
    service = Recorder(fails=True)
    with pytest.raises(OSError, match="no port"):
        service.start()
    assert service.called[1:] == ["shut"]
    assert "tabi-testing" not in [thread.name for thread in threading.enumerate()]


def test_what_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call has a deadline, and tasks that are left are cancelled with the thread."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    left: list[asyncio.Task[None]] = []

    async def leave() -> None:
        left.append(asyncio.get_running_loop().create_task(asyncio.sleep(1000)))
        await asyncio.sleep(1000)

    service = Recorder().start()
    try:
        with pytest.raises(TimeoutError):
            service.call(leave)
    finally:
        monkeypatch.setattr(module, "PATIENCE", 10.0)
        service.close()
    assert left[0].cancelled()


def test_a_list_that_grows_elsewhere_can_be_waited_for() -> None:
    """It returns as soon as there is enough, and says how much there was where it is too little."""
    seen: Seen[int] = Seen()

    def grow() -> None:
        for number in range(3):
            seen.add(number)

    thread = threading.Thread(target=grow)
    thread.start()
    assert seen.wait(3, 10) == [0, 1, 2]
    thread.join()
    with pytest.raises(TimeoutError, match=r"3 within 0\.01 s, expected 4"):
        seen.wait(4, 0.01)
    seen.clear()
    assert seen.wait(0, 0) == []


def test_the_public_names() -> None:
    """Each of them is there, and a wrong one is an AttributeError."""
    for name in tabi.testing.__all__:
        assert getattr(tabi.testing, name).__name__ == name
    assert set(tabi.testing.__all__) <= set(dir(tabi.testing))
    with pytest.raises(AttributeError, match="has no attribute 'Serivce'"):
        tabi.testing.Serivce  # type: ignore[attr-defined]  # noqa: B018
