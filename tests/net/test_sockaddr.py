"""struct sockaddr_in and sockaddr_in6 as octets: against the C library, which makes them itself."""

from __future__ import annotations

import ctypes
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.net.sockaddr import (
    decode_sockaddr,
    encode_sockaddr,
    ip_octets,
    on_link_of,
    python_sockaddr,
    with_scope,
)
from tabi.wire.address import Address

addresses = st.builds(Address, st.ip_addresses(), st.integers(0, 65535))


def kernel_name(sock: socket.socket) -> bytes:
    """What getsockname(2) writes."""
    buffer = ctypes.create_string_buffer(128)
    size = ctypes.c_uint(128)
    assert ctypes.CDLL(None).getsockname(sock.fileno(), buffer, ctypes.byref(size)) == 0
    return buffer.raw[: size.value]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_they_are_what_the_kernel_has(host: str) -> None:
    """Octet for octet, so that names can be compared without being decoded."""
    ip = ip_address(host)
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
        assert encode_sockaddr(Address(ip, port)) == kernel_name(sock)
        assert decode_sockaddr(kernel_name(sock)) == Address(ip, port)
        assert python_sockaddr(kernel_name(sock)) == sock.getsockname()


@given(addresses)
def test_what_is_encoded_is_decoded(address: Address) -> None:
    """Every address and port survives, in each of the forms."""
    assert isinstance(address.host, IPv4Address | IPv6Address)
    name = encode_sockaddr(address)
    assert len(name) == (16 if address.host.version == 4 else 28)
    assert decode_sockaddr(name) == address
    assert ip_octets(name) == address.host.packed
    host, port = python_sockaddr(name)[:2]
    assert Address(ip_address(host), port) == address


def test_the_interface_of_a_link_local_address_is_kept() -> None:
    """By number or by name; what is decoded goes without, as on the wire."""
    for text in ("1", "lo"):
        name = encode_sockaddr(Address(ip_address(f"fe80::1%{text}"), 53))
        assert python_sockaddr(name) == ("fe80::1", 53, 0, socket.if_nametoindex("lo"))
        assert decode_sockaddr(name) == Address(ip_address("fe80::1"), 53)


@pytest.mark.parametrize("scope", ["none-such", "4294967296", "9" * 40, "²", "x" * 300, "a\0b"])
def test_an_interface_that_cannot_be_is_a_system_error(scope: str) -> None:
    """Whatever stands behind the %: callers expect OSError, as from any use of the address."""
    with pytest.raises(OSError, match="interface"):
        encode_sockaddr(Address(IPv6Address(f"fe80::1%{scope}"), 53))


def test_a_link_local_address_keeps_its_interface() -> None:
    """As Python's sockets take it; one of no interface, and any other, goes as it is."""
    assert with_scope(ip_address("fe80::1%lo"), 5) == ("fe80::1", 5, 0, socket.if_nametoindex("lo"))
    assert with_scope(ip_address("fe80::1"), 5) == ("fe80::1", 5)
    assert with_scope(ip_address("192.0.2.1"), 5) == ("192.0.2.1", 5)


def test_a_destination_is_on_the_link_of_its_client() -> None:
    """If both are link-local: nothing else says which interface a client means."""
    near, far = ip_address("fe80::1%lo"), ip_address("fe80::2")
    assert on_link_of(far, near) == ip_address("fe80::2%lo")
    for host, client in (
        (far, ip_address("::1")),
        (far, "unix"),
        (far, far),
        (ip_address("::1"), near),
        (near, ip_address("fe80::3%9")),
    ):
        assert on_link_of(host, client) is host
    assert on_link_of(ip_address("169.254.1.1"), near) == ip_address("169.254.1.1")
