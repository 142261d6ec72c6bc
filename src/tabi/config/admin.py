"""``[admin]`` of tabi.toml: where the running server can be asked and steered, and by whom."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator

import msgspec

from tabi.errors import ConfigError
from tabi.wire.address import Address, parse_address, parse_host

SHORTEST = 16
"""Letters of a token: fewer can be guessed."""

LARGEST = 4096
"""Octets of a file with a token."""


class AdminTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tls`` of ``[admin]``: files in PEM."""

    certificate: str
    """The server's certificate, followed by the intermediate certificates."""
    key: str
    """Its private key, without a passphrase."""


class Admin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[admin]``: the API and the page for operators."""

    listen: str | None = None
    """``127.0.0.1:9180``: where it is. Default: nowhere, only commands ask, through the control socket."""
    token: str | None = None
    """What a client must know to see and change things, 16 letters or more. Default: none, only ``/healthz``,
    ``/readyz`` and ``/metrics`` answer."""
    token_file: str | None = None
    """A file with that token, which others cannot read."""
    read_token: str | None = None
    """What a client must know to see things. Default: none."""
    read_token_file: str | None = None
    """A file with that token, which others cannot read."""
    tls: AdminTls | None = None
    """Certificate and key; needed if it listens anywhere but on loopback. Default: without TLS."""
    hosts: list[str] = []
    """Names by which clients may call it, beside ``localhost`` and addresses. Default: none."""

    def __repr__(self) -> str:
        return f"Admin(listen={self.listen!r})"  # without tokens

    @property
    def address(self) -> Address | None:
        """Where it listens. Raises ValueError."""
        return None if self.listen is None else parse_address(self.listen)


def admin_errors(admin: Admin) -> Iterator[ConfigError]:
    """Everything that is wrong with ``[admin]``, but for its files."""
    for key in ("token", "read_token"):
        token = getattr(admin, key)
        if token is not None and getattr(admin, f"{key}_file") is not None:
            yield ConfigError(f"it contradicts {key}: expected one of both", f"admin.{key}_file")
        if token is not None and wrong(token):
            yield ConfigError(wrong(token), f"admin.{key}")
    if admin.token is not None and admin.token == admin.read_token:
        yield ConfigError("the same as token: whoever may see things could change them", "admin.read_token")
    for index, name in enumerate(admin.hosts):
        try:
            found = parse_host(name)
        except ValueError as exc:
            yield ConfigError(str(exc), f"admin.hosts[{index}]")
            continue
        if not isinstance(found, str) or set(name) & set("/:*@"):
            yield ConfigError(f"{name!r}, expected a name without a port", f"admin.hosts[{index}]")
    try:
        address = admin.address
    except ValueError as exc:
        yield ConfigError(str(exc), "admin.listen")
        return
    if address is None:
        return
    if isinstance(address.host, str) and address.host != "localhost":
        yield ConfigError(f"{address.host}: expected an address, or localhost", "admin.listen")
    elif not is_local(address) and admin.tls is None:
        yield ConfigError("missing: the network can reach it, and without TLS it can read the token", "admin.tls")


def is_local(address: Address) -> bool:
    """Whether only this machine reaches an address."""
    host = address.host
    return host == "localhost" if isinstance(host, str) else host.is_loopback


def wrong(token: str) -> str:
    """What is wrong with a token; nothing: ``""``. It does not say the token."""
    if len(token) < SHORTEST:
        return f"{len(token)} letters, expected {SHORTEST} or more"
    if not token.isascii() or not token.isprintable() or " " in token:
        return "expected letters, digits and signs of ASCII without spaces"
    return ""


def need_packages() -> None:
    """Raise ConfigError if what the API needs is not installed."""
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"it needs {package}: pip install 'tabi[admin]'", "admin.listen")


def read_token(path: str, key: str) -> str:
    """The token in a file. Raises ConfigError."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path}: not a file", key)
            if found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ConfigError(f"{path}: others can read it or write to it: chmod 600", key)
            token = file.read(LARGEST).decode("ascii", "replace").strip()
    except IsADirectoryError:
        raise ConfigError(f"{path}: not a file", key) from None
    except OSError as exc:
        raise ConfigError(f"{path}: {(exc.strerror or str(exc)).lower()}", key) from exc
    if text := wrong(token):
        raise ConfigError(f"{path}: {text}", key)
    return token


def tokens_of(admin: Admin) -> tuple[str | None, str | None]:
    """The token for everything, and the one to see things. Raises ConfigError."""
    found = []
    for key in ("token", "read_token"):
        path = getattr(admin, f"{key}_file")
        found.append(getattr(admin, key) if path is None else read_token(path, f"admin.{key}_file"))
    full, read = found
    if full is not None and full == read:
        raise ConfigError("the same as token: whoever may see things could change them", "admin.read_token_file")
    return full, read
