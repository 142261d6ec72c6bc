"""Entries that match a session by the name in its client's hello (SNI), which is known after its destination."""

from __future__ import annotations

from tabi.distort.distortion import Distortion
from tabi.distort.draws import Drawn, Entry
from tabi.policy.distorts import Distorts
from tabi.session import Session


class Named:
    """What was drawn for one session by the name of its hello alone.

    Attributes:
        seen: the entries that were asked last; None: none yet.
        drawn: for each that has matched; None: it was not drawn.
    """

    def __init__(self) -> None:
        self.seen: Distorts | None = None
        self.drawn: dict[Entry, Drawn | None] = {}


class ByHello:
    """Chooses entries by both names: that of the destination, and that of the hello.

    Args:
        distortion: has the entries.
    """

    def __init__(self, distortion: Distortion) -> None:
        self.distortion = distortion
        self.named: dict[Session, Named] = {}
        """Of the sessions that run and have two names."""

    def chosen(self, session: Session, name: str | None) -> list[Drawn]:
        """The entries that a session is drawn for, in their order; each is drawn once for a session.

        Args:
            session: of a client.
            name: of the hello, or of the destination; None: there is no hello, or no name in it.
        """
        distortion = self.distortion
        found = list(distortion.choose(session))
        destination = session.destination
        if destination is not None and name is not None and name != str(destination.host):
            found += self.by_name(session, name)
        if not found:
            return found
        entries = distortion.entries
        found = [drawn for drawn in found if drawn.entry.distort in entries]  # others are gone
        if len(found) > 1:
            places = {distort: place for place, distort in enumerate(entries)}
            found.sort(key=lambda drawn: places[drawn.entry.distort])
        return found

    def by_name(self, session: Session, name: str) -> list[Drawn]:
        """Those that a session is drawn for by the name of its hello alone."""
        distortion, named = self.distortion, self.named.get(session)
        if named is None:
            named = self.named[session] = Named()
            session.when_over(lambda: self.named.pop(session, None))
        distorts = distortion.distorts
        if named.seen is not distorts:
            named.seen, now = distorts, distortion.clock()
            asked = set(distorts.matching(session, now))
            for distort in distorts.matching(session, now, sni=name):
                entry = distortion.entries[distort]
                if distort not in asked and entry not in named.drawn:
                    named.drawn[entry] = entry.draw()
        return [drawn for drawn in named.drawn.values() if drawn is not None]
