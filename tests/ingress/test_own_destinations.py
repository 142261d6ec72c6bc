"""Destinations that the server answers itself: nothing else is asked about them."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Run
from gates import HERE, gate, session
from tabi.config import RuleConfig
from tabi.egress.base import Egress
from tabi.errors import PolicyDenied
from tabi.ingress.own_destinations import OwnDestinations
from tabi.wire.address import Address

OWN = Address("own.invalid", 80)


class Here(Egress):
    """Leads to one of them."""

    name = "here"


@pytest.mark.parametrize("host", ["own.invalid", "OWN.Invalid", "own.invalid."])
def test_its_egress_is_taken_whatever_the_rules_say(run_once: Run, host: str) -> None:
    """Whatever the case, and with the root's dot. Nothing is looked up."""

    async def main() -> None:
        async with gate(RuleConfig(hosts=["10.0.0.0/8"]), RuleConfig(action="deny")) as below:
            here = Here()
            asked = session(host, 80)
            found = OwnDestinations(below, {OWN: here}).enter(asked)
            assert found is not None
            assert found.egress is here
            assert asked.via == "here"
            resolver: Any = below.dialer.resolver
            assert resolver.asked == []

    run_once(main)


@pytest.mark.parametrize(("host", "port"), [("own.invalid", 81), ("x.own.invalid", 80), ("192.0.2.1", 80)])
def test_all_others_go_through_the_gate(run_once: Run, host: str, port: int) -> None:
    """Another port, another name, an address: its decision stands, at once or after a wait."""

    async def main() -> None:
        async with gate(RuleConfig(ports=[80, 81], action="deny")) as below:
            with pytest.raises(PolicyDenied):
                OwnDestinations(below, {OWN: Here()}).enter(session(host, port))
        async with gate(RuleConfig(hosts=["10.0.0.0/8"], action="deny")) as below:
            entrance = OwnDestinations(below, {OWN: Here()})
            asked = session("outer.test", port)
            assert entrance.enter(asked) is None
            assert (await entrance.enter_slowly(asked, HERE)).egress is below.direct

    run_once(main)
