"""Limits: how many connections, how often, how fast, how much and how long; for a user, a group, a network, the server.

A session that limits are for has a `Lease` from its request to its end. It may begin when every one of its accounts
admits it, and moves what all of them let through.

A bucket is kept as one number, the time at which it is full again (GCRA, ITU-T I.371): to spend moves it into the
future, and what lies between it and now is what is missing. So a bucket is a cell that any process can charge, and one
that was overdrawn is paid back before anything else flows. Time comes in, in nanoseconds of the monotonic clock for
buckets, in seconds since 1970 for quotas and expiry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from tabi.errors import LimitExceeded
from tabi.policy.ledger import DOWN, PERIOD, RATE, SAVED, UP, USED, Ledger, Used
from tabi.policy.networks import Network, NetworkTable
from tabi.policy.quantities import Quota, Rate, format_moment
from tabi.wire.address import Host

__all__ = ["ALL", "DOWN", "OVER", "UP", "Account", "Lease", "Limits", "Networks", "Terms", "Used"]

ALL = 1 << 40
"""Octets that may move at once if nothing limits them: more than any flow asks for."""

OVER = -1
"""What may move when a quota is used up."""

BURST_SECONDS = 0.1
"""A bucket holds at least what flows in that time."""

OWED = 10**9
"""Nanoseconds for which what flows in is kept for a flow that waits, whatever the bucket holds: a flow that is served
in rounds (`relay.pacer`) loses nothing if a round is late."""

LEAST_BURST = 4096
"""Octets that it holds at least unless ``burst`` says otherwise: a slow account shall still move whole packets."""

NEAR_END = 1 << 20
"""Octets before the end of a quota from which on nothing moves more than STEP at once: connections of other workers see
what is left only between two of their steps."""

STEP = 1 << 16

QUANTUM = 1 << 17
"""Octets that one of many moves before the next has its turn, where a bucket is empty."""

PACKET = 1460
"""Octets below which a bucket counts as empty, so that a paced flow does not send tiny pieces."""

NEVER = float("inf")

MAX_GIVEN = 100_000
"""Users that may have limits from a program: the numbers of each are kept as long as the server runs."""

POLL = 0.02
"""Seconds until a session that waits for another to end looks again."""


class Terms(Protocol):
    """The limits of one account; None means no limit. `config.LimitsConfig` describes each of them."""

    @property
    def connections(self) -> int | None: ...
    @property
    def connect_rate(self) -> Rate | None: ...
    @property
    def bandwidth(self) -> float | None: ...
    @property
    def burst(self) -> int | None: ...
    @property
    def quota(self) -> Quota | None: ...
    @property
    def max_session(self) -> float | None: ...
    @property
    def over(self) -> Literal["refuse", "wait"]: ...


class Networks(NamedTuple):
    """Clients that share an account."""

    networks: Sequence[Network]
    terms: Terms


class Account:
    """An account: limits apply to it, and a row of the ledger holds its numbers.

    ``waiting`` counts those of this process that wait for its buckets.
    """

    __slots__ = (
        "at",
        "batch",
        "burst",
        "connections",
        "cost",
        "counts",
        "gap",
        "least",
        "ledger",
        "max_session",
        "most",
        "name",
        "owed",
        "quota",
        "serving",
        "since",
        "slack",
        "terms",
        "until",
        "waiting",
        "waits",
    )

    def __init__(self, name: str, terms: Terms, ledger: Ledger) -> None:
        self.name = name
        self.terms = terms
        self.ledger = ledger
        self.at = ledger.row(name)
        self.connections = terms.connections
        self.max_session = terms.max_session
        self.waits = terms.over == "wait"
        self.waiting = 0
        rate = terms.connect_rate
        self.gap = 0 if rate is None else int(1e9 / rate)  # nanoseconds between two connections
        self.slack = 0 if rate is None else self.gap * (max(1, rate.count) - 1)
        self.cost = 0.0  # nanoseconds of an octet
        self.burst = self.most = 0  # nanoseconds that the bucket holds, and the same in octets
        self.owed = 0  # nanoseconds that it holds for flows that wait
        self.serving = False  # whether the flows that waited are served
        self.least = self.batch = 1  # octets for which a waiting flow goes on, and a bulk flow
        if terms.bandwidth is not None:
            self.cost = 1e9 / terms.bandwidth
            octets = least_burst(terms.bandwidth, terms.burst)
            self.most = octets
            self.burst = int(octets * self.cost)
            self.owed = max(self.burst, OWED)
            self.least, self.batch = min(PACKET, octets), min(QUANTUM, max(1, octets // 2))
        self.quota = terms.quota
        self.counts = self.cost > 0 or self.quota is not None  # whether octets matter to it
        self.since = self.until = 0.0  # the quota's period, as this process knows it

    def __repr__(self) -> str:
        return f"Account({self.name})"

    @property
    def used_up(self) -> str:
        """The message when the quota is used up."""
        return f"limit: {self.name}: the quota of {self.quota} is used up"

    def free(self, direction: int, now: int) -> int:
        """Octets in one of its buckets; less than 0 if it was overdrawn."""
        missing = self.ledger.cells[self.at + direction] - now
        if self.serving:
            return int(min(-missing, self.owed) / self.cost)
        return self.most if missing <= -self.burst else int(-missing / self.cost)

    def refusal(self, now: int) -> LimitExceeded | None:
        """Why another session may not begin now; None if it may. Changes nothing."""
        cells, at, ledger = self.ledger.cells, self.at, self.ledger
        if self.quota is not None and cells[at + USED] >= self.quota.octets:
            return LimitExceeded(self.used_up, "quota")
        if self.connections is not None and ledger.running(at) >= self.connections:
            text = f"limit: {self.name}: {self.connections} connections at once"
            return LimitExceeded(text, "connections", POLL if self.waits else None)
        if self.gap:
            early = cells[at + RATE] - now - self.slack
            if early > 0:
                text = f"limit: {self.name}: {self.terms.connect_rate} connections"
                return LimitExceeded(text, "connect_rate", early / 1e9 if self.waits else None)
        return None

    def begin(self, now: int) -> None:
        """Count a session that begins."""
        ledger, at = self.ledger, self.at
        cells = ledger.cells
        cells[at + ledger.column] += 1
        if self.gap:
            full = cells[at + RATE]
            cells[at + RATE] = (full if full > now else now) + self.gap

    def turn_period(self, wall: float) -> None:
        """Begin the quota's next period if it is time; ``wall`` is in seconds since 1970."""
        assert self.quota is not None
        cells, at, period = self.ledger.cells, self.at, self.quota.period
        start, used = period.turn(cells[at + PERIOD], cells[at + USED], wall)
        if start > cells[at + PERIOD]:
            cells[at + SAVED] = 0
        cells[at + PERIOD], cells[at + USED] = start, used
        self.since, self.until = wall, period.end(wall)


def least_burst(bandwidth: float, burst: int | None = None) -> int:
    """Octets that a bucket holds, for octets a second and what ``burst`` says, if it does."""
    return int(max(bandwidth * BURST_SECONDS, LEAST_BURST if burst is None else burst))


class Lease:
    """What one session may move, on all of its accounts. `release` ends it.

    ``meters`` are those of its accounts that count octets. ``short`` is the one that let nothing through last.
    The carrier of the session sets ``cut``: called with a text, it ends the session at once. ``ended`` asks for that.
    """

    __slots__ = ("accounts", "cut", "ended", "ends", "expires", "ledger", "meters", "released", "short", "user")

    def __init__(
        self, ledger: Ledger, accounts: tuple[Account, ...], user: str | None, ends: float, expires: float
    ) -> None:
        self.ledger = ledger
        self.accounts = accounts
        self.meters = tuple([account for account in accounts if account.counts])
        self.user = user
        self.ends = ends
        self.expires = expires
        self.short: Account | None = None
        self.cut: Cut | None = None
        self.ended: LimitExceeded | None = None
        self.released = False

    def spend(self, direction: int, octets: int, now: int) -> int:
        """Charge octets that were taken (less than 0: given back) in a direction, UP or DOWN.

        Returns:
            How many more may be taken at once: 0 while a bucket is empty, OVER when a quota is used up.
        """
        ledger, room = self.ledger, ALL
        self.short = None
        if ledger.shared:
            ledger.enter()
        cells = ledger.cells
        for account in self.meters:
            at, cost = account.at, account.cost
            if cost:
                full, oldest = cells[at + direction], now - (account.owed if account.serving else account.burst)
                if full < oldest:
                    full = oldest
                if octets:
                    full += int(octets * cost)
                    if full < oldest:  # what was given back may have flowed in meanwhile too
                        full = oldest
                cells[at + direction] = full
                free = int((now - full) / cost)
                if free < room:
                    room = free if free >= account.least else 0
                    self.short = account
            if account.quota is not None:
                used = cells[at + USED] + octets
                cells[at + USED] = used
                left = account.quota.octets - used
                if left <= 0:
                    room, self.short = OVER, account
                    break
                if left < room:
                    room = left
                if left < NEAR_END and room > STEP:
                    room = STEP
        if ledger.shared:
            ledger.leave()
        return room

    @property
    def left(self) -> int:
        """Octets that quotas leave, whatever the buckets hold."""
        cells = self.ledger.cells
        quotas = [(account.quota, account.at) for account in self.meters]
        return min((quota.octets - cells[at + USED] for quota, at in quotas if quota is not None), default=ALL)

    def is_full(self, direction: int, now: int) -> bool:
        """Whether all buckets of a direction hold as much as they can."""
        return all(not account.cost or account.free(direction, now) >= account.most for account in self.meters)

    @property
    def crowded(self) -> bool:
        """Whether others wait for a bucket of this lease."""
        return any(account.waiting for account in self.meters)

    def overdue(self, now: int, wall: float) -> LimitExceeded | None:
        """Why the session must end now, or None."""
        if wall >= self.expires:
            return expired(self.user, self.expires)
        if now >= self.ends:
            longest = [account for account in self.accounts if account.max_session is not None]
            account = min(longest, key=lambda account: account.max_session or 0)
            return LimitExceeded(f"limit: {account.name}: {account.max_session:g} s for a session", "max_session")
        return None

    def exhausted(self) -> str:
        """The message when `spend` has returned OVER, or when too little is `left`."""
        cells = self.ledger.cells
        quotas = [
            (account.quota.octets - cells[account.at + USED], account.used_up)
            for account in self.meters
            if account.quota is not None
        ]
        return min(quotas)[1]

    def end(self, error: LimitExceeded) -> None:
        """The session's time is over: its carrier is told now, or finds out when it next looks."""
        self.ended = error
        if self.cut is not None:
            self.cut(str(error))

    def release(self) -> None:
        """The session is over. Harmless when done twice."""
        if self.released:
            return
        self.released = True
        self.cut = None  # refers to the object that has this lease: a reference cycle
        ledger = self.ledger
        for account in self.accounts:  # no other process writes this cell
            ledger.cells[account.at + ledger.column] -= 1


def expired(user: str | None, expires: float) -> LimitExceeded:
    """The message for a user whose time is over."""
    return LimitExceeded(f"limit: user {user}: expired at {format_moment(expires)}", "expires")


class Given(NamedTuple):
    """What a program says about a user: groups beside those of the configuration, and limits that replace its own."""

    groups: frozenset[str]
    terms: Terms | None


class Standing(NamedTuple):
    """The accounts of a user."""

    accounts: tuple[Account, ...]
    expires: float
    """Seconds since 1970."""


class Cut(Protocol):
    """Ends a session at once, for a reason."""

    def __call__(self, why: str, /) -> object: ...


class Limits:
    """All accounts, and which session has which: the `Admission` of this machine. The accounts of users and groups
    are made when they are first needed.

    Args:
        ledger: has their numbers, and keeps them over a reload.
        users: by name.
        groups: by name; their members share them.
        networks: of clients; the first that has a client's address counts.
        server: for all sessions together.
        members: the groups of each user.
        expires: when users end, in seconds since 1970.
    """

    waits = False

    def __init__(
        self,
        ledger: Ledger,
        *,
        users: Mapping[str, Terms] = {},
        groups: Mapping[str, Terms] = {},
        networks: Sequence[Networks] = (),
        server: Terms | None = None,
        members: Mapping[str, Iterable[str]] = {},
        expires: Mapping[str, float] = {},
    ) -> None:
        self.ledger = ledger
        self.users = users
        self.groups = groups
        self.members = members
        self.expires = expires
        self.accounts: dict[Account, None] = {}
        """Those that were made so far."""
        self.with_quota: list[Account] = []
        self.everybody = () if server is None else (self.make("server", server),)
        self.by_user: dict[str | None, Standing] = {None: Standing(self.everybody, NEVER)}
        self.nobody = self.by_user[None]
        self.by_group: dict[str, Account] = {}
        self.by_given: dict[str, tuple[Given, Standing]] = {}
        self.by_network = [self.make(f"clients {','.join(map(str, part.networks))}", part.terms) for part in networks]
        self.table = NetworkTable(
            (network, number) for number, part in enumerate(networks) for network in part.networks
        )

    def __bool__(self) -> bool:
        return bool(self.users or self.groups or self.by_network or self.everybody or self.expires)

    def make(self, name: str, terms: Terms) -> Account:
        """An account that was not asked for before."""
        account = Account(name, terms, self.ledger)
        self.accounts[account] = None
        if account.quota is not None:
            self.with_quota.append(account)
        return account

    def standing_of(self, user: str) -> Standing:
        """The accounts of a user that has not come before. Nothing is kept for a user that is not in the
        configuration: a program may let in any number of them."""
        standing = self.compose(user, self.users.get(user), self.members.get(user, ()))
        if standing is not self.nobody:
            self.by_user[user] = standing
        return standing

    def standing_given(self, user: str, given: Given) -> Standing:
        """The accounts of a user about whom a program says something. They are kept while the program says the same.

        Raises:
            LimitExceeded: MAX_GIVEN other users have limits of their own already.
        """
        before = self.by_given.get(user)
        if before is not None and before[0] == given:
            return before[1]
        if given.terms is not None and before is None and len(self.by_given) >= MAX_GIVEN:
            raise LimitExceeded(f"limit: {MAX_GIVEN} users have limits that a program gives them", "users")
        if before is not None:  # its accounts are made anew, with what was counted
            replaced = {*before[1].accounts} - {*self.by_group.values(), *self.everybody}
            self.with_quota = [account for account in self.with_quota if account not in replaced]
            for account in replaced:
                self.accounts.pop(account, None)
        terms = self.users.get(user) if given.terms is None else given.terms
        standing = self.compose(user, terms, {*self.members.get(user, ()), *given.groups})
        if terms is not None:
            self.by_given[user] = given, standing
        return standing

    def compose(self, user: str, terms: Terms | None, groups: Iterable[str]) -> Standing:
        """The accounts of a user with limits and groups."""
        found = []
        if terms is not None:
            found.append(self.make(f"user {user}", terms))
        for group in groups:
            account = self.by_group.get(group)
            if account is None and group in self.groups:
                account = self.by_group[group] = self.make(f"group {group}", self.groups[group])
            if account is not None:
                found.append(account)
        expires = self.expires.get(user, NEVER)
        if not found and expires == NEVER:
            return self.nobody
        return Standing((*found, *self.everybody), expires)

    def queue_of(self, user: str | None, client: Host) -> str | tuple[Account, ...]:
        """See `Admission`: the sessions of a user; without a user, those of clients that have the same limits."""
        return self.accounts_of(None, client) if user is None else user

    def accounts_of(self, user: str | None, client: Host) -> tuple[Account, ...]:
        """The accounts whose limits apply to a client."""
        return self.find(user, client)[0]

    def find(self, user: str | None, client: Host, given: Given | None = None) -> tuple[tuple[Account, ...], float]:
        """The accounts that apply to a client, and when its user expires. Raises LimitExceeded as `standing_given`."""
        standing = self.by_user.get(user)
        if user is not None:
            if given is not None:
                standing = self.standing_given(user, given)
            elif standing is None:
                standing = self.standing_of(user)
        assert standing is not None
        if self.by_network and not isinstance(client, str):
            found = self.table.find(client)
            if found:
                return (self.by_network[min(found)], *standing.accounts), standing.expires
        return standing

    def admit(self, user: str | None, client: Host, now: int, wall: float, given: Given | None = None) -> Lease | None:
        """Let a session begin, on all accounts or on none; None if no limits apply to it. See `Admission`.

        Raises:
            LimitExceeded: it may not. ``seconds`` says when to try again if the session may wait, else it is None.
        """
        accounts, expires = self.find(user, client, given)
        if not accounts and expires is NEVER:
            return None
        if wall >= expires:
            raise expired(user, expires)
        ledger, longest = self.ledger, NEVER
        for account in accounts:
            if account.quota is not None and not account.since <= wall < account.until:
                self.turn_periods(wall)
        if ledger.shared:
            ledger.enter()
        try:
            for account in accounts:
                refusal = account.refusal(now)
                if refusal is not None:
                    raise refusal
            for account in accounts:
                account.begin(now)
                if account.max_session is not None and account.max_session < longest:
                    longest = account.max_session
        finally:
            if ledger.shared:
                ledger.leave()
        return Lease(ledger, accounts, user, now + longest * 1e9, expires)

    def turn_periods(self, wall: float) -> None:
        """Begin the new periods of quotas that are due; ``wall`` is in seconds since 1970."""
        for account in self.with_quota:
            if not account.since <= wall < account.until:
                self.ledger.enter()
                account.turn_period(wall)
                self.ledger.leave()
