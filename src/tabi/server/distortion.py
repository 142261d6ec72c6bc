"""Faults and other molding, composed: the entries of a configuration, and those that are set while it runs."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

from tabi.config.compile import make_intercepts
from tabi.distort.by_hello import ByHello
from tabi.distort.datagrams import DatagramFaults
from tabi.distort.dialling import Distorting, Egresses
from tabi.distort.distortion import Distortion, Front
from tabi.ingress.own_destinations import Entrance
from tabi.policy.distorts import Distort, Distorts
from tabi.relay.carrier import Carrier

if TYPE_CHECKING:
    from tabi.distort.draws import Entry
    from tabi.distort.rewrites import Rewrites
    from tabi.intercept.fingerprints import Fingerprints
    from tabi.intercept.interception import Interception
    from tabi.server.compiled import Compiled
    from tabi.server.parts import Parts
    from tabi.session import Session

log = logging.getLogger("tabi")


class Molding:
    """All that `Parts` has of molding, made when the first entry is there.

    Args:
        parts: of the server.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.distortion = Distortion(parts.relays, parts.sessions, parts.forwarding.under_way)
        self.egresses = Egresses(self.distortion)
        self.datagrams = DatagramFaults(self.distortion, parts.associations)
        self.live: dict[str, Distort] = {}
        """Those that were set while it runs, by their names."""
        self.by_hello = ByHello(self.distortion)
        self.rewrites: Rewrites | None = None
        self.fingerprints: Fingerprints | None = None
        self.told: WeakSet[Entry] = WeakSet()
        """Those of which the log says that they act on no TLS that passes."""

    def looking_into(self, compiled: Compiled) -> Compiled:
        """A configuration that has plain HTTP looked into for faults that are set while it runs as well."""
        asked = [distort for distort in self.live.values() if distort.on_http]
        if not asked:
            return compiled
        distorts = [*compiled.distorts, *asked]
        return compiled._replace(intercepts=make_intercepts(compiled.config, compiled.users, distorts=distorts))

    def take(self, distorts: Distorts) -> None:
        """Act by the entries of a configuration, and by those that are set."""
        self.distortion.take(distorts.replaced(itertools.chain(distorts, self.live.values())))
        self.datagrams.take()
        for interception in self.parts.interceptions:
            self.act_inside(interception)

    def act_inside(self, interception: Interception) -> None:
        """Have entries act on what is looked into: they see the flows behind its hooks, and choose fingerprints.
        Without such entries nothing of them is called."""
        from tabi.server.interception import rules_of

        entries = self.distortion.distorts
        on_http = any(entry.on_http for entry in entries)
        shows = any(entry.tls is not None or (entry.rewrite and entry.rewrite.profile) for entry in entries)
        rules_of(interception).scripts.set_last((self.make_rewrites(),) if on_http else ())
        interception.fingerprints = self.make_fingerprints() if shows else None
        interception.on_passing = self.say_passed if on_http or shows else None

    def make_rewrites(self) -> Rewrites:
        """What changes flows."""
        if self.rewrites is None:
            from tabi.distort.rewrites import Rewrites

            self.rewrites = Rewrites(self.by_hello)
        return self.rewrites

    def make_fingerprints(self) -> Fingerprints:
        """What chooses fingerprints toward destinations."""
        if self.fingerprints is None:
            from tabi.distort.fingerprint.choose import Chooser

            self.fingerprints = Chooser(
                lambda session, sni: [drawn.entry.distort for drawn in self.by_hello.chosen(session, sni)]
            )
        return self.fingerprints

    def say_passed(self, session: Session, sni: str | None) -> None:
        """The TLS of a session passes: say of each entry that it does not act there, once."""
        for drawn in self.by_hello.chosen(session, sni):
            entry = drawn.entry
            if (entry.distort.on_http or entry.distort.tls is not None) and entry not in self.told:
                self.told.add(entry)
                log.warning(
                    "%s does not act on %s: no [[intercept]] opens its TLS", entry.distort.label, session.destination
                )

    def in_front(self, carrier: Carrier, entrance: Entrance) -> tuple[Carrier, Entrance]:
        """A carrier and an entrance of sessions, with faults where there are any."""
        if not self.distortion.entries:
            return carrier, entrance
        return Front(self.distortion, carrier), Distorting(entrance, self.distortion, self.egresses)

    @property
    def pairs(self) -> int:
        """How many connections have a relay of their own, which takes as many descriptors as a session."""
        return len(self.distortion.outer)

    def close(self) -> None:
        """End what is left."""
        self.distortion.close("shutdown")
