"""SOCKS5 and HTTP on one port, and each protocol has a user of its own.

Run it: python examples/two_protocols.py 1080
Use it: curl --socks5-hostname 127.0.0.1:1080 --proxy-user alice:secret http://example.com/
        curl --proxy http://127.0.0.1:1080 --proxy-user bob:blue-7 http://example.com/
"""

import asyncio
import contextlib
import hmac
import sys

import tabi

USERS = {("socks5", "alice"): b"secret", ("http", "bob"): b"blue-7"}


def authenticate(login: tabi.Login) -> str | None:
    wanted, got = USERS.get((login.protocol or "", login.username)), login.password.encode("utf-8", "surrogateescape")
    return login.username if wanted is not None and hmac.compare_digest(wanted, got) else None


async def main(port: str = "0") -> None:
    async with tabi.Server(f"mixed://127.0.0.1:{port}", authenticate=authenticate) as server:
        print(server.urls[0], flush=True)
        await server.serve_forever()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main(*sys.argv[1:]))
