"""An association, between a control connection and a relay whose other ends are in the test's hands."""

from __future__ import annotations

import asyncio
import errno
import socket
from array import array
from collections.abc import Coroutine
from ipaddress import IPv6Address, ip_address
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run, run_in_loop
from sockets import reset, send, tcp_pair, turns
from tabi.egress.associate import Association
from tabi.errors import DialError
from tabi.net import datagram as datagrams
from tabi.net.batch import BATCH, Sock
from tabi.net.datagram import PLAIN, SINGLE, DatagramIo
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.net.udp_path import UdpPath
from tabi.wire.address import Address, from_sockaddr, parse_address
from tabi.wire.datagram import LAST, MAX_DATAGRAM, encode_header

SOMEWHERE = parse_address("192.0.2.1:53")


@pytest.fixture(params=[None, SINGLE, PLAIN], ids=["best", "single", "plain"])
def io(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of taking datagrams from the kernel."""
    if request.param is not None:
        monkeypatch.setattr(datagrams.threads, "io", DatagramIo(request.param), raising=False)


async def find_nothing(name: str) -> list[Any]:
    """There are no names here."""
    raise NotImplementedError


def path_of(controls: list[Stream], relays: list[Address]) -> UdpPath:
    """What a way out through proxies opens."""
    path = UdpPath(None, find_nothing)
    for control, relay in zip(controls, relays, strict=True):
        path.add(None, control, relay)
    return path


class Bed:
    """An association with everything around it; through a chain where there are ``hops``."""

    def __init__(self, *hops: str, host: str = "127.0.0.1") -> None:
        self.relay = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.relay.setblocking(False)
        self.relay.bind((host, 0))
        self.far, controls = [], []
        for _ in range(1 + len(hops)):
            near, far = tcp_pair()
            controls.append(Stream(get_reactor(), near))
            self.far.append(far)
        relays = [from_sockaddr(self.relay.getsockname()), *map(parse_address, hops)]
        self.association = Association(path_of(controls, relays))

    @property
    def client(self) -> Any:
        """The association's own address."""
        return self.association.udp.sock.getsockname()

    async def arrived(self) -> bytes:
        """The next datagram at the relay."""
        return await asyncio.get_running_loop().sock_recv(self.relay, 65536)

    def deliver(self, *datagrams: bytes) -> None:
        """Let the relay send."""
        for datagram in datagrams:
            self.relay.sendto(datagram, self.client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.association.close()
        for sock in (self.relay, *self.far):
            sock.close()


def wrap(payload: bytes, source: Address = SOMEWHERE, frag: int = 0) -> bytes:
    """A datagram as a relay sends it."""
    return encode_header(source, frag) + payload


async def fails(awaitable: Coroutine[Any, Any, object], error: type[Exception], match: str) -> None:
    """Something must fail so."""
    with pytest.raises(error, match=match):
        await awaitable


async def waiting(main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has got as far as it gets by itself."""
    task = asyncio.get_running_loop().create_task(main)
    await turns()
    assert not task.done()
    return task


@pytest.mark.parametrize(
    ("destination", "header"),
    [
        (("192.0.2.1", 53), b"\0\0\0\x01\xc0\0\x02\x01\0\x35"),
        (("2001:db8::1", 53), b"\0\0\0\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\0\x35"),
        (("Example.com", 65535), b"\0\0\0\x03\x0bExample.com\xff\xff"),
        (("bücher.invalid", 53), b"\0\0\0\x03\x15xn--bcher-kva.invalid\0\x35"),
        (SOMEWHERE, b"\0\0\0\x01\xc0\0\x02\x01\0\x35"),
    ],
)
def test_what_is_sent_bears_the_header(run: Run, destination: Any, header: bytes) -> None:
    """Octet by octet, for each kind of host; a second datagram to the same place is no different."""

    async def main() -> None:
        with Bed() as bed:
            for payload in (b"question", b"", b"again"):
                await bed.association.send(payload, destination)
                assert await bed.arrived() == header + payload

    run(main)


@pytest.mark.usefixtures("io")
def test_what_is_received_comes_with_its_source(run: Run) -> None:
    """In order, empty ones too, from IPv4, IPv6 and names; both what waits already and what comes later."""
    sources = [SOMEWHERE, Address(IPv6Address("2001:db8::1"), 1), Address("example.com", 65535)]

    async def main() -> None:
        with Bed() as bed:
            for _ in range(2):
                bed.deliver(*(wrap(payload, source) for source in sources for payload in (b"a", b"")))
                for source in sources:
                    assert await bed.association.receive() == (b"a", source)
                    assert await bed.association.receive() == (b"", source)
                later = await waiting(bed.association.receive())
                bed.deliver(wrap(b"later"))
                assert await later == (b"later", SOMEWHERE)
            assert bed.association.dropped == 0

    run(main)


@pytest.mark.usefixtures("io")
@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 60000, MAX_DATAGRAM - 10])
@pytest.mark.every_hosting
def test_datagrams_are_whole_up_to_the_longest(run: Run, size: int) -> None:
    """Both ways, at every size that UDP has."""
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)

    async def main() -> None:
        with Bed() as bed:
            await bed.association.send(payload, SOMEWHERE)
            assert await bed.arrived() == wrap(payload)
            bed.deliver(wrap(payload))
            assert await bed.association.receive() == (payload, SOMEWHERE)

    run(main)


@pytest.mark.parametrize(
    ("data", "destination", "match"),
    [
        (bytes(MAX_DATAGRAM - 9), ("192.0.2.1", 53), "a datagram of 65498 octets, expected at most 65497"),
        (bytes(MAX_DATAGRAM - 17), ("example.com", 53), "a datagram of 65490 octets, expected at most 65489"),
        (b"", ("192.0.2.1", 0), "0 is not a port"),
        (b"", ("192.0.2.1", 65536), "65536 is not a port"),
        (b"", ("192.0.2.1", "53"), "'53' is not a port"),
        (b"", ("", 53), "host name"),
        (b"", ("white space", 53), "white space"),
        (b"", Address("192.0.2.1", 0), "0 is not a port"),
    ],
)
def test_what_cannot_be_sent_is_a_value_error(run_once: Run, data: bytes, destination: Any, match: str) -> None:
    """Nothing of it is sent, and the association goes on."""

    async def main() -> None:
        with Bed() as bed:
            await fails(bed.association.send(data, destination), ValueError, match)
            await bed.association.send(b"next", SOMEWHERE)
            assert await bed.arrived() == wrap(b"next")

    run_once(main)


@pytest.mark.parametrize(
    ("destination", "error", "match"),
    [
        ((None, 53), TypeError, "None is not a host"),
        ((b"127.0.0.1", 53), TypeError, r"b'127\.0\.0\.1' is not a host"),
        (("192.0.2.1", 53.0), ValueError, r"53\.0 is not a port"),
        (("192.0.2.1", True), ValueError, "True is not a port"),
        (("192.0.2.1:53", 53), ValueError, "without a port"),
        (None, TypeError, r"None is not a destination, expected \(host, port\)"),
        (("192.0.2.1",), TypeError, "is not a destination"),
        (("::1", 53, 0, 0), TypeError, "is not a destination"),
    ],
)
def test_what_is_no_destination_is_told(run_once: Run, destination: Any, error: type[Exception], match: str) -> None:
    """Though one that is equal was sent to just before: 53.0 is 53, and True is 1."""

    async def main() -> None:
        with Bed() as bed:
            for port in (1, 53):
                await bed.association.send(b"x", ("192.0.2.1", port))
            await fails(bed.association.send(b"x", destination), error, match)

    run_once(main)


def test_an_address_object_is_a_host(run_once: Run) -> None:
    """As the source of what was received is."""

    async def main() -> None:
        with Bed() as bed:
            for host in (ip_address("192.0.2.1"), ip_address("::1")):
                await bed.association.send(b"x", (host, 53))
                assert await bed.arrived() == wrap(b"x", Address(host, 53))

    run_once(main)


def test_a_view_is_measured_in_octets(run_once: Run) -> None:
    """Not in its items."""

    async def main() -> None:
        with Bed() as bed:
            await bed.association.send(memoryview(array("I", [1, 2])), SOMEWHERE)
            assert await bed.arrived() == wrap(array("I", [1, 2]).tobytes())
            long = memoryview(array("I", bytes(4 * 16375)))
            await fails(bed.association.send(long, SOMEWHERE), ValueError, "a datagram of 65500 octets")

    run_once(main)


def test_a_relay_behind_may_be_ipv4_inside_ipv6(run: Run) -> None:
    """A dual-stack proxy in front of it writes its address so."""

    async def main() -> None:
        with Bed("192.0.2.2:1002") as bed:
            bed.deliver(wrap(wrap(b"answer"), Address(IPv6Address("::ffff:192.0.2.2"), 1002)))
            assert await bed.association.receive() == (b"answer", SOMEWHERE)

    run(main)


def test_a_proxy_that_writes_much_and_ends(run: Run) -> None:
    """Its octets mean nothing, but they must not keep its end from being noticed."""

    async def main() -> None:
        with Bed() as bed:
            bed.far[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            receiving = await waiting(bed.association.receive())
            await send(bed.far[0], bytes(16 << 20))
            bed.far[0].close()
            await fails(receiving, ConnectionResetError, "ended")  # type: ignore[arg-type]

    run(main)


def test_the_relay_sees_the_address_of_the_control_connection(run: Run) -> None:
    """A client with several addresses would else be taken for a stranger."""

    async def main() -> None:
        near, far = (socket.socket() for _ in range(2))
        with socket.create_server(("127.0.0.1", 0)) as listener, far, Bed() as bed:
            near.bind(("127.0.0.3", 0))
            near.connect(listener.getsockname())
            near.setblocking(False)
            async with Association(path_of([Stream(get_reactor(), near)], [bed.association.relay])) as association:
                await association.send(b"x", SOMEWHERE)
                _, client = await asyncio.get_running_loop().sock_recvfrom(bed.relay, 100)
                assert client[0] == "127.0.0.3"

    run(main)


def test_a_relay_of_the_other_family(run: Run) -> None:
    """A control connection over IPv4 and a relay at ::1."""

    async def main() -> None:
        with Bed(host="::1") as bed:
            await bed.association.send(b"x", SOMEWHERE)
            assert await bed.arrived() == wrap(b"x")
            bed.deliver(wrap(b"y"))
            assert await bed.association.receive() == (b"y", SOMEWHERE)

    run(main)


def test_no_way_to_the_relay_is_a_dial_error(run_once: Run) -> None:
    """What the system says, with the relay's address; no socket stays open."""

    async def main() -> None:
        near, far = tcp_pair()
        control = Stream(get_reactor(), near)
        with far, pytest.raises(DialError, match=r"255\.255\.255\.255:9: permission denied") as caught:
            Association(path_of([control], [parse_address("255.255.255.255:9")]))
        assert caught.value.errno == errno.EACCES
        control.close()

    run_once(main)


def test_rubbish_and_strangers_are_dropped_and_counted(run: Run) -> None:
    """Between good ones, which all arrive; somebody else's datagrams do not even get here."""
    rubbish = [b"", b"\0\0\0", b"\0\0\0\x09" + bytes(20), b"\0\0\0\x01\x7f", b"\0\0\0\x03\0\0\x35"]

    async def main() -> None:
        with Bed() as bed, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for number, datagram in enumerate(rubbish):
                stranger.sendto(wrap(b"forged"), bed.client)
                bed.deliver(datagram, wrap(b"%d" % number))
            for number in range(len(rubbish)):
                assert await bed.association.receive() == (b"%d" % number, SOMEWHERE)
            assert bed.association.dropped == len(rubbish)

    run(main)


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_octets_from_the_relay_harm_nothing(datagrams: list[bytes]) -> None:
    """Whatever comes, a good datagram behind it is received and everything is accounted for."""

    async def main() -> None:
        with Bed() as bed:
            bed.deliver(*datagrams, wrap(b"good"))
            received = 0
            while (await bed.association.receive())[0] != b"good":
                received += 1
            assert received + bed.association.dropped <= len(datagrams)

    run_in_loop(main)


def test_fragments_are_put_together(run: Run) -> None:
    """In order they are one datagram; what never becomes whole is counted."""

    async def main() -> None:
        with Bed() as bed:
            bed.deliver(wrap(b"one ", frag=1), wrap(b"two ", frag=2), wrap(b"three", frag=3 | LAST))
            bed.deliver(wrap(b"lost", frag=2), wrap(b"whole"))
            assert await bed.association.receive() == (b"one two three", SOMEWHERE)
            assert await bed.association.receive() == (b"whole", SOMEWHERE)
            assert bed.association.dropped == 1

    run(main)


def test_a_chain_wraps_for_every_proxy(run: Run) -> None:
    """The first proxy's header stands first and names the second's relay; so for what comes back."""
    second, third = "192.0.2.2:1002", "[2001:db8::3]:1003"
    outer = encode_header(parse_address(second)) + encode_header(parse_address(third))

    async def main() -> None:
        with Bed(second, third) as bed:
            await bed.association.send(b"question", ("example.com", 53))
            assert await bed.arrived() == outer + encode_header(Address("example.com", 53)) + b"question"
            bed.deliver(
                wrap(wrap(wrap(b"forged"), parse_address(third)), parse_address("192.0.2.9:1002")),
                encode_header(parse_address(second)) + wrap(wrap(b"forged")),
                encode_header(parse_address(second)) + b"\0\0",
                outer + wrap(b"answer"),
            )
            assert await bed.association.receive() == (b"answer", SOMEWHERE)
            assert bed.association.dropped == 3
            data = bytes(MAX_DATAGRAM - 10 - 22 - 10)
            await bed.association.send(data, SOMEWHERE)
            assert len(await bed.arrived()) == MAX_DATAGRAM
            await fails(bed.association.send(data + b"x", SOMEWHERE), ValueError, "expected at most 65465")

    run(main)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.every_hosting
def test_the_end_of_a_control_connection_ends_it(run: Run, how: str, which: int) -> None:
    """Whichever of a chain it is: who waits is told, then everybody; what had arrived before is delivered first."""

    async def main() -> None:
        with Bed("192.0.2.2:1") as bed:
            receiving = await waiting(bed.association.receive())
            if how == "end":
                bed.far[which].close()
            else:
                reset(bed.far[which])
            await fails(receiving, ConnectionResetError, "the proxy has ended the association")  # type: ignore[arg-type]
            await fails(bed.association.receive(), ConnectionResetError, "ended")
            await fails(bed.association.send(b"x", SOMEWHERE), ConnectionResetError, "ended")

    run(main)


def test_what_arrived_before_the_end_is_delivered(run: Run) -> None:
    """Even if nobody has looked at the kernel's queue yet."""

    async def main() -> None:
        with Bed() as bed:
            bed.deliver(wrap(b"one"), wrap(b"two"))
            assert await bed.association.receive() == (b"one", SOMEWHERE)
            bed.deliver(wrap(b"three"))
            bed.far[0].close()
            for _ in range(5):
                await turns()
            await fails(bed.association.send(b"x", SOMEWHERE), ConnectionResetError, "ended")
            assert await bed.association.receive() == (b"two", SOMEWHERE)
            assert await bed.association.receive() == (b"three", SOMEWHERE)
            await fails(bed.association.receive(), ConnectionResetError, "ended")

    run(main)


def test_an_end_that_came_before_the_association_was_made(run: Run) -> None:
    """A proxy that ends right behind its reply is noticed all the same."""

    async def main() -> None:
        near, far = tcp_pair()
        control = Stream(get_reactor(), near)
        far.close()
        assert await control.receive() == b""
        with Bed() as bed:
            async with Association(path_of([control], [bed.association.relay])) as association:
                await fails(association.receive(), ConnectionResetError, "ended")

    run(main)


def test_octets_on_the_control_connection_mean_nothing(run: Run) -> None:
    """RFC 1928 knows none; the association goes on, and its end is still noticed."""

    async def main() -> None:
        with Bed() as bed:
            receiving = await waiting(bed.association.receive())
            bed.far[0].send(b"octets that nobody asked for" * 1000)
            for _ in range(5):
                await turns()
            bed.deliver(wrap(b"x"))
            assert await receiving == (b"x", SOMEWHERE)
            bed.far[0].close()
            await fails(bed.association.receive(), ConnectionResetError, "ended")

    run(main)


@pytest.mark.every_hosting
def test_closing_ends_everything(run: Run) -> None:
    """Who waits is told, the control connections end, and closing again does no harm."""

    async def main() -> None:
        with Bed("192.0.2.2:1") as bed:
            receiving = await waiting(bed.association.receive())
            bed.association.close()
            bed.association.close()
            await fails(receiving, ConnectionAbortedError, "the association is closed")  # type: ignore[arg-type]
            await fails(bed.association.receive(), ConnectionAbortedError, "the association is closed")
            await fails(bed.association.send(b"x", SOMEWHERE), ConnectionAbortedError, "the association is closed")
            for far in bed.far:
                assert await asyncio.get_running_loop().sock_recv(far, 1) == b""

    run(main)


@pytest.mark.usefixtures("io")
def test_iterating_ends_when_it_is_closed(run: Run) -> None:
    """Each datagram comes once, with its source; closing ends the loop, while it waits or before it begins."""

    async def main() -> None:
        with Bed() as bed:
            bed.deliver(wrap(b"one"), b"rubbish", wrap(b"two", SOMEWHERE))
            received = []
            async for datagram in bed.association:
                received.append(datagram)
                if len(received) == 2:
                    asyncio.get_running_loop().call_soon(bed.association.close)
            assert received == [(b"one", SOMEWHERE), (b"two", SOMEWHERE)]
            assert [datagram async for datagram in bed.association] == []

    run(main)


def test_iterating_raises_what_receiving_does(run: Run) -> None:
    """The end at the proxy, behind what has come before it, and what only looks like closing, is told."""

    async def main() -> None:
        with Bed() as bed:
            bed.deliver(wrap(b"last"))
            bed.far[0].close()
            assert await anext(bed.association) == (b"last", SOMEWHERE)
            await fails(anext(bed.association), ConnectionResetError, "the proxy has ended the association")
        with Bed() as bed:
            waits = await waiting(anext(bed.association))
            bed.association.udp.wake_waiting(ConnectionAbortedError("of the system"))
            await fails(waits, ConnectionAbortedError, "of the system")  # type: ignore[arg-type]

    run(main)


def test_a_timeout_or_a_cancellation_loses_nothing(run: Run) -> None:
    """Neither a datagram nor the association."""

    async def main() -> None:
        with Bed() as bed:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await bed.association.receive()
            receiving = await waiting(bed.association.receive())
            bed.deliver(wrap(b"one"), wrap(b"two"))
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            assert await bed.association.receive() == (b"one", SOMEWHERE)
            assert await bed.association.receive() == (b"two", SOMEWHERE)

    run(main)


@pytest.mark.usefixtures("io")
def test_a_relay_whose_port_is_gone_is_an_error_once(run: Run) -> None:
    """The next call says so, in place of silence; the association goes on where the port comes back."""

    async def main() -> None:
        with Bed() as bed:
            place = bed.relay.getsockname()
            bed.relay.close()
            text = f"no program listens at the proxy's relay 127.0.0.1:{place[1]}"
            await bed.association.send(b"x", SOMEWHERE)
            await fails(bed.association.send(b"x", SOMEWHERE), ConnectionRefusedError, text)
            await bed.association.send(b"x", SOMEWHERE)
            await fails(bed.association.receive(), ConnectionRefusedError, text)
            bed.relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            bed.relay.setblocking(False)
            bed.relay.bind(place)
            await bed.association.send(b"back", SOMEWHERE)
            assert await bed.arrived() == wrap(b"back")
            bed.deliver(wrap(b"answer"))
            assert await bed.association.receive() == (b"answer", SOMEWHERE)

    run(main)


class Full:
    """A UDP socket whose buffer is full for a while; that of one on loopback never is."""

    def __init__(self, sock: Sock, refusals: int) -> None:
        self.sock = sock
        self.refusals = refusals

    def sendmsg(self, buffers: Any) -> int:
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError(errno.EAGAIN, "no room")
        return self.sock.sendmsg(buffers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@pytest.mark.every_hosting
def test_sending_waits_for_room(run: Run) -> None:
    """As long as it takes, while another task receives; the datagram is sent once and whole."""

    async def main() -> None:
        with Bed() as bed:
            bed.association.sock = Full(bed.association.sock, 3)  # type: ignore[assignment]
            receiving = await waiting(bed.association.receive())
            await bed.association.send(b"at last", SOMEWHERE)
            assert await bed.arrived() == wrap(b"at last")
            with pytest.raises(BlockingIOError):
                bed.relay.recv(1)
            bed.deliver(wrap(b"answer"))
            assert await receiving == (b"answer", SOMEWHERE)
            bed.deliver(wrap(b"another"))
            assert await bed.association.receive() == (b"another", SOMEWHERE)

    run(main)


def test_several_wait_for_room(run: Run) -> None:
    """Each one's datagram is sent in the end; one that gives up takes nothing from the others."""

    async def main() -> None:
        with Bed() as bed:
            full = Full(bed.association.sock, 1 << 30)
            bed.association.sock = full  # type: ignore[assignment]
            sending = [await waiting(bed.association.send(b"%d" % number, SOMEWHERE)) for number in range(4)]
            sending[1].cancel()
            await turns()
            full.refusals = 0
            await asyncio.gather(*sending, return_exceptions=True)
            assert {await bed.arrived() for _ in range(3)} == {wrap(b"0"), wrap(b"2"), wrap(b"3")}
            assert [task.cancelled() for task in sending] == [False, True, False, False]

    run(main)


@pytest.mark.parametrize("how", ["close", "end"])
def test_who_queues_for_room_is_told_of_the_end(run: Run, how: str) -> None:
    """Not only the first of several senders."""

    async def main() -> None:
        with Bed() as bed:
            bed.association.sock = Full(bed.association.sock, 1 << 30)  # type: ignore[assignment]
            sending = [await waiting(bed.association.send(b"x", SOMEWHERE)) for _ in range(3)]
            if how == "close":
                bed.association.close()
            else:
                bed.far[0].close()
            errors = await asyncio.gather(*sending, return_exceptions=True)
            expected = ConnectionAbortedError if how == "close" else ConnectionResetError
            assert [type(error) for error in errors] == [expected] * 3

    run(main)


def test_sending_without_end_lets_others_run(run: Run) -> None:
    """A deadline around it comes, even though there is always room."""

    async def main() -> None:
        with Bed() as bed:
            asyncio.get_running_loop().call_later(0, bed.association.close)
            sent = 0
            try:
                while sent <= 2 * BATCH:
                    await bed.association.send(b"x", SOMEWHERE)
                    sent += 1
            except ConnectionAbortedError:
                return
            pytest.fail("nothing else has run")

    run(main)


def test_closing_while_one_waits_for_room(run: Run) -> None:
    """The sender is told, whichever task closes."""

    async def main() -> None:
        with Bed() as bed:
            bed.association.sock = Full(bed.association.sock, 1 << 30)  # type: ignore[assignment]
            asyncio.get_running_loop().call_soon(bed.association.close)
            await fails(bed.association.send(b"x", SOMEWHERE), ConnectionAbortedError, "the association is closed")

    run(main)


@pytest.mark.every_hosting
def test_a_flood_lets_others_run(run: Run) -> None:
    """Between two batches the other tasks have their turn, also where everything is dropped."""

    async def main() -> None:
        with Bed() as bed:
            seen = 0

            def other() -> None:
                nonlocal seen
                seen += 1

            bed.deliver(*[b"rubbish"] * BATCH * 2, wrap(b"good"))
            await turns()
            asyncio.get_running_loop().call_soon(other)
            assert await bed.association.receive() == (b"good", SOMEWHERE)
            assert seen == 1
            assert bed.association.dropped == 2 * BATCH

    run(main)


def test_its_repr_has_the_relay(run_once: Run) -> None:
    """So that a log says whose it is."""

    async def main() -> None:
        with Bed() as bed:
            assert repr(bed.association) == f"<Association relay={bed.association.relay}>"

    run_once(main)
