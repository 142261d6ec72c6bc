"""A number of places for which clients wait in lines of their own, so that one with many tasks delays no other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable


class Held:
    """A place, for the length of a block; see `Places.held_by`."""

    __slots__ = ("client", "places")

    def __init__(self, places: Places, client: Hashable) -> None:
        self.places = places
        self.client = client

    async def __aenter__(self) -> None:
        if not self.places.take(self.client):
            await self.places.wait(self.client)

    async def __aexit__(self, *error: object) -> None:
        self.places.give_back(self.client)


class Places:
    """Places for ``size`` things at a time. A client has at most as many as are free; then its tasks wait in a line.

    So there is a place for the next client, however many the others want, and one client alone has half of them. One
    place is a lock whose turns go round the clients.
    """

    def __init__(self, size: int) -> None:
        self.free = size
        self.held: dict[Hashable, int] = {}
        """How many each client has."""
        self.waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        """The line of each client; the first client is the next one."""

    def take(self, client: Hashable) -> bool:
        """Take a place, if there is one at once; `give_back` must follow."""
        if client in self.waiting or not self.has_room(client):
            return False
        self.count(client, 1)
        return True

    def held_by(self, client: Hashable) -> Held:
        """Wait for a place, and keep it until the end of the block: ``async with places.held_by(client):``."""
        return Held(self, client)

    async def wait(self, client: Hashable) -> None:
        """Wait for a place, and take it. The caller sets the deadline."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(client, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # the place has just come
                self.give_back(client)
            else:
                line = self.waiting.get(client)
                if line is not None and mine in line:
                    self.leave(client, line, mine)
            raise

    def give_back(self, client: Hashable) -> None:
        """Give a place to the next client that may have one."""
        self.count(client, -1)
        if not self.waiting:
            return
        for other, line in tuple(self.waiting.items()):
            while line and self.has_room(other):
                mine = line[0]
                self.leave(other, line, mine)
                if not mine.done():  # else it was cancelled, and does not know it yet
                    mine.set_result(None)
                    self.count(other, 1)
                    return

    def has_room(self, client: Hashable) -> bool:
        """Whether a client may have one more."""
        return self.held.get(client, 0) < self.free

    def count(self, client: Hashable, more: int) -> None:
        """Count a place that is taken or given back."""
        self.free -= more
        count = self.held.pop(client, 0) + more
        if count:
            self.held[client] = count

    def leave(self, client: Hashable, line: deque[asyncio.Future[None]], mine: asyncio.Future[None]) -> None:
        """Leave the line; the client goes behind the others."""
        line.remove(mine)
        if line:
            self.waiting.move_to_end(client)
        else:
            del self.waiting[client]
