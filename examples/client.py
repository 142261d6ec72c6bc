"""Connect through a SOCKS5 proxy: with tabi's stream, with asyncio's streams, through two proxies, and into a refusal.

Run it: python examples/client.py
"""

from __future__ import annotations

import asyncio

import tabi


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: sends a line back in capitals."""
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


async def with_a_stream(proxy: tabi.Proxy, port: int) -> None:
    """`connect` gives a Stream: send_all, receive, send_eof, close."""
    async with proxy.connect("127.0.0.1", port) as stream:
        await stream.send_all(b"one\n")
        print("connect:", (await stream.receive()).decode().strip())


async def with_asyncio(proxy: tabi.Proxy, port: int) -> None:
    """`open_connection` gives asyncio's reader and writer; ``ssl=True`` speaks TLS with the destination."""
    reader, writer = await proxy.open_connection("127.0.0.1", port)
    writer.write(b"two\n")
    print("open_connection:", (await reader.readline()).decode().strip())
    writer.close()
    await writer.wait_closed()


async def refused(proxy: tabi.Proxy) -> None:
    """A failure is an exception, and `reply_code` is what the proxy said (RFC 1928 section 6)."""
    try:
        await proxy.connect("127.0.0.1", 0)  # nothing listens on port 0
    except tabi.ProxyError as exc:
        print("refused with reply", exc.reply_code)


async def main() -> None:
    """Start a destination and two proxies, and use them."""
    destination = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    async with (
        destination,
        tabi.Server("socks5://127.0.0.1:0") as first,
        tabi.Server("socks5://127.0.0.1:0", users={"alice": "secret"}) as second,
    ):
        await with_a_stream(tabi.Proxy(first.url), port)
        await with_asyncio(tabi.Proxy(first.url), port)
        chain = tabi.Proxy(first.url, second.url)  # the second is reached through the first
        await with_a_stream(chain, port)
        await refused(tabi.Proxy(first.url))


asyncio.run(main())
