"""A SOCKS5 proxy that changes datagrams: what clients send goes out in capitals, what comes back gets a mark.

Run it: python examples/udp_inspect.py 1080
Use it: echo hello | tabi udp --via socks5://127.0.0.1:1080 192.0.2.1:7
"""

import asyncio
import contextlib
import sys

import tabi


class Shout(tabi.DatagramInspector):
    def inspect(self, datagram: tabi.Datagram, emit: tabi.Emit) -> None:
        emit(datagram.payload.upper() if datagram.direction == "up" else b"> " + datagram.payload)


async def main(port: str = "0") -> None:
    async with tabi.Server(f"socks5://127.0.0.1:{port}", datagrams=Shout()) as server:
        print(server.url, flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
