"""Distortion: has the entries at work, and the sessions that they act on.

What the relays carry has stages put on. In front of any other carrier goes a relay of its own, with a connection
within this machine behind it: client <-> stages <-> pair <-> interception, say. So faults act below TLS, as a network
does. A running session gets one too: its socket is exchanged for an end of the pair. A request that is forwarded has
the same at its destination's connection, which is kept for requests with the same entries.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from time import time
from typing import Protocol

from tabi.distort.choosing import Chosen, Group, add, known_again
from tabi.distort.distorted import Distorted, named, names_of, open_pair_for
from tabi.distort.draws import Drawn, Entry
from tabi.net.stream import Stream
from tabi.policy.distorts import NO_DISTORTS, Distort, Distorts
from tabi.relay.carrier import Carried, Carrier, relays_for
from tabi.relay.exchange import ServerConnection
from tabi.relay.relay import Relay
from tabi.relay.relays import Relays
from tabi.relay.stage import Stage
from tabi.session import Close, Session

log = logging.getLogger("tabi")

ENDLESS = float("inf")
"""How long a relay in front of another carrier may be idle: that one has its own deadlines."""


class Running(Protocol):
    """What is known of the sessions of a server."""

    @property
    def running(self) -> Mapping[Session, object]:
        """All that run."""

    def carried(self, session: Session) -> Carried | None:
        """What has one, if its destination is open."""

    def holding(self, thing: object, holds: bool) -> None:
        """Say that something still has octets for the client of a session that is over, or no longer."""


class Distortion:
    """The entries, and all that they act on.

    Args:
        relays: of the server.
        sessions: that run.
        under_way: the connections to destinations on which a request is forwarded just now, by its session.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        relays: Relays,
        sessions: Running,
        under_way: Callable[[], Mapping[Session, ServerConnection]],
        clock: Callable[[], float] = time,
    ) -> None:
        self.reactor = relays.reactor
        self.loop: asyncio.AbstractEventLoop = relays.reactor.loop
        self.sessions = sessions
        self.under_way = under_way
        self.clock = clock
        self.entries: dict[Distort, Entry] = {}
        self.every = self.at_dial = Group(NO_DISTORTS, {})
        """All entries, and those that act before there is a connection."""
        self.around = relays.sibling(self.ended, ENDLESS)  # in front of other carriers, and behind forwarding
        self.distorted: dict[Session, Distorted] = {}
        self.outer: dict[Session, Distorted] = {}
        """Those with a relay of their own, until that is over, by its key."""
        self.changed: list[Callable[[Entry], object]] = []
        """Called with an entry that is gone, or has another fault."""
        self.timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def distorts(self) -> Distorts:
        """What all entries say."""
        return self.every.distorts

    # --- choosing ---

    def choose(self, session: Session) -> Chosen:
        """The entries that a session is drawn for, whether they act now or not; drawn once."""
        return self.every.ask(session, self.clock())

    def choose_to_dial(self, session: Session) -> Chosen:
        """The same before its destination is opened. Entries that act later are asked when its address is known."""
        group = self.every if session.command == "forward" else self.at_dial
        return group.ask(session, self.clock()) if group else group.none

    def begin(self, one: Distorted, chosen: list[Drawn]) -> list[tuple[int, Stage]]:
        """Note that entries act on a session's octets, and return the stages to begin with."""
        session = one.session
        self.distorted[session] = one
        session.when_over(lambda: self.over(session))
        if one.key is not session:
            self.outer[one.key] = one
        return one.prepare(chosen)

    def join(
        self, stream: Stream, session: Session, chosen: list[Drawn], answer: bytes, head: bytes, from_client: bool
    ) -> Stream | None:
        """Put a relay with stages on a connection, and return what stands for it behind the relay.

        Args:
            stream: the connection.
            session: whose it is.
            chosen: the entries.
            answer, head: see `Carrier.start`.
            from_client: whether the connection is the client's; else it is the destination's.

        Returns:
            None if there is no pair of sockets, or the peer has gone: then nothing has changed.
        """
        try:
            names = names_of(stream.sock)
        except OSError:
            return None
        pair = try_pair(session, chosen)
        if pair is None:
            return None
        inside, end = Stream(self.reactor, named(pair[0], names)), Stream(self.reactor, pair[1])
        inside.peer = stream.peer
        self.carry_around(stream, end, session, chosen, answer, head, from_client, inside.fd)
        return inside

    def insert(self, session: Session, fd: int, chosen: list[Drawn], from_client: bool) -> bool:
        """Put a relay on a connection that somebody else has: the descriptor becomes that of an end of a pair.

        Arguments as `join`. Returns whether it could be done.
        """
        if fd not in self.reactor.handlers:  # it is closed
            return False
        pair = try_pair(session, chosen)
        if pair is None:
            return False
        inside, end = pair
        try:
            outside = self.reactor.exchange(fd, inside)
        except OSError as exc:
            log.error("session %x: no faults, since its socket cannot be exchanged: %s", session.number, exc.strerror)
            inside.close()
            end.close()
            return False
        stream, other = Stream(self.reactor, outside), Stream(self.reactor, end)
        self.carry_around(stream, other, session, chosen, b"", b"", from_client, fd)
        return True

    def carry_around(
        self,
        stream: Stream,
        end: Stream,
        session: Session,
        chosen: list[Drawn],
        answer: bytes,
        head: bytes,
        from_client: bool,
        behind: int,
    ) -> None:
        """Join a connection with an end of a pair, whose other end is the descriptor ``behind``; else as `join`."""
        key = session.copy()
        key.lease = key.ended = None
        key.up = key.down = 0
        stages = self.begin(Distorted(session, self.around, key, from_client, behind), chosen)
        client, server = (stream, end) if from_client else (end, stream)
        self.around.start(client, server, key, answer, head, stages)

    # --- the end ---

    def ended(self, key: Session) -> None:
        """A relay in front of another carrier is over: that one sees it by its end of the pair."""
        one = self.outer.pop(key)
        one.over()
        self.sessions.holding(key, False)
        session = one.session
        if key.close == "fault" and session in self.sessions.running and session.destination is not None:
            session.when_over(lambda: say_fault(session, key.error))

    def over(self, session: Session) -> None:
        """A session is over. A relay in front of another carrier goes on until what it holds has gone out."""
        one = self.distorted.pop(session, None)
        if one is None:
            return
        if one.key is session:
            one.over()
        elif one.from_client and (relay := one.relay) is not None:
            self.sessions.holding(one.key, True)
            relay.only_down()

    @property
    def all(self) -> tuple[Distorted, ...]:
        """All that entries act on."""
        return (*(one for session, one in self.distorted.items() if one.key is session), *self.outer.values())

    # --- entries ---

    def take(self, distorts: Distorts) -> None:
        """Act by these entries from now on, on the sessions that run too. Those that are known again go on as they
        are, also with another fault: for the sessions that they were drawn for."""
        before, now = self.entries, self.loop.time()
        stay = known_again(distorts, before.values())
        self.entries = entries = {one: stay.get(one) or Entry(one, now, self.clock) for one in distorts}
        changed = [entry for distort, entry in stay.items() if entry.take(distort, now)]
        self.every = Group(distorts, entries)
        self.at_dial = Group(distorts.replaced(one for one, entry in entries.items() if entry.fault.at_dial), entries)
        staying = set(stay.values())
        for entry in before.values():
            if entry not in staying:
                self.leave(entry)
        for entry in changed:
            self.renew(entry)
        for distort, entry in entries.items():
            if entry not in staying:
                self.enter(distort, entry)
        self.look()

    def enter(self, distort: Distort, entry: Entry) -> None:
        """A new entry: it acts on the sessions that run and match. Those whose destination is not open yet are asked
        when it is."""
        alone = self.every.distorts.replaced((distort,))
        now, under_way = self.clock(), self.under_way()

        def ask(session: Session) -> None:
            if entry.gone or session.destination is None:
                return
            carried = self.sessions.carried(session)
            before: Chosen | None = session.distorted
            if carried is None and session not in under_way:
                return
            if (before is not None and entry in before.asked) or not alone.matching(session, now):
                return
            drawn = entry.draw()
            if drawn is None:
                return
            session.distorted = add(before, (drawn,), frozenset((entry,)))
            self.reach(session, drawn, carried, under_way.get(session))

        self.reactor.spread(tuple(self.sessions.running), ask)

    def reach(self, session: Session, drawn: Drawn, carried: Carried | None, server: ServerConnection | None) -> None:
        """Have an entry act on a session that runs, if it acts on octets.

        Args:
            session: it was drawn for.
            drawn: that.
            carried: what has the session.
            server: its connection to a destination, if a request is forwarded on it.
        """
        if not drawn.entry.fault.on_octets:
            return
        one = self.distorted.get(session)
        if one is not None:
            one.add(drawn)
        elif isinstance(carried, Relay):
            one = Distorted(session, carried.relays, session)
            for direction, stage in self.begin(one, [drawn]):
                if not carried.closed:
                    carried.add_stage(direction, stage)
        elif carried is not None:
            self.insert(session, carried.client_fd, [drawn], True)
        elif server is not None and self.insert(session, server.stream.fd, [drawn], False):
            server.egress = None  # it is not kept for other requests

    def renew(self, entry: Entry) -> None:
        """An entry has another fault."""
        under_way = self.under_way()
        for tell in self.changed:
            tell(entry)
        kept = {(one.session, one.behind): one for one in self.outer.values()}

        def ask(session: Session) -> None:
            for drawn in session.distorted or ():
                if drawn.entry is not entry:
                    continue
                carried, server = self.sessions.carried(session), under_way.get(session)
                fd = carried.down.source_fd if isinstance(carried, Relay) else server.stream.fd if server else -1
                one = self.distorted.get(session) or kept.get((session, fd))  # of a request before, on its connection
                if one is None or all(other.entry is not entry for other in one.drawn):
                    self.reach(session, drawn, carried, server)

        self.reactor.spread(self.all, lambda one: one.renew(entry))
        self.reactor.spread(tuple(self.sessions.running), ask)

    def leave(self, entry: Entry) -> None:
        """An entry acts no more."""
        entry.leave()
        for tell in self.changed:
            tell(entry)
        self.reactor.spread(self.all, lambda one: one.forget(entry))

    def look(self) -> None:
        """Put stages on and take them off as schedules say, and look again when one of them may change."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        scheduled = [entry for entry in self.entries.values() if entry.distort.schedule]
        if not scheduled:
            return
        now, clock = self.loop.time(), self.clock()
        acting = {entry: entry.acts(now) for entry in scheduled}
        for entry, acts in acting.items():
            if not acts:
                entry.wake()

        def ask(one: Distorted) -> None:
            for drawn in tuple(one.drawn):
                acts = acting.get(drawn.entry)
                if acts is not None:
                    one.look(drawn, acts)

        self.reactor.spread(self.all, ask)
        seconds = min(entry.distort.schedule.next_look(clock, now - entry.began) for entry in scheduled)
        self.timer = self.loop.call_at(now + seconds, self.look)

    def close(self, reason: Close) -> None:
        """End the relays in front of other carriers."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.around.close(reason)


class Front:
    """A carrier that distorts the sessions which entries act on, and gives all to another one.

    Args:
        distortion: has the entries.
        inner: the other carrier.
    """

    def __init__(self, distortion: Distortion, inner: Carrier) -> None:
        self.distortion = distortion
        self.inner = inner
        self.reopens: bool = getattr(inner, "reopens", False)

    def start(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes) -> None:
        """See `Carrier.start`. A request that was forwarded has its faults at the destination's connection."""
        distortion, inner = self.distortion, self.inner
        chosen: list[Drawn] | None = None
        if session.command != "forward":
            found = distortion.choose(session)
            chosen = [drawn for drawn in found if drawn.acts_on_octets] if found else None
        if not chosen:
            inner.start(client, server, session, answer, head)
            return
        relays = relays_for(inner, session)
        if relays is not None:
            stages = distortion.begin(Distorted(session, relays, session), chosen)
            relays.start(client, server, session, answer, head, stages)
            return
        inside = distortion.join(client, session, chosen, answer, head, from_client=True)
        if inside is None:
            inner.start(client, server, session, answer, head)
        else:
            inner.start(inside, server, session, b"", b"")

    def get(self, session: Session) -> Carried | None:
        """See `Carrier.get`: the carrier behind is asked by itself."""
        return None


def try_pair(session: Session, chosen: list[Drawn]) -> tuple[socket.socket, socket.socket] | None:
    """A pair for a session. None if there is none, which the log says."""
    try:
        return open_pair_for(chosen)
    except OSError as exc:
        log.error("session %x: no faults, since there is no pair of sockets: %s", session.number, exc.strerror)
        return None


def say_fault(session: Session, error: str | None) -> None:
    """A fault has ended a session."""
    session.close = "fault"
    session.error = error
