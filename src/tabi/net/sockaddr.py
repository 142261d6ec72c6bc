"""Addresses as the kernel has them: struct sockaddr_in and sockaddr_in6, as octets."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tabi.wire.address import Address, ipv4, ipv6


def encode_sockaddr(address: Address) -> bytes:
    """The sockaddr of an address that is no name: 16 octets for IPv4, 28 for IPv6."""
    host, port = address
    if isinstance(host, IPv4Address):
        return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + host.packed + bytes(8)
    assert isinstance(host, IPv6Address)
    head = struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4)
    return head + host.packed + struct.pack("=I", scope_of(host))


def scope_of(host: IPv6Address) -> int:
    """The number of an interface that a link-local address names, else 0."""
    if host.scope_id is None:
        return 0
    return int(host.scope_id) if host.scope_id.isdigit() else socket.if_nametoindex(host.scope_id)


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
