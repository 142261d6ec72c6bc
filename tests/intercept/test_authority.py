"""The authority: its files, and leaves that are as good or as bad as the destination's certificate."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from destinations import DAY, NOW, destination, make_authority, subject
from tabi.errors import ConfigError
from tabi.intercept.authority import (
    MAX_NAMES,
    Authority,
    Leaf,
    Verdict,
    default_paths,
    read_certificate,
    verdict_of,
    write_new,
)

BAD = [verdict for verdict in Verdict if verdict not in (Verdict.GOOD, Verdict.UNVERIFIED)]
HOST = "origin.example"
SAMPLE = destination(HOST, "*.origin.example", sans=[x509.IPAddress(ipaddress.ip_address("192.0.2.7"))])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests that sign."""
    return make_authority(tmp_path_factory.mktemp("ca"), NOW)


def mirrored(authority: Authority, der: bytes | None, verdict: Verdict = Verdict.GOOD, host: str = HOST) -> Leaf:
    """A leaf of today."""
    return authority.mirror(der, verdict, host, NOW.timestamp())


def leaf_of(leaf: Leaf) -> x509.Certificate:
    """What a client sees."""
    return x509.load_pem_x509_certificate(leaf.pem)


def names(certificate: x509.Certificate) -> list[str]:
    """Its subject alternative names as text."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def verify(authority: Authority, folder: Path, leaf: Leaf, *options: str, now: datetime = NOW) -> str:
    """What `openssl verify` says."""
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    (folder / "leaf.pem").write_bytes(leaf.pem)
    clock = ("-attime", str(int(now.timestamp())))
    command = ("openssl", "verify", "-x509_strict", "-purpose", "sslserver", *clock, *options, "-CAfile", "ca.pem")
    done = subprocess.run([*command, "leaf.pem"], cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


# --- leaves ---


def test_a_good_certificate_is_mirrored(authority: Authority, tmp_path: Path) -> None:
    """Subject and names are the destination's, all of them; OpenSSL at its strictest accepts it for each."""
    who = subject(HOST, "Müller & Søn")
    sans = [x509.IPAddress(ipaddress.ip_address("192.0.2.7")), x509.IPAddress(ipaddress.ip_address("2001:db8::7"))]
    der = destination(HOST, "*.origin.example", "xn--mller-kva.example", name=who, sans=sans)
    leaf = mirrored(authority, der)
    certificate = leaf_of(leaf)
    assert certificate.subject == who
    assert names(certificate) == [HOST, "*.origin.example", "xn--mller-kva.example", "192.0.2.7", "2001:db8::7"]
    assert not leaf.for_host
    for host in (HOST, "www.origin.example", "xn--mller-kva.example"):
        assert verify(authority, tmp_path, leaf, "-verify_hostname", host).endswith("OK\n")
    for address in ("192.0.2.7", "2001:db8::7"):
        assert verify(authority, tmp_path, leaf, "-verify_ip", address).endswith("OK\n")
    assert "hostname mismatch" in verify(authority, tmp_path, leaf, "-verify_hostname", "other.example").lower()


def test_what_browsers_want_of_a_leaf(authority: Authority) -> None:
    """serverAuth, no authority, a random serial, the identifier of the authority's key, P-256, SHA-256."""
    one, other = (leaf_of(mirrored(authority, destination(HOST))) for _ in range(2))
    assert one.serial_number != other.serial_number
    assert isinstance(one.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(one.signature_hash_algorithm, hashes.SHA256)
    found = one.extensions
    basic = found.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = found.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert list(found.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    own = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    named = found.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert named.key_identifier == own.digest


def test_what_points_to_the_destinations_authority_is_not_mirrored(authority: Authority) -> None:
    """Its OCSP responder does not know our leaf, and must-staple would have clients want its answer."""
    ocsp = x509.AccessDescription(
        AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://ocsp.example/")
    )
    staple = x509.TLSFeature([x509.TLSFeatureType.status_request])
    der = destination(HOST, extensions=[x509.AuthorityInformationAccess([ocsp]), staple])
    found = leaf_of(mirrored(authority, der)).extensions
    for kind in (x509.AuthorityInformationAccess, x509.TLSFeature):
        with pytest.raises(x509.ExtensionNotFound):
            found.get_extension_for_class(kind)


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        pytest.param(NOW - 30 * DAY, NOW + 60 * DAY, NOW + 60 * DAY, id="short"),
        pytest.param(NOW - 30 * DAY, NOW + 3650 * DAY, NOW + 197 * DAY, id="ten years"),
        pytest.param(NOW - DAY / 24, NOW + 6 * DAY, NOW + 6 * DAY, id="of today"),
    ],
)
def test_a_leaf_is_valid_from_two_days_ago_for_199_days_at_most(
    authority: Authority, begin: datetime, end: datetime, expected: datetime
) -> None:
    """A slow clock does not matter, and no browser finds it valid for too long."""
    certificate = leaf_of(mirrored(authority, destination(HOST, begin=begin, end=end)))
    assert certificate.not_valid_before_utc == NOW - 2 * DAY
    assert certificate.not_valid_after_utc == expected


def test_expired_for_expired(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL finds only that: names and issuer are right."""
    leaf = mirrored(authority, destination(HOST, begin=NOW - 400 * DAY, end=NOW - DAY), Verdict.EXPIRED)
    assert "error 10 " in verify(authority, tmp_path, leaf, "-verify_hostname", HOST)
    assert verify(authority, tmp_path, leaf, "-verify_hostname", HOST, now=NOW - 1.5 * DAY).endswith("OK\n")


def test_not_valid_yet_for_not_valid_yet(authority: Authority, tmp_path: Path) -> None:
    """Now and for a day: longer than the leaf is kept."""
    leaf = mirrored(authority, destination(HOST, begin=NOW + DAY / 24), Verdict.NOT_YET_VALID)
    for moment in (NOW, NOW + DAY / 2):
        assert "error 9 " in verify(authority, tmp_path, leaf, "-verify_hostname", HOST, now=moment)
    assert verify(authority, tmp_path, leaf, now=NOW + 2 * DAY).endswith("OK\n")


def test_wrong_name_for_wrong_name(authority: Authority, tmp_path: Path) -> None:
    """The names are the destination's; the host that was asked for is not among them."""
    leaf = mirrored(authority, destination("other.example"), Verdict.WRONG_NAME)
    assert names(leaf_of(leaf)) == ["other.example"]
    assert "error 62 " in verify(authority, tmp_path, leaf, "-verify_hostname", HOST)
    assert verify(authority, tmp_path, leaf).endswith("OK\n")


@pytest.mark.parametrize("verdict", [Verdict.WRONG_NAME, Verdict.UNKNOWN_ISSUER, Verdict.OTHER])
def test_what_is_wrong_and_expired_is_both(authority: Authority, tmp_path: Path, verdict: Verdict) -> None:
    """OpenSSL says one thing at a time; whoever forgives it has to forgive the other too."""
    der = destination("other.example", begin=NOW - 400 * DAY, end=NOW - DAY)
    certificate = leaf_of(mirrored(authority, der, verdict))
    assert certificate.not_valid_after_utc == NOW - DAY
    later = leaf_of(mirrored(authority, destination("other.example", begin=NOW + 9 * DAY), verdict))
    assert later.not_valid_before_utc == NOW + 9 * DAY


@pytest.mark.parametrize("verdict", [Verdict.SELF_SIGNED, Verdict.UNKNOWN_ISSUER, Verdict.REVOKED, Verdict.OTHER])
def test_an_unknown_issuer_for_what_nobody_trusts(authority: Authority, tmp_path: Path, verdict: Verdict) -> None:
    """It is signed, but by nobody whom a client could trust, and the name says why."""
    leaf = mirrored(authority, destination(HOST), verdict)
    assert names(leaf_of(leaf)) == [HOST]
    assert "error 20 " in verify(authority, tmp_path, leaf, "-verify_hostname", HOST)
    assert "not trusted" in leaf_of(leaf).issuer.rfc4514_string()


@pytest.mark.parametrize("verdict", [Verdict.EXPIRED, Verdict.NOT_YET_VALID])
def test_what_expired_between_it_and_its_authority(authority: Authority, tmp_path: Path, verdict: Verdict) -> None:
    """The destination's own certificate shows nothing wrong: the leaf does, and is nobody's."""
    leaf = mirrored(authority, destination(HOST), verdict)
    assert "error 20 " in verify(authority, tmp_path, leaf)
    certificate = leaf_of(leaf)
    assert not certificate.not_valid_before_utc <= NOW <= certificate.not_valid_after_utc


@pytest.mark.parametrize("verdict", BAD)
@pytest.mark.parametrize(
    "der",
    [
        pytest.param(None, id="none"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x30\x03\x02\x01\x05", id="no certificate"),
        pytest.param(destination(), id="no names"),
        pytest.param(destination(sans=[x509.RFC822Name("a@origin.example")]), id="no host names"),
        pytest.param(destination(*(f"h{i}.example" for i in range(MAX_NAMES + 1))), id="too many names"),
        pytest.param(destination(*(f"{i}.{'a' * 60}.example" for i in range(900))), id="names too long"),
        pytest.param(destination(HOST, name=subject("x" * 5000)), id="subject too long"),
    ],
)
def test_a_bad_certificate_never_becomes_a_good_one(
    authority: Authority, tmp_path: Path, der: bytes | None, verdict: Verdict
) -> None:
    """Where its names cannot be taken, so that the leaf names the host, nobody trusts who has signed it."""
    leaf = mirrored(authority, der, verdict)
    assert leaf.for_host
    assert names(leaf_of(leaf)) == [HOST]
    assert len(leaf.pem) < 2000
    assert "error 20 " in verify(authority, tmp_path, leaf, "-verify_hostname", HOST)


def test_a_good_one_whose_names_cannot_be_taken_names_the_host(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL has found the host in it: among more names than a leaf takes."""
    der = destination(HOST, *(f"h{i}.example" for i in range(MAX_NAMES)))
    leaf = mirrored(authority, der)
    assert leaf.for_host
    assert names(leaf_of(leaf)) == [HOST]
    assert verify(authority, tmp_path, leaf, "-verify_hostname", HOST).endswith("OK\n")


def test_without_verification_a_client_accepts_it_whatever_it_says(authority: Authority, tmp_path: Path) -> None:
    """`verify = false` is for destinations whose certificates are bad: the host is named, and the dates are good."""
    der = destination("other.example", begin=NOW - 400 * DAY, end=NOW - DAY)
    leaf = mirrored(authority, der, Verdict.UNVERIFIED)
    assert names(leaf_of(leaf)) == [HOST, "other.example"]
    assert verify(authority, tmp_path, leaf, "-verify_hostname", HOST).endswith("OK\n")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("origin.example.", "origin.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("_x.origin.example", "_x.origin.example"),
    ],
)
def test_a_host_as_a_certificate_has_it(authority: Authority, tmp_path: Path, host: str, expected: str) -> None:
    """An address is not a name; the root's dot is not part of one."""
    leaf = mirrored(authority, None, Verdict.UNVERIFIED, host)
    assert names(leaf_of(leaf)) == [expected]
    assert verify(authority, tmp_path, leaf).endswith("OK\n")


def test_a_host_that_no_certificate_can_name(authority: Authority) -> None:
    """There is a leaf; it names nothing."""
    with pytest.raises(x509.ExtensionNotFound):
        names(leaf_of(mirrored(authority, None, Verdict.GOOD, "ü.example")))


def odd(certificate: bytes, old: bytes, new: bytes) -> bytes:
    """A certificate with some octets replaced. The signature is wrong then, at which nobody looks here."""
    assert len(old) == len(new)
    assert old in certificate
    return certificate.replace(old, new)


@pytest.mark.parametrize(
    "der",
    [
        pytest.param(odd(destination("abcd.example"), b"abcd", b"\xff\xfe\0\n"), id="octets that are no ASCII"),
        pytest.param(odd(destination("abcd.example"), b"abcd", b"a\0\nd"), id="control characters"),
        pytest.param(odd(destination("abcd.example"), b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x0e"), id="not SANs"),
        pytest.param(destination(HOST)[:-1], id="cut off"),
        pytest.param(destination(HOST) + b"x", id="trailing"),
        pytest.param(odd(destination(HOST), b"\x17\x0d26", b"\x17\x0d99"), id="ends before it begins"),
        pytest.param(destination(HOST, name=x509.Name([])), id="no subject"),
        pytest.param(destination(HOST, name=subject("")), id="an empty CN"),
        pytest.param(destination(HOST, name=subject("\0\n\x1b[31m")), id="control characters in the subject"),
    ],
)
@pytest.mark.parametrize("verdict", Verdict)
def test_an_odd_certificate_gives_a_leaf(authority: Authority, der: bytes, verdict: Verdict) -> None:
    """Whatever a hostile destination shows: there is no error, and OpenSSL can load the leaf."""
    leaf = mirrored(authority, der, verdict)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=leaf.pem.decode())


def dated(begin: bytes, end: bytes) -> bytes:
    """A certificate with these times (GeneralizedTime)."""
    long = destination(HOST, begin=datetime(2051, 1, 1, tzinfo=UTC), end=datetime(2052, 1, 1, tzinfo=UTC))
    return odd(long, b"20510101000000Z", begin).replace(b"20520101000000Z", end)


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (b"00010101000000Z", b"00010101000000Z"),
        (b"00010101000000Z", b"99991231235959Z"),
        (b"99991231235959Z", b"99991231235959Z"),
        (b"99991231235959Z", b"00010101000000Z"),
        (b"20510101000000Z", b"19000101000000Z"),
        (b"00000000000000Z", b"99999999999999Z"),
    ],
)
def test_times_beyond_all_bounds(
    authority: Authority, tmp_path: Path, begin: bytes, end: bytes, verdict: Verdict
) -> None:
    """A leaf ends after it begins, lasts 199 days at most, and a bad one stays bad."""
    leaf = mirrored(authority, dated(begin, end), verdict)
    certificate = leaf_of(leaf)
    assert certificate.not_valid_before_utc < certificate.not_valid_after_utc
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= 199 * DAY
    if verdict in BAD:
        assert not verify(authority, tmp_path, leaf, "-verify_hostname", "x.example").endswith("OK\n")
    if verdict in (Verdict.EXPIRED, Verdict.NOT_YET_VALID):
        assert not certificate.not_valid_before_utc <= NOW <= certificate.not_valid_after_utc


@given(
    st.one_of(
        st.binary(max_size=2000),
        st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)).map(
            lambda change: SAMPLE[: change[0]] + change[1] + SAMPLE[change[0] + len(change[1]) :]
        ),
    )
)
def test_any_octets_are_read_or_not(der: bytes) -> None:
    """No octets at all raise anything."""
    seen = read_certificate(der)
    assert seen is None or len(seen.names) < MAX_NAMES


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (10, Verdict.EXPIRED),
        (9, Verdict.NOT_YET_VALID),
        (62, Verdict.WRONG_NAME),
        (64, Verdict.WRONG_NAME),
        (18, Verdict.SELF_SIGNED),
        (19, Verdict.UNKNOWN_ISSUER),
        (20, Verdict.UNKNOWN_ISSUER),
        (21, Verdict.UNKNOWN_ISSUER),
        (23, Verdict.REVOKED),
        (66, Verdict.OTHER),
    ],
)
def test_what_openssl_says_is_a_verdict(code: int, verdict: Verdict) -> None:
    """By its number; one that is not known is not good."""
    error = ssl.SSLCertVerificationError()
    error.verify_code = code
    assert verdict_of(error) is verdict


# --- the authority's files ---


def test_make_writes_a_certificate_and_a_key_that_nobody_else_reads(tmp_path: Path) -> None:
    """ECDSA P-256, for leaves alone, for ten years, whatever the umask is; `load` takes it."""
    folder = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        made = Authority.make(str(folder))
    finally:
        os.umask(before)
    paths = str(folder / "ca.crt"), str(folder / "ca.key")
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (folder, *paths)] == [0o700, 0o644, 0o600]
    loaded = Authority.load(*paths)
    assert loaded.certificate_der == made.certificate_der
    assert loaded.certificate_pem == made.certificate_pem == Path(paths[0]).read_bytes()
    certificate = made.certificate
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign) == (True, True)
    assert certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc > timedelta(3650)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


def test_two_authorities_have_two_names(tmp_path: Path) -> None:
    """A client that has both finds the right one."""
    one, other = (make_authority(tmp_path / name).certificate.subject for name in "ab")
    assert one != other
    assert re.fullmatch(r"CN=tabi CA [0-9a-f]{8},O=tabi", one.rfc4514_string())


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
@pytest.mark.parametrize("link", [False, True])
def test_make_never_overwrites(tmp_path: Path, name: str, link: bool) -> None:
    """Neither a certificate nor a key, nor where a link leads; and nothing else is left behind."""
    path = tmp_path / name
    if link:  # to nothing
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("precious")
    with pytest.raises(ConfigError, match=rf"^{path}: exists already; it is not overwritten$"):
        Authority.make(str(tmp_path))
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert link or path.read_text() == "precious"


def test_of_two_that_make_one_only_one_does(tmp_path: Path) -> None:
    """The file is created or not, in one call: a look before it would not do."""
    write_new(str(tmp_path / "ca.key"), b"first", 0o600)
    with pytest.raises(ConfigError, match="exists already"):
        write_new(str(tmp_path / "ca.key"), b"second", 0o600)
    assert (tmp_path / "ca.key").read_bytes() == b"first"


def test_nothing_is_left_of_an_authority_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: neither a part of the key, nor a key without its certificate."""

    calls: list[bool] = []

    def full(fd: int) -> None:
        if calls.pop():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for fails in ([True], [True, False]):
        calls[:] = fails
        with pytest.raises(OSError, match="No space"):
            Authority.make(str(tmp_path))
        assert list(tmp_path.iterdir()) == []


def test_the_key_is_in_no_repr(tmp_path: Path) -> None:
    """What ends in a log says whose it is, no more."""
    assert re.fullmatch("<Authority CN=tabi CA [0-9a-f]{8},O=tabi>", repr(make_authority(tmp_path)))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o777])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever has it can be any site for all who trust it."""
    make_authority(tmp_path)
    key = tmp_path / "ca.key"
    key.chmod(mode)
    words = rf"^{key}: others can read it \(mode {mode:o}\), expected 600: chmod 600 {key}$"
    with pytest.raises(ConfigError, match=words):
        Authority.load(str(tmp_path / "ca.crt"), str(key))


def write_authority(
    folder: Path,
    key: PrivateKeyTypes,
    certificate: bytes,
    encryption: NoEncryption | None = None,
) -> tuple[str, str]:
    """Files of an authority as a test wants it."""
    paths = folder / "ca.crt", folder / "ca.key"
    paths[0].write_bytes(certificate)
    paths[1].touch(0o600)
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
    return str(paths[0]), str(paths[1])


@pytest.mark.parametrize("kind", ["ec", "rsa", "ed25519"])
def test_an_authority_of_ones_own(tmp_path: Path, kind: str) -> None:
    """A company's key may be RSA or Ed25519; its certificate may have no key identifier; leaves are good."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    if kind == "ec":
        key = ec.generate_private_key(ec.SECP384R1())
    elif kind == "rsa":
        key = rsa.generate_private_key(65537, 2048)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    who = subject("Our company")
    certificate = (
        x509.CertificateBuilder(who, who, key.public_key(), 1, NOW - 9 * DAY, NOW + 900 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None if kind == "ed25519" else hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    authority = Authority.load(*write_authority(tmp_path, key, certificate), NOW.timestamp())
    (tmp_path / "root.pem").write_bytes(certificate)
    (tmp_path / "leaf.pem").write_bytes(mirrored(authority, destination(HOST)).pem)
    clock = ("-attime", str(int(NOW.timestamp())))
    command = ["openssl", "verify", *clock, "-verify_hostname", HOST, "-CAfile", "root.pem", "leaf.pem"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).stdout == b"leaf.pem: OK\n"


def test_an_authority_under_another_one_is_sent_too(tmp_path: Path) -> None:
    """Clients have only the root, and need what is between it and the leaf."""
    root = trustme.CA()
    between = root.create_child_ca()
    paths = tmp_path / "ca.crt", tmp_path / "ca.key"
    paths[0].write_bytes(between.cert_pem.bytes())
    paths[1].touch(0o600)
    paths[1].write_bytes(between.private_key_pem.bytes())
    leaf = Authority.load(str(paths[0]), str(paths[1])).mirror(None, Verdict.GOOD, HOST, datetime.now().timestamp())
    (tmp_path / "chain.pem").write_bytes(leaf.pem)
    (tmp_path / "root.pem").write_bytes(root.cert_pem.bytes())
    command = ["openssl", "verify", "-CAfile", "root.pem", "-untrusted", "chain.pem", "chain.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.stdout == b"chain.pem: OK\n"


def refused(certificate: str | Path, key: str | Path, now: datetime = NOW) -> str:
    """What `load` says against files."""
    with pytest.raises(ConfigError) as caught:
        Authority.load(str(certificate), str(key), now.timestamp())
    return str(caught.value)


def test_what_is_missing(tmp_path: Path) -> None:
    """It is said how to make one."""
    path = tmp_path / "ca.crt"
    assert refused(path, tmp_path / "ca.key") == f"{path}: no such file or directory: `tabi ca init` makes one"


def test_files_that_are_none(tmp_path: Path) -> None:
    """A FIFO would have us wait for ever, a folder has no octets; garbage is not PEM."""
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo", "x") == f"{tmp_path / 'fifo'}: is not a regular file"
    assert refused(tmp_path, "x") == f"{tmp_path}: is not a regular file"
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\0garbage")
    assert refused(garbage, garbage) == f"{garbage}: no certificate in PEM"
    make_authority(tmp_path, NOW)
    garbage.chmod(0o600)
    assert refused(tmp_path / "ca.crt", garbage) == f"{garbage}: no private key in PEM"


def test_a_key_that_is_not_its(tmp_path: Path) -> None:
    """It would sign what nobody accepts."""
    for name in "ab":
        make_authority(tmp_path / name, NOW)
    certificate, key = tmp_path / "a" / "ca.crt", tmp_path / "b" / "ca.key"
    assert refused(certificate, key) == f"{key}: is not the key of {certificate}"


def test_a_key_with_a_passphrase(tmp_path: Path) -> None:
    """Nobody is there to type it."""
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

    make_authority(tmp_path / "a", NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (tmp_path / "a" / "ca.crt").read_bytes()
    paths = write_authority(tmp_path, key, certificate, BestAvailableEncryption(b"secret"))  # type: ignore[arg-type]
    assert refused(*paths) == f"{paths[1]}: has a passphrase, expected a key without"


def test_a_key_that_does_not_sign(tmp_path: Path) -> None:
    """X25519 only agrees on secrets."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    make_authority(tmp_path / "a", NOW)
    paths = write_authority(tmp_path, X25519PrivateKey.generate(), (tmp_path / "a" / "ca.crt").read_bytes())
    assert refused(*paths).startswith(f"{paths[1]}: a key of this kind does not sign here")


NO_AUTHORITY = "is not an authority's, expected basicConstraints with CA:TRUE"


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ((), NO_AUTHORITY),
        ((x509.BasicConstraints(ca=False, path_length=None),), NO_AUTHORITY),
        (
            (
                x509.BasicConstraints(ca=True, path_length=None),
                x509.KeyUsage(True, False, False, False, False, False, True, False, False),
            ),
            "may not sign certificates, expected keyUsage with keyCertSign",
        ),
    ],
)
def test_a_certificate_that_is_not_an_authoritys(
    tmp_path: Path, extensions: tuple[x509.ExtensionType, ...], why: str
) -> None:
    """No client accepts what it signs; that is said at the start, not at each handshake."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = subject()
    builder = x509.CertificateBuilder(who, who, key.public_key(), 1, NOW - DAY, NOW + DAY)
    for one in extensions:
        builder = builder.add_extension(one, critical=True)
    paths = write_authority(tmp_path, key, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    assert refused(*paths) == f"{paths[0]}: {why}"


def test_an_authority_is_refused_before_and_after_its_time(tmp_path: Path) -> None:
    """The message has the date."""
    make_authority(tmp_path, NOW)
    paths = tmp_path / "ca.crt", tmp_path / "ca.key"
    assert refused(*paths, NOW + 4000 * DAY) == f"{paths[0]}: has expired on 2036-11-25"
    assert refused(*paths, NOW - 3 * DAY) == f"{paths[0]}: is not valid before 2026-11-26"


def test_where_the_authority_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's data directory, as the XDG Base Directory Specification has it: a relative one does not count."""
    monkeypatch.setenv("HOME", "/home/alice")
    for value, folder in (
        ("/data", "/data"),
        ("", "/home/alice/.local/share"),
        ("relative", "/home/alice/.local/share"),
    ):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert default_paths() == (f"{folder}/tabi/ca.crt", f"{folder}/tabi/ca.key")
