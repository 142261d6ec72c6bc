"""Intercepts: which entry decides, by which of two names, and which sessions are candidates at all."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rule_cases import GROUPS, HOSTS, MONDAY_NOON, asking, parts, session
from tabi.errors import ConfigError
from tabi.policy.intercepts import InterceptRule, Intercepts, make_matcher
from tabi.policy.rules import Texts
from tabi.session import Session
from tabi.wire.address import Address, parse_host


def intercepts(*entries: dict[str, Any], direct: tuple[str, ...] = (), now: float = MONDAY_NOON) -> Intercepts:
    """Entries in a row."""
    made = []
    for number, entry in enumerate(entries):
        texts: dict[str, Any] = {
            key: tuple(value) if key != "hours" else value for key, value in entry.items() if key in Texts._fields
        }
        said = {key: value for key, value in entry.items() if key not in Texts._fields}
        settings = InterceptRule(number, **said)
        made.append((settings, make_matcher(settings, Texts(**texts))))
    return Intercepts(made, lambda: now, GROUPS, direct)


def connected(host: str, address: str | None = None, port: int = 443, via: str | None = None, **who: Any) -> Session:
    """A session that has its destination."""
    made = session(**who)
    made.destination = Address(parse_host(host), port)
    made.address = None if address is None else Address(parse_host(address), port)
    made.via = via
    return made


def number(found: InterceptRule | None) -> int | None:
    """Which entry it is."""
    return None if found is None else found.number


@pytest.mark.parametrize(
    ("host", "sni", "expected"),
    [
        ("a.example", None, 0),
        ("A.EXAMPLE.", "a.example", 0),
        ("a.example", "other.example", 0),
        ("other.example", "a.example", 0),
        ("other.example", "A.Example", 0),
        ("192.0.2.1", "a.example", 0),
        ("x.b.example", None, 1),
        ("192.0.2.1", "x.b.example", 1),
        ("x.b.example", "a.example", 0),
        ("a.example", "x.b.example", 0),
        ("b.example", None, None),
        ("192.0.2.1", None, None),
        ("192.0.2.1", "other.example", None),
        ("img3.example", None, 2),
        ("192.0.2.1", "IMG3.example", 2),
    ],
)
def test_the_name_of_connect_or_of_the_hello_decides(host: str, sni: str | None, expected: int | None) -> None:
    """One of both is enough, without regard to case, and the first entry counts by whichever name it matches."""
    found = intercepts({"hosts": ["a.example"]}, {"hosts": ["*.b.example"]}, {"hosts": ["re:^img[0-9]"]})
    assert number(found.match(connected(host, "198.51.100.1"), sni)) == expected


@pytest.mark.parametrize(
    ("host", "address", "via", "expected"),
    [
        ("10.1.2.3", None, None, True),
        ("10.1.2.3", "192.0.2.7", "proxy", True),
        ("::ffff:10.1.2.3", None, None, True),
        ("64:ff9b::a01:203", None, None, True),
        ("name.example", "10.1.2.3", None, True),
        ("name.example", "10.1.2.3", "direct", True),
        ("name.example", "10.1.2.3", "eth1", True),
        ("name.example", "10.1.2.3", "proxy", False),
        ("name.example", "192.0.2.1", None, False),
        ("name.example", None, None, False),
        ("192.0.2.1", "192.0.2.1", None, False),
    ],
)
def test_networks_match_the_destination_s_own_address(
    host: str, address: str | None, via: str | None, expected: bool
) -> None:
    """What was dialled, or was asked for as an address. The address of a proxy on the way is not the destination's."""
    found = intercepts({"hosts": ["10.0.0.0/8"]}, direct=("eth1",))
    for sni in (None, "other.example"):
        assert (found.match(connected(host, address, via=via), sni) is not None) == expected


def test_a_member_of_a_pool_that_dials_itself_is_direct() -> None:
    """The pool's name says nothing of where the address is from."""
    found = intercepts({"hosts": ["10.0.0.0/8"]})
    made = connected("name.example", "10.1.2.3", via="pool")
    assert found.match(made) is None
    made.member = "direct"
    assert found.match(made) is not None


def test_a_path_without_tcp_has_no_address() -> None:
    """What a program's own egress has connected to may be a name."""
    made = connected("name.example")
    made.address = Address("elsewhere.example", 443)
    assert intercepts({"hosts": ["10.0.0.0/8"]}).match(made) is None


def test_what_has_no_destination_matches_nothing() -> None:
    """An association as such: each of its datagrams has one."""
    found = intercepts({"ports": ["53"]})
    made = session(command="associate")
    assert found.match(made) is None
    assert found.candidate(made)
    for host, port, expected in (("192.0.2.1", 53, 0), ("dns.example", 53, 0), ("192.0.2.1", 54, None)):
        assert number(found.match(made, None, Address(parse_host(host), port))) == expected
    found = intercepts({"hosts": ["192.0.2.0/24", "quic.example"]})
    assert found.match(made, None, Address(parse_host("192.0.2.1"), 443)) is not None
    assert found.match(made, "quic.example", Address(parse_host("198.51.100.1"), 443)) is not None


def test_the_first_entry_decides_and_may_exempt() -> None:
    """``pass`` leaves alone what it matches; `find` says which entry that was."""
    found = intercepts({"action": "pass", "hosts": ["bank.example"]}, {"hosts": ["*"]})
    assert found.match(connected("bank.example")) is None
    assert number(found.find(connected("bank.example"))) == 0
    assert number(found.match(connected("other.example"))) == 1


@pytest.mark.parametrize(
    ("host", "sni", "exempt"),
    [
        ("bank.example", None, True),
        ("bank.example", "Bank.Example", True),
        ("bank.example", "www.bank.example", True),
        ("bank.example", "other.example", False),
        ("other.example", "bank.example", False),
        ("192.0.2.1", "bank.example", True),
        ("192.0.2.1", "other.example", False),
        ("192.0.2.1", None, False),
        ("10.1.2.3", None, True),
        ("10.1.2.3", "other.example", True),
        ("inner.example", "other.example", True),
    ],
)
def test_a_hello_cannot_lie_a_session_out_of_inspection(host: str, sni: str | None, exempt: bool) -> None:
    """Where there are two names both must be exempt; of an address that was asked for there is but one."""
    entry = {"action": "pass", "hosts": ["bank.example", "*.bank.example", "10.0.0.0/8"]}
    address = "10.1.2.3" if host == "inner.example" else "198.51.100.1"
    assert (intercepts(entry, {}).match(connected(host, address), sni) is None) == exempt


def test_an_exemption_by_a_network_needs_the_very_address() -> None:
    """Another form of an inspected address is inspected too; another form of an exempt one is not exempt."""
    found = intercepts({"action": "pass", "hosts": ["10.0.0.0/8"]}, {})
    assert found.match(connected("10.1.2.3")) is None
    assert found.match(connected("64:ff9b::a01:203")) is not None


def test_hours_are_asked_of_the_clock() -> None:
    """An entry for Mondays says nothing on a Tuesday, and its sessions are candidates all the same."""
    for now, expected in ((MONDAY_NOON, 0), (MONDAY_NOON + 86400, None)):
        found = intercepts({"hours": "Mon"}, now=now)
        assert number(found.match(connected("a.example"))) == expected
        assert found.candidate(connected("a.example"))


@pytest.mark.parametrize(
    ("entries", "who", "expected"),
    [
        ([], {}, False),
        ([{"hosts": ["a.example"]}], {}, True),
        ([{"hosts": ["a.example"]}], {"command": "bind"}, False),
        ([{}], {"command": "bind"}, False),
        ([{"hosts": ["a.example"], "hours": "Tue"}], {}, True),
        ([{"users": ["alice"]}], {}, False),
        ([{"users": ["alice"]}], {"user": "alice"}, True),
        ([{"users": ["@dev"]}], {"user": "alice"}, True),
        ([{"clients": ["10.0.0.0/8"], "hosts": ["*"]}], {}, False),
        ([{"clients": ["10.0.0.0/8"], "hosts": ["*"]}], {"client": "10.0.0.1"}, True),
        ([{"ports": ["443"]}], {}, True),
        ([{"ports": ["80"]}], {}, False),
        ([{"commands": ["connect"]}], {"command": "forward"}, True),
        ([{"commands": ["forward"]}], {}, False),
        ([{"protocols": ["http"]}], {}, False),
        ([{"listeners": ["mixed://127.0.0.1:1080"]}], {}, True),
        ([{"users": ["alice"]}, {"ports": ["443"]}], {}, True),
        ([{"action": "pass"}, {}], {}, False),
        ([{"action": "pass", "hosts": ["*"]}, {}], {}, False),
        ([{"action": "pass", "hosts": ["a.example"]}], {}, False),
        ([{"action": "pass", "hosts": ["a.example"]}, {}], {}, True),
        ([{"action": "pass", "hours": "Mon"}, {}], {}, True),
        ([{"action": "pass", "users": ["alice"]}, {}], {"user": "alice"}, False),
        ([{"action": "pass", "users": ["alice"]}, {}], {}, True),
        ([{"tls": False}], {}, True),
        ([{"tls": False, "hosts": ["a.example"]}], {}, False),
        ([{"tls": False, "hosts": ["*.example"]}], {}, True),
        ([{"tls": False, "hosts": ["*.example"], "ports": ["80"]}], {}, False),
        ([{"tls": False, "hosts": ["10.0.0.0/8"]}], {"address": "10.0.0.1"}, True),
        ([{"tls": False, "hosts": ["a.example"]}, {"hosts": ["b.example"]}], {}, True),
        ([{"tls": False, "hosts": ["a.example"]}, {"action": "pass"}, {}], {}, False),
    ],
)
def test_candidates(entries: list[dict[str, Any]], who: dict[str, Any], expected: bool) -> None:
    """All matchers but hosts and hours are asked, and exemptions that hold wherever the session goes; hosts of entries
    that open no TLS too, since a hello cannot choose these."""
    assert intercepts(*entries).candidate(connected("somewhere.example", **who)) is expected


def test_whether_an_entry_may_match_some_datagram() -> None:
    """Of those that are wanted, at any hour, to any port and host; but not of another user."""
    who = session(user="bob", command="associate")
    for entry, expected in (
        ({}, True),
        ({"hosts": ["a.example"], "ports": ["1"], "hours": "Sun"}, True),
        ({"users": ["alice"]}, False),
        ({"commands": ["connect"]}, False),
    ):
        assert intercepts(entry).may_match(who, lambda intercept: True) == expected
        assert not intercepts(entry).may_match(who, lambda intercept: False)
        assert intercepts({}, entry).may_match(who, lambda intercept: intercept.number == 1) == expected


def test_one_answer_for_all_needs_no_look_at_a_session() -> None:
    """Where entries have hosts alone, the answer is made beforehand."""
    assert intercepts().constant is False
    assert intercepts({"hosts": ["a.example"]}, {"users": ["alice"]}).constant is True
    assert intercepts({"action": "pass", "hosts": ["a.example"]}, {}).constant is True
    assert intercepts({"action": "pass"}).constant is False
    assert intercepts({"users": ["alice"]}, {}).constant is None
    assert intercepts({"tls": False, "hosts": ["a.example"]}, {}).constant is None
    assert intercepts({"tls": False}).constant is True
    assert not intercepts({"tls": False, "hosts": ["*.example"]}).candidate(session(command="associate"))
    assert not intercepts({"tls": False, "hosts": ["10.0.0.0/8"]}).candidate(session(command="associate"))


@pytest.mark.parametrize("host", ["a.example", "A.Example.", "b.a.example", "other.test", "192.0.2.1"])
def test_names_that_no_entry_has_are_passed_over_at_once(host: str) -> None:
    """What is said without a look at each entry is the same."""
    entries = [{"hosts": ["a.example"], "ports": ["443"]}, {"hosts": ["*.a.example"]}]
    found = intercepts(*({**entry, "tls": False} for entry in entries))
    assert found.by_name
    assert not intercepts(*entries).by_name
    quick = found.candidate(connected(host))
    found.by_name = False
    assert found.candidate(connected(host)) is quick is ("a.example" in host.lower())


@given(
    entries=st.lists(
        st.tuples(parts, st.sampled_from(["intercept", "pass"])).filter(
            lambda entry: not {"bind"} & set(entry[0]["commands"] or ())
        ),
        max_size=4,
    ),
    who=asking,
    host=st.sampled_from(HOSTS),
    sni=st.one_of(st.none(), st.sampled_from(HOSTS[:4])),
    port=st.sampled_from([25, 80, 443]),
    now=st.sampled_from([MONDAY_NOON, MONDAY_NOON + 86400]),
)
def test_only_candidates_match(
    entries: list[Any], who: dict[str, Any], host: str, sni: str | None, port: int, now: float
) -> None:
    """Whatever is intercepted by one of its names was a candidate, and the first entry of both names decides."""
    made = intercepts(
        *(
            {key: value for key, value in part.items() if value is not None and key != "action"} | {"action": action}
            for part, action in entries
        ),
        now=now,
    )
    asks = connected(host, "1.2.3.4", port, **who)
    found = made.match(asks, sni)
    if found is not None and who["command"] != "bind":
        assert made.candidate(asks)
    alone = [one for name in (host, sni) if name and (one := made.find(connected(name, "1.2.3.4", port, **who)))]
    if "example" in host and all(one.action == "intercept" for one in made):
        assert made.find(asks, sni) == min(alone, key=lambda one: one.number, default=None)
    steps = made.explain(asks, sni)
    assert (steps[-1].intercept if steps and steps[-1].matched else None) == made.find(asks, sni)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"hosts": ("a*b",)}, r"hosts\[0\]: 'a\*b' has a star within"),
        ({"hosts": ()}, "hosts: empty, expected one or more"),
        ({"commands": ("connect", "bind")}, r"commands\[1\]: 'bind', expected one of: connect, forward, associate$"),
        ({"commands": ("resolve",)}, r"commands\[0\]: 'resolve', expected one of"),
        ({"ports": ("1-0",)}, r"ports\[0\]: '1-0', expected a port"),
    ],
)
def test_what_cannot_be_compiled_names_its_key(texts: dict[str, Any], message: str) -> None:
    """As of rules; commands that have nothing to look into are refused."""
    with pytest.raises(ConfigError, match=message):
        make_matcher(InterceptRule(), Texts(**texts))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], False),
        ([{}], True),
        ([{"commands": ["connect"]}], True),
        ([{"commands": ["forward", "associate"]}], False),
        ([{"tls": False}], False),
        ([{"action": "pass"}], False),
        ([{"tls": False}, {}], True),
    ],
)
def test_whether_an_authority_is_needed(entries: list[dict[str, Any]], expected: bool) -> None:
    """Only where TLS may have to be opened."""
    assert intercepts(*entries).need_authority == expected


def test_each_entry_is_explained() -> None:
    """Why not, by each name; and by which of them, where there are hosts."""
    found = intercepts({"users": ["alice"]}, {"hosts": ["a.example"]}, {"hosts": ["*.b.example"]}, {})
    steps = found.explain(connected("c.example", "192.0.2.1"), "x.b.example")
    assert [(step.intercept.number, step.matched, step.why) for step in steps] == [
        (0, False, "users: nobody is not alice"),
        (
            1,
            False,
            (
                "hosts: c.example (192.0.2.1) is not one of a.example; "
                "hosts: x.b.example (192.0.2.1) is not one of a.example"
            ),
        ),
        (2, True, "hosts *.b.example (x.b.example)"),
    ]
    assert found.explain(connected("c.example"))[-1].why == "matches everything"


def test_a_hello_for_a_name_of_a_list_is_said() -> None:
    """Not which names those are: there may be a million."""
    found = intercepts({"hosts_file": ["b.example"]}, {"hosts": ["10.0.0.0/8"]})
    assert found.by_hello(connected("192.0.2.1")) == ["a hello for one of b.example is looked into, by intercept[0]"]
    assert found.match(connected("b.example")) is None


@pytest.mark.parametrize(
    ("host", "changes"),
    [
        ("a.example", []),
        (
            "b.example",
            [
                "a hello for a.example, *.a.example is looked into, by intercept[0]",
                "a hello for a name other than b.example is not exempt by intercept[1]",
                "a hello for c.example is looked into, by intercept[3]",
            ],
        ),
        ("c.example", ["a hello for a.example, *.a.example is looked into, by intercept[0]"]),
        (
            "192.0.2.1",
            [
                "a hello for a.example, *.a.example is looked into, by intercept[0]",
                "a hello for b.example is exempt, by intercept[1]",
                "a hello for c.example is looked into, by intercept[3]",
            ],
        ),
    ],
)
def test_what_another_name_in_the_hello_would_change(host: str, changes: list[str]) -> None:
    """Entries that come before the one that decides now, and that a name may lead to."""
    found = intercepts(
        {"hosts": ["a.example", "*.a.example", "10.0.0.0/8"]},
        {"action": "pass", "hosts": ["b.example"]},
        {"hosts": ["10.0.0.0/8"]},
        {"hosts": ["c.example"]},
        {"users": ["alice"], "hosts": ["d.example"]},
    )
    assert found.by_hello(connected(host)) == changes


def test_it_goes_from_process_to_process() -> None:
    """A reload compiles in one and decides in another."""
    settings = InterceptRule(0, name="all", har="/tmp/x.har", mask=("x-key",))
    made = Intercepts([(settings, make_matcher(settings, Texts(hosts=("a.example",))))], time.time, GROUPS)
    taken = pickle.loads(pickle.dumps(made))
    assert list(taken) == [settings]
    assert len(taken) == 1
    assert repr(taken) == "Intercepts(1)"
    assert taken.match(connected("a.example")).label == "all"
    assert InterceptRule(3).label == "intercept[3]"
