"""Ways out of a whole server: through proxies, chains and pools, by the user's name, and what cannot go there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authorities import authority, write_server
from conftest import Run
from datagrams import association, destination, unwrap
from doubles import FakeResolver, hear_ends
from processes import failure, listening, receive_exactly, run_tabi, serve
from sshd import ssh_server
from support import client, closed_port, request, target
from tabi import Server, Session
from tabi.client import Proxy
from tabi.config import Config, Listen, Log, make_config
from tabi.egress.direct import CONNECTIONS_ALONE, STRAIGHT
from tabi.errors import AuthError, ConfigError, ProxyError
from tabi.wire.address import Address


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
                assert len(proxy.server.parts.all_ways) == 2
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
                assert len(proxy.server.parts.all_ways) == 1
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

        async def authenticate(username: str, password: str, address: str) -> str | None:
            seen.append(username)
            return username

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
            text = f"127.0.0.1:9 is no SOCKS5 proxy: {CONNECTIONS_ALONE}"
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
                ways_out = proxy.server.parts.ways.by_name
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
        "[egress.a]\nurl = 'socks5://u:hunter2@127.0.0.1'\n[egress.b]\nchain = ['http://u:hunter2@127.0.0.1']\n"
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
            assert error == f"pool out: no member that answers can do that: egress direct: {STRAIGHT}"

    run_once(main)
