"""Flows of HTTP/2: what a frame relay passes, shown to hooks and recorded.

    streams where hooks answer at once    inside the relay's own calls, as frames pass
    streams where a hook waits            held, while a task of the stream goes on with it

All tasks belong to `Http2Flows.carry`, which returns when the connection has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.intercept.flow import FlowResponse, reason_of
from tabi.intercept.headers import Headers, to_text
from tabi.intercept.hooks import HookFailed
from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_heads import VERSION, headers_of, host_of, reframe, request_head, to_fields
from tabi.intercept.http2_stages import FrameStages
from tabi.intercept.http2_stream import HOLD, Hold, Inspector, Stream
from tabi.intercept.http2_stream_flow import StreamFlow, error_fields, waits
from tabi.intercept.inspection import MISDIRECTED, Inspection, Recording
from tabi.intercept.sent import WatchedRelay
from tabi.net.stream import Stream as NetStream
from tabi.policy.limits import DOWN, UP
from tabi.relay.tunnel import HeadSock, Tunnel
from tabi.wire.h2 import H2Request
from tabi.wire.hpack import Field


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
        inspection = self.inspection
        make: Callable[[Inspector, bool], FrameRelay] = FrameRelay if inspection.recorder is None else WatchedRelay
        if inspection.http is not None:
            make = inspection.http.make_relay
        relay = make(self, inspection.mends)
        if isinstance(relay, WatchedRelay):
            relay.watch(inspection.began_http2)
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
        if not stream.pushed:
            misdirected = inspection.is_misdirected(request.authority or host_of(request))
            if misdirected and inspection.rule.mismatch == "deny":
                inspection.session.error = MISDIRECTED
                stream.answer(421, error_fields("destination_ip_prohibited"))
                return None
        if not inspection.sees:
            return None
        target = to_text(request.path or request.authority)
        flow = inspection.make_flow(to_text(request.method), target, VERSION, headers_of(request.fields))
        recording = None if inspection.recorder is None else Recording(inspection.rule.body_limit)
        one = stream.flow = StreamFlow(self, stream, request, flow, recording)
        message = flow.request
        if end:
            one.empty, message._read = UP, b""
        if stream.pushed:
            one.mark_sent()
            return None
        if hooks.request:
            if waits(hooks.request):
                one.spawn(one.ask, hooks.request, message)
                return HOLD
            try:
                hooks.show(hooks.request, flow, message)
            except HookFailed as exc:
                one.fail(exc)
                return None
        if flow.instead is not None or message._content is not None or (hooks.request_body and not end):
            one.go_on(UP)
            return HOLD
        one.watch(UP)
        if not message.changed:
            return None
        reframe(message, request.fields)
        return request_head(request, message)

    def response(
        self, stream: Stream, status: int, fields: list[Field], end: bool
    ) -> tuple[int, list[Field]] | Hold | None:
        """The head of a response has come."""
        inspection, hooks = self.inspection, self.hooks
        one: StreamFlow | None = stream.flow
        if one is None and not inspection.mends:
            return None
        message = FlowResponse(status, reason_of(status), VERSION, Headers(fields))
        inspection.mend_response(message)
        if one is None:
            return (status, to_fields(message.headers, fields)) if message.changed else None
        flow = one.flow
        flow.response, one.came = message, fields
        one.mark_answered()
        if end:
            one.empty |= DOWN
            message._read = b""
        if hooks.response:
            if waits(hooks.response):
                one.spawn(one.ask, hooks.response, message)
                return HOLD
            try:
                hooks.show(hooks.response, flow, message)
            except HookFailed as exc:
                one.fail(exc)
                return None
        if (
            flow.instead is not None
            or message._content is not None
            or (hooks.response_body and not end)
            or message.status != status
            or flow.request.original[0] != flow.request.method
        ):
            one.go_on(DOWN)
            return HOLD
        one.watch(DOWN)
        if message.changed:
            reframe(message, fields)
        return one.response_head()

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        """Content has come."""
        if stream.flow is not None:
            stream.flow.data(direction, payload, end)

    def trailers(self, stream: Stream, direction: int, fields: list[Field]) -> list[Field] | None:
        """Trailers pass."""
        return None

    def writable(self, stream: Stream, direction: int) -> None:
        """What was sent in place of content is on its way."""
        if stream.flow is not None:
            stream.flow.writable(direction)

    def ended(self, stream: Stream, error: str | None) -> None:
        """A stream is over: tell hooks and the recorder."""
        one: StreamFlow | None = stream.flow
        if one is None:
            return
        stream.flow = None
        flow, inspection, hooks = one.flow, self.inspection, self.hooks
        flow.error = flow.error or error
        one.close()
        if waits(hooks.flow_end) or (flow.error is not None and waits(hooks.error)):
            self.start(inspection.ended(flow, one.recording))
        else:
            inspection.ended_now(flow, one.recording)
