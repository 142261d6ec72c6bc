"""Mirror: what destinations see of clients that are looked into, and what they see of these without tabi."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest
import utls

from conftest import Run
from fingerprints import OK, Destination, destination, http2_text, record_of, showing
from hellos import body, client_hello, extension, hello, numbers, records, vector
from interceptions import GET, Intercepting, talk
from processes import environment, in_thread, need
from tabi.distort.fingerprint.boring import BoringContext, preset_context, probe
from tabi.distort.fingerprint.difference import read_hello
from tabi.distort.fingerprint.mirror import MOST, Mirror, Preset, Unmirrored, seen, without_resumption
from tabi.wire.client_hello import RANDOM_END, extensions_of, hello_body, take

H2 = ("h2", "http/1.1")


async def by_curl(proxy: Intercepting | None, there: Destination, *options: str) -> None:
    """Curl asks the destination, through a proxy or without."""
    via = () if proxy is None else ("--socks5-hostname", str(proxy.address), "--cacert", str(ca_of(proxy)))
    url = f"https://localhost:{there.port}/"
    command = [need("curl"), "-sS", "--max-time", "15", "--noproxy", "" if proxy else "*", *via, *options, url]
    done = await in_thread(command)
    assert (done.stdout, done.stderr) == (b"ok", b"")


def chrome(proxy: Intercepting) -> ssl.SSLContext:
    """The context of a client like Chrome that trusts a proxy."""
    context = utls.SSLContext()
    context.set_fingerprint("chrome:152")
    context.load_verify_locations(str(ca_of(proxy)))
    return context


def ca_of(proxy: Intercepting) -> Path:
    """The certificate of the proxy's authority."""
    path = proxy.server.config.ca.certificate
    assert path is not None
    return Path(path)


@pytest.mark.interop
@pytest.mark.parametrize("options", [(), ("--http1.1",), ("--tls-max", "1.2"), ("--tlsv1.3",)])
def test_what_curl_sends_is_what_the_destination_sees(run_once: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    """JA3 and JA4 are the same as without a proxy, and so is how HTTP/2 begins. The record says what was sent."""

    async def main() -> None:
        async with showing(tmp_path, tls="mirror") as proxy, destination(None, *H2) as there:
            await by_curl(None, there, "-k", *options)
            await by_curl(proxy, there, *options)
            alone, through = (read_hello(octets).hello for octets in there.hellos)
            assert (through.ja3, through.ja4) == (alone.ja3, alone.ja4)
            record = await record_of(proxy)
            assert (record.sent_ja3, record.sent_ja4, record.fingerprint) == (through.ja3, through.ja4, "mirror")
            assert record.fingerprint_differs in (None, "versions below TLS 1.2")
            if "--http1.1" not in options:
                assert record.sent_http2 == there.http2 != ""
                assert http2_text(there.inside[0]) == http2_text(there.inside[1])

    run_once(main)


@pytest.mark.parametrize("alpn", [(), H2, ("http/1.1",), ("http/1.1", "h2"), ("imap",)])
def test_what_python_sends_is_what_the_destination_sees(run_once: Run, tmp_path: Path, alpn: tuple[str, ...]) -> None:
    """JA3, JA4 and ALPN in its own order; what is inside passes by whichever protocol was chosen."""

    async def main() -> None:
        async with showing(tmp_path, tls="mirror") as proxy, destination(None, "http/1.1", "imap") as there:
            context = proxy.context()
            async with proxy.tls(there.port, context=context, alpn=alpn) as streams:
                await talk(streams, GET, OK)
            wanted = read_hello(probe(context, "localhost")).hello
            assert (there.hello.ja3, there.hello.ja4, there.hello.alpn) == (wanted.ja3, wanted.ja4, wanted.alpn)

    run_once(main)


def test_what_chrome_sends_is_what_the_destination_sees(run_once: Run, tmp_path: Path) -> None:
    """JA4 and all that does not change from one of its connections to the next."""

    async def main() -> None:
        async with showing(tmp_path, tls="mirror") as proxy, destination(None, "http/1.1") as there:
            context = chrome(proxy)
            async with proxy.tls(there.port, context=context) as streams:
                await talk(streams, GET, OK)
            wanted = read_hello(probe(context, "localhost"))
            assert there.hello.ja4 == wanted.hello.ja4
            assert read_hello(there.hellos[0]).kind == wanted.kind
            assert (await record_of(proxy)).fingerprint_differs is None

    run_once(main)


@pytest.mark.interop
def test_of_gnutls_the_nearest_is_sent_and_that_is_said(
    run_once: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No library here can send wget's hello: what is not the same stands in the record and, once, in the log."""

    async def main() -> None:
        async with showing(tmp_path, tls="mirror") as proxy, destination() as there:
            env = {**environment(), "https_proxy": f"http://{proxy.address}", "no_proxy": ""}
            url = f"https://localhost:{there.port}/"
            command = [need("wget"), "-q", "-O-", "--ca-certificate", str(ca_of(proxy)), url]
            for _ in range(2):
                done = await in_thread(command, env=env)
                assert done.stdout == b"ok", done.stderr
            record = await record_of(proxy)
            assert (record.sent_ja4, record.ja4 != record.sent_ja4) == (there.hello.ja4, True)
            assert record.fingerprint_differs is not None
            assert "ciphers" in record.fingerprint_differs
            assert "extensions" in record.fingerprint_differs

    with caplog.at_level(logging.INFO, "tabi"):
        run_once(main)
    said = [line for line in caplog.messages if line.startswith("mirror: ")]
    assert len(said) == 1
    assert "the client for localhost" in said[0]
    assert "ciphers" in said[0]


GO = hello(
    extension(0, vector(2, b"\0" + vector(2, b"localhost"))),
    extension(5, b"\1\0\0\0\0"),
    extension(10, vector(2, numbers(0x1D, 0x17, 0x18, 0x19))),
    extension(11, vector(1, b"\0")),
    extension(13, vector(2, numbers(0x0804, 0x0403, 0x0807, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0503, 0x0603))),
    extension(0xFF01, b"\0"),
    extension(18, b""),
    extension(43, vector(1, numbers(0x0304, 0x0303))),
    extension(51, vector(2, numbers(0x1D) + vector(2, bytes(32)))),
    ciphers=numbers(
        0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC009, 0xC013, 0xC00A, 0xC014, 0x1301, 0x1302, 0x1303
    ),
)
"""A hello like that of Go 1.19."""


def test_of_others_it_is_the_nearest() -> None:
    """Of a hello like Go's one is sent that differs, and each difference is named."""
    mirror = Mirror(GO)
    sent = seen(mirror.make(), "localhost")
    words = mirror.differs(sent)
    assert read_hello(sent).hello.ja4 != mirror.wanted.hello.ja4
    assert "ciphers" in words
    assert "with the extensions" in words


@pytest.mark.parametrize(
    ("ciphers", "left"),
    [
        (numbers(0x1301, 0x0005, 0x0004, 0xC030), [0xC030]),  # RC4
        (numbers(0x0000, 0x0001, 0x003B, 0xC02F), [0xC02F]),  # none at all
        (numbers(0x0034, 0xC018, 0x006D, 0xC02B), [0xC02B]),  # nobody proves who it is
        (numbers(0x000A, 0x0009, 0xC012, 0xC02B), [0xC02B]),  # DES
    ],
)
def test_it_never_offers_what_is_broken(ciphers: bytes, left: list[int]) -> None:
    """Ciphers that encrypt badly or not at all are left out, and that is said."""
    versions = extension(43, vector(1, numbers(0x0304, 0x0303, 0x0302, 0x0301)))
    mirror = Mirror(hello(versions, ciphers=ciphers))
    sent = seen(mirror.make(), None)
    found = read_hello(sent).hello
    assert [number for number in found.ciphers if number < 0x1300 or number > 0x13FF if number != 0xFF] == left
    assert set(found.versions) == {0x0304, 0x0303}
    assert "ciphers" in mirror.differs(sent)


def test_it_never_offers_a_version_below_1_2() -> None:
    """A client of TLS 1.0 has 1.2 offered in its place, and that is said."""
    old = Mirror(records(b"\1" + vector(3, body(version=0x0301, ciphers=numbers(0xC013, 0x002F)))))
    context = old.make()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    sent = seen(context, None)
    assert read_hello(sent).versions == [0x0303]
    assert "versions" in old.differs(sent)


def test_a_hello_that_no_library_can_send_still_has_one() -> None:
    """Without a cipher, with nothing that is known: what OpenSSL offers itself."""
    mirror = Mirror(hello(extension(16, vector(2, vector(1, b"\xff") + vector(1, b"h2"))), ciphers=numbers(0x1234)))
    sent = seen(mirror.make(), None)
    assert read_hello(sent).hello.alpn == (b"h2",)
    assert "ALPN" in mirror.differs(sent)


def changed(octets: bytes, ciphers: bytes = b"", **contents: bytes) -> bytes:
    """A hello with more ciphers, and other contents of some extensions (``_13`` is extension 13)."""
    whole = hello_body(octets)
    found = {**extensions_of(whole), **{int(name[1:]): content for name, content in contents.items()}}
    _, at = take(whole, RANDOM_END, 1)
    before, rest = take(whole, at, 2)
    _, end = take(whole, rest, 1)
    listed = b"".join(extension(kind, content) for kind, content in found.items())
    made = whole[:at] + vector(2, before + ciphers) + whole[rest:end] + vector(2, listed)
    return records(b"\1" + vector(3, made))


def test_of_a_browser_nothing_is_weak_either() -> None:
    """Signatures with SHA-1, ciphers with DES or none, old versions: a browser may offer them, tabi does not."""
    octets = probe(preset_context("chrome:142"), "a.example")
    mirror = Mirror(
        changed(
            octets,
            numbers(0xC012, 0x000A, 0x0005, 0x0002),
            _13=vector(2, numbers(0x0403, 0x0804, 0x0203, 0x0201)),
            _43=vector(1, numbers(0x3A3A, 0x0304, 0x0303, 0x0302, 0x0301)),
        )
    )
    context = mirror.make()
    assert isinstance(context, BoringContext)
    sent = read_hello(seen(context, "a.example"))
    assert sent.hello.signature_algorithms == (0x0403, 0x0804)
    assert sent.versions == [0x0304, 0x0303]
    assert not {0xC012, 0x000A, 0x0005, 0x0002} & set(sent.hello.ciphers)
    words = mirror.differs(seen(context, "a.example"))
    assert words == "versions below TLS 1.2; ciphers; signature algorithms"


def test_equal_kinds_share_a_context() -> None:
    """Keys, tickets, names and GREASE do not make another kind; ciphers, protocols and key shares do."""
    context = ssl.create_default_context()
    one, other = Mirror(client_hello("a.example", context=context)), Mirror(client_hello("b.example", context=context))
    assert one == other
    assert hash(one) == hash(other)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    assert Mirror(client_hello("a.example", context=context)) != one
    assert Mirror(client_hello("a.example", ("h2",))) != one
    chromes = [Mirror(probe(preset_context("chrome:142"), "a.example")) for _ in range(5)]
    assert len({mirror.wanted.hello.ja3 for mirror in chromes}) > 1
    assert len(set(chromes)) == 1
    assert chromes[0] != one
    assert one != "mirror"


def test_resumption_is_left_out() -> None:
    """A client that comes back to us is new to the destination."""
    again = hello(extension(13, vector(2, numbers(0x0403))), extension(42, b""), extension(41, b"\0\0\0\0"))
    first = hello(extension(13, vector(2, numbers(0x0403))))
    assert Mirror(again) == Mirror(first)
    assert without_resumption(hello_body(again)) == without_resumption(hello_body(first))
    assert "41" not in Mirror(again).differs(first)


def test_a_hello_of_great_length_is_not_for_boringssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client chooses how long it is."""
    monkeypatch.setattr("tabi.distort.fingerprint.mirror.captured_context", lambda records: pytest.fail("asked"))
    long = Mirror(hello(extension(21, bytes(MOST)), ciphers=numbers(0xC02B)))
    assert seen(long.make(), None)


def test_what_is_not_mirrored_says_so() -> None:
    """Those above the bound share the usual contexts, and the record still says what is not the client's."""
    one, other = Unmirrored(client_hello("a.example", ("h2", "x"))), Unmirrored(GO)
    assert other != one
    assert one == Unmirrored(client_hello("b.example", ("h2", "y")))
    sent = seen(one.make(), "a.example")
    assert read_hello(sent).hello.alpn == (b"h2",)
    assert one.name == "mirror"
    assert "ALPN" in one.differs(sent)


def test_a_preset_with_fewer_protocols() -> None:
    """What the client does not speak is not offered, and what that takes away is said."""
    whole, less = Preset("chrome:152", H2), Preset("chrome:152", ("http/1.1",))
    assert whole != less
    assert whole == Preset("chrome:152", H2)
    assert hash(whole) == hash(Preset("chrome:152", H2))
    assert whole != "chrome:152"
    assert whole.differs(seen(whole.make(), "a.example")) == ""
    assert whole.differs(seen(whole.make(), "192.0.2.1")) == ""
    sent = seen(less.make(), "a.example")
    assert read_hello(sent).hello.alpn == (b"http/1.1",)
    assert less.differs(sent) == "without the extensions 17613; ALPN"


def test_a_context_that_can_send_nothing() -> None:
    """It is none to choose."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert seen(context, ".a") == b""
