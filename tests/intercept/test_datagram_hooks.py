"""DatagramHooks: which datagrams hooks see, what they may do with them, and hooks that wait."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dns.message
import dns.rrset
import pytest

from conftest import Run
from datagrams import association, destination, unwrap
from doubles import FakeResolver
from hellos import body, server_name, vector
from quic import crypto, first_datagrams, initial
from rule_cases import MONDAY_NOON, session
from tabi import Server
from tabi.client import Proxy
from tabi.config import Config, InterceptConfig, Log
from tabi.intercept.datagram_hooks import MAX_CONNECTIONS, MAX_OCTETS, MAX_WAITING, DatagramHooks, HookedAssociation
from tabi.intercept.events import DatagramInfo, QuicInfo
from tabi.intercept.hooks import Hooks, in_thread
from tabi.intercept.scripts import load_script
from tabi.policy.intercepts import InterceptRule, Intercepts, make_matcher
from tabi.policy.rules import Texts
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit
from tabi.session import Session
from tabi.wire.address import Address, parse_address, parse_host
from tabi.wire.datagram import encode_header

WHERE = Address(parse_host("198.51.100.7"), 443)
RESOLVER = Address(parse_host("198.51.100.7"), 53)
MESSAGE = b"\1" + vector(3, body(server_name(b"name.test")))


def hook(see: Any) -> object:
    """An object with a hook of datagrams."""
    return SimpleNamespace(udp_data=see)


class Kit:
    """An association, by default of one entry for all; ``passed`` are the payloads that were sent on."""

    def __init__(
        self, *see: Any, said: tuple[dict[str, Any], ...] = ({},), inner: DatagramInspector | None = None, **keys: Any
    ) -> None:
        made = []
        for number, one in enumerate(said):
            texts: dict[str, Any] = {key: value for key, value in one.items() if key in Texts._fields}
            rule = InterceptRule(number, **{key: value for key, value in one.items() if key not in Texts._fields})
            made.append((rule, make_matcher(rule, Texts(**texts))))
        self.hooks = Hooks([hook(one) for one in see], **keys)
        hooks = {rule: self.hooks for rule, _ in made if rule.action == "intercept"}
        self.owner = DatagramHooks(Intercepts(made, lambda: MONDAY_NOON), hooks, inner)
        self.session: Session = session(command="associate")
        self.session.drops = {}
        self.passed: list[bytes] = []
        found: Any = self.owner.begin(self.session)
        self.association: HookedAssociation = found.__self__

    def send(self, *payloads: bytes, where: Address = WHERE, direction: Any = "up", named: Any = None) -> list[bytes]:
        """Have datagrams inspected; returns those that were sent on by then."""
        self.passed.clear()
        for payload in payloads:
            self.association.inspect(Datagram(self.session, direction, where, payload, named), self.emit)
        return list(self.passed)

    def emit(self, payload: Any, address: Any = None, delay: float = 0.0) -> None:
        """See `Emit`."""
        self.passed.append(payload)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_a_hook_sees() -> None:
    """Who sends what to whom: one connection for each destination, both ways."""
    seen: list[DatagramInfo] = []
    kit = Kit(seen.append)
    assert kit.send(b"a") == [b"a"]
    assert kit.send(b"b", direction="down") == [b"b"]
    kit.send(b"c", where=Address("name.test", 9))
    assert [(one.direction, one.payload, one.dns, one.quic) for one in seen] == [
        ("up", b"a", None, None),
        ("down", b"b", None, None),
        ("up", b"c", None, None),
    ]
    first, second, third = (one.connection for one in seen)
    assert first is second
    assert (first.host, first.port) == ("198.51.100.7", 443)
    assert (third.host, third.port, third.id) == ("name.test", 9, first.id)
    assert first.client == (str(kit.session.client.host), kit.session.client.port)
    assert kit.session.intercepted == "intercept[0]"


def test_a_hook_changes_and_drops() -> None:
    """What it leaves is sent; the next hook sees that, unless it was dropped, which is counted."""

    def first(datagram: DatagramInfo) -> None:
        if datagram.payload == b"drop":
            datagram.drop()
        datagram.payload += b"!"

    seen: list[bytes] = []
    kit = Kit(first, lambda datagram: seen.append(datagram.payload))
    assert kit.send(b"a", b"drop", b"b") == [b"a!", b"b!"]
    assert seen == [b"a!", b"b!"]
    assert kit.session.drops == {"denied": 1}


class Shout(DatagramInspector):
    """Another inspector, which changes what it sees."""

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """See `DatagramInspector`."""
        emit(datagram.payload.upper())


def test_another_inspector_behind_it() -> None:
    """It sees what hooks have left."""

    def change(datagram: DatagramInfo) -> None:
        datagram.payload = b"changed " + datagram.payload

    assert Kit(change, inner=Shout()).send(b"a") == [b"CHANGED A"]
    assert Kit(change, said=({"ports": ("1",)},), inner=Shout()).send(b"a") == [b"A"]


@pytest.mark.parametrize(
    ("said", "where", "seen"),
    [
        (({"hosts": ("198.51.100.0/24",)},), WHERE, True),
        (({"hosts": ("name.test",)},), Address("name.test", 443), True),
        (({"hosts": ("name.test",)},), WHERE, False),
        (({"ports": ("443",)},), WHERE, True),
        (({"ports": ("53",)},), WHERE, False),
        (({"action": "pass", "ports": ("443",)}, {}), WHERE, False),
        (({"action": "pass", "ports": ("53",)}, {}), WHERE, True),
        (({"hours": "Sun"},), WHERE, False),
    ],
)
def test_the_entry_is_found_for_each_datagram(said: tuple[dict[str, Any], ...], where: Address, seen: bool) -> None:
    """By its destination, or up to a sender; what is not chosen goes on."""
    found: list[DatagramInfo] = []
    kit = Kit(found.append, said=said)
    for direction in ("up", "down"):
        assert kit.send(b"a", where=where, direction=direction) == [b"a"]
    assert len(found) == (2 if seen else 0)


def test_what_comes_down_is_known_by_the_name_that_was_asked_for() -> None:
    """Where the client gave a name, and the sender is its address."""
    found: list[DatagramInfo] = []
    kit = Kit(found.append, said=({"hosts": ("name.test",)},))
    kit.send(b"a", where=Address("name.test", 443))
    kit.send(b"b", direction="down", named=Address("name.test", 443))
    kit.send(b"c", direction="down")
    assert [one.payload for one in found] == [b"a", b"b"]
    assert found[0].connection is found[1].connection


def test_associations_that_are_left_alone() -> None:
    """Of clients that no entry with a hook of datagrams can match."""
    for said, see, alone in (
        ({}, print, False),
        ({}, None, True),
        ({"action": "pass"}, print, True),
        ({"users": ("alice",)}, print, True),
        ({"commands": ("connect",)}, print, True),
        ({"hosts": ("name.test",), "hours": "Sun"}, print, False),
    ):
        rule = InterceptRule(0, action=said.get("action", "intercept"))  # type: ignore[arg-type]
        texts: dict[str, Any] = {key: value for key, value in said.items() if key in Texts._fields}
        intercepts = Intercepts([(rule, make_matcher(rule, Texts(**texts)))], lambda: MONDAY_NOON)
        hooks = {rule: Hooks([SimpleNamespace(request=print) if see is None else hook(see)])}
        if rule.action == "pass":
            hooks = {}
        asks = session(user="bob", command="associate")
        assert (DatagramHooks(intercepts, hooks).begin(asks) is None) == alone, said
        shout = Shout()
        assert (DatagramHooks(intercepts, hooks, shout).begin(asks) == shout.inspect) == alone


def test_dns_is_read_when_it_is_asked_for() -> None:
    """Of port 53, both ways; what a hook has put in its place is read anew."""
    query = dns.message.make_query("Ads.Example", "AAAA", id=7)
    answer = dns.message.make_response(query)
    answer.answer.append(dns.rrset.from_text("ads.example.", 30, "IN", "AAAA", "2001:db8::1"))
    seen: list[Any] = []

    def see(datagram: DatagramInfo) -> None:
        seen.append(datagram.dns)
        assert datagram.dns is datagram.dns
        datagram.payload = b"no message"
        assert datagram.dns is None

    kit = Kit(see)
    kit.send(query.to_wire(), where=RESOLVER)
    kit.send(answer.to_wire(), where=RESOLVER, direction="down")
    assert [(one.id, one.is_response, one.name, one.type, one.addresses) for one in seen] == [
        (7, False, "ads.example", 28, ()),
        (7, True, "ads.example", 28, ("2001:db8::1",)),
    ]
    assert [record.ttl for record in seen[1].answers] == [30]
    elsewhere: list[Any] = []
    Kit(lambda datagram: elsewhere.append(datagram.dns)).send(query.to_wire())
    assert elsewhere == [None]


@pytest.mark.parametrize("version", [1, 0x6B3343CF])
def test_quic_is_recognised(version: int) -> None:
    """By what the hello says, of each connection, also when it is sent again; nothing else has it."""
    seen: list[QuicInfo | None] = []
    kit = Kit(lambda datagram: seen.append(datagram.quic))
    first, second = first_datagrams("a.test", version=version)[0], first_datagrams("b.test", ("x", "y"))[0]
    kit.send(first, second, first, b"\x40later", b"", first[:-1])
    found = [None if one is None else (one.version, one.sni, one.alpn) for one in seen]
    assert found[:5] == [
        (version, "a.test", ("h3",)),
        (1, "b.test", ("x", "y")),
        (version, "a.test", ("h3",)),
        None,
        None,
    ]
    assert seen[0] is not None
    assert seen[0].ja4.startswith("q13d")
    seen.clear()
    kit.send(first, direction="down")
    assert seen == [None]


def test_a_hello_in_several_datagrams() -> None:
    """It is known with the last of them, so that a hook that drops it ends the connection."""

    def refuse(datagram: DatagramInfo) -> None:
        if datagram.quic is not None and datagram.quic.sni == "name.test":
            datagram.drop()

    datagrams = first_datagrams("name.test", tuple(f"protocol-{number}" for number in range(300)))
    kit = Kit(refuse)
    assert kit.send(*datagrams) == datagrams[:-1]
    assert kit.send(*datagrams) == []


def test_quic_is_chosen_by_its_name() -> None:
    """As TLS is; also what comes later, and what comes back. An exemption by the name holds where no name was asked
    for."""
    first = first_datagrams("name.test")[0]
    for said, chosen in (
        (({"hosts": ("name.test",)},), True),
        (({"hosts": ("other.test",)},), False),
        (({"action": "pass", "hosts": ("name.test",)}, {}), False),
    ):
        found: list[DatagramInfo] = []
        kit = Kit(found.append, said=said)
        kit.send(first, b"\x40later")
        kit.send(b"\x40back", direction="down")
        assert [one.payload for one in found] == ([first, b"\x40later", b"\x40back"] if chosen else [])


def test_what_is_no_quic_at_all() -> None:
    """A hello that no server takes is any datagram."""
    seen: list[QuicInfo | None] = []
    kit = Kit(lambda datagram: seen.append(datagram.quic))
    kit.send(initial(b"\x1e"), b"\xc0\0\0\0\1\xff", initial(crypto(0, MESSAGE), b"one", keys=b"other"))
    assert seen == [None] * 3


def test_connections_that_are_kept_are_bounded() -> None:
    """The oldest is forgotten."""
    kit = Kit(lambda datagram: None)
    for port in range(MAX_CONNECTIONS + 3):
        kit.send(b"a", where=Address(WHERE.host, 1 + port))
    assert len(kit.association.connections) == MAX_CONNECTIONS
    assert Address(WHERE.host, 1) not in kit.association.connections


def test_a_hook_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What it changed is undone, and the datagram goes on; the log has one message in a while, however many fail."""

    def broken(datagram: DatagramInfo) -> None:
        datagram.payload = b"broken"
        datagram.drop()
        raise ValueError("why")

    def no_octets(datagram: DatagramInfo) -> None:
        datagram.payload = "text"  # type: ignore[assignment]

    kit = Kit(broken, no_octets)
    assert kit.send(b"a", b"b") == [b"a", b"b"]
    assert messages(caplog) == ["hook SimpleNamespace.udp_data failed"]
    assert kit.session.drops == {}
    kit.hooks.quiet_until = 0.0
    kit.send(b"c")
    assert len(messages(caplog)) == 2


def test_a_hook_that_fails_where_that_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    """With ``on_error = "close"`` the datagram is dropped, and counted."""
    kit = Kit(lambda datagram: 1 / 0, close_on_error=True)
    assert kit.send(b"a", b"b") == []
    assert kit.session.drops == {"inspector": 2}
    assert messages(caplog) == ["hook SimpleNamespace.udp_data failed"]


def test_hooks_that_wait_keep_the_order(run_once: Run) -> None:
    """Each datagram waits for those before it, whatever hooks it has; others than that are not held up."""

    async def main() -> None:
        going = asyncio.Event()

        async def see(datagram: DatagramInfo) -> None:
            if datagram.payload == b"a":
                await going.wait()
            datagram.payload += b"!"

        @in_thread
        def blocking(datagram: DatagramInfo) -> None:
            datagram.payload += b"?"

        kit = Kit(see, blocking, said=({"ports": ("443",)},))
        assert kit.send(b"a", b"b") == []
        assert kit.send(b"elsewhere", where=RESOLVER) == [b"elsewhere"]
        kit.passed.clear()
        task = kit.association.task
        assert task is not None
        going.set()
        await task
        assert kit.passed == [b"a!?", b"b!?"]
        assert (kit.association.task, kit.association.held, kit.owner.held) == (None, 0, 0)
        kit.send(b"c")
        assert kit.association.task is not None
        await kit.association.task
        assert kit.passed == [b"c!?"]
        kit.hooks.close()

    run_once(main)


def test_hooks_that_wait_and_fail(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """As others: by an error, or by their deadline."""

    async def main() -> None:
        async def fails(datagram: DatagramInfo) -> None:
            datagram.payload = b"broken"
            raise ValueError

        async def waits(datagram: DatagramInfo) -> None:
            await asyncio.Event().wait()

        for see, close in ((fails, False), (waits, False), (fails, True), (waits, True)):
            kit = Kit(see, seconds=0.01, close_on_error=close)
            kit.send(b"a", b"b")
            assert kit.association.task is not None
            await kit.association.task
            assert kit.passed == ([] if close else [b"a", b"b"])
            assert kit.session.drops == ({"inspector": 2} if close else {})

    run_once(main)
    assert len(messages(caplog)) == 4


def test_an_inspector_that_raises_behind_hooks_that_wait(run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The datagram is dropped and counted, the first error is logged, and the others go on."""

    class Raises(DatagramInspector):
        def inspect(self, datagram: Datagram, emit: Emit) -> None:
            """See `DatagramInspector`."""
            if datagram.payload == b"bad":
                raise ValueError("why")
            emit(datagram.payload)

    async def main() -> None:
        async def see(datagram: DatagramInfo) -> None:
            await asyncio.sleep(0)

        kit = Kit(see, inner=Raises())
        kit.send(b"bad", b"a", b"bad", b"b")
        assert kit.association.task is not None
        await kit.association.task
        assert kit.passed == [b"a", b"b"]
        assert kit.session.drops == {"inspector": 2}
        assert kit.owner.held == 0

    run_once(main)
    assert [text.partition(": ")[2] for text in messages(caplog)] == ["the inspector of datagrams raised"]


@pytest.mark.parametrize("bound", ["number", "octets", "all"])
def test_what_waits_is_bounded(run_once: Run, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """By number and by octets, of an association and of all; more is dropped and counted, and the end gives it back."""

    async def main() -> None:
        async def see(datagram: DatagramInfo) -> None:
            await asyncio.Event().wait()

        kit = Kit(see)
        if bound == "all":
            monkeypatch.setattr("tabi.intercept.datagram_hooks.MAX_HELD", 1000)
        size = 4096 if bound == "octets" else 1
        kit.send(*[bytes(size)] * (MAX_WAITING + 10))
        kept = {"number": MAX_WAITING, "octets": MAX_OCTETS // (4096 + 512), "all": 1}[bound]
        assert len(kit.association.waiting) == kept
        assert kit.session.drops == {"waiting": MAX_WAITING + 10 - kept}
        await asyncio.sleep(0)
        task = kit.association.task
        assert task is not None
        kit.session.over()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert (kit.association.held, kit.owner.held, len(kit.association.waiting)) == (0, 0, 0)
        assert kit.session.drops == {"waiting": MAX_WAITING + 9}
        assert kit.passed == []

    run_once(main)


def test_without_a_count() -> None:
    """A session that counts no drops is no failure; one that is over has nothing to end."""
    kit = Kit(lambda datagram: datagram.drop())
    kit.session.drops = None
    assert kit.send(b"a") == []
    kit.session.over()


def test_the_example(caplog: pytest.LogCaptureFixture) -> None:
    """It drops what it blocks, with all below it, and HTTPS records; the rest is logged and goes on."""
    example = load_script(str(Path(__file__).resolve().parents[2] / "examples" / "datagram_hooks.py"))
    kit = Kit(*(one.udp_data for one in example.objects))  # type: ignore[attr-defined]
    questions = {
        name: dns.message.make_query(name, kind).to_wire()
        for name, kind in (("ads.example", "A"), ("a.ads.example", "A"), ("bads.example", "A"), ("x.example", "HTTPS"))
    }
    assert kit.send(*questions.values(), where=RESOLVER) == [questions["bads.example"]]
    answer = dns.message.make_response(dns.message.from_wire(questions["bads.example"]))
    answer.answer.append(dns.rrset.from_text("bads.example.", 30, "IN", "A", "192.0.2.1"))
    kit.send(answer.to_wire(), where=RESOLVER, direction="down")
    first = first_datagrams("name.test")
    assert kit.send(*first) == first
    client = kit.session.client.host
    assert messages(caplog) == [f"{client}: bads.example is 192.0.2.1", f"{client}: QUIC to name.test"]


def test_a_server_recognises_quic(run: Run) -> None:
    """What a client of QUIC sends through the client of tabi: one name is dropped, another goes on."""

    class Refuse:
        def udp_data(self, datagram: DatagramInfo) -> None:
            if datagram.quic is not None and datagram.quic.sni == "bad.test":
                datagram.drop()

    async def main() -> None:
        over: asyncio.Queue[Session] = asyncio.Queue()
        config = Config(log=Log("none"))
        async with Server("socks5://127.0.0.1:0", config=config, hooks=[Refuse()], on_close=over.put_nowait) as server:
            with destination() as there:
                async with Proxy(server.url).associate() as association:
                    good = first_datagrams("good.test")[0]
                    for payload in (first_datagrams("bad.test")[0], good):
                        await association.send(payload, ("127.0.0.1", there.address.port))
                    assert await association.receive() == (good, there.address)
                assert [data for data, _ in there.received] == [good]
        assert (await over.get()).drops == {"denied": 1}

    run(main)


def test_a_server_shows_datagrams(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question by name through a real association, as a resolver at home asks it, and its answer; one is dropped, and
    the access log's session says all that."""

    class Resolver:
        def __init__(self) -> None:
            self.seen: list[tuple[str, str, str, tuple[str, ...]]] = []

        def udp_data(self, datagram: DatagramInfo) -> None:
            found = datagram.dns
            if found is None:
                return
            self.seen.append((datagram.connection.host, datagram.direction, found.name, found.addresses))
            if found.name == "ads.test":
                datagram.drop()

    def answer(data: bytes, sender: Any) -> list[tuple[bytes, Any]]:
        message = dns.message.make_response(dns.message.from_wire(data))
        message.answer.append(dns.rrset.from_text("good.test.", 60, "IN", "A", "192.0.2.1"))
        return [(message.to_wire(), sender)]

    async def main() -> None:
        hook, over = Resolver(), asyncio.Queue[Session]()
        entry = InterceptConfig(hosts=["dns.test"], commands=["associate"])
        config = Config(log=Log("none"), intercept=[entry])
        async with Server(
            "socks5://127.0.0.1:0",
            config=config,
            hooks=[hook],
            resolver=FakeResolver({"dns.test": ["127.0.0.1"]}),
            on_close=over.put_nowait,
        ) as server:
            with destination(answer=answer) as there, destination() as other:
                monkeypatch.setattr("tabi.intercept.events.DNS_PORT", there.address.port)
                async with association(parse_address(server.url.removeprefix("socks5://"))) as client:
                    header = encode_header(Address("dns.test", there.address.port))
                    for name in ("ads.test", "good.test"):
                        client.send(header + dns.message.make_query(name, "A").to_wire())
                    sender, payload = unwrap(await client.receive())
                    assert sender == there.address
                    assert dns.message.from_wire(payload).answer[0].name.to_text() == "good.test."
                    assert await client.ask(other.header + b"other") == other.header + b"other"
                    client.leave()
            found = await over.get()
            assert found.drops == {"denied": 1}
            assert found.intercepted == "intercept[0]"
            assert hook.seen == [
                ("dns.test", "up", "ads.test", ()),
                ("dns.test", "up", "good.test", ()),
                ("dns.test", "down", "good.test", ("192.0.2.1",)),
            ]

    run(main)
