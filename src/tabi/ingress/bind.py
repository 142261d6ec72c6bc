"""BIND (RFC 1928 sections 4 and 6), in six steps: decide, listen, answer, wait, answer again, carry.

If the egress leads through a SOCKS5 proxy, that proxy listens.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from time import monotonic

from tabi.config import Udp
from tabi.egress.bind import listen
from tabi.errors import DialError, LimitExceeded
from tabi.ingress.bind_listener import BindListener, UpstreamBindListener
from tabi.ingress.conversation import Conversation
from tabi.ingress.gate import Gate
from tabi.ingress.own_destinations import Entrance
from tabi.net.dial import IP, AddressFilter, Dialer
from tabi.net.failures import connect_error, local_error, timeout_error
from tabi.net.listen import bind_port, client_ip, family_of, own_address, route_to
from tabi.net.reactor import ENDED
from tabi.net.sockaddr import on_link_of
from tabi.net.source import SourceBinding
from tabi.net.stream import Sock, Stream
from tabi.policy.guard import allow_any_address
from tabi.policy.networks import unmapped
from tabi.policy.policy import DestinationPolicy
from tabi.relay.carrier import Carrier
from tabi.session import Session
from tabi.wire.address import Address, parse_ip
from tabi.wire.socks5 import Reply, ReplyCode

BACKLOG = 16
"""Callers that may wait in the kernel: one is expected."""

EARLY = 1 << 16
"""Octets taken from a client before its peer has called, on a reactor that cannot report an end after them."""


class Bind:
    """Lets one peer call: listens for it, tells the client where and then who called, and hands both to a carrier.

    If no peer calls in time, the second reply is 06, TTL expired: the only code of RFC 1928 section 6 that is about
    time and blames neither the peer nor the proxy.

    Args:
        gate: says whether a session may go on; if any peer may call, it decides again for each caller.
        dialer: finds the addresses of a peer that has a name, within its own deadline.
        carrier: has both streams from then on.
        udp: the listener's ports, and the address that clients are told.
        seconds: from the first reply until the peer has called.
    """

    name = "bind"

    def __init__(self, gate: Gate, dialer: Dialer, carrier: Carrier, udp: Udp, seconds: float) -> None:
        self.gate = gate
        self.dialer = dialer
        self.udp = udp
        self.seconds = seconds
        self.take(gate, carrier)

    def take(self, entrance: Entrance, carrier: Carrier) -> None:
        """Have sessions with one destination pass this, and give all to this carrier, from now on."""
        self.entrance = entrance
        self.carrier = carrier

    async def __call__(self, conversation: Conversation) -> None:
        """See `ingress.conversation.Serve`. Raises DialError, PolicyDenied and LimitExceeded: a reply."""
        client, session = conversation.client, conversation.session
        assert session.destination is not None

        callers = await self.open(session, client)
        if session.lease is not None:
            session.lease.cut = lambda why: client.wake_waiting(LimitExceeded(why, "max_session"))
        try:
            conversation.answer(Reply(ReplyCode.SUCCEEDED, callers.bound))
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

        if session.watch is not None:
            session.watch.connected(session)
        answer = conversation.last_answer(Reply(ReplyCode.SUCCEEDED, session.address))
        self.carrier.start(client, server, session, answer, conversation.trailing_data)

    async def open(self, session: Session, client: Stream) -> BindListener | UpstreamBindListener:
        """Decide which peers may call, and listen: on this machine, or at the last proxy of the egress."""
        assert session.destination is not None
        host, port = session.destination
        expected: list[IP] = []
        destination_policy: DestinationPolicy | None = None
        address_filter: AddressFilter = allow_any_address
        if not isinstance(host, str) and unmapped(host).is_unspecified:
            route, destination_policy = await self.gate.enter_open(session, client)
            egress = route or self.gate.direct
        else:
            entrance = self.entrance
            egress, address_filter = entrance.enter(session) or await entrance.enter_slowly(session, client)
        if not egress.direct:
            listener = await listen(egress, session.destination, address_filter, session)
            return UpstreamBindListener(listener, client, destination_policy, port)
        if destination_policy is None:
            found = await self.expect(session, address_filter)
            expected = [on_link_of(peer, session.client.host) for peer in found]
        # Of a name with both kinds of addresses, it listens on the one that the client has itself.
        own = family_of(client_ip(session.client.host))
        expected.sort(key=lambda address: family_of(address) != own)
        sock, bound = self.listen(expected, client.sock, session, egress.source)
        return BindListener(self.dialer.reactor, sock, bound, client, expected, destination_policy, port)

    async def expect(self, session: Session, address_filter: AddressFilter) -> list[IP]:
        """The addresses that may call. Errors as `find`."""
        assert session.destination is not None
        if session.addresses is None:
            return await self.find(session.destination, address_filter, session)
        for address in session.addresses:
            address_filter(address)
        return list(session.addresses)

    async def find(self, destination: Address, address_filter: AddressFilter, session: Session) -> list[IP]:
        """The addresses that may call, every one of them permitted.

        Raises:
            DialError: a name has no address, or none was found in time.
            PolicyDenied: as ``address_filter`` raises it.
        """
        host = destination.host
        if isinstance(host, str):
            try:
                async with asyncio.timeout(self.dialer.seconds):
                    found = await self.dialer.find(host, address_filter, session)
            except TimeoutError:
                raise timeout_error(self.dialer.seconds, destination) from None
            return [parse_ip(str(address)) for address in found]
        address = parse_ip(str(host))  # a peer with IPv4 inside IPv6 calls as IPv4
        address_filter(address)
        return [address]

    def listen(
        self, expected: list[IP], control: Sock, session: Session, binding: SourceBinding | None
    ) -> tuple[socket.socket, Address]:
        """Listen where the expected peer can call; if any peer may call, on every address of the client's family.

        ``binding`` says where its connections would come from: there it may call.

        Returns:
            The listening socket, and the address that the client is told.

        Raises:
            DialError: there is no route to the peer, no free port, or no descriptor.
        """
        destination = session.destination
        source = None
        try:
            if expected and binding is not None:
                source = next(binding.sources_for(expected[0].version, session))
            local = source or (route_to(expected[0]) if expected else own_address(control, session.client).host)
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
                if binding is not None:
                    binding.prepare_listener(sock, source)
                bind_port(sock, str(local) if expected else "", self.udp.port_range)
                sock.listen(BACKLOG)
                return sock, Address(self.udp.public(local), sock.getsockname()[1])
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            raise local_error(exc, f"listening for {destination}") from exc

    async def wait(self, conversation: Conversation, callers: BindListener | UpstreamBindListener) -> bool:
        """Wait until the peer has called, or the client has left (False). What it sends early is kept.

        Raises:
            OSError: the client was reset.
        """
        client, reactor = conversation.client, self.dialer.reactor
        while not callers.over:
            if client.events & ENDED:
                number = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    raise OSError(number, os.strerror(number))
                return False
            room = EARLY - len(conversation.trailing_data)
            if not reactor.edge_triggered and room > 0:
                # Levels show an end only if nothing is left to read before it.
                data = client.receive_nowait(room)
                if data is not None:
                    if not data:
                        return False
                    conversation.push_back(data)
                    continue
            readable = client.readable()
            if room <= 0:
                reactor.watch(client.fd, 0)
            await readable
        return True
