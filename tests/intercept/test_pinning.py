"""Which clients have refused our certificate for which host."""

from __future__ import annotations

from tabi.intercept.pinning import Pinned


def test_a_pair_is_remembered_for_a_while() -> None:
    """This client and this host, no others; each refusal begins the time anew."""
    pinned = Pinned(ttl=10.0)
    pinned.add("192.0.2.1", "a.example", 100.0)
    assert pinned.has("192.0.2.1", "a.example", 109.9)
    assert not pinned.has("192.0.2.1", "b.example", 101.0)
    assert not pinned.has("192.0.2.2", "a.example", 101.0)
    pinned.add("192.0.2.1", "a.example", 105.0)
    assert pinned.has("192.0.2.1", "a.example", 114.9)
    assert not pinned.has("192.0.2.1", "a.example", 115.0)
    assert not pinned.until


def test_only_so_many_are_remembered() -> None:
    """The oldest goes first; one that is added again is not the oldest any more."""
    pinned = Pinned(bound=2)
    for host in ("a", "b", "a", "c"):
        pinned.add("192.0.2.1", host, 0.0)
    assert [pinned.has("192.0.2.1", host, 1.0) for host in ("a", "b", "c")] == [True, False, True]
