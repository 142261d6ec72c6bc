"""Origins: which address a connection comes from, what its socket is given, and what happens when ports run out."""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from doubles import FakeResolver
from support import target
from tabi.errors import DialError
from tabi.net.dial import Dialer
from tabi.net.reactor import get_reactor
from tabi.net.source import SourceBinding, address_in
from tabi.policy.guard import allow_any_address
from tabi.session import Session
from tabi.wire.address import Address, parse_host

PREFIX = ip_network("2001:db8:1::/64")


def session(user: str | None = "alice", client: str = "203.0.113.9") -> Session:
    """On whose behalf."""
    made = Session(1, "", Address(parse_host(client), 1), 0.0)
    made.user = user
    return made


def first(binding: SourceBinding, version: int, asks: Session | None) -> Any:
    """The address that is tried first."""
    return next(binding.sources_for(version, asks))


def test_a_session_gets_another_address_each_time() -> None:
    """Of a list every one has its share; of a prefix no two are equal; never the address for all routers."""
    binding = SourceBinding([PREFIX, ip_network("192.0.2.7"), ip_network("192.0.2.9")], choose=random.Random(1))
    four = [str(first(binding, 4, session())) for _ in range(100)]
    assert 25 < four.count("192.0.2.7") < 75
    assert set(four) == {"192.0.2.7", "192.0.2.9"}
    six = {first(binding, 6, session()) for _ in range(100)}
    assert len(six) == 100
    assert all(address in PREFIX for address in six)
    assert PREFIX.network_address not in six


@pytest.mark.parametrize("sticky", ["user", "client"])
def test_a_user_or_a_client_always_gets_the_same(sticky: Any) -> None:
    """Also after a restart; another one gets another; a client without a user goes by its address."""
    one, again = (SourceBinding([PREFIX], sticky) for _ in range(2))
    assert first(one, 6, session()) == first(one, 6, session()) == first(again, 6, session())
    other = session("bob", "203.0.113.9") if sticky == "user" else session("alice", "203.0.113.10")
    assert first(one, 6, other) != first(one, 6, session())
    assert first(one, 6, session(None)) == first(one, 6, session(None))
    assert first(one, 6, None) != first(one, 6, None)


def test_all_others_are_tried_behind_the_first() -> None:
    """For when the ports of an address are used up."""
    networks = [ip_network(f"192.0.2.{number}") for number in range(1, 6)]
    found = list(SourceBinding(networks).sources_for(4, session()))
    assert sorted(found, key=str) == [network.network_address for network in networks]


def test_without_sources_the_system_chooses() -> None:
    """But where there are some, none of the destination's family is an error and no leak."""
    assert list(SourceBinding().sources_for(6, None)) == [None]
    with pytest.raises(OSError, match="no IPv4 address among the sources") as caught:
        next(SourceBinding([PREFIX]).sources_for(4, None))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@given(st.integers(0, 128), st.integers(0, (1 << 128) - 1))
def test_every_address_of_a_prefix_lies_in_it(length: int, number: int) -> None:
    """Whatever its length: one of one, two and many."""
    network = IPv6Network((0x20010DB8 << 96, length), strict=False)
    assert address_in(network, number) in network


def test_an_ipv4_network_gives_neither_its_own_nor_the_broadcast_address() -> None:
    """All that lie between are given."""
    network = ip_network("192.0.2.0/29")
    assert {str(address_in(network, number)) for number in range(100)} == {f"192.0.2.{n}" for n in range(1, 7)}


def test_what_a_socket_is_given() -> None:
    """Each option that is asked for, for TCP; a UDP socket gets those that it has."""
    binding = SourceBinding([ip_network("127.0.0.5")], "session", "lo", None, 30.0, 5.0, True)
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        for sock in (tcp, udp):
            binding.prepare(sock, ip_address("127.0.0.5"))
            assert sock.getsockname()[0] == "127.0.0.5"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)[:3] == b"lo\0"
        assert tcp.getsockname()[1] == 0  # chosen when it connects
        assert udp.getsockname()[1] != 0
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        assert tcp.getsockopt(socket.IPPROTO_TCP, 30) == 1


def test_what_cannot_be_given_is_named(run_once: Run) -> None:
    """An interface that is not there: the error names the key of the egress."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), FakeResolver(), 5)
        try:
            with pytest.raises(DialError, match=r"\(interface of the egress\)$"):
                await dialer.dial(
                    Address(parse_host("127.0.0.1"), 1), allow_any_address, None, SourceBinding(interface="nothere0")
                )
        finally:
            await dialer.close()

    run_once(main)


@pytest.mark.parametrize("name", ["127.0.0.1", "one.test", "two.test"])
def test_connections_come_from_the_source(run: Run, name: str) -> None:
    """To an address, to a name with one and to a name with several of them."""

    async def main() -> None:
        names = {"one.test": ["127.0.0.1"], "two.test": ["::1", "127.0.0.1"]}
        dialer = Dialer(get_reactor(), FakeResolver(names), 5)
        binding = SourceBinding([ip_network("127.0.0.9"), ip_network("::1")])
        try:
            async with target() as port:
                stream = await dialer.dial(Address(parse_host(name), port), allow_any_address, None, binding, session())
                assert stream.sock.getsockname()[0] == "127.0.0.9"
                stream.close()
        finally:
            await dialer.close()

    run(main)


def test_an_address_of_the_other_family_only_is_a_refusal(run_once: Run) -> None:
    """Nothing leaves from an address that was not asked for."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), FakeResolver({"two.test": ["::1", "::2"]}), 5)
        binding = SourceBinding([ip_network("127.0.0.9")])
        try:
            for host in ("::1", "two.test"):
                with pytest.raises(DialError) as caught:
                    await dialer.dial(Address(parse_host(host), 1), allow_any_address, None, binding)
                assert caught.value.reply_code == 3
        finally:
            await dialer.close()

    run_once(main)


NAMESPACE = """
import asyncio, random, socket, subprocess
from ipaddress import ip_address, ip_network
from tabi import Server, Proxy
from tabi.config import make_config

def ip(*words):
    subprocess.run(["ip", *words], check=True)

there = subprocess.Popen(["unshare", "--net", "sleep", "60"])
try:
    import time, os
    ours = os.stat("/proc/self/ns/net").st_ino
    while os.stat(f"/proc/{there.pid}/ns/net").st_ino == ours:
        time.sleep(0.01)
    ip("link", "add", "here", "type", "veth", "peer", "name", "there")
    ip("link", "set", "there", "netns", str(there.pid))
    enter = ["nsenter", "-t", str(there.pid), "-n", "ip"]
    subprocess.run([*enter, "addr", "add", "2001:db8::2/64", "dev", "there", "nodad"], check=True)
    subprocess.run([*enter, "addr", "add", "192.0.2.2/24", "dev", "there"], check=True)
    subprocess.run([*enter, "link", "set", "there", "up"], check=True)
    subprocess.run([*enter, "-6", "route", "add", "2001:db8:1::/64", "via", "2001:db8::1"], check=True)
    ip("addr", "add", "2001:db8::1/64", "dev", "here", "nodad")
    ip("addr", "add", "192.0.2.1/24", "dev", "here")
    ip("addr", "add", "192.0.2.7/24", "dev", "here")
    ip("link", "set", "here", "up")
    ip("link", "set", "lo", "up")
    ip("-6", "route", "add", "local", "2001:db8:1::/64", "dev", "lo")
    program = '''
import socket, sys
sock = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    peer, address = sock.accept()
    peer.sendall(address[0].encode())
    peer.close()
'''
    server = subprocess.Popen(["nsenter", "-t", str(there.pid), "-n", "python3", "-c", program])

    async def ask(proxy, host):
        for _ in range(200):
            try:
                async with proxy.connect(host, 7000) as stream:
                    return (await stream.receive()).decode()
            except Exception as exc:
                error = exc
                await asyncio.sleep(0.05)
        raise error

    async def main():
        config = make_config({
            "log": {"access": "none"},
            "egress": {"direct": {"source": ["2001:db8:1::/64", "192.0.2.7"], "interface": "here", "mark": 7}},
        })
        async with Server("socks5://127.0.0.1:0", config=config) as server:
            proxy = tabi = Proxy(server.url)
            print(await ask(proxy, "192.0.2.2"))
            found = {await ask(proxy, "2001:db8::2") for _ in range(5)}
            print(len(found), all(ip_address(one) in ip_network("2001:db8:1::/64") for one in found))

    asyncio.run(asyncio.wait_for(main(), 40))
    server.kill()
    server.wait()
finally:
    there.kill()
    there.wait()
"""


def test_a_prefix_that_is_routed_to_us_in_a_network_of_its_own() -> None:
    """Two network namespaces and a veth between them: addresses that no interface has, an interface, a mark."""
    assert os.geteuid() == 0 or os.environ.get("CI") != "true", "needs root, or user namespaces"
    mapped = () if os.geteuid() == 0 else ("--map-root-user",)
    command = ["unshare", "--net", *mapped, sys.executable, "-c", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["::ffff:192.0.2.7", "5 True"]


def test_ports_that_are_used_up_lead_to_the_next_source(run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """EADDRNOTAVAIL of one address is no failure while there is another."""

    async def main() -> None:
        dialer = Dialer(get_reactor(), FakeResolver(), 5)
        networks = [ip_network("127.0.0.8"), ip_network("127.0.0.9")]
        tried = []
        real = SourceBinding.prepare

        def prepare(binding: SourceBinding, sock: Any, source: Any) -> None:
            tried.append(source)
            if len(tried) == 1:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address", "source")
            real(binding, sock, source)

        monkeypatch.setattr(SourceBinding, "prepare", prepare)
        try:
            async with target() as port:
                destination = Address(parse_host("127.0.0.1"), port)
                stream = await dialer.dial(destination, allow_any_address, None, SourceBinding(networks))
                assert stream.sock.getsockname()[0] == str(tried[1])
                stream.close()
                tried.clear()
                with pytest.raises(DialError) as caught:
                    await dialer.dial(destination, allow_any_address, None, SourceBinding(networks[:1]))
                assert caught.value.reply_code == 3
        finally:
            await dialer.close()

    run_once(main)
