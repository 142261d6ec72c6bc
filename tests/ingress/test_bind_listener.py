"""BIND by ways out: the last proxy listens, and what it says reaches the client. Callers here: test_bind.py."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from conftest import Run
from datagrams import Front
from doubles import Scene, caller, greet, open_bind, read_bound, read_reply
from support import client, request, reset_on_close, target
from tabi.wire.address import Address, parse_address

CALLER = parse_address("192.0.2.7:4444")


def said(reply_code: int, bound: Address = CALLER) -> bytes:
    """A reply of a scripted proxy."""
    return bytes((5, reply_code, 0, 1)) + bound.host.packed + bound.port.to_bytes(2, "big")  # type: ignore[union-attr]


class Proxy:
    """A proxy that agrees to a BIND, and says then what a test has it say."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.bound = parse_address("192.0.2.1:1024")
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(3) == b"\x05\x01\x00"
        writer.write(b"\x05\x00")
        self.requests.put_nowait(await reader.readexactly(10))
        self.writer = writer
        writer.write(said(0, self.bound))
        with contextlib.suppress(OSError):
            await reader.read()
        self.ended.set()

    def say(self, data: bytes) -> None:
        """Write to the client; nothing resets it."""
        assert self.writer is not None
        if data:
            self.writer.write(data)
        else:
            reset_on_close(self.writer.get_extra_info("socket"))
            self.writer.transport.abort()


@contextlib.asynccontextmanager
async def through(proxy: Proxy, **parts: Any) -> Any:
    """A server whose way out leads through that proxy."""
    async with target(proxy.serve) as port, Front({"url": f"socks5://127.0.0.1:{port}"}, **parts) as front:
        yield front


def test_a_session_of_bind_through_three_proxies(run: Run) -> None:
    """The last one listens; both replies reach the client, octets both ways, and both half-closes."""

    async def main() -> None:
        async with Scene() as last, Scene() as middle:
            chain = {"chain": [middle.server.url, last.server.url]}
            async with Front(chain) as front, client(front.address) as streams:
                reader, writer = streams
                bound = await open_bind(streams)
                assert str(bound.host) == "127.0.0.1"
                async with caller(bound) as (far_reader, far_writer):
                    peer = await read_bound(reader)
                    assert (str(peer.host), peer.port) == far_writer.get_extra_info("sockname")
                    writer.write(b"ping")
                    assert await far_reader.readexactly(4) == b"ping"
                    writer.write_eof()
                    assert await far_reader.read() == b""
                    far_writer.write(b"pong")
                    far_writer.write_eof()
                    assert await reader.read() == b"pong"
                session = await front.ended.get()
                assert (session.command, session.via, session.close) == ("bind", "out", "client")
                assert (session.reply_code, session.error, session.up, session.down) == (0, None, 4, 4)
                assert session.address == peer
                assert (await last.ended.get()).command == "bind"

    run(main)


def test_what_is_said_early_is_kept(run: Run) -> None:
    """By the client before its peer has called, by the peer right behind the second reply."""

    async def main() -> None:
        proxy = Proxy()
        async with through(proxy) as front, client(front.address) as streams:
            reader, writer = streams
            assert await open_bind(streams, early=b"early ") == proxy.bound
            assert (await proxy.requests.get())[1] == 2
            writer.write(b"and late")
            proxy.say(said(0) + b"220 ready\r\n")
            assert await read_bound(reader) == CALLER
            assert await reader.readexactly(11) == b"220 ready\r\n"
            writer.close()
            await proxy.ended.wait()
            session = await front.ended.get()
            assert (session.up, session.down) == (14, 11)

    run(main)


@pytest.mark.parametrize(
    ("answer", "reply_code", "text"),
    [
        (said(6), 6, "192.0.2.1:1024: the proxy says TTL expired (reply 06)"),
        (said(2), 2, "192.0.2.1:1024: the proxy says not allowed by ruleset (reply 02)"),
        (b"\x04\x00\x00\x01", 1, "reply: version 0x04, expected 0x05"),
        (b"", 1, "192.0.2.1:1024: the connection to the proxy broke: connection reset by peer"),
    ],
)
def test_a_proxy_that_gives_up(run: Run, answer: bytes, reply_code: int, text: str) -> None:
    """Its reply is the client's; one that breaks is our general failure. Nothing stays open."""

    async def main() -> None:
        proxy = Proxy()
        async with through(proxy) as front, client(front.address) as streams:
            await open_bind(streams)
            proxy.say(answer)
            assert (await read_reply(streams[0]))[0] == reply_code
            assert await streams[0].read() == b""
            streams[1].close()
            session = await front.ended.get()
            assert session.error == text
            await proxy.ended.wait()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_proxy_that_listens_at_no_address_in_particular(run: Run, host: str) -> None:
    """It means its own: the client is told where that is."""

    async def main() -> None:
        proxy = Proxy()
        proxy.bound = parse_address("0.0.0.0:1024")
        async with through(proxy) as front, client(front.address) as streams:
            assert await open_bind(streams, host) == parse_address("127.0.0.1:1024")

    run(main)


def test_a_client_that_leaves_leaves_the_proxy_too(run: Run) -> None:
    """While nobody has called, and in the very moment in which somebody does."""

    async def main() -> None:
        proxy = Proxy()
        async with through(proxy) as front:
            for answer in (None, said(0)):
                proxy.ended.clear()
                async with client(front.address) as streams:
                    await open_bind(streams)
                    if answer is not None:
                        proxy.say(answer)
                    streams[1].transport.abort()
                await proxy.ended.wait()
                assert (await front.ended.get()).close in ("client", "reset")
            assert not front.server.parts.sessions.running

    run(main)


def test_nobody_calls_in_time(run: Run) -> None:
    """Our own deadline holds for a proxy that has none: reply 06."""

    async def main() -> None:
        proxy = Proxy()
        async with through(proxy, timeouts={"bind": 0.05}) as front, client(front.address) as streams:
            await open_bind(streams)
            assert (await read_reply(streams[0]))[0] == 6
            streams[1].close()
            assert (await front.ended.get()).error == "127.0.0.1:0: no call within 0.05 s"
            await proxy.ended.wait()

    run(main)


def test_a_server_that_stops_meanwhile(run: Run) -> None:
    """Leaves neither task nor connection behind."""

    async def main() -> None:
        proxy = Proxy()
        async with through(proxy) as front, client(front.address) as streams:
            await open_bind(streams)
            await front.server.close()
            assert (await front.ended.get()).close == "shutdown"
            await proxy.ended.wait()

    run(main)


def test_whoever_calls_there_is_judged_here(run: Run) -> None:
    """Where anyone may call, rules and guard have their say about the caller that the proxy names."""

    async def main() -> None:
        proxy = Proxy()
        rules = [
            {"hosts": ["192.0.2.0/24"], "ports": ["1-65535"], "action": "deny", "name": "not-these"},
            {"action": "allow", "via": "out"},
        ]
        async with through(proxy, rule=[rules[1]], guard={"deny": ["192.0.2.0/24"], "exempt": []}) as front:
            for bound, reply_code in ((CALLER, 2), (parse_address("8.8.8.8:1"), 0)):
                async with client(front.address) as streams:
                    await open_bind(streams, "0.0.0.0")
                    assert (await proxy.requests.get())[3:] == b"\x01" + bytes(6)
                    proxy.say(said(0, bound))
                    assert (await read_reply(streams[0]))[0] == reply_code
                session = await front.ended.get()
                assert (session.error is None) == (reply_code == 0)
                await proxy.ended.wait()
        async with through(proxy, rule=rules, guard={"exempt": []}) as front, client(front.address) as streams:
            assert await greet(streams) == 0
            streams[1].write(request("192.0.2.1", 80, 2))
            assert (await read_reply(streams[0]))[0] == 2
            streams[1].close()
            assert (await front.ended.get()).rule == "not-these"

    run(main)


def test_bind_listens_where_its_way_out_comes_from(run: Run) -> None:
    """An egress with a source address of its own: the peer calls there."""

    async def main() -> None:
        async with Front({"source": ["127.0.0.5"]}) as front:
            async with client(front.address) as streams:
                bound = await open_bind(streams)
                assert str(bound.host) == "127.0.0.5"
                async with caller(bound):
                    assert str((await read_bound(streams[0])).host) == "127.0.0.1"
            assert (await front.ended.get()).via == "out"

    run(main)
