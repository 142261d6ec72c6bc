"""Decide who may go where, and how much: a rule, a quota, a program with the last word; and see what became of it.

Run it: python examples/policy.py
"""

from __future__ import annotations

import asyncio

import tabi
from tabi.config import Log, RuleConfig, make_config


def decide(session: tabi.Session) -> tabi.Decision | None:
    """The last word: nobody speaks to telnet, whatever the rules say."""
    assert session.destination is not None
    return tabi.Decision("deny", reason="telnet is over") if session.destination.port == 23 else None


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: sends 200 kB."""
    writer.write(bytes(200_000))
    writer.close()


async def attempt(proxy: tabi.Proxy, port: int) -> None:
    """Connect, read to the end, and say what it was."""
    try:
        async with proxy.connect("127.0.0.1", port) as stream:
            octets = 0
            while data := await stream.receive():
                octets += len(data)
            print("received octets:", octets)
    except tabi.ProxyError as exc:
        print("refused with reply", exc.reply_code)


async def main() -> None:
    """Start a destination and a proxy with a policy, and try what it says."""
    destination = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    config = tabi.Config(
        limits=make_config({"limits": {"quota": "500 kB/day"}}).limits,
        rule=[RuleConfig("deny", name="no-mail", ports=[25])],
        log=Log(access="none"),
    )
    async with (
        destination,
        tabi.Server(
            "socks5://127.0.0.1:0",
            config=config,
            decide=decide,
            on_close=lambda session: print(f"{session.close}: rule {session.rule}, error: {session.error}"),
        ) as server,
    ):
        proxy = tabi.Proxy(server.url)
        for wanted in (25, 23, port, port, port, port):
            await attempt(proxy, wanted)


asyncio.run(main())
