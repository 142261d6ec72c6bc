"""The gate: what each command asks before it opens anything. May the client go there, by which egress, is it too much?

The order of a decision is written once, in `Gate.order`: rules, the program of ``decide``, its delay, the egress,
limits. `tabi explain` runs the same steps, with a recorder around each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from enum import Enum
from time import monotonic, monotonic_ns, time
from typing import Any, Final, NamedTuple

from tabi.egress.base import Egress
from tabi.errors import LimitExceeded, PolicyDenied, TabiError
from tabi.ingress.hook import (
    MAX_DELAY,
    HookDestinationPolicy,
    MadeEgresses,
    MakeEgress,
    await_hook,
    failure_of,
    with_terms,
)
from tabi.net.dial import AddressFilter, Dialer
from tabi.net.failures import timeout_error
from tabi.net.reactor import ENDED
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.observe.metrics import Metrics
from tabi.policy.guard import allow_any_address
from tabi.policy.hook import ask_hook
from tabi.policy.limits import Given, Lease
from tabi.policy.own_limits import add_own_limits
from tabi.policy.policy import DestinationPolicy, Policy, enforce
from tabi.policy.rules import Unresolved
from tabi.session import Decision, Session
from tabi.wire.address import Address, Host, read_number

SWEEP = 1.0
"""Seconds between two checks for sessions that must end: the user's time is over, or the session was long enough."""


LOOK = 0.25
"""Seconds until a session that waits looks again, whatever it waits for: limits may have changed by then."""


class Route(NamedTuple):
    """What the gate gives a session that may go on."""

    egress: Egress
    address_filter: AddressFilter
    """Asked with each address before it is dialled."""


class OpenRoute(NamedTuple):
    """What the gate gives a session whose destinations are not known yet."""

    egress: Egress | None
    """The egress if all destinations take it, and it is not direct; None: the destination policy decides for each."""
    destination_policy: DestinationPolicy
    """Asked for each destination."""


class Wait(Enum):
    """What a step returns if its answer takes time."""

    WAIT = 0


WAIT: Final = Wait.WAIT


class Step(NamedTuple):
    """One of the questions that are asked of a session, in their order."""

    name: str
    ask: Callable[[Session], Egress | Wait | None]
    """Answers at once: the egress, None if the session just goes on, or WAIT. Raises TabiError for a refusal."""
    wait: Callable[[Session, Stream], Awaitable[Egress | None]]
    """Waits, if the answer was WAIT. Raises TabiError for a refusal."""


Recorder = Callable[[Step], Step]
"""Stands around each step, and looks at what it is asked and what it says."""


class Gate:
    """Decides for all sessions of a worker.

    Args:
        policy: replaced by a reload; sessions that run keep theirs.
        dialer: asked for names that a decision depends on.
        egresses: by name; ``direct`` is the default.
        metrics: count what is refused.
        patience: seconds from the start of a session that it waits at most if a limit makes it wait.
        make_egress: makes an egress from the URL of a proxy that a program names.
        clock: seconds since 1970.
        recorder: put around each step, for a caller that wants to know the answers.
    """

    def __init__(
        self,
        policy: Policy,
        dialer: Dialer,
        egresses: Mapping[str, Egress],
        metrics: Metrics,
        patience: float,
        make_egress: MakeEgress | None = None,
        clock: Callable[[], float] = time,
        recorder: Recorder | None = None,
    ) -> None:
        self.dialer = dialer
        self.metrics = metrics
        self.patience = patience
        self.clock = clock
        self.recorder = recorder
        self.made = MadeEgresses(make_egress)
        self.leases: set[Lease] = set()
        self.queues: dict[Hashable, Waiting] = {}
        self.paused: dict[Session, tuple[int, Egress]] = {}
        """Sessions between `enter` and `enter_slowly`: the step that takes time, and the egress so far."""
        self.timer: asyncio.TimerHandle | None = None
        self.replace(policy, egresses)

    def replace(self, policy: Policy, egresses: Mapping[str, Egress]) -> None:
        """Decide by another policy from now on."""
        self.policy = policy
        self.egresses = egresses
        self.direct = egresses["direct"]
        self.made.clear(egresses)
        self.steps = self.recorded(self.order(policy))
        self.asks = tuple([step.ask for step in self.steps])
        self.open_steps = self.recorded(self.order_open(policy))

    # --- the order of a decision ---

    def order(self, policy: Policy) -> list[Step]:
        """The steps for a session with one destination, those that a configuration needs. Behind them comes the guard:
        it is asked with each address, as it is dialled. A ban would be asked first of all."""
        steps = []
        if policy.decides:
            steps.append(Step("rules", self.ask_rules, self.wait_for_addresses))
        if policy.decide_hook is not None:
            steps.append(Step("decide", self.ask_hook, self.wait_for_hook))
            steps.append(Step("delay", self.ask_delay, self.wait_for_delay))
        if policy.decides:
            steps.append(Step("egress", self.follow, never))
        if policy.admission or policy.given_limits:
            steps.append(self.limits_step(policy))
        elif policy.decide_hook is not None:
            steps.append(Step("limits", self.ask_own_limits, never))
        return steps

    def order_open(self, policy: Policy) -> list[Step]:
        """The steps for a session whose destinations are not known yet. Each of them is judged when it comes."""
        steps = [Step("rules", self.ask_rules_openly, never)] if policy.decides else []
        return [*steps, self.limits_step(policy)] if policy.admission or policy.given_limits else steps

    def limits_step(self, policy: Policy) -> Step:
        """The step that lets a session begin."""
        return Step("limits", ask_later if policy.admission.waits else self.ask_limits, self.wait_for_limits)

    def recorded(self, steps: list[Step]) -> tuple[Step, ...]:
        """The steps as they are asked."""
        return tuple(steps if self.recorder is None else map(self.recorder, steps))

    # --- one destination ---

    def enter(self, session: Session) -> Route | None:
        """Decide; None if that takes time, for `enter_slowly`.

        Raises:
            PolicyDenied: a rule, or the program that has the last word, forbids it.
            LimitExceeded: it is too much.
            DialError: a decision depends on the addresses of a name that is known to have none.
        """
        egress = self.direct
        for ask in self.asks:
            found = ask(session)
            if found is not None:
                if found is WAIT:
                    self.paused[session] = self.asks.index(ask), egress
                    return None
                egress = found
        session.via = egress.name
        assert session.destination is not None
        return Route(egress, self.policy.address_filter_for(session, session.destination.port))

    async def enter_slowly(self, session: Session, client: Stream) -> Route:
        """Go on where `enter` has stopped, or begin, and wait for whatever there is to wait for.

        Raises:
            PolicyDenied, LimitExceeded: as `enter`; also if ``client`` has gone while it waited.
            DialError: the name has no address, or that was not found out in time.
        """
        start, found = self.paused.pop(session, (0, None))
        egress = await self.walk(False, session, client, start, found) or self.direct
        session.via = egress.name
        assert session.destination is not None
        return Route(egress, self.policy.address_filter_for(session, session.destination.port))

    async def walk(
        self, openly: bool, session: Session, client: Stream, start: int = 0, egress: Egress | None = None
    ) -> Egress | None:
        """Run the steps one after another; start again if a reload has brought another policy meanwhile.

        Returns:
            The egress, None for the direct one.
        """
        while True:
            policy, steps = self.policy, self.open_steps if openly else self.steps
            for step in steps[start:]:
                found = step.ask(session)
                if found is WAIT:
                    found = await step.wait(session, client)
                    if policy is not self.policy:  # which may forbid it
                        break
                if found is not None:
                    egress = found
            else:
                return egress
            start, egress, session.decision = 0, None, None

    def ask_rules(self, session: Session) -> Wait | None:
        """What the rules decide, in ``session.decision``."""
        assert session.destination is not None
        host, port = session.destination
        destination = Address(as_resolved(host), port)
        decision = self.policy.find(session, destination, session.addresses, self.clock())
        if isinstance(decision, Unresolved):
            session.addresses = self.dialer.lookup(str(host))
            if session.addresses is None:
                return WAIT
            decision = self.policy.find(session, destination, session.addresses, self.clock())
            assert isinstance(decision, Decision)
        session.decision = decision
        return None

    async def wait_for_addresses(self, session: Session, client: Stream) -> None:
        """Find the addresses of the destination: the decision and the dialling use the same addresses."""
        assert session.destination is not None
        name, seconds = session.destination.host, self.dialer.seconds
        try:
            async with asyncio.timeout(seconds):
                session.addresses = await self.dialer.find(str(name), allow_any_address, session)
        except TimeoutError:
            raise timeout_error(seconds, session.destination) from None
        if session.watch is not None:
            session.watch.resolved(session)
        self.ask_rules(session)

    def ask_hook(self, session: Session) -> Wait | None:
        """What the program says, in ``session.decision``. Raises PolicyDenied if it fails."""
        policy, decision = self.policy, session.decision
        if policy.hook_waits:
            return WAIT
        assert policy.decide_hook is not None
        assert decision is not None
        try:
            session.decision = ask_hook(policy.decide_hook, session, destination_of(session), decision)
        except TabiError:
            raise
        except Exception as exc:
            raise failure_of(exc) from exc
        return None

    async def wait_for_hook(self, session: Session, client: Stream) -> None:
        """Await what the program says."""
        decision = session.decision
        assert decision is not None
        session.decision = await await_hook(self.policy, session, destination_of(session), decision, self.patience)

    def ask_delay(self, session: Session) -> Wait | None:
        """Whether the client is to wait, as the program says."""
        return WAIT if session.decision is not None and session.decision.delay else None

    async def wait_for_delay(self, session: Session, client: Stream) -> None:
        """Have the client wait. Raises PolicyDenied if it has gone meanwhile."""
        assert session.decision is not None
        await asyncio.sleep(min(session.decision.delay, MAX_DELAY))
        if client.events & ENDED:
            raise PolicyDenied("decide: the client has gone while it waited")

    def follow(self, session: Session) -> Egress:
        """Carry out the decision: return the egress. Raises PolicyDenied."""
        decision = session.decision
        assert decision is not None
        assert session.destination is not None
        session.rule = decision.rule
        if session.watch is not None:
            session.watch.decided(session)
        # Limits of this session alone are read before it is admitted, and kept until then.
        session.decision = None
        if decision.limits is not None:
            session.decision = with_terms(decision)
        if decision.action != "allow":
            known = decision.rule in self.policy.labels  # a program may give each refusal a name of its own
            self.metrics.count("tabi_denied_total", action=decision.action, rule=str(decision.rule) if known else "")
            session.decision = None
            enforce(decision, session.destination)
        via = decision.via
        if via is None:
            return self.direct
        return self.egress(via) if isinstance(via, str) and "://" not in via else self.made.find(via)

    def ask_again(self, session: Session, name: str) -> Decision | None:
        """What the rules say of a session that goes on, now that its TLS asks for a name: a refusal, or None. A program
        is not asked again."""
        decision = self.policy.refusal_by_name(session, destination_of(session), name, self.clock())
        if decision is not None:
            self.metrics.count("tabi_denied_total", action=decision.action, rule=str(decision.rule))
        return decision

    # --- several destinations ---

    async def enter_open(self, session: Session, client: Stream) -> OpenRoute:
        """Let a session begin whose destinations are not known yet: datagrams, and BIND for anyone.

        Raises:
            PolicyDenied: a rule refuses it whatever the destination.
            LimitExceeded: it is too much, or ``client`` has gone while it waited.
        """
        egress = await self.walk(True, session, client)
        policy = self.policy
        destination_policy: DestinationPolicy
        if policy.decide_hook is None:
            destination_policy = policy.destination_policy_for(session, self.clock)
        else:
            destination_policy = HookDestinationPolicy(policy, session, self.made, self.patience, self.clock)
        session.via = "direct" if egress is None else egress.name
        return OpenRoute(egress, destination_policy)

    def ask_rules_openly(self, session: Session) -> Egress | None:
        """What the rules decide for every destination: a refusal, or the egress if it is not direct."""
        policy, now = self.policy, self.clock()
        rule = policy.refusal(session, now)
        if rule is not None:
            session.decision = policy.decisions[rule.number]
            self.follow(session)
        settled = policy.settled(session, now)
        session.rule = None if settled is None else settled.label
        route = None if settled is None else settled.via
        return None if route in (None, "direct") else self.egress(route)

    def egress(self, name: str) -> Egress:
        """An egress by its name. Raises PolicyDenied if there is no such egress."""
        egress = self.egresses.get(name) or self.made.by_name.get(name)
        if egress is None:
            raise PolicyDenied(f"decide: there is no egress {name}")
        return egress

    async def associate(self, session: Session, name: str) -> UdpPath:
        """Open an egress for datagrams; the caller closes it. Errors as `Egress.associate`, and PolicyDenied."""
        return await self.egress(name).associate(session)

    # --- limits ---

    def ask_limits(self, session: Session) -> Wait | None:
        """Have a session admitted; WAIT if it must wait. Raises LimitExceeded if it is refused."""
        if session.lease is not None:  # admitted before a reload
            return None
        if self.queues and self.queue_of(session) in self.queues:  # other sessions were first
            return WAIT
        try:
            lease: Any = self.admit_by(self.policy, session)
        except LimitExceeded as exc:
            if exc.seconds is not None:
                return WAIT
            self.metrics.count("tabi_limited_total", limit=exc.limit)
            raise
        self.begin(session, lease)
        return None

    def admit_by(self, policy: Policy, session: Session) -> Lease | Awaitable[Lease | None] | None:
        """Ask a policy to let a session begin. See `Admission.admit`."""
        given = None
        if session.limits is not None or session.groups:
            given = Given(session.groups, session.limits)
        return policy.admission.admit(session.user, session.client.host, monotonic_ns(), self.clock(), given)

    def ask_own_limits(self, session: Session) -> None:
        """Have a session begin with the limits that the program gives it alone, if it does."""
        if session.decision is not None and session.lease is None:
            self.begin(session, None)

    def begin(self, session: Session, lease: Lease | None) -> None:
        """A session is admitted: keep its lease until its end."""
        decision = session.decision
        if decision is not None:
            session.decision = None
            lease = add_own_limits(lease, decision.limits, session.user, monotonic_ns(), self.clock())
        if lease is not None:
            session.lease = lease
            self.leases.add(lease)
            if self.timer is None:
                self.timer = self.dialer.reactor.loop.call_later(SWEEP, self.tick)

    def queue_of(self, session: Session) -> Hashable:
        """The queue in which a session waits."""
        return self.policy.admission.queue_of(session.user, session.client.host)

    async def wait_for_limits(self, session: Session, client: Stream) -> None:
        """Have a session admitted that may have to wait: first come, first served within a queue.

        Raises:
            LimitExceeded: it may not begin, or not within the patience, or its client has gone.
        """
        if session.lease is not None:
            return
        name = self.queue_of(session)
        patience = max(0.0, self.patience - (monotonic() - session.started))
        why: LimitExceeded | None = None
        try:
            async with asyncio.timeout(patience):
                if self.policy.admission.waits and name not in self.queues:
                    why = await self.admit(session, client, None)  # one round trip, no session waits for another's
                    if why is None:
                        return
                queue = self.queues.setdefault(name, Waiting())
                queue.count += 1
                try:
                    async with queue.turn:
                        while (refusal := await self.admit(session, client, why)) is not None:
                            why = refusal
                            await asyncio.sleep(min(why.seconds or 0.0, LOOK))
                finally:
                    queue.count -= 1
                    if not queue.count:
                        del self.queues[name]
        except TimeoutError:
            who = "clients" if session.user is None else f"user {session.user}"
            text = f"limit: {who}: too many wait" if why is None else str(why)
            raise LimitExceeded(f"{text}; waited {patience:.3g} s", why.limit if why else "wait") from None

    async def admit(self, session: Session, client: Stream, before: LimitExceeded | None) -> LimitExceeded | None:
        """Have a session admitted that waits, by the current policy; else return why it must wait longer.

        ``before`` is why it has waited so far: that was counted. Raises LimitExceeded if it is refused.
        """
        policy = self.policy
        try:
            if client.events & ENDED:
                raise LimitExceeded("limit: the client has gone while it waited", "wait")
            lease: Any = self.admit_by(policy, session)
            if policy.admission.waits:
                lease = await lease
        except LimitExceeded as exc:
            if before is None or exc.seconds is None:
                self.metrics.count("tabi_limited_total", limit=exc.limit)
            if exc.seconds is None:
                raise
            return exc
        self.begin(session, lease)
        return None

    def leave(self, lease: Lease) -> None:
        """A session is over."""
        self.leases.discard(lease)
        lease.release()

    def tick(self) -> None:
        """Sweep, and again after a while as long as there is something to sweep."""
        self.timer = None
        self.sweep(monotonic_ns(), self.clock())
        if self.leases:
            self.timer = self.dialer.reactor.loop.call_later(SWEEP, self.tick)

    def sweep(self, now: int, wall: float) -> None:
        """End sessions whose time is over; ``now`` in monotonic nanoseconds, ``wall`` in seconds since 1970."""
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


class Waiting:
    """The sessions of a queue that wait for room within a limit."""

    __slots__ = ("count", "turn")

    def __init__(self) -> None:
        self.count = 0
        self.turn = asyncio.Lock()


def ask_later(session: Session) -> Wait:
    """The answer of a step that always takes time."""
    return WAIT


async def never(session: Session, client: Stream) -> None:
    """The wait of a step that always answers at once."""


def destination_of(session: Session) -> Address:
    """The destination of a session, as an address if it is a number."""
    destination = session.destination
    assert destination is not None
    host = as_resolved(destination.host)
    return destination if host is destination.host else Address(host, destination.port)


def as_resolved(host: Host) -> Host:
    """A name that is a number becomes the address that a resolver makes of it; any other name stays a name."""
    if not isinstance(host, str):
        return host
    try:
        return read_number(host) or host
    except ValueError:
        return host
