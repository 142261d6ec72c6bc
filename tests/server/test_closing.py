"""The end of what a server and a client own: cancelled at every turn, done twice, and while it opens."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Run
from sockets import until
from support import target
from tabi import Proxy, Server, Session, Tunnel
from tabi.config import CheckConfig, Config, EgressConfig, Listen, Log, Seconds
from tabi.net.cache import NameCache
from tabi.net.failover import Failover
from tabi.observe import callbacks
from tabi.server.egresses import Egresses

MOST = 200
"""More turns than anything here takes."""


async def settle() -> None:
    """Wait until no task but this one is left. The test's patience limits it."""
    while len(asyncio.all_tasks()) > 2:  # and the one that limits the test
        await asyncio.sleep(0)


def descriptors() -> int:
    """How many are open."""
    return len(os.listdir("/proc/self/fd"))


class Silent:
    """A resolver whose answers never come."""

    async def resolve(self, name: str) -> Any:
        """See `Resolver`."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """See `Resolver`: it takes a turn."""
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def busy_server(port: int) -> AsyncIterator[Server]:
    """A server all of whose parts have something under way. It is not closed at the end."""

    async def carrier(tunnel: Tunnel) -> None:
        try:
            await tunnel.relay()
        finally:
            await asyncio.sleep(0)

    async def on_close(session: Session) -> None:
        await asyncio.get_running_loop().create_future()

    pool = EgressConfig(
        members=[f"socks5://127.0.0.1:{port}"], check=CheckConfig(connect="127.0.0.1:9", every=Seconds(60))
    )
    config = Config(
        listen=[Listen("socks5://127.0.0.1:0")],
        log=Log(access="none"),
        egress={"one": pool, "two": pool},
    )
    server = Server(config=config, carrier=carrier, on_close=on_close, resolver=Silent())
    await server.start()
    proxy = Proxy(server.url)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(proxy.connect("127.0.0.1", port))
        await stack.enter_async_context(proxy.associate())
        asking = asyncio.get_running_loop().create_task(proxy.connect("never.test", 80))
        await until(lambda: len(server.sessions()) == 3)
        yield server
        await asyncio.gather(asking, return_exceptions=True)


def test_a_close_that_is_cancelled_at_any_turn_closes_everything(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that closes is cancelled itself, as by whoever cancels all tasks of a loop: no task and no descriptor
    stays. Closing again is harmless."""
    monkeypatch.setattr(callbacks, "PATIENCE", 0)

    async def main() -> None:
        async with target() as port:
            for turn in range(MOST):
                before = descriptors()
                async with busy_server(port) as server:
                    closing = asyncio.get_running_loop().create_task(server.close())
                    for _ in range(turn + 1):
                        await asyncio.sleep(0)
                    early = server.ending is not None and not server.ending.done()
                    if server.ending is not None:
                        server.ending.cancel()
                    await asyncio.gather(closing, return_exceptions=True)
                    assert server.closed.is_set()
                await server.close()
                await settle()
                await until(lambda before=before: descriptors() == before)  # type: ignore[misc]
                if not early:
                    return
        raise AssertionError("it never ended")

    run_once(main)


@pytest.mark.parametrize("what", ["connect", "open_socket", "associate", "bind"])
def test_an_opening_that_is_cancelled_at_any_turn_leaves_nothing(run_once: Run, what: str) -> None:
    """What has been opened in the same moment belongs to nobody else. Closing twice is harmless."""

    async def main() -> None:
        async with target() as port, Server("socks5://127.0.0.1:0") as server:
            proxy = Proxy(server.url)
            tasks = len(asyncio.all_tasks())
            for turn in range(MOST):
                before = descriptors()
                opening: Any = getattr(proxy, what)
                arguments = ("127.0.0.1", port) if what in ("connect", "open_socket") else ()
                task = asyncio.get_running_loop().create_task(opening(*arguments))
                for _ in range(turn):
                    await asyncio.sleep(0)
                task.cancel()
                results: Any = await asyncio.gather(task, return_exceptions=True)
                early = isinstance(results[0], asyncio.CancelledError)
                if not early:
                    results[0].close()
                    results[0].close()
                await until(lambda: not server.sessions() and len(asyncio.all_tasks()) == tasks)
                await until(lambda before=before: descriptors() == before)  # type: ignore[misc]
                if not early:
                    return
        raise AssertionError("it was never open")

    run_once(main)


class Slow:
    """A part whose close takes some turns."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        """Count, and wait."""
        self.closed += 1
        for _ in range(3):
            await asyncio.sleep(0)


def sources(slow: list[Slow]) -> Any:
    """Name servers, and what finds their addresses."""
    three: list[Any] = slow
    return Failover(three[:2], 1, three[2])


def cache(slow: list[Slow]) -> Any:
    """A cache, one question of which is under way."""

    class Source(Slow):
        """Closes all of them with itself."""

        async def answer(self, name: str) -> Any:
            await asyncio.get_running_loop().create_future()

        async def close(self) -> None:
            for one in slow:
                one.closed += 1

    source: Any = Source()
    found = NameCache(source)
    asking = asyncio.get_running_loop().create_task(found.resolve("name.test"))
    asking.add_done_callback(lambda done: done.exception())
    return found


def links(slow: list[Slow]) -> Any:
    """Egresses with connections that they keep."""
    egresses: Any = object.__new__(Egresses)
    egresses.links = slow
    return SimpleNamespace(close=egresses.close_links)


def pools(slow: list[Slow]) -> Any:
    """Egresses with pools that are checked."""
    egresses: Any = object.__new__(Egresses)
    egresses.pools, egresses.dialers = slow, {}
    return egresses


@pytest.mark.parametrize("make", [sources, cache, links, pools])
def test_a_wait_that_is_cancelled_keeps_no_other_part_open(run_once: Run, make: Any) -> None:
    """Each of several parts is closed, whichever turn the cancellation comes in."""

    async def main() -> None:
        for turn in range(1, MOST):
            slow = [Slow() for _ in range(3)]
            owner = make(slow)
            await asyncio.sleep(0)
            task = asyncio.get_running_loop().create_task(owner.close())
            for _ in range(turn):
                await asyncio.sleep(0)
            early = not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await settle()
            assert [one.closed for one in slow] == [1, 1, 1]
            if not early:
                return
        raise AssertionError("it never ended")

    run_once(main)
