"""Users and their passwords: scrypt (RFC 7914), constant-time comparison, and a short memory of what was proven.

Where any password is stored as a hash, each login computes one, of a known user or not, stored as a hash or not: the
time tells nothing.

A hash is written ``$scrypt$ln=14,r=8,p=1$SALT$KEY``, salt and key in base64 without padding: the form that passlib and
others use. Computing one takes tens of milliseconds on purpose: never do it in an event loop.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Self

LOG_N, BLOCK, PARALLEL = 14, 8, 1
"""Cost of a new hash: 16 MiB and about 40 ms, what OWASP calls for together with a limit on tries."""

MAX_LOG_N = 20
MAX_MEMORY = (1 << 30) + (1 << 20)
"""Octets that computing a hash may take: 1 GiB and what goes with it. Python passes on no more than 2."""

KEY_SIZE, SALT_SIZE = 32, 16
KEY_SIZES = (16, 32, 64)
"""Octets of the keys that programs make; another size means that the hash was cut or extended."""

PREFIX = "$scrypt$"

PROVEN_SECONDS = 60.0
"""Seconds from its last use that a proof lasts."""

PROVEN_LIMIT = 10_000

Cost = tuple[int, int, int]
"""What a hash costs: log2(N), r and p of RFC 7914."""


class Secret(NamedTuple):
    """What is stored for one password: a salted key, or the password itself if ``log_n`` is 0."""

    log_n: int
    block: int
    parallel: int
    salt: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Secret(scrypt)" if self.log_n else "Secret(plain)"

    @property
    def is_hash(self) -> bool:
        """Whether verifying takes long."""
        return self.log_n > 0

    @property
    def cost(self) -> Cost:
        """What verifying costs."""
        return self.log_n, self.block, self.parallel


def plain_secret(password: str | bytes) -> Secret:
    """Keep a password as it is."""
    return Secret(0, 0, 0, b"", password.encode() if isinstance(password, str) else password)


def make_hash(password: bytes, salt: bytes | None = None) -> str:
    """Hash a password for the configuration. Takes tens of milliseconds."""
    salt = os.urandom(SALT_SIZE) if salt is None else salt
    key = derive(password, Secret(LOG_N, BLOCK, PARALLEL, salt, bytes(KEY_SIZE)))
    return f"$scrypt$ln={LOG_N},r={BLOCK},p={PARALLEL}${to_base64(salt)}${to_base64(key)}"


def parse_hash(text: str) -> Secret:
    """Read a hash that `make_hash` wrote.

    Raises:
        ValueError: it is not such a hash, or its cost is out of bounds. The message does not contain the text.
    """
    expected = "expected $scrypt$ln=…,r=…,p=…$SALT$KEY as `tabi passwd` prints it"
    parts = text.split("$")
    if len(parts) != 5 or parts[0] or parts[1] != "scrypt":
        raise ValueError(expected)
    try:
        costs = dict(part.split("=") for part in parts[2].split(","))
        log_n, block, parallel = (int(costs.pop(name)) for name in ("ln", "r", "p"))
        salt, key = from_base64(parts[3]), from_base64(parts[4])
    except (ValueError, KeyError):
        raise ValueError(expected) from None  # not from that error: it has the text
    if not salt or len(key) not in KEY_SIZES:
        raise ValueError(f"a hash that was cut or changed: {expected}")
    if costs or not (0 < log_n <= MAX_LOG_N and 0 < block <= 32 and 0 < parallel <= 16):
        raise ValueError(f"cost out of bounds: {expected}")
    # RFC 7914 section 2: N is less than 2 ^ (128 * r / 8).
    if log_n >= 16 * block or memory(log_n, block, parallel) > MAX_MEMORY:
        raise ValueError(f"cost out of bounds: {expected}")
    return Secret(log_n, block, parallel, salt, key)


def memory(log_n: int, block: int, parallel: int) -> int:
    """Octets that scrypt needs at this cost, as OpenSSL counts them."""
    return 128 * block * ((1 << log_n) + parallel + 2)


def derive(password: bytes, secret: Secret) -> bytes:
    """The key that a password gives with a secret's salt and cost. Slow."""
    return hashlib.scrypt(
        password,
        salt=secret.salt,
        n=1 << secret.log_n,
        r=secret.block,
        p=secret.parallel,
        maxmem=memory(secret.log_n, secret.block, secret.parallel) + (1 << 20),
        dklen=len(secret.key),
    )


def to_base64(data: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(data).decode().rstrip("=")


def from_base64(text: str) -> bytes:
    """The counterpart of to_base64; bits after the last octet must be 0 (RFC 4648 section 3.5). Raises ValueError."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if to_base64(data) != text.rstrip("="):
        raise ValueError("bits behind the last octet")
    return data


class Users:
    """Names and secrets.

    Args:
        secrets: by user name. A user name is compared as its UTF-8 octets.
        sample: one of them, a hash if there is any. Default: the first hash is looked for.
        costs: how many of the hashes have each cost. Default: that of the sample, or all are looked at.
    """

    def __init__(
        self, secrets: Mapping[str, Secret], sample: Secret | None = None, costs: Mapping[Cost, int] | None = None
    ) -> None:
        self.secrets = secrets
        if sample is None:
            hashes = [secret for secret in secrets.values() if secret.is_hash]
            sample = hashes[0] if hashes else plain_secret(b"")
            costs = Counter(secret.cost for secret in hashes)
        self.is_slow = sample.is_hash
        """Whether `verify` computes a hash."""
        self.decoys: list[tuple[int, Secret]] = []
        total = 0
        for cost, count in sorted((costs or {sample.cost: 1}).items()):
            total += count
            self.decoys.append((total, Secret(*cost, os.urandom(SALT_SIZE), os.urandom(KEY_SIZE))))
        self.decoy_key = sample.salt + sample.key  # the same in all workers and after a reload, and secret
        self.digest_key = os.urandom(32)

    @classmethod
    def plain(cls, passwords: Mapping[str, str]) -> Self:
        """Users from plain passwords, which stay in memory."""
        return cls({name: plain_secret(password) for name, password in passwords.items()})

    def __repr__(self) -> str:
        return f"Users({len(self.secrets)})"

    def find(self, username: bytes) -> tuple[str, Secret | None]:
        """A user's name as text, and the secret if there is such a user."""
        try:
            name = username.decode()
        except UnicodeDecodeError:
            return "", None
        return name, self.secrets.get(name)

    def decoy(self, username: bytes) -> Secret:
        """The hash that is computed for a name without one: always the same for a name, and of each cost for as many
        names as users have such a hash. So the time tells nothing where costs differ."""
        decoys = self.decoys
        if len(decoys) == 1:
            return decoys[0][1]
        digest = hmac.digest(self.decoy_key, username, "sha256")
        place = int.from_bytes(digest[:8], "big") * decoys[-1][0] >> 64
        return next(decoy for until, decoy in decoys if place < until)

    def hashed(self, username: bytes) -> Secret:
        """The secret whose hash is computed for a name, if `is_slow`."""
        secret = self.find(username)[1]
        return secret if secret is not None and secret.is_hash else self.decoy(username)

    def verify(self, username: bytes, password: bytes) -> str | None:
        """Return the user's name if the password is right. Compares octets, in constant time. May be slow."""
        name, secret = self.find(username)
        same = False
        if self.is_slow:
            stored = self.hashed(username)
            same = hmac.compare_digest(derive(password, stored), stored.key)
        if secret is None or not secret.is_hash:
            # Digests have one length, so that the time taken does not tell even the length of the password.
            stored = self.decoys[0][1] if secret is None else secret
            same = hmac.compare_digest(self.digest(password), self.digest(stored.key))
        return name if same and secret is not None else None

    def digest(self, password: bytes) -> bytes:
        """Octets that tell nothing about a password."""
        return hmac.digest(self.digest_key, password, "sha256")


class Proofs:
    """The pairs of name and password that were proven lately, each with what was stored for the user.

    A proof lasts PROVEN_SECONDS from its last use. It ends if something else is stored for the user: a reload need not
    forget the others.
    """

    def __init__(self) -> None:
        self.key = os.urandom(32)
        self.proven: dict[bytes, float] = {}

    def mark(self, username: bytes, password: bytes, stored: Secret | None) -> bytes:
        """A digest for a pair and what is stored for the user, which tells nothing about them."""
        parts = (username, password, *(stored or ()))
        octets = b"".join(b"%d:%b" % (len(one), one) if isinstance(one, bytes) else b"%d," % one for one in parts)
        return hmac.digest(self.key, octets, "sha256")

    def recall(self, mark: bytes, now: float) -> bool:
        """Whether this was proven, or its proof used, less than PROVEN_SECONDS before ``now``. That is a use."""
        until = self.proven.pop(mark, now)
        if until <= now:
            return False
        self.proven[mark] = now + PROVEN_SECONDS
        return True

    def remember(self, mark: bytes, now: float) -> None:
        """Note that this was just proven. Those that were unused longest go first once there are too many."""
        self.proven.pop(mark, None)
        while len(self.proven) >= PROVEN_LIMIT:
            del self.proven[next(iter(self.proven))]
        self.proven[mark] = now + PROVEN_SECONDS
