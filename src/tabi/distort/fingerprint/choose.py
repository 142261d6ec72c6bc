"""Which fingerprint a session has: ``tls`` and ``profile`` of the ``[[distort]]`` entries that it was chosen by.

Of several the last one counts. Clients choose what they send, so there is a bound to the kinds of hello that are
mirrored anew in a minute; what is beyond it goes out with tabi's own hello, and the log says so.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from time import monotonic

from tabi.distort.fingerprint.http2 import MirrorHttp, ProfileHttp
from tabi.distort.fingerprint.presets import MIRROR, find_profile
from tabi.intercept.fingerprints import Fingerprint, HttpFingerprint, TlsFingerprint
from tabi.policy.distorts import Distort
from tabi.session import Session
from tabi.wire.client_hello import ClientHello

log = logging.getLogger("tabi")

KINDS = 256
"""Kinds of hello that are remembered."""

NEW_KINDS, WITHIN = 60, 60.0
"""Kinds that are mirrored for the first time in so many seconds, at most: each takes 50 ms of a thread."""

Choose = Callable[[Session, str | None], Iterable[Distort]]
"""The entries that a session was chosen by, in their order; also asked for the name in its hello."""


class Chooser:
    """Chooses. See `intercept.fingerprints.Fingerprints`.

    Args:
        chosen: see `Choose`.
        time: a clock in seconds.
    """

    def __init__(self, chosen: Choose, time: Callable[[], float] = monotonic) -> None:
        self.chosen = chosen
        self.time = time
        self.kinds: OrderedDict[bytes, None] = OrderedDict()
        self.new = 0
        self.since = time()

    def choose(self, session: Session, hello: ClientHello | None = None, octets: bytes = b"") -> Fingerprint | None:
        """See `Fingerprints.choose`."""
        tls = profile = None
        for entry in self.chosen(session, None if hello is None else hello.sni):
            tls = entry.tls or tls
            profile = (entry.rewrite.profile if entry.rewrite is not None else None) or profile
        if tls is None and profile is None:
            return None
        http: HttpFingerprint = MIRROR_HTTP if profile is None else profile_http(profile)
        if tls is None or hello is None:
            return Fingerprint(None, http)
        return Fingerprint(self.mirror(octets) if tls == MIRROR else preset_for(tls, hello), http)

    def mirror(self, octets: bytes) -> TlsFingerprint:
        """The client's own fingerprint."""
        from tabi.distort.fingerprint.mirror import Mirror, Unmirrored

        found = Mirror(octets)
        if found.key in self.kinds:
            self.kinds.move_to_end(found.key)
            return found
        now = self.time()
        if now - self.since >= WITHIN:
            self.new, self.since = 0, now
        if self.new == NEW_KINDS:
            log.warning("mirror: more than %d new kinds of hello in %g s are not mirrored", NEW_KINDS, WITHIN)
        self.new += 1
        if self.new > NEW_KINDS:
            return Unmirrored(octets)
        self.kinds[found.key] = None
        if len(self.kinds) > KINDS:
            self.kinds.popitem(last=False)
        return found


HTTP1 = ("http/1.1",)
MIRROR_HTTP = MirrorHttp()


@cache
def profile_http(name: str) -> ProfileHttp:
    """What a browser shows of HTTP. Raises ConfigError."""
    return ProfileHttp(find_profile(name))


@cache
def protocols_of_preset(name: str) -> tuple[str, ...]:
    """What a preset offers by ALPN."""
    import utls

    return tuple(utls.Fingerprint.from_preset(name).to_dict()["alpn"])


def preset_for(name: str, hello: ClientHello) -> TlsFingerprint:
    """A preset, with those of its protocols that the client speaks too; with the client's if there are none. Who names
    none is taken to speak HTTP/1.1."""
    from tabi.distort.fingerprint.mirror import Preset

    offered = tuple(one.decode("latin-1") for one in hello.alpn)
    common = tuple(one for one in protocols_of_preset(name) if one in (offered or HTTP1))
    return Preset(name, common or tuple(one for one in offered[:4] if one.isascii() and one))
