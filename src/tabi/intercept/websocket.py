"""WebSocket behind an exchange of HTTP: both directions of a connection, and two stages that have the relay's I/O.

    socket = open_websocket(inspection, flow, recording, reactor.late)
    stages = WebSocketStages(socket, switched.from_client, switched.from_server)
    await tunnel.relay([stages.up], [stages.down])

What hooks and records do not want is not looked at: then there is no WebSocket, only a relay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time

from tabi.intercept.events import Direction
from tabi.intercept.flow import Flow
from tabi.intercept.inspection import Inspection, Recording
from tabi.intercept.record import WebSocketMessage
from tabi.intercept.websocket_halves import MESSAGE_LIMIT, NOWHERE, UNRECORDED, UNSEEN, Half, HookedHalf, RecordedHalf
from tabi.relay.stage import Stage
from tabi.wire.websocket import Compression, parse_extensions

MOST = 8 << 20
"""Octets of one message that hooks see, and of all that are recorded, whatever ``body_limit`` says."""

MESSAGES = 10_000
"""Messages of a connection that are recorded at most, within ``body_limit``."""

endings: set[asyncio.Task[None]] = set()
"""Tasks of hooks that are told of an end."""


class WebSocket:
    """Both directions of one connection.

    Args:
        inspection: shows the messages to hooks.
        flow: of the exchange that has led to it.
        recording: gets the messages; None: nobody wants records.
        late: whether the turn of the loop has used up its time.

    Attributes:
        room: octets of messages that may still be recorded.
        over: whether it was ended here.
    """

    def __init__(
        self, inspection: Inspection, flow: Flow, recording: Recording | None, late: Callable[[], bool]
    ) -> None:
        self.session = inspection.session
        self.hooks = inspection.hooks
        self.flow = flow
        self.recording = recording
        self.late = late
        self.over = False
        limit = min(inspection.rule.body_limit, MOST)
        self.room = limit
        client, server = compressions(flow) or (None, None)
        kind: type[Half] = RecordedHalf
        if self.hooks.websocket_message:
            kind, limit = HookedHalf, max(limit, MESSAGE_LIMIT)
        self.up = kind(self, "up", client, limit)
        self.down = kind(self, "down", server, limit)
        self.halves: tuple[Half, ...] = (self.up, self.down)

    def record(self, direction: Direction, opcode: int, content: bytes, cut: bool = False) -> None:
        """A message has gone on; ``cut``: there was more of it."""
        recording = self.recording
        if recording is None:
            return
        kept = content[: recording.take(min(len(content), self.room))]
        cut = cut or len(kept) < len(content)
        if kept or not cut:
            recording.messages.append(
                WebSocketMessage("send" if direction == "up" else "receive", time(), opcode, kept)
            )
            self.room -= len(kept)
        if cut or len(recording.messages) >= MESSAGES:
            self.flow.tags.add(UNRECORDED)
            self.recording = None
            for half in self.halves:
                half.stop()

    def fail(self, code: int, error: str) -> None:
        """End it at both sides."""
        if not self.over:
            self.over = True
            self.flow.error = error
            for half in self.halves:
                half.close()
                half.abort(code)
            self.down.port.cut(error)

    def close(self) -> None:
        """The connection is over. Leaves nothing that only the garbage collector finds."""
        halves, self.halves, self.over = self.halves, (), True
        for half in halves:
            half.close()
            half.port = NOWHERE
        if halves:
            del self.up, self.down


class WebSocketStage(Stage):
    """One direction: the `websocket_halves.Port` of its half."""

    __slots__ = ("half", "head", "stages")

    limit = 1 << 62  # `room` says when nothing more is read

    def __init__(self, stages: WebSocketStages, half: Half, head: bytes) -> None:
        super().__init__()
        self.stages = stages
        self.half = half
        self.head = head
        half.port = self

    def attached(self) -> None:
        """See `Stage`."""
        if self.head:
            self.later(self.begin)

    def begin(self) -> None:
        """Take what had come before the relay began, if no more has come since."""
        if self.head:
            self.receive(b"")

    def room(self, most: int) -> int:
        """See `Stage`."""
        return most if self.half.ready else 0

    def receive(self, data: bytes) -> None:
        """See `Stage`."""
        if self.head:
            data, self.head = self.head + data, b""
        self.half.feed(data)
        self.held = self.half.held

    def receive_end(self) -> None:
        """See `Stage`."""
        self.begin()
        self.half.end()

    def holds(self, now: float) -> bool:
        """See `Stage`: a hook has its own deadline."""
        return not self.half.ready

    def flush(self) -> None:
        """See `Stage`: what hooks have not seen does not go on."""
        self.held = 0

    def closed(self, unsent: int) -> None:
        """See `Stage`."""
        self.stages.close()

    # --- see `websocket_halves.Port` ---

    def later(self, callback: Callable[[], object]) -> None:
        """Call in another turn, if the relay has not closed then."""
        if self.flow is not None:
            self.flow.relay.reactor.later(lambda: self.run(callback))

    def run(self, callback: Callable[[], object]) -> None:
        """Call, and read on; nothing where the relay has closed."""
        if self.flow is not None:
            self.flow.run(callback)
            self.held = self.half.held

    def cut(self, error: str) -> None:
        """End the connection, behind what was emitted."""
        if self.flow is not None:
            self.flow.relay.cut(error, "error")


class WebSocketStages:
    """Both stages of a connection.

    Args:
        socket: puts the messages together.
        from_client, from_server: what has come of it already.
        ended: called once the connection has closed.
    """

    def __init__(
        self, socket: WebSocket, from_client: bytes, from_server: bytes, ended: Callable[[], object] = bool
    ) -> None:
        self.socket = socket
        self.ended = ended
        self.up = WebSocketStage(self, socket.up, from_client)
        self.down = WebSocketStage(self, socket.down, from_server)
        self.open = True

    def close(self) -> None:
        """The connection is over."""
        if self.open:
            self.open = False
            self.socket.close()
            del self.up, self.down  # they are a cycle with this
            self.ended()


def compressions(flow: Flow) -> tuple[Compression, Compression] | None:
    """What was agreed on about compression, see `parse_extensions`. Raises ValueError."""
    answer = flow.response
    return None if answer is None else parse_extensions(answer.headers.get_all("Sec-WebSocket-Extensions"))


def open_websocket(
    inspection: Inspection, flow: Flow | None, recording: Recording | None, late: Callable[[], bool]
) -> WebSocket | None:
    """What looks at the messages behind an exchange; None: nobody wants them, or they cannot be read."""
    if flow is None or (recording is None and not inspection.hooks.websocket_message):
        return None
    answer = flow.response
    upgrade = None if answer is None else answer.headers.get("Upgrade")
    if upgrade is not None and upgrade.strip().lower() != "websocket":
        return None  # the server has chosen another protocol of those that were offered
    try:
        return WebSocket(inspection, flow, recording, late)
    except ValueError as exc:
        flow.tags.add(UNSEEN)
        flow.error = flow.error or str(exc)
        return None


def ended_soon(inspection: Inspection, flow: Flow, recording: Recording | None) -> None:
    """A flow has ended that no task waits for."""
    flow.error = flow.error or inspection.session.error
    hooks = inspection.hooks
    if any(handler.waits for handler in (*hooks.flow_end, *hooks.error)):
        task = asyncio.get_running_loop().create_task(inspection.ended(flow, recording))
        endings.add(task)
        task.add_done_callback(endings.discard)
    else:
        inspection.ended_now(flow, recording)
