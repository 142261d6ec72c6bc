"""A queue that is fair between clients: those whose jobs have failed lately do not hold up the others.

Clients without a failure are first; of the others the one whose last failure is the longest ago, so that they have
their turns. Where that decides nothing, and among the jobs of one client, the newest is first: under overload it is the
one whose sender still waits for the answer.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

J = TypeVar("J", bound=Hashable)

FAILED_SECONDS = 60.0
"""Seconds for which a failure counts."""

FAILED_LIMIT = 10_000
"""Clients that have failed and are known; beyond that the failures that are the longest ago are forgotten."""


class FairQueue(Generic[J]):
    """Jobs that wait. Several clients may wait for the same job: it is done at the first one's turn, for all.

    Args:
        most: jobs of one client that may wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.lines: dict[Hashable, dict[J, None]] = {}
        """The jobs of each client that waits, in the order in which they came."""
        self.counts: dict[J, dict[Hashable, int]] = {}
        """How often each client waits for a job."""
        self.failures: dict[Hashable, float] = {}
        """When clients have failed last, the longest ago first."""

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, client: Hashable, job: J) -> J | None:
        """Have a client wait for a job. Returns the job that it waits for no more, its oldest, if there are too many,
        else None."""
        line = self.lines.setdefault(client, {})
        line.pop(job, None)
        line[job] = None
        counts = self.counts.setdefault(job, {})
        counts[client] = counts.get(client, 0) + 1
        if len(line) <= self.most:
            return None
        oldest = next(iter(line))
        self.counts[oldest][client] = 1
        self.remove(client, oldest)
        return oldest

    def remove(self, client: Hashable, job: J) -> None:
        """A client that waits for a job has been added once less."""
        counts = self.counts[job]
        counts[client] -= 1
        if not counts[client]:
            del counts[client]
            self.leave(client, job)
            if not counts:
                del self.counts[job]

    def take(self, now: float, without_failure: bool = False) -> tuple[Hashable, J] | None:
        """Take the job that is next, and the client whose turn it is; None if there is none.

        Args:
            now: in seconds.
            without_failure: take none of a client that has failed lately.
        """
        if not self.lines:
            return None
        self.forget_failures(now)
        failures = self.failures
        client = min(reversed(self.lines), key=lambda client: failures.get(client, float("-inf")))
        if without_failure and client in failures:
            return None
        job = next(reversed(self.lines[client]))
        for other in self.counts.pop(job):
            self.leave(other, job)
        return client, job

    def fail(self, client: Hashable, now: float) -> None:
        """Note that a job of a client has failed."""
        self.failures.pop(client, None)
        self.failures[client] = now
        self.forget_failures(now)

    def forget_failures(self, now: float) -> None:
        """Forget the failures that count no more."""
        failures = self.failures
        while failures:
            client = next(iter(failures))
            if len(failures) <= FAILED_LIMIT and now - failures[client] < FAILED_SECONDS:
                break
            del failures[client]

    def leave(self, client: Hashable, job: J) -> None:
        """Take a job out of a client's line."""
        line = self.lines[client]
        del line[job]
        if not line:
            del self.lines[client]
