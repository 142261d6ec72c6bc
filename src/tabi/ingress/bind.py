"""BIND (RFC 1928 sections 4 and 6), in six steps: decide, listen, answer, wait, answer again, carry."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address
from time import monotonic
from typing import Any

from tabi.config import Udp
from tabi.errors import DialError, LimitExceeded, PolicyDenied
from tabi.ingress.conversation import Conversation
from tabi.ingress.gate import Gate
from tabi.net.dial import Dialer, Permit
from tabi.net.failures import connect_error, local_error, timeout_error
from tabi.net.listen import Acceptor, bind_port, client_ip, family_of, own_address, route_to
from tabi.net.reactor import ENDED, Reactor
from tabi.net.stream import RESET, Sock, Stream
from tabi.policy.networks import unmapped
from tabi.policy.policy import Judge, no_way
from tabi.relay.relays import Relays
from tabi.session import Session
from tabi.wire.address import Address, from_sockaddr, parse_ip
from tabi.wire.socks5 import Reply, ReplyCode

IP = IPv4Address | IPv6Address

BACKLOG = 16
"""Callers that may wait in the kernel: one is expected."""

CALLERS_A_TURN = 16
"""Callers that are looked at in one turn of the reactor, however many there are: others have their turn too."""

EARLY = 1 << 16
"""Octets taken from a client before its peer has called, on a reactor that cannot tell of an end behind them."""


class Bind:
    """Lets one peer call: listens for it, tells the client where and then who called, and hands both to a relay.

    Where nobody calls in time, the second reply is 06, TTL expired: the one code of RFC 1928 section 6 that speaks of
    time and accuses neither the peer nor the proxy.

    Args:
        gate: says whether, and where anyone may call for each caller again.
        dialer: finds the addresses of a peer that has a name, within its own deadline.
        relays: carry the octets from then on.
        udp: the listener's ports, and the address that clients are told.
        seconds: from the first reply until the peer has called.
    """

    name = "bind"

    def __init__(self, gate: Gate, dialer: Dialer, relays: Relays, udp: Udp, seconds: float) -> None:
        self.gate = gate
        self.dialer = dialer
        self.relays = relays
        self.udp = udp
        self.seconds = seconds

    async def __call__(self, conversation: Conversation) -> None:
        """See `ingress.conversation.Serve`. Raises DialError, PolicyDenied and LimitExceeded: a reply."""
        client, session = conversation.client, conversation.session
        assert session.destination is not None

        expected, judge = await self.decide(session, conversation.client)
        # Of a name with both kinds of addresses, it listens on the one that the client has itself.
        own = family_of(client_ip(session.client.host))
        expected.sort(key=lambda address: family_of(address) != own)

        session.via = "direct"
        sock, bound = self.listen(expected, client.sock, session)
        callers = Callers(self.dialer.reactor, sock, client, expected, judge, session.destination.port)
        if session.lease is not None:
            session.lease.cut = lambda why: client.wake_waiting(LimitExceeded(why, "max_session"))
        try:
            conversation.answer(Reply(ReplyCode.SUCCEEDED, bound))
            began = monotonic()
            try:
                async with asyncio.timeout(self.seconds):
                    if not await self.wait(conversation, callers):
                        session.close, session.error = "client", "the client left before its peer had called"
                        return
            except TimeoutError:
                what = f"{session.destination}: no call within {self.seconds:g} s{callers.others}"
                raise DialError(what, ReplyCode.TTL_EXPIRED, errno.ETIMEDOUT) from None
            session.connect_seconds = monotonic() - began
            session.address, server = callers.take()
        finally:
            callers.close()

        answer = conversation.last_answer(Reply(ReplyCode.SUCCEEDED, session.address))
        self.relays.start(client, server, session, answer, conversation.trailing_data)

    async def decide(self, session: Session, client: Stream) -> tuple[list[IP], Judge | None]:
        """Who may call: these addresses, or, where there are none, whoever the judge lets through."""
        assert session.destination is not None
        host = session.destination.host
        if not isinstance(host, str) and unmapped(host).is_unspecified:
            return [], await self.gate.enter_open(session, client)
        egress, permit = self.gate.enter(session) or await self.gate.enter_slowly(session, client)
        if egress is not self.gate.direct:
            raise DialError(no_way(egress.name), ReplyCode.COMMAND_NOT_SUPPORTED)
        if session.addresses is None:
            return await self.find(session.destination, permit), None
        for address in session.addresses:
            permit(address)
        return list(session.addresses), None

    async def find(self, destination: Address, permit: Permit) -> list[IP]:
        """The addresses that may call, every one of them permitted.

        Raises:
            DialError: a name has none, or they were not found in time.
            PolicyDenied: as ``permit`` raises it.
        """
        host = destination.host
        if isinstance(host, str):
            try:
                async with asyncio.timeout(self.dialer.seconds):
                    found = await self.dialer.find(host, permit)
            except TimeoutError:
                raise timeout_error(self.dialer.seconds, destination) from None
            return [parse_ip(str(address)) for address in found]
        address = parse_ip(str(host))  # IPv4 inside IPv6 calls as IPv4
        permit(address)
        return [address]

    def listen(self, expected: list[IP], control: Sock, session: Session) -> tuple[socket.socket, Address]:
        """Listen where the expected peer can call; where anyone may, on every address of the client's family.

        Returns:
            The listening socket, and the address that the client is told.

        Raises:
            DialError: there is no way to the peer, no free port, or no descriptor.
        """
        destination = session.destination
        try:
            local = route_to(expected[0]) if expected else own_address(control, session.client).host
        except OSError as exc:
            raise connect_error(exc.errno or errno.EIO, destination) from exc
        assert not isinstance(local, str)
        try:
            sock = socket.socket(family_of(local), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                # A port whose peer is connected, or was lately, can be listened on again. So two workers can bind the
                # same one at the same time, of which the second then fails to listen.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if sock.family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                bind_port(sock, str(local) if expected else "", self.udp.port_range)
                sock.listen(BACKLOG)
                return sock, Address(self.udp.public(local), sock.getsockname()[1])
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            raise local_error(exc, f"listening for {destination}") from exc

    async def wait(self, conversation: Conversation, callers: Callers) -> bool:
        """Wait until the peer has called, or the client has left; False is the latter. What it sends early is kept.

        Raises:
            OSError: the client was reset.
        """
        client, reactor = conversation.client, self.dialer.reactor
        while callers.peer is None:
            if client.events & ENDED:
                number = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number))
                return False
            room = EARLY - len(conversation.trailing_data)
            if not reactor.edge_triggered and room > 0:
                # Levels show an end only where nothing is left to read in front of it.
                data = client.receive_nowait(room)
                if data is not None:
                    if not data:
                        return False
                    conversation.keep(data)
                    continue
            readable = client.readable()
            if room <= 0:
                reactor.watch(client.fd, 0)
            await readable
        return True


class Callers:
    """Whoever calls on the listening socket of one BIND, up to the one that is expected; the others are reset.

    Args:
        reactor: on which it listens.
        sock: listens already; it is closed by `close`.
        client: whose reader is woken when the peer has called.
        expected: the addresses of the peer; none where anyone may call whom ``judge`` lets through.
        port: that the client has named.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        client: Stream,
        expected: list[IP],
        judge: Judge | None,
        port: int,
    ) -> None:
        self.reactor = reactor
        self.sock = sock
        self.client = client
        self.expected = expected
        self.judge = judge
        self.port = port
        self.waiting = True
        self.refused = 0
        self.last_refused: Address | None = None
        self.peer: tuple[Address, Any] | None = None
        self.acceptor = Acceptor(reactor, sock, self.on_caller, lambda: CALLERS_A_TURN)
        self.acceptor.start()

    @property
    def others(self) -> str:
        """Who called in vain, for the error."""
        return f"; callers refused: {self.refused}, the last from {self.last_refused}" if self.refused else ""

    def on_caller(self, sock: Any, sockaddr: Any) -> None:
        """Keep the one that is expected, reset anybody else. Called by the acceptor."""
        caller = from_sockaddr(sockaddr)
        if self.waiting and self.may_call(caller.host):
            self.waiting = False  # the acceptor may have more callers in hand
            self.peer = caller, sock
            self.acceptor.stop()
            if self.client.reader is not None:
                self.client.reader.wake()
            return
        self.refused += 1
        self.last_refused = caller
        reset(sock)

    def may_call(self, host: Any) -> bool:
        """Whether it is the peer. Its port is not looked at: servers call from others than those they listen on."""
        if self.judge is None:
            return host in self.expected
        try:
            self.judge(Address(host, self.port), [host])
        except PolicyDenied:
            return False
        return True

    def take(self) -> tuple[Address, Stream]:
        """The peer that has called, and its stream, which the caller closes."""
        assert self.peer is not None
        caller, sock = self.peer
        stream = Stream(self.reactor, sock)
        self.peer = None
        return caller, stream

    def close(self) -> None:
        """Stop listening, and close a peer that nobody took."""
        self.acceptor.stop()
        self.reactor.close(self.sock)
        if self.peer is not None:
            reset(self.peer[1])


def reset(sock: Any) -> None:
    """Close with a reset, so that nobody takes it for an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
