"""International names in ASCII (RFC 3490), at a price that a datagram to a new name may have.

Python's codec ``idna`` gives the same, but takes 5 microseconds for each character. Labels are remembered here, also
those that are not valid, and so is what the tables of RFC 3454 say of a character.
"""

from __future__ import annotations

import re
import stringprep
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from unicodedata import ucd_3_2_0

DOTS = re.compile("[.\u3002\uff0e\uff61]")
"""What separates labels (RFC 3490 section 3.1)."""

MAX_LABEL = 63
PROHIBITED = (
    stringprep.in_table_c12,
    stringprep.in_table_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
"""Tables of characters that a name does not have (RFC 3491 section 5)."""

DIGITS = "abcdefghijklmnopqrstuvwxyz0123456789"


def encode_name(text: str) -> str:
    """Convert a name. The caller limits its length.

    Raises:
        ValueError: it is not an international name.
    """
    labels = DOTS.split(text)
    end = "" if labels[-1] else "."
    found = list(map(encode_label, labels[:-1] if end else labels))
    if None in found:
        raise ValueError(f"{text!r} is not a valid international name")
    return ".".join(map(str, found)) + end


@lru_cache(4096)
def encode_label(label: str) -> str | None:
    """ToASCII of RFC 3490 section 4.1, without the rules of host names; None where it fails."""
    found: str | None = label if label.isascii() else prepare(label)
    if found is not None and not found.isascii():
        found = None if found.startswith("xn--") else "xn--" + punycode(found)
    return found if found is not None and 0 < len(found) <= MAX_LABEL else None


def prepare(label: str) -> str | None:
    """Nameprep (RFC 3491): a label in its one form; None for one that has a character it must not have."""
    label = ucd_3_2_0.normalize("NFKC", "".join(map(fold, label)))
    kinds = [kind_of(character) for character in label]
    if "prohibited" in kinds:
        return None
    if "right" in kinds and ("left" in kinds or kinds[0] != "right" or kinds[-1] != "right"):
        return None  # RFC 3454 section 6
    return label


@lru_cache(8192)
def fold(character: str) -> str:
    """A character as RFC 3491 section 3 maps it: to nothing, or to lower case."""
    return "" if stringprep.in_table_b1(character) else stringprep.map_table_b2(character)


@lru_cache(8192)
def kind_of(character: str) -> str:
    """``prohibited``, or how it is written: to the ``right``, which is Arabic, to the ``left``, or neither."""
    if any(table(character) for table in PROHIBITED):
        return "prohibited"
    if stringprep.in_table_d1(character):
        return "right"
    return "left" if stringprep.in_table_d2(character) else ""


def punycode(label: str) -> str:
    """A label in the letters of ASCII (RFC 3492 section 6.3), without ``xn--``."""
    placed = [at for at, character in enumerate(label) if character.isascii()]  # in their order
    digits = [label[at] for at in placed] + ["-"] * bool(placed)
    done = first = len(placed)
    delta, bias, last, passed = 0, 72, 127, done + 1
    for point, at in sorted((ord(character), at) for at, character in enumerate(label) if not character.isascii()):
        place = bisect_left(placed, at)
        if point != last:
            # The rest of the last round, and the rounds in which nothing is inserted.
            delta += done + 1 - passed + (point - last - 1) * (done + 1)
            last, passed = point, 0
        delta += place - passed
        digits += to_digits(delta, bias)
        placed.insert(place, at)
        done, passed = done + 1, place + 1
        bias = adapt(delta, done, done == first + 1)
        delta = 0
    return "".join(digits)


def to_digits(number: int, bias: int) -> Iterator[str]:
    """A number as RFC 3492 section 3.3 writes it, the last digit first."""
    least = 36 - bias
    while number >= (low := 1 if least < 1 else 26 if least > 26 else least):
        number, digit = divmod(number - low, 36 - low)
        yield DIGITS[low + digit]
        least += 36
    yield DIGITS[number]


def adapt(delta: int, count: int, first: bool) -> int:
    """The next bias (RFC 3492 section 6.1)."""
    delta = delta // 700 if first else delta // 2
    delta += delta // count
    bias = 0
    while delta > 455:
        delta //= 35
        bias += 36
    return bias + 36 * delta // (delta + 38)
