"""The recorder: orders for the writer, and a ring that remembers the last records within its bound."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from flows import Rule, make_record
from tabi.intercept.record import WebSocketMessage
from tabi.intercept.recorder import MAX_BODY, Order, Recorder, Ring, without_content


class Orders:
    """A sink that keeps them."""

    def __init__(self) -> None:
        self.taken: list[Order] = []
        self.closed = False

    def take(self, order: Order) -> None:
        """See `Sink`."""
        self.taken.append(order)

    async def aclose(self) -> None:
        """See `Sink`."""
        self.closed = True


def order(body: bytes, **more: Any) -> Order:
    """An order without anything to do."""
    return Order(make_record(body=body, **more), None, False, 1_000_000, False, ())


def test_a_record_goes_where_its_rule_says() -> None:
    """To a file with its content, to the terminal without it, and to neither."""
    sink = Orders()
    recorder = Recorder(sink)
    for rule in (Rule(), Rule(har="a.har", mask=("x",), body_limit=3), Rule(print=True), Rule(har="b.har", print=True)):
        recorder.record(make_record(), rule)
    assert [(one.har, one.print, one.record.response_body) for one in sink.taken] == [
        ("a.har", False, b"hello"),
        (None, True, b""),
        ("b.har", True, b"hello"),
    ]
    assert sink.taken[0].mask == ("x",)
    assert sink.taken[0].prepared().response_body == b"hel"
    assert len(recorder.ring) == 4


def test_an_order_outlives_the_way_to_another_process() -> None:
    """Octets, None and nested messages come out as they went in."""
    sent = order(b"\0\xff", messages=[WebSocketMessage("send", 1.5, 2, b"\xfe")])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Order) == sent


def test_the_ring_forgets_the_oldest() -> None:
    """Its bound is in octets, whatever the records hold."""
    ring = Ring(50_000)
    for number in range(100):
        ring.add(order(bytes(5_000), id=str(number)))
        assert ring.size <= ring.bound
    kept = [record.id for record in ring]
    assert 5 < len(kept) < 10
    assert kept[-1] == "99"
    assert kept == [str(number) for number in range(100 - len(kept), 100)]


def test_the_ring_keeps_a_large_flow_without_its_content() -> None:
    """It does not push out all others; one whose head alone is too large is not kept."""
    ring = Ring(50_000)
    ring.add(order(b"small", id="1"))
    ring.add(order(bytes(100_000), id="2"))
    ring.add(order(b"", url="x" * 100_000))
    first, second = ring
    assert (first.id, first.response_body) == ("1", b"small")
    assert (second.id, second.response_body, second.response_size, second.truncated) == ("2", b"", 100_000, True)


def test_the_ring_shows_no_secrets() -> None:
    """Unless the rule wants them."""
    for secrets, shown in ((False, b"Bearer ***"), (True, b"Bearer abc")):
        recorder = Recorder(Orders())
        recorder.record(make_record(request_fields=[(b"Authorization", b"Bearer abc")]), Rule(secrets=secrets))
        (record,) = recorder.ring
        assert record.request_fields == [(b"Authorization", shown)]


def test_what_is_recorded_of_a_flow_is_bounded() -> None:
    """Each body, and all messages together."""
    sink = Orders()
    messages = [WebSocketMessage("send", 1.0, 2, bytes(MAX_BODY // 4))] * 6
    body = bytes(MAX_BODY + 1)
    Recorder(sink).record(make_record(body=body, request_body=body, messages=messages), Rule(har="a.har"))
    record = sink.taken[0].record
    assert len(record.request_body) == len(record.response_body) == MAX_BODY
    assert len(record.messages) == 3
    assert record.truncated


def test_texts_that_are_not_text_can_be_written() -> None:
    """Octets of a URL that are no UTF-8, a user name that is none, a tag of a hook."""
    sink = Orders()
    record = make_record("https://h/\udcff\xe9", user="\udcff", error="\ud800", tags=["\udcff", "a"])
    Recorder(sink).record(record, Rule(har="a.har"))
    found = sink.taken[0].record
    assert (found.url, found.user, found.error) == ("https://h/%FF\xe9", "\\udcff", "\\ud800")
    assert found.tags == ["\\udcff", "a"]
    assert msgspec.msgpack.encode(sink.taken[0])


def test_what_has_no_content_stays_as_it_is() -> None:
    """It is not marked as cut."""
    bare = order(b"")
    assert without_content(bare) is bare


def test_the_end_waits_for_the_sink() -> None:
    """So that nothing that was recorded is lost."""
    sink = Orders()
    asyncio.run(Recorder(sink).aclose())
    assert sink.closed
