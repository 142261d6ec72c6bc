"""The contexts of TLS on both sides of an interception."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from authorities import write_leaf
from conftest import Run
from destinations import DAY, NOW, destination, make_authority, shake_hands, trusting
from tabi.errors import ConfigError
from tabi.intercept import contexts
from tabi.intercept.authority import Authority, Verdict, verdict_of
from tabi.intercept.contexts import OTHERS, RENEW, ClientContexts, ServerContexts, TlsSettings, load_pem

HOST = "origin.example"
AT = NOW.timestamp()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests; handshakes happen at the clock's time."""
    return make_authority(tmp_path_factory.mktemp("ca"))


def today() -> float:
    """The clock's time: OpenSSL knows no other."""
    return datetime.now().timestamp()


def good(*names: str) -> bytes:
    """A destination's certificate that is valid today."""
    now = datetime.now().astimezone()
    return destination(*(names or (HOST,)), begin=now - DAY, end=now + 60 * DAY)


# --- toward clients ---


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_accepts_what_it_is_shown(authority: Authority, version: ssl.TLSVersion) -> None:
    """It verifies authority and name, and gets the protocol that the destination has chosen."""
    context = ServerContexts(authority).get(good(), Verdict.GOOD, HOST, "h2", today())
    client = trusting(authority, maximum_version=version)
    client.set_alpn_protocols(["h2", "http/1.1"])
    tls = shake_hands(context, client, HOST)
    assert (tls.selected_alpn_protocol(), tls.version()) == ("h2", version.name.replace("v1_", "v1."))


@pytest.mark.parametrize("alpn", ["http/1.1", None])
def test_a_client_gets_no_other_protocol(authority: Authority, alpn: str | None) -> None:
    """Only the one that the destination has chosen, or none."""
    context = ServerContexts(authority).get(good(), Verdict.GOOD, HOST, alpn, today())
    client = trusting(authority)
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert shake_hands(context, client, HOST).selected_alpn_protocol() == alpn


@pytest.mark.parametrize(
    ("verdict", "der", "words"),
    [
        (Verdict.EXPIRED, destination(HOST, begin=NOW - 400 * DAY, end=NOW - 390 * DAY), "has expired"),
        (Verdict.NOT_YET_VALID, destination(HOST, begin=NOW + 9000 * DAY, end=NOW + 9001 * DAY), "not yet valid"),
        (Verdict.WRONG_NAME, destination("other.example"), "Hostname mismatch"),
        (Verdict.SELF_SIGNED, destination(HOST), "unable to get local issuer"),
    ],
)
def test_a_client_sees_what_is_wrong(authority: Authority, verdict: Verdict, der: bytes, words: str) -> None:
    """OpenSSL says of the leaf what it has said of the destination's certificate."""
    context = ServerContexts(authority).get(der, verdict, HOST, None, today())
    with pytest.raises(ssl.SSLCertVerificationError, match=words) as caught:
        shake_hands(context, trusting(authority), HOST)
    assert verdict_of(caught.value) in (verdict, Verdict.UNKNOWN_ISSUER)


def test_clients_resume_sessions(authority: Authority) -> None:
    """With a ticket, as long as the context is kept; in TLS 1.2 and 1.3."""
    served = ServerContexts(authority)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = trusting(authority, maximum_version=version)
        first = shake_hands(served.get(good(), Verdict.GOOD, HOST, None, today()), client, HOST)
        context = served.get(good(), Verdict.GOOD, HOST, None, today())
        assert not shake_hands(context, client, HOST, first.session).session_reused  # another certificate's
        again = shake_hands(context, client, HOST)
        assert shake_hands(context, client, HOST, again.session).session_reused


def test_old_tls_and_renegotiation_are_refused(authority: Authority) -> None:
    """TLS 1.2 is the least, and no client can have us compute again."""
    context = ServerContexts(authority).get(None, Verdict.GOOD, HOST, None, today())
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_one_context_serves_all_hosts_of_a_certificate(authority: Authority) -> None:
    """As long as it is the same certificate, verdict and protocol."""
    served = ServerContexts(authority)
    wildcard, other = good("*.example"), good("*.example")
    context = served.get(wildcard, Verdict.GOOD, "a.example", "h2", AT)
    assert served.get(wildcard, Verdict.GOOD, "b.example", "h2", AT) is context
    assert served.get(other, Verdict.GOOD, "a.example", "h2", AT) is not context
    assert served.get(wildcard, Verdict.EXPIRED, "a.example", "h2", AT) is not context
    assert served.get(wildcard, Verdict.GOOD, "a.example", None, AT) is not context
    assert len(served.made) == 4


@pytest.mark.parametrize("der", [None, b"garbage", destination()])
@pytest.mark.parametrize("verdict", [Verdict.GOOD, Verdict.UNVERIFIED, Verdict.OTHER])
def test_a_leaf_that_names_the_host_is_for_that_host(authority: Authority, der: bytes | None, verdict: Verdict) -> None:
    """No other host gets it."""
    served = ServerContexts(authority)
    context = served.get(der, verdict, "a.example", None, AT)
    assert served.get(der, verdict, "a.example", None, AT) is context
    assert served.get(der, verdict, "b.example", None, AT) is not context


@pytest.mark.parametrize("verdict", [Verdict.GOOD, Verdict.WRONG_NAME])
def test_a_leaf_that_openssl_does_not_read_is_replaced(authority: Authority, verdict: Verdict) -> None:
    """One with strings of a wrong kind in its subject: the host gets one without, which is as good or as bad."""
    der = good().replace(b"\x0c\x0eorigin.example", b"\x04\x0eorigin.example")
    leaf = authority.mirror(der, verdict, HOST, today())
    with pytest.raises(ssl.SSLError):
        load_pem(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority.leaf_key_pem + leaf.pem)
    context = ServerContexts(authority).get(der, verdict, HOST, None, today())
    if verdict is Verdict.GOOD:
        shake_hands(context, trusting(authority), HOST)
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="local issuer"):
            shake_hands(context, trusting(authority), HOST)


def test_those_go_that_were_not_asked_for_longest(authority: Authority) -> None:
    """Each is 20 KiB: hosts without end do not take memory without end."""
    served = ServerContexts(authority, bound=2)
    contexts = [served.get(None, Verdict.GOOD, host, None, AT) for host in "ab"]
    assert served.get(None, Verdict.GOOD, "a", None, AT) is contexts[0]
    served.get(None, Verdict.GOOD, "c", None, AT)
    assert len(served.made) == 2
    assert served.get(None, Verdict.GOOD, "a", None, AT) is contexts[0]
    assert served.get(None, Verdict.GOOD, "b", None, AT) is not contexts[1]


def test_a_leaf_is_made_anew_after_half_a_day(authority: Authority) -> None:
    """It would expire in a process that runs for long, and one that is not valid yet would become good."""
    served = ServerContexts(authority)
    context = served.get(None, Verdict.GOOD, HOST, None, AT)
    assert served.get(None, Verdict.GOOD, HOST, None, AT + RENEW - 1) is context
    renewed = served.get(None, Verdict.GOOD, HOST, None, AT + RENEW)
    assert renewed is not context
    assert served.get(None, Verdict.GOOD, HOST, None, AT) is not renewed  # the clock was set back
    assert len(served.made) == 1


def test_neither_files_nor_descriptors_are_left(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leaf's key is on no disk; without /proc it is for the moment in which OpenSSL reads it."""
    leaf = authority.mirror(None, Verdict.GOOD, HOST, today())
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for there in (True, False):
        monkeypatch.setattr(os.path, "exists", lambda path, there=there: there)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pem(context, authority.leaf_key_pem + leaf.pem)
        shake_hands(context, trusting(authority), HOST)
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


def test_curl_accepts_a_leaf_by_our_authority_alone(authority: Authority, tmp_path: Path) -> None:
    """With ``--cacert``, for the name and for an address; without, it refuses."""
    context = ServerContexts(authority).get(good("localhost"), Verdict.GOOD, "localhost", "http/1.1", today())
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}/"

        def serve() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                sock.settimeout(10)
                try:
                    with context.wrap_socket(sock, server_side=True) as tls:
                        tls.recv(65536)
                        tls.sendall(answer)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        command = ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", "10", url]
        refused = subprocess.run(command, capture_output=True, text=True)
        accepted = subprocess.run([*command, "--cacert", str(tmp_path / "ca.crt")], capture_output=True, text=True)
        thread.join()
    assert (refused.returncode, accepted.stdout, accepted.returncode) == (60, "hi", 0)


# --- SSLKEYLOGFILE ---


def test_keys_are_logged_for_both_sides(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wireshark reads them. The file is for nobody else, and fewer contexts are kept, since each has it open."""
    path = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(path))
    served, asked = ServerContexts(authority), ClientContexts()
    assert served.bound == contexts.KEY_LOG_BOUND
    context = served.get(None, Verdict.GOOD, HOST, None, today())
    shake_hands(context, trusting(authority), HOST)
    lines = path.read_text().count("CLIENT_TRAFFIC_SECRET_0")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = asked.make(TlsSettings(verify=False), (), "both").context
    shake_hands(context, client, HOST)
    assert (lines, path.read_text().count("CLIENT_TRAFFIC_SECRET_0")) == (1, 3)


@pytest.mark.parametrize("make", [ClientContexts, lambda: ServerContexts(None)])  # type: ignore[arg-type]
def test_a_key_log_that_cannot_be_written(
    make: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said at the start."""
    path = tmp_path / "missing" / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(path))
    with pytest.raises(ConfigError, match=f"^SSLKEYLOGFILE: {path}: No such file or directory$"):
        make()


# --- toward destinations ---


def origin(issuer: trustme.CA, *names: str, **options: object) -> ssl.SSLContext:
    """A destination's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(*(names or (HOST,)), **options).configure_cert(context)  # type: ignore[arg-type]
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture
def issuer(tmp_path: Path) -> trustme.CA:
    """An authority beside the system's, in ``trust.pem``."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / "trust.pem"))
    return made


def get(run_once: Run, settings: TlsSettings, *rest: object) -> ssl.SSLContext:
    """A context of a new cache."""

    async def main() -> ssl.SSLContext:
        return await ClientContexts().get(settings, *rest)  # type: ignore[arg-type]

    return run_once(main)


def test_a_servers_own_certificate_may_be_trusted(tmp_path: Path, run_once: Run) -> None:
    """As with ``curl --cacert``: without its authority, and for its name alone."""
    path, unknown = tmp_path / "server.pem", trustme.CA()
    leaf = unknown.issue_cert(HOST)
    leaf.cert_chain_pems[0].write_to_path(str(path))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(server)
    context = get(run_once, TlsSettings(trust=str(path)), ())
    shake_hands(server, context, HOST)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, context, "other.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="local issuer"):
        shake_hands(origin(unknown), context, HOST)


def test_a_destination_is_verified(tmp_path: Path, issuer: trustme.CA, run_once: Run) -> None:
    """Its authority and its name, with OpenSSL's own word for what is wrong."""
    context = get(run_once, TlsSettings(trust=str(tmp_path / "trust.pem")), ("h2", "http/1.1"))
    tls = shake_hands(origin(issuer), context, HOST)
    assert (tls.selected_alpn_protocol(), tls.version()) == ("h2", "TLSv1.3")
    assert context.cert_store_stats()["x509_ca"] > 20  # the system's are trusted too
    for wrong, verdict in (
        (origin(issuer, "other.example"), Verdict.WRONG_NAME),
        (origin(trustme.CA()), Verdict.UNKNOWN_ISSUER),
        (origin(issuer, not_after=datetime(2001, 1, 1)), Verdict.EXPIRED),
        (origin(issuer, not_before=datetime.now() + timedelta(90)), Verdict.NOT_YET_VALID),
    ):
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            shake_hands(wrong, context, HOST)
        assert verdict_of(caught.value) is verdict


@pytest.mark.parametrize(
    ("protocols", "expected"), [((), None), (("http/1.1",), "http/1.1"), (("h2", "http/1.1"), "h2"), (("h2",), "h2")]
)
def test_the_protocols_that_the_client_offers(
    run_once: Run, issuer: trustme.CA, protocols: tuple[str, ...], expected: str | None
) -> None:
    """Those are offered, and no other."""
    context = get(run_once, TlsSettings(verify=False), protocols)
    assert shake_hands(origin(issuer), context, HOST).selected_alpn_protocol() == expected


@pytest.mark.parametrize(
    ("versions", "least", "most"),
    [("1.2", "TLSv1_2", "TLSv1_2"), ("1.3", "TLSv1_3", "MAXIMUM_SUPPORTED"), ("both", "TLSv1_2", "MAXIMUM_SUPPORTED")],
)
def test_the_versions_that_the_client_offers(run_once: Run, versions: str, least: str, most: str) -> None:
    """The destination sees the same as it would from the client."""
    context = get(run_once, TlsSettings(verify=False), (), versions)
    assert (context.minimum_version.name, context.maximum_version.name) == (least, most)


def verdicts(settings: TlsSettings, server: ssl.SSLContext, host: str = HOST) -> list[Verdict]:
    """Shake hands as a caller does, each time without the check that has failed."""
    contexts, found = ClientContexts(), []
    while True:
        try:
            shake_hands(server, contexts.make(settings, (), "both").context, host)
        except ssl.SSLCertVerificationError as exc:
            found.append(verdict_of(exc))
            settings = settings.after(found[-1])
        else:
            return found


def test_after_a_bad_certificate_all_other_checks_stay(tmp_path: Path, issuer: trustme.CA) -> None:
    """What OpenSSL does not look at once it has found one thing wrong: another name on a forged certificate would else
    be signed by an authority that clients trust."""
    settings = TlsSettings(trust=str(tmp_path / "trust.pem"))
    long_ago = {"not_after": datetime(2001, 1, 1)}
    forger = trustme.CA()
    assert verdicts(settings, origin(issuer)) == []
    assert verdicts(settings, origin(issuer, "other.example")) == [Verdict.WRONG_NAME]
    assert verdicts(settings, origin(issuer, **long_ago)) == [Verdict.EXPIRED]
    assert verdicts(settings, origin(issuer, "other.example", **long_ago)) == [Verdict.WRONG_NAME, Verdict.EXPIRED]
    assert verdicts(settings, origin(forger)) == [Verdict.UNKNOWN_ISSUER]
    assert verdicts(settings, origin(forger, "other.example", **long_ago)) == [Verdict.UNKNOWN_ISSUER]
    assert verdicts(settings, origin(issuer, "192.0.2.1"), "192.0.2.2") == [Verdict.WRONG_NAME]


def test_a_forgery_with_another_name_is_of_an_unknown_authority(tmp_path: Path, issuer: trustme.CA) -> None:
    """It says that an authority has signed it that is trusted, which it has not: OpenSSL finds the name first."""
    known = x509.load_pem_x509_certificate(issuer.cert_pem.bytes())
    forger = trustme.CA().issue_cert("other.example")
    real = x509.load_pem_x509_certificate(issuer.issue_cert("other.example").cert_chain_pems[0].bytes())
    key = load_pem_private_key(forger.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        known.subject, real.subject, key.public_key(), 7, real.not_valid_before_utc, real.not_valid_after_utc
    )
    for one in real.extensions:
        builder = builder.add_extension(one.value, one.critical)
    forged = builder.sign(key, hashes.SHA256())
    (tmp_path / "forged.pem").write_bytes(forged.public_bytes(Encoding.PEM) + forger.private_key_pem.bytes())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "forged.pem")
    found = verdicts(TlsSettings(trust=str(tmp_path / "trust.pem")), server)
    assert found == [Verdict.WRONG_NAME, Verdict.OTHER]


def test_settings_end_without_any_check() -> None:
    """A destination that shows another bad certificate each time is not asked for ever."""
    settings, steps = TlsSettings(), 0
    while settings.verify:
        settings, steps = settings.after(Verdict.EXPIRED if steps % 2 else Verdict.WRONG_NAME), steps + 1
    assert steps == 3


def test_our_own_certificate(tmp_path: Path, issuer: trustme.CA, run_once: Run) -> None:
    """A destination that demands one gets it."""
    certificate, key = write_leaf(tmp_path, issuer.issue_cert("us@example"), "client")
    server = origin(issuer)
    server.verify_mode = ssl.CERT_REQUIRED
    issuer.configure_trust(server)
    shake_hands(server, get(run_once, TlsSettings(verify=False, certificate=certificate, key=key), ()), HOST)
    both = tmp_path / "both.pem"
    both.write_bytes(Path(certificate).read_bytes() + Path(key).read_bytes())
    shake_hands(server, get(run_once, TlsSettings(verify=False, certificate=str(both)), ()), HOST)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(server, get(run_once, TlsSettings(verify=False), ()), HOST)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (TlsSettings(trust="/missing"), "^trust: /missing: No such file or directory$"),
        (TlsSettings(trust=__file__), f"^trust: {__file__}: no certificates in PEM$"),
        (TlsSettings(certificate="/missing"), "^key: /missing: No such file or directory$"),
    ],
)
def test_files_that_cannot_be_used(settings: TlsSettings, words: str, run_once: Run) -> None:
    """The error has the key and the file; nothing of it is kept."""

    async def main() -> None:
        asked = ClientContexts()
        for _ in range(2):
            with pytest.raises(ConfigError, match=words):
                await asked.get(settings, ())
        assert not asked.kept
        assert not asked.making

    run_once(main)


class Counted(ClientContexts):
    """Counts how often one is made."""

    count = 0

    def make(self, *rest: object) -> contexts.Kept:
        self.count += 1
        return super().make(*rest)  # type: ignore[arg-type]


def test_all_who_want_one_wait_for_one_thread(run_once: Run) -> None:
    """A page that opens a hundred connections reads the system's authorities once; who goes disturbs nobody."""

    async def main() -> None:
        asked = Counted()
        settings = TlsSettings(verify=False)
        impatient = asyncio.ensure_future(asked.get(settings, ()))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        impatient.cancel()
        found = await asyncio.gather(*(asked.get(settings, ()) for _ in range(100)), impatient, return_exceptions=True)
        assert isinstance(found.pop(), asyncio.CancelledError)
        assert len(set(map(id, found))) == asked.count == 1
        assert asked.get_nowait(settings, ()) is found[0]
        assert await asked.get(settings, ("h2",)) is not found[0]
        assert asked.count == 2

    run_once(main)


def test_nobody_waits_for_a_context_that_fails(run_once: Run) -> None:
    """The one who has asked has gone: no error is left that nobody takes."""

    async def main() -> None:
        asked = Counted()
        task = asyncio.ensure_future(asked.get(TlsSettings(trust="/missing"), ()))  # noqa: TID251 - awaited below
        await asyncio.sleep(0)
        task.cancel()
        (future,) = asked.making.values()
        with pytest.raises(ConfigError):
            await future
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not asked.making

    run_once(main)


def test_a_client_that_offers_something_else_each_time(run_once: Run) -> None:
    """It cannot have a thread read the system's authorities for each connection, nor push out what others use."""

    async def main() -> None:
        asked = Counted()
        settings = TlsSettings(verify=False)
        for number in range(3 * OTHERS):
            await asked.get(settings, (f"x{number}",))
        assert asked.count == OTHERS + 1
        assert asked.get_nowait(settings, ("y",)) is asked.get_nowait(settings, ())
        assert asked.get_nowait(settings, ("x0",)) is not asked.get_nowait(settings, ())

    run_once(main)


@pytest.mark.parametrize("odd", ["\x8a\x8a\xff", "", "x" * 256])
def test_protocols_that_cannot_be_offered_are_left_out(run_once: Run, odd: str) -> None:
    """Values of GREASE are not ASCII (RFC 8701)."""

    async def main() -> None:
        asked = Counted()
        settings = TlsSettings(verify=False)
        assert await asked.get(settings, (odd, "mqtt")) is asked.get_nowait(settings, ("mqtt",))
        assert await asked.get(settings, (odd,)) is asked.get_nowait(settings, ())

    run_once(main)


def test_contexts_toward_destinations_are_bounded(run_once: Run) -> None:
    """Those go that were not asked for longest."""

    async def main() -> None:
        asked = Counted(bound=2)
        settings = TlsSettings(verify=False)
        for protocol in ("a", "b", "a", "c"):
            await asked.get(settings, (protocol,))
        assert [asked.get_nowait(settings, (protocol,)) is None for protocol in "abc"] == [False, True, False]

    run_once(main)


def test_a_changed_file_is_read_again(tmp_path: Path, run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A look at the files a second, at most; one that cannot be used leaves what was there, and one line in the log."""
    path = tmp_path / "trust.pem"
    now = 0.0

    async def main() -> None:
        nonlocal now
        asked = Counted(time=lambda: now)
        settings = TlsSettings(trust=str(path))
        first = await asked.get(settings, ())
        path.write_bytes(trustme.CA().cert_pem.bytes() * 2)
        now = 0.9
        assert await asked.get(settings, ()) is first
        now = 1.0
        second = await asked.get(settings, ())
        assert second is not first
        path.write_bytes(b"garbage")
        for _ in range(3):
            now += 1
            assert await asked.get(settings, ()) is second
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
            f"trust: {path}: no certificates in PEM; what was read before stays"
        ]
        path.write_bytes(trustme.CA().cert_pem.bytes())
        now += 1
        assert await asked.get(settings, ()) is not second
        assert (asked.count, len(asked.kept)) == (4, 1)

    path.write_bytes(trustme.CA().cert_pem.bytes())
    run_once(main)
