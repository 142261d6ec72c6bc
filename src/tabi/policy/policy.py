"""The policy: everything that decides, as one configuration says it. A reload makes another one; sessions keep theirs.

The order of a decision: the rules (the first that matches, else allow), then the program that has the last word, then
the guard, which sees the very addresses that are dialled, then the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

from tabi.errors import PolicyDenied
from tabi.policy.guard import Guard, Permit
from tabi.policy.limits import Limits
from tabi.policy.networks import IP
from tabi.policy.rules import Rule, RuleSet, Unresolved
from tabi.session import Action, Decision, Session
from tabi.wire.address import Address

LastWord = Callable[[Session], Decision | None]
"""What a program says of a session after the rules, whose decision is in ``session.decision``; None: they are right."""

Judge = Callable[[Address, Sequence[IP] | None], "str | Unresolved | None"]
"""Asked for each destination of a session that has several, with its addresses where they are known: gives the name of
its way out, None for straight, `Unresolved` where that depends on the addresses. Raises PolicyDenied."""

ALLOWED = Decision()
ACTIONS: tuple[str, ...] = get_args(Action)


def judge_any(destination: Address, addresses: Sequence[IP] | None) -> None:
    """The judge of a client for whom there are neither rules nor a guard."""


class Policy:
    """What one configuration decides.

    Args:
        rules: in their order.
        guard: keeps clients out of inner networks.
        limits: how much.
        last_word: asked for every session, after the rules.
    """

    def __init__(self, rules: RuleSet, guard: Guard, limits: Limits, last_word: LastWord | None = None) -> None:
        self.rules = rules
        self.guard = guard
        self.limits = limits
        self.last_word = last_word
        self.decides = bool(rules) or last_word is not None
        self.labels = frozenset(rule.label for rule in rules)
        self.decisions = {rule.number: Decision(rule.action, rule.label, rule.via) for rule in rules}

    def decide(
        self, session: Session, destination: Address, addresses: Sequence[IP] | None, now: float
    ) -> Decision | Unresolved:
        """What becomes of a session that asks for a destination.

        Args:
            addresses: of a destination that is a name, where it was resolved.
            now: seconds since 1970.

        Returns:
            The decision, or `Unresolved` where it depends on the addresses of a name.
        """
        rule = self.rules.find(session, destination, addresses, now)
        if isinstance(rule, Unresolved):
            return rule
        decision = ALLOWED if rule is None else self.decisions[rule.number]
        return decision if self.last_word is None else self.ask(self.last_word, session, destination, decision)

    @staticmethod
    def ask(last_word: LastWord, session: Session, destination: Address, decision: Decision) -> Decision:
        """Let the program have the last word. Raises TypeError where it says something else than a decision."""
        asked = session
        if destination is not session.destination:  # one of those that datagrams go to
            asked = session.copy()
            asked.destination = destination
        asked.decision = decision
        try:
            said: Any = last_word(asked)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as exc:  # sys.exit() and the like end a program, not ours
            raise RuntimeError(f"decide raised {type(exc).__name__}") from exc
        if said is None:
            return decision
        if not isinstance(said, Decision) or said.action not in ACTIONS:
            raise TypeError(f"decide returned {said!r}, expected None or tabi.Decision of one of {', '.join(ACTIONS)}")
        return said

    def settled(self, session: Session, now: float) -> Rule | None:
        """The rule that decides whatever the destination will be, if there is one and no program may differ."""
        return None if self.last_word is not None else self.rules.find_without_destination(session, now)

    def way(self, session: Session, now: float) -> str | None:
        """The way out of a session whatever its destination will be, if a rule names one and no program may differ."""
        rule = self.settled(session, now)
        return None if rule is None or rule.refuses else rule.via

    def refusal(self, session: Session, now: float) -> Rule | None:
        """The rule that refuses a session whatever its destination will be; ``now`` in seconds since 1970."""
        return self.rules.find_refusal(session, now)

    def permit_for(self, session: Session, port: int) -> Permit:
        """The guard's part: asked with each address before it is dialled."""
        return self.guard.permit_for(session.client.host, port)

    def judge_for(self, session: Session, clock: Callable[[], float]) -> Judge:
        """What is asked for each of the destinations of a session that has several; ``clock`` in seconds since 1970."""
        if self.decides:
            return partial(self.judge, session, clock)
        return self.guard.judge if self.guard.is_for(session.client.host) else judge_any

    def judge(
        self, session: Session, clock: Callable[[], float], destination: Address, addresses: Sequence[IP] | None
    ) -> str | Unresolved | None:
        """See `Judge`; ``clock`` in seconds since 1970."""
        decision = self.decide(session, destination, addresses, clock())
        if isinstance(decision, Unresolved):
            return decision
        enforce(decision, destination)
        if addresses and self.guard.is_for(session.client.host):
            self.guard.judge(destination, addresses)
        return None if decision.via == "direct" else decision.via


def enforce(decision: Decision, destination: Address) -> None:
    """Raise PolicyDenied where a decision is not to allow."""
    if decision.action != "allow":
        who = f"rule {decision.rule}" if decision.rule else "decide"
        raise PolicyDenied(decision.reason or f"{who}: {decision.action} {destination}", decision.action)
