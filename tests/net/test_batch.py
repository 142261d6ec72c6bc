"""Runs, GSO and GRO, and the memory in which they lie; what all inboxes have in common is in test_datagram.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboxes import FEATURES, HOSTS, Post, Received, name_of, send_burst, unroll, wait_for
from tabi.net.batch import BATCH, MAX_GSO, MAX_HEAD, MAX_SEGMENTS, SLOT, BatchInbox, BatchOutbox, Memory, Run
from tabi.net.datagram import UDP_GRO
from tabi.wire.datagram import MAX_DATAGRAM

ALL, SINGLE = FEATURES["all"], FEATURES["single"]

every_kind = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
in_batches = pytest.mark.parametrize("features", [ALL, SINGLE], ids=["all", "single"])
every_family = pytest.mark.parametrize("family", HOSTS, ids=["IPv4", "IPv6"])


class Message(NamedTuple):
    """What one message of a sendmmsg holds: the octets of each of its datagrams, and whether it is a GSO send."""

    sizes: list[int]
    gso: bool


class Watched:
    """A sendmmsg that does what the real one does, notes it, and refuses messages as a test says."""

    def __init__(self, post: Post, refuse: Callable[[Message], int] = lambda message: 0) -> None:
        assert isinstance(post.outbox, BatchOutbox)
        self.real = post.outbox.sendmmsg
        self.refuse = refuse
        self.messages: list[Message] = []
        self.calls = 0
        post.outbox.sendmmsg = self  # type: ignore[assignment]

    def __call__(self, fd: int, at: int, count: int, flags: int) -> int:
        """sendmmsg(2)."""
        self.calls += 1
        for index in range(count):
            message = self.read(at + 64 * index)
            self.messages.append(message)
            number = self.refuse(message)
            if number or self.real(fd, at + 64 * index, 1, flags) != 1:
                if number:
                    ctypes.set_errno(number)
                return index or -1
        return count

    def read(self, at: int) -> Message:
        """One struct mmsghdr."""
        _, _, vectors, entries, control, controls, _ = struct.unpack("7Q", ctypes.string_at(at, 56))
        pairs = struct.unpack(f"{2 * entries}Q", ctypes.string_at(vectors, 16 * entries))
        total, lengths = sum(pairs[1::2]), pairs[1::2]
        if not controls:
            return Message([total], False)
        size, level, kind, segment = struct.unpack("=QiiH", ctypes.string_at(control, 18))
        assert (size, level, kind) == (18, socket.IPPROTO_UDP, 103)
        assert segment * (entries // len(lengths)) <= total
        rest = total % segment
        return Message([segment] * (total // segment) + [rest] * (rest > 0), True)


def passed_on(post: Post, runs: list[Run], receiver: Any, head: bytes = b"", limit: int = MAX_DATAGRAM) -> None:
    """Send runs on."""
    post.outbox.begin(post.sock, limit)
    for run in runs:
        post.outbox.add(run, name_of(receiver), head)
    post.outbox.send()


def in_pieces(post: Post, sender: socket.socket, number: int) -> Run:
    """A run of as many datagrams of one octet as newer kernels coalesce: of a datagram that has so many octets."""
    sender.sendto(b"x" * number, post.address)
    (run,) = post.take()
    return Run(run.name, run.head, run.at, 1, number, 1, 1)


def counts(post: Post) -> tuple[int, int, int]:
    """What the outbox has counted."""
    return post.outbox.sent, post.outbox.octets, post.outbox.unsent


def shape(runs: list[Run]) -> list[tuple[int, int, int]]:
    """Datagrams, octets, octets of the last, of each run."""
    return [(run.count, run.size, run.last) for run in runs]


# --- anything at all ---

FRONT, OTHER = bytes(range(12)), bytes(range(11)) + b"\xff"

bursts = st.lists(
    st.tuples(
        st.integers(0, 2),  # sender
        st.integers(0, 20),  # which of the datagrams begins otherwise
        st.sampled_from([0, 1, 2, 9, 10, 11, 12, 13, 30, 30, 30, 1200]) | st.integers(0, 1400),  # octets of each
        st.integers(0, 1400),  # octets of the last one, at most
        st.integers(1, 12),  # datagrams
        st.booleans(),  # with one GSO send
    ),
    max_size=8,
)


def send_all(post: Post, senders: list[socket.socket], plan: list[Any]) -> list[tuple[bytes, bytes]]:
    """Send bursts; returns sender and octets of each datagram."""
    noise = random.Random(str(plan))
    sent = []
    for sender, odd, size, last, count, gso in plan:
        sizes = [size] * (count - 1) + [min(size, last)]
        fronts = [OTHER if index == odd else FRONT for index in range(count)]
        datagrams = [(front + noise.randbytes(size))[:size] for front, size in zip(fronts, sizes, strict=True)]
        if gso and min(sizes) > 0:
            send_burst(senders[sender], post.address, b"".join(datagrams), size)
        else:
            for data in datagrams:
                senders[sender].sendto(data, post.address)
        sent += [(name_of(senders[sender]), data) for data in datagrams]
    return sent


@every_kind
@every_family
def test_whatever_is_sent_comes_out_in_order_and_goes_on(features: Any, family: int) -> None:
    """Runs taken apart are the datagrams that were sent; through an outbox they are that again, with another head."""
    with Post(features, family) as post:
        senders, receiver = [post.plain() for _ in range(3)], post.plain()
        # A plan has up to 96 datagrams, which the kernel counts as 2 to 4 KiB each: a buffer of the default size drops.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

        @given(bursts, st.sampled_from([0, 1, 10, 11, 12, 22, 262]), st.binary(max_size=30) | st.just(b"n" * MAX_HEAD))
        def check(plan: list[Any], split: int, head: bytes) -> None:
            sent = send_all(post, senders, plan)
            post.settle()
            found: list[Received] = []
            octets = 0
            post.outbox.begin(post.sock, MAX_DATAGRAM)
            while runs := post.inbox.receive(post.sock, split):
                found += unroll(post.inbox, runs)
                for run in runs:
                    post.outbox.add(run, name_of(receiver), head)
                post.outbox.send()
            octets = sum(len(payload) for _, _, payload in found)
            assert found == [(name, data[:split], data[split:]) for name, data in sent]
            assert post.drain(receiver) == [head + data[split:] for _, data in sent]
            assert counts(post) == (len(sent), octets, 0)

        check()


# --- runs ---


@in_batches
@every_family
def test_equal_datagrams_are_one_run(features: Any, family: int) -> None:
    """Of one sender, with one head and one length; the last may be shorter, but has a payload."""
    with Post(features, family) as post:
        sender = post.plain()
        for last in (30, 11):
            for size in (30, 30, 30, last):
                sender.sendto(bytes(10) + os.urandom(size - 10), post.address)
            (run,) = post.take(10)
            assert (run.name, run.head) == (name_of(sender), bytes(10))
            assert (run.stride, run.count, run.size, run.last) == (SLOT, 4, 20, last - 10)


@in_batches
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((30, 31), [(1, 30, 30), (1, 31, 31)]),
        ((30, 30, 20, 20), [(3, 30, 20), (1, 20, 20)]),
        ((30, 20, 30), [(2, 30, 20), (1, 30, 30)]),
        ((0, 0), [(1, 0, 0), (1, 0, 0)]),
        ((30, 0, 30), [(1, 30, 30), (1, 0, 0), (1, 30, 30)]),
        ((1,) * BATCH, [(BATCH, 1, 1)]),
    ],
)
def test_another_length_begins_another_run(features: Any, sizes: tuple[int, ...], expected: Any) -> None:
    """A longer one, one behind a shorter one; and empty payloads never join, as GSO cannot send them."""
    with Post(features) as post:
        sender = post.plain()
        for size in sizes:
            sender.sendto(bytes(size), post.address)
        assert shape(post.take()) == expected
        for size in sizes:
            sender.sendto(bytes(10 + size), post.address)
        assert shape(post.take(10)) == expected


@in_batches
def test_another_sender_or_head_begins_another_run(features: Any) -> None:
    """Both must be the same, octet for octet."""
    with Post(features) as post:
        one, two = post.plain(), post.plain()
        for sender, data in ((one, b"a1"), (one, b"a2"), (two, b"a3"), (two, b"b4"), (one, b"b5")):
            sender.sendto(data, post.address)
        assert [(run.name, run.head, run.count) for run in post.take(1)] == [
            (name_of(one), b"a", 2),
            (name_of(two), b"a", 1),
            (name_of(two), b"b", 1),
            (name_of(one), b"b", 1),
        ]
        for data in (b"a1", b"a2", b"b3"):
            one.sendto(data, post.address)
        assert [(run.head, run.count) for run in post.take(1)] == [(b"a", 2), (b"b", 1)]


@in_batches
def test_what_ends_within_its_head_is_alone(features: Any) -> None:
    """A datagram shorter than the split is its head, no matter what was in that memory before."""
    with Post(features) as post:
        sender = post.plain()
        for _ in range(3):
            for size in (10, 9, 9, 3, 0):
                sender.sendto(bytes(size), post.address)
            assert [run.head for run in post.take(10)] == [bytes(size) for size in (10, 9, 9, 3, 0)]


# --- what the kernel has coalesced ---


@pytest.mark.parametrize("last", [20, 7, 1])
@pytest.mark.parametrize("split", [0, 5])
def test_coalesced_datagrams_are_one_run(split: int, last: int) -> None:
    """One message, one run, whose payloads lie a segment apart in one slot."""
    with Post(ALL) as post:
        sender = post.plain()
        datagrams = [b"front" + os.urandom(15) for _ in range(4)] + [(b"front" + os.urandom(15))[: split + last]]
        send_burst(sender, post.address, b"".join(datagrams), 20)
        if split + last > 20:
            datagrams[-1:] = [datagrams[-1][:20]]
        runs = post.take(split)
        assert post.inbox.count == 1
        assert shape(runs) == [(5, 20 - split, len(datagrams[-1]) - split)]
        assert runs[0].stride == 20
        assert unroll(post.inbox, runs) == [(name_of(sender), data[:split], data[split:]) for data in datagrams]


@pytest.mark.parametrize("size", [1, 4, 9, 10, 11])
@pytest.mark.parametrize("slot", [0, 3])
def test_coalesced_datagrams_may_end_within_their_heads(size: int, slot: int) -> None:
    """Each is what was sent and nothing else: heads of later ones lie partly where the first head is."""
    with Post(ALL) as post:
        sender = post.plain()
        for _ in range(BATCH):
            sender.sendto(b"S" * MAX_DATAGRAM, post.address)
        post.take_all()
        datagrams = [os.urandom(size) for _ in range(30)] + [b"x"]
        for _ in range(slot):
            sender.sendto(b"another", post.address)
        send_burst(sender, post.address, b"".join(datagrams), size)
        found = unroll(post.inbox, post.take(10))
        assert post.inbox.count == slot + 1
        assert found[slot:] == [(name_of(sender), data[:10], data[10:]) for data in datagrams]


def test_a_coalesced_datagram_without_payload_is_no_end_of_a_run() -> None:
    """GSO cannot send it."""
    with Post(ALL) as post:
        send_burst(post.plain(), post.address, b"head....head....head", 8)
        assert shape(post.take(4)) == [(1, 4, 4), (1, 4, 4), (1, 0, 0)]


def test_heads_of_coalesced_datagrams_may_differ() -> None:
    """The kernel joins what has one length and one sender, whatever the head; they are runs of one, also to send."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        datagrams = [b"aaa" + os.urandom(5), b"aab" + os.urandom(5), b"aaa" + os.urandom(2)]
        send_burst(sender, post.address, b"".join(datagrams), 8)
        runs = post.take(3)
        assert post.inbox.count == 1
        assert unroll(post.inbox, runs) == [(name_of(sender), data[:3], data[3:]) for data in datagrams]
        passed_on(post, runs, receiver)
        assert post.drain(receiver) == [data[3:] for data in datagrams]


def test_coalesced_and_single_ones_mix() -> None:
    """In one batch, also behind one that had none: each message's own length of segments is used."""
    with Post(ALL) as post:
        sender = post.plain()
        for round_ in range(3):
            sender.sendto(b"single", post.address)
            send_burst(sender, post.address, b"abcdefgh", 3 + round_)
            sender.sendto(b"another", post.address)
            send_burst(sender, post.address, b"abcdefgh", 2)
            parts = [b"abcdefgh"[at : at + 3 + round_] for at in range(0, 8, 3 + round_)]
            found = [payload for _, _, payload in unroll(post.inbox, post.take())]
            assert post.inbox.count == 4
            assert found == [b"single", *parts, b"another", b"ab", b"cd", b"ef", b"gh"]
            sender.sendto(b"alone", post.address)
            assert [payload for _, _, payload in unroll(post.inbox, post.take())] == [b"alone"]


# --- memory ---


def test_no_slot_is_left() -> None:
    """The longest datagrams, coalesced or not, stay between their slot and the next."""
    with Post(ALL, socket.AF_INET6) as post:
        sender = post.plain()
        inbox = post.inbox
        assert isinstance(inbox, BatchInbox)
        memory = inbox.memory
        for data, segment in ((b"x" * (MAX_DATAGRAM + 20), MAX_DATAGRAM + 20), (b"y" * 65000, 1300)):
            memory.view[:] = b"." * len(memory.view)
            send_burst(sender, post.address, data, segment)
            (run,) = post.take()
            assert memory.copy(run.at, len(data)) == data
            assert memory.view[len(data) :].tobytes() == b"." * (len(memory.view) - len(data))


def test_memory_is_not_shared_with_a_child() -> None:
    """Two processes that came of one by fork(2) do not receive into each other's slots."""
    memory = Memory()
    memory.view[:4] = b"ours"
    pid = os.fork()
    if not pid:
        memory.view[:4] = b"mine"
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert memory.copy(memory.base, 4) == b"ours"


def test_what_an_outbox_holds_is_read_when_it_is_sent() -> None:
    """Runs of one inbox and heads of any length, more than there are vectors for, are all sent from where they lie."""
    with Post(SINGLE) as post:
        sender, receiver = post.plain(), post.plain()
        for index in range(BATCH):
            sender.sendto(bytes([index]) * (BATCH - index), post.address)
            sender.sendto(bytes([index]) * (BATCH - index), post.address)
        expected = []
        post.settle()
        while runs := post.inbox.receive(post.sock, 0):
            post.outbox.begin(post.sock, MAX_DATAGRAM)
            for index, run in enumerate(runs):
                head = bytes([255 - index]) * (index * 8)
                post.outbox.add(run, name_of(receiver), head)
                expected += [head + payload for _, _, payload in unroll(post.inbox, [run])]
            post.outbox.send()
        assert post.drain(receiver) == expected
        assert len(expected) == 2 * BATCH


def test_what_was_never_sent_is_forgotten() -> None:
    """After an error between add and send, the next to begin does not send it for another."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        sender.sendto(b"ours", post.address)
        post.outbox.begin(post.sock, MAX_DATAGRAM)
        for run in post.take():
            post.outbox.add(run, name_of(receiver), b"")
        sender.sendto(b"theirs", post.address)
        passed_on(post, post.take(), receiver)
        assert post.drain(receiver) == [b"theirs"]
        assert counts(post) == (1, 6, 0)


# --- receiving against errors ---


@in_batches
@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES])
def test_an_error_that_waits_hides_nothing(features: Any, number: int) -> None:
    """Whatever a connected socket was told about an earlier send; the second one ends it: epoll has told of both."""
    with Post(features) as post:
        inbox = post.inbox
        assert isinstance(inbox, BatchInbox)
        real, errors = inbox.recvmmsg, [number]

        def recvmmsg(*args: Any) -> int:
            if errors:
                ctypes.set_errno(errors.pop())
                return -1
            return int(real(*args))

        inbox.recvmmsg = recvmmsg  # type: ignore[assignment]
        sender = post.plain()
        sender.sendto(b"data", post.address)
        assert unroll(inbox, post.take()) == [(name_of(sender), b"", b"data")]
        errors += [number, number]
        sender.sendto(b"data", post.address)
        assert post.take() == []
        assert inbox.count == 0
        assert unroll(inbox, post.take()) == [(name_of(sender), b"", b"data")]


# --- sending with GSO ---


@every_family
@pytest.mark.parametrize("head", [b"", b"head"])
@pytest.mark.parametrize("coalesced", [True, False])
def test_a_run_is_one_message(family: int, head: bytes, coalesced: bool) -> None:
    """One GSO send and one call for what came as one run."""
    with Post(ALL, family) as post:
        sender, receiver, watched = post.plain(), post.plain(), Watched(post)
        datagrams = [os.urandom(100) for _ in range(10)] + [b"last"]
        if coalesced:
            send_burst(sender, post.address, b"".join(datagrams), 100)
        else:
            for data in datagrams:
                sender.sendto(data, post.address)
        passed_on(post, post.take(), receiver, head)
        sizes = [len(head) + 100] * 10 + [len(head) + 4]
        assert watched.messages == [Message(sizes, True)]
        assert watched.calls == 1
        assert post.drain(receiver) == [head + data for data in datagrams]
        assert counts(post) == (11, 1004, 0)


@pytest.mark.parametrize("head", [b"", b"h" * 22])
@pytest.mark.parametrize("size", [1, 1000, 1472, 32400, 32500, 65001, MAX_DATAGRAM - 22])
def test_no_message_is_longer_than_gso_takes(size: int, head: bytes) -> None:
    """At most 64 datagrams and 65,000 octets each, heads included; a datagram that is longer by itself goes alone."""
    with Post(ALL) as post:
        sender, receiver, watched = post.plain(), post.plain(), Watched(post)
        number = 60 if size < 2000 else 3
        for _ in range(number):
            sender.sendto(b"x" * size, post.address)
        passed_on(post, post.take(), receiver, head)
        for message in watched.messages:
            assert message.gso == (len(message.sizes) > 1)
            assert 0 < len(message.sizes) <= MAX_SEGMENTS
            assert sum(message.sizes) <= MAX_GSO or len(message.sizes) == 1
        most = max(1, min(MAX_SEGMENTS, MAX_GSO // (size + len(head))))
        assert len(watched.messages) == -(-number // most)
        assert post.drain(receiver) == [head + b"x" * size] * number
        assert counts(post) == (number, size * number, 0)


def test_more_datagrams_than_gso_takes_are_several_messages() -> None:
    """What a newer kernel coalesces may be more than an older one sends."""
    with Post(ALL) as post:
        sender, receiver, watched = post.plain(), post.plain(), Watched(post)
        passed_on(post, [in_pieces(post, sender, 129)], receiver, b"head")
        assert [(len(message.sizes), message.gso) for message in watched.messages] == [
            (64, True),
            (64, True),
            (1, False),
        ]
        assert post.drain(receiver) == [b"headx"] * 129
        assert counts(post) == (129, 129, 0)


@pytest.mark.parametrize("head", [b"", b"head"])
def test_more_messages_or_vectors_than_there_are_go_in_several_calls(head: bytes) -> None:
    """64 messages, or 1024 entries of their vectors: then what is there is sent, and the rest follows in order."""
    with Post(ALL) as post:
        sender, receiver, watched = post.plain(), post.plain(), Watched(post)
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)  # it has no room for so many one by one
        numbers = [60] * 17 + [5, 60]  # without a head the last of the 5 would be entry 1025
        for index, number in enumerate(numbers):
            send_burst(sender, post.address, bytes([index]) * 10 * number, 10)
        runs = post.take()
        assert len(runs) == len(numbers)
        passed_on(post, runs, receiver, head)
        assert watched.calls == (3 if head else 2)
        assert post.drain(receiver) == [(head + bytes([index]) * 10) * number for index, number in enumerate(numbers)]
        assert counts(post) == (sum(numbers), 10 * sum(numbers), 0)
        watched.calls = 0
        passed_on(post, [in_pieces(post, sender, 100)], receiver, head, limit=0)
        assert watched.calls == 2
        assert b"".join(post.drain(receiver)) == (head + b"x") * 100


def test_over_the_limit_there_is_no_gso() -> None:
    """``limit`` counts the head too."""
    with Post(ALL) as post:
        sender, receiver, watched = post.plain(), post.plain(), Watched(post)
        for limit, gso in ((104, True), (103, False)):
            send_burst(sender, post.address, b"x" * 200, 100)
            passed_on(post, post.take(), receiver, b"head", limit)
            assert [message.gso for message in watched.messages] == ([True] if gso else [False, False])
            assert post.outbox.limit == limit
            assert post.drain(receiver) == [b"head" + b"x" * 100] * 2
            watched.messages.clear()


@every_family
@pytest.mark.parametrize("head", [b"", b"head"])
@pytest.mark.parametrize(
    ("number", "limit"),
    [(errno.EINVAL, 99), (errno.EMSGSIZE, 99), (errno.EIO, 0), (errno.EOPNOTSUPP, 0)],
    ids=errno.errorcode.get,
)
def test_what_gso_refuses_goes_singly(family: int, number: int, limit: int, head: bytes) -> None:
    """In its place among the others; and the limit says for which lengths it need not be tried again."""
    with Post(ALL, family) as post:
        sender, receiver = post.plain(), post.plain()
        size = 100 - len(head)
        watched = Watched(post, lambda message: number if message.gso and message.sizes[0] >= 100 else 0)
        before, after = [b"before" * 2, b"before"], [b"after"]
        datagrams = [os.urandom(size) for _ in range(5)] + [b"last"]
        for burst, segment in ((before, 12), (datagrams, size), (after, 5)):
            send_burst(sender, post.address, b"".join(burst), segment)
        passed_on(post, post.take(), receiver, head)
        assert post.drain(receiver) == [head + data for data in before + datagrams + after]
        assert counts(post) == (9, 12 + 6 + 5 * size + 4 + 5, 0)
        assert post.outbox.limit == limit
        watched.messages.clear()
        send_burst(sender, post.address, b"".join(datagrams), size)
        passed_on(post, post.take(), receiver, head, post.outbox.limit)
        assert not any(message.gso for message in watched.messages)
        assert post.drain(receiver) == [head + data for data in datagrams]
        assert post.outbox.limit == limit


def test_the_limit_never_rises() -> None:
    """Of several lengths that GSO refused, the shortest counts."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        Watched(post, lambda message: errno.EINVAL if message.gso else 0)
        for size in (200, 100, 300):
            send_burst(sender, post.address, b"x" * 2 * size, size)
        passed_on(post, post.take(), receiver)
        assert [len(data) for data in post.drain(receiver)] == [200, 200, 100, 100, 300, 300]
        assert post.outbox.limit == 99


def test_only_a_success_lowers_the_limit() -> None:
    """Where the datagrams do not go singly either, GSO was not to blame; each is counted."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        Watched(post, lambda message: errno.EINVAL if message.sizes[0] == 100 else 0)
        send_burst(sender, post.address, b"x" * 300, 100)
        sender.sendto(b"after", post.address)
        passed_on(post, post.take(), receiver)
        assert post.drain(receiver) == [b"after"]
        assert counts(post) == (1, 5, 3)
        assert post.outbox.limit == MAX_DATAGRAM


def test_some_of_them_may_fail_singly() -> None:
    """Counts are of each datagram, the shorter last one included."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        failing = iter([errno.EIO, errno.ENOBUFS, 0, errno.EAGAIN, 0])
        Watched(post, lambda message: next(failing))
        send_burst(sender, post.address, b"aaaabbbbccccd", 4)
        passed_on(post, post.take(), receiver)
        assert post.drain(receiver) == [b"bbbb", b"d"]
        assert counts(post) == (2, 5, 2)
        assert post.outbox.limit == 0


def test_a_run_that_is_refused_for_good_is_counted_whole() -> None:
    """Its datagrams would not go singly, so that they are not tried."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        watched = Watched(post, lambda message: errno.EPERM if message.gso else 0)
        send_burst(sender, post.address, b"x" * 300, 100)
        sender.sendto(b"after", post.address)
        passed_on(post, post.take(), receiver)
        assert len(watched.messages) == 2
        assert post.drain(receiver) == [b"after"]
        assert counts(post) == (1, 5, 3)


@every_family
def test_the_kernel_refuses_gso_without_checksums(family: int) -> None:
    """EINVAL as it comes from the kernel: everything goes out singly."""
    with Post(ALL, family) as post:
        sender, receiver = post.plain(), post.plain()
        level, option = (socket.SOL_SOCKET, 11) if family == socket.AF_INET else (socket.IPPROTO_UDP, 101)
        post.sock.setsockopt(level, option, 1)  # SO_NO_CHECK, UDP_NO_CHECK6_TX
        receiver.setsockopt(socket.IPPROTO_UDP, 102, 1)  # UDP_NO_CHECK6_RX
        send_burst(sender, post.address, b"x" * 300, 100)
        passed_on(post, post.take(), receiver)
        assert post.drain(receiver) == [b"x" * 100] * 3
        assert counts(post) == (3, 300, 0)
        assert post.outbox.limit == 99


def in_a_narrow_network(main: Callable[[], None]) -> None:
    """Run in a thread with a network of its own, whose loopback takes 1500 octets; it is gone with the thread."""
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "unshare")
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                fcntl.ioctl(sock, 0x8922, struct.pack("16si20x", b"lo", 1500))  # SIOCSIFMTU
                fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", 1))  # SIOCSIFFLAGS: IFF_UP
            main()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    for error in errors:
        raise error


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
@every_family
def test_datagrams_over_the_mtu_are_fragmented_not_lost(family: int) -> None:
    """GSO does not fragment: the kernel refuses it over the path's MTU, and such datagrams go singly from then on."""

    def main() -> None:
        with Post(ALL, family) as post:
            sender, receiver, watched = post.plain(), post.plain(), Watched(post)
            for _ in range(2):
                for _ in range(3):
                    sender.sendto(b"x" * 2000, post.address)
                passed_on(post, post.take(), receiver, limit=post.outbox.limit)
                assert post.drain(receiver) == [b"x" * 2000] * 3
                assert counts(post) == (3, 6000, 0)
                assert post.outbox.limit == 1999
            assert [message.gso for message in watched.messages] == [True, *[False] * 6]
            send_burst(sender, post.address, b"y" * 2400, 1200)
            passed_on(post, post.take(), receiver, limit=post.outbox.limit)
            assert watched.messages[-1] == Message([1200, 1200], True)
            assert post.drain(receiver) == [b"y" * 1200] * 2

    in_a_narrow_network(main)


# --- full send buffers ---


@pytest.fixture
def full() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Joined unix sockets, whose send buffer, unlike that of UDP over loopback, fills up: sender, receiver."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        yield near, far


def test_a_full_buffer_drops_the_rest(full: tuple[socket.socket, socket.socket]) -> None:
    """As a router does: nobody waits, what did not fit is counted, and later there is room again."""
    near, far = full
    with Post(SINGLE) as post:
        sender = post.plain()
        for _ in range(2):
            for index in range(BATCH):
                sender.sendto(bytes([index]) * 1000, post.address)
            post.outbox.begin(near, MAX_DATAGRAM)
            for run in post.take():
                post.outbox.add(run, b"", b"head")
            post.outbox.send()
            found = []
            while select.select([far], [], [], 0)[0]:
                found.append(far.recv(2000))
            assert 0 < len(found) < BATCH
            assert found == [b"head" + bytes([index]) * 1000 for index in range(len(found))]
            assert counts(post) == (len(found), 1000 * len(found), BATCH - len(found))


def test_a_full_buffer_drops_runs_whole() -> None:
    """All datagrams of the messages that were not taken are counted, and what comes next is tried again."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        results = iter([0, errno.EAGAIN, errno.EAGAIN])
        Watched(post, lambda message: next(results))
        for octet in (b"a", b"b", b"c"):
            send_burst(sender, post.address, octet * 30, 10)
        runs = post.take()
        post.outbox.begin(post.sock, MAX_DATAGRAM)
        for run in runs:
            post.outbox.add(run, name_of(receiver), b"")
        post.outbox.send()
        assert counts(post) == (3, 30, 6)
        results = iter([0])
        post.outbox.add(runs[2], name_of(receiver), b"")
        post.outbox.send()
        assert counts(post) == (6, 60, 6)
        assert post.drain(receiver) == [b"a" * 10] * 3 + [b"c" * 10] * 3


def test_a_connected_socket_needs_no_address() -> None:
    """An empty sockaddr is none, also behind a longer one."""
    with Post(ALL) as post:
        sender, receiver = post.plain(), post.plain()
        post.sock.connect(sender.getsockname())
        for address in (name_of(receiver), b""):
            sender.sendto(b"data", post.address)
            wait_for(post.sock)
            post.outbox.begin(post.sock, MAX_DATAGRAM)
            for run in post.take():
                post.outbox.add(run, address, b"")
            post.outbox.send()
            assert counts(post) == (1, 4, 0)
        assert post.drain(receiver) == [b"data"]
        assert post.drain(sender) == [b"data"]


@pytest.mark.parametrize("families", [list(HOSTS), list(HOSTS)[::-1]], ids=["IPv4 first", "IPv6 first"])
def test_an_outbox_serves_both_families(families: list[socket.AddressFamily]) -> None:
    """Nothing of a longer address is left behind a shorter one."""
    with Post(ALL, families[0]) as first, Post(ALL, families[1]) as second:
        second.io, second.inbox, second.outbox = first.io, first.io.inboxes[families[1]], first.outbox
        for post in (first, second, first):
            sender, receiver = post.plain(), post.plain()
            sender.sendto(b"data", post.address)
            passed_on(post, post.take(), receiver)
            assert post.drain(receiver) == [b"data"]
            assert counts(post) == (1, 4, 0)
