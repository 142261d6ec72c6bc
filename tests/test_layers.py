"""The rooms of ARCHITECTURE.md and who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tabi"

ROOMS = (
    "errors",
    "signals",
    "wire",
    "url",
    "session",
    "policy",
    "config",
    "net",
    "observe",
    "relay",
    "egress",
    "client",
    "intercept",
    "ingress",
    "distort",
    "parts",
    "server",
    "admin",
    "parts.listener",
    "launch",
    "testing",
    "__init__",
    "cli",
    "__main__",
)
"""Lowest first. A module imports from its own room and from those before it."""

IO = {"asyncio", "socket", "ssl", "select", "selectors", "subprocess", "threading", "time", "logging"}
"""What a room without I/O and without a clock does not import."""

MODULES = sorted(SOURCE.rglob("*.py"))


def room_of(module: str) -> str:
    """``tabi.net.dial`` -> ``net``; ``tabi`` -> ``__init__``."""
    if module in ("tabi.parts", "tabi.parts.listener"):  # what runs pieces is a server, which needs pieces itself
        return "parts.listener"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every module that a file imports, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from tabi import wire` imports a room, `from tabi import Server` the package
            rooms = [f"tabi.{alias.name}" for alias in node.names if node.module == "tabi" and alias.name in ROOMS]
            found += [(node.lineno, name) for name in (rooms or [node.module or ""])]
    return found


def module_name(path: Path) -> str:
    """``src/tabi/net/dial.py`` -> ``tabi.net.dial``."""
    parts = ["tabi", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if len(parts) > 2 and parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_its_own_room_and_those_below(path: Path) -> None:
    """The import rule: data flows one way, and so do the imports."""
    room = room_of(module_name(path))
    for line, name in imports_of(path):
        if name.split(".")[0] == "tabi":
            assert ROOMS.index(room_of(name)) <= ROOMS.index(room), f"{path}:{line}: {room} imports {name}"


@pytest.mark.parametrize("room", ["errors", "wire", "url", "session", "policy"])
def test_the_lower_rooms_have_no_io(room: str) -> None:
    """wire/ and policy/ can be used and tested without a socket, a loop or a clock."""
    for path in MODULES:
        if room_of(module_name(path)) == room:
            for line, name in imports_of(path):
                assert name.split(".")[0] not in IO, f"{path}:{line}: {room} imports {name}"


def test_every_room_is_listed() -> None:
    """A new room gets its place in the order."""
    assert {room_of(module_name(path)) for path in MODULES} <= set(ROOMS)
