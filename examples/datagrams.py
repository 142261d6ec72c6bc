"""Send datagrams through a SOCKS5 proxy and receive the answers: one question each to two destinations, by UDP.

Run it: python examples/datagrams.py
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import tabi


class Shout(asyncio.DatagramProtocol):
    """A destination of this example: sends each datagram back in capitals."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.transport.sendto(data.upper(), address)


@contextlib.asynccontextmanager
async def destination() -> AsyncIterator[int]:
    """Run one of them; gives its port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Shout, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def ask(association: tabi.Association, question: bytes, host: str, port: int) -> bytes:
    """UDP loses datagrams: ask again until an answer comes, three times at most."""
    for _ in range(3):
        await association.send(question, (host, port))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                data, address = await association.receive()
                assert address.port == port
                return data
    raise TimeoutError(f"no answer from {host}:{port}")


async def main() -> None:
    """Start two destinations and a proxy, and use one association for both."""
    async with (
        destination() as one,
        destination() as two,
        tabi.Server("socks5://127.0.0.1:0") as server,
        tabi.Proxy(server.url).associate() as association,
    ):
        print("one:", (await ask(association, b"by address", "127.0.0.1", one)).decode())
        print("two:", (await ask(association, b"by name", "localhost", two)).decode())  # the proxy resolves it
        try:
            await association.send(bytes(65507), ("127.0.0.1", one))
        except ValueError as exc:
            print("not sent:", exc)


asyncio.run(main())
