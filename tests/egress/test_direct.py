"""The egress without a proxy: names, several addresses, permits and deadlines."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from conftest import Run
from doubles import FakeResolver, no_descriptors_left, unanswering, until
from support import closed_port, permit_outer, target
from tabi.egress.direct import Direct
from tabi.errors import DialError, PolicyDenied
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address

NAMES = {
    "here.test": ["127.0.0.1"],
    "here6.test": ["::1"],
    "two.test": ["127.0.0.2", "127.0.0.1"],
    "families.test": ["::1", "127.0.0.1"],
    "mixed.test": ["192.0.2.1", "127.0.0.1"],
}


def make_direct(resolver: FakeResolver | None = None, seconds: float = 10) -> Direct:
    """An egress with names of its own."""
    return Direct(Dialer(get_reactor(), resolver or FakeResolver(NAMES), seconds))


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "two.test", "families.test"])
def test_it_connects_to_addresses_and_names(run: Run, host: str) -> None:
    """An address at once; of a name the address that answers, whichever place it has."""

    async def main() -> None:
        direct = make_direct()
        async with target() as port:
            destination = Address(host if host.endswith("test") else ip_address(host), port)
            async with await direct.open(destination, allow_any_address) as stream:
                assert stream.sock.getpeername() == ("127.0.0.1", port)
                await stream.send_all(b"ping")
                assert await stream.receive() == b"ping"
        await direct.dialer.close()

    run(main)


@pytest.mark.parametrize("host", ["::1", "here6.test", "families.test"])
def test_it_connects_over_ipv6(run: Run, host: str) -> None:
    """The same over IPv6, which is tried first where it comes first."""

    async def main() -> None:
        direct = make_direct()
        async with target(host="::1") as port:
            destination = Address(host if host.endswith("test") else ip_address(host), port)
            async with await direct.open(destination, allow_any_address) as stream:
                assert stream.sock.getpeername()[:2] == ("::1", port)
                await stream.send_all(b"ping")
                assert await stream.receive() == b"ping"
        await direct.dialer.close()

    run(main)


def test_permit_sees_every_address_before_any_is_dialled(run: Run) -> None:
    """The permit is asked with each address of a name; where it refuses one, nothing is dialled."""

    async def main() -> None:
        direct = make_direct()
        seen: list[IPv4Address | IPv6Address] = []
        connected: list[int] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.append(1)

        async with target(note) as port:
            async with await direct.open(Address("two.test", port), seen.append):
                assert [str(address) for address in seen] == NAMES["two.test"]
            await until(lambda: connected)
            for host in ("mixed.test", "two.test", "here.test", ip_address("127.0.0.1")):
                with pytest.raises(PolicyDenied) as caught:
                    await direct.open(Address(host, port), permit_outer)
                assert caught.value.reply_code == 2
            assert connected == [1]
        await direct.dialer.close()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "two.test"])
def test_a_closed_port_is_a_refusal(run: Run, host: str) -> None:
    """Reply 05, and the message names what was asked for."""

    async def main() -> None:
        direct = make_direct()
        with closed_port() as port:
            destination = Address(host if host.endswith("test") else ip_address(host), port)
            with pytest.raises(DialError, match=f"{host}:{port}: connection refused") as caught:
                await direct.open(destination, allow_any_address)
            assert caught.value.reply_code == 5
        await direct.dialer.close()

    run(main)


def test_an_unknown_name_is_a_host_that_cannot_be_reached(run: Run) -> None:
    """Reply 04, without anything dialled."""

    async def main() -> None:
        direct = make_direct()
        with pytest.raises(DialError, match=r"nowhere\.test: ") as caught:
            await direct.open(Address("nowhere.test", 80), allow_any_address)
        assert caught.value.reply_code == 4
        await direct.dialer.close()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "two.test"])
def test_the_deadline_covers_everything(run: Run, host: str) -> None:
    """Reply 04 where the destination does not answer in time."""

    async def main() -> None:
        direct = make_direct(seconds=0.2)
        with unanswering("0.0.0.0") as port:
            destination = Address(host if host.endswith("test") else ip_address(host), port)
            with pytest.raises(DialError, match=r"no answer within 0\.2 s") as caught:
                await direct.open(destination, allow_any_address)
            assert caught.value.reply_code == 4
        await direct.dialer.close()

    run(main)


def test_a_resolver_that_does_not_answer_is_under_the_deadline_too(run: Run) -> None:
    """Resolving is part of the time that a destination has."""

    async def main() -> None:
        resolver = FakeResolver(NAMES)
        resolver.answering.clear()
        direct = make_direct(resolver, seconds=0.1)
        with pytest.raises(DialError, match="no answer within"):
            await direct.open(Address("here.test", 80), allow_any_address)
        await direct.dialer.close()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "two.test"])
def test_no_descriptor_left_is_our_own_fault(run: Run, host: str) -> None:
    """Reply 01: it says nothing about the destination."""

    async def main() -> None:
        direct = make_direct()
        async with target() as port:
            destination = Address(host if host.endswith("test") else ip_address(host), port)
            with no_descriptors_left(), pytest.raises(DialError, match="too many open files") as caught:
                await direct.open(destination, allow_any_address)
            assert caught.value.reply_code == 1
        await direct.dialer.close()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "here.test", "two.test"])
@pytest.mark.parametrize("turns", [1, 3, 10])
def test_a_dial_that_is_cancelled_leaves_nothing(run: Run, host: str, turns: int) -> None:
    """Whoever waits may give up at any await: no socket, task or timer stays."""

    async def main() -> None:
        direct = make_direct()

        async def dial(destination: Address) -> None:
            await direct.open(destination, allow_any_address)

        with unanswering("0.0.0.0") as port:
            destination = Address(host if host.endswith("test") else ip_address(host), port)
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(dial(destination))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            assert task.cancelled()
        await direct.dialer.close()

    run(main)
