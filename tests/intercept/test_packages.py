"""Whether the packages of interception are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tabi.errors import ConfigError
from tabi.intercept.packages import PACKAGES, need_packages


@pytest.mark.parametrize("name", PACKAGES)
def test_it_is_said_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of them is missing."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"^intercept: x needs {name}: pip install 'tabi\[intercept\]'$"):
        need_packages("x", "intercept")


def test_none_of_them_is_imported_by_the_question() -> None:
    """Some take tens of milliseconds; a proxy that does not intercept does not pay for them."""
    program = f"""import sys, tabi; from tabi.intercept.packages import need_packages; need_packages("x")
tabi.Server(); print([name for name in {PACKAGES} if name in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"
