"""Whether the packages of the extra ``intercept`` are installed. Imports none of them."""

from __future__ import annotations

from importlib.util import find_spec

from tabi.errors import ConfigError

PACKAGES = ("cryptography", "websockets", "brotli", "zstandard")


def need_packages(what: str, path: str | None = None) -> None:
    """Raise ConfigError if one is missing.

    Args:
        what: needs them, such as ``tabi ca``.
        path: the key in tabi.toml.
    """
    for name in PACKAGES:
        if not is_there(name):
            raise ConfigError(f"{what} needs {name}: pip install 'tabi[intercept]'", path)


def is_there(name: str) -> bool:
    """Whether a package can be imported."""
    try:
        return find_spec(name) is not None
    except ValueError:  # None stands for it in sys.modules, as tests have it
        return False
