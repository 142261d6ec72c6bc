"""`tabi man`: the pages in the programs that show them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from processes import environment, failure, need, run_here, run_program
from tabi.cli.main import COMMANDS

pytestmark = pytest.mark.interop

PAGES = ["man1/tabi.1", "man5/tabi.toml.5", *(f"man1/tabi-{name}.1" for name in COMMANDS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all pages."""
    folder = tmp_path_factory.mktemp("man")
    done = run_here("man", folder / "deep")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return folder / "deep"


def test_each_command_has_its_page(folder: Path) -> None:
    """And the file too; nothing else is written."""
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == sorted(PAGES)


def shown(path: Path) -> tuple[str, str]:
    """What man shows of a page on a wide terminal, in one line, and its warnings."""
    env = environment() | {"MANWIDTH": "500", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-ww"}
    done = run_program([need("man"), "--warnings", "-l", path], env=env)
    assert done.returncode == 0, done.stderr
    return re.sub(r"\s+", " ", re.sub(".\b", "", done.stdout.decode())), done.stderr.decode()


@pytest.mark.parametrize("name", PAGES)
def test_man_shows_it_without_a_warning(folder: Path, name: str) -> None:
    """No macro is unknown, and no line too long."""
    assert shown(folder / name)[1] == ""


@pytest.mark.parametrize("name", PAGES)
def test_it_is_what_lints_like(folder: Path, name: str) -> None:
    """Without a date, since a page is as old as its program."""
    done = run_program([need("mandoc"), "-T", "lint", "-W", "warning", folder / name])
    lines = done.stdout.decode().splitlines()
    assert [line for line in lines if "missing date" not in line] == []


def test_whatis_finds_what_they_are(folder: Path) -> None:
    """The line of NAME has the form that mandb reads."""
    done = run_program([need("lexgrog"), *(folder / name for name in PAGES)])
    assert done.returncode == 0
    assert b'"tabi-serve - run the proxy"' in done.stdout


def test_a_page_says_what_the_help_says(folder: Path) -> None:
    """Its sentences, its options with what they do, and its examples as they are typed."""
    text, _ = shown(folder / "man1/tabi-serve.1")
    assert "tabi serve [OPTIONS]" in text
    assert "-l, --listen URL Listen here; may be repeated. Default: mixed://127.0.0.1:1080." in text
    assert "tabi serve --intercept '*.example.com' --print" in text
    assert "by `tabi" not in text


def test_a_group_has_its_commands_on_its_page(folder: Path) -> None:
    """Each with its options and arguments."""
    text, _ = shown(folder / "man1/tabi-fault.1")
    assert "tabi fault add [OPTIONS] [PROFILE]" in text
    assert "--latency TIME Seconds that each octet or datagram is late." in text


def test_the_page_of_the_file_has_every_key(folder: Path) -> None:
    """With its unit and its default, under the name of its table."""
    text, _ = shown(folder / "man5/tabi.toml.5")
    assert "[timeouts] [timeouts], in seconds. handshake From accept to the whole request. Default: 10." in text
    assert "udp of a listener" in text
    assert "from When it begins" in text


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """As any error."""
    (tmp_path / "file").touch()
    assert "Not a directory" in failure(run_here("man", tmp_path / "file" / "below"), 1)
