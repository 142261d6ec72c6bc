"""`Flow.reroute` in a running server: another server answers, by the rules of the client, and nothing stays behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import tabi
from authorities import authority
from conftest import Run
from destinations import write_authority
from intercepting import answer, ask, origin
from support import target
from tabi import Config, Server
from tabi.config import InterceptConfig, LimitsConfig, Log, RuleConfig

LISTEN = "mixed://127.0.0.1:0"


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An authority of the user's; and a file with that of origins."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_authority(tmp_path / "tabi")
    path = tmp_path / "origins.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return path


class Elsewhere:
    """A hook that has another server asked."""

    def __init__(self, url: str, via: str | None = None) -> None:
        self.url = url
        self.via = via
        self.errors: list[str | None] = []

    def request(self, flow: tabi.Flow) -> None:
        flow.request.headers["X-Rerouted"] = "1"
        flow.reroute(self.url, via=self.via)

    def flow_end(self, flow: tabi.Flow) -> None:
        self.errors.append(flow.error)


class ElsewhereLater(Elsewhere):
    """The same, async."""

    async def request(self, flow: tabi.Flow) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().request(flow)


def config(made: Path, **keys: Any) -> Config:
    """Everything is looked into."""
    return Config(log=Log(access="none"), intercept=[InterceptConfig(trust=str(made))], **keys)


@pytest.mark.parametrize("hook", [Elsewhere, ElsewhereLater])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_another_server_answers(run: Run, made: Path, hook: type[Elsewhere], scheme: str) -> None:
    """With TLS and without, whether or not the hook waits; the destination itself hears nothing of the request."""

    async def main() -> None:
        async with target(answer) as plain, origin() as secure:
            url = f"{scheme}://localhost:{plain if scheme == 'http' else secure}/other?x=1"
            one = hook(url)
            async with origin() as port, Server(LISTEN, config=config(made), hooks=[one]) as server:
                found = (await ask(server.url, port)).octets
                assert b"GET /other?x=1 HTTP/1.1\r\n" in found
                assert b"X-Rerouted: 1\r\n" in found
            assert one.errors == [None]

    run(main)


def test_rules_decide_on_the_other_server(run: Run, made: Path) -> None:
    """A rule that denies it is an answer of 502, and the flow has the reason."""

    async def main() -> None:
        async with target(answer) as other:
            hook = Elsewhere(f"http://localhost:{other}/")
            denies = config(made, rule=[RuleConfig(ports=[str(other)], action="deny", name="no")])
            async with origin() as port, Server(LISTEN, config=denies, hooks=[hook]) as server:
                assert (await ask(server.url, port)).octets.startswith(b"HTTP/1.1 502 ")
            assert len(hook.errors) == 1
            assert hook.errors[0] is not None
            assert "reroute" in hook.errors[0]

    run(main)


def test_a_limit_counts_it_while_it_runs(run: Run, made: Path) -> None:
    """Its lease is given back when it is over: with room for two connections one more request is possible each time."""

    async def main() -> None:
        async with target(answer) as other:
            hook = Elsewhere(f"http://localhost:{other}/again")
            limited = config(made, limits=LimitsConfig(connections=2))
            async with origin() as port, Server(LISTEN, config=limited, hooks=[hook]) as server:
                for _ in range(4):
                    assert b"GET /again HTTP/1.1\r\n" in (await ask(server.url, port)).octets
            assert hook.errors == [None] * 4

    run(main)


def test_an_egress_by_name(run: Run, made: Path) -> None:
    """``via`` names the way out; one that does not exist is an error of the flow."""

    async def main() -> None:
        async with target(answer) as other:
            for via, good in (("direct", True), ("nowhere", False)):
                hook = Elsewhere(f"http://localhost:{other}/", via)
                async with origin() as port, Server(LISTEN, config=config(made), hooks=[hook]) as server:
                    found = (await ask(server.url, port)).octets
                    assert found.startswith(b"HTTP/1.1 200" if good else b"HTTP/1.1 502"), found

    run(main)
