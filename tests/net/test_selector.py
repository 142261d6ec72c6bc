"""The selector of our own loop: it keeps the contract of `selectors`."""

from __future__ import annotations

import selectors
from collections.abc import Iterator

import pytest

from sockets import unix_pair
from tabi.net.selector import ReactorSelector


@pytest.fixture
def selector() -> Iterator[ReactorSelector]:
    """A selector without a loop."""
    selector = ReactorSelector()
    yield selector
    selector.close()


def test_the_selector_keeps_the_contract_of_selectors(selector: ReactorSelector) -> None:
    """register, modify, unregister, get_key and get_map answer as selectors.EpollSelector does."""
    here, there = unix_pair()
    with here, there:
        key = selector.register(here, selectors.EVENT_READ, "data")
        assert key == selectors.SelectorKey(here, here.fileno(), selectors.EVENT_READ, "data")
        assert selector.get_key(here) is selector.get_key(here.fileno()) is key
        assert selector.get_map()[here] is selector.get_map()[here.fileno()] is key
        assert selector.get_map().get(there) is None
        assert list(selector.get_map()) == [here.fileno()]
        assert len(selector.get_map()) == 1
        assert selector.select(0) == []
        there.send(b"x")
        assert selector.select(0) == [(key, selectors.EVENT_READ)]
        key = selector.modify(here, selectors.EVENT_READ | selectors.EVENT_WRITE, "other")
        assert selector.select() == [(key, selectors.EVENT_READ | selectors.EVENT_WRITE)]
        assert selector.modify(here, key.events, "data only").data == "data only"
        assert selector.unregister(here).data == "data only"
        assert here not in selector.get_map()
        assert selector.select(0) == []


def test_the_selector_refuses_what_is_not_registered(selector: ReactorSelector) -> None:
    """KeyError for what is unknown or known twice: asyncio relies on it."""
    here, there = unix_pair()
    with here, there:
        for ask in (selector.get_key, selector.unregister):
            with pytest.raises(KeyError):
                ask(here)
        with pytest.raises(KeyError):
            selector.modify(here, selectors.EVENT_READ)
        with pytest.raises(KeyError):
            selector.get_map()[here]
        selector.register(here, selectors.EVENT_READ)
        with pytest.raises(KeyError):
            selector.register(here.fileno(), selectors.EVENT_WRITE)


def test_a_socket_that_was_closed_first_can_be_unregistered(selector: ReactorSelector) -> None:
    """Its number is gone, but the object is still known; its number can be registered anew."""
    here, there = unix_pair()
    selector.register(here, selectors.EVENT_READ)
    here.close()
    assert selector.unregister(here).fileobj is here
    with pytest.raises(KeyError):
        selector.unregister(here)
    selector.register(there.fileno(), selectors.EVENT_READ)
    number = there.fileno()
    there.close()
    selector.unregister(number)
    assert len(selector.get_map()) == 0


def test_an_interrupted_poll_finds_nothing(selector: ReactorSelector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that raises InterruptedError is no reason to fail."""

    class Interrupted:
        def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(selector, "epoll", Interrupted())
        assert selector.select(0) == []
