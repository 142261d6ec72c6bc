"""Names that are resolved here, in front of a proxy that could do it too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conftest import Run
from doubles import FakeResolver
from egresses import Recorder, session
from tabi.egress.resolve_locally import ResolveLocally
from tabi.errors import DialError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address, parse_host


@asynccontextmanager
async def resolving(names: dict[str, list[str]], below: Recorder) -> AsyncIterator[ResolveLocally]:
    """An egress that resolves these names."""
    dialer = Dialer(get_reactor(), FakeResolver(names), 0.05)
    try:
        yield ResolveLocally(below, dialer)
    finally:
        await dialer.close()


def test_names_become_addresses_that_are_permitted(run_once: Run) -> None:
    """IPv4 first, for most proxies have it; an address stays one, and so does what was resolved for a decision."""

    async def main() -> None:
        below = Recorder()
        seen: list[Any] = []
        async with resolving({"both.test": ["2001:db8::1", "192.0.2.7"], "six.test": ["2001:db8::1"]}, below) as way:
            for name in ("both.test", "six.test", "192.0.2.9"):
                await way.open(Address(parse_host(name), 80), seen.append)
            known = session()
            known.addresses = [parse_host("192.0.2.5")]  # type: ignore[list-item]
            known.destination = Address("known.test", 80)
            await way.open(known.destination, seen.append, known)
        assert below.asked == ["192.0.2.7:80", "[2001:db8::1]:80", "192.0.2.9:80", "known.test:80"]
        assert list(map(str, seen)) == ["2001:db8::1", "192.0.2.7", "2001:db8::1"]

    run_once(main)


def test_a_resolver_that_is_silent_has_a_deadline(run_once: Run) -> None:
    """That of connecting."""

    async def main() -> None:
        async with resolving({"slow.test": ["192.0.2.7"]}, Recorder()) as way:
            resolver: Any = way.dialer.resolver
            resolver.answering.clear()
            with pytest.raises(DialError, match=r"slow\.test:80: no answer within 0\.05 s"):
                await way.open(Address("slow.test", 80), allow_any_address)

    run_once(main)


def test_it_is_the_egress_below_in_all_else(run_once: Run) -> None:
    """Its name and its description; questions for names can be answered, since they are answered here."""

    async def main() -> None:
        async with resolving({}, Recorder()) as egress:
            assert (egress.name, egress.describe(), egress.resolves_locally) == ("below", "below", True)
            assert egress.cannot("resolve") is None
            assert egress.cannot("bind") == Recorder().cannot("bind") is not None

    run_once(main)
