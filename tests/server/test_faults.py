"""Faults that are set while a server runs, as a program has them."""

from __future__ import annotations

import asyncio
import hashlib
from time import monotonic
from typing import Any

import pytest

import tabi
from conftest import Run
from datagrams import association
from doubles import LOOPBACK
from support import target, tunnel
from tabi import LiveFault, Server
from tabi.config import DistortConfig, FaultConfig, Seconds, make_config
from tabi.distort.choosing import MOST_KNOWN
from tabi.errors import ConfigError
from tabi.server.faults import MOST_FAULTS

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def round_trip(streams: Streams, data: bytes = b"ping") -> float:
    """Seconds until these octets are back, each of them."""
    began = monotonic()
    streams[1].write(data)
    assert await streams[0].readexactly(len(data)) == data
    return monotonic() - began


def test_a_running_session_has_it_until_the_end_of_the_block(run: Run) -> None:
    """At once, as new ones do; and a change too. Then octets pass as before."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as streams:
            await round_trip(streams)
            async with server.fault(latency="60ms") as fault:
                assert await round_trip(streams) >= 0.12
                assert (fault.name, fault.sessions, fault.chosen, fault.acts) == ("fault-1", 1, 1, True)
                async with tunnel(server.addresses[0], port) as second:
                    assert await round_trip(second) >= 0.12
                    assert (fault.sessions, fault.chosen) == (2, 2)
                fault.change(latency="120ms")
                assert await round_trip(streams) >= 0.24
                assert fault.chosen == 2
                assert repr(fault) == "<tabi.LiveFault fault-1: latency 120ms>"
            assert (fault.sessions, fault.acts) == (0, False)
            for _ in range(9):
                await round_trip(streams)
            assert len(server.sessions()) == 1

    run(main)


def test_it_is_for_the_sessions_that_its_matchers_choose(run_once: Run) -> None:
    """Others are not touched, whether they run already or not; several faults act together."""

    async def main() -> None:
        async with target() as one, target() as other, Server(LOOPBACK) as server:
            address = server.addresses[0]
            async with (
                tunnel(address, one) as first,
                tunnel(address, other) as second,
                server.fault(ports=[one], latency="40ms", name="slow") as slow,
                server.fault("offline", hosts=["x"]),
            ):
                await round_trip(second)
                assert await round_trip(first) >= 0.08
                assert (slow.chosen, slow.sessions, slow.name) == (1, 1, "slow")
                async with tunnel(address, other) as third:
                    await round_trip(third)
                assert (slow.chosen, slow.sessions) == (1, 1)

    run_once(main)


def test_a_change_keeps_what_it_does_not_name(run_once: Run) -> None:
    """One that is wrong changes nothing; a fault that was removed is not changed."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as streams:
            fault = server.set_fault("3g", hosts=["127.0.0.1"], latency="50ms")
            fault.change(bandwidth="1 MB/s", latency="70ms")
            with pytest.raises(ConfigError, match="latency: a duration is more than 0"):
                fault.change(latency=-1)
            assert await round_trip(streams) >= 0.14
            assert repr(fault) == "<tabi.LiveFault fault-1: 3g, latency 70ms, bandwidth 1 MB/s, hosts 127.0.0.1>"
            with pytest.raises(RuntimeError, match="the fault fault-1 acts already"):
                fault.set()
            fault.remove()
            fault.remove()
            with pytest.raises(RuntimeError, match="the fault fault-1 does not act"):
                fault.change(latency=1)
            assert fault.chosen == 1
            async with fault:  # it can be set again
                assert fault.acts
            await round_trip(streams)

    run_once(main)


def test_how_many_it_was_drawn_for(run_once: Run) -> None:
    """Sessions are drawn once, whatever its figures are; anew if a change chooses others, and when it is set again."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port):
            fault = server.set_fault(latency="1ms")
            fault.change(latency="2ms")
            fault.change(latency="1ms", jitter="1ms")
            assert (fault.chosen, fault.sessions) == (1, 1)
            fault.change(ports=[port])
            assert (fault.chosen, fault.sessions) == (2, 1)
            fault.change(ports=[1])
            assert (fault.chosen, fault.sessions) == (2, 0)
            fault.remove()
            fault.set()
            assert (fault.chosen, fault.sessions) == (2, 0)

    run_once(main)


def test_it_is_gone_whoever_cancels(run: Run) -> None:
    """A cancelled task, a deadline or an error in the block leaves nothing behind."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as streams:

            async def hold() -> None:
                async with server.fault(stall=True, latency="10ms"):
                    acting.set()
                    await asyncio.sleep(3600)

            for _ in range(3):
                acting = asyncio.Event()
                task = asyncio.get_running_loop().create_task(hold())
                await acting.wait()
                task.cancel()
                streams[1].write(b"held")
                await asyncio.wait([task])
                assert await streams[0].readexactly(4) == b"held"
                assert server.faults.all == {}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), server.fault(latency=9):
                    await asyncio.sleep(3600)
            with pytest.raises(ZeroDivisionError):
                async with server.fault(latency=9):
                    raise ZeroDivisionError
            await round_trip(streams)

    run(main)


def test_a_transfer_under_way_arrives_whole(run: Run) -> None:
    """Whatever is set, changed and removed meanwhile, every octet comes, in its order."""
    size = 24 << 20
    block = bytes(range(251)) * 4096

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = memoryview(block * (size // len(block) + 1))[:size]
        for start in range(0, size, 65536):
            writer.write(data[start : start + 65536])
            await writer.drain()
        writer.write_eof()

    async def main() -> None:
        expected = hashlib.sha256((block * (size // len(block) + 1))[:size]).digest()
        found, count, turns = hashlib.sha256(), 0, 0
        async with target(send) as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as streams:
            fault: LiveFault | None = None
            while data := await streams[0].read(1 << 20):
                found.update(data)
                count += len(data)
                if count // (1 << 20) <= turns:
                    continue
                turns = count // (1 << 20)
                if fault is None or not fault.acts:
                    fault = server.set_fault(latency="2ms", jitter="1ms", slice=5000)
                elif turns % 3 == 1:
                    fault.change(bandwidth="80 MB/s")
                elif turns % 3 == 2:
                    fault.remove()
        assert (count, found.digest()) == (size, expected)

    run(main)


def test_a_server_that_is_closed_meanwhile(run: Run) -> None:
    """The end of the block is no error then, and no fault is set any more."""

    async def main() -> None:
        async with target() as port:
            server = Server(LOOPBACK)
            with pytest.raises(RuntimeError, match=r"from start\(\) on"):
                server.set_fault("3g")
            await server.start()
            async with tunnel(server.addresses[0], port), server.fault(latency=9) as fault:
                server.set_fault("edge", every="1 s good, 1 s gone")
                await server.close()
                assert fault.acts
            assert not fault.acts
            with pytest.raises(RuntimeError, match="the server is closed"):
                server.set_fault("3g")
            assert not server.fault("3g").acts

    run(main)


def test_while_it_drains(run_once: Run) -> None:
    """Sessions that still run get it, although the listeners are closed."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as streams:
            await server.drain(0)
            async with server.fault(latency="30ms"):
                assert await round_trip(streams) >= 0.06

    run_once(main)


def test_names_are_taken_once(run_once: Run) -> None:
    """By faults that act, and by the entries of the configuration. There is a bound for how many there are."""

    async def main() -> None:
        config = make_config(
            {
                "listen": [{"url": LOOPBACK}],
                "distort": [{"name": "mine", "ports": [1], "fault": "3g"}, {"fault": "dsl"}],
            }
        )
        async with Server(config=config) as server:
            server.set_fault("3g", name="one")
            for name in ("one", "mine", "distort[1]"):
                with pytest.raises(ConfigError, match="name: there is one called"):
                    server.set_fault("3g", name=name)
            server.set_fault("3g", name="fault-1")
            assert server.set_fault("3g").name == "fault-2"
            for _ in range(MOST_FAULTS - 3):
                server.set_fault("3g", ports=[1])
            with pytest.raises(ConfigError, match=f"{MOST_FAULTS} faults are set already"):
                server.set_fault("3g")
            assert len(server.faults.all) == MOST_FAULTS

    run_once(main)


def test_they_stay_when_the_configuration_changes(run_once: Run) -> None:
    """A reload takes other entries, and the faults that were set go on."""

    async def main() -> None:
        config = make_config({"listen": [{"url": LOOPBACK}], "log": {"access": "none"}})
        more = make_config({"listen": [{"url": LOOPBACK}], "distort": [{"ports": [1], "fault": "3g"}]})
        async with target() as port, Server(config=config) as server, tunnel(server.addresses[0], port) as streams:
            async with server.fault(latency="40ms", name="mine") as fault:
                server.reload(more)
                assert await round_trip(streams) >= 0.08
                rows = [(row.name, row.live, row.what, row.matchers, row.chosen) for row in server.faults.rows()]
                assert rows == [("mine", True, "latency 40ms", "", 1), ("distort[0]", False, "3g", "ports 1", 0)]
                server.reload(config)
                assert await round_trip(streams) >= 0.08
                assert fault.sessions == 1
            await round_trip(streams)

    run_once(main)


def test_profiles_and_listeners_are_those_of_the_configuration(run_once: Run) -> None:
    """``[profile.NAME]`` can be named, and the URLs that it listens on."""

    async def main() -> None:
        config = make_config({"listen": [{"url": LOOPBACK}], "profile": {"slow": {"latency": "30ms"}}})
        async with target() as port, Server(config=config) as server, tunnel(server.addresses[0], port) as streams:
            async with server.fault("slow", listeners=[LOOPBACK]):
                assert await round_trip(streams) >= 0.06
            with pytest.raises(ConfigError, match="listeners"):
                server.fault("slow", listeners=["http://127.0.0.1:1"])

    run_once(main)


def test_a_server_without_faults_has_nothing_of_them(run_once: Run) -> None:
    """Neither before the first one, nor behind the last: sessions go to the relays as they are."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server:
            parts = server.parts
            assert parts.molding is None
            async with server.fault(latency="10ms"):
                assert parts.connect.carrier is not parts.relays
                async with tunnel(server.addresses[0], port) as streams:
                    assert await round_trip(streams) >= 0.02
            assert parts.connect.carrier is parts.relays
            async with tunnel(server.addresses[0], port) as streams:
                await round_trip(streams)

    run_once(main)


def test_entries_that_a_server_is_made_with(run_once: Run) -> None:
    """As structs, mappings and names of profiles, behind those of the configuration, and through reloads."""

    async def main() -> None:
        config = make_config({"listen": [{"url": LOOPBACK}], "distort": [{"ports": [1], "fault": "3g"}]})
        given: list[Any] = [
            DistortConfig(fault=FaultConfig(latency=Seconds(0.03))),
            {"hosts": ["x"], "fault": "dsl"},
            "4g",
        ]
        async with target() as port, Server(config=config, distort=given) as server:
            async with tunnel(server.addresses[0], port) as streams:
                assert await round_trip(streams) >= 0.06
            server.reload(config)
            assert [one.fault for one in server.config.distort[2:]] == ["dsl", "4g"]
            assert len(server.config.distort) == 4

    run_once(main)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (["5g"], ConfigError, r"distort\[0\].fault: '5g', expected"),
    (["3g", {"fault": {"latency": -1}}], ConfigError, r"distort\[1\].fault.latency: "),
    ([{"frobnicate": 1}], ConfigError, r"distort\[0\].frobnicate: unknown key"),
    ([{"hosts": ["x"]}], ConfigError, r"distort\[0\]: it changes nothing"),
    ("3g", TypeError, "distort: str, expected a list"),
    ([5], TypeError, r"distort\[0\]: int, expected tabi.config.DistortConfig or a mapping"),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG)
def test_wrong_entries_are_told_at_once(given: Any, kind: type[Exception], message: str) -> None:
    """With their place and their key."""
    with pytest.raises(kind, match=message):
        Server(LOOPBACK, distort=given)


def test_wrong_faults_are_told_at_once() -> None:
    """When they are made, with the key; the server need not run."""
    server = tabi.Server(LOOPBACK)
    with pytest.raises(ConfigError, match=r"^latency: a duration is more than 0"):
        server.fault(latency=float("nan"))
    with pytest.raises(ConfigError, match=r"^bandwidth: it contradicts blackhole"):
        server.fault(blackhole=True, bandwidth=1000)
    with pytest.raises(ConfigError, match=r"^frobnicate: unknown key"):
        server.fault(frobnicate=1)  # type: ignore[call-arg]


def test_a_session_forgets_faults_that_are_gone(run_once: Run) -> None:
    """Somebody sets and removes them all day: what runs meanwhile does not grow, whatever it is."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server, tunnel(server.addresses[0], port) as streams:
            await round_trip(streams)
            async with association(server.addresses[0]):
                running = tuple(server.parts.sessions.running)
                assert {session.command for session in running} == {"connect", "associate"}
                for _ in range(2 * MOST_KNOWN):
                    async with server.fault(latency="1ms"):
                        pass
                for session in running:
                    assert len(session.distorted) <= MOST_KNOWN
                    assert len(getattr(session.distorted, "asked", ())) <= 1
                    assert len(session.ended or ()) <= 1
            await round_trip(streams)

    run_once(main)


def test_entries_of_the_file_are_listed_with_all_that_they_do(run_once: Run) -> None:
    """Rewrites too, without values that may be secret."""

    async def main() -> None:
        entries: list[dict[str, Any]] = [
            {"strip_cookies": True, "fault": "3g"},
            {"headers": {"set": {"Authorization": "s3cret"}}},
        ]
        async with Server(LOOPBACK, distort=entries) as server:
            found = [row.what for row in server.faults.rows()]
            assert found == ["3g; no cookies", "request fields: set Authorization"]

    run_once(main)
