"""What this system offers: a sandbox (seccomp) may refuse calls that the kernel has, and other systems lack some.

Each call that tabi can do without is tried once in a process, before there are sessions; forked processes know it too.
One that is refused is named once in the log, with what is done instead. `check_calls` tries what nothing replaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import resource
import select
import selectors
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tabi.errors import ConfigError

log = logging.getLogger("tabi")

REFUSED = frozenset((errno.ENOSYS, errno.EPERM))
"""What sandboxes answer."""

USUAL_LIMIT = 1024
"""Descriptors that a process may have open where the system does not tell: what most systems give."""

EDGE = 1 << 31
PROBE = b"x"

refused: set[str] = set()
"""The calls that are refused here, of those that were tried."""


# --- calls that others replace ---


def is_offered(calls: Iterator[str], instead: str) -> bool:
    """Whether all calls work. ``calls`` names each and then makes it. The first that does not is logged."""
    call = ""
    try:
        for name in calls:
            call = name
    except OSError as exc:
        say_refused(call, exc, instead)
        return False
    return True


def say_refused(call: str, exc: OSError, instead: str) -> None:
    """Log that a call is refused, and what is done instead."""
    refused.add(call)
    log.warning("%s(2) is refused (%s): %s", call, (exc.strerror or str(exc)).lower(), instead)


@cache
def has_splice() -> bool:
    """Whether octets go from socket to socket inside the kernel."""
    return hasattr(os, "splice") and is_offered(try_splice(), "relays copy, which costs more CPU")


def try_splice() -> Iterator[str]:
    """An octet through a pipe."""
    with contextlib.ExitStack() as opened:
        one, other = (opened.enter_context(sock) for sock in socket.socketpair())
        yield "pipe2"
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        opened.callback(os.close, read_end)
        opened.callback(os.close, write_end)
        yield "splice"
        one.send(PROBE)
        os.splice(other.fileno(), write_end, 1)
        os.splice(read_end, other.fileno(), 1)


@cache
def has_epoll() -> bool:
    """Whether the reactor has an epoll."""
    return sys.platform == "linux" and is_offered(try_epoll(), "poll(2) takes its place, which costs more CPU")


def try_epoll() -> Iterator[str]:
    """An epoll that looks at a socket."""
    yield "epoll_create1"
    with select.epoll() as epoll, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        yield "epoll_ctl"
        epoll.register(sock.fileno(), select.EPOLLIN | EDGE)
        yield "epoll_wait"
        epoll.poll(0)


def make_selector() -> selectors.BaseSelector:
    """A selector for a loop where there is no epoll."""
    kind: type[selectors.BaseSelector] = selectors.DefaultSelector
    if kind.__name__ == "EpollSelector":
        kind = getattr(selectors, "PollSelector", selectors.SelectSelector)
    return kind()


@cache
def has_batches() -> bool:
    """Whether many datagrams go with one call."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "recvmmsg") or not hasattr(libc, "sendmmsg"):
        return False
    return is_offered(try_batches(libc), "each datagram takes a call of its own")


def try_batches(libc: ctypes.CDLL) -> Iterator[str]:
    """Batches of no datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for name, more in (("recvmmsg", (None,)), ("sendmmsg", ())):
            yield name
            if getattr(libc, name)(sock.fileno(), None, 0, socket.MSG_DONTWAIT, *more) < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))


@cache
def has_timed_wait() -> bool:
    """Whether a process can sleep until a signal comes, but no longer than it wants."""
    return hasattr(signal, "sigtimedwait") and is_offered(try_timed_wait(), "handlers take its place")


def try_timed_wait() -> Iterator[str]:
    """For no signal, and no time."""
    yield "rt_sigtimedwait"
    signal.sigtimedwait((), 0)


@cache
def has_netlink() -> bool:
    """Whether the addresses of this machine can be asked for."""
    return hasattr(socket, "AF_NETLINK") and is_offered(try_netlink(), "the addresses of this machine are not known")


def try_netlink() -> Iterator[str]:
    """Its socket."""
    yield "socket(AF_NETLINK), bind"
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        sock.bind((0, 0))


@cache
def has_memory_files() -> bool:
    """Whether there are files in memory."""
    return hasattr(os, "memfd_create") and is_offered(try_memory(), "a temporary file without a name takes its place")


def try_memory() -> Iterator[str]:
    """A file in memory."""
    yield "memfd_create"
    os.close(os.memfd_create("tabi-probe"))


def open_memory(name: str) -> int:
    """A descriptor of an empty file for processes to share: in memory, or else a temporary one without a name.

    Raises:
        OSError: neither can be made.
    """
    if has_memory_files():
        return os.memfd_create(name)
    try:
        shared = Path("/dev/shm")  # noqa: S108 - in memory too; the file has a name for a moment, and mode 600
        fd, path = tempfile.mkstemp(prefix=f"{name}-", dir=shared if os.access(shared, os.W_OK) else None)
    except OSError as exc:
        text = f"memfd_create(2) is refused, and there is no temporary file: {exc.strerror}"
        raise OSError(exc.errno, text) from exc
    os.unlink(path)
    return fd


@cache
def has_limits() -> bool:
    """Whether a process is told what it may use."""
    return is_offered(try_limits(), "descriptors are used as far as /proc/self/limits allows")


def try_limits() -> Iterator[str]:
    """The limit of descriptors."""
    yield "prlimit64"
    resource.getrlimit(resource.RLIMIT_NOFILE)


def descriptor_limits() -> tuple[int, int]:
    """How many descriptors a process may have open at first, and how many it may allow itself (getrlimit(2))."""
    if has_limits():
        return resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError), open("/proc/self/limits") as file:
        soft = next(line.split()[3] for line in file if line.startswith("Max open files"))
        return int(soft), int(soft)
    return USUAL_LIMIT, USUAL_LIMIT


def raise_descriptor_limit() -> None:
    """Two descriptors carry one session: take as many as we are allowed."""
    _, hard = descriptor_limits()
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- calls that nothing replaces ---


def check_calls(calls: Iterator[str]) -> None:
    """Try what `tabi serve` cannot do without, so that it ends before it begins: `try_all` and `try_files`.

    Raises:
        ConfigError: a call is refused. It says which.
    """
    call = ""
    try:
        for name in calls:
            call = name
    except OSError as exc:
        if exc.errno in REFUSED:  # anything else is told by whatever needs it
            raise ConfigError(f"{call}(2) is refused, and there is no way around it: {exc.strerror}") from exc
    except RuntimeError as exc:  # of a thread
        raise ConfigError(f"{call}(2) is refused, or there is no room for a thread: {exc}") from exc


def try_all() -> Iterator[str]:
    """Sockets, processes and threads."""
    with contextlib.ExitStack() as opened:
        yield "socket"
        listener = opened.enter_context(socket.socket())
        yield "setsockopt"
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield "getsockopt"
        listener.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        yield "getsockname"
        listener.getsockname()
        listener.setblocking(False)
        yield "accept4"
        try:
            listener.accept()
        except OSError as exc:  # it does not listen: a port might be forbidden that is not wanted
            if exc.errno != errno.EINVAL:
                raise
        yield "socketpair"
        one, other = (opened.enter_context(sock) for sock in socket.socketpair())
        yield "getpeername"
        one.getpeername()
        yield "sendto"
        one.send(PROBE)
        yield "recvfrom"
        other.recv(1)
        yield "sendmsg"
        one.sendmsg([PROBE])
        yield "recvmsg"
        other.recvmsg(1)
        yield "shutdown"
        one.shutdown(socket.SHUT_WR)
        yield "select"
        select.select((other,), (), (), 0)
        yield "kill"
        os.kill(os.getpid(), 0)
        yield "getrandom"
        try_random()
        yield "clone3"
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        yield "clone"
        pid = os.fork()
        if not pid:
            os._exit(0)
        yield "wait4"
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: the system has reaped it
            os.waitpid(pid, 0)


def try_files() -> Iterator[str]:
    """Files that processes share. This may log that they are not in memory."""
    memory = open_memory("tabi-probe")
    try:
        yield "ftruncate"
        os.ftruncate(memory, 1)
        yield "pwrite64"
        os.pwrite(memory, PROBE, 0)
        yield "pread64"
        os.pread(memory, 1, 0)
    finally:
        os.close(memory)


def try_random() -> None:
    """Random octets: libraries do without getrandom(2) where it does not exist, but not where it is forbidden."""
    get: Callable[[int], bytes] | None = getattr(os, "getrandom", None)
    try:
        if get is not None:
            get(1)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
