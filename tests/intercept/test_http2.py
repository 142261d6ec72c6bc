"""A frame relay between two ends of another implementation: what passes, and what an inspector does with it."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2_ends import GET, OK, POST, Ends, Pass
from tabi.intercept.http2 import FrameRelay
from tabi.intercept.http2_outlet import STREAM_CREDIT
from tabi.intercept.http2_stream import HOLD, Hold, Stream
from tabi.policy.limits import DOWN, UP
from tabi.wire.h2 import (
    H2Request,
    decode_settings,
    encode_block,
    encode_frame,
    encode_goaway,
    encode_rst,
    encode_settings,
    encode_window_update,
)
from tabi.wire.hpack import Field

KINDS = (
    "pass",
    "watch",
    "hold",
    "change",
    "answer",
    "late answer",
    "stream answer",
    "read",
    "take",
    "response",
    "instead",
)


class Mixed(Pass):
    """Does something else with each stream, as its path says; what waits is done by `act`, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.todo: list[tuple[str, Stream]] = []
        self.read: dict[tuple[int, int], bytes] = {}

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        super().request(stream, request, end)
        kind = request.path[1:].decode().replace("+", " ")
        stream.flow = kind
        if kind == "watch":
            stream.watch(UP)
            stream.watch(DOWN)
        elif kind == "change":
            return H2Request(
                b"PUT", request.scheme, request.authority, b"/changed", b"", [*request.fields, (b"x-more", b"1")]
            )
        elif kind == "answer":
            stream.answer(203, [(b"x-ours", b"1")], b"a" * 100_000)
        elif kind in ("hold", "late answer", "stream answer"):
            self.todo.append((kind, stream))
            return HOLD
        elif kind == "read":
            stream.take(UP)
            if end:
                self.todo.append((kind, stream))
            return HOLD
        elif kind == "take":
            stream.take(UP)
            stream.take(DOWN)
            if end:
                stream.send(UP, b"", True)
        return None

    def response(self, stream: Stream, status: int, fields: list[Field], end: bool) -> Any:
        super().response(stream, status, fields, end)
        if stream.flow == "change":
            return 201, [*fields, (b"x-more", b"1")]
        if stream.flow == "response":
            self.todo.append(("response", stream))
            return HOLD
        if stream.flow == "instead":
            stream.answer(418, [], b"teapot")
        if stream.flow == "take" and end:
            stream.send(DOWN, b"", True)
        return None

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        key = stream.id, direction
        self.read[key] = self.read.get(key, b"") + payload
        if stream.flow == "read":
            stream.consumed(direction, len(payload))
            if end:
                self.todo.append(("read", stream))
        elif stream.flow == "take":
            stream.consumed(direction, len(payload))
            stream.send(direction, payload.swapcase(), end)

    def writable(self, stream: Stream, direction: int) -> None:
        if stream.flow == "stream answer" and not stream.over:
            left = self.read.get((stream.id, 9), b"x" * 5)
            self.read[stream.id, 9] = left[1:]
            stream.send(DOWN, b"s" * 30_000 if left else b"", not left)

    def act(self, kind: str, stream: Stream) -> None:
        """Go on with what waits."""
        if kind == "hold":
            stream.send_request()
        elif kind == "late answer":
            stream.answer(204, [])
        elif kind == "stream answer":
            stream.answer(200, [(b"x-ours", b"1")], b"s" * 30_000, end=False)
        elif kind == "read":
            stream.send_request(None, end=False)
            stream.send(UP, self.read.get((stream.id, UP), b"").swapcase(), True)
        elif kind == "response":
            stream.send_response((200, [(b"x-held", b"1")]))


def play(streams: list[tuple[str, int, int]], piece: int, seed: int, windows: tuple[int, int]) -> None:
    """Carry out all of them at once, and look at what has arrived at both ends."""
    inspector = Mixed()
    rng = random.Random(seed)
    ends = Ends(inspector, client={4: windows[0]}, server={4: windows[1]}, piece=piece)
    uploads: dict[int, tuple[str, bytes]] = {}
    downloads: dict[int, bytes] = {}
    waiting = [(2 * number + 1, *stream) for number, stream in enumerate(streams)]
    sizes: dict[bytes, int] = {}
    served: set[int] = set()
    for _ in range(100):
        for id, kind, up, down in waiting[:3]:
            body = b"U%d" % id * up
            uploads[id] = (kind, body)
            sizes[b"%d" % id] = down
            ends.client.head(id, [*POST[:3], (b":path", b"/" + kind.encode()), (b"x-id", b"%d" % id)], not body)
            if body:
                ends.client.body(id, body)
        waiting = waiting[3:]
        ends.go()
        while inspector.todo:
            kind, stream = inspector.todo.pop(rng.randrange(len(inspector.todo)))
            inspector.act(kind, stream)
            if rng.random() < 0.5:
                ends.go()
        ends.go()
        for id in ends.server.ended - served:
            served.add(id)
            number = int(dict(ends.server.heads[id])[b"x-id"])
            down = sizes[b"%d" % number]
            downloads[number] = b"D%d" % number * down
            ends.server.head(id, OK, not down)
            if down:
                ends.server.body(id, downloads[number])
        ends.go()
        if not waiting and not inspector.todo and ends.server.ended == served and not ends.server.sending:
            break
    else:
        raise AssertionError("it does not end")
    assert ends.relay.failure is None
    assert ends.client.goaway is None
    assert ends.server.goaway is None
    by_number = {int(dict(head)[b"x-id"]): id for id, head in ends.server.heads.items()}
    for id, (kind, body) in uploads.items():
        head, answer = dict(ends.client.heads[id]), ends.client.bodies.get(id, b"")
        arrived = ends.server.bodies.get(by_number.get(id, 0), b"")
        expected = downloads.get(id, b"")
        if kind == "answer":
            assert (head[b":status"], answer) == (b"203", b"a" * 100_000)
        elif kind == "late answer":
            assert (head[b":status"], answer) == (b"204", b"")
        elif kind == "stream answer":
            assert answer == b"s" * 180_000
        elif kind == "read":
            assert (arrived, answer) == (body.swapcase(), expected)
        elif kind == "take":
            assert (arrived, answer) == (body.swapcase(), expected.swapcase())
        elif kind == "instead":
            assert (head[b":status"], answer) == (b"418", b"teapot")
            assert arrived == body
        else:
            assert (arrived, answer) == (body, expected)
        if kind == "watch":
            assert inspector.read.get((id, UP), b"") == body
            assert inspector.read.get((id, DOWN), b"") == expected
        if kind == "change":
            assert head[b":status"] == b"201"
            assert dict(ends.server.heads[by_number[id]])[b":method"] == b"PUT"
        assert id in ends.client.ended
    assert not ends.relay.up.halves
    assert not ends.relay.down.halves
    assert ends.relay.up.queued == ends.relay.down.queued == 0
    assert set(inspector.errors.values()) <= {None}
    assert set(inspector.errors) == set(uploads)


kinds = st.sampled_from(KINDS)
lengths = st.sampled_from([0, 1, 100, 20_000, 60_000])


@given(
    st.lists(st.tuples(kinds, lengths, lengths), min_size=1, max_size=8),
    st.sampled_from([37, 1000, 9, 16393, 1 << 20]),
    st.integers(0, 1000),
    st.tuples(st.sampled_from([65535, 1000, 1 << 20]), st.sampled_from([65535, 1000, 1 << 20])),
)
def test_any_mixture_arrives(
    streams: list[tuple[str, int, int]], piece: int, seed: int, windows: tuple[int, int]
) -> None:
    """Whatever is done with streams of one connection, in whatever order and windows, each has its octets."""
    play(streams, piece, seed, windows)


# --- what passes ---


class Holds(Pass):
    """Holds each request, or each response."""

    def __init__(self, direction: int = UP) -> None:
        super().__init__()
        self.direction = direction

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        super().request(stream, request, end)
        return HOLD if self.direction == UP and not stream.pushed else None

    def response(self, stream: Stream, status: int, fields: list[Field], end: bool) -> Any:
        super().response(stream, status, fields, end)
        return HOLD if self.direction == DOWN else None


def test_trailers_interim_responses_and_never_indexed_fields() -> None:
    """They pass; a secret stays one that nobody indexes."""
    ends = Ends(Pass())
    secret = hpack.NeverIndexedHeaderTuple(b"authorization", b"secret")
    ends.client.head(1, [*POST, secret])
    ends.go()
    (request,) = [e for e in ends.server.events if isinstance(e, h2.events.RequestReceived)]
    assert isinstance(request.headers[-1], hpack.NeverIndexedHeaderTuple)
    ends.server.head(1, [(b":status", b"103"), (b"link", b"x")])
    ends.server.head(1, OK)
    ends.client.connection.send_data(1, b"abc", pad_length=7)
    ends.client.connection.send_headers(1, [(b"x-up", b"1")], end_stream=True)
    ends.server.connection.send_data(1, b"def")
    ends.server.connection.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
    ends.go()
    assert [type(e).__name__ for e in ends.client.events if hasattr(e, "headers")] == [
        "InformationalResponseReceived",
        "ResponseReceived",
        "TrailersReceived",
    ]
    assert ends.server.trailers == {1: [(b"x-up", b"1")]}
    assert (ends.server.bodies, ends.client.bodies) == ({1: b"abc"}, {1: b"def"})
    assert not ends.relay.up.halves


def test_what_has_come_behind_a_held_head_can_be_taken() -> None:
    """Content and trailers, in order, as if they came then."""
    inspector = Holds()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.client.connection.send_data(1, b"abc")
    ends.client.connection.send_data(1, b"def")
    ends.client.connection.send_headers(1, [(b"x-up", b"1")], end_stream=True)
    ends.go()
    stream = inspector.streams[1]
    stream.take(UP)
    assert [seen[3:] for seen in inspector.seen if seen[0] == "data"] == [
        (b"abc", False),
        (b"def", False),
        (b"", True),
    ]
    assert stream.waiting(UP) == 6
    stream.consumed(UP, 6)
    stream.send(UP, b"ABCDEF", True)
    stream.send_request()
    ends.go()
    assert ends.server.bodies == {1: b"ABCDEF"}
    assert ends.server.trailers == {1: [(b"x-up", b"1")]}


@pytest.mark.parametrize("leaves", [1, 2])
def test_content_that_was_taken_may_pass_again(leaves: int) -> None:
    """Behind what was sent of it; also where its end has come meanwhile."""
    inspector = Pass()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.go()
    stream = inspector.streams[1]
    stream.take(UP)
    ends.client.connection.send_data(1, b"abc")
    ends.go()
    if leaves == 2:
        ends.client.body(1, b"def")
        ends.go()
        stream.consumed(UP, 3)
        stream.send(UP, b"def")
    stream.consumed(UP, 3)
    stream.send(UP, b"ABC")
    for _ in range(leaves):
        stream.leave(UP)
    if leaves == 1:
        ends.client.body(1, b"def")
    ends.go()
    assert ends.server.bodies == {1: b"ABCdef" if leaves == 1 else b"defABC"}
    assert ends.server.ended == {1}


def test_an_interim_response_of_ours() -> None:
    """Before there is a final one, and not behind it."""
    inspector = Holds()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.go()
    inspector.streams[1].send_interim(100)
    inspector.streams[1].answer(200, [], end=False)
    inspector.streams[1].send_interim(100)
    ends.go()
    heads = [type(event).__name__ for event in ends.client.events if hasattr(event, "headers")]
    assert heads == ["InformationalResponseReceived", "ResponseReceived"]


@pytest.mark.parametrize("taken", [False, True])
def test_an_inspector_sees_and_changes_trailers(taken: bool) -> None:
    """Where it sends other content they go behind that, and where what was before them waits they wait too."""

    class Trailing(Holds):
        def trailers(self, stream: Stream, direction: int, fields: list[Field]) -> list[Field] | None:
            return [*fields, (b"x-more", b"1")]

    inspector = Trailing()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.go()
    stream = inspector.streams[1]
    (stream.take if taken else stream.watch)(UP)
    ends.client.connection.send_data(1, b"abc")
    ends.client.connection.send_headers(1, [(b"x-up", b"1")], end_stream=True)
    ends.go()
    pieces = [("data", 1, UP, b"abc", False), ("data", 1, UP, b"", True)]
    assert inspector.seen[1:] == (pieces if taken else [])
    stream.send_request()
    assert inspector.seen[1:] == pieces
    if taken:
        assert stream.waiting(UP) == 3
        stream.consumed(UP, 3)
        stream.send(UP, b"ABC", True)
    ends.go()
    assert ends.server.bodies == {1: b"ABC" if taken else b"abc"}
    assert ends.server.trailers == {1: [(b"x-up", b"1"), (b"x-more", b"1")]}
    assert 1 in ends.server.ended


def test_an_inspector_may_answer_at_the_very_end_of_a_request() -> None:
    """When it has seen all of the content, or the trailers."""

    class Late(Holds):
        def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
            if end:
                stream.answer(200, [], b"late")

    for trailers in (False, True):
        for take in (Stream.watch, Stream.take):
            inspector = Late()
            ends = Ends(inspector)
            ends.client.head(1, POST)
            ends.go()
            take(inspector.streams[1], UP)
            ends.client.connection.send_data(1, b"abc", end_stream=not trailers)
            if trailers:
                ends.client.connection.send_headers(1, [(b"x-up", b"1")], end_stream=True)
            ends.go()
            inspector.streams[1].send_request()
            ends.go()
            assert ends.client.bodies == {1: b"late"}
            assert ends.server.heads == {}
            assert inspector.errors == {1: None}


def test_resets_pings_and_goaway_pass() -> None:
    """Each reaches the other end, and streams end with it."""
    inspector = Pass()
    ends = Ends(inspector)
    for id in (1, 3, 5):
        ends.client.head(id, POST)
    ends.go()
    ends.client.connection.reset_stream(1, 8)
    ends.server.connection.reset_stream(3, 2)
    ends.client.connection.ping(b"12345678")
    ends.server.connection.ping(b"87654321")
    ends.client.connection.prioritize(5, weight=7)
    ends.client.connection.increment_flow_control_window(1000, 5)
    ends.go()
    assert (ends.server.resets, ends.client.resets) == ({1: 8}, {3: 2})
    for end in (ends.client, ends.server):
        assert sum(isinstance(e, h2.events.PingAckReceived) for e in end.events) == 1
    assert inspector.errors == {1: "reset by the client: CANCEL", 3: "reset by the server: INTERNAL_ERROR"}
    assert any(isinstance(e, h2.events.PriorityUpdated) for e in ends.server.events)
    ends.server.connection.close_connection(error_code=0, last_stream_id=3)
    ends.go()
    assert ends.client.goaway.last_stream_id == 3
    assert inspector.errors[5] == "the server takes no new streams"
    assert not ends.relay.up.halves
    assert ends.relay.failure is None


def test_a_stream_that_is_over_keeps_no_window() -> None:
    """Content on its way when a stream was reset is given back to its sender's connection."""
    ends = Ends(Pass())
    ends.client.head(1, POST)
    ends.go()
    for _ in range(20):
        ends.client.connection.send_data(1, b"x" * 3000)
    on_its_way = ends.client.connection.data_to_send()
    ends.server.connection.reset_stream(1)
    before = ends.client.connection.outbound_flow_control_window
    ends.raw(DOWN, ends.server.connection.data_to_send())
    ends.raw(UP, on_its_way + encode_window_update(1, 5) + encode_rst(1, 8) + encode_block(1, 1, 1, b"\x88"))
    assert before == 65535 - 60_000
    assert ends.client.connection.outbound_flow_control_window == 65535
    assert ends.relay.failure is None


def test_pushed_streams_pass() -> None:
    """An inspector looks at them; the client may reset one."""
    inspector = Holds()
    ends = Ends(inspector, client={2: 1})
    ends.client.head(1, GET, True)
    ends.go()
    inspector.streams[1].send_request()
    ends.go()
    for promised in (2, 4):
        ends.server.connection.push_stream(1, promised, GET)
        ends.server.head(promised, OK)
    ends.go()
    assert [e.pushed_stream_id for e in ends.client.events if isinstance(e, h2.events.PushedStreamReceived)] == [2, 4]
    assert inspector.streams[2].pushed
    inspector.streams[2].answer(200, [])
    ends.client.connection.reset_stream(4, 8)
    ends.server.body(2, b"pushed")
    ends.server.head(1, OK, True)
    ends.go()
    assert ends.client.bodies == {2: b"pushed"}
    assert inspector.errors == {1: None, 2: None, 4: "reset by the client: CANCEL"}
    assert not ends.relay.down.halves


def test_a_promise_for_nobody_is_refused() -> None:
    """One on a stream that has ended meanwhile."""
    ends = Ends(None, client={2: 1})
    ends.client.head(1, GET, True)
    ends.go()
    ends.server.connection.push_stream(1, 2, GET)
    promise = ends.server.connection.data_to_send()
    ends.raw(UP, encode_rst(1, 8))
    ends.raw(DOWN, promise)
    assert ends.server.resets == {1: 8, 2: 7}
    assert ends.relay.failure is None


def test_extended_connect_passes() -> None:
    """WebSocket over HTTP/2 (RFC 8441): SETTINGS that allow it, the request, and content both ways at once."""
    ends = Ends(Pass(), server={8: 1})
    assert ends.client.connection.remote_settings.enable_connect_protocol
    ends.client.head(1, [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]])
    ends.server.events.clear()
    ends.go()
    ends.server.head(1, OK)
    for octets in (b"a", b"b"):
        ends.client.connection.send_data(1, octets)
        ends.server.connection.send_data(1, octets.upper())
        ends.go()
    assert (ends.server.bodies[1], ends.client.bodies[1]) == (b"ab", b"AB")


@pytest.mark.parametrize("table", [0, 100, 4096, 16384, 1 << 20])
def test_tables_follow_settings(table: int) -> None:
    """The size of a table changes when the other end has acknowledged it, whatever it is; both ends decode on."""
    ends = Ends(Pass(), client={1: table}, server={1: table})
    for number in range(6):
        id = 2 * number + 1
        fields: list[Field] = [(b"x-%d" % other, b"v" * 20 * other) for other in range(number)]
        ends.client.head(id, [*GET, *fields], True)
        ends.go()
        ends.server.head(id, [*OK, *fields], True)
        if number == 3:
            ends.client.connection.update_settings({1: 50})
            ends.server.connection.update_settings({1: 60})
        ends.go()
        assert ends.client.heads[id] == [*OK, *fields]
        assert ends.server.heads[id] == [*GET, *fields]
    assert ends.relay.down.encoder.limit == ends.relay.down.decoder.allowed == 50
    assert ends.relay.up.encoder.limit == ends.relay.up.decoder.allowed == 60


def test_settings_have_bounds() -> None:
    """What both sides allow is what the relay has room for; all other settings pass as they are."""
    wanted = {1: 1 << 20, 3: 77, 5: 1 << 20, 6: 1 << 30, 0xABCD: 5}
    relay = FrameRelay()
    relay.down.feed(encode_settings(list(wanted.items())))
    passed = dict(decode_settings(relay.take(DOWN)[9:]))
    assert passed == {1: 16384, 3: 77, 5: 65536, 6: 131072, 0xABCD: 5}
    assert relay.up.max_frame == 65536


def test_alt_svc_frames_are_dropped_where_that_is_wanted() -> None:
    """Others of extensions pass."""
    frames = encode_frame(0x0A, 0, 0, b"\0\0x") + encode_frame(0xEE, 0, 0, b"y")
    for strip in (False, True):
        relay = FrameRelay(strip_alt_svc=strip)
        relay.down.feed(encode_settings([]) + frames)
        assert relay.take(DOWN) == encode_settings([]) + (frames[12:] if strip else frames)


# --- numbers that differ ---


def test_held_requests_do_not_hold_others_up() -> None:
    """A request that waits is opened at the server behind others, under another number; all frames follow that."""
    inspector = Holds()
    ends = Ends(inspector)
    for id in (1, 3, 5, 7):
        ends.client.head(id, POST)
    ends.go()
    ends.client.connection.increment_flow_control_window(70_000, 1)
    ends.client.connection.increment_flow_control_window(70_000, 3)
    ends.go()
    for id in (5, 1, 3):
        inspector.streams[id].send_request()
        ends.go()
    assert [stream.up.to for stream in (inspector.streams[id] for id in (5, 1, 3))] == [5, 7, 9]
    assert ends.server.connection.local_flow_control_window(7) == 65535 + 0
    assert ends.server.connection._get_stream_by_id(7).outbound_flow_control_window == 65535 + 70_000
    ends.client.head(9, POST)
    ends.go()
    inspector.streams[9].send_request()
    ends.client.connection.increment_flow_control_window(70_000, 3)
    ends.client.connection.prioritize(3, weight=7)
    ends.raw(UP, encode_frame(0xEE, 0, 3, b"y") + encode_frame(0x10, 0, 0, b"\0\0\0\3u=1"))
    for id in (1, 3, 9):
        ends.client.body(id, b"body %d" % id)
    ends.go()
    for id in (7, 9, 11):
        ends.server.head(id, OK)
        ends.server.body(id, b"answer %d" % id)
    ends.go()
    assert ends.server.bodies == {7: b"body 1", 9: b"body 3", 11: b"body 9"}
    assert ends.client.bodies == {1: b"answer 7", 3: b"answer 9", 9: b"answer 11"}
    inspector.streams[7].send_request()
    ends.client.connection.reset_stream(7, 8)
    ends.server.connection.reset_stream(5)
    ends.go()
    assert ends.server.resets == {13: 8}
    assert ends.client.resets == {5: 0}
    assert ends.relay.failure is None


def test_goaway_where_numbers_differ() -> None:
    """The client may ask again for what the server has not taken, and for nothing else."""
    inspector = Holds()
    ends = Ends(inspector)
    for id in (1, 3, 5, 7, 9, 11):
        ends.client.head(id, POST)
    ends.go()
    inspector.streams[9].answer(200, [], end=False)
    for id in (5, 1, 3):
        inspector.streams[id].send_request()
        ends.go()
    down = ends.relay.down
    down.feed(encode_goaway((1 << 31) - 1, 0))
    assert ends.relay.take(DOWN) == encode_goaway((1 << 31) - 1, 0)
    down.feed(encode_goaway(7, 0))  # 5 and 1 were taken, 3 was not
    assert ends.relay.take(DOWN) == encode_rst(3, 7) + encode_goaway(9, 0)
    assert inspector.errors == dict.fromkeys((3, 11), "the server takes no new streams")
    inspector.streams[7].send_request()
    assert ends.relay.take(DOWN) == encode_rst(7, 7)
    inspector.streams[9].send(DOWN, b"", True)
    assert ends.relay.take(DOWN) == encode_frame(0, 1, 9) + encode_rst(9, 0)
    assert ends.relay.failure is None


def test_goaway_where_numbers_are_the_same() -> None:
    """It passes, but for an answer of ours that the client would give up."""
    for answered in (False, True):
        inspector = Holds()
        ends = Ends(inspector)
        for id in (1, 3, 5):
            ends.client.head(id, POST)
        ends.go()
        inspector.streams[1].send_request()
        if answered:
            inspector.streams[3].answer(200, [], end=False)
        ends.go()
        ends.raw(DOWN, encode_goaway(1, 0))
        assert ends.client.goaway.last_stream_id == (3 if answered else 1)
        assert set(inspector.errors) == ({5} if answered else {3, 5})


# --- what an inspector does ---


def test_what_is_held_is_bounded_and_others_go_on() -> None:
    """A held response takes what its windows allow, and no more; a second stream has the whole connection."""
    inspector = Holds(DOWN)
    ends = Ends(inspector)
    for id in (1, 3):
        ends.client.head(id, GET, True)
    ends.go()
    for id in (1, 3):
        ends.server.head(id, OK)
        ends.server.body(id, b"x" * 2_000_000)
    ends.go()
    inspector.streams[3].send_response()
    ends.go()
    assert len(ends.client.bodies[3]) == 2_000_000
    assert 65535 <= inspector.streams[1].waiting(DOWN) <= STREAM_CREDIT
    assert ends.relay.down.queued == inspector.streams[1].waiting(DOWN)
    inspector.streams[1].send_response()
    ends.go()
    assert len(ends.client.bodies[1]) == 2_000_000


def test_what_is_taken_comes_as_fast_as_it_is_consumed() -> None:
    """A hook that does not say that it has consumed gets no more than a stream's credit."""
    inspector = Pass()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.go()
    stream = inspector.streams[1]
    stream.take(UP)
    ends.client.body(1, b"x" * 1_000_000)
    ends.go()
    taken = stream.waiting(UP)
    assert 65535 <= taken <= STREAM_CREDIT
    while taken < 1_000_000:
        stream.consumed(UP, stream.waiting(UP))
        ends.go()
        taken += stream.waiting(UP)
    assert inspector.seen[-1][-1] is True
    assert ends.server.bodies == {}


def test_answers_end_what_the_client_still_sends() -> None:
    """RST_STREAM without an error behind the answer (RFC 9113 section 8.1); the connection goes on."""
    inspector = Holds()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.client.body(1, b"x" * 2_000_000)
    ends.go()
    inspector.streams[1].answer(413, [], b"too much")
    ends.go()
    assert ends.client.bodies == {1: b"too much"}
    assert ends.client.resets == {1: 0}
    assert inspector.errors == {1: None}
    ends.client.head(3, POST)
    ends.client.body(3, b"y" * 200_000)
    ends.go()
    inspector.streams[3].send_request()
    ends.go()
    assert ends.server.bodies == {3: b"y" * 200_000}


def test_answers_without_content() -> None:
    """To HEAD, and with 204 and 304."""
    inspector = Holds()
    ends = Ends(inspector)
    for id, method, status in ((1, b"HEAD", 200), (3, b"GET", 204), (5, b"GET", 304)):
        ends.client.head(id, [(b":method", method), *GET[1:]], True)
        ends.go()
        inspector.streams[id].answer(status, [], b"content")
    ends.go()
    assert ends.client.bodies == {}
    assert ends.client.ended == {1, 3, 5}


def test_an_answer_in_place_of_one_that_has_begun_is_none() -> None:
    """Nothing is done to a client that has a head already, nor to a stream that is over."""
    inspector = Pass()
    ends = Ends(inspector)
    ends.client.head(1, GET, True)
    ends.go()
    ends.server.head(1, OK)
    ends.go()
    stream = inspector.streams[1]
    assert stream.answered
    stream.answer(500, [])
    ends.server.body(1, b"right")
    ends.go()
    assert ends.client.bodies == {1: b"right"}
    assert stream.over
    stream.answer(500, [])
    stream.reset("x")
    stream.send(DOWN, b"x", True)
    stream.take(UP)
    stream.consumed(UP, 5)
    stream.send_request()
    stream.send_response()
    assert ends.relay.take(UP) == ends.relay.take(DOWN) == b""
    assert repr(stream) == "<Stream 1>"


def test_an_inspector_resets_a_stream() -> None:
    """Both ends get to know, the server only if it has seen it."""
    inspector = Holds()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.client.head(3, POST)
    ends.go()
    inspector.streams[3].send_request()
    for id in (1, 3):
        inspector.streams[id].reset("dropped by a hook")
    ends.go()
    assert ends.client.resets == {1: 8, 3: 8}
    assert ends.server.resets == {3: 8}
    assert inspector.errors == {1: "dropped by a hook", 3: "dropped by a hook"}


def test_an_inspector_is_told_of_streams_that_are_cut_off() -> None:
    """Each has its end, once; nothing of the relay is left to the garbage collector."""
    inspector = Holds()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.client.head(3, POST)
    ends.go()
    inspector.streams[3].send_request()
    relay, streams = ends.relay, dict(inspector.streams)
    relay.close("gone")
    relay.up.feed(b"whatever")
    assert inspector.errors == {1: "gone", 3: "gone"}
    relay.forget()
    streams[1].send_request()


def test_nothing_is_left_to_the_garbage_collector() -> None:
    """Neither streams that are over nor a relay that was forgotten are cycles."""
    inspector = Pass()
    ends = Ends(inspector)
    ends.client.head(1, POST)
    ends.go()
    stream, relay = inspector.streams[1], ends.relay
    gone = [weakref.ref(one) for one in (relay, relay.up, relay.down, stream, stream.up, stream.down)]
    relay.close("gone")
    relay.forget()
    inspector.streams.clear()
    gc.disable()
    try:
        del ends, relay, stream
        assert [one() for one in gone] == [None] * 6
    finally:
        gc.enable()
