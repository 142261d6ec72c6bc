"""Flows on their streams, in memory: what hooks see and change, and what is recorded. See also test_http2_flows.py."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import tabi
from conftest import Run
from h2_ends import GET, OK, POST
from h2_flows import Scene, scene
from tabi.errors import TabiError
from tabi.intercept.flow import Flow, Reroute
from tabi.intercept.http2_outlet import STREAM_CREDIT
from tabi.wire.hpack import Field

BIG = bytes(range(256)) * 2000
"""Larger than all windows."""

Hook = Callable[..., Any]


def sync(**methods: Hook) -> object:
    """A hook with these methods, which do not wait."""
    return type("Sync", (), {name: staticmethod(method) for name, method in methods.items()})()


def waiting(**methods: Hook) -> object:
    """A hook with these methods, each of which waits for a turn of the loop first."""

    def later(method: Hook) -> Hook:
        async def call(*args: Any) -> Any:
            await asyncio.sleep(0)
            return method(*args)

        return call

    return type("Waiting", (), {name: staticmethod(later(method)) for name, method in methods.items()})()


def threaded(**methods: Hook) -> object:
    """A hook with these methods, which run in a thread."""
    return type("Threaded", (), {name: staticmethod(tabi.in_thread(method)) for name, method in methods.items()})()


KINDS = pytest.mark.parametrize("make", [sync, waiting, threaded], ids=lambda make: make.__name__)
"""Hooks of each kind."""


class Log:
    """Hears the ends of flows."""

    def __init__(self) -> None:
        self.ends: list[Flow] = []
        self.errors: list[str | None] = []

    def flow_end(self, flow: Flow) -> None:
        self.ends.append(flow)

    def error(self, flow: Flow) -> None:
        self.errors.append(flow.error)


class SlowLog(Log):
    """The same, and waits."""

    async def flow_end(self, flow: Flow) -> None:  # type: ignore[override]
        await asyncio.sleep(0.001)
        super().flow_end(flow)


class Gate:
    """A hook that waits until it is let go on."""

    def __init__(self, *events: str) -> None:
        self.open = asyncio.Event()
        self.seen: list[Flow] = []
        self.cancelled = 0
        for event in events:
            setattr(self, event, self.wait)

    async def wait(self, flow: Flow) -> None:
        self.seen.append(flow)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


# --- heads ---


@KINDS
def test_hooks_change_heads(run_once: Run, make: Hook) -> None:
    """Names are sent in small letters, fields of a connection not at all, Content-Length as it is."""

    def request(flow: Flow) -> None:
        assert flow.request.version == "HTTP/2"
        assert flow.request.url == "https://a.test/"
        flow.request.headers["X-Mark"] = "1"
        flow.request.headers["Connection"] = "close"
        flow.request.headers["Host"] = "elsewhere"
        flow.request.headers["Content-Length"] = "77"
        flow.request.headers["TE"] = "gzip"
        flow.request.path = "/other?a=b"
        flow.request.method = "PUT"

    def response(flow: Flow) -> None:
        assert flow.response is not None
        flow.response.status = 201
        flow.response.headers["X-Back"] = "2"
        flow.response.headers["Keep-Alive"] = "5"
        del flow.response.headers["server"]

    async def main() -> None:
        async with scene(make(request=request, response=response)) as ends:
            ends.ask(1, b"hello", (b"content-length", b"5"))
            await ends.answer(b"world", (b"content-length", b"5"))
            assert await ends.got() == (b"201", b"world")
            assert ends.server.heads[1] == [
                (b":method", b"PUT"),
                (b":scheme", b"https"),
                (b":authority", b"a.test"),
                (b":path", b"/other?a=b"),
                (b"user-agent", b"x"),
                (b"x-mark", b"1"),
                (b"content-length", b"5"),
            ]
            assert ends.server.bodies[1] == b"hello"
            assert ends.client.heads[1] == [(b":status", b"201"), (b"content-length", b"5"), (b"x-back", b"2")]
            (record,) = ends.records
            assert (record.method, record.status, record.version) == ("PUT", 201, "HTTP/2")
            assert (record.request_body, record.request_size) == (b"hello", 5)
            assert (record.response_body, record.response_size) == (b"world", 5)
            assert None not in (record.send, record.wait, record.receive)

    run_once(main)


@KINDS
@pytest.mark.parametrize("records", [False, True])
def test_what_hooks_leave_alone_passes(run_once: Run, make: Hook, records: bool) -> None:
    """Fields as they came, content, trailers, and interim responses."""
    odd: list[Field] = [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"x-a", b""), (b"x-a", b"\xff")]
    seen: list[str | None] = []

    def look(flow: Flow) -> None:
        seen.append(flow.request.headers.get("Cookie"))

    async def main() -> None:
        async with scene(make(request=look, response=look), records=records) as ends:
            ends.server.connection.config.normalize_inbound_headers = False
            ends.client.head(1, [*POST, *odd])
            await ends.until(lambda: 1 in ends.server.heads)
            ends.server.connection.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
            ends.client.connection.send_data(1, b"x" * 10_000)
            ends.client.connection.send_headers(1, [(b"grpc-x", b"1")], end_stream=True)
            await ends.answer(b"y" * 10_000, trailers=[(b"grpc-status", b"0")])
            assert await ends.got() == (b"200", b"y" * 10_000)
            assert ends.server.heads[1] == [*POST, *odd]
            assert ends.server.bodies[1] == b"x" * 10_000
            assert ends.server.trailers[1] == [(b"grpc-x", b"1")]
            assert ends.client.trailers[1] == [(b"grpc-status", b"0")]
            assert seen == ["a=1; b=2"] * 2
            if records:
                (record,) = ends.records
                assert (record.request_size, record.response_size) == (10_000, 10_000)

    run_once(main)


@KINDS
@pytest.mark.parametrize("event", ["request", "response"])
@pytest.mark.parametrize("close", [False, True])
def test_hooks_that_fail(run_once: Run, make: Hook, event: str, close: bool) -> None:
    """What they have changed is undone, or the client gets 502 and the hooks hear of it once."""

    def fail(flow: Flow) -> None:
        getattr(flow, event).headers["x-bad"] = "1"
        raise ZeroDivisionError

    log = Log()

    async def main() -> None:
        async with scene(make(**{event: fail}), log, close=close) as ends:
            ends.ask(1, b"hello")
            if not close or event == "response":
                await ends.answer(b"world")
            assert await ends.got() == ((b"502", b"") if close else (b"200", b"world"))
            assert len(log.ends) == 1
            assert len(log.errors) == close
            assert b"x-bad" not in dict(ends.client.heads[1])
            assert len(ends.records) == 1
            assert bool(ends.records[0].error) == close

    run_once(main)


# --- answers in place of the server's ---


@KINDS
@pytest.mark.parametrize("event", ["request", "response"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD"])
def test_hooks_answer(run_once: Run, make: Hook, event: str, method: bytes) -> None:
    """From either event; the server does not see the request, or is told to stop."""

    def respond(flow: Flow) -> None:
        flow.respond(418, BIG, {"X-Teapot": "Yes", "Connection": "close"})

    async def main() -> None:
        async with scene(make(**{event: respond})) as ends:
            ends.ask(1, BIG if method == b"POST" else None, method=method)
            if event == "response":
                await ends.answer(b"world" if method != b"HEAD" else None)
            body = b"" if method == b"HEAD" else BIG
            assert await ends.got() == (b"418", body)
            *head, date = ends.client.heads[1]
            assert date[0] == b"date"
            assert head == [(b":status", b"418"), (b"x-teapot", b"Yes"), (b"content-length", b"%d" % len(BIG))]
            await ends.turns()
            assert (1 in ends.server.heads) == (event == "response")
            (record,) = ends.records
            assert (record.status, record.response_size, record.error) == (418, len(body), None)
            ends.ask(3, None, method=b"HEAD")
            if event == "response":
                await ends.answer(None, id=3)
            assert await ends.got(3) == (b"418", b"")

    run_once(main)


@KINDS
@pytest.mark.parametrize("event", ["request", "response"])
def test_hooks_drop(run_once: Run, make: Hook, event: str) -> None:
    """The stream is reset; another goes on."""
    log = Log()

    def drop(flow: Flow) -> None:
        if flow.request.path == "/":
            flow.drop()

    async def main() -> None:
        async with scene(make(**{event: drop}), log) as ends:
            ends.ask(1, b"hello")
            ends.client.head(3, [*GET[:3], (b":path", b"/b")], True)
            await ends.until(lambda: ends.server.heads)
            if event == "response":
                await ends.until(lambda: len(ends.server.heads) == 2)
                ends.server.head(1, OK)
            for id, head in ends.server.heads.items():
                if dict(head)[b":path"] == b"/b":
                    ends.server.head(id, OK, True)
            assert await ends.got(3) == (b"200", b"")
            await ends.until(lambda: ends.client.resets)
            assert ends.client.resets == {1: 8}
            assert log.errors == ["a hook has dropped it"]
            assert len(log.ends) == 2

    run_once(main)


class Fetched:
    """What another server says."""

    status, reason = 203, b"So"
    fields = ((b"X-Other", b"1"), (b"Transfer-Encoding", b"chunked"))

    def __init__(self, count: int, broken: bool) -> None:
        self.count = count
        self.broken = broken
        self.given = 0
        self.closed = False

    async def content(self) -> AsyncIterator[bytes]:
        """Pieces."""
        for _ in range(self.count):
            await asyncio.sleep(0)
            self.given += 1
            yield b"r" * 30_000
        if self.broken:
            raise ConnectionResetError(104, "Connection reset by peer")

    async def aclose(self) -> None:
        """See `inspection.Fetched`."""
        self.closed = True


@KINDS
def test_reroutes(run_once: Run, make: Hook) -> None:
    """The request's content goes there as it was sent, the answer comes as fast as the client takes it."""
    asked: list[Any] = []
    fetched = Fetched(40, False)

    async def fetch(*args: Any) -> Fetched:
        asked.append(args[2:])
        return fetched

    def request(flow: Flow) -> None:
        flow.reroute("http://b.test/x")

    async def main() -> None:
        async with scene(make(request=request), fetch=fetch, client={4: 40_000}) as ends:
            ends.client.connection.max_inbound_frame_size = 1 << 14
            ends.ask(1, BIG)
            hold = ends.client.connection.acknowledge_received_data
            ends.client.connection.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
            await ends.until(lambda: fetched.given)
            await ends.turns(50)
            assert fetched.given == 2
            ends.client.connection.acknowledge_received_data = hold  # type: ignore[method-assign]
            hold(30_000, 1)
            hold(10_000, 1)
            assert await ends.got() == (b"203", b"r" * 1_200_000)
            assert fetched.closed
            assert ends.client.heads[1][:2] == [(b":status", b"203"), (b"x-other", b"1")]
            assert asked == [(Reroute("http://b.test/x", None), "POST", [(b"user-agent", b"x")], BIG)]
            (record,) = ends.records
            assert (record.status, record.request_size, record.response_size) == (203, len(BIG), 1_200_000)

    run_once(main)


def test_reroutes_that_fail(run_once: Run) -> None:
    """502, or a reset in the middle; from `response` there are none; a client that leaves ends them."""
    fetched: list[Fetched] = []
    log = Log()

    async def fetch(*args: Any) -> Fetched:
        url = args[2].url
        if url.endswith("/none"):
            raise TabiError("not permitted")
        fetched.append(Fetched(2 if url.endswith("/broken") else 10**9, url.endswith("/broken")))
        return fetched[-1]

    def request(flow: Flow) -> None:
        if flow.request.path != "/late":
            flow.reroute(f"http://b.test{flow.request.path}")

    def response(flow: Flow) -> None:
        flow.reroute("http://b.test/")

    async def main() -> None:
        async with scene(sync(request=request, response=response), log, fetch=fetch) as ends:
            for id, path in enumerate((b"/none", b"/broken", b"/endless", b"/late")):
                ends.client.head(1 + 2 * id, [*GET[:3], (b":path", path)], True)
            await ends.until(lambda: ends.server.heads)
            ends.server.head(7, OK, True)
            assert await ends.got(1) == (b"502", b"")
            assert await ends.got(7) == (b"502", b"")
            await ends.until(lambda: 3 in ends.client.resets)
            assert ends.client.resets[3] == 2
            await ends.until(lambda: ends.client.bodies.get(5))
            ends.client.connection.reset_stream(5)
            await ends.until(lambda: len(log.ends) == 4)
            await ends.turns(3)
            assert [one.closed for one in fetched] == [True, True]
            assert sorted(map(str, log.errors)) == [
                "a hook has rerouted what was answered already",
                "reroute: connection reset by peer",
                "reroute: not permitted",
                "reset by the client: NO_ERROR",
            ]

    run_once(main)


# --- content ---


class Reads:
    """Reads all content, and marks it."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.limit = limit
        self.read: list[bytes | str] = []

    async def request(self, flow: Flow) -> None:
        await self.look(flow.request)

    async def response(self, flow: Flow) -> None:
        assert flow.response is not None
        await self.look(flow.response)

    async def look(self, message: Any) -> None:
        """Read it, twice at once."""
        try:
            one, other = await asyncio.gather(message.read(self.limit), message.read(self.limit))
            assert one == other == await message.read(self.limit)
            self.read.append(one)
        except tabi.TabiError as exc:
            self.read.append(type(exc).__name__)


@pytest.mark.parametrize("body", [None, b"", b"hello", BIG], ids=["none", "empty", "small", "big"])
@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize("limit", [4, 1 << 20])
@pytest.mark.parametrize("records", [False, True])
def test_hooks_read_content(run_once: Run, body: bytes | None, trailers: bool, limit: int, records: bool) -> None:
    """More than any window too, which is given back meanwhile. What is too large goes on as it comes."""
    hook = Reads(limit)

    async def main() -> None:
        async with scene(hook, records=records) as ends:
            ends.ask(1, body)
            await ends.until(lambda: 1 in ends.server.ended)
            if trailers and body is not BIG:
                await ends.answer(body, trailers=[(b"grpc-status", b"0")])
            else:
                await ends.answer(body)
            assert await ends.got() == (b"200", body or b"")
            assert ends.server.bodies.get(1, b"") == (body or b"")
            assert (1 in ends.client.trailers) == (trailers and body is not BIG)
            content = body or b""
            assert hook.read == [content if len(content) <= limit else "TooLarge"] * 2
            if records:
                (record,) = ends.records
                assert (record.request_body, record.response_body) == (content, content)
                assert (record.request_size, record.response_size) == (len(content), len(content))
                assert None not in (record.send, record.wait, record.receive)

    run_once(main)


@KINDS
@pytest.mark.parametrize("came", [None, b"hello", BIG], ids=["none", "small", "big"])
@pytest.mark.parametrize("sent", [b"", b"other", BIG[::-1]], ids=["empty", "small", "big"])
@pytest.mark.parametrize("records", [False, True])
def test_hooks_set_content(run_once: Run, make: Hook, came: bytes | None, sent: bytes, records: bool) -> None:
    """With its length; what came is passed over, and its windows are given back."""

    def change(flow: Flow) -> None:
        (flow.response or flow.request).set_body(sent)

    async def main() -> None:
        async with scene(make(request=change, response=change), records=records) as ends:
            length = () if came is None else ((b"content-length", b"%d" % len(came)),)
            for id in (1, 3, 5):
                ends.ask(id, came, *length)
                await ends.until(lambda id=id: id in ends.server.ended)  # type: ignore[misc]
                await ends.answer(came, *length, id=id)
                assert await ends.got(id) == (b"200", sent)
                assert ends.server.bodies.get(id, b"") == sent
                assert ends.asked(id)[b"content-length"] == b"%d" % len(sent)
                assert dict(ends.client.heads[id])[b"content-length"] == b"%d" % len(sent)
            await ends.turns()
            assert not ends.client.sending
            assert not ends.server.sending
            assert not ends.relay.streams()
            if records:
                assert [(one.request_body, one.response_body) for one in ends.records] == [(sent, sent)] * 3

    run_once(main)


@KINDS
def test_trailers_go_behind_other_content(run_once: Run, make: Hook) -> None:
    """As gRPC needs them, wherever they come: with the content, later, or where there is none."""

    def change(flow: Flow) -> None:
        assert flow.response is not None
        flow.response.set_body(b"other" if flow.request.path == "/" else b"")

    async def main() -> None:
        async with scene(make(response=change)) as ends:
            for id, path, body in ((1, b"/", b"hello"), (3, b"/", b""), (5, b"/e", b"hello")):
                ends.client.head(id, [*GET[:3], (b":path", path)], True)
                await ends.answer(body, id=id, trailers=[(b"grpc-status", b"0")])
                assert await ends.got(id) == (b"200", b"other" if path == b"/" else b"")
                assert ends.client.trailers[id] == [(b"grpc-status", b"0")]
            ends.ask(7)
            await ends.until(lambda: 7 in ends.server.heads)
            ends.server.head(7, OK)
            await ends.until(lambda: 7 in ends.client.bodies)
            assert 7 not in ends.client.ended
            ends.server.connection.send_data(7, b"late")
            await ends.turns()
            ends.server.connection.send_headers(7, [(b"grpc-status", b"1")], end_stream=True)
            assert await ends.got(7) == (b"200", b"other")
            assert ends.client.trailers[7] == [(b"grpc-status", b"1")]

    run_once(main)


def test_an_endless_answer_in_whose_place_there_is_another(run_once: Run) -> None:
    """It is cut off after a while, and the server told."""

    def change(flow: Flow) -> None:
        assert flow.response is not None
        flow.response.set_body(b"other")

    async def main() -> None:
        async with scene(sync(response=change)) as ends:
            ends.ask()
            await ends.answer(b"x" * 2_000_000)
            assert await ends.got() == (b"200", b"other")
            await ends.until(lambda: ends.server.resets)
            assert ends.server.resets == {1: 8}
            assert ends.records[0].error is None

    run_once(main)


@KINDS
@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("body", [b"", b"hello", BIG], ids=["empty", "small", "big"])
def test_hooks_see_content_as_it_passes(run_once: Run, make: Hook, records: bool, body: bytes) -> None:
    """In its order, whoever waits; it may become longer; trailers behind it; no Content-Length."""

    def chunk(flow: Flow, chunk: bytes) -> bytes:
        assert chunk
        return chunk.swapcase() + (b"!" if chunk == b"hello" else b"")

    expected = body.swapcase() + (b"!" if body == b"hello" else b"")
    several = make(request_body=chunk, response_body=chunk)
    calm = waiting(request=lambda flow: None, response=lambda flow: None)

    async def main() -> None:
        for hooks in ((several,), (calm, several)):
            async with scene(*hooks, records=records) as ends:
                ends.ask(1, body, (b"content-length", b"%d" % len(body)))
                await ends.until(lambda: 1 in ends.server.ended)
                await ends.answer(body, (b"content-length", b"%d" % len(body)))
                assert await ends.got() == (b"200", expected)
                assert ends.server.bodies.get(1, b"") == expected
                assert b"content-length" not in ends.asked() or not body
                assert b"content-length" not in dict(ends.client.heads[1]) or not body
                if body == b"hello":
                    ends.ask(3)
                    await ends.answer(body, id=3, trailers=[(b"grpc-status", b"0")])
                    assert await ends.got(3) == (b"200", expected)
                    assert ends.client.trailers[3] == [(b"grpc-status", b"0")]
                if records:
                    assert ends.records[0].request_body == ends.records[0].response_body == expected

    run_once(main)


@pytest.mark.parametrize("close", [False, True])
@KINDS
def test_hooks_of_content_that_fail(run_once: Run, make: Hook, close: bool) -> None:
    """The chunk goes on as it was, or the stream is reset."""

    def fail(flow: Flow, chunk: bytes) -> bytes:
        raise ZeroDivisionError

    async def main() -> None:
        async with scene(make(response_body=fail), close=close) as ends:
            ends.ask()
            await ends.answer(b"world")
            if close:
                await ends.until(lambda: ends.client.resets)
                assert ends.client.resets == {1: 2}
                assert ends.records[0].error
            else:
                assert await ends.got() == (b"200", b"world")

    run_once(main)


class SlowChunks:
    """Sees content, when it is let."""

    def __init__(self) -> None:
        self.allowed = asyncio.Semaphore(0)
        self.seen = 0

    async def response_body(self, flow: Flow, chunk: bytes) -> None:
        await self.allowed.acquire()
        self.seen += len(chunk)


def test_a_fast_sender_and_a_slow_hook(run_once: Run) -> None:
    """What waits has a bound; the sender is told to go on only for what has passed."""

    async def main() -> None:
        hook = SlowChunks()
        async with scene(hook, records=False) as ends:
            ends.ask()
            await ends.answer(b"x" * 5_000_000)
            sent = 0
            for _ in range(200):
                await ends.turns(3)
                sent = 5_000_000 - len(ends.server.sending.get(1, b""))
                assert sent - hook.seen <= STREAM_CREDIT + (1 << 16)
                assert ends.relay.down.queued <= STREAM_CREDIT + (1 << 16)
                hook.allowed.release()
            assert await ends.got() == (b"200", b"x" * 5_000_000)

    run_once(main)


def test_a_client_that_takes_nothing(run_once: Run) -> None:
    """Hooks are not shown more than it may get."""
    seen = 0

    def chunk(flow: Flow, chunk: bytes) -> bytes:
        nonlocal seen
        seen += len(chunk)
        return chunk

    async def main() -> None:
        async with scene(waiting(response_body=chunk), records=False) as ends:
            ends.client.connection.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
            ends.ask()
            await ends.answer(b"x" * 5_000_000)
            await ends.turns(200)
            assert seen <= 2 * STREAM_CREDIT
            ends.client.connection.reset_stream(1)
            await ends.turns(3)

    run_once(main)


# --- heads that say that there is no content ---


@KINDS
def test_answers_without_content_stay_without(run_once: Run, make: Hook) -> None:
    """HEAD, 204 and 304, whatever hooks set; HEAD keeps Content-Length."""

    def change(flow: Flow) -> None:
        assert flow.response is not None
        flow.response.set_body(b"other")

    async def main() -> None:
        async with scene(make(response=change)) as ends:
            ends.ask(1, method=b"HEAD")
            await ends.answer(None, (b"content-length", b"9"))
            assert await ends.got() == (b"200", b"")
            assert dict(ends.client.heads[1])[b"content-length"] == b"5"
            for id, status in ((3, b"204"), (5, b"304")):
                ends.ask(id)
                await ends.until(lambda id=id: id in ends.server.heads)  # type: ignore[misc]
                ends.server.head(id, [(b":status", status)], True)
                assert await ends.got(id) == (status, b"")
                assert b"content-length" not in dict(ends.client.heads[id])

    run_once(main)


@KINDS
def test_hooks_that_change_what_an_answer_may_have(run_once: Run, make: Hook) -> None:
    """A status or a method that has no content, or has some."""

    def request(flow: Flow) -> None:
        if flow.request.path == "/get":
            flow.request.method = "GET"
        elif flow.request.path == "/head":
            flow.request.method = "HEAD"

    def response(flow: Flow) -> None:
        assert flow.response is not None
        if flow.request.path.startswith("/2"):
            flow.response.status = int(flow.request.path[1:])

    async def main() -> None:
        async with scene(make(request=request, response=response)) as ends:
            ends.client.head(1, [(b":method", b"HEAD"), *GET[1:3], (b":path", b"/get")], True)
            await ends.answer(b"hello", (b"content-length", b"5"))
            assert await ends.got(1) == (b"200", b"")
            ends.client.head(3, [*GET[:3], (b":path", b"/head")], True)
            await ends.answer(None, (b"content-length", b"5"), id=3)
            assert await ends.got(3) == (b"200", b"")
            assert dict(ends.client.heads[3])[b"content-length"] == b"0"
            ends.client.head(5, [*GET[:3], (b":path", b"/204")], True)
            await ends.answer(b"hello", (b"content-length", b"5"), id=5)
            assert await ends.got(5) == (b"204", b"")
            assert b"content-length" not in dict(ends.client.heads[5])
            ends.client.head(7, [*GET[:3], (b":path", b"/203")], True)
            await ends.until(lambda: 7 in ends.server.heads)
            ends.server.head(7, [(b":status", b"204")], True)
            assert await ends.got(7) == (b"203", b"")
            await ends.turns()
            assert not ends.relay.streams()

    run_once(main)


# --- ends, and what comes while a hook is at work ---


@pytest.mark.parametrize("body", [b"world", BIG], ids=["small", "big"])
@pytest.mark.parametrize("event", ["response", "response_body", "set_body", "respond", "fail"])
def test_a_server_that_takes_no_more_of_the_request(run_once: Run, body: bytes, event: str) -> None:
    """A whole answer, then RST_STREAM(NO_ERROR) (RFC 9113 section 8.1): the client gets it all, then is told."""

    async def main() -> None:
        gate = Gate()

        async def wait(flow: Flow, *args: Any) -> None:
            await gate.wait(flow)
            if event == "set_body":
                assert flow.response is not None
                flow.response.set_body(body)
            elif event == "respond":
                flow.respond(299, body)
            elif event == "fail":
                raise ZeroDivisionError

        hook = type("Hook", (), {"response_body" if event == "response_body" else "response": staticmethod(wait)})()
        async with scene(hook, close=True) as ends:
            ends.client.head(1, POST)
            ends.client.connection.send_data(1, b"x" * 10_000)
            await ends.answer(body[:9_000], trailers=[(b"x-end", b"1")])
            await ends.until(lambda: gate.seen)
            ends.server.connection.reset_stream(1)
            ends.server.sending.clear()
            await ends.turns()
            assert 1 not in ends.client.resets
            gate.open.set()
            others = {"set_body": (b"200", body), "respond": (b"299", body), "fail": (b"502", b"")}
            assert await ends.got() == others.get(event, (b"200", body[:9_000]))
            if event not in ("respond", "fail"):
                assert ends.client.trailers[1] == [(b"x-end", b"1")]
            await ends.until(lambda: ends.client.resets)
            assert ends.client.resets == {1: 0}
            assert (ends.records[0].error is None) == (event != "fail")

    run_once(main)


def test_the_same_where_nobody_waits(run_once: Run) -> None:
    """An answer that has passed is no error."""
    log = Log()

    async def main() -> None:
        async with scene(log) as ends:
            ends.client.head(1, POST)
            await ends.answer(b"world")
            await ends.got()
            ends.server.connection.reset_stream(1)
            await ends.until(lambda: ends.client.resets)
            assert ends.client.resets == {1: 0}
            assert (log.errors, len(log.ends)) == ([], 1)

    run_once(main)


@pytest.mark.parametrize("event", ["request", "response"])
@pytest.mark.parametrize("who", ["client", "server", "connection"])
def test_ends_while_a_hook_is_at_work(run_once: Run, event: str, who: str) -> None:
    """It is cancelled, and the flow has ended, once; nothing is left of it."""
    if (event, who) == ("request", "server"):
        return

    async def main() -> None:
        gate, log = Gate(event), SlowLog()
        async with scene(gate, log) as ends:
            ends.ask(1, b"hello")
            if event == "response":
                await ends.until(lambda: 1 in ends.server.heads)
                ends.server.head(1, OK)
            await ends.until(lambda: gate.seen)
            if who == "client":
                ends.client.connection.reset_stream(1, 8)
            elif who == "server":
                ends.server.connection.reset_stream(1, 2)
            else:
                ends.relay.close("the connection has ended")
            await ends.until(lambda: log.ends)
            assert gate.cancelled == 1
            assert len(log.errors) == len(ends.records) == 1
            texts = {
                "client": "reset by the client: CANCEL",
                "server": "reset by the server: INTERNAL_ERROR",
                "connection": "the connection has ended",
            }
            assert log.errors == [texts[who]]
            assert ends.records[0].error == texts[who]

    run_once(main)


def test_streams_that_end_before_a_hook_begins(run_once: Run) -> None:
    """Nothing of what was to be done is left, not even a warning."""

    async def main() -> None:
        gate, log = Gate("request"), Log()
        async with scene(gate, log) as ends:
            ends.ask(1, b"hello")
            ends.client.connection.reset_stream(1, 8)
            ends.client.sending.clear()
            ends.go()
            await ends.turns()
            assert gate.seen == []
            assert log.errors == ["reset by the client: CANCEL"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_once(main)
        gc.collect()


def test_hooks_of_the_end_are_waited_for(run_once: Run) -> None:
    """`finish` returns when they have heard of all flows, and these are recorded."""

    async def main() -> None:
        log = SlowLog()
        one = Scene(log)
        for id in range(1, 101, 2):
            one.ask(id)
        one.go()
        one.relay.close("the connection has ended")
        await one.flows.finish()
        assert len(log.ends) == len(log.errors) == len(one.records) == 50
        one.relay.forget()

    run_once(main)


def test_a_hook_that_takes_too_long(run_once: Run) -> None:
    """Its stream goes on without it."""

    async def main() -> None:
        gate = Gate("request", "response")
        async with scene(gate, seconds=0.01) as ends:
            ends.ask(1, b"hello")
            await ends.answer(b"world")
            assert await ends.got() == (b"200", b"world")
            assert gate.cancelled == 2

    run_once(main)


def test_streams_do_not_wait_for_each_other(run_once: Run) -> None:
    """A hook that waits keeps back its own stream alone, whichever came first."""

    class Turns:
        def __init__(self) -> None:
            self.gates: dict[str, asyncio.Event] = {}

        async def request(self, flow: Flow) -> None:
            gate = self.gates[flow.request.path] = asyncio.Event()
            await gate.wait()

    async def main() -> None:
        hook = Turns()
        async with scene(hook) as ends:
            ids = range(1, 61, 2)
            for id in ids:
                ends.client.head(id, [*POST[:3], (b":path", b"/%d" % id)])
                ends.client.body(id, b"%d" % id * 5000)
            await ends.until(lambda: len(hook.gates) == 30)
            for id in reversed(ids):
                hook.gates[f"/{id}"].set()
                count = len(ends.server.ended)
                await ends.until(lambda count=count: len(ends.server.ended) > count)  # type: ignore[misc]
                there = max(ends.server.ended)
                assert dict(ends.server.heads[there])[b":path"] == b"/%d" % id
                assert ends.server.bodies[there] == b"%d" % id * 5000
                await ends.answer(b"a%d" % id, id=there)
                assert await ends.got(id) == (b"200", b"a%d" % id)
            assert len(ends.records) == 30

    run_once(main)


def test_a_read_that_comes_too_late(run_once: Run) -> None:
    """A task that a hook has left behind gets an error, and harms nobody."""
    late: list[asyncio.Task[bytes]] = []

    class Leaves:
        async def request(self, flow: Flow) -> None:
            late.append(asyncio.get_running_loop().create_task(flow.request.read()))
            await asyncio.sleep(0)

    async def main() -> None:
        async with scene(Leaves()) as ends:
            ends.client.head(1, POST)
            await ends.until(lambda: 1 in ends.server.heads)
            ends.client.body(1, BIG)
            await ends.answer(b"world")
            assert await ends.got() == (b"200", b"world")
            await ends.until(lambda: 1 in ends.server.ended)
            assert ends.server.bodies[1] == BIG
            with pytest.raises(RuntimeError, match="has gone on"):
                await late[0]

    run_once(main)


def test_hooks_that_are_replaced(run_once: Run) -> None:
    """A connection that is open asks the new ones, whether they wait or not."""
    seen: list[str] = []

    async def main() -> None:
        async with scene(sync(request=lambda flow: seen.append("sync"))) as ends:
            for id, make in ((1, None), (3, waiting), (5, threaded), (7, sync)):
                if make is not None:
                    ends.hooks.replace([make(request=lambda flow, make=make: seen.append(make.__name__))])
                ends.ask(id)
                await ends.answer(b"", id=id)
                await ends.got(id)
            assert seen == ["sync", "waiting", "threaded", "sync"]

    run_once(main)


# --- the rest ---


@pytest.mark.parametrize("field", [b":authority", b"host"])
@pytest.mark.parametrize("mismatch", ["log", "deny"])
def test_requests_for_another_host(run_once: Run, field: bytes, mismatch: str) -> None:
    """By :authority, or by Host where there is none: 421, or only logged."""

    async def main() -> None:
        log = Log()
        async with scene(log, mismatch=mismatch) as ends:
            head = [*GET[:2], (b":path", b"/")]
            head.insert(2 if field == b":authority" else 3, (field, b"other.test"))
            ends.client.head(1, head, True)
            if mismatch == "log":
                await ends.answer(b"")
            assert await ends.got() == (b"421" if mismatch == "deny" else b"200", b"")
            assert bool(ends.server.heads) == (mismatch == "log")
            assert bool(ends.session.error) == (mismatch == "deny")
            ends.ask(3)
            await ends.answer(b"", id=3)
            assert await ends.got(3) == (b"200", b"")

    run_once(main)


def test_host_stays_where_there_is_no_authority(run_once: Run) -> None:
    """A hook changes something else."""

    def change(flow: Flow) -> None:
        flow.request.headers["x-a"] = "1"

    async def main() -> None:
        async with scene(sync(request=change)) as ends:
            ends.client.head(1, [*GET[:2], (b":path", b"/"), (b"host", b"a.test")], True)
            await ends.answer(b"")
            await ends.got()
            assert ends.asked()[b"host"] == b"a.test"

    run_once(main)


@KINDS
def test_websocket_passes(run_once: Run, make: Hook) -> None:
    """Extended CONNECT (RFC 8441): hooks see the heads, and none of what follows."""
    chunks: list[bytes] = []

    def look(flow: Flow) -> None:
        (flow.response or flow.request).headers["x-seen"] = "1"

    def chunk(flow: Flow, chunk: bytes) -> bytes:
        chunks.append(chunk)
        return b""

    async def main() -> None:
        hook = make(request=look, response=look, request_body=chunk, response_body=chunk)
        async with scene(hook, Reads(), server={8: 1}) as ends:
            head = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:3], (b":path", b"/chat")]
            ends.client.head(1, head)
            await ends.until(lambda: 1 in ends.server.heads)
            ends.server.head(1, OK)
            await ends.until(lambda: 1 in ends.client.heads)
            for _ in range(5):
                ends.client.connection.send_data(1, b"ping")
                await ends.turns(3)
                ends.server.connection.send_data(1, b"pong")
                await ends.turns(3)
            assert (ends.server.bodies[1], ends.client.bodies[1]) == (b"ping" * 5, b"pong" * 5)
            assert ends.asked()[b"x-seen"] == dict(ends.client.heads[1])[b"x-seen"] == b"1"
            assert ends.asked()[b":protocol"] == b"websocket"
            assert chunks == []
            ends.client.connection.end_stream(1)
            ends.server.connection.end_stream(1)
            await ends.got()
            assert len(ends.records) == 1

    run_once(main)


@KINDS
@pytest.mark.parametrize("what", ["pass", "change", "respond", "drop", "fail", "read"])
def test_pushed_streams(run_once: Run, make: Hook, what: str) -> None:
    """Their request can only be looked at, their answers as any other."""

    def request(flow: Flow) -> None:
        assert flow.request.path == "/"

    def response(flow: Flow) -> None:
        assert flow.response is not None
        if flow.request.path == "/":
            return
        if what == "change":
            flow.response.set_body(b"other")
        elif what == "respond":
            flow.respond(299, b"other")
        elif what == "drop":
            flow.drop()
        elif what == "fail":
            raise ZeroDivisionError

    async def main() -> None:
        hooks = [make(request=request, response=response), *([Reads()] if what == "read" else [])]
        async with scene(*hooks, close=True) as ends:
            ends.ask()
            await ends.until(lambda: 1 in ends.server.heads)
            ends.server.connection.push_stream(1, 2, [*GET[:3], (b":path", b"/pushed")])
            ends.server.head(2, OK)
            ends.server.body(2, b"pushed")
            await ends.answer(b"world")
            assert await ends.got() == (b"200", b"world")
            if what in ("drop", "fail"):
                await ends.until(lambda: 2 in ends.client.resets)
            else:
                expected = {"change": (b"200", b"other"), "respond": (b"299", b"other")}
                assert await ends.got(2) == expected.get(what, (b"200", b"pushed"))
            await ends.until(lambda: len(ends.records) == 2)

    run_once(main)


def test_content_that_the_client_holds_back(run_once: Run) -> None:
    """Where a hook reads it, 100 is ours, and the server is not asked for one."""
    hook = Reads()

    async def main() -> None:
        async with scene(hook) as ends:
            ends.client.head(1, [*POST, (b"expect", b"100-continue")])
            await ends.until(lambda: [e for e in ends.client.events if type(e).__name__.startswith("Informational")])
            ends.client.body(1, b"hello")
            await ends.answer(b"world")
            assert await ends.got() == (b"200", b"world")
            assert b"expect" not in ends.asked()
            assert hook.read == [b"hello", b"world"]

    run_once(main)


def test_alt_svc_is_taken_out(run_once: Run) -> None:
    """With hooks and without."""

    async def main() -> None:
        for hooks in ((), (Reads(),)):
            async with scene(*hooks, records=False, strip_alt_svc=True) as ends:
                ends.ask()
                await ends.answer(b"world", (b"alt-svc", b'h3=":443"'))
                assert await ends.got() == (b"200", b"world")
                assert ends.client.heads[1] == OK

    run_once(main)


@pytest.mark.parametrize("make", [sync, waiting], ids=lambda make: make.__name__)
def test_hooks_that_look_at_heads_cost_content_nothing(run_once: Run, make: Hook) -> None:
    """It passes in the relay's fast path where no hook waits; where one does, it is never shown to anybody."""

    def look(flow: Flow) -> None:
        assert flow.request.headers.get("user-agent") == "x"

    async def main() -> None:
        async with scene(make(request=look, response=look), records=False) as ends:
            seen: list[Any] = []
            ends.flows.data = lambda *args: seen.append(args)  # type: ignore[method-assign]
            ends.ask(1, b"x" * 1000)
            await ends.answer(b"y" * 200_000)
            await ends.got()
            assert seen == []
            if make is sync:
                assert ends.relay.up.fast
                assert ends.relay.down.fast
                assert not ends.relay.up.managed
                assert not ends.relay.down.managed

    run_once(main)


class ReadsOnce:
    """Reads requests."""

    async def request(self, flow: Flow) -> None:
        await flow.request.read()


@pytest.mark.parametrize("hooks", [(), (ReadsOnce(),), (SlowLog(),)], ids=["none", "reads", "slow"])
def test_flows_leave_nothing_to_the_garbage_collector(run_once: Run, hooks: tuple[object, ...]) -> None:
    """Neither those that have ended nor those that a connection's end has cut off."""

    async def main() -> None:
        one = Scene(*hooks)
        one.ask(1, b"hello")
        await one.answer(b"world")
        await one.got()
        one.ask(3, b"hello")
        one.client.head(5, POST)
        await one.turns()
        flows, relay = weakref.ref(one.flows), weakref.ref(one.relay)
        gc.collect()
        gc.disable()
        try:
            one.relay.close("gone")
            await one.flows.finish()
            await asyncio.sleep(0)
            one.relay.forget()
            assert one.wrong == []
            asyncio.get_running_loop().set_exception_handler(None)
            del one
            await asyncio.sleep(0)
            assert flows() is None
            assert relay() is None
        finally:
            gc.enable()

    run_once(main)
