"""The guard: which addresses are inner ones, and which clients may reach them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import PolicyDenied
from tabi.policy.guard import INNER, inner_network, is_inner_client, permit_any, permit_for, permit_outer
from tabi.wire.address import Host, parse_host

INNER_ADDRESSES = {
    "0.0.0.0": "0.0.0.0/8",
    "0.1.2.3": "0.0.0.0/8",
    "10.0.0.0": "10.0.0.0/8",
    "10.255.255.255": "10.0.0.0/8",
    "100.64.0.1": "100.64.0.0/10",
    "100.127.255.255": "100.64.0.0/10",
    "100.100.100.200": "100.64.0.0/10",
    "127.0.0.1": "127.0.0.0/8",
    "127.255.255.254": "127.0.0.0/8",
    "169.254.169.254": "169.254.0.0/16",
    "169.254.0.1": "169.254.0.0/16",
    "172.16.0.1": "172.16.0.0/12",
    "172.31.255.255": "172.16.0.0/12",
    "192.0.0.0": "192.0.0.0/24",
    "192.0.0.192": "192.0.0.0/24",
    "192.0.0.255": "192.0.0.0/24",
    "192.168.0.1": "192.168.0.0/16",
    "198.18.0.0": "198.18.0.0/15",
    "198.19.255.255": "198.18.0.0/15",
    "224.0.0.1": "224.0.0.0/4",
    "239.255.255.250": "224.0.0.0/4",
    "240.0.0.0": "240.0.0.0/4",
    "247.1.2.3": "240.0.0.0/4",
    "255.255.255.255": "240.0.0.0/4",
    "::": "::/128",
    "::1": "::1/128",
    "fc00::1": "fc00::/7",
    "fd00:ec2::254": "fc00::/7",
    "fdff:ffff::1": "fc00::/7",
    "fe80::1": "fe80::/10",
    "febf::1": "fe80::/10",
    "fe80::1%lo": "fe80::/10",
    "fec0::1": "fec0::/10",
    "ff02::1": "ff00::/8",
    # IPv4 inside IPv6: compatible (RFC 4291), mapped, 6to4 (RFC 3056), NAT64 (RFC 6052)
    "::2": "0.0.0.0/8",
    "::127.0.0.1": "127.0.0.0/8",
    "::10.0.0.1": "10.0.0.0/8",
    "::255.255.255.255": "240.0.0.0/4",
    "::ffff:127.0.0.1": "127.0.0.0/8",
    "::ffff:10.1.2.3": "10.0.0.0/8",
    "::ffff:169.254.169.254": "169.254.0.0/16",
    "::ffff:0.0.0.0": "0.0.0.0/8",
    "2002:7f00:1::": "127.0.0.0/8",
    "2002:a9fe:a9fe::1": "169.254.0.0/16",
    "2002:c0a8:101:5::9": "192.168.0.0/16",
    "64:ff9b::7f00:1": "127.0.0.0/8",
    "64:ff9b::169.254.169.254": "169.254.0.0/16",
    "64:ff9b::10.0.0.1": "10.0.0.0/8",
    # as a whole: translators of a network's own (RFC 8215), Teredo (RFC 4380)
    "64:ff9b:1::": "64:ff9b:1::/48",
    "64:ff9b:1:7f00:0:100::": "64:ff9b:1::/48",
    "64:ff9b:1:ffff:ffff:ffff:8.8.8.8": "64:ff9b:1::/48",
    "2001::1": "2001::/32",
    "2001:0:808:808:0:ffff:f5ff:fffe": "2001::/32",
}
OUTER_ADDRESSES = [
    "1.0.0.0",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.100.7",
    "223.255.255.255",
    "8.8.8.8",
    "::8.8.8.8",
    "::1:0:0:1",
    "2001:1::1",
    "2001:4860:4860::8888",
    "fbff::1",
    "fe00::1",
    "::ffff:8.8.8.8",
    "2002:808:808::1",
    "64:ff9b::8.8.8.8",
    "64:ff9b::1:7f00:1",
    "64:ff9b:0:ffff::",
    "64:ff9b:2::1",
]
INNER_CLIENTS: list[Host] = [
    ip_address("127.0.0.1"),
    ip_address("127.8.9.10"),
    ip_address("::1"),
    parse_host("127.0.0.1"),
    "unix",
]
OUTER_CLIENTS: list[Host] = [
    *map(
        ip_address, ("126.255.255.255", "128.0.0.0", "10.0.0.1", "192.168.1.1", "0.0.0.0", "::", "fe80::1", "fd00::1")
    ),
    ip_address("198.51.100.7"),
    ip_address("2001:db8::1"),
    ip_address("::ffff:198.51.100.7"),
    "localhost",
    "unix.example",
]


@pytest.mark.parametrize(("address", "network"), INNER_ADDRESSES.items())
def test_inner_addresses(address: str, network: str) -> None:
    """Loopback, private, link-local, metadata, multicast and the like, also inside IPv6, are inner; with the reason."""
    assert str(inner_network(ip_address(address))) == network


@pytest.mark.parametrize("address", OUTER_ADDRESSES)
def test_outer_addresses(address: str) -> None:
    """The neighbours of every inner network, and public addresses inside IPv6, are not."""
    assert inner_network(ip_address(address)) is None


@pytest.mark.parametrize("client", INNER_CLIENTS, ids=str)
def test_a_client_on_this_machine_may_go_anywhere(client: Host) -> None:
    """On loopback or through a unix socket: it could go there without a proxy."""
    assert is_inner_client(client)
    for address in (*INNER_ADDRESSES, *OUTER_ADDRESSES):
        permit_for(client)(ip_address(address))


@pytest.mark.parametrize("client", OUTER_CLIENTS, ids=str)
def test_a_client_from_outside_is_kept_out(client: Host) -> None:
    """Whoever is not on loopback, a private address or not, reaches nothing inner: reply 02, and the text says why."""
    assert not is_inner_client(client)
    for text, network in INNER_ADDRESSES.items():
        address = ip_address(text)
        with pytest.raises(PolicyDenied) as caught:
            permit_for(client)(address)
        assert caught.value.reply_code == 2
        assert str(caught.value).startswith(f"guard: {address} is in {network}, ")


@pytest.mark.parametrize("client", OUTER_CLIENTS, ids=str)
def test_a_client_from_outside_may_go_outside(client: Host) -> None:
    """What the guard is not for, it permits."""
    for address in OUTER_ADDRESSES:
        permit_for(client)(ip_address(address))


def test_the_answers_are_functions_without_a_client() -> None:
    """A session keeps one of two answers; none is made for each connection."""
    assert permit_for(IPv4Address("127.0.0.1")) is permit_any
    assert permit_for(IPv4Address("198.51.100.7")) is permit_outer


@given(st.ip_addresses(v=4))
def test_any_ipv4_address_alone_and_inside_ipv6(address: IPv4Address) -> None:
    """Loopback, link-local, multicast and unspecified as ipaddress knows them are inner, and so is each inside IPv6."""
    network = inner_network(address)
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        assert network is not None
    mapped = IPv6Address(b"\x00" * 10 + b"\xff\xff" + address.packed)
    sixtofour = IPv6Address(b"\x20\x02" + address.packed + bytes(10))
    nat64 = IPv6Address(b"\x00\x64\xff\x9b" + bytes(8) + address.packed)
    if int(address) > 1:  # :: and ::1 are themselves
        assert inner_network(IPv6Address(bytes(12) + address.packed)) == network
    assert inner_network(mapped) == inner_network(sixtofour) == inner_network(nat64) == network


def test_the_page_on_refusals_has_the_same_list() -> None:
    """Operators read there what a client from outside cannot reach."""
    page = (Path(__file__).parents[2] / "docs" / "why-was-it-refused.md").read_text()
    (block,) = re.findall(r"Any other may not reach:\n\n((?:    .*\n)+)", page)
    assert block.split() == [str(network) for network in INNER]


@given(st.sampled_from(INNER).flatmap(lambda network: st.ip_addresses(network=str(network))))
def test_everything_in_a_listed_network_is_inner(address: IPv4Address | IPv6Address) -> None:
    """Not only the ends of the networks."""
    with pytest.raises(PolicyDenied):
        permit_outer(address)
