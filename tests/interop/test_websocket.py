"""A websocket over plain HTTP through `tabi serve`: aiohttp's client asks for an Upgrade, not for a tunnel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from conftest import Run
from processes import PATIENCE, serve

pytestmark = pytest.mark.interop

LARGE = bytes(range(256)) * 4096


async def echo(request: web.Request) -> web.WebSocketResponse:
    """Send each message back, the first one along with the 101."""
    websocket = web.WebSocketResponse(max_msg_size=0)
    await websocket.prepare(request)
    await websocket.send_str("welcome")
    async for message in websocket:
        await websocket.send_bytes(message.data)
    return websocket


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """A server of websockets; gives its port."""
    app = web.Application()
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def test_messages_go_both_ways(run_once: Run, tmp_path: Path) -> None:
    """The 101 comes with the server's first message; then a relay carries a mebibyte there and back, and the end."""

    async def main() -> None:
        async with echo_server() as port, aiohttp.ClientSession() as session:
            url, through = f"ws://localhost:{port}/echo", f"http://alice:secret@{proxy.address}"
            async with session.ws_connect(url, proxy=through, max_msg_size=0) as websocket:
                assert await websocket.receive_str(timeout=PATIENCE) == "welcome"
                for data in (b"small", LARGE):
                    await websocket.send_bytes(data)
                    assert await websocket.receive_bytes(timeout=PATIENCE) == data
            assert websocket.close_code == aiohttp.WSCloseCode.OK

    with serve(tmp_path, "-l", "mixed://127.0.0.1:0", "-u", "alice:secret") as proxy:
        run_once(main)
        (line,) = proxy.sessions(1)
    assert (line["user"], line["command"], line["host"], line["reply"]) == ("alice", "forward", "localhost", 101)
    assert min(line["up"], line["down"]) > len(LARGE)
