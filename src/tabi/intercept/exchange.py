"""One HTTP/1 request and its answer between two streams, shown to hooks and recorded.

Heads and content go on as they came, octet for octet, unless a hook changes them. Content goes both ways at once and is
never held back, unless a hook waits for all of it. Whoever owns the streams counts what is sent, and ends what is idle.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from time import time

from tabi.errors import RemoteProtocolError, TabiError, TooLarge
from tabi.intercept.content import READ_SIZE, Content
from tabi.intercept.flow import (
    Answer,
    Drop,
    Fetched,
    Flow,
    FlowResponse,
    Given,
    Instead,
    Later,
    Reroute,
    Truncate,
    Truncated,
)
from tabi.intercept.framing import BODILESS, answer_of, own_head, request_octets, response_octets, settle_response
from tabi.intercept.headers import Headers, to_text
from tabi.intercept.hooks import Handlers
from tabi.intercept.inspection import Inspection, Recording
from tabi.net.reactor import BROKEN, ENDED
from tabi.net.stream import Stream
from tabi.net.tls import TlsSocket, explain
from tabi.policy.limits import DOWN, UP
from tabi.relay.exchange import ExchangeFailed
from tabi.relay.http_content import NOTHING
from tabi.session import Close
from tabi.wire.http import encode_date, encode_error
from tabi.wire.http_framing import CHUNKED, UNTIL_CLOSE, is_offered
from tabi.wire.http_origin import OriginRequest, OriginResponse, decode_origin_response

LOOK_EVERY = 1.0
"""Seconds from one look whether a client is still there to the next, while its message waits for a fault."""

INTERIM_LIMIT = 32
"""Interim responses to one request."""

DISCARDED = 1 << 20
"""Octets of an answer that are read for nothing, where a hook has set another content, so that the connection can go
on."""

ENDED_BY_US = "the connection was ended by the proxy"
"""The error of a flow that was cancelled."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Dropped(TabiError):
    """A hook, or a fault, has the client's connection end with a reset."""

    def __init__(self, text: str, close: Close = "denied") -> None:
        super().__init__(text)
        self.close: Close = close


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
        "gives_up",
        "has_server",
        "inspection",
        "interim",
        "keeps_server",
        "passed_end",
        "recording",
        "request",
        "server",
        "server_buffer",
        "switched",
        "unchunks",
        "upload",
        "waits",
    )

    def __init__(self, inspection: Inspection, client: Stream, buffer: bytearray, request: OriginRequest) -> None:
        self.inspection = inspection
        self.client = client
        self.buffer = buffer
        self.request = request
        self.has_server = False
        self.server: Stream
        self.server_buffer: bytearray
        self.flow: Flow | None = None
        self.recording: Recording | None = None
        self.answered = False  # whether the client has anything of an answer
        self.continued = False  # whether the client was told to go on, for a hook
        self.unchunks = (
            False  # whether the client knows no chunks, which are taken apart for it, and no interim answers
        )
        self.switched = False  # another protocol follows
        self.interim = False  # whether the destination has given an interim answer
        self.passed_end = False  # whether the destination was told of the client's end
        self.waits = False  # for an answer: the whole request was sent
        self.gives_up = False  # whether something of the destination's answer is left unread
        self.keeps_server = False  # whether the destination's connection is fit for another request
        self.fault: Exception | None = None  # of the client, found while its content was read
        hooks = inspection.hooks
        if inspection.sees:
            target = request.target
            if not target.startswith("/"):
                target = path_of(target)
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
        return flow.instead is not None and await self.settle(flow)

    async def settle(self, flow: Flow) -> bool:
        """Wait until it is known what becomes of a message; whether there is something in its place.

        Raises:
            ConnectionResetError: the client has gone meanwhile.
            TimeoutError: the idle deadline.
        """
        if not isinstance(flow.instead, Later):
            return True
        steps, flow.instead = flow.instead.steps, None
        task = self.client.reactor.loop.create_task(steps(flow))
        try:
            while not (await asyncio.wait((task,), timeout=LOOK_EVERY))[0]:
                if self.client.events & BROKEN:
                    raise ConnectionResetError("the client has gone")
                if self.client.expired or self.server_expired:
                    raise TimeoutError("nothing has moved for too long")
            flow.instead = task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return flow.instead is not None

    @property
    def server_expired(self) -> bool:
        """Whether the idle deadline is over for a destination."""
        return self.has_server and self.server.expired

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
        self.server, self.server_buffer, self.has_server = server, buffer, True
        flow, upload = self.flow, self.upload
        handlers: Handlers = ()
        if flow is not None and self.request.body and self.request.minor:
            handlers = self.inspection.hooks.request_body
        try:
            head = self.request.octets if flow is None else await self.request_head(flow, bool(handlers))
            if flow is not None and flow.request._content is not None:
                handlers = ()
            octets = await self.pieces(UP, upload, handlers)
        except RemoteProtocolError as exc:
            raise ExchangeFailed(400, "http_request_error", str(exc)) from exc
        try:
            await self.put(UP, head, octets)
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
        except (ExchangeFailed, OSError):
            if self.fault is not None:
                raise self.explained(self.fault) from self.fault
            raise
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            if not upload.done:  # a destination that has part of it must not take that for the whole
                self.server.reset()
        if self.fault is not None:
            raise self.fault
        return keep and upload.done

    def explained(self, fault: Exception) -> Exception:
        """What is wrong with the client's content, as the error of the exchange."""
        if isinstance(fault, RemoteProtocolError) and not self.answered:
            return ExchangeFailed(400, "http_request_error", str(fault))
        return fault

    def look_for_end(self) -> None:
        """Tell the destination, which is waited for, of the client's end; requests behind this one come first."""
        client, buffer = self.client, self.buffer
        if not self.waits or buffer or self.passed_end or not client.events & ENDED:
            return
        try:
            data = client.receive_nowait(READ_SIZE)
            if data:
                buffer += data
            elif data is not None:
                self.passed_end = True
                self.server.send_eof()
        except OSError:  # either has gone, which the next receive finds
            pass

    def sent(self) -> None:
        """The whole request was sent."""
        if self.recording is not None:
            self.recording.mark(1)
        self.waits = True
        self.look_for_end()

    async def put(self, direction: int, head: bytes, content: bytes = b"") -> None:
        """Send octets to one side. Raises OSError, LimitExceeded."""
        octets = head + content if content else head
        if octets:
            await (self.server if direction == UP else self.client).send_all(octets)

    # --- the request ---

    async def request_head(self, flow: Flow, chunks: bool) -> bytes:
        """The request's head as the hooks have left it; its content is sent in chunks, unless there is another."""
        message, upload = flow.request, self.upload
        if self.continued:
            message.headers.remove("Expect")
        if message._content is not None:
            await upload.discard()
            upload.payload = bytearray(message._content)
            upload.held = bytearray(message._content)
        return request_octets(self.request, message, chunks and message._content is None)

    async def pieces(self, direction: int, content: Content, handlers: Handlers) -> bytes:
        """What goes on at once with a head: what a hook has waited for, and what has come with the head."""
        held = bytes(content.held)
        content.held.clear()
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
        switches = response.status == 101 or (request.method == "CONNECT" and 200 <= response.status < 300)
        if response.status == 101 and (request.upgrade is None or not is_offered(response.upgrade, request.upgrade)):
            raise self.wrong("101, for a protocol that was not requested")
        head, flow = response.octets, self.flow
        handlers: Handlers = ()
        if flow is not None:
            flow.response = message = message_of(response)
            self.inspection.mend_response(message)
            message._reader = download
            if hooks.response:
                await hooks.on_message(hooks.response, flow, message)
                if flow.instead is not None and await self.settle(flow):
                    if isinstance(flow.instead, Truncate):
                        return await self.send_part(flow, flow.instead, response, message, download)
                    return await self.answer_in_place(flow.instead, response, download)
            if not switches:
                head, handlers = await self.response_head(flow, response, message, download)
        elif self.inspection.mends:
            message = message_of(response)
            self.inspection.mend_response(message)
            head = response_octets(response, message)
        if switches:
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
        if download.cut:
            self.cut_off()
        return self.goes_on(response, download, handlers)

    async def send_part(
        self, flow: Flow, cut: Truncate, response: OriginResponse, message: FlowResponse, download: Content
    ) -> bool:
        """Send an answer on, but of its content only so much; whether both connections go on.

        Raises:
            Truncated: there is more.
        """
        flow.instead = None
        download.wanted = True
        head, _ = await self.response_head(flow, response, message, download, shown=False)
        carried = bytes(download.payload)
        download.held.clear()
        carried += download.waiting()[1]
        chunked = response.body == CHUNKED and not download.unchunked and message._content is None
        left, self.answered = cut.octets, True
        while True:
            part = carried[:left]
            more, left = len(carried) > left, left - len(part)
            if self.recording is not None:
                self.recording.note(DOWN, part)
            octets = self.framed(DOWN, part) if chunked else part
            ends = download.done and not more
            await self.put(DOWN, head, octets + LAST_CHUNK if chunked and ends else octets)
            if more:
                self.gives_up = True
                if message._content is None and (response.body == UNTIL_CLOSE or download.unchunked):
                    raise Dropped(cut.why, "fault")  # another end would look like the whole
                raise Truncated(cut.why)
            if ends:
                return self.goes_on(response, download, ())
            head, carried = b"", (await download.next())[1]

    def goes_on(self, response: OriginResponse, download: Content, handlers: Handlers) -> bool:
        """Whether both connections go on behind an answer that was sent on."""
        ends = response.body == UNTIL_CLOSE or download.unchunked or (bool(handlers) and not self.chunks(DOWN))
        keep = response.keep_alive and not self.gives_up
        self.keeps_server = keep and self.upload.done and not self.server_buffer
        # What a client sends behind a CONNECT without waiting is meant for the destination: no request.
        return self.client_keeps(keep) and self.request.keep_alive and not ends and self.request.method != "CONNECT"

    def client_keeps(self, server_keeps: bool) -> bool:
        """Whether the client's connection can go on, by what is known of the destination's."""
        return server_keeps

    async def response_head(
        self, flow: Flow, response: OriginResponse, message: FlowResponse, download: Content, shown: bool = True
    ) -> tuple[bytes, Handlers]:
        """The response's head as the hooks have left it, and who wants to see its content, if that is shown."""
        nothing = settle_response(response, message, flow.request.method, self.request.method)
        if message._content is not None or (nothing and response.body):
            self.gives_up = not await download.discard(DISCARDED)
            download.body = NOTHING
            download.payload = bytearray(b"" if nothing else message._content or b"")
            download.held = bytearray(download.payload)
            return response_octets(response, message), ()
        handlers = self.inspection.hooks.response_body if response.body and shown else ()
        if not handlers:
            return response_octets(response, message), ()
        download.wanted = True
        chunks = self.chunks(DOWN)
        return response_octets(response, message, chunks, not chunks), handlers

    def cut_off(self) -> None:
        """The content ended with the connection, and TLS does not vouch for that end: the client is to see the same."""
        sock = self.client.sock
        if isinstance(sock, TlsSocket):
            sock.said_end = True  # its connection ends without close_notify, too

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
                            if self.client.events & BROKEN:
                                raise ConnectionResetError("the client has gone")
                            await server.readable()
                        if not data:
                            raise ConnectionResetError("the connection ended before its answer")
                        buffer += data
            except OSError as exc:
                raise self.lost(exc) from exc
            except RemoteProtocolError as exc:
                raise self.wrong(str(exc)) from exc
            response, end = found
            del buffer[:end]
            if not response.interim:
                return response
            self.interim = True
            if not self.unchunks and not (self.continued and response.status == 100):
                await self.put(DOWN, response.octets)
        raise self.wrong(f"more than {INTERIM_LIMIT} interim responses")

    def decode(self, count: int, seen: int) -> tuple[OriginResponse, int] | None:
        """Read a head of an answer, behind so many interim ones; see `decode_origin_response`."""
        return decode_origin_response(self.server_buffer, self.asked_with, seen=seen, after_interim=count > 0)

    @property
    def asked_with(self) -> str:
        """The method that the destination was asked with."""
        return self.request.method if self.flow is None else self.flow.request.method

    @property
    def where(self) -> str:
        """The destination, for errors."""
        return f"{self.inspection.origin.host}:{self.inspection.origin.port}"

    def lost(self, exc: OSError) -> Exception:
        """The error for a connection to the destination that breaks before an answer."""
        if self.client.events & BROKEN:
            return ConnectionResetError("the client has gone")
        unanswered = not self.server_buffer and not self.interim
        return ExchangeFailed(502, "connection_terminated", f"{self.where}: {reason_of_error(exc)}", unanswered)

    def wrong(self, what: str) -> ExchangeFailed:
        """The error for an answer that breaks the protocol."""
        return ExchangeFailed(502, "http_protocol_error", f"{self.where}: {what}")

    # --- answers in the destination's place ---

    async def answer_instead(self, instead: Instead) -> bool:
        """Answer as a hook says; whether the connections go on. Raises Dropped."""
        if isinstance(instead, Drop):
            raise Dropped("a hook has dropped it")
        if isinstance(instead, Reroute):
            return await self.answer_from(await self.fetch(instead))
        if isinstance(instead, Given):
            return await self.answer_from(instead.fetched)
        assert isinstance(instead, Answer)
        return await self.answer_with(instead)

    async def answer_in_place(self, instead: Instead, response: OriginResponse, download: Content) -> bool:
        """Answer as a hook says that has seen the destination's answer; see `answer_instead`."""
        self.gives_up = True
        switches = response.status == 101 or self.request.method == "CONNECT"
        if self.upload.done and response.keep_alive and not switches:
            download.waiting()
            self.gives_up = not download.done
        keep = await self.answer_instead(instead)
        self.keeps_server = keep and not self.server_buffer
        return keep

    async def answer_with(self, answer: Answer) -> bool:
        """Send a hook's answer."""
        flow = self.flow
        assert flow is not None
        keep = self.passed_over()
        response, body = answer_of(answer)
        self.show(flow, response)
        head = own_head(response, keep, self.request.minor)
        sent = b"" if self.request.method == "HEAD" else body
        if self.recording is not None:
            self.recording.note(DOWN, sent)
        self.answered = True
        await self.put(DOWN, head, sent)
        return keep

    async def fetch(self, reroute: Reroute) -> Fetched:
        """What another server says. Raises ExchangeFailed."""
        flow, inspection = self.flow, self.inspection
        assert flow is not None
        content = bytes(self.upload.payload)
        if not self.upload.done:
            try:
                content = await self.read_all(inspection.rule.body_limit)
            except TooLarge as exc:
                raise ExchangeFailed(413, "http_request_error", f"reroute: {exc}") from exc
        if flow.request._content is not None:
            content = flow.request._content
        fields = [(name, value.strip(b" \t")) for name, value in flow.request.headers.raw]
        try:
            fetched = await inspection.fetch(inspection, self.client, reroute, flow.request.method, fields, content)
        except (TabiError, OSError) as exc:
            reason = str(exc) if isinstance(exc, TabiError) else reason_of_error(exc)
            says = "another server is not reached"
            raise ExchangeFailed(502, "destination_unavailable", f"reroute: {reason}", says=says) from exc
        return fetched if reroute.mold is None else await reroute.mold(flow, fetched)

    async def answer_from(self, fetched: Fetched) -> bool:
        """Send an answer that is read from somewhere else."""
        flow = self.flow
        assert flow is not None
        try:
            headers = Headers(fetched.fields)
            ends = self.request.method == "HEAD" or fetched.status in BODILESS or "Content-Length" in headers
            chunks = not ends and self.request.minor > 0
            keep = self.passed_over() and (ends or chunks)
            if chunks:
                headers.add("Transfer-Encoding", "chunked")
            response = FlowResponse(fetched.status, to_text(fetched.reason), "HTTP/1.1", headers)
            self.show(flow, response)
            self.answered = True
            await self.put(DOWN, own_head(response, keep, self.request.minor))
            try:
                await self.pour(fetched.content(), chunks)
            except Truncated as exc:
                if not ends and not chunks:
                    raise Dropped(str(exc), "fault") from exc  # another end would look like the whole
                raise
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
        if self.recording is not None:
            self.recording.mark(1)
            self.recording.mark(2)

    def passed_over(self) -> bool:
        """Whether the connection can go on behind an answer that did not wait for the request's content."""
        upload = self.upload
        if not upload.done and not self.gives_up:
            upload.waiting()
        return upload.done and self.request.keep_alive and not self.gives_up

    async def refuse(self, status: int, error: str | None, text: str) -> None:
        """Answer that there is no answer; the connection ends behind it. Raises OSError."""
        head = self.request.method == "HEAD"
        self.answered = True
        await self.put(DOWN, encode_error(status, error, text, head=head, date=encode_date(int(time()))))


def message_of(response: OriginResponse) -> FlowResponse:
    """An answer as hooks see it."""
    version = f"HTTP/1.{response.minor}"
    return FlowResponse(response.status, to_text(response.reason), version, Headers(response.fields))


def reason_of_error(exc: OSError, peer: str = "server") -> str:
    """What went wrong with a peer, in words."""
    if isinstance(exc, ssl.SSLError):
        return explain(exc, peer)
    return (exc.strerror or str(exc)).lower()


def path_of(target: str) -> str:
    """What a target means to an origin server: of a URI its path and query, else the target itself."""
    scheme, found, rest = target.partition("://")
    if not found or not scheme.isalpha():
        return target
    at = next((at for at, char in enumerate(rest) if char in "/?"), len(rest))
    path = rest[at:]
    return path if path.startswith("/") else "/" + path
