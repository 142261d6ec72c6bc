"""Listening sockets and the accept loop, also when descriptors or memory are used up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import pwd
import re
import socket
import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from sockets import open_listener, turns, until
from support import closed_port
from tabi.config import Listen
from tabi.errors import ConfigError
from tabi.net import listen
from tabi.net.listen import (
    ACCEPTS_A_TURN,
    TRIES,
    Acceptor,
    Listeners,
    bind_listener,
    bind_place,
    bind_port,
    bind_unix,
    check_unix,
    keep_alive,
    own_address,
    remove_stale,
    unix_client,
    urls_of,
)
from tabi.net.passed import Passed
from tabi.net.reactor import get_reactor
from tabi.session import UNIX
from tabi.url import UnixSocket
from tabi.wire.address import Address, from_sockaddr, parse_address


class FakeListener:
    """A listening socket whose next accepts fail as told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.family = sock.family
        self.errors: list[int] = []
        self.calls = 0

    def fileno(self) -> int:
        """The real one's."""
        return self.sock.fileno()

    def _accept(self) -> tuple[int, Any]:
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        fd, address = self.sock._accept()  # type: ignore[attr-defined]
        return fd, address


class Door:
    """An acceptor on a port of 127.0.0.1, and what came in through it."""

    def __init__(self) -> None:
        self.sock = open_listener(Address(ip_address("127.0.0.1"), 0))
        self.fake = FakeListener(self.sock)
        self.accepted: list[tuple[Any, Any]] = []
        self.clients: list[socket.socket] = []
        self.free = 1000
        self.acceptor = Acceptor(get_reactor(), self.fake, self.take, lambda: self.free)  # type: ignore[arg-type]

    def take(self, sock: Any, address: Any) -> None:
        """Called by the acceptor."""
        self.accepted.append((sock, address))

    def knock(self, count: int = 1) -> None:
        """Connect some clients."""
        for _ in range(count):
            self.clients.append(socket.create_connection(self.sock.getsockname()))


@contextlib.contextmanager
def door() -> Iterator[Door]:
    """A door, closed with all that belongs to it at the end."""
    door = Door()
    try:
        yield door
    finally:
        door.acceptor.stop()
        door.sock.close()
        for sock in [*door.clients, *(sock for sock, _ in door.accepted)]:
            sock.close()


@pytest.fixture
def short_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only a moment when something is used up."""
    monkeypatch.setattr(listen, "BACK_OFF", 0.02)


# --- sockets ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_is_ready_for_clients(host: str) -> None:
    """It listens where it was told, does not block, can be opened again at once, and sends without delay."""
    with open_listener(Address(ip_address(host), 0)) as sock:
        assert sock.getsockname()[0] == host
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if host == "::1":
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_listener_may_have_a_name() -> None:
    """localhost is a host as any other."""
    with open_listener(Address("localhost", 0)) as sock:
        assert ip_address(sock.getsockname()[0]).is_loopback


def test_a_taken_port_is_an_error() -> None:
    """Who cannot listen says why, and leaves no socket open."""
    with open_listener(Address(ip_address("127.0.0.1"), 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(OSError, match="in use") as caught:
            open_listener(Address(ip_address("127.0.0.1"), port))
        assert caught.value.errno == errno.EADDRINUSE


# --- all listeners of a configuration ---


@contextlib.contextmanager
def opened(*urls: str, passed: Passed | None = None) -> Iterator[Listeners]:
    """The listeners of some URLs, closed at the end."""
    listeners = Listeners()
    listeners.open([Listen(url) for url in urls], passed)
    try:
        yield listeners
    finally:
        listeners.close()


def names_are(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name have these addresses; addresses stay what they are."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        if host[0] in "0123456789:":
            return real(host, port, **options)
        return [found for text in hosts for found in real(text, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_is_listened_on_at_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """One free port for all of them, so that a client may take whichever it finds first."""
    names_are(monkeypatch, "127.0.0.1", "127.0.0.2", "::1", "127.0.0.1")
    with opened("socks5://proxy.test:0") as listeners:
        names = [sock.getsockname()[:2] for sock in listeners.sockets[0]]
        assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2", "::1"]
        assert len({port for _, port in names}) == 1
        port = names[0][1]
        assert urls_of([Listen("socks5://proxy.test:0")], listeners.sockets) == [
            f"socks5://127.0.0.1:{port}",
            f"socks5://127.0.0.2:{port}",
            f"socks5://[::1]:{port}",
        ]


def test_a_port_that_is_taken_at_one_address_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another free port is tried, a bounded number of times; a port that was asked for is an error at once."""
    names_are(monkeypatch, "127.0.0.1", "127.0.0.2")
    tried: list[Address] = []
    taken = 1

    def bind(address: Address, only_ipv6: bool = False) -> socket.socket:
        tried.append(address)
        if len(tried) <= 2 * taken and str(address.host) == "127.0.0.2":
            raise OSError(errno.EADDRINUSE, "in use")
        return bind_listener(address, only_ipv6)

    monkeypatch.setattr(listen, "bind_listener", bind)
    with opened("socks5://proxy.test:0") as listeners:
        first, second = listeners.sockets[0]
        assert first.getsockname()[1] == second.getsockname()[1]
        assert [str(address.host) for address in tried] == ["127.0.0.1", "127.0.0.2"] * 2
    tried.clear()
    taken = TRIES
    with pytest.raises(OSError, match=r"no port is free at all addresses of proxy\.test"):
        opened("socks5://proxy.test:0").__enter__()
    assert len(tried) == 2 * TRIES
    tried.clear()
    with pytest.raises(OSError, match="in use"), closed_port() as port:
        opened(f"socks5://proxy.test:{port}").__enter__()
    assert [address.port for address in tried] == [port]


def test_an_address_of_a_name_that_this_machine_does_not_have(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """localhost is ::1 too where IPv6 is turned off: the others are enough, and it is said. None at all is an error."""
    names_are(monkeypatch, "192.0.2.1", "127.0.0.1")
    with opened("socks5://proxy.test:0") as listeners:
        assert [sock.getsockname()[0] for sock in listeners.sockets[0]] == ["127.0.0.1"]
    assert "proxy.test: not listening on 192.0.2.1: Cannot assign requested address" in caplog.text
    names_are(monkeypatch, "192.0.2.1")
    with pytest.raises(OSError, match="Cannot assign requested address"):
        opened("socks5://proxy.test:0").__enter__()


def test_the_ipv6_wildcard_takes_ipv4_too_unless_that_has_a_listener() -> None:
    """Alone it is for both; beside 0.0.0.0 with the same port each has its own, and both can be listened on."""
    with opened("socks5://[::]:0") as listeners:
        (sock,) = listeners.sockets[0]
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        sock.listen()
        with socket.create_connection(("127.0.0.1", sock.getsockname()[1])):
            pass
    with closed_port() as port:
        pass
    with opened(f"socks5://[::]:{port}", f"http://0.0.0.0:{port}") as listeners:
        for (sock,) in listeners.sockets:
            sock.listen()
        assert listeners.sockets[0][0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)):
                pass


def test_an_error_names_the_listener_and_leaves_nothing_open(tmp_path: Path) -> None:
    """Those that were open already are closed, and their files removed."""
    path = tmp_path / "tabi.sock"
    listeners = Listeners()
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"socks5://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as caught:
            listeners.open([Listen("socks5://127.0.0.1:0"), Listen(f"unix://{path}"), Listen(url)])
    assert caught.value.filename == f"listen[2].url: {url}"
    assert [sock.fileno() for group in listeners.sockets for sock in group] == [-1, -1]
    assert not path.exists()


def test_given_sockets_come_first_and_the_rest_is_opened(tmp_path: Path) -> None:
    """A file of a socket that was given is its maker's: it stays."""
    path = tmp_path / "given.sock"
    given = bind_unix(UnixSocket(str(path)))
    listeners = Listeners([[given]])
    listeners.open([Listen(f"unix://{path}"), Listen(f"unix://{path}2")])
    assert [len(group) for group in listeners.sockets] == [1, 1]
    listeners.close()
    listeners.close()
    assert (given.fileno(), path.exists(), Path(f"{path}2").exists()) == (-1, True, False)


def test_passed_sockets_among_others() -> None:
    """By name, by number and the rest, in the order of the listeners; a URL says where each is."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        numbers = [os.dup(sock.fileno()) for sock in socks]
        passed = Passed(dict(zip(numbers, ("web", "ssh", "web", "unknown"), strict=True)))
        urls = ("fd://", "socks5://127.0.0.1:0", "fd://web?protocol=socks5", f"fd://{numbers[1]}")
        listeners = stack.enter_context(opened(*urls, passed=passed))
        ports = [[sock.getsockname()[1] for sock in group] for group in listeners.sockets]
        expected = [sock.getsockname()[1] for sock in socks]
        assert (ports[0], ports[2:]) == ([expected[3]], [[expected[0], expected[2]], [expected[1]]])
        found = urls_of([Listen(url) for url in urls], listeners.sockets)
        assert found[0] == f"mixed://127.0.0.1:{expected[3]}"
        assert found[2] == f"socks5://127.0.0.1:{expected[0]}"


def test_the_environment_is_read_only_for_a_listener_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that embeds a server may have sockets of its own passed to it."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "0")
    with opened("socks5://127.0.0.1:0"):
        assert "LISTEN_FDS" in os.environ
    with socket.create_server(("127.0.0.1", 0)) as sock:
        Listeners([[sock]]).open([Listen("fd://web")])
        assert "LISTEN_FDS" in os.environ
    with pytest.raises(ConfigError, match=r"^listen\[1\].url: fd://web: no socket was passed \(LISTEN_FDS\)$"):
        opened("socks5://127.0.0.1:0", "fd://web").__enter__()
    assert "LISTEN_FDS" not in os.environ


# --- unix sockets ---


def rights(path: Path) -> int:
    """Of a file, without its kind."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_a_file_has_the_rights_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, umask: int
) -> None:
    """Whatever the umask says, at the end; and until then nobody else's at all."""
    path = tmp_path / "tabi.sock"
    seen: list[int] = []
    chmod, chown = os.chmod, os.chown

    def watch(call: Any) -> Any:
        def watched(*arguments: Any, **options: Any) -> None:
            seen.append(rights(path))
            call(*arguments, **options)

        return watched

    monkeypatch.setattr(os, "chmod", watch(chmod))
    monkeypatch.setattr(os, "chown", watch(chown))
    before = os.umask(umask)
    try:
        with bind_unix(UnixSocket(str(path), mode, str(os.getuid()))) as sock:
            assert seen == [0, 0]
            assert rights(path) == mode
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert not sock.getblocking()
            assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_owner_and_group_are_names_or_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who may give files away can have others own them, so that what is asked of the system is looked at."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, user, group, **options: asked.append((user, group)))
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    for owner, of_group in ((user, group), ("12", "34"), (None, group), (user, None), (None, None)):
        path = str(tmp_path / f"{owner}.{of_group}.sock")
        bind_unix(UnixSocket(path, 0o600, owner, of_group)).close()
    assert asked == [(0, 0), (12, 34), (-1, 0), (0, -1)]


@pytest.mark.parametrize("key", ["owner", "group"])
@pytest.mark.parametrize("number", ["4294967295", "99999999999", "9" * 5000])
def test_a_number_that_no_owner_has(tmp_path: Path, key: str, number: str) -> None:
    """The kernel takes -1 for nobody, and Python nothing beyond that: one line says so, and there is no socket."""
    place = UnixSocket(str(tmp_path / "tabi.sock"), 0o600, **{key: number})
    with pytest.raises(ConfigError, match="expected a number of at most 4294967294"):
        bind_unix(place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["owner", "group"])
def test_an_owner_that_nobody_is(tmp_path: Path, key: str) -> None:
    """The message names the listener and the name; no file is left."""
    url = f"unix://{tmp_path}/tabi.sock?{key}=nobody-is-called-so"
    what = "user" if key == "owner" else "group"
    with pytest.raises(ConfigError) as caught:
        opened(url).__enter__()
    assert str(caught.value) == f"listen[0].url: {url}: there is no {what} nobody-is-called-so"
    assert list(tmp_path.iterdir()) == []


def test_what_a_path_needs_can_be_seen_without_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory, the right to make a file in it, user and group."""
    check_unix(UnixSocket(str(tmp_path / "tabi.sock"), owner="0", group="0"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="there is no user nobody-is-called-so"):
        check_unix(UnixSocket(str(tmp_path / "tabi.sock"), owner="nobody-is-called-so"))
    with pytest.raises(FileNotFoundError):
        check_unix(UnixSocket(str(tmp_path / "missing" / "tabi.sock")))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do anything
    with pytest.raises(PermissionError):
        check_unix(UnixSocket(str(tmp_path / "tabi.sock")))


def test_a_file_that_may_not_be_given_away_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails behind bind leaves nothing."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PermissionError):
        bind_unix(UnixSocket(str(tmp_path / "tabi.sock"), owner="0"))
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    """Who was killed could not remove it."""
    path = str(tmp_path / "tabi.sock")
    bind_unix(UnixSocket(path)).close()
    assert os.path.exists(path)
    with bind_unix(UnixSocket(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_the_file_of_a_living_process_is_not(tmp_path: Path) -> None:
    """Nor where its queue is full, nor where it is for datagrams: somebody has that address."""
    path, full, datagrams = (str(tmp_path / name) for name in ("tabi.sock", "full.sock", "datagrams.sock"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(bind_unix(UnixSocket(path)))
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(full)
        sock.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex(full)
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        sock.bind(datagrams)
        for place in (path, full, datagrams):
            with pytest.raises(OSError, match="Address already in use") as caught:
                bind_unix(UnixSocket(place))
            assert caught.value.errno == errno.EADDRINUSE
            assert os.path.exists(place)


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    """A path that was mistyped costs nobody a file, and a link is one."""
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(path)
    for place in (path, link, tmp_path):
        with pytest.raises(FileExistsError, match="there is a file that is not a socket"):
            bind_unix(UnixSocket(str(place)))
    assert link.read_text() == "mine"


def test_a_path_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether somebody listens behind it is not known, so that it stays."""
    path = str(tmp_path / "tabi.sock")
    bind_unix(UnixSocket(path)).close()

    class Closed(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Closed)
    with pytest.raises(PermissionError):
        remove_stale(path)
    assert os.path.exists(path)


def test_a_file_that_has_become_another_is_not_removed(tmp_path: Path) -> None:
    """Whoever has taken the place meanwhile keeps it."""
    path = tmp_path / "tabi.sock"
    with opened(f"unix://{path}") as listeners:
        path.unlink()
        with bind_unix(UnixSocket(str(path))):
            listeners.close()
            assert path.exists()


def test_the_url_of_a_unix_socket_is_its_path(tmp_path: Path) -> None:
    """Also of one that was passed; one without a path in the file system is called what the listener is called."""
    path = tmp_path / "a b.sock"
    with bind_unix(UnixSocket(str(path))) as sock, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("")
        urls = urls_of([Listen("fd://web?protocol=socks5")], [[sock, abstract]])
    assert urls == [f"unix://{tmp_path}/a%20b.sock?protocol=socks5", "fd://web?protocol=socks5"]


# --- clients ---


def test_a_client_of_a_unix_socket_is_a_user() -> None:
    """Its host is a word, its port the number of the user that its process runs as."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert unix_client(theirs) == Address(UNIX, os.getuid())
        assert own_address(theirs, unix_client(theirs)) == parse_address("127.0.0.1:0")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.3", "::1"])
def test_where_a_client_has_connected_to_is_our_address(host: str) -> None:
    """Of several addresses that one, and the port of the listener."""
    with (
        open_listener(Address(ip_address(host), 0)) as sock,
        socket.create_connection(sock.getsockname()[:2]),
    ):
        there, name = sock.accept()
        with there:
            assert own_address(there, from_sockaddr(name)) == Address(ip_address(host), sock.getsockname()[1])


@pytest.mark.parametrize(("claimed", "own"), [("127.0.0.9:5", "127.0.0.9"), ("[::1]:5", "::1")])
def test_where_the_client_of_a_proxy_reaches_us(claimed: str, own: str) -> None:
    """The connection is its proxy's, of whichever family: the way to the client says which of our addresses it is."""
    with open_listener(Address(ip_address("127.0.0.1"), 0)) as sock, socket.create_connection(sock.getsockname()):
        there, _ = sock.accept()
        with there:
            found = own_address(there, parse_address(claimed))
            assert found.port == sock.getsockname()[1]
            assert found.host == (ip_address(own) if ":" in own else found.host)
            assert found.host.is_loopback  # type: ignore[union-attr]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert own_address(theirs, parse_address(claimed)) == Address(found.host, 0)


def test_a_client_of_a_proxy_that_there_is_no_way_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told the address that its proxy has connected to, unless that is of another family than its own."""

    def refusal(peer: Any) -> Any:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(listen, "route_to", refusal)
    with open_listener(Address(ip_address("127.0.0.1"), 0)) as sock, socket.create_connection(sock.getsockname()):
        there, _ = sock.accept()
        with there:
            assert own_address(there, parse_address("192.0.2.1:5")) == from_sockaddr(sock.getsockname())
            with pytest.raises(OSError, match="Network is unreachable"):
                own_address(there, parse_address("[2001:db8::1]:5"))


# --- a port of a range ---


class FakePorts:
    """A socket that knows which ports are taken, and what else binding to any of them comes to."""

    def __init__(self, *taken: int, error: int = errno.EADDRINUSE) -> None:
        self.taken = taken
        self.error = error
        self.tried: list[int] = []

    def bind(self, address: tuple[str, int]) -> None:
        """As bind(2)."""
        self.tried.append(address[1])
        if address[1] in self.taken:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_any_port(host: str, kind: int) -> None:
    """Without a range the kernel chooses, for both kinds of sockets and both versions of IP."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
        bind_port(sock, host, None)
        assert sock.getsockname()[0] == host
        assert sock.getsockname()[1] > 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_of_a_range(host: str, kind: int) -> None:
    """A free one is taken; where all are, the error says so and names the range."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as first, socket.socket(family, kind) as second:
        bind_port(first, host, None)
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"no port of {port}-{port} is free") as caught:
            bind_port(second, host, range(port, port + 1))
        assert caught.value.errno == errno.EADDRINUSE
        first.close()
        bind_port(second, host, range(port, port + 1))
        assert second.getsockname()[:2] == (host, port)


@pytest.mark.parametrize("free", range(100, 105))
def test_the_last_free_port_of_a_range_is_found(free: int) -> None:
    """Wherever the search begins, it comes round to the whole range, and tries no port twice."""
    for _ in range(20):
        sock: Any = FakePorts(*(port for port in range(100, 105) if port != free))
        bind_port(sock, "127.0.0.1", range(100, 105))
        assert sock.tried[-1] == free
        assert len(set(sock.tried)) == len(sock.tried)


def test_a_range_that_is_used_up() -> None:
    """Every port of it was tried, once, and none beside it."""
    sock: Any = FakePorts(*range(100, 105))
    with pytest.raises(OSError, match=r"no port of 100-104 is free"):
        bind_port(sock, "127.0.0.1", range(100, 105))
    assert sorted(sock.tried) == [*range(100, 105)]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EADDRNOTAVAIL])
def test_another_error_is_not_searched_around(number: int) -> None:
    """Ports that are the system's, and an address that is not ours, are errors with the first port."""
    sock: Any = FakePorts(*range(100, 105), error=number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        bind_port(sock, "127.0.0.1", range(100, 105))
    assert caught.value.errno == number
    assert len(sock.tried) == 1


def test_ports_are_spread_over_the_range() -> None:
    """A port that was just given back is not the next one's: late datagrams for it would find somebody else."""
    ports = set()
    for _ in range(50):
        sock: Any = FakePorts()
        bind_port(sock, "127.0.0.1", range(100, 1100))
        assert sock.tried[0] in range(100, 1100)
        ports.add(sock.tried[0])
    assert len(ports) > 10


# --- accepting ---


def test_clients_are_accepted(run: Run) -> None:
    """Each comes as a non-blocking socket without delay, with the address that it has."""

    async def main() -> None:
        with door() as entry:
            entry.acceptor.start()
            entry.knock(3)
            await until(lambda: len(entry.accepted) == 3)
            assert [address for _, address in entry.accepted] == [sock.getsockname() for sock in entry.clients]
            for sock, address in entry.accepted:
                assert sock.getpeername() == address
                assert sock.gettimeout() == 0.0
                assert not os.get_blocking(sock.fileno())
                assert not os.get_inheritable(sock.fileno())
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main)


def test_more_clients_than_a_turn_takes_are_all_accepted(run: Run) -> None:
    """The rest of the backlog shows up in the next turn."""

    async def main() -> None:
        with door() as entry:
            entry.knock(ACCEPTS_A_TURN + 10)
            entry.acceptor.start()
            await until(lambda: len(entry.accepted) == ACCEPTS_A_TURN + 10)

    run(main)


def test_an_accepted_client_that_fails_does_not_stop_the_door(run: Run) -> None:
    """What goes wrong with one client is reported; the next is let in."""

    async def main() -> None:
        reports: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reports.append(str(context["exception"])))
        with door() as entry:

            def fail(sock: Any, address: Any) -> None:
                entry.take(sock, address)
                if len(entry.accepted) == 1:
                    raise ValueError("the first one")

            entry.acceptor.accepted = fail
            entry.acceptor.start()
            entry.knock(2)
            await until(lambda: len(entry.accepted) == 2)
            assert reports == ["the first one"]

    run(main)


def test_who_left_before_being_accepted_is_passed_over(run: Run) -> None:
    """ECONNABORTED is nobody's fault and no reason for a line in the log."""

    async def main() -> None:
        with door() as entry:
            entry.fake.errors = [errno.ECONNABORTED]
            entry.acceptor.start()
            entry.knock()
            await until(lambda: entry.accepted)

    run(main)


@pytest.mark.parametrize("number", [errno.ENETDOWN, errno.EPROTO, errno.EHOSTUNREACH])
def test_a_pending_network_error_is_survived(run: Run, caplog: pytest.LogCaptureFixture, number: int) -> None:
    """accept(2) hands on errors of the network: they are logged, and accepting goes on."""

    async def main() -> None:
        with door() as entry:
            entry.fake.errors = [number]
            entry.acceptor.start()
            entry.knock()
            await until(lambda: entry.accepted)
            assert not entry.acceptor.exhausted

    with caplog.at_level(logging.WARNING, "tabi"):
        run(main)
    assert [os.strerror(number) in record.getMessage() for record in caplog.records] == [True]


# --- used up ---


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_or_memory_it_waits(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It does not spin, says so once however long it lasts, lets the client in later and says that too."""
    monkeypatch.setattr(listen, "BACK_OFF", 1000.0)

    async def main() -> None:
        with door() as entry:
            entry.fake.errors = [number, number, number]
            entry.acceptor.start()
            entry.knock()
            for tries in (1, 2, 3):
                await until(lambda: entry.fake.calls == tries)  # noqa: B023
                await turns(20)
                assert entry.fake.calls == tries
                assert not entry.accepted
                retry = entry.acceptor.retry
                assert retry is not None
                retry.cancel()
                entry.acceptor.start()  # as the timer does it
            await until(lambda: entry.accepted)

    with caplog.at_level(logging.WARNING, "tabi"):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [
        f"accept: {os.strerror(number)}; new connections wait",
        "accept: goes on",
    ]


@pytest.mark.usefixtures("short_back_off")
def test_without_room_clients_wait(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Who would get no way out is not accepted, stays connected, and is let in when there is room again."""

    async def main() -> None:
        with door() as entry:
            entry.free = 0
            entry.acceptor.start()
            entry.knock(2)
            await until(lambda: entry.acceptor.exhausted)
            assert entry.fake.calls == 0
            entry.free = 2
            await until(lambda: len(entry.accepted) == 2)
            entry.accepted[0][0].send(b"hello")
            assert entry.clients[0].recv(5) == b"hello"

    with caplog.at_level(logging.WARNING, "tabi"):
        run(main)
    assert len(caplog.records) == 2
    assert "no descriptor would be left" in caplog.records[0].getMessage()


def test_room_can_be_made(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Who waits comes in a moment later, also one after another: nobody waits for the back-off, and nothing is said."""

    async def main() -> None:
        with door() as entry:
            spare = [3]

            def free() -> int:
                return entry.free - len(entry.accepted)

            def make_room() -> bool:
                spare[0] -= 1
                entry.free += 1
                return spare[0] >= 0

            entry.free = 0
            entry.acceptor.room, entry.acceptor.make_room = free, make_room
            entry.acceptor.start()
            entry.knock(3)
            await until(lambda: len(entry.accepted) == 3)
            assert spare == [0]

    with caplog.at_level(logging.WARNING, "tabi"):
        run(main)
    assert not caplog.records


@pytest.mark.usefixtures("short_back_off")
def test_no_more_are_accepted_than_there_is_room_for(run: Run) -> None:
    """Of five that wait, two come in where there is room for two."""

    async def main() -> None:
        with door() as entry:
            entry.knock(5)
            room = [2]

            def free() -> int:
                return room[0] - len(entry.accepted)

            entry.acceptor.room = free
            entry.acceptor.start()
            await until(lambda: entry.acceptor.exhausted)
            assert len(entry.accepted) == 2
            room[0] = 5
            await until(lambda: len(entry.accepted) == 5)

    run(main)


# --- stopping ---


def test_after_stop_clients_stay_in_the_queue(run: Run) -> None:
    """Stopped means that nobody is accepted; started again, those who wait come in. Doing either twice is harmless."""

    async def main() -> None:
        with door() as entry:
            entry.acceptor.start()
            entry.acceptor.start()
            entry.acceptor.stop()
            entry.acceptor.stop()
            entry.knock()
            await turns(10)
            assert entry.fake.calls == 0
            entry.acceptor.start()
            await until(lambda: entry.accepted)

    run(main)


@pytest.mark.usefixtures("short_back_off")
def test_stop_while_it_backs_off_is_final(run: Run) -> None:
    """The timer that would start it again is gone."""

    async def main() -> None:
        with door() as entry:
            entry.fake.errors = [errno.EMFILE]
            entry.acceptor.start()
            entry.knock()
            await until(lambda: entry.acceptor.exhausted)
            entry.acceptor.stop()
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(3 * listen.BACK_OFF, over.set)
            await over.wait()
            assert entry.fake.calls == 1
            assert not entry.accepted

    run(main)


def test_keep_alive_is_inherited_by_what_is_accepted() -> None:
    """Seconds until the first probe and between probes; turned off again by None; a unix socket has none."""
    with bind_listener(parse_address("127.0.0.1:0")) as sock:
        sock.listen()
        sock.setblocking(True)
        for seconds, expected in ((60.0, (1, 60, 20)), (1.0, (1, 1, 1)), (None, (0, 1, 1))):
            keep_alive(sock, seconds)
            with socket.create_connection(sock.getsockname()), sock.accept()[0] as accepted:
                found = (
                    accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                    accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                )
                assert found == expected
    with socket.socket(socket.AF_UNIX) as sock:
        keep_alive(sock, 60)


def test_a_place_that_is_no_listener() -> None:
    """One socket for an address, one for each address of a name, with one port; each can listen."""
    for place in ("127.0.0.1:0", "[::1]:0", "localhost:0"):
        found = bind_place(parse_address(place))
        try:
            ports = {sock.getsockname()[1] for sock in found}
            assert len(ports) == 1
            for sock in found:
                sock.listen()
                socket.create_connection(sock.getsockname()[:2], 10).close()
        finally:
            for sock in found:
                sock.close()
