"""Distortion: a carrier in front of the others, for the sessions whose octets an entry acts on.

What the relays carry has stages put on. In front of any other carrier goes a relay of its own, with a connection
within this machine behind it: client <-> stages <-> pair <-> interception, say. So faults act below TLS, as a network
does. A running session gets one too: its socket is exchanged for an end of the pair.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from time import time
from typing import Any, Protocol

from tabi.distort.draws import Drawn, Entry
from tabi.distort.streams import stages_of
from tabi.net.pair import open_pair
from tabi.net.stream import Stream
from tabi.policy.distorts import Distort, Distorts
from tabi.relay.carrier import Carried, Carrier
from tabi.relay.relay import Relay
from tabi.relay.relays import Relays
from tabi.relay.stage import Stage
from tabi.session import Close, Session

log = logging.getLogger("tabi")


class PairSock(socket.socket):
    """An end of a pair that has the addresses of the connection in whose place it is."""

    names: tuple[Any, Any]

    def getsockname(self) -> Any:
        """See `socket.socket`."""
        return self.names[0]

    def getpeername(self) -> Any:
        """See `socket.socket`. Raises OSError where it is not connected."""
        super().getpeername()
        return self.names[1]


def named(sock: socket.socket, names: tuple[Any, Any]) -> PairSock:
    """The same socket, with other addresses."""
    found = PairSock(sock.family, sock.type, sock.proto, fileno=sock.detach())
    found.setblocking(False)
    found.names = names
    return found


def names_of(sock: Any) -> tuple[Any, Any]:
    """The addresses of a connection. Raises OSError if it is not connected any more."""
    return sock.getsockname(), sock.getpeername()


class Reachable(Protocol):
    """What has the client of a session."""

    @property
    def client_fd(self) -> int:
        """The descriptor of the client's connection; less than 0 if that is closed."""


class Distorted:
    """One session, or one connection to a destination, with entries that act on its octets.

    Args:
        owner: has it until it is over.
        session: whose it is.
        relays: have the relay with the stages.
        key: by which they have it: the session itself, or a copy that counts nothing.
    """

    __slots__ = ("drawn", "key", "owner", "relays", "session", "stages")

    def __init__(self, owner: Distortion, session: Session, relays: Relays, key: Session) -> None:
        self.owner = owner
        self.session = session
        self.relays = relays
        self.key = key
        self.drawn: list[Drawn] = []
        self.stages: dict[Entry, list[tuple[int, Stage]]] = {}

    @property
    def relay(self) -> Relay | None:
        """Its relay, while it runs."""
        return self.relays.get(self.key)

    def prepare(self, chosen: Iterable[Drawn]) -> list[tuple[int, Stage]]:
        """The stages to begin with: those of the entries that act now."""
        now = self.owner.loop.time()
        found = []
        for drawn in chosen:
            self.drawn.append(drawn)
            drawn.entry.active += 1
            if drawn.entry.acts(now):
                found += self.stages.setdefault(drawn.entry, stages_of(drawn))
        return found

    def add(self, drawn: Drawn) -> None:
        """One more entry acts on it from now on."""
        self.drawn.append(drawn)
        drawn.entry.active += 1
        if drawn.entry.acts(self.owner.loop.time()):
            self.put_on(drawn)

    def put_on(self, drawn: Drawn) -> None:
        """Put the stages of an entry on, unless they are on."""
        relay = self.relay
        if relay is None or drawn.entry in self.stages:
            return
        self.stages[drawn.entry] = stages = stages_of(drawn)
        for direction, stage in stages:
            if relay.closed:
                return
            relay.add_stage(direction, stage)

    def take_off(self, entry: Entry) -> None:
        """Take the stages of an entry off, if they are on: what they hold goes out."""
        relay = self.relay
        for _, stage in self.stages.pop(entry, ()):
            if relay is not None and not relay.closed:
                relay.remove_stage(stage)

    def forget(self, entry: Entry) -> None:
        """An entry acts on it no more."""
        self.take_off(entry)
        kept = [drawn for drawn in self.drawn if drawn.entry is not entry]
        entry.active -= len(self.drawn) - len(kept)
        self.drawn = kept

    def over(self) -> None:
        """It has ended."""
        for drawn in self.drawn:
            drawn.entry.active -= 1
        self.drawn = []
        self.stages.clear()


class Distortion:
    """Carries the sessions that an entry acts on, and gives all others to the carrier behind it.

    Args:
        relays: carry what no other carrier looks into.
        inner: the carrier behind it; replaced when that changes.
        running: all sessions that run.
        carried: what has the client of a session, if its destination is open.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        relays: Relays,
        inner: Carrier,
        running: Callable[[], Iterable[Session]],
        carried: Callable[[Session], Reachable | None],
        clock: Callable[[], float] = time,
    ) -> None:
        self.relays = relays
        self.reactor = relays.reactor
        self.loop: asyncio.AbstractEventLoop = relays.reactor.loop
        self.inner = inner
        self.running = running
        self.carried = carried
        self.clock = clock
        self.distorts = Distorts()
        self.entries: dict[Distort, Entry] = {}
        self.around = relays.sibling(self.ended)  # in front of other carriers, and behind forwarding
        self.distorted: dict[Session, Distorted] = {}
        self.outer: dict[Session, Distorted] = {}
        """Those with a relay of their own, until that is over, by its key."""
        self.timer: asyncio.TimerHandle | None = None

    # --- choosing ---

    @property
    def reopens(self) -> bool:
        """See `Carrier`: as the one behind."""
        return getattr(self.inner, "reopens", False)

    def choose(self, session: Session) -> tuple[Drawn, ...]:
        """The entries that a session is drawn for, whether they act now or not; drawn once."""
        chosen: tuple[Drawn, ...] | None = session.distorted
        if chosen is None:
            found = self.distorts.matching(session, self.clock())
            drawn = [self.entries[distort].draw() for distort in found] if found else ()
            chosen = session.distorted = tuple([one for one in drawn if one is not None])
        return chosen

    def start(self, client: Stream, server: Stream, session: Session, answer: bytes, head: bytes) -> None:
        """See `Carrier.start`."""
        chosen = [drawn for drawn in self.choose(session) if drawn.entry.fault.on_octets]
        if not chosen:
            self.inner.start(client, server, session, answer, head)
        elif passes(self.inner, session):
            self.relays.start(client, server, session, answer, head, self.begin(session, self.relays, session, chosen))
        else:
            try:
                inside = self.join(client, session, chosen, answer, head, from_client=True)
            except OSError as exc:
                log.error("session %x: no faults, since there is no pair of sockets: %s", session.number, exc.strerror)
                self.inner.start(client, server, session, answer, head)
            else:
                self.inner.start(inside, server, session, b"", b"")

    def get(self, session: Session) -> Carried | None:
        """See `Carrier.get`: the carrier behind is asked by itself."""
        return None

    def passes(self, session: Session) -> bool:
        """Whether a session goes to the relays as it is."""
        return not self.choose(session) and passes(self.inner, session)

    def begin(self, session: Session, relays: Relays, key: Session, chosen: Iterable[Drawn]) -> list[tuple[int, Stage]]:
        """Note that entries act on a session's octets, and return the stages to begin with."""
        one = self.distorted[session] = Distorted(self, session, relays, key)
        session.when_over(lambda: self.over(session))
        if key is not session:
            self.outer[key] = one
        return one.prepare(chosen)

    def join(
        self, stream: Stream, session: Session, chosen: Iterable[Drawn], answer: bytes, head: bytes, from_client: bool
    ) -> Stream:
        """Put a relay with stages on a connection, and return what stands for it behind the relay.

        Args:
            stream: the connection.
            session: whose it is.
            chosen: the entries.
            answer, head: see `Carrier.start`.
            from_client: whether the connection is the client's; else it is the destination's.

        Raises:
            OSError: there is no pair of sockets. Nothing has changed.
        """
        names = names_of(stream.sock)
        ours, theirs = open_pair()
        inside = Stream(self.reactor, named(ours, names))
        inside.peer = stream.peer
        end = Stream(self.reactor, theirs)
        self.carry_around(stream, end, session, chosen, answer, head, from_client)
        return inside

    def carry_around(
        self,
        stream: Stream,
        end: Stream,
        session: Session,
        chosen: Iterable[Drawn],
        answer: bytes,
        head: bytes,
        from_client: bool,
    ) -> None:
        """Join a connection with an end of a pair; arguments as `join`."""
        key = session.copy()
        key.lease = key.ended = None
        key.up = key.down = 0
        stages = self.begin(session, self.around, key, chosen)
        client, server = (stream, end) if from_client else (end, stream)
        self.around.start(client, server, key, answer, head, stages)

    def ended(self, key: Session) -> None:
        """A relay in front of another carrier is over: that one sees it by its end of the pair."""
        one = self.outer.pop(key)
        one.over()
        if key.close == "fault":
            one.session.when_over(lambda: say_fault(one.session, key.error))

    def over(self, session: Session) -> None:
        """A session is over. A relay of its own goes on until what it holds has gone out."""
        one = self.distorted.pop(session, None)
        if one is not None and one.key is session:
            one.over()

    @property
    def all(self) -> tuple[Distorted, ...]:
        """All that entries act on."""
        return (*(one for session, one in self.distorted.items() if one.key is session), *self.outer.values())

    # --- entries ---

    def take(self, distorts: Distorts) -> None:
        """Act by these entries from now on, on the sessions that run too. Those that stay go on as they are."""
        before, self.distorts = self.entries, distorts
        now = self.loop.time()
        self.entries = {distort: before.get(distort) or Entry(distort, now, self.clock) for distort in distorts}
        for distort, entry in before.items():
            if distort not in self.entries:
                self.leave(entry)
        for distort, entry in self.entries.items():
            if distort not in before:
                self.enter(entry)
        self.look()

    def enter(self, entry: Entry) -> None:
        """A new entry: it acts on the sessions that run and match."""
        alone = self.distorts.replaced((entry.distort,))
        now = self.clock()

        def ask(session: Session) -> None:
            if session.destination is None or session.command not in ("connect", "bind", "forward"):
                return
            carried = self.carried(session)
            if session.distorted is None and carried is None:
                return  # it is asked when its destination is opened
            if self.entries.get(entry.distort) is not entry or not alone.matching(session, now):
                return
            drawn = entry.draw()
            if drawn is None:
                return
            session.distorted = (*(session.distorted or ()), drawn)
            if entry.fault.on_octets and carried is not None:
                self.reach(session, carried, drawn)

        self.reactor.spread(tuple(self.running()), ask)

    def reach(self, session: Session, carried: Reachable, drawn: Drawn) -> None:
        """Have an entry act on a session that runs."""
        one = self.distorted.get(session)
        if one is not None:
            one.add(drawn)
        elif (relay := self.relays.get(session)) is not None:
            for direction, stage in self.begin(session, self.relays, session, (drawn,)):
                if not relay.closed:
                    relay.add_stage(direction, stage)
        else:
            self.insert(session, carried.client_fd, drawn)

    def insert(self, session: Session, fd: int, drawn: Drawn) -> None:
        """Put a relay on the client's connection of a session that another carrier has: the descriptor becomes that of
        an end of a pair."""
        try:
            inside, end = open_pair()
            client = self.reactor.exchange(fd, inside)
        except (OSError, ValueError) as exc:
            log.error("session %x: no fault, since its connection cannot be exchanged: %s", session.number, exc)
            return
        streams = Stream(self.reactor, client), Stream(self.reactor, end)
        self.carry_around(*streams, session, (drawn,), b"", b"", from_client=True)

    def leave(self, entry: Entry) -> None:
        """An entry acts no more."""
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

        def ask(one: Distorted) -> None:
            for drawn in tuple(one.drawn):
                acts = acting.get(drawn.entry)
                if acts:
                    one.put_on(drawn)
                elif acts is not None:
                    one.take_off(drawn.entry)

        self.reactor.spread(self.all, ask)
        seconds = min(entry.distort.schedule.next_look(clock, now - entry.began) for entry in scheduled)
        self.timer = self.loop.call_at(now + seconds, self.look)

    def close(self, reason: Close) -> None:
        """End the relays in front of other carriers."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.around.close(reason)


def passes(carrier: Carrier, session: Session) -> bool:
    """Whether a carrier gives a session to the relays as it is."""
    ask: Callable[[Session], bool] | None = getattr(carrier, "passes", None)
    return ask is not None and ask(session)


def say_fault(session: Session, error: str | None) -> None:
    """A fault has ended a session."""
    session.close = "fault"
    session.error = error
