"""Origin: a destination for clients. It answers HTTP, and sends everything else back, datagrams too."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from tabi.testing.proxy import HostPort
from tabi.testing.service import PATIENCE, Seen, Service

REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.([01])\r\n")
MAX_HEAD = 1 << 16
MAX_METHOD = 16


class OriginRequest(NamedTuple):
    """A request of HTTP that has come."""

    method: str
    target: str
    """As the client wrote it: a path such as ``/index.html``."""
    headers: dict[str, str]
    """The header fields, by their names in lower case; of several with one name the last."""
    body: bytes
    client: tuple[str, int]
    """The client that has connected, such as the proxy: host and port."""


Answer = Callable[[OriginRequest], "tuple[int, bytes]"]
"""Gives the status and the body of an answer."""


def hello(request: OriginRequest) -> tuple[int, bytes]:
    """The default answer: the body of the request, or a greeting."""
    return 200, request.body or b"hello from " + request.target.encode("latin-1")


class Origin(Service):
    """A server on a free port of this machine that is the destination of others.

    Connections that begin as HTTP/1 requests do are answered, one request after another. Whatever else comes is sent
    back; the end, too. Datagrams to `udp_address` are sent back.

    Args:
        answer: ``def(request) -> (status, body)``, called for each request of HTTP in the thread of the origin.
            Default: status 200, and the body of the request, or ``hello from`` and its target.
        host: the address to listen on.
    """

    def __init__(self, answer: Answer = hello, host: str = "127.0.0.1") -> None:
        super().__init__()
        if not callable(answer):
            raise TypeError(f"answer: {type(answer).__name__}, expected a function of one argument, a request")
        self.answer = answer
        self.host = host
        self.came: Seen[OriginRequest] = Seen()
        self.listener: socket.socket | None = None
        self.datagrams: socket.socket | None = None
        self.serving: dict[asyncio.Task[None], socket.socket] = {}

    async def open(self) -> None:
        """See `Service`."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        loop = asyncio.get_running_loop()
        self.listener = socket.create_server((self.host, 0), family=family)
        self.datagrams = socket.socket(family, socket.SOCK_DGRAM)
        self.datagrams.bind((self.host, 0))
        for sock, ready in ((self.listener, self.accept), (self.datagrams, self.echo_datagram)):
            sock.setblocking(False)
            loop.add_reader(sock, ready, sock)

    async def shut(self) -> None:
        """See `Service`."""
        for sock in (self.listener, self.datagrams):
            if sock is not None:
                asyncio.get_running_loop().remove_reader(sock)
                sock.close()
        self.listener = self.datagrams = None
        serving, self.serving = self.serving, {}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for client in serving.values():
            client.close()  # of a task that was cancelled before its first step

    @property
    def address(self) -> HostPort:
        """Where it listens. Raises RuntimeError if it does not run."""
        if self.listener is None:
            raise RuntimeError("this Origin does not run")
        return HostPort(*self.listener.getsockname()[:2])

    @property
    def host_port(self) -> str:
        """The address as it stands in a URL."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def port(self) -> int:
        """The port of `address`."""
        return self.address.port

    @property
    def url(self) -> str:
        """Its URL for HTTP, without a path: ``http://127.0.0.1:40000``."""
        return f"http://{self.host_port}"

    @property
    def udp_address(self) -> HostPort:
        """Where datagrams are sent back. Raises RuntimeError if it does not run."""
        if self.datagrams is None:
            raise RuntimeError("this Origin does not run")
        return HostPort(*self.datagrams.getsockname()[:2])

    @property
    def requests(self) -> list[OriginRequest]:
        """The requests of HTTP that have come so far."""
        return list(self.came.things)

    def wait_for_requests(self, count: int = 1, timeout: float = PATIENCE) -> list[OriginRequest]:
        """Wait until so many requests have come, and return all. It blocks. Raises TimeoutError if there were fewer."""
        return self.came.wait(count, timeout)

    def echo_datagram(self, sock: socket.socket) -> None:
        """Send one datagram back."""
        with suppress(OSError):
            data, peer = sock.recvfrom(65536)
            sock.sendto(data, peer)

    def accept(self, listener: socket.socket) -> None:
        """Accept one connection."""
        with suppress(OSError):
            client, _ = listener.accept()
            client.setblocking(False)
            task = asyncio.get_running_loop().create_task(self.serve(client))
            self.serving[task] = client
            task.add_done_callback(lambda task: self.serving.pop(task, None))

    async def serve(self, client: socket.socket) -> None:
        """One connection, to its end."""
        reader, writer = await asyncio.open_connection(sock=client, limit=MAX_HEAD)
        try:
            await self.talk(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Find out what a client speaks, and answer."""
        data = b""
        while (more := await reader.read(MAX_HEAD)) and b"\r\n" not in (data := data + more):
            if not re.fullmatch(rb"[A-Z]{1,%d}( .*)?" % MAX_METHOD, data):
                break
        if REQUEST_LINE.match(data):
            await self.answer_requests(data, reader, writer)
            return
        while data:
            writer.write(data)
            await writer.drain()
            data = await reader.read(MAX_HEAD)
        writer.write_eof()

    async def answer_requests(self, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the client wants no more."""
        peer = writer.get_extra_info("peername")
        while True:
            while b"\r\n\r\n" not in data:
                more = await reader.read(MAX_HEAD)
                if not more or len(data) > MAX_HEAD:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            found = REQUEST_LINE.match(head + b"\r\n")
            if found is None:
                return
            headers = dict(map(read_field, head.split(b"\r\n")[1:]))
            body, data = await read_body(headers, data, reader, writer)
            request = OriginRequest(found[1].decode(), found[2].decode("latin-1"), headers, body, peer[:2])
            self.came.add(request)
            try:
                status, content = self.answer(request)
            except Exception as exc:  # of a test, which reads it in the answer
                status, content = 500, f"{type(exc).__name__}: {exc}".encode()
            ends = headers.get("connection", "").lower() == "close" or found[3] == b"0"
            kept = b"Connection: close\r\n" if ends else b""
            writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n%b\r\n" % (status, len(content), kept))
            writer.write(b"" if request.method == "HEAD" else content)
            await writer.drain()
            if ends:
                return


def read_field(line: bytes) -> tuple[str, str]:
    """A field of a head."""
    name, _, value = line.decode("latin-1").partition(":")
    return name.strip().lower(), value.strip()


async def read_body(
    headers: dict[str, str], data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[bytes, bytes]:
    """The body of a request, and what came after it; ``data`` is what came after its head.

    Raises:
        asyncio.IncompleteReadError: the client has ended in the middle.
    """
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def take(count: int) -> bytes:
        nonlocal data
        if len(data) < count:
            data += await reader.readexactly(count - len(data))
        taken, data = data[:count], data[count:]
        return taken

    if "chunked" not in headers.get("transfer-encoding", "").lower():
        size = headers.get("content-length", "0")
        return await take(int(size) if size.isdigit() else 0), data
    body = b""
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            line += await take(1)
        size_of_chunk = int(line.split(b";")[0], 16)
        body += await take(size_of_chunk)
        await take(2)
        if not size_of_chunk:
            return body, data
