"""Check that wire/ and relay/ have all of their branches covered by their own test files alone.

For each module src/tabi/ROOM/NAME.py runs tests/ROOM/test_NAME.py by itself and looks at that module only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("wire", "relay", "policy")


def check(module: Path, folder: Path) -> str | None:
    """Run one module's tests; returns what is wrong."""
    room, name = module.parent.name, module.stem
    test = ROOT / "tests" / room / f"test_{name}.py"
    if not test.exists():
        return f"{module.relative_to(ROOT)}: no {test.relative_to(ROOT)}"
    data = folder / f"{room}.{name}"
    environment = ["--data-file", str(data)]
    run = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        "--branch",
        *environment,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*run, str(test)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return f"{test.relative_to(ROOT)} failed:\n{done.stdout[-2000:]}"
    report = [
        sys.executable,
        "-m",
        "coverage",
        "report",
        *environment,
        "--include",
        str(module),
        "--fail-under=100",
        "-m",
    ]
    done = subprocess.run(report, cwd=ROOT, capture_output=True, text=True)
    return (
        f"{module.relative_to(ROOT)} is not covered by its own test file:\n{done.stdout}" if done.returncode else None
    )


def main() -> int:
    """Check every module of the rooms."""
    modules = [
        module
        for room in ROOMS
        for module in sorted((ROOT / "src" / "tabi" / room).glob("*.py"))
        if module.name != "__init__.py"
    ]
    with tempfile.TemporaryDirectory() as folder:
        problems = [problem for module in modules if (problem := check(module, Path(folder)))]
    print(
        "\n".join(problems) or f"coverage: all branches of {', '.join(ROOMS)} by their own test files ({len(modules)})"
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
