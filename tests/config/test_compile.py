"""From the configuration to what decides: names, places, proxies and limits."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec
import pytest

from tabi.config import make_config
from tabi.config.compile import (
    check_target,
    make_distort,
    make_distorts,
    make_guard,
    make_intercepts,
    make_limits,
    make_rule_set,
    members_of,
    name_of,
    networks_of,
    proxies_of,
)
from tabi.config.distort import DistortConfig, FaultConfig
from tabi.config.schema import CheckConfig, EgressConfig, InterceptConfig, MemberConfig
from tabi.errors import ConfigError, LimitExceeded
from tabi.server.ledger import LocalLedger
from tabi.session import Session
from tabi.wire.address import Address, parse_host

CLIENT = parse_host("192.0.2.1")


@pytest.mark.parametrize(
    ("check", "target"),
    [
        (CheckConfig(connect="192.0.2.1:25"), (Address(parse_host("192.0.2.1"), 25), None)),
        (CheckConfig(http="http://a.test/"), (Address("a.test", 80), "/")),
        (CheckConfig(http="http://a.test"), (Address("a.test", 80), "/")),
        (CheckConfig(http="http://a.test:8080/x/y?z=1"), (Address("a.test", 8080), "/x/y?z=1")),
        (CheckConfig(http="http://[2001:db8::1]/x"), (Address(parse_host("2001:db8::1"), 80), "/x")),
        (CheckConfig(http="http://[2001:db8::1]:81/"), (Address(parse_host("2001:db8::1"), 81), "/")),
    ],
)
def test_what_a_check_asks_for(check: CheckConfig, target: tuple[Address, str | None]) -> None:
    """A place to connect to, or a URL of HTTP, whose port is 80 and whose path is / where it has none."""
    assert check_target(check) == target


@pytest.mark.parametrize(
    "check",
    [
        CheckConfig(),
        CheckConfig(connect="a.test:1", http="http://a.test/"),
        CheckConfig(connect="a.test"),
        CheckConfig(http="https://a.test/"),
        CheckConfig(http="http:///x"),
        CheckConfig(http="a.test/x"),
        CheckConfig(http="http://a.test/x y"),
        CheckConfig(http="http://a.test/\r\nX: y"),
        CheckConfig(http="http://a.test/ä"),
    ],
)
def test_what_is_no_check_is_a_value_error(check: CheckConfig) -> None:
    """Neither or both of them, another scheme, and what would be more than a path in the request."""
    with pytest.raises(ValueError, match=r"expected|is not host:port"):
        check_target(check)


def test_members_are_named_with_and_without_a_weight() -> None:
    """A text in the list is a member of weight 1; a way out without members has none."""
    egress = EgressConfig(members=["socks5://a.test:1", MemberConfig("b", 3)])
    assert members_of(egress) == [MemberConfig("socks5://a.test:1", 1), MemberConfig("b", 3)]
    assert members_of(EgressConfig()) == []


@pytest.mark.parametrize(
    ("egress", "keys"),
    [
        (EgressConfig(url="socks5://a.test:1"), ["url"]),
        (EgressConfig(chain=["other", "socks5://a.test:1", "http://b.test:2"]), ["chain[1]", "chain[2]"]),
        (EgressConfig(members=["other", "socks4://a.test:1"]), ["members[1]"]),
        (EgressConfig(), []),
    ],
)
def test_proxies_have_the_keys_that_mistakes_are_told_with(egress: EgressConfig, keys: list[str]) -> None:
    """Only what is a URL is a proxy; other egresses are named, and looked at by themselves."""
    assert [key for key, _ in proxies_of(egress)] == keys


def test_what_is_called_by_a_url_is_called_without_its_user() -> None:
    """Names are in logs and metrics, where no password may be."""
    assert name_of("socks5://alice:secret@a.test:1080") == "socks5://a.test:1080"
    assert name_of("other") == "other"


def test_networks_say_which_of_them_is_wrong() -> None:
    """By its number in the list; an empty list would be for nobody."""
    assert networks_of(["10.0.0.0/8", "::1"], "x") == [ip_network("10.0.0.0/8"), ip_network("::1")]
    with pytest.raises(ConfigError, match=r"^x\[1\]: "):
        networks_of(["10.0.0.0/8", "10.0.0.1/8"], "x")
    with pytest.raises(ConfigError, match=r"^x: empty, expected one or more$"):
        networks_of([], "x")


def test_mistakes_of_rules_and_of_the_guard_have_their_keys() -> None:
    """What is found out as they are compiled is told as what is found out before."""
    with pytest.raises(ConfigError, match=r"^rule\[1\]\.ports"):
        make_rule_set(make_config({"rule": [{"action": "deny"}, {"action": "deny", "ports": ["x"]}]}))
    with pytest.raises(ConfigError, match=r"^guard\.deny"):
        make_guard(make_config({"guard": {"deny": ["nowhere"]}}))


def test_a_user_without_limits_costs_nothing() -> None:
    """There is an account, and a lease for each session, only where something is limited."""
    users = {
        "alice": {"password": "x", "plain": True, "limits": {"connections": 1}},
        "bob": {"password": "y", "plain": True},
    }
    limits = make_limits(make_config({"users": users}), LocalLedger())
    assert limits.admit("bob", CLIENT, 0, 0.0) is None
    lease = limits.admit("alice", CLIENT, 0, 0.0)
    assert lease is not None
    with pytest.raises(LimitExceeded):
        limits.admit("alice", CLIENT, 0, 0.0)
    lease.release()


def test_interception_is_compiled_only_where_there_is_any() -> None:
    """What an entry says is one value; exemptions, users and egresses that dial themselves are known."""
    assert make_intercepts(make_config({})) is None
    config = make_config(
        {
            "users": {"alice": {"password": "x", "plain": True, "groups": ["dev"]}},
            "egress": {"far": {"url": "socks5://192.0.2.1:1"}, "eth1": {"interface": "eth1"}},
            "intercept": [
                {"action": "pass", "hosts": ["a.example"]},
                {"users": ["@dev"], "scripts": ["a.py"], "mask": ["X-Key"], "hook_timeout": 3, "body_limit": "1 kB"},
            ],
        }
    )
    made = make_intercepts(config, clock=lambda: 0.0)
    assert made is not None
    exempt, chosen = made
    assert (exempt.action, exempt.number, exempt.label) == ("pass", 0, "intercept[0]")
    assert (chosen.scripts, chosen.mask, chosen.hook_timeout, chosen.body_limit) == (("a.py",), ("x-key",), 3, 1000)
    assert (type(chosen.body_limit), type(chosen.hook_timeout)) == (int, float)
    assert made.direct == {None, "direct", "eth1"}
    session = Session(1, "mixed://127.0.0.1:1080", Address(CLIENT, 1), 0.0)
    session.destination = Address("b.example", 443)
    assert made.match(session) is None
    session.user = "alice"
    assert made.match(session) is chosen
    with pytest.raises(ConfigError, match=r"^intercept\[0\]\.ports\[0\]: "):
        make_intercepts(msgspec.structs.replace(config, intercept=[InterceptConfig(ports=["x"])]))


def test_what_a_distort_says() -> None:
    """Its matchers, its place as its name, and everything else as it stands there."""
    entry = {
        "hosts": ["a.example"],
        "probability": "10%",
        "seed": 7,
        "fault": {"latency": 1, "from": "08:00"},
        "tls": "mirror",
        "strip_cookies": True,
    }
    found = make_distorts(make_config({"distort": [entry, {"name": "slow", "fault": "edge"}]}))
    first, second = found
    assert (first.label, first.number, first.probability, first.seed) == ("distort[0]", 0, 0.1, 7)
    assert type(first.probability) is float
    assert first.fault is not None
    assert (first.fault.up.latency, first.tls, first.live) == (1.0, "mirror", False)
    assert first.schedule
    assert first.rewrite is not None
    assert first.rewrite.strip_cookies
    assert (second.label, second.rule.label, second.number, second.probability) == ("slow", "slow", 1, 1.0)
    assert not second.schedule
    assert second.rewrite is None
    assert second.fault is not None
    assert second.fault.down.bandwidth == 30_000


def test_a_distort_knows_groups_and_egresses() -> None:
    """As rules do: of users, and those that dial destinations themselves."""
    config = make_config(
        {
            "users": {"alice": {"password": "x", "plain": True, "groups": ["dev"]}},
            "egress": {"office": {"interface": "lo"}, "tor": {"chain": ["socks5://127.0.0.1:9050"]}},
            "distort": [{"users": ["@dev"], "fault": "3g"}],
        }
    )
    found = make_distorts(config)
    assert found.groups == {"alice": frozenset(("dev",))}
    assert "office" in found.direct
    assert "tor" not in found.direct


def test_an_entry_of_a_program_has_its_own_name() -> None:
    """And its errors name the key within it."""
    assert make_distort(DistortConfig(fault=FaultConfig(latency=1)), 0, name="lag").label == "lag"
    for entry, path in (
        (DistortConfig(hosts=["a*b"], fault="3g"), "lag.hosts[0]"),
        (DistortConfig(fault="x"), "lag.fault"),
    ):
        with pytest.raises(ConfigError) as caught:
            make_distort(entry, 0, name="lag")
        assert caught.value.path == path
