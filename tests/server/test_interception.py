"""Interception as a server composes it: what is looked into, by which hooks, and what a reload changes of that."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from authorities import authority
from conftest import Run
from destinations import write_authority
from intercepting import Mark, ask, origin
from tabi import Config, ConfigError, Server
from tabi.config import EgressConfig, InterceptConfig, Listen, Log, RuleConfig
from tabi.intercept.datagram_hooks import DatagramHooks
from tabi.intercept.events import DatagramInfo
from tabi.intercept.flow import Flow
from tabi.intercept.quic_filter import QuicFilter
from tabi.intercept.recorder import Recorder
from tabi.intercept.writer import ThreadSink
from tabi.policy.intercepts import InterceptRule
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit
from tabi.server.interception import RuleParts
from tabi.session import Session
from tabi.wire.address import Address

LISTEN = "socks5://127.0.0.1:0"
QUIET = Log(access="none")


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An authority of the user's; and a file with that of origins."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_authority(tmp_path / "tabi")
    path = tmp_path / "origins.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return path


def entry(made: Path, **keys: Any) -> InterceptConfig:
    """One that trusts the origins of tests."""
    return InterceptConfig(trust=str(made), **keys)


def script(path: Path, mark: str) -> str:
    """A script that marks requests."""
    path.write_text(f"class Hook:\n    def request(self, flow):\n        flow.request.headers['X-Mark'] = {mark!r}\n")
    return str(path)


def test_chosen_sessions_are_looked_into_and_others_are_not(run: Run, made: Path) -> None:
    """The client sees a certificate of ours, and the hook the request; elsewhere the origin's own, and nothing."""

    async def main() -> None:
        hook = Mark()
        async with (
            origin() as port,
            Server(LISTEN, intercept=[entry(made, hosts=["localhost"])], hooks=[hook]) as server,
        ):
            ours = await ask(server.url, port)
            assert b"X-Mark: 1\r\n" in ours.octets
            assert hook.urls == [f"https://localhost:{port}/"]
            own = await ask(server.url, port, sni="other.example")
            assert b"X-Mark" not in own.octets
            assert own.certificate != ours.certificate
            assert len(hook.urls) == 1

    run(main)


def test_a_reload_begins_changes_and_ends_it(run: Run, made: Path, tmp_path: Path) -> None:
    """Whatever there was before; the carrier of new sessions is another one only where it must be."""

    async def main() -> None:
        name = script(tmp_path / "hook.py", "script")
        plain = Config(log=QUIET)
        chosen = Config(log=QUIET, intercept=[entry(made, hosts=["localhost"], scripts=[name])])
        exempt = Config(log=QUIET, intercept=[InterceptConfig("pass", hosts=["localhost"]), *chosen.intercept])
        async with origin() as port, Server(LISTEN, config=plain) as server:
            listening = server.config.listen
            for config, marked in ((plain, False), (chosen, True), (exempt, False), (chosen, True), (plain, False)):
                server.reload(Config(log=QUIET, listen=listening, intercept=config.intercept))
                assert (b"X-Mark: script" in (await ask(server.url, port)).octets) == marked
            assert server.parts.carrier is server.parts.relays

    run(main)


def test_a_session_goes_on_as_it_began(run: Run, made: Path, tmp_path: Path) -> None:
    """Also if a reload comes between its choice and its first request, with other hooks."""

    async def main() -> None:
        hook = Mark()
        config = Config(log=QUIET, intercept=[entry(made, hosts=["localhost"])])
        async with origin() as port, Server(LISTEN, config=config, hooks=[hook]) as server:
            rules = server.parts.interception.rules  # type: ignore[union-attr]
            (old,) = list(server.parts.compiled.intercepts or ())
            first = rules.hooks(old)
            server.reload(Config(log=QUIET, listen=server.config.listen, intercept=[entry(made, mismatch="deny")]))
            assert rules.hooks(old) is not first
            assert rules.hooks(old) is rules.hooks(old)
            await ask(server.url, port)
            assert len(hook.urls) == 1

    run(main)


def test_a_reload_that_fails_changes_nothing(run: Run, made: Path, tmp_path: Path) -> None:
    """A script that is broken, or raises; whether there was interception before or not."""

    async def main() -> None:
        (tmp_path / "raises.py").write_text("raise RuntimeError('why')\n")
        good = entry(made, hosts=["localhost"])
        bad = entry(made, scripts=[str(tmp_path / "raises.py")])
        for before in ([], [good]):
            async with origin() as port, Server(LISTEN, config=Config(log=QUIET, intercept=before)) as server:
                first = await ask(server.url, port)
                carriers = list(server.parts.sessions.carriers)
                new = Config(log=QUIET, listen=server.config.listen, intercept=[*before, bad])
                with pytest.raises(ConfigError, match=r"^intercept\[\d\]\.scripts: .*raises\.py:1: RuntimeError: why$"):
                    server.reload(new)
                assert (await ask(server.url, port)).certificate == first.certificate
                assert server.parts.sessions.carriers == carriers

    run(main)


def test_a_script_that_cannot_be_loaded_ends_the_start(run: Run, made: Path, tmp_path: Path) -> None:
    """Before anything listens, and whatever was built is closed."""

    async def main() -> None:
        (tmp_path / "raises.py").write_text("import nowhere\n")
        server = Server(LISTEN, intercept=[entry(made, scripts=[str(tmp_path / "raises.py")])])
        with pytest.raises(ConfigError, match=r"^intercept\[0\]\.scripts: .*raises\.py:1: ModuleNotFoundError"):
            await server.start()
        assert server.closed.is_set()
        of_option = entry(made, name="--intercept", scripts=[str(tmp_path / "raises.py")])  # it has no key of a file
        with pytest.raises(ConfigError, match=r"^--script: .*raises\.py:1: ModuleNotFoundError"):
            await Server(LISTEN, intercept=[of_option]).start()

    run(main)


def test_hooks_without_an_entry_see_http_without_tls(run: Run) -> None:
    """It takes no authority, and TLS passes as it is."""

    async def main() -> None:
        hook = Mark()
        async with origin() as port, Server(LISTEN, hooks=[hook]) as server:
            assert [(one.name, one.tls) for one in server.config.intercept] == [("hooks", False)]
            assert b"X-Mark" not in (await ask(server.url, port)).octets
            assert hook.urls == []

    run(main)


def test_hooks_are_kept_as_long_as_their_entry_is_equal(tmp_path: Path) -> None:
    """Others are let go, with their scripts; their threads end when nobody has them any more."""

    async def main() -> None:
        rules = RuleParts([Mark()])
        first = InterceptRule(0, scripts=(script(tmp_path / "a.py", "a"),))
        second = InterceptRule(1, scripts=(script(tmp_path / "b.py", "b"),))
        rules.take(rules.prepare([first, second, InterceptRule(2, action="pass")]))
        kept, gone = rules.hooks(first), rules.hooks(second)
        assert [len(one.request) for one in (kept, gone)] == [2, 2]
        rules.take(rules.prepare([first]))
        assert rules.hooks(first) is kept
        assert list(rules.scripts.loaded) == list(first.scripts)
        threads = gone.threads
        assert threads.most
        del gone
        gc.collect()
        assert not threads.most
        broken = InterceptRule(3, scripts=(str(tmp_path / "none.py"),))
        with pytest.raises(ConfigError, match=r"^intercept\[3\]\.scripts: "):
            rules.prepare([second, broken])
        assert list(rules.made) == [first]
        assert list(rules.scripts.loaded) == list(first.scripts)
        await rules.aclose()
        assert not kept.threads.most

    asyncio.run(main())


def test_only_what_records_has_a_recorder() -> None:
    """All else need not keep anything of a flow."""

    writer = Recorder(ThreadSink())
    rules = RuleParts((), writer)
    for rule, expected in (
        (InterceptRule(), None),
        (InterceptRule(har="/x.har"), writer),
        (InterceptRule(print=True), writer),
    ):
        assert rules.recorder(rule) is expected


def test_what_is_recorded_is_written_when_a_server_has_ended(run: Run, made: Path, tmp_path: Path) -> None:
    """A thread writes where there is no process for it."""
    har = tmp_path / "flows.har"

    async def main() -> None:
        entries = [entry(made, hosts=["localhost"], har=str(har))]
        async with origin() as port, Server(LISTEN, intercept=entries) as server:
            for _ in range(3):
                await ask(server.url, port)

    run(main)
    entries = json.loads(har.read_bytes())["log"]["entries"]
    assert [one["response"]["status"] for one in entries] == [200] * 3
    assert entries[0]["response"]["content"]["text"].startswith("GET / HTTP/1.1")


@pytest.mark.parametrize("sniffs", [False, True])
def test_a_bad_certificate_is_seen_where_sessions_are_sniffed_too(run: Run, sniffs: bool) -> None:
    """To see it the destination is opened once more, whichever carrier is in front."""

    async def main() -> None:
        config = Config(listen=[Listen(LISTEN, sniff=sniffs)], log=QUIET, intercept=[InterceptConfig()])
        closed: list[str | None] = []
        async with (
            origin() as port,
            Server(config=config, on_close=lambda session: closed.append(session.error)) as server,
        ):
            assert b"200 OK" in (await ask(server.url, port)).octets
        assert closed == [None]

    run(main)


def test_networks_are_those_of_the_destination(run: Run, made: Path) -> None:
    """That was dialled; through a proxy the address that was dialled is the proxy's, and says nothing."""

    async def main() -> None:
        near = entry(made, hosts=["127.0.0.0/8"])
        hook = Mark()
        async with origin() as port, Server(LISTEN) as far:
            through = Config(log=QUIET, egress={"far": EgressConfig(url=far.url)}, rule=[RuleConfig(via="far")])
            for config, host, chosen in (
                (Config(log=QUIET), "localhost", True),
                (Config(log=QUIET), "127.0.0.1", True),
                (through, "localhost", False),
                (through, "127.0.0.1", True),
            ):
                async with Server(LISTEN, config=config, intercept=[near], hooks=[hook]) as server:
                    found = await ask(server.url, port, host=host)
                    assert (b"X-Mark" in found.octets) == chosen, (config.rule, host)

    run(main)


def test_one_that_intercepts_behind_another_and_in_front_of_one(run: Run, made: Path) -> None:
    """SOCKS5 in, TLS opened, SOCKS5 out; and the same once more behind it, which trusts the first."""

    async def main() -> None:
        inner, outer = Mark("inner"), Mark("outer")
        ours = Path(made.parent, "tabi", "ca.crt")
        async with (
            origin() as port,
            Server(LISTEN, intercept=[entry(made, hosts=["localhost"])], hooks=[inner]) as first,
            Server(
                LISTEN,
                config=Config(log=QUIET, egress={"far": EgressConfig(url=first.url)}, rule=[RuleConfig(via="far")]),
                intercept=[{"hosts": ["localhost"], "trust": str(ours)}],
                hooks=[outer],
            ) as second,
        ):
            found = await ask(second.url, port)
            assert b"X-Mark: inner\r\n" in found.octets
            assert [len(hook.urls) for hook in (inner, outer)] == [1, 1]

    run(main)


def test_the_page_of_the_authority_is_there_while_it_signs(run: Run, made: Path) -> None:
    """A reload brings it, and takes it away."""

    async def main() -> None:
        plain = Config(log=QUIET, listen=[Listen("http://127.0.0.1:0")])
        signs = msgspec.structs.replace(plain, intercept=[entry(made)])
        unsigned = msgspec.structs.replace(plain, intercept=[InterceptConfig(tls=False)])
        async with Server(config=plain) as server:
            for config, expected in ((signs, True), (unsigned, False), (signs, True), (plain, False)):
                server.reload(config)
                for one in (server.parts.connect, server.parts.forwarding):
                    assert (one.gate is server.parts.gate) != expected

    run(main)


def test_nothing_of_it_is_imported_without_an_entry() -> None:
    """Neither by a server that runs nor by the command line."""
    text = (
        "import asyncio, sys, tabi, tabi.cli.serve, tabi.cli.check\n"
        "async def main():\n"
        "    async with tabi.Server('mixed://127.0.0.1:0'):\n"
        "        pass\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('tabi.intercept') or 'cryptography' in name])\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Slow:
    """A hook that holds up the loop."""

    def request(self, flow: Flow) -> None:
        """Wait as nobody should."""
        time.sleep(0.15)


class Shout(DatagramInspector):
    """An inspector of a program."""

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """Send what was never said."""
        emit(datagram.payload.upper())


class Watch:
    """A hook that sees datagrams."""

    def udp_data(self, datagram: DatagramInfo) -> None:
        """Leave it as it is."""


def test_datagrams_are_inspected_only_where_something_wants_them(run: Run, made: Path, tmp_path: Path) -> None:
    """Hooks, as long as one of them wants to see datagrams; behind the filter for QUIC, before what a program has."""
    program = Shout()
    name = script(tmp_path / "hook.py", "script")
    who = Session(1, LISTEN, Address("client.test", 1), 0.0)
    who.command = "associate"

    async def main() -> None:
        for hooks, keys, expected in (
            ([], {}, [Shout]),
            ([Watch()], {}, [DatagramHooks, Shout]),
            ([Watch()], {"quic": "refuse"}, [QuicFilter, DatagramHooks, Shout]),
            ([], {"quic": "refuse"}, [QuicFilter, Shout]),
            ([], {"scripts": [name]}, [DatagramHooks, Shout]),
        ):
            config = Config(log=QUIET, intercept=[InterceptConfig(tls=False, **keys)])
            async with Server(LISTEN, config=config, hooks=hooks, datagrams=program) as server:
                found: Any = server.parts.associations.inspector
                kinds = []
                while found is not None:
                    kinds.append(type(found))
                    found = getattr(found, "inner", None)
                assert kinds == expected
                if keys.get("scripts"):
                    inspector: Any = server.parts.associations.inspector
                    assert inspector.begin(who) == program.inspect
                    (one,) = inspector.hooks.values()
                    one.replace([Watch()])  # as a script that has changed
                    assert inspector.begin(who) != program.inspect
                server.reload(Config(log=QUIET, listen=server.config.listen))
                assert (server.parts.associations.inspector is program) == (not hooks)

    run(main)


def test_a_hook_that_holds_up_the_loop_is_named(run: Run, made: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the watchdog's line, with its time."""

    async def main() -> None:
        async with origin() as port, Server(LISTEN, intercept=[entry(made)], hooks=[Slow()]) as server:
            await ask(server.url, port)

    run(main)
    assert re.search(r"most of it for hook Slow\.request \(1\d\d ms\)", caplog.text)
