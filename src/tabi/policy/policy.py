"""The policy: everything that decides, as one configuration says it. A reload makes another one; sessions keep theirs.

In which order its parts are asked is written in `ingress.gate`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any

from tabi.errors import PolicyDenied
from tabi.policy.admission import Admission
from tabi.policy.guard import AddressFilter, Guard
from tabi.policy.hook import DecideHook, ask_hook, is_async
from tabi.policy.limits import Limits
from tabi.policy.networks import IP
from tabi.policy.rules import Rule, RuleSet, Unresolved
from tabi.session import Decision, Session
from tabi.wire.address import Address

DestinationPolicy = Callable[[Address, Sequence[IP] | None], "str | Unresolved | None"]
"""Asked for each destination of a session that has several, with its addresses if they are known: gives the name of
its egress, None for direct, `Unresolved` if that depends on the addresses. Raises PolicyDenied.

If the answer takes time it gives an `Unresolved` that is awaitable (`Pending`): await it, then ask again."""


class Pending(Unresolved):
    """What a destination policy returns if its answer takes time: await it, then ask again."""

    def __init__(self, settle: Callable[[], Awaitable[None]]) -> None:
        self.settle = settle

    def __await__(self) -> Generator[Any, None, None]:
        return self.settle().__await__()


ALLOWED = Decision()


def allow_any_destination(destination: Address, addresses: Sequence[IP] | None) -> None:
    """The destination policy of a client to which neither rules nor a guard apply."""


class Policy:
    """What one configuration decides.

    Args:
        rules: in their order.
        guard: keeps clients out of inner networks.
        limits: how much.
        decide_hook: asked for every session, after the rules.
        admission: lets sessions begin in place of ``limits``: a store that several machines share.
    """

    def __init__(
        self,
        rules: RuleSet,
        guard: Guard,
        limits: Limits,
        decide_hook: DecideHook | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.rules = rules
        self.guard = guard
        self.limits = limits
        self.decide_hook = decide_hook
        self.hook_waits = decide_hook is not None and is_async(decide_hook)
        """Whether the answer of the program has to be awaited."""
        self.admission: Admission = limits if admission is None else admission
        self.given_limits = False
        """Whether a program may give limits to users whom it lets in."""
        self.decides = bool(rules) or decide_hook is not None
        self.labels = frozenset(rule.label for rule in rules)
        self.decisions = {rule.number: Decision(rule.action, rule.label, rule.via) for rule in rules}

    def find(
        self, session: Session, destination: Address, addresses: Sequence[IP] | None, now: float
    ) -> Decision | Unresolved:
        """What the rules decide for a session that asks for a destination.

        Args:
            session: the client that asks, and how it asks.
            destination: the host and port; a name that is a number is expected as an address.
            addresses: of a destination that is a name, if it was resolved.
            now: seconds since 1970.

        Returns:
            The decision, or `Unresolved` if it depends on the addresses of a name.
        """
        rule = self.rules.find(session, destination, addresses, now)
        if rule is None:
            return ALLOWED
        return rule if isinstance(rule, Unresolved) else self.decisions[rule.number]

    def decide(
        self, session: Session, destination: Address, addresses: Sequence[IP] | None, now: float
    ) -> Decision | Unresolved:
        """What the rules decide, and then the program, whose answer must not need an await. See `find`."""
        decision = self.find(session, destination, addresses, now)
        if self.decide_hook is None or isinstance(decision, Unresolved):
            return decision
        return ask_hook(self.decide_hook, session, destination, decision)

    def refusal_by_name(self, session: Session, destination: Address, name: str, now: float) -> Decision | None:
        """What the rules say of a session that they have allowed, now that its TLS asks for a name.

        ``hosts`` of a rule may be either: so the first rule that matches is another one if its hosts have the name, and
        it comes before that for the destination. The addresses of the name are not known, and networks do not match it.

        Returns:
            The decision of that rule if it refuses; None: the session goes on as it is.
        """
        rule = self.rules.find(session, Address(name, destination.port), (), now)
        if not isinstance(rule, Rule) or not rule.refuses:
            return None
        before = self.rules.find(session, destination, session.addresses, now)
        return None if isinstance(before, Rule) and before.number <= rule.number else self.decisions[rule.number]

    def settled(self, session: Session, now: float) -> Rule | None:
        """The rule that decides whatever the destination will be, if there is one and no program may change it."""
        return None if self.decide_hook is not None else self.rules.find_without_destination(session, now)

    def way(self, session: Session, now: float) -> str | None:
        """The egress of a session for every destination, if a rule names one and no program may change it."""
        rule = self.settled(session, now)
        return None if rule is None or rule.refuses else rule.via

    def refusal(self, session: Session, now: float) -> Rule | None:
        """The rule that refuses a session whatever its destination will be; ``now`` in seconds since 1970."""
        return self.rules.find_refusal(session, now)

    def address_filter_for(self, session: Session, port: int) -> AddressFilter:
        """The guard's part: asked with each address before it is dialled."""
        return self.guard.address_filter_for(session.client.host, port)

    def destination_policy_for(self, session: Session, clock: Callable[[], float]) -> DestinationPolicy:
        """What is asked for each of the destinations of a session that has several; ``clock`` in seconds since 1970."""
        if self.decides:
            return partial(self.decide_destination, session, clock)
        return self.guard.check_destination if self.guard.is_for(session.client.host) else allow_any_destination

    def decide_destination(
        self, session: Session, clock: Callable[[], float], destination: Address, addresses: Sequence[IP] | None
    ) -> str | Unresolved | None:
        """See `DestinationPolicy`; ``clock`` in seconds since 1970."""
        decision = self.decide(session, destination, addresses, clock())
        if isinstance(decision, Unresolved):
            return decision
        self.judge_decided(session, destination, addresses, decision)
        return None if decision.via == "direct" else decision.via

    def judge_decided(
        self, session: Session, destination: Address, addresses: Sequence[IP] | None, decision: Decision
    ) -> None:
        """Enforce what was decided of one of several destinations, and ask the guard. Raises PolicyDenied."""
        enforce(decision, destination)
        if addresses and self.guard.is_for(session.client.host):
            self.guard.check_destination(destination, addresses)


def enforce(decision: Decision, destination: Address) -> None:
    """Raise PolicyDenied if a decision does not allow."""
    if decision.action != "allow":
        who = f"rule {decision.rule}" if decision.rule else "decide"
        text = decision.reason or f"{who}: {decision.action} {destination}"
        raise PolicyDenied(text, decision.action, decision.reply_code or PolicyDenied.reply_code)
