"""What interception is composed of: where its files are, and what is missing before anything listens."""

from __future__ import annotations

from pathlib import Path

from tabi.config import Ca, Config
from tabi.server.interception import authority_paths


def test_the_authority_is_in_the_users_data_directory() -> None:
    """As XDG has it, a relative path there counts for nothing; the configuration may name other files."""
    assert authority_paths(Config(), {"XDG_DATA_HOME": "/data"}) == ("/data/tabi/ca.crt", "/data/tabi/ca.key")
    home = str(Path.home() / ".local" / "share" / "tabi")
    for environment in ({}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "data"}):
        assert authority_paths(Config(), environment) == (f"{home}/ca.crt", f"{home}/ca.key")
    assert authority_paths(Config(ca=Ca("/c", "/k")), {}) == ("/c", "/k")
