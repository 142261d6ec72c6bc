"""All associations of a worker: shared ports, the sweep, limits of time, and that many of them leave nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from authentication import Turned
from conftest import Run
from datagrams import (
    Front,
    Inspector,
    Office,
    Place,
    association,
    destination,
    fake_proxy,
    pass_on,
    refusal,
    udp_socket,
    unwrap,
)
from depth import DEEP
from doubles import hear_opens
from sockets import turns, until
from tabi.config import Udp, make_config
from tabi.errors import DialError, LimitExceeded, PolicyDenied
from tabi.net.source import SourceBinding
from tabi.policy.networks import parse_network
from tabi.relay import datagram
from tabi.relay.associations import Associations
from tabi.relay.datagram_inspector import Inspect
from tabi.relay.limited_association import LimitedAssociation
from tabi.relay.protected_association import ProtectedAssociation
from tabi.session import Session
from tabi.wire.address import Address
from tabi.wire.datagram import encode_header
from tabi.wire.socks5 import ReplyCode


def test_the_sweep_runs_by_itself(run: Run) -> None:
    """Nobody has to call it, and it rests while there is nothing to sweep."""

    async def main() -> None:
        async with Place(udp_idle=0.05) as place, association(place.address):
            assert (await place.ended.get()).close == "idle"
            await until(lambda: place.server.parts.associations.timer is None)

    run(main)


def test_one_that_ends_during_a_sweep_is_left_alone(run: Run) -> None:
    """A sweep over many takes several turns, and looks again at none that has ended meanwhile."""

    async def main() -> None:
        async with Place() as place, association(place.address) as one, association(place.address):
            associations = place.server.parts.associations
            looks: list[Callable[[Any], object]] = []
            found = [*associations.active]
            associations.reactor.spread = lambda things, act: looks.append(act)  # type: ignore[method-assign]
            associations.sweep(0.0)
            del associations.reactor.spread
            await place.end(one)
            assert sorted(each.closed for each in found) == [False, True]
            for each in found:
                looks[0](each)
            assert [*associations.active] == [each for each in found if not each.closed]

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


def test_another_process_has_the_shared_port(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """As the one before an upgrade: associations have ports of their own, said once, until that port is free."""

    async def main() -> None:
        async with Place(Udp(ports="shared")) as place:
            with udp_socket(port=place.address.port):
                async with association(place.address) as one, association(place.address) as two:
                    assert len({place.address, one.relay, two.relay}) == 3
                    with destination() as echo:
                        assert unwrap(await two.ask(echo.header + b"two")) == (echo.address, b"two")
            async with association(place.address) as three:
                assert three.relay == place.address
            text = f"shared UDP port {place.address.port}: another process has it; associations get ports of their own"
            assert caplog.text.count(text) == 1

    run(main)


def test_a_shared_port_that_cannot_be_bound(run: Run) -> None:
    """Anything but a port that is taken is an error, as for a port of one association."""

    async def main() -> None:
        async with Place(Udp(ports="shared")) as place:
            local = Address(ip_address("192.0.2.1"), place.address.port)
            with pytest.raises(OSError, match="Cannot assign requested address"):
                place.server.parts.associations.open_port(local, Udp(ports="shared"))

    run(main)


def test_an_association_that_cannot_share_a_port_has_its_own(run: Run) -> None:
    """Another user's at the same address: it ends without the port of the others."""

    async def main() -> None:
        async with Office() as office, office.user("alice") as alice, office.user("bob") as bob:
            assert (office.shares(alice), office.shares(bob)) == (True, False)
            assert (await office.end(bob)).user == "bob"
            assert len(office.server.parts.associations.shared) == 1
            with udp_socket(port=bob.relay.port):
                pass

    run(main)


MANY = 2000 if DEEP else 300


@pytest.mark.linux
def test_many_associations_leave_nothing(run_once: Run) -> None:
    """Opened, used and closed: no descriptor, task or object of theirs stays."""

    async def main() -> None:
        async with Place() as place:
            with destination() as echo:

                async def one(number: int) -> None:
                    async with association(place.address) as client:
                        payload = b"%d" % number
                        assert unwrap(await client.ask(echo.header + payload)) == (echo.address, payload)

                for first in range(0, MANY, 50):
                    await asyncio.gather(*(one(first + number) for number in range(50)))
            await until(lambda: place.ended.qsize() == MANY)
            associations = place.server.parts.associations
            assert not associations.active
            assert not associations.context.lookups
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


def test_a_session_with_protection_has_an_association_that_unwraps(run: Run) -> None:
    """What an authentication method has agreed with the client counts for its datagrams, and for no other client's."""
    turned = Turned()

    def protect(session: Session) -> None:
        session.protection = turned if session.number == 1 else None

    async def main() -> None:
        async with Place() as place:
            hear_opens(place.server, protect)
            with destination() as echo:
                async with association(place.address) as client:
                    assert type(place.one) is ProtectedAssociation
                    answer = await client.ask(turned.wrap(echo.header + b"x"))
                    assert unwrap(turned.unwrap(answer)) == (echo.address, b"x")
                    await place.end(client)
                async with association(place.address) as client:
                    assert type(place.one) is datagram.Association
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

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


# --- faults ---


class Refusing:
    """Faults that refuse the second association."""

    def __init__(self) -> None:
        self.begun: list[Session] = []
        self.attached: list[datagram.Association] = []

    def begin(self, session: Session) -> None:
        self.begun.append(session)
        if len(self.begun) == 2:
            raise DialError("not this one", ReplyCode.HOST_UNREACHABLE)

    def attach(self, association: datagram.Association) -> None:
        self.attached.append(association)


def test_faults_hear_of_each_association(run: Run) -> None:
    """Before it is answered, so that they may refuse it, and when it begins."""

    async def main() -> None:
        async with Place() as place:
            faults = place.server.parts.associations.faults = Refusing()
            async with association(place.address):
                assert faults.attached == [place.one]
                assert faults.begun == [place.one.session]
                assert (await refusal(place)) == (4, "not this one")
                assert (len(faults.begun), len(faults.attached)) == (2, 1)

    run(main)


# --- inspectors ---


class Chooser(Inspector):
    """Looks at the first association, leaves the second alone, and fails with the others as it is told."""

    def __init__(self, *failures: Any) -> None:
        super().__init__(pass_on)
        self.failures = list(failures)
        self.begun: list[Session] = []

    def begin(self, session: Session) -> Inspect | None:
        self.begun.append(session)
        if len(self.begun) == 1:
            return self.inspect
        if len(self.begun) == 2:
            return None
        failure = self.failures.pop(0)
        if isinstance(failure, Exception):
            raise failure
        return failure  # type: ignore[no-any-return]


def test_an_inspector_chooses_its_associations(run: Run) -> None:
    """One that it leaves alone is as any other is, so are those of a server without an inspector."""

    async def main() -> None:
        async with Place() as place:
            chooser = place.server.parts.associations.inspector = Chooser()
            with destination() as echo:
                for looked_into in (True, False):
                    async with association(place.address) as client:
                        assert (place.one.inspection is not None) is looked_into
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                        session = await place.end(client)
                        assert (session.datagrams_up, session.datagrams_down) == (1, 1)
            assert [found.number for found in chooser.begun] == [1, 2]
            assert chooser.payloads == [("up", b"x"), ("down", b"x")]

    run(main)


def test_an_inspector_may_refuse_an_association(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """With PolicyDenied; an error of its own refuses too, for nobody would look, and is logged. Nothing is opened."""

    async def main() -> None:
        async with fake_proxy() as proxy, Front({"url": proxy.url}) as front:
            chooser = Chooser(PolicyDenied("not today"), KeyError("what went wrong"), "no method")
            front.server.parts.associations.inspector = chooser
            for _ in range(2):
                async with association(front.address) as client:
                    await front.end(client)
            assert await refusal(front) == (2, "not today")
            for _ in range(2):
                assert await refusal(front) == (1, "the inspector of datagrams failed")
            assert (proxy.asked, front.server.parts.associations.active) == (2, set())
            records = [record for record in caplog.records if "inspector" in record.message]
            for record, kind in zip(records, (KeyError, TypeError), strict=True):
                assert record.message.endswith("the inspector of datagrams raised, the association is refused")
                assert record.exc_info is not None
                assert record.exc_info[0] is kind

    run(main)


def test_what_cannot_be_an_inspector_is_told_at_the_start(run_once: Run) -> None:
    """Before there is a client."""

    async def main() -> None:
        async with Place() as place:
            reactor, dialer = place.server.parts.associations.reactor, place.server.parts.dialer
            with pytest.raises(TypeError, match="Inspector is a class"):
                Associations(reactor, dialer, 1.0, print, inspector=Inspector)  # type: ignore[arg-type]
            inspector = Inspector(pass_on)
            assert Associations(reactor, dialer, 1.0, print, inspector=inspector).inspector is inspector

    run_once(main)


# --- from outside ---


def test_counts_are_live(run: Run, kernel: str) -> None:
    """Octets and datagrams can be read from the session while its association goes on."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            session = place.one.session
            with destination() as echo:
                for count in (1, 2, 3):
                    await client.ask(echo.header + bytes(100))
                    await until(lambda count=count: session.datagrams_down == count)  # type: ignore[misc]
                    assert (session.datagrams_up, session.up, session.down) == (count, 100 * count, 100 * count)

    run(main)


def test_an_association_can_be_ended_by_its_session(run: Run) -> None:
    """With a reason and a text for the line; a second time, or for another session, there is nothing to end."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client, association(place.address) as other:
            associations = place.server.parts.associations
            one, two = sorted(associations.active, key=lambda found: found.session.number)
            assert associations.end(one.session, "shutdown", "the operator said so")
            assert await client.reader.read(1) == b""
            session = await place.ended.get()
            assert (session.number, session.close, session.error) == (1, "shutdown", "the operator said so")
            assert not associations.end(one.session, "limit", "again")
            one.end("limit", "again")
            assert (one.session.close, associations.active) == ("shutdown", {two})
            two.session.error = "what was before"
            assert associations.end(two.session, "limit")
            assert await other.reader.read(1) == b""
            session = await place.ended.get()
            assert (session.close, session.error) == ("limit", "what was before")

    run(main)


@pytest.mark.linux
def test_a_source_that_changes_is_for_sockets_to_come(run_once: Run) -> None:
    """A reload gives a new one, which is what is told then."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            associations = place.server.parts.associations
            assert associations.binding is None
            associations.binding = SourceBinding([parse_network("127.0.0.9")])
            with destination() as echo:
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                assert [sender[0] for _, sender in echo.received] == ["127.0.0.9"]

    run_once(main)
