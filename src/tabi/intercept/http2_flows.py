"""The flows of a connection of HTTP/2: each stream's heads and content, shown to hooks and recorded.

Where nothing waits, heads are shown inside the relay's turn, and content passes as it came. A hook that waits, or wants
content, gets a task of its own for its stream; all other streams go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from tabi.errors import TabiError
from tabi.intercept.codings import TooLarge
from tabi.intercept.flow import Answer, Drop, Flow, FlowResponse, Instead, Message, Reroute, reason_of
from tabi.intercept.headers import Headers, to_octets, to_text
from tabi.intercept.hooks import Handlers, HookFailed
from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_stages import FrameStages
from tabi.intercept.http2_stream import HELD, HOLD, Hold, Stream
from tabi.intercept.inspection import Inspection, Recording
from tabi.net.stream import Stream as Connection
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import ErrorCode, H2Request
from tabi.wire.hpack import Field

VERSION = "HTTP/2"

OF_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"host", b"te")
)
"""Fields that HTTP/2 does not have (RFC 9113 section 8.2.2), or has otherwise: a hook may have set them."""


class Side:
    """One direction of a flow: what is done with its content."""

    __slots__ = ("arrived", "ended", "handlers", "limit", "payload", "pump", "reading", "size", "taken", "trailing")

    def __init__(self) -> None:
        self.taken = False  # whether content is ours to send on
        self.reading = False  # whether a hook waits for all of it
        self.payload = bytearray()  # that waits for a hook
        self.size = 0  # octets of it that the sender was not given back
        self.limit = 0
        self.ended = False  # whether all has come
        self.arrived: asyncio.Future[None] | None = None
        self.handlers: Handlers = ()
        self.trailing = False
        self.pump: asyncio.Queue[tuple[bytes, bool]] | None = None


class StreamFlow:
    """One flow on its stream."""

    __slots__ = ("answered", "flow", "inspection", "recording", "request", "sides", "stream", "tasks")

    def __init__(
        self, inspection: Inspection, stream: Stream, request: H2Request, flow: Flow, recording: Recording | None
    ) -> None:
        self.inspection = inspection
        self.stream = stream
        self.request = request
        self.flow = flow
        self.recording = recording
        self.sides = {UP: Side(), DOWN: Side()}
        self.tasks: set[asyncio.Task[None]] = set()
        self.answered = False

    def spawn(self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        """Run something for this flow, until it ends."""
        task = loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def read_all(self, direction: int, limit: int) -> bytes:
        """All content of a direction; see `flow.Reader`."""
        side, stream = self.sides[direction], self.stream
        if not side.taken:
            self.take(direction)
        side.reading = True
        try:
            while not side.ended and len(side.payload) <= limit and not stream.over:
                if side.size:
                    size, side.size = side.size, 0
                    stream.consumed(direction, size)
                side.arrived = asyncio.get_running_loop().create_future()
                await side.arrived
        finally:
            side.arrived = None
            side.reading = False
        if stream.over and not side.ended:
            raise ConnectionResetError("the stream has ended")
        if len(side.payload) > limit:
            raise TooLarge(f"the content has more than {limit} octets")
        return bytes(side.payload)

    def take(self, direction: int) -> None:
        """Have content of a direction be ours to send on."""
        side = self.sides[direction]
        if not side.taken and not side.ended:
            side.taken = True
            self.stream.take(direction)

    def close(self) -> None:
        """The stream is over."""
        for side in self.sides.values():
            if side.arrived is not None and not side.arrived.done():
                side.arrived.set_result(None)
        for task in self.tasks:
            task.cancel()


class HalfReader:
    """Reads the content of one direction for hooks."""

    __slots__ = ("direction", "one")

    def __init__(self, one: StreamFlow, direction: int) -> None:
        self.one = one
        self.direction = direction

    async def read_all(self, limit: int) -> bytes:
        """See `flow.Reader`."""
        return await self.one.read_all(self.direction, limit)


class Http2Flows:
    """What a frame relay shows its streams to; see `http2_stream.Inspector`.

    Args:
        inspection: shows the flows to hooks, and records them.
        client: the client's stream, for the loop, and for whoever asks another server.
    """

    def __init__(self, inspection: Inspection, client: Connection) -> None:
        self.inspection = inspection
        self.client = client
        self.loop = client.reactor.loop
        hooks = inspection.hooks
        self.waits = any(
            handler.waits
            for handlers in (hooks.request, hooks.response, hooks.request_body, hooks.response_body)
            for handler in handlers
        )
        self.ends_wait = any(handler.waits for handlers in (hooks.flow_end, hooks.error) for handler in handlers)
        self.ending: set[asyncio.Task[None]] = set()

    # --- heads ---

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        """See `Inspector`."""
        inspection = self.inspection
        if inspection.is_misdirected(request.authority or None) and inspection.rule.mismatch == "deny":
            inspection.session.error = "a request for another host than the connection's"
            stream.answer(421, [(b"content-length", b"0")])
            return None
        if not inspection.sees:
            return None
        method, path = request.method.decode("latin-1"), to_text(request.path or b"/")
        flow = inspection.make_flow(method, path, VERSION, Headers(request.fields))
        recording = None
        if inspection.recorder is not None:
            recording = Recording(inspection.rule.body_limit)
            stream.watch(UP)
            stream.watch(DOWN)
        one = stream.flow = StreamFlow(inspection, stream, request, flow, recording)
        one.sides[UP].ended = end
        hooks = inspection.hooks
        if stream.pushed:
            return None
        if self.waits:
            flow.request._reader = HalfReader(one, UP)
            one.take(UP)
            one.spawn(self.ask(one), self.loop)
            return HOLD
        if hooks.request:
            try:
                hooks.show(hooks.request, flow, flow.request)
            except HookFailed as exc:
                self.fail(one, exc)
                return None
        if flow.instead is not None:
            return self.answer_instead(one, flow.instead)
        if flow.request._content is None and not hooks.request_body:
            return self.head_of(one) if flow.request.changed else None
        self.begin_content(one, UP, flow.request, hooks.request_body)
        found = self.head_of(one)
        self.go_on(one, UP, flow.request, found)
        return HOLD

    async def ask(self, one: StreamFlow) -> None:
        """Show a request to hooks that wait, then send it on."""
        inspection, flow, stream = self.inspection, one.flow, one.stream
        hooks = inspection.hooks
        try:
            await hooks.on_message(hooks.request, flow, flow.request)
        except HookFailed as exc:
            self.fail(one, exc)
            return
        if stream.over:
            return
        if flow.instead is not None:
            self.answer_instead(one, flow.instead)
            return
        self.begin_content(one, UP, flow.request, hooks.request_body)
        self.go_on(one, UP, flow.request, self.head_of(one))

    def response(
        self, stream: Stream, status: int, fields: list[Field], end: bool
    ) -> tuple[int, list[Field]] | Hold | None:
        """See `Inspector`."""
        inspection = self.inspection
        one: StreamFlow | None = stream.flow
        message = FlowResponse(status, reason_of(status), VERSION, Headers(fields))
        inspection.mend_response(message)
        if one is None:
            return (status, to_fields(message)) if message.changed else None
        one.flow.response = message
        one.sides[DOWN].ended = end
        if one.recording is not None:
            one.recording.mark(2)
        hooks = inspection.hooks
        if self.waits and (hooks.response or hooks.response_body):
            message._reader = HalfReader(one, DOWN)
            one.take(DOWN)
            one.spawn(self.ask_response(one, message), self.loop)
            return HOLD
        if hooks.response:
            try:
                hooks.show(hooks.response, one.flow, message)
            except HookFailed as exc:
                self.fail(one, exc)
                return None
            if one.flow.instead is not None:
                return self.answer_instead(one, one.flow.instead)
        if message._content is None and not hooks.response_body:
            return (message.status, to_fields(message)) if message.changed else None
        self.begin_content(one, DOWN, message, hooks.response_body)
        self.go_on(one, DOWN, message, (message.status, to_fields(message)))
        return HOLD

    async def ask_response(self, one: StreamFlow, message: FlowResponse) -> None:
        """Show a response to hooks that wait, then send it on."""
        hooks = self.inspection.hooks
        try:
            await hooks.on_message(hooks.response, one.flow, message)
        except HookFailed as exc:
            self.fail(one, exc)
            return
        if one.stream.over:
            return
        if one.flow.instead is not None:
            self.answer_instead(one, one.flow.instead)
            return
        self.begin_content(one, DOWN, message, hooks.response_body)
        self.go_on(one, DOWN, message, (message.status, to_fields(message)))

    def head_of(self, one: StreamFlow) -> H2Request:
        """The request as the hooks have left it."""
        request, message = one.request, one.flow.request
        path = to_octets(message.path) if request.path else b""
        return H2Request(
            message.method.encode("latin-1"),
            request.scheme,
            request.authority,
            path,
            request.protocol,
            to_fields(message),
        )

    # --- content ---

    def begin_content(self, one: StreamFlow, direction: int, message: Message, handlers: Handlers) -> None:
        """Find out what is done with the content of a message, whose head is about to go on."""
        side = one.sides[direction]
        if message._content is not None:
            one.take(direction)
            message.headers["content-length"] = str(len(message._content))
        elif handlers and not (side.ended and not side.payload):
            one.take(direction)
            side.handlers = handlers
            message.headers.remove("content-length")

    def go_on(self, one: StreamFlow, direction: int, message: Message, head: Any) -> None:
        """Send a head on that was held, and what was read or set of its content."""
        stream, side = one.stream, one.sides[direction]
        content = message._content
        own = content is not None
        if not own:
            content = bytes(side.payload)
        assert content is not None
        over = own or (side.ended and side.taken)
        end: bool | None = None
        if side.taken or own:
            end = over and not content
        if direction == UP:
            stream.send_request(head if own or side.handlers or message_changed(message) else None, end)
        else:
            stream.send_response(head if own or side.handlers or message_changed(message) else None, end)
        side.payload.clear()
        if not (side.taken or own) or stream.over:
            return
        if own:
            if one.recording is not None:
                one.recording.note(direction, content)
            side.handlers = ()
            side.trailing = True  # what comes is passed over
            self.give_back(one, direction)
            if content:
                stream.send(direction, content, True)
            return
        if content or over:
            self.pass_on(one, direction, content, side.ended)

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        """See `Inspector`."""
        one: StreamFlow | None = stream.flow
        if one is None:
            return
        side = one.sides[direction]
        side.ended = side.ended or end
        if not side.taken:
            if one.recording is not None:
                one.recording.note(direction, payload)
                if end and direction == UP:
                    one.recording.mark(1)
            return
        side.size += len(payload)
        if side.trailing:
            self.give_back(one, direction)
            return
        held = side.arrived is not None or self.is_held(one, direction)
        if held:
            side.payload += payload
            if side.arrived is not None and not side.arrived.done():
                side.arrived.set_result(None)
            return
        self.pass_on(one, direction, payload, end)

    def is_held(self, one: StreamFlow, direction: int) -> bool:
        """Whether the head has not gone on yet: a hook is at work."""
        return bool(one.stream.half(direction).flags & HELD)

    def pass_on(self, one: StreamFlow, direction: int, payload: bytes, end: bool) -> None:
        """Send content on that is ours to send, through the hooks that want to see it."""
        side = one.sides[direction]
        if not side.handlers:
            self.send(one, direction, payload, end)
        elif any(handler.waits for handler in side.handlers) or side.pump is not None:
            if side.pump is None:
                side.pump = asyncio.Queue()
                one.spawn(self.run_pump(one, direction, side.pump), self.loop)
            side.pump.put_nowait((payload, end))
        else:
            try:
                shown = self.show_chunk(side.handlers, one, payload) if payload else b""
            except HookFailed as exc:
                self.fail(one, exc)
                return
            self.send(one, direction, shown, end)

    def show_chunk(self, handlers: Handlers, one: StreamFlow, payload: bytes) -> bytes:
        """What goes on of a chunk, by hooks that do not wait. Raises HookFailed."""
        return self.inspection.hooks.show_data(handlers, payload, one.flow)

    async def run_pump(self, one: StreamFlow, direction: int, pump: asyncio.Queue[tuple[bytes, bool]]) -> None:
        """Show content to hooks that wait, chunk by chunk."""
        side, hooks = one.sides[direction], self.inspection.hooks
        while True:
            payload, end = await pump.get()
            try:
                shown = await hooks.on_chunk(side.handlers, one.flow, payload) if payload else b""
            except HookFailed as exc:
                self.fail(one, exc)
                return
            self.send(one, direction, shown, end)
            if end:
                return

    def send(self, one: StreamFlow, direction: int, payload: bytes, end: bool) -> None:
        """Send content, and have its sender send more when it is on its way."""
        if one.recording is not None:
            one.recording.note(direction, payload)
        if payload or end:
            one.stream.send(direction, payload, end)
        if not one.stream.over and not one.stream.waiting(direction) - one.sides[direction].size > 0:
            self.give_back(one, direction)

    def give_back(self, one: StreamFlow, direction: int) -> None:
        """Have the sender send as much as was taken."""
        side = one.sides[direction]
        size, side.size = side.size, 0
        if size:
            one.stream.consumed(direction, size)

    def trailers(self, stream: Stream, direction: int, fields: list[Field]) -> list[Field] | None:
        """See `Inspector`: they pass."""
        return None

    def writable(self, stream: Stream, direction: int) -> None:
        """See `Inspector`."""
        one: StreamFlow | None = stream.flow
        if one is not None and not stream.over:
            self.give_back(one, direction)
            side = one.sides[direction]
            if side.arrived is not None and not side.reading and not side.arrived.done():
                side.arrived.set_result(None)

    # --- answers in the server's place, and the end ---

    def answer_instead(self, one: StreamFlow, instead: Instead) -> Hold:
        """Answer as a hook says."""
        stream, flow = one.stream, one.flow
        if isinstance(instead, Drop):
            flow.error = "a hook has dropped it"
            stream.reset(flow.error)
        elif isinstance(instead, Reroute):
            one.spawn(self.answer_from(one, instead), self.loop)
        else:
            self.answer_with(one, instead)
        return HOLD

    def answer_with(self, one: StreamFlow, answer: Answer) -> None:
        """Send a hook's answer."""
        message = FlowResponse(answer.status, reason_of(answer.status), VERSION, answer.headers)
        body = answer.body
        if answer.status not in (204, 304):
            message.headers["content-length"] = str(len(body))
        one.flow.response = message
        if one.recording is not None:
            one.recording.mark(1)
            one.recording.mark(2)
            one.recording.note(DOWN, body)
        if one.stream.answered:
            self.fail(one, TabiError("a hook answers what was answered already"))
            return
        one.stream.answer(answer.status, to_fields(message), body)

    async def answer_from(self, one: StreamFlow, reroute: Reroute) -> None:
        """Send what another server says."""
        stream, flow, inspection = one.stream, one.flow, self.inspection
        try:
            content = flow.request._content
            if content is None:
                content = await one.read_all(UP, inspection.rule.body_limit)
            fields = [(name, value.strip(b" \t")) for name, value in flow.request.headers.raw]
            fetched = await inspection.fetch(
                inspection, self.client, reroute.url, flow.request.method, fields, content, reroute.via
            )
        except (TabiError, OSError) as exc:
            reason = str(exc) if isinstance(exc, TabiError) else (exc.strerror or str(exc)).lower()
            self.fail(one, TabiError(f"reroute: {reason}"))
            return
        try:
            message = FlowResponse(fetched.status, to_text(fetched.reason), VERSION, Headers(fetched.fields))
            flow.response = message
            if one.recording is not None:
                one.recording.mark(1)
                one.recording.mark(2)
            stream.answer(message.status, to_fields(message), b"", end=False)
            side = one.sides[DOWN]
            async for piece in fetched.content():
                if stream.over:
                    return
                if one.recording is not None:
                    one.recording.note(DOWN, piece)
                stream.send(DOWN, piece)
                while stream.waiting(DOWN) and not stream.over:
                    side.arrived = self.loop.create_future()
                    await side.arrived
            stream.send(DOWN, b"", True)
        except (TabiError, OSError) as exc:
            self.fail(one, TabiError(f"reroute: {exc}"))
        finally:
            one.sides[DOWN].arrived = None
            await fetched.aclose()

    def fail(self, one: StreamFlow, exc: TabiError) -> None:
        """A flow cannot go on: the client is told, by an answer if it has none."""
        flow, stream = one.flow, one.stream
        flow.error = flow.error or str(exc)
        if stream.over:
            return
        if stream.answered or stream.pushed:
            stream.reset(flow.error, ErrorCode.INTERNAL_ERROR)
        else:
            stream.answer(502, [(b"content-length", b"0")])

    def ended(self, stream: Stream, error: str | None) -> None:
        """See `Inspector`."""
        one: StreamFlow | None = stream.flow
        if one is None:
            return
        stream.flow = None
        flow = one.flow
        flow.error = flow.error or error
        one.close()
        if not self.ends_wait:
            self.inspection.ended_now(flow, one.recording)
            return
        task = self.loop.create_task(self.inspection.ended(flow, one.recording))
        self.ending.add(task)
        task.add_done_callback(self.ending.discard)


def message_changed(message: Message) -> bool:
    """Whether a head is not what it was."""
    return bool(getattr(message, "changed", False))


def to_fields(message: Message) -> list[Field]:
    """The fields of a head as HTTP/2 sends them: names in small letters, none of a connection."""
    found = [(name.lower(), value.strip(b" \t")) for name, value in message.headers.raw]
    return [
        (name, value) for name, value in found if name not in OF_CONNECTION or (name, value) == (b"te", b"trailers")
    ]


def make_stages(inspection: Inspection, client: Connection) -> FrameStages:
    """The two stages of a connection of HTTP/2."""
    looks = inspection.sees or inspection.mends or inspection.rule.mismatch == "deny"
    inspector = Http2Flows(inspection, client) if looks else None
    return FrameStages(FrameRelay(inspector, inspection.rule.strip_alt_svc))
