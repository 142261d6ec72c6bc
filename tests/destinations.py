"""Certificates of destinations, as good and as odd as a test wants them, and handshakes in memory."""

from __future__ import annotations

import functools
import ssl
import tempfile
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tabi.intercept.authority import Authority

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@functools.cache
def key() -> ec.EllipticCurvePrivateKey:
    """The key of all destinations."""
    return ec.generate_private_key(ec.SECP256R1())


def subject(common_name: str | None = "origin.example", organization: str | None = None) -> x509.Name:
    """A subject of these parts, however odd they are."""
    parts = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.Name([x509.NameAttribute(oid, text, _validate=False) for oid, text in parts if text is not None])


def destination(
    *names: str,
    name: x509.Name | None = None,
    sans: Sequence[x509.GeneralName] = (),
    begin: datetime = NOW - 30 * DAY,
    end: datetime = NOW + 60 * DAY,
    extensions: Sequence[x509.ExtensionType] = (),
) -> bytes:
    """A destination's certificate, in DER. Its issuer is itself: only what it says is looked at."""
    who = subject() if name is None else name
    builder = x509.CertificateBuilder(who, who, key().public_key(), x509.random_serial_number(), begin, end)
    general = [*(x509.DNSName(one) for one in names), *sans]
    if general:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    for one in extensions:
        builder = builder.add_extension(one, critical=False)
    return builder.sign(key(), hashes.SHA256()).public_bytes(Encoding.DER)


def make_authority(folder: Path, now: datetime | None = None) -> Authority:
    """A new authority of ours."""
    return Authority.make(str(folder), None if now is None else now.timestamp())


@functools.cache
def made_before() -> tuple[Authority, dict[str, bytes]]:
    """An authority of ours, and its files."""
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.make(folder)
        return authority, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_authority(folder: Path) -> Authority:
    """The same authority of ours in each folder, for tests that do not care which: nothing is made or synced."""
    authority, files = made_before()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, octets in files.items():
        (folder / name).touch(0o600)
        (folder / name).write_bytes(octets)
    return authority


def trusting(authority: Authority, **options: object) -> ssl.SSLContext:
    """The context of a client that trusts only this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.certificate_pem.decode())
    for name, value in options.items():
        setattr(context, name, value)
    return context


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """Both parts of a handshake, and what the server says after it; gives the client's. Raises ssl.SSLError."""
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    mine = client.wrap_bio(one, other, server_hostname=host, session=session)
    theirs = server.wrap_bio(other, one, server_side=True)
    for peer in (mine, theirs, mine, theirs):
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            pass
    theirs.write(b"x")
    assert mine.read(1) == b"x"
    return mine
