"""A line of so many octets per second behind a queue: when datagrams have passed, and which are lost."""

from __future__ import annotations

import pytest

from tabi.distort.datagram_queue import LEAST_QUEUE, DatagramQueue
from tabi.distort.draws import Bucket


def test_datagrams_pass_one_after_the_other() -> None:
    """Each takes its octets' time behind the one before; a line that was idle has saved nothing up."""
    line = DatagramQueue(1000, 10_000)
    assert [line.book(100.0, 500), line.book(100.0, 500), line.book(100.9, 100)] == [100.5, 101.0, 101.1]
    assert line.book(200.0, 1000) == 201.0


def test_what_finds_no_room_in_the_queue_is_lost() -> None:
    """The last ones, and only until there is room again. What is on the line counts as waiting."""
    line = DatagramQueue(1000, 2000)
    assert [line.book(0.0, 1000) for _ in range(4)] == [1.0, 2.0, None, None]
    assert line.book(1.0, 1000) == 3.0


def test_an_idle_line_takes_a_datagram_that_is_longer_than_the_queue() -> None:
    """Else it would never pass."""
    line = DatagramQueue(1000, 10)
    assert [line.book(0.0, 1000), line.book(0.5, 1), line.book(1.0, 1000)] == [1.0, None, 2.0]


@pytest.mark.parametrize(("rate", "octets"), [(100_000, 20_000), (1000, LEAST_QUEUE)])
def test_the_queue_that_a_line_has_by_itself(rate: float, octets: int) -> None:
    """A fifth of a second of it, two datagrams of Ethernet at least."""
    line = DatagramQueue(rate)
    count = 0
    while line.book(0.0, 100) is not None:
        count += 1
    assert count == octets // 100


def test_a_bucket_is_shared() -> None:
    """By all lines that have it."""
    bucket = Bucket()
    one, two = DatagramQueue(1000, 9000, bucket), DatagramQueue(1000, 9000, bucket)
    assert [one.book(5.0, 1000), two.book(5.0, 1000), one.book(5.0, 1000)] == [6.0, 7.0, 8.0]


@pytest.mark.parametrize("rate", [50_000, 1_000_000, 12_500_000])
def test_the_rate_holds(rate: float) -> None:
    """Of a sender that is twice as fast as the line, over 5 seconds: within 3 %."""
    line, passed, when = DatagramQueue(rate), 0, 0.0
    while when < 5:
        due = line.book(when, 1200)
        passed += 1200 if due is not None and due <= 5 else 0
        when += 1200 / rate / 2
    assert passed == pytest.approx(5 * rate, rel=0.03)
