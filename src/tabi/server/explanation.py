"""The explanation of a request: the steps of the gate with a recorder around each, the egress, and the guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from math import inf
from time import monotonic
from typing import Any

import msgspec

from tabi.config import Config, PerClient
from tabi.egress.base import Egress
from tabi.errors import DialError, PolicyDenied, TabiError
from tabi.ingress.gate import WAIT, Gate, OpenRoute, Step, Wait, destination_of
from tabi.ingress.hook import MAX_DELAY
from tabi.policy.ledger import USED
from tabi.policy.limits import Account
from tabi.policy.policy import DestinationPolicy, Pending, Policy
from tabi.policy.quantities import Quota, format_moment, format_size
from tabi.policy.rules import Unresolved
from tabi.server.explain_distort import DistortStep
from tabi.server.explain_intercept import Interception
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address

QUESTIONS = ("resolve", "resolve_ptr")


class RuleStep(msgspec.Struct):
    """The answer of one rule."""

    rule: str
    matched: bool
    why: str
    action: str


class Explanation(msgspec.Struct):
    """The whole answer, as ``--json`` prints it."""

    listener: str
    protocol: str
    client: str
    user: str | None
    command: str
    destination: str
    time: str
    identity: str
    """The client's identity at the listener, and whether that is enough."""
    login: str | None = None
    """The user name as it was given, with its parameters."""
    parameters: dict[str, Any] | None = None
    """The parameters: labels, session and ttl; null if there are none."""
    rules: list[RuleStep] = []
    decide: str | None = None
    """The answer of the program of ``decide``; null if there is none."""
    resolver: str = "not asked"
    addresses: list[str] = []
    guard: str = "not asked"
    limits: list[str] = []
    egress: str | None = None
    member: str | None = None
    """Of a pool: the member that would be taken now, and why; null for any other egress."""
    selects: list[str] = []
    """What the parameters select there."""
    proxy_resolves: bool = False
    """Whether the name is resolved or found by a proxy, and so neither the resolver's answer nor the guard's counts."""
    delay: float | None = None
    """Seconds that the client must wait before its answer; null if it need not wait."""
    intercept: Interception | None = None
    """Whether it would be looked into; null if there is no interception, or if it is refused."""
    distort: list[DistortStep] = []
    """What each ``[[distort]]`` does to it, or why not; empty if it is refused."""
    sniff: str | None = None
    """Whether the rules are asked again, for a connection whose first octets are looked at; null for any other."""
    later: str | None = None
    """For an association, and for BIND that any peer may call: what becomes of datagrams, or callers."""
    action: str = "allow"
    rule: str | None = None
    reply: int | None = 0
    error: str | None = None
    """As the access log would have them; whether the destination can be reached is not tested."""


class Recorder:
    """Stands around the steps of the gate, and notes what each checked and answered. After a refusal the next steps
    still run: the first refusal is the answer.

    Args:
        found: gets it.
        config: of the server.
        policy: that it makes.
        now: seconds since 1970.
        used: by account, what was used of quotas.
        openly: whether the destinations of the session are not known yet.
    """

    def __init__(
        self,
        found: Explanation,
        config: Config,
        policy: Policy,
        now: float,
        used: Mapping[str, tuple[int, int]],
        openly: bool,
    ) -> None:
        self.found = found
        self.config = config
        self.policy = policy
        self.now = now
        self.used = used
        self.openly = openly
        self.failure: TabiError | None = None

    def __call__(self, step: Step) -> Step:
        """See `tabi.ingress.gate.Recorder`."""
        look: Callable[[Session], None] = getattr(self, f"note_{step.name}")

        def ask(session: Session) -> Egress | Wait | None:
            if step.name == "delay":  # it is recorded, and not waited for
                look(session)
                return None
            if step.name in ("decide", "egress") and session.decision is None:  # the rules could not decide
                return None
            if step.name == "egress":
                look(session)
            said: Egress | Wait | None = None
            try:
                said = step.ask(session)
            except TabiError as exc:
                self.fail(exc)
            if said is not WAIT and step.name != "egress":
                look(session)
            return said

        async def wait(session: Session, client: Any) -> Egress | None:
            said: Egress | None = None
            try:
                said = await step.wait(session, client)
            except TabiError as exc:
                self.fail(exc)
            look(session)
            return said

        return Step(step.name, ask, wait)

    def fail(self, failure: TabiError) -> None:
        """Note why it is refused, unless that is known."""
        self.failure = self.failure or failure

    def note_rules(self, session: Session) -> None:
        """Tell each rule, up to the one that decides."""
        if self.openly:
            rule = self.policy.refusal(session, self.now)
            if rule is not None:
                self.found.rules.append(RuleStep(rule.label, True, WHATEVER, rule.action))
                self.found.action = rule.action
            self.found.rule = session.rule
            return
        destination = destination_of(session)
        for step in self.policy.rules.explain(session, destination, session.addresses, self.now):
            self.found.rules.append(RuleStep(step.rule.label, step.matched, step.why, step.rule.action))

    def note_decide(self, session: Session) -> None:
        """Record the answer of the program."""
        decision = session.decision
        if isinstance(self.failure, PolicyDenied) or decision is None:
            self.found.decide = f"{self.failure}"
        else:
            via = f" by {shown_via(decision.via)}" if decision.via else ""
            self.found.decide = f"{self.config.decide}: {decision.action}{via}"

    def note_delay(self, session: Session) -> None:
        """Tell how long the client waits."""
        if session.decision is not None and session.decision.delay:
            self.found.delay = min(float(session.decision.delay), MAX_DELAY)

    def note_egress(self, session: Session) -> None:
        """Tell what was decided."""
        assert session.decision is not None
        self.found.action, self.found.rule = session.decision.action, session.decision.rule

    def note_limits(self, session: Session) -> None:
        """Tell the limits that hold. They are checked as if no other session were running."""
        limits, user, lines = self.policy.limits, session.user, self.found.limits
        lease = session.lease
        accounts = limits.accounts_of(user, session.client.host) if lease is None else lease.accounts
        limits.turn_periods(self.now)
        for account in accounts:
            if terms := terms_of(account, account.name in self.used):
                lines.append(f"{account.name}: {', '.join(terms)}")
        each = self.config.limits.per_client
        if each is not None and session.client.host != "unix":
            lines.append(f"each client: {', '.join(client_terms(each))}")
        for number, rule in enumerate(self.config.rule if session.command != "associate" else ()):
            if rule.idle is not None and self.found.rule == (rule.name or f"rule[{number}]"):
                time = "any time" if rule.idle == inf else f"{rule.idle:g} s"
                lines.append(f"{self.found.rule}: {time} without an octet")
        if user is not None and user in limits.expires:
            lines.append(f"user {user}: until {format_moment(limits.expires[user])}")


WHATEVER = "whatever its destination"


def shown_via(via: Any) -> str:
    """An egress that a program has named, without secrets."""
    return via.rpartition("@")[2] if isinstance(via, str) else str(via.name)


class EgressExplainer:
    """What happens to a session behind the gate: at its egress, and at the guard.

    Args:
        found: gets it.
        config: of the server.
        policy: that it makes.
        session: which the gate has let through, or not.
        addresses: of its destination.
        no_address: why there are no addresses.
    """

    def __init__(
        self,
        found: Explanation,
        config: Config,
        policy: Policy,
        session: Session,
        addresses: Sequence[IP] | None,
        no_address: DialError | None,
    ) -> None:
        self.found = found
        self.config = config
        self.policy = policy
        self.session = session
        self.addresses = addresses
        self.no_address = no_address

    def open(self, egress: Egress) -> TabiError | None:
        """Record what the egress and the guard say about a session's destination; return why they refuse it."""
        found, session = self.found, self.session
        assert session.destination is not None
        asks = is_name(session.destination) or session.command == "resolve_ptr"
        found.proxy_resolves = session.addresses is None and asks and not egress.resolves_locally
        command = str(session.command)
        goes = command in ("bind", "associate") or (command in QUESTIONS and found.proxy_resolves)
        failure = self.describe(egress, command if goes else None, str(session.destination))
        refused = self.ask_guard(egress)
        return failure or refused or (None if found.proxy_resolves else self.no_address)

    def describe(self, egress: Egress, command: str | None, what: str) -> TabiError | None:
        """Record an egress, and why it does not carry ``command`` or, if it leads nowhere, ``what``."""
        found, session = self.found, self.session
        found.egress = egress.describe()
        reason = None if command is None else egress.cannot(command)
        if reason is not None:
            return DialError(reason, ReplyCode.COMMAND_NOT_SUPPORTED)
        if egress.leads_nowhere:
            return PolicyDenied(f"egress {egress.name}: {what}")
        assert session.destination is not None
        try:
            if session.parameters is not None:
                found.selects = egress.explain_choice(session.parameters)
            found.member = egress.explain_member(session.destination, session, monotonic())
        except DialError as exc:
            return exc
        return None

    def ask_guard(self, egress: Egress) -> PolicyDenied | None:
        """Record the guard's answer for the addresses that would be dialled; return why it refuses them."""
        guard, client, found, destination = (
            self.policy.guard,
            self.session.client.host,
            self.found,
            self.session.destination,
        )
        assert destination is not None
        if found.proxy_resolves and is_name(destination):
            later = ", and what it finds is looked at then" if self.session.command == "resolve" else ""
            found.guard = f"not asked: the name is the proxy's to resolve{later}"
        elif not guard.denied:
            found.guard = "off: guard.deny is empty"
        elif not guard.is_for(client):
            found.guard = f"not for {client}, which is in guard.exempt"
        elif self.addresses is None:
            found.guard = "has no address to look at"
        else:
            reasons = [reason for one in self.addresses if (reason := guard.catches(one, destination.port))]
            found.guard = f"refuses: {'; '.join(reasons)}" if reasons else f"lets {', '.join(found.addresses)} through"
            try:
                guard.check_destination(destination, self.addresses)
            except PolicyDenied as exc:
                return exc
        return None

    async def explain_openly(self, gate: Gate, route: OpenRoute, anybody: bool) -> TabiError | None:
        """Record what happens to an association, or BIND for any peer, and to the one destination that was asked about.

        Returns:
            Why the session is refused; the destination is recorded separately.
        """
        found, session, policy = self.found, self.session, self.policy
        egress = gate.direct if route.egress is None else route.egress
        what = "datagrams" if session.command == "associate" else str(session.destination)
        failure = self.describe(egress, None if route.egress is None else str(session.command), what)
        settled = policy.settled(session, gate.clock())
        if settled is not None and (failure is not None or anybody):
            found.rules.append(RuleStep(settled.label, True, WHATEVER, settled.action))
        if failure is not None:
            return failure
        found.later = "each is judged when it comes"
        if not anybody:
            refused = await self.explain_destination(gate, route)
            found.later = f"to {session.destination}: " + (f"dropped, {refused}" if refused is not None else "sent")
        return None

    async def explain_destination(self, gate: Gate, route: OpenRoute) -> TabiError | None:
        """What becomes of a datagram, as an association finds it out: why it is dropped."""
        found, session, destination = self.found, self.session, destination_of(self.session)
        named = is_name(destination)
        by_name = named and isinstance(self.policy.rules.find(session, destination, None, gate.clock()), Unresolved)
        looked_at = self.addresses if by_name else None
        for step in self.policy.rules.explain(session, destination, looked_at, gate.clock()):
            found.rules.append(RuleStep(step.rule.label, step.matched, step.why, step.rule.action))
        egress = gate.direct if route.egress is None else route.egress
        refused: TabiError | None = None
        try:
            via = await self.verdict(route.destination_policy, destination, None if named else self.addresses)
            if named and (isinstance(via, Unresolved) or via is None or gate.egress(via).resolves_locally):
                if self.no_address is not None:
                    raise self.no_address
                via = await self.verdict(route.destination_policy, destination, self.addresses)
            egress = gate.direct if via is None else gate.egress(str(via))
            found.proxy_resolves = named and not by_name and not egress.resolves_locally
            refused = self.describe(egress, "associate", "datagrams")
        except TabiError as exc:
            refused = exc
        self.ask_guard(egress)
        return refused

    async def verdict(
        self, destination_policy: DestinationPolicy, destination: Address, addresses: Sequence[IP] | None
    ) -> str | Unresolved | None:
        """The answer of a destination policy, awaited if that takes time. Raises PolicyDenied."""
        said = destination_policy(destination, addresses)
        if isinstance(said, Pending):
            await said
            said = destination_policy(destination, addresses)
        if self.policy.decide_hook is not None:
            self.found.decide = f"{self.config.decide}: allow" + (f" by {said}" if isinstance(said, str) else "")
        return said


def is_name(destination: Address) -> bool:
    """Whether the name must be resolved."""
    return isinstance(destination.host, str)


def terms_of(account: Account, known: bool) -> list[str]:
    """The limits of an account for people; ``known`` says that the used amount is known."""
    terms, found = account.terms, []
    if terms.connections is not None:
        found.append(f"{terms.connections} connections at once")
    if terms.connect_rate is not None:
        found.append(f"new ones {terms.connect_rate}")
    if terms.bandwidth is not None:
        found.append(f"{format_size(int(terms.bandwidth))}/s each way")
    if terms.burst is not None:
        found.append(f"{format_size(terms.burst)} at once")
    if terms.quota is not None:
        found.append(describe_quota(account, terms.quota, known))
    if terms.max_session is not None:
        found.append(f"{terms.max_session:g} s for a session")
    return [*found, "requests beyond these wait"] if terms.over == "wait" else found


def client_terms(each: PerClient) -> list[str]:
    """What each client's address may have, for people."""
    found = [] if each.connections is None else [f"{each.connections} connections at once"]
    found.append(f"{each.unauthenticated} of them without a request")
    return found if each.connect_rate is None else [*found, f"new ones {each.connect_rate}"]


def describe_quota(account: Account, quota: Quota, known: bool) -> str:
    """A quota, and how much of it was used."""
    used = account.ledger.cells[account.at + USED]
    return f"{quota} ({used / quota.octets:.0%} used)" if known else str(quota)
