"""A UDP port that many associations share: who is who there, also where several clients have one address."""

from __future__ import annotations

import logging

import msgspec
import pytest

from conftest import Run
from datagrams import Office, Place, association, destination, udp_socket, unwrap
from sockets import turns, until
from tabi import Decision
from tabi.config import RuleConfig, Udp
from tabi.relay import shared_port
from tabi.relay.shared_port import SharedPort
from tabi.wire.address import Address, parse_address

ANY = Address(parse_address("0.0.0.0:0").host, 0)


def test_two_users_at_one_address_stay_apart(run: Run) -> None:
    """Neither has said from which port it sends. Each one's datagrams go out under its own name, whoever is first."""

    async def main() -> None:
        async with Office() as office, office.user("alice") as alice, office.user("bob") as bob:
            assert office.shares(alice)
            assert not office.shares(bob)
            with destination() as echo:
                assert unwrap(await bob.ask(echo.header + b"bob's")) == (echo.address, b"bob's")
                assert unwrap(await alice.ask(echo.header + b"alice's")) == (echo.address, b"alice's")
            for client, name in ((alice, "alice"), (bob, "bob")):
                session = await office.end(client)
                assert (session.user, session.datagrams_up, session.drops) == (name, 1, {})

    run(main)


def test_the_first_is_still_expected_when_the_second_has_ended(run: Run) -> None:
    """The second has taken nothing of the first. The next one shares, once the first has ended."""

    async def main() -> None:
        async with Office() as office, office.user("alice") as alice:
            async with office.user("bob") as bob:
                await office.end(bob)
            with destination() as echo:
                assert unwrap(await alice.ask(echo.header + b"x")) == (echo.address, b"x")
                assert (await office.end(alice)).user == "alice"
                async with office.user("bob") as bob:
                    assert office.shares(bob)
                    assert unwrap(await bob.ask(echo.header + b"y")) == (echo.address, b"y")
                    assert (await office.end(bob)).user == "bob"

    run(main)


def test_a_client_whose_port_changes_is_not_taken_for_another_user(run: Run) -> None:
    """A NAT may give a pinned client another port: what comes from there belongs to nobody."""

    async def main() -> None:
        async with Office() as office, office.user("alice") as alice:
            with destination() as echo:
                assert unwrap(await alice.ask(echo.header + b"x")) == (echo.address, b"x")
                async with office.user("bob") as bob:
                    with udp_socket() as moved:
                        moved.sendto(echo.header + b"alice's", (str(alice.relay.host), alice.relay.port))
                        assert unwrap(await alice.ask(echo.header + b"y")) == (echo.address, b"y")
                    assert unwrap(await bob.ask(echo.header + b"z")) == (echo.address, b"z")
                    assert (await office.end(bob)).datagrams_up == 1
                assert [data for data, _ in echo.received] == [b"x", b"y", b"z"]

    run(main)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (("alice", "pw"), ("alice", "pw"), True),
        (("alice-country-de", "pw"), ("alice-country-de", "pw"), True),
        (("alice-country-de", "pw"), ("alice-country-fr", "pw"), False),
        (("alice", "7"), ("alice", "7"), True),
        (("alice", "7"), ("alice", "8"), False),
    ],
)
def test_one_user_may_share_the_port_with_itself(
    run: Run, first: tuple[str, str], second: tuple[str, str], together: bool
) -> None:
    """If all that decides on the datagrams is equal: then it does not matter which association a client gets."""

    async def main() -> None:
        async with (
            Office() as office,
            office.user(first[0], password=first[1]),
            office.user(second[0], password=second[1]) as two,
        ):
            assert office.shares(two) == together

    run(main)


def test_a_program_that_decides_has_no_equal_associations(run: Run) -> None:
    """It may decide by anything: two sessions of one user have different egresses for all that the server knows."""

    async def main() -> None:
        async with (
            Office(decide=lambda session: Decision()) as office,
            office.user("alice") as one,
            office.user("alice") as two,
        ):
            assert (office.shares(one), office.shares(two)) == (True, False)

    run(main)


def test_a_reload_between_two_associations_of_a_user(run: Run) -> None:
    """The first keeps its rules, the second has others: they are kept apart."""

    async def main() -> None:
        async with Office() as office, office.user("alice"):
            rules = [RuleConfig("deny", ports=[9])]
            office.server.reload(msgspec.structs.replace(office.server.config, rule=rules))
            async with office.user("alice") as two:
                assert not office.shares(two)

    run(main)


def test_a_declared_port_is_shared_unless_somebody_else_has_it(run: Run) -> None:
    """Declared ports tell clients apart; one port that two users declare does not, waiting or in use."""

    async def main() -> None:
        async with Office() as office, office.user("alice", ANY) as alice:
            taken = Address(ANY.host, alice.sock.getsockname()[1])
            async with office.user("bob", ANY) as bob, office.user("carol", taken) as carol:
                assert (office.shares(bob), office.shares(carol)) == (True, False)
            with destination() as echo:
                assert unwrap(await alice.ask(echo.header + b"x")) == (echo.address, b"x")
            async with office.user("bob", taken) as bob, office.user("alice", taken) as other:
                assert (office.shares(bob), office.shares(other)) == (False, True)

    run(main)


def test_a_declared_port_may_be_wrong(run: Run) -> None:
    """Behind NAT it is: while another user's first datagram is awaited, such a client's would be taken for it."""

    async def main() -> None:
        async with Office() as office, office.user("alice") as alice:
            async with office.user("bob", ANY) as bob:
                assert not office.shares(bob)
            with destination() as echo:
                assert unwrap(await alice.ask(echo.header + b"x")) == (echo.address, b"x")
            async with office.user("bob", ANY) as bob:
                assert office.shares(bob)

    run(main)


def test_what_a_client_sends_after_its_end_is_not_the_first_of_another(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is another user's only when a NAT may have given it to that one; for the same user it is at once."""

    async def main() -> None:
        async with Office() as office, office.user("alice") as alice:
            with destination() as echo:
                assert unwrap(await alice.ask(echo.header + b"x")) == (echo.address, b"x")
                await office.end(alice)
                async with office.user("alice") as again:
                    assert unwrap(await alice.ask(echo.header + b"again")) == (echo.address, b"again")
                    await office.end(again)
                async with office.user("bob") as bob:
                    alice.send(echo.header + b"late")
                    assert unwrap(await bob.ask(echo.header + b"bob's")) == (echo.address, b"bob's")
                    await office.end(bob)
                monkeypatch.setattr(shared_port, "REMEMBERED", 0)
                async with office.user("bob"):
                    assert unwrap(await alice.ask(echo.header + b"bob's now")) == (echo.address, b"bob's now")
                assert [data for data, _ in echo.received] == [b"x", b"again", b"bob's", b"bob's now"]

    run(main)


def test_few_clients_that_have_ended_are_remembered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten beyond a number, and after a while."""

    async def main() -> None:
        async with Office() as office:
            departed = office.server.parts.associations.departed
            for limit, seconds, left in ((2, 120.0, 2), (2, 0.0, 1)):
                monkeypatch.setattr(shared_port, "MAX_DEPARTED", limit)
                monkeypatch.setattr(shared_port, "REMEMBERED", seconds)
                for _ in range(3):
                    async with office.user("alice") as client:
                        with destination() as echo:
                            await client.ask(echo.header)
                        await office.end(client)
                assert len(departed) == left

    run(main)


def test_on_a_shared_port_the_first_to_come_is_the_first_to_send(run: Run) -> None:
    """Without declared ports, clients at one address are told apart by the order of their first datagrams."""

    async def main() -> None:
        shared = Udp(ports="shared")
        async with Place(shared) as place, association(place.address) as one, association(place.address) as two:
            with destination() as echo:
                assert unwrap(await one.ask(echo.header + b"one")) == (echo.address, b"one")
                assert unwrap(await two.ask(echo.header + b"two")) == (echo.address, b"two")
            assert (await place.end(one)).datagrams_up == 1
            assert (await place.end(two)).datagrams_up == 1

    run(main)


def test_a_shared_port_that_is_taken_again_at_once(run: Run) -> None:
    """The last association ends and the next begins in the same turn: the port stays."""

    async def main() -> None:
        async with Place(Udp(ports="shared")) as place:
            associations = place.server.parts.associations
            async with association(place.address) as client:
                port = place.one.port
                assert isinstance(port, SharedPort)
                place.one.close("client")
                assert associations.open_port(place.address, Udp(ports="shared")) is port
                port.expected[b"somebody", 0] = {}
                await turns()
                assert port.sock.fileno() >= 0
                port.expected.clear()
                port.close_if_unused()
                port.close_if_unused()
                assert not associations.shared
                client.leave()

    run(main)


def test_clients_at_several_addresses_are_expected_apart(run: Run) -> None:
    """On a shared port nobody takes the place of a client with another address."""

    async def main() -> None:
        shared = Udp(ports="shared")
        async with (
            Place(shared) as place,
            association(place.address) as one,
            association(place.address, host="127.0.0.2") as two,
        ):
            with destination() as echo:
                assert unwrap(await two.ask(echo.header + b"two")) == (echo.address, b"two")
                assert unwrap(await one.ask(echo.header + b"one")) == (echo.address, b"one")
            assert (await place.end(one)).client.host != (await place.end(two)).client.host

    run(main)


def test_what_a_shared_port_dropped_is_said_when_it_closes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody's datagrams belong to no session's line."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with Place(Udp(ports="shared")) as place, association(place.address) as client:
            with udp_socket("127.0.0.2") as nobody:
                nobody.sendto(b"x", (str(client.relay.host), client.relay.port))
                await until(lambda: place.one.port.wrong_source)
            await place.end(client)

    run(main)
    assert "datagrams of no association: 1" in caplog.text
