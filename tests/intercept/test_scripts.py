"""Scripts: Python files with hooks, loaded once, and again when they change."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Run
from tabi.errors import ConfigError
from tabi.intercept import scripts
from tabi.intercept.hooks import Hooks
from tabi.intercept.scripts import Scripts, load_script, module_name

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

GOOD = """
class Mark:
    word = "one"
    def request(self, flow):
        return self.word
"""


Write = Callable[[str], str]


class Counted:
    """A hook of a program."""

    def request(self, flow: object) -> None:
        """Nothing."""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a script into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def put(text: str) -> str:
        path = tmp_path / "new"
        path.write_text(text)
        path.rename(tmp_path / "my-hooks.py")  # so that it is another file
        return "my-hooks.py"

    return put


def test_each_class_of_the_file_with_a_hook_is_made_once(write: Write) -> None:
    """In the order of the file; neither what it imports, nor classes without hooks, nor abstract ones; no alias."""
    path = write(
        "from __future__ import annotations\n"
        "import abc, dataclasses\n"
        "from unittest.mock import Mock as request\n"
        "from tabi.intercept.hooks import Hooks\n"
        "class Base(abc.ABC):\n"
        "    @abc.abstractmethod\n"
        "    def name(self): ...\n"
        "    def request(self, flow): ...\n"
        "class Second(Base):\n"
        "    def name(self): return 'second'\n"
        "@dataclasses.dataclass\n"
        "class First:\n"
        "    count: int = 0\n"
        "    error: type = ValueError\n"
        "    def flow_end(self, flow, more=None): ...\n"
        "class Nothing:\n"
        "    def other(self): ...\n"
        "Alias = First\n"
    )
    before = list(sys.path)
    loaded = load_script(path)
    assert [type(one).__name__ for one in loaded.objects] == ["Second", "First"]
    assert sys.path == before
    module = sys.modules[module_name(path)]
    assert module.__file__ == os.path.abspath(path)
    assert type(loaded.objects[0]).__module__ == module.__name__
    assert module.__name__.startswith("tabi_script_my_hooks_")
    assert module_name("other/my-hooks.py") != module_name(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n\ndef request(:\n", "my-hooks.py:3: SyntaxError: invalid syntax"),
        ("\n  x = 1\n", "my-hooks.py:2: IndentationError: unexpected indent"),
        ("a = 1\nb = a / 0\n", "my-hooks.py:2: ZeroDivisionError: division by zero"),
        ("import not_there_at_all\n", "my-hooks.py:1: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise ValueError('two\\nlines')", r"my-hooks.py:1: ValueError: two\nlines"),
        ("import sys\nsys.exit(3)\n", "my-hooks.py:2: SystemExit: 3"),
        ("import json\n\njson.loads('{')\n", "my-hooks.py:3: JSONDecodeError: Expecting property name"),
        ("", "my-hooks.py: no class in it has one of the methods client_hello, "),
        ("class A:\n    def requests(self, flow): ...\n", "my-hooks.py: no class in it has one of the methods"),
        ("class A:\n    def __init__(self, x): ...\n    def request(self, flow): ...\n", "my-hooks.py: TypeError: A"),
        (
            "class A:\n    def __init__(self):\n        self.x = {}['key']\n    def request(self, flow): ...\n",
            "my-hooks.py:3: KeyError: 'key'",
        ),
        (
            "class A:\n\n    def request(self): ...\n",
            "my-hooks.py:3: A.request takes other arguments, expected def request(self, flow)",
        ),
        (
            "class A:\n    def tcp_data(self, connection, data): ...\n",
            "my-hooks.py:2: A.tcp_data takes other arguments, expected def tcp_data(self, connection, direction, data)",
        ),
        (
            "class A:\n    def response_body(self, flow, chunk):\n        yield chunk\n",
            "my-hooks.py:2: A.response_body yields, expected def response_body(self, flow, chunk)",
        ),
        (
            "import tabi\nclass A:\n    @tabi.in_thread\n    async def request(self, flow): ...\n",
            "my-hooks.py:3: TypeError: A.request is async, expected an ordinary function for a thread",
        ),
        ("x = '\0'", "my-hooks.py"),
        ("# coding: no-such\n", "my-hooks.py:"),
        (f"x = {'(' * 5000}{')' * 5000}\n", "my-hooks.py"),
    ],
)
def test_what_is_wrong_with_a_script_is_said_in_one_line(write: Write, text: str, said: str) -> None:
    """With the file and the line, where there is one; and nothing of it is left behind."""
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_script(path)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert module_name(path) not in sys.modules


def test_what_is_no_file_is_refused(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there, a folder, a pipe that nobody writes to, too much, a name that no file has."""
    with pytest.raises(ConfigError, match=r"^not-there\.py: No such file or directory$"):
        load_script("not-there.py")
    with pytest.raises(ConfigError, match=r"Is a directory|not a file"):
        load_script(str(tmp_path))
    os.mkfifo("pipe.py")
    with pytest.raises(ConfigError, match=r"^pipe\.py: not a file$"):
        load_script("pipe.py")
    with pytest.raises(ConfigError, match="null"):
        load_script("a\0b")
    monkeypatch.setattr(scripts, "SIZE_LIMIT", 10)
    with pytest.raises(ConfigError, match="more than 10 octets"):
        load_script(write(GOOD))


def words(hooks: Hooks) -> list[object]:
    """What the handlers of requests say."""
    return [handler.function(None) for handler in hooks.request]


def test_objects_of_a_program_come_first_and_scripts_are_shared(write: Write) -> None:
    """Two that use a script have the same objects."""
    path = write(GOOD)
    one, two, files, own = Hooks(), Hooks(), Scripts(), Counted()
    files.add(one, [path], [own])
    files.add(two, [path])
    assert one.objects[0] is own
    assert one.objects[1] is two.objects[0]
    assert words(one) == [None, "one"]


def test_scripts_that_nobody_uses_are_not_kept(write: Write) -> None:
    """Neither after the last one has let go of them, nor where another script of the same entry is broken."""
    path = write(GOOD)
    hooks, files = Hooks(), Scripts()
    with pytest.raises(ConfigError):
        files.add(hooks, [path, "not-there.py"])
    assert (files.loaded, files.seen, files.uses) == ({}, {}, [])
    files.add(hooks, [path])
    files.add(other := Hooks(), [path])
    files.forget(hooks)
    assert list(files.seen) == [path]
    files.forget(other)
    assert (files.loaded, files.seen, files.uses) == ({}, {}, [])
    assert words(other) == ["one"]


async def looked(files: Scripts) -> None:
    """Look now, and wait until what was found is in place."""
    assert files.timer is not None
    files.timer.cancel()
    files.look()
    while files.loading is not None:
        await asyncio.sleep(0.001)


def test_a_changed_script_is_loaded_again(write: Write, run_once: Run, caplog: pytest.LogCaptureFixture) -> None:
    """In place of the old version, for all who use it; a broken version leaves the old one, and is logged once."""

    async def main() -> None:
        path = write(GOOD)
        hooks, other, files = Hooks(), Hooks(), Scripts()
        files.add(hooks, [path])
        shutil.copy(path, "other.py")
        files.add(other, ["other.py"], [Counted()])
        files.start()
        kept = other.objects
        try:
            first = hooks.objects
            await looked(files)
            assert hooks.objects is first
            write(GOOD.replace("one", "the second"))
            await looked(files)
            assert words(hooks) == ["the second"]
            write("class Broken(:\n")
            for _ in range(3):
                await looked(files)
                assert words(hooks) == ["the second"]
            assert type(hooks.objects[0]) is vars(sys.modules[module_name(path)])["Mark"]
            os.unlink(path)
            await looked(files)
            await looked(files)
            assert words(hooks) == ["the second"]
            write(GOOD.replace("one", "third"))
            await looked(files)
            assert words(hooks) == ["third"]
            assert other.objects is kept
        finally:
            files.close()
        files.look()
        assert files.timer is None

    with caplog.at_level(logging.INFO, "tabi"):
        run_once(main)
    assert [record.getMessage() for record in caplog.records] == [
        "script my-hooks.py: loaded again",
        "script my-hooks.py:1: SyntaxError: invalid syntax; the version before stays",
        "script my-hooks.py: No such file or directory; the version before stays",
        "script my-hooks.py: loaded again",
    ]


def test_the_files_are_looked_at_by_a_timer(write: Write, run_once: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask; what is loaded after the end changes nothing, and without scripts there is no timer."""
    monkeypatch.setattr(scripts, "LOOK_EVERY", 0.01)

    async def main() -> None:
        empty = Scripts()
        empty.start()
        assert empty.timer is None
        path = write(GOOD)
        hooks, files = Hooks(), Scripts()
        files.add(hooks, [path])
        files.start()
        write(GOOD.replace("one", "two"))
        while words(hooks) != ["two"]:
            await asyncio.sleep(0.001)
        files.close()
        write(GOOD.replace("one", "three"))
        files.load(asyncio.get_running_loop(), [path])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert words(hooks) == ["two"]

    run_once(main)


def test_the_loop_may_be_gone_before_a_script_is_loaded(write: Write) -> None:
    """Then nobody hears of it."""
    loop = asyncio.new_event_loop()
    loop.close()
    Scripts().load(loop, [write(GOOD), "not-there.py"])


def test_the_example_is_a_script() -> None:
    """examples/hooks.py loads as it stands."""
    loaded = load_script(str(EXAMPLES / "hooks.py"))
    assert [type(one).__name__ for one in loaded.objects] == ["Mark", "Refuse", "Statuses", "TagSlow", "Greetings"]
