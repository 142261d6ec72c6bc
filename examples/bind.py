"""Let a server connect back through a SOCKS5 proxy (BIND), as FTP in active mode does.

Run it: python examples/bind.py
"""

from __future__ import annotations

import asyncio

import tabi


async def call_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server of this example: is told an address, connects to it and sends a file there."""
    host, port = (await reader.readline()).decode().split()
    _, data = await asyncio.open_connection(host, int(port))
    data.write(b"the file\n")
    await data.drain()
    data.close()
    writer.close()


async def main() -> None:
    """Start the server and a proxy, ask for the file, and take the call."""
    destination = await asyncio.start_server(call_back, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    async with destination, tabi.Server("socks5://127.0.0.1:0") as server:
        proxy = tabi.Proxy(server.url)
        # The proxy listens, and lets nobody call but 127.0.0.1.
        async with proxy.connect("127.0.0.1", port) as control, proxy.bind(peer="127.0.0.1") as listener:
            print("the proxy listens on", listener.address)
            await control.send_all(f"{listener.address.host} {listener.address.port}\n".encode())
            async with await listener.accept(timeout=10) as stream:
                print("called by", listener.peer)
                print("received:", (await stream.receive()).decode().strip())
        try:
            async with proxy.bind(peer="127.0.0.1") as listener:
                await listener.accept(timeout=0.1)
        except tabi.ProxyError as exc:
            print("nobody else:", exc)


asyncio.run(main())
