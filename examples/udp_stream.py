"""Datagrams through a SOCKS5 proxy as an async iterator: say hello to an address, and print all that it answers.

Run it: nc -u -l 127.0.0.1 4000, and python examples/udp_stream.py 1080 127.0.0.1 4000; then type lines into nc.
Use it: echo hello | tabi udp --via socks5://127.0.0.1:1080 127.0.0.1:4000
"""

import asyncio
import contextlib
import sys

import tabi


async def main(port: str = "0", host: str = "127.0.0.1", peer: str = "4000") -> None:
    async with tabi.Server(f"socks5://127.0.0.1:{port}") as server, tabi.Proxy(server.url).associate() as association:
        print(server.url, flush=True)
        await association.send(b"hello\n", (host, int(peer)))
        async for payload, sender in association:
            print(sender, payload, flush=True)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
