"""Users as one table: of tabi.toml and of a file, read one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tabi.config import Config, LimitsConfig, load_config, make_config
from tabi.config.users import MAX_LINE, UserTable, make_users
from tabi.errors import ConfigError
from tabi.policy.quantities import Bandwidth, Moment, Quota
from tabi.policy.users import parse_hash

HASH = "$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYWx0c2FsdA$" + "A" * 43


def table_of(folder: Path, *lines: str | Mapping[str, Any], named: Mapping[str, Any] = {}) -> UserTable:
    """The users of a tabi.toml and of a file beside it."""
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "users.jsonl").write_text("\n".join(text) + "\n")
    users = "".join(f"[users.{name}]\npassword = {password!r}\nplain = true\n" for name, password in named.items())
    (folder / "tabi.toml").write_text(f'{users}[auth]\nusers_file = "users.jsonl"\n')
    return make_users(load_config(folder / "tabi.toml"), without_password=False)


def test_a_line_says_what_a_table_of_tabi_toml_says(tmp_path: Path) -> None:
    """All keys, in any order; the path is relative to the folder of tabi.toml."""
    limits = {"connections": 5, "bandwidth": "10 MB/s", "quota": "5 GB/month"}
    line = {"groups": ["dev"], "name": "jürgen", "password": HASH, "expires": "2027-01-01", "limits": limits}
    table = table_of(tmp_path, line, {"name": "bob", "password": "x", "plain": True}, named={"alice": "secret"})
    assert sorted(table) == ["alice", "bob", "jürgen"]
    assert len(table) == 3
    found = table["jürgen"]
    assert (found.groups, found.expires) == (["dev"], Moment.parse("2027-01-01"))
    assert found.limits == LimitsConfig(
        connections=5, bandwidth=Bandwidth.parse("10 MB/s"), quota=Quota.parse("5 GB/month")
    )
    assert found.secret == parse_hash(HASH)
    users = table.secrets()
    assert users is not None
    assert users.verify(b"alice", b"secret") == "alice"
    assert users.verify(b"bob", b"x") == "bob"
    assert users.verify(b"bob", b"y") is None
    assert users.verify(b"\xff", b"y") is None
    assert users.is_slow


def test_empty_lines_and_comments_are_skipped(tmp_path: Path) -> None:
    """They count as lines all the same, so that an error names what an editor shows."""
    table = table_of(tmp_path, "# who may", "", '  {"name": "a", "password": "x", "plain": true}  ', "\t")
    assert list(table) == ["a"]
    with pytest.raises(ConfigError, match=r"users\.jsonl, line 4: password: missing$"):
        table_of(tmp_path, "# who may", "", {"name": "a", "password": "x", "plain": True}, {"name": "b"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no object of JSON: Input data was truncated"),
        ('["a"]', "expected table, got array"),
        ('{"password": "x"}', "name: missing"),
        ('{"name": 3, "password": "x"}', "name: expected string, got integer"),
        ('{"name": "", "password": "x"}', "name: a user name has 1 to 255 octets (RFC 1929)"),
        (
            '{"name": "a", "pasword": "hush"}',
            "pasword: unknown key, expected one of: password, plain, groups, expires, limits, name",
        ),
        ('{"name": "a", "password": "hush"}', "password: expected $scrypt$ln=…,r=…,p=…$SALT$KEY"),
        ('{"name": "a", "password": ["hush"]}', "password: expected string, got array"),
        ('{"name": "a", "plain": true, "password": "x", "limits": {"rate": 3}}', "limits.rate: unknown key, expected"),
        ('{"name": "a", "plain": true, "password": "x", "limits": {"connections": 0}}', "limits.connections: 0, expec"),
        ('{"name": "a", "plain": true, "password": "x", "limits": {"bandwidth": "x"}}', "limits.bandwidth: 'x' is no"),
        ('{"name": "first", "plain": true, "password": "x"}', "name: the same as in line 1"),
        ('{"name": "alice", "plain": true, "password": "x"}', "name: the same as in [users.alice] of tabi.toml"),
        ("x" * (MAX_LINE + 1), f"more than {MAX_LINE} octets"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """File, line and key; no password is in the message."""
    first = {"name": "first", "password": "x", "plain": True}
    with pytest.raises(ConfigError) as caught:
        table_of(tmp_path, first, line, first, named={"alice": "secret"})
    assert caught.value.path == "auth.users_file"
    assert caught.value.message.startswith(f"{tmp_path}/users.jsonl, line 2: {message}")
    assert "hush" not in str(caught.value)


def test_octets_that_are_no_text_are_named(tmp_path: Path) -> None:
    """A file in another encoding than UTF-8."""
    path = tmp_path / "users.jsonl"
    path.write_bytes('{"name": "jürgen", "password": "x", "plain": true}\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"users\.jsonl, line 1: no object of JSON: "):
        make_users(make_config({"auth": {"users_file": str(path)}}), without_password=False)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named, with the key."""
    with pytest.raises(ConfigError, match=rf"^auth\.users_file: {tmp_path}/none: No such file or directory$"):
        make_users(make_config({"auth": {"users_file": f"{tmp_path}/none"}}), without_password=False)
    with pytest.raises(ConfigError, match=r"^auth\.users_file: expected the path of a file$"):
        make_config({"auth": {"users_file": ""}})


def test_many_users_are_each_found(tmp_path: Path) -> None:
    """A table of thousands: everybody in it and nobody else, whatever the names have in common."""
    table = table_of(
        tmp_path, *({"name": f"u{number}", "password": str(number), "plain": True} for number in range(3000))
    )
    assert list(table) == [f"u{number}" for number in range(3000)]
    assert all(table[f"u{number}"].password == str(number) for number in range(3000))
    assert not any(name in table for name in ("u3000", "u", "", "U1", "u1\0", "\udcff"))
    with pytest.raises(KeyError):
        table["nobody"]
    assert repr(table) == "UserTable(3000)"


def test_nobody_at_all() -> None:
    """A configuration without users: nobody can log in, and nobody is looked for."""
    table = make_users(Config(), without_password=False)
    assert (len(table), list(table), table.get("alice"), table.secrets()) == (0, [], None, None)


def test_what_users_have_is_known_without_reading_them(tmp_path: Path) -> None:
    """Limits, quotas and groups that nobody has cost no session anything."""
    has = table_of(tmp_path, {"name": "a", "password": "x", "plain": True}).has
    assert (has.passwords, has.groups, has.limits, has.quotas, has.expires, has.sample) == (True, *[False] * 4, None)
    has = table_of(tmp_path, {"name": "a", "password": HASH, "groups": ["g"], "limits": {"quota": "1 GB/day"}}).has
    assert (has.groups, has.limits, has.quotas, has.expires) == (True, True, True, False)
    assert has.sample == parse_hash(HASH)
    assert has.costs == {(14, 8, 1): 1}
