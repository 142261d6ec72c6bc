"""What several of the commands are tried with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import Serve, serve


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Serve]:
    """A proxy without users."""
    with serve(tmp_path) as running:
        yield running
