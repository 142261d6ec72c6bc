"""For tests of WebSocket: frames as the library `websockets` writes and reads them, and ports that remember."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from tabi.intercept.events import WebSocketMessage
from tabi.intercept.flow import Flow, FlowRequest, FlowResponse
from tabi.intercept.headers import Headers
from tabi.intercept.hooks import Hooks
from tabi.intercept.inspection import Inspection, Origin, Recording
from tabi.intercept.record import Record
from tabi.intercept.websocket import WebSocket
from tabi.intercept.websocket_halves import Half
from tabi.policy.intercepts import InterceptRule
from tabi.session import Session
from tabi.wire.address import Address, parse_host


def deflate(takeover: bool = True, bits: int = 15) -> PerMessageDeflate:
    """The compression of one direction, at either of its ends."""
    return PerMessageDeflate(not takeover, not takeover, bits, max(bits, 9))


class Sender:
    """Writes the frames of one direction."""

    def __init__(self, mask: bool, compression: PerMessageDeflate | None = None) -> None:
        self.mask = mask
        self.extensions = [] if compression is None else [compression]

    def frame(self, opcode: int, content: bytes, fin: bool = True) -> bytes:
        """One frame; of a message the first part or a later one (opcode 0)."""
        return Frame(Opcode(opcode), content, fin).serialize(mask=self.mask, extensions=self.extensions)

    def message(self, content: bytes, parts: int = 1, opcode: int = 1) -> bytes:
        """A message in so many frames."""
        size = len(content) // parts
        pieces = [content[at * size : (at + 1) * size] for at in range(parts - 1)] + [content[(parts - 1) * size :]]
        return b"".join(self.frame(0 if at else opcode, piece, at == parts - 1) for at, piece in enumerate(pieces))


def read(octets: bytes, mask: bool, compression: PerMessageDeflate | None = None) -> list[tuple[int, bytes]]:
    """All frames: opcode and payload. Those of a message in several are joined."""
    reader, found, parts = StreamReader(), list[tuple[int, bytes]](), b""
    reader.feed_data(octets)
    begun = 0
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=mask, extensions=[] if compression is None else [compression])
        try:
            next(parser)
        except StopIteration as done:
            frame = done.value
        else:
            raise AssertionError("a frame that is not whole")
        if frame.opcode >= Opcode.CLOSE:
            found.append((int(frame.opcode), bytes(frame.data)))
            continue
        begun, parts = int(frame.opcode) or begun, parts + bytes(frame.data)
        if frame.fin:
            found.append((begun, parts))
            parts = b""
    return found


class PortDouble:
    """Remembers what goes on."""

    def __init__(self) -> None:
        self.octets = b""
        self.emits = 0
        self.ended = False
        self.why: str | None = None
        self.waiting: list[Callable[[], object]] = []

    def emit(self, data: bytes) -> None:
        assert not self.ended
        self.octets += data
        self.emits += 1

    def emit_end(self) -> None:
        self.ended = True

    def later(self, callback: Callable[[], object]) -> None:
        self.waiting.append(callback)

    def run(self, callback: Callable[[], object]) -> None:
        callback()

    def cut(self, error: str) -> None:
        self.why = error

    def turn(self) -> None:
        """The next turn of the loop."""
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class Heard:
    """A hook that remembers messages, and does something with each."""

    def __init__(self, act: Callable[[WebSocketMessage], object] = repr) -> None:
        self.act = act
        self.messages: list[tuple[str, bool, bytes]] = []

    def websocket_message(self, flow: Flow, message: WebSocketMessage) -> None:
        self.messages.append((message.direction, message.is_text, message.content))
        self.act(message)


class Records:
    """A recorder."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record, rule: Any) -> None:
        self.records.append(record)


async def no_fetch(*args: Any) -> Any:
    """Nothing is asked."""
    raise AssertionError


def make_inspection(hooks: Iterable[object] = (), close_on_error: bool = False, **rule: Any) -> Inspection:
    """One of a session with `example.com`."""
    session = Session(1, "socks5://127.0.0.1:1080", Address(parse_host("127.0.0.1"), 5000), 0.0)
    of_hooks = Hooks(hooks, 10.0, close_on_error)
    origin = Origin("http", parse_host("example.com"), 80)
    return Inspection(session, InterceptRule(**rule), of_hooks, Records(), origin, None, no_fetch)


def make_flow(inspection: Inspection, extensions: str | None = None) -> Flow:
    """A flow whose answer is a 101."""
    flow = inspection.make_flow("GET", "/", "HTTP/1.1", Headers([]))
    fields = [] if extensions is None else [(b"Sec-WebSocket-Extensions", extensions.encode())]
    flow.response = FlowResponse(101, "Switching Protocols", "HTTP/1.1", Headers(fields))
    assert isinstance(flow.request, FlowRequest)
    return flow


class Ends:
    """A WebSocket with ports that remember.

    Args:
        hooks: see its messages.
        extensions: what the server has agreed to.
        late: whether every turn is over at once.
    """

    def __init__(
        self,
        hooks: Iterable[object] = (),
        extensions: str | None = None,
        late: bool = False,
        close_on_error: bool = False,
        **rule: Any,
    ) -> None:
        inspection = make_inspection(hooks, close_on_error, **rule)
        self.recording = Recording(inspection.rule.body_limit)
        self.flow = make_flow(inspection, extensions)
        self.socket = WebSocket(inspection, self.flow, self.recording, lambda: late)
        self.up, self.down = PortDouble(), PortDouble()
        self.socket.up.port, self.socket.down.port = self.up, self.down

    @property
    def recorded(self) -> list[tuple[str, int, bytes]]:
        """The messages of the record."""
        return [(message.type, message.opcode, message.data) for message in self.recording.messages]

    def feed(self, half: Half, octets: bytes, cuts: Iterable[int] = ()) -> None:
        """Have octets come in pieces, and turns go by as long as anything waits for them."""
        ends = [*sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
        begin = 0
        for end in ends:
            half.feed(octets[begin:end])
            begin = end
            while self.up.waiting or self.down.waiting:
                self.up.turn()
                self.down.turn()
