"""For tests of interception: an origin inside TLS, a client that sees which certificate it gets, and hooks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from authorities import server_context
from support import target
from tabi.client import Proxy


class Answer(NamedTuple):
    """What a client got."""

    certificate: bytes
    """In DER."""
    octets: bytes


class Mark:
    """A hook that remembers requests, and marks them."""

    def __init__(self, mark: str = "1") -> None:
        self.mark = mark
        self.urls: list[str] = []

    def request(self, flow: Any) -> None:
        self.urls.append(flow.request.url)
        flow.request.headers["X-Mark"] = self.mark


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its head."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)


@contextlib.asynccontextmanager
async def origin() -> AsyncIterator[int]:
    """An origin of HTTPS; gives its port."""
    async with target(answer, context=server_context()) as port:
        yield port


async def ask(proxy: str, port: int, host: str = "127.0.0.1", sni: str = "localhost") -> Answer:
    """Ask an origin through a proxy, whatever certificate there is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await Proxy(proxy).open_connection(host, port, ssl=context, server_hostname=sni)
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split()[0])
        return Answer(certificate, head + await reader.readexactly(size))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
