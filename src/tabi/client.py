"""The client: TCP connections through a SOCKS5 proxy, or through several in a row.

proxy = tabi.Proxy("socks5://alice:secret@127.0.0.1:1080")
async with proxy.connect("example.com", 80) as stream:
    await stream.send_all(b"GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n")
    print(await stream.receive())
async with proxy.bind(peer="192.0.2.9") as listener:
    print(listener.address)
    stream = await listener.accept()
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Generator
from typing import Any, Self

from tabi.config import ProxyURL, parse_url
from tabi.egress.direct import Direct
from tabi.egress.socks5 import Socks5, read_reply
from tabi.errors import ProxyError, TabiError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.policy.guard import permit_any
from tabi.wire.address import UNSPECIFIED, Address, from_sockaddr, parse_host
from tabi.wire.socks5 import ClientMachine, Command, Credentials, Reply

TIMEOUT = 30.0

ACCEPT_TIMEOUT = 300.0
"""Seconds until a peer has called. Proxies give up by themselves, tabi after 120: this is for one that does not."""


class Connecting:
    """A connection that is being opened: ``await`` it for the stream, or use it in ``async with``, which closes it."""

    __slots__ = ("destination", "proxy", "stream")

    def __init__(self, proxy: Proxy, destination: Address) -> None:
        self.proxy = proxy
        self.destination = destination
        self.stream: Stream | None = None

    def __await__(self) -> Generator[Any, Any, Stream]:
        return self.proxy.open(self.destination).__await__()

    async def __aenter__(self) -> Stream:
        self.stream = await self.proxy.open(self.destination)
        return self.stream

    async def __aexit__(self, *exc: object) -> None:
        if self.stream is not None:
            self.stream.close()


class Listener:
    """Where a proxy waits for one peer. The caller closes it, or uses it in ``async with``.

    ``address`` is where the peer must call; ``peer`` is who has called, as the proxy says it, or None until then.
    """

    __slots__ = ("address", "machine", "peer", "stream")

    def __init__(self, stream: Stream, machine: ClientMachine, address: Address) -> None:
        self.stream: Stream | None = stream
        self.machine = machine
        self.address = address
        self.peer: Address | None = None

    def __repr__(self) -> str:
        return f"<Listener {self.address}>"

    async def accept(self, timeout: float = ACCEPT_TIMEOUT) -> Stream:
        """Wait for the peer, once; the stream to it is the caller's to close, and closing the listener leaves it open.

        When ``timeout`` seconds are over, or after a cancellation, it can be waited for again.

        Raises:
            ProxyError: nobody has called in time: ``reply_code`` is what the proxy sent, None where it was ``timeout``.
            RemoteProtocolError: the proxy ended the connection, or does not speak SOCKS5.
            OSError: the connection to the proxy broke.
            RuntimeError: somebody was accepted already, or the listener is closed.
        """
        stream = self.stream
        if stream is None:
            raise RuntimeError("a listener accepts once" if self.peer else "the listener is closed")
        try:
            async with asyncio.timeout(timeout):
                reply = await read_reply(stream, self.machine, self.address)
        except (TabiError, OSError) as exc:
            if isinstance(exc, TimeoutError) and exc.errno is None:
                raise ProxyError(f"{self.address}: nobody called within {timeout:g} s") from None
            self.close()
            raise
        self.stream, self.peer = None, reply.bound
        return stream

    def close(self) -> None:
        """Stop waiting. Harmless when done twice."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class Binding:
    """A `Listener` that is being opened: ``await`` it, or use it in ``async with``, which closes it."""

    __slots__ = ("destination", "listener", "proxy")

    def __init__(self, proxy: Proxy, destination: Address) -> None:
        self.proxy = proxy
        self.destination = destination
        self.listener: Listener | None = None

    def __await__(self) -> Generator[Any, Any, Listener]:
        return self.proxy.listen(self.destination).__await__()

    async def __aenter__(self) -> Listener:
        self.listener = await self.proxy.listen(self.destination)
        return self.listener

    async def __aexit__(self, *exc: object) -> None:
        if self.listener is not None:
            self.listener.close()


class Proxy:
    """A SOCKS5 proxy, or a chain of them: each is reached through the one before.

    Args:
        urls: ``socks5://[user:password@]host:port``, one or more.
        timeout: seconds for reaching each proxy, and for its answer. Default: 30.

    Raises:
        ValueError: no URL, or one or the timeout is wrong.
    """

    def __init__(self, *urls: str, timeout: float = TIMEOUT) -> None:
        if not urls:
            raise ValueError("a proxy needs a URL, expected socks5://[user:password@]host:port")
        if not 0 < timeout < 1e9:
            raise ValueError(f"a timeout of {timeout} s, expected more than 0")
        self.urls: tuple[ProxyURL, ...] = tuple(parse_url(url) for url in urls)
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"Proxy({', '.join(str(url) for url in self.urls)})"

    def connect(self, host: str, port: int) -> Connecting:
        """Open a TCP connection to ``host``, which the last proxy resolves if it is a name.

        ``stream = await proxy.connect(…)`` leaves closing to the caller, ``async with`` does it.

        Raises:
            ValueError: ``host`` or ``port`` is none.
            DialError: the first proxy cannot be reached.
            AuthError: a proxy does not accept the user, or wants one.
            ProxyError: a proxy refused, or did not answer; ``reply_code`` says what it sent.
            RemoteProtocolError: what is there is no SOCKS5 proxy.
            OSError: the connection to the proxy broke.
        """
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ValueError(f"{port!r} is no port, expected 0 to 65535")
        return Connecting(self, Address(parse_host(str(host)), port))

    async def open(self, destination: Address) -> Stream:
        """The same for an `Address`; the caller closes the stream."""
        stream, _, _ = await self.ask(Command.CONNECT, destination)
        return stream

    def bind(self, peer: str | None = None) -> Binding:
        """Let the last proxy listen for one connection from ``peer``, a name or an address; None is anyone.

        ``listener = await proxy.bind(…)`` leaves closing to the caller, ``async with`` does it.

        Raises:
            As `connect`; ProxyError too where the proxy does not carry out BIND.
        """
        return Binding(self, UNSPECIFIED if peer is None else Address(parse_host(str(peer)), 0))

    async def listen(self, destination: Address) -> Listener:
        """The same for an `Address`."""
        stream, machine, reply = await self.ask(Command.BIND, destination)
        host, port = reply.bound
        if not isinstance(host, str) and host.is_unspecified:  # the proxy means its own address, whichever that is
            host = self.urls[-1].address.host
            if isinstance(host, str) and len(self.urls) == 1:
                try:
                    host = from_sockaddr(stream.sock.getpeername()).host
                except BaseException:
                    stream.close()
                    raise
        return Listener(stream, machine, Address(host, port))

    async def ask(self, command: int, destination: Address) -> tuple[Stream, ClientMachine, Reply]:
        """Reach the last proxy through those before it and ask it for a command. As `Socks5.ask`."""
        dialer = Dialer(get_reactor(), ThreadResolver(), self.timeout)
        below: Direct | Socks5 = Direct(dialer)
        for url in self.urls:
            credentials = None
            if url.username is not None and url.password is not None:
                credentials = Credentials(url.username.encode(), url.password.encode())
            below = egress = Socks5(below, url.address, credentials, self.timeout)
        try:
            return await egress.ask(command, destination, permit_any)
        finally:
            await dialer.close()

    async def open_connection(
        self, host: str, port: int, *, ssl: tls.SSLContext | bool | None = None, server_hostname: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same as asyncio's streams, for code that wants those.

        Args:
            host: the destination.
            port: its port.
            ssl: True or a context speaks TLS with the destination.
            server_hostname: the name in its certificate. Default: ``host``.

        Raises:
            As `connect`; ssl.SSLError as `asyncio.open_connection`.
        """
        stream = await self.connect(host, port)
        sock = stream.detach()
        try:
            if ssl is None or ssl is False:
                return await asyncio.open_connection(sock=sock)
            return await asyncio.open_connection(sock=sock, ssl=ssl, server_hostname=server_hostname or host)
        except BaseException:
            sock.close()
            raise
