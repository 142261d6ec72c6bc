"""Parameters in the user name, as commercial pools of proxies have them: ``alice-country-de-session-7f3a-ttl-10m``.

A grammar names the keys and what each of them selects. The text before the first key is the user's name, and the
password is that user's; after it keys and values alternate. A name without any key is just a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

Selects = Literal["label", "session", "ttl"]
"""What a key selects: members of a pool by a label, a session that keeps its member, for how long."""

SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
TTL = re.compile(r"(\d{1,9})(s|m|min|h|d)?", re.ASCII)
MAX_VALUE = 64
"""Characters of a value: a client that makes up a token does not need a long one."""

MAX_TTL = 30 * 86400
"""Seconds."""


class Parameters(NamedTuple):
    """What a user name says in addition to the name of the user."""

    labels: tuple[str, ...] = ()
    session: str | None = None
    ttl: float | None = None
    """In seconds."""


NONE = Parameters()


class Grammar:
    """Which keys there are.

    Args:
        keys: by key, what its value selects.
        separator: between the name, keys and values; one character.

    Raises:
        ValueError: a key is empty or has the separator in it, or the separator is invalid.
    """

    def __init__(self, keys: Mapping[str, Selects], separator: str = "-") -> None:
        if len(separator) != 1 or separator.isalnum():
            raise ValueError(f"{separator!r}, expected one character that is not a letter or a digit")
        for key in keys:
            if not key or separator in key or not key.isprintable():
                raise ValueError(f"{key!r}, expected a word without {separator!r}")
        self.keys = dict(keys)
        self.separator = separator

    def __bool__(self) -> bool:
        return bool(self.keys)

    def read(self, name: str) -> tuple[str, Parameters]:
        """Split a user name.

        Returns:
            The user's own name, and the parameters.

        Raises:
            ValueError: after the first key something is not a key, comes twice, or has no valid value.
        """
        words = name.split(self.separator)
        first = next((place for place, word in enumerate(words) if place and word in self.keys), None)
        if first is None:
            return name, NONE
        labels: list[str] = []
        found: dict[str, str] = {}
        rest = words[first:]
        for key, value in zip(rest[::2], [*rest[1::2], ""], strict=False):
            selects = self.keys.get(key)
            if selects is None:
                raise ValueError(f"user name: unknown key {key[:MAX_VALUE]!r}, expected one of: {', '.join(self.keys)}")
            if not 0 < len(value) <= MAX_VALUE:
                raise ValueError(f"user name: {key}: expected a value of 1 to {MAX_VALUE} characters")
            if key in found:
                raise ValueError(f"user name: {key} twice")
            found[key] = value
            if selects == "label":
                labels.append(value)
        by_kind = {self.keys[key]: value for key, value in found.items()}
        ttl = by_kind.get("ttl")
        return self.separator.join(words[:first]), Parameters(
            tuple(labels), by_kind.get("session"), None if ttl is None else parse_ttl(ttl)
        )


def parse_ttl(text: str) -> float:
    """Read ``600``, ``10m``, ``1h`` as seconds. Raises ValueError."""
    found = TTL.fullmatch(text)
    seconds = 0 if found is None else int(found[1]) * SECONDS[found[2] or ""]
    if not 0 < seconds <= MAX_TTL:
        raise ValueError(f"user name: {text!r} is not a time to live, expected such as 600 or 10m, at most 30d")
    return seconds
