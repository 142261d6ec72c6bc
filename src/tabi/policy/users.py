"""Users and their passwords: scrypt (RFC 7914), constant-time comparison, and a short memory of what was proven.

A hash is written ``$scrypt$ln=14,r=8,p=1$SALT$KEY``, salt and key in base64 without padding: the form that passlib and
others use. Computing one takes tens of milliseconds on purpose: never do it in an event loop.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
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
PROVEN_LIMIT = 10_000


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
    """Names and secrets, and the pairs of name and password that were proven within the last minute.

    Args:
        secrets: by user name. A user name is compared as its UTF-8 octets.
        sample: one of them, a hash if there is any. Default: the first hash is looked for.
    """

    def __init__(self, secrets: Mapping[str, Secret], sample: Secret | None = None) -> None:
        self.secrets = secrets
        if sample is None:
            sample = next((secret for secret in secrets.values() if secret.is_hash), plain_secret(b""))
        # A client that names an unknown user waits as long as one that names a known user.
        self.decoy = sample._replace(key=os.urandom(KEY_SIZE))
        self.proof_key = os.urandom(32)
        self.proven: dict[bytes, float] = {}

    @classmethod
    def plain(cls, passwords: Mapping[str, str]) -> Self:
        """Users from plain passwords, which stay in memory."""
        return cls({name: plain_secret(password) for name, password in passwords.items()})

    def __repr__(self) -> str:
        return f"Users({len(self.secrets)})"

    def is_slow(self, username: bytes) -> bool:
        """Whether `verify` for this name computes a hash."""
        return (self.find(username)[1] or self.decoy).is_hash

    def find(self, username: bytes) -> tuple[str, Secret | None]:
        """A user's name as text, and the secret if there is such a user."""
        try:
            name = username.decode()
        except UnicodeDecodeError:
            return "", None
        return name, self.secrets.get(name)

    def verify(self, username: bytes, password: bytes) -> str | None:
        """Return the user's name if the password is right. Compares octets, in constant time. May be slow."""
        name, secret = self.find(username)
        stored = self.decoy if secret is None else secret
        if stored.is_hash:
            same = hmac.compare_digest(derive(password, stored), stored.key)
        else:
            # Digests have one length, so that the time taken does not tell even the length of the password.
            same = hmac.compare_digest(self.proof(b"", password), self.proof(b"", stored.key))
        return name if same and secret is not None else None

    def proof(self, username: bytes, password: bytes) -> bytes:
        """A key for a pair, which tells nothing about the pair."""
        return hmac.digest(self.proof_key, len(username).to_bytes(2, "big") + username + password, "sha256")

    def recall(self, username: bytes, password: bytes, now: float) -> str | None:
        """Return the user's name if this pair was proven less than PROVEN_SECONDS before ``now``."""
        proof = self.proof(username, password)
        until = self.proven.get(proof)
        if until is None:
            return None
        if until <= now:
            del self.proven[proof]
            return None
        return username.decode()

    def remember(self, username: bytes, password: bytes, now: float) -> None:
        """Note that this pair was just proven. The oldest go first once there are too many."""
        while len(self.proven) >= PROVEN_LIMIT:
            del self.proven[next(iter(self.proven))]
        self.proven[self.proof(username, password)] = now + PROVEN_SECONDS
