"""Entries by the name in a client's hello, and what the log says of TLS that nobody opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import Run
from distorting import distort, distorting, entry_of
from interceptions import OK, origin
from molding import curl, molding
from tabi import Session
from tabi.distort.by_hello import ByHello
from tabi.policy.distorts import Distorts
from tabi.wire import parse_address

ENTRIES = {"address": {"hosts": ["192.0.2.1"]}, "name": {"hosts": ["*.test"]}, "any": {}, "no": {"hosts": ["no.test"]}}


def session() -> Session:
    """Of a client that asks for an address."""
    made = Session(1, "test", parse_address("192.0.2.9:1"), 0.0)
    made.command, made.destination = "connect", parse_address("192.0.2.1:443")
    return made


def entries(**keys: Any) -> Distorts:
    """Those of ENTRIES."""
    return Distorts(
        distort(name, number=number, **{**more, **keys}) for number, (name, more) in enumerate(ENTRIES.items())
    )


def test_the_name_of_the_hello_chooses_too(run_once: Run, tmp_path: Path) -> None:
    """A client that asks the proxy for an address, and names the host in its hello, is matched by that name."""

    async def main() -> None:
        entry = {"hosts": ["localhost"], "headers": {"set": {"X-Named": "1"}}}
        async with (
            origin(OK, OK) as one,
            molding(tmp_path, entry, intercept=[{"ports": [one.port]}]) as server,
        ):
            where = ("--connect-to", f"::127.0.0.1:{one.port}", "-k")
            assert (await curl(server, f"https://localhost:{one.port}/", *where)).body == b"hello"
            assert (await curl(server, f"https://third.test:{one.port}/", *where)).body == b"hello"
            assert [b"X-Named" in head for head in one.heads] == [True, False]

    run_once(main)


def test_an_entry_is_drawn_once_by_either_name(run_once: Run) -> None:
    """In the order of the file. Those that have gone are not among the chosen, new ones are asked."""

    async def main() -> None:
        async with distorting(entry_of({"latency": 1}, hosts=["no.test"])) as it:
            by_hello, one = ByHello(it.distortion), session()
            it.distortion.take(entries(probability=0.5, seed=1))
            found = [[drawn.entry.distort.label for drawn in by_hello.chosen(session(), "a.test")] for _ in range(40)]
            assert {label for labels in found for label in labels} == {"address", "name", "any"}
            assert all(labels == [name for name in ENTRIES if name in labels] for labels in found)
            drawn = by_hello.chosen(one, "a.test")
            assert all(by_hello.chosen(one, "a.test") == drawn for _ in range(9))
            assert {entry.matched for entry in it.distortion.entries.values()} == {41, 0}
            it.distortion.take(entries())
            for name, labels in (("a.test", ["address", "name", "any"]), ("192.0.2.1", ["address", "any"])):
                other = session()
                assert [drawn.entry.distort.label for drawn in by_hello.chosen(other, name)] == labels
                assert [drawn.entry.distort.label for drawn in by_hello.chosen(other, None)][-1] == "any"
                other.over()
            assert one in by_hello.named
            assert [drawn.entry.distort.label for drawn in by_hello.chosen(one, "a.test")] == ["address", "name", "any"]
            one.over()
            assert one not in by_hello.named

    run_once(main)


def test_the_log_says_once_what_does_not_act(run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of each entry that acts on HTTP or on fingerprints, where a session's TLS passes: without an [[intercept]], with
    one for others, and with an exemption. Nothing is said of HTTP without TLS, which is looked into, nor of faults on
    octets; a fingerprint alone has no plain HTTP looked into."""

    async def main() -> None:
        names: list[dict[str, Any]] = [
            {"name": "tls", "tls": "mirror"},
            {"name": "fields", "headers": {"set": {"X-Entry": "1"}}},
            {"name": "status", "fault": {"status": 503}, "commands": ["connect"]},
            {"name": "late", "fault": {"latency": 0.001}},
            {"name": "other", "strip_cookies": True, "hosts": ["other.test"]},
        ]
        interceptions: list[list[dict[str, Any]]] = [
            [],
            [{"hosts": ["third.test"]}],
            [{"hosts": ["localhost"], "action": "pass"}, {}],
            [{"tls": False}],
        ]
        async with origin(*[OK] * 20) as one, origin(OK, OK, plain=True) as plain:
            for intercept in interceptions:
                caplog.clear()
                async with molding(tmp_path, *names, intercept=intercept) as server:
                    for _ in range(2):
                        done = await curl(server, f"https://localhost:{one.port}/", "-k")
                        assert done.body == b"hello", done
                said = [record.getMessage() for record in caplog.records if "no [[intercept]]" in record.getMessage()]
                where = f"localhost:{one.port}: no [[intercept]] opens its TLS"
                assert said == [f"{name} does not act on {where}" for name in ("tls", "fields", "status")]
            caplog.clear()
            over: list[Session] = []
            async with molding(tmp_path, names[0], over=over) as server:
                for options in ((), ("--proxytunnel",)):
                    assert (await curl(server, f"http://localhost:{plain.port}/", *options)).body == b"hello"
            assert [session.intercepted for session in over] == [None, None]
            assert not [record for record in caplog.records if record.name == "tabi"]

    run_once(main)
