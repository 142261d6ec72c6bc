"""Where records go: a ring in memory, a HAR file, a line for each flow. Each worker has one, which never waits."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import msgspec

from tabi.intercept.masking import prepare
from tabi.intercept.record import Record

log = logging.getLogger("tabi")

RING = 2 << 20
"""Octets of records that a worker remembers."""

SURROGATE = re.compile("[\udc80-\udcff]")
"""An octet in a text that is not UTF-8 (PEP 383)."""

MAX_BODY = 8 << 20
"""Octets of a body, and of all messages of a WebSocket, that are recorded at most."""


class Rule(Protocol):
    """What a recorder needs of an ``[[intercept]]``: see `policy.intercepts.InterceptRule`."""

    @property
    def har(self) -> str | None: ...
    @property
    def body_limit(self) -> int: ...
    @property
    def secrets(self) -> bool: ...
    @property
    def mask(self) -> tuple[str, ...]: ...
    @property
    def print(self) -> bool: ...


class Order(msgspec.Struct, array_like=True):
    """A record and what the writer is to do with it."""

    record: Record
    har: str | None
    """The file that gets an entry."""
    print: bool
    limit: int
    """Octets of a body that are recorded, once its content coding is undone."""
    secrets: bool
    mask: tuple[str, ...]

    def prepared(self) -> Record:
        """The record as it may be shown: without secrets, unless they are wanted, and without content codings."""
        return prepare(self.record, self.limit, self.secrets, self.mask)


class Sink(Protocol):
    """Takes orders to a writer."""

    def take(self, order: Order) -> None:
        """Take one, or count it as lost if there is no room. Never waits."""

    async def aclose(self) -> None:
        """Have written what was taken, within a deadline."""


class Ring:
    """The last records, as many as fit in a number of octets."""

    def __init__(self, bound: int = RING) -> None:
        self.bound = bound
        self.size = 0
        self.orders: deque[tuple[Order, int]] = deque()

    def add(self, order: Order) -> None:
        """Remember one; old ones are forgotten. One that is too large is kept without its content."""
        weight = order.record.weight
        if weight > self.bound:
            order = without_content(order)
            weight = order.record.weight
            if weight > self.bound:
                return
        self.orders.append((order, weight))
        self.size += weight
        while self.size > self.bound:
            self.size -= self.orders.popleft()[1]

    def __iter__(self) -> Iterator[Record]:
        """The records, oldest first, as they may be shown. New ones may be added meanwhile."""
        return (order.prepared() for order, _ in list(self.orders))

    def __len__(self) -> int:
        return len(self.orders)


class Recorder:
    """Takes the records of one worker to where its rules say.

    Args:
        sink: to the writer of files and lines.
        ring: octets of records that are remembered.
    """

    def __init__(self, sink: Sink, ring: int = RING) -> None:
        self.sink = sink
        self.ring = Ring(ring)

    def record(self, record: Record, rule: Rule) -> None:
        """Take one. Never waits and never raises; what it holds must not be changed any more."""
        record = encodable(record)
        if len(record.request_body) > MAX_BODY or len(record.response_body) > MAX_BODY or record.messages:
            record = bounded(record)
        order = Order(record, rule.har, rule.print, int(rule.body_limit), rule.secrets, rule.mask)
        self.ring.add(order)
        if rule.har is not None:
            self.sink.take(order)
        elif rule.print:
            self.sink.take(without_content(order))

    async def aclose(self) -> None:
        """Have written what was recorded, within a deadline."""
        await self.sink.aclose()


TEXTS = ("method", "url", "reason", "user", "error", "client", "listener", "rule", "via", "sni")


def encodable(record: Record) -> Record:
    """The record with texts that can be encoded: octets that are no UTF-8, which are lone surrogates in texts, become
    ``%FF`` in a URL and ``\\udcff`` elsewhere."""
    changed = {}
    for name in TEXTS:
        text = getattr(record, name)
        if text is not None and not text.isascii():
            if name == "url":
                text = SURROGATE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)
            changed[name] = text.encode("utf-8", "backslashreplace").decode()
    if not all(tag.isascii() for tag in record.tags):
        changed["tags"] = [tag.encode("utf-8", "backslashreplace").decode() for tag in record.tags]
    return msgspec.structs.replace(record, **changed) if changed else record


def bounded(record: Record) -> Record:
    """The record with at most `MAX_BODY` octets of each body, and of its messages together."""
    left, messages = MAX_BODY, []
    for message in record.messages:
        left -= len(message.data) + 100
        if left < 0:
            break
        messages.append(message)
    return msgspec.structs.replace(
        record,
        request_body=record.request_body[:MAX_BODY],
        response_body=record.response_body[:MAX_BODY],
        messages=messages,
        truncated=record.truncated or len(messages) < len(record.messages),
        request_truncated=record.request_truncated or len(record.request_body) > MAX_BODY,
    )


def without_content(order: Order) -> Order:
    """The order with a record that has no bodies and no messages."""
    record = order.record
    if not (record.request_body or record.response_body or record.messages):
        return order
    bare = msgspec.structs.replace(
        record,
        request_body=b"",
        response_body=b"",
        messages=[],
        truncated=True,
        request_truncated=bool(record.request_body),
    )
    return msgspec.structs.replace(order, record=bare)
