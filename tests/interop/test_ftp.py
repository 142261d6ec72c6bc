"""FTP in active mode (RFC 959, RFC 2428) through `tabi serve`: the server connects back, to where a BIND listens."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conftest import Run
from processes import PATIENCE, Serve, environment, need, serve
from tabi import Proxy, Stream
from tabi.wire.address import Address

pytestmark = pytest.mark.interop

SERVER = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_anonymous(sys.argv[2], perm="elrw")
server = FTPServer((sys.argv[1], 0), FTPHandler)
print(server.socket.getsockname()[1], flush=True)
server.serve_forever()
"""
"""pyftpdlib, which connects back only to the address that its client comes from."""

DATA = hashlib.shake_256(b"ftp").digest(3 << 20)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A proxy without users."""
    with serve(tmp_path) as running:
        yield running


@contextlib.contextmanager
def ftp_server(folder: Path, host: str) -> Iterator[int]:
    """An FTP server of a folder; gives its port."""
    command = [sys.executable, "-W", "ignore", "-c", SERVER, host, str(folder)]
    errors = folder.with_suffix(".stderr")
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, errors.read_text()
        yield int(line)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


class Ftp:
    """A client in active mode: CONNECT for the control connection, BIND for each data connection."""

    def __init__(self, proxy: Proxy, host: str, command: str) -> None:
        self.proxy = proxy
        self.host = host
        self.command = command

    async def login(self, port: int) -> None:
        """Connect as anonymous, for binary files."""
        self.reader, self.writer = await self.proxy.open_connection(self.host, port)
        await self.expect("220")
        for line, code in (("USER anonymous", "331"), ("PASS x", "230"), ("TYPE I", "200")):
            await self.say(line, code)

    async def say(self, line: str, code: str) -> None:
        """Send a command and read its reply."""
        self.writer.write(line.encode() + b"\r\n")
        await self.expect(code)

    async def expect(self, code: str) -> None:
        """Read a reply, whose code begins so."""
        while (line := (await self.reader.readline()).decode())[3:4] == "-":
            pass
        assert line.startswith(code), line

    def port_command(self, address: Address) -> str:
        """PORT or EPRT for an address."""
        if self.command == "PORT":
            return "PORT " + ",".join(
                str(octet) for octet in (*str(address.host).split("."), *divmod(address.port, 256))
            )
        return f"EPRT |{2 if ':' in str(address.host) else 1}|{address.host}|{address.port}|"

    @contextlib.asynccontextmanager
    async def transfer(self, line: str) -> AsyncIterator[Stream]:
        """A data connection for a command; behind it the server must say that all went well."""
        async with self.proxy.bind(self.host) as listener:
            await self.say(self.port_command(listener.address), "200")
            await self.say(line, "1")
            async with await listener.accept() as stream:
                yield stream
        await self.expect("226")

    async def close(self) -> None:
        """Say goodbye."""
        await self.say("QUIT", "221")
        self.writer.close()
        await self.writer.wait_closed()


@pytest.mark.parametrize(
    ("command", "host"), [("PORT", "127.0.0.1"), ("EPRT", "127.0.0.1"), ("EPRT", "::1")], ids=lambda value: value
)
def test_files_go_both_ways(run_once: Run, proxy: Serve, tmp_path: Path, command: str, host: str) -> None:
    """RETR and STOR of 3 MiB each arrive whole, the end of the data connection included; each was a BIND."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "down").write_bytes(DATA)

    async def main() -> None:
        with ftp_server(folder, host) as port:
            ftp = Ftp(Proxy(proxy.url), host, command)
            await ftp.login(port)
            async with ftp.transfer("RETR down") as stream:
                received = bytearray()
                while chunk := await stream.receive():
                    received += chunk
                assert received == DATA
            async with ftp.transfer("STOR up") as stream:
                await stream.send_all(DATA)
            await ftp.close()
        assert (folder / "up").read_bytes() == DATA

    run_once(main)
    sessions = {(line["command"], line["up"], line["down"]) for line in proxy.sessions(3)}
    assert sessions >= {("bind", 0, len(DATA)), ("bind", len(DATA), 0)}
    assert {line["host"] for line in proxy.sessions(3)} == {host}


def test_a_client_that_knows_nothing_of_proxies(proxy: Serve, tmp_path: Path) -> None:
    """tnftp in active mode under Dante's socksify, whose BINDs let anyone call: RETR and STOR of 3 MiB arrive whole."""
    socksify, tnftp = need("socksify"), need("tnftp")
    here, folder = tmp_path / "here", tmp_path / "files"
    for path in (here, folder):
        path.mkdir()
    (folder / "down").write_bytes(DATA)
    dante = tmp_path / "socks.conf"
    dante.write_text(
        f"route {{ from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {proxy.address.port}\n"
        "proxyprotocol: socks_v5\ncommand: connect bind\nmethod: none }\n"
    )
    with ftp_server(folder, "127.0.0.1") as port:
        done = subprocess.run(
            [socksify, tnftp, "-A", "-n", "-v", "127.0.0.1", str(port)],
            input=b"user anonymous x\nbinary\nget down\nput down up\nquit\n",
            capture_output=True,
            cwd=here,
            env=environment() | {"SOCKS_CONF": str(dante), "HOME": str(here)},
            timeout=PATIENCE,
        )
    assert done.stdout.count(b"\n226 ") == 2, done.stdout.decode()
    assert (here / "down").read_bytes() == (folder / "up").read_bytes() == DATA
    # Only the data connections: what is on loopback Dante's client connects to without the proxy.
    sessions = {(line["command"], line["host"], line["up"], line["down"]) for line in proxy.sessions(2)}
    assert sessions == {("bind", "0.0.0.0", 0, len(DATA)), ("bind", "0.0.0.0", len(DATA), 0)}
