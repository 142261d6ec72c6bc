"""HTTP/1 that passes: two stages of a relay that read heads, show them to hooks, and keep no content.

This is how connections are carried on which nothing waits: no hook is async or wants content. Octets go on as they came
in, whole reads at a time; only a head that a hook has changed is written anew. Requests that come before the answers to
others (pipelining) just pass; a line of what is outstanding says to which request an answer belongs.

What takes more than that is given back to the task of the session (`GiveBack`): another server that is to be asked
(`Flow.reroute`), and messages of WebSocket that somebody wants to see. It goes on where everything can wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import time
from typing import Any, NamedTuple

from tabi.errors import HttpError, RemoteProtocolError
from tabi.intercept.exchange import INTERIM_LIMIT, message_of, path_of
from tabi.intercept.flow import Answer, Drop, Flow, Instead
from tabi.intercept.framing import answer_of, own_head, request_octets, response_octets, settle_response
from tabi.intercept.headers import Headers
from tabi.intercept.hooks import HookFailed
from tabi.intercept.inspection import MISDIRECTED, Inspection, Recording
from tabi.net.tls import TlsSocket
from tabi.policy.limits import DOWN, UP
from tabi.relay.http_content import STEPS, Body, Counted, Endless, make_body
from tabi.relay.stage import Stage
from tabi.session import Close
from tabi.wire.http import ANSWER_HEAD_LIMIT, HEAD_LIMIT, encode_date, encode_error
from tabi.wire.http_body import Chunked
from tabi.wire.http_framing import is_offered
from tabi.wire.http_origin import OriginRequest, OriginResponse, decode_origin_request, decode_origin_response

VERSIONS = ("HTTP/1.0", "HTTP/1.1")
PIPELINED = 100
"""Requests without an answer; then no more is read of the client."""


class GiveBack(NamedTuple):
    """Why a connection is given back to its task.

    Attributes:
        request: with its flow, which the hooks have seen, and which has not gone on; None behind an answer.
        switched: the request whose answer has changed the protocol.
        from_client: what the client has sent behind it.
        from_server: what the destination has sent that is not used up.
    """

    request: Outstanding | None
    switched: Outstanding | None
    from_client: bytes
    from_server: bytes


class Outstanding:
    """A request that has passed, and whose answer has not, or not wholly."""

    __slots__ = ("answered", "flow", "head", "interims", "recording")

    def __init__(self, head: OriginRequest, flow: Flow | None, recording: Recording | None) -> None:
        self.head = head
        self.flow = flow
        self.recording = recording
        self.answered = False  # whether the client has anything of an answer
        self.interims = 0  # interim answers that have passed

    @property
    def asked_with(self) -> str:
        """The method that the destination was asked with."""
        return self.head.method if self.flow is None else self.flow.request.method


class Refusal(NamedTuple):
    """See `Passing.refuse`."""

    status: int
    error: str
    text: str
    reason: Close


class Passing:
    """Both directions of one connection.

    Args:
        inspection: shows the flows to hooks, and records them.
        give_back: called once, when the task of the session is to go on: with the reason.
    """

    def __init__(self, inspection: Inspection, give_back: Callable[[GiveBack], object]) -> None:
        self.inspection = inspection
        self.session = inspection.session
        self.sees = inspection.sees
        self.records = inspection.recorder is not None
        self.line: deque[Outstanding] = deque()
        self.transparent = False  # whether another protocol passes
        self.refusal: Refusal | None = None  # what the client gets behind all answers
        self.first = True  # whether no answer has passed yet
        self.stopped: Outstanding | None = None  # what the task is to go on with
        self.given = False  # whether the task has it
        self.up = RequestStage(self)
        self.down = ResponseStage(self)
        self.give_back = give_back

    @staticmethod
    def fits(inspection: Inspection) -> bool:
        """Whether nothing waits: hooks want heads only, and answer at once."""
        hooks = inspection.hooks
        if hooks.request_body or hooks.response_body:
            return False
        return not any(
            handler.waits
            for handlers in (hooks.request, hooks.response, hooks.flow_end, hooks.error)
            for handler in handlers
        )

    def begin(self, head: OriginRequest) -> Outstanding:
        """A request has come: show it to the hooks. Raises HookFailed."""
        inspection = self.inspection
        if not self.sees:
            return Outstanding(head, None, None)
        target = head.target
        if not target.startswith("/"):
            target = path_of(target)
        flow = inspection.make_flow(head.method, target, VERSIONS[head.minor], Headers(head.fields))
        recording = Recording(inspection.rule.body_limit) if self.records else None
        one = Outstanding(head, flow, recording)
        handlers = inspection.hooks.request
        if handlers:
            try:
                inspection.hooks.show(handlers, flow, flow.request)
            except HookFailed as exc:
                self.over(one, str(exc))
                raise
        return one

    def over(self, one: Outstanding, error: str | None = None) -> None:
        """A flow has ended."""
        if one.flow is not None:
            one.flow.error = one.flow.error or error
            self.inspection.ended_now(one.flow, one.recording)

    def answered(self) -> None:
        """An answer has passed: the next in the line is that of the next request."""
        one = self.line.popleft()
        self.first = False
        if one.flow is not None:
            self.over(one)
        if self.up.awaits is one:
            if one.head.method == "CONNECT":  # what follows is no request
                self.down.emit_end()
                self.up.emit_end()
                return
            self.up.awaits = None
            self.up.call_later(0, self.up.again)
        if not self.line and self.refusal is not None:
            self.refuse(*self.refusal)
        elif not self.line and self.stopped is not None:
            self.stop(self.stopped, None)
        elif self.up.full and len(self.line) < PIPELINED:
            self.up.full = False
            self.up.call_later(0, self.up.again)  # some may have come already

    def stop(self, one: Outstanding | None, switched: Outstanding | None) -> None:
        """Give the connection back to its task, as soon as all answers before have passed."""
        self.stopped = one
        if switched is None and self.line:
            return
        self.given = True
        from_client, from_server = bytes(self.up.buffer), bytes(self.down.buffer)
        self.give_back(GiveBack(one, switched, from_client, from_server))

    def refuse_request(self, status: int, error: str, text: str, reason: Close = "error") -> None:
        """Refuse what the client asks for now, once all that it has asked for before is answered."""
        self.refusal = Refusal(status, error, text, reason)
        if not self.line:
            self.refuse(*self.refusal)

    def refuse(self, status: int, error: str, text: str, reason: Close = "error") -> None:
        """Say to the client what is wrong, where it has nothing of an answer, and end the connection."""
        self.session.error = self.session.error or text
        relay = self.down.relay
        if relay is None:
            return
        if len(self.line) > 1 or (self.line and self.line[0].answered):
            relay.fail(text)
            return
        method = self.line[0].head.method if self.line else ""
        octets = encode_error(status, error, text, head=method == "HEAD", date=encode_date(int(time())))
        self.down.emit(octets)
        relay.cut(text, reason)

    def respond(self, one: Outstanding, answer: Answer) -> None:
        """Answer as a hook says, in the destination's place."""
        assert one.flow is not None
        response, body = answer_of(answer)
        one.flow.response = response
        if one.head.method == "HEAD":
            body = b""
        if one.recording is not None:
            one.recording.mark(1)
            one.recording.mark(2)
            one.recording.note(DOWN, body)
        self.down.emit(own_head(response, one.head.keep_alive, one.head.minor) + body)
        if not one.head.keep_alive:
            self.down.emit_end()

    def switch(self, one: Outstanding) -> None:
        """Another protocol follows: whoever wants to see its messages has it, else it just passes."""
        self.line.popleft()
        self.up.awaits = None
        if (
            one.flow is not None
            and is_websocket(one.head.upgrade)
            and (self.inspection.hooks.websocket_message or self.records)
        ):
            self.stop(None, one)
            return
        self.over(one)
        self.transparent = True
        for stage in (self.down, self.up):
            rest = bytes(stage.buffer)
            stage.buffer.clear()
            if rest:
                stage.emit(rest)
        self.up.call_later(0, self.up.go_on)

    def closed(self) -> None:
        """The connection has ended: so have the flows that are left."""
        if self.given:
            return
        if self.stopped is not None:  # it waits for the answers to those before it
            self.line.append(self.stopped)
            self.stopped = None
        while self.line:
            self.over(self.line.popleft(), self.session.error or "the connection has ended")


class HttpStage(Stage):
    """What both directions have in common: a buffer for a head that is not whole, and the content that passes."""

    __slots__ = ("body", "buffer", "discards", "passing", "puts_off", "seen", "since")

    def __init__(self, passing: Passing) -> None:
        super().__init__()
        self.passing = passing
        self.buffer = bytearray()
        self.seen = 0
        self.since = 0  # of the octets at hand, those from there on have not gone on yet
        self.body: Body | None = None  # content that passes
        self.discards = False  # whether it does not: a hook has set another
        self.puts_off = False  # whether there is more to read in the next turn

    @property
    def relay(self) -> Any:
        """The relay, None once it has closed."""
        return None if self.flow is None else self.flow.relay

    def pass_content(self, data: bytes, at: int, direction: int, recording: Recording | None, out: list[Any]) -> int:
        """Pass content; returns the index behind it. Raises RemoteProtocolError."""
        body = self.body
        assert body is not None
        if self.discards:
            recording = None
        if isinstance(body, Chunked):
            view = memoryview(data)[at:]
            payload: list[memoryview] | None = None if recording is None else []
            onward: list[Any] = []
            end = at + body.scan(view, payload, onward, STEPS)
            if recording is not None:
                recording.note(direction, b"".join(payload or ()))
            if self.discards or len(onward) > 1 or len(onward[0]) != end - at:
                self.replace(data, at, end, b"" if self.discards else b"".join(onward), out)
            return end
        end = len(data)
        if isinstance(body, Counted):
            end = at + min(end - at, body.left)
            body.left -= end - at
        if recording is not None:
            recording.note(direction, data[at:end])
        if self.discards:
            self.replace(data, at, end, b"", out)
        return end

    def replace(self, data: bytes, at: int, end: int, octets: bytes, out: list[Any]) -> None:
        """Have other octets go on in place of ``data[at:end]``."""
        if at > self.since:
            out.append(memoryview(data)[self.since : at])
        if octets:
            out.append(octets)
        self.since = end

    def pass_on(self, data: bytes, end: int, out: list[Any]) -> None:
        """Send what goes on of ``data[:end]``: what is in ``out``, and what came behind that."""
        since, self.since = self.since, end
        if not out:
            if since < end:
                self.emit(data if since == 0 and end == len(data) else data[since:end])
            return
        if since < end:
            out.append(memoryview(data)[since:end])
        self.emit(b"".join(out))
        out.clear()

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        return 0 if self.puts_off else most

    def put_off(self, rest: bytes) -> None:
        """Read the rest in the next turn: many small chunks take long."""
        self.buffer += rest
        self.puts_off = True
        self.call_later(0, self.again)

    def again(self) -> None:
        """Go on with what was put off."""
        self.puts_off = False
        self.receive(b"")

    def closed(self, unsent: int) -> None:
        """See `Stage.closed`."""
        self.passing.closed()


class RequestStage(HttpStage):
    """Requests, from the client to the destination."""

    __slots__ = ("awaits", "full", "recording")

    def __init__(self, passing: Passing) -> None:
        super().__init__(passing)
        self.full = False  # too many requests are outstanding
        self.awaits: Outstanding | None = None  # a request whose answer says what it is that follows
        self.recording: Recording | None = None  # of the request whose content passes

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        passing = self.passing
        if passing.transparent:
            return most
        waits = self.full or self.puts_off or self.awaits is not None
        return 0 if waits or passing.stopped is not None or passing.refusal is not None else most

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        passing = self.passing
        if passing.transparent:
            self.emit(data)
            return
        if passing.stopped is not None or self.puts_off or self.awaits is not None or passing.refusal is not None:
            self.buffer += data
            return
        if self.buffer:
            self.buffer += data
            data = bytes(self.buffer)
            self.buffer.clear()
        out: list[Any] = []
        at, size = 0, len(data)
        self.since = 0
        try:
            while at < size and self.awaits is None:
                if self.body is not None:
                    at = self.pass_content(data, at, UP, self.recording, out)
                    if self.body.done:
                        self.end_request()
                    elif at < size:
                        self.put_off(data[at:])
                        break
                    continue
                if len(passing.line) >= PIPELINED:
                    self.full = True
                    break
                found = decode_origin_request(data[at:] if at else data, HEAD_LIMIT, self.seen)
                if found is None:
                    self.seen = size - at
                    break
                self.seen = 0
                head, end = found
                if not self.take(head, data, at, at + end, out):
                    return
                at += end
        except HttpError as exc:
            self.pass_on(data, at, out)
            passing.refuse_request(exc.status, "http_request_error", str(exc))
            return
        except RemoteProtocolError as exc:
            self.pass_on(data, self.since, out)
            passing.refuse(400, "http_request_error", str(exc))
            return
        except HookFailed as exc:
            self.pass_on(data, at, out)
            passing.refuse_request(502, "proxy_internal_error", str(exc))
            return
        if at < size and not self.puts_off:
            self.buffer += data[at:]
        self.pass_on(data, at, out)

    def take(self, head: OriginRequest, data: bytes, at: int, end: int, out: list[Any]) -> bool:
        """A request's head has come, in ``data[at:end]``; whether it goes on here. Errors as `Passing.begin`."""
        passing = self.passing
        inspection = passing.inspection
        if inspection.is_misdirected(head.host, head.target) and inspection.rule.mismatch == "deny":
            self.pass_on(data, at, out)
            passing.refuse_request(421, "destination_ip_prohibited", MISDIRECTED, "denied")
            return False
        one = passing.begin(head)
        flow, octets = one.flow, head.octets
        if flow is not None:
            message = flow.request
            if flow.instead is not None:
                self.pass_on(data, at, out)
                self.since = end
                return self.answer_instead(one, flow.instead, data[end:])
            if message._content is not None or message.changed:
                octets = request_octets(head, message)
            if message._content is not None:
                octets += message._content
                self.discards = True
                if one.recording is not None:
                    one.recording.note(UP, message._content)
        if octets is not head.octets or len(octets) != end - at:
            self.replace(data, at, end, octets, out)
        passing.line.append(one)
        if head.upgrade is not None or head.method == "CONNECT":
            self.awaits = one  # what follows is of another protocol, or of none
        self.recording = one.recording
        if head.body:
            self.body = make_body(head.body)
        else:
            self.end_request()
        return True

    def answer_instead(self, one: Outstanding, instead: Instead, rest: bytes) -> bool:
        """A hook answers in the destination's place; whether it was done here."""
        passing = self.passing
        if isinstance(instead, Drop):
            passing.session.error = "a hook has dropped it"
            passing.over(one, passing.session.error)
            self.relay.break_off(reason="denied")
            return False
        if not isinstance(instead, Answer) or passing.line or one.head.expects_continue:
            self.buffer += rest
            passing.stop(one, None)
            return False
        passing.respond(one, instead)
        passing.over(one)
        self.discards = True
        self.body = make_body(one.head.body) if one.head.body else None
        return True

    def end_request(self) -> None:
        """A request has passed."""
        self.body = None
        self.discards = False
        if self.recording is not None:
            self.recording.mark(1)
            self.recording = None


class ResponseStage(HttpStage):
    """Responses, from the destination to the client."""

    __slots__ = ()

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        passing = self.passing
        if passing.transparent:
            self.emit(data)
            return
        if self.puts_off:
            self.buffer += data
            return
        if self.buffer:
            self.buffer += data
            data = bytes(self.buffer)
            self.buffer.clear()
        out: list[Any] = []
        at, size = 0, len(data)
        self.since = 0
        line = passing.line
        try:
            while at < size:
                if not line:  # said unasked
                    at = size
                    break
                one = line[0]
                if self.body is not None:
                    at = self.pass_content(data, at, DOWN, one.recording, out)
                    if self.body.done:
                        self.end_response(data, at, out)
                        if passing.given:
                            return
                    elif at < size:
                        self.put_off(data[at:])
                        break
                    continue
                found = decode_origin_response(
                    data[at:] if at else data, one.asked_with, ANSWER_HEAD_LIMIT, self.seen, one.interims > 0
                )
                if found is None:
                    self.seen = size - at
                    break
                self.seen = 0
                head, end = found
                at += end
                if not self.take(one, head, data, at - end, at, out):
                    return
        except (RemoteProtocolError, HookFailed) as exc:
            self.pass_on(data, self.since, out)
            where = f"{passing.inspection.origin.host}:{passing.inspection.origin.port}"
            error = "proxy_internal_error" if isinstance(exc, HookFailed) else "http_protocol_error"
            passing.refuse(502, error, str(exc) if isinstance(exc, HookFailed) else f"{where}: {exc}")
            return
        if at < size and not self.puts_off:
            self.buffer += data[at:]
        self.pass_on(data, at, out)

    def end_response(self, data: bytes, at: int, out: list[Any]) -> None:
        """An answer has passed; the next begins at ``data[at]``."""
        self.body = None
        self.discards = False
        self.pass_on(data, at, out)
        line = self.passing
        if line.stopped is not None and len(line.line) == 1:
            self.buffer += data[at:]  # it is given back now
        line.answered()

    def take(self, one: Outstanding, head: OriginResponse, data: bytes, at: int, end: int, out: list[Any]) -> bool:
        """A head has come, in ``data[at:end]``; whether it goes on here. Raises HookFailed."""
        passing = self.passing
        if head.interim:
            one.interims += 1
            if one.interims > INTERIM_LIMIT:
                raise RemoteProtocolError(f"more than {INTERIM_LIMIT} interim responses")
            if len(head.octets) != end - at:
                self.replace(data, at, end, head.octets, out)
            return True
        if head.status == 101 and (one.head.upgrade is None or not is_offered(head.upgrade, one.head.upgrade)):
            raise RemoteProtocolError("101, for a protocol that was not requested")
        content = b""
        if one.recording is not None:
            one.recording.mark(2)
        flow, inspection = one.flow, passing.inspection
        octets = head.octets
        if flow is not None or inspection.mends:
            message = message_of(head)
            if inspection.mends:
                inspection.mend_response(message)
            if flow is not None:
                flow.response = message
                if inspection.hooks.response:
                    inspection.hooks.show(inspection.hooks.response, flow, message)
                    if flow.instead is not None:
                        return self.answer_instead(one, head, flow.instead, data, at, end, out)
                if head.status != 101 and (inspection.hooks.response or one.asked_with != one.head.method):
                    nothing = settle_response(head, message, one.asked_with, one.head.method)
                    self.discards = nothing or message._content is not None
                    content = b"" if nothing else message._content or b""
            octets = response_octets(head, message)
            if one.recording is not None and content:
                one.recording.note(DOWN, content)
        if octets is not head.octets or content or len(octets) != end - at:
            self.replace(data, at, end, octets + content, out)
        one.answered = True
        if head.status == 101 or (one.head.method == "CONNECT" and 200 <= head.status < 300):
            self.pass_on(data, end, out)
            self.buffer += data[end:]
            passing.switch(one)
            return False
        return self.begin_content(head, data, end, out)

    def begin_content(self, head: OriginResponse, data: bytes, end: int, out: list[Any]) -> bool:
        """The content of an answer follows, if it has any; whether it goes on here."""
        if head.body:
            self.body = make_body(head.body)
            return True
        self.end_response(data, end, out)
        return not self.passing.given

    def answer_instead(
        self, one: Outstanding, head: OriginResponse, instead: Instead, data: bytes, at: int, end: int, out: list[Any]
    ) -> bool:
        """A hook answers in place of an answer; whether it goes on here."""
        passing = self.passing
        self.pass_on(data, at, out)
        self.since = end
        if isinstance(instead, Answer):
            one.answered = True
            passing.respond(one, instead)
            if head.status == 101 or one.head.method == "CONNECT":  # the destination speaks something else by now
                passing.line.popleft()
                passing.over(one)
                self.emit_end()
                passing.up.emit_end()
                return False
            self.discards = True
            return self.begin_content(head, data, end, out)
        text = "a hook has dropped it" if isinstance(instead, Drop) else "a hook has rerouted what was answered already"
        passing.session.error = text
        self.relay.break_off(reason="denied")
        return False

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        passing = self.passing
        if passing.line and not isinstance(self.body, Endless):
            where = f"{passing.inspection.origin.host}:{passing.inspection.origin.port}"
            text = f"{where}: the connection ended before its answer"
            if passing.first and not passing.line[0].answered:
                passing.refuse(502, "connection_terminated", text)
                return
            if passing.line[0].answered:
                passing.session.error = passing.session.error or "the connection ended in the middle of the content"
                self.reset()
                return
            passing.session.error = passing.session.error or text
        elif passing.line:
            sink = self.flow.sink if self.flow is not None else None
            if isinstance(sink, TlsSocket) and self.flow is not None and getattr(self.flow.source, "cut", False):
                sink.said_end = True  # TLS does not vouch for this end: the client's comes without close_notify, too
            self.body = None
            passing.answered()
            if passing.given:
                return
        self.emit_end()
        if not passing.up.room(1):  # it waits for what will not come
            passing.up.emit_end()


def is_websocket(upgrade: bytes | None) -> bool:
    """Whether a value of Upgrade asks for WebSocket (RFC 6455)."""
    return upgrade is not None and b"websocket" in upgrade.lower()
