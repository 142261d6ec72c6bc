"""How rows become texts: what fits on a narrow screen, what numbers look like, what is escaped."""

from __future__ import annotations

import pytest

from tabi.cli.top.tables import VIEWS, cells, headline, plain, widths
from watched import HOSTILE, Watched, account, member, refusal, session


def fitted(view: str, rows: list[list[str]], room: int) -> dict[str, int]:
    """The columns that are shown, with their widths."""
    found = widths(VIEWS[view], rows, room)
    return {column.title: size for column, size in zip(VIEWS[view].columns, found, strict=True) if size}


def long_rows(down: float = 10**15) -> list[list[str]]:
    """Sessions whose every text is long."""
    row = session(1, user="u" * 60, host="h" * 200, via="pool" * 9, up=123_000_000, down=down, seconds=9e6)
    return [cells(VIEWS["sessions"], row)]


@pytest.mark.parametrize("room", [60, 80, 100, 132, 300])
def test_a_line_is_never_wider_than_the_screen(room: int) -> None:
    """Names are cut, the longest first, and the least of the columns are left out; numbers are whole."""
    found = fitted("sessions", long_rows(), room)
    assert sum(found.values()) + 2 * (len(found) - 1) <= room
    assert {"user", "destination", "down"} <= set(found)
    assert found["down"] == len("1,000.0 TB")


def test_80_columns_have_what_matters() -> None:
    """Who, from where, to where, by what, and how fast."""
    shown = {"user", "client", "destination", "egress", "up/s", "down/s", "down"}
    assert set(fitted("sessions", long_rows(123_000_000), 80)) == shown


def test_a_wide_screen_shows_everything() -> None:
    """Nothing is cut where there is room."""
    (row,) = long_rows()
    assert list(fitted("sessions", [row], 1000).values()) == [
        max(len(text), len(column.title)) for text, column in zip(row, VIEWS["sessions"].columns, strict=True)
    ]


def test_a_screen_that_is_too_narrow_for_anything_is_no_error() -> None:
    """As while somebody drags the window."""
    assert sum(widths(VIEWS["sessions"], long_rows(), 1)) > 0
    assert widths(VIEWS["users"], [], 80)


@pytest.mark.parametrize("view", VIEWS)
def test_no_name_controls_a_terminal(view: str) -> None:
    """Whatever clients and their destinations are called."""
    watched = Watched()
    names = dict.fromkeys(("user", "host", "via", "member", "client", "protocol"), HOSTILE)
    watched.sessions = [session(1, **names)]
    watched.users = [{"name": HOSTILE, "sessions": 1, "up": 0, "down": 0}]
    watched.members = [member(HOSTILE, pool=HOSTILE, reason=HOSTILE)]
    watched.refusals = [refusal(1, user=HOSTILE, host=HOSTILE, rule=HOSTILE, error=HOSTILE)]
    look = watched.look(view=view, order="time" if view == "refusals" else "sessions")
    assert look.rows
    texts = [text for row in look.rows for text in cells(VIEWS[view], row)]
    assert all(text.isprintable() for text in texts)
    assert any(r"a\x1b[2J[red]" in text for text in texts)
    lines = list(plain(look, HOSTILE, None))
    assert all(line.isprintable() for line in lines)
    assert all(line.isprintable() for line in plain(look, HOSTILE, 40))


def test_members_of_pools_say_how_they_are() -> None:
    """Up, drained, out, and when it is tried again."""
    rows = [member("a"), member("b", drained=True), member("c", up=False), member("d", up=False, trial_in=12.3)]
    assert [cells(VIEWS["egress"], row)[2] for row in rows] == ["up", "drained", "out", "out, trial in 12 s"]


def test_users_say_what_is_left_of_their_quota() -> None:
    """In per cent of it; a quota of nothing is used up."""
    watched = Watched()
    watched.users = [{"name": name, "sessions": 0, "up": 0, "down": 0} for name in "abc"]
    watched.accounts = [
        account("user a", quota="1GB/day", quota_octets=10**9, used=5 * 10**8, connections=10, bandwidth=125_000),
        account("user b", quota="0B/day", quota_octets=0, used=0),
    ]
    rows = [cells(VIEWS["users"], row) for row in watched.look(view="users", order="name").rows]
    assert rows[0] == ["a", "0", "10", "0 B", "0 B", "125 kB", "500 MB", "1GB/day", "50 %"]
    assert rows[1][-1] == "all"
    assert rows[2] == ["c", "0", "", "0 B", "0 B", "", "", "", ""]


def test_the_headline_has_the_totals_and_who_is_silent() -> None:
    """So far at the first look, per second from the second one on."""
    watched = Watched()
    looks = watched.looks
    watched.count("tabi_sessions_open", 10_000)
    watched.count("process_resident_memory_bytes", 80e6)
    first = watched.look()
    assert headline(first, "1.0") == "tabi 1.0  10,000 open  10,000 so far  0 B up, 0 B down  80 MB"
    looks.take(first.query)
    watched.now += 1
    watched.silent = [9]
    watched.count("tabi_octets_total", 2e6, direction="down")
    assert headline(looks.take(first.query), "1.0") == (
        "tabi 1.0  10,000 open  0 new/s  0 B/s up, 2.0 MB/s down  0 refused/s  CPU 0 %  80 MB"
        "  workers that do not answer: 1"
    )


def test_plain_text_says_what_is_left_out() -> None:
    """And has no rates: one look knows none."""
    watched = Watched()
    watched.sessions = [session(1, user="alice")]
    watched.matching = 5_000
    lines = list(plain(watched.look(), "1.0", None))
    assert lines[2].split() == ["id", "user", "client", "protocol", "destination", "egress", "up", "down", "time"]
    assert lines[3].split()[:5] == ["5f3a1c-1", "alice", "10.0.0.2:40001", "socks5", "example.com:443"]
    assert lines[4:] == ["and 4,999 more"]
    assert list(plain(Watched().look(), "1.0", None))[2:] == ["no sessions"]
