"""One flow on its stream of HTTP/2: how its heads and its content go on when hooks have seen them.

Content is taken from the relay only for hooks that want it. It goes on as fast as the slowest of sender, hook and
receiver: the sender may send more for what has gone on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import time
from typing import TYPE_CHECKING, Any, cast

from tabi.errors import TabiError, TooLarge
from tabi.intercept.flow import (
    GONE,
    Answer,
    Drop,
    Fetched,
    Flow,
    FlowResponse,
    Given,
    Instead,
    Later,
    Message,
    Reroute,
    Truncate,
    Truncated,
)
from tabi.intercept.framing import answer_of
from tabi.intercept.headers import Headers, to_text
from tabi.intercept.hooks import Handlers, HookFailed
from tabi.intercept.http2_heads import VERSION, reframe, request_head, settle_response, to_fields
from tabi.intercept.http2_stream import Stream
from tabi.intercept.http2_websocket import PROTOCOL, StreamSocket
from tabi.intercept.inspection import Recording
from tabi.intercept.websocket import open_websocket
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import ErrorCode, H2Request
from tabi.wire.hpack import Field
from tabi.wire.http import encode_date

if TYPE_CHECKING:
    from tabi.intercept.http2_flows import Http2Flows
    from tabi.net.stream import Stream as NetStream

log = logging.getLogger("tabi")

PIECE = 1 << 16
"""Octets that a hook that waits is shown at once, and that may be on their way to the receiver meanwhile."""

READ_LIMIT = 32 << 20
"""Octets that hooks read of all streams of a connection together."""

DISCARDED = 1 << 20
"""Octets of an answer that go nowhere, where a hook has set another content, for the trailers behind them."""


class Side:
    """Content of one direction of a flow that was taken from the relay.

    Attributes:
        payload: what waits: for its head to go on, or for a hook.
        size: octets that the sender was not given back.
        ended: all has come.
        gone: the head has gone on.
        skips: what comes goes nowhere, since there is another content.
        left: octets that may do so until the end is sent; 0: it was sent.
        handlers: see what goes on.
        pumped: a task shows it to them.
        woken: something has happened to it.
    """

    __slots__ = ("ended", "gone", "handlers", "left", "payload", "pumped", "size", "skips", "woken")

    def __init__(self, ended: bool) -> None:
        self.payload = bytearray()
        self.size = self.left = 0
        self.ended = ended
        self.gone = self.skips = self.pumped = False
        self.handlers: Handlers = ()
        self.woken = asyncio.Event()

    async def news(self) -> None:
        """Wait for something to happen."""
        self.woken.clear()
        await self.woken.wait()


class HalfReader:
    """Reads the content of one direction for hooks; see `flow.Reader`."""

    __slots__ = ("direction", "one")

    def __init__(self, one: StreamFlow, direction: int) -> None:
        self.one = one
        self.direction = direction

    async def read_all(self, limit: int) -> bytes:
        """See `flow.Reader`."""
        return await self.one.read_all(self.direction, limit)


class StreamFlow:
    """A flow and its stream.

    Attributes:
        sides: content that was taken, by its direction.
        empty: directions whose head was the end, together.
        came: the response's fields as they came.
        read: octets that hooks have read, or are reading.
        socket: once it is a WebSocket.
    """

    __slots__ = ("came", "empty", "flow", "flows", "read", "recording", "request", "sides", "socket", "stream", "tasks")

    def __init__(
        self, flows: Http2Flows, stream: Stream, request: H2Request, flow: Flow, recording: Recording | None
    ) -> None:
        self.flows = flows
        self.stream = stream
        self.request = request
        self.flow = flow
        self.recording = recording
        self.sides: dict[int, Side] = {}
        self.empty = self.read = 0
        self.came: list[Field] = []
        self.socket: StreamSocket | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def is_tunnel(self, direction: int) -> bool:
        """Whether what follows a head is no content, but another protocol (RFC 9113 section 8.5, RFC 8441)."""
        if self.request.method != b"CONNECT":
            return False
        response = self.flow.response
        return direction == UP or (response is not None and 200 <= response.status < 300)

    # --- hooks that wait ---

    async def ask(self, handlers: Handlers, message: Message) -> None:
        """Show a head to hooks that wait, then go on."""
        direction = UP if message is self.flow.request else DOWN
        if not self.is_tunnel(direction):
            message._reader = HalfReader(self, direction)
        try:
            await self.flows.hooks.on_message(handlers, self.flow, message)
        except HookFailed as exc:
            self.fail(exc)
            return
        if not self.stream.over:
            self.go_on(direction)

    async def read_all(self, direction: int, limit: int) -> bytes:
        """All content of a direction; see `flow.Reader`."""
        side, stream = self.take(direction), self.stream
        if direction == UP and not side.payload and not side.ended:
            self.go_ahead()
        while not side.ended and len(side.payload) <= limit:
            self.give_back(direction, side, side.size)
            await side.news()
            if side.gone:
                return await GONE.read_all(limit)
            if stream.over:
                raise ConnectionResetError("the stream has ended")
            if self.flows.read > READ_LIMIT:
                raise TooLarge(f"hooks read more than {READ_LIMIT} octets of one connection")
        if len(side.payload) > limit:
            raise TooLarge(f"the content has more than {limit} octets")
        return bytes(side.payload)

    def take(self, direction: int) -> Side:
        """Have content of a direction come here, from its beginning; its head has not gone on."""
        side = self.sides.get(direction)
        if side is None:
            side = self.sides[direction] = Side(bool(self.empty & direction))
            if not side.ended:
                self.stream.take(direction)
        return side

    def give_back(self, direction: int, side: Side, octets: int) -> None:
        """Have the sender send as much again."""
        if octets:
            side.size -= octets
            self.stream.consumed(direction, octets)

    def count_read(self, octets: int) -> None:
        """So many octets are kept for hooks, or no longer."""
        self.read += octets
        self.flows.read += octets

    async def settle(self, later: Later, direction: int) -> None:
        """Wait until it is known what becomes of a message, then go on."""
        self.flow.instead = None
        self.flow.instead = await later.steps(self.flow)
        instead = self.flow.instead
        if not self.stream.over:
            self.go_on(direction)
        elif isinstance(instead, Given):
            await instead.fetched.aclose()

    def go_ahead(self) -> None:
        """Have the client send content that it holds back, as it is read here."""
        headers = self.flow.request.headers
        if (headers.get("expect") or "").lower() == "100-continue":
            headers.remove("expect")
            self.stream.send_interim(100)

    # --- what goes on ---

    def go_on(self, direction: int) -> None:
        """Hooks have seen a head that is held: send it on, with its content, or answer as they say."""
        flow, hooks, cut = self.flow, self.flows.hooks, None
        if isinstance(flow.instead, Later):
            self.spawn(self.settle, flow.instead, direction)
            return
        if isinstance(flow.instead, Truncate) and direction == DOWN:
            cut, flow.instead = flow.instead, None
        if flow.instead is not None:
            self.answer_instead(flow.instead, direction)
            return
        tunnel = self.is_tunnel(direction)
        handlers, nothing = hooks.request_body, False
        message: Message = flow.request
        came = self.request.fields
        if direction == DOWN:
            assert flow.response is not None
            nothing = settle_response(flow.response, flow.request.method, self.stream.method)
            message, came, handlers = flow.response, self.came, hooks.response_body
        own = b"" if nothing and message._content is not None else message._content
        empty = bool(self.empty & direction)
        if tunnel:
            own = message._content = None
        if empty or tunnel or own is not None or nothing:
            handlers = ()
        cut = None if nothing or tunnel or (empty and own is None) else cut
        if not empty and not tunnel and (own is not None or nothing or handlers or cut is not None):
            self.take(direction)
        side = self.sides.get(direction)
        reframe(message, came, bool(handlers) and cut is None)
        if side is None and cut is not None:
            side = self.sides[direction] = Side(True)
        if side is None:
            self.watch(direction)
            self.note(direction, own or b"")
            self.send_head(direction, None if own is None else not own)
            if own:
                self.stream.send(direction, own, True)
            return
        side.gone = True
        side.woken.set()
        if message._read is None:
            self.count_read(-len(side.payload))
        if cut is not None:
            side.pumped = True
            self.spawn(self.send_part, side, own, cut)
        elif own is not None or nothing:
            self.send_own(direction, side, own or b"", nothing)
        else:
            self.send_rest(direction, side, handlers)

    def send_head(self, direction: int, end: bool | None) -> None:
        """Send a head as the hooks have left it."""
        if direction == UP:
            message = self.flow.request
            self.stream.send_request(request_head(self.request, message) if message.changed else None, end)
        else:
            self.stream.send_response(self.response_head(), end)

    def response_head(self) -> tuple[int, list[Field]] | None:
        """The response's head as the hooks have left it; None: as it came."""
        response = self.flow.response
        assert response is not None
        if self.request.protocol == PROTOCOL and self.is_tunnel(DOWN):
            self.open_socket()
        return (response.status, to_fields(response.headers, self.came)) if response.changed else None

    def send_own(self, direction: int, side: Side, own: bytes, nothing: bool) -> None:
        """Send a content in place of the one that comes. Trailers of an answer still go behind it (gRPC has some)."""
        stream = self.stream
        later = direction == DOWN and not side.ended and not nothing
        trailers = not nothing and side.ended and self.has_trailers(direction)
        side.skips, side.left = True, DISCARDED if later else 0
        side.payload.clear()
        self.note(direction, own, True)
        self.send_head(direction, not (own or later or trailers))
        if own or trailers:
            stream.send(direction, own, not later)
        self.give_back(direction, side, side.size)

    async def send_part(self, side: Side, own: bytes | None, cut: Truncate) -> None:
        """Send an answer on, but of its content only so much, and reset the stream if there is more."""
        stream, left, more, end = self.stream, cut.octets, False, False
        self.send_head(DOWN, False)
        if own is not None:
            side.skips = True
            self.give_back(DOWN, side, side.size)
            more = len(own) > left
            self.send(DOWN, side, own[:left], not more, 0)
            end = True
        while not (end or more or stream.over):
            while not side.payload and not side.ended:
                await side.news()
            piece = bytes(side.payload[:PIECE])
            del side.payload[:PIECE]
            more = len(piece) > left
            end = side.ended and not side.payload and not more
            self.send(DOWN, side, piece[:left], end, len(piece))
            left -= min(len(piece), left)
            while not stream.over and stream.waiting(DOWN) - side.size > PIECE:
                await side.news()
        while more and not stream.over and stream.waiting(DOWN) > side.size:
            await side.news()
        if more and not stream.over:
            self.flow.error = self.flow.error or cut.why
            stream.reset(cut.why, ErrorCode.INTERNAL_ERROR)

    def send_rest(self, direction: int, side: Side, handlers: Handlers) -> None:
        """Send what was taken, and what follows, through hooks where these want to see it."""
        stream = self.stream
        payload, end = bytes(side.payload), side.ended
        bare = end and not payload and not self.has_trailers(direction)
        if not handlers or bare:
            self.note(direction, payload, end)
        self.send_head(direction, bare)
        if stream.over or bare:
            return
        if not handlers:
            del self.sides[direction]
            stream.send(direction, payload, end)
            self.give_back(direction, side, side.size)
            if not end:
                self.watch(direction)
                stream.leave(direction)
            return
        side.handlers = handlers
        if waits(handlers):
            side.pumped = True
            self.spawn(self.pump, direction, side)
        else:
            side.payload.clear()
            if payload or end:
                self.show(direction, side, payload, end)

    def has_trailers(self, direction: int) -> bool:
        """Whether trailers have come behind content that was taken. They go out with the end."""
        return self.stream.half(direction).trailers is not None

    def data(self, direction: int, payload: bytes, end: bool) -> None:
        """See `Inspector`."""
        if self.socket is not None:
            self.socket.data(direction, payload, end)
            return
        side = self.sides.get(direction)
        if side is None:
            self.note(direction, payload, end)
            return
        side.ended = side.ended or end
        side.size += len(payload)
        if side.skips:
            self.skip(direction, side, len(payload))
        elif side.gone and not side.pumped:
            self.show(direction, side, payload, end)
        else:
            if not side.gone:
                self.count_read(len(payload))
            side.payload += payload
            side.woken.set()

    def skip(self, direction: int, side: Side, octets: int) -> None:
        """Content has come that goes nowhere."""
        self.give_back(direction, side, octets)
        if side.left:
            side.left = 0 if side.ended else max(side.left - octets, 0)
            if not side.left:
                self.stream.send(direction, b"", True)

    def show(self, direction: int, side: Side, payload: bytes, end: bool) -> None:
        """Send content on through hooks that do not wait."""
        try:
            shown = self.flows.hooks.show_data(side.handlers, payload, self.flow) if payload else b""
        except HookFailed as exc:
            self.fail(exc)
            return
        self.send(direction, side, shown, end, len(payload))

    async def pump(self, direction: int, side: Side) -> None:
        """Send content on through hooks that wait, as fast as they, and the receiver, go."""
        stream, end = self.stream, False
        while not end:
            while not side.payload and not side.ended:
                await side.news()
            piece = bytes(side.payload[:PIECE])
            del side.payload[:PIECE]
            end = side.ended and not side.payload
            try:
                shown = await self.flows.hooks.on_chunk(side.handlers, self.flow, piece) if piece else b""
            except HookFailed as exc:
                self.fail(exc)
                return
            self.send(direction, side, shown, end, len(piece))
            while not stream.over and stream.waiting(direction) - side.size > PIECE:
                await side.news()

    def send(self, direction: int, side: Side, shown: bytes, end: bool, came: int) -> None:
        """Send what hooks have made of so many octets that came."""
        self.note(direction, shown, end)
        self.stream.send(direction, shown, end)
        self.give_back(direction, side, came)

    def writable(self, direction: int) -> None:
        """See `Inspector`."""
        if self.socket is not None:
            self.socket.writable(direction)
        side = self.sides.get(direction)
        if side is not None:
            side.woken.set()

    def open_socket(self) -> None:
        """A WebSocket follows: its messages go to whoever wants to see them."""
        flows = self.flows
        socket = open_websocket(flows.inspection, self.flow, self.recording, flows.client.reactor.late)
        if socket is not None:
            self.socket = StreamSocket(socket, self.stream, flows.loop.call_soon)
            self.socket.begin()

    # --- answers in the server's place ---

    def answer_instead(self, instead: Instead, direction: int) -> None:
        """Answer as hooks say that have seen the head of a direction."""
        if isinstance(instead, Answer):
            self.answer_with(instead)
        elif isinstance(instead, Drop):
            self.flow.error = "a hook has dropped it"
            self.stream.reset(self.flow.error)
        elif isinstance(instead, Given):
            self.spawn(self.answer_from, instead.fetched)
        elif direction == DOWN or not isinstance(instead, Reroute):
            self.fail(TabiError("a hook has rerouted what was answered already"))
        else:
            self.take(UP)  # also what comes before the task begins
            self.spawn(self.reroute, instead)

    def answer_with(self, answer: Answer) -> None:
        """Send a hook's answer."""
        flow, stream = self.flow, self.stream
        flow.response, body = answer_of(answer)
        flow.response.version = VERSION
        if stream.pushed:  # the client did not ask: it gets an answer of the server's with another head and content
            flow.instead, flow.response._content = None, body
            self.go_on(DOWN)
            return
        self.mark_answered()
        self.note(DOWN, b"" if stream.method == b"HEAD" else body)
        stream.answer(answer.status, own_fields(flow.response), body)

    async def reroute(self, reroute: Reroute) -> None:
        """Send what another server says."""
        flows, request, inspection = self.flows, self.flow.request, self.flows.inspection
        try:
            content = request._content
            if content is None:
                content = await self.read_all(UP, inspection.rule.body_limit)
            self.note(UP, content)
            fields = [(name, value.strip(b" \t")) for name, value in request.headers.raw]
            client = cast("NetStream", flows.client)
            fetched = await inspection.fetch(inspection, client, reroute, request.method, fields, content)
        except (TabiError, OSError) as exc:
            self.fail(TabiError(f"reroute: {reason_for(exc)}"))
            return
        await self.answer_from(fetched if reroute.mold is None else await reroute.mold(self.flow, fetched))

    async def answer_from(self, fetched: Fetched) -> None:
        """Send an answer that is read from somewhere else."""
        stream, flow = self.stream, self.flow
        try:
            response = FlowResponse(fetched.status, to_text(fetched.reason), VERSION, Headers(fetched.fields))
            flow.response = response
            self.mark_answered()
            side = self.sides[DOWN] = Side(False)
            stream.answer(response.status, own_fields(response), b"", end=False)
            async for piece in fetched.content():
                self.note(DOWN, piece)
                stream.send(DOWN, piece)
                while stream.waiting(DOWN) and not stream.over:
                    await side.news()
                if stream.over:
                    return
            stream.send(DOWN, b"", True)
        except Truncated as exc:
            self.fail(exc)
        except (TabiError, OSError) as exc:
            self.fail(TabiError(f"reroute: {reason_for(exc)}"))
        finally:
            await fetched.aclose()

    def fail(self, exc: TabiError) -> None:
        """The flow cannot go on: the client is told, by an answer if it has none."""
        flow, stream = self.flow, self.stream
        flow.error = flow.error or str(exc)
        if stream.over:
            return
        if stream.answered or stream.pushed:
            stream.reset(flow.error, ErrorCode.INTERNAL_ERROR)
        else:
            stream.answer(502, error_fields("proxy_internal_error"))

    # --- records ---

    def watch(self, direction: int) -> None:
        """Record the content of a direction, which passes by itself."""
        if self.recording is not None:
            if self.empty & direction:
                self.note(direction, b"", True)
            elif not self.is_tunnel(direction):
                self.stream.watch(direction)

    def note(self, direction: int, payload: bytes, end: bool = False) -> None:
        """Record content that goes on."""
        if self.recording is not None:
            self.recording.note(direction, payload)
            if end and direction == UP:
                self.mark_sent()

    def mark_sent(self) -> None:
        """The whole request was sent, or nothing more of it counts: its answer has begun."""
        if self.recording is not None and self.recording.moments[1] is None:
            self.recording.mark(1)

    def mark_answered(self) -> None:
        """The answer has begun."""
        self.mark_sent()
        if self.recording is not None:
            self.recording.mark(2)

    # --- tasks, and the end ---

    def spawn(self, steps: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Go on in a task, which ends with the stream."""
        task = self.flows.start(self.guard(steps, *args))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def guard(self, steps: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """What goes wrong unexpectedly ends the flow, and nothing else."""
        try:
            await steps(*args)
        except asyncio.CancelledError:
            if not self.stream.over:
                raise
            # The end of the stream has done that. The task would hold the error, that its frames, and these the task.
        except Exception as exc:
            log.error("a flow has failed", exc_info=exc)
            self.fail(TabiError("an internal error"))

    def close(self) -> None:
        """The stream is over."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        self.count_read(-self.read)
        for side in self.sides.values():
            side.woken.set()
        if self.tasks:
            current = asyncio.current_task(self.flows.loop)
            for task in self.tasks:
                if task is not current:
                    task.cancel()


def waits(handlers: Handlers) -> bool:
    """Whether one of them has to be awaited."""
    return any(handler.waits for handler in handlers) if handlers else False


def reason_for(exc: TabiError | OSError) -> str:
    """What went wrong, in words."""
    return (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)


def own_fields(response: FlowResponse) -> list[Field]:
    """The fields of an answer that did not come from the server."""
    fields = to_fields(response.headers)
    if "Date" not in response.headers:
        fields.append((b"date", encode_date(int(time())).partition(b": ")[2]))
    return fields


def error_fields(error: str) -> list[Field]:
    """The fields of an answer that says that there is none."""
    return [(b"proxy-status", b"tabi; error=" + error.encode()), (b"content-length", b"0")]
