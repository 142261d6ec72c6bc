"""Check that wire/, relay/ and policy/ have all of their branches covered by their own test files alone.

For each module src/tabi/ROOM/NAME.py looks at what tests/ROOM/test_NAME.py has reached of it, and nobody else.

    coverage_of_rooms.py FOLDER    what a run of the tests with TABI_COVERAGE=FOLDER has measured (`make test`)
    coverage_of_rooms.py           runs the tests of these rooms first
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import coverage

from measure import IMPORT, ROOMS, ROOT, SOURCE, make_coverage


def run_tests(folder: str) -> int:
    """Run the tests of the rooms, measured; returns what pytest does."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(os.cpu_count()), "--dist", "worksteal"]
    rooms = [f"tests/{room}" for room in ROOMS]
    return subprocess.run([*command, *rooms], cwd=ROOT, env={**os.environ, "TABI_COVERAGE": folder}).returncode


def check(measured: coverage.Coverage, module: Path) -> str | None:
    """Look at one module; returns what is wrong."""
    test = f"tests/{module.parent.name}/test_{module.stem}.py"
    if not (ROOT / test).exists():
        return f"{module.relative_to(ROOT)}: no {test}"
    if test not in measured.get_data().measured_contexts():
        return f"{test} was not run, or reaches nothing of the rooms"
    report = io.StringIO()
    contexts = [f"^{re.escape(test)}$", f"^{IMPORT}$"]
    if measured.report(include=[str(module)], contexts=contexts, file=report, show_missing=True) < 100:
        return f"{module.relative_to(ROOT)} is not covered by its own test file:\n{report.getvalue()}"
    return None


def check_all(folder: Path) -> int:
    """Check every module of the rooms by the data that processes have left in a folder."""
    measured = make_coverage(folder / ".coverage")  # `combine` reads those that begin so
    measured.combine([str(folder)], keep=True)
    modules = [
        module for room in ROOMS for module in sorted((SOURCE / room).glob("*.py")) if module.name != "__init__.py"
    ]
    problems = [problem for module in modules if (problem := check(measured, module))]
    print(
        "\n".join(problems) or f"coverage: all branches of {', '.join(ROOMS)} by their own test files ({len(modules)})"
    )
    return int(bool(problems))


def main() -> int:
    """Check what was measured, or measure first."""
    if sys.argv[1:]:
        return check_all(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        return run_tests(folder) or check_all(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
