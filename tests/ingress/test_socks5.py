"""The handshake on bad days: rubbish, silence, slow clients, clients that vanish, and who is let in."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from conftest import Run
from doubles import LOOPBACK, Doorman, Scene, client_from, config, end_of, greet, read_reply, reset, until
from support import client, closed_port, credentials, request, target
from tabi import Server
from tabi.config import Listen

RUBBISH = {
    "http": b"GET http://example.test/ HTTP/1.1\r\nHost: example.test\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "socks4": b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zero": bytes(4096),
    "ones": b"\xff" * 4096,
    "newlines": b"\r\n" * 2048,
    "one octet": b"\x00",
}


@pytest.mark.parametrize("name", RUBBISH)
@pytest.mark.parametrize("before", [b"", b"\x05\x01\x00", b"\x05\x01\x02"], ids=["greeting", "request", "credentials"])
@pytest.mark.every_hosting
def test_rubbish_ends_its_own_connection_only(run: Run, name: str, before: bytes) -> None:
    """What is no SOCKS5 ends the connection without an answer to it, wherever it comes; the server goes on."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.client()
            writer.write(before)
            if before:
                assert await reader.readexactly(2) == b"\x05" + before[-1:]
            writer.write(RUBBISH[name])
            assert await end_of(reader) in ("end", "reset")
            session = await scene.ended.get()
            assert (session.close, session.reply_code) == ("error", None)
            assert session.error is not None
            assert "version 0x" in session.error
            await scene.bring_to("relay")

    run(main)


@pytest.mark.parametrize("stage", ["silent", "greeting", "credentials", "authenticating", "request"])
@pytest.mark.every_hosting
def test_the_handshake_deadline_holds_at_every_stage(run: Run, stage: str) -> None:
    """Whatever a handshake waits for, silence or a slow check of the password, it ends with the deadline."""

    async def main() -> None:
        async with Scene(handshake=0.2) as scene:
            reader, _ = await scene.bring_to(stage)
            assert await end_of(reader) == "end"
            session = await scene.ended.get()
            assert (session.close, session.error) == ("error", "handshake: not done within 0.2 s")
            assert scene.server.parts.sessions.running == {}

    run(main)


@pytest.mark.parametrize("stage", ["resolving", "connecting", "relay", "half_closed"])
def test_the_handshake_deadline_ends_with_the_request(run: Run, stage: str) -> None:
    """Once the request is there, other limits hold: what is dialled or relayed outlives the handshake's time."""

    async def main() -> None:
        async with Scene(handshake=0.1) as scene:
            reader, _ = await scene.bring_to(stage)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.3)
            assert len(scene.server.parts.sessions.running) == 1

    run(main)


@pytest.mark.parametrize("stage", ["silent", "greeting", "credentials", "request", "relay"])
@pytest.mark.every_hosting
def test_a_client_that_vanishes_with_a_reset(run: Run, stage: str) -> None:
    """A reset while something is read from the client ends the session at once as "reset"; others go on."""

    async def main() -> None:
        async with Scene() as scene:
            _, writer = await scene.bring_to(stage)
            reset(writer)
            assert (await scene.ended.get()).close == "reset"
            assert scene.server.parts.sessions.running == {}
            await scene.bring_to("relay")

    run(main)


@pytest.mark.parametrize("stage", ["authenticating", "resolving"])
@pytest.mark.every_hosting
def test_a_client_that_vanishes_while_somebody_else_is_asked(run: Run, stage: str) -> None:
    """A reset that nobody reads ends the session when the other has answered; others go on."""

    async def main() -> None:
        async with Scene() as scene:
            _, writer = await scene.bring_to(stage)
            reset(writer)
            scene.doorman.answering.set()
            scene.resolver.answering.set()
            session = await scene.ended.get()
            # The kernel tells a reset once, and may tell it to the answer: what is read then looks like an end.
            assert session.close in ("reset", "error", "client")
            assert (session.up, session.down) == (0, 0)
            assert scene.server.parts.sessions.running == {}
            await scene.bring_to("relay")

    run(main)


@pytest.mark.parametrize("stage", ["resolving", "half_closed"])
def test_a_reset_that_nobody_reads_is_seen(run_once: Run, stage: str) -> None:
    """With edges a reset is seen where nothing is read too. The portable reactor may take it for an end."""

    async def main() -> None:
        async with Scene() as scene:
            _, writer = await scene.bring_to(stage)
            reset(writer)
            scene.resolver.answering.set()
            assert (await scene.ended.get()).close == "reset"

    run_once(main)


@pytest.mark.parametrize("stage", ["connecting", "racing", "refused"])
def test_a_client_that_vanishes_before_a_failure(run: Run, stage: str) -> None:
    """A reset while the destination is opened ends that at once; after it, the failure stays as what was wrong."""

    async def main() -> None:
        async with Scene(connect=0.2) as scene:
            _, writer = await scene.bring_to(stage)
            reset(writer)
            session = await scene.ended.get()
            assert (session.close, session.reply_code) == (("error", 5) if stage == "refused" else ("reset", None))
            assert scene.server.parts.sessions.running == {}

    run(main)


@pytest.mark.parametrize(
    ("stage", "where"),
    [("silent", "greeting"), ("greeting", "greeting"), ("credentials", "credentials"), ("request", "request")],
)
def test_a_client_that_leaves_in_the_middle(run: Run, stage: str, where: str) -> None:
    """An orderly end before the request is whole is noted as such, and answered with an end."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.bring_to(stage)
            writer.write_eof()
            assert await end_of(reader) == "end"
            session = await scene.ended.get()
            assert (session.close, session.error) == ("error", f"the peer ended in the middle of the {where}")

    run(main)


@pytest.mark.every_hosting
def test_a_refusal_is_read_by_a_client_that_has_sent_more(run: Run) -> None:
    """Octets behind a refused request do not turn the refusal into a reset that loses it."""

    async def main() -> None:
        with closed_port() as port:
            async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
                writer.write(b"\x05\x01\x00" + request("127.0.0.1", port) + bytes(300_000))
                writer.write_eof()
                assert await reader.readexactly(2) == b"\x05\x00"
                assert (await read_reply(reader))[0] == 5
                assert await reader.read() == b""

    run(main)


# --- who is let in ---

Who = Literal["required", "optional", "none"]


@pytest.mark.parametrize(
    ("users", "offered", "chosen"),
    [
        (None, b"\x00", 0xFF),
        (None, b"\x02", 2),
        (None, b"\x00\x02", 2),
        ("required", b"\x00", 0xFF),
        ("required", b"\x02", 2),
        ("required", b"\x00\x02", 2),
        ("optional", b"\x00", 0),
        ("optional", b"\x02", 2),
        ("optional", b"\x00\x02", 2),
        ("optional", b"\x01", 0xFF),
        ("none", b"\x00", 0),
        ("none", b"\x02", 0xFF),
        ("none", b"\x02\x00", 0),
    ],
)
def test_which_method_is_chosen(run: Run, users: Who | None, offered: bytes, chosen: int) -> None:
    """Users required, which is the default where there are some: 02 or nothing. Optional: 02 if offered. None: 00."""

    async def main() -> None:
        listen = Listen(LOOPBACK, users)
        async with (
            Server(users={"alice": "secret"}, config=config(listen)) as server,
            client(server.addresses[0]) as streams,
        ):
            assert await greet(streams, offered) == chosen

    run(main)


def test_optional_users_are_known_and_others_are_nobody(run: Run) -> None:
    """Where users are optional, who says a name must prove it, and who says none is served without one."""

    async def main() -> None:
        async with Scene() as scene, target() as port:
            for message, user in (
                (b"\x05\x01\x02" + credentials(b"alice", b"alice"), "alice"),
                (b"\x05\x01\x00", None),
            ):
                async with client(scene.server.addresses[0]) as (reader, writer):
                    writer.write(message + request("127.0.0.1", port))
                    writer.write_eof()
                    assert b"\x05\x00\x00\x01" in await reader.read()
                assert (await scene.ended.get()).user == user
            async with client(scene.server.addresses[0]) as (reader, writer):
                writer.write(b"\x05\x01\x02" + credentials(b"alice", b"bob") + request("127.0.0.1", port))
                assert await reader.read() == b"\x05\x02\x01\x01"

    run(main)


def test_nothing_is_done_for_who_is_not_let_in(run: Run) -> None:
    """A request sent ahead behind a wrong password is not carried out, nor one behind a refused greeting."""

    async def main() -> None:
        doorman = Doorman()
        async with Server(LOOPBACK, authenticate=doorman) as server:
            called: list[int] = []

            async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                called.append(1)

            async with target(note) as port:
                for message, answer in (
                    (b"\x05\x01\x02" + credentials(b"alice", b"bob"), b"\x05\x02\x01\x01"),
                    (b"\x05\x01\x00", b"\x05\xff"),
                ):
                    async with client(server.addresses[0]) as (reader, writer):
                        writer.write(message + request("127.0.0.1", port))
                        writer.write_eof()
                        assert await reader.read() == answer
                await until(lambda: not server.parts.sessions.running)
                assert called == []

    run(main)


def test_who_asks_is_told_where_from(run: Run) -> None:
    """``authenticate`` gets the client's address, without the port."""

    async def main() -> None:
        doorman = Doorman()
        async with Server(LOOPBACK, authenticate=doorman) as server, client_from(server, "2001:db8::1") as streams:
            assert await greet(streams, b"\x02") == 2
            streams[1].write(credentials(b"alice", b"alice"))
            assert await streams[0].readexactly(2) == b"\x01\x00"
            assert doorman.asked == [("alice", "alice", "2001:db8::1")]

    run(main)
