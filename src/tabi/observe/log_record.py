"""What a line of the access log says of a session, whatever its format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tabi.session import Close, Drop, Session

Format = Callable[["Record"], bytes]
"""Makes a line of a record, with its end."""


class Record(msgspec.Struct, gc=False):  # there are no circles of them to look for
    """One line, in the order of its keys."""

    time: str
    id: str
    listener: str
    protocol: str | None
    command: str | None
    client: str
    user: str | None
    host: str | None
    port: int | None
    address: str | None
    rule: str | None
    via: str | None
    member: str | None
    reply: int | None
    error: str | None
    up: int
    down: int
    seconds: float
    connect_ms: float | None
    close: Close | None
    session_token: str | UnsetType = UNSET


class AssociationRecord(Record, kw_only=True):
    """The line of an association: the keys of all lines, then its own."""

    datagrams_up: int
    datagrams_down: int
    drops: dict[Drop, int]


class SniffedRecord(Record):
    """The line of a session that was sniffed, or looked into: the keys of all lines, then its own, where they mean
    something."""

    sniffed: str | UnsetType = UNSET
    sni: str | UnsetType | None = UNSET
    alpn: tuple[str, ...] | UnsetType = UNSET
    ja3: str | UnsetType = UNSET
    ja4: str | UnsetType = UNSET
    intercepted: str | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET


FAULTY: dict[type[Record], Any] = {
    kind: msgspec.defstruct(f"Faulty{kind.__name__}", [("faults", tuple[str, ...])], bases=(kind,), kw_only=True)
    for kind in (Record, AssociationRecord, SniffedRecord)
}
"""Of each kind the line of a session that was drawn for ``[[distort]]`` entries: with their names."""


class Clock:
    """The time of day as RFC 3339 in UTC with milliseconds; one text serves all calls within its millisecond."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.second = -1
        self.until_second = ""
        self.millisecond = -1
        self.text = ""

    def __call__(self) -> str:
        millisecond = int(self.now() * 1000)
        if millisecond != self.millisecond:
            self.millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self.second:
                self.second = second
                self.until_second = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self.text = f"{self.until_second}{rest:03}Z"
        return self.text


def make_record(session: Session, when: str, prefix: str, now: float) -> Record:
    """What there is to say of a session. ``now`` is of the clock of ``session.started``, in seconds."""
    address, connect, parameters = session.address, session.connect_seconds, session.parameters
    host, port = session.destination or (None, None)
    record = Record(
        when,
        f"{prefix}{session.number:x}",
        session.listener,
        session.protocol,
        session.command,
        str(session.client),
        session.user,
        host if host is None or type(host) is str else str(host),
        port,
        None if address is None else str(address),
        session.rule,
        session.via,
        session.member,
        session.reply_code,
        session.error,
        session.up,
        session.down,
        int((now - session.started) * 1000) / 1000,
        None if connect is None else int(connect * 1e6) / 1000,
        session.close,
    )
    if parameters is not None and parameters.session is not None:
        record.session_token = parameters.session
    if session.drops is not None:
        record = AssociationRecord(
            **msgspec.structs.asdict(record),
            datagrams_up=session.datagrams_up,
            datagrams_down=session.datagrams_down,
            drops=session.drops,
        )
    elif session.sniffed is not None or session.intercepted is not None:
        record = looked_into(record, session)
    if session.distorted:
        labels = tuple([drawn.entry.distort.label for drawn in session.distorted])
        record = FAULTY[type(record)](**msgspec.structs.asdict(record), faults=labels)
    return record


def looked_into(record: Record, session: Session) -> SniffedRecord:
    """The line with what was found out by looking at what the session carries."""
    line = SniffedRecord(**msgspec.structs.asdict(record))
    sniffed = session.sniffed
    if sniffed is not None:
        line.sniffed = sniffed.protocol
        if sniffed.ja3 is not None and sniffed.ja4 is not None:
            line.sni, line.alpn, line.ja3, line.ja4 = sniffed.sni, sniffed.alpn, sniffed.ja3, sniffed.ja4
    if session.intercepted is not None:
        line.intercepted = session.intercepted
    if session.pinned:
        line.pinned = True
    return line


def pairs(record: Record) -> Iterator[tuple[str, str]]:
    """What is known, as texts by their keys, for formats that have nothing else: a key of its own for each reason of
    drops, and commas in lists."""
    for key in record.__struct_fields__:
        value = getattr(record, key)
        if value is None or value is UNSET:
            continue
        if isinstance(value, dict):
            for inner, count in value.items():
                yield f"{key}_{inner}", str(count)
        elif isinstance(value, tuple):
            yield key, ",".join(value)
        else:
            yield key, str(value).lower() if isinstance(value, bool) else str(value)
