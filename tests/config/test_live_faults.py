"""What a program or a command says of a fault, and what that means."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
import pytest

from tabi.config import DistortConfig, FaultConfig, LineConfig, Seconds
from tabi.config.faults import make_fault
from tabi.config.live_faults import CHOOSING, FaultChanges, FaultKeys, LineKeys, changed, describe, read_fault, words_of
from tabi.config.load import parse_config
from tabi.errors import ConfigError
from tabi.policy.faults import Fault
from tabi.policy.rules import FILES


def figures(*changes: dict[str, Any]) -> Fault:
    """The figures of a fault after changes."""
    given: dict[str, Any] = {}
    for change in changes:
        given = changed(given, change)
    fault = read_fault(given, "it").fault
    assert isinstance(fault, FaultConfig)
    return make_fault(fault)


def test_type_checkers_know_each_key() -> None:
    """The typed dictionaries have the keys of the schema, and those that choose sessions."""
    lines = {field.encode_name for field in msgspec.structs.fields(LineConfig)}
    faults = {field.name for field in msgspec.structs.fields(FaultConfig)}
    assert set(get_type_hints(LineKeys)) == lines
    assert set(get_type_hints(FaultChanges)) == faults | (set(CHOOSING) - set(FILES))
    assert set(get_type_hints(FaultKeys)) == faults | (set(CHOOSING) - set(FILES)) | {"name"}
    assert set(CHOOSING) < {field.name for field in msgspec.structs.fields(DistortConfig)}


def test_all_keys_of_a_fault_and_its_matchers() -> None:
    """They are read as those of a file are; tuples and structs are as good as lists and tables."""
    given = {"latency": "200ms", "hosts": ("*.example.com",), "up": LineConfig(jitter=Seconds(0.05)), "from_": "22:00"}
    found = read_fault(changed(None, given | {"probability": "10%", "seed": 7, "ports": [443], "users": None}), "it")
    file = parse_config(
        """
        [[distort]]
        name = "it"
        hosts = ["*.example.com"]
        ports = [443]
        probability = 0.1
        seed = 7
        fault = { latency = 0.2, from = "22:00", up = { jitter = "50ms" } }
        """
    )
    assert found == file.distort[0]


def test_figures_beside_a_profile_hold_in_place_of_its_own() -> None:
    """Also where the profile has one for each direction, and where one is told by another."""
    plain = figures({"profile": "3g"})
    assert (plain.up.bandwidth, plain.down.latency) == (96_000, 0.15)
    assert figures({"profile": "3g", "bandwidth": "1 MB/s"}).up.bandwidth == 1e6
    assert figures({"profile": "3g", "bandwidth": "1 MB/s"}).down.latency == 0.15
    assert figures({"profile": "3g", "latency": "1s"}).up.latency == 1
    assert figures({"profile": "mine", "rtt": "1s"} | {"profile": "3g"}).down.latency == 0.5
    one_way = figures({"profile": "3g", "up": {"latency": "2s"}})
    assert (one_way.up.latency, one_way.up.bandwidth, one_way.down.latency) == (2, 96_000, 0.15)
    own = {"mine": FaultConfig(latency=Seconds(0.3), jitter=Seconds(0.1))}
    fault = read_fault({"profile": "mine", "rtt": "1s"}, "it", own).fault
    assert isinstance(fault, FaultConfig)
    assert (make_fault(fault).up.latency, make_fault(fault).up.jitter) == (0.5, 0.1)


def test_a_change_keeps_what_it_does_not_name() -> None:
    """None takes a key away, ``latency`` and ``rtt`` stand for each other, and a profile for all figures."""
    before = changed(None, {"latency": "200ms", "jitter": "50ms", "hosts": ["a.example"]})
    assert changed(before, {"latency": "1s"}) == {"latency": "1s", "jitter": "50ms", "hosts": ["a.example"]}
    assert changed(before, {"jitter": None, "hosts": None}) == {"latency": "200ms"}
    assert changed(before, {"rtt": "1s"}) == {"jitter": "50ms", "hosts": ["a.example"], "rtt": "1s"}
    assert changed(before, {"profile": "3g"}) == {"hosts": ["a.example"], "profile": "3g"}
    sides = changed({"up": {"latency": "1s"}, "loss": 0.1}, {"up": {"jitter": "2ms"}})
    assert sides == {"up": {"latency": "1s", "jitter": "2ms"}, "loss": 0.1}
    assert changed(sides, {"up": {"jitter": None, "loss": 0.5}})["up"] == {"latency": "1s", "loss": 0.5}
    assert changed(sides, {"up": {"jitter": None, "latency": None}}) == {"loss": 0.1}
    assert figures({"profile": "3g"}, {"loss": "5%"}).up.loss == 0.05
    with pytest.raises(ConfigError, match="unknown key"):
        changed(before, {"name": "other"})


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"latency": -1}, "more than 0", "latency"),
    ({"latency": 0}, "more than 0", "latency"),
    ({"latency": float("nan")}, "more than 0", "latency"),
    ({"latency": float("inf")}, "more than 0", "latency"),
    ({"latency": "2h"}, "3600 s at most", "latency"),
    ({"latency": True}, "not a duration", "latency"),
    ({"loss": float("nan")}, "0 to 1", "loss"),
    ({"loss": "101%"}, "0 to 1", "loss"),
    ({"latency": 1, "burst": float("nan"), "loss": 0.1}, "1 to 1000", "burst"),
    ({"bandwidth": 1e300}, "1 TB/s", "bandwidth"),
    ({"slice": -5}, "more than 0", "slice"),
    ({"frobnicate": 1}, "unknown key, expected one of: profile, latency", "frobnicate"),
    ({"up": {"rtt": 1}}, "unknown key", "up.rtt"),
    ({"up": 5}, "expected table", "up"),
    ({"profile": "5g"}, "'5g', expected a profile: 3g, ", "profile"),
    ({"profile": ["3g"]}, "list, expected the name of a profile", "profile"),
    ({"blackhole": True, "bandwidth": 1000}, "contradicts blackhole", "bandwidth"),
    ({"blackhole": True, "down": {"bandwidth": 1000}}, "contradicts blackhole", "down.bandwidth"),
    ({"reset_after": 1, "close_after": 1}, "contradicts", "reset_after"),
    ({"jitter": 1}, "no effect without latency", "jitter"),
    ({}, "it changes nothing", None),
    ({"hosts": ["*"]}, "it changes nothing", None),
    ({"latency": 1, "hosts": "*"}, "expected array", "hosts"),
    ({"latency": 1, "hosts": ["re:["]}, "not a regular expression", "hosts[0]"),
    ({"latency": 1, "ports": [0, 70000]}, "70000", "ports[1]"),
    ({"latency": 1, "commands": ["fly"]}, "fly", "commands[0]"),
    ({"latency": 1, "listeners": ["http://127.0.0.1:1"]}, "expected one of: socks5://a", "listeners[0]"),
    ({"latency": 1, "hours": "never"}, "never", "hours"),
    ({"latency": 1, "probability": 2}, "0 to 1", "probability"),
    ({"latency": 1, "seed": "7"}, "expected integer", "seed"),
    ({"latency": 1, "until": "2020-01-01", "from_": "2021-01-01"}, "expected a time after", "until"),
]


@pytest.mark.parametrize(("given", "message", "path"), WRONG)
def test_a_mistake_names_its_key(given: dict[str, Any], message: str, path: str | None) -> None:
    """As it was given, without a table around it."""
    with pytest.raises(ConfigError, match=message) as found:
        read_fault(changed(None, given), "it", {}, ["socks5://a:1"])
    assert found.value.path == path


@pytest.mark.parametrize("name", ["", "two\nlines", 5, "x" * 61])
def test_a_name_that_cannot_be_one(name: Any) -> None:
    """It is a text that can be printed."""
    with pytest.raises(ConfigError) as found:
        read_fault({"latency": 1}, name)
    assert found.value.path == "name"


def test_in_words() -> None:
    """What was said is said again; an entry of a file is told in the same way."""
    given = changed(None, {"profile": "3g", "blackhole": True, "up": {"loss": 0.25}, "hosts": ["a", "b"], "seed": 7})
    assert describe(given) == ("3g, blackhole, up (loss 0.25)", "hosts a b, seed 7")
    file = parse_config(
        """
        [[distort]]
        ports = [443]
        fault = { latency = "200ms", bandwidth = "1 MB/s", from = 2027-01-01T12:00:00Z }
        [[distort]]
        probability = 0.5
        fault = "edge"
        [[distort]]
        strip_cookies = true
        """
    )
    assert [describe(words_of(one)) for one in file.distort] == [
        ("latency 0.2, bandwidth 1e+06, from 2027-01-01T12:00:00Z", "ports 443"),
        ("edge", "probability 0.5"),
        ("", ""),
    ]
