"""One worker process: a Server on sockets that the supervisor opened, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Sequence

from tabi.config import Config
from tabi.net.reactor import make_loop
from tabi.server.server import Server

log = logging.getLogger("tabi")

AT_ONCE = signal.SIGUSR1
"""Do not drain any longer. A second SIGTERM says the same, but while the first is pending it would be lost."""


def run_worker(
    config: Config,
    sockets: Sequence[Sequence[socket.socket]],
    open_proxy: bool,
    lifeline: int,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve until SIGTERM, or until ``lifeline`` (a descriptor) ends because the supervisor has died; then drain.

    ``ready`` is called as soon as clients are accepted.
    """
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(serve(Server(config=config, sockets=sockets, open=open_proxy), lifeline, ready))


async def serve(server: Server, lifeline: int, ready: Callable[[], object]) -> None:
    """Serve, drain when told, stop at once when told again."""
    loop = asyncio.get_running_loop()
    told, at_once = asyncio.Event(), asyncio.Event()

    def hurry() -> None:
        told.set()
        at_once.set()

    loop.add_signal_handler(signal.SIGTERM, lambda: hurry() if told.is_set() else told.set())
    loop.add_signal_handler(AT_ONCE, hurry)
    loop.add_reader(lifeline, told.set)
    # What lives now lives on: the collector need not look at it again. A session makes no cycles, so that the
    # collector has little to find: with its usual threshold it takes 3 us of every connection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    async with server:
        ready()
        await told.wait()
        loop.remove_reader(lifeline)
        if server.sessions:
            log.info("draining, sessions under way: %d; once more stops at once", len(server.sessions))
        drain, hurried = loop.create_task(server.drain()), loop.create_task(at_once.wait())
        await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        hurried.cancel()
        if server.sessions:
            log.warning("stopped, sessions cut: %d", len(server.sessions))
