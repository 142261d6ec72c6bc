"""The egress through a pool: whose fault a failure is, who is tried next, what is counted, and what checks find."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from conftest import Run
from doubles import FakeResolver, config, until
from support import closed_port, target, tunnel
from tabi import Server, Session
from tabi.config import Listen
from tabi.egress.base import Egress
from tabi.egress.block import Block
from tabi.egress.direct import Direct
from tabi.egress.pool import Check, Pooled
from tabi.egress.socks5 import Socks5
from tabi.errors import AuthError, DialError, LimitExceeded, PolicyDenied, ProxyError, RemoteProtocolError
from tabi.net.dial import AddressFilter, Dialer
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.policy.grammar import Parameters
from tabi.policy.guard import allow_any_address
from tabi.policy.pool import Balance, Member, Pool
from tabi.wire.address import Address, parse_address
from tabi.wire.socks5 import Credentials

DESTINATION = parse_address("example.com:443")
REFUSED = DialError("127.0.0.1:1: connection refused", 5, 111)


class Fake(Egress):
    """An egress that does what a test says: an error, a wait without end (None), or a stream (True)."""

    def __init__(self, name: str, does: Exception | bool | None = True) -> None:
        self.name = name
        self.does = does
        self.asked = 0
        self.peers: list[socket.socket] = []
        self.greeting = b""

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        self.asked += 1
        if isinstance(self.does, Exception):
            raise self.does
        if self.does is None:
            await asyncio.Event().wait()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.peers.append(theirs)
        if self.greeting:
            theirs.send(self.greeting)
        return Stream(get_reactor(), ours)


@contextlib.contextmanager
def fakes(*does: Exception | bool | None) -> Iterator[list[Fake]]:
    """Egresses m0, m1 and so on."""
    made = [Fake(f"m{i}", what) for i, what in enumerate(does)]
    try:
        yield made
    finally:
        for fake in made:
            for peer in fake.peers:
                peer.close()


def pooled(
    egresses: list[Any], balance: Balance = "round-robin", seconds: float = 10, failures: int = 3, **options: Any
) -> Pooled:
    """A pool of them."""
    pool = Pool([Member(egress.name) for egress in egresses], balance, failures=failures)
    return Pooled("de", pool, {egress.name: egress for egress in egresses}, seconds, **options)


def session(client: str = "192.0.2.1:5") -> Session:
    """A session of its own."""
    return Session(1, "", parse_address(client), 0.0)


async def open_and_close(egress: Pooled, of: Session | None = None) -> None:
    """Open DESTINATION once."""
    (await egress.open(DESTINATION, allow_any_address, of)).close()


FAULTS = [
    REFUSED,
    DialError("no answer", 4, 110),
    ProxyError("not known", 7),
    AuthError("the proxy did not accept the user name and password"),
    RemoteProtocolError("version 0x48, expected 0x05"),
    ConnectionResetError(104, "Connection reset by peer"),
]

DOUBTS: list[Exception] = [
    ProxyError("general failure", 1),
    ProxyError("no answer"),
    TimeoutError("the deadline is over"),
]


@pytest.mark.parametrize("fault", FAULTS + DOUBTS, ids=repr)
def test_a_fault_of_a_member_is_noted_and_another_is_tried(run_once: Run, fault: Exception) -> None:
    """The client gets its stream, and knows nothing of it; after three such failures nobody goes there."""

    async def main() -> None:
        with fakes(fault, True) as made:
            egress = pooled(made, "least-connections")
            for _ in range(20):
                of = session()
                await open_and_close(egress, of)
                assert of.member == "m1"
                of.over()
            assert made[0].asked == 3
            assert made[1].asked == 20
            assert [member.running for member in egress.pool.members] == [0, 0]

    run_once(main)


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 8])
def test_a_refusal_of_the_destination_is_passed_on(run_once: Run, code: int) -> None:
    """Another upstream would say the same: it is not tried, and nobody is to blame."""

    async def main() -> None:
        with fakes(ProxyError("the proxy says no", code), True) as made:
            egress = pooled(made, "least-connections", failures=1)
            with pytest.raises(ProxyError, match="the proxy says no") as caught:
                await open_and_close(egress)
            assert caught.value.reply_code == code
            member = egress.pool.members[0]
            assert (member.failures, member.due, member.running) == (0, None, 0)
            assert made[1].asked == 0

    run_once(main)


def test_a_refusal_by_a_rule_says_nothing_of_a_member(run_once: Run) -> None:
    """It goes to the client; a trial that ends so is made again."""

    async def main() -> None:
        for error in (PolicyDenied("forbidden"), LimitExceeded("too much", "connections")):
            with fakes(error) as made:
                egress = pooled(made)
                (member,) = egress.pool.members
                for _ in range(3):
                    egress.pool.failed(member, -1000)
                with pytest.raises(type(error)):
                    await open_and_close(egress)
                assert (member.failures, member.trying, member.running) == (3, False, 0)
                made[0].does = True
                await open_and_close(egress)
                assert member.due is None

    run_once(main)


@pytest.mark.parametrize("doubt", DOUBTS, ids=repr)
def test_what_nobody_reaches_is_nobodys_fault(run_once: Run, doubt: Exception) -> None:
    """A client that asks again and again for a destination that does not answer leaves all members in."""

    async def main() -> None:
        with fakes(doubt, doubt, doubt) as made:
            egress = pooled(made)
            for _ in range(10):
                with pytest.raises(DialError, match="none of 3 members answers: m0: "):
                    await open_and_close(egress)
            assert [member.due for member in egress.pool.members] == [None] * 3
            made[1].does = True
            for _ in range(10):
                await open_and_close(egress)
            assert [member.due is None for member in egress.pool.members] == [False, True, False]

    run_once(main)


def test_a_doubtful_failure_of_a_trial_counts(run_once: Run) -> None:
    """Who is out has to show that it works; until then nobody waits for it."""

    async def main() -> None:
        with fakes(ProxyError("no answer")) as made:
            egress = pooled(made)
            (member,) = egress.pool.members
            for _ in range(3):
                egress.pool.failed(member, -1000)
            for _ in range(2):
                with pytest.raises(DialError, match="none of 1 members answers: m0: no answer"):
                    await open_and_close(egress)
            assert made[0].asked == 1

    run_once(main)


def test_when_nobody_answers_the_error_says_why(run_once: Run) -> None:
    """Reply 01, with what each member said last: the first five, also where they are out and not tried any more."""

    async def main() -> None:
        with fakes(REFUSED, AuthError("the proxy refused"), OSError(113, "No route to host")) as made:
            egress = pooled(made, failures=1)
            text = (
                "pool de: none of 3 members answers: m0: 127.0.0.1:1: connection refused; m1: the proxy refused; "
                "m2: No route to host"
            )
            for _ in range(2):
                with pytest.raises(DialError) as caught:
                    await open_and_close(egress)
                assert (str(caught.value), caught.value.reply_code) == (text, 1)
            assert [fake.asked for fake in made] == [1, 1, 1]
        with fakes(*[REFUSED] * 7) as made:
            with pytest.raises(DialError, match=r"none of 7 .*m4: 127\.0\.0\.1:1: connection refused; and 2 more$"):
                await open_and_close(pooled(made))
            with pytest.raises(DialError, match=r"^pool de: no member has what the user name asks for$"):
                await open_and_close(pooled(made, label="fr"))

    run_once(main)


def test_a_member_that_says_nothing_leaves_time_for_others(run_once: Run) -> None:
    """It has its part of the deadline; one that had less than that is not blamed."""

    async def main() -> None:
        with fakes(None, True) as made:
            egress = pooled(made, "least-connections", seconds=10, each=0.01, failures=1)
            await open_and_close(egress)
            assert egress.reasons == {egress.pool.members[0]: "no answer within 0.01 s"}
            assert egress.pool.members[0].due is not None
        with fakes(None) as made:
            egress = pooled(made, seconds=0.01, each=5, failures=1)
            with pytest.raises(DialError, match=r"answers: m0: no answer within the 0\.01 s that were left$"):
                await open_and_close(egress)
            assert egress.pool.members[0].due is None

    run_once(main)


def test_a_client_that_leaves_gives_everything_back(run_once: Run) -> None:
    """Cancelled while a member is opened: nothing is counted, and a trial is free again."""

    async def main() -> None:
        with fakes(None) as made:
            egress = pooled(made)
            (member,) = egress.pool.members
            for _ in range(3):
                egress.pool.failed(member, -1000)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(open_and_close(egress, session()))
                await until(lambda: member.trying)
                assert member.running == 1
                task.cancel()
            assert (member.running, member.trying, member.failures) == (0, False, 3)

    run_once(main)


def test_a_session_counts_until_it_is_over(run_once: Run) -> None:
    """Requests are counted at the member that has them; without a session nothing is."""

    async def main() -> None:
        with fakes(True, True) as made:
            egress = pooled(made, "least-connections")
            first, second = session(), session()
            for of in (first, second):
                await open_and_close(egress, of)
            assert (first.member, second.member) == ("m0", "m1")
            assert [member.running for member in egress.pool.members] == [1, 1]
            second.over()
            await open_and_close(egress)
            assert [member.running for member in egress.pool.members] == [1, 0]

    run_once(main)


def test_what_sticks_together(run_once: Run) -> None:
    """What the key is made of: here clients, whose requests all go to one member."""

    async def main() -> None:
        with fakes(True, True, True) as made:
            egress = pooled(made, "sticky", by=["client"])
            found = []
            for client in ("192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.2:9"):
                of = session(client)
                await open_and_close(egress, of)
                found.append(of.member)
            assert found == ["m0", "m1", "m0", "m1"]

    run_once(main)


def test_a_way_without_a_proxy_is_not_to_blame_for_destinations(run_once: Run) -> None:
    """Of `Direct` a connection that is refused is the destination's part; that of descriptors is its own."""

    async def main() -> None:
        direct = Direct(Dialer(get_reactor(), FakeResolver(), 10))
        with closed_port() as port:
            egress = pooled([direct], failures=1)
            with pytest.raises(DialError) as caught:
                await egress.open(parse_address(f"127.0.0.1:{port}"), allow_any_address)
            assert caught.value.reply_code == 5
            assert egress.pool.members[0].due is None
            direct.open = Fake("direct", DialError("too many open files", 1, 24)).open  # type: ignore[method-assign]
            with pytest.raises(DialError, match="none of 1 members answers: direct: too many open files"):
                await egress.open(DESTINATION, allow_any_address)
        await direct.dialer.close()

    run_once(main)


# --- checks ---


async def checked(egress: Pooled) -> None:
    """One round of its checks."""
    assert egress.check is not None
    await egress.check_all(egress.check)


def test_checks_find_who_does_not_work_and_who_does_again(run_once: Run) -> None:
    """Whatever the failure is: the destination of a check is one that can be reached. Some are checked at a time."""

    async def main() -> None:
        with fakes(ProxyError("host unreachable", 4), None, *[True] * 40) as made:
            egress = pooled(made, check=Check(DESTINATION, seconds=0.02))
            for _ in range(3):
                await checked(egress)
            out = [member.name for member in egress.pool.members if member.due is not None]
            assert out == ["m0", "m1"]
            assert list(egress.reasons.values()) == ["check: host unreachable", "check: no answer within 0.02 s"]
            made[0].does = made[1].does = True
            await checked(egress)
            assert all(member.due is None for member in egress.pool.members)
            assert not egress.reasons
            assert all(fake.asked == 4 for fake in made)

    run_once(main)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", None),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "check: status 503"),
        (b"SSH-2.0-OpenSSH\r\n", "check: status line: expected HTTP/1.1 and a status of three digits"),
        (b"HTTP/1.1 200", "check: the connection ended without an answer"),
    ],
)
def test_a_check_may_ask_in_http(run: Run, answer: bytes, reason: str | None) -> None:
    """A status below 500 counts, as does nothing else."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)

    async def main() -> None:
        direct = Direct(Dialer(get_reactor(), FakeResolver(), 10))
        async with target(serve) as port:
            egress = pooled([direct], check=Check(parse_address(f"127.0.0.1:{port}"), head="/health"))
            await checked(egress)
            assert asked == [b"HEAD /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port]
            assert egress.reasons.get(egress.pool.members[0]) == reason
        await direct.dialer.close()

    run(main)


def test_checks_go_on_until_they_are_closed(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Round after round, also after one that failed by a mistake of ours; without a check nothing begins."""

    async def main() -> None:
        with fakes(ValueError("a mistake")) as made:
            egress = pooled(made, check=Check(DESTINATION, every=0.001))
            egress.start()
            egress.start()
            await until(lambda: made[0].asked > 1)
            made[0].does = True
            await until(lambda: made[0].asked > 4)
            await egress.close()
            await egress.close()
            assert "pool de: a check failed" in caplog.text
            egress = pooled(made)
            egress.start()
            assert egress.checking is None
            await egress.close()
            made[0].does = None
            egress = pooled(made, check=Check(DESTINATION))
            egress.start()
            asked = made[0].asked
            await until(lambda: made[0].asked > asked)
            await egress.close()  # in the middle of one

    run_once(main)


# --- with real servers ---


class Upstream(Socks5):
    """A SOCKS5 proxy as a member."""

    def __init__(self, name: str, proxy: Address, login: Credentials | None = None) -> None:
        self.name = name
        self.dialer = Dialer(get_reactor(), FakeResolver(), 10)
        super().__init__(Direct(self.dialer), proxy, login, self.dialer.deadlines)

    async def open(self, destination: Address, address_filter: AddressFilter, session: Session | None = None) -> Stream:
        return await super().open(destination, address_filter)


@contextlib.asynccontextmanager
async def through(egress: Pooled, **options: Any) -> AsyncIterator[Server]:
    """A server whose way out is a pool."""
    async with Server("socks5://127.0.0.1:0", config=config(), **options) as server:
        server.parts.gate.replace(server.parts.gate.policy, {"direct": egress})
        try:
            yield server
        finally:
            for member in egress.egresses.values():
                if isinstance(member, Upstream):
                    await member.dialer.close()


async def echo_through(server: Server, port: int) -> None:
    """Send something there and back."""
    async with tunnel(server.addresses[0], port) as (reader, writer):
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"


def loads(egress: Pooled) -> list[int]:
    """How many requests each member has."""
    return [member.running for member in egress.pool.members]


def test_tunnels_through_real_upstreams(run: Run) -> None:
    """They are spread, and counted at their member until their end; one upstream closes and the others do its work."""
    ended: asyncio.Queue[Session] = asyncio.Queue()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(Server("socks5://127.0.0.1:0")) for _ in range(3)]
            members = [Upstream(f"m{i}", server.addresses[0]) for i, server in enumerate(servers)]
            egress = pooled(members, "least-connections")
            port = await stack.enter_async_context(target())
            async with through(egress, on_close=ended.put_nowait) as server:
                async with contextlib.AsyncExitStack() as tunnels:
                    for _ in range(6):
                        await tunnels.enter_async_context(tunnel(server.addresses[0], port))
                    assert loads(egress) == [2, 2, 2]
                members_seen = [(await ended.get()).member for _ in range(6)]
                assert sorted(map(str, members_seen)) == ["m0", "m0", "m1", "m1", "m2", "m2"]
                assert loads(egress) == [0, 0, 0]
                await servers[0].close()
                for _ in range(12):
                    await echo_through(server, port)
                assert {(await ended.get()).member for _ in range(12)} == {"m1", "m2"}
                assert egress.pool.members[0].due is not None

    run(main)


def test_a_destination_that_refuses_is_passed_on_by_real_upstreams(run_once: Run) -> None:
    """The client gets reply 05, and the upstream stays in."""

    async def main() -> None:
        async with Server("socks5://127.0.0.1:0") as upstream:
            egress = pooled([Upstream("m0", upstream.addresses[0])], failures=1)
            async with through(egress) as server:
                with closed_port() as port, pytest.raises(AssertionError, match="reply 05050001"):
                    await echo_through(server, port)
                async with target() as port:
                    await echo_through(server, port)

    run_once(main)


def test_an_upstream_that_does_not_let_us_in_is_out(run_once: Run) -> None:
    """A password that is wrong, and a server that speaks something else: both are said to whoever reads the log."""
    ended: asyncio.Queue[Session] = asyncio.Queue()

    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async def main() -> None:
        listen = Listen("socks5://127.0.0.1:0", users="required")
        async with Server(config=config(listen), users={"alice": "secret"}) as upstream, target(http) as other:
            members = [
                Upstream("m0", upstream.addresses[0], Credentials(b"alice", b"wrong")),
                Upstream("m1", parse_address(f"127.0.0.1:{other}")),
            ]
            async with through(pooled(members), on_close=ended.put_nowait) as server:
                with pytest.raises(AssertionError, match="reply 05010001"):
                    await echo_through(server, 80)
                error = (await ended.get()).error
                assert error is not None
                assert re.match(
                    r"pool de: none of 2 members answers: m0: 127\.0\.0\.1:\d+: the proxy did not accept", error
                )
                assert "; m1: " in error
                assert "wrong" not in error

    run_once(main)


def test_checks_through_real_upstreams(run_once: Run) -> None:
    """One that closes is found without a request, and found again when it is back."""

    async def main() -> None:
        async with Server("socks5://127.0.0.1:0") as first, target() as port:
            second = Server("socks5://127.0.0.1:0")
            await second.start()
            members = [Upstream("m0", first.addresses[0]), Upstream("m1", second.addresses[0])]
            egress = pooled(members, check=Check(parse_address(f"127.0.0.1:{port}"), every=0.005))
            m0, m1 = egress.pool.members
            async with through(egress):
                egress.start()
                url = second.urls[0]
                await second.close()
                await until(lambda: m1.due is not None)
                assert m0.due is None
                async with Server(url):
                    await until(lambda: m1.due is None)
                await egress.close()

    run_once(main)


def test_what_a_member_cannot_do_is_no_fault_of_it(run_once: Run) -> None:
    """Members that carry connections alone are passed over; where all are such, the reply is 07, and nobody is out."""

    async def main() -> None:
        with fakes(True, True) as made:
            egress = pooled(made, failures=1)
            for _ in range(3):
                with pytest.raises(DialError, match=r"can do that: egress m\d: it carries") as caught:
                    await egress.ask(2, DESTINATION, allow_any_address)
                assert caught.value.reply_code == 7
                with pytest.raises(DialError, match="no member that answers can do that"):
                    await egress.associate()
            assert [(member.due, member.running) for member in egress.pool.members] == [(None, 0), (None, 0)]

        async def refuse(*asked: object) -> Any:
            raise REFUSED

        with fakes(True, True) as made:  # one that does not answer at all says nothing of what it can
            made[1].ask = refuse  # type: ignore[assignment,method-assign]
            egress = pooled(made, failures=1)
            with pytest.raises(DialError, match="no member that answers can do that"):
                await egress.ask(2, DESTINATION, allow_any_address)
            assert [member.due is None for member in egress.pool.members] == [True, False]

    run_once(main)


def test_a_pool_of_straight_ways_resolves_here(run_once: Run) -> None:
    """As each of them does; a proxy among them, and names may be its own."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), FakeResolver(), 10)
        straight = {name: Direct(dialer, name=name) for name in ("a", "b")}
        members = [Member(name) for name in straight]
        assert Pooled("p", Pool(members, "random"), straight, 10).resolves_locally
        pool = Pool(members, "least-connections")
        path = await Pooled("p", pool, straight, 10).associate()
        assert (path.resolves_locally, sum(member.running for member in pool.members)) == (True, 1)
        path.close()
        path.close()
        assert sum(member.running for member in pool.members) == 0
        await dialer.close()

    run_once(main)


# --- what it says of itself ---


def test_which_member_would_take_a_session() -> None:
    """Its name and the reason; by lot only how many there are; a label that none has, or that nobody is in, is told."""
    names = [Fake("m0"), Fake("m1")]
    for fake in names:
        fake.name = f"socks5://{fake.name}"
    egress = pooled(names)
    for _ in range(2):
        assert egress.explain_member(DESTINATION, session(), 0) == "socks5://m0: it has the next turn"
    assert pooled(names, "random").explain_member(DESTINATION, session(), 0) == "one of 2 members: drawn by weight"
    asks = session()
    asks.parameters = Parameters(("de",))
    with pytest.raises(DialError, match="pool de: no member has what the user name asks for"):
        egress.explain_member(DESTINATION, asks, 0)
    for member in egress.pool.members:
        for _ in range(3):
            egress.pool.failed(member, 0)
    with pytest.raises(DialError, match="pool de: none of 2 members answers"):
        egress.explain_member(DESTINATION, session(), 0.5)


def test_a_pool_leads_nowhere_only_with_all_of_its_members() -> None:
    """One that does not is enough."""
    blocked = [Block("a"), Block("b")]
    assert pooled(blocked).leads_nowhere
    assert not pooled([*blocked, Fake("c")]).leads_nowhere
