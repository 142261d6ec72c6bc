"""Listener: runs pieces, within the rules, limits and deadlines that it is given, and makes no open proxy."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

import tabi
from conftest import Run
from doubles import FakeResolver, until
from support import client, datagram_target, target
from tabi import ConfigError, Datagram, Decision, PolicyDenied, Session
from tabi.config import Clients, GuardConfig, LimitsConfig, ResolverConfig, RuleConfig, Timeouts
from tabi.config.schema import Seconds
from tabi.parts import Connect, Direct, Http, Listener, Mixed, Policy, ProxyHeader, Socks4, Socks5, Through

USERS = {"alice": "secret"}


async def echo_through(url: str, port: int, host: str = "127.0.0.1") -> bytes:
    """What comes back of an echo through a proxy."""
    async with tabi.Proxy(url).connect(host, port) as stream:
        await stream.send_all(b"echo")
        return await stream.receive()


@pytest.mark.parametrize(
    "proxy",
    [
        Socks5(),
        Mixed(Socks5(users=USERS), Http()),
        Mixed(Socks5(users=USERS), Socks4()),
        Socks5(users=USERS, required=False),
    ],
)
def test_there_is_no_open_proxy_by_mistake(proxy: Any) -> None:
    """Beyond loopback every protocol needs users, or ``open=True``."""
    with pytest.raises(ConfigError, match="would be an open proxy"):
        Listener("0.0.0.0:0", proxy)
    Listener("0.0.0.0:0", proxy, open=True)
    Listener("127.0.0.1:0", proxy)


def test_users_make_a_proxy_that_is_not_open() -> None:
    """Where each protocol has its users, any address will do; behind a PROXY header loopback is no excuse."""
    Listener("0.0.0.0:0", Mixed(Socks5(users=USERS), Http(users=USERS)))
    Listener("0.0.0.0:0", Mixed(Socks5(users=USERS), Socks4(required=True)))
    with pytest.raises(ConfigError, match="open proxy to all clients of the proxies"):
        Listener("127.0.0.1:0", ProxyHeader(Socks5(), ["10.0.0.0/8"]))


def test_what_is_wrong_is_told_at_once() -> None:
    """Before a loop runs: addresses, types, rules, egresses and functions."""
    socks5, wrong = Socks5(), object()
    given: Any
    for error, text, address, options in (
        (ConfigError, "expected host:port without a scheme", "socks5://127.0.0.1:0", {}),
        (TypeError, "address: int", 1080, {}),
        (ConfigError, r"listen\[0\]\.url", "127.0.0.1:99999", {}),
        (TypeError, "policy: object, expected tabi.parts.Policy", "127.0.0.1:0", {"policy": wrong}),
        (TypeError, "timeouts: dict, expected tabi.parts.Timeouts", "127.0.0.1:0", {"timeouts": {}}),
        (
            ConfigError,
            r"rule\[0\]\.via: there is no",
            "127.0.0.1:0",
            {"policy": Policy(rules=[RuleConfig(via="nowhere")])},
        ),
        (ConfigError, "egresses.mine: object, expected", "127.0.0.1:0", {"egresses": {"mine": wrong}}),
        (ConfigError, "on_close: .*expected a function", "127.0.0.1:0", {"on_close": 7}),
        (ConfigError, "decide: 7, expected a function", "127.0.0.1:0", {"policy": Policy(decide=7)}),  # type: ignore[arg-type]
    ):
        given = options
        with pytest.raises(error, match=text):
            Listener(address, socks5, **given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Listener: the class Socks5 itself"):
        Listener("127.0.0.1:0", Socks5)


def test_its_life(run: Run) -> None:
    """It has an address while it listens, lists its sessions, drains, and closes more than once."""

    async def main() -> None:
        async with target() as port:
            listener = Listener("127.0.0.1:0", Socks5())
            assert repr(listener) == "<tabi.parts.Listener socks5://127.0.0.1:0>"
            with pytest.raises(RuntimeError):
                assert listener.address
            await listener.start()
            assert listener.addresses == [listener.address]
            waiting = asyncio.get_running_loop().create_task(listener.serve_forever())
            async with tabi.Proxy(f"socks5://{listener.address}").connect("127.0.0.1", port):
                assert [one.protocol for one in listener.sessions()] == ["socks5"]
                assert await listener.drain(0.01) == 1
            await listener.close()
            await listener.close()
            await waiting
            assert listener.sessions() == []

    run(main)


def test_a_unix_socket(run: Run, tmp_path: Path) -> None:
    """It has no address, and is gone afterwards."""
    path = tmp_path / "proxy.sock"

    async def main() -> None:
        async with Listener(f"unix://{path}", Socks5()) as listener:
            with pytest.raises(RuntimeError, match="no address"):
                assert listener.address
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"\x05\x01\x00")
            assert await reader.readexactly(2) == b"\x05\x00"
            writer.close()
            await writer.wait_closed()
        assert not path.exists()

    run(main)


def test_sockets_that_are_open(run: Run) -> None:
    """A program may listen by itself; one that anybody reaches is checked as an address is."""

    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        number = sock.getsockname()[1]
        async with target() as port, Listener("127.0.0.1:0", Socks5(), sockets=[sock]) as listener:
            assert listener.address.port == number
            assert await echo_through(f"socks5://{listener.address}", port) == b"echo"
        with socket.create_server(("0.0.0.0", 0)) as public, pytest.raises(ConfigError, match="open proxy"):
            Listener("127.0.0.1:0", Socks5(), sockets=[public])

    run(main)


def test_a_policy_decides(run: Run) -> None:
    """Rules, guard, limits and decide as in tabi.toml, and what they refused is counted."""

    async def decide(session: Session) -> Decision | None:
        if session.protocol == "http":
            raise PolicyDenied("not by HTTP")
        return None

    async def main() -> None:
        async with target() as port, target() as other:
            policy = Policy(
                rules=[RuleConfig(ports=[other], action="deny", name="closed")],
                guard=GuardConfig(deny=["127.0.0.2"], exempt=[]),
                limits=LimitsConfig(connections=1),
                clients=[Clients(["192.0.2.0/24"], LimitsConfig(connections=9))],
                decide=decide,
            )
            async with Listener("127.0.0.1:0", Mixed(Socks5(), Http()), policy=policy) as front:
                url = f"socks5://{front.address}"
                assert await echo_through(url, port) == b"echo"
                await until(lambda: not front.sessions())
                for to, host in ((other, "127.0.0.1"), (port, "127.0.0.2")):
                    with pytest.raises(tabi.ProxyError) as caught:
                        await echo_through(url, to, host)
                    assert caught.value.reply_code == 2
                    await until(lambda: not front.sessions())
                with pytest.raises(tabi.TabiError):
                    await echo_through(f"http://{front.address}", port)
                await until(lambda: not front.sessions())
                async with tabi.Proxy(url).connect("127.0.0.1", port):
                    with pytest.raises(tabi.ProxyError):
                        await echo_through(url, port)
                assert front.metrics.value("tabi_denied_total", action="deny", rule="closed") == 1

    run(main)


def test_egresses_have_names(run: Run) -> None:
    """Rules and decide name those of ``egresses``; those of pieces get names that differ."""
    ended: list[Session] = []

    async def main() -> None:
        async with (
            target() as port,
            tabi.Server("socks5://127.0.0.1:0") as behind,
            Listener(
                "127.0.0.1:0",
                Mixed(Socks5(Connect(Direct(keepalive=60))), Http(Connect(Direct(keepalive=30, name="slow")))),
                policy=Policy(rules=[RuleConfig(protocols=["socks5"], users=["nobody"], via="far")]),
                egresses={"far": Through(behind.url)},
                on_close=ended.append,
            ) as front,
        ):
            assert await echo_through(f"socks5://{front.address}", port) == b"echo"
            assert await echo_through(f"http://{front.address}", port) == b"echo"
            await until(lambda: len(ended) == 2)
        assert [one.via for one in ended] == ["direct#2", "slow"]

    run(main)


def test_timeouts_and_names_are_those_of_the_listener(run: Run) -> None:
    """A silent client is ended in time; names come from a resolver of the program, or of the settings."""
    ended: list[Session] = []
    hosts = ResolverConfig(hosts={"here.test": ["127.0.0.1"]})

    async def main() -> None:
        async with target() as port:
            for resolver in (hosts, FakeResolver({"here.test": ["127.0.0.1"]})):
                async with Listener("127.0.0.1:0", Socks5(), resolver=resolver) as front:
                    assert await echo_through(f"socks5://{front.address}", port, "here.test") == b"echo"
        timeouts = Timeouts(handshake=Seconds(0.02))
        async with (
            Listener("127.0.0.1:0", Socks5(), timeouts=timeouts, on_close=ended.append) as front,
            client(front.address) as (reader, _),
        ):
            assert await reader.read() == b""
        assert ended[0].error == "handshake: not done within 0.02 s"

    run(main)


class Shout(tabi.DatagramInspector):
    """Changes the payload of each datagram."""

    def inspect(self, datagram: Datagram, emit: Any) -> None:
        emit(bytes(datagram.payload).upper())


def test_inspectors_and_observers(run: Run, tmp_path: Path) -> None:
    """Datagrams are looked at, sessions are told of, and the access log is written."""
    opened: list[Session] = []
    log = tmp_path / "access.log"

    async def main() -> None:
        async with (
            datagram_target() as port,
            Listener("127.0.0.1:0", Socks5(), datagrams=Shout(), on_open=opened.append, access_log=str(log)) as front,
        ):
            async with tabi.Proxy(f"socks5://{front.address}").associate() as association:
                await association.send(b"quiet", ("127.0.0.1", port))
                assert (await association.receive())[0] == b"QUIET"
            await until(lambda: not front.sessions())
        assert [one.command for one in opened] == ["associate"]

    run(main)
    assert '"command":"associate"' in log.read_text().replace(": ", ":")
