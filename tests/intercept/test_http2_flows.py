"""Flows of HTTP/2 through a whole server: what hooks see, change, hold and answer, and what is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from pathlib import Path
from typing import Any

import pytest

import intercepting
from authorities import authority
from conftest import Run
from destinations import write_authority
from h2_net import client, origin
from sockets import turns, until
from tabi import Config, Server, in_thread
from tabi.config import InterceptConfig, Log
from tabi.errors import TooLarge
from tabi.intercept import http2_stream_flow
from tabi.intercept.flow import Flow
from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_direction import Direction
from tabi.intercept.http2_flows import Http2Flows
from tabi.intercept.http2_stages import FrameStages
from tabi.intercept.http2_stream import Half, Stream
from tabi.intercept.http2_stream_flow import Side, StreamFlow
from tabi.wire.h2 import encode_frame

LISTEN = "socks5://127.0.0.1:0"


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An authority of the user's; and a file with that of origins."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    write_authority(tmp_path / "tabi")
    path = tmp_path / "origins.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return path


def server(made: Path, *hooks: object, **keys: Any) -> Server:
    """A server that looks into everything."""
    config = Config(log=Log(access="none"), intercept=[InterceptConfig(trust=str(made), **keys)])
    return Server(LISTEN, config=config, hooks=hooks)


class Seen:
    """Remembers flows that have ended."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []

    def flow_end(self, flow: Flow) -> Any:
        self.flows.append(flow)


class Plain(Seen):
    """Hooks that answer at once."""

    def request(self, flow: Flow) -> None:
        path = flow.request.path
        if path == "/change":
            flow.request.path = "/changed?1"
            flow.request.method = "PUT"
            flow.request.headers["X-Mark"] = "1"
        elif path == "/body":
            flow.request.set_body("another body")
        elif path == "/respond":
            flow.respond(203, "ours", {"X-Ours": "1", "Connection": "close"})
        elif path == "/drop":
            flow.drop()
        elif path == "/fail":
            raise ValueError("why")

    def response(self, flow: Flow) -> None:
        assert flow.response is not None
        path = flow.request.path
        if path == "/response":
            flow.response.status = 404
            flow.response.headers["X-Mark"] = "2"
        elif path == "/content":
            flow.response.set_body("another content")
        elif path == "/instead":
            flow.respond(500, "instead")
        elif path == "/late-drop":
            flow.drop()


def test_hooks_that_answer_at_once(run: Run, made: Path) -> None:
    """Everything that a hook may do with heads, on one connection, all at once."""

    async def main() -> None:
        hook = Plain()
        async with origin() as port, server(made, hook) as proxy, client(proxy.url, port) as asks:
            paths = ["/", "/change", "/body", "/respond", "/drop", "/response", "/content", "/instead", "/late-drop"]
            paths += ["/fail", "/big"]
            answers = dict(zip(paths, await asyncio.gather(*[asks.ask(path) for path in paths]), strict=True))
            assert answers["/"].fields[b"x-path"] == b"/"
            changed = answers["/change"].fields
            assert (changed[b"x-method"], changed[b"x-path"], changed[b"x-x-mark"]) == (b"PUT", b"/changed?1", b"1")
            assert answers["/body"].body == b"another body"
            assert answers["/body"].fields[b"x-content-length"] == b"12"
            ours = answers["/respond"].fields
            assert (ours[b":status"], ours[b"x-ours"], ours[b"content-length"]) == (b"203", b"1", b"4")
            assert b"connection" not in ours
            assert b"GMT" in ours[b"date"]
            assert answers["/respond"].body == b"ours"
            assert answers["/drop"].reset == answers["/late-drop"].reset == 8
            assert answers["/response"].fields[b":status"] == b"404"
            assert answers["/response"].fields[b"x-mark"] == b"2"
            assert answers["/content"].body == b"another content"
            assert (answers["/instead"].fields[b":status"], answers["/instead"].body) == (b"500", b"instead")
            assert answers["/fail"].fields[b":status"] == b"200"
            assert len(answers["/big"].body) == 1_000_000
            posted = await asks.ask("/body", b"x" * 200_000)
            assert posted.body == b"another body"
        assert len(hook.flows) == 12
        errors = {flow.request.path: flow.error for flow in hook.flows if flow.error}
        assert errors == {"/drop": "a hook has dropped it", "/late-drop": "a hook has dropped it"}
        one = hook.flows[0]
        assert one.request.version == "HTTP/2"
        assert one.tls is not None
        assert one.tls.alpn == "h2"

    run(main)


class Waiting(Seen):
    """Hooks that wait."""

    def __init__(self, other: str = "") -> None:
        super().__init__()
        self.other = other
        self.go = asyncio.Event()
        self.waits = 0

    async def request(self, flow: Flow) -> None:
        path = flow.request.path
        if path == "/wait":
            self.waits += 1
            await self.go.wait()
        elif path == "/read":
            flow.request.set_body((await flow.request.text()).upper())
        elif path == "/look":
            flow.tags.add(str(len(await flow.request.read())))
        elif path == "/limit":
            await flow.request.read(limit=1000)
        elif path == "/reroute":
            flow.reroute(self.other)
        elif path == "/nowhere":
            flow.reroute("http://127.0.0.1:1/")
        elif path == "/respond":
            flow.respond(200, await flow.request.read())

    async def response(self, flow: Flow) -> None:
        assert flow.response is not None
        if flow.request.path == "/answer":
            flow.response.set_body((await flow.response.text()).upper())
        elif flow.request.path == "/big-answer":
            flow.tags.add(str(len(await flow.response.read(limit=2_000_000))))

    async def flow_end(self, flow: Flow) -> None:
        await asyncio.sleep(0)
        super().flow_end(flow)


def test_hooks_that_wait_hold_their_own_flow_only(run: Run, made: Path) -> None:
    """Content is held and read both ways, and what does not wait passes those that do."""

    async def main() -> None:
        async with intercepting.origin() as other, origin() as port:
            hook = Waiting(f"https://localhost:{other}/there")
            async with (
                server(made, hook) as proxy,
                client(proxy.url, port) as asks,
                asyncio.TaskGroup() as group,
            ):
                waits = group.create_task(asks.ask("/wait", b"w" * 300_000))
                quick = await asks.ask("/quick")
                assert quick.fields[b"x-path"] == b"/quick"
                assert not waits.done()
                assert (await asks.ask("/read", b"abc" * 100_000)).body == b"ABC" * 100_000
                assert (await asks.ask("/read")).body == b""
                assert (await asks.ask("/look", b"x" * 700_000)).body == b"x" * 700_000
                assert (await asks.ask("/limit", b"x" * 300_000)).body == b"x" * 300_000
                assert (await asks.ask("/answer", b"abc")).body == b"ABC"
                assert (await asks.ask("/big-answer")).body == b"b" * 1_000_000
                assert (await asks.ask("/respond", b"echo")).body == b"echo"
                rerouted = await asks.ask("/reroute", b"for another")
                assert rerouted.fields[b":status"] == b"200"
                assert b"POST /there HTTP/1.1" in rerouted.body
                nowhere = await asks.ask("/nowhere")
                assert nowhere.fields[b":status"] == b"502"
                hook.go.set()
                assert (await waits).body == b"w" * 300_000
        assert len(hook.flows) == 11
        assert {tag for flow in hook.flows for tag in flow.tags} == {"700000", "1000000"}

    run(main)


def test_what_hooks_read_of_a_connection_is_bounded(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All streams together; what is too much goes on unread, and there is room again when flows are over."""
    monkeypatch.setattr(http2_stream_flow, "READ_LIMIT", 300_000)

    class Reads(Seen):
        def __init__(self) -> None:
            super().__init__()
            self.refused = 0

        async def request(self, flow: Flow) -> None:
            try:
                await flow.request.read()
            except TooLarge:
                self.refused += 1

    async def main() -> None:
        hook = Reads()
        async with origin() as port, server(made, hook) as proxy, client(proxy.url, port) as asks:
            bodies = [b"%d" % number * 200_000 for number in range(3)]
            answers = await asyncio.gather(*[asks.ask("/", body) for body in bodies])
            assert [answer.body for answer in answers] == bodies
            assert hook.refused
            before = hook.refused
            for body in bodies:
                assert (await asks.ask("/", body)).body == body
            assert hook.refused == before

    run(main)


class Chunks(Seen):
    """Hooks that see content in pieces."""

    def request_body(self, flow: Flow, chunk: bytes) -> bytes:
        return chunk.upper()

    async def response_body(self, flow: Flow, chunk: bytes) -> bytes | None:
        await asyncio.sleep(0)
        return None if flow.request.path == "/same" else chunk.swapcase()

    @in_thread
    def request(self, flow: Flow) -> None:
        flow.request.headers["X-Thread"] = "1"


def test_hooks_that_see_pieces(run: Run, made: Path) -> None:
    """What they give goes on, however much there is of it."""

    async def main() -> None:
        hook = Chunks()
        async with origin() as port, server(made, hook) as proxy, client(proxy.url, port) as asks:
            assert (await asks.ask("/", b"abc" * 200_000)).body == b"abc" * 200_000
            same = await asks.ask("/same", b"abc")
            assert same.body == b"ABC"
            assert same.fields[b"x-x-thread"] == b"1"
            assert b"content-length" not in same.fields
            assert (await asks.ask("/big")).body == b"B" * 1_000_000
            assert (await asks.ask("/none")).body == b""
        assert [flow.error for flow in hook.flows] == [None] * 4

    run(main)


def test_a_hook_that_fails_ends_its_flow_where_that_is_wanted(run: Run, made: Path) -> None:
    """Others of the connection go on."""

    class Fails(Seen):
        def request(self, flow: Flow) -> None:
            if flow.request.path == "/fail":
                raise ValueError("why")

        async def response(self, flow: Flow) -> None:
            if flow.request.path == "/late":
                raise ValueError("why")

        def response_body(self, flow: Flow, chunk: bytes) -> None:
            if flow.request.path == "/body":
                raise ValueError("why")

    async def main() -> None:
        hook = Fails()
        async with (
            origin() as port,
            server(made, hook, on_error="close") as proxy,
            client(proxy.url, port) as asks,
        ):
            assert (await asks.ask("/fail")).fields[b":status"] == b"502"
            assert (await asks.ask("/late")).fields[b":status"] == b"502"
            assert (await asks.ask("/body", b"x")).reset == 2
            assert (await asks.ask("/good", b"x")).body == b"x"
        errors = {flow.request.path: flow.error for flow in hook.flows}
        assert {path for path, error in errors.items() if error} == {"/fail", "/late", "/body"}

    run(main)


def test_a_client_that_goes_ends_what_waits(run: Run, made: Path) -> None:
    """Each flow has its end, and nothing is left that runs."""

    async def main() -> None:
        hook = Waiting()
        async with origin() as port, server(made, hook) as proxy, asyncio.TaskGroup() as group:
            async with client(proxy.url, port) as asks:
                group.create_task(asks.ask("/wait", b"x"))
                await asks.ask("/quick")
            while len(hook.flows) < 2:
                await asyncio.sleep(0)
            assert hook.flows[1].error

    run(main)


def test_flows_are_recorded(run: Run, made: Path, tmp_path: Path) -> None:
    """Fields, contents and sizes of both directions, also of answers of ours."""

    async def main() -> None:
        har = tmp_path / "flows.har"
        async with (
            origin() as port,
            server(made, Plain(), har=str(har), body_limit=1000) as proxy,
            client(proxy.url, port) as asks,
        ):
            await asks.ask("/echo", b"some content")
            await asks.ask("/respond")
            await asks.ask("/big")
        entries = json.loads(har.read_text())["log"]["entries"]
        assert [entry["request"]["url"].rpartition("/")[2] for entry in entries] == ["echo", "respond", "big"]
        echo, ours, big = entries
        assert echo["request"]["httpVersion"] == "HTTP/2"
        assert echo["request"]["postData"]["text"] == "some content"
        assert echo["response"]["content"]["text"] == "some content"
        assert (ours["response"]["status"], ours["response"]["content"]["text"]) == (203, "ours")
        assert big["response"]["content"]["size"] == 1_000_000

    run(main)


def test_what_is_recorded_and_read_is_both(run: Run, made: Path, tmp_path: Path) -> None:
    """Also where content has come before the hook asks for it, and what has been read can be read again."""

    class Late(Seen):
        async def request(self, flow: Flow) -> None:
            await asyncio.sleep(0.05)
            flow.tags.add(await flow.request.text())

        async def response(self, flow: Flow) -> None:
            assert flow.response is not None
            assert await flow.request.text() == "some content"
            await asyncio.sleep(0.05)
            flow.tags.add(await flow.response.text())

        async def flow_end(self, flow: Flow) -> None:
            super().flow_end(flow)
            assert flow.response is not None
            flow.tags.add(await flow.response.text() + "again")

    async def main() -> None:
        har, hook = tmp_path / "flows.har", Late()
        async with origin() as port, server(made, hook, har=str(har)) as proxy, client(proxy.url, port) as asks:
            assert (await asks.ask("/echo", b"some content")).body == b"some content"
        (entry,) = json.loads(har.read_text())["log"]["entries"]
        assert entry["request"]["postData"]["text"] == entry["response"]["content"]["text"] == "some content"
        assert hook.flows[0].tags == {"some content", "some contentagain"}

    run(main)


def test_another_host_and_alt_svc(run: Run, made: Path) -> None:
    """A request for another host than the connection's gets 421 where that is denied; Alt-Svc is taken out."""

    async def main() -> None:
        async with (
            origin() as port,
            server(made, mismatch="deny", strip_alt_svc=True) as proxy,
            client(proxy.url, port) as asks,
        ):
            asks.head(
                1,
                [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"other.test"), (b":path", b"/")],
                True,
            )
            asks.next_id = 3
            assert (await asks.ask("/")).fields[b":status"] == b"200"
            assert dict(asks.heads[1])[b":status"] == b"421"

    run(main)


class Words(Seen):
    """Changes messages of WebSocket."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[Any] = []

    def websocket_message(self, flow: Flow, message: Any) -> None:
        self.words.append(message.content)
        message.content = message.content.upper()

    def response_body(self, flow: Flow, chunk: bytes) -> bytes:
        return b"not for these"


@pytest.mark.parametrize("hook", [Words, Plain])
def test_websockets(run: Run, made: Path, tmp_path: Path, hook: type[Seen]) -> None:
    """Messages on a stream (RFC 8441) are shown and recorded; without a hook for them they pass as they are."""

    async def main() -> None:
        har, seen = tmp_path / "flows.har", hook()
        async with origin() as port, server(made, seen, har=str(har)) as proxy, client(proxy.url, port) as asks:
            await asks.ask("/")
            id, asks.next_id = asks.next_id, asks.next_id + 2
            asks.head(
                id,
                [
                    *((b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https")),
                    *((b":authority", b"localhost"), (b":path", b"/socket"), (b"sec-websocket-version", b"13")),
                ],
            )
            asks.go()
            await until(lambda: len(asks.bodies.get(id, b"")) >= 7)
            asks.connection.send_data(id, b"\x81\x83\0\0\0\0abc")
            asks.connection.send_data(id, b"", end_stream=True)
            asks.go()
            await until(lambda: id in asks.ended)
            assert asks.bodies[id] == (b"\x81\x05HELLO" if hook is Words else b"\x81\x05hello")
            await until(lambda: len(seen.flows) == 2)
        if isinstance(seen, Words):
            assert sorted(seen.words) == [b"abc", b"hello"]
        messages = json.loads(har.read_text())["log"]["entries"][1]["_webSocketMessages"]
        assert [message["data"].lower() for message in messages] == ["hello", "abc"]

    run(main)


def test_a_flood_ends_its_own_connection_alone(run: Run, made: Path) -> None:
    """The one that sends it gets GOAWAY or a reset, its flows have their end, and others go on."""

    async def main() -> None:
        hook = Waiting()
        async with (
            origin() as port,
            server(made, hook) as proxy,
            client(proxy.url, port) as good,
            client(proxy.url, port) as bad,
            asyncio.TaskGroup() as group,
        ):
            assert (await good.ask("/")).body == b""
            waits = group.create_task(bad.ask("/wait"))
            await until(lambda: hook.waits)
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    bad.writer.write(encode_frame(6, 0, 0, b"12345678") * 1000)
                    await bad.writer.drain()
            await waits
            assert bad.goaway is None or bad.goaway.error_code == 11
            await until(lambda: len(hook.flows) == 2)
            assert hook.flows[1].error == "client: too many frames that carry nothing"
            assert (await good.ask("/", b"still there")).body == b"still there"

    run(main)


def test_prior_knowledge(run: Run, made: Path) -> None:
    """HTTP/2 without TLS."""

    async def main() -> None:
        hook = Plain()
        async with origin(tls=False) as port, server(made, hook) as proxy, client(proxy.url, port, tls=False) as asks:
            assert (await asks.ask("/change")).fields[b"x-x-mark"] == b"1"
        assert hook.flows[0].request.url.startswith("http://127.0.0.1")

    run(main)


@pytest.mark.parametrize("hook", [Plain, Waiting, Chunks])
def test_nothing_of_a_connection_is_left_to_the_garbage_collector(run: Run, made: Path, hook: type[Seen]) -> None:
    """Neither streams nor flows nor the relay are cycles, once it has ended."""

    def left() -> set[str]:
        kinds = (StreamFlow, Side, Http2Flows, FrameRelay, FrameStages, Direction, Stream, Half, Flow)
        return {type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds)}

    async def main() -> None:
        async with origin() as port, server(made, hook()) as proxy:
            gc.collect()
            gc.disable()
            try:
                async with client(proxy.url, port) as asks:
                    for path in ("/", "/change", "/body", "/respond", "/content", "/read", "/look", "/big"):
                        await asks.ask(path, b"x" * 1000)
                del asks
                for one in gc.get_objects():
                    if isinstance(one, Seen):
                        one.flows.clear()
                await until(lambda: not proxy.sessions())
                await turns(20)
                assert left() == set()
            finally:
                gc.enable()

    run(main)
