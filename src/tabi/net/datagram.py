"""Datagrams: what the kernel offers for them, sockets, and receiving and sending many at a time.

`DatagramIo` has an inbox for each family and an outbox: those of `net.batch` where the kernel has recvmmsg(2), else
those here, which make a call for each datagram and otherwise do the same. `TABI_DATAGRAMS=plain` forces these;
``single`` keeps recvmmsg, without GSO and GRO.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

from tabi.net.batch import BATCH, SENDING, SLOT, UDP_SEGMENT, BatchInbox, BatchOutbox, Memory, Run, Sock
from tabi.net.kernel import has_batches
from tabi.net.sockaddr import encode_sockaddr, python_sockaddr
from tabi.wire.address import Address

RECEIVE_BUFFER, SEND_BUFFER = 4 << 20, 2 << 20
"""Octets asked for, of the memory in which the kernel keeps datagrams of one socket."""

UDP_GRO = 104  # linux/udp.h
SO_MEMINFO, MEMINFO_DROPS = 55, 8  # asm-generic/socket.h, linux/sock_diag.h
FORCED = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}  # SO_RCVBUFFORCE, SO_SNDBUFFORCE: beyond the system's limit
DATAGRAM = int(socket.SOCK_DGRAM | getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0))


@dataclass(frozen=True, slots=True)
class Features:
    """The features of the kernel that are used."""

    batches: bool
    """recvmmsg and sendmmsg."""
    segments: bool
    """UDP_SEGMENT: one send for several datagrams (Linux 4.18)."""
    coalesced: bool
    """UDP_GRO: one receive for several datagrams (Linux 5.0)."""


PLAIN = Features(False, False, False)
SINGLE = Features(True, False, False)


def probe(forced: str | None) -> Features:
    """Find out, once, at the start. ``forced`` is TABI_DATAGRAMS; raises ValueError where it says something else."""
    if forced not in (None, "", "plain", "single"):
        raise ValueError(f"TABI_DATAGRAMS is {forced!r}, expected plain or single")
    known_layout = sys.platform == "linux" and sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == 8
    if forced == "plain" or not known_layout or not has_batches():
        return PLAIN
    if forced == "single":
        return SINGLE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return Features(True, has_option(sock, UDP_SEGMENT, 0), has_option(sock, UDP_GRO, 1))


def has_option(sock: Sock, option: int, value: int) -> bool:
    """Whether the kernel knows an option of UDP."""
    try:
        sock.setsockopt(socket.IPPROTO_UDP, option, value)
    except OSError:
        return False
    return True


def open_socket(family: int, coalesced: bool) -> Sock:
    """A UDP socket, non-blocking, with as much room as the system gives. An IPv6 one takes IPv6 only."""
    sock = socket.SocketType(family, DATAGRAM, 0)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if coalesced:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        for option, size in ((socket.SO_RCVBUF, RECEIVE_BUFFER), (socket.SO_SNDBUF, SEND_BUFFER)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, FORCED[option], size)
            except OSError:  # needs CAP_NET_ADMIN; without it net.core.rmem_max is the limit
                sock.setsockopt(socket.SOL_SOCKET, option, size)
    except BaseException:
        sock.close()
        raise
    return sock


def overflow(sock: Sock) -> int:
    """Datagrams that the kernel dropped because the socket's receive buffer was full.

    It is the count that SO_RXQ_OVFL would add to each datagram, but asked for once, so it includes the last drops.
    """
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (MEMINFO_DROPS + 1))
    except OSError:  # before Linux 4.12, or not Linux
        return 0
    return int.from_bytes(found[4 * MEMINFO_DROPS :], sys.byteorder)


class Inbox(Protocol):
    """Receives from sockets of one family."""

    count: int
    """Messages of the last `receive`; fewer than BATCH mean that the socket had no more."""

    def receive(self, sock: Sock, split: int) -> list[Run]:
        """Take up to BATCH datagrams, with the first ``split`` octets of each as its head. Errors count as nothing."""

    def payload(self, run: Run, index: int) -> bytes:
        """A copy of one payload of a run."""


class Outbox(Protocol):
    """Sends runs. Between `begin` and `send` belong runs for one socket; they go out in the order of `add`.

    What was sent since `begin` is counted: ``sent`` datagrams with ``octets`` of payload; ``unsent`` were not taken.
    """

    sock: Sock | None
    sent: int
    octets: int
    unsent: int
    limit: int
    """Octets of the longest datagram that GSO accepts on the path; lowered if a send shows that it is less."""

    def begin(self, sock: Sock, limit: int) -> None:
        """Begin to collect for a socket."""

    def add(self, run: Run, address: bytes, head: bytes) -> None:
        """Have a run sent to a sockaddr, ``head`` in front of each payload."""

    def send(self) -> None:
        """Send what was collected. It does not wait for a datagram that the system does not take."""


class PlainInbox:
    """`Inbox` with a recvfrom for each datagram. ``at`` of its runs is a place in ``payloads``."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.payloads = payloads
        self.count = 0

    def receive(self, sock: Sock, split: int) -> list[Run]:
        """See `Inbox`."""
        runs: list[Run] = []
        payloads = self.payloads
        payloads.clear()
        self.count = BATCH
        for _ in range(BATCH):
            try:
                data, sockaddr = sock.recvfrom(SLOT)
            except BlockingIOError:
                self.count = len(runs)
                break
            except OSError:  # as in BatchInbox
                continue
            payloads.append(data[split:])
            size = len(payloads[-1])
            host, port, *rest = sockaddr  # of IPv6 also the flow and the interface
            scope = f"%{rest[1]}" if rest and rest[1] else ""
            name = encode_sockaddr(Address(ip_address(host + scope), port))
            runs.append(Run(name, data[:split], len(payloads) - 1, 1, 1, size, size))
        return runs

    def payload(self, run: Run, index: int) -> bytes:
        """See `Inbox`."""
        return self.payloads[run.at + index]


class PlainOutbox:
    """`Outbox` with a sendmsg for each datagram, at once."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.payloads = payloads
        self.sock: Sock | None = None
        self.sent = self.octets = self.unsent = 0
        self.limit = 0

    def begin(self, sock: Sock, limit: int) -> None:
        """See `Outbox`."""
        self.sock = sock
        self.limit = limit
        self.sent = self.octets = self.unsent = 0

    def add(self, run: Run, address: bytes, head: bytes) -> None:
        """See `Outbox`."""
        assert self.sock is not None
        payload = self.payloads[run.at]
        try:
            self.sock.sendmsg((head, payload), (), SENDING, python_sockaddr(address))
        except OSError:
            self.unsent += 1
            return
        self.sent += 1
        self.octets += len(payload)

    def send(self) -> None:
        """See `Outbox`."""


class DatagramIo:
    """An inbox for each family and an outbox, with the memory they share: one for each thread (`get_datagram_io`)."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self.inboxes: dict[int, Inbox]  # by family: for datagrams that are taken whole
        self.headed: dict[int, Inbox]  # and for those that are split: to change where they are costs 5 us
        self.outbox: Outbox
        families = (int(socket.AF_INET), int(socket.AF_INET6))
        if features.batches:
            memory = Memory()
            self.inboxes = {family: BatchInbox(memory, family, features.coalesced) for family in families}
            self.headed = {family: BatchInbox(memory, family, coalesced=False) for family in families}
            self.outbox = BatchOutbox(memory, features.segments)
        else:
            payloads: list[bytes] = []
            self.inboxes = self.headed = {family: PlainInbox(payloads) for family in families}
            self.outbox = PlainOutbox(payloads)

    def describe(self) -> str:
        """The features that are used and the size of the buffers, for people. Raises OSError."""
        names = (("batches", f"batches of {BATCH}"), ("segments", "GSO"), ("coalesced", "GRO"))
        used = [text for name, text in names if getattr(self.features, name)] or ["a call for each datagram"]
        sock = self.open_socket(socket.AF_INET)
        try:
            granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it, socket(7)
        finally:
            sock.close()
        hint = "" if granted >= RECEIVE_BUFFER else f" of {RECEIVE_BUFFER >> 10} asked for, see net.core.rmem_max"
        return f"{', '.join(used)}; receive buffers of {granted >> 10} KiB{hint}"

    def open_socket(self, family: int, headed: bool = False) -> Sock:
        """See the function of that name. Datagrams that are ``headed`` are not coalesced: a sender could make it
        expensive to split them again."""
        return open_socket(family, self.features.coalesced and not headed)

    def receive_whole(self, sock: Sock, family: int) -> list[bytes]:
        """Take up to BATCH datagrams of a connected socket, as octets; more if they were coalesced."""
        inbox = self.inboxes[family]
        return [inbox.payload(run, index) for run in inbox.receive(sock, 0) for index in range(run.count)]


threads = threading.local()


def get_datagram_io() -> DatagramIo:
    """The `DatagramIo` of this thread. Its content is used up before any other code of the thread runs."""
    io: DatagramIo | None = getattr(threads, "io", None)
    if io is None:
        io = threads.io = DatagramIo(probe(os.environ.get("TABI_DATAGRAMS")))
    return io
