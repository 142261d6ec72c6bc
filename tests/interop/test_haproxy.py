"""haproxy, which the PROXY protocol comes from: in front of tabi, behind it, and checking its health."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from conftest import Run
from doubles import FakeResolver, end_of, open_tunnel, read_reply
from processes import PATIENCE, Serve, environment, need, serve
from support import GREETING, client, request, target
from tabi.egress.direct import Direct
from tabi.egress.proxy_header import SendProxyHeader
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.policy.guard import allow_any_address
from tabi.session import UNIX, Session
from tabi.wire.address import Address, from_sockaddr, parse_address
from tabi.wire.proxy_protocol import encode_v1

pytestmark = pytest.mark.interop

OPTIONS = (
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2 proxy-v2-options crc32c",
    "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
)
"""What haproxy 2.6 can write in front of plain TCP."""

CONFIGURATION = """\
global
    maxconn 100
defaults
    timeout connect 10s
    timeout client 20s
    timeout server 20s
listen test
    bind fd@{fd} {bind}
    {rest}
"""

TABI = """\
[[listen]]
url = "mixed://127.0.0.1:0"
proxy_protocol = ["127.0.0.0/8"]
[log]
access = "{log}"
"""


@contextlib.contextmanager
def haproxy(folder: Path, rest: str, bind: str = "") -> Iterator[Address]:
    """A running haproxy that listens on a socket of ours; gives its address."""
    program = need("haproxy")
    path = folder / "haproxy.cfg"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        path.write_text(CONFIGURATION.format(fd=sock.fileno(), bind=bind, rest=rest))
        with (folder / "haproxy.log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-db", "-f", path], env=environment(), pass_fds=(sock.fileno(),), stdout=log, stderr=log
            )
        address = from_sockaddr(sock.getsockname())
    try:
        yield address  # it listens already: who comes before haproxy is ready waits in the backlog
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextlib.contextmanager
def behind_haproxy(folder: Path, options: str, bind: str = "") -> Iterator[tuple[Serve, Address, Path]]:
    """tabi behind haproxy: gives it, haproxy's address, and the path of the access log."""
    log = folder / "access.log"
    (folder / "tabi.toml").write_text(TABI.format(log=log))
    with (
        serve(folder, "-c", folder / "tabi.toml", "--open") as tabi,
        haproxy(folder, f"mode tcp\n    server tabi {tabi.address} {options}", bind) as address,
    ):
        yield tabi, address, log


def only(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The one line of a log that is there."""
    (line,) = lines
    return line


@pytest.mark.parametrize("options", OPTIONS)
def test_in_front_of_tabi(run_once: Run, tmp_path: Path, options: str) -> None:
    """SOCKS5 and SOCKS4 work through it, and the log has the client's address and port, not haproxy's."""

    async def main() -> list[str]:
        clients = []
        async with target() as port:
            async with client(address, "127.0.0.5") as streams:
                await open_tunnel(streams, parse_address(f"127.0.0.1:{port}"))
                streams[1].write(b"ping")
                assert await streams[0].readexactly(4) == b"ping"
                clients.append(str(from_sockaddr(streams[1].get_extra_info("sockname"))))
            async with client(address, "127.0.0.6") as (reader, writer):
                writer.write(b"\x04\x01" + port.to_bytes(2, "big") + b"\x7f\x00\x00\x01\x00early")
                assert (await reader.readexactly(13))[8:] == b"early"
                clients.append(str(from_sockaddr(writer.get_extra_info("sockname"))))
        return clients

    with behind_haproxy(tmp_path, options) as (tabi, address, log):
        clients = run_once(main)
        lines = tabi.sessions(2, log)
    assert sorted(line["client"] for line in lines) == sorted(clients)
    assert sorted(line["protocol"] for line in lines) == ["socks4", "socks5"]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_client_from_outside_is_guarded(run_once: Run, tmp_path: Path, options: str) -> None:
    """haproxy on the same machine does not lend its own address to clients from outside."""

    async def main() -> None:
        async with client(address) as (reader, writer):
            # accept-proxy: haproxy itself learns of a client that this machine cannot have.
            writer.write(encode_v1(parse_address("203.0.113.9:50000"), address) + GREETING + request("127.0.0.1", 80))
            assert await reader.readexactly(2) == b"\x05\x00"
            assert (await read_reply(reader))[0] == 2

    with behind_haproxy(tmp_path, options, "accept-proxy") as (tabi, address, log):
        run_once(main)
        line = only(tabi.sessions(1, log))
    assert (line["client"], line["close"], line["reply"]) == ("203.0.113.9:50000", "denied", 2)


def test_without_the_header_nobody_gets_through(run_once: Run, tmp_path: Path) -> None:
    """Where send-proxy was forgotten, the log says what is missing."""

    async def main() -> None:
        async with client(address) as (reader, writer):
            writer.write(GREETING)
            assert await end_of(reader) in ("end", "reset")

    with behind_haproxy(tmp_path, "") as (tabi, address, log):
        run_once(main)
        assert only(tabi.sessions(1, log))["error"].startswith("PROXY header: begins with b'\\x05\\x01\\x00'")


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2"])
def test_health_checks(run_once: Run, tmp_path: Path, options: str) -> None:
    """They bear a header about nobody and ask for nothing: they leave no line, and haproxy finds tabi healthy."""

    async def main() -> None:
        async with target() as port, client(address) as streams:
            await open_tunnel(streams, parse_address(f"127.0.0.1:{port}"))

    check = f"{options} check check-send-proxy inter 100ms fall 1 rise 1"
    with behind_haproxy(tmp_path, check) as (tabi, address, log):
        for _ in range(5):
            run_once(main)
        lines = tabi.sessions(5, log)
    assert [line["command"] for line in lines if line["command"]] == ["connect"] * 5
    # haproxy ends its checks with a reset, which may overtake the header: then nobody knows what it was.
    assert {line["error"] for line in lines if not line["command"]} <= {"connection reset by peer"}


# --- haproxy as the one that receives ---

ECHO = 'mode http\n    http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port]"'
ASK = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("version", [1, 2])
def test_haproxy_learns_who_the_client_is(run_once: Run, tmp_path: Path, version: int) -> None:
    """With send_proxy_protocol, haproxy behind tabi (accept-proxy) sees the client that came to tabi."""
    (tmp_path / "tabi.toml").write_text(
        f'[[listen]]\nurl = "socks5://127.0.0.1:0"\n[egress.direct]\nsend_proxy_protocol = {version}\n'
    )

    async def main() -> None:
        async with client(tabi.address, "127.0.0.5") as streams:
            await open_tunnel(streams, address)
            streams[1].write(ASK)
            body = (await streams[0].read()).partition(b"\r\n\r\n")[2]
            assert body.decode() == str(from_sockaddr(streams[1].get_extra_info("sockname")))

    with serve(tmp_path, "-c", tmp_path / "tabi.toml") as tabi, haproxy(tmp_path, ECHO, "accept-proxy") as address:
        run_once(main)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("source", ["203.0.113.9:50000", "[2001:db8::9]:50000", UNIX])
def test_haproxy_takes_every_header_that_we_send(run: Run, tmp_path: Path, version: Literal[1, 2], source: str) -> None:
    """Of another family than the connection's, too, and of a client without an IP address, whom it takes for us."""
    session = Session(1, "test", Address(UNIX, 1000) if source == UNIX else parse_address(source), 0.0)

    async def main() -> None:
        dialer = Dialer(get_reactor(), FakeResolver(), 10)
        async with await SendProxyHeader(Direct(dialer), version).open(address, allow_any_address, session) as stream:
            await stream.send_all(ASK)
            answer = b""
            while data := await stream.receive():
                answer += data
            expected = from_sockaddr(stream.sock.getsockname()) if source == UNIX else session.client
        seen = answer.partition(b"\r\n\r\n")[2].decode()
        assert seen == f"{expected.host}:{expected.port}"
        await dialer.close()

    with haproxy(tmp_path, ECHO, "accept-proxy") as address:
        run(main)
