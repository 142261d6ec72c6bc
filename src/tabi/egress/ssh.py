"""The egress through an SSH server: each destination is a channel (direct-tcpip, RFC 4254 section 7.2) of one
connection. The first request opens it, and all share it."""

from __future__ import annotations

import asyncio

from tabi.egress.base import Egress
from tabi.egress.detach import take_socket
from tabi.egress.ssh_keys import SshKeys
from tabi.egress.ssh_link import Link
from tabi.egress.upstream import Upstream
from tabi.errors import AuthError, ProxyError, RemoteProtocolError, TabiError
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.policy.guard import allow_any_address
from tabi.session import Session
from tabi.wire.address import Address

REFUSED = 5.0
"""Seconds before a server that refused us, or has the wrong host key, is asked again: many block a client that tries
too often for longer (PerSourcePenalties of sshd_config(5))."""


class Ssh(Upstream):
    """Connects to destinations through one SSH server, in the running loop.

    Args:
        below: the egress that reaches the server itself.
        server: where it listens.
        username: our name on the server.
        password: offered where given.
        keys: our keys, and those that the server may have.
        deadlines: says how long logging in may take, from the open connection on, and for opening each channel.
    """

    protocol = "ssh"

    def __init__(
        self,
        below: Egress,
        server: Address,
        username: str,
        password: str | None,
        keys: SshKeys,
        deadlines: FixedTimeouts,
    ) -> None:
        super().__init__(below, server, deadlines)
        self.username = username
        self.password = password
        self.keys = keys
        self.link: Link | None = None
        self.attempt: asyncio.Task[Link] | None = None
        self.requests = 0  # under way
        self.last_refusal: TabiError | None = None  # the last attempt's, if it was one
        self.refused_until = 0.0
        self.retired = False

    async def connect(self, destination: Address, session: Session | None) -> Stream:
        """See `Upstream`. The connection to the server serves all sessions, and is not chosen for one of them."""
        self.requests += 1
        try:
            link = await self.find_link()
            return await link.open(destination, self.seconds)
        except ValueError as exc:
            raise self.unsayable(exc) from exc
        finally:
            self.requests -= 1
            self.end_if_idle()

    async def ping(self) -> str:
        """See `Upstream`."""
        self.requests += 1
        try:
            await self.find_link()
        finally:
            self.requests -= 1
            self.end_if_idle()
        return "logged in"

    def chooser(self) -> None:
        """See `Egress`: the member that a pool below has chosen serves all sessions."""

    async def find_link(self) -> Link:
        """The connection, when it is ready: the first request opens it, and others wait for the same. A request that is
        cancelled leaves it to them. Errors as `Link.log_in` and as the egress below."""
        if self.link is not None and self.link.alive:
            return self.link
        if self.attempt is None:
            loop = asyncio.get_running_loop()
            if self.last_refusal is not None and loop.time() < self.refused_until:
                raise type(self.last_refusal)(str(self.last_refusal))
            self.attempt = asyncio.Task(self.open_link(), loop=loop, name="tabi-ssh")
            self.attempt.add_done_callback(self.settle)
        attempt = self.attempt
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if attempt.cancelled() and task is not None and not task.cancelling():
                raise ProxyError(f"{self.proxy}: the egress was closed") from None
            raise

    async def open_link(self) -> Link:
        """Reach the server and log in."""
        stream = await self.below.open(self.proxy, allow_any_address)
        link = Link(self.proxy, get_reactor(), self.end_if_idle)
        try:
            link.names = stream.sock.getsockname(), stream.sock.getpeername()
            sock = take_socket(stream)
        except OSError as exc:
            stream.close()
            raise ProxyError(f"{self.proxy}: the connection to the SSH server broke") from exc
        await link.log_in(sock, self.username, self.password, self.keys, self.seconds)
        return link

    def settle(self, attempt: asyncio.Task[Link]) -> None:
        """An attempt is over. If it failed, the next request makes another one; after a refusal there is a pause."""
        self.attempt = self.last_refusal = None
        if not attempt.cancelled():
            exc = attempt.exception()
            if exc is None:
                self.link = attempt.result()
            elif isinstance(exc, AuthError | RemoteProtocolError):
                self.last_refusal, self.refused_until = exc, attempt.get_loop().time() + REFUSED
        self.end_if_idle()

    # --- the end ---

    @property
    def is_alive(self) -> bool:
        """Whether there is a connection, or will be."""
        return self.attempt is not None or self.requests > 0 or (self.link is not None and self.link.alive)

    def retire(self) -> None:
        """Accept no more requests; those under way go on, and the connection ends with its last channel."""
        self.retired = True
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """After `retire`, end the connection when the last request and channel are over."""
        if self.retired and not self.requests and self.link is not None:
            self.link.end_if_idle()

    async def close(self) -> None:
        """End it at once; channels are reset."""
        self.retired = True
        attempt = self.attempt
        try:
            if attempt is not None:
                attempt.cancel()
                await asyncio.wait([attempt])
        finally:
            if self.link is not None:
                await self.link.close()
