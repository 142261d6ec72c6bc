"""Choosing: which entries a session is drawn for. Each entry is asked once for each session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from tabi.distort.draws import Drawn, Entry
from tabi.policy.distorts import Distort, Distorts
from tabi.session import Session

MOST_KNOWN = 100
"""Entries that a session remembers to have been drawn for. Beyond that those that are gone are forgotten."""


class Chosen(tuple[Drawn, ...]):
    """The entries that a session was drawn for, whether they act now or not."""

    asked: frozenset[Entry]
    """All that were asked, those that do not match too."""

    def __new__(cls, drawn: Iterable[Drawn], asked: frozenset[Entry]) -> Chosen:
        """Make one; a tuple cannot be filled later."""
        self = super().__new__(cls, drawn)
        self.asked = asked
        return self


def add(before: Chosen | None, drawn: Iterable[Drawn], asked: frozenset[Entry]) -> Chosen:
    """What a session was drawn for, and more. Entries that are gone are not asked again, so that they are forgotten;
    of those that it was drawn for the log tells, within `MOST_KNOWN`."""
    known = (*(before or ()), *drawn)
    if before is None:
        return Chosen(known, asked)
    if len(known) > MOST_KNOWN:
        known = tuple([one for one in known if not one.entry.gone])
    return Chosen(known, asked.union([entry for entry in before.asked if not entry.gone]))


class Group:
    """Entries that are asked together.

    Args:
        distorts: what they say.
        entries: by that.
    """

    def __init__(self, distorts: Distorts, entries: Mapping[Distort, Entry]) -> None:
        self.distorts = distorts
        self.entries = {distort: entries[distort] for distort in distorts}
        self.all = frozenset(self.entries.values())
        self.none = Chosen((), self.all)

    def __len__(self) -> int:
        return len(self.entries)

    def ask(self, session: Session, now: float) -> Chosen:
        """Ask those that were not asked for a session yet; ``session.distorted`` has all that it is drawn for.

        ``now`` is in seconds since 1970.
        """
        before: Chosen | None = session.distorted
        if before is not None and self.all <= before.asked:
            return before
        found = self.distorts.matching(session, now)
        if before is None and not found:
            session.distorted = self.none
            return self.none
        asked = () if before is None else before.asked
        new = [entry for distort in found if (entry := self.entries[distort]) not in asked]
        drawn = [one for entry in new if (one := entry.draw()) is not None]
        session.distorted = chosen = add(before, drawn, self.all)
        return chosen


# --- which entry is which, after a change ---


def draws_of(distort: Distort) -> Hashable:
    """What decides for which sessions it is drawn."""
    return distort.live, distort.rule.texts, distort.probability, distort.seed


def settings_of(distort: Distort) -> Hashable:
    """All that it says."""
    return draws_of(distort), distort.fault, distort.schedule, distort.rewrite, distort.tls


KEYS: tuple[Callable[[Distort], Any], ...] = (
    id,
    lambda distort: (distort.label, settings_of(distort)),
    settings_of,
    lambda distort: (distort.label, draws_of(distort)),
)
"""By what an entry is known again, the surest first. The last one finds those whose fault alone has changed."""


def known_again(distorts: Iterable[Distort], before: Iterable[Entry]) -> dict[Distort, Entry]:
    """The entries that were there before under other settings, or in another place of another configuration."""
    found: dict[Distort, Entry] = {}
    new, left = list(distorts), list(before)
    for key in KEYS:
        by_key = defaultdict(list)
        for entry in reversed(left):
            by_key[key(entry.distort)].append(entry)
        for distort in new:
            same = by_key.get(key(distort))
            if same:
                found[distort] = same.pop()
        new = [distort for distort in new if distort not in found]
        taken = set(found.values())
        left = [entry for entry in left if entry not in taken]
    return found
