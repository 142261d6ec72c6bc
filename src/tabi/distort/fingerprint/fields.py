"""Fields of HTTP/1 in a browser's order and case. Their values, and which there are, stay the client's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

from tabi.distort.fingerprint.presets import Profile
from tabi.intercept.hooks import Handler, Hooks

Field = tuple[bytes, bytes]
Places = Mapping[bytes, tuple[int, bytes]]
"""Of names in lower case: where they stand, and how they are spelled."""

HOST = b"Host"


def places_of(profile: Profile) -> Places:
    """Where a profile's fields stand; Host is the first (`utls`, Carrying the canonical Chrome header set)."""
    names = [HOST, *(name for name, _ in profile.fields)]
    return {name.lower(): (place, name) for place, name in enumerate(names)}


def ordered(fields: Iterable[Field], places: Places) -> list[Field]:
    """Fields in the profile's order; those that it does not have follow, as they came. Fields with one name stay in
    their order."""
    last = (len(places), b"")
    return sorted(fields, key=lambda field: places.get(field[0].lower(), last)[0])


def spelled(fields: Iterable[Field], places: Places) -> list[Field]:
    """Fields with their names in the profile's case, as far as it has them."""
    return [(places.get(name.lower(), (0, name))[1], value) for name, value in fields]


class FieldOrder:
    """A hook that arranges the fields of each request.

    Args:
        places: see `Places`.
    """

    def __init__(self, places: Places) -> None:
        self.places = places

    def request(self, flow: Any) -> None:
        """See `intercept.hooks`."""
        headers = flow.request.headers
        fields = spelled(ordered(headers.raw, self.places), self.places)
        if fields != headers.raw:
            headers.raw = fields

    def around(self, hooks: Hooks) -> Hooks:
        """The same hooks, with this one behind them."""
        found = copy(hooks)
        found.request = (*hooks.request, Handler(self.request, "profile", hooks))
        return found
