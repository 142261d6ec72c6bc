"""A whole server: its life, who may use it, what it reports, and what it does when there is too much of something."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

import tabi
from authorities import write_server
from conftest import Run
from doubles import (
    LOOPBACK,
    STAGES,
    Doorman,
    FakeResolver,
    Scene,
    ask,
    ask_for,
    config,
    end_of,
    greet,
    logged,
    open_tunnel,
    read_reply,
    reset,
    until,
)
from support import client, closed_port, credentials, request, reset_on_close, silent, target, tunnel
from tabi import Config, Proxy, Server, Session
from tabi.config import Listen, Log, RuleConfig, Timeouts, UserConfig, make_config
from tabi.egress.direct import Direct
from tabi.errors import ConfigError
from tabi.net.dial import AddressFilter
from tabi.net.stream import Stream
from tabi.policy.users import make_hash
from tabi.url import parse_url
from tabi.wire.address import Address

# --- life ---


def test_it_listens_between_start_and_close(run: Run) -> None:
    """``async with`` opens the listeners and closes them; closing twice is harmless; a server starts once."""

    async def main() -> None:
        async with Server(LOOPBACK, "socks5://[::1]:0") as server:
            first, second = server.addresses
            assert server.urls == [f"socks5://127.0.0.1:{first.port}", f"socks5://[::1]:{second.port}"]
            for address in (first, second):
                async with client(address) as streams:
                    assert await greet(streams) == 0
            with pytest.raises(RuntimeError, match="starts once"):
                await server.start()
        await server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", first.port)

    run(main)


def test_closing_what_was_never_started_is_harmless(run: Run) -> None:
    """A program may close in its ``finally`` whatever it has."""

    async def main() -> None:
        await Server(LOOPBACK).close()

    run(main)


def test_a_unix_socket_lives_as_long_as_its_server(run: Run, tmp_path: Path) -> None:
    """Its file is removed by `drain` or `close`; a client is asked for as "unix", and logged with its user's number."""

    async def main() -> None:
        path = tmp_path / "tabi.sock"
        doorman = Doorman()
        ended: asyncio.Queue[Session] = asyncio.Queue()
        server = Server(f"unix://{path}?protocol=socks5", authenticate=doorman, on_close=ended.put_nowait)
        async with server, target() as port:
            assert (server.addresses, server.urls) == ([], [f"unix://{path}?protocol=socks5"])
            assert server.url == server.urls[0]
            reader, writer = await asyncio.open_unix_connection(path)
            assert await greet((reader, writer), b"\x02") == 2
            writer.write(credentials(b"alice", b"alice"))
            assert await reader.readexactly(2) == b"\x01\x00"
            writer.write(request("127.0.0.1", port))
            assert (await read_reply(reader))[0] == 0
            assert doorman.asked == [("alice", "alice", "unix")]
            writer.close()
            await writer.wait_closed()
            assert str((await ended.get()).client) == f"unix:{os.getuid()}"
            assert path.exists()
            await server.drain()
            assert not path.exists()
        async with Server(f"unix://{path}"):
            assert path.exists()
        assert not path.exists()

    run(main)


@pytest.mark.parametrize("name", ["", "client.sock", "\0tabi-test-client"])
def test_a_client_of_a_unix_socket_may_have_a_name_itself(run: Run, tmp_path: Path, name: str) -> None:
    """A path or an abstract name is no address: it is its user all the same, and harms nobody."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(f"unix://{tmp_path}/tabi.sock?protocol=socks5", on_close=ended.put_nowait):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(f"{name}{os.getpid()}" if name.startswith("\0") else name and str(tmp_path / name))
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, str(tmp_path / "tabi.sock"))
                reader, writer = await asyncio.open_connection(sock=sock)
                assert await greet((reader, writer)) == 0
                writer.close()
                await writer.wait_closed()
            assert str((await ended.get()).client) == f"unix:{os.getuid()}"

    run(main)


def test_several_listeners_of_every_kind(run: Run, tmp_path: Path) -> None:
    """Addresses, a name and a path, each with its own URL; `url` is the first, as SOCKS5 where it is mixed."""

    async def main() -> None:
        path = tmp_path / "tabi.sock"
        async with Server("mixed://127.0.0.1:0", f"unix://{path}", "socks5://localhost:0") as server:
            first, *others = server.addresses
            assert server.urls[:2] == [f"mixed://{first}", f"unix://{path}?protocol=mixed"]
            assert server.urls[2:] == [f"socks5://{address}" for address in others]
            assert server.url == f"socks5://{first}"
            async with target() as port, tabi.Proxy(server.url).connect("127.0.0.1", port) as stream:
                await stream.send_all(b"x")
                assert await stream.receive() == b"x"
            for address in others:
                async with client(address) as streams:
                    assert await greet(streams) == 0

    run(main)


def test_an_address_in_use_is_an_oserror_and_leaves_nothing(run: Run) -> None:
    """A listener that cannot be opened ends the start, and those that were open already are closed."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            other = Server(LOOPBACK, server.urls[0])
            with pytest.raises(OSError, match="in use"):
                await other.start()
            assert all(sock.fileno() == -1 for group in other.sockets for sock in group)

    run(main)


def test_draining_what_was_never_started_is_harmless(run: Run) -> None:
    """There is nobody to wait for."""

    async def main() -> None:
        assert await Server(LOOPBACK).drain() == 0

    run(main)


@pytest.mark.parametrize("blocking", [True, False])
def test_given_sockets_are_used_and_closed_with_the_others(run: Run, blocking: bool) -> None:
    """Sockets of the caller are accepted on whatever their mode, block nothing, and the server closes them."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(blocking)
            async with Server(LOOPBACK, sockets=[[sock]]) as server, client(server.addresses[0]) as streams:
                assert server.addresses[0].port == sock.getsockname()[1]
                assert await greet(streams) == 0
            assert sock.fileno() == -1

    run(main)


def test_sockets_one_for_each_url_or_several(run: Run) -> None:
    """An element of ``sockets`` is a socket, or a sequence of them; more elements than URLs are a mistake."""

    async def main() -> None:
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [sock.getsockname()[1] for sock in socks]
        with pytest.raises(ConfigError, match=r"^sockets: 3, but there are 2 listeners$"):
            Server(LOOPBACK, "http://127.0.0.1:0", sockets=socks)
        async with Server(LOOPBACK, "http://127.0.0.1:0", sockets=[socks[0], (socks[1], socks[2])]) as server:
            assert [address.port for address in server.addresses] == ports
            assert [url.partition(":")[0] for url in server.urls] == ["socks5", "http", "http"]

    run(main)


def test_addresses_are_there_while_it_listens(run: Run) -> None:
    """Before and after, and where the start has failed, a RuntimeError says so."""

    def ask(server: Server) -> None:
        for name in ("addresses", "urls", "url"):
            with pytest.raises(RuntimeError, match=r"from start\(\) until drain\(\) or close\(\)"):
                getattr(server, name)

    async def main() -> None:
        server = Server(LOOPBACK)
        ask(server)
        async with server:
            assert len(server.urls) == len(server.addresses) == 1
            await server.drain()
            ask(server)
        ask(server)

    run(main)


def test_serve_forever_returns_when_the_server_is_closed(run: Run) -> None:
    """A program may wait in one task, and close in another."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, asyncio.TaskGroup() as group:
            task = group.create_task(server.serve_forever())
            await asyncio.sleep(0)
            assert not task.done()
            await server.close()

    run(main)


def test_serve_forever_ends_with_its_task(run: Run) -> None:
    """It waits until it is cancelled."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(server.serve_forever(), 0.01)

    run(main)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.every_hosting
def test_close_ends_a_session_at_any_stage(run: Run, stage: str) -> None:
    """Wherever a session stands, `close` ends it as "shutdown": no task, thread or descriptor stays behind."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.bring_to(stage)
            writer.transport.set_write_buffer_limits(1 << 30)
            await scene.server.close()
            session = scene.ended.get_nowait()
            assert (session.close, scene.ended.empty(), scene.server.parts.sessions.running) == ("shutdown", True, {})
            assert await end_of(reader) in ("end", "reset")

    run(main)


@pytest.mark.parametrize("turns", range(6))
def test_close_ends_a_session_that_has_hardly_begun(run: Run, turns: int) -> None:
    """A connection that is accepted in the very turns of the loop in which the server closes is not forgotten."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, on_close=ended.put_nowait) as server:
            with socket.create_connection(("127.0.0.1", server.addresses[0].port)) as sock:
                for _ in range(turns):
                    await asyncio.sleep(0)
                await server.close()
                assert server.parts.sessions.running == {}
                assert all(session.close == "shutdown" for session in iter_queue(ended))
                sock.settimeout(5)
                try:
                    assert sock.recv(1) == b""
                except ConnectionResetError:
                    pass

    run(main)


def iter_queue(queue: asyncio.Queue[Session]) -> list[Session]:
    """Everything that is in a queue."""
    return [queue.get_nowait() for _ in range(queue.qsize())]


def test_close_while_a_password_is_hashed(run: Run) -> None:
    """The threads that compute hashes end with the server."""

    async def main() -> None:
        users = {"alice": UserConfig(make_hash(b"secret"))}
        async with (
            Server(config=msgspec.structs.replace(config(), users=users)) as server,
            client(server.addresses[0]) as (reader, writer),
        ):
            assert await greet((reader, writer), b"\x02") == 2
            writer.write(credentials(b"alice", b"secret"))
            authenticator = server.parts.authenticator
            assert authenticator is not None
            await until(lambda: authenticator.hashers)
            await server.close()
            assert await end_of(reader) in ("end", "reset")

    run(main)


# --- drain ---


@pytest.mark.every_hosting
def test_drain_lets_sessions_end(run: Run) -> None:
    """Draining refuses new connections, and returns when the last session has ended by itself."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.bring_to("relay")
            port = scene.server.addresses[0].port
            async with asyncio.TaskGroup() as tasks:
                draining = tasks.create_task(scene.server.drain(15))
                await asyncio.sleep(0)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"still here")
                assert await reader.readexactly(10) == b"still here"
                assert not draining.done()
                writer.write_eof()
                assert await draining == 0
            assert (await scene.ended.get()).close == "client"

    run(main)


def test_drain_waits_for_handshakes_too(run: Run) -> None:
    """A client that is accepted but not yet relayed may go on while the server drains."""

    async def main() -> None:
        async with Scene() as scene, target() as port, asyncio.TaskGroup() as tasks:
            reader, writer = await scene.bring_to("request")
            draining = tasks.create_task(scene.server.drain(15))
            await asyncio.sleep(0)
            writer.write(request("127.0.0.1", port))
            assert (await read_reply(reader))[0] == 0
            writer.write_eof()
            assert await reader.read() == b""
            assert await draining == 0

    run(main)


def test_drain_has_an_end(run: Run) -> None:
    """Who is left after the drain time is counted, and ends as "shutdown" with `close`."""

    async def main() -> None:
        async with Scene(drain=0.05) as scene:
            await scene.bring_to("relay")
            await scene.bring_to("silent")
            assert await scene.server.drain() == 2
            assert scene.ended.empty()
            await scene.server.close()
            assert [session.close for session in iter_queue(scene.ended)] == ["shutdown", "shutdown"]

    run(main)


def test_drain_without_sessions_is_over_at_once(run: Run) -> None:
    """There is nothing to wait for."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            assert await server.drain(1000) == 0

    run(main)


# --- too much of something ---


@pytest.mark.every_hosting
def test_a_peer_that_does_not_read_stops_the_other_one(run: Run) -> None:
    """What a client sends to a destination that does not read stays with the client: the proxy collects none of it."""

    async def main() -> None:
        async with Scene() as scene:
            _, writer = await scene.bring_to("blocked")
            async with target() as port, tunnel(scene.server.addresses[0], port) as (reader, other):
                for _ in range(100):
                    other.write(b"not in my way")
                    assert await reader.readexactly(13) == b"not in my way"
            assert writer.transport.get_write_buffer_size() > 16 << 20  # of 64 MiB; the kernel's queues have the rest
            assert (await scene.ended.get()).close == "client"
            assert scene.destination is not None
            reset_on_close(scene.destination)
            scene.destination.close()
            assert (await scene.ended.get()).close == "reset"

    run(main)


def test_a_sender_that_is_stopped_may_vanish(run_once: Run) -> None:
    """A reset is seen even while nothing is read from who sent it. The portable reactor sees it with the idle limit."""

    async def main() -> None:
        async with Scene() as scene:
            _, writer = await scene.bring_to("blocked")
            reset(writer)
            assert (await scene.ended.get()).close == "reset"

    run_once(main)


# --- who may use it ---


def test_clients_behind_a_proxy_come_from_anywhere() -> None:
    """A listener on loopback whose load balancer brings clients from outside is as open as that one is."""
    listen = Listen("mixed://127.0.0.1:0", proxy_protocol=["127.0.0.1"])
    with pytest.raises(ConfigError, match=r"^listen\[0\]\.proxy_protocol: .* would be an open proxy to all clients"):
        Server(config=config(listen))
    Server(config=config(listen), open=True)
    Server(config=config(listen), users={"alice": "secret"})


@pytest.mark.parametrize(
    "url", ["socks5://0.0.0.0:0", "socks5://[::]:0", "socks5://192.0.2.7:0", "socks5://proxy.test:0"]
)
def test_an_open_proxy_is_refused(url: str) -> None:
    """Beyond loopback there must be users, or somebody who says that anybody may use it."""
    with pytest.raises(ConfigError, match="open proxy"):
        Server(url)
    with pytest.raises(ConfigError, match="open proxy"):
        Server(LOOPBACK, url)
    for who in ("none", "optional"):
        listen = msgspec.convert({"url": url, "users": who}, Listen)
        with pytest.raises(ConfigError, match="open proxy"):
            Server(users={"alice": "secret"}, config=config(listen))
    Server(url, users={"alice": "secret"})
    Server(url, config=Config(users={"alice": UserConfig("secret", plain=True)}))
    Server(url, authenticate=Doorman())
    Server(url, open=True)


def test_sockets_beyond_loopback_are_an_open_proxy_whatever_the_url_says(run: Run) -> None:
    """Where a given or a passed socket is bound shows only on the socket itself."""

    async def main() -> None:
        for host, words in (("0.0.0.0", "open proxy"), ("127.0.0.1", None)):
            with socket.create_server((host, 0)) as sock:
                if words is None:
                    Server("fd://web", sockets=[[sock]])
                    continue
                with pytest.raises(ConfigError, match=rf"fd://web at 0.0.0.0:\d+ would be an {words}"):
                    Server("fd://web", sockets=[[sock]])
                Server("fd://web", sockets=[[sock]], open=True)
                Server("fd://web", sockets=[[sock]], users={"alice": "secret"})

    run(main)


def test_a_socket_that_was_not_passed_is_a_configuration_error(run: Run) -> None:
    """A program hears of it at the start, and nothing stays open."""

    async def main() -> None:
        server = Server(LOOPBACK, "fd://web")
        with pytest.raises(ConfigError, match=r"listen\[1\].url: fd://web: no socket was passed"):
            await server.start()
        assert server.sockets == []

    run(main)


@pytest.mark.parametrize(
    "url", ["socks5://127.0.0.1:0", "socks5://127.1.2.3:0", "socks5://[::1]:0", "socks5://localhost:0"]
)
def test_loopback_needs_no_users(url: str) -> None:
    """Whoever is on this machine could do without a proxy."""
    assert not Server(url).compiled.required(Listen(url))


def test_an_open_listener_serves_beyond_loopback(run: Run) -> None:
    """What was allowed does work, with users and without."""

    async def main() -> None:
        async with (
            Server("socks5://0.0.0.0:0", open=True) as server,
            client(Address("127.0.0.1", server.addresses[0].port)) as streams,
        ):
            assert await greet(streams) == 0
        async with (
            Server("socks5://0.0.0.0:0", users={"alice": "secret"}) as server,
            client(Address("127.0.0.1", server.addresses[0].port)) as (reader, writer),
        ):
            writer.write(b"\x05\x01\x00")
            assert await reader.read() == b"\x05\xff"

    run(main)


@pytest.mark.parametrize(
    ("username", "password"),
    [("alice", "secret"), ("a:b@c/d", "p:@/?#%&= +"), ("zo\u00eb", "\u65e5\u672c\u8a9e"), ("u" * 255, "\x00" * 255)],
)
def test_url_bears_the_credentials(run: Run, username: str, password: str) -> None:
    """``server.url`` is what a client needs: read back, it gives the name and the password as they were."""

    async def main() -> None:
        async with Server(LOOPBACK, users={username: password}) as server:
            url = parse_url(server.url)
            assert (url.username, url.password, url.address) == (username, password, server.addresses[0])
            assert server.urls == [f"socks5://{server.addresses[0]}"]
            async with client(url.address) as (reader, writer):
                assert await greet((reader, writer), b"\x02") == 2
                writer.write(credentials(username.encode(), password.encode()))
                assert await reader.readexactly(2) == b"\x01\x00"

    run(main)


def test_url_has_no_credentials_where_none_are_needed(run: Run) -> None:
    """A listener that does not require users is named without them."""

    async def main() -> None:
        listen = Listen(LOOPBACK, users="optional")
        async with Server(users={"alice": "secret"}, config=config(listen)) as server:
            assert server.url == server.urls[0]

    run(main)


@pytest.mark.parametrize("users", [{"": "secret"}, {"alice": ""}, {"u" * 256: "secret"}, {"alice": "p" * 256}])
def test_users_that_no_client_could_be(users: dict[str, str]) -> None:
    """A name or password that RFC 1929 has no room for is an error at once, as it is in a file."""
    with pytest.raises(ConfigError, match="1 to 255 octets") as caught:
        Server(LOOPBACK, users=users)
    assert "secret" not in str(caught.value)
    assert "ppp" not in str(caught.value)


def test_users_of_the_call_satisfy_a_listener_that_requires_them(run: Run) -> None:
    """``users = "required"`` in the configuration is fine with users given to the call."""

    async def main() -> None:
        listen = Listen(LOOPBACK, users="required")
        async with (
            Server(users={"alice": "secret"}, config=config(listen)) as server,
            client(server.addresses[0]) as streams,
        ):
            assert await greet(streams, b"\x00\x02") == 2

    run(main)


def test_secrets_are_in_no_repr_and_no_error() -> None:
    """Neither the server, nor its configuration, nor a refusal of either shows a password."""
    server = Server(
        LOOPBACK, users={"alice": "hunter2"}, config=Config(users={"bob": UserConfig("hunter3", plain=True)})
    )
    assert "hunter" not in f"{server!r} {server} {server.config!r} {server.compiled.users!r}"
    for listen in ("socks5://alice:hunter2@127.0.0.1:0", "socks9://alice:hunter2@127.0.0.1:0", "socks5://:hunter2@x:y"):
        with pytest.raises(ConfigError) as caught:
            Server(listen)
        assert "hunter" not in str(caught.value)


# --- what it reports ---


def facts(session: Session) -> dict[str, Any]:
    """What a session says of how it went."""
    return {
        "reply": session.reply_code,
        "close": session.close,
        "up": session.up,
        "down": session.down,
        "address": str(session.address) if session.address else None,
    }


def test_on_session_client_ends(run: Run) -> None:
    """The client ends first: "client", with the octets of both directions and what was dialled."""

    async def main() -> None:
        async with Scene() as scene, target() as port, tunnel(scene.server.addresses[0], port) as (reader, writer):
            writer.write(b"ping")
            writer.write_eof()
            assert await reader.read() == b"ping"
            session = await scene.ended.get()
            address = f"127.0.0.1:{port}"
            assert facts(session) == {"reply": 0, "close": "client", "up": 4, "down": 4, "address": address}
            assert (session.protocol, session.command, session.via) == ("socks5", "connect", "direct")
            assert str(session.client) == f"127.0.0.1:{writer.get_extra_info('sockname')[1]}"
            assert session.error is None
            assert session.user is None
            assert session.connect_seconds is not None

    run(main)


def test_whoever_wants_is_told_when_a_request_is_over(run_once: Run) -> None:
    """Before its line: of a tunnel at its end, of HTTP after each request of the connection, of one that fails too."""
    told: list[str] = []

    class Watching(Direct):
        def open(
            self, destination: Address, address_filter: AddressFilter, session: Session | None = None
        ) -> Awaitable[Stream]:
            assert session is not None
            number = session.number
            session.when_over(lambda: told.append(f"over {number}"))
            return super().open(destination, address_filter, session)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await reader.read()

    async def main() -> None:
        def on_close(session: Session) -> None:
            told.append(f"line {session.number}")
            assert session.ended is None

        server = Server("mixed://127.0.0.1:0", config=config(), on_close=on_close)
        async with server, target() as port, target(answer) as web:
            server.parts.gate.replace(server.parts.gate.policy, {"direct": Watching(server.parts.dialer)})
            async with tunnel(server.addresses[0], port):
                assert not told
            await until(lambda: len(told) == 2)
            async with client(server.addresses[0]) as (reader, writer):
                for _ in range(2):
                    writer.write(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % web)
                    assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
                await until(lambda: len(told) == 6)
            with closed_port() as closed:
                assert await ask_for(server, "127.0.0.1", closed) == 5
            await until(lambda: len(told) == 8)
        numbers = [int(text.split()[1]) for text in told]
        assert told == [f"{what} {number}" for number in numbers[::2] for what in ("over", "line")]

    run_once(main)


def test_on_session_server_ends(run: Run) -> None:
    """The destination ends first: "server". A name is kept as the destination, what it stood for as the address."""

    async def main() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.write_eof()
            await reader.read()

        async with Scene() as scene, target(speak) as port, client(scene.server.addresses[0]) as streams:
            await open_tunnel(streams, Address("here.test", port))
            assert await streams[0].read() == b"hello"
            streams[1].write(b"bye")
            streams[1].write_eof()
            session = await scene.ended.get()
            address = f"127.0.0.1:{port}"
            assert facts(session) == {"reply": 0, "close": "server", "up": 3, "down": 5, "address": address}
            assert str(session.destination) == f"here.test:{port}"

    run(main)


@pytest.mark.every_hosting
def test_an_idle_time_that_never_ends(run: Run) -> None:
    """The tunnel stays however long nothing moves; once one side has ended half_closed counts."""

    async def main() -> None:
        settings = make_config({"timeouts": {"idle": "never", "half_closed": 0.05}, "log": {"access": "none"}})
        ended: asyncio.Queue[Session] = asyncio.Queue()
        listen = [Listen(LOOPBACK)]
        config = msgspec.structs.replace(settings, listen=listen)
        async with (
            Server(config=config, on_close=ended.put_nowait) as server,
            target(silent) as port,
            tunnel(server.addresses[0], port) as (_, writer),
        ):
            (relay,) = server.parts.relays.active.values()
            server.parts.relays.sweep(monotonic() + 1e9)
            assert not relay.closed
            writer.write_eof()
            assert (await ended.get()).close in ("idle", "client")

    run(main)


def test_a_rule_says_how_long_a_tunnel_may_be_idle(run: Run) -> None:
    """Until a reload says something else, for those that run too; without one, timeouts.idle."""

    async def main() -> None:
        listen = [Listen(LOOPBACK)]
        rules = {"rule": [{"name": "long", "action": "allow", "idle": "never"}], "log": {"access": "none"}}
        config = msgspec.structs.replace(make_config(rules), listen=listen)
        async with (
            Server(config=config) as server,
            target(silent) as port,
            tunnel(server.addresses[0], port),
        ):
            (relay,) = server.parts.relays.active.values()
            server.parts.relays.sweep(monotonic() + 1e8)
            assert not relay.closed
            server.reload(msgspec.structs.replace(config, rule=[RuleConfig("allow", "long", idle=5)]))
            server.parts.relays.sweep(monotonic() + 4)
            assert not relay.closed
            server.parts.relays.sweep(monotonic() + 6)
            assert relay.closed

    run(main)


def test_a_rule_says_how_long_a_request_may_be_idle(run: Run) -> None:
    """The answer names the time that the rule gives."""

    async def main() -> None:
        settings = make_config({"rule": [{"action": "allow", "idle": 5}], "log": {"access": "none"}})
        config = msgspec.structs.replace(settings, listen=[Listen("http://127.0.0.1:0")])
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with (
            Server(config=config, on_close=ended.put_nowait) as server,
            target(silent) as port,
            client(server.addresses[0]) as (reader, writer),
        ):
            writer.write(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            await until(lambda: any(session.address for session in server.parts.sessions.running))
            idle = server.parts.forwarding.idle
            idle.sweep(monotonic())
            idle.sweep(monotonic() + 6)
            assert b" 504 " in await reader.readline()
            session = await ended.get()
            assert session.error == f"127.0.0.1:{port}: no answer within 5 s"

    run(main)


def test_on_session_idle(run: Run) -> None:
    """Nothing moves for the idle limit: "idle"."""

    async def main() -> None:
        async with Scene(idle=0.1, half_closed=0.1) as scene:
            reader, _ = await scene.bring_to("relay")
            assert (await scene.ended.get()).close == "idle"
            assert await end_of(reader) in ("end", "reset")

    run(main)


@pytest.mark.every_hosting
def test_on_session_half_closed(run: Run) -> None:
    """The same once one side has ended, with the limit for that."""

    async def main() -> None:
        async with Scene(idle=1000, half_closed=0.1) as scene:
            await scene.bring_to("half_closed")
            assert (await scene.ended.get()).close == "idle"

    run(main)


@pytest.mark.every_hosting
def test_on_session_reset(run: Run) -> None:
    """The client vanishes: "reset", with the octets that were delivered until then."""

    async def main() -> None:
        async with Scene() as scene:
            _, writer = await scene.bring_to("relay")
            reset(writer)
            session = await scene.ended.get()
            assert (session.close, session.up, session.down) == ("reset", 4, 4)

    run(main)


def test_on_session_denied(run: Run) -> None:
    """A rule forbids it: "denied", reply 02, nothing was dialled."""

    async def main() -> None:
        async with Scene() as scene:
            ours, theirs = socket.socketpair()
            scene.server.parts.acceptors[0].accepted(theirs, ("203.0.113.9", 40000))
            with ours:
                ours.sendall(b"\x05\x01\x00" + request("127.0.0.1", 80))
                ours.shutdown(socket.SHUT_WR)
                session = await scene.ended.get()
            assert facts(session) == {"reply": 2, "close": "denied", "up": 0, "down": 0, "address": None}
            assert session.error is not None
            assert session.error.startswith("guard: 127.0.0.1 ")

    run(main)


def test_on_session_error(run: Run) -> None:
    """The destination refuses: "error", reply 05, and a text that says so."""

    async def main() -> None:
        async with Scene() as scene:
            with closed_port() as port:
                assert await ask_for(scene.server, "127.0.0.1", port) == 5
            session = await scene.ended.get()
            assert facts(session) == {"reply": 5, "close": "error", "up": 0, "down": 0, "address": None}
            assert session.error == f"127.0.0.1:{port}: connection refused"

    run(main)


def test_on_session_user(run: Run) -> None:
    """Who it was is known once the password was right, and not before."""

    async def main() -> None:
        async with Scene() as scene, client(scene.server.addresses[0]) as (reader, writer):
            for password in (b"wrong", b"alice"):
                async with client(scene.server.addresses[0]) as (reader, writer):
                    assert await greet((reader, writer), b"\x02") == 2
                    writer.write(credentials(b"alice", password))
                    assert (await reader.readexactly(2))[0] == 1
            first, second = await scene.ended.get(), await scene.ended.get()
            assert (first.user, first.error, first.reply_code) == (None, "wrong user name or password: 'alice'", None)
            assert second.user == "alice"

    run(main)


def test_on_session_that_raises_harms_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the embedding program is logged; the server goes on."""

    async def main() -> None:
        called = []

        def fail(session: Session) -> None:
            called.append(session)
            raise ZeroDivisionError

        async with target() as port, Server(LOOPBACK, on_close=fail) as server:
            for count in (1, 2):
                async with tunnel(server.addresses[0], port):
                    pass
                while len(called) < count:
                    await asyncio.sleep(0.002)

    run(main)
    assert [record.message for record in caplog.records] == ["on_close failed"] * 2


def test_access_log_has_a_line_for_each_session(run: Run, tmp_path: Path) -> None:
    """Served, refused, forbidden and broken: each has its line, with the keys that the reference promises."""
    path = tmp_path / "access.log"

    async def main() -> int:
        async with Server(config=logged(path)) as server, target() as port:
            async with tunnel(server.addresses[0], port) as (reader, writer):
                writer.write(b"ping")
                writer.write_eof()
                assert await reader.read() == b"ping"
            with closed_port() as closed:
                assert await ask_for(server, "127.0.0.1", closed) == 5
            ours, theirs = socket.socketpair()
            server.parts.acceptors[0].accepted(theirs, ("203.0.113.9", 40000))
            with ours:
                ours.sendall(b"\x05\x01\x00" + request("10.0.0.1", 80))
            async with client(server.addresses[0]) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                assert await end_of(reader) == "end"
            await until(lambda: not server.parts.sessions.running)
            return port

    port = run(main)
    served, refused, denied, broken = sorted(
        map(json.loads, path.read_text().splitlines()), key=lambda line: line["id"]
    )
    assert set(served) == {
        *("time", "id", "listener", "protocol", "command", "client", "user", "host", "port", "address", "rule", "via"),
        *("member", "reply", "error", "up", "down", "seconds", "connect_ms", "close"),
    }
    assert (served["host"], served["port"], served["up"], served["down"]) == ("127.0.0.1", port, 4, 4)
    assert (served["reply"], served["close"], served["error"]) == (0, "client", None)
    assert (refused["reply"], refused["close"]) == (5, "error")
    assert (denied["reply"], denied["close"], denied["client"]) == (2, "denied", "203.0.113.9:40000")
    assert (broken["reply"], broken["close"], broken["command"]) == (None, "error", None)
    assert broken["error"] == "greeting: version 0x47, expected 0x05"


def test_a_fault_of_ours_is_logged_and_ends_only_its_session(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody expected costs one session, and its traceback is in the log."""

    class Broken(FakeResolver):
        async def resolve(self, name: str) -> Any:
            raise ZeroDivisionError

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, resolver=Broken(), on_close=ended.put_nowait) as server, target() as port:
            async with client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer)) == 0
                writer.write(request("here.test", 80))
                assert await end_of(reader) in ("end", "reset")
            session = await ended.get()
            assert (session.close, session.error) == ("error", "internal error: ZeroDivisionError")
            assert await ask_for(server, "127.0.0.1", port) == 0

    run(main)
    assert [(record.levelno, bool(record.exc_info)) for record in caplog.records] == [(logging.ERROR, True)]


@pytest.mark.parametrize("command", [1, 2])
def test_a_resolver_that_raises_the_systems_errors(run: Run, command: int) -> None:
    """CONNECT and BIND are answered: 04 for a name that does not exist, 01 for a resolver that is broken."""

    async def main() -> None:
        resolver = FakeResolver(
            {"nowhere.test": socket.gaierror(socket.EAI_NONAME, "Name not known"), "broken.test": OSError()}
        )
        async with Server(LOOPBACK, resolver=resolver) as server:
            assert await ask(server, request("nowhere.test", 80, command)) == 4
            assert await ask(server, request("broken.test", 80, command)) == 1

    run(main)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Config(timeouts=Timeouts(connect=0.0)),
            "timeouts.connect: a duration is more than 0 and less than 1e9 seconds",
        ),
        (Config(timeouts=Timeouts(bind=float("nan"))), "timeouts.bind: a duration is more than 0 "),
        (Config(timeouts=Timeouts(drain=None)), "timeouts.drain: none is not a duration"),  # type: ignore[arg-type]
        (Config(workers="2"), "workers: expected integer, got string"),  # type: ignore[arg-type]
        (Config(listen=[Listen(1)]), r"listen\[0\].url: expected string, got integer"),  # type: ignore[arg-type]
        (Config(users={"a": UserConfig(1)}), "users.a.password: expected string, got integer"),  # type: ignore[arg-type]
        (Config(log=Log(access=Path("x"))), "PosixPath as a value, expected a type of TOML"),  # type: ignore[arg-type]
    ],
)
def test_a_configuration_from_python_is_checked_as_a_file_is(settings: Config, message: str) -> None:
    """Types are not checked when a struct is made: a wrong one is found before it does harm."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        Server(config=settings)


@pytest.mark.parametrize("url", ["socks4://127.0.0.1:0", "socks4a://127.0.0.1:0", "unix:///run/x?protocol=socks4"])
def test_a_listener_that_nobody_could_use_is_refused(url: str) -> None:
    """SOCKS4 has no passwords: where users are required, every client would be turned away."""
    for given in ({"users": {"a": "b"}}, {"authenticate": Doorman()}):
        with pytest.raises(ConfigError, match=r"^listen\[0\].url: .* could not be used by any client, since SOCKS4"):
            Server(url, **given)


def test_a_name_is_no_loopback_address_before_it_is_looked_up() -> None:
    """The advice against an open proxy says that it is the name that is not known as loopback."""
    with pytest.raises(ConfigError, match=r"would be an open proxy, since proxy\.invalid is not a loopback address:"):
        Server("mixed://proxy.invalid:1")


# --- URLs of one protocol ---


def test_url_for_a_protocol(run_once: Run, tmp_path: Path) -> None:
    """The first listener that takes it, with a user where one is required; inside TLS only where there is some."""

    async def main() -> None:
        config = Config(
            listen=[
                Listen("socks5://127.0.0.1:0", "none"),
                Listen("mixed://127.0.0.1:0"),
                Listen("mixed://[::1]:0", tls=write_server(tmp_path)),
            ],
            log=Log("none"),
        )
        async with Server(config=config, users={"al:ice": "s/"}) as server:
            first, second, third = (url.rpartition("/")[2] for url in server.urls)
            assert server.url_for("socks5") == f"socks5://{first}"
            assert server.url_for("http") == f"http://al%3Aice:s%2F@{second}"
            assert server.url_for("socks4") == f"socks4://al%3Aice:s%2F@{second}"
            assert server.url_for("https") == f"https://al%3Aice:s%2F@{third}"
            assert server.url_for("socks5+tls") == f"socks5+tls://al%3Aice:s%2F@{third}"
            for wrong in ("mixed", "ssh", ""):
                with pytest.raises(ValueError, match="no listener takes"):
                    server.url_for(wrong)
        with pytest.raises(RuntimeError):
            server.url_for("http")

    run_once(main)


# --- closing, whoever cancels ---


def test_close_runs_to_its_end_whoever_cancels(run: Run) -> None:
    """A task that is cancelled again and again while it closes: tunnels are cut, `closed` is set, the task is told."""

    async def main() -> None:
        up = asyncio.Event()
        closes: list[str] = []
        servers: list[Server] = []

        async def serve() -> None:
            async with Server("socks5://127.0.0.1:0", on_close=lambda session: closes.append(session.close)) as server:
                servers.append(server)
                up.set()
                await server.serve_forever()

        async with target() as port:
            task = asyncio.get_running_loop().create_task(serve())
            await up.wait()
            async with Proxy(servers[0].url).connect("127.0.0.1", port) as stream:
                waiting = asyncio.get_running_loop().create_task(servers[0].serve_forever())
                while not task.done():
                    task.cancel()
                    await asyncio.sleep(0)
                assert task.cancelled()
                assert await stream.receive() == b""
                await waiting
        assert closes == ["shutdown"]
        assert servers[0].closed.is_set()
        await servers[0].close()

    run(main)


def test_even_the_task_that_closes_may_be_cancelled(run_once: Run) -> None:
    """As by whoever cancels all tasks of a loop: `closed` is set all the same, and nothing is left open."""

    async def main() -> None:
        async with (
            target() as port,
            Server("socks5://127.0.0.1:0") as server,
            Proxy(server.url).connect("127.0.0.1", port) as stream,
        ):
            closing = asyncio.get_running_loop().create_task(server.close())
            await asyncio.sleep(0)
            assert server.ending is not None
            server.ending.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            assert server.closed.is_set()
            assert await stream.receive() == b""

    run_once(main)


def test_what_is_not_a_configuration_is_told_at_once(run_once: Run) -> None:
    """A mapping and the path of a file are likely; the error says what makes a `Config` of them."""

    async def main() -> None:
        mistakes: list[tuple[Any, str]] = [({"workers": 1}, "dict"), ("tabi.toml", "str")]
        for wrong, kind in mistakes:
            message = rf"^config: {kind}, expected a tabi\.Config; tabi\.config\.load_config reads one"
            with pytest.raises(TypeError, match=message):
                Server("socks5://127.0.0.1:0", config=wrong)
            with pytest.raises(TypeError, match=message):
                tabi.compile_config(wrong)
            async with Server("socks5://127.0.0.1:0") as server:
                with pytest.raises(TypeError, match=message):
                    server.reload(wrong)

    run_once(main)
