"""Lists of hosts: what they have, and what they cost."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.policy.host_list import Builder, HostList, ListedNetworks, merged
from tabi.policy.networks import Network, NetworkSet
from tabi.policy.rules import parents_of


def make_list(*hosts: str | Network, path: str = "list", unix: bool = False) -> HostList:
    """A list of these."""
    builder = Builder()
    builder.unix = unix
    for host in hosts:
        builder.add(host)
    return builder.build(path)


def test_a_list_has_its_names_and_those_below_a_star() -> None:
    """A star is for names below it, and not for itself; a name is for itself alone."""
    found = make_list("a.test", "*.b.test", "*.c.d.e.test")
    for name, expected in (
        ("a.test", True),
        ("x.a.test", False),
        ("b.test", False),
        ("x.b.test", True),
        ("y.x.b.test", True),
        ("xb.test", False),
        ("c.d.e.test", False),
        ("x.c.d.e.test", True),
        ("x.y.test", False),
        ("test", False),
        ("", False),
        ("\udcff.test", False),
        (".b.test", True),
    ):
        assert found.has_name(name) is expected, name
    assert not found.has_networks


def test_names_whose_places_are_taken_are_found() -> None:
    """Among so many some have the place of another one, whatever the hash is; so have some that are not there."""
    found = make_list(*(f"*.n{number}.test" for number in range(500)), *(f"m{number}.test" for number in range(500)))
    for number in range(500):
        assert found.has_name(f"x.n{number}.test")
        assert not found.has_name(f"x.o{number}.test")
        assert found.has_name(f"m{number}.test")
        assert not found.has_name(f"p{number}.test")
        assert found.entry_of(f"x.n{number}.test") == f"*.n{number}.test"
        assert found.entry_of(f"x.o{number}.test") is None


def test_a_list_of_nothing_has_nothing() -> None:
    """An empty file is a list, and so is one that was not read."""
    for found in (make_list(), HostList("list")):
        assert not found.has_name("a.test")
        assert ip_address("192.0.2.1") not in found
        assert ip_address("2001:db8::1") not in found
        assert not found.has_networks


def test_a_top_level_domain_may_be_in_a_list() -> None:
    """One label behind the star."""
    found = make_list("*.zip")
    assert found.has_name("a.zip")
    assert not found.has_name("zip")


names = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "test", "xn--a"]), min_size=1, max_size=4)
    .map(".".join)
    .flatmap(lambda name: st.sampled_from([name, f"*.{name}"])),
    max_size=30,
)


@given(names, st.lists(st.sampled_from(["a", "b", "c", "test"]), min_size=1, max_size=5).map(".".join))
def test_names_are_found_as_in_sets(hosts: list[str], asked: str) -> None:
    """Any names, with equal ones, on any number of slots."""
    expected = [one for one in (asked, *(f"*.{parent}" for parent in parents_of(asked))) if one in hosts]
    found = make_list(*hosts)
    assert found.has_name(asked) is bool(expected)
    assert found.entry_of(asked) == (expected[0] if expected else None)


networks4 = st.builds(
    lambda number, prefix: IPv4Network((number >> 32 - prefix << 32 - prefix, prefix)),
    st.integers(0, (1 << 32) - 1),
    st.integers(1, 32),
)
networks6 = st.builds(
    lambda number, prefix: IPv6Network((number >> 128 - prefix << 128 - prefix, prefix)),
    st.integers(0, (1 << 128) - 1),
    st.integers(1, 128),
)


@given(st.lists(networks4 | networks6, max_size=20), st.data())
def test_addresses_are_found_as_in_networks(networks: list[Network], data: st.DataObject) -> None:
    """Any networks; first and last addresses, and those beside them."""
    found = make_list(*networks)
    assert found.has_networks is bool(networks)
    edges = [int(end) + step for one in networks for end in (one[0], one[-1]) for step in (-1, 0, 1)]
    value = data.draw(st.sampled_from(edges) if edges else st.integers(0, 1 << 32))
    for address in (
        ip_address((value & (1 << 32) - 1).to_bytes(4, "big")),
        ip_address((value & (1 << 128) - 1).to_bytes(16, "big")),
    ):
        assert (address in found) is any(address in network for network in networks), address


def test_networks_with_equal_upper_halves() -> None:
    """Of IPv6 both halves of an address count."""
    found = make_list(*map(ip_network, ("2001:db8::1", "2001:db8::4/126", "2001:db8::ffff:0:0:0/80")))
    inside = [end for end in ("1", "4", "7", "ffff:0:0:0", "ffff:1:2:3") if ip_address(f"2001:db8::{end}") in found]
    assert inside == ["1", "4", "7", "ffff:0:0:0", "ffff:1:2:3"]
    for end in ("0", "2", "3", "8", "1:0:0:0"):
        assert ip_address(f"2001:db8::{end}") not in found
    assert ip_address("2001:db8:0:1::1") not in found


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], []),
        ([(0, 0)], [(0, 0)]),
        ([(5, 9), (0, 3)], [(0, 3), (5, 9)]),
        ([(0, 3), (4, 9)], [(0, 9)]),
        ([(0, 9), (2, 3), (9, 12)], [(0, 12)]),
    ],
)
def test_ranges_that_touch_are_one(ranges: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    """So that an address lies in one at most."""
    assert list(merged([first << 32 | last for first, last in ranges], 32)) == expected


def numbered(count: int) -> Iterable[str]:
    """So many names."""
    return (f"host-{number}.example{number % 7}.test" for number in range(count))


def test_it_takes_few_octets_and_no_objects() -> None:
    """A million names take under 60 MB, and give the collector nothing to look at."""
    count = 20_000
    before = len(gc.get_objects())
    found = make_list(*numbered(count))
    assert len(gc.get_objects()) - before < 100
    assert len(found.data) / count < 60


def test_a_name_that_comes_again_and_again_is_there_once() -> None:
    """Lists that were put together have names twice; a hundred thousand equal ones are no work."""
    found = make_list(*["a.test"] * 100_000)
    assert sum(1 for slot in found.slots if slot) == 1


def test_it_may_be_in_memory_that_processes_share() -> None:
    """What it is read from may be any memory."""
    made = make_list("a.test", "*.b.test", ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"), unix=True)
    with mmap.mmap(-1, len(made.data)) as memory:
        memory[:] = made.data
        view = memoryview(memory)
        found = HostList("list", view, made.shape)
        assert found.has_name("a.test")
        assert found.has_name("x.b.test")
        assert ip_address("192.0.2.9") in found
        assert ip_address("2001:db8::9") in found
        assert found.shape.unix
        del found, view
        gc.collect()


def test_lists_of_one_path_are_equal() -> None:
    """As parts of a rule that is compared with others."""
    assert make_list("a.test") == HostList("list")
    assert hash(make_list("a.test")) == hash(HostList("list"))
    assert make_list("a.test") != make_list("a.test", path="other")
    assert repr(make_list()) == "HostList('list')"


def test_networks_have_those_of_lists_with_them() -> None:
    """Clients are in one of the networks that are written down, or in those of a list."""
    listed = make_list(ip_network("192.0.2.0/24"))
    found = ListedNetworks(NetworkSet([ip_network("10.0.0.0/8")]), (listed,))
    assert found
    assert [str(network) for network in found.networks] == ["10.0.0.0/8"]
    assert ip_address("10.1.1.1") in found
    assert ip_address("192.0.2.1") in found
    assert ip_address("198.51.100.1") not in found
    assert not found.has_client("unix")
    assert ListedNetworks(NetworkSet(()), (make_list(unix=True),)).has_client("unix")
    assert not ListedNetworks(NetworkSet(()), (make_list("a.test"),))


def test_networks_with_equal_lists_are_equal() -> None:
    """So that rules with the same conditions share them."""
    one, other = (ListedNetworks(NetworkSet(()), (make_list(path=path),)) for path in ("one", "other"))
    assert one == ListedNetworks(NetworkSet(()), (HostList("one"),))
    assert hash(one) == hash(ListedNetworks(NetworkSet(()), (HostList("one"),)))
    assert one != other
    assert one != NetworkSet(())
    assert NetworkSet(()) != one
