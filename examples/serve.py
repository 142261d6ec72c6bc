"""Embed a proxy in an asyncio program, use it, and let it end in order.

Run it: python examples/serve.py
"""

from __future__ import annotations

import asyncio

import tabi


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: a server that says hello and ends."""
    writer.write(b"hello from the destination\n")
    await writer.drain()
    writer.close()


async def main() -> None:
    """Start both, open one connection through the proxy, and drain."""
    destination = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    # Port 0 takes a free one. A client must be alice, because there is a user.
    async with destination, tabi.Server("socks5://127.0.0.1:0", users={"alice": "secret"}) as server:
        print("listening on", server.urls[0])
        # server.url has the user's name and password in it, as a client wants it. Do not log that one.
        async with tabi.Proxy(server.url).connect("127.0.0.1", port) as stream:
            print("received:", (await stream.receive()).decode().strip())
        left = await server.drain(5)  # accept no more, and give what still runs five seconds
        print("sessions left:", left)


asyncio.run(main())
