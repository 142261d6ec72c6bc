"""Listening sockets and the accept loop, also when descriptors or memory are used up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from conftest import Run
from sockets import open_listener, turns, until
from tabi.net import listen
from tabi.net.listen import ACCEPTS_A_TURN, Acceptor, bind_port
from tabi.net.reactor import get_reactor
from tabi.wire.address import Address


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
@pytest.mark.usefixtures("short_back_off")
def test_without_descriptors_or_memory_it_waits(run: Run, caplog: pytest.LogCaptureFixture, number: int) -> None:
    """It does not spin, says so once however long it lasts, lets the client in later and says that too."""

    async def main() -> None:
        with door() as entry:
            entry.fake.errors = [number, number, number]
            entry.acceptor.start()
            entry.knock()
            await until(lambda: entry.fake.calls == 1)
            await turns(20)
            assert entry.fake.calls == 1
            assert not entry.accepted
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
