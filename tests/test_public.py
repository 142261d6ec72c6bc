"""The public names of `tabi`, which are imported when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tabi
import tabi.parts
import tabi.testing
from processes import PATIENCE, environment

SOURCE = Path(tabi.__file__)


def python(code: str) -> str:
    """What a program prints that begins with this."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, timeout=PATIENCE, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there() -> None:
    """`from tabi import *` gives every name of `__all__`, and `dir` lists them."""
    names = python("from tabi import *; print(*[name for name in dir() if name[0] != '_'])").split()
    assert names == sorted(tabi.__all__)
    assert set(tabi.__all__) <= set(dir(tabi))


def test_type_checkers_see_the_same_objects() -> None:
    """What is imported for type checkers is what a program gets: the same names from the same modules."""
    found = {}
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.name] = node.module
    assert set(found) == set(tabi.__all__)
    for name, module in found.items():
        __import__(f"{module}.{name}" if module == "tabi" else str(module))
        assert getattr(tabi, name) is getattr(sys.modules[str(module)], name)


@pytest.mark.parametrize("package", [tabi.parts, tabi.testing], ids=lambda package: str(package.__name__))
def test_a_public_module_has_what_type_checkers_see(package: ModuleType) -> None:
    """Its names are imported when they are first used too: the same objects, from the same modules, and no other."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(Path(str(package.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name: str(node.module) for alias in node.names}
    assert set(found) == set(package.__all__) <= set(dir(package))
    assert len(package.__all__) == len(set(package.__all__))
    for name, module in found.items():
        __import__(module)
        assert getattr(package, name) is getattr(sys.modules[module], name)
        assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Sever'"):
        package.Sever  # noqa: B018


def test_pieces_do_not_bring_a_server() -> None:
    """A server makes pieces of its configuration: only `Listener` needs one."""
    program = "import sys, tabi.parts; tabi.parts.Mixed; print('tabi.server.server' in sys.modules)"
    assert python(program).strip() == "False"


def test_a_wrong_name_is_an_attribute_error() -> None:
    """As in every module."""
    with pytest.raises(AttributeError, match="module 'tabi' has no attribute 'Sever'"):
        tabi.Sever  # type: ignore[attr-defined]  # noqa: B018


def test_the_import_of_the_package_brings_nothing() -> None:
    """Where the program begins, nothing is imported that takes time: no asyncio, no other package, no other room."""
    program = "import sys; before = set(sys.modules); import tabi.__main__; print(*set(sys.modules) - before)"
    names = set(python(program).split())
    assert {"tabi", "tabi.__main__", "tabi.signals"} <= names
    assert not names & {"asyncio", "click", "logging", "msgspec", "socket", "ssl", "typing"}
    assert {name for name in names if name.startswith("tabi")} == {"tabi", "tabi.__main__", "tabi.signals"}
