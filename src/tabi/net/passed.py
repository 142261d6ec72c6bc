"""Listening sockets that another process has opened: a service manager, by sd_listen_fds(3) of systemd, or the process
of tabi that this one takes over from."""

from __future__ import annotations

import logging
import os
import socket
from collections import defaultdict, deque
from collections.abc import Collection, MutableMapping, Sequence
from typing import NamedTuple

from tabi.errors import ConfigError

log = logging.getLogger("tabi")

FIRST = 3
"""The descriptor of the first one; the others follow (SD_LISTEN_FDS_START)."""

UNNAMED = "unknown"
"""The name of sockets that have none."""

FAMILIES = frozenset(getattr(socket, name) for name in ("AF_INET", "AF_INET6", "AF_UNIX") if hasattr(socket, name))


File = tuple[str, int, int]
"""The file of a unix socket: its path, device and inode."""


class Group(NamedTuple):
    """The sockets of one listener, as one process describes them to the next."""

    place: str
    """As the listener's URL has it: host and port, or the path of a unix socket."""
    numbers: list[int]
    """Descriptors."""
    files: list[File]


class Inherited:
    """Sockets of the process that this one takes over from, and that no listener has taken yet."""

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self.groups: defaultdict[str, deque[Group]] = defaultdict(deque)
        for group in groups:
            self.groups[group.place].append(group)
            for number in group.numbers:
                os.set_inheritable(number, False)

    def take(self, place: str) -> tuple[list[socket.socket], list[File]] | None:
        """The sockets at a place, and their files; None if there are none. Of several the first goes first."""
        if not self.groups[place]:
            return None
        _, numbers, files = self.groups[place].popleft()
        return [socket.socket(fileno=number) for number in numbers], files

    def close(self) -> None:
        """Close those that no listener has taken."""
        for waiting in self.groups.values():
            for group in waiting:
                for number in group.numbers:
                    os.close(number)
        self.groups.clear()


class Passed:
    """Sockets that were passed and not taken yet: names by descriptor."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        self.taken: set[int] = set()

    def take(self, name: str, names: Collection[str]) -> list[socket.socket]:
        """The sockets of a name, or the one with a number; for "" all those that are not in ``names`` either way.

        Raises:
            ConfigError: there is none, or it cannot accept connections.
        """
        if name.isascii() and name.isdecimal():
            numbers = [int(name)]
        elif name:
            numbers = [fd for fd, known in self.names.items() if known == name]
        else:
            numbers = [fd for fd, known in self.names.items() if known not in names and str(fd) not in names]
        if not numbers:
            known = ", ".join(dict.fromkeys(self.names.values()))
            what = "no socket of that name was passed" if name else "no other socket was passed"
            raise ConfigError(f"{what}, expected one of {known}" if known else "no socket was passed (LISTEN_FDS)")
        socks: list[socket.socket] = []
        try:
            for number in numbers:
                if number in self.taken:
                    raise ConfigError(f"descriptor {number} is another listener's")
                socks.append(adopt(number))
                self.taken.add(number)
        except BaseException:
            for sock in socks:
                sock.close()
            raise
        return socks

    def warn(self) -> None:
        """Log the sockets that no listener has taken."""
        for fd, name in self.names.items():
            if fd not in self.taken:
                log.warning("descriptor %d, %s, was passed, but no listener takes it (fd://%s)", fd, name, name)


def take_passed(environ: MutableMapping[str, str]) -> Passed:
    """Read what was passed to this process, and remove it from the environment, where it would mislead others.

    Raises:
        ConfigError: it cannot be read, or a descriptor is not open.
    """
    owner, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if owner != str(os.getpid()):
        return Passed({})
    if not (count.isascii() and count.isdecimal()):
        raise ConfigError(f"{count!r}, expected a number", "LISTEN_FDS")
    given = names.split(":") if names else []
    found: dict[int, str] = {}
    for fd in range(FIRST, FIRST + int(count)):
        try:
            os.set_inheritable(fd, False)
        except OSError as exc:
            raise ConfigError(f"{count}, but descriptor {fd} is not open", "LISTEN_FDS") from exc
        found[fd] = (given[fd - FIRST] if fd - FIRST < len(given) else "") or UNNAMED
    return Passed(found)


def adopt(fd: int) -> socket.socket:
    """Make a socket of a descriptor, which it then owns. Raises ConfigError if it cannot accept connections."""
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, OverflowError) as exc:
        raise ConfigError(f"descriptor {fd}: {getattr(exc, 'strerror', None) or 'there is none'}") from exc
    if sock.family not in FAMILIES or sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ConfigError(f"descriptor {fd} is not a socket of TCP or of unix streams (ListenStream=)")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise ConfigError(f"descriptor {fd} does not listen, expected a listening socket (Accept=no)")
    sock.set_inheritable(False)
    if sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections inherit it
    return sock
