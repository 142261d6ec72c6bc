"""The policy: rules, then the program that has the last word, then the guard."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

import pytest

from tabi.errors import PolicyDenied
from tabi.policy.guard import Guard, allow_any_address
from tabi.policy.ledger import Ledger
from tabi.policy.limits import Limits
from tabi.policy.policy import Pending, Policy, allow_any_destination, enforce
from tabi.policy.rules import UNRESOLVED, RuleSet, Texts, Unresolved, make_rule
from tabi.session import Decision, Session
from tabi.wire.address import Address

WHERE = Address("x.example", 25)


def session(client: str = "8.8.4.4") -> Session:
    """Who asks for WHERE."""
    made = Session(1, "socks5://127.0.0.1:0", Address(ip_address(client), 1), 0.0)
    made.command, made.destination = "connect", WHERE
    return made


def policy(*texts: dict[str, Any], decide_hook: Any = None, action: Any = "deny") -> Policy:
    """A policy with a rule for each."""
    rules = RuleSet(make_rule(number, action, Texts(**part), via=None) for number, part in enumerate(texts))
    return Policy(rules, Guard(), Limits(Ledger()), decide_hook)


def test_rules_decide() -> None:
    """The first match, with its label; none allows; one that depends on addresses is not decided."""
    made = policy({"ports": ("25",)})
    assert made.decides
    assert made.decide(session(), WHERE, None, 0) == Decision("deny", "rule[0]")
    assert made.decide(session(), Address("x.example", 26), None, 0) == Decision()
    assert isinstance(policy({"hosts": ("10.0.0.0/8",)}).decide(session(), WHERE, None, 0), Unresolved)
    assert not policy().decides
    found = made.refusal(session(), 0)
    assert found is None


def test_a_program_has_the_last_word() -> None:
    """It sees what the rules decided, overrides it or leaves it; of datagrams it sees the destination of each."""
    seen: list[tuple[Any, Any]] = []

    def decide_hook(asked: Session) -> Any:
        seen.append((asked.destination, asked.decision))
        assert asked.destination is not None
        return Decision("allow", "mine") if asked.destination.port == 25 else None

    made = policy({}, decide_hook=decide_hook)
    assert made.decide(session(), WHERE, None, 0) == Decision("allow", "mine")
    who, other = session(), Address("y.example", 26)
    assert made.decide(who, other, None, 0) == Decision("deny", "rule[0]")
    assert seen == [(WHERE, Decision("deny", "rule[0]")), (other, Decision("deny", "rule[0]"))]
    assert who.destination is WHERE
    wrong: Any
    for wrong in ("yes", Decision("bogus"), Decision(None)):  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match=r"^decide returned .*, expected None or tabi\.Decision of one of allow, deny"
        ):
            policy(decide_hook=lambda asked, wrong=wrong: wrong).decide(session(), WHERE, None, 0)


@pytest.mark.parametrize(
    ("raised", "seen"), [(SystemExit, RuntimeError), (ValueError, ValueError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_a_program_with_the_last_word_ends_no_worker(raised: type[BaseException], seen: type[BaseException]) -> None:
    """sys.exit() in it is a failure like any other; Ctrl-C is Ctrl-C."""

    def decide_hook(asked: Session) -> None:
        raise raised

    with pytest.raises(seen):
        policy(decide_hook=decide_hook).decide(session(), WHERE, None, 0)


def test_what_is_not_allowed_is_refused_with_its_reason() -> None:
    """By the rule's name, or in the program's words; with the action that says how."""
    enforce(Decision(), WHERE)
    for decision, text in (
        (Decision("reset", "no-mail"), "rule no-mail: reset x.example:25"),
        (Decision("drop"), "decide: drop x.example:25"),
        (Decision("deny", "x", reason="not on Sundays"), "not on Sundays"),
    ):
        with pytest.raises(PolicyDenied, match=f"^{text}$") as caught:
            enforce(decision, WHERE)
        assert caught.value.action == decision.action


def test_judges() -> None:
    """Where there is nothing to ask, nothing is made; else rules and guard see every destination."""
    plain = policy()
    assert plain.destination_policy_for(session("127.0.0.1"), float) is allow_any_destination
    allow_any_destination(WHERE, None)
    assert plain.destination_policy_for(session(), float) == plain.guard.check_destination
    assert plain.address_filter_for(session("127.0.0.1"), 80) is allow_any_address
    destination_policy = policy({"ports": ("26",)}, {"hosts": ("9.0.0.0/8",)}).destination_policy_for(session(), float)
    destination_policy(WHERE, None)
    destination_policy(WHERE, [ip_address("8.8.8.8")])
    for destination, addresses in (
        (Address("x.example", 26), None),
        (WHERE, [ip_address("9.9.9.9")]),
        (WHERE, [ip_address("10.0.0.1")]),
    ):
        with pytest.raises(PolicyDenied):
            destination_policy(destination, addresses)
    policy({"ports": ("26",)}).destination_policy_for(session("127.0.0.1"), float)(WHERE, [ip_address("10.0.0.1")])


def test_judges_say_which_way() -> None:
    """By name where a rule has one that is not straight; and it is known at once where it is for every destination."""

    def allowing(*texts: dict[str, Any], decide_hook: Any = None) -> Policy:
        rules = RuleSet(
            make_rule(number, "allow", Texts(part.get("hosts"), ports=part.get("ports")), via=part.get("via"))
            for number, part in enumerate(texts)
        )
        return Policy(rules, Guard(), Limits(Ledger()), decide_hook)

    made = allowing({"via": "tor"})
    destination_policy = made.destination_policy_for(session(), lambda: 0)
    assert destination_policy(WHERE, None) == "tor"
    with pytest.raises(PolicyDenied, match=r"^guard"):
        destination_policy(WHERE, [ip_address("10.0.0.1")])
    assert made.way(session(), 0) == "tor"
    straight = allowing({"via": "direct"})
    assert straight.way(session(), 0) == "direct"
    assert straight.destination_policy_for(session(), lambda: 0)(WHERE, None) is None
    depends = allowing({"hosts": ("9.0.0.0/8",), "via": "tor"})
    destination_policy = depends.destination_policy_for(session(), lambda: 0)
    assert destination_policy(WHERE, None) is UNRESOLVED
    assert destination_policy(WHERE, [ip_address("9.9.9.9")]) == "tor"
    assert destination_policy(WHERE, [ip_address("8.8.8.8")]) is None
    assert policy({}).way(session(), 0) is None
    assert allowing({"ports": ("53",)}, {"via": "tor"}).way(session(), 0) is None
    assert policy().way(session(), 0) is None
    assert allowing({"via": "tor"}, decide_hook=lambda asks: None).way(session(), 0) is None


def test_a_verdict_that_takes_time_is_awaited() -> None:
    """What a judge gives in its place is known as unresolved to whoever does not wait."""
    waited: list[int] = []

    async def settle() -> None:
        waited.append(1)

    async def main() -> None:
        pending = Pending(settle)
        assert isinstance(pending, Unresolved)
        await pending

    asyncio.run(main())
    assert waited == [1]


def test_what_admits_is_the_limits_unless_something_else_does() -> None:
    """A store that machines share may stand in their place; and a hook with async is known as one that waits."""
    other: Any = object()
    limits = Limits(Ledger())
    assert Policy(RuleSet(), Guard(), limits).admission is limits
    assert Policy(RuleSet(), Guard(), limits, admission=other).admission is other

    async def decide(asked: Session) -> None:
        """Say nothing."""

    assert policy(decide_hook=decide).hook_waits
    assert not policy(decide_hook=lambda asked: None).hook_waits


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        ([("deny", ("bad.test",)), ("allow", None)], "rule[0]"),
        ([("deny", ("*.test",)), ("allow", None)], "rule[0]"),
        ([("reset", ("re:^bad",))], "rule[0]"),
        ([("deny", ("*.x.example", "bad.test")), ("allow", ("x.example",))], "rule[0]"),
        ([("allow", None), ("deny", ("bad.test",))], None),
        ([("allow", ("x.example",)), ("deny", None)], None),
        ([("allow", ("bad.test",)), ("deny", ("*.test",)), ("allow", None)], None),
        ([("allow", ("x.example",)), ("deny", ("bad.test",))], None),
        ([("deny", ("other.test",)), ("allow", None)], None),
        ([("deny", ("10.0.0.0/8",)), ("deny", ("bad.test",)), ("allow", None)], "rule[1]"),
        ([("deny", ("0.0.0.0/0",)), ("allow", None)], None),
        ([], None),
    ],
)
def test_rules_that_are_asked_again_with_a_name(rules: list[Any], refused: str | None) -> None:
    """The first rule counts that has the destination or the name among its hosts: a refusal before the one that has
    allowed the session. No address of the name is known, and none is looked up."""
    made = Policy(
        RuleSet(make_rule(number, action, Texts(hosts=hosts)) for number, (action, hosts) in enumerate(rules)),
        Guard(),
        Limits(Ledger()),
    )
    who = session()
    who.addresses = [ip_address("8.8.8.8")]
    found = made.refusal_by_name(who, WHERE, "bad.test", 0)
    assert (None if found is None else found.rule) == refused


def test_a_refusal_by_a_name_where_the_rules_have_become_others() -> None:
    """After a reload the first match for the destination may depend on addresses that nobody has looked up."""
    hosts = (("bad.test",), ("10.0.0.0/8",))
    made = Policy(
        RuleSet(make_rule(number, "deny", Texts(hosts=one)) for number, one in enumerate(hosts)),
        Guard(),
        Limits(Ledger()),
    )
    assert made.refusal_by_name(session(), WHERE, "bad.test", 0) == Decision("deny", "rule[0]")
