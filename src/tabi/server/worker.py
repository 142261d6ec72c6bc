"""One worker process: a Server on sockets that the supervisor opened, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tabi.config import Config
from tabi.errors import ConfigError
from tabi.net.reactor import make_loop
from tabi.server.bulletin import Bulletin
from tabi.server.channel import Channel, Message
from tabi.server.ledger import SharedLedger
from tabi.server.quota_store import INTERVAL, QuotaStore
from tabi.server.server import Server
from tabi.signals import ignore

log = logging.getLogger("tabi")

AT_ONCE = {"stop": "at once"}
"""Do not drain any longer. A second SIGTERM says the same, but while the first is pending it would be lost."""

RELOAD = {"reload": True}
"""Take what is in the bulletin."""


class Shared(NamedTuple):
    """What a worker has from its supervisor."""

    sockets: Sequence[Sequence[socket.socket]]
    """The listening sockets, for each listener."""
    lifeline: int
    """A descriptor that ends when the supervisor does."""
    ledger: SharedLedger
    bulletin: Bulletin
    store: QuotaStore | None
    channel: Channel
    """To the supervisor, which says `AT_ONCE` and `RELOAD`."""


def run_worker(config: Config, open_proxy: bool, shared: Shared, ready: Callable[[], object] = lambda: None) -> None:
    """Serve until SIGTERM, or until the lifeline ends because the supervisor has died; then drain.

    ``ready`` is called as soon as clients are accepted.
    """
    ignore(signal.SIGIO)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with asyncio.Runner(loop_factory=make_loop) as runner:
        server = Server(config=config, sockets=shared.sockets, open=open_proxy, ledger=shared.ledger)
        runner.run(serve(server, shared, ready))


def reload(server: Server, shared: Shared) -> None:
    """Take what the supervisor has put up, which it has checked."""
    news = shared.bulletin.read()
    if news is not None:
        config, rows = news
        shared.ledger.learn(rows)
        try:
            server.reload(config)
        except ConfigError as exc:  # as when a certificate has changed since
            log.error("not reloaded, the old configuration stays: %s", exc)


async def save_quotas(server: Server, store: QuotaStore) -> None:
    """Store what is used, as the supervisor did while it lived."""
    while True:
        store.save(server.policy.limits)
        await asyncio.sleep(INTERVAL)


async def serve(server: Server, shared: Shared, ready: Callable[[], object]) -> None:
    """Serve, drain when told, stop at once when told again."""
    loop = asyncio.get_running_loop()
    told, at_once = asyncio.Event(), asyncio.Event()
    saving: asyncio.Task[None] | None = None

    def hurry() -> None:
        told.set()
        at_once.set()

    loop.add_signal_handler(signal.SIGTERM, lambda: hurry() if told.is_set() else told.set())

    def orphaned() -> None:
        nonlocal saving
        loop.remove_reader(shared.lifeline)
        told.set()
        if shared.store is not None:
            saving = loop.create_task(save_quotas(server, shared.store))

    def heard(message: Message) -> None:
        if message.body == AT_ONCE:
            hurry()
        elif message.body == RELOAD:
            reload(server, shared)

    loop.add_reader(shared.lifeline, orphaned)
    # What lives now lives on: the collector need not look at it again. A session makes no cycles, so that the
    # collector has little to find: with its usual threshold it takes 3 us of every connection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    async with server:
        shared.channel.watch(loop, heard, lambda: None)  # that the supervisor is gone the lifeline says
        ready()
        await told.wait()
        if server.sessions:
            log.info("draining, sessions under way: %d; once more stops at once", len(server.sessions))
        drain, hurried = loop.create_task(server.drain()), loop.create_task(at_once.wait())
        await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        hurried.cancel()
        if server.sessions:
            log.warning("stopped, sessions cut: %d", len(server.sessions))
    loop.remove_reader(shared.lifeline)
    shared.channel.close()
    if saving is not None and shared.store is not None:
        saving.cancel()
        shared.store.save(server.policy.limits)
