"""Names that are known already: answers within their time to live, and hosts of the configuration.

A name that is known costs a look into a dict: no task, no turn of the loop (`NameCache.lookup`). Any other name is
asked for once, on behalf of all tasks that want it (`NameCache.resolve`). The question lasts until it is answered, even
if the tasks have left: the next one finds the answer.

LOOKUPS are under way at a time, and a client has as many of them at most as are free (`Places`): who wants more waits,
and nobody else.

Times are seconds of the clock that is passed in. RFC 2308 is about negative answers, RFC 9520 about failures.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv6Address
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tabi.errors import DialError
from tabi.net.places import Places
from tabi.net.resolve import IP, LOOKUPS, Answer, Source
from tabi.wire.address import Host
from tabi.wire.socks5 import ReplyCode

if TYPE_CHECKING:  # clients need no configuration, and it takes a fifth of their start to import
    from tabi.config import Prefer

Holder = Host | bytes | None

SIZE = 10_000
"""Names that are kept: about 5 MB when it is full."""

MIN_TTL, MAX_TTL = 1.0, 3600.0
"""Minimum and maximum seconds that an answer is kept, whatever its time to live. The maximum makes sure that a
destination that has moved is found again soon."""

NEGATIVE_TTL = 5.0
"""Maximum seconds to remember that a name does not exist or has no address."""

FAILURE_TTL = 1.0
"""Seconds to remember that a lookup failed: RFC 9520 section 3.2 wants 1 s to 5 min, so that a name server in trouble
is not asked again for each client."""


class Entry(NamedTuple):
    """The facts about a name, or about an address."""

    until: float
    addresses: tuple[IP, ...]
    """Of a name, best first; empty if there are none, which is an error."""
    text: str = ""
    """That error's text, the name in it."""
    name: str | None = None
    """Of an address; None where it has none, which is an error too."""


class NameCache:
    """Resolves names by a source, and remembers.

    Args:
        source: asked for what is not known; closed with the cache.
        hosts: names that are never asked for, lower case and without a dot at the end, and their addresses.
        prefer: which kind of addresses comes first, or is the only one.
        size: names and addresses that are kept, those that were not asked for the longest time go first; 0 keeps none.
        min_ttl: seconds that an answer is kept at least.
        max_ttl: and at most.
        negative_ttl: and at most where a name has no address.
        clock: seconds that never go back.
        names_alone: the source has no search domains, so that a dot at the end of a name changes nothing.
    """

    def __init__(
        self,
        source: Source,
        hosts: Mapping[str, Sequence[IP]] | None = None,
        prefer: Prefer = "any",
        size: int = SIZE,
        min_ttl: float = MIN_TTL,
        max_ttl: float = MAX_TTL,
        negative_ttl: float = NEGATIVE_TTL,
        clock: Callable[[], float] = monotonic,
        names_alone: bool = False,
    ) -> None:
        self.source = source
        self.prefer = prefer
        self.size = size
        self.min_ttl, self.max_ttl, self.negative_ttl = min_ttl, max_ttl, negative_ttl
        self.clock = clock
        self.names_alone = names_alone
        self.hosts = {name: self.make_entry(name, addresses, float("inf")) for name, addresses in (hosts or {}).items()}
        self.names: dict[IP, str] = {}
        """What addresses of ``hosts`` are called: the first name that has it."""
        for name, addresses in (hosts or {}).items():
            for address in addresses:
                self.names.setdefault(address, name)
        self.entries: OrderedDict[str | IP, Entry] = OrderedDict()
        self.questions: dict[str | IP, asyncio.Task[Entry]] = {}
        self.closed = False
        self.observe: Callable[[float], object] | None = None
        """Told the seconds that each answer took."""
        self.places = Places(LOOKUPS)
        self.late: dict[asyncio.Task[Answer], None] = {}
        """Answers of which one kind of addresses is there already, the oldest first."""

    def lookup(self, name: str) -> Sequence[IP] | None:
        """The addresses of a name, best first, at least one; None where it has to be asked for.

        Raises:
            DialError: it is known to have none.
        """
        key = self.key_of(name)
        entry = self.entries.get(key)
        if entry is None:
            entry = self.hosts.get(key.removesuffix("."))
            if entry is None:
                return None
        elif entry.until <= self.clock():
            return None
        else:
            self.entries.move_to_end(key)
        return entry.addresses or found(entry)

    async def resolve(self, name: str, client: Host | None = None) -> list[IP]:
        """See `Resolver`. The caller sets the deadline. ``client`` is the host that it is for.

        Raises:
            DialError: there are none.
        """
        known = self.lookup(name)
        if known is not None:
            return list(known)
        return list(found(await self.find(self.key_of(name), client)))

    async def reverse(self, address: IP, client: Host | None = None) -> str:
        """What an address is called, as `check_found_name` has it. The caller sets the deadline. See `resolve`.

        Raises:
            DialError: as `resolve`.
        """
        name = self.names.get(address)
        if name is not None:
            return name
        entry = self.entries.get(address)
        if entry is None or entry.until <= self.clock():
            entry = await self.find(address, client)
        else:
            self.entries.move_to_end(address)
        if entry.name is None:
            raise DialError(entry.text, ReplyCode.HOST_UNREACHABLE)
        return entry.name

    async def find(self, key: str | IP, client: Host | None) -> Entry:
        """Have a name or an address asked for, and wait for the answer. Raises DialError."""
        question = self.questions.get(key)
        if question is None:
            holder = holder_of(client)
            if not self.places.take(holder):
                await self.places.wait(holder)
                entry = self.entries.get(key)
                if self.closed or (entry is not None and entry.until > self.clock()):  # found for another task
                    self.places.give_back(holder)
                    return entry or self.fail(key)
            question = self.ask(key, holder)
        await asyncio.wait((question,))  # a waiter that is cancelled leaves the question alone
        return self.fail(key) if question.cancelled() else question.result()

    def fail(self, key: str | IP) -> NoReturn:
        """Raise DialError: there will be no answer."""
        raise DialError(f"{key}: the resolver was closed", ReplyCode.GENERAL_FAILURE)

    def key_of(self, name: str) -> str:
        """The form of a name that is asked for and remembered."""
        key = name.lower()
        return key.removesuffix(".") or key if self.names_alone else key

    def ask(self, key: str | IP, holder: Holder) -> asyncio.Task[Entry]:
        """Put a question to the source, and keep it and its place until it is answered."""

        def answered(question: asyncio.Task[Entry]) -> None:
            del self.questions[key]
            self.places.give_back(holder)
            if not question.cancelled():
                question.exception()  # retrieved here, because perhaps no task waits for it any more

        question = self.questions.get(key)
        if question is not None:  # another task has asked, while this one waited for a place
            self.places.give_back(holder)
            return question
        question = self.questions[key] = asyncio.get_running_loop().create_task(self.find_out(key))
        question.add_done_callback(answered)
        return question

    async def find_out(self, key: str | IP) -> Entry:
        """Ask the source, and remember what it says."""
        began = self.clock()
        try:
            if isinstance(key, str):
                answer = await self.source.answer(key)
                entry = self.make_answer(key, answer)
                if answer.rest is not None:
                    self.await_rest(key, answer.rest)
            else:
                named = await self.source.reverse(key)
                until = self.end_of(named.ttl, named.name is not None)
                entry = Entry(until, (), f"{key}: {named.text}", named.name)
        except DialError as exc:
            if exc.reply_code != ReplyCode.HOST_UNREACHABLE:  # our own failure says nothing about the name
                raise
            entry = Entry(self.clock() + min(FAILURE_TTL, self.negative_ttl), (), str(exc))
        if self.observe is not None:
            self.observe(self.clock() - began)
        self.keep(key, entry)
        return entry

    def make_answer(self, name: str, answer: Answer) -> Entry:
        """The entry for what a source says. If a kind of addresses is missing, because it was not answered, the others
        are kept no longer than that a name does not exist."""
        until = self.end_of(answer.ttl, bool(answer.addresses))
        if not answer.whole:
            until = min(until, self.clock() + self.negative_ttl)
        return self.make_entry(name, answer.addresses, until, answer.text)

    def await_rest(self, name: str, rest: asyncio.Task[Answer]) -> None:
        """Have an answer remembered as soon as all of it is there; the oldest is given up if there are too many."""

        def arrived(rest: asyncio.Task[Answer]) -> None:
            self.late.pop(rest, None)
            if not rest.cancelled() and rest.exception() is None:
                self.keep(name, self.make_answer(name, rest.result()))

        self.late[rest] = None
        rest.add_done_callback(arrived)
        if len(self.late) > LOOKUPS:
            oldest = next(iter(self.late))
            del self.late[oldest]
            oldest.cancel()

    def end_of(self, ttl: float | None, found: bool) -> float:
        """Until when an answer is kept; ``found`` says that there is something in it."""
        most = self.max_ttl if found else self.negative_ttl
        seconds = most if ttl is None and not found else ttl or 0.0
        return self.clock() + min(max(seconds, self.min_ttl), most)

    def make_entry(self, name: str, addresses: Iterable[IP], until: float, text: str = "no address") -> Entry:
        """The entry for an answer: the addresses in their order, or why there are none."""
        given = tuple(dict.fromkeys(addresses))
        ordered = order(given, self.prefer)
        if not ordered and self.prefer.endswith("only") and (given or text == "no address"):
            text = f"no {'IPv4' if self.prefer == 'ipv4-only' else 'IPv6'} address"
        return Entry(until, ordered, "" if ordered else f"{name}: {text}")

    def keep(self, key: str | IP, entry: Entry) -> None:
        """Remember an entry, and forget the one that was not asked for the longest."""
        if self.size:
            self.entries[key] = entry
            self.entries.move_to_end(key)
            if len(self.entries) > self.size:
                self.entries.popitem(last=False)

    async def close(self) -> None:
        """End the questions under way, and close the source."""
        self.closed = True
        questions = [*self.questions.values(), *self.late]
        for question in questions:
            question.cancel()
        try:
            await asyncio.gather(*questions, return_exceptions=True)
        finally:
            await self.source.close()


def holder_of(client: Host | None) -> Holder:
    """Who is counted: an IPv6 client is its network of 64 bits, in which it may choose addresses as it likes."""
    return client.packed[:8] if isinstance(client, IPv6Address) else client


def found(entry: Entry) -> Sequence[IP]:
    """The addresses of an entry. Raises DialError if there are none."""
    if not entry.addresses:
        raise DialError(entry.text, ReplyCode.HOST_UNREACHABLE)
    return entry.addresses


def order(addresses: Sequence[IP], prefer: Prefer) -> tuple[IP, ...]:
    """Addresses as they are preferred, else in the order that they have; only those of one kind where that is asked."""
    if prefer == "any":
        return tuple(addresses)
    version = 4 if prefer.startswith("ipv4") else 6
    first = [address for address in addresses if address.version == version]
    return (*first, *(() if prefer.endswith("only") else (one for one in addresses if one.version != version)))
