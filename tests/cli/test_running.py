"""What commands share that ask the running server: tables, figures for people, exit codes."""

from __future__ import annotations

import pytest

from tabi.cli.running import code_of, columns, octets, seconds, show, terminal_width


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_940, "9.9 kB"),
        (18_400, "18 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_200_000_000, "1.2 GB"),
        (5e12, "5.0 TB"),
        (5e15, "5,000.0 TB"),
    ],
)
def test_octets_for_people(number: float, text: str) -> None:
    """Two figures or three, in the unit that is right for them."""
    assert octets(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.0 s"),
        (3.24, "3.2 s"),
        (59, "59 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172_800, "2 d"),
    ],
)
def test_times_for_people(number: float, text: str) -> None:
    """The same."""
    assert seconds(number) == text


def test_a_table_fits_a_terminal() -> None:
    """What controls one is escaped before its width is counted; lines that are too long are cut."""
    rows = [("name", "up"), ("a\x1b[2J\udcff", "5"), ("b", "12345")]
    assert list(columns(rows, (1,), None)) == [
        "name               up",
        r"a\x1b[2J\udcff      5",
        "b               12345",
    ]
    assert list(columns(rows, (), 6)) == ["name …", r"a\x1b…", "b    …"]


def test_any_name_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that is no text."""
    show(iter(["a\udcffb", "é"]))
    assert capsys.readouterr().out == "a\\udcffb\né\n"
    assert terminal_width() is None


def test_who_was_silent_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code 1."""
    assert code_of({"silent": []}) == 0
    assert code_of({"silent": [5, 6]}, "; later") == 1
    assert capsys.readouterr().err == (
        "tabi: worker 5 has not answered in time; later\ntabi: worker 6 has not answered in time; later\n"
    )
