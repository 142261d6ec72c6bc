"""Fixtures for the tests of relay/."""

from __future__ import annotations

import pytest

from datagrams import FEATURES, use_features


@pytest.fixture(params=FEATURES)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of what the kernel may offer."""
    use_features(request.param, monkeypatch)
    return str(request.param)
