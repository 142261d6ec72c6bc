"""Go out through other proxies: TCP and UDP through a chain of two, and a pool that goes on without a dead member.

Run it: python examples/upstreams.py
"""

from __future__ import annotations

import asyncio
import socket

import tabi
from tabi.config import EgressConfig, Listen, Log, RuleConfig


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The TCP destination of this example."""
    writer.write((await reader.read(100)).upper())
    writer.close()


class Shout(asyncio.DatagramProtocol):
    """The UDP destination: sends each datagram back in capitals."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.transport.sendto(data.upper(), address)


def front(one: tabi.Server, two: tabi.Server, dead: int) -> tabi.Server:
    """The proxy that clients use: what it says here is what tabi.toml would say."""
    config = tabi.Config(
        listen=[Listen("socks5://127.0.0.1:0")],
        log=Log(access="none"),
        egress={
            "chain": EgressConfig(chain=[one.url, two.url]),
            "pool": EgressConfig(members=[f"socks5://127.0.0.1:{dead}", two.url], balance="round-robin"),
        },
        rule=[
            RuleConfig(name="datagrams", commands=["associate"], via="chain"),
            RuleConfig(name="by-name", hosts=["localhost"], via="chain"),
            RuleConfig(name="others", via="pool"),
        ],
    )
    return tabi.Server(config=config, on_close=told)


def told(session: tabi.Session) -> None:
    """Say where each session went."""
    print(f"{session.command} by {session.via}, member {'-' if session.member is None else 'of the pool'}")


async def connect(proxy: tabi.Proxy, host: str, port: int) -> None:
    """One TCP connection."""
    async with proxy.connect(host, port) as stream:
        await stream.send_all(f"through {host}".encode())
        print((await stream.receive()).decode())
        assert await stream.receive() == b""


async def ask(proxy: tabi.Proxy, port: int) -> None:
    """One datagram and its answer; UDP loses datagrams: ask again until an answer comes, three times at most."""
    async with proxy.associate() as association:
        for _ in range(3):
            await association.send(b"a datagram through two proxies", ("127.0.0.1", port))
            try:
                async with asyncio.timeout(1):
                    data, _ = await association.receive()
                    print(data.decode())
                    return
            except TimeoutError:
                continue


async def main() -> None:
    """Start the destinations and all proxies, and send something each way."""
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(Shout, local_addr=("127.0.0.1", 0))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and nobody listens
        dead = nobody.getsockname()[1]
        async with (
            server,
            tabi.Server("socks5://127.0.0.1:0") as one,
            tabi.Server("socks5://127.0.0.1:0") as two,
            front(one, two, dead) as proxies,
        ):
            proxy = tabi.Proxy(proxies.url)
            await connect(proxy, "localhost", port)
            await connect(proxy, "127.0.0.1", port)  # the first member is dead: the second one takes it
            await ask(proxy, transport.get_extra_info("sockname")[1])
            await proxies.drain()
    transport.close()


asyncio.run(main())
