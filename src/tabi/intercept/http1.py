"""HTTP/1 between a client and a destination: one exchange after another, on one connection to each side.

What ends on one side ends on the other: a destination that closes a connection that waits for a request closes the
client's, and what it says unasked before that goes to the client.
"""

from __future__ import annotations

from typing import NamedTuple

from tabi.errors import HttpError, RemoteProtocolError
from tabi.intercept.exchange import Dropped, Exchange
from tabi.intercept.flow import Flow
from tabi.intercept.hooks import HookFailed
from tabi.intercept.inspection import Inspection, Recording
from tabi.net.reactor import BROKEN, ENDED, READABLE
from tabi.net.stream import Stream
from tabi.relay.exchange import ExchangeFailed
from tabi.wire.http import HEAD_LIMIT, encode_error
from tabi.wire.http_origin import OriginRequest, decode_origin_request

READ_SIZE = 16384
"""Octets of one read of a head."""


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
        self.ended = False  # whether the destination was told of the client's end
        client.reactor.replace(client.fd, self.on_client_ready)
        server.reactor.replace(server.fd, self.on_server_ready)

    def on_client_ready(self, events: int) -> None:
        """The reactor's handler: a client that has gone while the destination is waited for ends that too."""
        self.client.on_ready(events)
        if events & BROKEN and self.exchange is not None:
            self.server.wake_waiting(ConnectionResetError("the client has gone"))
        elif events & ENDED and not self.ended and self.exchange is not None and self.exchange.upload.done:
            self.pass_end()

    def on_server_ready(self, events: int) -> None:
        """The reactor's handler: what comes while no answer is waited for wakes the task."""
        self.server.on_ready(events)
        if self.waits and events & READABLE:
            self.client.wake_waiting(ServerSpoke())

    def pass_end(self) -> None:
        """Tell the destination that the client will send no more."""
        self.ended = True
        try:
            self.server.send_eof()
        except OSError:  # it has gone, which the next receive finds
            pass

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
                return Switched(
                    request.upgrade,
                    bytes(self.buffer),
                    bytes(self.server_buffer),
                    exchange.flow,
                    exchange.recording,
                )
            if not keep:
                return None
            if reactor.late():
                await reactor.next_turn()
        return None

    async def go_on(self, request: OriginRequest, flow: Flow | None, recording: Recording | None) -> bool:
        """Carry out a request that the hooks have seen and answered already; whether the connections go on.

        Errors as `run`.
        """
        exchange = Exchange(self.inspection, self.client, self.buffer, request)
        exchange.flow, exchange.recording = flow, recording
        return await self.run_one(exchange, True)

    async def run_one(self, exchange: Exchange, asked: bool = False) -> bool:
        """Carry out one exchange, and say when it has ended; whether the connections go on."""
        self.exchange = exchange
        try:
            return await self.carry_out(exchange, asked)
        except BaseException as exc:
            if exchange.flow is not None and exchange.flow.error is None:
                exchange.flow.error = str(exc) or type(exc).__name__
            raise
        finally:
            self.exchange = None
            if exchange.flow is not None and not exchange.switched:
                await self.inspection.ended(exchange.flow, exchange.recording)

    async def carry_out(self, exchange: Exchange, asked: bool) -> bool:
        """Carry out one exchange; whether the connections go on. ``asked``: the hooks have seen its request."""
        request, inspection = exchange.request, self.inspection
        if inspection.is_misdirected(request.host) and inspection.rule.mismatch == "deny":
            self.session.error, self.session.close = "a request for another host than the connection's", "denied"
            await self.give_up(exchange, 421, "destination_ip_prohibited", self.session.error)
            return False
        try:
            if asked or await exchange.ask_hooks():
                assert exchange.flow is not None
                assert exchange.flow.instead is not None
                return await exchange.answer_instead(exchange.flow.instead)
            return await exchange.carry(self.server, self.server_buffer)
        except Dropped as exc:
            self.session.error, self.session.close = str(exc), "denied"
            self.break_off()
        except ExchangeFailed as exc:
            self.session.error = str(exc)
            await self.give_up(exchange, exc.status, exc.error, str(exc))
        except HookFailed as exc:
            self.session.error, self.session.close = str(exc), "error"
            if exchange.answered:
                self.break_off()
            else:
                await self.give_up(exchange, 502, "proxy_internal_error", str(exc))
        return False

    async def give_up(self, exchange: Exchange, status: int, error: str, text: str) -> None:
        """Say to the client that there is no answer."""
        if exchange.flow is not None:
            exchange.flow.error = text
        await exchange.refuse(status, error, text)

    def break_off(self) -> None:
        """Have both connections end with a reset."""
        self.client.reset()
        self.server.reset()

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
            self.session.error = str(exc)
            await client.send_all(encode_error(exc.status, "http_request_error", str(exc)))
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
