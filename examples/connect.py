"""A SOCKS5 proxy for one user, who must give a password.

Run it: python examples/connect.py 1080
Use it: curl --socks5-hostname 127.0.0.1:1080 --proxy-user alice:secret http://example.com/
"""

import asyncio
import contextlib
import sys

import tabi


async def main(port: str = "0") -> None:
    async with tabi.Server(f"socks5://127.0.0.1:{port}", users={"alice": "secret"}) as server:
        print(server.urls[0], flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
