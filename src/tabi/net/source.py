"""The source addresses of connections, and the options of their sockets before they connect: per egress, if set.

A source is an address of this machine, or a prefix that is routed to it: of a prefix every session, user or client gets
an address of its own, which no interface need have (IP_FREEBIND, ip(7)). The port is chosen with the connection and not
with the address (IP_BIND_ADDRESS_NO_PORT), so that an address has as many connections as there are ports *for each
destination*; where even these are used up, the next source is tried.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from tabi.session import Session

IP = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

IP_FREEBIND, IP_BIND_ADDRESS_NO_PORT, IPV6_FREEBIND = 15, 24, 78  # linux/in.h, linux/in6.h
TCP_FASTOPEN_CONNECT = 30  # linux/tcp.h

Option = tuple[int, int, int | bytes]
"""Level, option and value, for setsockopt(2)."""

Sticky = Literal["session", "user", "client"]


class SourceBinding:
    """What an egress gives its sockets.

    Args:
        sources: addresses and prefixes to come from; none: the system chooses.
        sticky: what keeps the same source: session (each one has another), user, or client (the client's address).
        interface: its name; connections leave by it (SO_BINDTODEVICE, socket(7)).
        mark: for routing and firewalls (SO_MARK, socket(7)); it takes CAP_NET_ADMIN.
        keepalive: seconds without an octet until the peer is asked whether it still lives; None: it is not.
        user_timeout: seconds that octets may be unacknowledged until the connection is given up (tcp(7)); None: the
            system's.
        fast_open: whether the first octets go with the connection's first packet, where the peer knows us (RFC 7413).
            A connection then counts as open before it is.
        choose: a random number generator.
    """

    __slots__ = ("choose", "fast_open", "interface", "keepalive", "mark", "sources", "sticky", "user_timeout")

    def __init__(
        self,
        sources: Sequence[Network] = (),
        sticky: Sticky = "session",
        interface: str | None = None,
        mark: int | None = None,
        keepalive: float | None = None,
        user_timeout: float | None = None,
        fast_open: bool = False,
        choose: random.Random | None = None,
    ) -> None:
        self.sources = {version: [one for one in sources if one.version == version] for version in (4, 6)}
        self.sticky = sticky
        self.interface = None if interface is None else interface.encode() + b"\0"
        self.mark = mark
        self.keepalive = keepalive
        self.user_timeout = user_timeout
        self.fast_open = fast_open
        self.choose = choose or random.SystemRandom()

    def describe(self) -> list[str]:
        """The sources, as text for people."""
        networks = [network for version in (4, 6) for network in self.sources[version]]
        return [str(one if one.num_addresses > 1 else one.network_address) for one in networks]

    def sources_for(self, version: int, session: Session | None) -> Iterator[IP | None]:
        """The addresses to come from, best first: the next is for when the ports of the one before are used up.

        Raises:
            OSError: there are sources, but none of the destination's family: EADDRNOTAVAIL.
        """
        networks = self.sources[version]
        if not networks:
            if any(self.sources.values()):
                raise OSError(errno.EADDRNOTAVAIL, f"no IPv{version} address among the sources")
            yield None
            return
        key = self.key_of(session)
        number = self.choose.getrandbits(64) if key is None else int.from_bytes(blake2b(key, digest_size=24).digest())
        first = number % len(networks)
        for network in networks[first:] + networks[:first]:
            yield address_in(network, number >> 16 if key is not None else self.choose.getrandbits(128))

    def key_of(self, session: Session | None) -> bytes | None:
        """The key that a source is chosen by; None for a random choice."""
        if session is None or self.sticky == "session":
            return None
        who = session.user if self.sticky == "user" and session.user is not None else str(session.client.host)
        return f"{self.sticky} {who}".encode()

    def prepare(self, sock: socket.SocketType, source: IP | None) -> None:
        """Set all options of a TCP or UDP socket. Raises OSError; ``filename`` is the key that failed."""
        for key, options in self.options_of(sock, source):
            try:
                for level, option, value in options:
                    sock.setsockopt(level, option, value)
                if key == "source" and source is not None:
                    sock.bind((str(source), 0))
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, key) from exc

    def prepare_listener(self, sock: socket.SocketType, source: IP | None) -> None:
        """Set the options that a listening socket needs; the caller binds it. Raises OSError."""
        if self.interface is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface)
        if self.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
        if source is not None:
            sock.setsockopt(*free_bind(source), 1)

    def options_of(self, sock: socket.SocketType, source: IP | None) -> Iterator[tuple[str, list[Option]]]:
        """The options of each key that is set."""
        tcp = sock.type == socket.SOCK_STREAM
        if self.interface is not None:
            yield "interface", [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface)]
        if self.mark is not None:
            yield "mark", [(socket.SOL_SOCKET, socket.SO_MARK, self.mark)]
        if tcp and self.keepalive is not None:
            seconds = max(1, round(self.keepalive))
            yield (
                "keepalive",
                [
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 3)),
                ],
            )
        if tcp and self.user_timeout is not None:
            yield "user_timeout", [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self.user_timeout * 1000))]
        if tcp and self.fast_open:
            yield "fast_open", [(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)]
        if source is not None:
            late: list[Option] = [(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)] if tcp else []
            yield "source", [(*free_bind(source), 1), *late]


def free_bind(source: IP) -> tuple[int, int]:
    """Level and option that let a socket have an address that no interface has."""
    return (socket.IPPROTO_IP, IP_FREEBIND) if source.version == 4 else (socket.IPPROTO_IPV6, IPV6_FREEBIND)


def address_in(network: Network, number: int) -> IP:
    """One of a network's addresses: by a number, but never the first and, of IPv4, the last, which are for all."""
    count = network.num_addresses
    if count == 1:
        return network.network_address
    if count == 2:
        return network[number % 2]
    return network[1 + number % (count - 2)]
