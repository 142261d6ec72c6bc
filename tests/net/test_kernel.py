"""What the system offers: what each refusal leads to, in the process itself; tests/test_sandbox.py has real ones."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import resource
import select
import selectors
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import run_in_loop
from tabi.errors import ConfigError
from tabi.net import kernel
from tabi.net.datagram import PLAIN, probe
from tabi.net.reactor import PortableReactor, get_reactor, make_loop
from tabi.net.selector import ReactorLoop
from tabi.relay.pipes import PipePool

pytestmark = pytest.mark.usefixtures("asked_anew")


def refuse(number: int) -> Callable[..., Any]:
    """A call that always fails."""

    def refused(*arguments: object, **named: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refused


class Libc:
    """A C library one of whose calls is refused."""

    def __init__(self, refused: str) -> None:
        self.refused = refused

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            ctypes.set_errno(errno.EPERM if name == self.refused else 0)
            return -1 if name == self.refused else 0

        return call


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["splice", "pipe2"])
def test_without_splice_there_are_no_pipes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str, number: int
) -> None:
    """It is found out once, and said once which call it was. Pools that want no pipes do not ask."""
    assert PipePool(0).take() is None
    monkeypatch.setattr(os, call, refuse(number))
    assert [PipePool(5).take() for _ in range(2)] == [None, None]
    assert [record.message for record in caplog.records] == [
        f"{call}(2) is refused ({os.strerror(number).lower()}): relays copy, which costs more CPU"
    ]


def test_a_system_that_never_had_a_call_is_no_news(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was refused there."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    for place, name in ((os, "splice"), (os, "memfd_create"), (signal, "sigtimedwait"), (socket, "AF_NETLINK")):
        monkeypatch.delattr(place, name)
    assert not any(
        has()
        for has in (
            kernel.has_splice,
            kernel.has_epoll,
            kernel.has_batches,
            kernel.has_timed_wait,
            kernel.has_netlink,
            kernel.has_memory_files,
        )
    )
    assert not caplog.records


def test_here_is_everything() -> None:
    """The tests run where nothing is refused."""
    assert kernel.has_splice()
    assert kernel.has_epoll()
    assert kernel.has_batches()
    assert kernel.has_timed_wait()
    assert kernel.has_netlink()
    assert kernel.has_memory_files()


def test_without_epoll_loop_and_reactor_are_portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop on poll(2), also where `selectors` has chosen epoll before it was refused."""
    monkeypatch.setattr(select, "epoll", refuse(errno.EPERM))
    monkeypatch.delenv("TABI_REACTOR", raising=False)
    assert selectors.DefaultSelector.__name__ == "EpollSelector"

    async def main() -> None:
        assert isinstance(get_reactor(), PortableReactor)
        await asyncio.sleep(0)

    run_in_loop(main)
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    made = kernel.make_selector()
    assert isinstance(made, selectors.SelectSelector)
    made.close()


@pytest.mark.parametrize("call", ["recvmmsg", "sendmmsg"])
def test_without_batches_datagrams_go_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """One of both is not enough."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(call))
    assert probe(None) == PLAIN
    assert f"{call}(2) is refused (operation not permitted): each datagram takes a call" in caplog.text


def test_without_memory_files_a_temporary_one_takes_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name, nobody else may read it, and it is not inherited by programs."""
    monkeypatch.setattr(os, "memfd_create", refuse(errno.ENOSYS))
    before = set(os.listdir("/dev/shm")), set(os.listdir(tempfile.gettempdir()))
    for shared in (True, False):
        monkeypatch.setattr(os, "access", lambda *_, shared=shared: shared)
        fd = kernel.open_memory("tabi-test")
        found = os.fstat(fd)
        assert (found.st_nlink, stat.S_IMODE(found.st_mode), found.st_size) == (0, 0o600, 0)
        assert not os.get_inheritable(fd)
        os.ftruncate(fd, 10)
        os.close(fd)
    after = set(os.listdir("/dev/shm")), set(os.listdir(tempfile.gettempdir()))
    assert not any("tabi-test" in name for one, other in zip(before, after, strict=True) for name in other - one)


def test_without_any_file_the_call_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to share memory by."""
    monkeypatch.setattr(os, "memfd_create", refuse(errno.EPERM))
    monkeypatch.setattr(tempfile, "mkstemp", refuse(errno.EROFS))
    with pytest.raises(OSError, match=r"memfd_create.* is refused, and there is no temporary file: Read-only"):
        kernel.open_memory("tabi-test")


def test_limits_that_are_not_told_are_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As /proc has them, or the usual ones; to raise them is not an error then."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "getrlimit", refuse(errno.EPERM))
    monkeypatch.setattr(resource, "setrlimit", refuse(errno.EPERM))
    assert kernel.descriptor_limits() == (soft, soft)
    kernel.raise_descriptor_limit()
    assert caplog.text.count("prlimit64(2) is refused") == 1
    monkeypatch.setattr(kernel, "open", refuse(errno.ENOENT), raising=False)
    assert kernel.descriptor_limits() == (1024, 1024)


def test_limits_are_raised_as_far_as_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the hard limit."""
    told: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 20))
    monkeypatch.setattr(resource, "setrlimit", lambda *arguments: told.append(arguments[1]))
    kernel.raise_descriptor_limit()
    assert told == [(20, 20)]


def test_what_is_needed_is_there() -> None:
    """Nothing stays open, and no thread and no process remains."""
    kernel.check_calls(kernel.try_all())
    kernel.check_calls(kernel.try_files())


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [(socket, "socketpair", "socketpair"), (os, "fork", "clone"), (os, "waitpid", "wait4"), (os, "kill", "kill")],
)
def test_what_cannot_be_replaced_is_named(monkeypatch: pytest.MonkeyPatch, place: object, name: str, call: str) -> None:
    """An error that a sandbox answers is about the call; of any other one the code tells that meets it."""
    real = getattr(place, name)
    monkeypatch.setattr(place, name, refuse(errno.EPERM))
    with pytest.raises(ConfigError, match=rf"{call}\(2\) is refused, and there is no way around it"):
        kernel.check_calls(kernel.try_all())
    monkeypatch.setattr(place, name, refuse(errno.EMFILE))
    kernel.check_calls(kernel.try_all())
    if name == "waitpid":
        real(-1, 0), real(-1, 0)


def test_a_thread_that_cannot_be_started_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc tries clone(2) only where clone3(2) does not exist, and Python tells nothing of it."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConfigError, match=r"clone3\(2\) is refused, or there is no room for a thread: can't start"):
        kernel.check_calls(kernel.try_all())


def test_random_octets_may_come_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where getrandom(2) does not exist there is a device; where it is forbidden, c-ares asks for ever."""
    monkeypatch.setattr(os, "getrandom", refuse(errno.ENOSYS))
    kernel.try_random()
    monkeypatch.delattr(os, "getrandom")
    kernel.try_random()
    monkeypatch.setattr(os, "getrandom", refuse(errno.EPERM), raising=False)
    with pytest.raises(ConfigError, match=r"getrandom\(2\) is refused"):
        kernel.check_calls(kernel.try_all())


def test_the_forced_hosting_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """TABI_REACTOR=portable has asyncio's usual loop, as an embedding program has."""
    monkeypatch.setenv("TABI_REACTOR", "portable")
    loop = make_loop()
    assert not isinstance(loop, ReactorLoop)
    loop.close()
