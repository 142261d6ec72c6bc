"""Races of several addresses: who begins when, who wins, and that nothing is left of the others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from doubles import FakeResolver
from sockets import same_port, silence, silent_port, turns, until
from support import closed_port, target
from tabi.errors import DialError, PolicyDenied
from tabi.net.cache import NameCache
from tabi.net.dial import Dialer
from tabi.net.race import FIRST_PORT, Race, find_itself, interleave
from tabi.net.reactor import BROKEN, IN, OUT, get_reactor
from tabi.net.resolve import Answer, Named
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.policy.guard import allow_any_address
from tabi.wire.address import Address, parse_host
from tabi.wire.socks5 import ReplyCode

IP = IPv4Address | IPv6Address
NAME = "many.test"
NEVER = 1000.0


class NoSource:
    """Is never asked: what the cache has of the configuration's hosts is all there is."""

    async def answer(self, name: str) -> Answer:
        """See `tabi.net.resolve.Source`."""
        raise AssertionError(name)

    async def reverse(self, address: Any) -> Named:
        """See `tabi.net.resolve.Source`."""
        raise AssertionError(address)

    async def close(self) -> None:
        """See `tabi.net.resolve.Source`."""


@contextlib.asynccontextmanager
async def dialer(*addresses: str, seconds: float = 20, known: bool = True) -> AsyncIterator[Dialer]:
    """A dialer for a name with these addresses, which it knows or has to ask for; closed at the end."""
    found = [ip_address(address) for address in addresses]
    resolver = NameCache(NoSource(), {NAME: found}) if known else FakeResolver({NAME: list(addresses)})
    made = Dialer(get_reactor(), resolver, seconds)
    try:
        yield made
        assert not made.deadlines.pending
        assert len(timers()) <= 1  # the deadlines' own, which stands for all of them
    finally:
        await made.close()
        assert not timers()


def timers() -> list[Any]:
    """The timers of the loop, without that of the tests' patience."""
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [handle for handle in scheduled if not handle.cancelled() and "Timeout" not in repr(handle)]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be connected to at once, as if no destination were on this machine."""
    monkeypatch.setattr("tabi.net.dial.EINPROGRESS", -1)
    monkeypatch.setattr("tabi.net.dial.CONNECTING", (errno.EINPROGRESS,))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that attempts were made at, in their order."""
    seen: list[str] = []
    real = Dialer.start

    def start(dialer: Dialer, destination: Address, host: IP, *rest: Any, **more: Any) -> Stream:
        seen.append(str(host))
        return real(dialer, destination, host, *rest, **more)

    monkeypatch.setattr(Dialer, "start", start)
    return seen


def set_head_start(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """How long each attempt has before the next one."""
    monkeypatch.setattr("tabi.net.race.HEAD_START", seconds)


@contextlib.contextmanager
def silent(*hosts: str) -> Iterator[tuple[int, list[socket.socket]]]:
    """One port of several hosts that answers nobody at any but the last, which listens."""
    with same_port(*hosts) as socks, contextlib.ExitStack() as stack:
        for sock in socks[:-1]:
            stack.enter_context(silence(sock))
        socks[-1].listen()
        yield socks[-1].getsockname()[1], socks


@contextlib.contextmanager
def nobody(count: int) -> Iterator[tuple[int, list[str]]]:
    """One port that answers nobody, of so many hosts."""
    hosts = [f"127.0.0.{number}" for number in range(2, count + 2)]
    with silent(*hosts, "127.0.0.1") as (port, _):
        yield port, hosts


# --- the order ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["192.0.2.1"], ["192.0.2.1"]),
        (["192.0.2.2", "192.0.2.1"], ["192.0.2.2", "192.0.2.1"]),
        (["::1", "::2", "192.0.2.1"], ["::1", "192.0.2.1", "::2"]),
        (["192.0.2.1", "::2", "::1", "::3"], ["192.0.2.1", "::2", "::1", "::3"]),
        (["192.0.2.1", "192.0.2.2", "::2", "::1"], ["192.0.2.1", "::2", "192.0.2.2", "::1"]),
    ],
)
def test_the_families_take_turns(given: list[str], expected: list[str]) -> None:
    """RFC 8305 section 4: where one family leads nowhere, the second attempt is at the other one."""
    assert [str(address) for address in interleave([ip_address(one) for one in given])] == expected


@given(st.lists(st.ip_addresses(), min_size=1))
def test_no_address_is_lost_and_a_family_keeps_its_order(addresses: list[IP]) -> None:
    """Whatever the resolver says: its first is the first, and within a family its order is kept."""
    found = interleave(addresses)
    assert found[0] == addresses[0]
    for version in (4, 6):
        assert [one for one in found if one.version == version] == [one for one in addresses if one.version == version]


# --- the first that answers at once ---


@pytest.mark.parametrize("known", [True, False])
def test_an_address_that_answers_at_once_is_no_race(
    run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str], known: bool
) -> None:
    """Nothing is made for it that a name with one address does not need; the guard has seen all addresses."""

    async def main() -> None:
        seen: list[IP] = []
        async with target() as port, dialer("127.0.0.1", "::1", known=known) as dial:
            with monkeypatch.context() as patch:
                patch.setattr("tabi.net.dial.Race", None)
                async with await dial.dial(Address(NAME, port), seen.append) as stream:
                    assert dial.deadlines.timer is None
                    await stream.send_all(b"ping")
                    assert await stream.receive() == b"ping"
        assert begun == ["127.0.0.1"]
        assert [str(address) for address in seen] == ["127.0.0.1", "::1"]

    run(main)


def test_a_known_name_is_forbidden_with_one_of_its_addresses(run_once: Run, begun: list[str]) -> None:
    """Before any attempt is made, wherever it stands."""

    def address_filter(address: IP) -> None:
        if address == ip_address("127.0.0.2"):
            raise PolicyDenied("forbidden")

    async def main() -> None:
        async with dialer("127.0.0.1", "127.0.0.2") as dial:
            with pytest.raises(PolicyDenied, match="forbidden"):
                await dial.dial(Address(NAME, 1), address_filter)
        assert not begun

    run_once(main)


# --- who begins when ---


def test_the_next_begins_after_the_head_start(run: Run, begun: list[str]) -> None:
    """A silent address delays by 0.25 s, and the families take turns."""

    async def main() -> None:
        with silent("127.0.0.2", "127.0.0.3", "::1") as (port, _):
            async with dialer("127.0.0.2", "127.0.0.3", "::1") as dial:
                loop = asyncio.get_running_loop()
                started = loop.time()
                async with await dial.dial(Address(NAME, port), allow_any_address) as stream:
                    assert loop.time() - started >= 0.24  # the loop's clock may be a tick early
                    assert stream.sock.getpeername()[0] == "::1"
                    assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert begun == ["127.0.0.2", "::1"]

    run(main)


@pytest.mark.parametrize("told", ["at once", "later"])
def test_the_next_begins_when_one_has_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str], request: pytest.FixtureRequest, told: str
) -> None:
    """Without its head start, whether connect(2) says so or an event does; so do all behind it."""
    set_head_start(monkeypatch, NEVER)
    if told == "later":
        request.getfixturevalue("late")

    async def main() -> None:
        dead = [f"127.0.0.{number}" for number in range(10, 50)]
        async with (
            target() as port,
            dialer(*dead, "127.0.0.1") as dial,
            await dial.dial(Address(NAME, port), allow_any_address) as stream,
        ):
            await stream.send_all(b"ping")
            assert await stream.receive() == b"ping"
            assert stream.sock.getpeername()[0] == "127.0.0.1"
        assert begun == [*dead, "127.0.0.1"]

    run(main)


def test_one_that_fails_beside_a_silent_one_lets_the_next_begin(
    run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str]
) -> None:
    """What is under way has had its head start already."""

    async def main() -> None:
        with silent("127.0.0.2", "127.0.0.1") as (port, _):
            async with dialer("127.0.0.2", "127.0.0.3", "127.0.0.1") as dial:
                set_head_start(monkeypatch, 0.01)
                (await dial.dial(Address(NAME, port), allow_any_address)).close()
        assert begun == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

    run(main)


def test_others_run_while_many_addresses_fail_at_once(run_once: Run) -> None:
    """A name server may send hundreds of addresses that nothing leads to: they must not hold up a worker."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        count = 0

        def turn() -> None:
            nonlocal count
            count += 1
            if not done:
                loop.call_soon(turn)

        done = False
        with closed_port() as port:
            async with dialer(*(f"127.0.1.{number}" for number in range(1, 101))) as dial:
                loop.call_soon(turn)
                with pytest.raises(DialError, match="connection refused"):
                    await dial.dial(Address(NAME, port), allow_any_address)
                done = True
        await turns()
        assert count >= 6

    run_once(main)


# --- who wins ---


@pytest.mark.usefixtures("late")
def test_one_that_answers_late_wins_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str]) -> None:
    """The first stays in the race when the second has begun, and the loser is closed."""
    set_head_start(monkeypatch, 0.0)

    async def main() -> None:
        with same_port("127.0.0.1", "127.0.0.2") as (first, second):
            port = first.getsockname()[1]
            first.listen()
            held: list[tuple[Race, Stream, int]] = []
            real = Race.on_ready

            def hold(race: Race, stream: Stream, events: int) -> None:
                held.append((race, stream, events))

            with silence(second):
                monkeypatch.setattr(Race, "on_ready", hold)
                async with dialer("127.0.0.1", "127.0.0.2") as dial:
                    task = asyncio.get_running_loop().create_task(into(dial, port))
                    await until(lambda: held and len(begun) == 2)
                    race, stream, events = held[0]
                    assert len(race.running) == 2
                    loser = (race.running - {stream}).pop()
                    real(race, stream, IN)  # says nothing of a connection
                    assert race.winner is None
                    asyncio.get_running_loop().call_soon(real, race, stream, events)
                    async with await task as won:
                        assert won is stream
                        assert won.sock.getpeername()[0] == "127.0.0.1"
                        assert loser.fd < 0

    run(main)


async def into(dial: Dialer, port: int) -> Stream:
    """A dial as a coroutine, for a task."""
    return await dial.dial(Address(NAME, port), allow_any_address)


@pytest.mark.usefixtures("late")
def test_of_two_that_are_open_at_once_one_wins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is closed; the winner's end, told in the same moment, is left for who reads it."""
    set_head_start(monkeypatch, NEVER)

    async def main() -> None:
        reactor = get_reactor()
        with silent_port() as port:
            async with dialer("127.0.0.1") as dial:
                streams = [dial.start(Address(NAME, port), ip_address("127.0.0.1")) for _ in range(2)]
                race = Race(reactor, None, NAME)  # type: ignore[arg-type]
                for stream in streams:
                    assert race.add(stream)
                race.on_ready(streams[1], OUT)
                race.on_ready(streams[0], OUT)
                race.on_ready(streams[1], BROKEN)
                assert race.winner is streams[1]
                race.expire()  # too late
                won = await race.run(DialError("another", 1), [ip_address("127.0.0.1")])
                assert won is streams[1]
                assert won.events & BROKEN
                assert streams[0].fd < 0
                won.close()

    run(main)


@pytest.mark.usefixtures("late")
def test_the_winner_is_a_stream_as_any(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears of what arrives and of room, and its peer's end; nothing of the race holds it."""
    set_head_start(monkeypatch, NEVER)

    async def main() -> None:
        async with (
            target() as port,
            dialer("127.0.0.3", "127.0.0.1") as dial,
            await dial.dial(Address(NAME, port), allow_any_address) as stream,
        ):
            payload = bytes(1 << 20)
            got = bytearray()

            async def receive() -> None:
                while data := await stream.receive():
                    got.extend(data)

            async with asyncio.TaskGroup() as group:
                group.create_task(receive())
                await stream.send_all(payload)
                stream.send_eof()
            assert got == payload

    run(main)


# --- failures ---


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("told", ["at once", "later"])
def test_all_have_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, told: str, known: bool
) -> None:
    """The one that says most is the answer, and what was dialled is named as the client named it."""
    set_head_start(monkeypatch, NEVER)
    if told == "later":
        request.getfixturevalue("late")

    async def main() -> None:
        with closed_port() as port:
            async with dialer("255.255.255.255", "127.0.0.1", "127.0.0.2", known=known) as dial:
                with pytest.raises(DialError, match=rf"^{NAME}:{port}: connection refused$") as caught:
                    await dial.dial(Address(NAME, port), allow_any_address)
                assert caught.value.reply_code == ReplyCode.CONNECTION_REFUSED

    run(main)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("head_start", [0.001, NEVER])
def test_none_answers_in_time(
    run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str], known: bool, head_start: float
) -> None:
    """One deadline over all of them, however many are under way."""
    set_head_start(monkeypatch, head_start)

    async def main() -> None:
        with nobody(5) as (port, hosts):
            async with dialer(*hosts, seconds=0.2, known=known) as dial:
                with pytest.raises(DialError, match=rf"^{NAME}:{port}: no answer within 0\.2 s$") as caught:
                    await dial.dial(Address(NAME, port), allow_any_address)
                assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
                assert begun == (hosts if head_start < 1 else hosts[:1])

    run(main)


def test_a_deadline_between_two_attempts_is_not_lost(run_once: Run) -> None:
    """What ends while nothing waits ends the next wait."""

    async def main() -> None:
        with silent_port() as port:
            async with dialer("127.0.0.1") as dial:
                destination = Address(NAME, port)
                race = Race(dial.reactor, lambda host: dial.start(destination, host), destination)
                race.expire()
                with pytest.raises(TimeoutError):
                    await race.run(DialError("one", 1), [ip_address("127.0.0.1")])

    run_once(main)


def test_a_socket_that_cannot_be_used_ends_the_race(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own trouble is none of an address; what is under way is closed."""
    set_head_start(monkeypatch, 0.001)

    async def main() -> None:
        with nobody(2) as (port, hosts):
            async with dialer(*hosts) as dial:
                real = dial.reactor.register
                count = 0

                def register(fd: int, handler: Any) -> None:
                    nonlocal count
                    count += 1
                    if count == 2:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    real(fd, handler)

                with monkeypatch.context() as patch:
                    patch.setattr(dial.reactor, "register", register)
                    with pytest.raises(OSError, match="No space"):
                        await dial.dial(Address(NAME, port), allow_any_address)

    run(main)


# --- where from ---


@pytest.mark.usefixtures("late")
def test_every_attempt_comes_from_a_source(run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str]) -> None:
    """Of its own family; where ports are used up, from the next one."""
    set_head_start(monkeypatch, NEVER)
    used: list[Any] = []
    real = SourceBinding.prepare

    def prepare(binding: SourceBinding, sock: Any, source: Any) -> None:
        used.append(source)
        if len(used) == 2:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address", "source")
        real(binding, sock, source)

    monkeypatch.setattr(SourceBinding, "prepare", prepare)
    sources = [ip_network(one) for one in ("127.0.0.8", "127.0.0.9", "::1")]

    async def main() -> None:
        with silent("127.0.0.1") as (port, _):
            async with (
                dialer("::1", "127.0.0.1") as dial,
                await dial.dial(Address(NAME, port), allow_any_address, None, SourceBinding(sources)) as stream,
            ):
                assert begun == ["::1", "127.0.0.1"]
                assert str(used[0]) == "::1"
                assert {str(used[1]), str(used[2])} == {"127.0.0.8", "127.0.0.9"}
                assert stream.sock.getsockname()[0] == str(used[2])

    run(main)


def test_without_a_source_of_its_family_an_address_is_passed_over(run_once: Run, begun: list[str]) -> None:
    """The other family's is connected to: from an address that was asked for."""

    async def main() -> None:
        binding = SourceBinding([ip_network("127.0.0.9")])
        with silent("127.0.0.1") as (port, _):
            async with (
                dialer("::1", "127.0.0.1") as dial,
                await dial.dial(Address(NAME, port), allow_any_address, None, binding) as stream,
            ):
                assert stream.sock.getsockname()[0] == "127.0.0.9"
        assert begun == ["::1", "127.0.0.1"]

    run_once(main)


def test_the_key_of_an_egress_is_named_for_all_addresses(run_once: Run) -> None:
    """What no address has a chance with is the file's fault, and said so."""

    async def main() -> None:
        async with dialer("127.0.0.1", "127.0.0.2") as dial:
            with pytest.raises(DialError, match=r"\(interface of the egress\)$"):
                await dial.dial(Address(NAME, 1), allow_any_address, None, SourceBinding(interface="nothere0"))

    run_once(main)


# --- cancellation ---


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_race_can_be_cancelled_at_any_time(
    run: Run, monkeypatch: pytest.MonkeyPatch, begun: list[str], known: bool, count: int
) -> None:
    """During the first head start, the second, and when all are under way: all are closed."""

    async def main() -> None:
        with nobody(3) as (port, hosts):
            async with dialer(*hosts, known=known) as dial:
                set_head_start(monkeypatch, 0.0)
                task = asyncio.get_running_loop().create_task(into(dial, port))

                def far() -> bool:
                    if len(begun) == count:
                        set_head_start(monkeypatch, NEVER)
                    return len(begun) >= count

                await until(far)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run(main)


def test_a_race_can_be_cancelled_while_others_run(run_once: Run) -> None:
    """Between addresses that fail at once."""

    async def main() -> None:
        with closed_port() as port:
            async with dialer(*(f"127.0.1.{number}" for number in range(1, 101))) as dial:
                task = asyncio.get_running_loop().create_task(into(dial, port))
                await turns(2)
                assert not task.done()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run_once(main)


@pytest.mark.usefixtures("late")
def test_a_race_that_is_cancelled_as_it_is_won_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is told of its cancellation, so that nobody takes the connection."""
    set_head_start(monkeypatch, NEVER)
    won = asyncio.Event()
    real = Race.on_ready

    async def main() -> None:
        with silent("127.0.0.1") as (port, _):
            async with dialer("127.0.0.1", "127.0.0.2") as dial:
                task: asyncio.Task[Stream] = asyncio.get_running_loop().create_task(into(dial, port))

                def on_ready(race: Race, stream: Stream, events: int) -> None:
                    task.cancel()
                    real(race, stream, events)
                    won.set()

                monkeypatch.setattr(Race, "on_ready", on_ready)
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert won.is_set()

    run(main)


def test_a_socket_that_is_connected_to_itself_is_told(run_once: Run) -> None:
    """Only the same address and the same port are itself; ports that the system never chooses are not looked at."""

    async def main() -> None:
        with closed_port() as port:
            pass
        sock = socket.socket()
        sock.bind(("127.0.0.1", port))
        sock.connect(("127.0.0.1", port))
        sock.setblocking(False)
        stream = Stream(get_reactor(), sock)
        assert find_itself(stream) == 0
        stream.peer = Address(parse_host("127.0.0.1"), port)
        assert find_itself(stream) == errno.ECONNREFUSED
        assert stream.name == ("127.0.0.1", port)
        stream.peer = Address(parse_host("127.0.0.1"), FIRST_PORT - 1)
        assert find_itself(stream) == 0
        sock.shutdown(socket.SHUT_WR)
        stream.peer = Address(parse_host("127.0.0.1"), port)
        assert find_itself(stream) in (errno.ECONNREFUSED, errno.ENOTCONN)
        stream.close()

    run_once(main)
