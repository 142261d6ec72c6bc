"""Faults that come and go while a connection runs: what a round trip takes, and an answer that is cut.

Run it: python examples/distort.py
"""

import asyncio
from time import monotonic

import tabi
from tabi.testing import Origin


async def main() -> None:
    async with (
        Origin() as origin,
        tabi.Server("socks5://127.0.0.1:0") as server,
        tabi.Proxy(server.url).connect(*origin.address) as stream,
    ):
        async with server.fault(hosts=["127.0.0.1"], latency="50ms") as fault:
            for latency in ("100ms", "200ms"):
                fault.change(latency=latency)
                began = monotonic()
                await stream.send_all(b"ping")
                print(await stream.receive(), f"with {latency} each way: {monotonic() - began:.1f} s")
        async with server.fault(direction="down", limit=12):  # octets since it began
            await stream.send_all(b"pingping")
            print(await stream.receive(), "and then", await stream.receive())


asyncio.run(main())
