"""BoringSSL as `net.tls` uses it: it verifies as OpenSSL does, says why it fails, and carries octets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from authorities import LONG_AGO, authority, stranger, write_leaf
from conftest import Run
from fingerprints import OK, destination, record_of, showing
from interceptions import GET, refused, talk
from sockets import tcp_pair
from tabi.distort.fingerprint.boring import preset_context, probe
from tabi.errors import ConfigError
from tabi.intercept.authority import Verdict, verdict_of
from tabi.intercept.contexts import NO_CHECK_TIME, load_trust
from tabi.net.reactor import get_reactor
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared, accept_tls, connect_tls, load_certificate
from tabi.wire.client_hello import decode_client_hello
from tabi.wire.tls_alert import encode_alert

YEAR = datetime.timedelta(days=365)
NAME = "chrome:stable"


def served(leaf: trustme.LeafCert, chain: bool = True, **settings: Any) -> ssl.SSLContext:
    """The context of a destination; without its chain where that is to be missing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if chain:
        leaf.configure_cert(context)
    else:
        with leaf.private_key_pem.tempfile() as key, leaf.cert_chain_pems[0].tempfile() as certificate:
            context.load_cert_chain(certificate, key)
    for key_, value in settings.items():
        setattr(context, key_, value)
    return context


def issued(*names: str, by: trustme.CA | None = None, **options: Any) -> ssl.SSLContext:
    """The context of a destination with a certificate for these names."""
    return served((by or authority()).issue_cert(*names, **options))


def shake(server: ssl.SSLContext, client: Any, host: str) -> Any:
    """Both handshakes, in memory; the client's connection. Raises what the client's raises."""
    below, above = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(below, above, server_hostname=host)
    theirs = server.wrap_bio(above, below, server_side=True)
    for _ in range(6):
        for one in (ours, theirs):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                if one is ours:
                    raise
    return ours, theirs


@pytest.fixture
def trust(tmp_path: Path) -> str:
    """A file with the authority that everybody trusts."""
    path = tmp_path / "trust.pem"
    path.write_bytes(authority().cert_pem.bytes())
    return str(path)


PAST: dict[str, Any] = {"not_before": LONG_AGO, "not_after": LONG_AGO + YEAR}

BAD: dict[str, tuple[Callable[[], ssl.SSLContext], str, Verdict]] = {
    "expired": (lambda: issued("localhost", **PAST), "localhost", Verdict.EXPIRED),
    "not yet valid": (
        lambda: issued("localhost", not_before=LONG_AGO + 99 * YEAR, not_after=LONG_AGO + 100 * YEAR),
        "localhost",
        Verdict.NOT_YET_VALID,
    ),
    "wrong name": (lambda: issued("elsewhere.test"), "localhost", Verdict.WRONG_NAME),
    "wrong address": (lambda: issued("127.0.0.2"), "127.0.0.1", Verdict.WRONG_NAME),
    "name for an address": (lambda: issued("localhost", common_name="127.0.0.1"), "127.0.0.1", Verdict.WRONG_NAME),
    "wildcard of more": (lambda: issued("*.a.test"), "b.c.a.test", Verdict.WRONG_NAME),
    "common name alone": (lambda: issued("x@y.test", common_name="localhost"), "localhost", Verdict.WRONG_NAME),
    "unknown issuer": (lambda: issued("localhost", by=stranger()), "localhost", Verdict.UNKNOWN_ISSUER),
    "missing intermediate": (
        lambda: served(authority().create_child_ca().issue_cert("localhost"), False),
        "localhost",
        Verdict.UNKNOWN_ISSUER,
    ),
    "expired, and another name": (lambda: issued("elsewhere.test", **PAST), "localhost", Verdict.WRONG_NAME),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_bad_certificate_ends_the_handshake(bad: str, version: str, trust: str) -> None:
    """For the same reason as with OpenSSL, whose code says it, so that the client sees one that is as bad."""
    make, host, verdict = BAD[bad]
    server = make()
    server.maximum_version = ssl.TLSVersion[version]
    context = preset_context(NAME)
    context.load_verify_locations(trust)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake(server, context, host)
    assert verdict_of(caught.value) is verdict


@pytest.mark.parametrize(
    ("name", "host"), [("localhost", "localhost"), ("*.a.test", "b.a.test"), ("127.0.0.1", "127.0.0.1")]
)
def test_a_good_certificate_is_accepted(name: str, host: str, trust: str) -> None:
    """Names, wildcards and addresses."""
    context = preset_context(NAME)
    context.load_verify_locations(trust)
    ours, _ = shake(issued(name), context, host)
    assert ours.version() == "TLSv1.3"
    assert ours.getpeercert(True)
    assert ours.cipher()[1] == "TLSv1.3"


def test_nobody_is_trusted_at_first() -> None:
    """A context that was only made verifies, and knows no authority."""
    context = preset_context(NAME)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(issued("localhost"), context, "localhost")


def test_single_checks_can_be_left_out(trust: str) -> None:
    """The name, the time, or all: what `TlsSettings.after` asks for. The others stay."""
    context = preset_context(NAME)
    load_trust(context, trust)
    context.verify_flags |= NO_CHECK_TIME
    shake(issued("localhost", **PAST), context, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(issued("elsewhere.test", **PAST), context, "localhost")
    context.check_hostname = False
    shake(issued("elsewhere.test", **PAST), context, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(issued("localhost", by=stranger()), context, "localhost")
    context.verify_mode = ssl.CERT_NONE
    shake(issued("localhost", by=stranger()), context, "localhost")


def test_a_certificate_of_the_trust_file_is_trusted_itself(tmp_path: Path) -> None:
    """As with OpenSSL: it need not be an authority."""
    leaf = stranger().issue_cert("localhost")
    path = tmp_path / "leaf.pem"
    path.write_bytes(leaf.cert_chain_pems[0].bytes())
    context = preset_context(NAME)
    load_trust(context, str(path))
    shake(served(leaf), context, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(issued("localhost", by=stranger()), context, "localhost")


def test_the_system_s_authorities_are_those_of_ssl(tmp_path: Path, trust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSL_CERT_FILE and SSL_CERT_DIR count; where there is nobody, nobody is trusted."""
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("SSL_CERT_FILE", trust)
    context = preset_context(NAME)
    context.load_default_certs()
    shake(issued("localhost"), context, "localhost")

    for path in ("nothing", "empty"):
        (tmp_path / "empty").write_bytes(b"")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / path))
        context = preset_context(NAME)
        context.load_default_certs()
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(issued("localhost"), context, "localhost")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file or directory"), (b"nothing", "no certificates in PEM")]
)
def test_a_trust_file_that_cannot_be_used(content: bytes | None, words: str, tmp_path: Path) -> None:
    """It is an error, never a context that trusts others."""
    path = tmp_path / "trust.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?i){words}"):
        load_trust(preset_context(NAME), str(path))


def test_a_client_certificate_is_shown(tmp_path: Path, trust: str) -> None:
    """The destination gets it, by both versions; a key of another one is an error."""
    own = authority().issue_cert("me@example.test")
    certificate, key = write_leaf(tmp_path, own)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        server = issued("localhost")
        server.maximum_version = version
        server.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(server)
        context = preset_context(NAME)
        context.load_verify_locations(trust)
        load_certificate(context, certificate, key)
        _, theirs = shake(server, context, "localhost")
        assert theirs.getpeercert(True)
    _, other = write_leaf(tmp_path, stranger().issue_cert("other@example.test"), "other")
    with pytest.raises(ConfigError, match="is not the key of"):
        load_certificate(preset_context(NAME), certificate, other)
    with pytest.raises(ConfigError):
        load_certificate(preset_context(NAME), trust, str(tmp_path / "missing"))


@pytest.mark.parametrize("alert", ["protocol_version", "handshake_failure", "internal_error"])
def test_an_alert_is_no_bad_certificate(alert: str, trust: str) -> None:
    """utls takes it for one where it verifies: then the next connection would not verify at all."""
    context = preset_context(NAME)
    context.load_verify_locations(trust)
    below, above = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(below, above, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    below.write(encode_alert(alert))
    with pytest.raises(ssl.SSLError) as caught:
        tls.do_handshake()
    assert not isinstance(caught.value, ssl.SSLCertVerificationError)
    assert caught.value.reason == f"TLSV1_ALERT_{alert.upper()}"


@pytest.mark.parametrize("octets", [b"\x16\x03\x03\x00\x04nope", b"\x15\x03\x03\x00\x02\x02\xff", b"HTTP/1.1 400 "])
def test_nonsense_is_no_bad_certificate(octets: bytes, trust: str) -> None:
    """It is an error of TLS, with some reason."""
    context = preset_context(NAME)
    context.load_verify_locations(trust)
    below, above = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(below, above, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    below.write(octets)
    with pytest.raises(ssl.SSLError) as caught:
        tls.do_handshake()
    assert not isinstance(caught.value, ssl.SSLCertVerificationError | ssl.SSLWantReadError)
    assert caught.value.reason


@pytest.mark.parametrize("name", ["", ".a", "a..b", "a\0b", "x" * 64])
def test_a_name_that_no_certificate_can_have(name: str) -> None:
    """It is refused, as `ssl` does."""
    with pytest.raises(ValueError, match=r"."):
        preset_context(NAME).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)


def test_versions_below_1_2_are_not_offered() -> None:
    """Whatever a capture has."""
    hello = decode_client_hello(probe(preset_context(NAME), "a.example"))
    assert hello is not None
    assert {version for version in hello.versions if version in (0x0301, 0x0302)} == set()


@pytest.mark.parametrize("behind", ["end", "error"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_is_behind_octets_is_seen(trust: str, version: ssl.TLSVersion, behind: str) -> None:
    """An end, or an error, that came together with them: nothing else tells that it is there."""
    client: Any = preset_context(NAME)
    load_trust(client, trust)
    server = issued("localhost")
    server.maximum_version = version
    ours, theirs = shake(server, client, "localhost")
    theirs.write(bytes(40_000))
    if behind == "end":
        with contextlib.suppress(ssl.SSLWantReadError):
            theirs.unwrap()
    else:
        ours.incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    view, count = memoryview(bytearray(65_536)), 0
    while count < 40_000:
        count += ours.read(65_536, view[count:])
    assert ours.pending()
    if behind == "end":
        assert [ours.read(10, view), ours.read(10)] == [0, b""]
    else:
        with pytest.raises(ssl.SSLError, match=r"(?i)decrypt|bad_record_mac"):
            ours.read(10, view)


def test_octets_pass_both_ways(trust: str) -> None:
    """In the ways in which `net.tls` reads and writes; nothing that has come is left without saying so."""
    context = preset_context(NAME)
    context.load_verify_locations(trust)
    below, above = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(below, above, server_hostname="localhost")
    theirs = issued("localhost").wrap_bio(above, below, server_side=True)
    for one in (ours, theirs, ours, theirs, ours):
        try:
            one.do_handshake()
        except ssl.SSLWantReadError:
            pass
    buffer = bytearray(100_000)
    with pytest.raises(ssl.SSLWantReadError):
        ours.read(10, memoryview(buffer))
    theirs.write(b"a" * 30_000)
    got = 0
    while below.pending or ours.pending():
        got += ours.read(100, memoryview(buffer)[got : got + 100])
    assert bytes(buffer[:got]) == b"a" * 30_000
    assert ours.write(memoryview(b"b" * 50_000)) == 50_000
    assert sum(len(theirs.read(20_000)) for _ in range(4)) == 50_000
    with pytest.raises(ssl.SSLWantReadError):
        ours.unwrap()
    theirs.write(b"late")
    assert ours.read(2) == b"la"
    theirs.write(b"st")
    assert ours.read(10, memoryview(buffer)) == 4
    theirs.unwrap()
    assert ours.read(10, memoryview(buffer)) == 0
    ours.unwrap()


@pytest.mark.parametrize("bad", ["expired", "wrong name", "unknown issuer"])
@pytest.mark.parametrize("tls", ["chrome:stable", "mirror"])
def test_a_client_sees_a_certificate_that_is_as_bad(run_once: Run, tmp_path: Path, bad: str, tls: str) -> None:
    """With each family of hello a client that verifies refuses it, and one that does not gets the page."""

    async def main() -> None:
        shows = showing(tmp_path, tls=tls, on_pinning="refuse")
        async with shows as proxy, destination(BAD[bad][0](), "http/1.1") as there:
            assert await refused(proxy, there.port, "localhost", proxy.context())
            careless = proxy.context()
            careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
            async with proxy.tls(there.port, context=careless) as streams:
                await talk(streams, GET, OK)

    run_once(main)


@pytest.mark.parametrize("tls", ["chrome:stable", "mirror"])
def test_with_alert_it_ends_at_once(run_once: Run, tmp_path: Path, tls: str) -> None:
    """``on_invalid = "alert"``: nobody gets anything."""

    async def main() -> None:
        async with showing(tmp_path, tls=tls, on_invalid="alert") as proxy:
            async with destination(issued("localhost", by=stranger()), "http/1.1") as there:
                careless = proxy.context()
                careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
                with pytest.raises(ssl.SSLError, match=r"(?i)unknown ca"):
                    async with proxy.tls(there.port, context=careless):
                        pass
                assert there.inside == []
            session = await proxy.ended.get()
            assert session.error == "TLS: the certificate of the server: unable to get local issuer certificate"

    run_once(main)


def test_a_destination_without_a_version_that_is_good_enough(run_once: Run, tmp_path: Path) -> None:
    """The client is told what the destination says, and nothing is tried without verifying."""

    async def main() -> None:
        async with showing(tmp_path, tls="chrome:stable") as proxy:
            context = issued("localhost")
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            async with destination(context) as there:
                with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                    async with proxy.tls(there.port):
                        pass
                assert len(there.hellos) == 1
            assert (await proxy.ended.get()).error == "TLS: the server says: protocol version"

    run_once(main)


@contextlib.asynccontextmanager
async def connected(trust: str, version: ssl.TLSVersion) -> AsyncIterator[tuple[Stream, Stream]]:
    """A client with BoringSSL and a server with OpenSSL, as `net.tls` has them."""
    context: Any = preset_context(NAME)
    context.load_verify_locations(trust)
    theirs = issued("localhost")
    theirs.maximum_version = version
    near, far = tcp_pair()
    async with Stream(get_reactor(), near) as client, Stream(get_reactor(), far) as server:
        async with asyncio.TaskGroup() as group:
            group.create_task(accept_tls(server, theirs, TlsShared()))
            group.create_task(connect_tls(client, context, "localhost", TlsShared()))
        yield client, server


async def receive_all(stream: Stream) -> bytes:
    """Receive up to the end."""
    received = bytearray()
    while chunk := await stream.receive():
        received += chunk
    return bytes(received)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("first", ["client", "server", "both"])
def test_streams_carry_much_and_end_each_way(run: Run, trust: str, version: ssl.TLSVersion, first: str) -> None:
    """Megabytes at once in both directions, and an end of one that leaves the other going."""
    data = bytes(range(256)) * 12_000

    async def main() -> None:
        async with connected(trust, version) as (client, server):

            async def send(stream: Stream, waits: bool) -> None:
                if waits:
                    await ended.wait()
                await stream.send_all(data)
                stream.send_eof()

            async def receive(stream: Stream) -> None:
                assert await receive_all(stream) == data
                ended.set()

            ended = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(send(client, first == "server"))
                group.create_task(send(server, first == "client"))
                group.create_task(receive(client))
                group.create_task(receive(server))

    run(main)


def test_a_small_read_leaves_the_rest(run_once: Run, trust: str) -> None:
    """What has come in one read of the socket is not lost, and the next read finds it."""

    async def main() -> None:
        async with connected(trust, ssl.TLSVersion.TLSv1_3) as (client, server):
            await server.send_all(b"a" * 40_000)
            server.send_eof()
            got = b""
            while chunk := await client.receive(7_001):
                assert len(chunk) <= 7_001
                got += chunk
            assert got == b"a" * 40_000
            await client.send_all(b"bye")
            client.send_eof()
            assert await receive_all(server) == b"bye"

    run_once(main)


def test_a_hundred_at_once(run_once: Run, tmp_path: Path) -> None:
    """Mirrored and not, side by side: each gets its own answer, and the contexts are shared."""

    async def main() -> None:
        async with (
            showing(tmp_path, tls="mirror", hosts=["localhost"]) as proxy,
            destination(None, "http/1.1") as there,
        ):

            async def one(number: int) -> None:
                host = "localhost" if number % 2 else "127.0.0.1"
                async with proxy.tls(there.port, host) as streams:
                    await talk(streams, GET, OK)

            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(one(number))
            assert len(there.hellos) == 100
            await record_of(proxy, 99)
            assert proxy.records is not None
            assert [record.fingerprint for record in proxy.records].count("mirror") == 50
            interception = proxy.server.parts.interception
            assert interception is not None
            assert interception.handshakes is not None
            assert len(interception.handshakes.fingerprint_contexts.kept) == 1

    run_once(main)
