"""OpenSSH with `tabi connect` as its ProxyCommand, to an sshd of the test's own on loopback."""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import PATIENCE, TABI, Serve, environment, need, receive_exactly, run_program, serve, wait_for

pytestmark = pytest.mark.interop


class Sshd:
    """An sshd that serves one connection at a time, with its own keys."""

    def __init__(self, folder: Path) -> None:
        self.ssh, self.sshd, keygen = need("ssh"), need("sshd"), need("ssh-keygen")
        self.folder = folder
        folder.chmod(0o700)
        for name in ("host", "user"):
            done = run_program([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name])
            assert done.returncode == 0, done.stderr
        (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
        self.config = folder / "sshd_config"
        self.config.write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\n"
        )

    def start(self, port: int, errors: int) -> subprocess.Popen[bytes]:
        """Run it on a port of 127.0.0.1. As root it wants its empty directory, which packages make at boot."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        options = ["-D", "-e", "-f", str(self.config), "-o", f"ListenAddress=127.0.0.1:{port}"]
        return subprocess.Popen([self.sshd, *options], stdin=subprocess.DEVNULL, stderr=errors, env=environment())

    def command(self, port: int, proxy_command: str, *remote: str) -> list[str]:
        """An ssh command line that reads no configuration of the user's."""
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(self.folder / 'host.pub').read_text()}")
        options = {
            "ProxyCommand": proxy_command,
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "IdentityFile": self.folder / "user",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [self.ssh, "-F", "none", *flags, "-p", str(port), f"{getpass.getuser()}@127.0.0.1", *remote]


def greets(port: int) -> bool:
    """Whether an SSH server answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            return receive_exactly(sock, 4) == b"SSH-"
    except OSError:
        return False


def decided(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether sshd has come up or given up."""
    return process.poll() is not None or greets(port)


def free_port() -> int:
    """A port that was free a moment ago: sshd cannot take one by itself and say which."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[tuple[Sshd, int]]:
    """A running one and its port. Where somebody took the port in between, it is tried with another."""
    server = Sshd(tmp_path)
    with (tmp_path / "sshd.stderr").open("wb") as errors, contextlib.ExitStack() as stack:
        for _ in range(5):
            port = free_port()
            process = server.start(port, errors.fileno())
            stack.callback(process.wait, PATIENCE)
            stack.callback(process.kill)
            wait_for(functools.partial(decided, process, port), "sshd")
            if process.poll() is None:
                break
        assert process.poll() is None, (tmp_path / "sshd.stderr").read_text()
        yield server, port


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
    assert b"tabi: the proxy did not accept the user name and password\n" in done.stderr
