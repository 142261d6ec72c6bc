"""Networks: how they are read, and which of many an address lies in."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.networks import IP, NetworkSet, NetworkTable, contains, network_of, parse_network, unmapped
from tabi.session import UNIX
from tabi.wire.address import Address

networks = st.one_of(
    st.builds(lambda ip, length: ip_network((ip, length), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda ip, length: ip_network((ip, length), strict=False), st.ip_addresses(v=6), st.integers(0, 128)),
)


def test_networks_and_addresses_are_read() -> None:
    """IPv4 and IPv6, in brackets too; an address is a network of one."""
    assert parse_network("10.0.0.0/8") == ip_network("10.0.0.0/8")
    assert parse_network(" 192.0.2.7") == ip_network("192.0.2.7/32")
    assert parse_network("[2001:db8::]/32") == parse_network("2001:db8::/32") == ip_network("2001:db8::/32")
    assert parse_network("::1") == ip_network("::1/128")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' has host bits set, expected 10.0.0.0/8"),
        ("example.com", "'example.com' is not a network, expected such as 10.0.0.0/8 or 2001:db8::1"),
        ("10.0.0.0/33", "is not a network"),
        ("fe80::1%eth0", "is not a network"),
        ("", "is not a network"),
    ],
)
def test_what_is_no_network_is_refused(text: str, wrong: str) -> None:
    """The message says which network was meant."""
    with pytest.raises(ValueError, match=wrong):
        parse_network(text)


@given(st.lists(networks, max_size=20), st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.data())
def test_a_table_finds_what_a_search_finds(many: list[IP], address: IP, data: Any) -> None:
    """Every network that has the address, of any length."""
    if many:
        address = data.draw(st.one_of(st.just(address), st.ip_addresses(network=str(many[0]))))
    table = NetworkTable((network, number) for number, network in enumerate(many))  # type: ignore[misc]
    expected = [
        number
        for number, network in enumerate(many)
        if network.version == address.version and address in network  # type: ignore[operator]
    ]
    assert sorted(table.find(address)) == expected
    assert bool(table) == bool(many)
    assert (address in NetworkSet(many)) == bool(expected)  # type: ignore[arg-type]


def test_a_set_knows_clients() -> None:
    """By address, mapped or not, and those of unix sockets where they belong to it."""
    inner = NetworkSet([parse_network("10.0.0.0/8")], unix=True)
    for client, expected in (
        (IPv4Address("10.1.2.3"), True),
        (ip_address("::ffff:10.1.2.3"), True),
        (IPv4Address("11.1.2.3"), False),
        ("unix", True),
        ("10.example", False),
    ):
        assert inner.has_client(client) == expected
    assert not NetworkSet([]).has_client("unix")


def test_equal_sets_are_equal() -> None:
    """So that rules with the same conditions share them."""
    one, other = NetworkSet([parse_network("10.0.0.0/8")]), NetworkSet([parse_network("10.0.0.0/8")])
    assert one == other
    assert hash(one) == hash(other)
    assert one != NetworkSet([parse_network("10.0.0.0/8")], unix=True)
    assert one != "10.0.0.0/8"
    assert one
    assert NetworkSet([], unix=True)
    assert not NetworkSet([])


def test_mapped_addresses_are_what_they_map() -> None:
    """A dual-stack socket has IPv4 inside IPv6."""
    assert unmapped(IPv6Address("::ffff:1.2.3.4")) == IPv4Address("1.2.3.4")
    assert unmapped(IPv6Address("::1")) == IPv6Address("::1")
    assert unmapped(IPv4Address("1.2.3.4")) == IPv4Address("1.2.3.4")


def test_clients_are_told_apart_by_their_network() -> None:
    """Who has a /64 of IPv6 has all its addresses; IPv4 inside IPv6 is IPv4; unix sockets have users."""
    places = ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1"]
    found = [network_of(Address(ip_address(place), port)) for port, place in enumerate(places)]
    assert found[0] == found[1]
    assert found[3] == found[4]
    users = [network_of(Address(UNIX, 0)), network_of(Address(UNIX, 1000))]
    assert len({*found, *users}) == 6
    assert network_of(Address(ip_address("::"), 1)) != network_of(Address(ip_address("0.0.0.0"), 1))


def test_a_client_is_in_a_network_or_not() -> None:
    """Of either family; None stands for clients of a unix socket."""
    networks = (parse_network("10.0.0.0/8"), parse_network("fe80::/10"), None)
    for host, answer in (("10.1.2.3", True), ("11.1.2.3", False), ("fe80::1%1", True), ("::1", False)):
        assert contains(networks, ip_address(host)) == answer
    assert contains(networks, "unix")
    assert not contains(networks[:2], "unix")
