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
        total: places of all clients. A client has one as often as it waits for a job.
    """

    def __init__(self, most: int, total: int) -> None:
        self.most = most
        self.total = total
        self.taken = 0
        """Places that are taken."""
        self.lines: dict[Hashable, dict[J, None]] = {}
        """The jobs of each client that waits, in the order in which they came."""
        self.counts: dict[J, dict[Hashable, int]] = {}
        """How often each client waits for a job."""
        self.failures: dict[Hashable, float] = {}
        """When clients have failed last, the longest ago first."""

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, client: Hashable, job: J) -> tuple[Hashable, J] | None:
        """Have a client wait for a job, once more if it waits for that already.

        Returns:
            The client and the job that it waits for no more, if there are too many: the oldest job of this client, or
            of the one whose turn is last.
        """
        line = self.lines.setdefault(client, {})
        line.pop(job, None)
        line[job] = None
        counts = self.counts.setdefault(job, {})
        counts[client] = counts.get(client, 0) + 1
        self.taken += 1
        if len(line) <= self.most:
            if self.taken <= self.total:
                return None
            client = max(self.lines, key=lambda one: (self.failed_at(one), len(self.lines[one])))
        oldest = next(iter(self.lines[client]))
        self.remove(client, oldest, self.counts[oldest][client])
        return client, oldest

    def remove(self, client: Hashable, job: J, times: int = 1) -> None:
        """A client that waits for a job gives up so many of its places."""
        counts = self.counts[job]
        counts[client] -= times
        self.taken -= times
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
        client = min(reversed(self.lines), key=self.failed_at)
        if without_failure and client in self.failures:
            return None
        job = next(reversed(self.lines[client]))
        for other, times in self.counts.pop(job).items():
            self.taken -= times
            self.leave(other, job)
        return client, job

    def failed_at(self, client: Hashable) -> float:
        """When a client has failed last."""
        return self.failures.get(client, float("-inf"))

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
