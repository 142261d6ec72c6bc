"""What one direction of a fault does to datagrams, with times and random numbers that are passed in."""

from __future__ import annotations

import random
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.distort.datagram_line import DatagramLine, acts_on_datagrams
from tabi.policy.faults import Fault, Line

COUNT = 20_000


def line(seed: int = 7, since: float = 0.0, **figures: Any) -> DatagramLine:
    """A line with these figures."""
    return DatagramLine(Line(**figures), random.Random(seed), None, since)


def passed(one: DatagramLine, count: int = COUNT) -> list[bool]:
    """Which of so many datagrams pass."""
    return [bool(one.pass_on(0.0, b"x")) for _ in range(count)]


def test_without_figures_all_pass_as_they_are() -> None:
    """At once, and once."""
    assert line().pass_on(3.0, b"x") == [(3.0, b"x")]
    assert not line().is_over
    assert not line().is_overtaken()


def test_the_share_of_losses() -> None:
    """10 % within 1 point; the same seed gives the same losses, and another one others."""
    found = passed(line(loss=0.1))
    assert found.count(False) / COUNT == pytest.approx(0.1, abs=0.01)
    assert passed(line(loss=0.1)) == found
    assert passed(line(loss=0.1, seed=8)) != found


@pytest.mark.parametrize("burst", [1, 4, 20])
def test_losses_in_bursts(burst: float) -> None:
    """The share stays, and so many are lost in a row on average, within 10 %."""
    share = 0.1
    found = passed(line(loss=share, burst=burst), 400_000)
    runs = [len(list(run)) for is_passed, run in groupby(found) if not is_passed]
    assert found.count(False) / len(found) == pytest.approx(share, abs=0.01)
    mean = 1 / (1 - share) if burst == 1 else burst
    assert sum(runs) / len(runs) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize(("figures", "lost"), [({"loss": 1.0}, True), ({"blackhole": True}, True), ({"mtu": 1}, False)])
def test_all_or_nothing(figures: dict[str, Any], lost: bool) -> None:
    """Of a share of 1, and of a hole, nothing comes out."""
    assert any(passed(line(**figures), 100)) is not lost


def test_the_mtu() -> None:
    """Counts payload."""
    one = line(mtu=100)
    assert [len(one.pass_on(0.0, bytes(size))) for size in (0, 99, 100, 101)] == [1, 1, 1, 0]


def test_a_stall() -> None:
    """Counts from when the line began; then nothing passes any more."""
    one = line(stall=5.0, since=100.0)
    assert [len(one.pass_on(when, b"x")) for when in (100.0, 104.9, 105.0, 200.0)] == [1, 1, 0, 0]
    assert not line(stall=0.0, since=100.0).pass_on(100.0, b"x")


def test_duplicates() -> None:
    """So many come twice, within 1 point; the copies pass bandwidth too."""
    one = line(duplicate=0.2)
    assert sum(len(one.pass_on(0.0, b"x")) - 1 for _ in range(COUNT)) / COUNT == pytest.approx(0.2, abs=0.01)
    assert line(duplicate=1.0, bandwidth=1000).pass_on(0.0, bytes(1000)) == [(1.0, bytes(1000)), (2.0, bytes(1000))]
    assert len(line(duplicate=1.0, bandwidth=1000, queue=10).pass_on(0.0, bytes(1000))) == 1


def test_corruption() -> None:
    """So many octets have one bit changed, across datagrams; none of them is longer or shorter."""
    one = line(corrupt=0.01)
    found = [one.pass_on(0.0, bytes(1000))[0][1] for _ in range(200)]
    assert {len(data) for data in found} == {1000}
    changed = [octet.bit_count() for data in found for octet in data if octet]
    assert set(changed) == {1}
    assert len(changed) / 200_000 == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_latency_with_jitter(distribution: str) -> None:
    """By the distribution, and never less than none."""
    one = line(latency=1.0, jitter=0.2, distribution=distribution)
    late = [one.pass_on(10.0, b"x")[0][0] - 10.0 for _ in range(COUNT)]
    assert sum(late) / COUNT == pytest.approx(1.0, abs=0.01)
    deviation = (sum((seconds - 1) ** 2 for seconds in late) / COUNT) ** 0.5
    assert deviation == pytest.approx(0.2 if distribution == "normal" else 0.2 / 3**0.5, rel=0.03)
    assert min(line(latency=0.1, jitter=9.0).pass_on(0.0, b"x")[0][0] for _ in range(100)) >= 0
    assert line(latency=1.0).pass_on(10.0, b"x") == [(11.0, b"x")]


def test_a_limit() -> None:
    """So many octets pass whole; the first datagram that does not fit is lost, and so is all behind it."""
    one = line(limit=10)
    assert [len(one.pass_on(0.0, bytes(size))) for size in (4, 4)] == [1, 1]
    assert not one.is_over
    assert [len(one.pass_on(0.0, bytes(size))) for size in (4, 1)] == [0, 0]
    assert one.is_over
    exact = line(limit=10)
    assert exact.pass_on(0.0, bytes(10))
    assert exact.is_over
    assert not line(limit=0).pass_on(0.0, b"")


def test_the_order_of_the_figures() -> None:
    """Loss comes before the limit and before bandwidth, which neither counts what is lost; latency is the last."""
    one = line(mtu=100, limit=300, bandwidth=100, latency=1.0)
    assert [one.pass_on(0.0, bytes(size)) for size in (200, 100, 100)] == [
        [],
        [(2.0, bytes(100))],
        [(3.0, bytes(100))],
    ]
    assert one.left == 100


def test_the_share_that_is_overtaken() -> None:
    """Within 1 point."""
    one = line(reorder=0.3)
    assert sum(one.is_overtaken() for _ in range(COUNT)) / COUNT == pytest.approx(0.3, abs=0.01)


FIGURES = st.fixed_dictionaries(
    {},
    optional={
        "latency": st.floats(0, 10),
        "jitter": st.floats(0, 10),
        "loss": st.floats(0, 1),
        "burst": st.floats(1, 100),
        "duplicate": st.floats(0, 1),
        "bandwidth": st.floats(1, 1e6),
        "queue": st.integers(0, 10_000),
        "mtu": st.integers(0, 2000),
        "limit": st.integers(0, 5000),
        "stall": st.floats(0, 5),
    },
)


@given(FIGURES, st.integers(), st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1500)), max_size=30))
def test_whatever_the_figures_are(figures: dict[str, Any], seed: int, datagrams: list[tuple[float, int]]) -> None:
    """Nothing comes before it was sent, more than twice, or with another content; a seed repeats it all."""
    one, two = line(seed, **figures), line(seed, **figures)
    for when, size in datagrams:
        payload = bytes(size)
        found = one.pass_on(when, payload)
        assert found == two.pass_on(when, payload)
        assert len(found) <= 2
        assert all(due >= when and data == payload for due, data in found)


@pytest.mark.parametrize(
    ("fault", "acts"),
    [
        (None, False),
        (Fault(), False),
        (Fault(up=Line(slice=10, slice_gap=1.0)), False),
        (Fault(down=Line(slow_close=1.0)), False),
        (Fault(status=503, answer_delay=1.0), False),
        (Fault(tls_cut="reset"), False),
        (Fault(dial_delay=1.0), False),
        (Fault(reset_after=1.0), True),
        (Fault(close_after=0.0), True),
        (Fault(refuse=5), True),
        (Fault(resolve=4), True),
        (Fault(resolve_delay=1.0), True),
        *[
            (Fault(down=Line(**figure)), True)
            for figure in (
                {"latency": 1.0},
                {"jitter": 1.0},
                {"bandwidth": 1.0},
                {"loss": 0.1},
                {"duplicate": 0.1},
                {"reorder": 0.1},
                {"corrupt": 0.1},
                {"mtu": 100},
                {"blackhole": True},
                {"limit": 0},
                {"stall": 0.0},
            )
        ],
    ],
)
def test_which_faults_act_on_datagrams(fault: Fault | None, acts: bool) -> None:
    """Those that are of connections alone leave associations at full speed."""
    assert acts_on_datagrams(fault) is acts
