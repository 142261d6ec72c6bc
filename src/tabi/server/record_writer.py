"""The records of intercepted flows, from all workers, written by a process of their own.

A slow disk or a reader that stopped reading holds up no session, and no worker takes the time to compress, mask and
encode. Workers hand their orders over in pieces through one socket, which keeps pieces apart (SOCK_SEQPACKET). That
never waits: what finds no room is lost, counted and reported. The process is in a session of its own, so that what
kills the server's does not tear a write of this one, and ends when no process is left that could send.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection

import msgspec

from tabi.intercept.recorder import Order
from tabi.intercept.writer import PATIENCE, WAITING, Writer
from tabi.server.channel import Channel
from tabi.server.child import Child

log = logging.getLogger("tabi")

HEAD = struct.Struct("!IB")
"""In front of a piece: the sender's pid, and whether it is the first and the last one."""
FIRST, LAST = 1, 2

PIECE = 60_000
"""Octets of an order that are sent at a time; a socket holds about 200 KiB."""

MAX_UNFINISHED = 128 << 20
"""Octets of orders that have not come whole yet; beyond that those are lost whose sender is silent longest."""

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Order).decode


class RecordWriter:
    """Starts the process; the supervisor keeps its `child` up.

    Args:
        keeps: descriptors that the process needs for its messages.
        fd: where it prints.
    """

    def __init__(self, keeps: Callable[[], Collection[int]] = tuple, fd: int = 1) -> None:
        self.fd = fd
        self.source, self.sink = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sink.setblocking(False)
        self.child = Child("tabi-records", self.write, lambda: (self.source.fileno(), *keeps()))

    def write(self, channel: Channel) -> None:
        """The work of the process."""
        os.setsid()
        if not logging.getLogger().handlers:
            logging.basicConfig(format="tabi: %(message)s")
        write_orders(self.source, Writer(self.fd))

    def close(self) -> None:
        """End the process when it has written what it has. The workers have ended before."""
        self.source.close()
        self.sink.close()
        self.child.close()


def write_orders(source: socket.socket, writer: Writer) -> None:
    """Write what comes, until no process is left that could send."""
    pieces = Pieces()
    while True:
        source.settimeout(writer.patience)
        try:
            data = source.recv(HEAD.size + PIECE)
        except TimeoutError:
            writer.flush()
            continue
        if not data:
            break
        whole = pieces.add(data)
        if whole is not None:
            try:
                order = decode(whole)
            except msgspec.DecodeError:
                log.exception("an order for the writer of records")
            else:
                writer.write(order)
    writer.close()


class Pieces:
    """Puts together what senders sent in pieces, which are mixed."""

    def __init__(self) -> None:
        self.by_sender: OrderedDict[int, bytearray] = OrderedDict()
        self.size = 0

    def add(self, data: bytes) -> bytes | bytearray | None:
        """Take a piece. Returns what is whole now."""
        sender, flags = HEAD.unpack_from(data)
        piece = data[HEAD.size :]
        if flags & FIRST:
            self.forget(sender)  # a worker that died in the middle
            if flags & LAST:
                return piece
            self.by_sender[sender] = bytearray()
        found = self.by_sender.get(sender)
        if found is None:  # its beginning was for a process before this one
            return None
        if flags & LAST:
            self.forget(sender)
            return found + piece
        found += piece
        self.size += len(piece)
        self.by_sender.move_to_end(sender)
        while self.size > MAX_UNFINISHED:
            self.forget(next(iter(self.by_sender)))
        return None

    def forget(self, sender: int) -> None:
        """Give up what has come of an order."""
        self.size -= len(self.by_sender.pop(sender, b""))


class SocketSink:
    """Hands orders of a worker to that process.

    Args:
        sock: the `RecordWriter.sink`; it stays the caller's.
        loop: of the worker.
        bound: octets of orders that wait.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, bound: int = WAITING) -> None:
        self.sock = sock
        self.loop = loop
        self.bound = bound
        self.waiting: deque[tuple[bytes, memoryview]] = deque()
        """Heads and pieces."""
        self.size = 0
        self.lost = 0
        self.watched = False

    def take(self, order: Order) -> None:
        """See `Sink`."""
        data = encode(order)
        if self.size and self.size + len(data) > self.bound:
            self.lost += 1
            return
        self.size += len(data)
        pid, view, last = os.getpid(), memoryview(data), (len(data) - 1) // PIECE * PIECE
        for at in range(0, len(data), PIECE):
            flags = FIRST * (at == 0) | LAST * (at == last)
            self.waiting.append((HEAD.pack(pid, flags), view[at : at + PIECE]))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it is taken."""
        self.send()
        if bool(self.waiting) != self.watched:
            self.watched = not self.watched
            if self.watched:
                self.loop.add_writer(self.sock, self.flush)
            else:
                self.loop.remove_writer(self.sock)
        if self.lost and not self.waiting:
            log.warning("flows lost, since they came faster than they could be written: %d", self.lost)
            self.lost = 0

    def send(self) -> None:
        """Send pieces, as many as are taken."""
        while self.waiting:
            try:
                self.sock.sendmsg(self.waiting[0], (), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                log.error("records: %s", exc.strerror or exc)
                self.lost += 1
                self.waiting.clear()
                self.size = 0
                return
            self.size -= len(self.waiting.popleft()[1])

    async def aclose(self) -> None:
        """See `Sink`."""
        if self.watched:
            self.loop.remove_writer(self.sock)
            self.watched = False
        if self.waiting:
            await asyncio.to_thread(self.drain)
        lost = self.lost + sum(bool(head[-1] & LAST) for head, _ in self.waiting)
        if lost:
            log.warning("flows lost, since they came faster than they could be written: %d", lost)
        self.waiting.clear()
        self.lost = self.size = 0

    def drain(self) -> None:
        """Send what waits, within PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while self.waiting and (left := deadline - time.monotonic()) > 0:
            select.select((), (self.sock,), (), left)
            self.send()
