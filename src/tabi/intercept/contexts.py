"""TLS contexts of interception: toward clients, with a leaf of our authority, and toward destinations.

How a bad certificate of a destination is found out: OpenSSL verifies in the handshake, and its word counts. After an
`ssl.SSLCertVerificationError` the caller closes the connection and shakes hands on a new one, with
``settings.after(verdict_of(exc))``: the same settings without that one check. All other checks stay, so that a
certificate counts as expired only if it is right in all else. The handshake that succeeds shows the certificate to be
mirrored, and the last verdict is the one to mirror it with; there are at most four. With ``on_invalid = "alert"`` none
follows the first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
import time as clock
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Literal, NamedTuple

from tabi.errors import ConfigError
from tabi.intercept.authority import Authority, Verdict
from tabi.intercept.fingerprints import TlsFingerprint
from tabi.net.kernel import open_memory
from tabi.net.tls import load_certificate

log = logging.getLogger("tabi")

BOUND = 1000
"""Contexts toward clients; 20 KiB each."""

KEY_LOG_BOUND = 64
"""The same with SSLKEYLOGFILE: each has that file open."""

CLIENT_BOUND = 64
"""Contexts toward destinations. One that trusts the system's authorities has 1 MB of them."""

USUAL = frozenset(((), ("h2",), ("http/1.1",), ("h2", "http/1.1")))
"""What is offered to destinations as a rule, by ALPN."""

OTHERS = 16
"""Offers beside these that get contexts. A client chooses what it offers: others would have us make contexts without
end."""

RENEW = 12 * 3600.0
"""Seconds after which a leaf is made anew: its validity was chosen when it was made."""

TICKETS = 1
"""Of TLS 1.3, after a full handshake: each takes 30 us, and each use of one brings another."""

LOOK_EVERY = 1.0
"""Seconds between two looks at files."""

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for."""

Versions = Literal["1.2", "1.3", "both"]
State = tuple[tuple[int, int, int] | None, ...]


def key_log() -> str | None:
    """The file in which NSS key log lines are wanted (SSLKEYLOGFILE), which is made with mode 600 if missing.

    Raises:
        ConfigError: it cannot be written.
    """
    path = os.environ.get("SSLKEYLOGFILE")
    if not path:
        return None
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise ConfigError(f"SSLKEYLOGFILE: {path}: {exc.strerror or exc}") from None
    return path


class Made(NamedTuple):
    """A context toward clients, and when it was made."""

    context: ssl.SSLContext
    at: float


class ServerContexts:
    """The contexts toward clients: those asked for last are kept, for all hosts that show one certificate.

    One takes about 1 ms to make. Clients resume sessions as long as the context is kept.

    Args:
        authority: signs.
        bound: contexts that are kept.

    Raises:
        ConfigError: SSLKEYLOGFILE cannot be written.
    """

    def __init__(self, authority: Authority, bound: int = BOUND) -> None:
        self.authority = authority
        self.key_log = key_log()
        self.bound = min(bound, KEY_LOG_BOUND) if self.key_log else bound
        self.made: OrderedDict[tuple[object, ...], Made] = OrderedDict()

    def get(self, der: bytes | None, verdict: Verdict, host: str, alpn: str | None, now: float) -> ssl.SSLContext:
        """The context for a client.

        Args:
            der: the destination's certificate; None if there is none.
            verdict: on it; see `Authority.mirror`.
            host: the name that the client wants.
            alpn: the protocol that the destination has chosen, the only one that the client may choose.
            now: seconds since 1970.

        Raises:
            OSError: there is neither memory nor a temporary file to load the leaf from.
        """
        key: tuple[object, ...] = sha256(der or b"").digest(), verdict, alpn
        for known in (key, (*key, host)):
            made = self.made.get(known)
            if made is not None and abs(now - made.at) < RENEW:
                self.made.move_to_end(known)
                return made.context
        leaf = self.authority.mirror(der, verdict, host, now)
        try:
            context = self.make(leaf.pem, alpn)
        except ssl.SSLError:  # a subject of strings that are none to OpenSSL
            leaf = self.authority.mirror(None, verdict, host, now)
            context = self.make(leaf.pem, alpn)
        if leaf.for_host:
            key = *key, host
        self.made[key] = Made(context, now)
        self.made.move_to_end(key)
        if len(self.made) > self.bound:
            self.made.popitem(last=False)
        return context

    def make(self, pem: bytes, alpn: str | None) -> ssl.SSLContext:
        """A context that shows a leaf."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = TICKETS
        if self.key_log:
            context.keylog_filename = self.key_log
        if alpn:
            context.set_alpn_protocols([alpn])
        load_pem(context, self.authority.leaf_key_pem + pem)
        return context


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and certificates. `ssl` takes only files: it gets one in memory, or else a temporary one.

    Raises:
        OSError: there is neither.
    """
    fd = open_memory("tabi-leaf")
    try:
        os.write(fd, pem)
        path = f"/proc/self/fd/{fd}"
        if os.path.exists(path):
            context.load_cert_chain(path)
            return
    finally:
        os.close(fd)
    with tempfile.NamedTemporaryFile(prefix="tabi-leaf-") as file:  # without /proc; its mode is 600
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to shake hands with destinations.

    Attributes:
        verify: whether the certificate has to be of an authority that is trusted.
        trust: a file with authorities beside the system's, in PEM.
        certificate: a file with our own certificate, for destinations that want one, in PEM.
        key: the file with its key.
        check_name: whether the certificate has to name the host; see `after`.
        check_time: whether it has to be valid now.
    """

    verify: bool = True
    trust: str | None = None
    certificate: str | None = None
    key: str | None = None
    check_name: bool = True
    check_time: bool = True

    def after(self, verdict: Verdict) -> TlsSettings:
        """The same without the check that gave this verdict; without any, if the certificate is wrong in more."""
        if verdict is Verdict.WRONG_NAME and self.check_name:
            return replace(self, check_name=False)
        if verdict in (Verdict.EXPIRED, Verdict.NOT_YET_VALID) and self.check_time:
            return replace(self, check_time=False)
        return replace(self, verify=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Those that a context is made of."""
        return tuple(name for name in (self.trust, self.certificate, self.key) if name is not None)


class Kept:
    """A context toward destinations, and the state of the files that it was made of."""

    __slots__ = ("context", "looked", "state")

    def __init__(self, context: ssl.SSLContext, state: State, looked: float) -> None:
        self.context = context
        self.state = state
        self.looked = looked


class ClientContexts:
    """The contexts toward destinations. A thread makes each: to read the system's authorities takes 40 ms.

    Args:
        bound: contexts that are kept.
        time: a clock in seconds.

    Raises:
        ConfigError: SSLKEYLOGFILE cannot be written.
    """

    def __init__(self, bound: int = CLIENT_BOUND, time: Callable[[], float] = clock.monotonic) -> None:
        self.bound = bound
        self.time = time
        self.key_log = key_log()
        self.kept: OrderedDict[tuple[object, ...], Kept] = OrderedDict()
        self.making: dict[tuple[object, ...], asyncio.Future[Kept]] = {}
        self.others: set[tuple[str, ...]] = set()

    def get_nowait(
        self,
        settings: TlsSettings,
        protocols: tuple[str, ...],
        versions: Versions = "both",
        fingerprint: TlsFingerprint | None = None,
    ) -> ssl.SSLContext | None:
        """As `get`, or None where a thread has to make it."""
        key: tuple[object, ...] = settings, fingerprint
        if fingerprint is None:
            key = settings, protocols if protocols in USUAL else self.offer(protocols), versions
        kept = self.kept.get(key)
        if kept is None:
            return None
        self.kept.move_to_end(key)
        now = self.time()
        if settings.files and now - kept.looked >= LOOK_EVERY:
            kept.looked = now
            if state_of(settings.files) != kept.state:
                return None
        return kept.context

    async def get(
        self,
        settings: TlsSettings,
        protocols: tuple[str, ...],
        versions: Versions = "both",
        fingerprint: TlsFingerprint | None = None,
    ) -> ssl.SSLContext:
        """The context for handshakes with these settings. All who want one wait for the one thread that makes it.

        It is made anew when a file has changed. If that cannot be used, the context before stays, and the log says so.

        Args:
            settings: the rule's.
            protocols: to be offered by ALPN, best first; none: no ALPN. After `OTHERS` unusual offers others get none.
            versions: of TLS that the client offers.
            fingerprint: what the hello looks like; it says what is offered, in place of the two above.

        Raises:
            ConfigError: a file cannot be used; ``path`` is trust, certificate or key.
        """
        context = self.get_nowait(settings, protocols, versions, fingerprint)
        if context is not None:
            return context
        key: tuple[object, ...] = settings, fingerprint
        if fingerprint is None:
            protocols = protocols if protocols in USUAL else self.offer(protocols)
            key = settings, protocols, versions
        future = self.making.get(key)
        if future is None:
            make = partial(self.make, settings, protocols, versions, fingerprint)
            future = asyncio.get_running_loop().run_in_executor(None, make)
            self.making[key] = future
            future.add_done_callback(lambda done: self.made(key, done))
        try:
            return (await asyncio.shield(future)).context
        except ConfigError as exc:
            kept = self.kept.get(key)
            if kept is None:
                raise
            state = state_of(settings.files)
            if state != kept.state:  # once for all who have waited
                log.error("%s; what was read before stays", exc)
                kept.state = state
            return kept.context

    def offer(self, protocols: tuple[str, ...]) -> tuple[str, ...]:
        """What is offered in place of an unusual offer: those of its names that `ssl` can take, or none."""
        protocols = tuple(name for name in protocols if name.isascii() and 0 < len(name) < 256)
        if protocols in self.others or protocols in USUAL:
            return protocols
        if len(self.others) >= OTHERS:
            return ()
        self.others.add(protocols)
        return protocols

    def made(self, key: tuple[object, ...], done: asyncio.Future[Kept]) -> None:
        """A thread is ready, whether or not somebody still waits."""
        del self.making[key]
        if done.cancelled() or done.exception() is not None:
            return
        self.kept[key] = done.result()
        self.kept.move_to_end(key)
        if len(self.kept) > self.bound:
            self.kept.popitem(last=False)

    def make(
        self,
        settings: TlsSettings,
        protocols: Sequence[str],
        versions: Versions,
        fingerprint: TlsFingerprint | None = None,
    ) -> Kept:
        """Make one, in a thread. Errors as `get`."""
        now, state = (
            self.time(),
            state_of(settings.files),
        )  # before they are read: a later change shows at the next look
        context = make_context(protocols, versions) if fingerprint is None else fingerprint.make()
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.check_hostname = settings.verify and settings.check_name
        if settings.verify:
            context.load_default_certs()
            if not settings.check_time:
                context.verify_flags |= NO_CHECK_TIME
            if settings.trust is not None:
                load_trust(context, settings.trust)
        else:
            context.verify_mode = ssl.CERT_NONE
        if settings.certificate is not None:
            load_certificate(context, settings.certificate, settings.key or settings.certificate)
        if self.key_log:
            context.keylog_filename = self.key_log
        return Kept(context, state, now)


def make_context(protocols: Sequence[str], versions: Versions) -> ssl.SSLContext:
    """A context with what is to be offered to a destination, which trusts nobody yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if versions == "1.3" else ssl.TLSVersion.TLSv1_2
    if versions == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def load_trust(context: ssl.SSLContext, path: str) -> None:
    """Trust the certificates of a file too, whether or not they are authorities of their own. Raises ConfigError."""
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as curl does: a server's own may be there
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(f"{path}: no certificates in PEM", "trust") from None
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or exc}", "trust") from None


def state_of(paths: Sequence[str]) -> State:
    """State that shows whether a file has changed; None for a missing one."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((state.st_ino, state.st_mtime_ns, state.st_size))
    return tuple(found)
