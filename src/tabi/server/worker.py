"""One worker process: a Server on sockets that the supervisor opened, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tabi.errors import ConfigError
from tabi.net.reactor import make_loop
from tabi.server.channel import Channel, Message, close_all
from tabi.server.compiled import Compiled
from tabi.server.fault_control import Orders, take
from tabi.server.ledger import SharedLedger
from tabi.server.quota_keeper import QuotaKeeper
from tabi.server.quota_store import open_store, path_of
from tabi.server.reload import Taker
from tabi.server.reports import Reports
from tabi.server.server import Server
from tabi.signals import ignore

log = logging.getLogger("tabi")

AT_ONCE = {"stop": "at once"}
"""Do not drain any longer. A second SIGTERM says the same, but while the first is pending it would be lost."""

RELOAD = {"reload": True}
"""Change to the configuration in the memory that comes with this message."""


class Shared(NamedTuple):
    """What a worker has from its supervisor."""

    sockets: Sequence[Sequence[socket.socket]]
    """The listening sockets, for each listener."""
    lifeline: int
    """A descriptor that ends when the supervisor does."""
    ledger: SharedLedger
    channel: Channel
    """To the supervisor, which says `AT_ONCE` and `RELOAD`, and which faults are set."""
    records: socket.socket | None = None
    """To the process that writes records of interception; None if there is none."""
    private: Collection[int] = ()
    """TCP ports of the program that are for operators: nothing is ever dialled there."""
    drained: Sequence[tuple[str, str]] = ()
    """Pools and members that an operator has taken out by now."""
    faults: Mapping[str, Mapping[str, Any]] = {}
    """Those that were set by now, see `tabi.server.fault_control`."""


def run_worker(compiled: Compiled, shared: Shared, ready: Callable[[], object] = lambda: None) -> None:
    """Serve until SIGTERM, or until the lifeline ends because the supervisor has died; then drain.

    ``ready`` is called as soon as clients are accepted.
    """
    ignore(signal.SIGIO)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with asyncio.Runner(loop_factory=make_loop) as runner:
        server = Server(compiled=compiled, sockets=shared.sockets, ledger=shared.ledger)
        server.given = server.given._replace(records=shared.records)
        server.own.private = frozenset(shared.private)
        runner.run(serve(server, shared, ready))


async def serve(server: Server, shared: Shared, ready: Callable[[], object]) -> None:
    """Serve, drain when told, stop at once when told again."""
    loop = asyncio.get_running_loop()
    told, at_once = asyncio.Event(), asyncio.Event()
    keeping: asyncio.Task[None] | None = None

    def hurry() -> None:
        told.set()
        at_once.set()

    loop.add_signal_handler(signal.SIGTERM, lambda: hurry() if told.is_set() else told.set())

    def orphaned() -> None:
        nonlocal keeping
        loop.remove_reader(shared.lifeline)
        told.set()
        if server.compiled.with_quotas:  # which the supervisor kept as long as it lived
            keeping = loop.create_task(keep_quotas(server))

    def heard(message: Message) -> None:
        if message.body == AT_ONCE:
            hurry()
        elif message.body == RELOAD:
            taker.offer(message.fds.pop())
        elif "log_level" in message.body:
            logging.getLogger().setLevel(message.body["log_level"].upper())
        elif "ask" in message.body:
            reports.ask(message.body["ask"])
        elif "faults" in message.body:
            orders.add(message.body["faults"])
        close_all(message.fds)

    loop.add_reader(shared.lifeline, orphaned)
    # What lives now lives on: the collector need not look at it again. A session makes no cycles, so that the
    # collector has little to find: with its usual threshold it takes 3 us of every connection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    taker, orders = Taker(server), Orders(lambda: server.faults, shared.channel)
    async with server:
        if shared.faults:
            take(server.faults, shared.faults)
        reports = Reports(server, shared.channel)
        for pool, member in shared.drained:
            reports.steer_member(pool, member, "drain")
        shared.channel.watch(loop, heard, lambda: None)  # the lifeline tells that the supervisor is gone
        ready()
        await told.wait()
        await taker.close()
        await orders.close()
        running = server.parts.sessions.running
        if running:
            log.info("draining, sessions under way: %d; once more stops at once", len(running))
        drain, hurried = loop.create_task(server.drain()), loop.create_task(at_once.wait())
        await asyncio.wait((drain, hurried), return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        hurried.cancel()
        if running:
            log.warning("stopped, sessions cut: %d", len(running))
        await reports.close()
    loop.remove_reader(shared.lifeline)
    shared.channel.close()
    if keeping is not None:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def keep_quotas(server: Server) -> None:
    """Store what is used, until the task is cancelled."""
    try:
        store = open_store(path_of(server.config))
    except ConfigError as exc:
        log.error("quotas: %s", exc)
    else:
        await QuotaKeeper(server.ledger, store).run()
