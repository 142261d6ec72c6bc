"""Certificates for tests: an authority, servers and clients, good and bad; and clients that speak TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tabi.config import Tls
from tabi.net.stream import Stream
from tabi.net.tls import TlsShared, TlsSocket, accept_tls
from tabi.wire.address import Address

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)


@functools.cache
def authority() -> trustme.CA:
    """The authority that everybody trusts."""
    return trustme.CA()


@functools.cache
def stranger() -> trustme.CA:
    """An authority that nobody trusts."""
    return trustme.CA()


def write_server(folder: Path, name: str = "server", issuer: trustme.CA | None = None) -> Tls:
    """A new server's certificate and key, and the authority, as files; there may be others of that name already."""
    (folder / f"{name}-ca.pem").write_bytes(authority().cert_pem.bytes())
    return Tls(*write_leaf(folder, (issuer or authority()).issue_cert("localhost", "127.0.0.1"), name))


@functools.cache
def server_context() -> ssl.SSLContext:
    """A context for servers that asks clients for nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


def client_context(
    version: ssl.TLSVersion | None = None, certificate: trustme.LeafCert | None = None
) -> ssl.SSLContext:
    """A context for clients, of one version of TLS and with a certificate where these are given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # an end without close_notify is seen as one
    authority().configure_trust(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def client_certificate(
    *names: str, sans: tuple[x509.GeneralName, ...] = (), not_after: datetime.datetime | None = None
) -> trustme.LeafCert:
    """A client's certificate with these CNs and SANs, which trustme itself does not make."""
    issuer_key = serialization.load_pem_private_key(authority().private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(authority().cert_pem.bytes())
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(LONG_AGO - datetime.timedelta(days=1))
        .not_valid_after(not_after or datetime.datetime(2038, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    certificate = builder.sign(issuer_key, hashes.SHA256())
    return trustme.LeafCert(pem, certificate.public_bytes(serialization.Encoding.PEM), [])


def write_leaf(folder: Path, leaf: trustme.LeafCert, name: str = "client") -> tuple[str, str]:
    """A certificate and its key as files."""
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return str(chain), str(key)


class TlsPeer:
    """A client that speaks TLS over a socket, in steps that a test chooses. Works on any non-blocking socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.notified = False
        """Whether the end was told by close_notify."""

    async def push(self) -> None:
        """Send what is to be sent."""
        if self.outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self.sock, self.outgoing.read())

    async def pull(self) -> bool:
        """Receive something; False at the end."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        self.incoming.write(data)
        return bool(data)

    async def handshake(self) -> None:
        """Do the client's part. Raises ssl.SSLError, and EOFError where the server ends."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.push()
                if not await self.pull():
                    raise EOFError("the server ended") from None
        await self.push()

    def encrypt(self, data: bytes) -> bytes:
        """What stands for payload on the wire."""
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        return self.outgoing.read()

    def close_notify(self) -> bytes:
        """The end, as it is on the wire. Nothing that was received may wait to be read."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        """Send payload."""
        await asyncio.get_running_loop().sock_sendall(self.sock, self.encrypt(data))

    async def end(self) -> None:
        """Send close_notify."""
        await asyncio.get_running_loop().sock_sendall(self.sock, self.close_notify())

    async def read(self, count: int) -> bytes:
        """Read exactly ``count`` octets, or up to the end. Raises OSError."""
        data = bytearray()
        while len(data) < count:
            try:
                chunk = self.tls.read(count - len(data))
            except ssl.SSLZeroReturnError:
                chunk = b""
            except ssl.SSLWantReadError:
                if not await self.pull():
                    break
                continue
            if not chunk:
                self.notified = True
                break
            data += chunk
        return bytes(data)

    async def read_all(self) -> bytes:
        """Read up to the end."""
        return await self.read(1 << 30)


async def accept(stream: Stream, peer: TlsPeer, context: ssl.SSLContext | None = None) -> TlsSocket:
    """Both parts of a handshake, on the two ends of a connection; gives the server's socket."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(accept_tls(stream, context or server_context(), TlsShared()))
        group.create_task(peer.handshake())
    return task.result()


@contextlib.asynccontextmanager
async def tls_client(address: Address, context: ssl.SSLContext | None = None) -> AsyncIterator[TlsPeer]:
    """A client of a server at this address, its handshake done."""
    with socket.create_connection((str(address.host), address.port)) as sock:
        sock.setblocking(False)
        peer = TlsPeer(sock, context or client_context())
        await peer.handshake()
        yield peer
