"""Rules and limits from outside: what clients of every protocol meet, in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from conftest import Run
from doubles import greet, read_reply
from support import client, request, target
from tabi import Server, Session
from tabi.config import Listen, RuleConfig, make_config
from tabi.wire.address import Address, decode_address

MIXED = Listen("mixed://127.0.0.1:0")


def serving(*rules: RuleConfig, on_close: Callable[[Session], object] | None = None, **parts: Any) -> Server:
    """A server with rules, limits and deadlines."""
    config = make_config({"log": {"access": "none"}, **parts})
    return Server(config=msgspec.structs.replace(config, listen=[MIXED], rule=list(rules)), on_close=on_close)


def octets_of(protocol: str, port: int) -> bytes:
    """A whole request to connect to a port of this machine, greeting and all."""
    place = f"127.0.0.1:{port}"
    return {
        "socks5": b"\x05\x01\x00" + request("127.0.0.1", port),
        "socks4": b"\x04\x01" + port.to_bytes(2) + b"\x7f\0\0\x01\0",
        "connect": f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode(),
        "forward": f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\n\r\n".encode(),
        "bind": b"\x05\x01\x00" + request("127.0.0.1", port, 2),
        "associate": b"\x05\x01\x00" + request("0.0.0.0", 0, 3),
    }[protocol]


PROTOCOLS = ["socks5", "socks4", "connect", "forward", "bind", "associate"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reset_is_a_reset_in_every_protocol(run_once: Run, protocol: str) -> None:
    """No reply: the client's connection is reset, as if nobody were there; the log knows better."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with serving(RuleConfig("reset", "gone"), on_close=ended.put_nowait) as server:
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(octets_of(protocol, 1))
                if not protocol.startswith(("connect", "forward", "socks4")):
                    assert await reader.readexactly(2) == b"\x05\x00"
                with pytest.raises(ConnectionResetError):
                    await reader.read(100)
            session = await ended.get()
        assert (session.close, session.rule, session.reply_code) == ("denied", "gone", None)
        assert session.error is not None
        assert session.error.startswith("rule gone: reset ")

    run_once(main)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_drop_says_nothing_until_the_handshake_is_over(run_once: Run, protocol: str) -> None:
    """The client waits for an answer that does not come, and then for nothing: its connection ends."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        server = serving(RuleConfig("drop", "silent"), on_close=ended.put_nowait, timeouts={"handshake": 0.2})
        async with server, client(server.addresses[0]) as (reader, writer):
            began = time.monotonic()
            writer.write(octets_of(protocol, 1))
            assert (await reader.read()) in (b"", b"\x05\x00")
            assert time.monotonic() - began > 0.15
            session = await ended.get()
        assert (session.close, session.rule, session.reply_code) == ("denied", "silent", None)

    run_once(main)


@pytest.mark.parametrize(
    ("protocol", "commands", "refused"),
    [
        ("forward", ["forward"], True),
        ("forward", ["connect"], True),
        ("connect", ["forward"], False),
        ("connect", ["connect"], True),
        ("socks5", ["bind", "associate"], False),
        ("bind", ["bind"], True),
        ("associate", ["associate"], True),
    ],
)
def test_commands_are_those_of_the_log(run_once: Run, protocol: str, commands: list[str], refused: bool) -> None:
    """A rule about HTTP requests is none about tunnels, but one about tunnels is one about both."""

    async def main() -> None:
        async with target() as port, serving(RuleConfig("deny", commands=commands)) as server:
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(octets_of(protocol, port))
                if protocol in ("socks5", "bind", "associate"):
                    await reader.readexactly(2)
                answer = await reader.read(100)
            assert (answer[1:2] == b"\x02" or b" 403 " in answer) == refused, answer

    run_once(main)


async def answer_web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int = 300_000) -> None:
    """A destination of HTTP: reads a head and its content, sends 300 kB, and takes the next request."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        lines = dict(line.lower().split(b": ") for line in head.split(b"\r\n")[1:] if b": " in line)
        await reader.readexactly(int(lines.get(b"content-length", 0)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await writer.drain()


async def fetch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, content: int = 0) -> int:
    """Ask for that through a proxy; how much content came. The status where it is none of success."""
    place = f"127.0.0.1:{port}"
    method = f"POST http://{place}/ HTTP/1.1\r\nContent-Length: {content}\r\n"
    writer.write(f"{method}Host: {place}\r\n\r\n".encode() + bytes(content))
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split()[1])
    if status != 200:
        return status
    count = 0
    while count < 300_000 and (data := await reader.read(300_000 - count)):
        count += len(data)
    return count


def test_http_requests_are_within_a_quota(run_once: Run) -> None:
    """Content counts both ways; in the middle of an answer it ends, and the next request is told why."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        server = serving(on_close=ended.put_nowait, limits={"quota": "500 kB/day"})
        async with target(answer_web) as port, server:
            async with client(server.addresses[0]) as (reader, writer):
                assert await fetch(reader, writer, port, 100_000) == 300_000
                first = await ended.get()
                assert await fetch(reader, writer, port) == 100_000
            second = await ended.get()
            async with client(server.addresses[0]) as (reader, writer):
                assert await fetch(reader, writer, port) == 429
            third = await ended.get()
        assert (first.up, first.down, first.close) == (100_000, 300_000, "server")
        assert (second.close, third.close, third.reply_code) == ("limit", "limit", 429)
        assert second.down == 100_000
        assert second.error == third.error == "limit: server: the quota of 500 kB/day is used up"

    run_once(main)


def test_http_requests_are_within_a_bandwidth(run_once: Run) -> None:
    """What comes faster than it may waits."""

    async def main() -> None:
        server = serving(limits={"bandwidth": "1 MB/s"})
        async with target(answer_web) as port, server, client(server.addresses[0]) as (reader, writer):
            began = time.monotonic()
            assert await fetch(reader, writer, port) == 300_000
            assert time.monotonic() - began > 0.1  # 100 kB at once, then 200 kB less one read

    run_once(main)


def test_http_requests_are_sessions_that_count(run_once: Run) -> None:
    """Each is one while it runs; the connection that they come on is none between them."""

    async def main() -> None:
        async with target(answer_web) as port, serving(limits={"connections": 1}) as server:
            address = server.addresses[0]
            async with client(address) as one, client(address) as two:
                for streams in (one, two, one):
                    assert await fetch(*streams, port) == 300_000

    run_once(main)


async def call(there: Address, source: str) -> None:
    """Connect from an address, and read. Raises ConnectionResetError where it is refused, sooner or later."""
    reader, writer = await asyncio.open_connection(str(there.host), there.port, local_addr=(source, 0))
    try:
        await reader.read()
    finally:
        writer.close()


def test_a_bind_is_within_rules_and_limits(run_once: Run) -> None:
    """Callers of a BIND for anybody are judged when they call; what it carries counts."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        server = serving(
            RuleConfig("deny", hosts=["127.0.0.2"]), on_close=ended.put_nowait, limits={"quota": "1 kB/day"}
        )
        async with server, client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer)) == 0
            writer.write(request("0.0.0.0", 0, 2))
            reply_code, bound = await read_reply(reader)
            assert reply_code == 0
            found = decode_address(bound, 0)
            assert found is not None
            there = Address(server.addresses[0].host, found[0].port)
            with pytest.raises(ConnectionResetError):
                await call(there, "127.0.0.2")
            called, caller = await asyncio.open_connection(str(there.host), there.port)
            assert (await read_reply(reader))[0] == 0
            caller.write(bytes(2000))
            assert await reader.read() == bytes(1000)
            session = await ended.get()
            caller.close()
            assert session.close == "limit"
            assert not await called.read()

    run_once(main)
