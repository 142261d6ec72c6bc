"""Corruption: the share of octets that was asked for, one bit of each, and never more work at once than a little."""

from __future__ import annotations

import random

import pytest

from sockets import octets
from tabi.distort.corruption import AT_ONCE, Corruption, Flips
from tabi.distort.memory import Memory
from tabi.policy.limits import UP
from virtual import Net


def changed(before: bytes, after: bytes) -> list[int]:
    """Which octets differ; each by one bit."""
    assert len(before) == len(after)
    found = [at for at in range(len(before)) if before[at] != after[at]]
    assert all((before[at] ^ after[at]).bit_count() == 1 for at in found)
    return found


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.999])
def test_the_share_is_exact(share: float) -> None:
    """Within what chance makes of it, whatever the pieces; all bits are as likely."""
    data = octets(400_000)
    for piece in (1, 1000, 70_000):
        flips = Flips(share, random.Random(11))
        count = 400_000 if piece > 1 else 100_000
        after = b"".join(flips.change(data[at : at + piece]) for at in range(0, count, piece))
        found = changed(data[:count], after)
        assert len(found) == pytest.approx(count * share, abs=5 * (count * share * (1 - share)) ** 0.5)
        bits = [(data[at] ^ after[at]).bit_length() for at in found]
        if len(found) > 3000:
            assert all(bits.count(bit) == pytest.approx(len(found) / 8, rel=0.2) for bit in range(1, 9))


def test_the_ends_of_the_scale() -> None:
    """Each octet, none, and shares so small that no float tells them from nothing."""
    data = octets(1000)
    assert changed(data, Flips(1.0, random.Random(1)).change(data)) == list(range(1000))
    for share in (0.0, 1e-18, 1e-300, 5e-324):
        assert Flips(share, random.Random(1)).change(data) == data
    assert Flips(0.5, random.Random(1)).change(b"") == b""


def test_the_same_seed_gives_the_same() -> None:
    """However it is cut."""
    data = octets(10_000)
    whole = Flips(0.1, random.Random(4)).change(data)
    flips = Flips(0.1, random.Random(4))
    assert b"".join(flips.change(data[at : at + 33]) for at in range(0, len(data), 33)) == whole


@pytest.mark.parametrize("share", [1e-9, 0.01, 1.0])
def test_it_passes_through_a_relay(share: float) -> None:
    """As many octets as came, in order, and the end behind them."""
    stage = Corruption(share, random.Random(2), Memory())
    net = Net([(UP, stage)])
    data = octets(300_000)
    net.send(data, end=True)
    found = changed(data, bytes(net.server.outbox))
    assert len(found) == pytest.approx(len(data) * share, abs=300)
    assert (net.server.said, stage.memory.held, stage.held) == ("end", 0, 0)
    assert Corruption(0.0).flips.change(data) == data


def test_much_work_is_done_in_several_turns() -> None:
    """To change each octet of 64 KiB would keep all others waiting."""
    stage = Corruption(1.0, random.Random(2), Memory())
    net = Net([(UP, stage)])
    net.reactor.busy = True
    net.client.inbox += octets(60_000)
    net.reactor.handlers[net.CLIENT](1)
    assert len(net.server.outbox) == AT_ONCE
    assert net.turns() >= 60_000 // AT_ONCE - 1
    assert len(changed(octets(60_000), bytes(net.server.outbox))) == 60_000


def test_taken_off_in_the_middle_of_it() -> None:
    """What it has not got to is left as it is."""
    stage = Corruption(1.0, random.Random(2), Memory())
    net = Net([(UP, stage)])
    net.reactor.busy = True
    net.client.inbox += octets(10_000)
    net.reactor.handlers[net.CLIENT](1)
    net.relay.remove_stage(stage)
    net.send(b"behind", end=True)
    assert changed(octets(10_000) + b"behind", bytes(net.server.outbox)) == list(range(AT_ONCE))
    assert net.server.said == "end"
