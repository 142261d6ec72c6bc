"""Overlap: rules that can never match are found, and none is called so that can."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rule_cases import HOSTS, MONDAY_NOON, asking, parts, rules, session
from tabi.policy.overlap import find_hidden
from tabi.policy.rules import Rule, RuleSet
from tabi.wire.address import Address, parse_host


def hidden(*given_parts: dict[str, Any]) -> list[tuple[int, int | None]]:
    """The numbers of hidden rules, and of those that hide them."""
    return [(found.rule.number, found.by and found.by.number) for found in find_hidden(rules(*given_parts))]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({}, {"hosts": ["a.example"]}),
        ({"hosts": ["*"]}, {}),
        ({"hosts": ["*"]}, {"hosts": ["re:^x", "1.2.3.0/24"]}),
        ({"hosts": ["*.example"]}, {"hosts": ["a.example", "*.b.example", "*.example"]}),
        ({"hosts": ["re:^ads"]}, {"hosts": ["ads.example"]}),
        ({"hosts": ["re:^ads"]}, {"hosts": ["re:^ads"]}),
        ({"hosts": ["a.example", "b.example"]}, {"hosts": ["b.example"]}),
        ({"hosts": ["1.2.0.0/16"]}, {"hosts": ["1.2.3.0/24", "1.2.4.4"]}),
        ({"hosts": ["1.2.0.0/16"], "action": "allow"}, {"hosts": ["1.2.3.0/24"], "action": "allow"}),
        ({"hosts": ["1.2.0.0/16"]}, {"hosts": ["1.2.3.0/24"], "action": "allow"}),
        ({"ports": ["1-100", "101-200"]}, {"ports": ["50-150", "7"]}),
        ({"ports": ["0-65535"]}, {}),
        ({"commands": ["connect", "bind", "associate", "resolve", "resolve_ptr"]}, {}),
        ({"commands": ["connect"]}, {"commands": ["forward"]}),
        ({"protocols": ["socks5", "http"]}, {"protocols": ["http"]}),
        ({"listeners": ["a", "b"]}, {"listeners": ["a"]}),
        ({"clients": ["10.0.0.0/8", "unix"]}, {"clients": ["unix", "10.1.0.0/16"]}),
        ({"clients": ["unix"]}, {"clients": ["unix"]}),
        ({"users": ["@dev"]}, {"users": ["alice"]}),
        ({"users": ["@dev", "bob"]}, {"users": ["bob", "@dev"]}),
        ({"users": ["alice"]}, {"users": ["alice"], "hosts": ["a.example"]}),
        ({"hours": "Mon-Fri 08:00-18:00"}, {"hours": "Mon 09:00-10:00 UTC"}),
        ({"hours": "daily 00:00-24:00"}, {}),
        ({"hosts_file": ["a.test"]}, {"hosts_file": ["a.test"]}),
        ({"hosts_file": ["a.test", "b.test"], "hosts": ["*.c"]}, {"hosts_file": ["b.test"], "hosts": ["d.c"]}),
        ({"networks_file": ["10.0.0.0/8"]}, {"networks_file": ["10.0.0.0/8"]}),
        ({"clients": ["unix"], "networks_file": ["10.0.0.0/8"]}, {"networks_file": ["10.0.0.0/8"], "ports": ["1"]}),
        ({"hosts": ["*"]}, {"hosts_file": ["a.test"]}),
    ],
)
def test_what_one_rule_takes_another_never_sees(first: dict[str, Any], later: dict[str, Any]) -> None:
    """Every matcher of the first has all that the later one has, so that nothing is left for it."""
    assert hidden({"action": "deny", **first}, {"action": "deny", **later}) == [(1, 0)]


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"hosts": ["a.example"]}, {}),
        ({"hosts": ["a.example"]}, {"hosts": ["*"]}),
        ({"hosts": ["*.a.example"]}, {"hosts": ["a.example"]}),
        ({"hosts": ["*.a.example"]}, {"hosts": ["*.example"]}),
        ({"hosts": ["re:^ads"]}, {"hosts": ["re:^ad"]}),
        ({"hosts": ["re:^ads"]}, {}),
        ({"hosts": ["1.2.3.0/24"]}, {"hosts": ["1.2.0.0/16"]}),
        ({"hosts": ["a.example", "1.2.0.0/16"]}, {"hosts": ["a.example", "2.0.0.0/8"]}),
        # A name with one address within and one without is for the later one.
        ({"hosts": ["1.2.0.0/16"], "action": "allow"}, {"hosts": ["1.2.3.0/24"]}),
        ({"ports": ["1-100", "102-200"]}, {"ports": ["50-150"]}),
        ({"ports": ["1-65535"]}, {}),
        ({"commands": ["connect"]}, {}),
        ({"commands": ["forward"]}, {"commands": ["connect"]}),
        ({"protocols": ["socks5"]}, {"protocols": ["socks5", "http"]}),
        ({"listeners": ["a"]}, {}),
        ({"clients": ["10.1.0.0/16"]}, {"clients": ["10.0.0.0/8"]}),
        ({"clients": ["10.0.0.0/8"]}, {"clients": ["10.0.0.0/8", "unix"]}),
        ({"clients": ["10.0.0.0/8"]}, {}),
        ({"hosts_file": ["a.test"]}, {"hosts_file": ["b.test"]}),
        ({"hosts_file": ["a.test"]}, {"hosts": ["a.test"]}),
        ({"hosts": ["*.test"]}, {"hosts": ["a.test"], "hosts_file": ["b.test"]}),
        ({"hosts_file": ["10.0.0.0/8"], "action": "allow"}, {"hosts_file": ["10.0.0.0/8"]}),
        ({"networks_file": ["10.0.0.0/8"]}, {"networks_file": ["10.0.0.0/9"]}),
        ({"clients": ["10.0.0.0/8"]}, {"networks_file": ["10.0.0.0/9"]}),
        ({"users": ["alice"]}, {}),
        ({"users": ["alice"]}, {"users": ["@dev"]}),
        ({"users": ["@dev"]}, {"users": ["alice", "bob"]}),
        ({"hours": "Mon"}, {"hours": "Mon-Tue"}),
        ({"hours": "Mon Europe/Berlin"}, {"hours": "Mon"}),
        ({"hours": "Mon"}, {}),
    ],
)
def test_what_leaves_something_hides_nothing(first: dict[str, Any], later: dict[str, Any]) -> None:
    """Whatever is left for the later rule, it is not called hidden."""
    assert hidden({"action": "deny", **first}, {"action": "deny", **later}) == []


def test_a_rule_for_an_empty_group_is_for_nobody() -> None:
    """No user is in it, so that it can never match; with a user beside it, it can."""
    parts_ = [{"action": "deny", "users": ["@nobody"]}, {"action": "deny", "users": ["@nobody", "carol"]}]
    assert hidden(*parts_) == [(0, None)]


def test_no_rules_are_no_trouble() -> None:
    """Nothing is said of nothing."""
    assert list(find_hidden(RuleSet())) == []


@given(
    st.lists(parts, min_size=2, max_size=6),
    st.lists(st.tuples(asking, st.sampled_from(HOSTS), st.sampled_from([80, 443, 8080])), min_size=1, max_size=30),
    st.lists(st.sampled_from(["1.2.3.4", "1.2.9.9", "9.9.9.9", "64:ff9b::102:304"]), min_size=1, max_size=3),
)
def test_a_hidden_rule_decides_nothing(
    all_parts: list[dict[str, Any]], requests: list[tuple[dict[str, Any], str, int]], texts: list[str]
) -> None:
    """Whoever asks for whatever: a rule that was called hidden is never the one that decides."""
    compiled = rules(*all_parts)
    never = {found.rule.number for found in find_hidden(compiled)}
    addresses = [ip_address(text) for text in texts]
    for who, host, port in requests:
        found = compiled.find(session(**who), Address(parse_host(host), port), addresses, MONDAY_NOON)
        assert not isinstance(found, Rule) or found.number not in never
