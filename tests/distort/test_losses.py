"""Losses: the share and the bursts of the model, and the same ones with the same seed."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from tabi.distort.losses import Losses

DRAWS = 20_000


def draws(share: float, burst: float, seed: int = 1, count: int = DRAWS) -> list[bool]:
    """So many."""
    losses = Losses(share, burst, random.Random(seed))
    return [losses.next() for _ in range(count)]


def bursts(found: list[bool]) -> list[int]:
    """How many are lost in a row, each time."""
    return [len(list(group)) for lost, group in itertools.groupby(found) if lost]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_independent_losses(share: float, seed: int) -> None:
    """Within one point, and no longer in a row than chance makes them."""
    found = draws(share, 1.0, seed)
    assert sum(found) / DRAWS == pytest.approx(share, abs=0.01)
    assert statistics.mean(bursts(found)) == pytest.approx(1 / (1 - share), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("share", "burst"), [(0.1, 3.0), (0.3, 2.0), (0.1, 1.5), (0.5, 4.0)])
def test_bursts(share: float, burst: float, seed: int) -> None:
    """The mean of the bursts is that of the model within a tenth, the share within one point. Both are what chance
    makes of 20,000 draws: the mean of several seeds is nearer."""
    found = draws(share, burst, seed, 10 * DRAWS)
    assert statistics.mean(bursts(found)) == pytest.approx(burst, rel=0.1)
    assert sum(found) / len(found) == pytest.approx(share, abs=0.01)
    assert statistics.mean(bursts(found[:DRAWS])) == pytest.approx(burst, rel=0.1)


def test_the_same_seed_gives_the_same_losses() -> None:
    """And another one others."""
    for burst in (1.0, 3.0):
        assert draws(0.1, burst, 7) == draws(0.1, burst, 7) != draws(0.1, burst, 8)


@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_all_and_nothing(burst: float) -> None:
    """A share of 1 is everything, and of 0 nothing, in bursts too."""
    assert all(draws(1.0, burst, count=1000))
    assert not any(draws(0.0, burst, count=1000))


def test_the_largest_share_of_a_burst() -> None:
    """Half of all in bursts of one: `tabi check` refuses more, which the model has not."""
    found = draws(2 / 3, 2.0)
    assert sum(found) / DRAWS == pytest.approx(2 / 3, abs=0.01)
