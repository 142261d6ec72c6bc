"""URLs of proxies and of listeners: what they may say, and that nothing of a password is ever shown."""

from __future__ import annotations

import re
import string
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.url import (
    LISTENER_PROTOCOLS,
    MAX_PATH,
    PROXY_PROTOCOLS,
    ListenURL,
    PassedSocket,
    ProxyURL,
    UnixSocket,
    parse_listen_url,
    parse_server_url,
    parse_syslog_url,
    parse_url,
)
from tabi.wire.address import Address
from tabi.wire.socks5 import Credentials


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("socks5://127.0.0.1:1081", ProxyURL("socks5", Address(IPv4Address("127.0.0.1"), 1081))),
        ("socks5://127.0.0.1", ProxyURL("socks5", Address(IPv4Address("127.0.0.1"), 1080))),
        ("socks5://127.0.0.1:1/", ProxyURL("socks5", Address(IPv4Address("127.0.0.1"), 1))),
        ("SOCKS5://Proxy.Example:1", ProxyURL("socks5", Address("proxy.example", 1))),
        ("socks5://[::1]:1", ProxyURL("socks5", Address(IPv6Address("::1"), 1))),
        ("socks5://[::1]", ProxyURL("socks5", Address(IPv6Address("::1"), 1080))),
        ("socks5://bücher.example:1", ProxyURL("socks5", Address("xn--bcher-kva.example", 1))),
        ("socks5://a:b@h:1", ProxyURL("socks5", Address("h", 1), "a", "b")),
        ("socks5://a:@h:1", ProxyURL("socks5", Address("h", 1), "a", "")),
        ("socks5://a%40b:p%3Aq%2F%25@h:1", ProxyURL("socks5", Address("h", 1), "a@b", "p:q/%")),
        ("socks5://a:b@c@h:1", ProxyURL("socks5", Address("h", 1), "a", "b@c")),
        ("socks5h://h", ProxyURL("socks5", Address("h", 1080))),
        ("socks5+tls://a:b@h", ProxyURL("socks5", Address("h", 1080), "a", "b", True)),
        ("socks4://h", ProxyURL("socks4", Address("h", 1080))),
        ("socks4a://alice@h:1", ProxyURL("socks4", Address("h", 1), "alice")),
        ("socks4://alice:@h:1", ProxyURL("socks4", Address("h", 1), "alice", "")),
        ("socks4+tls://h:1", ProxyURL("socks4", Address("h", 1), tls=True)),
        ("http://h", ProxyURL("http", Address("h", 3128))),
        ("http://a:@h:80", ProxyURL("http", Address("h", 80), "a", "")),
        ("HTTPS://a:b%3A%20@h/", ProxyURL("http", Address("h", 443), "a", "b: ", True)),
        ("ssh://alice@h", ProxyURL("ssh", Address("h", 22), "alice")),
        ("ssh://alice:b%3A@[::1]:2222", ProxyURL("ssh", Address(IPv6Address("::1"), 2222), "alice", "b:")),
        (f"http://a:{'p' * 1000}@h:1", ProxyURL("http", Address("h", 1), "a", "p" * 1000)),
        (f"socks5://{'u' * 255}:{'p' * 255}@h:1", ProxyURL("socks5", Address("h", 1), "u" * 255, "p" * 255)),
    ],
)
def test_urls(text: str, url: ProxyURL) -> None:
    """Protocol, host, port and, where they are, user name and password, percent-decoded."""
    assert parse_url(text) == url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("socks5h://a:b@h", "socks5://h:1080"),
        ("socks5+tls://a:b@h", "socks5+tls://h:1080"),
        ("socks4a://a@h", "socks4://h:1080"),
        ("socks4+tls://h", "socks4+tls://h:1080"),
        ("http://a:b@h", "http://h:3128"),
        ("https://a:b@[::1]", "https://[::1]:443"),
    ],
)
def test_what_a_url_is_shown_as(text: str, shown: str) -> None:
    """A URL that leads to the same proxy, without who asks; written out it is the same again."""
    url = parse_url(text)
    assert str(url) == repr(url) == shown
    assert str(parse_url(shown)) == shown


def test_an_ssh_server_is_shown_without_its_user_too() -> None:
    """Though it wants one, so that what is shown is no URL to go by."""
    assert str(parse_url("ssh://a:b@h")) == repr(parse_url("ssh://a@h")) == "ssh://h:22"


@pytest.mark.parametrize("text", ["socks5://127.0.0.1:0", "socks4://a@h:0", "https://a:sekret@[::1]:0/"])
def test_a_proxy_is_at_no_port_0(text: str) -> None:
    """Which a listener may have: nothing can be connected to there."""
    with pytest.raises(ValueError, match=r"^port 0, expected socks5://\[user:password@\]host:port, ") as caught:
        parse_url(text)
    assert "sekret" not in str(caught.value)


def test_what_is_expected_is_every_protocol() -> None:
    """Whoever has mistyped one sees them all."""
    with pytest.raises(ValueError, match="protocol 'socks', expected socks5://") as caught:
        parse_url("socks://h:1")
    assert all(scheme in str(caught.value) for scheme in PROXY_PROTOCOLS)


@pytest.mark.parametrize(
    ("text", "credentials"),
    [
        ("socks5://h", None),
        ("socks5://ä:ö@h", Credentials("ä".encode(), "ö".encode())),
        ("socks4://a@h", Credentials(b"a", b"")),
        ("http://a:b@h", Credentials(b"a", b"b")),
    ],
)
def test_credentials_are_octets_for_every_protocol(text: str, credentials: Credentials | None) -> None:
    """UTF-8 (RFC 7617 section 2.1 has it so, RFC 1929 says nothing)."""
    assert parse_url(text).credentials == credentials


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:1080",
        "alice:sekret@127.0.0.1:1080",
        "ftp://alice:sekret@127.0.0.1:1080",
        "mixed://alice:sekret@127.0.0.1:1080",
        "ssh://h:22",
        "ssh://:sekret@h:22",
        f"ssh://alice:sekret{'x' * 1024}@h:22",
        "socks4://alice:sekret@h:1",
        "socks4://@h:1",
        "socks4://sekret%00@h:1",
        f"socks4://sekret{'x' * 250}@h:1",
        "http://alice@h:1",
        "http://:sekret@h:1",
        "http://ali%3Ace:sekret@h:1",
        "https://alice:sekret%0d%0aX: y@h:1",
        "https://alice:sekret%0d%0aX@h:1",
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


@given(octets, octets, st.integers(1, 65535))
def test_any_credentials_can_be_written_in_a_url(username: str, password: str, port: int) -> None:
    """What was quoted comes out as it went in, and shows up nowhere."""
    url = parse_url(f"socks5://{quote(username, safe='')}:{quote(password, safe='')}@127.0.0.1:{port}")
    assert (url.username, url.password, url.address.port) == (username, password, port)
    assert repr(url) == f"socks5://127.0.0.1:{port}"


# --- listeners ---

HERE = Address(IPv4Address("127.0.0.1"), 1)


@pytest.mark.parametrize(
    ("scheme", "protocol", "tls"),
    [
        ("mixed", "mixed", False),
        ("mixed+tls", "mixed", True),
        ("socks5", "socks5", False),
        ("socks5+tls", "socks5", True),
        ("socks4", "socks4", False),
        ("socks4a", "socks4", False),
        ("socks4+tls", "socks4", True),
        ("http", "http", False),
        ("https", "http", True),
    ],
)
def test_every_protocol_at_every_place(scheme: str, protocol: str, tls: bool) -> None:
    """What clients speak is the scheme of an address, and in the query of a path or a passed socket."""
    for text, place in (
        (f"{scheme}://127.0.0.1:1", HERE),
        (f"{scheme.upper()}://127.0.0.1:1/", HERE),
        (f"unix:///run/tabi.sock?protocol={scheme}", UnixSocket("/run/tabi.sock")),
        (f"fd://web?protocol={scheme}", PassedSocket("web")),
    ):
        url = parse_listen_url(text)
        assert url == ListenURL(scheme, place)
        assert (url.protocol, url.tls) == (protocol, tls)
        assert parse_listen_url(str(url)) == url
    assert url.at(HERE) == f"{scheme}://127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("mixed://127.0.0.1", Address(IPv4Address("127.0.0.1"), 1080)),
        ("mixed://localhost:0", Address("localhost", 0)),
        ("mixed://[::]:1", Address(IPv6Address("::"), 1)),
        ("unix:///a", UnixSocket("/a", 0o600, None, None)),
        ("unix:/a", UnixSocket("/a")),
        ("unix:///a%20b%3F?mode=0660", UnixSocket("/a b?", 0o660)),
        ("unix:///a?mode=777&owner=tabi&group=33", UnixSocket("/a", 0o777, "tabi", "33")),
        ("unix:///a?group=www-data&protocol=mixed", UnixSocket("/a", group="www-data")),
        (f"unix:///{'a' * (MAX_PATH - 1)}", UnixSocket("/" + "a" * (MAX_PATH - 1))),
        ("fd://", PassedSocket("")),
        ("fd://?protocol=mixed", PassedSocket("")),
        ("fd://3", PassedSocket("3")),
        ("fd://tabi.socket", PassedSocket("tabi.socket")),
        ("fd://a%2Fb", PassedSocket("a/b")),
        ("fd://Web", PassedSocket("Web")),
    ],
)
def test_places(text: str, place: object) -> None:
    """An address, a path with rights and owner, the name or the number of what was passed; mixed by default."""
    url = parse_listen_url(text)
    assert url.place == place
    assert url.protocol == "mixed"
    again = parse_listen_url(str(url)).place
    assert again == (UnixSocket(place.path) if isinstance(place, UnixSocket) else place)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://127.0.0.1:1", "protocol 'ftp', expected PROTOCOL://host:port, unix:///path or fd://NAME"),
        ("127.0.0.1:1", "the protocol is missing, expected PROTOCOL://host:port"),
        ("localhost", "the protocol is missing, "),
        ("", "the protocol is missing, "),
        ("://h:1", "the protocol is missing, "),
        ("mixed://", "no host"),
        ("mixed://h:99999", "port 99999 is not from 0 to 65535, expected PROTOCOL"),
        ("mixed://h:-1", "port -1 is not from 0 to 65535"),
        ("mixed://h:abc", "the port is not a number from 0 to 65535"),
        ("mixed://[::1]:65536/", "port 65536 is not "),
        ("mixed://alice:5@h:70000", "port 70000 is not "),
        ("mixed://alice:12345678/9@h:1", "the port is not a number from "),
        ("mixed://*:1", "* is not a host, expected 0.0.0.0, or [::] for IPv6 and IPv4"),
        ("http://*", "* is not a host, "),
        ("mixed://a..b:1", "a label of the host name must have 1 to 63 characters, "),
        ("mixed://.:1", "a label of the host name must have 1 to 63 characters, "),
        (f"mixed://{'a' * 64}.test:1", "a label of the host name must have 1 to 63 characters, "),
        ("mixed://h:1/path", "something after the port"),
        ("mixed://h:1?mode=0660", "something after the port"),
        ("mixed://h:1 ", "white space"),
        ("mixed://alice@h:1", "a listener has no user of its own"),
        ("unix://alice:sekret@/a", "a listener has no user of its own"),
        ("fd://alice:sekret@a", "a listener has no user of its own"),
        ("unix://a/b", "an absolute path"),
        ("unix://", "an absolute path"),
        ("unix:a", "an absolute path"),
        ("unix:///", "an absolute path"),
        ("unix:///a/", "an absolute path"),
        ("unix:///a#b", "an absolute path"),
        (f"unix:///{'a' * MAX_PATH}", f"a path of {MAX_PATH + 1} octets, expected at most {MAX_PATH}"),
        (f"unix:///{'%C3%A4' * 54}", f"a path of {MAX_PATH + 2} octets"),
        ("unix:///a%00", "no NUL"),
        ("unix:///a?mode=0888", "mode=0888, expected octal digits such as 0660"),
        ("unix:///a?mode=66", "mode=66, "),
        ("unix:///a?mode=1777", "mode=1777, "),
        ("unix:///a?mode=\uff10\uff16\uff10\uff10", "mode="),
        ("unix:///a?protocol=ftp", "protocol=ftp, expected one of mixed, "),
        ("unix:///a?color=red", "unknown key color in the query, expected one of protocol, mode, owner, group"),
        ("fd://a?mode=0660", "unknown key mode in the query, expected one of protocol"),
        ("unix:///a?mode=0600&mode=0660", "a key of the query twice or without a value"),
        ("unix:///a?owner=", "a key of the query twice or without a value"),
        ("unix:///a?owner", "this is not a query"),
        ("unix:///a?&", "this is not a query"),
        ("fd://a/b", "something after the name"),
        ("fd://a#b", "something after the name"),
    ],
)
def test_what_is_no_place_to_listen_at(text: str, words: str) -> None:
    """The message says what is wrong and what is expected."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_listen_url(text)
    assert words in str(caught.value)
    assert "sekret" not in str(caught.value)


paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)


@given(paths, st.integers(0, 0o777), st.sampled_from(sorted(LISTENER_PROTOCOLS)))
def test_any_path_can_be_written_in_a_url(path: str, mode: int, scheme: str) -> None:
    """What was quoted comes out as it went in, and again from what the URL is shown as."""
    url = parse_listen_url(f"unix:///{quote(path, safe='')}?mode={mode:03o}&protocol={scheme}")
    assert url == ListenURL(scheme, UnixSocket("/" + path, mode))
    assert parse_listen_url(str(url)) == ListenURL(scheme, UnixSocket("/" + path))


@given(st.text(max_size=40))
def test_any_text_is_a_listener_or_value_error(text: str) -> None:
    """Nothing else is raised, and what is read has a meaning."""
    for candidate in (text, f"mixed://{text}", f"unix://{text}", f"unix:///a?{text}", f"fd://{text}"):
        try:
            url = parse_listen_url(candidate)
        except ValueError:
            continue
        assert url.protocol in ("mixed", "socks5", "socks4", "http")
        assert isinstance(url.place, Address | UnixSocket | PassedSocket)


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
    for candidate in (text, f"socks5://{text}", f"socks5://a:b@{text}", f"http://{text}@h", f"socks4://{text}@h"):
        try:
            url = parse_url(candidate)
        except ValueError:
            continue
        assert 0 <= url.address.port <= 65535
        assert url.protocol in ("socks5", "socks4", "http")


# --- name servers ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.1.1.1", "udp://1.1.1.1:53"),
        ("1.1.1.1:5353", "udp://1.1.1.1:5353"),
        ("2606:4700::1111", "udp://[2606:4700::1111]:53"),
        ("[2606:4700::1111]:5353", "udp://[2606:4700::1111]:5353"),
        ("udp://1.1.1.1", "udp://1.1.1.1:53"),
        ("tcp://[::1]:5353/", "tcp://[::1]:5353"),
        ("tls://dns.example", "tls://dns.example:853"),
        ("tls://1.1.1.1:8853", "tls://1.1.1.1:8853"),
        ("https://dns.example", "https://dns.example:443/dns-query"),
        ("https://dns.example/", "https://dns.example:443/dns-query"),
        ("https://[::1]:8443/resolve/", "https://[::1]:8443/resolve/"),
    ],
)
def test_the_url_of_a_name_server(text: str, expected: str) -> None:
    """An address alone is UDP; each protocol has its own port, and https a path."""
    assert str(parse_server_url(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no host"),
        ("dns.example", "'dns.example' is not an IP address"),
        ("udp://dns.example", "'dns.example' is not an IP address"),
        ("tcp://dns.example", "'dns.example' is not an IP address"),
        ("1.1.1.1:0", "port 0"),
        ("1.1.1.1:65536", "port 65536 is not from 0 to 65535"),
        ("socks5://1.1.1.1", "protocol 'socks5'"),
        ("tls://", "no host"),
        ("tls://dns.example/dns-query", "something after the port"),
        ("https://a@dns.example", "a user, a query or a fragment"),
        ("https://dns.example/dns-query{?dns}", "a user, a query or a fragment"),
        ("https://dns.example/#x", "a user, a query or a fragment"),
        ("1.1.1.1 ", "white space or control characters in a URL"),
    ],
)
def test_what_is_no_name_server(text: str, message: str) -> None:
    """The message says what is wrong and what was expected."""
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}.*, expected system, an IP address, udp://IP"):
        parse_server_url(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("syslog://loghost", "loghost:514"),
        ("syslog://192.0.2.9:1514/", "192.0.2.9:1514"),
        ("syslog://[::1]", "[::1]:514"),
    ],
)
def test_the_url_of_a_syslog_daemon(text: str, expected: str) -> None:
    """Its port is that of RFC 5426."""
    assert str(parse_syslog_url(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("syslog:", "the protocol is missing"),
        ("syslog:loghost", "the protocol is missing"),
        ("syslog://", "no host"),
        ("syslog:///dev/log", "no host"),
        ("syslog://loghost/x", "something after the port"),
        ("syslog://loghost?a=b", "something after the port"),
        ("syslog://loghost:0", "port 0"),
        ("syslog://loghost:65536", "port 65536 is not from 0 to 65535"),
        ("syslog://a:b@loghost", "a user"),
        ("syslogd://loghost", "protocol 'syslogd'"),
        ("syslog://log host", "white space or control characters"),
    ],
)
def test_what_is_no_syslog_daemon(text: str, message: str) -> None:
    """The message says what is wrong and what was expected."""
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}.*, expected syslog://host:port$"):
        parse_syslog_url(text)
