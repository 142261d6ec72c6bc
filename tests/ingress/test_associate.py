"""UDP ASSOCIATE: the address and port that the client is told, and what is made of those that it declares."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from conftest import Run
from datagrams import Client, association, destination, udp_socket, unwrap
from doubles import LOOPBACK, ask, config, no_descriptors_left
from sockets import until
from support import client as tcp_client
from support import request
from tabi import Server, Session
from tabi.config import Listen, Udp
from tabi.ingress.associate import declared_port
from tabi.session import UNIX
from tabi.wire.address import UNSPECIFIED, Address, parse_address

ASSOCIATE = request("0.0.0.0", 0, 3)


def serving(udp: Udp, url: str = LOOPBACK) -> Server:
    """A server with one listener."""
    return Server(config=config(Listen(url, udp=udp)))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("socks5://127.0.0.1:0", "127.0.0.1"),
        ("socks5://0.0.0.0:0", "127.0.0.1"),
        ("socks5://0.0.0.0:0", "127.0.0.3"),
        ("socks5://[::1]:0", "::1"),
        ("socks5://[::]:0", "::1"),
        ("socks5://[::]:0", "127.0.0.1"),
    ],
)
@pytest.mark.parametrize("ports", [None, "shared"])
def test_the_port_is_where_the_client_reached_us(run: Run, url: str, host: str, ports: str | None) -> None:
    """BND is the address that the client connected to, never that of all addresses, and datagrams pass there."""

    async def main() -> None:
        async with Server(config=config(Listen(url, udp=Udp(ports=ports))), open=True) as server:
            place = Address(parse_address(f"[{host}]:0" if ":" in host else f"{host}:0").host, server.addresses[0].port)
            async with association(place, host="::1" if ":" in host else "127.0.0.1") as client:
                assert client.relay.host == place.host
                assert client.relay.port != 0
                with destination() as echo:
                    if host == "127.0.0.3":  # a client there has another address
                        return
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


@pytest.mark.parametrize("ports", [None, "shared"])
@pytest.mark.parametrize("declare", [False, True])
def test_a_client_of_a_unix_socket_sends_on_loopback(
    run: Run, tmp_path: Path, ports: str | None, declare: bool
) -> None:
    """BND is on 127.0.0.1, its datagrams come from there, and the port that it declares counts."""

    async def main() -> None:
        path = tmp_path / "tabi.sock"
        listen = Listen(f"unix://{path}?protocol=socks5", udp=Udp(ports=ports))
        async with Server(config=config(listen)):
            for _ in range(2):
                reader, writer = await asyncio.open_unix_connection(path)
                with udp_socket() as sock, destination() as echo:
                    declared = parse_address(f"127.0.0.1:{sock.getsockname()[1]}") if declare else None
                    client = await Client(reader, writer, sock).associate(declared)
                    assert str(client.relay.host) == "127.0.0.1"
                    assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")
                writer.close()
                await writer.wait_closed()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.9", "::1"])
@pytest.mark.parametrize("ports", [None, "shared"])
def test_the_client_behind_a_proxy_header_sends_itself(run: Run, host: str, ports: str | None) -> None:
    """Only the connection is its proxy's: the port is where the client reaches this machine, also in another family."""

    async def main() -> None:
        listen = Listen(LOOPBACK, udp=Udp(ports=ports), proxy_protocol=["127.0.0.1"])
        async with Server(config=config(listen), open=True) as server, tcp_client(server.addresses[0]) as streams:
            reader, writer = streams
            family = "TCP6" if ":" in host else "TCP4"
            writer.write(f"PROXY {family} {host} {host} 5 6\r\n".encode())
            with udp_socket(host) as sock, destination() as echo:
                client = await Client(reader, writer, sock).associate()
                assert client.relay.host.is_loopback  # type: ignore[union-attr]
                assert ports is None or client.relay.port == server.addresses[0].port
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


@pytest.mark.parametrize(
    ("advertise", "told"),
    [("203.0.113.5", IPv4Address("203.0.113.5")), ("2001:db8::5", IPv4Address("127.0.0.1"))],
)
def test_an_advertised_address_is_what_the_client_is_told(run: Run, advertise: str, told: IPv4Address) -> None:
    """Behind NAT the proxy's own address is of no use. One of the other family cannot be: the client is pinned."""

    async def main() -> None:
        async with serving(Udp(advertise=advertise)) as server, association(server.addresses[0]) as client:
            assert client.relay.host == told
            with destination() as echo:
                client.relay = Address(IPv4Address("127.0.0.1"), client.relay.port)
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


def test_ports_come_from_the_range(run: Run) -> None:
    """Each association takes one of it; with all taken the reply is 01, and the log says why."""

    async def main() -> None:
        with udp_socket() as one, udp_socket() as two:
            first, last = sorted(sock.getsockname()[1] for sock in (one, two))
            udp = Udp(ports=f"{first}-{last}")
        async with serving(udp) as server, association(server.addresses[0]) as client:
            assert first <= client.relay.port <= last
        with udp_socket() as taken:
            port = taken.getsockname()[1]
            udp = Udp(ports=f"{port}-{port}")
            ended: asyncio.Queue[Session] = asyncio.Queue()
            async with Server(config=config(Listen(LOOPBACK, udp=udp)), on_close=ended.put_nowait) as server:
                assert await ask(server, ASSOCIATE) == 1
                session = await ended.get()
                assert session.error == f"no UDP port: no port of {port}-{port} is free"
                taken.close()
                for _ in range(2):
                    async with association(server.addresses[0]) as client:
                        assert client.relay.port == port
                    await ended.get()

    run(main)


def test_a_shared_port_that_somebody_else_has(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """As the process that this one has taken over from: associations have ports of their own, and the log says so."""

    async def main() -> None:
        listen = Listen(LOOPBACK, udp=Udp(ports="shared"))
        async with Server(config=config(listen)) as server:
            port = server.addresses[0].port
            with udp_socket(port=port):
                assert await ask(server, ASSOCIATE) == 0
                assert f"shared UDP port {port}: another process has it" in caplog.text
                assert not server.parts.associations.shared
            assert await ask(server, ASSOCIATE) == 0

    run(main)


def test_without_a_descriptor_there_is_no_association(run_once: Run) -> None:
    """A fault of our own is 01, and nobody else notices."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, on_close=ended.put_nowait) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.addresses[0].port)
            await until(lambda: server.parts.sessions.running)
            with no_descriptors_left():
                writer.write(b"\x05\x01\x00" + ASSOCIATE)
                assert (await reader.read())[2:4] == b"\x05\x01"
            writer.close()
            await writer.wait_closed()
            session = await ended.get()
            assert session.error == f"no UDP port: {OSError(errno.EMFILE, 'too many open files').strerror}"

    run_once(main)


@pytest.mark.parametrize(
    ("declared", "port"),
    [
        ("0.0.0.0:0", 0),
        ("0.0.0.0:5000", 5000),
        ("[::]:5000", 5000),
        ("192.0.2.1:5000", 5000),
        ("192.0.2.1:0", 0),
        ("10.0.0.7:5000", 0),
        ("[2001:db8::1]:5000", 0),
        ("client.test:5000", 0),
    ],
)
def test_the_port_that_a_client_declares(declared: str, port: int) -> None:
    """It counts, unless the client is behind NAT, as the address beside it shows, or wrote its first destination."""
    session = Session(1, "test", parse_address("192.0.2.1:40000"), 0.0)
    session.destination = parse_address(declared)
    assert declared_port(session) == port


def test_the_port_that_a_client_of_a_unix_socket_declares() -> None:
    """It is on loopback, so that the port beside such an address is the one that we see."""
    session = Session(1, "test", Address(UNIX, 1000), 0.0)
    for declared, port in (("127.0.0.1:5000", 5000), ("0.0.0.0:5000", 5000), ("192.0.2.1:5000", 0)):
        session.destination = parse_address(declared)
        assert declared_port(session) == port


@pytest.mark.every_hosting
def test_a_client_behind_nat_is_pinned_by_its_first_datagram(run: Run) -> None:
    """What it declares is an address and a port that only its own network knows."""

    async def main() -> None:
        declared = parse_address("10.0.0.7:5000")
        async with Server(LOOPBACK) as server, association(server.addresses[0], declared) as client:
            with destination() as echo:
                assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


def test_the_destination_of_an_association_is_what_was_declared(run: Run, tmp_path: object) -> None:
    """Its line in the log has the command, and the address that the client announced."""

    async def main() -> None:
        ended: asyncio.Queue[Session] = asyncio.Queue()
        async with Server(LOOPBACK, on_close=ended.put_nowait) as server:
            async with association(server.addresses[0]):
                pass
            session = await ended.get()
            assert (session.command, session.destination, session.via) == ("associate", UNSPECIFIED, "direct")
            assert (session.address, session.connect_seconds, session.reply_code) == (None, None, 0)

    run(main)


def test_ipv6_ports_are_for_ipv6_only(run: Run) -> None:
    """A client over IPv4 on a dual-stack listener gets an IPv4 port, one over IPv6 an IPv6 port of the same number."""

    async def main() -> None:
        udp = Udp(ports="shared")
        async with Server(config=config(Listen("socks5://[::]:0", udp=udp)), open=True) as server:
            port = server.addresses[0].port
            here, there = Address(IPv4Address("127.0.0.1"), port), Address(IPv6Address("::1"), port)
            async with association(here) as four, association(there, host="::1") as six:
                assert (four.relay, six.relay) == (here, there)
                with destination() as echo:
                    for client in (four, six):
                        assert unwrap(await client.ask(echo.header + b"x")) == (echo.address, b"x")

    run(main)


NAMESPACE = """
import asyncio, socket, subprocess
from ipaddress import ip_address
from tabi import Server
from tabi.config import make_config
from tabi.wire.address import decode_address
from tabi.wire.datagram import decode_header, encode_header
from tabi.wire.address import Address, parse_address

def ip(*words):
    subprocess.run(["ip", *words], check=True)

ip("link", "set", "lo", "up")
for name in ("one", "two"):
    ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-end")
    ip("link", "set", name, "addrgenmode", "none", "up")
    ip("link", "set", f"{name}-end", "up")
    ip("addr", "add", "fe80::1/64", "dev", name, "nodad")
ip("addr", "add", "fe80::2/64", "dev", "two", "nodad")
SCOPE = socket.if_nametoindex("two")

async def request(port, command, place):
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("fe80::1", port, 0, SCOPE))
    await loop.sock_sendall(sock, bytes((5, 1, 0, 5, command, 0)) + encode_header(parse_address(place))[3:])
    data = b""
    while len(data) < 24:
        found = await loop.sock_recv(sock, 24 - len(data))
        assert found, data
        data += found
    assert data[3] == 0, data
    return sock, decode_address(data, 5)[0]

async def main(ports):
    settings = {"listen": [{"url": "socks5://[::]:0", "udp": ports}], "log": {"access": "none"}, "guard": {"deny": []}}
    loop = asyncio.get_running_loop()
    async with Server(config=make_config(settings), open=True) as server:
        port = server.addresses[0].port
        control, bound = await request(port, 3, "[::]:0")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client, \\
             socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as there:
            client.setblocking(False)
            there.bind(("fe80::2", 0, 0, SCOPE))
            there.setblocking(False)
            target = Address(ip_address("fe80::2"), there.getsockname()[1])
            client.sendto(encode_header(target) + b"up", (str(bound.host), bound.port, 0, SCOPE))
            data, sender = await loop.sock_recvfrom(there, 99)
            there.sendto(b"down", sender)
            answer = await loop.sock_recv(client, 99)
            frag, address, start = decode_header(answer)
            print(bound.host, data.decode(), address == target, answer[start:].decode())
        control.close()
        control, bound = await request(port, 2, "[fe80::2]:0")
        with socket.socket(socket.AF_INET6) as peer:
            peer.setblocking(False)
            peer.bind(("fe80::2", 0, 0, SCOPE))
            await loop.sock_connect(peer, (str(bound.host), bound.port, 0, SCOPE))
            data = b""
            while len(data) < 22:
                found = await loop.sock_recv(control, 22 - len(data))
                assert found, data
                data += found
            print(bound.host.is_link_local, data[1])
        control.close()
        with socket.socket(socket.AF_INET6) as there:
            there.bind(("fe80::2", 0, 0, SCOPE))
            there.listen()
            control, bound = await request(port, 1, f"[fe80::2]:{there.getsockname()[1]}")
            print(there.accept()[1][3] == SCOPE)
        control.close()

for ports in ({}, {"ports": "shared"}, {"ports": "40000-40009"}):
    asyncio.run(asyncio.wait_for(main(ports), 20))
"""


def test_over_link_local_addresses_in_a_network_of_its_own() -> None:
    """Two interfaces with one address: BND and the sockets are on that of the client's connection, and so is a peer."""
    assert os.geteuid() == 0 or os.environ.get("CI") != "true", "needs root, or user namespaces"
    mapped = () if os.geteuid() == 0 else ("--map-root-user",)
    command = ["unshare", "--net", *mapped, sys.executable, "-c", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["fe80::1 up True down", "True 0", "True"] * 3
