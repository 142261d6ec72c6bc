"""The table of operations: what each asks, and that the page on the API has all of them."""

from __future__ import annotations

import re
from pathlib import Path

from tabi.admin.description import LISTS, PLAIN
from tabi.admin.operations import EXPLAIN, FAULT, OPERATIONS
from tabi.config.live_faults import FaultKeys
from tabi.server.answers import ABOUT

PAGE = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()


def test_only_reading_is_a_get() -> None:
    """No GET changes anything: a link, or a page of another site, could send it."""
    for one in OPERATIONS:
        assert (one.scope == "read") == (one.method == "GET")
        request = one.make({parameter.name: "1" for parameter in one.parameters}, {"level": "info"})
        if one.method == "GET":
            assert request["command"] not in ("kick", "steer", "reload", "log_level")
            assert request.get("action", "list") == "list"


def test_what_is_in_a_path_is_a_parameter() -> None:
    """And nothing else is one of the path."""
    for one in OPERATIONS:
        places = {parameter.name for parameter in one.parameters if parameter.place == "path"}
        assert set(re.findall(r"\{(\w+)\}", one.path)) == places


def test_requests_are_those_that_the_server_knows() -> None:
    """What workers are asked passes its check."""
    for one in OPERATIONS:
        given = {parameter.name: "1" for parameter in one.parameters if parameter.name != "sort"}
        request = one.make(given, {})
        if request["command"] in ABOUT:
            ABOUT[str(request["command"])].check(request)
        else:
            assert request["command"] in ("status", "fault", "reload", "log_level")


def test_a_fault_has_the_keys_of_the_library() -> None:
    """And how long it stays."""
    assert set(FAULT["properties"]) == {*(name.rstrip("_") for name in FaultKeys.__annotations__), "for"}
    assert "destination" in EXPLAIN["required"]


def test_the_page_on_the_api_has_every_operation() -> None:
    """In the order of the table, with what it does."""
    rows = re.findall(r"^\| `(\w+) (/[^ `]*)` \| (.*?) \|", PAGE, re.M)
    expected = [
        *(("GET", path, text) for path, text, _ in PLAIN),
        *(("GET", path, text) for path, text, _ in LISTS),
        ("POST", "/explain", "What would become of a request, rule by rule, and why."),
        *((one.method, one.path, one.text) for one in OPERATIONS),
    ]
    assert rows == expected
