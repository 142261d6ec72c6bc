"""The ends of associations: whose datagrams pass, ports that many share, and shares of a turn."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Run
from datagrams import Inspector, Place, Watcher, association, destination, pass_on, udp_socket, unwrap
from sockets import turns, until
from tabi.config import Udp, make_config
from tabi.net import datagram as net_datagram
from tabi.net.source import SourceBinding
from tabi.policy.networks import parse_network
from tabi.relay import udp_sockets
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import MAX_DATAGRAM

SIZES = (0, 1, 1472, 9000, 60000)
ANY = Address(parse_address("0.0.0.0:0").host, 0)


def test_the_longest_datagrams(run: Run, kernel: str) -> None:
    """65,507 octets, header and all, pass; a reply that would be longer with its header is dropped, never cut."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            long = bytes(MAX_DATAGRAM)
            with destination(answer=lambda data, sender: [(octets, sender) for octets in (data, long, b"!")]) as echo:
                payload = bytes(range(256)) * 256
                payload = payload[: MAX_DATAGRAM - len(echo.header)]
                assert unwrap(await client.ask(echo.header + payload)) == (echo.address, payload)
                assert unwrap(await client.receive()) == (echo.address, b"!")
                echo.answer = lambda data, sender: [(long, sender)]
                client.send(echo.header)
                await until(lambda: place.drops == {"too_large": 2})
            session = await place.end(client)
        assert session.datagrams_down == 2

    run(main)


def test_equal_datagrams_go_together_and_stay_apart(run: Run, kernel: str) -> None:
    """Many at once, more than one batch, the last one shorter: all arrive, each by itself, in order."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                sent = [bytes([number]) * 100 for number in range(130)] + [b"the end"]
                for payload in sent:
                    client.send(echo.header + payload)
                assert [unwrap(await client.receive()) for _ in sent] == [(echo.address, payload) for payload in sent]
                assert [data for data, _ in echo.received] == sent

    run(main)


def test_a_reply_bears_its_sender(run: Run, kernel: str) -> None:
    """A destination that answers from another port: the header has that port. The same for two senders in turn."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with udp_socket() as other, destination() as echo:

                def answer(data: bytes, sender: Any) -> list[tuple[bytes, Any]]:
                    other.sendto(b"from another port", sender)
                    return [(b"from the same", sender)]

                echo.answer = answer
                client.send(echo.header + b"x")
                first, second = await client.receive(), await client.receive()
                assert {unwrap(first), unwrap(second)} == {
                    (Address(echo.address.host, other.getsockname()[1]), b"from another port"),
                    (echo.address, b"from the same"),
                }

    run(main)


def test_only_the_client_is_heard(run: Run, kernel: str) -> None:
    """Another address, and after the first datagram another port: dropped and counted, before and after."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            relay = (str(client.relay.host), client.relay.port)
            with udp_socket("127.0.0.2") as elsewhere, udp_socket() as later, destination() as echo:
                elsewhere.sendto(echo.header + b"too early", relay)
                await until(lambda: place.one.port.wrong_source == 1)
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                elsewhere.sendto(echo.header + b"another address", relay)
                later.sendto(echo.header + b"another port", relay)
                assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")
                assert [data for data, _ in echo.received] == [b"x", b"y"]
            session = await place.end(client)
            assert session.drops == {"wrong_source": 3}

    run(main)


def test_a_declared_port_is_the_only_one(run: Run) -> None:
    """DST.PORT of the request says which port is the client's: nobody who is quicker takes its place."""

    async def main() -> None:
        async with Place() as place, association(place.address, declared=ANY) as client:
            with udp_socket() as quicker, destination() as echo:
                quicker.sendto(echo.header + b"quicker", (str(client.relay.host), client.relay.port))
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                assert [data for data, _ in echo.received] == [b"x"]
            assert (await place.end(client)).drops == {"wrong_source": 1}

    run(main)


def test_strangers_are_not_heard(run: Run, kernel: str) -> None:
    """A host that the client has sent nothing to cannot send to it; another port of one that it has can."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with udp_socket("127.0.0.2") as stranger, udp_socket() as friend, destination() as echo:
                await client.ask(echo.header + b"x")
                outside = ("127.0.0.1", echo.received[0][1][1])
                stranger.sendto(b"boo", outside)
                friend.sendto(b"hello", outside)
                assert unwrap(await client.receive()) == (Address(echo.address.host, friend.getsockname()[1]), b"hello")
            assert (await place.end(client)).drops == {"unsolicited": 1}

    run(main)


def test_anybody_is_heard_where_the_listener_says_so(run: Run) -> None:
    """senders = "any": whoever knows the port reaches the client, as games that host want it."""

    async def main() -> None:
        async with Place(Udp(senders="any")) as place, association(place.address) as client:
            with udp_socket("127.0.0.2") as stranger, destination() as echo:
                await client.ask(echo.header + b"x")
                stranger.sendto(b"boo", ("127.0.0.1", echo.received[0][1][1]))
                host, port = stranger.getsockname()
                assert unwrap(await client.receive()) == (parse_address(f"{host}:{port}"), b"boo")

    run(main)


def test_a_socket_that_cannot_be_registered_is_closed(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a port nor a socket toward destinations stays open where the reactor does not take it."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:

            def refuse(fd: int, handler: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(place.server.parts.associations.reactor, "register_reader", refuse)
            with destination() as echo:
                client.send(echo.header + b"x")
                await until(lambda: place.drops == {"unsent": 1})
            with pytest.raises(OSError, match="No space left"):
                place.server.parts.associations.open_port(place.address, Udp())

    run_once(main)


def test_what_the_kernel_dropped_is_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datagrams that found the receive buffer of the port full are in the log line."""
    monkeypatch.setattr(net_datagram, "RECEIVE_BUFFER", 4096)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                await client.ask(echo.header + b"x")
                for _ in range(100):
                    client.send(echo.header + bytes(1000))
                await until(lambda: len(echo.received) > 1)
            session = await place.end(client)
            assert session.drops is not None
            assert session.drops["overflow"] + session.datagrams_up >= 101

    run(main)


@pytest.mark.parametrize(("share", "late"), [(1, False), (1 << 20, False), (1 << 30, True)])
def test_a_flood_is_carried_in_shares(
    run: Run, kernel: str, monkeypatch: pytest.MonkeyPatch, share: int, late: bool
) -> None:
    """What is more than a socket's share of a turn, or than the turn has time for, comes in the next, both ways;
    nothing is lost."""
    monkeypatch.setattr(udp_sockets, "SHARE", share)
    monkeypatch.setattr("tabi.net.reactor.Reactor.late", lambda self: late)
    count = 180

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as one, destination("::1") as two:
                for echo in (one, two):
                    await client.ask(echo.header + b"x")
                for number in range(count):
                    client.send((one, two)[number % 2].header + number.to_bytes(2, "big"))
                got = [unwrap(await client.receive()) for _ in range(count)]
                for echo, first in ((one, 0), (two, 1)):
                    numbers = [int.from_bytes(data, "big") for address, data in got if address == echo.address]
                    assert numbers == list(range(first, count, 2))

    run(main)


def test_a_share_that_comes_after_the_end(run: Run) -> None:
    """What was put off to the next turn finds the association gone, and does nothing."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                await client.ask(echo.header + b"x")
            found = place.one
            session = await place.end(client)
            found.port.go_on()
            found.router.sockets[0].go_on()
            assert session.close == "client"

    run(main)


def test_a_share_is_put_off_once(run: Run) -> None:
    """Events while a share waits for its turn change nothing: the handler stands in the queue once."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                await client.ask(echo.header + b"x")
                for end in (place.one.port, place.one.router.sockets[0]):
                    end.queued = True
                    end.on_ready()
                client.send(echo.header + b"y")
                await turns()
                assert len(echo.received) == 1
                place.one.port.go_on()
                await until(lambda: len(echo.received) == 2)
                await turns()
                place.one.router.sockets[0].go_on()
                assert unwrap(await client.receive()) == (echo.address, b"y")

    run(main)


def test_a_shared_port_tells_clients_apart(run: Run, kernel: str) -> None:
    """Both send to the listener's port; each gets its own answers, and each is counted by itself."""

    async def main() -> None:
        async with Place(Udp(ports="shared")) as place:
            async with association(place.address, ANY) as one, association(place.address, ANY) as two:
                assert one.relay == two.relay == place.address
                with destination() as echo, udp_socket() as nobody:
                    nobody.sendto(echo.header + b"nobody's", (str(one.relay.host), one.relay.port))
                    for number in range(100):
                        one.send(echo.header + b"one%d" % number)
                        two.send(echo.header + b"two%d" % number)
                    for number in range(100):
                        assert unwrap(await one.receive()) == (echo.address, b"one%d" % number)
                        assert unwrap(await two.receive()) == (echo.address, b"two%d" % number)
                    assert len({sender for _, sender in echo.received}) == 2
                    session = await place.end(one)
                    assert (session.datagrams_up, session.datagrams_down, session.drops) == (100, 100, {})
                    assert unwrap(await two.ask(echo.header + b"still here")) == (echo.address, b"still here")
                assert (await place.end(two)).datagrams_up == 101
            await until(lambda: not place.server.parts.associations.shared)
            with udp_socket(port=place.address.port):
                pass

    run(main)


def test_an_association_that_never_sent_leaves_its_place(run: Run) -> None:
    """Of several that are expected from one address, one that ends is expected no more."""

    async def main() -> None:
        shared = Udp(ports="shared")
        async with Place(shared) as place, association(place.address) as one, association(place.address) as two:
            await place.end(one)
            with destination() as echo:
                assert unwrap(await two.ask(echo.header + b"two")) == (echo.address, b"two")

    run(main)


def test_senders_are_forgotten_in_the_order_of_their_first_datagram(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association remembers the headers of so many senders; a forgotten one is simply new again."""
    monkeypatch.setattr(udp_sockets, "MAX_SENDERS", 1)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as one, destination() as two:
                for echo in (one, two, one):
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                    assert len(place.one.senders) == 1

    run(main)


def test_answers_beyond_a_limit_are_dropped(run: Run, kernel: str) -> None:
    """Those that there is no room for; the client hears of the others only."""

    async def main() -> None:
        limits = make_config({"limits": {"bandwidth": "1 kB/s", "burst": 5000}}).limits
        async with Place(limits=limits) as place, association(place.address) as client:
            with destination(answer=lambda data, sender: [(bytes(1500), sender)] * 10) as echo:
                client.send(echo.header)
                await until(lambda: place.drops == {"limited": 7})
                for _ in range(3):
                    assert unwrap(await client.receive()) == (echo.address, bytes(1500))

    run(main)


@pytest.mark.parametrize(("sources", "expected"), [(["127.0.0.9"], "127.0.0.9"), ([], "127.0.0.1")])
def test_datagrams_come_from_an_origin(run: Run, sources: list[str], expected: str) -> None:
    """From its source where it has one, else from wherever the system chooses."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.server.parts.associations.binding = SourceBinding([parse_network(text) for text in sources])
            with destination() as echo:
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                assert echo.received[0][1][0] == expected

    run(main)


def test_who_is_inspected_gets_one_by_one(run: Run, kernel: str) -> None:
    """What destinations send is shown whole, sender by sender, to whoever looks; a stranger's is dropped before."""

    async def main() -> None:
        async with Place() as place:
            inspector = place.server.parts.associations.inspector = Inspector(pass_on)
            async with association(place.address) as client:
                answers = [b"one", b"two", b"", b"three"]
                with destination(answer=lambda data, sender: [(answer, sender) for answer in answers]) as echo:
                    client.send(echo.header + b"x")
                    got = [unwrap(await client.receive()) for _ in answers]
                    assert got == [(echo.address, answer) for answer in answers]
                    assert inspector.payloads == [("up", b"x"), *(("down", answer) for answer in answers)]
                    with udp_socket("127.0.0.2") as stranger:
                        stranger.sendto(b"boo", ("127.0.0.1", echo.received[0][1][1]))
                        await until(lambda: place.drops == {"unsolicited": 1})
                assert not place.one.senders

    run(main)


def test_new_senders_are_heard_of(run: Run, kernel: str) -> None:
    """Once; with the first datagram of one it may begin to look, also at what came with it."""

    async def main() -> None:
        answers = [b"one", b"two"]
        async with Place() as place, association(place.address) as client:
            twice = destination(answer=lambda data, sender: [(answer, sender) for answer in answers])
            with twice as one, udp_socket() as other:
                sender = parse_address(f"127.0.0.1:{other.getsockname()[1]}")
                watcher = Watcher(place.one, ("down", sender))
                for _ in range(2):
                    client.send(one.header + b"x")
                    assert [unwrap(await client.receive())[1] for _ in answers] == answers
                for _ in range(2):
                    other.sendto(b"y", ("127.0.0.1", one.received[0][1][1]))
                    assert unwrap(await client.receive()) == (sender, b"y")
                assert watcher.heard == [("up", one.address), ("down", one.address), ("down", sender)]
                assert watcher.inspector.payloads == [("down", b"y")] * 2

    run(main)
