"""Several files as one configuration: what is merged, what is refused, and where a mistake is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tabi.config import Config, load_config, make_config
from tabi.config.files import MAX_DEPTH, MAX_FILES, Files, changed
from tabi.config.load import in_file
from tabi.errors import ConfigError
from tabi.server.compiled import compile_config

INCLUDE = 'include = ["conf.d/*.toml"]\n'


def write(folder: Path, files: dict[str, str]) -> Path:
    """Files in a folder; gives tabi.toml."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "tabi.toml"


def failure(path: Path) -> str:
    """What is said of a configuration."""
    with pytest.raises(ConfigError) as caught:
        compile_config(load_config(path))
    return str(caught.value)


def start(path: Path) -> None:
    """What `tabi serve` does."""
    config = load_config(path, values=False)
    try:
        compile_config(config)
    except ConfigError as exc:
        raise in_file(exc, path) from exc


RULE = '[[rule]]\nname = "{}"\naction = "deny"\n'


def test_tables_are_merged_and_entries_follow_one_another(tmp_path: Path) -> None:
    """Entries in the order of the patterns, and of the names; a file comes before those that it includes."""
    path = write(
        tmp_path,
        {
            "tabi.toml": f'workers = 2\ninclude = ["z.toml", "conf.d/*.toml"]\n{RULE.format("main")}'
            "[limits]\nconnections = 5\n[users.a]\npassword = 'x'\nplain = true\n",
            "conf.d/20.toml": RULE.format("twenty")
            + "[limits]\nmax_session = 9\n[limits.per_client]\nconnections = 3\n",
            "conf.d/10.toml": 'include = ["deep/*"]\n'
            + RULE.format("ten")
            + "[users.b]\npassword = 'y'\nplain = true\n",
            "conf.d/deep/1": RULE.format("deep") + RULE.format("deeper"),
            "conf.d/.30.toml.swp": "what an editor has under way",
            "conf.d/README": "no TOML",
            "z.toml": RULE.format("z"),
        },
    )
    config = load_config(path)
    assert [rule.name for rule in config.rule] == ["main", "z", "ten", "deep", "deeper", "twenty"]
    assert sorted(config.users) == ["a", "b"]
    assert (config.workers, config.limits.connections, config.limits.max_session) == (2, 5, 9)
    assert config.limits.per_client is not None
    assert config.limits.per_client.connections == 3
    assert config.include == []


def test_a_pattern_may_match_nothing(tmp_path: Path) -> None:
    """An empty folder is no mistake."""
    assert load_config(write(tmp_path, {"tabi.toml": INCLUDE})) == Config()


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    """Only what the file says is a pattern."""
    folder = tmp_path / "a[b]*"
    path = write(folder, {"tabi.toml": INCLUDE, "conf.d/a.toml": "workers = 3\n"})
    assert load_config(path).workers == 3


def test_paths_are_relative_to_the_file_that_has_them(tmp_path: Path) -> None:
    """So that a file and what it names are moved together."""
    path = write(
        tmp_path,
        {
            "tabi.toml": f'{INCLUDE}[[rule]]\naction = "deny"\nhosts_file = "a"\n',
            "conf.d/a.toml": '[auth]\nusers_file = "users"\n[[rule]]\naction = "deny"\nhosts_file = ["a", "/b"]\n'
            '[egress.x]\nurl = "ssh://u@h"\nssh = { key = "k" }\n',
        },
    )
    config = load_config(path)
    assert [rule.hosts_file for rule in config.rule] == [f"{tmp_path}/a", [f"{tmp_path}/conf.d/a", "/b"]]
    assert config.auth.users_file == f"{tmp_path}/conf.d/users"
    assert config.egress["x"].ssh.key == f"{tmp_path}/conf.d/k"


@pytest.mark.parametrize(
    ("main", "included", "message"),
    [
        ("workers = 1", "workers = 1", "{a}: workers: {main} says it already"),
        ("[limits]\nconnections = 1", "[limits]\nconnections = 2", "{a}: limits.connections: {main} says it already"),
        ("[users.'x.y']\nplain = true", "[users]\n'x.y'.plain = false", "{a}: users.x.y.plain: {main} says it already"),
        ("limits = 1", "[limits]\nconnections = 1", "{a}: limits: {main} says it already"),
        ("[limits]\nconnections = 1", "limits = 1", "{a}: limits: {main} says it already"),
        ("[[rule]]\naction = 'deny'", "rule = 1", "{a}: rule: {main} says it already"),
        ("rule = 1", "[[rule]]\naction = 'deny'", "{a}: rule: {main} says it already"),
        ("", "workers =", "{a}: Invalid value (at end of document)"),
        ("", "worker = 1", "{a}: worker: unknown key, expected one of: "),
        ("[[rule]]\naction = 'deny'", "[[rule]]\naction = 'dney'", "{a}: rule[0].action: invalid enum value"),
        (
            "[[rule]]\naction = 'dney'",
            "[[rule]]\naction = 'deny'",
            "{main}: rule[0].action: invalid enum value 'dney', ",
        ),
        ("[[rule]]\nvia = 'direct'", "[[rule]]\nvia = 'x'", "{a}: rule[0].via: there is no [egress.x]"),
        ("", "[egress.x]\nisolate = ['user']", "{a}: egress.x.isolate: there is no proxy"),
        (
            "[users.a]\nplain = true",
            "[users.b]\nplain = true",
            "{main}: users.a.password: missing (and 1 more: tabi check ",
        ),
        ("[limits]\nconnections = 9", "[limits]\nburst = 1", "{a}: limits.burst: a burst, but no bandwidth"),
        (
            "[[rule]]\naction = 'deny'",
            "[[rule]]\nhosts_file = 'no'\naction = 'deny'",
            "{a}: rule[0].hosts_file: {folder}/no: ",
        ),
        ("", "[auth]\nusers_file = 'no'", "{a}: auth.users_file: {folder}/no: No such file or directory"),
    ],
)
def test_a_mistake_names_the_file_that_it_is_in(tmp_path: Path, main: str, included: str, message: str) -> None:
    """With the key as it stands there, at the start and at a reload; where two files say the same, both are named."""
    path = write(tmp_path, {"tabi.toml": f"{INCLUDE}{main}\n", "conf.d/a.toml": included})
    with pytest.raises(ConfigError) as caught:
        start(path)
    a = path.parent / "conf.d" / "a.toml"
    assert str(caught.value).startswith(message.format(main=path, a=a, folder=a.parent))


def test_all_mistakes_have_their_files(tmp_path: Path) -> None:
    """As `tabi check` prints them."""
    path = write(tmp_path, {"tabi.toml": f"{INCLUDE}workers = -1\n", "conf.d/a.toml": "[log]\nlevel = 'x'\nlvl = 1\n"})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    a = tmp_path / "conf.d" / "a.toml"
    assert [str(error).partition(": ")[0] for error in caught.value.errors] == [str(path), str(a), str(a)]
    assert [error.message.partition(": ")[0] for error in caught.value.errors] == ["workers", "log.level", "log.lvl"]
    assert str(caught.value).endswith(f"(and 2 more: tabi check {path})")


def test_files_that_are_others_by_now(tmp_path: Path) -> None:
    """A mistake is said all the same."""
    path = write(tmp_path, {"tabi.toml": "workers = 2\n"})
    error = ConfigError("wrong", "rule[0].hosts")
    path.unlink()
    assert str(in_file(error, path)) == f"{path}: rule[0].hosts: wrong"
    path.write_text("")
    assert str(in_file(error, path)) == f"{path}: rule[0].hosts: wrong"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tabi.toml": 'include = ["a.toml"]'}, "{folder}/a.toml: No such file or directory"),
        ({"tabi.toml": 'include = ["conf.d"]', "conf.d/a": ""}, "{folder}/conf.d: not a regular file"),
        ({"tabi.toml": 'include = ["*.toml"]'}, "{folder}/tabi.toml: include: {folder}/tabi.toml includes this file"),
        (
            {"tabi.toml": 'include = ["a"]', "a": 'include = ["b"]', "b": 'include = ["a"]'},
            "{folder}/b: include: {folder}/a includes this file, or is it",
        ),
        (
            {"tabi.toml": 'include = ["a", "?"]', "a": ""},
            "{folder}/tabi.toml: include: {folder}/a is included already",
        ),
        ({"tabi.toml": 'include = "a"'}, "{folder}/tabi.toml: include: expected a list of patterns such as "),
        ({"tabi.toml": 'include = [""]'}, "{folder}/tabi.toml: include: expected a list of patterns such as "),
        ({"tabi.toml": "include = [1]"}, "{folder}/tabi.toml: include: expected a list of patterns such as "),
        (
            {"tabi.toml": 'include = ["0"]', **{str(number): f'include = ["{number + 1}"]' for number in range(20)}},
            f"{{folder}}/{MAX_DEPTH - 1}: include: {{folder}}/{MAX_DEPTH} is more than {MAX_DEPTH} files deep",
        ),
        (
            {"tabi.toml": 'include = ["d/*"]', **{f"d/{number}": "" for number in range(MAX_FILES + 1)}},
            f"{{folder}}/tabi.toml: include: more than {MAX_FILES} files",
        ),
        (
            {"tabi.toml": 'include = ["a"]', "a": f"users.{'.'.join('a' * 5000)} = 1\n"},
            "{folder}/a: nested too deeply",
        ),
    ],
)
def test_what_cannot_be_included_is_said(tmp_path: Path, files: dict[str, str], message: str) -> None:
    """By the file that includes it, or by its own name."""
    assert failure(write(tmp_path, files)).startswith(message.format(folder=tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A file that is included is a regular one; tabi.toml may come from a pipe, which is read once."""
    os.mkfifo(tmp_path / "main")
    assert str(in_file(ConfigError("wrong", "rule[0].hosts"), tmp_path / "main")) == (
        f"{tmp_path}/main: rule[0].hosts: wrong"
    )
    path = write(tmp_path, {"tabi.toml": 'include = ["pipe"]'})
    os.mkfifo(tmp_path / "pipe")
    assert failure(path) == f"{tmp_path}/pipe: not a regular file"


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    """One that leads back is found."""
    path = write(tmp_path, {"tabi.toml": 'include = ["link"]'})
    (tmp_path / "link").symlink_to("tabi.toml")
    assert failure(path) == f"{path}: include: {tmp_path}/link includes this file, or is it"
    write(tmp_path, {"tabi.toml": 'include = ["a", "link"]', "a": ""})
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("a")
    assert failure(path) == f"{path}: include: {tmp_path}/link is included already"


def test_a_program_includes_nothing() -> None:
    """A mapping has no folder; it is not ignored either."""
    with pytest.raises(ConfigError, match=r"^include: only a file can include others: load_config reads them$"):
        make_config({"include": ["a"]})


def test_texts_are_changed_at_their_keys_alone() -> None:
    """Through arrays and any names; what is no text stays."""
    data = {"a": [{"b": "x", "c": "y"}, {"b": ["x", 1, ""]}, 5], "d": {"e": {"b": "x"}, "f": {"b": 7}, "g": 1}}
    found = changed(changed(data, ["a", "b"], str.upper), ["d", "*", "b"], str.upper)
    assert found == {
        "a": [{"b": "X", "c": "y"}, {"b": ["X", 1, ""]}, 5],
        "d": {"e": {"b": "X"}, "f": {"b": 7}, "g": 1},
    }


values = st.recursive(
    st.integers(0, 3) | st.sampled_from(["", "a", "\0"]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.sampled_from(["rule", "users", "a", "a.b"]), part),
    max_leaves=8,
)
tables = st.dictionaries(st.sampled_from(["rule", "listen", "users", "limits", "a"]), values)


@given(tables, tables)
def test_two_files_are_one_or_are_refused(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whatever they say, all of it is there, or the mistake is said of the second."""
    files = Files("one")
    files.parts = [("one", one), ("other", other)]
    try:
        data = files.merged()
    except ConfigError as exc:
        assert str(exc).startswith("other: ")  # noqa: PT017 - either is right
        assert str(exc).endswith(": one says it already")  # noqa: PT017
        return
    assert set(data) == {*one, *other}
    for key in data:
        if key in one and key in other:
            assert isinstance(data[key], dict | list)
            assert len(data[key]) >= max(len(one[key]), len(other[key]))
        else:
            assert data[key] == (one | other)[key]
