"""The parts of a server: the room for sessions, the change to another configuration, and the order of their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from pathlib import Path

import msgspec
import pytest

from authorities import write_server
from conftest import Run
from doubles import (
    LOOPBACK,
    FakeResolver,
    ask_for,
    config,
    descriptor_limit,
    greet,
    logged,
    no_descriptors_left,
    open_tunnel,
    read_reply,
    until,
)
from support import GREETING, client, request, target, tunnel
from tabi import Config, Proxy, Server
from tabi.config import Listen, Log, RuleConfig, UserConfig
from tabi.errors import ConfigError, ProxyError
from tabi.server.compiled import compile_config
from tabi.wire.address import Address, parse_host


def test_a_log_that_cannot_be_written_ends_the_start(run: Run, tmp_path: Path) -> None:
    """The error names the key and the path, and whatever was built until then is closed."""

    async def main() -> None:
        resolver = FakeResolver()
        log = tmp_path / "missing" / "access.log"
        server = Server(LOOPBACK, config=Config(log=Log(access=str(log))), users={"a": "b"}, resolver=resolver)
        with pytest.raises(FileNotFoundError, match="No such file or directory") as caught:
            await server.start()
        assert caught.value.filename == f"log.access: {log}"
        assert resolver.closed
        await server.close()

    run(main)


def test_no_more_sessions_than_descriptors(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """At the limit the tunnels live, who comes next waits, nothing spins; when one ends, the next one is served."""

    async def main() -> None:
        with descriptor_limit(80):
            async with (
                target() as port,
                Server(LOOPBACK) as server,
                tunnel(server.addresses[0], port) as (reader, writer),
            ):
                streams = [
                    await asyncio.open_connection("127.0.0.1", server.addresses[0].port)
                    for _ in range(server.parts.capacity - 1)
                ]
                for other in streams:
                    await open_tunnel(other, Address("127.0.0.1", port))
                async with client(server.addresses[0]) as waiting:
                    waiting[1].write(b"\x05\x01\x00")
                    await until(lambda: "new connections wait" in caplog.text)
                    before = time.process_time()
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(waiting[0].readexactly(2), 0.5)
                    assert time.process_time() - before < 0.2
                    writer.write(b"alive")
                    assert await reader.readexactly(5) == b"alive"
                    for _, other_writer in streams:
                        other_writer.close()
                        await other_writer.wait_closed()
                    assert await waiting[0].readexactly(2) == b"\x05\x00"
        assert caplog.text.count("new connections wait") == 1
        assert caplog.text.count("goes on") == 1

    run(main)


@pytest.mark.every_hosting
def test_descriptors_used_up_by_others(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """When accept finds no descriptor, the tunnels live, who comes waits, nothing spins, and then it goes on."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server:
            with socket.socket() as sock:
                async with tunnel(server.addresses[0], port) as (reader, writer):
                    with no_descriptors_left():
                        sock.connect(("127.0.0.1", server.addresses[0].port))
                        await until(lambda: "new connections wait" in caplog.text)
                        before = time.process_time()
                        await asyncio.sleep(0.3)
                        assert time.process_time() - before < 0.15
                        for size in (5, 200_000):
                            writer.write(bytes(size))
                            assert await reader.readexactly(size) == bytes(size)
                    sock.setblocking(False)
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(sock, b"\x05\x01\x00")
                    assert await loop.sock_recv(sock, 2) == b"\x05\x00"
        assert "too many open files" in caplog.text.lower()

    run(main)


def test_the_resolver_is_closed_with_the_server(run: Run) -> None:
    """What was handed in as ``resolver`` is given the end as well."""

    async def main() -> None:
        resolver = FakeResolver()
        async with Server(LOOPBACK, resolver=resolver):
            assert not resolver.closed
        assert resolver.closed

    run(main)


# --- the end ---


def test_the_log_closes_behind_all_that_has_lines_for_it(run: Run, tmp_path: Path) -> None:
    """A tunnel, a handshake and an association that run when the server closes have their lines, and it is the last."""
    path = tmp_path / "access.log"

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(target())
            server = await stack.enter_async_context(Server(config=logged(path)))
            await stack.enter_async_context(tunnel(server.addresses[0], port))
            await stack.enter_async_context(Proxy(server.url).associate())
            shaking = await stack.enter_async_context(client(server.addresses[0]))
            assert await greet(shaking) == 0
            await server.close()
            with path.open() as log:
                records = [json.loads(line) for line in log]
            assert sorted(str(record["command"]) for record in records) == ["None", "associate", "connect"]
            assert {record["close"] for record in records} == {"shutdown"}

    run(main)


def test_little_room_is_worth_a_warning(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever forgets `ulimit -n` reads at the start what it comes to, and not before sessions have to wait."""

    async def main() -> None:
        for limit, warned in ((120, True), (1024, False)):
            caplog.clear()
            with descriptor_limit(limit):
                async with Server(LOOPBACK) as server:
                    capacity = server.parts.capacity
                    assert server.parts.room() == capacity
            text = f"only {limit} descriptors (ulimit -n): room for {capacity} sessions"
            assert (text in caplog.text) is warned

    run_once(main)


def test_room_is_what_sessions_leave(run_once: Run) -> None:
    """A tunnel takes one place, an association two, which come back when they end."""

    async def main() -> None:
        async with target() as port, Server(LOOPBACK) as server:
            parts = server.parts
            async with tunnel(server.addresses[0], port):
                assert parts.capacity - parts.room() == 1
                async with Proxy(server.url).associate():
                    assert parts.capacity - parts.room() == 3
            await until(lambda: parts.room() == parts.capacity)

    run_once(main)


# --- another configuration ---


def test_nothing_changes_before_the_last_step(run_once: Run) -> None:
    """Between the steps others have their turn, and meet the old rules and the old users to the end."""

    async def main() -> None:
        old = msgspec.structs.replace(config(Listen(LOOPBACK), Listen(LOOPBACK)), rule=[])
        new = msgspec.structs.replace(old, rule=[RuleConfig("deny")], users={"alice": UserConfig("secret", plain=True)})
        async with target() as port, Server(config=old) as server:
            parts = server.parts
            steps = parts.replace(compile_config(new))
            count = 0
            for _ in steps:
                count += 1
                assert parts.compiled.config.rule == []
                assert await ask_for(server, "127.0.0.1", port) == 0
            assert count == len(new.listen) + 2
            for address in server.addresses:
                async with client(address) as (reader, writer):
                    writer.write(b"\x05\x01\x00")
                    assert await reader.read() == b"\x05\xff"
                with pytest.raises(ProxyError, match="02"):
                    await Proxy(f"socks5://alice:secret@{address}").connect("127.0.0.1", port)

    run_once(main)


def test_a_file_that_breaks_meanwhile_changes_nothing(run_once: Run, tmp_path: Path) -> None:
    """What was compiled elsewhere names files that are read here: one that is no longer there leaves all as it was."""

    async def main() -> None:
        tls = write_server(tmp_path)
        old = config(Listen("mixed://127.0.0.1:0"))
        new = msgspec.structs.replace(old, listen=[Listen("mixed://127.0.0.1:0", tls=tls)], rule=[RuleConfig("deny")])
        async with target() as port, Server(config=old) as server:
            compiled = compile_config(new)
            Path(tls.key).unlink()
            before = server.parts.compiled
            with pytest.raises(ConfigError, match=r"^listen\[0\]\.tls\.key: "):
                for _ in server.parts.replace(compiled):
                    pass
            assert server.parts.compiled is before
            assert await ask_for(server, "127.0.0.1", port) == 0

    run_once(main)


def test_each_socket_takes_over_its_own_listener(run_once: Run) -> None:
    """A listener may have several sockets: after a reload each speaks what that listener does, and not another one."""

    async def main() -> None:
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        places = [Address(parse_host("127.0.0.1"), sock.getsockname()[1]) for sock in socks]
        listeners = [Listen("fd://web?protocol=http"), Listen("fd://socks?protocol=socks5")]
        old = config(*listeners)
        async with Server(config=old, sockets=[socks[:2], socks[2:]]) as server:
            assert (server.parts.counts, len(server.parts.acceptors)) == ([2, 1], 3)
            server.reload(msgspec.structs.replace(old, rule=[RuleConfig("deny")]))
            for place in places[:2]:
                async with client(place) as (reader, writer):
                    writer.write(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
                    assert (await reader.readline()).startswith(b"HTTP/1.1 403")
            async with client(places[2]) as (reader, writer):
                writer.write(GREETING)
                assert await reader.readexactly(2) == b"\x05\x00"
                writer.write(request("127.0.0.1", 1))
                assert (await read_reply(reader))[0] == 2

    run_once(main)
