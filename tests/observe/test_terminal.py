"""Lines for people: colours on a terminal alone, and figures of few digits."""

from __future__ import annotations

import contextlib
import os
import pty

import pytest

from tabi.observe.terminal import RED, painted, shown_size, shown_time, wants_colour


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1234, "1.2 kB"), (9_940, "9.9 kB"), (9_950, "10 kB")),
        *(
            (18_000, "18 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (1_500_000, "1.5 MB"),
            (2_500_000_000, "2.5 GB"),
        ),
        (5_000_000_000_000, "5000 GB"),
    ],
)
def test_sizes(octets: int, text: str) -> None:
    """Two digits at least, of the unit that fits."""
    assert shown_size(octets) == text


def test_times() -> None:
    """Milliseconds below a second, and hours for what lasts long."""
    assert [shown_time(value) for value in (0, 0.0354, 0.9994, 0.9996, 12.34, 99.9, 100, 5969, 5970, 90_000)] == [
        *("0 ms", "35 ms", "999 ms", "1.0 s", "12.3 s", "99.9 s", "2 min", "99 min", "1.7 h", "25.0 h"),
    ]


def test_colours_are_for_terminals() -> None:
    """NO_COLOR and a dumb terminal have none, nor has a pipe."""
    with contextlib.ExitStack() as closing:
        fds = (*pty.openpty(), *os.pipe())
        for fd in fds:
            closing.callback(os.close, fd)
        _, terminal, _, pipe = fds
        assert wants_colour(terminal, {})
        assert wants_colour(terminal, {"NO_COLOR": "", "TERM": "xterm"})
        assert not wants_colour(terminal, {"NO_COLOR": "1"})
        assert not wants_colour(terminal, {"TERM": "dumb"})
        assert not wants_colour(pipe, {})


def test_painting() -> None:
    """The colour ends with the text; without one nothing is added."""
    assert painted("a", RED, True) == "\x1b[31ma\x1b[0m"
    assert painted("a", None, True) == painted("a", RED, False) == "a"
