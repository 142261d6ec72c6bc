"""What is done with flows: whose they are, which host they name, and what is recorded."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Run
from tabi.intercept import inspection
from tabi.intercept.events import Sent
from tabi.intercept.exchange import message_of
from tabi.intercept.flow import Flow
from tabi.intercept.headers import Headers
from tabi.intercept.hooks import Hooks
from tabi.intercept.inspection import Inspection, Origin, Recording, numbers
from tabi.intercept.record import Record
from tabi.policy.intercepts import InterceptRule
from tabi.policy.limits import DOWN, UP
from tabi.session import Session
from tabi.wire.address import Address, parse_host
from tabi.wire.http_origin import decode_origin_response


def make_session() -> Session:
    """A session."""
    session = Session(0xAB, "socks5://127.0.0.1:1080", Address(parse_host("192.0.2.1"), 5000), 0.0)
    session.user, session.via = "alice", "direct"
    session.address = Address(parse_host("192.0.2.9"), 443)
    session.destination = Address("a.example", 443)
    return session


async def no_fetch(*asked: Any) -> Any:
    """Nobody is asked."""
    raise AssertionError


def inspect(
    host: str = "a.example", mismatch: Any = "log", hooks: Hooks | None = None, recorder: Any = None
) -> Inspection:
    """How a session is looked into."""
    rule = InterceptRule(name="web", mismatch=mismatch)
    tls: Any = SimpleNamespace(sni="a.example", ja4="t13d", sent=Sent("3", "4", "mirror", "ciphers"))
    origin = Origin("https", parse_host(host), 443)
    return Inspection(make_session(), rule, hooks or Hooks(), recorder, origin, tls, no_fetch)


RIGHT = [b"a.example", b"A.EXAMPLE:443", b"a.example.", b"a.example:8443", None]
WRONG = [b"b.example", b"a.example.b", b"127.0.0.1", b"[::1]:443"]
ODD = [b"a.example:x", b"a@b", b"", b"a b"]


def test_hosts() -> None:
    """Names are compared as names; what is no host may be another one to whoever reads it."""
    for host in RIGHT:
        assert not inspect(mismatch="deny").is_misdirected(host)
    for host in WRONG:
        assert inspect().is_misdirected(host)
    for host in ODD:
        assert inspect(mismatch="deny").is_misdirected(host)
        assert not inspect().is_misdirected(host)


def test_hosts_of_targets() -> None:
    """A URI names one too; a path with one in it does not."""
    inspection = inspect(mismatch="deny")
    for target in ("/", "*", "/http://b.example/", "http://a.example", "https://A.example/?x", "a.example:443"):
        assert not inspection.is_misdirected(b"a.example", target)
    for target in ("http://b.example/", "HTTPS://b.example?x", "http://a.example@b.example/", "http:///"):
        assert inspection.is_misdirected(b"a.example", target)


def test_connections_without_a_name() -> None:
    """To an address any name may be right."""
    for host in (*RIGHT, *WRONG, *ODD):
        assert not inspect("192.0.2.9", "deny").is_misdirected(host)


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """For a connection."""
    inspection = inspect()
    with caplog.at_level(logging.WARNING, "tabi"):
        for host in (b"b.example", b"c.example", b"a.example"):
            inspection.is_misdirected(host)
    assert [record.getMessage() for record in caplog.records] == [
        "ab: a request for b.example on a connection to a.example"
    ]


def test_origins() -> None:
    """The port is named where it is not the usual one."""
    assert Origin("https", "a.example", 443).authority == "a.example"
    assert Origin("http", "a.example", 80).authority == "a.example"
    assert Origin("http", "a.example", 443).authority == "a.example:443"
    assert Origin("https", parse_host("::1"), 8443).authority == "[::1]:8443"


def test_who_wants_to_see_flows() -> None:
    """A recorder, or hooks of flows; hooks of connections do not."""

    class OfFlows:
        def flow_end(self, flow: Flow) -> None:
            """Be there."""

    class OfConnections:
        def tcp_data(self, connection: Any, direction: str, data: bytes) -> None:
            """Be there."""

    assert not inspect().sees
    assert inspect(hooks=Hooks([OfFlows()])).sees
    assert not inspect(hooks=Hooks([OfConnections()])).sees
    assert inspect(recorder=object()).sees


class Keeps:
    """A recorder."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record, rule: InterceptRule) -> None:
        assert rule.name == "web"
        self.records.append(record)


@pytest.mark.parametrize("now", [False, True])
def test_the_end_of_a_flow(run: Run, now: bool) -> None:
    """Hooks are told, then it is recorded, with as much content as the entry says."""
    told: list[str] = []

    class Hook:
        def error(self, flow: Flow) -> None:
            told.append(f"error {flow.error}")

        def flow_end(self, flow: Flow) -> None:
            told.append("end")

    async def main() -> None:
        keeps = Keeps()
        inspection = inspect(hooks=Hooks([Hook()]), recorder=keeps)
        inspection.began_http2("1:2|3|0|m")
        for error in (None, "broken"):
            flow = inspection.make_flow("GET", "/b?c", "HTTP/1.1", Headers(b"\r\nA:  b "))
            recording = Recording(3)
            recording.note(UP, b"he")
            recording.note(UP, b"llo")
            recording.note(DOWN, b"x")
            recording.mark(1)
            if error is None:
                found = decode_origin_response(b"HTTP/1.0 404 No\r\nC: d\r\n\r\n", "GET")
                assert found is not None
                flow.response = message_of(found[0])
                recording.mark(2)
            flow.error = error
            flow.tags |= {"b", "a"}
            if now:
                inspection.ended_now(flow, recording)
            else:
                await inspection.ended(flow, recording)
        assert told == ["end", "error broken", "end"]
        whole, broken = keeps.records
        assert (whole.method, whole.url, whole.version) == ("GET", "https://a.example/b?c", "HTTP/1.1")
        assert (whole.request_fields, whole.request_body, whole.request_size) == ([(b"A", b"b")], b"hel", 5)
        assert (whole.status, whole.reason, whole.response_version) == (404, "No", "HTTP/1.0")
        assert (whole.response_fields, whole.response_body, whole.response_size) == ([(b"C", b"d")], b"x", 1)
        assert (whole.client, whole.user, whole.rule, whole.sni, whole.ja4) == (
            "192.0.2.1:5000",
            "alice",
            "web",
            "a.example",
            "t13d",
        )
        assert (whole.sent_ja3, whole.sent_ja4, whole.sent_http2) == ("3", "4", "1:2|3|0|m")
        assert (whole.fingerprint, whole.fingerprint_differs) == ("mirror", "ciphers")
        assert (whole.address, whole.via, whole.tags, whole.error) == ("192.0.2.9", "direct", ["a", "b"], None)
        assert whole.send is not None
        assert whole.wait is not None
        assert whole.receive is not None
        assert (broken.status, broken.error, broken.wait, broken.response_fields) == (0, "broken", None, [])
        assert whole.id != broken.id

    run(main)


def test_names_of_flows_are_those_of_one_process() -> None:
    """Workers are forked, and write into one file: a child begins with another prefix."""
    here = numbers.next()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, numbers.next().encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        there = pipe.read()
    os.waitpid(pid, 0)
    assert here.partition("-")[0] == numbers.next().partition("-")[0]
    assert there.partition("-")[0] != here.partition("-")[0]


def test_what_is_kept_of_all_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many flows at once have a bound together; what is over makes room."""
    monkeypatch.setattr(Recording, "of_all", 0)
    monkeypatch.setattr(inspection, "MOST_KEPT", 10)
    one, two = Recording(8), Recording(8)
    one.note(UP, b"12345")
    one.note(UP, b"67890")
    two.note(DOWN, b"12345")
    assert (bytes(one.bodies[0]), one.sizes) == (b"12345678", [10, 0])
    assert (bytes(two.bodies[1]), two.sizes) == (b"12", [0, 5])
    del one
    two.note(DOWN, b"67890123")
    assert bytes(two.bodies[1]) == b"12678901"
    del two
    assert Recording.of_all == 0
