"""Periods: the day or the month that a quota is for, in a time zone."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from tabi.policy.hours import load_zone

Unit = Literal["day", "month"]

BACK = 86400
"""Seconds that a clock may be set back without a new period. If it is set back further, it was wrong before."""


class Period(NamedTuple):
    """A day or a month as a zone has it."""

    unit: Unit
    zone: str = "UTC"

    def start(self, now: float) -> int:
        """The first second of the period that ``now`` is in; both in seconds since 1970."""
        zone = load_zone(self.zone)
        today = datetime.fromtimestamp(now, zone).date()
        return first_second(today if self.unit == "day" else today.replace(day=1), zone)

    def end(self, now: float) -> int:
        """The first second of the next one."""
        zone = load_zone(self.zone)
        today = datetime.fromtimestamp(now, zone).date()
        if self.unit == "day":
            return first_second(today + timedelta(days=1), zone)
        return first_second((today.replace(day=1) + timedelta(days=32)).replace(day=1), zone)

    def turn(self, stored: int, used: int, now: float) -> tuple[int, int]:
        """What a count becomes at a given time.

        Args:
            stored: when the period began in which it was counted, 0 for none.
            used: the count.
            now: seconds since 1970.

        Returns:
            The period's start and the count: 0 in a new period, as it was in the same one. If the clock was set back,
            no period begins again: by up to a day the later period goes on, by more the count moves to the present one.
        """
        start = self.start(now)
        if start > stored:
            return start, 0
        return (stored if stored <= now + BACK else start), used


def first_second(day: date, zone: ZoneInfo) -> int:
    """The first second of a day, in seconds since 1970: midnight, or the next moment if a zone skips midnight.

    The time stamp of a midnight that does not exist is by the offset before it, which is just where the gap ends.
    """
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
