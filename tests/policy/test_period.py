"""Periods: days and months in time zones, and counts that pass from one to the next."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.period import Period


def at(text: str, zone: str = "UTC") -> int:
    """Seconds since 1970 of a local time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        (Period("day"), "2026-11-25T12:00", "2026-11-25T00:00", "2026-11-26T00:00"),
        (Period("month"), "2026-02-28T23:59", "2026-02-01T00:00", "2026-03-01T00:00"),
        (Period("month"), "2028-02-29T23:59", "2028-02-01T00:00", "2028-03-01T00:00"),
        (Period("month"), "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        (Period("day", "Europe/Berlin"), "2026-03-29T12:00", "2026-03-29T00:00", "2026-03-30T00:00"),
        (Period("day", "Europe/Berlin"), "2026-10-25T12:00", "2026-10-25T00:00", "2026-10-26T00:00"),
        (Period("month", "America/New_York"), "2026-03-31T23:59", "2026-03-01T00:00", "2026-04-01T00:00"),
        (Period("day", "America/Sao_Paulo"), "2018-11-04T12:00", "2018-11-04T01:00", "2018-11-05T00:00"),
    ],
)
def test_a_period_begins_and_ends_with_the_local_day(period: Period, now: str, start: str, end: str) -> None:
    """Month's end, leap years, days of 23 and 25 hours, and one that has no midnight."""
    zone = period.zone
    assert period.start(at(now, zone)) == at(start, zone)
    assert period.end(at(now, zone)) == at(end, zone)


def test_days_on_which_clocks_are_moved_have_23_and_25_hours() -> None:
    """A quota of a day is for the day that people have."""
    period = Period("day", "Europe/Berlin")
    for day, hours in (("2026-03-29T12:00", 23), ("2026-10-25T12:00", 25), ("2026-10-26T12:00", 24)):
        now = at(day, "Europe/Berlin")
        assert period.end(now) - period.start(now) == hours * 3600


def test_a_count_begins_anew_in_a_new_period_only() -> None:
    """Set back by up to a day, the clock changes nothing; by more, the count moves to the present period, whole."""
    period, day = Period("day"), 86400
    today = at("2026-11-25T00:00")
    assert period.turn(0, 0, today + 5) == (today, 0)
    assert period.turn(today, 7, today + 5) == (today, 7)
    assert period.turn(today, 7, today + day) == (today + day, 0)
    assert period.turn(today, 7, today - 1) == (today, 7)
    assert period.turn(today, 7, today - day - 1) == (today - 2 * day, 7)


@given(
    st.sampled_from(["day", "month"]),
    st.sampled_from(["UTC", "Asia/Beirut", "America/Sao_Paulo", "Pacific/Apia"]),
    st.integers(1_000_000_000, 1_900_000_000),
)
def test_every_second_is_in_its_period(unit: str, zone: str, now: int) -> None:
    """And each period begins where the one before ends."""
    period = Period(unit, zone)  # type: ignore[arg-type]
    start, end = period.start(now), period.end(now)
    assert start <= now < end
    assert period.start(start) == start
    assert period.start(end) == end
    assert period.start(end - 1) == start
