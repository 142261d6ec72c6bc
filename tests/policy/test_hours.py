"""Hours: what they say, and when they hold, through midnight and through the days on which clocks are moved."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.hours import DAYS, parse_hours


def at(text: str, zone: str = "UTC") -> float:
    """Seconds since 1970 of a local time."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        (
            "Mon-Fri 08:00-18:00",
            ["2026-11-23T08:00", "2026-11-27T17:59"],
            ["2026-11-23T07:59", "2026-11-23T18:00", "2026-11-28T12:00"],
        ),
        ("08:00-18:00", ["2026-11-28T12:00"], ["2026-11-28T19:00"]),
        ("Sat,Sun", ["2026-11-28T00:00", "2026-11-29T23:59"], ["2026-11-30T00:00"]),
        ("Fri-Mon 10:00-11:00", ["2026-11-27T10:30", "2026-11-30T10:30"], ["2026-11-24T10:30"]),
        ("Fri 22:00-06:00", ["2026-11-27T22:00", "2026-11-28T05:59"], ["2026-11-28T06:00", "2026-11-27T05:00"]),
        ("Sun 22:00-06:00", ["2026-11-29T23:00", "2026-11-30T03:00"], ["2026-11-29T03:00"]),
        ("daily 22:00-06:00,12:00-13:00", ["2026-11-24T12:59", "2026-11-24T01:00"], ["2026-11-24T13:00"]),
        ("mon-sun 00:00-24:00", ["2026-11-24T12:59"], []),
    ],
)
def test_hours_hold_from_their_first_minute_to_the_last(hours: str, inside: list[str], outside: list[str]) -> None:
    """Days, several of them, over the end of the week; times, several of them, over midnight; the end is outside."""
    for text in inside:
        assert parse_hours(hours).includes(at(text)), text
    for text in outside:
        assert not parse_hours(hours).includes(at(text)), text


def test_the_clock_on_the_wall_decides() -> None:
    """In a zone, and on the days on which its clocks are moved: the hour left out, and the one that comes twice."""
    berlin = parse_hours("02:00-03:00 Europe/Berlin")
    spring = at("2026-03-29T01:59", "Europe/Berlin")
    assert not any(berlin.includes(spring + minute * 60) for minute in range(120))
    autumn = at("2026-10-25T01:59", "Europe/Berlin")
    assert sum(berlin.includes(autumn + minute * 60) for minute in range(240)) == 120
    assert parse_hours("00:00-00:45 Asia/Kathmandu").includes(datetime(2026, 1, 1, 18, 15, tzinfo=UTC).timestamp())


def test_hours_say_what_they_are() -> None:
    """In logs and explanations they stand as they were written."""
    hours = parse_hours("  Mon-Fri   08:00-18:00 Europe/Berlin ")
    assert str(hours) == "Mon-Fri 08:00-18:00 Europe/Berlin"
    assert repr(hours) == "Hours('Mon-Fri 08:00-18:00 Europe/Berlin')"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "expected hours such as"),
        ("UTC", "'UTC' is neither days nor times"),
        ("Mon 08:00-09:00 UTC UTC", "expected hours such as"),
        ("Foo-Fri 08:00-09:00", "'Foo-Fri' is neither days nor times"),
        ("Mon-Foo", "'mon-foo' are not days"),
        ("Mon, 08:00-09:00", "'' are not days"),
        ("8-18", "'8-18' is neither days nor times"),
        ("08:00", "'08:00' are not times"),
        ("08:60-09:00", "not a time of day"),
        ("24:00-24:00", "not a time of day"),
        ("00:00-24:01", "not a time of day"),
        ("08:00-08:00", "begins and ends at the same time"),
        ("Mon Europe/Berln", "unknown time zone 'Europe/Berln'"),
        ("Mon ../etc/passwd", "unknown time zone"),
        ("Mon Europe", "unknown time zone 'Europe'"),
        ("Mon 08:00-09:00 x y", "expected hours such as"),
    ],
)
def test_what_is_wrong_is_said(text: str, wrong: str) -> None:
    """With the part that is wrong and what was expected."""
    with pytest.raises(ValueError, match=re.escape(wrong)):
        parse_hours(text)


@given(st.text(max_size=40))
def test_any_text_is_hours_or_an_error(text: str) -> None:
    """Never anything else."""
    try:
        parse_hours(text)
    except ValueError:
        pass


@given(
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1440),
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
)
def test_hours_agree_with_a_slow_model(days: set[int], begin: int, end: int, when: datetime) -> None:
    """Every day and every pair of times, against plain datetimes."""
    if begin == end:
        return
    times = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    hours = parse_hours(f"{','.join(DAYS[day] for day in days)} {times}")
    expected = False
    for back in (0, 1):
        midnight = (when - timedelta(days=back)).replace(hour=0, minute=0, second=0, microsecond=0)
        until = midnight + timedelta(minutes=end, days=end < begin)
        if midnight.weekday() in days and midnight + timedelta(minutes=begin) <= when < until:
            expected = True
    assert hours.includes(when.replace(tzinfo=UTC).timestamp()) == expected
