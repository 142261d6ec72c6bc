"""From URLs of proxies to egresses: contexts for TLS, a class for each protocol, and connections that a chain keeps."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authorities import client_certificate, client_context, write_leaf, write_server
from conftest import Run
from doubles import config
from egresses import Recorder, talk
from sshd import ssh_server
from support import target
from tabi import Server, Session
from tabi.config import Config, Listen
from tabi.egress.base import Egress
from tabi.egress.chain import close_links, find_links, make_chain, make_context, make_upstream, retire_links
from tabi.egress.direct import Direct
from tabi.egress.http_connect import HttpConnect
from tabi.egress.socks4 import Socks4
from tabi.egress.socks5 import Socks5
from tabi.egress.ssh import Ssh
from tabi.egress.upstream import Upstream
from tabi.errors import AuthError, ProxyError, RemoteProtocolError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.resolve import ThreadResolver
from tabi.net.timeouts import FixedTimeouts
from tabi.net.tls import get_tls_shared
from tabi.policy.guard import allow_any_address
from tabi.url import parse_url
from tabi.wire.address import Address


def with_authorities(folder: Path) -> tuple[Config, str]:
    """A server whose clients must have a certificate, and its authority's file."""
    ca = str(folder / "server-ca.pem")
    tls = msgspec.structs.replace(write_server(folder), client_ca=ca)
    return config(Listen("https://127.0.0.1:0", tls=tls, users="required")), ca


def test_a_proxy_that_wants_a_certificate(run_once: Run, tmp_path: Path) -> None:
    """By files, or in a context that is ready; without one it refuses."""
    setting, ca = with_authorities(tmp_path)
    leaf = client_certificate("alice")
    sessions: list[Session] = []

    async def main() -> None:
        async with target() as port, Server(config=setting, on_close=sessions.append) as server:
            url = parse_url(server.urls[0].replace("127.0.0.1", "localhost"))
            files = make_context(url, ca, certificate=write_leaf(tmp_path, leaf))
            ready = make_context(url, ready=client_context(certificate=leaf))
            dialer = Dialer(get_reactor(), ThreadResolver(), 10)
            for context in (files, ready):
                egress = make_chain([url], [context], Direct(dialer), dialer.deadlines, get_tls_shared())
                await talk(await egress.open(Address("localhost", port), allow_any_address))
            egress = make_chain([url], [make_context(url, ca)], Direct(dialer), dialer.deadlines, get_tls_shared())
            with pytest.raises((ProxyError, RemoteProtocolError)):
                await egress.open(Address("localhost", port), allow_any_address)
            await dialer.close()
            await server.drain()

    run_once(main)
    assert [session.user for session in sessions if session.destination] == ["alice", "alice"]


def test_a_context_that_is_ready_is_not_changed() -> None:
    """It is the caller's: the same object, for a proxy inside TLS alone."""
    ready = ssl.create_default_context()
    assert make_context(parse_url("https://127.0.0.1:1"), ready=ready) is ready
    assert make_context(parse_url("http://127.0.0.1:1"), ready=ready) is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ready": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "a context for servers, expected one for clients"),
        ({"ready": ssl.create_default_context(), "ca": "ca.pem"}, "a context and files beside it"),
        ({"ready": ssl.create_default_context(), "certificate": ("c.pem", "c.key")}, "a context and files beside it"),
        ({"certificate": ("nowhere.pem", "nowhere.key")}, r"nowhere\.key: No such file"),
        ({"certificate": (__file__, __file__)}, r"test_chain\.py: no "),
    ],
    ids=["server", "ca", "both", "missing", "rubbish"],
)
def test_what_is_no_context_for_a_proxy(options: Any, why: str) -> None:
    """It is told before anything is dialled."""
    with pytest.raises(ValueError, match=why):
        make_context(parse_url("https://127.0.0.1:1"), **options)


def test_the_system_s_authorities_never_get_a_certificate(tmp_path: Path) -> None:
    """That context is shared by all proxies."""
    leaf = client_certificate("alice")
    url = parse_url("https://127.0.0.1:1")
    assert make_context(url, certificate=write_leaf(tmp_path, leaf)) is not make_context(url)
    assert make_context(url) is make_context(url)


# --- from URLs to egresses ---


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("socks5://alice:secret@192.0.2.1:1080", Socks5),
        ("socks5+tls://192.0.2.1:1080", Socks5),
        ("socks4://alice@192.0.2.1:1080", Socks4),
        ("http://alice:secret@192.0.2.1:8080", HttpConnect),
        ("https://192.0.2.1:8080", HttpConnect),
        ("ssh://alice@192.0.2.1", Ssh),
    ],
)
def test_each_protocol_has_its_class(run_once: Run, url: str, kind: type[Upstream]) -> None:
    """The egress reaches the proxy of the URL through the one below, in the time that it is given."""

    async def main() -> None:
        below, parsed = Recorder(), parse_url(url)
        deadlines = FixedTimeouts(asyncio.get_running_loop(), 1)
        made = make_upstream(parsed, below, deadlines)
        assert (type(made), made.below, made.proxy) == (kind, below, parsed.address)
        assert made.seconds == 1
        deadlines.close()

    run_once(main)


def test_who_a_url_says_that_we_are(run_once: Run) -> None:
    """Its user name and password are those that the proxy is told; a proxy that wants them refuses who has none."""
    users: list[str | None] = []

    async def main() -> None:
        dialer = Dialer(get_reactor(), ThreadResolver(), 10)
        below, deadlines = Direct(dialer), dialer.deadlines
        mixed = Server(
            "mixed://127.0.0.1:0",
            users={"alice": "s@cret"},
            on_close=lambda session: users.append(session.user),
        )
        async with target() as port, mixed as server:
            for scheme in ("socks5", "http"):
                made = make_upstream(parse_url(f"{scheme}://alice:s%40cret@{server.addresses[0]}"), below, deadlines)
                await talk(await made.open(Address("127.0.0.1", port), allow_any_address))
                without = make_upstream(parse_url(f"{scheme}://{server.addresses[0]}"), below, deadlines)
                with pytest.raises(AuthError):
                    await without.open(Address("127.0.0.1", port), allow_any_address)
            await server.drain()
        for url, userid in (("socks4://alice@192.0.2.1:1", b"alice"), ("socks4://192.0.2.1:1", b"")):
            made = make_upstream(parse_url(url), below, deadlines)
            assert isinstance(made, Socks4)
            assert made.userid == userid
        made = make_upstream(parse_url("ssh://alice:secret@192.0.2.1"), below, deadlines)
        assert isinstance(made, Ssh)
        assert (made.username, made.password) == ("alice", "secret")
        await dialer.close()

    run_once(main)
    assert users.count("alice") == 2


def test_a_chain_begins_with_the_first_proxy(run_once: Run) -> None:
    """Each is reached through those before it; without any, what is below is the chain."""

    async def main() -> None:
        below: Egress = Recorder()
        deadlines = FixedTimeouts(asyncio.get_running_loop(), 1)
        urls = [parse_url(text) for text in ("http://192.0.2.1:1", "socks4://192.0.2.2:2", "socks5://192.0.2.3:3")]
        chain = make_chain(urls, [None] * 3, below, deadlines, get_tls_shared())
        found = []
        while isinstance(chain, Upstream):
            found.append(str(chain.proxy))
            chain = chain.below
        assert found == ["192.0.2.3:3", "192.0.2.2:2", "192.0.2.1:1"]
        assert chain is below
        assert make_chain([], [], below, deadlines, get_tls_shared()) is below
        with pytest.raises(ValueError, match="shorter"):  # one context for each URL
            make_chain(urls, [None], below, deadlines, get_tls_shared())
        deadlines.close()

    run_once(main)


# --- connections that are kept ---


def test_the_connections_of_a_chain(run_once: Run, tmp_path: Path) -> None:
    """SSH servers anywhere in it: retired, each ends with what goes through it; closed, it resets that at once."""

    async def main() -> None:
        async with ssh_server(tmp_path) as server, target() as port, Server("http://127.0.0.1:0") as proxy:
            dialer = Dialer(get_reactor(), ThreadResolver(), 10)
            for end in (retire_links, close_links):
                first = make_upstream(
                    parse_url(f"ssh://alice:hunter2@127.0.0.1:{server.port}"),
                    Direct(dialer),
                    dialer.deadlines,
                    keys=server.keys,
                )
                chain = make_chain([parse_url(proxy.url)], [None], first, dialer.deadlines, get_tls_shared())
                assert list(find_links(chain)) == [first]
                stream = await chain.open(Address("127.0.0.1", port), allow_any_address)
                if end is retire_links:
                    retire_links(chain)
                    await talk(stream)
                else:
                    await close_links(chain)
                    with pytest.raises(ConnectionResetError):
                        await stream.receive()
                    stream.close()
                await server.connections[-1].wait_closed()
            await dialer.close()

    run_once(main)


def test_what_keeps_no_connection_has_nothing_to_end(run_once: Run) -> None:
    """The direct egress, and a chain of other proxies."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), ThreadResolver(), 10)
        chain = make_chain(
            [parse_url("socks5://192.0.2.1:1")], [None], Direct(dialer), dialer.deadlines, get_tls_shared()
        )
        for egress in (chain, Direct(dialer)):
            assert list(find_links(egress)) == []
        await dialer.close()

    run_once(main)
