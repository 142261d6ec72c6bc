"""The channel between the supervisor and one of its processes: messages in JSON, through a pair of sockets.

The kernel keeps messages apart (SOCK_SEQPACKET), and a message may carry open files. A sender never waits: what
the other end does not take yet is kept, up to a bound. Large data goes as a file in memory: its descriptor is sent.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

MAX_MESSAGE = 65_536
"""Octets of a message."""

MAX_FILES = 16
"""Open files that go with one message."""

ROOM_FOR_FILES = socket.CMSG_SPACE(MAX_FILES * array.array("i").itemsize)

MAX_WAITING = 64
"""Messages that wait for an end which does not read; further ones are refused."""

GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What a send fails with when the other end is closed."""

decode = msgspec.json.Decoder(dict[str, Any]).decode
encode = msgspec.json.Encoder().encode

F_SETOWN_EX, F_OWNER_TID = 15, 0
"""fcntl(2): which thread a signal goes to. Python has no names for them."""


class Message(NamedTuple):
    """What came through a channel."""

    body: dict[str, Any]
    fds: list[int]
    """Descriptors that came with it. They belong to the receiver."""


class Channel:
    """One end of a channel.

    Nothing of it waits but `receive_within`. In a process that has a loop, `watch` has messages delivered; in one that
    sleeps in sigtimedwait(2), `interrupt` has SIGIO sent.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.waiting: deque[tuple[bytes, list[int]]] = deque()
        self.loop: asyncio.AbstractEventLoop | None = None

    def fileno(self) -> int:
        """Its descriptor."""
        return self.sock.fileno()

    def send(self, body: Mapping[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send a message, or keep it until it can be sent; the descriptors stay the caller's.

        Returns whether it was taken: it is not if the other end is gone, or too many messages wait already.

        Raises:
            ValueError: it is too large.
        """
        data = encode(body)
        if len(data) > MAX_MESSAGE or len(fds) > MAX_FILES:
            text = f"a message of {len(data)} octets and {len(fds)} files"
            raise ValueError(f"{text}, expected at most {MAX_MESSAGE} and {MAX_FILES}")
        self.flush()
        if not self.waiting:
            sent = self.transmit(data, fds)
            if sent is not None:
                return sent
        if len(self.waiting) >= MAX_WAITING:
            return False
        self.waiting.append((data, [os.dup(fd) for fd in fds]))
        if self.loop is not None:
            self.loop.add_writer(self.sock, self.flush)
        return True

    def transmit(self, data: bytes, fds: Sequence[int]) -> bool | None:
        """Send at once. True: it is sent. False: the other end is gone. None: it takes nothing now."""
        try:
            socket.send_fds(self.sock, [data], fds, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno in GONE:
                return False
            if exc.errno == errno.ENOBUFS:  # no memory for it now
                return None
            raise
        return True

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it."""
        while self.waiting:
            data, fds = self.waiting[0]
            if self.transmit(data, fds) is None:
                return
            self.waiting.popleft()
            close_all(fds)
        if self.loop is not None:
            self.loop.remove_writer(self.sock)

    def receive(self) -> Message | None:
        """The next message, or None if none has come.

        Raises:
            EOFError: the other end is gone, and nothing is left to read.
            ValueError: this is not a message.
        """
        try:
            # not socket.recv_fds, which does not pass its flags on (Python 3.11)
            data, ancillary, flags, _ = self.sock.recvmsg(MAX_MESSAGE, ROOM_FOR_FILES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # it was closed with messages of ours unread
            data, ancillary, flags = b"", [], 0
        fds = array.array("i")
        for _, _, part in ancillary:
            fds.frombytes(part[: len(part) - len(part) % fds.itemsize])
        if not data:
            raise EOFError("the other end of the channel is closed")
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("a message that has lost octets or descriptors")
            return Message(decode(data), list(fds))
        except BaseException:
            close_all(fds)
            raise

    def next_message(self) -> Message | None:
        """The next message, or None: none has come, or the other end is gone. Sends on what waits, too."""
        self.flush()
        try:
            return self.receive()
        except (EOFError, ValueError):
            return None

    def next_body(self) -> dict[str, Any] | None:
        """What the next message says, as `next_message`; files that came with it are closed."""
        message = self.next_message()
        if message is None:
            return None
        close_all(message.fds)
        return message.body

    def receive_within(self, seconds: float) -> Message | None:
        """The next message, or None if none comes in that time. Raises as `receive` does."""
        select.select((self.sock,), (), (), seconds)
        return self.receive()

    def watch(
        self, loop: asyncio.AbstractEventLoop, handle: Callable[[Message], object], ended: Callable[[], object]
    ) -> None:
        """Have each message handled in a loop, and report the end. What is not a message ends the channel, too."""

        def readable() -> None:
            try:
                message = self.receive()
            except (EOFError, ValueError):
                self.unwatch()
                ended()
            else:
                if message is not None:
                    handle(message)

        self.loop = loop
        loop.add_reader(self.sock, readable)

    def unwatch(self) -> None:
        """Undo `watch`."""
        if self.loop is not None:
            self.loop.remove_reader(self.sock)
            self.loop.remove_writer(self.sock)
            self.loop = None

    def interrupt(self) -> None:
        """Have SIGIO sent to this process as soon as there is something to receive, or room to send what waits.

        It is blocked, for sigtimedwait(2) to take it, and ignored, so that it ends no process that this one starts.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        if sys.platform != "linux":  # `HandledSignals` looks at the channels
            return
        # To this thread: another one of a program that embeds us might not hold the signal back.
        fcntl.fcntl(self.sock, F_SETOWN_EX, struct.pack("ii", F_OWNER_TID, threading.get_native_id()))
        fcntl.fcntl(self.sock, fcntl.F_SETFL, fcntl.fcntl(self.sock, fcntl.F_GETFL) | os.O_ASYNC)

    def close(self) -> None:
        """Close this end, and the files that wait in it."""
        self.unwatch()
        while self.waiting:
            close_all(self.waiting.popleft()[1])
        self.sock.close()


def make_channel() -> tuple[Channel, Channel]:
    """Both ends of a new channel."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one), Channel(other)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
