"""Handing a compiled configuration from one process to another, so that the receiver is never held up.

What is unpickled at once holds a process up for as long as that takes, such as 0.1 s for 10,000 rules. So a large
container is cut into pieces of a few items, each a pickle of its own, and the reader may do something else
between two. Users are not unpickled at all, nor are lists of hosts: both are memory that the processes share.

    octets of the pieces (8), the pieces, each behind its length (4), padding to a page, the table of users,
    each list of hosts, and the configuration's own users and rules for who explains it, each padded to a page in front
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
from collections.abc import Generator, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from tabi.config.users import UserTable
from tabi.policy.host_list import HostList
from tabi.server.compiled import Compiled
from tabi.server.compose import load_callable

PIECE = 64
"""Items of a container in one pickle: as many regular expressions take 5 ms to be made again."""

LENGTH, ALL = struct.Struct("<I"), struct.Struct("<Q")
USERS, WHOLE, LISTS = -1, -2, -3
"""Stand for the table of users, for the last piece, and with all numbers below for lists of hosts."""

CONTAINERS: dict[type, type] = {dict: dict, list: list, set: set, tuple: list, frozenset: set}
"""What is cut, if it is of exactly that type, and what it is put together in."""


class Cutter(pickle.Pickler):
    """Pickles one object; large containers in it become pieces before it, and ``lists`` gets the lists of hosts."""

    def __init__(self, file: io.BytesIO, pieces: list[bytes], numbers: dict[int, int], lists: list[HostList]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.pieces = pieces
        self.numbers = numbers
        self.lists = lists

    def persistent_id(self, value: Any) -> int | None:
        """See `pickle.Pickler`: the number of a container that was cut, None for what is pickled here."""
        kind = type(value)
        if kind is UserTable:
            return USERS
        if kind is HostList:
            number = self.numbers.get(id(value))
            if number is None:
                number = self.numbers[id(value)] = LISTS - len(self.lists)
                self.lists.append(value)
            return number
        if kind not in CONTAINERS or len(value) <= PIECE:
            return None
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.numbers)
            items = list(value.items() if kind is dict else value)
            for start in range(0, len(items), PIECE):
                cut((number, kind, items[start : start + PIECE]), self.pieces, self.numbers, self.lists)
        return number


def cut(value: Any, pieces: list[bytes], numbers: dict[int, int], lists: list[HostList]) -> None:
    """Pickle something and add it after the pieces that it needs."""
    file = io.BytesIO()
    Cutter(file, pieces, numbers, lists).dump(value)
    pieces.append(file.getvalue())


Found = dict[int, tuple[type, Any]]
"""The containers that were cut, by their numbers: of which type, and what there is of it."""


class Joiner(pickle.Unpickler):
    """Reads one piece."""

    def __init__(self, data: memoryview, found: Found, users: UserTable, lists: Sequence[HostList]) -> None:
        super().__init__(io.BytesIO(data))
        self.found = found
        self.users = users
        self.lists = lists

    def persistent_load(self, number: int) -> Any:
        """See `pickle.Unpickler`."""
        if number == USERS:
            return self.users
        if number <= LISTS:
            return self.lists[LISTS - number]
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
    lists: list[HostList] = []
    whole = list(compiled._replace(config=bare, certificates=(), decide=None, make_resolver=None))
    cut((WHOLE, tuple, whole), pieces, {}, lists)
    # Workers do not read the last one, so only who asks for it pays.
    source = b"" if config.admin.listen is None else pickle.dumps((config.users, config.rule), pickle.HIGHEST_PROTOCOL)
    blocks = [users.data, *(memoryview(one.data) for one in lists), memoryview(source)]
    shapes = [(one.path, one.shape) for one in lists]
    pieces.insert(0, pickle.dumps(((len(users), len(users.slots), users.has), shapes, [len(one) for one in blocks])))
    size = ALL.size + sum(LENGTH.size + len(piece) for piece in pieces)
    with mmap_of(fd, pages(size) + sum(pages(len(block)) for block in blocks)) as memory:
        memory.write(ALL.pack(size))
        for piece in pieces:
            memory.write(LENGTH.pack(len(piece)) + piece)
        at = pages(size)
        for block in blocks:
            memory[at : at + len(block)] = block
            at += pages(len(block))


def pages(size: int) -> int:
    """Octets of the pages that so many octets take."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def mmap_of(fd: int, size: int) -> mmap.mmap:
    """Memory of an empty file that gets this size."""
    os.ftruncate(fd, size)
    return mmap.mmap(fd, size)


def read_source(fd: int) -> tuple[Any, Any]:
    """The users and the rules of the configuration as they were written, if it has a place for the admin API."""
    data = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    (end,), at = ALL.unpack_from(data), ALL.size
    (length,) = LENGTH.unpack_from(data, at)
    at += LENGTH.size
    *others, size = pickle.loads(data[at : at + length])[2]  # noqa: S301 - our own process has written it
    start = pages(end) + sum(map(pages, others))
    users, rules = pickle.loads(data[start : start + size])  # noqa: S301 - the same
    return users, rules


def read(fd: int) -> Generator[None, None, Compiled]:
    """Read what `write` has written, a piece between two yields. The file may be closed then. Certificates are not in
    it; the function that ``decide`` names is imported.

    Raises:
        ConfigError: that cannot be imported.
    """
    data = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    (end,), at = ALL.unpack_from(data), ALL.size
    users: Any = None
    lists: list[HostList] = []
    found: Found = {}
    while at < end:
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size + length
        piece = Joiner(data[at - length : at], found, users, lists).load()
        if users is None:
            (count, slots, has), shapes, sizes = piece
            starts = accumulate(map(pages, sizes), initial=pages(end))
            blocks = [data[start : start + size] for start, size in zip(starts, sizes, strict=False)]
            users = UserTable(blocks[0], slots, count, has)
            lists = [HostList(path, block, shape) for (path, shape), block in zip(shapes, blocks[1:-1], strict=True)]
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
