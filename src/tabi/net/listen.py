"""Listening sockets and the accept loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import itertools
import logging
import os
import pwd
import random
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from time import monotonic
from typing import TYPE_CHECKING, Any

from tabi.errors import ConfigError
from tabi.net.passed import File, Group, Inherited, Passed, take_passed
from tabi.net.reactor import Reactor
from tabi.net.sockaddr import with_scope
from tabi.session import UNIX
from tabi.url import ListenURL, PassedSocket, Place, UnixSocket
from tabi.wire.address import Address, from_sockaddr, ipv4, parse_host, parse_ip

if TYPE_CHECKING:  # see `net.cache`
    from tabi.config import Listen

log = logging.getLogger("tabi")

AF_UNIX = getattr(socket, "AF_UNIX", None)
BACKLOG = 4096
MAX_NUMBER = (1 << 32) - 2
"""The largest number of a user or a group: the next one, -1, means no change (chown(2))."""

ACCEPTS_A_TURN = 64
BACK_OFF = 0.1
"""Seconds without accepting after the system had no descriptor or memory left."""

MOMENT = 0.001
"""The same if some are about to be free."""

WARN_EVERY = 60.0
"""Minimum seconds between two warnings that no descriptor is left."""

EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
NONBLOCK = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

Accepted = Callable[[Any, Any], object]
"""Called with a new socket and the peer's address as accept(2) gives it."""

Room = Callable[[], int]
"""How many more sessions there are descriptors for."""

MakeRoom = Callable[[], bool]
"""Called if there is none: whether there will be some in a moment."""


IP = IPv4Address | IPv6Address

LOOPBACK = ipv4(b"\x7f\0\0\1")

ABSENT = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
"""Errors of binding to an address that a name has but this machine does not, such as ::1 if IPv6 is turned off."""

TRIES = 16
"""Free ports that are tried until one is free at every address of a name."""

ANY_PORT = 9
"""A UDP socket is not connected to port 0 everywhere; nothing is sent to this one (discard, RFC 863)."""


# --- places ---

Given = socket.socket | Sequence[socket.socket]
"""The sockets of a listener, as a program gives them."""


class Listeners:
    """The listening sockets of a configuration, a list for each listener, and the files of those that are unix sockets.

    Args:
        sockets: of the first listeners, in place of opening them. The code that made them removes their files.
    """

    def __init__(self, sockets: Sequence[Given] = ()) -> None:
        self.sockets = [[given] if isinstance(given, socket.socket) else list(given) for given in sockets]
        self.files: list[File] = []
        self.inherited: list[File] = []
        """Files that another process has made; they are its own until `keep_inherited`."""

    def open(self, listen: Sequence[Listen], passed: Passed | None = None, inherited: Inherited | None = None) -> None:
        """Bind the sockets of the listeners that have none yet, or take over what was passed.

        Args:
            listen: all listeners.
            passed: what the service manager has opened. Default: as the environment says, if a listener wants it.
            inherited: those of the process that this one takes over from.

        Raises:
            ConfigError: nothing of that name was passed, or there is no such user. It names the listener.
            OSError: an address cannot be listened on; ``filename`` is the listener. Nothing stays open then.
        """
        places = [one.parsed.place for one in listen]
        if passed is None and any(isinstance(place, PassedSocket) for place in places[len(self.sockets) :]):
            passed = take_passed(os.environ)
        opened: dict[int, list[socket.socket]] = {}
        try:
            # What was passed comes first: until then a number that is wrong cannot be that of a socket of ours.
            for index, place in sorted(enumerate(places), key=lambda pair: not isinstance(pair[1], PassedSocket)):
                if index < len(self.sockets):
                    continue
                where = f"listen[{index}].url"
                try:
                    if isinstance(place, PassedSocket):
                        assert passed is not None
                        names = {other.name for other in places if isinstance(other, PassedSocket)}
                        opened[index] = passed.take(place.name, names)
                    elif inherited is not None and (found := inherited.take(key_of(place))) is not None:
                        opened[index] = found[0]
                        self.inherited += found[1]
                        if isinstance(place, UnixSocket):
                            give_rights(place)
                    else:
                        opened[index] = self.bind(place, places)
                except ConfigError as exc:
                    raise ConfigError(f"{listen[index].url}: {exc}", where) from None
                except OSError as exc:
                    raise OSError(exc.errno, exc.strerror or str(exc), f"{where}: {listen[index].url}") from exc
        except BaseException:
            self.sockets += opened.values()
            self.close()
            raise
        self.sockets += (group for _, group in sorted(opened.items()))

    def bind(self, place: Address | UnixSocket, places: Sequence[Place]) -> list[socket.socket]:
        """Bind one place. An IPv6 wildcard takes IPv4 too, unless that of IPv4 is among ``places`` itself."""
        if isinstance(place, UnixSocket):
            sock = bind_unix(place)
            found = os.lstat(place.path)
            self.files.append((place.path, found.st_dev, found.st_ino))
            return [sock]
        if isinstance(place.host, str):
            return bind_name(place.host, place.port)
        return [bind_listener(place, Address(IPv4Address(0), place.port) in places)]

    def keep_inherited(self) -> list[str]:
        """Remove, at the end, the files that another process has made, too. Returns their paths."""
        found, self.inherited = self.inherited, []
        self.files += found
        return [path for path, _, _ in found]

    def groups(self, listen: Sequence[Listen]) -> list[Group]:
        """The sockets as the next process is told of them, but for those that a service manager has passed."""
        found = []
        for sockets, one in zip(self.sockets, listen, strict=True):
            place = one.parsed.place
            if not isinstance(place, PassedSocket):
                files = [file for file in self.files if isinstance(place, UnixSocket) and file[0] == place.path]
                found.append(Group(key_of(place), [sock.fileno() for sock in sockets], files))
        return found

    def close(self) -> None:
        """Close the sockets and remove the files that are still theirs. Harmless when done twice."""
        for path, device, inode in self.files:
            with contextlib.suppress(OSError):
                found = os.lstat(path)  # the socket is still open, so that no other file has its inode
                if (found.st_dev, found.st_ino) == (device, inode):
                    os.unlink(path)
        self.files.clear()
        for sock in itertools.chain(*self.sockets):
            sock.close()


def key_of(place: Place) -> str:
    """What is the same for two listeners that need the same sockets."""
    return place.path if isinstance(place, UnixSocket) else str(place)


def bind_listener(address: Address, only_ipv6: bool = False) -> socket.socket:
    """Bind a TCP socket for listening. Accepted connections inherit its TCP_NODELAY and SO_KEEPALIVE (tcp(7)).

    An IPv6 wildcard takes IPv4 too, unless ``only_ipv6``.

    Raises:
        OSError: as bind(2); socket.gaierror is one too.
    """
    host, port = str(address.host), address.port
    family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::" or only_ipv6)
        sock.bind(sockaddr)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket, seconds: float | None) -> None:
    """Have the kernel probe the clients that a TCP socket accepts from now on after so many seconds without an octet,
    and every third of that; None for no probes. Accepted sockets inherit that (tcp(7))."""
    if sock.family == AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, seconds is not None)
    if seconds is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(seconds)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(seconds / 3)))


def bind_name(name: str, port: int) -> list[socket.socket]:
    """Bind every address that a name has here, all to one port. Errors as `bind_listener`."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    hosts = dict.fromkeys(parse_host(str(sockaddr[0])) for *_, sockaddr in found)
    for _ in range(TRIES):
        socks: list[socket.socket] = []
        absent: OSError | None = None
        try:
            for host in hosts:
                try:
                    socks.append(bind_listener(Address(host, port or (socks and socks[0].getsockname()[1]) or 0)))
                except OSError as exc:
                    if exc.errno not in ABSENT:
                        raise
                    absent = exc
                    log.warning("%s: not listening on %s: %s", name, host, exc.strerror)
            if absent is not None and not socks:
                raise absent
            return socks
        except BaseException as exc:
            for sock in socks:
                sock.close()
            if port or getattr(exc, "errno", None) != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no port is free at all addresses of {name}")


def bind_unix(place: UnixSocket) -> socket.socket:
    """Listen at a path. The file never has more rights than configured, and replaces only that of a dead process.

    Raises:
        ConfigError: there is no such user or group.
        OSError: as bind(2), chown(2) and chmod(2); EADDRINUSE if a process listens there, EEXIST if the file is not a
            socket.
    """
    owners(place)
    remove_stale(place.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(sock.fileno(), 0)  # bind(2) gives the file the rights of the socket, less the umask: none for now
        sock.bind(place.path)
        try:
            sock.listen(BACKLOG)  # first, so that a client that may connect finds a listener
            give_rights(place)
        except BaseException:
            os.unlink(place.path)
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def give_rights(place: UnixSocket) -> None:
    """Give the file of a socket its owner, group and mode, in this order. Raises ConfigError and OSError."""
    owner, group = owners(place)
    if (owner, group) != (-1, -1):
        os.chown(place.path, owner, group, follow_symlinks=False)
    os.chmod(place.path, place.mode)


def check_unix(place: UnixSocket) -> None:
    """Check whether `bind_unix` would find what it needs, and change nothing.

    Raises:
        ConfigError: there is no such user or group.
        OSError: there is no such directory, or this process may make no file in it.
    """
    owners(place)
    folder = os.path.dirname(place.path)
    if not os.access(folder, os.W_OK | os.X_OK):
        os.stat(folder)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def bind_place(place: Address) -> list[socket.socket]:
    """Bound sockets for a place that is no listener of a configuration: one for each address of a name. Raises
    OSError."""
    return bind_name(place.host, place.port) if isinstance(place.host, str) else [bind_listener(place, False)]


def owners(place: UnixSocket) -> tuple[int, int]:
    """The numbers of a file's user and group, -1 for those of this process. Raises ConfigError."""
    owner = -1 if place.owner is None else number_of(place.owner, "user", lambda name: pwd.getpwnam(name).pw_uid)
    group = -1 if place.group is None else number_of(place.group, "group", lambda name: grp.getgrnam(name).gr_gid)
    return owner, group


def number_of(name: str, what: str, find: Callable[[str], int]) -> int:
    """The number of a user or a group, which ``name`` may be itself. Raises ConfigError."""
    if name.isascii() and name.isdecimal():
        if len(name) > len(str(MAX_NUMBER)) or int(name) > MAX_NUMBER:
            raise ConfigError(f"{what} {name[:20]}, expected a number of at most {MAX_NUMBER}")
        return int(name)
    try:
        return find(name)
    except KeyError:
        raise ConfigError(f"there is no {what} {name}") from None


def remove_stale(path: str) -> None:
    """Remove the socket of a process that is gone.

    Raises:
        OSError: EADDRINUSE if the process lives, EEXIST if the file is not a socket, EACCES if this cannot be found
            out.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EPROTOTYPE):  # its queue is full, or it is for datagrams: it lives
            raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def urls_of(listen: Sequence[Listen], sockets: Sequence[Sequence[socket.socket]]) -> list[str]:
    """A URL for each socket, in the order of the listeners, with the ports that port 0 became."""
    return [
        url_of(url, sock) for url, group in zip((one.parsed for one in listen), sockets, strict=True) for sock in group
    ]


def url_of(url: ListenURL, sock: socket.socket) -> str:
    """A listener's URL at the place where a socket of it is."""
    if sock.family != AF_UNIX:
        return url.at(from_sockaddr(sock.getsockname()))
    path = sock.getsockname()
    return str(ListenURL(url.scheme, UnixSocket(path)) if isinstance(path, str) and path else url)


# --- clients ---


def unix_client(sock: Any) -> Address:
    """The peer of a unix socket: the user of the process that has connected (SO_PEERCRED, unix(7))."""
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Address(UNIX, uid)


def client_ip(host: Any) -> IP:
    """Where a client's datagrams come from: its own address, or loopback if it came through a unix socket."""
    return LOOPBACK if host == UNIX else host


def own_address(sock: Any, client: Address) -> Address:
    """The address of this machine that a client reaches, and the port of its listener (0: it came by none).

    It is the one that the client has connected to. A client that came through a unix socket is on this machine. For a
    client named in a PROXY header, it is the address that packets to it leave from: the connection is its proxy's.

    Raises:
        OSError: there is no route to the client, or it has gone.
    """
    if client.host == UNIX:
        return Address(LOOPBACK, 0)
    sockaddr = sock.getsockname()
    if isinstance(sockaddr, str | bytes):  # of a unix socket
        return Address(route_to(client_ip(client.host)), 0)
    own = from_sockaddr(sockaddr)
    if from_sockaddr(sock.getpeername()) == client:
        return own
    try:
        return Address(route_to(client_ip(client.host)), own.port)
    except OSError:
        if family_of(client_ip(client.host)) != family_of(client_ip(own.host)):
            raise
        return own  # perhaps its proxy brings it here; nothing better is known


def family_of(host: IP) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET if host.version == 4 else socket.AF_INET6


def route_to(peer: IP) -> IP:
    """The address of this machine that packets to a peer leave from; none is sent. Raises OSError as connect(2)."""
    with socket.socket(family_of(peer), socket.SOCK_DGRAM) as sock:
        sock.connect(with_scope(peer, ANY_PORT))
        host = from_sockaddr(sock.getsockname()).host
        assert not isinstance(host, str)
        return host


# --- ports and connections ---


def bind_port(sock: socket.SocketType, host: str, ports: range | None) -> None:
    """Bind a socket to an address and a free port of a range, from anywhere in it; None takes any port.

    Raises:
        OSError: as bind(2); EADDRINUSE where every port of the range is taken.
    """
    place = with_scope(parse_ip(host), 0) if "%" in host else (host,)
    if ports is None:
        sock.bind((place[0], 0, *place[2:]))
        return
    first = random.randrange(len(ports))  # noqa: S311 - spreads the load over the range, hides nothing
    for port in itertools.chain(ports[first:], ports[:first]):
        try:
            sock.bind((place[0], port, *place[2:]))
            return
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no port of {ports[0]}-{ports[-1]} is free")


class Acceptor:
    """Accepts on one listening socket, whose owner closes it after `stop`.

    When descriptors or memory are used up it waits and tries again: connected clients stay, new clients wait in the
    backlog, and no CPU time is wasted. ``room`` is asked first, so that there is a descriptor for the egress of each
    client too, and ``make_room`` if there is none.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        accepted: Accepted,
        room: Room,
        make_room: MakeRoom = lambda: False,
    ) -> None:
        self.reactor = reactor
        self.sock = sock
        self.family = sock.family
        self.accepted = accepted
        self.room = room
        self.make_room = make_room
        self.listening = False
        self.exhausted = False
        self.next_warning = 0.0
        self.retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self.retry = None
        if not self.listening:
            self.listening = True
            self.reactor.register_listener(self.sock.fileno(), self.on_ready)

    def stop(self) -> None:
        """Accept no more."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        self.pause()

    def pause(self) -> None:
        """Leave new connections in the kernel's queue."""
        if self.listening:
            self.listening = False
            self.reactor.forget(self.sock.fileno())

    def on_ready(self, events: int) -> None:
        """Accept some of the waiting connections; the rest follows in the next turn, since this is level-triggered."""
        accept = self.sock._accept  # type: ignore[attr-defined]  # socket.accept less an object and a system call
        family = self.family
        room = self.room()
        if room <= 0:
            self.back_off("no descriptor would be left for another session")
            return
        for _ in range(min(room, ACCEPTS_A_TURN)):
            try:
                fd, address = accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in EXHAUSTED:
                    log.warning("accept: %s", exc)  # accept(2): pending network errors are handed on; try again
                    return
                self.back_off(exc.strerror or str(exc))
                return
            sock = socket.SocketType(family, NONBLOCK, 0, fd)  # knows that it is non-blocking
            sock.setblocking(False)
            if self.exhausted:
                self.exhausted = False
                log.warning("accept: goes on")
            self.accepted(sock, address)

    def back_off(self, reason: str) -> None:
        """Try again later, and say so once."""
        if self.make_room():
            self.pause()
            self.retry = self.reactor.loop.call_later(MOMENT, self.start)
            return
        now = monotonic()
        if not self.exhausted and now >= self.next_warning:
            self.exhausted = True
            self.next_warning = now + WARN_EVERY
            log.warning("accept: %s; new connections wait", reason)
        self.pause()
        self.retry = self.reactor.loop.call_later(BACK_OFF, self.start)
