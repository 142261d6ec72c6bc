"""Ask a function of your own who may use the proxy.

Run it: python examples/users.py
"""

from __future__ import annotations

import asyncio
import hmac

import tabi

TOKENS = {"alice": "blue-7", "bob": "green-9"}
"""Where a real program has a database or another service."""


async def authenticate(login: tabi.Login) -> str | None:
    """Return the user's name, which goes into the log, or None to refuse. It may await; the handshake's deadline holds.

    A login also tells the client's address, the protocol, the listener, and the user of a TLS certificate.
    """
    await asyncio.sleep(0)  # the question to the database
    token = TOKENS.get(login.username, "")
    same = hmac.compare_digest(token.encode(), login.password.encode("utf-8", "surrogateescape"))
    return login.username if token and same else None


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: a server that says hello and ends."""
    writer.write(b"hello from the destination\n")
    await writer.drain()
    writer.close()


async def main() -> None:
    """Connect once with the right password and once with a wrong one."""
    destination = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    async with destination, tabi.Server("socks5://127.0.0.1:0", authenticate=authenticate) as server:
        address = server.addresses[0]
        async with tabi.Proxy(f"socks5://alice:blue-7@{address}").connect("127.0.0.1", port) as stream:
            print("alice received:", (await stream.receive()).decode().strip())
        try:
            await tabi.Proxy(f"socks5://alice:red-1@{address}").connect("127.0.0.1", port)
        except tabi.AuthError as exc:
            print("refused:", exc)


asyncio.run(main())
