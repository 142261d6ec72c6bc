"""The egress through a SOCKS5 proxy, and the client's side of the handshake on any stream.

RFC 1928 has the client wait for the method before it sends its request. Where only one method is offered there is
nothing to wait for: sent together they save a round trip (optimistic). Most proxies accept that; some, microsocks for
example, discard what follows the greeting. So a proxy is watched the first time it is asked this way: if it ends or is
silent for PATIENCE, it is asked again on a new connection in the RFC's order, and from then on always in that order.
Only the greeting and the request have been sent by then, so nothing that matters is done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from tabi.egress.base import Asked, Egress
from tabi.egress.client_methods import ClientMethod, client_methods
from tabi.egress.upstream import Upstream, UpstreamTls, read_exactly
from tabi.errors import AuthError, ProxyError, RemoteProtocolError
from tabi.net.dial import AddressFilter
from tabi.net.stream import Stream
from tabi.net.timeouts import FixedTimeouts
from tabi.net.udp_path import UdpPath
from tabi.session import Session
from tabi.wire.address import UNSPECIFIED, Address, Host, from_sockaddr, unmap
from tabi.wire.socks5 import (
    ClientMachine,
    Command,
    Credentials,
    Greeting,
    Method,
    Reply,
    ReplyCode,
    Request,
    encode_request,
)

REPLY_TEXTS = {
    ReplyCode.GENERAL_FAILURE: "general failure",
    ReplyCode.NOT_ALLOWED: "not allowed by ruleset",
    ReplyCode.NETWORK_UNREACHABLE: "network unreachable",
    ReplyCode.HOST_UNREACHABLE: "host unreachable",
    ReplyCode.CONNECTION_REFUSED: "connection refused",
    ReplyCode.TTL_EXPIRED: "TTL expired",
    ReplyCode.COMMAND_NOT_SUPPORTED: "command not supported",
    ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED: "address type not supported",
}


METHOD_TEXTS = {
    Method.NO_AUTHENTICATION: "no authentication",
    Method.USERNAME_PASSWORD: "user name and password",
}


async def request(
    stream: Stream, command: int, destination: Address, methods: Sequence[ClientMethod]
) -> tuple[ClientMachine, Reply]:
    """Speak SOCKS5 as a client on a fresh stream, up to the first reply. The caller sets the deadline.

    Args:
        methods: offered to the proxy, which chooses one of them.

    Returns:
        The machine, for BIND's second reply (`read_reply`), and the reply, which is a success.

    Raises:
        AuthError: the proxy takes none of our methods, or not these credentials.
        ProxyError: the proxy refused the request; ``reply_code`` is what it sent.
        RemoteProtocolError: it does not speak SOCKS5.
        OSError: as `Stream.receive`.
    """
    machine = ClientMachine()
    await negotiate(stream, machine, methods)
    await stream.send_all(machine.send(Request(command, destination)))
    return machine, await read_reply(stream, machine, destination)


async def negotiate(stream: Stream, machine: ClientMachine, methods: Sequence[ClientMethod]) -> int:
    """Speak SOCKS5 up to where a request may follow; returns the method that the proxy has chosen. As `request`."""
    await stream.send_all(machine.send(Greeting(bytes([method.method for method in methods]))))
    chosen: int = (await read_exactly(stream, machine, spare=1)).method
    check_method(chosen, methods)
    for method in methods:
        if method.method == chosen:
            await method.authenticate(stream, machine)
    return chosen


def check_method(chosen: int, methods: Sequence[ClientMethod]) -> None:
    """Raise AuthError where the proxy takes none of the methods that were offered."""
    if chosen == Method.NO_ACCEPTABLE_METHODS:
        wanted = "it wants a user name and a password" if len(methods) == 1 else "none of the offered methods"
        raise AuthError(f"the proxy refused: {wanted}")


async def read_reply(stream: Stream, machine: ClientMachine, destination: Address) -> Reply:
    """Read one reply. Raises ProxyError where it is a failure, and as `request`."""
    reply = await read_exactly(stream, machine)
    if not isinstance(reply, Reply):
        raise RemoteProtocolError("the proxy sent no reply")
    if reply.reply_code:
        text = REPLY_TEXTS.get(reply.reply_code, "not a code of RFC 1928")  # type: ignore[call-overload]
        raise ProxyError(f"{destination}: the proxy says {text} (reply {reply.reply_code:02})", reply.reply_code)
    return reply


PATIENCE = 1.0
"""Seconds without a reply after which a proxy that was asked optimistically for the first time is asked again. A slow
destination looks the same; then this has cost a connection, and a round trip each time from then on."""

FRACTION = 0.25
"""PATIENCE as a share of the deadline of a proxy's part, if that is less."""


class Socks5(Upstream):
    """Connects to destinations through one SOCKS5 proxy.

    Args:
        below: the egress that reaches the proxy itself.
        proxy: where it listens.
        credentials: offered where given; the proxy chooses.
        deadlines: for its part, from the open connection to the reply.
        tls: speaks TLS with it first.
        optimistic: send greeting and request together where no credentials are offered.
    """

    protocol = "socks5"

    def __init__(
        self,
        below: Egress,
        proxy: Address,
        credentials: Credentials | None,
        deadlines: FixedTimeouts,
        tls: UpstreamTls | None = None,
        optimistic: bool = False,
    ) -> None:
        super().__init__(below, proxy, deadlines, tls)
        self.methods = client_methods(credentials)
        self.optimistic = optimistic and credentials is None
        self.proven = False  # it has replied to both at once

    async def connect(self, destination: Address, session: Session | None) -> Stream:
        """See `Upstream`."""
        if not self.optimistic:
            return with_bound(await self.ask_over(self.below, Command.CONNECT, destination, session))
        began = monotonic()
        stream = await self.connect_at_once(destination, session)
        if stream is not None:
            return stream
        self.optimistic = False
        left = FixedTimeouts(self.deadlines.loop, max(0.0, began + self.seconds - monotonic()))
        try:
            return with_bound(await self.ask_over(self.below, Command.CONNECT, destination, session, left))
        finally:
            left.close()

    async def ping(self) -> str:
        """See `Upstream`: the method is chosen, and we have proved who we are."""

        async def talk(stream: Stream) -> int:
            return await negotiate(stream, ClientMachine(), self.methods)

        stream, method = await self.converse(talk, None)
        stream.close()
        return METHOD_TEXTS.get(method, f"method {method:02x}")  # type: ignore[call-overload, no-any-return]

    async def connect_at_once(self, destination: Address, session: Session | None) -> Stream | None:
        """Ask for a connection optimistically; None if the proxy must be asked in the RFC's order. Errors as `open`."""
        machine = ClientMachine()
        request = Request(Command.CONNECT, destination)
        try:
            octets = machine.send(Greeting(bytes((Method.NO_AUTHENTICATION,)))) + encode_request(request)
        except ValueError as exc:
            raise self.unsayable(exc) from exc

        async def ask(stream: Stream) -> bool:
            if not await self.replies(stream, machine, request, octets):
                return False
            self.proven = True
            stream.replied = (await read_reply(stream, machine, destination)).bound
            return True

        try:
            stream, replied = await self.converse(ask, session)
        except ProxyError as exc:
            if exc.reply_code is None:
                self.proven = False  # another program may listen there by now
            raise
        if replied:
            return stream
        stream.close()
        return None

    async def replies(self, stream: Stream, machine: ClientMachine, request: Request, octets: bytes) -> bool:
        """Send greeting and request; returns whether a reply begins to come, or else the proxy has ended or stays
        silent.

        Raises:
            AuthError, RemoteProtocolError: the proxy chose another method, or none.
        """
        try:
            await stream.send_all(octets)
            if self.proven:
                return await self.begins(stream, machine, request)
            async with asyncio.timeout(min(PATIENCE, self.seconds * FRACTION)):
                return await self.begins(stream, machine, request)
        except RemoteProtocolError:
            if machine.eof and not machine.buffer:
                return False
            raise
        except OSError:  # includes TimeoutError; or a reset, as the proxy closed with the request unread
            if stream.expired:
                raise
            return False

    async def begins(self, stream: Stream, machine: ClientMachine, request: Request) -> bool:
        """Whether a reply begins to come. Errors as `replies` and `Stream.receive`."""
        check_method((await read_exactly(stream, machine)).method, self.methods)
        machine.send(request)  # it was sent already
        return await stream.peek(1) != b""

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`. In a reply to BIND an unspecified address means the proxy's own, and becomes that."""
        asked = await self.ask_over(self.below, command, self.choose(destination, address_filter, session), session)
        host, port = unmap(asked.reply.bound)
        if command == Command.BIND and (not port or (not isinstance(host, str) and host.is_unspecified)):
            try:
                if not port:
                    raise RemoteProtocolError(f"{self.proxy}: the proxy listens at {asked.reply.bound}")
                bound = Address(self.own_host(asked.stream, self.below), port)
            except BaseException:
                asked.stream.close()
                raise
            return asked._replace(reply=Reply(asked.reply.reply_code, bound))
        return asked

    async def ask_over(
        self,
        below: Egress,
        command: int,
        destination: Address,
        session: Session | None,
        deadlines: FixedTimeouts | None = None,
    ) -> Asked:
        """Reach the proxy through ``below`` and ask it for a command, in the RFC's order. Errors as `Upstream.open`.

        ``deadlines`` as `converse` has them.
        """

        async def talk(stream: Stream) -> tuple[ClientMachine, Reply]:
            return await request(stream, command, destination, self.methods)

        try:
            stream, (machine, reply) = await self.converse(talk, session, below, deadlines)
        except ValueError as exc:
            raise self.unsayable(exc) from exc
        return Asked(stream, machine, reply)

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`: where it leads through several proxies, each of them gets an association.

        The egress below must carry datagrams too, and they take the same path as the control connection.
        """
        path = await self.below.associate(session)
        try:
            # RFC 1928 section 6: all zeros, for behind NAT we do not know the address that the proxy will see.
            control, _, reply = await self.ask_over(path.egress, Command.UDP_ASSOCIATE, UNSPECIFIED, session)
            try:
                relay = await self.find_relay(reply.bound, self.own_host(control, path.egress), path)
                path.add(self, control, relay)
            except BaseException:
                control.close()
                raise
        except BaseException:
            path.close()
            raise
        return path

    def cannot(self, command: str) -> str | None:
        """See `Egress`: datagrams go through all proxies on the way, anything else is asked of this one."""
        return self.below.cannot(command) if command == "associate" else None

    async def find_relay(self, bound: Address, own: Host, path: UdpPath) -> Address:
        """Where the proxy's relay is, by address: an unspecified one means the proxy's own.

        Of a name's addresses one of the proxy's family is preferred: it knows us by our address of that family.
        """
        host, port = unmap(bound)
        if not port:
            raise RemoteProtocolError(f"{self.proxy}: the proxy gives {bound} for its relay")
        if not isinstance(host, str) and host.is_unspecified:
            host = own
        if isinstance(host, str):
            found = await path.find(host)
            same = [] if isinstance(own, str) else [ip for ip in found if ip.version == own.version]
            host = (same or found)[0]
        return unmap(Address(host, port))

    def own_host(self, stream: Stream, below: Egress) -> Host:
        """The proxy's own host, reached by a stream through ``below``. Raises ProxyError as `peer_of`."""
        return peer_of(stream).host if below.direct else self.proxy.host


def with_bound(asked: Asked) -> Stream:
    """The stream to a destination; it keeps the address in the proxy's reply."""
    asked.stream.replied = asked.reply.bound
    return asked.stream


def peer_of(stream: Stream) -> Address:
    """The address at the other end. Raises ProxyError if the proxy has reset the connection after its reply."""
    try:
        return from_sockaddr(stream.sock.getpeername())
    except OSError as exc:
        raise ProxyError("the proxy has reset the connection after its reply") from exc
