"""Egresses that lead back to a listener: refused at the start, at a reload, and in a program that embeds a server."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from conftest import Run
from processes import Serve, failure, run_passed, run_tabi, serve, wait_for
from support import free_port
from tabi import Server
from tabi.config import Config, EgressConfig, Listen, MemberConfig, ResolverConfig
from tabi.errors import ConfigError
from tabi.net.local_addresses import ask
from tabi.server import loops
from tabi.server.loops import refuse_loops


def config(listen: str, **egress: object) -> Config:
    """A listener and an egress."""
    return Config(listen=[Listen(listen)], egress={"up": EgressConfig(**egress)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listen", "proxy"),
    [
        ("mixed://127.0.0.1:1080", "socks5://127.0.0.1:1080"),
        ("mixed://127.0.0.1:1080", "http://user:secret@127.0.0.1:1080"),
        ("mixed://127.0.0.1:1080", "https://localhost:1080"),
        ("mixed://127.0.0.1:1080", "socks5://LocalHost.:1080"),
        ("mixed://127.0.0.1:1080", "socks5://any.localhost:1080"),
        ("mixed://127.0.0.1:1080", "socks5://127.1:1080"),
        ("mixed://0.0.0.0:1080", "http://0x7f000001:1080"),
        ("mixed://127.0.0.1:1080", "socks5://2130706433:1080"),
        ("mixed://127.0.0.1:1080", "socks5://0.0.0.0:1080"),
        ("mixed://127.0.0.1:1080", "socks5://[::ffff:127.0.0.1]:1080"),
        ("mixed://0.0.0.0:1080", "socks5://127.0.0.1:1080"),
        ("mixed://0.0.0.0:1080", "socks5://127.9.9.9:1080"),
        ("mixed://0.0.0.0:1080", "socks5://192.0.2.7:1080"),
        ("mixed://[::]:1080", "socks5://192.0.2.7:1080"),
        ("mixed://[::]:1080", "socks5://[::1]:1080"),
        ("mixed://[::]:1080", "socks5://[::]:1080"),
        ("mixed://[::1]:1080", "socks4a://[::1]:1080"),
        ("mixed://localhost:1080", "socks5://127.0.0.1:1080"),
        ("mixed://192.0.2.9:1080", "socks5://192.0.2.9:1080"),
        ("mixed+tls://127.0.0.1:1080", "https://127.0.0.1:1080"),
    ],
)
def test_a_proxy_that_is_a_listener_is_refused(monkeypatch: pytest.MonkeyPatch, listen: str, proxy: str) -> None:
    """By the same address, by a wildcard that takes all of this machine, and by a name that is always this machine."""
    monkeypatch.setattr(loops, "ask", lambda: iter([ip_address("192.0.2.7")]))
    for key, egress in (
        ("url", {"url": proxy}),
        ("chain[0]", {"chain": [proxy, "socks5://192.0.2.8:1080"]}),
        ("members[1]", {"members": ["socks5://192.0.2.8:1080", proxy]}),
        ("members[0]", {"members": [MemberConfig(proxy)]}),
    ):
        with pytest.raises(ConfigError, match="a listener of this server") as caught:
            refuse_loops(config(listen, **egress))
        assert caught.value.path == f"egress.up.{key}"
        assert "secret" not in str(caught.value)


def test_names_of_the_configuration_are_known() -> None:
    """As `[resolver] hosts` has them; a number that is no address leads nowhere."""
    known = config("mixed://127.0.0.1:1080", url="socks5://Here.test.:1080")
    refuse_loops(known)
    refuse_loops(config("mixed://127.0.0.1:1080", url="socks5://1.2.3.999:1080"))
    known = msgspec.structs.replace(known, resolver=ResolverConfig(hosts={"here.test": ["::ffff:127.0.0.1"]}))
    with pytest.raises(ConfigError, match=r"leads to mixed://127\.0\.0\.1:1080, a listener"):
        refuse_loops(known)


@pytest.mark.parametrize(
    ("listen", "proxy"),
    [
        ("mixed://127.0.0.1:1080", "socks5://127.0.0.1:1081"),
        ("mixed://127.0.0.1:1080", "socks5://127.0.0.2:1080"),
        ("mixed://127.0.0.1:1080", "socks5://[::1]:1080"),
        ("mixed://127.0.0.1:1080", "socks5://proxy.example:1080"),
        ("mixed://0.0.0.0:1080", "socks5://192.0.2.8:1080"),
        ("mixed://0.0.0.0:1080", "socks5://[::1]:1080"),
        ("mixed://127.0.0.1:0", "socks5://127.0.0.1:1080"),
        ("unix:///run/tabi.sock", "socks5://127.0.0.1:1080"),
        ("mixed://proxy.example:1080", "socks5://proxy.example:1080"),
    ],
)
def test_other_proxies_are_not(monkeypatch: pytest.MonkeyPatch, listen: str, proxy: str) -> None:
    """Another port, another address, a name that must be resolved: two of these may well be different machines."""
    monkeypatch.setattr(loops, "ask", lambda: iter([ip_address("192.0.2.7")]))
    refuse_loops(config(listen, url=proxy))


def test_what_is_connected_to_later_is_not_looked_at() -> None:
    """The proxies before it say what its address means. A name in place of a URL is an egress, checked itself."""
    refuse_loops(config("mixed://127.0.0.1:1080", chain=["socks5://192.0.2.8:1080", "socks5://127.0.0.1:1080"]))
    refuse_loops(config("mixed://127.0.0.1:1080", chain=["other", "socks5://127.0.0.1:1080"]))


def test_addresses_of_this_machine_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not told, loopback is still known."""
    assert loops.local_addresses() == list(ask())

    def refuse() -> Iterator[None]:
        raise PermissionError

    monkeypatch.setattr(loops, "ask", refuse)
    refuse_loops(config("mixed://0.0.0.0:1080", url="socks5://192.0.2.7:1080"))
    with pytest.raises(ConfigError):
        refuse_loops(config("mixed://0.0.0.0:1080", url="socks5://127.0.0.1:1080"))


def test_the_command_says_it_in_one_line() -> None:
    """By its option, or by the file's key; `tabi check` says it too."""
    done = run_tabi("serve", "-l", "mixed://0.0.0.0:1080", "--open", "--via", "socks5://127.0.0.1:1080")
    assert failure(done, 2) == (
        "tabi: --via: socks5://127.0.0.1:1080 leads to mixed://0.0.0.0:1080, a listener of this server\n"
    )


def test_a_passed_socket_is_known_by_its_place(tmp_path: Path) -> None:
    """Its URL has a name only."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        path = tmp_path / "tabi.toml"
        port = sock.getsockname()[1]
        path.write_text(f'[[listen]]\nurl = "fd://web"\n[egress.up]\nurl = "http://localhost:{port}"\n')
        done = run_passed([(sock, "web")], "-c", str(path))
    assert "leads to" in failure(done, 2)


def test_a_reload_is_refused(tmp_path: Path) -> None:
    """The old configuration stays, and it is said why."""
    path, port = tmp_path / "tabi.toml", free_port()
    text = f'[[listen]]\nurl = "mixed://127.0.0.1:{port}"\n'
    path.write_text(text)
    with serve(tmp_path, "-c", path) as proxy:
        path.write_text(f'{text}[egress.up]\nmembers = ["socks5://127.0.0.1:{port}"]\n')
        proxy.process.send_signal(signal.SIGHUP)
        said = wait_for(lambda: said_of(proxy), "the reload")
        assert f"egress.up.members[0]: socks5://127.0.0.1:{port} leads to mixed://127.0.0.1:{port}" in said
        assert proxy.stop() == 0


def said_of(proxy: Serve) -> str:
    """What it says of a reload that failed."""
    return next((line for line in proxy.messages.splitlines() if "not reloaded" in line), "")


def test_an_embedded_server_refuses_it(run_once: Run) -> None:
    """By its URL when it is made; by its port, when that is known; and at a reload, which changes nothing."""
    with pytest.raises(ConfigError, match="a listener of this server"):
        Server(config=config("mixed://127.0.0.1:1080", url="socks5://127.0.0.1:1080"))

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            url = f"socks5://127.0.0.1:{sock.getsockname()[1]}"
            with pytest.raises(ConfigError, match="a listener of this server"):
                Server(config=config("mixed://127.0.0.1:0", url=url), sockets=[sock])
        async with Server(config=config("mixed://127.0.0.1:0", url="socks5://192.0.2.8:1080")) as server:
            with pytest.raises(ConfigError, match="a listener of this server"):
                server.reload(config("mixed://127.0.0.1:0", url=server.url))
            assert server.config.egress["up"].url == "socks5://192.0.2.8:1080"

    run_once(main)
