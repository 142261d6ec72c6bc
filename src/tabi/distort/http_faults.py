"""Faults of HTTP that is looked into: a status in the destination's place, answers that are late or cut short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple, Self

from tabi.distort.draws import Drawn, Entry
from tabi.distort.local_files import reason_of
from tabi.intercept.flow import Answer, Truncate, Truncated
from tabi.intercept.headers import Headers


class HttpFaults(NamedTuple):
    """What the faults of one flow do to it.

    Attributes:
        status: that it is answered with; None: the destination answers.
        late: the entries by which its answer is late.
        part: how much of its content passes; None: all.
    """

    status: int | None = None
    late: tuple[Entry, ...] = ()
    part: Truncate | None = None

    async def wait(self) -> None:
        """Wait as long as the answer is late. An entry that is taken away or changed is not waited for any more."""
        loop = asyncio.get_running_loop()
        for entry in self.late:
            if entry.fault.answer_delay and entry.acts(loop.time()):
                await entry.rest(entry.fault.answer_delay)

    def answer(self) -> Answer:
        """The answer in the destination's place."""
        assert self.status is not None
        text = b"%d %b\n" % (self.status, reason_of(self.status))
        return Answer(self.status, Headers([("Content-Type", "text/plain")]), text)


NO_FAULTS = HttpFaults()


def faults_of(chosen: Iterable[Drawn], now: float) -> HttpFaults:
    """The faults of the entries that act at a time of the loop: delays add up, of all else the last one counts."""
    status, part, late = None, None, []
    for drawn in chosen:
        entry, fault = drawn.entry, drawn.entry.fault
        if not fault.on_http or not entry.acts(now):
            continue
        status = status if fault.status is None else fault.status
        if fault.answer_delay:
            late.append(entry)
        if fault.truncate is not None:
            part = Truncate(fault.truncate, f"{entry.distort.label}: cut short behind {fault.truncate} octets")
    return HttpFaults(status, tuple(late), part)


class Part:
    """The beginning of content, in pieces. Raises Truncated where there is more.

    Args:
        content: all of it.
        part: how much passes.
    """

    def __init__(self, content: AsyncIterator[bytes], part: Truncate) -> None:
        self.content = content
        self.left = part.octets
        self.why = part.why
        self.more = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = b"" if self.more else await anext(self.content)
        self.more = self.more or len(piece) > self.left
        piece = piece[: self.left]
        self.left -= len(piece)
        if self.more and not piece:
            raise Truncated(self.why)
        return piece
