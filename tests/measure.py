"""Measures which branches of wire/, relay/ and policy/ each of their test files reaches, while all tests run.

conftest.py uses this where TABI_COVERAGE names a folder. Each process writes one file of data there, whose contexts (as
coverage.py calls them) are the test files and ``import``, and `tests/coverage_of_rooms.py` reads them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "tabi"
ROOMS = ("wire", "relay", "policy")
IMPORT = "import"
"""The context of what every import executes."""

os.environ.setdefault("COVERAGE_CORE", "ctrace")  # the one that knows contexts on every Python


def make_coverage(data: Path | None) -> coverage.Coverage:
    """Measure the branches of the rooms only: everything would take twice as long."""
    rooms = [str(SOURCE / room / "*") for room in ROOMS]
    return coverage.Coverage(data_file=data, branch=True, source_pkgs=[], include=rooms)


class Measure:
    """The measuring of one process."""

    def __init__(self, folder: Path) -> None:
        self.coverage = make_coverage(folder / f".coverage.{os.getpid()}")
        self.caches: set[Any] = set()
        """Of functions that keep what they have returned: a test of another file may have asked the same before."""
        with self.on(IMPORT):
            # All of them here: else their first lines would belong to the test file that is loaded first.
            for room in ROOMS:
                for found in pkgutil.iter_modules([str(SOURCE / room)]):
                    module = importlib.import_module(f"tabi.{room}.{found.name}")
                    self.caches.update(one for one in vars(module).values() if hasattr(one, "cache_clear"))

    @contextlib.contextmanager
    def on(self, context: str) -> Iterator[None]:
        """Measure for as long as this lasts."""
        self.coverage.start()
        self.coverage.switch_context(context)
        try:
            yield
        finally:
            self.coverage.stop()

    def of(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """Measure what a test file does, if it is one of the rooms'."""
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(tuple(f"tests/{room}/" for room in ROOMS)):
            return contextlib.nullcontext()
        for one in self.caches:
            one.cache_clear()
        return self.on(name)

    def save(self) -> None:
        """Write the data."""
        self.coverage.save()


@functools.cache
def start() -> Measure | None:
    """Begin, before anything of tabi is imported, if the environment says so. Once: conftest.py is loaded twice where a
    test imports it by a name that pytest has not given it."""
    folder = os.environ.get("TABI_COVERAGE")
    return Measure(Path(folder).resolve()) if folder else None
