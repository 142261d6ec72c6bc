"""What a listener speaks, by its URL; and functions of programs, which are looked at before they are asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authorities import TlsPeer, client_context, tls_client, write_server
from conftest import Run
from doubles import LOOPBACK, config, end_of
from support import client
from tabi import Config, Server, Session
from tabi.config import Listen, RuleConfig, make_config
from tabi.config.users import make_users
from tabi.errors import ConfigError
from tabi.policy.guard import LocalAddresses
from tabi.policy.hook import DecideHook
from tabi.policy.policy import Policy
from tabi.server.compose import check_callback, load_callable, make_policy
from tabi.server.ledger import LocalLedger
from tabi.wire.address import Address


@pytest.mark.parametrize(
    ("hook", "wrong"),
    [("on_open", "name"), ("on_open", "two"), ("on_close", "name"), ("on_close", "two"), ("decide", "name")],
)
def test_what_cannot_be_called_is_refused(hook: str, wrong: str) -> None:
    """At once, not with the first session."""

    def takes_two(session: Session, more: object) -> None:
        """Nobody would give it the second."""

    given: dict[str, Any] = {hook: "print" if wrong == "name" else takes_two}
    with pytest.raises(ConfigError, match=f"^{hook}: .*expected a function"):
        Server(LOOPBACK, **given)


def test_what_cannot_be_asked_is_said_at_the_start() -> None:
    """A hook is a function, with async or without."""
    wrong: Any = 7
    with pytest.raises(ConfigError, match=r"^decide: 7, expected a function, with async or without$"):
        Server(decide=wrong)


# --- what a listener speaks ---

FIRST = {
    "socks5": (b"\x05\x01\x00", b"\x05\x00"),
    "socks4": (b"\x04\x01\x00\x50\xc0\x00\x02\x01\x00", b"\x00\x5b"),
    "http": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400"),
}
"""How a client begins, and how the answer of a server begins that speaks its protocol."""


async def spoken(address: Address, inside_tls: bool) -> set[str]:
    """The protocols that are answered at a place."""
    found = set()
    for protocol, (octets, answer) in FIRST.items():
        try:
            if inside_tls:
                async with tls_client(address) as peer:
                    await peer.send(octets)
                    heard = await peer.read(len(answer))
            else:
                async with client(address) as (reader, writer):
                    writer.write(octets)
                    heard = await reader.read(len(answer))
        except (OSError, EOFError):  # it speaks no TLS, or breaks off
            continue
        if heard == answer:
            found.add(protocol)
    return found


@pytest.mark.parametrize(
    ("scheme", "certificate", "plain", "inside"),
    [
        ("mixed", False, "socks5 socks4 http", ""),
        ("mixed", True, "socks5 socks4 http", "socks5 socks4 http"),
        ("mixed+tls", True, "", "socks5 socks4 http"),
        ("socks5", False, "socks5", ""),
        ("socks5+tls", True, "", "socks5"),
        ("socks4", False, "socks4", ""),
        ("http", False, "http", ""),
        ("https", True, "", "http"),
    ],
)
def test_a_listener_speaks_what_its_url_says(
    run_once: Run, tmp_path: Path, scheme: str, certificate: bool, plain: str, inside: str
) -> None:
    """One protocol or any, outside TLS, inside, or both; the session names which it was."""
    listen = Listen(f"{scheme}://127.0.0.1:0", tls=write_server(tmp_path) if certificate else None)
    names: set[str | None] = set()

    async def main() -> None:
        setting = msgspec.structs.replace(config(listen), rule=[RuleConfig("deny")])
        async with Server(config=setting, on_close=lambda session: names.add(session.protocol)) as server:
            assert await spoken(server.addresses[0], inside_tls=False) == set(plain.split())
            assert names >= set(plain.split())
            assert await spoken(server.addresses[0], inside_tls=True) == set(inside.split())
        assert names >= {"https" if name == "http" else f"{name}+tls" for name in inside.split()}

    run_once(main)


def test_a_header_stands_in_front_of_tls(run_once: Run, tmp_path: Path) -> None:
    """A load balancer writes it outside, in front of the client's first octet; nobody else may."""
    ended: asyncio.Queue[Session] = asyncio.Queue()
    header = b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 1080\r\n"

    async def main() -> None:
        listen = Listen("mixed://127.0.0.1:0", tls=write_server(tmp_path), proxy_protocol=["127.0.0.1"])
        async with Server(config=config(listen), open=True, on_close=ended.put_nowait) as server:
            address = server.addresses[0]
            with socket.create_connection((str(address.host), address.port)) as sock:
                sock.sendall(header)
                sock.setblocking(False)
                peer = TlsPeer(sock, client_context())
                await peer.handshake()
                await peer.send(b"\x05\x01\x00")
                assert await peer.read(2) == b"\x05\x00"
            session = await ended.get()
            assert (str(session.client), session.protocol) == ("203.0.113.9:5000", "socks5+tls")
            async with client(address, "127.0.0.2") as (reader, writer):
                writer.write(header)
                assert await end_of(reader) in ("end", "reset")
            assert "a PROXY header from a client that is not in proxy_protocol" in str((await ended.get()).error)

    run_once(main)


# --- what decides ---


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Modules of a program that can be imported; gives their names."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"composed_{abs(hash(tmp_path))}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_the_function_of_a_program_is_found_by_its_name(program: Callable[[str], str]) -> None:
    """Also an object that can be called, and one with async."""
    name = program("class Any:\n    def __call__(self, session): ...\nasync def later(session): ...\nasks = Any()\n")
    for found in ("asks", "later"):
        assert callable(load_callable(f"python:{name}:{found}", "decide"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise ZeroDivisionError('at import')", "ZeroDivisionError: at import"),
        ("", r"AttributeError: .*has no attribute 'decide'"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def", "SyntaxError: "),
        ("decide = 7", "7, expected a function, with async or without"),
    ],
    ids=["raises", "missing", "imports", "syntax", "value"],
)
def test_a_function_that_cannot_be_had(program: Callable[[str], str], text: str, why: str) -> None:
    """The error names the key and the function, and says what is wrong with it, whatever the module does."""
    name = program(text)
    with pytest.raises(ConfigError, match=f"^decide: python:{name}:decide: {why}"):
        load_callable(f"python:{name}:decide", "decide")


def test_the_hook_of_a_program_goes_before_that_of_the_configuration(program: Callable[[str], str]) -> None:
    """One decides: the function of the call where there is one, else that of the file, else the rules alone."""
    name = program("def decide(session):\n    return None\n")
    parts = make_config({"decide": f"python:{name}:decide", "rule": [{"action": "deny", "name": "closed"}]})

    def mine(session: Session) -> None:
        """Decide nothing."""

    def made(hook: DecideHook | None, file: Config) -> Policy:
        return make_policy(file, LocalLedger(), LocalAddresses(), hook, make_users(file, False))

    assert made(mine, parts).decide_hook is mine
    found = made(None, parts).decide_hook
    assert found is not None
    assert (found.__module__, found.__name__) == (name, "decide")
    without = made(None, msgspec.structs.replace(parts, decide=None))
    assert without.decide_hook is None
    assert without.decides
    assert without.labels == {"closed"}


def test_what_a_callback_may_be() -> None:
    """A function, a method or an object with such a method, async or not; it takes the session and nothing else."""

    class Waits:
        async def __call__(self, session: Session) -> None:
            """Take note of it."""

    class Told:
        def __call__(self, session: Session) -> None:
            """Take note of it."""

    told: list[Session] = []
    for right in (Told(), Waits(), Waits().__call__, print, told.append):
        check_callback(right, "on_close")
    for wrong in (7, Told, lambda: None, lambda session, more: None):
        with pytest.raises(ConfigError, match=r"^on_close: .*expected a function of one argument, a tabi.Session"):
            check_callback(wrong, "on_close")
