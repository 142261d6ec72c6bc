"""Sockets that a service manager passes on, as sd_listen_fds(3) has it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import ConfigError
from tabi.net import passed as module
from tabi.net.passed import Group, Inherited, Passed, take_passed

ASIDE = 500
"""Where the descriptors of these tests begin. The kernel gives others the lowest number that is free."""


@contextlib.contextmanager
def listening(kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, backlog: int | None = 4) -> Iterator[int]:
    """A descriptor as it is passed; whoever takes it closes it. Its number is none that others get meanwhile."""
    with socket.socket(family, kind) as sock:
        sock.bind("" if family == socket.AF_UNIX else ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        if backlog is not None:
            sock.listen(backlog)
        number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, ASIDE)
    try:
        yield number
    finally:
        with contextlib.suppress(OSError):
            os.close(number)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_socket_that_is_taken_is_ready_for_clients(family: int) -> None:
    """TCP and unix: it is the same descriptor, no child inherits it, and over TCP it sends without delay."""
    with listening(family=family) as number:
        (sock,) = Passed({number: "web"}).take("web", ())
        with sock:
            assert (sock.fileno(), sock.family) == (number, family)
            assert fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            if family != socket.AF_UNIX:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_names_numbers_and_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    """A name takes all that have it, a number one, and the empty name what no other listener asks for."""
    with contextlib.ExitStack() as stack:
        numbers = [stack.enter_context(listening()) for _ in range(5)]
        found = Passed(dict(zip(numbers, ("web", "ssh", "web", "unknown", "other"), strict=True)))
        names = {"web", str(numbers[1]), ""}
        web, one, rest = (found.take(name, names) for name in ("web", str(numbers[1]), ""))
        for sock in (*web, *one, *rest):
            stack.enter_context(sock)
        assert [[sock.fileno() for sock in group] for group in (web, one, rest)] == [
            [numbers[0], numbers[2]],
            [numbers[1]],
            [numbers[3], numbers[4]],
        ]
        found.warn()
        assert caplog.text == ""


def test_what_nobody_takes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Clients of such a socket would wait for ever, so whoever runs it should know."""
    with listening() as number, caplog.at_level(logging.WARNING):
        Passed({number: "ssh"}).warn()
    assert f"descriptor {number}, ssh, was passed, but no listener takes it (fd://ssh)" in caplog.text


@pytest.mark.parametrize(
    ("names", "name", "words"),
    [
        ({3: "web", 4: "ssh", 5: "web"}, "wed", "no socket of that name was passed, expected one of web, ssh"),
        ({3: "web"}, "", "no other socket was passed, expected one of web"),
        ({}, "web", r"no socket was passed \(LISTEN_FDS\)"),
        ({}, "", r"no socket was passed \(LISTEN_FDS\)"),
        ({}, "1000000", "descriptor 1000000: Bad file descriptor"),
        ({}, "9" * 30, "descriptor 9+: there is none"),
    ],
)
def test_a_name_that_was_not_passed(names: dict[int, str], name: str, words: str) -> None:
    """The message has the names that there are."""
    with pytest.raises(ConfigError, match=words):
        Passed(names).take(name, ("web",))


def test_a_descriptor_has_one_listener() -> None:
    """By its number and by its name it is the same; what was taken before is closed again."""
    with listening() as number, listening() as other:
        found = Passed({other: "web", number: "web"})
        (sock,) = found.take(str(number), ())
        with sock, pytest.raises(ConfigError, match=f"descriptor {number} is another listener's"):
            found.take("web", ())
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(other)


def test_what_cannot_be_accepted_on(tmp_path: Path) -> None:
    """A file, datagrams, and a connection or a socket that does not listen: said before anybody waits for it."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ConfigError, match=f"descriptor {fd}: Socket operation on non-socket"):
            Passed({fd: "x"}).take("x", ())
    finally:
        os.close(fd)
    with listening(socket.SOCK_DGRAM, backlog=None) as number:
        with pytest.raises(ConfigError, match=f"descriptor {number} is not a socket of TCP or of unix streams"):
            Passed({number: "x"}).take("x", ())
        os.fstat(number)
    with listening(backlog=None) as number:
        with pytest.raises(ConfigError, match=f"descriptor {number} does not listen, expected a listening socket"):
            Passed({number: "x"}).take("x", ())
        os.fstat(number)


# --- the environment ---


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Two descriptors in a row, of which the first stands for number 3."""
    with listening() as one, listening() as two:
        assert two == one + 1
        monkeypatch.setattr(module, "FIRST", one)
        yield one


def environment(**more: str) -> dict[str, str]:
    """What systemd sets for this process."""
    return {"LISTEN_PID": str(os.getpid()), "HOME": "/root", **more}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["unknown", "unknown"]),
        ("web:ssh", ["web", "ssh"]),
        ("web", ["web", "unknown"]),
        (":web", ["unknown", "web"]),
        ("web:web:more", ["web", "web"]),
    ],
)
def test_the_names_in_the_environment(first: int, names: str | None, expected: list[str]) -> None:
    """By their order; without one it is "unknown". Nothing of it is left for others, nor are the descriptors."""
    environ = environment(LISTEN_FDS="2") | ({} if names is None else {"LISTEN_FDNAMES": names})
    found = take_passed(environ)
    assert found.names == dict(zip((first, first + 1), expected, strict=True))
    assert environ == {"HOME": "/root"}
    assert not os.get_inheritable(first)
    assert not os.get_inheritable(first + 1)


@pytest.mark.parametrize("owner", ["", "1", "x", str(os.getppid())])
def test_what_was_passed_to_another_process(first: int, owner: str) -> None:
    """A variable that was inherited speaks of descriptors that are not ours; it is removed."""
    environ = {"LISTEN_PID": owner, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert take_passed(environ).names == {}
    assert environ == {}
    assert take_passed({}).names == {}


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "\uff11"])
def test_a_count_that_is_none(count: str) -> None:
    """The message names the variable."""
    with pytest.raises(ConfigError, match=r"^LISTEN_FDS: .*, expected a number$"):
        take_passed(environment(LISTEN_FDS=count))


def test_more_than_are_open(first: int) -> None:
    """The count ends at the first descriptor that is not there."""
    with pytest.raises(ConfigError, match=r"^LISTEN_FDS: 1000000000, but descriptor \d+ is not open$"):
        take_passed(environment(LISTEN_FDS="1000000000"))


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_environment_is_read_or_a_configuration_error(count: str, names: str) -> None:
    """Nothing else is raised."""
    with contextlib.suppress(ConfigError):
        take_passed(environment(LISTEN_FDS=count, LISTEN_FDNAMES=names))
    with pytest.raises(ConfigError):
        Passed({}).take(f"x{names}", ())


def test_inherited_sockets_go_by_their_place() -> None:
    """Of several at one place the first is taken first; what nobody takes is closed, and no child inherits any."""
    with contextlib.ExitStack() as stack:
        numbers = [stack.enter_context(listening()) for _ in range(4)]
        for number in numbers:
            os.set_inheritable(number, True)
        groups = [
            Group("127.0.0.1:0", numbers[:1], []),
            Group("127.0.0.1:0", numbers[1:2], []),
            Group("/x.sock", numbers[2:3], [("/x.sock", 1, 2)]),
            Group("[::1]:1080", numbers[3:], []),
        ]
        inherited = Inherited(groups)
        assert not any(map(os.get_inheritable, numbers))
        found = [inherited.take(place) for place in ("127.0.0.1:0", "/x.sock", "127.0.0.1:0")]
        assert [one and [[sock.fileno() for sock in one[0]], one[1]] for one in found] == [
            [numbers[:1], []],
            [numbers[2:3], [("/x.sock", 1, 2)]],
            [numbers[1:2], []],
        ]
        assert inherited.take("127.0.0.1:0") is None
        assert inherited.take("192.0.2.1:1") is None
        inherited.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(numbers[3])
        for one in found:
            for sock in one[0] if one else ():
                sock.close()
