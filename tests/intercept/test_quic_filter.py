"""QuicFilter: which QUIC is dropped, by destination and by name, and that all else goes on."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from conftest import Run
from hellos import body, server_name, vector
from quic import V2, crypto, first_datagrams, initial
from rule_cases import MONDAY_NOON, session
from tabi.client import Proxy
from tabi.config import Config, InterceptConfig, Listen, Log
from tabi.intercept.quic import MAX_CONNECTIONS, MAX_DESTINATIONS
from tabi.intercept.quic_filter import FilteredAssociation, QuicFilter
from tabi.policy.intercepts import InterceptRule, Intercepts, make_matcher
from tabi.policy.rules import Texts
from tabi.relay.datagram_inspector import Datagram, DatagramInspector, Emit
from tabi.server.server import Server
from tabi.session import Session
from tabi.wire.address import Address, parse_host

WHERE = Address(parse_host("198.51.100.7"), 443)
REFUSE: dict[str, Any] = {"quic": "refuse"}
MESSAGE = b"\1" + vector(3, body(server_name(b"name.test")))


def entries(*said: dict[str, Any]) -> Intercepts:
    """Entries in a row."""
    made = []
    for number, one in enumerate(said):
        texts: dict[str, Any] = {key: value for key, value in one.items() if key in Texts._fields}
        settings = InterceptRule(number, **{key: value for key, value in one.items() if key not in Texts._fields})
        made.append((settings, make_matcher(settings, Texts(**texts))))
    return Intercepts(made, lambda: MONDAY_NOON)


class Kit:
    """An association through a filter. ``passed`` are the payloads that were sent on."""

    def __init__(self, *said: dict[str, Any], inner: DatagramInspector | None = None) -> None:
        self.session: Session = session(command="associate")
        self.session.drops = {}
        self.passed: list[bytes] = []
        found = QuicFilter(entries(*said), inner).begin(self.session)
        assert found is not None
        self.inspect = found

    def send(self, *payloads: bytes, where: Address = WHERE, direction: Any = "up") -> list[bytes]:
        """Have datagrams inspected; returns those that were sent on."""
        self.passed.clear()
        for payload in payloads:
            self.inspect(Datagram(self.session, direction, where, payload), self.emit)
        return list(self.passed)

    def emit(self, payload: Any, address: Any = None, delay: float = 0.0) -> None:
        """See `Emit`."""
        self.passed.append(payload)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ([REFUSE], True),
        ([{**REFUSE, "hosts": ("*.test",)}], True),
        ([{**REFUSE, "hosts": ("198.51.100.0/24",)}], True),
        ([{**REFUSE, "hosts": ("other.test",)}], False),
        ([{**REFUSE, "ports": ("443",)}], True),
        ([{**REFUSE, "ports": ("444",)}], False),
        ([{"action": "pass", "hosts": ("name.test",)}, REFUSE], False),
        ([{"action": "pass", "hosts": ("other.test",)}, REFUSE], True),
        ([{"hosts": ("name.test",)}, REFUSE], False),
        ([{**REFUSE, "hours": "Sun"}], False),
    ],
)
@pytest.mark.parametrize("version", [1, V2])
def test_quic_is_refused_by_destination_or_by_name(said: list[dict[str, Any]], refused: bool, version: int) -> None:
    """As entries match TLS: the first by either counts, and only then what it says of QUIC."""
    kit = Kit(*said)
    datagrams = first_datagrams("name.test", version=version)
    assert kit.send(*datagrams) == ([] if refused else datagrams)
    assert kit.session.drops == ({"denied": len(datagrams)} if refused else {})


def test_a_hello_in_several_datagrams() -> None:
    """The first may go on before the name is known; the rest does not, nor does it when it is sent again."""
    datagrams = first_datagrams("name.test", tuple(f"protocol-{number}" for number in range(300)))
    assert len(datagrams) > 2
    kit = Kit({**REFUSE, "hosts": ("name.test",)})
    assert kit.send(*datagrams) == datagrams[:-1]
    assert kit.send(*datagrams) == []
    allowed = Kit({**REFUSE, "hosts": ("other.test",)})
    assert allowed.send(*datagrams, *datagrams) == datagrams * 2


def test_a_later_datagram_with_the_servers_connection_id() -> None:
    """Its keys are those of the first one."""
    first, rest = initial(crypto(0, MESSAGE[:9])), initial(crypto(9, MESSAGE[9:]), b"servers", 1, b"destined", 1)
    for host, refused in (("name.test", True), ("other.test", False)):
        kit = Kit({**REFUSE, "hosts": (host,)})
        assert kit.send(first, rest) == ([first] if refused else [first, rest])


def test_what_cannot_be_read() -> None:
    """Other versions, and packets with keys that nobody knows: the destination decides, or what was seen of it."""
    unknown = b"\xc3\xfa\xce\xb0\x0c\x08destined\0" + bytes(1200)
    wrong = initial(crypto(0, MESSAGE), b"one", keys=b"other")
    cut = b"\xc0\0\0\0\1\0\0\0\x7f\xff\xff\xff" + bytes(1200)
    assert Kit(REFUSE).send(unknown, wrong, cut) == []
    assert Kit({**REFUSE, "hosts": ("name.test",)}).send(unknown, wrong, cut) == [unknown, wrong, cut]
    kit = Kit({**REFUSE, "hosts": ("name.test",)})
    assert kit.send(*first_datagrams("name.test"), unknown) == []
    exempt = Kit({"action": "pass", "hosts": ("name.test",)}, REFUSE)
    datagrams = first_datagrams("name.test")
    assert exempt.send(*datagrams, unknown) == [*datagrams, unknown]
    elsewhere = Address(parse_host("198.51.100.8"), 443)
    assert exempt.send(unknown, where=elsewhere) == []


def test_what_is_no_quic_goes_on() -> None:
    """DNS, empty datagrams, short headers, Handshake packets; and all that comes down."""
    kit = Kit(REFUSE)
    others = [b"", b"\0\1\1\0", b"\x40" + bytes(1300), b"\xe0\0\0\0\1\0\0\4abcd", b"\xc0\0\0\0\1"]
    assert kit.send(*others) == others
    down = first_datagrams()
    assert kit.send(*down, direction="down") == down


def test_a_hello_that_no_server_takes() -> None:
    """It is judged by its destination."""
    broken = initial(b"\x1e")
    assert Kit(REFUSE).send(broken) == []
    assert Kit({**REFUSE, "hosts": ("name.test",)}).send(broken) == [broken]


def test_what_is_remembered_is_bounded() -> None:
    """Destinations, and connections to each; the oldest ones are forgotten."""
    kit = Kit({**REFUSE, "hosts": ("name.test",)})
    filtered: Any = kit.inspect
    known = filtered.__self__.connections.known
    assert isinstance(filtered.__self__, FilteredAssociation)
    for port in range(MAX_DESTINATIONS + 5):
        kit.send(initial(crypto(0, MESSAGE)), where=Address(WHERE.host, 1 + port))
    assert len(known) == MAX_DESTINATIONS
    for number in range(MAX_CONNECTIONS + 5):
        kit.send(initial(crypto(0, MESSAGE), b"destined%d" % number))
    assert len(known) == MAX_DESTINATIONS
    assert len(known[WHERE]) == MAX_CONNECTIONS


class Shout(DatagramInspector):
    """Another inspector, which changes what it sees."""

    def inspect(self, datagram: Datagram, emit: Emit) -> None:
        """See `DatagramInspector`."""
        emit(datagram.payload.upper())


def test_another_inspector_behind_it() -> None:
    """It sees what is not dropped."""
    kit = Kit(REFUSE, inner=Shout())
    assert kit.send(b"a", *first_datagrams(), b"b") == [b"A", b"B"]


def test_associations_that_are_left_alone() -> None:
    """Those of clients whose QUIC no entry refuses, at any hour: they go at full speed, or to the other inspector."""
    asks = session(user="bob", command="associate")
    for said, alone in (
        ({}, True),
        ({**REFUSE, "action": "pass"}, True),
        ({**REFUSE, "users": ("alice",)}, True),
        ({**REFUSE, "commands": ("connect",)}, True),
        ({**REFUSE, "hours": "Sun"}, False),
        ({**REFUSE, "ports": ("443",)}, False),
        ({**REFUSE, "hosts": ("name.test",), "users": ("bob",)}, False),
    ):
        assert (QuicFilter(entries(said)).begin(asks) is None) == alone
        shout = Shout()
        assert (QuicFilter(entries(said), shout).begin(asks) == shout.inspect) == alone


def test_without_a_count() -> None:
    """A session that counts no drops is no failure."""
    kit = Kit(REFUSE)
    kit.session.drops = None
    assert kit.send(*first_datagrams()) == []


def test_a_server_refuses_quic(run_once: Run) -> None:
    """As the configuration says it: what a client of QUIC sends first does not arrive, and is counted."""

    async def main() -> None:
        over: list[Session] = []
        refusing = InterceptConfig(commands=["associate"], quic="refuse", hosts=["name.test"])
        config = Config(listen=[Listen("socks5://127.0.0.1:0")], log=Log("none"), intercept=[refusing])
        with socket.socket(type=socket.SOCK_DGRAM) as there:
            there.bind(("127.0.0.1", 0))
            there.setblocking(False)
            port = there.getsockname()[1]
            async with Server(config=config, on_close=over.append) as server:
                async with Proxy(server.url).associate() as association:
                    other = first_datagrams("other.test")[0]
                    for payload in (first_datagrams("name.test")[0], other, b"plain"):
                        await association.send(payload, ("127.0.0.1", port))
                    received = [await asyncio.get_running_loop().sock_recv(there, 2000) for _ in range(2)]
                    assert received == [other, b"plain"]
                await server.drain()
        assert over[0].drops == {"denied": 1}

    run_once(main)
