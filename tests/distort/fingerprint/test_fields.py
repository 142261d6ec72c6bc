"""Fields of HTTP/1 in a browser's order and case."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conftest import Run
from fingerprints import OK, destination, showing
from intercepting import Mark
from interceptions import Slow, hooks_of, origin, talk
from tabi.distort.fingerprint.fields import FieldOrder, ordered, places_of, spelled
from tabi.distort.fingerprint.presets import find_profile
from tabi.intercept.hooks import Hooks

PLACES = places_of(find_profile("chrome:152"))

CURL = [
    "GET / HTTP/1.1",
    "user-agent: curl",
    "x-one: 1",
    "ACCEPT: */*",
    "host: localhost",
    "cookie: a=1",
    "sec-ch-ua: x",
    "X-One: 2",
    "accept-encoding: gzip",
]
SENT = [
    "GET / HTTP/1.1",
    "Host: localhost",
    "sec-ch-ua: x",
    "User-Agent: curl",
    "Accept: */*",
    "Accept-Encoding: gzip",
    "x-one: 1",
    "cookie: a=1",
    "X-One: 2",
]
"""As Chrome has them. What it does not have on every request is behind them, as it came."""


def head(lines: list[str]) -> bytes:
    """A request."""
    return "\r\n".join([*lines, "", ""]).encode()


def test_order_and_case() -> None:
    """Host is the first; fields with one name stay in their order, and values as they are."""
    fields = [(name.encode(), value.encode()) for name, value in (line.split(": ") for line in CURL[1:])]
    found = spelled(ordered(fields, PLACES), PLACES)
    assert [f"{name.decode()}: {value.decode()}" for name, value in found] == SENT[1:]
    twice = [(b"accept", b"1"), (b"b", b"2"), (b"Accept", b"3")]
    assert spelled(ordered(twice, PLACES), PLACES) == [(b"Accept", b"1"), (b"Accept", b"3"), (b"b", b"2")]
    assert ordered([], PLACES) == []


@pytest.mark.parametrize("engine", ["passing", "task"])
def test_a_request_has_the_profile_s_order(run_once: Run, tmp_path: Path, engine: str) -> None:
    """Each of a connection, whether the relay or the task carries it."""

    async def main() -> None:
        shows = showing(tmp_path, *hooks_of(engine), profile="chrome:152")
        async with shows as proxy, destination(None, "http/1.1") as there, proxy.tls(there.port) as streams:
            for _ in range(2):
                await talk(streams, head(CURL), OK)
            assert there.inside[0] == head(SENT) * 2

    run_once(main)


def test_without_a_profile_heads_pass_octet_for_octet(run_once: Run, tmp_path: Path) -> None:
    """A mirror changes nothing in HTTP/1."""

    async def main() -> None:
        shows = showing(tmp_path, tls="mirror")
        async with shows as proxy, destination(None, "http/1.1") as there, proxy.tls(there.port) as streams:
            await talk(streams, head(CURL), OK)
            assert there.inside[0] == head(CURL)

    run_once(main)


def test_what_hooks_add_is_arranged_too(run_once: Run, tmp_path: Path) -> None:
    """The profile is behind all hooks."""

    class Adds:
        def request(self, flow: object) -> None:
            flow.request.headers["accept"] = "text/html"  # type: ignore[attr-defined]

    async def main() -> None:
        shows = showing(tmp_path, Adds(), profile="chrome:152")
        async with shows as proxy, destination(None, "http/1.1") as there, proxy.tls(there.port) as streams:
            await talk(streams, head(["GET / HTTP/1.1", "X: 1", "Host: localhost"]), OK)
            assert there.head == ["GET / HTTP/1.1", "Host: localhost", "Accept: text/html", "X: 1"]

    run_once(main)


def test_plain_http_has_it_too(run_once: Run, tmp_path: Path) -> None:
    """On a connection of its own, and where the proxy itself is asked."""

    async def main() -> None:
        shows = showing(tmp_path, profile="chrome:152")
        async with shows as proxy, origin(OK, OK, plain=True) as there:
            async with proxy.plain(there.port) as streams:
                await talk(streams, head(CURL), OK)
            assert there.heads[0] == head(SENT)

            reader, writer = await asyncio.open_connection(str(proxy.address.host), proxy.address.port)
            writer.write(head([f"GET http://localhost:{there.port}/ HTTP/1.1", *CURL[1:]]))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
            lines = there.heads[1].decode().split("\r\n")
            assert [line for line in lines if line.lower().startswith(("user-agent", "accept"))] == SENT[3:6]

    run_once(main)


def test_the_hooks_of_others_stay_as_they_are() -> None:
    """A session with a profile has hooks of its own."""
    hooks, order = Hooks([Mark()]), FieldOrder(PLACES)
    found = order.around(hooks)
    assert len(found.request) == len(hooks.request) + 1
    assert found.threads is hooks.threads
    assert found.of_flows
    assert len(Hooks([Slow()]).request) == 1
