"""URLs of proxies and of listeners: what they may say, and that nothing of a password is ever shown."""

from __future__ import annotations

import string
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.url import ProxyURL, parse_listen_url, parse_url
from tabi.wire.address import Address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("socks5://127.0.0.1:1081", ProxyURL("socks5", Address(IPv4Address("127.0.0.1"), 1081))),
        ("socks5://127.0.0.1", ProxyURL("socks5", Address(IPv4Address("127.0.0.1"), 1080))),
        ("socks5://127.0.0.1:0/", ProxyURL("socks5", Address(IPv4Address("127.0.0.1"), 0))),
        ("SOCKS5://Proxy.Example:1", ProxyURL("socks5", Address("proxy.example", 1))),
        ("socks5://[::1]:1", ProxyURL("socks5", Address(IPv6Address("::1"), 1))),
        ("socks5://[::1]", ProxyURL("socks5", Address(IPv6Address("::1"), 1080))),
        ("socks5://bücher.example:1", ProxyURL("socks5", Address("xn--bcher-kva.example", 1))),
        ("socks5://a:b@h:1", ProxyURL("socks5", Address("h", 1), "a", "b")),
        ("socks5://a:@h:1", ProxyURL("socks5", Address("h", 1), "a", "")),
        ("socks5://a%40b:p%3Aq%2F%25@h:1", ProxyURL("socks5", Address("h", 1), "a@b", "p:q/%")),
        ("socks5://a:b@c@h:1", ProxyURL("socks5", Address("h", 1), "a", "b@c")),
        (f"socks5://{'u' * 255}:{'p' * 255}@h:1", ProxyURL("socks5", Address("h", 1), "u" * 255, "p" * 255)),
    ],
)
def test_urls(text: str, url: ProxyURL) -> None:
    """Protocol, host, port and, where they are, user name and password, percent-decoded."""
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:1080",
        "alice:sekret@127.0.0.1:1080",
        "http://alice:sekret@127.0.0.1:1080",
        "socks5:alice:sekret@127.0.0.1",
        "socks5://",
        "socks5://:1080",
        "socks5://alice:sekret@",
        "socks5://alice:sekret@:1080",
        "socks5://alice:sekret@h:99999",
        "socks5://alice:sekret@h:-1",
        "socks5://alice:sekret@h:http",
        "socks5://alice:sekret@[::1:1080",
        "socks5://alice:sekret@h]:1080",
        "socks5://alice:sekret@h:1/path",
        "socks5://alice:sekret@h:1?query",
        "socks5://alice:sekret@h:1#fragment",
        "socks5://alice:sek/ret:sekret@h:1",
        "socks5://alice:1/sekret@h:1",
        "socks5://alice:1?sekret@h:1",
        "socks5://alice:1#sekret@h:1",
        "socks5://alice@h:1",
        "socks5://:sekret@h:1",
        "socks5://@h:1",
        "socks5://alice:sekret%ff@h:1",
        "socks5://%ff:sekret@h:1",
        f"socks5://alice:sekret{'x' * 255}@h:1",
        f"socks5://{'x' * 256}:sekret@h:1",
        f"socks5://alice:sekret{'ä' * 125}@h:1",
        "socks5://alice:sekret@a b:1",
        "socks5://alice:sekret@[::1%\x7f]:1",
        f"socks5://alice:sekret@{'h' * 256}:1",
    ],
)
def test_what_is_no_url_of_ours(text: str) -> None:
    """The message says what is expected, and never what was written: it may hold a password."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_url(text)
    assert "sekret" not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match=r".") as refused:
        parse_listen_url(text)
    assert "sekret" not in str(refused.value)
    assert refused.value.__cause__ is None


octets = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(octets, octets, st.integers(0, 65535))
def test_any_credentials_can_be_written_in_a_url(username: str, password: str, port: int) -> None:
    """What was quoted comes out as it went in, and shows up nowhere."""
    url = parse_url(f"socks5://{quote(username, safe='')}:{quote(password, safe='')}@127.0.0.1:{port}")
    assert (url.username, url.password, url.address.port) == (username, password, port)
    assert repr(url) == f"socks5://127.0.0.1:{port}"


@given(st.text(string.printable, max_size=20), st.sampled_from(["@h:1", "@h:99999", "@", "@[", "@h:1/x", "@a b"]))
def test_no_password_is_ever_echoed(password: str, rest: str) -> None:
    """However broken the URL, and whether or not it can be read, nothing that stands for the password is shown."""
    try:
        shown = repr(parse_url(f"socks5://alice:{password}sekret{rest}"))
    except ValueError as exc:
        shown = str(exc)
    assert "sekret" not in shown


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_value_error(text: str) -> None:
    """Nothing else is raised."""
    for candidate in (text, f"socks5://{text}", f"socks5://a:b@{text}"):
        try:
            url = parse_url(candidate)
        except ValueError:
            continue
        assert 0 <= url.address.port <= 65535
        assert url.protocol == "socks5"
