"""Compose a proxy of your own: SOCKS5 and HTTP on one port, each with a user of its own.

Run it: python examples/own_proxy.py
"""

from __future__ import annotations

import asyncio

import tabi
from tabi.parts import Connect, Direct, Http, Listener, Mixed, Socks5


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: a server that says hello and ends."""
    writer.write(b"hello from the destination\n")
    await writer.drain()
    writer.close()


async def main() -> None:
    """Listen, and use both protocols; alice is nobody in HTTP."""
    proxy = Mixed(
        Socks5(Connect(Direct(timeout=30)), users={"alice": "secret"}),  # no BIND and no UDP
        Http(users={"bob": "hunter2"}),
    )
    destination = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    async with destination, Listener("127.0.0.1:0", proxy) as listener:
        for scheme, user, password in (
            ("socks5", "alice", "secret"),
            ("http", "bob", "hunter2"),
            ("http", "alice", "secret"),
        ):
            try:
                async with tabi.Proxy(f"{scheme}://{user}:{password}@{listener.address}").connect(
                    "127.0.0.1", port
                ) as stream:
                    print(f"{scheme} as {user}:", (await stream.receive()).decode().strip())
            except tabi.AuthError as exc:
                print(f"{scheme} as {user}:", type(exc).__name__)


asyncio.run(main())
