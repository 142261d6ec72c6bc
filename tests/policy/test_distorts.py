"""Distorts: all entries that match a session, in their order, by whichever of its names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rule_cases import GROUPS, HOSTS, MONDAY_NOON, asking, parts, rule, session
from tabi.policy.distorts import NO_DISTORTS, Distort, Distorts
from tabi.policy.faults import Fault, Line
from tabi.policy.rewrites import Rewrite
from tabi.policy.rules import ask
from tabi.session import Session
from tabi.wire.address import Address, parse_host

FAULT = Fault(up=Line(latency=0.1))


def distorts(*entries: dict[str, Any], direct: tuple[str, ...] = (), fault: Fault | None = FAULT) -> Distorts:
    """Entries from the texts of their matchers."""
    made = [Distort(rule(number, **entry), f"e{number}", number, fault=fault) for number, entry in enumerate(entries)]
    return Distorts(made, GROUPS, direct)


def connected(host: str, address: str | None = None, via: str | None = None, **who: Any) -> Session:
    """A session that has its destination."""
    made = session(**who)
    made.destination = Address(parse_host(host), 443)
    made.address = None if address is None else Address(parse_host(address), 443)
    made.via = via
    return made


def numbers(found: tuple[Distort, ...]) -> list[int]:
    """Which entries they are."""
    return [entry.number for entry in found]


def test_all_that_match_apply_in_their_order() -> None:
    """Not only the first one, as with rules."""
    found = distorts(
        {"hosts": ("a.example",)},
        {"hosts": ("b.example",)},
        {},
        {"hosts": ("*",), "ports": ("443",)},
        {"ports": ("80",)},
        {"users": ("@dev",)},
    )
    assert numbers(found.matching(connected("a.example", user="alice"), MONDAY_NOON)) == [0, 2, 3, 5]
    assert numbers(found.matching(connected("b.example", user="bob"), MONDAY_NOON)) == [1, 2, 3]


def test_nothing_matches_nothing() -> None:
    """No entry, or no destination yet."""
    assert NO_DISTORTS.matching(connected("a.example"), MONDAY_NOON) == ()
    assert distorts({}).matching(session(), MONDAY_NOON) == ()
    assert distorts({"hosts": ("b.example",)}).matching(connected("a.example"), MONDAY_NOON) == ()


@pytest.mark.parametrize(
    ("address", "via", "expected"),
    [
        ("10.1.2.3", None, [0, 2]),
        ("10.1.2.3", "direct", [0, 2]),
        ("10.1.2.3", "office", [0, 2]),  # an egress of ours
        ("10.1.2.3", "tor", [0]),  # the address of a proxy
        (None, None, [0]),
    ],
)
def test_networks_match_the_address_that_was_dialled(address: str | None, via: str | None, expected: list[int]) -> None:
    """Not that of a proxy: behind it the destination's is not known."""
    found = distorts(
        {"hosts": ("a.example",)}, {"hosts": ("192.0.2.0/24",)}, {"hosts": ("10.0.0.0/8",)}, direct=("office",)
    )
    assert numbers(found.matching(connected("a.example", address, via), MONDAY_NOON)) == expected


def test_the_member_of_a_pool_says_who_dialled() -> None:
    """A pool has members that dial, and proxies."""
    found = distorts({"hosts": ("10.0.0.0/8",)})
    one = connected("a.example", "10.1.2.3", "pool")
    for member, expected in (("direct", [0]), ("tor", [])):
        one.member = member
        assert numbers(found.matching(one, MONDAY_NOON)) == expected


def test_addresses_that_a_rule_had_resolved_count() -> None:
    """Any of them, before one of them is dialled."""
    found = distorts({"hosts": ("10.0.0.0/8",)})
    one = connected("a.example")
    one.addresses = [parse_host("192.0.2.1"), parse_host("10.1.1.1")]  # type: ignore[list-item]
    assert numbers(found.matching(one, MONDAY_NOON)) == [0]


def test_the_name_in_the_hello_counts_too() -> None:
    """One of both names is enough; the same name is asked for once."""
    found = distorts({"hosts": ("a.example",)}, {"hosts": ("b.example",)}, {"hosts": ("192.0.2.1",)})
    one = connected("192.0.2.1")
    assert numbers(found.matching(one, MONDAY_NOON, sni="B.example")) == [1, 2]
    assert numbers(found.matching(connected("a.example"), MONDAY_NOON, sni="A.EXAMPLE")) == [0]


def test_each_datagram_has_its_destination() -> None:
    """That of the session is not known, or another one."""
    found = distorts({"hosts": ("a.example",)}, {"hosts": ("192.0.2.0/24",)})
    one = session(command="associate")
    assert numbers(found.matching(one, MONDAY_NOON, Address(parse_host("192.0.2.9"), 53))) == [1]
    assert numbers(found.matching(one, MONDAY_NOON, Address("a.example", 53))) == [0]


def test_hours_are_those_of_now() -> None:
    """A session that begins later may have other entries."""
    found = distorts({"hours": "Mon"}, {"hours": "Tue"})
    assert numbers(found.matching(connected("a.example"), MONDAY_NOON)) == [0]
    assert numbers(found.matching(connected("a.example"), MONDAY_NOON + 86400)) == [1]


def test_whether_an_association_may_have_a_fault() -> None:
    """Whatever its destinations and the hour; an entry without a fault is none."""
    one = session(command="associate", user="bob")
    assert distorts({"hosts": ("a.example",), "ports": ("53",), "hours": "Tue"}).may_match(one)
    assert not distorts({"users": ("@dev",)}).may_match(one)
    assert not distorts({"commands": ("connect",)}).may_match(one)
    assert not distorts({}, fault=None).may_match(one)
    assert not NO_DISTORTS.may_match(one)


def test_entries_are_themselves_alone() -> None:
    """Two with the same figures are two; with others in their place, groups and egresses stay."""
    found = distorts({"users": ("@dev",)}, {"users": ("@dev",)}, direct=("office",))
    first, second = found
    assert first != second
    assert len(found) == 2
    assert repr(found) == "Distorts(2)"
    less = found.replaced([second])
    assert (list(less), less.groups, less.direct) == ([second], GROUPS, found.direct)
    assert "office" in less.direct
    assert less.matching(connected("a.example", user="alice"), MONDAY_NOON) == (second,)


def test_each_entry_says_why() -> None:
    """All of them are told, those behind one that matches too."""
    found = distorts({"hosts": ("a.example",)}, {}, {"hosts": ("b.example",), "ports": ("443",)}, {"users": ("bob",)})
    assert [(step.distort.number, step.matched, step.why) for step in found.explain(connected("a.example"), 0.0)] == [
        (0, True, "hosts a.example"),
        (1, True, "matches everything"),
        (2, False, "hosts: a.example is not one of b.example"),
        (3, False, "users: nobody is not bob"),
    ]


def test_the_name_in_the_hello_is_known_too_late_for_faults() -> None:
    """It chooses what is looked into: fields and fingerprints."""
    first = Distort(rule(0, hosts=("a.example",)), "fault", 0, fault=FAULT)
    second = Distort(rule(1, hosts=("a.example",)), "fields", 1, rewrite=Rewrite(strip_cookies=True))
    steps = Distorts([first, second]).explain(connected("192.0.2.1"), 0.0, "a.example")
    assert [step.matched for step in steps] == [False, True]
    steps = Distorts([first, second]).explain(connected("192.0.2.1"), 0.0, "b.example")
    assert steps[1].why == "hosts: 192.0.2.1 is not one of a.example; hosts: b.example is not one of a.example"


@given(st.lists(parts, max_size=6), asking, st.sampled_from(HOSTS), st.sampled_from([80, 443, 53]))
def test_any_entries_are_found_one_by_one(entries: list[dict[str, Any]], who: Any, host: str, port: int) -> None:
    """What is looked up in tables is what matches alone."""
    for entry in entries:
        entry["action"] = "deny"
    found = distorts(*entries)
    one = session(**who) if isinstance(who, dict) else who
    one.destination = Address(parse_host(host), port)
    asked = ask(one.destination, ())
    expected = [entry.number for entry in found if found.rules.mismatch(entry.rule, one, asked, MONDAY_NOON) is None]
    assert numbers(found.matching(one, MONDAY_NOON)) == expected


NAMES = ("a.example", "*.a.example", "example", "*.example")
DESTINATIONS = ("a.example", "A.Example.", "b.a.example", "example", "other.test", "192.0.2.1", "::1")


@pytest.mark.parametrize("host", DESTINATIONS)
def test_entries_for_names_are_passed_over_at_once(host: str) -> None:
    """What is said without looking each of them up is the same: those of addresses have none, and others that are not
    named."""
    found = distorts(*({"hosts": (name,)} for name in NAMES), {"hosts": ("a.example",), "ports": ("80",)})
    assert found.by_name
    asking = connected(host, "192.0.2.1")
    quick = found.matching(asking, MONDAY_NOON)
    found.by_name = False
    assert numbers(found.matching(asking, MONDAY_NOON)) == numbers(quick)


@pytest.mark.parametrize(
    "other",
    [{}, {"hosts": ("*",)}, {"hosts": ("192.0.2.0/24",)}, {"clients": ("10.0.0.0/8",)}, {"users": ("bob", "@dev")}],
)
def test_no_entry_of_another_kind_is_passed_over(other: dict[str, Any]) -> None:
    """As soon as there is one, addresses are looked up."""
    found = distorts({"hosts": ("a.example",)}, other)
    assert not found.by_name
    asking = connected("192.0.2.1", "192.0.2.1", user="bob", client="10.0.0.1")
    assert numbers(found.matching(asking, MONDAY_NOON)) == [1]
