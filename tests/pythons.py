"""Run the tests that are pure, those of wire/, policy/ and config/, on every other Python that this machine has.

That is each from 3.11 on which PATH or pyenv offers as python3.12 or the like. Each gets an environment of its own,
.venv-3.12. Where there is none, nothing is run. Properties are tried with few examples: which
ones does not depend on the version.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST, LAST = 11, 30
NEEDED = [
    *("pytest", "pytest-timeout", "hypothesis", "coverage", "rich"),
    *("dnspython[doh]", "h2", "hpack", "hyperframe", "jsonschema", "websockets"),
]
"""What these tests need of the development group, by name: the versions are those of pyproject.toml."""
TESTS = ["tests/wire", "tests/policy", "tests/config"]
ASK = "import ensurepip, ssl, sys; print(*sys.version_info[:2], sys.implementation.name)"


def find_python(minor: int) -> str | None:
    """A CPython of that version which runs, and can make environments."""
    name = f"python3.{minor}"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders += sorted(pyenv.glob(f"versions/3.{minor}.*/bin"), reverse=True)
    for folder in folders:
        # pyenv's shims are there for versions too that are not switched on: then they fail.
        if os.access(folder / name, os.X_OK):
            done = subprocess.run([folder / name, "-c", ASK], capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.split() == ["3", str(minor), "cpython"]:
                return str(folder / name)
    return None


def requirements() -> list[str]:
    """What to install: tabi itself, and what these tests need."""
    printed = subprocess.run(
        [sys.executable, ROOT / "tests" / "requirements.py"], capture_output=True, text=True, check=True
    )
    return ["--editable", str(ROOT), *(line for line in printed.stdout.splitlines() if line.split(">")[0] in NEEDED)]


def prepare(python: str, minor: int) -> Path:
    """Make the environment of a version, or bring it up to date; returns its interpreter."""
    folder = ROOT / f".venv-3.{minor}"
    interpreter, stamp = folder / "bin" / "python", folder / "installed"
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    sources = (ROOT / "pyproject.toml", Path(__file__))
    if not stamp.exists() or any(stamp.stat().st_mtime < source.stat().st_mtime for source in sources):
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements()], check=True)
        stamp.touch()
    return interpreter


def run_tests(minor: int, python: str) -> bool:
    """Run them on one version, say how that ended, and whether it was well."""
    command = [str(prepare(python, minor)), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    env = {"TABI_HYPOTHESIS": "few", **os.environ}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = done.stdout if done.returncode else done.stdout.splitlines()[-1]
    print(f"Python 3.{minor}, {' '.join(TESTS)}: {said}", flush=True)
    return not done.returncode


def main() -> int:
    """Run them on each version, as many at once as there are cores; fails if one of them does."""
    others = (minor for minor in range(FIRST, LAST) if minor != sys.version_info.minor)
    found = {minor: python for minor in others if (python := find_python(minor))}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return int(not all(list(threads.map(run_tests, found, found.values()))))


if __name__ == "__main__":
    sys.exit(main())
