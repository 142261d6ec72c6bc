"""Fixtures for all tests: loops on every hosting of the reactor, and a look for what a test left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import hypothesis
import pytest

from tabi.net.reactor import HOSTINGS, make_loop

T = TypeVar("T")
PATIENCE = 20.0
"""Seconds after which a test that waits for something has failed."""

hypothesis.settings.register_profile("fast", max_examples=50, deadline=None)
hypothesis.settings.register_profile("deep", max_examples=100_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("TABI_HYPOTHESIS", "fast"))


class Run(Protocol):
    """Runs an async function to its end in a loop of its own."""

    def __call__(self, main: Callable[[], Coroutine[Any, Any, T]], /) -> T: ...


def run_in_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run in a new loop, in asyncio's debug mode; fails if tasks are left."""

    async def limited() -> T:
        async with asyncio.timeout(PATIENCE):
            result = await main()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        return result

    with asyncio.Runner(debug=True, loop_factory=make_loop) as runner:
        runner.get_loop().slow_callback_duration = 10
        return runner.run(limited())


@pytest.fixture(params=HOSTINGS)
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run an async function on each hosting of the reactor."""
    monkeypatch.setenv("TABI_REACTOR", request.param)
    return run_in_loop


@pytest.fixture
def run_once(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run an async function on the hosting that `tabi serve` has."""
    monkeypatch.setenv("TABI_REACTOR", "selector")
    return run_in_loop


def descriptors() -> dict[str, str]:
    """This process' open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listed them
            continue
    return found


def left_open(before: set[tuple[str, str]]) -> dict[str, str]:
    """Descriptors of ours that were not open before."""
    after = set(descriptors().items()) - before
    return {name: what for name, what in after if what.startswith(("socket:", "pipe:", "anon_inode:"))}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves descriptors or threads of ours open."""
    before = set(descriptors().items())
    yield
    # c-ares' channels are destroyed by a thread of pycares, a moment after they were closed: nothing tells when.
    deadline = time.monotonic() + 5
    while (left := left_open(before)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.005)
    assert not left, f"descriptors left open: {left}"
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("tabi-")]
    assert not threads, f"threads left running: {threads}"
