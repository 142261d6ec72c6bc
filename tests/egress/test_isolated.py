"""A user name of its own at the proxy for each of those who are to be kept apart."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Run
from egresses import Recorder, session
from tabi.egress import isolated
from tabi.egress.isolated import Isolated
from tabi.policy.grammar import Parameters
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address
from tabi.wire.socks5 import Credentials


@pytest.mark.parametrize(
    ("apart", "same"),
    [
        (["user"], [("alice", "1", "192.0.2.1"), ("alice", "2", "192.0.2.2")]),
        (["session"], [("alice", "1", "192.0.2.1"), ("bob", "1", "192.0.2.2")]),
        (["client"], [("alice", "1", "192.0.2.1"), ("bob", "2", "192.0.2.1")]),
        (["user", "session"], [("alice", "1", "192.0.2.1"), ("alice", "1", "192.0.2.9")]),
    ],
)
def test_who_belongs_together_has_the_same_user(
    run_once: Run, apart: list[Any], same: list[tuple[str, str, str]]
) -> None:
    """And nobody else has it; it tells nothing of who it is."""

    async def main() -> None:
        made: list[Recorder] = []

        def make(credentials: Credentials) -> Recorder:
            made.append(Recorder(credentials))
            return made[-1]

        way = Isolated(make, apart)
        for who in same:
            await way.open(Address("x", 1), allow_any_address, session(*who))
        assert len(made) == 1
        await way.open(Address("x", 1), allow_any_address, session("carol", "3", "192.0.2.3"))
        await way.open(Address("x", 1), allow_any_address, session("carol", None, "192.0.2.4"))
        await way.open(Address("x", 1), allow_any_address)
        names = [one.credentials.username for one in made if one.credentials is not None]
        assert len(set(names)) == len(names) > 1
        assert all(len(name) == 32 for name in names)

    run_once(main)


def test_a_bounded_number_of_them_is_kept(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has rested longest is made anew."""
    monkeypatch.setattr(isolated, "KEPT", 2)

    async def main() -> None:
        made: list[Credentials] = []

        def make(credentials: Credentials) -> Recorder:
            made.append(credentials)
            return Recorder(credentials)

        way = Isolated(make, ["user"])
        for user in ("a", "b", "a", "c", "a", "b"):
            await way.open(Address("x", 1), allow_any_address, session(user))
        assert len(made) == 4
        assert len(way.egresses) == 2

    run_once(main)


def test_it_describes_itself_without_a_user() -> None:
    """What is the same for all is asked of one that nobody uses; the session of a user name is what it selects."""
    made: list[Credentials] = []

    def make(credentials: Credentials) -> Recorder:
        made.append(credentials)
        return Recorder(credentials)

    way = Isolated(make, ["session"])
    way.name = "tor"
    assert way.describe() == "tor"
    assert way.cannot("connect") is None
    assert way.cannot("associate") is not None
    assert (way.leads_nowhere, made) == (False, [Credentials(b"", b"")])
    assert way.explain_choice(Parameters((), "7f3a")) == ["session 7f3a: a user name of its own at the last proxy"]
    assert way.explain_choice(Parameters(("de",))) == ["nothing: tor is not a pool"]
    assert not way.egresses
