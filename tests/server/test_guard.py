"""The guard from outside: every form of an inner address, with every command, as a client meets it.

The clients are on loopback and ``guard.exempt`` is empty, so that they are clients as from anywhere else.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from conftest import Run
from datagrams import Client, destination
from doubles import FakeResolver, caller, client_from, expect_reset, greet, hear_ends, open_bind, read_reply, until
from support import client, request, target
from tabi import Config, Server, Session
from tabi.config import GuardConfig, LimitsConfig, Listen, Log, RuleConfig
from tabi.errors import DialError
from tabi.net.dial import IP, Dialer
from tabi.policy.guard import Guard as DestinationPolicy
from tabi.relay.udp_routes import UdpRouter
from tabi.wire.address import Address, parse_host
from tabi.wire.datagram import encode_header

INNER = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
    *("168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1"),
    *("192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::2", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    *("::ffff:0.0.0.0", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "64:ff9b:1:7f00:0:100::"),
    *("100::1", "2001::1", "2001:2::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"),
]
"""Addresses, one or more of each network that is an inner one, and of each form in which IPv6 holds IPv4."""

NUMBERS = ["127.1", "0x7f.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.01", "127.0.1", "0", "0xa9fea9fe"]
"""Names that are numbers, as resolvers read them: loopback, 0.0.0.0, 169.254.169.254."""

Ask = Callable[[Server, str, int], Awaitable[int]]


def guarded(**names: list[str]) -> Server:
    """A server whose guard exempts nobody; what is not among the names has no address."""
    config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=GuardConfig(exempt=[]))
    return Server(
        config=config, resolver=FakeResolver({name.replace("_", "."): found for name, found in names.items()})
    )


async def ask_socks5(server: Server, host: str, port: int, command: int = 1) -> int:
    """The reply to a request of SOCKS5."""
    async with client(server.addresses[0]) as (reader, writer):
        assert await greet((reader, writer)) == 0
        writer.write(request(host, port, command))
        return (await read_reply(reader))[0]


async def ask_bind(server: Server, host: str, port: int) -> int:
    """The first reply to a BIND that waits for this peer."""
    return await ask_socks5(server, host, port, 2)


async def ask_socks4(server: Server, host: str, port: int) -> int:
    """The reply to SOCKS4a, where a name stands for every address."""
    async with client(server.addresses[0]) as (reader, writer):
        writer.write(b"\x04\x01" + port.to_bytes(2) + b"\0\0\0\x01\0" + host.encode() + b"\0")
        return (await reader.readexactly(8))[1]


async def ask_connect(server: Server, host: str, port: int) -> int:
    """The status of a CONNECT of HTTP."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return await ask_http(server, f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n")


async def ask_forward(server: Server, host: str, port: int) -> int:
    """The status of a request that is forwarded."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return await ask_http(server, f"GET http://{place}/ HTTP/1.1\r\nHost: {place}\r\n\r\n")


async def ask_http(server: Server, text: str) -> int:
    """The status of an answer."""
    async with client(server.addresses[0]) as (reader, writer):
        writer.write(text.encode())
        return int((await reader.readuntil(b"\r\n")).split()[1])


async def dropped(server: Server, why: str, count: int, host: str) -> None:
    """Wait until the only association has dropped that many datagrams, which were all sent to ``host``."""
    (found,) = server.parts.associations.active
    await until(lambda: sum((found.session.drops or {}).values()) == count)
    assert (found.session.drops, found.session.datagrams_up) == ({why: count}, 0), host


COMMANDS: dict[str, tuple[Ask, int]] = {
    "connect": (ask_socks5, 2),
    "bind": (ask_bind, 2),
    "socks4": (ask_socks4, 91),
    "http-connect": (ask_connect, 403),
    "http-forward": (ask_forward, 403),
}
"""What is asked, and the answer to who may not."""


ANYBODY = ("0.0.0.0", "::", "::ffff:0.0.0.0")
"""To BIND: whoever calls. They are judged when they do."""


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_reaches_an_inner_address(run_once: Run, command: str) -> None:
    """Refused with what says so, and the log has the network that caught it; nothing is dialled."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with guarded() as server:
            hear_ends(server, ended.put_nowait)
            ask, expected = COMMANDS[command]
            for host in (*INNER, *NUMBERS):
                if command == "bind" and host in ANYBODY:
                    continue
                assert await ask(server, host, 1) == expected, host
                session = await ended.get()
                assert session.error is not None, host
                assert session.error.startswith("guard: "), host
                assert (session.close, session.address) == ("denied", None), host

    run_once(main)


def test_no_datagram_reaches_an_inner_address(run_once: Run) -> None:
    """Dropped and counted, with the reason in the log."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with guarded() as server:
            hear_ends(server, ended.put_nowait)
            for host in (*INNER, *NUMBERS):
                async with client(server.addresses[0]) as streams:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        associated = await Client(*streams, sock).associate()
                        associated.send(encode_header(Address(parse_host(host), 9)) + b"x")
                        await dropped(server, "denied", 1, host)
                session = await ended.get()
                assert session.drops == {"denied": 1}, host
                assert session.error is not None, host
                assert session.error.startswith("guard: "), host

    run_once(main)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1", "2606:4700::1111"], ["64:ff9b::a00:1", "8.8.8.8"]]
)
def test_no_name_leads_to_an_inner_address(run_once: Run, addresses: list[str], command: str) -> None:
    """One inner address among those of a name forbids it as a whole, whatever the command."""

    async def main() -> None:
        async with guarded(inner_test=addresses) as server:
            ask, expected = COMMANDS[command]
            assert await ask(server, "inner.test", 1) == expected

    run_once(main)


def test_a_name_with_an_inner_address_gets_no_datagram(run_once: Run) -> None:
    """The same for UDP, also for the outer one of its addresses."""

    async def main() -> None:
        async with guarded(inner_test=["8.8.8.8", "127.0.0.1"]) as server, client(server.addresses[0]) as streams:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, destination() as echo:
                associated = await Client(*streams, sock).associate()
                associated.send(encode_header(Address("inner.test", echo.address.port)) + b"x")
                (found,) = server.parts.associations.active
                await until(lambda: found.session.drops)
                assert found.session.drops == {"denied": 1}
                assert echo.received == []

    run_once(main)


def test_what_is_allowed_is_reached_and_nothing_beside_it(run_once: Run) -> None:
    """``guard.allow`` opens a network for every command; a neighbour of it stays closed."""

    async def main() -> None:
        guard = GuardConfig(allow=["127.0.0.1/32"], exempt=[])
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=guard)
        async with target() as port, Server(config=config) as server:
            assert await ask_socks5(server, "127.0.0.1", port) == 0
            assert await ask_socks5(server, "::ffff:127.0.0.1", port) == 0
            assert await ask_socks5(server, "127.1", port) == 0
            assert await ask_socks4(server, "127.0.0.1", port) == 90
            assert await ask_connect(server, "127.0.0.1", port) == 200
            assert await ask_socks5(server, "127.0.0.2", port) == 2
            async with client(server.addresses[0]) as streams:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, destination() as echo:
                    sock.setblocking(False)
                    associated = await Client(*streams, sock).associate()
                    assert (await associated.ask(echo.header + b"x"))[-1:] == b"x"

    run_once(main)


def test_the_proxy_does_not_lead_to_itself(run_once: Run) -> None:
    """Its own listeners are refused even where their network is allowed: a loop would use up all descriptors."""

    async def main() -> None:
        guard = GuardConfig(allow=["127.0.0.0/8"], exempt=[])
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=guard)
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(config=config, on_close=ended.put_nowait) as server:
            port = server.addresses[0].port
            assert await ask_socks5(server, "127.0.0.1", port) == 2
            assert (await ended.get()).error == (
                f"guard: 127.0.0.1 port {port} is a listener of this proxy, which a client from outside may not reach"
            )

    run_once(main)


class Rebinding(FakeResolver):
    """A name whose answer is another each time it is asked for: an outer address first, then this machine's."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = list(answers)

    async def resolve(self, name: str) -> list[IPv4Address | IPv6Address]:
        self.asked.append(name)
        return [ip_address(self.answers.pop(0))]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_checked_is_what_is_dialled(run_once: Run, command: str) -> None:
    """DNS rebinding: the resolver would say 127.0.0.1 the second time, but nobody asks it a second time."""

    async def main() -> None:
        resolver = Rebinding("127.0.0.2", "127.0.0.1")
        guard = GuardConfig(allow=["127.0.0.2"], exempt=[])
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=guard)
        async with target() as port, Server(config=config, resolver=resolver) as server:
            ask, _ = COMMANDS[command]
            await ask(server, "rebinding.test", port)  # 127.0.0.2 refuses the connection
            assert resolver.asked == ["rebinding.test"]
            assert await ask(server, "rebinding.test", port) == COMMANDS[command][1]
            assert resolver.asked == ["rebinding.test"] * 2

    run_once(main)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_rules_saw_is_what_is_dialled(run_once: Run, command: str) -> None:
    """A rule about networks has a name resolved: its decision, the guard's and the connection go by that one answer."""

    async def main() -> None:
        resolver = Rebinding("127.0.0.2", "127.0.0.1", "127.0.0.1", "127.0.0.1")
        rule = RuleConfig("deny", "no-loopback", ["127.0.0.1"])
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), rule=[rule])
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with target() as port, Server(config=config, resolver=resolver, on_close=ended.put_nowait) as server:
            ask, refused = COMMANDS[command]
            first = await ask(server, "rebinding.test", port)
            if command == "bind":  # it waits for its peer: that is answer enough
                assert first == 0
            else:
                assert first not in (0, 90, 200)  # 127.0.0.2 has nobody at that port
                assert (await ended.get()).rule is None
            assert resolver.asked == ["rebinding.test"]
            assert await ask(server, "rebinding.test", port) == refused
            assert resolver.asked == ["rebinding.test"] * 2
            while (session := await ended.get()).error is None or "rule" not in session.error:
                pass
            assert session.rule == "no-loopback"

    run_once(main)


def test_datagrams_to_a_name_go_where_it_was_checked(run_once: Run) -> None:
    """A name of an association is resolved once; its answer is judged, and is where datagrams go from then on."""

    async def main() -> None:
        resolver = Rebinding("127.0.0.2", "127.0.0.1")
        guard = GuardConfig(allow=["127.0.0.2"], exempt=[])
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=guard, limits=LimitsConfig())
        async with Server(config=config, resolver=resolver) as server, client(server.addresses[0]) as streams:
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
                destination("127.0.0.2") as allowed,
                destination("127.0.0.1", port=allowed.address.port) as forbidden,
            ):
                sock.setblocking(False)
                associated = await Client(*streams, sock).associate()
                header = encode_header(Address("rebinding.test", allowed.address.port))
                for _ in range(3):
                    assert (await associated.ask(header + b"x"))[-1:] == b"x"
                assert len(allowed.received) == 3
                assert forbidden.received == []
            assert resolver.asked == ["rebinding.test"]

    run_once(main)


# --- further forms ---

FURTHER = [
    # metadata services, and what stands beside them, of AWS, Google, Azure, Alibaba, Oracle
    *("169.254.169.253", "169.254.170.23", "fd00:ec2::23", "fd00:ec2::253", "fd20:ce::254", "192.0.0.170"),
    # IPv4 inside IPv6: mapped, compatible, translated (RFC 2765), NAT64, 6to4, Teredo, ISATAP (RFC 5214)
    *("::ffff:10.0.0.1", "::ffff:100.64.0.1", "::ffff:172.16.0.1", "::ffff:192.168.0.1", "::ffff:255.255.255.255"),
    *("::ffff:224.0.0.1", "::ffff:168.63.129.16", "::10.0.0.1", "::192.168.0.1", "::169.254.169.254", "::0.0.0.2"),
    *("::ffff:0:127.0.0.1", "::ffff:0:169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b::100.100.100.200"),
    *("64:ff9b::192.168.0.1", "64:ff9b::", "64:ff9b::224.0.0.1", "64:ff9b:1:ffff:ffff:ffff:8.8.8.8"),
    *("2002:a00:1::", "2002:c0a8:1::1", "2002:6440:1::", "2002::1", "2001:0:a00:1::", "2001:0:808:808:0:fff:80ff:fffe"),
    *("2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:127.0.0.1", "fe80::5efe:8.8.8.8"),
    # the other ends of the networks
    *("10.255.255.255", "100.127.255.255", "172.31.0.0", "192.168.255.255", "198.19.255.255"),
    *("febf:ffff::1", "feff::1", "fdff:ffff::1", "ff0e::1", "ff05::1:3", "192.88.99.1", "2001:10::1", "247.1.2.3"),
]
OUTER = [
    *("1.0.0.0", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
    *("128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"),
    *("168.63.129.15", "198.17.255.255", "198.20.0.0", "203.0.112.255", "223.255.255.255", "::ffff:8.8.8.8"),
    *("2001:4860:4860::8888", "2606:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1", "fbff::1", "fe00::1"),
]
"""The neighbours of inner networks, and outer addresses inside IPv6."""

UNREACHED = {"connect": 5, "socks4": 91, "http-connect": 502, "http-forward": 502}
"""The answer where a destination may be dialled, and refuses. SOCKS4 has one code for every failure."""


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[IP]:
    """What would be dialled after the guard has let it pass: in place of the network, which nothing here may reach."""
    hosts: list[IP] = []

    async def dial_one(self: Dialer, destination: Address, host: IP, *origin: object) -> None:
        hosts.append(host)
        raise DialError(f"{destination}: not in a test", 5, errno.ECONNREFUSED)

    async def dial_many(self: Dialer, destination: Address, addresses: list[IP], *origin: object) -> None:
        hosts.extend(addresses)
        raise DialError(f"{destination}: not in a test", 5, errno.ECONNREFUSED)

    monkeypatch.setattr(Dialer, "dial_one", dial_one)
    monkeypatch.setattr(Dialer, "dial_many", dial_many)
    return hosts


async def ask_octets(server: Server, octets: bytes) -> int:
    """The reply to a request of SOCKS5 that is octets."""
    async with client(server.addresses[0]) as (reader, writer):
        assert await greet((reader, writer)) == 0
        writer.write(octets)
        return (await read_reply(reader))[0]


def request_by_name(name: str, port: int = 1, command: int = 1) -> bytes:
    """A request of SOCKS5 with ATYP 3, whatever the name is."""
    octets = name.encode()
    return b"\x05%c\x00\x03%c%b%b" % (command, len(octets), octets, port.to_bytes(2, "big"))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_reaches_a_further_form(run_once: Run, dialled: list[IP], command: str) -> None:
    """What is less common is refused as well; nothing comes as far as the dialer."""

    async def main() -> None:
        async with guarded() as server:
            ask, expected = COMMANDS[command]
            for host in FURTHER:
                assert await ask(server, host, 1) == expected, host
                assert dialled == [], host

    run_once(main)


def test_no_datagram_reaches_a_further_form(run_once: Run) -> None:
    """All of them in vain, in whatever number: the refusal is remembered and counted each time."""

    async def main() -> None:
        async with guarded() as server:
            for host in FURTHER:
                async with client(server.addresses[0]) as streams:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        associated = await Client(*streams, sock).associate()
                        for _ in range(3):
                            associated.send(encode_header(Address(parse_host(host), 9)) + b"x")
                        await dropped(server, "denied", 3, host)
                await until(lambda: not server.parts.associations.active)

    run_once(main)


IPV4 = [host for host in (*INNER, *FURTHER) if ":" not in host]


def test_no_octets_of_socks4_reach_an_inner_address(run_once: Run, dialled: list[IP]) -> None:
    """The address field of SOCKS4, for CONNECT and BIND; SOCKS4a is in the table above."""

    async def main() -> None:
        async with guarded() as server:
            for host in IPV4:
                for command in (1, 2) if not host.startswith("0.0.0.") else ():
                    async with client(server.addresses[0]) as (reader, writer):
                        writer.write(b"\x04%c\0\1" % command + ip_address(host).packed + b"\0")
                        assert (await reader.readexactly(8))[1] == 91, host
                        assert dialled == [], host

    run_once(main)


@pytest.mark.parametrize("command", [1, 2])
def test_no_address_that_is_sent_as_a_name_is_reached(run_once: Run, dialled: list[IP], command: int) -> None:
    """ATYP 3 with an address as its text is that address."""

    async def main() -> None:
        async with guarded() as server:
            for host in (*INNER, *FURTHER, "[::1]", "[::ffff:7f00:1]"):
                expected = 0 if command == 2 and host in ANYBODY else 2
                assert await ask_octets(server, request_by_name(host, command=command)) == expected, host
                assert dialled == [], host

    run_once(main)


TRICKS = {
    "0X7F.0.0.1": 2,
    "0x7F000001": 2,
    "0x0000007f.1": 2,
    "0177.0.0.1": 2,
    "00000177.0x0.0.1": 2,
    "127.0x1": 2,
    "3232235521": 2,
    "0xC0A80001": 2,
    "10.1": 2,
    "172.16.1": 2,
    "0xa9.0xfe.0xa9.0xfe": 2,
    "2852039166": 2,
    "025177524776": 2,
    "\uff11\uff12\uff17.0.0.1": 2,  # digits of full width, which IDNA makes ASCII
    "127\u30020\u30020\u30021": 2,  # ideographic full stops
    "\u2460\u2461\u2466.0.0.1": 2,  # digits in circles
    "127.0.0.1.": 4,
    "127.1.": 4,
    "0x7f.": 4,
    "127.0.0.256": 4,
    "127.0.0.0.1": 4,
    "4294967296": 4,
    "0x1ffffffff": 4,
    "0x": 4,
    "127.0.0.08": 4,
    "1.2.3.4.in-addr.0": 4,
    "::1%lo": 4,
    "fe80::1%1": 4,
    "[::1]:80": 4,
    "[127.0.0.1": 4,
    "127.0.0.1:80": 4,
    "127.0.0.1 ": 4,
    "127.0.0.1\x00.example": 4,
    "localhost\x00": 4,
    "8.8.8.8@127.0.0.1": 4,
    "127.0.0.1/x": 4,
}
"""Names, and the reply: refused as the inner address that they are, or as nothing that there could be."""


@pytest.mark.parametrize("command", [1, 2])
def test_no_trick_with_a_name_leads_inside(run_once: Run, dialled: list[IP], command: int) -> None:
    """Numbers in every notation, digits of other scripts, and what only another parser would take for an address."""

    async def main() -> None:
        async with guarded() as server:
            for name, expected in TRICKS.items():
                assert await ask_octets(server, request_by_name(name, command=command)) == expected, name
                assert dialled == [], name

    run_once(main)


def test_no_trick_with_a_name_takes_a_datagram_inside(run_once: Run) -> None:
    """A name in the header of a datagram is read as that of a request is."""

    async def main() -> None:
        async with guarded() as server:
            for name in (name for name, reply in TRICKS.items() if reply == 2):
                async with client(server.addresses[0]) as streams:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        associated = await Client(*streams, sock).associate()
                        associated.send(b"\0\0\0" + request_by_name(name, 9)[3:] + b"x")
                        await dropped(server, "denied", 1, name)
                await until(lambda: not server.parts.associations.active)

    run_once(main)


URLS = {
    "GET http://127.0.0.1/": 403,
    "GET http://127.0.0.1:80/": 403,
    "GET http://[::1]/": 403,
    "GET http://[::ffff:127.0.0.1]/": 403,
    "GET http://[::ffff:7f00:1]:80/": 403,
    "GET http://0x7f.1/": 403,
    "GET http://2130706433/": 403,
    "GET http://0/": 403,
    "GET http://127.1/": 403,
    "GET HTTP://127.0.0.1/": 403,
    "GET http://169.254.169.254/latest/meta-data/": 403,
    "PUT http://169.254.169.254/latest/api/token": 403,
    "POST http://[fd00:ec2::254]/": 403,
    "HEAD http://100.100.100.200/": 403,
    "OPTIONS http://192.0.0.192/": 403,
    "GET ws://127.0.0.1/": 403,
    "GET ftp://127.0.0.1/": 501,
    "GET https://127.0.0.1/": 403,
    "GET wss://[::1]/": 403,
    "GET http://8.8.8.8@127.0.0.1/": 403,
    "GET http://8.8.8.8:80@127.0.0.1:80/": 403,
    "GET http://127.0.0.1#8.8.8.8/": 403,
    "GET http://127.0.0.1?@8.8.8.8/": 403,
    "GET http://127.0.0.1#@8.8.8.8/": 400,
    "GET http://8.8.8.8#@127.0.0.1/": 400,
    "GET http://8.8.8.8@127.0.0.1@8.8.8.8/": 400,
    "GET http://8.8.8.8\\@127.0.0.1/": 400,
    "GET http://127.0.0.1\\@8.8.8.8/": 400,
    "GET http://[::1%25lo]/": 400,
    "GET http://[fe80::1%25eth0]/": 400,
    "GET http:///": 400,
    "GET //127.0.0.1/": 400,
    "GET /": 400,
    "CONNECT 127.0.0.1:22": 403,
    "CONNECT [::1]:22": 403,
    "CONNECT [::ffff:127.0.0.1]:22": 403,
    "CONNECT 0x7f.1:22": 403,
    "CONNECT 2130706433:22": 403,
    "CONNECT 0:22": 403,
    "CONNECT 8.8.8.8@127.0.0.1:22": 400,
    "CONNECT [fe80::1%25lo]:22": 400,
    "CONNECT ::1:22": 400,
}
"""Request lines, and the status."""


def test_no_trick_with_a_url_leads_inside(run_once: Run, dialled: list[IP]) -> None:
    """The target decides, not the Host field, and nothing in it that two parsers could read differently."""

    async def main() -> None:
        async with guarded() as server:
            for line, expected in URLS.items():
                status = await ask_http(server, f"{line} HTTP/1.1\r\nHost: 8.8.8.8\r\nContent-Length: 0\r\n\r\n")
                assert status == expected, line
                assert dialled == [], line

    run_once(main)


def test_a_host_field_leads_nowhere(run_once: Run, dialled: list[IP]) -> None:
    """A request for an outer address goes there, whatever its Host field says."""

    async def main() -> None:
        async with guarded() as server:
            assert await ask_http(server, "GET http://8.8.8.8/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") == 502

    run_once(main)
    assert dialled == [ip_address("8.8.8.8")]


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST"])
def test_localhost_is_inside(run_once: Run, dialled: list[IP], name: str) -> None:
    """As the system's own resolver has it, without a question to anybody."""

    async def main() -> None:
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=GuardConfig(exempt=[]))
        async with Server(config=config) as server:
            assert await ask_socks5(server, name, 1) == 2
            assert await ask_forward(server, name, 1) == 403

    run_once(main)
    assert dialled == []


# --- what is not inside ---


@pytest.mark.parametrize("command", UNREACHED)
def test_outer_addresses_are_dialled(run_once: Run, dialled: list[IP], command: str) -> None:
    """A guard that refuses everything would pass all that stands above: what is outside is dialled, by a name too."""

    async def main() -> None:
        names = {f"outer{number}_test": [host, "1.1.1.1"] for number, host in enumerate(OUTER)}
        async with guarded(**names) as server:
            for number, host in enumerate(OUTER):
                for place in (host, f"outer{number}.test"):
                    assert await COMMANDS[command][0](server, place, 1) == UNREACHED[command], place
                assert dialled == [ip_address(host), ip_address(host), ip_address("1.1.1.1")], host
                dialled.clear()

    run_once(main)


def test_outer_addresses_may_get_datagrams_and_call(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram comes as far as its socket, which is none here, and a BIND as far as a route."""

    def no_socket(self: UdpRouter, host: IP, *way: object) -> None:
        raise OSError(errno.ENETUNREACH, "not in a test")

    async def main() -> None:
        monkeypatch.setattr(UdpRouter, "socket_toward", no_socket)
        async with guarded() as server:
            for host in OUTER:
                async with client(server.addresses[0]) as streams:
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        associated = await Client(*streams, sock).associate()
                        associated.send(encode_header(Address(parse_host(host), 9)) + b"x")
                        await dropped(server, "unsent", 1, host)
                await until(lambda: not server.parts.associations.active)
                assert await ask_bind(server, host, 1) != 2, host

    run_once(main)


# --- who calls ---


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_nobody_from_inside_calls_where_anybody_may(run_once: Run, host: str) -> None:
    """BIND for anyone: each caller is judged; one that is allowed comes in behind one that is not."""

    async def main() -> None:
        config = Config(
            listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"), guard=GuardConfig(allow=["127.0.0.2"], exempt=[])
        )
        async with Server(config=config) as server, client(server.addresses[0]) as streams:
            address = await open_bind(streams, host)
            for source in ("127.0.0.1", "127.0.0.3"):
                await expect_reset(Address(ip_address("127.0.0.1"), address.port), source)
            async with caller(Address(ip_address("127.0.0.1"), address.port), "127.0.0.2"):
                code, octets = await read_reply(streams[0])
                assert (code, octets[1:5]) == (0, ip_address("127.0.0.2").packed)

    run_once(main)


# --- the proxy itself ---

OWN = ("93.184.216.34", "::ffff:93.184.216.34", "::93.184.216.34", "64:ff9b::93.184.216.34", "2002:5db8:d822::1")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_reaches_an_address_of_the_machine(run_once: Run, dialled: list[IP], command: str) -> None:
    """However public it is: what listens there on a firewall's inner side is not for clients. As long as it has it."""

    async def main() -> None:
        async with guarded(own_test=["8.8.8.8", "93.184.216.34"]) as server:
            known = server.own.addresses
            ask, refused = COMMANDS[command]
            for host in (*OWN, "2606:2800:220::1946", "own.test"):
                server.parts.learn_addresses(known | {ip_address("93.184.216.34"), ip_address("2606:2800:220::1946")})
                assert await ask(server, host, 1) == refused, host
                assert dialled == [], host
                server.parts.learn_addresses(known)
                after = await ask(server, host, 1)
                assert bool(dialled) or (command == "bind" and after != refused), host
                dialled.clear()

    run_once(main)


def test_the_addresses_of_this_machine_are_known(run_once: Run) -> None:
    """A running server has them from the kernel: loopback at least, and none of its ports is forgotten."""

    async def main() -> None:
        config = Config(
            listen=[Listen("mixed://127.0.0.1:0"), Listen("socks5://[::1]:0")],
            log=Log("none"),
            guard=GuardConfig(exempt=[]),
        )
        async with Server(config=config) as server:
            assert ip_address("127.0.0.1") in server.own.addresses
            assert server.own.ports == {address.port for address in server.addresses}
            assert len(server.own.ports) == 2

    run_once(main)


LOCAL = ("127.0.0.1", "127.0.0.9", "::1", "::", "0.0.0.0", "::ffff:127.0.0.1", "127.1", "0x7f000001", "here.test")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_form_of_its_own_listeners_is_reached(run_once: Run, dialled: list[IP], command: str) -> None:
    """Where everything is allowed they still are not: neither the one that was asked nor the other one."""

    async def main() -> None:
        guard = GuardConfig(allow=["0.0.0.0/0", "::/0"], exempt=[])
        config = Config(
            listen=[Listen("mixed://127.0.0.1:0"), Listen("socks5://[::1]:0")], log=Log("none"), guard=guard
        )
        async with Server(config=config, resolver=FakeResolver({"here.test": ["8.8.8.8", "::1"]})) as server:
            ask, refused = COMMANDS[command]
            for host in LOCAL:
                for address in server.addresses:
                    if command == "bind" and host in ANYBODY:
                        continue
                    assert await ask(server, host, address.port) == refused, host
                assert dialled == [], host
                if command != "bind":
                    assert await ask(server, host, 1) == UNREACHED[command], host
                    assert dialled, host
                    dialled.clear()

    run_once(main)


# --- whom it is for ---


@pytest.mark.parametrize(
    ("source", "free"), [("127.0.0.1", True), ("127.9.8.7", True), ("10.0.0.1", False), ("203.0.113.9", False)]
)
def test_it_is_for_clients_from_elsewhere(run_once: Run, source: str, free: bool) -> None:
    """Without ``exempt`` in the configuration, clients on this machine go anywhere and others do not."""

    async def main() -> None:
        config = Config(listen=[Listen("mixed://127.0.0.1:0")], log=Log("none"))
        async with target() as port, Server(config=config) as server, client_from(server, source) as streams:
            assert await greet(streams) == 0
            streams[1].write(request("127.0.0.1", port))
            assert (await read_reply(streams[0]))[0] == (0 if free else 2)

    run_once(main)


def test_what_is_allowed_inside_does_not_open_what_holds_it() -> None:
    """An IPv4 network that is allowed is no reason to let through an IPv6 address that is closed for its own sake."""
    guard = DestinationPolicy(["private", "64:ff9b::/96"], ["10.20.0.0/16"])
    for text in ("10.20.0.1", "::ffff:10.20.0.1", "2002:a14:1::", "2606:4700::5efe:10.20.0.1"):
        assert guard.catches(ip_address(text), 80) is None
    assert guard.catches(ip_address("fd00::5efe:10.20.0.1"), 80) == "fd00::5efe:a14:1 is in fc00::/7"
    assert guard.catches(ip_address("fe80::5efe:10.20.0.1"), 80) == "fe80::5efe:a14:1 is in fe80::/10"
    assert guard.catches(ip_address("64:ff9b::10.20.0.1"), 80) == "64:ff9b::a14:1 is in 64:ff9b::/96"
    assert DestinationPolicy(["private"], ["10.20.0.0/16"]).catches(ip_address("64:ff9b::10.20.0.1"), 80) is None
