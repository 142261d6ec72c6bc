"""Faults as a server composes them: in front of what, through reloads, and what they leave where there are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from distorting import LATE, Served, config_of, distorting, entry_of, until
from http_proxy import ask, exchange, origin
from processes import in_thread
from support import GREETING, client, echo, request, target, tunnel
from tabi import Server, Tunnel
from tabi.config import Log
from tabi.parts import Bind, Connect, Direct, Http, Listener, Mixed, Relay, Resolve, Socks5
from tabi.relay.flow import Flow


def test_without_entries_nothing_is_imported(run_once: Run) -> None:
    """Nor anything in front of what sessions pass."""
    text = (
        "import asyncio, sys, tabi\n"
        "async def main():\n"
        "    async with tabi.Server('mixed://127.0.0.1:0') as server:\n"
        "        assert server.parts.connect.carrier is server.parts.relays\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('tabi.distort')])\n"
    )

    async def main() -> None:
        done = await in_thread([sys.executable, "-c", text], env=dict(os.environ))
        assert done.stdout.split(b"\n")[0] == b"[]", done.stderr

    run_once(main)


def test_the_first_fault_and_the_last_one(run: Run) -> None:
    """Without any, sessions pass what they had passed before, on relays that splice."""

    async def main() -> None:
        async with target(echo) as port, distorting() as it:
            parts = it.server.parts
            before = parts.connect.gate, parts.connect.carrier, parts.forwarding.gate, parts.forwarding.carrier
            for _ in range(2):
                it.set("slices", {"slice": 3})
                async with tunnel(it.address, port) as (reader, writer):
                    writer.write(b"hello")
                    assert await reader.readexactly(5) == b"hello"
                    assert it.entry("slices").active == 1
                it.remove("slices")
                after = parts.connect.gate, parts.connect.carrier, parts.forwarding.gate, parts.forwarding.carrier
                assert after == before
                async with tunnel(it.address, port):
                    (session,) = [one for one in parts.sessions.running if one.distorted is None]
                    assert type(it.relay_of(session).up) is Flow

    run(main)


def test_a_reload_leaves_alone_what_it_does_not_change(run: Run) -> None:
    """An entry that says the same goes on, wherever it is now; one with another fault acts anew on the sessions that
    it was drawn for; others come and go; and what was set while it runs stays."""

    async def main() -> None:
        same = entry_of({"down": {"latency": LATE}}, name="same")
        changing = entry_of({"slice": 3}, name="changing", probability=0.5, seed=1)
        async with target(echo) as port, distorting(same, changing, entry_of({"slice": 1})) as it:
            live = it.set("live", {"slice": 2})
            async with contextlib.AsyncExitStack() as stack:
                streams = [await stack.enter_async_context(tunnel(it.address, port)) for _ in range(10)]
                for _, writer in streams:
                    writer.write(b"hello")
                entries = [it.entry(label) for label in ("same", "changing", "distort[2]")]
                relays = list(it.server.parts.relays.active.values())
                await until(lambda: all(relay.down.held == 5 for relay in relays))
                drawn = entries[1].active
                assert 0 < drawn < 10
                began = entries[0].began
                changed = entry_of({"slice": 4}, name="changing", probability=0.5, seed=1)
                it.server.reload(config_of(entry_of({"slice": 9}, name="new"), changed, same))
                assert [it.entry(label) for label in ("same", "changing")] == entries[:2]
                assert it.entry("live") is live
                assert entries[0].began == began
                assert (entries[2].active, entries[2].gone) == (0, True)
                assert (entries[1].active, entries[1].fault.up.slice) == (drawn, 4)
                assert (it.entry("new").active, live.active) == (10, 10)
                assert all(relay.down.held == 5 for relay in relays)
                it.server.reload(config_of())
                for reader, _ in streams:
                    assert await reader.readexactly(5) == b"hello"

    run(main)


def test_what_is_between_its_choice_and_its_start(run: Run) -> None:
    """An entry that goes while the destination is dialled does not act; one that comes meanwhile does."""

    async def main() -> None:
        async with target(echo) as port, distorting() as it:
            it.set("wait", {"dial_delay": LATE, "slice": 2})
            opening = asyncio.get_running_loop().create_task(stack_of(it, port))
            await until(lambda: it.entry("wait").resting)
            entry = it.entry("wait")
            late = it.set("late", {"down": {"latency": LATE}})
            assert late.active == 0
            it.remove("wait")
            stack, reader, writer = await opening
            async with stack:
                writer.write(b"hello")
                (session,) = it.server.parts.sessions.running
                await until(lambda: it.relay_of(session).down.held == 5)
                assert (late.active, entry.active, entry.chosen) == (1, 0, 1)
                it.remove("late")
                assert await reader.readexactly(5) == b"hello"

    run(main)


async def stack_of(it: Served, port: int) -> Any:
    """A tunnel, and what closes it."""
    stack = contextlib.AsyncExitStack()
    return stack, *await stack.enter_async_context(tunnel(it.address, port))


def test_schedules(run: Run) -> None:
    """The clock is passed in: a fault comes and goes on sessions that run, in front of relays and others."""

    async def carry(tunnel: Tunnel) -> None:
        await tunnel.relay()

    async def main() -> None:
        now = [0.0]
        each: list[dict[str, Any]] = [{}, {"carrier": carry}]
        for options in each:
            async with target(echo) as port, distorting(**options) as it, tunnel(it.address, port) as (reader, writer):
                now[0] = 0.0
                it.set("none", {"slice": 1}, hosts=["no.test"])
                it.distortion.clock = lambda: now[0]
                fault = {"down": {"latency": LATE}, "from": "1970-01-01T00:01:40Z", "until": "1970-01-01T00:03:20Z"}
                entry = it.set("late", fault)
                assert it.distortion.timer is not None
                assert entry.active == 1
                for moment, held in ((50.0, False), (150.0, True), (250.0, False), (160.0, True), (300.0, False)):
                    now[0] = moment
                    it.distortion.look()
                    writer.write(b"hello")
                    if held:
                        (one,) = it.distortion.all
                        await until(lambda one=one: one.relay is not None and one.relay.down.held == 5)
                    else:
                        count = 10 if moment in (250.0, 300.0) else 5
                        assert await reader.readexactly(count) == b"hello" * (count // 5)
                it.remove("late")
                assert it.distortion.timer is None

    run(main)


def test_a_cycle_by_the_clock_of_the_loop(run: Run) -> None:
    """``every``: its timer has it look when it changes."""

    async def main() -> None:
        async with target(echo) as port, distorting() as it, tunnel(it.address, port) as (reader, writer):
            entry = it.set("late", {"down": {"latency": LATE}, "every": "50 ms good, 50 ms gone"})
            for _ in range(3):
                await until(lambda: entry.acts(it.distortion.loop.time()))
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"

    run(main)


def test_listeners_of_pieces(run: Run) -> None:
    """Faults act there too: behind the egress and the carrier of a command, on BIND, on questions and on requests."""

    async def carry(tunnel: Tunnel) -> None:
        await tunnel.relay()

    async def main() -> None:
        from distorting import Served

        pieces: list[Any] = [
            Mixed(Socks5(Connect(carrier=carry), Bind(carrier=carry)), Http(Connect(carrier=carry))),
            Mixed(Socks5(Connect(egress=Direct(timeout=5.0))), Http(Connect(egress=Direct(timeout=5.0)))),
            Mixed(Socks5(Connect(carrier=Relay(idle=50.0)), Resolve()), Http()),
        ]
        for piece in pieces:
            async with target(echo) as port, origin() as there, Listener("127.0.0.1:0", piece) as listener:
                it = Served(server_of(listener), [])
                async with client(it.address) as streams:
                    assert (await exchange(streams, ask(there.url))).content == b"hello"
                    for _ in range(2):
                        it.set("late", {"down": {"latency": LATE}})
                        async with tunnel(it.address, port) as (reader, writer):
                            writer.write(b"hello")
                            held = lambda it=it: [one for one in it.distortion.all if one.relay and one.relay.down.held]  # noqa: E731
                            await until(held)
                            it.remove("late")
                            assert await reader.readexactly(5) == b"hello"
                    it.set("down", {"refuse": "host unreachable"})
                    assert (await exchange(streams, ask(there.url))).status == 502
                    async with client(it.address) as (reader, writer):
                        writer.write(GREETING)
                        assert await reader.readexactly(2) == b"\x05\x00"
                        writer.write(request("127.0.0.1", port))
                        assert (await reader.readexactly(2))[1] == 4
                    it.remove("down")
                    assert (await exchange(streams, ask(there.url))).content == b"hello"

    run(main)


def server_of(listener: Any) -> Server:
    """The server that runs a listener."""
    return next(value for value in vars(listener).values() if isinstance(value, Server))


def test_the_log_names_the_entries(run: Run, tmp_path: Path) -> None:
    """``faults``, only where there are some; and a fault that has ended a session."""

    async def main() -> None:
        path = tmp_path / "access.log"
        entries = [
            entry_of({"down": {"limit": 3}}, name="short", hosts=["far.test"]),
            entry_of({"slice": 2}, hosts=["far.test"]),
        ]
        log = Log(access=str(path))
        async with target(echo) as port, distorting(*entries, names=["far.test", "near.test"], log=log) as it:
            for host in ("far.test", "near.test"):
                async with tunnel(it.address, port, host) as (reader, writer):
                    writer.write(b"hello")
                    assert await reader.readexactly(3) == b"hel"
        first, second = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["host"])
        assert first["faults"] == ["short", "distort[1]"]
        assert (first["close"], first["error"][:5]) == ("fault", "short")
        assert "faults" not in second
        assert first["address"] == second["address"] == f"127.0.0.1:{port}"

    run(main)


def test_pairs_take_room(run: Run) -> None:
    """A session with one needs twice as many descriptors: fewer clients are let in."""

    async def carry(tunnel: Tunnel) -> None:
        await tunnel.relay()

    async def main() -> None:
        async with target(echo) as port, distorting(entry_of({"slice": 1}), carrier=carry) as it:
            before = it.server.parts.room()
            async with tunnel(it.address, port):
                await until(lambda: it.distortion.all)
                assert it.server.parts.room() == before - 2

    run(main)


@pytest.mark.parametrize("live", [False, True])
def test_a_listener_that_is_reloaded_passes_faults(run: Run, live: bool) -> None:
    """BIND of a new client after a reload, with the entries of the configuration and with those that are set."""

    async def main() -> None:
        faults = [entry_of({"refuse": 5}, name="down", commands=["bind"])]
        async with distorting() as it:
            if live:
                it.set("down", {"refuse": 5}, commands=["bind"])
            it.server.reload(config_of(*([] if live else faults)))
            async with client(it.address) as (reader, writer):
                writer.write(GREETING)
                assert await reader.readexactly(2) == b"\x05\x00"
                writer.write(request("127.0.0.1", 9, 2))
                assert (await reader.readexactly(2))[1] == 5

    run(main)
