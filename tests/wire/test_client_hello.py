"""ClientHello: what real clients send, how it may come, and what a hostile one can do."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captures import tcp_streams
from hellos import body, client_hello, extension, hello, numbers, records, server_name, vector
from tabi.errors import RemoteProtocolError
from tabi.wire.client_hello import (
    JA4_VERSIONS,
    MAX_HELLO,
    ClientHello,
    HelloReader,
    decode_client_hello,
    decode_hello,
    extensions_of,
    hello_body,
)

BESIDE = [folder / "shared/data/hellos" for folder in Path(__file__).resolve().parents]
CAPTURES = [folder / "expected.json" for folder in BESIDE if (folder / "expected.json").exists()]
"""What FoxIO says of its captures, where they lie beside the checkout."""


def decoded(octets: bytes) -> ClientHello:
    """A hello that is whole."""
    found = decode_client_hello(octets)
    assert found is not None
    return found


if CAPTURES:

    @pytest.mark.parametrize("capture", json.loads(CAPTURES[0].read_text()))
    def test_captures_have_the_names_and_fingerprints_that_foxio_gives(capture: str) -> None:
        """SNI and JA4 of every hello over TCP, behind a SOCKS request too; no hello is missed, none is made up."""
        expected = {
            (row["src"], int(row["srcport"]), row["dst"], int(row["dstport"]), row["sni"], row["ja4"])
            for row in json.loads(CAPTURES[0].read_text())[capture]
        }
        found = set()
        for flow, octets in tcp_streams(CAPTURES[0].parent / capture).items():
            if octets[0] in (4, 5):
                octets = octets[octets.find(b"\x16\x03") :]
            try:
                found_hello = decode_client_hello(octets)
            except RemoteProtocolError:
                continue
            if found_hello is not None:
                found.add((*flow, found_hello.sni, found_hello.ja4))
        assert found == expected


def test_what_openssl_sends() -> None:
    """Name, protocols and versions as they were asked for, and the fingerprint of no name at all."""
    found = decoded(client_hello("Example.COM", ("h2", "http/1.1")))
    assert (found.sni, found.alpn, found.version) == ("example.com", (b"h2", b"http/1.1"), 0x0303)
    assert found.versions[:2] == (0x0304, 0x0303)
    assert 0x1301 in found.ciphers
    assert {0, 10, 11, 13, 16, 43} <= set(found.extensions)
    assert found.groups
    assert found.point_formats[0] == 0
    assert 0x0403 in found.signature_algorithms
    assert found.ja4.startswith(f"t13d{len(found.ciphers)}{len(found.extensions):02}h2_")
    assert decoded(client_hello(None)).ja4.startswith("t13i")


def test_versions_as_a_client_limits_them() -> None:
    """TLS 1.2 alone has no list of versions: the fingerprint says 12."""
    context = ssl.create_default_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    found = decoded(client_hello(context=context))
    assert (found.versions, found.ja4[:3]) == ((), "t12")


@pytest.mark.parametrize(
    "command",
    [
        ["curl", "-sk", "--max-time", "5", "--connect-to", "name.test:443:127.0.0.1:PORT", "https://name.test/"],
        ["openssl", "s_client", "-connect", "127.0.0.1:PORT", "-servername", "name.test", "-alpn", "h2,http/1.1"],
    ],
    ids=["curl", "openssl"],
)
def test_what_programs_send(command: list[str]) -> None:
    """curl and openssl s_client: the name and h2 first."""
    if shutil.which(command[0]) is None:
        command = ["true"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = str(listener.getsockname()[1])
        arguments = [argument.replace("PORT", port) for argument in command]
        with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1) as program:
            if command == ["true"]:
                return
            connection, _ = listener.accept()
            with connection:
                reader, found = HelloReader(), None
                while found is None:
                    found = reader.receive(connection.recv(100))
            program.communicate()
    assert (found.sni, found.alpn[:1]) == ("name.test", (b"h2",))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 16384])
def test_a_hello_in_small_records(size: int) -> None:
    """A message may lie in as many records as it has octets."""
    whole = hello(server_name(b"name.test"))
    message = decoded(whole)
    assert decoded(records(whole[5:], size)) == message
    assert decode_client_hello(records(whole[5:], size)[:-1]) is None


def test_octet_by_octet() -> None:
    """However it comes, the hello is there with its last octet, and what came is kept."""
    whole, reader = client_hello(), HelloReader()
    answers = [reader.receive(whole[at : at + 1]) for at in range(len(whole))]
    assert answers[:-1] == [None] * (len(whole) - 1)
    assert answers[-1] == decoded(whole)
    assert reader.octets == whole


def test_the_longest_hello_in_the_smallest_records() -> None:
    """64 KiB in records of an octet, cut everywhere: nothing but the head of one record is looked at again."""
    filler = vector(2, bytes(MAX_HELLO - len(hello(b"\x77\x77\0\0")) + 5))
    octets = records(b"\1" + vector(3, body(b"\x77\x77" + filler)), 1)
    assert len(octets) == 6 * MAX_HELLO
    reader = HelloReader()
    for at in range(0, len(octets) - 7, 7):
        assert reader.receive(octets[at : at + 7]) is None
        assert len(reader.head) < 5
    found = reader.receive(octets[at + 7 :])
    assert found is not None
    assert found.extensions == (0x7777,)
    assert reader.octets == octets


def test_garbage_behind_a_hello_changes_nothing() -> None:
    """In its record and behind it; it is kept, for whoever gets the octets."""
    message = b"\1" + vector(3, body(server_name(b"name.test")))
    octets = records(message + b"garbage") + b"more"
    reader = HelloReader()
    found = reader.receive(octets)
    assert found is not None
    assert found.sni == "name.test"
    assert reader.octets == octets


def test_a_hello_without_extensions() -> None:
    """As SSL 3 and TLS 1.0 had it: nothing is known but version and ciphers."""
    found = decode_hello(body(version=0x0301, extended=False))
    assert found == ClientHello(0x0301, (0x1301,), ())
    assert found.ja3_text == "769,4865,,,"
    assert found.ja4 == f"t10i010000_{hashlib.sha256(b'1301').hexdigest()[:12]}_000000000000"


def test_fingerprints_leave_grease_out_and_sort_what_browsers_shuffle() -> None:
    """Each field by hand: JA3 in the order of the hello, JA4 sorted, signature algorithms as they come."""
    found = decode_hello(
        body(
            extension(0x1A1A, b""),
            server_name(b"name.test"),
            extension(16, vector(2, vector(1, b"\x8a\x8a") + vector(1, b"h2"))),
            extension(43, vector(1, numbers(0x2A2A, 0x0304, 0x0303))),
            extension(10, vector(2, numbers(0x3A3A, 29, 23))),
            extension(11, vector(1, b"\0\1")),
            extension(13, vector(2, numbers(0x0804, 0x4A4A, 0x0403))),
            ciphers=numbers(0x0A0A, 0x1302, 0x1301, 0xC02B),
        )
    )
    assert found.alpn == (b"\x8a\x8a", b"h2")
    assert found.ja3_text == "771,4866-4865-49195,0-16-43-10-11-13,29-23,0-1"
    assert found.ja3 == hashlib.md5(found.ja3_text.encode()).hexdigest()
    ciphers = hashlib.sha256(b"1301,1302,c02b").hexdigest()[:12]
    extensions = hashlib.sha256(b"000a,000b,000d,002b_0804,0403").hexdigest()[:12]
    assert found.ja4 == f"t13d030699_{ciphers}_{extensions}"


def test_the_fingerprint_of_quic() -> None:
    """The same hello by QUIC begins with q."""
    octets = body(extension(43, vector(1, numbers(0x0304))))
    assert decode_hello(octets, quic=True).ja4 == "q" + decode_hello(octets).ja4[1:]


@pytest.mark.parametrize(
    ("protocol", "ends"), [(b"h2", "h2"), (b"http/1.1", "h1"), (b"x", "xx"), (b"\xe9\xe9", "99"), (b"-\n", "99")]
)
def test_the_ends_of_the_first_protocol(protocol: bytes, ends: str) -> None:
    """First and last character; what is neither a letter nor a digit is a 9, so that a log has nothing odd."""
    assert decode_hello(body(extension(16, vector(2, vector(1, protocol))))).ja4[8:10] == ends


def test_no_protocols_and_an_empty_one() -> None:
    """An empty list of protocols, and an empty protocol, are as none."""
    assert decode_hello(body(extension(16, vector(2, b"")))).ja4[8:10] == "00"
    assert decode_hello(body(extension(16, vector(2, vector(1, b""))))).ja4[8:10] == "00"


@pytest.mark.parametrize("version", [*JA4_VERSIONS, 0x0305, 0xFFFF])
def test_versions_in_the_fingerprint(version: int) -> None:
    """Each has its two characters, an unknown one 00."""
    assert decode_hello(body(version=version)).ja4[1:3] == JA4_VERSIONS.get(version, "00")


def test_counts_end_at_99() -> None:
    """Two digits, however many there are."""
    kinds = [extension(kind, b"") for kind in range(1000, 1150)]
    assert decode_hello(body(*kinds, ciphers=numbers(*range(200)))).ja4[4:8] == "9999"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"name.test", "name.test"),
        (b"NAME.Test", "name.test"),
        (b"name.test.", "name.test"),
        (b"xn--mller-kva.test", "xn--mller-kva.test"),
        (b"_service.name.test", "_service.name.test"),
        (b"localhost", "localhost"),
        (b"", None),
        (b"127.0.0.1", None),
        (b"0x7f.1", None),
        (b"::1", None),
        (b"[::1]", None),
        (b"name.test\0.evil.test", None),
        (b"name\n.test", None),
        (b"name..test", None),
        (b"a b", None),
        (b"*.test", None),
        ("müller.test".encode(), None),
        (b"a" * 64 + b".test", None),
        (b"a." * 127 + b"b", None),
    ],
)
def test_names(name: bytes, expected: str | None) -> None:
    """A host name as RFC 6066 has it, in lower case. An address, and what no name can be, is none: a log, a rule and a
    certificate never see it. The hello is one all the same."""
    found = decode_hello(body(server_name(name)))
    assert found.sni == expected
    assert found.ja4[3] == "d"


def test_names_of_other_kinds_are_passed_over() -> None:
    """There is one kind so far; the first host name counts."""
    names = b"\7" + vector(2, b"other.test") + b"\0" + vector(2, b"name.test") + b"\0" + vector(2, b"second.test")
    assert decode_hello(body(extension(0, vector(2, names)))).sni == "name.test"
    assert decode_hello(body(extension(0, vector(2, b"\7" + vector(2, b"other.test"))))).sni is None
    assert decode_hello(body(extension(0, vector(2, b"")))).sni is None


@pytest.mark.parametrize(
    ("octets", "length"),
    [
        (b"\x17", 1),
        (b"\x16\x02", 2),
        (b"GET / HTTP/1.1\r\n", 1),
        (b"\x16\x03\x01\0\0", 5),
        (b"\x16\x03\x01\x40\x01", 5),
        (b"\x16\x03\x01\0\4\2", 6),
        (b"\x16\x03\x01\0\4\1\1\0\0", 9),
        (b"\x16\x03\x01\0\1\1\x15\x03", 7),
    ],
)
def test_what_is_no_hello_is_refused_at_once(octets: bytes, length: int) -> None:
    """At the first octet that tells: another record, an empty or a long one, another message, a hello of 65,541
    octets, an alert in the middle."""
    reader = HelloReader()
    for at in range(length - 1):
        assert reader.receive(octets[at : at + 1]) is None
    with pytest.raises(RemoteProtocolError, match="TLS"):
        reader.receive(octets[length - 1 : length])


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\3\3" + bytes(31),
        b"\3\3" + bytes(32),
        body(rest=b"x"),
        body(ciphers=b"\x13"),
        body()[:-1],
        body(extended=False, rest=b"\0"),
        body(extended=False, rest=b"\0\1\0"),
        body(extension(0, b"\0")),
        body(extension(0, b"\0\1\0\0")),
        body(extension(0, vector(2, b"\0\0"))),
        body(extension(0, vector(2, b"\0\0\5abcd"))),
        body(extension(16, b"")),
        body(extension(16, vector(2, b"\3h2"))),
        body(extension(43, b"\1\3")),
        body(extension(43, b"\2\3\4\3")),
        body(extension(10, b"\0\2\0")),
        body(extension(11, b"\2\0")),
        body(extension(13, vector(2, b"\4"))),
        body(server_name(b"one.test"), server_name(b"two.test")),
    ],
)
def test_a_hello_that_no_server_would_take(octets: bytes) -> None:
    """A length that does not fit, an extension that comes twice: not a hello, rather than two readings of one."""
    with pytest.raises(RemoteProtocolError, match="TLS"):
        decode_hello(octets)


def test_a_server_takes_what_was_read() -> None:
    """OpenSSL's server sees the same name in the same octets."""
    seen: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda tls, name, _: seen.append(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    octets = client_hello("one.name.test")
    incoming.write(octets)
    with pytest.raises(ssl.SSLError):
        tls.do_handshake()
    assert seen == [decoded(octets).sni]


pieces = st.lists(st.binary(max_size=40), max_size=12)


@given(
    st.one_of(
        pieces.map(b"".join),
        st.builds(
            lambda head, rest: b"\x16\x03\x01" + vector(2, b"\1" + vector(3, head + rest)),
            pieces.map(b"".join),
            st.binary(max_size=40),
        ),
        st.builds(lambda data: hello(*(extension(kind, data) for kind in (0, 10, 16, 43))), st.binary(max_size=60)),
    ),
    st.integers(1, 9),
)
def test_any_octets_give_a_hello_or_an_error(octets: bytes, step: int) -> None:
    """Nothing else comes out, and the pieces in which they come do not matter."""

    def outcome(step: int) -> object:
        reader = HelloReader()
        try:
            for at in range(0, len(octets), step):
                found = reader.receive(octets[at : at + step])
                if found is not None:
                    assert len(found.ja4) == 36
                    assert len(found.ja3) == 32
                    return found
        except RemoteProtocolError as exc:
            return str(exc)
        return None

    assert outcome(step) == outcome(max(len(octets), 1))


REAL = client_hello("name.test", ("h2",))


@given(st.data())
def test_a_hello_with_a_changed_octet(data: st.DataObject) -> None:
    """Real hellos that were damaged: a hello, an error or None."""
    octets = bytearray(REAL)
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] = data.draw(st.integers(0, 255))
    try:
        found = decode_client_hello(bytes(octets[: data.draw(st.integers(at, len(octets)))]))
    except RemoteProtocolError:
        return
    assert found is None or found.ja4


def test_the_contents_of_extensions() -> None:
    """By type, in their order, out of any number of records; empty without any, or while octets are missing."""
    whole = hello(extension(43, b"\2\3\4"), extension(0x1A1A, b""), extension(35, b"x" * 300), size=100)
    found = extensions_of(hello_body(whole + b"more"))
    assert list(found.items()) == [(43, b"\2\3\4"), (0x1A1A, b""), (35, b"x" * 300)]
    assert hello_body(whole[:-1]) == b""
    assert extensions_of(hello_body(records(b"\1" + vector(3, body(extended=False))))) == {}
    assert decode_hello(hello_body(whole)) == decode_client_hello(whole)
    with pytest.raises(RemoteProtocolError, match="comes twice"):
        extensions_of(body(extension(35, b""), extension(35, b"")))
    with pytest.raises(RemoteProtocolError, match="length"):
        extensions_of(body()[:-1])
