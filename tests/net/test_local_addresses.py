"""The addresses of this machine: those that it has, those that come and go, and messages that are rubbish."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from tabi.net import local_addresses
from tabi.net.kernel import has_netlink
from tabi.net.local_addresses import (
    ADDRESS,
    ATTRIBUTE,
    DONE,
    ERROR,
    HEADER,
    IFA_ADDRESS,
    IFA_LOCAL,
    IP,
    NEWADDR,
    READS,
    LocalAddressMonitor,
    address_of,
    ask,
    messages,
)
from tabi.net.reactor import get_reactor

LOOPBACK = ip_address("127.0.0.1")


def attribute(kind: int, octets: bytes) -> bytes:
    """An attribute of a message, padded to four octets."""
    data = ATTRIBUTE.pack(ATTRIBUTE.size + len(octets), kind) + octets
    return data + bytes(-len(data) % 4)


def body(family: int, *attributes: bytes) -> bytes:
    """A message about an address."""
    return ADDRESS.pack(family, 24, 0, 0, 2) + b"".join(attributes)


def test_it_has_loopback(run: Run) -> None:
    """All addresses are told at once."""

    async def main() -> None:
        told: list[frozenset[IP]] = []
        addresses = LocalAddressMonitor(get_reactor(), told.append)
        assert LOOPBACK in told[0]
        assert addresses.addresses == told[0]
        addresses.close()
        addresses.close()

    run(main)


def test_a_failure_on_the_way_leaves_nothing_open(run_once: Run) -> None:
    """Whoever is told may raise: the socket is closed then."""

    async def main() -> None:
        def fail(addresses: frozenset[IP]) -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            LocalAddressMonitor(get_reactor(), fail)

    run_once(main)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (body(socket.AF_INET, attribute(IFA_ADDRESS, b"\x0a\0\0\1")), ["10.0.0.1"]),
        # Point to point: the address of the other end, and our own
        (
            body(socket.AF_INET, attribute(IFA_ADDRESS, b"\x0a\0\0\2"), attribute(IFA_LOCAL, b"\x0a\0\0\1")),
            ["10.0.0.1"],
        ),
        (body(socket.AF_INET6, attribute(9, b"x"), attribute(IFA_ADDRESS, bytes(15) + b"\1")), ["::1"]),
        (body(socket.AF_INET, attribute(IFA_ADDRESS, bytes(16))), []),
        (body(socket.AF_INET), []),
        (body(socket.AF_UNIX, attribute(IFA_ADDRESS, bytes(4))), []),
        (body(socket.AF_INET, b"\0\0\0\0", attribute(IFA_ADDRESS, bytes(4))), []),
        (b"short", []),
    ],
)
def test_messages_are_read(data: bytes, expected: list[str]) -> None:
    """The local address of a link; what is of another length or family is none."""
    assert [str(found) for found in address_of(data)] == expected


@given(st.binary(max_size=200), st.sampled_from([socket.AF_INET, socket.AF_INET6, 0]))
def test_rubbish_is_no_trouble(data: bytes, family: int) -> None:
    """Nothing that comes raises, or goes on for ever."""
    for _, found in messages(data):
        list(address_of(found))
    list(address_of(bytes([family]) + data))
    message = HEADER.pack(HEADER.size + len(data), 20, 0, 0, 0) + data
    assert list(messages(message)) == [(20, data)]


NAMESPACE = """
import asyncio, subprocess, sys
from tabi.net.local_addresses import LocalAddressMonitor
from tabi.net.reactor import get_reactor, make_loop

def ip(*words):
    subprocess.run(["ip", *words], check=True)

async def main():
    told = asyncio.Queue()
    addresses = LocalAddressMonitor(get_reactor(), told.put_nowait)
    print(sorted(map(str, await told.get())))
    ip("address", "add", "192.0.2.7/24", "dev", "lo")
    print(sorted(map(str, await told.get())))
    ip("address", "del", "192.0.2.7/24", "dev", "lo")
    print(sorted(map(str, await told.get())))
    addresses.close()

with asyncio.Runner(loop_factory=make_loop) as runner:
    runner.run(asyncio.wait_for(main(), 20))
"""


def test_it_hears_of_addresses_that_come_and_go() -> None:
    """In a network of its own: what `ip address` does is told at once."""
    mapped = () if os.geteuid() == 0 else ("--map-root-user",)
    command = ["unshare", "--net", *mapped, sys.executable, "-c", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "['192.0.2.7']", "[]"]


class Netlink:
    """A socket whose reads a test gives."""

    def __init__(self, *reads: bytes | OSError) -> None:
        self.reads: Iterator[bytes | OSError] = iter(reads)

    def recv(self, size: int) -> bytes:
        found = next(self.reads, BlockingIOError())
        if isinstance(found, OSError):
            raise found
        return found


def test_changes_that_were_too_many_are_asked_for(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOBUFS says that some were lost: what there is now is asked for anyway."""

    async def main() -> None:
        told: list[frozenset[IP]] = []
        addresses = LocalAddressMonitor(get_reactor(), told.append)
        real = addresses.sock
        netlink: Any = Netlink(OSError(errno.ENOBUFS, "No buffer space available"), b"a change")
        addresses.sock = netlink
        monkeypatch.setattr(local_addresses, "ask", lambda: iter([LOOPBACK]))
        addresses.on_ready(0)
        assert told[1] == frozenset((LOOPBACK,))
        netlink = Netlink(*[b"x"] * 1000)
        addresses.sock = netlink
        addresses.on_ready(0)  # not for ever
        assert len(told) == 3
        addresses.sock = real
        addresses.close()

    run_once(main)


def test_what_cannot_be_asked_keeps_what_was_known(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A question that fails is said, and the guard goes by what it had."""

    async def main() -> None:
        told: list[frozenset[IP]] = []
        addresses = LocalAddressMonitor(get_reactor(), told.append)

        def fail() -> Iterator[IP]:
            raise TimeoutError("timed out")

        monkeypatch.setattr(local_addresses, "ask", fail)
        addresses.look()
        assert told[0] == told[1]
        assert "the addresses of this machine cannot be read, netlink(7): timed out" in caplog.text
        addresses.close()

    run_once(main)


def test_a_system_without_netlink_serves_all_the_same(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sandbox that forbids it: it is said, and loopback and the listeners' ports are known without."""
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        def refuse(*arguments: int) -> socket.socket:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        reactor = get_reactor()
        assert has_netlink()
        monkeypatch.setattr(socket, "socket", refuse)
        told: list[frozenset[IP]] = []
        addresses = LocalAddressMonitor(reactor, told.append)
        monkeypatch.undo()
        assert told == []
        assert "the addresses of this machine are not known" in caplog.text
        addresses.close()

    run_once(main)


def message(kind: int, data: bytes) -> bytes:
    """A message of rtnetlink, padded to four octets."""
    return HEADER.pack(HEADER.size + len(data), kind, 0, 1, 0) + data + bytes(-len(data) % 4)


def number(value: int) -> bytes:
    """An int as the kernel has it."""
    return value.to_bytes(4, sys.byteorder, signed=True)


def one(last: int) -> bytes:
    """A message about 10.0.0.``last``."""
    return message(NEWADDR, body(socket.AF_INET, attribute(IFA_LOCAL, bytes((10, 0, 0, last)))))


class Kernel:
    """A socket that answers the question for all addresses; the last answer comes for ever."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []
        self.reads = 0

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is held."""

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def send(self, data: bytes) -> None:
        self.asked.append(data)

    def recv(self, size: int) -> bytes:
        self.reads += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def answered(monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> Kernel:
    """Have the kernel give these answers."""
    kernel = Kernel(*answers)
    monkeypatch.setattr(socket, "socket", lambda *arguments: kernel)
    return kernel


def test_an_answer_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the message that ends it; other kinds in between are nothing."""
    answers = [one(1) + one(2), message(21, b"") + one(3), message(DONE, number(0)), one(4)]
    kernel = answered(monkeypatch, *answers)
    assert [str(found) for found in ask()] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert kernel.reads == 3
    assert len(kernel.asked) == 1


def test_an_answer_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes on for ever, also where nobody says that it is over."""
    kernel = answered(monkeypatch, one(1))
    assert len(list(ask())) == kernel.reads == READS


@pytest.mark.parametrize(
    "failure", [message(ERROR, number(-errno.EPERM) + bytes(16)), message(DONE, number(-errno.EPERM))]
)
def test_an_answer_that_is_an_error_is_none(monkeypatch: pytest.MonkeyPatch, failure: bytes) -> None:
    """The kernel refuses, at once or in the middle: that is not a machine without addresses, so that all are kept."""
    for answers in ([failure], [one(1), failure], [one(1) + failure]):
        answered(monkeypatch, *answers)
        with pytest.raises(PermissionError):
            list(ask())


def test_a_refused_answer_keeps_what_was_known(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The guard does not forget this machine's addresses because a look at them has failed."""

    async def main() -> None:
        told: list[frozenset[IP]] = []
        addresses = LocalAddressMonitor(get_reactor(), told.append)
        with monkeypatch.context() as patch:
            answered(patch, one(1), message(ERROR, number(-errno.EPERM)))
            addresses.look()
        assert LOOPBACK in told[0]
        assert told == [told[0]] * 2
        assert addresses.addresses is told[0]
        assert "the addresses of this machine cannot be read, netlink(7): Operation not permitted" in caplog.text
        addresses.close()

    run_once(main)


@given(st.lists(st.binary(max_size=80), max_size=4), st.sampled_from([DONE, ERROR, NEWADDR, 0]))
def test_an_answer_of_rubbish_is_addresses_or_an_error(parts: list[bytes], kind: int) -> None:
    """Nothing else comes of it, whatever the messages are filled with or where they are cut off."""
    with pytest.MonkeyPatch.context() as patch:
        answered(patch, *parts, *(message(kind, part) for part in parts), message(DONE, number(0)))
        try:
            found = list(ask())
        except OSError:
            return
        assert all(address.version in (4, 6) for address in found)


def test_nothing_is_heard_after_the_end(run: Run) -> None:
    """Closed twice is closed once, and its descriptor is not registered any more."""

    async def main() -> None:
        reactor = get_reactor()
        told: list[frozenset[IP]] = []
        addresses = LocalAddressMonitor(reactor, told.append)
        assert addresses.sock is not None
        descriptor = addresses.sock.fileno()
        addresses.close()
        addresses.close()
        assert addresses.sock is None
        assert len(told) == 1
        await asyncio.sleep(0)
        assert descriptor not in reactor.handlers

    run(main)
