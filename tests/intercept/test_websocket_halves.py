"""One direction of a WebSocket: what passes octet for octet, what hooks change of it, and what is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from doubles import until
from tabi.intercept.events import WebSocketMessage
from tabi.intercept.flow import Flow
from tabi.intercept.websocket_halves import BEHIND, MESSAGE_LIMIT, UNREAD, UNRECORDED, UNSEEN
from tabi.wire.websocket import encode_head
from websocket_frames import Ends, Heard, Sender, deflate, read

DEFLATE = "permessage-deflate"
NO_TAKEOVER = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"

MESSAGES = st.lists(st.tuples(st.binary(max_size=200), st.integers(1, 3), st.sampled_from([1, 2])), max_size=5)
CUTS = st.lists(st.integers(0, 2000), max_size=6)


def stream(sender: Sender, messages: list[tuple[bytes, int, int]]) -> bytes:
    """Messages, with a ping within each that has several frames and a close frame behind all."""
    octets = b""
    for content, parts, opcode in messages:
        octets += sender.message(content, parts, opcode)
        octets += sender.frame(9, b"ping")
    return octets + sender.frame(8, b"\x03\xe8")


@given(MESSAGES, CUTS, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_octets_pass_as_they_are_however_they_are_cut(
    messages: list[tuple[bytes, int, int]], cuts: list[int], up: bool, compressed: bool, hooked: bool, late: bool
) -> None:
    """With hooks that change nothing and with records alone; both get the same messages."""
    sender = Sender(up, deflate() if compressed else None)
    octets = stream(sender, messages) + b"what is no frame any more"
    heard = Heard()
    ends = Ends([heard] if hooked else [], DEFLATE if compressed else None, late)
    half, port = (ends.socket.up, ends.up) if up else (ends.socket.down, ends.down)
    ends.feed(half, octets, cuts)
    half.end()
    assert port.octets == octets
    assert port.ended
    assert ends.recorded == [("send" if up else "receive", opcode, content) for content, _, opcode in messages]
    if hooked:
        direction = "up" if up else "down"
        assert heard.messages == [(direction, opcode == 1, content) for content, _, opcode in messages]
    assert ends.flow.tags == set()


def change(message: WebSocketMessage) -> None:
    """Change some messages, drop others, leave the rest."""
    if message.content.startswith(b"change"):
        message.content += b", changed"
    elif message.content.startswith(b"drop"):
        message.drop()
    elif message.content.startswith(b"binary"):
        message.is_text = False


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("extensions", [None, DEFLATE, NO_TAKEOVER])
def test_what_a_hook_changes(up: bool, extensions: str | None) -> None:
    """The receiver gets that, in one frame, masked where it is the server; and can read all that follows, which refers
    to messages that it has not got as they were."""
    takeover = extensions != NO_TAKEOVER
    sender = Sender(up, deflate(takeover) if extensions else None)
    ends = Ends([Heard(change)], extensions)
    half, port = (ends.socket.up, ends.up) if up else (ends.socket.down, ends.down)
    words = b" the same words again and again" * 3
    sent = [
        b"first" + words,
        b"change" + words,
        b"second" + words,
        b"drop" + words,
        b"third" + words,
        b"binary" + words,
    ]
    octets = b"".join(sender.message(content, 2) for content in (*sent, b""))
    ends.feed(half, octets)
    expected = [
        (1, sent[0]),
        (1, sent[1] + b", changed"),
        (1, sent[2]),
        (1, sent[4]),
        (2, sent[5]),
        (1, b""),
    ]
    assert read(port.octets, up, deflate(takeover) if extensions else None) == expected
    assert [(opcode, data) for _, opcode, data in ends.recorded] == expected
    if extensions:
        assert len(port.octets) < sum(len(content) for _, content in expected)  # it is compressed again


@pytest.mark.parametrize("takeover", [True, False])
def test_what_is_left_alone_behind_a_change(takeover: bool) -> None:
    """It goes on in its own frames where it refers to nothing, compressed or not; else in ours."""
    sender = Sender(False, deflate(takeover))
    plain = Sender(False)
    ends = Ends([Heard(change)], DEFLATE if takeover else NO_TAKEOVER)
    half, port = ends.socket.down, ends.down
    ends.feed(half, sender.message(b"change this"))
    at = len(port.octets)
    ends.feed(half, plain.message(b"plain", 3))
    assert port.octets[at:] == plain.message(b"plain", 3)
    at = len(port.octets)
    octets = sender.message(b"left alone: this", 2)
    at = len(port.octets)
    ends.feed(half, octets)
    assert (port.octets[at:] == octets) is not takeover


def test_a_change_of_what_came_uncompressed_is_sent_uncompressed() -> None:
    """And what follows compressed is still as its sender has sent it."""
    sender, plain = Sender(True, deflate()), Sender(True)
    ends = Ends([Heard(change)], DEFLATE)
    ends.feed(ends.socket.up, sender.message(b"words"))
    ends.feed(ends.socket.up, plain.message(b"change"))
    at = len(ends.up.octets)
    octets = sender.message(b"words")
    ends.feed(ends.socket.up, octets)
    assert ends.up.octets[at:] == octets
    assert read(ends.up.octets, True, deflate()) == [(1, b"words"), (1, b"change, changed"), (1, b"words")]


def test_a_window_that_zlib_does_not_have() -> None:
    """Then what was changed goes on uncompressed, as does all that comes compressed behind it."""
    sender = Sender(True, deflate(bits=9))
    ends = Ends([Heard(change)], "permessage-deflate; client_max_window_bits=8")
    ends.feed(ends.socket.up, sender.message(b"change") + sender.message(b"change") + sender.message(b"left"))
    assert read(ends.up.octets, True) == [(1, b"change, changed"), (1, b"change, changed"), (1, b"left")]


@pytest.mark.parametrize("up", [True, False])
def test_control_frames_overtake_a_message_that_is_not_whole(up: bool) -> None:
    """They are whole when they go on."""
    sender = Sender(up)
    ends = Ends([Heard()])
    half, port = (ends.socket.up, ends.up) if up else (ends.socket.down, ends.down)
    begin, ping, rest = sender.frame(1, b"a", False), sender.frame(9, b"ping"), sender.frame(0, b"b")
    half.feed(begin + ping[:3])
    assert port.octets == b""
    assert half.held == len(begin) + 3
    half.feed(ping[3:])
    assert port.octets == ping
    half.feed(rest)
    assert port.octets == ping + begin + rest
    assert half.held == 0


@pytest.mark.parametrize("closes", [False, True])
def test_a_message_that_never_gets_whole_does_not_go_on(closes: bool) -> None:
    """No hook has seen it; the end goes on all the same."""
    ends = Ends([Heard()])
    last = Sender(True).frame(8, b"\x03\xe8") if closes else b""
    ends.feed(ends.socket.up, Sender(True).frame(1, b"a", False) + last)
    ends.socket.up.end()
    assert ends.up.octets == last
    assert ends.up.ended


class Slow:
    """Hooks that wait until they are told to go on."""

    def __init__(self, act: Callable[[WebSocketMessage], object] = repr) -> None:
        self.gate = asyncio.Event()
        self.act = act

    async def websocket_message(self, flow: Flow, message: WebSocketMessage) -> None:
        await self.gate.wait()
        self.act(message)


def test_only_its_own_direction_waits_for_a_hook(run: Run) -> None:
    """Messages, control frames and the end behind it wait in their order."""

    async def main() -> None:
        class OneWay(Slow):
            async def websocket_message(self, flow: Flow, message: WebSocketMessage) -> None:
                if message.direction == "up":
                    await super().websocket_message(flow, message)

        slow = OneWay(change)
        ends = Ends([slow])
        up, down = Sender(True), Sender(False)
        octets = up.message(b"change") + up.frame(9, b"") + up.message(b"second")
        ends.socket.up.feed(octets[:-3])
        assert not ends.socket.up.ready
        ends.socket.up.feed(octets[-3:])
        ends.socket.up.end()
        ends.socket.down.feed(down.message(b"other"))
        await until(lambda: ends.down.octets)
        assert ends.down.octets == down.message(b"other")
        assert ends.socket.up.held
        assert ends.up.octets == b""
        slow.gate.set()
        await until(lambda: ends.up.ended)
        assert read(ends.up.octets, True) == [(1, b"change, changed"), (9, b""), (1, b"second")]
        assert ends.socket.up.held == 0

    run(main)


def test_a_hook_that_waits_ends_with_the_connection(run: Run) -> None:
    """Its task is cancelled, and nothing goes on."""

    async def main() -> None:
        ends = Ends([Slow()])
        half = ends.socket.up
        half.feed(Sender(True).message(b"a"))
        await asyncio.sleep(0)
        before = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(before) == 1
        ends.socket.close()
        await asyncio.gather(*before, return_exceptions=True)
        assert ends.up.octets == b""
        half.feed(b"more")
        assert half.held == 0

    run(main)


def fail(message: WebSocketMessage) -> None:
    """Raise, having changed something."""
    message.text = "changed"
    raise RuntimeError


def not_octets(message: WebSocketMessage) -> None:
    """Set something that cannot be sent."""
    message.content = "text"  # type: ignore[assignment]


@pytest.mark.parametrize("act", [fail, not_octets])
@pytest.mark.parametrize("waits", [False, True])
def test_a_hook_that_fails(run: Run, act: Callable[[WebSocketMessage], object], waits: bool) -> None:
    """The message goes on untouched; with ``on_error = "close"`` the connection ends, at both sides, with 1011."""

    async def main() -> None:
        octets = Sender(True).message(b"a")
        for close in (False, True):
            hook: object = Heard(act)
            if waits:
                hook = slow = Slow(act)
                slow.gate.set()
            ends = Ends([hook], close_on_error=close)
            ends.socket.up.feed(octets)
            await until(lambda: ends.up.octets)  # noqa: B023  it is waited for here
            if not close:
                assert ends.up.octets == octets
                continue
            assert read(ends.up.octets, True) == read(ends.down.octets, False) == [(8, b"\x03\xf3")]
            assert ends.flow.error == ends.down.why
            assert str(ends.down.why).startswith("hook ")

    run(main)


BROKEN = [
    (b"\x83\x00", "a WebSocket frame with the unknown opcode 3"),
    (b"\x89\x7e\x00\x7e", "a WebSocket control frame that is too long, a part, or has reserved bits"),
    (b"\xc1\x01a", "a WebSocket frame with reserved bits that were not agreed on"),
    (b"\x80\x00", "a WebSocket frame that goes on with no message"),
]


@pytest.mark.parametrize(("octets", "error"), BROKEN)
def test_what_is_no_frame_ends_the_connection_of_hooks(octets: bytes, error: str) -> None:
    """At both sides with 1002, behind the messages before it."""
    ends = Ends([Heard()])
    good = Sender(False).message(b"good")
    ends.feed(ends.socket.down, good + octets + good)
    assert ends.down.octets == good + b"\x88\x02\x03\xea"
    assert read(ends.up.octets, True) == [(8, b"\x03\xea")]
    assert ends.flow.error == ends.down.why == error
    ends.feed(ends.socket.down, good)
    ends.feed(ends.socket.up, Sender(True).message(b"more"))
    assert ends.down.octets == good + b"\x88\x02\x03\xea"


@pytest.mark.parametrize(("octets", "error"), BROKEN)
def test_what_is_no_frame_passes_beside_a_record(octets: bytes, error: str) -> None:
    """The record of that direction has what was before it, that of the other goes on."""
    ends = Ends()
    good = Sender(False).message(b"good")
    ends.feed(ends.socket.down, good + octets + good)
    ends.feed(ends.socket.down, good)
    ends.feed(ends.socket.up, Sender(True).message(b"other"))
    assert ends.down.octets == good + octets + good + good
    assert ends.recorded == [("receive", 1, b"good"), ("send", 1, b"other")]
    assert ends.flow.tags == {UNREAD}
    assert ends.flow.error is None


def test_broken_compression() -> None:
    """As any other broken frame."""
    octets = b"\xc1\x03\xff\xff\xff"
    ends = Ends(extensions=DEFLATE)
    ends.feed(ends.socket.down, octets)
    assert (ends.down.octets, ends.flow.tags) == (octets, {UNREAD})
    ends = Ends([Heard()], DEFLATE)
    ends.feed(ends.socket.down, octets)
    assert ends.down.why == "a WebSocket message that cannot be decompressed"


@pytest.mark.parametrize("parts", [1, 3])
def test_a_message_that_is_too_long_passes_unseen(parts: int) -> None:
    """In its own frames, as it comes; those behind it are seen again."""
    heard = Heard()
    ends = Ends([heard])
    sender = Sender(True)
    long = sender.message(bytes(MESSAGE_LIMIT + 1), parts)
    half = ends.socket.up
    for at in range(0, len(long), 50_000):
        half.feed(long[at : at + 50_000])
        assert half.held <= MESSAGE_LIMIT + 100
    assert ends.up.octets == long
    half.feed(sender.message(b"next"))
    assert heard.messages == [("up", True, b"next")]
    assert ends.flow.tags == {UNSEEN}


def test_how_long_a_message_may_be() -> None:
    """1 MiB, or ``body_limit`` if that is more."""
    for limit in (10, 2 * MESSAGE_LIMIT):
        heard = Heard()
        ends = Ends([heard], body_limit=limit)
        most = max(limit, MESSAGE_LIMIT)
        for size in (most, most + 1):
            ends.feed(ends.socket.up, Sender(True).message(bytes(size)))
        assert [len(content) for _, _, content in heard.messages] == [most]


def test_many_frames_of_one_message_are_too_long() -> None:
    """Their heads need memory as well."""
    heard = Heard()
    ends = Ends([heard])
    sender = Sender(False)
    part = sender.frame(0, b"", False) * 10_000
    ends.feed(ends.socket.down, sender.frame(1, b"", False))
    while UNSEEN not in ends.flow.tags:
        ends.feed(ends.socket.down, part)
        assert ends.socket.down.held <= 3 * MESSAGE_LIMIT + len(part)
    ends.feed(ends.socket.down, sender.frame(0, b"") + sender.message(b"next"))
    assert heard.messages == [("down", True, b"next")]


@pytest.mark.parametrize("takeover", [True, False])
def test_behind_a_bomb(takeover: bool) -> None:
    """What refers to it passes unseen too; what refers to nothing is seen."""
    heard = Heard()
    ends = Ends([heard], DEFLATE if takeover else NO_TAKEOVER)
    sender, plain = Sender(True, deflate(takeover)), Sender(True)
    octets = [
        sender.message(bytes(20 * MESSAGE_LIMIT), 2),
        sender.message(b"compressed"),
        plain.message(b"plain"),
        sender.message(b"again"),
    ]
    ends.feed(ends.socket.up, b"".join(octets))
    assert ends.up.octets == b"".join(octets)
    seen = [content for _, _, content in heard.messages]
    assert seen == ([b"plain"] if takeover else [b"compressed", b"plain", b"again"])
    assert ends.flow.tags == {UNSEEN}


def test_a_message_that_gets_too_long_with_its_last_octets() -> None:
    """Of a compressed one these are not sent: here they are the end of a block that is not compressed."""
    heard = Heard()
    ends = Ends([heard], NO_TAKEOVER)
    payload, left = b"", MESSAGE_LIMIT + 1
    while left:
        size = min(left, 65535)
        left -= size
        payload += b"\0" + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + bytes(size)
    payload = payload[:-4]
    octets = encode_head(0xC1, len(payload)) + payload
    next_one = Sender(False).message(b"next")
    ends.feed(ends.socket.down, octets + next_one)
    assert ends.down.octets == octets + next_one
    assert heard.messages == [("down", True, b"next")]
    assert ends.flow.tags == {UNSEEN}


@pytest.mark.parametrize("changed", [False, True])
def test_a_message_that_may_not_pass_unseen(changed: bool) -> None:
    """With ``on_error = "close"``, and where its receiver could not read it: both sides get 1009."""
    ends = Ends([Heard(change)], DEFLATE, close_on_error=not changed)
    sender = Sender(True, deflate())
    ends.feed(ends.socket.up, sender.message(b"change" if changed else b"left"))
    at = len(ends.up.octets)
    ends.feed(ends.socket.up, sender.message(bytes(MESSAGE_LIMIT + 1)))
    assert read(ends.up.octets[at:], True) == read(ends.down.octets, False) == [(8, b"\x03\xf1")]
    assert ends.down.why == f"a WebSocket message of more than {MESSAGE_LIMIT} octets"


def test_nothing_is_said_in_the_middle_of_a_frame() -> None:
    """Nor behind a close frame: the connection just ends."""
    ends = Ends([Heard()])
    long = Sender(True).message(bytes(2 * MESSAGE_LIMIT))
    ends.feed(ends.socket.up, long[:-10])
    ends.feed(ends.socket.down, b"\x83\x00")
    assert ends.up.octets == long[:-10]
    assert ends.down.octets == b"\x88\x02\x03\xea"
    ends = Ends([Heard()])
    close = Sender(True).frame(8, b"")
    ends.feed(ends.socket.up, close)
    ends.feed(ends.socket.down, b"\x83\x00")
    assert ends.up.octets == close


@pytest.mark.parametrize("hooked", [True, False])
def test_many_small_messages_take_many_turns(hooked: bool) -> None:
    """One in each that is late; nothing more is read meanwhile, and the end waits."""
    ends = Ends([Heard()] if hooked else [], late=True)
    octets = Sender(True).message(b"") * 5
    half, port = ends.socket.up, ends.up
    half.feed(octets)
    half.end()
    for left in (4, 3, 2, 1, 0):
        assert not half.ready
        assert not port.ended
        assert len(ends.recorded) == 5 - left
        port.turn()
    assert half.ready
    assert port.ended
    assert port.octets == octets


def test_what_nothing_makes_wait_is_not_looked_at_for_ever() -> None:
    """Where more comes than there is time for, the record of that direction ends."""
    ends = Ends(late=True)
    octets = Sender(True).message(bytes(1000)) * 100
    half = ends.socket.up
    while not ends.flow.tags:
        half.feed(octets)
        assert len(half.buffer) <= BEHIND
    assert ends.flow.tags == {UNRECORDED}
    assert len(half.buffer) == 0
    half.feed(octets)
    ends.up.turn()
    half.feed(octets)
    assert len(ends.recorded) == 1
    assert half.ready


def test_messages_of_one_read_go_on_at_once() -> None:
    """In one piece, not in one for each."""
    ends = Ends([Heard()])
    ends.socket.up.feed(Sender(True).message(b"a") * 10)
    assert ends.up.emits == 1


def test_masks_are_not_judged() -> None:
    """Whoever the frames are for has its say; ours are as they must be."""
    ends = Ends([Heard(change)])
    ends.feed(ends.socket.up, Sender(False).message(b"change"))
    ends.feed(ends.socket.down, Sender(True).message(b"change"))
    assert read(ends.up.octets, True) == read(ends.down.octets, False) == [(1, b"change, changed")]


def test_a_port_of_what_is_over_does_nothing() -> None:
    """Whoever still has it may call it."""
    for hooks in ([], [Heard()]):
        ends = Ends(hooks)
        half = ends.socket.up
        ends.socket.close()
        ends.socket.close()
        ends.socket.fail(1002, "nothing happens any more")
        half.feed(Sender(True).message(b"a"))
        half.end()
        half.port.run(lambda: 1 / 0)
        half.put_off()
        half.port.cut("nothing happens any more")
        assert (ends.up.octets, ends.up.ended, ends.flow.error) == (b"", False, None)
