"""Refusals: the client can read why, and does not get more of the server than that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import msgspec
import pytest

from authorities import write_server
from conftest import Run
from doubles import LOOPBACK, Scene, ask_for, config, greet, read_reply, reset
from sockets import until
from support import client as tcp_client
from support import request, target
from tabi import Server, Session
from tabi.config import Listen, Log, RuleConfig
from tabi.ingress.conversation import SWALLOWED
from tabi.net import handshakes
from tabi.wire.address import parse_address
from tabi.wire.proxy_protocol import encode_v1, encode_v2


class Flood:
    """A client's socket that has more octets at every read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.first = b"\x05\x01\x80"
        self.reads = 0
        for name in ("fileno", "send", "shutdown", "getsockname", "getpeername", "getsockopt", "setsockopt", "close"):
            setattr(self, name, getattr(sock, name))

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.reads += 1
        assert self.reads < 1_000_000, "it is read for ever, and nobody else gets a turn"
        first, self.first = self.first, b""
        return first or bytes(size)


@pytest.mark.every_hosting
def test_a_refused_client_that_stays_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has read a refusal and does not close is closed soon."""
    monkeypatch.setattr(handshakes, "LINGER", 0.1)

    async def main() -> None:
        async with Scene() as scene:
            await scene.bring_to("refused")
            session = await scene.ended.get()
            assert (session.close, session.reply_code) == ("error", 5)

    run(main)


def test_a_refused_client_that_floods_does_not_have_the_loop_to_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a refused client sends without end others are served, and it is closed as soon as a silent one."""
    monkeypatch.setattr(handshakes, "LINGER", 0.3)

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, on_close=ended.put_nowait) as server, target() as port:
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            with ours:
                server.parts.acceptors[0].accepted(Flood(theirs), ("127.0.0.1", 40000))
                ours.sendall(b"\x05")  # an event, as from the first octet
                assert await ask_for(server, "127.0.0.1", port) == 0
                sessions = [await ended.get(), await ended.get()]
                assert {session.error for session in sessions} == {
                    None,
                    "no acceptable method: offered 80, expected 0x00",
                }

    run(main)


@pytest.mark.parametrize("action", ["deny", "drop"])
def test_a_refused_client_that_goes_on_sending_is_reset(run: Run, action: str) -> None:
    """After 1 MiB, long before the time is over; none of that is read that comes behind it."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        settings = msgspec.structs.replace(config(), rule=[RuleConfig(action)])  # type: ignore[arg-type]
        async with (
            Server(config=settings, on_close=ended.put_nowait) as server,
            tcp_client(server.addresses[0]) as (reader, writer),
        ):
            assert await greet((reader, writer)) == 0
            writer.write(request("127.0.0.1", 9))
            if action == "deny":
                assert (await read_reply(reader))[0] == 2
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    writer.write(bytes(1 << 16))
                    await writer.drain()
                raise AssertionError("62 MiB were taken")
            assert (await ended.get()).close == "denied"

    run(main)


def test_a_refused_client_that_sends_less_reads_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is not lost by a reset while the client still sends what it had begun."""
    monkeypatch.setattr(handshakes, "LINGER", 10.0)

    async def main() -> None:
        settings = msgspec.structs.replace(config(), rule=[RuleConfig("deny")])
        async with Server(config=settings) as server, tcp_client(server.addresses[0]) as (reader, writer):
            assert await greet((reader, writer)) == 0
            writer.write(request("127.0.0.1", 9) + bytes(SWALLOWED - 1))
            await writer.drain()
            writer.write_eof()
            assert (await read_reply(reader))[0] == 2
            assert await reader.read() == b""

    run(main)


OUTSIDE = parse_address("203.0.113.9:5")
HEADERS = [
    b"",
    encode_v1(None, None),
    encode_v1(OUTSIDE, OUTSIDE),
    encode_v2(None, None, local=True),
    encode_v2(OUTSIDE, OUTSIDE),
]
"""Of the balancer in front, which checks by itself or connects for a client."""

CHECKED = ["mixed", "socks5", "socks4", "http", "https", "socks5+tls", "mixed+tls"]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("protocol", CHECKED)
def test_a_health_check_leaves_no_line(run: Run, tmp_path: Path, protocol: str, header: bytes) -> None:
    """Whoever connects and leaves without an octet of its own, by an end or a reset, gets no line; with one it does."""
    place = tmp_path / "log"
    tls = write_server(tmp_path) if protocol == "https" or protocol.endswith("+tls") else None
    trusted = ["127.0.0.0/8"] if header else []

    async def main() -> None:
        listen = Listen(f"{protocol}://127.0.0.1:0", tls=tls, proxy_protocol=trusted)
        settings = msgspec.structs.replace(config(listen), log=Log(access=str(place)))
        async with Server(config=settings, open=True) as server:
            sessions = server.parts.sessions
            for octets, how in ((b"", "end"), (b"", "reset"), (b"\x04", "end")):
                async with tcp_client(server.addresses[0]) as (reader, writer):
                    writer.write(header + octets)
                    if how == "reset":
                        await until(lambda: sessions.running)
                        reset(writer)
                    else:
                        writer.write_eof()
                        with contextlib.suppress(ConnectionError):
                            await reader.read()
                await until(lambda: not sessions.running)

    run(main)
    (line,) = place.read_text().splitlines()
    assert json.loads(line)["error"]
