"""Datagrams in batches: many with one system call, in memory that all sockets of a thread share.

An inbox takes what waits at a socket with one recvmmsg(2) and groups it into runs: datagrams that follow each other,
come from one sender, begin with the same octets (the SOCKS header) and have the same length. An outbox passes runs on,
each with one GSO send (UDP_SEGMENT, udp(7)), all of them with one sendmmsg(2). No payload becomes a Python object: the
kernel writes the head of a datagram apart from its payload (two entries of its iovec), and reads the head that is sent
with it from another place.

What the kernel coalesced on receipt (UDP_GRO) is one message with several datagrams in it: that is already a run.

For the layout below, of 64-bit little-endian Linux; `net.datagram` has the interface and chooses.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
from array import array
from ctypes import c_int, c_uint, c_void_p
from dataclasses import dataclass

from tabi.wire.datagram import MAX_DATAGRAM

Sock = socket.SocketType

BATCH = 64
"""Datagrams (or coalesced messages) taken in one call."""

SLOT = 65728
"""Octets between two datagrams in memory: the longest one, and not a multiple of a page, so that they do not fall on
the same lines of the cache. Pages that no datagram ever reached cost nothing."""

MAX_HEAD = 512
"""Octets of the longest head: SOCKS headers for MAX_HOPS proxies. That for the destination has at most 262 (RSV, FRAG,
ATYP, a length, 255 of a name, port), those for relays, which are addresses, 22."""

MAX_HOPS = 12

MAX_SEGMENTS = 64
"""Datagrams of one GSO send: UDP_MAX_SEGMENTS of older kernels."""

MAX_GSO = 65000
"""Octets of one GSO send, under what IP and UDP allow together."""

VECTORS = 1024
"""Entries of the iovecs of one sendmmsg, and the most that one message may have (UIO_MAXIOV)."""

UDP_SEGMENT = 103  # linux/udp.h
CONTROL = 24  # CMSG_SPACE of an int
SENDING = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
NO_GSO = (errno.EIO, errno.EOPNOTSUPP)  # the device cannot do it
GSO_REFUSED = (*NO_GSO, errno.EINVAL, errno.EMSGSIZE)  # or not with datagrams of that size


@dataclass(slots=True, eq=False)
class Run:
    """Datagrams of one sender that begin with the same octets; what an inbox gives until it receives again.

    Its names cost nothing: an inbox fills the same objects again and again, so that none is made for a batch, and a
    name is read as fast as a place in a tuple. Code that passes on fewer datagrams of a run changes the run.
    """

    name: bytes = b""  # the sender's sockaddr
    head: bytes = b""  # the octets that all of them begin with; fewer where the datagram is shorter
    at: int = 0  # where the first payload is: valid until an inbox with the same memory receives again
    stride: int = SLOT  # octets from one payload to the next; SLOT only where `at` is the beginning of a slot
    count: int = 1  # of datagrams
    size: int = 0  # octets of each payload
    last: int = 0  # octets of the last one, which may be shorter

    def keep_first(self, count: int) -> None:
        """Forget all datagrams but the first ones, fewer than there are."""
        self.count = count
        self.last = self.size

    def keep_last(self) -> None:
        """Forget all datagrams but the last one."""
        self.at += self.stride * (self.count - 1)
        self.count = 1
        self.size = self.last


class Memory:
    """The slots that datagrams are received into, and sent from."""

    def __init__(self) -> None:
        # Private: it is shared with forked processes otherwise.
        self.map = mmap.mmap(-1, BATCH * SLOT, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.map)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.pointers = memoryview(array("Q", range(self.base, self.base + BATCH * SLOT, SLOT)))

    def copy(self, at: int, size: int) -> bytes:
        """Octets by their address."""
        return bytes(self.view[at - self.base : at - self.base + size])


class Words:
    """Memory of our own for the kernel to read or fill, as octets and as 64-bit words."""

    def __init__(self, size: int) -> None:
        self.buffer = ctypes.create_string_buffer(size)
        self.octets = memoryview(self.buffer).cast("B")
        self.words = self.octets.cast("Q") if size % 8 == 0 else self.octets
        self.at = ctypes.addressof(self.buffer)


def repeat(value: int, count: int) -> memoryview:
    """``count`` equal words."""
    return memoryview(array("Q", (value,)) * count)


def row(first: int, step: int, count: int) -> memoryview:
    """``count`` words, each ``step`` more than the one before."""
    return memoryview(array("Q", range(first, first + step * count, step)))


class BatchInbox:
    """`net.datagram.Inbox` with recvmmsg(2).

    struct mmsghdr, in words of 64 bits: name, its length, iovec, its length, control, its length, flags, and the
    length of the message. struct iovec: address and length. The iovec of message i is two entries: its head, its slot.
    """

    def __init__(self, memory: Memory, family: int, coalesced: bool) -> None:
        self.memory = memory
        self.name_size = 16 if family == socket.AF_INET else 28
        self.coalesced = coalesced
        self.count = 0
        self.runs = [Run() for _ in range(BATCH)]
        self.one = self.runs[:1]  # a batch that is one run: the usual one
        self.names = Words(BATCH * self.name_size)
        self.heads = Words(BATCH * MAX_HEAD)
        self.controls = Words(BATCH * CONTROL)
        self.vectors = Words(BATCH * 32)
        self.messages = Words(BATCH * 64)
        self.vectors.words[2::4] = memory.pointers
        self.vectors.words[3::4] = repeat(SLOT, BATCH)
        messages = self.messages.words
        messages[0::8] = row(self.names.at, self.name_size, BATCH)
        messages[1::8] = repeat(self.name_size, BATCH)
        messages[2::8] = row(self.vectors.at, 32, BATCH)
        messages[3::8] = repeat(2, BATCH)
        messages[4::8] = row(self.controls.at, CONTROL, BATCH)
        self.lengths = self.messages.octets.cast("I")[14::16]
        self.control_sizes = messages[5::8]
        self.full_control = repeat(CONTROL, BATCH)
        self.coalesced_sizes = self.controls.octets.cast("I")[4::6]  # after a struct cmsghdr of 16 octets
        if self.coalesced:
            self.control_sizes[:] = self.full_control
        self.split = -1
        libc = ctypes.CDLL(None, use_errno=True)
        self.recvmmsg = libc.recvmmsg
        self.recvmmsg.argtypes = [c_int, c_void_p, c_uint, c_int, c_void_p]

    def split_at(self, split: int) -> None:
        """Have the kernel put the first ``split`` octets of each datagram apart."""
        self.split = split
        vectors = self.vectors.words
        vectors[0::4] = row(self.heads.at, split, BATCH) if split else repeat(self.heads.at, BATCH)
        vectors[1::4] = repeat(split, BATCH)

    def receive(self, sock: Sock, split: int) -> list[Run]:
        """See `Inbox`."""
        if split != self.split:
            self.split_at(split)
        fd, at = sock.fileno(), self.messages.at
        count = self.recvmmsg(fd, at, BATCH, socket.MSG_DONTWAIT, None)
        if count < 0:
            if ctypes.get_errno() != errno.EAGAIN:
                # A connected socket hands over an ICMP error first, and then what else there is.
                count = self.recvmmsg(fd, at, BATCH, socket.MSG_DONTWAIT, None)
            if count < 0:
                self.count = 0
                return []
        self.count = count
        lengths: list[int] = self.lengths[:count].tolist()
        if self.coalesced:
            controls = self.control_sizes[:count].tolist()
            self.control_sizes[:count] = self.full_control[:count]
            if any(controls):
                return self.expand(lengths, controls)
        size, step = lengths[0], self.name_size
        names = self.names.octets[: count * step].tobytes()
        heads = self.heads.octets[: count * split].tobytes()
        name, head = names[:step], heads[:split]
        if size > split and lengths.count(size) == count and names == name * count and heads == head * count:
            run = self.runs[0]
            run.name, run.head = name, head
            run.at, run.stride = self.memory.base, SLOT
            run.count = count
            run.size = run.last = size - split
            return self.one
        return self.group(lengths, names, heads)

    def group(self, lengths: list[int], names: bytes, heads: bytes) -> list[Run]:
        """Make runs of messages that differ."""
        runs, used = self.runs, 0
        split, step, base = self.split, self.name_size, self.memory.base
        before = None
        for index, length in enumerate(lengths):
            name = names[index * step : index * step + step]
            head = heads[index * split : index * split + min(split, length)]
            size = max(0, length - split)
            if (
                before is not None
                and name == before.name
                and head == before.head
                and 0 < size <= before.size == before.last
            ):
                before.count += 1
                before.last = size
            else:
                before = runs[used]
                used += 1
                before.name, before.head = name, head
                before.at, before.stride = base + index * SLOT, SLOT
                before.count = 1
                before.size = before.last = size
        return runs[:used]

    def expand(self, lengths: list[int], controls: list[int]) -> list[Run]:
        """Make runs where the kernel has coalesced datagrams."""
        runs: list[Run] = []
        split, step = self.split, self.name_size
        for index, (length, control) in enumerate(zip(lengths, controls, strict=True)):
            name = self.names.octets[index * step : index * step + step].tobytes()
            head = self.heads.octets[index * split : index * split + min(split, length)].tobytes()
            at = self.memory.base + index * SLOT
            segment = self.coalesced_sizes[index] if control else length
            run = self.runs[index]
            run.name, run.head, run.at = name, head, at
            if segment >= length:
                run.stride, run.count = SLOT, 1
                run.size = run.last = max(0, length - split)
                runs.append(run)
            else:
                runs += self.segments(run, segment, length)
        return runs

    def segments(self, run: Run, segment: int, length: int) -> list[Run]:
        """Make runs of one coalesced message, whose first head and place ``run`` has.

        All but the last of its datagrams have ``segment`` octets.

        The slot lacks the ``split`` octets of the first head, so that payload n is found at n segments, and the head of
        each but the first just before its payload; if segments are shorter than that, some of it in the first head.
        """
        split, copy = self.split, self.memory.copy
        name, head, at = run.name, run.head, run.at
        count = -(-length // segment)
        last = length - (count - 1) * segment
        heads = [head]
        if segment < split:
            whole = head + copy(at, max(0, length - split))
            heads = [whole[start : start + segment] for start in range(0, length, segment)]
        elif split:
            heads += [copy(at + index * segment - split, split) for index in range(1, count)]
        if last > split and heads.count(head) == len(heads):
            run.stride, run.count = segment, count
            run.size, run.last = segment - split, last - split
            return [run]
        runs: list[Run] = []
        for index in range(count):
            octets = segment if index < count - 1 else last
            size = max(0, octets - split)
            runs.append(Run(name, heads[index][:octets], at + index * segment, segment, 1, size, size))
        return runs

    def payload(self, run: Run, index: int) -> bytes:
        """See `Inbox`."""
        return self.memory.copy(run.at + index * run.stride, run.size if index < run.count - 1 else run.last)


class BatchOutbox:
    """`net.datagram.Outbox` with sendmmsg(2): a message for each run, or for as much of it as one GSO send takes."""

    def __init__(self, memory: Memory, segments: bool) -> None:
        self.memory = memory
        self.segments = segments
        self.sock: Sock | None = None
        self.sent = self.octets = self.unsent = 0
        self.limit = MAX_DATAGRAM
        self.loads: list[tuple[int, int]] = []  # datagrams and octets of each message
        self.used = 0  # entries of the vectors
        self.names = Words(BATCH * 32)
        self.heads = Words(BATCH * MAX_HEAD)
        self.vectors = Words(VECTORS * 16)
        self.controls = Words(BATCH * CONTROL)
        self.messages = Words(BATCH * 64)
        messages = self.messages.words
        messages[0::8] = row(self.names.at, 32, BATCH)
        messages[4::8] = row(self.controls.at, CONTROL, BATCH)
        self.sizes = self.controls.octets.cast("H")[8::12]
        controls = self.controls.words
        controls[0::3] = repeat(18, BATCH)  # cmsg_len: CMSG_LEN of two octets
        controls[1::3] = repeat(UDP_SEGMENT << 32 | socket.IPPROTO_UDP, BATCH)
        libc = ctypes.CDLL(None, use_errno=True)
        self.sendmmsg = libc.sendmmsg
        self.sendmmsg.argtypes = [c_int, c_void_p, c_uint, c_int]

    def begin(self, sock: Sock, limit: int) -> None:
        """See `Outbox`."""
        self.sock = sock
        self.limit = limit
        self.sent = self.octets = self.unsent = 0
        self.loads.clear()  # what an error has kept from being sent belongs to another socket
        self.used = 0

    def add(self, run: Run, address: bytes, head: bytes) -> None:
        """See `Outbox`."""
        at, stride, count, size = run.at, run.stride, run.count, run.size
        whole = size + len(head)
        most = 1
        if count > 1 and self.segments and whole <= self.limit:
            most = min(MAX_SEGMENTS, MAX_GSO // whole) or 1
        while count > most:
            self.add_message(at, stride, most, size, size, address, head)
            at += stride * most
            count -= most
        self.add_message(at, stride, count, size, run.last, address, head)

    def add_message(self, at: int, stride: int, count: int, size: int, last: int, address: bytes, head: bytes) -> None:
        """Fill in one message of ``count`` datagrams."""
        number, entries = len(self.loads), (2 if head else 1)
        if number == BATCH or self.used + count * entries > VECTORS:
            self.send()
            number = 0
        words, vectors = self.messages.words, self.vectors.words
        first = 2 * self.used
        end = first + 2 * entries * count
        if stride == SLOT:
            slot = (at - self.memory.base) // SLOT
            pointers = self.memory.pointers[slot : slot + count]
        else:
            pointers = row(at, stride, count)
        if head:
            where = number * MAX_HEAD
            self.heads.octets[where : where + len(head)] = head
            vectors[first:end:4] = repeat(self.heads.at + where, count)
            vectors[first + 1 : end : 4] = repeat(len(head), count)
            vectors[first + 2 : end : 4] = pointers
            vectors[first + 3 : end : 4] = repeat(size, count)
        else:
            vectors[first:end:2] = pointers
            vectors[first + 1 : end : 2] = repeat(size, count)
        vectors[end - 1] = last
        message = 8 * number
        self.names.octets[32 * number : 32 * number + len(address)] = address
        words[message + 1] = len(address)
        words[message + 2] = self.vectors.at + 8 * first
        words[message + 3] = entries * count
        if count > 1:
            self.sizes[number] = size + len(head)
            words[message + 5] = CONTROL
        else:
            words[message + 5] = 0
        self.used += entries * count
        self.loads.append((count, (count - 1) * size + last))

    def send(self) -> None:
        """See `Outbox`."""
        assert self.sock is not None
        fd, at, loads = self.sock.fileno(), self.messages.at, self.loads
        done, total = 0, len(loads)
        while done < total:
            taken = self.sendmmsg(fd, at + 64 * done, total - done, SENDING)
            if taken > 0:
                for count, octets in loads[done : done + taken]:
                    self.sent += count
                    self.octets += octets
                done += taken
                continue
            number = ctypes.get_errno()
            if number == errno.EAGAIN:  # no room: dropped, as by a router with a full queue
                self.unsent += sum(count for count, _ in loads[done:])
                break
            if loads[done][0] > 1 and number in GSO_REFUSED:
                self.send_singly(fd, done, 0 if number in NO_GSO else self.sizes[done] - 1)
            else:
                self.unsent += loads[done][0]
            done += 1
        loads.clear()
        self.used = 0

    def send_singly(self, fd: int, message: int, limit: int) -> None:
        """Send the datagrams of a message one by one instead; if that works, ``limit`` becomes the limit of GSO."""
        before, (count, _) = self.sent, self.loads[message]
        words, vectors = self.messages.words, self.vectors.words
        at = 8 * message
        first, entries = words[at + 2], words[at + 3] // count
        words[at + 3], words[at + 5] = entries, 0
        for index in range(count):
            words[at + 2] = first + 16 * entries * index
            if self.sendmmsg(fd, self.messages.at + 64 * message, 1, SENDING) == 1:
                self.sent += 1
                self.octets += vectors[(words[at + 2] - self.vectors.at) // 8 + 2 * entries - 1]
            else:
                self.unsent += 1
        if self.sent > before:
            self.limit = min(self.limit, limit)
