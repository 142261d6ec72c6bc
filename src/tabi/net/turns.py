"""Turns: one task at a time, fair between the clients that tasks work for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """A lock whose turns go round the clients for which tasks wait, so that one with many of them delays no other."""

    def __init__(self) -> None:
        self.taken = False
        self.waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        """The tasks of each client, the oldest first; the client whose turn is next is the first one."""

    @asynccontextmanager
    async def turn(self, client: Hashable) -> AsyncIterator[None]:
        """Wait for a turn of a client, and keep it until the end of the block."""
        if self.taken:
            await self.wait(client)
        self.taken = True
        try:
            yield
        finally:
            self.hand_on()

    async def wait(self, client: Hashable) -> None:
        """Wait behind the other tasks of a client."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(client, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            line = self.waiting.get(client)
            if not mine.cancelled():  # its turn has just come
                self.hand_on()
            elif line is not None and mine in line:
                line.remove(mine)
                if not line:
                    del self.waiting[client]
            raise

    def hand_on(self) -> None:
        """Give the turn to the next client, which goes behind the others then; if there is none, it is free."""
        self.taken = False
        while self.waiting and not self.taken:
            client, line = self.waiting.popitem(last=False)
            mine = line.popleft()
            if line:
                self.waiting[client] = line
            if not mine.done():  # else it was cancelled, and does not know it yet
                mine.set_result(None)
                self.taken = True
