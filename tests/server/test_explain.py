"""Explaining beside doing: the same configuration and request, through a server and through explain."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any

import pytest

import tabi
from conftest import Run
from support import credentials, request
from tabi.config import Config, make_config
from tabi.config.compile import make_hosts
from tabi.net.cache import NameCache
from tabi.server.explain import Request, explain
from tabi.server.explanation import Explanation
from tabi.wire.address import parse_address, parse_ip

LONG_AGO, NEVER = "2000-01-01", "2100-01-01"
HERE = "127.0.0.1"

NO_SOURCE: Any = None
"""All names of these tests are in the configuration."""

PROGRAM = """
import asyncio, tabi

def refuse(session):
    return tabi.Decision("deny", rule="mine", reason="not today", reply_code=5)

async def later(session):
    await asyncio.sleep(0)
    return tabi.Decision("deny", reason=f"not {session.destination.port}", reply_code=4)

async def slow(session):
    return tabi.Decision("deny", delay=0.01)

def fail(session):
    raise ValueError("a secret")

def nowhere(session):
    return tabi.Decision(via="nowhere")

def wrong(session):
    return True

def by_url(session):
    return tabi.Decision(via="block://")

def own(session):
    return tabi.Decision(limits={"connections": 0.5})
"""


def config_of(**parts: Any) -> Config:
    """One with a user, whose clients the guard is for: it has no exceptions."""
    user = {"password": "x", "plain": True, **parts.pop("user", {})}
    return make_config(
        {
            "listen": [{"url": "mixed://127.0.0.1:0", **parts.pop("listen", {})}],
            "users": {"alice": user},
            "guard": {"exempt": []},
            "resolver": {"hosts": {"inner.test": ["10.0.0.1"], "both.test": ["192.0.2.1", "10.0.0.1"]}},
            "log": {"access": "none"},
            **parts,
        }
    )


def rule(action: str, **keys: Any) -> dict[str, Any]:
    """A rule."""
    return {"action": action, **keys}


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("guard", {}, "connect", "10.0.0.1:80"),
    ("guard, by name", {}, "connect", "inner.test:80"),
    ("guard, one of two addresses", {}, "connect", "both.test:80"),
    ("a rule before the guard", {"rule": [rule("deny", name="no", ports=[80])]}, "connect", "10.0.0.1:80"),
    ("a rule by network", {"rule": [rule("deny", hosts=["10.0.0.0/8"])]}, "connect", "inner.test:80"),
    ("a rule by network, of no name", {"rule": [rule("deny", hosts=["10.0.0.0/8"])]}, "connect", "1.2.3.4.5:80"),
    ("a limit before the guard", {"user": {"expires": LONG_AGO}}, "connect", "10.0.0.1:80"),
    (
        "a limit before block",
        {"user": {"expires": LONG_AGO}, "rule": [rule("allow", via="block")]},
        "connect",
        "inner.test:1",
    ),
    (
        "a rule before a limit",
        {"user": {"expires": LONG_AGO}, "rule": [rule("deny", name="no")]},
        "connect",
        "10.0.0.1:80",
    ),
    ("a limit before a name without address", {"user": {"expires": LONG_AGO}}, "connect", "1.2.3.4.5:80"),
    ("block", {"rule": [rule("allow", via="block")]}, "connect", "10.0.0.1:80"),
    (
        "block, by a chain",
        {"rule": [rule("allow", via="x")], "egress": {"x": {"chain": ["block"]}}},
        "connect",
        "inner.test:1",
    ),
    ("no address", {"user": {"expires": NEVER}}, "connect", "1.2.3.4.5:80"),
    ("a hook with a reply of its own", {"decide": "python:said:refuse"}, "connect", "10.0.0.1:80"),
    ("a hook with async", {"decide": "python:said:later"}, "connect", "10.0.0.1:80"),
    ("a hook after a rule by network", {"decide": "python:said:later"}, "connect", "inner.test:80"),
    ("a hook that delays", {"decide": "python:said:slow"}, "connect", "10.0.0.1:80"),
    ("a hook that fails", {"decide": "python:said:fail"}, "connect", "10.0.0.1:80"),
    ("a hook without a decision", {"decide": "python:said:wrong"}, "connect", "10.0.0.1:80"),
    ("a hook that leads nowhere", {"decide": "python:said:nowhere"}, "connect", "10.0.0.1:80"),
    ("a hook with a URL", {"decide": "python:said:by_url"}, "connect", "10.0.0.1:80"),
    ("a hook with wrong limits", {"decide": "python:said:own"}, "connect", "10.0.0.1:80"),
    (
        "a hook before a limit",
        {"decide": "python:said:refuse", "user": {"expires": LONG_AGO}},
        "connect",
        "inner.test:1",
    ),
    ("bind, by the guard", {}, "bind", "10.0.0.1:80"),
    ("bind, by a limit", {"user": {"expires": LONG_AGO}}, "bind", "10.0.0.1:80"),
    ("bind for anybody, by a limit", {"user": {"expires": LONG_AGO}}, "bind", "0.0.0.0:0"),
    ("bind for anybody, by a rule", {"rule": [rule("deny", commands=["bind"])]}, "bind", "0.0.0.0:0"),
    (
        "bind by a proxy that cannot",
        {"rule": [rule("allow", via="x")], "egress": {"x": {"url": "http://127.0.0.1:1"}}},
        "bind",
        "192.0.2.1:80",
    ),
    ("associate, by a rule", {"rule": [rule("deny", commands=["associate"])]}, "associate", "0.0.0.0:0"),
    ("associate, by a limit", {"user": {"expires": LONG_AGO}}, "associate", "0.0.0.0:0"),
    ("associate, by a limit, of one", {"user": {"expires": LONG_AGO}}, "associate", "10.0.0.1:53"),
    (
        "associate by a proxy that cannot, behind a limit",
        {
            "rule": [rule("allow", via="x")],
            "egress": {"x": {"url": "http://127.0.0.1:1"}},
            "user": {"expires": LONG_AGO},
        },
        "associate",
        "0.0.0.0:0",
    ),
    (
        "associate by a proxy that cannot",
        {"rule": [rule("allow", via="x")], "egress": {"x": {"url": "http://127.0.0.1:1"}}},
        "associate",
        "0.0.0.0:0",
    ),
    ("associate by block", {"rule": [rule("allow", via="block")]}, "associate", "0.0.0.0:0"),
    ("resolve, by the guard", {"listen": {"resolve_commands": True}}, "resolve", "inner.test:0"),
    ("resolve_ptr, by the guard", {"listen": {"resolve_commands": True}}, "resolve_ptr", "10.0.0.1:0"),
    ("resolve_ptr of a name", {"listen": {"resolve_commands": True}}, "resolve_ptr", "inner.test:0"),
    (
        "resolve by block, behind a limit",
        {
            "listen": {"resolve_commands": True},
            "rule": [rule("allow", via="block")],
            "user": {"expires": LONG_AGO},
        },
        "resolve",
        "inner.test:0",
    ),
]

COMMANDS = {"connect": 1, "bind": 2, "associate": 3, "resolve": 0xF0, "resolve_ptr": 0xF1}


async def explained(config: Config, command: str, destination: str, protocol: str) -> Explanation:
    """What explain says."""
    resolver = NameCache(NO_SOURCE, make_hosts(config))
    asked = Request(command, parse_address(destination), parse_ip(HERE), "alice", config.listen[0], protocol, time())
    return await explain(config, asked, resolver)


async def done(config: Config, octets: bytes) -> dict[str, Any]:
    """What a server does: its reply or status is read by a client, the rest is in the session."""
    sessions: list[tabi.Session] = []
    async with tabi.Server(config=config, on_close=sessions.append) as server:
        address = server.addresses[0]
        reader, writer = await asyncio.open_connection(str(address.host), address.port)
        writer.write(octets)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    (session,) = sessions
    return {"answer": answer, "reply": session.reply_code, "error": session.error, "rule": session.rule}


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of ``decide``."""
    (tmp_path / "said.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "said", raising=False)


@pytest.mark.parametrize(("parts", "command", "asked"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_explained_is_what_happens(run_once: Run, parts: dict[str, Any], command: str, asked: str) -> None:
    """Reply, error and rule of a refused session, in SOCKS5."""

    async def main() -> None:
        config = config_of(**parts)
        found = await explained(config, command, asked, "socks5")
        address = parse_address(asked)
        octets = request(str(address.host), address.port, command=COMMANDS[command])
        was = await done(config, b"\x05\x01\x02" + credentials(b"alice", b"x") + octets)
        assert was["answer"][4:6] == bytes((5, found.reply or 0)), was
        assert (found.reply, found.error, found.rule) == (was["reply"], was["error"], was["rule"])
        assert found.reply != 0

    run_once(main)


HTTP_CASES: Sequence[tuple[dict[str, Any], str, int]] = [
    ({"user": {"expires": LONG_AGO}}, "10.0.0.1:80", 429),
    ({}, "10.0.0.1:80", 403),
    ({"rule": [rule("deny")], "user": {"expires": LONG_AGO}}, "10.0.0.1:80", 403),
    ({"decide": "python:said:refuse"}, "10.0.0.1:80", 502),
    ({"decide": "python:said:fail"}, "10.0.0.1:80", 403),
    ({}, "1.2.3.4.5:80", 502),
    ({"rule": [rule("allow", via="block")], "user": {"expires": LONG_AGO}}, "inner.test:80", 429),
]


@pytest.mark.parametrize(("parts", "destination", "status"), HTTP_CASES)
@pytest.mark.parametrize("command", ["connect", "forward"])
def test_what_is_explained_is_the_status(
    run_once: Run, command: str, parts: dict[str, Any], destination: str, status: int
) -> None:
    """Of a CONNECT as of a request that is forwarded."""

    async def main() -> None:
        config = config_of(**parts)
        found = await explained(config, command, destination, "http")
        target = f"CONNECT {destination}" if command == "connect" else f"GET http://{destination}/"
        head = (
            f"{target} HTTP/1.1\r\nHost: {destination}\r\nConnection: close\r\nProxy-Authorization: Basic YWxpY2U6eA=="
        )
        was = await done(config, f"{head}\r\n\r\n".encode())
        assert was["answer"].startswith(f"HTTP/1.1 {status} ".encode()), was
        assert (found.reply, found.error, found.rule) == (status, was["error"], was["rule"])

    run_once(main)


def test_rules_that_are_asked_again(run_once: Run) -> None:
    """For connections that are allowed, of a listener or by a rule that says so."""

    async def main() -> None:
        ways: list[tuple[dict[str, Any], str, str, bool]] = [
            ({}, "connect", "8.8.8.8:80", False),
            ({"rule": [rule("allow", sniff=True)]}, "connect", "8.8.8.8:80", True),
            ({"rule": [rule("allow", ports=[443], sniff=True)]}, "connect", "8.8.8.8:80", False),
            ({"rule": [rule("allow", sniff=True)]}, "associate", "8.8.8.8:80", False),
            ({"listen": {"sniff": True}}, "connect", "8.8.8.8:80", True),
            ({"listen": {"sniff": True}}, "bind", "8.8.8.8:80", False),
            (
                {"listen": {"sniff": True}, "rule": [rule("deny")]},
                *("connect", "8.8.8.8:80", False),
            ),
        ]
        for parts, command, where, again in ways:
            found = await explained(config_of(**parts), command, where, "socks5")
            assert (found.sniff is not None) == again

    run_once(main)


def test_what_each_client_may_have_and_how_long_it_may_be_idle(run_once: Run) -> None:
    """Where the file says so. Limits of the server that are about each client alone are not a line of their own."""

    async def main() -> None:
        parts: dict[str, Any] = {
            "limits": {"per_client": {"connections": 3, "connect_rate": "100/min"}},
            "rule": [rule("allow", ports=[22], idle="1 h"), rule("allow", name="any", idle="never")],
        }
        each = "each client: 3 connections at once, 25% of them without a request, new ones 100/min"
        for port, idle in ((22, "rule[0]: 3600 s without an octet"), (80, "any: any time without an octet")):
            found = await explained(config_of(**parts), "connect", f"10.0.0.1:{port}", "socks5")
            assert found.limits == [each, idle]
        assert (await explained(config_of(**parts), "associate", "10.0.0.1:80", "socks5")).limits == [each]
        parts["limits"] = {"per_client": {"unauthenticated": 7}}
        found = await explained(config_of(**parts), "associate", "10.0.0.1:80", "socks5")
        assert found.limits == ["each client: 7 of them without a request"]

    run_once(main)


def test_the_steps_behind_a_refusal_are_told_too(run_once: Run) -> None:
    """Whoever mends the first reason wants to know of the next one."""

    async def main() -> None:
        parts = {"user": {"expires": LONG_AGO}, "rule": [rule("deny", name="no")]}
        found = await explained(config_of(**parts), "connect", "10.0.0.1:80", "socks5")
        assert found.error == "rule no: deny 10.0.0.1:80"
        assert found.limits == ["user alice: until 2000-01-01T00:00:00Z"]
        assert found.guard == "refuses: 10.0.0.1 is in 10.0.0.0/8"

    run_once(main)


def test_a_delay_is_told_and_not_waited_for(run_once: Run) -> None:
    """And so are limits of one session alone."""

    async def main() -> None:
        found = await explained(config_of(decide="python:said:slow"), "connect", "10.0.0.1:80", "socks5")
        assert (found.delay, found.decide) == (0.01, "python:said:slow: deny")

    run_once(main)


@pytest.mark.parametrize(
    ("parts", "asked", "later"),
    [
        ({}, "8.8.8.8:53", "to 8.8.8.8:53: sent"),
        ({}, "10.0.0.1:53", "to 10.0.0.1:53: dropped, guard: 10.0.0.1 is in"),
        ({}, "inner.test:53", "to inner.test:53: dropped, guard: 10.0.0.1 is in"),
        ({}, "1.2.3.4.5:53", "to 1.2.3.4.5:53: dropped, 1.2.3.4.5: neither an address nor a name"),
        ({"rule": [rule("deny", hosts=["10.0.0.0/8"])]}, "inner.test:53", "to inner.test:53: dropped, rule rule[0]"),
        ({"rule": [rule("allow", ports=[53], via="block")]}, "8.8.8.8:53", "to 8.8.8.8:53: dropped, egress block"),
        ({"decide": "python:said:later"}, "8.8.8.8:53", "to 8.8.8.8:53: dropped, not 53"),
        ({"decide": "python:said:by_url"}, "8.8.8.8:53", "to 8.8.8.8:53: dropped, egress block"),
        ({}, "0.0.0.0:0", "each is judged when it comes"),
    ],
)
def test_what_becomes_of_a_datagram(run_once: Run, parts: dict[str, Any], asked: str, later: str) -> None:
    """The association is let in, and its datagram judged as the server judges it."""

    async def main() -> None:
        found = await explained(config_of(**parts), "associate", asked, "socks5")
        assert (found.reply, found.error) == (0, None)
        assert found.later is not None
        assert found.later.startswith(later), found.later

    run_once(main)
