"""The faults of one association: what its datagrams pass, by their destinations, and what waits for its time."""

from __future__ import annotations

import asyncio
from collections import deque
from heapq import heappop, heappush
from ipaddress import IPv4Address
from itertools import count
from typing import TYPE_CHECKING

from tabi.distort.choosing import add
from tabi.distort.datagram_line import Acting, DatagramLine
from tabi.distort.datagram_path import Path, Waiting, has_passed
from tabi.distort.draws import Drawn, Entry
from tabi.net.resolve import find_number
from tabi.policy.faults import Line
from tabi.relay.datagram import Association
from tabi.relay.datagram_inspector import Direction
from tabi.relay.inspection import MAX_NAMED
from tabi.session import Drop, Session
from tabi.wire.address import Address
from tabi.wire.datagram import decode_header

if TYPE_CHECKING:
    from tabi.distort.datagrams import DatagramFaults

ANY = Address(IPv4Address(0), 0)
"""The destination of an association whose datagrams may go anywhere: entries with ``hosts`` do not match it."""

MAX_PATHS = 512
"""Destinations of an association, each in one direction, that are remembered; beyond that the oldest is forgotten."""

MAX_WAITING = 16384
"""Datagrams of one association that wait for their time."""

MOST_COPIES = 64
"""Copies of one datagram at a time; beyond that none is duplicated."""

HELD_BACK = 0.1
"""Seconds after which a datagram goes on that was to be overtaken, if no other one comes."""

SOON = 0.0002
"""Seconds before its time that a datagram may go on, so that two that are due together take one timer."""

AT_ONCE = 64
"""Datagrams that go on in one turn of the loop; then others have theirs."""

LOST = Line(blackhole=True)
"""For datagrams to what is refused."""


class FaultyAssociation:
    """The faults of one association; see `relay.inspection.Faults`.

    Args:
        owner: has the entries.
        session: of the association.
    """

    def __init__(self, owner: DatagramFaults, session: Session) -> None:
        self.owner = owner
        self.session = session
        self.association: Association | None = None
        self.acting: dict[Entry, Acting | None] = {}
        """Those that match one of its destinations; None: it was not drawn."""
        self.paths: dict[tuple[Direction, Address], Path] = {}
        self.version = 0  # of the entries: paths of an earlier one are found anew
        self.waiting: list[tuple[float, int, Waiting]] = []  # a heap
        self.held = 0
        self.numbers = count()
        self.timer: asyncio.TimerHandle | None = None

    # --- entries ---

    def match(self, *destination: Address) -> list[Acting]:
        """The entries that act on datagrams of a destination, in their order. Those that are new are drawn.

        Args:
            destination: its name and its address, as far as they are known: one of them is enough.
        """
        distorts, entries, now = self.owner.distorts, self.owner.distortion.entries, self.owner.distortion.clock()
        found = {distort for one in destination for distort in distorts.matching(self.session, now, one)}
        asked = [self.ask(entries[distort]) for distort in distorts if distort in found]
        return [acting for acting in asked if acting is not None]

    def ask(self, entry: Entry) -> Acting | None:
        """An entry at work here; None if the association is not drawn for it."""
        if entry not in self.acting:
            drawn = entry.draw()
            self.acting[entry] = None
            if drawn is not None:
                self.session.distorted = add(self.session.distorted, (drawn,), frozenset())
                self.act(drawn)
        return self.acting[entry]

    def act(self, drawn: Drawn) -> None:
        """Have an entry act, with the fault that it has now."""
        self.acting[drawn.entry] = acting = Acting(drawn, self.owner.time())
        drawn.entry.active += 1
        self.count(acting)

    def count(self, acting: Acting) -> None:
        """Count the time that an entry acts, for ends and stalls: from when its schedule has it begin, each time."""
        association, entry, end = self.association, acting.drawn.entry, acting.end
        schedule = entry.distort.schedule
        if association is None or (end is None and not (schedule and acting.stalls)):
            return
        now = self.owner.time()
        seconds = schedule.next_look(entry.clock(), now - entry.began)
        if not entry.acts(now):
            acting.since = None
        elif acting.since is None:
            acting.begin(now)
        if end is not None and acting.since is not None:
            left = acting.since + end[0] - now
            if left <= 0:
                association.end("fault", f"{entry.distort.label}: {end[1]} after {end[0]:g} s", end[1] == "reset")
                return
            seconds = min(seconds, left)
        if acting.counting is not None:
            acting.counting.cancel()
        acting.counting = self.owner.loop.call_later(seconds, self.count, acting)

    def begin(self, association: Association) -> None:
        """The association runs."""
        self.association = association
        for acting in filter(None, tuple(self.acting.values())):
            self.count(acting)
        self.renew()

    def renew(self) -> None:
        """The entries are others, or have other faults. If one acts no more as it did, what waits goes on at once."""
        entries = set(self.owner.distortion.entries.values())
        gone = [entry for entry in self.acting if entry not in entries]
        changed = [one.drawn for one in self.acting.values() if one and one.fault is not one.drawn.entry.fault]
        if sum(map(self.forget, (*gone, *(drawn.entry for drawn in changed)))):
            self.flush()
        for drawn in changed:
            self.act(drawn)
        self.version += 1
        self.match(ANY)
        self.decide()

    @property
    def acts(self) -> bool:
        """Whether an entry acts on one of its destinations, as far as they are known."""
        return any(self.acting.values())

    def decide(self) -> None:
        """Have its datagrams pass here if an entry acts on some of them, or if they are taken apart anyway. Else they
        go at full speed, and `watch` hears of new destinations."""
        association = self.association
        if association is None:
            return
        inspection = association.inspection
        inspect = None if inspection is None else inspection.inspect
        if not self.acts:
            self.look_around(association)
        here = self.acts or inspect is not None or association.session.protection is not None
        association.look_into(inspect, self if here else None)
        association.watch = None if here else self.watch

    def look_around(self, association: Association) -> None:
        """Ask for the destinations that the association knows already."""
        for header in association.router.routes:
            self.match(decode_header(header)[1])
        for address, name in association.router.find_named(MAX_NAMED).items():
            self.match(name, address)

    def watch(self, direction: Direction, destination: Address, address: Address | None = None) -> None:
        """See `relay.inspection.Watch`."""
        if address is not None:
            self.match(destination, address)
        else:
            path = self.paths.get((direction, destination))
            if path is None or path.version != self.version:
                self.find_path(direction, destination)
        if self.acts:
            self.version += 1  # what was found without the address
            self.decide()

    def forget(self, entry: Entry) -> bool:
        """An entry acts no more; whether it has acted."""
        acting = self.acting.pop(entry)
        if acting is None:
            return False
        entry.active -= 1
        for timer in (*acting.timers, acting.counting):
            if timer is not None:
                timer.cancel()
        return True

    # --- datagrams ---

    def find_path(self, direction: Direction, destination: Address) -> Path:
        """What datagrams of a destination pass now."""
        key = direction, destination
        path = self.paths.get(key)
        if path is None:
            if len(self.paths) >= MAX_PATHS:
                del self.paths[next(iter(self.paths))]
            path = self.paths[key] = Path()
        if path.version == self.version:
            return path
        before = {entry for entry, _ in path.lines}
        path.version, path.lines, path.arrivals = self.version, [], {}
        now, named = self.owner.time(), is_name(destination)
        for acting in self.match(destination, *self.addresses_of(destination)):
            entry, fault = acting.drawn.entry, acting.drawn.entry.fault
            if fault.refuse is not None or (named and fault.resolve is not None):
                path.lines.append((entry, DatagramLine(LOST, entry.dice)))
            path.lines.append((entry, acting.lines[direction]))
            if fault.resolve_delay and named and direction == "up" and entry not in before and entry.acts(now):
                path.opens_at = max(path.opens_at, now) + fault.resolve_delay
        return path

    def addresses_of(self, destination: Address) -> list[Address]:
        """The address of a name, if it is known."""
        inspection = None if self.association is None else self.association.inspection
        named = {} if inspection is None else inspection.named
        return [address for address, name in named.items() if name == destination]

    def found(self, destination: Address) -> None:
        """See `relay.inspection.Faults`: entries with addresses may act on it from now on."""
        for key in (("up", destination), ("down", destination)):
            if key in self.paths:
                self.paths[key].version = -1

    def carry(self, direction: Direction, address: Address, payload: bytes) -> None:
        """See `relay.inspection.Faults`."""
        association = self.association
        if association is None or association.closed or association.inspection is None:
            return
        destination = association.inspection.named.get(address, address) if direction == "down" else address
        path = self.paths.get((direction, destination))
        if path is None or path.version != self.version:
            path = self.find_path(direction, destination)
        now = self.owner.time()
        one = Waiting(now, path, direction, address, payload)
        if path.lines and path.opens_at > now:
            self.come(one, path.opens_at)
        else:
            self.pass_on(one, False)

    def pass_on(self, one: Waiting, has_come: bool) -> None:
        """Have a datagram pass the entries, up to the first that makes it late: the next one sees it when it comes
        there. So it is in nobody's way before that.

        Args:
            one: it.
            has_come: whether it has waited for the next entry, and its time has come.
        """
        now, arrivals, todo, over = self.owner.time(), one.path.arrivals, [one], []
        while todo:
            one = todo.pop()
            if one.at == len(one.lines):
                self.put(one)
                continue
            entry, line = one.lines[one.at]
            if arrivals and not has_come and self.is_behind(one, line, now):
                self.come(one, one.when)
                continue
            has_come = False
            one.at += 1
            if not entry.acts(now):
                todo.append(one)
                continue
            began, found = one.when, line.pass_on(one.when, one.payload)
            if not found:
                self.drop("fault")
            elif len(todo) >= MOST_COPIES:
                del found[1:]
            copies = [one.copy() for _ in found[1:]]
            for when, one.payload in found:
                one.overtaken |= line.is_overtaken()
                if when > began and one.at < len(one.lines):
                    self.come(one, when)
                else:
                    one.when = when
                    todo.insert(0, one)  # behind the others
                one = copies.pop() if copies else one
            if line.is_over:
                over.append((entry, line))
        for entry, line in over:
            self.reach_limit(one.path, entry, line)

    def is_behind(self, one: Waiting, line: DatagramLine, now: float) -> bool:
        """Whether others of its destination have still to come to the next line before it."""
        arrival = one.path.arrivals.get(line)
        return arrival is not None and (arrival > one.when or (bool(self.waiting) and self.waiting[0][0] <= now))

    def come(self, one: Waiting, when: float) -> None:
        """Have a datagram come to the next line at a time, in the order of its destination."""
        arrivals, line = one.path.arrivals, one.lines[one.at][1]
        arrivals[line] = one.when = max(when, arrivals.get(line, when))
        self.hold(one)

    def put(self, one: Waiting) -> None:
        """Have a datagram go on at its time, in the order of its destination unless others overtake it."""
        now, path = self.owner.time(), one.path
        one.when = max(one.when, path.last)
        if one.overtaken:
            one.when += HELD_BACK
            if self.hold(one):
                path.held_back.append(one)
                while path.held_back[0].gone:  # which nothing has overtaken
                    path.held_back.popleft()
            return
        path.last = one.when
        if one.when > now or (self.waiting and self.waiting[0][0] <= now):
            self.hold(one)
        else:
            self.send(one)
        if path.held_back:  # they follow it
            held_back, path.held_back = path.held_back, deque()
            for other in held_back:
                if not other.gone and other.when > one.when:
                    other.when = one.when
                    self.push(other)

    def hold(self, one: Waiting) -> bool:
        """Keep a datagram until its time, if there is room for it."""
        memory = self.owner.memory
        if len(self.waiting) >= MAX_WAITING or memory.room(self.held) < one.octets:
            self.drop("waiting")
            return False
        self.held += one.octets
        memory.held += one.octets
        self.push(one)
        return True

    def push(self, one: Waiting) -> None:
        """Have it go on at its time. It may be pushed once more, with an earlier time."""
        number = next(self.numbers)
        heappush(self.waiting, (one.when, number, one))
        if self.waiting[0][1] == number:
            self.set_timer(one.when - self.owner.time())

    def set_timer(self, seconds: float) -> None:
        """Have `go` called for the next datagram."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.owner.loop.call_later(max(0.0, seconds), self.go)

    def go(self) -> None:
        """Send what is due."""
        self.timer = None
        now = self.owner.time()
        self.send_until(now + SOON, AT_ONCE)
        if self.waiting:
            self.set_timer(self.waiting[0][0] - now)

    def send_until(self, when: float, most: int = 2 * MAX_WAITING) -> None:
        """Send what goes on until a time, in its order, and have pass on what has come to an entry."""
        waiting = self.waiting
        while waiting and waiting[0][0] <= when and most:
            most -= 1
            one = heappop(waiting)[2]
            if one.gone:
                continue
            self.give_back(one.octets)
            if one.at < len(one.lines):
                self.pass_on(one, True)
            else:
                one.gone = True
                self.send(one)

    def flush(self) -> None:
        """Send all that waits, in its order. What has not come to an entry yet that still acts passes that one now."""
        now = self.owner.time()
        waiting = sorted(self.waiting, key=lambda item: (len(item[2].lines) - item[2].at, *item[:2]))
        self.waiting.clear()
        for path in {*self.paths.values(), *(one.path for _, _, one in waiting)}:
            path.last = path.opens_at = 0.0
            path.arrivals.clear()
            path.held_back.clear()
        for _, _, one in waiting:
            if one.gone:
                continue
            self.give_back(one.octets)
            if one.at == len(one.lines):
                one.gone = True
                self.send(one)
            else:
                one.when, one.lines, one.at = now, [left for left in one.lines[one.at :] if left[0] in self.acting], 0
                self.pass_on(one, True)

    def send(self, one: Waiting) -> None:
        """Send a datagram."""
        if self.association is not None and self.association.inspection is not None:
            self.association.inspection.send(one.direction, one.address, one.payload)

    def give_back(self, octets: int) -> None:
        """They wait no more."""
        self.held -= octets
        self.owner.memory.held -= octets

    def reach_limit(self, path: Path, entry: Entry, line: DatagramLine) -> None:
        """End the association behind the last datagram that passes."""
        acting = self.acting.get(entry)
        if acting is None or acting.ending:
            return
        acting.ending = True

        def end() -> None:
            now = self.owner.time()
            self.send_until(now)
            last = max((when for when, _, one in self.waiting if has_passed(one, path, line)), default=now)
            if last > now:
                acting.timers.append(self.owner.loop.call_later(last - now, end))
            elif self.association is not None:
                why = f"{entry.distort.label}: the limit of {line.line.limit} octets"
                self.association.end("fault", why, reset=entry.fault.then == "reset")

        acting.timers.append(self.owner.loop.call_later(max(0.0, path.last - self.owner.time()), end))

    def drop(self, reason: Drop, number: int = 1) -> None:
        """Count datagrams that go nowhere."""
        drops = self.session.drops
        if drops is not None and number:
            drops[reason] = drops.get(reason, 0) + number

    # --- the end ---

    def leave(self) -> None:
        """No entry may act on it any more: what waits goes on, and so do all others, at full speed."""
        for entry in tuple(self.acting):
            self.forget(entry)
        self.flush()
        association = self.association
        if association is not None:
            inspection, association.watch = association.inspection, None
            association.look_into(None if inspection is None else inspection.inspect)

    def over(self) -> None:
        """It has ended: what waits is dropped."""
        self.owner.faulty.pop(self.session, None)
        for entry in tuple(self.acting):
            self.forget(entry)
        if self.timer is not None:
            self.timer.cancel()
        self.drop("waiting", len({id(one) for _, _, one in self.waiting if not one.gone}))
        self.waiting.clear()
        self.give_back(self.held)


def is_name(destination: Address) -> bool:
    """Whether a destination is a name that has to be resolved."""
    return isinstance(destination.host, str) and find_number(destination.host) is None
