"""What a worker says of itself, with sessions that run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from conftest import Run
from doubles import until
from support import datagram_target, target
from tabi import Proxy, Server
from tabi.net import kernel
from tabi.observe.exposition import METRICS, Labels, Value
from tabi.server.measure import AT_ONCE, Measure, open_files, process

LISTEN = "mixed://127.0.0.1:0"


def value(samples: Mapping[str, Mapping[Labels, Value]], name: str, **wanted: str) -> float:
    """The sum of a metric's values that have these labels."""
    found = samples.get(name, {})
    return sum(number for labels, number in found.items() if set(wanted.items()) <= set(labels))  # type: ignore[misc]


def test_running_sessions_are_in_it(run_once: Run) -> None:
    """With what they have carried so far, which stays when they have ended."""

    async def main() -> None:
        async with target() as port, datagram_target() as there, Server(LISTEN) as server:
            measure = Measure(server)
            proxy = Proxy(server.url)
            async with proxy.connect("127.0.0.1", port) as stream, proxy.associate() as association:
                await stream.send_all(b"1234567")
                assert await stream.receive() == b"1234567"
                await association.send(b"12", ("127.0.0.1", there))
                await association.receive()
                found = await measure.samples()
                assert set(found) <= set(METRICS)
                assert value(found, "tabi_sessions_open", command="connect", egress="direct", protocol="socks5") == 1
                assert value(found, "tabi_sessions_open", command="associate") == 1
                for direction in ("up", "down"):
                    assert value(found, "tabi_octets_total", direction=direction, command="connect") == 7
                    assert value(found, "tabi_datagrams_total", direction=direction) == 1
                assert value(found, "tabi_sessions_total") == 0
            await until(lambda: not server.sessions())
            after = await measure.samples()
            assert value(after, "tabi_sessions_open") == 0
            assert value(after, "tabi_sessions_total") == 2
            assert value(after, "tabi_octets_total", command="connect") == 14
            assert value(after, "tabi_datagrams_total") == 2
            assert after["tabi_handshake_seconds"][()][-1] > 0  # type: ignore[index]

    run_once(main)


def test_what_was_carried_never_falls(run_once: Run) -> None:
    """A session that ends while the others are looked at may be missed: then the count is what it was before."""

    async def main() -> None:
        async with Server(LISTEN) as server:
            measure = Measure(server)
            labels = (("direction", "up"), ("command", "connect"), ("egress", "direct"))
            measure.carried["tabi_octets_total"][labels] = 1000
            assert (await measure.samples())["tabi_octets_total"][labels] == 1000

    run_once(main)


def test_sessions_have_their_turns_meanwhile(run_once: Run) -> None:
    """Many sessions are not looked at in one turn of the loop."""

    async def main() -> None:
        async with target() as port, Server(LISTEN) as server, AsyncExitStack() as open_:
            for _ in range(3 * AT_ONCE + 1):
                await open_.enter_async_context(Proxy(server.url).connect("127.0.0.1", port))
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.Task(others())
            found = await Measure(server).samples()
            task.cancel()
            assert value(found, "tabi_sessions_open") == 3 * AT_ONCE + 1
            assert turns >= 4

    run_once(main)


def test_what_else_it_says(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of pools, calls that are refused, clients that have not asked, faults, the process itself."""
    monkeypatch.setattr(kernel, "refused", {"splice"})

    async def main() -> None:
        from tabi.config import make_config

        config = make_config(
            {
                "egress": {"p": {"members": ["direct", "socks5://127.0.0.1:1"]}},
                "rule": [{"action": "allow", "via": "p"}],
                "distort": [{"name": "slow", "fault": {"latency": "1ms"}}],
                "log": {"access": "none"},
            }
        )
        async with target() as port, Server(LISTEN, config=config) as server:
            (pool,) = server.parts.egresses.pools
            direct, other = pool.pool.members
            pool.pool.drain(other)
            address = server.addresses[0]
            _, writer = await asyncio.open_connection(str(address.host), address.port)
            await until(lambda: len(server.parts.sessions.running) == 1)
            async with Proxy(server.url).connect("127.0.0.1", port):
                found = await Measure(server).samples()
            writer.close()
            assert value(found, "tabi_member_up", pool="p", member=direct.name) == 1
            assert value(found, "tabi_member_up", pool="p", member=other.name) == 0
            assert value(found, "tabi_member_sessions", member=direct.name) == 1
            assert value(found, "tabi_fallback", call="splice") == 1
            assert value(found, "tabi_clients_waiting") == 1
            assert value(found, "tabi_fault_sessions", fault="slow") == 1
            assert value(found, "process_open_fds") > 5
            assert value(found, "tabi_workers") == 1
            await until(lambda: not server.sessions())

    run_once(main)


def test_descriptors_are_counted(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a kernel that does not know their number; and without proc(5) there is none."""
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(2500)]
    try:
        expected = len(os.listdir("/proc/self/fd")) - 1
        assert abs(run_once(open_files) - expected) < 20
        stat = os.stat

        class Older:
            st_size = 0

        monkeypatch.setattr(os, "stat", lambda path: Older() if path == "/proc/self/fd" else stat(path))
        assert abs(run_once(open_files) - expected) < 20
    finally:
        for file in files:
            os.close(file)

    def gone(*_: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(os, "stat", gone)
    assert run_once(open_files) == 0
    monkeypatch.setattr("builtins.open", gone)
    assert {name for name, _ in process()} == {"process_cpu_seconds_total", "process_max_fds"}
