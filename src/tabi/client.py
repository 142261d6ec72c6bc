"""The client: TCP connections and datagrams through a proxy, or through several in a row.

proxy = tabi.Proxy("socks5://alice:secret@127.0.0.1:1080")
async with proxy.connect("example.com", 80) as stream:
    await stream.send_all(b"GET / HTTP/1.0\\r\\nHost: example.com\\r\\n\\r\\n")
    print(await stream.receive())
async with proxy.bind(peer="192.0.2.9") as listener:
    print(listener.address)
    stream = await listener.accept()
async with proxy.associate() as association:
    await association.send(b"question", ("192.0.2.1", 53))
    data, address = await association.receive()
"""

from __future__ import annotations

import asyncio
import os
import ssl as tls
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Generic, Protocol, TypeVar

from tabi.egress.associate import Association
from tabi.egress.base import Egress
from tabi.egress.bind import Listener, check_seconds, listen
from tabi.egress.chain import close_links, make_chain, make_context, retire_links
from tabi.egress.detach import take_socket
from tabi.egress.direct import Direct
from tabi.egress.ssh_keys import need_asyncssh
from tabi.errors import RemoteProtocolError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.net.tls import get_tls_shared
from tabi.policy.guard import permit_any
from tabi.url import ProxyURL, parse_url
from tabi.wire.address import UNSPECIFIED, Address, Host, check_found_name, make_host, unmap
from tabi.wire.socks5 import Command

TIMEOUT = 30.0


class Closable(Protocol):
    """What is opened through a proxy."""

    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closable)


class Opening(Generic[Opened]):
    """What is being opened: ``await`` it, and close it yourself, or use it in ``async with``, which closes it."""

    __slots__ = ("open", "opened")

    def __init__(self, open: Callable[[], Coroutine[Any, Any, Opened]]) -> None:
        self.open = open
        self.opened: Opened | None = None

    def __await__(self) -> Generator[Any, Any, Opened]:
        return self.open().__await__()

    async def __aenter__(self) -> Opened:
        self.opened = await self.open()
        return self.opened

    async def __aexit__(self, *exc: object) -> None:
        if self.opened is not None:
            self.opened.close()


class Proxy:
    """A proxy, or a chain of them: each is reached through the one before.

    Args:
        urls: ``socks5://[user:password@]host:port``, one or more; or socks4, http, https, socks5+tls and
            ``ssh://user[:password]@host``, in any order. SSH servers need ``pip install 'tabi[ssh]'``; their host keys
            are those of ``~/.ssh/known_hosts``, and the keys for them those of the agent and of ``~/.ssh``.
        timeout: seconds for reaching each proxy, and for its answer. Default: 30.
        ca: a file with the authorities that those inside TLS are verified by, in PEM. Default: the system's.

    Raises:
        ValueError: no URL, or one or the timeout is wrong, or ``ca`` cannot be used.
        ConfigError: asyncssh is missing, and an SSH server among them.
    """

    def __init__(self, *urls: str, timeout: float = TIMEOUT, ca: str | os.PathLike[str] | None = None) -> None:
        if not urls:
            raise ValueError("a proxy needs a URL, expected socks5://[user:password@]host:port")
        check_seconds("a timeout", timeout)
        self.urls: tuple[ProxyURL, ...] = tuple(parse_url(url) for url in urls)
        self.contexts = tuple(make_context(url, None if ca is None else os.fspath(ca)) for url in self.urls)
        for url in self.urls:
            if url.protocol == "ssh":
                need_asyncssh(url)
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"Proxy({', '.join(str(url) for url in self.urls)})"

    def connect(self, host: Host, port: int) -> Opening[Stream]:
        """Open a TCP connection to ``host``, which the last proxy resolves if it is a name.

        ``stream = await proxy.connect(…)`` leaves closing to the caller, ``async with`` does it.

        Raises:
            TypeError: ``host`` is neither text nor an address.
            ValueError: ``host`` or ``port`` is none.
            DialError: the first proxy cannot be reached.
            AuthError: a proxy does not accept the user, or wants one.
            ProxyError: a proxy refused, or did not answer; ``reply_code`` says what it sent.
            RemoteProtocolError: what is there is no such proxy, or its certificate is not accepted.
        """
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ValueError(f"{port!r} is no port, expected 0 to 65535")
        destination = Address(make_host(host), port)
        return Opening(lambda: self.open(destination))

    async def open(self, destination: Address) -> Stream:
        """The same for an `Address`; the caller closes the stream."""
        async with self.egress() as egress:
            return await egress.open(destination, permit_any)

    @asynccontextmanager
    async def egress(self) -> AsyncIterator[Egress]:
        """The way through all proxies, in the running loop, for as long as something is being opened."""
        dialer = Dialer(get_reactor(), ThreadResolver(), self.timeout)
        chain = make_chain(
            self.urls, self.contexts, Direct(dialer.speaking_first()), dialer.deadlines, get_tls_shared()
        )
        try:
            yield chain
        except BaseException:
            await close_links(chain)
            raise
        finally:
            await dialer.close()
        retire_links(chain)

    def check_socks5(self, what: str) -> None:
        """Raise ValueError unless every proxy can be asked for what only SOCKS5 has."""
        other = next((url for url in self.urls if url.protocol != "socks5"), None)
        if other is not None:
            raise ValueError(f"{what} needs SOCKS5 all the way, and {other} speaks something else")

    def bind(self, peer: Host | None = None) -> Opening[Listener]:
        """Let the last proxy listen for one connection from ``peer``, a name or an address; None is anyone.

        ``listener = await proxy.bind(…)`` leaves closing to the caller, ``async with`` does it.

        Raises:
            As `connect`; ValueError too where a proxy does not speak SOCKS5, ProxyError where it does not carry out
            BIND.
        """
        self.check_socks5("BIND")
        expected = UNSPECIFIED if peer is None else Address(make_host(peer), 0)
        return Opening(lambda: self.listen(expected))

    async def listen(self, destination: Address) -> Listener:
        """The same for an `Address`."""
        async with self.egress() as egress:
            return await listen(egress, destination, permit_any)

    def associate(self) -> Opening[Association]:
        """Open an association, which carries datagrams to anywhere and back: send, receive, close.

        ``association = await proxy.associate()`` leaves closing to the caller, ``async with`` does it. Through a chain
        every proxy gets an association, and the datagrams go through all of them.

        Raises:
            As `connect`; ValueError too where a proxy does not speak SOCKS5, DialError where there is no way to a
            proxy's relay.
        """
        self.check_socks5("UDP")
        return Opening(self.open_association)

    async def open_association(self) -> Association:
        """The same; the caller closes it."""
        async with self.egress() as egress:
            return Association(await egress.associate())

    async def resolve(self, name: str) -> IPv4Address | IPv6Address:
        """The address that the last proxy finds for a name, by Tor's command RESOLVE.

        Raises:
            As `connect`; ValueError too where the last proxy does not speak SOCKS5, ProxyError where it does not know
            the command (reply 07), or no address (04).
        """
        found = await self.ask(Command.RESOLVE, make_host(name))
        if isinstance(found, str):
            raise RemoteProtocolError(f"the proxy was asked for an address, and gave {found}")
        return found

    async def resolve_ptr(self, address: Host) -> str:
        """What the last proxy finds that an address is called, by Tor's command RESOLVE_PTR. It proves nothing.

        Raises:
            As `resolve`; ValueError too for what is no address.
        """
        host = make_host(address)
        if isinstance(host, str):
            raise ValueError(f"{address!r} is no address")
        found = str(await self.ask(Command.RESOLVE_PTR, host))
        try:
            return check_found_name(found)
        except ValueError as exc:
            raise RemoteProtocolError(f"the proxy was asked for a name: {exc}") from exc

    async def ask(self, command: int, host: Host) -> Host:
        """What the last proxy says of a name or an address. Raises as `resolve`."""
        last = self.urls[-1]
        if last.protocol != "socks5":
            raise ValueError(f"names and addresses are asked of SOCKS5, and {last} speaks something else")
        async with self.egress() as egress:
            asked = await egress.ask(command, Address(host, 0), permit_any)
        asked.stream.close()
        return unmap(asked.reply.bound).host

    async def open_connection(
        self, host: Host, port: int, *, ssl: tls.SSLContext | bool | None = None, server_hostname: str | None = None
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
        sock = take_socket(stream)
        try:
            if ssl is None or ssl is False:
                return await asyncio.open_connection(sock=sock)
            return await asyncio.open_connection(sock=sock, ssl=ssl, server_hostname=server_hostname or str(host))
        except BaseException:
            sock.close()
            raise
