"""`tabi schema`: the schema as a program gets it."""

from __future__ import annotations

import json

from processes import TABI, environment, run_here, run_program
from tabi.config.json_schema import make_schema


def test_it_is_printed_as_json() -> None:
    """All of it, on standard output."""
    done = run_here("schema")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == make_schema()


def test_it_does_not_depend_on_the_locale() -> None:
    """It has letters beyond ASCII, and JSON is UTF-8."""
    done = run_program(
        [*TABI, "schema"], env=environment() | {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    )
    assert json.loads(done.stdout) == make_schema()
