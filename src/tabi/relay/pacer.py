"""The pacer: the flows that wait for room in a bucket, and the order in which they go on.

A flow that finds a bucket empty waits in a queue of the bucket's account, one for each direction. Several times a
second every queue is served from its front with what has flowed into the bucket meanwhile. A flow that took little goes
first, so that a keystroke does not wait behind fifty downloads; a flow that took a quantum goes to the end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from tabi.errors import LimitExceeded
from tabi.policy.limits import QUANTUM, Account, Lease

TICK = 0.05
"""Seconds until the next round while a flow waits that has taken little."""

LONG_TICK = 0.2
"""Seconds until the next round if all have taken much: a round wakes the process with cold caches, which costs as much
CPU as to carry 1 MB, and long transfers can wait."""


class Allowance(Protocol):
    """What may move, in both directions: `policy.limits.Lease`, or that of another store.

    ``short`` is the account that let nothing through last, ``crowded`` whether others wait for one of its accounts.
    """

    short: Account | None

    @property
    def crowded(self) -> bool: ...

    def spend(self, direction: int, octets: int, now: int, /) -> int:
        """Charge octets (less than 0: given back); how many more may be taken now. 0: a bucket is empty, less than 0:
        no more may ever be. Must answer at once: what is shared with other machines is charged afterwards."""

    def exhausted(self) -> str:
        """Why no more may be taken."""


class Waiter(Protocol):
    """A flow that waits."""

    @property
    def lease(self) -> Allowance: ...

    direction: int
    taken: int
    """Octets since it last went to the end of the queue."""

    def go(self, room: int) -> None:
        """Called once, with the octets that it may take. Must not raise."""


class Queue:
    """The flows that wait for one account in one direction."""

    __slots__ = ("heavy", "light")

    def __init__(self) -> None:
        self.light: deque[Waiter] = deque()
        self.heavy: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self.light) + len(self.heavy)


class Pacer:
    """Every queue of one worker.

    Args:
        loop: its timer is used.
        time: the monotonic clock, in nanoseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, time: Callable[[], int] = monotonic_ns) -> None:
        self.loop = loop
        self.time = time
        self.queues: dict[tuple[Account, int], Queue] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.wait_seconds = 0.0  # that the timer was set for

    def wait(self, waiter: Waiter) -> None:
        """Make it wait for the account that last let nothing through."""
        account = waiter.lease.short
        assert account is not None
        key = account, waiter.direction
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = Queue()
        if waiter.taken >= QUANTUM:
            queue.heavy.append(waiter)
        else:
            queue.light.append(waiter)
        account.waiting += 1
        self.come_by(LONG_TICK if waiter.taken >= QUANTUM else TICK)

    def come_by(self, seconds: float) -> None:
        """Start the next round in so many seconds, or sooner if that is planned."""
        if self.timer is not None:
            if self.wait_seconds <= seconds:
                return
            self.timer.cancel()
        self.wait_seconds = seconds
        self.timer = self.loop.call_later(seconds, self.tick)

    def tick(self) -> None:
        """Serve every queue, and again after a while as long as a flow waits."""
        self.timer = None
        now = self.time()
        for key, queue in tuple(self.queues.items()):
            key[0].serving = True
            self.serve(*key, queue, now)
            key[0].serving = False
            if not queue:
                del self.queues[key]
        if self.queues:
            self.come_by(TICK if any(queue.light for queue in self.queues.values()) else LONG_TICK)

    def serve(self, account: Account, direction: int, queue: Queue, now: int) -> None:
        """Let flows go on while there is room, each at most once."""
        for waiters, least in ((queue.light, account.least), (queue.heavy, account.batch)):
            for _ in range(len(waiters)):
                if account.free(direction, now) < least:
                    return
                waiter = waiters.popleft()
                account.waiting -= 1
                room = waiter.lease.spend(direction, 0, now)
                if room == 0:
                    self.wait(waiter)  # for another account
                    continue
                if waiters is queue.heavy:
                    waiter.taken = 0
                waiter.go(max(QUANTUM, room // (len(queue) + 1)) if room > QUANTUM else room)

    async def take(self, lease: Lease, direction: int, most: int) -> int:
        """Wait until a task may move octets; how many those are, at least one and ``most`` at most. They are charged.

        Raises:
            LimitExceeded: no more may: a quota is used up, or the session's time is over.
        """
        room = lease.spend(direction, 0, self.time())
        if not room:
            turn = Turn(lease, direction, self.loop.create_future())
            self.wait(turn)
            room = await turn.room
        if room < 0:
            raise LimitExceeded(lease.exhausted(), "quota")
        if lease.ended is not None:
            raise lease.ended
        count = min(room, most)
        lease.spend(direction, count, self.time())
        return count

    def close(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Turn:
    """A task that waits."""

    __slots__ = ("direction", "lease", "room", "taken")

    def __init__(self, lease: Lease, direction: int, room: asyncio.Future[int]) -> None:
        self.lease = lease
        self.direction = direction
        self.taken = QUANTUM  # content: it waits behind small messages
        self.room = room

    def go(self, room: int) -> None:
        """See `Waiter`."""
        if not self.room.done():  # cancelled meanwhile
            self.room.set_result(room)
