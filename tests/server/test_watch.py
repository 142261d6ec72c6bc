"""Files of a configuration are watched: every change is seen, once, and when it is over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tabi.server.watch import INTERVAL, PATIENCE, Watch

MAIN = 'include = ["conf.d/*.toml"]\n[auth]\nusers_file = "users"\n'


class Clock:
    """Looks at files once in an interval, and counts the changes."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.watch = Watch(path)

    def changes(self, looks: int = 3) -> int:
        """How many there are in so many looks."""
        found = 0
        for _ in range(looks):
            self.now += INTERVAL
            found += self.watch.has_changed(self.now)
        return found


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A tabi.toml that includes and names others."""
    path = tmp_path / "tabi.toml"
    path.write_text(MAIN)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.toml").write_text('[[rule]]\naction = "deny"\nhosts_file = ["hosts"]\n')
    (tmp_path / "conf.d" / "hosts").write_text("a.test\n")
    (tmp_path / "users").write_text("")
    return Clock(path)


def replace(path: Path, text: str) -> None:
    """As editors do it: another file takes the name."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.rename(path)


def test_each_file_is_watched_and_each_change_counts_once(clock: Clock, tmp_path: Path) -> None:
    """Written, replaced, new, gone; a change of what the file does not name is none."""
    assert clock.changes() == 0
    (tmp_path / "tabi.toml").write_text(MAIN + "# more\n")
    assert clock.changes() == 1
    replace(tmp_path / "tabi.toml", MAIN + "# mOre\n")
    assert clock.changes() == 1
    (tmp_path / "conf.d" / "hosts").write_text("b.test and more\n")
    assert clock.changes() == 1
    replace(tmp_path / "users", "")
    assert clock.changes() == 1
    (tmp_path / "conf.d" / "b.toml").write_text("")
    assert clock.changes() == 1
    (tmp_path / "conf.d" / "b.toml").unlink()
    assert clock.changes() == 1
    shutil.rmtree(tmp_path / "conf.d")
    assert clock.changes() == 1
    (tmp_path / "other").write_text("x")
    assert clock.changes() == 0


def test_what_is_named_by_a_newer_file_is_watched_too(clock: Clock, tmp_path: Path) -> None:
    """And what is not named any more is not."""
    (tmp_path / "conf.d" / "a.toml").write_text('[[rule]]\naction = "deny"\nnetworks_file = "networks"\n')
    assert clock.changes() == 1
    (tmp_path / "conf.d" / "networks").write_text("10.0.0.0/8\n")
    assert clock.changes() == 1
    (tmp_path / "conf.d" / "hosts").write_text("b.test and more\n")
    assert clock.changes() == 0


def test_a_broken_file_is_tried_again_when_it_changes(clock: Clock, tmp_path: Path) -> None:
    """It still knows what it knew, so that it does not matter which file is mended."""
    (tmp_path / "tabi.toml").write_text("include = [")
    assert clock.changes() == 1
    assert clock.changes() == 0
    (tmp_path / "conf.d" / "hosts").write_text("b.test and more\n")
    assert clock.changes() == 1
    (tmp_path / "tabi.toml").write_text(MAIN)
    assert clock.changes() == 1


def test_it_waits_until_nothing_changes(clock: Clock, tmp_path: Path) -> None:
    """Several files that are written one after another are one change, but not for ever."""
    path = tmp_path / "users"
    for number in range(4):
        path.write_text("x" * number)
        assert clock.changes(1) == 0
    assert clock.changes(1) == 1
    found = []
    for number in range(2 * PATIENCE):
        path.write_text("y" * number)
        found.append(clock.changes(1))
    assert sum(found) == 2


def test_what_is_as_it_was_is_no_change(clock: Clock, tmp_path: Path) -> None:
    """A file that was away for a moment."""
    path = tmp_path / "users"
    path.rename(tmp_path / "away")
    assert clock.changes(1) == 0
    (tmp_path / "away").rename(path)
    assert clock.changes() == 0


def test_a_change_before_it_looks_is_seen(tmp_path: Path) -> None:
    """Between the start and the first look the file may change."""
    path = tmp_path / "tabi.toml"
    path.write_text("")
    clock = Clock(path)
    path.write_text("workers = 2\n")
    assert clock.changes() == 1


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As volumes of Kubernetes are replaced."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tabi.toml").write_text("")
    (tmp_path / "current").symlink_to("one")
    clock = Clock(tmp_path / "current" / "tabi.toml")
    (tmp_path / "next").symlink_to("two")
    os.rename(tmp_path / "next", tmp_path / "current")
    assert clock.changes() == 1


def test_a_pipe_is_left_to_whoever_reads_the_configuration(tmp_path: Path) -> None:
    """`-c <(program)` can be read only once, and never changes."""
    os.mkfifo(tmp_path / "pipe")
    assert Clock(tmp_path / "pipe").changes() == 0


def test_it_looks_once_in_an_interval(clock: Clock, tmp_path: Path) -> None:
    """However often it is asked."""
    clock.watch.has_changed(1.0)
    (tmp_path / "users").write_text("x")
    assert not any(clock.watch.has_changed(1.0 + INTERVAL * 0.99) for _ in range(5))
    assert clock.watch.due == 1.0 + INTERVAL


def test_it_says_what_has_changed(clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file by its name, of several how many."""
    caplog.set_level("INFO")
    (tmp_path / "users").write_text("x")
    assert clock.changes() == 1
    assert caplog.messages == [f"changed: {tmp_path}/users"]
    (tmp_path / "users").write_text("xx")
    (tmp_path / "conf.d" / "hosts").write_text("x")
    assert clock.changes() == 1
    assert caplog.messages[1:] == [f"changed: {tmp_path}/conf.d/hosts and 1 more"]
