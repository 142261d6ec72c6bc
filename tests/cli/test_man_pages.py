"""What manual pages are made of; tests/cli/test_man.py shows them."""

from __future__ import annotations

import pytest

from tabi.cli.main import app
from tabi.cli.man_pages import escape, filled, heading, make_pages, prose
from tabi.cli.tree import make_tree
from tabi.config.json_schema import find_structs
from tabi.config.schema import Config, Timeouts, Udp


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (".TH x", "\\&.TH x"),
        ("a\\nb", "a\\enb"),
        ("--open", "\\-\\-open"),
        ("'it' `is` ~^", "\\(aqit\\(aq \\(gais\\(ga \\(ti\\(ha"),
    ],
)
def test_what_means_something_to_roff_is_text(text: str, escaped: str) -> None:
    """A macro at the beginning of a line, an escape, a quote: all can be copied from the page as they were."""
    assert escape(text) == escaped


def test_paragraphs_stay_apart() -> None:
    """Those that click leaves alone are left alone here; an example stands alone."""
    assert list(prose("One\nparagraph.\n\n\b\ntabi a\n  tabi b\n\nExample:  tabi\n  c")) == [
        "One paragraph.",
        ".PP",
        *(".nf", ".RS 4", "tabi a", "tabi b", ".RE", ".fi"),
        ".PP",
        "Example:",
        ".PP",
        *(".nf", ".RS 4", "tabi c", ".RE", ".fi"),
    ]
    assert list(prose("")) == []


def test_what_stands_in_backquotes_is_bold() -> None:
    """As commands and keys are."""
    assert filled("see `tabi ca`.") == ["see \\fBtabi ca\\fR."]
    assert filled("") == ["\\&"]


def test_each_table_has_a_name_of_its_own() -> None:
    """Whoever looks for a key finds its table."""
    headings = [heading(kind) for kind in find_structs(Config, {})]
    assert len(set(headings)) == len(headings)
    assert (heading(Config), heading(Timeouts), heading(Udp)) == ("Top level", "[timeouts]", "udp of a listener")


def test_they_are_the_same_each_time() -> None:
    """So that packages can be built again."""
    assert make_pages(make_tree(app)) == make_pages(make_tree(app))
