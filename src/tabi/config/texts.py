"""What the structs of tabi.toml say of themselves: the text behind each key, for help of commands and for editors."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import lru_cache

import msgspec


@lru_cache(8)
def texts_of_module(name: str) -> dict[str, dict[str, str]]:
    """The texts behind the fields of each class of a module; nothing where its source is not there."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except OSError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for part in tree.body:
        if isinstance(part, ast.ClassDef):
            texts = found[part.name] = {}
            for statement, said in zip(part.body, part.body[1:], strict=False):
                if isinstance(statement, ast.AnnAssign) and isinstance(said, ast.Expr):
                    assert isinstance(statement.target, ast.Name)
                    texts[statement.target.id] = in_one_line(ast.literal_eval(said.value))
    return found


def texts_of(kind: type[msgspec.Struct]) -> dict[str, str]:
    """What stands behind each field of a struct, those of its base too, in one line."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        found |= texts_of_module(part.__module__).get(part.__name__, {}) if issubclass(part, msgspec.Struct) else {}
    return found


def in_one_line(text: str) -> str:
    """A docstring as the help of an option has it."""
    return " ".join(text.replace("``", "`").split())
