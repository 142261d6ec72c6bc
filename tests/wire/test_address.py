"""Hosts and ports: as text, as objects, and as the address field of RFC 1928 section 5."""

from __future__ import annotations

import copy
import pickle
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.errors import RemoteProtocolError
from tabi.wire.address import (
    UNSPECIFIED,
    Address,
    Host,
    IPv4,
    check_found_name,
    decode_address,
    embedded_ipv4,
    encode_address,
    from_sockaddr,
    make_host,
    missing_octets,
    parse_address,
    parse_host,
    parse_ip,
    parse_port,
    read_number,
    unmap,
)

NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._"


def is_name(text: str) -> bool:
    """Whether parse_host takes a text for a name, not for an address."""
    return isinstance(parse_host(text), str)


names = st.text(NAME_CHARACTERS, min_size=1, max_size=255).filter(is_name)
hosts = st.one_of(names, st.ip_addresses(v=4), st.ip_addresses(v=6))
addresses = st.builds(Address, hosts, st.integers(0, 65535))


# --- text ---


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", IPv4Address("127.0.0.1")),
        ("[127.0.0.1]", IPv4Address("127.0.0.1")),
        ("::1", IPv6Address("::1")),
        ("[2001:db8::1]", IPv6Address("2001:db8::1")),
        ("fe80::1%eth0", IPv6Address("fe80::1%eth0")),
        ("::ffff:192.0.2.1", IPv6Address("::ffff:192.0.2.1")),
        ("localhost", "localhost"),
        ("example.com.", "example.com."),
        ("_srv._tcp.example", "_srv._tcp.example"),
        ("1.2.3.4.5", "1.2.3.4.5"),
        ("01.2.3.4", "01.2.3.4"),
        ("a" * 255, "a" * 255),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    ],
)
def test_a_host_is_an_address_or_a_name(text: str, host: Host) -> None:
    """Addresses become objects, with or without brackets; everything else is a name, in ASCII."""
    found = parse_host(text)
    assert found == host
    assert isinstance(found, str) == isinstance(host, str)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.com", "bücher.example"])
def test_a_host_from_a_program(host: str) -> None:
    """Text is what it is for people; an address of ipaddress is itself."""
    assert make_host(host) == parse_host(host)
    if not is_name(host):
        assert make_host(ip_address(host)) == parse_host(host)


@pytest.mark.parametrize("host", [None, 5, b"127.0.0.1", ("x",), True, object()])
def test_nothing_else_is_a_host(host: object) -> None:
    """Its text would be a name: "None" is one."""
    with pytest.raises(TypeError, match=r"is not a host, expected str, IPv4Address or IPv6Address"):
        make_host(host)


@pytest.mark.parametrize("text", ["127.0.0.1:80", "example.com:80", "[::1]:80", "1:2"])
def test_a_host_with_a_port_is_refused(text: str) -> None:
    """And the message says what is wrong."""
    with pytest.raises(ValueError, match=r"is not an IPv6 address; expected a host without a port"):
        parse_host(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("2001:db8::1", "2001:db8::1"),
        ("192.0.2.1", "192.0.2.1"),
        ("example.com", "example.com"),
    ],
)
def test_ipv4_inside_ipv6_is_ipv4(host: str, expected: str) -> None:
    """The rest stays as it is."""
    assert unmap(Address(parse_host(host), 53)) == Address(parse_host(expected), 53)


@pytest.mark.parametrize("text", ["\uff11\uff12\uff17.0.0.1", "\uff11\uff12\uff17\u3002\uff10\u3002\uff10\u3002\uff11"])
def test_an_address_in_other_digits_is_an_address(text: str) -> None:
    """IDNA turns full-width digits into ASCII ones: the result is an address, not a name that looks like one."""
    assert parse_host(text) == IPv4Address("127.0.0.1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 256,
        "a b",
        "a\tb",
        "a\x00",
        "a\x7f",
        "\r\n",
        ".".join(["ü" * 30] * 9),
        "ü" * 100,
        "ü..b",
        "\u3002",
        "\u00ad",
        "ü\u00a0b",
        "\u3000",
        "\uff1a",
        "\ud800",
        "a:b",
        "[::1",
        "::1]",
        "[:]",
        "1:2:3",
        "::12345",
        "::1%ü",
        "fe80::1%\x00",
        "fe80::1%a\nb",
        "fe80::1%",
    ],
)
def test_what_can_be_no_host_is_refused(text: str) -> None:
    """Nothing empty, too long, with white space or control characters (nor in a zone), and no broken address."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_host(text)
    assert not any(character in str(caught.value) for character in "\r\n\t\x00\x7f")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ü" * 33, "more than 32 characters outside ASCII"),
        (".".join("ü" * 33), "more than 32 characters outside ASCII"),
        ("\ufdfa" * 3, "more than 32 characters outside ASCII"),
        (".".join("\ufb03" * 33), "more than 32 characters outside ASCII"),
        ("ü" + "a" * 63, "a label of more than 63 characters"),
        ("b.ü\uff0e" + "a" * 64, "a label of more than 63 characters"),
        ("\ufdfa" * 4, "a label of more than 63 characters"),
        ("ü" + ".a" * 128, "1 to 255 octets"),
        ("ü." * 200_000, "1 to 255 octets"),
    ],
)
def test_what_would_keep_idna_busy_is_refused_before(monkeypatch: pytest.MonkeyPatch, text: str, why: str) -> None:
    """A hostile name costs hardly more than a real one: the slow part of the codec never sees it."""
    monkeypatch.setattr("encodings.idna.nameprep", None)  # whoever calls it has a TypeError
    with pytest.raises(ValueError, match=why):
        parse_host(text)


@pytest.mark.parametrize(
    "text",
    ["ü" * 32, ".".join("ü" * 32), "ü" + "a" * 55, "министерство-образования.рф", "ü." + ".".join(["a" * 57] * 4)],
)
def test_international_names_as_long_as_they_may_be(text: str) -> None:
    """32 characters outside ASCII in a name, labels and names as long as DNS has them."""
    host = parse_host(text)
    assert isinstance(host, str)
    assert host.encode().decode("idna") == text


@given(st.one_of(st.text(max_size=30), st.text(st.characters(codec="latin-1"), max_size=30)))
def test_any_text_is_a_printable_host_or_refused(text: str) -> None:
    """Whatever the text, the result is an address or a name of 1 to 255 printable octets; or ValueError."""
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert 0 < len(str(host)) <= 255
    assert all("!" <= character <= "~" for character in str(host))
    if isinstance(host, str):
        assert parse_host(host) == host


@given(hosts)
def test_a_host_survives_its_text(host: Host) -> None:
    """Reading what str() wrote gives the same host."""
    assert parse_host(str(host)) == host


@pytest.mark.parametrize(("text", "port"), [("0", 0), ("80", 80), ("00080", 80), ("65535", 65535)])
def test_ports(text: str, port: int) -> None:
    """A port is a decimal number from 0 to 65535."""
    assert parse_port(text) == port


@pytest.mark.parametrize("text", ["", "65536", "-1", "+1", " 1", "1_0", "http", "\uff11", "²", "1" * 5000])
def test_what_is_no_port_is_refused(text: str) -> None:
    """Signs, blanks, other scripts' digits and numbers beyond 65535 are no ports."""
    with pytest.raises(ValueError, match=r"."):
        parse_port(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("example.com:443", Address("example.com", 443)),
        ("192.0.2.1:80", Address(IPv4Address("192.0.2.1"), 80)),
        ("[2001:db8::1]:0", Address(IPv6Address("2001:db8::1"), 0)),
    ],
)
def test_host_and_port(text: str, address: Address) -> None:
    """``host:port``, with brackets around IPv6, is read and written alike."""
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "::1:80", "2001:db8::1", "host:80:81", "host:x"])
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    """The port is never guessed, and IPv6 without brackets is ambiguous."""
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@given(addresses)
def test_an_address_survives_its_text(address: Address) -> None:
    """Reading what str() wrote gives the same address."""
    assert parse_address(str(address)) == address


# --- objects ---


def test_ipv4_is_an_ipv4_address() -> None:
    """The address that remembers its octets equals, hashes, copies and pickles as the one of ipaddress does."""
    ours, theirs = IPv4("192.0.2.1"), IPv4Address("192.0.2.1")
    assert ours == theirs
    assert hash(ours) == hash(theirs)
    assert (str(ours), f"{ours}", ours.packed) == (str(theirs), f"{theirs}", theirs.packed)
    assert IPv4(b"\xc0\x00\x02\x01") == theirs
    assert copy.deepcopy(ours) == theirs
    assert str(pickle.loads(pickle.dumps(ours))) == "192.0.2.1"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", IPv4Address("127.0.0.1")),
        ("::ffff:127.0.0.1", IPv4Address("127.0.0.1")),
        ("::1", IPv6Address("::1")),
    ],
)
def test_a_dual_stack_sockets_ipv4_peer_is_ipv4(text: str, host: Host) -> None:
    """IPv4 inside IPv6, as a dual-stack listener sees its clients, is IPv4 to everyone else."""
    assert parse_ip(text) == host
    assert from_sockaddr((text, 1080, 0, 0)) == Address(host, 1080)


# --- octets ---


@pytest.mark.parametrize(
    ("address", "octets"),
    [
        (Address(IPv4Address("192.0.2.1"), 80), "01 c0000201 0050"),
        (Address(IPv6Address("2001:db8::1"), 65535), "04 20010db8000000000000000000000001 ffff"),
        (Address("ab.c", 1), "03 04 61622e63 0001"),
        (UNSPECIFIED, "01 00000000 0000"),
    ],
)
def test_the_address_field(address: Address, octets: str) -> None:
    """ATYP, ADDR and PORT as RFC 1928 section 5 draws them."""
    assert encode_address(address) == bytes.fromhex(octets)
    assert decode_address(bytes.fromhex(octets), 0) == (address, len(bytes.fromhex(octets)))


@given(addresses, st.binary(max_size=5), st.binary(max_size=5))
def test_an_address_survives_the_wire(address: Address, before: bytes, behind: bytes) -> None:
    """What was encoded is decoded, wherever it begins and whatever follows it."""
    octets = encode_address(address)
    at = len(before)
    assert decode_address(bytearray(before + octets + behind), at) == (address, at + len(octets))


@given(addresses)
def test_a_cut_address_is_incomplete(address: Address) -> None:
    """Every beginning of an address field asks for more, and never for more than there is to come."""
    octets = encode_address(address)
    for end in range(len(octets)):
        assert decode_address(octets[:end], 0) is None
        assert 0 < missing_octets(octets[:end], 0) <= len(octets) - end
    assert missing_octets(octets, 0) == 0


@pytest.mark.parametrize("name", ["", "a" * 256, "bücher.example"])
def test_no_name_that_the_wire_cannot_hold_is_written(name: str) -> None:
    """A name on the wire has 1 to 255 octets of ASCII."""
    with pytest.raises(ValueError, match=r"."):
        encode_address(Address(name, 80))


@pytest.mark.parametrize("atyp", [0, 2, 5, 255])
def test_an_unknown_address_type_is_reply_08(atyp: int) -> None:
    """RFC 1928 section 6: address type not supported; known from the first octet."""
    with pytest.raises(RemoteProtocolError, match=f"ATYP {atyp:#04x}") as caught:
        decode_address(bytes((atyp,)), 0)
    assert caught.value.reply_code == 8


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a\x00", b"\xff\xfe", b"a:b", b"a\x7f", b"\xc3\xbc..a", b"::1%lo", b"fe80::1%\x00"]
)
def test_a_name_that_cannot_exist_is_reply_04(name: bytes) -> None:
    """Length 0, control characters, no text at all, a zone of the client's machine: host unreachable."""
    with pytest.raises(RemoteProtocolError, match=r"DST\.ADDR: ") as caught:
        decode_address(b"\x03%c%b\x00\x50" % (len(name), name), 0)
    assert caught.value.reply_code == 4


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (b"127.0.0.1", IPv4Address("127.0.0.1")),
        (b"::1", IPv6Address("::1")),
        (b"[::1]", IPv6Address("::1")),
        ("bücher.example".encode(), "xn--bcher-kva.example"),
        ("\uff11\uff12\uff17.0.0.1".encode(), IPv4Address("127.0.0.1")),
        (b"a" * 255, "a" * 255),
    ],
)
def test_what_clients_send_as_names(name: bytes, host: Host) -> None:
    """An address sent as text is an address, and UTF-8 becomes IDNA; a name may have 255 octets."""
    octets = b"\x03%c%b\x01\xbb" % (len(name), name)
    assert decode_address(octets, 0) == (Address(host, 443), len(octets))


def decoded(data: bytes) -> tuple[Address, int] | int | None:
    """What decode_address makes of octets: what it returns, or the reply code of RemoteProtocolError."""
    try:
        return decode_address(data, 0)
    except RemoteProtocolError as exc:
        return exc.reply_code or 0


@given(
    st.one_of(st.binary(max_size=300), st.builds(bytes.__add__, st.sampled_from([b"\1", b"\3", b"\4"]), st.binary()))
)
def test_any_octets_are_an_address_or_refused(data: bytes) -> None:
    """From any octets come an address, None or RemoteProtocolError; and what was decoded can be encoded."""
    found = decoded(data)
    if isinstance(found, int):
        assert found == (4 if data[0] == 3 else 8)
    elif found is None:
        assert missing_octets(data, 0) > 0
    else:
        address, end = found
        assert missing_octets(data[:end], 0) == 0
        again = encode_address(address)
        assert decode_address(again, 0) == (address, len(again))


# --- numbers as names, and IPv4 inside IPv6 ---


PART = r"(0[xX][0-9a-fA-F]{0,9}|0[0-9]{0,12}|[1-9][0-9]{0,10})"


@given(st.from_regex(rf"{PART}(\.{PART}){{0,4}}\.?", fullmatch=True))
def test_numbers_are_read_as_the_c_library_reads_them(name: str) -> None:
    """A guard that reads them otherwise than the resolver looks at another address than the one that is dialled."""
    try:
        expected: object = IPv4Address(socket.inet_aton(name))
    except OSError:
        expected = ValueError
    try:
        found: object = read_number(name)
    except ValueError:
        found = ValueError
    if found is not None:
        assert found == expected


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("10.0.258", "10.0.1.2"),
    ],
)
def test_numbers_have_one_to_four_parts(name: str, address: str) -> None:
    """The last part fills what is left; hexadecimal behind 0x, octal behind 0."""
    assert str(read_number(name)) == address


@pytest.mark.parametrize("name", ["example.com", "a1", "1a", "localhost.", "1.2.3.4.example"])
def test_names_are_no_numbers(name: str) -> None:
    """Only the last label decides: no top-level domain is a number."""
    assert read_number(name) is None


@pytest.mark.parametrize("name", ["256.256.256.256", "1.2.3.4.5", "08.1", "99999999999", "0xfg", "example.1", "1."])
def test_what_ends_in_a_number_and_is_no_address_is_refused(name: str) -> None:
    """It is asked of no resolver."""
    with pytest.raises(ValueError, match="neither an address nor a name"):
        read_number(name)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::10.0.0.1", "10.0.0.1"),
        ("::ffff:0:10.0.0.1", "10.0.0.1"),
        ("64:ff9b::10.0.0.1", "10.0.0.1"),
        ("2002:a00:1::5", "10.0.0.1"),
        ("2606:4700::5efe:10.0.0.1", "10.0.0.1"),
        ("fe80::200:5efe:10.0.0.1", "10.0.0.1"),
        ("::", None),
        ("::1", None),
        ("2606:4700::1111", None),
        ("10.0.0.1", None),
    ],
)
def test_ipv4_inside_ipv6_is_found(address: str, inside: str | None) -> None:
    """In each of the forms in which something on the way may take it out again."""
    found = embedded_ipv4(ip_address(address))
    assert (found and str(found)) == inside


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("host.example", "host.example"),
        ("Host-1.example.", "Host-1.example"),
        ("_sip._tcp.example", "_sip._tcp.example"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.2.0.192.in-addr.arpa", "1.2.0.192.in-addr.arpa"),
        (".".join(["a" * 63] * 3 + ["b" * 61]), ".".join(["a" * 63] * 3 + ["b" * 61])),
    ],
)
def test_names_that_somebody_in_the_net_gives(text: str, name: str) -> None:
    """What hosts are called goes through, and fits into a reply."""
    assert check_found_name(text) == name
    assert decode_address(encode_address(Address(name, 0)), 0) == (Address(name, 0), len(name) + 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a..example",
        "a.example..",
        "a b.example",
        "a\\032b.example",
        "a\nb.example",
        "a.example\n",
        "<b>.example",
        "$(id).example",
        "b\xfccher.example",
        "\u0661.example",
        "a" * 64 + ".example",
        ".".join(["a" * 63] * 4),
        "a." * 500,
        "192.0.2.1",
        "2130706433",
        "1.2.3.4.5",
        "2001:db8::1",
    ],
)
def test_what_is_no_name_is_given_to_nobody(text: str) -> None:
    """Hostile answers: what programs take for something else, what is too long, and addresses; the error is short."""
    with pytest.raises(ValueError, match=r".") as caught:
        check_found_name(text)
    assert len(str(caught.value)) < 300


def test_a_link_local_socket_bears_its_interface() -> None:
    """Its number, which only this machine knows; any other address is as it is."""
    assert str(from_sockaddr(("fe80::1", 5, 0, 3))) == "[fe80::1%3]:5"
    assert str(from_sockaddr(("::1", 5, 0, 0))) == "[::1]:5"
    assert str(from_sockaddr(("192.0.2.1", 5))) == "192.0.2.1:5"
