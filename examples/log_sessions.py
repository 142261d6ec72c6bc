"""Hear of every session when it ends: what the access log has, as objects.

Run it: python examples/log_sessions.py
"""

from __future__ import annotations

import asyncio
from collections import Counter

import tabi

octets_by_user: Counter[str] = Counter()


def on_close(session: tabi.Session) -> None:
    """Called in the event loop, once for each session, served or refused: be quick, and do not wait here."""
    octets_by_user[session.user or "nobody"] += session.up + session.down
    outcome = session.error or f"{session.up} octets up, {session.down} down"
    print(f"{session.user or 'nobody'}: {outcome}; ended by: {session.close}")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: sends everything back."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main() -> None:
    """Open a session that works and one that is refused."""
    destination = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    users = {"alice": "secret"}
    async with destination, tabi.Server("socks5://127.0.0.1:0", users=users, on_close=on_close) as server:
        async with tabi.Proxy(server.url).connect("127.0.0.1", port) as stream:
            await stream.send_all(b"x" * 1000)
            stream.send_eof()
            while await stream.receive():
                pass
        try:
            await tabi.Proxy(server.urls[0]).connect("127.0.0.1", port)  # no user name
        except tabi.AuthError:
            pass
        await server.drain()
    for user, octets in octets_by_user.items():
        print(f"total of {user}: {octets} octets")


asyncio.run(main())
