"""tests/ mirrors src/tabi: who looks for the tests of a module knows their file, and every module has one."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src" / "tabi"

WITHOUT = {
    "__init__.py": "names of other modules, and words",
    "__main__.py": "one call, which every test that starts a process makes",
}
"""Names of modules that need no test file, and why."""

OF_THE_WHOLE = {
    "admin/test_page.py": "the page for operators, in a browser",
    "intercept/test_certificates.py": "certificates of destinations, as clients meet them",
    "config/test_config.py": "from a text to a configuration, through every module of the room",
    "distort/test_over_sockets.py": "each fault as the ends of connections and associations meet it",
    "distort/test_toxiproxy.py": "what another program does to connections, and what faults do",
    "server/test_closing.py": "the end of all that a server and a client own",
    "server/test_decide.py": "the hook of a whole server",
    "server/test_egress.py": "ways out of a whole server",
    "server/test_guard.py": "the guard as clients meet it",
    "server/test_limits.py": "limits as clients meet them",
    "server/test_policy.py": "rules as clients meet them",
    "server/test_rebinding.py": "names whose answers change, as clients meet them",
    "server/test_sniffing.py": "sniffing as clients meet it",
    "client/test_chains.py": "the client through every chain of two",
    "test_conformance.py": "the points of docs/conformance.md",
    "test_docs.py": "the pages of docs/",
    "test_examples.py": "examples/",
    "test_garbage.py": "what sessions leave to the collector",
    "test_layers.py": "who imports whom",
    "test_mirror.py": "this",
    "test_packaging.py": "the wheel and packaging/",
    "test_processes.py": "tests/processes.py",
    "test_public.py": "the names that the package offers",
    "test_sandbox.py": "`tabi serve` where calls are refused",
    "test_typing.py": "tests/typing/, the project of somebody else",
}
"""Test files without a module of that name, and what they test. Those of interop/ have a foreign program's name."""


def modules() -> set[str]:
    """Every module, as ``wire/socks5.py``."""
    return {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.name not in WITHOUT}


def named_by_tests() -> set[str]:
    """What the names of test files say that they test: ``wire/socks5.py`` for ``wire/test_socks5.py``."""
    paths = (path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if path.parent.name != "interop")
    return {(path.parent / path.name.removeprefix("test_")).as_posix() for path in paths}


def test_every_module_has_its_test_file() -> None:
    """``src/tabi/wire/socks5.py`` has ``tests/wire/test_socks5.py``."""
    assert modules() - named_by_tests() == set()


def test_every_test_file_has_its_module() -> None:
    """One that is left behind by a module that was moved, or has a name of its own without a reason, is found."""
    of_the_whole = {(Path(name).parent / Path(name).name.removeprefix("test_")).as_posix() for name in OF_THE_WHOLE}
    assert named_by_tests() - modules() - of_the_whole == set()
    assert of_the_whole - named_by_tests() == set()


def unused(function: ast.FunctionDef) -> set[str]:
    """What a test defines or asks for, to be run, and then does not use."""
    parts = [part for statement in function.body for part in ast.walk(statement)]
    used = {part.id for part in parts if isinstance(part, ast.Name)}
    inner = {part.name for part in function.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    asked = {argument.arg for argument in function.args.args} & {"run", "run_once"}
    return (inner | asked) - used


def test_no_test_forgets_to_run_what_it_holds() -> None:
    """A test whose ``async def main()`` is never run cannot fail. Nor does one ask for a loop that it does not use."""
    found = {
        f"{path.relative_to(TESTS)}: {part.name}: {names}"
        for path in TESTS.rglob("test_*.py")
        for part in ast.parse(path.read_text()).body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_") and (names := unused(part))
    }
    assert found == set()
