"""SSH servers for the tests: an sshd with keys of its own, and one of asyncssh that does what a test wants."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncssh

from processes import PATIENCE, environment, need, receive_exactly, run_program, wait_for
from support import free_port
from tabi.config import SshConfig as Settings
from tabi.egress.ssh_keys import SshKeys


class Sshd:
    """An sshd, with keys and a file of known hosts in a folder."""

    def __init__(self, folder: Path, *settings: str) -> None:
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
            + "".join(f"{setting}\n" for setting in settings)
        )

    def start(self, port: int, errors: int) -> subprocess.Popen[bytes]:
        """Run it on a port of 127.0.0.1. As root it wants its empty directory, which packages make at boot."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        options = ["-D", "-e", "-f", str(self.config), "-o", f"ListenAddress=127.0.0.1:{port}"]
        return subprocess.Popen([self.sshd, *options], stdin=subprocess.DEVNULL, stderr=errors, env=environment())

    def know(self, port: int) -> None:
        """Write down its host key."""
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(self.folder / 'host.pub').read_text()}")

    def command(self, port: int, proxy_command: str, *remote: str) -> list[str]:
        """An ssh command line that reads no configuration of the user's."""
        self.know(port)
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

    @property
    def keys(self) -> SshKeys:
        """Those that go with it."""
        return SshKeys(str(self.folder / "known_hosts"), str(self.folder / "user"))

    @property
    def settings(self) -> Settings:
        """The same as a configuration has them."""
        return Settings(known_hosts=self.keys.known_hosts, key=self.keys.key)


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


@contextlib.contextmanager
def run_sshd(folder: Path, *settings: str) -> Iterator[tuple[Sshd, int]]:
    """A running one and its port. Where somebody took the port in between, it is tried with another."""
    server = Sshd(folder, *settings)
    with (folder / "sshd.stderr").open("wb") as errors, contextlib.ExitStack() as stack:
        for _ in range(5):
            port = free_port()
            process = server.start(port, errors.fileno())
            stack.callback(process.wait, PATIENCE)
            stack.callback(process.kill)
            wait_for(functools.partial(decided, process, port), "sshd")
            if process.poll() is None:
                break
        assert process.poll() is None, (folder / "sshd.stderr").read_text()
        server.know(port)
        yield server, port


def user_url(port: int) -> str:
    """The URL of an sshd here, for this user."""
    return f"ssh://{getpass.getuser()}@127.0.0.1:{port}"


# --- in the test's own loop ---

Accept = Callable[["Server", str, int], object]
"""What a server answers to a request for a channel: see `asyncssh.SSHServer.connection_requested`."""


class Server(asyncssh.SSHServer):
    """One connection of `ssh_server`."""

    def __init__(self, accept: Accept, connections: list[asyncssh.SSHServerConnection]) -> None:
        self.accept = accept
        self.connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connections.append(conn)

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == ("alice", "hunter2")

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> object:  # type: ignore[override]
        return self.accept(self, dest_host, dest_port)


class SshServer:
    """A running server of the test's own: its port, its connections, the file in which its host key is."""

    def __init__(self, port: int, connections: list[asyncssh.SSHServerConnection], known_hosts: Path) -> None:
        self.port = port
        self.connections = connections
        self.keys = SshKeys(str(known_hosts))


@contextlib.asynccontextmanager
async def ssh_server(folder: Path, accept: Accept = lambda server, host, port: True) -> AsyncIterator[SshServer]:
    """A server for alice with the password hunter2 that forwards everything, or does as ``accept`` says."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    connections: list[asyncssh.SSHServerConnection] = []
    acceptor = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=lambda: Server(accept, connections), server_host_keys=[key]
    )
    port = acceptor.get_port()
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}")
    try:
        yield SshServer(port, connections, known_hosts)
    finally:
        acceptor.close()
        await acceptor.wait_closed()
        for conn in connections:
            conn.abort()
            await conn.wait_closed()
