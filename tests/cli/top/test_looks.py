"""What `tabi top` finds out: rates between looks, what is left out, what is sorted and searched where."""

from __future__ import annotations

import pytest

from tabi.cli.top.looks import ORDERS, ROWS, Looks, Query, samples_of
from tabi.observe.exposition import render
from tabi.server.reports import SORTED_BY
from watched import Watched, account, member, refusal, session


def test_sessions_are_sorted_searched_and_cut_by_the_server() -> None:
    """A server with very many is asked for those that are shown, and says how many there are."""
    watched = Watched()
    watched.matching = 12_345
    look = watched.look(search="exam", order="down")
    assert watched.asked[-1] == ("sessions", {"filter": {"search": "exam"}, "sort": "down", "limit": ROWS})
    assert look.matching == 12_345
    assert set(ORDERS["sessions"]) == set(SORTED_BY)


def test_rates_of_sessions_are_those_since_the_look_before() -> None:
    """By the server's own seconds, so that a look that comes late shows no other rate. New ones have none yet."""
    watched, looks = Watched(), None
    watched.sessions = [session(1, up=1000, down=5000, seconds=10.0), session(2)]
    looks = watched.looks
    assert "up_rate" not in looks.take(Query()).rows[0]
    watched.sessions = [session(1, up=3000, down=5000, seconds=14.0), session(2, seconds=1.0), session(3, up=9)]
    first, second, third = looks.take(Query()).rows
    assert (first["up_rate"], first["down_rate"]) == (500.0, 0.0)
    assert "up_rate" not in second
    assert "up_rate" not in third


def test_rates_of_the_server_are_those_since_the_look_before() -> None:
    """New sessions, octets, refusals and CPU a second; the first look has none."""
    watched = Watched()
    looks = watched.looks
    ended = {"command": "connect", "egress": "direct"}
    watched.count("tabi_sessions_open", 5, egress="direct")
    watched.count("tabi_sessions_total", 10, **ended, close="denied")
    watched.count("tabi_octets_total", 1000, direction="up")
    watched.count("process_cpu_seconds_total", 1.0)
    assert looks.take(Query()).rates is None
    watched.now += 2
    watched.count("tabi_sessions_open", 7, egress="direct")
    watched.count("tabi_sessions_total", 14, **ended, close="denied")
    watched.count("tabi_octets_total", 9000, direction="up")
    watched.count("process_cpu_seconds_total", 1.5)
    look = looks.take(Query())
    assert look.rates == {"sessions": 3.0, "refused": 2.0, "up": 4000.0, "down": 0.0, "cpu": 0.25}
    assert look.totals["open"] == 7


def test_a_server_that_began_again_has_no_negative_rates() -> None:
    """Its counts are less than before."""
    watched = Watched()
    looks = watched.looks
    watched.count("tabi_octets_total", 9000, direction="up")
    watched.sessions = [session(1, up=9000, seconds=5.0)]
    looks.take(Query())
    watched.now += 2
    watched.count("tabi_octets_total", 10, direction="up")
    watched.sessions = [session(1, up=10, seconds=7.0)]
    look = looks.take(Query())
    assert look.rates is not None
    assert look.rates["up"] == 0
    assert look.rows[0]["up_rate"] == 0


def test_users_have_their_limits() -> None:
    """Those of groups and networks are no users; a user without limits has none."""
    watched = Watched()
    watched.users = [
        {"name": "alice", "sessions": 2, "up": 10, "down": 20},
        {"name": "bob", "sessions": 0, "up": 0, "down": 0},
    ]
    watched.accounts = [
        account("user alice", quota="5GB/day", quota_octets=5_000_000_000, used=1_000),
        account("group staff"),
    ]
    alice, bob = watched.look(view="users", order="sessions").rows
    assert (alice["name"], alice["quota"], alice["used"]) == ("alice", "5GB/day", 1000)
    assert (bob["name"], bob["quota"], bob["used"]) == ("bob", None, None)


def test_egresses_are_all_ways_out_and_the_members_of_pools() -> None:
    """With their rates, also where the server has no pool."""
    watched = Watched()
    looks = watched.looks
    watched.members = [member("one", sessions=3)]
    watched.count("tabi_sessions_open", 2, listener="a", egress="direct")
    watched.count("tabi_sessions_open", 1, listener="b", egress="direct")
    watched.count("tabi_sessions_open", 1, listener="b", egress="")
    watched.count("tabi_octets_total", 100, direction="down", egress="direct")
    query = Query("egress", "pool")
    looks.take(query)
    watched.now += 2
    watched.count("tabi_octets_total", 300, direction="down", egress="direct")
    direct, one = looks.take(query).rows
    assert (direct["pool"], direct["member"], direct["sessions"], direct["down_rate"]) == ("direct", None, 3, 100.0)
    assert (one["pool"], one["member"], one["sessions"]) == ("exits", "one", 3)


@pytest.mark.parametrize(
    ("view", "order", "search", "names"),
    [
        ("users", "sessions", "", ["bob", "alice", "carol"]),
        ("users", "name", "", ["alice", "bob", "carol"]),
        ("users", "octets", "", ["carol", "alice", "bob"]),
        ("users", "used", "", ["alice", "bob", "carol"]),
        ("users", "name", "o", ["bob", "carol"]),
    ],
)
def test_what_is_little_is_sorted_and_searched_here(view: str, order: str, search: str, names: list[str]) -> None:
    """Names from A, numbers with the most first."""
    watched = Watched()
    watched.users = [
        {"name": "alice", "sessions": 1, "up": 5, "down": 0},
        {"name": "bob", "sessions": 9, "up": 0, "down": 0},
        {"name": "carol", "sessions": 0, "up": 0, "down": 9},
    ]
    watched.accounts = [account("user alice", used=5)]
    assert [row["name"] for row in watched.look(view=view, order=order, search=search).rows] == names


def test_many_users_cost_no_more_than_many_sessions() -> None:
    """The first of them are shown, and how many there are."""
    watched = Watched()
    watched.users = [{"name": f"u{number}", "sessions": number, "up": 0, "down": 0} for number in range(5_000)]
    look = watched.look(view="users", order="sessions")
    assert (len(look.rows), look.matching, look.rows[0]["name"]) == (ROWS, 5_000, "u4999")


def test_refusals_come_with_the_latest_first() -> None:
    """And are searched by who, where and why."""
    watched = Watched()
    watched.refusals = [refusal(2), refusal(1), refusal(3, host="example.org", error=None)]
    assert [row["number"] for row in watched.look(view="refusals", order="time").rows] == [1, 2, 3]
    assert [row["number"] for row in watched.look(view="refusals", order="time", search="guard").rows] == [1, 2]
    assert [row["number"] for row in watched.look(view="refusals", order="time", search="example.org").rows] == [3]


def test_workers_that_do_not_answer_are_known() -> None:
    """Whichever question they have not answered."""
    watched = Watched()
    watched.silent = [7, 5]
    assert watched.look().silent == [5, 7]


def test_nothing_is_remembered_but_the_last_look() -> None:
    """A server whose sessions come and go for weeks costs no memory."""
    watched = Watched()
    looks: Looks = watched.looks
    for number in range(20):
        watched.sessions = [session(number)]
        looks.take(Query())
    assert list(looks.moved) == [f"5f3a1c-{19:x}"]


def test_metrics_are_read_as_they_are_written() -> None:
    """Labels with signs of the format in them, values with an exponent, and none of what is not wanted."""
    hostile = 'a"b\\c\nd} 5,e="'
    text = render({"tabi_sessions_open": {(("listener", hostile), ("egress", "x")): 3}, "tabi_fallback": {(): 1}})
    assert samples_of(text) == {"tabi_sessions_open": {(("listener", hostile), ("egress", "x")): 3.0}}
    assert samples_of("tabi_octets_total 1.5e+20\nnonsense\n\n# HELP x y") == {"tabi_octets_total": {(): 1.5e20}}
