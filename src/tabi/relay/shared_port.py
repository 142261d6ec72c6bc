"""One UDP port for the associations of many clients, which are told apart by the address that they send from.

A client that declares its port is known by it. Any other is taken for the sender of the first datagram that comes from
its address, which says nothing of who sent it. So associations of different identities (another user, other rules)
share the port only while no datagram can be taken for that of another; one that cannot share it gets a port of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from tabi.net.batch import Run
from tabi.net.datagram import overflow
from tabi.net.sockaddr import encode_sockaddr, ip_octets
from tabi.relay.udp_sockets import Port
from tabi.wire.address import Address

if TYPE_CHECKING:
    from tabi.relay.datagram import Association
    from tabi.relay.udp_context import UdpContext

log = logging.getLogger("tabi")

MAX_DEPARTED = 4096
"""Senders whose association has ended that a port remembers; beyond that it forgets the oldest."""

REMEMBERED = 120.0
"""Seconds for which it remembers one: as long as a NAT keeps its port for it (RFC 4787 REQ-5)."""


class Newcomer(NamedTuple):
    """A client that is about to get an association."""

    host: IPv4Address | IPv6Address
    """The address that its datagrams come from."""
    declared: int
    """The port that it declared, or 0."""
    identity: Hashable
    """Equal for associations that may be taken for each other: the same user, the same decisions."""


Departed = dict[tuple[int, bytes], tuple[Hashable, float]]
"""By port number and sockaddr: whose datagrams came from there, and when that ended."""


class SharedPort(Port):
    """The port of many associations. ``on_close`` is called when the last of them has left."""

    __slots__ = ("context", "departed", "identities", "on_close")

    def __init__(
        self,
        context: UdpContext,
        host: IPv4Address | IPv6Address,
        ports: range,
        departed: Departed,
        on_close: Callable[[SharedPort], object],
    ) -> None:
        super().__init__(context, host, ports)
        self.context = context
        self.departed = departed
        self.on_close = on_close
        self.identities: dict[bytes, dict[Hashable, int]] = {}  # how many associations of each, by IP address

    def tells_apart(self, newcomer: Newcomer) -> bool:
        """Whether no datagram of a newcomer can be taken for one of somebody else's, nor the other way round."""
        host, declared, identity = newcomer
        octets = host.packed
        if self.identities.get(octets, {}).keys() <= {identity}:
            return True
        if not declared or (octets, 0) in self.expected:
            return False
        there = self.clients.get(encode_sockaddr(Address(host, declared)))
        return all(
            one.identity == identity for one in (*self.expected.get((octets, declared), ()), *filter(None, [there]))
        )

    def pin(self, run: Run) -> Association | None:
        """See `Port.pin`. What still comes from a client whose association has ended is not the first of another's."""
        key = self.number, run.name
        if key in self.departed:
            identity, since = self.departed[key]
            expected = self.candidates(ip_octets(run.name), int.from_bytes(run.name[2:4], "big"))
            strange = expected and next(iter(expected)).identity != identity
            if strange and self.context.time() - since < REMEMBERED:
                self.wrong_source += run.count
                return None
            del self.departed[key]
        return super().pin(run)

    def expect(self, association: Association) -> None:
        """See `Port`."""
        super().expect(association)
        same = self.identities.setdefault(association.host, {})
        same[association.identity] = same.get(association.identity, 0) + 1

    def leave(self, association: Association) -> None:
        """An association has ended; with the last one the port is closed."""
        self.remove(association)
        same = self.identities[association.host]
        same[association.identity] -= 1
        if not same[association.identity]:
            del same[association.identity]
            if not same:
                del self.identities[association.host]
        if association.client:
            self.remember(association)
        self.reactor.later(self.close_if_unused)  # the next association may begin in this turn

    def remember(self, association: Association) -> None:
        """Know for a while whose datagrams may still come from there."""
        departed, key, now = self.departed, (self.number, association.client), self.context.time()
        departed.pop(key, None)
        while departed:  # the oldest first
            oldest, (_, since) = next(iter(departed.items()))
            if len(departed) < MAX_DEPARTED and now - since < REMEMBERED:
                break
            del departed[oldest]
        departed[key] = association.identity, now

    def close_if_unused(self) -> None:
        """Close a port that no association shares any more. Harmless when done twice."""
        if self.clients or self.expected or self.closed:
            return
        self.closed = True
        lost = overflow(self.sock)
        if self.wrong_source or lost:
            text = "shared UDP port %d: datagrams of no association: %d, overflowed: %d"
            log.info(text, self.number, self.wrong_source, lost)
        self.on_close(self)
        self.reactor.close(self.sock)
