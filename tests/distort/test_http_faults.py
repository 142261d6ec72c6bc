"""Faults of HTTP as curl sees them: by HTTP/1.1 in the clear and inside TLS, forwarded, and by HTTP/2."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

from conftest import Run
from doubles import until
from h2_net import origin as h2_origin
from interceptions import OK, origin
from molding import config_of, curl, molding
from support import reset_on_close
from tabi import Server
from tabi.distort.draws import Drawn, Entry
from tabi.distort.http_faults import NO_FAULTS, Part, faults_of
from tabi.distort.local_files import Pieces
from tabi.errors import ConfigError
from tabi.intercept.flow import Truncate, Truncated
from tabi.policy.distorts import Distort
from tabi.policy.faults import Fault
from tabi.policy.rules import Texts, make_rule
from tabi.policy.schedule import Cycle, Schedule

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nhello"
TUNNEL = "--proxytunnel"


def drawn(fault: Fault, **more: Any) -> Drawn:
    """An entry with a fault, that began at 0 and has drawn a session."""
    return Drawn(Entry(Distort(make_rule(0, "deny", Texts()), "one", fault=fault, **more), 0.0, lambda: 0.0), 0)


def test_faults_of_several_entries() -> None:
    """Delays add up, of all else the last counts; those that do not act by their schedule are left out."""
    first, second = drawn(Fault(status=500, answer_delay=1.0)), drawn(Fault(truncate=7, status=503, answer_delay=0.5))
    assert faults_of([first, second], 0.0)[:2] == (503, (first.entry, second.entry))
    part = faults_of([first, second], 0.0).part
    assert part is not None
    assert part == (7, "one: cut short behind 7 octets")
    assert faults_of([drawn(Fault(refuse=5))], 0.0) == NO_FAULTS
    cycle = drawn(Fault(status=500), schedule=Schedule(None, None, Cycle.parse("3 s good, 2 s gone")))
    assert [faults_of([cycle], now).status for now in (1.0, 4.0, 6.0)] == [None, 500, None]


class Words:
    """Content in two pieces."""

    async def read(self, at: int, end: int) -> bytes:
        """See `FileContent`."""
        return b"hello " if at == 0 else b"hello you"[at:]


def test_part_of_content(run_once: Run) -> None:
    """All that is shorter passes; of what is longer just so much."""

    async def main() -> None:
        for octets, expected in ((9, b"hello you"), (8, b"hello yo"), (6, b"hello "), (0, b"")):
            got, cut, content = b"", False, Pieces(None, range(9))
            content.file = Words()  # type: ignore[assignment]
            try:
                async for piece in Part(content, Truncate(octets, "why")):
                    got += piece
            except Truncated as exc:
                cut = str(exc) == "why"
            assert (got, cut) == (expected, octets < 9)

    run_once(main)


@pytest.mark.parametrize("options", [(), (TUNNEL,)], ids=["forwarded", "tunnel"])
@pytest.mark.parametrize(
    ("answer", "octets", "code", "body"),
    [
        (OK, 3, 18, b"hel"),
        (OK, 1, 18, b"h"),
        (OK, 5, 0, b"hello"),
        (OK, 6, 0, b"hello"),
        (CHUNKED, 4, 18, b"hell"),
        (CHUNKED, 5, 0, b"hello"),
        (ENDLESS, 2, 56, b"he"),
    ],
)
def test_truncated_answers(
    run_once: Run, tmp_path: Path, options: tuple[str, ...], answer: bytes, octets: int, code: int, body: bytes
) -> None:
    """curl misses what is left of the content (18); where only the end of the connection says it, that is a reset
    (56)."""

    async def main() -> None:
        async with (
            origin(answer, plain=True, stays=answer is not ENDLESS) as one,
            molding(tmp_path, {"name": "cut", "fault": {"truncate": octets}}) as server,
        ):
            done = await curl(server, f"http://localhost:{one.port}/", *options)
            assert done.code == code, done
            assert done.body == body or code == 56
            assert done.head.startswith(b"HTTP/1.1 200 OK")

    run_once(main)


def test_truncated_http2_and_tls(run_once: Run, tmp_path: Path) -> None:
    """By HTTP/2 the stream is reset, and the connection goes on; inside TLS an answer of HTTP/1.1 lacks the rest."""

    async def main() -> None:
        entry = {"fault": {"truncate": 100_000}}
        intercept = [{"hosts": ["localhost"]}]
        big = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"b" * 1_000_000
        async with (
            h2_origin() as port,
            origin(big) as one,
            molding(tmp_path, entry, intercept=intercept) as server,
        ):
            url = f"https://localhost:{port}"
            done = await curl(server, f"{url}/big", "--http2", folder=tmp_path)
            assert (done.code, len(done.body)) == (92, 100_000), done.said
            assert "INTERNAL_ERROR" in done.said
            assert (await curl(server, f"{url}/", "-d", "short", folder=tmp_path)).body == b"short"
            done = await curl(server, f"https://localhost:{one.port}/", folder=tmp_path)
            assert (done.code, len(done.body)) == (18, 100_000), done.said

    run_once(main)


def test_truncated_files_and_other_servers(run_once: Run, tmp_path: Path) -> None:
    """What answers in the destination's place is cut short as well."""
    (tmp_path / "file").write_bytes(b"f" * 1000)

    async def main() -> None:
        fault = {"fault": {"truncate": 10}}
        async with (
            origin(OK, plain=True) as one,
            origin(CHUNKED, plain=True) as other,
            h2_origin() as port,
        ):
            for more in ({"map_local": "file"}, {"body": "file"}, {"map_remote": f"http://other.test:{other.port}"}):
                entry = {**fault, **more, "hosts": ["localhost"]}
                if "map_remote" in more:
                    entry["fault"] = {"truncate": 2}
                async with molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server:
                    done = await curl(server, f"http://localhost:{one.port}/", TUNNEL)
                    assert (done.code, done.body) == (18, b"he" if "map_remote" in more else b"f" * 10), (more, done)
                    if "map_remote" not in more:
                        done = await curl(server, f"https://localhost:{port}/", folder=tmp_path)
                        assert (done.code, done.body) == (92, b"f" * 10), (more, done)

    run_once(main)


@pytest.mark.parametrize("options", [(), (TUNNEL,)], ids=["forwarded", "tunnel"])
def test_a_status_in_the_destinations_place(run_once: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The destination is not asked; HEAD has no content, and the connection goes on."""

    async def main() -> None:
        async with origin(OK, plain=True) as one, molding(tmp_path, {"fault": {"status": 503}}) as server:
            url = f"http://localhost:{one.port}/"
            done = await curl(server, url, url, *options, "-d", "posted")
            assert (done.code, done.said) == (0, "")
            assert done.head.startswith(b"HTTP/1.1 503 Service Unavailable")
            assert done.body.startswith(b"503 Service Unavailable\nHTTP/1.1 503 ")
            done = await curl(server, url, *options, "-I")
            assert (done.code, done.body) == (0, b"")
            assert one.heads == []

    run_once(main)


def test_a_status_by_http2(run_once: Run, tmp_path: Path) -> None:
    """The same inside TLS."""

    async def main() -> None:
        async with h2_origin() as port:
            entry = {"fault": {"status": 429, "answer_delay": 0.05}}
            async with molding(tmp_path, entry, intercept=[{"hosts": ["localhost"]}]) as server:
                began = monotonic()
                done = await curl(server, f"https://localhost:{port}/", folder=tmp_path)
                assert monotonic() - began >= 0.05
                assert done.head.startswith(b"HTTP/2 429")
                assert done.body == b"429 Too Many Requests\n"

    run_once(main)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "h2"])
def test_late_answers(run_once: Run, tmp_path: Path, secure: bool) -> None:
    """Two entries: an answer is late by both together, the destination's own and a local one."""
    (tmp_path / "file").write_text("file")

    async def main() -> None:
        entries: list[dict[str, Any]] = [{"fault": {"answer_delay": 0.1}}, {"fault": {"answer_delay": "100ms"}}]
        async with origin(OK, plain=True) as one, h2_origin() as port:
            url = f"https://localhost:{port}/" if secure else f"http://localhost:{one.port}/"
            for more in ([], [{"map_local": "file"}]):
                intercept = [{"hosts": ["localhost"]}]
                async with molding(tmp_path, *entries, *more, intercept=intercept) as server:
                    began = monotonic()
                    done = await curl(server, url, "-d", "hello", folder=tmp_path)
                    assert monotonic() - began >= 0.2
                    assert done.body == (b"file" if more else b"hello")

    run_once(main)


@pytest.mark.parametrize("how", ["removed", "changed"])
def test_a_late_answer_goes_on_when_its_fault_is_gone(run_once: Run, tmp_path: Path, how: str) -> None:
    """At once, by HTTP/1.1 and HTTP/2; also where the same answer would wait for another fault of that kind next."""

    async def main() -> None:
        entry = {"headers": {"set": {"X-New": "1"}}}
        intercept = [{"hosts": ["localhost"]}]
        async with (
            origin(OK, OK, plain=True) as one,
            h2_origin() as port,
            molding(tmp_path, entry, intercept=intercept) as server,
        ):
            http, https = f"http://localhost:{one.port}/", f"https://localhost:{port}/"
            first, second = server.set_fault(answer_delay=3000), server.set_fault(answer_delay=3000)
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(curl(server, http, *options)) for options in ((), (TUNNEL,))]
                asked.append(group.create_task(curl(server, https, "-d", "hello", folder=tmp_path)))
                await until(lambda: first.entry is not None and len(first.entry.resting) == 3)
                for fault in (second, first):
                    if how == "removed":
                        fault.remove()
                    else:
                        fault.change(answer_delay=None, truncate=100)
            assert [task.result().body for task in asked] == [b"hello"] * 3

    run_once(main)


@pytest.mark.parametrize("tunnel", [False, True], ids=["forwarded", "tunnel"])
def test_a_client_that_leaves_a_late_answer(run_once: Run, tmp_path: Path, tunnel: bool) -> None:
    """Its session ends with its reset, and does not wait for the delay."""

    async def main() -> None:
        async with origin(OK, plain=True) as one, molding(tmp_path, {"fault": {"answer_delay": 3000}}) as server:
            address = server.addresses[0]
            with socket.create_connection((str(address.host), address.port)) as client:
                reset_on_close(client)
                reader, writer = await asyncio.open_connection(sock=client)
                where = b"localhost:%d" % one.port
                if tunnel:
                    writer.write(b"CONNECT %b HTTP/1.1\r\nHost: a\r\n\r\n" % where)
                    await reader.readuntil(b"\r\n\r\n")
                writer.write(b"GET %b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (b"" if tunnel else b"http://" + where, where))
                await until(lambda: one.heads)
                writer.close()
            await until(lambda: not server.parts.sessions.running)

    run_once(main)


@pytest.mark.parametrize("tunnel", [False, True], ids=["forwarded", "tunnel"])
def test_the_idle_deadline_ends_what_is_too_late(run_once: Run, tmp_path: Path, tunnel: bool) -> None:
    """A delay does not keep a session for longer than `timeouts.idle`."""

    async def main() -> None:
        entry, timeouts = {"fault": {"answer_delay": 3000}}, {"idle": 0.2}
        async with origin(OK, plain=True) as one, molding(tmp_path, entry, timeouts=timeouts) as server:
            done = await curl(server, f"http://localhost:{one.port}/", *([TUNNEL] if tunnel else []))
            assert done.code in (52, 56), done
            await until(lambda: not server.parts.sessions.running)

    run_once(main)


def test_running_sessions_get_faults_of_a_schedule(run_once: Run, tmp_path: Path) -> None:
    """On one connection an answer has the fault while it acts, and not before."""

    async def main() -> None:
        entry = {"fault": {"status": 503, "every": "0.3 s good, 1000 s gone"}}
        async with origin(OK, OK, plain=True) as one, molding(tmp_path, entry) as server:
            address = server.addresses[0]
            reader, writer = await asyncio.open_connection(str(address.host), address.port)
            writer.write(b"CONNECT localhost:%d HTTP/1.1\r\nHost: a\r\n\r\n" % one.port)
            await reader.readuntil(b"\r\n\r\n")
            statuses = []
            while b"503" not in statuses:
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                statuses.append(head.split()[1])
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                one.answers.append(OK)
                await asyncio.sleep(0.02)
            assert statuses[0] == b"200"
            writer.close()

    run_once(main)


def test_a_fault_of_http_that_is_set_while_it_runs(run_once: Run, tmp_path: Path) -> None:
    """New sessions are looked into while it is set, beside the entries of the file, whose rewrites go on; a reload
    keeps both. Without it and them nothing is looked into."""

    async def main() -> None:
        async with origin(*[OK] * 20, plain=True) as one:
            url = f"http://localhost:{one.port}/"

            async def statuses(server: Server) -> list[bytes]:
                found = [await curl(server, url, *options) for options in ((), (TUNNEL,))]
                return [done.head.split()[1] + b"!" * (b"X-Entry" in done.head) for done in found]

            async with molding(tmp_path) as server:
                before = server.parts.carrier
                assert await statuses(server) == [b"200", b"200"]
                async with server.fault(hosts=["localhost"], status=503):
                    assert await statuses(server) == [b"503", b"503"]
                    with pytest.raises(ConfigError, match="there is one called"):
                        server.set_fault(name="fault-1", status=500)
                assert await statuses(server) == [b"200", b"200"]
                assert server.parts.carrier is before
                assert [head.partition(b"\r\n")[0].split()[1][:1] for head in one.heads] == [b"/"] * 4
            entry = {"response_headers": {"set": {"X-Entry": "1"}}}
            async with molding(tmp_path, entry) as server:
                assert await statuses(server) == [b"200!", b"200!"]
                fault = server.set_fault(status=503)
                assert await statuses(server) == [b"503", b"503"]
                fault.change(status=None, truncate=3)
                assert await statuses(server) == [b"200!", b"200!"]
                for distorts in ([entry], []):
                    server.reload(
                        msgspec.structs.replace(
                            server.config, distort=config_of(tmp_path, {"distort": distorts}).distort
                        )
                    )
                    done = await curl(server, url, TUNNEL)
                    assert (done.code, done.body, b"X-Entry" in done.head) == (18, b"hel", bool(distorts))
                fault.remove()
                assert await statuses(server) == [b"200", b"200"]

    run_once(main)


def test_a_fault_of_http_needs_the_packages(run_once: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them it is not set, and what was set before stays."""

    async def main() -> None:
        async with origin(OK, OK, plain=True) as one, molding(tmp_path) as server:
            fault = server.set_fault(latency="1ms")
            monkeypatch.setitem(sys.modules, "cryptography", None)
            why = r"a fault of HTTP needs cryptography: pip install 'tabi\[intercept\]'"
            with pytest.raises(ConfigError, match=why):
                server.set_fault(status=503)
            with pytest.raises(ConfigError, match=why):
                fault.change(status=503)
            assert (await curl(server, f"http://localhost:{one.port}/")).body == b"hello"
            assert list(server.faults.all) == [fault.name]
            fault.remove()
            assert server.parts.molding is not None
            assert not server.parts.molding.live

    run_once(main)
