"""The client's side of BIND: where the proxy listens, and waiting for the peer that calls there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import tabi
from conftest import Run
from doubles import SUCCESS, caller, config, expect_reset
from support import replying, target
from tabi.wire.address import Address, encode_address, parse_address, parse_host


@pytest.mark.parametrize("peer", [None, "127.0.0.2", "peer.test"])
@pytest.mark.every_hosting
def test_bind_gives_an_address_and_then_a_stream(run: Run, peer: str | None) -> None:
    """The expected peer, an address or a name or anyone, calls there; its octets are in the stream, and its address is
    known."""

    class Resolver:
        async def resolve(self, name: str) -> list[object]:
            assert name == "peer.test"
            return [parse_host("127.0.0.2")]

        async def close(self) -> None:
            """Nothing is held."""

    async def main() -> None:
        async with (
            tabi.Server("socks5://127.0.0.1:0", resolver=Resolver()) as server,  # type: ignore[arg-type]
            tabi.Proxy(server.url).bind(peer) as listener,
        ):
            assert str(listener.address.host) == "127.0.0.1"
            assert listener.peer is None
            if peer is not None:
                await expect_reset(listener.address, "127.0.0.1")
            async with caller(listener.address, "127.0.0.2") as (reader, writer):
                writer.write(b"I speak first")
                async with await listener.accept() as stream:
                    peername = writer.get_extra_info("sockname")
                    assert listener.peer == Address(parse_host(peername[0]), peername[1])
                    assert await stream.receive_exactly(13) == b"I speak first"
                    await stream.send_all(b"hello")
                    assert await reader.readexactly(5) == b"hello"
                assert await reader.read() == b""

    run(main)


def test_the_accepted_stream_outlives_its_listener(run: Run) -> None:
    """It is the caller's; a second accept is an error, and so is one on a closed listener."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server:
            async with tabi.Proxy(server.url).bind() as listener, caller(listener.address) as (reader, _):
                stream = await listener.accept()
                with pytest.raises(RuntimeError, match="accepts once"):
                    await listener.accept()
                listener.close()
                await stream.send_all(b"hello")
                assert await reader.readexactly(5) == b"hello"
                stream.close()
            listener = await tabi.Proxy(server.url).bind()
            listener.close()
            listener.close()
            with pytest.raises(RuntimeError, match="closed"):
                await listener.accept()

    run(main)


def test_leaving_the_listener_ends_the_wait_of_the_proxy(run: Run) -> None:
    """Nobody listens for a client that does not want the peer any more."""
    sessions: list[tabi.Session] = []

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0", on_close=sessions.append) as server:
            async with tabi.Proxy(server.url).bind() as listener:
                pass
            await server.drain()
            with pytest.raises(ConnectionRefusedError):
                async with caller(listener.address):
                    pass

    run(main)
    assert [(session.command, session.close) for session in sessions] == [("bind", "client")]


def test_nobody_calls_within_the_deadline_of_the_proxy(run: Run) -> None:
    """Its second reply is a ProxyError with the code, and the listener is closed."""

    async def main() -> None:
        async with (
            tabi.Server(config=config(bind=0.1)) as server,
            tabi.Proxy(server.url).bind("127.0.0.1") as listener,
        ):
            with pytest.raises(tabi.ProxyError, match=f"^{listener.address}: the proxy says TTL expired") as caught:
                await listener.accept()
            assert caught.value.reply_code == 6
            with pytest.raises(RuntimeError, match="closed"):
                await listener.accept()

    run(main)


def test_nobody_calls_within_the_callers_own_deadline(run: Run) -> None:
    """A ProxyError without a code; the proxy still waits, and so may the caller, who may also cancel."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server, tabi.Proxy(server.url).bind() as listener:
            with pytest.raises(tabi.ProxyError, match=f"^{listener.address}: no peer called within 0.05 s$") as caught:
                await listener.accept(0.05)
            assert caught.value.reply_code is None
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listener.accept(), 0.05)
            async with caller(listener.address) as (reader, _), await listener.accept() as stream:
                await stream.send_all(b"hello")
                assert await reader.readexactly(5) == b"hello"

    run(main)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), None, "5", True])
def test_a_wait_that_is_none_is_a_value_error(run_once: Run, timeout: Any) -> None:
    """The listener goes on."""

    async def main() -> None:
        async with tabi.Server("socks5://127.0.0.1:0") as server, tabi.Proxy(server.url).bind() as listener:
            with pytest.raises(ValueError, match="expected seconds, more than 0"):
                await listener.accept(timeout)
            async with caller(listener.address), await listener.accept():
                pass

    run_once(main)


def test_a_listener_may_be_ipv4_inside_ipv6(run_once: Run) -> None:
    """As a dual-stack proxy gives it: it is an IPv4 address that peers are told."""

    async def main() -> None:
        inside = encode_address(parse_address("[::ffff:192.0.2.1]:4096"))
        async with (
            target(replying(SUCCESS[:3] + inside)) as port,
            tabi.Proxy(f"socks5://127.0.0.1:{port}").bind() as listener,
        ):
            assert str(listener.address) == "192.0.2.1:4096"

    run_once(main)


def test_a_refused_bind_is_a_proxy_error(run: Run) -> None:
    """A proxy without BIND says 07 in its first reply."""

    async def main() -> None:
        async with target(replying(b"\x05\x07\x00\x01" + bytes(6), hang_up=True)) as port:
            with pytest.raises(tabi.ProxyError, match="command not supported") as caught:
                await tabi.Proxy(f"socks5://127.0.0.1:{port}").bind()
            assert caught.value.reply_code == 7

    run(main)


def test_a_proxy_that_hangs_up_while_its_peer_is_waited_for(run: Run) -> None:
    """It is a RemoteProtocolError, and nothing stays open."""

    async def main() -> None:
        async with target(replying(SUCCESS + b"\xc0\x00\x02\x01\x10\x00" + SUCCESS[:2], hang_up=True)) as port:
            listener = await tabi.Proxy(f"socks5://127.0.0.1:{port}").bind()
            assert str(listener.address) == "192.0.2.1:4096"
            with pytest.raises(tabi.RemoteProtocolError, match="in the middle of the second reply"):
                await listener.accept()
            assert listener.stream is None

    run(main)
