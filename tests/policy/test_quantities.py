"""Quantities as people write them: each with its unit, and an error that says what was expected."""

from __future__ import annotations

import contextlib
import tomllib
from datetime import date, datetime
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.period import Period
from tabi.policy.quantities import (
    Bandwidth,
    Chance,
    Drain,
    Idle,
    Moment,
    Onset,
    Quota,
    Rate,
    Seconds,
    Share,
    Size,
    format_moment,
    format_size,
)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Size, 65536, 65536),
        (Size, "65536", 65536),
        (Size, "10 MB", 10_000_000),
        (Size, "1.5kB", 1500),
        (Size, "4 KiB", 4096),
        (Size, "2 gib", 2 << 30),
        (Size, "1 TB", 10**12),
        (Size, "7 B", 7),
        (Rate, 20, 20.0),
        (Rate, "20/s", 20.0),
        (Rate, "120/min", 2.0),
        (Rate, "1 / h", 1 / 3600),
        (Rate, "864/d", 0.01),
        (Bandwidth, 1000, 1000.0),
        (Bandwidth, "10 MB/s", 1e7),
        (Bandwidth, "512 KiB/s", 524288.0),
        (Bandwidth, "80 Mbit/s", 1e7),
        (Moment, 0, 0.0),
        (Moment, date(2027, 1, 1), 1798761600.0),
        (Moment, datetime(2027, 1, 1), 1798761600.0),
        (Moment, "2027-01-01", 1798761600.0),
        (Moment, "2027-01-01T01:00:00+01:00", 1798761600.0),
        (Moment, tomllib.loads("a = 2027-01-01T00:00:00Z")["a"], 1798761600.0),
    ],
)
def test_what_is_right_is_read(kind: Any, value: object, expected: float) -> None:
    """Numbers and text, units of 1000 and of 1024, bits where bandwidth is meant."""
    read = kind.parse(value)
    assert (read, type(read)) == (expected, kind)


@pytest.mark.parametrize("kind", [Size, Rate, Bandwidth, Quota, Moment])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        True,
        [],
        "-1",
        -1e30,
        "10 furlongs",
        "10/fortnight",
        "1 MB/year",
        "/day",
        None,
        "9999-12-31T23:59:59-23:00",
        "0/s",
        "0 B/s",
        0.0 * -1 - 1e13,
    ],
)
def test_what_is_wrong_is_said(kind: Any, value: object) -> None:
    """With the value and an example; none is guessed at."""
    with pytest.raises(ValueError, match=r"expected|than|is 1"):
        kind.parse(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Size, 0),
        (Size, 1 << 62),
        (Rate, "0/s"),
        (Bandwidth, 0),
        (Size, "80 Mbit"),
        (Quota, "0 GB/day"),
        (Quota, 5),
        (Quota, "5 GB/day Nowhere"),
    ],
)
def test_what_is_out_of_bounds_is_refused(kind: Any, value: object) -> None:
    """Nothing, too much, bits for octets, a zone that does not exist."""
    with pytest.raises(ValueError, match=r"."):
        kind.parse(value)


def test_a_rate_keeps_how_it_was_written_and_how_many_may_come_at_once() -> None:
    """100 in a minute may come in one second, if none comes in the rest of it."""
    rate = Rate.parse("100/min")
    assert (rate.count, str(rate)) == (100, "100/min")
    assert (Rate.parse(2.5).count, str(Rate.parse(2.5))) == (2, "2.5/s")
    assert Rate.parse("0.5/s").count == 1


def test_a_quota_is_octets_and_a_period() -> None:
    """UTC without a zone; equal ones are equal."""
    quota = Quota.parse("50 GB/month Europe/Berlin")
    assert (quota.octets, quota.period) == (50 * 10**9, Period("month", "Europe/Berlin"))
    assert str(quota) == "50 GB/month Europe/Berlin"
    assert repr(Quota.parse("2GB/day")) == "Quota('2 GB/day')"
    assert len({quota, Quota.parse("50000 MB / month  Europe/Berlin")}) == 1
    assert quota != "50 GB/month Europe/Berlin"


@given(st.integers(1, 1 << 53))
def test_sizes_come_back_as_they_were(octets: int) -> None:
    """What is printed can be read again."""
    assert Size.parse(format_size(octets)) == octets
    assert str(Quota.parse(f"{octets} B/day")) == str(Quota.parse(str(Quota.parse(f"{octets} B/day"))))


@given(st.one_of(st.text(max_size=20), st.floats(), st.integers(), st.booleans(), st.datetimes(), st.dates()))
def test_any_value_is_read_or_refused(value: object) -> None:
    """Never another error."""
    for kind in (Size, Rate, Bandwidth, Quota, Moment, Share, Chance, Onset, Seconds):
        with contextlib.suppress(ValueError):
            kind.parse(value)


@given(st.floats(0, 100))
def test_any_share_is_a_chance(percent: float) -> None:
    """In per cent, or as a part of 1."""
    text = f"{percent:f}".rstrip("0").rstrip(".")
    assert Chance.parse(f"{text} %") == Chance.parse(float(text) / 100) == float(text) / 100


def test_moments_are_shown_in_utc() -> None:
    """As RFC 3339 has them."""
    assert format_moment(1798761600.0) == "2027-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (10, 10),
        (0.25, 0.25),
        ("200ms", 0.2),
        ("5", 5),
        (" 5 s ", 5),
        ("1.5min", 90),
        ("2 h", 7200),
        ("1d", 86400),
        (999_999_999, 999_999_999),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """A number of seconds, or text with a unit."""
    assert Seconds.parse(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [0, -1, 1e9, "0", "1e3", "5 m", "5 s 3", "", "-5", "five", True, None, [1], float("nan")]
)
def test_what_is_no_duration_is_a_value_error(value: object) -> None:
    """Nothing that would never end or be over at once, nor a unit that could be two."""
    with pytest.raises(ValueError, match="duration"):
        Seconds.parse(value)


def test_a_share_is_a_number_or_a_part_of_what_there_is_room_for() -> None:
    """Never less than one; it is written as it was read."""
    assert [Share.parse(value).of(360) for value in (7, "25%", " 12.5 % ", "100%", "0.01%")] == [7, 90, 45, 360, 1]
    assert [str(Share.parse(value)) for value in (7, "25%", "12.50%")] == ["7", "25%", "12.5%"]
    assert repr(Share.parse("25%")) == "Share('25%')"
    assert len({Share.parse("25%"), Share.parse("25.0 %"), Share.parse(25)}) == 2
    assert Share.parse(25) != 25


@pytest.mark.parametrize("value", [0, -1, 1_000_001, True, 2.5, "25", "0%", "101%", "-1%", "%", None, "٢%"])
def test_what_is_no_share(value: object) -> None:
    """The message has the value, and what would be one."""
    with pytest.raises(ValueError, match='expected a number of 1 to 1000000, or a share such as "25%"'):
        Share.parse(value)


@pytest.mark.parametrize(
    ("value", "seconds"), [(0, inf), ("0 s", inf), (inf, inf), ("never", inf), (5, 5.0), ("1 h", 3600.0)]
)
def test_an_idle_time_may_be_endless(value: object, seconds: float) -> None:
    """0, infinity and "never" turn it off; anything else is a duration."""
    assert Idle.parse(value) == seconds
    assert isinstance(Idle.parse(value), Idle)


@pytest.mark.parametrize("value", [-1, False, -inf, "Never", "", "-0", None])
def test_what_is_no_idle_time(value: object) -> None:
    """As for any duration; the message says what else there is."""
    with pytest.raises(ValueError, match=r'duration.*; for any time it is 0 or "never"$'):
        Idle.parse(value)


@pytest.mark.parametrize(("value", "seconds"), [("never", inf), (inf, inf), (5, 5.0), ("1 min", 60.0)])
def test_draining_may_take_as_long_as_it_takes(value: object, seconds: float) -> None:
    """``timeouts.drain``: "never" has no end."""
    assert Drain.parse(value) == seconds
    assert isinstance(Drain.parse(value), Drain)


@pytest.mark.parametrize("value", [0, -1, "always", True, None])
def test_a_time_to_drain_is_not_nothing(value: object) -> None:
    """0 could be taken for no end: it is none of both."""
    with pytest.raises(ValueError, match='for as long as it takes it is "never"'):
        Drain.parse(value)


@pytest.mark.parametrize(
    ("value", "chance"),
    [(0, 0.0), (1, 1.0), (0.25, 0.25), ("10%", 0.1), (" 0.5 % ", 0.005), ("100%", 1.0), ("0%", 0.0)],
)
def test_a_chance_is_a_number_or_a_share(value: object, chance: float) -> None:
    """From nothing to all, both included."""
    found = Chance.parse(value)
    assert type(found) is Chance
    assert found == pytest.approx(chance)


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, nan, inf, -inf, 10**400, True, None, "", "0.1", "10", "110%", "-1%", "nan%", "9" * 400 + "%"]
)
def test_what_is_no_chance(value: object) -> None:
    """It says what was expected."""
    with pytest.raises(ValueError, match=r'expected a number from 0 to 1, or text such as "10%"$'):
        Chance.parse(value)


@pytest.mark.parametrize(
    ("value", "seconds"), [(True, 0.0), (0, 0.0), (0.0, 0.0), ("0", 0.0), ("0 s", 0.0), (5, 5.0), ("200ms", 0.2)]
)
def test_an_onset_may_be_at_once(value: object, seconds: float) -> None:
    """``true`` and 0 are at once, everything else is a duration."""
    found = Onset.parse(value)
    assert (type(found), found) == (Onset, seconds)


@pytest.mark.parametrize("value", [False, None, -1, nan, inf, 10**400, "", "-1 s", "soon", "99999999999 s", []])
def test_what_is_no_onset(value: object) -> None:
    """``false`` is nothing that begins: the key is left out for that."""
    with pytest.raises(ValueError, match=r"; for at once it is true$"):
        Onset.parse(value)


@pytest.mark.parametrize("kind", [Size, Rate, Bandwidth, Seconds, Share, Chance, Onset, Moment])
@pytest.mark.parametrize("value", [10**400, -(10**400), "9" * 400, "9" * 400 + " MB", "9" * 400 + "/s", nan, inf, -inf])
def test_huge_values_are_refused(kind: Any, value: object) -> None:
    """What no float can hold is out of bounds, as everything else that is too much."""
    with pytest.raises(ValueError, match=r"\w"):
        kind.parse(value)


@given(st.floats(-6e10, 2.4e11))
def test_moments_read_back(seconds: float) -> None:
    """Also those of the years before 1000."""
    assert Moment.parse(format_moment(seconds)) == pytest.approx(seconds, abs=1)
