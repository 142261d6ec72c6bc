"""Questions to all workers: the supervisor passes them on, and each answer back to who has asked, as it comes.

It does not read the answers: they are files in memory, which may be large. Who asks gets ``{"id": N, "part": PID}``
with such a file for each worker, then ``{"id": N, "silent": [PID, ...]}``, with those that have not answered in time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabi.server.channel import Channel
from tabi.server.child import Place

PATIENCE = 2.0
"""Seconds that a worker may take for an answer."""


class Question:
    """What is asked, until all have answered or the time is over."""

    def __init__(self, number: int, asker: Channel, deadline: float) -> None:
        self.number = number
        self.asker = asker
        self.deadline = deadline
        self.waiting: dict[Place, int] = {}
        """Those who have not answered yet, with their pids."""
        self.silent: list[int] = []


class Questions:
    """All questions that are under way.

    Args:
        workers: the places of all of them.
        clock: seconds that nobody sets.
    """

    def __init__(self, workers: Sequence[Place], clock: Callable[[], float] = time.monotonic) -> None:
        self.workers = workers
        self.clock = clock
        self.ids = itertools.count(1)
        self.all: dict[int, Question] = {}

    def ask(self, about: str, request: Mapping[str, Any], number: int, asker: Channel) -> None:
        """Ask all workers; ``number`` is what ``asker`` calls the question. Raises ValueError if it is too large."""
        mine = next(self.ids)
        question = Question(number, asker, self.clock() + PATIENCE)
        message = {"ask": {**request, "about": about, "id": mine}}
        for place in self.workers:
            if place.channel is None or place.pid is None:
                continue
            if place.channel.send(message):
                question.waiting[place] = place.pid
            else:
                question.silent.append(place.pid)
        self.all[mine] = question
        self.finish(mine)

    def told(self, place: Place, number: int, files: Sequence[int]) -> None:
        """Pass the answer of a worker on."""
        question = self.all.get(number)
        if question is None or place not in question.waiting:
            return
        pid = question.waiting.pop(place)
        if not question.asker.send({"id": question.number, "part": pid}, files):
            question.silent.append(pid)
        self.finish(number)

    def left(self, place: Place) -> None:
        """A worker has ended: its answer is not awaited any more."""
        for number, question in tuple(self.all.items()):
            if place in question.waiting:
                question.silent.append(question.waiting.pop(place))
                self.finish(number)

    def finish(self, number: int) -> None:
        """End a question, if nobody is waited for."""
        question = self.all[number]
        if not question.waiting:
            del self.all[number]
            question.asker.send({"id": question.number, "silent": question.silent})

    def due(self, now: float) -> float | None:
        """Seconds until the time of a question is over; None if there is none."""
        return min((question.deadline for question in self.all.values()), default=now) - now if self.all else None

    def keep_time(self) -> None:
        """Wait no longer for who has not answered in time."""
        now = self.clock()
        for number, question in tuple(self.all.items()):
            if question.deadline <= now:
                question.silent += question.waiting.values()
                question.waiting.clear()
                self.finish(number)
