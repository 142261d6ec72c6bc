"""What a worker says of itself: its metrics, with those of what runs now.

Sessions that run are looked at a few at a time, so that none of them waits for that. One that ends meanwhile may be
missed, or be there twice; so what was carried is never told to be less than before.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from itertools import islice

from tabi.net import kernel
from tabi.observe.exposition import Labels, Value
from tabi.observe.metrics import add_moved, labels_of
from tabi.server.server import Server
from tabi.session import Session

AT_ONCE = 100
"""Sessions that are looked at before other work has its turn."""

CARRIED = ("tabi_octets_total", "tabi_datagrams_total")


class Measure:
    """Collects the metrics of a server.

    Args:
        server: it has been started.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.carried: dict[str, dict[Labels, Value]] = {name: {} for name in CARRIED}
        self.started = time.time()

    async def samples(self) -> dict[str, dict[Labels, Value]]:
        """All metrics, as they are now."""
        parts, loop = self.server.parts, asyncio.get_running_loop()
        due = loop.time()
        await asyncio.sleep(0)
        lag = loop.time() - due
        found = self.server.metrics.samples
        opened = found["tabi_sessions_open"] = {}
        faults = found["tabi_fault_sessions"] = {}
        running = iter(tuple(parts.sessions.running))
        while batch := tuple(islice(running, AT_ONCE)):
            for session in batch:
                self.add_running(session, found, opened)
            await asyncio.sleep(0)
        for name, before in self.carried.items():
            for labels, value in found[name].items():
                before[labels] = max(before.get(labels, 0.0), value)
            found[name] = dict(before)
        if parts.molding is not None:
            for entry in parts.molding.distortion.entries.values():
                add(faults, (("fault", entry.distort.label),), entry.active)
        waiting = sum(session.command is None for session in parts.sessions.running) + parts.sessions.arrivals.count
        found["tabi_clients_waiting"] = {(): waiting}
        found["tabi_slow_turns_total"] = {(): parts.watchdog.slow_turns}
        found["tabi_loop_lag_seconds"] = {(): round(lag, 6)}
        found["tabi_fallback"] = {(("call", call),): 1 for call in kernel.refused}
        if parts.access_log is not None:
            found["tabi_log_lines_lost_total"] = {(): parts.access_log.lost}
        found["tabi_workers"] = {(): 1}
        self.add_pools(found)
        found |= {name: {(): value} for name, value in process()}
        found["process_open_fds"] = {(): await open_files()}
        found["process_start_time_seconds"] = {(): round(self.started, 3)}
        return found

    def add_running(self, session: Session, found: dict[str, dict[Labels, Value]], opened: dict[Labels, Value]) -> None:
        """Add one session that runs."""
        command = session.command
        if command is None:
            return
        add(opened, labels_of(session.listener, session.protocol, command, session.via), 1)
        carried = self.server.parts.sessions.carried(session)
        up, down = (session.up, session.down) if carried is None else carried.counts
        if up or down:
            add_moved(found["tabi_octets_total"], command, session.via, up, down)
        if session.drops is not None and (session.datagrams_up or session.datagrams_down):
            moved = session.datagrams_up, session.datagrams_down
            add_moved(found["tabi_datagrams_total"], command, session.via, *moved)

    def add_pools(self, found: dict[str, dict[Labels, Value]]) -> None:
        """Add the members of pools."""
        up, running = found.setdefault("tabi_member_up", {}), found.setdefault("tabi_member_sessions", {})
        for pool in self.server.parts.egresses.pools:
            for member in pool.pool.members:
                labels = ("pool", pool.name), ("member", member.name)
                up[labels] = int(member.due is None)
                running[labels] = member.running


def add(found: dict[Labels, Value], labels: Labels, number: float) -> None:
    """Add to a number."""
    found[labels] = found.get(labels, 0) + number  # type: ignore[operator]


def process() -> Iterator[tuple[str, float]]:
    """What the process uses; see proc(5)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield "process_cpu_seconds_total", round(used.ru_utime + used.ru_stime, 3)
    yield "process_max_fds", kernel.descriptor_limits()[0]
    try:
        with open("/proc/self/statm") as file:
            yield "process_resident_memory_bytes", int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return  # no proc(5) in this sandbox


async def open_files() -> int:
    """The open descriptors, counted a few at a time, since there may be very many (Linux 6.2 knows their number)."""
    count = 0
    try:
        count = os.stat("/proc/self/fd").st_size
        if not count:
            with os.scandir("/proc/self/fd") as entries:
                for _ in entries:
                    count += 1
                    if not count % 1000:
                        await asyncio.sleep(0)
    except OSError:
        pass  # as above
    return count
