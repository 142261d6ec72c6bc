"""What type checkers see of the installed package: a project of somebody else, tests/typing/, that mypy checks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tabi
import tabi.config
import tabi.parts
import tabi.testing
import tabi.wire

PROJECT = Path(__file__).resolve().parent / "typing"
CACHE = PROJECT.parent.parent / ".cache" / "mypy-of-a-foreign-project"
WRONG = PROJECT / "wrong.py"
FILES = sorted({*PROJECT.glob("*.py")} - {WRONG})
SECONDS = 150
"""For mypy, which reads the whole package where it has kept nothing."""

pytestmark = pytest.mark.timeout(SECONDS)


def check(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy in the project, by its own settings and not by ours."""
    env = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    options = ("--cache-dir", str(CACHE), "--no-error-summary", "--hide-error-context")
    command = [sys.executable, "-m", "mypy", *options, *map(str, files)]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=SECONDS)


def test_a_project_of_somebody_else_passes_strict() -> None:
    """Every use that is right is right for mypy --strict too, against the package as it is installed."""
    done = check(*FILES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mistakes_are_found() -> None:
    """In each line of wrong.py exactly those that it says, so that no type is so wide that it says nothing."""
    said = Counter(
        (number, code)
        for number, line in enumerate(WRONG.read_text().splitlines(), 1)
        for code in line.partition("# wrong: ")[2].split()
    )
    done = check(WRONG)
    found = re.findall(r"^wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)
    assert Counter((int(number), code) for number, code in found) == said, done.stdout
    assert len(re.findall(": error: ", done.stdout)) == len(found)


@pytest.mark.parametrize(
    "module", [tabi, tabi.config, tabi.parts, tabi.testing, tabi.wire], ids=lambda module: module.__name__
)
def test_the_project_uses_every_public_name(module: object) -> None:
    """A name that is added is used there: a name or an attribute, or imported."""
    used = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Name):
                used.add(node.id)
    assert set(vars(module)["__all__"]) - used == set()


@pytest.mark.parametrize("name", ["hooks.py", "datagram_hooks.py"])
def test_a_file_of_hooks_passes_strict(name: str) -> None:
    """An example is typed as it stands, without a base class."""
    done = check(PROJECT.parent.parent / "examples" / name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
