"""An HTTP proxy: a client without a password, a request that is forwarded, and a tunnel by CONNECT.

Run it: python examples/http_proxy.py
"""

from __future__ import annotations

import asyncio
import http.client

import tabi

LOGIN = {"Proxy-Authorization": "Basic YWxpY2U6c2VjcmV0"}  # alice:secret, as curl -x http://alice:secret@... sends it


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination of this example: answers one request with its path."""
    path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
    text = b"hello from " + path
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(text), text))
    await writer.drain()
    writer.close()


def use(proxy: int, destination: int) -> None:
    """What a client does, with Python's own: it blocks, so it has a thread."""
    url = f"http://127.0.0.1:{destination}/one"
    connection = http.client.HTTPConnection("127.0.0.1", proxy, timeout=5)
    connection.request("GET", url)
    answer = connection.getresponse()
    answer.read()
    print("without a password:", answer.status)
    connection.request("GET", url, headers=LOGIN)  # on the same connection
    print("forwarded:", connection.getresponse().read().decode())
    connection.close()

    connection = http.client.HTTPConnection("127.0.0.1", proxy, timeout=5)
    connection.set_tunnel("127.0.0.1", destination, LOGIN)
    connection.request("GET", "/two")
    print("through CONNECT:", connection.getresponse().read().decode())
    connection.close()


def on_close(session: tabi.Session) -> None:
    """Each request is a session of its own; printed when all is over."""
    sessions.append(f"{session.user or 'nobody'}: {session.command} of {session.destination}: {session.reply_code}")


sessions: list[str] = []


async def main() -> None:
    """Start a destination and a proxy, and use them."""
    destination = await asyncio.start_server(hello, "127.0.0.1", 0)
    port = destination.sockets[0].getsockname()[1]
    users = {"alice": "secret"}
    async with destination, tabi.Server("http://127.0.0.1:0", users=users, on_close=on_close) as server:
        await asyncio.to_thread(use, server.addresses[0].port, port)
        await server.drain(5)
    print("\n".join(sessions))


asyncio.run(main())
