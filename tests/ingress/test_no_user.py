"""Clients that need no user, by their address: on every protocol, and behind a load balancer."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Run
from doubles import Streams, greet
from support import client, credentials, request, target
from tabi import ConfigError, Server
from tabi.config import make_config
from tabi.server.compiled import compile_config
from tabi.wire.address import Address, parse_address
from tabi.wire.proxy_protocol import encode_v2

NEAR, FAR = "127.1.0.5", "127.2.0.5"
USERS = {"alice": {"password": "secret", "plain": True}}


def settings(protocol: str, **listen: Any) -> dict[str, Any]:
    """A listener on which clients at NEAR need no user."""
    one = {"url": f"{protocol}://127.0.0.1:0", "no_user": ["127.1.0.0/16"], **listen}
    return {"listen": [one], "users": USERS, "log": {"access": "none"}}


async def socks5(streams: Streams, port: int, methods: bytes = b"\0") -> int:
    """Ask for a tunnel, as nobody: the chosen method, or 0 and REP."""
    method = await greet(streams, methods)
    if method:
        return method
    streams[1].write(request("127.0.0.1", port))
    return (await streams[0].readexactly(2))[1]


async def socks4(streams: Streams, port: int) -> int:
    """Ask for a tunnel; gives CD, less 90."""
    streams[1].write(b"\4\1" + port.to_bytes(2, "big") + b"\x7f\0\0\1me\0")
    return (await streams[0].readexactly(2))[1] - 90


async def http(streams: Streams, port: int) -> int:
    """Ask for a tunnel; 0 or the status of a refusal."""
    streams[1].write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
    status = int((await streams[0].readline()).split()[1])
    return 0 if status == 200 else status


@pytest.mark.parametrize(
    ("url", "speak", "refused"),
    [
        ("socks5", socks5, 255),
        ("socks4", socks4, 1),
        ("http", http, 407),
        ("mixed", socks5, 255),
        ("mixed", socks4, 1),
        ("mixed", http, 407),
    ],
)
def test_only_clients_of_the_networks_need_no_user(run: Run, url: str, speak: Any, refused: int) -> None:
    """Who comes from elsewhere is refused as ever."""

    async def main() -> None:
        async with Server(config=make_config(settings(url))) as server, target() as port:
            for host, answer in ((NEAR, 0), (FAR, refused)):
                async with client(server.addresses[0], host) as streams:
                    assert await speak(streams, port) == answer

    run(main)


def test_a_client_that_needs_no_user_may_be_one(run: Run) -> None:
    """A user name and a password are asked for if it offers them, and must be right."""

    async def main() -> None:
        async with Server(config=make_config(settings("socks5"))) as server:
            for password, status in ((b"secret", 0), (b"wrong", 1)):
                async with client(server.addresses[0], NEAR) as streams:
                    assert await greet(streams, b"\0\2") == 2
                    streams[1].write(credentials(b"alice", password))
                    assert (await streams[0].readexactly(2))[1] == status

    run(main)


def test_behind_a_load_balancer_the_header_decides(run: Run) -> None:
    """Its own address, which needs no user, does not count for those that it brings."""

    async def main() -> None:
        config = make_config(settings("mixed", proxy_protocol=["127.0.0.0/8"], no_user=["10.1.0.0/16", "127.0.0.0/8"]))
        async with Server(config=config) as server, target() as port:
            for host, answer in (("10.1.2.3", 2), ("203.0.113.9", 255)):
                async with client(server.addresses[0], NEAR) as streams:
                    streams[1].write(encode_v2(Address(parse_address(f"{host}:1").host, 1), server.addresses[0]))
                    assert await socks5(streams, port) == answer  # the guard refuses the first, with reply 02

    run(main)


def test_clients_of_a_unix_socket(run: Run, tmp_path: Any) -> None:
    """They are meant by "unix"."""
    import asyncio

    async def main() -> None:
        for networks, answer in ((["unix"], 0), (["10.0.0.0/8"], 255)):
            path = tmp_path / networks[0][:2]
            config = make_config(settings("socks5", url=f"unix://{path}?protocol=socks5", no_user=networks))
            async with Server(config=config), target() as port:
                streams = await asyncio.open_unix_connection(path)
                assert await socks5(streams, port) == answer
                streams[1].close()
                await streams[1].wait_closed()

    run(main)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "203.0.113.0/24", "10.0.0.0/7", "2001:db8::/32", "::/0"])
def test_a_network_that_is_not_private_is_not_let_in_by_mistake(network: str) -> None:
    """It wants --open; the error names the network's place."""
    config = make_config(settings("mixed", no_user=["10.0.0.0/8", "fd00::/8", network]))
    with pytest.raises(ConfigError, match=r"no_user\[2\]: .* is not a private network.*--open"):
        compile_config(config)
    assert compile_config(config, open_proxy=True).config is config


@pytest.mark.parametrize(
    ("listen", "error"),
    [
        ({"no_user": ["10.0.0.1/8"]}, r"listen\[0\].no_user\[0\]: .*host bits"),
        ({"no_user": ["x"]}, r"listen\[0\].no_user\[0\]: 'x' is not a network"),
        ({"users": "none"}, r"listen\[0\].no_user: no client of this listener needs a user"),
        ({"users": "optional"}, r"listen\[0\].no_user: no client of this listener needs a user"),
    ],
)
def test_what_is_wrong_is_said(listen: dict[str, Any], error: str) -> None:
    """A network that cannot be read, and one that makes no difference."""
    with pytest.raises(ConfigError, match=error):
        make_config(settings("mixed", **listen))
