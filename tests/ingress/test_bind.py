"""BIND: who may call and where, what becomes of the others, and that nothing is left however the wait ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from conftest import Run
from doubles import (
    LOOPBACK,
    FakeResolver,
    Scene,
    ask,
    caller,
    client_from,
    config,
    end_of,
    expect_reset,
    greet,
    no_descriptors_left,
    open_bind,
    queued,
    read_bound,
    read_reply,
    reset,
    until,
)
from sockets import tcp_pair
from support import client, free_ports, request
from tabi import Server, Session
from tabi.config import Listen, Udp
from tabi.ingress.bind import BACKLOG, EARLY
from tabi.ingress.bind_listener import CALLERS_A_TURN, BindListener
from tabi.net.listen import bind_listener
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.policy.guard import Guard
from tabi.policy.policy import allow_any_destination
from tabi.wire.address import UNSPECIFIED, Address, encode_address, parse_host

OUTSIDE = "203.0.113.9"
ANYONE = ("0.0.0.0", "::", "::ffff:0.0.0.0")


def bind_request(host: str) -> bytes:
    """A BIND for a peer, as octets."""
    return request(host, 0, 2)


@contextlib.asynccontextmanager
async def distant_client(server: Server, host: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """As `doubles.client_from`, by TCP, so that the control connection has an address of this machine."""
    ours, theirs = tcp_pair()
    server.parts.acceptors[0].accepted(theirs, (host, 40000))
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def refuses(address: Address) -> bool:
    """Whether nobody listens there."""
    try:
        async with caller(address):
            return False
    except ConnectionRefusedError:
        return True


async def check(near: asyncio.StreamWriter, far: asyncio.StreamReader, data: bytes = b"ping") -> None:
    """What goes in on one side comes out on the other."""
    near.write(data)
    assert await far.readexactly(len(data)) == data


async def arrived(scene: Scene, writer: asyncio.StreamWriter) -> None:
    """Wait until the proxy's kernel has all that a client has sent, or takes no more for now."""
    here, there = writer.get_extra_info("sockname")[1], scene.server.addresses[0].port
    await until(lambda: queued(here, there)[0] == 0 or queued(there, here)[1] > 10_000)


# --- the life of a BIND ---


@pytest.mark.every_hosting
def test_a_session_of_bind(run: Run) -> None:
    """Two replies, octets both ways, both half-closes; and the session knows who was expected and who called."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.client()
            bound = await open_bind((reader, writer))
            assert str(bound.host) == "127.0.0.1"
            async with caller(bound) as (far_reader, far_writer):
                peer = await read_bound(reader)
                assert (str(peer.host), peer.port) == far_writer.get_extra_info("sockname")
                await check(writer, far_reader, b"to the peer")
                await check(far_writer, reader, b"to the client")
                writer.write_eof()
                assert await far_reader.read() == b""
                await check(far_writer, reader, b"afterwards")
                far_writer.write_eof()
                assert await reader.read() == b""
            session = await scene.ended.get()
            assert (session.command, session.via, session.close) == ("bind", "direct", "client")
            assert (str(session.destination), session.address) == ("127.0.0.1:0", peer)
            assert (session.reply_code, session.error, session.up, session.down) == (0, None, 11, 23)
            assert session.connect_seconds is not None
            assert session.connect_seconds > 0
            assert await refuses(bound)

    run(main)


def test_a_peer_that_speaks_first_comes_behind_the_second_reply(run: Run) -> None:
    """What the peer sends at once, and its end, do not overtake the reply."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            for _ in range(10):
                async with client(server.addresses[0]) as streams, caller(await open_bind(streams)) as (_, far_writer):
                    far_writer.write(b"220 ready\r\n")
                    far_writer.write_eof()
                    await read_bound(streams[0])
                    assert await streams[0].read() == b"220 ready\r\n"

    run(main)


@pytest.mark.parametrize("size", [5, EARLY, EARLY + 1, 300_000])
@pytest.mark.every_hosting
def test_what_the_client_sends_early_is_kept(run: Run, size: int) -> None:
    """Payload behind the request, before anybody has called, reaches the peer whole and is no leaving."""

    async def main() -> None:
        payload = bytes(range(256)) * (size // 256 + 1)
        early, late = payload[:3], payload[3:size]
        async with Scene() as scene:
            reader, writer = await scene.client()
            bound = await open_bind((reader, writer), early=early)
            writer.write(late)
            await arrived(scene, writer)
            async with caller(bound) as (far_reader, far_writer):
                await read_bound(reader)
                await check(far_writer, reader)
                assert await far_reader.readexactly(size) == payload[:size]
                writer.write_eof()
                assert await far_reader.read() == b""
            assert (await scene.ended.get()).up == size

    run(main)


@pytest.mark.every_hosting
def test_a_client_that_has_much_to_say_early_does_not_spin(run: Run) -> None:
    """What waits to be read is no event again and again while the peer is waited for."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.client()
            await open_bind((reader, writer))
            writer.write(bytes(300_000))
            await arrived(scene, writer)
            reactor, batches = scene.server.parts.reactor, 0
            dispatch = reactor.dispatch

            def count(batch: list[tuple[int, int]], whole: bool = True) -> list[tuple[int, int]]:
                nonlocal batches
                batches += any(fd in reactor.handlers for fd, _ in batch)
                return dispatch(batch, whole)

            async def quiet() -> bool:
                before = batches
                for _ in range(50):
                    await asyncio.sleep(0)
                return batches == before

            reactor.dispatch = count  # type: ignore[method-assign]
            while not await quiet():  # what is under way comes to its end
                pass

    run(main)


@pytest.mark.parametrize("early", [b"", b"early"])
@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.every_hosting
def test_a_client_that_leaves_ends_the_wait(run: Run, how: str, early: bytes) -> None:
    """At once, also behind octets that it has sent; nobody listens any more, and the log says how it went."""

    async def main() -> None:
        async with Scene(bind=1000) as scene:
            reader, writer = await scene.client()
            bound = await open_bind((reader, writer))
            writer.write(early)
            await arrived(scene, writer)
            if how == "end":
                writer.write_eof()
                assert await end_of(reader) in ("end", "reset")
            else:
                reset(writer)
            session = await scene.ended.get()
            assert (session.close, session.reply_code) == ("client" if how == "end" else "reset", 0)
            text = "the client left before its peer had called" if how == "end" else "connection reset by peer"
            assert session.error == text
            assert await refuses(bound)

    run(main)


def test_nobody_calls_in_time(run: Run) -> None:
    """The second reply is 06, then comes the end; the error names the peer, the limit and who called in vain."""

    async def main() -> None:
        async with Scene(bind=0.4) as scene:
            reader, writer = await scene.client()
            bound = await open_bind((reader, writer))
            await expect_reset(bound, "127.0.0.2")
            writer.write(b"unread")
            assert (await read_reply(reader))[0] == 6
            assert await end_of(reader) == "end"
            writer.close()
            session = await scene.ended.get()
            assert (session.reply_code, session.close, session.address) == (6, "error", None)
            assert session.error is not None
            head, _, last = session.error.rpartition(":")
            assert head == "127.0.0.1:0: no call within 0.4 s; callers refused: 1, the last from 127.0.0.2"
            assert last.isdigit()
            assert await refuses(bound)

    run(main)


def test_a_peer_that_vanishes_at_once_is_a_reset_for_the_client(run: Run) -> None:
    """It has called, so the second reply is a success; what became of it is told behind that."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.client()
            async with caller(await open_bind((reader, writer))) as (_, far_writer):
                reset(far_writer)
                await read_bound(reader)
                assert await end_of(reader) == "reset"
            assert (await scene.ended.get()).close == "reset"

    run(main)


def test_two_that_may_call_at_once(run: Run) -> None:
    """The first one is the peer, the second is reset: none is left open without an owner."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.client()
            bound = await open_bind((reader, writer))
            socks = [socket.socket() for _ in range(3)]
            try:
                for sock in socks:  # blocking: all three are in the backlog when the server has its turn
                    sock.settimeout(5)
                    sock.connect((str(bound.host), bound.port))
                peer = await read_bound(reader)
                for sock in socks:
                    if sock.getsockname()[1] == peer.port:
                        sock.sendall(b"ping")
                        assert await reader.readexactly(4) == b"ping"
                    else:
                        with pytest.raises(ConnectionResetError):
                            await asyncio.to_thread(sock.recv, 1)
            finally:
                for sock in socks:
                    sock.close()
            writer.close()
            assert (await scene.ended.get()).address == peer

    run(main)


# --- who may call ---


def test_callers_from_elsewhere_are_reset_and_the_wait_goes_on(run: Run) -> None:
    """However many there are, the peer gets through behind them."""

    async def main() -> None:
        async with Scene() as scene:
            reader, writer = await scene.client()
            bound = await open_bind((reader, writer), "127.0.0.2")
            for _ in range(4):
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(BACKLOG):
                        tasks.create_task(expect_reset(bound, "127.0.0.1"))
            async with caller(bound, "127.0.0.2") as (far_reader, _):
                assert str((await read_bound(reader)).host) == "127.0.0.2"
                await check(writer, far_reader)
            writer.close()
            assert str((await scene.ended.get()).address).startswith("127.0.0.2:")

    run(main)


def test_a_bounded_number_of_callers_is_looked_at_in_a_turn(run_once: Run) -> None:
    """A crowd waits in the kernel while others have their turn."""

    async def main() -> None:
        reactor = get_reactor()
        near, far = tcp_pair()
        stream = Stream(reactor, near)
        listener = bind_listener(Address(parse_host("127.0.0.1"), 0))
        listener.listen(3 * CALLERS_A_TURN)
        crowd = [socket.socket() for _ in range(2 * CALLERS_A_TURN)]
        for sock in crowd:
            sock.connect(listener.getsockname())
        callers = BindListener(reactor, listener, UNSPECIFIED, stream, [ip_address("127.0.0.9")], None, 0)
        callers.acceptor.on_ready(0)
        assert callers.refused == CALLERS_A_TURN
        callers.acceptor.on_ready(0)
        assert callers.refused == 2 * CALLERS_A_TURN
        callers.close()
        stream.close()
        for sock in (far, *crowd):
            sock.close()

    run_once(main)


@pytest.mark.parametrize("host", ANYONE)
def test_anyone_may_call_where_the_peer_is_unspecified(run: Run, host: str) -> None:
    """DST 0.0.0.0 and ::; the client is told the address that it reaches the proxy at, never 0.0.0.0."""

    async def main() -> None:
        async with Server(LOOPBACK) as server:
            for source in ("127.0.0.1", "127.0.0.2"):
                async with client(server.addresses[0]) as streams:
                    bound = await open_bind(streams, host)
                    assert str(bound.host) == "127.0.0.1"
                    async with caller(bound, source) as (far_reader, _):
                        assert str((await read_bound(streams[0])).host) == source
                        await check(streams[1], far_reader)

    run(main)


def test_a_client_of_a_unix_socket(run: Run, tmp_path: Path) -> None:
    """It is on this machine: it is told 127.0.0.1 where anyone may call, and of a name IPv4 is taken."""

    async def main() -> None:
        path = tmp_path / "tabi.sock"
        resolver = FakeResolver({"both.test": ["::1", "127.0.0.1"]})
        async with Server(f"unix://{path}?protocol=socks5", resolver=resolver):
            for host in ("0.0.0.0", "127.0.0.1", "both.test"):
                streams = await asyncio.open_unix_connection(path)
                bound = await open_bind(streams, host)
                assert str(bound.host) == "127.0.0.1"
                async with caller(bound) as (far_reader, _):
                    assert str((await read_bound(streams[0])).host) == "127.0.0.1"
                    await check(streams[1], far_reader)
                    streams[1].close()
                    await streams[1].wait_closed()

    run(main)


@pytest.mark.parametrize("host", ["::", "both.test"])
def test_the_client_behind_a_proxy_header_has_its_own_family(run: Run, host: str) -> None:
    """Its proxy came by IPv4, but whoever is to call is told of by a client that has IPv6."""

    async def main() -> None:
        resolver = FakeResolver({"both.test": ["127.0.0.1", "::1"]})
        listen = Listen(LOOPBACK, proxy_protocol=["127.0.0.1"])
        async with (
            Server(config=config(listen), resolver=resolver, open=True) as server,
            client(server.addresses[0]) as streams,
        ):
            streams[1].write(b"PROXY TCP6 ::1 ::1 5 6\r\n")
            bound = await open_bind(streams, host)
            assert str(bound.host) == "::1"
            async with caller(bound, "::1") as (far_reader, _):
                assert str((await read_bound(streams[0])).host) == "::1"
                await check(streams[1], far_reader)

    run(main)


def test_ipv6(run: Run) -> None:
    """A peer by IPv6 is listened for by IPv6; where anyone may call, it is the family of the client."""

    async def main() -> None:
        async with Server("socks5://[::1]:0", LOOPBACK) as server:
            for index, host in ((0, "::1"), (1, "::1"), (0, "0.0.0.0"), (0, "::")):
                async with client(server.addresses[index]) as streams:
                    bound = await open_bind(streams, host)
                    assert str(bound.host) == "::1"
                    async with caller(bound, "::1") as (far_reader, _):
                        assert str((await read_bound(streams[0])).host) == "::1"
                        await check(streams[1], far_reader)

    run(main)


def test_ipv4_inside_ipv6_calls_as_ipv4(run: Run) -> None:
    """A peer that is asked for as ::ffff:127.0.0.1 is 127.0.0.1."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as streams:
            bound = await open_bind(streams, "::ffff:127.0.0.1")
            async with caller(bound) as (far_reader, _):
                assert str((await read_bound(streams[0])).host) == "127.0.0.1"
                await check(streams[1], far_reader)

    run(main)


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
def test_any_address_of_a_name_may_call(run: Run, source: str) -> None:
    """A peer by name calls from whichever of its addresses; others are refused."""

    async def main() -> None:
        async with Scene() as scene:
            streams = await scene.client()
            bound = await open_bind(streams, "both.test")
            await expect_reset(bound, "127.0.0.3")
            async with caller(bound, source) as (far_reader, _):
                peer = await read_bound(streams[0])
                assert str(peer.host) == source
                await check(streams[1], far_reader)
            streams[1].close()
            session = await scene.ended.get()
            assert (str(session.destination), session.address) == ("both.test:0", peer)

    run(main)


def test_a_name_of_both_families_is_listened_for_in_the_clients_own(run: Run) -> None:
    """Whichever the resolver has first; among those of one family its order stands."""

    async def main() -> None:
        resolver = FakeResolver({"six.test": ["::1", "127.0.0.1"], "four.test": ["127.0.0.1", "::1"]})
        async with Server("socks5://[::1]:0", LOOPBACK, resolver=resolver) as server:
            for name in ("six.test", "four.test"):
                for index, own in enumerate(("::1", "127.0.0.1")):
                    async with client(server.addresses[index]) as streams:
                        bound = await open_bind(streams, name)
                        assert str(bound.host) == own
                        async with caller(bound, own) as (far_reader, _):
                            assert str((await read_bound(streams[0])).host) == own
                            await check(streams[1], far_reader)

    run(main)


def test_a_name_that_is_not_resolved(run: Run) -> None:
    """An unknown one is 04, and so is one whose address is not found within timeouts.connect."""

    async def main() -> None:
        async with Scene(connect=0.1) as scene:
            assert await ask(scene.server, bind_request("nowhere.test")) == 4
            assert (await scene.ended.get()).error == "nowhere.test: domain name not found"
            scene.resolver.answering.clear()
            assert await ask(scene.server, bind_request("here.test")) == 4
            assert (await scene.ended.get()).error == "here.test:0: no answer within 0.1 s"

    run(main)


# --- the guard ---


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:10.0.0.1", "inner.test", "mixed.test"])
def test_a_client_from_outside_does_not_wait_for_inner_peers(run: Run, host: str) -> None:
    """02 in the first reply: nothing listens for them."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        resolver = FakeResolver({"inner.test": ["10.0.0.1"], "mixed.test": ["93.184.216.34", "127.0.0.1"]})
        async with Server(LOOPBACK, resolver=resolver, on_close=ended.put_nowait) as server:
            async with client_from(server, OUTSIDE) as (reader, writer):
                assert await greet((reader, writer)) == 0
                writer.write(bind_request(host))
                assert (await read_reply(reader))[0] == 2
                assert await reader.read() == b""
            session = await ended.get()
            assert (session.close, session.reply_code, session.via) == ("denied", 2, "direct")
            assert session.error is not None
            assert session.error.startswith("guard: ")

    run(main)


def test_inner_callers_of_a_client_from_outside_are_reset(run: Run) -> None:
    """Where anyone may call, the guard is asked for each caller: who is forbidden is refused like a wrong peer."""

    async def main() -> None:
        async with Server(config=config(bind=0.5)) as server, distant_client(server, OUTSIDE) as streams:
            bound = await open_bind(streams, "0.0.0.0")
            await expect_reset(bound, "127.0.0.1")
            assert (await read_reply(streams[0]))[0] == 6

    run(main)


def test_outer_callers_of_a_client_from_outside_get_through(run: Run) -> None:
    """The guard keeps inner callers away, not all of them."""

    async def main() -> None:
        near, far = tcp_pair()
        listener = bind_listener(Address(parse_host("127.0.0.1"), 0))
        listener.listen()
        stream = Stream(get_reactor(), near)
        callers = BindListener(stream.reactor, listener, UNSPECIFIED, stream, [], Guard().check_destination, 0)
        inner, outer, late = tcp_pair(), tcp_pair(), tcp_pair()
        callers.on_caller(inner[0], ("10.0.0.1", 1))
        assert callers.peer is None
        callers.on_caller(outer[0], ("93.184.216.34", 2))
        callers.on_caller(late[0], ("93.184.216.34", 3))
        assert (inner[0].fileno(), late[0].fileno()) == (-1, -1)
        address, peer = callers.take()
        assert str(address) == "93.184.216.34:2"
        callers.close()
        for closing in (peer, stream):
            closing.close()
        for sock in (far, inner[1], outer[1], late[1]):
            sock.close()

    run(main)


def test_a_peer_that_nobody_took_is_reset(run: Run) -> None:
    """A wait that is cut off just when the peer calls leaves no socket behind."""

    async def main() -> None:
        near, far = tcp_pair()
        listener = bind_listener(Address(parse_host("127.0.0.1"), 0))
        listener.listen()
        stream = Stream(get_reactor(), near)
        callers = BindListener(stream.reactor, listener, UNSPECIFIED, stream, [], allow_any_destination, 0)
        ours, theirs = tcp_pair()
        callers.on_caller(ours, ("127.0.0.1", 1))
        callers.close()
        assert ours.fileno() == -1
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
        stream.close()
        for sock in (far, theirs):
            sock.close()

    run(main)


# --- where it listens ---


def test_ports_from_the_range_of_the_listener(run: Run) -> None:
    """Each BIND takes another one; when all listen, the answer is 01; a port whose peer is connected is free again."""

    async def main() -> None:
        ports = free_ports(2)
        listen = Listen(LOOPBACK, udp=Udp(ports=f"{ports[0]}-{ports[-1]}"))
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with (
            Server(config=config(listen), on_close=ended.put_nowait) as server,
            client(server.addresses[0]) as first,
            client(server.addresses[0]) as second,
        ):
            one, two = await open_bind(first), await open_bind(second)
            assert {one.port, two.port} == set(ports)
            assert await ask(server, bind_request("127.0.0.1")) == 1
            error = f"listening for 127.0.0.1:0: no port of {ports[0]}-{ports[-1]} is free"
            assert (await ended.get()).error == error
            async with caller(one) as (far_reader, _), client(server.addresses[0]) as third:
                await read_bound(first[0])
                assert (await open_bind(third)).port == one.port
                await check(first[1], far_reader)

    run(main)


def test_a_shared_port_is_for_datagrams(run: Run) -> None:
    """With ``ports = "shared"`` a BIND takes any free port: TCP has no use for one port for all."""

    async def main() -> None:
        async with (
            Server(config=config(Listen(LOOPBACK, udp=Udp(ports="shared")))) as server,
            client(server.addresses[0]) as first,
            client(server.addresses[0]) as second,
        ):
            assert (await open_bind(first)).port != (await open_bind(second)).port

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_advertised_address_is_told(run: Run, host: str) -> None:
    """Behind NAT the client is told the public address; the port is the one that is listened on."""

    async def main() -> None:
        listen = Listen(LOOPBACK, udp=Udp(advertise="198.51.100.7"))
        async with Server(config=config(listen)) as server, client(server.addresses[0]) as streams:
            bound = await open_bind(streams, host)
            assert str(bound.host) == "198.51.100.7"
            async with caller(Address("127.0.0.1", bound.port)) as (far_reader, _):
                await read_bound(streams[0])
                await check(streams[1], far_reader)

    run(main)


def test_a_listener_without_a_descriptor_is_the_proxys_fault(run: Run) -> None:
    """01, whether a peer is expected or anyone."""

    async def main() -> None:
        for host in ("127.0.0.1", "0.0.0.0"):
            async with Server(LOOPBACK) as server, client(server.addresses[0]) as (reader, writer):
                assert await greet((reader, writer)) == 0
                with no_descriptors_left():
                    writer.write(bind_request(host))
                    assert (await read_reply(reader))[0] == 1
                assert await reader.read() == b""

    run(main)


def test_no_descriptor_for_the_peer_is_waited_out(run: Run) -> None:
    """A caller for whom no descriptor is left waits in the backlog, and nothing spins; then it is served."""

    async def main() -> None:
        async with Scene() as scene:
            streams = await scene.client()
            bound = await open_bind(streams)
            with socket.socket() as sock:
                sock.setblocking(False)
                with no_descriptors_left():
                    sock.connect_ex((str(bound.host), bound.port))
                    for _ in range(20):
                        await asyncio.sleep(0)
                    assert not streams[0]._buffer  # type: ignore[attr-defined]
                peer = await read_bound(streams[0])
                assert peer.port == sock.getsockname()[1]

    run(main)


def test_the_port_of_the_peer_is_not_looked_at(run: Run) -> None:
    """DST.PORT is that of a server's control connection, say; it calls from another one."""

    async def main() -> None:
        async with Server(LOOPBACK) as server, client(server.addresses[0]) as streams:
            assert await greet(streams) == 0
            streams[1].write(b"\x05\x02\x00" + encode_address(Address(parse_host("127.0.0.1"), 21)))
            async with caller(await read_bound(streams[0])) as (far_reader, _):
                assert (await read_bound(streams[0])).port != 21
                await check(streams[1], far_reader)

    run(main)
