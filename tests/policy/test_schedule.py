"""Schedules: what is read, and when a fault acts: through midnight, through the days on which clocks are moved, and in
cycles. `Schedule.next_look` never misses a change and never spins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from datetime import time as TimeOfDay
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.schedule import (
    ALWAYS,
    LONGEST_LOOK,
    SHORTEST_LOOK,
    Clock,
    Cycle,
    Daily,
    Schedule,
)

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
SPRING = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
"""When the clocks of Berlin went from 02:00 to 03:00."""
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()
"""When they went from 03:00 back to 02:00."""

DAYS = {"no change": NOON, "spring": SPRING, "autumn": AUTUMN}

BAD = [
    7,
    True,
    None,
    "",
    ",",
    "30 s good",
    "30 s good,",
    "5 s gone, 30 s good",
    "30 s, 5 s",
    "30 s good, 5 s gone, 1 s",
]


def clock(text: str, zone: str = "Europe/Berlin") -> Daily:
    """A time of day."""
    when = Clock.parse(f"{text} {zone}").when
    assert isinstance(when, Daily)
    return when


def daily(begin: str | None, end: str | None, zone: str = "Europe/Berlin") -> Schedule:
    """A schedule of times of day."""
    first, last = (None if text is None else clock(text, zone) for text in (begin, end))
    return Schedule(first, last)


def minutes(schedule: Schedule, around: float) -> list[str]:
    """The minutes of 36 hours on the wall clock of Berlin, UTC behind it, at which a schedule begins or ends to act."""
    found = []
    start = around - 18 * 3600
    for before, now in pairwise(start + minute * 60 for minute in range(36 * 60)):
        if schedule.acts(before, 0) != schedule.acts(now, 0):
            local = datetime.fromtimestamp(now, BERLIN)
            found.append(f"{'+' if schedule.acts(now, 0) else '-'}{local:%H:%M}{local.utcoffset()!s:.1}")
    return found


# --- what is read ---


@pytest.mark.parametrize(
    ("text", "good", "gone"),
    [
        ("30 s good, 5 s gone", 30.0, 5.0),
        ("  1min good ,200ms gone ", 60.0, 0.2),
        ("30 good, 5 gone", 30.0, 5.0),
        ("10 ms good, 10 ms gone", 0.01, 0.01),
    ],
)
def test_a_cycle_is_read(text: str, good: float, gone: float) -> None:
    """Each part in any unit of a duration, and shown as it was written."""
    cycle = Cycle.parse(text)
    assert (cycle.good, cycle.gone, cycle.whole) == (good, gone, good + gone)
    assert str(cycle) == text.strip()
    assert repr(cycle) == f"Cycle({text.strip()!r})"
    assert cycle == Cycle.parse(text)
    assert hash(cycle) == hash(Cycle.parse(text))
    assert cycle != text


@pytest.mark.parametrize("value", BAD)
def test_what_is_no_cycle(value: object) -> None:
    """Both parts are there, in this order."""
    with pytest.raises(ValueError, match=r'expected a cycle such as "30 s good, 5 s gone"$'):
        Cycle.parse(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 s good, 5 s gone", "a duration is more than 0"),
        ("5 s good, -1 s gone", "is not a duration"),
        ("nan good, inf gone", "is not a duration"),
        ("5 s good, 9e9 gone", "is not a duration"),
        ("5 s good, 99999999999 s gone", "less than 1e9 seconds"),
        ("1 ms good, 5 s gone", "expected parts of 10 ms or more"),
        (f"{'9' * 400} s good, 5 s gone", "less than 1e9 seconds"),
    ],
)
def test_the_parts_of_a_cycle_have_bounds(text: str, message: str) -> None:
    """None is endless, or so short that its changes would be work for nothing."""
    with pytest.raises(ValueError, match=message):
        Cycle.parse(text)


@pytest.mark.parametrize(
    ("value", "text", "when"),
    [
        ("22:00", "22:00", Daily(TimeOfDay(22), ZoneInfo("UTC"))),
        (" 22:00:30  Europe/Berlin ", "22:00:30  Europe/Berlin", Daily(TimeOfDay(22, 0, 30), BERLIN)),
        (TimeOfDay(6, 30), "06:30:00", Daily(TimeOfDay(6, 30), ZoneInfo("UTC"))),
        (TimeOfDay(6, 30, 1, 500), "06:30:01", Daily(TimeOfDay(6, 30, 1), ZoneInfo("UTC"))),
        ("2027-01-01T12:00:00Z", "2027-01-01T12:00:00Z", 1798804800.0),
        ("2027-01-01T13:00:00+01:00", "2027-01-01T12:00:00Z", 1798804800.0),
        (datetime(2027, 1, 1, 12), "2027-01-01T12:00:00Z", 1798804800.0),
        (datetime(2027, 1, 1, 12, tzinfo=UTC).date(), "2027-01-01T00:00:00Z", 1798761600.0),
    ],
)
def test_a_clock_is_read(value: object, text: str, when: Daily | float) -> None:
    """Times of day with or without a zone, points of time of any zone, as text or as TOML has them."""
    found = Clock.parse(value)
    assert (str(found), found.when) == (text, when)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("25:00", "not a time of day"),
        ("24:00", "expected 00:00 to 23:59:59"),
        ("12:60", "not a time of day"),
        ("12:00:60", "not a time of day"),
        ("12:00 Mars/Base", "unknown time zone 'Mars/Base'"),
        ("12:00 ../../etc/passwd", "unknown time zone"),
        ("8:00", "expected a time of day such as"),
        ("12:00 Europe/Berlin x", "expected a time of day such as"),
        ("noon", "expected a time of day such as"),
        (True, "expected a time of day such as"),
        (60, "expected a time of day such as"),
        (1798804800.0, "expected a time of day such as"),
        (None, "expected a time of day such as"),
        (float("nan"), "expected a time of day such as"),
        (1e300, "expected a time of day such as"),
        (10**400, "expected a time of day such as"),
    ],
)
def test_what_is_no_clock(value: object, message: str) -> None:
    """A message of one line says what was expected."""
    with pytest.raises(ValueError, match=message) as caught:
        Clock.parse(value)
    assert "\n" not in str(caught.value)


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.datetimes() | st.times()
NEAR = st.from_regex(r"[0-9]{1,3} ?(ms|s|min)? (good|gone), ?[0-9]{1,3} ?(s|h) (good|gone)", fullmatch=True)
TIME = st.from_regex(r"[0-9]{2}:[0-9]{2}(:[0-9]{2})?( (UTC|Europe/Berlin|Asia/Kathmandu))?", fullmatch=True)


@given(ANY | NEAR | TIME)
def test_any_value_is_read_or_refused(value: object) -> None:
    """Nothing but a ValueError comes out, and what is read can be written and read again."""
    for kind in (Cycle, Clock):
        try:
            found = kind.parse(value)
        except ValueError:
            continue
        assert kind.parse(str(found)) == found


# --- when it acts ---


def test_without_anything_it_always_acts() -> None:
    """And nobody needs to ask."""
    assert not ALWAYS
    assert Schedule(None, 5.0)
    assert ALWAYS.acts(NOON, 0)
    assert ALWAYS.next_look(NOON, 0) == LONGEST_LOOK


def test_points_of_time() -> None:
    """From the first on, until before the second, or with one of both."""
    both, begin, end = Schedule(100.0, 200.0), Schedule(100.0), Schedule(None, 200.0)
    assert [both.acts(now, 0) for now in (99.9, 100, 199.9, 200)] == [False, True, True, False]
    assert [begin.acts(now, 0) for now in (99.9, 100, 1e9)] == [False, True, True]
    assert [end.acts(now, 0) for now in (0, 199.9, 200)] == [True, True, False]
    assert [both.next_look(now, 0) for now in (40, 100, 200)] == [60, 100, LONGEST_LOOK]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
def test_times_of_day(zone: str) -> None:
    """Within a day, across midnight, and with one of both: until midnight, or from midnight."""

    def acts(schedule: Schedule, text: str) -> bool:
        now = datetime.fromisoformat(f"2026-06-03T{text}").replace(tzinfo=ZoneInfo(zone)).timestamp()
        return schedule.acts(now, 0)

    for begin, end, inside, outside in (
        ("08:00", "18:00", ("08:00", "17:59:59"), ("07:59:59", "18:00", "00:00")),
        ("22:00", "06:00", ("22:00", "23:59:59", "00:00", "05:59:59"), ("06:00", "21:59:59")),
        ("22:00", "00:00", ("22:00", "23:59:59"), ("00:00", "21:59:59")),
        ("22:00", None, ("22:00", "23:59:59"), ("00:00", "21:59:59")),
        (None, "06:00", ("00:00", "05:59:59"), ("06:00", "23:59:59")),
        ("00:00", None, ("00:00", "23:59:59"), ()),
        (None, "00:00:01", ("00:00",), ("00:00:01", "23:59:59")),
    ):
        schedule = daily(begin, end, zone)
        assert all(acts(schedule, text) for text in inside), (begin, end)
        assert not any(acts(schedule, text) for text in outside), (begin, end)


@pytest.mark.parametrize(
    ("begin", "end", "changes"),
    [
        ("02:15", "02:45", []),  # it does not come
        ("01:30", "02:30", ["+01:301", "-03:002"]),
        ("02:30", "03:30", ["+03:002", "-03:302"]),
        ("01:00", "04:00", ["+01:001", "-04:002"]),
        ("22:00", "02:30", ["+22:001", "-03:002"]),
        ("02:30", "22:00", ["-22:001", "+03:002"]),
        ("02:30", None, ["-00:001", "+03:002"]),
        (None, "02:30", ["+00:001", "-03:002"]),
    ],
)
def test_the_day_on_which_clocks_are_put_forward(begin: str | None, end: str | None, changes: list[str]) -> None:
    """What lies in the hour that is left out is skipped; what begins or ends in it does so at its end."""
    assert minutes(daily(begin, end), SPRING) == changes


@pytest.mark.parametrize(
    ("begin", "end", "changes"),
    [
        ("02:15", "02:45", ["+02:152", "-02:452", "+02:151", "-02:451"]),
        ("01:30", "02:30", ["+01:302", "-02:302", "+02:001", "-02:301"]),
        ("02:30", "03:30", ["+02:302", "-02:001", "+02:301", "-03:301"]),
        ("01:00", "04:00", ["+01:002", "-04:001"]),
    ],
)
def test_the_day_on_which_clocks_are_put_back(begin: str, end: str, changes: list[str]) -> None:
    """The hour that comes twice counts twice."""
    assert minutes(daily(begin, end), AUTUMN) == changes


def test_cycles() -> None:
    """Good first, then gone, by the clock that nobody moves; within from and until only."""
    cycle = Schedule(None, None, Cycle.parse("30 s good, 5 s gone"))
    assert [at for at in range(71) if cycle.acts(0, at)] == [*range(30, 35), *range(65, 70)]
    assert not cycle.acts(0, 29.99)
    assert [cycle.next_look(0, at) for at in (0, 29, 30, 34, 35)] == [30, 1, 5, 1, 30]
    until = Schedule(100.0, 200.0, cycle.every)
    assert [until.acts(now, 31) for now in (99, 100, 200)] == [False, True, False]
    assert until.next_look(99.5, 0) == 0.5


@pytest.mark.parametrize(
    ("schedule", "now", "begins"),
    [
        (ALWAYS, NOON, NOON),
        (Schedule(None, None, Cycle.parse("30 s good, 5 s gone")), NOON, NOON),
        (Schedule(NOON + 1e8), NOON, NOON + 1e8),
        (Schedule(NOON - 1, NOON + 1), NOON, NOON),
        (Schedule(NOON - 2, NOON - 1), NOON, None),
        (Schedule(None, NOON), NOON, None),
        (daily("13:00", "14:00", "UTC"), NOON, NOON + 3600),
        (daily("11:00", "14:00", "UTC"), NOON, NOON),
        (daily("11:00", "12:00", "UTC"), NOON, NOON + 23 * 3600),
        (daily(None, "12:00", "UTC"), NOON, NOON + 12 * 3600),
        (daily("02:15", "02:45"), SPRING - 3600, SPRING + 23.25 * 3600),
    ],
)
def test_when_it_acts_next(schedule: Schedule, now: float, begins: float | None) -> None:
    """Now, later, or never again; the cycle is another matter, which nobody outside of the server knows."""
    assert schedule.begins(now) == (None if begins is None else pytest.approx(begins))


# --- when to look again ---

TIMES = st.builds(TimeOfDay, st.integers(0, 23), st.integers(0, 59), st.sampled_from([0, 0, 1, 59]))
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"])
MOMENTS = st.floats(-7200, 7200)
CYCLES = st.none() | st.sampled_from(["30 s good, 5 s gone", "10 ms good, 1 h gone", "37 min good, 11 min gone"]).map(
    Cycle.parse
)


@st.composite
def schedules(draw: st.DrawFn, around: float) -> Schedule:
    """Any schedule that may be written, with changes near a moment."""
    every = draw(CYCLES)
    if draw(st.booleans()):
        points = st.none() | MOMENTS.map(lambda late: around + late)
        return Schedule(draw(points), draw(points), every)
    zone = ZoneInfo(draw(ZONES))
    times = st.none() | TIMES.map(lambda time: Daily(time, zone))
    return Schedule(draw(times), draw(times), every)


@pytest.mark.parametrize("day", DAYS)
@given(st.data())
def test_no_change_is_missed(day: str, data: st.DataObject) -> None:
    """Between now and the next look it acts as now, or does not as now; and the next look is later, at most an hour."""
    around = DAYS[day]
    schedule = data.draw(schedules(around))
    now, seconds = around + data.draw(MOMENTS), data.draw(st.floats(0, 1e6))
    wait = schedule.next_look(now, seconds)
    assert SHORTEST_LOOK <= wait <= LONGEST_LOOK
    if wait > SHORTEST_LOOK:
        share = data.draw(st.floats(0, 1, exclude_max=True))
        later = min(wait * share, wait - 1e-4)  # clocks have no more digits than that
        assert schedule.acts(now + later, seconds + later) == schedule.acts(now, seconds)


@pytest.mark.parametrize("day", DAYS)
@pytest.mark.parametrize("times", [("02:30", "03:00"), ("02:15", "02:45"), ("01:59:59", "02:00"), ("22:00", "02:30")])
def test_looking_finds_every_change_of_a_day(day: str, times: tuple[str, str]) -> None:
    """By looking again and again, in a few dozen looks, each change is seen within its second."""
    schedule = daily(*times)
    start = DAYS[day] - 12 * 3600
    seen, now, looks = [], start, 0
    while now < start + 86400:
        acts, now = schedule.acts(now, 0), now + schedule.next_look(now, 0)
        looks += 1
        if schedule.acts(now, 0) != acts:
            seen.append(now)
    acted = [schedule.acts(start + number, 0) for number in range(86401)]
    every = [start + number for number in range(1, 86401) if acted[number] != acted[number - 1]]
    assert seen == pytest.approx([second for second in every if second <= now], abs=0.01)
    assert looks < 40


def test_a_zone_of_half_an_hour() -> None:
    """Lord Howe puts its clocks forward by 30 minutes: midnight and the move are looked at as anywhere."""
    moved = datetime(2026, 10, 3, 15, 30, tzinfo=UTC).timestamp()
    schedule = daily("02:10", None, "Australia/Lord_Howe")
    assert schedule.next_look(moved - 60, 0) == 60
    assert not schedule.acts(moved - 1, 0)
    assert schedule.acts(moved, 0)
    assert timedelta(seconds=schedule.next_look(moved, 0)) <= timedelta(hours=1)
