"""Addresses as the kernel has them: struct sockaddr_in and sockaddr_in6, as octets."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tabi.wire.address import Address, ipv4, ipv6


def encode_sockaddr(address: Address) -> bytes:
    """The sockaddr of an address, not of a name: 16 octets for IPv4, 28 for IPv6.

    Raises:
        OSError: a link-local address names an interface that does not exist.
    """
    host, port = address
    if isinstance(host, IPv4Address):
        return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + host.packed + bytes(8)
    assert isinstance(host, IPv6Address)
    head = struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4)
    return head + host.packed + encode_scope(host)


def encode_scope(host: IPv6Address) -> bytes:
    """The number of the interface that a link-local address names, else 0, in four octets.

    Raises:
        OSError: there is no such interface.
    """
    scope = host.scope_id or "0"
    try:
        number = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
        return number.to_bytes(4, sys.byteorder)
    except (ValueError, OverflowError) as exc:
        raise OSError(errno.ENXIO, f"no interface is called {scope!r}") from exc


def with_scope(host: IPv4Address | IPv6Address, port: int) -> tuple[Any, ...]:
    """An address as Python's sockets take it, with the interface of a link-local one, which its text alone does not
    give them. Raises OSError as `encode_sockaddr`."""
    scoped = isinstance(host, IPv6Address) and host.scope_id is not None
    return python_sockaddr(encode_sockaddr(Address(host, port))) if scoped else (str(host), port)


def on_link_of(host: IPv4Address | IPv6Address, client: object) -> IPv4Address | IPv6Address:
    """A destination as its client means it: a link-local address that names no interface is on the one that the client
    has come by."""
    if isinstance(host, IPv4Address) or host.scope_id is not None or not host.is_link_local:
        return host
    if not isinstance(client, IPv6Address) or client.scope_id is None:
        return host
    return IPv6Address(f"{IPv6Address(host.packed)}%{client.scope_id}")


def ip_octets(name: bytes) -> bytes:
    """The IP address in a sockaddr: 4 or 16 octets."""
    return name[4:8] if len(name) == 16 else name[8:24]


def decode_sockaddr(name: bytes) -> Address:
    """The address in a sockaddr, without the interface of a link-local one."""
    host = ipv4(name[4:8]) if len(name) == 16 else ipv6(name[8:24])
    return Address(host, int.from_bytes(name[2:4], "big"))


def python_sockaddr(name: bytes) -> tuple[Any, ...]:
    """A sockaddr as Python's sockets take it."""
    port = int.from_bytes(name[2:4], "big")
    if len(name) == 16:
        return socket.inet_ntop(socket.AF_INET, name[4:8]), port
    return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, 0, int.from_bytes(name[24:28], sys.byteorder)
