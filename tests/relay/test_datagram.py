"""Associations, from outside: what passes, what does not and why, and that everything ends."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv6Address
from typing import Any

import pytest

from conftest import Run
from datagrams import FEATURES, Client, association, destination, udp_socket, unwrap, use_features
from doubles import LOOPBACK, FakeResolver, config, no_descriptors_left
from sockets import turns, until
from support import client, reset_on_close
from tabi import Server, Session
from tabi.config import Listen, Udp
from tabi.net import datagram as net_datagram
from tabi.policy.guard import permit_outer
from tabi.relay import datagram
from tabi.relay.datagram import FORGET_REFUSAL, MAX_LOOKUPS, MAX_WAITING
from tabi.session import Drop
from tabi.wire.address import Address, parse_address
from tabi.wire.datagram import MAX_DATAGRAM, encode_header

SIZES = (0, 1, 1472, 9000, 60000)
ANY = Address(parse_address("0.0.0.0:0").host, 0)


@pytest.fixture(params=FEATURES)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of what the kernel may offer."""
    use_features(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client counts as one from outside."""
    monkeypatch.setattr("tabi.ingress.associate.permit_for", lambda host: permit_outer)


class Place:
    """A server and the sessions that ended at it: ``async with Place() as place``."""

    def __init__(
        self, udp: Udp | None = None, url: str = LOOPBACK, names: dict[str, list[str]] | None = None, **seconds: float
    ) -> None:
        self.resolver = FakeResolver(names)
        self.ended: asyncio.Queue[Session] = asyncio.Queue()
        self.server = Server(
            config=config(Listen(url, udp=udp or Udp()), **seconds),
            resolver=self.resolver,
            on_session=self.ended.put_nowait,
        )

    async def __aenter__(self) -> Place:
        await self.server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.server.close()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.server.addresses[0]

    @property
    def one(self) -> datagram.Association:
        """The association that there is."""
        (found,) = self.server.associations.active
        return found

    @property
    def drops(self) -> dict[Drop, int]:
        """What it has dropped so far."""
        assert self.one.session.drops is not None
        return self.one.session.drops

    async def end(self, client: Client) -> Session:
        """End an association and return its session."""
        client.leave()
        return await self.ended.get()


# --- what passes ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagrams_of_every_size_pass_whole(run: Run, kernel: str, host: str) -> None:
    """There and back, from none to 60,000 octets, over IPv4 and IPv6; counted in datagrams and octets of payload."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination(host) as echo:
                for size in SIZES:
                    payload = bytes([size % 251]) * size
                    assert unwrap(await client.ask(echo.header + payload)) == (echo.address, payload)
                assert [len(data) for data, _ in echo.received] == list(SIZES)
            session = await place.end(client)
        assert (session.up, session.down) == (sum(SIZES), sum(SIZES))
        assert (session.datagrams_up, session.datagrams_down, session.drops) == (5, 5, {})
        assert (session.command, session.close, session.error, session.reply_code) == ("associate", "client", None, 0)

    run(main)


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


def test_destinations_take_turns(run: Run, kernel: str) -> None:
    """Datagrams of one batch, of several lengths, to several destinations over both families: each gets its own."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as one, destination() as two, destination("::1") as three:
                there = [one, two, three, one, one, three, three, two, one]
                for _ in range(3):  # new ones first, then known ones
                    for number, echo in enumerate(there):
                        client.send(echo.header + bytes(number) + b"!")
                    got = [unwrap(await client.receive()) for _ in there]
                    assert set(got) == {(echo.address, bytes(number) + b"!") for number, echo in enumerate(there)}
                for echo in (one, two, three):
                    lengths = [len(data) - 1 for data, _ in echo.received]
                    assert lengths == [number for number, other in enumerate(there) if other is echo] * 3

    run(main)


def test_an_ipv4_address_dressed_as_ipv6_is_reached_over_ipv4(run: Run) -> None:
    """::ffff:127.0.0.1 is 127.0.0.1, and the reply says so."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                dressed = Address(IPv6Address("::ffff:127.0.0.1"), echo.address.port)
                assert unwrap(await client.ask(encode_header(dressed) + b"x")) == (echo.address, b"x")

    run(main)


def test_a_client_over_ipv6(run: Run, kernel: str) -> None:
    """The control connection is over IPv6, and so is the port: destinations may be of either family."""

    async def main() -> None:
        async with Place(url="socks5://[::1]:0") as place, association(place.address, host="::1") as client:
            assert client.relay.host == IPv6Address("::1")
            with destination() as one, destination("::1") as two:
                for echo in (one, two):
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

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


# --- names ---


def test_a_name_is_resolved_once(run: Run, kernel: str) -> None:
    """What waits for the resolver is sent in order; from then on the name is known while the association lives."""

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(Address("here.test", echo.address.port))
                place.resolver.answering.clear()
                for payload in (b"one", b"two"):
                    client.send(header + payload)
                await until(lambda: place.resolver.asked and len(place.one.ways[header].waiting) == 2)
                place.resolver.answering.set()
                assert unwrap(await client.receive()) == (echo.address, b"one")
                assert unwrap(await client.receive()) == (echo.address, b"two")
                assert unwrap(await client.ask(header + b"three")) == (echo.address, b"three")
                assert place.resolver.asked == ["here.test"]

    run(main)


def test_waiting_for_a_name_holds_up_nobody(run: Run) -> None:
    """Datagrams to addresses pass while the resolver does not answer, and the association can end meanwhile."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            with destination() as echo:
                client.send(encode_header(Address("slow.test", 9)) + b"x")
                assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")
            session = await place.end(client)
            assert session.drops == {"waiting": 1}

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


def test_of_a_name_with_both_families_the_clients_own_is_taken(run: Run) -> None:
    """Nobody tells when a datagram arrives nowhere, so that there is no second try."""

    async def main() -> None:
        async with Place(names={"both.test": ["::1", "127.0.0.1"]}) as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(Address("both.test", echo.address.port))
                assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")

    run(main)


def test_a_name_that_is_not_found_is_asked_for_again_later(run: Run) -> None:
    """Its datagrams are dropped and counted, the log has the reason, and after a while the resolver is asked anew."""

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            place.server.associations.time = lambda: now
            header = encode_header(Address("no.test", 9))
            client.send(header + b"x")
            await until(lambda: place.drops == {"unresolved": 1})
            client.send(header + b"x")
            await until(lambda: place.drops == {"unresolved": 2})
            assert place.resolver.asked == ["no.test"]
            now = FORGET_REFUSAL
            with destination() as echo:
                place.resolver.names["no.test"] = ["127.0.0.1"]
                header = encode_header(Address("no.test", echo.address.port))
                assert unwrap(await client.ask(header + b"x")) == (echo.address, b"x")
            client.send(encode_header(Address("no.test", 9)) + b"x")
            await until(lambda: len(place.resolver.asked) == 3)
            session = await place.end(client)
            assert session.error == "no.test: domain name not found"

    run(main)


def test_a_resolver_that_does_not_answer_has_a_deadline(run: Run) -> None:
    """``timeouts.connect`` is the resolver's too."""

    async def main() -> None:
        async with Place(connect=0.02) as place, association(place.address) as client:
            place.resolver.answering.clear()
            client.send(encode_header(Address("slow.test", 9)) + b"x")
            await until(lambda: place.drops)
            session = await place.end(client)
            assert (session.drops, session.error) == ({"unresolved": 1}, "slow.test: not resolved within 0.02 s")

    run(main)


def test_a_name_that_changed_its_mind_is_resolved_in_vain(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer for a destination that was forgotten meanwhile harms nobody."""
    monkeypatch.setattr(datagram, "MAX_WAYS", 1)

    async def main() -> None:
        async with Place(names={"here.test": ["127.0.0.1"]}) as place, association(place.address) as client:
            place.resolver.answering.clear()
            with destination() as echo:
                client.send(encode_header(Address("here.test", echo.address.port)) + b"named")
                await until(lambda: place.resolver.asked)
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                place.resolver.answering.set()
                assert unwrap(await client.receive()) == (echo.address, b"named")

    run(main)


def test_what_waits_for_names_is_bounded(run: Run) -> None:
    """So many datagrams for a name, and so many names at a time; the rest is dropped and counted."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            place.resolver.answering.clear()
            for _ in range(MAX_WAITING + 3):
                client.send(encode_header(Address("name0.test", 9)) + b"x")
            for number in range(MAX_LOOKUPS + 2):
                client.send(encode_header(Address(f"name{number}.test", 9)) + b"x")
            await until(lambda: place.drops.get("waiting", 0) == 3 + 1 + 2 and len(place.resolver.asked) == MAX_LOOKUPS)
            place.resolver.answering.set()
            await until(lambda: not place.server.associations.lookups)
            assert place.drops == {"waiting": 6, "unresolved": MAX_WAITING + MAX_LOOKUPS - 1}

    run(main)


# --- whose datagrams pass ---


def test_only_the_client_is_heard(run: Run, kernel: str) -> None:
    """Another address, and after the first datagram another port: dropped and counted, before and after."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            relay = (str(client.relay.host), client.relay.port)
            with udp_socket("127.0.0.2") as elsewhere, udp_socket() as later, destination() as echo:
                elsewhere.sendto(echo.header + b"too early", relay)
                await until(lambda: place.one.port.foreign == 1)
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                elsewhere.sendto(echo.header + b"another address", relay)
                later.sendto(echo.header + b"another port", relay)
                assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")
                assert [data for data, _ in echo.received] == [b"x", b"y"]
            session = await place.end(client)
            assert session.drops == {"foreign": 3}

    run(main)


def test_a_declared_port_is_the_only_one(run: Run) -> None:
    """DST.PORT of the request says which port is the client's: nobody who is quicker takes its place."""

    async def main() -> None:
        async with Place() as place, association(place.address, declared=ANY) as client:
            with udp_socket() as quicker, destination() as echo:
                quicker.sendto(echo.header + b"quicker", (str(client.relay.host), client.relay.port))
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                assert [data for data, _ in echo.received] == [b"x"]
            assert (await place.end(client)).drops == {"foreign": 1}

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
            assert (await place.end(client)).drops == {"stranger": 1}

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


def test_hosts_are_forgotten_in_the_order_of_their_first_contact(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association remembers so many destinations, senders and hosts; a forgotten one is simply new again."""
    monkeypatch.setattr(datagram, "MAX_WAYS", 2)
    monkeypatch.setattr(datagram, "MAX_CONTACTED", 2)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination("127.0.0.1") as one, destination("127.0.0.2") as two, destination("127.0.0.3") as three:
                for _ in range(2):
                    for echo in (one, two, three):
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                        found = place.one
                        assert max(len(found.ways), len(found.senders), len(found.contacted)) <= 2
                one.sock.sendto(b"forgotten", ("127.0.0.1", two.received[0][1][1]))
                await until(lambda: place.drops == {"stranger": 1})

    run(main)


# --- what does not pass ---


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\0", b"\0\0\0", b"\0\0\0\1\x7f\0\0\1\0", b"\0\0\0\2" + bytes(20), b"\0\0\0\3\0\0\x09", b"\xff" * 300],
    ids=["nothing", "an octet", "no ATYP", "cut", "ATYP 2", "an empty name", "ff"],
)
def test_rubbish_between_good_ones(run: Run, kernel: str, rubbish: bytes) -> None:
    """A datagram that is none of section 7 is dropped and counted; those around it pass."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                for _ in range(2):
                    for data in (echo.header + b"one", rubbish, echo.header + b"two"):
                        client.send(data)
                    assert unwrap(await client.receive()) == (echo.address, b"one")
                    assert unwrap(await client.receive()) == (echo.address, b"two")
            assert (await place.end(client)).drops == {"malformed": 2}

    run(main)


def test_port_0_is_no_destination(run: Run) -> None:
    """Nobody can be there."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            client.send(encode_header(parse_address("127.0.0.1:0")) + b"x")
            await until(lambda: place.drops == {"malformed": 1})

    run(main)


@pytest.mark.usefixtures("outer")
def test_the_guard_is_asked_for_every_destination(run: Run) -> None:
    """A client from outside reaches no inner address, by number or by name; the log says which, and why."""

    async def main() -> None:
        names = {"inner.test": ["127.0.0.1"], "mixed.test": ["192.0.2.1", "10.0.0.1"]}
        async with Place(names=names) as place, association(place.address) as client:
            with destination() as echo:
                client.send(echo.header + b"one")
                client.send(echo.header + b"two")
                await until(lambda: place.drops == {"denied": 2})
                for number, name in enumerate(names, 3):
                    client.send(encode_header(Address(name, echo.address.port)) + b"x")
                    await until(lambda number=number: place.drops == {"denied": number})  # type: ignore[misc]
                assert echo.received == []
            session = await place.end(client)
            assert session.error == "guard: 127.0.0.1 is in 127.0.0.0/8, which a client from outside may not reach"

    run(main)


def test_what_the_system_does_not_take(run: Run, kernel: str) -> None:
    """A send that fails (here to broadcast, which needs a permission) is counted, and the association goes on."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                header = encode_header(parse_address("255.255.255.255:9"))
                client.send(header + b"one")  # a new destination
                client.send(header + b"two")  # one that is known
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
            session = await place.end(client)
            assert (session.drops, session.datagrams_up) == ({"unsent": 2}, 1)

    run(main)


def test_a_way_that_does_not_take_gso_is_remembered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that a send has shown is the association's from then on."""
    use_features("batches", monkeypatch)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                await client.ask(echo.header + b"x")
                found = place.one
                found.settle_up(0, 700)
                found.settle_up(0, 900)
                assert found.limit == 700
                for _ in range(3):
                    client.send(echo.header + bytes(800))
                for _ in range(3):
                    assert unwrap(await client.receive()) == (echo.address, bytes(800))

    run(main)


def test_no_socket_toward_a_destination(run: Run) -> None:
    """With the descriptors used up, datagrams are dropped and counted; when there are some again, they pass."""

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            place.server.associations.time = lambda: now
            with destination() as echo:
                with no_descriptors_left():
                    client.send(echo.header + b"x")
                    await until(lambda: place.drops == {"unsent": 1})
                client.send(echo.header + b"x")
                await until(lambda: place.drops == {"unsent": 2})
                now = FORGET_REFUSAL
                assert unwrap(await client.ask(echo.header + b"y")) == (echo.address, b"y")
            session = await place.end(client)
            assert session.error == "127.0.0.1: Too many open files"

    run(main)


def test_a_socket_that_cannot_be_registered_is_closed(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a port nor a socket toward destinations stays open where the reactor does not take it."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:

            def refuse(fd: int, handler: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(place.server.associations.reactor, "register_reader", refuse)
            with destination() as echo:
                client.send(echo.header + b"x")
                await until(lambda: place.drops == {"unsent": 1})
            with pytest.raises(OSError, match="No space left"):
                place.server.associations.open_port(place.address, Udp())

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


# --- fragments ---


def fragment(frag: int, header: bytes, payload: bytes) -> bytes:
    """A datagram with FRAG."""
    return header[:2] + bytes([frag]) + header[3:] + payload


def test_fragments_become_one_datagram(run: Run, kernel: str) -> None:
    """In order they are put together; a whole datagram in between passes and the fragments before it are given up."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                for frag, payload in ((1, b"all "), (2, b"in "), (0x83, b"one")):
                    client.send(fragment(frag, echo.header, payload))
                assert unwrap(await client.receive()) == (echo.address, b"all in one")
                client.send(fragment(1, echo.header, b"given up"))
                assert unwrap(await client.ask(echo.header + b"whole")) == (echo.address, b"whole")
                client.send(fragment(0x82, echo.header, b"too late"))
                assert unwrap(await client.ask(echo.header + b"again")) == (echo.address, b"again")
                assert [data for data, _ in echo.received] == [b"all in one", b"whole", b"again"]
            session = await place.end(client)
            assert (session.drops, session.datagrams_up) == ({"fragment": 2}, 3)

    run(main)


def test_fragments_are_dropped_where_the_listener_says_so(run: Run) -> None:
    """fragments = "drop": each is counted, none is relayed."""

    async def main() -> None:
        async with Place(Udp(fragments="drop")) as place, association(place.address) as client:
            with destination() as echo:
                client.send(fragment(1, echo.header, b"one"))
                client.send(fragment(0x82, echo.header, b"two"))
                assert unwrap(await client.ask(echo.header + b"whole")) == (echo.address, b"whole")
            assert (await place.end(client)).drops == {"fragment": 2}

    run(main)


def test_fragments_wait_for_a_time_and_within_a_bound(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep gives them up when their time is over, so does the end; all associations share a bound."""
    monkeypatch.setattr(datagram, "FRAGMENT_MEMORY", 10)

    async def main() -> None:
        now = 0.0
        async with Place() as place, association(place.address) as client:
            associations = place.server.associations
            associations.time = lambda: now
            with destination() as echo:
                client.send(fragment(1, echo.header, b"12345678"))
                await until(lambda: associations.fragments == 8)
                associations.sweep(9.9)
                client.send(fragment(2, echo.header, b"123"))
                await until(lambda: place.drops == {"fragment": 1})
                associations.sweep(10.0)
                assert (place.drops, associations.fragments) == ({"fragment": 2}, 0)
                client.send(fragment(1, echo.header, b"12345678"))
                await until(lambda: associations.fragments == 8)
            session = await place.end(client)
            assert (session.drops, associations.fragments) == ({"fragment": 3}, 0)

    run(main)


# --- fairness ---


@pytest.mark.parametrize("share", [1, 1 << 20])
def test_a_flood_is_carried_in_shares(run: Run, kernel: str, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    """What is more than a socket's share of a turn comes in the next, both ways; nothing is lost."""
    monkeypatch.setattr(datagram, "SHARE", share)
    monkeypatch.setattr(datagram, "SHARE_BATCHES", 1)
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
            port = found.port
            port.on_ready()
            found.on_reply()
            found.on_reply_ipv6()
            found.on_control()
            found.close("error")
            assert session.close == "client"

    run(main)


# --- the control connection ---


def test_what_is_said_on_the_control_connection_is_ignored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Octets behind the request mean nothing, however many they are; the association goes on."""
    monkeypatch.setattr(datagram, "SHARE_BATCHES", 2)

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            with destination() as echo:
                client.writer.write(bytes(8192))  # just the share of a turn
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                client.writer.write(bytes(1 << 20))
                await client.writer.drain()
                client.writer.write(b"a little")
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
            client.writer.write_eof()
            assert (await place.ended.get()).close == "client"

    run(main)


def test_octets_behind_the_request_and_the_end_at_once(run: Run) -> None:
    """A client that asks, goes on talking and leaves in one segment gets its reply, and the association ends."""

    async def main() -> None:
        async with Place() as place:
            reader, writer = await asyncio.open_connection(str(place.address.host), place.address.port)
            writer.write(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6) + b"more" + bytes(5000))
            writer.write_eof()
            assert (await reader.read())[:4] == b"\x05\x00\x05\x00"
            writer.close()
            await writer.wait_closed()
            session = await place.ended.get()
            assert (session.close, session.reply_code) == ("client", 0)

    run(main)


def test_a_reset_ends_the_association(run: Run) -> None:
    """The log says how it ended; the port is dead at once."""

    async def main() -> None:
        async with Place() as place, association(place.address) as client:
            reset_on_close(client.writer.get_extra_info("socket"))
            client.writer.transport.abort()
            session = await place.ended.get()
            assert session.close == "reset"
            with udp_socket(port=client.relay.port):
                pass

    run(main)


def test_a_reset_that_the_reply_meets(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is gone before its reply is a reset, and leaves nothing behind."""
    send_answer = datagram.Association.send_answer

    async def main() -> None:
        async with Place() as place, client(place.address) as (_, writer):

            def vanish_first(self: datagram.Association, answer: bytes) -> None:
                reset_on_close(writer.get_extra_info("socket"))
                writer.get_extra_info("socket")._sock.close()  # now, not in the loop's next turn
                send_answer(self, answer)

            monkeypatch.setattr(datagram.Association, "send_answer", vanish_first)
            writer.write(b"\x05\x01\x00" + b"\x05\x03\x00\x01" + bytes(6))
            assert (await place.ended.get()).close == "reset"
            writer.transport.abort()

    run_once(main)


# --- the end ---


def test_an_association_that_nobody_uses_ends(run: Run) -> None:
    """After ``udp_idle`` seconds without a datagram; what was dropped does not count as use."""

    async def main() -> None:
        now = 0.0
        async with Place(udp_idle=100) as place, association(place.address) as client:
            associations = place.server.associations
            associations.time = lambda: now
            place.one.quiet_since = now
            with destination() as echo:
                for now in (90.0, 180.0, 270.0):
                    await client.ask(echo.header + b"x")
                    associations.sweep(now)
                client.send(b"rubbish")
                await until(lambda: place.drops)
                associations.sweep(369.9)
                assert associations.active
                associations.sweep(370.0)
            session = await place.ended.get()
            assert (session.close, session.datagrams_up) == ("idle", 3)
            assert await client.reader.read() == b""

    run(main)


def test_the_sweep_runs_by_itself(run: Run) -> None:
    """Nobody has to call it, and it rests while there is nothing to sweep."""

    async def main() -> None:
        async with Place(udp_idle=0.05) as place, association(place.address):
            assert (await place.ended.get()).close == "idle"
            await until(lambda: place.server.associations.timer is None)

    run(main)


# --- one port for all ---


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
            assert not place.server.associations.shared
            with udp_socket(port=place.address.port):
                pass

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


def test_an_association_that_never_sent_leaves_its_place(run: Run) -> None:
    """Of several that are expected from one address, one that ends is expected no more."""

    async def main() -> None:
        shared = Udp(ports="shared")
        async with Place(shared) as place, association(place.address) as one, association(place.address) as two:
            await place.end(one)
            with destination() as echo:
                assert unwrap(await two.ask(echo.header + b"two")) == (echo.address, b"two")

    run(main)


def test_what_a_shared_port_dropped_is_said_when_it_closes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody's datagrams belong to no session's line."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with Place(Udp(ports="shared")) as place, association(place.address) as client:
            with udp_socket("127.0.0.2") as nobody:
                nobody.sendto(b"x", (str(client.relay.host), client.relay.port))
                await until(lambda: place.one.port.foreign)
            await place.end(client)

    run(main)
    assert "datagrams of nobody's: 1" in caplog.text


# --- many ---


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
            associations = place.server.associations
            assert not associations.active
            assert not associations.lookups
            assert not place.server.sessions
            await turns()
            assert len(associations.reactor.handlers) == 1  # the listener

    run_once(main)
