"""One HTTP/1 request and its answer between two streams, shown to hooks and recorded.

Heads and content go on as they came, octet for octet, unless a hook changes them. Content goes both ways at once and is
never held back, unless a hook waits for all of it. Whoever owns the streams counts what is sent, and ends what is idle.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from time import time

from tabi.errors import RemoteProtocolError, TabiError
from tabi.intercept.content import READ_SIZE, Content
from tabi.intercept.flow import Answer, Drop, Flow, FlowResponse, Instead, Message, Reroute
from tabi.intercept.headers import Headers, to_octets, to_text
from tabi.intercept.hooks import Handlers
from tabi.intercept.inspection import Inspection, Recording
from tabi.net.stream import Stream
from tabi.policy.limits import DOWN, UP
from tabi.relay.exchange import ExchangeFailed
from tabi.wire.http import encode_date, encode_error
from tabi.wire.http_fields import Fields
from tabi.wire.http_framing import CHUNKED, UNTIL_CLOSE
from tabi.wire.http_head import ResponseHead
from tabi.wire.http_origin import OriginRequest, OriginResponse, decode_origin_response

INTERIM_LIMIT = 32
"""Interim responses to one request."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Dropped(TabiError):
    """A hook has the client get no answer."""


class Exchange:
    """One request and its answer.

    Args:
        inspection: shows the flow to hooks, and records it.
        client: the client's stream.
        buffer: what was read from it behind the request's head.
        request: what was asked for.
    """

    __slots__ = (
        "answered",
        "buffer",
        "client",
        "continued",
        "fault",
        "flow",
        "inspection",
        "keeps_server",
        "recording",
        "request",
        "server",
        "server_buffer",
        "switched",
        "unchunks",
        "upload",
    )

    def __init__(self, inspection: Inspection, client: Stream, buffer: bytearray, request: OriginRequest) -> None:
        self.inspection = inspection
        self.client = client
        self.buffer = buffer
        self.request = request
        self.server: Stream
        self.server_buffer: bytearray
        self.flow: Flow | None = None
        self.recording: Recording | None = None
        self.answered = False  # whether the client has anything of an answer
        self.continued = False  # whether the client was told to go on, for a hook
        self.unchunks = False  # whether the client knows no chunks: they are taken apart for it
        self.switched = False  # another protocol follows
        self.keeps_server = False  # whether the destination's connection is fit for another request
        self.fault: Exception | None = None  # of the client, found while its content was read
        hooks = inspection.hooks
        if inspection.sees:
            target = request.target
            if target.startswith("http"):  # a URI: to an origin server it means what its path means
                target = "/" + target.partition("://")[2].partition("/")[2]
            version = f"HTTP/1.{request.minor}"
            self.flow = inspection.make_flow(request.method, target, version, Headers(request.fields))
            if inspection.recorder is not None:
                self.recording = Recording(inspection.rule.body_limit)
        wanted = self.recording is not None or bool(hooks.request_body)
        self.upload = Content(client, buffer, request.body, wanted)

    # --- the whole ---

    async def ask_hooks(self) -> bool:
        """Show the request to the hooks; whether one of them answers in the destination's place.

        Raises:
            HookFailed: one failed, and the flow is to end.
        """
        flow, hooks = self.flow, self.inspection.hooks
        if flow is None or not hooks.request:
            return False
        flow.request._reader = self
        await hooks.on_message(hooks.request, flow, flow.request)
        return flow.instead is not None

    async def read_all(self, limit: int) -> bytes:
        """Hold the request's content back for a hook; see `flow.Reader`."""
        if self.request.expects_continue and not self.continued and not self.upload.done and not self.buffer:
            self.continued = True
            await self.put(DOWN, CONTINUE)
        return await self.upload.read_all(limit)

    async def carry(self, server: Stream, buffer: bytearray) -> bool:
        """Carry it out; whether both connections go on.

        Args:
            server: the destination's stream.
            buffer: what was read from it and is not used up.

        Raises:
            ExchangeFailed: nothing has been answered, and the destination will not.
            Dropped: a hook has the client get no answer.
            RemoteProtocolError, OSError: it broke off in the middle.
        """
        self.server, self.server_buffer = server, buffer
        flow, upload = self.flow, self.upload
        head = self.request.octets if flow is None else await self.request_head(flow)
        handlers: Handlers = ()
        if flow is not None and self.request.minor and flow.request._content is None:
            handlers = self.inspection.hooks.request_body
        try:
            await self.put(UP, head, await self.pieces(UP, upload, handlers))
        except OSError as exc:
            raise self.lost(exc) from exc
        if upload.done:
            self.sent()
            return await self.answer()
        sending = self.client.reactor.loop.create_task(self.send_content(handlers))
        try:
            keep = await self.answer()
            if keep:
                await asyncio.shield(sending)
        except ExchangeFailed:
            if self.fault is not None:
                raise self.fault from None
            raise
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return keep and upload.done

    def sent(self) -> None:
        """The whole request was sent."""
        if self.recording is not None:
            self.recording.mark(1)

    async def put(self, direction: int, head: bytes, content: bytes = b"") -> None:
        """Send octets to one side. Raises OSError, LimitExceeded."""
        octets = head + content if content else head
        if octets:
            await (self.server if direction == UP else self.client).send_all(octets)

    # --- the request ---

    async def request_head(self, flow: Flow) -> bytes:
        """The request's head as the hooks have left it."""
        request, message = self.request, flow.request
        if self.continued:
            message.headers.remove("Expect")
        await self.settle(message, self.upload)
        chunks = bool(self.inspection.hooks.request_body) and request.body != 0 and request.minor > 0
        reframe(message, request.body, chunks and message._content is None)
        if not message.changed:
            return request.octets
        line = f"{message.method} {message.path} HTTP/1.{request.minor}"
        return to_octets(line) + message.headers.encode() + b"\r\n\r\n"

    async def settle(self, message: Message, content: Content) -> None:
        """Where a hook has set another content: pass over the one that came."""
        if message._content is not None:
            await content.discard()
            content.payload = bytearray(message._content)
            content.held = [message._content]

    async def pieces(self, direction: int, content: Content, handlers: Handlers) -> bytes:
        """What goes on at once with a head: what a hook has waited for, and what has come with the head."""
        held, content.held = b"".join(content.held), []
        octets, carried = content.waiting()
        if not handlers:
            if self.recording is not None:
                self.recording.note(direction, bytes(content.payload) + carried)
            return held + octets
        held = await self.through(direction, bytes(content.payload), handlers)
        return held + await self.through(direction, carried, handlers, content.done)

    async def through(self, direction: int, carried: bytes, handlers: Handlers, last: bool = False) -> bytes:
        """Show a piece of content to hooks; what goes on of it, as chunks."""
        assert self.flow is not None
        octets = b""
        if carried:
            carried = await self.inspection.hooks.on_chunk(handlers, self.flow, carried)
            if self.recording is not None:
                self.recording.note(direction, carried)
            octets = self.framed(direction, carried)
        return octets + LAST_CHUNK if last and self.chunks(direction) else octets

    def chunks(self, direction: int) -> bool:
        """Whether content that hooks see goes on in chunks."""
        return direction == UP or self.request.minor > 0

    def framed(self, direction: int, carried: bytes) -> bytes:
        """Content as it is sent."""
        if not carried or not self.chunks(direction):
            return carried
        return b"%x\r\n%b\r\n" % (len(carried), carried)

    async def send_content(self, handlers: Handlers) -> None:
        """Send the client's content as it comes. A destination that takes no more may still answer."""
        upload = self.upload
        try:
            while not upload.done:
                octets, carried = await upload.next()
                if handlers:
                    octets = await self.through(UP, carried, handlers, upload.done)
                elif self.recording is not None:
                    self.recording.note(UP, carried)
                try:
                    await self.put(UP, b"", octets)
                except OSError:
                    return
            self.sent()
        except (OSError, TabiError) as exc:
            self.fault = exc
            self.server.reset()  # it must not take what it has for the whole

    # --- the answer ---

    async def answer(self) -> bool:
        """Read the destination's answer and send it on; see `carry`."""
        response = await self.read_response()
        request, hooks = self.request, self.inspection.hooks
        if self.recording is not None:
            self.recording.mark(2)
        download = Content(self.server, self.server_buffer, response.body, self.recording is not None)
        download.unchunked = self.unchunks and response.body == CHUNKED
        head, flow = response.octets, self.flow
        handlers: Handlers = ()
        if flow is not None:
            reason = to_text(response.reason)
            flow.response = message = FlowResponse(
                response.status, reason, f"HTTP/1.{response.minor}", Headers(response.fields)
            )
            self.inspection.mend_response(message)
            message._reader = download
            if hooks.response:
                await hooks.on_message(hooks.response, flow, message)
                if flow.instead is not None:
                    return await self.answer_instead(flow.instead)
            if response.status != 101:
                handlers = hooks.response_body if response.body and message._content is None else ()
                download.wanted = download.wanted or bool(handlers)
                await self.settle(message, download)
                if request.method == "HEAD" or response.status in (204, 304):
                    download.held.clear()
                head = self.response_head(flow, response, bool(handlers))
        elif self.inspection.mends:
            message = FlowResponse(response.status, to_text(response.reason), "", Headers(response.fields))
            self.inspection.mend_response(message)
            head = encode_head(response, message)
        if response.status == 101 or (request.method == "CONNECT" and 200 <= response.status < 300):
            self.answered = self.switched = True
            await self.put(DOWN, head)
            return False
        return await self.send_answer(head, response, download, handlers)

    async def send_answer(self, head: bytes, response: OriginResponse, download: Content, handlers: Handlers) -> bool:
        """Send an answer on; whether both connections go on."""
        first = await self.pieces(DOWN, download, handlers)
        self.answered = True
        await self.put(DOWN, head, first)
        while not download.done:
            octets, carried = await download.next()
            if handlers:
                octets = await self.through(DOWN, carried, handlers, download.done)
            elif self.recording is not None:
                self.recording.note(DOWN, carried)
            await self.put(DOWN, b"", octets)
        ends = response.body == UNTIL_CLOSE or download.unchunked or (bool(handlers) and not self.chunks(DOWN))
        self.keeps_server = response.keep_alive and self.upload.done and not self.server_buffer
        return self.request.keep_alive and response.keep_alive and not ends

    def response_head(self, flow: Flow, response: OriginResponse, chunks: bool) -> bytes:
        """The response's head as the hooks have left it."""
        message = flow.response
        assert message is not None
        if response.body or message._content is not None:
            reframe(message, response.body, chunks and message._content is None and self.chunks(DOWN), chunks)
        return encode_head(response, message)

    async def read_response(self) -> OriginResponse:
        """The final response's head; those before it are sent on as they come."""
        server, buffer = self.server, self.server_buffer
        for count in range(INTERIM_LIMIT):
            seen, found = 0, None
            try:
                while found is None:
                    if len(buffer) > seen:
                        found = self.decode(count, seen)
                        seen = len(buffer)
                    if found is None:
                        while (data := server.receive_nowait(READ_SIZE)) is None:
                            await server.readable()
                        if not data:
                            raise ConnectionResetError("the connection ended before its answer")
                        buffer += data
            except OSError as exc:
                raise self.lost(exc) from exc
            except RemoteProtocolError as exc:
                raise ExchangeFailed(502, "http_protocol_error", f"{self.where}: {exc}") from exc
            response, end = found
            del buffer[:end]
            if not response.interim:
                return response
            if not (self.continued and response.status == 100):
                await self.put(DOWN, response.octets)
        raise ExchangeFailed(502, "http_protocol_error", f"{self.where}: more than {INTERIM_LIMIT} interim responses")

    def decode(self, count: int, seen: int) -> tuple[OriginResponse, int] | None:
        """Read a head of an answer, behind so many interim ones; see `decode_origin_response`."""
        return decode_origin_response(self.server_buffer, self.request.method, seen=seen, after_interim=count > 0)

    @property
    def where(self) -> str:
        """The destination, for errors."""
        return f"{self.inspection.origin.host}:{self.inspection.origin.port}"

    def lost(self, exc: OSError) -> ExchangeFailed:
        """The error for a connection to the destination that breaks before an answer."""
        reason = (exc.strerror or str(exc)).lower()
        return ExchangeFailed(502, "connection_terminated", f"{self.where}: {reason}")

    # --- answers in the destination's place ---

    async def answer_instead(self, instead: Instead) -> bool:
        """Answer as a hook says; whether the connections go on. Raises Dropped."""
        if isinstance(instead, Drop):
            raise Dropped("a hook has dropped it")
        if isinstance(instead, Reroute):
            return await self.answer_from(instead)
        return await self.answer_with(instead)

    async def answer_with(self, answer: Answer) -> bool:
        """Send a hook's answer."""
        flow = self.flow
        assert flow is not None
        keep = await self.passed_over()
        response, body = answer_of(answer)
        self.show(flow, response)
        head = own_head(response, keep, self.request.minor)
        sent = b"" if self.request.method == "HEAD" else body
        if self.recording is not None:
            self.recording.note(DOWN, sent)
        self.answered = True
        await self.put(DOWN, head, sent)
        return keep

    async def answer_from(self, reroute: Reroute) -> bool:
        """Send what another server says."""
        flow, inspection = self.flow, self.inspection
        assert flow is not None
        content = bytes(self.upload.payload)
        if not self.upload.done:
            content = await self.read_all(inspection.rule.body_limit)
        if flow.request._content is not None:
            content = flow.request._content
        fields = [(name, value.strip(b" \t")) for name, value in flow.request.headers.raw]
        try:
            fetched = await inspection.fetch(
                inspection, self.client, reroute.url, flow.request.method, fields, content, reroute.via
            )
        except (TabiError, OSError) as exc:
            reason = str(exc) if isinstance(exc, TabiError) else (exc.strerror or str(exc)).lower()
            raise ExchangeFailed(502, "destination_unavailable", f"reroute: {reason}") from exc
        try:
            headers = Headers(fetched.fields)
            ends = self.request.method == "HEAD" or fetched.status in (204, 304) or "Content-Length" in headers
            chunks = not ends and self.request.minor > 0
            keep = self.request.keep_alive and (ends or chunks)
            if chunks:
                headers.add("Transfer-Encoding", "chunked")
            response = FlowResponse(fetched.status, to_text(fetched.reason), "HTTP/1.1", headers)
            self.show(flow, response)
            self.answered = True
            await self.put(DOWN, own_head(response, keep, self.request.minor))
            await self.pour(fetched.content(), chunks)
        finally:
            await fetched.aclose()
        return keep

    async def pour(self, content: AsyncIterator[bytes], chunks: bool) -> None:
        """Send content of another server on."""
        async for carried in content:
            if self.recording is not None:
                self.recording.note(DOWN, carried)
            await self.put(DOWN, b"", self.framed(DOWN, carried) if chunks else carried)
        if chunks:
            await self.put(DOWN, b"", LAST_CHUNK)

    def show(self, flow: Flow, response: FlowResponse) -> None:
        """The flow's answer is one that did not come from the destination."""
        flow.response = response
        self.sent()
        if self.recording is not None:
            self.recording.mark(2)

    async def passed_over(self) -> bool:
        """Whether the connection can go on behind an answer that did not wait for the request's content."""
        upload = self.upload
        if not upload.done:
            upload.waiting()
        return upload.done and self.request.keep_alive

    async def refuse(self, status: int, error: str | None, text: str) -> None:
        """Answer that there is no answer; the connection ends behind it. Raises OSError."""
        head = self.request.method == "HEAD"
        self.answered = True
        await self.put(DOWN, encode_error(status, error, text, head=head, date=encode_date(int(time()))))


def answer_of(answer: Answer) -> tuple[FlowResponse, bytes]:
    """A hook's answer: its head, with the right length, and its content."""
    headers, body = answer.headers, answer.body
    for name in ("Content-Length", "Transfer-Encoding", "Connection"):
        headers.remove(name)
    if answer.status in (204, 304):
        body = b""
    else:
        headers.add("Content-Length", str(len(body)))
    return FlowResponse(answer.status, reason_of(answer.status), "HTTP/1.1", headers), body


def own_head(response: FlowResponse, keep: bool, minor: int) -> bytes:
    """The head of an answer that did not come from the destination.

    Args:
        response: the answer.
        keep: the connection goes on.
        minor: of the client's HTTP/1.<minor>.
    """
    head = ResponseHead(response.status, to_octets(response.reason), Fields())
    head.fields.raw = list(response.headers.raw)
    date = b"" if "Date" in response.headers else encode_date(int(time()))
    connection = b"" if keep and minor else b"\r\nConnection: " + (b"keep-alive" if keep else b"close")
    return head.match_line()[0] + head.fields.encode() + date + connection + b"\r\n\r\n"


def reframe(message: Message, body: int, chunks: bool, open_end: bool = False) -> None:
    """Have a head say how its content is sent now.

    Args:
        message: the head.
        body: how its content came: octets, CHUNKED or UNTIL_CLOSE.
        chunks: it is sent in chunks.
        open_end: it is sent until the connection closes, where it is not sent in chunks.
    """
    headers = message.headers
    if message._content is not None:
        headers.remove("Transfer-Encoding")
        headers.remove("Trailer")
        headers["Content-Length"] = str(len(message._content))
    elif chunks:
        headers.remove("Content-Length")
        if body != CHUNKED:
            headers.add("Transfer-Encoding", "chunked")
    elif open_end:
        headers.remove("Content-Length")
        headers.remove("Transfer-Encoding")


def encode_head(response: OriginResponse, message: FlowResponse) -> bytes:
    """A response's head as it is sent on."""
    if not message.changed:
        return response.octets
    head = ResponseHead(message.status, to_octets(message.reason), Fields(), response.minor)
    return head.match_line()[0] + message.headers.encode() + b"\r\n\r\n"


def reason_of(status: int) -> str:
    """The usual reason phrase."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
