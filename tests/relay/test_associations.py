"""All associations of a worker: shared ports, the sweep, limits of time, and that many of them leave nothing."""

from __future__ import annotations

import asyncio

from conftest import Run
from datagrams import Front, Place, association, destination, fake_proxy, udp_socket, unwrap
from sockets import turns, until
from tabi.config import Udp, make_config
from tabi.errors import LimitExceeded
from tabi.relay import datagram
from tabi.relay.limited_association import LimitedAssociation
from tabi.wire.address import Address
from tabi.wire.datagram import encode_header


def test_the_sweep_runs_by_itself(run: Run) -> None:
    """Nobody has to call it, and it rests while there is nothing to sweep."""

    async def main() -> None:
        async with Place(udp_idle=0.05) as place, association(place.address):
            assert (await place.ended.get()).close == "idle"
            await until(lambda: place.server.parts.associations.timer is None)

    run(main)


def test_a_shared_port_lives_while_somebody_uses_it(run: Run) -> None:
    """The second association finds it; a server that stops closes it."""

    async def main() -> None:
        shared = Udp(ports="shared")
        async with Place(shared) as place, association(place.address) as one, association(place.address) as two:
            assert one.relay == two.relay == place.address
            await place.end(one)
            with destination() as echo:
                assert unwrap(await two.ask(echo.header + b"two")) == (echo.address, b"two")
            await place.server.close()
            with udp_socket(port=two.relay.port):
                pass

    run(main)


def test_two_thousand_associations_leave_nothing(run_once: Run) -> None:
    """Opened, used and closed: no descriptor, task or object of theirs stays."""

    async def main() -> None:
        async with Place() as place:
            with destination() as echo:

                async def one(number: int) -> None:
                    async with association(place.address) as client:
                        payload = b"%d" % number
                        assert unwrap(await client.ask(echo.header + payload)) == (echo.address, payload)

                for first in range(0, 2000, 50):
                    await asyncio.gather(*(one(first + number) for number in range(50)))
            await until(lambda: place.ended.qsize() == 2000)
            associations = place.server.parts.associations
            assert not associations.active
            assert not associations.lookups
            assert not place.server.parts.sessions.running
            await turns()
            assert len(associations.reactor.handlers) == 2  # the listener, and who follows the machine's addresses

    run_once(main)


def test_what_a_limit_of_time_ends_ends_in_order(run: Run) -> None:
    """An association too: its control connection ends, and the line has the reason; it counts no octets for that."""

    async def main() -> None:
        limits = make_config({"limits": {"max_session": 86400}}).limits
        async with Place(limits=limits) as place, association(place.address) as client:
            (lease,) = place.server.parts.gate.leases
            assert type(place.one) is datagram.Association
            lease.end(LimitExceeded("limit: too long", "max_session"))
            assert await client.reader.read(1) == b""
            session = await place.ended.get()
            assert (session.close, session.error) == ("limit", "limit: too long")

    run(main)


def test_names_end_with_the_server(run: Run) -> None:
    """A server that stops leaves no question behind."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            client.send(encode_header(Address("slow.test", 9)) + b"x")
            await until(lambda: place.resolver.asked)
            await place.server.close()
            assert (await place.ended.get()).close == "shutdown"

    run(main)


def test_who_has_a_meter_has_an_association_that_asks_it(run: Run) -> None:
    """And nobody else."""

    async def main() -> None:
        limits = make_config({"limits": {"bandwidth": "1 GB/s"}}).limits
        async with Place(limits=limits) as place, association(place.address):
            assert type(place.one) is LimitedAssociation

    run(main)


def test_a_way_out_that_is_open_is_used_from_the_first_datagram_on(run: Run) -> None:
    """Opened with the request, it is not opened again, and ends with the association."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front, association(front.address) as client:
            header = encode_header(Address("name.test", 53))
            assert (proxy.asked, front.server.parts.associations.controls) == (1, 1)
            client.send(header + b"x")
            assert (await proxy.arrived())[0] == header + b"x"
            await front.end(client)
            assert (proxy.asked, front.server.parts.associations.controls) == (1, 0)

    run(main)
