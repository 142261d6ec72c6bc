"""OpenSSH with `tabi connect` as its ProxyCommand, to an sshd of the test's own on loopback."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import TABI, Serve, run_program, serve
from sshd import Sshd, run_sshd

pytestmark = pytest.mark.interop


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[tuple[Sshd, int]]:
    """A running one and its port."""
    with run_sshd(tmp_path) as running:
        yield running


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A proxy with a user."""
    with serve(tmp_path, "-u", "alice:secret") as running:
        yield running


def proxy_command(proxy: Serve, login: str = "alice:secret") -> str:
    """What the documentation tells people to write, with this checkout's tabi."""
    via = proxy.url.replace("//", f"//{login}@")
    return f"{shlex.join([*TABI, 'connect', '--via', via])} %h:%p"


def test_a_command_over_ssh(sshd: tuple[Sshd, int], proxy: Serve) -> None:
    """Its input, its output and its exit code come through."""
    server, port = sshd
    done = run_program(server.command(port, proxy_command(proxy), "cat; exit 7"), stdin=b"hello")
    assert (done.returncode, done.stdout) == (7, b"hello"), done.stderr
    (session,) = proxy.sessions(1)
    assert (session["user"], session["host"], session["port"]) == ("alice", "127.0.0.1", port)


def test_a_large_file_over_ssh(sshd: tuple[Sshd, int], proxy: Serve) -> None:
    """16 MiB up and down again, octet for octet."""
    server, port = sshd
    data = hashlib.shake_256(b"ssh").digest(16 << 20)
    done = run_program(server.command(port, proxy_command(proxy), "cat"), stdin=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_a_proxy_that_refuses_is_what_ssh_shows(sshd: tuple[Sshd, int], proxy: Serve) -> None:
    """The reason is one line among ssh's own, and ssh ends with 255."""
    server, port = sshd
    done = run_program(server.command(port, proxy_command(proxy, "alice:wrong"), "true"))
    assert done.returncode == 255
    said = rf"^tabi: {re.escape(str(proxy.address))}: the proxy did not accept the user name and password$"
    assert re.search(said, done.stderr.decode(), re.MULTILINE)
