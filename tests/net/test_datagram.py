"""What an inbox and an outbox promise, on every kind of them; sockets, and what is known of the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import sys
import threading
from typing import Any

import pytest

from mailboxes import FEATURES, HOSTS, Post, name_of, send_burst, unroll, wait_for
from tabi.net import datagram
from tabi.net.batch import BATCH
from tabi.net.datagram import PLAIN, SINGLE, DatagramIo, Features, get_datagram_io, open_socket, overflow, probe
from tabi.net.sockaddr import encode_sockaddr
from tabi.wire.address import Address, parse_host
from tabi.wire.datagram import MAX_DATAGRAM

SIZES = (0, 1, 1472, 9000, MAX_DATAGRAM)

every_kind = pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
every_family = pytest.mark.parametrize("family", HOSTS, ids=["IPv4", "IPv6"])


class DeafSocket:
    """Stands for a socket: `recvfrom` and `sendmsg` do what a test lists."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)

    def recvfrom(self, size: int) -> Any:
        """The next of the results, or nothing waits."""
        result = self.results.pop(0) if self.results else BlockingIOError(errno.EAGAIN, "")
        if isinstance(result, OSError):
            raise result
        return result

    def sendmsg(self, *args: Any) -> int:
        """The same."""
        raise self.results.pop(0)


# --- inbox ---


@every_kind
@every_family
def test_datagrams_of_every_length_arrive_whole(features: Features, family: int) -> None:
    """From none to as many octets as IPv4 carries, with the name of their sender, cut where the split is."""
    with Post(features, family) as post:
        sender = post.plain()
        for split in (0, 1, 10, 262):
            for size in SIZES:
                data = os.urandom(size)
                sender.sendto(data, post.address)
                runs = post.take(split)
                assert unroll(post.inbox, runs) == [(name_of(sender), data[:split], data[split:])]
                assert post.inbox.count == 1


@every_kind
@every_family
def test_nothing_is_received_where_nothing_waits(features: Features, family: int) -> None:
    """It does not block, and says so."""
    with Post(features, family) as post:
        assert post.take() == []
        assert post.inbox.count == 0


@every_kind
def test_one_call_takes_a_batch(features: Features) -> None:
    """``count`` tells that there may be more: exactly BATCH are taken, in order, and then the rest."""
    with Post(features) as post:
        sender = post.plain()
        sent = [b"%d" % index for index in range(BATCH + 7)]
        for data in sent:
            sender.sendto(data, post.address)
        first = unroll(post.inbox, post.take())
        assert post.inbox.count == len(first) == BATCH
        rest = unroll(post.inbox, post.take())
        assert post.inbox.count == len(rest) == 7
        assert [payload for _, _, payload in first + rest] == sent


@every_kind
def test_the_split_may_change_between_calls(features: Features) -> None:
    """Sockets with one inbox have a split each; one that is longer than the datagram leaves an empty payload."""
    with Post(features) as post:
        sender = post.plain()
        for split in (10, 0, 22, 262, 3, 10):
            for size in (0, 2, 10, 30):
                sender.sendto(bytes(range(size)), post.address)
            found = [(head, payload) for _, head, payload in post.take_all(split)]
            assert found == [(bytes(range(size))[:split], bytes(range(size))[split:]) for size in (0, 2, 10, 30)]


@every_kind
def test_nothing_of_an_earlier_datagram_is_seen_in_a_later_one(features: Features) -> None:
    """Neither its head nor its payload nor its sender, however much shorter the later one is."""
    with Post(features) as post:
        secret, other = post.plain(), post.plain()
        for size in (0, 1, 5, 9, 10, 11, 20):
            for _ in range(BATCH):
                secret.sendto(b"S" * 300, post.address)
            assert len(post.take_all(10)) == BATCH
            for _ in range(BATCH):
                other.sendto(b"o" * size, post.address)
            assert post.take_all(10) == [(name_of(other), b"o" * min(size, 10), b"o" * max(0, size - 10))] * BATCH


@every_kind
@every_family
def test_a_refused_datagram_hides_nothing(features: Features, family: int) -> None:
    """A connected socket whose peer's port is closed has an error pending; what came from there is received."""
    with Post(features, family) as post:
        peer = socket.socket(family, socket.SOCK_DGRAM)
        with peer:
            peer.bind((HOSTS[socket.AddressFamily(family)], 0))
            post.sock.connect(peer.getsockname())
            for data in (b"one", b"two"):
                peer.sendto(data, post.address)
            name = name_of(peer)
        post.sock.send(b"anyone?")
        wait_for(post.sock, select.POLLERR)
        assert post.take_all() == [(name, b"", b"one"), (name, b"", b"two")]
        post.sock.send(b"anyone?")
        wait_for(post.sock, select.POLLERR)
        assert post.take() == []
        assert post.io.receive_whole(post.sock, family) == []


@every_kind
def test_receive_whole_gives_payloads(features: Features) -> None:
    """What was coalesced is taken apart."""
    with Post(features) as post:
        sender = post.plain()
        sender.sendto(b"first", post.address)
        send_burst(sender, post.address, b"abcabcab", 3)
        post.settle()
        assert post.io.receive_whole(post.sock, post.family) == [b"first", b"abc", b"abc", b"ab"]


def test_without_batches_any_error_is_passed_over() -> None:
    """And the interface of a link-local sender is kept: an answer needs it."""
    name = encode_sockaddr(Address(parse_host("fe80::1%7"), 53))
    sock = DeafSocket(OSError(errno.EHOSTUNREACH, ""), (b"data", ("fe80::1", 53, 0, 7)))
    inbox = DatagramIo(PLAIN).inboxes[socket.AF_INET6]
    assert unroll(inbox, inbox.receive(sock, 1)) == [(name, b"d", b"ata")]  # type: ignore[arg-type]
    assert inbox.count == 1


# --- outbox ---


@every_kind
@every_family
@pytest.mark.parametrize("head", [b"", b"h" * 10, b"h" * 262])
def test_datagrams_of_every_length_are_passed_on(features: Features, family: int, head: bytes) -> None:
    """With the head in front, as far as the system takes them; the counts are of datagrams and octets of payload."""
    with Post(features, family) as post:
        sender, receiver = post.plain(), post.plain()
        for size in SIZES:
            data = os.urandom(size)
            sender.sendto(data, post.address)
            post.outbox.begin(post.sock, MAX_DATAGRAM)
            for run in post.take():
                post.outbox.add(run, name_of(receiver), head)
            post.outbox.send()
            fits = size + len(head) <= (MAX_DATAGRAM if family == socket.AF_INET else MAX_DATAGRAM + 20)
            assert post.drain(receiver) == [head + data] * fits
            assert (post.outbox.sent, post.outbox.octets, post.outbox.unsent) == (fits, size * fits, not fits)
            assert post.outbox.limit == MAX_DATAGRAM


@every_kind
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("split", [0, 3])
def test_runs_for_several_addresses_go_out_in_order(features: Features, coalesced: bool, split: int) -> None:
    """Each to its address, with its head, in the order in which they were received."""
    with Post(features) as post:
        senders = [post.plain() for _ in range(3)]
        receivers = {name_of(sender): post.plain() for sender in senders}
        heads = {name_of(sender): b"head" * index for index, sender in enumerate(senders)}
        expected: dict[bytes, list[bytes]] = {name: [] for name in receivers}
        sent = [b"abc" + b"%d" % index * 5 for index in range(10)]
        for round_ in range(3):
            for sender in senders:
                name = name_of(sender)
                if coalesced:
                    send_burst(sender, post.address, b"".join(sent) + b"abc%d" % round_, len(sent[0]))
                else:
                    for data in (*sent, b"abc%d" % round_):
                        sender.sendto(data, post.address)
                expected[name] += [heads[name] + data[split:] for data in (*sent, b"abc%d" % round_)]
        post.settle()
        post.outbox.begin(post.sock, MAX_DATAGRAM)
        total = 0
        while runs := post.inbox.receive(post.sock, split):
            for run in runs:
                post.outbox.add(run, name_of(receivers[run.name]), heads[run.name])
            post.outbox.send()
            total += sum(run.count for run in runs)
        assert {name: post.drain(receiver) for name, receiver in receivers.items()} == expected
        assert (post.outbox.sent, post.outbox.unsent) == (total, 0) == (99, 0)
        assert post.outbox.octets == sum(
            len(data) - len(heads[name]) for name, datagrams in expected.items() for data in datagrams
        )


@every_kind
@pytest.mark.parametrize("refused", ["port 0", "broadcast", "too long"])
def test_what_the_system_refuses_is_counted_and_stops_nothing(features: Features, refused: str) -> None:
    """Before it and behind it the others go out."""
    with Post(features) as post:
        sender, receiver = post.plain(), post.plain()
        bad = {
            "port 0": encode_sockaddr(Address(parse_host("127.0.0.1"), 0)),
            "broadcast": encode_sockaddr(Address(parse_host("127.255.255.255"), receiver.getsockname()[1])),
            "too long": name_of(receiver),
        }[refused]
        long = b"h" * 262 if refused == "too long" else b""
        size = MAX_DATAGRAM - 100 if long else 200
        for data in (b"first", bytes(size), bytes(size)):
            sender.sendto(data, post.address)
        post.plain().sendto(b"last", post.address)
        post.outbox.begin(post.sock, MAX_DATAGRAM)
        for run in post.take():
            if run.size == size:
                post.outbox.add(run, bad, long)
            else:
                post.outbox.add(run, name_of(receiver), b"")
        post.outbox.send()
        assert post.drain(receiver) == [b"first", b"last"]
        assert (post.outbox.sent, post.outbox.octets, post.outbox.unsent) == (2, 9, 2)
        assert post.outbox.limit == MAX_DATAGRAM


@every_kind
def test_begin_starts_again(features: Features) -> None:
    """Counts and limit are those of what follows, and an empty send is none."""
    with Post(features) as post:
        sender, receiver = post.plain(), post.plain()
        sender.sendto(b"data", post.address)
        post.outbox.begin(post.sock, 1000)
        for run in post.take():
            post.outbox.add(run, name_of(receiver), b"")
        post.outbox.send()
        assert (post.outbox.sent, post.outbox.octets, post.outbox.unsent, post.outbox.limit) == (1, 4, 0, 1000)
        post.outbox.begin(post.sock, 2000)
        post.outbox.send()
        assert (post.outbox.sent, post.outbox.octets, post.outbox.unsent, post.outbox.limit) == (0, 0, 0, 2000)
        assert post.drain(receiver) == [b"data"]


def test_without_batches_a_full_buffer_is_counted() -> None:
    """A datagram that there is no room for is not waited for."""
    with Post(PLAIN) as post:
        post.plain().sendto(b"data", post.address)
        (run,) = post.take()
        post.outbox.begin(DeafSocket(BlockingIOError(errno.EAGAIN, "")), MAX_DATAGRAM)  # type: ignore[arg-type]
        post.outbox.add(run, run.name, b"")
        assert (post.outbox.sent, post.outbox.octets, post.outbox.unsent) == (0, 0, 1)


# --- sockets ---


@every_kind
@every_family
def test_sockets_have_room_and_do_not_block(features: Features, family: int) -> None:
    """Both buffers have at least what the system allows, nothing is inherited, and IPv6 leaves IPv4's port free."""
    with Post(features, family) as post:
        sock = post.sock
        for option, limit, size in (
            (socket.SO_RCVBUF, "rmem_max", datagram.RECEIVE_BUFFER),
            (socket.SO_SNDBUF, "wmem_max", datagram.SEND_BUFFER),
        ):
            with open(f"/proc/sys/net/core/{limit}") as file:
                allowed = int(file.read())
            assert sock.getsockopt(socket.SOL_SOCKET, option) >= 2 * min(size, allowed)  # socket(7): it doubles it
        assert not os.get_blocking(sock.fileno())
        assert not os.get_inheritable(sock.fileno())
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        if family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        assert sock.getsockopt(socket.IPPROTO_UDP, datagram.UDP_GRO) == features.coalesced


def test_without_the_privilege_buffers_are_as_the_system_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """SO_RCVBUFFORCE is refused, SO_RCVBUF is not."""
    monkeypatch.setattr(datagram, "FORCED", dict.fromkeys(datagram.FORCED, 9999))
    sock = open_socket(socket.AF_INET, coalesced=False)
    with contextlib.closing(sock), socket.socket(type=socket.SOCK_DGRAM) as other:
        for option, size in (
            (socket.SO_RCVBUF, datagram.RECEIVE_BUFFER),
            (socket.SO_SNDBUF, datagram.SEND_BUFFER),
        ):
            other.setsockopt(socket.SOL_SOCKET, option, size)
            expected = other.getsockopt(socket.SOL_SOCKET, option)
            assert sock.getsockopt(socket.SOL_SOCKET, option) == expected


def test_a_socket_that_cannot_be_set_up_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the caller's, the descriptor nobody's."""
    monkeypatch.setattr(datagram, "UDP_GRO", 9999)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="not available"):
        open_socket(socket.AF_INET, coalesced=True)
    assert os.listdir("/proc/self/fd") == before


@every_kind
def test_overflow_is_what_the_receive_buffer_lost(features: Features) -> None:
    """Sent less received, counted by the kernel, whether or not anything came behind."""
    with Post(features) as post:
        sender = post.plain()
        assert overflow(post.sock) == 0
        post.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(50):
            sender.sendto(bytes(1000), post.address)
        received = len(post.take_all())
        assert 0 < received < 50
        assert overflow(post.sock) == 50 - received


def test_overflow_is_nothing_where_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older kernels do not know the option."""
    monkeypatch.setattr(datagram, "SO_MEMINFO", 9999)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        assert overflow(sock) == 0


# --- features ---


@pytest.mark.parametrize("forced", [None, ""])
def test_the_kernel_is_asked(forced: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option for itself: a kernel with GSO may lack GRO."""
    assert probe(forced) == Features(True, True, True)
    monkeypatch.setattr(datagram, "UDP_GRO", 9999)
    assert probe(forced) == Features(True, True, False)
    monkeypatch.setattr(datagram, "UDP_SEGMENT", 9999)
    assert probe(forced) == SINGLE


def test_features_can_be_forced() -> None:
    """As TABI_DATAGRAMS says; what it does not know is an error that names it."""
    assert probe("plain") == PLAIN
    assert probe("single") == SINGLE
    with pytest.raises(ValueError, match=r"TABI_DATAGRAMS is 'signle', expected plain or single"):
        probe("signle")


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("forced", [None, "single"])
@pytest.mark.parametrize("lack", ["Linux", "little-endian", "64-bit", "recvmmsg"])
def test_batches_need_a_known_layout(lack: str, forced: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Structures that are laid out differently are not written into by guess."""
    if lack == "Linux":
        monkeypatch.setattr(sys, "platform", "darwin")
    elif lack == "little-endian":
        monkeypatch.setattr(sys, "byteorder", "big")
    elif lack == "64-bit":
        monkeypatch.setattr(ctypes, "sizeof", lambda kind: 4)
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno=False: object())
    assert probe(forced) == PLAIN


def test_each_thread_has_its_own_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with the first call, for what the environment says then, and used again."""
    found: list[DatagramIo] = []

    def get() -> None:
        found.extend((get_datagram_io(), get_datagram_io()))

    for forced, features in (("plain", PLAIN), ("single", SINGLE)):
        monkeypatch.setenv("TABI_DATAGRAMS", forced)
        thread = threading.Thread(target=get)
        thread.start()
        thread.join()
        assert found[-1] is found[-2]
        assert found[-1].features == features
    assert len(set(map(id, found))) == 2


def test_people_are_told_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line at the start names what the kernel has, the buffers, and where they are smaller than was asked for."""
    assert DatagramIo(Features(True, True, True)).describe().startswith("batches of 64, GSO, GRO; receive buffers of ")
    assert DatagramIo(SINGLE).describe().startswith("batches of 64; receive buffers of ")
    monkeypatch.setattr(datagram, "RECEIVE_BUFFER", 1 << 16)
    assert DatagramIo(PLAIN).describe() == "a call for each datagram; receive buffers of 64 KiB"
    monkeypatch.setattr(datagram, "FORCED", {socket.SO_RCVBUF: 9999, socket.SO_SNDBUF: 9999})  # as for other users
    monkeypatch.setattr(datagram, "RECEIVE_BUFFER", 1 << 30)
    assert DatagramIo(PLAIN).describe().endswith(" KiB of 1048576 asked for, see net.core.rmem_max")


def test_what_bears_a_head_is_not_coalesced() -> None:
    """A client could have thousands of datagrams of its own making come as one message, to be taken apart here."""
    io = DatagramIo(Features(True, True, True))
    for headed in (False, True):
        with contextlib.closing(io.open_socket(socket.AF_INET, headed)) as sock:
            assert sock.getsockopt(socket.IPPROTO_UDP, datagram.UDP_GRO) != headed
