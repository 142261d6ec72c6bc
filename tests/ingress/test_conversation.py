"""Refusals: the client can read why, and does not get more of the server than that."""

from __future__ import annotations

import asyncio
import socket

import pytest

from conftest import Run
from doubles import LOOPBACK, Scene, ask_for
from support import target
from tabi import Server, Session
from tabi.net import handshakes


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
