"""Whether the package of the extra ``fingerprint`` is installed. Imports nothing of it."""

from __future__ import annotations

from tabi.errors import ConfigError
from tabi.intercept.packages import is_there


def need_utls(what: str, path: str | None = None) -> None:
    """Raise ConfigError if it is missing.

    Args:
        what: needs it, such as ``tls``.
        path: the key in tabi.toml.
    """
    if not is_there("utls"):
        raise ConfigError(f"{what} needs utls: pip install 'tabi[fingerprint]'", path)
