"""Interception, composed from a configuration: the authority, and what has to be there before anything listens.

Nothing of the room `intercept` is imported unless a configuration has something to look into.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tabi.config import Config


def authority_paths(config: Config, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The files of the authority's certificate and key: those of ``[ca]``, or else what ``tabi ca init`` makes."""
    if config.ca.certificate is not None and config.ca.key is not None:
        return config.ca.certificate, config.ca.key
    home = environment.get("XDG_DATA_HOME", "")
    folder = (Path(home) if home.startswith("/") else Path.home() / ".local" / "share") / "tabi"
    return str(folder / "ca.crt"), str(folder / "ca.key")
