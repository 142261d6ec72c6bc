"""The decide hook from outside: what clients of every command meet where it takes its time, and where it chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from conftest import Run
from datagrams import association, destination, unwrap
from doubles import FakeResolver, caller, expect_reset, open_bind, read_reply
from support import GREETING, client, echo, request, target, tunnel
from tabi import Decision, Server, Session
from tabi.config import make_config
from tabi.errors import ConfigError
from tabi.wire.address import Address, parse_host
from tabi.wire.datagram import encode_header

Ended = asyncio.Queue[Session]


@contextlib.asynccontextmanager
async def deciding(decide: Callable[[Session], Any], **parts: Any) -> AsyncIterator[tuple[Server, Address, Ended]]:
    """A server with a hook, where it listens, and the sessions that have ended."""
    ended: Ended = asyncio.Queue()
    config = make_config({"log": {"access": "none"}, "listen": [{"url": "mixed://127.0.0.1:0"}], **parts})
    resolver = FakeResolver({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
    async with Server(config=config, decide=decide, on_close=ended.put_nowait, resolver=resolver) as server:
        yield server, server.addresses[0], ended


def test_a_hook_with_async_lets_through_and_refuses(run: Run) -> None:
    """What it says after a while holds as what is said at once, in a reply of its choice."""

    async def decide(session: Session) -> Decision | None:
        await asyncio.sleep(0)
        assert session.destination is not None
        return Decision("deny", "mine", reason="not there", reply_code=4) if session.destination.port == 1 else None

    async def main() -> None:
        async with deciding(decide) as (_, address, ended), target(echo) as port:
            async with tunnel(address, port) as (reader, writer):
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
            assert (await ended.get()).error is None
            async with client(address) as (reader, writer):
                writer.write(GREETING + request("127.0.0.1", 1))
                await reader.readexactly(2)
                assert (await read_reply(reader))[0] == 4
            session = await ended.get()
            assert (session.error, session.rule, session.close) == ("not there", "mine", "denied")

    run(main)


def test_a_proxy_that_only_the_hook_knows(run_once: Run) -> None:
    """Its URL is the way out; the log names it without the password, and ``direct://`` is the direct way."""
    url = ""

    def decide(session: Session) -> Decision:
        assert session.destination is not None
        return Decision(via="direct://" if session.destination.port == 1 else url)

    async def main() -> None:
        nonlocal url
        async with Server("socks5://127.0.0.1:0", users={"alice": "secret"}) as other, target(echo) as port:
            url = other.url
            async with deciding(decide) as (server, address, ended):
                for _ in range(2):
                    async with tunnel(address, port) as (reader, writer):
                        writer.write(b"hello")
                        assert await reader.readexactly(5) == b"hello"
                    assert (await ended.get()).via == other.url.replace("alice:secret@", "")
                assert len(server.parts.gate.made.by_url) == 1
                server.reload(server.config)
                assert not server.parts.gate.made.by_url
                async with client(address) as (reader, writer):
                    writer.write(GREETING + request("127.0.0.1", 1))
                    await reader.read()
                assert (await ended.get()).via == "direct"

    run_once(main)


def test_limits_of_one_session(run_once: Run) -> None:
    """They end it, with their own name, and no other session has used any of it."""

    def decide(session: Session) -> Decision:
        return Decision(limits={"quota": "1 kB/day"})

    async def main() -> None:
        async with deciding(decide) as (server, address, ended), target(echo) as port:
            for _ in range(2):
                async with tunnel(address, port) as (reader, writer):
                    writer.write(bytes(600))
                    data = await reader.read()
                session = await ended.get()
                assert (session.close, session.error) == ("limit", "limit: session: the quota of 1 kB/day is used up")
                assert len(data) + session.up == 1000
            assert not server.parts.gate.leases

    run_once(main)


def test_datagrams_wait_for_the_hook(run: Run) -> None:
    """For the destination of each; those that are refused are dropped, and what was said once is not asked again."""
    asked: list[Any] = []
    go = asyncio.Event()

    async def decide(session: Session) -> Decision | None:
        asked.append(session.destination)
        await go.wait()
        assert session.destination is not None
        return Decision("deny", reason="not there") if session.destination.port == 1 else None

    async def main() -> None:
        async with deciding(decide) as (_, address, ended), association(address) as sender:
            with destination() as there:
                named = encode_header(Address("a.test", there.address.port))
                for head in (there.header, named):
                    for number in (b"1", b"2"):
                        sender.send(head + number)
                sender.send(encode_header(Address(parse_host("127.0.0.1"), 1)) + b"3")
                while len(asked) < 3:
                    await asyncio.sleep(0)
                assert not there.received
                go.set()
                answers = [unwrap(await sender.receive())[1] for _ in range(4)]
                assert sorted(answers) == [b"1", b"1", b"2", b"2"]
                assert await sender.ask(there.header + b"again") == there.header + b"again"
            sender.leave()
            session = await ended.get()
            assert session.drops == {"denied": 1}
            assert session.error == "not there"

    run(main)
    assert len(asked) <= 4  # of a name it is asked by the name, and with its addresses


def test_datagrams_take_a_way_that_only_the_hook_knows(run_once: Run) -> None:
    """By the URL of a proxy, whose association is opened once."""
    url = ""

    async def decide(session: Session) -> Decision:
        return Decision(via=url)

    async def main() -> None:
        nonlocal url
        ended: Ended = asyncio.Queue()
        async with Server("socks5://127.0.0.1:0", on_close=ended.put_nowait) as other:
            url = other.url
            async with deciding(decide) as (_, address, _), association(address) as sender:
                with destination() as first, destination() as second:
                    for there in (first, second):
                        assert await sender.ask(there.header + b"hello") == there.header + b"hello"
                sender.leave()
            session = await ended.get()
            assert (session.command, session.datagrams_up) == ("associate", 2)

    run_once(main)


def test_callers_of_a_bind_wait_for_the_hook(run: Run) -> None:
    """Each is let in or reset once it has spoken; one whose verdict is out is reset when the BIND is over."""
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def decide(session: Session) -> Decision | None:
        assert session.destination is not None
        host = str(session.destination.host)
        asked.put_nowait(host)
        if host == "127.0.0.9":
            await asyncio.sleep(100)
        return Decision("deny") if host == "127.0.0.8" else None

    async def main() -> None:
        async with deciding(decide) as (_, address, ended), client(address) as streams:
            bound = await open_bind(streams, "0.0.0.0")
            await expect_reset(bound, "127.0.0.8")
            async with caller(bound, "127.0.0.9") as late:
                assert [await asked.get(), await asked.get()] == ["127.0.0.8", "127.0.0.9"]
                async with caller(bound, "127.0.0.7") as (reader, writer):
                    assert (await read_reply(streams[0]))[0] == 0
                    writer.write(b"hello")
                    assert await streams[0].readexactly(5) == b"hello"
                    with pytest.raises(ConnectionResetError):
                        await late[0].read(1)
                    streams[1].close()
                    assert not await reader.read()
            assert (await ended.get()).error is None

    run(main)


def test_too_many_callers_are_not_all_judged_at_once(run_once: Run) -> None:
    """Whoever comes beyond those that wait for a verdict is reset."""
    from tabi.ingress.bind_listener import CALLERS_A_TURN

    go = asyncio.Event()

    async def decide(session: Session) -> Decision:
        await go.wait()
        return Decision("deny")

    async def main() -> None:
        async with deciding(decide) as (_, address, _), client(address) as streams:
            bound = await open_bind(streams, "0.0.0.0")
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(CALLERS_A_TURN):
                    await stack.enter_async_context(caller(bound))
                await expect_reset(bound, "127.0.0.1")
                go.set()

    run_once(main)


def test_what_cannot_be_asked_is_said_at_the_start() -> None:
    """A hook is a function, with async or without."""
    wrong: Any = 7
    with pytest.raises(ConfigError, match=r"^decide: 7, expected a function, with async or without$"):
        Server(decide=wrong)
