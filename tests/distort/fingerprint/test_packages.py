"""What the extra ``fingerprint`` needs."""

from __future__ import annotations

import sys

import pytest

from tabi.distort.fingerprint.packages import need_utls
from tabi.errors import ConfigError


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to install it, and the key that wants it."""
    need_utls("tls")
    monkeypatch.setitem(sys.modules, "utls", None)
    with pytest.raises(ConfigError) as caught:
        need_utls("tls", "distort[0].tls")
    assert str(caught.value) == "distort[0].tls: tls needs utls: pip install 'tabi[fingerprint]'"
