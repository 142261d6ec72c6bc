"""Distorts: what is done to which sessions. Pure: clocks and random numbers are passed in.

All entries that match a session apply, in their order, and not only the first one. The matchers are those of rules,
compiled and looked up in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from tabi.policy.faults import Fault
from tabi.policy.networks import IP
from tabi.policy.rewrites import Rewrite
from tabi.policy.rules import Asked, Rule, RuleSet, ask, matchers_of, normal
from tabi.policy.schedule import ALWAYS, Schedule
from tabi.session import Session
from tabi.wire.address import Address

COMMANDS = ("connect", "forward", "bind", "associate", "resolve", "resolve_ptr")
"""What can be distorted: see the commands of rules."""

DIRECT = (None, "direct")
"""What a session's ``via`` is if its destination was dialled from here."""


class Distort(msgspec.Struct, frozen=True, eq=False):
    """One ``[[distort]]``, or a fault of a program or of ``tabi fault``. It is itself alone: two with the same figures
    are two."""

    rule: Rule
    """Its matchers."""
    label: str
    """Its name for people, and for ``tabi fault``."""
    number: int = 0
    """Its place in the configuration."""
    probability: float = 1.0
    """Of being drawn, once for each session that matches."""
    seed: int | None = None
    """Makes what is drawn the same in each run; None: it is not."""
    fault: Fault | None = None
    schedule: Schedule = ALWAYS
    rewrite: Rewrite | None = None
    """What is changed in HTTP that is looked into."""
    tls: str | None = None
    """The fingerprint that destinations see: ``mirror``, or a preset such as ``chrome:stable``."""
    live: bool = False
    """Whether it was set while the server runs, so that a reload does not take it away."""

    @property
    def on_http(self) -> bool:
        """Whether it acts on HTTP, which has to be looked into."""
        return self.rewrite is not None or (self.fault is not None and self.fault.on_http)


class DistortStep(NamedTuple):
    """What became of one entry, for people."""

    distort: Distort
    matched: bool
    why: str


class Distorts:
    """All entries.

    Args:
        entries: in their order.
        groups: of each user.
        direct: names of egresses that dial destinations themselves, in addition to ``direct``.
    """

    def __init__(
        self,
        entries: Iterable[Distort] = (),
        groups: Mapping[str, frozenset[str]] | None = None,
        direct: Collection[str | None] = (),
    ) -> None:
        self.entries = tuple(entries)
        self.groups = groups
        self.direct = frozenset((*DIRECT, *direct))
        self.rules = RuleSet((entry.rule for entry in self.entries), groups)
        self.by_name = self.rules.by_name
        """Whether all entries are for names, so that none matches an address."""

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Distort]:
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"Distorts({len(self)})"

    def replaced(self, entries: Iterable[Distort]) -> Distorts:
        """The same with other entries."""
        return Distorts(entries, self.groups, self.direct)

    def matching(
        self, session: Session, now: float, destination: Address | None = None, sni: str | None = None
    ) -> tuple[Distort, ...]:
        """The entries that match, in their order, whatever their schedules and probabilities say.

        Args:
            session: a client and what it asks for.
            now: seconds since 1970, for ``hours``.
            destination: of one datagram. Default: the session's own.
            sni: the name in the client's hello, if that is known: one of both names is enough.
        """
        if not self.entries:
            return ()
        if self.by_name and sni is None:
            where = session.destination if destination is None else destination
            if where is None or not self.rules.knows(where.host):
                return ()
        found: set[int] = set()
        rules = self.rules
        asked_for = self.names(session, destination, sni)
        if not asked_for:
            return ()
        for asked in asked_for:
            for position in rules.candidates(session, asked):
                rule = rules.rules[position]
                if rules.holds(rule.conditions, session, asked.port, now) and (
                    rule.hosts is None or rules.leads(rule, rule.hosts, asked)
                ):
                    found.add(position)
        return tuple([self.entries[position] for position in sorted(found)]) if found else ()

    def explain(self, session: Session, now: float, sni: str | None = None) -> list[DistortStep]:
        """What `matching` does, entry after entry, for people; arguments as there. A hello is too late for faults
        other than those of HTTP."""
        steps = []
        for entry in self.entries:
            late = sni if entry.on_http or entry.tls is not None else None
            found = [self.rules.mismatch(entry.rule, session, asked, now) for asked in self.names(session, None, late)]
            matched = None in found
            why = matchers_of(entry.rule) if matched else "; ".join(dict.fromkeys(filter(None, found)))
            steps.append(DistortStep(entry, matched, why))
        return steps

    def names(self, session: Session, destination: Address | None, sni: str | None) -> list[Asked]:
        """What ``hosts`` is asked for: the destination with the addresses that are known of it, and the hello's
        name."""
        addresses: tuple[IP, ...] = ()
        if destination is None:
            destination, dialled = session.destination, session.address
            if destination is None:
                return []
            if session.addresses is not None:
                addresses = tuple(session.addresses)
            elif dialled is not None and not isinstance(dialled.host, str):
                addresses = (dialled.host,) if (session.member or session.via) in self.direct else ()
        asked = [ask(destination, addresses)]
        if sni is not None and normal(sni) != asked[0].text:
            asked.append(ask(Address(sni, destination.port), addresses))
        return asked

    def may_match(self, session: Session) -> bool:
        """Whether an entry with a fault may match datagrams of an association, whatever their destination and the
        hour."""
        return any(
            entry.fault is not None and self.rules.holds(entry.rule.conditions._replace(hours=None), session, None, 0.0)
            for entry in self.entries
        )


NO_DISTORTS = Distorts()
