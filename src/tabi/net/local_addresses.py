"""The addresses of this machine, as they are and as they change: rtnetlink(7), without a dump for each lookup."""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

from tabi.net.kernel import has_netlink
from tabi.net.reactor import Reactor

log = logging.getLogger("tabi")

IP = IPv4Address | IPv6Address

GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
NEWADDR, DELADDR, GETADDR, DONE, ERROR = 20, 21, 22, 3, 2
DUMP = 0x001 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
HEADER, ADDRESS, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBI"), struct.Struct("=HH")
IFA_ADDRESS, IFA_LOCAL = 1, 2
FAMILIES = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
SIZE = 1 << 16
READS = 64
"""Messages taken in one turn of the reactor, and of the answer to a question: machines have fewer addresses."""


class LocalAddressMonitor:
    """Follows the addresses of this machine.

    Args:
        reactor: hears of changes.
        changed: called with all of them, at once and after every change.
    """

    def __init__(self, reactor: Reactor, changed: Callable[[frozenset[IP]], object]) -> None:
        self.reactor = reactor
        self.changed = changed
        self.addresses: frozenset[IP] = frozenset()
        self.sock: socket.socket | None = None
        if not has_netlink():
            return
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)  # NETLINK_ROUTE
        except OSError as exc:
            log.warning("the addresses of this machine are not known, netlink(7): %s", exc)
            return
        try:
            sock.bind((0, GROUPS))
            self.look()
            reactor.register_reader(sock.fileno(), self.on_ready)
        except BaseException:
            sock.close()
            raise
        self.sock = sock

    def on_ready(self, events: int) -> None:
        """The reactor's handler: something has changed. All addresses are read again, so that no change is missed."""
        sock = self.sock
        assert sock is not None
        for _ in range(READS):
            try:
                sock.recv(SIZE)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more has changed than there was room for
                continue
        self.look()

    def look(self) -> None:
        """Ask for all addresses, and tell of them."""
        try:
            self.addresses = frozenset(ask())
        except OSError as exc:
            log.warning("the addresses of this machine cannot be read, netlink(7): %s", exc.strerror or exc)
        self.changed(self.addresses)

    def close(self) -> None:
        """Hear of no more changes. Harmless when done twice."""
        sock, self.sock = self.sock, None
        if sock is not None:
            self.reactor.close(sock)


def ask() -> Iterator[IP]:
    """All addresses of this machine: one question to the kernel, which answers at once. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(1)
        sock.send(HEADER.pack(HEADER.size + ADDRESS.size, GETADDR, DUMP, 1, 0) + ADDRESS.pack(0, 0, 0, 0, 0))
        for _ in range(READS):
            data = sock.recv(SIZE)
            done = False
            for kind, body in messages(data):
                if kind in (DONE, ERROR):
                    done = True
                    number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
                    if number > 0:  # what came before may not be all
                        raise OSError(number, os.strerror(number))
                elif kind == NEWADDR:
                    yield from address_of(body)
            if done:
                return


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind and the body of each message; what is cut off is left out."""
    while len(data) >= HEADER.size:
        size, kind, *_ = HEADER.unpack_from(data)
        if not HEADER.size <= size <= len(data):
            return
        yield kind, data[HEADER.size : size]
        data = data[(size + 3) & ~3 :]


def address_of(body: bytes) -> Iterator[IP]:
    """The address that a message tells of, if it is one: the local one, where a link has two."""
    if len(body) < ADDRESS.size:
        return
    size = FAMILIES.get(body[0])
    found: dict[int, bytes] = {}
    data = body[ADDRESS.size :]
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            break
        found[kind] = data[ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    octets = found.get(IFA_LOCAL, found.get(IFA_ADDRESS))
    if octets is not None and len(octets) == size:
        yield IPv4Address(octets) if size == 4 else IPv6Address(octets)
