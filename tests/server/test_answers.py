"""One answer out of those of workers, and what may be asked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import ConfigError
from tabi.observe.metrics import REFUSALS
from tabi.server.answers import ABOUT, LONGEST, Answers
from tabi.server.reports import MOST

CHECKS: list[tuple[dict[str, Any], str | None]] = [
    ({"command": "sessions"}, None),
    ({"command": "sessions", "filter": {"user": "a", "search": "b"}, "sort": "up", "limit": 5}, None),
    ({"command": "sessions", "filter": ["user"]}, "filter: list, expected an object"),
    ({"command": "sessions", "filter": {"users": "a"}}, "filter.users: unknown key, expected one of: id, listener"),
    ({"command": "sessions", "filter": {"user": 5}}, "filter.user: int, expected a text"),
    ({"command": "sessions", "filter": {"user": "a" * (LONGEST + 1)}}, "filter.user: 1,025 letters"),
    ({"command": "sessions", "sort": "name"}, "sort: 'name', expected one of: seconds"),
    ({"command": "sessions", "limit": True}, "limit: True, expected a number"),
    ({"command": "sessions", "limit": -1}, "limit: -1"),
    ({"command": "sessions", "limit": MOST + 1}, "limit: 10001"),
    ({"command": "kick"}, "filter: it chooses nothing"),
    ({"command": "kick", "filter": {}}, "filter: it chooses nothing"),
    ({"command": "kick", "all": 1}, "filter: it chooses nothing"),
    ({"command": "kick", "all": True}, None),
    ({"command": "kick", "filter": {"id": "x"}}, None),
    ({"command": "users", "x": 1}, "x: unknown key"),
    ({"command": "egress"}, None),
    ({"command": "steer", "action": "drain", "pool": "p"}, "member: missing"),
    ({"command": "steer", "action": "drain", "pool": "p", "member": "x" * 1025}, "member: 1,025 letters"),
    ({"command": "steer", "action": "stop", "pool": "p", "member": "m"}, "action: expected drain or undrain"),
    ({"command": "steer", "action": "drain", "pool": "p", "member": "m"}, None),
    ({"command": "metrics", "format": "text"}, None),
    ({"command": "metrics", "format": "xml"}, "format: expected one of: text, openmetrics"),
    ({"command": "metrics", "format": ["text"]}, "format: expected one of: text, openmetrics"),
    ({"command": "metrics", "x": 1}, "x: unknown key"),
]


@pytest.mark.parametrize(("request_", "message"), CHECKS)
def test_a_request_is_checked_first(request_: dict[str, Any], message: str | None) -> None:
    """What is wrong has its key, and no worker hears of it."""
    check = ABOUT[request_["command"]].check
    if message is None:
        check(request_)
    else:
        with pytest.raises(ConfigError) as found:
            check(request_)
        assert str(found.value).startswith(message)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["filter", "sort", "limit", "all", "action", "pool", "member", "format", "id", "about"])


@given(st.sampled_from(sorted(ABOUT)), st.dictionaries(KEYS, ANYTHING, max_size=4))
def test_any_request_is_right_or_a_mistake(name: str, keys: dict[str, Any]) -> None:
    """Whatever a client sends, its check says what is wrong, and fails in no other way."""
    with contextlib.suppress(ConfigError):
        ABOUT[name].check({"command": name, **keys})


def join(answers: Answers, request: Mapping[str, Any], *parts: Any, silent: tuple[int, ...] = ()) -> Any:
    """The answer of workers 1, 2 and so on, of which None says nothing."""
    files = []
    for pid, part in enumerate(parts, 1):
        if part is not None:
            file = os.memfd_create("test")
            os.write(file, msgspec.json.encode({"ok": part}))
            files.append((pid, file))
    try:
        return answers.join(request, files, silent)
    finally:
        for _, file in files:
            os.close(file)


def metrics(answers: Answers, *parts: Any, silent: tuple[int, ...] = (), openmetrics: bool = False) -> dict[str, str]:
    """The values of the text."""
    request = {"command": "metrics", "format": "openmetrics" if openmetrics else "text"}
    text = join(answers, request, *parts, silent=silent)["ok"]["text"]
    assert text.endswith("# EOF\n") == openmetrics
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def of_worker(count: int, opened: int = 1) -> Any:
    """Its metrics as JSON has them."""
    return {
        "tabi_denied_total": [[[["rule", "a"]], count]],
        "tabi_dial_seconds": [[[], [*[0] * 14, count, count]]],
        "tabi_sessions_open": [[[], opened]],
        "tabi_workers": [[[], 1]],
    }


def test_metrics_are_of_all_workers() -> None:
    """Added up, with the version; in either format."""
    for openmetrics in (False, True):
        found = metrics(Answers("1.2"), of_worker(2), of_worker(3), openmetrics=openmetrics)
        assert found['tabi_denied_total{rule="a"}'] == found["tabi_dial_seconds_count"] == "5"
        assert found["tabi_sessions_open"] == found["tabi_workers"] == "2"
        assert found['tabi_build_info{version="1.2"}'] == "1"


def test_counts_of_workers_that_have_ended_stay() -> None:
    """Nothing that counts ever falls: not while one is silent, not when it has ended, not when another took its
    place. What runs is of those alone that have answered."""
    answers = Answers("1")
    assert metrics(answers, of_worker(2), of_worker(3))['tabi_denied_total{rule="a"}'] == "5"
    found = metrics(answers, of_worker(4), silent=(2,))
    assert (found['tabi_denied_total{rule="a"}'], found["tabi_workers"], found["tabi_sessions_open"]) == ("7", "1", "1")
    for _ in range(2):
        found = metrics(answers, of_worker(4))
        assert (found['tabi_denied_total{rule="a"}'], found["tabi_workers"]) == ("7", "1")
        assert found["tabi_dial_seconds_count"] == "7"
    found = metrics(answers, of_worker(4), None, of_worker(1))
    assert (found['tabi_denied_total{rule="a"}'], found["tabi_workers"]) == ("8", "2")
    found = metrics(answers)
    assert found['tabi_denied_total{rule="a"}'] == "8"
    assert "tabi_workers" not in found


def test_one_that_was_silent_counts_on() -> None:
    """It is not counted twice when it answers again."""
    answers = Answers("1")
    metrics(answers, of_worker(2))
    assert metrics(answers, silent=(1,))['tabi_denied_total{rule="a"}'] == "2"
    assert metrics(answers, of_worker(3))['tabi_denied_total{rule="a"}'] == "3"


def row(number: int, **more: Any) -> dict[str, Any]:
    """A session."""
    return {"id": str(number), "up": number, "down": 0, "seconds": -number, **more}


def test_sessions_are_of_all_workers() -> None:
    """Each with its worker; sorted and cut over all."""
    parts = {"sessions": [row(1), row(5)], "matching": 2}, {"sessions": [row(3)], "matching": 7}
    found = join(Answers("1"), {"command": "sessions", "sort": "octets", "limit": 2}, *parts, silent=(9,))
    assert [(one["id"], one["worker"]) for one in found["ok"]["sessions"]] == [("5", 1), ("3", 2)]
    assert (found["ok"]["matching"], found["ok"]["silent"]) == (9, [9])
    for by, ids in (("up", "531"), ("seconds", "135"), (None, "153"), ("down", "153")):
        found = join(Answers("1"), {"command": "sessions", "sort": by}, *parts)
        assert "".join(one["id"] for one in found["ok"]["sessions"]) == ids


def test_a_worker_that_failed_is_named() -> None:
    """With what it says."""
    file = os.memfd_create("test")
    os.write(file, b'{"error":"too many"}')
    assert Answers("1").join({"command": "kick"}, [(4, file)], ()) == {"error": "worker 4: too many"}
    os.close(file)


def test_what_has_ended_is_added_up() -> None:
    """Over all workers."""
    assert join(Answers("1"), {"command": "kick"}, {"ended": 2}, {"ended": 3})["ok"] == {"ended": 5, "silent": []}


def test_members_are_up_if_all_workers_say_so() -> None:
    """With the requests of all, and the reason of one that says no."""
    up = {"pool": "p", "member": "m", "up": True, "sessions": 2, "failures": 0, "trial_in": None, "reason": None}
    out = {**up, "up": False, "sessions": 3, "failures": 4, "trial_in": 1.5, "reason": "no"}
    other = {**up, "member": "n"}
    for parts in (([up, other], [out]), ([out], [up, other])):
        found = join(Answers("1"), {"command": "egress"}, *parts)["ok"]["members"]
        assert sorted(found, key=lambda one: one["member"]) == [{**out, "sessions": 5}, other]


def test_a_member_that_nobody_has_is_an_error() -> None:
    """One worker that has it is enough: another may not have read the configuration again."""
    request = {"command": "steer", "action": "drain", "pool": "p", "member": "m"}
    assert join(Answers("1"), request, False, True)["ok"]["done"]
    assert join(Answers("1"), request)["ok"]["done"]
    with pytest.raises(ConfigError, match="there is no member 'm' of a pool 'p'"):
        join(Answers("1"), request, False, False)


def test_users_are_of_all_workers() -> None:
    """Those with sessions, and those whom a limit has an account for."""
    account = {"name": "user carol", "quota": None}
    one = {"users": {"bob": {"sessions": 1, "up": 2, "down": 3}}, "accounts": [account, {"name": "server"}]}
    other = {
        "users": {"bob": {"sessions": 1, "up": 2, "down": 3}, "alice": {"sessions": 1, "up": 0, "down": 0}},
        "accounts": [account],
    }
    found = join(Answers("1"), {"command": "users"}, one, other)["ok"]
    assert found["users"] == [
        {"name": "alice", "sessions": 1, "up": 0, "down": 0},
        {"name": "bob", "sessions": 2, "up": 4, "down": 6},
        {"name": "carol", "sessions": 0, "up": 0, "down": 0},
    ]
    assert found["accounts"] == [account, {"name": "server"}]


def test_refusals_are_of_all_workers() -> None:
    """The latest first, and no more than one worker keeps."""
    parts = [[{"time": 10 * number + worker} for number in range(REFUSALS)] for worker in range(2)]
    found = join(Answers("1"), {"command": "refusals"}, *parts)["ok"]["refusals"]
    assert len(found) == REFUSALS
    assert [one["time"] for one in found[:3]] == [10 * REFUSALS - 9, 10 * REFUSALS - 10, 10 * REFUSALS - 19]
