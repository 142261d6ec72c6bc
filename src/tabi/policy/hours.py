"""Hours: times of the week at which a rule holds, such as ``Mon-Fri 08:00-18:00 Europe/Berlin``.

    [DAYS] [TIMES] [ZONE]     DAYS   Mon-Fri, Sat,Sun, Fri-Mon, daily; all days if left out
                              TIMES  08:00-18:00, 22:00-06:00,12:00-13:00; all day if left out
                              ZONE   a name of the IANA database; UTC if left out

The wall clock of the zone decides, also on the days on which it is moved. Times across midnight belong to the day on
which they begin; the end is the first minute that does not belong to them.
"""

from __future__ import annotations

import re
from datetime import datetime
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60
WEEK = 7 * DAY
TIMES = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
EXPECTED = 'expected hours such as "Mon-Fri 08:00-18:00 Europe/Berlin"'


def load_zone(name: str) -> ZoneInfo:
    """A time zone by its name. Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # for a path, a folder, or an unknown name
        raise ValueError(f"unknown time zone {name!r}, expected one such as Europe/Berlin or UTC") from None


class Hours:
    """Some minutes of the week."""

    __slots__ = ("minutes", "text", "zone")

    def __init__(self, text: str, minutes: bytes, zone: ZoneInfo) -> None:
        self.text = text
        self.minutes = minutes  # of the week from Monday 00:00: 1 if the rule holds
        self.zone = zone

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Hours({self.text!r})"

    def includes(self, now: float) -> bool:
        """Whether a time belongs to them; ``now`` is in seconds since 1970."""
        local = datetime.fromtimestamp(now, self.zone)
        return self.minutes[local.weekday() * DAY + local.hour * 60 + local.minute] == 1


def parse_hours(text: str) -> Hours:
    """Read hours. Raises ValueError, which says what was wrong."""
    words = text.split()
    if not 1 <= len(words) <= 3:
        raise ValueError(f"{text!r}, {EXPECTED}")
    zone, days, times = "UTC", list(range(7)), [(0, DAY)]
    rest = list(words)
    if is_days(rest[0]):
        days = parse_days(rest.pop(0))
    if rest and ":" in rest[0]:
        times = [parse_times(part) for part in rest.pop(0).split(",")]
    if len(rest) == len(words) or len(rest) > 1:
        raise ValueError(f"{rest[0]!r} is neither days nor times, {EXPECTED}")
    if rest:
        zone = rest[0]
    minutes = bytearray(WEEK)
    for day in days:
        for begin, end in times:
            for minute in range(day * DAY + begin, day * DAY + end):
                minutes[minute % WEEK] = 1
    return Hours(" ".join(words), bytes(minutes), load_zone(zone))


def is_days(word: str) -> bool:
    """Whether a word is meant to be days: it begins with one."""
    return re.split("[-,]", word.lower())[0] in (*DAYS, "daily")


def parse_days(word: str) -> list[int]:
    """Read days, 0 for Monday. Raises ValueError."""
    if word.lower() == "daily":
        return list(range(7))
    days: list[int] = []
    for part in word.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!r} are not days, expected such as Mon-Fri or Sat,Sun")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        days += [(begin + index) % 7 for index in range((end - begin) % 7 + 1)]
    return days


def parse_times(text: str) -> tuple[int, int]:
    """Read times as minutes of the day, the end beyond 1440 if it is on the next day. Raises ValueError."""
    found = TIMES.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} are not times, expected such as 08:00-18:00")
    hour, minute, last_hour, last_minute = map(int, found.groups())
    begin, end = hour * 60 + minute, last_hour * 60 + last_minute
    if minute > 59 or last_minute > 59 or begin >= DAY or end > DAY:
        raise ValueError(f"{text!r} is not a time of day, expected 00:00 to 24:00")
    if begin == end:
        raise ValueError(f"{text!r} begins and ends at the same time; the whole day is 00:00-24:00")
    return begin, end if end > begin else end + DAY
