"""ALL_PROXY and NO_PROXY, as curl and other programs read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.client.environment import all_proxy, no_proxy
from tabi.wire.address import parse_address


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"ALL_PROXY": ""}, None),
        ({"ALL_PROXY": "  "}, None),
        ({"ALL_PROXY": "socks5://a:1"}, "socks5://a:1"),
        ({"ALL_PROXY": " socks5h://a:1 "}, "socks5://a:1"),
        ({"all_proxy": "socks4://b:2", "ALL_PROXY": "socks5://a:1"}, "socks4://b:2"),
        ({"all_proxy": "", "ALL_PROXY": "socks5://a:1"}, None),
        ({"ALL_PROXY": "a:3128"}, "http://a:3128"),
        ({"ALL_PROXY": "https://a"}, "https://a:443"),
    ],
)
def test_which_proxy_is_named(environ: dict[str, str], expected: str | None) -> None:
    """Lower case goes first, empty means none, and a value without a scheme is an HTTP proxy."""
    found = all_proxy(environ)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    ("value", "direct", "through"),
    [
        ("", [], ["a:1", "127.0.0.1:1"]),
        ("*", ["a:1", "127.0.0.1:1", "[::1]:1"], []),
        ("example.com", ["example.com:1", "www.EXAMPLE.com:2", "example.com.:1"], ["notexample.com:1", "com:1"]),
        (".example.com", ["example.com:1", "a.b.example.com:1"], ["myexample.com:1"]),
        ("*.example.com", ["www.example.com:1"], ["example.org:1"]),
        ("a, b  c,,", ["a:1", "b:1", "c:1"], ["d:1"]),
        ("10.0.0.0/8", ["10.1.2.3:80"], ["11.0.0.1:80", "10.example:80"]),
        ("192.0.2.1", ["192.0.2.1:80"], ["192.0.2.10:80", "1.192.0.2.1:80"]),
        ("::1, 2001:db8:1::/48, [2001:db8::5]:8080", ["[::1]:1", "[2001:db8:1::9]:2"], ["[2001:db8::6]:80"]),
        ("[2001:db8::5]:8080", ["[2001:db8::5]:8080"], ["[2001:db8::5]:80"]),
        ("example.com:8443", ["example.com:8443", "www.example.com:8443"], ["example.com:443"]),
        ("*:25", ["a:25", "192.0.2.1:25"], ["a:26"]),
        ("10.0.0.0/8:80", [], ["10.0.0.1:443"]),
        ("127.0.0.1", ["127.1:80", "2130706433:80"], ["localhost:80"]),
    ],
)
def test_what_is_reached_directly(value: str, direct: list[str], through: list[str]) -> None:
    """Names stand for their subdomains, addresses and networks for numbers in every form, and a port may follow."""
    is_direct = no_proxy({"NO_PROXY": value})
    assert [text for text in (*direct, *through) if is_direct(parse_address(text))] == direct


@given(st.text(max_size=200))
def test_any_value_can_be_read(value: str) -> None:
    """What cannot be read matches nothing; a program does not fail because of somebody else's variable."""
    is_direct = no_proxy({"no_proxy": value})
    assert is_direct(parse_address("example.com:80")) in (True, False)
