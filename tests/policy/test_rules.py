"""Rules: every matcher, the first match, names whose addresses matter, and what is said of it; against a slow model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rule_cases import GROUPS, HOSTS, MONDAY_NOON, asking, in_files, parts, rule, rules, session
from tabi.errors import ConfigError
from tabi.policy.networks import IP
from tabi.policy.rules import UNRESOLVED, Rule, RuleSet, Texts, Unresolved, make_rule
from tabi.session import Session
from tabi.wire.address import Address, Host, embedded_ipv4, parse_host


def matches(
    part: dict[str, Any],
    host: str = "example.com",
    port: int = 80,
    addresses: Sequence[str] | None = ("8.8.8.8",),
    now: float = MONDAY_NOON,
    **who: Any,
) -> bool:
    """Whether a single rule matches."""
    found = rules(part).find(
        session(**who),
        Address(parse_host(host), port),
        None if addresses is None else [ip_address(text) for text in addresses],
        now,
    )
    assert not isinstance(found, Unresolved)
    return found is not None


@pytest.mark.parametrize(
    ("hosts", "yes", "no"),
    [
        (["example.com"], ["example.com", "EXAMPLE.com", "example.com."], ["www.example.com", "example.org", "com"]),
        (["Example.COM."], ["example.com"], ["xexample.com"]),
        (
            ["*.example.com"],
            ["www.example.com", "a.b.example.com.", "WWW.EXAMPLE.COM"],
            ["example.com", "wwwexample.com"],
        ),
        (["*.com"], ["example.com", "a.b.com"], ["com", "example.org"]),
        (["*"], ["example.com", "1.2.3.4", "::1"], []),
        (["re:^img[0-9]+\\."], ["img1.example.com", "IMG22.example.com"], ["img.example.com", "ximg1.example.com"]),
        (["re:^ADS"], ["ads.example.com", "ADS.example.com"], ["x.ads.example.com"]),
        (["0x7f.1"], ["127.0.0.1"], ["127.0.0.2"]),
        (["2130706433"], ["127.0.0.1"], ["127.0.0.2"]),
        (["re:^1\\.2"], ["1.2.3.4"], ["2.2.3.4"]),
        (["bücher.example"], ["xn--bcher-kva.example"], ["bucher.example"]),
        (["1.2.3.0/24"], ["1.2.3.4", "::ffff:1.2.3.4"], ["1.2.4.4", "::1"]),
        (["1.2.3.4"], ["1.2.3.4"], ["1.2.3.5"]),
        (["2001:db8::/32"], ["2001:db8::1"], ["2001:db9::1", "1.2.3.4"]),
        (["a.example", "*.b.example", "1.2.3.4"], ["a.example", "x.b.example", "1.2.3.4"], ["b.example", "1.2.3.5"]),
    ],
)
def test_hosts(hosts: list[str], yes: list[str], no: list[str]) -> None:
    """Names without regard to case and the last dot, names below one, expressions, networks."""
    for host in yes:
        assert matches({"hosts": hosts}, host), host
    for host in no:
        assert not matches({"hosts": hosts}, host), host


@pytest.mark.parametrize(
    ("part", "yes", "no"),
    [
        ({"ports": ["25", "465-587"]}, [{"port": 25}, {"port": 465}, {"port": 587}], [{"port": 24}, {"port": 588}]),
        ({"users": ["alice"]}, [{"user": "alice"}], [{"user": "bob"}, {}]),
        ({"users": ["@ops"]}, [{"user": "alice"}, {"user": "bob"}], [{"user": "carol"}, {}]),
        ({"users": ["carol", "@dev"]}, [{"user": "alice"}, {"user": "carol"}], [{"user": "bob"}, {}]),
        (
            {"clients": ["10.0.0.0/8"]},
            [{"client": "10.1.1.1"}, {"client": "::ffff:10.1.1.1"}],
            [{"client": "11.1.1.1"}, {"client": "unix"}],
        ),
        ({"clients": ["unix", "::1"]}, [{"client": "unix"}, {"client": "::1"}], [{"client": "127.0.0.1"}]),
        ({"commands": ["connect"]}, [{}, {"command": "forward"}], [{"command": "bind"}]),
        ({"commands": ["forward"]}, [{"command": "forward"}], [{}]),
        (
            {"commands": ["bind", "associate"]},
            [{"command": "bind"}, {"command": "associate"}],
            [{}, {"command": "forward"}],
        ),
        ({"protocols": ["http", "https"]}, [{"protocol": "http"}], [{}, {"protocol": "socks5+tls"}]),
        ({"listeners": ["mixed://127.0.0.1:1080"]}, [{}], [{"listener": "http://127.0.0.1:3128"}]),
        ({"hours": "Mon 12:00-13:00"}, [{}], [{"now": MONDAY_NOON + 3600}]),
        ({}, [{}, {"user": "alice", "client": "unix"}], []),
    ],
)
def test_the_other_matchers(part: dict[str, Any], yes: list[dict[str, Any]], no: list[dict[str, Any]]) -> None:
    """Ports, users and groups, clients, commands, protocols, listeners, hours; none matches all."""
    for who in yes:
        assert matches(part, **who), who
    for who in no:
        assert not matches(part, **who), who


def test_all_matchers_of_a_rule_must_match() -> None:
    """One that does not is enough."""
    part = {"hosts": ["example.com"], "ports": ["80"], "users": ["alice"]}
    assert matches(part, user="alice")
    assert not matches(part, user="bob")
    assert not matches(part, user="alice", port=81)
    assert not matches(part, "example.org", user="alice")


@pytest.mark.parametrize(
    ("texts", "path", "message"),
    [
        ({"hosts": ()}, "hosts", "empty, expected one or more; leave it out to match all"),
        (
            {"hosts": ("a*.example",)},
            "hosts[0]",
            "has a star within, expected *.example.com; for anything else there is re:",
        ),
        ({"hosts": ("x", "re:(")}, "hosts[1]", "'re:(' is not a regular expression: missing )"),
        ({"hosts": ("10.0.0.1/8",)}, "hosts[0]", "has host bits set, expected 10.0.0.0/8"),
        ({"hosts": ("a b",)}, "hosts[0]", "holds white space"),
        ({"ports": ("80-",)}, "ports[0]", "'80-', expected a port or a range such as 465-587"),
        ({"ports": ("81-80",)}, "ports[0]", "expected a port or a range"),
        ({"ports": ("65536",)}, "ports[0]", "expected a port or a range"),
        ({"clients": ("10.0.0.0/8", "home")}, "clients[1]", "'home' is not a network"),
        ({"commands": ("conect",)}, "commands[0]", "'conect', expected one of: connect, bind, associate, forward"),
        (
            {"protocols": ("socks",)},
            "protocols[0]",
            "expected one of: socks5, socks4, http, https, socks5+tls, socks4+tls",
        ),
        ({"hours": "Mon 8-9"}, "hours", "'8-9'"),
    ],
)
def test_what_is_wrong_in_a_rule_is_said(texts: dict[str, Any], path: str, message: str) -> None:
    """With the place within the rule."""
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        rule(**texts)
    assert caught.value.path == path


def test_the_first_match_decides() -> None:
    """However the rules are found: by name, network, client, user or one after another."""
    parts: list[dict[str, Any]] = [
        {"hosts": ["re:^never"]},
        {"hosts": ["*.example.com"], "ports": ["443"]},
        {"users": ["bob"]},
        {"users": ["@dev"], "ports": ["22"]},
        {"clients": ["10.0.0.0/8"]},
        {"hosts": ["www.example.com"]},
        {"hosts": ["1.2.3.0/24"]},
        {"action": "allow"},
    ]
    compiled = rules(*parts)

    def first(host: str, port: int, **who: Any) -> int:
        found = compiled.find(session(**who), Address(parse_host(host), port), [ip_address("9.9.9.9")], MONDAY_NOON)
        assert isinstance(found, Rule)
        return found.number

    assert first("www.example.com", 443) == 1
    assert first("www.example.com", 80) == 5
    assert first("www.example.com", 80, user="bob") == 2
    assert first("www.example.com", 22, user="alice") == 3
    assert first("www.example.com", 80, client="10.1.1.1") == 4
    assert first("1.2.3.4", 80) == 6
    assert first("1.2.4.4", 80, user="alice", client="unix") == 7
    assert len(compiled) == 8
    assert [one.label for one in compiled][:2] == ["rule[0]", "rule[1]"]
    assert RuleSet().find(session(), Address("x", 1), None, 0) is None


def test_a_name_is_resolved_only_where_a_decision_depends_on_it() -> None:
    """Not behind a rule that knows it by name, not for a rule of other users or ports, but in front of all others."""
    compiled = rules(
        {"hosts": ["known.example"]},
        {"hosts": ["10.0.0.0/8"], "users": ["bob"]},
        {"hosts": ["10.0.0.0/8", "both.example"], "ports": ["80"]},
        {"hosts": ["late.example"]},
    )

    def ask(host: str, port: int = 80, user: str | None = None) -> Any:
        found = compiled.find(session(user), Address(host, port), None, MONDAY_NOON)
        return found.number if isinstance(found, Rule) else found

    assert ask("known.example") == 0
    assert ask("late.example") is UNRESOLVED
    assert ask("both.example") == 2
    assert ask("late.example", 81) == 3
    assert ask("late.example", 81, "bob") is UNRESOLVED
    assert ask("other.example", 81) is None
    assert ask("other.example") is UNRESOLVED
    assert repr(UNRESOLVED) == "UNRESOLVED"


def test_one_forbidden_address_of_several_forbids_and_one_allowed_does_not_allow() -> None:
    """A name with an address in a network and one beside it: a rule that refuses matches, one that allows does not."""
    mixed = ["10.0.0.1", "8.8.8.8"]
    assert matches({"hosts": ["10.0.0.0/8"], "action": "deny"}, addresses=mixed)
    assert not matches({"hosts": ["10.0.0.0/8"], "action": "allow"}, addresses=mixed)
    assert matches({"hosts": ["10.0.0.0/8", "8.0.0.0/8"], "action": "allow"}, addresses=mixed)
    assert not matches({"hosts": ["10.0.0.0/8"], "action": "allow"}, addresses=[])


@pytest.mark.parametrize(
    "host", ["64:ff9b::a00:1", "2002:a00:1::", "::10.0.0.1", "::ffff:0:a00:1", "2606:4700::5efe:10.0.0.1"]
)
def test_rules_that_refuse_see_ipv4_inside_ipv6(host: str) -> None:
    """What is forbidden is not reached by another way of writing it; what is allowed is allowed as it is written."""
    assert matches({"hosts": ["10.0.0.0/8"], "action": "deny"}, host)
    assert not matches({"hosts": ["10.0.0.0/8"], "action": "allow"}, host)


def test_a_rule_matches_what_is_in_its_files_too() -> None:
    """Beside ``hosts`` and ``clients``; a name is resolved only for a file with networks."""
    found = {"hosts": ("a.test",), "hosts_file": ("b.test *.c.test", "d.test")}
    for host, yes in (("a.test", True), ("b.test", True), ("x.c.test", True), ("d.test", True), ("e.test", False)):
        assert matches(found, host, addresses=None) is yes, host
    assert rules({"hosts_file": ("198.51.100.0/24",)}).find(session(), Address("x.test", 1), None, 0) is UNRESOLVED
    assert matches({"hosts_file": ("198.51.100.0/24",)}, "x.test", addresses=("198.51.100.7",))
    assert not matches({"hosts_file": ("198.51.100.0/24",)}, "x.test")
    assert matches({"networks_file": ("198.51.100.0/24",)}, client="198.51.100.7")
    assert matches({"networks_file": ("198.51.100.0/24",), "clients": ("unix",)}, client="unix")
    assert matches({"networks_file": ("unix",)}, client="unix")
    assert not matches({"networks_file": ("198.51.100.0/24",)}, client="unix")


def test_an_explanation_names_the_entry_of_a_list() -> None:
    """A file may have a million of them."""
    compiled = rules({"hosts_file": ("a.test *.b.test", "x.b.test 10.0.0.0/8")})
    for host, why in (
        ("x.b.test", "hosts_file a.test *.b.test, x.b.test 10.0.0.0/8 (*.b.test, x.b.test)"),
        ("10.0.0.1", "hosts_file a.test *.b.test, x.b.test 10.0.0.0/8"),
    ):
        (step,) = compiled.explain(session(), Address(parse_host(host), 80), None, 0)
        assert (step.matched, step.why) == (True, why)


def test_a_rule_whose_file_was_not_read_matches_nothing() -> None:
    """Such rules are only looked at; none of them may stand for all."""
    for texts in (Texts(hosts_file=("list",)), Texts(networks_file=("list",))):
        found = RuleSet([make_rule(0, "allow", texts)])
        assert found.find(session(), Address("a.test", 80), [ip_address("192.0.2.1")], 0) is None


def test_a_session_without_a_destination_is_refused_where_none_would_help() -> None:
    """UDP ASSOCIATE: at once, where no rule in front could allow one of its destinations."""
    who = session("alice", command="associate")
    for several, expected in (
        ([{"commands": ["associate"]}], 0),
        ([{"hosts": ["a.example"]}, {"ports": ["53"]}, {"commands": ["associate"], "action": "drop"}], 2),
        ([{"ports": ["53"], "action": "allow"}, {}], None),
        ([{"ports": ["53"], "action": "allow", "users": ["bob"]}, {}], 1),
        ([{"users": ["@dev"], "action": "allow"}, {}], None),
        ([{"commands": ["connect"]}], None),
        ([], None),
    ):
        found = rules(*several).find_refusal(who, MONDAY_NOON)
        assert (found and found.number) == expected


def test_explanations_name_the_first_matcher_that_says_no() -> None:
    """With what was seen; long lists are cut; the first match ends it."""
    compiled = rules(
        {"commands": ["bind"]},
        {"protocols": ["http"]},
        {"listeners": ["http://127.0.0.1:1"]},
        {"users": ["bob", "@x", "carol", "dave", "erin"]},
        {"ports": ["25", "465-587"]},
        {"clients": ["10.0.0.0/8"]},
        {"hours": "Tue"},
        {"hosts": ["*.example.de"]},
        {"hosts": ["10.0.0.0/8"]},
        {"hosts_file": ["a.test", "10.0.0.0/8"]},
        {"hosts": ["a.test"], "hosts_file": ["b.test"]},
        {"clients": ["10.0.0.0/8"], "networks_file": ["192.0.2.0/24"]},
        {"hosts": ["*.com"], "ports": ["443"], "hours": "Mon", "name": "web", "action": "allow"},
        {},
    )
    steps = compiled.explain(session("alice"), Address("example.com", 443), None, MONDAY_NOON)
    assert [step.why for step in steps] == [
        "commands: connect is not bind",
        "protocols: socks5 is not http",
        "listeners: mixed://127.0.0.1:1080 is not http://127.0.0.1:1",
        "users: alice is not bob, @x, carol, … (5)",
        "ports: 443 is not 25, 465-587",
        "clients: 198.51.100.9 is not 10.0.0.0/8",
        "hours: it is not Tue",
        "hosts: example.com is not one of *.example.de",
        "hosts: example.com is not one of 10.0.0.0/8 by its name, and was not resolved",
        "hosts: example.com is not one of those of a.test, those of 10.0.0.0/8 by its name, and was not resolved",
        "hosts: example.com is not one of a.test, those of b.test",
        "clients: 198.51.100.9 is not 10.0.0.0/8, those of 192.0.2.0/24",
        "hosts *.com; ports 443; hours Mon",
    ]
    assert [step.matched for step in steps] == [False] * 12 + [True]
    resolved = compiled.explain(session("alice"), Address("example.com", 443), [ip_address("9.9.9.9")], MONDAY_NOON)
    assert resolved[8].why == "hosts: example.com (9.9.9.9) is not one of 10.0.0.0/8"
    address = compiled.explain(session("alice"), Address(ip_address("9.9.9.9"), 443), None, MONDAY_NOON)
    assert address[8].why == "hosts: 9.9.9.9 is not one of 10.0.0.0/8"
    assert address[-1].why == "matches everything"
    assert "users: nobody is not" in compiled.explain(session(), Address("x", 443), None, MONDAY_NOON)[3].why


# --- against a model ---


def model_conditions(part: dict[str, Any], who: Session, port: int | None) -> bool:
    """All matchers but hosts, as one would explain them to a child."""
    if part["ports"] and port is not None:
        ranges = [text.split("-") for text in part["ports"]]
        if not any(int(ends[0]) <= port <= int(ends[-1]) for ends in ranges):
            return False
    if part["users"]:
        names = {who.user} | {f"@{group}" for group in GROUPS.get(who.user or "", ())}
        if who.user is None or not names & set(part["users"]):
            return False
    if part["clients"]:
        host = who.client.host
        inside = [text for text in part["clients"] if text != "unix" and host != "unix" and host in ip_network(text)]
        if not inside and not (host == "unix" and "unix" in part["clients"]):
            return False
    if (
        part["commands"]
        and who.command not in part["commands"]
        and not (who.command == "forward" and "connect" in part["commands"])
    ):
        return False
    return bool(part["hours"] != "Tue")


def model_hosts(part: dict[str, Any], host: Host, addresses: list[IP] | None) -> bool | None:
    """Whether a destination is one of the hosts; None where that depends on addresses that are not there."""
    if part["hosts"] is None:
        return True
    if isinstance(host, IPv6Address) and host.ipv4_mapped:
        host = host.ipv4_mapped
    text = str(host)
    for pattern in part["hosts"]:
        if pattern == "*" or pattern == text or (pattern.startswith("*.") and text.endswith(pattern[1:])):
            return True
        if pattern.startswith("re:") and re.search(pattern[3:], text):
            return True
    nets = [ip_network(pattern) for pattern in part["hosts"] if "/" in pattern]
    known = addresses if isinstance(host, str) else [host]
    if known is None:
        return None if nets else False

    def inside(address: IP) -> bool:
        return any(net.version == address.version and address in net for net in nets)

    if part["action"] == "allow":
        return bool(known) and all(map(inside, known))
    forms = [form for address in known for form in (address, embedded_ipv4(address)) if form is not None]
    return any(map(inside, forms))


def model(all_parts: list[dict[str, Any]], who: Session, host: Host, port: int, addresses: list[IP] | None) -> Any:
    """The number of the first rule that matches."""
    for number, part in enumerate(all_parts):
        if model_conditions(part, who, port):
            found = model_hosts(part, host, addresses)
            if found is None:
                return UNRESOLVED
            if found:
                return number
    return None


@given(
    st.lists(parts, max_size=8),
    asking,
    st.sampled_from(HOSTS),
    st.sampled_from([80, 443, 8080]),
    st.one_of(
        st.none(),
        st.lists(st.sampled_from(["1.2.3.4", "1.2.9.9", "9.9.9.9", "64:ff9b::102:304"]), min_size=1, max_size=3),
    ),
)
def test_rules_agree_with_a_slow_model(
    all_parts: list[dict[str, Any]], who: dict[str, Any], host: str, port: int, texts: list[str] | None
) -> None:
    """Whatever the rules, who asks and for what; the explanation agrees too, and so do rules with lists in files."""
    asked, destination = session(**who), parse_host(host)
    addresses: list[IP] | None = None if texts is None else [ip_address(text) for text in texts]
    compiled = rules(*all_parts)
    found = compiled.find(asked, Address(destination, port), addresses, MONDAY_NOON)
    expected = model(all_parts, asked, destination, port, addresses)
    assert (found.number if isinstance(found, Rule) else found) == expected
    steps = compiled.explain(asked, Address(destination, port), addresses, MONDAY_NOON)
    if isinstance(found, Rule):
        assert steps[-1].matched
        assert steps[-1].rule.number == found.number
    elif found is None:
        assert not any(step.matched for step in steps)
    listed = rules(*map(in_files, all_parts))
    same = listed.find(asked, Address(destination, port), addresses, MONDAY_NOON)
    assert (same.number if isinstance(same, Rule) else same) == expected
    refusals = [one.find_refusal(asked, MONDAY_NOON) for one in (compiled, listed)]
    assert len({None if refusal is None else refusal.number for refusal in refusals}) == 1


@given(st.lists(parts, max_size=8), asking)
def test_a_refusal_without_a_destination_is_right_for_every_destination(
    all_parts: list[dict[str, Any]], who: dict[str, Any]
) -> None:
    """It is never said where some destination would be allowed."""
    asked, compiled = session(**who), rules(*all_parts)
    if compiled.find_refusal(asked, MONDAY_NOON) is None:
        return
    for host in HOSTS:
        for port in (80, 443, 8080):
            found = compiled.find(asked, Address(parse_host(host), port), [IPv4Address("9.9.9.9")], MONDAY_NOON)
            assert isinstance(found, Rule)
            assert found.refuses


@pytest.mark.parametrize(
    "matcher", [{}, {"commands": ["bind"]}, {"ports": ["1"]}, {"hosts": ["a.b"]}, {"users": ["bob"]}]
)
def test_a_first_rule_without_matchers_decides_at_once(matcher: dict[str, Any]) -> None:
    """Whatever stands behind it."""
    compiled = rules({"action": "allow", "via": "out", **matcher}, {})
    first, second = compiled
    assert (compiled.always is first) is (not matcher)
    found = compiled.find(session(), Address("x.example", 80), None, MONDAY_NOON)
    assert found is (second if matcher else first)
    assert RuleSet([]).always is None


def test_which_names_rules_know() -> None:
    """In whatever case, with the names within a domain; no address. Without domains parents are not looked at."""
    for words, known in ((("a.example",), 2), (("a.example", "*.a.example"), 3)):
        found = RuleSet([make_rule(0, "deny", Texts(hosts=words))])
        assert found.by_name
        hosts = ("a.example", "A.EXAMPLE.", "b.a.example", "example", "192.0.2.1")
        assert [found.knows(parse_host(host)) for host in hosts] == [number < known for number in range(5)]
    for other in (Texts(), Texts(hosts=("*",)), Texts(hosts=("10.0.0.0/8",)), Texts(users=("alice",))):
        assert not RuleSet([make_rule(0, "deny", other)]).by_name
