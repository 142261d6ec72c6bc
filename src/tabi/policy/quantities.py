"""Durations, sizes, rates, shares, quotas and moments as tabi.toml has them. What cannot be read raises ValueError."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from math import inf
from typing import Self, cast

from tabi.policy.hours import load_zone
from tabi.policy.period import Period, Unit

OCTETS = {"b": 1} | {
    prefix + end: base**power
    for power, letter in enumerate("kmgt", 1)
    for base, prefix, end in ((1000, letter, "b"), (1024, letter, "ib"))
}
"""Octets of each unit, in small letters: kB is 1,000, KiB is 1,024."""

NUMBER = r"(\d+(?:\.\d+)?)\s*"
SIZE = re.compile(NUMBER + r"([A-Za-z]*)", re.ASCII)
RATE = re.compile(NUMBER + r"/\s*(s|min|h|d)", re.ASCII)
SHARE = re.compile(NUMBER + "%", re.ASCII)
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)?", re.ASCII)
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
BITS = {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}
MAX_SIZE = 1 << 62
MAX_NUMBER = 1_000_000
"""The largest number of a `Share`."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = -6e10, 2.5e11
"""The bounds of a moment in seconds: from the year 69 to 9891."""


def is_number(value: object) -> bool:
    """Whether a value of TOML is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def seconds_of(value: object) -> object:
    """The seconds of a duration that is text; anything else stays as it is."""
    if isinstance(value, str) and (found := DURATION.fullmatch(value.strip())):
        return float(found[1]) * UNITS[found[2] or "s"]
    return value


class Seconds(float):
    """A duration in seconds, more than 0."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a number, or a number with ms, s, min, h or d after it. Raises ValueError."""
        value = seconds_of(value)
        if not is_number(value):
            raise ValueError(f'{value!r} is not a duration, expected seconds such as 10 or text such as "200ms"')
        seconds = cast("float", value)
        if not 0 < seconds < 1e9:
            raise ValueError(f"a duration is more than 0 and less than 1e9 seconds, this one is {value!r}")
        return cls(seconds)


class Idle(Seconds):
    """A duration in seconds that may be endless: infinity."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read 0, infinity or ``"never"``, which are endless, or as `Seconds`. Raises ValueError."""
        seconds = seconds_of(value)
        if value == "never" or (is_number(seconds) and seconds in (0, inf)):
            return cls(inf)
        try:
            return cls(Seconds.parse(value))
        except ValueError as exc:
            raise ValueError(f'{exc}; for any time it is 0 or "never"') from None


class Drain(Seconds):
    """A duration in seconds, or infinity: as long as it takes."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read infinity or ``"never"``, which have no end, or as `Seconds`. Raises ValueError."""
        if value == "never" or (is_number(value) and value == inf):
            return cls(inf)
        try:
            return cls(Seconds.parse(value))
        except ValueError as exc:
            raise ValueError(f'{exc}; for as long as it takes it is "never"') from None


class Onset(float):
    """Seconds until something begins, 0 for at once."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read ``true``, which is at once, 0, or as `Seconds`. Raises ValueError."""
        seconds = seconds_of(value)
        if value is True or (is_number(seconds) and seconds == 0):
            return cls(0.0)
        try:
            return cls(Seconds.parse(value))
        except ValueError as exc:
            raise ValueError(f"{exc}; for at once it is true") from None


class Size(int):
    """Octets, more than 0."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read an integer, or a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB after it."""
        octets: object = value
        if isinstance(value, str) and (found := SIZE.fullmatch(value.strip())):
            factor = OCTETS.get(found[2].lower() or "b")
            octets = None if factor is None else round(min(float(found[1]) * factor, MAX_SIZE))
        if not isinstance(octets, int) or isinstance(octets, bool):
            raise ValueError(f'{value!r} is not a size, expected octets such as 65536 or text such as "10 MB"')
        if not 0 < octets < MAX_SIZE:
            raise ValueError(f"a size is more than 0 and less than 4 EiB, this one is {value!r}")
        return cls(octets)


def format_size(octets: int) -> str:
    """Octets as `Size.parse` reads them, in the largest unit that leaves a whole number."""
    for unit in ("TB", "GB", "TiB", "GiB", "MB", "MiB", "kB", "KiB"):
        if octets % OCTETS[unit.lower()] == 0:
            return f"{octets // OCTETS[unit.lower()]} {unit}"
    return f"{octets} B"


class Rate(float):
    """Events per second; ``count`` of them may come at once, and ``text`` is how it was written."""

    count: int
    text: str

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a number per second, or a number with /s, /min, /h or /d after it."""
        number, seconds, text = value, 1, f"{value}/s"
        if isinstance(value, str) and (found := RATE.fullmatch(value.strip())):
            number, seconds, text = float(found[1]), SECONDS[found[2]], value.strip()
        if not is_number(number):
            raise ValueError(f'{value!r} is not a rate, expected events per second such as 20 or text such as "20/s"')
        if not 1e-6 * seconds <= cast("float", number) <= 1e9 * seconds:
            raise ValueError(f"a rate is more than 0 and at most 1e9 per second, this one is {value!r}")
        amount = float(cast("float", number))
        rate = cls(amount / seconds)
        rate.count, rate.text = max(1, int(amount)), text
        return rate

    def __str__(self) -> str:
        return self.text


class Share:
    """A number of things, or so many per cent of those that there is room for."""

    __slots__ = ("number", "percent")

    def __init__(self, number: int, percent: float | None = None) -> None:
        self.number = number
        self.percent = percent

    @classmethod
    def parse(cls, value: object) -> Share:
        """Read a number, or text such as ``25%``. Raises ValueError."""
        if isinstance(value, str) and (found := SHARE.fullmatch(value.strip())) and 0 < float(found[1]) <= 100:
            return cls(0, float(found[1]))
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_NUMBER:
            return cls(value)
        raise ValueError(f'{value!r}, expected a number of 1 to {MAX_NUMBER}, or a share such as "25%"')

    def of(self, room: int) -> int:
        """The number, 1 at least, where there is room for so many."""
        return self.number if self.percent is None else max(1, int(room * self.percent / 100))

    def __str__(self) -> str:
        return str(self.number) if self.percent is None else f"{self.percent:g}%"

    def __repr__(self) -> str:
        return f"Share({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Share) and (self.number, self.percent) == (other.number, other.percent)

    def __hash__(self) -> int:
        return hash((self.number, self.percent))


class Bandwidth(float):
    """Octets per second."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read octets per second, or text such as ``10 MB/s``, ``512 KiB/s``, ``80 Mbit/s``."""
        number: object = value
        if isinstance(value, str) and value.strip().endswith("/s"):
            found = SIZE.fullmatch(value.strip().removesuffix("/s").strip())
            factor = found and (OCTETS.get(found[2].lower()) or BITS.get(found[2].lower()))
            number = float(found[1]) * factor if found and factor else None
        if not is_number(number):
            raise ValueError(
                f'{value!r} is not a bandwidth, expected octets per second such as 1000000 or text such as "10 MB/s"'
            )
        if not 1 <= cast("float", number) <= 1e12:
            raise ValueError(f"a bandwidth is 1 B/s to 1 TB/s, this one is {value!r}")
        return cls(cast("float", number))


class Chance(float):
    """A probability, or a share of all: 0 to 1."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a number from 0 to 1, or text such as ``10%``. Raises ValueError."""
        number: object = value
        if isinstance(value, str) and (found := SHARE.fullmatch(value.strip())):
            number = float(found[1]) / 100
        if not is_number(number) or not 0 <= cast("float", number) <= 1:
            raise ValueError(f'{value!r}, expected a number from 0 to 1, or text such as "10%"')
        return cls(cast("float", number))


class Quota:
    """A number of octets in each day or month."""

    __slots__ = ("octets", "period")

    def __init__(self, octets: int, period: Period) -> None:
        self.octets = octets
        self.period = period

    @classmethod
    def parse(cls, value: object) -> Quota:
        """Read text such as ``50 GB/month`` or ``2 GB/day Europe/Berlin``; without a zone it is UTC."""
        expected = f'{value!r} is not a quota, expected text such as "50 GB/month" or "2 GB/day Europe/Berlin"'
        if not isinstance(value, str):
            raise ValueError(expected)
        size, slash, rest = value.partition("/")
        unit, _, zone = rest.strip().partition(" ")
        if not slash or unit not in ("day", "month") or not size.strip():
            raise ValueError(expected)
        zone = zone.strip() or "UTC"
        load_zone(zone)
        return cls(Size.parse(size), Period(cast("Unit", unit), zone))

    def __str__(self) -> str:
        zone = "" if self.period.zone == "UTC" else f" {self.period.zone}"
        return f"{format_size(self.octets)}/{self.period.unit}{zone}"

    def __repr__(self) -> str:
        return f"Quota({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quota) and (self.octets, self.period) == (other.octets, other.period)

    def __hash__(self) -> int:
        return hash((self.octets, self.period))


class Moment(float):
    """A point of time, in seconds since 1970."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a date or a date and time of TOML, or its text. Without a zone it is UTC; a date is its first second."""
        moment: object = value
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value.strip())
            except ValueError:
                moment = None
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)
        if isinstance(moment, datetime):
            aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            moment = (aware - EPOCH).total_seconds()
        if is_number(moment) and FIRST <= cast("float", moment) < LAST:
            return cls(cast("float", moment))
        raise ValueError(f"{value!r} is not a time, expected such as 2027-01-01 or 2027-01-01T12:00:00Z")


def format_moment(seconds: float) -> str:
    """A point of time as RFC 3339 in UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y}".zfill(4) + f"{moment:-%m-%dT%H:%M:%SZ}"  # not all systems pad a year
