"""What a pool remembers: keys for a time, health until it changes, and what a reload takes along."""

from __future__ import annotations

from tabi.policy.pool_store import Health, MemoryStore

OUT = Health(3, 1.0, 7.0)


def test_a_key_is_kept_for_its_time() -> None:
    """From its last use; a label makes another key of it."""
    store = MemoryStore()
    store.put_key((None, "x"), "a", 0, 10)
    store.put_key(("de", "x"), "b", 0, 10)
    assert (store.get_key((None, "x"), 9.9), store.get_key(("de", "x"), 9.9)) == ("a", "b")
    store.put_key((None, "x"), "c", 9, 10)
    assert (store.get_key((None, "x"), 18.9), store.get_key(("de", "x"), 10)) == ("c", None)
    assert store.get_key((None, "x"), 19) is None
    assert store.get_key((None, "y"), 0) is None


def test_keys_are_bounded() -> None:
    """The one that rested longest goes; a new one has those leave whose time is over."""
    store = MemoryStore(keys=3)
    for key in "xyzxw":
        store.put_key((None, key), "a", 0, 10)
    assert [key for _, key in store.stuck] == ["z", "x", "w"]
    store.put_key((None, "v"), "a", 11, 10)
    assert [key for _, key in store.stuck] == ["v"]


def test_health_is_kept_until_it_is_taken_back() -> None:
    """By the member's name."""
    store = MemoryStore()
    assert store.get_health("a") is None
    store.put_health("a", OUT)
    assert (store.get_health("a"), store.get_health("b")) == (OUT, None)
    store.put_health("a", None)
    store.put_health("a", None)
    assert store.get_health("a") is None


def test_the_next_one_takes_along_what_is_still_true() -> None:
    """All keys, and the health of members that are the same; from then on neither hears of the other."""
    store = MemoryStore(keys=7)
    store.put_key((None, "x"), "a", 0, 10)
    store.put_health("a", OUT)
    store.put_health("b", OUT)
    other = store.succeed({"a", "c"})
    assert (other.keys, other.get_key((None, "x"), 5)) == (7, "a")
    assert (other.get_health("a"), other.get_health("b")) == (OUT, None)
    store.put_key((None, "y"), "a", 0, 10)
    store.put_health("a", None)
    assert (other.get_key((None, "y"), 5), other.get_health("a")) == (None, OUT)
