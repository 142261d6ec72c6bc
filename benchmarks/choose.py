"""Print what one choice in a pool costs, in microseconds of CPU: 1,000 members, least-connections, requests under way.

A choice here is all that a request asks of the pool: choose, begin, and the end of an older request.
"""

from __future__ import annotations

import time
from collections import deque

from tabi.policy.pool import Member, Pool

MEMBERS, UNDER_WAY, CHOICES = 1000, 5000, 200_000


def main() -> None:
    """Measure."""
    pool = Pool([Member(f"10.0.{number >> 8}.{number & 255}:1080") for number in range(MEMBERS)], "least-connections")
    running: deque[Member] = deque()
    for number in range(UNDER_WAY + CHOICES):
        if number == UNDER_WAY:
            began = time.process_time()
        member = pool.choose(f"client {number}", number / 10_000, ())
        assert member is not None
        pool.begin(member)
        running.append(member)
        if number >= UNDER_WAY:
            pool.end(running.popleft())
    print((time.process_time() - began) / CHOICES * 1e6)


if __name__ == "__main__":
    main()
