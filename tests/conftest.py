"""Fixtures for all tests: loops on the hostings of the reactor, and a look for what a test left behind.

TABI_TESTS=deep (`make test-deep`) runs everything on every hosting, whole products, and properties with more examples.
TABI_TESTS=portable (`make test-portable`) runs in a sandbox without all that Linux alone offers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hypothesis
import pytest

import measure
import sandbox
from depth import DEEP, PORTABLE

if PORTABLE:
    sandbox.enter_portable()
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[misc, assignment]  # chosen before there was none
measuring = measure.start()  # before the first import of tabi

from tabi.net import kernel, kinds  # noqa: E402
from tabi.net.reactor import HOSTINGS, make_loop, reactors  # noqa: E402

T = TypeVar("T")
PATIENCE = 20.0
"""Seconds after which a test that waits for something has failed."""

ROOMS_OF_THE_REACTOR = [Path(__file__).parent / room for room in ("net", "relay")]
"""Their tests run on every hosting. Others that a hosting can change are marked with ``every_hosting``."""

# How long an example takes to make or to try says how busy the machine is.
for name, count in (("few", 10), ("fast", 50), ("more", 1_000), ("deep", 100_000)):
    hypothesis.settings.register_profile(
        name, max_examples=count, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
hypothesis.settings.load_profile(os.environ.get("TABI_HYPOTHESIS", "more" if DEEP else "fast"))


def pytest_configure() -> None:
    """Let the programs that tests start hear every signal, even if this process was started with some ignored.

    `nohup make test &` ignores SIGHUP and SIGINT, and a program that we start would ignore them too. A handler of ours
    does not outlive exec(2): the program begins with the default, and we go on ignoring the signal.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if PORTABLE:  # it is said once, before tests look at the log
        for has in probes():
            has()


def probes() -> list[Any]:
    """The functions that find out what the system offers."""
    return [probe for name, probe in vars(kernel).items() if name.startswith("has_")]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, object, object]:
    """Measure what a test file does as it is loaded."""
    with measuring.of(collector.path) if measuring and isinstance(collector, pytest.Module) else nullcontext():
        return (yield)


def is_measured(item: pytest.Item) -> bool:
    """Whether a test counts for the coverage of a room. To measure doubles its time: of properties with parameters the
    first has to do, and what is nested reaches nothing that the two other hostings do not."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return True
    if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
        return not any(callspec.indices.values())
    return bool(callspec.params.get("run") != "nested")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure what a test does, with its fixtures."""
    with measuring.of(item.path) if measuring and is_measured(item) else nullcontext():
        return (yield)


def pytest_sessionfinish() -> None:
    """Write down what was measured."""
    if measuring:
        measuring.save()


def pytest_collection_finish() -> None:
    """Keep the tests themselves, hundreds of thousands of objects, out of every later look for garbage."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the hostings on which `run` runs a test."""
    if "run" in metafunc.fixturenames:
        everywhere = (
            DEEP
            or any(room in metafunc.definition.path.parents for room in ROOMS_OF_THE_REACTOR)
            or metafunc.definition.get_closest_marker("every_hosting")
        )
        hostings = HOSTINGS[-1:] if PORTABLE else HOSTINGS if everywhere else HOSTINGS[:1]
        metafunc.parametrize("run", hostings, indirect=True)


class Run(Protocol):
    """Runs an async function to its end in a loop of its own."""

    def __call__(self, main: Callable[[], Coroutine[Any, Any, T]], /) -> T: ...


def no_origins() -> bool:
    """What futures and handles hear in place of "debug mode", so that they do not keep the stack of their making.

    That is a third of the time of tests of sessions. The loop itself stays in debug mode with all of its checks.
    """
    return False


def run_in_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run in a new loop, in asyncio's debug mode; fails if tasks are left, or handlers that nothing can remove."""

    async def limited() -> T:
        async with asyncio.timeout(PATIENCE):
            result = await main()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        reactor = reactors.get(asyncio.get_running_loop())
        assert reactor is None or -1 not in reactor.handlers, "a closed socket was given a handler"
        return result

    with asyncio.Runner(debug=True, loop_factory=make_loop) as runner:
        loop = runner.get_loop()
        loop.slow_callback_duration = 10
        if not DEEP:
            loop.get_debug = no_origins  # type: ignore[method-assign]
        return runner.run(limited())


@pytest.fixture
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run an async function on each hosting of the reactor, or where that makes no difference on one."""
    monkeypatch.setenv("TABI_REACTOR", request.param)
    return run_in_loop


@pytest.fixture
def run_once(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run an async function on the hosting that `tabi serve` has."""
    monkeypatch.setenv("TABI_REACTOR", "selector")
    return run_in_loop


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """What the system offers is found out again, in the test and after it."""
    for probe in probes():
        probe.cache_clear()
    yield
    for probe in probes():
        probe.cache_clear()


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
def both_kinds_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for IPv4 and IPv6 addresses of a name, however busy the machine is; tests of that wait set it again."""
    monkeypatch.setattr(kinds, "DELAY", PATIENCE)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves descriptors or threads of ours open."""
    before = set(descriptors().items())
    yield
    # Threads of others close what they hold a moment later: nothing tells when.
    # What only the collector finds is given a chance too, seldom: it holds them up.
    deadline, looks = time.monotonic() + 5, 0
    while (left := left_open(before)) and time.monotonic() < deadline:
        looks += 1
        if not looks % 20:
            gc.collect()
        time.sleep(0.001)
    assert not left, f"descriptors left open: {left}"
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("tabi-")]
    assert not threads, f"threads left running: {threads}"
