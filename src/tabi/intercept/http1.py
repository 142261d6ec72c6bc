"""HTTP/1 between a client and a destination: one exchange after another, on one connection to each side.

What ends on one side ends on the other: a destination that closes a connection that waits for a request closes the
client's, and what it says unasked before that goes to the client.
"""

from __future__ import annotations

import asyncio
from time import time
from typing import NamedTuple

from tabi.errors import HttpError, RemoteProtocolError
from tabi.intercept.exchange import ENDED_BY_US, Dropped, Exchange, reason_of_error
from tabi.intercept.flow import Flow, Truncated
from tabi.intercept.hooks import HookFailed
from tabi.intercept.inspection import MISDIRECTED, Inspection, Recording
from tabi.net.reactor import BROKEN, ENDED, READABLE
from tabi.net.stream import Stream
from tabi.relay.exchange import ExchangeFailed
from tabi.session import Close
from tabi.wire.http import HEAD_LIMIT, encode_date, encode_error
from tabi.wire.http_origin import OriginRequest, decode_origin_request

READ_SIZE = 16384
"""Octets of one read of a head."""

LINGER = 2.0
"""Seconds that a client has to read its last answer and to end."""


class ServerSpoke(Exception):
    """The destination has sent something, or has ended, while the client's next request was waited for."""


class Switched(NamedTuple):
    """Another protocol follows on both streams.

    Attributes:
        protocol: the value of Upgrade, None behind a CONNECT.
        from_client, from_server: what was read of it already.
        flow, recording: of the exchange that has led to it.
    """

    protocol: bytes | None
    from_client: bytes
    from_server: bytes
    flow: Flow | None
    recording: Recording | None


class Http1:
    """The exchanges of one connection.

    Args:
        inspection: shows the flows to hooks, and records them.
        client, server: both ends.
        head: what the client has sent already.
        begun: what the destination has sent already.
    """

    def __init__(self, inspection: Inspection, client: Stream, server: Stream, head: bytes, begun: bytes = b"") -> None:
        self.inspection = inspection
        self.session = inspection.session
        self.client = client
        self.server = server
        self.buffer = bytearray(head)
        self.server_buffer = bytearray(begun)
        self.waits = False  # for a request, with no exchange under way
        self.exchange: Exchange | None = None
        self.answers = 0  # of the destination, up to now
        self.close: Close | None = None  # how the session ends, where the end says nothing of that
        client.reactor.replace(client.fd, self.on_client_ready)
        server.reactor.replace(server.fd, self.on_server_ready)

    def on_client_ready(self, events: int) -> None:
        """The reactor's handler: a client that has gone while the destination is waited for ends that too."""
        self.client.on_ready(events)
        if events & BROKEN and self.exchange is not None:
            self.server.wake_waiting(ConnectionResetError("the client has gone"))
        elif events & ENDED and self.exchange is not None:
            self.exchange.look_for_end()

    def on_server_ready(self, events: int) -> None:
        """The reactor's handler: what comes while no answer is waited for wakes the task."""
        self.server.on_ready(events)
        if self.waits and events & READABLE:
            self.client.wake_waiting(ServerSpoke())

    async def run(self) -> Switched | None:
        """Carry out requests until one of them is the last.

        Raises:
            RemoteProtocolError, OSError, LimitExceeded: as the streams; both are to be reset.
        """
        reactor = self.client.reactor
        while (request := await self.read_request()) is not None:
            exchange = Exchange(self.inspection, self.client, self.buffer, request)
            keep = await self.run_one(exchange)
            if exchange.switched:
                return self.switched(exchange)
            if not keep:
                return None
            if reactor.late():
                await reactor.next_turn()
        return None

    async def go_on(self, request: OriginRequest, flow: Flow | None, recording: Recording | None) -> Switched | None:
        """Carry out a request that the hooks have seen and answered already, and then go on. Errors as `run`."""
        exchange = Exchange(self.inspection, self.client, self.buffer, request)
        exchange.flow, exchange.recording = flow, recording
        keep = await self.run_one(exchange, True)
        if exchange.switched:
            return self.switched(exchange)
        return await self.run() if keep else None

    def switched(self, exchange: Exchange) -> Switched:
        """What another protocol follows."""
        buffers = bytes(self.buffer), bytes(self.server_buffer)
        return Switched(exchange.request.upgrade, *buffers, exchange.flow, exchange.recording)

    async def run_one(self, exchange: Exchange, asked: bool = False) -> bool:
        """Carry out one exchange, and say when it has ended; whether the connections go on."""
        self.exchange = exchange
        try:
            return await self.carry_out(exchange, asked)
        except BaseException as exc:
            if exchange.flow is not None and exchange.flow.error is None:
                cancelled = isinstance(exc, asyncio.CancelledError)
                text = reason_of_error(exc) if isinstance(exc, OSError) else str(exc)
                exchange.flow.error = ENDED_BY_US if cancelled else text or type(exc).__name__
            raise
        finally:
            self.exchange = None
            if exchange.flow is not None and not exchange.switched:
                await self.inspection.ended(exchange.flow, exchange.recording)

    async def carry_out(self, exchange: Exchange, asked: bool) -> bool:
        """Carry out one exchange; whether the connections go on. ``asked``: the hooks have seen its request."""
        request, inspection = exchange.request, self.inspection
        if inspection.is_misdirected(request.host, request.target) and inspection.rule.mismatch == "deny":
            self.close = "denied"
            await self.give_up(exchange, 421, "destination_ip_prohibited", MISDIRECTED)
            return False
        try:
            flow = exchange.flow
            if await (exchange.settle(flow) if asked and flow is not None else exchange.ask_hooks()):
                assert flow is not None
                assert flow.instead is not None
                return await exchange.answer_instead(flow.instead)
            keep = await exchange.carry(self.server, self.server_buffer)
            self.answers += 1
            return keep
        except Dropped as exc:
            self.close = exc.close
            self.break_off(exchange, str(exc))
        except Truncated as exc:
            self.close = "fault"
            self.note(exchange, str(exc))
        except ExchangeFailed as exc:
            self.close = "error"
            self.note(exchange, str(exc))
            if not (exc.unanswered and self.answers):  # else as without us: the client knows whether it may ask again
                await exchange.refuse(exc.status, exc.error, exc.says)
        except HookFailed as exc:
            self.close = "error"
            if exchange.answered:
                self.break_off(exchange, str(exc))
            else:
                await self.give_up(exchange, 502, "proxy_internal_error", str(exc))
        return False

    def note(self, exchange: Exchange, text: str) -> None:
        """Note what was wrong."""
        self.session.error = text
        if exchange.flow is not None:
            exchange.flow.error = text

    async def give_up(self, exchange: Exchange, status: int, error: str, text: str) -> None:
        """Say to the client that there is no answer."""
        self.note(exchange, text)
        await exchange.refuse(status, error, text)

    def break_off(self, exchange: Exchange, text: str) -> None:
        """Have both connections end with a reset."""
        self.note(exchange, text)
        self.client.reset()
        self.server.reset()

    async def finish(self) -> None:
        """End in good order, and stay until the client has read it all: a close with octets unread would be a reset."""
        client = self.client
        self.server.close()
        if client.fd < 0:
            return
        try:
            async with asyncio.timeout(LINGER):
                client.send_eof()
                while await client.receive():
                    await client.reactor.next_turn(client)
        except OSError:
            pass

    async def read_request(self) -> OriginRequest | None:
        """The next request's head; None where either side has ended."""
        client, buffer, seen = self.client, self.buffer, 0
        try:
            while not buffer or (found := decode_origin_request(buffer, HEAD_LIMIT, seen)) is None:
                seen = len(buffer)
                data = await self.receive()
                if data is None:
                    return None
                if not data:
                    if buffer:
                        raise RemoteProtocolError("the client ended in the middle of a request's head")
                    return None
                buffer += data
        except HttpError as exc:
            self.session.error, self.close = str(exc), "error"
            date = encode_date(int(time()))
            await client.send_all(encode_error(exc.status, "http_request_error", str(exc), date=date))
            return None
        request, end = found
        del buffer[:end]
        return request

    async def receive(self) -> bytes | None:
        """What the client sends next; None where the destination has ended the connection first."""
        client, server = self.client, self.server
        while (data := client.receive_nowait(READ_SIZE)) is None:
            if server.events & READABLE and not await self.listen():
                return None
            self.waits = True
            try:
                await client.readable()
            except ServerSpoke:
                pass
            finally:
                self.waits = False
        return data

    async def listen(self) -> bool:
        """Pass on what the destination says unasked; whether it has not ended."""
        data = self.server.receive_nowait(READ_SIZE)
        if data:
            await self.client.send_all(data)
        return data is None
