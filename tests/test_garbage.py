"""What a session leaves behind: nothing that only the garbage collector finds, which workers let run seldom."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from authorities import client_context, write_server
from conftest import Run
from doubles import until
from hellos import client_hello
from sockets import turns
from support import GREETING, closed_port, request, target
from tabi import Config, Server
from tabi.config import Listen, Log, RuleConfig, Seconds, Timeouts
from tabi.wire.address import Address

SESSIONS = 5
TOO_MUCH_AT_ONCE = 100_000

KINDS = (
    "socks5",
    "socks4",
    "get",
    "post",
    "early",
    "connect",
    "refused",
    "rubbish",
    "silent",
    "slow",
    "hello",
    "half",
    "denied",
)


async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request; that for /post when its content was read."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        if b"/post" in head:
            await reader.readexactly(TOO_MUCH_AT_ONCE)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def session(kind: str, proxy: Address, echo: int, web: int, tls: bool) -> None:
    """One client, from its connection to its end."""
    context = client_context() if tls else None
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(str(proxy.host), proxy.port, ssl=context, server_hostname=name)
    octets = bytes(TOO_MUCH_AT_ONCE)
    if kind == "socks5":
        writer.write(GREETING + request("127.0.0.1", echo) + octets)
        await reader.readexactly(12 + len(octets))
    elif kind == "socks4":
        writer.write(b"\x04\x01" + echo.to_bytes(2, "big") + b"\x7f\x00\x00\x01\x00" + octets)
        await reader.readexactly(8 + len(octets))
    elif kind == "connect":
        writer.write(f"CONNECT 127.0.0.1:{echo} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + octets)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(octets))
    elif kind == "get":
        for _ in range(3):
            writer.write(f"GET http://127.0.0.1:{web}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readuntil(b"hello")
    elif kind in ("post", "early"):
        head = f"POST http://127.0.0.1:{web}/{kind} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(octets)}\r\n\r\n"
        writer.write(head.encode() + octets[: len(octets) // 2])
        await turns(50)
        if kind == "post":
            writer.write(octets[len(octets) // 2 :])
        await reader.readuntil(b"hello")
    elif kind == "refused":
        with closed_port() as port:
            writer.write(GREETING + request("127.0.0.1", port))
            await reader.readexactly(12)
    elif kind == "rubbish":
        writer.write(b"\0" * 100)
        await asyncio.gather(reader.read(), return_exceptions=True)
    elif kind in ("hello", "half", "denied"):
        hello = client_hello("denied.test" if kind == "denied" else "name.test")
        writer.write(GREETING + request("127.0.0.1", echo))
        await reader.readexactly(12)
        writer.write(hello[:9])
        await turns(50)
        if kind != "half":
            writer.write(hello[9:])
            await reader.readexactly(7 if kind == "denied" else len(hello))
    elif kind == "slow":
        writer.write(b"\x05")
        await reader.read()
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@contextlib.contextmanager
def collector() -> Iterator[None]:
    """From here on the collector runs when it is told to, and keeps what it finds."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_session_leaves_nothing_to_the_collector(run_once: Run, tmp_path: Path, kind: str, tls: bool) -> None:
    """When a session has ended its memory is free at once: no object of ours is in a circle."""

    async def main() -> None:
        sniff = kind in ("hello", "half", "denied")
        listen = Listen("mixed://127.0.0.1:0", tls=write_server(tmp_path), sniff=sniff)
        rule = [RuleConfig("deny", hosts=["denied.test"])] * sniff
        timeouts = Timeouts(handshake=Seconds(0.5 if kind == "slow" else 10))
        settings = Config(listen=[listen], timeouts=timeouts, log=Log(access="none"), rule=rule)
        async with Server(config=settings) as server, target() as echo, target(origin) as web:
            with collector():
                at_once = SESSIONS if kind == "slow" else 1  # that one waits for a deadline
                for _ in range(0, SESSIONS, at_once):
                    clients = (session(kind, server.addresses[0], echo, web, tls) for _ in range(at_once))
                    await asyncio.gather(*clients)
                await until(lambda: not server.parts.sessions.running)
                gc.collect()
                ours = (type(thing) for thing in gc.garbage if type(thing).__module__.startswith("tabi"))
                assert not Counter(kind.__qualname__ for kind in ours)

    run_once(main)
