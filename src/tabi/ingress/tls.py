"""The TLS ingress: the handshake, and the client's user by its certificate; another ingress speaks inside TLS."""

from __future__ import annotations

import logging
import os
import ssl
import stat
import time as clock
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from math import inf
from typing import Any

import msgspec

from tabi.config import Tls
from tabi.errors import ConfigError, RemoteProtocolError
from tabi.ingress.conversation import Commands, Ingress
from tabi.net.kernel import open_memory
from tabi.net.stream import Stream
from tabi.net.tls import NothingSent, TlsShared, accept_tls, load_certificate
from tabi.policy.networks import network_of
from tabi.session import Session

log = logging.getLogger("tabi")

LOOK_EVERY = 1.0
"""Seconds between two looks at the files."""

CIPHERS = ":".join(
    f"ECDHE-{authentication}-{encryption}"
    for encryption in ("AES256-GCM-SHA384", "CHACHA20-POLY1305", "AES128-GCM-SHA256")
    for authentication in ("ECDSA", "RSA")
)
"""Of TLS 1.2: forward secrecy and AEAD only (RFC 9325 section 4.2), the same whatever Python was built with."""

SAN = {"dns": "DNS", "email": "email", "uri": "URI"}
"""What `ssl` calls the kinds of subject alternative names."""

FAULTS = {9: "is not valid yet", 10: "has expired"}
"""By X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

State = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """The TLS context of a listener, made anew when one of its files has changed.

    Args:
        tls: the files.
        path: of their keys in tabi.toml, such as ``listen[0].tls``.
        required: whether a client without a certificate is refused in the handshake.
        time: a clock in seconds.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, tls: Tls, path: str, required: bool, time: Callable[[], float] = clock.monotonic) -> None:
        self.tls = tls
        self.path = path
        self.required = required
        self.time = time
        self.loaded = self.reported = self.state()
        self.next_look = time() + LOOK_EVERY
        self.context = self.load()

    @classmethod
    def of_contents(cls, tls: Tls, path: str, required: bool, contents: Mapping[str, bytes]) -> Certificates:
        """The context made of what is in the files, by their names: this process may not be able to read them, and
        does not look at them again."""
        with ExitStack() as opened:

            def in_memory(name: str | None) -> str | None:
                if name is None:
                    return None
                file = opened.enter_context(os.fdopen(open_memory("tabi-certificate"), "wb"))
                file.write(contents[name])
                file.flush()
                return f"/proc/self/fd/{file.fileno()}"

            files = {key: in_memory(getattr(tls, key)) for key in ("certificate", "key", "client_ca")}
            made = cls(msgspec.structs.replace(tls, **files), path, required)
        made.tls, made.next_look = tls, inf
        return made

    def rest_if_unreadable(self) -> None:
        """Look at the files no more, if this process cannot read them: a reload brings what is in them."""
        if not all(os.access(name, os.R_OK, effective_ids=True) for name in self.names):
            self.next_look = inf

    @property
    def names(self) -> list[str]:
        """The files."""
        return names_of(self.tls)

    def state(self) -> State:
        """State that shows whether a file has changed; None for a missing file."""
        return tuple(map(state_of, self.names))

    def current(self) -> ssl.SSLContext:
        """The context for a new connection. If a file is unusable, the previous one stays, and the log gets a line."""
        now = self.time()
        if now < self.next_look:
            return self.context
        self.next_look = now + LOOK_EVERY
        state = self.state()  # before they are read: what is written meanwhile shows at the next look
        if state == self.loaded:
            return self.context
        try:
            self.context = self.load()
        except ConfigError as exc:
            if state != self.reported:
                log.error("%s; the certificate before stays", exc)
        else:
            self.loaded = state
            log.info("%s: new certificate from %s", self.path, self.tls.certificate)
        self.reported = state
        return self.context

    def load(self) -> ssl.SSLContext:
        """Read the files. Raises ConfigError, which names the key and the file."""
        tls = self.tls
        for key, name in (("certificate", tls.certificate), ("key", tls.key), ("client_ca", tls.client_ca)):
            if name is not None:
                self.look_at(key, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        try:
            context.set_ciphers(CIPHERS if tls.ciphers is None else f"{tls.ciphers}:!aNULL:!eNULL")
        except ssl.SSLError:
            text = f"{tls.ciphers!r}: expected ciphers that this OpenSSL has ({ssl.OPENSSL_VERSION})"
            raise ConfigError(text, f"{self.path}.ciphers") from None
        context.set_alpn_protocols(["http/1.1"])
        self.load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "certificate", tls.certificate)
        self.load_key(context)
        if tls.client_ca is not None:
            self.load_authorities(context, "client_ca", tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if self.required else ssl.CERT_OPTIONAL
        fault = fault_of(context, tls.certificate)
        if fault is not None:
            warn_once(f"{self.path}.certificate: {tls.certificate}: {fault}, clients will not trust it")
        return context

    def look_at(self, key: str, name: str) -> None:
        """Refuse what is not a regular file: to read a FIFO or a device could take for ever, and block all clients."""
        try:
            mode = os.stat(name).st_mode
        except OSError as exc:
            raise self.error(key, name, exc.strerror or str(exc)) from None
        if not stat.S_ISREG(mode):
            raise self.error(key, name, "is not a regular file")

    def load_authorities(self, context: ssl.SSLContext, key: str, name: str) -> None:
        """Load certificates, or check whether there are any."""
        try:
            context.load_verify_locations(name)
        except ssl.SSLError:
            raise self.error(key, name, "no certificates in PEM") from None
        except OSError as exc:
            raise self.error(key, name, exc.strerror or str(exc)) from None

    def load_key(self, context: ssl.SSLContext) -> None:
        """Load the certificate with its key. Raises ConfigError."""
        try:
            load_certificate(context, self.tls.certificate, self.tls.key)
        except ConfigError as exc:
            raise ConfigError(exc.message, f"{self.path}.{exc.path}") from None

    def error(self, key: str, name: str, text: str) -> ConfigError:
        """An error that names the key and the file."""
        return ConfigError(f"{name}: {text}", f"{self.path}.{key}")


@lru_cache(100)
def warn_once(text: str) -> None:
    """Log a message once in a program and the workers that it forks."""
    log.warning("%s", text)


def fault_of(context: ssl.SSLContext, certificate: str) -> str | None:
    """What is wrong with the validity period of a server's certificate: found by a client that trusts only it."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certificate)
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(one, other)
    server = context.wrap_bio(other, one, server_side=True)
    for peer in (client, server, client):
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as exc:
            return FAULTS.get(exc.verify_code)
        except ssl.SSLError:
            return None
    return None


def names_of(tls: Tls) -> list[str]:
    """The files of a listener."""
    return [name for name in (tls.certificate, tls.key, tls.client_ca) if name]


def state_of(name: str) -> tuple[int, int, int] | None:
    """State that shows whether a file has changed, or None if it does not exist."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def user_of(certificate: dict[str, Any], kind: str, now: float) -> str:
    """The name in a certificate that OpenSSL has verified.

    Args:
        certificate: as `ssl.SSLObject.getpeercert` gives it.
        kind: as ``client_name`` in `config.Tls`.
        now: the time, in seconds since 1970. A resumed session's certificate was verified when the session began.

    Raises:
        ValueError: there is no name, or more than one, or the certificate has expired.
    """
    if ssl.cert_time_to_seconds(certificate["notAfter"]) < now:
        raise ValueError("the certificate of the client has expired")
    if kind == "cn":
        names = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
    else:
        names = [value for key, value in certificate.get("subjectAltName", ()) if key == SAN[kind]]
    if len(names) != 1:
        raise ValueError(f"the certificate of the client has {names!r} as {kind}, expected one name")
    if not names[0].isprintable() or not names[0]:
        raise ValueError(
            f"the certificate of the client has {names[0]!r} as {kind}, expected characters that can be seen"
        )
    return str(names[0])


class TlsIngress:
    """Takes the handshake, and hands on what is inside.

    Args:
        inner: speaks with the client inside TLS.
        certificates: what the server shows, and what clients must show.
        commands: let a client that is refused read why.
        shared: see `TlsShared`.
        time: a clock in seconds since 1970.
    """

    protocol = "tls"

    def __init__(
        self,
        inner: Ingress,
        certificates: Certificates,
        commands: Commands,
        shared: TlsShared,
        time: Callable[[], float] = clock.time,
    ) -> None:
        self.inner = inner
        self.certificates = certificates
        self.commands = commands
        self.shared = shared
        self.time = time

    async def serve(self, client: Stream, session: Session) -> None:
        """See `Ingress`."""
        session.protocol = self.protocol
        sock = None
        try:
            sock = await accept_tls(client, self.certificates.current(), self.shared, network_of(session.client))
        except RemoteProtocolError as exc:
            session.error = str(exc)
            if isinstance(exc, NothingSent):
                session.silent = session.silent or None
                if isinstance(exc.__cause__, ConnectionError):
                    raise exc.__cause__ from None
        if sock is None:  # here, since the error holds the memory of the handshake
            await self.commands.linger_close(client)
            return
        try:
            certificate = sock.tls.getpeercert()
            if certificate:
                session.user = user_of(certificate, self.certificates.tls.client_name, self.time())
        except ValueError as exc:
            session.error, session.close = f"TLS: {exc}", "denied"
            await self.commands.linger_close(client)
            return
        await self.inner.serve(client, session)
