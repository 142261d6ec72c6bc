"""The egress through a pool: one of several upstreams, another one where that fails, and checks of them all.

`policy.pool` decides which member is chosen and which one is out. This module opens its choices, decides whether a
failure is the member's or the destination's, and passes a request whose member fails to another one. Until a stream is
open no octet has gone to the destination, so nothing is sent twice.

Some failures leave a doubt: an upstream that took the request and then said nothing, or "general failure", may be ill,
or the destination does not answer. They count if another member reaches that destination, and at a trial; else one
client that asks for a destination that no member reaches would put all members out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple, TypeVar

from tabi.egress.base import QUESTIONS, Asked, Egress
from tabi.errors import AuthError, DialError, EgressError, ProtocolError, ProxyError, TabiError
from tabi.net.dial import AddressFilter
from tabi.net.failures import is_deadline, reason_of
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.policy.grammar import Parameters
from tabi.policy.guard import allow_any_address
from tabi.policy.pool import By, Member, Pool, make_key
from tabi.session import Session
from tabi.wire.address import UNSPECIFIED, Address
from tabi.wire.http import decode_response
from tabi.wire.socks5 import ReplyCode

log = logging.getLogger("tabi")

REASONS = 5
"""Members whose failures an error lists; the others are counted."""

FEW = 5
"""Members that a description names; the others are counted."""

CHECKS_AT_ONCE = 16

OF_DESTINATION = frozenset(
    (
        ReplyCode.NOT_ALLOWED,
        ReplyCode.NETWORK_UNREACHABLE,
        ReplyCode.HOST_UNREACHABLE,
        ReplyCode.CONNECTION_REFUSED,
        ReplyCode.TTL_EXPIRED,
        ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED,
    )
)
"""Replies with which a working upstream refuses a destination: another one would not do better."""


T = TypeVar("T")
Use = Callable[[Egress], Awaitable[T]]
"""What to do with the egress of a member."""


class Unable(TabiError):
    """A member cannot do what was asked, which does not count as its failure."""


class Check(NamedTuple):
    """How the members of a pool are checked."""

    destination: Address
    """The destination to connect to through each member."""
    every: float = 10.0
    """Seconds between two rounds."""
    seconds: float = 5.0
    """The deadline for one member."""
    head: str | None = None
    """Where given, the path that an HTTP request (HEAD) is for; an answer below 500 counts."""


class Pooled(Egress):
    """Leads through the member that its pool chooses.

    Args:
        name: what rules call it.
        pool: its members have the names of ``egresses``.
        egresses: by the names of members. One that leads through a proxy raises DialError where it cannot reach that,
            and ProxyError where it refuses the destination.
        seconds: the deadline for all members that a request is tried with, together.
        each: the deadline for one of them, a third of ``seconds`` by default: there is time for others. More than an
            egress takes to find that its proxy cannot be reached: that leaves no doubt.
        by: the parts of a request that ``hash`` and ``sticky`` use.
        label: only members with this one.
        check: has `start` check the members; None: only requests tell how they are.
    """

    def __init__(
        self,
        name: str,
        pool: Pool,
        egresses: Mapping[str, Egress],
        seconds: float,
        each: float | None = None,
        *,
        by: Sequence[By] = ("client", "user", "host"),
        label: str | None = None,
        check: Check | None = None,
    ) -> None:
        self.name = name
        self.pool = pool
        self.egresses = {member: egresses[member.name] for member in pool.members}
        self.resolves_locally = all(egress.resolves_locally for egress in egresses.values())
        self.seconds = seconds
        self.each = seconds / 3 if each is None else each
        self.by = by
        self.label = label
        self.check = check
        self.reasons: dict[Member, str] = {}  # why each failed last
        self.checking: asyncio.Task[None] | None = None

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        """See `Egress`; ``session.member`` is the chosen member, and the request counts for it until the session is
        over.

        Raises:
            DialError: no member answers (general failure), or one found that the destination cannot be reached.
            ProxyError: a member refused the destination.
            PolicyDenied, LimitExceeded: as the member's egress.
        """
        key = self.key(destination, session)
        stream, member = await self.attempt(
            lambda egress: egress.open(destination, address_filter, session), key, session
        )
        self.end_with(session, member)
        return stream

    async def ask(
        self, command: int, destination: Address, address_filter: AddressFilter, session: Session | None = None
    ) -> Asked:
        """See `Egress`; as `open`. Members that cannot carry out the command are passed over."""
        key = self.key(destination, session)
        asked, member = await self.attempt(
            lambda egress: if_able(egress.ask(command, destination, address_filter, session)), key, session
        )
        self.end_with(session, member)
        return asked

    async def associate(self, session: Session | None = None) -> UdpPath:
        """See `Egress`; as `ask`, and the member's request lasts until the path is closed."""
        key = self.key(UNSPECIFIED, session)
        path, member = await self.attempt(lambda egress: if_able(egress.associate(session)), key, session)
        path.on_close.append(partial(self.pool.end, member))
        return path

    def end_with(self, session: Session | None, member: Member) -> None:
        """End a member's request with the session."""
        if session is None:
            self.pool.end(member)  # without a session nothing tells its end
        else:
            session.when_over(partial(self.pool.end, member))

    async def attempt(self, use: Use[T], key: str, session: Session | None) -> tuple[T, Member]:
        """Use one member after the other until one succeeds. Errors as `open`; DialError 07 if none can."""
        pool, doubts = self.pool, list[Member]()
        label, ttl, lacking = self.wishes(session)
        tried = set(lacking)
        unable: Unable | None = None
        ends = monotonic() + self.seconds
        while (left := ends - monotonic()) > 0:
            member = pool.choose(key, monotonic(), tried, label, ttl)
            if member is None:
                break
            tried.add(member)
            if session is not None:
                session.member = member.name
            try:
                found = await self.use_member(member, use, left, doubts)
            except (TabiError, OSError) as exc:
                if isinstance(exc, Unable):
                    unable = exc
                elif not is_fault(exc, self.egresses[member]):
                    raise
                continue
            for other in doubts:
                self.note_failure(other, self.reasons[other])
            return found, member
        if unable is not None:
            text = f"pool {self.name}: no member that answers can do that: {unable}"
            raise DialError(text, ReplyCode.COMMAND_NOT_SUPPORTED)
        raise EgressError(self.explain(tried - lacking, label, lacking), ReplyCode.GENERAL_FAILURE)

    async def use_member(self, member: Member, use: Use[T], left: float, doubts: list[Member]) -> T:
        """Use one member, and note how that went, in ``doubts`` if that is not clear.

        ``left`` are the seconds for this member and all others.

        Raises:
            All that the member's egress raises; TimeoutError if it took too long.
        """
        pool = self.pool
        trial = pool.begin(member)
        decided = False
        try:
            async with asyncio.timeout(min(self.each, left)):
                found = await use(self.egresses[member])
            decided = True
            self.note_success(member)
        except BaseException as exc:
            pool.end(member)
            if isinstance(exc, TabiError | OSError):
                if left < self.each and is_deadline(exc):
                    # It had only the time that other members left, so this is not its failure.
                    self.reasons.setdefault(member, f"no answer within the {left:.2g} s that were left")
                else:
                    decided = self.note(member, exc, None if trial else doubts)
            raise
        finally:
            if trial and not decided:
                pool.undecided(member)
        return found

    def key(self, destination: Address, session: Session | None) -> str:
        """The key that ``hash`` and ``sticky`` use."""
        if session is None:
            return make_key(self.by, "", None, str(destination.host))
        token = None if session.parameters is None else session.parameters.session
        return make_key(self.by, str(session.client.host), session.user, str(destination.host), token)

    def wishes(self, session: Session | None) -> tuple[str | None, float | None, frozenset[Member]]:
        """The wishes in a user name: a label, seconds for a sticky key, and members to skip, which lack another of its
        labels."""
        parameters = None if session is None else session.parameters
        if parameters is None or not parameters.labels:
            return self.label, None if parameters is None else parameters.ttl, frozenset()
        first, *others = parameters.labels
        lacking = {member for member in self.pool.members if not member.labels.issuperset(others)} if others else ()
        return first, parameters.ttl, frozenset(lacking)

    def explain(self, tried: Collection[Member], label: str | None, lacking: Collection[Member]) -> str:
        """The error if no member is left: the last failure of each member that the request may go to."""
        members = [m for m in self.pool.members if (label is None or label in m.labels) and m not in lacking]
        if not members:
            return no_member(self.name)
        told = [
            f"{m.name}: {self.reasons[m]}" for m in members if m in self.reasons and (m in tried or m.due is not None)
        ]
        text = f"pool {self.name}: none of {len(members)} members answers"
        if len(told) > REASONS:
            told[REASONS:] = [f"and {len(told) - REASONS} more"]
        return f"{text}: {'; '.join(told)}" if told else text

    # --- what it says of itself ---

    def describe(self) -> str:
        """See `Egress`."""
        return f"{self.name}: {self.pool.balance} of {shown(self.pool.members)}"

    def cannot(self, command: str) -> str | None:
        """See `Egress`: one member that can do it is enough. None of them listens for BIND on this machine."""
        if self.resolves_locally and command in QUESTIONS:
            return None
        reasons = [
            str(egress.refusal()) if command == "bind" and egress.direct else egress.cannot(command)
            for egress in self.egresses.values()
        ]
        return None if None in reasons else f"pool {self.name}: no member can do that: {reasons[0]}"

    @property
    def leads_nowhere(self) -> bool:
        """See `Egress`."""
        return all(egress.leads_nowhere for egress in self.egresses.values())

    def chooser(self) -> Egress | None:
        """See `Egress`."""
        return self

    def explain_choice(self, parameters: Parameters) -> list[str]:
        """See `Egress`."""
        labels, token, ttl = parameters
        members = [member for member in self.pool.members if member.labels.issuperset(labels)]
        if not members:
            raise EgressError(no_member(self.name), ReplyCode.GENERAL_FAILURE)
        found = [f"label {' and '.join(labels)}: {shown(members)}"] if labels else []
        if token is not None:
            kept = {"sticky": "the same member as long as it is used", "hash": "always the same member"}
            balance = self.pool.balance if "session" in self.by else None
            found.append(f"session {token}: {kept.get(balance or '', f'nothing, {self.name} does not go by it')}")
        if ttl is not None:
            kept = {"sticky": "how long that is remembered without a request"}
            what = kept.get(self.pool.balance, f"nothing, {self.name} remembers no client")
            found.append(f"ttl {ttl:g} s: {what}")
        return found

    def explain_member(self, destination: Address, session: Session, now: float) -> str | None:
        """See `Egress`."""
        label, _, lacking = self.wishes(session)
        found = self.pool.foresee(self.key(destination, session), now, lacking, label)
        if found is None:
            raise EgressError(self.explain((), label, lacking), ReplyCode.GENERAL_FAILURE)
        who = f"one of {found.among:,} members" if found.member is None else found.member.name
        return f"{who}: {found.why}"

    # --- what is known of the members ---

    def note(self, member: Member, exc: TabiError | OSError, doubts: list[Member] | None) -> bool:
        """Note what an error says about a member; in ``doubts``, if that is given and the error is doubtful.

        Returns:
            Whether it said anything for certain.
        """
        if isinstance(exc, Unable):
            return False
        if is_fault(exc, self.egresses[member]):
            reason = reason_of(exc, self.each)
            if doubts is not None and is_doubtful(exc):
                self.reasons[member] = reason
                doubts.append(member)
                return False
            self.note_failure(member, reason)
            return True
        if isinstance(exc, ProxyError | DialError):  # the destination's part: a member that reports this works
            self.note_success(member)
            return True
        return False

    def note_success(self, member: Member) -> None:
        """A member works."""
        self.reasons.pop(member, None)
        if self.pool.worked(member):
            log.info("pool %s: %s works again", self.name, member.name)

    def note_failure(self, member: Member, reason: str) -> None:
        """A member failed."""
        self.reasons[member] = reason
        if self.pool.failed(member, monotonic()):
            log.warning("pool %s: %s is out: %s", self.name, member.name, reason)

    # --- checks ---

    def start(self) -> None:
        """Begin to check the members, if that is wanted; `close` ends it."""
        if self.check is not None and self.checking is None:
            loop = asyncio.get_running_loop()
            self.checking = asyncio.Task(self.check_again(self.check), loop=loop, name=f"tabi-check-{self.name}")

    def stop(self) -> asyncio.Task[None] | None:
        """Start no more checks; those under way end by themselves."""
        task, self.checking = self.checking, None
        if task is not None:
            task.cancel()
        return task

    async def close(self) -> None:
        """Stop checking."""
        task = self.stop()
        if task is not None:
            await asyncio.wait([task])

    async def check_again(self, check: Check) -> None:
        """Check all members, over and over."""
        while True:
            try:
                await self.check_all(check)
            except Exception:
                log.exception("pool %s: a check failed", self.name)
            await asyncio.sleep(check.every)

    async def check_all(self, check: Check) -> None:
        """Check each member once, some at a time."""
        members = iter(self.pool.members)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(CHECKS_AT_ONCE, len(self.pool.members))):
                group.create_task(self.check_some(members, check))

    async def check_some(self, members: Iterable[Member], check: Check) -> None:
        """Check one member after the other, of those that others check too."""
        for member in members:
            try:
                async with asyncio.timeout(check.seconds):
                    await check_one(self.egresses[member], check)
            except (TabiError, OSError) as exc:  # any failure: the destination was chosen because it can be reached
                self.note_failure(member, f"check: {reason_of(exc, check.seconds)}")
            else:
                self.note_success(member)


async def if_able(used: Awaitable[T]) -> T:
    """The result of a member. Raises Unable if it says that it cannot do it."""
    try:
        return await used
    except (DialError, ProxyError) as exc:
        if exc.reply_code == ReplyCode.COMMAND_NOT_SUPPORTED:
            raise Unable(str(exc)) from exc
        raise


def no_member(name: str) -> str:
    """The message for a user name with labels that no member of a pool has."""
    return f"pool {name}: no member has what the user name asks for"


def shown(members: Sequence[Member]) -> str:
    """Members for people, not more than a few."""
    more = f", … ({len(members):,})" if len(members) > FEW else ""
    return ", ".join(member.name for member in members[:FEW]) + more


def is_fault(exc: TabiError | OSError, egress: Egress) -> bool:
    """Whether a failure is the upstream's, and not that of the destination, of a rule or of the client."""
    if egress.direct:  # without a proxy it is always the destination that does not answer
        return isinstance(exc, DialError) and exc.reply_code not in OF_DESTINATION
    if isinstance(exc, ProxyError):
        return exc.reply_code not in OF_DESTINATION
    return isinstance(exc, DialError | AuthError | ProtocolError | OSError)


def is_doubtful(exc: TabiError | OSError) -> bool:
    """Whether a failure may nevertheless be the destination's."""
    if isinstance(exc, ProxyError):
        return exc.reply_code in (None, ReplyCode.GENERAL_FAILURE)
    return isinstance(exc, TimeoutError) and not isinstance(exc, DialError)


async def check_one(egress: Egress, check: Check) -> None:
    """Connect to the destination of a check, and ask it if that is wanted. The caller sets the deadline.

    Raises:
        ProxyError: it answers with a status of 500 or more.
        RemoteProtocolError: it does not answer in HTTP.
        TabiError, OSError: as the egress and `Stream.receive`.
    """
    async with await egress.open(check.destination, allow_any_address) as stream:
        if check.head is None:
            return
        request = f"HEAD {check.head} HTTP/1.1\r\nHost: {check.destination}\r\nConnection: close\r\n\r\n"
        await stream.send_all(request.encode())
        head = bytearray()
        while (found := decode_response(head, "HEAD")) is None:
            data = await stream.receive(4096)
            if not data:
                raise ProxyError("the connection ended without an answer")
            head += data
        if found[0].status >= 500:
            raise ProxyError(f"status {found[0].status}")
