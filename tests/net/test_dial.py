"""Dialer: one address, several, none in time; and what each failure says."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from conftest import Run
from sockets import same_port, silence, silent_port, turns
from support import closed_port, target
from tabi.errors import DialError, PolicyDenied
from tabi.net import dial
from tabi.net.cache import NameCache
from tabi.net.dial import Dialer, StillDialer
from tabi.net.reactor import BROKEN, OUT, get_reactor
from tabi.net.resolve import Answer, Named
from tabi.net.source import SourceBinding
from tabi.net.stream import Stream
from tabi.policy.guard import LocalAddresses, allow_any_address
from tabi.wire.address import Address
from tabi.wire.socks5 import ReplyCode


class FakeSource:
    """Knows one name."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, name: str) -> Answer:
        """See `tabi.net.resolve.Source`."""
        self.asked.append(name)
        return Answer([LOCAL], 60) if name == "name.test" else Answer([], 60)

    async def reverse(self, address: IP) -> Named:
        """See `tabi.net.resolve.Source`."""
        return Named("name.test", 60)

    async def close(self) -> None:
        """See `tabi.net.resolve.Source`."""


IP = IPv4Address | IPv6Address
LOCAL = IPv4Address("127.0.0.1")
NOWHERE = "255.255.255.255"  # connect(2) refuses it at once, ENETUNREACH, without a packet


class FakeResolver:
    """Knows one name; with no addresses it never answers."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[IP] = [ip_address(address) for address in addresses]
        self.closed = False

    async def resolve(self, name: str) -> list[IP]:
        """See `tabi.net.resolve.Resolver`."""
        if not self.addresses:
            await asyncio.Event().wait()
        return self.addresses

    async def close(self) -> None:
        """See `tabi.net.resolve.Resolver`."""
        self.closed = True


@contextlib.asynccontextmanager
async def dialer(*addresses: str, seconds: float = 20) -> AsyncIterator[Dialer]:
    """A dialer, closed at the end."""
    dialer = Dialer(get_reactor(), FakeResolver(*addresses), seconds)
    try:
        yield dialer
    finally:
        await dialer.close()


def permit_all(address: IP) -> None:
    """Forbid nothing."""


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def echoes(stream: Stream) -> None:
    """Check that the stream leads to an echo server."""
    await stream.send_all(b"ping")
    assert await stream.receive() == b"ping"


async def fails(dialer: Dialer, destination: Address) -> DialError:
    """Dial and return the error, which names the destination."""
    with pytest.raises(DialError) as caught:
        await dialer.dial(destination, permit_all)
    assert str(caught.value).startswith(f"{destination}: ")
    return caught.value


# --- success ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_connected_to(run: Run, host: str) -> None:
    """The stream leads there, sends without Nagle's delay, and its deadline is over."""

    async def main() -> None:
        async with (
            target(host=host) as port,
            dialer() as dial,
            await dial.dial(Address(ip_address(host), port), permit_all) as stream,
        ):
            await echoes(stream)
            assert stream.sock.getpeername()[:2] == (host, port)
            assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not dial.deadlines.pending

    run(main)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_a_name_is_connected_to(run: Run, addresses: list[str]) -> None:
    """Whether it has one address or several, permit sees all of them and the stream leads to the first that answers."""

    async def main() -> None:
        seen: list[IP] = []
        async with target() as port, dialer(*addresses) as dial:
            async with await dial.dial(Address("name.test", port), seen.append) as stream:
                await echoes(stream)
                assert stream.sock.getpeername() == ("127.0.0.1", port)
                assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert [str(address) for address in seen] == addresses

    run(main)


@pytest.mark.parametrize("first", ["refused", "unreachable"])
def test_an_address_that_fails_gives_way_to_the_next(run: Run, first: str) -> None:
    """Happy Eyeballs: a host with one dead address is still reached."""

    async def main() -> None:
        dead = "127.0.0.3" if first == "refused" else NOWHERE
        async with (
            target() as port,
            dialer(dead, "127.0.0.1") as dial,
            await dial.dial(Address("name.test", port), permit_all) as stream,
        ):
            await echoes(stream)

    run(main)


def test_an_address_that_is_silent_gives_way_to_the_next(run: Run) -> None:
    """Happy Eyeballs: the next address gets its turn long before the deadline of the first."""

    async def main() -> None:
        with same_port("127.0.0.2", "127.0.0.1") as (silent, listener), silence(silent) as port:
            listener.listen()
            async with (
                dialer("127.0.0.2", "127.0.0.1") as dial,
                await dial.dial(Address("name.test", port), permit_all) as stream,
            ):
                assert stream.sock.getpeername() == ("127.0.0.1", port)
                accepted, _ = listener.accept()
                with accepted:
                    accepted.send(b"hello")
                    assert await stream.receive() == b"hello"

    run(main)


def test_a_name_that_is_known_is_dialled_as_its_address(run: Run) -> None:
    """By the very way of an address, without the resolver; the guard sees the address; the error names the name."""

    async def main() -> None:
        source, seen = FakeSource(), list[IP]()
        dialer = Dialer(get_reactor(), NameCache(source, {"host.test": [LOCAL]}), 20)
        try:
            async with target() as port:
                for name in ("name.test", "NAME.test", "host.test"):
                    stream = await dialer.dial(Address(name, port), seen.append)
                    await echoes(stream)
                    stream.close()
            dialler = dialer.dial_name
            dialer.dial_name = None  # type: ignore[assignment, method-assign]
            with closed_port() as port, pytest.raises(DialError, match=rf"^name\.test:{port}: connection refused$"):
                await dialer.dial(Address("name.test", port), seen.append)
            dialer.dial_name = dialler  # type: ignore[method-assign]
            for _ in range(2):
                with pytest.raises(DialError, match=r"^other\.test: no address$"):
                    await dialer.dial(Address("other.test", 1), seen.append)
            assert await dialer.find("name.test", seen.append) == [LOCAL]
            assert seen == [LOCAL] * 5
            assert source.asked == ["name.test", "other.test"]
        finally:
            await dialer.close()

    run(main)


def test_many_dials_at_once_each_get_their_own(run: Run) -> None:
    """Thirty connections opened side by side are not mixed up."""

    async def main() -> None:
        async with target() as port, dialer() as dial:

            async def one(number: int) -> None:
                async with await dial.dial(Address(LOCAL, port), permit_all) as stream:
                    await stream.send_all(b"%d" % number)
                    assert await stream.receive() == b"%d" % number

            async with asyncio.TaskGroup() as group:
                for number in range(30):
                    group.create_task(one(number))

    run(main)


# --- addresses alone ---


@pytest.mark.parametrize(
    ("name", "addresses", "found"),
    [
        ("name.test", ["::1", "127.0.0.1"], ["::1", "127.0.0.1"]),
        ("name.test", ["127.0.0.2"], ["127.0.0.2"]),
        ("127.1", [], ["127.0.0.1"]),
    ],
)
def test_the_addresses_of_a_name(run_once: Run, name: str, addresses: list[str], found: list[str]) -> None:
    """As the resolver orders them, each shown to permit first; a name that is a number is not resolved."""

    async def main() -> None:
        async with dialer(*addresses) as dial:
            seen: list[IP] = []
            assert [str(address) for address in await dial.find(name, seen.append)] == found
            assert [str(address) for address in seen] == found

    run_once(main)


def test_a_name_with_one_forbidden_address_has_none(run_once: Run) -> None:
    """The guard forbids the name: otherwise it would depend on the order of the answers."""

    def address_filter(address: IP) -> None:
        if str(address) == "127.0.0.2":
            raise PolicyDenied("forbidden")

    async def main() -> None:
        async with dialer("127.0.0.1", "127.0.0.2") as dial:
            with pytest.raises(PolicyDenied, match="forbidden"):
                await dial.find("name.test", address_filter)

    run_once(main)


def test_a_number_that_is_no_address_is_found_nowhere(run_once: Run) -> None:
    """No resolver is asked for it, and the error is that of a name without an address."""

    async def main() -> None:
        async with dialer("127.0.0.1") as dial:
            with pytest.raises(DialError, match=r"^1\.2\.3\.4\.5: neither an address nor a name") as caught:
                await dial.find("1.2.3.4.5", permit_all)
            assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE

    run_once(main)


# --- failures ---


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_refused(run: Run, addresses: list[str]) -> None:
    """C8: a closed port is reply 05, dialled by address, by name, and by a name with several addresses."""

    async def main() -> None:
        with closed_port() as port:
            async with dialer(*addresses) as dial:
                error = await fails(dial, Address("name.test" if addresses else LOCAL, port))
                assert (error.reply_code, error.errno) == (ReplyCode.CONNECTION_REFUSED, errno.ECONNREFUSED)
                assert "refused" in str(error)

    run(main)


@pytest.mark.parametrize("addresses", [[], [NOWHERE], [NOWHERE, "224.0.0.1"]])
def test_unreachable(run: Run, addresses: list[str]) -> None:
    """C8: an address to which no way leads is reply 03."""

    async def main() -> None:
        async with dialer(*addresses) as dial:
            error = await fails(dial, Address("name.test" if addresses else IPv4Address(NOWHERE), 80))
            assert (error.reply_code, error.errno) == (ReplyCode.NETWORK_UNREACHABLE, errno.ENETUNREACH)

    run(main)


@pytest.mark.parametrize("addresses", [["127.0.0.1", NOWHERE], [NOWHERE, "127.0.0.1"]])
def test_of_several_failures_the_most_telling_is_reported(run: Run, addresses: list[str]) -> None:
    """A host that refuses on one address and cannot be reached on another is there: refused."""

    async def main() -> None:
        with closed_port() as port:
            async with dialer(*addresses) as dial:
                error = await fails(dial, Address("name.test", port))
                assert (error.reply_code, error.errno) == (ReplyCode.CONNECTION_REFUSED, errno.ECONNREFUSED)

    run(main)


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["127.0.0.1", "127.0.0.1"]])
def test_a_destination_that_never_answers(run: Run, addresses: list[str]) -> None:
    """C8: after the deadline it is reply 04, and nothing of the attempts is left open."""

    async def main() -> None:
        with silent_port() as port:
            async with dialer(*addresses, seconds=0.05) as dial:
                error = await fails(dial, Address("name.test" if addresses else LOCAL, port))
                assert (error.reply_code, error.errno) == (ReplyCode.HOST_UNREACHABLE, errno.ETIMEDOUT)
                assert str(error).endswith("no answer within 0.05 s")

    run(main)


def test_a_resolver_that_never_answers(run: Run) -> None:
    """The deadline covers resolving too."""

    async def main() -> None:
        async with dialer(seconds=0.05) as dial:
            error = await fails(dial, Address("name.test", 80))
            assert error.reply_code == ReplyCode.HOST_UNREACHABLE

    run(main)


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_without_descriptors(run: Run, addresses: list[str]) -> None:
    """C8: our own fault is reply 01."""

    async def main() -> None:
        with closed_port() as port:
            async with dialer(*addresses) as dial:
                with no_descriptors():
                    error = await fails(dial, Address("name.test" if addresses else LOCAL, port))
                assert (error.reply_code, error.errno) == (ReplyCode.GENERAL_FAILURE, errno.EMFILE)

    run(main)


def test_what_the_resolver_says_is_passed_on(run: Run) -> None:
    """An error of the resolver arrives as it is."""

    async def main() -> None:
        class Broken(FakeResolver):
            async def resolve(self, name: str) -> list[IP]:
                raise DialError("name.test: no such name", ReplyCode.HOST_UNREACHABLE)

        dial = Dialer(get_reactor(), Broken(), 20)
        with pytest.raises(DialError, match=r"^name\.test: no such name$") as caught:
            await dial.dial(Address("name.test", 80), permit_all)
        assert caught.value.reply_code == ReplyCode.HOST_UNREACHABLE
        await dial.close()

    run(main)


def test_the_systems_errors_of_a_resolver_become_ours(run: Run) -> None:
    """A resolver of an embedding program may raise what getaddrinfo raises, TimeoutError among it."""

    async def main() -> None:
        class Broken(FakeResolver):
            async def resolve(self, name: str) -> list[IP]:
                raise TimeoutError

        dial = Dialer(get_reactor(), Broken(), 20)
        with pytest.raises(DialError, match=r"^name\.test: not resolved$"):
            await dial.dial(Address("name.test", 80), permit_all)
        with pytest.raises(DialError, match=r"^name\.test: not resolved$"):
            await dial.find("name.test", permit_all)
        await dial.close()

    run(main)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_a_socket_that_cannot_be_used_is_closed(
    run: Run, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    """Where the reactor takes no more sockets, the one just opened does not stay."""

    async def main() -> None:
        async with target() as port, dialer(*addresses) as dial:

            def refuse(fd: int, handler: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patch:
                patch.setattr(dial.reactor, "register", refuse)
                with pytest.raises(OSError, match="No space"):
                    await dial.dial(Address("name.test", port), permit_all)

    run(main)


def test_a_refusal_that_comes_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a destination that is not on this machine: an event tells it."""

    async def main() -> None:
        with closed_port() as port, monkeypatch.context() as patch:
            patch.setattr("tabi.net.dial.EINPROGRESS", -1)
            patch.setattr("tabi.net.dial.CONNECTING", (errno.EINPROGRESS,))
            async with dialer() as dial:
                error = await fails(dial, Address(LOCAL, port))
                assert (error.reply_code, error.errno) == (ReplyCode.CONNECTION_REFUSED, errno.ECONNREFUSED)
                assert not dial.deadlines.pending

    run(main)


def test_a_broken_socket_without_an_error_counts_as_connected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """HUP without an error number: it was connected and is over; the stream says so to who reads it."""

    async def main() -> None:
        seen: list[int] = []
        async with target() as port, dialer() as dial:
            real = Stream.on_ready

            def broken(stream: Stream, events: int) -> None:
                seen.append(events)
                real(stream, events | BROKEN)

            with monkeypatch.context() as patch:
                # Wait for the event, although a destination on this machine has answered at once.
                patch.setattr("tabi.net.dial.EINPROGRESS", -1)
                patch.setattr("tabi.net.dial.CONNECTING", (errno.EINPROGRESS,))
                patch.setattr(Stream, "on_ready", broken)
                stream = await dial.dial(Address(LOCAL, port), permit_all)
            async with stream:
                await echoes(stream)
            assert any(events & OUT for events in seen)

    run(main)


# --- policy ---


class Deny:
    """A permit that forbids one address."""

    def __init__(self, address: str) -> None:
        self.address = ip_address(address)

    def __call__(self, address: IP) -> None:
        if address == self.address:
            raise PolicyDenied(f"{address} is forbidden")


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_one_forbidden_address_forbids_all(run: Run, addresses: list[str]) -> None:
    """Nobody is connected to, not even an address that is allowed: a name must not lead around the guard."""

    async def main() -> None:
        with same_port("127.0.0.1", "127.0.0.2") as listeners:
            port = listeners[0].getsockname()[1]
            for listener in listeners:
                listener.listen()
            async with dialer(*addresses) as dial:
                with pytest.raises(PolicyDenied, match=r"127\.0\.0\.1 is forbidden"):
                    await dial.dial(Address("name.test" if addresses else LOCAL, port), Deny("127.0.0.1"))
            await turns()
            for listener in listeners:
                listener.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listener.accept()

    run(main)


# --- cancellation ---


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["127.0.0.1", "127.0.0.1"]])
def test_a_dial_can_be_cancelled(run: Run, addresses: list[str]) -> None:
    """A client that leaves while its destination is dialled: the attempt ends, no socket and no deadline stays."""

    async def main() -> None:
        with silent_port() as port:
            async with dialer(*addresses) as dial:

                async def main() -> None:
                    await dial.dial(Address("name.test" if addresses else LOCAL, port), permit_all)

                task = asyncio.get_running_loop().create_task(main())
                await turns(10)
                assert not task.done()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not dial.deadlines.pending

    run(main)


def test_a_dial_can_be_cancelled_while_resolving(run: Run) -> None:
    """The same before there is an address."""

    async def main() -> None:
        async with dialer() as dial:

            async def main() -> None:
                await dial.dial(Address("name.test", 80), permit_all)

            task = asyncio.get_running_loop().create_task(main())
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_close_closes_the_resolver(run: Run) -> None:
    """The dialer owns its resolver."""

    async def main() -> None:
        resolver = FakeResolver()
        await Dialer(get_reactor(), resolver, 1).close()
        assert resolver.closed

    run(main)


class Names(FakeResolver):
    """A resolver of a program that knows what addresses are called."""

    def __init__(self, name: str | Exception) -> None:
        super().__init__()
        self.name = name

    async def reverse(self, address: IP) -> str:
        """See `tabi.net.dial.Reverse`."""
        if isinstance(self.name, Exception):
            raise self.name
        return self.name


@pytest.mark.parametrize(
    ("resolver", "reply_code", "text"),
    [
        (FakeResolver(), ReplyCode.COMMAND_NOT_SUPPORTED, "the resolver finds no names of addresses"),
        (Names("no host"), ReplyCode.HOST_UNREACHABLE, "'no host' is not a host name"),
        (Names(socket.herror(1, "Unknown host")), ReplyCode.HOST_UNREACHABLE, "unknown host"),
        (Names(UnicodeError("what")), ReplyCode.HOST_UNREACHABLE, "no such name"),
        (Names(OSError(errno.EMFILE, "Too many")), ReplyCode.GENERAL_FAILURE, "too many"),
    ],
)
def test_an_address_whose_name_is_not_found(
    run_once: Run, resolver: FakeResolver, reply_code: ReplyCode, text: str
) -> None:
    """What a resolver of an embedding program cannot do, what it says that is none, and its errors."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), resolver, 10)
        with pytest.raises(DialError) as caught:
            await dialer.find_name(LOCAL)
        assert (caught.value.reply_code, str(caught.value)) == (reply_code, f"{LOCAL}: {text}")
        await dialer.close()

    run_once(main)


def test_the_name_of_an_address(run_once: Run) -> None:
    """Of a resolver of a program, without the dot that it may have at its end; of a cache."""

    async def main() -> None:
        for resolver in (Names("Name.Test."), NameCache(FakeSource())):
            dialer = Dialer(get_reactor(), resolver, 10)
            assert (await dialer.find_name(LOCAL)).lower() == "name.test"
            await dialer.close()

    run_once(main)


def test_who_speaks_first_saves_a_packet(run: Run) -> None:
    """Connections to proxies open as all others do; the option is theirs alone, and deadlines are shared."""

    async def main() -> None:
        made = Dialer(get_reactor(), FakeResolver(), 10)
        first = made.speaking_first()
        assert (made.speaks_first, first.speaks_first) == (False, hasattr(socket, "TCP_QUICKACK"))
        assert first.deadlines is made.deadlines
        async with target() as port:
            for dialer in (made, first):
                async with await dialer.dial(Address(ip_address("127.0.0.1"), port), permit_all) as stream:
                    await stream.send_all(b"first")
                    assert await stream.receive() == b"first"
        await made.close()

    run(main)


def test_a_still_dialer_needs_no_loop_and_opens_nothing(run_once: Run) -> None:
    """It has what egresses are made of, and no more: whoever uses one made of it has made a mistake."""
    still = StillDialer(7)
    assert (still.seconds, still.deadlines.seconds, still.speaking_first().seconds) == (7, 7, 7)
    assert still.lookup("example.com") is None

    async def main() -> None:
        for host in (LOCAL, "example.com"):
            with pytest.raises(RuntimeError, match="for inspection only"):
                await still.dial(Address(host, 1), allow_any_address)

    run_once(main)


class FromPort:
    """A source binding that has a socket come from a certain port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def sources_for(self, version: int, session: object) -> Iterator[IP | None]:
        """See `SourceBinding`."""
        yield None

    def prepare(self, sock: socket.SocketType, source: IP | None) -> None:
        """See `SourceBinding`."""
        host = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::"}[socket.AddressFamily(sock.family)]
        with contextlib.suppress(OSError):  # the other address of a race has it
            sock.bind((host, self.port))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "name.test"])
def test_a_connection_to_itself_is_refused(run: Run, host: str) -> None:
    """Where nobody listens the system may come from that very port, and TCP connects a socket to itself."""

    async def main() -> None:
        second = ["127.0.0.2"] if host == "name.test" else []
        async with dialer("127.0.0.1", *second) as dials:
            with closed_port() as port:
                pass
            destination = Address(host if host == "name.test" else ip_address(host), port)
            binding: Any = FromPort(port)
            with pytest.raises(DialError, match="connection refused") as caught:
                await dials.dial(destination, permit_all, None, binding)
            assert caught.value.reply_code == ReplyCode.CONNECTION_REFUSED

    run(main)


def test_a_connection_to_itself_that_takes_its_time_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy kernel carries the packets later: then the event says that it is open."""

    monkeypatch.setattr(dial, "EINPROGRESS", -1)
    monkeypatch.setattr(dial, "CONNECTING", (errno.EINPROGRESS,))

    async def main() -> None:
        async with dialer("127.0.0.1", "127.0.0.2") as dials:
            with closed_port() as port:
                pass
            binding: Any = FromPort(port)
            for host in (LOCAL, "name.test"):
                with pytest.raises(DialError, match="connection refused"):
                    await dials.dial(Address(host, port), permit_all, None, binding)

    run(main)


def test_ports_that_are_used_up_are_told_from_addresses_that_are_missing(
    run_once: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are EADDRNOTAVAIL. The first is our own trouble, and names the address."""

    class UsedUp(socket.socket):
        """Finds no port."""

        def connect_ex(self, address: Any, /) -> int:
            return errno.EADDRNOTAVAIL

    monkeypatch.setattr(dial, "SocketType", UsedUp)

    async def main() -> None:
        async with dialer() as dials:
            destination = Address(LOCAL, 80)
            error = await fails(dials, destination)
            assert (str(error), error.reply_code) == ("127.0.0.1:80: no free port on 127.0.0.1", 1)
            binding: Any = SourceBinding([ip_network("127.0.0.7")])
            with pytest.raises(DialError, match=r"127\.0\.0\.1:80: no free port on 127\.0\.0\.7") as caught:
                await dials.dial(destination, permit_all, None, binding)
            assert caught.value.errno == errno.EADDRNOTAVAIL

            def refuse(host: IP) -> IP:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

            monkeypatch.setattr(dial, "route_to", refuse)
            assert (await fails(dials, destination)).reply_code == ReplyCode.NETWORK_UNREACHABLE

    run_once(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "name.test"])
def test_a_port_for_operators_is_never_dialled(run_once: Run, host: str) -> None:
    """By no address of this machine, and by no name of one; whatever may be dialled else."""

    async def main() -> None:
        own = LocalAddresses()
        async with target() as port, target() as other:
            own.private = frozenset((port,))
            dialer = Dialer(get_reactor(), FakeResolver("127.0.0.1"), 20, own)
            try:
                try:
                    found: str | IP = ip_address(host)
                except ValueError:
                    found = host
                with pytest.raises(DialError, match="is for the operators of this proxy") as caught:
                    await dialer.dial(Address(found, port), permit_all)
                assert caught.value.reply_code == ReplyCode.NOT_ALLOWED
                async with await dialer.dial(Address(LOCAL, other), permit_all) as stream:
                    await echoes(stream)
                own.addresses = frozenset((ip_address("192.0.2.1"),))
                with pytest.raises(DialError, match="for the operators"):
                    await dialer.dial(Address(ip_address("192.0.2.1"), port), permit_all)
            finally:
                await dialer.close()

    run_once(main)
