"""The guard: which addresses are inner ones, and which clients may reach them."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import ConfigError, PolicyDenied
from tabi.policy.guard import INNER, Guard, LocalAddresses, allow_any_address, is_inner_client
from tabi.wire.address import Address, Host, parse_host

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
    "168.63.129.16": "168.63.129.16/32",
    "192.0.2.1": "192.0.2.0/24",
    "192.88.99.1": "192.88.99.0/24",
    "198.51.100.7": "198.51.100.0/24",
    "203.0.113.255": "203.0.113.0/24",
    "100::1": "100::/64",
    "2001:2::1": "2001:2::/48",
    "2001:10::1": "2001:10::/28",
    "2001:db8::1": "2001:db8::/32",
    "3fff:fff::1": "3fff::/20",
    "5f00::1": "5f00::/16",
    # translated (RFC 2765), ISATAP (RFC 5214)
    "::ffff:0:10.0.0.1": "10.0.0.0/8",
    "2606:4700::5efe:10.0.0.1": "10.0.0.0/8",
    "2606:4700::200:5efe:127.0.0.1": "127.0.0.0/8",
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
    "168.63.129.17",
    "192.88.98.255",
    "223.255.255.255",
    "8.8.8.8",
    "::8.8.8.8",
    "::1:0:0:1",
    "2001:1::1",
    "100:0:0:1::1",
    "2606:4700::5efe:8.8.8.8",
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


EVERYBODY = Guard()


def why(address: str | IPv4Address | IPv6Address, guard: Guard = EVERYBODY, port: int = 80) -> str | None:
    """What the guard says of an address."""
    return guard.catches(ip_address(address), port)


@pytest.mark.parametrize(("address", "network"), INNER_ADDRESSES.items())
def test_inner_addresses(address: str, network: str) -> None:
    """Loopback, private, link-local, metadata, multicast and the like, also inside IPv6, are inner; with the reason."""
    reason = why(address)
    assert reason is not None
    assert reason.startswith(f"{ip_address(address)} ")
    assert reason.endswith(f" is in {network}")


@pytest.mark.parametrize("address", OUTER_ADDRESSES)
def test_outer_addresses(address: str) -> None:
    """The neighbours of every inner network, and public addresses inside IPv6, are not."""
    assert why(address) is None


@pytest.mark.parametrize("client", INNER_CLIENTS, ids=str)
def test_a_client_on_this_machine_may_go_anywhere(client: Host) -> None:
    """On loopback or through a unix socket: it could go there without a proxy. No object is made for it."""
    assert is_inner_client(client)
    assert EVERYBODY.address_filter_for(client, 80) is allow_any_address
    allow_any_address(ip_address("127.0.0.1"))


@pytest.mark.parametrize("client", OUTER_CLIENTS, ids=str)
def test_a_client_from_outside_is_kept_out(client: Host) -> None:
    """Whoever is not on loopback, a private address or not, reaches nothing inner: reply 02, and the text says why."""
    assert not is_inner_client(client)
    address_filter = EVERYBODY.address_filter_for(client, 80)
    for text in INNER_ADDRESSES:
        with pytest.raises(
            PolicyDenied, match=r"^guard: .* is in .*, which a client from outside may not reach$"
        ) as caught:
            address_filter(ip_address(text))
        assert caught.value.reply_code == 2
    for text in OUTER_ADDRESSES:
        address_filter(ip_address(text))


def test_several_addresses_are_judged_together() -> None:
    """One inner address among several forbids the name; without addresses there is nothing to say yet."""
    EVERYBODY.check_destination(Address("x.example", 80), None)
    EVERYBODY.check_destination(Address("x.example", 80), [ip_address("8.8.8.8"), ip_address("1.1.1.1")])
    with pytest.raises(PolicyDenied):
        EVERYBODY.check_destination(Address("x.example", 80), [ip_address("8.8.8.8"), ip_address("10.0.0.1")])


def test_exceptions_and_further_networks() -> None:
    """``allow`` lifts, by the address or by what is inside it; ``deny`` adds, also inside IPv6; none is no guard."""
    guard = Guard(["private", "8.8.8.0/24"], ["10.20.0.0/16", "fd00::/8"])
    for address in ("10.20.0.1", "::ffff:10.20.0.1", "64:ff9b::10.20.0.1", "fd00::1"):
        assert why(address, guard) is None
    assert why("10.21.0.1", guard) == "10.21.0.1 is in 10.0.0.0/8"
    assert why("8.8.8.8", guard) == "8.8.8.8 is in 8.8.8.0/24"
    assert why("64:ff9b::808:808", guard) == "64:ff9b::808:808 holds 8.8.8.8, which is in 8.8.8.0/24"
    assert why("127.0.0.1", Guard(["8.8.8.8"])) is None
    assert not Guard([]).is_for(ip_address("8.8.8.8"))


def test_whom_it_is_not_for() -> None:
    """A network of administrators, or nobody: then clients on this machine are kept out too."""
    admins = Guard(exempt=["10.9.0.0/24"])
    assert not admins.is_for(ip_address("10.9.0.1"))
    assert admins.is_for(ip_address("127.0.0.1"))
    assert admins.is_for("unix")


def test_the_proxy_itself_is_not_reached() -> None:
    """Its own addresses, as they become known; its listeners even where their network is allowed."""
    own = LocalAddresses()
    guard = Guard(allow=["10.20.0.0/16", "127.0.0.0/8"], own=own)
    assert why("93.184.216.34", guard) is None
    own.addresses = frozenset((ip_address("93.184.216.34"), ip_address("10.20.0.5")))
    own.ports = frozenset((1080,))
    assert why("93.184.216.34", guard) == "93.184.216.34 is an address of this proxy"
    assert why("64:ff9b::93.184.216.34", guard) is not None
    assert why("10.20.0.5", guard) is None
    assert why("10.20.0.5", guard, 1080) == "10.20.0.5 port 1080 is a listener of this proxy"
    assert why("127.0.0.1", guard, 1080) is not None
    assert why("10.20.0.6", guard, 1080) is None
    assert why("93.184.216.34", Guard(["10.0.0.0/8"], own=own)) is None


def test_verdicts_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for ever other addresses does not fill the memory."""
    monkeypatch.setattr("tabi.policy.guard.MEMORY", 3)
    guard = Guard()
    for number in range(10):
        assert why(f"8.8.8.{number}", guard) is None
        assert len(guard.verdicts) <= 3


@pytest.mark.parametrize(
    ("arguments", "path", "message"),
    [
        ((["private", "10.0.0.1/8"],), "deny[0]", "has host bits set, expected 10.0.0.0/8"),
        (([], ["home"]), "allow[0]", "is not a network"),
        (([], [], ["home"]), "exempt[0]", "is not a network"),
    ],
)
def test_what_cannot_be_read_is_said(arguments: Any, path: str, message: str) -> None:
    """With its key."""
    with pytest.raises(ConfigError, match=message) as caught:
        Guard(*arguments)
    assert caught.value.path == path


@given(st.ip_addresses(v=4))
def test_any_ipv4_address_alone_and_inside_ipv6(address: IPv4Address) -> None:
    """Loopback, link-local, multicast and unspecified as ipaddress knows them are inner, and so is each inside IPv6."""
    reason = why(address)
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        assert reason is not None
    for front, behind in (
        (bytes(10) + b"\xff\xff", b""),
        (b"\x20\x02", bytes(10)),
        (b"\x00\x64\xff\x9b" + bytes(8), b""),
    ):
        assert (why(IPv6Address(front + address.packed + behind)) is None) == (reason is None)


def test_the_page_on_refusals_has_the_same_list() -> None:
    """Operators read there what a client from outside cannot reach."""
    page = (Path(__file__).parents[2] / "docs" / "why-was-it-refused.md").read_text()
    (block,) = re.findall(r"Any other client may not reach:\n\n((?:    .*\n)+)", page)
    assert block.split() == [str(network) for network in INNER]


@given(st.sampled_from(INNER).flatmap(lambda network: st.ip_addresses(network=str(network))))
def test_everything_in_a_listed_network_is_inner(address: IPv4Address | IPv6Address) -> None:
    """Not only the ends of the networks."""
    assert why(address) is not None


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("64:ff9b::192.0.2.1", True),
        ("192.0.2.2", False),
        ("2001:db8::1", False),
    ],
)
def test_what_leads_to_this_machine(host: str, here: bool) -> None:
    """Loopback, the unspecified address, and its own, in any form that leads there."""
    own = LocalAddresses()
    own.addresses = frozenset((ip_address("192.0.2.1"),))
    assert own.is_here(ip_address(host)) == here
