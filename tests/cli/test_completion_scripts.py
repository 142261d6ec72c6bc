"""What the scripts of `tabi completion` are made of; tests/cli/test_completion.py tries them in their shells."""

from __future__ import annotations

import pytest

from tabi.cli.completion_scripts import (
    first_sentence,
    fish_quote,
    fish_value,
    write_bash,
    write_fish,
    write_zsh,
    zsh_quote,
)
from tabi.cli.main import app
from tabi.cli.tree import Value, make_tree, walk

TREE = make_tree(app)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Which one.", "Which one"),
        ("Listen here; may be repeated. Default: 1.", "Listen here; may be repeated"),
        ("3g, edge, offline …, or one of [profile.NAME]. More.", "3g, edge, offline …, or one of [profile.NAME]"),
        ("Two\n  lines", "Two lines"),
        ("", ""),
    ],
)
def test_there_is_room_for_a_sentence(text: str, sentence: str) -> None:
    """The first one, without its full stop."""
    assert first_sentence(text) == sentence


def test_quotes_are_kept_in_the_way_of_each_shell() -> None:
    """A quote ends no word."""
    assert zsh_quote("it's") == "'it'\\''s'"
    assert fish_quote("it's \\") == "'it\\'s \\\\'"


def test_every_option_is_in_every_script() -> None:
    """Of each command; so a new one needs nothing here."""
    bash, zsh, fish = write_bash(TREE), write_zsh(TREE), write_fish(TREE)
    for node in walk(TREE):
        for option in node.options:
            for name in option.names:
                assert name in bash
                assert f"{name}[" in zsh or f"{name}=[" in zsh or f"{name}+[" in zsh
                assert f"-l {name[2:]}" in fish if name.startswith("--") else f"-s {name[1:]}" in fish


def test_nothing_is_offered_where_nobody_knows() -> None:
    """A name of a user, say."""
    assert fish_value(Value()) == ""
    assert fish_value(Value(("a", "b"), "file")) == "-a 'a b' -F"
