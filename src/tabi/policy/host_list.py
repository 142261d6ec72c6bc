"""Long lists of hosts, such as a million names: compiled into one piece of memory, which processes share.

    records                     each name behind the other, each with a line feed; ".example.com" is for all below it
    slots (4 octets each)       where a name's record begins, 0 if none; found by the hash of the record
    first, last (4 octets each) disjoint ranges of IPv4 addresses, in order: all that are first, then all that are last
    the same of IPv6            in two columns each: the upper 8 octets, then the lower 8

As objects of Python they would take four times as much, in each worker. The hash is keyed by the process, so that
nobody can write a list whose names all collide: only processes that were forked from one another share a list.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from tabi.policy.networks import IP, Network, NetworkSet

FEWEST_SLOTS = 8
SPARSE = 4
"""Slots for each record, at least: most names that are not in a list meet an empty one at once."""
END = b"\n"
LOWER = (1 << 64) - 1
"""The lower half of an IPv6 address."""


class Shape(NamedTuple):
    """What there is of each, in the memory of a `HostList`."""

    records: int = 0
    """Octets of the records, a multiple of 8."""
    slots: int = 0
    fewest: int = 0
    """The labels of the shortest record that is for names below it, and of the longest one; 0 if there is none."""
    most: int = 0
    ranges4: int = 0
    ranges6: int = 0
    unix: bool = False
    """Whether clients of unix sockets belong to it."""


NOTHING = Shape()


class HostList:
    """Names, names below others, and networks. It does not change. Two of one path are equal: a configuration reads
    each file once.

    Args:
        path: of the file.
        data: the memory, as `Builder` makes it.
        shape: what is in it.
    """

    __slots__ = ("data", "first4", "first6", "last4", "last6", "low6", "low_last6", "mask", "path", "shape", "slots")

    def __init__(self, path: str, data: Any = b"", shape: Shape = NOTHING) -> None:
        self.path = path
        self.data = data
        self.shape = shape
        at, view = shape.records, memoryview(data)

        def column(kind: Literal["I", "Q"], size: int, count: int) -> Any:
            nonlocal at
            at += size * count
            return view[at - size * count : at].cast(kind)

        self.slots = column("I", 4, shape.slots)
        self.mask = shape.slots - 1
        self.first4, self.last4 = column("I", 4, shape.ranges4), column("I", 4, shape.ranges4)
        self.first6, self.low6, self.last6, self.low_last6 = (column("Q", 8, shape.ranges6) for _ in range(4))

    def __repr__(self) -> str:
        return f"HostList({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostList) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def has_networks(self) -> bool:
        """Whether there are networks, so that the addresses of names matter."""
        return bool(self.shape.ranges4 or self.shape.ranges6)

    def has_name(self, text: str) -> bool:
        """Whether a name, in the form in which names are compared, is one of the list or below one with a star."""
        slots, mask, data = self.slots, self.mask, self.data
        if not slots:
            return False
        record = text.encode("utf-8", "replace") + END
        size, place = len(record), hash(record) & mask
        while at := slots[place]:
            if data[at : at + size] == record:
                return True
            place = place + 1 & mask
        dot, fewest = size, self.shape.fewest
        for labels in range(1, self.shape.most + 1):
            dot = record.rfind(b".", 0, dot)
            if dot < 0:
                return False
            if labels < fewest:
                continue
            below = record[dot:]
            place = hash(below) & mask
            while at := slots[place]:
                if data[at : at + size - dot] == below:
                    return True
                place = place + 1 & mask
        return False

    def entry_of(self, text: str) -> str | None:
        """The entry by which a name is in the list, as it could be written there; None if it is not."""
        for at in (0, *(place for place, letter in enumerate(text) if letter == ".")):
            record = text[at:].encode("utf-8", "replace") + END
            place = hash(record) & self.mask
            while self.slots and (start := self.slots[place]):
                if self.data[start : start + len(record)] == record:
                    return f"*{text[at:]}" if at else text
                place = place + 1 & self.mask
        return None

    def __contains__(self, address: IP) -> bool:
        value = int(address)
        if address.version == 4:
            place = bisect_right(self.first4, value) - 1
            return place >= 0 and value <= self.last4[place]
        high, low, first = value >> 64, value & LOWER, self.first6
        place = bisect_right(first, high)
        if place and first[place - 1] == high:
            place = bisect_right(self.low6, low, bisect_left(first, high, 0, place), place)
        place -= 1
        return place >= 0 and (high, low) <= (self.last6[place], self.low_last6[place])


class Builder:
    """Makes a `HostList`, of names and networks in any order, and as often as they come."""

    def __init__(self) -> None:
        self.records = bytearray(END)  # none begins at 0
        self.names = 0
        self.labels: set[int] = set()
        """Those of the records that are for names below them."""
        self.ranges4 = array("Q")
        self.ranges6: list[int] = []
        self.unix = False

    def add_name(self, name: bytes) -> None:
        """Add a name in the form in which it is compared."""
        self.records += name + END
        self.names += 1

    def add_range4(self, first: int, last: int) -> None:
        """Add addresses of IPv4, as numbers."""
        self.ranges4.append(first << 32 | last)

    def add(self, host: str | Network) -> None:
        """Add a name, as `add_name`, or with ``*.`` in front all that are below it; or a network."""
        if isinstance(host, str):
            if host.startswith("*"):
                host = host[1:]
                self.labels.add(host.count("."))
            self.add_name(host.encode())
        elif host.version == 4:
            self.add_range4(int(host.network_address), int(host.broadcast_address))
        else:
            self.ranges6.append(int(host.network_address) << 128 | int(host.broadcast_address))

    def build(self, path: str) -> HostList:
        """The list."""
        slots = self.slots()
        padding = bytes(-len(self.records) % 8)
        columns = [array("I"), array("I"), array("Q"), array("Q"), array("Q"), array("Q")]
        for first, last in merged(self.ranges4, 32):
            columns[0].append(first)
            columns[1].append(last)
        for first, last in merged(self.ranges6, 128):
            for column, value in zip(columns[2:], (first >> 64, first & LOWER, last >> 64, last & LOWER), strict=True):
                column.append(value)
        records, labels = len(self.records) + len(padding), self.labels or {0}
        shape = Shape(records, len(slots), min(labels), max(labels), len(columns[0]), len(columns[2]), self.unix)
        return HostList(path, b"".join((self.records, padding, slots, *columns)), shape)

    def slots(self) -> array[int]:
        """Where the records are, each once."""
        count = FEWEST_SLOTS if self.names else 0
        while count < SPARSE * self.names:
            count *= 2
        slots, mask, records = array("I", bytes(4 * count)), count - 1, bytes(self.records)
        at = 1
        while at < len(records):
            end = records.index(END, at) + 1
            record = records[at:end]
            place = hash(record) & mask
            while (other := slots[place]) and not records.startswith(record, other):
                place = place + 1 & mask
            slots[place] = other or at
            at = end
        return slots


def merged(ranges: Iterable[int], bits: int) -> Iterator[tuple[int, int]]:
    """Ranges in order, those that touch as one; each is given as its first number in front of ``bits`` of its last."""
    mask, begin, end = (1 << bits) - 1, -1, -2
    for both in sorted(ranges):
        first, last = both >> bits, both & mask
        if first <= end + 1 and begin >= 0:
            end = max(end, last)
            continue
        if begin >= 0:
            yield begin, end
        begin, end = first, last
    if begin >= 0:
        yield begin, end


class ListedNetworks(NetworkSet):
    """A `NetworkSet` with those of lists; ``networks`` has only the others.

    Args:
        others: networks that are in no list.
        lists: lists with more.
    """

    __slots__ = ("lists",)

    def __init__(self, others: NetworkSet, lists: tuple[HostList, ...]) -> None:
        super().__init__(others.networks, others.unix or any(one.shape.unix for one in lists))
        self.lists = lists

    def __contains__(self, address: IP) -> bool:
        return super().__contains__(address) or any(address in one for one in self.lists)

    def __bool__(self) -> bool:
        return super().__bool__() or any(one.has_networks for one in self.lists)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ListedNetworks) and super().__eq__(other) and self.lists == other.lists

    def __hash__(self) -> int:
        return hash((self.networks, self.unix, self.lists))
