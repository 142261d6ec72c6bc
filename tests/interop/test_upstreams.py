"""Proxies of others, with our ways out: microsocks, Dante and tinyproxy, alone and in chains with our own servers."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from authorities import write_server
from conftest import Run
from datagrams import Front, Place, association, destination, refusal, unwrap
from depth import deep
from doubles import FakeResolver, caller, open_bind, read_bound
from interop.test_haproxy import haproxy
from processes import PATIENCE, children, environment, is_running, need, refuses, wait_for
from support import client, closed_port, free_port, request, target
from tabi import AuthError, Proxy, ProxyError, Server, Session
from tabi.config import Config, make_config
from tabi.egress.chain import make_chain
from tabi.egress.direct import Direct
from tabi.egress.socks5 import Socks5
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.stream import Stream
from tabi.net.tls import get_tls_shared
from tabi.policy.guard import allow_any_address
from tabi.url import parse_url
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import encode_header

pytestmark = pytest.mark.interop

DANTE = """\
logoutput: {folder}/danted.log
internal: 127.0.0.1 port = {port}
external: lo
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""

TINYPROXY = """\
Port {port}
Listen 127.0.0.1
Timeout 20
MaxClients 20
LogFile "{folder}/tinyproxy.log"
{more}
"""


@contextlib.contextmanager
def running(*command: str | Path, port: int) -> Iterator[None]:
    """A program that listens on a port, ended by its id and those of its children."""
    process = subprocess.Popen(
        [*map(str, command)], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: not refuses(parse_address(f"127.0.0.1:{port}")), f"{command[0]} to listen")
        yield
    finally:
        others = children(process.pid)
        process.terminate()
        process.wait(PATIENCE)
        for pid in filter(is_running, others):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        wait_for(lambda: not any(map(is_running, others)), f"the processes of {command[0]} to end")


@contextlib.contextmanager
def microsocks(folder: Path, *more: str) -> Iterator[str]:
    """A running microsocks; gives its URL."""
    program, port = need("microsocks"), free_port()
    with running(program, "-i", "127.0.0.1", "-p", str(port), *more, port=port):
        yield f"socks5://127.0.0.1:{port}"


@contextlib.contextmanager
def dante(folder: Path) -> Iterator[str]:
    """A running Dante; gives its URL."""
    program, port = need("danted"), free_port()
    text = DANTE.format(folder=folder, port=port, user=pwd.getpwuid(os.geteuid()).pw_name)
    (folder / "danted.conf").write_text(text)
    with running(program, "-f", folder / "danted.conf", "-p", folder / "danted.pid", port=port):
        yield f"socks5://127.0.0.1:{port}"


@contextlib.contextmanager
def tinyproxy(folder: Path, more: str = "") -> Iterator[str]:
    """A running tinyproxy; gives its URL."""
    program, port = need("tinyproxy"), free_port()
    (folder / "tinyproxy.conf").write_text(TINYPROXY.format(folder=folder, port=port, more=more))
    with running(program, "-d", "-c", folder / "tinyproxy.conf", port=port):
        yield f"http://127.0.0.1:{port}"


PROGRAMS: list[Callable[[Path], contextlib.AbstractContextManager[str]]] = [microsocks, dante, tinyproxy]
every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: str(program.__name__))


async def exchange(stream: Stream, data: bytes = b"hello" * 20_000) -> None:
    """Send and get the same back, while it is sent."""
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.send_all(data))
        received = b""
        while len(received) < len(data):
            received += await stream.receive()
    assert received == data


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first."""
    writer.write(b"220 here\r\n")
    await reader.read()


@every_program
def test_the_client_goes_through(
    run: Run, tmp_path: Path, program: Callable[[Path], contextlib.AbstractContextManager[str]]
) -> None:
    """By name and by address; also a destination that speaks first is heard."""

    async def main() -> None:
        async with target() as port, target(greets) as first:
            for host in ("127.0.0.1", "localhost"):
                async with Proxy(url).connect(host, port) as stream:
                    await exchange(stream)
            async with Proxy(url).connect("127.0.0.1", first) as stream:
                assert await stream.receive() == b"220 here\r\n"

    with program(tmp_path) as url:
        run(main)


@every_program
def test_a_ping_is_answered(
    run_once: Run, tmp_path: Path, program: Callable[[Path], contextlib.AbstractContextManager[str]]
) -> None:
    """By each of them; tinyproxy passes on what is for itself, and finds no such host."""
    answers = {
        "microsocks": "no authentication",
        "dante": "no authentication",
        "tinyproxy": "500 Internal Server Error",
    }
    with program(tmp_path) as url:
        assert run_once(Proxy(url).ping) == answers[program.__name__]


@pytest.mark.parametrize("program", [microsocks, tinyproxy], ids=lambda program: str(program.__name__))
def test_a_ping_tries_the_password(run_once: Run, tmp_path: Path, program: Callable[..., Any]) -> None:
    """The right one is let in; a wrong one, and none, is an AuthError."""
    more = ("BasicAuth alice secret",) if program is tinyproxy else ("-u", "alice", "-P", "secret")
    with program(tmp_path, *more) as url:
        assert run_once(Proxy(url.replace("//", "//alice:secret@")).ping)
        for user in ("", "alice:herring@"):
            with pytest.raises(AuthError):
                run_once(Proxy(url.replace("//", f"//{user}")).ping)


@every_program
def test_a_chain_with_ours(
    run_once: Run, tmp_path: Path, program: Callable[[Path], contextlib.AbstractContextManager[str]]
) -> None:
    """Before it and behind it, each of our protocols."""

    async def main() -> None:
        async with target() as port:
            for scheme in ("socks5", "socks4", "http"):
                async with Server(f"{scheme}://127.0.0.1:0") as server:
                    for urls in ((url, server.url), (server.url, url)):
                        async with Proxy(*urls).connect("localhost", port) as stream:
                            await exchange(stream)

    with program(tmp_path) as url:
        run_once(main)


@every_program
def test_a_destination_that_is_not_there(
    run_once: Run, tmp_path: Path, program: Callable[[Path], contextlib.AbstractContextManager[str]]
) -> None:
    """It is the proxy's refusal; how much that says is the proxy's."""

    async def main() -> None:
        with closed_port() as port, pytest.raises(ProxyError, match=f"127.0.0.1:{port}: the proxy says") as caught:
            await Proxy(url).connect("127.0.0.1", port)
        assert caught.value.reply_code in ((5,) if url.startswith("socks5") else (1, 4))

    with program(tmp_path) as url:
        run_once(main)


@pytest.mark.parametrize(("program", "takes"), [(microsocks, False), (dante, None)])
def test_greeting_and_request_at_once(
    run_once: Run,
    tmp_path: Path,
    program: Callable[[Path], contextlib.AbstractContextManager[str]],
    takes: bool | None,
) -> None:
    """Whether the proxy takes that or not, each connection is opened; it is asked in vain once at most."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), ThreadResolver(), 10)
        proxy = parse_url(url)
        egress = make_chain([proxy], [None], Direct(dialer), dialer.deadlines, get_tls_shared(), optimistic=True)
        assert isinstance(egress, Socks5)
        async with target() as port:
            for _ in range(5):
                async with await egress.open(Address("localhost", port), allow_any_address) as stream:
                    await exchange(stream)
        assert egress.optimistic is egress.proven
        assert takes is None or egress.optimistic is takes
        await dialer.close()

    with program(tmp_path) as url:
        run_once(main)


def test_users_of_microsocks(run_once: Run, tmp_path: Path) -> None:
    """The right one gets in, a wrong one and nobody do not."""

    async def main() -> None:
        async with target() as port:
            async with Proxy(url.replace("//", "//alice:secret@")).connect("localhost", port) as stream:
                await exchange(stream)
            for login in ("", "alice:wrong@"):
                with pytest.raises(AuthError):
                    await Proxy(url.replace("//", f"//{login}")).connect("localhost", port)

    with microsocks(tmp_path, "-u", "alice", "-P", "secret") as url:
        run_once(main)


def test_users_of_tinyproxy(run_once: Run, tmp_path: Path) -> None:
    """The right one gets in, a wrong one and nobody do not."""

    async def main() -> None:
        async with target() as port:
            async with Proxy(url.replace("//", "//alice:secret@")).connect("localhost", port) as stream:
                await exchange(stream)
            for login in ("", "alice:wrong@"):
                with pytest.raises(AuthError):
                    await Proxy(url.replace("//", f"//{login}")).connect("localhost", port)

    with tinyproxy(tmp_path, "BasicAuth alice secret") as url:
        run_once(main)


# --- datagrams and BIND of a server that goes out through them ---


def test_datagrams_of_a_server_through_dante(run: Run, tmp_path: Path) -> None:
    """Alone, and with our own proxies before it and behind it: each datagram comes back whole, by name and address."""

    async def main() -> None:
        async with Place(names={"localhost": ["127.0.0.1"]}) as ours:
            for chain in ([url], [ours.server.url, url], [url, ours.server.url]):
                async with Front({"chain": chain}) as front, association(front.address) as mine:
                    with destination() as echo:
                        named = encode_header(Address("localhost", echo.address.port))
                        for header in (echo.header, named):
                            for size in (0, 1, 1200, 9000):
                                assert unwrap(await mine.ask(header + bytes(size))) == (echo.address, bytes(size))
                    session = await front.end(mine)
                    assert (session.drops, session.datagrams_down) == ({}, 8)

    with dante(tmp_path) as url:
        run(main)


def test_bind_of_a_server_through_dante(run: Run, tmp_path: Path) -> None:
    """It listens, and what it says of the caller reaches the client."""

    async def main() -> None:
        async with Front({"url": url}) as front, client(front.address) as streams:
            reader, writer = streams
            bound = await open_bind(streams)
            async with caller(bound) as (far_reader, far_writer):
                peer = await read_bound(reader)
                assert (str(peer.host), peer.port) == far_writer.get_extra_info("sockname")
                writer.write(b"ping")
                assert await far_reader.readexactly(4) == b"ping"
                far_writer.write(b"pong")
                assert await reader.readexactly(4) == b"pong"

    with dante(tmp_path) as url:
        run(main)


def test_microsocks_carries_no_datagrams(run_once: Run, tmp_path: Path) -> None:
    """It says so, and so does the server, to BIND too; a pool that has Dante as well goes there."""

    async def main() -> None:
        async with Front({"url": url}) as front:
            assert (await refusal(front))[0] == 7
            async with client(front.address) as (reader, writer):
                writer.write(b"\x05\x01\x00" + request("127.0.0.1", 0, 2))
                assert (await reader.readexactly(12))[3] == 7
        async with Front({"members": [url, other]}) as front:
            for _ in range(3):
                async with association(front.address) as mine:
                    with destination() as echo:
                        assert unwrap(await mine.ask(echo.header + b"x")) == (echo.address, b"x")
                    assert (await front.end(mine)).member == other

    with microsocks(tmp_path) as url, dante(tmp_path) as other:
        run_once(main)


# --- inside TLS, and pools whose members come and go ---


def test_tinyproxy_inside_the_tls_of_haproxy(run: Run, tmp_path: Path) -> None:
    """An HTTPS proxy of other people's programs, alone and in a chain with ours; not under a name that it has not."""
    tls = write_server(tmp_path)
    assert tls.certificate is not None
    pem, ca = tmp_path / "haproxy.pem", tmp_path / "server-ca.pem"
    pem.write_text(Path(tls.certificate).read_text() + Path(str(tls.key)).read_text())

    async def main() -> None:
        names = FakeResolver({"localhost": ["127.0.0.1"], "other.test": ["127.0.0.1"]})

        async def through(*chain: str) -> None:
            async with (
                Server(config=way_out({"chain": [*chain], "ca": str(ca)}), resolver=names) as front,
                Proxy(front.url).connect("127.0.0.1", port) as stream,
            ):
                await exchange(stream)

        async with target() as port, Server("socks5://127.0.0.1:0") as ours:
            for url in (f"https://localhost:{address.port}", f"https://127.0.0.1:{address.port}"):
                await through(url)
                await through(url, ours.url)
                await through(ours.url, url.replace("localhost", "127.0.0.1"))
            with pytest.raises(ProxyError, match="reply 01"):
                await through(f"https://other.test:{address.port}")

    with tinyproxy(tmp_path) as url:
        rest = f"mode tcp\n    server tinyproxy {url.removeprefix('http://')}"
        with haproxy(tmp_path, rest, f"ssl crt {pem}") as address:
            run(main)


def way_out(egress: dict[str, object]) -> Config:
    """A server that sends everything one way."""
    rule = {"action": "allow", "via": "out"}
    listen = {"url": "socks5://127.0.0.1:0"}
    return make_config({"log": {"access": "none"}, "listen": [listen], "rule": [rule], "egress": {"out": egress}})


class Counter:
    """A destination that answers each request and counts how often it came."""

    def __init__(self) -> None:
        self.seen: collections.Counter[bytes] = collections.Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readline()
        self.seen[request] += 1
        writer.write(b"answer to " + request)
        writer.close()


@pytest.mark.parametrize("balance", ["round-robin", "sticky", *deep(["least-connections"])])
def test_members_that_are_killed_and_come_back_under_load(run_once: Run, tmp_path: Path, balance: str) -> None:
    """Whoever asks is answered, once, whichever member has died between two requests; one that is back gets work."""
    program, ports = need("microsocks"), [free_port() for _ in range(3)]
    members = [f"socks5://127.0.0.1:{port}" for port in ports]
    loaders, counter = 6, Counter()

    async def main() -> None:
        took: collections.Counter[str] = collections.Counter()
        turns = asyncio.Semaphore(loaders)
        numbers = itertools.count()

        async def load(proxy: Proxy, port: int) -> None:
            while not done.is_set():
                async with turns:
                    line = b"request %d\n" % next(numbers)
                    async with proxy.connect("127.0.0.1", port) as stream:
                        await stream.send_all(line)
                        received = b""
                        while data := await stream.receive():
                            received += data
                    assert received == b"answer to " + line

        async def between_requests(act: Callable[[], object]) -> None:
            for _ in range(loaders):
                await turns.acquire()
            act()
            for _ in range(loaders):
                turns.release()

        async def until_used(member: str) -> None:
            before = took[member]
            while took[member] <= before:
                await asyncio.sleep(0.01)

        def told(session: Session) -> None:
            took[str(session.member)] += 1

        done = asyncio.Event()
        config = way_out({"members": members, "balance": balance, "sticky": {"by": "host"} if by_host else {}})
        async with (
            target(counter.serve) as port,
            Server(config=config, on_close=told) as front,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(loaders):
                group.create_task(load(Proxy(front.url), port))
            for index, member in enumerate(members):
                if not by_host:  # all of one key stay with one member, as long as it lives
                    await until_used(member)
                await between_requests(processes[index].stop)
                await asyncio.sleep(0)
                sent = next(numbers)
                while len(counter.seen) < sent + 20:
                    await asyncio.sleep(0.01)
                await between_requests(processes[index].start)
                if not by_host:
                    await until_used(member)
            done.set()
        assert set(counter.seen.values()) == {1}
        assert sum(took.values()) == len(counter.seen)

    by_host = balance == "sticky"
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Restarted(program, port)) for port in ports]
        run_once(main)


class Restarted:
    """A microsocks on one port that is killed and started again."""

    def __init__(self, program: str, port: int) -> None:
        self.command = [program, "-i", "127.0.0.1", "-p", str(port)]
        self.address = parse_address(f"127.0.0.1:{port}")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self.command, env=environment(), stdout=quiet, stderr=quiet)
        wait_for(lambda: not refuses(self.address), "microsocks to listen")

    def stop(self) -> None:
        """Kill it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def __enter__(self) -> Restarted:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
