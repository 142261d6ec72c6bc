"""Schedule: when a fault acts. Pure: the clocks are passed in.

``from`` and ``until`` are points of time, or times of day in a zone; these go across midnight where ``until`` is the
earlier one. ``every`` is a cycle, "30 s good, 5 s gone", by a clock that nobody moves: it begins with the fault.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from datetime import time as TimeOfDay
from typing import NamedTuple, Self
from zoneinfo import ZoneInfo

from tabi.policy.hours import load_zone
from tabi.policy.quantities import Moment, Seconds, format_moment

CYCLE = re.compile(r"\s*(.+?)\s+good\s*,\s*(.+?)\s+gone\s*", re.ASCII)
CLOCK = re.compile(r"(\d\d):(\d\d)(?::(\d\d))?(?:\s+(\S+))?", re.ASCII)

LONGEST_LOOK = 3600.0
"""Seconds after which a schedule is looked at again at the latest: clocks and zones may change meanwhile."""


class Daily(NamedTuple):
    """A time of each day."""

    time: TimeOfDay
    zone: ZoneInfo


class Text:
    """A value with the text that it was read from."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and str(other) == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class Cycle(Text):
    """Seconds without the fault, ``good``, then with it, ``gone``, and so on."""

    __slots__ = ("gone", "good")

    def __init__(self, text: str, good: float, gone: float) -> None:
        super().__init__(text)
        self.good = good
        self.gone = gone

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a cycle such as ``30 s good, 5 s gone``. Raises ValueError."""
        found = CYCLE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f'{value!r}, expected a cycle such as "30 s good, 5 s gone"')
        return cls(found[0].strip(), float(Seconds.parse(found[1])), float(Seconds.parse(found[2])))

    @property
    def whole(self) -> float:
        """Seconds of a cycle."""
        return self.good + self.gone


class Clock(Text):
    """A point of time, in seconds since 1970, or a time of each day."""

    __slots__ = ("when",)

    def __init__(self, text: str, when: Daily | float) -> None:
        super().__init__(text)
        self.when = when

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a time of TOML, or text such as ``22:00 Europe/Berlin``; both are UTC without a zone. Raises
        ValueError."""
        if isinstance(value, TimeOfDay):
            value = value.replace(tzinfo=None, microsecond=0).isoformat()
        if isinstance(value, str) and (found := CLOCK.fullmatch(value.strip())):
            try:
                time = TimeOfDay(int(found[1]), int(found[2]), int(found[3] or 0))
            except ValueError:
                raise ValueError(f"{value!r} is not a time of day, expected 00:00 to 23:59:59") from None
            return cls(value.strip(), Daily(time, load_zone(found[4] or "UTC")))
        try:
            moment = float(Moment.parse(value))
        except ValueError:
            raise ValueError(
                f'{value!r}, expected a time of day such as "22:00 Europe/Berlin", or a time such as '
                "2027-01-01T12:00:00Z"
            ) from None
        return cls(format_moment(moment), moment)


class Schedule(NamedTuple):
    """When a fault acts: always, if nothing is given."""

    begin: Daily | float | None = None
    end: Daily | float | None = None
    every: Cycle | None = None

    def __bool__(self) -> bool:
        return self != ALWAYS

    def acts(self, now: float, seconds: float) -> bool:
        """Whether it acts now.

        Args:
            now: seconds since 1970.
            seconds: since the fault was set, by a clock that nobody moves.
        """
        if self.every is not None and seconds % self.every.whole < self.every.good:
            return False
        begin, end = self.begin, self.end
        if isinstance(begin, Daily) and isinstance(end, Daily):
            return last_of(begin, now) > last_of(end, now)
        if isinstance(begin, float) and now < begin:
            return False
        if isinstance(end, float) and now >= end:
            return False
        if isinstance(begin, Daily):  # until the day is over
            return datetime.fromtimestamp(now, begin.zone).time() >= begin.time
        return not isinstance(end, Daily) or datetime.fromtimestamp(now, end.zone).time() < end.time

    def next_look(self, now: float, seconds: float) -> float:
        """In how many seconds it may change; arguments as `acts`."""
        found = [LONGEST_LOOK]
        if self.every is not None:
            at, good, whole = seconds % self.every.whole, self.every.good, self.every.whole
            found.append(good - at if at < good else whole - at)
        for clock in (self.begin, self.end):
            if isinstance(clock, Daily):
                found.append(next_of(clock, now) - now)
                found.append(next_of(Daily(TimeOfDay(), clock.zone), now) - now)
            elif clock is not None and clock > now:
                found.append(clock - now)
        return max(0.001, min(found))


ALWAYS = Schedule()


def at_of(clock: Daily, day: datetime) -> float:
    """When a time of day is on a day. In the hour that a clock is put forward by, it is an hour later; where it comes
    twice, the first one counts."""
    return datetime.combine(day.date(), clock.time, clock.zone).astimezone(UTC).timestamp()


def last_of(clock: Daily, now: float) -> float:
    """When a time of day was last, in seconds since 1970."""
    day = datetime.fromtimestamp(now, clock.zone)
    found = at_of(clock, day)
    return found if found <= now else at_of(clock, day - timedelta(days=1))


def next_of(clock: Daily, now: float) -> float:
    """When a time of day is next, in seconds since 1970."""
    day = datetime.fromtimestamp(now, clock.zone)
    found = at_of(clock, day)
    return found if found > now else at_of(clock, day + timedelta(days=1))
