"""What a frame relay sends where windows are its own: they are kept, and nobody starves."""

from __future__ import annotations

from h2_ends import GET, OK, POST, Ends, Pass, block
from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_outlet import CONNECTION_CREDIT, STREAM_CREDIT
from tabi.intercept.http2_stream import Stream
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import PREFACE, encode_frame, encode_settings, encode_window_update


class Taking(Pass):
    """Takes all responses, and sends the same."""

    def request(self, stream: Stream, request: object, end: bool) -> None:
        super().request(stream, request, end)  # type: ignore[arg-type]
        stream.take(DOWN)

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        stream.consumed(direction, len(payload))
        stream.send(direction, payload, end)


def test_a_receiver_that_allows_nothing_is_waited_for() -> None:
    """Its streams share its connection's window when it grows, a frame of each after the other."""
    ends = Ends(Taking())
    for id in (1, 3, 5):
        ends.client.head(id, GET, True)
    ends.go()
    received: dict[int, int] = {}
    acknowledge = ends.client.connection.acknowledge_received_data

    def count(octets: int, id: int) -> None:
        received[id] = received.get(id, 0) + octets

    ends.client.connection.acknowledge_received_data = count  # type: ignore[assignment, method-assign]
    for id in (1, 3, 5):
        ends.server.head(id, OK)
        ends.server.body(id, b"x" * 150_000)
    ends.go()
    assert sum(received.values()) == 65535
    assert set(ends.relay.down.waiting) == {stream.down for stream in ends.relay.streams()}
    before = dict(received)
    ends.client.connection.increment_flow_control_window(48 * 1024)
    ends.go()
    grown = {id: received.get(id, 0) - before.get(id, 0) for id in (3, 5)}
    assert grown == {3: 32 * 1024, 5: 16 * 1024}  # the window of 1 is used up
    ends.client.connection.acknowledge_received_data = acknowledge  # type: ignore[method-assign]
    for id in (1, 3, 5):
        ends.client.connection.increment_flow_control_window(1 << 20, id)
    ends.client.connection.increment_flow_control_window(1 << 20)
    ends.go()
    assert {id: len(body) for id, body in ends.client.bodies.items()} == dict.fromkeys((1, 3, 5), 150_000)
    assert ends.relay.down.queued == 0
    assert not ends.relay.down.waiting


def test_settings_change_windows_of_streams_that_are_open() -> None:
    """Smaller ones below zero: nothing is sent until they have grown again; larger ones let go what waits."""
    ends = Ends(Taking(), client={4: 1000})
    ends.client.head(1, GET, True)
    ends.go()
    half = ends.relay.up.halves[1].other
    ends.client.connection.acknowledge_received_data = lambda octets, id: None  # type: ignore[assignment, method-assign]
    ends.server.head(1, OK)
    ends.server.body(1, b"x" * 50_000)
    ends.go()
    assert len(ends.client.bodies[1]) == 1000
    ends.client.connection.update_settings({4: 500})
    ends.go()
    assert half.window == -500
    ends.client.connection.update_settings({4: 2000})
    ends.go()
    assert len(ends.client.bodies[1]) == 2000
    ends.client.connection.update_settings({4: 60_000})
    ends.go()
    assert ends.client.bodies[1] == b"x" * 50_000


def test_what_was_the_same_window_stays_enough_when_it_becomes_ours() -> None:
    """A sender that was short of window gets more, each stream and the connection; new streams at once."""
    inspector = Pass()
    ends = Ends(inspector, server={4: 100})
    ends.client.head(1, POST)
    ends.client.head(3, POST)
    ends.go()
    up = ends.relay.up
    assert ends.client.connection.local_flow_control_window(1) == 100
    inspector.streams[1].take(UP)
    inspector.streams[1].take(UP)
    ends.go()
    assert up.managed
    assert up.credit == CONNECTION_CREDIT
    assert ends.client.connection.local_flow_control_window(1) == STREAM_CREDIT
    assert ends.client.connection.local_flow_control_window(3) == STREAM_CREDIT
    ends.client.head(5, POST)
    ends.go()
    assert ends.client.connection.local_flow_control_window(5) == STREAM_CREDIT
    ends.client.body(3, b"x" * 500_000)
    ends.go()
    assert len(ends.server.bodies[3]) == 500_000
    assert up.credit >= CONNECTION_CREDIT // 2


def test_a_window_of_a_stream_that_opens_late() -> None:
    """Where it is ours the server gets what is ours to give, as soon as it knows the stream."""
    from tabi.intercept.http2_stream import HOLD, Hold
    from tabi.wire.h2 import H2Request

    class Late(Pass):
        def request(self, stream: Stream, request: H2Request, end: bool) -> Hold:
            super().request(stream, request, end)
            return HOLD

    inspector = Late()
    ends = Ends(inspector, client={4: 5})
    ends.client.head(1, GET, True)
    ends.client.head(3, GET, True)
    ends.go()
    inspector.streams[3].answer(200, [], b"managed")
    inspector.streams[1].send_request()
    ends.go()
    assert ends.server.connection.local_flow_control_window(1) == STREAM_CREDIT
    ends.server.head(1, OK)
    ends.server.body(1, b"x" * 5000)
    ends.go()
    assert ends.client.bodies == {1: b"x" * 5000, 3: b"managed"}


def test_an_answer_before_the_server_has_said_anything() -> None:
    """It waits, since each side begins with SETTINGS. Windows are ours from then on, before the sender begins."""
    inspector = Pass()
    relay = FrameRelay(inspector)
    relay.up.feed(PREFACE + encode_settings([]) + block(1, GET, 1) + block(3, GET, 1))
    inspector.streams[1].answer(200, [], b"x" * 65535)
    assert relay.take(DOWN) == b""
    relay.down.feed(encode_settings([]))
    assert relay.take(DOWN).startswith(encode_settings([]))
    relay.down.feed(block(3, OK) + encode_frame(0, 1, 3, b"y"))
    assert relay.down.window == 0
    assert relay.down.queued == 1
    relay.up.feed(encode_window_update(0, 5))
    assert relay.take(DOWN)[-10:] == encode_frame(0, 1, 3, b"y")
