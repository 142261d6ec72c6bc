"""Flows of HTTP/2: what a frame relay passes, shown to hooks and recorded.

    streams where hooks answer at once    inside the relay's own calls, as frames pass
    streams where a hook waits            held, while a task of the stream goes on with it

All tasks belong to `Http2Flows.carry`, which returns when the connection has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from time import time
from typing import Any, cast

from tabi.errors import RemoteProtocolError, TabiError
from tabi.intercept.codings import TooLarge
from tabi.intercept.flow import Answer, Drop, Flow, FlowResponse, Message, Reroute
from tabi.intercept.framing import answer_of
from tabi.intercept.headers import Headers, to_octets, to_text
from tabi.intercept.hooks import Handlers, HookFailed
from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_outlet import STREAM_CREDIT
from tabi.intercept.http2_stages import FrameStages
from tabi.intercept.http2_stream import HOLD, Hold, Stream
from tabi.intercept.http2_websocket import PROTOCOL, StreamSocket
from tabi.intercept.inspection import Inspection, Recording
from tabi.intercept.websocket import open_websocket
from tabi.net.stream import Stream as NetStream
from tabi.policy.limits import DOWN, UP
from tabi.relay.tunnel import HeadSock, Tunnel
from tabi.wire.h2 import OF_CONNECTION, ErrorCode, H2Request
from tabi.wire.hpack import Field, NeverIndexed
from tabi.wire.http import encode_date

VERSION = "HTTP/2"
PASSES, WATCHED, READ, KEPT, DISCARDED, SHOWN = range(6)
"""What is done with a half's content: nothing; it is recorded; a hook waits for all of it; one
has read it, and it went on; another is sent; each piece is shown to hooks."""


READ_LIMIT = 32 << 20
"""Octets that hooks read of all streams of a connection together."""


def waits(handlers: Handlers) -> bool:
    """Whether a task is needed for hooks."""
    return any(handler.waits for handler in handlers)


def to_fields(raw: Iterable[Field], before: Iterable[Field] = ()) -> list[Field]:
    """Fields that a hook has changed, as HTTP/2 has them; secrets ``before`` stay such that nobody indexes."""
    never = {tuple(field) for field in before if type(field) is NeverIndexed}
    found: list[Field] = []
    for name, value in raw:
        field = (name.lower(), value.strip(b" \t"))
        if field[0] not in OF_CONNECTION:
            found.append(NeverIndexed(field) if field in never else field)
    return found


class Relayed:
    """The client's stream for those who wait on its behalf (`ingress.presence`), while a relay has its socket."""

    def __init__(self, stream: NetStream) -> None:
        self.reactor = stream.reactor
        self.fd = stream.fd
        self.peer = stream.peer
        self.events = 0
        self.on_gone: Callable[[], object] | None = None

    def closed(self) -> None:
        """The relay has ended: the descriptor may be another's."""
        self.fd = -1


class Body:
    """The content of one half, for whoever wants to see it."""

    __slots__ = ("asked", "content", "direction", "ended", "flows", "limit", "mode", "recording", "stream", "waiter")

    def __init__(self, flows: Http2Flows, stream: Stream, direction: int, recording: Recording | None) -> None:
        self.flows = flows
        self.stream = stream
        self.direction = direction
        self.recording = recording
        self.mode = PASSES
        self.content = bytearray()  # that waits for a hook
        self.limit = 0
        self.ended = False
        self.asked = True  # whether the sender knows that it is to send
        self.waiter: asyncio.Future[None] | None = None

    def take(self, mode: int) -> None:
        """Have the content come here."""
        self.mode = mode
        self.stream.take(self.direction)

    def receive(self, payload: bytes, end: bool) -> None:
        """A piece has come."""
        mode, stream = self.mode, self.stream
        self.ended = end
        if end and self.direction == UP and self.recording is not None:
            self.recording.mark(1)
        if mode == WATCHED:
            self.note(payload)
        elif mode == DISCARDED:
            stream.consumed(self.direction, len(payload))
        else:
            self.content += payload
            if mode == READ:
                self.flows.read += len(payload)
                if len(self.content) <= self.limit:
                    stream.consumed(self.direction, len(payload))
            self.wake()

    def wake(self) -> None:
        """Something has changed."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def change(self) -> None:
        """Wait until something has changed."""
        self.waiter = self.flows.loop.create_future()
        await self.waiter

    async def read_all(self, limit: int) -> bytes:
        """Hold all of it back; see `flow.Reader`. What has gone on unread is empty. Raises TooLarge."""
        stream = self.stream
        if self.mode in (PASSES, WATCHED) and stream.holds(self.direction) and not self.ended:
            self.take(READ)
            if not self.asked:
                self.asked = True
                stream.send_interim(100)
        self.limit = limit
        if self.mode == READ and len(self.content) <= limit:
            stream.consumed(self.direction, stream.waiting(self.direction))
        while self.mode == READ and not self.ended and len(self.content) <= limit:
            await self.change()
            if self.flows.read > READ_LIMIT:
                raise TooLarge(f"hooks read more than {READ_LIMIT} octets of one connection")
        if len(self.content) > limit:
            raise TooLarge(f"the content has more than {limit} octets")
        return bytes(self.content)

    def drop(self) -> None:
        """Nobody wants what was read any more."""
        if self.mode in (READ, KEPT):
            self.flows.read -= len(self.content)
        self.content.clear()

    def settle(self, message: Message) -> None:
        """The head goes on: so does what a hook has read, or has set in its place, or else what comes."""
        content, stream = message._content, self.stream
        if content is not None:
            self.drop()
            self.take(DISCARDED)
            message.headers["Content-Length"] = str(len(content))
            stream.consumed(self.direction, stream.waiting(self.direction))
            if self.direction == DOWN and stream.method == b"HEAD":
                content = b""
            self.note(content)
            stream.send(self.direction, content, True)
        elif self.mode == READ:
            read = bytes(self.content)
            stream.consumed(self.direction, stream.waiting(self.direction))
            self.note(read)
            if self.ended:
                self.mode = KEPT
                stream.send(self.direction, read, True)
            else:
                self.drop()
                self.mode = WATCHED
                stream.send(self.direction, read)
                stream.leave(self.direction)

    def note(self, content: bytes) -> None:
        """Record content that goes on."""
        if self.recording is not None:
            self.recording.note(self.direction, content)


class StreamFlow:
    """A flow and its stream."""

    __slots__ = ("bodies", "flow", "flows", "recording", "request", "socket", "stream", "tasks")

    def __init__(
        self, flows: Http2Flows, stream: Stream, request: H2Request, flow: Flow, recording: Recording | None, end: bool
    ) -> None:
        self.flows = flows
        self.stream = stream
        self.request = request
        self.flow = flow
        self.recording = recording
        self.tasks: set[asyncio.Task[None]] = set()
        self.socket: StreamSocket | None = None  # once it is a WebSocket
        self.bodies = {direction: Body(flows, stream, direction, recording) for direction in (UP, DOWN)}
        self.bodies[UP].ended = end
        self.bodies[UP].asked = "Expect" not in flow.request.headers
        if recording is not None:
            if end:
                recording.mark(1)
            for direction, body in self.bodies.items():
                body.mode = WATCHED
                stream.watch(direction)

    def run(self, steps: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Go on in a task, which ends with the stream."""
        task = self.flows.start(self.guarded(steps, *args))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def guarded(self, steps: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run steps; an error ends the stream."""
        try:
            await steps(*args)
        except HookFailed as exc:
            self.fail(str(exc))
        except (TabiError, OSError) as exc:
            self.fail(str(exc) if isinstance(exc, TabiError) else (exc.strerror or str(exc)).lower())

    def fail(self, error: str) -> None:
        """End the stream with an error."""
        if not self.stream.over:
            if self.stream.answered:
                self.stream.reset(error, ErrorCode.INTERNAL_ERROR)
            else:
                self.flow.error = error
                self.stream.answer(502, [(b"content-length", b"0")])

    def show(self, body: Body, handlers: Handlers, message: Message) -> None:
        """Show each piece of content to hooks, which may send others."""
        if handlers and not body.ended and message._content is None and body.mode in (PASSES, WATCHED):
            message.headers.remove("Content-Length")
            body.take(SHOWN)
            self.run(self.pieces, body, handlers)

    async def pieces(self, body: Body, handlers: Handlers) -> None:
        """Show pieces as they come, and send what hooks give. Raises HookFailed."""
        stream, direction = self.stream, body.direction
        while True:
            while not body.content and not body.ended:
                await body.change()
            piece, body.content, end = bytes(body.content), bytearray(), body.ended
            shown = await self.flows.hooks.on_chunk(handlers, self.flow, piece) if piece else b""
            stream.consumed(direction, len(piece))
            while stream.waiting(direction) - len(body.content) > STREAM_CREDIT:
                await body.change()
            body.note(shown)
            if end and not body.content:
                stream.send(direction, shown, True)
                return
            stream.send(direction, shown)

    # --- the request ---

    async def ask_request(self, handlers: Handlers) -> None:
        """Show a request to hooks that wait. Raises HookFailed."""
        await self.flows.hooks.on_message(handlers, self.flow, self.flow.request)
        if self.instead() is None:
            self.stream.send_request(self.head_of_request())

    def head_of_request(self) -> H2Request | None:
        """The request as hooks have left it; None if they have not changed it."""
        message, request, body = self.flow.request, self.request, self.bodies[UP]
        body.settle(message)
        if not request.protocol:
            self.show(body, self.flows.hooks.request_body, message)
        if not message.changed:
            return None
        fields = to_fields(message.headers.raw, request.fields)
        path = b"" if request.method == b"CONNECT" and not request.protocol else to_octets(message.path)
        method = to_octets(message.method)
        return H2Request(method, request.scheme, request.authority, path, request.protocol, fields)

    def instead(self) -> Hold | None:
        """Do what a hook wants in place of what would go on; None if it wants nothing."""
        instead, stream = self.flow.instead, self.stream
        if instead is None:
            return None
        if isinstance(instead, Answer):
            response, body = answer_of(instead)
            self.answer(response, body, True)
        elif isinstance(instead, Drop):
            stream.reset("a hook has dropped it")
        else:
            self.run(self.answer_from, instead)
        return HOLD

    def answer(self, response: FlowResponse, body: bytes, end: bool) -> None:
        """Answer in the server's place."""
        flow, recording = self.flow, self.recording
        flow.response = response
        fields = to_fields(response.headers.raw)
        if "Date" not in response.headers:
            fields.append((b"date", encode_date(int(time())).partition(b": ")[2]))
        if recording is not None:
            recording.mark(1)
            recording.mark(2)
            recording.note(DOWN, b"" if self.stream.method == b"HEAD" else body)
        self.stream.answer(response.status, fields, body, end)

    async def answer_from(self, reroute: Reroute) -> None:
        """Answer with what another server says. Raises TabiError, OSError."""
        flow, flows, stream = self.flow, self.flows, self.stream
        inspection, body = flows.inspection, self.bodies[UP]
        content = flow.request._content
        if content is None:
            content = await body.read_all(inspection.rule.body_limit)
        body.note(content)
        fields = [(name, value.strip(b" \t")) for name, value in flow.request.headers.raw]
        fetched = await inspection.fetch(
            inspection, cast("NetStream", flows.client), reroute.url, flow.request.method, fields, content, reroute.via
        )
        try:
            headers = Headers(fetched.fields)
            self.answer(FlowResponse(fetched.status, to_text(fetched.reason), "HTTP/1.1", headers), b"", False)
            down = self.bodies[DOWN]
            async for piece in fetched.content():
                down.note(piece)
                stream.send(DOWN, piece)
                while stream.waiting(DOWN) > STREAM_CREDIT:
                    await down.change()
            stream.send(DOWN, b"", True)
        finally:
            await fetched.aclose()

    # --- the answer ---

    async def ask_response(self, handlers: Handlers, fields: list[Field]) -> None:
        """Show a response to hooks that wait. Raises HookFailed."""
        response = self.flow.response
        assert response is not None
        await self.flows.hooks.on_message(handlers, self.flow, response)
        if self.instead() is None:
            self.stream.send_response(self.head_of_response(fields))

    def head_of_response(self, fields: list[Field]) -> tuple[int, list[Field]] | None:
        """The response's head as hooks have left it; None if they have not changed it."""
        response, body = self.flow.response, self.bodies[DOWN]
        assert response is not None
        if self.request.protocol and 200 <= response.status < 300:
            self.open_socket()
        else:
            body.settle(response)
            self.show(body, self.flows.hooks.response_body, response)
        return (response.status, to_fields(response.headers.raw, fields)) if response.changed else None

    def open_socket(self) -> None:
        """Another protocol follows: messages of WebSocket go to whoever wants to see them."""
        if self.request.protocol == PROTOCOL:
            reactor = self.flows.client.reactor
            socket = open_websocket(self.flows.inspection, self.flow, self.recording, reactor.late)
            if socket is not None:
                self.socket = StreamSocket(socket, self.stream, self.flows.loop.call_soon)
                self.socket.begin()


class Http2Flows:
    """Shows the streams of one connection to the hooks of an inspection, and records them.

    Args:
        inspection: what is done with flows.
        tunnel: both ends; TLS is done.
    """

    def __init__(self, inspection: Inspection, tunnel: Tunnel) -> None:
        self.inspection = inspection
        self.hooks = inspection.hooks
        self.tunnel = tunnel
        self.client = Relayed(tunnel.client)
        self.loop = tunnel.client.reactor.loop
        self.tasks: set[asyncio.Task[None]] = set()
        self.read = 0  # octets that hooks have read, or are reading, of streams that are not over

    async def carry(self, head: bytes) -> None:
        """Carry the connection to its end; ``head`` is what the client has sent already.

        Raises:
            RemoteProtocolError: a side has broken HTTP/2.
        """
        relay = FrameRelay(self, self.inspection.mends)
        stages = FrameStages(relay, self.client.closed)
        if head:
            HeadSock(self.tunnel.client, head)
        try:
            await self.tunnel.relay([stages.up], [stages.down])
        finally:
            stages.close()
            failure = relay.failure
            relay.forget()
            await self.finish()
        if failure is not None:
            raise RemoteProtocolError(str(failure))

    def start(self, steps: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task that `carry` waits for."""
        task = self.loop.create_task(steps)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait for what is still told to hooks; each has its deadline."""
        while self.tasks:
            await asyncio.wait(self.tasks)

    # --- see Inspector ---

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        """A request has come."""
        inspection, hooks = self.inspection, self.hooks
        host = request.authority or next((value for name, value in request.fields if name == b"host"), None)
        if inspection.is_misdirected(host) and inspection.rule.mismatch == "deny":
            stream.answer(421, [(b"content-length", b"0")])
            return None
        if not inspection.sees or stream.pushed:
            return None
        target = to_text(request.path or request.authority)
        flow = inspection.make_flow(to_text(request.method), target, VERSION, Headers(request.fields))
        recording = None if inspection.recorder is None else Recording(inspection.rule.body_limit)
        stream.flow = one = StreamFlow(self, stream, request, flow, recording, end)
        handlers = hooks.request
        if waits(handlers):
            flow.request._reader = one.bodies[UP]
            one.run(one.ask_request, handlers)
            return HOLD
        try:
            if handlers:
                hooks.show(handlers, flow, flow.request)
        except HookFailed as exc:
            one.fail(str(exc))
            return HOLD
        return one.instead() or one.head_of_request()

    def response(
        self, stream: Stream, status: int, fields: list[Field], end: bool
    ) -> tuple[int, list[Field]] | Hold | None:
        """The head of a response has come."""
        inspection, hooks = self.inspection, self.hooks
        one: StreamFlow | None = stream.flow
        if one is None and not inspection.mends:
            return None
        response = FlowResponse(status, "", VERSION, Headers(fields))
        inspection.mend_response(response)
        if one is None:
            return (status, to_fields(response.headers.raw, fields)) if response.changed else None
        one.flow.response = response
        body = one.bodies[DOWN]
        body.ended = end
        if one.recording is not None:
            one.recording.mark(2)
        handlers = hooks.response
        if waits(handlers):
            response._reader = body
            one.run(one.ask_response, handlers, fields)
            return HOLD
        try:
            if handlers:
                hooks.show(handlers, one.flow, response)
        except HookFailed as exc:
            one.fail(str(exc))
            return HOLD
        return one.instead() or one.head_of_response(fields)

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        """Content has come."""
        one: StreamFlow = stream.flow
        (one.bodies[direction].receive if one.socket is None else one.socket.ports[direction].receive)(payload, end)

    def trailers(self, stream: Stream, direction: int, fields: list[Field]) -> list[Field] | None:
        """Trailers pass."""
        return None

    def writable(self, stream: Stream, direction: int) -> None:
        """What was sent in place of content is on its way."""
        one: StreamFlow | None = stream.flow
        if one is not None:
            one.bodies[direction].wake()
            if one.socket is not None:
                one.socket.writable(direction)

    def ended(self, stream: Stream, error: str | None) -> None:
        """A stream is over: tell hooks and the recorder."""
        one: StreamFlow | None = stream.flow
        if one is None:
            return
        stream.flow = None
        for body in one.bodies.values():
            self.read -= len(body.content) if body.mode in (READ, KEPT) else 0
        if one.socket is not None:
            one.socket.close()
            one.socket = None
        flow, inspection, hooks = one.flow, self.inspection, self.hooks
        flow.error = flow.error or error
        current = asyncio.current_task(self.loop)
        for task in one.tasks:
            if task is not current:
                task.cancel()
        if waits(hooks.flow_end) or waits(hooks.error):
            self.start(inspection.ended(flow, one.recording))
        else:
            inspection.ended_now(flow, one.recording)
