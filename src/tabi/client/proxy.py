"""Proxy: TCP connections, listening and datagrams through a proxy, or through several in a row."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl as tls
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from tabi.client.environment import all_proxy, no_proxy
from tabi.client.opening import Opening
from tabi.egress.associate import Association
from tabi.egress.at_path import AtPath
from tabi.egress.base import Egress
from tabi.egress.bind import Listener, check_seconds, listen
from tabi.egress.chain import close_links, make_chain, make_context, retire_links
from tabi.egress.detach import take_socket
from tabi.egress.direct import Direct
from tabi.egress.ssh_keys import need_asyncssh
from tabi.egress.upstream import Upstream
from tabi.errors import RemoteProtocolError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.net.tls import get_tls_shared
from tabi.policy.guard import allow_any_address
from tabi.url import ProxyURL, parse_url
from tabi.wire.address import UNSPECIFIED, Address, Host, check_found_name, make_host, unmap
from tabi.wire.socks5 import Command

TIMEOUT = 30.0


class Proxy:
    """A proxy, or a chain of them: each is reached through the one before.

    Args:
        urls: ``socks5://[user:password@]host:port``, one or more; or socks4, http, https, socks5+tls and
            ``ssh://user[:password]@host``, in any order. SSH servers need ``pip install 'tabi[ssh]'``; their host keys
            are those of ``~/.ssh/known_hosts``, and our keys are those of the agent and of ``~/.ssh``.
        timeout: seconds for reaching each proxy, and for its answer. Default: 30.
        ca: a file with the authorities that those inside TLS are verified by, in PEM. Default: the system's.
        ssl: a context for those inside TLS, in place of ``ca``; it may have a client certificate.

    Raises:
        ValueError: no URL, or one or the timeout is wrong, or ``ca`` cannot be used.
        ConfigError: asyncssh is missing, and one of the URLs is an SSH server.
    """

    def __init__(
        self,
        *urls: str,
        timeout: float = TIMEOUT,
        ca: str | os.PathLike[str] | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        if not urls:
            raise ValueError("a proxy needs a URL, expected socks5://[user:password@]host:port")
        self.set_up(tuple(parse_url(url) for url in urls), timeout, ca, ssl)

    def set_up(
        self,
        urls: tuple[ProxyURL, ...],
        timeout: float,
        ca: str | os.PathLike[str] | None,
        ssl: tls.SSLContext | None,
    ) -> None:
        """Take what the constructors have read. Raises as they do."""
        check_seconds("a timeout", timeout)
        if ssl is not None and not isinstance(ssl, tls.SSLContext):
            raise ValueError(f"ssl is {type(ssl).__name__}, expected an ssl.SSLContext")
        if ssl is not None and ca is not None:
            raise ValueError("ca and ssl: expected one of them, since the context has authorities of its own")
        authorities = None if ca is None else os.fspath(ca)
        self.urls = urls
        self.contexts = tuple(
            ssl if ssl is not None and url.tls else make_context(url, authorities) for url in self.urls
        )
        for url in self.urls:
            if url.protocol == "ssh":
                need_asyncssh(url)
        self.timeout = timeout
        self.path: str | None = None
        """Of the unix socket where the first proxy listens, in place of its address."""
        self.is_direct: Callable[[Address], bool] = nothing_is_direct

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] = os.environ,
        *,
        timeout: float = TIMEOUT,
        ca: str | os.PathLike[str] | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> Self:
        """The proxy that ALL_PROXY names, as curl reads it. Destinations in NO_PROXY are connected to directly.

        Without ALL_PROXY everything is connected to directly; ``urls`` is empty then.

        Args:
            environ: the variables. Default: those of this process, as they are now.
            timeout: see `Proxy`, also for ``ca`` and ``ssl``.

        Raises:
            ValueError: ALL_PROXY is not the URL of a proxy. The message does not have its password.
        """
        url = all_proxy(environ)
        proxy = cls.__new__(cls)
        proxy.set_up(() if url is None else (url,), timeout, ca, ssl)
        proxy.is_direct = no_proxy(environ)
        return proxy

    def __repr__(self) -> str:
        return f"Proxy({', '.join(str(url) for url in self.urls)})"

    @property
    def needs_loop(self) -> bool:
        """Whether sockets of `open_socket` live only as long as the loop runs: those through TLS or SSH."""
        return any(url.tls or url.protocol == "ssh" for url in self.urls)

    def connect(self, host: Host, port: int) -> Opening[Stream]:
        """Open a TCP connection to ``host``, which the last proxy resolves if it is a name.

        ``stream = await proxy.connect(…)`` leaves closing to the caller, ``async with`` does it. What is returned is a
        coroutine, so that `asyncio.create_task` and `asyncio.TaskGroup` take it.

        Raises:
            TypeError: ``host`` is neither text nor an address.
            ValueError: ``host`` or ``port`` is not valid.
            DialError: the first proxy cannot be reached.
            AuthError: a proxy does not accept the user, or wants one.
            ProxyError: a proxy refused, or did not answer; ``reply_code`` says what it sent.
            RemoteProtocolError: the server there is not such a proxy, or its certificate is not accepted.
        """
        return Opening(self.open(check_destination(host, port)))

    def open_socket(self, host: Host, port: int) -> Opening[socket.socket]:
        """Open a connection and return its socket, non-blocking, for every library that takes one (``sock=``).

        Through TLS or SSH the socket is one end of a local pair, which the running loop serves.

        Raises:
            As `connect`.
        """
        return Opening(self.take(check_destination(host, port)))

    async def take(self, destination: Address) -> socket.socket:
        """Open a connection to an `Address`, and take the socket out of its stream."""
        return take_socket(await self.open(destination))

    async def open(self, destination: Address) -> Stream:
        """Open a connection to an `Address`; the caller closes the stream."""
        direct = not self.urls or self.is_direct(destination)
        async with self.egress(direct) as egress:
            return await egress.open(destination, allow_any_address)

    @asynccontextmanager
    async def egress(self, direct: bool = False) -> AsyncIterator[Egress]:
        """The egress through all proxies, in the running loop, for as long as something is being opened.

        ``direct`` says that it leads through none of them.
        """
        dialer = Dialer(get_reactor(), ThreadResolver(), self.timeout)
        chain: Egress = Direct(dialer if direct else dialer.speaking_first())
        if self.path is not None:
            chain = AtPath(self.path)
        if not direct:
            chain = make_chain(self.urls, self.contexts, chain, dialer.deadlines, get_tls_shared())
        try:
            yield chain
        except BaseException:
            await close_links(chain)
            raise
        finally:
            await dialer.close()
        retire_links(chain)

    def need_proxy(self, what: str) -> None:
        """Raise ValueError if the environment names no proxy."""
        if not self.urls:
            raise ValueError(f"{what} needs a proxy, and ALL_PROXY names none")

    def check_socks5(self, what: str) -> None:
        """Raise ValueError unless every proxy can be asked for what only SOCKS5 has."""
        self.need_proxy(what)
        other = next((url for url in self.urls if url.protocol != "socks5"), None)
        if other is not None:
            raise ValueError(f"{what} needs SOCKS5 all the way, and {other} speaks something else")

    def bind(self, peer: Host | None = None) -> Opening[Listener]:
        """Let the last proxy listen for one connection from ``peer``, a name or an address; None is any peer.

        ``listener = await proxy.bind(…)`` leaves closing to the caller, ``async with`` does it.

        Raises:
            As `connect`; ValueError too where a proxy does not speak SOCKS5, ProxyError where it does not carry out
            BIND.
        """
        self.check_socks5("BIND")
        expected = UNSPECIFIED if peer is None else Address(make_host(peer), 0)
        return Opening(self.listen(expected))

    async def listen(self, destination: Address) -> Listener:
        """As `bind`, for an `Address`; the caller closes the listener."""
        async with self.egress() as egress:
            return await listen(egress, destination, allow_any_address)

    def associate(self) -> Opening[Association]:
        """Open an association, which carries datagrams to anywhere and back: send, receive, close.

        ``association = await proxy.associate()`` leaves closing to the caller, ``async with`` does it. Through a chain
        every proxy gets an association, and the datagrams go through all of them.

        Raises:
            As `connect`; ValueError too where a proxy does not speak SOCKS5, DialError if a proxy's relay cannot be
            reached.
        """
        self.check_socks5("UDP")
        return Opening(self.open_association())

    async def open_association(self) -> Association:
        """As `associate`; the caller closes the association."""
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
            As `resolve`; ValueError too if it is not an address.
        """
        host = make_host(address)
        if isinstance(host, str):
            raise ValueError(f"{address!r} is not an address")
        found = str(await self.ask(Command.RESOLVE_PTR, host))
        try:
            return check_found_name(found)
        except ValueError as exc:
            raise RemoteProtocolError(f"the proxy was asked for a name: {exc}") from exc

    async def ask(self, command: int, host: Host) -> Host:
        """The answer of the last proxy for a name or an address. Raises as `resolve`."""
        self.need_proxy("a question about names")
        last = self.urls[-1]
        if last.protocol != "socks5":
            raise ValueError(f"names and addresses are asked of SOCKS5, and {last} speaks something else")
        async with self.egress() as egress:
            asked = await egress.ask(command, Address(host, 0), allow_any_address)
        asked.stream.close()
        return unmap(asked.reply.bound).host

    async def ping(self) -> str:
        """See whether the last proxy answers and lets us in, as far as its protocol goes without a destination.

        SOCKS5 goes up to the request; SSH up to the login; HTTP is asked with OPTIONS that is for the proxy itself;
        SOCKS4 for 127.0.0.1:9, where a refusal is as good. Proxies before the last one are gone through.

        Returns:
            What it answered, in a few words such as ``user name and password``.

        Raises:
            As `connect`.
        """
        self.need_proxy("a ping")
        async with self.egress() as egress:
            assert isinstance(egress, Upstream)
            return await egress.ping()

    async def open_connection(
        self, host: Host, port: int, *, ssl: tls.SSLContext | bool | None = None, server_hostname: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection and return it as asyncio's streams, for code that needs those.

        Args:
            host: the destination.
            port: its port.
            ssl: True or a context speaks TLS with the destination.
            server_hostname: the name in its certificate. Default: ``host``.

        Raises:
            As `connect`; ssl.SSLError as `asyncio.open_connection`.
        """
        sock = await self.open_socket(host, port)
        try:
            if ssl is None or ssl is False:
                return await asyncio.open_connection(sock=sock)
            return await asyncio.open_connection(sock=sock, ssl=ssl, server_hostname=server_hostname or str(host))
        except BaseException:
            sock.close()
            raise


def nothing_is_direct(destination: Address) -> bool:
    """Used for a proxy that was given by its URL: no destination is reached directly."""
    return False


def check_destination(host: Host, port: int) -> Address:
    """The destination that a caller means. Raises as `Proxy.connect`."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"{port!r} is not a port, expected 0 to 65535")
    return Address(make_host(host), port)
