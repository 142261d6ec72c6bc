"""A sandbox for tests: calls that the kernel answers with an error (seccomp), for a process and all that it starts.

It cannot be undone, so that it is for processes that a test starts, or for a whole run of the tests
(TABI_TESTS=portable, `make test-portable`): that has none of what Linux alone offers.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Callable, Sequence

NUMBERS = {
    "x86_64": {
        "accept4": 288,
        "clone": 56,
        "clone3": 435,
        "epoll_create1": 291,
        "epoll_ctl": 233,
        "epoll_wait": 232,
        "fcntl": 72,
        "ftruncate": 77,
        "getpeername": 52,
        "getrandom": 318,
        "getsockopt": 55,
        "getpriority": 140,
        "memfd_create": 319,
        "pipe2": 293,
        "prlimit64": 302,
        "recvmmsg": 299,
        "recvmsg": 47,
        "rt_sigtimedwait": 128,
        "sendmmsg": 307,
        "sendmsg": 46,
        "setpriority": 141,
        "shutdown": 48,
        "socketpair": 53,
        "splice": 275,
        "wait4": 61,
    },
}
"""The numbers of calls, by machine: those that tests refuse."""

CALLS = NUMBERS.get(platform.machine(), {})

LINUX_ALONE = ("epoll_create1", "splice", "memfd_create", "recvmmsg", "sendmmsg", "rt_sigtimedwait")
"""Calls that other systems do not have."""

SOCKET, SETSOCKOPT = 41, 54

Rule = tuple[int, dict[int, int], int]
"""A call, the values of arguments by their place, and the error that is the answer then."""

WITHOUT_LINUX: list[Rule] = [
    (SOCKET, {0: 16}, errno.EAFNOSUPPORT),  # AF_NETLINK
    (SETSOCKOPT, {1: socket.SOL_SOCKET, 2: 25}, errno.ENOPROTOOPT),  # SO_BINDTODEVICE
    (SETSOCKOPT, {1: socket.IPPROTO_IP, 2: 15}, errno.ENOPROTOOPT),  # IP_FREEBIND
]


def refusing(number: int, *calls: str) -> Callable[[], None]:
    """What enters a sandbox in which calls fail with an error number: ``preexec`` of a process."""
    return lambda: enter([(CALLS[call], {}, number) for call in calls])


def enter_portable() -> None:
    """Do without all that Linux alone has, from now on and until the end of the process."""
    enter([*((CALLS[call], {}, errno.ENOSYS) for call in LINUX_ALONE), *WITHOUT_LINUX])


def enter(rules: Sequence[Rule]) -> None:
    """Enter a sandbox: a program of BPF that looks at struct seccomp_data (seccomp(2))."""
    code = []
    for call, arguments, number in rules:
        checks = [(0, call), *((16 + 8 * place, value) for place, value in arguments.items())]
        for index, (offset, value) in enumerate(checks):
            over = 2 * (len(checks) - index) - 1  # to behind the answer, if this one differs
            code += [(0x20, 0, 0, offset), (0x15, 0, over, value)]
        code.append((0x06, 0, 0, 0x50000 | number))
    code.append((0x06, 0, 0, 0x7FFF0000))
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    prctl = ctypes.CDLL(None).prctl
    prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    assert not prctl(22, 2, ctypes.byref(Program(len(code), ctypes.addressof(text))), 0, 0)  # PR_SET_SECCOMP
