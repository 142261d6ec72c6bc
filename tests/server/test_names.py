"""`[resolver]` composed: from the configuration to a name's addresses, through servers that fail."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from authorities import write_server
from conftest import Run
from datagrams import association
from doubles import LOOPBACK, Streams, client_from, greet, read_reply
from name_servers import HttpServer, StreamServer, Zone, stream_server, tls_context, udp_server
from support import request, target
from tabi import Proxy, Server
from tabi.config import make_config
from tabi.errors import ConfigError, DialError, ProxyError
from tabi.net import cache
from tabi.net.cache import NameCache
from tabi.net.system import SystemResolver
from tabi.server import names
from tabi.server.compiled import compile_config
from tabi.server.names import prepare_resolver
from tabi.wire.socks5 import Command

TABLE = {"name.test": ["127.0.0.1"]}


def make(**resolver: Any) -> NameCache:
    """What a configuration makes, on the running loop."""
    return prepare_resolver(make_config({"resolver": resolver}))(asyncio.get_running_loop())


def test_the_system_alone_is_asked_as_ever(run_once: Run) -> None:
    """With its own patience, behind the cache."""

    async def main() -> None:
        resolver = make()
        assert isinstance(resolver.source, SystemResolver)
        assert all(address.is_loopback for address in await resolver.resolve("localhost"))
        await resolver.close()

    run_once(main)


@pytest.mark.parametrize("kind", ["udp", "tcp", "tls", "https"])
def test_each_kind_of_server(run_once: Run, kind: str, tmp_path: Path) -> None:
    """With the file of authorities where there is TLS; the second time the answer is known."""
    write_server(tmp_path)

    async def main() -> None:
        zone = Zone(TABLE)
        if kind == "udp":
            server = udp_server(zone)
        elif kind == "https":
            server = stream_server(HttpServer(zone), tls_context("h2", "http/1.1"))
        else:
            server = stream_server(StreamServer(zone), tls_context() if kind == "tls" else None)
        async with server as port:
            extra = {"ca": str(tmp_path / "server-ca.pem")} if kind in ("tls", "https") else {}
            host = "localhost" if extra else "127.0.0.1"
            resolver = make(servers=[f"{kind}://{host}:{port}"], **extra)
            for _ in range(2):
                assert await resolver.resolve("name.test") == [ip_address("127.0.0.1")]
            assert len(zone.asked) == 2
            with pytest.raises(DialError, match=r"^other\.test: domain name not found$"):
                await resolver.resolve("other.test")
            await resolver.close()
            await asyncio.sleep(0)

    run_once(main)


def test_what_does_not_fit_comes_by_tcp(run_once: Run) -> None:
    """A truncated answer by UDP is asked for again at the same port."""

    async def main() -> None:
        by_udp, by_tcp = Zone(TABLE), Zone({"name.test": [f"192.0.2.{number}" for number in range(1, 200)]})
        serve = StreamServer(by_tcp)
        async with stream_server(serve) as port, udp_server(by_udp, port, truncate=True):
            resolver = make(servers=[f"127.0.0.1:{port}"])
            assert len(await resolver.resolve("name.test")) == 199
            await resolver.close()
            for writer in serve.writers:
                writer.close()

    run_once(main)


@pytest.mark.parametrize("lie", ["id", "question", "nonsense"])
def test_a_lie_by_udp_is_not_believed(run_once: Run, lie: Any) -> None:
    """Nor is a server that lies: the next one is asked."""

    async def main() -> None:
        liar, honest = Zone({"name.test": ["192.0.2.66"]}), Zone(TABLE)
        liar.lie = lie
        async with udp_server(liar) as first, udp_server(honest) as second:
            resolver = make(servers=[f"127.0.0.1:{first}", f"127.0.0.1:{second}"], timeout=0.3)
            assert await resolver.resolve("name.test") == [ip_address("127.0.0.1")]
            await resolver.close()

    run_once(main)


def test_a_server_that_is_silent_gives_way_and_delays_nobody_else(run_once: Run) -> None:
    """Who asks for a known name or an address does not wait at all, who asks next goes past the silent one."""

    async def main() -> None:
        dead, alive = Zone(), Zone({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
        dead.answering.clear()
        async with udp_server(dead) as first, stream_server(StreamServer(alive)) as second, target() as port:
            servers = [f"127.0.0.1:{first}", f"tcp://127.0.0.1:{second}"]
            hosts = {"known.test": ["127.0.0.1"]}
            config = make_config(
                {
                    "listen": [{"url": LOOPBACK}],
                    "log": {"access": "none"},
                    "resolver": {"servers": servers, "timeout": 0.3, "hosts": hosts},
                }
            )
            async with Server(config=config) as server:
                asking = asyncio.get_running_loop().create_task(connect(server.url, "a.test", port))
                for host in ("127.0.0.1", "known.test"):
                    await connect(server.url, host, port)
                assert not asking.done()
                await asking
                asked = len(dead.asked)
                await connect(server.url, "b.test", port)
                assert len(dead.asked) == asked
                with pytest.raises(ProxyError, match="04"):
                    await connect(server.url, "c.test", port)

    async def connect(url: str, host: str, port: int) -> None:
        async with Proxy(url).connect(host, port) as stream:
            await stream.send_all(b"x")
            assert await stream.receive() == b"x"

    run_once(main)


def test_a_dot_at_the_end_makes_another_name_of_the_system_only(run_once: Run) -> None:
    """Which has search domains for names without it; hosts of the configuration are the same in any case."""

    async def main() -> None:
        zone = Zone(TABLE)
        async with udp_server(zone) as port:
            resolver = make(servers=[f"127.0.0.1:{port}"], hosts={"db.internal.": ["127.0.0.2"]})
            for name in ("name.test.", "Name.Test", "name.test"):
                assert await resolver.resolve(name) == [ip_address("127.0.0.1")]
            assert len(zone.asked) == 2
            assert resolver.lookup("DB.internal") == resolver.lookup("db.internal.") == (ip_address("127.0.0.2"),)
            await resolver.close()
        for servers in (["system"], ["127.0.0.1:1", "system"]):
            resolver = make(servers=servers)
            assert not resolver.names_alone
            await resolver.close()

    run_once(main)


def test_timeout_and_tries_hold_for_the_servers_of_the_system(run_once: Run) -> None:
    """No key of the configuration is ignored."""

    async def main() -> None:
        resolver = make(timeout=0.5, tries=7)
        assert isinstance(resolver.source, SystemResolver)
        assert (resolver.source.timeout, resolver.source.tries) == (0.5, 7)
        await resolver.close()

    run_once(main)


def test_without_dnspython_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and only where a server needs it."""
    monkeypatch.delitem(sys.modules, "tabi.net.dns_client", raising=False)
    monkeypatch.setitem(sys.modules, "dns", None)
    prepare_resolver(make_config({"resolver": {"servers": ["system", "1.1.1.1"]}}))
    config = make_config({"resolver": {"servers": ["1.1.1.1", "tls://dns.example"]}})
    message = r"^resolver\.servers: tls://dns\.example needs dns: pip install 'tabi\[dns\]'$"
    with pytest.raises(ConfigError, match=message):
        Server(config=config)


def test_authorities_that_cannot_be_used(tmp_path: Path) -> None:
    """A file that is not there, and one that is none: at the start."""
    for text, message in ((None, "No such file or directory"), ("nothing", "")):
        path = tmp_path / "ca.pem"
        if text is not None:
            path.write_text(text)
        config = make_config({"resolver": {"servers": ["tls://dns.example"], "ca": str(path)}})
        with pytest.raises(ConfigError, match=rf"^resolver\.ca: {path}: .*{message}"):
            prepare_resolver(config)


def test_dnspython_is_not_loaded_where_nobody_needs_it(run_once: Run) -> None:
    """It takes its time and its memory."""

    async def main() -> bytes:
        program = "import sys, tabi; tabi.Server(); print('dns' in sys.modules, 'httpx2' in sys.modules)"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0]

    assert run_once(main) == b"False False\n"


def test_names_that_never_answer_hold_up_nobody(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for as many as it likes takes no place from another client."""
    monkeypatch.setattr(cache, "LOOKUPS", 8)

    async def main() -> None:
        zone = Zone({"good.test": ["93.184.216.4"], "better.test": ["93.184.216.5"]})
        honest, silent = zone.reply, set[bytes]()

        async def reply(octets: bytes) -> bytes:
            if b"silent" in octets:
                silent.add(octets[12:])
                await asyncio.Event().wait()
            return await honest(octets)

        zone.reply = reply  # type: ignore[method-assign]
        async with udp_server(zone) as port, contextlib.AsyncExitStack() as stack:
            config = make_config(
                {
                    "listen": [{"url": LOOPBACK, "resolve_commands": True}],
                    "log": {"access": "none"},
                    "resolver": {"servers": [f"127.0.0.1:{port}"]},
                }
            )
            server = await stack.enter_async_context(Server(config=config))

            async def ask(host: str, name: str) -> Streams:
                streams = await stack.enter_async_context(client_from(server, host))
                await greet(streams)
                streams[1].write(request(name, 0, Command.RESOLVE))
                return streams

            for number in range(20):
                await ask("203.0.113.9", f"silent{number}.test")
            for name in ("good.test", "better.test"):
                reader, _ = await ask("203.0.113.10", name)
                assert (await read_reply(reader))[0] == 0
            assert len(silent) == 4 * 2

    run_once(main)


def advertising(name: str) -> dict[str, object]:
    """A listener that advertises a name."""
    return {"listen": [{"url": "socks5://127.0.0.1:0", "udp": {"advertise": name}}], "log": {"access": "none"}}


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the system have these addresses for any name, or none."""

    def getaddrinfo(name: str, *_: object, **__: object) -> list[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_an_advertised_name_is_resolved_at_the_start_and_at_a_reload(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client is told the address of its own family, and its own where the name has none."""

    async def main() -> None:
        config = make_config(advertising("proxy.example"))
        with monkeypatch.context() as patch:
            answering(patch, "2001:db8::5", "198.51.100.7", "198.51.100.7")
            server = Server(config=config)
        async with server:
            async with association(server.addresses[0]) as one:
                assert str(one.relay.host) == "198.51.100.7"
            with monkeypatch.context() as patch:
                answering(patch, "198.51.100.8")
                server.reload(config)
            async with association(server.addresses[0]) as one:
                assert str(one.relay.host) == "198.51.100.8"
            with monkeypatch.context() as patch:
                answering(patch, "2001:db8::5")
                server.reload(config)
            async with association(server.addresses[0]) as one:
                assert str(one.relay.host) == "127.0.0.1"

    run(main)


@pytest.mark.parametrize(
    ("addresses", "error"),
    [((), "proxy.example: Name or service not known"), (("0.0.0.0",), "proxy.example: '0.0.0.0', expected an IP")],
)
def test_a_name_that_cannot_be_advertised(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], error: str
) -> None:
    """The start says which key it is, and why."""
    answering(monkeypatch, *addresses)
    with pytest.raises(ConfigError, match=rf"^listen\[0\].udp.advertise: {re.escape(error)}"):
        compile_config(make_config(advertising("proxy.example")))


def test_a_name_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start does not wait for ever."""
    asked = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asked.wait(30) and [])
    monkeypatch.setattr(names, "ADVERTISED_SECONDS", 0.01)
    with pytest.raises(ConfigError, match=r"advertise: proxy\.example: not resolved within 0\.01 s"):
        compile_config(make_config(advertising("proxy.example")))
    asked.set()
    for thread in threading.enumerate():
        if thread.name == "tabi-advertise":
            thread.join()
