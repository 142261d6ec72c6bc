"""The authority that signs what clients see of a destination's certificate, in place of the destination.

A leaf mirrors the destination's certificate: subject, names and validity. It is as bad as OpenSSL has found that one,
never better. All leaves have one key, P-256: a new RSA key would take 38 ms, a leaf takes 0.25 ms.

    what is wrong                  the leaf
    nothing                        the destination's names; valid from 2 days ago, for 199 days at most
    expired, not valid yet         the destination's validity
    wrong name                     the destination's names and validity
    anything else                  signed by an authority that nobody has, made for this process
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import stat
import time
import warnings
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tabi.errors import ConfigError

DAY = timedelta(days=1)
BACKDATED = 2 * DAY
"""A client's clock may be slow."""

LEAF_VALID = 199 * DAY
"""Browsers refuse what is valid for longer than 200 days (CA/Browser Forum, since March 2026)."""

AUTHORITY_VALID = 3652 * DAY

MAX_NAMES, MAX_NAMES_SIZE, MAX_SUBJECT = 1000, 1 << 15, 1 << 11
"""Of a destination's certificate: names, their octets, and octets of the subject. One with more counts as unreadable:
OpenSSL takes up to 100 KiB, which a cache of a thousand would keep."""

EARLIEST, LATEST = datetime(1980, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""Times in a destination's certificate are read as one of these where they are beyond, so that there is room around."""

MAX_FILE = 1 << 20
"""Octets of a file of ours."""

NAMES = (x509.DNSName, x509.IPAddress)
SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


class Verdict(Enum):
    """What OpenSSL says of a destination's certificate."""

    GOOD = "good"
    UNVERIFIED = "not verified, as the configuration wants it"
    EXPIRED = "has expired"
    NOT_YET_VALID = "is not valid yet"
    WRONG_NAME = "is for other names"
    SELF_SIGNED = "is signed by itself"
    UNKNOWN_ISSUER = "is of an unknown authority"
    REVOKED = "is revoked"
    OTHER = "is not acceptable"


VERDICTS = {
    9: Verdict.NOT_YET_VALID,
    10: Verdict.EXPIRED,
    62: Verdict.WRONG_NAME,
    64: Verdict.WRONG_NAME,
    18: Verdict.SELF_SIGNED,
    2: Verdict.UNKNOWN_ISSUER,
    19: Verdict.UNKNOWN_ISSUER,
    20: Verdict.UNKNOWN_ISSUER,
    21: Verdict.UNKNOWN_ISSUER,
    23: Verdict.REVOKED,
}
"""By X509_V_ERR_…: see verify(1ssl)."""

VALID = (Verdict.GOOD, Verdict.UNVERIFIED)


def verdict_of(exc: ssl.SSLCertVerificationError) -> Verdict:
    """The verdict that a failed handshake with a destination says."""
    return VERDICTS.get(exc.verify_code, Verdict.OTHER)


class Seen(NamedTuple):
    """What a leaf takes from a destination's certificate."""

    subject: x509.Name
    names: list[x509.GeneralName]
    begin: datetime
    end: datetime


class Issuer(NamedTuple):
    """Who signs."""

    name: x509.Name
    key: SigningKey
    key_id: x509.AuthorityKeyIdentifier


class Leaf(NamedTuple):
    """A leaf, and those certificates in PEM that lead from it to the authority.

    Attributes:
        pem: the certificates.
        for_host: whether it names the host that was asked for, since the destination's names could not be taken.
    """

    pem: bytes
    for_host: bool


class Authority:
    """A certificate and key that clients trust, and the one key of all leaves. `load` and `make` make it.

    Args:
        certificates: the authority's first; behind it those that lead to one which clients have.
        key: the first one's.

    Attributes:
        certificate_pem: what clients are to trust.
        certificate_der: the same in DER.
        leaf_key_pem: the key of all leaves. It is of this process, and on no disk.
    """

    def __init__(self, certificates: list[x509.Certificate], key: SigningKey) -> None:
        certificate = certificates[0]
        self.certificate = certificate
        self.certificate_pem = certificate.public_bytes(Encoding.PEM)
        self.certificate_der = certificate.public_bytes(Encoding.DER)
        leads = certificates if certificate.subject != certificate.issuer else []
        self.chain_pem = b"".join(one.public_bytes(Encoding.PEM) for one in leads)
        self.issuer = Issuer(certificate.subject, key, key_id(certificate))
        stranger = ec.generate_private_key(ec.SECP256R1())
        self.stranger = Issuer(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tabi: the destination's certificate is not trusted")]),
            stranger,
            x509.AuthorityKeyIdentifier.from_issuer_public_key(stranger.public_key()),
        )
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        self.leaf_public_key = leaf_key.public_key()
        self.leaf_key_pem = leaf_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())

    def __repr__(self) -> str:
        return f"<Authority {self.certificate.subject.rfc4514_string()}>"

    @classmethod
    def load(cls, certificate: str, key: str, now: float | None = None) -> Authority:
        """Read an authority's certificate, or several from it on, and its key, both in PEM.

        ``now`` is in seconds since 1970; default: the clock's.

        Raises:
            ConfigError: a file is missing, or others can read the key, or it is another key, or the certificate is not
                an authority's, or not valid now.
        """
        certificates = read_certificates(certificate)
        secret, mode = read_file(key)
        if mode & 0o077:
            raise ConfigError(f"{key}: others can read it (mode {mode:o}), expected 600: chmod 600 {key}")
        try:
            private_key = load_pem_private_key(secret, None)
        except TypeError:
            raise ConfigError(f"{key}: has a passphrase, expected a key without") from None
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{key}: no private key in PEM") from None
        if not isinstance(private_key, SigningKey):
            raise ConfigError(f"{key}: a key of this kind does not sign here, expected EC, RSA or Ed25519")
        why = fault_of(certificates[0], time.time() if now is None else now)
        if why is not None:
            raise ConfigError(f"{certificate}: {why}")
        if not same_key(certificates[0], private_key):
            raise ConfigError(f"{key}: is not the key of {certificate}")
        return cls(certificates, private_key)

    @classmethod
    def make(cls, folder: str, now: float | None = None) -> Authority:
        """Make an authority, and write it to ``ca.crt`` and ``ca.key`` in a folder (made with mode 700 if missing).

        Raises:
            ConfigError: there is one already: it is never overwritten.
            OSError: the files cannot be written.
        """
        certificate, key = (os.path.join(folder, name) for name in FILES)
        for path in (certificate, key):
            if os.path.lexists(path):
                raise ConfigError(f"{path}: exists already; it is not overwritten")
        private_key = ec.generate_private_key(ec.SECP256R1())
        made = cls([self_signed(private_key, time.time() if now is None else now)], private_key)
        secret = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        os.makedirs(folder, 0o700, exist_ok=True)
        write_new(key, secret, 0o600)
        try:
            write_new(certificate, made.certificate_pem, 0o644)
        except BaseException:
            os.unlink(key)
            raise
        return made

    def mirror(self, der: bytes | None, verdict: Verdict, host: str, now: float) -> Leaf:
        """A leaf for the destination's certificate: as good, or as bad.

        It names ``host`` where the destination's certificate is not verified, or where no names could be read in it;
        then a bad one's is signed by an authority that nobody has.

        Args:
            der: the destination's certificate; None if it has shown none.
            verdict: of OpenSSL, on the handshake that showed it.
            host: the name or address that the client wants.
            now: seconds since 1970.
        """
        moment = datetime.fromtimestamp(now, UTC).replace(microsecond=0)
        seen = read_certificate(der)
        for_host = verdict is Verdict.UNVERIFIED or seen is None or not seen.names
        begin, end = moment - BACKDATED, moment - BACKDATED + LEAF_VALID
        if seen is None:
            seen = Seen(x509.Name([]), [], begin, end)
        trusted = is_trusted(seen, verdict, moment, for_host)
        begin, end = validity(seen, verdict, moment)
        names = seen.names
        if for_host:
            own = name_of(host)
            names = [own, *(name for name in names if name != own)] if own is not None else names
        pem = self.sign(seen.subject, names, begin, end, self.issuer if trusted else self.stranger)
        return Leaf(pem + self.chain_pem if trusted else pem, for_host)

    def sign(
        self, subject: x509.Name, names: list[x509.GeneralName], begin: datetime, end: datetime, issuer: Issuer
    ) -> bytes:
        """Make a leaf, in PEM."""
        builder = (
            x509.CertificateBuilder(issuer.name, subject, self.leaf_public_key, x509.random_serial_number(), begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(LEAF_USAGE, critical=True)
            .add_extension(SERVER, critical=False)
            .add_extension(issuer.key_id, critical=False)
        )
        if names:  # RFC 5280 section 4.2.1.6: critical where there is no subject
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject.rdns)
        return sign(builder, issuer.key).public_bytes(Encoding.PEM)


FILES = ("ca.crt", "ca.key")
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def usage(signs_certificates: bool) -> x509.KeyUsage:
    """What a key may be used for: signatures in handshakes, or those on certificates and CRLs."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


LEAF_USAGE = usage(signs_certificates=False)


def default_paths() -> tuple[str, str]:
    """Where the authority's certificate and key are, unless the configuration says something else (XDG Base Directory
    Specification: the user's data)."""
    folder = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(folder):
        folder = os.path.expanduser("~/.local/share")
    certificate, key = (os.path.join(folder, "tabi", name) for name in FILES)
    return certificate, key


# --- what a leaf says ---


def read_certificate(der: bytes | None) -> Seen | None:
    """What a leaf takes from a certificate; None if it is too large or cannot be read. Strangers write it."""
    if not der:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a stranger does against the rules
            certificate = x509.load_der_x509_certificate(der)
            subject = certificate.subject
            if len(subject.public_bytes()) > MAX_SUBJECT:
                return None
            try:
                found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            except x509.ExtensionNotFound:
                names: list[x509.GeneralName] = []
            else:
                names = [name for name in found if isinstance(name, NAMES)]
            if len(names) > MAX_NAMES or sum(len(str(name.value)) for name in names) > MAX_NAMES_SIZE:
                return None
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            return Seen(subject, names, min(max(begin, EARLIEST), LATEST), min(max(end, EARLIEST), LATEST))
    except Exception:  # a parser's own, of every kind
        return None


def is_trusted(seen: Seen, verdict: Verdict, now: datetime, for_host: bool) -> bool:
    """Whether a leaf is signed by the authority that clients have.

    A bad one is if it shows itself what is wrong with it. It does not where it names the host in place of unreadable
    names, and where not the destination's certificate has expired, but one between it and its authority.
    """
    if verdict in VALID:
        return True
    if for_host:
        return False
    if verdict is Verdict.EXPIRED:
        return seen.end <= now
    if verdict is Verdict.NOT_YET_VALID:
        return seen.begin > now
    return verdict is Verdict.WRONG_NAME


def validity(seen: Seen, verdict: Verdict, now: datetime) -> tuple[datetime, datetime]:
    """From when to when a leaf is valid: 199 days at most."""
    begin, end = now - BACKDATED, now - BACKDATED + LEAF_VALID
    if verdict is Verdict.EXPIRED or (verdict not in VALID and seen.end <= now):
        end = min(seen.end, now - DAY / 24)
        begin = min(max(seen.begin, end - LEAF_VALID), end - DAY / 24)
    elif verdict is Verdict.NOT_YET_VALID or (verdict not in VALID and seen.begin > now):
        begin = max(seen.begin, now + DAY)
        end = begin + LEAF_VALID
    elif seen.end > now:
        end = min(end, seen.end)
    return begin, end


def name_of(host: str) -> x509.GeneralName | None:
    """A host as a certificate has it; None if it is neither an address nor a name in ASCII."""
    host = host.removesuffix(".")
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        return None


# --- the authority's own ---


def self_signed(key: ec.EllipticCurvePrivateKey, now: float) -> x509.Certificate:
    """A new authority's certificate."""
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Two authorities of one name would confuse clients that had both.
    words = ((NameOID.ORGANIZATION_NAME, "tabi"), (NameOID.COMMON_NAME, f"tabi CA {own_id.digest[:4].hex()}"))
    name = x509.Name([x509.NameAttribute(oid, text) for oid, text in words])
    begin = datetime.fromtimestamp(now, UTC).replace(microsecond=0) - BACKDATED
    builder = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), begin, begin + AUTHORITY_VALID
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs_certificates=True), critical=True)
        .add_extension(own_id, critical=False)
    )
    return sign(builder, key)


def sign(builder: x509.CertificateBuilder, key: SigningKey) -> x509.Certificate:
    """Sign with a key of any kind."""
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else SHA256)


SHA256 = hashes.SHA256()


def key_id(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """How a leaf names the key of its authority."""
    try:
        own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(certificate.public_key())  # type: ignore[arg-type]
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def fault_of(certificate: x509.Certificate, now: float) -> str | None:
    """Why a certificate cannot be our authority's; None if it can."""
    try:
        extensions = certificate.extensions
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "is not an authority's, expected basicConstraints with CA:TRUE"
    except (ValueError, x509.DuplicateExtension):
        return "cannot be read"
    if not basic.ca:
        return "is not an authority's, expected basicConstraints with CA:TRUE"
    with contextlib.suppress(x509.ExtensionNotFound):
        if not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            return "may not sign certificates, expected keyUsage with keyCertSign"
    moment = datetime.fromtimestamp(now, UTC)
    if end <= moment:
        return f"has expired on {end:%Y-%m-%d}"
    if begin > moment:
        return f"is not valid before {begin:%Y-%m-%d}"
    return None


def same_key(certificate: x509.Certificate, key: SigningKey) -> bool:
    """Whether a key is that of a certificate."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    try:
        return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm):
        return False


def read_certificates(path: str) -> list[x509.Certificate]:
    """The certificates of a file in PEM, one or more. Raises ConfigError."""
    text, _ = read_file(path)
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        raise ConfigError(f"{path}: no certificate in PEM") from None


def read_file(path: str) -> tuple[bytes, int]:
    """A regular file's octets and mode. Raises ConfigError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would have us wait for ever
    except OSError as exc:
        hint = ": `tabi ca init` makes one" if isinstance(exc, FileNotFoundError) else ""
        raise ConfigError(f"{path}: {(exc.strerror or str(exc)).lower()}{hint}") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: is not a regular file")
        return os.read(fd, MAX_FILE), stat.S_IMODE(mode)
    finally:
        os.close(fd)


def write_new(path: str, data: bytes, mode: int) -> None:
    """Write a file that is not there. Raises ConfigError if it is, and OSError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; it is not overwritten") from None
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
