"""What is being opened: a coroutine, and what async with closes."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine

import pytest

from conftest import Run
from tabi.client.opening import Opening


class Opened:
    """Something that can be closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


async def open_it() -> Opened:
    """Open something."""
    return Opened()


async def fail() -> Opened:
    """Fail to open something."""
    raise ValueError("it cannot be opened")


def test_async_with_closes_what_was_opened(run_once: Run) -> None:
    """Once, also where the block raises; what was not opened cannot be closed."""

    async def main() -> None:
        async with Opening(open_it()) as opened:
            assert opened.closed == 0
        assert opened.closed == 1
        with pytest.raises(ValueError, match="cannot be opened"):
            async with Opening(fail()):
                pass

    run_once(main)


def test_it_opens_once(run_once: Run) -> None:
    """A second await is an error, as with every coroutine: it does not open something that nobody closes."""

    async def main() -> None:
        opening = Opening(open_it())
        assert isinstance(opening, Coroutine)
        assert repr(opening) == "<Opening open_it>"
        await opening
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await opening

    run_once(main)


def test_it_can_be_closed_unopened() -> None:
    """Then nothing is opened, and Python does not warn."""
    coroutine = open_it()
    opening = Opening(coroutine)
    opening.close()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_it_passes_on_what_is_thrown() -> None:
    """As a task does that is cancelled."""
    for args in ((KeyError("x"),), (KeyError, KeyError("x"))):
        opening = Opening(open_it())
        with pytest.raises(KeyError):
            opening.throw(*args)
