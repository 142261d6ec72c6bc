"""Egresses of a whole server: through proxies, chains and pools, by the user's name, and what cannot go there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

import tabi
from authorities import authority, write_server
from conftest import Run
from datagrams import association, destination, unwrap
from doubles import LOOPBACK, FakeResolver, hear_ends
from egresses import Recorder
from processes import failure, listening, receive_exactly, run_tabi, serve
from sshd import ssh_server
from support import client, closed_port, request, target
from tabi import Login, Server, Session
from tabi.client import Proxy
from tabi.config import Config, Listen, Log, load_config, make_config
from tabi.config.check import check_values
from tabi.egress.base import CONNECTIONS_ALONE, NOBODY_LISTENS
from tabi.errors import AuthError, ConfigError, ProxyError
from tabi.net.dial import Dialer, StillDialer
from tabi.net.reactor import get_reactor
from tabi.net.tls import TlsShared
from tabi.policy.guard import allow_any_address
from tabi.server.egresses import Egresses
from tabi.wire.address import UNSPECIFIED, Address


class Recorded:
    """A server and the sessions that ended at it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        hear_ends(server, self.ended.put_nowait)

    @property
    def url(self) -> str:
        """Its first listener's."""
        return self.server.url


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[Recorded]:
    """Run one."""
    async with server:
        yield Recorded(server)


def front(resolver: FakeResolver | None = None, **parts: Any) -> Server:
    """The server that has ways out; everything goes by the one that is called ``out``."""
    rules = {"rule": [{"action": "allow", "via": "out"}], **parts}
    config = make_config({"log": {"access": "none"}, "listen": [{"url": "mixed://127.0.0.1:0"}], **rules})
    return Server(config=config, resolver=resolver)


async def echoed(url: str, port: int, host: str = "127.0.0.1") -> bytes:
    """What comes back through a proxy."""
    async with Proxy(url).connect(host, port) as stream:
        await stream.send_all(b"through")
        return await stream.receive()


def test_a_chain_of_three_of_all_kinds(run: Run, tmp_path: Path) -> None:
    """SOCKS5 inside TLS, SOCKS4 and HTTP one behind the other; the last one sees the destination, the log the first."""
    tls = write_server(tmp_path)
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca)

    async def main() -> None:
        first = Server(config=Config(listen=[Listen("socks5+tls://127.0.0.1:0", tls=tls)], log=Log("none")))
        async with (
            target() as port,
            running(first) as one,
            running(Server("socks4://127.0.0.1:0")) as two,
            running(Server("http://127.0.0.1:0", users={"alice": "secret"})) as three,
        ):
            chain = [one.server.urls[0].replace("127.0.0.1", "localhost"), two.server.urls[0], three.url]
            resolver = FakeResolver({"localhost": ["127.0.0.1"]})
            async with running(front(resolver, egress={"out": {"chain": chain, "ca": str(ca)}})) as proxy:
                for _ in range(2):
                    assert await echoed(proxy.url, port) == b"through"
                mine, last = await proxy.ended.get(), await three.ended.get()
                assert (mine.via, mine.member, mine.address) == ("out", None, one.server.addresses[0])
                assert (last.user, str(last.destination)) == ("alice", f"127.0.0.1:{port}")
                assert mine.up == mine.down == 7

    run(main)


def test_names_are_the_other_proxys_unless_they_are_resolved_here(run_once: Run) -> None:
    """``there``: it gets the name. ``here``: it gets the address, which the guard has seen."""

    async def main() -> None:
        async with target() as port, running(Server("socks5://127.0.0.1:0", resolver=FakeResolver())) as up:
            up.server.parts.dialer.resolver = FakeResolver({"there.test": ["127.0.0.1"]})
            async with running(front(FakeResolver(), egress={"out": {"url": up.url}})) as proxy:
                assert await echoed(proxy.url, port, "there.test") == b"through"
                assert (await up.ended.get()).destination == ("there.test", port)
            names = FakeResolver({"here.test": ["127.0.0.1"]})
            guard: dict[str, list[str]] = {"exempt": []}
            async with running(front(names, egress={"out": {"url": up.url, "resolve": "here"}})) as proxy:
                assert await echoed(proxy.url, port, "here.test") == b"through"
                assert str((await up.ended.get()).destination) == f"127.0.0.1:{port}"
            async with running(front(names, guard=guard, egress={"out": {"url": up.url, "resolve": "here"}})) as proxy:
                with pytest.raises(ProxyError, match="reply 02"):
                    await echoed(proxy.url, port, "here.test")

    run_once(main)


def test_a_pool_goes_on_without_a_member_that_is_dead(run: Run) -> None:
    """Every request is answered, and the log says by whom; where nobody is left it says what each has said."""

    async def main() -> None:
        async with target() as port, running(Server("socks5://127.0.0.1:0")) as up:
            with closed_port() as dead:
                members = [f"socks5://127.0.0.1:{dead}", up.url]
                async with running(front(egress={"out": {"members": members}})) as proxy:
                    for _ in range(6):
                        assert await echoed(proxy.url, port) == b"through"
                        assert (await proxy.ended.get()).member == up.url
                    await up.server.close()
                    with pytest.raises(ProxyError, match="reply 01"):
                        await echoed(proxy.url, port)
                    error = (await proxy.ended.get()).error
                    assert error is not None
                    assert error.startswith("pool out: none of 2 members answers: ")

    run(main)


def test_an_ssh_server_is_a_way_out_until_the_server_stops(run: Run, tmp_path: Path) -> None:
    """One connection for all sessions; those that run at the end are cut as others are, and none of it stays, after a
    reload neither."""

    async def main() -> None:
        async with target() as port, ssh_server(tmp_path) as ssh:
            parts = {"url": f"ssh://alice:hunter2@127.0.0.1:{ssh.port}", "ssh": {"known_hosts": ssh.keys.known_hosts}}
            async with running(front(egress={"out": parts})) as proxy:
                for host in ("127.0.0.1", "localhost"):
                    assert await echoed(proxy.url, port, host) == b"through"
                    mine = await proxy.ended.get()
                    assert (mine.via, mine.address, mine.close) == (
                        "out",
                        Address(mine.client.host, ssh.port),
                        "client",
                    )
                old = await Proxy(proxy.url).connect("localhost", port)
                proxy.server.reload(msgspec.structs.replace(proxy.server.config))
                new = await Proxy(proxy.url).connect("localhost", port)
                assert len(ssh.connections) == 2
                assert len(proxy.server.parts.all_egresses) == 2
                assert (
                    proxy.server.parts.room() == proxy.server.parts.capacity - 4
                )  # two sessions, and a descriptor more for each
                await proxy.server.close()
                assert [(await proxy.ended.get()).close for _ in range(2)] == ["shutdown", "shutdown"]
                for stream in (old, new):
                    stream.close()
                async with asyncio.timeout(10):
                    for conn in ssh.connections:
                        await conn.wait_closed()

    run(main)


def test_after_a_reload_an_unused_connection_ends(run_once: Run, tmp_path: Path) -> None:
    """At once, and the ways that it belonged to are forgotten with the next reload."""

    async def main() -> None:
        async with target() as port, ssh_server(tmp_path) as ssh:
            parts = {"url": f"ssh://alice:hunter2@127.0.0.1:{ssh.port}", "ssh": {"known_hosts": ssh.keys.known_hosts}}
            async with running(front(egress={"out": parts})) as proxy:
                assert await echoed(proxy.url, port) == b"through"
                await proxy.ended.get()
                for _ in range(2):
                    proxy.server.reload(msgspec.structs.replace(proxy.server.config))
                    async with asyncio.timeout(10):
                        await ssh.connections[0].wait_closed()
                assert len(proxy.server.parts.all_egresses) == 1
                assert await echoed(proxy.url, port) == b"through"

    run_once(main)


def test_the_user_name_chooses_the_member(run: Run) -> None:
    """A label, a session that keeps its member, a password that is the user's; what is no parameter is refused."""

    async def main() -> None:
        ups = [Server("socks5://127.0.0.1:0") for _ in range(3)]
        async with target() as port, contextlib.AsyncExitStack() as stack:
            found = [await stack.enter_async_context(running(up)) for up in ups]
            labels = [["de", "berlin"], ["de"], ["fr"]]
            members = [{"to": up.url, "labels": label} for up, label in zip(found, labels, strict=True)]
            parts: dict[str, Any] = {
                "users": {"alice": {"password": "secret", "plain": True}},
                "users_grammar": {"keys": {"country": "label", "city": "label", "session": "session", "ttl": "ttl"}},
                "egress": {"out": {"members": members, "balance": "sticky", "sticky": {"by": "session"}}},
            }
            async with running(front(**parts)) as proxy:

                async def member(user: str) -> str | None:
                    await echoed(proxy.url.replace("://", f"://{user}:secret@"), port)
                    session = await proxy.ended.get()
                    assert session.user == "alice"
                    return session.member

                assert {await member("alice-country-fr") for _ in range(3)} == {found[2].url}
                assert await member("alice-country-de-city-berlin") == found[0].url
                kept = {await member("alice-session-7f3a-ttl-10m") for _ in range(5)}
                assert len(kept) == 1
                for user, error in (
                    ("alice-country-de-color-red", "user name: unknown key 'color'"),
                    ("bob-country-de", "wrong user name or password"),
                ):
                    with pytest.raises(AuthError):
                        await member(user)
                    session = await proxy.ended.get()
                    assert session.error is not None
                    assert session.error.startswith(error)
                with pytest.raises(ProxyError, match="reply 01"):
                    await member("alice-country-it")
                error_text = (await proxy.ended.get()).error
                assert error_text == "pool out: no member has what the user name asks for"

    run(main)


def test_users_are_kept_apart_by_credentials_of_their_own(run_once: Run) -> None:
    """Each user has another name at the proxy, always the same, and it does not tell whose it is."""

    async def main() -> None:
        seen: list[str] = []

        async def authenticate(login: Login) -> str | None:
            seen.append(login.username)
            return login.username

        users = {name: {"password": "x", "plain": True} for name in ("alice", "bob")}
        up = Server("socks5://127.0.0.1:0", authenticate=authenticate)
        async with target() as port, running(up) as tor:
            egress = {"out": {"url": tor.url, "isolate": ["user"]}}
            async with running(front(users=users, egress=egress)) as proxy:
                for name in ("alice", "bob", "alice"):
                    assert await echoed(proxy.url.replace("://", f"://{name}:x@"), port) == b"through"
            assert len(set(seen)) == 2
            assert seen[0] == seen[2]
            assert not {"alice", "bob"} & set(seen)

    run_once(main)


@pytest.mark.parametrize(("command", "port"), [(2, 9), (3, 9)])
def test_what_a_proxy_cannot_carry_is_refused_and_goes_nowhere(run_once: Run, command: int, port: int) -> None:
    """BIND and associations by a proxy: 07, rather than out of this machine directly."""

    async def main() -> None:
        async with running(front(egress={"out": {"url": "http://127.0.0.1:9"}})) as proxy:
            async with client(proxy.server.addresses[0]) as (reader, writer):
                writer.write(b"\x05\x01\x00" + request("127.0.0.1", port, command))
                assert (await reader.readexactly(12))[3] == 7
            session = await proxy.ended.get()
            text = f"127.0.0.1:9 is not a SOCKS5 proxy: {CONNECTIONS_ALONE}"
            assert (session.error, session.via) == (text, "out")

    run_once(main)


def test_block_leads_nowhere(run_once: Run) -> None:
    """A way out that is none, for pools and for rules."""

    async def main() -> None:
        async with running(front(rule=[{"action": "allow", "via": "block"}])) as proxy:
            with pytest.raises(ProxyError, match="reply 02"):
                await echoed(proxy.url, 9)
            assert (await proxy.ended.get()).error == "egress block: 127.0.0.1:9"

    run_once(main)


def test_a_chain_that_is_only_another_name_takes_none_away(run_once: Run) -> None:
    """Each keeps its own, in the log and in errors; the pool that both stand for is one."""
    egress = {
        "out": {"chain": ["direct"]},
        "again": {"chain": ["pool"]},
        "pool": {"members": ["socks5://127.0.0.1:1"]},
    }

    async def main() -> None:
        async with target() as port, target() as other, target() as third:
            ways = [("out", [port]), ("again", [other])]
            rule = [{"action": "allow", "via": via, "ports": ports} for via, ports in ways]
            async with running(front(rule=rule, egress=egress)) as proxy:
                for number, via in ((port, "out"), (third, "direct")):
                    await echoed(proxy.url, number)
                    assert (await proxy.ended.get()).via == via
                with pytest.raises(ProxyError):
                    await echoed(proxy.url, other)
                session = await proxy.ended.get()
                assert session.via == "again"
                assert str(session.error).startswith("pool again: none of 1 members answers")
                ways_out = proxy.server.parts.egresses.by_name
                assert ways_out["pool"].name == "pool"
                assert ways_out["pool"].pool is ways_out["again"].pool  # type: ignore[attr-defined]

    run_once(main)


def test_serve_via(tmp_path: Path) -> None:
    """`tabi serve --via A --via B` is a chain, in that order."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        serve(tmp_path / "a") as one,
        serve(tmp_path / "b") as two,
        listening() as (listener, port),
        serve(tmp_path, "--via", one.url, "--via", two.url) as proxy,
    ):
        with socket.create_connection((str(proxy.address.host), proxy.address.port)) as sock:
            sock.sendall(b"\x05\x01\x00" + request("127.0.0.1", port))
            assert receive_exactly(sock, 4) == b"\x05\x00\x05\x00"
            listener.accept()[0].close()
        (line,) = proxy.sessions(1)
        assert (line["via"], line["rule"], line["address"]) == ("via", "--via", str(one.address))
        assert two.sessions(1)[0]["port"] == port


def test_via_says_what_is_wrong_with_it() -> None:
    """One line, which names the option and no password."""
    line = failure(run_tabi("serve", "--via", "ftp://alice:hunter2@127.0.0.1"), 2)
    assert line.startswith("tabi: --via: protocol 'ftp', expected socks5://")
    assert "hunter2" not in line


def test_no_password_of_a_proxy_is_printed(tmp_path: Path) -> None:
    """`tabi check` and `tabi explain` know them, and do not tell."""
    path = tmp_path / "tabi.toml"
    path.write_text(
        "[egress.a]\nurl = 'socks5://u:hunter2@127.0.0.4'\n[egress.b]\nchain = ['http://u:hunter2@127.0.0.5']\n"
        "[egress.c]\nmembers = ['socks5://u:hunter2@127.0.0.2', { to = 'http://u:hunter2@127.0.0.3' }]\n"
        "[[rule]]\naction = 'allow'\nvia = 'c'\n"
    )
    for arguments in (["check", path], ["check", "--json", path], ["explain", "-c", path, "connect", "8.8.8.8:1"]):
        done = run_tabi(*map(str, arguments))
        assert done.returncode == 0, done.stderr
        assert b"hunter2" not in done.stdout + done.stderr
    assert b"egress    c: round-robin of socks5://127.0.0.2:1080, http://127.0.0.3:3128\n" in done.stdout


async def get(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], user: str, port: int) -> int:
    """The status of a request of HTTP on a connection that is kept; its content is taken."""
    reader, writer = streams
    place, login = f"127.0.0.1:{port}", base64.b64encode(f"{user}:secret".encode()).decode()
    head = f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\nProxy-Authorization: Basic {login}\r\n\r\n"
    writer.write(head.encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    size = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    await reader.readexactly(size)
    return int(answer.split()[1])


def test_a_kept_connection_is_for_those_who_opened_it(run_once: Run) -> None:
    """Requests of HTTP whose user name asks for another member get that one, though the client's connection stays."""

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def main() -> None:
        ups = [Server("socks5://127.0.0.1:0") for _ in range(2)]
        async with target(web) as port, contextlib.AsyncExitStack() as stack:
            found = [await stack.enter_async_context(running(up)) for up in ups]
            members = [{"to": up.url, "labels": [label]} for up, label in zip(found, ("de", "fr"), strict=True)]
            parts: dict[str, Any] = {
                "users": {"alice": {"password": "secret", "plain": True}},
                "users_grammar": {"keys": {"country": "label"}},
                "egress": {"out": {"members": members}},
            }
            async with running(front(**parts)) as proxy, client(proxy.server.addresses[0]) as streams:
                for country, status in (("de", 200), ("de", 200), ("fr", 200), ("it", 502)):
                    assert await get(streams, f"alice-country-{country}", port) == status
                lines = [await proxy.ended.get() for _ in range(4)]
                assert [line.member for line in lines[:3]] == [found[0].url, found[0].url, found[1].url]

    run_once(main)


def test_what_leads_to_a_proxy_is_chosen_for_the_session(run_once: Run) -> None:
    """A pool in front of a proxy knows whose session it is, and what the user name asks for. The log has the member."""

    async def main() -> None:
        users = {"alice": {"password": "x", "plain": True}}
        keys = {"keys": {"country": "label"}}
        async with (
            target() as port,
            running(Server("socks5://127.0.0.1:0")) as de,
            running(Server("socks5://127.0.0.1:0")) as fr,
            running(Server("socks5://127.0.0.1:0", resolver=FakeResolver({"there.test": ["127.0.0.1"]}))) as last,
        ):
            members = [{"to": de.url, "labels": ["de"]}, {"to": fr.url, "labels": ["fr"]}]
            egress = {"pool": {"members": members}, "out": {"chain": ["pool", last.url]}}
            rules = [{"hosts": ["192.0.2.0/24"], "action": "deny"}, {"action": "allow", "via": "out"}]
            names = FakeResolver({"there.test": ["127.0.0.1"]})
            async with running(front(names, users=users, users_grammar=keys, egress=egress, rule=rules)) as proxy:
                for country, member in (("de", de), ("fr", fr), ("de", de)):
                    url = proxy.url.replace("://", f"://alice-country-{country}:x@")
                    assert await echoed(url, port, "there.test") == b"through"
                    assert (await proxy.ended.get()).member == member.url
                    # The rule had the name resolved: the last proxy is asked for the address, the pool for that proxy.
                    assert str((await last.ended.get()).destination) == f"127.0.0.1:{port}"
                    assert (await member.ended.get()).destination == last.server.addresses[0]

    run_once(main)


@pytest.mark.parametrize("version", [1, 2])
def test_the_first_proxy_learns_who_the_client_is(run: Run, version: int, tmp_path: Path) -> None:
    """By a PROXY header in front of everything, TLS too. Datagrams come from this machine: the control connection of an
    association says no more."""
    tls, ca = write_server(tmp_path), tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca)
    listen = Listen("socks5+tls://127.0.0.1:0", proxy_protocol=["127.0.0.1"], tls=tls)

    async def main() -> None:
        first = Server(config=Config(listen=[listen], log=Log("none")), open=True)
        async with target() as port, running(first) as one, running(Server("socks5://127.0.0.1:0")) as two:
            chain = [one.server.urls[0].replace("127.0.0.1", "localhost"), two.server.urls[0]]
            parts = {"chain": chain, "ca": str(ca), "send_proxy_protocol": version}
            resolver = FakeResolver({"localhost": ["127.0.0.1"]})
            async with running(front(resolver, egress={"out": parts})) as proxy:
                assert await echoed(proxy.url, port) == b"through"
                mine, theirs = await proxy.ended.get(), await one.ended.get()
                assert theirs.client == mine.client
                async with association(proxy.server.addresses[0]) as client:
                    with destination() as echo:
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                mine = await proxy.ended.get()
                ended = [await one.ended.get() for _ in range(2)]
                named = {theirs.command: theirs.client == mine.client for theirs in ended}
                assert named == {"associate": False, "connect": True}  # the latter is the way to the second proxy

    run(main)


def test_authorities_that_cannot_be_read_are_found_before_anything_starts(tmp_path: Path) -> None:
    """For a chain and for a pool, by whoever makes a server: check, start and reload."""
    path = tmp_path / "none.pem"
    for parts in ({"url": "https://127.0.0.1:1"}, {"members": ["socks5+tls://127.0.0.1:1", "direct"]}):
        with pytest.raises(ConfigError, match=rf"^egress\.out\.ca: {path}: No such file"):
            front(egress={"out": {**parts, "ca": str(path)}})
    good = front(egress={"out": {"url": "https://127.0.0.1:1"}})
    with pytest.raises(ConfigError, match=r"^egress\.out\.ca: "):
        good.reload(make_config({"egress": {"out": {"url": "https://127.0.0.1:1", "ca": str(path)}}}))


def test_the_log_has_the_rule_of_an_association(run_once: Run) -> None:
    """Where it decides whatever the destination; else each datagram has its own."""

    async def main() -> None:
        for matcher, rule in (({}, "out-of-here"), ({"ports": [1]}, None)):
            rules = [{"name": "out-of-here", "action": "allow", "via": "out", **matcher}]
            async with running(front(egress={"out": {"source": ["127.0.0.5"]}}, rule=rules)) as proxy:
                async with association(proxy.server.addresses[0]):
                    pass
                assert (await proxy.ended.get()).rule == rule

    run_once(main)


def test_bind_does_not_go_by_a_pool_that_leads_straight(run_once: Run) -> None:
    """It is refused with the reason; by such a way itself it listens there."""

    async def main() -> None:
        egress = {"here": {"source": ["127.0.0.5"]}, "out": {"members": ["here", "direct"]}}
        async with running(front(egress=egress)) as proxy:
            async with client(proxy.server.addresses[0]) as (reader, writer):
                writer.write(b"\x05\x01\x00" + request("127.0.0.1", 9, 2))
                assert (await reader.readexactly(12))[3] == 7
            error = (await proxy.ended.get()).error
            assert error == f"pool out: no member that answers can do that: egress direct: {NOBODY_LISTENS}"

    run_once(main)


# --- egresses of a program ---


class Counting(tabi.Egress):
    """Goes through a proxy, and counts."""

    def __init__(self, url: str) -> None:
        self.proxy = Proxy(url)
        self.opened: list[str] = []

    async def open(self, destination: Address, address_filter: Any, session: Session | None = None) -> tabi.Stream:
        self.opened.append(str(destination))
        return await self.proxy.connect(*destination)


@contextlib.asynccontextmanager
async def composed(given: dict[str, Any], **egress: Any) -> AsyncIterator[Egresses]:
    """The egresses of a configuration, and those of a program."""
    config = make_config({"egress": egress}, egresses=given)
    dialer = Dialer(get_reactor(), FakeResolver(), 10)
    try:
        yield Egresses(config, dialer, TlsShared(), given)
    finally:
        await dialer.close()


def test_an_egress_of_a_program_is_one_like_others(run_once: Run) -> None:
    """By its own name, as what a chain begins with, and as a member of a pool."""

    async def main() -> None:
        async with target() as port, running(Server("socks5://127.0.0.1:0")) as one, running(front(rule=[])) as two:
            mine = Counting(one.url)
            parts = {"far": {"chain": ["mine", two.url]}, "pool": {"members": ["mine"]}, "alias": {"chain": ["mine"]}}
            async with composed({"mine": mine}, **parts) as egresses:
                session = Session(1, "", Address("client", 0), 0.0)
                for name in ("mine", "far", "pool", "alias"):
                    egress = egresses.by_name[name]
                    assert egress.name == name
                    async with await egress.open(Address("127.0.0.1", port), allow_any_address, session) as stream:
                        await stream.send_all(b"through")
                        assert await stream.receive() == b"through"
                session.over()
                assert mine.opened == [there := f"127.0.0.1:{port}", str(two.server.addresses[0]), there, there]
                through = f"through mine, then socks5://{two.server.addresses[0]}"
                assert egresses.by_name["far"].describe() == f"far: {through}"
                assert session.member == "mine"

    run_once(main)


@pytest.mark.parametrize("name", ["direct", "block", "tor"])
def test_two_egresses_of_one_name(name: str) -> None:
    """Nobody has to guess which of them a rule means."""
    config = make_config({"egress": {"tor": {"url": "socks5://127.0.0.1:9050"}}})
    with pytest.raises(ConfigError, match=rf"^egresses\.{name}: the configuration has an egress of this name"):
        check_values(config, egresses=[name])


def test_a_file_may_name_the_egresses_of_a_program(tmp_path: Path) -> None:
    """In rules, chains and pools; and no others: what says that one does not exist is as it was."""
    path = tmp_path / "tabi.toml"
    for text, key in (
        ("[[rule]]\naction = 'allow'\nvia = 'mine'", r"rule\[0\]\.via"),
        ("[egress.a]\nchain = ['mine']", r"egress\.a\.chain\[0\]"),
        ("[egress.a]\nmembers = ['mine']", r"egress\.a\.members\[0\]"),
    ):
        path.write_text(text)
        load_config(path, egresses=["mine"])
        with pytest.raises(ConfigError, match=rf"{key}: there is no \[egress\.mine\]"):
            load_config(path, egresses=["yours"])


def test_egresses_can_be_looked_at_without_a_loop() -> None:
    """To describe them nothing is dialled, and none has to be closed."""
    parts = {
        "out": {"source": ["192.0.2.7", "2001:db8::/64"]},
        "far": {"chain": ["out", "socks5+tls://u:hunter2@127.0.0.1:1", "https://127.0.0.1:2"], "resolve": "here"},
        "tor": {"url": "socks5://127.0.0.1:3", "isolate": ["user"]},
        "pool": {"members": ["tor", *(f"socks5://127.0.0.1:{port}" for port in range(4, 10))], "balance": "random"},
    }
    config = make_config({"egress": parts})
    found = Egresses(config, StillDialer(10), TlsShared()).by_name
    assert [egress.describe() for egress in found.values()] == [
        "direct",
        "block",
        "out: from 192.0.2.7, 2001:db8::/64",
        "far: through out, then socks5+tls://127.0.0.1:1, then https://127.0.0.1:2",
        "tor: through socks5://127.0.0.1:3",
        "pool: random of tor, " + ", ".join(f"socks5://127.0.0.1:{port}" for port in range(4, 8)) + ", … (7)",
    ]


# --- what a reload keeps ---

POOL: dict[str, Any] = {
    "members": ["socks5://u:old@127.0.0.1:1", "socks5://127.0.0.1:2", "tor", "mine"],
    "balance": "sticky",
}


def reloaded(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], str]:
    """Who is still out after a reload of a pool whose members were all out, and where the key of a client leads."""
    mine: Any = Recorder()
    tor = {"url": "socks5://127.0.0.1:9050"}
    first = {"egress": {"tor": tor, "pool": POOL, **before}}
    old = Egresses(make_config(first, egresses=["mine"]), StillDialer(10), TlsShared(), {"mine": mine})
    (pool,) = old.pools
    chosen = pool.pool.choose("key", 0)
    assert chosen is not None
    for member in pool.pool.members:
        for _ in range(3):
            pool.pool.failed(member, 0)
    config = make_config({"egress": {"tor": tor, "pool": POOL, **before, **after}}, egresses=["mine"])
    new = old.reloaded(config).reloaded(config)
    (found,) = new.pools
    assert found.pool is not pool.pool
    assert new.given["mine"] is mine
    key = found.pool.store.get_key((None, "key"), 1)
    return [member.name for member in found.pool.members if member.due is not None], f"{key} for {chosen.name}"


@pytest.mark.parametrize(
    ("before", "after", "out"),
    [
        ({}, {}, "1 2 tor mine"),
        ({}, {"pool": {**POOL, "balance": "random"}}, "1 2 tor mine"),
        ({}, {"pool": {**POOL, "members": ["socks5://u:new@127.0.0.1:1", *POOL["members"][1:]]}}, "2 tor mine"),
        ({}, {"pool": {**POOL, "source": ["127.0.0.9"]}}, "tor mine"),
        ({}, {"tor": {"url": "socks5://127.0.0.1:9051"}}, "1 2 mine"),
        ({"tor": {"chain": ["hop"]}, "hop": {"source": ["127.0.0.7"]}}, {"hop": {}}, "1 2 mine"),
        ({}, {"pool": {**POOL, "members": ["tor"]}}, "tor"),
    ],
    ids=["same", "balance", "password", "source", "named", "below", "fewer"],
)
def test_a_reload_keeps_what_is_known_of_members_that_are_the_same(
    before: dict[str, Any], after: dict[str, Any], out: str
) -> None:
    """Health of each whose own settings, and those of what it leads through, did not change; and every sticky key."""
    found, key = reloaded(before, after)
    assert [name.removeprefix("socks5://127.0.0.1:") for name in found] == out.split()
    assert key == "socks5://127.0.0.1:1 for socks5://127.0.0.1:1"


def test_another_pool_knows_nothing() -> None:
    """One that is new, or was no pool before."""
    old = Egresses(make_config({"egress": {"a": {"url": "socks5://127.0.0.1:1"}}}), StillDialer(10), TlsShared())
    new = old.reloaded(make_config({"egress": {"a": {"members": ["socks5://127.0.0.1:1"]}}}))
    assert [member.due for member in new.pools[0].pool.members] == [None]


def test_a_server_reloads_its_pools(run_once: Run) -> None:
    """A client keeps its member, and one that is out is not asked again because of a reload."""

    async def main() -> None:
        async with target() as port, running(front(rule=[])) as one, running(front(rule=[])) as two:
            members = ["socks5://127.0.0.1:1", one.url, two.url]
            out = {"members": members, "balance": "sticky", "sticky": {"by": "client"}}
            async with running(front(egress={"out": out})) as proxy:
                pool = proxy.server.parts.egresses.pools[0].pool
                pool.store.put_key((None, "127.0.0.1"), two.url, monotonic(), 600)
                for _ in range(3):
                    pool.failed(pool.members[0], monotonic() + 100)
                for _ in range(3):
                    proxy.server.reload(msgspec.structs.replace(proxy.server.config))
                    assert await echoed(proxy.url, port) == b"through"
                    assert (await proxy.ended.get()).member == two.url
                found = proxy.server.parts.egresses.pools[0].pool
                assert found is not pool
                assert [member.due is not None for member in found.members] == [True, False, False]

    run_once(main)


# --- a dial inspector ---


class Redirecting:
    """Sends everything to one place, and names somebody for whom it does."""

    def __init__(self, to: Address) -> None:
        self.to = to
        self.asked: list[tuple[str, str | None]] = []
        self.names: list[str] = []

    async def dial(self, session: Session | None, destination: Address) -> Address:
        self.asked.append((str(destination), None if session is None else session.via))
        return self.to

    async def resolve(self, session: Session | None, name: str) -> None:
        self.names.append(name)
        raise tabi.DialError(f"{name}: away", 3)


def test_an_inspector_stands_in_front_of_every_egress_once(run_once: Run) -> None:
    """Not in front of what a chain leads through; and without one nothing is wrapped. A reload keeps it."""

    async def main() -> None:
        async with target() as port, running(Server("socks5://127.0.0.1:0")) as up:
            parts = {"first": {"url": up.url}, "out": {"chain": ["first"]}, "pool": {"members": ["first"]}}
            async with composed({}, **parts) as plain:
                assert plain.by_name is plain.made
                inspector = Redirecting(Address("127.0.0.1", port))
                inspection = inspector, lambda session, port: allow_any_address
                egresses = Egresses(plain.config, plain.dialer, TlsShared(), inspection=inspection)
                for one in (egresses, egresses.reloaded(plain.config)):
                    for name in ("direct", "first", "out", "pool"):
                        session = Session(1, "", Address("client", 0), 0.0)
                        session.via = name
                        stream = await one.by_name[name].open(Address("192.0.2.7", 9), allow_any_address, session)
                        async with stream:
                            await stream.send_all(b"through")
                            assert await stream.receive() == b"through"
                        session.over()
                        assert inspector.asked.pop() == ("192.0.2.7:9", name)
                assert inspector.asked == []

    run_once(main)


def test_a_question_for_a_name_meets_the_inspector(run_once: Run) -> None:
    """Where the server answers it, and the way out has nothing to do with it otherwise."""

    async def main() -> None:
        config = make_config({"log": {"access": "none"}, "listen": [{"url": LOOPBACK, "resolve_commands": True}]})
        async with running(Server(config=config, resolver=FakeResolver({"a.test": ["192.0.2.7"]}))) as proxy:
            assert str(await Proxy(proxy.url).resolve("a.test")) == "192.0.2.7"
            server = proxy.server
            inspector = Redirecting(UNSPECIFIED)
            inspection = inspector, lambda session, port: allow_any_address
            egresses = Egresses(config, server.parts.dialer, TlsShared(), inspection=inspection)
            server.parts.gate.replace(server.parts.gate.policy, egresses.by_name)
            with pytest.raises(ProxyError, match="reply 03"):
                await Proxy(proxy.url).resolve("a.test")
            assert inspector.names == ["a.test"]

    run_once(main)
