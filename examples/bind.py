"""Be called through a SOCKS5 proxy (BIND), as FTP in active mode is: each caller gets back what it sends.

Run it: python examples/bind.py 1080
Use it: nc 127.0.0.1 PORT, with a port that it prints; or have the proxy listen for you:
        tabi listen --via socks5://127.0.0.1:1080
"""

import asyncio
import contextlib
import sys

import tabi


async def main(port: str = "0") -> None:
    async with tabi.Server(f"socks5://127.0.0.1:{port}") as server:
        print(server.url, flush=True)
        while True:
            async with tabi.Proxy(server.url).bind(peer="127.0.0.1") as listener:
                print("call", listener.address, flush=True)
                with contextlib.suppress(OSError):  # nobody has called within two minutes, or the caller has reset
                    async with await listener.accept() as stream:
                        async for data in stream:
                            await stream.send_all(data)


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
