"""One plain HTTP request to the proxy itself and its answer, shown to hooks and recorded like an intercepted one.

The heads are those that the proxy sends (`wire/http.py`): a hook sees what the destination gets, and changes that.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import time
from typing import Any

from tabi.errors import LimitExceeded, RemoteProtocolError, TabiError
from tabi.intercept.exchange import ENDED_BY_US, Dropped, Exchange, reason_of_error
from tabi.intercept.flow import Truncated
from tabi.intercept.hooks import HookFailed
from tabi.intercept.inspection import Inspection
from tabi.intercept.passing import is_websocket
from tabi.intercept.websocket import WebSocketStages, ended_soon, open_websocket
from tabi.policy.limits import DOWN, UP
from tabi.relay.exchange import ClientConnection, ExchangeFailed, ServerConnection
from tabi.relay.pacer import Pacer
from tabi.relay.relays import Relays
from tabi.wire.http import (
    CHUNKED,
    UNTIL_CLOSE,
    Request,
    decode_response,
    encode_date,
    encode_request,
    encode_response,
)
from tabi.wire.http_origin import OriginRequest, OriginResponse
from tabi.wire.http_syntax import ANSWER_HEAD_LIMIT


class ForwardedExchange(Exchange):
    """A request that is forwarded, on one connection to the destination or, if that was closed meanwhile, another.

    Args:
        inspection: shows the flow to hooks, and records it.
        connection: the client's.
        request: what the client asks the proxy for.
        pacer: makes it wait if limits leave no room.
        relays: get both streams when the protocol has changed (101).
    """

    __slots__ = ("asked", "connection", "lease", "pacer", "relays", "server_connection")

    def __init__(
        self, inspection: Inspection, connection: ClientConnection, request: Request, pacer: Pacer, relays: Relays
    ) -> None:
        super().__init__(inspection, connection.client, connection.buffer, origin_request(request))
        self.asked = request
        self.connection = connection
        self.pacer = pacer
        self.relays = relays
        self.unchunks = not request.minor
        self.lease: Any = None  # see `ask`
        self.server_connection: ServerConnection

    async def ask(self) -> bool | None:
        """Ask the hooks; whether the client's connection goes on behind what they answer in the destination's place,
        None if they do not. Raises ExchangeFailed."""
        session, connection = self.connection.session, self.connection
        if session.lease is not None and session.lease.meters:  # which the gate has given since
            self.lease = session.lease
        try:
            if not await self.ask_hooks():
                return None
            assert self.flow is not None
            assert self.flow.instead is not None
            keep = await self.answer_instead(self.flow.instead)
        except Exception as exc:
            self.broken(exc)
            return False
        assert self.flow.response is not None
        session.reply_code, session.close = self.flow.response.status, "server"
        return keep and connection.keeps

    def broken(self, exc: Exception) -> None:
        """Have the client's connection end with a reset where it has part of an answer, or is to get none; a part of a
        fault ends as if it were the whole.

        Raises:
            ExchangeFailed: it is to be told what is wrong.
        """
        session = self.connection.session
        if isinstance(exc, Truncated):
            session.error, session.close = str(exc), "fault"
            return
        if isinstance(exc, Dropped):
            session.error, session.close = str(exc), exc.close
        elif isinstance(exc, OSError | TabiError) and self.answered:
            session.error = reason_of_error(exc) if isinstance(exc, OSError) else str(exc)
            limit = isinstance(exc, LimitExceeded)
            session.close = "limit" if limit else "idle" if isinstance(exc, TimeoutError) else "reset"
        elif isinstance(exc, HookFailed):
            raise ExchangeFailed(502, "proxy_internal_error", str(exc)) from exc
        elif isinstance(exc, LimitExceeded):
            raise ExchangeFailed(429, "connection_limit_reached", str(exc)) from exc
        elif isinstance(exc, RemoteProtocolError):
            raise ExchangeFailed(400, "http_request_error", str(exc)) from exc
        else:
            raise exc
        self.connection.break_off()

    async def ended(self, error: BaseException | None) -> None:
        """It is over."""
        flow = self.flow
        if flow is not None:
            reason = None if error is None else str(error) or ENDED_BY_US
            flow.error = flow.error or self.connection.session.error or reason
            await self.inspection.ended(flow, self.recording)

    def over(self, server: ServerConnection) -> ForwardedExchange:
        """The same exchange, on a connection to the destination."""
        self.server_connection = server
        return self

    def expire(self) -> None:
        """The idle deadline: the tasks that wait on either side get TimeoutError."""
        self.server_connection.stream.expire()
        if self.answered:
            self.client.expire()

    async def run(self) -> tuple[bool, bool]:
        """Carry it out; whether the client's connection goes on, and the destination's. Errors as `relay.Exchange`."""
        server, session, connection = self.server_connection, self.connection.session, self.connection
        try:
            keep = await self.carry(server.stream, server.buffer)
        except asyncio.CancelledError:  # the server closes
            if self.answered:
                connection.break_off()
            raise
        except Exception as exc:
            self.broken(exc)
            return False, False
        if self.switched:
            await self.switch()
            return False, False
        if self.flow is not None and self.flow.response is not None:
            session.reply_code = self.flow.response.status
        session.close = "server"
        server.used = True
        return keep and connection.keeps, self.keeps_server

    async def switch(self) -> None:
        """Another protocol follows: have a relay carry it. Raises OSError and LimitExceeded."""
        inspection, flow, recording, server = self.inspection, self.flow, self.recording, self.server_connection
        from_client, from_server, socket = bytes(self.buffer), bytes(server.buffer), None
        if is_websocket(self.request.upgrade):
            socket = open_websocket(inspection, flow, recording, self.client.reactor.late)
        if socket is None:
            if from_server:
                await self.connection.send(from_server)
                inspection.session.down += len(from_server)
            self.relays.start(self.client, server.stream, inspection.session, b"", from_client)
            return
        ended = partial(ended_soon, inspection, socket.flow, recording)
        stages = WebSocketStages(socket, from_client, from_server, ended)
        both = (UP, stages.up), (DOWN, stages.down)
        self.relays.start(self.client, server.stream, inspection.session, b"", b"", both)
        self.flow = None  # it ends with the relay

    def lost(self, exc: OSError) -> Exception:
        """See `Exchange.lost`: who has waited for too long has another error."""
        if not isinstance(exc, TimeoutError):
            return super().lost(exc)
        seconds = self.connection.patience.limit(self.connection.session.rule)
        if not self.upload.done and self.client.is_awaited:
            return ExchangeFailed(408, "http_request_error", f"no more of the content within {seconds:g} s")
        return ExchangeFailed(504, "http_response_timeout", f"{self.where}: no answer within {seconds:g} s")

    def look_for_end(self) -> None:
        """See `Exchange.look_for_end`: who forwards has a deadline for clients that have ended."""

    def cut_off(self) -> None:
        """See `Exchange.cut_off`: the client has no TLS of the destination's. Raises RemoteProtocolError."""
        raise RemoteProtocolError("the connection ended in the middle of the content")

    def client_keeps(self, server_keeps: bool) -> bool:
        """See `Exchange.client_keeps`: another connection to a destination does as well."""
        return True

    async def put(self, direction: int, head: bytes, content: bytes = b"") -> None:
        """See `Exchange.put`: what is content is counted, and sent as the lease allows."""
        connection, session = self.connection, self.connection.session
        connection.moved += 1
        if session.lease is not None and session.lease.ended is not None:  # who waits for nothing is not told of it
            raise session.lease.ended
        stream = self.client if direction == DOWN else self.server
        if self.lease is None:
            if head or content:
                await stream.send_all(head + content)
            self.count(session, direction, len(content))
            return
        if head:
            await stream.send_all(head)
        at = 0
        while at < len(content):
            count = await self.pacer.take(self.lease, direction, len(content) - at)
            await stream.send_all(content[at : at + count])
            at += count
            connection.moved += 1
            self.count(session, direction, count)

    def count(self, session: Any, direction: int, octets: int) -> None:
        """So much content was sent."""
        if direction == UP:
            session.up += octets
        else:
            session.down += octets

    def decode(self, count: int, seen: int) -> tuple[OriginResponse, int] | None:
        """See `Exchange.decode`: the head is rewritten, as every forwarded one."""
        request, method = self.asked, self.asked_with
        found = decode_response(self.server_buffer, method, ANSWER_HEAD_LIMIT, seen, count > 0)
        if found is None:
            return None
        response, end = found
        keep = request.keep_alive and response.body != UNTIL_CLOSE and self.connection.keeps
        keep = keep and not (response.body == CHUNKED and not request.minor)
        date = b"" if response.dated else encode_date(int(time()))
        octets = encode_response(response, keep, request.minor, None, date)
        if not response.interim:
            self.connection.session.reply_code = response.status
        return OriginResponse(
            octets,
            response.status,
            response.reason,
            1,
            fields_of(octets),
            response.body,
            response.keep_alive,
            response.upgrade,
            response.interim,
        ), end


def origin_request(request: Request) -> OriginRequest:
    """The request as the destination gets it."""
    octets = encode_request(request)
    return OriginRequest(
        octets,
        request.method,
        request.path,
        request.minor,
        fields_of(octets),
        str(request.destination.host).encode(),
        request.body,
        request.keep_alive,
        request.upgrade,
        request.expects_continue,
    )


def fields_of(head: bytes) -> bytes:
    """The fields of a head, each with CRLF in front."""
    return head[head.index(b"\r\n") : -4]
