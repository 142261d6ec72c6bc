"""Handing a compiled configuration from one process to another, so that the receiver is never held up.

What is unpickled at once holds a process up for as long as that takes, such as 0.1 s for 10,000 rules. So a large
container is cut into pieces of a few items, each a pickle of its own, and the reader may do something else
between two. Users are not unpickled at all: their table is memory that both processes share.

    octets of the pieces (8), the pieces, each behind its length (4), padding to a page, the table of users
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
from collections.abc import Generator
from typing import Any

import msgspec

from tabi.config.users import UserTable
from tabi.server.compiled import Compiled
from tabi.server.compose import load_callable

PIECE = 64
"""Items of a container in one pickle: as many regular expressions take 5 ms to be made again."""

LENGTH, ALL = struct.Struct("<I"), struct.Struct("<Q")
USERS, WHOLE = -1, -2
"""Stand for the table of users, and for the last piece."""

CONTAINERS: dict[type, type] = {dict: dict, list: list, set: set, tuple: list, frozenset: set}
"""What is cut, if it is of exactly that type, and what it is put together in."""


class Cutter(pickle.Pickler):
    """Pickles one object; large containers in it become pieces before it."""

    def __init__(self, file: io.BytesIO, pieces: list[bytes], numbers: dict[int, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.pieces = pieces
        self.numbers = numbers

    def persistent_id(self, value: Any) -> int | None:
        """See `pickle.Pickler`: the number of a container that was cut, None for what is pickled here."""
        kind = type(value)
        if kind is UserTable:
            return USERS
        if kind not in CONTAINERS or len(value) <= PIECE:
            return None
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.numbers)
            items = list(value.items() if kind is dict else value)
            for start in range(0, len(items), PIECE):
                cut((number, kind, items[start : start + PIECE]), self.pieces, self.numbers)
        return number


def cut(value: Any, pieces: list[bytes], numbers: dict[int, int]) -> None:
    """Pickle something and add it after the pieces that it needs."""
    file = io.BytesIO()
    Cutter(file, pieces, numbers).dump(value)
    pieces.append(file.getvalue())


Found = dict[int, tuple[type, Any]]
"""The containers that were cut, by their numbers: of which type, and what there is of it."""


class Joiner(pickle.Unpickler):
    """Reads one piece."""

    def __init__(self, data: memoryview, found: Found, users: UserTable) -> None:
        super().__init__(io.BytesIO(data))
        self.found = found
        self.users = users

    def persistent_load(self, number: int) -> Any:
        """See `pickle.Unpickler`."""
        if number == USERS:
            return self.users
        kind, value = self.found[number]
        if type(value) is not kind:  # all of it is there now
            value = kind(value)
            self.found[number] = kind, value
        return value


def write(compiled: Compiled, fd: int) -> None:
    """Write a compiled configuration into an empty file, such as one of memfd_create(2)."""
    config, users = compiled.config, compiled.users
    bare = msgspec.structs.replace(config, users={}, rule=[])  # both are there compiled
    pieces: list[bytes] = []
    cut((len(users), len(users.slots), users.has), pieces, {})
    cut(
        (WHOLE, tuple, list(compiled._replace(config=bare, certificates=(), decide=None, make_resolver=None))),
        pieces,
        {},
    )
    size = ALL.size + sum(LENGTH.size + len(piece) for piece in pieces)
    start = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    os.ftruncate(fd, start + len(users.data))
    with mmap.mmap(fd, start + len(users.data)) as memory:
        memory.write(ALL.pack(size))
        for piece in pieces:
            memory.write(LENGTH.pack(len(piece)) + piece)
        memory[start:] = users.data


def read(fd: int) -> Generator[None, None, Compiled]:
    """Read what `write` has written, a piece between two yields. The file may be closed then. Certificates are not in
    it; the function that ``decide`` names is imported.

    Raises:
        ConfigError: that cannot be imported.
    """
    data = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    (end,), at = ALL.unpack_from(data), ALL.size
    users: Any = None
    found: Found = {}
    while at < end:
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size + length
        piece = Joiner(data[at - length : at], found, users).load()
        if users is None:
            count, slots, has = piece
            users = UserTable(data[-(-end // mmap.PAGESIZE) * mmap.PAGESIZE :], slots, count, has)
            continue
        number, kind, items = piece
        _, value = found.setdefault(number, (kind, CONTAINERS[kind]()))
        if isinstance(value, list):
            value += items
        else:
            value.update(items)
        yield
    compiled = Compiled(*found[WHOLE][1])
    decide = compiled.config.decide
    return compiled._replace(decide=None if decide is None else load_callable(decide, "decide"))
