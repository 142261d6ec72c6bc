"""Pinning: which clients have refused our certificate for which host."""

from __future__ import annotations

from collections import OrderedDict

BOUND = 10_000
"""Pairs of client and host that are remembered; the oldest goes first."""

TTL = 3600.0
"""Seconds after which a pair is forgotten, and the host intercepted again."""

REFUSALS = frozenset(
    (
        "bad_certificate",
        "unsupported_certificate",
        "certificate_revoked",
        "certificate_expired",
        "certificate_unknown",
        "unknown_ca",
        "access_denied",
    )
)
"""Alerts by which a client says that it does not trust the certificate (RFC 8446 section 6.2)."""


class Pinned:
    """Clients that have refused our certificate.

    Args:
        bound: pairs that are remembered.
        ttl: seconds for which one is remembered.
    """

    def __init__(self, bound: int = BOUND, ttl: float = TTL) -> None:
        self.bound = bound
        self.ttl = ttl
        self.until: OrderedDict[tuple[object, str], float] = OrderedDict()

    def add(self, client: object, host: str, now: float) -> None:
        """This client, an address, has refused our certificate for a host; ``now`` is of a monotonic clock."""
        key = client, host
        self.until[key] = now + self.ttl
        self.until.move_to_end(key)
        if len(self.until) > self.bound:
            self.until.popitem(last=False)

    def has(self, client: object, host: str, now: float) -> bool:
        """Whether this client has refused it lately."""
        key = client, host
        until = self.until.get(key)
        if until is None:
            return False
        if until <= now:
            del self.until[key]
            return False
        return True
