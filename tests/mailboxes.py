"""UDP sockets on loopback, bursts of datagrams and runs taken apart, for the tests of net/ and relay/."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any, Self

from conftest import PATIENCE
from depth import PORTABLE
from tabi.net.batch import UDP_SEGMENT, Run, Sock
from tabi.net.datagram import PLAIN, SINGLE, DatagramIo, Features, Inbox
from tabi.net.sockaddr import encode_sockaddr
from tabi.wire.address import Address, parse_host

FEATURES = {"all": Features(True, True, True), "single": SINGLE, "plain": PLAIN}
if PORTABLE:
    FEATURES = dict.fromkeys(FEATURES, PLAIN)  # by names that tests use
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

Received = tuple[bytes, bytes, bytes]
"""The sender's sockaddr, the head, the payload."""


def name_of(sock: Sock) -> bytes:
    """The sockaddr that a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return encode_sockaddr(Address(parse_host(host), port))


def unroll(inbox: Inbox, runs: list[Run]) -> list[Received]:
    """The datagrams of runs, one by one."""
    found = []
    for run in runs:
        assert run.count == 1 or 0 < run.last <= run.size
        assert run.count > 1 or run.last == run.size
        found += [(run.name, run.head, inbox.payload(run, index)) for index in range(run.count)]
    return found


def send_burst(sock: Sock, address: tuple[Any, ...], data: bytes, segment: int) -> None:
    """Send datagrams of ``segment`` octets, the last one maybe shorter, with one GSO send: GRO keeps them together."""
    option = (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))
    assert sock.sendmsg([data], [option] if len(data) > segment else [], 0, address) == len(data)


def wait_for(sock: Sock, events: int = select.POLLIN) -> None:
    """Wait until poll(2) reports a socket ready."""
    poll = select.poll()
    poll.register(sock.fileno(), events)
    assert poll.poll(PATIENCE * 1000)


class Post:
    """The I/O of datagrams, a socket to receive from, and others that send to it; all of one family, on loopback.

    With ``with``: everything is closed at the end.
    """

    def __init__(self, features: Features, family: int = socket.AF_INET) -> None:
        self.family = socket.AddressFamily(family)
        self.host = HOSTS[self.family]
        self.io = DatagramIo(features)
        self.inbox = self.io.inboxes[family]
        self.outbox = self.io.outbox
        self.opened: list[Sock] = []
        self.sock = self.bind(self.io.open_socket(family))
        self.address = self.sock.getsockname()
        self.last = self.plain()

    def bind(self, sock: Sock) -> Sock:
        """Have a socket bound to a free port and closed at the end."""
        self.opened.append(sock)
        sock.bind((self.host, 0))
        return sock

    def plain(self) -> socket.socket:
        """Another socket, as it comes."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        self.bind(sock)
        sock.settimeout(PATIENCE)
        return sock

    def settle(self) -> None:
        """Wait until what was sent is in the receivers' queues: what loopback carries stays in order."""
        self.last.sendto(b"", self.last.getsockname())
        self.last.recv(1)

    def take(self, split: int = 0) -> list[Run]:
        """Receive what is there when all that was sent has arrived."""
        self.settle()
        return self.inbox.receive(self.sock, split)

    def take_all(self, split: int = 0) -> list[Received]:
        """Receive, and go on until nothing is left."""
        self.settle()
        found = []
        while runs := self.inbox.receive(self.sock, split):
            found += unroll(self.inbox, runs)
        return found

    def drain(self, sock: socket.socket) -> list[bytes]:
        """The datagrams that have arrived at a socket of `plain`."""
        self.settle()
        sock.setblocking(False)
        found = []
        while True:
            try:
                found.append(sock.recv(1 << 17))
            except BlockingIOError:
                return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self.opened:
            sock.close()
