"""Schedule: when a fault acts. Pure: the clocks are passed in.

``from`` and ``until`` are points of time, or times of day in one zone. These go across midnight where ``until`` is the
earlier one; without the other, ``from`` holds until midnight and ``until`` from midnight. The wall clock of the zone
decides, as for `tabi.policy.hours`: an hour that is left out does not come, one that comes twice counts twice.
``every`` is a cycle, "30 s good, 5 s gone", by a clock that nobody moves: it begins with the fault.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from datetime import time as TimeOfDay
from math import ceil, floor
from typing import NamedTuple, Self
from zoneinfo import ZoneInfo

from tabi.policy.hours import load_zone
from tabi.policy.quantities import Moment, Seconds, format_moment, is_number

CLOCK = re.compile(r"(\d\d):(\d\d)(?::(\d\d))?(?:\s+(\S+))?", re.ASCII)

DAY = 86400.0
SHORTEST_PART = 0.01
"""Seconds of each part of a cycle at least, since each change costs a look at all sessions that have the fault."""

LONGEST_LOOK = 3600.0
"""Seconds after which a schedule is looked at again at the latest: somebody may set the clock meanwhile."""

SHORTEST_LOOK = 0.001

MANY_LOOKS = 200
"""Looks of more than two days, on each of which a time of day comes, unless clocks are put forward over it."""


MIDNIGHT = TimeOfDay()


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
        good, _, gone = value.partition(",") if isinstance(value, str) else ("", "", "")
        parts = [part.rsplit(None, 1) for part in (good, gone)]
        if [len(words) for words in parts] != [2, 2] or [words[1] for words in parts] != ["good", "gone"]:
            raise ValueError(f'{value!r}, expected a cycle such as "30 s good, 5 s gone"')
        seconds = [float(Seconds.parse(words[0])) for words in parts]
        if min(seconds) < SHORTEST_PART:
            raise ValueError(f"{value!r}, expected parts of {SHORTEST_PART * 1000:g} ms or more")
        return cls(str(value).strip(), *seconds)

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
            if is_number(value):  # seconds of what, since when?
                raise ValueError
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
        daily = begin if isinstance(begin, Daily) else end
        if isinstance(daily, Daily):
            first = begin.time if isinstance(begin, Daily) else MIDNIGHT
            last = end.time if isinstance(end, Daily) else None
            return between(first, last, datetime.fromtimestamp(now, daily.zone).time())
        return not (isinstance(begin, float) and now < begin) and not (isinstance(end, float) and now >= end)

    def next_look(self, now: float, seconds: float) -> float:
        """In how many seconds to look again: nothing changes before that; arguments as `acts`."""
        found = [LONGEST_LOOK]
        if self.every is not None:
            at, good, whole = seconds % self.every.whole, self.every.good, self.every.whole
            found.append(good - at if at < good else whole - at)
        for clock in (self.begin, self.end):
            if isinstance(clock, Daily):
                found += looks(clock, now)
            elif clock is not None and clock > now:
                found.append(clock - now)
        return max(SHORTEST_LOOK, min(found))

    def begins(self, now: float) -> float | None:
        """When it acts next, or ``now`` if it does already, in seconds since 1970, whatever its cycle says; None if it
        never does again."""
        bounds = self._replace(every=None)
        if isinstance(bounds.begin, float) and now < bounds.begin:
            return bounds.begin
        for _ in range(MANY_LOOKS):
            if bounds.acts(now, 0):
                return now
            now += bounds.next_look(now, 0)
        return None


ALWAYS = Schedule()


def between(first: TimeOfDay, last: TimeOfDay | None, time: TimeOfDay) -> bool:
    """Whether a time of day is one from the first on, and before the last: across midnight if that is the earlier one,
    until midnight if there is none."""
    if last is None:
        return time >= first
    if first <= last:
        return first <= time < last
    return time >= first or time < last


def looks(clock: Daily, now: float) -> list[float]:
    """In how many seconds the wall clock may come to a time of day, or to midnight, or is moved, within the next look.

    Until it is moved, and from then on, its distance from UTC is the same; no zone moves it twice in `LONGEST_LOOK`.
    """
    before, after = offset(clock.zone, now), offset(clock.zone, now + LONGEST_LOOK)
    found = []
    for distance in {before, after}:
        for time in (clock.time, MIDNIGHT):
            seconds = time.hour * 3600 + time.minute * 60 + time.second
            found.append(DAY - (now + distance - seconds) % DAY)
    if before != after:
        early, late = floor(now), ceil(now + LONGEST_LOOK)
        while late - early > 1:
            middle = (early + late) // 2
            if offset(clock.zone, middle) == before:
                early = middle
            else:
                late = middle
        found.append(late - now)
    return found


def offset(zone: ZoneInfo, now: float) -> float:
    """Seconds that the wall clock of a zone is before UTC."""
    found = datetime.fromtimestamp(now, zone).utcoffset() or timedelta(0)
    return found.total_seconds()
