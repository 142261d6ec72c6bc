"""Ways out of a server, by their names: where connections and datagrams come from, and what the log says."""

from __future__ import annotations

import asyncio
import socket

import msgspec

from conftest import Run
from datagrams import Client, destination
from support import client, target
from tabi import Server, Session
from tabi.client import Proxy
from tabi.config import RuleConfig, make_config


async def say_who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A destination that says who has connected to it."""
    writer.write(writer.get_extra_info("peername")[0].encode())
    await writer.drain()


async def who(url: str, port: int) -> str:
    """Whom a destination sees."""
    async with Proxy(url).connect("127.0.0.1", port) as stream:
        return (await stream.receive()).decode()


def test_a_rule_sends_some_by_another_way(run: Run) -> None:
    """Each egress has its own address; ``via`` of the log is its name; a reload changes it for new sessions."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        config = make_config(
            {
                "log": {"access": "none"},
                "egress": {"direct": {"source": ["127.0.0.9"]}, "blue": {"source": ["127.0.0.10"]}},
            }
        )
        async with target(say_who) as one, target(say_who) as two:
            config = msgspec.structs.replace(config, rule=[RuleConfig("allow", ports=[two], via="blue")])
            async with Server("socks5://127.0.0.1:0", config=config, on_close=ended.put_nowait) as server:
                assert await who(server.url, one) == "127.0.0.9"
                assert await who(server.url, two) == "127.0.0.10"
                assert [(await ended.get()).via for _ in range(2)] == ["direct", "blue"]
                server.reload(msgspec.structs.replace(config, egress={}, rule=[]))
                assert await who(server.url, two) == "127.0.0.1"

    run(main)


def test_datagrams_come_from_the_direct_way_out(run: Run) -> None:
    """Its source is theirs, too; where it has none of their family they go nowhere."""

    async def main() -> None:
        config = make_config({"log": {"access": "none"}, "egress": {"direct": {"source": ["127.0.0.9"]}}})
        async with (
            Server("socks5://127.0.0.1:0", config=config) as server,
            client(server.addresses[0]) as streams,
        ):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, destination() as echo:
                sock.setblocking(False)
                with destination("::1") as other:
                    associated = await Client(*streams, sock).associate()
                    associated.send(other.header + b"nowhere")
                    assert (await associated.ask(echo.header + b"x"))[-1:] == b"x"
                    assert echo.received[0][1][0] == "127.0.0.9"
                    assert other.received == []
                    (found,) = server.parts.associations.active
                    assert found.session.drops == {"unsent": 1}

    run(main)
