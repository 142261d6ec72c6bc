"""The gate: what each command asks before it opens anything. May the client go there, which way out, is it too much?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic, monotonic_ns, time
from typing import NamedTuple

from tabi.egress.direct import Egress
from tabi.errors import LimitExceeded, PolicyDenied, TabiError
from tabi.net.dial import Dialer, Permit
from tabi.net.failures import timeout_error
from tabi.net.hops import Hops
from tabi.net.reactor import ENDED
from tabi.net.stream import Stream
from tabi.observe.metrics import Metrics
from tabi.policy.guard import permit_any
from tabi.policy.limits import Account, Lease
from tabi.policy.networks import IP
from tabi.policy.policy import Judge, Policy, enforce
from tabi.policy.rules import Unresolved
from tabi.session import Decision, Session
from tabi.wire.address import Address, Host, read_number

log = logging.getLogger("tabi")

SWEEP = 1.0
"""Seconds between two looks at who must end: a user whose time is over, a session that was long enough."""


LOOK = 0.25
"""Seconds until one that waits looks again, whatever it waits for: limits may be others by then."""


class Way(NamedTuple):
    """What the gate gives a session that may go on."""

    egress: Egress
    permit: Permit
    """Asked with each address before it is dialled."""


class OpenWay(NamedTuple):
    """What the gate gives a session whose destinations are not known yet."""

    egress: Egress | None
    """Where all of them go this way, and it is not straight; None: the judge says it of each."""
    judge: Judge
    """Asked for each destination."""


class Gate:
    """Decides for all sessions of a worker.

    Args:
        policy: replaced by a reload; sessions that run keep theirs.
        dialer: asked for names that a decision depends on.
        egresses: by name; ``direct`` is the default.
        metrics: count what is refused.
        patience: seconds from the start of a session that it waits at most where a limit has it wait.
    """

    def __init__(
        self, policy: Policy, dialer: Dialer, egresses: Mapping[str, Egress], metrics: Metrics, patience: float
    ) -> None:
        self.policy = policy
        self.dialer = dialer
        self.egresses = egresses
        self.direct = egresses["direct"]
        self.metrics = metrics
        self.patience = patience
        self.leases: set[Lease] = set()
        self.queues: dict[Queued, Waiting] = {}
        self.timer: asyncio.TimerHandle | None = None

    def replace(self, policy: Policy, egresses: Mapping[str, Egress]) -> None:
        """Decide by another policy from now on."""
        self.policy = policy
        self.egresses = egresses
        self.direct = egresses["direct"]

    # --- one destination ---

    def enter(self, session: Session) -> Way | None:
        """Decide; None where that takes time, for `enter_slowly`.

        Raises:
            PolicyDenied: a rule, or the program that has the last word, forbids it.
            LimitExceeded: it is too much.
            DialError: a decision depends on the addresses of a name that is known to have none.
        """
        policy, egress = self.policy, self.direct
        assert session.destination is not None
        if policy.decides:
            decision = self.decide(policy, session)
            if isinstance(decision, Unresolved):
                session.addresses = self.dialer.lookup(str(session.destination.host))
                if session.addresses is None:
                    return None
                decision = self.decide(policy, session)
                assert isinstance(decision, Decision)
            egress = self.follow(session, decision)
        if policy.limits and not self.admit(policy, session):
            return None
        session.via = egress.name
        return Way(egress, self.permit_for(policy, session))

    async def enter_slowly(self, session: Session, client: Stream) -> Way:
        """The same with whatever there is to wait for: the addresses of a name, or room within a limit.

        Raises:
            PolicyDenied, LimitExceeded: as `enter`; also where ``client`` has gone while it waited.
            DialError: the name has no address, or that was not found out in time.
        """
        while True:
            policy, egress = self.policy, self.direct
            if policy.decides:
                decision = self.decide(policy, session)
                if isinstance(decision, Unresolved):
                    await self.resolve(session)
                    decision = self.decide(policy, session)
                    assert isinstance(decision, Decision)
                egress = self.follow(session, decision)
            if policy.limits and session.lease is None:
                await self.admit_slowly(session, client)
            if policy is self.policy:  # else another one was loaded meanwhile, and may forbid it
                break
        session.via = egress.name
        return Way(egress, self.permit_for(policy, session))

    def decide(self, policy: Policy, session: Session) -> Decision | Unresolved:
        """Ask the policy. Raises PolicyDenied where the program that has the last word fails."""
        assert session.destination is not None
        host, port = session.destination
        destination = Address(as_resolved(host), port)
        try:
            return policy.decide(session, destination, session.addresses, time())
        except TabiError:
            raise
        except Exception as exc:
            raise failure_of(exc) from exc

    def follow(self, session: Session, decision: Decision) -> Egress:
        """Do what was decided: the way out. Raises PolicyDenied."""
        session.rule = decision.rule
        session.decision = None
        if session.watch is not None:
            session.watch.decided(session)
        assert session.destination is not None
        if decision.action != "allow":
            known = decision.rule in self.policy.labels  # a program may give each refusal a name of its own
            self.metrics.count("tabi_denied_total", action=decision.action, rule=str(decision.rule) if known else "")
            enforce(decision, session.destination)
        return self.egress(decision.via or "direct")

    async def resolve(self, session: Session) -> None:
        """Find the addresses of the destination: those that are decided on are those that are dialled."""
        assert session.destination is not None
        name, seconds = session.destination.host, self.dialer.seconds
        try:
            async with asyncio.timeout(seconds):
                session.addresses = await self.dialer.find(str(name), permit_any)
        except TimeoutError:
            raise timeout_error(seconds, session.destination) from None
        if session.watch is not None:
            session.watch.resolved(session)

    def permit_for(self, policy: Policy, session: Session) -> Permit:
        """The guard's part, for the destination."""
        assert session.destination is not None
        return policy.permit_for(session, session.destination.port)

    # --- several destinations ---

    async def enter_open(self, session: Session, client: Stream) -> OpenWay:
        """Let a session begin whose destinations are not known yet: datagrams, and BIND for anyone.

        Raises:
            PolicyDenied: a rule refuses it whatever the destination.
            LimitExceeded: it is too much, or ``client`` has gone while it waited.
        """
        while True:
            policy, way = self.policy, None
            if policy.decides:
                rule = policy.refusal(session, time())
                if rule is not None:
                    self.follow(session, policy.decisions[rule.number])
                settled = policy.settled(session, time())
                session.rule = None if settled is None else settled.label
                way = None if settled is None else settled.via
            if policy.limits and session.lease is None and not self.admit(policy, session):
                await self.admit_slowly(session, client)
            if policy is self.policy:
                break
        judge = policy.judge_for(session, time)
        if policy.last_word is not None:
            judge = partial(judge_safely, judge)
        session.via = way or "direct"
        return OpenWay(None if way in (None, "direct") else self.egress(way), judge)

    def egress(self, name: str) -> Egress:
        """A way out by its name. Raises PolicyDenied where there is none."""
        egress = self.egresses.get(name)
        if egress is None:
            raise PolicyDenied(f"decide: there is no egress {name}")
        return egress

    async def associate(self, session: Session, name: str) -> Hops:
        """Open a way out for datagrams; the caller closes it. Errors as `Egress.associate`, and PolicyDenied."""
        return await self.egress(name).associate(session)

    # --- limits ---

    def admit(self, policy: Policy, session: Session) -> bool:
        """Have limits admit a session; False where it is to wait. Raises LimitExceeded where it is refused."""
        if self.queues and queue_of(policy, session) in self.queues:  # others were first
            return False
        refusal = self.try_to_admit(policy, session)
        if refusal is not None and refusal.seconds is None:
            self.metrics.count("tabi_limited_total", limit=refusal.limit)
            raise refusal
        return refusal is None

    def try_to_admit(self, policy: Policy, session: Session) -> LimitExceeded | None:
        """Give a session its lease, if it needs one; else say why not."""
        try:
            lease = policy.limits.admit(session.user, session.client.host, monotonic_ns(), time())
        except LimitExceeded as exc:
            return exc
        if lease is not None:
            session.lease = lease
            self.leases.add(lease)
            if self.timer is None:
                self.timer = self.dialer.reactor.loop.call_later(SWEEP, self.tick)
        return None

    async def admit_slowly(self, session: Session, client: Stream) -> None:
        """The same for one that waits: first come, first served within a queue.

        Raises:
            LimitExceeded: it may not begin, or not within the patience, or its client has gone.
        """
        name = queue_of(self.policy, session)
        patience = max(0.0, self.patience - (monotonic() - session.started))
        queue = self.queues.setdefault(name, Waiting())
        queue.count += 1
        why: LimitExceeded | None = None
        try:
            async with asyncio.timeout(patience), queue.turn:
                while (refusal := self.refusal_of(session, client)) is not None:
                    if why is None or refusal.seconds is None:
                        self.metrics.count("tabi_limited_total", limit=refusal.limit)
                    why = refusal
                    if why.seconds is None:
                        raise why
                    await asyncio.sleep(min(why.seconds, LOOK))
        except TimeoutError:
            who = "clients" if session.user is None else f"user {session.user}"
            text = f"limit: {who}: too many wait" if why is None else str(why)
            raise LimitExceeded(f"{text}; waited {patience:.3g} s", why.limit if why else "wait") from None
        finally:
            queue.count -= 1
            if not queue.count:
                del self.queues[name]

    def refusal_of(self, session: Session, client: Stream) -> LimitExceeded | None:
        """Why one that waits may not begin yet, by the policy that there is now."""
        if client.events & ENDED:
            return LimitExceeded("limit: the client has gone while it waited", "wait")
        return self.try_to_admit(self.policy, session)

    def leave(self, lease: Lease) -> None:
        """A session is over."""
        self.leases.discard(lease)
        lease.release()

    def tick(self) -> None:
        """Sweep, and again after a while as long as there is something to sweep."""
        self.timer = None
        self.sweep(monotonic_ns(), time())
        if self.leases:
            self.timer = self.dialer.reactor.loop.call_later(SWEEP, self.tick)

    def sweep(self, now: int, wall: float) -> None:
        """End whose time is over; ``now`` in nanoseconds of the monotonic clock, ``wall`` in seconds since 1970."""
        self.policy.limits.turn_periods(wall)
        for lease in tuple(self.leases):
            if lease.ended is None and (error := lease.overdue(now, wall)) is not None:
                self.metrics.count("tabi_limited_total", limit=error.limit)
                lease.end(error)

    def close(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


Queued = str | tuple[Account, ...]


def queue_of(policy: Policy, session: Session) -> Queued:
    """Among whom a session waits: those of its user; without one, those of clients that have the same limits."""
    user = session.user
    return policy.limits.accounts_of(None, session.client.host) if user is None else user


class Waiting:
    """The sessions of a queue that wait for room within a limit."""

    __slots__ = ("count", "turn")

    def __init__(self) -> None:
        self.count = 0
        self.turn = asyncio.Lock()


def judge_safely(judge: Judge, destination: Address, addresses: Sequence[IP] | None) -> str | Unresolved | None:
    """Ask a judge that asks a program. Raises PolicyDenied, whatever the program raises."""
    try:
        return judge(destination, addresses)
    except PolicyDenied:
        raise
    except Exception as exc:
        raise failure_of(exc) from exc


def failure_of(exc: Exception) -> PolicyDenied:
    """What the failure of a program that has the last word is: nobody is let through by a mistake."""
    log.error("decide failed", exc_info=exc)
    return PolicyDenied(f"decide failed: {type(exc).__name__}")


def as_resolved(host: Host) -> Host:
    """A name that is a number is the address that a resolver makes of it; what is no address at all stays a name."""
    if not isinstance(host, str):
        return host
    try:
        return read_number(host) or host
    except ValueError:
        return host
