"""Faults that are set while a server runs: what `Server.fault` gives, and what workers do for ``tabi fault``."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

import msgspec

from tabi.config import Config, FaultConfig
from tabi.config.compile import make_distort
from tabi.config.live_faults import FaultChanges, changed, describe, read_fault, words_of
from tabi.errors import ConfigError
from tabi.policy import fault_words
from tabi.policy.distorts import Distort
from tabi.server.intercept_files import check_fault

if TYPE_CHECKING:
    from tabi.distort.draws import Entry
    from tabi.server.server import Server

MOST_FAULTS = 50
"""Faults at a time."""


class Row(NamedTuple):
    """An entry in words, and its counts, for ``tabi fault list``."""

    name: str
    live: bool
    """Whether it was set while the server runs; else it is of the configuration."""
    what: str
    matchers: str
    sessions: int
    """That have it on their octets now."""
    chosen: int
    """Sessions that it was drawn for so far."""


class LiveFault:
    """A fault of `tabi.Server.fault`: it acts between ``async with`` and its end, on running sessions too::

        async with server.fault(hosts=["*.example.com"], latency="200ms", jitter="50ms") as fault:
            ...
            fault.change(latency="500ms")

    It takes effect at once, and nothing of it waits: however the block ends, the fault is gone then.
    """

    def __init__(self, faults: Faults, name: str, given: Mapping[str, Any], distort: Distort) -> None:
        self.faults = faults
        self.name = name
        """The access log calls it so."""
        self.given = given
        self.distort = distort
        self.entry: Entry | None = None
        self.earlier = 0

    def __repr__(self) -> str:
        return f"<tabi.LiveFault {self.name}: {', '.join(filter(None, describe(self.given)))}>"

    @property
    def acts(self) -> bool:
        """Whether it is set, and was not removed."""
        return self.faults.all.get(self.name) is self

    def set(self) -> Self:
        """Have it act. `tabi.Server.set_fault` has done so.

        Raises:
            ConfigError: there is one of its name, or there are too many.
            RuntimeError: it acts already, or the server does not run.
        """
        if self.acts:
            raise RuntimeError(f"the fault {self.name} acts already")
        check_name(self.name, self.faults.names(), len(self.faults.all))
        return self.become(self.given, self.distort)

    def change(self, profile: str | None = None, **keys: Unpack[FaultChanges]) -> None:
        """Change it: keys that are given hold from now on, the others stay; None takes one away. A profile takes the
        place of all figures.

        Raises:
            ConfigError: something of it is wrong; it names the key. Nothing has changed then.
            RuntimeError: it does not act.
        """
        if not self.acts:
            raise RuntimeError(f"the fault {self.name} does not act")
        given = changed(self.given, keys if profile is None else {"profile": profile, **keys})
        self.become(given, self.faults.read(self.name, given))

    def become(self, given: Mapping[str, Any], distort: Distort) -> Self:
        """Do this from now on. Raises RuntimeError if the server does not run."""
        chosen, entry = self.chosen, self.faults.put(self, distort)
        if entry is not self.entry:
            self.entry, self.earlier = entry, chosen
        self.given, self.distort = given, distort
        return self

    def remove(self) -> None:
        """Have it act no more. Harmless when done twice, and when the server is closed."""
        if self.acts:
            self.faults.remove(self.name)

    @property
    def sessions(self) -> int:
        """How many sessions have it on their octets now."""
        return 0 if self.entry is None else self.entry.active

    @property
    def chosen(self) -> int:
        """How many sessions it was drawn for so far; a change of which sessions it is for draws, and counts, again."""
        return self.earlier + (0 if self.entry is None else self.entry.chosen)

    async def __aenter__(self) -> Self:
        return self.set()

    async def __aexit__(self, *exc: object) -> None:
        self.remove()


class Faults:
    """The faults of a server that are set while it runs. It has to run when one is set, not when one is made."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.all: dict[str, LiveFault] = {}
        """Those that act, by name."""
        self.numbers = itertools.count(1)

    def make(self, given: Mapping[str, Any]) -> LiveFault:
        """A fault that does not act yet. Raises ConfigError, which names the key."""
        found = changed(None, given)
        name = found.pop("name", None)
        if name is None:
            name = new_name(self.numbers, self.names())
        return LiveFault(self, name, found, self.read(name, found))

    def hold(self, name: str, given: Mapping[str, Any], profiles: Mapping[str, FaultConfig]) -> None:
        """Set a fault that somebody else has checked, or change it; ``profiles`` has the one that it names."""
        distort = self.read(name, given, profiles)
        (self.all.get(name) or LiveFault(self, name, given, distort)).become(given, distort)

    def read(self, name: str, given: Mapping[str, Any], profiles: Mapping[str, FaultConfig] | None = None) -> Distort:
        """What a fault does. Raises ConfigError, which names the key."""
        config = self.server.config
        known = config.profile if profiles is None else profiles
        found = read_fault(given, name, known, [listen.url for listen in config.listen])
        made = make_distort(found, 0, name=name)
        check_fault(made)
        return msgspec.structs.replace(made, live=True)

    def names(self) -> set[str]:
        """Those that are taken."""
        return {*self.all, *labels_of(self.server.config)}

    def put(self, fault: LiveFault, distort: Distort) -> Entry:
        """Have a fault do this from now on. Raises RuntimeError if the server does not run."""
        parts = self.server.parts
        if self.server.ends:
            raise RuntimeError("the server is closed")
        if parts.molding is None:
            parts.molding = parts.make_molding()
        before = parts.molding.live.get(fault.name)
        parts.molding.live[fault.name] = distort
        self.all[fault.name] = fault
        self.take(before, distort)
        return parts.molding.distortion.entries[distort]

    def remove(self, name: str) -> None:
        """Have the fault of a name act no more."""
        del self.all[name]
        molding = self.server.parts.molding
        if molding is not None and not self.server.ends:
            self.take(molding.live.pop(name))

    def take(self, *changed: Distort | None) -> None:
        """Act by what is set now: these have come or gone."""
        parts = self.server.parts
        if any(distort is not None and distort.on_http for distort in changed):
            parts.prepare_interception(parts.compiled)()
        parts.take_distorts(parts.compiled.distorts)

    def rows(self) -> Iterator[Row]:
        """All entries: those that were set, then those of the configuration."""
        parts = self.server.parts
        entries = {} if parts.molding is None else parts.molding.distortion.entries
        for fault in self.all.values():
            yield Row(fault.name, True, *describe(fault.given), fault.sessions, fault.chosen)
        for distort, config in zip(parts.compiled.distorts, parts.compiled.config.distort, strict=True):
            entry = entries.get(distort)
            counts = (0, 0) if entry is None else (entry.active, entry.chosen)
            what, matchers = describe(words_of(config))
            rest = fault_words.words_of(msgspec.structs.replace(distort, fault=None))
            yield Row(distort.label, False, "; ".join(part for part in (what, rest) if part), matchers, *counts)


def check_name(name: str, names: Container[str], count: int) -> None:
    """Raise ConfigError if there may be no new fault of this name, beside so many."""
    if name in names:
        raise ConfigError(f"there is one called {name!r} already", "name")
    if count >= MOST_FAULTS:
        raise ConfigError(f"{MOST_FAULTS} faults are set already")


def new_name(numbers: Iterator[int], names: Container[str]) -> str:
    """A name for a fault that was given none."""
    return next(name for number in numbers if (name := f"fault-{number}") not in names)


def labels_of(config: Config) -> list[str]:
    """What the entries of a configuration are called."""
    return [distort.name or f"distort[{number}]" for number, distort in enumerate(config.distort)]
